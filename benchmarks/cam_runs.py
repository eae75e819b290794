"""The images, networks and measurements for the table of Poppi et al."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradcam_tables import drawn_evenly
from training_runs import Run, trained

from sklcam import CAMExplainer
from sklcam.cam import Method, get_method
from sklcam.datasets import load_imagenet
from sklcam.explain import ExplanationWarning
from sklcam.metrics import evaluate
from sklcam.networks import record

CURVES = ("dauc", "iauc")

say = partial(print, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Chunk:
    """One method on some images, with everything that its values depend on."""

    arch: str
    weights: str
    training: Run | None
    classes: tuple[str, ...] | None  # for weights in a file, which do not name their classes
    image_size: int | None
    method: str
    precision: str
    metrics: tuple[str, ...]
    n_steps: int
    images: tuple[str, ...]
    labels: tuple[Any, ...] | None
    start: int  # its place, which seeds the random numbers
    batch_size: int
    device: str

    @property
    def key(self) -> str:
        """Name the chunk, independent of where it is computed and where its images are."""
        known = asdict(self)
        names = ["/".join(Path(image).parts[-2:]) for image in self.images]
        known["images"] = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        known["training"] = None if self.training is None else self.training.key
        known["weights"] = fingerprint(self.weights)
        for name in ("batch_size", "device", "labels"):
            del known[name]
        return json.dumps(known, sort_keys=True)


@cache
def fingerprint(weights: str) -> str:
    """Return the name of the weights, and for a file also a hash of its content."""
    if not Path(weights).is_file():
        return weights
    content = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    return f"{Path(weights).name}, {content[:16]}"


# Images


def images_of(options: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """Return paths and labels, in an order that draws evenly from the classes, and all classes."""
    folder = options.data
    if (folder / "val").is_dir() or (folder / "ILSVRC").is_dir():
        loaded = load_imagenet(folder)
        paths, labels = loaded.data, loaded.target.tolist()
    else:
        folder = folder / "test" if (folder / "test").is_dir() else folder
        kinds = (".jpg", ".jpeg", ".png")
        paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in kinds)
        labels = [Path(path).parent.name for path in paths]
    classes = sorted(set(labels))
    kept = set(classes[: options.classes])
    of_path = {p: label for p, label in zip(paths, labels, strict=True) if label in kept}
    paths, labels = list(of_path), list(of_path.values())
    if len(paths) < options.images:
        say(f"There are only {len(paths)} images; --images asks for {options.images}.")
    drawn = drawn_evenly(paths, labels, options.images)
    return drawn, [of_path[path] for path in drawn], classes


def known_labels(
    explainer: CAMExplainer, labels: Sequence[str], classes: Sequence[str]
) -> Sequence[Any] | None:
    """Return labels as the network names them, or None if it does not know them all."""
    for names in (explainer.classes_, explainer.class_names_):
        if names is not None and set(labels) <= set(np.asarray(names).tolist()):
            return labels
    if len(classes) == len(explainer.classes_) and all(
        re.fullmatch(r"n\d{8}", name) for name in classes
    ):
        return [
            classes.index(label) for label in labels
        ]  # WordNet ids are in the order of the classes
    return None


# Networks and methods


@cache
def explainer_of(
    arch: str,
    weights: str,
    training: Run | None,
    classes: tuple[str, ...] | None,
    image_size: int | None,
    batch_size: int,
    device: str,
    precision: str,
) -> CAMExplainer:
    shared = {"batch_size": batch_size, "image_size": image_size, "verbose": 0}
    shared["precision"] = precision
    if training is not None:
        say(f"{arch}: training for {training.epochs} epochs, {time.strftime('%H:%M:%S')}")
        clf = trained(training)
        classes = tuple(clf.classes_.tolist())
        shared |= {"model": clf.module_, "classes": classes, "resize": "center_crop"}
    else:
        shared |= {"model": arch, "weights": weights}
        if classes is not None:
            shared |= {"classes": classes, "resize": "center_crop"}
    explainer = CAMExplainer(**shared).fit()
    network = explainer.model_.to(device).eval()
    network.to(memory_format=torch.channels_last)  # several times as fast on a CPU
    return explainer


def has_uniform_gradients(explainer: CAMExplainer, inputs: Any) -> bool:
    """Return whether a score's gradient is the same at all positions of the layer."""
    network, layer = explainer.model_, explainer.target_layers_[0]
    with record(network, layer) as tape:
        highest = network(inputs).amax(dim=1).sum()
        (gradients,) = torch.autograd.grad(highest, tape.activations)
    gradients = layer.to_grid(gradients)
    spread = (gradients.amax(dim=(2, 3)) - gradients.amin(dim=(2, 3))).max()
    return bool(spread <= 1e-4 * gradients.abs().max())


def method_of(chunk: Chunk) -> Method:
    method = get_method(chunk.method)
    if "random_state" in method.get_params(deep=False):
        method.set_params(random_state=chunk.start)
    return method


def measured(chunk: Chunk) -> tuple[Chunk, dict[str, Any]]:
    """Return one value per image for each metric."""
    started = time.monotonic()
    explainer = explainer_of(
        *(chunk.arch, chunk.weights, chunk.training, chunk.classes, chunk.image_size),
        *(chunk.batch_size, chunk.device, chunk.precision),
    )
    metrics = [*chunk.metrics, *(["accuracy"] if chunk.labels is not None else [])]
    params = {name: {"n_steps": chunk.n_steps} for name in CURVES if name in metrics}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExplanationWarning)  # blank maps are measured, too
        values = evaluate(
            explainer,
            list(chunk.images),
            None if chunk.labels is None else list(chunk.labels),
            metrics=metrics,
            method=method_of(chunk),
            metric_params=params,
            progress=False,
        )
    kept: dict[str, Any] = {
        name: [round(float(value), 6) for value in values[name]] for name in metrics
    }
    if chunk.method == "xgradcam":
        inputs = next(iter(explainer.iter_inputs(list(chunk.images[:4]))))
        kept["uniform"] = has_uniform_gradients(explainer, inputs)
    return chunk, {**kept, "seconds": round(time.monotonic() - started, 1)}


def told(chunk: Chunk, measures: dict[str, Any]) -> str:
    means = "  ".join(f"{name} {100 * np.mean(measures[name]):.1f}" for name in chunk.metrics)
    rows = f"images {chunk.start + 1} to {chunk.start + len(chunk.images)}"
    return f"{chunk.arch}, {chunk.method}, {rows}:  {means}   ({measures['seconds']:.0f} s)"
