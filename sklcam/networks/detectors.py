"""Detectors of torchvision: lists of images in, lists of dicts out, and one tensor in between.

Targets, metrics and methods take tensors of one row per image. The detections of a batch are
therefore joined into one tensor (n_images, n_detections, 6): four coordinates of the box, the score
and the label. Images with fewer detections than others of the batch are padded with rows of label
-1. Scores keep their graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

N_COLUMNS = 6
FILLED_UP = -1  # the label of a row that is not a detection


def join_detections(found: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Put the detections of some images into one tensor.

    Parameters
    ----------
    found : sequence of mapping
        For each image its "boxes" (k, 4), "scores" (k,) and "labels" (k,).

    Returns
    -------
    Tensor of shape (n_images, n_detections, 6)
        Padded with rows of label -1, to at least one row per image.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks.detectors import join_detections
    >>> one = {"boxes": torch.ones(1, 4), "scores": torch.ones(1), "labels": torch.tensor([7])}
    >>> none = {key: value[:0] for key, value in one.items()}
    >>> join_detections([one, none])[:, 0]
    tensor([[ 1.,  1.,  1.,  1.,  1.,  7.],
            [ 0.,  0.,  0.,  0.,  0., -1.]])
    """
    most = max(1, *(len(each["scores"]) for each in found))
    filling = found[0]["scores"].new_tensor([0, 0, 0, 0, 0, FILLED_UP])
    rows = []
    for each in found:
        scores = each["scores"]
        # The position of a box is not a score, so no gradient passes through it.
        boxes, labels = each["boxes"].detach().to(scores), each["labels"].to(scores)
        own = torch.cat([boxes, scores[:, None], labels[:, None]], dim=1)
        rows.append(torch.cat([own, filling.expand(most - len(own), -1)]))
    return torch.stack(rows)


def split_detections(joined: Tensor) -> list[dict[str, Tensor]]:
    """Return the detections of each image from a tensor that ``join_detections`` has made.

    Parameters
    ----------
    joined : Tensor of shape (n_images, n_detections, 6)

    Returns
    -------
    list of dict
        "boxes" (k, 4), "scores" (k,) and "labels" (k,), int64.
    """
    return [
        {"boxes": own[:, :4], "scores": own[:, 4], "labels": own[:, 5].long()}
        for own in (rows[rows[:, 5] != FILLED_UP] for rows in joined)
    ]


def n_labels(network: nn.Module) -> int | None:
    """Return how many labels a detector has, including the background; None if not known."""
    for where in (
        "roi_heads.box_predictor.cls_score.out_features",  # Faster R-CNN and networks based on it
        "head.classification_head.num_classes",  # RetinaNet and FCOS
        "head.classification_head.num_columns",  # SSD
    ):
        found: Any = network
        for name in where.split("."):
            found = getattr(found, name, None)
        if isinstance(found, int):
            return found
    return None


def extent_within(network: nn.Module, size: tuple[int, ...]) -> tuple[float, float]:
    """Return the part of a detector's own input that an image fills; padding is right and below.

    Parameters
    ----------
    network : nn.Module
        A detector, whose ``transform`` resizes images and pads them to a multiple of 32.
    size : tuple of (int, int)
        Height and width of the images.

    Returns
    -------
    tuple of (float, float), in (0, 1]
        The fractions of the height and of the width.

    Raises
    ------
    ValueError
        If the transform is not torchvision's own, the only one for which this is known.
    """
    transform = network.transform
    is_known = type(transform) is GeneralizedRCNNTransform  # a subclass may differ
    if not (is_known and isinstance(transform, GeneralizedRCNNTransform)):
        raise ValueError(
            f"{type(network).__name__} prepares images with a {type(transform).__name__}, and it "
            "is not known where this places them. Use torchvision's GeneralizedRCNNTransform."
        )
    blank = torch.zeros(len(transform.image_mean), *size)
    mode, transform.training = transform.training, False  # in training it draws a random size
    try:
        images, _ = transform([blank])
    finally:
        transform.training = mode
    height, width = images.image_sizes[0]
    return height / images.tensors.shape[-2], width / images.tensors.shape[-1]
