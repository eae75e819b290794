"""
Accuracy against consistency
============================

How much weight the terms on heatmaps should have depends on the network and on the images.
``alpha``, ``beta`` and ``p`` are parameters like any other, so scikit-learn can search over them,
with one scorer for the accuracy and one for the consistency of the heatmaps.

Here a network trained on ImageNet is fine-tuned to tell which photograph a piece was cut from. If
you run this script yourself, it saves the first picture as ``grid_search.png``, or where
``--output`` says.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import skimage.data
from sklearn.datasets import load_sample_images
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit, train_test_split

from sklcam import ConsistentCAMClassifier, MapGridDisplay, TradeoffBoxDisplay, TradeoffDisplay
from sklcam.metrics import consistent_and_accurate, explanation_scorer
from sklcam.training import ViewSampler

# %%
# Images
# ------
#
# The photographs come with scikit-image and scikit-learn, and the weights of the network come as a
# package, the extra ``pretrained``. The pieces are tiles that do not overlap, so no part of a
# photograph is both in the training images and in those that are scored.

TILE, OF_EACH = 64, 24
china, flower = load_sample_images().images
photographs = {
    "cat": skimage.data.chelsea(),
    "flower": flower,
    "motorcycle": skimage.data.stereo_motorcycle()[0],
    "temple": china,
}
generator = np.random.default_rng(0)


def tiles_of(photograph):
    rows, columns = (length // TILE for length in photograph.shape[:2])
    whole = photograph[: rows * TILE, : columns * TILE]
    tiles = whole.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    return generator.choice(tiles, OF_EACH, replace=False)


X = np.concatenate([tiles_of(photograph) for photograph in photographs.values()])
y = np.repeat(list(photographs), OF_EACH)
X, X_test, y, y_test = train_test_split(X, y, test_size=1 / 3, stratify=y, random_state=0)
print(f"{len(X)} tiles to search with, and {len(X_test)} to test what is chosen")

# %%
# The search
# ----------
#
# The first of the two grids is plain training. Half of the tiles are for training, and the others
# for the scores; with more time than a gallery has, ``cv=5`` would use all tiles for both.
# ``recalibrate=True`` is there because, after so few steps, the network's batch normalisation would
# lag behind.

views = ViewSampler(scale=(0.3, 1.0))
clf = ConsistentCAMClassifier(
    "efficientnet_lite0",
    weights="DEFAULT",
    image_size=80,
    views=views,
    augment=None,
    lr=0.01,
    batch_size=8,
    max_epochs=3,
    recalibrate=True,
    random_state=0,
    verbose=0,
)
grid = [
    {"alpha": [0], "beta": [0]},
    {"alpha": [0.2, 1], "beta": [0, 1e-4]},
]

# %%
# The most consistent network may have learned nothing else. So the search takes the most consistent
# one among the candidates that lose at most five points of accuracy to the best.

TOLERANCE = 0.05

scores = explanation_scorer(
    ["accuracy", "consistency"], metric_params={"consistency": {"views": views}}
)
search = GridSearchCV(
    clf,
    grid,
    scoring=scores,
    refit=consistent_and_accurate(tolerance=TOLERANCE),
    cv=StratifiedShuffleSplit(1, test_size=0.5, random_state=0),
)
search.fit(X, y)

# %%
# The trade-off
# -------------
#
# Better candidates lie further up and to the right. Candidates in the grey area are accurate
# enough; the ring marks the one that was chosen. With 32 tiles to score on, one tile is worth three
# points of accuracy, so this shows how to search, and not which weights are best.

tradeoff = TradeoffDisplay.from_estimator(search, color_by="alpha", marker_by="beta")
accurate_enough = (tradeoff.x.max() - TOLERANCE, tradeoff.ax_.get_xlim()[1])
tradeoff.ax_.axvspan(*accurate_enough, color="0.94", zorder=0)
tradeoff.ax_.set_xlim(right=accurate_enough[1])

print(f"chosen: {search.best_params_}")
for name in ("accuracy", "consistency"):
    print(f"{name} {search.cv_results_[f'mean_test_{name}'][search.best_index_]:.3f}")

# %%
# The chosen candidate is trained once more, on all of these tiles, and tested on the others. The
# scores above would be too optimistic, because they were used to choose it.

print(
    {
        name: round(score, 3)
        for name, score in scores(search.best_estimator_, X_test, y_test).items()
    }
)

# %%
# This picture shows one parameter by itself: each point is a candidate, whatever its other
# parameters.

TradeoffBoxDisplay.from_estimator(search, by="alpha", score="consistency")

# %%
# One image
# ---------
#
# This shows what ``alpha`` does to the map of a single image, a piece of a photograph that is
# larger than the tiles. For each picture, a model is trained that differs from the chosen one in
# ``alpha``.

MapGridDisplay.from_estimator(
    search.best_estimator_,
    X[:32],
    y[:32],
    image=photographs["motorcycle"][None, 120:440, 380:700],
    param_grid={"alpha": [0, 1]},
    X_test=X_test,
    y_test=y_test,
)

# %%
# If you run it yourself, the script saves the first picture. While the gallery is built, the
# command line is that of Sphinx.

if __name__ == "__main__" and "sphinx_gallery" not in sys.modules:
    parser = argparse.ArgumentParser(description="Search over alpha and beta on photographs.")
    parser.add_argument("--output", type=Path, default=Path("grid_search.png"))
    output = parser.parse_args().output
    tradeoff.figure_.savefig(output, dpi=150)
    print(f"\nThe picture is in {output}")
