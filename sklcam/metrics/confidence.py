"""How the network's confidence changes when it sees only what a map shows."""

from __future__ import annotations

from torch import Tensor

from sklcam._validation import check_values
from sklcam.metrics._ratios import ratio_or_zero


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
    return (masked > full).to(full.dtype)
