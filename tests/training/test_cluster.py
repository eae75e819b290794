"""A search on a cluster: two worker processes, which know nothing but what they are sent."""

from __future__ import annotations

import os

import joblib
import pytest
import torch
from accelerated import RANDOM, X, Y
from dask.distributed import Client, LocalCluster
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.model_selection import GridSearchCV

from sklcam import ConsistentCAMClassifier
from sklcam.metrics import evaluate, get_scorer


def accuracy(clf, X, y):
    return clf.score(X, y)


def process(clf, X, y):
    """As a score: where it was computed."""
    return os.getpid()


def probabilities(options):
    return ConsistentCAMClassifier(**options).fit(X, Y).predict_proba(X).tolist()


SCORING = {"accuracy": accuracy, "consistency": get_scorer("consistency"), "process": process}


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(torch.set_num_threads, 1)
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"memory": "low", "target_layer": "auto"}])
def test_a_search_on_a_cluster_finds_what_it_finds_here(client, options):
    options = {**RANDOM, "random_state": 0, "max_epochs": 1, "device": "cpu", **options}
    search = GridSearchCV(
        ConsistentCAMClassifier(**options),
        {"alpha": [0.1, 1.0], "beta": [0, 1e-3], "lr": [0.01, 0.1]},
        scoring=SCORING,
        refit="consistency",
        cv=2,
    )
    here = search.fit(X, Y)
    search = GridSearchCV(**here.get_params(deep=False))
    with joblib.parallel_config(backend="dask"):
        there = search.fit(X, Y)
    keys = [f"split{i}_test_{name}" for i in range(2) for name in ("accuracy", "consistency")]
    for key in keys:
        assert_array_equal(there.cv_results_[key], here.cv_results_[key])
    assert there.best_params_ == here.best_params_
    for name, value in here.best_estimator_.module_.state_dict().items():
        assert_array_equal(there.best_estimator_.module_.state_dict()[name], value)
    took_part = {
        *there.cv_results_["split0_test_process"],
        *there.cv_results_["split1_test_process"],
    }
    assert os.getpid() not in took_part  # which worker takes what is Dask's business
    of_workers = client.run(probabilities, options)
    assert [*of_workers.values()] == [probabilities(options)] * 2


@pytest.mark.slow
def test_an_evaluation_on_a_cluster_has_the_numbers_of_one_process(client, tmp_path):
    clf = ConsistentCAMClassifier(**{**RANDOM, "max_epochs": 1, "device": "cpu"}).fit(X, Y)
    options = {"metrics": ("adcc", "consistency", "accuracy"), "progress": False}
    here = evaluate(clf, X, Y, **options)
    with joblib.parallel_config(backend="dask"):
        there = evaluate(clf, X, Y, n_jobs=2, **options)
        stored = evaluate(clf, X, Y, n_jobs=2, store=tmp_path / "values", **options)
    for name, values in here.items():
        assert_allclose(there[name], values, rtol=1e-4, atol=1e-5)  # of other batches
        assert_array_equal(stored[name], values)
