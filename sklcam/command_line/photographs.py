"""What is in DIR: images, and the labels that the names of its folders are."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from sklcam.datasets import find_images, load_class_folders
from sklcam.explain.base import Explainer
from sklcam.explain.predictions import class_names

_OF_FOLDER = "true"


def images_in(place: str) -> tuple[Path, list[str]]:
    """Return a folder and the images in it, at any depth; of one image, the folder it is in."""
    if os.path.isfile(place):
        return Path(place).parent, [place]
    return Path(place), find_images(place)


def labelled_images(root: Path) -> tuple[list[str], list[str]]:
    """Return the images of class folders, and the class of each.

    Raises
    ------
    ValueError
        If an image is in none of the folders: it would be left out.
    """
    found = load_class_folders(root)
    images, labels = list(found.data), found.target.tolist()
    if beside := sorted({*find_images(root)} - {*images}):
        raise ValueError(
            f"{beside[0]} is beside the folders of {root}, whose names are labels: put it into "
            "that of its class. Elsewhere than for --target true, --no-labels ignores the folders."
        )
    return images, labels


def has_folders(root: Path, images: list[str]) -> bool:
    """Whether images are in folders of a folder."""
    return any(Path(image).parent != root for image in images)


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
    names = class_names(explainer) or [str(label) for label in labels_known]
    if text == _OF_FOLDER:
        if text in names:
            raise ValueError(
                "--target true is the class of each image's folder, and a class is called so: give "
                f"its number, {names.index(text)}."
            )
        if labels is None:
            raise ValueError(
                "--target true is the class of each image's folder, and there are no folders of "
                "classes, or --no-labels ignores them."
            )
        return explainer.expected_labels(None, labels, "explain")
    pairs = zip(labels_known, names, strict=True)
    meant = {i for i, pair in enumerate(pairs) if text in map(str, pair)}
    if len(meant) > 1:
        raise ValueError(f"--target {text} may be one of {len(meant)} classes; give its name.")
    if not meant and text.isdecimal() and int(text) < len(labels_known):
        meant = {int(text)}  # where the labels are names, its place among them
    return labels_known[meant.pop()] if meant else text
