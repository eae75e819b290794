"""Whether two maps agree: of an image and its view, of an image and its part, or of two methods."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from sklcam._validation import (
    check_alike,
    check_count,
    check_maps,
    describe,
)
from sklcam.cam.maps import sides
from sklcam.metrics.composites import ratio_or_zero
from sklcam.networks.precision import at_least_float32

# The constants of Wang et al. and of scikit-image: the Gaussian is cut off at 3.5 sigma, and the
# data range is 1.
_SIGMA, _WINDOW = 1.5, 11
_C1, _C2 = 0.01**2, 0.03**2


def ssim_consistency(
    view_of_maps: Tensor,
    maps_of_view: Tensor,
    valid: Tensor | None = None,
    *,
    spatial_dims: int = 2,
) -> Tensor:
    """SSIM of the view of each map and the map of the view; a constant map counts as 0.

    Parameters
    ----------
    view_of_maps : Tensor of shape (n_images, height, width), in [0, 1]
        The map of each image, warped as the image was.
    maps_of_view : Tensor of shape (n_images, height, width), in [0, 1]
        The map of each warped image.
    valid : Tensor of shape (n_images, height, width), bool, or None, default=None
        Which pixels are compared, see :func:`structural_similarity`; None is all.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), in [-1, 1]; higher is better. NaN where no window is valid.

    Raises
    ------
    ValueError
        If they are not floating-point tensors of one shape, (n_images, height, width), on one
        device, or are smaller than SSIM's window of 11 x 11 pixels; or if ``valid`` is not bool,
        and of their shape.

    Notes
    -----
    The SSIM of two empty maps is 1, so a network without explanations would win. An image therefore
    counts as 0 if either map is constant on the compared pixels.

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
    check_maps(spatial_dims, view_of_maps=view_of_maps, maps_of_view=maps_of_view)
    similarity = structural_similarity(
        view_of_maps, maps_of_view, valid=valid, spatial_dims=spatial_dims
    )
    is_empty = is_constant(view_of_maps, valid) | is_constant(maps_of_view, valid)
    if valid is not None:
        is_empty &= ~similarity.isnan()  # where nothing is compared
    return torch.where(is_empty, 0.0, similarity)


