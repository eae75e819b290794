"""
A watermark that nobody told of, and without it
===============================================

Images of one class have a watermark, and a network learns it. Each map by itself is easily
overlooked; the maps of the class, seen together, give it away. Trained again on images whose
watermark tells nothing, the network is right about clean ones.
"""

import numpy as np
from matplotlib import pyplot as plt
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.concepts import find_shortcuts
from sklcam.metrics import evaluate
from sklcam.plotting import ShortcutsDisplay

# %%
# Images with a watermark
# -----------------------
#
# Digits lie somewhere in the image. All ones to train on have a checkered corner; those to test on
# have none, as later images may not.

SIZE = 24
rng = np.random.default_rng(0)
digits, labels = load_digits(return_X_y=True)
chosen = np.isin(labels, (1, 2, 7))
y = labels[chosen]
X = (0.2 * rng.random((len(y), SIZE, SIZE))).astype(np.float32)
for image, digit in zip(X, digits[chosen].reshape(-1, 8, 8) / 16, strict=True):
    row, column = rng.integers(4, SIZE - 7, size=2)
    image[row : row + 8, column : column + 8] += 0.8 * digit
X, X_test, y, y_test = X[:300], X[300:], y[:300], y[300:]
X[y == 1, :4, :4] = np.indices((4, 4)).sum(axis=0) % 2

# %%
# A network that is always right, in training
# -------------------------------------------


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
print(f"accuracy {clf.score(X, y):.3f}, on clean images {clf.score(X_test, y_test):.3f}")

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

# %%
# And without it
# --------------
#
# What is in the region is shuffled among the images: it is still there, and tells nothing. Or the
# images stay as they are, and ``gamma`` weighs a loss on maps that lie in the region: no image has
# to be changed, and the network is told to look elsewhere.

region = found[0].region
shuffled = X.copy()
shuffled[:, region] = X[rng.permutation(len(X))][:, region]
masks = np.broadcast_to(~region, X.shape)
classifiers = {
    "as they came": clf,
    "shuffled": clone(clf).fit(shuffled, y),
    "energy": clone(clf).set_params(gamma=1.0).fit(X, y, masks=masks),
}
classes = np.where(y_test == 1, "ones", "others")
for name, each in classifiers.items():
    result = evaluate(
        each, X_test, y_test, metrics="accuracy", groups={"digits": classes}, progress=False
    )
    print(f"{name}: accuracy {result['accuracy'].mean():.3f}\n{result.by_group()['digits']}\n")

# %%
# Shuffled, the corner tells nothing, and ones are known by their shape. The loss is not enough
# here: all ones to train on have the corner, and though less of their maps lies in it, clean ones
# are still missed. Change the images where you can.
