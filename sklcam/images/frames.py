"""Frames: bring images to the size of a network's input, and maps back to the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from sklcam._validation import check_map, check_number, check_size

# A centre crop scales an image before it crops it. If a side is more than this many times as long
# as its visible part, as in a line of 65,000 pixels, it is shortened to that first. Otherwise the
# scaled image could fill any memory.
_LONGEST = 64

# A file that is decoded at a fraction of its sides is still at least this many times as large as
# the scaled image. With less, antialiasing would have too little to average.
_LEAST_DECODED = 2

Mode = Literal["stretch", "center_crop", "pad"]
Decode = Literal["exact", "fast"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

# PIL's nearest neighbour is torch's exact one. Torch has no kernels for the others.
_IN_TORCH = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


@dataclass(frozen=True)
class Resizing:
    """How an image of any size is brought to the size of a network's input.

    It is scaled to the input's size divided by ``crop_fraction``, and its middle is cropped.

    Parameters
    ----------
    mode : {"stretch", "center_crop", "pad"}, default="stretch"
        "stretch" scales both sides to that size. The others keep the proportions: with
        "center_crop" the image just covers the size, with "pad" it just fits into it.
    crop_fraction : float from 0.1 to 10, default=1.0
        The fraction of each side that is kept. Above 1, the border is filled.
    interpolation : str, default="bilinear"
        One of "nearest", "box", "bilinear", "hamming", "bicubic" and "lanczos", antialiased.
    fill : tuple of float in [0, 1], default=(0.0,)
        The colour where the image does not cover the input.
    rounds_down : bool, default=False
        Whether a middle between two pixels goes to the first one, rather than to the even one as in
        torchvision.
    decode : {"exact", "fast"}, default="exact"
        "fast" decodes large JPEG files at an eighth, a quarter or half of their sides, if this is
        still at least twice the scaled image. Pixels then differ by fractions of a grey level, and
        by a few levels at edges. All else is decoded as it is.

    Raises
    ------
    ValueError
        If a parameter is not one of these.

    Examples
    --------
    >>> from sklcam.images import Resizing
    >>> Resizing("center_crop", 0.875).place((480, 640), (224, 224))
    ((256, 341), 16, 58)
    """

    mode: Mode = "stretch"
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bilinear"
    fill: tuple[float, ...] = (0.0,)
    rounds_down: bool = False
    decode: Decode = "exact"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {get_args(Mode)}; got {self.mode!r}.")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation must be one of {get_args(Interpolation)}; got "
                f"{self.interpolation!r}."
            )
        if self.decode not in get_args(Decode):
            raise ValueError(f'decode must be "exact" or "fast"; got {self.decode!r}.')
        check_number("crop_fraction", self.crop_fraction, 0.1, 10)
        for value in self.fill:
            check_number("fill", value, 0, 1)

    def place(
        self, size: Sequence[int], input_size: Sequence[int]
    ) -> tuple[tuple[int, int], int, int]:
        """Return the place of the network's input in the scaled image.

        Parameters
        ----------
        size : (height, width)
            The image's own size.
        input_size : (height, width)

        Returns
        -------
        scaled : tuple of (int, int)
            Height and width of the scaled image.
        top, left : int
            The first row and column of the input in it; negative if the input is padded.
        """
        height, width = size
        around = self._around(input_size)
        if self.mode == "stretch":
            scaled = around
        elif self.mode == "pad":
            ratio = max(height / around[0], width / around[1])
            scaled = (max(1, round(height / ratio)), max(1, round(width / ratio)))
        # Integers, as a quotient may round to just under the size that must be covered.
        elif around[0] * width >= around[1] * height:
            scaled = (around[0], around[0] * width // height)
        else:
            scaled = (around[1] * height // width, around[1])
        top, left = (
            self._start(outer - inner) for outer, inner in zip(scaled, input_size, strict=True)
        )
        return scaled, top, left

    def decoded(self, size: Sequence[int], input_size: Sequence[int]) -> tuple[int, int] | None:
        """Return the smallest size to decode a file at.

        Parameters
        ----------
        size : (height, width)
            The image's own size.
        input_size : (height, width)

        Returns
        -------
        (height, width) or None
            None to decode it at its own size.
        """
        whole = (slice(0, size[0]), slice(0, size[1]))
        if self.decode == "exact" or self.seen(size, input_size) != whole:
            return None
        (height, width), _, _ = self.place(size, input_size)
        return _LEAST_DECODED * height, _LEAST_DECODED * width

    def _around(self, input_size: Sequence[int]) -> tuple[int, int]:
        height, width = (max(1, math.floor(side / self.crop_fraction)) for side in input_size)
        return height, width

    def _start(self, rest: int) -> int:
        if rest < 0:
            return -(-rest // 2)
        return rest // 2 if self.rounds_down else round(rest / 2)

    def seen(self, size: Sequence[int], input_size: Sequence[int]) -> tuple[slice, slice]:
        """Return the rows and columns of an image that are scaled, which mostly is all of them."""
        if self.mode != "center_crop":
            return slice(0, size[0]), slice(0, size[1])
        around = self._around(input_size)
        rows = _middle(size[0], -(-around[0] * size[1] // around[1]))
        return rows, _middle(size[1], -(-around[1] * size[0] // around[0]))


def map_to_frame(
    map_: Tensor, size: Sequence[int], *, resize: str | Resizing = "stretch"
) -> Tensor:
    """Bring a map from the network's input frame to the frame of the original image.

    Parameters
    ----------
    map_ : Tensor of shape (..., height, width), float
        A map, or many maps of images of one size, at the network's input size.
    size : (int, int)
        Height and width of the original image, as `ImageDataset.original_size` returns them.
    resize : {"stretch", "center_crop"} or Resizing, default="stretch"
        How the image was brought to the network's input size. The map of a centre crop is put back
        in its place, and is zero outside it, which means at original pixels whose centre the
        network did not see.

    Returns
    -------
    Tensor of shape (..., size[0], size[1])
        Interpolated bilinearly with pixels as areas (``align_corners=False``), antialiased if the
        map shrinks.

    Raises
    ------
    ValueError
        If `map_` is not float or has fewer than two dimensions, `size` is not two positive ints, or
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
    how = as_resizing(resize)
    check_map("map_", map_)
    maps = map_.reshape(-1, 1, *map_.shape[-2:])
    if how.place(size, map_.shape[-2:]) == (tuple(map_.shape[-2:]), 0, 0):
        maps = functional.resize(maps, list(size), antialias=True)
    else:
        maps = _undo_crop(maps, size, how)
    return maps.reshape(*map_.shape[:-2], *size)


