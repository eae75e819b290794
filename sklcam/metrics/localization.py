"""Where the map is, against where the object is.

Boxes are ``(x1, y1, x2, y2)`` in pixels of the map, from the left and upper edge of the box to the
right and lower one: edges, not centres of pixels, so that a box from 0 to the width is as wide as
the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import find_objects, label
from torch import Tensor

from sklcam._validation import (
    check_alike,
    check_maps,
    check_number,
    check_size,
    check_tensor,
    describe,
)


def box_masks(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Turn boxes into masks: how much of each pixel lies in one of an image's boxes.

    Parameters
    ----------
    boxes : sequence of Tensor of shape (n_boxes, 4)
        One tensor per image, with any number of boxes.
    size : tuple of two ints
        Height and width.

    Returns
    -------
    Tensor of shape (n_images, height, width), in [0, 1]
        The share of the pixel's area in the box; the largest, where boxes overlap. What reaches
        beyond the image is cut off.

    Raises
    ------
    ValueError
        If a box is not (x1, y1, x2, y2) with x1 < x2 and y1 < y2.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import box_masks
    >>> box_masks([torch.tensor([[0.5, 0.0, 2.0, 1.0]])], (2, 3))
    tensor([[[0.5000, 1.0000, 0.0000],
             [0.0000, 0.0000, 0.0000]]])
    """
    height, width = check_size(size, "size")
    masks = []
    for corners in _check_boxes_of_images(boxes):
        rows = _coverage(corners[:, 1], corners[:, 3], height)
        columns = _coverage(corners[:, 0], corners[:, 2], width)
        products = rows[:, :, None] * columns[:, None, :]
        none = products.new_zeros(1, height, width)
        masks.append(torch.cat([none, products]).amax(dim=0))
    return torch.stack(masks)


def _coverage(low: Tensor, high: Tensor, length: int) -> Tensor:
    """Return how much of each of the unit intervals [i, i + 1] lies between low and high."""
    left = torch.arange(length, device=low.device, dtype=low.dtype)
    return (torch.minimum(high[:, None], left + 1) - torch.maximum(low[:, None], left)).clamp(0, 1)


