"""Explaining what sits inside a pipeline, a search or a FrozenEstimator of scikit-learn."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier, EmbeddingCAMExplainer
from sklcam.metrics import evaluate, get_scorer
from sklcam.persistence import PersistenceError

RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (12, 16, 16, 3), np.uint8)
Y = np.tile([0, 1], 6)


class Small(nn.Module):
    def __init__(self, n_classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, n_classes)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean(dim=(2, 3)))


def classifier(**options):
    options = {"target_layer": "conv", "image_size": 16, "max_epochs": 1, "verbose": 0} | options
    return ConsistentCAMClassifier(Small, random_state=0, **options)


def mirrored(X):
    return X[:, :, ::-1].copy()


@pytest.fixture(scope="module")
def fitted():
    return classifier().fit(mirrored(IMAGES), Y)


@pytest.fixture(scope="module")
def pipeline(fitted):
    steps = [("none", "passthrough"), ("mirror", FunctionTransformer(mirrored)), ("clf", fitted)]
    return Pipeline(steps)


def search(estimator, **options):
    split = PredefinedSplit(np.repeat([0, 1], 6))
    return GridSearchCV(estimator, {}, cv=split, **options).fit(IMAGES, Y)


METRICS = ("consistency", "sparsity", "accuracy", "adcc")


def numbers(estimator, X):
    return dict(evaluate(estimator, X, Y, metrics=METRICS, progress=False))


@pytest.mark.parametrize("wrap", [lambda x: x, FrozenEstimator, lambda x: make_pipeline(x)])
def test_the_last_step_explains_what_the_earlier_ones_made(pipeline, fitted, wrap):
    found, expected = numbers(wrap(pipeline), IMAGES), numbers(fitted, mirrored(IMAGES))
    for name in METRICS:
        assert_array_equal(found[name], expected[name])
    assert any((found[name] != numbers(fitted, IMAGES)[name]).any() for name in METRICS)


def test_of_a_search_the_best_estimator_explains():
    found = search(classifier())
    expected = numbers(found.best_estimator_, IMAGES)
    for name, values in numbers(found, IMAGES).items():
        assert_array_equal(values, expected[name])


def test_a_search_over_pipelines_scores_consistency_and_chooses_by_it():
    scorer = get_scorer("consistency", random_state=0)
    steps = make_pipeline(FunctionTransformer(mirrored), classifier(lr=0.1))
    grid = {"consistentcamclassifier__alpha": [0.0, 30.0, 1.0]}
    split = PredefinedSplit(np.repeat([0, 1], 6))
    options = {"cv": split, "scoring": scorer, "error_score": "raise"}
    through = GridSearchCV(steps, grid, **options).fit(IMAGES, Y)
    alone = GridSearchCV(steps[-1], {"alpha": [0.0, 30.0, 1.0]}, **options)
    alone.fit(mirrored(IMAGES), Y)
    found = through.cv_results_["mean_test_score"]
    assert np.isfinite(found).all() and len(set(found)) == 3
    assert_array_equal(found, alone.cv_results_["mean_test_score"])
    assert through.best_index_ == alone.best_index_ == found.argmax()
    assert scorer(through, IMAGES) == scorer(alone, mirrored(IMAGES))


def test_displays_draw_what_the_earlier_steps_made(pipeline, fitted):
    pytest.importorskip("matplotlib")
    from sklcam.plotting import CAMDisplay, CausalCurveDisplay

    through = CAMDisplay.from_estimator({"a": pipeline, "b": fitted}, IMAGES[:2])
    alone = CAMDisplay.from_estimator(fitted, mirrored(IMAGES[:2]))
    assert_array_equal(through.maps["a"], next(iter(alone.maps.values())))
    assert_array_equal(through.images, alone.images)
    curves = CausalCurveDisplay.from_estimator(pipeline, IMAGES[:2], n_steps=4).curves
    expected = CausalCurveDisplay.from_estimator(fitted, mirrored(IMAGES[:2]), n_steps=4).curves
    for found, wanted in zip(curves.values(), expected.values(), strict=True):
        assert_array_equal(found.insertion, wanted.insertion)


def test_retrieval_through_a_pipeline_transforms_queries_and_gallery():
    pytest.importorskip("matplotlib")
    from sklcam.plotting import RetrievalDisplay

    network = Small(n_classes=5)
    explainer = EmbeddingCAMExplainer(network, target_layer="conv", image_size=16, verbose=0)
    explainer.fit(mirrored(IMAGES), Y)
    nested = make_pipeline(FunctionTransformer(mirrored), explainer)
    found = RetrievalDisplay.from_estimator(nested, IMAGES[:2], IMAGES[2:], k=2)
    alone = RetrievalDisplay.from_estimator(
        explainer, mirrored(IMAGES[:2]), mirrored(IMAGES[2:]), k=2
    )
    assert_array_equal(found.queries, alone.queries)
    assert_array_equal(found.neighbor_maps, alone.neighbor_maps)


def test_report_through_a_pipeline(pipeline, fitted, tmp_path):
    pytest.importorskip("jinja2")
    options = {"metrics": METRICS, "verbose": 0}
    through = sklcam.report(pipeline, IMAGES, Y, path=tmp_path / "a.html", **options)
    alone = sklcam.report(fitted, mirrored(IMAGES), Y, path=tmp_path / "b.html", **options)
    for name in METRICS:
        assert_array_equal(through[name], alone[name])


def test_save_takes_what_is_inside_unless_it_would_get_other_images(pipeline, tmp_path):
    found = search(classifier())
    for nested in (found, FrozenEstimator(found), make_pipeline(found)):
        sklcam.save(nested, tmp_path / "a.sklcam")
        loaded = sklcam.load(tmp_path / "a.sklcam", objects={"Small": Small})
        assert_array_equal(loaded.predict_proba(IMAGES), found.predict_proba(IMAGES))
    with pytest.raises(PersistenceError, match=r"Save pipeline\[-1\]"):
        sklcam.save(pipeline, tmp_path / "b.sklcam")
    assert not (tmp_path / "b.sklcam").exists()


def test_an_explainer_around_a_search():
    found = search(classifier())
    for nested in (found, FrozenEstimator(found), make_pipeline("passthrough", found)):
        explainer = CAMExplainer(nested, verbose=0).fit(IMAGES)
        assert_array_equal(explainer.explain(IMAGES), found.best_estimator_.explain(IMAGES))


def test_an_explainer_around_a_pipeline_transforms_images_first(pipeline, fitted, tmp_path):
    expected = fitted.explain(mirrored(IMAGES))
    for nested in (pipeline, FrozenEstimator(pipeline)):
        explainer = CAMExplainer(nested, verbose=0).fit(IMAGES)
        assert_array_equal(explainer.classes_, fitted.classes_)
        for ours in (explainer, pickle.loads(pickle.dumps(explainer))):
            assert_array_equal(ours.explain(IMAGES), expected)
            assert_array_equal(ours.predict_proba(IMAGES), fitted.predict_proba(mirrored(IMAGES)))
        found, wanted = numbers(explainer, IMAGES), numbers(fitted, mirrored(IMAGES))
        for name in METRICS:
            assert_array_equal(found[name], wanted[name])
        with pytest.raises(PersistenceError, match=r"Save pipeline\[-1\]"):
            sklcam.save(explainer, tmp_path / "a.sklcam")
    inside = CAMExplainer(search(make_pipeline(FunctionTransformer(mirrored), classifier())))
    best = inside.set_params(verbose=0).fit(IMAGES).model.best_estimator_[-1]
    assert_array_equal(inside.explain(IMAGES), best.explain(mirrored(IMAGES)))


def test_what_cannot_be_looked_through_says_why(fitted):
    unfitted = GridSearchCV(classifier(), {})
    with pytest.raises(NotFittedError):
        evaluate(unfitted, IMAGES, metrics="sparsity")
    with pytest.raises(NotFittedError):
        evaluate(make_pipeline(clone(fitted)), IMAGES, metrics="sparsity")
    with pytest.raises(ValueError, match="refit=False"):
        evaluate(search(classifier(), refit=False), IMAGES, metrics="sparsity")
    with pytest.raises(ValueError, match="got FunctionTransformer"):
        evaluate(make_pipeline(FunctionTransformer()), IMAGES, metrics="sparsity")


def test_an_explainer_around_a_search_is_saved_around_the_best_estimator(tmp_path):
    explainer = CAMExplainer(search(classifier()), verbose=0).fit(IMAGES)
    sklcam.save(explainer, tmp_path / "a.sklcam")
    loaded = sklcam.load(tmp_path / "a.sklcam", objects={"Small": Small})
    assert_array_equal(loaded.explain(IMAGES), explainer.explain(IMAGES))
    assert isinstance(loaded.model, ConsistentCAMClassifier)
