"""People as judges: pages on which raters answer questions about maps, and what they say.

``building`` writes a page and its key, with ``questions`` that it takes from explainers; the page's
template, style and script stand beside it. ``answers`` reads what raters hand in, ``analysis``
makes figures of it, and ``tables`` a table of several studies. A page is blind: which model and
method a picture is of, and which answer is right, is in the key alone.
"""

from __future__ import annotations

from sklcam.study.agreement import krippendorff_alpha
from sklcam.study.analysis import StudyResult, analyse
from sklcam.study.building import build
from sklcam.study.tables import StudyTable, table

__all__ = ["StudyResult", "StudyTable", "analyse", "build", "krippendorff_alpha", "table"]
