"""Predictions as text beside an image."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sklcam.explain.base import Explainer

NO_LABEL = "no label"  # for a multilabel image without labels
NO_ANSWER = "NaN"  # for an output with NaN
_MOST_LABELS = 5  # the most labels to write beside an image


class Prediction(NamedTuple):
    """The prediction for an image, as text to write beside it.

    Attributes
    ----------
    label : str or None
        The predicted class, or all predicted labels. "NaN" if the network's output is NaN, and None
        without classes.
    probability : float or None
        How sure the network is. None if this would tell a reader nothing, and for several labels.
    text : str or None
        The full text: the label and its probability, several labels with a probability each, or the
        numbers of a regression.
    """

    label: str | None
    probability: float | None
    text: str | None = None


def predictions(explainer: Explainer, output: Tensor) -> list[Prediction]:
    """Return the prediction for each image, as text.

    Parameters
    ----------
    explainer : Explainer
    output : Tensor
        The network's output, such as logits of shape (n_images, n_classes), as ``output_of``
        returns it.

    Returns
    -------
    list of Prediction
    """
    task = explainer.adapter.task
    if task == "regression":
        numbers = explainer.decide(output).cpu().numpy()
        return [Prediction(None, None, text) for text in spelled(explainer, numbers)]
    classes = class_names(explainer)
    # The probability of a single class is always 1, which tells nothing. A single label of a
    # multilabel network has a probability of its own.
    if output.ndim != 2 or len(classes) < (1 if task == "multilabel" else 2):
        return [Prediction(None, None)] * len(output)
    decided = explainer.decide(output)
    probabilities = explainer.probabilities(output) if explainer.shows_probabilities else None
    is_nan = output.isnan().any(dim=1).tolist()  # argmax would give a class even then
    if task == "multilabel":
        assert probabilities is not None
        rows = zip(decided.tolist(), probabilities.tolist(), is_nan, strict=True)
        return [
            Prediction(NO_ANSWER, None, NO_ANSWER) if wrong else _of_several(classes, row, chances)
            for row, chances, wrong in rows
        ]
    chances: list[float | None] = [None] * len(output)
    if probabilities is not None:
        # The probability of the predicted class, which a threshold may have chosen over the most
        # probable one.
        chances = probabilities.gather(1, decided[:, None])[:, 0].tolist()
    names = [
        NO_ANSWER if wrong else classes[i]
        for i, wrong in zip(decided.tolist(), is_nan, strict=True)
    ]
    return [
        Prediction(name, chance, name if chance is None else f"{name} ({chance:.2f})")
        for name, chance in zip(names, chances, strict=True)
    ]


def _of_several(classes: list[str], decided: list[int], chances: list[float]) -> Prediction:
    """Return the labels of an image, the most probable first."""
    found = [i for i, has in enumerate(decided) if has]
    surest = sorted(found, key=lambda i: -chances[i])
    written = [f"{classes[i]} ({chances[i]:.2f})" for i in surest[:_MOST_LABELS]]
    written += ["..."] * (len(found) > _MOST_LABELS)
    label = ", ".join(classes[i] for i in found) or NO_LABEL
    return Prediction(label, None, ", ".join(written) or NO_LABEL)


def spelled(explainer: Explainer, labels: np.ndarray) -> list[str]:
    """Return the labels of images as text.

    Parameters
    ----------
    explainer : Explainer
    labels : ndarray of shape (n_images,) or (n_images, n_outputs)
        Labels in the form of predictions: see ``expected_labels``.

    Returns
    -------
    list of str
        Each label is written as its class is: 1 rather than 1.0, for example.
    """
    names = class_names(explainer)
    if explainer.adapter.task == "multilabel":
        return [
            ", ".join(name for name, has in zip(names, row, strict=True) if has) or NO_LABEL
            for row in labels.tolist()
        ]
    if explainer.adapter.task == "regression":
        columns = [*map(str, np.asarray(explainer.output_names).tolist())]
        rows = labels.reshape(len(labels), -1).tolist()
        if len(columns) == 1:
            return [f"{row[0]:.4g}" for row in rows]
        return [
            ", ".join(f"{name} {number:.4g}" for name, number in zip(columns, row, strict=True))
            for row in rows
        ]
    known = () if explainer.classes_ is None else explainer.classes_
    written = dict(zip(known, names, strict=True))
    return [written.get(label, str(label)) for label in labels.tolist()]


def class_names(explainer: Explainer) -> list[str]:
    """Return the labels of the classes as text, all different. The list may be empty."""
    if explainer.classes_ is None:
        return []
    named = explainer.classes_ if explainer.class_names_ is None else explainer.class_names_
    # Python's own values are written as their users write them: 1.0, not np.float64(1.0).
    texts = [*map(str, np.asarray(named).tolist())]
    # ImageNet has two classes with the name crane. Only their numbers tell them apart.
    count = Counter(texts)
    return [f"{text} [{i}]" if count[text] > 1 else text for i, text in enumerate(texts)]


def names_of_outputs(explainer: Explainer) -> list[str]:
    """Return what a target may name as text: the classes, or the numbers of a regression.

    Parameters
    ----------
    explainer : Explainer

    Returns
    -------
    list of str
        One for each output; empty if the outputs have no names.
    """
    names = explainer.output_names
    return class_names(explainer) or ([] if names is None else [*map(str, names.tolist())])
