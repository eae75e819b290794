"""Random maps, and masks of boxes, for the metrics of localisation."""

from __future__ import annotations

import numpy as np
import torch

from sklcam.metrics import box_masks

H, W = 6, 9


MAPS = torch.rand(5, H, W, generator=torch.Generator().manual_seed(0))


NONE = torch.empty(0, 4)


def generator(seed=0):
    return np.random.default_rng(seed)


def one_hot(row, column, value=1.0, size=(H, W)):
    map_ = torch.zeros(1, *size)
    map_[0, row, column] = value
    return map_


def masks_of(*boxes, size=(H, W)):
    return box_masks([torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)], size)
