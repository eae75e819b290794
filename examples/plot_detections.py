"""
What a detector sees in each object
===================================

A detector finds several objects in an image, and each object has its own map. This example trains a
small detector on shapes that lie on gravel, bricks and grass, so the place of every shape is known.
Then three methods show what speaks for each shape, and the maps of one of them lie on the wrong
shapes.
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
# Each picture has up to three shapes of any colour and size: discs, squares and triangles. Their
# labels are 1, 2 and 3, because detectors keep 0 for the background. The photographs behind them
# come with scikit-image.

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
# The detector is torchvision's FCOS, with four layers before its head. Training takes half a minute
# on one core.


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
# Does it find the shapes in new pictures? torchvision has not built this detector, so its layers
# are unknown, and ``target_layer`` names the one to explain, the last layer of the trunk.

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
# These are all objects detected in two pictures, in the order of their scores. HiResCAM multiplies
# activations and gradients place by place, so a map shows what the score of this very object was
# made of.

DetectionDisplay.from_estimator(explainer, X[:2], target=Box(threshold=0.5), method="hirescam")

# %%
# Grad-CAM has one weight per channel, the mean over all places. A channel that speaks for a shape
# here also lights up wherever there is something similar: on the other shapes.

DetectionDisplay.from_estimator(explainer, X[:2], target=Box(threshold=0.5), method="gradcam")

# %%
# By numbers
# ----------
#
# The numbers are the share of each map that lies in the box of its shape, averaged over all shapes
# of all pictures. For the uniform map, this is the box's share of the picture.

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
