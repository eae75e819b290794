"""Readouts: what a network's output means, depending on its task.

A readout turns the output into *columns*: a score for each class, or each number, which targets
explain. It turns columns into probabilities and decisions. Explaining and training use the same
readouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sklcam.networks.detectors import split_detections
from sklcam.networks.precision import at_least_float32

Task = Literal["multiclass", "binary", "multilabel", "regression", "segmentation", "detection"]


class Readout(ABC):
    """How an output is read.

    Parameters
    ----------
    is_probability : bool, default=False
        Whether the network returns probabilities, rather than scores that become probabilities.

    Attributes
    ----------
    task : str or None
        See :class:`~sklcam.CAMExplainer`.
    has_probabilities : bool
        Whether there are probabilities of classes.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks.readouts import readout
    >>> read = readout("binary")
    >>> columns = read.columns(torch.tensor([[2.0], [-1.0]]))  # one logit
    >>> columns
    tensor([[-2.,  2.],
            [ 1., -1.]])
    >>> read.decide(read.probabilities(columns))
    tensor([1, 0])
    """

    task: ClassVar[Task | None]
    has_probabilities: ClassVar[bool] = True

    def __init__(self, *, is_probability: bool = False):
        self.is_probability = is_probability
        self._is_flat = False

    def columns(self, output: Tensor) -> Tensor:
        """Return the scores of an output, differentiably.

        Parameters
        ----------
        output : Tensor of shape (n_images, n_outputs), or (n_images,) for a single output

        Returns
        -------
        Tensor of shape (n_images, n_columns)
        """
        return output

    def own(self, columns: Tensor) -> Tensor:
        """Return the network's own output, from which the columns were made, differentiably.

        Parameters
        ----------
        columns : Tensor of shape (n_images, n_columns)

        Returns
        -------
        Tensor of the shape that the network returned last
        """
        return columns

    @abstractmethod
    def probabilities(self, columns: Tensor) -> Tensor:
        """Return the probability of each class.

        Parameters
        ----------
        columns : Tensor of shape (n_images, n_columns)

        Returns
        -------
        Tensor of the same shape, in [0, 1], at least float32

        Raises
        ------
        ValueError
            If there are no classes.
        """

    def decide(self, answers: Tensor) -> Tensor:
        """Return the predictions.

        Parameters
        ----------
        answers : Tensor of shape (n_images, n_columns)
            Probabilities; for a regression, the columns.

        Returns
        -------
        Tensor of shape (n_images,), int64
            The index of a class. For "multilabel", 0 or 1, (n_images, n_classes); for "regression",
            the numbers, (n_images, n_columns); for "segmentation", (n_images, height, width).
        """
        return answers.argmax(dim=1)

    def labels(self, decided: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
        """Return decisions in the form of scikit-learn's ``predict``.

        Parameters
        ----------
        decided : ndarray
            See :meth:`decide`.
        classes : ndarray of shape (n_columns,) or None

        Returns
        -------
        ndarray of shape (n_images,)
            The labels. For "multilabel", 0 or 1, (n_images, n_classes); for "regression", the
            numbers, (n_images,) if there is one per image; for "segmentation",
            (n_images, height, width).
        """
        return decided if classes is None else classes[decided]

    def _flattened(self, output: Tensor) -> Tensor:
        # Whether the output is flat depends on the network, not on its input.
        self._is_flat = output.ndim < 2  # a squeezed output of one image has no axes at all
        return output.reshape(-1, 1) if self._is_flat else output


class Unread(Readout):
    """An output that is explained as it is: an embedding, or an output of another form."""

    task = None
    has_probabilities = False

    def probabilities(self, columns: Tensor) -> Tensor:
        raise ValueError(
            f"The network's output has shape {tuple(columns.shape)}, not (n_images, n_classes), "
            "so there are no classes to predict. Explain it with a callable target."
        )


class MulticlassReadout(Readout):
    """One of several classes, with a score for each."""

    task = "multiclass"

    def probabilities(self, columns: Tensor) -> Tensor:
        columns = at_least_float32(columns)
        return columns if self.is_probability else columns.softmax(dim=1)


class BinaryReadout(Readout):
    """One of two classes, by a single output: the logit, or the probability, of the second.

    Evidence for the second class is evidence against the first, so the score of the first is the
    negative logit, or 1 minus the probability.
    """

    task = "binary"

    def columns(self, output: Tensor) -> Tensor:
        second = self._flattened(output)
        return torch.cat([1 - second if self.is_probability else -second, second], dim=1)

    def own(self, columns: Tensor) -> Tensor:
        return columns[:, 1] if self._is_flat else columns[:, 1:]

    def probabilities(self, columns: Tensor) -> Tensor:
        columns = at_least_float32(columns)
        return columns if self.is_probability else columns.sigmoid()

    def decide(self, answers: Tensor) -> Tensor:
        return (answers[:, 1] > 0.5).long()


class MultilabelReadout(Readout):
    """Any number of labels per image, with a score for each."""

    task = "multilabel"

    def probabilities(self, columns: Tensor) -> Tensor:
        columns = at_least_float32(columns)
        return columns if self.is_probability else columns.sigmoid()

    def decide(self, answers: Tensor) -> Tensor:
        return (answers > 0.5).long()

    def labels(self, decided: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
        return decided


class RegressionReadout(Readout):
    """Numbers: the outputs themselves."""

    task = "regression"
    has_probabilities = False

    def columns(self, output: Tensor) -> Tensor:
        return self._flattened(output)

    def own(self, columns: Tensor) -> Tensor:
        return columns[:, 0] if self._is_flat else columns

    def probabilities(self, columns: Tensor) -> Tensor:
        raise ValueError(
            "The network returns numbers (task='regression'), not probabilities. Use predict."
        )

    def decide(self, answers: Tensor) -> Tensor:
        return at_least_float32(answers)

    def labels(self, decided: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
        return decided[:, 0] if decided.shape[1] == 1 else decided


class SegmentationReadout(Readout):
    """One of several classes for each pixel; a single output is the second of two classes."""

    task = "segmentation"

    def __init__(self, *, is_probability: bool = False):
        super().__init__(is_probability=is_probability)
        self._is_single = False

    def columns(self, output: Tensor) -> Tensor:
        self._is_single = output.shape[1] == 1
        if not self._is_single:
            return output
        return torch.cat([1 - output if self.is_probability else -output, output], dim=1)

    def own(self, columns: Tensor) -> Tensor:
        return columns[:, 1:] if self._is_single else columns

    def probabilities(self, columns: Tensor) -> Tensor:
        columns = at_least_float32(columns)
        if self.is_probability:
            return columns
        return columns.sigmoid() if self._is_single else columns.softmax(dim=1)


class DetectionReadout(Readout):
    """Objects, each with a box, a score and a label: see ``sklcam.networks.detectors``."""

    task = "detection"
    has_probabilities = False

    def own(self, columns: Tensor) -> list[dict[str, Tensor]]:  # type: ignore[override]
        return split_detections(columns)

    def probabilities(self, columns: Tensor) -> Tensor:
        return at_least_float32(columns)  # the scores are in them, and targets find them

    def decide(self, answers: Tensor) -> Tensor:
        raise ValueError(
            "A detector does not decide on a class for an image. Use predict, which returns its "
            "detections."
        )


_READOUTS: dict[Task, type[Readout]] = {
    "multiclass": MulticlassReadout,
    "binary": BinaryReadout,
    "multilabel": MultilabelReadout,
    "regression": RegressionReadout,
    "segmentation": SegmentationReadout,
    "detection": DetectionReadout,
}


def readout(task: Task | None, *, is_probability: bool = False) -> Readout:
    """Return how outputs are read for a task.

    Parameters
    ----------
    task : str or None
        See :class:`~sklcam.CAMExplainer`; None leaves outputs as they are.
    is_probability : bool, default=False
        Whether the network returns probabilities.

    Returns
    -------
    Readout
    """
    return Unread() if task is None else _READOUTS[task](is_probability=is_probability)
