"""Targets of detectors: one score for each object."""

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
    r"""Target of detectors: an object, by its box and its label; a map for each.

    .. math:: s = \max_j \; \mathbb{1}[\ell_j = \ell] \; \mathrm{IoU}(b, b_j) \; s_j

    over the detections j of an image, of box :math:`b_j`, label :math:`\ell_j` and score
    :math:`s_j`. The overlap is a weight: gradients go only through the score.

    Parameters
    ----------
    boxes : array-like of shape (n_images, 4) or (n_images, k, 4), list of (k_i, 4), or None
        Corners (x1, y1, x2, y2) in pixels of the images as they are given: one box per image, or
        several, which have a map each; some images may have more than others. None, the default,
        is what the network detects itself, in the order of ``predict``.
    labels : array-like of shape (n_images,) or (n_images, k), list of (k_i,), or None, default=None
        Their labels, as ``predict`` returns them. None is any: a detection of whatever label.
    threshold : float in [0, 1], default=0.5
        Without boxes: the least score of a detection that is explained.

    Raises
    ------
    ValueError
        If boxes or labels are of another form or number, or a box has no area. When it is asked
        for, if the network is not a detector, or there are boxes for another number of images.

    Notes
    -----
    The map of a box that no detection matches is blank, and a warning says so. If images have
    different numbers of boxes, ``explain`` returns a list of arrays (k_i, height, width).

    For metrics of confidence, the score is the probability. They take one box per image. Metrics
    that compare views, such as "consistency", refuse boxes, as views move only the image.

    If two detections of a label overlap, the stronger may match the weaker one's box better
    than its own does, if it scores more than 1 / IoU times as much. Non-maximum suppression at 0.5
    rules that out for scores of 0.5 and more.

    References
    ----------
    Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps", CVPR 2021, eq. 2
    and 3: a similarity to a detection, of which this is the part that has a box and one score.

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
            raise ValueError("labels of Box are those of its boxes; give boxes, too.")
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
                "Box is for detectors of torchvision.models.detection; the task of this network "
                f"is {adapter.task!r}."
            )
        return self

    def check_images(self, n_images: int) -> None:
        if self._corners is not None and len(self._corners) != n_images:
            raise ValueError(
                f"Box must have boxes for each of {n_images} images; got those of "
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
            raise ValueError(f"Box is for the output of a detector; got {describe(output)}.")
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
                raise ValueError("Box needs to know what labels stand for; ask an explainer.")
            return [torch.from_numpy(each.astype(np.int64)) for each in given]
        return [torch.full((len(each),), _ANY) for each in self._corners]

    def _detected(self, output: Tensor) -> Objects:
        chosen = (output[..., 5] != FILLED_UP) & (output[..., 4] >= self.threshold)
        counts = chosen.sum(dim=1).tolist()
        # Those first that are explained, in the network's order.
        order = (~chosen).int().argsort(dim=1, stable=True)[:, : max(1, *counts)]
        rows = output.gather(1, order[..., None].expand(-1, -1, N_COLUMNS))
        labels = rows[..., 5].where(chosen.gather(1, order), FILLED_UP)
        return Objects(rows[..., :4], labels, counts, several=True, ragged=True)


class Objects(Target):
    """Target: objects that are known.

    Parameters
    ----------
    boxes : Tensor of shape (n_images, k, 4)
    labels : Tensor of shape (n_images, k)
        As the network numbers them.
    counts : list of int
        How many of them each image has; the others are there to fill up.
    several, ragged : bool
    """

    names_classes = True

    def __init__(
        self, boxes: Tensor, labels: Tensor, counts: list[int], *, several: bool, ragged: bool
    ):
        self.boxes, self.labels, self.counts, self._counts = boxes, labels, counts, counts
        self.k, self.several, self.ragged = boxes.shape[1], several, ragged

    def counts_of(self, image: int) -> int:
        """Return how many objects an image has."""
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
    """Return the IoU (n, k, m) of boxes (n, k, 4) and others (n, m, 4); 0 of empty ones."""
    corner = torch.maximum(boxes[:, :, None, :2], others[:, None, :, :2])
    opposite = torch.minimum(boxes[:, :, None, 2:], others[:, None, :, 2:])
    shared = (opposite - corner).clamp(min=0).prod(dim=-1)
    areas = [box_area(each.flatten(0, 1)).reshape(each.shape[:2]) for each in (boxes, others)]
    union = areas[0][:, :, None] + areas[1][:, None] - shared
    return shared / union.clamp(min=torch.finfo(shared.dtype).tiny)


def of_objects(target: Target) -> Target:
    """Return what a question about classes is for a detector."""
    if isinstance(target, Predicted):
        return Box()
    if target.names_classes and not isinstance(target, Box | Objects):
        what = "a label" if isinstance(target, Classes) else type(target).__name__
        raise ValueError(
            f"A detector finds objects, of which {what} is not one: give target=Box(boxes, labels) "
            "for those of your own, or Box(threshold=...) for what it detects."
        )
    return target


def to_input(
    boxes: Tensor, size: Sequence[int], resizing: Resizing, input_size: Sequence[int]
) -> Tensor:
    """Bring boxes (k, 4) from the frame of an image to that of a network's input."""
    scale, start = _placed(boxes, size, resizing, input_size)
    return boxes * scale - start


def to_image(
    boxes: Tensor, size: Sequence[int], resizing: Resizing, input_size: Sequence[int]
) -> Tensor:
    """Bring boxes (k, 4) from the frame of a network's input to that of an image."""
    scale, start = _placed(boxes, size, resizing, input_size)
    return (boxes + start) / scale


def _placed(
    boxes: Tensor, size: Sequence[int], resizing: Resizing, input_size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    (height, width), top, left = resizing.place(size, input_size)
    scale = [width / size[1], height / size[0]]
    return boxes.new_tensor([*scale, *scale]), boxes.new_tensor([left, top, left, top])


def _corners_of(boxes: Any) -> tuple[list[Tensor], bool]:
    """Return the boxes of each image, and whether an image has several."""
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
            "boxes of Box must be corners (x1, y1, x2, y2): of shape (n_images, 4), one for each "
            f"image, or (k, 4) for each in a list; got {describe(boxes)}."
        )
    for i, each in enumerate(images):
        wrong = each[~((each[:, 2:] > each[:, :2]).all(axis=1) & np.isfinite(each).all(axis=1))]
        if len(wrong):
            raise ValueError(
                f"boxes of Box, image {i}: {wrong[0].tolist()} has no area; corners are x1, y1, x2 "
                "> x1 and y2 > y1, in pixels."
            )
    return [torch.from_numpy(each.astype(np.float32)) for each in images], not is_one_each


def _labels_of(labels: Any) -> list[np.ndarray]:
    """Return the labels of each image, which may be tensors on any device."""
    return [
        np.asarray(each.cpu() if isinstance(each, Tensor) else each).reshape(-1) for each in labels
    ]


def _check_labels(labels: Any, corners: list[Tensor]) -> None:
    counts = [each.size for each in _labels_of(labels)] if hasattr(labels, "__len__") else None
    if counts != [len(each) for each in corners]:
        raise ValueError(
            "labels of Box must be as many as its boxes, image by image: "
            f"{[len(each) for each in corners]}; got {counts}."
        )
