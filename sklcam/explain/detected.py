"""What a detector detects, in the frames of the images."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklcam.cam.detections import to_image
from sklcam.explain.base import Explainer
from sklcam.networks.detectors import split_detections


def detections(explainer: Explainer, X: Any) -> list[dict[str, np.ndarray]]:
    """Return the objects that a detector finds.

    Parameters
    ----------
    explainer : Explainer
        Of a detector.
    X : images

    Returns
    -------
    list of dict
        Of each image "boxes" (k, 4), x1, y1, x2, y2 in pixels of the image at its own size,
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
