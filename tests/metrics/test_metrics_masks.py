"""Masks of boxes: by hand, and by counting points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maps_and_boxes import NONE, H, W, generator, masks_of
from numpy.testing import assert_allclose

from sklcam.metrics import box_masks, localization_accuracy


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((0, 0, W, H), slice(None), slice(None)),
        ((2, 1, 5, 4), slice(1, 4), slice(2, 5)),
        ((-3, -2, 2, 1), slice(0, 1), slice(0, 2)),
        ((7, 4, 99, 99), slice(4, None), slice(7, None)),
        ((-50, -50, 50, 50), slice(None), slice(None)),
        ((W, 0, W + 3, H), slice(0), slice(0)),  # all of it beyond
        ((-5, -5, 0, 0), slice(0), slice(0)),
    ],
)
def test_whole_pixels(box, rows, columns):
    expected = torch.zeros(1, H, W)
    expected[:, rows, columns] = 1
    assert masks_of(box).equal(expected)


@pytest.mark.parametrize(
    "box", [(0.5, 0.25, 3.75, 2), (1.2, 1.3, 1.6, 1.9), (-0.5, 3.1, 2.25, 99), (8.5, 5.5, 20, 7)]
)
def test_edges_between_pixels(box):
    """The share of each pixel, by counting a grid of 20 x 20 points in each."""
    x, y = (np.arange(20 * n) / 20 + 0.025 for n in (W, H))
    inside = ((y > box[1]) & (y < box[3]))[:, None] & ((x > box[0]) & (x < box[2]))
    expected = inside.reshape(H, 20, W, 20).mean((1, 3))
    assert_allclose(masks_of(box)[0], expected, atol=1e-5)


def test_the_masks_sum_is_the_boxs_area():
    low = generator().uniform(0, 4, (20, 2))
    high = low + generator(1).uniform(0.01, 2, (20, 2))
    boxes = torch.tensor(np.hstack([low, high]), dtype=torch.float32)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert_allclose(box_masks(boxes[:, None], (H, W)).sum((1, 2)), areas, rtol=1e-4)


def test_several_boxes_and_none():
    masks = box_masks([torch.tensor([[0.0, 0, 2, 1], [1, 0, 2.5, 2]]), NONE, []], (H, W))
    assert masks.shape == (3, H, W) and not masks[1:].any()
    assert masks[0, :3, :4].tolist() == [[1, 1, 0.5, 0], [0, 1, 0.5, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    "box", [(2, 2, 2, 4), (3, 1, 2, 4), (0, 4, 5, 1), (0, float("nan"), 1, 1), (1, 1, 3, 1)]
)
def test_what_is_no_box(box):
    with pytest.raises(ValueError, match=r"A box is \(x1, y1, x2, y2\) with x1 < x2 and y1 < y2"):
        masks_of(box)
    with pytest.raises(ValueError, match="A box is"):
        localization_accuracy(torch.tensor([[0.0, 0, 1, 1]]), [torch.tensor([box])])