def resize_image(
    image: Tensor,
    size: tuple[int, int],
    resize: str | Resizing,
    own_size: Sequence[int] | None = None,
) -> Tensor:
    """Return the image at `size`. Every form of X is resized here, so that all look the same.

    If an image was decoded at a fraction of its sides, `own_size` keeps it in the same place.
    """
    how = as_resizing(resize)
    if own_size is None or tuple(own_size) == tuple(image.shape[-2:]):
        image = image[..., *how.seen(image.shape[-2:], size)]
        own_size = image.shape[-2:]
    scaled, top, left = how.place(own_size, size)
    image = _interpolated(image, scaled, how.interpolation)
    if (top, left, *scaled) != (0, 0, *size):
        image = _cut(image, size, top, left, how.fill)
    # Interpolation, and the origin of X, may round to slightly outside [0, 1].
    return (image.clamp(0, 1) if image.is_floating_point() else image).contiguous()


def _interpolated(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    if interpolation in _IN_TORCH:
        return functional.resize(image, list(size), _IN_TORCH[interpolation], antialias=True)
    filter_ = Image.Resampling[interpolation.upper()]
    planes = image.cpu().reshape(-1, *image.shape[-2:]).numpy()
    made = [Image.fromarray(plane).resize(size[::-1], filter_) for plane in planes]
    resized = torch.from_numpy(np.stack([np.array(plane) for plane in made]))
    return resized.reshape(*image.shape[:-2], *size).to(image.device)


def _cut(
    image: Tensor, size: tuple[int, int], top: int, left: int, fill: tuple[float, ...]
) -> Tensor:
    """Crop the input out of a scaled image, and fill its parts outside the image."""
    inside = image[..., max(0, top) : top + size[0], max(0, left) : left + size[1]]
    if tuple(inside.shape[-2:]) == size:
        return inside
    colour = image.new_tensor(fill, dtype=torch.float64).reshape(-1, 1, 1)
    if not image.is_floating_point():
        colour = (colour * 255).round()
    made = colour.to(image.dtype).expand(*image.shape[:-2], *size).clone()
    height, width = image.shape[-2:]
    to_rows = slice(max(0, -top), min(size[0], height - top))
    to_columns = slice(max(0, -left), min(size[1], width - left))
    made[..., to_rows, to_columns] = inside
    return made


def _middle(length: int, n_seen: int) -> slice:
    n_off = max(0, length - _LONGEST * n_seen) // 2  # at each end, so the middle stays the same
    return slice(n_off, length - n_off)


def _undo_crop(maps: Tensor, size: tuple[int, int], how: Resizing) -> Tensor:
    """Put maps of a part, of shape (n, 1, h, w), back into the frame of the whole image."""
    height, width = maps.shape[-2:]
    rows, columns = how.seen(size, (height, width))
    inner = (rows.stop - rows.start, columns.stop - columns.start)
    if inner != tuple(size):
        around = maps.new_zeros(len(maps), 1, *size)
        around[..., rows, columns] = _undo_crop(maps, inner, how)
        return around
    scaled, top, left = how.place(size, (height, width))
    bottom, right = scaled[0] - height - top, scaled[1] - width - left
    # Padding is not part of the image.
    maps = maps[..., max(0, -top) : height + min(0, bottom), max(0, -left) : width + min(0, right)]
    # Edge values are repeated beyond the edges, so that zeros there do not lower interpolated ones.
    beyond = [max(0, side) for side in (left, right, top, bottom)]
    maps = functional.resize(pad(maps, beyond, mode="replicate"), list(size), antialias=True)
    in_rows = _covered(size[0], scaled[0], top, height, maps.device)
    in_columns = _covered(size[1], scaled[1], left, width, maps.device)
    return maps.where(in_rows[:, None] & in_columns, 0)


def _covered(n_pixels: int, n_scaled: int, start: int, length: int, device: torch.device) -> Tensor:
    """Mark the original pixels of a side whose centre is in the crop, as bool (n_pixels,)."""
    centers = (torch.arange(n_pixels, device=device) + 0.5) * (n_scaled / n_pixels)
    return (centers >= start) & (centers < start + length)


def as_resizing(resize: Any) -> Resizing:
    """Return a name as a Resizing; raise a ValueError if it is not known."""
    if isinstance(resize, Resizing):
        return resize
    if resize not in ("stretch", "center_crop"):
        raise ValueError(f"resize must be 'stretch' or 'center_crop'; got {resize!r}.")
    return Resizing(resize)


def shares_of_cells(
    mask: Tensor,
    grid: Sequence[int],
    input_size: Sequence[int],
    *,
    resize: str | Resizing = "stretch",
) -> tuple[Tensor, Tensor]:
    """Bring masks of an image to the grid of a layer, as the share of each cell that they cover.

    The shares are exact fractions of areas; no pixel is interpolated.

    Parameters
    ----------
    mask : Tensor of shape (..., height, width), float in [0, 1]
        Masks at the image's own size.
    grid : (int, int)
        The numbers of rows and columns of cells over the network's input.
    input_size : (int, int)
        Height and width of the network's input.
    resize : {"stretch", "center_crop"} or Resizing, default="stretch"
        How the image was brought to that size.

    Returns
    -------
    covered : Tensor of shape (..., grid[0], grid[1]), in [0, 1]
    seen : Tensor of shape (grid[0], grid[1]), in [0, 1]
        The share of each cell that lies over the image: less than 1 where the input was padded.

    Examples
    --------
    >>> import torch
    >>> from sklcam.images.frames import shares_of_cells
    >>> covered, _ = shares_of_cells(torch.tensor([[1.0, 0, 0, 0]]), (1, 2), (4, 4))
    >>> covered
    tensor([[0.5000, 0.0000]])
    """
    size, how = tuple(mask.shape[-2:]), as_resizing(resize)
    seen_of = how.seen(size, input_size)
    inner = [part.stop - part.start for part in seen_of]
    scaled, *starts = how.place(inner, input_size)
    shares = []
    for axis, start in enumerate(starts):
        edges = torch.arange(grid[axis] + 1, device=mask.device, dtype=mask.dtype)
        edges = edges * (input_size[axis] / grid[axis]) + start
        edges = (edges * (inner[axis] / scaled[axis]) + seen_of[axis].start)[:, None]
        pixels = torch.arange(size[axis], device=mask.device, dtype=mask.dtype)
        inside = torch.minimum(edges[1:], pixels + 1) - torch.maximum(edges[:-1], pixels)
        shares.append(inside.clamp(min=0) / (edges[1:] - edges[:-1]))
    rows, columns = shares
    covered = rows @ mask @ columns.T
    seen = rows.sum(dim=1)[:, None] * columns.sum(dim=1)
    return covered.clamp(0, 1), seen.clamp(0, 1)
