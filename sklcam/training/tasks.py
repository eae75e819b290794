"""Tasks: what a net can learn about images, with the labels and the loss of each.

A net has one task, which is settled when it is fitted. These objects hold what differs between
tasks in training; how outputs are read is in :mod:`sklcam.networks.readouts`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, r2_score
from torch import Tensor, nn

from sklcam._validation import describe
from sklcam.images.label_sets import as_indicator, as_numbers, kind_of_labels, learn_label_sets
from sklcam.images.labels import check_labels, encode_labels
from sklcam.networks.readouts import Task as TaskName
from sklcam.networks.tasks import is_loss, name_of_loss, tasks_of

Criterion = str | nn.Module | Callable[..., nn.Module]


class Task(ABC):
    """A task to learn.

    Attributes
    ----------
    name : {"multiclass", "binary", "multilabel", "regression"}
    criterion : class of nn.Module
        The loss, unless another is asked for.
    loss_name : str
        Its name in the history.
    outputs_are : str
        The things that need one output each, for messages.
    loss_takes : str
        The arguments of the loss, for messages.
    excludes : bool
        Whether each image has one class, which excludes the others.
    measure : callable
        scikit-learn's default score of predictions: takes labels, predictions and
        ``sample_weight``.
    score_name : str
        The score's name in the history.
    """

    name: ClassVar[TaskName]
    criterion: ClassVar[type[nn.Module]]
    loss_name: ClassVar[str] = "ce"
    outputs_are: ClassVar[str] = "classes"
    loss_takes: ClassVar[str]
    excludes: ClassVar[bool] = False
    measure: ClassVar[Callable[..., Any]] = staticmethod(accuracy_score)
    score_name: ClassVar[str] = "accuracy"

    def read(self, y: Any) -> Any:
        """Check labels as far as can be done before their classes are known."""
        return y

    @abstractmethod
    def learn(self, y: Any, classes: ArrayLike | None) -> np.ndarray:
        """Return the labels of classes, or the names of outputs."""

    @abstractmethod
    def encode(self, y: Any, classes: np.ndarray) -> np.ndarray:
        """Return the labels of images as they are kept for the loss."""

    def n_outputs(self, classes: np.ndarray) -> int:
        """Return how many outputs the network must have."""
        return len(classes)

    def comparable(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return an output and encoded labels of one shape and type, as the loss takes them."""
        return output, y.to(output.dtype)

    def expected(self, y: Any, classes: np.ndarray) -> np.ndarray:
        """Return labels in the form of predictions; an error if they are not of the classes."""
        y = self.read(y)
        self.encode(y, classes)
        return y

    def outcome(self, decided: Tensor, y: Tensor) -> Tensor:
        """Return the little that the score needs to know about each image.

        Parameters
        ----------
        decided : Tensor
            From :meth:`~sklcam.networks.readouts.Readout.decide`.
        y : Tensor
            Encoded labels, on the same device.

        Returns
        -------
        Tensor of shape (n_images, ...)
            Here, whether the prediction is right.
        """
        return (decided == y).reshape(len(y), -1).all(dim=1)

    def score(self, outcomes: Tensor) -> float:
        """Return :attr:`measure` for predictions with these outcomes.

        Parameters
        ----------
        outcomes : Tensor of shape (n_images, ...)
            From :meth:`outcome`.
        """
        return float(outcomes.double().mean())


