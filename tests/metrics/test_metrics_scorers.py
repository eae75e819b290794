"""Scorers in scikit-learn's hands: against evaluate, in searches, in processes, with routing."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    cross_validate,
)
from small_networks import SmallNet, digits
from torch import nn

from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.metrics import (
    available,
    consistency_score,
    consistent_and_accurate,
    evaluate,
    explanation_scorer,
    get_scorer,
)
from sklcam.training import ViewSampler

X, Y = digits(30, n_class=5)
BOXES = [[[1, 0, 6, 8]], [[0, 0, 2, 2], [4, 4, 8, 8]], []] * 10
MASKS = np.random.default_rng(0).random((30, 8, 8)) > 0.5
ERRORS = ("top1_localization_error", "top5_localization_error")
STABILITY = ("max_sensitivity", "local_lipschitz")
LOWER = ("average_drop", "complexity", "dauc", "consistency_changed", *ERRORS, *STABILITY)
LOCATED = (
    *("heatmap_ratio", "inside_outside_ratio", "pointing_game", "localization_accuracy"),
    *("relevance_rank_accuracy", "topk_intersection", "pixel_auc"),
)
SCORERS = [f"neg_{name}" if name in LOWER else name for name in available()]


def classifier(**options):
    defaults = {
        "target_layer": "5", "image_size": 16, "max_epochs": 1, "lr": 0.1, "verbose": 0,
        "random_state": 0, "device": "cpu", "batch_size": 16,
    }  # fmt: skip
    return ConsistentCAMClassifier(SmallNet, **{**defaults, **options})


@pytest.fixture(scope="module")
def fitted():
    return classifier().fit(X, Y)


def truth(name):
    if name == "reference_correlation":
        return {"references": MASKS}
    of_classes = (*(f"neg_{error}" for error in ERRORS), *ERRORS, "pointing_game_reject")
    return {"boxes": BOXES} if name in (*LOCATED, *of_classes) else {}


def options_of(name):
    if name == "pointing_game_reject":
        return {"threshold": 0.1}
    if name.startswith("cose"):
        return {"transformations": ["FlipLR"]}
    if name == "topk_intersection":
        return {"k": 9}
    return {"n_steps": 4} if name.removeprefix("neg_") in ("iauc", "dauc") else {}


@pytest.mark.parametrize("name", SCORERS)
def test_every_name(name, fitted):
    metric = name.removeprefix("neg_")
    scorer = get_scorer(name, **options_of(name))
    params = {metric: options_of(name)} if options_of(name) else {}
    result = evaluate(
        fitted, X, Y, metrics=metric, metric_params=params, progress=False, **truth(name)
    )
    sign = -1 if metric in LOWER else 1
    expected = sign * result.means()[metric]
    for twin in (scorer, clone(scorer), pickle.loads(pickle.dumps(scorer))):
        assert twin(fitted, X, Y, **truth(name)) == pytest.approx(expected, abs=1e-6)
    assert isinstance(scorer(fitted, X, Y, **truth(name)), float)
    together = explanation_scorer([name], metric_params=params)
    scores = together(fitted, X, Y, **truth(name))
    assert list(scores) == [name] and scores[name] == pytest.approx(expected, abs=1e-6)


def test_accuracy_is_the_estimators(fitted):
    assert get_scorer("accuracy")(fitted, X, Y) == pytest.approx(fitted.score(X, Y))


def test_adcc_is_of_the_averages(fitted):
    result = evaluate(fitted, X, metrics="adcc", progress=False)
    coherency, complexity, drop = (
        result[name].mean() for name in ("coherency", "complexity", "average_drop")
    )
    expected = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
    assert get_scorer("adcc")(fitted, X) == pytest.approx(expected)
    assert expected != pytest.approx(result["adcc"].mean(), abs=1e-4)


@pytest.mark.parametrize("name", ["iauc", "neg_dauc"])
def test_options_are_split(name, fitted):
    """``method`` and ``target`` are evaluate's, ``n_steps`` and ``relu`` the metric's."""
    scorer = get_scorer(name, method="layercam", target=Y, n_steps=3, relu=False, batch_size=7)
    metric = name.removeprefix("neg_")
    result = evaluate(
        fitted, X, metrics=metric, method="layercam", target=Y, progress=False,
        metric_params={"iauc": {"n_steps": 3, "relu": False}},
    )  # fmt: skip
    expected = result.means()[metric] * (-1 if metric == "dauc" else 1)
    assert scorer(fitted, X, Y) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("under", ["iauc", "dauc", "neg_dauc"])
def test_options_of_several(under, fitted):
    """Consistency's own method is not that of the others."""
    views = ViewSampler(flip=0)
    params = {under: {"n_steps": 3}, "consistency": {"method": "layercam", "views": views}}
    scorer = explanation_scorer(
        ["iauc", "neg_dauc", "adcc", "consistency"], metric_params=params, random_state=4
    )
    scores = scorer(fitted, X, Y)
    expected = {
        "iauc": get_scorer("iauc", n_steps=3)(fitted, X),
        "neg_dauc": get_scorer("neg_dauc", n_steps=3)(fitted, X),
        "adcc": get_scorer("adcc")(fitted, X),
        "consistency": consistency_score(fitted, X, method="layercam", views=views, random_state=4),
    }
    assert scores == pytest.approx(expected, abs=1e-6)


