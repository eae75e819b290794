"""Displays: maps on their images, and the numbers behind them, in scikit-learn's protocol.

``from_estimator`` computes and ``plot`` draws. The result is kept in ``figure_`` and in ``ax_`` or
``axes_``.

Displays need matplotlib, which comes with the extra ``plot``; without it, all of their methods
raise an ImportError. All displays raise a NotFittedError for an estimator that has not been fitted,
a TypeError for an option that ``plot`` does not have, and a ValueError for estimators, images,
labels, methods, targets, axes and options that do not fit. They do so before anything is computed.
Each method's documentation lists only what else it raises.
"""

from __future__ import annotations

from sklcam.plotting.causal import CausalCurveDisplay
from sklcam.plotting.concepts import ConceptCropsDisplay, ConceptMapsDisplay
from sklcam.plotting.consistency import ConsistencyDisplay, ViewPairDisplay
from sklcam.plotting.counterfactual import CounterfactualDisplay
from sklcam.plotting.detections import DetectionDisplay
from sklcam.plotting.failures import FailuresDisplay
from sklcam.plotting.localization import LocalizationDisplay
from sklcam.plotting.maps import CAMDisplay, MapGridDisplay
from sklcam.plotting.one_image import show
from sklcam.plotting.retrieval import RetrievalDisplay
from sklcam.plotting.sanity import SanityCheckDisplay
from sklcam.plotting.search import TradeoffBoxDisplay, TradeoffDisplay
from sklcam.plotting.shortcuts import ShortcutsDisplay
from sklcam.plotting.words import WordDisplay

__all__ = [
    "CAMDisplay",
    "CausalCurveDisplay",
    "ConceptCropsDisplay",
    "ConceptMapsDisplay",
    "ConsistencyDisplay",
    "CounterfactualDisplay",
    "DetectionDisplay",
    "FailuresDisplay",
    "LocalizationDisplay",
    "MapGridDisplay",
    "RetrievalDisplay",
    "SanityCheckDisplay",
    "ShortcutsDisplay",
    "TradeoffBoxDisplay",
    "TradeoffDisplay",
    "ViewPairDisplay",
    "WordDisplay",
    "show",
]
