"""Parts of HTML pages that load nothing: thumbnails as data URIs, scripts, names.

A page of the library is one file. Its images are in it, and its content security policy names the
digests of its own style and script, so anything else in it, such as a label, is only text.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence, Set, Sized
from importlib.resources import files
from pathlib import PurePath
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from sklcam._validation import describe
from sklcam.cam import min_max
from sklcam.images.dataset import file_paths
from sklcam.images.frames import Resizing, map_to_frame
from sklcam.plotting._drawing import GREY

AnyNames: TypeAlias = Sequence[str] | Mapping[Any, str]

# Every eighth colour of matplotlib's viridis, and its last; between them it is straight enough.
_VIRIDIS = (
    "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e297a8e26828e"
    "23898e21918c1f988b1fa08822a78528ae8032b67a3fbc734ec36b5ec96270cf5784d44b98d83eaddc30c2df23"
    "d8e219ece51bfde725"
)
_LOSSLESS = 64  # pixels; smaller images are for looking at single pixels, which JPEG would blur
_QUALITY = 85
_MOST_PIXELS = 2048  # of a side; a screen shows no more
_LONGEST = 8  # times as long as wide; beyond that a side would vanish


def viridis() -> np.ndarray:
    """Return the colours of maps, as in the displays.

    Returns
    -------
    ndarray of shape (256, 3), uint8

    Examples
    --------
    >>> from sklcam.plotting.pages import viridis
    >>> viridis()[[0, 255]].tolist()
    [[68, 1, 84], [253, 231, 37]]
    """
    known = np.frombuffer(bytes.fromhex(_VIRIDIS), dtype=np.uint8).reshape(-1, 3)
    at = [*range(0, 256, 8), 255]
    channels = [np.interp(np.arange(256), at, channel) for channel in known.T]
    return np.column_stack(channels).round().astype(np.uint8)


def thumbnail_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Return the height and width of an image's thumbnail; small images stay as they are."""
    scale = min(1.0, longest / max(height, width))
    least = max(height, width) * scale / _LONGEST

    def scaled(side: int) -> int:
        return max(1, round(max(side * scale, min(side, least))))

    return scaled(height), scaled(width)


def image_uri(picture: np.ndarray, size: tuple[int, int]) -> str:
    """Return an image as a data URI.

    Parameters
    ----------
    picture : ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    size : (height, width)

    Returns
    -------
    str
        JPEG, or PNG if it is small.
    """
    return _picture_uri(_as_image(picture), size)


def _as_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8))


def _picture_uri(image: Image.Image, size: tuple[int, int]) -> str:
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.LANCZOS)
    if max(size) <= _LOSSLESS:
        return _uri(image, "PNG", optimize=True)
    return _uri(image, "JPEG", quality=_QUALITY, optimize=True)


def map_uri(
    map_: Tensor, size: tuple[int, int], *, resize: Resizing, transparent: bool = False
) -> str:
    """Return a map in the frame of its image as a data URI, a PNG of a palette.

    Parameters
    ----------
    map_ : Tensor of shape (height, width)
    size : (height, width)
    resize : Resizing
        How the image was brought to the network's input size.
    transparent : bool, default=False
        Whether the map is as opaque as it is high, to be laid over its image.
    """
    image = Image.fromarray(_levels(map_, size, resize))
    image.putpalette(viridis().tobytes())
    options = {"transparency": bytes(range(256))} if transparent else {}
    return _uri(image, "PNG", optimize=True, **options)


def mask_uri(mask: np.ndarray, size: tuple[int, int]) -> str:
    """Return the outline of a mask as a data URI, a PNG that is clear but for its line.

    Parameters
    ----------
    mask : ndarray of shape (height, width), bool
    size : (height, width)
        Of the picture that it is laid over.
    """
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    inside = np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST)) > 0
    padded = np.pad(inside, 1)
    whole = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    line = Image.fromarray((inside & ~whole).astype(np.uint8))
    line.putpalette(bytes([0, 0, 0, 255, 255, 255]))
    return _uri(line, "PNG", optimize=True, transparency=0)


def fitting_uri(picture: np.ndarray, longest: int, most: int) -> str | None:
    """Return an image as large as a number of letters allows, as a data URI.

    Parameters
    ----------
    picture : ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    longest : int
        Pixels of a side that there is a smaller picture of already.
    most : int
        Letters that the data URI may have.

    Returns
    -------
    str or None
        With sides of at most 2048 pixels, which fill a screen. None if it would not be larger than
        the smaller picture.
    """
    height, width = picture.shape[:2]
    side: float = min(max(height, width), _MOST_PIXELS)
    if side <= 1.2 * longest or most <= 0:
        return None
    image = _as_image(picture)
    while side > 1.2 * longest:
        found = _picture_uri(image, thumbnail_size(height, width, round(side)))
        if len(found) <= most:
            return found
        side *= min(0.9, (most / len(found)) ** 0.5)  # letters are about as many as pixels
    return None


