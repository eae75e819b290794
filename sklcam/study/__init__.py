"""People as judges: pages on which raters answer questions about maps, and their analysis.

``building`` writes a page and its key, with ``questions`` that it takes from explainers; the page's
template, style and script are beside it. ``answers`` reads what raters hand in, ``analysis`` turns
it into figures, and ``tables`` puts several studies in a table. A page is blind: only the key says
which model and method a picture is of, and which answer is right.
"""

from __future__ import annotations

from sklcam.study.agreement import krippendorff_alpha
from sklcam.study.analysis import StudyResult, analyse
from sklcam.study.building import build
from sklcam.study.tables import StudyTable, table

__all__ = ["StudyResult", "StudyTable", "analyse", "build", "krippendorff_alpha", "table"]
