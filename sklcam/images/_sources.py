"""The forms that X may have, each as a source of single images."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from sklcam.images._pixels import (
    MAX_CHANNELS,
    Reading,
    check_pages,
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
from sklcam.images.framed import FramedDataset

# Small images are copied and resized together, this many values at a time: each call has a cost of
# its own. With more, floats no longer fit in the caches.
_STACK_VALUES = 2**17

_FORMS = (
    "X may be a uint8 array, or a float array in [0, 1], of shape (n_samples, height, width) or "
    "(n_samples, height, width, n_channels); a uint8 or float torch tensor of shape "
    "(n_samples, n_channels, height, width); a list of file paths or PIL images; or a map-style "
    "torch Dataset of images."
)


class Source(ABC):
    """The images of one form of X, in their own sizes."""

    n_channels: int
    uniform_size: tuple[int, int] | None = None
    device = torch.device("cpu")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def check(self) -> None:
        """Do the checks that look further than the container: at pixels, or at the disk."""

    @abstractmethod
    def read(self, i: int) -> Tensor:
        """Return image i, (n_channels, height, width), uint8 or float32, in memory of its own."""

    def read_stacks(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """Yield images in their order, as many to a stack as are best resized together."""
        for i in indices:
            yield self.read(i)[None]

    @abstractmethod
    def size(self, i: int) -> tuple[int, int]:
        """Return the height and width of image i."""


class ArraySource(Source):
    """Images of one size in an array or a tensor, whichever: both index and reduce alike."""

    def __init__(self, X: np.ndarray | Tensor, reading: Reading) -> None:
        _check_batch_shape(X)
        self._channels = locate_channels(X[0], "X", reading.channels, batch=tuple(X.shape))
        check_pixel_dtype(X, "X")
        self._background = reading.background
        self._images = X.detach().as_subclass(Tensor) if isinstance(X, Tensor) else X
        first = self.read(0)
        self.n_channels, height, width = first.shape
        self.uniform_size = self._size = (height, width)
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
            # A list of rows makes a copy, which a large image, alone in its stack, is spared.
            stack = self._images[rows] if len(rows) > 1 else self._images[rows[0]][None]
            # Grey arrays have no axis of channels: the last of a stack would be taken for it.
            stack = stack if stack.ndim == 4 else stack[..., np.newaxis]
            yield copy_channels_first(stack, self._channels, self._background)

    def size(self, i: int) -> tuple[int, int]:
        return self._size


class FileSource(Source):
    """File paths and PIL images, read as RGB."""

    n_channels = 3

    def __init__(self, X: Sequence[Any], reading: Reading) -> None:
        self._background = reading.background
        self._items = [_check_file_or_image(item, i, X) for i, item in enumerate(X)]

    def __len__(self) -> int:
        return len(self._items)

    def check(self) -> None:
        # Later, a missing file would end a training that has run for hours.
        _check_files_exist([item for item in self._items if isinstance(item, str)])
        for i, item in enumerate(self._items):
            if isinstance(item, Image.Image):
                # An opened one holds a file handle, which worker processes cannot share.
                with naming(self._name(i)):
                    self._items[i] = load_upright(item)

    def read(self, i: int) -> Tensor:
        with self._opened(i) as image:
            return rgb_tensor(image, self._background)

    def size(self, i: int) -> tuple[int, int]:
        with self._opened(i) as image:
            return upright_size(image)

    @contextmanager
    def _opened(self, i: int) -> Iterator[Image.Image]:
        item = self._items[i]
        with naming(self._name(i)):
            if isinstance(item, Image.Image):
                yield item
            else:
                with Image.open(item) as image:
                    check_pages(image)
                    yield image

    def _name(self, i: int) -> str:
        item = self._items[i]
        return f"X[{i}], a PIL image," if isinstance(item, Image.Image) else repr(item)


class LazySource(Source):
    """A map-style torch data set, or any other sequence that makes its images when asked."""

    def __init__(self, X: Any, reading: Reading) -> None:
        self._dataset = X
        self._n_images = len(X)
        self._reading = reading
        self._hint = _transform_to_blame(X)

    def __len__(self) -> int:
        return self._n_images

    def check(self) -> None:
        # The only item to be read in advance: a network is built for its number of channels.
        first = self._tensor(0)
        self.n_channels, self.device = len(first), first.device

    def read(self, i: int) -> Tensor:
        image = self._tensor(i)
        if len(image) != self.n_channels:
            raise ValueError(f"X[{i}] has {len(image)} channel(s), but X[0] has {self.n_channels}.")
        return image

    def size(self, i: int) -> tuple[int, int]:
        _, height, width = self.read(i).shape
        return height, width

    def _tensor(self, i: int) -> Tensor:
        item = self._dataset[i]  # the image, and mostly its label
        image = item[0] if isinstance(item, (tuple, list)) and item else item
        return item_tensor(image, f"X[{i}]", self._reading, self._hint)


class Rows(Source):
    """Some of the images of another source."""

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self._source, self._rows = source, rows
        self.n_channels, self.uniform_size = source.n_channels, source.uniform_size
        self.device = source.device

    def __len__(self) -> int:
        return len(self._rows)

    def check(self) -> None:
        """Do nothing: it was checked when it was opened."""

    def read(self, i: int) -> Tensor:
        return self._source.read(self._rows[i])

    def read_stacks(self, indices: Sequence[int]) -> Iterator[Tensor]:
        return self._source.read_stacks([self._rows[i] for i in indices])

    def size(self, i: int) -> tuple[int, int]:
        return self._source.size(self._rows[i])


def open_source(X: Any, reading: Reading | None = None) -> Source:
    """Return the source for X, after the checks that need neither pixels nor the disk."""
    source: Source
    opened = getattr(X, "source", None) if isinstance(X, FramedDataset) else None
    if isinstance(opened, Source):  # how it is read was said when it was opened
        return opened
    reading = reading or Reading()
    if isinstance(X, Tensor) or (isinstance(X, np.ndarray) and X.dtype.kind not in "OSTU"):
        source = ArraySource(X, reading)
    elif isinstance(X, (list, tuple)) or (isinstance(X, np.ndarray) and X.ndim == 1):
        source = FileSource(list(X), reading)
    elif (files := _files_of(X)) is not None:
        source = FileSource(files, reading)
    elif _is_lazy(X):
        source = LazySource(X, reading)
    else:
        raise ValueError(f"{_diagnose(X)} {_FORMS}")
    if len(source) == 0:
        raise ValueError("X is empty: at least one image is needed.")
    return source


def _files_of(X: Any) -> list[str] | None:
    """Return the files of a data set that only reads them, as torchvision's ImageFolder.

    Its own reader shows the hidden colours of transparent files.
    """
    if isinstance(X, Subset):
        files = _files_of(X.dataset)
        return None if files is None else [files[i] for i in X.indices]
    if type(X) is ImageFolder and X.loader is default_loader and X.transforms is None:
        return [path for path, _ in X.samples]
    return None


def _transform_to_blame(dataset: Any) -> str:
    """Say what to do about a data set's transform if its images are out of range."""
    while not hasattr(dataset, "transform") and hasattr(dataset, "dataset"):  # such as a Subset
        dataset = dataset.dataset
    transform = getattr(dataset, "transform", None)
    if transform is None:
        return ""
    steps = [type(step).__name__ for step in getattr(transform, "transforms", [transform])]
    blamed = "Normalize" if "Normalize" in steps else ", ".join(steps)
    return (
        f" The data set's transform makes them so: take {blamed} out of it. Estimators normalise "
        "images themselves, by mean= and std=."
    )


