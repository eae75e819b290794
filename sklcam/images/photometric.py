"""Photometric views: changes of brightness, colour and focus, recorded for each image.

They are the changes of torchvision and PIL, on images in [0, 1], each with a strength of its own.
Changes of geometry are in ``views.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import describe

_LUMA = (0.2989, 0.587, 0.114)
# PIL's SMOOTH, which its sharpness starts from, and its BLUR.
SMOOTH = ((1, 1, 1), (1, 5, 1), (1, 1, 1))
BLUR = ((1, 1, 1, 1, 1), (1, 0, 0, 0, 1), (1, 0, 0, 0, 1), (1, 0, 0, 0, 1), (1, 1, 1, 1, 1))
_BLUR_REACHES = 3  # standard deviations, on each side


@dataclass(frozen=True, eq=False)
class Photometry:
    """Changes to the pixels of each image of a batch, in this order.

    Parameters
    ----------
    brightness, contrast, color, sharpness : Tensor of shape (n_images,) or None, default=None
        Factors >= 0; 1 changes nothing. They multiply, in this order, the pixels themselves and
        their distances to the image's mean grey, to their own grey and to the smoothed image. None
        leaves a change out.
    blur : Tensor of shape (n_images,) or None, default=None
        Standard deviation of a Gaussian, in pixels.
    grey : Tensor of shape (n_images,), bool, or None, default=None
        Which images lose their colour.
    largest_blur : float, default=0.0
        The upper limit of ``blur``. The Gaussian is truncated at three times this value.

    Raises
    ------
    ValueError
        On a call, if contrast or colour change and the images are neither grey nor RGB.

    Examples
    --------
    >>> import torch
    >>> from sklcam.images.photometric import Photometry
    >>> images = torch.full((2, 3, 1, 1), 0.4)
    >>> Photometry(brightness=torch.tensor([0.5, 3.0]))(images)[:, 0, 0, 0]
    tensor([0.2000, 1.0000])
    """

    brightness: Tensor | None = None
    contrast: Tensor | None = None
    color: Tensor | None = None
    sharpness: Tensor | None = None
    blur: Tensor | None = None
    grey: Tensor | None = None
    largest_blur: float = 0.0

    def _of_tensors(self, change: Callable[[Tensor], Tensor]) -> Photometry:
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> Photometry:
        """Return a copy on another device."""
        return self._of_tensors(lambda value: value.to(device, non_blocking=True))

    def __getitem__(self, rows: slice) -> Photometry:
        return self._of_tensors(lambda value: value[rows])

    def __call__(self, images: Tensor) -> Tensor:
        """Change images.

        Parameters
        ----------
        images : Tensor of shape (n_images, channels, height, width), in [0, 1]

        Returns
        -------
        Tensor of the same shape, in [0, 1]
        """
        here = self.to(images.device)
        if here.brightness is not None:
            images = _blended(images, torch.zeros_like(images), here.brightness)
        if here.contrast is not None:
            mean = _grey(images, "contrast").mean(dim=(1, 2, 3), keepdim=True)
            images = _blended(images, mean, here.contrast)
        if here.color is not None:
            images = _blended(images, _grey(images, "color"), here.color)
        if here.sharpness is not None:
            images = _blended(images, filtered(images, SMOOTH), here.sharpness)
        if here.blur is not None:
            images = _blurred(images, here.blur, self.largest_blur)
        if here.grey is not None:
            images = torch.where(here.grey[:, None, None, None], _grey(images, "grey"), images)
        return images


def filtered(images: Tensor, kernel: tuple[tuple[int, ...], ...]) -> Tensor:
    """Filter images as PIL does; the border, where the kernel does not fit, does not change.

    Parameters
    ----------
    images : Tensor of shape (n_images, channels, height, width)
    kernel : tuple of rows
        Weights, with odd numbers of rows and columns, for a weighted mean.

    Returns
    -------
    Tensor of the same shape
    """
    weights = torch.tensor(kernel, dtype=images.dtype).to(images.device, non_blocking=True)
    edge, (height, width) = len(kernel) // 2, images.shape[-2:]
    if min(height, width) <= 2 * edge:
        return images
    weights = (weights / weights.sum()).expand(images.shape[1], 1, *weights.shape)
    inside = F.conv2d(images, weights, groups=images.shape[1])
    result = images.clone()
    result[..., edge:-edge, edge:-edge] = inside
    return result


def _blended(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    """Interpolate from the others (factor 0) to the images (1), or extrapolate beyond them."""
    factors = factors.to(images.dtype)[:, None, None, None]
    return (factors * images + (1 - factors) * others).clamp(0, 1)


def _grey(images: Tensor, name: str) -> Tensor:
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        raise ValueError(
            f"{name} of a view needs grey or RGB images, but these have {images.shape[1]} "
            f"channels: {describe(images)}. Leave it at 0; brightness, sharpness and blur work "
            "for any images."
        )
    luma = torch.tensor(_LUMA, dtype=images.dtype).to(images.device, non_blocking=True)
    return (images * luma[:, None, None]).sum(dim=1, keepdim=True)


def _blurred(images: Tensor, sigmas: Tensor, largest: float) -> Tensor:
    """Blur each image with its own Gaussian; images are mirrored beyond their borders."""
    n_images, n_channels, height, width = images.shape
    radius = math.ceil(_BLUR_REACHES * largest)
    for axis, side in ((2, height), (3, width)):
        reach = min(radius, side - 1)
        offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
        # The minimum has the effect of 0, and avoids 0 / 0.
        sigma = sigmas.to(images.dtype).clamp(min=1e-3)[:, None]
        weights = torch.softmax(-0.5 * (offsets / sigma) ** 2, dim=1)
        kernels = weights.repeat_interleave(n_channels, dim=0)[:, None]
        kernels = kernels[..., None] if axis == 2 else kernels[:, :, None]
        padding = [0, 0, reach, reach] if axis == 2 else [reach, reach, 0, 0]
        padded = F.pad(images, padding, mode="reflect")
        rows = padded.reshape(1, n_images * n_channels, *padded.shape[2:])
        images = F.conv2d(rows, kernels, groups=n_images * n_channels).reshape(images.shape)
    return images
