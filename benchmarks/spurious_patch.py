"""How much masks help if something beside the object gives the class away.

    python benchmarks/spurious_patch.py --seeds 3

Scikit-learn's digits have a grey patch in a corner. In training, its shade gives the class away; in
the test, it is random. Cross-entropy alone is compared with cross-entropy and a loss on masks of
the digits: "energy", or the losses that ``--mask-loss`` names. The seeds determine the random
weights that training starts from, and where the digits are.

Accuracy is measured on test images. The heatmap ratio is the share of a label's Grad-CAM map that
lies on the digit. The 95 % intervals are by bootstrap over the test images, for which the seeds'
values are averaged first.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paper_tables import Claim, Table, interval_of, publish
from sklearn.datasets import load_digits
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.metrics import evaluate

SIZE, PATCH, N_CLASSES = 24, 5, 5  # sides of an image and of its patch; the first digits
SIDE = 16  # side of a digit
MEASURES = ("accuracy", "heatmap_ratio")


class SmallNetwork(nn.Sequential):
    """A network of three convolutions."""

    def __init__(self, num_classes: int, in_channels: int):
        def block(n_in: int, n_out: int) -> tuple[nn.Module, ...]:
            return nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()

        super().__init__(
            *block(in_channels, 16),
            nn.MaxPool2d(2),
            *block(16, 32),
            *block(32, 32),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, num_classes),
        )


def with_patches(
    digits: np.ndarray, classes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose patches are of these classes, and masks of their digits."""
    images = np.zeros((len(digits), SIZE, SIZE), dtype=np.float32)
    masks = np.zeros(images.shape, dtype=bool)
    for i, digit in enumerate(digits):
        row, column = rng.integers(0, SIZE - SIDE + 1, size=2)
        place = np.s_[i, row : row + SIDE, column : column + SIDE]
        images[place], masks[place] = digit, True
    images[:, :PATCH, :PATCH] = np.linspace(0.1, 1, N_CLASSES)[classes][:, None, None]
    masks[:, :PATCH, :PATCH] = False
    return images, masks


def measured(mask_loss: str | None, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a classifier; return its measures of each test image."""
    rng = np.random.default_rng(seed)
    digits, labels = load_digits(n_class=N_CLASSES, return_X_y=True)
    digits = (digits / 16).reshape(-1, 8, 8).repeat(2, axis=1).repeat(2, axis=2)
    # All seeds have the same test images, so that their values can be averaged.
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[: options.images], order[options.images :][: options.test_images]
    X, masks = with_patches(digits[train], labels[train], rng)
    X_test, masks_test = with_patches(digits[test], rng.integers(N_CLASSES, size=len(test)), rng)
    is_small = options.arch == "small"
    clf = ConsistentCAMClassifier(
        SmallNetwork if is_small else options.arch,
        image_size=SIZE if is_small else 2 * SIZE,
        target_layer="9" if is_small else "auto",
        alpha=0,
        beta=0,
        gamma=0 if mask_loss is None else options.gamma,
        mask_loss=mask_loss or "energy",
        augment=None,
        mean=0.0,
        std=1.0,
        lr=options.lr,
        max_epochs=options.epochs,
        batch_size=options.batch_size,
        device=options.device,
        random_state=seed,
        verbose=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about statistics that lag, and are re-estimated
        clf.fit(X, labels[train], masks=masks)
    return evaluate(
        clf,
        X_test,
        labels[test],
        masks=masks_test,
        metrics=MEASURES,
        target=labels[test],
        progress=False,
    )


def spread(means: np.ndarray) -> str:
    deviation = f" ± {means.std(ddof=1):.1f}" if len(means) > 1 else ""
    return f"{means.mean():.1f}{deviation}"


def table_of(options: argparse.Namespace) -> Table:
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    found: dict[str | None, dict[str, np.ndarray]] = {}
    table = Table("A patch that gives the class away", ["loss", "accuracy", "heatmap ratio"])
    for mask_loss in (None, *options.mask_loss):
        runs = [measured(mask_loss, seed, options) for seed in seeds]
        values = {name: np.array([run[name] for run in runs]) for name in MEASURES}
        found[mask_loss] = {name: 100 * each.mean(axis=0) for name, each in values.items()}
        figures = [spread(100 * each.mean(axis=1)) for each in values.values()]
        table.add("cross-entropy" if mask_loss is None else f"with {mask_loss}", *figures)
    for mask_loss in options.mask_loss:
        for name in MEASURES:
            pair = (found[mask_loss][name], found[None][name])
            interval = interval_of(lambda a, b: a.mean() - b.mean(), *pair)
            table.claims.append(Claim(f"{mask_loss} raises {name.replace('_', ' ')}", *interval))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arch", default="small", help="three convolutions, or a network's name")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--mask-loss", nargs="+", default=["energy"], choices=("energy", "rrr"))
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=400, help="training images")
    parser.add_argument("--test-images", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rst", type=Path, metavar="FILE", help="also write reStructuredText")
    parser.set_defaults(claims=None)
    options = parser.parse_args(arguments)
    publish([table_of(options)], options, "masks")


if __name__ == "__main__":
    main()
