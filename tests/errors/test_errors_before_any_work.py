"""Entries refuse before they do any work."""

from __future__ import annotations

import numpy as np
import pytest
from refusals import BOX, INPUTS, X, Y, classifier, embedder, evaluate
from small_networks import SmallNet

import sklcam
from sklcam import (
    CAMDisplay,
    ConsistencyDisplay,
    ConsistentCAMClassifier,
    EmbeddingCAMExplainer,
    LocalizationDisplay,
    MapGridDisplay,
    ViewPairDisplay,
)


class Untouchable(SmallNet):
    """A network that must not be run."""

    def forward(self, x):
        raise AssertionError("The network was run before the refusal.")


@pytest.fixture
def asleep() -> ConsistentCAMClassifier:
    """A fitted classifier whose network fails the test if it is run."""
    ready = classifier().fit(X, Y)
    ready.module_.__class__ = Untouchable
    return ready


def with_params_of(estimator, metric, **options):
    return evaluate(metric, estimator=estimator, metric_params={metric: options})


@pytest.mark.parametrize(
    "refused",
    [
        lambda clf: clf.explain(X, 99),
        lambda clf: clf.explain(X, out=np.zeros(3)),
        lambda clf: clf.explain_batch(INPUTS, methods=["gradcam", "gradcm"]),
        lambda clf: clf.strongest_channels(X, k=0),
        lambda clf: evaluate(estimator=clf, boxes=[BOX] * 11 + [-BOX]),
        lambda clf: with_params_of(clf, "iauc", n_steps=0),
        lambda clf: with_params_of(clf, "consistency", views=3),
        lambda clf: CAMDisplay.from_estimator(clf, X, kind="x"),
        lambda clf: CAMDisplay.from_estimator(clf, X, alpha=2),
        lambda clf: CAMDisplay.from_estimator(clf, X, alpha="x"),
        lambda clf: CAMDisplay.from_estimator(clf, X, cmap="virids"),
        lambda clf: CAMDisplay.from_estimator(clf, X, limits=(1, 0)),
        lambda clf: CAMDisplay.from_estimator(clf, X, limits=3),
        lambda clf: CAMDisplay.from_estimator(clf, X, ax=3),
        lambda clf: CAMDisplay.from_estimator(clf, X, colour="red"),
        lambda clf: CAMDisplay.from_estimator(clf, X, methods=["gradcam", "gradcm"]),
        lambda clf: ConsistencyDisplay.from_estimator(clf, X, bins=0),
        lambda clf: LocalizationDisplay.from_estimator(clf, X, [BOX] * 12, n_columns="a"),
        lambda clf: ViewPairDisplay.from_estimator(clf, X, alpha=0.5),
        lambda clf: sklcam.report(clf, X, Y, "no/such/folder/page.html"),
    ],
)
def test_nothing_is_run_before_a_refusal(refused, asleep):
    with pytest.raises((ValueError, TypeError, OSError)):
        refused(asleep)


def test_neighbours_are_not_searched_before_a_refusal(monkeypatch):
    monkeypatch.setattr(EmbeddingCAMExplainer, "transform", None)
    for options in ({"k": 13}, {"method": "gradcm"}):
        with pytest.raises(ValueError, match=r"k, how many|Did you mean"):
            embedder().explain_neighbors(X, X, **options)
    monkeypatch.setattr(EmbeddingCAMExplainer, "explain", None)
    with pytest.raises(ValueError, match="must be pairs of images"):
        embedder().explain_pairs(X, X[:1])


def test_no_model_is_trained_before_a_refusal(monkeypatch):
    monkeypatch.setattr(ConsistentCAMClassifier, "fit", None)
    for wrong in ({"p": [1], "alhpa": [1]}, {"p": []}):
        with pytest.raises(ValueError, match=r"alhpa|param_grid needs"):
            MapGridDisplay.from_estimator(classifier(), X, Y, image=X[:1], param_grid=wrong)
