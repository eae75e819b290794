"""Caltech-UCSD Birds 200-2011: birds of 200 species, with boxes and segmentations."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.utils import Bunch

from sklcam.datasets._annotations import Box, box_array, check_box, four_numbers
from sklcam.datasets._bunch import bunch
from sklcam.datasets._trees import AnyPath, check_choice, find, first_with, missing

_TREE = """\
<root>/images.txt, classes.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt
<root>/images/<class>/<image>.jpg
<root>/segmentations/<class>/<image>.png (optional; also beside <root>)"""


def load_cub200(root: AnyPath, *, subset: str = "train") -> Bunch:
    """Load the birds of CUB-200-2011, with their boxes and segmentations.

    Parameters
    ----------
    root : path
        The unpacked ``CUB_200_2011``, or the folder that holds it. The segmentations, which come in
        a separate archive, may lie in it or next to it. Nothing is downloaded, as torchvision has
        no loader for this data set.
    subset : {"train", "test", "all"}, default="train"
        The authors' split: 5994 and 5794 images.

    Returns
    -------
    Bunch
        With ``data``, a list of paths; ``target``, names such as "001.Black_footed_Albatross";
        ``target_names``, all of ``classes.txt``; ``boxes``, a list of float64 arrays of shape
        (1, 4); ``masks``, an object array of :class:`LazyMask`, or None without segmentations; and
        ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If a file is missing. The message shows the expected layout.
    TypeError
        If `root` is not a path.
    ValueError
        If there is no such subset, or the files do not fit together. The message names the file.

    Notes
    -----
    ``bounding_boxes.txt`` holds ``x y width height``, which are read as edges counted from 0: boxes
    of whole images are ``0 0 500 375``. The segmentations are means over annotators, from 0 to 255;
    pixels of at least 128 belong to the bird.

    References
    ----------
    Wah, Branson, Welinder, Perona, Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", Caltech
    technical report CNS-TR-2011-001.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklcam.datasets import load_cub200
    >>> tables = {"images": "1 001.Albatross/1.jpg", "classes": "1 001.Albatross"}
    >>> tables |= {"image_class_labels": "1 1", "train_test_split": "1 0"}
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name, line in {**tables, "bounding_boxes": "1 60 27 325 304"}.items():
    ...         _ = Path(root, f"{name}.txt").write_text(line)
    ...     birds = load_cub200(root, subset="test")
    >>> birds.target.tolist(), birds.boxes
    (['001.Albatross'], [array([[ 60.,  27., 385., 331.]])])
    """
    check_choice("subset", subset, ("train", "test", "all"))
    home = find("images.txt", [Path(root), Path(root, "CUB_200_2011")], _TREE)
    names, classes = _Table(home / "images.txt"), _Table(home / "classes.txt")
    labels, split = _Table(home / "image_class_labels.txt"), _Table(home / "train_test_split.txt")
    boxes = _Table(home / "bounding_boxes.txt")
    wanted = {"train": ("1",), "test": ("0",), "all": ("0", "1")}[subset]
    chosen = [image for image in names if split[image] in wanted]
    masks = None
    if segmented := first_with("segmentations", [home, home.parent]):
        files = [segmented / "segmentations" / names[image] for image in chosen]
        masks = [partial(_read_grey_mask, file.with_suffix(".png")) for file in files]
    return bunch(
        [os.fspath(home / "images" / names[image]) for image in chosen],
        [classes[labels[image]] for image in chosen],
        names=classes.values(),
        boxes=[box_array([_box_of(boxes, image)]) for image in chosen],
        masks=masks,
        descr=f"CUB-200-2011, {subset}. Wah et al., Caltech technical report CNS-TR-2011-001.",
    )


class _Table(dict[str, str]):
    """The lines ``key value`` of a text file. The error for a missing key names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(missing(path.parent, path.name, _TREE))
        lines = (line.strip().partition(" ") for line in path.read_text("utf-8").splitlines())
        super().__init__({key: value for key, _, value in lines if key})

    def __missing__(self, key: str) -> str:
        raise ValueError(
            f"{self.path} has no line for {key!r}. Use the files of one copy of the data set."
        )


def _box_of(table: _Table, image: str) -> Box:
    where = f"{table.path}, image {image}"
    x, y, width, height = four_numbers(table[image].split(), where)
    return check_box((x, y, x + width, y + height), where)


def _read_grey_mask(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L")) >= 128
