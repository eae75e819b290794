"""Settings of alpha and beta that fail, and what a schedule or a balance makes of them.

Trains a classifier from random weights for each setting, on the same images and seeds, and prints
its accuracy, consistency and complexity on the test images, how many of its maps are highest in a
corner, and what training warned of.

    python benchmarks/stability.py --data DIR --classes 20 --seeds 2 \
        --settings 0,0 1,1e-5 10,1e-6 warmup:10:10,warmup:1e-6:10 auto,auto

DIR holds ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``. A setting is ``alpha,beta``, each a
number, ``auto``, ``balanced:RATIO`` or ``warmup:WEIGHT:EPOCHS``. Beta is given for 224 x 224 pixels
and p = 1, as in the paper's table 2, and brought to the image size: the norm grows with the area.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch
from consistency_tradeoff import add_training_options, figures_of, load_splits, trained
from joblib import Parallel, delayed

from sklcam.cam import GradCAM
from sklcam.training import Balanced, WarmUp


def weight(text: str, scale: float = 1.0):
    """Read a number, "auto", "balanced:RATIO" or "warmup:WEIGHT:EPOCHS"."""
    kind, *values = text.split(":")
    if kind == "auto":
        return kind
    if kind == "balanced":
        return Balanced(float(values[0]))
    if kind == "warmup":
        return WarmUp(scale * float(values[0]), epochs=int(values[1]))
    return scale * float(kind)


def measure(options: argparse.Namespace, setting: str, seed: int, train, test) -> dict[str, float]:
    """Train one classifier and return its measures on the test images, in per cent."""
    alpha, beta = setting.split(",")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what was warned of is printed
        clf = trained(
            options,
            seed,
            train,
            target_layer=options.target_layer,
            alpha=weight(alpha),
            beta=weight(beta, (224 / options.image_size) ** 2),
            verbose=0,
        )
    n_in_corners = 0.0
    for batch in clf.iter_inputs(test[0]):
        maps, _ = clf.explain_inputs(batch, method=GradCAM(relu=False))
        n_in_corners += float(highest_in_a_corner(maps).sum())
    figures = {**figures_of(clf, *test), "corner maps": 100 * n_in_corners / len(test[0])}
    collapsed = dict(clf.callbacks_)["collapse_warning"].collapsed_
    warned = ", ".join(f"{what} in epoch {at}" for what, at in collapsed.items())
    ce = clf.history[:, "train_ce"]
    print(
        row(f"{setting}, seed {seed}", figures)
        + f"cross-entropy {ce[0]:.2f} .. {ce[-1]:.2f}   warned of: {warned or 'nothing'}",
        flush=True,
    )
    return figures


def highest_in_a_corner(maps: torch.Tensor) -> torch.Tensor:
    corners = torch.stack([maps[:, i, j] for i in (0, -1) for j in (0, -1)], dim=1)
    return corners.amax(dim=1) == maps.amax(dim=(1, 2))


def row(title: str, figures: dict[str, float]) -> str:
    return f"{title:36}" + "".join(f"{name} {value:5.1f}   " for name, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", required=True, metavar="ALPHA,BETA")
    parser.add_argument("--target-layer", default="layer3.1")
    add_training_options(parser)
    parser.set_defaults(image_size=64, seeds=1, epochs=20, step_size=15)
    options = parser.parse_args()

    train, test = load_splits(options)
    print(
        f"{options.arch} at {options.target_layer}, {options.classes} classes, {len(train[0])} "
        f"training and {len(test[0])} test images at {options.image_size} pixels, "
        f"{options.epochs} epochs, lr {options.lr}",
        flush=True,
    )
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = [(setting, seed) for setting in options.settings for seed in seeds]
    results = Parallel(n_jobs=options.jobs)(
        delayed(measure)(options, setting, seed, train, test) for setting, seed in runs
    )
    print()
    for setting in options.settings:
        rows = [of for (name, _), of in zip(runs, results, strict=True) if name == setting]
        print(row(f"{setting}, mean", {m: np.mean([each[m] for each in rows]) for m in rows[0]}))


if __name__ == "__main__":
    main()
