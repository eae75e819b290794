"""Images, maps whose pixels all differ, and a score that counts what it is asked."""

from __future__ import annotations

import torch
from small_networks import SmallNet

N, SIDE = 5, 8


GENERATOR = torch.Generator().manual_seed(0)


IMAGES = torch.randn(N, 2, SIDE, SIDE, generator=GENERATOR)


# All values differ: a permutation for each image, so that nothing hangs on ties.
MAPS = torch.stack([torch.randperm(SIDE**2, generator=GENERATOR) for _ in range(N)]) / 64.0
MAPS = MAPS.view(N, SIDE, SIDE)


class Counted:
    """The probability of each image's predicted class, and how many images were asked for."""

    def __init__(self, n_images=N, images=IMAGES):
        torch.manual_seed(3)
        self.model = SmallNet(in_channels=images.shape[1]).eval()
        with torch.no_grad():
            self.classes = self.model(images).argmax(1)
        self.batches = []

    @torch.no_grad()
    def __call__(self, images, rows):
        self.batches.append(len(images))
        probabilities = self.model(images).softmax(1)
        return probabilities[torch.arange(len(images)), self.classes[rows]]


def share_of_ones(images, rows):
    return images.mean((1, 2, 3))
