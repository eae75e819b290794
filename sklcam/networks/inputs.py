"""What a network takes as it is, unlike images that are prepared for it.

Float tensors go to a network of someone else's untouched; and where a network has inputs beside the
image, each image brings its own part of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sklcam._validation import describe
from sklcam.images.dataset import ImageDataset

Inputs = Tensor | Mapping[str, Tensor]
Rows = Tensor | slice | None


def images_of(inputs: Inputs, name: str | None) -> Tensor:
    """Return the images among a network's inputs, by their name if there are several.

    Raises
    ------
    ValueError
        If there are none, or none of that name.
    """
    if isinstance(inputs, Mapping):
        if name is None or name not in inputs:
            raise ValueError(
                f"The inputs are a dict of {sorted(map(str, inputs))}; image_input must name the "
                f"one that is the image, and is {name!r}."
            )
        inputs = inputs[name]
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or 0 in inputs.shape:
        raise ValueError(
            "A network's images must be a Tensor of shape (n_images, channels, height, width), of "
            f"which none is 0; got {describe(inputs)}."
        )
    return inputs


def with_images(inputs: Inputs, images: Tensor, rows: Rows, name: str | None) -> Inputs:
    """Return inputs with other images in their place, and what goes with them by rows."""
    if isinstance(inputs, Tensor):
        return images
    others = {key: value if rows is None else value[rows] for key, value in inputs.items()}
    return {**others, str(name): images}


class NetworkInputs(Dataset[Any]):
    """Float tensors, or a data set of them, that are a network's input as they are."""

    def __init__(self, X: Any):
        self._X = X
        if len(X) == 0:
            raise ValueError("X is empty: at least one image is needed.")
        if isinstance(X, Tensor) and X.ndim != 4:
            raise ValueError(
                f"A tensor of images must be of shape (n_images, channels, height, width); got "
                f"{tuple(X.shape)}."
            )
        first = self[0][0]
        if first.ndim != 3:
            raise ValueError(
                f"The data set's images must be of shape (channels, height, width); the first one "
                f"is {tuple(first.shape)}."
            )
        self.n_channels = len(first)
        self.image_size = (first.shape[1], first.shape[2])
        self.uniform_size = self.image_size
        if first.is_meta:
            raise ValueError("X is on the meta device, where tensors have no values.")
        if isinstance(X, Tensor) and not bool(torch.isfinite(X).all()):
            raise ValueError("X has values that are NaN or infinite.")

    def __len__(self) -> int:
        return len(self._X)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = _image_of(self._X[i])
        size = getattr(self, "image_size", None)
        if size is not None and tuple(image.shape) != (self.n_channels, *size):
            raise ValueError(
                f"Item {i} of X has shape {tuple(image.shape)}, the first one "
                f"{(self.n_channels, *size)}: a network's inputs must be of one shape."
            )
        if not isinstance(self._X, Tensor) and not bool(torch.isfinite(image).all()):
            raise ValueError(f"Item {i} of X has values that are NaN or infinite.")
        return image.detach(), torch.tensor(0)

    def original_size(self, i: int) -> tuple[int, int]:
        """Return height and width of image i, which is what the network gets."""
        return self.image_size

    def original_image(self, i: int) -> Tensor:
        """Return image i, which is what the network gets."""
        return self[i][0]


class SeveralInputs:
    """An image among other inputs, each with one entry per image."""

    def __init__(self, images: Any, others: Mapping[str, Any]):
        self.images = images
        self._others = dict(others)
        for name, value in self._others.items():
            if np.shape(value)[:1] != (len(images),):
                raise ValueError(
                    f"Input {name!r} must have one entry for each of the {len(images)} images; it "
                    f"has shape {tuple(np.shape(value))}."
                )
        self.n_channels = images.n_channels
        self.image_size = images.image_size
        self.uniform_size = images.uniform_size
        self.original_size = images.original_size
        self.original_image = images.original_image

    def __len__(self) -> int:
        return len(self.images)

    def others(self, start: int, stop: int, images: Tensor) -> dict[str, Tensor]:
        """Return the other inputs of some images, on their device; floats in their precision."""
        tensors = {
            name: torch.as_tensor(value[start:stop], device=images.device)
            for name, value in self._others.items()
        }
        return {
            name: tensor.to(images.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }


def is_network_input(X: Any) -> bool:
    """Whether X is float tensors, or a data set of them."""
    if isinstance(X, Tensor):
        return X.is_floating_point()
    if not isinstance(X, Dataset) or isinstance(X, ImageDataset):
        return False
    try:
        first = _image_of(X[0])
    except Exception:
        return False  # ImageDataset says what is wrong with it
    return isinstance(first, Tensor) and first.is_floating_point()


def _image_of(item: Any) -> Any:
    return item[0] if isinstance(item, tuple | list) else item
