"""What every method shares: from activations to a raw map, and on to the map that people see.

A method is a small object without state. It gets tensors, not models or files, and returns tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


class GradientMethod(ABC):
    """A method that weighs a layer's activations by the gradient of a score.

    A subclass writes :meth:`combine`; taking the gradient, the layer's layout and the optional ReLU
    are dealt with here.

    Parameters
    ----------
    relu : bool, default=True
        Whether negative evidence is cut off.
    """

    def __init__(self, relu: bool = True):
        self.relu = relu

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"

    @abstractmethod
    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Turn activations and gradients, both (n_images, K, u, v), into maps (n_images, u, v)."""

    def __call__(
        self,
        scores: Tensor,
        activations: Tensor,
        *,
        to_grid: Callable[[Tensor], Tensor] | None = None,
        create_graph: bool = False,
    ) -> Tensor:
        """Return raw maps at the layer's resolution.

        Parameters
        ----------
        scores : Tensor of shape (n_images,)
            One per image, with a graph that reaches ``activations``.
        activations : Tensor
            As :func:`sklcam.tape.record` recorded them, in the layer's own layout.
        to_grid : callable or None
            Brings activations and gradients to shape (n_images, K, u, v); None if they have it.
        create_graph : bool, default=False
            Whether the maps can be differentiated, for training. The graph of ``scores`` is kept
            then, and freed otherwise.

        Returns
        -------
        Tensor of shape (n_images, u, v)
            float32, or float64 if the activations are.
        """
        (gradients,) = torch.autograd.grad(scores.sum(), activations, create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            grids = (activations, gradients)
            if to_grid is not None:
                grids = (to_grid(activations), to_grid(gradients))
            maps = self.combine(*(at_least_float32(grid) for grid in grids))
            return maps.relu() if self.relu else maps


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half-precision tensors as float32, others as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly (``align_corners=False``).

    Parameters
    ----------
    maps : Tensor of shape (n_images, u, v)
    size : tuple of two ints
        Height and width to reach.

    Returns
    -------
    Tensor of shape (n_images, height, width)
    """
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def min_max(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1] by its own minimum and maximum.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)

    Returns
    -------
    Tensor of the same shape
        A map that is constant, up to rounding, becomes all zeros and has a gradient of zero.

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
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    varies = high - low > _rounding(low.detach(), high.detach())
    extent = torch.where(varies, high - low, 1.0)
    return torch.where(varies, (maps - low) / extent, 0.0)


def _rounding(low: Tensor, high: Tensor) -> Tensor:
    """The spread that resizing a constant map can cause by rounding alone."""
    limits = torch.finfo(low.dtype)
    return 8 * limits.eps * torch.maximum(low.abs(), high.abs()) + limits.tiny
