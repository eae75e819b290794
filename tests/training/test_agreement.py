"""How maps are compared: CGC against an implementation of its own, and whom it couples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from accelerated import LARGE as X
from accelerated import OneView, Plain, Y
from by_hand import classifier, explained, first_gradient, gradient_of, resized, untrained
from torch.nn import functional as F

import sklcam
from sklcam.cam import HiResCAM
from sklcam.training import (
    Balanced,
    Consistency,
    ConsistentCAMLoss,
    Contrastive,
    Energy,
    Explanations,
    GradMask,
    RightReasons,
    ViewSampler,
    consistency_loss,
)

LABELS = torch.from_numpy(Y)
CGC = {"alpha": 0.5, "agreement": "cgc", "phi": HiResCAM(), "views": OneView()}


def directions(maps):
    return [(each / each.square().sum().sqrt()).flatten() for each in maps]


def shares(maps):
    return torch.stack([each / (each.sum() + 1e-8) + 1e-8 for each in maps])


def cgc(maps, of_view, warp, tau=0.5):
    """The loss of each image, from the paper's equations: one pair after the other."""
    keys, queries = directions(warp(shares(maps))), directions(shares(of_view))
    values = []
    for i, query in enumerate(queries):
        positive = torch.exp(query.dot(keys[i]) / tau)
        others = (query.dot(other) for j, other in enumerate(queries) if j != i)
        negatives = sum(torch.exp(product / tau) for product in others)
        values.append(-torch.log(positive / (positive + negatives)))
    return torch.stack(values)


def some_explanations(n=4, size=(12, 14)):
    generator = torch.Generator().manual_seed(0)
    raw = torch.rand(2, n, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    warp = ViewSampler()(n, size=size, generator=generator)
    return Explanations(*raw.unbind(), warp, size=size)


def at_size(maps, size):
    return F.interpolate(maps[:, None], size, mode="bilinear")[:, 0]


@pytest.mark.parametrize("tau", [0.5, 0.1, 3.0])
def test_cgc_is_that_of_the_equations(tau):
    given = some_explanations()
    agreement = "cgc" if tau == 0.5 else Contrastive(tau)
    found = Consistency(agreement=agreement).values(given)
    maps, of_view = (at_size(m, given.size) for m in (given.maps, given.maps_of_view))
    expected = cgc(maps, of_view, given.warp, tau)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    leaves = (given.maps, given.maps_of_view)
    torch.testing.assert_close(
        *(torch.autograd.grad(values.square().sum(), leaves) for values in (found, expected))
    )


def test_cgc_by_hand():
    """Two images whose maps are apart: q.k is 1 and 0.6, q.q is 0."""
    of_view = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 2.0, 0.0]]])
    view_of = torch.tensor([[[3.0, 0.0, 0.0]], [[0.0, 3.0, 4.0]]])
    expected = [math.log(1 + math.exp(-product / 0.5)) for product in (1.0, 0.6)]
    np.testing.assert_allclose(Contrastive()(view_of, of_view), expected, rtol=1e-6)
    alone = Contrastive()(view_of[:1], of_view[:1])
    assert torch.equal(alone, torch.zeros(1))


def test_the_ablation_is_the_mean_square_of_the_difference():
    given = some_explanations()
    maps, of_view = (at_size(m, given.size) for m in (given.maps, given.maps_of_view))
    pairs = zip(directions(given.warp(shares(maps))), directions(shares(of_view)), strict=True)
    expected = torch.stack([(query - key).square().mean() for key, query in pairs])
    found = Consistency(agreement="mse").values(given)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("agreement", ["cgc", "mse", Contrastive(0.2)])
def test_gradients_are_finite_differences(agreement):
    given = some_explanations(3, (6, 5))
    loss = ConsistentCAMLoss(1.0, 0, agreement=agreement)

    def total(maps, of_view):
        some = Explanations(maps, of_view, given.warp, size=given.size)
        return loss(torch.zeros((), dtype=torch.float64), some).total

    # To autograd, what is differentiated at once has no second derivative, and needs none.
    assert torch.autograd.gradcheck(total, (given.maps, given.maps_of_view))


@pytest.mark.parametrize("agreement", ["cgc", "mse"])
def test_maps_of_nothing_have_a_finite_gradient(agreement):
    raw = torch.zeros(3, 4, 4, requires_grad=True)
    warp = ViewSampler()(3, size=(12, 12))
    some = Explanations(raw - 1, raw.relu(), warp, size=(12, 12))
    ConsistentCAMLoss(1, 0, agreement=agreement)(torch.tensor(0.0), some).total.backward()
    assert raw.grad.isfinite().all()


def by_hand(model, images, labels, warp):
    """Cross-entropy and CGC's term: of HiResCAM with the ReLU."""
    logits, maps = explained(model, images, method="hirescam")
    _, of_view = explained(model, warp(images), method="hirescam")
    values = cgc(resized(maps.relu()), resized(of_view.relu()), warp)
    return F.cross_entropy(logits, labels) + 0.5 * values.mean()


MODES = {"normal": {}, "low memory": {"memory": "low"}}


