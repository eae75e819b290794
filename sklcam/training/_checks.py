"""Checks before training: parameters, callbacks and batches that would fail later are refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

import skorch.callbacks.lr_scheduler
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch
from skorch.callbacks import LRScheduler, PassthroughScoring
from skorch.callbacks.scoring import ScoringBase
from skorch.history import History
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader, Dataset, Subset

from sklcam._callers import level_of_user
from sklcam._validation import describe, suggestion
from sklcam.images.views import ViewSampler
from sklcam.networks.dry_run import unwrap
from sklcam.training._data import TrainingImages, Validation
from sklcam.training._recording import known_length

_PLATEAUS = ("ReduceLROnPlateau", torch.optim.lr_scheduler.ReduceLROnPlateau)
_OURS = ("skorch", "sklcam")  # whose callbacks say what they record
_VALIDATION_ELSEWHERE = frozenset(
    ("validation_data", "validation_split", "valid", "val", "eval_set", "X_val", "X_valid")
)


def check_validates(validation: Any, train_split: object) -> bool:
    """Return whether there are images to validate on; a ValueError if there are two sets."""
    if validation is not None and train_split is not None:
        raise ValueError(
            f"There are validation images already, and train_split={train_split!r} would hold out "
            "more from X. Leave one of the two out."
        )
    return validation is not None or train_split is not None


def check_train_split(train_split: object) -> None:
    """Raise a ValueError if train_split holds validation images instead of a splitter."""
    if isinstance(train_split, tuple | Dataset | Bunch):
        raise ValueError(
            f"train_split must be a splitter of X; got {describe(train_split)}. Give validation "
            "images to fit: fit(X, y, validation=(X_val, y_val))."
        )


def check_fit_params(fit_params: Mapping[str, Any]) -> None:
    """Raise a ValueError for other libraries' names of validation images."""
    for name in sorted(_VALIDATION_ELSEWHERE & fit_params.keys()):
        raise ValueError(
            f"fit does not take {name}. Give validation=(X_val, y_val), or hold out part of X with "
            "train_split=skorch.dataset.ValidSplit(0.2, stratified=True)."
        )


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Let ValueErrors in the block say which of several arguments they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def warn_of_masks(validation: Validation) -> None:
    """Warn about masks and boxes that no loss uses."""
    if validation.masks is not None or validation.boxes is not None:
        warnings.warn(
            "validation: masks and boxes are not used, as no term computed in validation needs "
            'them. mask_loss="energy" does, with gamma > 0; terms on gradients at the pixels are '
            "computed only in training.",
            stacklevel=level_of_user(),
        )


def check_callbacks(callbacks: Iterable[Any], *, validates: bool) -> None:
    """Raise a ValueError for callbacks that would fail in the first epoch."""
    for callback in callbacks:
        callback = callback[1] if isinstance(callback, tuple) else callback
        name, monitor = type(callback).__name__, monitor_of(callback)
        policy = getattr(callback, "policy", None)
        named = policy if isinstance(callback, LRScheduler) and isinstance(policy, str) else None
        if named is not None and not hasattr(skorch.callbacks.lr_scheduler, named):
            raise ValueError(
                f"LRScheduler({policy!r}): skorch knows no schedule by that name. Give the class, "
                f"LRScheduler(torch.optim.lr_scheduler.{policy}, ...)."
            )
        if not validates and isinstance(monitor, str) and monitor.startswith("valid_"):
            raise ValueError(
                f"{name} monitors {monitor!r}, but there are no validation images. Call fit(X, y, "
                "validation=(X_val, y_val)), set train_split=skorch.dataset.ValidSplit(5, "
                'stratified=True), or monitor training, as in monitor="train_loss".'
            )


def monitor_of(callback: Any) -> Any:
    """Return the column of the history that a callback monitors, if any."""
    is_plateau = getattr(callback, "policy", None) in _PLATEAUS
    if isinstance(callback, LRScheduler) and not is_plateau:
        return None  # others monitor nothing
    return getattr(callback, "monitor", None)


