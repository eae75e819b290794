"""Sources: the forms that X may have, each as a source of single images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from sklcam._validation import describe, is_instance
from sklcam.images._advice import FORMS, advice_on_entry, advice_on_path, diagnose
from sklcam.images._encoded import Encoded, as_encoded, draft, opened, shown
from sklcam.images._paths import Paths, missing_files
from sklcam.images._pixels import (
    MAX_CHANNELS,
    RGB,
    Reading,
    check_pixel_dtype,
    check_pixel_values,
    copy_channels_first,
    is_uint8,
    item_tensor,
    load_upright,
    locate_channels,
    naming,
    rgb_tensor,
    upright_size,
    warn_of_binary_bytes,
)
from sklcam.images._tables import column_of
from sklcam.images.framed import FramedDataset
from sklcam.images.items import Items, has_entries, is_lazy

# Small images are copied and resized together, this many values at a time, as each call has a fixed
# cost. With more values, floats no longer fit into the caches.
_STACK_VALUES = 2**17


LeastSize = Callable[[tuple[int, int]], tuple[int, int] | None]
Draft = tuple[Tensor, tuple[int, ...]]


class Source(ABC):
    """The images of X in one of its forms, at their own sizes."""

    n_channels: int
    uniform_size: tuple[int, ...] | None = None
    device = torch.device("cpu")
    items: Items | None = None
    array: np.ndarray | Tensor | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def check(self) -> None:
        """Check pixels, or files on the disk, and not only the container."""

    @abstractmethod
    def read(self, i: int) -> Tensor:
        """Return image i, (n_channels, height, width), uint8 or float32, in memory of its own."""

    def read_stacks(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """Yield images in their order, in stacks that are best resized together."""
        for i in indices:
            yield self.read(i)[None]

    def read_drafts(self, indices: Sequence[int], least: LeastSize) -> Iterator[Draft]:
        """Yield images in their order, possibly decoded at a smaller size, with their own sizes.

        Parameters
        ----------
        indices : sequence of int
        least : callable
            Takes an image's own height and width, and returns the least size to decode it at, or
            None for its own size.
        """
        for stack in self.read_stacks(indices):
            for image in stack:
                yield image, tuple(image.shape[1:])

    @abstractmethod
    def size(self, i: int) -> tuple[int, ...]:
        """Return the height and width of image i, or the depth, height and width of a volume."""

    def path(self, i: int) -> str | None:
        """Return the path of image i, if it is known to be a file, without reading anything."""
        return None


class ArraySource(Source):
    """Images of one size in an array or a tensor; both are indexed and reduced in the same way."""

    def __init__(self, X: np.ndarray | Tensor, reading: Reading) -> None:
        _check_batch_shape(X)
        self._channels = locate_channels(X[0], "X", reading.channels, batch=tuple(X.shape))
        check_pixel_dtype(X, "X")
        self._background = reading.background
        self._images = X.detach().as_subclass(Tensor) if isinstance(X, Tensor) else X
        self.array = self._images
        first = self.read(0)
        self.n_channels = len(first)
        self.uniform_size = self._size = tuple(first.shape[1:])
        self.device = first.device

    def __len__(self) -> int:
        return len(self._images)

    def check(self) -> None:
        if is_uint8(self._images):
            warn_of_binary_bytes(self._images)
        else:
            check_pixel_values(self._images)

    def read(self, i: int) -> Tensor:
        return copy_channels_first(self._images[i], self._channels, self._background)

    def read_stacks(self, indices: Sequence[int]) -> Iterator[Tensor]:
        step = max(1, _STACK_VALUES // math.prod(self._images.shape[1:]))
        for start in range(0, len(indices), step):
            rows = [*indices[start : start + step]]
            # A list of rows makes a copy, which a large image, alone in its stack, does not need.
            stack = self._images[rows] if len(rows) > 1 else self._images[rows[0]][None]
            # Grey arrays have no channel axis: the last axis of a stack would be mistaken for it.
            stack = stack if stack.ndim == 4 else stack[..., np.newaxis]
            yield copy_channels_first(stack, self._channels, self._background)

    def size(self, i: int) -> tuple[int, ...]:
        return self._size


class VolumeSource(ArraySource):
    """Volumes of one size in an array or a tensor (n, C, D, H, W), with the channels first."""

    def __init__(self, X: np.ndarray | Tensor) -> None:
        if 0 in X.shape:
            raise ValueError(
                f"X is empty, of shape {tuple(X.shape)}. Pass volumes with at least one voxel."
            )
        if X.shape[-1] <= MAX_CHANNELS < X.shape[1]:
            move = "permute" if isinstance(X, Tensor) else "transpose"
            raise ValueError(
                f"X is volumes of shape {tuple(X.shape)}, which seem to have their channels last. "
                f"They must be first, (n, C, D, H, W): pass X.{move}(0, 4, 1, 2, 3)."
            )
        check_pixel_dtype(X, "X")
        self._channels, self._background = "first", None
        self._images = X.detach().as_subclass(Tensor) if isinstance(X, Tensor) else X
        self.array = self._images
        first = self.read(0)
        self.n_channels, self.device = len(first), first.device
        self.uniform_size = self._size = tuple(first.shape[1:])

    def read_stacks(self, indices: Sequence[int]) -> Iterator[Tensor]:
        return Source.read_stacks(self, indices)  # volumes are large, and are not resized


class FileSource(Source):
    """File paths, encoded images and PIL images, read as RGB."""

    n_channels = 3

    def __init__(self, items: Sequence[Any], reading: Reading) -> None:
        self._background = reading.background
        are_paths = isinstance(items, list) and all(isinstance(item, str) for item in items)
        self._items = Paths(items) if are_paths else items

    def __len__(self) -> int:
        return len(self._items)

    def check(self) -> None:
        # If it were found later, a missing file could end a training that has run for hours.
        if isinstance(self._items, Paths):
            _check_files_exist(self._items)
        elif isinstance(self._items, list):
            _check_files_exist([item for item in self._items if isinstance(item, str)])
            for i, item in enumerate(self._items):
                if isinstance(item, Image.Image):
                    # An opened one holds a file handle, which worker processes cannot share.
                    with naming(_name(item, i)):
                        self._items[i] = load_upright(item)
        # If Pillow cannot decode any of the files, the first one already shows it.
        if not isinstance(self._items[0], str):
            with self._opened(0):
                pass

    def read(self, i: int) -> Tensor:
        with self._opened(i) as image:
            return rgb_tensor(image, self._background)

    def read_drafts(self, indices: Sequence[int], least: LeastSize) -> Iterator[Draft]:
        for i in indices:
            item = as_encoded(self._items[i])
            with naming(_name(item, i)), opened(item) as image:
                drafted = _drafted(image, item, least, self._background)
            yield drafted

    def size(self, i: int) -> tuple[int, int]:
        with self._opened(i) as image:
            return upright_size(image)

    def path(self, i: int) -> str | None:
        item = self._items[i] if isinstance(self._items, list | Paths) else None
        return item if isinstance(item, str) else None

    @contextmanager
    def _opened(self, i: int) -> Iterator[Image.Image]:
        item = as_encoded(self._items[i])
        with naming(_name(item, i)), opened(item) as image:
            yield image


class LazySource(Source):
    """A map-style torch data set, or any other sequence that makes its images on access."""

    items: Items

    def __init__(self, items: Items, reading: Reading) -> None:
        self.items = items
        self._reading = reading
        self._hint = _transform_to_blame(items.dataset)

    def __len__(self) -> int:
        return len(self.items)

    def check(self) -> None:
        # Only this item is read in advance, as a network is built for its number of channels.
        first = self._tensor(self.items[0], 0)
        self.n_channels, self.device = len(first), first.device

    def read(self, i: int) -> Tensor:
        return self._of_channels(self._tensor(self.items[i], i), i)

    def _of_channels(self, image: Tensor, i: int) -> Tensor:
        if len(image) != self.n_channels:
            raise ValueError(
                f"X[{i}] has {len(image)} channel(s), but X[0] has {self.n_channels}. Give all "
                "images the same channels."
            )
        return image

    def read_drafts(self, indices: Sequence[int], least: LeastSize) -> Iterator[Draft]:
        for i in indices:
            item = self.items[i]
            encoded = as_encoded(item)
            if encoded is None or isinstance(encoded, Image.Image):
                image = self._of_channels(self._tensor(item, i), i)
                yield image, tuple(image.shape[1:])
                continue
            with naming(f"X[{i}]"), opened(encoded) as picture:
                drafted = _drafted(picture, encoded, least, self._reading.background)
            yield drafted

    def size(self, i: int) -> tuple[int, int]:
        _, height, width = self.read(i).shape
        return height, width

    def _tensor(self, image: Any, i: int) -> Tensor:
        encoded = as_encoded(image)
        if encoded is None:
            return item_tensor(image, f"X[{i}]", self._reading, self._hint)
        with naming(f"X[{i}]"), opened(encoded) as picture:
            return rgb_tensor(picture, self._reading.background)


def _drafted(
    image: Image.Image, item: Encoded | None, least: LeastSize, background: RGB | None
) -> Draft:
    size = upright_size(image)
    return rgb_tensor(draft(image, item, least(size)), background), size


class Rows(Source):
    """Some of the images of another source."""

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self._source, self._rows = source, rows
        self.n_channels, self.uniform_size = source.n_channels, source.uniform_size
        self.device = source.device

    def __len__(self) -> int:
        return len(self._rows)

    def check(self) -> None:
        """Do nothing, as the source was checked when it was opened."""

    def read(self, i: int) -> Tensor:
        return self._source.read(self._rows[i])

    def read_stacks(self, indices: Sequence[int]) -> Iterator[Tensor]:
        return self._source.read_stacks([self._rows[i] for i in indices])

    def read_drafts(self, indices: Sequence[int], least: LeastSize) -> Iterator[Draft]:
        return self._source.read_drafts([self._rows[i] for i in indices], least)

    def size(self, i: int) -> tuple[int, ...]:
        return self._source.size(self._rows[i])

    def path(self, i: int) -> str | None:
        return self._source.path(self._rows[i])


def open_source(X: Any, reading: Reading | None = None) -> Source:
    """Return the source for X, after the checks that need neither pixels nor the disk."""
    if (opened := _opened_before(X)) is not None:
        return opened
    reading = reading or Reading()
    source: Source
    if isinstance(X, Tensor) or (isinstance(X, np.ndarray) and X.dtype.kind not in "OSTU"):
        _check_has_columns(X, reading.column)
        source = VolumeSource(X) if X.ndim == 5 else ArraySource(X, reading)
    else:
        entries = _entries_of(X, reading.column)
        if isinstance(entries, Items):
            source = LazySource(entries, reading)
        else:
            source = FileSource(entries, reading)
    if len(source) == 0:
        raise ValueError("X is empty: at least one image is needed.")
    return source


def _opened_before(X: Any) -> Source | None:
    """Return the source of an ImageDataset or a part of one, which already says how to read it."""
    if isinstance(X, Subset):  # its items have been resized, unlike those of its source
        source = _opened_before(X.dataset)
        return None if source is None else Rows(source, [*map(int, X.indices)])
    source = getattr(X, "source", None) if isinstance(X, FramedDataset) else None
    return source if isinstance(source, Source) else None


def find_items(X: Any) -> Items | None:
    """Return the images of a data set as it returns them; None if X has another form."""
    is_data_set = is_instance(X, "datasets", "Dataset", "Column") or (
        isinstance(X, Dataset) and not isinstance(X, FramedDataset) and _opened_before(X) is None
    )
    if not (is_data_set or _is_list_of_items(X)) or _files_of(X) is not None:
        return None
    entries = _entries_of(X)
    return entries if isinstance(entries, Items) else None


def _entries_of(X: Any, column: str | None = None) -> Items | Sequence[Any]:
    """Return the items of a data set, or the files and pictures in any other form of X."""
    found = column_of(X, column)
    if type(found) is list:
        return [_as_file(entry, i, found) for i, entry in enumerate(found)]
    if found is not None:
        return found
    if isinstance(X, np.ndarray) and (X.ndim == 1 or (X.ndim == 2 and X.shape[1] == 1)):
        X = X.ravel().tolist() if X.dtype.kind != "S" else X
    if _is_list_of_items(X):
        return Items(X, column)
    if (files := _files_of(X)) is None and is_lazy(X) and not isinstance(X, list | tuple):
        return Items(X, column)
    _check_has_columns(X, column)
    if isinstance(X, list | tuple):
        return [_as_file(entry, i, X) for i, entry in enumerate(X)]
    if files is None:
        raise ValueError(f"{diagnose(X)} {FORMS}")
    return files


def _is_list_of_items(X: Any) -> bool:
    """Whether X is a list of a data set's items, as scikit-learn makes it when splitting one."""
    if not isinstance(X, list | tuple) or len(X) == 0:
        return False
    return isinstance(X[0], tuple) or has_entries(X[0])