def overlay(
    picture: np.ndarray,
    map_: Tensor,
    size: tuple[int, int],
    *,
    resize: Resizing,
    alpha: float | Literal["map"] = "map",
) -> np.ndarray:
    """Return an image in grey with a map over it.

    Parameters
    ----------
    picture : ndarray of shape (image_height, image_width) or (image_height, image_width, 3)
        In [0, 1].
    map_ : Tensor of shape (map_height, map_width)
    size : (height, width)
    resize : Resizing
        How the image was brought to the network's input size.
    alpha : float in [0, 1] or "map", default="map"
        How opaque the map is; "map" is as opaque as it is high.

    Returns
    -------
    ndarray of shape (height, width, 3), in [0, 1]

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklcam.images import Resizing
    >>> from sklcam.plotting.pages import overlay
    >>> drawn = overlay(np.full((1, 2), 0.5), torch.eye(2)[:1], (1, 2), resize=Resizing())
    >>> (drawn * 255).round().tolist()
    [[[253.0, 231.0, 37.0], [128.0, 128.0, 128.0]]]
    """
    grey = picture if picture.ndim == 2 else picture @ GREY
    image = Image.fromarray((grey * 255).round().clip(0, 255).astype(np.uint8))
    pixels = np.asarray(image.resize(size[::-1], Image.Resampling.LANCZOS))[..., None]
    levels = _levels(map_, size, resize)
    share = levels[..., None] / 255 if isinstance(alpha, str) else alpha
    return ((1 - share) * pixels + share * viridis()[levels]) / 255


def overlay_uri(
    picture: np.ndarray,
    map_: Tensor,
    size: tuple[int, int],
    *,
    resize: Resizing,
    alpha: float,
) -> str:
    """Return an :func:`overlay` as a data URI."""
    return image_uri(overlay(picture, map_, size, resize=resize, alpha=alpha), size)


def _levels(map_: Tensor, size: tuple[int, int], resize: Resizing) -> np.ndarray:
    """Return a map in the frame of its image, (height, width), from 0 to 255."""
    map_ = map_.detach().float().cpu().nan_to_num(0, posinf=1, neginf=0)  # which the page tells
    if float(map_.min()) < 0 or float(map_.max()) > 1:  # a method that is never scaled
        map_ = min_max(map_[None])[0]
    levels = (map_to_frame(map_, size, resize=resize) * 255).round().clamp(0, 255)
    return levels.numpy().astype(np.uint8)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"


def image_names(X: Any, names: AnyNames | None, n_images: int) -> list[str]:
    """Return the name of each image; for a file, its name without the folder, which is private.

    Parameters
    ----------
    X : images
    names : sequence of str, mapping or None
        None is the names of files, or numbers. A mapping holds the name of each row, by its number
        or by the name that it would have without.
    n_images : int

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If there is not one for each image.
    """
    if isinstance(names, Mapping):
        own = image_names(X, None, n_images)
        found = [names.get(i, names.get(name)) for i, name in enumerate(own)]
        if None in found:
            i = found.index(None)
            raise ValueError(
                f"names is a mapping without a name for image {i}: neither {i} nor {own[i]!r} is "
                "among its keys."
            )
        return [*map(str, found)]
    if names is not None:
        # A set has no order that would tell which image is meant; a Series may have an index of its
        # own, and counts as what it holds.
        is_ordered = isinstance(names, Sized) and not isinstance(names, str | bytes | Set)
        if not is_ordered or len(names) != n_images:
            came = len(names) if is_ordered else describe(names)
            raise ValueError(
                f"names must have one entry for each of {n_images} images; got {came}."
            )
        return [str(name) for name in names]
    try:
        paths = file_paths(X)
    except ValueError:  # of a pipeline, or a network of several inputs: X is in a form of its own
        paths = []
    named = [f"{i}" if path is None else PurePath(path).name for i, path in enumerate(paths)]
    return named if any(paths) else [f"image {i}" for i in range(n_images)]


def style_of(package: str) -> str:
    """Return the style of a package's page: the common one, and its own."""
    return text_of("sklcam.plotting", "pages.css") + text_of(package, "page.css")


def text_of(package: str, name: str) -> str:
    """Return the text of a file beside the code."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def digest(script: str) -> str:
    """Return the digest by which a content security policy names a style or a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def script_json(value: Any) -> str:
    r"""Return JSON for a script element, without characters that could end the element.

    Examples
    --------
    >>> from sklcam.plotting.pages import script_json
    >>> print(script_json(["</script>"]))
    ["\u003c/script\u003e"]
    """
    text = json.dumps(value, allow_nan=False)  # in ASCII, and with it U+2028
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
