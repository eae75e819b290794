"""Your own images: folders of classes, and CSV files of boxes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from sklcam.datasets._annotations import AnnotatedObject, Box, box_array, boxes_of_class, check_box
from sklcam.datasets._bunch import bunch
from sklcam.datasets._trees import SUFFIXES, AnyPath, files_under, images_with_classes

_TREE = "<root>/<class>/<any name>.jpg (or .png, ...)"
_CORNERS = ("x1", "y1", "x2", "y2")


def find_images(root: AnyPath) -> list[str]:
    """Return the images in a folder, at any depth, whatever the folders in it mean.

    Parameters
    ----------
    root : path
        The folder. Hidden files and folders, and files without the suffix of an image, are skipped.

    Returns
    -------
    list of str
        Paths, sorted.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    TypeError
        If `root` is not a path.
    ValueError
        If the folder has no images.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from sklcam.datasets import find_images
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Path(root, "trip").mkdir()
    ...     Image.new("RGB", (8, 8)).save(Path(root, "trip", "1.png"))
    ...     [Path(path).relative_to(root).as_posix() for path in find_images(root)]
    ['trip/1.png']
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {os.fspath(root)!r}.")
    found = files_under(folder, SUFFIXES)
    if not found:
        raise ValueError(
            f"There are no images in {os.fspath(root)!r}. They must have one of the suffixes "
            f"{', '.join(SUFFIXES)}."
        )
    return found


def load_class_folders(root: AnyPath, *, boxes: AnyPath | None = None) -> Bunch:
    """Load images from folders, one for each class.

    Parameters
    ----------
    root : path
        The folder that holds ``<class>/<image>``. Folders within a class's folder belong to the
        class. Hidden files and files without the suffix of an image are skipped.
    boxes : path or None, default=None
        A CSV file with the columns ``path, x1, y1, x2, y2`` and optionally ``label``, one row per
        box. Paths are relative to the folder of the CSV file, or else to `root`. With labels, an
        image's boxes are those of its own class. Rows for files outside `root` are skipped, so one
        CSV file can serve the folders of several splits.

    Returns
    -------
    Bunch
        With ``data``, a sorted list of paths; ``target``, the names of their classes;
        ``target_names``; ``boxes``, None or a list of float64 arrays of shape (n_boxes, 4), empty
        for an image without a row; ``masks``, which is None; and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or CSV file.
    TypeError
        If `root` is not a path.
    ValueError
        If `root` has no class folders, or has folders of splits such as ``train`` and ``test``
        instead; if a class has no images; or if the CSV file lacks a column, has an invalid box, or
        names an image that does not exist.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from sklcam.datasets import load_class_folders
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("cat", "dog"):
    ...         Path(root, name).mkdir()
    ...         Image.new("RGB", (8, 8)).save(Path(root, name, "1.png"))
    ...     pets = load_class_folders(root)
    >>> pets.target
    array(['cat', 'dog'], ...)
    """
    data, target = images_with_classes(Path(root), _TREE)
    found = None if boxes is None else _boxes_of_images(Path(boxes), Path(root), data, target)
    return bunch(data, target, boxes=found, descr=f"Class folders in {os.fspath(root)}.")


def load_boxes_csv(path: AnyPath) -> Bunch:
    r"""Load the data set that a CSV file of labelled boxes describes.

    There is one entry for each image *and* label, with the boxes of that label, so an image with
    apples and bananas has two entries. The pointing game needs this form: it explains each class in
    an image, ``explain(data, target=target)``.

    Parameters
    ----------
    path : path
        A CSV file with the columns ``path, label, x1, y1, x2, y2``, one row per box. Paths are
        relative to the file's folder.

    Returns
    -------
    Bunch
        With ``data``, a list of paths in the order of the file; ``target``, the labels;
        ``target_names``; ``boxes``, a list of float64 arrays of shape (n_boxes, 4); ``masks``,
        which is None; and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If the CSV file, or an image that it names, does not exist.
    TypeError
        If `path` is not a path.
    ValueError
        If a column is missing, or a box is invalid. The message names the file and the line.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from sklcam.datasets import load_boxes_csv
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (8, 8)).save(Path(folder, "1.png"))
    ...     rows = "path,label,x1,y1,x2,y2\n1.png,apple,0,0,4,4\n1.png,pear,4,0,8,8\n"
    ...     _ = Path(folder, "boxes.csv").write_text(rows)
    ...     fruits = load_boxes_csv(Path(folder, "boxes.csv"))
    >>> len(fruits.data), fruits.target.tolist(), fruits.boxes[1]
    (2, ['apple', 'pear'], array([[4., 0., 8., 8.]]))
    """
    table = Path(path)
    entries: dict[tuple[str, str], list[Box]] = {}
    for where, name, annotated in _read_csv(table, ("path", "label", *_CORNERS)):
        # The same name for each file, however a row writes it.
        image = os.path.normpath(table.parent / name)
        if not annotated.label:
            raise ValueError(f"{where}: the label is empty. Give the class of the box.")
        if (image, annotated.label) not in entries and not os.path.isfile(image):
            raise FileNotFoundError(
                f"{where}: there is no file {image}. Give paths relative to the CSV file's folder."
            )
        entries.setdefault((image, annotated.label), []).append(annotated.box)
    data, target = [image for image, _ in entries], [label for _, label in entries]
    boxes = [box_array(corners) for corners in entries.values()]
    return bunch(data, target, boxes=boxes, descr=f"Images and boxes listed in {table}.")


def _read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, str, AnnotatedObject]]:
    """Yield the file and line of each row, the path in it, and the object."""
    # Spreadsheets write a byte order mark, which would be part of the first column's name.
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        try:
            header = rows.fieldnames or []
            if not set(columns) <= set(header):
                raise ValueError(
                    f"{path} must name the columns {', '.join(columns)} in its first line; "
                    f"it has {', '.join(header) or 'none'}."
                )
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                # DictReader puts extra entries under the key None, and None for missing ones.
                if None in row or None in row.values():
                    raise ValueError(
                        f"{where}: the line must have {len(header)} entries, one per column."
                    )
                box = check_box([row[name] for name in _CORNERS], where)
                yield where, row["path"], AnnotatedObject(row.get("label", ""), box)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read as a CSV file: {error}.") from error


def _boxes_of_images(
    table: Path, root: Path, data: Sequence[str], target: Sequence[str]
) -> list[np.ndarray]:
    """Return the boxes in a CSV file for each image under `root`."""
    index_of = {_resolved(Path(image)): i for i, image in enumerate(data)}
    objects: list[list[AnnotatedObject]] = [[] for _ in data]
    for where, name, annotated in _read_csv(table, ("path", *_CORNERS)):
        places = [_resolved(folder / name) for folder in (table.parent, root)]
        i = next((index_of[place] for place in places if place in index_of), None)
        if i is not None:
            objects[i].append(annotated)
        # A row may be for an image of another split, outside root; anything else is a mistake.
        elif places[0].is_relative_to(root.resolve()) or not places[0].is_file():
            raise ValueError(
                f"{where}: there is no image {name!r}. Give paths relative to the CSV file's "
                f"folder or to {root}."
            )
    return list(map(boxes_of_class, objects, target, data))


def _resolved(path: Path) -> Path:
    """Return the path of a file with all links to its folder resolved."""
    return path.parent.resolve() / path.name
