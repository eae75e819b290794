"""Look for files and folders, and show the expected layout if one is missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sklcam.images.labels import are_splits

AnyPath = str | os.PathLike[str]

# The suffixes of images that Pillow opens.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def files_under(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the files with these suffixes at any depth, sorted, without hidden ones."""
    found = []
    for parent, folders, names in os.walk(folder):
        # In place, as os.walk continues into the folders that are left in its own list.
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (name for name in names if not name.startswith("."))
        found += [os.path.join(parent, name) for name in visible if name.lower().endswith(suffixes)]
    return sorted(found)


def class_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def images_by_class(root: Path, tree: str) -> dict[str, list[str]]:
    """Return the images in each class's folder. `tree` is the layout that an error shows."""
    if not root.is_dir():
        raise FileNotFoundError(missing(root, "", tree))
    folders = class_folders(root)
    names = [folder.name for folder in folders]
    if are_splits(names):  # as classes, they would train a network to tell splits apart
        raise ValueError(
            f"{root} holds the splits {', '.join(names)}, which are not classes. Load each one "
            f"separately, such as {str(folders[0])!r}."
        )
    by_class = {folder.name: files_under(folder, SUFFIXES) for folder in folders}
    if not by_class:
        raise ValueError(missing(root, "folders of classes", tree))
    for label, images in by_class.items():
        # Otherwise an estimator would never know of the class.
        if not images:
            raise ValueError(
                f"The class folder {root / label} has no files with a suffix of images "
                f"({', '.join(SUFFIXES)}). Add images to it, or remove it."
            )
    return by_class


def images_with_classes(root: Path, tree: str) -> tuple[list[str], list[str]]:
    """Return all images, and the class of each."""
    by_class = images_by_class(root, tree)
    data = [image for images in by_class.values() for image in images]
    return data, [label for label, images in by_class.items() for _ in images]


def first_with(name: str, places: Iterable[Path]) -> Path | None:
    return next((place for place in places if (place / name).exists()), None)


def find(name: str, places: Sequence[Path], tree: str) -> Path:
    """Return the first of these folders that contains `name`."""
    place = first_with(name, places)
    if place is None:
        raise FileNotFoundError(missing(places[0], name, tree))
    return place


def missing(folder: Path, name: str, tree: str) -> str:
    lacks = f"has no {name}" if name and folder.is_dir() else "is not a folder"
    return f"{folder} {lacks}. The expected layout is:\n{tree}"


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
