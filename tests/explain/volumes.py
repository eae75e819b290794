"""Tiny networks of volumes, and volumes whose answer is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TinyVolumeNet(nn.Module):
    """Two convolutions of volumes, a mean and a linear layer: small enough to differentiate."""

    def __init__(self, n_channels: int = 1, n_classes: int = 3):
        super().__init__()
        self.first = nn.Conv3d(n_channels, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.second = nn.Conv3d(4, 6, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.linear = nn.Linear(6, n_classes)

    def forward(self, volumes: Tensor) -> Tensor:
        hidden = self.relu(self.second(self.relu(self.first(volumes))))
        return self.linear(self.pool(hidden).flatten(1))


def tiny_volume_net(seed: int = 0, **options: int) -> TinyVolumeNet:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return TinyVolumeNet(**options).eval()


def random_volumes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
