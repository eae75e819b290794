"""Targets for segmentation networks: the scores of a region's pixels, added up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import describe
from sklcam.cam.targets import Classes, Deferred, Predicted, Target, TopK, check_indices
from sklcam.images.frames import Resizing, resize_image
from sklcam.networks.inputs import Inputs, Rows
from sklcam.networks.precision import at_least_float32

if TYPE_CHECKING:
    from sklcam.networks.adapters import Adapter


class Pixels(Deferred):
    r"""Target for segmentation networks: a class's scores, added up over a region.

    .. math:: s = \sum_{(i, j) \in M} y_{c, ij}

    The map shows which places mattered for this region, within it or around it. A network with a
    single output has two classes: the output is the score of the second, its negative the score of
    the first.

    Parameters
    ----------
    label : label, array-like of shape (n_images,) or (n_images, k), or None, default=None
        The class: one for all images, one per image, or several per image, each with a map of its
        own. None uses each pixel's own predicted class.
    mask : array-like of shape (height, width) or (n_images, height, width), or None, default=None
        The region, true or 1 inside it: one for all images or one per image, at the size of the
        images, of the network's input or of its output. None is the region where ``label`` is
        predicted or, without a label, the whole image.

    Raises
    ------
    ValueError
        If the mask has another shape or other values. When maps are computed, if the network's task
        is not "segmentation", the network does not know the class, or the mask does not fit the
        images in size or number.

    Notes
    -----
    A mask that is larger than the output is shrunk to it: an output pixel counts by the share of it
    that the mask covers. The map of an empty region, such as that of a class that is predicted
    nowhere, is blank, and a warning says so. The first pass fixes the region, so metrics that
    change the image score the same pixels. As the probability, metrics use the mean over the region
    of the class's probability or, without a label, of the probability of each pixel's own class. It
    is NaN for an empty region. Metrics that compare views, such as "consistency", refuse a mask, as
    they move the image but not the region.

    References
    ----------
    Vinogradova, Dibrov, Myers, "Towards Interpretable Semantic Segmentation via Gradient-Weighted
    Class Activation Mapping", AAAI 2020, eq. 2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import Pixels
    >>> network = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1, bias=False))
    >>> _ = nn.init.dirac_(network[1].weight)
    >>> explainer = CAMExplainer(network, target_layer="0", task="segmentation", verbose=0).fit()
    >>> image = torch.tensor([[[[0.0, 2.0]], [[4.0, 1.0]]]])
    >>> explainer.predict(image)
    array([[[1, 0]]])
    >>> explainer.explain(image, target=Pixels(1))
    array([[[1., 0.]]], dtype=float32)
    """

    names_classes = True

    def __init__(self, label: Any = None, mask: Any = None):
        self.label = label
        self.mask = None if mask is None else _checked(mask)
        self.is_placed = self.mask is not None
        self._indices: Tensor | None = None
        shape: tuple[int, ...] = () if label is None else np.shape(label)
        self.several = len(shape) == 2
        self.k = shape[1] if self.several else 1

    def __repr__(self) -> str:
        masked = "" if self.mask is None else f", mask of shape {tuple(self.mask.shape)}"
        return f"Pixels({self.label!r}{masked})"

    def _with(self, indices: Tensor | None, mask: Tensor | None) -> Pixels:
        made = Pixels(self.label)
        made._indices, made.mask, made.is_placed = indices, mask, mask is not None
        if indices is not None:
            made.several = indices.ndim == 2
            made.k = indices.shape[1] if made.several else 1
        return made

    def named(self, indices_of: Callable[[Any], Tensor]) -> Pixels:
        if self.label is None or self._indices is not None:
            return self
        return self._with(indices_of(self.label), self.mask)

    def bind(self, adapter: Adapter) -> Pixels:
        if adapter.task != "segmentation":
            raise ValueError(
                f"The task is {adapter.task!r}, but Pixels is for segmentation networks, whose "
                "output has shape (n_images, n_classes, height, width). If this is such a network, "
                'set task="segmentation".'
            )
        return self

    def check_images(self, n_images: int) -> None:
        for name, each in (("label", self._indices), ("mask", self.mask)):
            least = 0 if name == "label" else 2
            if each is not None and each.ndim > least and len(each) != n_images:
                raise ValueError(
                    f"Pixels must have one {name} for all images or one per image; got "
                    f"{len(each)} for {n_images} images."
                )

    def take(self, rows: slice) -> Pixels:
        indices, mask = self._indices, self.mask
        has_indices = indices is not None and indices.ndim > 0
        has_masks = mask is not None and mask.ndim == 3
        if not (has_indices or has_masks):
            return self
        return self._with(
            indices[rows] if indices is not None and has_indices else indices,
            mask[rows] if mask is not None and has_masks else mask,
        )

    def framed(
        self, sizes: Sequence[tuple[int, ...]], resizing: Resizing, input_size: tuple[int, ...]
    ) -> Pixels:
        mask = self.mask
        if mask is None or len(input_size) != 2 or tuple(mask.shape[-2:]) == input_size:
            return self  # this includes volumes, which resolve refuses
        if any(tuple(mask.shape[-2:]) != tuple(size) for size in sizes):
            return self  # the mask may have the output's size
        height, width = input_size
        as_resized = replace(resizing, interpolation="bilinear", fill=(0.0,))
        made = resize_image(mask.reshape(-1, 1, *sizes[0]), (height, width), as_resized)
        return self._with(self._indices, made.reshape(*mask.shape[:-2], *input_size))

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Region:
        if output.ndim != 4:
            raise ValueError(
                "Pixels needs a network whose output has shape (n_images, n_classes, height, "
                f"width); got {describe(output)}."
            )
        self.check_images(len(output))
        weights = self._weights(output, inputs)
        predicted = output.detach().argmax(dim=1, keepdim=True)
        if self.label is None:
            return Region(predicted, torch.ones_like(output[:, :1]) if weights is None else weights)
        indices = self._class_indices(output)
        own = indices.reshape(len(output), -1, 1, 1)
        region = Region(own, (predicted == own).float() if weights is None else weights)
        region.several, region.indices = self.several, own[..., 0, 0]
        return region

    def _class_indices(self, output: Tensor) -> Tensor:
        indices = self._indices
        if indices is None:
            try:
                indices = torch.as_tensor(self.label).long()
            except (TypeError, ValueError):
                raise ValueError(
                    f"Pixels({self.label!r}) holds a class name, but the names of the classes are "
                    "not known here. Pass it to an explainer, or give class indices."
                ) from None
        check_indices(indices, output.shape[1])
        indices = indices.to(output.device)
        return indices.expand(len(output)) if indices.ndim == 0 else indices

    def _weights(self, output: Tensor, inputs: Inputs | None) -> Tensor | None:
        """Return the weight of each pixel of the output, (n_images, 1, h, w)."""
        if self.mask is None:
            return None
        mask = self.mask.to(output.device).reshape(-1, 1, *self.mask.shape[-2:])
        size, wanted = tuple(mask.shape[-2:]), tuple(output.shape[-2:])
        if size != wanted:
            if inputs is None or size != inputs.size:
                of_input = "" if inputs is None else f", of the network's input {inputs.size}"
                raise ValueError(
                    f"The mask of Pixels has size {size}. It must have the size of the images"
                    f"{of_input} or of the output {wanted}."
                )
            mask = F.interpolate(mask, wanted, mode="area")
        return mask.expand(len(output), -1, -1, -1)


class Region(Target):
    """Target: fixed pixels, each with the class to explain there.

    Parameters
    ----------
    labels : Tensor of shape (n_images, k, height or 1, width or 1), int64
    weights : Tensor of shape (n_images, k or 1, height, width), in [0, 1]
        The weight of each pixel.
    """

    names_classes = has_probabilities = True

    def __init__(self, labels: Tensor, weights: Tensor):
        self.k = labels.shape[1]
        self._labels = labels
        self._weights = weights

    def take(self, rows: slice) -> Region:
        taken = Region(self._labels[rows], self._weights[rows])
        taken.several = self.several
        taken.indices = None if self.indices is None else self.indices[rows]
        return taken

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        values, weights = self._values(output, rows)
        # A product alone would turn infinite or NaN scores outside the region into NaN.
        return torch.where(weights > 0, values * weights, 0).sum(dim=(2, 3))

    def probability(self, probabilities: Tensor, rows: Rows = None) -> Tensor:
        values, weights = self._values(probabilities, rows)
        values, weights = values[:, 0], weights[:, 0]
        return (values * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))

    def _values(self, output: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        labels, weights = self._labels, self._weights
        if rows is not None:
            labels, weights = labels[rows], weights[rows]
        labels = labels.expand(-1, -1, *output.shape[-2:])
        values = at_least_float32(output.gather(1, labels))
        return values, weights.to(values.dtype)


def of_pixels(target: Target) -> Target:
    """Turn a target of classes into one for segmentation networks."""
    if isinstance(target, Predicted):
        return Pixels()
    if isinstance(target, TopK):
        raise ValueError(
            "TopK explains an image's highest-scoring classes, but a segmentation network scores "
            "classes per pixel. Name the classes: target=Pixels(labels) with one row per image."
        )
    if isinstance(target, Classes):
        return Pixels(target.given())._with(target.given(), None)
    return target


def _checked(mask: Any) -> Tensor:
    """Return a mask as float32, or raise a ValueError if its shape or its values are wrong."""
    try:
        if isinstance(mask, Tensor):
            mask = mask.detach().cpu()
            mask = mask.float() if mask.is_floating_point() else mask  # numpy has no bfloat16
        array = np.asarray(mask)
    except ValueError:  # the masks differ in size
        array = np.empty(())
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "buif":
        raise ValueError(
            "mask of Pixels must be of shape (height, width) or (n_images, height, width); got "
            f"{describe(mask)}."
        )
    if not np.isin(array, (0, 1)).all():
        raise ValueError(
            "mask of Pixels must be true or 1 inside the region and false or 0 elsewhere; got "
            f"values from {array.min()} to {array.max()}."
        )
    return torch.from_numpy(array.astype(np.float32))
