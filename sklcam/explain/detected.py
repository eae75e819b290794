"""The objects that a detector finds, in the frames of the images."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from sklcam.cam.detections import to_image
from sklcam.explain.base import Explainer
from sklcam.networks.dense import dense_task
from sklcam.networks.detectors import n_labels, split_detections
from sklcam.networks.dry_run import unwrap


def check_detected(labels: Any, network: nn.Module) -> None:
    """Raise a ValueError unless there is one label for each class number of a detector."""
    n_known = n_labels(unwrap(network))
    if n_known not in (None, len(labels)) or len({*labels}) < len(labels):
        raise ValueError(
            f"The detector has {n_known} labels, of which label 0 is the background, but classes= "
            f"has {len({*labels})} different names. Give one name per label, in order, as in "
            '["background", "cat", "dog"].'
        )


def advice_on_detectors(network: nn.Module, error: object = None) -> str | None:
    """Return advice for a failed network that is, or contains, a detector; otherwise None."""
    network = unwrap(network)
    if dense_task(network) == "detection":
        dtype = next(network.parameters()).dtype
        if "nms" not in str(error):
            return None
        return (
            f": {type(network).__name__} does not compute in {dtype} on this device, as "
            "torchvision's non-maximum suppression does not support it here. Use float32, by "
            "network.float(), or another device."
        )
    for name, part in network.named_modules():
        if dense_task(part) == "detection":
            return (
                f". It contains a torchvision detector, a {type(part).__name__}, which takes a "
                f"list of images and finds objects. Explain the detector alone, network.{name}, or "
                "let the module around it take a batch of images and return a Tensor of scores."
            )
    return None


def detections(explainer: Explainer, X: Any) -> list[dict[str, np.ndarray]]:
    """Return the objects that a detector finds.

    Parameters
    ----------
    explainer : Explainer
        An explainer of a detector.
    X : images

    Returns
    -------
    list of dict
        One dict per image: "boxes" (k, 4), x1, y1, x2, y2 in pixels of the original image,
        "scores" (k,) and "labels" (k,).
    """
    found = []
    for batch in explainer.open(X).batches():
        output = explainer.output_of(batch.inputs)
        for own, size in zip(split_detections(output), batch.sizes, strict=True):
            boxes = own["boxes"]
            if tuple(size) != batch.inputs.size:
                boxes = to_image(boxes, size, explainer.adapter.resize, batch.inputs.size)
            labels = own["labels"].cpu().numpy()
            named = labels if explainer.classes_ is None else explainer.classes_[labels]
            found.append(
                {
                    "boxes": boxes.float().cpu().numpy(),
                    "scores": own["scores"].float().cpu().numpy(),
                    "labels": named,
                }
            )
    return found
