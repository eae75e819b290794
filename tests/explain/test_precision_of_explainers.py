"""Explainers that run their network in half precision: beside autocast and gradients by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_networks import SmallNet
from torch import nn
from torch.nn import functional as F

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier, EmbeddingCAMExplainer
from sklcam.cam import recorded
from sklcam.metrics import evaluate
from sklcam.networks.inference import FoldedConvolutions
from sklcam.networks.precision import PRECISIONS

HALF = ("bf16", "fp16")
every_half = pytest.mark.parametrize("precision", HALF)
IMAGES = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SmallNet().eval()


def explainer_of(network, **options):
    return CAMExplainer(network, target_layer="5", batch_size=2, verbose=0, **options)


def by_hand(network, images, precision):
    """Grad-CAM of the predicted class, resized and without scaling, and the logits."""
    with torch.autocast("cpu", PRECISIONS[precision]):
        activations = nn.Sequential(*[*network][:6])(images).detach().requires_grad_()
        logits = nn.Sequential(*[*network][6:])(activations)
    scores = logits.amax(dim=1).float()
    scale = 64.0  # of float16, which has no small numbers
    (gradients,) = torch.autograd.grad(scores.sum() * scale, activations)
    weights = gradients.float().mean(dim=(2, 3), keepdim=True) / scale
    maps = (weights * activations.detach().float()).sum(dim=1, keepdim=True).relu()
    resized = F.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
    return resized[:, 0], logits.detach().float()


@every_half
def test_passes_are_in_that_precision_and_maps_are_not(precision, network):
    seen = set()
    network[4].register_forward_hook(lambda layer, given, output: seen.add(output.dtype))
    explainer = explainer_of(network, precision=precision).fit(IMAGES)
    seen.clear()
    expected, logits = by_hand(network, IMAGES, precision)
    maps, output = explainer.explain_inputs(IMAGES, normalize=False)
    assert maps.dtype == output.dtype == torch.float32
    assert_allclose(maps, expected, rtol=1e-3, atol=1e-7)
    assert_array_equal(output, logits)
    assert_array_equal(explainer.predict_proba(IMAGES), logits.softmax(dim=1))
    found = evaluate(explainer, IMAGES, metrics="average_drop", method="scorecam", progress=False)
    assert np.isfinite(found["average_drop"]).all()
    assert seen == {PRECISIONS[precision]}
    assert {each.dtype for each in network.parameters()} == {torch.float32}
    exact = explainer_of(network).fit(IMAGES).explain_inputs(IMAGES, normalize=False)[0]
    assert 0 < (maps - exact).abs().max() < 0.05 * exact.abs().max()


def test_small_gradients_of_images_survive_float16(network):
    """Images are float32 under autocast, and what their gradient goes through is not."""
    with torch.no_grad():
        network[8].weight.mul_(1e-4)
    maps = {
        precision: explainer_of(network, precision=precision, method="saliency")
        .fit(IMAGES)
        .explain(IMAGES, normalize=False)
        for precision in ("fp32", "fp16")
    }
    # Of two pixels that float16 takes for equal, the pooling may pass on the other one.
    difference = np.linalg.norm(maps["fp16"] - maps["fp32"])
    assert difference < 0.15 * np.linalg.norm(maps["fp32"])


def test_a_file_keeps_it(network, tmp_path):
    explainer = explainer_of(network, precision="bf16").fit(IMAGES)
    sklcam.save(explainer, tmp_path / "explainer.sklcam")
    loaded = sklcam.load(tmp_path / "explainer.sklcam", objects={"SmallNet": SmallNet})
    assert loaded.precision == "bf16"
    assert_array_equal(loaded.predict_proba(IMAGES), explainer.predict_proba(IMAGES))


def test_embeddings_and_proxies_are_of_that_precision(network):
    explainer = EmbeddingCAMExplainer(network, target_layer="5", precision="bf16", verbose=0)
    explainer.fit(IMAGES, ["a", "b", "b"])
    _, embeddings = by_hand(network, IMAGES, "bf16")
    expected = F.normalize(embeddings, dim=1)
    assert_allclose(explainer.transform(IMAGES), expected, atol=1e-6)
    assert_allclose(explainer.proxies_[0], expected[0], atol=1e-6)
    assert explainer.explain(IMAGES).dtype == np.float32


def test_a_trained_classifier_is_explained_in_it():
    X = np.random.default_rng(0).random((12, 16, 16), np.float32)
    clf = ConsistentCAMClassifier(
        SmallNet, target_layer="5", image_size=16, max_epochs=1, verbose=0, random_state=0
    ).fit(X, np.arange(12) % 3)
    explainer = CAMExplainer(clf, precision="bf16", verbose=0).fit()
    assert_array_equal(explainer.classes_, clf.classes_)
    difference = np.abs(explainer.predict_proba(X) - clf.predict_proba(X)).max()
    assert 0 < difference < 0.02


class Determinants(nn.Module):
    """What torch computes in no half precision."""

    def forward(self, x):
        return x + torch.linalg.det(x)[..., None, None]


def test_a_network_that_does_not_run_so_is_refused_in_fit(network):
    network.insert(6, Determinants())
    explainer_of(network).fit(IMAGES)
    with pytest.raises(ValueError, match="but not with precision='bf16'"):
        explainer_of(network, precision="bf16").fit(IMAGES)


def test_convolutions_are_folded_although_numbers_round(network, monkeypatch):
    """A mean of 4 is taken off what was rounded with it; folded, it never is there."""
    plans, plan_inference = [], recorded.plan_inference

    def kept(*args, **options):
        plans.append(plan_inference(*args, **options))
        return plans[-1]

    monkeypatch.setattr(recorded, "plan_inference", kept)
    with torch.no_grad():
        network[0].bias += 4
        network[1].running_mean += 4
    explainer = explainer_of(network, precision="bf16", method="scorecam").fit(IMAGES)
    assert np.isfinite(explainer.explain(IMAGES)).all()
    assert plans and all(isinstance(plan.folded, FoldedConvolutions) for plan in plans)
    images = IMAGES[:1]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = network(images).float()
        with plans[0].folded:
            folded = network(images).float()
    assert (folded - plain).abs().max() > 1e-3 * plain.abs().max()
