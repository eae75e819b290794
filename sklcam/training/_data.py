"""Training data: images, their labels and, if given, their weights and masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from os import PathLike
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import Bunch
from skorch.dataset import Dataset as SkorchDataset
from torch import Tensor
from torch.utils.data import Subset

from sklcam._validation import describe
from sklcam.images.dataset import ImageDataset
from sklcam.images.frames import resize_image
from sklcam.images.labels import dataset_labels
from sklcam.images.normalization import of_one_dtype, to_unit_floats
from sklcam.images.views import Crop, ViewSampler
from sklcam.metrics.annotations import checked_boxes, of_class
from sklcam.metrics.masks import box_masks

Classes = ArrayLike | None
Masks = np.ndarray | Tensor | Sequence[ArrayLike | None] | None
Boxes = Sequence[ArrayLike | Mapping[Any, ArrayLike] | None] | np.ndarray | Tensor | None


@dataclass(frozen=True)
class Annotations:
    """What ``fit`` takes for each image besides its label, and the validation images."""

    masks: Masks = None
    boxes: Boxes = None
    sample_weight: ArrayLike | Tensor | None = None
    class_weights: np.ndarray | None = None  # of encoded labels
    validation: Any = None


class TrainingImages(ImageDataset, SkorchDataset):
    """Images with encoded labels, in a form that skorch's callbacks can take apart.

    Parameters
    ----------
    X : images
    y : ndarray of shape (n_images,)
        Indices of classes.
    annotations : Annotations
        As ``fit`` takes them. Items then have a dict as a third entry. Its "masks" is the image's
        mask, resized as the image is: a float32 Tensor of shape (height, width) in [0, 1], all NaN
        where there is none. Its "weights" is the image's weight, a float32 scalar Tensor.
    **options
        The options of :class:`~sklcam.images.dataset.ImageDataset`.
    """

    def __init__(
        self, X: Any, y: np.ndarray, annotations: Annotations = Annotations(), **options: Any
    ):
        ImageDataset.__init__(self, X, y, **options)
        self.X = X
        self.y = self.targets = y
        self.weights = _as_weights(annotations.sample_weight, len(self))
        if annotations.class_weights is not None:
            of_classes = annotations.class_weights[y]
            own = of_classes if self.weights is None else of_classes * self.weights.numpy()
            if not own.any():
                by = "class_weight" if self.weights is None else "sample_weight and class_weight"
                raise ValueError(
                    f"With {by}, all {len(self)} images have a weight of 0, so there is no loss. "
                    "Give some of them a weight above 0."
                )
            self.weights = _as_weights(own, len(self))
        self.validation: TrainingImages | None = None
        self.masks: MaskImages | None = None
        has_masks = annotations.masks is not None or annotations.boxes is not None
        if self.are_volumes and has_masks:
            raise ValueError(
                "Training uses masks and boxes only for pictures, and X holds volumes. Leave masks "
                "and boxes out; evaluate can use them for volumes, too."
            )
        if annotations.masks is not None or annotations.boxes is not None:
            given = [None] * len(self) if annotations.masks is None else annotations.masks
            boxes = cast("list[Tensor] | None", annotations.boxes)  # as they were checked
            size = cast("tuple[int, int] | None", self.uniform_size)
            self.masks = MaskImages(given, len(self), size, boxes)

    def __getitem__(self, i: int) -> Any:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        if self.masks is None and self.weights is None:
            return super().__getitems__(indices)
        indices = [range(len(self))[i] for i in indices]
        read = self.read_batch(indices)
        return [
            self._item(i, framed.image, framed.original)
            for i, framed in zip(indices, read, strict=True)
        ]

    def read_crops(
        self,
        indices: Sequence[int],
        draws: Tensor,
        sampler: ViewSampler,
        *,
        beside: bool = False,
    ) -> list[Any]:
        """Read images as crops of the originals, each resized once, as items for loaders.

        Parameters
        ----------
        indices : sequence of int
        draws : Tensor of shape (n_images, n_numbers)
            From ``sampler.draw``.
        sampler : ViewSampler
        beside : bool, default=False
            Whether the crops come beside the images, under "augmented" in the dict.

        Returns
        -------
        list of (image, label) or (image, label, dict)
            All images have one dtype.
        """
        originals = [self.original_image(i) for i in indices]
        crops: Sequence[Crop | None] = [None] * len(originals)  # volumes have no masks to crop
        if self.are_volumes:
            warp = sampler.views_of_volumes(draws, self.image_size)
            cropped = [*warp(torch.stack([to_unit_floats(each) for each in originals]))]
        else:
            crops, cropped = self._cropped(originals, draws, sampler)
        if beside:
            images = [framed.image for framed in self.read_batch(indices)]
            of_images = zip(indices, images, originals, cropped, strict=True)
            return [self._item(*row[:3], augmented=row[3]) for row in of_images]
        rows = zip(indices, cropped, originals, crops, strict=True)
        return [self._item(*row) for row in rows]

    def _cropped(
        self, originals: Sequence[Tensor], draws: Tensor, sampler: ViewSampler
    ) -> tuple[list[Crop], list[Tensor]]:
        """Return the crops of pictures, and the regions that they cut out."""
        sizes = [(image.shape[-2], image.shape[-1]) for image in originals]
        height, width = self.image_size
        crops = sampler.crops(draws, sizes, size=(height, width))
        way = self.resize.interpolation
        cropped = [
            crop.of_image(image, (height, width), way)
            for crop, image in zip(crops, originals, strict=True)
        ]
        return crops, of_one_dtype(cropped)

    def _item(
        self,
        i: int,
        image: Tensor,
        original: Tensor,
        crop: Crop | None = None,
        augmented: Tensor | None = None,
    ) -> Any:
        annotations = {} if augmented is None else {"augmented": augmented}
        if self.masks is not None:
            annotations["masks"] = self._mask(i, original, crop)
        if self.weights is not None:
            annotations["weights"] = self.weights[i]
        return (image, self._label(i), annotations) if annotations else (image, self._label(i))

    def _mask(self, i: int, original: Tensor, crop: Crop | None = None) -> Tensor:
        assert self.masks is not None
        if not self.masks.annotated[i]:  # a loader stacks masks, so there must be one
            return torch.full(self.image_size, torch.nan)
        own = self.masks.of_size(i, (original.shape[-2], original.shape[-1]))
        height, width = self.image_size
        if crop is not None:
            return crop(own, (height, width))[0]
        # Like the image, but padding never belongs to the object.
        how = replace(self.resize, interpolation="bilinear", fill=(0.0,))
        return resize_image(own, (height, width), how)[0]


class MaskImages:
    """Masks of any form, and boxes, as float32 images in [0, 1].

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width), or sequence of array-like or None
    n_images : int
    size : (height, width) or None
        The size of the images, if they all have the same size.
    boxes : list of Tensor of shape (n_boxes, 4) or None, default=None
        The boxes of each image, possibly none: see :func:`boxes_of_labels`.

    Attributes
    ----------
    annotated : ndarray of shape (n_images,), bool
        Which images have a mask or a box.

    Raises
    ------
    ValueError
        If there are not as many masks as images, if masks do not have two dimensions or the image's
        size, or hold anything but bool, integers or floats in [0, 1]; or if an image has both.
    """

    def __init__(
        self,
        masks: Masks,
        n_images: int,
        size: tuple[int, int] | None = None,
        boxes: list[Tensor] | None = None,
    ):
        if not isinstance(masks, np.ndarray | Tensor | Sequence) or isinstance(masks, str):
            raise ValueError(
                "masks must be an array of shape (n_images, height, width), or a list with a mask "
                f"or None for each image; got {describe(masks)}."
            )
        if len(masks) != n_images:
            raise ValueError(
                f"masks must have one entry for each of {n_images} images; got {len(masks)}."
            )
        self._masks = masks
        self.annotated = np.array([masks[i] is not None for i in range(n_images)])
        for i in np.flatnonzero(self.annotated).tolist():
            mask = _as_array(masks[i])
            _check_mask(mask, f"masks[{i}]")
            # If images differ in size, a size is known once its image is read.
            if size is not None and mask.shape != size:
                raise ValueError(_wrong_size(i, mask.shape, size))
        self._boxes = boxes
        if boxes is not None:
            has_box = np.array([len(corners) > 0 for corners in boxes])
            for i in np.flatnonzero(has_box & self.annotated).tolist():
                raise ValueError(
                    f"Image {i} has both a mask and boxes, which may not agree. Leave one of them "
                    "out, with None in its place."
                )
            if size is not None:
                for i in np.flatnonzero(has_box).tolist():
                    _mask_of_boxes(i, boxes[i], size)
            self.annotated = self.annotated | has_box

    def of_size(self, i: int, size: tuple[int, int]) -> Tensor:
        """Return the mask of an image of this size that has one: (1, height, width)."""
        if self._masks[i] is None:
            assert self._boxes is not None
            return _mask_of_boxes(i, self._boxes[i], size)
        mask = _as_array(self._masks[i])
        if mask.shape != size:
            raise ValueError(_wrong_size(i, mask.shape, size))
        mask = (mask if mask.dtype.kind == "f" else mask != 0).astype(np.float32)
        return torch.from_numpy(mask)[None]


def _mask_of_boxes(i: int, corners: Tensor, size: tuple[int, int]) -> Tensor:
    mask = box_masks([corners.float()], size)
    if not mask.any():
        raise ValueError(
            f"boxes[{i}] lie outside the image, which has {size[0]} x {size[1]} pixels: a box "
            "is (x1, y1, x2, y2), in pixels of the image as given."
        )
    return mask


def boxes_of_labels(boxes: Boxes, labels: Any, n_images: int) -> list[Tensor] | None:
    """Return each image's boxes for its own label; a ValueError for anything else.

    Parameters
    ----------
    boxes : sequence of array-like of shape (n_boxes, 4), of mappings of labels to them, or None
        None stands for an image without boxes.
    labels : sequence of labels
        Of the images.
    n_images : int

    Returns
    -------
    list of Tensor of shape (n_boxes, 4), or None
    """
    if boxes is None:
        return None
    if not isinstance(boxes, Sequence | np.ndarray | Tensor) or isinstance(boxes, str):
        raise ValueError(
            "boxes must be a list with the boxes of each image, (n_boxes, 4), or None; got "
            f"{describe(boxes)}."
        )
    if len(boxes) != n_images:
        raise ValueError(
            f"boxes must have one entry for each of {n_images} images; got {len(boxes)}."
        )
    by_class = any(isinstance(each, Mapping) for each in boxes)
    none: Any = {} if by_class else np.empty((0, 4))
    if by_class and np.ndim(labels) != 1:
        raise ValueError(
            "boxes are given by label, which needs one label per image. Give arrays of shape "
            "(n_boxes, 4)."
        )
    entries = [none if each is None else each for each in boxes]
    checked = checked_boxes(entries, np.asarray(labels) if by_class else None) or []
    if not by_class:
        return checked
    rows = zip(checked, np.asarray(labels).tolist(), strict=True)
    return [of_class(each, label, None, torch.empty(0, 4)) for each, label in rows]


def _as_weights(sample_weight: ArrayLike | Tensor | None, n_images: int) -> Tensor | None:
    """Return the weight of each image, float32; a ValueError if they are not weights."""
    if sample_weight is None:
        return None
    is_pair = isinstance(sample_weight, tuple) and len(sample_weight) == 2 != n_images
    weights = None if is_pair else np.asarray(_as_array(sample_weight))
    if weights is None or weights.shape != (n_images,) or weights.dtype.kind not in "biuf":
        by_name = " Give validation images by name, validation=(X_val, y_val)."
        raise ValueError(
            f"sample_weight must be one number for each of {n_images} images; got "
            f"{describe(sample_weight)}.{by_name if is_pair else ''}"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(
            "sample_weight must be finite, 0 or more, and not 0 for all images; it ranges from "
            f"{weights.min():g} to {weights.max():g}."
        )
    # Only their ratios matter, and these must not be lost in single precision.
    return torch.from_numpy((weights / weights.max()).astype(np.float32))


def _as_array(mask: ArrayLike | Tensor | None) -> np.ndarray:
    return np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)


def _check_mask(mask: np.ndarray, name: str) -> None:
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"{name} must be of shape (height, width); got shape {mask.shape}.")
    is_float = mask.dtype.kind == "f"
    # NaN is outside the range as well.
    if mask.dtype.kind not in "biuf" or (is_float and not (mask.min() >= 0 and mask.max() <= 1)):
        raise ValueError(
            f"{name} must be bool, an integer that is 0 outside the object, or a float in [0, 1]; "
            f"got {mask.dtype}{' beyond [0, 1]' if is_float else ''}."
        )


def _wrong_size(i: int, found: Sequence[int], expected: Sequence[int]) -> str:
    return (
        f"masks[{i}] must be of its image's size, {tuple(expected)}; its shape is {tuple(found)}."
    )


class AnnotatedBatch(tuple[Any, ...]):
    """A batch of images and labels, which skorch takes apart, with annotations beside it."""

    annotations: dict[str, Tensor]


def with_annotations_beside(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches as pairs, whatever the loader returns: skorch knows no third entry."""
    for batch in batches:
        if isinstance(batch, list | tuple) and len(batch) == 3:
            *pair, annotations = batch
            batch = AnnotatedBatch(pair)
            batch.annotations = annotations
        yield batch