def heatmap_ratio(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of each map that lies inside the object.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), >= 0
    masks : Tensor of shape (n_images, height, width), bool, integer or float in [0, 1]
        Where the object is: a segmentation, 0 outside, or :func:`box_masks`.

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; higher is better. 0 for a map of zeros.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or the masks
        not a tensor of the same shape on the same device.

    References
    ----------
    Bachhawat, "Generalizing GradCAM for Embedding Networks", section 4.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import heatmap_ratio
    >>> heatmap_ratio(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
    tensor([0.7500])
    """
    _check_masks(maps, masks)
    total = maps.sum(dim=(1, 2))
    inside = (maps * _shares(masks)).sum(dim=(1, 2))
    none = total <= 0  # so that NaN stays NaN
    return torch.where(none, 0.0, inside / torch.where(none, 1.0, total))


def inside_outside_ratio(maps: Tensor, masks: Tensor) -> Tensor:
    """Mean of the map inside the object, over its mean outside.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), >= 0
    masks : Tensor of shape (n_images, height, width), bool or in [0, 1]

    Returns
    -------
    Tensor of shape (n_images,), >= 0; higher is better, 1 for an even map.
        Infinite where all of the map is inside; NaN where the map is zero, or where there is no
        inside or no outside.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or the masks
        not a tensor of the same shape on the same device.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 8.1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import inside_outside_ratio
    >>> maps = torch.tensor([[[3.0, 1.0, 1.0]]])
    >>> inside_outside_ratio(maps, torch.tensor([[[True, False, False]]]))
    tensor([3.])
    """
    _check_masks(maps, masks)
    inside = _shares(masks).to(maps.dtype)
    outside = 1 - inside
    means = [(maps * part).sum(dim=(1, 2)) / part.sum(dim=(1, 2)) for part in (inside, outside)]
    return means[0] / means[1]


def box_from_map(maps: Tensor, threshold: float = 0.2) -> Tensor:
    """Return the box around the largest connected part of each map.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), >= 0
    threshold : float, default=0.2
        Pixels count from this share of the map's maximum on: 0.2 for embedding networks, 0.15 in
        Grad-CAM's localisation.

    Returns
    -------
    Tensor of shape (n_images, 4), float
        ``(x1, y1, x2, y2)``, edges of pixels; zeros for a map of zeros. Pixels are connected along
        rows and columns; of parts of one size, the one that comes first in raster order.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or the
        threshold is outside 0 to 1.

    References
    ----------
    Bachhawat, "Generalizing GradCAM for Embedding Networks", section 4; Selvaraju et al.,
    "Grad-CAM", IJCV 2020, section 4.1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import box_from_map
    >>> box_from_map(torch.tensor([[[0.0, 0.9, 1.0], [0.0, 0.1, 0.0]]]))
    tensor([[1., 0., 3., 1.]])
    """
    check_maps(maps=maps)
    check_number("threshold, a share of the maximum,", threshold, 0, 1)
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    marked = ((maps >= threshold * peaks) & (maps > 0)).cpu().numpy()
    boxes = np.array([_largest_box(of_map) for of_map in marked], dtype=np.float64).reshape(-1, 4)
    return torch.as_tensor(boxes).to(maps)


def _largest_box(marked: np.ndarray) -> tuple[int, int, int, int]:
    parts, n_parts = label(marked)
    if n_parts == 0:
        return 0, 0, 0, 0
    largest = np.bincount(parts.ravel())[1:].argmax()
    rows, columns = find_objects(parts)[largest]
    return columns.start, rows.start, columns.stop, rows.stop


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of pairs of boxes.

    Parameters
    ----------
    boxes, others : Tensor of shape (..., 4)
        They broadcast.

    Returns
    -------
    Tensor of shape (...,), in [0, 1]

    Raises
    ------
    ValueError
        If they are not tensors whose last axis is of length 4, or do not broadcast.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import box_iou
    >>> box_iou(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 3.0, 2.0]))
    tensor(0.3333)
    """
    for name, of in (("boxes", boxes), ("others", others)):
        if not isinstance(of, Tensor) or of.ndim == 0 or of.shape[-1] != 4:
            raise ValueError(f"{name} must be a Tensor of shape (..., 4); got {describe(of)}.")
    try:
        torch.broadcast_shapes(boxes.shape, others.shape)
    except RuntimeError:
        raise ValueError(
            f"boxes and others must broadcast; got shapes {tuple(boxes.shape)} and "
            f"{tuple(others.shape)}."
        ) from None
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(dim=-1) for box in (boxes, others)]
    union = areas[0] + areas[1] - shared
    return torch.where(union > 0, shared / torch.where(union > 0, union, 1.0), 0.0)


def localization_accuracy(
    boxes: Tensor, truth: Sequence[Tensor], *, iou_threshold: float = 0.5
) -> Tensor:
    """Whether each box fits one of the true boxes of its image.

    Parameters
    ----------
    boxes : Tensor of shape (n_images, 4)
        Such as :func:`box_from_map` returns.
    truth : sequence of Tensor of shape (n_boxes, 4)
        One tensor per image, with any number of boxes of the class.
    iou_threshold : float, default=0.5
        A box fits from this intersection over union on.

    Returns
    -------
    Tensor of shape (n_images,), 0 or 1; higher is better. 0 for an image without true boxes.

    Raises
    ------
    ValueError
        If the boxes are not a tensor of shape (n_images, 4), or the true ones not of as many
        images, with x1 < x2 and y1 < y2; or if ``iou_threshold`` is outside 0 to 1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import localization_accuracy
    >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    >>> localization_accuracy(box, [torch.tensor([[0.0, 0.0, 4.0, 3.0]])])
    tensor([1.])
    """
    check_tensor("boxes", boxes, "n_images", "4", floating=False)
    check_number("iou_threshold", iou_threshold, 0, 1)
    corners = _check_boxes_of_images(truth, len(boxes))
    fits = [
        _fits(box, of_image, iou_threshold) for box, of_image in zip(boxes, corners, strict=True)
    ]
    return torch.stack(fits).to(boxes.dtype)


