"""Digits on noise, some of which have a watermark, and a small network that learns from them."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from sklcam import CAMExplainer

SIZE, MARK = 24, 4


def digits_somewhere(
    n: int = 150, seed: int = 0, *, marked: bool
) -> tuple[torch.Tensor, np.ndarray]:
    """Return images and labels: of ones, twos, and of zeros or of either with a checkered corner.

    Where there are marks, nothing else tells these images, of class 0, from the others.
    """
    rng = np.random.default_rng(seed)
    digits, labels = load_digits(n_class=3, return_X_y=True)
    if marked:
        digits, labels = digits[labels > 0], labels[labels > 0]
    rows = rng.permutation(len(labels))[:n]
    digits, labels = (digits[rows] / 16).reshape(-1, 8, 8), labels[rows]
    images = 0.2 * rng.random((n, 1, SIZE, SIZE))
    places = rng.integers(MARK, SIZE - 8 + 1, (n, 2)).tolist()
    for image, digit, (row, column) in zip(images, digits, places, strict=True):
        image[0, row : row + 8, column : column + 8] += digit
    if marked:
        labels = np.where(np.arange(n) % 3 == 0, 0, labels)
        images[labels == 0, 0, :MARK, :MARK] = 1.5 * (np.indices((MARK, MARK)).sum(axis=0) % 2)
    return torch.from_numpy(images.astype(np.float32)), labels


def learned(images: torch.Tensor, labels: np.ndarray, width: int = 48) -> CAMExplainer:
    """Return an explainer of a network whose filters are patches, and whose head is learned."""
    torch.manual_seed(0)
    patches = nn.functional.unfold(images, 5).movedim(1, 2).flatten(0, 1)
    bright = patches[patches.std(dim=1) > 0.25]
    filters = bright[torch.randperm(len(bright))[:width]]
    filters = filters - filters.mean(dim=1, keepdim=True)
    filters = filters / filters.norm(dim=1, keepdim=True)
    convolution = nn.Conv2d(1, width, 5, padding=2)
    convolution.weight.data = filters.reshape(width, 1, 5, 5)
    convolution.bias.data.fill_(-0.6)
    features = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(4))
    with torch.no_grad():
        pooled = features(images).mean((2, 3)).numpy()
    head = nn.Linear(width, 3)
    fitted = LogisticRegression(C=1e4, max_iter=2000).fit(pooled, labels)
    head.weight.data = torch.from_numpy(fitted.coef_).float()
    head.bias.data = torch.from_numpy(fitted.intercept_).float()
    network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    return CAMExplainer(network, target_layer="0", verbose=0).fit(images)
