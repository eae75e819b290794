"""How good explanations are, in numbers: pure functions, ``evaluate``, and scorers."""

from __future__ import annotations

from sklcam.metrics.causal import (
    CausalCurves,
    DeletionCurve,
    InsertionCurve,
    blur,
    causal_curves,
    deletion_auc,
    deletion_curve,
    insertion_auc,
    insertion_curve,
)
from sklcam.metrics.composites import adcc, arcc
from sklcam.metrics.concentration import complexity, lp_norm, sparsity
from sklcam.metrics.confidence import average_drop, average_increase
from sklcam.metrics.consistency import coherency, ssim_consistency, structural_similarity
from sklcam.metrics.energy import heatmap_ratio, inside_outside_ratio
from sklcam.metrics.evaluate import Evaluator, consistency_score, default_metrics, evaluate
from sklcam.metrics.faithfulness import rank_correlation
from sklcam.metrics.imputation import impute, road
from sklcam.metrics.localization import (
    box_from_map,
    box_iou,
    localization_accuracy,
    localization_error,
)
from sklcam.metrics.masks import box_masks
from sklcam.metrics.measurement import Measurement
from sklcam.metrics.pointing import (
    PrecisionRecall,
    pointing_game,
    pointing_game_with_rejection,
    pointing_precision_recall,
)
from sklcam.metrics.registry import (
    Metric,
    available,
    get_metric,
    metric_of_row,
    register,
    row_meaning,
)
from sklcam.metrics.retrieval import recall_at_k
from sklcam.metrics.scorers import (
    ExplanationScorer,
    ExplanationScorers,
    explanation_scorer,
    get_scorer,
)
from sklcam.metrics.seeds import seeds_iou
from sklcam.metrics.summary import Evaluation, Summary, compare

__all__ = [
    "CausalCurves",
    "DeletionCurve",
    "Evaluation",
    "Evaluator",
    "ExplanationScorer",
    "ExplanationScorers",
    "InsertionCurve",
    "Measurement",
    "Metric",
    "PrecisionRecall",
    "Summary",
    "adcc",
    "arcc",
    "available",
    "average_drop",
    "average_increase",
    "blur",
    "box_from_map",
    "box_iou",
    "box_masks",
    "causal_curves",
    "coherency",
    "compare",
    "complexity",
    "consistency_score",
    "default_metrics",
    "deletion_auc",
    "deletion_curve",
    "evaluate",
    "explanation_scorer",
    "get_metric",
    "get_scorer",
    "heatmap_ratio",
    "impute",
    "insertion_auc",
    "insertion_curve",
    "inside_outside_ratio",
    "localization_accuracy",
    "localization_error",
    "lp_norm",
    "metric_of_row",
    "pointing_game",
    "pointing_game_with_rejection",
    "pointing_precision_recall",
    "rank_correlation",
    "recall_at_k",
    "register",
    "road",
    "row_meaning",
    "seeds_iou",
    "sparsity",
    "ssim_consistency",
    "structural_similarity",
]
