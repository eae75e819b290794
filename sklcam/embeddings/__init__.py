"""Embedding networks: training them, explaining them, and the baseline to compare with."""

from __future__ import annotations

from sklcam.embeddings.explainer import EmbeddingCAMExplainer
from sklcam.embeddings.net import EmbeddingNet
from sklcam.embeddings.targets import NearestProxies, SinglePoint
from sklcam.embeddings.text import Text
from sklcam.embeddings.triplet_cam import TripletCAM

__all__ = [
    "EmbeddingCAMExplainer",
    "EmbeddingNet",
    "NearestProxies",
    "SinglePoint",
    "Text",
    "TripletCAM",
]
