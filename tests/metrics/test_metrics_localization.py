"""Boxes from maps, and the pointing game: by hand, by distances, scikit-image, torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maps_and_boxes import MAPS, NONE, H, W, generator, masks_of, one_hot
from numpy.testing import assert_allclose
from skimage.measure import label, regionprops
from torchvision.ops import box_iou as boxes_iou

from sklcam.metrics import (
    box_from_map,
    box_iou,
    localization_accuracy,
    localization_error,
    pointing_game,
    pointing_game_with_rejection,
    pointing_precision_recall,
)


@pytest.mark.parametrize("threshold", [0.0, 0.15, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_box_from_map_is_scikit_images(threshold, seed):
    maps = generator(seed).random((6, 12, 17)).astype(np.float32)
    for map_, box in zip(maps, box_from_map(torch.tensor(maps), threshold), strict=True):
        regions = regionprops(label(map_ >= threshold * map_.max(), connectivity=1))
        y1, x1, y2, x2 = max(regions, key=lambda region: region.area).bbox
        assert box.tolist() == [x1, y1, x2, y2]


@pytest.mark.parametrize(
    ("rows", "box"),
    [
        (["...", "...", "..."], (0, 0, 0, 0)),
        (["###", "###", "###"], (0, 0, 3, 3)),
        (["#..", ".#.", "..#"], (0, 0, 1, 1)),  # diagonals do not connect; the first of equals
        (["..#", "#.#", "#.#"], (2, 0, 3, 3)),
        (["#..", "##.", "..."], (0, 0, 2, 2)),
        (["...", "...", "..#"], (2, 2, 3, 3)),
    ],
)
def test_box_from_map_by_hand(rows, box):
    map_ = torch.tensor([[character == "#" for character in row] for row in rows]).float()
    assert box_from_map(map_[None] * 0.3).tolist() == [list(box)]
    assert box_from_map(map_[None], 0.0).tolist() == [list(box)]


def test_the_threshold_is_a_share_of_the_maximum():
    map_ = torch.tensor([[[0.2, 0.4, 2.0, 0.3, 0.0]]])
    for threshold, (left, right) in {0.1: (0, 4), 0.15: (1, 4), 0.2: (1, 3), 1.0: (2, 3)}.items():
        assert box_from_map(map_, threshold).tolist() == [[left, 0, right, 1]]
    for wrong in (-0.1, 1.5, 15):
        with pytest.raises(ValueError, match="threshold, a share of the maximum, must be"):
            box_from_map(map_, wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_boxes_in_other_precisions(dtype):
    map_ = one_hot(2, 3).to(dtype)
    assert box_from_map(map_).tolist() == [[3, 2, 4, 3]]
    assert box_from_map(map_).dtype == dtype


def random_boxes(n, seed):
    low = generator(seed).uniform(0, 5, (n, 2))
    return torch.tensor(np.hstack([low, low + generator(seed + 9).uniform(0.1, 5, (n, 2))]))


def test_box_iou_is_torchvisions():
    boxes, others = random_boxes(30, 0), random_boxes(40, 1)
    assert_allclose(box_iou(boxes[:, None], others), boxes_iou(boxes, others), atol=1e-12)
    assert_allclose(box_iou(boxes, boxes), np.ones(30))
    assert not box_iou(boxes, boxes + 50).any()


def test_box_iou_of_empty_boxes():
    zeros = torch.zeros(1, 4)
    assert box_iou(zeros, zeros).tolist() == [0]
    assert box_iou(zeros, torch.tensor([[0.0, 0, 2, 2]])).tolist() == [0]


def test_a_map_that_is_its_box_fits():
    box = torch.tensor([[2.0, 1, 7, 4]])
    found = box_from_map(masks_of(*box.tolist()))
    assert box_iou(found, box).item() == 1
    assert localization_accuracy(found, [box], iou_threshold=1).tolist() == [1]


def test_localization_accuracy_by_hand():
    box = torch.tensor([0.0, 0, 4, 4])  # 16 pixels
    truth = {
        "half": ([[0, 0, 4, 2]], 1),  # IoU 8/16, at the threshold
        "less": ([[0, 0, 4, 1.9]], 0),
        "second": ([[5, 5, 6, 6], [0, 0, 4, 3]], 1),
        "elsewhere": ([[5, 5, 6, 6], [6, 6, 9, 9]], 0),
        "none": (NONE, 0),
    }
    boxes = [torch.as_tensor(of, dtype=torch.float32) for of, _ in truth.values()]
    expected = [hit for _, hit in truth.values()]
    assert localization_accuracy(box.expand(5, 4), boxes).tolist() == expected
    strict = localization_accuracy(box.expand(5, 4), boxes, iou_threshold=0.75)
    assert strict.tolist() == [0, 0, 1, 0, 0]
    assert not localization_accuracy(torch.zeros(5, 4), boxes).any()


def test_localization_error_by_hand():
    """Localised if the right class is among the k, and its own box fits."""
    right, wrong = [0.0, 0, 4, 4], [5.0, 5, 9, 9]
    boxes = torch.tensor([[right, wrong], [wrong, right], [right, right], [right, right]])
    predicted = torch.tensor([[1, 2], [1, 2], [3, 1], [2, 3]])
    truth = [torch.tensor([right])] * 4
    labels = torch.tensor([1, 1, 1, 1])
    assert localization_error(boxes, predicted, truth, labels).tolist() == [0, 1, 0, 1]
    top_1 = localization_error(boxes[:, :1], predicted[:, :1], truth, labels)
    assert top_1.tolist() == [0, 1, 1, 1]
    assert localization_error(boxes, predicted, [NONE] * 4, labels).tolist() == [1] * 4


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
