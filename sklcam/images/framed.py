"""Framed images: each at the network's input size, with the picture that it was made from.

A map is shown on the picture, and measured in its frame. So both are read together: an image is
opened once, whatever is asked of it afterwards.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sklcam.images.items import Items


class FramedImage(NamedTuple):
    """An image at the network's input size, and the one that it was made from."""

    image: Tensor
    original: Tensor


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
    """

    n_channels: int
    image_size: tuple[int, ...]
    uniform_size: tuple[int, ...] | None = None
    tensor_device = torch.device("cpu")
    items: Items | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read_batch(self, indices: Sequence[int]) -> list[FramedImage]:
        """Read several images, all returned in one dtype."""

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

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Any, Tensor | None]]:
        return [
            (image, tuple(original.shape[1:]), original if self._originals else None)
            for image, original in self.dataset.read_batch([self.rows[i] for i in indices])
        ]

    def __getitem__(self, i: int) -> tuple[Tensor, Any, Tensor | None]:
        return self.__getitems__([i])[0]


def collate_framed(
    items: Sequence[tuple[Tensor, tuple[int, ...], Tensor | None]],
) -> tuple[Tensor, tuple[list[tuple[int, ...]], list[Tensor | None]]]:
    """Make a batch of items: images, and in the place of labels their sizes and originals."""
    images, sizes, originals = zip(*items, strict=True)
    return torch.stack(images), (list(sizes), list(originals))
