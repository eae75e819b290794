"""The classes to find in an image: those of its labels, or those that are predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import describe
from sklcam.cam import Classes, Deferred
from sklcam.explain.base import Explainer
from sklcam.images.label_sets import as_indicator, kind_of_labels, learn_label_sets
from sklcam.images.labels import encode_labels, known_labels
from sklcam.networks.inputs import Inputs, recordable


class ClassesOfImages(Deferred):
    """Target: some of the known classes, which may differ between images.

    Parameters
    ----------
    places : Tensor of shape (n_classes,), int64
        The known classes, as places in the network's output.
    given : Tensor of shape (n_images, n_classes), bool, or None
        Which of them each image has. None takes the predicted ones: the likeliest, or all that the
        network finds if an image may have several labels.
    explainer : Explainer
    """

    several = ragged = names_classes = True

    def __init__(self, places: Tensor, given: Tensor | None, explainer: Explainer):
        self._places, self._given, self._explainer = places, given, explainer

    def take(self, rows: slice) -> ClassesOfImages:
        given = None if self._given is None else self._given[rows]
        return ClassesOfImages(self._places, given, self._explainer)

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Classes:
        present = self._present(output)
        counts = present.sum(dim=1).tolist()
        # The classes of an image come first, in their order; others fill the remaining columns.
        order = present.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        columns = order[:, : max(1, *counts)]
        return ClassesFound(recordable(self._places.to(output.device)[columns]), columns, counts)

    def _present(self, output: Tensor) -> Tensor:
        if self._given is not None:
            return self._given.to(output.device)
        places = self._places.to(output.device)
        if self._explainer.adapter.task == "multilabel":
            return self._explainer.decide(output)[:, places].bool()
        likeliest = output[:, places].argmax(dim=1, keepdim=True)
        return torch.arange(len(places), device=output.device) == likeliest


class ClassesFound(Classes):
    """Target: given classes, of which some images may have fewer than others.

    Parameters
    ----------
    indices : Tensor of shape (n_images, k), int64
        As places in the network's output, filled up to k.
    columns : Tensor of shape (n_images, k), int64
        The same classes, as places among the known classes.
    counts : list of int
        How many classes each image has; these come first.
    """

    def __init__(self, indices: Tensor, columns: Tensor, counts: list[int]):
        super().__init__(indices)
        self.columns, self.counts, self.ragged = columns.cpu().numpy(), counts, True

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Classes:
        return self  # for another pass over the same images


def learn_classes(explainer: Explainer, X: Any, y: Any) -> np.ndarray:
    """Return the classes that labels of images name, as the explainer has and orders them."""
    classes = np.asarray(explainer.classes_)
    y = _in_labels(explainer, X, y)
    kind = kind_of_labels(y)
    if kind == "numbers":
        raise ValueError(f"y must be labels of images, one or several each; got {describe(y)}.")
    if kind == "labels":
        found = np.unique(np.asarray(y))
    elif kind == "indicator":
        found = classes[as_indicator(y, classes).any(axis=0)]
    else:
        found = learn_label_sets(y)
    return classes[np.sort(encode_labels(found, classes))]


def labels_present(
    explainer: Explainer, X: Any, y: Any, classes: np.ndarray, n_images: int
) -> Tensor:
    """Return which of the classes each image has, (n_images, n_classes) of bool."""
    y = _in_labels(explainer, X, y)
    kind = kind_of_labels(y)
    if kind == "numbers":
        raise ValueError(f"y must be labels of images, one or several each; got {describe(y)}.")
    if kind == "labels":
        indices = encode_labels(np.asarray(y).ravel(), classes)
        present = np.arange(len(classes)) == indices[:, None]
    elif kind == "indicator":
        known = np.asarray(explainer.classes_)
        # The columns are all classes that the network knows, or those that were learned.
        whole = known if np.shape(y)[1] == len(known) else classes
        table = as_indicator(y, whole).astype(bool)
        present = table[:, np.isin(whole, classes)]
        if table.sum() > present.sum():
            raise ValueError(
                "y has classes that were not seen in fit; the classes there are "
                f"{classes.tolist()}."
            )
    else:
        present = as_indicator(y, classes).astype(bool)
    if len(present) != n_images:
        raise ValueError(f"X has {n_images} image(s), but y has {len(present)} label(s).")
    return torch.from_numpy(present)


def _in_labels(explainer: Explainer, X: Any, y: Any) -> Any:
    """Return labels as the explainer's classes, if they are names of classes."""
    names = explainer.class_names_
    if y is None or kind_of_labels(y) != "label sets" or names is None:
        return known_labels(X, y, explainer.classes_, names)
    return [
        np.asarray(known_labels(None, row, explainer.classes_, names)).tolist() if row else []
        for row in ([*each] for each in y)
    ]
