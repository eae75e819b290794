"""Where maps point: by hand, and against scikit-image, torchvision, scikit-learn and SciPy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.stats import spearmanr
from skimage.measure import label, regionprops
from sklearn.metrics import jaccard_score
from torchvision.ops import box_iou as boxes_iou

from sklcam.metrics import (
    box_from_map,
    box_iou,
    box_masks,
    heatmap_ratio,
    inside_outside_ratio,
    localization_accuracy,
    localization_error,
    pointing_game,
    pointing_game_with_rejection,
    pointing_precision_recall,
    rank_correlation,
    seeds_iou,
)

H, W = 6, 9
MAPS = torch.rand(5, H, W, generator=torch.Generator().manual_seed(0))
NONE = torch.empty(0, 4)


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def one_hot(row, column, value=1.0, size=(H, W)):
    map_ = torch.zeros(1, *size)
    map_[0, row, column] = value
    return map_


def masks_of(*boxes, size=(H, W)):
    return box_masks([torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)], size)


# Boxes as masks


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


# The share of the map


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


@pytest.mark.parametrize("scale", [1e-6, 0.5, 255])
def test_scaled_maps(scale):
    masks = masks_of((1.5, 1, 6, 4)).expand(5, H, W)
    for metric in (heatmap_ratio, inside_outside_ratio, pointing_game):
        assert_allclose(metric(scale * MAPS, masks), metric(MAPS, masks), rtol=1e-5)
    assert_allclose(rank_correlation(scale * MAPS, masks), rank_correlation(MAPS, masks))
    assert box_from_map(scale * MAPS, 0.6).equal(box_from_map(MAPS, 0.6))


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


# Boxes from maps


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


# Pointing


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


# Segmentation seeds


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_seeds_iou_is_scikit_learns(threshold):
    numbers = generator()
    maps = torch.tensor(numbers.random((4, 3, H, W)))
    segmentations = torch.tensor(numbers.integers(-1, 4, (4, H, W)))
    seeds = np.zeros((4, H, W), dtype=int)
    for c in range(3):
        others = np.delete(maps.numpy(), c, axis=1).max(1)
        seeds[(maps[:, c].numpy() >= threshold) & (maps[:, c].numpy() > others)] = c + 1
    counted = segmentations.numpy() >= 0
    by_class = jaccard_score(segmentations.numpy()[counted], seeds[counted], average=None)
    ours = seeds_iou(maps, segmentations, threshold=threshold)
    assert ours.item() == pytest.approx(by_class.mean())


def test_seeds_iou_by_hand():
    maps = torch.tensor([[[[1.0, 0.5, 0.1, 0.0]], [[0.0, 0.4, 0.3, 0.1]]]])  # seeds 1 1 2 0
    for truth, expected in {
        (1, 1, 2, 0): 1,
        (1, 2, 2, 0): (1 / 2 + 1 / 2 + 1) / 3,
        (1, 1, 0, 0): (1 / 2 + 1 + 0) / 3,  # a seed of class 2 that is not there
        (1, 1, -1, 0): 1,  # neither seeded nor true
        (-1, -1, 2, -1): 1,
    }.items():
        assert seeds_iou(maps, torch.tensor(truth).view(1, 1, 4)).item() == pytest.approx(expected)
    nowhere = torch.full((1, 1, 4), -1)
    assert seeds_iou(maps, nowhere).isnan()
    with pytest.raises(ValueError, match=r"segmentations must be .* \(n_images, height, width\)"):
        seeds_iou(maps, nowhere[0])


# Ranks


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_scipys(ties):
    maps, others = MAPS, torch.rand(5, H, W, generator=torch.Generator().manual_seed(1)) + MAPS
    if ties:
        maps, others = (4 * maps).round(), (3 * others).round()
    expected = [
        spearmanr(a.ravel(), b.ravel()).statistic
        for a, b in zip(maps.numpy(), others.numpy(), strict=True)
    ]
    assert_allclose(rank_correlation(maps, others), expected, atol=1e-6)


def test_rank_correlation_of_cells():
    """Means over squares of two pixels, those at the edges of what is left of them."""
    generator = torch.Generator().manual_seed(0)
    maps, others = torch.rand(2, 1, 5, 4, generator=generator)
    coarse = [
        np.array([[of[0, i : i + 2, j : j + 2].mean() for j in (0, 2)] for i in (0, 2, 4)])
        for of in (maps, others)
    ]
    expected = spearmanr(coarse[0].ravel(), coarse[1].ravel()).statistic
    assert rank_correlation(maps, others, cell=2).item() == pytest.approx(expected, abs=1e-6)
    assert rank_correlation(maps, others, cell=9).tolist() == [0]
    with pytest.raises(ValueError, match="cell, a number of pixels, must be an int >= 1; got 0"):
        rank_correlation(maps, others, cell=0)


def test_rank_correlation_by_hand():
    maps = torch.tensor([[[1.0, 5.0, 7.0, 100.0]]])
    for other, expected in {(0, 1, 2, 3): 1, (9, 4, 2, 1): -1, (1, 3, 2, 4): 0.8}.items():
        other = torch.tensor(other).view(1, 1, 4).float()  # 1 - 6 (1 + 1) / (4 (16 - 1)) = 0.8
        assert rank_correlation(maps, other).item() == pytest.approx(expected)
        assert rank_correlation(maps.log(), other.exp()).item() == pytest.approx(expected)
    constant = torch.full((1, 1, 4), 0.3)
    for pair in ((maps, constant), (constant, maps), (constant, constant)):
        assert rank_correlation(*pair).tolist() == [0]
    with pytest.raises(ValueError, match="of one shape"):
        rank_correlation(maps, maps[..., :3])


# All of them


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


def test_what_is_not_a_number_stays_so_or_is_no_hit():
    maps = MAPS.clone()
    maps[1, 2, 3] = float("nan")
    masks = masks_of((0, 0, W, H - 1)).expand(5, H, W)
    for metric in (heatmap_ratio, inside_outside_ratio, rank_correlation):
        assert metric(maps, masks).isnan().tolist() == [False, True, False, False, False]
    assert pointing_game(maps, masks)[1] == 0
    assert box_from_map(maps)[1].tolist() == [0, 0, 0, 0]
