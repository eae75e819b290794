"""Pages whose blocks run as they stand, from top to bottom, on what they make themselves."""

from __future__ import annotations

from typing import Any

import pytest
from test_documentation import DOCS, blocks


def run(page: str, **changes: str) -> dict[str, Any]:
    """Run a page's blocks one after the other, with parts of them changed; return their names."""
    scope: dict[str, Any] = {"__name__": "page"}
    for block in blocks(DOCS / page):
        for old, new in changes.items():
            block = block.replace(old, new)
        exec(compile(block, page, "exec"), scope)
    return scope


@pytest.mark.filterwarnings("ignore")
def test_the_first_page_draws_its_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names = run("index.rst")
    explainer, photographs = names["explainer"], names["photographs"]
    best = explainer.predict_proba(photographs).argmax(axis=1)
    assert [*explainer.class_names_[best]] == ["tiger cat", "espresso", "missile"]  # its caption
    assert names["maps"].shape == (3, 224, 224)
    assert [path.name for path in tmp_path.iterdir()] == ["home.png"]


@pytest.mark.filterwarnings("ignore")
def test_the_page_of_tasks_runs():
    few = {"* 24": "* 4", '"max_epochs": 8': '"max_epochs": 1, "verbose": 0'}
    names = run("howto/binary_and_multilabel.rst", **few)
    assert names["careful"].predict(names["X"]).shape == (16,)
    assert names["clf"].task_ == "regression"


def test_a_warning_is_turned_off():
    run("howto/troubleshooting.rst")
