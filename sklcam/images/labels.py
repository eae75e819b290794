"""Labels: given by the user or stored in data sets, and their numbers in a network.

Each image has one label here. Several labels, or numbers, are in :mod:`sklcam.images.label_sets`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence, Sized
from difflib import get_close_matches
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sklcam.images._tables import class_label_names, class_labels

_LIKE = 0.75  # the least similarity of a spelling to suggest, as difflib measures it

_WHERE_FROM = (
    "one label per image (only torch data sets with .targets, and Hugging Face data sets with one "
    "ClassLabel column, have their own)."
)

_SPLIT = re.compile(
    r"(train|training|trainval|val|valid|validation|test|testing|dev|eval|evaluation)"
    r"[ _-]?(set|split|data|images|\d+)?",
    re.IGNORECASE,
)


def are_splits(folders: Collection[str]) -> bool:
    """Whether folders seem to be the splits of a data set, and not its classes.

    A class may be named "train", but then it is not the only one, and there is no class "test".

    Parameters
    ----------
    folders : collection of str
        The names of the folders.

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
    """Return the labels that a data set stores, without loading an image.

    They are looked up where torchvision's data sets store them, in ``targets`` or ``labels``, also
    through ``Subset``, and go through the data set's ``target_transform``, as the labels of items
    do. For a Hugging Face ``Dataset``, they are the numbers in its ``ClassLabel`` column.

    Parameters
    ----------
    X : Any
        A data set, or anything else.

    Returns
    -------
    ndarray of shape (n_samples,) or None
        None if X is not a data set, stores no labels, or stores something of another length under
        that name, such as the names of the classes; if there are several ``ClassLabel`` columns, or
        images without a label; or if only the items have labels, as these would have to be read.

    Raises
    ------
    ValueError
        If the labels are folders such as train and test, which are not classes.

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
    # A data set without a length is a stream, whose labels come with its items.
    if not (isinstance(X, Dataset) and isinstance(X, Sized)):
        return None
    folders = getattr(X, "class_to_idx", {})  # in torchvision's data sets of class folders
    if are_splits(folders):
        raise ValueError(
            f"The classes of the data set are folders of splits, {', '.join(folders)}. Make a "
            "data set of each one, or give y if the splits are the classes."
        )
    for name in ("targets", "labels"):
        labels = getattr(X, name, None)
        if isinstance(labels, Sized) and len(labels) == len(X):
            return _transform_labels(labels, getattr(X, "target_transform", None))
    if isinstance(X, Subset):
        labels = dataset_labels(X.dataset)
        return None if labels is None else labels[np.asarray(X.indices, dtype=np.intp)]
    return None


def label_names(X: Any, y: Any = None) -> tuple[str, ...] | None:
    """Return the names of the numbers that are a data set's labels.

    They are the ``classes`` of torchvision's data sets, also through ``Subset``, or the names of
    Hugging Face's ``ClassLabel``.

    Parameters
    ----------
    X : Any
        A data set, or anything else.
    y : array-like or None, default=None
        The labels that the user gave, if any.

    Returns
    -------
    tuple of str or None
        The name of each number from 0. None if X has no names for its labels, or if y is given and
        is neither the same labels nor a ``ClassLabel`` column with names of its own.

    Examples
    --------
    >>> from torch.utils.data import Dataset
    >>> from sklcam.images.labels import label_names
    >>> class Pets(Dataset):
    ...     targets, classes = [0, 1, 0], ["cat", "dog"]
    ...     def __len__(self):
    ...         return 3
    >>> label_names(Pets()), label_names(Pets(), y=[2, 0, 1])
    (('cat', 'dog'), None)
    """
    names = None if y is None else class_label_names(y)
    labels = dataset_labels(X) if names is None else _as_array(y[:])
    if names is None and labels is not None:
        is_its_own = y is None or np.array_equal(labels, _as_array(y))
        names = _names_in(X) if is_its_own else None
    if not names or labels is None or labels.dtype.kind not in "iu" or not labels.size:
        return None
    return tuple(names) if labels.min() >= 0 and labels.max() < len(names) else None


def _names_in(X: Any) -> list[str] | None:
    if isinstance(X, Subset):
        return _names_in(X.dataset)
    if getattr(X, "target_transform", None) is not None:
        return None  # the numbers become other labels
    names = class_label_names(X) or getattr(X, "classes", None)
    if not isinstance(names, Sequence) or isinstance(names, str):
        return None
    # In torchvision's ImageNet, names are tuples of synonyms.
    names = [", ".join(each) if isinstance(each, tuple) else each for each in names]
    numbers = getattr(X, "class_to_idx", {})
    is_other = isinstance(numbers, Mapping) and any(
        numbers.get(name, i) != i for i, name in enumerate(names)
    )
    return None if is_other or not all(isinstance(name, str) for name in names) else names


def names_of_classes(names: Sequence[str] | None, classes: np.ndarray) -> tuple[str, ...] | None:
    """Return the names of classes that are numbers.

    Parameters
    ----------
    names : sequence of str or None
        The name of each number from 0.
    classes : ndarray of shape (n_classes,)

    Returns
    -------
    tuple of str of length n_classes, or None

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images.labels import names_of_classes
    >>> names_of_classes(["cat", "dog", "emu"], np.array([0, 2]))
    ('cat', 'emu')
    """
    if names is None or classes.ndim != 1 or classes.dtype.kind not in "iu":
        return None
    numbers = classes.tolist()
    if not all(0 <= number < len(names) for number in numbers):
        return None
    return tuple(names[number] for number in numbers)


def check_numbering(X: Any, y: Any, classes: Any, names: Sequence[str] | np.ndarray | None) -> None:
    """Raise a ValueError if a data set has other numbers for classes with the same names.

    This happens to data sets of class folders if one of them lacks a folder.

    Parameters
    ----------
    X : images
    y : array-like or None
    classes : ndarray of shape (n_classes,) or None
        The numbers that an estimator knows.
    names : sequence of str of length n_classes, or None
        The estimator's names for them.
    """
    own = None if classes is None or names is None else label_names(X, y)
    if own is None or names is None:
        return
    known = [*map(str, names)]
    numbers = np.asarray(classes).tolist()
    for number, name in enumerate(own):
        meant = [i for i, other in zip(numbers, known, strict=True) if other == name]
        if meant and number not in meant:
            raise ValueError(
                f"The data set's label for {name!r} is {number}, but the estimator's is "
                f"{meant[0]}. Give y with the numbers that the estimator's classes_ have for the "
                "same names in its class_names_."
            )


def given_labels(X: Any, y: Any) -> Any:
    """Return the labels that the user gave, in any form, or else the data set's own.

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
        raise ValueError(f"requires y to be passed, but the target y is None. Give {_WHERE_FROM}")
    return y


