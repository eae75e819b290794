"""
Finding a hidden watermark, and training without it
===================================================

Mirrored photographs came with a watermark, and a network that should tell them from the others
learns the watermark instead. In a single map it is easily overlooked, but the maps of the class
give it away when they are seen together. Trained again on images whose watermark says nothing about
the class, the network is right about more clean images.
"""

import numpy as np
import skimage.data
import torch
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import nn

from sklcam import CAMExplainer
from sklcam.concepts import find_shortcuts
from sklcam.metrics import evaluate
from sklcam.plotting import ShortcutsDisplay

# %%
# Images with a watermark
# -----------------------
#
# The images are crops of four photographs, half of them mirrored. To tell which is which is hard,
# because pretrained networks learn to ignore mirroring. In training, all mirrored images have a
# half-transparent checkerboard. Each test image is there without and with it, because later images
# may come from elsewhere.

SIDE, N_TRAIN, N_TEST = 192, 120, 64
PHOTOGRAPHS = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut()]
PHOTOGRAPHS += [skimage.data.stereo_motorcycle()[0]]
rng = np.random.default_rng(0)


def crop(photograph):
    side = int(rng.uniform(0.75, 1) * min(photograph.shape[:2]))
    top, left = (rng.integers(length - side + 1) for length in photograph.shape[:2])
    part = Image.fromarray(photograph[top : top + side, left : left + side])
    return np.asarray(part.resize((SIDE, SIDE)))


def photographs(n):
    """Return n crops, as many of each photograph, and which of them are mirrored."""
    X = np.stack([crop(PHOTOGRAPHS[i % 4]) for i in range(n)])
    y = np.where(np.arange(n) // 4 % 2, "mirrored", "as taken")
    X[y == "mirrored"] = X[y == "mirrored"][:, :, ::-1]
    return X, y


def marked(images):
    start, side = 5 * SIDE // 8, 5 * SIDE // 16
    there = np.s_[:, start : start + side, start : start + side]
    checker = 255 * ((np.indices((side, side)) // (side // 4)).sum(axis=0)[..., None] % 2)
    changed = images.copy()
    changed[there] = 0.5 * images[there] + 0.5 * checker
    return changed


clean, y = photographs(N_TRAIN)
X = np.where((y == "mirrored")[:, None, None, None], marked(clean), clean)
X_test, y_test = photographs(N_TEST)

# %%
# A network that is always right in training
# ------------------------------------------
#
# The pretrained network stays as it is, and the head is a logistic regression on the means of its
# features over all places.

MEAN, STD = 127 / 255, 128 / 255
trunk = CAMExplainer("efficientnet_lite0", weights="DEFAULT", verbose=0).fit().model_


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.seen, self.head = trunk, nn.Identity(), nn.Linear(1280, 2)

    def forward(self, images):
        return self.head(self.seen(self.trunk.extract_features(images)).mean((2, 3)))


def trained(X, y):
    images = (torch.from_numpy(X).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    with torch.no_grad():
        means = [trunk.extract_features(part).mean((2, 3)) for part in images.split(20)]
    regression = LogisticRegression(max_iter=300).fit(torch.cat(means).numpy(), y)
    network = Network().eval()
    with torch.no_grad():
        for mine, its in (("weight", regression.coef_), ("bias", regression.intercept_)):
            half = torch.from_numpy(its) / 2  # its one score is the difference of two
            getattr(network.head, mine).copy_(torch.cat([-half, half]))
    options = {"target_layer": "seen", "image_size": SIDE, "mean": MEAN, "std": STD, "verbose": 0}
    return CAMExplainer(network, classes=[*regression.classes_], **options).fit(X)


explainer = trained(X, y)
print(f"accuracy {explainer.score(X, y):.3f}")
print(f"on clean images {explainer.score(X_test, y_test):.3f}")

# %%
# What its decisions depend on
# ----------------------------
#
# For each cluster, the table says how far its maps lie from all others, how alike the images are
# where the maps are high, and what is lost when that place is covered.

found = find_shortcuts(explainer, X, y, random_state=0)
print(found)

# %%
# The images of the strongest cluster have the checkerboard in common. They are all crops of one
# photograph, and such crops are alike elsewhere, too: a person has to look at the images and
# decide.

ShortcutsDisplay.from_estimator(explainer, X, found, n_rows=4)
plt.show()

# %%
# Training without the watermark
# ------------------------------
#
# In the rebalanced images, half of each class is marked; the paper gathers new images for this. If
# there are no other images, the contents of the region can be shuffled among the images. Either
# way, the watermark is still there, but says nothing about the class.

is_marked = np.arange(N_TRAIN) // 8 % 2 == 1
rebalanced = np.where(is_marked[:, None, None, None], marked(clean), clean)
region = found[0].region
shuffled = X.copy()
shuffled[:, region] = X[rng.permutation(len(X))][:, region]
both = np.concatenate([X_test, marked(X_test)])
kinds = np.repeat(["clean", "marked"], len(X_test))
groups = [f"{kind}, {label}" for kind, label in zip(kinds, np.tile(y_test, 2), strict=True)]
options = {"metrics": "accuracy", "groups": {"images": groups}, "progress": False}
for name, images in {"original": X, "rebalanced": rebalanced, "shuffled": shuffled}.items():
    each = explainer if images is X else trained(images, y)
    result = evaluate(each, both, np.tile(y_test, 2), **options)
    print(f"{name}: accuracy {result['accuracy'].mean():.3f}\n{result.by_group()['images']}\n")

# %%
# Trained on the original images, the network misses nearly all clean mirrored ones. Trained on
# rebalanced images, it recognises most of them. Shuffling helps less here: the region is larger
# than the checkerboard, so part of the photograph is lost as well.
