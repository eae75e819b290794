"""Masks of objects, how much of a map lies inside them, and seeds of segmentations from maps.

Maps are taken as they are. Shares of the maximum, energies and means are meant for the method's own
map after the ReLU: scaling by minimum and maximum would remove its floor.

Boxes are ``(x1, y1, x2, y2)`` in pixels of the map: from the left and upper edge of the box to the
right and lower one. Edges are not centres of pixels: a box from 0 to the width is as wide as the
map. Boxes of volumes are ``(x1, y1, z1, x2, y2, z2)``: z counts slices, along the depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import (
    check_alike,
    check_maps,
    check_number,
    check_sides,
    check_tensor,
    describe,
)
from sklcam.cam.maps import sides


def box_masks(boxes: Sequence[Tensor], size: tuple[int, ...]) -> Tensor:
    """Turn boxes into masks: the share of each pixel that lies in one of the image's boxes.

    Parameters
    ----------
    boxes : sequence of Tensor of shape (n_boxes, 4)
        One tensor per image, with any number of boxes; for volumes (n_boxes, 6), each
        ``(x1, y1, z1, x2, y2, z2)``.
    size : tuple of two ints, or of three
        Height and width; depth, height and width for volumes.

    Returns
    -------
    Tensor of shape (n_images, height, width) or (n_images, depth, height, width), in [0, 1]
        Where boxes overlap, the largest share. Boxes are cut off at the edge of the image.

    Raises
    ------
    ValueError
        If a box is not (x1, y1, x2, y2) with x1 < x2 and y1 < y2, or has a different number of
        sides than the size.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import box_masks
    >>> box_masks([torch.tensor([[0.5, 0.0, 2.0, 1.0]])], (2, 3))
    tensor([[[0.5000, 1.0000, 0.0000],
             [0.0000, 0.0000, 0.0000]]])
    """
    size = check_sides(size, "size")
    n_axes, masks = len(size), []
    for image_boxes in check_boxes_of_images(boxes):
        corners = with_sides(image_boxes, n_axes)
        products = corners.new_ones(len(corners), *[1] * n_axes)
        for axis, length in enumerate(size):
            low = n_axes - 1 - axis  # x is the last axis
            covered = _coverage(corners[:, low], corners[:, n_axes + low], length)
            shape = [length if other == axis else 1 for other in range(n_axes)]
            products = products * covered.reshape(len(corners), *shape)
        # The maximum of no boxes at all is an empty mask.
        empty = corners.new_zeros(1, *size)
        masks.append(torch.cat([empty, products.expand(-1, *size)]).amax(dim=0))
    return torch.stack(masks)


def with_sides(boxes: Tensor, n_axes: int) -> Tensor:
    """Return boxes of images with ``n_axes`` axes; a ValueError if they have a different number."""
    if not len(boxes):
        return boxes.reshape(0, 2 * n_axes)
    if boxes.shape[1] != 2 * n_axes:
        wanted = "(x1, y1, x2, y2)" if n_axes == 2 else "(x1, y1, z1, x2, y2, z2)"
        raise ValueError(
            f"The boxes of {'pictures' if n_axes == 2 else 'volumes'} are {wanted}; got "
            f"{boxes.shape[1]} numbers per box."
        )
    return boxes


def _coverage(low: Tensor, high: Tensor, length: int) -> Tensor:
    """Return how much of each of the unit intervals [i, i + 1] lies between low and high."""
    left = torch.arange(length, device=low.device, dtype=low.dtype)
    return (torch.minimum(high[:, None], left + 1) - torch.maximum(low[:, None], left)).clamp(0, 1)


def check_boxes_of_images(boxes: Any, n_images: int | None = None) -> list[Tensor]:
    """Return the boxes of each image as a float tensor (n_boxes, 4 or 6); a ValueError if not."""
    if not isinstance(boxes, Sequence | Tensor | np.ndarray) or isinstance(boxes, str):
        raise ValueError(
            f"There must be a sequence of boxes for each image; got {describe(boxes)}."
        )
    if not len(boxes) or (n_images is not None and len(boxes) != n_images):
        wanted = "at least one image" if n_images is None else f"{n_images} images"
        raise ValueError(f"There must be boxes for {wanted}; got boxes for {len(boxes)}.")
    return [check_boxes(image_boxes) for image_boxes in boxes]


def check_boxes(boxes: Any) -> Tensor:
    """Return the boxes of one image as a float tensor (n_boxes, 4 or 6); each has an extent."""
    try:
        numbers = boxes if isinstance(boxes, Tensor) else as_array(boxes).astype(np.float64)
        corners = torch.as_tensor(numbers, dtype=torch.get_default_dtype())
    except (TypeError, ValueError):
        raise ValueError(
            "A box is (x1, y1, x2, y2), four numbers, or six, (x1, y1, z1, x2, y2, z2), for a "
            f"volume; got {describe(boxes)}."
        ) from None
    if not corners.numel():
        return corners.reshape(0, 4)
    if corners.ndim > 2 or corners.shape[-1] not in (4, 6):
        raise ValueError(
            "The boxes of an image must be of shape (n_boxes, 4), (x1, y1, x2, y2) each, or "
            "(n_boxes, 6), (x1, y1, z1, x2, y2, z2), for a volume; got "
            f"{tuple(corners.shape)}."
        )
    corners = corners.reshape(-1, corners.shape[-1])
    n_axes = corners.shape[1] // 2
    if not bool((corners[:, :n_axes] < corners[:, n_axes:]).all()):
        wanted = "(x1, y1, x2, y2) with x1 < x2 and y1 < y2"
        if n_axes == 3:
            wanted = "(x1, y1, z1, x2, y2, z2) with x1 < x2, y1 < y2 and z1 < z2"
        raise ValueError(f"A box is {wanted}; got {corners.tolist()[:3]}.")
    return corners


def as_array(values: Any) -> np.ndarray:
    """Return numbers, or tensors on any device, as an array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        values = values.float() if values.dtype == torch.bfloat16 else values
    elif isinstance(values, list | tuple) and any(isinstance(value, Tensor) for value in values):
        values = [as_array(value) for value in values]
    return np.asarray(values)


