"""What a network that somebody else has trained is for: which task, and what its outputs are.

It is settled once, by what a user says, what the network says of itself, and what is seen of its
output and of the labels. What cannot be settled is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from sklcam.images.label_sets import as_indicator, kind_of_labels, learn_label_sets
from sklcam.networks.output_ranges import is_distribution
from sklcam.networks.precision import at_least_float32
from sklcam.networks.readouts import Readout, Task, Unread, readout

# Rounding may take probabilities this far out of [0, 1].
_TOLERANCE = 1e-3

# What Hugging Face's configurations call the tasks.
_PROBLEM_TYPES: Mapping[str, Task] = {
    "single_label_classification": "multiclass",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}
# Of these losses it is known what they are for, and so what they are not for.
_LOSSES: Mapping[type[nn.Module], tuple[Task, ...]] = {
    nn.CrossEntropyLoss: ("multiclass",),
    nn.NLLLoss: ("multiclass",),
    nn.MultiMarginLoss: ("multiclass",),
    nn.BCEWithLogitsLoss: ("binary", "multilabel"),
    nn.BCELoss: ("binary", "multilabel"),
    nn.MultiLabelSoftMarginLoss: ("multilabel",),
    nn.MSELoss: ("regression",),
    nn.L1Loss: ("regression",),
    nn.SmoothL1Loss: ("regression",),
    nn.HuberLoss: ("regression",),
    nn.PoissonNLLLoss: ("regression",),
    nn.SoftMarginLoss: (),  # its labels are -1 and 1
    nn.MultiLabelMarginLoss: (),  # its labels are lists of indices, filled up
}


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of a network when its task is to be settled.

    Parameters
    ----------
    output : Tensor
        The network's own, for a sample.
    is_sigmoid : bool, default=False
        Whether it is the output of a sigmoid.
    is_log_sigmoid : bool, default=False
        Whether it is the logarithm of one.
    task : str, default="auto"
        What a user says: see :class:`~sklcam.CAMExplainer`.
    form : {"auto", "logits", "probabilities"}, default="auto"
        What a user says that outputs are.
    y : labels of any kind, or None, default=None
    classes : array-like or None, default=None
        The labels that a user gives the outputs.
    """

    output: Tensor
    is_sigmoid: bool = False
    task: Task | Literal["auto"] = "auto"
    form: Literal["auto", "logits", "probabilities"] = "auto"
    y: Any = None
    classes: Any = None
    is_log_sigmoid: bool = False

    @property
    def n_outputs(self) -> int | None:
        """How many outputs the network has; None if it is not some for each image."""
        if self.output.ndim < 2:  # squeezed, it may even lose the axis of a single image
            return 1
        return self.output.shape[1] if self.output.ndim == 2 else None


def settle(evidence: Evidence, said: Task | None) -> Readout:
    """Decide how a network's outputs are read.

    Parameters
    ----------
    evidence : Evidence
    said : str or None
        The task that the network itself says.

    Returns
    -------
    Readout

    Raises
    ------
    ValueError
        If the task cannot be settled, or the network cannot have it.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks.tasks import Evidence, settle
    >>> settle(Evidence(torch.zeros(1, 3)), None).task
    'multiclass'
    >>> settle(Evidence(torch.zeros(1, 1), y=[0, 1, 1]), None).task
    'binary'
    """
    n_outputs = evidence.n_outputs
    if evidence.task == "detection":
        raise ValueError(
            'task="detection" is for the detectors of torchvision.models.detection, or networks '
            "that derive from them; explain what another one returns by a callable target."
        )
    if "segmentation" in (evidence.task, said if evidence.task == "auto" else None):
        return _of_pixels(evidence)
    if n_outputs is None or n_outputs == 0:
        if evidence.task != "auto":
            raise ValueError(
                f"task={evidence.task!r} is for an output of one row of numbers an image; the "
                f'network\'s has shape {tuple(evidence.output.shape)}. Leave task at "auto" and '
                "explain it by a callable target."
            )
        return Unread()
    task = said if evidence.task == "auto" else evidence.task
    if task is None:
        task = _task_of(evidence, n_outputs)
    if task == "binary" and n_outputs > 1:
        raise ValueError(
            f'task="binary" is for a network of one output, and this one has {n_outputs}. Two that '
            'exclude each other are "multiclass"; two that do not, "multilabel".'
        )
    if task == "multiclass" and n_outputs == 1:
        raise ValueError(
            'task="multiclass" takes a softmax, which for one output is always 1: use '
            'task="binary" if it tells two classes apart, or "regression" if it is a number.'
        )
    return readout(task, is_probability=_is_probability(evidence, task))


def _of_pixels(evidence: Evidence) -> Readout:
    output = evidence.output
    if output.ndim != 4 or not output.shape[1] or output.shape[2] * output.shape[3] < 2:
        raise ValueError(
            'task="segmentation" is for an output of shape (n_images, n_classes, height, width), '
            f"with several places; the network's has shape {tuple(output.shape)}."
        )
    pixels = replace(evidence, output=output.movedim(1, -1).flatten(0, -2))
    task: Task = "multiclass" if output.shape[1] > 1 else "binary"
    return readout("segmentation", is_probability=_is_probability(pixels, task))


