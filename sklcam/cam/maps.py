"""From raw maps to the maps that users see: weighted sums, resizing and scaling."""

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
    activations : Tensor of shape (n_images, K, u, v), or (n_images, K, d, u, v) for volumes
    relu : bool
        Whether to set negative sums to zero.

    Returns
    -------
    Tensor of shape (n_images, k, u, v), or (n_images, k, d, u, v)
    """
    maps = torch.einsum("ncK,nK...->nc...", weights, activations)
    return maps.relu() if relu else maps


def places(grid: Tensor) -> tuple[int, ...]:
    """Return the spatial axes of a grid (n_images, K, ...): two, or three for volumes."""
    return tuple(range(2, grid.ndim))


def sides(maps: Tensor) -> tuple[int, ...]:
    """Return the spatial axes of maps (n_images, ...): two, or three for volumes."""
    return tuple(range(1, maps.ndim))


def keep_top(weights: Tensor, n_channels: int) -> Tensor:
    """Set all weights (n_images, k, K) except the highest (signed) of each row to zero.

    Raises
    ------
    ValueError
        If there are fewer than ``n_channels`` channels.
    """
    if n_channels > weights.shape[2]:
        raise ValueError(
            f"top_channels={n_channels} asks for more channels than the layer has: "
            f"{weights.shape[2]}."
        )
    highest = weights.topk(n_channels, dim=2)
    return torch.zeros_like(weights).scatter(2, highest.indices, highest.values)


def upsample(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize maps bilinearly, or trilinearly for volumes (``align_corners=False``).

    Parameters
    ----------
    maps : Tensor of shape (..., u, v) or (..., d, u, v)
    size : tuple of two or three ints
        The new height and width. For maps of volumes: the new depth, height and width.

    Returns
    -------
    Tensor of shape (..., height, width) or (..., depth, height, width)

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor with at least as many axes as ``size`` has
        entries, or an entry is not a positive int.

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
    """Resize only the part of maps that covers the images, as :func:`upsample` does for whole maps.

    Parameters
    ----------
    maps : Tensor of shape (n, k, u, v)
    size : tuple of two ints
        The new height and width.
    extent : tuple of two floats in (0, 1]
        The fractions of the rows and columns, from the top left, that cover the images.

    Returns
    -------
    Tensor of shape (n, k, height, width)
    """
    (down, right), (n, *_) = extent, maps.shape
    # Converts the output's coordinates, -1 to 1 over the image, to coordinates of the whole maps.
    matrix = maps.new_tensor([[right, 0, right - 1], [0, down, down - 1]]).expand(n, -1, -1)
    places = F.affine_grid(matrix, [n, 1, *size], align_corners=False)
    return F.grid_sample(maps, places, padding_mode="border", align_corners=False)


def min_max(maps: Tensor, spatial_dims: int = 2) -> Tensor:
    """Scale each map to [0, 1] by its own minimum and maximum.

    Parameters
    ----------
    maps : Tensor of shape (..., height, width)
    spatial_dims : {2, 3}, default=2
        The number of spatial axes: 3 for volumes, (..., depth, height, width).

    Returns
    -------
    Tensor of the same shape
        A map that is constant up to rounding becomes all zeros and has a gradient of zero. A map
        with NaN or infinite values becomes NaN.

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
        # 0 for a finite extent. An infinite one becomes NaN, which is not below any bound, so the
        # map does not count as constant.
        nothing = extent - extent
        is_constant = extent + nothing <= rounding(low, high)
        # Both branches of `where` have a gradient, and that of 1/0 would be NaN. Divide by 1 there.
        nothing = nothing + is_constant
    return torch.where(is_constant, 0.0, (maps - low) / (extent + nothing))


def rounding(low: Tensor, high: Tensor) -> Tensor:
    """Return the spread that resizing a constant map can cause by rounding alone."""
    # The weights of a bilinear mean sum to 1 only up to rounding. For constant maps, resized from
    # sides of 2 to 32 pixels to sides of 12 to 384, values differed by up to 3.5 epsilons. 8 leaves
    # room.
    limits = torch.finfo(low.dtype)
    return 8 * limits.eps * torch.maximum(-low, high) + limits.tiny