def as_mask(mask: Any) -> Tensor:
    """Return a mask as a tensor of bool, or of shares in [0, 1]; a ValueError for others."""
    if isinstance(mask, Tensor) and not mask.is_floating_point():
        return mask != 0  # on its device, without waiting for it
    array = as_array(mask)
    if array.dtype.kind in "biu":
        return torch.as_tensor(array != 0)
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            "A mask must be bool, an integer that is 0 outside the object, or a float in [0, 1]; "
            f"got {array.dtype}{' beyond [0, 1]' if array.dtype.kind == 'f' else ''}."
        )
    return torch.as_tensor(array)


def check_masks(maps: Tensor, masks: Tensor, spatial_dims: int = 2) -> None:
    """Raise a ValueError unless there is a mask for each map, of its size and on its device."""
    check_maps(spatial_dims, maps=maps)
    if not isinstance(masks, Tensor) or maps.shape != masks.shape:
        given = tuple(masks.shape) if isinstance(masks, Tensor) else describe(masks)
        raise ValueError(
            f"There must be a mask of the map's size for each map; got masks of "
            f"{given} for maps of {tuple(maps.shape)}."
        )
    check_alike({"maps": maps, "masks": masks})


def mask_shares(masks: Tensor) -> Tensor:
    """Return the share of each pixel that is the object's; any integer but 0 marks all of it."""
    return masks if masks.is_floating_point() else masks != 0


def heatmap_ratio(maps: Tensor, masks: Tensor, *, spatial_dims: int = 2) -> Tensor:
    """Share of the map that lies inside the object.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), >= 0
    masks : Tensor of shape (n_images, height, width), bool, integer or float in [0, 1]
        Where the object is: a segmentation, 0 outside, or :func:`box_masks`.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

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
    check_masks(maps, masks, spatial_dims)
    axes = sides(maps)
    total = maps.sum(dim=axes)
    inside = (maps * mask_shares(masks)).sum(dim=axes)
    # The comparison is false for NaN, which therefore stays NaN.
    is_empty = total <= 0
    return torch.where(is_empty, 0.0, inside / torch.where(is_empty, 1.0, total))


def inside_outside_ratio(maps: Tensor, masks: Tensor, *, spatial_dims: int = 2) -> Tensor:
    """Mean of the map inside the object, over its mean outside.

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), >= 0
    masks : Tensor of shape (n_images, height, width), bool or in [0, 1]
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

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
    check_masks(maps, masks, spatial_dims)
    inside = mask_shares(masks).to(maps.dtype)
    outside = 1 - inside
    axes = sides(maps)
    means = [(maps * part).sum(dim=axes) / part.sum(dim=axes) for part in (inside, outside)]
    return means[0] / means[1]


