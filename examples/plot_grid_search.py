"""
Accuracy against consistency
============================

How hard the loss should pull at the heatmaps depends on the network and on the images. ``alpha``,
``beta`` and ``p`` are parameters like any other, so that scikit-learn can search them, with a
scorer for the accuracy and one for the consistency of the heatmaps.

Run alone, this script saves the picture as ``grid_search.png`` or where ``--output`` says.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.utils import resample
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.metrics import get_scorer
from sklcam.views import ViewSampler

torch.set_num_threads(1)  # on images this small, threads would wait for each other

# %%
# Images and network
# ------------------
#
# The images are some of scikit-learn's scanned digits; the network is small and keeps 8 x 8 places
# of an image of 16 x 16 pixels.

X, y = load_digits(return_X_y=True)
X, y = resample(
    (X / 16).reshape(-1, 8, 8), y, n_samples=600, replace=False, stratify=y, random_state=0
)


class SmallNet(nn.Module):
    def __init__(self, num_classes, in_channels, width=16):
        super().__init__()
        self.trunk = nn.Sequential(
            self.block(in_channels, width),
            nn.MaxPool2d(2),
            self.block(width, 2 * width),
            self.block(2 * width, 4 * width),
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


views = ViewSampler(scale=(0.3, 1.0))
clf = ConsistentCAMClassifier(
    SmallNet,
    target_layer="trunk",
    image_size=16,
    views=views,
    augment=ViewSampler(scale=(0.6, 1.0), flip=0.0),
    lr=0.1,
    batch_size=32,
    max_epochs=12,
    callbacks__lr_scheduler__step_size=9,
    random_state=0,
    verbose=0,
)

# %%
# The search
# ----------
#
# A norm with ``p=1`` sums over the pixels, one with ``p=2`` is much smaller: each has betas of its
# own, so the grid is a list. Its first entry is plain training.

grid = [
    {"alpha": [0], "beta": [0]},
    {"alpha": [0.1, 0.3, 1], "beta": [1e-3, 3e-3], "p": [1]},
    {"alpha": [0.1, 0.3, 1], "beta": [2e-2], "p": [2]},
]

# %%
# The most consistent network may have learned nothing else. The search takes the most consistent
# one among those that lose at most five points of accuracy to the best.

TOLERANCE = 0.05


def most_consistent_of_the_accurate(results):
    accuracy, consistency = results["mean_test_accuracy"], results["mean_test_consistency"]
    accurate = accuracy >= accuracy.max() - TOLERANCE
    return int(np.where(accurate, consistency, -np.inf).argmax())


search = GridSearchCV(
    clf,
    grid,
    scoring={"accuracy": "accuracy", "consistency": get_scorer("consistency", views=views)},
    refit=most_consistent_of_the_accurate,
    cv=2,
    # Other processes could not find SmallNet: for n_jobs=2 it would have to be in a module that
    # they can import, not in the script itself.
    n_jobs=1,
)
search.fit(X, y)

# %%
# Every candidate with its means over the folds, and the one that was chosen.

results = search.cv_results_
candidates = [{"p": None, **parameters} for parameters in results["params"]]
accuracy, consistency = results["mean_test_accuracy"], results["mean_test_consistency"]

print(f"{'alpha':>5}{'beta':>8}{'p':>6}{'accuracy':>12}{'consistency':>14}")
for i, candidate in enumerate(candidates):
    alpha, beta, p = (candidate[name] for name in ("alpha", "beta", "p"))
    mark = "  <- chosen" if i == search.best_index_ else ""
    p = "" if p is None else p
    print(f"{alpha:5}{beta:8}{p:>6}{accuracy[i]:12.3f}{consistency[i]:14.3f}{mark}")

# %%
# The trade-off
# -------------
#
# Up and to the right is better. The bars are the standard deviation over the folds, and the dashed
# line joins the candidates that no other beats in both. ``alpha`` matters most: the harder it
# pulls, the more consistent the maps are. With 300 images and 12 epochs that costs accuracy; with
# more of both, as in :ref:`sphx_glr_auto_examples_plot_quickstart.py`, it costs little.

COLOURS = {0: "black", 0.1: "#56b4e9", 0.3: "#e69f00", 1: "#009e73"}
NORMS = {  # marker and size
    (1, 1e-3): ("o", 6),
    (1, 3e-3): ("o", 11),
    (2, 2e-2): ("s", 8),
}


def draw_candidate(axes, i):
    alpha, beta, p = (candidates[i][name] for name in ("alpha", "beta", "p"))
    marker, size = NORMS.get((p, beta), ("D", 8))
    axes.errorbar(
        accuracy[i],
        consistency[i],
        xerr=results["std_test_accuracy"][i],
        yerr=results["std_test_consistency"][i],
        color=COLOURS[alpha],
        marker=marker,
        markersize=size,
        elinewidth=1,
        zorder=3,
    )


def pareto_front():
    """Indices of the candidates that no other beats in both, by falling accuracy."""
    order = np.lexsort((-consistency, -accuracy))
    best_before = np.maximum.accumulate(np.r_[-np.inf, consistency[order][:-1]])
    return order[consistency[order] > best_before]


def key(label, **style):
    return Line2D([], [], linestyle="", label=label, **style)


figure, axes = plt.subplots(figsize=(8.5, 5), layout="constrained")
for i in range(len(candidates)):
    draw_candidate(axes, i)
front = pareto_front()
axes.plot(accuracy[front], consistency[front], "--", color="0.6", linewidth=1, zorder=1)
chosen = {"marker": "o", "markersize": 20, "color": "#d55e00", "markerfacecolor": "none"}
axes.plot(accuracy[search.best_index_], consistency[search.best_index_], **chosen)

low, high = axes.get_xlim()
axes.axvspan(accuracy.max() - TOLERANCE, high, color="0.94", zorder=0)
axes.text(high, 1.01, "accurate enough ", transform=axes.get_xaxis_transform(), ha="right")

alphas = [
    key(f"alpha = {alpha}", marker="o", color=colour) for alpha, colour in COLOURS.items() if alpha
]
norms = [
    key(f"p = {p}, beta = {beta:g}", marker=marker, markersize=size, color="0.5")
    for (p, beta), (marker, size) in NORMS.items()
]
others = [
    key("baseline", marker="D", markersize=8, color="black"),
    key("chosen", **{**chosen, "markersize": 14}),
]
figure.legend(handles=[*alphas, *norms, *others], loc="outside right upper", frameon=False)
axes.set(xlabel="accuracy", ylabel="consistency", xlim=(low, high))
axes.spines[["top", "right"]].set_visible(False)

# %%
# Alone, the script saves the picture. While the gallery is built, the command line is Sphinx's.

if __name__ == "__main__" and "sphinx_gallery" not in sys.modules:
    parser = argparse.ArgumentParser(description="Search over alpha, beta and p on digits.")
    parser.add_argument("--output", type=Path, default=Path("grid_search.png"))
    output = parser.parse_args().output
    figure.savefig(output, dpi=150)
    print(f"\nThe picture is in {output}")
