"""A package that is missing is named with the extra that installs it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from refusals import MAPS, NET, X, Y, embedding_net, evaluation, fitted
from small_networks import SmallNet

import sklcam
from sklcam import (
    CAMDisplay,
    CausalCurveDisplay,
    ConsistencyDisplay,
    LocalizationDisplay,
    MapGridDisplay,
    RetrievalDisplay,
    TradeoffBoxDisplay,
    TradeoffDisplay,
    ViewPairDisplay,
)
from sklcam.segmentation import grab_cut
from sklcam.training import AcceleratedCAMClassifier


def without(monkeypatch, *names: str) -> None:
    """Let imports of these packages fail, as where they are not installed."""
    for name in list(sys.modules):
        if name.split(".")[0] in names:
            monkeypatch.delitem(sys.modules, name)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("package", "call", "match"),
    [
        ("matplotlib", lambda: CAMDisplay.from_estimator(fitted(), X), r"sklcam\[plot\]"),
        ("matplotlib", lambda: CAMDisplay.from_predictions(X[:2], MAPS), r"sklcam\[plot\]"),
        ("matplotlib", lambda: CAMDisplay(images=X, maps={}).plot(), r"sklcam\[plot\]"),
        ("matplotlib", lambda: ViewPairDisplay.from_estimator(fitted(), X), r"sklcam\[plot\]"),
        (
            "matplotlib",
            lambda: MapGridDisplay.from_estimator(fitted(), X, Y, image=X[:1], param_grid={}),
            r"sklcam\[plot\]",
        ),
        ("matplotlib", lambda: ConsistencyDisplay.from_predictions([1]), r"sklcam\[plot\]"),
        ("matplotlib", lambda: CausalCurveDisplay.from_predictions(None), r"sklcam\[plot\]"),
        ("matplotlib", lambda: LocalizationDisplay.from_estimator(NET, X, []), r"sklcam\[plot\]"),
        ("matplotlib", lambda: RetrievalDisplay.from_estimator(NET, X, X), r"sklcam\[plot\]"),
        ("matplotlib", lambda: TradeoffDisplay.from_cv_results({}), r"sklcam\[plot\]"),
        ("matplotlib", lambda: TradeoffBoxDisplay.from_cv_results({}, by="p"), r"sklcam\[plot\]"),
        ("onnxscript", lambda: fitted().export("a.onnx"), r"sklcam\[onnx\]"),
        ("onnxruntime", lambda: fitted().export("a.onnx"), r"sklcam\[onnx\]"),
        ("jinja2", lambda: sklcam.report(fitted(), X, Y, "page.html"), r"sklcam\[report\]"),
        ("accelerate", lambda: AcceleratedCAMClassifier(SmallNet).fit(X, Y), r"\[accelerate\]"),
        (
            "pytorch_metric_learning",
            lambda: embedding_net().fit(X, Y),
            r"sklcam\[metric-learning\]",
        ),
        (
            "cv2",
            lambda: grab_cut(np.zeros((2, 2), np.uint8), np.eye(2, dtype=int)),
            r"sklcam\[grabcut\]",
        ),
        ("pandas", lambda: evaluation().to_frame(), r"to_frame needs pandas.*sklcam\[pandas\]"),
        (
            "pandas",
            lambda: fitted().history_frame_,
            r"history_frame_ needs pandas.*sklcam\[pandas\]",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package, call, match, monkeypatch):
    fitted()
    without(monkeypatch, package)
    with pytest.raises(ImportError, match=match):
        call()


def test_every_extra_that_an_error_names_is_there():
    """So that the command of the error can be run as it is."""
    settings = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    text = "".join(path.read_text() for path in Path(sklcam.__file__).parent.rglob("*.py"))
    named = set(re.findall(r"sklcam\[([\w,-]+)\]", text))
    assert (
        {"pandas", "plot", "report"}
        <= named
        <= set(tomllib.loads(settings)["project"]["optional-dependencies"])
    )
