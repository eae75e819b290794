"""Checks before any work: whether an evaluation is possible with what is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sklcam._validation import check_callable
from sklcam.cam.base import check_batch_size
from sklcam.cam.targets import Target
from sklcam.explain.base import Explainer
from sklcam.explain.opened import OpenedImages
from sklcam.metrics.annotations import Annotations, check_lengths, check_references
from sklcam.metrics.plan import (
    OutputScore,
    Params,
    Plan,
    check_classes,
    check_colors,
    check_has_probability,
    check_labels_are_there,
    check_maps_are_single,
    check_metric_params,
    check_objects,
    check_objects_of_classes,
    check_places,
    check_predicts,
    check_ranks,
    check_required_options,
)
from sklcam.metrics.registry import Metric


def check_asked(
    metrics: Mapping[str, Metric],
    X: Any,
    y: Any,
    given: Annotations,
    *,
    target: Any,
    score: OutputScore | None,
    metric_params: Params | None,
    batch_size: int | None,
) -> None:
    """Raise a ValueError for mistakes that can be found without the estimator."""
    check_objects(metrics, given)
    if (isinstance(target, Target) and target.several) or (
        not callable(target) and np.ndim(target) == 2
    ):
        raise ValueError("evaluate explains one class per image. Give one label for each.")
    check_metric_params(metric_params, metrics)
    check_required_options(metric_params, metrics)
    check_batch_size(batch_size)
    if score is not None:
        check_callable("score", score, "of the network's output, one number per image")
    elif callable(target):
        check_has_probability(False, metrics)
    check_labels_are_there(X, y, metrics)


def check_measurable(
    explainer: Explainer,
    opened: OpenedImages,
    question: Target,
    plans: Mapping[str, Plan],
    metrics: Mapping[str, Metric],
    given: Annotations,
    *,
    has_score: bool,
) -> None:
    """Raise a ValueError if the metrics cannot be computed for these images and this estimator."""
    task, classes = explainer.adapter.task, explainer.classes_
    if question.ragged:
        raise ValueError(
            "evaluate measures one map per image. Give target=Box(boxes, labels) with one box "
            "for each, or explain one word of each text, or the text as a whole."
        )
    check_predicts(metrics, task)
    check_places(metrics, question)
    for plan in plans.values():
        check_maps_are_single(explainer, plan)
        check_colors(
            plan,
            is_network_input=opened.is_network_input,
            n_channels=opened.n_channels,
            n_axes=len(opened.image_size),
        )
    if not has_score:
        check_has_probability(question.names_classes, metrics, classes, task)
    check_lengths(given, len(opened))
    check_ranks(metrics, classes)
    check_classes(metrics, given.labels, classes)
    check_objects_of_classes(metrics, given, explains_classes=question.names_classes, task=task)
    check_references(given.references, len(opened.image_size))
