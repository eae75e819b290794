"""Pages whose blocks run as they stand, from top to bottom, on what they make themselves."""

from __future__ import annotations

import csv
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_networks import SmallNet
from test_documentation import DOCS, ROOT, blocks


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


@pytest.mark.filterwarnings("ignore")
def test_the_page_of_notebooks_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    few = {
        "slice(0, 600), slice(600, 700)": "slice(0, 50), slice(600, 606)",
        '"max_epochs": 8': '"max_epochs": 1, "verbose": 0',
    }
    names = run("howto/notebooks.rst", **few)
    assert repr(names["digits"]).startswith(
        "1797 images, array of shape (1797, 8, 8), float32; 10 classes: 0, 1, 2"
    )
    for shown in (names["result"], names["compare"](names["result"], names["other"])):
        assert "<table>" in shown._repr_html_()
    assert "srcdoc=" in names["Page"]("report.html")._repr_html_()


def test_a_warning_is_turned_off():
    run("howto/troubleshooting.rst")


@pytest.mark.filterwarnings("ignore")
def test_the_first_five_blocks_of_the_readme_run(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (12, 24, 24, 3), np.uint8)
    for i, pixels in enumerate(X):
        for part in ("train", "test"):
            folder = tmp_path / "birds" / part / ("robin", "wren")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    photographs = [
        Image.fromarray(pixels) for pixels in rng.integers(0, 256, (1, 50, 60, 3), np.uint8)
    ]
    scope: dict[str, Any] = {"photographs": photographs, "SmallNet": SmallNet}
    trained = '"efficientnet_lite0", weights="DEFAULT", lr=0.01, max_epochs=10'
    cheap = {
        'method="scorecam"': 'method="layercam"',
        trained: "SmallNet, image_size=24, batch_size=6, verbose=0, max_epochs=1",
        'load("birds.sklcam")': 'load("birds.sklcam", objects={"SmallNet": SmallNet})',
    }
    for block in blocks(ROOT / "README.md")[:5]:
        for old, new in cheap.items():
            block = block.replace(old, new)
        exec(compile(block, "README.md", "exec"), scope)
    assert scope["clf"].classes_.tolist() == ["robin", "wren"]
    assert {"report.html", "birds.sklcam"} < {path.name for path in tmp_path.iterdir()}


def test_the_claims_that_the_readme_counts():
    with (DOCS / "explanation/claims.csv").open() as file:
        verdicts = Counter(row["verdict"].split(" from ")[0] for row in csv.DictReader(file))
    held, failed = verdicts["holds"], verdicts["does not hold"]
    counted = re.search(
        r"Of (\d+) claims .* (\d+)\s+hold, (\d+) do not, and (\d+)",
        (ROOT / "README.md").read_text(),
    )
    total = verdicts.total()
    assert [int(n) for n in counted.groups()] == [total, held, failed, total - held - failed]
