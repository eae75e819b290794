"""Targets for detectors: one score per object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import box_area

from sklcam._validation import check_number, describe
from sklcam.cam.targets import Classes, Deferred, Predicted, Target
from sklcam.images.frames import Resizing
from sklcam.networks.detectors import FILLED_UP, N_COLUMNS
from sklcam.networks.inputs import Inputs, Rows
from sklcam.networks.precision import at_least_float32

if TYPE_CHECKING:
    from sklcam.networks.adapters import Adapter

_ANY = -2  # the label of a box that any detection may match


class Box(Deferred):
    r"""Target for detectors: objects by box and label, each with a map of its own.

    .. math:: s = \max_j \; \mathbb{1}[\ell_j = \ell] \; \mathrm{IoU}(b, b_j) \; s_j

    over the detections j of an image, with box :math:`b_j`, label :math:`\ell_j` and score
    :math:`s_j`. The overlap is a constant weight: gradients flow only through the score.

    Parameters
    ----------
    boxes : array-like of shape (n_images, 4) or (n_images, k, 4), list of (k_i, 4), or None
        Corners (x1, y1, x2, y2) in pixels of the original images: one box per image, or several,
        each with a map of its own. Images may differ in their number of boxes. None, the default,
        uses the network's own detections, in the order of ``predict``.
    labels : array-like of shape (n_images,) or (n_images, k), list of (k_i,), or None, default=None
        The labels of the boxes, as ``predict`` returns them. None matches detections of any label.
    threshold : float in [0, 1], default=0.5
        Without boxes, the lowest score of a detection that is explained.

    Raises
    ------
    ValueError
        If boxes or labels have another form or number, or a box has no area. When maps are
        computed, if the network is not a detector, or there are boxes for another number of images.

    Notes
    -----
    The map of a box that no detection matches is blank, and a warning says so. If images have
    different numbers of boxes, ``explain`` returns a list of arrays (k_i, height, width).

    Metrics of confidence use the score as the probability, and take one box per image. Metrics
    that compare views, such as "consistency", refuse boxes, as views move only the image.

    If two detections with the same label overlap, the box of the weaker one may be matched by the
    stronger one instead. This needs a score more than 1 / IoU times as high. Non-maximum
    suppression at 0.5 rules it out for scores of 0.5 and more.

    References
    ----------
    Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps", CVPR 2021, eq. 2
    and 3. Their similarity of detections is used here with only a box and a single score.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import Box
    >>> from sklcam.networks.detectors import join_detections
    >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0]])
    >>> found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.6]), "labels": torch.tensor([1, 2])}
    >>> joined = join_detections([found])
    >>> Box(boxes[:1], [1]).scores(joined), Box(boxes[:1], [2]).scores(joined)  # 0.6 / 3
    (tensor([[0.9000]]), tensor([[0.2000]]))
    """

    names_classes = True

    def __init__(self, boxes: Any = None, labels: Any = None, threshold: float = 0.5):
        check_number("threshold", threshold, 0, 1)
        if boxes is None and labels is not None:
            raise ValueError("Box has labels but no boxes. Give boxes too.")
        self.boxes, self.labels, self.threshold = boxes, labels, threshold
        self._corners: list[Tensor] | None = None
        self._indices: list[Tensor] | None = None
        self.several = True
        if boxes is not None:
            self._corners, self.several = _corners_of(boxes)
            if labels is not None:
                _check_labels(labels, self._corners)
        self._lay_out()

    def _lay_out(self) -> None:
        self.is_placed = self._corners is not None
        counts = {1} if self._corners is None else {len(each) for each in self._corners}
        self.k = max(1, *counts)
        self.ragged = self._corners is None or len(counts) > 1 or counts == {0}

    def __repr__(self) -> str:
        if self._corners is None:
            return f"Box(threshold={self.threshold})"
        return f"Box({sum(map(len, self._corners))} boxes in {len(self._corners)} images)"

    def _with(self, corners: list[Tensor] | None, indices: list[Tensor] | None) -> Box:
        made = Box(threshold=self.threshold)
        made.boxes, made.labels = self.boxes, self.labels
        made._corners, made._indices, made.several = corners, indices, self.several
        made._lay_out()
        return made

    def named(self, indices_of: Callable[[Any], Tensor]) -> Box:
        if self.labels is None or self._indices is not None:
            return self
        given = _labels_of(self.labels)
        counts = [len(each) for each in given]
        indices = indices_of(np.concatenate(given)) if sum(counts) else torch.zeros(0).long()
        return self._with(self._corners, [*indices.split(counts)])

    def bind(self, adapter: Adapter) -> Box:
        if adapter.task != "detection":
            raise ValueError(
                f"The task is {adapter.task!r}, but Box is for detectors of "
                "torchvision.models.detection. Choose another target."
            )
        return self

    def check_images(self, n_images: int) -> None:
        if self._corners is not None and len(self._corners) != n_images:
            raise ValueError(
                f"Box must have boxes for each of {n_images} images; got boxes for "
                f"{len(self._corners)}."
            )

    def take(self, rows: slice) -> Box:
        if self._corners is None:
            return self
        indices = None if self._indices is None else self._indices[rows]
        return self._with(self._corners[rows], indices)

    def framed(
        self, sizes: Sequence[tuple[int, ...]], resizing: Resizing, input_size: tuple[int, ...]
    ) -> Box:
        if self._corners is None or all(tuple(size) == input_size for size in sizes):
            return self
        corners = [
            to_input(each, size, resizing, input_size)
            for each, size in zip(self._corners, sizes, strict=True)
        ]
        return self._with(corners, self._indices)

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Objects:
        if output.ndim != 3 or output.shape[2] != N_COLUMNS:
            raise ValueError(f"Box needs the output of a detector; got {describe(output)}.")
        if self._corners is None:
            return self._detected(output.detach())
        self.check_images(len(output))
        counts = [len(each) for each in self._corners]
        boxes = [pad(each, (0, 0, 0, self.k - len(each))) for each in self._corners]
        labels = [pad(each, (0, self.k - len(each)), value=FILLED_UP) for each in self._wanted()]
        return Objects(
            torch.stack(boxes).to(output),
            torch.stack(labels).to(output),
            counts,
            several=self.several,
            ragged=self.ragged,
        )

    def _wanted(self) -> list[Tensor]:
        assert self._corners is not None
        if self._indices is not None:
            return self._indices
        if self.labels is not None:
            given = _labels_of(self.labels)
            if any(each.dtype.kind not in "iu" for each in given if each.size):
                raise ValueError(
                    "Box has label names, but the network's labels are not known here. Pass the "
                    "Box to an explainer, or give labels as integers."
                )
            return [torch.from_numpy(each.astype(np.int64)) for each in given]
        return [torch.full((len(each),), _ANY) for each in self._corners]

    def _detected(self, output: Tensor) -> Objects:
        chosen = (output[..., 5] != FILLED_UP) & (output[..., 4] >= self.threshold)
        counts = chosen.sum(dim=1).tolist()
        # Detections to explain come first, in the network's order.
        order = (~chosen).int().argsort(dim=1, stable=True)[:, : max(1, *counts)]
        rows = output.gather(1, order[..., None].expand(-1, -1, N_COLUMNS))
        labels = rows[..., 5].where(chosen.gather(1, order), FILLED_UP)
        return Objects(rows[..., :4], labels, counts, several=True, ragged=True)


class Objects(Target):
    """Target: given objects.

    Parameters
    ----------
    boxes : Tensor of shape (n_images, k, 4)
    labels : Tensor of shape (n_images, k)
        The network's own label numbers.
    counts : list of int
        The number of objects of each image. The remaining rows are padding.
    several, ragged : bool
    """

    names_classes = True

    def __init__(
        self, boxes: Tensor, labels: Tensor, counts: list[int], *, several: bool, ragged: bool
    ):
        self.boxes, self.labels, self.counts, self._counts = boxes, labels, counts, counts
        self.k, self.several, self.ragged = boxes.shape[1], several, ragged

    def counts_of(self, image: int) -> int:
        """Return the number of objects of an image."""
        return self._counts[image]

    def take(self, rows: slice) -> Objects:
        return Objects(
            self.boxes[rows],
            self.labels[rows],
            self._counts[rows],
            several=self.several,
            ragged=self.ragged,
        )

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        boxes, labels = self.boxes, self.labels
        if rows is not None:
            boxes, labels = boxes[rows], labels[rows]
        found = at_least_float32(output)
        is_alike = labels[..., None] == found[:, None, :, 5]
        is_alike |= (labels[..., None] == _ANY) & (found[:, None, :, 5] != FILLED_UP)
        is_alike &= labels[..., None] != FILLED_UP
        overlaps = overlap(at_least_float32(boxes), found[..., :4].detach()) * is_alike
        return (overlaps * found[:, None, :, 4]).amax(dim=2)

    def probability(self, probabilities: Tensor, rows: Rows = None) -> Tensor:
        return self.scores(probabilities, rows=rows)[:, 0].detach()


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU (n, k, m) of boxes (n, k, 4) and others (n, m, 4), or 0 for empty boxes."""
    corner = torch.maximum(boxes[:, :, None, :2], others[:, None, :, :2])
    opposite = torch.minimum(boxes[:, :, None, 2:], others[:, None, :, 2:])
    shared = (opposite - corner).clamp(min=0).prod(dim=-1)
    areas = [box_area(each.flatten(0, 1)).reshape(each.shape[:2]) for each in (boxes, others)]
    union = areas[0][:, :, None] + areas[1][:, None] - shared
    return shared / union.clamp(min=torch.finfo(shared.dtype).tiny)


