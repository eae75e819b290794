"""Reports: one HTML page with the metrics and the maps of an explainer.

``build`` measures and explains, ``cards`` collects what the page shows of each image, and ``page``
fills in the template, which lies beside its style and its script. No metric is defined here.
"""

from __future__ import annotations

from sklcam.reporting.build import report

__all__ = ["report"]
