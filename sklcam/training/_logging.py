"""The history, the log and the progress bar of training."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from skorch import NeuralNet
from skorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    EpochTimer,
    LoadInitState,
    LRScheduler,
    PrintLog,
    ProgressBar,
)
from skorch.utils import Ansi

from sklcam._progress import tqdm
from sklcam.training import _checks as checks
from sklcam.training._freezing import FreezingNet
from sklcam.training._recording import known_length
from sklcam.training.callbacks import EpochMean


class SilentableProgressBar(ProgressBar):
    """One bar for all epochs of a fit, with the remaining time.

    There is none without ``verbose``, nor without a terminal or notebook. skorch's own bar covers
    one epoch, and is also written to files.
    """

    pbar_: Any = None

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.pbar_ = None

    def on_epoch_begin(
        self, net: NeuralNet, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any
    ) -> None:
        if not net.verbose or self.pbar_ is not None:
            return
        total = self.batches_per_epoch
        if total == "auto":
            total = self._get_batches_per_epoch(net, dataset_train, dataset_valid)
        # The total is not known if only batches are counted, or only images.
        known = total != "count" and total > 0
        options: dict[str, Any] = {"total": total * net.max_epochs if known else None}
        # None shows the bar only in a terminal, which a notebook is not.
        disable = False if self._use_notebook() else None
        self.pbar_ = tqdm(leave=False, disable=disable, **options)

    def on_batch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if self.pbar_ is not None:
            super().on_batch_end(net, **kwargs)

    def _get_postfix_dict(self, net: NeuralNet) -> dict[str, Any]:
        # On a device, the numbers of the last batch have not been read yet, and are NaN.
        shown: dict[str, Any] = {}
        for row in net.history[-1]["batches"][-2:]:
            for key in self.postfix_keys:
                if key in row and (key not in shown or not math.isnan(row[key])):
                    shown[key] = row[key]
        return shown

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if self.pbar_ is not None:  # what is printed now needs the line
            self.pbar_.clear()

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if self.pbar_ is not None:
            self.pbar_.close()
            self.pbar_ = None


class PlainPrintLog(PrintLog):
    """skorch's log, in colour only on a screen: elsewhere the colour codes would show.

    A value that an epoch lacks leaves an empty cell; a new one gets a new heading.
    """

    def initialize(self) -> Self:
        super().initialize()
        self.columns_: list[str] = []
        return self

    def table(self, row: Mapping[str, Any]) -> str:
        new = [key for key in self._sorted_keys(row.keys()) if key not in self.columns_]
        if new:
            self.columns_ += new
            self.first_iteration_ = True
        return str(super().table({**dict.fromkeys(self.columns_), **row}))

    def format_row(self, row: Any, key: str, color: str) -> Any:
        formatted = super().format_row(row, key, color)
        if isinstance(formatted, str) and not _is_on_screen():
            formatted = formatted.replace(color, "").replace(Ansi.ENDC.value, "")
        return formatted


def _is_on_screen() -> bool:
    return sys.stdout.isatty() or "ipykernel" in type(sys.stdout).__module__


class ResumedSchedule(LRScheduler):
    """skorch's learning rate schedule, which resumes where earlier training ended.

    Torch's schedules take a step when they are created; the last epoch has already taken it.
    """

    def _get_scheduler(self, net: NeuralNet, policy: Any, **options: Any) -> Any:
        groups = net.optimizer_.param_groups
        for group in groups if net.history else ():
            group.setdefault("initial_lr", group["lr"])  # of an optimizer that was not kept
        before = [{key: value for key, value in each.items() if key != "params"} for each in groups]
        if net.history and self.step_every == "batch":
            options.setdefault("last_epoch", self.batch_idx_ - 1)
        made = super()._get_scheduler(net, policy, **options)
        if net.history:
            for group, values in zip(groups, before, strict=True):
                group.update(values)
            made._last_lr = [group["lr"] for group in groups]  # which the history records
        return made


def resumed(callback: Any) -> Any:
    """Return a skorch schedule that resumes when training does, or any other callback."""
    if type(callback) is not LRScheduler:
        return callback
    # A copy, as the caller's own may be part of another net.
    names = ("policy", "monitor", "event_name", "step_every")
    options = {name: getattr(callback, name) for name in names}
    return ResumedSchedule(**options, **callback.kwargs).initialize()


def _place(callback: Any) -> int:
    """Return a callback's place in the order of calls, whatever order they were given in."""
    if isinstance(callback, LoadInitState):
        return 0  # schedules and scores look at what is loaded
    if isinstance(callback, PrintLog):
        return 4
    if isinstance(callback, EarlyStopping):
        return 3  # nothing comes after it in the epoch that it ends
    return 2 if isinstance(callback, Checkpoint) else 1  # it saves the state after all steps


