"""Terms each k-th step, and views without a gradient: what is computed, and what is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerated import LARGE as X
from accelerated import MASKS, OneView, Plain, Y
from by_hand import classifier, explained, gradient_of, inconsistency, scaled, untrained
from small_networks import Gradients
from torch.nn import functional as F

from sklcam.training import Balanced, GradientSizes, WarmUp

TERMS = {"alpha": 0.7, "beta": 1e-3, "views": OneView()}
SIX_STEPS = {"batch_size": 10, "lr": 0.0}
LABELS = torch.from_numpy(Y)


class Counted(Plain):
    """Counts its passes in training, and those of the layer that is explained."""

    passes = 0

    def forward(self, x):
        if self.training and len(x) > 1:
            type(self).passes += 1
        return super().forward(x)


def passes(**options):
    Counted.passes = 0
    clf = classifier(Counted, **{**TERMS, **SIX_STEPS, **options}).fit(X, Y)
    return Counted.passes, clf


@pytest.mark.parametrize(("every", "n_views"), [(1, 6), (2, 3), (4, 2), (6, 1)])
def test_a_step_without_terms_is_one_pass(every, n_views):
    assert passes(every=every)[0] == 6 + n_views
    assert passes(every=every, memory="low")[0] == 6 + 2 * n_views


def test_steps_are_counted_through_epochs_and_partial_fit():
    found, clf = passes(every=4, max_epochs=2)
    assert found == 12 + 3  # steps 0, 4 and 8
    has_terms = ["train_inconsistency" in batch for row in clf.history for batch in row["batches"]]
    assert np.flatnonzero(has_terms).tolist() == [0, 4, 8]
    Counted.passes = 0
    clf.partial_fit(X, Y)  # 2 epochs, from step 12 on
    assert Counted.passes == 12 + 3


def test_in_a_step_without_terms_nothing_is_recorded_and_no_gradient_measured(monkeypatch):
    measured = []
    update = GradientSizes.update
    monkeypatch.setattr(
        GradientSizes,
        "update",
        lambda *args, **more: (measured.append(args[1]), update(*args, **more)),
    )
    _, clf = passes(every=3, alpha="auto", beta="auto")
    assert measured == ["cross_entropy", "inconsistency", "norm"] * 2
    rows = [set(batch) for batch in clf.history[-1, "batches"]]
    plain = {"train_loss", "train_ce", "train_batch_size"}
    assert [row == plain for row in rows] == [False, True, True, False, True, True]
    assert "train_alpha" in rows[0] and "train_constant_maps" in rows[3]


@pytest.mark.parametrize("more", [{}, {"memory": "low"}, {"batch_accumulation": 2}])
def test_terms_weigh_as_much_more_as_they_are_rarer(more):
    options = {**TERMS, **SIX_STEPS, "every": 3, **more}
    clf = classifier(callbacks=[("gradients", Gradients())], **options).fit(X, Y)
    gradients = dict(clf.callbacks_)["gradients"].seen
    model, images = untrained(X, Y)
    for step, found in enumerate(gradients):
        part = slice(10 * step, 10 * step + 10)
        logits, maps = explained(model, images[part])
        loss = F.cross_entropy(logits, LABELS[part])
        if step % 3 == 0:
            warp = OneView()(10)
            _, of_view = explained(model, warp(images[part]))
            terms = 0.7 * inconsistency(maps, of_view, warp).mean()
            loss = loss + 3 * (terms + 1e-3 * scaled(maps).abs().sum((1, 2)).mean())
        torch.testing.assert_close(found, gradient_of(loss, model), rtol=1e-6, atol=1e-10)
        recorded = clf.history[-1, "batches", step, "train_loss"]
        assert recorded == pytest.approx(loss.item(), rel=1e-6)


def test_weights_that_balance_themselves_and_that_grow_are_weighed_alike():
    """What is recorded is the weight; what is added has the factor."""
    for alpha in (Balanced(0.3), WarmUp(2.0, epochs=2)):
        _, clf = passes(every=2, alpha=alpha, beta=0)
        for step, row in enumerate(clf.history[-1, "batches"]):
            weight = row.get("train_alpha", 1.0)
            added = 0 if step % 2 else 2 * weight * row["train_inconsistency"]
            assert row["train_loss"] == pytest.approx(row["train_ce"] + added, rel=1e-6)


def test_an_epoch_without_terms_has_no_column_of_them():
    _, clf = passes(every=10, max_epochs=2, verbose=1)
    assert "train_inconsistency" in clf.history[0] and "train_inconsistency" in clf.history[1]
    _, clf = passes(every=18, max_epochs=3, verbose=1)
    has = ["train_inconsistency" in row for row in clf.history]
    assert has == [True, False, False]


def test_masks_are_of_the_same_steps():
    clf = classifier(gamma=0.3, every=2, **SIX_STEPS).fit(X, Y, masks=MASKS)
    for step, row in enumerate(clf.history[-1, "batches"]):
        added = 0
        if not step % 2:
            added = 2 * 0.3 * row["train_energy"] * row["train_energy_annotated"]
        assert row["train_loss"] == pytest.approx(row["train_ce"] + added, rel=1e-6)


# Views without a gradient


@pytest.mark.parametrize(
    "more", [{}, {"memory": "low"}, {"ce_on": "view"}, {"ce_on": "view", "memory": "low"}]
)
def test_the_map_of_a_view_may_be_a_constant(more):
    options = {**TERMS, "beta": 0, "view_gradient": False, **more}
    clf = classifier(callbacks=[("gradients", Gradients())], **options).fit(X, Y)
    (found,) = dict(clf.callbacks_)["gradients"].seen
    model, images = untrained(X, Y)
    warp = OneView()(60)
    logits, maps = explained(model, images)
    outputs, of_view = explained(model, warp(images))
    loss = (
        F.cross_entropy(logits, LABELS) + 0.7 * inconsistency(maps, of_view.detach(), warp).mean()
    )
    if "ce_on" in more:
        loss = loss + F.cross_entropy(outputs, LABELS)
    torch.testing.assert_close(found, gradient_of(loss, model), rtol=1e-6, atol=1e-10)
    assert clf.history[-1, "train_loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_no_backward_pass_leads_through_a_constant_view():
    """The trunk keeps nothing of the view: its activations are without a graph."""
    seen = []

    class Watched(Plain):
        def __init__(self):
            super().__init__()
            self[1].register_forward_hook(lambda _, __, out: seen.append(out.requires_grad))

    for view_gradient in (True, False):
        seen.clear()
        options = {**TERMS, **SIX_STEPS, "view_gradient": view_gradient}
        classifier(Watched, **options).fit(X, Y)
        in_training = seen[-12:]
        assert in_training == [True, view_gradient] * 6
