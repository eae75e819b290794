"""
Segmentation seeds from image labels
====================================

A network that was trained on ImageNet knows what is in an image, but has never seen a mask. Its
maps say roughly where things are. Here they become label maps: coarse ones with gaps, and ones that
GrabCut has extended to the edges.
"""

import numpy as np
import skimage.data
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from PIL import Image

from sklcam import CAMExplainer, CAMSegmenter

# %%
# Pictures, and what is in them
# -----------------------------
#
# The photographs come with scikit-image, and the weights of the network come as a package, the
# extra ``pretrained``. For each picture it is known what it shows, but not where. The third picture
# shows both the cat and the cup.

cat = Image.fromarray(skimage.data.chelsea()).crop((75, 0, 375, 300))
cup = Image.fromarray(skimage.data.coffee()).crop((100, 0, 500, 400)).resize((300, 300))
both = Image.fromarray(np.concatenate([np.asarray(cat), np.asarray(cup)], axis=1))
pictures = [cat, cup, both]
labels = [{"tabby"}, {"espresso"}, {"tabby", "espresso"}]

explainer = CAMExplainer(
    "efficientnet_lite0", weights="DEFAULT", resize="stretch", verbose=0
).fit()  # fmt: skip

# %%
# Label maps
# ----------
#
# Pixels where a class's map reaches a fifth of its maximum belong to the class; the least salient
# tenth of the pixels is background. GrabCut looks at colours, and decides about all pixels.

ways = {"seeds": None, "GrabCut": "grabcut"}
segmenters = {
    name: CAMSegmenter(explainer, refine=refine).fit(pictures, labels)
    for name, refine in ways.items()
}
found = {name: segmenter.predict(pictures, labels) for name, segmenter in segmenters.items()}

colours = ListedColormap(["black", "tab:blue", "tab:orange", "white"])
figure, axes = plt.subplots(3, 1 + len(ways), figsize=(8, 6.5), layout="constrained")
for i, (row, picture) in enumerate(zip(axes, pictures, strict=True)):
    row[0].imshow(picture)
    row[0].set_ylabel(" and ".join(sorted(labels[i])))
    for place, (name, label_maps) in zip(row[1:], found.items(), strict=True):
        place.imshow(np.where(label_maps[i] == 255, 3, label_maps[i]), cmap=colours, vmin=0, vmax=3)
        place.set_title(f"{name}: white is unknown" if name == "seeds" and i == 0 else name)
    for place in row:
        place.set(xticks=[], yticks=[])

# %%
# What they are good for
# ----------------------
#
# Neither is a good segmentation. But the seeds label only pixels that they are sure of, so a
# segmentation network can learn from them; ``predict_to`` writes the files that it reads.

for name, label_maps in found.items():
    shares = [(labels != 255).mean() for labels in label_maps]
    print(f"{name:8} pixels with a label: " + ", ".join(f"{share:.0%}" for share in shares))
