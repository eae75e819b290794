"""What a network can be trained for besides cross-entropy: time, accuracy and maps.

    python benchmarks/objectives.py --docs --data DIR --boxes airplanes_boxes.csv
    python benchmarks/objectives.py --full --data DIR --device cuda --results runs.jsonl

- baseline: only cross-entropy;
- ours: the two terms of Sun et al., ``--setting``;
- CGC: as Pillai et al. published it, except for the schedule: three passes, three cross-entropies,
  HiResCAM with the ReLU, one class for an image and its view, and the contrastive term;
- MSE: the same with the term of their ablation instead, whose weight is balanced by gradients;
- lazy: ours with terms in every fourth step, at four times the weight;
- constant view: ours with the view's map as a constant;
- photometric: ours with views that change brightness, contrast and colour as well;
- energy: cross-entropy, and the share of the map outside the boxes, for the images that have some;
  needs ``--boxes``, a CSV file in DIR (path, x1, y1, x2, y2).

All start from pretrained weights (``--weights none``: from random weights), with the same images,
schedule and seeds. The time of a training step is the median over epochs, as a multiple of the
baseline's with the same seed; to measure it, train one network at a time (``--jobs 1``). COSE is
measured on some of the images, with some of its transformations.

DIR holds ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``. ``--quick`` and ``--docs`` are for
machines without a GPU. Measurements are written to ``--results`` at once, so an interrupted program
resumes.

References: Sun, Phan, Nguyen, "Staying Consistent with GradCAM"; Pillai et al., "Consistent
Explanations by Contrastive Learning", CVPR 2022; Daroya, Sun, Maji, "COSE", 2023.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from paper_tables import Claim, Results, Table, interval_of, options_of, parser_of, publish
from PIL import Image
from training_runs import Run, classifier_options, images_of, rows_of

from sklcam import ConsistentCAMClassifier
from sklcam.cam import HiResCAM
from sklcam.datasets import load_class_folders
from sklcam.metrics import evaluate
from sklcam.training import ViewSampler

_CGC = {
    "alpha": 0.5,
    "beta": 0.0,
    "agreement": "cgc",
    "phi": HiResCAM(),
    "view_target": "shared",
    "ce_on": "all",
}
_PHOTOMETRIC = ViewSampler(brightness=0.4, contrast=0.4, color=0.4)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "baseline": {"alpha": 0.0, "beta": 0.0},
    "ours": {},
    "CGC": _CGC,
    "MSE": {**_CGC, "agreement": "mse", "alpha": "auto"},
    "lazy": {"every": 4},
    "constant view": {"view_gradient": False},
    "photometric": {"views": _PHOTOMETRIC},
    "energy": {"alpha": 0.0, "beta": 0.0, "gamma": 1.0},
}
PER_IMAGE = ("accuracy", "consistency", "iauc", "complexity")
OF_ALL = ("adcc", "cose")  # not means of values per image
FEWER = ("TranslateX", "Rotate", "Brightness", "FlipLR")  # transformations for COSE
HEADINGS = ["accuracy", "consistency", "COSE", "IAUC", "ADCC", "complexity"]
DOCS = {"classes": 20, "image_size": 128, "seeds": 3, "epochs": 8, "some": 100, "steps": 16}
QUICK = {"classes": 7, "image_size": 128, "seeds": 1, "epochs": 3, "some": 20, "steps": 16}
FULL = {"classes": None, "image_size": 224, "seeds": 3, "epochs": 20, "some": None, "steps": 224}


@dataclass(frozen=True)
class ObjectiveRun(Run):
    """A classifier with a named objective."""

    objective: str = "ours"
    boxes: str | None = None  # a CSV file in the folder of the data

    @property
    def key(self) -> str:
        known = {**asdict(self), "data": Path(self.data).name}
        del known["device"]
        return json.dumps(known, sort_keys=True)


def boxes_of(run: ObjectiveRun, part: str) -> list[np.ndarray | None]:
    """Return the boxes of a run's images, in pixels of the resized images."""
    assert run.boxes is not None
    folder = Path(run.data) / ("test" if part == "test" else "train")
    known = load_class_folders(folder, boxes=Path(run.data) / run.boxes)
    _, chosen = rows_of(run, part)
    found: list[np.ndarray | None] = []
    for i in chosen:
        corners = known.boxes[i]
        if len(corners):
            with Image.open(known.data[i]) as image:
                corners = corners * (run.image_size / np.tile(image.size, 2))
        found.append(corners if len(corners) else None)
    return found


