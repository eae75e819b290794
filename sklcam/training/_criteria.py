"""Criteria: what is known about a loss on classes, and how it weighs images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklcam._validation import check_number, describe, suggestion
from sklcam.images.labels import labels_of_names
from sklcam.networks.dry_run import replaced, unwrap
from sklcam.networks.output_ranges import OutputRanges, is_distribution
from sklcam.networks.tasks import is_loss, name_of_loss, tasks_of
from sklcam.training.tasks import Task, takes_logits

_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_OF_LABELS = (nn.BCEWithLogitsLoss, nn.BCELoss, nn.MultiLabelSoftMarginLoss)


def check_criterion(
    criterion: Callable[..., Any],
    options: Mapping[str, Any],
    task: Task,
    classes: np.ndarray,
    *,
    weighs_images: Sequence[str],
) -> None:
    """Raise a ValueError if a criterion does not have one weight per class.

    It is also raised if the criterion does not return a mean, or cannot return each image's loss
    although images are weighed: by the arguments in ``weighs_images``.
    """
    name = name_of_loss(criterion)
    is_made = isinstance(criterion, nn.Module)
    known = vars(criterion) if is_made else signature(criterion).parameters
    reduction = options.get("reduction", vars(criterion).get("reduction") if is_made else None)
    if weighs_images and ("reduction" not in known or reduction == "sum"):
        raise ValueError(
            f"Images are weighed by {' and '.join(weighs_images)}, each through its own loss, so "
            'the criterion must support reduction="none", as torch\'s do, and be set to a '
            f"mean; got {name}{f' with reduction={reduction!r}' if reduction else ''}."
        )
    if reduction == "none":
        raise ValueError(f'{name} must return one number. Use reduction="mean", its default.')
    for option in ("weight", "pos_weight"):
        weight = options.get(option, getattr(criterion, option, None) if is_made else None)
        if weight is not None and is_loss(criterion, *_OF_CLASSES, *_OF_LABELS):
            _check_weight(weight, option, task, classes)


def _check_weight(weight: Tensor, option: str, task: Task, classes: np.ndarray) -> None:
    if task.name == "binary" and weight.numel() != 1:
        # Torch would take them for the images of a batch.
        raise ValueError(
            f"criterion__{option} has {weight.numel()} numbers for one output. To weigh two "
            f"classes, {classes.tolist()}, give criterion__pos_weight: the second class's weight, "
            "as a multiple of the first one's."
        )
    is_one = task.name != "multiclass" and weight.numel() == 1
    if not is_one and weight.shape != (len(classes),):
        raise ValueError(
            f"criterion__{option} must be one weight for each of {len(classes)} classes, in the "
            f"order of classes_, {classes.tolist()[:10]}; its shape is {tuple(weight.shape)}."
        )
    if not bool((weight.isfinite() & (weight >= 0)).all()) or not bool(weight.any()):
        raise ValueError(
            f"criterion__{option} must be finite, 0 or more, and not all 0; got {weight.tolist()}."
        )


def check_takes_output(
    criterion: object, task: Task, output: Tensor, ranges: OutputRanges, *, nonlinearity: object
) -> None:
    """Raise a ValueError if a loss does not, or may not, suit the network's last layer.

    Parameters
    ----------
    criterion : class or instance of a loss, or callable
    task : Task
    output : Tensor
        The network's output.
    ranges : OutputRanges
        The ranges of the pass that made it.
    nonlinearity : callable, "auto" or None
        What turns outputs into probabilities, as in skorch.
    """
    name, is_sigmoid = name_of_loss(criterion), ranges.are_probabilities(output)
    if task.name == "multiclass" and is_loss(criterion, nn.CrossEntropyLoss):
        if is_distribution(output):
            raise ValueError(
                f"The network ends in a softmax, and {name} applies another: it would learn "
                "slowly and predict wrong probabilities. Remove the softmax from the network, or "
                "give criterion=torch.nn.NLLLoss, which takes probabilities here."
            )
        if is_sigmoid:
            raise ValueError(
                f"The network ends in a sigmoid, and {name} applies a softmax to it. Remove the "
                "sigmoid from the network; or, if its labels do not exclude each other, set "
                'task="multilabel" and criterion=torch.nn.BCELoss.'
            )
    if task.name not in ("binary", "multilabel"):
        return
    if ranges.are_logarithms(output):
        raise ValueError(
            f"The network returns the logarithm of a sigmoid, which {name} does not take. Let the "
            "network return the values before the sigmoid."
        )
    if is_sigmoid and takes_logits(criterion):
        raise ValueError(
            f"The network ends in a sigmoid, and {name} applies another. Remove the sigmoid from "
            "the network, or give criterion=torch.nn.BCELoss."
        )
    if is_sigmoid and tasks_of(criterion) is None and nonlinearity == "auto":
        raise ValueError(
            f"The network ends in a sigmoid, and it is not known whether {name} takes "
            "probabilities. If it does, set predict_nonlinearity=None, so that they are returned "
            "unchanged; or remove the sigmoid from the network."
        )


def _is_of_classes(criterion: object) -> bool:
    return is_loss(criterion, *_OF_CLASSES)


def _classes_weigh(criterion: nn.Module) -> Tensor | None:
    """Return the weights of classes by which a criterion's mean over images is weighted."""
    criterion = unwrap(criterion)
    return criterion.weight if isinstance(criterion, _OF_CLASSES) else None


