"""A net on images that learns one of several tasks and predicts in that task's form.

The labels and the network determine the task once, in ``fit``; from then on predictions,
probabilities and scores follow scikit-learn's conventions for that task.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils import RegressorTags
from sklearn.utils.metaestimators import available_if
from skorch import NeuralNetClassifier
from torch import Tensor, nn

from sklcam.explain.base import Explainer
from sklcam.explain.checks import checked
from sklcam.images.labels import known_labels
from sklcam.networks.adapters import nonlinearity_of
from sklcam.networks.dry_run import check_output, run_dry, unwrap
from sklcam.networks.output_ranges import OutputRanges
from sklcam.networks.readouts import Readout, readout
from sklcam.networks.readouts import Task as TaskName
from sklcam.networks.tasks import tasks_of
from sklcam.training import _criteria as criteria
from sklcam.training._stepping import SteppingNet
from sklcam.training.callbacks import EpochScore, decoding
from sklcam.training.tasks import TASKS, Task, task_of_labels, task_of_output


def _has_probabilities(net: AnsweringNet) -> bool:
    return getattr(net, "task_", net.task) != "regression"


class AnsweringNet(SteppingNet, Explainer, NeuralNetClassifier):  # type: ignore[override]
    """A classifier or a regressor, depending on its task.

    Attributes
    ----------
    task_ : {"multiclass", "binary", "multilabel", "regression"}
        The task that was learned.
    """

    callbacks_: list[tuple[str, Any]]
    task_: TaskName

    # The task

    def _settle_task(self, y: Any) -> None:
        self.task_ = task_of_labels(self.task, y, self.criterion)

    @property
    def _task(self) -> Task:
        return TASKS[self.task_]

    @property
    def _criterion(self) -> nn.Module | Callable[..., nn.Module]:
        return self._task.criterion if isinstance(self.criterion, str) else self.criterion

    @property
    def classes_(self) -> np.ndarray | None:  # type: ignore[override]
        """The labels; None for a regression."""
        return None if self.task_ == "regression" else self.classes_inferred_

    @property
    def n_outputs(self) -> int:
        # A network that can choose is asked for one output per class.
        is_open = self.task == "auto" and tasks_of(self.criterion) is None
        asked = TASKS["multiclass"] if is_open and self._task.excludes else self._task
        return asked.n_outputs(self.classes_inferred_)

    def _check_output(self, module: nn.Module, sample: Tensor) -> None:
        with OutputRanges() as ranges:
            output = run_dry(module, sample)
        shape = tuple(output.shape) if isinstance(output, Tensor) else None
        is_single = shape in ((), (1,), (1, 1))  # without axes, if squeezed
        if self.task == "auto" and tasks_of(self.criterion) is None and self._task.excludes:
            self.task_ = task_of_output(self.classes_inferred_, is_single=is_single)
        n_outputs = self._task.n_outputs(self.classes_inferred_)
        if shape != (1, n_outputs) and not (n_outputs == 1 and is_single):
            check_output(module, sample, n_outputs, name=self._task.outputs_are)
        criteria.check_takes_output(
            self._criterion, self._task, output, ranges, nonlinearity=self.predict_nonlinearity
        )

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        # A regression must be asked for, so it is known by now, unlike the other tasks
        name = TASKS["regression" if not _has_probabilities(self) else "multiclass"].score_name
        scores = [EpochScore(f"{phase}_{name}", phase == "train") for phase in ("train", "valid")]
        defaults = super()._default_callbacks
        at = [each for each, _ in defaults].index("lr_scheduler")  # which may monitor them
        return [*defaults[:at], *((score.name, score) for score in scores), *defaults[at:]]

    def outcome(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return what the task's score needs from a training batch.

        Parameters
        ----------
        y_pred : Tensor
            The network's output.
        y : Tensor
            Encoded labels.

        Returns
        -------
        Tensor of shape (n_images, ...)
            See `sklcam.training.tasks.Task.outcome`.
        """
        decided = self.decided(y_pred)
        return self._task.outcome(decided, y.to(decided.device))

    def decided(self, y_pred: Tensor) -> Tensor:
        """Return the predictions for a training batch.

        Parameters
        ----------
        y_pred : Tensor
            The network's output.

        Returns
        -------
        Tensor
            Indices of classes, 0 or 1 for each label, or numbers.
        """
        return self.readout.decide(nonlinearity_of(self)(y_pred.detach()))

    def score_of(self, outcomes: Tensor, *, training: bool) -> float:
        """Return the task's score of an epoch.

        Parameters
        ----------
        outcomes : Tensor of shape (n_images, ...)
        training : bool
            Whether these come from training rather than validation.
        """
        return self._task.score(outcomes.cpu())

    def initialize_callbacks(self) -> Self:
        super().initialize_callbacks()
        # set_params comes here before fit
        if hasattr(self, "task_") and self._task.excludes:
            classes = self.classes_inferred_
            self.callbacks_ = [(name, decoding(each, classes)) for name, each in self.callbacks_]
        return self

    # Prediction and explanation

    def _get_predict_nonlinearity(self) -> Callable[[Tensor], Tensor]:
        found = super()._get_predict_nonlinearity()  # an error if not fitted
        if self.task_ == "multiclass":
            return found
        return (
            self._answered
            if not callable(self.predict_nonlinearity)
            else partial(self._answered, nonlinearity=found)
        )

    def _answered(
        self, output: Tensor, nonlinearity: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return probabilities, or numbers, in the form that ``predict`` returns."""
        read = self.readout
        if nonlinearity is not None:
            output = nonlinearity(output)
            if read.task == "multilabel" or output.shape == (len(output), 2):
                return output
            read = readout(read.task, is_probability=True)
        columns = read.columns(output)
        return read.probabilities(columns) if read.has_probabilities else columns

    @property
    def readout(self) -> Readout:
        """How the network's output is read, once there is one."""
        is_probability = isinstance(unwrap(self.criterion_), nn.BCELoss)
        is_probability |= self.predict_nonlinearity is None
        made: Readout | None = vars(self).get("_readout")
        if made is None or (made.task, made.is_probability) != (self.task_, is_probability):
            made = self.__dict__["_readout"] = readout(self.task_, is_probability=is_probability)
        return made

    @available_if(_has_probabilities)  # type: ignore[untyped-decorator]  # scikit-learn is untyped
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class; not for a regression.

        Parameters
        ----------
        X : images
            In any form that :meth:`fit` takes.

        Returns
        -------
        ndarray of shape (n_images, n_classes), in [0, 1]
            In the order of ``classes_``. Rows add up to 1, except for "multilabel", where each
            label has its own probability.
        """
        return self._answers(X)

    def _answers(self, X: Any) -> np.ndarray:
        self.check_is_fitted()
        return checked(super().predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """Return the prediction for each image.

        Parameters
        ----------
        X : images
            In any form that :meth:`fit` takes.

        Returns
        -------
        ndarray of shape (n_images,) or (n_images, n_classes)
            The most probable label. For "multilabel", 0 and 1: the labels whose probability is
            above 0.5 are 1. For "regression", the numbers, of shape (n_images,) if there is one per
            image.
        """
        # The probabilities first: an error if not fitted.
        answers = self.predict_proba(X) if _has_probabilities(self) else self._answers(X)
        decided = self.readout.decide(torch.tensor(answers)).numpy()
        return self.readout.labels(decided, self.classes_inferred_)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy on X, or :math:`R^2` for a regression.

        Parameters
        ----------
        X : images
            In any form that :meth:`fit` takes.
        y : labels, as for :meth:`fit`
            Or their names in ``class_names_``. They may be left out for a data set that has
            ``targets``.
        sample_weight : array-like of shape (n_images,) or None, default=None

        Returns
        -------
        float
            For "multilabel", the share of images whose labels are all right.

        Raises
        ------
        ValueError
            If y holds labels that ``fit`` has not seen.
        """
        self.check_is_fitted()
        labels = known_labels(X, y, self.classes_, self.class_names_)
        expected = self._task.expected(labels, self.classes_inferred_)
        return float(self._task.measure(expected, self.predict(X), sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if not _has_probabilities(self):
            tags.estimator_type, tags.classifier_tags = "regressor", None
            tags.regressor_tags = RegressorTags()
        elif getattr(self, "task_", self.task) in ("auto", "multilabel"):
            tags.classifier_tags.multi_label = True
        return tags
