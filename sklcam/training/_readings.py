"""When the numbers of a step are read: at once, or one step late so as not to wait for a device.

Reading a number waits until the device has computed it. If it is read once the next step is queued,
it is already there, and the device has had work meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochScoring, GradientNormClipping, LRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sklcam.networks.fetching import Fetching
from sklcam.training._logging import SilentableProgressBar
from sklcam.training.averaging import EMA
from sklcam.training.callbacks import ANNOTATED, EpochScore
from sklcam.training.collapse import CollapseWarning

_HOOKS = ("on_batch_begin", "on_grad_computed", "on_batch_end")
_STEPS = ("train_step", "validation_step")
# Hooks that do not use a batch's numbers. The bar does: it shows those of the batch before.
_BLIND = {
    getattr(of, hook)
    for of in (
        *(Callback, CollapseWarning, EMA, EpochScore, EpochScoring, GradientNormClipping),
        *(NeuralNet, SilentableProgressBar),
    )
    for hook in _HOOKS
}


@dataclass
class Reading:
    """Numbers of a step, on their way into the history.

    Parameters
    ----------
    row : dict
        The batch's row of the history.
    phase : {"train", "valid"}
    names : tuple of str
        Names of the numbers. The first, "", is the loss, which skorch records.
    numbers : Tensor of shape (n_numbers,)
    of_masks : sequence of str
        Names of means over all images in which images without a mask count as zero.
    """

    row: dict[str, Any]
    phase: str
    names: tuple[str, ...]
    numbers: Tensor
    of_masks: Sequence[str] = ()
    _coming: Fetching | None = field(default=None, init=False)

    def put_off(self) -> None:
        """Start the transfer: until the numbers are read, the row has NaN for them."""
        self.row.update(dict.fromkeys(self.names[1:], math.nan))
        self._coming = Fetching(self.numbers)

    def read(self) -> float:
        """Write the numbers into the row, and return the loss."""
        # All at once: each read makes the host wait for the device.
        numbers = self.numbers if self._coming is None else self._coming.get()
        read = dict(zip(self.names, numbers.tolist(), strict=True))
        for name in self.names:
            self.row.pop(name, None)
        loss = read.pop("")
        share = read.pop(f"{self.phase}_annotated", None)
        for name in self.of_masks:
            value = read.pop(name, None)
            if value is not None and share:
                read |= {name: value / share, name + ANNOTATED: share}
        self.row |= read
        return loss


class Readings:
    """Decides when the numbers of steps are read.

    Outside :meth:`of_an_epoch`, they are read at once.
    """

    def __init__(self) -> None:
        self._is_late = False
        self._unread: Reading | None = None

    @contextmanager
    def of_an_epoch(self, net: NeuralNet) -> Iterator[None]:
        """Read numbers one step late in the block, if there is a device and nothing needs them."""
        self._is_late = torch.device(net.device or "cpu").type != "cpu" and not _looks(net)
        try:
            yield
        finally:  # also if the epoch is interrupted
            self._is_late = False
            self._read_last()

    def add(self, reading: Reading) -> float:
        """Take the numbers of a queued step; return its loss, or NaN if it is read later."""
        if not self._is_late:
            return reading.read()
        reading.put_off()
        self._read_last()
        self._unread = reading
        return math.nan

    def _read_last(self) -> None:
        last, self._unread = self._unread, None
        if last is not None:
            last.row[f"{last.phase}_loss"] = last.read()


def _looks(net: NeuralNet) -> bool:
    """Whether a callback or class from elsewhere may look at the numbers of batches."""
    methods = (getattr(type(net), name) for name in ("run_single_epoch", *_STEPS))
    is_ours = all(method.__module__.partition(".")[0] == "sklcam" for method in methods)
    told = (net, *(callback for _, callback in net.callbacks_))
    return not is_ours or any(name in vars(net) for name in _STEPS) or any(map(_may_look, told))


def _may_look(told: Any) -> bool:
    hooks = {hook: getattr(type(told), hook, Callback.on_batch_end) for hook in _HOOKS}
    if hooks["on_batch_end"] is LRScheduler.on_batch_end:
        if told.step_every == "batch" and isinstance(told.lr_scheduler_, ReduceLROnPlateau):
            return True
        del hooks["on_batch_end"]
    return any(hook in vars(told) or hooks[hook] not in _BLIND for hook in hooks)
