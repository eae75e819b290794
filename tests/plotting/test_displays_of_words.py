"""Words on their images: a column for each word, as it is explained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sklcam import CaptionExplainer, WordDisplay
from sklcam.language import LanguageNetwork


class Colours(LanguageNetwork):
    """A word is likely where its colour is."""

    vocabulary = ("<none>", "<end>", "red", "green", "blue")
    end = 1

    def __init__(self):
        super().__init__()
        self.features = nn.ReLU()

    def forward(self, images, tokens):
        seen = torch.cat([images.new_zeros(len(images), 2), self.features(images).mean((2, 3))], 1)
        return seen[:, None].expand(-1, tokens.shape[1], -1)


@pytest.fixture
def explained():
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 12, 3), dtype=np.uint8)
    options = {"target_layer": "features", "image_size": 16, "mean": 0, "std": 1, "verbose": 0}
    explainer = CaptionExplainer(Colours(), batch_size=1, **options).fit(images)
    X = {"image": images, "caption": ["red blue green.", "green"]}
    return explainer, X, explainer.explain(X, frame="image")


def test_each_word_has_its_map(explained):
    explainer, X, found = explained
    display = WordDisplay.from_estimator(explainer, X)
    assert display.axes_.shape == (2, 5)
    titles = [[place.get_title() for place in row] for row in display.axes_]
    assert titles[0] == ["red blue green.", "all words", "red", "blue", "green."]
    assert titles[1] == ["green", "all words", "green", "", ""]
    for i, each in enumerate(found):
        for j, map_ in enumerate([each.total, *each.maps], 1):
            np.testing.assert_allclose(display.ims_[i, j].get_array(), map_, atol=1e-6)
            assert map_.shape == (8, 12)
    assert display.ims_[1, 3] is None
    assert not display.axes_[1, 3].axison
    np.testing.assert_allclose(display.ims_[0, 0].get_array(), X["image"][0] / 255, atol=1e-6)


def test_some_words_and_maps_that_are_there(explained):
    explainer, X, found = explained
    some = WordDisplay.from_estimator(explainer, X, words=["Green"], normalize=False)
    assert some.axes_.shape == (2, 3)
    assert [each.words for each in some.found] == [["green."], ["green"]]
    raw = explainer.explain(X, frame="image", normalize=False)
    np.testing.assert_allclose(some.ims_[0, 2].get_array(), raw[0]["green"], atol=1e-6)
    given = WordDisplay.from_predictions(X["image"], found, titles=["one", "two"], kind="map")
    assert given.axes_[1, 0].get_title() == "two"
    assert given.axes_.shape == (2, 5)


def test_words_by_a_method_of_single_pixels(explained):
    explainer, X, _ = explained
    options = {"method": "saliency", "normalize": False}  # its gradient is constant
    display = WordDisplay.from_estimator(explainer, X, **options)
    assert display.pixelwise and len(display.axes_[0, 1].images) == 1
    assert not WordDisplay.from_estimator(explainer, X, method="gradcam").pixelwise
