"""Turns whatever a user has into an explainer."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from sklcam.explain.base import Explainable, Explainer
from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.images.label_sets import kind_of_labels
from sklcam.networks.nested import Nesting, unnest

__all__ = ["AnyEstimator", "as_explainer"]

AnyEstimator: TypeAlias = Explainer | Explainable | torch.nn.Module | Nesting


def as_explainer(estimator: AnyEstimator, X: Any, y: Any = None) -> tuple[Explainer, Any]:
    """Return the explainer of an estimator, and X in the form that the explainer takes.

    Parameters
    ----------
    estimator : Explainer, estimator that brings one, nn.Module, or one of these nested
        Fitted, unless it is a module. Inside a pipeline, a search or a ``FrozenEstimator``, the
        last or best estimator is meant.
    X : images
        A module's explainer is fitted on them.
    y : labels, label sets, numbers or None, default=None
        Several labels per image, or numbers, tell what a module is for. Class labels do not, as
        nothing says in which order the outputs are.

    Returns
    -------
    explainer : Explainer
    X : images
        What the earlier steps of a pipeline make of X; otherwise X itself.

    Raises
    ------
    NotFittedError
        If the estimator has not been fitted.
    ValueError
        If it is none of these, or a search without a refitted best estimator.

    Examples
    --------
    >>> import torch
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import FunctionTransformer
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.explain.nested import as_explainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> halved = FunctionTransformer(lambda X: X / 2)
    >>> found, X = as_explainer(make_pipeline(halved, explainer), torch.ones(1, 1, 2, 2))
    >>> found is explainer, X.max()
    (True, tensor(0.5000))
    """
    inner, transformers = unnest(estimator)
    explainer: Explainer | None = None
    if isinstance(inner, Explainable):
        explainer = inner.as_explainer()
    elif not isinstance(inner, torch.nn.Module):
        raise ValueError(
            "estimator must be a ConsistentCAMClassifier, a CAMExplainer or a network, or a "
            f"pipeline or search around one; got {type(inner).__name__}. CAMExplainer explains "
            "other skorch nets."
        )
    for transformer in transformers:
        X = transformer.transform(X)
    if explainer is None:
        told = None if y is None or kind_of_labels(y) == "labels" else y
        explainer = CAMExplainer(inner, verbose=0).fit(X, told)
    return explainer, X
