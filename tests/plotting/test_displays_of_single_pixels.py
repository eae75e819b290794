"""Maps of single pixels, such as saliency: legible in every display, beside the image."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from displayed import titles
from sklearn.utils import Bunch
from torch import nn

from sklcam import CAMExplainer, EmbeddingCAMExplainer
from sklcam.explain import ExplanationWarning
from sklcam.images.warps import Warp
from sklcam.language import WordMaps
from sklcam.plotting import (
    CAMDisplay,
    CounterfactualDisplay,
    DetectionDisplay,
    FailuresDisplay,
    LocalizationDisplay,
    MapGridDisplay,
    RetrievalDisplay,
    ViewPairDisplay,
    WordDisplay,
)

IMAGES = np.full((2, 20, 20), 0.5)
# As of a gradient: all values are small but for one of 400.
MAPS = np.linspace(0, 0.2, 800).reshape(2, 20, 20)
MAPS[:, 3, 4] = 1
END = np.percentile(MAPS, 99)
BOXES = [[[1, 1, 5, 5]]] * 2


def words(**options):
    found = [WordMaps("dog", ["dog"], MAPS[i : i + 1], MAPS[i]) for i in range(2)]
    return WordDisplay.from_predictions(IMAGES, found, **options).ims_[:, 1:]


def neighbors(**options):
    found = {"indices": np.array([[1], [0]]), "similarities": np.ones((2, 1))}
    maps = {"query_maps": MAPS[:, None], "neighbor_maps": MAPS[:, None]}
    display = RetrievalDisplay.from_predictions(IMAGES, IMAGES, Bunch(**found, **maps), **options)
    return display.ims_[1::2]


def views(**options):
    same = Warp(torch.eye(3)[None, :2].repeat(2, 1, 1))
    maps = {"a": MAPS.astype(np.float32)}
    display = ViewPairDisplay(
        images=[*IMAGES.astype(np.float32)], views=same, maps=maps, maps_of_views=maps, **options
    )
    return display.plot().ims_[:, 2:]


def failures(**options):
    named = {"predicted": "ab", "true": "ba"}
    return FailuresDisplay.from_predictions(IMAGES, MAPS, MAPS, **named, **options).ims_[:, 1:]


def parameters(**options):
    grid = {"alpha": {0: MAPS[0], 1: MAPS[1]}}
    return MapGridDisplay.from_predictions(IMAGES[0], grid, **options).ims_[:, 1:]


def objects(**options):
    return DetectionDisplay.from_predictions(IMAGES, MAPS[:, None], BOXES, **options).ims_[:, 1]


def located(**options):
    return LocalizationDisplay.from_predictions(IMAGES, MAPS, BOXES, **options).ims_


def favouring(**options):
    return CounterfactualDisplay.from_predictions(IMAGES, MAPS, MAPS, IMAGES, **options).ims_[:, 1]


def beside(**options):
    names = ["a"] if options.pop("pixelwise", False) else []
    return CAMDisplay.from_predictions(IMAGES, {"a": MAPS}, pixelwise=names, **options).ims_[:, 1]


@pytest.mark.parametrize(
    "draw",
    [words, neighbors, views, failures, parameters, objects, located, favouring, beside],
    ids=lambda draw: draw.__name__,
)
def test_single_pixels_are_drawn_by_themselves_up_to_a_percentile(draw):
    for drawn in np.ravel(draw(pixelwise=True)):
        assert list(drawn.axes.images) == [drawn] and drawn.get_alpha() is None
        assert drawn.get_clim() == (0, pytest.approx(END)) and END < 0.25
    for drawn in np.ravel(draw()):
        assert len(drawn.axes.images) == (1 if draw is views else 2)
        assert drawn.get_clim() == (0, 1)


def network():
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def explainer(kind=CAMExplainer, **options):
    options = {"target_layer": "0", "classes": ["red", "green"], "verbose": 0, **options}
    return kind(network().eval(), **options).fit(torch.rand(2, 2, 12, 12))


def test_methods_say_whether_they_are_of_single_pixels():
    X = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    X[:, 0] += 1
    warnings.simplefilter("ignore", ExplanationWarning)  # nothing is against a class here
    calls = [
        lambda **how: FailuresDisplay.from_estimator(explainer(), X, ["green"] * 2, **how),
        lambda **how: LocalizationDisplay.from_estimator(explainer(), X, BOXES, **how),
        lambda **how: CounterfactualDisplay.from_estimator(explainer(), X, target="red", **how),
        lambda **how: ViewPairDisplay.from_estimator(explainer(), X, **how),
        lambda **how: RetrievalDisplay.from_estimator(
            EmbeddingCAMExplainer(network().eval(), "self", target_layer="0", verbose=0).fit(),
            X[:1],
            X[1:],
            k=1,
            **how,
        ),
    ]
    for call in calls:
        assert call(method="saliency").pixelwise is True
        assert call(method="gradcam").pixelwise is False


def test_the_scale_ends_where_the_colours_do():
    only = CAMDisplay.from_predictions(IMAGES, {"a": MAPS}, pixelwise=["a"])
    assert only.colorbar_.vmax == pytest.approx(END) and only.colorbar_.extend == "max"
    both = CAMDisplay.from_predictions(IMAGES, {"a": MAPS, "b": MAPS}, pixelwise=["a"])
    assert both.colorbar_.vmax == 1 and both.colorbar_.extend == "neither"
    assert both.axes_[0, 1].get_title() == "a\nup to the 99th percentile"
    signed = CAMDisplay.from_predictions(IMAGES, {"a": MAPS - 0.1}, pixelwise=["a"])
    end = np.percentile(np.abs(MAPS - 0.1), 99)
    assert signed.ims_[0, 1].get_clim() == pytest.approx((-end, end))
    assert signed.colorbar_.extend == "both"


def test_each_method_has_its_own_percentile_and_the_scale_fits_both():
    names = {"a": MAPS, "b": MAPS / 2}
    display = CAMDisplay.from_predictions(IMAGES, names, pixelwise=names)
    assert display.ims_[0, 1].get_clim() == (0, pytest.approx(END))
    assert display.ims_[0, 2].get_clim() == (0, pytest.approx(END / 2))
    assert titles(display.axes_[0, 1:]) == ["a", "b"]
    ticks = [text.get_text() for text in display.colorbar_.ax.get_yticklabels()]
    assert ticks == ["0", "top 1 %"]


@pytest.mark.parametrize(("low", "limits"), [(0.01, (0, 10 * (END + 0.01))), (9.0, (90, 100))])
def test_colours_of_raw_maps_begin_at_0_if_the_values_begin_near_it(low, limits):
    raw = 10 * (MAPS + low)
    display = CAMDisplay.from_predictions(IMAGES, raw, pixelwise=["map"])
    assert display.ims_[0, 1].get_clim() == pytest.approx(limits)
    assert display.colorbar_.extend == ("max" if low < 1 else "neither")


def test_limits_that_are_given_are_kept():
    display = CAMDisplay.from_predictions(IMAGES, MAPS, pixelwise=["map"], limits=(0, 0.8))
    assert display.ims_[0, 1].get_clim() == (0, 0.8)
    assert "percentile" not in display.axes_[0, 1].get_title()


def test_raw_maps_below_1_fill_the_scale():
    """Of words that are not scaled, the strongest is as bright as a scaled one."""
    display = CAMDisplay.from_predictions(IMAGES, MAPS / 50)
    assert display.ims_[0, 1].get_clim() == (0, 0.02)
    assert display.ims_[0, 1].get_alpha().max() == 1
