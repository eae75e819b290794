"""Reports: one page of HTML with the metrics of an explainer and its maps, to look through.

``build`` measures and explains, ``pictures`` makes what is small enough for a page, and the page
itself is a template with its style and script beside it. Nothing here decides what a metric is.
"""

from __future__ import annotations

from sklcam.reporting.build import report

__all__ = ["report"]
