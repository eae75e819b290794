"""Consistency: whether the map of a view is the view of the map.

The functions here compare maps, and :func:`consistency_score` asks an estimator for them, batch by
batch, through the methods that every estimator of this library has.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from sklcam.cam import GradCAM, Method
from sklcam.cam.base import at_least_float32
from sklcam.metrics.confidence import is_constant
from sklcam.views import ViewSampler

# Of Wang et al. and of scikit-image: the Gaussian is cut off at 3.5 sigma, the data range is 1.
_SIGMA, _WINDOW = 1.5, 11
_C1, _C2 = 0.01**2, 0.03**2


def structural_similarity(maps: Tensor, others: Tensor) -> Tensor:
    """SSIM of pairs of maps, with a Gaussian window, differentiable.

    Parameters
    ----------
    maps, others : Tensor of shape (n_images, height, width), in [0, 1]
        At least 11 pixels high and wide, the size of the window. The mean is over the windows that
        lie inside the map, as in scikit-image.

    Returns
    -------
    Tensor of shape (n_images,), in [-1, 1]

    Raises
    ------
    ValueError
        If the maps are smaller than the window.

    References
    ----------
    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import structural_similarity
    >>> maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> structural_similarity(maps, maps)
    tensor([1., 1.])
    """
    height, width = maps.shape[-2:]
    if min(height, width) < _WINDOW:
        raise ValueError(
            f"SSIM has a window of {_WINDOW} x {_WINDOW} pixels; got maps of {height} x {width}. "
            "Use a larger image_size."
        )
    with torch.autocast(maps.device.type, enabled=False):
        maps, others = at_least_float32(maps), at_least_float32(others)
        moments = torch.stack([maps, others, maps * maps, others * others, maps * others], dim=1)
        rows, columns = _window_sums(height, maps), _window_sums(width, maps)
        mean, other_mean, square, other_square, product = (rows @ moments @ columns.T).unbind(1)
    variances = (square - mean * mean) + (other_square - other_mean * other_mean)
    covariance = product - mean * other_mean
    luminance = (2 * mean * other_mean + _C1) / (mean * mean + other_mean * other_mean + _C1)
    structure = (2 * covariance + _C2) / (variances + _C2)
    return (luminance * structure).mean(dim=(1, 2))


def _window_sums(size: int, like: Tensor) -> Tensor:
    """Matrix (size - 10, size) that takes the Gaussian mean of every window along one side.

    The window is separable and small, so that two matrix products do for all maps and moments at
    once what a convolution would: the same numbers, many times faster, backward above all.
    """
    distance = torch.arange(_WINDOW, device=like.device, dtype=like.dtype) - _WINDOW // 2
    window = torch.exp(-(distance**2) / (2 * _SIGMA**2))
    offset = torch.arange(size, device=like.device) - torch.arange(
        size - _WINDOW + 1, device=like.device
    ).unsqueeze(1)
    inside = (offset >= 0) & (offset < _WINDOW)
    return torch.where(inside, (window / window.sum())[offset.clamp(0, _WINDOW - 1)], 0.0)


def ssim_consistency(view_of_maps: Tensor, maps_of_view: Tensor) -> Tensor:
    """SSIM of the view of each map and the map of the view; a constant map counts as 0.

    Parameters
    ----------
    view_of_maps : Tensor of shape (n_images, height, width), in [0, 1]
        The maps of the images, warped as the images were.
    maps_of_view : Tensor of shape (n_images, height, width), in [0, 1]
        The maps of the warped images.

    Returns
    -------
    Tensor of shape (n_images,), in [-1, 1]; higher is better.

    Notes
    -----
    SSIM finds two empty maps alike, so that a network without explanations would win: where either
    map is constant, the image counts as 0.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", section 3.2.2.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import ssim_consistency
    >>> maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> maps[1] = 0
    >>> ssim_consistency(maps, maps)
    tensor([1., 0.])
    """
    similarity = structural_similarity(view_of_maps, maps_of_view)
    return torch.where(is_constant(view_of_maps) | is_constant(maps_of_view), 0.0, similarity)


def consistency_score(
    estimator: Any,
    X: Any,
    *,
    method: str | Method | None = None,
    views: ViewSampler | None = None,
    random_state: int | np.random.RandomState | None = 0,
) -> float:
    """Mean SSIM between the view of the map and the map of the view, over the images of X.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier
        Fitted.
    X : images
        In any form that the estimator takes.
    method : str, Method or None, default=None
        The explanation; None is Grad-CAM without the ReLU, as in training.
    views : ViewSampler or None, default=None
        The distribution of crops and flips; None is the paper's, whatever an estimator was trained
        with, so that estimators can be compared.
    random_state : int, RandomState or None, default=0
        One seed gives every model and every batch size the same views.

    Returns
    -------
    float, in [-1, 1]; higher is better. The paper prints it times 100.

    Warns
    -----
    UserWarning
        If maps were constant; each such image counts as 0.

    Notes
    -----
    The map is scaled before it is cropped and not after, so that a crop without the map's brightest
    pixel peaks below 1: even a network that is perfectly consistent scores about 0.95 on crops.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", section 3.2.2 and table 1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklcam import ConsistentCAMClassifier
    >>> from sklcam.metrics import consistency_score
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> X = (X / 16).reshape(-1, 8, 8)
    >>> clf = ConsistentCAMClassifier("resnet18", image_size=64, max_epochs=1, verbose=0,
    ...                               random_state=0).fit(X[:64], y[:64])
    >>> 0 < consistency_score(clf, X[64:96]) < 1
    True
    """
    method = GradCAM(relu=False) if method is None else method
    views = ViewSampler() if views is None else views
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    generator = torch.Generator().manual_seed(seed)
    scores, n_constant = [], 0
    for inputs in estimator.iter_inputs(X):
        view = views(len(inputs), size=tuple(inputs.shape[-2:]), generator=generator)
        maps, _ = estimator.explain_inputs(inputs, method=method)
        maps_of_view, _ = estimator.explain_inputs(view(inputs), method=method)
        constant = is_constant(maps) | is_constant(maps_of_view)
        similarity = ssim_consistency(view(maps), maps_of_view)
        scores.append(torch.where(constant, 0.0, similarity).cpu())
        n_constant += int(constant.sum())
    per_image = torch.cat(scores)
    warn_of_constant_maps(n_constant, len(per_image))
    return per_image.double().mean().item()


def warn_of_constant_maps(n_constant: int, n_images: int) -> None:
    """Say how many images count as 0, if any do; the warning is for two calls up."""
    if n_constant:
        warnings.warn(
            f"{n_constant} of {n_images} images have a constant map, for themselves or for their "
            "view; each counts as 0.",
            stacklevel=3,
        )
