"""Annotations of images: their labels, where their objects are, and maps to compare with.

Boxes and masks of an image belong to one class or, in a mapping by label, to several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import describe
from sklcam.metrics.masks import as_array, check_boxes

PerImage = Sequence[Any] | None


@dataclass(frozen=True, eq=False)
class Annotations:
    """Annotations of images.

    Attributes
    ----------
    labels : ndarray of shape (n_images,) or (n_images, n_classes), or None
        In the form of predictions.
    boxes : sequence of Tensor of shape (n_boxes, 4), or of mappings of labels to them, or None
    masks : sequence of array-like of shape (height, width), or of mappings to them, or None
    references : sequence of array-like of shape (height, width), or None
        Maps, at any size that covers the image.
    """

    labels: np.ndarray | None = None
    boxes: PerImage = None
    masks: PerImage = None
    references: PerImage = None

    def take(self, rows: slice) -> Annotations:
        """Return the annotations of some of the images, without reading lazy ones."""
        labels = None if self.labels is None else self.labels[rows]
        others = (self.boxes, self.masks, self.references)
        return Annotations(
            labels, *(None if each is None else _rows(each, rows) for each in others)
        )


class _LazyRows(Sequence[Any]):
    """Some rows of a sequence that may not support slices, such as one that reads files lazily."""

    def __init__(self, entries: Sequence[Any], rows: range):
        self._entries, self._rows = entries, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: Any) -> Any:
        return self._entries[self._rows[i]]


def _rows(entries: Sequence[Any], rows: slice) -> Sequence[Any]:
    if isinstance(entries, list | tuple | np.ndarray | Tensor):
        return entries[rows]
    return _LazyRows(entries, range(len(entries))[rows])


class LazyTensors(Sequence[Tensor]):
    """Tensors that are made on request, as those of a batch of large images would not fit."""

    def __init__(self, make: Callable[[int], Tensor], length: int):
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: Any) -> Any:
        return self._make(range(self._length)[i])


# Classes of objects


def is_by_class(entries: PerImage) -> bool:
    """Whether the objects of an image are given by their labels; the first image decides."""
    if entries is None or isinstance(entries, Mapping) or not isinstance(entries, Sized):
        return False
    return len(entries) > 0 and isinstance(entries[0], Mapping)


def of_class(entry: Any, label: Any, own: Any, empty: Any) -> Any:
    """Return the part of an image's entry that belongs to a class.

    Parameters
    ----------
    entry : boxes or mask, or mapping of labels to them
    label : label
    own : label
        The class of an entry that is not given by class.
    empty : Any
        What to return for a class that the entry lacks.
    """
    if isinstance(entry, Mapping):
        return entry.get(label, empty)
    return entry if label == own else empty


# Checks before any work


def check_lengths(annotations: Annotations, n_images: int) -> None:
    """Raise a ValueError unless each annotation given has an entry for each image."""
    for field, values in vars(annotations).items():
        name = "y" if field == "labels" else field
        if values is None:
            continue
        if not isinstance(values, Sized) or isinstance(values, Mapping | str):
            raise ValueError(
                f"{name} must be a sequence with an entry for each of {n_images} images; got "
                f"{describe(values)}."
            )
        if len(values) != n_images:
            raise ValueError(
                f"{name} has {len(values)} entries for {n_images} images. Give one for each."
            )


def checked_boxes(boxes: PerImage, classes: np.ndarray | None = None) -> list[Any] | None:
    """Return each image's boxes on the host; a ValueError that names the image otherwise."""
    if boxes is None:
        return None
    checked: list[Any] = []
    by_class = is_by_class(boxes)
    for i, entry in enumerate(boxes):
        if by_class != isinstance(entry, Mapping):
            raise ValueError(
                f"boxes[{i}] is {describe(entry)}, and boxes[0] {describe(boxes[0])}. Give the "
                "boxes by class, in dicts, for all images or for none."
            )
        try:
            if by_class:
                checked.append(
                    {label: check_boxes(as_array(corners)) for label, corners in entry.items()}
                )
            else:
                checked.append(check_boxes(as_array(entry)))
        except ValueError as error:
            raise ValueError(f"boxes[{i}]: {error}") from None
    if by_class:
        _check_known({label for entry in checked for label in entry}, classes)
    corners = torch.cat([torch.zeros(4), *(each.flatten() for each in _all_of(checked))])
    if corners.min() >= 0 and corners.max() <= 1 and (corners != corners.round()).any():
        raise ValueError(
            "All boxes are within [0, 1], and would cover at most a pixel. Give them in pixels of "
            "each image, not as shares of its width and height."
        )
    return checked


def _all_of(entries: Sequence[Any]) -> Iterator[Tensor]:
    for entry in entries:
        yield from entry.values() if isinstance(entry, Mapping) else [entry]


def _check_known(labels: set[Any], classes: np.ndarray | None) -> None:
    """Raise a ValueError if no label is a class: labels may be written differently."""
    known = [] if classes is None else np.asarray(classes).tolist()
    if labels and not labels.intersection(known):
        raise ValueError(
            f"None of the labels of boxes is a class of the estimator: they are "
            f"{sorted(labels, key=str)[:5]}, its classes {known[:5]}"
            f"{' ...' if len(known) > 5 else ''}. Name the classes as the estimator does."
        )


def as_reference(reference: Any, row: int, n_axes: int) -> Tensor:
    """Return a reference map as a tensor; a ValueError that names the image otherwise.

    Its image has ``n_axes`` axes: 2, or 3 if it is a volume.
    """
    array = as_array(reference)
    if array.ndim != n_axes or array.dtype.kind not in "biuf" or not array.size:
        axes = "(height, width)" if n_axes == 2 else "(depth, height, width)"
        raise ValueError(
            f"references[{row}] must be a map of numbers, {axes}; got {describe(array)}."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"references[{row}] has numbers that are not finite.")
    return torch.from_numpy(array.astype(np.float64))


def check_references(references: PerImage, n_axes: int) -> None:
    """Raise a ValueError if a reference that is in memory is not a map; files are read later."""
    if isinstance(references, list | tuple | np.ndarray | Tensor):
        for i, reference in enumerate(references):
            if isinstance(reference, np.ndarray | np.generic | Tensor | list):
                as_reference(reference, i, n_axes)


def check_covers(reference: Tensor, size: tuple[int, ...], row: int) -> None:
    """Raise a ValueError unless a reference can be of the whole image, and not on its side."""
    # A square grid, or a cube, fits any image, as a network's attention does; otherwise the
    # proportions must be the image's, to within a pixel of the shorter of two sides.
    sides = [*zip(reference.shape, size, strict=True)]
    is_alike = all(
        abs(own * other_size - other * own_size) <= max(own_size, other_size)
        for (own, own_size), (other, other_size) in combinations(sides, 2)
    )
    if len({*reference.shape}) > 1 and not is_alike:
        shown, of_image = (" x ".join(map(str, each)) for each in (reference.shape, size))
        points, square = ("pixels", "square") if len(size) == 2 else ("voxels", "cube")
        raise ValueError(
            f"references[{row}] is of {shown} {points}, and its image of {of_image}. A reference "
            f"must cover the whole image, in its proportions or as a {square}."
        )
