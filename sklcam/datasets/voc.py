"""PASCAL VOC."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.utils import Bunch
from torchvision import datasets

from sklcam.datasets._annotations import _as_array, _bunch, _read_xml
from sklcam.datasets._trees import AnyPath, _check_choice, _find, _first

_VOC_TREE = """\
<root>/VOCdevkit/VOC<year>/JPEGImages/<image>.jpg
<root>/VOCdevkit/VOC<year>/Annotations/<image>.xml
<root>/VOCdevkit/VOC<year>/ImageSets/{Main,Segmentation}/<subset>.txt
<root>/VOCdevkit/VOC<year>/SegmentationClass/<image>.png (for segmentation=True)"""


# In the order of their numbers in the segmentations, from 1.
# fmt: off
_VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)


# fmt: on
_VOC_YEARS = tuple(str(year) for year in range(2007, 2013))


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

    >>> from sklcam.datasets.voc import load_voc
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


def _read_class_mask(path: Path, number: int) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened) == number
