"""ImageNet's localisation task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sklearn.utils import Bunch

from sklcam.datasets._annotations import _boxes_of_class, _bunch, _Marked, _read_xml
from sklcam.datasets._trees import (
    _SUFFIXES,
    AnyPath,
    _check_choice,
    _class_folders,
    _files_under,
    _find,
    _first,
    _images_of_classes,
)

_IMAGENET_TREE = """\
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

    >>> from sklcam.datasets.imagenet import load_imagenet
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


def _label_of(image: str, marked: Sequence[_Marked]) -> str:
    if not marked:
        raise ValueError(
            f"The class of {image} is not known, as it lies in no class folder and no XML file "
            f"has an object of it. Expected is:\n{_IMAGENET_TREE}"
        )
    return marked[0].label


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
