"""Harmonic means of several metrics: one number for all that an explanation should have."""

from __future__ import annotations

import torch
from torch import Tensor

from sklcam._validation import check_values


def adcc(coherency: Tensor, complexity: Tensor, average_drop: Tensor) -> Tensor:
    r"""Average DCC: the harmonic mean of coherency, simplicity and kept confidence.

    .. math:: 3 \Big(\frac{1}{\mathrm{Coherency}} + \frac{1}{1 - \mathrm{Complexity}} +
              \frac{1}{1 - \mathrm{AverageDrop}}\Big)^{-1}

    Parameters
    ----------
    coherency, complexity, average_drop : Tensor of shape (n_images,), in [0, 1]
        The values of the functions of these names; or their means over a data set, which the
        paper's tables are made of.

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
    # The comparison is false for NaN, which therefore stays NaN.
    is_zero = (stacked <= 0).any(dim=0)
    inverses = 1 / torch.where(is_zero, 1.0, stacked)
    return torch.where(is_zero, 0.0, len(terms) / inverses.sum(dim=0))
