"""What an evaluation computes, and whether it can: all of it is decided before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from sklcam._validation import describe
from sklcam.cam import GradCAM, Method, get_method
from sklcam.explain.base import Explainer
from sklcam.images.labels import dataset_labels, labels_for
from sklcam.metrics.masks import as_array, check_boxes
from sklcam.metrics.quantities import EXPLAINED, QUANTITIES, closure
from sklcam.metrics.registry import (
    Metric,
    all_needs,
    available,
    get_metric,
    needs_of,
    option_checks,
    option_takers,
)

Params = Mapping[str, Mapping[str, Any]]
OutputScore = Callable[[Tensor], Tensor]
PerImage = Sequence[Any] | None

# What is wrong, and the remedy: said at the door, and by targets that turn out to be no class.
NO_PROBABILITY = (
    "a target that is not a class, such as a callable, has no probability; give score=, a function "
    "of the network's output that returns one number in [0, 1] per image."
)


@dataclass(frozen=True)
class Plan:
    """What is computed of every batch, in whichever process.

    Attributes
    ----------
    collected : tuple of str
        The metrics and quantities whose values are kept.
    metrics : dict of str to Metric
        Those that are collected, and those that go into them.
    quantities : frozenset of str
        All that they need.
    explained : dict of str to tuple of (Method, bool)
        How each quantity of the first pass explains, and whether it is scaled.
    options : dict of str to dict
        Of metrics' functions and of quantities, by their names.
    score : callable or None
        What stands in for the probability.
    batch_size : int or None
        Most changed images that go through the network at a time.
    seed : int
    """

    collected: tuple[str, ...]
    metrics: dict[str, Metric]
    quantities: frozenset[str]
    explained: dict[str, tuple[Method, bool]]
    options: dict[str, dict[str, Any]]
    score: OutputScore | None
    batch_size: int | None
    seed: int


def make_plan(
    metrics: Mapping[str, Metric],
    params: Params | None,
    *,
    method: Method,
    needs: Iterable[str],
    score: OutputScore | None,
    batch_size: int | None,
    seed: int,
) -> Plan:
    """Decide what is computed; parameters as those of :class:`Plan`, ``needs`` are quantities."""
    # Images whose consistency is 0 because a map is constant are counted, for the warning.
    collected = (*metrics, *(["constant_views"] if "consistency" in metrics else []))
    names = closure([*collected, *needs], lambda name: needs_of(name, metrics))
    if not set(EXPLAINED).difference(["view_maps"]).isdisjoint(names):
        collected = (*collected, "map_peaks")
    options = _route(metrics, params)
    explained = {
        name: _explanation(name, method, options.get(name, {}))
        for name in EXPLAINED
        if name in names
    }
    used = {
        name: metrics[name] if name in metrics else get_metric(name)
        for name in names
        if name not in QUANTITIES
    }
    quantities = frozenset(names) & QUANTITIES.keys()
    return Plan(collected, used, quantities, explained, options, score, batch_size, seed)


def _explanation(name: str, method: Method, options: Mapping[str, Any]) -> tuple[Method, bool]:
    """Return how the maps of the first pass are made, and whether they are scaled."""
    if name == "view_maps":
        # Training keeps maps without the ReLU consistent, and so they are measured.
        return get_method(options.get("method") or GradCAM(relu=False)), True
    if name == "curve_maps" and not options.get("relu", True):
        if "relu" not in method.get_params(deep=False):
            raise ValueError(f"{method!r} has no relu to leave out.")
        return clone(method).set_params(relu=False), True
    return method, name != "raw_maps"


def _route(metrics: Mapping[str, Metric], params: Params | None) -> dict[str, dict[str, Any]]:
    """Return the options of each function and each quantity, by its name."""
    options: dict[str, dict[str, Any]] = {}
    for name, given in (params or {}).items():
        metric = metrics[name] if name in metrics else get_metric(name)
        for taker, checks in option_takers(metric).items():
            for option in checks.keys() & given.keys():
                # What several metrics share, such as the curves of insertion and deletion, takes
                # its options from any of them.
                value = given[option]
                earlier = options.setdefault(taker, {}).setdefault(option, value)
                if earlier is not value and earlier != value:
                    raise ValueError(
                        f"{option} is shared by several metrics, and given as {earlier!r} and as "
                        f"{value!r}."
                    )
    return options


def metrics_of_confidence(metrics: Mapping[str, Metric]) -> list[str]:
    """Return the names of the metrics that need the probability of what is explained."""
    return sorted(name for name, metric in metrics.items() if "confidence" in all_needs(metric))


def check_metric_params(params: Params | None, metrics: Mapping[str, Metric] | None = None) -> None:
    """Raise a ValueError unless options are of metrics that have them, and pass their checks.

    Parameters
    ----------
    params : mapping of str to mapping, or None
        Options by the name of the metric.
    metrics : mapping of str to Metric or None, default=None
        Metrics beside the registered ones.

    Raises
    ------
    ValueError
        If there is no such metric or option, or a value is refused.
    """
    if not isinstance(params, Mapping | None):
        raise ValueError(
            f"metric_params must be a dict of options by metric; got {describe(params)}."
        )
    known = {name: get_metric(name) for name in available()} | dict(metrics or {})
    unknown = sorted(set(params or {}) - known.keys())
    if unknown:
        raise ValueError(f"metric_params has options for unknown metrics: {unknown}.")
    for name, options in (params or {}).items():
        if not isinstance(options, Mapping):
            raise ValueError(
                f"metric_params takes a dict of options of {name}; got {describe(options)}."
            )
        checks = option_checks(known[name])
        wrong = sorted(set(options) - checks.keys())
        if wrong:
            raise ValueError(
                f"{name} has no options {wrong}; metric_params takes {_listed(known.values())}."
            )
        for option, value in options.items():
            checks[option](option, value)


def _listed(metrics: Iterable[Metric]) -> str:
    """Return the options that there are, for a message."""
    of_each = {metric.name: sorted(option_checks(metric)) for metric in metrics}
    return ", ".join(f"{name}: {options}" for name, options in of_each.items() if options)


# What is evaluated, and on what


@dataclass(frozen=True, eq=False)
class Annotations:
    """What is known of images: their labels, and where their objects are.

    Attributes
    ----------
    labels : ndarray of shape (n_images,) or (n_images, n_classes), or None
        In the form of predictions.
    boxes : list of Tensor of shape (n_boxes, 4), or None
    masks : sequence of array-like of shape (height, width), or None
    """

    labels: np.ndarray | None
    boxes: PerImage
    masks: PerImage

    def take(self, rows: slice) -> Annotations:
        """Return the annotations of some of the images."""
        all_of_them = (self.labels, self.boxes, self.masks)
        return Annotations(*(None if each is None else each[rows] for each in all_of_them))  # type: ignore[arg-type]


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


def check_has_probability(
    is_class: bool,
    metrics: Mapping[str, Metric],
    classes: np.ndarray | None = None,
    task: str | None = None,
) -> None:
    """Raise a ValueError if metrics need a probability, and the target is not one of classes."""
    needy = metrics_of_confidence(metrics)
    if needy and task == "regression":
        raise ValueError(
            f"{', '.join(needy)}: the network returns numbers, which are no confidence; give "
            "score=, a function of its output that returns one number in [0, 1] per image."
        )
    if needy and not is_class:
        raise ValueError(f"{', '.join(needy)}: {NO_PROBABILITY}")
    # Of several labels, one has a probability of its own.
    if needy and task != "multilabel" and classes is not None and len(classes) == 1:
        raise ValueError(
            f"{', '.join(needy)}: of a single class the probability is 1, whatever the network "
            "says; give score=, such as lambda output: output[:, 0].sigmoid() for one logit."
        )


def check_labels_are_there(X: Any, y: Any, metrics: Mapping[str, Metric]) -> bool:
    """Return whether true labels were given, or are needed; a ValueError if there are none."""
    needy = names_needing(metrics, "labels")
    if y is None and needy and dataset_labels(X) is None:
        labels_for(X, y, needy)  # an error that says so
    return y is not None or bool(needy)


def labels_if_needed(
    explainer: Explainer, X: Any, y: Any, metrics: Mapping[str, Metric]
) -> np.ndarray | None:
    """Return the true labels, in the form of predictions, if given or if a metric needs them."""
    if not check_labels_are_there(X, y, metrics):
        return None
    labels = explainer.expected_labels(X, y, names_needing(metrics, "labels"))
    if labels.ndim != 1 and explainer.adapter.task not in ("multilabel", "regression"):
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
    if labels is None or labels.ndim != 1:  # those of several an image have been looked up
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


def checked_boxes(boxes: PerImage) -> list[Tensor] | None:
    """Return boxes of each image on the host; a ValueError, which names the image, for others."""
    if boxes is None:
        return None
    checked = []
    for i, corners in enumerate(boxes):
        try:
            checked.append(check_boxes(as_array(corners)))
        except ValueError as error:
            raise ValueError(f"boxes[{i}]: {error}") from None
    corners = torch.cat([torch.zeros(1, 4), *checked])
    if corners.min() >= 0 and corners.max() <= 1 and (corners != corners.round()).any():
        raise ValueError(
            "All boxes are within [0, 1], and would cover a pixel at most: they must be in pixels "
            "of each image, not in shares of its width and height."
        )
    return checked


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
