"""Candidates of a search, against its table and against hand-made ones."""

from __future__ import annotations

import numpy as np
import pytest
from displayed import (
    NAMES,
    VIEWS,
    X,
    luminance,
    small,
)
from matplotlib.colors import to_rgb
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklcam.metrics import get_scorer
from sklcam.plotting import (
    TradeoffBoxDisplay,
    TradeoffDisplay,
)


@pytest.fixture(scope="module")
def search():
    scoring = {"accuracy": "accuracy", "consistency": get_scorer("consistency", views=VIEWS)}
    grid = {"alpha": [0, 0.5], "lr": [0.05, 0.1]}
    options = {"scoring": scoring, "refit": "accuracy", "cv": 2}
    return GridSearchCV(small(max_epochs=1), grid, **options).fit(X, NAMES)


def test_candidates_of_a_search(search):
    display = TradeoffDisplay.from_estimator(search)
    results = search.cv_results_
    for i, point in enumerate(display.points_):
        line, _, bars = point.lines
        means = [results[f"mean_test_{name}"][i] for name in ("accuracy", "consistency")]
        assert_allclose(np.ravel(line.get_xydata()), means)
        ends = bars[0].get_segments()[0][:, 0]
        assert_allclose(np.ptp(ends) / 2, results["std_test_accuracy"][i])
    assert display.ax_.get_xlabel() == "accuracy, mean of 2 folds"
    written = [text.get_text() for text in display.legend_.get_texts()]
    assert written == [
        "alpha = 0",
        "alpha = 0.5",
        "lr = 0.05",
        "lr = 0.1",
        "no other is better in both",
        "chosen",
    ]
    assert display.best_index == search.best_index_


def table(x, y, params=None):
    params = params or [{"alpha": i} for i in range(len(x))]
    results = {"params": params}
    for name, means in {"accuracy": x, "consistency": y}.items():
        results |= {f"mean_test_{name}": means, f"std_test_{name}": np.zeros(len(x))}
    return results


def test_the_front_is_what_no_other_beats():
    display = TradeoffDisplay.from_cv_results(table([0.9, 0.8, 0.7, 0.8], [0.1, 0.5, 0.4, 0.3]))
    assert_array_equal(display.front, [0, 1])
    line = display.ax_.lines[-1]
    assert_allclose(line.get_data(), [[0.9, 0.8], [0.1, 0.5]])


def test_points_at_one_place_lie_within_each_other_and_are_counted():
    results = table([0.9, 0.9, 0.8, 0.9, 0.7], [0.1, 0.1, 0.5, 0.1, 0.2])
    display = TradeoffDisplay.from_cv_results(results, errors=False)
    sizes = [point.lines[0].get_markersize() for point in display.points_]
    heights = [point.lines[0].get_zorder() for point in display.points_]
    assert sizes[0] > sizes[1] > sizes[3] == sizes[2] == sizes[4]
    assert heights[0] < heights[1] < heights[3]
    assert [text.get_text() for text in display.ax_.texts] == ["×3"]
    edges = [point.lines[0].get_markeredgewidth() for point in display.points_]
    assert edges[0] == edges[1] == edges[2] == edges[3] > edges[4]  # the last is not on the front


def test_failed_fits_are_left_out():
    results = table([0.9, np.nan], [0.1, np.nan])
    display = TradeoffDisplay.from_cv_results(results)
    assert display.points_[1] is None
    with pytest.raises(ValueError, match="did all fits fail"):
        TradeoffDisplay.from_cv_results(table([np.nan], [np.nan]))


def test_a_parameter_that_some_lack_and_one_candidate():
    params = [{"alpha": 0}, {"alpha": 1, "p": 1}, {"alpha": 1, "p": 2}]
    display = TradeoffDisplay.from_cv_results(table([1, 2, 3], [3, 2, 1], params), color_by="p")
    written = [text.get_text() for text in display.legend_.get_texts()]
    assert written[:3] == ["p = 1", "p = 2", "p = not set"]
    assert len(TradeoffDisplay.from_cv_results(table([1], [1])).points_) == 1


def test_many_values_have_a_scale():
    alphas = [0, *np.geomspace(1e-3, 10, 19)]
    params = [{"alpha": alpha, "kind": "$a_" if i % 2 else "_b"} for i, alpha in enumerate(alphas)]
    display = TradeoffDisplay.from_cv_results(table(range(20), range(20), params))
    assert display.colorbar_ is not None
    lightness = [luminance(to_rgb(point.lines[0].get_color())) for point in display.points_]
    assert (np.diff(lightness) > 0).all()


def test_equal_numbers_are_one_value():
    params = [{"alpha": 1, "p": 1}, {"alpha": 1.0, "p": 2}, {"alpha": np.float64(2), "p": 2}]
    display = TradeoffDisplay.from_cv_results(table([1, 2, 3], [3, 2, 1], params))
    written = [text.get_text() for text in display.legend_.get_texts()]
    assert written[:2] == ["alpha = 1", "alpha = 2"]


def test_searches_that_lack_something(search):
    with pytest.raises(ValueError, match=r"no score 'adcc'; it has \['accuracy', 'consistency'\]"):
        TradeoffDisplay.from_estimator(search, x="adcc")
    with pytest.raises(ValueError, match=r"no parameter 'beta'; it has \['alpha', 'lr'\]"):
        TradeoffDisplay.from_estimator(search, color_by="beta")
    with pytest.raises(ValueError, match="no parameter 'beta'"):
        TradeoffBoxDisplay.from_estimator(search, by="beta")
    with pytest.raises(NotFittedError):
        TradeoffDisplay.from_estimator(GridSearchCV(small(), {"alpha": [0]}))


def test_boxes_by_architecture():
    params = [{"module": of, "alpha": a} for of in ("a_$", nn.Linear) for a in (0, 1, 2)]
    results = table([0.5, 0.4, 0.2, 0.9, 0.8, 0.6], np.zeros(6), params)
    display = TradeoffBoxDisplay.from_cv_results(results, by="module", baseline={"alpha": 0})
    assert list(display.values) == ["a_$", "Linear"]
    assert_allclose(list(display.values.values()), [[-0.1, -0.3], [-0.1, -0.3]])
    medians = [line.get_ydata()[0] for line in display.boxes_["medians"]]
    assert_allclose(medians, [-0.2, -0.2])
    assert_allclose(display.points_[0].get_ydata(), [-0.1, -0.3])
    plain = TradeoffBoxDisplay.from_cv_results(results, by="module")
    assert_allclose(plain.values["Linear"], [0.9, 0.8, 0.6])
    with pytest.raises(ValueError, match="must be one candidate for each module; there are 3"):
        TradeoffBoxDisplay.from_cv_results(results, by="module", baseline={})
