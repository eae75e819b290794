"""Train image classifiers whose explanations can be trusted, and measure whether they can."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sklcam._versions import show_versions
    from sklcam.concepts.namer import ConceptNamer
    from sklcam.embeddings.explainer import EmbeddingCAMExplainer
    from sklcam.embeddings.net import EmbeddingNet
    from sklcam.explain.cam_explainer import CAMExplainer
    from sklcam.explain.stored import open_maps
    from sklcam.language import CaptionExplainer, VQAExplainer
    from sklcam.persistence import load, model_card, save
    from sklcam.plotting import (
        CAMDisplay,
        CausalCurveDisplay,
        ConsistencyDisplay,
        FailuresDisplay,
        LocalizationDisplay,
        MapGridDisplay,
        RetrievalDisplay,
        SanityCheckDisplay,
        TradeoffBoxDisplay,
        TradeoffDisplay,
        ViewPairDisplay,
        WordDisplay,
        show,
    )
    from sklcam.reporting import report
    from sklcam.segmentation import CAMSegmenter
    from sklcam.training.classifier import ConsistentCAMClassifier

__all__ = [
    "CAMDisplay",
    "CAMExplainer",
    "CAMSegmenter",
    "CaptionExplainer",
    "CausalCurveDisplay",
    "ConceptNamer",
    "ConsistencyDisplay",
    "ConsistentCAMClassifier",
    "EmbeddingCAMExplainer",
    "EmbeddingNet",
    "FailuresDisplay",
    "LocalizationDisplay",
    "MapGridDisplay",
    "RetrievalDisplay",
    "SanityCheckDisplay",
    "TradeoffBoxDisplay",
    "TradeoffDisplay",
    "VQAExplainer",
    "ViewPairDisplay",
    "WordDisplay",
    "load",
    "model_card",
    "open_maps",
    "report",
    "save",
    "show",
    "show_versions",
]

# Torchvision, scikit-learn and skorch take longer to import than torch does, so names are imported
# on first access.
_MODULE_OF = {
    "CAMExplainer": "explain",
    "CAMSegmenter": "segmentation",
    "CaptionExplainer": "language",
    "ConceptNamer": "concepts",
    "ConsistentCAMClassifier": "training",
    "EmbeddingCAMExplainer": "embeddings",
    "EmbeddingNet": "embeddings",
    "VQAExplainer": "language",
    "load": "persistence",
    "model_card": "persistence",
    "open_maps": "explain",
    "report": "reporting",
    "save": "persistence",
    "show_versions": "_versions",
}
_PACKAGES = {
    *("cam", "command_line", "concepts", "datasets", "embeddings", "explain", "images"),
    *("language", "metrics", "networks", "persistence", "plotting", "reporting", "segmentation"),
    *("study", "training"),
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"sklcam.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'sklcam' has no attribute {name!r}")
    found = getattr(import_module(f"sklcam.{_MODULE_OF.get(name, 'plotting')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})


try:
    __version__ = version("sklcam")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
