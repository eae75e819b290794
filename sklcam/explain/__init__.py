"""Explainers turn X and a trained network into maps."""

from __future__ import annotations

from sklcam.explain._channels import ChannelBatch
from sklcam.explain.base import ExplainedBatch, Explainer
from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.explain.checks import ExplanationCheck, ExplanationWarning
from sklcam.explain.opened import Batch, OpenedImages
from sklcam.explain.stored import open_maps

__all__ = [
    "Batch",
    "CAMExplainer",
    "ChannelBatch",
    "ExplainedBatch",
    "Explainer",
    "ExplanationCheck",
    "ExplanationWarning",
    "OpenedImages",
    "open_maps",
]
