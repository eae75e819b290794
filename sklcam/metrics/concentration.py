"""How much of the image a map covers, and how much of the map lies in few pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sklcam._validation import check_maps, check_number
from sklcam.metrics._ratios import ratio_or_zero
from sklcam.networks.precision import at_least_float32


def complexity(maps: Tensor) -> Tensor:
    """Mean absolute value of each map: how much of the image it takes to explain the decision.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), in [0, 1]

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
    check_maps(maps=maps)
    return maps.abs().mean(dim=(1, 2))


def sparsity(maps: Tensor) -> Tensor:
    r"""Gini index of each map: how much of it lies in few pixels.

    .. math:: \sum_{k=1}^{N} \frac{2k - N - 1}{N} \frac{m_{(k)}}{\sum_j m_{(j)}}

    with the absolute values in increasing order.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1); higher is sparser. 0 for an even map, and for a map of
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
    check_maps(maps=maps)
    # Half precision cannot hold the ranks of more than 2,048 pixels.
    values = at_least_float32(maps).abs().flatten(1).sort(dim=1).values
    n = values.shape[1]
    ranks = torch.arange(1, n + 1, device=values.device, dtype=values.dtype)
    gini = ratio_or_zero(((2 * ranks - n - 1) * values).sum(dim=1), n * values.sum(dim=1))
    return gini.to(maps.dtype)


def lp_norm(maps: Tensor, p: float = 1) -> Tensor:
    r""":math:`L_p` norm of each map, as training may keep it small.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
    p : float >= 0, default=1
        0 counts the pixels that are not zero.

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
    check_maps(maps=maps)
    if p != math.inf:  # the norm that is the largest value
        check_number("p", p, 0)
    return torch.linalg.vector_norm(maps, ord=p, dim=(1, 2))