def known_labels(X: Any, y: Any, classes: Any, names: np.ndarray | None) -> Any:
    """Return the labels that the user gave, or else the data set's own, as known classes.

    Parameters
    ----------
    X : images
    y : array-like, sequence of collections, or None
        Labels in any form, or the names of classes that are numbers.
    classes : ndarray of shape (n_classes,) or None
        The classes that an estimator knows.
    names : ndarray of str of shape (n_classes,), or None
        The estimator's names for them.

    Returns
    -------
    array-like
        Names are turned into the labels of their classes.

    Raises
    ------
    ValueError
        If there are no labels, a data set has other numbers for the same names, or a name belongs
        to no class, or to more than one.
    """
    check_numbering(X, y, classes, names)
    return labels_of_names(given_labels(X, y), classes, names)


def labels_of_names(labels: Any, classes: Any, names: np.ndarray | None) -> Any:
    """Return labels as they are, and names as the labels of their classes.

    Parameters
    ----------
    labels : array-like
    classes : ndarray of shape (n_classes,) or None
    names : ndarray of str of shape (n_classes,), or None
        The names of the classes.

    Returns
    -------
    array-like

    Raises
    ------
    ValueError
        If a name belongs to no class, or to more than one.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images.labels import labels_of_names
    >>> labels_of_names(["emu", "cat"], np.array([0, 2]), np.array(["cat", "emu"]))
    array([2, 0])
    """
    if names is None or not are_names(labels, names):
        return labels
    array = _as_array(labels)
    return np.asarray(classes)[encode_labels(array.ravel(), names)].reshape(array.shape)


def are_names(labels: Any, names: np.ndarray) -> bool:
    """Whether labels are the names of classes, and not the classes themselves.

    Parameters
    ----------
    labels : array-like
    names : ndarray of str of shape (n_classes,)
        The names of classes that are numbers.

    Raises
    ------
    ValueError
        If one of the labels is the name of several classes.
    """
    if isinstance(labels, Tensor):
        return False
    array = _as_array(labels)
    if array.dtype.kind not in "UO":
        return False
    given = {each for each in array.ravel().tolist() if isinstance(each, str)}
    for name in given:
        rows = np.flatnonzero(names == name).tolist()
        if len(rows) > 1:
            raise ValueError(
                f"The classes {rows} all have the name {name!r}. Give the number of the class."
            )
    return bool(given)