class Validation(NamedTuple):
    """Validation images with their labels and annotations, as given."""

    X: Any
    y: Any = None
    masks: Masks = None
    boxes: Boxes = None


def as_validation(validation: Any) -> Validation:
    """Return the validation images; a ValueError if they are given in another way."""
    if isinstance(validation, Bunch):  # of a loader of data sets
        return Validation(validation.data, validation.target)
    if isinstance(validation, tuple | list) and len(validation) == 2:
        return Validation(*validation)
    by_name = 'by name, validation={"X": X_val, "y": y_val, "masks": masks_val} (or "boxes")'
    if isinstance(validation, Mapping):
        unknown = [name for name in validation if name not in Validation._fields]
        if unknown or validation.get("X") is None:
            raise ValueError(
                f"validation may be given {by_name}, and has no other entries; got "
                f"{', '.join(map(repr, validation)) or 'none'}."
            )
        return Validation(**validation)
    if dataset_labels(validation) is not None:
        return Validation(validation)
    what = "a pair of images and labels, (X_val, y_val), or a data set that has its labels"
    if isinstance(validation, str | PathLike):
        instead = (
            " sklcam.datasets.load_class_folders loads a folder that has a folder for each class."
        )
    elif isinstance(validation, Real):
        instead = (
            " To hold out a part of X, set train_split=skorch.dataset.ValidSplit(0.2, "
            "stratified=True)."
        )
    elif isinstance(validation, tuple | list):
        instead = f" Masks and boxes are given {by_name}."
    else:
        instead = ""
    raise ValueError(f"validation must be {what}; got {describe(validation)}.{instead}")


def without_subsets(data: Any) -> Any:
    """Return the data set that subsets belong to."""
    while isinstance(data, Subset):
        data = data.dataset
    return data


def share_annotated(data: Any) -> float:
    """Return the share of a data set that has masks or boxes; 0 for None."""
    masks = getattr(without_subsets(data), "masks", None)
    if masks is None:
        return 0.0
    rows = [*range(len(data))]
    while isinstance(data, Subset):
        rows = [data.indices[i] for i in rows]
        data = data.dataset
    return float(masks.annotated[rows].mean())
