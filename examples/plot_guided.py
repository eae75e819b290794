"""
Guided Grad-CAM: sharp, and about one class
===========================================

Grad-CAM knows which class it explains, but is as coarse as its layer. Guided backpropagation is as
sharp as the image, and shows much the same for every class. Their product is both.

A small network learns to tell crops of two photographs apart, and then explains a picture of both,
once for each class.
"""

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.cam import Deconvnet, GuidedBackprop, GuidedGradCAM

torch.set_num_threads(1)  # on images this small, threads would wait for each other

# %%
# A network, and a picture for it
# -------------------------------
#
# The photographs come with scikit-learn; the network is trained on square crops from anywhere in
# them.

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
picture = np.concatenate(
    [photographs["temple"][:, :320], photographs["flower"][:, 160:480]], axis=1
)

# %%
# One explainer, several methods
# ------------------------------
#
# Guided backpropagation and deconvolution are signed at every pixel and colour. By default a map is
# their largest absolute value; ``channels="keep"`` hands out the numbers themselves.

explainer = CAMExplainer(
    classifier.module_,
    target_layer="10",
    classes=classifier.classes_,
    image_size=(216, 324),
    verbose=0,
).fit()
methods = {
    "Grad-CAM": "gradcam",
    "guided\nbackpropagation": GuidedBackprop(channels="keep"),
    "Guided\nGrad-CAM": GuidedGradCAM(channels="keep"),
    "deconvolution": Deconvnet(channels="keep"),
    "Deconvolution\nGrad-CAM": GuidedGradCAM(pixel="deconv", channels="keep"),
}
maps = {
    title: explainer.explain(
        picture[None], target=explainer.classes_[None], method=method, frame="image"
    )[0]
    for title, method in methods.items()
}

# %%
# A target of several classes per image makes a map for each from one forward pass; here that is the
# first axis of what is left when the image's is taken off.


def to_grey(signed):
    """Show signed colours around a middle grey, up to their 99.5th percentile."""
    limit = np.quantile(np.abs(signed), 0.995) or 1.0
    return (np.clip(signed / limit, -1, 1).transpose(1, 2, 0) + 1) / 2


classes = explainer.classes_
figure, axes = plt.subplots(
    len(classes), 1 + len(maps), figsize=(13, 1.75 * len(classes)), layout="constrained"
)
for row, (places, label) in enumerate(zip(axes, classes, strict=True)):
    for place in places:
        place.set_axis_off()
    places[0].imshow(picture)
    places[0].set_title(f"why “{label}”?", fontsize=10)
    for place, (title, of_classes) in zip(places[1:], maps.items(), strict=True):
        map_ = of_classes[row]
        if map_.ndim == 2:
            place.imshow(picture.mean(axis=2), cmap="gray")
            place.imshow(map_, cmap="magma", vmin=0, vmax=1, alpha=0.75)
        else:
            place.imshow(to_grey(map_))
        if row == 0:
            place.set_title(title, fontsize=10)

# %%
# How much of it is about the class?
# ----------------------------------
#
# The share of each map's absolute values that lies in the half of the picture where the class is:
# 0.5 says that the method does not care.
#
# The maps also tell on the network: what it takes for the temple is mostly the sky behind it, as no
# photograph of the flower has any.

halves = {"temple": slice(0, 320), "flower": slice(320, 640)}
for title, of_classes in maps.items():
    shares = [
        np.abs(map_[..., halves[label]]).sum() / np.abs(map_).sum()
        for map_, label in zip(of_classes, classes, strict=True)
    ]
    row = "   ".join(f"{label} {share:.2f}" for label, share in zip(classes, shares, strict=True))
    print(f"{' '.join(title.split()):26}{row}")
