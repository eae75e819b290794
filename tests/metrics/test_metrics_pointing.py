"""The pointing game, with and without rejection: by hand, and by distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maps_and_boxes import MAPS, H, W, masks_of, one_hot

from sklcam.metrics import (
    pointing_game,
    pointing_game_with_rejection,
    pointing_precision_recall,
)


@pytest.mark.parametrize(
    ("point", "tolerance", "hit"),
    [
        ((1, 2), 0, 1),
        ((3, 4), 0, 1),
        ((0, 2), 0, 0),
        ((0, 2), 1, 1),
        ((0, 1), 1, 0),  # sqrt(2) from the corner
        ((0, 1), 2, 1),
        ((5, 8), 4, 0),  # (2, 4) from the corner, sqrt(20)
        ((5, 8), 5, 1),
        ((5, 7), 3, 0),  # (2, 3), sqrt(13)
    ],
)
def test_pointing_game_by_hand(point, tolerance, hit):
    masks = masks_of((2, 1, 5, 4))  # rows 1 to 3, columns 2 to 4
    for mask in (masks, masks.bool(), 0.1 * masks):
        assert pointing_game(one_hot(*point), mask, tolerance=tolerance).tolist() == [hit]


def test_pointing_game_against_distances():
    masks = MAPS > 0.9
    for tolerance in (0, 1, 2, 15):
        expected = []
        for map_, mask in zip(MAPS.flip(0).numpy(), masks.numpy(), strict=True):
            point = np.array(np.unravel_index(map_.argmax(), map_.shape))
            distances = np.linalg.norm(np.argwhere(mask) - point, axis=1)
            expected.append(float((distances <= tolerance).any()))
        assert pointing_game(MAPS.flip(0), masks, tolerance=tolerance).tolist() == expected


def test_pointing_game_at_its_limits():
    every = torch.ones(1, H, W).bool()
    assert pointing_game(one_hot(0, 0), every).tolist() == [1]
    for value in (0.0, 0.5):
        assert pointing_game(torch.full((1, H, W), value), every, tolerance=9).tolist() == [0]
    assert pointing_game(one_hot(0, 0), ~every, tolerance=99).tolist() == [0]
    tied = one_hot(0, 1) + one_hot(4, 4)
    assert pointing_game(tied, masks_of((1, 0, 2, 1))).tolist() == [1]  # the first in raster order
    assert pointing_game(tied, masks_of((4, 4, 5, 5))).tolist() == [0]
    with pytest.raises(ValueError, match=r"tolerance, a number of pixels, must be .* >= 0; got -1"):
        pointing_game(tied, every, tolerance=-1)


def test_rejection_by_hand():
    masks = torch.cat([masks_of((0, 0, 3, 3))] * 3 + [torch.zeros(2, H, W)])[None]
    hit, missed, faint = one_hot(1, 1, 5.0), one_hot(5, 5, 5.0), one_hot(1, 1, 0.5)
    maps = torch.cat([hit, missed, faint, hit, faint])[None]
    # Present: pointed at, missed, wrongly rejected; absent: wrongly kept, rejected.
    values = pointing_game_with_rejection(maps, masks, threshold=2)
    assert values.tolist() == [[1, 0, 0, 0, 1]]
    values = pointing_game_with_rejection(maps, masks, threshold=0.5, tolerance=6)
    assert values.tolist() == [[1, 1, 1, 0, 0]]
    values = pointing_game_with_rejection(maps, masks, threshold=9)
    assert values.tolist() == [[0, 0, 0, 1, 1]]
    with pytest.raises(ValueError, match="maps and masks must be of one shape"):
        pointing_game_with_rejection(maps, masks[:, :2], threshold=1)


def test_precision_and_recall_by_hand():
    """Of six maps four are kept, two of them hits; four classes are present."""
    there, elsewhere = one_hot(2, 3, 5.0), one_hot(0, 0, 5.0)
    mask, empty = masks_of((3, 2, 4, 3)), masks_of()
    maps = torch.stack([
        torch.cat([there, elsewhere, one_hot(2, 3)]), torch.cat([there, one_hot(2, 3), elsewhere])
    ])  # fmt: skip
    masks = torch.stack([torch.cat([mask, mask, mask]), torch.cat([mask, empty, empty])])
    figures = pointing_precision_recall(maps, masks, threshold=2)
    assert [value.item() for value in figures] == [2 / 4, 2 / 4]
    figures = pointing_precision_recall(maps, masks, threshold=0.5)
    assert [value.item() for value in figures] == pytest.approx([3 / 6, 3 / 4])
    figures = pointing_precision_recall(maps, masks, threshold=9)
    assert figures.precision.isnan() and figures.recall == 0
    assert pointing_precision_recall(maps, masks * 0, threshold=9).recall.isnan()
    with pytest.raises(ValueError, match="one shape"):
        pointing_precision_recall(maps, masks[:1], threshold=9)
