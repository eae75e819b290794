"""What the interval of a difference says, in a word: the same on every table and page."""

from __future__ import annotations

import math

from sklearn.utils import Bunch

CLEAR = frozenset({"better", "worse", "higher", "lower"})


def verdict(row: Bunch, higher_is_better: bool | None) -> str:
    """Return what the difference of two evaluations says of the first of them.

    Parameters
    ----------
    row : Bunch
        Of what :func:`compare` returns.
    higher_is_better : bool or None
        None if nobody has said.

    Returns
    -------
    str
        "better" or "worse", or "higher" or "lower", if the interval does not contain 0; otherwise
        "no clear difference". "unknown" of a single image, whose interval has no width, and of
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
