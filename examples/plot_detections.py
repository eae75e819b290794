"""
What a detector saw of each object
==================================

A detector finds several objects in an image, and each has a map of its own. A small one is trained
here on shapes that lie on gravel, bricks and grass, so that it is known where each is. Then three
methods are asked what speaks for each shape; the maps of one of them are on the wrong shapes.
"""

import numpy as np
import skimage.data
import torch
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

from sklcam import CAMExplainer
from sklcam.cam import Box
from sklcam.networks import TargetLayer
from sklcam.plotting import DetectionDisplay

# %%
# Shapes
# ------
#
# Each picture has up to three shapes of any colour and size: discs, squares and triangles, with the
# labels 1, 2 and 3, as detectors keep 0 for the background. The photographs that they lie on come
# with scikit-image.

SIDE, STEPS, BATCH = 96, 400, 8
grounds = (skimage.data.gravel(), skimage.data.brick(), skimage.data.grass())
generator = np.random.default_rng(0)


def a_scene():
    """Return a picture, and the boxes and labels of its shapes."""
    ground = grounds[generator.integers(len(grounds))]
    row, column = generator.integers(0, len(ground) - SIDE, size=2)
    picture = Image.fromarray(ground[row : row + SIDE, column : column + SIDE]).convert("RGB")
    pencil = ImageDraw.Draw(picture)
    boxes, labels = torch.zeros(0, 4), []
    for _ in range(3):
        side = generator.integers(20, 36)
        left, top = generator.integers(0, SIDE - side, size=2)
        box = torch.tensor([[left, top, left + side, top + side]]).float()
        if box_iou(boxes, box).sum() > 0:
            continue  # shapes do not overlap
        label, colour = generator.integers(1, 4), tuple(generator.integers(0, 256, size=3))
        right, bottom = left + side - 1, top + side - 1
        if label == 1:
            pencil.ellipse((left, top, right, bottom), fill=colour)
        elif label == 2:
            pencil.rectangle((left, top, right, bottom), fill=colour)
        else:
            pencil.polygon(((left, bottom), (right, bottom), (left + side // 2, top)), fill=colour)
        boxes, labels = torch.cat([boxes, box]), [*labels, int(label)]
    return np.array(picture), {"boxes": boxes, "labels": torch.tensor(labels)}


# %%
# Training
# --------
#
# It is an FCOS of torchvision, with four layers before its head: half a minute on one core.


class Trunk(nn.Sequential):
    out_channels = 64

    def __init__(self):
        layers = []
        for width, wider, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
            convolution = nn.Conv2d(width, wider, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(wider), nn.ReLU()]
        super().__init__(*layers)


torch.manual_seed(0)
one_level = AnchorGenerator(sizes=((16,),), aspect_ratios=((1.0,),))
detector = FCOS(Trunk(), 4, min_size=SIDE, max_size=SIDE, anchor_generator=one_level)
optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
for _ in range(STEPS):
    pictures, truths = zip(*(a_scene() for _ in range(BATCH)), strict=True)
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    loss = sum(detector([*batch], [*truths]).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

# %%
# New pictures: does it find their shapes? The layers of a detector that torchvision has not built
# are not known, so it is said which one is explained: the last of the trunk.

pictures, truths = zip(*(a_scene() for _ in range(24)), strict=True)
X = np.stack(pictures)
layer = TargetLayer("backbone.11", layout="nchw")
explainer = CAMExplainer(detector.eval(), target_layer=layer, verbose=0).fit(X)

is_found = []
for found, truth in zip(explainer.predict(X), truths, strict=True):
    is_sure = found["scores"] >= 0.5
    overlaps = box_iou(truth["boxes"], torch.from_numpy(found["boxes"][is_sure])).numpy()
    is_same = truth["labels"].numpy()[:, None] == found["labels"][is_sure]
    is_found += [*((overlaps >= 0.5) & is_same).any(axis=1)]
print(f"found, with the right label: {sum(is_found)} of {len(is_found)} shapes")

# %%
# A row for each object
# ---------------------
#
# Of two pictures, all that is detected, in the order of its score. HiResCAM multiplies activations
# and gradients place by place, so that a map is of what the score of this very object was made of.

DetectionDisplay.from_estimator(explainer, X[:2], target=Box(threshold=0.5), method="hirescam")

# %%
# Grad-CAM has one weight for a channel, the mean over all places. A channel that speaks for this
# shape here lights up wherever else there is something like it: on the other shapes.

DetectionDisplay.from_estimator(explainer, X[:2], target=Box(threshold=0.5), method="gradcam")

# %%
# By numbers
# ----------
#
# The share of each map that lies in the box of its shape, a mean over all shapes of all pictures.
# The uniform map has the box's share of the picture.

truth = Box([each["boxes"] for each in truths], [each["labels"] for each in truths])
methods = ("gradcam", "layercam", "hirescam", "uniform")
all_maps = explainer.explain(X, target=truth, method=methods)
for method in methods:
    shares = [
        map_[top:bottom, left:right].sum() / max(map_.sum(), 1e-6)
        for maps, each in zip(all_maps[method], truths, strict=True)
        for map_, (left, top, right, bottom) in zip(maps, each["boxes"].int(), strict=True)
    ]
    print(f"{method:12}{np.mean(shares):6.2f}")

plt.show()
