"""Raw maps and how they become those that people see: weighted sums, resizing, scaling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import check_count, check_map, check_sides


def weighted_sum(weights: Tensor, activations: Tensor, *, relu: bool) -> Tensor:
    r"""Return :math:`\sum_k \alpha_k A_k`.

    Parameters
    ----------
    weights : Tensor of shape (n_images, k, K)
    activations : Tensor of shape (n_images, K, u, v), or (n_images, K, d, u, v) of volumes
    relu : bool
        Whether negative evidence is cut off.

    Returns
    -------
    Tensor of shape (n_images, k, u, v), or (n_images, k, d, u, v)
    """
    maps = torch.einsum("ncK,nK...->nc...", weights, activations)
    return maps.relu() if relu else maps


def places(grid: Tensor) -> tuple[int, ...]:
    """Return which axes of a grid (n_images, K, ...) are places: two, or three of volumes."""
    return tuple(range(2, grid.ndim))


def sides(maps: Tensor) -> tuple[int, ...]:
    """Return which axes of maps (n_images, ...) are the sides of one: two, or three of volumes."""
    return tuple(range(1, maps.ndim))


def keep_top(weights: Tensor, n_channels: int) -> Tensor:
    """Set all weights (n_images, k, K) but each row's highest, by their sign, to zero.

    Raises
    ------
    ValueError
        If there are fewer channels.
    """
    if n_channels > weights.shape[2]:
        raise ValueError(
            f"top_channels={n_channels} asks for more channels than the layer has: "
            f"{weights.shape[2]}."
        )
    highest = weights.topk(n_channels, dim=2)
    return torch.zeros_like(weights).scatter(2, highest.indices, highest.values)


def upsample(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize maps bilinearly, or those of volumes trilinearly (``align_corners=False``).

    Parameters
    ----------
    maps : Tensor of shape (..., u, v) or (..., d, u, v)
    size : tuple of two ints, or of three
        Height and width to reach; or depth, height and width, which makes them maps of volumes.

    Returns
    -------
    Tensor of shape (..., height, width) or (..., depth, height, width)

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor with as many axes as there are sides, or a side
        is not a positive int.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import upsample
    >>> upsample(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    size = check_sides(size, "size")
    n_axes = len(size)
    check_map("maps", maps, n_axes)
    if maps.shape[-n_axes:] == size:
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-n_axes:])
    mode = "bilinear" if n_axes == 2 else "trilinear"
    flat = F.interpolate(flat, size=size, mode=mode, align_corners=False)
    return flat.reshape(*maps.shape[:-n_axes], *size)


def upsample_within(maps: Tensor, size: Sequence[int], extent: tuple[float, float]) -> Tensor:
    """Resize the part of maps that lies over images, as :func:`upsample` does all of them.

    Parameters
    ----------
    maps : Tensor of shape (n, k, u, v)
    size : tuple of two ints
        Height and width to reach.
    extent : tuple of two floats in (0, 1]
        Which part of the rows and of the columns that is, from the top left on.

    Returns
    -------
    Tensor of shape (n, k, height, width)
    """
    (down, right), (n, *_) = extent, maps.shape
    # From the output's coordinates, -1 to 1 over the image, to those of the whole maps.
    matrix = maps.new_tensor([[right, 0, right - 1], [0, down, down - 1]]).expand(n, -1, -1)
    places = F.affine_grid(matrix, [n, 1, *size], align_corners=False)
    return F.grid_sample(maps, places, padding_mode="border", align_corners=False)


def min_max(maps: Tensor, spatial_dims: int = 2) -> Tensor:
    """Scale each map to [0, 1] by its own minimum and maximum.

    Parameters
    ----------
    maps : Tensor of shape (..., height, width)
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 of volumes, (..., depth, height, width).

    Returns
    -------
    Tensor of the same shape
        A map that is constant, up to rounding, becomes all zeros and has a gradient of zero. One
        that holds NaN or an infinite value becomes NaN.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (..., height, width), or
        ``spatial_dims`` is not 2 or 3.

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
    check_count("spatial_dims", spatial_dims, 2, 3)
    check_map("maps", maps, spatial_dims)
    axes = tuple(range(-spatial_dims, 0))
    low, high = maps.amin(dim=axes, keepdim=True), maps.amax(dim=axes, keepdim=True)
    extent = high - low
    with torch.no_grad():
        # What is infinite has no scale: it becomes NaN, of which nothing is below any bound, and
        # which so is not taken for constant.
        nothing = extent - extent
        is_constant = extent + nothing <= rounding(low, high)
        # Both branches of `where` have a gradient, and one of 1/0 would be NaN: divide by 1 there.
        nothing = nothing + is_constant
    return torch.where(is_constant, 0.0, (maps - low) / (extent + nothing))


def rounding(low: Tensor, high: Tensor) -> Tensor:
    """Return the spread that resizing a constant map can cause by rounding alone."""
    # The weights of a bilinear mean sum to 1 only up to rounding. Constants, resized from 2 to 32
    # pixels a side to 12 to 384, came out up to 3.5 epsilons apart; 8 leaves room.
    limits = torch.finfo(low.dtype)
    return 8 * limits.eps * torch.maximum(-low, high) + limits.tiny
