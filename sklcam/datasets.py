"""Data sets of images, with the boxes and masks of their objects.

Loaders of the sets that papers on explanations use, each with its own split. They read what lies in
a local folder; two can be downloaded by torchvision. No image is opened here: the estimators read
the paths in ``data`` lazily, and masks are read when they are asked for.

Boxes are ``(x1, y1, x2, y2)`` in pixels of the image itself: edges of pixels, counted from 0, so
that a box from 0 to the width is as wide as the image. Each loader brings the coordinates of its
source to that. Masks are of the image's size. ``evaluate(..., boxes=..., masks=...)`` brings the
maps into this frame, however the network's input was resized. The estimators turn images upright by
their EXIF orientation, which matters for photographs in class folders of one's own: their boxes are
those of the upright image.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import loadmat
from sklearn.datasets import load_digits as load_digits_table
from sklearn.utils import Bunch
from torchvision import datasets

from sklcam.arguments import check_callable

AnyPath = str | os.PathLike[str]
Box = tuple[float, float, float, float]

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_CORNERS = ("x1", "y1", "x2", "y2")

_CLASS_TREE = "<root>/<class>/<any name>.jpg (or .png, ...)"

_CALTECH_TREE = """\
<root>/101_ObjectCategories/<class>/image_0001.jpg
<root>/Annotations/<class>/annotation_0001.mat (optional)
or both in <root>/caltech101"""

_CUB_TREE = """\
<root>/images.txt, classes.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt
<root>/images/<class>/<image>.jpg
<root>/segmentations/<class>/<image>.png (optional; also beside <root>)"""

_VOC_TREE = """\
<root>/VOCdevkit/VOC<year>/JPEGImages/<image>.jpg
<root>/VOCdevkit/VOC<year>/Annotations/<image>.xml
<root>/VOCdevkit/VOC<year>/ImageSets/{Main,Segmentation}/<subset>.txt
<root>/VOCdevkit/VOC<year>/SegmentationClass/<image>.png (for segmentation=True)"""

_IMAGENET_TREE = """\
<root>/<subset>/<wnid>/<image>.JPEG, or <root>/<subset>/<image>.JPEG with annotations
<root>/Annotations/CLS-LOC/<subset>/[<wnid>/]<image>.xml (or annotations=)
or Kaggle's <root>/Data/CLS-LOC/<subset> in place of <root>/<subset>"""

# What torchvision's loader maps, too: four folders of annotations have names of their own.
_CALTECH_ANNOTATIONS = {
    "Faces": "Faces_2",
    "Faces_easy": "Faces_3",
    "Motorbikes": "Motorbikes_16",
    "airplanes": "Airplanes_Side_2",
}
_CALTECH_BACKGROUND = "BACKGROUND_Google"

# In the order of their numbers in the segmentations, from 1.
# fmt: off
_VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on
_VOC_YEARS = tuple(str(year) for year in range(2007, 2013))


class LazyMask:
    """The mask of one object or class, read from its file whenever it is asked for.

    ``np.asarray(mask)`` gives the array. Loaders return these in an object array, so that slices
    of it, scikit-learn's splits and pickles hold file names, not pixels.

    Parameters
    ----------
    read : callable
        Takes nothing and returns the mask, bool of shape (height, width). A
        ``functools.partial`` of a function of a module can be pickled.

    Raises
    ------
    ValueError
        If `read` cannot be called.

    Examples
    --------
    >>> from functools import partial
    >>> import numpy as np
    >>> from sklcam.datasets import LazyMask
    >>> np.asarray(LazyMask(partial(np.ones, (1, 2), dtype=bool)))
    array([[ True,  True]])
    """

    def __init__(self, read: Callable[[], np.ndarray]) -> None:
        check_callable("read", read, "that takes nothing and returns the mask")
        self.read = read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype)


