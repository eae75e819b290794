"""Detectors of torchvision: lists of images in, lists of dicts out, and one tensor in between.

Targets, metrics and methods take tensors of one row per image. So the detections of a batch are put
into one, (n_images, n_detections, 6): four corners, the score, the label. Images with fewer than
the most of the batch are filled up with the label -1. Scores keep their graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

N_COLUMNS = 6
FILLED_UP = -1  # the label of a row that is no detection


def join_detections(found: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Put the detections of some images into one tensor.

    Parameters
    ----------
    found : sequence of mapping
        Of each image its "boxes" (k, 4), "scores" (k,) and "labels" (k,).

    Returns
    -------
    Tensor of shape (n_images, n_detections, 6)
        Filled up with the label -1, to one detection at least.

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
        # Where a box lies is no score: no gradient goes that way.
        boxes, labels = each["boxes"].detach().to(scores), each["labels"].to(scores)
        own = torch.cat([boxes, scores[:, None], labels[:, None]], dim=1)
        rows.append(torch.cat([own, filling.expand(most - len(own), -1)]))
    return torch.stack(rows)


def split_detections(joined: Tensor) -> list[dict[str, Tensor]]:
    """Return the detections of each image, of a tensor that ``join_detections`` has made.

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
    """Return how many labels a detector has, with that of the background; None if not known."""
    for where in (
        "roi_heads.box_predictor.cls_score.out_features",  # Faster R-CNN and what is made of it
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
    """Return what part of a detector's own input an image fills: the rest, on the right and below.

    Parameters
    ----------
    network : nn.Module
        A detector, whose ``transform`` resizes images and fills them up to a multiple of 32.
    size : tuple of (int, int)
        Height and width of the images.

    Returns
    -------
    tuple of (float, float), in (0, 1]

    Raises
    ------
    ValueError
        If the transform is not torchvision's own, of which this is known.
    """
    transform = network.transform
    is_known = type(transform) is GeneralizedRCNNTransform  # and none that derives from it
    if not (is_known and isinstance(transform, GeneralizedRCNNTransform)):
        raise ValueError(
            f"{type(network).__name__} prepares images by a {type(transform).__name__}, of which "
            "it is not known where it puts them: use torchvision's GeneralizedRCNNTransform."
        )
    blank = torch.zeros(len(transform.image_mean), *size)
    mode, transform.training = transform.training, False  # where it draws a size at random
    try:
        images, _ = transform([blank])
    finally:
        transform.training = mode
    height, width = images.image_sizes[0]
    return height / images.tensors.shape[-2], width / images.tensors.shape[-1]
