"""Folders of images, one for each class, and tables of boxes."""

from __future__ import annotations

import os
from pathlib import Path

from sklearn.utils import Bunch

from sklcam.datasets._annotations import _CORNERS, _as_array, _boxes_of_images, _bunch, _read_csv
from sklcam.datasets._trees import AnyPath, Box, _images_of_classes

_CLASS_TREE = "<root>/<class>/<any name>.jpg (or .png, ...)"


def load_class_folders(root: AnyPath, *, boxes: AnyPath | None = None) -> Bunch:
    """Load images from a folder for each class.

    Parameters
    ----------
    root : path
        Holds ``<class>/<image>``; folders within a class's folder belong to the class. Hidden files
        and files that are no images by their suffix are passed over.
    boxes : path or None, default=None
        A CSV file with the columns ``path, x1, y1, x2, y2`` and maybe ``label``, one row a box.
        Paths count from the folder of the CSV file, or else from `root`. With labels, an image's
        boxes are those of its own class. Rows of files that lie outside `root` are passed over, so
        that one file may serve the folders of several splits.

    Returns
    -------
    Bunch
        With ``data``, list of paths, sorted; ``target``, the names of their classes;
        ``target_names``; ``boxes``, None or a list of float64 arrays of shape (n_boxes, 4), empty
        for an image without a row; ``masks``, None; and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or CSV file.
    ValueError
        If `root` has no class folders, a class has no images, or the CSV file lacks a column, has a
        box that is none, or names an image that does not exist.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from sklcam.datasets.folders import load_class_folders
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("cat", "dog"):
    ...         Path(root, name).mkdir()
    ...         Image.new("RGB", (8, 8)).save(Path(root, name, "1.png"))
    ...     pets = load_class_folders(root)
    >>> pets.target
    array(['cat', 'dog'], ...)
    """
    data, target = _images_of_classes(Path(root), _CLASS_TREE)
    found = None if boxes is None else _boxes_of_images(Path(boxes), Path(root), data, target)
    return _bunch(data, target, boxes=found, descr=f"Class folders in {os.fspath(root)}.")


def load_boxes_csv(path: AnyPath) -> Bunch:
    r"""Load a data set that a CSV file of labelled boxes describes.

    There is one entry for each image *and* label in it, with the boxes of that label: an image with
    apples and bananas comes twice. That is the form of the pointing game, where each class in an
    image is explained, ``explain(data, target=target)``.

    Parameters
    ----------
    path : path
        A CSV file with the columns ``path, label, x1, y1, x2, y2``, one row a box. Paths count from
        the file's folder.

    Returns
    -------
    Bunch
        With ``data``, list of paths, in the order of the file; ``target``, the labels;
        ``target_names``; ``boxes``, list of float64 arrays of shape (n_boxes, 4); ``masks``, None;
        and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If the CSV file, or an image that it names, does not exist.
    ValueError
        If a column is missing, or a box is none; the message names file and line.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from sklcam.datasets.folders import load_boxes_csv
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
    for where, name, marked in _read_csv(table, ("path", "label", *_CORNERS)):
        image = os.path.normpath(table.parent / name)
        if not marked.label:
            raise ValueError(f"{where}: the label is empty.")
        if (image, marked.label) not in entries and not os.path.isfile(image):
            raise FileNotFoundError(f"{where}: there is no file {image}.")
        entries.setdefault((image, marked.label), []).append(marked.box)
    data, target = [image for image, _ in entries], [label for _, label in entries]
    boxes = [_as_array(of_entry) for of_entry in entries.values()]
    return _bunch(data, target, boxes=boxes, descr=f"Images and boxes listed in {table}.")