def trained(run: ObjectiveRun) -> ConsistentCAMClassifier:
    options = {**classifier_options(run), **OBJECTIVES[run.objective]}
    X, y = images_of(run, "train")
    boxes = boxes_of(run, "train") if options.get("gamma") else None
    return ConsistentCAMClassifier(**options).fit(X, y, boxes=boxes)


def measured(run: ObjectiveRun) -> tuple[ObjectiveRun, dict[str, Any]]:
    """Return a run's measures, per image or for all images, and the seconds of a step."""
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf = trained(run)
        X, y = images_of(run, run.measured_on)
        some = np.unique(np.linspace(0, len(X) - 1, run.n_causal or len(X)).astype(int))
        values = evaluate(
            clf, X, y, metrics=("accuracy", "consistency", "complexity", "adcc"), progress=False
        )
        curves = evaluate(  # on maps without the ReLU, as in Sun et al.
            clf,
            X[some],
            metrics="iauc",
            metric_params={"iauc": {"n_steps": run.n_steps, "relu": False}},
            progress=False,
        )
        cose = evaluate(
            clf,
            X[some],
            y[some],
            metrics="cose",
            metric_params={"cose": {"transformations": FEWER, "n_magnitudes": 2}},
            progress=False,
        )
        inside = energy_inside(clf, run) if run.boxes is not None else []
    by_image = {**values, **curves}
    epochs = [row["dur"] / row["train_batch_count"] for row in clf.history]
    return run, {
        **{name: [round(float(value), 5) for value in by_image[name]] for name in PER_IMAGE},
        "adcc": round(float(values.summary()["adcc"].mean), 5),
        "cose": round(float(cose.summary()["cose"].mean), 5),
        "inside": inside,
        "step": round(float(np.median(epochs[1:] or epochs)), 6),
        "seconds": round(time.monotonic() - started, 1),
    }


def energy_inside(clf: ConsistentCAMClassifier, run: ObjectiveRun) -> list[float]:
    """Return the share of the label's map in the boxes, for the images that have some."""
    X, y = images_of(run, run.measured_on)
    boxes = boxes_of(run, run.measured_on)
    rows = [i for i, corners in enumerate(boxes) if corners is not None]
    if not rows:
        return []
    found = evaluate(
        clf,
        X[rows],
        y[rows],
        boxes=[boxes[i] for i in rows],
        metrics="heatmap_ratio",
        target=y[rows],
        progress=False,
    )
    return [round(float(value), 5) for value in found["heatmap_ratio"]]


def told(run: ObjectiveRun, measures: Mapping[str, Any]) -> str:
    means = [f"{name} {100 * np.mean(measures[name]):.1f}" for name in (*PER_IMAGE, *OF_ALL)]
    return (
        f"{run.objective}, seed {run.seed}:  {'  '.join(means)}  step {measures['step']:.4f} s   "
        f"({measures['seconds']:.0f} s)"
    )


def by_image(results: Results, runs: Sequence[ObjectiveRun], measure: str) -> np.ndarray:
    """Return one value per image, in per cent, averaged over seeds."""
    return 100 * np.mean([results[run][measure] for run in runs], axis=0)


def spread(values: Sequence[float], digits: int = 1) -> str:
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def times(
    results: Results, new: Sequence[ObjectiveRun], old: Sequence[ObjectiveRun]
) -> list[float]:
    return [results[a]["step"] / results[b]["step"] for a, b in zip(new, old, strict=True)]


