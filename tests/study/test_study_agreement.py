"""Krippendorff's alpha, against the examples of his paper of 2011."""

from __future__ import annotations

import numpy as np
import pytest

from sklcam.study import krippendorff_alpha

NO = np.nan
# Four observers and twelve units, with missing values: the paper's example C.
FOUR = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NO, NO, NO],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NO, 3],
    [NO, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NO],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NO],
]


@pytest.mark.parametrize(
    ("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_is_as_published(level, published):
    assert krippendorff_alpha(FOUR, level) == pytest.approx(published, abs=0.0005)


def test_two_observers_of_twelve_articles():
    """The paper's example B: nominal data of five values."""
    ben = [1, 1, 2, 2, 4, 3, 3, 3, 5, 4, 4, 1]
    gerry = [2, 1, 2, 2, 2, 3, 3, 3, 5, 4, 4, 4]
    assert krippendorff_alpha([ben, gerry]) == pytest.approx(0.692, abs=0.0005)


def test_the_ends():
    assert krippendorff_alpha([[0, 1, 0], [0, 1, 0]]) == 1
    assert krippendorff_alpha([[0, 1], [1, 0]]) < 0
    assert np.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    assert np.isnan(krippendorff_alpha([[1, 0, NO]]))
