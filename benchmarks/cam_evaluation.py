"""Table 2 of Poppi et al.: CAM methods by average drop, deletion, insertion, ADCC and the rest.

    python benchmarks/cam_evaluation.py --docs --data DIR --results known.jsonl --rst tables.rst
    python benchmarks/cam_evaluation.py --full --data IMAGENET --device cuda --precision bf16
    python benchmarks/cam_evaluation.py --docs --data DIR --arch vgg11_bn --weights none \
        --classes 20 --image-size 112

Each method explains the predicted class of the same images. Methods that run the network for every
channel may take fewer images, and so may deletion and insertion. Images come in chunks, and a chunk
of a method that is in ``--results`` is not computed again, so you can give a larger ``--images``,
or resume an interrupted run. ``--known`` prints the tables of the results so far.

DIR is ImageNet, whose ``val`` is used, or a folder of photographs, in folders of classes or not; if
it has ``train`` and ``test``, ``test`` is used. Labels are only needed for the accuracy, and are
known if the folders are named like the network's classes. ``--weights`` is a name for all networks,
a file for each, or "none"; with "none", each network is first trained on ``train``.

ADCC is the harmonic mean of the averages in its row. The number after ± is half of the 95 %
interval, by bootstrap over the images. Claims compare methods on the images that all of them have
explained. Insertion starts from the blurred image, and deletion ends at the mean colour.

Reference: Poppi, Cornia, Baraldi, Cucchiara, "Revisiting The Evaluation of Class Activation Mapping
for Explainability", CVPR Workshops 2021.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cam_runs import CURVES, Chunk, explainer_of, images_of, known_labels, measured, say, told
from paper_tables import Claim, Results, Table, interval_of, options_of, parser_of, publish
from training_runs import Run

from sklcam.cam import PerturbationMethod, available, get_method

COLUMNS = {  # and whether more is better
    "average_drop": ("Avg drop ↓", False),
    "average_increase": ("Avg increase ↑", True),
    "dauc": ("Deletion ↓", False),
    "iauc": ("Insertion ↑", True),
    "coherency": ("Coherency ↑", True),
    "complexity": ("Complexity ↓", False),
    "adcc": ("ADCC ↑", True),
}
TERMS = ("average_drop", "coherency", "complexity")  # the terms of ADCC
CONTROL = "fakecam"
# The paper's methods, in its order; then others, and methods that run the network for every
# channel.
OF_PAPER = ("gradcam", "xgradcam", "gradcam++", "smoothgradcam++", "scorecam")
METHODS = (
    *(CONTROL, "randomcam", *OF_PAPER[:4], "cam", "hirescam", "layercam"),
    *("scorecam", "ablationcam"),
)
OF_MANY_PASSES = ("sscam", "iscam")  # 35 and 10 passes for each of Score-CAM's: for a GPU
PAPER = {  # figures in the order of the columns
    "vgg16": {
        "fakecam": "0.15 45.51 32.87 35.70 100.00 100.00 0.01",
        "gradcam": "66.42 5.92 11.12 19.56 69.20 15.65 53.52",
        "xgradcam": "73.84 4.09 11.59 14.95 66.69 13.68 46.29",
        "gradcam++": "32.88 20.10 8.82 36.60 89.34 26.33 75.65",
        "smoothgradcam++": "36.72 16.11 10.57 31.36 82.68 28.09 71.72",
        "scorecam": "26.13 24.75 9.52 47.00 93.83 20.27 81.66",
    },
    "resnet18": {
        "fakecam": "0.24 45.37 31.12 33.44 100.00 100.00 0.01",
        "gradcam": "42.90 16.63 13.43 41.47 81.03 23.04 69.98",
        "gradcam++": "17.85 34.46 12.30 44.80 98.18 44.63 74.24",
        "smoothgradcam++": "20.67 29.99 12.83 43.13 97.53 43.11 74.20",
        "scorecam": "12.81 40.41 10.76 46.01 98.35 41.78 77.30",
    },
    "resnet50": {
        "fakecam": "0.38 47.54 38.06 38.72 100.00 100.00 0.01",
        "gradcam": "32.99 24.27 17.49 48.48 82.80 22.24 75.27",
        "gradcam++": "12.82 40.63 14.10 53.51 97.84 43.99 75.86",
        "smoothgradcam++": "15.21 35.62 15.21 52.43 97.47 42.25 76.19",
        "scorecam": "8.61 46.00 13.33 54.16 98.12 42.05 78.14",
    },
    "resnet101": {
        "fakecam": "0.36 43.98 43.66 41.64 100.00 100.00 0.01",
        "gradcam": "29.38 29.35 18.66 47.47 81.97 22.51 76.40",
        "gradcam++": "11.38 42.07 14.99 56.65 98.28 43.94 76.34",
        "smoothgradcam++": "13.37 37.76 14.32 58.23 97.76 42.61 76.54",
        "scorecam": "7.20 47.93 14.63 59.57 98.37 42.04 78.55",
    },
    "resnext50_32x4d": {
        "fakecam": "0.34 46.70 41.67 43.31 100.00 100.00 0.01",
        "gradcam": "28.06 29.42 20.73 50.30 82.72 25.57 76.09",
        "gradcam++": "11.12 41.38 17.07 56.05 97.30 48.66 73.16",
        "smoothgradcam++": "12.70 36.58 16.90 56.76 97.32 47.48 73.58",
        "scorecam": "7.20 45.70 15.59 57.92 98.00 46.86 75.38",
    },
    "resnext101_32x8d": {
        "fakecam": "0.26 42.43 48.90 46.79 100.00 100.00 0.01",
        "gradcam": "24.12 36.37 20.47 61.04 82.94 25.45 77.62",
        "gradcam++": "9.74 42.63 17.63 62.90 95.05 46.27 74.61",
        "smoothgradcam++": "9.49 40.43 17.67 64.16 96.81 49.24 73.03",
        "scorecam": "5.37 47.70 17.30 63.61 97.03 46.83 75.60",
    },
}
BESIDE = "resnet50"  # for networks that the paper does not have
SAME = 0.1  # points, between the figures of methods that are the same
PRECISION = "of the networks that Score-CAM and its relatives explain"

DOCS = {
    "arch": ["efficientnet_lite0", "efficientnet_lite2"],
    "weights": ["DEFAULT"],
    "images": 500,
    "images_curves": 100,
    "images_perturbation": 40,
    "n_steps": 14,
    "methods": METHODS,
    "chunk": 20,
}
QUICK = {**DOCS, "images": 16, "images_curves": 4, "images_perturbation": 2, "chunk": 2}
FULL = {
    "arch": list(PAPER),
    "weights": ["IMAGENET1K_V1"],  # torchvision's of that time
    "images": 50000,
    "images_curves": 50000,
    "images_perturbation": 50000,
    "n_steps": 224,
    "image_size": 224,
    "methods": (*METHODS, *OF_MANY_PASSES),
    "chunk": 20,
}


# The tables


def is_slow(method: str) -> bool:
    """Return whether a method runs the network for each channel; Ablation-CAM runs its head."""
    return isinstance(get_method(method), PerturbationMethod) and method != "ablationcam"


def precision_of(method: str, precision: str) -> str:
    """Return the network's precision for a method and its measurements."""
    return precision if is_slow(method) else "fp32"