def localization_error(
    boxes: Tensor,
    predicted: Tensor,
    truth: Sequence[Tensor],
    labels: Tensor,
    *,
    iou_threshold: float = 0.5,
) -> Tensor:
    """Top-k localisation error, as ILSVRC defines it.

    An image is localised if one of the k predicted classes is right *and* the box for it fits one
    of the true boxes.

    Parameters
    ----------
    boxes : Tensor of shape (n_images, k, 4)
        A box for each predicted class, from that class's map.
    predicted : Tensor of shape (n_images, k), int
        The classes, as of :class:`sklcam.cam.TopK`.
    truth : sequence of Tensor of shape (n_boxes, 4)
        The true boxes of each image's class.
    labels : Tensor of shape (n_images,), int
        The true classes.
    iou_threshold : float, default=0.5

    Returns
    -------
    Tensor of shape (n_images,), 0 or 1; lower is better.

    Raises
    ------
    ValueError
        If the shapes do not agree, there are true boxes of more or fewer images, a true box is not
        (x1, y1, x2, y2) with x1 < x2 and y1 < y2, or ``iou_threshold`` is outside 0 to 1.

    References
    ----------
    Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015, section 4;
    Selvaraju et al., "Grad-CAM", IJCV 2020, table 1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import localization_error
    >>> boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]]])  # of two classes
    >>> predicted, truth = torch.tensor([[7, 3]]), [torch.tensor([[4.0, 4.0, 8.0, 7.0]])]
    >>> localization_error(boxes, predicted, truth, labels=torch.tensor([3]))
    tensor([0.])
    >>> localization_error(boxes[:, :1], predicted[:, :1], truth, labels=torch.tensor([3]))
    tensor([1.])
    """
    check_tensor("boxes", boxes, "n_images", "k", "4", floating=False)
    check_tensor("predicted", predicted, "n_images", "k", floating=False)
    check_tensor("labels", labels, "n_images", floating=False)
    if predicted.shape != boxes.shape[:2] or len(labels) != len(boxes):
        raise ValueError(
            "boxes, predicted and labels must be of shapes (n_images, k, 4), (n_images, k) and "
            f"(n_images,); got {tuple(boxes.shape)}, {tuple(predicted.shape)} and "
            f"{tuple(labels.shape)}."
        )
    check_number("iou_threshold", iou_threshold, 0, 1)
    corners = _check_boxes_of_images(truth, len(boxes))
    errors = []
    for of_image, classes, true_boxes, of_class in zip(
        boxes, predicted, corners, labels, strict=True
    ):
        fits = torch.stack([_fits(box, true_boxes, iou_threshold) for box in of_image])
        errors.append(~(fits & (classes == of_class)).any())
    return torch.stack(errors).to(boxes.dtype)


def _fits(box: Tensor, truth: Tensor, iou_threshold: float) -> Tensor:
    return (box_iou(box, truth.to(box)) >= iou_threshold).any()


def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: int = 0) -> Tensor:
    """Whether the map's brightest pixel points at the object.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
        The first pixel in raster order counts where several are the brightest.
    masks : Tensor of shape (n_images, height, width), bool or in [0, 1]
        Where the object is.
    tolerance : int, default=0
        A hit is a point at most this many pixels from the object; 15 in the original game.

    Returns
    -------
    Tensor of shape (n_images,), 0 or 1; higher is better. 0 for a constant map, which points
    nowhere.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or the masks
        not a tensor of the same shape on the same device; or if the tolerance is no number >= 0.

    References
    ----------
    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, section 4.1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import pointing_game
    >>> maps = torch.tensor([[[0.1, 0.9, 0.3]]])
    >>> pointing_game(maps, torch.tensor([[[False, True, False]]]))
    tensor([1.])
    """
    _check_masks(maps, masks)
    check_number("tolerance, a number of pixels,", tolerance, 0)
    flat = maps.flatten(1)
    points = flat.argmax(dim=1)
    rows, columns = points // maps.shape[2], points % maps.shape[2]
    down = torch.arange(maps.shape[1], device=maps.device) - rows[:, None]
    right = torch.arange(maps.shape[2], device=maps.device) - columns[:, None]
    near = down[:, :, None] ** 2 + right[:, None, :] ** 2 <= tolerance**2
    hits = (near & (masks > 0)).any(dim=2).any(dim=1)
    return (hits & (flat.amax(dim=1) > flat.amin(dim=1))).to(maps.dtype)


