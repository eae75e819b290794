"""Scorers: the metrics in the form that scikit-learn's model selection takes."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils.metadata_routing import UNUSED

from sklcam.metrics.consistency import consistency_score

_SCORES: dict[str, Callable[..., float]] = {"consistency": consistency_score}


class ExplanationScorer(BaseEstimator):
    """A scorer that asks the estimator for explanations; made by :func:`get_scorer`.

    Parameters
    ----------
    name : str
        The metric.
    options : dict or None, default=None
        Keyword arguments of the metric.
    """

    # The estimator is the scorer's first argument, not metadata that a search could route to it.
    __metadata_request__score = {"estimator": UNUSED}

    def __init__(self, name: str, options: dict[str, Any] | None = None):
        self.name = name
        self.options = options

    def score(self, estimator: Any, X: Any, y: Any = None) -> float:
        """Return the metric of the estimator on X; higher is better."""
        return _SCORES[self.name](estimator, X, **(self.options or {}))

    __call__ = score


def get_scorer(name: str, **options: Any) -> ExplanationScorer:
    """Return a scorer for ``cross_validate``, ``GridSearchCV`` and their kin.

    Parameters
    ----------
    name : {"consistency"}
        The metric: :func:`sklcam.metrics.consistency_score`.
    **options
        Keyword arguments of that function, such as ``random_state``.

    Returns
    -------
    callable of (estimator, X, y=None) that returns a float; higher is better
        It pickles, and works in parallel searches.

    Raises
    ------
    ValueError
        If there is no such metric; the message names those there are.

    Examples
    --------
    >>> from sklcam.metrics import get_scorer
    >>> get_scorer("consistency", random_state=1)
    ExplanationScorer(name='consistency', options={'random_state': 1})
    """
    if name not in _SCORES:
        close = get_close_matches(str(name), _SCORES, n=3) or sorted(_SCORES)
        raise ValueError(f"There is no scorer {name!r}. Did you mean: {', '.join(close)}?")
    return ExplanationScorer(name, options or None)