def load_digits(*, n_class: int = 10) -> Bunch:
    """Load scikit-learn's handwritten digits as images.

    Parameters
    ----------
    n_class : int, default=10
        The digits from 0 to n_class - 1.

    Returns
    -------
    Bunch
        With ``data``, float32 in [0, 1] of shape (n_images, 8, 8); ``target``, the digits, int;
        ``target_names``; ``boxes`` and ``masks``, None; and ``DESCR``.

    Raises
    ------
    ValueError
        If `n_class` is no int from 1 to 10.

    Examples
    --------
    >>> from sklcam.datasets import load_digits
    >>> digits = load_digits(n_class=3)
    >>> digits.data.shape, digits.data.dtype, float(digits.data.max())
    ((537, 8, 8), dtype('float32'), 1.0)
    """
    table = load_digits_table(n_class=n_class)
    images = (table.images / 16).astype(np.float32)
    descr = (
        f"Handwritten digits 0 to {n_class - 1} of scikit-learn, 8 x 8 pixels. Alpaydin, Kaynak, "
        "UCI Machine Learning Repository, 1998."
    )
    return _bunch(images, table.target, descr=descr)


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
    >>> from sklcam.datasets import load_class_folders
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

    >>> from sklcam.datasets import load_caltech101
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


def load_cub200(root: AnyPath, *, subset: str = "train") -> Bunch:
    """Load the birds of CUB-200-2011, with their boxes and segmentations.

    Parameters
    ----------
    root : path
        The unpacked ``CUB_200_2011``, or the folder that holds it. The segmentations, an archive of
        their own, are looked for in it and beside it. Nothing is downloaded, as torchvision has no
        loader of this set.
    subset : {"train", "test", "all"}, default="train"
        The authors' split: 5994 and 5794 images.

    Returns
    -------
    Bunch
        With ``data``, list of paths; ``target``, names such as "001.Black_footed_Albatross";
        ``target_names``, all of ``classes.txt``; ``boxes``, list of float64 arrays of shape (1, 4);
        ``masks``, object array of :class:`LazyMask`, or None without segmentations; and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message shows the layout.
    ValueError
        If there is no such subset, or the files do not fit each other.

    Notes
    -----
    ``bounding_boxes.txt`` holds ``x y width height``, taken as edges that count from 0: boxes
    of whole images read ``0 0 500 375``. The segmentations are means over annotators, from 0 to
    255; from 128 on, a pixel is the bird's.

    References
    ----------
    Wah, Branson, Welinder, Perona, Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", Caltech
    technical report CNS-TR-2011-001.

    Examples
    --------
    Of a set that is on the disk; none comes with the library, so that these lines are not run:

    >>> from sklcam.datasets import load_cub200
    >>> birds = load_cub200("data/CUB_200_2011", subset="test")  # doctest: +SKIP
    >>> evaluate(
    ...     clf, birds.data, metrics="pointing_game", target=birds.target, boxes=birds.boxes
    ... )  # doctest: +SKIP
    """
    _check_choice("subset", subset, ("train", "test", "all"))
    home = _find([Path(root), Path(root, "CUB_200_2011")], "images.txt", _CUB_TREE)
    names, classes = _Table(home / "images.txt"), _Table(home / "classes.txt")
    labels, split = _Table(home / "image_class_labels.txt"), _Table(home / "train_test_split.txt")
    boxes = _Table(home / "bounding_boxes.txt")
    wanted = {"train": ("1",), "test": ("0",), "all": ("0", "1")}[subset]
    chosen = [image for image in names if split[image] in wanted]
    masks = None
    if segmented := _first([home, home.parent], "segmentations"):
        files = [segmented / "segmentations" / names[image] for image in chosen]
        masks = [partial(_read_grey_mask, file.with_suffix(".png")) for file in files]
    return _bunch(
        [os.fspath(home / "images" / names[image]) for image in chosen],
        [classes[labels[image]] for image in chosen],
        names=classes.values(),
        boxes=[_as_array([_cub_box(boxes, image)]) for image in chosen],
        masks=masks,
        descr=f"CUB-200-2011, {subset}. Wah et al., Caltech technical report CNS-TR-2011-001.",
    )


