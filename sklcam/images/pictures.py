"""Pictures: images as they are drawn and written to files."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_picture(image: Tensor) -> np.ndarray:
    """Turn an image into an array that matplotlib and Pillow take.

    Parameters
    ----------
    image : Tensor of shape (n_channels, height, width)
        uint8, or float. Floats outside [0, 1], such as a network's own input, are scaled to it.

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
    pixels = image.detach().cpu().float() / (255 if image.dtype == torch.uint8 else 1)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        pixels = (pixels - low) / (high - low)
    if len(pixels) < 3:
        return pixels.mean(dim=0).numpy()
    return pixels[:3].permute(1, 2, 0).numpy()
