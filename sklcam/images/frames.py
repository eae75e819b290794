"""Frames: an image is brought to the size of a network's input, and a map is brought back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import functional

from sklcam._validation import check_map, check_size

# A centre crop scales an image before it cuts off what stands over. Of a side with more than this
# many times what is seen of it, as of a line of 65,000 pixels, the rest is cut off first: scaled,
# it could fill any memory.
_LONGEST = 64


def map_to_frame(map_: Tensor, size: Sequence[int], *, resize: str = "stretch") -> Tensor:
    """Bring a map from the network's input frame to the frame of the original image.

    Parameters
    ----------
    map_ : Tensor of shape (..., height, width), float
        A map, or many of images of one size, at the network's input size.
    size : (int, int)
        Height and width of the original image, as `ImageDataset.original_size` gives them.
    resize : {"stretch", "center_crop"}, default="stretch"
        How the image was brought to the network's input size. The map of a centre crop is put back
        where the crop was, and is zero outside it: at original pixels whose centre the network did
        not see.

    Returns
    -------
    Tensor of shape (..., size[0], size[1])
        Interpolated bilinearly, pixels taken as areas (``align_corners=False``), antialiased where
        the map shrinks.

    Raises
    ------
    ValueError
        If `map_` is not float or has under two dimensions, `size` is not two positive ints, or
        `resize` is unknown.

    Examples
    --------
    >>> import torch
    >>> from sklcam.images.frames import map_to_frame
    >>> map_to_frame(torch.ones(2, 2), (2, 4), resize="center_crop")
    tensor([[0., 1., 1., 0.],
            [0., 1., 1., 0.]])
    """
    size = check_size(size, "size")
    check_resize(resize)
    check_map("map_", map_)
    maps = map_.reshape(-1, 1, *map_.shape[-2:])
    if resize == "stretch":
        maps = functional.resize(maps, list(size), antialias=True)
    else:
        maps = _undo_center_crop(maps, size)
    return maps.reshape(*map_.shape[:-2], *size)


def resize_image(image: Tensor, size: tuple[int, int], resize: str) -> Tensor:
    """Return the image at `size`; every form of X is resized here, so that all look alike."""
    if resize == "stretch":
        image = functional.resize(image, list(size), antialias=True)
    else:
        image = image[..., *_around_crop(image.shape[-2], image.shape[-1], size)]
        scaled, top, left = _center_crop(image.shape[-2], image.shape[-1], size)
        image = functional.resize(image, list(scaled), antialias=True)
        image = image[..., top : top + size[0], left : left + size[1]]
    # Interpolation, and whatever made X, may round to a hair outside [0, 1].
    return (image.clamp(0, 1) if image.is_floating_point() else image).contiguous()


def _around_crop(height: int, width: int, size: Sequence[int]) -> tuple[slice, slice]:
    """Return the rows and columns that a centre crop is made from: for most images, all."""
    rows = _middle(height, -(-size[0] * width // size[1]))
    return rows, _middle(width, -(-size[1] * height // size[0]))


def _middle(length: int, n_seen: int) -> slice:
    n_off = max(0, length - _LONGEST * n_seen) // 2  # at either end, so that the middle stays
    return slice(n_off, length - n_off)


def _center_crop(height: int, width: int, size: Sequence[int]) -> tuple[tuple[int, int], int, int]:
    """Return the size at which an image just covers `size`, and the top and left of its crop.

    Rounded as torchvision's ``Resize`` and ``CenterCrop`` do.
    """
    # Integers, as a quotient may round to just under the size that must be covered.
    if size[0] * width >= size[1] * height:
        scaled = (size[0], size[0] * width // height)
    else:
        scaled = (size[1] * height // width, size[1])
    return scaled, round((scaled[0] - size[0]) / 2), round((scaled[1] - size[1]) / 2)


def _undo_center_crop(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Put maps of a centre crop, of shape (n, 1, h, w), back into the frame of the whole image."""
    height, width = maps.shape[-2:]
    rows, columns = _around_crop(*size, (height, width))
    if (rows.start, columns.start) != (0, 0):
        around = maps.new_zeros(len(maps), 1, *size)
        inner = (rows.stop - rows.start, columns.stop - columns.start)
        around[..., rows, columns] = _undo_center_crop(maps, inner)
        return around
    scaled, top, left = _center_crop(*size, (height, width))
    bottom, right = scaled[0] - height - top, scaled[1] - width - left
    # Repeated beyond its edges, the map is not pulled down there by zeros when it is interpolated.
    maps = pad(maps, (left, right, top, bottom), mode="replicate")
    maps = functional.resize(maps, list(size), antialias=True)
    in_rows = _covered(size[0], scaled[0], top, height, maps.device)
    in_columns = _covered(size[1], scaled[1], left, width, maps.device)
    return maps.where(in_rows[:, None] & in_columns, 0)


def _covered(n_pixels: int, n_scaled: int, start: int, length: int, device: torch.device) -> Tensor:
    """Mark the original pixels of a side whose centre is in the crop: bool of shape (n_pixels,)."""
    centers = (torch.arange(n_pixels, device=device) + 0.5) * (n_scaled / n_pixels)
    return (centers >= start) & (centers < start + length)


def check_resize(resize: Any) -> str:
    """Return the way of resizing; a ValueError unless it is known."""
    if resize not in ("stretch", "center_crop"):
        raise ValueError(f"resize must be 'stretch' or 'center_crop', got {resize!r}.")
    return resize
