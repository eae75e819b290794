"""
Heatmaps that stay put
======================

A classifier is trained twice on scikit-learn's scanned digits: once on its labels alone, and once
with the consistency loss, which asks that the heatmap of a cropped and flipped image be the cropped
and flipped heatmap of the image. Both are then measured and shown on test images.

Run alone, this script saves the picture. It also takes images of your own, sorted into one folder
per class::

    python examples/plot_quickstart.py --data birds --classes 10 --epochs 30
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import nn

from sklcam import ConsistentCAMClassifier, ViewPairDisplay
from sklcam.cam import GradCAM
from sklcam.datasets import load_class_folders, load_digits
from sklcam.metrics import complexity, get_scorer
from sklcam.training import ViewSampler


def read_options():
    parser = argparse.ArgumentParser(
        description="Train with and without the consistency loss, and compare the heatmaps."
    )
    parser.add_argument("--data", type=Path, help="folder of class folders; default: digits")
    parser.add_argument("--classes", type=int, help="use the first N classes only")
    parser.add_argument("--image-size", type=int, help="default: 32 for digits, 112 for a folder")
    parser.add_argument("--epochs", type=int, help="default: 12 for digits, 30 for a folder")
    parser.add_argument("--output", type=Path, help="where to save the picture")
    parser.add_argument("--verbose", action="store_true", help="log every epoch")
    # While the gallery is built, the command line is Sphinx's.
    alone = __name__ == "__main__" and "sphinx_gallery" not in sys.modules
    return parser.parse_args(None if alone else []), alone


options, runs_alone = read_options()

if not options.data:
    torch.set_num_threads(1)  # on images this small, threads would wait for each other

# %%
# Images
# ------
#
# The digits are 8 x 8 pixels; the classifier resizes them to 32 x 32. Images from a folder stay
# file paths: they may be of any size, and are read a batch at a time.


def load(folder):
    """Return the images of a folder of class folders, or the digits; of the first classes."""
    found = load_class_folders(folder) if folder else load_digits()
    names = found.target_names[: options.classes]
    some = np.isin(found.target, names)
    return np.asarray(found.data)[some], found.target[some]


splits = [options.data / name for name in ("test", "val", "valid")] if options.data else []
held_out = next((split for split in splits if split.is_dir()), None)
if options.data and (options.data / "train").is_dir() and held_out:
    X_train, y_train = load(options.data / "train")
    X_test, y_test = load(held_out)
else:  # folders of splits without a pair are refused by the loader
    X, y = load(options.data)
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

print(f"{len(X_train)} training images and {len(X_test)} test images of {len(set(y_test))} classes")

# %%
# Two classifiers
# ---------------
#
# A ResNet makes a single place of a 32-pixel image, and the heatmap of a single place is constant.
# For the digits a small network of our own keeps 8 x 8 places.


class SmallNet(nn.Module):
    def __init__(self, num_classes, in_channels, width=16):
        super().__init__()
        self.trunk = nn.Sequential(
            self.block(in_channels, width),
            nn.MaxPool2d(2),
            self.block(width, 2 * width),
            nn.MaxPool2d(2),
            self.block(2 * width, 4 * width),
            self.block(4 * width, 4 * width),
        )
        self.head = nn.Linear(4 * width, num_classes)

    @staticmethod
    def block(in_channels, out_channels):
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, images):
        return self.head(self.trunk(images).mean(dim=(2, 3)))


# %%
# The views are random crops and flips. By default a crop may be as small as 8 % of the image, which
# leaves 2 x 2 pixels of a digit; here it is 30 % or more. Training images are cropped a little too,
# but not flipped: a mirrored digit is another shape.
#
# The norm in the loss is a sum over pixels, so that smaller images want a larger ``beta``.

if options.data:
    views = ViewSampler()
    weights_of_loss = {"alpha": 1.0, "beta": 4e-6}
    parameters = {"module": "resnet18", "lr": 0.01}
    image_size, epochs = options.image_size or 112, options.epochs or 30
else:
    views = ViewSampler(scale=(0.3, 1.0))
    weights_of_loss = {"alpha": 1.0, "beta": 3e-4}
    parameters = {
        "module": SmallNet,
        "target_layer": "trunk",
        "augment": ViewSampler(scale=(0.6, 1.0), flip=0.0),
        "lr": 0.05,
    }
    image_size, epochs = options.image_size or 32, options.epochs or 12

parameters |= {
    "views": views,
    "image_size": image_size,
    "max_epochs": epochs,
    "callbacks__lr_scheduler__step_size": max(1, 3 * epochs // 4),
    "random_state": 0,
    "verbose": int(options.verbose),
}

# %%
# With ``alpha=0, beta=0`` this is plain training, the baseline. Everything else is the same for
# both: the network, the first weights, the order of the images and the learning rate.

classifiers = {
    "baseline": ConsistentCAMClassifier(alpha=0, beta=0, **parameters),
    "consistent": ConsistentCAMClassifier(**weights_of_loss, **parameters),
}
for name, clf in classifiers.items():
    print(f"Training the {name} classifier ...", flush=True)
    clf.fit(X_train, y_train)

# %%
# Measured
# --------
#
# Consistency is the mean SSIM between the view of the map and the map of the view: 1 if they are
# equal. The same seed gives both classifiers the same views. Complexity is the mean of the map, its
# L1 norm divided by the number of pixels: the smaller, the less of the image is marked.
#
# The maps are Grad-CAM without its ReLU, as in training, each scaled to [0, 1].

grad_cam = GradCAM(relu=False)
consistency = get_scorer("consistency", views=views, random_state=0)


def mean_complexity(clf):
    maps = clf.explain(X_test, method=grad_cam)
    return complexity(torch.from_numpy(maps)).mean().item()


measures = {
    name: {
        "accuracy": clf.score(X_test, y_test),
        "consistency": consistency(clf, X_test),
        "complexity": mean_complexity(clf),
    }
    for name, clf in classifiers.items()
}

print(f"\n{'':12}{'accuracy':>12}{'consistency':>14}{'complexity':>13}")
for name, row in measures.items():
    accuracy, agreement, area = row.values()
    print(f"{name:12}{accuracy:12.3f}{agreement:14.3f}{area:13.3f}")

# %%
# Seen
# ----
#
# One row is one test image: the first of each of some classes, not chosen by its map; the frame is
# where its view is cut from. The last two maps of each classifier would be equal if it were
# perfectly consistent. A crop that misses the brightest place of the map leaves a dim one, as the
# view of the map is not scaled anew; so even a perfect network stays a little under 1.

ROWS = 5
labels, first = np.unique(y_test, return_index=True)
shown = first[np.linspace(0, len(labels) - 1, min(ROWS, len(labels))).round().astype(int)]


def described(name):
    row = measures[name]
    numbers = f"accuracy {row['accuracy']:.2f}, consistency {row['consistency']:.2f}"
    return f"{name.capitalize()} classifier: {numbers}"


display = ViewPairDisplay.from_estimator(
    {described(name): clf for name, clf in classifiers.items()},
    X_test[shown],
    views=views,
    cmap="magma",
)

# %%
# Alone, the script saves the picture; the digits' one is that of the README.

if runs_alone:
    here = Path("quickstart.png")
    images = Path(__file__).resolve().parents[1] / "docs" / "images"
    output = options.output or (images / here if images.is_dir() and not options.data else here)
    display.figure_.savefig(output, dpi=150)
    print(f"\nThe picture is in {output}")
