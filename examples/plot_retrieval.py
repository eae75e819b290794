"""
Why these two are alike
=======================

A gallery is searched by the distance of embeddings, and the neighbours of a query are explained on
both sides: where the query is like its neighbour, and where the neighbour is like the query. Every
picture shows two digits somewhere in noise, so that it is known which of them two pictures share.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn

from sklcam import EmbeddingCAMExplainer, EmbeddingNet, RetrievalDisplay
from sklcam.datasets import load_digits

torch.set_num_threads(1)  # on images this small, threads would wait for each other

# %%
# Pictures
# --------
#
# The network is trained on pictures of one digit, and searches among pictures of two.

digits = load_digits()
generator = np.random.default_rng(0)
y = digits.target


def drawn(*which):
    """Draw digits beside each other, at any height, on noise: (40, 40) or, for two, (40, 80)."""
    picture = generator.uniform(0, 0.5, size=(40, 40 * len(which))).astype(np.float32)
    for place, i in enumerate(which):
        top, left = generator.integers(0, 24, size=2)
        left += 40 * place
        digit = digits.data[i].repeat(2, axis=0).repeat(2, axis=1)
        picture[top : top + 16, left : left + 16] += digit
    return picture.clip(0, 1)


X = np.stack([drawn(i) for i in range(len(y))])
pairs = generator.choice(len(y), size=(300, 2))
gallery = np.stack([drawn(*pair) for pair in pairs])

# %%
# The search
# ----------
#
# Embeddings of single digits are what the network learns. All of them have something in common, and
# so do any two pictures; ``contrast=True`` takes that off, so that what is left is what these two
# share and others do not.


def small_net(embedding_dim, in_channels):
    layers = []
    for n_in, n_out in ((in_channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, embedding_dim)
    )


net = EmbeddingNet(
    small_net, embedding_dim=32, image_size=40, augment=None, max_epochs=12, lr=3e-3, verbose=0,
    random_state=0,
).fit(X, y)  # fmt: skip

explainer = EmbeddingCAMExplainer(
    net.module_, contrast=True, image_size=(40, 80), batch_size=64, verbose=0
)
explainer.fit(np.concatenate([X, X], axis=2), y)  # in the gallery's format
queries, rest = gallery[:4], gallery[4:]
found = explainer.explain_neighbors(queries, rest, k=3)

# %%
# How often does a neighbour share a digit with its query?

names = np.array([f"{one} and {other}" for one, other in y[pairs]])


def share_a_digit(name, other):
    return not set(name.split(" and ")).isdisjoint(other.split(" and "))


close = explainer.explain_neighbors(rest[:100], rest[100:], k=1)
nearest = names[104:][close.indices[:, 0]]
shared = [share_a_digit(*of) for of in zip(names[4:104], nearest, strict=True)]
print(f"the nearest neighbour shares a digit: {np.mean(shared):.2f}")

# %%
# Both sides
# ----------
#
# Of each pair the query is above, its neighbour below. A neighbour is right if it shares a digit.

RetrievalDisplay.from_predictions(
    queries,
    rest,
    found,
    query_labels=names[:4],
    gallery_labels=names[4:],
    is_right=share_a_digit,
)
plt.show()
