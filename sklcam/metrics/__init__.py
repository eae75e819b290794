"""The numbers: from maps to scores, as pure functions, and scorers for model selection."""

from __future__ import annotations

from sklcam.metrics.confidence import complexity
from sklcam.metrics.consistency import consistency_score, ssim_consistency, structural_similarity
from sklcam.metrics.scorers import ExplanationScorer, get_scorer

__all__ = [
    "ExplanationScorer",
    "complexity",
    "consistency_score",
    "get_scorer",
    "ssim_consistency",
    "structural_similarity",
]