@pytest.mark.parametrize("mode", MODES)
def test_all_images_of_a_batch_are_negatives(mode):
    clf, gradient = first_gradient(X, Y, **CGC, **MODES[mode])
    model, images = untrained(X, Y)
    loss = by_hand(model, images, LABELS, OneView()(60))
    assert clf.history[-1, "train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(gradient, gradient_of(loss, model), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_negatives_are_those_of_the_same_part_of_a_batch(mode):
    clf, gradient = first_gradient(X, Y, batch_accumulation=3, **CGC, **MODES[mode])
    model, images = untrained(X, Y)
    parts = [slice(start, start + 20) for start in (0, 20, 40)]
    losses = [by_hand(model, images[part], LABELS[part], OneView()(20)) for part in parts]
    loss, whole = sum(losses) / 3, by_hand(model, images, LABELS, OneView()(60))
    assert loss.item() != pytest.approx(whole.item(), rel=1e-3)
    assert clf.history[-1, "train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(gradient, gradient_of(loss, model), rtol=1e-6, atol=1e-10)


def test_a_comparison_of_ones_own_is_given_a_batch_as_a_whole():
    sizes = []

    def largest(view_of_maps, maps_of_view):
        sizes.append(len(view_of_maps))
        assert min(view_of_maps.min(), maps_of_view.min()) >= 0
        assert max(view_of_maps.max(), maps_of_view.max()) <= 1
        return (view_of_maps - maps_of_view).abs().amax((1, 2))

    given = some_explanations(8)
    loss = ConsistentCAMLoss(1.0, 0, agreement=largest)
    expected = (given.warp(given.scaled) - given.scaled_of_view).abs().amax((1, 2)).mean()
    for couples, seen in ((True, [8]), (False, [2, 2, 2, 2])):
        sizes.clear()
        largest.couples_images = couples
        loss = ConsistentCAMLoss(1.0, 0, agreement=largest)
        values = loss(torch.zeros((), dtype=torch.float64), given)
        torch.testing.assert_close(values.total, expected)
        assert sizes == seen


def test_the_papers_comparison_as_a_callable_is_the_papers():
    expected = first_gradient(X, Y, alpha=0.5, views=OneView())[1]
    found = first_gradient(X, Y, alpha=0.5, views=OneView(), agreement=consistency_loss)[1]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("agreement", ["l1", 3, Contrastive, None])
def test_what_compares_nothing_is_refused(agreement):
    for call in (
        lambda: Consistency(agreement=agreement),
        lambda: classifier(alpha=1, agreement=agreement).fit(X, Y),
    ):
        with pytest.raises(ValueError, match="agreement"):
            call()


def test_an_image_needs_others_to_be_told_from():
    for sizes in ({"batch_size": 1}, {"batch_size": 20, "batch_accumulation": 11}):
        with pytest.raises(ValueError, match=r"parts with one image\. Raise batch_size"):
            classifier(alpha=1, agreement="cgc", **sizes).fit(X, Y)
        classifier(alpha=0, agreement="cgc", max_epochs=0, **sizes).fit(X, Y)


def test_objectives_go_through_files(tmp_path):
    options = {"agreement": Contrastive(0.2), "gamma": Balanced(0.3), "mask_loss": "rrr"}
    options |= {"terms": [Energy(0.1), GradMask(0.0), RightReasons(0.0)], "every": 2}
    clf = classifier(**options, alpha=0.5, ce_on="view", view_gradient=False)
    sklcam.save(clf, tmp_path / "clf.sklcam")
    loaded = sklcam.load(tmp_path / "clf.sklcam", objects={"Plain": Plain})
    for name in (*options, "ce_on", "view_gradient"):
        assert getattr(loaded, name) == getattr(clf, name)


def test_small_images_are_no_matter_without_a_window():
    clf = classifier(alpha=1, agreement="cgc", image_size=10).fit(X, Y)
    assert clf.history[-1, "train_inconsistency"] > 0


@pytest.mark.parametrize("n_parts", [12, 24])
@pytest.mark.parametrize("batch_size", [-1, 64])
def test_negatives_are_counted_among_the_images_that_there_are(batch_size, n_parts):
    options = {"agreement": "cgc", "alpha": 1.0, "batch_size": batch_size}
    options["batch_accumulation"] = n_parts
    clf = classifier(max_epochs=0, **options)
    if n_parts == 12:
        clf.fit(X[:24], Y[:24])
        return
    with pytest.raises(ValueError, match="a batch of 24 with batch_accumulation=24"):
        clf.fit(X[:24], Y[:24])


@pytest.mark.parametrize("couples", [True, False])
def test_a_comparison_without_a_gradient_is_refused(couples):
    def compare(one, other):
        return torch.tensor(abs(one.detach().numpy() - other.detach().numpy()).mean((1, 2)))

    compare.couples_images = couples
    with pytest.raises(ValueError, match=r"cannot be differentiated, so nothing would be lea"):
        classifier(agreement=compare, alpha=1.0, beta=0, max_epochs=1).fit(X, Y)
