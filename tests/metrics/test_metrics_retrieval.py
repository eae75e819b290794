"""Recall at k: against scikit-learn's neighbours and pytorch-metric-learning's accuracy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.neighbors import NearestNeighbors

from sklcam.metrics import recall_at_k, retrieval

N = 53
EMBEDDINGS = np.random.default_rng(0).normal(size=(N, 6))
LABELS = np.random.default_rng(1).integers(0, 5, N)


def by_neighbors(embeddings, labels, k):
    found = NearestNeighbors(n_neighbors=k, metric="cosine").fit(embeddings)
    nearest = found.kneighbors(return_distance=False)  # of the fitted points: never themselves
    return np.mean((labels[nearest] == labels[:, None]).any(axis=1))


@pytest.mark.parametrize("k", [1, 2, 5, N - 1])
def test_recall_is_that_of_scikit_learns_neighbors(k):
    expected = by_neighbors(EMBEDDINGS, LABELS, k)
    assert recall_at_k(EMBEDDINGS, LABELS, k) == pytest.approx(expected)
    assert (expected < 1) == (k < N - 1)


def test_recall_at_one_is_pytorch_metric_learnings_precision():
    calculator = AccuracyCalculator(
        include=("precision_at_1",), k=1, knn_func=CustomKNN(CosineSimilarity())
    )
    embeddings = torch.from_numpy(EMBEDDINGS)
    theirs = calculator.get_accuracy(embeddings, torch.from_numpy(LABELS))
    assert_allclose(recall_at_k(EMBEDDINGS, LABELS), theirs["precision_at_1"], rtol=1e-6)


def test_recall_by_hand():
    """Angles of 0, 10, 30 and 90 degrees: the nearest are 1, 0, 1 and 2."""
    angles = np.deg2rad([0, 10, 30, 90])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert recall_at_k(embeddings, ["a", "a", "b", "b"]) == 3 / 4
    assert recall_at_k(embeddings, ["a", "b", "a", "b"]) == 0
    assert recall_at_k(embeddings, ["a", "b", "a", "b"], k=2) == 3 / 4


def test_the_nearest_is_so_by_angle_not_by_distance():
    embeddings = [[1.0, 0.0], [100.0, 1.0], [0.9, 0.5], [5.0, 2.7]]
    assert recall_at_k(embeddings, [0, 0, 1, 1]) == 1


@pytest.mark.parametrize("n_similarities", [1, N, 3 * N + 1, 10 * N])
@pytest.mark.parametrize("k", [1, 3])
def test_pieces_make_no_difference(n_similarities, k, monkeypatch):
    monkeypatch.setattr(retrieval, "_SIMILARITIES", n_similarities)
    expected = by_neighbors(EMBEDDINGS, LABELS, k)
    assert recall_at_k(EMBEDDINGS, LABELS, k) == pytest.approx(expected)


def test_lengths_make_no_difference():
    lengths = np.random.default_rng(2).uniform(1e-3, 1e3, (N, 1))
    expected = by_neighbors(EMBEDDINGS, LABELS, 1)
    assert recall_at_k(EMBEDDINGS * lengths, LABELS) == pytest.approx(expected)


def test_an_image_alone_in_its_class_is_a_miss():
    labels = np.array(["pair", "pair", *(f"alone {i}" for i in range(N - 2))])
    embeddings = EMBEDDINGS.copy()
    embeddings[1] = embeddings[0]
    assert recall_at_k(embeddings, labels) == 2 / N
    assert recall_at_k(embeddings, labels, k=N - 1) == 2 / N


@pytest.mark.parametrize("form", [np.asarray, list, torch.from_numpy])
def test_embeddings_and_labels_in_any_form(form):
    expected = by_neighbors(EMBEDDINGS, LABELS, 1)
    assert recall_at_k(form(EMBEDDINGS), form(LABELS)) == pytest.approx(expected)
    names = np.array(["a", "b", "c", "d", "e"])[LABELS]
    assert recall_at_k(EMBEDDINGS, names) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_short_and_very_long_embeddings(scale):
    assert recall_at_k(EMBEDDINGS * scale, LABELS) == recall_at_k(EMBEDDINGS, LABELS)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_embeddings_without_a_direction_are_refused(value):
    embeddings = EMBEDDINGS.copy()
    embeddings[7] = value
    with pytest.raises(ValueError, match="zero or not finite"):
        recall_at_k(embeddings, LABELS)