def load_voc(
    root: AnyPath,
    *,
    year: str = "2012",
    subset: str = "val",
    segmentation: bool = False,
    difficult: bool = False,
    download: bool = False,
) -> Bunch:
    """Load PASCAL VOC: an entry for each image and class in it.

    An image with a person and two dogs comes twice, as "dog", with two boxes, and as "person". A
    class map explains one class, and the pointing game is played for each class in the image.

    Parameters
    ----------
    root : path
        Holds ``VOCdevkit/VOC<year>``; ``VOC<year>`` itself will do, too.
    year : {"2007", ..., "2012"}, default="2012"
    subset : {"train", "val", "trainval", "test"}, default="val"
        The authors' split. Only that of 2007 has annotations for "test".
    segmentation : bool, default=False
        Whether to load the images of the segmentation task only, and masks.
    difficult : bool, default=False
        Whether objects that the annotators marked as difficult count. Otherwise they are left out,
        and so is an entry that has no others.
    download : bool, default=False
        Have torchvision download the year if this subset is not there.

    Returns
    -------
    Bunch
        With ``data``, list of paths; ``target``, the classes; ``target_names``, all 20; ``boxes``,
        list of float64 arrays of shape (n_boxes, 4), those of the class; ``masks``, None or an
        object array of :class:`LazyMask`, those of the class; and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message shows the layout.
    ValueError
        If there is no such year or subset, or an XML file lacks a field; it is named.

    Notes
    -----
    The XML files count pixels from 1, and include the last one. A mask holds the pixels of the
    class in ``SegmentationClass``; the void border around objects is not the object's. The task of
    segmentation labels some objects otherwise: a mask may be empty where there is a box.

    References
    ----------
    Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010; for the game,
    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016.

    Examples
    --------
    Of a set that is on the disk; none comes with the library, so that these lines are not run:

    >>> from sklcam.datasets import load_voc
    >>> voc = load_voc("data", year="2007", subset="test")  # doctest: +SKIP
    >>> evaluate(
    ...     clf, voc.data, metrics="pointing_game", target=voc.target, boxes=voc.boxes,
    ...     metric_params={"pointing_game": {"tolerance": 15}},
    ... )  # doctest: +SKIP
    """
    year = str(year)
    _check_choice("year", year, _VOC_YEARS)
    _check_choice("subset", subset, ("train", "val", "trainval", "test"))
    listed = f"ImageSets/{'Segmentation' if segmentation else 'Main'}/{subset}.txt"
    # torchvision unpacks the year 2011 into "TrainVal", as its archive says.
    folders = (f"VOCdevkit/VOC{year}", f"TrainVal/VOCdevkit/VOC{year}", f"VOC{year}", "")
    places = [Path(root, folder) for folder in folders]
    if download and not _first(places, listed):
        # One archive holds the files of both tasks.
        datasets.VOCDetection(root, year=year, image_set=subset, download=True)
    home = _find(places, listed, _VOC_TREE)
    data, target, boxes, masks = [], [], [], []
    for name in (home / listed).read_text("utf-8").split():
        annotation = home / "Annotations" / f"{name}.xml"
        kept = [one for one in _read_xml(annotation, first=1) if difficult or not one.difficult]
        for label in sorted({one.label for one in kept}):
            _check_choice(f"The class of an object in {annotation}", label, _VOC_CLASSES)
            data.append(os.fspath(home / "JPEGImages" / f"{name}.jpg"))
            target.append(label)
            boxes.append(_as_array([one.box for one in kept if one.label == label]))
            pixels = home / "SegmentationClass" / f"{name}.png"
            masks.append(partial(_read_class_mask, pixels, _VOC_CLASSES.index(label) + 1))
    return _bunch(
        data,
        target,
        names=_VOC_CLASSES,
        boxes=boxes,
        masks=masks if segmentation else None,
        descr=f"PASCAL VOC {year}, {listed}. Everingham et al., IJCV 2010.",
    )