def labels_for(X: Any, y: Any, purpose: str) -> np.ndarray:
    """Return the labels for a purpose: given by the user, or the data set's own.

    Parameters
    ----------
    X : images
    y : array-like or None
    purpose : str
        What needs the labels, for the message.

    Returns
    -------
    ndarray
        A column, (n, 1), is flattened with scikit-learn's ``DataConversionWarning``.

    Raises
    ------
    ValueError
        If there are no labels.
    """
    y = dataset_labels(X) if y is None else y
    if y is None:
        raise ValueError(f"{purpose} needs y: give {_WHERE_FROM}")
    y = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
    check_one_each(y)
    labels = np.asarray(y)
    is_column = labels.ndim == 2 and labels.shape[1] == 1
    return column_or_1d(labels, warn=True) if is_column else labels


def check_one_each(y: Any) -> None:
    """Raise a ValueError if labels are a table, which does not have one label per image.

    Parameters
    ----------
    y : array-like, sparse matrix or DataFrame
    """
    table = _as_array(y.toarray() if issparse(y) else y)
    if table.ndim != 2 or table.shape[1] < 2:
        return
    what = ""
    are_01 = table.dtype.kind in "biuf" and bool(np.isin(table, (0, 1)).all())
    if are_01 and (table.sum(axis=1) == 1).all():
        # The table does not say which class each column is for.
        what = (
            " Its rows are one-hot, with a single 1. Give the class of that column, such as "
            "classes_[y.argmax(axis=1)] if the columns are in the order of classes_, or "
            "y.idxmax(axis=1) for a DataFrame whose columns are the classes."
        )
    raise ValueError(f"y should be a 1d array, one label per image; got shape {table.shape}.{what}")


def check_labels(X: Any, y: Any) -> np.ndarray:
    """Return one class label for each image, as an estimator's ``fit`` needs it.

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
        If there are no labels, or they are not class labels.
    """
    y = given_labels(X, y)
    y = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
    check_one_each(y)
    labels = column_or_1d(y, warn=True)
    check_classification_targets(labels)
    return labels


def nearest_label(unknown: Collection[Any], known: Collection[Any]) -> str:
    """Return a sentence that suggests a known label for unknown ones, or an empty string.

    Parameters
    ----------
    unknown, known : collection of labels

    Returns
    -------
    str
        It begins with a space.

    Examples
    --------
    >>> from sklcam.images.labels import nearest_label
    >>> nearest_label(["Tabby"], ["tabby cat", "tiger"]), nearest_label([12], [1, 2])
    (" Did you mean 'tabby cat'?", '')
    """
    by_name = {str(label).casefold(): label for label in known}
    for name in unknown:
        if isinstance(name, str):
            # A label that contains it as a word, or else one with a similar spelling. Among a
            # thousand classes, some word is always a little similar.
            close = [each for each in by_name if name.casefold() in each.replace(",", "").split()]
            close += get_close_matches(name.casefold(), by_name, n=1, cutoff=_LIKE)
            if close:
                return f" Did you mean {by_name[close[0]]!r}?"
    return ""


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
    except TypeError:  # labels that cannot be sorted, such as dicts, or None among numbers
        raise ValueError(
            "y or target must have labels that are all numbers or all strings; got "
            f"{labels[:5].tolist()}."
        ) from None
    # Classes may stand in any order, such as that of a network's outputs.
    order = {label: index for index, label in enumerate(np.asarray(classes).tolist())}
    unknown = [label for label in found.tolist() if label not in order]
    if unknown:
        raise ValueError(
            f"y or target has labels that were not seen in fit: {unknown[:5]}; the classes are "
            f"{list(order)[:10]}{' ...' if len(order) > 10 else ''}.{nearest_label(unknown, order)}"
        )
    indices = np.array([order[label] for label in found.tolist()], dtype=np.int64)
    return indices[positions]


def _transform_labels(labels: Any, transform: Any) -> np.ndarray:
    """Return labels as an array on the host, transformed if there is a function for this."""
    array = _as_array(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    return _as_array([*map(transform, array.tolist())]) if callable(transform) else array


def _as_array(labels: Any) -> np.ndarray:
    try:
        return np.asarray(labels)
    except ValueError:  # different numbers of labels per image
        array = np.empty(len(labels), dtype=object)
        array[:] = labels
        return array
