"""Segmentation seeds made of the maps of several classes."""

from __future__ import annotations

import torch
from torch import Tensor

from sklcam._validation import check_number, check_tensor, describe


def seeds_iou(maps: Tensor, segmentations: Tensor, *, threshold: float = 0.2) -> Tensor:
    """Mean intersection over union of segmentation seeds and the true segmentation.

    Parameters
    ----------
    maps : Tensor of shape (n_images, n_classes, height, width), in [0, 1]
        A scaled map for each class; zeros for a class that is not in the image.
    segmentations : Tensor of shape (n_images, height, width), int
        0 is the background, c + 1 is class c; negative pixels are not counted.
    threshold : float, default=0.2
        A pixel is background where no map reaches it; otherwise it belongs to the class with the
        highest map.

    Returns
    -------
    Tensor of shape (), in [0, 1]; higher is better.
        The mean over the background and the classes that are in the segmentations or the seeds.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (n_images, n_classes, height, width),
        the segmentations not integers of the same size, or the threshold is not a finite
        number.

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
