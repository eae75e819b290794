"""A small embedding network, images and labels, and explanations of it by hand."""

from __future__ import annotations

import numpy as np
import torch
from small_networks import SmallNet
from torch import nn

from sklcam import CAMExplainer, EmbeddingCAMExplainer

N, DIM = 7, 5
IMAGES = torch.randn(N, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
LABELS = np.array(["pear", "apple", "fig", "apple", "pear", "apple", "pear"])
CLASSES = ["apple", "fig", "pear"]


def network(dim=DIM, seed=1):
    torch.manual_seed(seed)
    return SmallNet(num_classes=dim).eval()


def trunk_of(model):
    return nn.Sequential(*list(model)[:6])


def explainer(model=None, **options):
    model = network() if model is None else model
    options = {"target_layer": "5", "verbose": 0, "batch_size": 3, **options}
    return EmbeddingCAMExplainer(model, **options)


def embeddings_of(images, model=None):
    """The network's outputs at length 1."""
    with torch.no_grad():
        outputs = (model or network())(images).double().numpy()
    return outputs / np.linalg.norm(outputs, axis=1, keepdims=True)


def towards(images, directions, method="gradcam", **options):
    """Explain each image alone, by a callable target: its output times its direction."""
    maps = []
    for image, direction in zip(images, directions, strict=True):
        p = torch.as_tensor(direction, dtype=torch.float32)
        ours = CAMExplainer(network(), target_layer="5", method=method, verbose=0).fit()
        maps.append(ours.explain(image[None], lambda y, p=p: y @ p, **options)[0])
    return np.stack(maps)
