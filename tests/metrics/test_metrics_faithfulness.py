"""Rank correlations: by hand, and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maps_and_boxes import MAPS, H, W
from numpy.testing import assert_allclose
from scipy.stats import spearmanr

from sklcam.metrics import rank_correlation


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_scipys(ties):
    maps, others = MAPS, torch.rand(5, H, W, generator=torch.Generator().manual_seed(1)) + MAPS
    if ties:
        maps, others = (4 * maps).round(), (3 * others).round()
    expected = [
        spearmanr(a.ravel(), b.ravel()).statistic
        for a, b in zip(maps.numpy(), others.numpy(), strict=True)
    ]
    assert_allclose(rank_correlation(maps, others), expected, atol=1e-6)


def test_rank_correlation_of_cells():
    """Means over squares of two pixels, those at the edges of what is left of them."""
    generator = torch.Generator().manual_seed(0)
    maps, others = torch.rand(2, 1, 5, 4, generator=generator)
    coarse = [
        np.array([[of[0, i : i + 2, j : j + 2].mean() for j in (0, 2)] for i in (0, 2, 4)])
        for of in (maps, others)
    ]
    expected = spearmanr(coarse[0].ravel(), coarse[1].ravel()).statistic
    assert rank_correlation(maps, others, cell=2).item() == pytest.approx(expected, abs=1e-6)
    assert rank_correlation(maps, others, cell=9).tolist() == [0]
    with pytest.raises(ValueError, match="cell, a number of pixels, must be an int >= 1; got 0"):
        rank_correlation(maps, others, cell=0)


def test_rank_correlation_by_hand():
    maps = torch.tensor([[[1.0, 5.0, 7.0, 100.0]]])
    for other, expected in {(0, 1, 2, 3): 1, (9, 4, 2, 1): -1, (1, 3, 2, 4): 0.8}.items():
        other = torch.tensor(other).view(1, 1, 4).float()  # 1 - 6 (1 + 1) / (4 (16 - 1)) = 0.8
        assert rank_correlation(maps, other).item() == pytest.approx(expected)
        assert rank_correlation(maps.log(), other.exp()).item() == pytest.approx(expected)
    constant = torch.full((1, 1, 4), 0.3)
    for pair in ((maps, constant), (constant, maps), (constant, constant)):
        assert rank_correlation(*pair).tolist() == [0]
    with pytest.raises(ValueError, match="of one shape"):
        rank_correlation(maps, maps[..., :3])
