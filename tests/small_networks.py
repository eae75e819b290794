"""Small networks and images for the tests, in a module so that worker processes can import them."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from skorch.callbacks import Callback
from torch import nn

# Methods that follow attention, of which these networks have none; see cam/test_attention.py.
OF_ATTENTION = {"attentionrelevance", "legrad", "rollout"}


class SmallNet(nn.Sequential):
    """Two convolutions, pooled; a target layer of half the input's size."""

    def __init__(self, num_classes: int = 3, in_channels: int = 1, width: int = 8):
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )


class DropoutNet(SmallNet):
    def __init__(self, num_classes: int = 3, in_channels: int = 1):
        super().__init__(num_classes, in_channels)
        self.insert(8, nn.Dropout(0.5))


class Blocks(nn.Sequential):
    """Two blocks before the target layer's own two, and a head."""

    def __init__(self, num_classes=3, in_channels=1):
        def block(n_in, n_out):
            return nn.Sequential(nn.Conv2d(n_in, n_out, 3, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU())

        super().__init__(
            block(in_channels, 4),
            nn.Dropout2d(0.2),
            block(4, 6),
            nn.Sequential(block(6, 8), block(8, 8)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, num_classes),
        )


class TupleNet(nn.Module):
    """Returns auxiliary outputs after its logits, as some networks do in training."""

    def __init__(self, num_classes: int = 3, in_channels: int = 1):
        super().__init__()
        self.net = SmallNet(num_classes, in_channels)

    def forward(self, x):
        return self.net(x), x.mean()


class FailingNet(SmallNet):
    """Works for one image (the dry run), fails on a batch."""

    def forward(self, x):
        if len(x) > 1:
            raise RuntimeError("failed on purpose")
        return super().forward(x)


class InterruptedNet(SmallNet):
    """A user presses Ctrl-C in the eighth pass of training."""

    n_passes = 0

    def forward(self, x):
        if self.training and len(x) > 1:
            self.n_passes += 1
            if self.n_passes == 8:
                raise KeyboardInterrupt
        return super().forward(x)


class RowsAsImages(nn.Module):
    """A linear network on tables, for scikit-learn's checks: each row is a flat image."""

    def __init__(self, num_classes: int, in_channels: int):
        super().__init__()
        self.mix = nn.Conv2d(in_channels, 32, 1)
        self.head = nn.Linear(32, num_classes)
        self.double()  # the checks compare to 1e-9

    def forward(self, x):
        return self.head(torch.relu(self.mix(x.double())).mean((2, 3)))


def digits(n: int = 60, n_class: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Real images: (n, 8, 8) float in [0, 1], labels 0 to n_class - 1."""
    X, y = load_digits(n_class=n_class, return_X_y=True)
    return (X[:n] / 16).reshape(-1, 8, 8), y[:n]


class ImageAndVector(nn.Module):
    """Two inputs; the vector decides how much each channel of the image counts."""

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.gate = nn.Linear(2, 4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, image, vector):
        if len(image) != len(vector):  # which would be broadcast
            raise ValueError(f"{len(image)} images and {len(vector)} vectors.")
        features = torch.relu(self.conv(image))
        return self.head((features * self.gate(vector)[..., None, None]).mean((2, 3)))


class TokenNet(nn.Module):
    """A toy transformer: patches become tokens (n, L, C) behind a class token."""

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.patches = nn.Conv2d(1, 6, 4, stride=4)
        self.first = nn.Parameter(torch.randn(1, 1, 6))
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([self.first.expand(len(x), -1, -1), tokens], dim=1))
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0][:, 0])


class Viewing(nn.Sequential):
    """A network that flattens by ``view``, which takes contiguous memory alone."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)
        )
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x):
        for layer in list(self)[:4]:
            x = layer(x)
        return self.head(x.view(len(x), -1))


class Flattening(Viewing):
    """The same, in any memory."""

    def forward(self, x):
        for layer in list(self)[:4]:
            x = layer(x)
        return self.head(x.flatten(1))


class Gradients(Callback):
    """Keeps the gradient of each step, as callbacks see it before the optimizer does."""

    def __init__(self):
        self.seen = []

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.seen.append(torch.cat([p.grad.flatten().clone() for _, p in named_parameters]))
