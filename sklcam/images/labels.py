"""Labels: those that are given, those that data sets keep, and their numbers in a network.

Here an image has one label. Several, or numbers, are the business of
:mod:`sklcam.images.label_sets`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sized
from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sklcam.images._tables import class_labels

_WHERE_FROM = (
    "one label per image (only a torch data set that has .targets, and a Hugging Face one with one "
    "column of ClassLabel, bring their own)."
)

_SPLIT = re.compile(
    r"(train|training|trainval|val|valid|validation|test|testing|dev|eval|evaluation)"
    r"[ _-]?(set|split|data|images|\d+)?",
    re.IGNORECASE,
)


def are_splits(folders: Collection[str]) -> bool:
    """Whether folders seem to be the parts of a data set, and not its classes.

    A class may be called "train"; it is not alone then, and there is no class "test" beside it.

    Parameters
    ----------
    folders : collection of str
        Their names.

    Returns
    -------
    bool

    Examples
    --------
    >>> from sklcam.images.labels import are_splits
    >>> are_splits(["train", "val2017", "annotations"]), are_splits(["bus", "train"])
    (True, False)
    """
    n_splits = sum(bool(_SPLIT.fullmatch(name)) for name in folders)
    return n_splits > 1 or 0 < n_splits == len(folders)


def dataset_labels(X: Any) -> np.ndarray | None:
    """Return the labels that a data set keeps beside its images, without loading an image.

    They are looked for where torchvision's data sets keep them, in ``targets`` or ``labels``, pass
    through the data set's ``target_transform`` as its items' labels do, and are followed through
    ``Subset``. Of a Hugging Face ``Dataset`` they are the numbers in its column of ``ClassLabel``.

    Parameters
    ----------
    X : Any
        A data set, or anything else.

    Returns
    -------
    ndarray of shape (n_samples,) or None
        None if X is not a data set, or keeps no labels, or keeps something of another length (such
        as the names of the classes) under that name; if there are several columns of classes, or
        images without a label; or if the labels are in the items alone, which would be read for it.

    Raises
    ------
    ValueError
        If the labels are those of folders such as train and test, which are not classes.

    Examples
    --------
    >>> from torch.utils.data import Dataset, Subset
    >>> from sklcam.images.labels import dataset_labels
    >>> class Pets(Dataset):
    ...     targets = ["cat", "dog", "cat"]
    ...     def __len__(self):
    ...         return 3
    >>> dataset_labels(Subset(Pets(), [2, 1])).tolist()
    ['cat', 'dog']
    """
    if (labels := class_labels(X)) is not None:
        return labels
    # A data set without length is a stream, whose labels come with its items.
    if not (isinstance(X, Dataset) and isinstance(X, Sized)):
        return None
    folders = getattr(X, "class_to_idx", {})  # of torchvision's data sets of class folders
    if are_splits(folders):
        raise ValueError(
            f"The classes of the data set are folders of splits, {', '.join(folders)}: make one of "
            "each. Give y if they are what is to be told apart."
        )
    for name in ("targets", "labels"):
        labels = getattr(X, name, None)
        if isinstance(labels, Sized) and len(labels) == len(X):
            return _transform_labels(labels, getattr(X, "target_transform", None))
    if isinstance(X, Subset):
        labels = dataset_labels(X.dataset)
        return None if labels is None else labels[np.asarray(X.indices, dtype=np.intp)]
    return None


def given_labels(X: Any, y: Any) -> Any:
    """Return the labels that were given, in whatever form they are, or else the data set's own.

    Parameters
    ----------
    X : images
    y : array-like, sequence of collections, or None

    Returns
    -------
    array-like

    Raises
    ------
    ValueError
        If there are none.
    """
    y = dataset_labels(X) if y is None else y
    if y is None:
        raise ValueError(f"requires y to be passed, but the target y is None: give {_WHERE_FROM}")
    return y


def labels_for(X: Any, y: Any, purpose: str) -> np.ndarray:
    """Return the labels that something needs: those that were given, or the data set's own.

    Parameters
    ----------
    X : images
    y : array-like or None
    purpose : str
        What needs them, for the message.

    Returns
    -------
    ndarray
        A column, (n, 1), is made flat with scikit-learn's ``DataConversionWarning``.

    Raises
    ------
    ValueError
        If there are none.
    """
    y = dataset_labels(X) if y is None else y
    if y is None:
        raise ValueError(f"{purpose} needs y: {_WHERE_FROM}")
    labels = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
    is_column = labels.ndim == 2 and labels.shape[1] == 1
    return column_or_1d(labels, warn=True) if is_column else labels


def check_labels(X: Any, y: Any) -> np.ndarray:
    """Return one label of a class for each image, as an estimator's ``fit`` needs them.

    Parameters
    ----------
    X : images
    y : array-like or None

    Returns
    -------
    ndarray of shape (n,)

    Raises
    ------
    ValueError
        If there are none, or they are not labels of classes.
    """
    y = given_labels(X, y)
    labels = column_or_1d(y.detach().cpu().numpy() if isinstance(y, Tensor) else y, warn=True)
    check_classification_targets(labels)
    return labels


def encode_labels(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the index of each label in classes.

    Parameters
    ----------
    labels : ndarray of shape (n,)
    classes : ndarray of shape (n_classes,)

    Returns
    -------
    ndarray of shape (n,), int64

    Raises
    ------
    ValueError
        If some labels are not among the classes.
    """
    try:
        found, positions = np.unique(labels, return_inverse=True)
    except TypeError:  # what cannot be sorted, such as dicts, or None among numbers
        raise ValueError(
            f"y or target has labels that are neither numbers nor strings: {labels[:5].tolist()}."
        ) from None
    # Classes may stand in any order, such as that of a network's outputs.
    order = {label: index for index, label in enumerate(np.asarray(classes).tolist())}
    unknown = [label for label in found.tolist() if label not in order]
    if unknown:
        raise ValueError(
            f"y or target has labels that were not seen in fit: {unknown[:5]}; the classes are "
            f"{list(order)[:10]}{' ...' if len(order) > 10 else ''}."
        )
    indices = np.array([order[label] for label in found.tolist()], dtype=np.int64)
    return indices[positions]


def _transform_labels(labels: Any, transform: Any) -> np.ndarray:
    """Return labels as an array on the host, each transformed if there is a function for it."""
    array = _as_array(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    return _as_array([*map(transform, array.tolist())]) if callable(transform) else array


def _as_array(labels: Any) -> np.ndarray:
    try:
        return np.asarray(labels)
    except ValueError:  # several for each image, here more and there fewer
        array = np.empty(len(labels), dtype=object)
        array[:] = labels
        return array
