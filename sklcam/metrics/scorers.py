"""Scorers: the metrics in the form that scikit-learn's model selection uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.metadata_routing import UNUSED

from sklcam._validation import check_number, describe, suggestion
from sklcam.explain.base import AnyMethod
from sklcam.explain.nested import AnyEstimator
from sklcam.images.views import ViewSampler
from sklcam.metrics.annotations import PerImage
from sklcam.metrics.evaluate import evaluate
from sklcam.metrics.plan import Params, check_metric_params
from sklcam.metrics.registry import Metric, available, get_metric, option_checks

_EVALUATE_OPTIONS = frozenset(inspect.signature(evaluate).parameters) - {
    "estimator", "X", "y", "metrics", "boxes", "masks", "references", "groups", "metric_params",
    "progress",
}  # fmt: skip


class ExplanationScorer(BaseEstimator):
    """A scorer that asks the estimator for explanations; made by :func:`get_scorer`.

    Parameters
    ----------
    metric : str or Metric
    options : dict or None, default=None
        Keyword arguments of :func:`evaluate` and of the metric.

    Raises
    ------
    NotFittedError
        When it is called, if the estimator has not been fitted.
    ValueError
        When it is called, if there is no such scorer, or :func:`evaluate` refuses its arguments.

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

    def __init__(self, metric: str | Metric, options: dict[str, Any] | None = None):
        self.metric = metric
        self.options = options

    def score(
        self,
        estimator: AnyEstimator,
        X: Any,
        y: Any = None,
        boxes: PerImage = None,
        masks: PerImage = None,
        references: PerImage = None,
    ) -> float:
        """Return the metric of the estimator on X; higher is better."""
        metric, options = _metric_of(self.metric), self.options or {}
        # Options of the metric take precedence over evaluate's of the same name: consistency has a
        # method of its own.
        own = {name: options[name] for name in option_checks(metric).keys() & options.keys()}
        shared = {name: value for name, value in options.items() if name not in own}
        scorer = ExplanationScorers([self.metric], shared, {metric.name: own} if own else None)
        (score,) = scorer.score(estimator, X, y, boxes, masks, references).values()
        return score

    __call__ = score