def load_imagenet(
    root: AnyPath, *, subset: str = "val", annotations: AnyPath | None = None
) -> Bunch:
    """Load ImageNet's classification images, with their XML boxes.

    Parameters
    ----------
    root : path
        Holds ``<subset>``, or Kaggle's ``Data/CLS-LOC/<subset>``, also in a folder ``ILSVRC``, with
        a folder of images for each class; without such folders, an image's class is that of its
        boxes.
    subset : {"train", "val"}, default="val"
    annotations : path or None, default=None
        A folder with ``<image>.xml``, in folders of the classes or not. None takes
        ``<root>/Annotations/CLS-LOC/<subset>``, if it is there.

    Returns
    -------
    Bunch
        With ``data``, list of paths, sorted; ``target``, the classes as WordNet ids;
        ``target_names``; ``boxes``, list of float64 arrays of shape (n_boxes, 4), those of the
        image's class, empty for an image without an XML file, or None without their folder;
        ``masks``, None; and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If the images are not there, or the annotations are of none of them.
    ValueError
        If a class has no images, the class of an image cannot be known, or an XML file lacks a
        field; the file is named.

    Notes
    -----
    These XML files count pixels from 0, and include the last one: a whole image of 500 pixels is
    from 0 to 499. In the training set, some boxes reach beyond the image, and some have their
    corners swapped; they are cut, and put in order. About half of its images have boxes.

    Boxes are in pixels of the size that the XML file names. No image is opened to see whether it
    still has that size: images that were resized need their boxes resized alike.

    References
    ----------
    Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.

    Examples
    --------
    Of a set that is on the disk; none comes with the library, so that these lines are not run:

    >>> from sklcam.datasets import load_imagenet
    >>> val = load_imagenet("ILSVRC", subset="val")  # doctest: +SKIP
    >>> evaluate(
    ...     clf, val.data, metrics="localization_accuracy", target=val.target, boxes=val.boxes
    ... )  # doctest: +SKIP
    """
    _check_choice("subset", subset, ("train", "val"))
    bases = [Path(root), Path(root, "ILSVRC")]
    places = [base / inner for inner in ("", "Data/CLS-LOC") for base in bases]
    folder = _find(places, subset, _IMAGENET_TREE) / subset
    xml_folder = _first([base / "Annotations/CLS-LOC" / subset for base in bases], "")
    xml_folder = xml_folder if annotations is None else Path(annotations)
    in_folders = bool(_class_folders(folder))
    if in_folders:
        data, target = _images_of_classes(folder, _IMAGENET_TREE)
    else:
        data = _files_under(folder, _SUFFIXES)
    marked = _objects_in(xml_folder, data, folder) if xml_folder else [[] for _ in data]
    if not in_folders:
        target = [_label_of(*entry) for entry in zip(data, marked, strict=True)]
    entries = zip(marked, target, data, strict=True)
    return _bunch(
        data,
        target,
        boxes=[_boxes_of_class(*entry) for entry in entries] if xml_folder else None,
        descr=f"ImageNet (CLS-LOC), {subset}. Russakovsky et al., IJCV 2015.",
    )


# Folders


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


# What the loaders return, and checks


def _bunch(
    data: Any,
    target: Sequence[str] | np.ndarray,
    *,
    descr: str,
    names: Collection[str] | None = None,
    boxes: list[np.ndarray] | None = None,
    masks: Sequence[Callable[[], np.ndarray]] | None = None,
) -> Bunch:
    if not len(data):
        raise ValueError(f"There are no images in this data set: {descr}")
    return Bunch(
        data=data,
        target=np.asarray(target),
        target_names=np.unique(np.asarray(target if names is None else list(names))),
        boxes=boxes,
        masks=None if masks is None else _lazy_masks(masks),
        DESCR=descr,
    )


