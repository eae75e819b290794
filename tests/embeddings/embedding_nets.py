"""Embedding nets of digits, a loss that records what it is given, and what a net should give."""

from __future__ import annotations

import numpy as np
import torch
from small_networks import SmallNet, digits
from torch import nn
from torch.utils.data import Sampler

from sklcam import EmbeddingNet
from sklcam.images import ImageDataset, normalize

X, Y = digits()
NAMES = np.array(["pear", "apple", "fig"])[Y]
CLASSES = ["apple", "fig", "pear"]
CODES = np.searchsorted(CLASSES, NAMES)
DIM = 4
BY_NAME = ["margin", "triplet", "proxy-anchor", "proxy-nca++"]


def embedder(module=SmallNet, **options):
    defaults = {
        "embedding_dim": DIM,
        "image_size": 16,
        "max_epochs": 1,
        "batch_size": 12,
        "lr": 0.01,
        "verbose": 0,
        "random_state": 0,
        "device": "cpu",
    }
    return EmbeddingNet(module, **{**defaults, **options})


def prepared(images=X, size=16):
    """What the network is to be given, made by hand."""
    images = torch.stack([image for image, _ in ImageDataset(images, image_size=size)])
    return normalize(images, 0.449, 0.226)  # the mean of ImageNet's statistics over its colours


def outputs(net, images=X):
    with torch.no_grad():
        return net.module_.eval()(prepared(images)).numpy()


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.module_.parameters()])


class Recorder(nn.Module):
    """A loss that learns nothing, and keeps what it was called with in training."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, embeddings, labels, *tuples):
        if embeddings.requires_grad:
            self.calls.append((embeddings.detach().clone(), labels.clone(), *tuples))
        return embeddings.square().mean()

    @property
    def labels(self):
        return [labels.numpy() for _, labels, *_ in self.calls]


class Spread(nn.Module):
    """A loss as plain as can be, with a number that it learns and one that it is given."""

    def __init__(self, num_classes, scale=1.0):
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(num_classes))
        self.scale = scale

    def forward(self, embeddings, labels):
        return self.scale * (embeddings.mean(dim=1) - self.centres[labels]).square().mean()


class Falling(Sampler):
    """The first few images, from the highest class to the lowest."""

    def __init__(self, labels, count=None):
        self.order = np.argsort(-labels, kind="stable")[:count].tolist()

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return len(self.order)
