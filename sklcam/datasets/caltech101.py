"""Caltech 101: objects of 101 categories, with outlines drawn by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import loadmat
from sklearn.utils import Bunch
from torchvision import datasets

from sklcam.datasets._annotations import Box, box_array, check_box
from sklcam.datasets._bunch import bunch
from sklcam.datasets._trees import AnyPath, check_choice, find, first_with, images_by_class

_TREE = """\
<root>/101_ObjectCategories/<class>/image_0001.jpg
<root>/Annotations/<class>/annotation_0001.mat (optional)
or both in <root>/caltech101"""

# Four folders of annotations are not named like their class. Torchvision's loader has the same map.
_ANNOTATION_FOLDERS = {
    "Faces": "Faces_2",
    "Faces_easy": "Faces_3",
    "Motorbikes": "Motorbikes_16",
    "airplanes": "Airplanes_Side_2",
}

_BACKGROUND = "BACKGROUND_Google"


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

    The data set has no split. The protocol of the literature draws `n_train` images of each class
    for training, and tests on the others, at most `n_test` per class.

    Parameters
    ----------
    root : path
        The folder that holds ``101_ObjectCategories`` and, for boxes and masks, ``Annotations``, or
        ``caltech101`` with both, as in torchvision.
    subset : {"train", "test", "all"}, default="train"
        "all" is every image, whatever `n_train` and `n_test` are.
    n_train : int, default=30
        Images per class for training.
    n_test : int or None, default=50
        Largest number of images per class for testing; None takes all that are not for training.
    include_background : bool, default=False
        Whether the 102nd folder, with images of nothing in particular, counts as a class.
    random_state : int, default=0
        The seed of the draw. With the same seed and `n_train`, "train" and "test" share no image.
    download : bool, default=False
        Whether torchvision downloads the data set if it is missing.

    Returns
    -------
    Bunch
        With ``data``, a list of paths; ``target``, the names of their classes; ``target_names``;
        ``boxes``, a list of float64 arrays of shape (n_boxes, 4); ``masks``, an object array of
        :class:`LazyMask`; and ``DESCR``. Boxes and masks are None without ``Annotations``, and
        empty for the background.

    Raises
    ------
    FileNotFoundError
        If the images, or some of the annotations, are missing.
    TypeError
        If `root` is not a path.
    ValueError
        If there is no such subset, a class has no images or none left for testing, or an annotation
        lacks a field. The message names the file.

    Notes
    -----
    Annotations count pixels from 1, and include the last one. A mask is the filled polygon of the
    outline, with corners rounded to pixels; the pixels on the outline belong to the object.

    Torchvision unpacks only the gzipped parts of the download. If the annotations are missing then,
    unpack ``Annotations.tar`` from the same archive next to ``101_ObjectCategories``.

    References
    ----------
    Fei-Fei, Fergus, Perona, "Learning generative visual models from few training examples", CVPR
    Workshop 2004; for the protocol, Lazebnik, Schmid, Ponce, "Beyond bags of features", CVPR 2006.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklcam.datasets import load_caltech101
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for label in ("ant", "bass"):
    ...         folder = Path(root, "101_ObjectCategories", label)
    ...         folder.mkdir(parents=True)
    ...         for i in range(1, 6):
    ...             (folder / f"image_000{i}.jpg").touch()
    ...     train = load_caltech101(root, subset="train", n_train=3)
    ...     test = load_caltech101(root, subset="test", n_train=3)
    >>> len(train.data), len(test.data), set(train.data) & set(test.data)
    (6, 4, set())
    """
    check_choice("subset", subset, ("train", "test", "all"))
    places = [Path(root), Path(root, "caltech101")]
    if download and not first_with("101_ObjectCategories", places):
        datasets.Caltech101(root, target_type=["category", "annotation"], download=True)
    home = find("101_ObjectCategories", places, _TREE)
    data, target = [], []
    for label, images in images_by_class(home / "101_ObjectCategories", _TREE).items():
        if label != _BACKGROUND or include_background:
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
        return bunch(data, target, descr=descr)
    files = [_annotation_of(home, *entry) for entry in zip(data, target, strict=True)]
    return bunch(
        data,
        target,
        boxes=[box_array([_read_outline(file)[0]] if file else []) for file in files],
        masks=[partial(_fill_outline, *pair) for pair in zip(data, files, strict=True)],
        descr=descr,
    )


def _draw(
    images: Sequence[str], label: str, subset: str, n_train: int, n_test: int | None, seed: int
) -> list[str]:
    """Draw the training or the test images of one class, sorted."""
    if not 0 < n_train < len(images):
        raise ValueError(
            f"n_train must be from 1 to {len(images) - 1}, as {label!r} has {len(images)} images "
            f"and one must be left for testing; got {n_train}. Use subset='all' to load all images."
        )
    # The class is part of the seed, so that its draw does not depend on the other classes.
    order = np.random.default_rng([seed, *label.encode()]).permutation(len(images))
    test = order[n_train:] if n_test is None else order[n_train : n_train + n_test]
    return [images[i] for i in sorted(order[:n_train] if subset == "train" else test)]


def _annotation_of(home: Path, image: str, label: str) -> Path | None:
    """Return the annotation file of an image; None for the background."""
    if label == _BACKGROUND:
        return None
    name = Path(image).stem.replace("image", "annotation")
    path = home / "Annotations" / _ANNOTATION_FOLDERS.get(label, label) / f"{name}.mat"
    if not path.is_file():
        raise FileNotFoundError(
            f"{image} has no annotation {path}. The expected layout is:\n{_TREE}"
        )
    return path


def _read_outline(path: Path) -> tuple[Box, np.ndarray]:
    """Return the box and the outline, (n_points, 2): x and y of pixel centres, counted from 0."""
    annotation = loadmat(os.fspath(path))
    try:
        top, bottom, left, right = np.asarray(annotation["box_coord"], dtype=float).ravel()
        x, y = np.asarray(annotation["obj_contour"], dtype=float)
    except (KeyError, ValueError):
        raise ValueError(
            f"{path} must hold box_coord, which is [top, bottom, left, right], and obj_contour, a "
            "row of x and a row of y."
        ) from None
    box = check_box((left - 1, top - 1, right, bottom), str(path))
    # The outline is relative to the box's corner.
    return box, np.stack([x + left - 1, y + top - 1], axis=1)


def _fill_outline(image: str, annotation: Path | None) -> np.ndarray:
    with Image.open(image) as opened:
        mask = Image.new("1", opened.size)
    if annotation is not None:
        points = np.rint(_read_outline(annotation)[1])
        ImageDraw.Draw(mask).polygon([(x, y) for x, y in points.tolist()], fill=1)
    return np.array(mask)
