"""
A watermark that nobody told of
===============================

Images of one class have a watermark, and a network learns it. Each map by itself is easily
overlooked; the maps of the class, seen together, give it away.
"""

import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.concepts import find_shortcuts
from sklcam.plotting import ShortcutsDisplay

# %%
# Images with a watermark
# -----------------------
#
# Digits lie somewhere in the image. Those of class "lot 0" are ones and twos, as all others are;
# what tells them is the checkered corner alone.

SIZE = 24
rng = np.random.default_rng(0)
digits, labels = load_digits(n_class=3, return_X_y=True)
digits, labels = (digits[labels > 0] / 16).reshape(-1, 8, 8)[:300], labels[labels > 0][:300]
X = (0.2 * rng.random((len(digits), SIZE, SIZE))).astype(np.float32)
for image, digit in zip(X, digits, strict=True):
    row, column = rng.integers(4, SIZE - 7, size=2)
    image[row : row + 8, column : column + 8] += 0.8 * digit
y = np.array([f"lot {label}" for label in labels])
y[::3] = "lot 0"
X[::3, :4, :4] = np.indices((4, 4)).sum(axis=0) % 2

# %%
# A network that is always right
# ------------------------------


def small_network(num_classes, in_channels):
    def block(n_in, n_out):
        return nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()

    return nn.Sequential(
        *block(in_channels, 16),
        nn.MaxPool2d(2),
        *block(16, 32),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


clf = ConsistentCAMClassifier(
    small_network,
    image_size=SIZE,
    target_layer="7",
    alpha=0,
    beta=0,
    augment=None,
    mean=0.0,
    std=1.0,
    lr=0.1,
    batch_size=32,
    max_epochs=15,
    verbose=0,
    random_state=0,
).fit(X, y)
print(f"accuracy {clf.score(X, y):.3f}")

# %%
# What its decisions depend on
# ----------------------------
#
# Of each cluster: how far its maps lie from all others, how alike the images are where they are
# hot, and what is lost when that place is covered.

found = find_shortcuts(clf, X, y, random_state=0)
print(found)

# %%
# The strongest cluster has the corner in common. The others are digits that happen to lie in about
# the same place: the network depends on them as well, and they are not alike.

ShortcutsDisplay.from_estimator(clf, X, found, n_rows=4)
plt.show()
