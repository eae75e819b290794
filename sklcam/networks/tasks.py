"""Tasks: what a trained network is for, and what its outputs are.

This is decided once, from the user's settings, the network's own description, its output and the
labels. If these do not decide, an error says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from sklcam._callers import level_of_user
from sklcam.images.label_sets import as_indicator, kind_of_labels, learn_label_sets
from sklcam.networks.output_ranges import is_distribution
from sklcam.networks.precision import at_least_float32
from sklcam.networks.readouts import Readout, Task, Unread, readout

# Rounding may take probabilities this far out of [0, 1].
_TOLERANCE = 1e-3

# The names of the tasks in Hugging Face's configurations.
_PROBLEM_TYPES: Mapping[str, Task] = {
    "single_label_classification": "multiclass",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}
# The losses whose tasks are known; they are for no other task.
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
    nn.MultiLabelMarginLoss: (),  # its labels are lists of indices, padded
}


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known about a network when its task is decided.

    Parameters
    ----------
    output : Tensor
        The network's own output for a sample.
    is_sigmoid : bool, default=False
        Whether it is the output of a sigmoid.
    is_log_sigmoid : bool, default=False
        Whether it is the logarithm of a sigmoid.
    task : str, default="auto"
        The user's ``task``: see :class:`~sklcam.CAMExplainer`.
    form : {"auto", "logits", "probabilities"}, default="auto"
        The user's ``output``: what the outputs are.
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
        """The number of outputs per image; None if the output is not a row for each image."""
        if self.output.ndim < 2:  # squeezing may even remove the axis of a single image
            return 1
        return self.output.shape[1] if self.output.ndim == 2 else None


def settle(evidence: Evidence, named: Task | None) -> Readout:
    """Decide how a network's outputs are read.

    Parameters
    ----------
    evidence : Evidence
    named : str or None
        The task that the network itself names.

    Returns
    -------
    Readout

    Raises
    ------
    ValueError
        If the task cannot be decided, or does not fit the network.

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
            'task="detection" is for the detectors of torchvision.models.detection and networks '
            "that derive from them. Explain any other network with a callable target."
        )
    if "segmentation" in (evidence.task, named if evidence.task == "auto" else None):
        return _of_pixels(evidence)
    if n_outputs is None or n_outputs == 0:
        if evidence.task != "auto":
            raise ValueError(
                f"task={evidence.task!r} needs one row of numbers per image; the network's output "
                f'has shape {tuple(evidence.output.shape)}. Leave task at "auto" and explain it '
                "with a callable target."
            )
        return Unread()
    task = named if evidence.task == "auto" else evidence.task
    if task is None:
        task = _task_of(evidence, n_outputs)
    if task == "binary" and n_outputs > 1:
        raise ValueError(
            f'task="binary" needs a network with one output; this one has {n_outputs}. Use '
            'task="multiclass" for outputs that exclude each other, or "multilabel" otherwise.'
        )
    if task == "multiclass" and n_outputs == 1:
        raise ValueError(
            'task="multiclass" takes a softmax, which is always 1 for one output. Use '
            'task="binary" if it tells two classes apart, or "regression" if it is a number.'
        )
    return readout(task, is_probability=_is_probability(evidence, task))


def _of_pixels(evidence: Evidence) -> Readout:
    output = evidence.output
    if output.ndim != 4 or not output.shape[1] or output.shape[2] * output.shape[3] < 2:
        raise ValueError(
            'task="segmentation" needs an output of shape (n_images, n_classes, height, width), '
            f"with several places; the network's has shape {tuple(output.shape)}. Set another task."
        )
    pixels = replace(evidence, output=output.movedim(1, -1).flatten(0, -2))
    task: Task = "multiclass" if output.shape[1] > 1 else "binary"
    return readout("segmentation", is_probability=_is_probability(pixels, task))


