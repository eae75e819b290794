"""Training with explanations: the classifier, its loss and terms, its views and callbacks."""

from __future__ import annotations

from sklcam.images.views import ViewSampler
from sklcam.images.warps import Warp
from sklcam.training._statistics import LaggingStatisticsWarning
from sklcam.training.agreement import Contrastive, consistency_loss
from sklcam.training.averaging import EMA
from sklcam.training.callbacks import ForgetBatches
from sklcam.training.classifier import ConsistentCAMClassifier
from sklcam.training.collapse import CollapseWarning, signs_of_collapse
from sklcam.training.distributed import AcceleratedCAMClassifier
from sklcam.training.mask_terms import Energy, GradMask, RightReasons
from sklcam.training.objective import ConsistentCAMLoss, LossValues
from sklcam.training.terms import (
    Consistency,
    Explanations,
    Sparsity,
    Term,
    sparsity_loss,
)
from sklcam.training.weights import Balanced, GradientSizes, WarmUp

__all__ = [
    "EMA",
    "AcceleratedCAMClassifier",
    "Balanced",
    "CollapseWarning",
    "Consistency",
    "ConsistentCAMClassifier",
    "ConsistentCAMLoss",
    "Contrastive",
    "Energy",
    "Explanations",
    "ForgetBatches",
    "GradMask",
    "GradientSizes",
    "LaggingStatisticsWarning",
    "LossValues",
    "RightReasons",
    "Sparsity",
    "Term",
    "ViewSampler",
    "WarmUp",
    "Warp",
    "consistency_loss",
    "signs_of_collapse",
    "sparsity_loss",
]
