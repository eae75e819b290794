"""Boxes and neighbours: what maps and embeddings find, against hand-made truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from displayed import (
    NAMES,
    X,
    rectangles,
    titles,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.utils import Bunch
from torch import nn

from sklcam import CAMExplainer
from sklcam.metrics import evaluate
from sklcam.plotting import (
    CAMDisplay,
    LocalizationDisplay,
    RetrievalDisplay,
)


def test_boxes_and_their_overlap():
    map_ = np.zeros((10, 20))
    map_[2:6, 4:12] = 1
    true = [[4, 2, 8, 6], [0, 0, 1, 1]]
    display = LocalizationDisplay.from_predictions(
        np.zeros((1, 10, 20)), map_[None], [true], labels=["$_"]
    )
    assert_allclose(display.found, [[4, 2, 12, 6]])
    assert display.iou == pytest.approx([16 / 32])
    assert rectangles(display.axes_[0]) == [(4, 2, 8, 6), (0, 0, 1, 1), (4, 2, 12, 6)]
    assert display.axes_[0].get_title() == "$_\nIoU 0.50"
    assert [text.get_text() for text in display.legend_.get_texts()] == [
        "true box",
        "box of the map",
    ]


def test_localization_of_an_estimator(fitted):
    boxes = np.tile([1.0, 1.0, 6.0, 7.0], (7, 1, 1))
    display = LocalizationDisplay.from_estimator(fitted, X[:7], boxes, NAMES[:7], n_columns=3)
    assert display.axes_.shape == (7,)
    result = evaluate(
        fitted,
        X[:7],
        metrics="localization_accuracy",
        boxes=boxes,
        metric_params={"localization_accuracy": {"iou_threshold": 0.4}},
        progress=False,
    )["localization_accuracy"]
    assert_array_equal(display.iou >= 0.4, result.astype(bool))
    # The map is the method's own, shown as shares of its maximum, as the threshold is.
    own = fitted.explain(X[:7], frame="image", normalize=False)[6]
    assert_allclose(display.maps[6], own, rtol=1e-5)
    assert_allclose(display.ims_[6].get_array(), own / own.max(), rtol=1e-5)


class Floor(nn.Module):
    """Its layer is the image, and so is the map of the first class."""

    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, images):
        return torch.cat([self.same(images).mean((2, 3)), images.mean((2, 3)) * 0], dim=1)


def test_a_floor_is_not_taken_away_before_the_threshold():
    """All of a map that is half as bright elsewhere is over 15 % of its maximum."""
    image = torch.full((1, 1, 8, 8), 0.5)
    image[..., 3:5, 3:5] = 1
    estimator = CAMExplainer(Floor(), target_layer="same", verbose=0).fit(image)
    display = LocalizationDisplay.from_estimator(estimator, image, [[[3, 3, 5, 5]]], target=0)
    assert display.found.tolist() == [[0, 0, 8, 8]] and display.iou == [4 / 64]


def test_an_empty_map_has_no_box():
    display = LocalizationDisplay.from_predictions(X[:1], np.zeros((1, 8, 8)), [[[0, 0, 4, 4]]])
    assert rectangles(display.axes_[0]) == [(0, 0, 4, 4)]
    assert "no box" in display.axes_[0].get_title()
    assert "no positive" in display.axes_[0].texts[0].get_text()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "0 entries for 1 images"),
        ([[0, 0, 1, 1]], r"boxes\[0\] must be of shape \(n_boxes, 4\)"),
        ([[[2, 0, 1, 1]]], "x1 < x2"),
    ],
)
def test_boxes_that_do_not_fit(fitted, boxes, message):
    with pytest.raises(ValueError, match=message):
        LocalizationDisplay.from_estimator(fitted, X[:1], boxes)


def test_boxes_need_maps_of_the_images_size():
    with pytest.raises(ValueError, match='frame="image"'):
        LocalizationDisplay.from_predictions(X[:1], np.ones((1, 4, 4)), [[[0, 0, 1, 1]]])


# Retrieval


def test_neighbours_are_the_explainers(embedding):
    found = embedding.explain_neighbors(X[:2], X[10:], k=2)
    display = RetrievalDisplay.from_estimator(
        embedding, X[:2], X[10:], query_labels=NAMES[:2], gallery_labels=NAMES[10:], k=2
    )
    assert display.axes_.shape == (4, 3)
    pictures = CAMDisplay.from_estimator(embedding, X, frame="input").images
    for q in range(2):
        assert_array_equal(display.queries[q], pictures[q])
        assert display.axes_[2 * q, 0].get_title() == f"query\n{NAMES[q]}"
        mean = (found.query_maps[q, 0] + found.query_maps[q, 1]) / 2
        assert_allclose(display.ims_[2 * q + 1, 0].get_array(), mean, atol=1e-7)
        assert display.axes_[2 * q + 1, 0].get_title() == "like them, mean of 2 maps"
        for n in range(2):
            index = found.indices[q, n]
            assert_array_equal(display.neighbors[q][n], pictures[10 + index])
            assert_array_equal(display.ims_[2 * q, n + 1].get_array(), pictures[10 + index])
            above = display.axes_[2 * q, n + 1]
            assert_array_equal(
                display.ims_[2 * q + 1, n + 1].get_array(), found.neighbor_maps[q, n]
            )
            is_right = NAMES[10:][index] == NAMES[q]
            verdict = "✓ right" if is_right else "✗ wrong"
            expected = f"{verdict}: {NAMES[10:][index]}\ncosine {found.similarities[q, n]:.2f}"
            assert above.get_title() == expected
            line = above.spines["left"].get_linestyle()
            assert (line in ("-", "solid")) == is_right


def test_right_and_wrong_differ_by_frame_and_word():
    maps = np.ones((1, 2, 8, 8))
    found = Bunch(
        indices=np.array([[1, 0]]),
        similarities=np.array([[0.9, 0.8]]),
        query_maps=maps,
        neighbor_maps=maps,
    )
    display = RetrievalDisplay.from_predictions(
        X[:1], X[1:3], found, query_labels=["$a"], gallery_labels=["b", "$a"]
    )
    right, wrong = display.axes_[0, 1:]
    assert titles([right, wrong]) == ["✓ right: $a\ncosine 0.90", "✗ wrong: b\ncosine 0.80"]
    styles = [place.spines["top"].get_linestyle() for place in (right, wrong)]
    assert styles[0] != styles[1]
    assert_allclose(display.neighbors[0][0], X[2], atol=1e-7)
    unnamed = RetrievalDisplay.from_predictions(X[:1], X[1:3], found)
    assert unnamed.axes_[0, 1].get_title() == "cosine 0.90"


def test_what_is_right_may_be_said(embedding):
    def share_a_letter(of_query, of_neighbor):
        return not set(of_query).isdisjoint(of_neighbor)

    display = RetrievalDisplay.from_estimator(
        embedding,
        X[:2],
        X[2:4],
        query_labels=["ab", "cd"],
        gallery_labels=["bc", "be"],
        is_right=share_a_letter,
        k=2,
    )
    words = {
        (query, title.split("\n")[0])
        for query, row in zip("ac", display.axes_[::2], strict=True)
        for title in titles(row[1:])
    }
    assert words == {
        *(("a", "✓ right: bc"), ("a", "✓ right: be")),
        *(("c", "✓ right: bc"), ("c", "✗ wrong: be")),
    }


def test_retrieval_errors(fitted, embedding):
    with pytest.raises(ValueError, match="EmbeddingCAMExplainer or an EmbeddingNet"):
        RetrievalDisplay.from_estimator(fitted, X[:1], X[1:])
    with pytest.raises(ValueError, match="or neither"):
        RetrievalDisplay.from_estimator(embedding, X[:1], X[1:], query_labels=NAMES[:1])
    with pytest.raises(ValueError, match="one label for each"):
        RetrievalDisplay.from_estimator(
            embedding, X[:1], X[1:], query_labels=NAMES[:1], gallery_labels=NAMES
        )
