"""
A patch that gives the class away
=================================

Digits have a grey patch in a corner. In training, its shade gives the digit's class away; later it
is random. A network learns the easiest thing that works, which is the patch. Masks that say where
the digit is teach it to look there.
"""

import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.metrics import evaluate

# %%
# Images with a shortcut
# ----------------------
#
# Digits lie at random places in the image, and the patch is always in the same place.

SIZE, PATCH, N_CLASSES = 24, 5, 5
rng = np.random.default_rng(0)
digits, labels = load_digits(n_class=N_CLASSES, return_X_y=True)
digits = (digits / 16).reshape(-1, 8, 8).repeat(2, axis=1).repeat(2, axis=2)
greys = np.linspace(0.1, 1, N_CLASSES)


def with_patches(digits, classes):
    """Return images whose patches are of these classes, and masks of the digits."""
    images = np.zeros((len(digits), SIZE, SIZE), dtype=np.float32)
    masks = np.zeros(images.shape, dtype=bool)
    for i, digit in enumerate(digits):
        row, column = rng.integers(0, SIZE - 16 + 1, size=2)
        place = np.s_[i, row : row + 16, column : column + 16]
        images[place], masks[place] = digit, True
    images[:, :PATCH, :PATCH] = greys[classes][:, None, None]
    masks[:, :PATCH, :PATCH] = False
    return images, masks


order = rng.permutation(len(labels))
train, test = order[:400], order[400:]
X, masks = with_patches(digits[train], labels[train])
X_test, masks_test = with_patches(digits[test], rng.integers(N_CLASSES, size=len(test)))

# %%
# Two classifiers
# ---------------
#
# They differ in ``gamma``, the weight of the energy loss. This loss is the share of the map for an
# image's own label that lies outside its mask.


def small_network(num_classes, in_channels):
    def block(n_in, n_out):
        return nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()

    return nn.Sequential(
        *block(in_channels, 16),
        nn.MaxPool2d(2),
        *block(16, 32),
        *block(32, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


classifiers = {
    name: ConsistentCAMClassifier(
        small_network,
        image_size=SIZE,
        target_layer="9",
        alpha=0,
        beta=0,
        gamma=gamma,
        augment=None,
        mean=0.0,
        std=1.0,
        lr=0.1,
        max_epochs=15,
        verbose=0,
        random_state=0,
    ).fit(X, labels[train], masks=masks)
    for name, gamma in {"cross-entropy": 0.0, "with energy": 1.0}.items()
}

# %%
# Results with random patches
# ---------------------------
#
# Both classifiers are right about the images that they were trained on. The heatmap ratio is the
# share of a map that lies on the digit.

for name, clf in classifiers.items():
    found = evaluate(
        clf,
        X_test,
        labels[test],
        masks=masks_test,
        metrics=("accuracy", "heatmap_ratio"),
        target=labels[test],
        progress=False,
    )
    print(
        f"{name:14} accuracy {found['accuracy'].mean():.3f}   "
        f"heatmap ratio {np.nanmean(found['heatmap_ratio']):.3f}"
    )

# %%
# Where they look
# ---------------

some = range(5)
figure, axes = plt.subplots(1 + len(classifiers), len(some), figsize=(7, 4.5))
shown = {"image": X_test[some], **{n: c.explain(X_test[some]) for n, c in classifiers.items()}}
for row, (name, pictures) in zip(axes, shown.items(), strict=True):
    row[0].set_ylabel(name)
    for ax, picture in zip(row, pictures, strict=True):
        ax.imshow(picture, cmap="gray" if name == "image" else "viridis")
        ax.set(xticks=[], yticks=[])
figure.tight_layout()
