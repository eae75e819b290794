"""Framed images: each at the network's input size, together with its original.

A map is shown on the original, and measured in its frame. Both are therefore read together: an
image is opened once, whatever is needed of it later.
"""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from sklcam.images.items import Items


class FramedImage(NamedTuple):
    """An image at the network's input size, its original, and the size of the original."""

    image: Tensor
    original: Tensor
    size: tuple[int, ...]


class FramedDataset(Dataset[Any]):
    """Images of one size, each with its original.

    Attributes
    ----------
    n_channels : int
    image_size : tuple of int
        Height and width of the images returned; for volumes, depth, height and width.
    uniform_size : tuple of int or None
        The size of all originals, if they are known to have the same one.
    tensor_device : torch.device
        The device of the images.
    items : Items or None
        The items that hold the images, if X is a data set.
    array : ndarray or Tensor, or None
        All images as they were given, if X is an array or a tensor.
    """

    n_channels: int
    image_size: tuple[int, ...]
    uniform_size: tuple[int, ...] | None = None
    tensor_device = torch.device("cpu")
    items: Items | None = None
    array: np.ndarray | Tensor | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read_batch(self, indices: Sequence[int], *, originals: bool = True) -> list[FramedImage]:
        """Read several images, all in one dtype. ``originals`` says if the originals are needed."""

    def read(self, i: int) -> FramedImage:
        """Read image i at the network's input size, with its original."""
        return self.read_batch([i])[0]


class FramedItems(Dataset[Any]):
    """Some rows of a data set for one run over it, with the sizes of the originals.

    Parameters
    ----------
    dataset : FramedDataset
    rows : sequence of int or None, default=None
        The images to read, in this order; None is all.
    originals : bool, default=False
        Whether to return the originals as well. Worker processes would have to transfer them.
    """

    def __init__(
        self, dataset: FramedDataset, rows: Sequence[int] | None = None, *, originals: bool = False
    ):
        self.dataset = dataset
        self.rows = range(len(dataset)) if rows is None else rows
        self.tensor_device = dataset.tensor_device
        self._originals = originals

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        rows = [self.rows[i] for i in indices]
        try:
            read = self.dataset.read_batch(rows, originals=self._originals)
        except Exception as error:
            self._name_row(error, rows)
            if get_worker_info() is None:
                raise
            return Failure.of(error)
        return [
            (image, size, original if self._originals else None) for image, original, size in read
        ]

    def __getitem__(self, i: int) -> tuple[Tensor, Any, Tensor | None]:
        item: tuple[Tensor, Any, Tensor | None] = self.__getitems__([i])[0]
        return item

    def _name_row(self, error: Exception, rows: Sequence[int]) -> None:
        """Add a note to an error that says which image of a batch cannot be read."""
        for row in rows:
            try:
                self.dataset.read_batch([row])
            except Exception:  # any kind, as the first error is the one that is raised
                error.add_note(f"It is image {row} of X that could not be read.")
                return


class Failure(NamedTuple):
    """The result of a worker process for a batch that it could not read.

    A loader would otherwise raise another error, whose message is the whole traceback.
    """

    error: Exception

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return the failure for an error, in a form that can go to another process."""
        told = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # some errors cannot be unpickled
            notes = getattr(error, "__notes__", ())
            error = RuntimeError(f"{type(error).__name__}: {error}")
            for note in notes:
                error.add_note(note)
        error.add_note(f"In a worker process:\n{told}")
        return cls(error)


def collate_framed(items: Any) -> Any:
    """Make a batch of items: the images, and their sizes and originals in place of labels.

    A :class:`Failure` is returned as it is.
    """
    if isinstance(items, Failure):
        return items
    images, sizes, originals = zip(*items, strict=True)
    return torch.stack(images), (list(sizes), list(originals))


def way_to_start(num_workers: int) -> str | None:
    """Return the start method for a loader's processes; None is Python's own choice.

    Within a process of joblib, Python's choice would be joblib's start method, which only joblib
    can use. The system's usual method is returned there.
    """
    if num_workers and multiprocessing.get_start_method(allow_none=True) == "loky":
        return multiprocessing.get_all_start_methods()[0]
    return None
