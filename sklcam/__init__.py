"""Train image classifiers whose explanations can be trusted, and measure whether they can."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

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
    "save",
]

try:
    __version__ = version("sklcam")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
