"""Explainers: what turns X and a trained network into maps."""

from __future__ import annotations

from sklcam.explain.base import ExplainerMixin
from sklcam.explain.cam_explainer import CAMExplainer

__all__ = ["CAMExplainer", "ExplainerMixin"]
