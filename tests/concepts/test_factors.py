"""Factors without names: planted ones, the optimum of scipy, and what batches change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import nnls
from seen import SIDE, seeing
from sklearn.base import clone

from sklcam import load, save
from sklcam.concepts import ConceptMaps
from sklcam.concepts.factors import amounts


def planted(n: int, seed: int = 0):
    """Return images made of three concepts of five channels each, and how much of each is where."""
    rng = np.random.default_rng(seed)
    concepts = np.array([[3.0, 1, 0, 0, 0], [0, 0, 2, 2, 0], [0, 1, 0, 0, 1]])
    where = rng.random((n, 3, 4, 4)) * (rng.random((n, 3, 4, 4)) < 0.4)
    cells = np.einsum("nkuv,kc->ncuv", where, concepts)
    images = cells.repeat(SIDE // 4, axis=2).repeat(SIDE // 4, axis=3)
    return torch.from_numpy(images.astype(np.float32)), where, concepts


def test_planted_concepts_are_found():
    images, where, concepts = planted(40)
    explainer = seeing(5)
    found = ConceptMaps(3, random_state=0, max_iter=1000).fit(explainer, images)
    assert found.explained_ > 0.995 and found.layer_ == "features"
    maps = found.transform(explainer, images, frame="layer")
    likeness = np.corrcoef(
        np.concatenate([maps.swapaxes(0, 1).reshape(3, -1), where.swapaxes(0, 1).reshape(3, -1)])
    )[:3, 3:]
    # In the order of their weight: the sizes of the concepts' rows.
    order = np.argsort(-np.linalg.norm(concepts, axis=1))
    assert (likeness[range(3), order] > 0.97).all()
    assert_allclose(maps.max((0, 2, 3)), 1, rtol=1e-5)


def test_amounts_are_the_optimum():
    rng = np.random.default_rng(0)
    rows, components = rng.random((30, 6)), rng.random((4, 6))
    expected = [nnls(components.T, row)[0] for row in rows]
    found = amounts(torch.from_numpy(rows), torch.from_numpy(components))
    assert_allclose(found, expected, atol=1e-3)
    lost = components.copy()
    lost[1] = 0
    assert (amounts(torch.from_numpy(rows), torch.from_numpy(lost))[:, 1] == 0).all()


def test_batches_make_no_difference_and_a_sample_little():
    images, *_ = planted(40)
    whole, parts = (seeing(5, batch_size=size) for size in (40, 7))
    for max_cells in (16384, 300):
        found = [
            ConceptMaps(3, max_cells=max_cells, random_state=0).fit(of, images)
            for of in (whole, parts)
        ]
        assert_allclose(*(each.components_ for each in found), rtol=1e-4, atol=1e-5)
    assert found[0].explained_ > 0.98
    maps = [found[0].transform(of, images) for of in (whole, parts)]
    assert maps[0].shape == (40, 3, SIDE, SIDE)
    assert_allclose(*maps, atol=1e-5)


def test_every_cell_is_as_likely_to_be_drawn():
    # Image i has the activation i + 1 everywhere.
    images = torch.arange(1.0, 51.0)[:, None, None, None].expand(-1, 2, SIDE, SIDE).contiguous()
    explainer, seen = seeing(2, batch_size=8), []
    for seed in range(20):
        namer = ConceptMaps(1, max_cells=40)
        drawn = namer._draw(explainer, explainer.open(images), np.random.RandomState(seed))
        assert drawn.shape == (40, 2)
        seen.append(drawn[:, 0].mean())
    # The mean of 1 to 50, and the standard error of 800 draws.
    assert np.mean(seen) == pytest.approx(25.5, abs=3 * 14.4 / 800**0.5)


def test_it_is_an_estimator():
    images, *_ = planted(4)
    concepts = clone(ConceptMaps(2, max_cells=50, random_state=3))
    assert concepts.get_params() == {
        "max_cells": 50, "max_iter": 200, "n_concepts": 2, "random_state": 3
    }  # fmt: skip
    explainer = seeing(5)
    first, second = (clone(concepts).fit(explainer, images).components_ for _ in range(2))
    assert_allclose(first, second)


def test_files_hold_concepts(tmp_path):
    images, *_ = planted(6)
    explainer, random = seeing(5), np.random.RandomState(0)
    concepts = ConceptMaps(2, max_cells=50, random_state=random).fit(explainer, images)
    save(concepts, tmp_path / "concepts.sklcam")
    loaded = load(tmp_path / "concepts.sklcam")
    assert loaded.explained_ == concepts.explained_ and loaded.max_cells == 50
    maps = [each.transform(explainer, images) for each in (concepts, loaded)]
    np.testing.assert_array_equal(*maps)
    again = [each.fit(explainer, images).components_ for each in (concepts, loaded)]
    np.testing.assert_array_equal(*again)  # the generator goes on, too
