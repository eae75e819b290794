"""Estimators inside those of scikit-learn: in a search, in a pipeline, or frozen."""

from __future__ import annotations

from typing import Any, TypeAlias

from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

__all__ = ["Nesting", "unnest"]

Nesting: TypeAlias = Pipeline | FrozenEstimator | BaseSearchCV


def unnest(estimator: Any) -> tuple[Any, list[Any]]:
    """Return the estimator inside searches, pipelines and frozen estimators, and its transformers.

    Parameters
    ----------
    estimator : estimator or nn.Module
        An estimator that wraps no other is returned as it is.

    Returns
    -------
    estimator
        The best estimator of a search, or the last step of a pipeline.
    transformers : list
        Fitted transformers. X goes through them in this order before the estimator sees it.

    Raises
    ------
    NotFittedError
        If it is a search that has not been fitted.
    ValueError
        If it is a search that has not kept its best estimator.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import FunctionTransformer
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.networks.nested import unnest
    >>> pipeline = make_pipeline(FunctionTransformer(), CAMExplainer(nn.Identity()))
    >>> estimator, transformers = unnest(pipeline)
    >>> type(estimator).__name__, transformers
    ('CAMExplainer', [FunctionTransformer()])
    """
    transformers: list[Any] = []
    while isinstance(estimator, Nesting):
        if isinstance(estimator, Pipeline):
            transformers += [
                step for _, step in estimator.steps[:-1] if step not in (None, "passthrough")
            ]
            estimator = estimator.steps[-1][1]
        elif isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif not estimator.refit:
            raise ValueError(
                f"This {type(estimator).__name__} has refit=False, so it has kept no estimator. "
                "Search with refit=True, or pass a fitted estimator."
            )
        else:
            check_is_fitted(estimator, "best_estimator_")
            estimator = estimator.best_estimator_
    return estimator, transformers
