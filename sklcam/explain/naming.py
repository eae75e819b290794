"""The names of a network's outputs: from the model, from its user or from the labels there are.

It looks at neither images nor layers: the output has a number of columns, and each gets a name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sklcam.images.label_sets import as_numbers, kind_of_labels, learn_label_sets
from sklcam.images.labels import labels_for
from sklcam.networks.readouts import Task


def name_outputs(known: Any, y: Any, *, task: Task | None, n_columns: int) -> np.ndarray:
    """Return a name for each column that a network's outputs become.

    Parameters
    ----------
    known : array-like of shape (n_columns,) or None
        What the user or the model says; None is the labels in ``y``, or else 0, 1, ....
    y : array-like of labels, label sets, numbers or None
        Those of the images, if there are any.
    task : str or None
        What the network is for.
    n_columns : int

    Returns
    -------
    ndarray of shape (n_columns,)

    Raises
    ------
    ValueError
        If there is not one name for each, all different, or ``y`` has a different number of
        columns.

    Examples
    --------
    >>> from sklcam.explain.naming import name_outputs
    >>> name_outputs(None, ["pear", "apple", "pear"], task="multiclass", n_columns=2)
    array(['apple', 'pear'], dtype='<U5')
    """
    numbers = np.arange(n_columns)
    if known is None and y is not None and task not in ("regression", "segmentation"):
        known = _labels_in(y, numbers, task)
    names = numbers if known is None else np.asarray(known)
    if names.shape != (n_columns,) or len(np.unique(names)) != n_columns:
        outputs = "one output, for two classes" if task == "binary" else f"{n_columns} outputs"
        raise ValueError(
            f"The network has {outputs}, and {len(np.unique(names))} labels for them: give "
            "classes= the label of each output, in order."
        )
    if y is not None and task == "regression":
        _check_numbers(y, n_columns)
    return names


def _labels_in(y: Any, numbers: np.ndarray, task: Task | None) -> np.ndarray | None:
    """Return the labels in y, unless they are indices of outputs."""
    if task == "multilabel":
        found = learn_label_sets(y)
        is_table = kind_of_labels(y) == "indicator"
        return found if is_table or not np.isin(found, numbers).all() else None
    labels = labels_for(None, y, "fit")
    return None if np.isin(labels, numbers).all() else np.unique(labels)


def _check_numbers(y: Any, n_columns: int) -> None:
    given = as_numbers(y)
    n_given = 1 if given.ndim == 1 else given.shape[1]
    if n_given != n_columns:
        raise ValueError(
            f"y has {n_given} number(s) per image, and the network has {n_columns} output(s). If "
            "it tells classes apart, y must be their labels."
        )
