"""Encoded images: files, their bytes, and pictures that Pillow has opened."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sklcam.images._pixels import check_pages, lies_on_its_side

Encoded = str | bytes | Image.Image

# The beginnings of JPEG, PNG, GIF and WebP in base64, and of any image in a web page.
BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "data:image/")

_MAX_SHOWN = 240


def as_encoded(value: Any) -> Encoded | None:
    """Return a path, bytes or PIL image, which can go to other processes; None for anything else.

    In a dict of "bytes" and "path", as in Hugging Face's files, the bytes count, or else the path.
    """
    if isinstance(value, Image.Image | str | bytes):
        return value
    if is_bytes_and_path(value):
        bytes_, path = value.get("bytes"), value.get("path")
        return as_encoded(path if bytes_ is None else bytes_)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, io.BytesIO):
        return value.getvalue()
    return os.fsdecode(value) if isinstance(value, os.PathLike) else None


def is_bytes_and_path(value: Any) -> bool:
    """Whether a value is a dict of "bytes" and "path", or of only one of them."""
    return isinstance(value, Mapping) and bool(value) and set(value) <= {"bytes", "path"}


def is_batch_of_one(value: Any) -> bool:
    """Whether a value is one image with a batch axis, as processors return it."""
    return isinstance(value, np.ndarray | Tensor) and value.ndim == 4 and len(value) == 1


def is_image(value: Any) -> bool:
    """Whether a value is one image, and not a label, a box, a vector or a name.

    Strings count as names, as paths among them cannot be recognised.
    """
    if is_batch_of_one(value):
        value = value[0]
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3) and value.dtype.kind in "buif"
    if isinstance(value, bytes | bytearray | memoryview | io.BytesIO):
        try:
            with opened(as_encoded(value)):
                return True
        except Exception:  # a decoder may raise anything
            return False
    if isinstance(value, Tensor):
        return value.ndim == 3
    return isinstance(value, Image.Image) or is_bytes_and_path(value)


@contextmanager
def opened(item: Any) -> Iterator[Image.Image]:
    """Open a path, bytes or PIL image that `as_encoded` has returned."""
    if isinstance(item, Image.Image):
        yield item
        return
    try:
        image = Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)
    except UnidentifiedImageError as error:
        advice = _advice_on(item)
        if not advice and not isinstance(item, bytes):
            raise
        raise ValueError(f"its bytes are not those of an image file{advice}") from error
    with image:
        check_pages(image)
        yield image


def draft(image: Image.Image, item: Any, size: tuple[int, int] | None) -> Image.Image:
    """Return an image; decode a large JPEG file at a fraction of its sides, but at least ``size``.

    Parameters
    ----------
    image : Image
        An image from :func:`opened`, not loaded yet.
    item : Encoded
        The item that was opened. A picture that the user has opened stays as it is.
    size : (height, width) or None
        The least size of the upright image. None leaves the file as it is.

    Returns
    -------
    Image
    """
    if size is None or isinstance(item, Image.Image) or image.format != "JPEG":
        return image
    height, width = size[::-1] if lies_on_its_side(image) else size
    drafted = image.draft(None, (width, height))  # keeps the mode, and never goes below the size
    if drafted is None:
        return image
    # The last row and column may stand for only a few pixels; kept whole, they would shift all.
    width, height = (round(side) for side in drafted[1][2:])
    return image if (width, height) == image.size else image.crop((0, 0, width, height))


def shown(text: str) -> str:
    """Return a text as a message quotes it, with its end, which matters in a path."""
    half = _MAX_SHOWN // 2
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:half]}...{text[-half:]}")


def _advice_on(item: str | bytes) -> str:
    """Say what something that is not an image file may be, and what to do with it."""
    if isinstance(item, str):
        is_archive = zipfile.is_zipfile(item) or tarfile.is_tarfile(item)
        return ": it is an archive, so unpack it first" if is_archive else ""
    text = item[:4096].decode("latin-1")
    if text.startswith(BASE64):
        return ": they are base64, so pass base64.b64decode(text), without the part before a comma"
    if item and len(item) < 4096 and text.isprintable():
        return ": if they are a path, pass it as a str, os.fsdecode(path)"
    return ""