def _check_has_columns(X: Any, column: str | None) -> None:
    if column is not None:
        raise ValueError(
            f"image_column={column!r} is for tables and data sets of dicts, but X is "
            f"{describe(X)}. Leave image_column out."
        )


def _files_of(X: Any) -> list[str] | None:
    """Return the files of a data set that only reads them, such as torchvision's ImageFolder.

    The reader of ImageFolder would show the hidden colours of transparent files.
    """
    if isinstance(X, Subset):
        files = _files_of(X.dataset)
        return None if files is None else [files[i] for i in X.indices]
    if type(X) is ImageFolder and X.loader is default_loader and X.transforms is None:
        return [path for path, _ in X.samples]
    return None


def _transform_to_blame(dataset: Any) -> str:
    """Return a sentence about a data set's transform, for images that are out of range."""
    while not hasattr(dataset, "transform") and hasattr(dataset, "dataset"):  # such as a Subset
        dataset = dataset.dataset
    transform = getattr(dataset, "transform", None)
    if transform is None:
        return ""
    steps = [type(step).__name__ for step in getattr(transform, "transforms", [transform])]
    blamed = "Normalize" if "Normalize" in steps else ", ".join(steps)
    return (
        f" The data set's transform causes this: remove {blamed} from it. Estimators normalise "
        "images themselves, by mean= and std=."
    )


