"""What consistency costs in accuracy: table 1 of "Staying Consistent with GradCAM", from scratch.

Trains baseline (alpha = beta = 0) and consistent classifiers from random weights, on the same
images, seeds and number of epochs, and prints test accuracy, consistency and complexity as
mean +- deviation over the seeds, and what the method changes seed by seed.

    python benchmarks/consistency_tradeoff.py --data DIR --classes 20 --image-size 112 \
        --arch resnet18 --seeds 3

DIR holds ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from sklcam import ConsistentCAMClassifier
from sklcam.images import ImageDataset
from sklcam.metrics import complexity, consistency_score

MEASURES = ("accuracy", "consistency", "complexity")


def load(folder: Path, classes: list[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode a split once, as uint8 (n, size, size, 3): every run trains on the same pixels."""
    paths = [path for name in classes for path in sorted((folder / name).glob("*.jpg"))]
    images = ImageDataset(paths, image_size=size)
    pixels = np.stack([images[i][0].permute(1, 2, 0).numpy() for i in range(len(paths))])
    return pixels, np.array([path.parent.name for path in paths])


def load_splits(options: argparse.Namespace) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the training and the test images of the classes that are asked for."""
    classes = sorted(path.name for path in (options.data / "train").iterdir())[: options.classes]
    return [load(options.data / split, classes, options.image_size) for split in ("train", "test")]


def add_training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--classes", type=int, default=20, help="the first N, by name")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--step-size", type=int, default=20, help="epochs between steps of lr")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="classifiers trained at a time")


def trained(options: argparse.Namespace, seed: int, data, **parameters) -> ConsistentCAMClassifier:
    clf = ConsistentCAMClassifier(
        options.arch,
        image_size=options.image_size,
        lr=options.lr,
        max_epochs=options.epochs,
        batch_size=options.batch_size,
        callbacks__lr_scheduler__step_size=options.step_size,
        device=options.device,
        random_state=seed,
        **parameters,
    )
    return clf.fit(*data)


def figures_of(clf: ConsistentCAMClassifier, X: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return a classifier's measures, in per cent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant maps count as 0, and show in the figure
        consistency = consistency_score(clf, X)
    sums = [float(complexity(clf.explain_inputs(batch)[0]).sum()) for batch in clf.iter_inputs(X)]
    measures = (clf.score(X, y), consistency, sum(sums) / len(X))
    return {name: 100 * value for name, value in zip(MEASURES, measures, strict=True)}


def measure(options: argparse.Namespace, seed: int, consistent: bool, train, test) -> dict:
    """Train one classifier and return its measures on the test images."""
    clf = trained(
        options,
        seed,
        train,
        alpha=options.alpha if consistent else 0,
        beta=options.beta if consistent else 0,
        p=options.p,
        view_target=options.view_target,
        verbose=int(options.verbose),
    )
    figures = figures_of(clf, *test)
    print(_row(f"seed {seed}, {_name(consistent)}", figures), flush=True)
    return figures


def _name(consistent: bool) -> str:
    return "consistent" if consistent else "baseline"


def _row(title: str, figures: dict[str, float]) -> str:
    return f"{title:24}" + "".join(f"{name} {figures[name]:6.2f}   " for name in MEASURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_training_options(parser)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--beta", type=float, default=1e-6)
    parser.add_argument("--p", type=float, default=1)
    parser.add_argument("--view-target", default="predicted", choices=("predicted", "shared"))
    parser.add_argument(
        "--skip-baseline", action="store_true", help="train the consistent ones only"
    )
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()

    train, test = load_splits(options)
    print(
        f"{options.arch}, {options.classes} classes, {len(train[0])} training and {len(test[0])} "
        f"test images at {options.image_size} pixels, {options.epochs} epochs, lr {options.lr}, "
        f"alpha {options.alpha}, beta {options.beta}, p {options.p}",
        flush=True,
    )
    kinds = (True,) if options.skip_baseline else (False, True)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    runs = [(seed, kind) for seed in seeds for kind in kinds]
    results = Parallel(n_jobs=options.jobs)(
        delayed(measure)(options, seed, kind, train, test) for seed, kind in runs
    )
    table = {
        kind: [figures for (_, of), figures in zip(runs, results, strict=True) if of == kind]
        for kind in kinds
    }
    print()
    for kind, rows in table.items():
        print(_summary(_name(kind), rows))
    if len(kinds) == 2:
        changes = [
            {name: new[name] - old[name] for name in MEASURES}
            for old, new in zip(table[False], table[True], strict=True)
        ]
        print(_summary("change, seed by seed", changes))


def _summary(title: str, rows: list[dict[str, float]]) -> str:
    columns = {name: np.array([row[name] for row in rows]) for name in MEASURES}
    return f"{title:24}" + "".join(
        f"{name} {values.mean():6.2f} +- {values.std(ddof=len(values) > 1):5.2f}   "
        for name, values in columns.items()
    )


if __name__ == "__main__":
    main()
