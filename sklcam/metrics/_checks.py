"""Checks of what is evaluated, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from numbers import Integral
from typing import Any

import numpy as np

from sklcam._validation import describe
from sklcam.explain.base import Explainer
from sklcam.images.labels import labels_for
from sklcam.metrics.masks import check_boxes
from sklcam.metrics.measurement import NO_PROBABILITY, Annotations, PerImage
from sklcam.metrics.plan import Plan, metrics_of_confidence
from sklcam.metrics.registry import Metric, all_needs


def check_n_jobs(n_jobs: object) -> None:
    """Raise a ValueError unless joblib can count the processes."""
    if n_jobs is not None and not (isinstance(n_jobs, Integral) and n_jobs):
        raise ValueError(f"n_jobs must be None or an int other than 0; got {n_jobs!r}.")


def names_needing(metrics: Mapping[str, Metric], quantity: str) -> str:
    """Return the names of the metrics that a quantity goes into, for a message."""
    return ", ".join(sorted(name for name in metrics if quantity in all_needs(metrics[name])))


def check_objects(
    metrics: Mapping[str, Metric], boxes: object | None, masks: object | None
) -> None:
    """Raise a ValueError if metrics need to know where the objects are, and nobody says so."""
    of_boxes = sorted(name for name, metric in metrics.items() if "boxes" in metric.needs)
    if of_boxes and boxes is None:
        raise ValueError(f"{', '.join(of_boxes)} needs boxes, the true ones of each image.")
    of_masks = names_needing(metrics, "masks")
    if of_masks and boxes is None and masks is None:
        raise ValueError(f"{of_masks}: needs boxes or masks, where the objects of each image are.")


def check_has_probability(is_class: bool, metrics: Mapping[str, Metric]) -> None:
    """Raise a ValueError if metrics need a probability, and the target is not a class."""
    needy = metrics_of_confidence(metrics)
    if needy and not is_class:
        raise ValueError(f"{', '.join(needy)}: {NO_PROBABILITY}")


def labels_if_needed(X: Any, y: Any, metrics: Mapping[str, Metric]) -> np.ndarray | None:
    """Return the true labels if they were given, or if a metric needs them."""
    needy = names_needing(metrics, "labels")
    if y is None and not needy:
        return None
    labels = labels_for(X, y, needy)
    if labels.ndim != 1:
        raise ValueError(f"y must be one label per image; got shape {labels.shape}.")
    return labels


def check_classes(
    metrics: Mapping[str, Metric], labels: np.ndarray | None, classes: np.ndarray | None
) -> None:
    """Raise a ValueError if no label is one of the classes; some may be new to the network."""
    needy = names_needing(metrics, "predictions")
    if not needy:
        return
    if classes is None:
        raise ValueError(f"{needy} needs classes, and the estimator has none.")
    if labels is None:
        return
    known, found = np.asarray(classes).tolist(), list(dict.fromkeys(labels.tolist()))
    if not set(known).intersection(found):
        raise ValueError(
            f"None of the labels in y is a class of the estimator: they are {found[:5]}, its "
            f"classes {known[:5]}{' ...' if len(known) > 5 else ''}. CAMExplainer takes classes=, "
            "the label of each output in their order."
        )


def check_lengths(annotations: Annotations, n_images: int) -> None:
    """Raise a ValueError unless there are annotations of each image, where there are any."""
    named = {"y": annotations.labels, "boxes": annotations.boxes, "masks": annotations.masks}
    for name, values in named.items():
        if values is not None and not isinstance(values, Sized):
            raise ValueError(
                f"{name} must be a sequence with an entry for each of {n_images} images; got "
                f"{describe(values)}."
            )
        if values is not None and len(values) != n_images:
            raise ValueError(f"{name} has {len(values)} entries for {n_images} images.")


def check_boxes_of_all(boxes: PerImage) -> None:
    """Raise a ValueError, which names the image, unless all boxes are boxes."""
    for i, corners in enumerate(() if boxes is None else boxes):
        try:
            check_boxes(corners)
        except ValueError as error:
            raise ValueError(f"boxes[{i}]: {error}") from None


def check_maps_are_single(explainer: Explainer, plan: Plan) -> None:
    """Raise a ValueError where an image would have several maps, by layers or channels."""
    n_layers = len(explainer.target_layers)
    for method, _ in plan.explained.values():
        if method.uses_layers and n_layers > 1 and explainer.layer_fusion is None:
            raise ValueError(
                f"layer_fusion=None keeps the maps of {n_layers} layers apart; evaluate measures "
                'one map per image: choose layer_fusion="mean" or "max", or one layer.'
            )
        if method.keeps_channels:
            raise ValueError('evaluate measures one map per image; leave channels="keep" out.')
