"""Boxes made from maps, compared with the true ones; and the pointing game.

Boxes are ``(x1, y1, x2, y2)``, edges of pixels, and ``(x1, y1, z1, x2, y2, z2)`` for volumes: see
:mod:`sklcam.metrics.masks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import find_objects, label
from torch import Tensor

from sklcam._validation import check_alike, check_maps, check_number, check_tensor, describe
from sklcam.cam.maps import sides
from sklcam.metrics.composites import ratio_or_zero
from sklcam.metrics.masks import check_boxes_of_images, check_masks, with_sides


def box_from_map(maps: Tensor, threshold: float = 0.2, *, spatial_dims: int = 2) -> Tensor:
    """Return the box around the largest connected part of each map.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
        The method's own maps, *not* scaled to [0, 1], which would move the threshold; only values
        above 0 count.
    threshold : float, default=0.2
        The share of the map's maximum from which a pixel counts: 0.2 for embedding networks, 0.15
        in Grad-CAM's localisation.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images, 4), float
        ``(x1, y1, x2, y2)``, edges of pixels; zeros for a map without a positive value, NaN for one
        with NaN. For volumes (n_images, 6), ``(x1, y1, z1, x2, y2, z2)``: z counts slices. Pixels
        are connected along rows and columns, and slices. If several parts are equally large, the
        first in raster order counts.

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
    check_maps(spatial_dims, maps=maps)
    check_number("threshold, a share of the maximum,", threshold, 0, 1)
    peaks = maps.amax(dim=sides(maps), keepdim=True)
    marked = ((maps >= threshold * peaks) & (maps > 0)).cpu().numpy()
    n_numbers = 2 * len(sides(maps))
    corners = np.array([_largest_box(pixels) for pixels in marked]).reshape(-1, n_numbers)
    boxes = torch.as_tensor(corners, dtype=maps.dtype).to(maps.device)
    return torch.where(peaks.flatten(1).isnan(), torch.nan, boxes)


def _largest_box(marked: np.ndarray) -> list[int]:
    parts, n_parts = label(marked)
    if n_parts == 0:
        return [0] * (2 * marked.ndim)
    largest = np.bincount(parts.ravel())[1:].argmax()
    along = find_objects(parts)[largest][::-1]  # columns, x, come first
    return [part.start for part in along] + [part.stop for part in along]


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of pairs of boxes.

    Parameters
    ----------
    boxes, others : Tensor of shape (..., 4), or (..., 6) for volumes
        They broadcast.

    Returns
    -------
    Tensor of shape (...,), in [0, 1]; NaN for boxes of NaN

    Raises
    ------
    ValueError
        If they are not tensors whose last axis is of length 4, or 6, or do not broadcast.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import box_iou
    >>> box_iou(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 3.0, 2.0]))
    tensor(0.3333)
    """
    for name, given in (("boxes", boxes), ("others", others)):
        if not isinstance(given, Tensor) or given.ndim == 0 or given.shape[-1] not in (4, 6):
            raise ValueError(
                f"{name} must be a Tensor of shape (..., 4), or (..., 6) for volumes; got "
                f"{describe(given)}."
            )
    try:
        torch.broadcast_shapes(boxes.shape, others.shape)
    except RuntimeError:
        raise ValueError(
            f"boxes and others must broadcast; got shapes {tuple(boxes.shape)} and "
            f"{tuple(others.shape)}."
        ) from None
    n = boxes.shape[-1] // 2
    low = torch.maximum(boxes[..., :n], others[..., :n])
    high = torch.minimum(boxes[..., n:], others[..., n:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(box[..., n:] - box[..., :n]).clamp(min=0).prod(dim=-1) for box in (boxes, others)]
    return ratio_or_zero(intersection, areas[0] + areas[1] - intersection)


def localization_accuracy(
    boxes: Tensor, truth: Sequence[Tensor], *, iou_threshold: float = 0.5
) -> Tensor:
    """Whether each box fits one of the true boxes of its image: GT-known localisation.

    The box comes from the map of the image's known class. If it comes from the map of the predicted
    class, top-1 localisation is this times whether the class is right.

    Parameters
    ----------
    boxes : Tensor of shape (n_images, 4)
        See :func:`box_from_map`.
    truth : sequence of Tensor of shape (n_boxes, 4)
        One tensor per image, with any number of boxes of the class.
    iou_threshold : float, default=0.5
        The smallest intersection over union at which a box fits.

    Returns
    -------
    Tensor of shape (n_images,), 0 or 1; higher is better. 0 for an image without true boxes, NaN
    for a box of NaN.

    Raises
    ------
    ValueError
        If the boxes are not a tensor of shape (n_images, 4), or the true ones are not for as many
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
    corners = check_boxes_of_images(truth, len(boxes))
    fits = [_fits(box, true, iou_threshold) for box, true in zip(boxes, corners, strict=True)]
    return _unless_nan(torch.stack(fits), boxes)