def test_several_at_the_cost_of_one(fitted):
    images = []
    handle = fitted.module_.register_forward_pre_hook(lambda _, args: images.append(len(args[0])))
    explanation_scorer(["accuracy", "adcc", "neg_complexity", "average_increase"])(fitted, X, Y)
    handle.remove()
    assert sum(images) == 2 * len(X)


def test_scorers_take_explainers_and_networks(fitted):
    inputs = torch.cat(list(fitted.iter_inputs(X)))
    expected = get_scorer("adcc")(fitted, X)
    around = CAMExplainer(fitted, verbose=0).fit()
    assert get_scorer("adcc")(around, X) == pytest.approx(expected, abs=1e-6)
    bare = CAMExplainer(fitted.module_, target_layer="5", verbose=0).fit(inputs)
    assert get_scorer("adcc")(bare, inputs) == pytest.approx(expected, abs=1e-5)
    assert isinstance(fitted.module_, nn.Module)
    assert np.isfinite(get_scorer("adcc")(fitted.module_, inputs))


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_cross_validate_with_several(n_jobs):
    scorer = explanation_scorer(["accuracy", "adcc", "neg_complexity"])
    results = cross_validate(
        classifier(), X, Y, cv=KFold(2), scoring=scorer, n_jobs=n_jobs, error_score="raise",
        return_estimator=True, return_indices=True,
    )  # fmt: skip
    for fold, clf in enumerate(results["estimator"]):
        test = results["indices"]["test"][fold]
        expected = scorer(clf, X[test], Y[test])
        for name in ("accuracy", "adcc", "neg_complexity"):
            assert results[f"test_{name}"][fold] == pytest.approx(expected[name], abs=1e-6)
        assert expected["neg_complexity"] < 0 < expected["adcc"]  # there is something to measure


@pytest.mark.parametrize("together", [True, False])
def test_grid_search_that_refits_for_an_explanation(together):
    names = ["accuracy", "adcc", "neg_average_drop"]
    search = GridSearchCV(
        classifier(),
        {"alpha": [0, 1], "lr": [0.01]},
        scoring=explanation_scorer(names) if together else {n: get_scorer(n) for n in names},
        refit="adcc",
        cv=KFold(2),
        error_score="raise",
    ).fit(X, Y)
    means = search.cv_results_["mean_test_adcc"]
    assert search.best_index_ == means.argmax() and search.best_score_ == means.max()
    assert (search.cv_results_["mean_test_neg_average_drop"] <= 0).all()
    assert search.best_estimator_.predict(X).shape == (30,)
    assert repr(clone(search).scoring) == repr(search.scoring)


@pytest.mark.parametrize(
    ("accuracies", "consistencies", "tolerance", "chosen"),
    [
        ([0.90, 0.89, 0.30], [0.4, 0.7, 1.0], 0.01, 1),  # 0.9 - 0.01 > 0.89 in floating point
        ([0.90, 0.89, 0.30], [0.4, 0.7, 1.0], 0.0, 0),
        ([0.90, 0.89, 0.30], [0.4, 0.7, 1.0], 0.6, 2),
        ([0.89, 0.90, 0.90], [0.7, 0.7, 0.7], 0.01, 1),  # the first of the most accurate
        ([np.nan, 0.5, 0.5, 0.9], [0.9, np.nan, 0.3, 0.2], 0.4, 2),
        ([-0.2, -0.1, -0.9], [0.1, 0.05, 0.9], 0.1, 0),  # where higher is better, and all below 0
    ],
)
def test_the_most_consistent_of_the_accurate(accuracies, consistencies, tolerance, chosen):
    results = {"mean_test_a": np.array(accuracies), "mean_test_c": np.array(consistencies)}
    choose = consistent_and_accurate(tolerance, accuracy="a", consistency="c")
    assert pickle.loads(pickle.dumps(choose))(results) == choose(results) == chosen


def test_candidates_of_a_halving_search_are_those_of_its_last_round():
    results = {
        "iter": np.array([0, 0, 0, 1, 1]),
        "mean_test_accuracy": np.array([1.0, 0.9, 0.8, 0.7, 0.695]),
        "mean_test_consistency": np.array([0.5, 0.9, 0.8, 0.2, 0.3]),
    }
    assert consistent_and_accurate()(results) == 4


class Tabulated(BaseEstimator):
    """An estimator whose scores are in a table, by its only parameter."""

    def __init__(self, i=0):
        self.i = i

    def fit(self, X, y):
        return self