def of_objects(target: Target) -> Target:
    """Turn the default target into one for detectors, and refuse targets of classes."""
    if isinstance(target, Predicted):
        return Box()
    if target.names_classes and not isinstance(target, Box | Objects):
        what = "a label" if isinstance(target, Classes) else type(target).__name__
        raise ValueError(
            f"The target is {what}, but a detector finds objects. Give target=Box(boxes, labels) "
            "for objects of your own, or Box(threshold=...) for the network's detections."
        )
    return target


def to_input(
    boxes: Tensor, size: Sequence[int], resizing: Resizing, input_size: Sequence[int]
) -> Tensor:
    """Convert boxes (k, 4) from pixels of an image to pixels of the network's input."""
    scale, start = _placed(boxes, size, resizing, input_size)
    return boxes * scale - start


def to_image(
    boxes: Tensor, size: Sequence[int], resizing: Resizing, input_size: Sequence[int]
) -> Tensor:
    """Convert boxes (k, 4) from pixels of the network's input to pixels of an image."""
    scale, start = _placed(boxes, size, resizing, input_size)
    return (boxes + start) / scale


def _placed(
    boxes: Tensor, size: Sequence[int], resizing: Resizing, input_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    (height, width), top, left = resizing.place(size, input_size)
    scale = [width / size[1], height / size[0]]
    return boxes.new_tensor([*scale, *scale]), boxes.new_tensor([left, top, left, top])


def _corners_of(boxes: Any) -> tuple[list[Tensor], bool]:
    """Return the boxes of each image, and whether images may have several."""
    try:
        images = [
            np.asarray(each.cpu() if isinstance(each, Tensor) else each, float) for each in boxes
        ]
    except (TypeError, ValueError):
        images = []
    is_one_each = bool(images) and all(each.shape == (4,) for each in images)
    images = [each.reshape(-1, 4) if each.size in (0, 4) else each for each in images]
    if not images or any(each.ndim != 2 or each.shape[1] != 4 for each in images):
        raise ValueError(
            "boxes of Box must be corners (x1, y1, x2, y2): an array of shape (n_images, 4) for "
            "one box per image, or a list with an array of shape (k, 4) per image; got "
            f"{describe(boxes)}."
        )
    for i, each in enumerate(images):
        wrong = each[~((each[:, 2:] > each[:, :2]).all(axis=1) & np.isfinite(each).all(axis=1))]
        if len(wrong):
            raise ValueError(
                f"boxes of Box, image {i}: {wrong[0].tolist()} has no area. Give corners x1, y1, "
                "x2 > x1 and y2 > y1, in pixels."
            )
    return [torch.from_numpy(each.astype(np.float32)) for each in images], not is_one_each


def _labels_of(labels: Any) -> list[np.ndarray]:
    """Return the labels of each image as arrays. They may be tensors on any device."""
    return [
        np.asarray(each.cpu() if isinstance(each, Tensor) else each).reshape(-1) for each in labels
    ]


def _check_labels(labels: Any, corners: list[Tensor]) -> None:
    counts = [each.size for each in _labels_of(labels)] if hasattr(labels, "__len__") else None
    if counts != [len(each) for each in corners]:
        raise ValueError(
            "Box must have as many labels as boxes for each image: "
            f"{[len(each) for each in corners]}; got {counts}."
        )