def _check_batch_shape(X: np.ndarray | Tensor) -> None:
    if X.ndim == 2:
        raise ValueError(
            f"X has shape {tuple(X.shape)}, but tables are not images. If each row is a flattened "
            "image, reshape X to (n_samples, height, width). If X is one grey image, pass "
            f"{'X[None, None]' if isinstance(X, Tensor) else 'X[np.newaxis]'}."
        )
    if X.ndim == 3 and isinstance(X, Tensor):
        raise ValueError(
            f"X is 3-dimensional, of shape {tuple(X.shape)}. If it is one image, pass X[None]; if "
            f"it is several grey ones, X[:, None]. {FORMS}"
        )
    if X.ndim not in (3, 4):
        raise ValueError(f"X is {X.ndim}-dimensional, of shape {tuple(X.shape)}. {FORMS}")
    if len(X) == 0:
        raise ValueError(f"X is empty, of shape {tuple(X.shape)}: at least one image is needed.")
    # Grey images with so few columns and so many rows are unlikely.
    if X.ndim == 3 and 0 < X.shape[2] <= MAX_CHANNELS < X.shape[1]:
        raise ValueError(
            f"X is an array of shape {X.shape}, which seems to be one image with its channels "
            "last: pass X[np.newaxis]. If it is several grey images, pass X[..., np.newaxis]."
        )


