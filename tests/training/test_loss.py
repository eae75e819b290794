"""The loss against hand-worked numbers, scikit-image and finite differences."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as skimage_ssim
from torch import nn

from sklcam.cam import GradCAM, min_max, target_scores, upsample
from sklcam.metrics import structural_similarity
from sklcam.networks import record
from sklcam.training import (
    Balanced,
    ConsistentCAMLoss,
    Explanations,
    GradientSizes,
    ViewSampler,
    WarmUp,
    consistency_loss,
    objective,
    sparsity_loss,
)


class Kept:
    def __init__(self, tensor):
        self.tensor = tensor


def some_maps(n=3, height=24, width=30, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(n, height, width, generator=generator, dtype=torch.float64)
    return maps.to(dtype)


def test_ssim_is_scikit_images():
    maps, others = some_maps(4, 24, 30), some_maps(4, 24, 30).flip(0) ** 2
    others[3] = maps[3] * 0.9 + 0.05
    expected = [
        skimage_ssim(a, b, data_range=1.0, gaussian_weights=True, use_sample_covariance=False)
        for a, b in zip(maps.double().numpy(), others.double().numpy(), strict=True)
    ]
    assert np.ptp(expected) > 0.5
    ours = structural_similarity(maps, others)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(consistency_loss(maps, others), 1 - np.array(expected), atol=1e-5)


def test_ssim_of_one_image_and_of_the_smallest_one():
    for n in (1, 2):
        maps, others = some_maps(n, 11, 11), some_maps(n + 2, 11, 11)[2:]
        expected = [
            skimage_ssim(a, b, data_range=1.0, gaussian_weights=True, use_sample_covariance=False)
            for a, b in zip(maps.double().numpy(), others.double().numpy(), strict=True)
        ]
        np.testing.assert_allclose(structural_similarity(maps, others), expected, atol=1e-5)


def test_maps_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="11 x 11 pixels; got maps of 10 x 30"):
        structural_similarity(some_maps(1, 10, 30), some_maps(1, 10, 30))


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0, 3),
        (1, 0.5 + 0.3 + 0.4),
        (2, math.sqrt(0.25 + 0.09 + 0.16)),
        (3, (0.125 + 0.027 + 0.064) ** (1 / 3)),
        (1.5, (0.5**1.5 + 0.3**1.5 + 0.4**1.5) ** (1 / 1.5)),
        (math.inf, 0.5),
    ],
)
def test_norms_by_hand(p, expected):
    maps = torch.tensor([[[0.5, 0.0], [0.3, 0.4]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(sparsity_loss(maps, p), torch.tensor([expected, 0.0]))


@pytest.mark.parametrize("p", [0.5, 0.999, -1, 1e-9, float("nan"), "1", None, True])
def test_other_norms_are_refused(p):
    with pytest.raises(ValueError, match="p must be 0 or at least 1"):
        sparsity_loss(some_maps(), p)
    with pytest.raises(ValueError, match="p must be 0 or at least 1"):
        ConsistentCAMLoss(p=p)


@pytest.mark.parametrize("p", [1, 2])
def test_gradients_of_norms(p):
    maps = some_maps(2, 5, 4, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: sparsity_loss(m, p), (maps,))


def test_gradient_of_the_count_is_that_of_the_documented_surrogate():
    maps = torch.tensor([[[0.0, 0.05, 1.0]]], dtype=torch.float64, requires_grad=True)
    sparsity_loss(maps, 0).sum().backward()
    expected = torch.exp(-maps.detach() / 0.1) / 0.1
    expected[0, 0, 0] = 0  # the kink of |.|
    torch.testing.assert_close(maps.grad, expected)


def test_gradient_of_the_consistency_loss():
    maps = some_maps(2, 12, 11, torch.float64).requires_grad_()
    others = (some_maps(2, 12, 11, torch.float64).flip(0) ** 2).requires_grad_()
    assert torch.autograd.gradcheck(consistency_loss, (maps, others))


@pytest.mark.parametrize("p", [0, 1, 2, 3])
def test_constant_maps_give_finite_gradients(p):
    raw = torch.zeros(2, 4, 4, requires_grad=True)
    loss = ConsistentCAMLoss(alpha=1, beta=1, p=p)
    warp = ViewSampler()(2, size=(16, 16))
    loss(raw.sum() * 0, Explanations(raw + 3, raw + 3, warp, size=(16, 16))).total.backward()
    assert torch.equal(raw.grad, torch.zeros(2, 4, 4))


def test_the_weighted_sum():
    raw, raw_of_view = some_maps() - 0.3, 7 * some_maps().flip(0)
    cross_entropy, size = torch.tensor(0.7), (20, 24)
    warp = ViewSampler()(len(raw), size=size, generator=torch.Generator().manual_seed(0))
    loss = ConsistentCAMLoss(alpha=0.5, beta=0.01, p=2)
    values = loss(cross_entropy, Explanations(raw, raw_of_view, warp, size=size))
    maps, others = (min_max(upsample(each, size)) for each in (raw, raw_of_view))
    consistency = (1 - structural_similarity(warp(maps), others)).mean()
    sparsity = torch.stack([m.pow(2).sum().sqrt() for m in maps]).mean()
    torch.testing.assert_close(values.terms, {"inconsistency": consistency, "norm": sparsity})
    torch.testing.assert_close(values.total, 0.7 + 0.5 * consistency + 0.01 * sparsity)


@pytest.mark.parametrize(("n_images", "n_parts"), [(1, 4), (3, 4), (4, 4), (9, 4), (4, 1), (9, 1)])
@pytest.mark.parametrize("p", [0, 1, 2])
def test_differentiating_at_once_is_differentiating(n_images, n_parts, p, monkeypatch):
    """The gradient of the same terms, written out, by autograd over the whole batch."""
    monkeypatch.setattr(objective, "_N_PARTS_ON_CPU", n_parts)
    torch.manual_seed(0)
    size = (14, 16)
    raw, raw_of_view = torch.randn(2, n_images, 3, 4, dtype=torch.float64).requires_grad_()
    warp = ViewSampler()(n_images, size=size, generator=torch.Generator().manual_seed(0))
    loss = ConsistentCAMLoss(alpha=0.5, beta=0.01, p=p)
    values = loss(torch.tensor(0.7), Explanations(raw, raw_of_view, warp, size=size))
    found = torch.autograd.grad(values.total, (raw, raw_of_view))
    maps, others = (min_max(upsample(each, size)) for each in (raw, raw_of_view))
    consistency = consistency_loss(warp(maps), others).mean()
    total = 0.7 + 0.5 * consistency + 0.01 * sparsity_loss(maps, p).mean()
    torch.testing.assert_close(values.total, total)
    torch.testing.assert_close(found, torch.autograd.grad(total, (raw, raw_of_view)))


def test_a_weight_that_balances_itself_has_a_gradient_of_its_own():
    torch.manual_seed(0)
    raw = torch.randn(2, 5, 4, 4, dtype=torch.float64).requires_grad_()
    warp = ViewSampler()(5, size=(16, 16), generator=torch.Generator().manual_seed(0))
    sizes, activations = GradientSizes(), raw * 1
    loss = ConsistentCAMLoss(alpha=0.5, beta=Balanced(0.1), sizes=sizes)
    explained = Explanations(*activations, warp, size=(16, 16))
    values = loss((activations**2).sum(), explained, activations=activations)
    maps = min_max(upsample(raw[0], (16, 16)))
    (gradient,) = torch.autograd.grad(sparsity_loss(maps).mean(), raw)
    torch.testing.assert_close(sizes.averages["norm"], gradient.norm())
    beta = 0.1 * (2 * raw).norm() / gradient.norm()
    torch.testing.assert_close(values.weights["beta"], beta.detach())
    assert list(values.terms) == ["inconsistency", "norm"]


def test_nothing_at_the_resolution_of_the_images_is_kept():
    raw, raw_of_view = torch.randn(2, 8, 3, 3).requires_grad_()
    warp = ViewSampler()(8, size=(64, 64))
    loss = ConsistentCAMLoss(alpha=1, beta=1)
    alive = weakref.WeakSet()

    def keep(tensor):
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        values = loss(torch.tensor(0.7), Explanations(raw, raw_of_view, warp, size=(64, 64)))
    assert sum(kept.tensor.numel() for kept in alive) <= 3 * raw.numel()
    values.total.backward()


def test_terms_out_of_use_need_no_maps():
    cross_entropy = torch.tensor(0.7)
    plain = ConsistentCAMLoss(0, 0)(cross_entropy)
    assert plain == (cross_entropy, cross_entropy, {}, {})
    assert set(ConsistentCAMLoss(0, 1)(cross_entropy, Explanations(some_maps())).terms) == {"norm"}
    with pytest.raises(ValueError, match="alpha > 0 needs"):
        ConsistentCAMLoss(1, 0)(cross_entropy)
    with pytest.raises(ValueError, match="beta > 0 needs"):
        ConsistentCAMLoss(0, 1)(cross_entropy)


@pytest.mark.parametrize(
    "options", [{"alpha": -1}, {"beta": math.inf}, {"alpha": "1"}, {"beta": None}]
)
def test_weights_that_do_not_fit(options):
    with pytest.raises(ValueError, match="finite number >= 0"):
        ConsistentCAMLoss(**options)


def test_numpy_numbers_are_numbers():
    ConsistentCAMLoss(alpha=np.float32(1), beta=np.int64(1), p=np.int64(2))


def test_gradients_of_the_whole_loss_are_finite_differences():
    """Cross-entropy, two Grad-CAMs, a recorded view, scaling, SSIM and norm, end to end."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Softplus(),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(5 * 12 * 12, 8),
        nn.Softplus(),  # so that the head's gradient depends on the activations
        nn.Linear(8, 3),
    ).double()
    images = torch.rand(2, 2, 12, 12, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    warp = ViewSampler()(2, size=(12, 12), generator=torch.Generator().manual_seed(0))
    criterion, phi = ConsistentCAMLoss(alpha=0.7, beta=0.01, p=2), GradCAM(relu=False)

    def loss():
        with record(model, model[3], trunk=True) as tape:

            def explain(x):
                logits = model(x)
                raw = phi(target_scores(logits), tape.activations, create_graph=True)
                return logits, raw

            logits, maps = explain(images)
            _, maps_of_view = explain(warp(images))
            cross_entropy = nn.functional.cross_entropy(logits, labels)
            explained = Explanations(maps, maps_of_view, warp, size=(16, 16))
            return criterion(cross_entropy, explained).total

    loss().backward()
    step = 1e-6
    for parameter in model.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in (0, flat.numel() // 2, flat.numel() - 1):
            kept = flat[index].item()
            flat[index] = kept + step
            above = loss().item()
            flat[index] = kept - step
            below = loss().item()
            flat[index] = kept
            numeric = (above - below) / (2 * step)
            assert gradient[index].item() == pytest.approx(numeric, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize(
    "options", [{"weight": -1}, {"weight": "auto"}, {"weight": 1, "epochs": 0}]
)
def test_a_warm_up_that_cannot_be(options):
    with pytest.raises(ValueError, match="must be"):
        WarmUp(**options)


def test_a_warm_up_reaches_its_weight_and_keeps_it():
    assert [WarmUp(2.0, epochs=1)(epoch) for epoch in range(3)] == [2.0] * 3
    assert [WarmUp(2.0, epochs=2, wait=1)(epoch) for epoch in range(4)] == [0.0, 1.0, 2.0, 2.0]
