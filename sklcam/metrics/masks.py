"""Masks of objects: made of boxes, or given by a user, and the checks of both.

Boxes are ``(x1, y1, x2, y2)`` in pixels of the map: from the left and upper edge of the box to the
right and lower one. Edges are not centres of pixels: a box from 0 to the width is as wide as the
map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import check_alike, check_size, check_tensor, describe


def box_masks(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Turn boxes into masks: the share of each pixel that lies in one of the image's boxes.

    Parameters
    ----------
    boxes : sequence of Tensor of shape (n_boxes, 4)
        One tensor per image, with any number of boxes.
    size : tuple of two ints
        Height and width.

    Returns
    -------
    Tensor of shape (n_images, height, width), in [0, 1]
        Where boxes overlap, the largest share. Boxes are cut off at the edge of the image.

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
    for corners in check_boxes_of_images(boxes):
        rows = _coverage(corners[:, 1], corners[:, 3], height)
        columns = _coverage(corners[:, 0], corners[:, 2], width)
        products = rows[:, :, None] * columns[:, None, :]
        # The maximum of no boxes at all is an empty mask.
        empty = products.new_zeros(1, height, width)
        masks.append(torch.cat([empty, products]).amax(dim=0))
    return torch.stack(masks)


def _coverage(low: Tensor, high: Tensor, length: int) -> Tensor:
    """Return how much of each of the unit intervals [i, i + 1] lies between low and high."""
    left = torch.arange(length, device=low.device, dtype=low.dtype)
    return (torch.minimum(high[:, None], left + 1) - torch.maximum(low[:, None], left)).clamp(0, 1)


def check_boxes_of_images(boxes: Any, n_images: int | None = None) -> list[Tensor]:
    """Return the boxes of each image as a float tensor (n_boxes, 4); a ValueError for others."""
    if not isinstance(boxes, Sequence | Tensor | np.ndarray) or isinstance(boxes, str):
        raise ValueError(
            f"There must be a sequence of boxes for each image; got {describe(boxes)}."
        )
    if not len(boxes) or (n_images is not None and len(boxes) != n_images):
        wanted = "at least one image" if n_images is None else f"{n_images} images"
        raise ValueError(f"There must be boxes of {wanted}; got those of {len(boxes)}.")
    return [check_boxes(image_boxes) for image_boxes in boxes]


def check_boxes(boxes: Any) -> Tensor:
    """Return the boxes of one image as a float tensor (n_boxes, 4); each must have an area."""
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


def as_mask(mask: Any) -> Tensor:
    """Return a mask as a tensor of bool, or of shares in [0, 1]; a ValueError for others."""
    array = np.asarray(mask)
    if array.dtype.kind in "biu":
        return torch.as_tensor(array != 0)
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            "A mask must be bool, an integer that is 0 outside the object, or a float in [0, 1]; "
            f"got {array.dtype}{' beyond [0, 1]' if array.dtype.kind == 'f' else ''}."
        )
    return torch.as_tensor(array)


def check_masks(maps: Tensor, masks: Tensor) -> None:
    """Raise a ValueError unless there is a mask for each map, of its size and on its device."""
    check_tensor("maps", maps, "n_images", "height", "width")
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
