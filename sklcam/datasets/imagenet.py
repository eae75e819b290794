"""ImageNet: images of 1000 classes, with the boxes of its localisation task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sklearn.utils import Bunch

from sklcam.datasets._annotations import AnnotatedObject, boxes_of_class, read_xml
from sklcam.datasets._bunch import bunch
from sklcam.datasets._trees import (
    SUFFIXES,
    AnyPath,
    check_choice,
    class_folders,
    files_under,
    find,
    first_with,
    images_with_classes,
)

_TREE = """\
<root>/<subset>/<wnid>/<image>.JPEG, or <root>/<subset>/<image>.JPEG with annotations
<root>/Annotations/CLS-LOC/<subset>/[<wnid>/]<image>.xml (or annotations=)
or Kaggle's <root>/Data/CLS-LOC/<subset> in place of <root>/<subset>"""


def load_imagenet(
    root: AnyPath, *, subset: str = "val", annotations: AnyPath | None = None
) -> Bunch:
    """Load ImageNet's classification images, with their XML boxes.

    Parameters
    ----------
    root : path
        The folder that holds ``<subset>``, or Kaggle's ``Data/CLS-LOC/<subset>``, also within
        ``ILSVRC``, with a folder of images for each class. Without such folders, an image's class
        is that of its boxes.
    subset : {"train", "val"}, default="val"
    annotations : path or None, default=None
        A folder with ``<image>.xml``, with or without class folders. None takes
        ``<root>/Annotations/CLS-LOC/<subset>`` if it exists.

    Returns
    -------
    Bunch
        With ``data``, a sorted list of paths; ``target``, the classes as WordNet ids;
        ``target_names``; ``boxes``, a list of float64 arrays of shape (n_boxes, 4) with the boxes
        of the image's class, empty for an image without an XML file, or None without a folder of
        annotations; ``masks``, which is None; and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If there are no images, or no annotation of any image.
    TypeError
        If `root` is not a path.
    ValueError
        If there is no such subset, a class has no images, the class of an image is not known, or an
        XML file lacks a field. The message names the file.

    Notes
    -----
    The XML files count pixels from 0, and include the last one: a box as wide as an image of 500
    pixels goes from 0 to 499. In the training set, about half of the images have boxes. Boxes that
    reach beyond the image are clipped, and swapped corners are put in order.

    Boxes are in pixels of the size in the XML file. No image is opened to check that it still has
    this size: if you resize the images, resize their boxes too.

    References
    ----------
    Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklcam.datasets import load_imagenet
    >>> box = "<xmin>0</xmin><ymin>20</ymin><xmax>499</xmax><ymax>374</ymax>"
    >>> xml = f"<annotation><object><name>n01</name><bndbox>{box}</bndbox></object></annotation>"
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name, text in {"val/1.JPEG": "", "Annotations/CLS-LOC/val/1.xml": xml}.items():
    ...         path = Path(root, name)
    ...         path.parent.mkdir(parents=True)
    ...         _ = path.write_text(text)
    ...     val = load_imagenet(root, subset="val")
    >>> val.target.tolist(), val.boxes
    (['n01'], [array([[  0.,  20., 500., 375.]])])
    """
    check_choice("subset", subset, ("train", "val"))
    bases = [Path(root), Path(root, "ILSVRC")]
    places = [base / inner for inner in ("", "Data/CLS-LOC") for base in bases]
    folder = find(subset, places, _TREE) / subset
    xml_folder = first_with("", [base / "Annotations/CLS-LOC" / subset for base in bases])
    xml_folder = xml_folder if annotations is None else Path(annotations)
    in_folders = bool(class_folders(folder))
    if in_folders:
        data, target = images_with_classes(folder, _TREE)
    else:
        data = files_under(folder, SUFFIXES)
    objects = _objects_in(xml_folder, data, folder) if xml_folder else [[] for _ in data]
    if not in_folders:
        target = list(map(_label_of, data, objects))
    return bunch(
        data,
        target,
        boxes=list(map(boxes_of_class, objects, target, data)) if xml_folder else None,
        descr=f"ImageNet (CLS-LOC), {subset}. Russakovsky et al., IJCV 2015.",
    )


def _label_of(image: str, objects: Sequence[AnnotatedObject]) -> str:
    if not objects:
        raise ValueError(
            f"The class of {image} is not known, as it is not in a class folder, and no XML file "
            f"has an object in it. The expected layout is:\n{_TREE}"
        )
    return objects[0].label


def _objects_in(
    annotations: Path, data: Sequence[str], folder: Path
) -> list[list[AnnotatedObject]]:
    """Return the objects in each image's XML file; an empty list for an image without one."""
    files = {_name_in(annotations, file): file for file in files_under(annotations, (".xml",))}
    # By class and name if there are class folders, as names alone may not be unique.
    names = [_name_in(folder, image) for image in data]
    found = [files.get(name) or files.get(Path(name.name)) for name in names]
    if not any(found):
        raise FileNotFoundError(
            f"{annotations} has no XML file for any image in {folder}. The expected layout "
            f"is:\n{_TREE}"
        )
    return [read_xml(Path(file), first=0) if file else [] for file in found]


def _name_in(folder: Path, file: str) -> Path:
    return Path(file).relative_to(folder).with_suffix("")
