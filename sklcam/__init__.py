"""Train image classifiers whose explanations can be trusted, and measure whether they can."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sklcam.classifier import ConsistentCAMClassifier
    from sklcam.embedding import EmbeddingCAMExplainer
    from sklcam.explainer import CAMExplainer
    from sklcam.metric_learning import EmbeddingNet
    from sklcam.persistence import load, model_card, save
    from sklcam.plotting import (
        CAMDisplay,
        CausalCurveDisplay,
        ConsistencyDisplay,
        LocalizationDisplay,
        MapGridDisplay,
        RetrievalDisplay,
        TradeoffBoxDisplay,
        TradeoffDisplay,
        ViewPairDisplay,
    )
    from sklcam.reporting import report
    from sklcam.versions import show_versions

__all__ = [
    "CAMDisplay",
    "CAMExplainer",
    "CausalCurveDisplay",
    "ConsistencyDisplay",
    "ConsistentCAMClassifier",
    "EmbeddingCAMExplainer",
    "EmbeddingNet",
    "LocalizationDisplay",
    "MapGridDisplay",
    "RetrievalDisplay",
    "TradeoffBoxDisplay",
    "TradeoffDisplay",
    "ViewPairDisplay",
    "load",
    "model_card",
    "report",
    "save",
    "show_versions",
]

# Torchvision, scikit-learn and skorch take longer to import than torch does. So a name is imported
# when it is asked for.
_MODULE_OF = {
    "CAMExplainer": "explainer",
    "ConsistentCAMClassifier": "classifier",
    "EmbeddingCAMExplainer": "embedding",
    "EmbeddingNet": "metric_learning",
    "load": "persistence",
    "model_card": "persistence",
    "report": "reporting",
    "save": "persistence",
    "show_versions": "versions",
}
_MODULES = {
    *("arguments", "cam", "classifier", "collapse", "datasets", "distributed", "embedding"),
    *("explainer", "folding", "images", "inputs", "labels", "loss", "metric_learning", "metrics"),
    *("models", "net", "persistence", "plotting", "reporting", "tape", "triplets", "versions"),
    "views",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"sklcam.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'sklcam' has no attribute {name!r}")
    found = getattr(import_module(f"sklcam.{_MODULE_OF.get(name, 'plotting')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


try:
    __version__ = version("sklcam")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
