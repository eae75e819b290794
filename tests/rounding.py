"""How far apart rounding can take two results that are equal in exact arithmetic.

Processors add up in different orders, so that a sum comes out a few roundings apart: in float32 by
1.2e-7 each, relative to the size of its terms. A few layers and their gradients together stay below
ten of these; ``ROUNDINGS`` leaves a factor of ten.

The size is that of the terms, not of the result. Where terms cancel, as in the difference of two
scores, the result is smaller than they are, but its error is not; and scaling a map to [0, 1] makes
the error as many times larger as it does the map. So maps are compared as they are before scaling.
"""

from __future__ import annotations

import numpy as np

ROUNDINGS = 100


def tolerance(size: float, dtype: type = np.float32) -> float:
    """What rounding can do to a sum of terms of this size."""
    return ROUNDINGS * float(np.finfo(dtype).eps) * float(size)


def assert_close_maps(maps, expected, size=None) -> None:
    """Compare maps before scaling; without a size of their terms, by their largest value."""
    size = np.abs(expected).max() if size is None else size
    np.testing.assert_allclose(maps, expected, rtol=0, atol=tolerance(size))
