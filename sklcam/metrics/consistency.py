"""Consistency: whether the map of a view is the view of the map."""

from __future__ import annotations

import torch
from torch import Tensor

from sklcam._validation import check_maps
from sklcam.cam.maps import at_least_float32
from sklcam.metrics.confidence import is_constant

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
        If the maps are smaller than the window, or not of one shape.

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
    check_maps(maps=maps, others=others)
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

    Raises
    ------
    ValueError
        If they are not floating-point tensors of one shape, (n_images, height, width), on one
        device, or are smaller than SSIM's window of 11 x 11 pixels.

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
    check_maps(view_of_maps=view_of_maps, maps_of_view=maps_of_view)
    similarity = structural_similarity(view_of_maps, maps_of_view)
    return torch.where(is_constant(view_of_maps) | is_constant(maps_of_view), 0.0, similarity)
