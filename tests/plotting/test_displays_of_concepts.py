"""Concepts in colours, and crops of channels with their names."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")
import torch
from displayed import titles
from torch import nn

from sklcam import CAMExplainer, ConceptNamer
from sklcam.concepts import ConceptMaps, Shortcut, Shortcuts
from sklcam.plotting import ConceptCropsDisplay, ConceptMapsDisplay, ShortcutsDisplay
from sklcam.plotting.concepts import distinct_colors, in_colors

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MASKS = {"dark": (IMAGES[:, 0] < 0.3).numpy(), "bright": (IMAGES[:, 0] > 0.7).numpy()}


@pytest.fixture
def explainer():
    network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return CAMExplainer(network, target_layer="0", verbose=0).fit()


def test_places_have_the_colour_of_their_strongest_concept():
    colors = np.array([[1.0, 0, 0], [0, 0, 1.0]])
    maps = np.array([[[1.0, 0.5, 0.0]], [[0.2, 0.0, 3.0]]])
    drawn = in_colors(np.ones((1, 3)), maps, colors)
    np.testing.assert_allclose(drawn[0], [[1, 0, 0], [1, 0.5, 0.5], [0, 0, 1]])


@pytest.mark.parametrize("n", [1, 6, 9])
def test_colours_are_distinct(n):
    assert len(np.unique(distinct_colors(n).round(2), axis=0)) == n


def test_concepts_are_drawn_beside_the_images(explainer):
    concepts = ConceptMaps(2, random_state=0, max_iter=2000).fit(explainer, IMAGES)
    display = ConceptMapsDisplay.from_estimator(explainer, IMAGES, concepts, names=["$a", "b"])
    assert display.axes_.shape == (4, 2)
    np.testing.assert_allclose(display.maps, concepts.transform(explainer, IMAGES))
    shown = display.ims_[1, 0].get_array()
    np.testing.assert_allclose(shown, IMAGES[1].permute(1, 2, 0), atol=1e-6)
    assert [text.get_text() for text in display.legend_.get_texts()] == ["$a", "b"]
    assert display.plot(ax=display.axes_).axes_.shape == (4, 2)


def test_crops_have_the_names_of_their_channels(explainer):
    namer = ConceptNamer(0.7, n_crops=3).fit(explainer, IMAGES, MASKS)
    display = ConceptCropsDisplay.from_estimator(explainer, IMAGES, namer, [0, 1], k=2)
    assert namer.scores_[0].round(2).max() == 0.96
    assert titles(display.axes_[:, 0]) == ["channel 0: bright (0.96)", "channel 1"]
    for channel, row in enumerate(display.ims_):
        expected = namer.crops(explainer, IMAGES, channel, 2).images
        for drawn, crop in zip(row, expected, strict=True):
            np.testing.assert_allclose(drawn.get_array(), crop)


def test_no_crop_rises_beside_the_title():
    wide, high = np.zeros((10, 20, 3)), np.zeros((20, 10, 3))
    display = ConceptCropsDisplay(crops=[[wide, high, wide]], titles=["channel 0: long"]).plot()
    display.figure_.canvas.draw()
    tops = [place.get_window_extent().y1 for place in display.axes_[0]]
    assert max(tops) - min(tops) < 1


def test_clusters_have_their_map_and_their_most_typical_images(explainer):
    region = np.arange(64).reshape(8, 8) < 20
    rows = np.array([2, 0, 3])
    cluster = Shortcut("$a", rows, 0.5, np.eye(4, dtype=np.float32), region, 0.8, 0.9, 0.25, 0.1)
    other = Shortcut("b", rows[:2], 0.5, np.eye(4, dtype=np.float32), region, 0.3, 0.2, 0.1, 0.0)
    found = Shortcuts([cluster, other])
    display = ShortcutsDisplay.from_estimator(explainer, IMAGES, found)
    assert display.axes_.shape == (2, 3)  # as many images as the smallest has
    for i, row in enumerate([2, 0], start=1):
        shown = display.ims_[0, i].get_array()
        np.testing.assert_allclose(shown, IMAGES[row].permute(1, 2, 0), atol=1e-6)
    (first, _) = titles(display.axes_[:, 0])
    assert " ".join(first.split()).startswith("$a, 3 images: separation 0.80, likeness 0.90, drop")
    assert display.plot(ax=display.axes_, cmap="magma").ims_[0, 0].get_cmap().name == "magma"
