"""What all metrics of maps and objects have in common: scales, sizes, batches, NaN."""

from __future__ import annotations

import warnings

import pytest
import torch
from maps_and_boxes import MAPS, H, W, masks_of
from numpy.testing import assert_allclose

from sklcam.metrics import (
    box_from_map,
    heatmap_ratio,
    inside_outside_ratio,
    localization_accuracy,
    localization_error,
    pointing_game,
    pointing_game_with_rejection,
    pointing_precision_recall,
    rank_correlation,
)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("scale", [1e-6, 0.5, 255])
def test_scaled_maps(scale):
    masks = masks_of((1.5, 1, 6, 4)).expand(5, H, W)
    for metric in (heatmap_ratio, inside_outside_ratio, pointing_game):
        assert_allclose(metric(scale * MAPS, masks), metric(MAPS, masks), rtol=1e-5)
    assert_allclose(rank_correlation(scale * MAPS, masks), rank_correlation(MAPS, masks))
    assert box_from_map(scale * MAPS, 0.6).equal(box_from_map(MAPS, 0.6))


@pytest.mark.parametrize("metric", [heatmap_ratio, inside_outside_ratio, pointing_game])
def test_masks_of_another_size(metric):
    for masks in (MAPS[:, :3], MAPS[:2], MAPS[0]):
        with pytest.raises(ValueError, match=r"There must be a mask of the map's size"):
            metric(MAPS, masks)


def test_one_image_as_many():
    masks = masks_of((1.5, 1, 6, 4)).expand(5, H, W)
    for metric in (heatmap_ratio, inside_outside_ratio, pointing_game, rank_correlation):
        alone = torch.cat([metric(MAPS[[i]], masks[[i]]) for i in range(5)])
        assert_allclose(alone, metric(MAPS, masks), rtol=1e-6)
    assert torch.cat([box_from_map(MAPS[[i]], 0.6) for i in range(5)]).equal(
        box_from_map(MAPS, 0.6)
    )


def test_what_is_not_a_number_stays_so():
    maps = MAPS.clone()
    maps[1, 2, 3] = float("nan")
    masks = masks_of((0, 0, W, H - 1)).expand(5, H, W)
    nan = torch.tensor([False, True, False, False, False])
    for metric in (heatmap_ratio, inside_outside_ratio, rank_correlation, pointing_game):
        assert metric(maps, masks).isnan().equal(nan)
    boxes, true = box_from_map(maps), [torch.tensor([[0.0, 0, W, H]])] * 5
    assert boxes.isnan().all(dim=1).equal(nan) and not boxes[~nan].isnan().any()
    assert localization_accuracy(boxes, true).isnan().equal(nan)
    of_two = torch.stack([boxes, boxes], dim=1)
    classes = torch.zeros(5, 2, dtype=torch.long)
    assert localization_error(of_two, classes, true, classes[:, 0]).isnan().equal(nan)
    won = pointing_game_with_rejection(maps[:, None], masks[:, None], threshold=0.5)
    assert won[:, 0].isnan().equal(nan)
    played = pointing_precision_recall(maps[:, None], masks[:, None], threshold=0.5)
    assert played.precision.isnan() and played.recall.isnan()