def _task_of(evidence: Evidence, n_outputs: int) -> Task:
    """Return the task if neither the user nor the network names one."""
    kind = None if evidence.y is None else kind_of_labels(evidence.y)
    if kind == "numbers" and isinstance(evidence.y, list | tuple) and _holds_integers(evidence.y):
        raise ValueError(
            "y has rows of integers, which may be several labels per image, or numbers. Give sets, "
            '[{3, 5}, {5}], if they are labels; set task="regression" if they are numbers.'
        )
    if kind == "numbers":
        return "regression"
    if kind in ("indicator", "label sets"):
        if is_distribution(evidence.output):
            raise ValueError(
                "y has several labels for an image, but the network's probabilities add up to 1, "
                "as those of classes that exclude each other do. If the classes do, set "
                'task="multiclass", with one label per image in y; otherwise set task="multilabel".'
            )
        rows = as_indicator(evidence.y, learn_label_sets(evidence.y))
        if kind == "indicator" and (rows.sum(axis=1) == 1).all():
            warnings.warn(
                "y is a table of 0 and 1 in which every image has exactly one label, and each is "
                "read by a sigmoid of its own. If they are classes that exclude each other, give "
                'one label per image, y.argmax(axis=1); or set task="multilabel".',
                stacklevel=level_of_user(),
            )
        return "multilabel"
    if n_outputs > 1 and kind == "labels" and evidence.is_sigmoid:
        raise ValueError(
            "The network ends in a sigmoid, as networks for several labels per image do, but y has "
            'one label per image. Set task="multilabel", and give y as sets or as a table of 0 and '
            '1; or set task="multiclass" and output="probabilities", so that the highest counts.'
        )
    if n_outputs > 1:
        return "multilabel" if evidence.is_sigmoid else "multiclass"
    if evidence.is_sigmoid or _names_two(evidence.classes):
        return "binary"
    if kind == "labels" and evidence.classes is None and _names_two(evidence.y):
        return "binary"
    raise ValueError(
        'The network has one output, and nothing says what it is. Set task="binary" if it '
        'is the logit of the second of two classes, and output="probabilities" too if it is this '
        'class\'s probability; or set task="regression" if it is a number.'
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
    """Whether outputs are probabilities; raise an error if the user is wrong about it."""
    output = at_least_float32(evidence.output)
    if task == "regression":
        if evidence.form != "auto":
            raise ValueError(
                f"output={evidence.form!r} is for classes, but a regression's outputs are numbers. "
                'Leave output at "auto".'
            )
        return False
    if evidence.form == "probabilities":
        low, high = output.min().item(), output.max().item()
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise ValueError(
                f'output="probabilities", but the network returns numbers from {low:.3g} to '
                f'{high:.3g}, which are not probabilities. Use output="logits".'
            )
        return True
    if evidence.form == "logits":
        return False
    if evidence.is_log_sigmoid and task != "multiclass":
        raise ValueError(
            "The network returns logarithms of a sigmoid, and another sigmoid of these is not a "
            "probability. Let it return the values before the sigmoid, or the exponential with "
            'output="probabilities". output="logits" takes the sigmoid of the output as it is.'
        )
    if evidence.is_sigmoid and task == "multiclass":
        raise ValueError(
            "The network ends in a sigmoid, and a softmax of this is not a probability. If its "
            'labels do not exclude each other, set task="multilabel". If they do, set '
            'output="probabilities" to use the output as it is, or output="logits" for its softmax.'
        )
    return evidence.is_sigmoid or is_distribution(evidence.output)


def check_agrees(evidence: Evidence, task: Task | None) -> None:
    """Raise a ValueError if a user contradicts a model that knows its task."""
    if evidence.task not in ("auto", task):
        raise ValueError(
            f'task={evidence.task!r}, but the model was trained for {task!r}. Leave task at "auto".'
        )
    if evidence.form != "auto":
        raise ValueError(
            f"output={evidence.form!r}, but the model's criterion already says what it returns. "
            'Leave output at "auto".'
        )


def task_of_config(network: nn.Module) -> Task | None:
    """Return the task that a Hugging Face network was set up for; None if it does not say."""
    config = getattr(network, "config", None)
    return _PROBLEM_TYPES.get(str(getattr(config, "problem_type", None)))


def task_of_criterion(criterion: object, evidence: Evidence) -> tuple[Task | None, bool]:
    """Return the task of a loss, None if it is not known, and whether it takes probabilities.

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
    """Return the tasks that a loss is for; None if they are not known."""
    return next((tasks for kind, tasks in _LOSSES.items() if is_loss(criterion, kind)), None)


def is_loss(criterion: object, *kinds: type[nn.Module]) -> bool:
    """Whether a loss, or the class of one, is of one of these kinds."""
    is_class = isinstance(criterion, type) and issubclass(criterion, kinds)
    return is_class or isinstance(criterion, kinds)


def name_of_loss(criterion: object) -> str:
    """Return the name of a loss: an instance, a class or a function."""
    return getattr(criterion, "__name__", type(criterion).__name__)
