"""Histograms as numbers, from which the page draws an SVG."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_N_BINS = 20


@dataclass(frozen=True)
class Histogram:
    """The number of values in each of several bins of equal width.

    Parameters
    ----------
    counts : tuple of int
    low, high : float
        Where the first bin begins, and the last one ends.
    n_missing : int
        How many values were not finite.
    """

    counts: tuple[int, ...]
    low: float
    high: float
    n_missing: int

    def position(self, value: float) -> float:
        """Return where a value is between the ends, in [0, 1]."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def histogram(values: np.ndarray) -> Histogram:
    """Count values in bins over [0, 1], or over their own range if it goes beyond.

    Parameters
    ----------
    values : ndarray of shape (n,)

    Returns
    -------
    Histogram

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.reporting._histogram import histogram
    >>> histogram(np.array([0.0, 0.01, 1.0, np.nan])).counts[:2]
    (2, 0)
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low == high:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(finite, bins=_N_BINS, range=(low, high))
    return Histogram(tuple(counts.tolist()), low, high, len(values) - len(finite))
