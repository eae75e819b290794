"""PASCAL VOC: objects of 20 classes, several per image, with boxes and segmentations."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.utils import Bunch
from torchvision import datasets

from sklcam.datasets._annotations import box_array, read_xml
from sklcam.datasets._bunch import bunch
from sklcam.datasets._trees import AnyPath, check_choice, find, first_with

_TREE = """\
<root>/VOCdevkit/VOC<year>/JPEGImages/<image>.jpg
<root>/VOCdevkit/VOC<year>/Annotations/<image>.xml
<root>/VOCdevkit/VOC<year>/ImageSets/{Main,Segmentation}/<subset>.txt
<root>/VOCdevkit/VOC<year>/SegmentationClass/<image>.png (for segmentation=True)"""

# In the order of their numbers in the segmentations, which begin at 1.
_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
_YEARS = tuple(str(year) for year in range(2007, 2013))


def load_voc(
    root: AnyPath,
    *,
    year: str = "2012",
    subset: str = "val",
    segmentation: bool = False,
    difficult: bool = False,
    download: bool = False,
) -> Bunch:
    """Load PASCAL VOC, with an entry for each image and each class in it.

    An image with a person and two dogs has two entries: "dog", with two boxes, and "person". A map
    explains one class, and the pointing game is played for each class in the image.

    Parameters
    ----------
    root : path
        The folder that holds ``VOCdevkit/VOC<year>``, or ``VOC<year>`` itself.
    year : {"2007", ..., "2012"}, default="2012"
    subset : {"train", "val", "trainval", "test"}, default="val"
        The authors' split. Only 2007 has annotations for "test".
    segmentation : bool, default=False
        Whether to load only the images of the segmentation task, with masks.
    difficult : bool, default=False
        Whether objects that the annotators marked as difficult count. Otherwise they are left out,
        and so are entries without any other object.
    download : bool, default=False
        Whether torchvision downloads the year if this subset is missing.

    Returns
    -------
    Bunch
        With ``data``, a list of paths; ``target``, the classes; ``target_names``, all 20 names;
        ``boxes``, a list of float64 arrays of shape (n_boxes, 4) with the boxes of the class;
        ``masks``, None or an object array of :class:`LazyMask` of the class; and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If a file is missing. The message shows the expected layout.
    TypeError
        If `root` is not a path.
    ValueError
        If there is no such year or subset, or an XML file lacks a field. The message names the
        file.

    Notes
    -----
    The XML files count pixels from 1, and include the last one. A mask holds the pixels of the
    class in ``SegmentationClass``; the void border around objects is not part of it. The
    segmentation task labels some objects differently, so a mask may be empty although there is a
    box.

    References
    ----------
    Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010; for the
    pointing game, Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklcam.datasets import load_voc
    >>> box = "<xmin>48</xmin><ymin>240</ymin><xmax>195</xmax><ymax>371</ymax>"
    >>> xml = f"<annotation><object><name>dog</name><bndbox>{box}</bndbox></object></annotation>"
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name, text in {"Annotations/1.xml": xml, "ImageSets/Main/test.txt": "1"}.items():
    ...         path = Path(root, "VOCdevkit/VOC2007", name)
    ...         path.parent.mkdir(parents=True)
    ...         _ = path.write_text(text)
    ...     voc = load_voc(root, year="2007", subset="test")
    >>> voc.target.tolist(), voc.boxes
    (['dog'], [array([[ 47., 239., 195., 371.]])])
    """
    year = str(year)
    check_choice("year", year, _YEARS)
    check_choice("subset", subset, ("train", "val", "trainval", "test"))
    listed = f"ImageSets/{'Segmentation' if segmentation else 'Main'}/{subset}.txt"
    # Torchvision unpacks the year 2011 into "TrainVal", as its archive says.
    folders = (f"VOCdevkit/VOC{year}", f"TrainVal/VOCdevkit/VOC{year}", f"VOC{year}", "")
    places = [Path(root, folder) for folder in folders]
    if download and not first_with(listed, places):
        # One archive holds the files of both tasks.
        datasets.VOCDetection(root, year=year, image_set=subset, download=True)
    home = find(listed, places, _TREE)
    data, target, boxes, masks = [], [], [], []
    for name in (home / listed).read_text("utf-8").split():
        annotation = home / "Annotations" / f"{name}.xml"
        kept = [one for one in read_xml(annotation, first=1) if difficult or not one.difficult]
        for label in sorted({one.label for one in kept}):
            check_choice(f"The class of an object in {annotation}", label, _CLASSES)
            data.append(os.fspath(home / "JPEGImages" / f"{name}.jpg"))
            target.append(label)
            boxes.append(box_array([one.box for one in kept if one.label == label]))
            pixels = home / "SegmentationClass" / f"{name}.png"
            masks.append(partial(_read_class_mask, pixels, _CLASSES.index(label) + 1))
    return bunch(
        data,
        target,
        names=_CLASSES,
        boxes=boxes,
        masks=masks if segmentation else None,
        descr=f"PASCAL VOC {year}, {listed}. Everingham et al., IJCV 2010.",
    )


def _read_class_mask(path: Path, number: int) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened) == number