def _lazy_masks(reads: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    masks = np.empty(len(reads), dtype=object)
    for i, read in enumerate(reads):  # one by one: NumPy would make arrays of a list of them
        masks[i] = LazyMask(read)
    return masks


def _as_array(boxes: Sequence[Box]) -> np.ndarray:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def _four_numbers(values: Sequence[Any], where: str) -> Box:
    try:
        first, second, third, fourth = (float(value) for value in values)
    except ValueError:
        raise ValueError(f"{where}: a box is four numbers; got {list(values)}.") from None
    return first, second, third, fourth


def _check_box(values: Sequence[Any], where: str) -> Box:
    x1, y1, x2, y2 = _four_numbers(values, where)
    if not (x1 < x2 and y1 < y2 and all(map(math.isfinite, (x1, y1, x2, y2)))):
        raise ValueError(
            f"{where}: a box is x1, y1, x2, y2, with x1 < x2 and y1 < y2; got {list(values)}."
        )
    return x1, y1, x2, y2


# Formats of annotations


class _Marked(NamedTuple):
    """An object in an image."""

    label: str
    box: Box
    difficult: bool = False


def _boxes_of_class(marked: Sequence[_Marked], label: str, image: str) -> np.ndarray:
    """Return the boxes of the image's own class; none of it among others is taken for a mistake."""
    own = [one.box for one in marked if one.label in ("", label)]
    if marked and not own:
        others = ", ".join(sorted({one.label for one in marked}))
        raise ValueError(f"{image} is of class {label!r}, but all of its boxes are of: {others}.")
    return _as_array(own)


def _read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, str, _Marked]]:
    """Yield, for each row, where it is, the path in it and the box."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        try:
            header = rows.fieldnames or []
            if not set(columns) <= set(header):
                raise ValueError(
                    f"{path} must have the columns {', '.join(columns)} in its first line; "
                    f"it has {', '.join(header) or 'none'}."
                )
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: there must be one entry for each column.")
                box = _check_box([row[name] for name in _CORNERS], where)
                yield where, row["path"], _Marked(row.get("label", ""), box)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read as a CSV file: {error}.") from error


def _boxes_of_images(
    table: Path, root: Path, data: Sequence[str], target: Sequence[str]
) -> list[np.ndarray]:
    """Return the boxes in a CSV file of the images under `root`."""
    at = {_resolved(Path(image)): i for i, image in enumerate(data)}
    marked: list[list[_Marked]] = [[] for _ in data]
    for where, name, one in _read_csv(table, ("path", *_CORNERS)):
        places = [_resolved(folder / name) for folder in (table.parent, root)]
        i = next((at[place] for place in places if place in at), None)
        if i is not None:
            marked[i].append(one)
        elif places[0].is_relative_to(root.resolve()) or not places[0].is_file():
            raise ValueError(
                f"{where}: there is no image {name!r}, neither beside the CSV file nor in {root}."
            )
    entries = zip(marked, target, data, strict=True)
    return [_boxes_of_class(*entry) for entry in entries]


def _resolved(path: Path) -> Path:
    """Return the path by which a file is known, whatever links lead to its folder."""
    return path.parent.resolve() / path.name


def _read_xml(path: Path, *, first: int) -> list[_Marked]:
    """Read the objects of an XML file in the format of PASCAL VOC.

    `first` is the number of an image's first pixel: 1 in PASCAL VOC, 0 in ImageNet. Corners are put
    in order and boxes cut to the image, if its size is given; ImageNet has a few that need it.
    """
    try:
        image = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} cannot be read as XML: {error}.") from None
    size = [_number(image, f"size/{side}", path, "0") or math.inf for side in ("width", "height")]
    marked = []
    for element in image.iterfind("object"):
        # Of its direct children only: parts of an object have names and boxes, too.
        label = element.findtext("name", "").strip()
        if not label:
            raise ValueError(f"{path}: an <object> has no <name>.")
        x, y = (
            [_number(element, f"bndbox/{axis}{end}", path) - first for end in ("min", "max")]
            for axis in "xy"
        )
        low = [max(min(pair), 0) for pair in (x, y)]
        high = [min(max(pair) + 1, side) for pair, side in zip((x, y), size, strict=True)]
        if low[0] < high[0] and low[1] < high[1]:
            difficult = _number(element, "difficult", path, "0") != 0
            marked.append(_Marked(label, (low[0], low[1], high[0], high[1]), difficult))
    return marked


def _number(
    element: ElementTree.Element, name: str, path: Path, default: str | None = None
) -> float:
    text = element.findtext(name, default)
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(
            f"{path}: <{element.tag}> must have a number in <{name}>; got {text!r}."
        ) from None


def _objects_in(annotations: Path, data: Sequence[str], folder: Path) -> list[list[_Marked]]:
    """Return the objects in ImageNet's XML file of each image, none if it has no file."""
    files = {_name_in(annotations, file): file for file in _files_under(annotations, (".xml",))}
    of_images = []
    for image in data:
        name = _name_in(folder, image)
        of_images.append(files.get(name) or files.get(Path(name.name)))
    if not any(of_images):
        raise FileNotFoundError(
            f"{annotations} has no XML file of any of the images in {folder}. Expected is:\n"
            f"{_IMAGENET_TREE}"
        )
    return [[] if file is None else _read_xml(Path(file), first=0) for file in of_images]


