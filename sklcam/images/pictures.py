"""Pictures: images in the form in which they are drawn and written to files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_picture(image: Tensor) -> np.ndarray:
    """Turn an image into an array that matplotlib and Pillow take.

    Parameters
    ----------
    image : Tensor of shape (n_channels, height, width)
        uint8, or float. Floats outside [0, 1], such as a network's own input, are scaled to [0, 1].

    Returns
    -------
    ndarray of shape (height, width) or (height, width, 3), float32 in [0, 1]
        Grey for one channel or two, otherwise the first three.

    Examples
    --------
    >>> import torch
    >>> from sklcam.images.pictures import to_picture
    >>> to_picture(torch.tensor([[[-1.0, 0.0, 1.0]]]))
    array([[0. , 0.5, 1. ]], dtype=float32)
    """
    check_is_picture(image.shape[1:])
    return _drawable(_in_unit(image))


def picture_of_slice(volume: Tensor, i: int) -> np.ndarray:
    """Turn slice i of a volume (n_channels, depth, height, width) into an array, as `to_picture`.

    Floats outside [0, 1] are scaled by the range of the whole volume, so slices can be compared.
    """
    return _drawable(_in_unit(volume)[:, i])


def check_is_picture(size: Sequence[int]) -> None:
    """Raise a ValueError if an image of this size is a volume, which cannot be drawn."""
    if len(size) == 3:
        raise ValueError(
            f"Volumes, of {' x '.join(map(str, size))} voxels, are not drawn as pictures are here. "
            "Use CAMDisplay.from_estimator, which draws a slice of each, or pass slices of X and "
            "of the maps, such as X[:, :, i] and maps[:, i]."
        )


def _in_unit(image: Tensor) -> Tensor:
    pixels = image.detach().cpu().float() / (255 if image.dtype == torch.uint8 else 1)
    low, high = float(pixels.min()), float(pixels.max())
    return (pixels - low) / (high - low) if low < 0 or high > 1 else pixels


def _drawable(pixels: Tensor) -> np.ndarray:
    if len(pixels) < 3:
        return pixels.mean(dim=0).numpy()
    return pixels[:3].permute(1, 2, 0).numpy()
