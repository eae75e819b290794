"""Displays: maps on their images, and the numbers behind them, in scikit-learn's protocol.

``from_estimator`` computes, ``plot`` draws, and what was drawn is kept in ``ax_`` or ``axes_`` and
``figure_``.
"""

from __future__ import annotations

from sklcam.plotting.curves import CausalCurveDisplay, ConsistencyDisplay
from sklcam.plotting.localization import LocalizationDisplay
from sklcam.plotting.maps import CAMDisplay, MapGridDisplay, ViewPairDisplay
from sklcam.plotting.retrieval import RetrievalDisplay
from sklcam.plotting.search import TradeoffBoxDisplay, TradeoffDisplay

__all__ = [
    "CAMDisplay",
    "CausalCurveDisplay",
    "ConsistencyDisplay",
    "LocalizationDisplay",
    "MapGridDisplay",
    "RetrievalDisplay",
    "TradeoffBoxDisplay",
    "TradeoffDisplay",
    "ViewPairDisplay",
]
