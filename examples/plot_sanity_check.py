"""
Does a map show what was learned?
=================================

A map can look right without showing anything about the network: edges are where objects are,
whatever the network thinks of them. So the weights of a network trained on ImageNet are made
random, layer by layer, and three methods explain the same class again. A map that does not change
does not show what was learned.
"""

import copy

import skimage.data
import torch
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_images

from sklcam import CAMDisplay, CAMExplainer, SanityCheckDisplay

# %%
# With the weights and without
# ----------------------------
#
# The photographs come with scikit-image and scikit-learn, and the weights of the network come as a
# package, the extra ``pretrained``.

china, flower = load_sample_images().images
photographs = {
    "cat": skimage.data.chelsea(),
    "coffee": skimage.data.coffee(),
    "motorcycle": skimage.data.stereo_motorcycle()[0],
    "rocket": skimage.data.rocket(),
    "temple": china,
    "flower": flower,
    "astronaut": skimage.data.astronaut(),
    "tripod": skimage.data.camera(),
}
images = [Image.fromarray(pixels).convert("RGB") for pixels in photographs.values()]
trained = CAMExplainer("efficientnet_lite0", weights="DEFAULT", verbose=0).fit()
predicted = trained.predict(images)

# %%
# In a copy, the last eight of sixteen blocks and the classifier forget what they have learned. The
# copy's predictions are now worthless, and its maps should be, too.

halfway = copy.deepcopy(trained)
network = halfway.model_
torch.manual_seed(0)
for part in [*network._blocks[8:], network._conv_head, network._bn1, network._fc]:
    for layer in part.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()

# %%
# Both networks are explained for the class that the trained network predicts. Grad-CAM's map has
# changed. Guided backpropagation still draws the cat, the cup and the motorcycle: at every ReLU, it
# passes back only positive values, which depend little on the weights.

maps = {}
for method, name in {"gradcam": "Grad-CAM", "guidedbackprop": "Guided backprop"}.items():
    for explainer, state in ((trained, "trained"), (halfway, "half random")):
        maps[f"{name},\n{state}"] = explainer.explain(
            images[:3], target=predicted[:3], method=method
        )
CAMDisplay.from_predictions(images[:3], maps, kind="map", cmap="magma", colorbar=False)

# %%
# Layer by layer
# --------------
#
# Adebayo et al. begin at the output and continue down to the image. Each curve is the rank
# correlation of a method's maps with those of the trained network, averaged over the photographs,
# with its 95 % interval as a band. The dotted line shows how alike maps of different photographs
# are: at that level, nothing is left of the map. A copy of the network is made random; the
# explainer does not change.

methods = {"Grad-CAM": "gradcam", "gradient": "saliency", "Guided backprop": "guidedbackprop"}
display = SanityCheckDisplay.from_estimator(trained, images, methods=methods, layers=8)

# %%
# The same results in numbers are means over all steps. "other class" is the likeness to the map of
# another class, drawn at random: guided backpropagation draws much the same map for it, too.

print(display.check)

# %%
# A method can fail this test, but passing it proves little: a random map passes as well.

plt.show()
