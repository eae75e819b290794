"""Files and folders on the disk: what is looked for, and what is said if it is not there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

AnyPath = str | os.PathLike[str]


Box = tuple[float, float, float, float]


_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def _files_under(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the files with these suffixes, at any depth, sorted; hidden ones are passed over."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (name for name in names if not name.startswith("."))
        found += [os.path.join(parent, name) for name in visible if name.lower().endswith(suffixes)]
    return sorted(found)


def _class_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _images_by_class(root: Path, tree: str) -> dict[str, list[str]]:
    if not root.is_dir():
        raise FileNotFoundError(_not_there(root, "", tree))
    images = {folder.name: _files_under(folder, _SUFFIXES) for folder in _class_folders(root)}
    if not images:
        raise ValueError(_not_there(root, "folders of classes", tree))
    for label, of_class in images.items():
        if not of_class:
            raise ValueError(
                f"The class folder {root / label} has no images in it, by their suffixes "
                f"({', '.join(_SUFFIXES)}): fill it, or take it away."
            )
    return images


def _images_of_classes(root: Path, tree: str) -> tuple[list[str], list[str]]:
    """Return all images, and the class of each."""
    by_class = _images_by_class(root, tree)
    data = [image for images in by_class.values() for image in images]
    return data, [label for label, images in by_class.items() for _ in images]


def _first(places: Iterable[Path], name: str) -> Path | None:
    return next((place for place in places if (place / name).exists()), None)


def _find(places: Sequence[Path], name: str, tree: str) -> Path:
    """Return the first of these folders that has `name` in it."""
    place = _first(places, name)
    if place is None:
        raise FileNotFoundError(_not_there(places[0], name, tree))
    return place


def _not_there(folder: AnyPath, name: str, tree: str) -> str:
    lacks = f"has no {name}" if name and Path(folder).is_dir() else "is no folder"
    return f"{os.fspath(folder)} {lacks}. Expected is:\n{tree}"


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