IGNORED = 255  # the label of unknown pixels, as in PASCAL VOC


def seeds_from_maps(
    maps: Tensor,
    *,
    threshold: float = 0.2,
    saliency: Tensor | None = None,
    background: float = 0.1,
    overlap: Literal["smaller", "unknown"] = "smaller",
) -> Tensor:
    """Turn the maps of the classes of an image into seeds of a segmentation, by SEC's rule.

    A pixel belongs to a class if the class's map reaches a share of its maximum there. Where
    classes overlap, the one whose seed has the smaller area wins. The least salient pixels that no
    class marks are background. The rest are unknown.

    Parameters
    ----------
    maps : Tensor of shape (n_images, n_classes, height, width)
        The method's own map of each class, *not* scaled to [0, 1]; only values above 0 count.
        Zeros for a class that is not in the image.
    threshold : float, default=0.2
        The share of its maximum that a class's map must reach.
    saliency : Tensor of shape (n_images, height, width) or None, default=None
        How salient each pixel is, whatever the class: the paper takes the gradient's. None is the
        highest of the maps, each as a share of its maximum.
    background : float, default=0.1
        The share of an image's pixels, the least salient ones, that are background; pixels as
        salient as the last of them are background, too.
    overlap : {"smaller", "unknown"}, default="smaller"
        Whether a pixel that several classes mark belongs to the smaller seed, or is unknown.

    Returns
    -------
    Tensor of shape (n_images, height, width), int64
        0 is the background, c + 1 is class c, and 255 marks unknown pixels. In an image whose
        saliency is constant or NaN, all pixels that no class marks are unknown; in one whose maps
        have NaN, all pixels are.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, n_classes, height, width)
        with at most 254 classes, the saliency not one of (n_images, height, width) on the same
        device, one of the shares outside 0 to 1, or the overlap neither of the two.

    References
    ----------
    Kolesnikov, Lampert, "Seed, Expand and Constrain", ECCV 2016, section 4.1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import seeds_from_maps
    >>> maps = torch.tensor([[[[5.0, 3.0, 0.5, 0.0]], [[0.0, 2.0, 0.1, 0.0]]]])  # of two classes
    >>> seeds_from_maps(maps)  # both mark the second pixel, and the second class marks less
    tensor([[[  1,   2, 255,   0]]])
    """
    check_tensor("maps", maps, "n_images", "n_classes", "height", "width")
    check_number("threshold, a share of the maximum,", threshold, 0, 1)
    check_number("background, a share of the pixels,", background, 0, 1)
    if overlap not in ("smaller", "unknown"):
        raise ValueError(f'overlap must be "smaller" or "unknown"; got {describe(overlap)}.')
    n_classes = maps.shape[1]
    if not 0 < n_classes < IGNORED:
        raise ValueError(f"There must be maps of 1 to {IGNORED - 1} classes; got {n_classes}.")
    peaks = maps.amax(dim=(2, 3), keepdim=True)
    if saliency is None:
        saliency = (maps.clamp(min=0) / torch.where(peaks > 0, peaks, 1.0)).amax(dim=1)
    check_tensor("saliency", saliency, "n_images", "height", "width")
    check_alike({"saliency": saliency, "the maps of a class": maps[:, 0]})
    marked = (maps >= threshold * peaks) & (maps > 0)
    areas = marked.sum(dim=(2, 3), keepdim=True).expand_as(marked)
    smallest = torch.where(marked, areas, marked[0, 0].numel() + 1).argmin(dim=1)
    seeds = torch.full_like(smallest, IGNORED)
    flat = saliency.flatten(1)
    # In decimals, as people mean it: 0.07 * 100 is 7.000000000000001 in floats.
    n_least = math.ceil(round(background * flat.shape[1], 6))
    if n_least:
        last = flat.kthvalue(n_least, dim=1).values[:, None, None]
        tells = (flat.amin(dim=1) < flat.amax(dim=1))[:, None, None]  # false for NaN, too
        seeds = torch.where((saliency <= last) & tells, 0, seeds)
    seeds = torch.where(marked.any(dim=1), smallest + 1, seeds)
    if overlap == "unknown":
        seeds = torch.where(marked.sum(dim=1) > 1, IGNORED, seeds)
    return torch.where(peaks.isnan().any(dim=1), IGNORED, seeds)


