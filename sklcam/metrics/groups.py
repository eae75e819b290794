"""Groups of images between which a metric may differ, and the largest gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch

from sklcam._validation import describe
from sklcam.metrics.masks import as_array

AnyGroups: TypeAlias = ArrayLike | Mapping[str, ArrayLike] | None

ONLY = "group"  # the name of labels that were given without one


def checked_groups(groups: AnyGroups, n_images: int) -> dict[str, np.ndarray]:
    """Return the label of each image in each grouping; a ValueError unless each image has one.

    Parameters
    ----------
    groups : array-like of shape (n_images,), mapping of names to these, or None
    n_images : int

    Returns
    -------
    dict of str to ndarray of shape (n_images,)
    """
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        return {ONLY: labels_of_groups("groups", groups, n_images)}
    if not groups or not all(isinstance(name, str) and name != "class" for name in groups):
        raise ValueError(
            "groups must be one label for each image, or a dict of names to these; got a dict of "
            f'{[*groups]}. The name "class" is reserved for the true labels, y.'
        )
    return {
        name: labels_of_groups(f"groups[{name!r}]", labels, n_images)
        for name, labels in groups.items()
    }


def labels_of_groups(name: str, labels: Any, n_images: int) -> np.ndarray:
    """Return labels of groups as an array; a ValueError unless each image has one."""
    try:
        array = as_array(labels)
    except ValueError:  # rows of several lengths
        array = np.empty(0)
    if array.shape != (n_images,):
        raise ValueError(
            f"{name} must be one label for each of {n_images} images; got {describe(labels)}."
        )
    # A list as it is: NaN among strings, or a number, would be a string in an array.
    items = [*labels] if isinstance(labels, list | tuple) else array.tolist()
    missing = [i for i, label in enumerate(items) if _is_missing(label)]
    if missing:
        raise ValueError(
            f"{name} lacks the label of {len(missing)} image(s), the first of them {missing[0]}. "
            'Each image needs one group: call it "unknown", or leave the image out of X.'
        )
    try:
        np.unique(array)
        is_known = len({isinstance(label, str) for label in items}) < 2
        is_known &= not any(isinstance(label, tuple | list) for label in items)
    except TypeError:
        is_known = False
    if not is_known:
        raise ValueError(
            f"Labels of groups must be numbers or strings, not both; got {describe(labels)}."
        )
    return array


def _is_missing(label: Any) -> bool:
    try:
        return label is None or bool(label != label)
    except TypeError:  # pandas' NA is neither equal to itself nor not
        return True


def largest_gaps(
    figures: Sequence[Mapping[str, np.ndarray]],
    tables: Mapping[Any, Mapping[str, Bunch]],
    level: float,
) -> dict[str, Bunch]:
    """Return, for each row of a table, the largest difference between two groups.

    Parameters
    ----------
    figures : sequence of mappings of str to ndarray of shape (1 + n_resamples,)
        The figures of each group: first that of its images, then those of resamples.
    tables : mapping of groups to mappings of str to Bunch
        The same groups' rows.
    level : float

    Returns
    -------
    dict of str to Bunch
        ``mean``, ``low``, ``high``, ``groups`` (the one with the higher mean first) and
        ``n_pairs``. The level is that of all pairs of groups together (Bonferroni): the largest of
        many differences is large by chance alone. The interval is NaN if one of the two has fewer
        than two values; if a group has no mean, everything is NaN and ``groups`` is None.
    """
    groups = [*tables]
    pairs = [*combinations(range(len(groups)), 2)]
    found = {}
    for name in figures[0]:
        of_groups = np.array([of[name] for of in figures])
        if not pairs or not np.isfinite(of_groups[:, 0]).all():
            nothing = float("nan")
            found[name] = Bunch(
                mean=nothing, low=nothing, high=nothing, groups=None, n_pairs=len(pairs)
            )
            continue
        a, b = max(pairs, key=lambda pair: abs(of_groups[pair[0], 0] - of_groups[pair[1], 0]))
        high, low = (a, b) if of_groups[a, 0] >= of_groups[b, 0] else (b, a)
        differences = of_groups[high] - of_groups[low]
        tail = 50 * (1 - level) / len(pairs)
        is_enough = min(tables[groups[i]][name].n for i in (high, low)) > 1
        some = differences[1:][np.isfinite(differences[1:])]
        ends = np.percentile(some, [tail, 100 - tail]) if is_enough and len(some) else [np.nan] * 2
        found[name] = Bunch(
            mean=float(differences[0]),
            low=float(ends[0]),
            high=float(ends[1]),
            groups=(groups[high], groups[low]),
            n_pairs=len(pairs),
        )
    return found
