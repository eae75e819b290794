"""How much of a map lies inside the object."""

from __future__ import annotations

import torch
from torch import Tensor

from sklcam.metrics.masks import check_masks, mask_shares


def heatmap_ratio(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the map that lies inside the object.

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
    check_masks(maps, masks)
    total = maps.sum(dim=(1, 2))
    inside = (maps * mask_shares(masks)).sum(dim=(1, 2))
    # The comparison is false for NaN, which therefore stays NaN.
    is_empty = total <= 0
    return torch.where(is_empty, 0.0, inside / torch.where(is_empty, 1.0, total))


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
    check_masks(maps, masks)
    inside = mask_shares(masks).to(maps.dtype)
    outside = 1 - inside
    means = [(maps * part).sum(dim=(1, 2)) / part.sum(dim=(1, 2)) for part in (inside, outside)]
    return means[0] / means[1]