def _is_lazy(X: Any) -> bool:
    if isinstance(X, Dataset):
        return isinstance(X, Sized) and not isinstance(X, IterableDataset)
    # These are sequences as well, and never of images.
    return isinstance(X, Sequence) and not isinstance(X, (str, bytes, bytearray, memoryview, range))


def _diagnose(X: Any) -> str:
    """Say what X is, when it is not a form of images, and what may have been meant."""
    name = f"{type(X).__module__}.{type(X).__qualname__}".removeprefix("builtins.")
    if isinstance(X, (str, bytes, os.PathLike)):
        return f"X is one file path, {X!r}: wrap it in a list, X=[path]."
    if isinstance(X, Image.Image):
        return "X is one PIL image: wrap it in a list, X=[image]."
    if isinstance(X, np.ndarray):
        return (
            f"X is an array of dtype {X.dtype} and shape {X.shape}, whose entries are not pixels."
        )
    if isinstance(X, Dataset):
        return f"X is {name}, a data set without length or indices: a map-style Dataset is needed."
    if name.startswith("pandas."):
        return f"X is a {name}: if a column holds file paths, pass X[column].tolist()."
    if hasattr(X, "tocsr"):
        return f"X is a sparse matrix ({name}): tables are not images."
    if isinstance(X, Iterator):
        return f"X is a {name}, which has no length: pass list(X)."
    return "X is None." if X is None else f"X is a {name}."


