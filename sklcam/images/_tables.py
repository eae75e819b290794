"""Tables: the column of images in pandas, Polars, PyArrow and Hugging Face's data sets.

None of these libraries is required or imported: an object of one has already imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sklcam._validation import is_instance
from sklcam.images._encoded import is_image
from sklcam.images.items import Items

# The number of rows that are read together.
_PIECE = 1000


class ArrowEntries(Sequence[Any]):
    """The encoded images of a PyArrow array; each becomes a Python object on access."""

    def __init__(self, array: Any):
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, i: Any) -> Any:
        return self._array[i].as_py()


class EncodedRows(Sequence[Any]):
    """The encoded images in a column of a Hugging Face data set, each read on access."""

    def __init__(self, dataset: Any, name: str):
        self._feature = dataset.features[name]
        self._rows = dataset.with_format("arrow", columns=[name])
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: Any) -> Any:
        value = self._rows[int(i)].column(self._name)[0].as_py()
        return decoded_if_remote(self._feature, value)

    def columns(self) -> Iterator[Any]:
        """Yield the column in pieces."""
        for start in range(0, len(self), _PIECE):
            yield self._rows[start : min(start + _PIECE, len(self))].column(self._name)


def decoded_if_remote(feature: Any, value: Any) -> Any:
    """Return a value of a Hugging Face column, or the image if the library must fetch it first."""
    is_file = isinstance(value, dict) and value.get("bytes") is None
    is_remote = is_file and "://" in (value.get("path") or "")
    return feature.decode_example(value) if is_remote else value


def column_of(X: Any, name: str | None) -> Any:
    """Return the images of a table, or of one of its columns; None if X is neither.

    Parameters
    ----------
    X : Any
    name : str or None
        The name of the column, if the user gave it.

    Returns
    -------
    list, sequence, Items or None

    Raises
    ------
    ValueError
        If it is not clear which column is meant, or a row has no image.
    """
    if is_instance(X, "datasets", "Dataset"):
        return _hugging_face_column(X, name)
    if is_instance(X, "datasets", "Column") and is_instance(X.source, "datasets", "Dataset"):
        return _hugging_face_column(X.source, X.column_name)
    if is_instance(X, "pandas", "DataFrame"):
        return _pandas_entries(_only(X, list(X.columns), name), X)
    if is_instance(X, "pandas", "Series", "Index"):
        return _pandas_entries(X, X)
    if is_instance(X, "pyarrow", "Table", "RecordBatch"):
        return _arrow_entries(_only(X, X.column_names, name))
    if is_instance(X, "pyarrow", "Array", "ChunkedArray"):
        return _arrow_entries(X)
    if is_instance(X, "polars", "DataFrame"):
        return _polars_entries(_only(X, X.columns, name))
    if is_instance(X, "polars", "Series"):
        return _polars_entries(X)
    return None


def is_table(X: Any) -> bool:
    """Whether X is a table or a column of a table."""
    return (
        is_instance(X, "datasets", "Dataset", "Column")
        or is_instance(X, "pandas", "DataFrame", "Series", "Index")
        or is_instance(X, "pyarrow", "Table", "RecordBatch", "Array", "ChunkedArray")
        or is_instance(X, "polars", "DataFrame", "Series")
    )


def class_labels(X: Any) -> np.ndarray | None:
    """Return the labels in the only column of classes of a Hugging Face data set, if it has one."""
    if not is_instance(X, "datasets", "Dataset") or X.format["type"] == "custom":
        return None  # a transform may also change labels
    names = [
        name for name, each in X.features.items() if is_instance(each, "datasets", "ClassLabel")
    ]
    if len(names) != 1:
        return None
    labels = X.with_format("arrow", columns=names)[:].column(names[0])
    numbers = None if labels.null_count else labels.to_numpy()
    # -1 stands for an image without a label.
    return None if numbers is None or (numbers < 0).any() else numbers


def class_label_names(X: Any) -> list[str] | None:
    """Return the names of the classes 0, 1, ... in a Hugging Face data set, or a column of one."""
    features: Any = {}
    if is_instance(X, "datasets", "Dataset"):
        features = X.features
    elif is_instance(X, "datasets", "Column") and is_instance(X.source, "datasets", "Dataset"):
        features = {X.column_name: X.source.features[X.column_name]}
    found = [each for each in features.values() if is_instance(each, "datasets", "ClassLabel")]
    return list(found[0].names) if len(found) == 1 else None


def take_from_table(X: Any, positions: Sequence[int]) -> Any:
    """Return some rows of a table in its own form."""
    if is_instance(X, "datasets", "Dataset"):
        return X.select(positions)
    if is_instance(X, "datasets", "Column"):
        of_rows = is_instance(X.source, "datasets", "Dataset")
        taken = X.source.select(positions)[X.column_name] if of_rows else None
        return [X[i] for i in positions] if taken is None else taken
    if is_instance(X, "pyarrow", "Table", "RecordBatch", "Array", "ChunkedArray"):
        return X.take(sys.modules["pyarrow"].array(positions, type="int64"))
    return X.iloc[positions] if hasattr(X, "iloc") else X[list(positions)]


def _only(X: Any, names: Sequence[Any], name: str | None) -> Any:
    """Return the named column, or the only one."""
    if name is None and len(names) != 1:
        raise ValueError(
            f"X is a {_kind(X)} with the columns {_listed(names)}. Pass the one that holds the "
            "images, X[column], or sklcam.images.ImageDataset(X, image_column=...)."
        )
    name = names[0] if name is None else name
    if list(names).count(name) != 1:
        raise ValueError(
            f"image_column must name a column of X; it has {_listed(names)}, and it is {name!r}."
        )
    return X[name]


def _pandas_entries(column: Any, X: Any) -> list[Any]:
    entries = column.to_numpy(dtype=object)
    missing = np.flatnonzero(column.isna())
    if len(missing):
        row = int(missing[0])
        raise ValueError(
            f"{len(missing)} of the {len(entries)} rows of X have no image; the first is row {row} "
            f"(index {X.index[row] if hasattr(X, 'index') else row!r}), which holds "
            f"{entries[row]!r}. Leave them out, as X.dropna() does, and their labels."
        )
    return list(entries)


def _polars_entries(column: Any) -> list[Any]:
    if column.null_count():
        _check_nulls([column.is_null().to_list()])
    return column.to_list()


def _arrow_entries(array: Any) -> Sequence[Any]:
    types = sys.modules["pyarrow"].types
    kind = array.type.value_type if types.is_dictionary(array.type) else array.type
    if array.null_count:
        _check_nulls([array.is_null()])
    if _is_text(kind):
        return array.to_pylist()
    if _is_encoded(kind):
        return ArrowEntries(array)
    raise ValueError(
        f"X is a {_kind(array)} of {kind}; it may hold file paths, or encoded images as binary. "
        "Pass pixels as an array, np.stack of the images."
    )


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _is_encoded(kind: Any) -> bool:
    """Whether values of a PyArrow type are bytes, or structs of bytes and path."""
    if str(kind).startswith("struct"):
        return {field.name for field in kind} <= {"bytes", "path"}
    return str(kind) in ("binary", "large_binary", "binary_view")


def _check_nulls(pieces: Any) -> None:
    start = 0
    for piece in pieces:
        missing = np.flatnonzero(np.asarray(piece))
        if len(missing):
            raise ValueError(
                f"Row {start + int(missing[0])} of X has no image, as it is null. Leave such rows "
                "out, and their labels."
            )
        start += len(piece)


def _hugging_face_column(X: Any, name: str | None) -> Any:
    if len(X) == 0:
        return []
    kind = X.format["type"]
    if kind == "custom":  # a transform makes the items
        return Items(X, name)
    # If the data set's format is torch, arrays stay tensors, which may be a network's own input.
    arrays = X if kind == "torch" else X.with_format("numpy")
    name = _name_of_images(X, arrays, name)
    feature, stored = X.features[name], X.features.arrow_schema.field(name).type
    if _is_image_feature(feature) and feature.mode is not None:  # the library converts to this mode
        return Items(X.with_format(None, columns=[name]))
    if _is_text(stored):
        texts = X.with_format("arrow", columns=[name])[:].column(name)
        _check_nulls([texts.is_null()])
        return texts.to_pylist()
    if _is_encoded(stored):
        rows = EncodedRows(X, name)
        if X.data.column(name).null_count:  # this also counts rows that were not selected
            _check_nulls(piece.is_null() for piece in rows.columns())
        return rows
    return Items(arrays.select_columns([name]))


def _name_of_images(X: Any, arrays: Any, name: str | None) -> str:
    """Return the name of the column of a Hugging Face data set that holds the images."""
    names = list(X.features)
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        declared = [each for each in names if _is_image_feature(X.features[each])]
        # If another column is declared as images, a matrix is more likely boxes.
        others = [each for each in names if each not in declared]
        found = declared + [
            each for each in others if _looks_like_images(X, arrays, each, matrices=not declared)
        ]
        if len(found) != 1:
            raise ValueError(
                f"X is a Hugging Face data set with the columns {_listed(names)}, of which "
                f"{_listed(found) if found else 'none'} hold images. Name the one to use with "
                "sklcam.images.ImageDataset(X, image_column=...) instead of X, or pass "
                "X.select_columns([...])."
            )
        return found[0]
    if name not in names:
        raise ValueError(
            f"image_column must name a column of X; it has {_listed(names)}, and it is {name!r}."
        )
    return name


def _looks_like_images(X: Any, arrays: Any, name: str, *, matrices: bool) -> bool:
    """Whether the first row of a column that is not declared as images is an image."""
    if _is_encoded(X.features.arrow_schema.field(name).type):
        return is_image(EncodedRows(X, name)[0])
    # Sounds and videos need libraries of their own to decode them.
    if hasattr(X.features[name], "decode_example"):
        return False
    value = arrays.select_columns([name])[0][name]
    return is_image(value) and (matrices or value.ndim > 2)


def _is_image_feature(feature: Any) -> bool:
    return is_instance(feature, "datasets", "Image")


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def _kind(X: Any) -> str:
    return f"{type(X).__module__.partition('.')[0]}.{type(X).__name__}"
