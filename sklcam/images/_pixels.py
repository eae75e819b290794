"""One image as a tensor, whatever form it has, and the checks of its pixels."""

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

# Floats are scanned this many pixels at a time: it bounds the memory that a memory map takes.
_SCAN_PIXELS = 2**22

# Rounding may have brought a float this far out of [0, 1]; such pixels are clamped when read.
_ROUNDING = 1e-6

# More channels than these of a picture (grey or RGB, with or without alpha) are told from its sides
# by being fewer than the pixels along them.
MAX_CHANNELS = 4

# Tags of TIFF files.
_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC = 254, 258, 262

RGB = tuple[int, int, int]
WHITE: RGB = (255, 255, 255)


class Reading(NamedTuple):
    """How images are read, where neither a shape nor a file tells."""

    channels: str | None = None
    background: RGB | None = None  # None is white for files, and leaves arrays as they are
    column: str | None = None  # the name of the image among what a table or an item holds


def item_tensor(image: Any, name: str, reading: Reading, hint: str = "") -> Tensor:
    """Return an item of a lazy source as a tensor, with the checks that arrays get at the door.

    The hint is added to the message where pixels are out of range.
    """
    if isinstance(image, Image.Image):
        with naming(name):
            return rgb_tensor(image, reading.background)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"{name} is a {type(image).__name__}; an item of a data set must be a PIL image, an "
            "array of shape (height, width) or (height, width, n_channels), a tensor of shape "
            "(n_channels, height, width), or a tuple that starts with one of them."
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
    """Return a copy, uint8 or float32, with the channels third from last; it shares no memory."""
    if isinstance(image, Tensor):
        # As a plain tensor: torchvision's classes of tensors would follow into the network.
        dtype = torch.uint8 if is_uint8(image) else torch.float32
        tensor = image.detach().as_subclass(Tensor).to(dtype, copy=True)
    else:
        array = np.array(image, dtype=np.uint8 if is_uint8(image) else np.float32)
        tensor = torch.from_numpy(array if array.ndim > 2 else array[..., np.newaxis])
    tensor = tensor.movedim(-1, -3) if channels == "last" else tensor
    has_alpha = background is not None and tensor.shape[-3] in (2, 4)
    return _laid_on(background, tensor) if has_alpha else tensor


def _laid_on(background: RGB | None, pixels: Tensor) -> Tensor:
    """Compose pixels, whose last channel is their opacity, on a background."""
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
        # The colours behind full transparency are whatever an editor left there.
        canvas = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # which copies in any case
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def check_pages(image: Image.Image) -> None:
    """Raise a ValueError if a file is a stack of pages."""
    if not isinstance(image, TiffImageFile):  # an animation has a first picture
        return
    for page in range(1, image.n_frames):
        image.seek(page)
        if not image.tag_v2.get(_SUBFILE_TYPE, 0) & 1:  # a thumbnail says that it is one
            raise ValueError(
                f"it has {image.n_frames} pages; pass the page you mean as a PIL image, after "
                "Image.open(path) and seek(page)."
            )
    image.seek(0)


def _deep_grey(image: Image.Image, background: RGB) -> Tensor:
    """Return a grey image of 16 bits, float32; Pillow would cut off everything above 255."""
    values = np.asarray(image)
    # Pillow scales the values of TIFF files neither by their depth nor by what they stand for.
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
    if image.format == "TIFF" and lies_on_its_side(image):
        image.load()  # Pillow turns a TIFF as it loads it; its size before depends on the version
    if lies_on_its_side(image):
        return image.width, image.height
    return image.height, image.width


def lies_on_its_side(image: Image.Image) -> bool:
    """Whether an image's EXIF orientation swaps its sides."""
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
    if isinstance(pixels, np.ma.MaskedArray):
        raise ValueError(
            f"{name} is a masked array, whose masked pixels have values that no network should "
            f"see; pass {name}.filled(...)."
        )
    if isinstance(pixels, Tensor):
        if pixels.layout != torch.strided:
            raise ValueError(f"{name} is a sparse tensor; pass a dense one, {name}.to_dense().")
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
        low, high = int(values.min()), int(values.max())  # torch has none for all types
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
    """Return where an image's channels are, "first" or "last".

    Parameters
    ----------
    image : ndarray or Tensor
        An image, or the first of a batch.
    name : str
    channels : {"first", "last"} or None
        What was said of it, if anything.
    batch : tuple of int or None, default=None
        The shape of the batch, which the messages show.
    """
    shape = tuple(image.shape) if batch is None else batch
    if image.ndim != 3 and (image.ndim != 2 or isinstance(image, Tensor)):
        raise ValueError(
            f"{name} has shape {shape}; an image is an array of shape (height, width) or "
            "(height, width, n_channels), or a tensor of shape (n_channels, height, width)."
        )
    if 0 in image.shape:
        raise ValueError(f"{name} has shape {shape}: its images have no pixels.")
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
    # The shape of a toy says nothing, and neither does that of single pixels.
    if found == usual or max(image.shape) <= MAX_CHANNELS or max(sides) == 1:
        return usual
    if found is None:
        raise ValueError(
            f"{name} is {kind} of shape {shape}, whose channels may come first or last. Say which: "
            f'pass sklcam.images.ImageDataset(X, channels="{usual}") in place of X.'
        )
    n_leading = len(shape) - 3
    order = (1, 2, 0) if found == "first" else (2, 0, 1)
    axes = (*range(n_leading), *(n_leading + axis for axis in order))
    raise ValueError(
        f"{name} is {kind} of shape {shape}, with its channels {found}; they come {usual} in such: "
        f"pass {name}.{move}{axes}, or sklcam.images.ImageDataset(X, channels={found!r})."
    )


def _channels_by_shape(shape: tuple[int, ...]) -> str | None:
    """Return where an image of three axes has its channels, None if it could be either."""
    limit = MAX_CHANNELS
    if min(shape[0], shape[-1]) > limit and shape.count(min(shape)) == 1:
        limit = min(shape)  # more than a picture has, but fewer than there are pixels a side
    few = [place for n, place in ((shape[0], "first"), (shape[-1], "last")) if n <= limit]
    return few[0] if len(few) == 1 else None


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


def warn_of_binary_bytes(images: np.ndarray | Tensor) -> None:
    """Warn if bytes are 0 and 1 alone: they are shares of 255, and all of them black."""
    if isinstance(images, Tensor) and images.is_meta:
        return
    # A look at the first ones tells, mostly: only where these are so, all are read.
    some = images[: max(1, _SCAN_PIXELS // math.prod(images.shape[1:]))]
    if int(some.max()) == 1 == int(images.max()):
        warnings.warn(
            "X is of bytes, which go from 0 to 255, but has no value above 1, so that its images "
            "are black. If they are of 0 and 1, pass X * 255.",
            stacklevel=2,
        )


def _finite_extremes(image: np.ndarray | Tensor, name: str) -> tuple[float, float]:
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} has pixels that are NaN or infinite.")
    return low, high


def _check_range(low: float, high: float, subject: str, hint: str = "") -> None:
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"{subject} range from {low:g} to {high:g}; floats must lie in [0, 1]: "
            f"{_advice(low, high)}.{hint}"
        )


def _advice(low: float, high: float) -> str:
    """Say how values of this range come to lie in [0, 1]."""
    if low >= -0.25 and high <= 1.25:  # as interpolation and sharpening leave
        return "clip them to it"
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
            "they look normalised; pass the images as they were before, as the estimator "
            "normalises them by its mean= and std="
        )
    return "choose a window, the same for all images, such as ((X - low) / (high - low)).clip(0, 1)"
