"""Thumbnails and their maps as data URIs, and histograms as the numbers that an SVG is made of."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sklcam.cam import min_max
from sklcam.images.frames import Resizing, map_to_frame

# Every eighth colour of matplotlib's viridis, and its last; between them it is straight enough.
_VIRIDIS = (
    "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e297a8e26828e"
    "23898e21918c1f988b1fa08822a78528ae8032b67a3fbc734ec36b5ec96270cf5784d44b98d83eaddc30c2df23"
    "d8e219ece51bfde725"
)
_LOSSLESS = 64  # pixels; smaller images are for looking at single pixels, which JPEG would blur
_QUALITY = 85
_N_BINS = 20
_LONGEST = 8  # times as long as wide; beyond that a side would vanish


def viridis() -> np.ndarray:
    """Return the colours of maps, as in the displays.

    Returns
    -------
    ndarray of shape (256, 3), uint8

    Examples
    --------
    >>> from sklcam.reporting._pictures import viridis
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
    image = Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8))
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.LANCZOS)
    if max(size) <= _LOSSLESS:
        return _uri(image, "PNG", optimize=True)
    return _uri(image, "JPEG", quality=_QUALITY, optimize=True)


def map_uri(map_: Tensor, size: tuple[int, int], *, resize: Resizing) -> str:
    """Return a map in the frame of its image as a data URI, a PNG of a palette.

    Parameters
    ----------
    map_ : Tensor of shape (height, width)
    size : (height, width)
    resize : Resizing
        How the image was brought to the network's input size.
    """
    map_ = map_.detach().float().cpu().nan_to_num(0, posinf=1, neginf=0)  # which the page tells
    if float(map_.min()) < 0 or float(map_.max()) > 1:  # a method that is never scaled
        map_ = min_max(map_[None])[0]
    levels = (map_to_frame(map_, size, resize=resize) * 255).round().clamp(0, 255)
    image = Image.fromarray(levels.numpy().astype(np.uint8))
    image.putpalette(viridis().tobytes())
    return _uri(image, "PNG", optimize=True)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"


@dataclass(frozen=True)
class Histogram:
    """How many values are in each of some bins of equal width.

    Parameters
    ----------
    counts : tuple of int
    low, high : float
        Where the first bin begins, and the last one ends.
    n_missing : int
        How many values were not finite.
    """

    counts: tuple[int, ...]
    low: float
    high: float
    n_missing: int

    def position(self, value: float) -> float:
        """Return where a value is between the ends, in [0, 1]."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def histogram(values: np.ndarray) -> Histogram:
    """Count values in bins over [0, 1], or over their own range if it is another.

    Parameters
    ----------
    values : ndarray of shape (n,)

    Returns
    -------
    Histogram

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.reporting._pictures import histogram
    >>> histogram(np.array([0.0, 0.01, 1.0, np.nan])).counts[:2]
    (2, 0)
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low == high:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(finite, bins=_N_BINS, range=(low, high))
    return Histogram(tuple(counts.tolist()), low, high, len(values) - len(finite))