def seeds_iou(
    maps: Tensor,
    segmentations: Tensor,
    *,
    threshold: float = 0.2,
    saliency: Tensor | None = None,
    background: float = 0.1,
) -> Tensor:
    """Mean intersection over union of segmentation seeds and the true segmentation.

    Parameters
    ----------
    maps, threshold, saliency, background
        See :func:`seeds_from_maps`.
    segmentations : Tensor of shape (n_images, height, width), int
        0 is the background, c + 1 is class c; pixels that are negative or 255 are not counted.

    Returns
    -------
    Tensor of shape (), in [0, 1]; higher is better.
        The mean over the background and the classes that are in the segmentations or the seeds. A
        pixel without a seed counts as missed by its class. NaN if a map has NaN.

    Raises
    ------
    ValueError
        As for :func:`seeds_from_maps`; or if the segmentations are not integers of the maps' size,
        or have a class without a map.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 4.2; Kolesnikov, Lampert, "Seed, Expand and
    Constrain", ECCV 2016.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import seeds_iou
    >>> maps = torch.tensor([[[[5.0, 3.0, 0.5, 0.0]]]])  # of one class; the seeds are 1, 1, 255, 0
    >>> seeds_iou(maps, torch.tensor([[[1, 0, 0, 0]]]))  # of 1/2, and 1/3 for the background
    tensor(0.4167)
    """
    seeds = seeds_from_maps(maps, threshold=threshold, saliency=saliency, background=background)
    check_tensor("segmentations", segmentations, "n_images", "height", "width", floating=False)
    if segmentations.is_floating_point():
        raise ValueError(
            f"segmentations must be integers, 0 for the background; got {describe(segmentations)}."
        )
    if seeds.shape != segmentations.shape:
        raise ValueError(
            "maps must be (n_images, n_classes, height, width) and segmentations (n_images, "
            f"height, width); got {tuple(maps.shape)} and {tuple(segmentations.shape)}."
        )
    known = torch.where(_counted(segmentations), segmentations, 0)
    highest = int(known.amax()) if known.numel() else 0
    if highest > maps.shape[1]:
        raise ValueError(
            f"segmentations have a class {highest}, and there are {maps.shape[1]} maps. Give a map "
            "for each class."
        )
    shared, union = label_overlaps(seeds, segmentations, maps.shape[1] + 1)
    mean = (shared / union).nanmean()  # a class that is nowhere has 0 / 0
    return torch.where(maps.isnan().any(), torch.nan, mean)


def _counted(segmentations: Tensor, ignored: int = IGNORED) -> Tensor:
    return (segmentations >= 0) & (segmentations != ignored)


def label_overlaps(
    found: Tensor, truth: Tensor, n_labels: int, ignored: int = IGNORED
) -> tuple[Tensor, Tensor]:
    """Count, for each label, the pixels that two label maps share and those that either has.

    An intersection over union is the ratio of the two, each summed over images.

    Parameters
    ----------
    found, truth : Tensor of one shape, int
    n_labels : int
        The labels are 0 to n_labels - 1; a pixel found to be anything else has none.
    ignored : int, default=255
        Pixels whose truth is this label, or negative, are not counted.

    Returns
    -------
    shared, either : Tensor of shape (n_labels,), int64
    """
    counted = _counted(truth, ignored)
    pairs = [((found == label) & counted, truth == label) for label in range(n_labels)]
    shared = torch.stack([(one & other).sum() for one, other in pairs])
    return shared, torch.stack([(one | other).sum() for one, other in pairs])
