"""A watermark that gives a class away: is it found, and what removes its influence?

    python benchmarks/watermark.py --docs --data DIR --rst watermark.rst
    python benchmarks/watermark.py --quick --data DIR

As in section 6.3 of the Grad-CAM paper, a network learns what it should not, maps show it, and the
network is trained again without it. In training, nearly all photographs of one class have a
half-transparent checkerboard near a corner, and few of the other classes do. A pretrained network
is fine-tuned, ``find_shortcuts`` looks at other photographs that are marked in the same way, and
the network is fine-tuned again, from the same weights and for as long:

- "rebalanced": half of each class's images are marked;
- "energy", "rrr": the images stay the same, and a loss keeps maps, or gradients at the pixels, out
  of the region of the strongest cluster;
- "never marked": the images without marks, which would not be available in practice. This is an
  upper bound.

All are measured on the same test images, once clean and once marked. DIR holds
``train/<class>/*.jpg`` and ``test/<class>/*.jpg``, or is Caltech 101 as published. The 95 %
intervals are by bootstrap over the images; differences are between pairs.

Reference: Selvaraju et al., "Grad-CAM", IJCV 2020, section 6.3.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from paper_tables import Claim, Table, interval_of, options_of, parser_of, publish
from photographs import parts
from PIL import Image, ImageOps

from sklcam import ConsistentCAMClassifier
from sklcam.concepts import Shortcuts, find_shortcuts
from sklcam.metrics import evaluate
from sklcam.training import LaggingStatisticsWarning

CLASSES = ("crayfish", "lobster", "scorpion", "ant", "dragonfly")  # the first is marked
SHARE, SHARE_OF_OTHERS = 0.95, 0.05  # shares of images that are marked in training
DOCS = {"image_size": 128, "epochs": 5, "remedies": ("rebalanced", "energy", "never marked")}
QUICK = {"image_size": 64, "epochs": 1, "remedies": ("rebalanced", "energy")}
REMEDIES = ("rebalanced", "energy", "rrr", "never marked")
PLAIN = "original images"
KINDS = ("clean", "marked")
GROUPS = ("clean, its class", "clean, others", "marked, its class", "marked, others")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read(options: argparse.Namespace, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the photographs of the classes, cropped to squares, and their labels."""
    paths, y = parts(options.data)[part]
    chosen = np.isin(y, options.classes)
    squares = []
    for path in paths[chosen]:
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (options.image_size,) * 2)
        squares.append(np.asarray(square))
    return np.stack(squares), y[chosen]


