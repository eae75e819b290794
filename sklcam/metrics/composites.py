"""ADCC, ARCC and their terms: how much confidence a map keeps, and how much map that takes.

Coherency, which compares two maps, is in :mod:`sklcam.metrics.consistency`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sklcam._validation import check_maps, check_number, check_values
from sklcam.cam.maps import sides
from sklcam.networks.precision import at_least_float32

# Terms


def average_drop(full: Tensor, masked: Tensor) -> Tensor:
    """Relative loss of confidence when the network sees only what the map shows.

    Parameters
    ----------
    full, masked : Tensor of shape (n_images,), in [0, 1]
        Softmax score of the target class on the image, and on the image times its map.

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; lower is better.

    Raises
    ------
    ValueError
        If they are not floating-point tensors of one value per image, or scalars, of one shape and
        on one device.

    References
    ----------
    Chattopadhay et al., "Grad-CAM++", WACV 2018; Poppi et al., "Revisiting the Evaluation of Class
    Activation Mapping for Explainability", CVPRW 2021, section 3.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import average_drop
    >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.9]))
    tensor([0.7500, 0.0000])
    """
    check_values(full=full, masked=masked)
    return ratio_or_zero((full - masked).clamp(min=0), full)


def average_increase(full: Tensor, masked: Tensor) -> Tensor:
    """Whether the network is more confident when it sees only what the map shows.

    Parameters
    ----------
    full, masked : Tensor of shape (n_images,), in [0, 1]
        See :func:`average_drop`.

    Returns
    -------
    Tensor of shape (n_images,), 0 or 1; higher is better.

    Raises
    ------
    ValueError
        If they are not floating-point tensors of one value per image, or scalars, of one shape and
        on one device.

    References
    ----------
    Chattopadhay et al., "Grad-CAM++", WACV 2018; Poppi et al., CVPRW 2021, section 3.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import average_increase
    >>> average_increase(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.9]))
    tensor([0., 1.])
    """
    check_values(full=full, masked=masked)
    return torch.where((full + masked).isnan(), torch.nan, (masked > full).to(full.dtype))


def complexity(maps: Tensor, *, spatial_dims: int = 2) -> Tensor:
    """Mean absolute value of each map: how much of the image it takes to explain the decision.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), in [0, 1]
        Scaled, as in ADCC: the image is multiplied by this map.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; lower is better.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width).

    References
    ----------
    Poppi et al., "Revisiting the Evaluation of Class Activation Mapping for Explainability",
    CVPRW 2021, eq. 4.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import complexity
    >>> complexity(torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]))
    tensor([0.5000])
    """
    check_maps(spatial_dims, maps=maps)
    return maps.abs().mean(dim=sides(maps))


def sparsity(maps: Tensor, *, spatial_dims: int = 2) -> Tensor:
    r"""Gini index of each map: how much of it lies in few pixels.

    .. math:: \sum_{k=1}^{N} \frac{2k - N - 1}{N} \frac{m_{(k)}}{\sum_j m_{(j)}}

    with the absolute values in increasing order.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
        The method's own maps: a factor makes no difference, but subtracting their minimum does.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1); higher is sparser. 0 for a uniform map, and for a map of
    zeros.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width).

    References
    ----------
    Hurley, Rickard, "Comparing Measures of Sparsity", 2009; Chalasani et al., ICML 2020.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import sparsity
    >>> sparsity(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]))
    tensor([0.7500, 0.0000])
    """
    check_maps(spatial_dims, maps=maps)
    # Half precision cannot hold the ranks of more than 2,048 pixels.
    values = at_least_float32(maps).abs().flatten(1).sort(dim=1).values
    n = values.shape[1]
    ranks = torch.arange(1, n + 1, device=values.device, dtype=values.dtype)
    gini = ratio_or_zero(((2 * ranks - n - 1) * values).sum(dim=1), n * values.sum(dim=1))
    return gini.to(maps.dtype)


def lp_norm(maps: Tensor, p: float = 1, *, spatial_dims: int = 2) -> Tensor:
    r""":math:`L_p` norm of each map, which training may keep small.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
    p : float >= 0, default=1
        0 counts the pixels that are not zero.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,); lower is sparser. It grows with the number of pixels.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or p is not
        a number >= 0.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", eq. 3.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import lp_norm
    >>> lp_norm(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]), p=2)
    tensor([5.])
    """
    check_maps(spatial_dims, maps=maps)
    if p != math.inf:  # its norm is the largest value
        check_number("p", p, 0)
    return torch.linalg.vector_norm(maps, ord=p, dim=sides(maps))


# Harmonic means


def adcc(coherency: Tensor, complexity: Tensor, average_drop: Tensor) -> Tensor:
    r"""Average DCC: the harmonic mean of coherency, simplicity and kept confidence.

    .. math:: 3 \Big(\frac{1}{\mathrm{Coherency}} + \frac{1}{1 - \mathrm{Complexity}} +
              \frac{1}{1 - \mathrm{AverageDrop}}\Big)^{-1}

    Parameters
    ----------
    coherency, complexity, average_drop : Tensor of shape (n_images,), in [0, 1]
        The values of the functions with these names, or their means over a data set, as in the
        paper's tables.

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; higher is better. 0 where one of the terms is 0.

    Raises
    ------
    ValueError
        If they are not floating-point tensors of one value per image, or scalars, of one shape and
        on one device.

    References
    ----------
    Poppi et al., "Revisiting the Evaluation of Class Activation Mapping for Explainability",
    CVPRW 2021, eq. 5.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import adcc
    >>> terms = torch.tensor([0.8103, 0.2304, 0.4290])  # the paper's ResNet-18 and Grad-CAM
    >>> round(adcc(*terms).item(), 3)
    0.7
    """
    check_values(coherency=coherency, complexity=complexity, average_drop=average_drop)
    return harmonic_mean(coherency, 1 - complexity, 1 - average_drop)


def arcc(coherency: Tensor, complexity: Tensor, road: Tensor) -> Tensor:
    """ADCC with ROAD in place of the average drop.

    Parameters
    ----------
    coherency, complexity : Tensor of shape (n_images,), in [0, 1]
    road : Tensor of shape (n_images,), in [-0.5, 0.5]
        It is doubled, and clipped to [0, 1].

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; higher is better. 0 where one of the terms is 0.

    Raises
    ------
    ValueError
        If they are not floating-point tensors of one value per image, or scalars, of one shape and
        on one device.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import arcc
    >>> arcc(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.25]))
    tensor([0.6000])
    """
    check_values(coherency=coherency, complexity=complexity, road=road)
    return harmonic_mean(coherency, 1 - complexity, (2 * road).clamp(0, 1))


def harmonic_mean(*terms: Tensor) -> Tensor:
    """Return the harmonic mean of tensors of one shape, and 0 where one of them is 0."""
    stacked = torch.stack(terms)
    is_zero = (stacked <= 0).any(dim=0) & ~stacked.isnan().any(dim=0)  # NaN stays NaN
    inverses = 1 / torch.where(is_zero, 1.0, stacked)
    return torch.where(is_zero, 0.0, len(terms) / inverses.sum(dim=0))


def ratio_or_zero(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, and 0 where the denominator is 0; NaN of either stays NaN."""
    some = (denominator != 0) | numerator.isnan()
    return torch.where(some, numerator / torch.where(some, denominator, 1.0), 0.0)
