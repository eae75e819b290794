"""
An embedding network, and classes it never saw
==============================================

A network that was trained to tell the digits 0 to 5 apart by their distances is shown 6 to 9. It
has no output for them, as it has none for any class; but a few images of a class make a proxy, and
towards a proxy it can be explained. Digits are hidden in noise, so that it is known where the
network should look.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn

from sklcam import CAMDisplay, EmbeddingCAMExplainer, EmbeddingNet, LocalizationDisplay
from sklcam.datasets import load_digits
from sklcam.embeddings import TripletCAM
from sklcam.metrics import box_masks, heatmap_ratio, pointing_game

torch.set_num_threads(1)  # on images this small, threads would wait for each other

# %%
# Digits somewhere
# ----------------
#
# Each digit lies anywhere in a picture of 40 x 40 pixels of faint noise, twice as large as it came.

digits = load_digits()
generator = np.random.default_rng(0)


def somewhere(digit, picture, left, top):
    """Put a digit into a picture, and return its box: (x1, y1, x2, y2)."""
    picture[top : top + 16, left : left + 16] += digit.repeat(2, axis=0).repeat(2, axis=1)
    np.clip(picture, 0, 1, out=picture)
    return left, top, left + 16, top + 16


X = generator.uniform(0, 0.5, size=(len(digits.data), 40, 40)).astype(np.float32)
corners = generator.integers(0, 40 - 16, size=(len(X), 2))
boxes = np.array(
    [somewhere(*of) for of in zip(digits.data, X, *corners.T, strict=True)], dtype=float
)
y = digits.target
seen, unseen = y <= 5, y > 5

# %%
# Training
# --------
#
# The default is the margin loss, with distance-weighted sampling of triplets. The score is recall
# at 1: how often the nearest other picture shows the same digit, here of digits that the network
# has not been trained on. By chance it would be a quarter.


def small_net(embedding_dim, in_channels):
    layers = []
    for n_in, n_out in ((in_channels, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, embedding_dim)
    )


net = EmbeddingNet(
    small_net, embedding_dim=32, image_size=40, augment=None, max_epochs=15, lr=3e-3, verbose=0,
    random_state=0,
)  # fmt: skip
net.fit(X[seen], y[seen])
print(f"recall at 1 on unseen digits: {net.score(X[unseen], y[unseen]):.2f}")

# %%
# Proxies for new classes
# -----------------------
#
# Twenty pictures of each unseen digit make its proxy: the mean of their embeddings. The others are
# explained towards the proxy of their own digit, or towards themselves, which takes no labels. The
# baseline is Chen et al.'s: it takes over the weights of the nearest training picture.
#
# The network has learned no differences between these four digits, so their proxies are alike: what
# is explained towards one is mostly what all of them share. With ``contrast=True`` the mean of the
# proxies is taken off first, and the question is why it is this digit and not another.

new = np.flatnonzero(unseen)
few = np.concatenate([new[y[new] == digit][:20] for digit in range(6, 10)])
rest = np.setdiff1d(new, few)
explainer = EmbeddingCAMExplainer(net, verbose=0).fit(X[few], y[few])
contrast = EmbeddingCAMExplainer(net, contrast=True, verbose=0).fit(X[few], y[few])
print("cosines of the proxies:", *np.round(explainer.proxies_ @ explainer.proxies_.T, 1), sep="\n")

chen = TripletCAM(random_state=0).fit(explainer, X[seen], y[seen])
# What is measured is of the maps as they are: scaled to [0, 1], they would lose their floor.
own = {"normalize": False}
maps = {
    "Chen et al.": explainer.explain(X[rest], target="self", method=chen, **own),
    "single point": explainer.explain(X[rest], target="self", **own),
    "mean proxy": explainer.explain(X[rest], target=y[rest], **own),
    "contrast": contrast.explain(X[rest], target=y[rest], **own),
}

# %%
# How much of each map lies on the digit? A uniform map is what looking nowhere would get.

masks = box_masks([torch.from_numpy(box[None]) for box in boxes[rest]], (40, 40))
print(f"{'uniform':12}  ratio {masks.mean():.2f}")
for name, of in maps.items():
    ratio = heatmap_ratio(torch.from_numpy(of), masks).nanmean()
    hits = pointing_game(torch.from_numpy(of), masks).float().mean()
    print(f"{name:12}  ratio {ratio:.2f}, points at the digit {hits:.2f}")

# %%
# The box of a map is that of its largest connected part. It fits where the map is of one piece, and
# not where it is scattered, as for the 8. These are the first two pictures of each digit.

shown = np.concatenate([np.flatnonzero(y[rest] == digit)[:2] for digit in range(6, 10)])
LocalizationDisplay.from_predictions(
    X[rest][shown],
    maps["contrast"][shown],
    boxes[rest][shown][:, None],
    labels=y[rest][shown],
    threshold=0.2,
    n_columns=4,
)

# %%
# Two digits, two questions
# -------------------------
#
# A picture with a 6 and a 9 has one embedding. Towards the one proxy and towards the other it is
# explained differently.

first, second = rest[y[rest] == 6][:4], rest[y[rest] == 9][:4]
pairs = generator.uniform(0, 0.5, size=(4, 40, 40)).astype(np.float32)
for picture, i, j in zip(pairs, first, second, strict=True):
    somewhere(digits.data[i], picture, 2, 4)
    somewhere(digits.data[j], picture, 22, 20)

CAMDisplay.from_predictions(
    pairs,
    {
        "towards 6": contrast.explain(pairs, target=6),
        "towards 9": contrast.explain(pairs, target=9),
    },
)
plt.show()