def _check_batch_shape(X: np.ndarray | Tensor) -> None:
    if X.ndim == 2:
        raise ValueError(
            f"X has shape {tuple(X.shape)}: tables are not images. If each row is a flattened "
            "image, reshape to (n_samples, height, width); if it is one grey image, pass "
            f"{'X[None, None]' if isinstance(X, Tensor) else 'X[np.newaxis]'}."
        )
    if X.ndim == 3 and isinstance(X, Tensor):
        raise ValueError(
            f"X is 3-dimensional, of shape {tuple(X.shape)}. If it is one image, pass X[None]; if "
            f"it is several grey ones, X[:, None]. {_FORMS}"
        )
    if X.ndim not in (3, 4):
        raise ValueError(f"X is {X.ndim}-dimensional, of shape {tuple(X.shape)}. {_FORMS}")
    if len(X) == 0:
        raise ValueError(f"X is empty, of shape {tuple(X.shape)}: at least one image is needed.")
    # Grey images of so few columns, beside so many rows, would be odd ones.
    if X.ndim == 3 and 0 < X.shape[2] <= MAX_CHANNELS < X.shape[1]:
        raise ValueError(
            f"X is an array of shape {X.shape}, which seems to be one image with its channels "
            "last: pass X[np.newaxis]. If it is several grey images, pass X[..., np.newaxis]."
        )


def _check_file_or_image(item: Any, i: int, X: Sequence[Any]) -> str | Image.Image:
    path = os.fspath(item) if isinstance(item, (str, os.PathLike)) else item
    if isinstance(path, str | Image.Image):
        return path
    if not isinstance(item, (np.ndarray, Tensor)):
        raise ValueError(
            f"X[{i}] is a {type(item).__name__}, not a file path or a PIL image. {_FORMS}"
        )
    if len({getattr(item, "shape", None) for item in X}) > 1:
        raise ValueError(
            "X is a list with arrays in it that are not all of one shape: arrays of different "
            "sizes cannot be mixed. Pass file paths or PIL images instead."
        )
    stack = "torch.stack(X)" if isinstance(item, Tensor) else "np.stack(X)"
    raise ValueError(f"X is a list of arrays of shape {tuple(item.shape)}: pass {stack} instead.")


def _check_files_exist(paths: Sequence[str]) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        is_folder = os.path.isdir(missing[0])
        hint = ", a folder: sklcam.datasets.load_class_folders lists the images in one"
        raise ValueError(
            f"{len(missing)} of the {len(paths)} file(s) in X do not exist, "
            f"the first is {missing[0]!r}{hint if is_folder else ''}."
        )