def _name_in(folder: Path, file: str) -> Path:
    return Path(file).relative_to(folder).with_suffix("")


def _label_of(image: str, marked: Sequence[_Marked]) -> str:
    if not marked:
        raise ValueError(
            f"The class of {image} is not known, as it lies in no class folder and no XML file "
            f"has an object of it. Expected is:\n{_IMAGENET_TREE}"
        )
    return marked[0].label


class _Table(dict[str, str]):
    """The lines ``key value`` of a text file; asking for another key names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(_not_there(path.parent, path.name, _CUB_TREE))
        lines = (line.strip().partition(" ") for line in path.read_text("utf-8").splitlines())
        super().__init__({key: value for key, _, value in lines if key})

    def __missing__(self, key: str) -> str:
        raise ValueError(f"{self.path} has no line for {key!r}.")


def _cub_box(table: _Table, image: str) -> Box:
    where = f"{table.path}, image {image}"
    x, y, width, height = _four_numbers(table[image].split(), where)
    return _check_box((x, y, x + width, y + height), where)


def _draw(
    images: Sequence[str],
    label: str,
    subset: str,
    n_train: int,
    n_test: int | None,
    random_state: int,
) -> list[str]:
    """Draw the training or the test images of one class, sorted."""
    if not 0 < n_train < len(images):
        raise ValueError(
            f"n_train must be from 1 to {len(images) - 1}, as {label!r} has {len(images)} images "
            f"and one must be left for testing; got {n_train}. subset='all' loads all of them."
        )
    # Seeded by the class, too, so that no class's draw depends on which others there are.
    order = np.random.default_rng([random_state, *label.encode()]).permutation(len(images))
    test = order[n_train:] if n_test is None else order[n_train : n_train + n_test]
    return [images[i] for i in sorted(order[:n_train] if subset == "train" else test)]


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


# Masks, when they are asked for


def _fill_outline(image: str, annotation: Path | None) -> np.ndarray:
    with Image.open(image) as opened:
        mask = Image.new("1", opened.size)
    if annotation is not None:
        points = np.rint(_read_outline(annotation)[1])
        ImageDraw.Draw(mask).polygon([(x, y) for x, y in points.tolist()], fill=1)
    return np.array(mask)


def _read_grey_mask(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("L")) >= 128


def _read_class_mask(path: Path, number: int) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened) == number