def structural_similarity(
    maps: Tensor,
    others: Tensor,
    *,
    valid: Tensor | None = None,
    window: int | None = None,
    spatial_dims: int = 2,
) -> Tensor:
    """SSIM of pairs of maps, with a Gaussian window, differentiable.

    Parameters
    ----------
    maps, others : Tensor of shape (n_images, height, width), in [0, 1]
        At least 11 pixels a side, the size of the window, which is a cube for volumes. The mean is
        over the windows that lie inside the map, as in scikit-image.
    valid : Tensor of shape (n_images, height, width), bool, or None, default=None
        Which pixels count: the mean is over windows of valid pixels only. None is all.
    window : odd int or None, default=None
        Side of a square window, or a cube, with equal weights and sample covariances, as is
        scikit-image's default. None is the Gaussian of Wang et al.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), in [-1, 1]
        NaN, without a gradient, where no window is valid.

    Raises
    ------
    ValueError
        If the maps are smaller than the window, or differ in shape; if ``valid`` is not bool or not
        of their shape; or if ``window`` is not an odd int over 1.

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
    check_maps(spatial_dims, maps=maps, others=others)
    side = _WINDOW if window is None else _checked_side(window)
    axes = sides(maps)
    if min(maps.shape[1:]) < side:
        window_size, size = (" x ".join(map(str, n)) for n in ([side] * len(axes), maps.shape[1:]))
        raise ValueError(
            f"SSIM has a window of {window_size} pixels; got maps of {size}. "
            "Use a larger image_size."
        )
    if valid is not None:
        if not isinstance(valid, Tensor) or valid.dtype != torch.bool:
            raise ValueError(f"valid must be a bool Tensor; got {describe(valid)}.")
        check_alike({"maps": maps, "valid": valid})
    # Variances are small differences of means of squares, which half precision would lose.
    with torch.autocast(maps.device.type, enabled=False):
        maps, others = at_least_float32(maps), at_least_float32(others)
        pairs = torch.stack([maps, others], dim=1)
        squares = (pairs * pairs).mean(dim=1, keepdim=True)
        moments = torch.cat([pairs, (maps * others).unsqueeze(1), squares], dim=1)
        if _is_rounded_in_products(maps):
            # Sums of shifted maps take longer, and have the same precision on every device.
            blurred = moments
            for axis in range(2, moments.ndim):
                blurred = _shifted_sums(blurred, axis, window)
        else:
            *deep, rows, columns = (_window_sums(n, maps, window) for n in maps.shape[1:])
            blurred = rows @ moments @ columns.T
            for slices in deep:  # the first axis of volumes
                flat = slices @ blurred.flatten(3)
                blurred = flat.unflatten(3, blurred.shape[3:])
    n_pixels = None if window is None else window ** len(axes)
    similarity = _similarity(blurred, n_pixels)
    everywhere = similarity.mean(dim=axes)
    if valid is None:
        return everywhere
    counted = valid_windows(valid, side)
    n_counted = counted.sum(dim=axes)
    some = torch.where(counted, similarity, 0.0).sum(dim=axes) / n_counted.clamp(min=1)
    # A sum is rounded in another way than a mean, and all may be valid.
    is_whole = n_counted == math.prod(counted.shape[1:])
    return torch.where(is_whole, everywhere, torch.where(n_counted > 0, some, torch.nan))


def _similarity(moments: Tensor, n_pixels: int | None) -> Tensor:
    """Return the similarity in each window.

    It is a ratio of two numbers that are computed in the same way, so that operations are shared:
    one from what the maps have in common, one from both by themselves. Each is half of the paper's,
    so the ratio is the same: a product in place of twice that, the mean of two in place of their
    sum.

    Parameters
    ----------
    moments : Tensor of shape (n_images, 4, ...)
        The mean of each map, that of their product, and that of the squares of both.
    n_pixels : int or None
        Pixels of a window, if variances are those of a sample; None if those of a distribution.
    """
    means, products = moments.split(2, dim=1)
    first, second = means.split(1, dim=1)
    of_means = torch.cat([first * second, (means * means).mean(dim=1, keepdim=True)], dim=1)
    variances = products - of_means
    if n_pixels is not None:
        variances = variances * n_pixels / (n_pixels - 1)
    alike, alone = ((of_means + _C1 / 2) * (variances + _C2 / 2)).unbind(1)
    return alike / alone


def valid_windows(valid: Tensor, side: int = _WINDOW) -> Tensor:
    """Return which windows have only valid pixels: (n_images, height - side + 1, ...), bool."""
    pool = F.max_pool2d if valid.ndim == 3 else F.max_pool3d
    return -pool(-valid.float(), side, stride=1) > 0


def _checked_side(window: int) -> int:
    check_count("window, the side of a square,", window, 3)
    if window % 2 == 0:
        raise ValueError(f"window, the side of a square, must be odd; got {window}.")
    return window


def _is_rounded_in_products(maps: Tensor) -> bool:
    """Whether matrix products of float32 keep no more than 10 or 7 bits, as TF32 and bfloat16 do.

    A user may allow that for the whole process, for speed. SSIM would be off by up to 0.18.
    """
    allowed = torch.get_float32_matmul_precision() != "highest"
    allowed |= maps.is_cuda and torch.backends.cuda.matmul.allow_tf32
    return allowed and maps.dtype == torch.float32


def _shifted_sums(stack: Tensor, dim: int, window: int | None) -> Tensor:
    """Return the mean of each window along an axis, without a matrix product."""
    if window is None:
        weights = [math.exp(-((k - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for k in range(_WINDOW)]
    else:
        weights = [1.0] * window
    size = stack.shape[dim] - len(weights) + 1
    shifted = (w * stack.narrow(dim, k, size) for k, w in enumerate(weights))
    return sum(shifted, start=stack.new_zeros(())) / sum(weights)


def _window_sums(size: int, like: Tensor, window: int | None) -> Tensor:
    """Return the matrix (n_windows, size) that takes the mean of each window of a side."""
    # What is traced has no values, and must not be kept.
    make = _made_once.__wrapped__ if isinstance(like, FakeTensor) else _made_once
    return make(size, like.device, like.dtype, window)


@lru_cache(maxsize=16)  # small, and a dozen operations in every training step
def _made_once(size: int, device: torch.device, dtype: torch.dtype, window: int | None) -> Tensor:
    # The window is separable and small: two matrix products do for all maps and moments at once
    # what a convolution would, many times faster, above all backward.
    side = _WINDOW if window is None else window
    # Not made in an inference mode: kept from there, it could not be used in training.
    with torch.inference_mode(False):
        distance = torch.arange(side, device=device, dtype=dtype) - side // 2
        # In a square, all weights are equal.
        weights = (
            torch.exp(-(distance**2) / (2 * _SIGMA**2)) if window is None else distance * 0 + 1
        )
        offset = torch.arange(size, device=device) - torch.arange(
            size - side + 1, device=device
        ).unsqueeze(1)
        inside = (offset >= 0) & (offset < side)
        return torch.where(inside, (weights / weights.sum())[offset.clamp(0, side - 1)], 0.0)


def coherency(maps: Tensor, maps_of_masked: Tensor, *, spatial_dims: int = 2) -> Tensor:
    r"""Whether a map stays the same when the image is reduced to what the map shows.

    .. math:: \frac{1}{2}\Big(1 + \frac{\mathrm{Cov}(M', M)}{\sigma_{M'}\, \sigma_M}\Big), \qquad
              M' = \mathrm{CAM}(x \odot M)

    Parameters
    ----------
    maps, maps_of_masked : Tensor of shape (n_images, height, width)
        The map of each image, and that of the image times its map, for the same class.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; higher is better. 0 if one of the maps is constant: a
    constant has no correlation with anything.

    Raises
    ------
    ValueError
        If they are not floating-point tensors of one shape, (n_images, height, width), on one
        device.

    References
    ----------
    Poppi et al., "Revisiting the Evaluation of Class Activation Mapping for Explainability",
    CVPRW 2021, eq. 3, rescaled to [0, 1] as in section 3.2.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import coherency
    >>> maps = torch.tensor([[[0.0, 1.0], [0.2, 0.0]], [[0.5, 0.5], [0.5, 0.5]]])
    >>> coherency(maps, maps)
    tensor([1., 0.])
    """
    check_maps(spatial_dims, maps=maps, maps_of_masked=maps_of_masked)
    first, second = (_centred(stack) for stack in (maps, maps_of_masked))
    sizes = first.norm(dim=1) * second.norm(dim=1)
    constant = is_constant(maps) | is_constant(maps_of_masked)
    correlation = ratio_or_zero((first * second).sum(dim=1), sizes).clamp(-1, 1)
    return torch.where(constant, 0.0, (1 + correlation) / 2)


def _centred(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return flat - flat.mean(dim=1, keepdim=True)


def is_constant(maps: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return which maps have a single value, of valid pixels, bool of shape (n_images,)."""
    if valid is None:
        return maps.amax(dim=sides(maps)) == maps.amin(dim=sides(maps))
    lowest = torch.where(valid, maps, torch.inf).amin(dim=sides(maps))
    return torch.where(valid, maps, -torch.inf).amax(dim=sides(maps)) == lowest


