"""Predictions as they are written beside an image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from sklcam.explain.base import Explainer


class Prediction(NamedTuple):
    """A predicted class, as it is written beside an image.

    Attributes
    ----------
    label : str or None
        The predicted class, "NaN" where the network's output is; None without classes.
    probability : float or None
        How sure the network is; None where that would tell a reader nothing.
    """

    label: str | None
    probability: float | None


def predictions(explainer: Explainer, output: Tensor) -> list[Prediction]:
    """Return the predicted class of each image, as text.

    Parameters
    ----------
    explainer : Explainer
    output : Tensor
        The network's, such as logits of shape (n_images, n_classes).

    Returns
    -------
    list of Prediction
    """
    classes = class_names(explainer)
    if len(classes) < 2 or output.ndim != 2:  # of a single class, the probability is always 1
        return [Prediction(None, None)] * len(output)
    indices = explainer.decide(output)
    names = [classes[i] for i in indices.tolist()]
    for row in output.isnan().any(dim=1).nonzero()[:, 0].tolist():
        names[row] = "NaN"  # an argmax gives a class even so
    chances: list[float | None] = [None] * len(output)
    if explainer.shows_probabilities:
        # Of the class that was decided on: with a threshold it need not be the likeliest.
        probabilities = explainer.probabilities(output)
        chances = probabilities.gather(1, indices[:, None])[:, 0].tolist()
    return [*map(Prediction, names, chances)]


def class_names(explainer: Explainer) -> list[str]:
    """Return the labels of the classes as text; none without classes."""
    if explainer.classes_ is None:
        return []
    named = explainer.classes_ if explainer.class_names_ is None else explainer.class_names_
    # Python's own values are written as their users write them: 1.0, not np.float64(1.0).
    return [*map(str, np.asarray(named).tolist())]
