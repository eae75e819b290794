"""
All methods on one picture
==========================

A small network learns to tell crops of two photographs apart, and is then shown a picture that
holds both: a temple on the left, a flower on the right. Every method is asked where the network
sees the flower.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from sklcam import CAMDisplay, CAMExplainer, ConsistentCAMClassifier
from sklcam.cam import SSCAM, RandomCAM, SmoothGradCAMPlusPlus, available

torch.set_num_threads(1)  # on images this small, threads would wait for each other

# %%
# A network that knows two things
# -------------------------------
#
# The photographs come with scikit-learn. A crop is a square of 60 to 240 pixels from anywhere in
# one of them.

photographs = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
generator = np.random.default_rng(0)


def crop(photograph):
    side = generator.integers(60, 240)
    top, left = (generator.integers(length - side) for length in photograph.shape[:2])
    return Image.fromarray(photograph[top : top + side, left : left + side])


X = [crop(photograph) for photograph in photographs.values() for _ in range(150)]
y = np.repeat(list(photographs), 150)


class SmallNet(nn.Sequential):
    def __init__(self, num_classes, width=32):
        super().__init__(
            *self.block(3, width),
            nn.MaxPool2d(2),
            *self.block(width, width),
            nn.MaxPool2d(2),
            *self.block(width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, num_classes),
        )

    @staticmethod
    def block(in_channels, out_channels):
        return (
            nn.Conv2d(in_channels, out_channels, 5, padding=2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


classifier = ConsistentCAMClassifier(
    SmallNet,
    target_layer="10",  # the last ReLU
    alpha=0,
    beta=0,
    image_size=64,
    lr=0.02,
    max_epochs=10,
    random_state=0,
    verbose=0,
)
classifier.fit(X, y)
print(f"accuracy on its training crops: {classifier.score(X, y):.3f}")

# %%
# A picture with both
# -------------------
#
# The network is convolutional up to its pooling, so it takes a picture of any size. As it is a
# network like any other now, it goes to the explainer without its classifier, with the size that
# pictures are to be resized to.

picture = np.concatenate(
    [photographs["temple"][:, :320], photographs["flower"][:, 160:480]], axis=1
)
explainer = CAMExplainer(
    classifier.module_,
    target_layer="10",
    classes=classifier.classes_,
    image_size=(144, 216),
    verbose=0,
).fit()

# %%
# Every method
# ------------
#
# A method is a name, or an object with options. Methods that draw noise have a ``random_state``,
# and two take many samples by default; a few are enough to see what they do.

options = {
    "randomcam": RandomCAM(random_state=0),
    "smoothgradcam++": SmoothGradCAMPlusPlus(n_samples=4, random_state=0),
    "sscam": SSCAM(n_samples=2, random_state=0),
}
methods = {name: options.get(name, name) for name in available()}

# %%
# A display puts them all in a row; on axes of our own they go into several.
#
# Most of them agree: this is easy. The counterfactual map shows what speaks against the flower.
# Gradients at the pixels (saliency, guided backpropagation, deconvolution) are sharp and do not
# care much which class they explain. The controls explain nothing: a number by which they look
# good is not worth much.

figure, axes = plt.subplots(4, 6, figsize=(13, 7), layout="constrained")
for place in axes.flat[1 + len(methods) :]:
    place.set_axis_off()
display = CAMDisplay.from_estimator(
    explainer,
    picture[None],
    methods=methods,
    target="flower",
    ax=axes.flat[: 1 + len(methods)],
    cmap="magma",
    alpha=0.75,
    colorbar=False,
)
axes.flat[0].set_title("why “flower”?")  # which the network need not predict for such a picture

# %%
# By numbers
# ----------
#
# The share of each map that lies in the right half, where the flower is.

shares = {name: map_[:, 320:].sum() / map_.sum() for name, (map_,) in display.maps.items()}
for name, share in sorted(shares.items(), key=lambda item: -item[1]):
    print(f"{name:20}{share:6.2f}")
