"""Bring batches to a device and results back without keeping the device idle.

Reading a tensor from a device waits until the device has computed it. A copy that is started early
arrives on its own, while the device computes the next batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor


class Coming(Protocol):
    """A result that is on its way to the host, or has been there all along."""

    is_here: bool


AnyComing = TypeVar("AnyComing", bound=Coming)


class Fetching:
    """A tensor on its way to the host.

    Parameters
    ----------
    tensor : Tensor
        On any device. Later changes to it do not count.

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
            # Copied into pinned memory by the device, once its stream has finished all else.
            stream = torch.cuda.current_stream(tensor.device)
            tensor = tensor.to("cpu", non_blocking=True)
            self._arrival = stream.record_event()
        self._tensor = tensor

    def get(self) -> Tensor:
        """Return the tensor on the host, as soon as it is there."""
        if self._arrival is None:
            return self._tensor.cpu()
        self._arrival.synchronize()
        return self._tensor.clone()  # pinned memory is scarce, and results may be kept for long


def one_behind(coming: Iterable[AnyComing]) -> Iterator[AnyComing]:
    """Yield each item once the next one is started, so that the device never waits for the host.

    Items that are already on the host are yielded at once.

    Parameters
    ----------
    coming : iterable of Fetching, or of objects that consist of them

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
    """Join the tensors of all batches into one array on the host.

    Parameters
    ----------
    tensors : iterable of Tensor of shape (n_images, ...)

    Returns
    -------
    ndarray of shape (n_images, ...)
    """
    return np.concatenate([each.get().numpy() for each in one_behind(map(Fetching, tensors))])


def sent_to(device: torch.device, images: Tensor) -> Tensor:
    """Return images on a device; those from the host are copied without waiting.

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
        images = images.pin_memory()  # from other memory, the host would copy and wait
    return images.to(device, non_blocking=is_here)