def _as_file(entry: Any, i: int, X: Sequence[Any]) -> Encoded:
    """Return an entry of X as something that can be opened; raise a ValueError if there is none."""
    encoded = as_encoded(entry)
    if encoded is not None:
        return encoded
    if not isinstance(entry, (np.ndarray, Tensor)):
        raise ValueError(
            f"X[{i}] is {describe(entry)}, not a file path, bytes or a PIL image"
            f"{advice_on_entry(entry)}. {FORMS}"
        )
    if entry.ndim > 3:
        joined = "torch.cat(X)" if isinstance(entry, Tensor) else "np.concatenate(X)"
        raise ValueError(
            f"X is a list of batches of images, the first of shape {tuple(entry.shape)}: pass "
            f"{joined}. An explainer's iter_explain takes iter(X)."
        )
    if len({getattr(each, "shape", None) for each in X}) > 1:
        raise ValueError(
            "X is a list of arrays that do not all have the same shape, and arrays of different "
            "sizes cannot be mixed. Pass file paths or PIL images instead, or a torch Dataset "
            "whose items are the arrays."
        )
    stack = "torch.stack(X)" if isinstance(entry, Tensor) else "np.stack(X)"
    raise ValueError(f"X is a list of arrays of shape {tuple(entry.shape)}: pass {stack} instead.")


def _check_files_exist(paths: Sequence[str]) -> None:
    if missing := missing_files(paths):
        raise ValueError(
            f"{len(missing)} of the {len(paths)} file(s) in X do not exist; "
            f"the first is {shown(missing[0])}{advice_on_path(missing[0])}."
        )


def _name(item: Encoded | None, i: int) -> str:
    """Return the name of an image in a message."""
    if isinstance(item, str):
        return shown(item)
    if isinstance(item, bytes):
        return f"X[{i}], of {len(item)} bytes,"
    return f"X[{i}]{', a PIL image,' if item is not None else ''}"
