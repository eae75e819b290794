"""Training data: images, their labels and, where they are given, their weights and masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import Bunch
from skorch.dataset import Dataset as SkorchDataset
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sklcam._validation import describe
from sklcam.images.dataset import ImageDataset
from sklcam.images.labels import dataset_labels
from sklcam.images.normalization import of_one_dtype
from sklcam.images.views import Crop, ViewSampler

Classes = ArrayLike | None
Masks = np.ndarray | Tensor | Sequence[ArrayLike | None] | None


@dataclass(frozen=True)
class Annotations:
    """What ``fit`` may be given of each image beside its label, and images to validate on."""

    masks: Masks = None
    sample_weight: ArrayLike | Tensor | None = None
    class_weights: np.ndarray | None = None  # of encoded labels
    validation: Any = None


class TrainingImages(ImageDataset, SkorchDataset):
    """Images with encoded labels, in the form that skorch's callbacks know how to take apart.

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
        Of :class:`~sklcam.images.dataset.ImageDataset`.
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
            self.weights = _as_weights(own, len(self))
        self.validation: TrainingImages | None = None
        self.masks: MaskImages | None = None
        if annotations.masks is not None:
            self.masks = MaskImages(annotations.masks, len(self), self.uniform_size)
            # As a data set of images, so that they are resized just as images are.
            self._resized_masks = ImageDataset(
                self.masks,
                image_size=self.image_size,
                # Nothing is of the object where the image is filled up.
                resize=replace(self.resize, interpolation="bilinear", fill=(0.0,)),
            )

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

    def read_crops(self, indices: Sequence[int], draws: Tensor, sampler: ViewSampler) -> list[Any]:
        """Read images as crops of what they were, each resized once, and items as loaders get them.

        Parameters
        ----------
        indices : sequence of int
        draws : Tensor of shape (n_images, n_numbers)
            Of ``sampler.draw``.
        sampler : ViewSampler

        Returns
        -------
        list of (image, label) or (image, label, dict)
            All images of one dtype.
        """
        originals = [self.original_image(i) for i in indices]
        sizes = [(image.shape[-2], image.shape[-1]) for image in originals]
        crops = sampler.crops(draws, sizes, size=self.image_size)
        way = self.resize.interpolation
        cropped = [
            crop.of_image(image, self.image_size, way)
            for crop, image in zip(crops, originals, strict=True)
        ]
        rows = zip(indices, of_one_dtype(cropped), originals, crops, strict=True)
        return [self._item(*row) for row in rows]

    def _item(self, i: int, image: Tensor, original: Tensor, crop: Crop | None = None) -> Any:
        annotations = {}
        if self.masks is not None:
            annotations["masks"] = self._mask(i, original, crop)
        if self.weights is not None:
            annotations["weights"] = self.weights[i]
        return (image, self._label(i), annotations) if annotations else (image, self._label(i))

    def _mask(self, i: int, original: Tensor, crop: Crop | None = None) -> Tensor:
        assert self.masks is not None
        if not self.masks.annotated[i]:  # a loader stacks masks, so there must be one
            return torch.full(self.image_size, torch.nan)
        mask, own = self._resized_masks.read(i)
        if own.shape[-2:] != original.shape[-2:]:
            raise ValueError(_wrong_size(i, own.shape[-2:], original.shape[-2:]))
        return (mask if crop is None else crop(own, self.image_size))[0]


class MaskImages(Dataset[Any]):
    """Masks of any form, as a data set of float32 images in [0, 1].

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width), or sequence of array-like or None
    n_images : int
    size : (height, width) or None
        That of the images, if they are all of one.

    Attributes
    ----------
    annotated : ndarray of shape (n_images,), bool
        Which images have a mask.

    Raises
    ------
    ValueError
        If the masks are not as many as the images, not of two dimensions or not of the image's
        size, or hold something else than bool, integers or floats in [0, 1].
    """

    def __init__(self, masks: Masks, n_images: int, size: tuple[int, int] | None = None):
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
            # Where images are of many sizes, theirs are known once they are read.
            if size is not None and mask.shape != size:
                raise ValueError(_wrong_size(i, mask.shape, size))

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, i: int) -> np.ndarray:
        if not self.annotated[i]:
            return np.zeros((1, 1), dtype=np.float32)
        mask = _as_array(self._masks[i])
        return (mask if mask.dtype.kind == "f" else mask != 0).astype(np.float32)


def _as_weights(sample_weight: ArrayLike | Tensor | None, n_images: int) -> Tensor | None:
    """Return the weight of each image, float32; a ValueError if they are not weights."""
    if sample_weight is None:
        return None
    weights = np.asarray(_as_array(sample_weight))
    if weights.shape != (n_images,) or weights.dtype.kind not in "biuf":
        raise ValueError(
            f"sample_weight must be one number for each of {n_images} images; got "
            f"{describe(sample_weight)}."
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(
            "sample_weight must be finite, 0 or more, and not 0 for all images; it ranges from "
            f"{weights.min():g} to {weights.max():g}."
        )
    # Only their ratios count, and these must not be lost in single precision.
    return torch.from_numpy((weights / weights.max()).astype(np.float32))


def _as_array(mask: ArrayLike | Tensor | None) -> np.ndarray:
    return np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)


def _check_mask(mask: np.ndarray, name: str) -> None:
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"{name} must be of shape (height, width); got shape {mask.shape}.")
    is_float = mask.dtype.kind == "f"
    # NaN is not in the range, either.
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
    """Yield batches as pairs, whatever the loader made them of: skorch knows no third entry."""
    for batch in batches:
        if isinstance(batch, list | tuple) and len(batch) == 3:
            *pair, annotations = batch
            batch = AnnotatedBatch(pair)
            batch.annotations = annotations
        yield batch


def as_pair(validation: Any) -> tuple[Any, Any]:
    """Return images and labels to validate on; a ValueError if they are given in another way."""
    if isinstance(validation, Bunch):  # of a loader of data sets
        return validation.data, validation.target
    if isinstance(validation, tuple) and len(validation) == 2:
        return validation
    if dataset_labels(validation) is not None:
        return validation, None
    what = "a pair of images and labels, (X_val, y_val), or a data set that has its labels"
    if isinstance(validation, str | PathLike):
        instead = (
            " A folder with one for each class is loaded by sklcam.datasets.load_class_folders."
        )
    elif isinstance(validation, Real):
        instead = (
            " To hold out a part of X, set train_split=skorch.dataset.ValidSplit(0.2, "
            "stratified=True)."
        )
    else:
        instead = ""
    raise ValueError(f"validation must be {what}; got {describe(validation)}.{instead}")


def without_subsets(data: Any) -> Any:
    """Return the data set that subsets are of."""
    while isinstance(data, Subset):
        data = data.dataset
    return data
