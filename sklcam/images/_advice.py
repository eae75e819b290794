"""Messages about X: which forms it may have, and what to do with anything else."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from sklcam._validation import is_instance
from sklcam.images._encoded import BASE64
from sklcam.images.streams import is_stream

FORMS = (
    "X may be a uint8 array, or a float array in [0, 1], of shape (n_samples, height, width) or "
    "(n_samples, height, width, n_channels); a uint8 or float torch tensor of shape "
    "(n_samples, n_channels, height, width); a list, array or column of a table of file paths, PIL "
    "images or encoded images; or a map-style torch or Hugging Face Dataset of images."
)

# How to read a file that holds more than one image, by its suffix.
_READERS = {
    ".csv": 'pandas.read_csv(path)["the column of paths"]',
    ".npy": "numpy.load(path)",
    ".npz": 'numpy.load(path)["the name of the array"]',
    ".parquet": "datasets.Dataset.from_parquet(path)",
    ".arrow": "datasets.Dataset.from_file(path)",
    ".pt": "torch.load(path)",
    **dict.fromkeys(
        (".zip", ".tar", ".gz", ".tgz", ".7z"), "the paths of its files, once it is unpacked"
    ),
}


def diagnose(X: Any) -> str:
    """Say what X is if it is not images in a known form, and what to pass instead."""
    name = f"{type(X).__module__}.{type(X).__qualname__}".removeprefix("builtins.")
    if isinstance(X, str | os.PathLike):
        return _diagnose_path(os.fsdecode(X))
    if isinstance(X, bytes | bytearray | memoryview | io.BytesIO):
        return f"X is {name} with one image: wrap it in a list, X=[data]."
    if isinstance(X, Image.Image):
        return "X is one PIL image: wrap it in a list, X=[image]."
    if isinstance(X, np.ndarray):
        strings = (
            ": bytes in a NumPy array lose zeros at their end, so pass a list"
            if X.dtype.kind == "S"
            else ", whose entries are not pixels"
        )
        return f"X is an array of dtype {X.dtype} and shape {X.shape}{strings}."
    if is_instance(X, "datasets", "DatasetDict", "IterableDatasetDict"):
        return f"X is the splits {', '.join(map(repr, X))} of a data set: pass one, X[split]."
    if isinstance(X, Mapping):
        return (
            f"X is a {name} of {', '.join(map(repr, X))}: pass the entry with the images, X[name]."
        )
    if isinstance(X, DataLoader):
        return (
            "X is a DataLoader: pass the data set that it reads, X.dataset. An explainer's "
            "iter_explain takes the loader itself."
        )
    if isinstance(X, io.IOBase):
        return f"X is an open file ({name}): pass its path or bytes in a list, X=[file.read()]."
    if is_stream(X):
        return (
            f"X is a {name}, which has no indices: pass list(X) if its images fit into memory. "
            "An explainer's iter_explain takes it as it is."
        )
    if isinstance(X, Dataset):
        return f"X is {name}, a data set without length or indices: pass a map-style Dataset."
    if hasattr(X, "tocsr"):
        return f"X is a sparse matrix ({name}), but tables are not images."
    if name.startswith("dask."):
        return f"X is a {name}, which is not computed yet: pass X.compute()."
    if hasattr(X, "__array__") and getattr(X, "shape", None):
        return f"X is a {name}: pass np.asarray(X) if its entries are pixels."
    if isinstance(X, Iterable) and not isinstance(X, range):
        return f"X is a {name}: pass list(X) if it holds file paths or images."
    return "X is None." if X is None else f"X is a {name}."


def advice_on_path(path: str) -> str:
    """Say what to do with a text that is not the path of a file."""
    if path.startswith(BASE64):
        return "; it is base64: pass base64.b64decode(text), without the part before a comma"
    if "://" in path:
        return "; it is a URL: download it, and pass the path or the bytes"
    if any(character in path for character in "*?"):
        return "; it is a pattern: pass sorted(glob.glob(pattern))"
    return f", {_FOLDER}" if os.path.isdir(path) else ""


_FOLDER = (
    "a folder: use sklcam.datasets.load_class_folders if it has a folder for each class; "
    'for the images of one folder, pass sorted(pathlib.Path(folder).glob("*.jpg"))'
)


def advice_on_entry(entry: Any) -> str:
    """Say what to do with an entry of a list that is not an image."""
    if _is_missing(entry):
        return ": leave such rows out, and their labels"
    if isinstance(entry, io.IOBase):
        return ": pass its path, or the result of its read()"
    if isinstance(entry, list | int | float | np.number):
        return ": pass pixels as an array, np.asarray(X)"
    return ""


def _is_missing(entry: Any) -> bool:
    if entry is None or type(entry).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(entry, float) and math.isnan(entry)


def _diagnose_path(path: str) -> str:
    """Say what to do with a path that was given as X."""
    text = path if len(path) < 100 else f"{path[:100]}..."
    if os.path.isdir(path):
        return f"X is {text!r}, {_FOLDER}."
    if advice := advice_on_path(path):
        return f"X is {text!r}{advice}; in a list."
    reader = _READERS.get(os.path.splitext(path)[1].lower())
    if reader is not None:
        return f"X is one file path, {text!r}, to a file that is not an image: pass {reader}."
    return f"X is one file path, {text!r}: wrap it in a list, X=[path]."