def check_monitors(
    callbacks: Sequence[tuple[str, Any]], unrecorded: Mapping[str, str], *, validates: bool
) -> None:
    """Raise a ValueError if a monitored column is not recorded, or has the wrong direction.

    Parameters
    ----------
    callbacks : sequence of (str, Callback)
        All callbacks of the net.
    unrecorded : mapping of str to str
        Columns that some epochs do not record, and why.
    validates : bool
        Whether there are images to validate on.
    """
    scored = [
        (getattr(each, "name_", None) or each.name, each.lower_is_better)
        for _, each in callbacks
        if isinstance(each, PassthroughScoring | ScoringBase) and (validates or each.on_train)
    ]
    # Whether lower is better, by name.
    is_better = {name: lower for name, lower in scored if name not in unrecorded}
    events = [getattr(each, "event_name", None) for _, each in callbacks]
    known = {*is_better, *(f"{name}_best" for name in is_better), *filter(None, events)}
    known |= {"epoch", "dur", "train_batch_count", "valid_batch_count"}
    # A user's callback may record whatever it likes.
    is_complete = all(type(each).__module__.split(".")[0] in _OURS for _, each in callbacks)
    for _, callback in callbacks:
        monitor, kind = monitor_of(callback), type(callback).__name__
        if not isinstance(monitor, str):
            continue
        name = monitor.removesuffix("_best")
        if why := unrecorded.get(name):
            raise ValueError(f"{kind} monitors {monitor!r}, which {why}")
        if monitor not in known and (is_complete or name in unrecorded):
            raise ValueError(
                f"{kind} monitors {monitor!r}, which is not recorded. {suggestion(monitor, known)} "
                f"For each of {', '.join(sorted(is_better))}, the history also records whether it "
                "is the best so far, as in 'train_loss_best'."
            )
        lower = getattr(callback, "lower_is_better", None)
        option = "lower_is_better"
        if isinstance(callback, LRScheduler):
            lower, option = callback.kwargs.get("mode", "min") == "min", "mode"
        # Only a default is checked: whoever wants a loss to rise has said so.
        if lower and is_better.get(monitor) is False:
            value = "'max'" if option == "mode" else "False"
            raise ValueError(
                f"{kind} monitors {monitor!r}, where higher is better, but takes lower values as "
                f"better. Set {option}={value}."
            )


def check_scaling(precision: str, optimizer: object) -> None:
    """Raise a ValueError for an optimizer that cannot be combined with loss scaling."""
    if precision == "fp16" and optimizer is torch.optim.LBFGS:
        raise ValueError(
            'precision="fp16" scales the loss of each step, and LBFGS evaluates several losses '
            'per step. Use "bf16" or another optimizer.'
        )


def check_axes(size: tuple[int, ...], module: object, augment: object) -> None:
    """Raise a ValueError for options that are only for pictures, if volumes are asked for."""
    if len(size) == 2:
        return
    volumes = f"image_size={size} is for volumes"
    if isinstance(module, str):
        raise ValueError(
            f"{volumes}, and networks given by name, such as {module!r}, take pictures. Give "
            "module= a network for volumes, such as monai.networks.nets.DenseNet121, with "
            "module__spatial_dims=3."
        )
    if isinstance(augment, ViewSampler) and augment.changes_colors:
        raise ValueError(
            f"{volumes}, which have no colours, and augment={augment!r} changes colours. Use a "
            "ViewSampler that does not."
        )


def check_window(alpha: object, size: tuple[int, ...]) -> None:
    """Raise a ValueError if maps to compare are smaller than SSIM's window."""
    if alpha and min(size) < 11:
        raise ValueError(
            "alpha > 0 compares maps by SSIM, in windows of 11 pixels; got image_size="
            f"{size}. Use a larger image_size: small images are resized to it."
        )


