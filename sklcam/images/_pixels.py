"""One image as a tensor, whatever form it has, and the checks of its pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

# Floats are scanned this many pixels at a time: it bounds the memory that a memory map takes.
_SCAN_PIXELS = 2**22

# Rounding may have brought a float this far out of [0, 1]; such pixels are clamped when read.
_ROUNDING = 1e-6


def item_tensor(image: Any, name: str) -> Tensor:
    """Return an item of a lazy source as a tensor, with the checks that arrays get at the door."""
    if isinstance(image, Image.Image):
        with naming(name):
            return rgb_tensor(image)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"{name} is a {type(image).__name__}; an item of a data set must be a PIL image, an "
            "array of shape (height, width) or (height, width, n_channels), a tensor of shape "
            "(n_channels, height, width), or a tuple that starts with one of them."
        )
    check_image_shape(image, name)
    check_pixel_dtype(image, name)
    tensor = copy_channels_first(image)
    if tensor.is_floating_point():
        _check_range(*_finite_extremes(tensor, name), f"The pixels of {name}")
    return tensor


def copy_channels_first(image: np.ndarray | Tensor) -> Tensor:
    """Return a copy, uint8 or float32, with the channels third from last; it shares no memory."""
    if isinstance(image, Tensor):
        # As a plain tensor: torchvision's classes of tensors would follow into the network.
        dtype = torch.uint8 if is_uint8(image) else torch.float32
        return image.detach().as_subclass(Tensor).to(dtype, copy=True)
    tensor = torch.from_numpy(np.array(image, dtype=np.uint8 if is_uint8(image) else np.float32))
    return tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.movedim(-1, -3)


def rgb_tensor(image: Image.Image) -> Tensor:
    """Return a PIL image as (3, height, width), upright: uint8, or float32 if it has 16 bits."""
    image = load_upright(image)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion would cut off everything above 255.
        grey = np.asarray(image).astype(np.float32) / 65535
        return torch.from_numpy(grey).repeat(3, 1, 1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of the transparency it drops
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # which copies in any case
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def load_upright(image: Image.Image) -> Image.Image:
    """Return the image, loaded and turned as its EXIF orientation says."""
    if 0 in image.size:
        raise ValueError(f"its size is {image.width} x {image.height}.")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels have 32 bits (mode {image.mode!r}) and thus no known range; "
            "pass float arrays in [0, 1] instead."
        )
    image.load()
    # To turn an image is to copy it, also where there is nothing to turn.
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the height and width that `load_upright` would give, mostly without loading."""
    if image.format == "TIFF" and _lies_on_its_side(image):
        image.load()  # Pillow turns a TIFF as it loads it; its size before depends on the version
    if _lies_on_its_side(image):
        return image.width, image.height
    return image.height, image.width


def _lies_on_its_side(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a ValueError that says which image it was."""
    try:
        yield
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def is_uint8(pixels: np.ndarray | Tensor) -> bool:
    """Whether pixels are bytes."""
    return pixels.dtype == (torch.uint8 if isinstance(pixels, Tensor) else np.uint8)


def check_pixel_dtype(pixels: np.ndarray | Tensor, name: str) -> None:
    """Raise a ValueError unless pixels are bytes or floats, and dense."""
    if isinstance(pixels, Tensor):
        if pixels.layout != torch.strided:
            raise ValueError(f"{name} is a sparse tensor; pass a dense one, {name}.to_dense().")
        is_float, remedy = pixels.is_floating_point(), ".to(torch.uint8)"
    else:
        is_float, remedy = pixels.dtype.kind == "f", ".astype(np.uint8)"
    if not (is_float or is_uint8(pixels)):
        raise ValueError(
            f"{name} has dtype {pixels.dtype}; pixels must be uint8, or floats in [0, 1]. "
            f"If its values are 0 to 255, pass {name}{remedy}."
        )


def check_image_shape(
    image: np.ndarray | Tensor, name: str, batch: tuple[int, ...] | None = None
) -> None:
    """Check the shape of an image, or of the first of a batch, whose shape the message shows."""
    shape = tuple(image.shape) if batch is None else batch
    if image.ndim != 3 and (image.ndim != 2 or isinstance(image, Tensor)):
        raise ValueError(
            f"{name} has shape {shape}; an image is an array of shape (height, width) or "
            "(height, width, n_channels), or a tensor of shape (n_channels, height, width)."
        )
    if 0 in image.shape:
        raise ValueError(f"{name} has shape {shape}: its images have no pixels.")
    if image.ndim == 3:
        _check_channel_axis(image, name, shape)


def _check_channel_axis(image: np.ndarray | Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Refuse colour images whose channels obviously stand where the other library puts them."""
    # Three channels are unmistakable beside longer sides; other counts may be a matter of taste.
    first, middle, last = image.shape
    leading = len(shape) - 3
    if isinstance(image, Tensor):
        if last == 3 and first > 4 and middle > 4:
            axes = (*range(leading), leading + 2, leading, leading + 1)
            raise ValueError(
                f"{name} is a tensor of shape {shape}, with its channels last; tensors have them "
                f"first: pass {name}.permute{axes}, or an array."
            )
    elif first == 3 and middle > 4 and last > 4:
        axes = (*range(leading), leading + 1, leading + 2, leading)
        raise ValueError(
            f"{name} is an array of shape {shape}, with its channels first; arrays have them "
            f"last: pass {name}.transpose{axes}, or a tensor, torch.from_numpy({name})."
        )


def check_pixel_values(images: np.ndarray | Tensor) -> None:
    """Check that all pixels are finite and in [0, 1], a piece at a time, without a copy."""
    if isinstance(images, Tensor) and images.is_meta:
        raise ValueError("X is on the meta device, where tensors have no values.")
    lowest, highest = math.inf, -math.inf
    step = max(1, _SCAN_PIXELS // math.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        chunk = images[start : start + step]
        # A NaN is the minimum and the maximum of whatever it is in.
        low, high = float(chunk.min()), float(chunk.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            for i, image in enumerate(chunk, start):
                _finite_extremes(image, f"X[{i}]")
        lowest, highest = min(lowest, low), max(highest, high)
    _check_range(lowest, highest, "The pixels of X")


def _finite_extremes(image: np.ndarray | Tensor, name: str) -> tuple[float, float]:
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} has pixels that are NaN or infinite.")
    return low, high


def _check_range(low: float, high: float, subject: str) -> None:
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        remedy = "divide by 255" if high > 1 + _ROUNDING else "shift and scale them"
        raise ValueError(
            f"{subject} range from {low:g} to {high:g}; floats must lie in [0, 1]: {remedy}."
        )
