"""Images in the forms that tests of X need."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset


class CountingDataset(Dataset):
    """Items as they are given, and a list of the indices that were asked for."""

    def __init__(self, items):
        self.items = items
        self.reads = []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.reads.append(i)
        return self.items[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(3, 4, 4)])


class Unsized(Dataset):
    def __getitem__(self, i):
        return torch.zeros(3, 4, 4)


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def save(array, path, **options):
    Image.fromarray(array).save(path, **options)
    return path


def channels_first(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def composed_on_white(rgba):
    """Colours weighed by their opacity, and the rest white; bytes."""
    opacity = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)
