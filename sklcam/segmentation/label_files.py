"""Label maps as files that libraries for segmentation read: PNG with one byte per pixel."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sklcam._files import replacing


def names_of_files(paths: Sequence[str] | None, n_images: int) -> list[str]:
    """Return the name of each label map's file: the image's own, or its row.

    Parameters
    ----------
    paths : sequence of str or None
        The images' own files, if they are files.
    n_images : int

    Returns
    -------
    list of str
        The names of the images' files, with .png as their ending, if all are different; otherwise
        000000.png, 000001.png, ....
    """
    stems = [Path(path).stem for path in paths or ()]
    if stems and len({stem.lower() for stem in stems}) == n_images:
        return [f"{stem}.png" for stem in stems]
    width = max(6, len(str(n_images - 1)))
    return [f"{row:0{width}}.png" for row in range(n_images)]


def write_label_maps(
    label_maps: Iterable[np.ndarray], folder: str | os.PathLike[str], names: Sequence[str]
) -> list[str]:
    """Write label maps one by one, in the colours of PASCAL VOC, and return their paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for labels, name in zip(label_maps, names, strict=True):
        picture = Image.fromarray(labels)
        picture.putpalette(_PALETTE)  # the pixels stay the labels themselves
        path = Path(folder, name)
        with replacing(path) as file:
            picture.save(file, format="PNG")
        written.append(str(path))
    return written


def _voc_palette() -> list[int]:
    """Return the colours of PASCAL VOC: the bits of a label, spread over red, green and blue."""
    colours = np.zeros((256, 3), int)
    labels = np.arange(256)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((labels >> (3 * place + channel)) & 1) << (7 - place)
    return colours.ravel().tolist()


_PALETTE = _voc_palette()
