"""Framed images: each at the network's input size, with the picture that it was made from.

A map is shown on the picture, and measured in its frame. So both are read together: an image is
opened once, whatever is asked of it afterwards.
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
    """An image at the network's input size, and the one that it was made from, with its size."""

    image: Tensor
    original: Tensor
    size: tuple[int, ...]


class FramedDataset(Dataset[Any]):
    """Equally sized images, each of which knows its original.

    Attributes
    ----------
    n_channels : int
    image_size : tuple of int
        Height and width of the images returned; depth, height and width of volumes.
    uniform_size : tuple of int or None
        The same of all originals, if they are known to be of one size.
    tensor_device : torch.device
        Where the images are.
    items : Items or None
        What the images are taken out of, if it is a data set.
    array : ndarray or Tensor, or None
        All of them, as they were given, if they were in one.
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
        """Read several images, all returned in one dtype; their originals may not be needed."""

    def read(self, i: int) -> FramedImage:
        """Read image i, at the network's input size and as it was."""
        return self.read_batch([i])[0]


class FramedItems(Dataset[Any]):
    """The rows of a data set that one run over it reads, with the sizes of the originals.

    Parameters
    ----------
    dataset : FramedDataset
    rows : sequence of int or None, default=None
        Which images, in this order; None is all.
    originals : bool, default=False
        Whether the originals come along. Otherwise they stay behind: a worker process would have to
        hand them over.
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
        """Note which of a batch's images cannot be read."""
        for row in rows:
            try:
                self.dataset.read_batch([row])
            except Exception:  # of any kind: it is raised as the error that is there already
                error.add_note(f"It is image {row} of X that could not be read.")
                return


class Failure(NamedTuple):
    """What a worker process hands over in the place of a batch that it could not read.

    A loader would make another error of it, whose message is the whole traceback.
    """

    error: Exception

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return the failure of an error, in a form that goes from one process to another."""
        told = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # some errors cannot be made anew
            notes = getattr(error, "__notes__", ())
            error = RuntimeError(f"{type(error).__name__}: {error}")
            for note in notes:
                error.add_note(note)
        error.add_note(f"In a worker process:\n{told}")
        return cls(error)


def collate_framed(items: Any) -> Any:
    """Make a batch of items: images, and in the place of labels their sizes and originals.

    A :class:`Failure` stays what it is.
    """
    if isinstance(items, Failure):
        return items
    images, sizes, originals = zip(*items, strict=True)
    return torch.stack(images), (list(sizes), list(originals))


def way_to_start(num_workers: int) -> str | None:
    """Return how a loader's processes are to be started; None is as Python would.

    Within one of joblib's processes that is joblib's own way, by which only joblib's can be
    started: there it is the usual one of the system.
    """
    if num_workers and multiprocessing.get_start_method(allow_none=True) == "loky":
        return multiprocessing.get_all_start_methods()[0]
    return None
