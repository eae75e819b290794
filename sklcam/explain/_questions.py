"""Turn what users pass to an explainer into methods, targets and labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import describe
from sklcam.cam import Method, get_method
from sklcam.cam.asked import as_target
from sklcam.cam.detections import of_objects
from sklcam.cam.regions import of_pixels
from sklcam.cam.targets import Positive, Target
from sklcam.images.label_sets import as_indicator, as_numbers, kind_of_labels
from sklcam.images.labels import (
    are_names,
    check_numbering,
    check_one_each,
    encode_labels,
    given_labels,
    labels_for,
    labels_of_names,
)
from sklcam.networks.adapters import Adapter

AnyMethod = str | Method | type[Method]
Methods = list[AnyMethod | None] | tuple[AnyMethod | None, ...] | Mapping[str, AnyMethod | None]
AnyTarget = Target | Tensor | Callable[..., Tensor] | None


class Questions(ABC):
    """The part of an Explainer that translates users' methods, targets and labels."""

    classes_: Any
    class_names_: np.ndarray | None = None  # the names of the classes 0, 1, ...
    method: AnyMethod = "gradcam"

    @property
    @abstractmethod
    def adapter(self) -> Adapter:
        """The network with everything known about it. Raises a NotFittedError before fit."""

    @property
    def output_names(self) -> np.ndarray | None:
        """The names that a target may use: the classes, or the numbers of a regression."""
        is_named = self.classes_ is None and self.adapter.task == "regression"
        return self.adapter.labels if is_named else self.classes_

    def expected_labels(self, X: Any, y: Any, purpose: str) -> np.ndarray:
        """Return the true labels in the form of predictions.

        Parameters
        ----------
        X : images
        y : labels, label sets, numbers or None
            Labels may also be names from ``class_names_``. None takes the labels of X, if it is a
            data set with labels.
        purpose : str
            What the labels are needed for, for the message.

        Returns
        -------
        ndarray of shape (n_images,) or (n_images, n_outputs)
            For several labels per image, 0 or 1.

        Raises
        ------
        ValueError
            If there are no labels, or they do not suit the network's task.
        """
        check_numbering(X, y, self.classes_, self.class_names_)
        if self.adapter.task == "multilabel":
            return as_indicator(given_labels(X, y), self.classes_)
        if self.adapter.task == "regression":
            return as_numbers(given_labels(X, y))
        if y is not None and kind_of_labels(y) in ("indicator", "label sets"):
            several = 'For several labels per image, fit with task="multilabel".'
            try:
                check_one_each(y)
            except ValueError as error:
                raise ValueError(f"{error} {several}") from error
            raise ValueError(
                f"y must be one label per image, as the network's task is {self.adapter.task!r}; "
                f"got {describe(y)}. {several}"
            )
        return np.asarray(
            labels_of_names(labels_for(X, y, purpose), self.classes_, self.class_names_)
        )

    def as_method(self, method: AnyMethod | None) -> Method:
        """Return a method as an object, with its options checked.

        Parameters
        ----------
        method : str, Method, class of methods or None
            None is the explainer's own method.

        Returns
        -------
        Method

        Raises
        ------
        ValueError
            If there is no such method, or one of its options is out of range.
        """
        chosen = get_method(self.method if method is None else method)
        chosen.check()
        for option, value in chosen.get_params(deep=False).items():
            # Any string would count as true, even "no".
            if option in ("relu", "contrastive") and not isinstance(value, bool | np.bool_):
                raise ValueError(f"{option} must be True or False; got {value!r}.")
        return chosen

    def named_methods(self, methods: AnyMethod | Methods | None) -> dict[str, Method]:
        """Return methods as objects, keyed by the names of their maps.

        Parameters
        ----------
        methods : str, Method, list of them, dict of names to them, or None
            See :meth:`explain`. The name of the explainer's own method is "".

        Returns
        -------
        dict of str to Method

        Raises
        ------
        ValueError
            If there is no method, two share a name, or ``as_method`` refuses one.
        """
        if isinstance(methods, Mapping):
            named = {str(name): self.as_method(each) for name, each in methods.items()}
        else:
            several = methods if isinstance(methods, list | tuple) else [methods]
            named = {method_name(each): self.as_method(each) for each in several}
            if len(named) < len(several):
                raise ValueError(
                    f"Two methods share a name: {[*map(method_name, several)]}. Give a dict with a "
                    "different name for each."
                )
        if not named:
            raise ValueError("There is no method to explain with. Name at least one.")
        return named

    def as_target(self, target: Any, n_images: int) -> Target:
        """Turn a user's target into a Target.

        Parameters
        ----------
        target : None, label, array-like of labels, Target or callable
            See :meth:`explain`.
        n_images : int
            The number of images.

        Returns
        -------
        Target

        Raises
        ------
        ValueError
            If there is not one target, or one row of targets, per image, or a label is unknown.
        """
        names = self.output_names
        if isinstance(target, str) and target == "positive" and not self._is_label(target):
            target = Positive()
        if target is None or isinstance(target, Target) or callable(target):
            question = self.translate(target)
            for asked in (target, question):  # each may have checks that the other lacks
                if isinstance(asked, Target) and names is not None:
                    asked.check(len(names))
            question.check_images(n_images)
            return question
        try:
            labels = np.asarray(target.cpu() if isinstance(target, Tensor) else target)
        except ValueError as error:  # rows of different lengths
            raise _ragged(target) from error
        kinds = {type(each) for each in labels.flat} if labels.dtype == object else set()
        if kinds & {list, tuple, np.ndarray}:
            raise _ragged(target)
        if kinds & {set, frozenset}:
            raise ValueError(
                "target cannot hold sets of labels; they are for y. Give one label per image, or a "
                "row of several, the same number for each image, as each label gets its own map. "
                'target="positive" explains all labels that the network finds, in one map.'
            )
        labels = np.repeat(labels, n_images) if labels.ndim == 0 else labels
        if labels.ndim not in (1, 2) or len(labels) != n_images or not labels.size:
            raise ValueError(
                f"target must be one label, one label per image, or one row of labels per image; "
                f"got shape {labels.shape} for {n_images} images."
            )
        return self.translate(self._indices_of(labels))

    def _indices_of(self, labels: Any) -> Tensor:
        """Return the indices of labels, in the same shape. An unknown label is a ValueError."""
        labels, names = np.asarray(labels), self.output_names
        if names is None and self.adapter.task == "detection" and labels.dtype.kind in "iu":
            return torch.from_numpy(labels.astype(np.int64))
        if names is None and self.adapter.task == "detection":
            raise ValueError(
                f"labels must be integers, as predict returns them; got {describe(labels)}. To "
                "use names, give classes= the name of each, the background first."
            )
        if names is None:
            raise ValueError(
                "The network's output is not (n_images, n_classes), so there are no labels to "
                "explain. Give a callable target that turns the output into one score per image."
            )
        known = names
        is_place = labels.dtype.kind in "iu" and names.dtype.kind in "UO"
        if is_place and self.adapter.task == "regression":
            known = np.arange(len(names))
        if self.class_names_ is not None and are_names(labels, self.class_names_):
            known = self.class_names_
        return torch.from_numpy(encode_labels(labels.ravel(), known).reshape(labels.shape))

    def _is_label(self, name: str) -> bool:
        """Whether this is a label's name. Raises a ValueError if it also means all labels."""
        names = [] if self.output_names is None else self.output_names.tolist()
        if name in names and self.adapter.task == "multilabel":
            raise ValueError(
                f"target={name!r} stands for all labels of an image, but one label has this name "
                f"too. Give sklcam.cam.Positive() for all labels, or [{name!r}] * n_images for "
                "this one."
            )
        return name in names

    def translate(self, target: AnyTarget) -> Target:
        """Return the target as it applies to this network's output.

        Parameters
        ----------
        target : None, Tensor of class indices, Target or callable
            See :meth:`explain_inputs`. A target that has been translated stays the same.

        Returns
        -------
        Target
        """
        asked = as_target(target)
        if self.adapter.task == "segmentation":
            asked = of_pixels(asked)
        if self.adapter.task == "detection":
            asked = of_objects(asked)
        return asked.bind(self.adapter).named(self._indices_of)


def _ragged(target: Any) -> ValueError:
    sizes = [len(row) if isinstance(row, list | tuple | np.ndarray) else 1 for row in target]
    i = next((i for i, size in enumerate(sizes) if size != sizes[0]), 0)
    return ValueError(
        "target must have the same number of labels for each image, as each label gets its own "
        f"map; got {sizes[0]} for image 0 and {sizes[i]} for image {i}. Explain one label per "
        'image at a time, or repeat a label. target="positive" explains all labels that the '
        "network finds, in one map."
    )


def method_name(method: AnyMethod | None) -> str:
    """Return the name of a method in tables and pictures, or "" for the explainer's own."""
    if method is None or isinstance(method, str):
        return method or ""
    return method.__name__ if isinstance(method, type) else " ".join(repr(method).split())
