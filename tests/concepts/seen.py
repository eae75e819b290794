"""Images and networks of the tests of concepts, in which it is known what each channel sees."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sklcam import CAMExplainer

SIDE, CELLS = 16, 4  # of an image, and of the layer's grid


class Seeing(nn.Module):
    """Each channel is the mean of one colour in a cell, less what there is of it in the noise."""

    def __init__(self, n_channels: int = 3, weights=None):
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(SIDE // CELLS), nn.ReLU())
        self.head = nn.Linear(n_channels, n_channels, bias=False)
        if weights is None:
            weights = torch.eye(n_channels) - 0.5 * torch.eye(n_channels).roll(1, 0)
        self.head.weight.data = torch.as_tensor(weights, dtype=torch.float32)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def seeing(n_channels: int = 3, batch_size: int = 32, weights=None) -> CAMExplainer:
    options = {"target_layer": "features", "verbose": 0, "batch_size": batch_size}
    network = Seeing(n_channels, weights).eval()
    return CAMExplainer(network, **options).fit(torch.zeros(1, n_channels, SIDE, SIDE))


def squares(n: int, n_channels: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy images with a square of one colour each, and where it is, by colour."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.rand(n, n_channels, SIDE, SIDE, generator=generator)
    masks = torch.zeros(n, n_channels, SIDE, SIDE, dtype=torch.bool)
    places = torch.randint(0, SIDE - 8, (n, 2), generator=generator).tolist()
    for i, (row, column) in enumerate(places):
        masks[i, i % n_channels, row : row + 8, column : column + 8] = True
    return images + masks, masks


NAMES = ("red", "green", "blue")


def by_concept(masks: torch.Tensor) -> dict[str, np.ndarray]:
    return {name: masks[:, i].numpy() for i, name in enumerate(NAMES[: masks.shape[1]])}


def boxes_of(masks: torch.Tensor) -> list[dict[str, np.ndarray]]:
    """Return the same as boxes: for each image those of what is in it."""
    found = []
    for image in masks:
        (channel,) = {int(place[0]) for place in image.nonzero()}
        rows, columns = (image[channel].any(dim=1 - side).nonzero()[:, 0] for side in (0, 1))
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        found.append({NAMES[channel]: np.array([box], dtype=float)})
    return found