def equal_weights(criterion: nn.Module, y: Tensor) -> Tensor | None:
    """Return equal weights of images, if classes are weighted.

    Torch's weighted means of a batch's parts do not add up, and are NaN if a part has no weight.
    """
    is_mean = getattr(unwrap(criterion), "reduction", None) == "mean"
    of_classes = _classes_weigh(criterion) if is_mean else None
    return None if of_classes is None else torch.ones(y.shape, device=y.device)


def weights_of_losses(criterion: nn.Module, y: Tensor, weights: Tensor) -> Tensor:
    """Return the weight of each image's loss, including its class's weight.

    Torch divides by these: in its weighted mean, an image counts as many times as its weight says.
    """
    criterion, of_classes = unwrap(criterion), _classes_weigh(criterion)
    weights = weights if of_classes is None else weights * of_classes[y]
    return weights * (y != criterion.ignore_index) if _is_of_classes(criterion) else weights


def weights_of_labels(criterion: nn.Module, y: Tensor, weights: Tensor) -> Tensor | None:
    """Return how much each image's label counts in the loss; None if that is not known.

    Parameters
    ----------
    criterion : nn.Module
    y : Tensor of shape (n_images,)
        Encoded labels, one per image.
    weights : Tensor of shape (n_images,)
        The images' own weights.
    """
    loss, device = unwrap(criterion), y.device
    if type(loss) not in (*_OF_CLASSES, *_OF_LABELS):  # a subclass may weigh them otherwise
        return None
    of_classes = _classes_weigh(loss)
    if of_classes is not None:
        y, weights = y.to(of_classes.device), weights.to(of_classes.device)
    weights = weights_of_losses(loss, y, weights)
    positive = getattr(loss, "pos_weight", None)
    if positive is not None:
        weights = torch.where(y > 0, positive.to(weights.device), 1.0) * weights
    return weights.to(device)


def weights_of_classes(
    class_weight: str | Mapping[Any, float] | None,
    task: Task,
    labels: np.ndarray,
    classes: np.ndarray,
    names: np.ndarray | None,
) -> np.ndarray | None:
    """Return the weight of each class, as scikit-learn's ``class_weight`` means it.

    Parameters
    ----------
    class_weight : "balanced", mapping of labels or names to weights, or None
    task : Task
    labels : ndarray of shape (n_images,)
        Encoded.
    classes : ndarray of shape (n_classes,)
    names : ndarray of shape (n_classes,) or None
        The names of the classes, if they are numbers.

    Returns
    -------
    ndarray of shape (n_classes,), or None if all weigh the same

    Raises
    ------
    ValueError
        If the task does not have one class per image; if a weight is for something that is not a
        class; or if a class has two weights, or a weight that is not a finite number of 0 or more.
    """
    if class_weight is None:
        return None
    if not task.excludes:
        instead = {
            "multilabel": "criterion__pos_weight, how much more each label counts if it is 1",
            "regression": "sample_weight in fit",
        }[task.name]
        raise ValueError(
            f"class_weight weighs images by their class, and the task is {task.name!r}. Give "
            f"{instead}."
        )
    if isinstance(class_weight, str):
        counts = np.bincount(labels, minlength=len(classes))
        n_present = np.count_nonzero(counts)
        shares = len(labels) / (n_present * np.maximum(counts, 1))
        return np.where(counts, shares, 1.0)  # a class without images keeps 1
    known = {label: i for i, label in enumerate(classes.tolist())}
    weights = np.ones(len(classes))
    given: dict[int, Any] = {}
    for label, weight in class_weight.items():
        i = known.get(label)
        if i is None and names is not None and label in names.tolist():
            i = known[labels_of_names([label], classes, names).item()]
        if i is None:
            by_name = [] if names is None else names.tolist()
            raise ValueError(
                f"class_weight has a weight for {label!r}, which is not a class. "
                f"{suggestion(label, [*map(str, known), *by_name])}"
            )
        if i in given:
            raise ValueError(
                f"class_weight has two weights for the same class, {given[i]!r} and {label!r}."
            )
        check_number(f"class_weight[{label!r}]", weight, 0)
        given[i], weights[i] = label, weight
    return weights


def prepared(criterion: object, options: dict[str, Any]) -> dict[str, Any]:
    """Return a criterion's options with its class weights as floats: they may be a list."""
    if not is_loss(criterion, *_OF_CLASSES, *_OF_LABELS):  # others may mean anything by these
        return options
    return {
        name: _as_weights(value, name) if name in ("weight", "pos_weight") else value
        for name, value in options.items()
    }


def _as_weights(weight: Any, name: str) -> Tensor | None:
    if weight is None:
        return None
    try:
        # Arrays are float64, which not every device has.
        return torch.as_tensor(weight).to(torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"criterion__{name} must be one number for each class; got {describe(weight)}."
        ) from None


def per_image(losses: Tensor) -> Tensor:
    """Return the loss of each image: the mean over its outputs, if there are several."""
    return losses if losses.ndim < 2 else losses.flatten(1).mean(dim=1)


@contextmanager
def suited(
    criterion: nn.Module, task: Task, dtype: torch.dtype, *, weighs_images: bool
) -> Iterator[None]:
    """Let a criterion take outputs of this type, and return each image's loss if asked to."""
    criterion, of_classes = unwrap(criterion), _classes_weigh(criterion)
    if of_classes is not None and of_classes.dtype != dtype:
        criterion.weight = of_classes.to(dtype)
    try:
        with replaced(criterion, "reduction", "none") if weighs_images else nullcontext():
            yield
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{type(criterion).__name__} does not take {task.loss_takes}, as torch.nn."
            f"{task.criterion.__name__} does: {error}."
        ) from error
