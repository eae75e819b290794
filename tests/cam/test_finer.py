"""Finer-CAM against the paper's equation, autograd by hand, and pytorch-grad-cam."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget
from small_networks import SmallNet

from sklcam import CAMExplainer, EmbeddingCAMExplainer
from sklcam.cam import Finer, FinerCAM, RecordedPass, TopK, target_scores
from sklcam.networks import TargetLayer, record


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return SmallNet(num_classes=6, in_channels=1, width=6).double().eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(1)).double()


def most_similar(scores: torch.Tensor, label: int, n: int) -> list[int]:
    """The classes whose scores are closest to a class's, but for itself."""
    others = [each for each in range(len(scores)) if each != label]
    return sorted(others, key=lambda each: abs(scores[each] - scores[label]).item())[:n]


def by_hand(network, image, label, gamma, n, weights="mean") -> np.ndarray:
    """Grad-CAM of the difference, one image at a time."""
    with record(network, network[4]) as tape:
        (scores,) = network(image[None])
        others = scores[most_similar(scores, label, n)]
        shares = torch.full_like(others, 1 / n)
        if weights == "probability":
            chosen = scores.softmax(dim=0)[most_similar(scores, label, n)]
            shares = chosen / chosen.sum()
        difference = scores[label] - gamma * (shares * others).sum()
        (gradients,) = torch.autograd.grad(difference, tape.activations)
        alpha = gradients.mean(dim=(2, 3), keepdim=True)
        return (alpha * tape.activations).sum(dim=1).relu()[0].detach().numpy()


def raw(network, images, method, target=None) -> np.ndarray:
    (maps,) = method.explain(RecordedPass(network, [TargetLayer("4")], images, target))
    return maps.numpy()


@pytest.mark.parametrize("weights", ["mean", "probability"])
@pytest.mark.parametrize(("gamma", "n"), [(1.0, 3), (0.6, 1), (0.3, 5)])
def test_the_equation(network, images, weights, gamma, n):
    method = FinerCAM(gamma=gamma, n_similar=n, weights=weights)
    maps = raw(network, images, method, torch.tensor([[0, 3], [1, 2], [5, 4]]))
    for image, row, labels in zip(images, maps, [[0, 3], [1, 2], [5, 4]], strict=True):
        for map_, label in zip(row, labels, strict=True):
            expected = by_hand(network, image, label, gamma, n, weights)
            np.testing.assert_allclose(map_, expected, atol=1e-12)


def test_gamma_of_0_is_gradcam(network, images):
    explainer = CAMExplainer(network, target_layer="4", verbose=0).fit(images)
    found = explainer.explain(images, method=FinerCAM(gamma=0))
    np.testing.assert_allclose(found, explainer.explain(images, method="gradcam"), atol=1e-6)


@pytest.mark.parametrize("target", [None, 4])
def test_pytorch_grad_cam(network, images, target):
    """Its weights are softmax probabilities, through which its gradient goes as well."""
    network, images = network.float(), images.float()
    # Not layer 4, which the ReLU behind it changes in place, and with it what its hooks have kept.
    explainer = CAMExplainer(network, target_layer="2", verbose=0).fit(images)
    ours = explainer.explain(images, target, method=FinerCAM(weights="probability"))
    peer = pytorch_grad_cam.FinerCAM(network, [network[2]])
    theirs = peer(images, target_idx=target)
    peer.base_cam.activations_and_grads.release()
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("weights", ["mean", "probability"])
def test_directions_are_the_derivatives(weights):
    """They are what CAM, which knows the head, weighs its channels by."""
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    resolved = Finer(gamma=0.7, weights=weights).resolve(leaf)
    (expected,) = torch.autograd.grad(resolved.scores(leaf).sum(), leaf)
    torch.testing.assert_close(resolved.directions[:, 0], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 3, 4])
