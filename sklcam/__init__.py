"""Train image classifiers whose explanations can be trusted, and measure whether they can."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from sklcam.classifier import ConsistentCAMClassifier
from sklcam.embedding import EmbeddingCAMExplainer
from sklcam.explainer import CAMExplainer
from sklcam.metric_learning import EmbeddingNet

__all__ = ["CAMExplainer", "ConsistentCAMClassifier", "EmbeddingCAMExplainer", "EmbeddingNet"]

try:
    __version__ = version("sklcam")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
