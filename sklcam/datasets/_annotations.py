"""Boxes and masks as data sets write them down."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from sklearn.utils import Bunch

from sklcam._validation import check_callable
from sklcam.datasets._trees import Box

_CORNERS = ("x1", "y1", "x2", "y2")


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
    >>> from sklcam.datasets._annotations import LazyMask
    >>> np.asarray(LazyMask(partial(np.ones, (1, 2), dtype=bool)))
    array([[ True,  True]])
    """

    def __init__(self, read: Callable[[], np.ndarray]) -> None:
        check_callable("read", read, "that takes nothing and returns the mask")
        self.read = read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype=dtype)


def _lazy_masks(reads: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    masks = np.empty(len(reads), dtype=object)
    for i, read in enumerate(reads):  # one by one: NumPy would make arrays of a list of them
        masks[i] = LazyMask(read)
    return masks


def _as_array(boxes: Sequence[Box]) -> np.ndarray:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


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
