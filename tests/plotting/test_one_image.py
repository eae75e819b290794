"""One image in one line: the display of it, whatever it is given as."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from displayed import X
from matplotlib.figure import Figure
from numpy.testing import assert_array_equal
from PIL import Image
from small_networks import SmallNet

import sklcam
from sklcam import CAMDisplay, CAMExplainer
from sklcam.cam import TopK


@pytest.fixture(scope="module")
def explainer():
    torch.manual_seed(0)
    options = {"classes": ["a", "b", "c"], "image_size": 16, "verbose": 0}
    return CAMExplainer(SmallNet(in_channels=3), **options).fit()


def test_it_is_the_display_of_that_image(fitted):
    shown = sklcam.show(X[3], fitted, method=["gradcam", "layercam"])
    expected = CAMDisplay.from_estimator(fitted, X[3:4], methods=["gradcam", "layercam"])
    assert shown.axes_.shape == (1, 3)
    probability = fitted.predict_proba(X[3:4]).max()
    assert shown.image_titles == [f"predicted: {fitted.predict(X[3:4])[0]} ({probability:.2f})"]
    for one, other in zip(shown.ims_[0], expected.ims_[0], strict=True):
        assert_array_equal(one.get_array(), other.get_array())


@pytest.mark.parametrize("form", ["path", "str", "PIL", "array", "float", "tensor"])
def test_an_image_in_any_form(explainer, form, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255  # as the display of a tensor is scaled to be seen
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    forms = {
        "path": path,
        "str": str(path),
        "PIL": Image.fromarray(pixels),
        "array": pixels,
        "float": pixels / np.float32(255),
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1) / 255,
    }
    shown = sklcam.show(forms[form], explainer, frame="image")
    np.testing.assert_allclose(shown.images[0], pixels / 255, atol=1e-6)
    # A tensor is the network's input, and numbers are not rounded where they are resized.
    given = forms[form][None] if form in ("float", "tensor") else pixels[None]
    expected = explainer.explain(given, frame="image")[0]
    np.testing.assert_allclose(shown.ims_[0, 1].get_array(), expected, atol=1e-5)


def test_the_class_that_is_asked_for_is_over_its_map(explainer):
    image = np.random.default_rng(0).random((16, 16, 3))
    probabilities = explainer.predict_proba(image[None])[0]
    assert list(sklcam.show(image, explainer, target="b").map_titles.values()) == [
        [f"b ({probabilities[1]:.2f})"]
    ]
    several = sklcam.show(image, explainer, target=["c", "a"])
    assert [titles for (titles,) in several.map_titles.values()] == [
        *(f"c ({probabilities[2]:.2f})", f"a ({probabilities[0]:.2f})")
    ]
    assert sklcam.show(image, explainer, target=TopK(2)).axes_.shape == (1, 3)
    assert sklcam.show(image, explainer, target=lambda out: out[:, 0]).map_titles is None


def test_a_network_by_its_name_has_its_weights(monkeypatch):
    made = []

    def build(name, **options):
        made.append((name, options["weights"]))
        return CAMExplainer(SmallNet(in_channels=3), image_size=16, verbose=0)

    monkeypatch.setattr("sklcam.plotting.one_image.CAMExplainer", build)
    sklcam.show(np.zeros((8, 8, 3)), "efficientnet_lite0")
    assert made == [("efficientnet_lite0", "DEFAULT")]


def test_axes_and_looks_are_the_displays(fitted):
    axes = Figure().subplots(1, 2)
    shown = sklcam.show(X[0], fitted, ax=axes, kind="map", cmap="gray", colorbar=False)
    assert_array_equal(shown.axes_[0], axes)
    assert shown.ims_[0, 1].cmap.name == "gray" and shown.colorbar_ is None
