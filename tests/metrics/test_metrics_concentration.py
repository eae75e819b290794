"""Complexity, sparsity and norms of maps: by hand, and NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sklcam.metrics import complexity, lp_norm, sparsity

MAPS = torch.rand(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


OTHERS = torch.rand(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_complexity_is_the_mean_absolute_value(dtype):
    signed = (MAPS - OTHERS).to(dtype)
    assert_allclose(complexity(signed), np.abs(signed.numpy()).mean((1, 2)), rtol=1e-6)


def test_complexity_by_hand():
    maps = torch.tensor([[[0.0, 0.5], [1.0, 0.1]], [[-0.5, 0.5], [0.0, 0.0]]])
    torch.testing.assert_close(complexity(maps), torch.tensor([0.4, 0.25]))


def gini(values):
    """The mean absolute difference of all pairs, over twice the mean."""
    pairs = list(itertools.product(values, values))
    return sum(abs(a - b) for a, b in pairs) / len(pairs) / (2 * sum(values) / len(values))


def test_sparsity_is_the_gini_index():
    signed = MAPS - OTHERS
    expected = [gini([abs(value) for value in of.ravel().tolist()]) for of in signed.numpy()]
    assert_allclose(sparsity(signed), expected, atol=1e-12)
    assert_allclose(sparsity(-7 * signed), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0, 0, 0], 0),
        ([3, 3, 3, 3], 0),
        ([0, 0, 0, 5], 3 / 4),  # one of N: 1 - 1/N
        ([0, 0, 1, 1], 1 / 2),
        ([1, 2, 3, 4], 1 / 4),  # (-3 - 2 + 3 + 12) / (4 * 10)
    ],
)
def test_sparsity_by_hand(values, expected):
    assert sparsity(torch.tensor(values).view(1, 2, 2).float()).item() == pytest.approx(expected)


@pytest.mark.parametrize("p", [0, 1, 1.5, 2, 3, float("inf")])
def test_lp_norm_is_numpys(p):
    signed = torch.where(MAPS > 0.3, MAPS - OTHERS, 0.0)
    expected = [np.linalg.norm(of.ravel(), p) for of in signed.numpy()]
    assert_allclose(lp_norm(signed, p), expected, rtol=1e-12)


def test_lp_norm_of_no_norm():
    with pytest.raises(ValueError, match="p must be a finite number >= 0; got -1"):
        lp_norm(MAPS, -1)
