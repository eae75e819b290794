"""Numbers that maps alone give, or maps and the network's confidence.

Everything here is a pure function of tensors, one value an image; running networks is for
:mod:`sklcam.metrics.causal` and for the estimators.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sklcam._validation import check_maps, check_number, check_values
from sklcam.cam.maps import at_least_float32


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
    return _divide((full - masked).clamp(min=0), full)


def average_increase(full: Tensor, masked: Tensor) -> Tensor:
    """Whether the network is surer when it sees only what the map shows.

    Parameters
    ----------
    full, masked : Tensor of shape (n_images,), in [0, 1]
        As of :func:`average_drop`.

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
    return (masked > full).to(full.dtype)


def coherency(maps: Tensor, maps_of_masked: Tensor) -> Tensor:
    r"""Whether the map stays what it is when the image is reduced to what it shows.

    .. math:: \frac{1}{2}\Big(1 + \frac{\mathrm{Cov}(M', M)}{\sigma_{M'}\, \sigma_M}\Big), \qquad
              M' = \mathrm{CAM}(x \odot M)

    Parameters
    ----------
    maps, maps_of_masked : Tensor of shape (n_images, height, width)
        The map of each image, and that of the image times its map, for the same class.

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; higher is better. 0 where one of the maps is constant,
    which has no correlation with anything.

    Raises
    ------
    ValueError
        If they are not floating-point tensors of one shape, (n_images, height, width), on one
        device.

    References
    ----------
    Poppi et al., "Revisiting the Evaluation of Class Activation Mapping for Explainability",
    CVPRW 2021, eq. 3, brought to [0, 1] as in section 3.2.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import coherency
    >>> maps = torch.tensor([[[0.0, 1.0], [0.2, 0.0]], [[0.5, 0.5], [0.5, 0.5]]])
    >>> coherency(maps, maps)
    tensor([1., 0.])
    """
    check_maps(maps=maps, maps_of_masked=maps_of_masked)
    first, second = (_centred(stack) for stack in (maps, maps_of_masked))
    sizes = first.norm(dim=1) * second.norm(dim=1)
    constant = is_constant(maps) | is_constant(maps_of_masked)
    correlation = _divide((first * second).sum(dim=1), sizes).clamp(-1, 1)
    return torch.where(constant, 0.0, (1 + correlation) / 2)


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


def adcc(coherency: Tensor, complexity: Tensor, average_drop: Tensor) -> Tensor:
    r"""Average DCC: the harmonic mean of what an explanation should have.

    .. math:: 3 \Big(\frac{1}{\mathrm{Coherency}} + \frac{1}{1 - \mathrm{Complexity}} +
              \frac{1}{1 - \mathrm{AverageDrop}}\Big)^{-1}

    Parameters
    ----------
    coherency, complexity, average_drop : Tensor of shape (n_images,), in [0, 1]
        As the functions of these names return them; or their means over a data set, which is what
        the paper's tables print.

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
    """ADCC with ROAD in the place of the average drop.

    Parameters
    ----------
    coherency, complexity : Tensor of shape (n_images,), in [0, 1]
    road : Tensor of shape (n_images,), in [-0.5, 0.5]
        Doubled and cut to [0, 1].

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
    none = (stacked <= 0).any(dim=0)  # so that NaN stays NaN
    inverses = 1 / torch.where(none, 1.0, stacked)
    return torch.where(none, 0.0, len(terms) / inverses.sum(dim=0))


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
    values = at_least_float32(maps).abs().flatten(1).sort(dim=1).values  # ranks outgrow halves
    n = values.shape[1]
    ranks = torch.arange(1, n + 1, device=values.device, dtype=values.dtype)
    gini = _divide(((2 * ranks - n - 1) * values).sum(dim=1), n * values.sum(dim=1))
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
        If the maps are not a floating-point tensor of shape (n_images, height, width), or p is no
        number >= 0.

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
    if p != math.inf:  # which is the largest value
        check_number("p", p, 0)
    return torch.linalg.vector_norm(maps, ord=p, dim=(1, 2))


def _centred(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return flat - flat.mean(dim=1, keepdim=True)


def is_constant(maps: Tensor) -> Tensor:
    """Return which maps have one value only, (n_images,) bool."""
    return maps.amax(dim=(1, 2)) == maps.amin(dim=(1, 2))


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, and 0 where the denominator is 0."""
    some = denominator != 0
    return torch.where(some, numerator / torch.where(some, denominator, 1.0), 0.0)
