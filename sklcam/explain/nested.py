"""Turn any estimator or network that a user has into an explainer."""

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
        A fitted estimator, or a module. Of a pipeline, a search or a ``FrozenEstimator``, the last
        or best estimator is used.
    X : images
        A module's explainer is fitted on them.
    y : labels, label sets, numbers or None, default=None
        Several labels per image, or numbers, determine the task of a module. Class labels do not,
        as they do not tell the order of the outputs.

    Returns
    -------
    explainer : Explainer
    X : images
        X as transformed by the earlier steps of a pipeline; otherwise X itself.

    Raises
    ------
    NotFittedError
        If the estimator has not been fitted.
    ValueError
        If the estimator is none of these, or a search without a refitted best estimator.

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
            f"pipeline or search around one; got {type(inner).__name__}. For another skorch net, "
            "give CAMExplainer(net)."
        )
    for transformer in transformers:
        X = transformer.transform(X)
    if explainer is None:
        told = None if y is None or kind_of_labels(y) == "labels" else y
        explainer = CAMExplainer(inner, verbose=0).fit(X, told)
    return explainer, X
