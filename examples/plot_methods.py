"""
All methods on one picture
==========================

A network trained on ImageNet sees a picture of a cat and a cup of coffee. Every method shows where
the network sees the coffee.
"""

import numpy as np
import skimage.data
from matplotlib import pyplot as plt
from PIL import Image

from sklcam import CAMDisplay, CAMExplainer
from sklcam.cam import ISCAM, RISE, SSCAM, Occlusion, RandomCAM, SmoothGradCAMPlusPlus, available

# %%
# A picture of two things
# -----------------------
#
# The photographs come with scikit-image, and the weights of the network come as a package, the
# extra ``pretrained``. The network is convolutional up to its pooling, so it takes pictures of any
# size.

HEIGHT, WIDTH = 112, 224
halves = (skimage.data.chelsea()[:, 75:375], skimage.data.coffee()[:, 100:500])
picture = np.concatenate(
    [np.asarray(Image.fromarray(half).resize((HEIGHT, HEIGHT))) for half in halves], axis=1
)
settings = {"weights": "DEFAULT", "image_size": (HEIGHT, WIDTH), "resize": "stretch", "verbose": 0}
explainer = CAMExplainer("efficientnet_lite0", **settings).fit()
(probabilities,) = explainer.predict_proba(picture[None])
for best in np.argsort(-probabilities)[:5]:
    print(f"{explainer.class_names_[best]:20}{probabilities[best]:6.2f}")

# %%
# Every method
# ------------
#
# A method is a name, or an object with options. Methods that draw noise have a ``random_state``.
# Some take many samples or patches by default; a few are enough to see what they do.
#
# Rollout, attention relevance and LeGrad are not shown: they follow the attention of a transformer,
# which a convolutional network does not have, and the maps of an untrained transformer would say
# nothing.

options = {
    "iscam": ISCAM(n_samples=2),
    "occlusion": Occlusion(patch=32),
    "randomcam": RandomCAM(random_state=0),
    "rise": RISE(n_samples=400, random_state=0),
    "smoothgradcam++": SmoothGradCAMPlusPlus(n_samples=4, random_state=0),
    "sscam": SSCAM(n_samples=2, random_state=0),
}
of_attention = ("attentionrelevance", "legrad", "rollout")
methods = {name: options.get(name, name) for name in available() if name not in of_attention}

# %%
# Three methods run the network once or more for each channel of the layer. The last layer has 1280
# channels. An earlier block, which has 112 channels and a finer grid, will do for them.

by_channel = ("iscam", "scorecam", "sscam")
earlier = CAMExplainer("efficientnet_lite0", target_layer="_blocks.10", **settings).fit()
question = {"target": "espresso"}
maps = {
    name: (earlier if name in by_channel else explainer).explain(
        picture[None], method=method, **question
    )
    for name, method in methods.items()
}

# %%
# By default, a display puts all maps in one row; axes of our own arrange them in several.
# Pixel-wise maps are drawn without the image, because a few pixels outshine all others.
#
# Most methods agree. SS-CAM with two samples shows mostly noise, and the counterfactual map shows
# what speaks against the coffee. Gradients at the pixels (saliency, guided backpropagation,
# deconvolution) are sharp, and hardly depend on the class they explain. The controls explain
# nothing: a metric by which they look good is not worth much.

figure, axes = plt.subplots(6, 5, figsize=(14, 9.5), layout="constrained")
for place in axes.flat[1 + len(methods) :]:
    place.set_axis_off()
at_pixels = ("deconvnet", "guidedbackprop", "guidedgradcam", "saliency")
drawn_on = axes.flat[: 1 + len(methods)]
CAMDisplay.from_predictions(
    picture[None], maps, pixelwise=at_pixels, ax=drawn_on, cmap="magma", colorbar=False
)
axes.flat[0].set_title("why “espresso”?")  # which the network need not predict for such a picture

# %%
# By numbers
# ----------
#
# The numbers are the share of each map that lies in the right half, where the coffee is.

shares = {name: map_[:, HEIGHT:].sum() / map_.sum() for name, (map_,) in maps.items()}
for name, share in sorted(shares.items(), key=lambda item: -item[1]):
    print(f"{name:20}{share:6.2f}")
