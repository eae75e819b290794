"""The page of warnings and errors: it has every warning, and quotes what the library says."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from test_documentation import DOCS

import sklcam

ROOM = Path(sklcam.__file__).parent

# Warnings whose text is put together elsewhere, with the words of it that the page quotes.
PUT_TOGETHER = {
    "cam/passes.py": "Try an earlier target layer.",
    "embeddings/explainer.py": "The network normalises its embeddings to one length",
    "explain/checks.py": "are blank: nothing in the image speaks for the target.",
    "training/collapse.py": "may weigh too much",
    "training/net.py": "has a single position for images of",
}


def words(node: ast.expr) -> str | None:
    """Return a text as it stands in the source, with "…" for what is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            (words(part) if isinstance(part, ast.Constant) else "…") for part in node.values
        )
    return None


@cache
def trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOM)): ast.parse(path.read_text())
        for path in sorted(ROOM.rglob("*.py"))
    }


@cache
def texts() -> list[str]:
    """Return every text of the library's source, docstrings left out."""
    docstrings = {
        id(node.body[0].value)
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    found = (
        words(node)
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.expr) and id(node) not in docstrings
    )
    return [text for text in found if text and " " in text]  # no names of parameters


def warnings_given() -> list[tuple[str, str | None]]:
    """Return the file and the text of each warning, None where it is put together."""
    return [
        (name, words(node.args[0]))
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn")
    ]


@cache
def quotes() -> list[str]:
    """Return what the page quotes."""
    return re.findall(r"^``(.+)``$", (DOCS / "howto/troubleshooting.rst").read_text(), re.MULTILINE)


def is_said(quote: str, text: str) -> bool:
    """Whether a text has the words of a quote, in their order."""
    at = 0
    for part in (part.strip() for part in quote.split("…")):
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


def test_the_page_quotes_what_the_library_says():
    assert len(quotes()) > 100
    assert min(max(map(len, quote.split("…"))) for quote in quotes()) > 10  # words to tell it by
    unsaid = [quote for quote in quotes() if not any(is_said(quote, text) for text in texts())]
    assert not unsaid


def test_every_warning_is_on_the_page():
    missing = [
        (name, text)
        for name, text in warnings_given()
        if name not in PUT_TOGETHER
        and not (text and any(is_said(quote, text) for quote in quotes()))
    ]
    assert not missing
    for name, part in PUT_TOGETHER.items():
        assert name in dict(warnings_given())
        assert any(part in quote for quote in quotes()), name
