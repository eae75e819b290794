"""A batch on the CPU is explained in parts: the same maps, in less memory."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from sklcam import CAMExplainer
from sklcam.cam import SmoothGradCAMPlusPlus, Target, TopK
from sklcam.explain import _batches
from sklcam.networks import TargetLayer


@pytest.fixture
def sizes(monkeypatch):
    """The numbers of images that the network receives, in parts of two or three."""
    monkeypatch.setattr(_batches, "_PIXELS_AT_ONCE", 2 * 8 * 8)
    monkeypatch.setattr(_batches, "_PIXELS_PER_THREAD", 1)
    return []


@pytest.fixture
def explainer(sizes):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    network = nn.Sequential(*layers)
    fitted = CAMExplainer(network, target_layer="1", verbose=0).fit()
    network.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))
    return fitted


class Swapped(nn.Module):
    def forward(self, tokens):
        return tokens.transpose(1, 2)


class Pooled(nn.Module):
    def forward(self, tokens):
        return tokens.mean(dim=1)


def images(n=5):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("target", [None, TopK(3), torch.tensor([3, 0, 1, 2, 3])])
@pytest.mark.parametrize("methods", [["gradcam"], ["gradcam", "saliency", "guidedbackprop"]])
def test_maps_are_those_of_each_image_alone(explainer, sizes, methods, target):
    X = images()
    maps, output, resolved = explainer.explain_batch(X, target, methods=methods)
    assert set(sizes) == {2, 3}
    for row in range(len(X)):
        one = slice(row, row + 1)
        asked = target[one] if isinstance(target, torch.Tensor) else target
        alone, output_alone, resolved_alone = explainer.explain_batch(
            X[one], asked, methods=methods
        )
        for each, each_alone in zip(maps, alone, strict=True):
            assert_allclose(each[one], each_alone, atol=1e-5)
        assert_allclose(output[one], output_alone, atol=1e-6)
        assert resolved.indices[one].equal(resolved_alone.indices)


def test_what_is_for_the_whole_batch_stays_whole(explainer, sizes):
    class Rows(Target):
        def scores(self, output, inputs=None, rows=None):
            return output[torch.arange(5), [3, 0, 1, 2, 3]][:, None]

    X = images()
    (maps,), _, _ = explainer.explain_batch(X, Rows(), methods=["gradcam"])
    (expected,), _, _ = explainer.explain_batch(
        X, torch.tensor([3, 0, 1, 2, 3]), methods=["gradcam"]
    )
    assert_allclose(maps, expected, atol=1e-5)
    sizes.clear()
    explainer.explain_batch(X, methods=[SmoothGradCAMPlusPlus(n_samples=2)])
    assert min(sizes) >= 5


def test_tokens_are_explained_together(sizes):
    blocks = nn.Conv2d(3, 4, 4, 4), nn.Flatten(2), Swapped(), Pooled()
    network = nn.Sequential(*blocks)
    layer = TargetLayer("2", layout="tokens", grid=(2, 2))
    explainer = CAMExplainer(network, target_layer=layer, verbose=0).fit(images())
    network.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))
    explainer.explain_batch(images(), methods=["gradcam"])
    assert min(sizes) == 5