def table_of(runs: Mapping[str, Sequence[ObjectiveRun]], results: Results, *, timed: bool) -> Table:
    first = next(iter(runs.values()))[0]
    headings = [*HEADINGS, *(["time of a step"] if timed else [])]
    headings += ["map in boxes"] if first.boxes is not None else []
    table = Table(f"Objectives: {first.arch}", ["objective", *headings])
    for name, seeds in runs.items():
        figures = {
            measure: spread([100 * np.mean(results[run][measure]) for run in seeds])
            for measure in (*PER_IMAGE, *OF_ALL)
        }
        cells = [figures[each] for each in ("accuracy", "consistency", "cose", "iauc")]
        cells += [figures["adcc"], figures["complexity"]]
        cells += [spread(times(results, seeds, runs["baseline"]), 2)] if timed else []
        if first.boxes is not None:
            inside = [
                100 * np.mean(results[run]["inside"]) for run in seeds if results[run]["inside"]
            ]
            cells += [spread(inside) if inside else ""]
        table.add(name, *cells)
    table.claims = claims_of(runs, results, timed=timed)
    return table


def claims_of(
    runs: Mapping[str, Sequence[ObjectiveRun]], results: Results, *, timed: bool
) -> list[Claim]:
    """Return our targets beside CGC, and for what makes ours cheaper."""
    claims = []
    if timed and {"ours", "CGC"} <= runs.keys():
        shares = [0.65 - ratio for ratio in times(results, runs["ours"], runs["CGC"])]
        found = (float(np.mean(shares)), min(shares), max(shares))
        text = "Ours takes at most 0.65 of CGC's time (shown: 0.65 minus its share, over the seeds)"
        claims.append(Claim(text, *(100 * value for value in found), unit="%"))
    if {"ours", "CGC"} <= runs.keys():
        of = [by_image(results, runs[name], "accuracy") for name in ("ours", "CGC")]
        text = (
            "Ours loses less than one point of accuracy to CGC (shown: one point plus the change)"
        )
        claims.append(Claim(text, *interval_of(lambda a, b: 1 + a.mean() - b.mean(), *of)))
    for name in ("ours", "CGC", "lazy", "constant view"):
        if {name, "baseline"} <= runs.keys():
            of = [by_image(results, runs[each], "consistency") for each in (name, "baseline")]
            text = f"Consistency is above the baseline's: {name}"
            claims.append(Claim(text, *interval_of(lambda a, b: a.mean() - b.mean(), *of)))
    return claims


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__, QUICK, FULL, DOCS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--boxes", metavar="FILE", help="a CSV file in the folder of the data")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES)
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--weights", default="DEFAULT", help='"none" for random weights')
    parser.add_argument("--setting", default="2,1e-6,1", help="alpha,beta,p of ours")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--step-size", type=int, default=6, help="epochs between steps of lr")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="classifiers trained at a time")
    parser.add_argument(
        "--times",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave them out if the machine was busy otherwise",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="a file of all measurements, which the program extends",
    )
    for name in QUICK:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    options = options_of(parser, arguments)

    chosen = options.objectives or [
        name for name, each in OBJECTIVES.items() if options.boxes or not each.get("gamma")
    ]
    if options.boxes is None and any(OBJECTIVES[name].get("gamma") for name in chosen):
        parser.error("energy needs boxes: give --boxes")
    base = ObjectiveRun(
        arch=options.arch,
        weights=None if options.weights == "none" else options.weights,
        data=str(options.data),
        n_classes=options.classes,
        image_size=options.image_size,
        held_out=False,
        measured_on="test",
        setting=options.setting,
        seed=options.first_seed,
        lr=options.lr,
        epochs=options.epochs,
        step_size=options.step_size,
        batch_size=options.batch_size,
        n_causal=options.some,
        n_steps=options.steps,
        device=options.device,
        boxes=options.boxes,
    )
    if options.boxes is not None:
        for part in ("train", "test"):
            if all(boxes is None for boxes in boxes_of(base, part)):
                parser.error(
                    f"{options.boxes} has no box of a {part} image of the chosen classes, "
                    "so energy would be the baseline. Take more --classes, or leave energy out"
                )
    runs = {
        name: [replace(base, objective=name, seed=base.seed + i) for i in range(options.seeds)]
        for name in dict.fromkeys(["baseline", *chosen])
    }
    results: Results[ObjectiveRun] = Results(options.results, measured, told)
    results.complete(
        [run for seeds in zip(*runs.values(), strict=True) for run in seeds], options.jobs
    )
    publish([table_of(runs, results, timed=options.times)], options, "Pillai et al.")


if __name__ == "__main__":
    main()