def pointing_game_with_rejection(
    maps: Tensor, masks: Tensor, *, threshold: float, tolerance: int = 0
) -> Tensor:
    """Play the pointing game for classes that may be absent, with the option to reject them.

    Parameters
    ----------
    maps : Tensor of shape (n_images, k, height, width)
        Maps of the k predicted classes that were *not* scaled (scaled ones all peak at 1).
    masks : Tensor of shape (n_images, k, height, width), bool or in [0, 1]
        Where each class is; empty for a class that is absent.
    threshold : float
        A class is rejected if its map's maximum is under it.
    tolerance : int, default=0
        As of :func:`pointing_game`.

    Returns
    -------
    Tensor of shape (n_images, k), 0 or 1; higher is better.
        1 where the class is present, kept and pointed at, or absent and rejected. The mean is the
        accuracy of Grad-CAM's version of the game, which counts recall too.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, k, height, width), or the
        masks not a tensor of the same shape on the same device; if the threshold is no finite
        number, or the tolerance no number >= 0.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 4.3 and appendix D.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import pointing_game_with_rejection
    >>> maps = torch.tensor([[[[5.0, 1.0]], [[0.0, 2.0]], [[0.0, 3.0]]]])  # of three classes
    >>> masks = torch.tensor([[[[1, 0]], [[0, 0]], [[0, 0]]]])  # the first one is present
    >>> pointing_game_with_rejection(maps, masks, threshold=2.5)
    tensor([[1., 1., 0.]])
    """
    pointed, kept, present = _play(maps, masks, threshold, tolerance)
    return torch.where(present, pointed & kept, ~kept).to(maps.dtype)


class PrecisionRecall(NamedTuple):
    """Of the pointing game with rejection.

    Attributes
    ----------
    precision : Tensor of shape (), in [0, 1]
        Share of the maps that were kept that point at their class. NaN if none was kept.
    recall : Tensor of shape (), in [0, 1]
        Share of the classes that are present whose map was kept and points at them. NaN if none is.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import pointing_precision_recall
    >>> maps, masks = torch.tensor([[[[5.0, 1.0]]]]), torch.tensor([[[[1, 0]]]])
    >>> played = pointing_precision_recall(maps, masks, threshold=2.5)
    >>> played.precision, played.recall
    (tensor(1.), tensor(1.))
    """

    precision: Tensor
    recall: Tensor


def pointing_precision_recall(
    maps: Tensor, masks: Tensor, *, threshold: float, tolerance: int = 0
) -> PrecisionRecall:
    """Precision and recall of the pointing game with the option to reject, over all images.

    Parameters
    ----------
    maps, masks, threshold, tolerance
        As of :func:`pointing_game_with_rejection`.

    Returns
    -------
    PrecisionRecall
        Higher is better for both; a higher threshold trades recall for precision.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, k, height, width), or the
        masks not a tensor of the same shape on the same device; if the threshold is no finite
        number, or the tolerance no number >= 0.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 4.3.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import pointing_precision_recall
    >>> maps = torch.tensor([[[[5.0, 1.0]], [[0.0, 2.0]], [[0.0, 3.0]]]])  # of three classes
    >>> masks = torch.tensor([[[[1, 0]], [[0, 1]], [[0, 0]]]])  # the last one is absent
    >>> pointing_precision_recall(maps, masks, threshold=2.5)
    PrecisionRecall(precision=tensor(0.5000), recall=tensor(0.5000))
    """
    pointed, kept, present = _play(maps, masks, threshold, tolerance)
    hits = (pointed & kept).sum().to(maps.dtype)
    return PrecisionRecall(hits / kept.sum(), hits / present.sum())


