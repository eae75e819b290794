"""Training with explanations: the classifier, its objective, its views and its callbacks."""

from __future__ import annotations

from sklcam.images.views import ViewSampler, Warp
from sklcam.training.classifier import ConsistentCAMClassifier
from sklcam.training.collapse import CollapseWarning, signs_of_collapse
from sklcam.training.distributed import AcceleratedCAMClassifier
from sklcam.training.objective import ConsistentCAMLoss, LossTerms, consistency_loss, sparsity_loss
from sklcam.training.weights import Balanced, GradientSizes, WarmUp

__all__ = [
    "AcceleratedCAMClassifier",
    "Balanced",
    "CollapseWarning",
    "ConsistentCAMClassifier",
    "ConsistentCAMLoss",
    "GradientSizes",
    "LossTerms",
    "ViewSampler",
    "WarmUp",
    "Warp",
    "consistency_loss",
    "signs_of_collapse",
    "sparsity_loss",
]
