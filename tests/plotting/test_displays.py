"""What all displays share: axes, figures, matplotlib, refusals."""

from __future__ import annotations

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from displayed import (
    X,
    luminance,
    small,
)
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.testing import assert_array_equal
from sklearn.exceptions import NotFittedError

from sklcam.metrics import CausalCurves
from sklcam.plotting import (
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
from sklcam.plotting._drawing import COLORS, MAP_CMAP


def test_given_axes_are_drawn_on_and_pyplot_is_left_alone(fitted):
    axes = Figure().subplots(2, 2)
    display = CAMDisplay.from_estimator(fitted, X[:2], ax=axes)
    assert display.figure_ is axes[0, 0].figure
    assert_array_equal(display.axes_, axes)
    flat = CAMDisplay.from_estimator(fitted, X[:2], ax=list(Figure().subplots(4)))
    assert flat.axes_.shape == (2, 2)
    curves = CausalCurves(torch.linspace(0, 1, 3), torch.rand(2, 3), torch.rand(2, 3))
    CausalCurveDisplay.from_predictions(curves, ax=Figure().subplots(1, 2))
    ConsistencyDisplay.from_predictions([0.1, 0.2], ax=Figure().subplots())
    boxes = LocalizationDisplay.from_predictions(
        X[:1], X[:1], [[[0, 0, 4, 4]]], ax=Figure().subplots()
    )
    assert boxes.axes_.shape == (1,)
    assert plt.get_fignums() == []


def test_one_figure_is_made_and_is_pyplots(fitted):
    display = CAMDisplay.from_estimator(fitted, X[:1])
    assert plt.get_fignums() == [display.figure_.number]


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3)])
def test_wrong_axes_are_named(fitted, shape):
    axes = Figure().subplots(*shape)
    with pytest.raises(ValueError, match="CAMDisplay needs 2 x 2 axes here"):
        CAMDisplay.from_estimator(fitted, X[:2], ax=axes)


def test_axes_in_another_arrangement_are_refused(fitted):
    axes = Figure().subplots(3, 2)
    with pytest.raises(ValueError, match="2 x 3 axes here, rows by columns; ax has 3 x 2"):
        CAMDisplay.from_estimator(fitted, X[:2], methods=["gradcam", "layercam"], ax=axes)


@pytest.mark.parametrize("display", [ConsistencyDisplay, CausalCurveDisplay])
def test_what_is_no_axes_is_refused(display):
    curves = CausalCurves(torch.linspace(0, 1, 3), torch.rand(2, 3), torch.rand(2, 3))
    data = [0.5] if display is ConsistencyDisplay else curves
    with pytest.raises(ValueError, match="ax must be"):
        display.from_predictions(data, ax="here")
    with pytest.raises(ValueError, match=r"ax must be one|needs 1 x 2 axes"):
        display.from_predictions(data, ax=Figure().subplots(3))


@pytest.mark.slow
def test_matplotlib_is_imported_late():
    code = "import sys, sklcam.plotting; sys.exit('matplotlib' in sys.modules)"
    # pytorch-metric-learning and torchvision do not bring it either.
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_matplotlib_the_extra_is_named(fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = r'needs matplotlib. It comes with: pip install "sklcam\[plot\]"'
    calls = [
        lambda: CAMDisplay.from_estimator(fitted, X[:1]),
        lambda: CAMDisplay(images=[X[0]], maps={"": [X[0]]}).plot(),
        lambda: ViewPairDisplay.from_estimator(fitted, X[:1]),
        lambda: ConsistencyDisplay.from_estimator(fitted, X[:1]),
        lambda: CausalCurveDisplay.from_estimator(fitted, X[:1]),
        lambda: TradeoffDisplay.from_cv_results({}),
        lambda: TradeoffBoxDisplay.from_cv_results({}, by="alpha"),
        lambda: MapGridDisplay.from_predictions(X[0], {}),
        lambda: LocalizationDisplay.from_estimator(fitted, X[:1], [[[0, 0, 1, 1]]]),
        lambda: RetrievalDisplay.from_estimator(fitted, X[:1], X[1:]),
    ]
    for call in calls:
        with pytest.raises(ImportError, match=message):
            call()


def test_the_maps_colours_get_lighter_throughout():
    assert (np.diff(luminance(colormaps[MAP_CMAP](np.linspace(0, 1, 256)))) > 0).all()


def test_lines_are_seen_on_white():
    for color in COLORS:
        assert luminance(to_rgb(color)) < 0.5


# Errors


@pytest.mark.parametrize(
    "draw",
    [
        lambda of: CAMDisplay.from_estimator(of, X[:1]),
        lambda of: ViewPairDisplay.from_estimator(of, X[:1]),
        lambda of: ConsistencyDisplay.from_estimator(of, X[:1]),
        lambda of: CausalCurveDisplay.from_estimator(of, X[:1]),
        lambda of: LocalizationDisplay.from_estimator(of, X[:1], [[[0, 0, 1, 1]]]),
    ],
)
def test_unfitted(draw):
    with pytest.raises(NotFittedError):
        draw(small())
    assert plt.get_fignums() == []