class OfClasses(Task):
    """One of several classes for each image."""

    excludes = True

    def read(self, y: Any) -> np.ndarray:
        return check_labels(None, y)

    def learn(self, y: np.ndarray, classes: ArrayLike | None) -> np.ndarray:
        learned = np.unique(y if classes is None else np.asarray(classes))
        if len(learned) < 2:
            raise ValueError(
                f"Training needs at least two classes; got one class: {learned.tolist()}."
            )
        return learned

    def encode(self, y: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return encode_labels(y, classes)


class Multiclass(OfClasses):
    """One of several classes, with one output for each."""

    name = "multiclass"
    criterion = nn.CrossEntropyLoss
    loss_takes = "scores of shape (n_images, n_classes) and labels of shape (n_images,), integers"

    def comparable(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return output, y


class Binary(OfClasses):
    """One of two classes, by a single output: the logit, or the probability, of the second."""

    name = "binary"
    criterion = nn.BCEWithLogitsLoss
    outputs_are = "logit of two classes"
    loss_takes = "scores and labels of shape (n_images,), floats"

    def learn(self, y: np.ndarray, classes: ArrayLike | None) -> np.ndarray:
        learned = super().learn(y, classes)
        if len(learned) > 2:
            raise ValueError(
                f"One output tells two classes apart, and there are {len(learned)}: "
                f'{learned.tolist()[:10]}. Use task="multiclass" with its CrossEntropyLoss; if an '
                "image may have several of them, give y as sets of labels."
            )
        return learned

    def n_outputs(self, classes: np.ndarray) -> int:
        return 1

    def comparable(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # Torch would broadcast (n, 1) and (n,) to a table of all pairs.
        return output.reshape(len(y)), y.to(output.dtype)


class Multilabel(Task):
    """Any number of labels per image, with one output for each."""

    name = "multilabel"
    criterion = nn.BCEWithLogitsLoss
    outputs_are = "labels"
    loss_takes = "scores and labels of shape (n_images, n_classes), floats"

    def learn(self, y: Any, classes: ArrayLike | None) -> np.ndarray:
        return learn_label_sets(y, classes)

    def encode(self, y: Any, classes: np.ndarray) -> np.ndarray:
        return as_indicator(y, classes).astype(np.float32)

    def expected(self, y: Any, classes: np.ndarray) -> np.ndarray:
        return as_indicator(y, classes)


class Regression(Task):
    """Numbers, given by the outputs directly."""

    name = "regression"
    criterion = nn.MSELoss
    loss_name = "criterion"
    measure = staticmethod(r2_score)
    score_name = "r2"
    outputs_are = "numbers"
    loss_takes = "outputs and numbers of one shape, floats"

    def read(self, y: Any) -> np.ndarray:
        return as_numbers(y)

    def learn(self, y: np.ndarray, classes: ArrayLike | None) -> np.ndarray:
        n_outputs = 1 if y.ndim == 1 else y.shape[1]
        names = np.arange(n_outputs) if classes is None else np.asarray(classes)
        if names.shape != (n_outputs,) or len(np.unique(names)) < n_outputs:
            raise ValueError(
                f"y has {n_outputs} number(s) per image, and classes must name each of them once; "
                f"got {describe(classes)}."
            )
        return names

    def encode(self, y: np.ndarray, classes: np.ndarray) -> np.ndarray:
        if len(classes) != (1 if y.ndim == 1 else y.shape[1]):
            raise ValueError(
                f"y must have {len(classes)} number(s) per image, as in fit; got {describe(y)}."
            )
        return y.astype(np.float32)

    def comparable(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return output.reshape(y.shape), y.to(output.dtype)

    def outcome(self, decided: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y.to(decided.dtype).reshape(decided.shape), decided], dim=1)

    def score(self, outcomes: Tensor) -> float:
        # Not a mean over batches: the variance is that of all labels.
        if len(outcomes) < 2 or not bool(outcomes.isfinite().all()):
            return math.nan
        # scikit-learn 1.6 does not take tensors.
        return float(self.measure(*outcomes.numpy().swapaxes(0, 1)))


TASKS: dict[str, Task] = {
    task.name: task for task in (Multiclass(), Binary(), Multilabel(), Regression())
}


def task_of_labels(task: str, y: Any, criterion: object) -> TaskName:
    """Return the requested task, or else the one that fits the labels and the loss.

    Two classes are "multiclass" here, unless the loss takes one output; the network may still
    change that.

    Parameters
    ----------
    task : {"auto", "multiclass", "binary", "multilabel", "regression"}
    y : labels in any form
    criterion : "auto", class or instance of a loss, or callable

    Raises
    ------
    ValueError
        If the labels do not tell the task, or the loss is for other tasks.
    """
    if task == "auto":
        task = _settle(kind_of_labels(y), y, criterion)
    fits = tasks_of(criterion)
    if fits is not None and task not in fits:
        name = name_of_loss(criterion)
        if not fits:
            raise ValueError(
                f"{name} takes labels that are neither indices nor 0 and 1. Leave the criterion at "
                f'"auto", which is {TASKS[task].criterion.__name__} for task={task!r}.'
            )
        raise ValueError(
            f"{name} is a loss for task={' or '.join(map(repr, fits))}, and the task is {task!r}. "
            f'Leave the criterion at "auto", which is {TASKS[task].criterion.__name__} then, or '
            "set the task."
        )
    return TASKS[task].name


def _settle(kind: str, y: Any, criterion: object) -> str:
    if kind == "numbers":
        raise ValueError(
            f"Unknown label type: continuous. y holds numbers, {describe(np.asarray(y))}, which "
            'are not labels of classes. Set task="regression" to learn them; if an image may have '
            "several labels, give them as sets, or as a table of 0 and 1."
        )
    # A loss of one output also takes tables.
    is_table = kind == "indicator" and not is_of_one_output(criterion)
    if is_table and (as_indicator(y, learn_label_sets(y)).sum(axis=1) == 1).all():
        raise ValueError(
            "y is a table of 0 and 1 in which every image has exactly one label. For classes that "
            "exclude each other give one label per image, such as y.argmax(axis=1); for labels "
            'that do not, set task="multilabel".'
        )
    if kind != "labels":
        return "multilabel"
    return "binary" if is_of_one_output(criterion) else "multiclass"


def task_of_output(classes: np.ndarray, *, is_single: bool) -> TaskName:
    """Return the task by the network's number of outputs, if none was requested."""
    if not is_single:
        return "multiclass"
    if len(classes) > 2:
        raise ValueError(
            f"module has one output, which cannot tell {len(classes)} classes apart. Give it "
            f"num_classes={len(classes)}. If y holds measured numbers, set "
            'task="regression".'
        )
    return "binary"


def is_of_one_output(criterion: object) -> bool:
    """Whether a loss takes one output for two classes."""
    return "binary" in (tasks_of(criterion) or ())


def takes_logits(criterion: object) -> bool:
    """Whether a loss is known to take logits, to which it applies the sigmoid itself."""
    return is_loss(criterion, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