def marked(images: np.ndarray, opacity: float) -> np.ndarray:
    """Return images with a checkerboard of four by four, a tenth of the area, near a corner."""
    start, side = 5 * images.shape[1] // 8, 5 * images.shape[1] // 16
    there = np.s_[:, start : start + side, start : start + side]
    checker = 255 * ((np.indices((side, side)) // (side // 4)).sum(axis=0)[..., None] % 2)
    changed = images.copy()
    changed[there] = (1 - opacity) * images[there] + opacity * checker
    return changed


def partly_marked(
    X: np.ndarray, y: np.ndarray, shares: Sequence[float], options: argparse.Namespace
) -> np.ndarray:
    """Return images, marked with one share of the first class and another of each other class."""
    rng = np.random.default_rng(options.seed)
    is_marked = np.zeros(len(y), dtype=bool)
    for label in options.classes:
        rows = rng.permutation(np.flatnonzero(y == label))
        share = shares[label != options.classes[0]]
        is_marked[rows[: round(share * len(rows))]] = True
    return np.where(is_marked[:, None, None, None], marked(X, options.opacity), X)


def fine_tuned(
    X: np.ndarray,
    y: np.ndarray,
    options: argparse.Namespace,
    mask_loss: str | None = None,
    region: np.ndarray | None = None,
) -> ConsistentCAMClassifier:
    """Return a network trained on labels and, if a region is given, to look elsewhere."""
    clf = ConsistentCAMClassifier(
        options.arch,
        weights=None if options.weights == "none" else options.weights,
        alpha=0,
        beta=0,
        gamma=0 if region is None else options.gamma,
        mask_loss=mask_loss or "energy",
        augment=None,
        image_size=options.image_size,
        lr=options.lr,
        max_epochs=options.epochs,
        batch_size=options.batch_size,
        device=options.device,
        random_state=options.seed,
        verbose=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LaggingStatisticsWarning)  # re-estimated
        if region is None:
            return clf.fit(X, y)
        return clf.fit(X, y, masks=np.broadcast_to(~region, (len(X), *region.shape)))


def measured(clf, X: np.ndarray, y: np.ndarray, options: argparse.Namespace):
    """Evaluate clean and marked images, and return which are called the first class, too."""
    both = np.concatenate([X, marked(X, options.opacity)])
    its = np.where(y == options.classes[0], "its class", "others")
    groups = np.array([f"{kind}, {of}" for kind in KINDS for of in its])
    found = evaluate(
        clf, both, np.tile(y, 2), metrics="accuracy", groups={"images": groups}, progress=False
    )
    return found, clf.predict(both) == options.classes[0], groups


def shortcuts_table(found: Shortcuts, options: argparse.Namespace) -> Table:
    """Return the clusters, the strongest first."""
    header = ["rank", "class", "images", "separation", "likeness", "drop", "of accuracy", "is"]
    table = Table(f"Clusters of maps, {options.arch}, trained on {PLAIN}", header)
    for rank, each in enumerate(found[:5], start=1):
        numbers = (each.separation, each.likeness, each.drop, each.accuracy_drop)
        cells = [f"{number:.2f}" for number in numbers]
        strong = "strong" if each.is_strong else "not strong"
        table.add(str(rank), str(each.label), str(len(each)), *cells, strong)
    return table


def accuracies_table(results: dict, n_images: int, options: argparse.Namespace) -> Table:
    """Return accuracies by group, in per cent, and what each remedy changes."""
    its = options.classes[0]
    groups = [group.replace("its class", its) for group in GROUPS]
    table = Table(
        f"Accuracy, per cent, on {n_images} photographs, clean and marked, {options.arch}",
        ["trained on", "clean", *groups, *(f"others called {its}, {k}" for k in KINDS)],
    )
    for name, (found, called, groups) in results.items():
        values = 100 * found["accuracy"]
        of = [values[np.char.startswith(groups, "clean")], *(values[groups == g] for g in GROUPS)]
        of += [100 * called[groups == group] for group in ("clean, others", "marked, others")]
        table.add(name, *("{:.0f} ({:.0f} to {:.0f})".format(*interval_of(np.mean, v)) for v in of))
    before, called_before, groups = results[PLAIN]
    others = groups == "marked, others"
    for name, (found, called, _) in results.items():
        if name == PLAIN:
            continue
        fewer = 100 * (called_before[others].astype(float) - called[others])
        text = f"Watermark, {name}: fewer marked images of others are called {its}"
        table.claims.append(Claim(text, *interval_of(np.mean, fewer)))
        for shown, rows in (
            ("clean images", np.char.startswith(groups, "clean")),
            (f"clean images of {its}", groups == "clean, its class"),
        ):
            rises = 100 * (found["accuracy"] - before["accuracy"])[rows]
            text = f"Watermark, {name}: accuracy on {shown} rises"
            table.claims.append(Claim(text, *interval_of(np.mean, rises)))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, None, DOCS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classes", nargs="+", default=CLASSES, help="the first is marked")
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--weights", default="DEFAULT", help='a file, or "none" for random weights')
    parser.add_argument("--remedies", nargs="+", choices=REMEDIES)
    parser.add_argument("--opacity", type=float, default=0.6)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--gamma", type=float, default=1.0, help='the weight of "energy", "rrr"')
    parser.add_argument("--min-size", type=int, default=10, help="smallest cluster, in images")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = options_of(parser, arguments)
    (X, y), (X_test, y_test) = (read(options, part) for part in ("train", "test"))
    came = partly_marked(X, y, (SHARE, SHARE_OF_OTHERS), options)
    clf = fine_tuned(came, y, options)
    shown = partly_marked(X_test, y_test, (1.0, 0.0), options)
    found = find_shortcuts(clf, shown, y_test, min_size=options.min_size, random_state=options.seed)
    if not len(found):
        raise SystemExit(f"No cluster has {options.min_size} images. Give a smaller --min-size.")
    say(f"{found}\nThe strongest covers {100 * found[0].region.mean():.0f} % of the image")
    results = {PLAIN: measured(clf, X_test, y_test, options)}
    for name in options.remedies:
        if name in ("energy", "rrr"):
            clf = fine_tuned(came, y, options, name, found[0].region)
        else:
            images = X if name == "never marked" else partly_marked(X, y, (0.5, 0.5), options)
            clf = fine_tuned(images, y, options)
        results[name] = measured(clf, X_test, y_test, options)
        say(f"{name}:\n{results[name][0].by_group()['images']}")
    tables = [shortcuts_table(found, options), accuracies_table(results, len(y_test), options)]
    publish(tables, options, "Selvaraju et al.")


if __name__ == "__main__":
    main()
