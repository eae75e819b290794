"""Train, measure and remember classifiers; the programs for tables share this.

A :class:`Run` has everything that a result depends on, and :class:`Results` keeps measurements.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor
from torch.nn import functional as F

from sklcam import ConsistentCAMClassifier
from sklcam.cam import GradCAM
from sklcam.datasets import load_caltech101, load_class_folders, load_cub200
from sklcam.images import ImageDataset
from sklcam.metrics import evaluate
from sklcam.training import Balanced, WarmUp

MEASURES = ("accuracy", "consistency", "iauc", "complexity")


@dataclass(frozen=True)
class Run:
    """One classifier: its training images, how it is trained, and what it is measured on."""

    arch: str
    weights: str | None
    data: str  # a folder
    n_classes: int | None  # the first, by name
    image_size: int
    held_out: bool  # hold out a third of each class's training images, to choose settings by
    measured_on: str  # "test", or "held out"
    setting: str  # alpha,beta,p
    seed: int
    lr: float
    epochs: int
    step_size: int
    batch_size: int
    target_layer: str = "auto"
    view_target: str = "predicted"
    n_causal: int | None = None  # images whose insertion curve is measured, spread evenly
    n_steps: int = 224  # steps of that curve
    device: str = "auto"

    @property
    def key(self) -> str:
        """Name the run, independent of where it is computed and where its images are."""
        known = {**asdict(self), "data": Path(self.data).name}
        del known["device"]
        return json.dumps(known, sort_keys=True)


def told(run: Run, measures: dict[str, Any]) -> str:
    means = "  ".join(f"{name} {100 * np.mean(measures[name]):.1f}" for name in MEASURES)
    return f"{title(run)}:  {means}   ({measures['seconds']:.0f} s)"


def title(run: Run) -> str:
    return f"{run.arch}, {run.setting}, lr {run.lr:g}, {run.epochs} epochs, seed {run.seed}"


def spaced(setting: str) -> str:
    return setting.replace(",", ", ")


def weight(text: str, scale: float = 1.0) -> Any:
    """Read a number, "auto", "balanced:RATIO" or "warmup:WEIGHT:EPOCHS"."""
    kind, *values = text.split(":")
    if kind == "auto":
        return kind
    if kind == "balanced":
        return Balanced(float(values[0]))
    if kind == "warmup":
        return WarmUp(scale * float(values[0]), epochs=int(values[1]))
    return scale * float(kind)


def trained(run: Run) -> ConsistentCAMClassifier:
    """Train a run's classifier."""
    X, y = images_of(run, "train")
    return ConsistentCAMClassifier(**classifier_options(run)).fit(X, y)


def classifier_options(run: Run) -> dict[str, Any]:
    """Return a classifier's options. Beta is for 224 pixels, as the norm grows with the area."""
    alpha, beta, p = run.setting.split(",")
    growth = (224 / run.image_size) ** (1 if p == "2" else 2)
    return {
        "module": run.arch,
        "weights": run.weights,
        "image_size": run.image_size,
        "target_layer": run.target_layer,
        "alpha": weight(alpha),
        "beta": weight(beta, growth),
        "p": float(p),
        "view_target": run.view_target,
        "lr": run.lr,
        "max_epochs": run.epochs,
        "batch_size": run.batch_size,
        "callbacks__lr_scheduler__step_size": run.step_size,
        "channels_last": True,
        "device": run.device,
        "random_state": run.seed,
        "verbose": 0,
    }