def _task_of(evidence: Evidence, n_outputs: int) -> Task:
    """Return the task that nobody has named."""
    kind = None if evidence.y is None else kind_of_labels(evidence.y)
    if kind == "numbers" and isinstance(evidence.y, list | tuple) and _holds_integers(evidence.y):
        raise ValueError(
            "y has rows of integers, which may be labels that an image has several of, or numbers. "
            'If they are labels, give sets, [{3, 5}, {5}]; if they are numbers, task="regression".'
        )
    if kind == "numbers":
        return "regression"
    if kind in ("indicator", "label sets"):
        if is_distribution(evidence.output):
            raise ValueError(
                "y has several labels for an image, and the network's probabilities are of classes "
                "that exclude each other, as they add up to 1. If they do, set "
                'task="multiclass", with one label per image in y; otherwise task="multilabel".'
            )
        rows = as_indicator(evidence.y, learn_label_sets(evidence.y))
        if kind == "indicator" and (rows.sum(axis=1) == 1).all():
            warnings.warn(
                "y is a table of 0 and 1 in which every image has exactly one label, and each is "
                "read by a sigmoid of its own. If they are classes that exclude each other, give "
                'one label per image, y.argmax(axis=1); or set task="multilabel".',
                stacklevel=2,
            )
        return "multilabel"
    if n_outputs > 1 and kind == "labels" and evidence.is_sigmoid:
        raise ValueError(
            "The network ends in a sigmoid, as those of several labels an image do, and y has one "
            'label per image. Set task="multilabel", and give y as sets or as a table of 0 and 1; '
            'or task="multiclass" with output="probabilities", of which the highest counts.'
        )
    if n_outputs > 1:
        return "multilabel" if evidence.is_sigmoid else "multiclass"
    if evidence.is_sigmoid or _names_two(evidence.classes):
        return "binary"
    if kind == "labels" and evidence.classes is None and _names_two(evidence.y):
        return "binary"
    raise ValueError(
        'The network has one output, and nothing says what it is. Set task="binary" if it '
        'is the logit of the second of two classes, with output="probabilities" if it is its '
        'probability; or task="regression" if it is a number.'
    )


def _holds_integers(y: Any) -> bool:
    table = np.asarray(y)
    return table.ndim == 2 and table.dtype.kind in "iu"


def _names_two(labels: Any) -> bool:
    if labels is None:
        return False
    values = labels.tolist() if hasattr(labels, "tolist") else [*labels]
    flat = [value for row in values for value in (row if isinstance(row, list) else [row])]
    return len({*flat}) == 2


def _is_probability(evidence: Evidence, task: Task) -> bool:
    """Whether outputs are probabilities; an error if they are said to be, and are not."""
    output = at_least_float32(evidence.output)
    if task == "regression":
        if evidence.form != "auto":
            raise ValueError(
                f"output={evidence.form!r} is for classes; a regression's outputs are its numbers."
            )
        return False
    if evidence.form == "probabilities":
        low, high = output.min().item(), output.max().item()
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise ValueError(
                f'output="probabilities": the network returns numbers from {low:.3g} to '
                f'{high:.3g}, which are none. Use output="logits".'
            )
        return True
    if evidence.form == "logits":
        return False
    if evidence.is_log_sigmoid and task != "multiclass":
        raise ValueError(
            "The network returns logarithms of a sigmoid, and another sigmoid of these is not a "
            "probability. Let it return the values before the sigmoid, or the exponential, with "
            'output="probabilities"; output="logits" takes the sigmoid of what it returns.'
        )
    if evidence.is_sigmoid and task == "multiclass":
        raise ValueError(
            "The network ends in a sigmoid, and a softmax of that is not a probability. If its "
            'labels do not exclude each other, task="multilabel"; if they do, '
            'output="probabilities" takes what it returns, and output="logits" the softmax.'
        )
    return evidence.is_sigmoid or is_distribution(evidence.output)


def check_said(evidence: Evidence, task: Task | None) -> None:
    """Raise a ValueError if a user says otherwise than a model that knows its task."""
    if evidence.task not in ("auto", task):
        raise ValueError(
            f'task={evidence.task!r}: the model was trained for {task!r}; leave task at "auto".'
        )
    if evidence.form != "auto":
        raise ValueError(
            f"output={evidence.form!r}: the model's criterion says what it returns; leave output "
            'at "auto".'
        )


def task_of_config(network: nn.Module) -> Task | None:
    """Return the task that a Hugging Face network was set up for; None if it does not say."""
    config = getattr(network, "config", None)
    return _PROBLEM_TYPES.get(str(getattr(config, "problem_type", None)))


def task_of_criterion(criterion: object, evidence: Evidence) -> tuple[Task | None, bool]:
    """Return the task that a loss is for, None if that is not known; and of probabilities or not.

    Parameters
    ----------
    criterion : nn.Module, or anything else
    evidence : Evidence

    Returns
    -------
    task : str or None
    is_probability : bool
    """
    tasks = tasks_of(criterion)
    if not tasks:
        return None, False
    task = tasks[0]
    if "multilabel" in tasks:
        task = "binary" if evidence.n_outputs == 1 else "multilabel"
    return task, is_loss(criterion, nn.NLLLoss, nn.BCELoss)


def tasks_of(criterion: object) -> tuple[Task, ...] | None:
    """Return the tasks that a loss is for; None if that is not known."""
    return next((tasks for kind, tasks in _LOSSES.items() if is_loss(criterion, kind)), None)


def is_loss(criterion: object, *kinds: type[nn.Module]) -> bool:
    """Whether a loss, or the class of one, is of one of these kinds."""
    is_class = isinstance(criterion, type) and issubclass(criterion, kinds)
    return is_class or isinstance(criterion, kinds)


def name_of_loss(criterion: object) -> str:
    """Return the name of a loss, or of the class of one, or of a function."""
    return getattr(criterion, "__name__", type(criterion).__name__)
