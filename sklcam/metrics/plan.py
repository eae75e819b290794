"""What an evaluation computes, and whether it can: decided before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone
from torch import Tensor

from sklcam._validation import describe, suggestion
from sklcam.cam import GradCAM, Method, get_method
from sklcam.cam.targets import Target
from sklcam.explain.base import Explainer
from sklcam.images.labels import dataset_labels, labels_for
from sklcam.metrics.annotations import Annotations, is_by_class
from sklcam.metrics.cose import TRANSFORMATIONS
from sklcam.metrics.quantities import EXPLAINED, QUANTITIES, RANKS, closure
from sklcam.metrics.registry import (
    Metric,
    all_needs,
    available,
    get_metric,
    needs_of,
    option_checks,
    option_takers,
    required_options,
)

Params = Mapping[str, Mapping[str, Any]]
OutputScore = Callable[[Tensor], Tensor]

# The problem and the remedy: raised before any work, or by targets that turn out not to be classes.
NO_PROBABILITY = (
    "a target that is not a class, such as a callable, has no probability. Give score=, a function "
    "of the network's output that returns one number in [0, 1] per image."
)


@dataclass(frozen=True)
class Plan:
    """What is computed for every batch, in whichever process.

    Attributes
    ----------
    collected : tuple of str
        The metrics and quantities whose values are kept.
    metrics : dict of str to Metric
        The metrics that are collected, and those that go into them.
    method : Method
    quantities : frozenset of str
        Everything that they need.
    explained : dict of str to tuple of (Method, bool)
        By which method each quantity of the first pass is made, and whether it is scaled.
    options : dict of str to dict
        Options of metrics' functions and of quantities, by their names.
    score : callable or None
        What stands in for the probability.
    batch_size : int or None
        The largest number of changed images to run at a time.
    seed : int
    """

    collected: tuple[str, ...]
    metrics: dict[str, Metric]
    method: Method
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
    """Decide what is computed; see :class:`Plan`. ``needs`` are names of quantities."""
    collected = tuple(metrics)
    if any("consistency" in all_needs(metric) for metric in metrics.values()):
        # Images whose consistency is 0 because a map is constant are counted, for the warning.
        collected = (*collected, "constant_views")
    names = closure([*collected, *needs], lambda name: needs_of(name, metrics))
    # Blank maps of views are counted already, and their NaN shows in the consistency.
    looked_at = set(EXPLAINED).difference(["view_maps"] if "consistency" in metrics else [])
    if not looked_at.isdisjoint(names):
        collected = (*collected, "map_peaks")
    options = _route(metrics, params)
    if "neighbours" in names:
        method = _drawing_the_same(method, seed)
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
    return Plan(collected, used, method, quantities, explained, options, score, batch_size, seed)


def _drawing_the_same(method: Method, seed: int) -> Method:
    """Return a method that draws the same in each pass, so that maps differ only by the images."""
    unseeded = {
        name: seed
        for name, value in method.get_params().items()
        if name.split("__")[-1] == "random_state" and not isinstance(value, Integral)
    }
    return clone(method).set_params(**unseeded) if unseeded else method


def _explanation(name: str, method: Method, options: Mapping[str, Any]) -> tuple[Method, bool]:
    """Return how the maps of the first pass are made, and whether they are scaled."""
    if name == "view_maps":
        # Training makes maps without the ReLU consistent, so these are measured.
        return get_method(options.get("method") or GradCAM(relu=False)), True
    if name == "curve_maps" and not options.get("relu", True):
        if "relu" not in method.get_params(deep=False):
            raise ValueError(f"{method!r} has no ReLU to leave out. Leave relu at True.")
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
                        f"{option} is shared by several metrics, but given as {earlier!r} and as "
                        f"{value!r}. Give it once."
                    )
    return options


def check_required_options(params: Params | None, metrics: Mapping[str, Metric]) -> None:
    """Raise a ValueError if a metric has an option without a default, and it is not given."""
    for name, metric in metrics.items():
        given = (params or {}).get(name, {})
        missing = [option for option in required_options(metric) if option not in given]
        if missing:
            hint = (
                " rejection_threshold finds one on validation images."
                if name == "pointing_game_reject"
                else ""
            )
            raise ValueError(
                f"{name} has no default for {missing[0]}. Choose it: metric_params={{{name!r}: "
                f"{{{missing[0]!r}: ...}}}}.{hint}"
            )


def metrics_of_confidence(metrics: Mapping[str, Metric]) -> list[str]:
    """Return the names of the metrics that need the probability of the target."""
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
        raise ValueError(
            f"metric_params has options for unknown metrics: {unknown}. "
            f"{suggestion(unknown[0], known)}"
        )
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


def check_n_jobs(n_jobs: object) -> None:
    """Raise a ValueError unless joblib can count the processes."""
    if n_jobs is not None and not (isinstance(n_jobs, Integral) and n_jobs):
        raise ValueError(f"n_jobs must be None or an int other than 0; got {n_jobs!r}.")


def names_needing(metrics: Mapping[str, Metric], *quantities: str) -> str:
    """Return the names of the metrics that one of the quantities goes into, for a message."""
    needy = (name for name in metrics if not set(quantities).isdisjoint(all_needs(metrics[name])))
    return ", ".join(sorted(needy))


def check_objects(metrics: Mapping[str, Metric], annotations: Annotations) -> None:
    """Raise a ValueError if metrics need to know where objects are, and it is not given."""
    boxes, masks, references = annotations.boxes, annotations.masks, annotations.references
    of_boxes = sorted(
        name
        for name, metric in metrics.items()
        if not {"boxes", "class_boxes"}.isdisjoint(metric.needs)
    )
    if of_boxes and boxes is None:
        raise ValueError(f"{', '.join(of_boxes)} needs boxes. Give the true ones of each image.")
    of_masks = names_needing(metrics, "masks", "class_masks")
    if of_masks and boxes is None and masks is None:
        raise ValueError(
            f"{of_masks} needs boxes or masks. Give those of the objects in each image."
        )
    of_references = names_needing(metrics, "references")
    if of_references and references is None:
        raise ValueError(
            f"{of_references} needs references. Give a map to compare with for each image, such as "
            "where people look."
        )
    if references is not None and not of_references:
        raise ValueError(
            "references= is given, but none of the metrics uses it. 'reference_correlation' would; "
            "'rank_correlation' compares with occlusion."
        )


def check_objects_of_classes(
    metrics: Mapping[str, Metric],
    annotations: Annotations,
    *,
    explains_classes: bool,
    task: str | None,
) -> None:
    """Raise a ValueError if metrics need to know the class of each object, and it is not given."""
    boxes, masks = annotations.boxes, annotations.masks
    of_one = names_needing(metrics, "boxes", "masks")
    if of_one and not explains_classes and (is_by_class(boxes) or is_by_class(masks)):
        raise ValueError(
            f"{of_one}: boxes and masks by class need targets that are classes. Give those of the "
            "explained object, without a label."
        )
    for quantity, entries in (
        ("class_boxes", boxes),
        ("class_masks", boxes if masks is None else masks),
    ):
        needy = names_needing(metrics, quantity)
        if needy and not is_by_class(entries):
            if task == "multilabel":
                raise ValueError(
                    f"{needy}: images have several labels. Give boxes or masks by class, a dict by "
                    "label for each image."
                )
            if annotations.labels is None:
                labels_for(None, None, needy)  # an error that says so


def check_ranks(metrics: Mapping[str, Metric], classes: np.ndarray | None) -> None:
    """Raise a ValueError if there are fewer classes than are explained for each image."""
    for quantity, k in RANKS.items():
        needy = names_needing(metrics, quantity)
        if needy and (classes is None or len(classes) < k):
            found = "none" if classes is None else len(classes)
            raise ValueError(
                f"{needy}: the {k} highest-scoring classes are explained, and the estimator has "
                f"{found}. Leave this metric out."
            )


def check_has_probability(
    is_class: bool,
    metrics: Mapping[str, Metric],
    classes: np.ndarray | None = None,
    task: str | None = None,
) -> None:
    """Raise a ValueError if metrics need a probability, and the target has none."""
    needy = metrics_of_confidence(metrics)
    if needy and task == "regression":
        raise ValueError(
            f"{', '.join(needy)}: the network returns numbers, which are not a confidence. Give "
            "score=, a function of its output that returns one number in [0, 1] per image."
        )
    if needy and not is_class:
        raise ValueError(f"{', '.join(needy)}: {NO_PROBABILITY}")
    # With several labels per image, each has its own probability.
    if needy and task != "multilabel" and classes is not None and len(classes) == 1:
        raise ValueError(
            f"{', '.join(needy)}: the probability of a single class is always 1. Give score=, "
            "such as lambda output: output[:, 0].sigmoid() for one logit."
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
    needy = names_needing(metrics, "predictions", *RANKS)
    if not needy:
        return
    if classes is None:
        raise ValueError(f"{needy} needs classes, and the estimator has none.")
    if labels is None or labels.ndim != 1:  # several labels per image have been looked up
        return
    known, found = np.asarray(classes).tolist(), list(dict.fromkeys(labels.tolist()))
    if not set(known).intersection(found):
        raise ValueError(
            f"None of the labels in y is a class of the estimator: they are {found[:5]}, its "
            f"classes {known[:5]}{' ...' if len(known) > 5 else ''}. Give CAMExplainer classes=, "
            "the label of each output, in order."
        )


def check_predicts(metrics: Mapping[str, Metric], task: str | None) -> None:
    """Raise a ValueError if metrics ask whether a prediction stays, and that makes no sense."""
    needy = names_needing(metrics, "view_keeps_prediction", "cose_similarities")
    if needy and task == "regression":
        raise ValueError(
            f"{needy}: the network returns numbers, and any view changes them a little. Use "
            "'consistency', which does not depend on the prediction."
        )
    if needy and task in ("segmentation", "detection"):
        raise ValueError(
            f"{needy}: the network answers for each pixel or object, and views move these. Use "
            "'consistency', which does not depend on the prediction."
        )


def check_places(metrics: Mapping[str, Metric], question: Target) -> None:
    """Raise a ValueError if views would move the target."""
    needy = names_needing(metrics, "warp", "pass_of_view")
    if needy and question.is_placed:
        raise ValueError(
            f"{needy} compares views, in which {question!r} is elsewhere, or cut off. Choose a "
            "target that views keep, such as Pixels(label) without a mask, or leave the metric "
            "out."
        )


def check_colors(plan: Plan, *, is_network_input: bool, n_channels: int, n_axes: int = 2) -> None:
    """Raise a ValueError if colours cannot be changed, or the range of pixels is not known."""
    views = plan.options.get("warp", {}).get("views")
    changed = []
    if "warp" in plan.quantities and views and views.changes_colors:
        changed += [(repr(views), bool(views.contrast or views.color or views.grey))]
    if "cose_similarities" in plan.quantities:
        names = plan.options.get("cose_similarities", {}).get("transformations", TRANSFORMATIONS)
        changed += [("cose", not {"Color", "Contrast"}.isdisjoint(names))]
    for shown, is_of_colors in changed:
        if n_axes == 3:
            raise ValueError(
                f"{shown} changes colours, which volumes do not have. Use 'consistency', with "
                "views that crop, flip, turn and shift."
            )
        if is_network_input:
            raise ValueError(
                f"{shown} changes colours, which needs pixels in [0, 1], but X is the network's "
                "own input, in an unknown range. Give the images as files, pictures or arrays, "
                "with mean and std."
            )
        if is_of_colors and n_channels not in (1, 3):
            raise ValueError(
                f"{shown} changes contrast or colour, which only grey and RGB images have, and "
                f"these have {n_channels} channels. Leave these changes out, and grey."
            )


def check_maps_are_single(explainer: Explainer, plan: Plan) -> None:
    """Raise a ValueError if an image would have several maps, by layers or channels."""
    methods = [method for method, _ in plan.explained.values()]
    if not plan.quantities.isdisjoint(RANKS):
        methods.append(plan.method)
    check_one_map(explainer, methods, "evaluate")


def check_one_map(explainer: Explainer, methods: Iterable[Method], purpose: str) -> None:
    """Raise a ValueError if an image would have several maps by one of the methods."""
    n_layers = len(explainer.target_layers)
    for method in methods:
        if method.uses_layers and n_layers > 1 and explainer.layer_fusion is None:
            raise ValueError(
                f"layer_fusion=None keeps the maps of {n_layers} layers apart; {purpose} measures "
                'one map per image. Choose layer_fusion="mean" or "max", or one layer.'
            )
        if method.keeps_channels:
            raise ValueError(f'{purpose} measures one map per image. Leave channels="keep" out.')