def measured(run: Run) -> tuple[Run, dict[str, Any]]:
    """Return a run's measures: lists with one value per image, and the warnings of the training."""
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings are in the results
        clf = trained(run)
        X, y = images_of(run, run.measured_on)
        values = evaluate(
            clf, X, y, metrics=("accuracy", "consistency", "complexity"), progress=False
        )
        some = np.unique(np.linspace(0, len(X) - 1, run.n_causal or len(X)).astype(int))
        curves = evaluate(  # maps without the ReLU, as in the paper
            clf,
            X[some],
            metrics="iauc",
            metric_params={"iauc": {"n_steps": run.n_steps, "relu": False}},
            progress=False,
        )
        in_corners = np.mean(_highest_in_a_corner(clf, X))
        alike = likeness(maps for maps, _ in _maps_of(clf, X))
    collapsed = dict(clf.callbacks_)["collapse_warning"].collapsed_
    by_image = {**values, **curves}
    return run, {
        **{name: [round(float(value), 5) for value in by_image[name]] for name in MEASURES},
        "corners": float(in_corners),
        "alike": round(alike, 5),
        "warned of": [f"{what} in epoch {epoch}" for what, epoch in collapsed.items()],
        "cross-entropy": [round(float(value), 4) for value in clf.history[:, "train_ce"]],
        "seconds": round(time.monotonic() - started, 1),
    }


def images_of(run: Run, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, size, size, 3), uint8, and labels of "train", "held out" or "test"."""
    bunch, chosen = rows_of(run, part)
    return _decoded(run.data, part == "test", tuple(chosen), run.image_size), bunch.target[chosen]


def rows_of(run: Run, part: str) -> tuple[Bunch, np.ndarray]:
    """Return all images, and which of them a run uses."""
    bunch = _read(run.data)["test" if part == "test" else "train"]
    classes = sorted(set(_read(run.data)["train"].target))[: run.n_classes]
    chosen = np.flatnonzero(np.isin(bunch.target, classes))
    if part == "held out" or (part == "train" and run.held_out):
        is_held = _last_third(bunch.target[chosen])
        chosen = chosen[is_held if part == "held out" else ~is_held]
    return bunch, chosen


def _last_third(labels: np.ndarray) -> np.ndarray:
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        held[rows[len(rows) - len(rows) // 3 :]] = True
    return held


@lru_cache
def _read(data: str) -> dict[str, Bunch]:
    folder = Path(data)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return {part: load_class_folders(folder / part) for part in ("train", "test")}
    found = [path for path in folder.rglob("images.txt") if "CUB" in str(path)][:1]
    load = load_cub200 if found else load_caltech101
    return {part: load(folder, subset=part) for part in ("train", "test")}


@lru_cache(maxsize=4)
def _decoded(data: str, is_test: bool, chosen: tuple[int, ...], size: int) -> np.ndarray:
    paths = [_read(data)["test" if is_test else "train"].data[i] for i in chosen]
    images = ImageDataset(paths, image_size=size)
    return np.stack([images[i][0].permute(1, 2, 0).numpy() for i in range(len(paths))])


def likeness(batches: Iterable[Tensor]) -> float:
    """Return the mean correlation of two images' maps, in [-1, 1]; a constant map's is 0.

    Parameters
    ----------
    batches : iterable of Tensor of shape (n_images, height, width)
    """
    total, own = torch.zeros(()), torch.zeros(())
    n_images = 0
    for maps in batches:
        flat = maps.flatten(1).double()
        forms = F.normalize(flat - flat.mean(dim=1, keepdim=True), dim=1)
        total, own = total + forms.sum(dim=0), own + forms.square().sum()
        n_images += len(maps)
    # The products of all pairs, without those of a map with itself.
    return float((total.square().sum() - own) / (n_images * (n_images - 1)))


def _maps_of(clf: ConsistentCAMClassifier, X: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in clf.iter_inputs(X):
        yield clf.explain_inputs(batch, method=GradCAM(relu=False))


def _highest_in_a_corner(clf: ConsistentCAMClassifier, X: np.ndarray) -> list[bool]:
    found: list[bool] = []
    for maps, _ in _maps_of(clf, X):
        corners = maps[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        found += (corners.amax(dim=1) == maps.amax(dim=(1, 2))).tolist()
    return found
