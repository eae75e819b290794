"""Embeddings of volumes, explained: against Grad-CAM of the score by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklcam import EmbeddingCAMExplainer

VOLUMES = torch.rand(6, 1, 8, 12, 10, generator=torch.Generator().manual_seed(0))
LABELS = np.array(["a", "b", "a", "b", "a", "b"])


@pytest.fixture
def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv3d(4, 5, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    ).eval()


def by_hand(network, proxies):
    activations = network[:4](VOLUMES).detach().requires_grad_()
    score = (network[4:](activations) * proxies).sum()
    (gradients,) = torch.autograd.grad(score, activations)
    maps = (gradients.mean(dim=(2, 3, 4), keepdim=True) * activations).sum(dim=1).relu().detach()
    size = VOLUMES.shape[2:]
    return F.interpolate(maps[:, None], size=size, mode="trilinear", align_corners=False)[:, 0]


def test_proxies_of_classes_of_volumes(network):
    explainer = EmbeddingCAMExplainer(network, target_layer="3", verbose=0).fit(VOLUMES, LABELS)
    with torch.no_grad():
        embeddings = F.normalize(network(VOLUMES), dim=1)
    proxies = F.normalize(
        torch.stack([embeddings[name == LABELS].mean(dim=0) for name in "ab"]), dim=1
    )
    maps = explainer.explain(VOLUMES, target=LABELS, normalize=False)
    assert maps.shape == (6, 8, 12, 10)
    expected = by_hand(network, proxies[np.searchsorted(["a", "b"], LABELS)])
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-7)
    nearest = (embeddings @ proxies.T).argmax(dim=1).numpy()
    np.testing.assert_array_equal(explainer.predict(VOLUMES), np.array(["a", "b"])[nearest])


def test_volumes_by_themselves_and_by_others(network):
    explainer = EmbeddingCAMExplainer(network, target_layer="3", verbose=0).fit(VOLUMES, LABELS)
    with torch.no_grad():
        embeddings = F.normalize(network(VOLUMES), dim=1)
    alone = explainer.explain(VOLUMES, target="self", normalize=False)
    np.testing.assert_allclose(alone, by_hand(network, embeddings), rtol=1e-4, atol=1e-7)
    others = explainer.explain(VOLUMES, target=VOLUMES.flip(0), normalize=False)
    expected = by_hand(network, embeddings.flip(0))
    np.testing.assert_allclose(others, expected, rtol=1e-4, atol=1e-7)
