"""Measures of how good explanations are: pure functions, ``evaluate``, and scorers."""

from __future__ import annotations

from sklcam.metrics.causal import (
    CausalCurves,
    DeletionCurve,
    InsertionCurve,
    blur,
    causal_curves,
    cover,
    deletion_auc,
    deletion_curve,
    insertion_auc,
    insertion_curve,
)
from sklcam.metrics.composites import (
    adcc,
    arcc,
    average_drop,
    average_increase,
    complexity,
    lp_norm,
    sparsity,
)
from sklcam.metrics.consistency import (
    coherency,
    rank_correlation,
    ssim_consistency,
    structural_similarity,
)
from sklcam.metrics.cose import cose
from sklcam.metrics.evaluate import Evaluator, evaluate
from sklcam.metrics.imputation import impute, road
from sklcam.metrics.localization import (
    PrecisionRecall,
    box_from_map,
    box_iou,
    localization_accuracy,
    localization_error,
    pointing_game,
    pointing_game_with_rejection,
    pointing_precision_recall,
)
from sklcam.metrics.masks import (
    box_masks,
    heatmap_ratio,
    inside_outside_ratio,
    seeds_from_maps,
    seeds_iou,
)
from sklcam.metrics.measurement import Measurement
from sklcam.metrics.pixel_ranks import pixel_auc, relevance_rank_accuracy, topk_intersection
from sklcam.metrics.registry import (
    Metric,
    available,
    default_metrics,
    get_metric,
    metric_of_row,
    register,
    row_meaning,
)
from sklcam.metrics.rejection import rejection_threshold
from sklcam.metrics.retrieval import recall_at_k
from sklcam.metrics.sanity import SanityCheck, sanity_check
from sklcam.metrics.scorers import (
    ExplanationScorer,
    ExplanationScorers,
    consistency_score,
    consistent_and_accurate,
    explanation_scorer,
    get_scorer,
)
from sklcam.metrics.stability import local_lipschitz, max_sensitivity
from sklcam.metrics.summary import Evaluation, GroupedSummary, Summary, compare

__all__ = [
    "CausalCurves",
    "DeletionCurve",
    "Evaluation",
    "Evaluator",
    "ExplanationScorer",
    "ExplanationScorers",
    "GroupedSummary",
    "InsertionCurve",
    "Measurement",
    "Metric",
    "PrecisionRecall",
    "SanityCheck",
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
    "consistent_and_accurate",
    "cose",
    "cover",
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
    "local_lipschitz",
    "localization_accuracy",
    "localization_error",
    "lp_norm",
    "max_sensitivity",
    "metric_of_row",
    "pixel_auc",
    "pointing_game",
    "pointing_game_with_rejection",
    "pointing_precision_recall",
    "rank_correlation",
    "recall_at_k",
    "register",
    "rejection_threshold",
    "relevance_rank_accuracy",
    "road",
    "row_meaning",
    "sanity_check",
    "seeds_from_maps",
    "seeds_iou",
    "sparsity",
    "ssim_consistency",
    "structural_similarity",
    "topk_intersection",
]