def tabulated_scores(estimator, X, y):
    accuracy, consistency = [(0.5, 1.0), (0.895, 0.6), (0.9, 0.5), (0.89, 0.8)][estimator.i]
    return {"accuracy": accuracy, "consistency": consistency, "score": accuracy}


@pytest.mark.parametrize("search", [GridSearchCV, RandomizedSearchCV])
def test_searches_choose_the_most_consistent_of_the_accurate(search):
    options = {"n_iter": 4} if search is RandomizedSearchCV else {}
    found = search(
        Tabulated(), {"i": [0, 1, 2, 3]}, scoring=tabulated_scores, cv=2,
        refit=consistent_and_accurate(tolerance=0.0075), **options,
    )  # fmt: skip
    assert clone(found).fit(X, Y).best_params_ == {"i": 1}


def test_a_halving_search_is_chosen_from_afterwards():
    search = HalvingGridSearchCV(
        Tabulated(), {"i": [0, 1, 2, 3]}, scoring=tabulated_scores, cv=2, refit="score", factor=2,
        min_resources=10, max_resources=20,
    ).fit(X, Y)  # fmt: skip
    results = search.cv_results_
    assert search.best_params_ == {"i": 2}
    assert results["params"][consistent_and_accurate()(results)] == {"i": 1}  # 3 is left out


@pytest.mark.parametrize("kind", ["boxes", "masks"])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_the_truth_comes_by_metadata_routing(kind, n_jobs):
    given = {"boxes": BOXES, "masks": MASKS}[kind]
    with config_context(enable_metadata_routing=True):
        scorer = get_scorer("heatmap_ratio").set_score_request(**{kind: True})
        clf = classifier().set_fit_request(**{kind: False})  # training could ask for them, too
        results = cross_validate(
            clf, X, Y, cv=KFold(3), scoring=scorer, params={kind: given}, n_jobs=n_jobs,
            error_score="raise", return_estimator=True,
        )  # fmt: skip
    folds = KFold(3).split(X)
    for (_, test), clf, score in zip(
        folds, results["estimator"], results["test_score"], strict=True
    ):
        part = {kind: [given[i] for i in test]}
        assert score == pytest.approx(get_scorer("heatmap_ratio")(clf, X[test], **part), abs=1e-6)


def test_boxes_are_routed_to_one_of_several_and_through_searches():
    with config_context(enable_metadata_routing=True), warnings.catch_warnings():
        several = explanation_scorer(["adcc", "pointing_game"]).set_score_request(boxes=True)
        clf = classifier().set_fit_request(boxes=False)
        search = GridSearchCV(
            clf, {"lr": [0.1]}, scoring=several, refit="pointing_game", cv=KFold(2),
            error_score="raise",
        ).fit(X, Y, boxes=BOXES)  # fmt: skip
        assert 0 <= search.best_score_ <= 1
        named = {
            "adcc": get_scorer("adcc").set_score_request(boxes=False),
            "pointing": get_scorer("pointing_game").set_score_request(boxes=True),
        }
        results = cross_validate(
            clf, X, Y, cv=KFold(2), scoring=named, params={"boxes": BOXES},
            error_score="raise",
        )  # fmt: skip
    assert results["test_pointing"].mean() == pytest.approx(search.best_score_)


def test_metadata_reach_a_scorer_by_its_request_alone():
    def scores(scorer):
        clf = classifier().set_fit_request(boxes=False)
        return cross_validate(
            clf, X, Y, cv=KFold(2), scoring=scorer, params={"boxes": BOXES},
            error_score="raise",
        )["test_score"]  # fmt: skip

    with config_context(enable_metadata_routing=True):
        scorer = get_scorer("heatmap_ratio")
        assert scorer.get_metadata_routing().score.requests.keys() == {
            "boxes",
            "masks",
            "references",
        }
        with pytest.raises(UnsetMetadataPassedError, match="boxes"):
            scores(scorer)
        with pytest.raises(TypeError, match=r"boxes.*not routed to any object"):
            scores(clone(scorer).set_score_request(boxes=False))
        assert (scores(clone(scorer).set_score_request(boxes=True)) > 0).all()


def test_the_scorer_is_the_score_and_a_good_guest():
    clf = classifier().fit(X, Y)
    scorer = get_scorer("consistency", random_state=5)
    for twin in (scorer, clone(scorer), pickle.loads(pickle.dumps(scorer))):
        assert twin(clf, X, Y) == consistency_score(clf, X, random_state=5)
    results = cross_validate(
        clf, X, Y, cv=2, scoring={"a": scorer, "accuracy": "accuracy"}, error_score="raise"
    )
    assert np.isfinite(results["test_a"]).all() and len(results["test_accuracy"]) == 2
    with pytest.raises(ValueError, match="consistency"):
        get_scorer("consistensy")
