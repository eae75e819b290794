"""The page of changes: CHANGELOG.md of the repository, in the documentation's own markup."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
UNDERLINES = {1: "=", 2: "-", 3: "~"}


def heading(found: re.Match[str]) -> str:
    """Return a heading of Markdown, underlined; "[1.0.0]" without its brackets."""
    title = re.sub(r"[][]", "", found[2])
    return f"{title}\n{UNDERLINES[len(found[1])] * len(title)}\n"


def as_rst(markdown: str) -> str:
    """Return what the changelog has of Markdown: headings, links, lists and code in backticks."""
    pages = re.sub(r"\[([^]]+)\]\(docs/([^)]+)\.rst\)", r":doc:`\1 </\2>`", markdown)
    linked = re.sub(r"\[([^]]+)\]\(([^)]+)\)", r"`\1 <\2>`__", pages)
    return re.sub(r"^(#{1,3}) (.*)$", heading, linked, flags=re.MULTILINE)


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put it into the page whose only text is a title."""
    if docname == "changes":
        app.env.note_dependency(str(CHANGELOG), docname=docname)
        source[0] = as_rst(CHANGELOG.read_text(encoding="utf-8"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Read the page by the function above."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
