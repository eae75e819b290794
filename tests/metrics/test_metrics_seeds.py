"""Segmentation seeds: by hand, and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from maps_and_boxes import H, W, generator
from sklearn.metrics import jaccard_score

from sklcam.metrics import seeds_iou


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
