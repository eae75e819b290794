"""Scorers: the metrics in the form that scikit-learn's model selection takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils.metadata_routing import UNUSED

from sklcam._validation import describe, suggestion
from sklcam.metrics.evaluate import METRICS, OPTIONS, check_metric_params, evaluate

_OF_EVALUATE = frozenset(inspect.signature(evaluate).parameters) - {
    "estimator", "X", "y", "metrics", "boxes", "masks", "metric_params", "progress",
}  # fmt: skip
_NAMES = {name if METRICS[name] else f"neg_{name}": name for name in METRICS}


class ExplanationScorer(BaseEstimator):
    """A scorer that asks the estimator for explanations; made by :func:`get_scorer`.

    Parameters
    ----------
    name : str
        The metric.
    options : dict or None, default=None
        Keyword arguments of :func:`evaluate` and of the metric.

    Raises
    ------
    NotFittedError
        When it is called, if the estimator has not been fitted.
    ValueError
        When it is called, if there is no such scorer, or :func:`evaluate` refuses what it is given.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> scorer = get_scorer("neg_complexity", target=0)
    >>> scorer(explainer, images)
    -0.375
    """

    # The estimator is the scorer's first argument, not metadata that a search could route to it.
    __metadata_request__score = {"estimator": UNUSED}

    def __init__(self, name: str, options: dict[str, Any] | None = None):
        self.name = name
        self.options = options

    def score(
        self, estimator: Any, X: Any, y: Any = None, boxes: Any = None, masks: Any = None
    ) -> float:
        """Return the metric of the estimator on X; higher is better."""
        options = self.options or {}
        of_metric = OPTIONS.get(_options_name(self.name), set())
        own = {key: value for key, value in options.items() if key in of_metric}
        shared = {key: value for key, value in options.items() if key not in of_metric}
        params = {self.name: own} if own else {}
        return _score(estimator, X, y, [self.name], shared, params, boxes, masks)[self.name]

    __call__ = score


class ExplanationScorers(BaseEstimator):
    """A scorer that returns several metrics at once; made by :func:`explanation_scorer`.

    Parameters
    ----------
    metrics : sequence of str
    options : dict or None, default=None
        Keyword arguments of :func:`evaluate`.
    metric_params : dict or None, default=None
        Options of the metrics, by name.

    Raises
    ------
    NotFittedError
        When it is called, if the estimator has not been fitted.
    ValueError
        When it is called, if there is no such scorer, or :func:`evaluate` refuses what it is given.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> scorer = explanation_scorer(["neg_complexity", "sparsity"], target=0)
    >>> {name: round(value, 3) for name, value in scorer(explainer, images).items()}
    {'neg_complexity': -0.375, 'sparsity': 0.583}
    """

    __metadata_request__score = {"estimator": UNUSED}

    def __init__(
        self,
        metrics: Sequence[str],
        options: dict[str, Any] | None = None,
        metric_params: dict[str, dict[str, Any]] | None = None,
    ):
        self.metrics = metrics
        self.options = options
        self.metric_params = metric_params

    def score(
        self, estimator: Any, X: Any, y: Any = None, boxes: Any = None, masks: Any = None
    ) -> dict[str, float]:
        """Return the metrics of the estimator on X; higher is better for each."""
        params = self.metric_params or {}
        return _score(estimator, X, y, self.metrics, self.options or {}, params, boxes, masks)

    __call__ = score


def get_scorer(name: str, **options: Any) -> ExplanationScorer:
    """Return a scorer for ``cross_validate``, ``GridSearchCV`` and their kin.

    Parameters
    ----------
    name : str
        One of ``sklcam.metrics.METRICS``; with ``"neg_"`` in front if lower is better, as
        scikit-learn has it: ``"neg_average_drop"``, ``"neg_complexity"``, ``"neg_dauc"``.
    **options
        Keyword arguments of :func:`evaluate` (``method``, ``target``, ``batch_size``,
        ``random_state``) and of the metric (``n_steps`` of ``"iauc"``). ``"consistency"`` takes
        ``method`` and ``views`` as :func:`consistency_score` does.

    Returns
    -------
    callable of (estimator, X, y=None, boxes=None, masks=None) that returns a float
        Higher is better. It pickles, and works in parallel searches. Boxes and masks reach it by
        metadata routing, after ``set_score_request(boxes=True)``.

    Raises
    ------
    ValueError
        If there is no such metric, or it has no such option; the message names those there are.

    Examples
    --------
    >>> from sklcam.metrics import get_scorer
    >>> get_scorer("consistency", random_state=1)
    ExplanationScorer(name='consistency', options={'random_state': 1})
    """
    of_metric = OPTIONS.get(_options_name(_known(name)), set())
    known = of_metric | _OF_EVALUATE
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{name} has no options {unknown}; it takes {', '.join(sorted(known))}.")
    return ExplanationScorer(name, options or None)


def explanation_scorer(
    metrics: Sequence[str],
    *,
    metric_params: dict[str, dict[str, Any]] | None = None,
    **options: Any,
) -> ExplanationScorers:
    """Return one scorer of several metrics, which pays for what they share once.

    Parameters
    ----------
    metrics : sequence of str
        Names as of :func:`get_scorer`; ``"accuracy"`` goes with them.
    metric_params : dict of dict or None, default=None
        Options of the metrics, by name.
    **options
        Keyword arguments of :func:`evaluate`, for all.

    Returns
    -------
    callable of (estimator, X, y=None, boxes=None, masks=None) that returns a dict of floats
        For ``GridSearchCV(scoring=..., refit="adcc")``. Higher is better for each.

    Raises
    ------
    ValueError
        If there is no such metric.

    Examples
    --------
    >>> from sklcam.metrics import explanation_scorer
    >>> explanation_scorer(["accuracy", "adcc", "neg_complexity"]).metrics
    ['accuracy', 'adcc', 'neg_complexity']
    """
    unknown = sorted(set(options) - _OF_EVALUATE)
    if unknown:
        raise ValueError(
            f"explanation_scorer has no options {unknown}; those of one metric go into "
            "metric_params."
        )
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        raise ValueError(f"metrics must be a sequence of names; got {describe(metrics)}.")
    names = [_known(name) for name in metrics]
    if not names:
        raise ValueError("metrics is empty; name at least one.")
    check_metric_params({_options_name(name): of for name, of in _items(metric_params)})
    return ExplanationScorers(names, options or None, metric_params)


def _items(metric_params: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(metric_params, Mapping | None):
        raise ValueError(
            f"metric_params must be a dict of options by metric; got {describe(metric_params)}."
        )
    return (metric_params or {}).items()


def _known(name: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"A scorer has a name, such as 'adcc'; got {describe(name)}.")
    if name in METRICS and not METRICS[name]:
        raise ValueError(f"Lower is better for {name!r}, and higher for scorers: use 'neg_{name}'.")
    if name not in _NAMES:
        raise ValueError(f"There is no scorer {name!r}. {suggestion(name, _NAMES)}")
    return name


def _options_name(name: str) -> str:
    """Return under which name evaluate takes the options of a scorer's metric."""
    metric = _NAMES.get(name, name)
    return "iauc" if metric == "dauc" else metric


def _score(
    estimator: Any,
    X: Any,
    y: Any,
    names: Sequence[str],
    shared: dict[str, Any],
    params: dict[str, dict[str, Any]],
    boxes: Any,
    masks: Any,
) -> dict[str, float]:
    """Evaluate once and return each metric's figure, signed so that higher is better."""
    wanted = [_NAMES[_known(name)] for name in names]
    result = evaluate(
        estimator,
        X,
        y,
        metrics=wanted,
        boxes=boxes,
        masks=masks,
        metric_params={_options_name(name): options for name, options in _items(params)},
        progress=False,
        **shared,
    )
    means = result.means()
    return {name: means[_NAMES[name]] * (1 if name in METRICS else -1) for name in names}
