"""Boxes made from maps, against the true ones.

Boxes are ``(x1, y1, x2, y2)``, edges of pixels: see :mod:`sklcam.metrics.masks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import find_objects, label
from torch import Tensor

from sklcam._validation import check_maps, check_number, check_tensor, describe
from sklcam.metrics.masks import check_boxes_of_images


def box_from_map(maps: Tensor, threshold: float = 0.2) -> Tensor:
    """Return the box around the largest connected part of each map.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), >= 0
    threshold : float, default=0.2
        The share of the map's maximum from which a pixel counts: 0.2 for embedding networks, 0.15
        in Grad-CAM's localisation.

    Returns
    -------
    Tensor of shape (n_images, 4), float
        ``(x1, y1, x2, y2)``, edges of pixels; zeros for a map of zeros. Pixels are connected along
        rows and columns. Of several parts of the same size, the first in raster order counts.

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
    boxes = np.array([_largest_box(pixels) for pixels in marked], dtype=np.float64).reshape(-1, 4)
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
    for name, given in (("boxes", boxes), ("others", others)):
        if not isinstance(given, Tensor) or given.ndim == 0 or given.shape[-1] != 4:
            raise ValueError(f"{name} must be a Tensor of shape (..., 4); got {describe(given)}.")
    try:
        torch.broadcast_shapes(boxes.shape, others.shape)
    except RuntimeError:
        raise ValueError(
            f"boxes and others must broadcast; got shapes {tuple(boxes.shape)} and "
            f"{tuple(others.shape)}."
        ) from None
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(dim=-1) for box in (boxes, others)]
    union = areas[0] + areas[1] - intersection
    return torch.where(union > 0, intersection / torch.where(union > 0, union, 1.0), 0.0)


def localization_accuracy(
    boxes: Tensor, truth: Sequence[Tensor], *, iou_threshold: float = 0.5
) -> Tensor:
    """Whether each box fits one of the true boxes of its image.

    Parameters
    ----------
    boxes : Tensor of shape (n_images, 4)
        See :func:`box_from_map`.
    truth : sequence of Tensor of shape (n_boxes, 4)
        One tensor per image, with any number of boxes of the class.
    iou_threshold : float, default=0.5
        The least intersection over union of a box that fits.

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
    corners = check_boxes_of_images(truth, len(boxes))
    fits = [_fits(box, true, iou_threshold) for box, true in zip(boxes, corners, strict=True)]
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
    corners = check_boxes_of_images(truth, len(boxes))
    errors = []
    for candidates, classes, true_boxes, label_ in zip(
        boxes, predicted, corners, labels, strict=True
    ):
        fits = torch.stack([_fits(box, true_boxes, iou_threshold) for box in candidates])
        errors.append(~(fits & (classes == label_)).any())
    return torch.stack(errors).to(boxes.dtype)


def _fits(box: Tensor, truth: Tensor, iou_threshold: float) -> Tensor:
    return (box_iou(box, truth.to(box)) >= iou_threshold).any()
