"""Boxes of objects: checked, selected by class, and read from XML files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

Box = tuple[float, float, float, float]  # x1, y1, x2, y2: edges of pixels, counted from 0


class AnnotatedObject(NamedTuple):
    label: str  # empty if a CSV file names no class
    box: Box
    difficult: bool = False


def box_array(boxes: Sequence[Box]) -> np.ndarray:
    # The reshape gives an image without boxes the shape (0, 4).
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def four_numbers(values: Sequence[str | float], where: str) -> Box:
    try:
        first, second, third, fourth = (float(value) for value in values)
    except ValueError:
        raise ValueError(f"{where}: a box must be four numbers; got {list(values)}.") from None
    return first, second, third, fourth


def check_box(values: Sequence[str | float], where: str) -> Box:
    x1, y1, x2, y2 = four_numbers(values, where)
    if not (x1 < x2 and y1 < y2 and all(map(math.isfinite, (x1, y1, x2, y2)))):
        raise ValueError(
            f"{where}: a box must be x1, y1, x2, y2, with x1 < x2 and y1 < y2; got {list(values)}."
        )
    return x1, y1, x2, y2


def boxes_of_class(objects: Sequence[AnnotatedObject], label: str, image: str) -> np.ndarray:
    """Return the boxes of the image's own class.

    If all boxes of an image are of other classes, this counts as a mistake, and not as no boxes.
    """
    own = [one.box for one in objects if one.label in ("", label)]
    if objects and not own:
        others = ", ".join(sorted({one.label for one in objects}))
        raise ValueError(
            f"{image} is of class {label!r}, but all of its boxes are of: {others}. Correct its "
            "class or its boxes."
        )
    return box_array(own)


def read_xml(path: Path, *, first: int) -> list[AnnotatedObject]:
    """Read the objects of an XML file in the format of PASCAL VOC.

    `first` is the number of an image's first pixel: 1 in PASCAL VOC, 0 in ImageNet.
    """
    try:
        image = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} cannot be read as XML: {error}.") from None
    # Some files have no size, or 0; their boxes are not clipped.
    size = [_number(image, f"size/{side}", path, "0") or math.inf for side in ("width", "height")]
    objects = []
    # Only direct children, as the parts of an object also have names and boxes.
    for element in image.iterfind("object"):
        label = element.findtext("name", "").strip()
        if not label:
            raise ValueError(f"{path}: an <object> has no <name>. Add the name of its class.")
        x, y = (
            [_number(element, f"bndbox/{axis}{end}", path) - first for end in ("min", "max")]
            for axis in "xy"
        )
        # ImageNet has a few boxes with swapped corners, and a few that reach beyond the image.
        # The last pixel belongs to the box, so its far edge is one further.
        low = [max(min(pair), 0) for pair in (x, y)]
        high = [min(max(pair) + 1, side) for pair, side in zip((x, y), size, strict=True)]
        if low[0] < high[0] and low[1] < high[1]:
            difficult = _number(element, "difficult", path, "0") != 0
            box = (low[0], low[1], high[0], high[1])
            objects.append(AnnotatedObject(label, box, difficult))
    return objects


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