class LoggingNet(FreezingNet):
    """A skorch net that keeps a history of its losses for callbacks to monitor."""

    _is_whole: bool = False  # whether this fit is all the network's training
    _is_beginning: bool = False
    _n_batches: int | None = None  # of an epoch

    @property
    def history_frame_(self) -> Any:
        """The history as a pandas data frame of one row per epoch; pandas must be installed.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        ImportError
            Without pandas.
        """
        self.check_is_fitted()
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                'history_frame_ needs pandas. It comes with: pip install "sklcam[pandas]"'
            ) from error

        rows = [{key: row[key] for key in row if key != "batches"} for row in self.history]
        return pandas.DataFrame(rows)

    def initialize_callbacks(self) -> Self:
        super().initialize_callbacks()
        found = [(name, resumed(callback)) for name, callback in self.callbacks_]
        self.callbacks_ = sorted(found, key=lambda each: _place(each[1]))
        return self

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_train_begin(net, **kwargs)
        # By now, classes and names among the callbacks have become objects.
        validates = getattr(kwargs.get("X"), "validation", None) is not None
        validates = validates or self.train_split is not None
        checks.check_callbacks(self.callbacks_, validates=validates)
        self._is_beginning = True

    def get_iterator(self, dataset: Any, training: bool = False) -> Iterable[Any]:
        iterator = super().get_iterator(dataset, training=training)
        if training:
            self._n_batches = known_length(iterator)
        elif hasattr(self, "generator_"):  # in fit
            checks.check_validation(iterator)
        return iterator

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        if self._is_beginning:
            self._is_beginning = False
            # By now the training and validation images are known.
            valid = kwargs.get("dataset_valid")
            unrecorded = self._unrecorded(kwargs.get("dataset_train"), valid)
            checks.check_monitors(self.callbacks_, unrecorded, validates=valid is not None)
        super().on_epoch_begin(net, **kwargs)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_epoch_end(net, **kwargs)
        checks.check_losses(self.history, self.lr)

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        losses = [
            EpochMean(f"{phase}_{name}", on_train=phase == "train")
            for phase in ("train", "valid")
            for name in self._names_in_history()
        ]
        scheduled = any(checks.is_scheduler(callback) for callback in self._given_callbacks())
        return [
            ("epoch_timer", EpochTimer()),
            *((loss.name, loss) for loss in losses),
            ("lr_scheduler", None if scheduled else self._default_schedule()),
            ("progress_bar", SilentableProgressBar()),
            ("print_log", PlainPrintLog()),
        ]

    def _names_in_history(self) -> Sequence[str]:
        """Return the names that batches may record and that are averaged over an epoch."""
        return ["loss"]

    def _unrecorded(self, train: Any, valid: Any) -> dict[str, str]:
        """Return the columns that some coming epochs will lack in the history, and why.

        Parameters
        ----------
        train, valid : Dataset or None
            The training and validation data.
        """
        return {}

    def _default_schedule(self) -> LRScheduler | None:
        return None

    def _given_callbacks(self) -> Sequence[Any]:
        given = vars(self).get("callbacks")
        return given if isinstance(given, list | tuple) else ()
