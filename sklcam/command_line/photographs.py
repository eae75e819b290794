"""The images in DIR, and their labels: the names of its folders."""

from __future__ import annotations

import os
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from sklcam._progress import tqdm
from sklcam.datasets import find_images, load_class_folders
from sklcam.explain.base import Explainer
from sklcam.explain.predictions import names_of_outputs
from sklcam.images.unreadable import unreadable_files

_OF_FOLDER = "true"
_MOST_NAMED = 10  # files in a sentence


def images_in(place: str) -> tuple[Path, list[str]]:
    """Return a folder and the images in it, at any depth; for one image, its folder."""
    if os.path.isfile(place):
        return Path(place).parent, [place]
    if not os.path.exists(place):
        raise ValueError(f"There is no folder or image {place!r}. Give the path of one.")
    return Path(place), find_images(place)


def labelled_images(root: Path) -> tuple[list[str], list[str]]:
    """Return the images of class folders, and the class of each.

    Raises
    ------
    ValueError
        If an image is outside these folders, where it would be left out.
    """
    found = load_class_folders(root)
    images, labels = list(found.data), found.target.tolist()
    if beside := sorted({*find_images(root)} - {*images}):
        raise ValueError(
            f"{beside[0]} is beside the folders of {root}, whose names are labels. Move it into "
            "the folder of its class, or ignore the folders with --no-labels, unless --target is "
            "true."
        )
    return images, labels


def has_folders(root: Path, images: list[str]) -> bool:
    """Whether any image is in a subfolder."""
    return any(Path(image).parent != root for image in images)


class Readable(NamedTuple):
    """Which images can be read.

    Attributes
    ----------
    rows : list of int
        The rows of the readable images.
    skipped : dict of str to str
        Why each other image cannot be read, by its name in DIR.
    """

    rows: list[int]
    skipped: dict[str, str]

    @property
    def ending(self) -> str:
        """The number of skipped images, to end a sentence; "" if there are none."""
        return f"; {counted(len(self.skipped))} skipped" if self.skipped else ""

    @property
    def note(self) -> str | None:
        """The skipped images, in a sentence for a page; None if there are none."""
        if not self.skipped:
            return None
        were = "was" if len(self.skipped) == 1 else "were"
        start = f"{counted(len(self.skipped))} could not be read and {were} left out"
        return f"{start}: {_listed([*self.skipped])}."

    @property
    def listed(self) -> list[dict[str, str]]:
        """The skipped images for ``--json``."""
        return [{"file": name, "reason": reason} for name, reason in self.skipped.items()]


def readable(arguments: Namespace, root: Path, images: list[str]) -> Readable:
    """Read all images once, before any work, and return which of them can be read.

    Parameters
    ----------
    arguments : Namespace
    root : Path
    images : list of str

    Returns
    -------
    Readable

    Raises
    ------
    ValueError
        If some cannot be read, without ``--skip-unreadable``; or if none can.
    """
    with tqdm(total=len(images), desc="read", delay=1, disable=arguments.quiet) as bar:
        broken = unreadable_files(images, progress=bar.update)
    if not broken:
        return Readable([*range(len(images))], {})
    named = [f"{path} ({reason})" for path, reason in broken.items()]
    start = f"{len(broken)} of {counted(len(images))} cannot be read: {_listed(named)}."
    if len(broken) == len(images):
        raise ValueError(f"{start} Give a folder with readable images.")
    if not arguments.skip_unreadable:
        raise ValueError(
            f"{start} Repair or remove broken files, or give --skip-unreadable to continue without "
            "them."
        )
    for each in named:
        warnings.warn(f"skipped, as it cannot be read as an image: {each}", stacklevel=2)
    rows = [row for row, path in enumerate(images) if path not in broken]
    names = {os.path.relpath(path, root): reason for path, reason in broken.items()}
    return Readable(rows, names)


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def counted(count: int) -> str:
    """Return a number of images in words: "1 image", or "2 images"."""
    return f"{count} image{'s' * (count != 1)}"


def target_of(arguments: Namespace, explainer: Explainer, labels: list[str] | None) -> Any:
    """Return the target that ``--target`` asks for.

    Parameters
    ----------
    arguments : Namespace
    explainer : Explainer
    labels : list of str or None
        The names of the images' folders, if they are labels.

    Returns
    -------
    None, label, or ndarray of labels
    """
    text = arguments.target
    if text is None:
        return None
    known = explainer.output_names
    labels_known = [] if known is None else known.tolist()
    names = names_of_outputs(explainer)
    if text == _OF_FOLDER:
        if text in names:
            raise ValueError(
                "--target true means the class of each image's folder, but a class is also called "
                f"true. Give its number, {names.index(text)}."
            )
        if labels is None:
            raise ValueError(
                "--target true means the class of each image's folder, but there are no class "
                "folders, or --no-labels ignores them. Move the images into folders named after "
                "their classes, or give a class."
            )
        return explainer.expected_labels(None, labels, "explain")
    pairs = zip(labels_known, names, strict=True)
    meant = {i for i, pair in enumerate(pairs) if text in map(str, pair)}
    if len(meant) > 1:
        raise ValueError(f"--target {text} fits {len(meant)} classes. Give a name that fits one.")
    if not meant and text.isdecimal() and int(text) < len(labels_known):
        meant = {int(text)}  # if labels are names, the number of one of them
    return labels_known[meant.pop()] if meant else text
