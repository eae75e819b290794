"""The share of the map inside the object, and its mean there over the mean outside, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maps_and_boxes import MAPS, NONE, H, W, masks_of
from numpy.testing import assert_allclose

from sklcam.metrics import box_masks, heatmap_ratio, inside_outside_ratio


def test_heatmap_ratio_by_hand():
    maps = torch.tensor([[[1.0, 2, 3], [4, 0, 0]], [[0, 0, 0], [0, 5, 0]]])
    masks = torch.tensor([[[1, 0, 1], [0, 1, 0]], [[0, 0, 0], [0, 1, 1]]])
    assert_allclose(heatmap_ratio(maps, masks.bool()), [4 / 10, 1])
    assert_allclose(heatmap_ratio(maps, masks / 2), [2 / 10, 0.5])
    for marked in (masks, 255 * masks.to(torch.uint8)):  # what marks the object is no weight
        assert_allclose(heatmap_ratio(maps, marked), [4 / 10, 1])
        expected = inside_outside_ratio(maps, masks.bool())
        assert_allclose(inside_outside_ratio(maps, marked), expected)


@pytest.mark.parametrize("box", [(0, 0, W, H), (2, 1, 5, 4), (0.5, 0.5, 7.25, 3), (-4, -4, 3, 3)])
def test_an_even_map_has_the_boxs_share_of_the_image(box):
    x1, y1, x2, y2 = np.clip(box, 0, [W, H, W, H])
    share = (x2 - x1) * (y2 - y1) / (H * W)
    ratio = heatmap_ratio(torch.full((1, H, W), 0.3), masks_of(box))
    assert ratio.item() == pytest.approx(share, abs=1e-6)
    if share < 1:
        ratio = inside_outside_ratio(torch.full((1, H, W), 0.3), masks_of(box))
        assert ratio.item() == pytest.approx(1, abs=1e-5)


def test_heatmap_ratio_of_nothing():
    masks = masks_of((0, 0, 4, 4)).expand(5, H, W)
    assert not heatmap_ratio(torch.zeros(5, H, W), masks).any()
    assert not heatmap_ratio(MAPS, torch.zeros(5, H, W, dtype=torch.bool)).any()
    assert not heatmap_ratio(MAPS, box_masks([NONE] * 5, (H, W))).any()
    assert_allclose(heatmap_ratio(MAPS, torch.ones(5, H, W).bool()), np.ones(5))


def test_inside_outside_ratio_by_hand():
    maps = torch.tensor([[[1.0, 2, 3], [4, 0, 0]]])
    masks = torch.tensor([[[1, 0, 1], [0, 0, 0]]])
    assert inside_outside_ratio(maps, masks.bool()).item() == pytest.approx((4 / 2) / (6 / 4))
    # Half in: means of (0.5 + 1.5) / 1 and (0.5 + 2 + 1.5 + 4) / 5.
    ratio = inside_outside_ratio(maps, masks / 2)
    assert ratio.item() == pytest.approx(2 / (8 / 5))


def test_inside_outside_ratio_at_its_limits():
    masks = masks_of((0, 0, 4, 4))
    assert inside_outside_ratio(masks, masks).item() == float("inf")
    assert inside_outside_ratio(1 - masks, masks).item() == 0
    assert inside_outside_ratio(MAPS[:1], masks * 0).isnan()
    assert inside_outside_ratio(MAPS[:1], masks * 0 + 1).isnan()
    assert inside_outside_ratio(MAPS[:1] * 0, masks).isnan()
