"""Numbers that a map alone gives, or a map and the network's confidence."""

from __future__ import annotations

from torch import Tensor


def complexity(maps: Tensor) -> Tensor:
    """Mean absolute value of each map: how much of the image it takes to explain the decision.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), in [0, 1]

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; lower is better.

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
    return maps.abs().mean(dim=(1, 2))
