"""Pixels: one image in any form as a tensor, with checks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from sklcam._callers import level_of_user

# Floats are scanned this many pixels at a time, which limits the memory for a memory map.
_SCAN_PIXELS = 2**22

# Rounding may take a float this far out of [0, 1]; such pixels are clamped when read.
_ROUNDING = 1e-6

# Pictures (grey or RGB, with or without alpha) have at most this many channels. More channels are
# recognised by being fewer than the pixels along the sides.
MAX_CHANNELS = 4

# Tags of TIFF files.
_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC = 254, 258, 262

RGB = tuple[int, int, int]
WHITE: RGB = (255, 255, 255)


class Reading(NamedTuple):
    """How images are read, if neither a shape nor a file tells."""

    channels: str | None = None
    background: RGB | None = None  # None is white for files, and leaves arrays as they are
    column: str | None = None  # the name of the image in a table or an item


def item_tensor(image: Any, name: str, reading: Reading, hint: str = "") -> Tensor:
    """Return an item of a lazy source as a tensor, with the checks that arrays get in advance.

    The hint is added to the message if pixels are out of range.
    """
    if isinstance(image, Image.Image):
        with naming(name):
            return rgb_tensor(image, reading.background)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"{name} is a {type(image).__name__}. An item of a data set must be a PIL image, an "
            "array of shape (height, width) or (height, width, n_channels), a tensor of shape "
            "(n_channels, height, width), or a tuple that starts with one of these."
        )
    channels = locate_channels(image, name, reading.channels)
    check_pixel_dtype(image, name)
    tensor = copy_channels_first(image, channels, reading.background)
    if tensor.is_floating_point():
        _check_range(*_finite_extremes(tensor, name), f"The pixels of {name}", hint)
    return tensor


def copy_channels_first(
    image: np.ndarray | Tensor, channels: str, background: RGB | None = None
) -> Tensor:
    """Return a copy, uint8 or float32, with the channels third from last."""
    if isinstance(image, Tensor):
        # As a plain tensor: torchvision's tensor classes would otherwise reach the network.
        dtype = torch.uint8 if is_uint8(image) else torch.float32
        tensor = image.detach().as_subclass(Tensor).to(dtype, copy=True)
    else:
        array = np.array(image, dtype=np.uint8 if is_uint8(image) else np.float32)
        tensor = torch.from_numpy(array if array.ndim > 2 else array[..., np.newaxis])
    tensor = tensor.movedim(-1, -3) if channels == "last" else tensor
    has_alpha = background is not None and tensor.shape[-3] in (2, 4)
    return _laid_on(background, tensor) if has_alpha else tensor


def _laid_on(background: RGB | None, pixels: Tensor) -> Tensor:
    """Lay pixels, whose last channel is their opacity, over a background."""
    *colours, alpha = pixels.unbind(-3)
    mode = "L" if len(colours) == 1 else "RGB"
    behind = Image.new("RGB", (1, 1), background).convert(mode).tobytes()
    full = 255 if pixels.dtype == torch.uint8 else 1
    opacity = alpha / full
    composed = [
        opacity * colour + (1 - opacity) * (value * full / 255)
        for colour, value in zip(colours, behind, strict=True)
    ]
    result = torch.stack(composed, dim=-3)
    return result.round().to(torch.uint8) if full == 255 else result


def rgb_tensor(image: Image.Image, background: RGB | None = None) -> Tensor:
    """Return a PIL image as (3, height, width), upright: uint8, or float32 if it has 16 bits."""
    image = load_upright(image)
    background = background or WHITE
    if image.mode.startswith("I;16"):
        return _deep_grey(image, background)
    if image.has_transparency_data:
        # The colours of fully transparent pixels are whatever an editor has left there.
        canvas = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # convert() always copies
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def check_pages(image: Image.Image) -> None:
    """Raise a ValueError if a file is a stack of pages."""
    if not isinstance(image, TiffImageFile):  # an animation has a first picture
        return
    for page in range(1, image.n_frames):
        image.seek(page)
        if not image.tag_v2.get(_SUBFILE_TYPE, 0) & 1:  # thumbnails are marked
            raise ValueError(
                f"it has {image.n_frames} pages; pass the page you mean as a PIL image, after "
                "Image.open(path) and seek(page)."
            )
    image.seek(0)


def _deep_grey(image: Image.Image, background: RGB) -> Tensor:
    """Return a 16-bit grey image as float32; Pillow would clip everything above 255."""
    values = np.asarray(image)
    # In TIFF files, Pillow ignores the depth of values, and whether 0 is white.
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    grey = torch.from_numpy(values.astype(np.float32)) / (2**bits - 1)
    grey = 1 - grey if tags.get(_PHOTOMETRIC) == 0 else grey  # 0 is white
    pixels = grey.repeat(3, 1, 1)
    clear = image.info.get("transparency")  # the one value that a PNG may call transparent
    if clear is None:
        return pixels
    behind = torch.tensor(background)[:, None, None] / 255
    return behind.where(torch.from_numpy(values == clear), pixels)


def load_upright(image: Image.Image) -> Image.Image:
    """Load an image, and turn it as its EXIF orientation says."""
    if 0 in image.size:
        raise ValueError(f"its size is {image.width} x {image.height}.")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels have 32 bits (mode {image.mode!r}), so their range is not known; "
            "pass float arrays in [0, 1] instead."
        )
    image.load()
    # exif_transpose() copies an image even if there is nothing to turn.
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the height and width after `load_upright`, mostly without loading the image."""
    if image.format == "TIFF" and lies_on_its_side(image):
        image.load()  # Pillow turns a TIFF on loading; its size before depends on the version
    if lies_on_its_side(image):
        return image.width, image.height
    return image.height, image.width


