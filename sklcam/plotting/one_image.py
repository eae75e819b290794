"""One image and its map, in one line."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from torch import Tensor

from sklcam._validation import describe
from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.explain.nested import AnyEstimator
from sklcam.plotting._display import AnyAxes
from sklcam.plotting._explained import AnyMethods
from sklcam.plotting.maps import CAMDisplay


def show(
    image: Any,
    model: AnyEstimator | str,
    *,
    method: AnyMethods = None,
    target: Any = None,
    ax: AnyAxes = None,
    **options: Any,
) -> CAMDisplay:
    """Draw an image and its map.

    Parameters
    ----------
    image : path, PIL image, ndarray or Tensor
        One image: an ndarray of shape (height, width) or (height, width, n_channels), uint8 or
        float in [0, 1]; a Tensor of shape (n_channels, height, width), which is the network's input
        as it is where the model is a bare module, or a :class:`~sklcam.CAMExplainer` of one.
    model : fitted estimator with ``explain``, nn.Module, or str
        Or one of these in a pipeline or a search. A str is the name of a network, which gets its
        published weights: see :func:`~sklcam.networks.build_model`. It is built anew each time; for
        many images, make a :class:`~sklcam.CAMExplainer` of it once.
    method : str, Method, list of them, dict of names to them, or None, default=None
        The explanations, a column for each; None is the model's own.
    target : None, label, list of labels, callable or Target, default=None
        The class to explain; None is the predicted one. Several labels, or ``TopK(3)``, have a
        column each.
    ax : array-like of matplotlib axes or None, default=None
        One for the image and one for each map; None makes a new figure.
    **options
        Options of :meth:`CAMDisplay.plot`.

    Returns
    -------
    CAMDisplay
        The title over the image says the predicted class and its probability, and that over a map
        the class that was asked for and its own.

    Raises
    ------
    ImportError
        If matplotlib, or the package of a network that is named, is missing.
    NotFittedError
        If the model has not been fitted.
    TypeError
        If there is an option that :meth:`CAMDisplay.plot` does not take.
    ValueError
        If it is not one image, or one that the model cannot take; if the model does not explain, or
        there is no network of that name, or no weights for it; and as :class:`CAMDisplay`.

    Examples
    --------
    With the name of a network, ``sklcam.show("dog.jpg", "efficientnet_lite0")``; with one of your
    own:

    >>> import numpy as np
    >>> from torch import nn
    >>> import sklcam
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> options = {"classes": ["red", "green", "blue"], "image_size": 8, "verbose": 0}
    >>> explainer = sklcam.CAMExplainer(network, target_layer="0", **options).fit()
    >>> image = np.zeros((8, 8, 3))
    >>> image[2:4, :, 1] = 1
    >>> display = sklcam.show(image, explainer)
    >>> display.image_titles
    ['predicted: green (0.48)']
    """
    if isinstance(model, str):
        model = CAMExplainer(model, weights="DEFAULT", verbose=0).fit()
    X = _one(image)
    if isinstance(target, list | tuple):
        target = [list(target)]  # a row of labels, for the one image
    return CAMDisplay.from_estimator(model, X, methods=method, target=target, ax=ax, **options)


def _one(image: Any) -> Any:
    """Return one image as X of one row; a ValueError if there is not exactly one."""
    if isinstance(image, np.ndarray | Tensor):
        if image.ndim != 3 and not (image.ndim == 2 and isinstance(image, np.ndarray)):
            raise ValueError(
                "show takes one image, (height, width) or (height, width, n_channels), or a tensor "
                f"(n_channels, height, width); got {describe(image)}. CAMDisplay draws several."
            )
        return image[None]
    if isinstance(image, str | os.PathLike) or hasattr(image, "convert"):
        return [image]
    raise ValueError(
        "show takes one image: a path, a PIL image, an array or a tensor; got "
        f"{describe(image)}. CAMDisplay draws several."
    )