def _play(
    maps: Tensor, masks: Tensor, threshold: float, tolerance: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return whether each map points at its class, is kept, and is of a class that is present."""
    axes = ("n_images", "k", "height", "width")
    check_tensor("maps", maps, *axes)
    check_tensor("masks", masks, *axes, floating=False)
    check_alike({"maps": maps, "masks": masks})
    check_number("threshold", threshold)
    points = pointing_game(maps.flatten(0, 1), masks.flatten(0, 1), tolerance=tolerance)
    pointed = points.view(maps.shape[:2]) > 0
    kept = maps.amax(dim=(2, 3)) >= threshold
    present = (masks > 0).flatten(2).any(dim=2)
    return pointed, kept, present


def seeds_iou(maps: Tensor, segmentations: Tensor, *, threshold: float = 0.2) -> Tensor:
    """Mean intersection over union of segmentation seeds made of maps.

    Parameters
    ----------
    maps : Tensor of shape (n_images, n_classes, height, width), in [0, 1]
        A scaled map for each class; zeros for a class that is not in the image.
    segmentations : Tensor of shape (n_images, height, width), int
        0 is the background, c + 1 is class c; negative pixels are not counted.
    threshold : float, default=0.2
        A pixel is background where no map reaches it; else it is of the class with the highest map.

    Returns
    -------
    Tensor of shape (), in [0, 1]; higher is better.
        The mean over the background and the classes that are in the segmentations or the seeds.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, n_classes, height, width),
        the segmentations not integers of the same size, or the threshold is no finite number.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 4.2; Kolesnikov, Lampert, "Seed, Expand and
    Constrain", ECCV 2016.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import seeds_iou
    >>> maps = torch.tensor([[[[1.0, 0.6, 0.1, 0.0]]]])  # of one class
    >>> seeds_iou(maps, torch.tensor([[[1, 0, 0, 0]]]))  # of 1/2, and 2/3 for the background
    tensor(0.5833)
    """
    check_tensor("maps", maps, "n_images", "n_classes", "height", "width")
    check_tensor("segmentations", segmentations, "n_images", "height", "width", floating=False)
    check_number("threshold", threshold)
    if segmentations.is_floating_point():
        raise ValueError(
            f"segmentations must be integers, 0 for the background; got {describe(segmentations)}."
        )
    if (len(maps), *maps.shape[2:]) != tuple(segmentations.shape):
        raise ValueError(
            "maps must be (n_images, n_classes, height, width) and segmentations (n_images, "
            f"height, width); got {tuple(maps.shape)} and {tuple(segmentations.shape)}."
        )
    highest = int(segmentations.max()) if segmentations.numel() else 0
    if highest > maps.shape[1]:
        raise ValueError(f"segmentations have a class {highest}; there are {maps.shape[1]} maps.")
    best = maps.max(dim=1)
    seeds = torch.where(best.values >= threshold, best.indices + 1, 0)
    counted = segmentations >= 0
    ious = []
    for label_ in range(maps.shape[1] + 1):
        seeded, true = (seeds == label_) & counted, segmentations == label_
        union = (seeded | true).sum()
        if union > 0:
            ious.append((seeded & true).sum() / union)
    return torch.stack(ious).mean() if ious else maps.new_tensor(float("nan"))


def _check_boxes_of_images(boxes: Any, n_images: int | None = None) -> list[Tensor]:
    """Return the boxes of each image as a float tensor (n_boxes, 4)."""
    if not isinstance(boxes, Sequence | Tensor | np.ndarray) or isinstance(boxes, str):
        raise ValueError(
            f"There must be a sequence of boxes for each image; got {describe(boxes)}."
        )
    if not len(boxes) or (n_images is not None and len(boxes) != n_images):
        wanted = "at least one image" if n_images is None else f"{n_images} images"
        raise ValueError(f"There must be boxes of {wanted}; got those of {len(boxes)}.")
    return [check_boxes(of_image) for of_image in boxes]


def check_boxes(boxes: Any) -> Tensor:
    """Return the boxes of one image as a float tensor (n_boxes, 4), each with some area."""
    try:
        numbers = boxes if isinstance(boxes, Tensor) else np.asarray(boxes, dtype=np.float64)
        corners = torch.as_tensor(numbers, dtype=torch.get_default_dtype())
    except (TypeError, ValueError):
        raise ValueError(
            f"A box is (x1, y1, x2, y2), four numbers; got {describe(boxes)}."
        ) from None
    if not corners.numel():
        return corners.reshape(0, 4)
    if corners.ndim > 2 or corners.shape[-1:] != (4,):
        raise ValueError(
            "The boxes of an image must be of shape (n_boxes, 4), (x1, y1, x2, y2) each; got "
            f"{tuple(corners.shape)}."
        )
    corners = corners.reshape(-1, 4)
    if not bool((corners[:, :2] < corners[:, 2:]).all()):
        raise ValueError(
            f"A box is (x1, y1, x2, y2) with x1 < x2 and y1 < y2; got {corners.tolist()[:3]}."
        )
    return corners


def _shares(masks: Tensor) -> Tensor:
    """Return how much of each pixel is the object's; whatever marks it in a mask of integers."""
    return masks if masks.is_floating_point() else masks != 0


def _check_masks(maps: Tensor, masks: Tensor) -> None:
    check_tensor("maps", maps, "n_images", "height", "width")
    if not isinstance(masks, Tensor) or maps.shape != masks.shape:
        came = tuple(masks.shape) if isinstance(masks, Tensor) else describe(masks)
        raise ValueError(
            f"There must be a mask of the map's size for each map; got masks of "
            f"{came} for maps of {tuple(maps.shape)}."
        )
    check_alike({"maps": maps, "masks": masks})
