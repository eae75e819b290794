"""Do a network's channels have names? Channels that speak for a fruit, named by boxes of fruit.

    python benchmarks/concepts.py --fruits DIR

The boxes in half of the images name a pretrained network's channels, by the area under the ROC
curve. On the other half, Grad-CAM finds the channels that weigh the most for a class of ImageNet.
The program prints how many of these have the name of the class's fruit, and the score of the names
on the other half. As a control, it does both with permuted labels.

DIR has the images, and ``boxes.csv`` with the columns ``path, label, x1, y1, x2, y2``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from sklcam import CAMExplainer, ConceptNamer
from sklcam.datasets import load_boxes_csv

# The class of ImageNet for each fruit, or for a kind of it.
CLASSES = {"apple": "Granny Smith", "banana": "banana", "orange": "orange"}


def images_and_boxes(folder: Path) -> tuple[list[str], list[dict[str, np.ndarray]]]:
    """Return each image once, with the boxes of all fruit in it."""
    data = load_boxes_csv(folder / "boxes.csv")
    boxes: dict[str, dict[str, np.ndarray]] = {}
    for path, label, corners in zip(data.data, data.target, data.boxes, strict=True):
        boxes.setdefault(path, {})[str(label)] = corners
    return list(boxes), list(boxes.values())


def permuted(boxes: list[dict[str, np.ndarray]], seed: int) -> list[dict[str, np.ndarray]]:
    """Return the boxes of each image, with the labels of the fruits permuted."""
    rng = np.random.default_rng(seed)
    made: list[dict[str, np.ndarray]] = []
    for one in boxes:
        labels = rng.choice(list(CLASSES), size=len(one), replace=False)
        made.append(dict(zip(labels.tolist(), one.values(), strict=True)))
    return made


def heaviest(explainer: CAMExplainer, X: list[str], label: str, k: int) -> dict[str, np.ndarray]:
    """Return the k channels that weigh the most for a class over images, by each kind of weight."""
    opened, rows = explainer.open(X), []
    question = explainer.as_target(label, len(opened))
    for found in explainer.iter_channels(opened, question, method="gradcam"):
        contribution = found.weights * found.activations.mean(dim=(2, 3))
        rows.append(torch.stack([found.weights, contribution]))
    weights = torch.cat(rows, dim=1).mean(dim=1).cpu().numpy()
    names = ("importance", "contribution")
    return {
        name: np.argsort(-each, kind="stable")[:k]
        for name, each in zip(names, weights, strict=True)
    }


def print_names(namer: ConceptNamer, top: dict[str, dict[str, np.ndarray]]) -> None:
    named = [name for name in namer.names_ if name is not None]
    parts = [f"{fruit} {sum(name == fruit for name in named)}" for fruit in CLASSES]
    print(f"  {len(named)} of {len(namer.names_)} channels have a name: {', '.join(parts)}")
    for fruit, by_weight in top.items():
        for weight, channels in by_weight.items():
            names = namer.names_[channels].tolist()
            n_others = sum(name not in (fruit, None) for name in names)
            print(
                f"  {CLASSES[fruit]:13} {weight:13} of the top {len(names)} "
                f"{names.count(fruit):2} named {fruit}, {n_others} otherwise"
            )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fruits", type=Path, required=True, metavar="DIR")
    parser.add_argument("--network", default="efficientnet_lite0")
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    X, boxes = images_and_boxes(options.fruits)
    order = np.random.default_rng(options.seed).permutation(len(X))
    X_fit, X_test = ([X[i] for i in half] for half in (order[::2], order[1::2]))
    boxes_fit, boxes_test = ([boxes[i] for i in half] for half in (order[::2], order[1::2]))
    explainer = CAMExplainer(options.network, weights="DEFAULT", verbose=0).fit()
    top = {}
    for fruit, name in CLASSES.items():
        showing = [path for path, one in zip(X_test, boxes_test, strict=True) if fruit in one]
        top[fruit] = heaviest(explainer, showing, name, options.k)
    namer = ConceptNamer(options.threshold)
    namer.fit(explainer, X_fit, boxes_by_concept=boxes_fit)
    print(f"torch {torch.__version__}, {options.network}, layer {namer.layer_}")
    print(
        f"boxes of {len(X_fit)} images; bins move a score by at most {namer.uncertainty_.max():.4f}"
    )
    print_names(namer, top)
    for what, given in (
        ("", boxes_test),
        (", labels permuted", permuted(boxes_test, options.seed)),
    ):
        score = namer.score(explainer, X_test, boxes_by_concept=given)
        print(f"  score on {len(X_test)} other images{what}: {score:.3f}")
    print("boxes with labels permuted")
    namer.fit(explainer, X_fit, boxes_by_concept=permuted(boxes_fit, options.seed))
    print_names(namer, top)
    if any(name is not None for name in namer.names_):
        score = namer.score(explainer, X_test, boxes_by_concept=boxes_test)
        print(f"  score on {len(X_test)} other images: {score:.3f}")


if __name__ == "__main__":
    main()
