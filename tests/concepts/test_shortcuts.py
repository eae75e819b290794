"""Planted watermarks are found, nothing is where there are none, and the numbers are by hand."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from marked import MARK, SIZE, digits_somewhere, learned
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist, pdist
from sklearn.cluster import AgglomerativeClustering
from torch import nn

from sklcam import CAMExplainer
from sklcam.concepts import Shortcuts, find_shortcuts
from sklcam.explain import ExplanationWarning


@cache
def found_in_digits(seed, *, marked):
    images, labels = digits_somewhere(seed=seed, marked=marked)
    return labels, find_shortcuts(learned(images, labels), images, labels, random_state=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_watermark_is_found_and_ranks_first(seed):
    labels, found = found_in_digits(seed, marked=True)
    assert found.strong and all(each.label == 0 for each in found.strong)
    first = found[0]
    assert first in found.strong and (labels[first.rows] == 0).all()
    assert first.separation > 0.8 and first.likeness > 0.95 and first.drop > 0.8
    # What is covered holds the corner, and is not much more.
    assert first.region[:MARK, :MARK].mean() > 0.8
    assert first.region.mean() < 0.25
    assert first.region.shape == (SIZE, SIZE) and first.map.shape == (6, 6)


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_strong_without_a_watermark(seed):
    _, found = found_in_digits(seed, marked=False)
    assert len(found) > 2 and not found.strong


class Corner(nn.Module):
    """The first class is bright on the left, the second has a bright corner."""

    def __init__(self):
        super().__init__()
        self.features = nn.AvgPool2d(2)
        self.weights = torch.zeros(2, 4, 4)
        self.weights[0, :, 1] = 2
        self.weights[1, 0, 0] = 6

    def forward(self, x):
        return torch.einsum("nuv,cuv->nc", self.features(x)[:, 0], self.weights)


def cornered():
    generator = torch.Generator().manual_seed(0)
    images = 0.2 * torch.rand(24, 1, 8, 8, generator=generator)
    labels = np.repeat([0, 1], 12)
    images[:12, 0, :, 2:4] += torch.rand(12, 8, 1, generator=generator)
    images[12:, 0, :2, :2] = 1
    explainer = CAMExplainer(Corner(), "hirescam", "features", verbose=0, batch_size=5)
    return explainer.fit(images), images, labels


@pytest.mark.parametrize("cover", ["mean", "blur", "road"])
def test_numbers_by_hand(cover):
    explainer, images, labels = cornered()
    found = find_shortcuts(
        explainer, images, labels, method="hirescam", max_clusters=1, cover=cover
    )
    assert [len(each) for each in found] == [12, 12] and {each.label for each in found} == {0, 1}
    maps = explainer.explain(images, labels, method="hirescam", frame="layer").reshape(24, -1)
    for each in found:
        own = labels == each.label
        assert each.share == 1 and sorted(each.rows) == np.flatnonzero(own).tolist()
        assert_allclose(each.map.ravel(), maps[own].mean(axis=0), atol=1e-6)
        # Distances of all pairs, one by one.
        within = pdist(maps[own], "cosine").mean()
        between = cdist(maps[own], maps[~own], "cosine").mean()
        expected = (between - within) / max(within, between)
        assert each.separation == pytest.approx(expected, abs=1e-4)
        where = torch.from_numpy(each.region)
        shown = (images - images.mean(dim=0))[own, 0][:, where]
        assert each.likeness == pytest.approx(1 - pdist(shown, "cosine").mean(), abs=1e-4)
        if cover == "mean":
            covered = images[own].clone()
            covered[:, 0, where] = covered.mean((1, 2, 3))[:, None]
            both = (images[own], covered)
            chances = [explainer.predict_proba(some)[:, each.label].mean() for some in both]
            assert each.drop == pytest.approx(chances[0] - chances[1], abs=1e-5)
            right = [(explainer.predict(some) == each.label).mean() for some in both]
            assert each.accuracy_drop == pytest.approx(right[0] - right[1], abs=1e-6)
    assert {each.label: each.drop > 0.1 for each in found}[1]
    # Other numbers than 0 and 1 are what tells a formula from another.
    first = next(each for each in found if each.label == 0)
    assert 0.1 < first.separation < 0.99 and 0.01 < abs(first.likeness) < 0.99


@pytest.mark.parametrize("clusterer", [None, AgglomerativeClustering(2)])
def test_the_two_kinds_of_a_class_are_told_apart(clusterer):
    explainer, images, _ = cornered()
    explainer.model.weights[1, :, 1] = 2  # by the left or by the corner
    options = {"clusterer": clusterer, "max_clusters": 3, "random_state": 0}
    found = find_shortcuts(explainer, images, np.ones(24, int), method="hirescam", **options)
    kinds = sorted(sorted(each.rows.tolist()) for each in found)
    assert kinds == [[*range(12)], [*range(12, 24)]]
    assert [each.share for each in found] == [0.5, 0.5]


def test_a_class_whose_maps_are_alike_is_not_split_by_noise():
    explainer, images, labels = cornered()
    explainer.model.weights[1, 0, 1] = 0.5  # some noise beside the corner
    found = find_shortcuts(explainer, images, labels, method="hirescam", random_state=0)
    assert [len(each) for each in found if each.label == 1] == [12]


def test_classes_of_few_images_are_left_out_before_they_are_clustered():
    explainer, images, labels = cornered()
    labels[1:12] = 1  # one image alone is too few for a tree
    options = {"method": "hirescam", "clusterer": AgglomerativeClustering(1)}
    (found,) = find_shortcuts(explainer, images, labels, **options)
    assert found.label == 1 and sorted(found.rows) == [*range(1, 24)]


def test_labels_that_are_objects_stay_what_they_are():
    _, images, labels = cornered()
    names = np.array(["cat", "dog"], dtype=object)
    explainer = CAMExplainer(Corner(), "hirescam", "features", classes=names, verbose=0).fit(images)
    options = {"method": "hirescam", "max_clusters": 1}
    found = find_shortcuts(explainer, images, names[labels], **options)
    assert {each.label: sorted(each.rows)[0] for each in found} == {"cat": 0, "dog": 12}


def test_images_with_blank_maps_are_in_no_cluster():
    explainer, images, labels = cornered()
    images[0] = 0
    with pytest.warns(ExplanationWarning, match="1 of 24 maps are blank"):
        found = find_shortcuts(explainer, images, labels, method="hirescam", max_clusters=1)
    assert found.n_blank == 1
    rows = np.concatenate([each.rows for each in found])
    assert_array_equal(np.sort(rows), np.arange(1, 24))


def test_classes_too_small_for_a_clusterer_are_left_out():
    explainer, images, labels = cornered()
    few = np.flatnonzero((labels == 0) | (labels.cumsum() == 1))  # one image of the second class
    options = {"clusterer": AgglomerativeClustering(2), "min_size": 2, "method": "hirescam"}
    found = find_shortcuts(explainer, images[few], labels[few], **options)
    assert found and {each.label for each in found} == {0}


@pytest.mark.filterwarnings("error::RuntimeWarning", "ignore:.*maps are blank")
def test_a_class_of_blank_maps_alone_is_left_out():
    explainer, images, labels = cornered()
    images[labels == 0] = 0
    found = find_shortcuts(explainer, images, labels, method="hirescam", random_state=0)
    assert found.n_blank == 12 and {each.label for each in found} == {1}


def test_the_table_names_what_is_strong():
    _, found = found_in_digits(0, marked=True)
    lines = str(found).splitlines()
    assert len(lines) == len(found) + 1
    assert sum(line.endswith("strong") for line in lines) == len(found.strong)
    assert str(Shortcuts([])) == "No cluster has as many images as min_size."