def localization_error(
    boxes: Tensor,
    predicted: Tensor,
    truth: Sequence[Tensor],
    labels: Tensor,
    *,
    iou_threshold: float = 0.5,
) -> Tensor:
    """Top-k localisation error, as ILSVRC defines it.

    An image is localised if one of the k predicted classes is right *and* the box of that class
    fits one of the true boxes.

    Parameters
    ----------
    boxes : Tensor of shape (n_images, k, 4)
        A box for each predicted class, from that class's map.
    predicted : Tensor of shape (n_images, k), int
        The classes; :class:`sklcam.cam.TopK` explains them.
    truth : sequence of Tensor of shape (n_boxes, 4)
        The true boxes of each image's class.
    labels : Tensor of shape (n_images,), int
        The true classes.
    iou_threshold : float, default=0.5

    Returns
    -------
    Tensor of shape (n_images,), 0 or 1; lower is better. NaN where a box is NaN.

    Raises
    ------
    ValueError
        If the shapes do not agree, there are true boxes for more or fewer images, a true box is not
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
    corners = check_boxes_of_images(truth, len(boxes))
    errors = []
    for candidates, classes, true_boxes, label_ in zip(
        boxes, predicted, corners, labels, strict=True
    ):
        fits = torch.stack([_fits(box, true_boxes, iou_threshold) for box in candidates])
        errors.append(~(fits & (classes == label_)).any())
    return _unless_nan(torch.stack(errors), boxes)


def _unless_nan(decided: Tensor, values: Tensor) -> Tensor:
    """Return 0 or 1 for each image, and NaN where the values behind it are NaN."""
    dtype = values.dtype if values.is_floating_point() else torch.get_default_dtype()
    return torch.where(values.flatten(1).isnan().any(dim=1), torch.nan, decided.to(dtype))


def _fits(box: Tensor, truth: Tensor, iou_threshold: float) -> Tensor:
    truth = with_sides(truth, box.shape[-1] // 2)
    return (box_iou(box, truth.to(box)) >= iou_threshold).any()


# The pointing game


def pointing_game(
    maps: Tensor, masks: Tensor, *, tolerance: int = 0, spatial_dims: int = 2
) -> Tensor:
    """Whether the map's brightest pixel lies on the object.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width)
        If several pixels are brightest, the first in raster order counts.
    masks : Tensor of shape (n_images, height, width), bool or in [0, 1]
        Where the object is.
    tolerance : int, default=0
        How many pixels from the object a hit may be; 15 in the original game.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), 0 or 1; higher is better. 0 for a constant map, which has no
    brightest pixel, and NaN for one with NaN.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, height, width), or the masks
        not a tensor of the same shape on the same device; or if the tolerance is not a number >= 0.

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
    check_masks(maps, masks, spatial_dims)
    check_number("tolerance, a number of pixels,", tolerance, 0)
    flat = maps.flatten(1)
    points = flat.argmax(dim=1)
    axes = sides(maps)
    away = torch.zeros_like(points).reshape(-1, *[1] * len(axes))  # squares of distances
    for axis in reversed(axes):
        n = maps.shape[axis]
        along = torch.arange(n, device=maps.device) - (points % n)[:, None]
        away = away + (along**2).reshape(-1, *[n if other == axis else 1 for other in axes])
        points = points // n
    hits = ((away <= tolerance**2) & (masks > 0)).flatten(1).any(dim=1)
    # A constant map points nowhere, although argmax finds its first pixel.
    return _unless_nan(hits & (flat.amax(dim=1) > flat.amin(dim=1)), maps)


def pointing_game_with_rejection(
    maps: Tensor, masks: Tensor, *, threshold: float, tolerance: int = 0
) -> Tensor:
    """Play the pointing game for classes that may be absent, with the option to reject them.

    Parameters
    ----------
    maps : Tensor of shape (n_images, k, height, width)
        Maps of the k predicted classes, *not* scaled: scaled ones all peak at 1.
    masks : Tensor of shape (n_images, k, height, width), bool or in [0, 1]
        Where each class is; empty for a class that is absent.
    threshold : float
        A class is rejected if the maximum of its map is lower.
    tolerance : int, default=0
        See :func:`pointing_game`.

    Returns
    -------
    Tensor of shape (n_images, k), 0 or 1; higher is better.
        1 where the class is present, kept and pointed at, or absent and rejected; NaN for a map
        with NaN. The mean is the accuracy of Grad-CAM's version of the game, which takes recall
        into account.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, k, height, width), or the
        masks not a tensor of the same shape on the same device; if the threshold is not a finite
        number, or the tolerance not a number >= 0.

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
    won = torch.where(present, pointed & kept, ~kept)
    return _unless_nan(won.flatten(), maps.flatten(0, 1)).view(won.shape)


class PrecisionRecall(NamedTuple):
    """Precision and recall of the pointing game with rejection.

    Attributes
    ----------
    precision : Tensor of shape (), in [0, 1]
        Share of the kept maps that point at their class. NaN if none was kept; like the recall, NaN
        if a map has NaN.
    recall : Tensor of shape (), in [0, 1]
        Share of the present classes whose map was kept and points at them. NaN if none is present.

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
    """Precision and recall over all images of the pointing game with the option to reject.

    Parameters
    ----------
    maps, masks, threshold, tolerance
        See :func:`pointing_game_with_rejection`.

    Returns
    -------
    PrecisionRecall
        Higher is better for both; a higher threshold trades recall for precision.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, k, height, width), or the
        masks not a tensor of the same shape on the same device; if the threshold is not a finite
        number, or the tolerance not a number >= 0.

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
    hits = torch.where(maps.isnan().any(), torch.nan, hits)
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
