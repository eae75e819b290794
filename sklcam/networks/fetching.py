"""Bringing batches to a device and results back without making it stand still.

To read a tensor of a device is to wait until the device has come to it. A copy that is asked for
early comes by itself, while the device has the next batch to go on with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor


class Coming(Protocol):
    """What is on its way to the host, or has been there all along."""

    is_here: bool


AnyComing = TypeVar("AnyComing", bound=Coming)


class Fetching:
    """A tensor on its way to the host.

    Parameters
    ----------
    tensor : Tensor
        On any device. What is written into it from now on does not count.

    Attributes
    ----------
    is_here : bool
        Whether it has been on the host all along.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks.fetching import Fetching
    >>> Fetching(torch.tensor([1.0, 2.0])).get()
    tensor([1., 2.])
    """

    def __init__(self, tensor: Tensor):
        self.is_here = tensor.device.type == "cpu"
        self._arrival: torch.cuda.Event | None = None
        if tensor.is_cuda:
            # Into pinned memory, after all that the stream has to do, and not by the host.
            stream = torch.cuda.current_stream(tensor.device)
            tensor = tensor.to("cpu", non_blocking=True)
            self._arrival = stream.record_event()
        self._tensor = tensor

    def get(self) -> Tensor:
        """Return the tensor on the host, as soon as it is there."""
        if self._arrival is None:
            return self._tensor.cpu()
        self._arrival.synchronize()
        return self._tensor.clone()  # there is little pinned memory, and results may stay for long


def one_behind(coming: Iterable[AnyComing]) -> Iterator[AnyComing]:
    """Yield each when the next is there: a device is asked for more before it is waited for.

    What is on the host is yielded at once.

    Parameters
    ----------
    coming : iterable of Fetching, or of what consists of them

    Yields
    ------
    Fetching
    """
    waiting: AnyComing | None = None
    for each in coming:
        if waiting is not None:
            yield waiting
        waiting = None if each.is_here else each
        if waiting is None:
            yield each
        del each  # before the next is made
    if waiting is not None:
        yield waiting


def fetch_all(tensors: Iterable[Tensor]) -> np.ndarray:
    """Return tensors of batches as one array on the host.

    Parameters
    ----------
    tensors : iterable of Tensor of shape (n_images, ...)

    Returns
    -------
    ndarray of shape (n_images, ...)
    """
    return np.concatenate([each.get().numpy() for each in one_behind(map(Fetching, tensors))])


def sent_to(device: torch.device, images: Tensor) -> Tensor:
    """Return images on a device, to which those of the host are on their way.

    Parameters
    ----------
    device : torch.device
    images : Tensor

    Returns
    -------
    Tensor of the same shape and dtype
    """
    is_here = images.device.type == "cpu"
    if is_here and device.type == "cuda":
        images = images.pin_memory()  # from other memory, the host would do the copying
    return images.to(device, non_blocking=is_here)
