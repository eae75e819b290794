"""Labels other than one class per image: several labels at once, or numbers.

Several labels come as an indicator, which is a table of 0 and 1 with a column for each label, or as
a collection of labels for each image. Numbers are for regression.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import column_or_1d
from torch import Tensor

from sklcam._validation import describe
from sklcam.images.labels import nearest_label

LabelKind = Literal["labels", "indicator", "label sets", "numbers"]

_WHAT_WILL_DO = (
    "Give y as an array of 0 and 1 of shape (n_images, n_labels), or as a set of labels for each "
    "image."
)


def kind_of_labels(y: Any) -> LabelKind:
    """Return what y holds for each image.

    Parameters
    ----------
    y : array-like, Tensor, sparse matrix, DataFrame, or sequence of collections of labels

    Returns
    -------
    {"labels", "indicator", "label sets", "numbers"}
        "labels": one for each image. "indicator": a table of 0 and 1 with at least two columns.
        "label sets": a set for each image, or a list or tuple, unless these are the rows of a table
        of numbers. "numbers": such as 0.5, or a table of other numbers than 0 and 1.

    Raises
    ------
    ValueError
        If some images have a collection of labels and others do not.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images.label_sets import kind_of_labels
    >>> kind_of_labels(["cat", "dog"]), kind_of_labels([{"cat"}, {"cat", "dog"}])
    ('labels', 'label sets')
    >>> kind_of_labels(np.eye(3)), kind_of_labels([0.5, 1.5])
    ('indicator', 'numbers')
    """
    table = _as_table(y)
    if table is None or (table.ndim == 2 and table.shape[1] == 0):  # no image has a label
        return "label sets"
    if table.ndim == 2 and table.shape[1] > 1:
        return "indicator" if _is_indicator(table) else "numbers"
    is_float = table.dtype.kind == "f" and bool(np.isfinite(table).all())
    return "numbers" if is_float and type_of_target(table) == "continuous" else "labels"


def learn_label_sets(y: Any, classes: ArrayLike | None = None) -> np.ndarray:
    """Return the labels that occur in y, of which images may have several.

    Parameters
    ----------
    y : indicator, or sequence of collections of labels
    classes : array-like or None, default=None
        The labels, in the order of an indicator's columns. None is the names of a DataFrame's
        columns, 0, 1, ... for the columns of any other table, and the sorted labels of label sets.

    Returns
    -------
    ndarray of shape (n_labels,)

    Raises
    ------
    ValueError
        If there are no labels, one is named twice, or they cannot be sorted.

    Examples
    --------
    >>> from sklcam.images.label_sets import learn_label_sets
    >>> learn_label_sets([["tree", "car"], [], ["car"]]).tolist()
    ['car', 'tree']
    """
    if classes is not None:
        labels = np.asarray(classes)
        if labels.ndim != 1 or len(np.unique(labels)) != len(labels):
            raise ValueError(f"classes must name each label once; got {labels.tolist()}.")
    else:
        table, names = _as_columns(y), _column_names(y)
        if table is None:
            labels = _sorted({label for row in _as_sets(y) for label in row})
        else:
            labels = np.arange(table.shape[-1]) if names is None else names
    if len(labels) == 0:
        raise ValueError(
            "No image has a label, and classes= names none. Give labels, or name some in classes=."
        )
    return labels


def as_indicator(y: Any, classes: np.ndarray) -> np.ndarray:
    """Return which labels each image has.

    Parameters
    ----------
    y : array-like of shape (n_images, n_labels), Tensor, sparse matrix, DataFrame, or sequence of
        collections of labels
        A table must hold 0 and 1; a DataFrame's columns must be the classes.
    classes : ndarray of shape (n_labels,)

    Returns
    -------
    ndarray of shape (n_images, n_labels), int64, of 0 and 1

    Raises
    ------
    ValueError
        If y is neither; if a table has the wrong number or names of columns, or holds anything but
        0 and 1; or if an image has an unknown label, or a label twice.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images.label_sets import as_indicator
    >>> as_indicator([["tree", "car"], [], ["car"]], np.array(["car", "tree"])).tolist()
    [[1, 1], [0, 0], [1, 0]]
    """
    table, names = _as_columns(y, len(classes)), _column_names(y)
    if table is None:
        return _indicator_of(_as_sets(y), classes)
    if table.shape[1] != len(classes):
        raise ValueError(
            f"y has {table.shape[1]} columns for {len(classes)} labels, {_listed(classes)}. "
            f"{_WHAT_WILL_DO}"
        )
    numbers = [*range(len(classes))]
    # Columns without names are numbered, which means something only if the classes are numbers too.
    is_free = {*numbers} != {*classes.tolist()}
    wanted = [classes.tolist(), *([numbers] if is_free else [])]
    if names is not None and names.tolist() not in wanted:
        raise ValueError(
            f"The columns of y are {_listed(names)}, but the labels are {_listed(classes)}. Put "
            "the columns in that order, y[classes]."
        )
    if not _is_indicator(table):
        others = np.unique(table[~np.isin(table, (0, 1))])
        raise ValueError(
            f"y has the values {_listed(others)}, but may hold only 1 for a label that an image "
            f"has, and 0 for one that it does not have. {_WHAT_WILL_DO}"
        )
    return table.astype(np.int64)


def as_numbers(y: Any) -> np.ndarray:
    """Return the numbers that are the labels of a regression.

    Parameters
    ----------
    y : array-like or Tensor of shape (n_images,) or (n_images, n_outputs)

    Returns
    -------
    ndarray of the same shape, float64
        A column, (n, 1), is flattened with scikit-learn's ``DataConversionWarning``.

    Raises
    ------
    ValueError
        If y is not finite numbers in one of these shapes.

    Examples
    --------
    >>> from sklcam.images.label_sets import as_numbers
    >>> as_numbers([3, 0.5]).tolist()
    [3.0, 0.5]
    """
    try:
        numbers = np.asarray(_dense(y), dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.array(np.nan)
    if numbers.ndim not in (1, 2) or 0 in numbers.shape or not np.isfinite(numbers).all():
        raise ValueError(
            "A regression needs finite numbers, y of shape (n_images,) or (n_images, n_outputs); "
            f"got {describe(y)}."
        )
    is_column = numbers.ndim == 2 and numbers.shape[1] == 1
    return column_or_1d(numbers, warn=True) if is_column else numbers


def _dense(y: Any) -> Any:
    """Return y as an array, if it is a tensor, a sparse matrix or a DataFrame."""
    if isinstance(y, Tensor):
        return y.detach().cpu().numpy()
    if issparse(y):
        return y.toarray()
    if not hasattr(y, "dtypes") or not hasattr(y, "columns"):
        return y
    # Columns of several types would become a table of objects.
    are_numbers = all(getattr(dtype, "kind", "O") in "biuf" for dtype in y.dtypes)
    table = np.asarray(y.astype(np.float64) if are_numbers else y)
    return table[:, 0] if table.shape[1] == 1 else table


def _as_table(y: Any) -> np.ndarray | None:
    """Return y as an array; None if it can only be collections of labels."""
    y = _dense(y)
    rows = _rows(y)
    if rows is None:
        table = np.asarray(y)
    elif any(isinstance(row, Set) for row in rows):
        return None
    else:
        try:
            table = np.asarray(rows)
        except ValueError:  # rows of several lengths
            return None
    is_of_words = table.ndim == 2 and table.dtype.kind not in "biuf" and table.shape[1] != 1
    return None if is_of_words else table


def _as_columns(y: Any, n_classes: int | None = None) -> np.ndarray | None:
    """Return y as a table with a column for each label; None if it holds collections of labels.

    Lists may be either. They are the rows of a table if they have its length and hold only 0 and 1.
    """
    table = _as_table(y)
    if table is None:
        return None
    if table.ndim != 2:
        raise ValueError(
            f"y is {describe(np.asarray(y))}, but each image may have several labels, or none. "
            f"{_WHAT_WILL_DO}"
        )
    if _rows(_dense(y)) is None:
        return table
    width = table.shape[1]
    is_as_wide = width > 1 if n_classes is None else width == n_classes
    return table if is_as_wide and _is_indicator(table) else None


def _rows(y: Any) -> list[Any] | None:
    """Return the entries of all images if these are collections; None if no entry is one."""
    if getattr(y, "ndim", 1) != 1 or isinstance(y, str | bytes) or not hasattr(y, "__len__"):
        return None
    if getattr(y, "dtype", np.dtype(object)) != np.dtype(object):
        return None
    rows = [*y]
    are_collections = [
        isinstance(row, Set | Sequence | np.ndarray) and not isinstance(row, str | bytes)
        for row in rows
    ]
    if any(are_collections) and not all(are_collections):
        odd = rows[are_collections.index(False)]
        raise ValueError(
            f"y holds collections of labels for some images, but {describe(odd)} for another. "
            f"{_WHAT_WILL_DO}"
        )
    return rows if any(are_collections) else None


def _as_sets(y: Any) -> list[list[Any]]:
    """Return the labels of each image; raise an error if one is a duplicate or missing."""
    y = _dense(y)
    rows = _rows(y)
    sets = [np.asarray([*row], dtype=object).tolist() for row in (y if rows is None else rows)]
    for i, row in enumerate(sets):
        try:  # NaN is not equal to itself, and comparing pandas' NA raises a TypeError
            is_missing = any(label is None or bool(label != label) for label in row)
            is_twice = len(set(row)) < len(row)
        except TypeError:
            raise ValueError(
                f"Labels must be numbers or strings; those of image {i} are {row}. Leave out "
                "missing labels."
            ) from None
        if is_missing:
            raise ValueError(f"Image {i} has a missing label, {row}. Leave it out of the set.")
        if is_twice:
            raise ValueError(
                f"Image {i} has a label twice, {row}. Name it once or, if these are rows of 0 and "
                "1, give all rows the same length."
            )
    return sets


def _indicator_of(sets: list[list[Any]], classes: np.ndarray) -> np.ndarray:
    order = {label: index for index, label in enumerate(classes.tolist())}
    unknown = {label: None for row in sets for label in row if label not in order}
    if unknown:
        raise ValueError(
            f"y or target has labels that were not seen in fit: {[*unknown][:5]}; the classes are "
            f"{_listed(classes)}.{nearest_label(unknown, order)}"
        )
    indicator = np.zeros((len(sets), len(classes)), dtype=np.int64)
    for i, row in enumerate(sets):
        indicator[i, [order[label] for label in row]] = 1
    return indicator


def _is_indicator(table: np.ndarray) -> bool:
    return table.dtype.kind in "biuf" and bool(np.isin(table, (0, 1)).all())


def _column_names(y: Any) -> np.ndarray | None:
    """Return the names of a DataFrame's columns."""
    columns = getattr(y, "columns", None)
    return None if columns is None else _as_labels([*columns])


def _sorted(labels: set[Any]) -> np.ndarray:
    try:
        return _as_labels(sorted(labels))
    except TypeError:
        raise ValueError(
            f"Labels must be all numbers or all strings; got {[*labels][:5]}."
        ) from None


def _as_labels(labels: list[Any]) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim == 1 and array.tolist() == labels:
        return array
    array = np.empty(len(labels), dtype=object)  # NumPy would turn them all into strings
    array[:] = labels
    return array


def _listed(values: np.ndarray) -> str:
    return f"{values.tolist()[:10]}{' ...' if len(values) > 10 else ''}"
