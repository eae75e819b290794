"""Targets of networks that answer for each pixel: the scores of a region, added up."""

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
    r"""Target of segmentation networks: a class's scores, added up over a region.

    .. math:: s = \sum_{(i, j) \in M} y_{c, ij}

    A map shows what the network looked at for this region, be it within or around it. Networks of
    one output have a second class, whose score it is; that of the first is its negative.

    Parameters
    ----------
    label : label, array-like of shape (n_images,) or (n_images, k), or None, default=None
        The class: one for all images, one for each, or several for each, which have a map each.
        None is each pixel's own predicted class.
    mask : array-like of shape (height, width) or (n_images, height, width), or None, default=None
        The region, true or 1 where it is: one for all images or one for each, at the images' own
        size, at that of the network's input or at that of its output. None is where the predicted
        class is ``label``, and without one the whole image.

    Raises
    ------
    ValueError
        If the mask is not one. When it is asked for, if the network's task is not "segmentation",
        it does not know the class, or the mask is of another size or for other images.

    Notes
    -----
    A mask that is larger than the output shrinks to it: an output pixel counts by how much of it
    the mask covers. The map of an empty region, such as of a class that is predicted nowhere, is
    blank, and a warning says so. The region is fixed by the first pass: metrics that change the
    image ask about the same pixels. As the probability they take the mean over the region of the
    class's (of each pixel's own class without a label); of an empty region it is NaN. Metrics that
    compare views, such as "consistency", refuse a mask, as they move the image and not the region.

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
                "Pixels is for networks that answer for each pixel, with an output of shape "
                f"(n_images, n_classes, height, width); the task here is {adapter.task!r}. If it "
                'is one, say so: task="segmentation".'
            )
        return self

    def check_images(self, n_images: int) -> None:
        for name, each in (("label", self._indices), ("mask", self.mask)):
            least = 0 if name == "label" else 2
            if each is not None and each.ndim > least and len(each) != n_images:
                raise ValueError(
                    f"{name} of Pixels must be one for all images or one for each of {n_images}; "
                    f"got {len(each)}."
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
            return self  # volumes, which resolve refuses, among them
        if any(tuple(mask.shape[-2:]) != tuple(size) for size in sizes):
            return self  # it may be of the output's size
        height, width = input_size
        as_resized = replace(resizing, interpolation="bilinear", fill=(0.0,))
        made = resize_image(mask.reshape(-1, 1, *sizes[0]), (height, width), as_resized)
        return self._with(self._indices, made.reshape(*mask.shape[:-2], *input_size))

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Region:
        if output.ndim != 4:
            raise ValueError(
                "Pixels is for an output of shape (n_images, n_classes, height, width); got "
                f"{describe(output)}."
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
                    f"Pixels({self.label!r}) needs to know what classes are called; ask an "
                    "explainer."
                ) from None
        check_indices(indices, output.shape[1])
        indices = indices.to(output.device)
        return indices.expand(len(output)) if indices.ndim == 0 else indices

    def _weights(self, output: Tensor, inputs: Inputs | None) -> Tensor | None:
        """Return how much each pixel of the output counts, (n_images or 1, 1, h, w)."""
        if self.mask is None:
            return None
        mask = self.mask.to(output.device).reshape(-1, 1, *self.mask.shape[-2:])
        size, wanted = tuple(mask.shape[-2:]), tuple(output.shape[-2:])
        if size != wanted:
            if inputs is None or size != inputs.size:
                of_input = "" if inputs is None else f", {inputs.size} as the network's input is,"
                raise ValueError(
                    f"The mask of Pixels is of {size} pixels; it must be as the images are"
                    f"{of_input} or as the output is: {wanted}."
                )
            mask = F.interpolate(mask, wanted, mode="area")
        return mask.expand(len(output), -1, -1, -1)


class Region(Target):
    """Target: pixels that are known, each with the class that is explained there.

    Parameters
    ----------
    labels : Tensor of shape (n_images, k, height or 1, width or 1), int64
    weights : Tensor of shape (n_images, k or 1, height, width), in [0, 1]
        How much each pixel counts.
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
        # A product would make NaN of what is infinite, or NaN, outside the region.
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
    """Return what a question about classes is for a network that answers for each pixel."""
    if isinstance(target, Predicted):
        return Pixels()
    if isinstance(target, TopK):
        raise ValueError(
            "TopK takes an image's highest-scoring classes; a segmentation network scores those of "
            "pixels. Name them, target=Pixels(labels) with a row for each image."
        )
    if isinstance(target, Classes):
        return Pixels(target.given())._with(target.given(), None)
    return target


def _checked(mask: Any) -> Tensor:
    """Return a mask as float32, once it has been looked at."""
    try:
        if isinstance(mask, Tensor):
            mask = mask.detach().cpu()
            mask = mask.float() if mask.is_floating_point() else mask  # numpy has no bfloat16
        array = np.asarray(mask)
    except ValueError:  # of several sizes
        array = np.empty(())
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "buif":
        raise ValueError(
            "mask of Pixels must be of shape (height, width) or (n_images, height, width); got "
            f"{describe(mask)}."
        )
    if not np.isin(array, (0, 1)).all():
        raise ValueError(
            "mask of Pixels must be true or 1 where the region is, and false or 0 elsewhere; got "
            f"values from {array.min()} to {array.max()}."
        )
    return torch.from_numpy(array.astype(np.float32))
