"""
Guided Grad-CAM: sharp, and about one class
===========================================

Grad-CAM depends on the class that it explains, but is as coarse as its layer. Guided
backpropagation is as sharp as the image, but shows much the same for every class. Their product is
both sharp and about one class.

A picture of a cat and a cup of coffee is explained for a network trained on ImageNet, once for each
of the two.
"""

import numpy as np
import skimage.data
from matplotlib import pyplot as plt
from PIL import Image

from sklcam import CAMExplainer
from sklcam.cam import Deconvnet, GuidedBackprop, GuidedGradCAM

# %%
# A picture of two things
# -----------------------
#
# The photographs come with scikit-image, and the weights of the network come as a package, the
# extra ``pretrained``. The network is convolutional up to its pooling, so it takes pictures of any
# size.

SIDE = 224
halves = (skimage.data.chelsea()[:, 75:375], skimage.data.coffee()[:, 100:500])
picture = np.concatenate(
    [np.asarray(Image.fromarray(half).resize((SIDE, SIDE))) for half in halves], axis=1
)
explainer = CAMExplainer(
    "efficientnet_lite0",
    weights="DEFAULT",
    image_size=(SIDE, 2 * SIDE),
    resize="stretch",
    verbose=0,
).fit()

# %%
# One explainer, several methods
# ------------------------------
#
# Guided backpropagation and deconvolution give a signed number for every pixel and colour. By
# default, a map has the largest absolute value over the colours; ``channels="keep"`` returns the
# numbers themselves.

classes = ("tabby", "espresso")
methods = {
    "Grad-CAM": "gradcam",
    "guided\nbackpropagation": GuidedBackprop(channels="keep"),
    "Guided\nGrad-CAM": GuidedGradCAM(channels="keep"),
    "deconvolution": Deconvnet(channels="keep"),
    "Deconvolution\nGrad-CAM": GuidedGradCAM(pixel="deconv", channels="keep"),
}
maps = {
    title: explainer.explain(
        picture[None], target=np.array([classes]), method=method, frame="image"
    )[0]
    for title, method in methods.items()
}

# %%
# A target with several classes per image makes a map for each class, from one forward pass. Without
# the axis of images, the classes are the first axis here.


def to_grey(signed):
    """Show signed colours around a middle grey, up to their 99.5th percentile."""
    limit = np.quantile(np.abs(signed), 0.995) or 1.0
    return (np.clip(signed / limit, -1, 1).transpose(1, 2, 0) + 1) / 2


figure, axes = plt.subplots(
    len(classes), 1 + len(maps), figsize=(13, 1.5 * len(classes)), layout="constrained"
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
# The numbers are the share of each map's absolute values that lies in the half of the picture where
# the class is: 0.5 means that the method does not depend on the class. Deconvolution was made for
# networks with max-pooling; for a network without, it shows the grid of its strides.

places = {"tabby": slice(0, SIDE), "espresso": slice(SIDE, 2 * SIDE)}
for title, of_classes in maps.items():
    shares = [
        np.abs(map_[..., places[label]]).sum() / np.abs(map_).sum()
        for map_, label in zip(of_classes, classes, strict=True)
    ]
    row = "   ".join(f"{label} {share:.2f}" for label, share in zip(classes, shares, strict=True))
    print(f"{' '.join(title.split()):26}{row}")