class ExplanationScorers(BaseEstimator):
    """A scorer that returns several metrics at once; made by :func:`explanation_scorer`.

    Parameters
    ----------
    metrics : sequence of str or Metric
    options : dict or None, default=None
        Keyword arguments of :func:`evaluate`.
    metric_params : dict or None, default=None
        Options of the metrics, by name.

    Raises
    ------
    NotFittedError
        When it is called, if the estimator has not been fitted.
    ValueError
        When it is called, if there is no such scorer, or :func:`evaluate` refuses its arguments.

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
        metrics: Sequence[str | Metric],
        options: dict[str, Any] | None = None,
        metric_params: Params | None = None,
    ):
        self.metrics = metrics
        self.options = options
        self.metric_params = metric_params

    def score(
        self,
        estimator: AnyEstimator,
        X: Any,
        y: Any = None,
        boxes: PerImage = None,
        masks: PerImage = None,
        references: PerImage = None,
    ) -> dict[str, float]:
        """Return the metrics of the estimator on X; higher is better for each."""
        wanted = {_scorer_name(metric): _metric_of(metric) for metric in self.metrics}
        method = (self.options or {}).get("method")
        if isinstance(method, Mapping | list | tuple):
            raise ValueError(f"A scorer takes one method; got method={describe(method)}.")
        means = evaluate(
            estimator,
            X,
            y,
            metrics=list(wanted.values()),
            boxes=boxes,
            masks=masks,
            references=references,
            metric_params=_by_metric(self.metric_params),
            progress=False,
            **self.options or {},
        ).means()
        signs = {name: 1 if metric.higher_is_better else -1 for name, metric in wanted.items()}
        return {name: signs[name] * means[metric.name] for name, metric in wanted.items()}

    __call__ = score


def get_scorer(metric: str | Metric, **options: Any) -> ExplanationScorer:
    """Return a scorer for ``cross_validate``, ``GridSearchCV`` and the like.

    Parameters
    ----------
    metric : str or Metric
        One of :func:`available`; with ``"neg_"`` in front if lower is better, as in scikit-learn:
        ``"neg_average_drop"``, ``"neg_complexity"``, ``"neg_dauc"``. A :class:`Metric` is negated
        if lower is better.
    **options
        Keyword arguments of :func:`evaluate` (``method``, ``target``, ``batch_size``,
        ``random_state``) and of the metric (``n_steps`` of ``"iauc"``). ``"consistency"`` takes
        ``method`` and ``views`` as :func:`consistency_score` does.

    Returns
    -------
    callable of (estimator, X, y=None, boxes=None, masks=None, references=None)
        It returns a float. Higher is better. It pickles, and works in parallel searches. Boxes,
        masks and references reach it by metadata routing, after ``set_score_request(boxes=True)``.

    Raises
    ------
    ValueError
        If there is no such metric or option; the message names those that exist.

    Examples
    --------
    >>> from sklcam.metrics import get_scorer
    >>> get_scorer("consistency", random_state=1)
    ExplanationScorer(metric='consistency', options={'random_state': 1})
    """
    known = option_checks(_metric_of(metric)).keys() | _EVALUATE_OPTIONS
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"{_scorer_name(metric)} has no options {unknown}; it takes {', '.join(sorted(known))}."
        )
    return ExplanationScorer(metric, options or None)


def explanation_scorer(
    metrics: Sequence[str | Metric],
    *,
    metric_params: Params | None = None,
    **options: Any,
) -> ExplanationScorers:
    """Return one scorer of several metrics, which computes what they share only once.

    Parameters
    ----------
    metrics : sequence of str or Metric
        See :func:`get_scorer`; ``"accuracy"`` goes with them.
    metric_params : dict of dict or None, default=None
        Options of the metrics, by name.
    **options
        Keyword arguments of :func:`evaluate`, for all.

    Returns
    -------
    callable of (estimator, X, y=None, boxes=None, masks=None, references=None)
        It returns a dict of floats, for ``GridSearchCV(scoring=..., refit="adcc")``. Higher is
        better for each. A :class:`Metric` goes by its name, with ``"neg_"`` in front if lower is
        better.

    Raises
    ------
    ValueError
        If there is no such metric or option.

    Examples
    --------
    >>> from sklcam.metrics import explanation_scorer
    >>> explanation_scorer(["accuracy", "adcc", "neg_complexity"]).metrics
    ['accuracy', 'adcc', 'neg_complexity']
    """
    unknown = sorted(set(options) - _EVALUATE_OPTIONS)
    if unknown:
        raise ValueError(
            f"explanation_scorer has no options {unknown}; those of one metric go into "
            "metric_params."
        )
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        raise ValueError(f"metrics must be a sequence of names; got {describe(metrics)}.")
    given = list(metrics)
    if not given:
        raise ValueError("metrics is empty. Name at least one.")
    named = {metric.name: metric for metric in map(_metric_of, given)}
    check_metric_params(_by_metric(metric_params), named)
    return ExplanationScorers(given, options or None, metric_params)


def consistent_and_accurate(
    tolerance: float = 0.01, *, accuracy: str = "accuracy", consistency: str = "consistency"
) -> Callable[[Mapping[str, Any]], int]:
    """Return a function that chooses the most consistent of a search's accurate candidates.

    By consistency alone, a search would choose the network that has learned least.

    Parameters
    ----------
    tolerance : float >= 0, default=0.01
        How far a mean accuracy may be below the best one, in units of the accuracy.
    accuracy, consistency : str, default="accuracy" and "consistency"
        The scores, as the search's ``scoring`` names them. Higher is better for both, and they may
        be any two: ``accuracy="roc_auc"``, ``consistency="adcc"``.

    Returns
    -------
    callable of (cv_results)
        For ``refit=`` of ``GridSearchCV`` and ``RandomizedSearchCV``. It takes ``cv_results_`` and
        returns the index of a candidate; among equally consistent ones, the most accurate.
        Candidates whose score is NaN are not chosen. It raises a ValueError if there are no such
        scores, or none is a number.

    Raises
    ------
    ValueError
        If the tolerance is not a number >= 0, or a name is not a str.

    Notes
    -----
    ``HalvingGridSearchCV`` and ``HalvingRandomSearchCV`` take the best ``score`` of the last
    iteration, and ignore a callable ``refit``. Call this with their ``cv_results_`` afterwards: it
    chooses among the candidates of the last iteration, as the others had fewer resources.

    Examples
    --------
    >>> from sklcam.metrics import consistent_and_accurate
    >>> choose = consistent_and_accurate(tolerance=0.02)
    >>> choose({"mean_test_accuracy": [0.90, 0.89, 0.30], "mean_test_consistency": [0.4, 0.7, 1.0]})
    1

    In a search::

        GridSearchCV(
            clf,
            {"alpha": [0, 0.1, 1]},
            scoring=explanation_scorer(["accuracy", "consistency"]),
            refit=consistent_and_accurate(),
        )
    """
    check_number("tolerance", tolerance, 0)
    for name in (accuracy, consistency):
        if not isinstance(name, str):
            raise ValueError(f"A score needs a name, such as 'accuracy'; got {describe(name)}.")
    return partial(
        _most_consistent, tolerance=tolerance, accuracy=accuracy, consistency=consistency
    )


def _most_consistent(
    cv_results: Mapping[str, Any], *, tolerance: float, accuracy: str, consistency: str
) -> int:
    before = "mean_test_"
    scored = [name.removeprefix(before) for name in cv_results if name.startswith(before)]
    for name in (accuracy, consistency):
        if name not in scored:
            raise ValueError(
                f"The search has no score {name!r}; it has {', '.join(scored) or 'none'}. Give "
                'scoring=explanation_scorer(["accuracy", "consistency"]), or give '
                "consistent_and_accurate the names: accuracy=..., consistency=...."
            )
    accuracies, consistencies = (
        np.asarray(cv_results[before + name], dtype=float) for name in (accuracy, consistency)
    )
    is_eligible = np.isfinite(accuracies) & np.isfinite(consistencies)
    if "iter" in cv_results:  # of a halving search, in which few candidates see all images
        is_eligible &= np.asarray(cv_results["iter"]) == np.max(cv_results["iter"])
    if not is_eligible.any():
        raise ValueError(
            f"No candidate has both a {accuracy} and a {consistency} that are numbers. Set "
            'error_score="raise" to see why.'
        )
    # Up to rounding: 0.9 - 0.01 must not refuse 0.89.
    least = accuracies[is_eligible].max() - tolerance - 1e-9
    candidates = np.flatnonzero(is_eligible & (accuracies >= least))
    # The last key sorts first; of equals, the first candidate.
    order = np.lexsort((candidates, -accuracies[candidates], -consistencies[candidates]))
    return int(candidates[order[0]])


def _scorer_name(metric: str | Metric) -> str:
    """Return the name that a metric goes by as a scorer."""
    if not isinstance(metric, Metric):
        return metric
    return metric.name if metric.higher_is_better else f"neg_{metric.name}"


def _metric_of(metric: str | Metric) -> Metric:
    """Return the metric of a scorer; a ValueError if there is none of this name."""
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str):
        raise ValueError(f"A scorer needs a name, such as 'adcc'; got {describe(metric)}.")
    names = {_scorer_name(get_metric(name)): name for name in available()}
    if metric in names:
        return get_metric(names[metric])
    if f"neg_{metric}" in names:
        raise ValueError(
            f"Lower is better for {metric!r}, and higher for scorers. Use 'neg_{metric}'."
        )
    raise ValueError(f"There is no scorer {metric!r}. {suggestion(metric, names)}")


def _by_metric(params: Params | None) -> dict[str, Mapping[str, Any]]:
    """Return options by the names of metrics, whichever way their scorers are named."""
    if not isinstance(params, Mapping | None):
        raise ValueError(
            f"metric_params must be a dict of options by metric; got {describe(params)}."
        )
    lower = {f"neg_{name}": name for name in available() if not get_metric(name).higher_is_better}
    return {lower.get(name, name): options for name, options in (params or {}).items()}


def consistency_score(
    estimator: AnyEstimator,
    X: Any,
    *,
    method: AnyMethod | None = None,
    views: ViewSampler | None = None,
    random_state: int | np.random.RandomState | None = 0,
) -> float:
    """Mean SSIM between the view of the map and the map of the view, over the images of X.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier
        Fitted.
    X : images
        In any form that the estimator takes.
    method : str, Method or None, default=None
        The explanation; None is Grad-CAM without the ReLU, as in training.
    views : ViewSampler or None, default=None
        The distribution of views; None is the paper's crops and flips, whatever an estimator was
        trained with, so that estimators can be compared.
    random_state : int, RandomState or None, default=0
        One seed gives every model and every batch size the same views.

    Returns
    -------
    float, in [-1, 1]; higher is better. The paper prints it times 100.

    Raises
    ------
    NotFittedError
        If the estimator has not been fitted.
    ValueError
        If the estimator does not explain; if X, the method, the views or the seed are refused; or
        if images are smaller, as the network gets them, than SSIM's window of 11 x 11 pixels.

    Warns
    -----
    UserWarning
        If maps were constant; each such image counts as 0.

    Notes
    -----
    The map is scaled before it is cropped and not after. A crop without the map's brightest pixel
    therefore peaks below 1: even a network that is perfectly consistent scores about 0.95 on crops.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", section 3.2.2 and table 1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklcam import ConsistentCAMClassifier
    >>> from sklcam.metrics import consistency_score
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> X = (X / 16).reshape(-1, 8, 8)
    >>> clf = ConsistentCAMClassifier("resnet18", image_size=64, max_epochs=1, verbose=0,
    ...                               random_state=0).fit(X[:64], y[:64])
    >>> 0 < consistency_score(clf, X[64:96]) < 1
    True
    """
    result = evaluate(
        estimator,
        X,
        metrics="consistency",
        metric_params={"consistency": {"method": method, "views": views}},
        random_state=random_state,
        progress=False,
    )
    return result.means()["consistency"]
