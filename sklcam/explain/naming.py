"""The names of a network's outputs: from the model, the user or the labels.

This uses neither images nor layers. The output has a number of columns, and each gets a name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sklcam.images.label_sets import as_numbers, kind_of_labels, learn_label_sets
from sklcam.images.labels import labels_for
from sklcam.networks.readouts import Task


def name_outputs(known: Any, y: Any, *, task: Task | None, n_columns: int) -> np.ndarray:
    """Return a name for each column of a network's output.

    Parameters
    ----------
    known : array-like of shape (n_columns,) or None
        The names that the user or the model gives. None uses the labels in ``y``, or else 0, 1,
        ....
    y : array-like of labels, label sets, numbers or None
        The labels or numbers of the images, if there are any.
    task : str or None
        The network's task.
    n_columns : int

    Returns
    -------
    ndarray of shape (n_columns,)

    Raises
    ------
    ValueError
        If there is not a different name for each column, or ``y`` has a different number of
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
        outputs = "one output for two classes" if task == "binary" else f"{n_columns} outputs"
        raise ValueError(
            f"The network has {outputs}, but there are {len(np.unique(names))} different labels. "
            f"Give {n_columns} labels in classes=, in the order of the outputs."
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
            f"y has {n_given} number(s) per image, but the network has {n_columns} output(s). Give "
            "one number per output. If the network is a classifier, give y its class labels."
        )