def lies_on_its_side(image: Image.Image) -> bool:
    """Whether an image's EXIF orientation swaps its sides."""
    return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn any error of a decoder into a ValueError that names the image."""
    try:
        yield
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


def is_uint8(pixels: np.ndarray | Tensor) -> bool:
    """Whether pixels are bytes."""
    return pixels.dtype == (torch.uint8 if isinstance(pixels, Tensor) else np.uint8)


def check_pixel_dtype(pixels: np.ndarray | Tensor, name: str) -> None:
    """Raise a ValueError unless pixels are bytes or floats, and dense."""
    if isinstance(pixels, np.ma.MaskedArray):
        raise ValueError(
            f"{name} is a masked array, whose masked pixels have values that no network should "
            f"see. Pass {name}.filled(...)."
        )
    if isinstance(pixels, Tensor):
        if pixels.layout != torch.strided:
            raise ValueError(f"{name} is a sparse tensor. Pass a dense one, {name}.to_dense().")
        is_float = pixels.is_floating_point() and pixels.dtype.itemsize > 1
        is_whole = not (
            pixels.dtype.is_floating_point or pixels.is_complex() or pixels.is_quantized
        )
        to_bytes, to_floats = ".to(torch.uint8)", ".to(torch.float32)"
    else:
        is_float, is_whole = pixels.dtype.kind == "f", pixels.dtype.kind in "biu"
        to_bytes, to_floats = ".astype(np.uint8)", ".astype(np.float32)"
    if is_float or is_uint8(pixels):
        return
    advice = ""
    if is_whole and not (isinstance(pixels, Tensor) and pixels.is_meta):
        values = np.asarray(pixels.detach().cpu() if isinstance(pixels, Tensor) else pixels)
        low, high = int(values.min()), int(values.max())  # torch lacks these for some types
        advice = f" Its values range from {low} to {high}: "
        if low >= 0 and high <= 1:
            advice += f"pass {name}{to_floats}."
        elif low >= 0 and high <= 255:
            advice += f"if they are 0 to 255, pass {name}{to_bytes}."
        else:
            advice += f"pass {name}{to_floats}, and {_advice(low, high)}."
    raise ValueError(
        f"{name} has dtype {pixels.dtype}; pixels must be uint8, or floats in [0, 1].{advice}"
    )


def locate_channels(
    image: np.ndarray | Tensor,
    name: str,
    channels: str | None,
    batch: tuple[int, ...] | None = None,
) -> str:
    """Return the place of an image's channels, "first" or "last".

    Parameters
    ----------
    image : ndarray or Tensor
        An image, or the first of a batch.
    name : str
    channels : {"first", "last"} or None
        The user's setting, if any.
    batch : tuple of int or None, default=None
        The shape of the batch, which the messages show.
    """
    shape = tuple(image.shape) if batch is None else batch
    if image.ndim != 3 and (image.ndim != 2 or isinstance(image, Tensor)):
        raise ValueError(
            f"{name} has shape {shape}. An image must be an array of shape (height, width) or "
            "(height, width, n_channels), or a tensor of shape (n_channels, height, width)."
        )
    if 0 in image.shape:
        raise ValueError(
            f"{name} has shape {shape}, so its images have no pixels. Pass images with pixels."
        )
    if image.ndim == 2:
        return "last"
    if channels is not None:
        return channels
    if isinstance(image, Tensor):
        kind, usual, move = "a tensor", "first", "permute"
    else:
        kind, usual, move = "an array", "last", "transpose"
    found = _channels_by_shape(tuple(image.shape))
    sides = image.shape[1:] if usual == "first" else image.shape[:-1]
    # The shape of a tiny image says nothing, nor does that of single pixels.
    if found == usual or max(image.shape) <= MAX_CHANNELS or max(sides) == 1:
        return usual
    if found is None:
        raise ValueError(
            f"{name} is {kind} of shape {shape}, whose channels may be first or last. Pass "
            f'sklcam.images.ImageDataset(X, channels="{usual}") instead of X if they are {usual}.'
        )
    n_leading = len(shape) - 3
    order = (1, 2, 0) if found == "first" else (2, 0, 1)
    axes = (*range(n_leading), *(n_leading + axis for axis in order))
    raise ValueError(
        f"{name} is {kind} of shape {shape}, with its channels {found}; {kind} must have them "
        f"{usual}. Pass {name}.{move}{axes}, or sklcam.images.ImageDataset(X, channels={found!r})."
    )


def _channels_by_shape(shape: tuple[int, ...]) -> str | None:
    """Return the place of the channels in an image with three axes; None if it is ambiguous."""
    limit = MAX_CHANNELS
    if min(shape[0], shape[-1]) > limit and shape.count(min(shape)) == 1:
        limit = min(shape)  # more than a picture has, but fewer than the pixels along each side
    few = [place for n, place in ((shape[0], "first"), (shape[-1], "last")) if n <= limit]
    return few[0] if len(few) == 1 else None


def check_pixel_values(images: np.ndarray | Tensor) -> None:
    """Check that all pixels are finite and in [0, 1], in pieces and without a copy."""
    if isinstance(images, Tensor) and images.is_meta:
        raise ValueError(
            "X is on the meta device, where tensors have no values. Pass tensors with values."
        )
    lowest, highest = math.inf, -math.inf
    step = max(1, _SCAN_PIXELS // math.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        chunk = images[start : start + step]
        # The minimum and the maximum of values with a NaN are NaN.
        low, high = float(chunk.min()), float(chunk.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            for i, image in enumerate(chunk, start):
                _finite_extremes(image, f"X[{i}]")
        lowest, highest = min(lowest, low), max(highest, high)
    _check_range(lowest, highest, "The pixels of X")


def warn_of_binary_bytes(images: np.ndarray | Tensor) -> None:
    """Warn if all bytes are 0 or 1, as they count as levels of 255 and all images are black."""
    if isinstance(images, Tensor) and images.is_meta:
        return
    # The first images mostly decide; all are read only if these are 0 and 1.
    some = images[: max(1, _SCAN_PIXELS // math.prod(images.shape[1:]))]
    if int(some.max()) == 1 == int(images.max()):
        warnings.warn(
            "X has bytes, which range from 0 to 255, but none is above 1, so its images are "
            "black. If they are masks of 0 and 1, pass X * 255.",
            stacklevel=level_of_user(),
        )


def _finite_extremes(image: np.ndarray | Tensor, name: str) -> tuple[float, float]:
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{name} has pixels that are NaN or infinite. Replace them, or leave the image out."
        )
    return low, high


def _check_range(low: float, high: float, subject: str, hint: str = "") -> None:
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"{subject} range from {low:g} to {high:g}; floats must lie in [0, 1]: "
            f"{_advice(low, high)}.{hint}"
        )


def _advice(low: float, high: float) -> str:
    """Say how to bring values of this range into [0, 1]."""
    if low >= -0.25 and high <= 1.25:  # after interpolation or sharpening
        return "clip them to this range"
    if low >= -_ROUNDING:
        if 100 < high <= 255:
            return "divide by 255"
        depths = [f"{2**n - 1} for {n} bits" for n in (8, 12, 16) if high < 2**n]
        return f"divide by their largest possible value{', ' if depths else ''}" + (
            " or ".join(depths)
        )
    if low >= -1 - _ROUNDING and high <= 1 + _ROUNDING:
        return "if they are from -1 to 1, pass (X + 1) / 2"
    if low >= -10 and high <= 10:
        return (
            "they look normalised, so pass the original images; the estimator normalises them by "
            "its mean= and std="
        )
    return "use one window for all images, such as ((X - low) / (high - low)).clip(0, 1)"
