"""What an evaluation computes, decided before any work: metrics, quantities, methods, options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sklearn.base import clone
from torch import Tensor

from sklcam._validation import describe
from sklcam.cam import GradCAM, Method, get_method
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
