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

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.cam import GradCAM
from sklcam.images import default_statistics
from sklcam.metrics import complexity, get_scorer, ssim_consistency
from sklcam.views import ViewSampler


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
    alone = __name__ == "__main__" and "sphinx" not in sys.modules
    return parser.parse_args(None if alone else []), alone


options, runs_alone = read_options()

# %%
# Images
# ------
#
# The digits are 8 x 8 pixels; the classifier resizes them to 32 x 32. Images from a folder stay file
# paths: they may be of any size, and are read a batch at a time.


def read_digits():
    X, y = load_digits(n_class=options.classes or 10, return_X_y=True)
    return (X / 16).reshape(-1, 8, 8), y


def list_images(folder):
    classes = sorted(path for path in folder.iterdir() if path.is_dir())[: options.classes]
    known = Image.registered_extensions()
    paths = [
        path for name in classes for path in sorted(name.iterdir()) if path.suffix.lower() in known
    ]
    return np.array(paths), np.array([path.parent.name for path in paths])


if options.data and (options.data / "train").is_dir() and (options.data / "test").is_dir():
    X_train, y_train = list_images(options.data / "train")
    X_test, y_test = list_images(options.data / "test")
else:
    X, y = list_images(options.data) if options.data else read_digits()
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
# With ``alpha=0, beta=0`` this is plain training, the baseline. Everything else is the same for both:
# the network, the first weights, the order of the images and the learning rate.

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
# One row is one test image: the first of each of some classes, not chosen by its map. The last two
# maps of each classifier would be equal if it were perfectly consistent.

ROWS = 5
labels, first = np.unique(y_test, return_index=True)
shown = first[np.linspace(0, len(labels) - 1, min(ROWS, len(labels))).round().astype(int)]
images_shown = [X_test[i] for i in shown] if options.data else X_test[shown]


def explain_views(clf):
    """Show one batch and its views to a classifier; return the pictures and their SSIM."""
    inputs = next(clf.iter_inputs(images_shown))
    generator = torch.Generator().manual_seed(1)
    view = views(len(inputs), size=tuple(inputs.shape[-2:]), generator=generator)
    maps, _ = clf.explain_inputs(inputs, method=grad_cam)
    maps_of_view, _ = clf.explain_inputs(view(inputs), method=grad_cam)
    pictures = {
        "image": as_pixels(inputs),
        "view": as_pixels(view(inputs)),
        "its map": maps.cpu(),
        "view of\nthe map": view(maps).cpu(),
        "map of\nthe view": maps_of_view.cpu(),
    }
    return pictures, ssim_consistency(view(maps), maps_of_view).tolist()


def as_pixels(inputs):
    """Undo the normalisation of the network's inputs."""
    mean, std = (torch.tensor(values)[:, None, None] for values in default_statistics(inputs.shape[1]))
    return (inputs.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def draw(axes, picture):
    axes.imshow(picture, cmap="gray" if picture.ndim == 3 else "magma", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_columns(figure, grid, pictures):
    """Draw one column for each kind of picture; return the axes, rows by columns."""
    axes = grid.subgridspec(len(shown), len(pictures), wspace=0.06, hspace=0.26).subplots(
        squeeze=False
    )
    for column, (title, batch) in zip(axes.T, pictures.items(), strict=True):
        column[0].set_title(title, fontsize=10)
        for place, picture in zip(column, batch, strict=True):
            draw(place, picture)
    return axes


figure = plt.figure(figsize=(9, 0.9 + 1.2 * len(shown)))
grid = figure.add_gridspec(
    1, 3, width_ratios=[2, 3, 3], wspace=0.1, left=0.01, right=0.99, bottom=0.04, top=1 - 0.9 / figure.get_figheight()
)
for cell, (name, clf) in zip(list(grid)[1:], classifiers.items(), strict=True):
    pictures, similarities = explain_views(clf)
    originals = {title: pictures.pop(title) for title in ("image", "view")}
    axes = draw_columns(figure, cell, pictures)
    for row, similarity in zip(axes, similarities, strict=True):
        row[1].text(1.03, -0.05, f"SSIM {similarity:.2f}", transform=row[1].transAxes, ha="center", va="top", fontsize=9)
draw_columns(figure, grid[0], originals)

if runs_alone:
    figure.savefig("/tmp/qs/q.png", dpi=150)