def test_classes_that_weigh_the_same_leave_nothing_over(dtype, n):
    """In closed form: behind pooling, the weights are differences of rows of the head."""
    torch.manual_seed(0)
    network = SmallNet(num_classes=6, in_channels=1, width=64).to(dtype).eval()
    head, images = network[-1], torch.randn(8, 1, 12, 12).to(dtype)
    with torch.no_grad():
        head.weight[1:5] = head.weight[0]
        head.bias.copy_(torch.tensor([0.1, 0, 0, 0, 0, 30]))  # the last is like none of them
    labels, method = torch.tensor([[0, 5]] * 8), FinerCAM(n_similar=n)
    (weights,) = method.channel_weights(RecordedPass(network, [TargetLayer("5")], images, labels))
    assert not weights[:, 0].any()
    assert not raw(network, images, method, labels)[:, 0].any()
    expected = (head.weight[5] - head.weight[0]).detach().to(weights.dtype)
    for found in weights[:, 1]:
        found = found * (expected.norm() / found.norm())
        torch.testing.assert_close(found, expected, rtol=0, atol=0.03 * expected.abs().max().item())


def test_a_difference_that_is_small_and_no_rounding():
    torch.manual_seed(0)
    network = SmallNet(num_classes=2, in_channels=1, width=8).eval()
    with torch.no_grad():
        network[-1].weight[1] = network[-1].weight[0]
        network[-1].weight[1, 3] += 1e-4
    images = torch.randn(2, 1, 12, 12)
    explained = RecordedPass(network, [TargetLayer("4")], images, torch.tensor([[1]] * 2))
    (weights,) = FinerCAM(relu=False).channel_weights(explained)
    assert (weights[:, 0].abs().argmax(dim=1) == 3).all()


def test_published_target():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = target_scores(logits, Finer(weights="probability", gamma=0.7))
    for row, score in zip(logits, scores, strict=True):
        label = int(row.argmax())
        published = FinerWeightedTarget(label, most_similar(row, label, 3), 0.7)
        torch.testing.assert_close(published(row), score)


def test_as_a_target_of_other_methods(network, images):
    """Of a head of pooling and one linear layer, CAM and Grad-CAM of any score are the same."""
    explainer = CAMExplainer(network, target_layer="5", verbose=0).fit(images)
    cam, gradcam, finer = (
        explainer.explain(
            images, Finer(TopK(2)) if method != "finercam" else TopK(2), method=method
        )
        for method in ("cam", "gradcam", "finercam")
    )
    np.testing.assert_allclose(cam, gradcam, atol=1e-6)
    np.testing.assert_allclose(finer, gradcam, atol=1e-6)


def test_with_methods_that_share_its_pass(network, images):
    explainer = CAMExplainer(network, target_layer="4", verbose=0).fit(images)
    names = ["gradcam", "finercam", "saliency", "hirescam"]
    for order in (names, names[::-1]):
        together = explainer.explain(images, TopK(2), method=order)
        for name in names:
            alone = explainer.explain(images, TopK(2), method=name)
            np.testing.assert_allclose(together[name], alone, atol=1e-6)


def test_fewer_classes_than_asked_for(images):
    torch.manual_seed(0)
    network = SmallNet(num_classes=2).double().eval()
    np.testing.assert_allclose(
        raw(network, images, FinerCAM(n_similar=3))[0, 0],
        by_hand(network, images[0], int(network(images)[0].argmax()), 1.0, 1),
        atol=1e-12,
    )


def test_proxies_are_no_outputs(images):
    """They stand for classes, but which output is whose cannot be said."""
    torch.manual_seed(0)
    explainer = EmbeddingCAMExplainer(
        SmallNet(num_classes=3).double().eval(), target_layer="4", verbose=0
    ).fit(images, [0, 1, 2])
    with pytest.raises(ValueError, match="contrasts a class with other classes, but the target"):
        explainer.explain(images, method="finercam")
