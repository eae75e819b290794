"""Criteria: what is known of a loss of classes, and how it weighs images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklcam._validation import describe
from sklcam.networks.dry_run import replaced, unwrap

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)


def check_criterion(
    criterion: Callable[..., Any],
    options: Mapping[str, Any],
    classes: np.ndarray,
    *,
    weighs_images: bool,
) -> None:
    """Raise a ValueError if a criterion's weights are not one for each class.

    Or if it returns no mean, or cannot tell the loss of each image, where images have weights.
    """
    name = getattr(criterion, "__name__", type(criterion).__name__)
    is_made = isinstance(criterion, nn.Module)
    known = vars(criterion) if is_made else signature(criterion).parameters
    reduction = options.get("reduction", vars(criterion).get("reduction") if is_made else None)
    if weighs_images and ("reduction" not in known or reduction == "sum"):
        raise ValueError(
            "sample_weight weighs the loss of each image, so that the criterion must have "
            f'reduction="none", as torch\'s have, and be asked for a mean; got {name}'
            f"{f' with reduction={reduction!r}' if reduction else ''}."
        )
    if reduction == "none":
        raise ValueError(f'{name} must return one number: use reduction="mean", its default.')
    weight = options.get("weight", getattr(criterion, "weight", None) if is_made else None)
    if weight is None or not _is_of_classes(criterion):
        return
    if weight.shape != (len(classes),):
        raise ValueError(
            f"criterion__weight must be one weight for each of {len(classes)} classes, in the "
            f"order of classes_, {classes.tolist()[:10]}; its shape is {tuple(weight.shape)}."
        )
    if not bool((weight.isfinite() & (weight >= 0)).all()) or not bool(weight.any()):
        raise ValueError(
            f"criterion__weight must be finite, 0 or more, and not all 0; got {weight.tolist()}."
        )


def _is_of_classes(criterion: object) -> bool:
    is_class = isinstance(criterion, type) and issubclass(criterion, _OF_CLASSES)
    return is_class or isinstance(criterion, _OF_CLASSES)


def _classes_weigh(criterion: nn.Module) -> Tensor | None:
    """Return the weights of classes by which a criterion's mean over images is weighted."""
    criterion = unwrap(criterion)
    return criterion.weight if isinstance(criterion, _OF_CLASSES) else None


def equal_weights(criterion: nn.Module, y: Tensor) -> Tensor | None:
    """Return equal weights of images, if classes are weighted.

    Torch's own means of a batch's parts do not add up, and are NaN where a part weighs nothing.
    """
    is_mean = getattr(unwrap(criterion), "reduction", None) == "mean"
    of_classes = _classes_weigh(criterion) if is_mean else None
    return None if of_classes is None else torch.ones(y.shape, device=y.device)


def weights_of_losses(criterion: nn.Module, y: Tensor, weights: Tensor) -> Tensor:
    """Return how much the loss of each image weighs, by its class as well.

    Torch divides by these: its weighted mean is that of images as often as their weight.
    """
    criterion, of_classes = unwrap(criterion), _classes_weigh(criterion)
    weights = weights if of_classes is None else weights * of_classes[y]
    return weights * (y != criterion.ignore_index) if _is_of_classes(criterion) else weights


def prepared(criterion: object, options: dict[str, Any]) -> dict[str, Any]:
    """Return a criterion's options, its weights of classes as floats: they may come as a list."""
    weight = options.get("weight")
    if weight is None or not _is_of_classes(criterion):  # one of your own may mean anything by it
        return options
    try:
        weight = torch.as_tensor(weight)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"criterion__weight must be one number for each class; got {describe(weight)}."
        ) from None
    # Arrays are float64, which not every device has.
    return {**options, "weight": weight.to(torch.get_default_dtype())}


@contextmanager
def suited(criterion: nn.Module, dtype: torch.dtype, *, per_image: bool) -> Iterator[None]:
    """Let a criterion take outputs of this type, and return the loss of each image if asked to."""
    criterion, of_classes = unwrap(criterion), _classes_weigh(criterion)
    if of_classes is not None and of_classes.dtype != dtype:
        criterion.weight = of_classes.to(dtype)
    try:
        with replaced(criterion, "reduction", "none") if per_image else nullcontext():
            yield
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{type(criterion).__name__} does not take scores of shape (n_images, n_classes) and "
            f"labels of shape (n_images,), integers, as torch.nn.CrossEntropyLoss does: {error}."
        ) from error
