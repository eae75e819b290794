"""COSE by hand: transformations of torchvision and PIL, SSIM of scikit-image, and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image, ImageFilter
from scipy.ndimage import binary_erosion
from skimage.metrics import structural_similarity
from small_networks import SmallNet
from torch import nn
from torchvision.transforms.v2 import functional as tv

from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.metrics import cose, evaluate, get_scorer
from sklcam.metrics.cose import TRANSFORMATIONS, randomized

N, SIDE = 6, 16
RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (N, 4, 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)


def deciding(network, seed=3):
    """Predicts classes that differ from image to image, and from what is done to one."""
    torch.manual_seed(seed)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    with torch.no_grad():
        head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        images = normalized(pixels())[:, : network[0].in_channels]
        head.weight *= 20
        head.bias -= network.eval()(images).mean(0)
    return network


def explainer(network=None, **options):
    network = deciding(SmallNet(3, 3)) if network is None else network
    options = {"target_layer": "5", "image_size": SIDE, "mean": MEAN, "std": STD} | options
    return CAMExplainer(network, verbose=0, **options).fit()


def pixels():
    return torch.from_numpy(X).permute(0, 3, 1, 2) / 255


def normalized(images):
    return tv.normalize(images, MEAN, STD)


def measured(around, y, **options):
    params = {"cose": {"randomized": False, **options}}
    return evaluate(around, X, y, metrics="cose", metric_params=params, progress=False)


def predicted(around):
    return around.predict(X)


def by_hand(around, y, pairs):
    """C and 1 - S of each image: ``pairs`` are transformed pixels, how to undo a map, and where."""
    maps = around.explain_inputs(normalized(pixels()))[0].numpy()
    found = [([], []) for _ in range(N)]
    for images, undo, valid in pairs:
        others, output = around.explain_inputs(normalized(images))
        others, right = undo(others).numpy(), output.argmax(1).numpy() == y
        for i in range(N):
            _, full = structural_similarity(maps[i], others[i], data_range=1, win_size=5, full=True)
            inside = binary_erosion(valid, np.ones((5, 5)), border_value=0)
            constant = min(np.ptp(maps[i][valid]), np.ptp(others[i][valid])) == 0
            kept = 0 if constant else full[inside].mean()
            found[i][0 if right[i] else 1].append(kept if right[i] else full[inside].mean())
    wrong = around.predict(X) != y
    means = np.array([[np.mean(each) if each else np.nan for each in pair] for pair in found])
    means[wrong] = np.nan
    return means[:, 0], 1 - means[:, 1]


WHOLE = np.ones((SIDE, SIDE), bool)


def as_it_is(maps):
    return maps


# The number


def test_the_geometric_mean():
    found = cose(torch.tensor([0.64, 1.0, -0.5]), torch.tensor([0.25, 2.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([0.4, 2**0.5, 0.0]))
    assert cose(torch.tensor([torch.nan, 0.5]), torch.tensor([0.5, torch.nan])).isnan().all()


def test_of_a_data_set_it_is_that_of_the_averages():
    around = explainer()
    y = predicted(around)
    y[0] = (y[0] + 1) % 3  # wrong
    result = measured(around, y, transformations=["Rotate", "FlipUD", "Contrast"])
    c, s = result["cose_consistency"], result["cose_sensitivity"]
    assert list(result) == ["cose", "cose_consistency", "cose_sensitivity"]
    assert np.isnan([c[0], s[0]]).all() and np.isfinite(c).sum() > 2 < np.isfinite(s).sum()
    summary = result.summary()
    expected = np.sqrt(max(np.nanmean(c), 0) * np.nanmean(s))
    assert summary["cose"].mean == pytest.approx(expected)
    for name, values in result.items():
        assert summary[name].n == np.isfinite(values).sum()
        assert summary[name].n + summary[name].n_missing == N
    options = {"transformations": ["Rotate", "FlipUD", "Contrast"], "randomized": False}
    assert get_scorer("cose", **options)(around, X, y) == pytest.approx(expected)


# Transformations


def test_flips_by_hand():
    around = explainer()
    y = predicted(around)
    pairs = [
        (pixels().flip(-1), lambda maps: maps.flip(-1), WHOLE),
        (pixels().flip(-2), lambda maps: maps.flip(-2), WHOLE),
    ]
    result = measured(around, y, transformations=["FlipLR", "FlipUD"])
    kept, changed = by_hand(around, y, pairs)
    assert_allclose(result["cose_consistency"], kept, atol=1e-5)
    assert_allclose(result["cose_sensitivity"], changed, atol=1e-5)
    assert np.isfinite(kept).any() and np.isfinite(changed).any()


@pytest.mark.parametrize("axis", [2, 1])
def test_shifts_by_hand(axis):
    """Of all 60 magnitudes, 30 each way: at 16 pixels, up to two of them, and one at least."""

    def shifted(images, by):
        moved = images.roll(by, axis - 3)
        edge = [slice(None)] * images.ndim
        edge[axis - 3] = slice(None, by) if by > 0 else slice(by, None)
        moved[tuple(edge)] = 0
        return moved

    pairs = []
    for step in range(1, 31):
        for sign in (-1, 1):
            by = sign * max(1, int(step / 30 * 32 / 224 * SIDE + 1e-4))
            valid = shifted(torch.ones(1, SIDE, SIDE), -by)[0].numpy() > 0
            pairs.append((shifted(pixels(), by), lambda maps, by=by: shifted(maps, -by), valid))
    around = explainer()
    y = predicted(around)
    name = "TranslateX" if axis == 2 else "TranslateY"
    result = measured(around, y, transformations=[name], n_magnitudes=60)
    kept, changed = by_hand(around, y, pairs)
    assert_allclose(result["cose_consistency"], kept, atol=1e-5)
    assert_allclose(result["cose_sensitivity"], changed, atol=1e-5)


class Seeing(SmallNet):
    """Keeps what it sees."""

    seen: tuple = ()

    def forward(self, x):
        type(self).seen += (x.detach().clone(),)
        return super().forward(x)


def seen_as(name, **options):
    """The pixels of transformed images, (n_magnitudes, N, 3, height, width)."""
    around = explainer(deciding(Seeing(3, 3)))
    y = predicted(around)
    Seeing.seen = ()
    measured(around, y, transformations=[name], **options)
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    return torch.stack(Seeing.seen[1:]) * std + mean


def of_pil(way):
    pictures = [Image.fromarray(image).filter(getattr(ImageFilter, way)) for image in X]
    return torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in pictures])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AutoContrast", lambda: tv.autocontrast((pixels() * 255).round().to(torch.uint8))),
        ("Equalize", lambda: tv.equalize((pixels() * 255).round().to(torch.uint8))),
        ("Blur", lambda: of_pil("BLUR")),
        ("Smooth", lambda: of_pil("SMOOTH")),
    ],
)
def test_changes_without_a_magnitude_are_pils(name, expected):
    (found,) = seen_as(name)
    torch.testing.assert_close(found * 255, expected().float(), atol=1.01, rtol=0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Brightness", tv.adjust_brightness),
        ("Color", tv.adjust_saturation),
        ("Contrast", tv.adjust_contrast),
        ("Sharpness", tv.adjust_sharpness),
        ("Rotate", lambda image, factor: tv.rotate(image, (factor - 1) / 0.99 * 135)),
    ],
)
def test_each_image_has_six_magnitudes_of_its_own(name, change):
    found = seen_as(name)
    assert found.shape == (6, N, 3, SIDE, SIDE)
    steps = [step for step in range(-30, 31) if step]
    drawn = []
    for i, image in enumerate(pixels()):
        grid = torch.stack([change(image, 1 + 0.99 * step / 30) for step in steps])
        # Turned images are interpolated here, and of the nearest pixel there.
        distance = (found[:, i, None] - grid).abs().flatten(2).mean(2)
        assert distance.amin(1).max() < (0.1 if name == "Rotate" else 1e-5)
        drawn.append(distance.argmin(1).tolist())
        if name != "Rotate":
            assert len(set(drawn[-1])) == 6
    assert len({tuple(each) for each in drawn}) == N
    assert len({each for some in drawn for each in some}) > 20


def test_turned_corners_are_black():
    found = seen_as("Rotate", n_magnitudes=60)
    assert 0.3 < (found[:, :, :, 0, 0].abs().amax(2) < 1e-6).float().mean() < 1


def test_values_do_not_depend_on_batches():
    y = predicted(explainer())
    found = [measured(explainer(batch_size=size), y, n_magnitudes=2) for size in (4, 6)]
    for name in found[0]:
        assert_allclose(found[0][name], found[1][name], atol=1e-5)
    assert len(TRANSFORMATIONS) == 13


def test_grey_images_keep_their_color():
    grey = X[..., :1].repeat(3, -1)[..., 0]
    around = explainer(deciding(SmallNet(3, 1)), mean=0.5, std=0.5)
    y = around.predict(grey)
    params = {"cose": {"transformations": ["Color", "FlipLR"], "randomized": False}}
    both = evaluate(around, grey, y, metrics="cose", metric_params=params, progress=False)
    params["cose"]["transformations"] = ["FlipLR"]
    one = evaluate(around, grey, y, metrics="cose", metric_params=params, progress=False)
    assert_allclose(both["cose_consistency"], one["cose_consistency"])


# Networks that know less


def test_a_network_that_knows_less_counts_where_it_is_wrong():
    around, other = explainer(), explainer(deciding(SmallNet(3, 3), seed=9))
    y = predicted(around)
    state = other.adapter.network.state_dict()
    result = measured(around, y, transformations=["FlipLR"], checkpoints=[state])
    maps = around.explain(X)
    others, wrong = other.explain(X), other.predict(X) != y
    assert 0 < wrong.sum() < N
    flip = around.explain_inputs(normalized(pixels().flip(-1)))
    flip_maps, flip_wrong = flip[0].flip(-1).numpy(), flip[1].argmax(1).numpy() != y
    for i in range(N):
        pairs = [others[i]] * int(wrong[i]) + [flip_maps[i]] * int(flip_wrong[i])
        similar = [structural_similarity(maps[i], each, data_range=1, win_size=5) for each in pairs]
        expected = 1 - np.mean(similar) if similar else np.nan
        assert_allclose(result["cose_sensitivity"][i], expected, atol=1e-5)
        assert np.isnan(result["cose_consistency"][i]) == flip_wrong[i]


def test_checkpoints_may_be_files(tmp_path):
    around = explainer()
    y = predicted(around)
    state = randomized(around.adapter.network, 5).state_dict()
    torch.save(state, tmp_path / "early.pt")
    options = {"transformations": ["FlipLR"]}
    of_dict = measured(around, y, checkpoints=[state], **options)
    of_file = measured(around, y, checkpoints=[tmp_path / "early.pt"], **options)
    assert_allclose(of_dict["cose_sensitivity"], of_file["cose_sensitivity"])
    plain = measured(around, y, **options)["cose_sensitivity"]
    assert not np.array_equal(of_dict["cose_sensitivity"], plain, equal_nan=True)


class WithScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = SmallNet(3, 3)
        self.scale = nn.Parameter(torch.full((3,), 2.0) + torch.arange(3))
        self.register_buffer("index", torch.arange(3))

    def forward(self, x):
        return self.net(x) * self.scale[self.index]


def test_a_randomized_network_has_learned_nothing():
    torch.manual_seed(0)
    network = WithScale().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
        network.net[1].running_mean.add_(3)
    before = {name: each.clone() for name, each in network.state_dict().items()}
    state = torch.get_rng_state()
    found, again, other = (randomized(network, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], each) for name, each in network.state_dict().items())
    for name, parameter in found.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert torch.equal(parameter, again.get_parameter(name))
    assert not torch.equal(found.net[0].weight, other.net[0].weight)
    assert torch.equal(found.index, network.index) and not found.net[1].running_mean.any()
    assert found.scale.tolist() != network.scale.tolist()
    assert float(found.scale.mean()) == pytest.approx(4, abs=2)


def test_random_weights_are_part_of_it_by_default():
    clf = ConsistentCAMClassifier(
        SmallNet, target_layer="5", image_size=SIDE, max_epochs=1, verbose=0, random_state=0,
        alpha=0, beta=0, device="cpu", lr=0.01,
    ).fit(X, np.arange(N) % 3)  # fmt: skip
    y = clf.predict(X)
    before = {name: each.clone() for name, each in clf.module_.state_dict().items()}
    params = {"cose": {"transformations": ["FlipLR"]}}
    runs = [
        evaluate(clf, X, y, metrics="cose", metric_params=params, progress=False, random_state=seed)
        for seed in (0, 0, 1)
    ]
    plain = evaluate(
        clf, X, y, metrics="cose", progress=False,
        metric_params={"cose": {"transformations": ["FlipLR"], "randomized": False}},
    )  # fmt: skip
    sensitivity = [run["cose_sensitivity"] for run in runs]
    assert_allclose(sensitivity[0], sensitivity[1])
    assert np.isfinite(sensitivity[0]).sum() > np.isfinite(plain["cose_sensitivity"]).sum()
    assert_allclose(runs[0]["cose_consistency"], plain["cose_consistency"])
    assert all(torch.equal(each, before[name]) for name, each in clf.module_.state_dict().items())


# What is refused


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"X": normalized(pixels())}, r"cose changes colours.* own input.*files, pictures"),
        ({"y": None}, "y"),
        ({"transformations": ["Shear"]}, "no transformation 'Shear'"),
        ({"transformations": []}, "transformations must be a sequence of at least one name"),
        ({"n_magnitudes": 61}, "n_magnitudes must be .* 60; got 61"),
        ({"randomized": 1}, "randomized must be True or False"),
        ({"checkpoints": "early.pt"}, "checkpoints must be a list of state dicts"),
        ({"checkpoints": [{}]}, r"checkpoints\[0\] does not fit the network (.|\n)*Missing key"),
    ],
)
def test_refusals(change, match):
    around = explainer()
    X_, y = change.pop("X", X), change.pop("y", predicted(around))
    params = {"cose": {"transformations": ["FlipLR"], "randomized": False, **change}}
    with pytest.raises(ValueError, match=match):
        evaluate(around, X_, y, metrics="cose", metric_params=params, progress=False)
