"""Nets that open images of any form and read them in batches as their network takes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from skorch.dataset import Dataset as SkorchDataset
from torch import Tensor
from torch.utils.data import DataLoader

from sklcam.images.dataset import ImageDataset, n_images
from sklcam.images.labels import given_labels, known_labels
from sklcam.images.normalization import checked_unit_floats
from sklcam.images.views import ViewSampler
from sklcam.networks.preprocessing import Origin, Preprocessing
from sklcam.training import _checks as checks
from sklcam.training._augmentation import crop_while_reading
from sklcam.training._data import (
    Annotations,
    Boxes,
    Masks,
    TrainingImages,
    boxes_of_labels,
    without_subsets,
)
from sklcam.training._randomness import SeededNet
from sklcam.training.tasks import TASKS, Task


class LoadingNet(SeededNet):
    """A skorch net whose X are images: opened, resized, cropped as they are read, normalised."""

    n_channels_: int
    classes_inferred_: np.ndarray
    _class_weights: np.ndarray | None = None

    @property
    def _task(self) -> Task:
        """The task: by default, one class per image."""
        return TASKS["multiclass"]

    def image_options(self) -> dict[str, Any]:
        """Return the options by which images of any form become a data set of one size."""
        return {
            "image_size": self.input_size,
            "resize": self.preprocessing_.resizing,
            "n_channels": getattr(self, "n_channels_", None),
        }

    def check_data(self, X: Any, y: Any = None) -> None:
        """Do nothing: data is checked where it enters."""

    def get_dataset(self, X: Any, y: Any = None) -> ImageDataset:
        if isinstance(X, TrainingImages):  # any other is opened anew, to be read at this size
            return X
        make = ImageDataset if y is None else TrainingImages
        return make(X, y, **self.image_options())

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:
        try:
            train, valid = super().get_split_datasets(X, y, **fit_params)
        except ValueError as error:
            if self._task.excludes or not getattr(self.train_split, "stratified", False):
                raise
            raise ValueError(
                f"train_split is stratified, and these images cannot be split that way ({error}). "
                "Use ValidSplit(5, stratified=False)."
            ) from error
        if isinstance(X, TrainingImages) and X.validation is not None:
            return train, X.validation
        # A predefined split may also be an ImageDataset, with another size and other labels.
        if valid is not None and not isinstance(without_subsets(valid), TrainingImages):
            # It did not pass through fit, where labels are encoded.
            pair = (valid.X, valid.y) if isinstance(valid, SkorchDataset) else (valid, None)
            valid = self._prepare_validation(*pair)
        return train, valid

    def _prepare_validation(
        self, X: Any, y: Any, masks: Masks = None, boxes: Boxes = None
    ) -> TrainingImages:
        """Return the validation images, read as for prediction, with labels that fit has seen."""
        of_images = boxes_of_labels(boxes, given_labels(X, y), n_images(X))
        annotations = Annotations(masks, of_images, class_weights=self._class_weights)
        y = known_labels(X, y, self.classes_inferred_, self.class_names_)
        labels = self._task.encode(self._task.read(y), self.classes_inferred_)
        images = TrainingImages(X, labels, annotations, **self.image_options())
        if images.masks is not None and not images.masks.annotated.any():
            raise ValueError("None of the images has a mask or a box. Leave masks and boxes out.")
        return images

    def get_iterator(self, dataset: Any, training: bool = False) -> Iterable[Any]:
        iterator = super().get_iterator(dataset, training=training)
        if not training and isinstance(iterator, DataLoader) and iterator.generator is None:
            # A loader draws a seed for its workers even if it has none and does not shuffle.
            iterator.generator = torch.Generator().manual_seed(0)
        return self._equipped(iterator, training)

    def _equipped(self, iterator: Iterable[Any], training: bool) -> Iterable[Any]:
        """Prepare a loader: pinned memory on a GPU; in training, a check and crops."""
        checks.check_weighs(iterator)
        if training and hasattr(self, "generator_"):  # in fit
            with self.generators_at(self.generator_states()):
                n_parts = getattr(self, "batch_accumulation", 1)
                checks.check_batches(iterator, self.module_, n_parts, self._sample())
        given = self.get_params_for("iterator_train" if training else "iterator_valid")
        if isinstance(iterator, DataLoader) and "pin_memory" not in given and self._cuda_devices():
            device = getattr(without_subsets(iterator.dataset), "tensor_device", None)
            if device is not None and device.type == "cpu":
                iterator.pin_memory = True
        crops = ViewSampler() if isinstance(self.augment, str) else self.augment
        # Without a generator, this is not training: a callback may want a pass.
        if training and isinstance(crops, ViewSampler) and hasattr(self, "generator_"):
            crop_while_reading(iterator, crops, self.generator_, beside=self._keeps_images)
        return iterator

    @property
    def _keeps_images(self) -> bool:
        """Whether images are trained on unchanged, with augmented copies beside them."""
        return False

    def _prepare(self, images: Tensor) -> Tensor:
        """Move a batch to the device, as floats in [0, 1]."""
        return checked_unit_floats(self._on_device(images))

    def _normalize(self, images: Tensor) -> Tensor:
        return self._preprocessing(images.shape[1]).normalize(images)

    def _preprocessing(self, n_channels: int) -> Preprocessing:
        preprocessing = vars(self).get("origin_", Origin()).preprocessing.of_channels(n_channels)
        return preprocessing.with_given(
            image_size=self.image_size,
            resize=self.resize,
            mean=self.mean,
            std=self.std,
            decode=self.decode,
        )

    @property
    def preprocessing_(self) -> Preprocessing:
        """How images become the network's input, and which source says so."""
        return self._preprocessing(getattr(self, "n_channels_", 3))

    @property
    def input_size(self) -> tuple[int, ...]:
        """Height and width that images are resized to; depth, height and width for volumes."""
        return self.preprocessing_.image_size

    def prepare_images(self, images: Tensor) -> Tensor:
        """Move a batch of images to the device, as the network takes them.

        Parameters
        ----------
        images : Tensor of shape (n_images, n_channels, height, width), uint8, or float in [0, 1]

        Returns
        -------
        Tensor of the same shape, float32
        """
        return self._normalize(self._prepare(images))

    def _sample(self) -> Tensor:
        return torch.zeros(1, self.n_channels_, *self.input_size, device=self.device)
