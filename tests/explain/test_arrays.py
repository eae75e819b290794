"""Maps as arrays: at the layer's own grid, of half the bytes, and written where one says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_networks import OF_ATTENTION, SmallNet
from torch import nn
from volumes import random_volumes, tiny_volume_net

from sklcam import CAMExplainer
from sklcam.cam import (
    GradCAM,
    GuidedGradCAM,
    LayerCAM,
    Method,
    Saliency,
    TopK,
    Uniform,
    available,
    upsample,
)

N = 5
IMAGES = torch.rand(N, 2, 8, 8, generator=torch.Generator().manual_seed(0))
SIGNED = GradCAM(relu=False)  # no map of it is blank
AT_THE_PIXELS = {
    *{"saliency", "guidedbackprop", "deconvnet", "guidedgradcam", "occlusion", "rise"},
    *{"fakecam", "groupcam", "uniform"},
}


def explainer(model=None, **options):
    torch.manual_seed(0)
    model = SmallNet(in_channels=2).eval() if model is None else model
    return CAMExplainer(model, **{"verbose": 0, "batch_size": 2, **options})


@pytest.fixture(scope="module")
def ours():
    return explainer().fit(IMAGES)


def means_of_squares():
    """A network whose layer has the mean of each 4 x 4 pixels, and whose scores are their means."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.AvgPool2d(4), nn.ReLU(), *head)


# At the layer


def test_maps_at_the_layer_are_those_of_its_grid():
    """Grad-CAM of class 0 is its channel over the number of places, here 4."""
    squares = IMAGES[:, 0].reshape(N, 2, 4, 2, 4).mean(dim=(2, 4))
    found = explainer(means_of_squares(), target_layer="1").fit()
    maps = found.explain(IMAGES, 0, frame="layer", normalize=False)
    assert maps.shape == (N, 2, 2) and maps.dtype == np.float32
    assert_allclose(maps, squares / 4, atol=1e-6)
    scaled = found.explain(IMAGES, 0, frame="layer")
    low, high = squares.amin((1, 2), keepdim=True), squares.amax((1, 2), keepdim=True)
    assert_allclose(scaled, (squares - low) / (high - low), atol=1e-5)


def test_out_and_batches_at_the_layer(ours, tmp_path):
    expected = ours.explain(IMAGES, TopK(2), method=SIGNED, frame="layer")
    assert expected.shape == (N, 2, 4, 4)
    batches = list(ours.iter_explain(IMAGES, TopK(2), method=SIGNED, frame="layer"))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert_array_equal(np.concatenate(batches), expected)
    out = np.memmap(tmp_path / "maps", np.float16, "w+", shape=(N, 2, 4, 4))
    assert ours.explain(IMAGES, TopK(2), method=SIGNED, frame="layer", out=out) is out
    assert_array_equal(out, expected.astype(np.float16))
    with pytest.raises(ValueError, match=r"shape \(5, 2, 4, 4\); got .*\(5, 2, 4, 3\)"):
        ours.explain(IMAGES, TopK(2), method=SIGNED, frame="layer", out=np.zeros((N, 2, 4, 3)))
    several = ours.explain(
        IMAGES, TopK(2), method={"one": SIGNED, "other": LayerCAM(relu=False)}, frame="layer"
    )
    assert_array_equal(several["one"], expected)
    assert several["other"].shape == (N, 2, 4, 4)


def test_volumes_at_the_layer():
    volumes = random_volumes(3, 1, 4, 6, 8)
    ours = explainer(tiny_volume_net()).fit(volumes)
    maps = ours.explain(volumes, frame="layer", normalize=False)
    assert maps.shape == (3, 2, 3, 4)
    expected = ours.explain(volumes, normalize=False)
    assert_allclose(upsample(torch.tensor(maps), (4, 6, 8)), expected, atol=1e-7)


@pytest.mark.parametrize("method", sorted({*available()} - OF_ATTENTION))
def test_only_methods_of_layers_have_maps_there(ours, method):
    if method in AT_THE_PIXELS:
        with pytest.raises(ValueError, match="makes its maps at the pixels"):
            ours.iter_explain(IMAGES, method=method, frame="layer")
    else:
        ours.iter_explain(IMAGES, method=method, frame="layer")


class AtThePixels(Method):
    def explain(self, recorded):
        return [recorded.images[:, :1]]


def test_what_has_no_grid_of_its_own(ours):
    several = explainer(target_layer=["2", "5"]).fit(IMAGES)
    with pytest.raises(ValueError, match=r"single target layer, but .* 2, 5"):
        several.explain(IMAGES, frame="layer")
    with pytest.raises(ValueError, match=r"AtThePixels returned maps of 8 x 8 .* has 4 x 4"):
        ours.explain(IMAGES, method=AtThePixels(), frame="layer")


def test_images_that_are_filled_up_have_no_grid_of_their_own(ours, monkeypatch):
    monkeypatch.setattr(type(ours.adapter), "extent", lambda self, size: (1.0, 0.75))
    with pytest.raises(ValueError, match="75% of its columns cover the image"):
        ours.explain(IMAGES, frame="layer")


# Of which numbers


@pytest.mark.parametrize("frame", ["input", "image", "layer"])
@pytest.mark.parametrize("dtype", ["float16", np.float16, "float64"])
def test_numbers_are_those_that_are_asked_for(ours, frame, dtype):
    X = IMAGES.clamp(0, 1)
    plain, maps = ours.explain(X, frame=frame), ours.explain(X, frame=frame, dtype=dtype)
    assert maps.dtype == dtype
    assert_array_equal(maps, plain.astype(dtype))
    assert np.abs(maps - plain.astype(np.float64)).max() <= 2.5e-4
    (first, *_) = ours.iter_explain(X, frame=frame, dtype=dtype)
    assert np.asarray(first).dtype == dtype


def test_networks_in_float64_have_maps_of_it(ours):
    double = explainer(SmallNet(in_channels=2).double().eval()).fit(IMAGES.double())
    maps = double.explain(IMAGES.double(), dtype="float64")
    assert (maps != maps.astype(np.float32)).any()
    assert_array_equal(double.explain(IMAGES.double()), maps.astype(np.float32))


@pytest.mark.parametrize(
    ("method", "options", "remedy"),
    [
        (GradCAM(), {"normalize": False}, "GradCAM may .* or leave normalize at True"),
        (Saliency(channels="keep"), {}, "Saliency may .*[.] Use float32[.]"),
        (GuidedGradCAM(channels="keep"), {"normalize": False}, "Use float32[.]"),
    ],
)
def test_float16_is_for_maps_in_the_unit_interval(ours, method, options, remedy):
    for narrow in ({"dtype": "float16"}, {"out": np.zeros((N, 8, 8), np.float16)}):
        with pytest.raises(ValueError, match=remedy):
            ours.explain(IMAGES, method=method, **options, **narrow)
    assert ours.explain(IMAGES, method=Uniform(), dtype="float16").dtype == np.float16
