"""Displays: maps on their images, and the numbers behind them, in scikit-learn's protocol.

``from_estimator`` computes, ``plot`` draws, and what was drawn is kept in ``ax_`` or ``axes_`` and
``figure_``.

Displays need matplotlib, which comes with the extra ``plot``; without it, all of their methods
raise an ImportError. They also have in common that an estimator that has not been fitted is a
NotFittedError, an option that ``plot`` does not take is a TypeError, and estimators, images,
labels, methods, targets, axes and options that do not fit are a ValueError. They are refused before
anything is computed. Methods list only what else they raise.
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