def rank_correlation(
    maps: Tensor, references: Tensor, *, cell: int = 1, spatial_dims: int = 2
) -> Tensor:
    """Spearman's rank correlation of maps and reference maps.

    Parameters
    ----------
    maps, references : Tensor of shape (n_images, height, width)
        Such as Grad-CAM's, and occlusion's or human attention maps.
    cell : int, default=1
        Side of the squares, or cubes, over which both are averaged first. A reference may be
        constant over squares, as an occlusion map is over its stride; such ties carry no
        information.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), in [-1, 1]; higher is better. 0 where one of them is constant,
    NaN where one has NaN.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), the
        references not a tensor of the same shape on the same device, or ``cell`` is not an int
        >= 1.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 5.3.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import rank_correlation
    >>> rank_correlation(torch.tensor([[[1.0, 2.0, 9.0]]]), torch.tensor([[[0.0, 1.0, 1.5]]]))
    tensor([1.])
    """
    check_maps(spatial_dims, maps=maps)
    if not isinstance(references, Tensor):
        raise ValueError(f"references must be a Tensor; got {describe(references)}.")
    check_alike({"maps": maps, "references": references})
    check_count("cell, a number of pixels,", cell)
    ranks = [
        # On the host first: not every device has float64.
        rankdata(_means(stack.cpu().double(), cell).numpy(), axis=1)
        for stack in (maps, references)
    ]
    first, second = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    correlation = np.divide(products, sizes, out=np.zeros_like(products), where=sizes != 0)
    return torch.as_tensor(correlation, dtype=maps.dtype).to(maps.device)


def _means(stack: Tensor, cell: int) -> Tensor:
    """Return the means over squares, cut off at the edges: (n_images, n_squares)."""
    if cell > 1:
        pool = F.avg_pool2d if stack.ndim == 3 else F.avg_pool3d
        stack = pool(stack, cell, ceil_mode=True)
    return stack.flatten(1)
