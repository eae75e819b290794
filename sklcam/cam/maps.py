"""Raw maps and how they become those that people see: weighted sums, resizing, scaling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import check_map, check_size


def weighted_sum(weights: Tensor, activations: Tensor, *, relu: bool) -> Tensor:
    r"""Return :math:`\sum_k \alpha_k A_k`.

    Parameters
    ----------
    weights : Tensor of shape (n_images, k, K)
    activations : Tensor of shape (n_images, K, u, v)
    relu : bool
        Whether negative evidence is cut off.

    Returns
    -------
    Tensor of shape (n_images, k, u, v)
    """
    maps = torch.einsum("ncK,nKuv->ncuv", weights, activations)
    return maps.relu() if relu else maps


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly (``align_corners=False``).

    Parameters
    ----------
    maps : Tensor of shape (..., u, v)
    size : tuple of two ints
        Height and width to reach.

    Returns
    -------
    Tensor of shape (..., height, width)

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (..., height, width), or a side is not
        a positive int.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import upsample
    >>> upsample(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    check_map("maps", maps)
    size = check_size(size, "size")
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return flat.reshape(*maps.shape[:-2], *size)


def min_max(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1] by its own minimum and maximum.

    Parameters
    ----------
    maps : Tensor of shape (..., height, width)

    Returns
    -------
    Tensor of the same shape
        A map that is constant, up to rounding, becomes all zeros and has a gradient of zero. One
        that holds NaN or an infinite value becomes NaN.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (..., height, width).

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import min_max
    >>> min_max(torch.tensor([[[1.0, 3.0], [2.0, 1.0]], [[7.0, 7.0], [7.0, 7.0]]]))
    tensor([[[0.0000, 1.0000],
             [0.5000, 0.0000]],
    <BLANKLINE>
            [[0.0000, 0.0000],
             [0.0000, 0.0000]]])
    """
    check_map("maps", maps)
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    extent = high - low
    # What is infinite has no scale. NaN is not below any bound, and so is not taken for constant.
    extent = torch.where(extent.isinf(), torch.nan, extent)
    is_constant = extent <= rounding(low.detach(), high.detach())
    # Both branches of `where` have a gradient, and one of 1/0 would be NaN: divide by 1 there.
    return torch.where(is_constant, 0.0, (maps - low) / torch.where(is_constant, 1.0, extent))


def rounding(low: Tensor, high: Tensor) -> Tensor:
    """Return the spread that resizing a constant map can cause by rounding alone."""
    # The weights of a bilinear mean sum to 1 only up to rounding. Constants, resized from 2 to 32
    # pixels a side to 12 to 384, came out up to 3.5 epsilons apart; 8 leaves room.
    limits = torch.finfo(low.dtype)
    return 8 * limits.eps * torch.maximum(low.abs(), high.abs()) + limits.tiny
