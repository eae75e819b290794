"""Masks of boxes, what of a map is inside them, and seeds: by hand, by points, and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maps_and_boxes import MAPS, NONE, H, W, generator, masks_of
from numpy.testing import assert_allclose
from sklearn.metrics import jaccard_score

from sklcam.metrics import (
    box_masks,
    heatmap_ratio,
    inside_outside_ratio,
    localization_accuracy,
    seeds_from_maps,
    seeds_iou,
)


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


# Seeds


def seeds_by_the_rule(maps, saliency, threshold, background):
    """Kolesnikov and Lampert's rule, pixel by pixel."""
    n_classes, height, width = maps.shape
    marked = [(of >= threshold * of.max()) & (of > 0) for of in maps]
    areas = [int(of.sum()) for of in marked]
    n_least = int(np.ceil(background * height * width))
    least = np.sort(saliency, axis=None)[n_least - 1] if n_least else -np.inf
    seeds = np.full((height, width), 255)
    for i, j in np.ndindex(height, width):
        classes = [c for c in range(n_classes) if marked[c][i, j]]
        if classes:
            seeds[i, j] = 1 + min(classes, key=lambda c: (areas[c], c))
        elif saliency[i, j] <= least:
            seeds[i, j] = 0
    return seeds


@pytest.mark.parametrize(("threshold", "background"), [(0.2, 0.1), (0.5, 0.4), (0.9, 0), (1, 1)])
@pytest.mark.parametrize("given", [True, False])
def test_seeds_are_of_secs_rule(threshold, background, given):
    numbers = generator()
    sizes = np.array([7.0, 0.01, 1.0])[:, None, None]
    maps = torch.tensor(numbers.random((4, 3, H, W)) ** 3 * sizes)
    maps[0, 2] = 0  # a class that is not in the image
    shares = (maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-12)).amax(1)
    saliency = torch.tensor(numbers.random((4, H, W))) if given else shares
    options = {"threshold": threshold, "background": background}
    found = seeds_from_maps(maps, saliency=saliency if given else None, **options)
    for i in range(4):
        expected = seeds_by_the_rule(maps[i].numpy(), saliency[i].numpy(), threshold, background)
        assert found[i].tolist() == expected.tolist()


def test_seeds_by_hand():
    # Of ten pixels the first class reaches 20 % of 10 in four, the second 20 % of 0.5 in two. They
    # meet in the third pixel, which is the second's, whose area is smaller.
    first = [10.0, 5, 4, 2, 1.9, 1, 0.5, 0.2, 0.1, 0]
    second = [0.0, 0, 0.5, 0.02, 0.2, 0, 0, 0, 0, 0]
    maps = torch.tensor([[[first], [second]]])
    assert seeds_from_maps(maps).tolist() == [[[1, 1, 2, 1, 2, 255, 255, 255, 255, 0]]]
    # The saliency says where the background is, but not where a class is marked.
    saliency = torch.tensor([[[0.0, 9, 9, 9, 9, 1, 2, 3, 9, 9]]])
    seeds = seeds_from_maps(maps, saliency=saliency, background=0.3)
    assert seeds.tolist() == [[[1, 1, 2, 1, 2, 0, 0, 255, 255, 255]]]
    # Nobody has it, if that is asked for.
    seeds = seeds_from_maps(maps, overlap="unknown")
    assert seeds.tolist() == [[[1, 1, 255, 1, 2, 255, 255, 255, 255, 0]]]
    # A floor under a map counts: taken away, as scaling does, it would make other seeds.
    assert not seeds_from_maps(maps + 1).equal(seeds_from_maps(maps))
    assert seeds_from_maps(3 * maps).equal(seeds_from_maps(maps))


def test_nothing_is_known_of_maps_without_evidence():
    maps = torch.zeros(3, 2, 2, 2)
    maps[1, 0, 0, 0] = torch.nan
    maps[2, 0] = -1
    assert (seeds_from_maps(maps) == 255).all()
    truth = torch.zeros(3, 2, 2, dtype=torch.long)
    assert seeds_iou(maps[[0]], truth[[0]]) == 0 and seeds_iou(maps, truth).isnan()


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_seeds_iou_is_scikit_learns(threshold):
    numbers = generator()
    maps = torch.tensor(numbers.random((4, 3, H, W)))
    segmentations = torch.tensor(numbers.integers(-1, 4, (4, H, W)))
    segmentations[0, 0] = 255
    seeds = seeds_from_maps(maps, threshold=threshold, background=0.3).numpy()
    truth = segmentations.numpy()
    counted = (truth >= 0) & (truth != 255)
    by_class = jaccard_score(truth[counted], seeds[counted], labels=range(4), average=None)
    ours = seeds_iou(maps, segmentations, threshold=threshold, background=0.3)
    assert ours.item() == pytest.approx(by_class.mean())


def test_seeds_iou_by_hand():
    maps = torch.tensor([[[[5.0, 3.0, 0.5, 0.0]], [[0.0, 2.0, 0.1, 0.0]]]])  # seeds 1 2 255 0
    for truth, expected in {
        (1, 2, -1, 0): 1,
        (1, 2, 255, 0): 1,
        (1, 2, 2, 0): (1 + 1 / 2 + 1) / 3,  # a pixel without a seed is missed
        (1, 1, 255, 0): (1 / 2 + 0 + 1) / 3,
        (-1, -1, 2, -1): 0,
    }.items():
        assert seeds_iou(maps, torch.tensor(truth).view(1, 1, 4)).item() == pytest.approx(expected)
    nowhere = torch.full((1, 1, 4), -1)
    assert seeds_iou(maps, nowhere).isnan()
    with pytest.raises(ValueError, match=r"segmentations must be .* \(n_images, height, width\)"):
        seeds_iou(maps, nowhere[0])


def test_what_is_below_zero_is_no_saliency():
    """A class that is not in the image, whose map is zero, changes no seed."""
    maps = torch.tensor([[[[5.0, 0.0, 0.0, -3.0]]]])
    both = torch.cat([maps, torch.zeros_like(maps)], dim=1)
    for given in (maps, both):
        assert seeds_from_maps(given, background=0.25).tolist() == [[[1, 0, 0, 0]]]
    assert (seeds_from_maps(-maps.abs() - 1) == 255).all()


@pytest.mark.parametrize("percent", range(1, 100))
def test_the_background_is_as_many_pixels_as_the_share_says(percent):
    maps = torch.arange(100.0).reshape(1, 1, 10, 10)
    seeds = seeds_from_maps(maps, threshold=1.0, background=percent / 100)
    assert (seeds == 0).sum() == percent
