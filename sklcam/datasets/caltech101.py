"""Caltech 101."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import loadmat
from sklearn.utils import Bunch
from torchvision import datasets

from sklcam.datasets._annotations import _as_array, _bunch, _check_box, _draw
from sklcam.datasets._trees import (
    AnyPath,
    Box,
    _check_choice,
    _find,
    _first,
    _images_by_class,
)

_CALTECH_TREE = """\
<root>/101_ObjectCategories/<class>/image_0001.jpg
<root>/Annotations/<class>/annotation_0001.mat (optional)
or both in <root>/caltech101"""


# What torchvision's loader maps, too: four folders of annotations have names of their own.
_CALTECH_ANNOTATIONS = {
    "Faces": "Faces_2",
    "Faces_easy": "Faces_3",
    "Motorbikes": "Motorbikes_16",
    "airplanes": "Airplanes_Side_2",
}


_CALTECH_BACKGROUND = "BACKGROUND_Google"


def load_caltech101(
    root: AnyPath,
    *,
    subset: str = "train",
    n_train: int = 30,
    n_test: int | None = 50,
    include_background: bool = False,
    random_state: int = 0,
    download: bool = False,
) -> Bunch:
    """Load Caltech 101, with the outlines of its objects.

    The set comes without a split. The protocol of the literature draws `n_train` images of each
    class for training, and tests on the others, at most `n_test` a class.

    Parameters
    ----------
    root : path
        Holds ``101_ObjectCategories`` and, for boxes and masks, ``Annotations``; or ``caltech101``
        with both, as torchvision has it.
    subset : {"train", "test", "all"}, default="train"
        "all" is every image, whatever `n_train` and `n_test`.
    n_train : int, default=30
        Images a class for training.
    n_test : int or None, default=50
        At most so many images a class for testing; None is all that are not for training.
    include_background : bool, default=False
        Whether the 102nd folder, of images of nothing in particular, counts as a class.
    random_state : int, default=0
        The seed of the draw, of each class by itself. "train" and "test" of one seed, and of one
        `n_train`, share no image.
    download : bool, default=False
        Have torchvision download the set if it is not there.

    Returns
    -------
    Bunch
        With ``data``, list of paths; ``target``, the names of their classes; ``target_names``;
        ``boxes``, list of float64 arrays of shape (n_boxes, 4); ``masks``, object array of
        :class:`LazyMask`; and ``DESCR``. Boxes and masks are None without ``Annotations``, and
        empty for the background.

    Raises
    ------
    FileNotFoundError
        If the images are not there, or some of the annotations are missing.
    ValueError
        If there is no such subset, or a class has no image left for testing.

    Notes
    -----
    Annotations count pixels from 1, and include the last one. A mask is the outline's polygon with
    its corners rounded to pixels, filled; the pixels on the outline belong to the object.

    torchvision unpacks those parts of the download that are gzipped. Should the annotations not be
    among them, unpack ``Annotations.tar`` of the same archive beside ``101_ObjectCategories``.

    References
    ----------
    Fei-Fei, Fergus, Perona, "Learning generative visual models from few training examples", CVPR
    Workshop 2004; for the protocol, Lazebnik, Schmid, Ponce, "Beyond bags of features", CVPR 2006.

    Examples
    --------
    Of a set that is on the disk; none comes with the library, so that these lines are not run:

    >>> from sklcam.datasets.caltech101 import load_caltech101
    >>> train = load_caltech101("data", subset="train")  # doctest: +SKIP
    >>> test = load_caltech101("data", subset="test")  # doctest: +SKIP
    >>> clf.fit(train.data, train.target)  # doctest: +SKIP
    >>> evaluate(
    ...     clf, test.data, metrics="heatmap_ratio", target=test.target, masks=test.masks
    ... )  # doctest: +SKIP
    """
    _check_choice("subset", subset, ("train", "test", "all"))
    places = [Path(root), Path(root, "caltech101")]
    if download and not _first(places, "101_ObjectCategories"):
        datasets.Caltech101(root, target_type=["category", "annotation"], download=True)
    home = _find(places, "101_ObjectCategories", _CALTECH_TREE)
    data, target = [], []
    for label, images in _images_by_class(home / "101_ObjectCategories", _CALTECH_TREE).items():
        if label != _CALTECH_BACKGROUND or include_background:
            chosen = images
            if subset != "all":
                chosen = _draw(images, label, subset, n_train, n_test, random_state)
            data += chosen
            target += [label] * len(chosen)
    descr = (
        f"Caltech 101, {subset}: n_train={n_train}, n_test={n_test}, random_state={random_state}. "
        "Fei-Fei, Fergus, Perona, CVPR Workshop 2004."
    )
    if not (home / "Annotations").is_dir():
        return _bunch(data, target, descr=descr)
    files = [_caltech_annotation(home, *entry) for entry in zip(data, target, strict=True)]
    return _bunch(
        data,
        target,
        boxes=[_as_array([] if file is None else [_read_outline(file)[0]]) for file in files],
        masks=[partial(_fill_outline, *pair) for pair in zip(data, files, strict=True)],
        descr=descr,
    )


def _caltech_annotation(home: Path, image: str, label: str) -> Path | None:
    """Return the annotation of an image, None for the background."""
    if label == _CALTECH_BACKGROUND:
        return None
    name = Path(image).stem.replace("image", "annotation")
    path = home / "Annotations" / _CALTECH_ANNOTATIONS.get(label, label) / f"{name}.mat"
    if not path.is_file():
        raise FileNotFoundError(f"{image} has no annotation {path}. Expected is:\n{_CALTECH_TREE}")
    return path


def _read_outline(path: Path) -> tuple[Box, np.ndarray]:
    """Read the box, and the outline's (n_points, 2) x and y, pixels' centres counted from 0."""
    annotation: Mapping[str, Any] = loadmat(os.fspath(path))
    try:
        top, bottom, left, right = np.asarray(annotation["box_coord"], dtype=float).ravel()
        x, y = np.asarray(annotation["obj_contour"], dtype=float)
    except (KeyError, ValueError):
        raise ValueError(
            f"{path} must hold box_coord, which is [top, bottom, left, right], and obj_contour, a "
            "row of x and a row of y."
        ) from None
    box = _check_box((left - 1, top - 1, right, bottom), str(path))
    return box, np.stack([x + left - 1, y + top - 1], axis=1)


def _fill_outline(image: str, annotation: Path | None) -> np.ndarray:
    with Image.open(image) as opened:
        mask = Image.new("1", opened.size)
    if annotation is not None:
        points = np.rint(_read_outline(annotation)[1])
        ImageDraw.Draw(mask).polygon([(x, y) for x, y in points.tolist()], fill=1)
    return np.array(mask)
