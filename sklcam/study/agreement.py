"""How far raters agree, beyond chance."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from sklcam._validation import describe

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: ArrayLike, level: Level = "nominal") -> float:
    r"""Return Krippendorff's alpha of ratings, of which some may be missing.

    Parameters
    ----------
    ratings : array-like of shape (n_raters, n_units)
        Numbers; NaN where a rater has not rated a unit. Units with one rating do not count.
    level : {"nominal", "ordinal", "interval"}, default="nominal"
        What measures the distance of two ratings: whether they differ, how many ratings lie between
        them, or their difference.

    Returns
    -------
    float
        1 is full agreement, 0 is chance, and below 0 raters disagree more than by chance. NaN if
        all ratings are the same, or no unit has two.

    Raises
    ------
    ValueError
        If the ratings are not a table of numbers, or there is no such level.

    Notes
    -----
    :math:`\alpha = 1 - D_o / D_e`, where the disagreement :math:`D_o` is the mean squared distance
    between two ratings of one unit, and :math:`D_e` between two ratings of any units.

    References
    ----------
    Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011.

    Examples
    --------
    Ten units and two observers, the first example of the paper:

    >>> from sklcam.study import krippendorff_alpha
    >>> meg = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    >>> owen = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    >>> round(krippendorff_alpha([meg, owen]), 3)
    0.095
    """
    if level not in get_args(Level):
        raise ValueError(f"level must be one of {', '.join(get_args(Level))}; got {level!r}.")
    try:
        table = np.asarray(ratings, dtype=np.float64)
    except (TypeError, ValueError):
        table = np.empty(0)
    if table.ndim != 2 or np.isinf(table).any():
        raise ValueError(
            "ratings must be a table (n_raters, n_units) of numbers, NaN where one is missing; got "
            f"{describe(ratings)}."
        )
    values = np.unique(table[np.isfinite(table)])
    # How often each value is in each unit, (n_units, n_values).
    counts = (table[..., None] == values).sum(axis=0)
    counts = counts[counts.sum(axis=1) > 1].astype(np.float64)
    each = counts.sum(axis=1)
    pairs = (counts / (each - 1)[:, None]).T @ counts - np.diag((counts.T / (each - 1)).sum(axis=1))
    of_value, n = counts.sum(axis=0), counts.sum()
    apart = _squared_distances(values, of_value, level)
    expected = float(of_value @ apart @ of_value)
    if expected == 0:
        return float("nan")
    return float(1 - (n - 1) * (pairs * apart).sum() / expected)


def _squared_distances(values: np.ndarray, of_value: np.ndarray, level: Level) -> np.ndarray:
    if level == "nominal":
        return (values[:, None] != values).astype(np.float64)
    # On an ordinal scale, half of the ratings of a value lie below its middle.
    middles = np.cumsum(of_value) - of_value / 2 if level == "ordinal" else values
    return (middles[:, None] - middles) ** 2