def chunks_of(arch: str, weights: str, options: argparse.Namespace) -> list[Chunk]:
    """Return the chunks to measure for a network."""
    paths, labels, every = images_of(options)
    training, classes = None, None
    if weights == "none":
        training = Run(
            **{"arch": arch, "weights": None, "data": str(options.data), "setting": "0,0,1"},
            **{"n_classes": options.classes, "image_size": options.image_size or 112},
            **{"held_out": False, "measured_on": "test", "seed": 0, "lr": options.lr},
            **{"epochs": options.epochs, "step_size": max(1, 2 * options.epochs // 3)},
            **{"batch_size": 32, "device": options.device},
        )
    elif Path(weights).is_file():
        classes = tuple(every[: options.classes])
    size = options.image_size if training is None else training.image_size
    place = (arch, weights, training, classes, size)
    found: Sequence[Any] | None = None
    methods = list(options.methods)
    if not options.known:
        explainer = explainer_of(*place, options.batch_size, options.device, "fp32")
        found = known_labels(explainer, labels, every)
        if "cam" in methods:
            try:
                explainer.explain(paths[:1], method="cam")
            except ValueError as error:
                say(f"{arch}, cam: {error}")  # the head is of another kind
                methods.remove("cam")
    wanted = {*options.metrics, *(TERMS if "adcc" in options.metrics else ())} - {"adcc"}
    of_maps = tuple(name for name in COLUMNS if name in wanted and name not in CURVES)
    of_curves = tuple(name for name in CURVES if name in wanted)
    chunks = []
    for method in methods:
        slow = is_slow(method)
        n_images = min(len(paths), options.images_perturbation if slow else len(paths))
        for start in range(0, n_images, options.chunk):
            curves = of_curves if start < options.images_curves else ()
            # Maps that cost more than curves are made once; others are made again, only for the
            # curves.
            for metrics in [(*of_maps, *curves)] if slow else [of_maps, curves]:
                if not metrics:
                    continue
                rows = slice(start, min(start + options.chunk, n_images))
                chunks.append(
                    Chunk(
                        *place,
                        method=method,
                        precision=precision_of(method, options.precision),
                        metrics=metrics,
                        n_steps=options.n_steps,
                        images=tuple(paths[rows]),
                        labels=None if found is None else tuple(found[rows]),
                        start=start,
                        batch_size=options.batch_size,
                        device=options.device,
                    )
                )
    return sorted(chunks, key=in_order)


def in_order(chunk: Chunk) -> tuple[bool, bool, int]:
    """Return a key that puts quick chunks first, and all methods of some images together."""
    return is_slow(chunk.method), not set(CURVES).isdisjoint(chunk.metrics), chunk.start


class Values:
    """Values of a network's methods by image, in per cent; NaN where nothing was measured.

    An image without a value, because its map is NaN, is left out of the figure, and is not counted.
    """

    def __init__(self, chunks: Sequence[Chunk], results: Results[Chunk]):
        self.n_images = max(chunk.start + len(chunk.images) for chunk in chunks)
        self._found: dict[str, dict[str, np.ndarray]] = {}
        self.uniform = True  # whether gradients at the layer are uniform, in all chunks
        self.correct = np.full(self.n_images, np.nan)
        for chunk in chunks:
            if chunk not in results:
                continue
            measures = results[chunk]
            rows = slice(chunk.start, chunk.start + len(chunk.images))
            columns = self._found.setdefault(chunk.method, {})
            for name in chunk.metrics:
                column = columns.setdefault(name, np.full(self.n_images, np.nan))
                column[rows] = 100 * np.array(measures[name])
            self.uniform = self.uniform and measures.get("uniform", True)
            if "accuracy" in measures:
                self.correct[rows] = 100 * np.array(measures["accuracy"])

    @property
    def methods(self) -> list[str]:
        return list(self._found)

    def columns(self, method: str, metric: str) -> list[np.ndarray]:
        """Return the metrics that a figure is made of: for ADCC, its terms."""
        found = self._found.get(method, {})
        names = TERMS if metric == "adcc" else (metric,)
        return [found.get(name, np.full(self.n_images, np.nan)) for name in names]

    def shared(self, methods: Sequence[str], metric: str) -> list[list[np.ndarray]]:
        """Return each method's columns, for the images that all of them have."""
        columns = [self.columns(method, metric) for method in methods]
        kept = np.isfinite(np.stack([column for of in columns for column in of])).all(axis=0)
        return [[column[kept] for column in of] for of in columns]


def figure(metric: str, columns: Sequence[np.ndarray]) -> float:
    """Return a mean, or for ADCC the harmonic mean of means (equation 5, for the averages)."""
    means = [float(column.mean()) for column in columns]
    if metric != "adcc":
        return means[0]
    drop, coherency, complexity = means
    terms = np.array([coherency, 100 - complexity, 100 - drop])
    return 0.0 if (terms <= 0).any() else float(3 / (1 / terms).sum())


def table_of(
    arch: str,
    chunks: Sequence[Chunk],
    results: Results[Chunk],
    options: argparse.Namespace,
) -> Table:
    values = Values(chunks, results)
    metrics = [name for name in COLUMNS if name in options.metrics]
    right = values.correct[np.isfinite(values.correct)]
    accuracy = f", {right.mean():.1f} % of {len(right)} right" if len(right) else ""
    size = "" if chunks[0].image_size is None else f" at {chunks[0].image_size} pixels"
    beside = arch if arch in PAPER else BESIDE
    curves = "" if set(CURVES).isdisjoint(metrics) else f", curves in {options.n_steps} steps"
    table = Table(
        f"{arch} ({Path(chunks[0].weights).name}){size}{accuracy}; in per cent{curves}",
        ["method", "images", *(COLUMNS[name][0] for name in metrics)],
    )
    for method in sorted(values.methods, key=options.methods.index):
        cells, counts = [], []
        for metric in metrics:
            (columns,) = values.shared([method], metric)
            counts.append(len(columns[0]))
            if not counts[-1]:
                cells.append("")
                continue
            value, low, high = interval_of(lambda *of, metric=metric: figure(metric, of), *columns)
            cells.append(f"{value:.1f} ± {(high - low) / 2:.1f}")
        precision = precision_of(method, options.precision)
        name = method if precision == "fp32" else f"{method}, {precision}"
        of_maps, of_curves = (
            {n for n, metric in zip(counts, metrics, strict=True) if (metric in CURVES) == curves}
            for curves in (False, True)
        )
        n_images = str(min(of_maps or of_curves))
        if of_maps and of_curves and of_curves != of_maps:
            n_images += f" (curves {min(of_curves)})"
        table.add(name, n_images, *cells)
        if method in PAPER[beside]:
            theirs = dict(zip(COLUMNS, PAPER[beside][method].split(), strict=True))
            table.add(f"paper, {beside}", "50000", *(theirs[metric] for metric in metrics))
    table.claims = claims_of(arch, values, metrics)
    return table


# The claims


def claims_of(arch: str, values: Values, metrics: Sequence[str]) -> list[Claim]:
    """Return the paper's claims in sections 3.1 and 4 about methods that were measured."""
    known = [name for name in OF_PAPER if name in values.methods]
    claims: list[Claim] = []

    def best(
        text: str, method: str, others: Sequence[str], metric: str, worst: bool = False
    ) -> None:
        """Claim that a method's figure is the best of all, or the worst."""
        if metric not in metrics or method not in values.methods or not others:
            return
        columns = values.shared([method, *others], metric)
        if not len(columns[0][0]):
            return
        sign = (1 if COLUMNS[metric][1] else -1) * (-1 if worst else 1)
        n_columns = len(columns[0])

        def margin(*flat: np.ndarray) -> float:
            first, *rest = (
                sign * figure(metric, flat[i : i + n_columns])
                for i in range(0, len(flat), n_columns)
            )
            return first - max(rest)

        flat = [column for of in columns for column in of]
        found = interval_of(margin, *flat)
        claims.append(Claim(f"{arch}: {text}", *found, n_images=len(flat[0])))

    best("Fake-CAM loses less confidence than any other method", CONTROL, known, "average_drop")
    text = "Fake-CAM raises confidence more often than any other method"
    best(text, CONTROL, known, "average_increase")
    best("Fake-CAM has the lowest ADCC", CONTROL, known, "adcc", worst=True)
    others = [name for name in known if name != "scorecam"]
    if arch.startswith("resnext"):
        best("Grad-CAM has the highest ADCC", "gradcam", known[1:], "adcc")
    else:
        best("Score-CAM has the highest ADCC", "scorecam", others, "adcc")
    for metric, what in (
        ("average_drop", "loses the least confidence"),
        ("average_increase", "raises confidence most often"),
        ("dauc", "has the best deletion"),
        ("iauc", "has the best insertion"),
        ("coherency", "is the most coherent"),
    ):
        best(f"Score-CAM {what}", "scorecam", others, metric)
    # Without XGrad-CAM, which equals Grad-CAM or nearly so.
    for other, name in (("gradcam++", "Grad-CAM++"), ("scorecam", "Score-CAM")):
        if other in known:
            best(f"Grad-CAM is less complex than {name}", "gradcam", [other], "complexity")
            text = f"Grad-CAM is less coherent than {name}"
            best(text, "gradcam", [other], "coherency", worst=True)
            text = f"Grad-CAM loses more confidence than {name}"
            best(text, "gradcam", [other], "average_drop", worst=True)
    of_maps = [metric for metric in metrics if metric not in CURVES]  # measured on as many images
    if of_maps and {"gradcam", "xgradcam"} <= set(known):
        claims.append(claim_of_xgrad(arch, values, of_maps))
    return claims


def claim_of_xgrad(arch: str, values: Values, metrics: Sequence[str]) -> Claim:
    """Claim that XGrad-CAM is Grad-CAM if gradients are uniform, and differs otherwise."""
    pairs = {metric: values.shared(["gradcam", "xgradcam"], metric) for metric in metrics}
    every = [column for pair in pairs.values() for columns in pair for column in columns]

    def apart(*flat: np.ndarray) -> float:
        rest = iter(flat)
        found = []
        for metric, pair in pairs.items():
            first, second = ([next(rest) for _ in columns] for columns in pair)
            found.append(abs(figure(metric, first) - figure(metric, second)))
        return max(found)

    sign, by, why = (1, "at most", "even") if values.uniform else (-1, "more than", "uneven")
    found = interval_of(lambda *flat: sign * (SAME - apart(*flat)), *every)
    text = f"{arch}, {why} gradients: XGrad-CAM and Grad-CAM differ by {by} {SAME} points"
    return Claim(text, *found, n_images=len(every[0]))


# The program


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, FULL, DOCS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--arch", nargs="+", metavar="NAME")
    parser.add_argument("--weights", nargs="+", help='names or files, or "none" to train here')
    parser.add_argument("--methods", nargs="+", choices=available(), metavar="M")
    parser.add_argument("--metrics", nargs="+", default=list(COLUMNS), choices=COLUMNS, metavar="M")
    parser.add_argument("--images", type=int, help="drawn evenly from the classes")
    parser.add_argument(
        "--images-curves", type=int, help="how many of these, for deletion and insertion"
    )
    parser.add_argument(
        "--images-perturbation",
        type=int,
        help="how many of these, for Score-CAM and similar methods",
    )
    parser.add_argument("--classes", type=int, help="the first N, by name")
    parser.add_argument("--image-size", type=int, help="default: the network's own")
    parser.add_argument("--n-steps", type=int, help="steps of deletion and insertion")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help=PRECISION)
    parser.add_argument("--epochs", type=int, default=30, help="of training here")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--chunk", type=int, help="images whose results are saved together")
    parser.add_argument("--jobs", type=int, default=1, help="chunks measured at a time")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="a file of all measurements, which the program extends",
    )
    parser.add_argument("--known", action="store_true", help="compute nothing more")
    options = options_of(parser, arguments)
    if len(options.weights) == 1:
        options.weights *= len(options.arch)
    if len(options.weights) != len(options.arch):
        parser.error("--weights takes one for all networks, or one for each")
    results = Results(options.results, measured, told)
    tables = []
    for arch, weights in zip(options.arch, options.weights, strict=True):
        chunks = chunks_of(arch, weights, options)
        if not options.known:
            results.complete(chunks, options.jobs)
        if any(chunk in results for chunk in chunks):
            tables.append(table_of(arch, chunks, results, options))
    publish(tables, options, "Poppi et al.")


if __name__ == "__main__":
    main()
