"""The verdict on a difference, in a word: the same in every table and on every page."""

from __future__ import annotations

import math

from sklearn.utils import Bunch

CLEAR = frozenset({"better", "worse", "higher", "lower"})


def verdict(row: Bunch, higher_is_better: bool | None) -> str:
    """Return what the interval of a difference says about the first of two evaluations.

    Parameters
    ----------
    row : Bunch
        A row of what :func:`compare` returns.
    higher_is_better : bool or None
        None if it is not known.

    Returns
    -------
    str
        "better" or "worse", or "higher" or "lower", if the interval does not contain 0; otherwise
        "no clear difference". "unknown" for a single image, whose interval has no width, and for
        values that are not finite.

    Examples
    --------
    >>> from sklearn.utils import Bunch
    >>> from sklcam.metrics.verdicts import verdict
    >>> above, around = Bunch(low=0.1, high=0.2, n=9), Bunch(low=-0.1, high=0.2, n=9)
    >>> verdict(above, True), verdict(above, False), verdict(above, None), verdict(around, True)
    ('better', 'worse', 'higher', 'no clear difference')
    """
    # Gaps between groups have no n.
    if row.get("n") == 1 or not (math.isfinite(row.low) and math.isfinite(row.high)):
        return "unknown"
    if row.low <= 0 <= row.high:
        return "no clear difference"
    if higher_is_better is None:
        return "higher" if row.low > 0 else "lower"
    return "better" if (row.low > 0) == higher_is_better else "worse"