def check_batches(
    iterator: object,
    module: nn.Module,
    n_parts: int,
    sample: Tensor,
) -> None:
    """Raise a ValueError if a step's single image would be normalised by its own statistics.

    Parameters
    ----------
    iterator : DataLoader
        Other iterators are not checked.
    module : nn.Module
    n_parts : int
        How many parts a batch is divided into.
    sample : Tensor of shape (1, channels, height, width)
    """
    batch_size = getattr(iterator, "batch_size", None)
    if not isinstance(iterator, DataLoader) or batch_size is None:
        return
    n_images = known_length(iterator.sampler)
    if n_images is None:  # a user's sampler may not say
        return
    rest = n_images % batch_size
    sizes = ([batch_size] if n_images >= batch_size else []) + (
        [rest] if rest and not iterator.drop_last else []
    )
    if not sizes:
        raise ValueError(
            f"iterator_train__drop_last=True drops all {n_images} training images, as "
            f"batch_size={batch_size}. Use a smaller batch_size."
        )
    smallest = min(size // min(n_parts, size) for size in sizes)
    if smallest != 1 or not any(isinstance(part, _NormBase) for part in module.modules()):
        return
    trial = copy.deepcopy(unwrap(module)).train()  # a copy: training mode changes statistics
    try:
        with torch.no_grad():
            trial(sample)
    except ValueError as error:  # torch's "Expected more than 1 value per channel when training"
        raise ValueError(
            f"With {n_images} training images, batch_size={batch_size} (in {n_parts} parts) leaves "
            "a pass with a single image, which batch normalisation cannot handle: it would "
            "normalise by a single value. Choose another batch_size, or drop the last batch with "
            "iterator_train__drop_last=True."
        ) from error


def check_validation(iterator: object) -> None:
    """Raise a ValueError if no validation batch is left, so that there would be no loss."""
    dataset: Any = getattr(iterator, "dataset", None)
    if isinstance(iterator, DataLoader) and known_length(iterator) == 0:
        raise ValueError(
            f"iterator_valid__drop_last=True drops all {len(dataset)} images to validate on, as "
            f"batch_size={iterator.batch_size}. Leave it out."
        )


def check_weighs(iterator: object) -> None:
    """Raise a ValueError if all training or all validation images have a weight of 0."""
    images: Any = getattr(iterator, "dataset", None)
    rows: Any = slice(None)
    if isinstance(images, Subset):
        images, rows = images.dataset, images.indices
    weights = images.weights if isinstance(images, TrainingImages) else None
    if weights is not None and not weights[rows].any():
        raise ValueError(
            "All training images, or all validation images, have a weight of 0 (by sample_weight "
            "or class_weight), so there is no loss. Give some of each a weight above 0, or "
            "choose another train_split."
        )


def check_learns(module: nn.Module) -> None:
    """Raise a ValueError if a network is to be trained whose output has no gradient."""
    # A fully frozen network may be trained for the parameters of its loss.
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(
            f"No gradient leads from the output of {type(module).__name__} to its parameters, so "
            "it would not learn. Remove torch.no_grad() or detach() from its forward."
        )


def check_losses(history: History, lr: float) -> None:
    """Warn if the last epoch has a NaN or infinite loss: once, in the first such epoch."""
    epochs = [[batch.get("train_loss", 0.0) for batch in each["batches"]] for each in history[-2:]]
    *before, lost = [[i for i, loss in enumerate(each) if not isfinite(loss)] for each in epochs]
    if lost and not any(before):
        warnings.warn(
            f"The loss is {epochs[-1][lost[0]]} in epoch {len(history)}, first in batch "
            f"{lost[0] + 1} of {len(epochs[-1])}. Weights that have become NaN do not recover. "
            f"Make lr smaller; it is {lr}. Or check the criterion: NLLLoss takes probabilities.",
            ConvergenceWarning,
            stacklevel=level_of_user(),
        )


def is_scheduler(callback: Any) -> bool:
    """Whether it is a learning rate scheduler, in any form that skorch takes."""
    callback = callback[1] if isinstance(callback, tuple) else callback
    is_class = isinstance(callback, type) and issubclass(callback, LRScheduler)
    return is_class or isinstance(callback, LRScheduler)
