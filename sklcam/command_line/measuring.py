"""``sklcam evaluate`` and ``sklcam report``: numbers, as a table or on a page."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sklcam._files import replacing
from sklcam.command_line.models import explainer_of, is_file, methods_of
from sklcam.command_line.photographs import (
    Readable,
    has_folders,
    images_in,
    labelled_images,
    readable,
    target_of,
)
from sklcam.command_line.results import Result, plain
from sklcam.explain.base import AnyMethod, Explainer, method_name
from sklcam.metrics import Evaluation, default_metrics, evaluate
from sklcam.reporting import report


def run(arguments: Namespace) -> Result:
    """Evaluate, or write a report."""
    if arguments.out is not None:
        _check_out(Path(arguments.out), overwrite=arguments.overwrite)
    return {"evaluate": _evaluate, "report": _report}[arguments.command](arguments)


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse now what could not be written after hours of work."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give the name of a file.")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out} is in no folder that there is.")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} is there: give another name, or --overwrite.")


class _Question(NamedTuple):
    """What both ask: of which explainer, on which images, with which labels and options."""

    explainer: Explainer
    images: list[str]
    names: list[str]
    found: Readable
    folders: list[str] | None
    labels: Any
    options: dict[str, Any]


def _asked(arguments: Namespace) -> _Question:
    root, images = images_in(arguments.dir)
    folders = None
    if not arguments.no_labels and Path(arguments.dir).is_dir() and has_folders(root, images):
        images, folders = labelled_images(root)
    explainer = explainer_of(arguments)
    found = readable(arguments, root, images)
    images = [images[row] for row in found.rows]
    if folders is not None:
        folders = [folders[row] for row in found.rows]
    options = {
        "target": target_of(arguments, explainer, folders),
        "num_workers": arguments.workers,
        "n_jobs": arguments.jobs,
    }
    if arguments.metrics is not None:
        options["metrics"] = tuple(name.strip() for name in arguments.metrics.split(","))
    labels = None if folders is None else _labels(explainer, folders, root)
    names = [Path(image).relative_to(root).as_posix() for image in images]
    return _Question(explainer, images, names, found, folders, labels, options)


def _labels(explainer: Explainer, folders: list[str], root: Path) -> Any:
    """Return the labels that the names of folders are; an error if one is not a class."""
    try:
        labels = explainer.expected_labels(None, folders, "evaluate")
        if explainer.classes_ is not None:
            explainer.as_target(labels, len(labels))
    except ValueError as error:
        raise ValueError(
            f"The names of the folders in {root} are not labels of the model: {error} --no-labels "
            "takes the images without labels."
        ) from error
    return labels


def _evaluate(arguments: Namespace) -> Result:
    methods = methods_of(arguments.method)
    # The first of several tells what the network has to have; all of them are measured.
    arguments.method = methods[0] if methods else None
    asked = _asked(arguments)
    n_classes = 0 if asked.explainer.classes_ is None else len(asked.explainer.classes_)
    options = {
        "metrics": default_metrics(confidence=n_classes > 1, labels=asked.labels is not None),
        **asked.options,
    }
    asked_methods: dict[str, AnyMethod] = {name: name for name in methods}
    found = evaluate(
        asked.explainer,
        asked.images,
        asked.labels,
        method=asked_methods or {_own_method(asked): asked.explainer.method},
        store=arguments.store,
        progress=not arguments.quiet,
        **options,
    )
    tables = {name: result.summary() for name, result in found.items()}
    if arguments.out is not None:
        _write_values(Path(arguments.out), asked, found)
    n_images = f"{len(asked.images)} images{asked.found.told}"
    text = [f"{name}, {n_images}\n{table!r}" for name, table in tables.items()]
    return Result("\n\n".join(text), _values(arguments, asked, tables))


def _report(arguments: Namespace) -> Result:
    models, methods = arguments.model, methods_of(arguments.method)
    # The first of several tells what the network has to have; all of them are measured.
    arguments.method = methods[0] if methods else None
    arguments.model = models[0]
    asked = _asked(arguments)
    called = [_called(model) for model in models]
    compared = {called[0]: asked.explainer}
    explained: list[AnyMethod | None] = [*methods] or [asked.explainer.method]
    for name, model in zip(called[1:], models[1:], strict=True):
        compared[name] = _beside(asked, model, arguments)
    if len(compared) < len(models):
        raise ValueError(f"The models need names that differ; got {', '.join(called)}.")
    found = report(
        compared if len(models) > 1 else asked.explainer,
        asked.images,
        asked.labels,
        arguments.out,
        methods=explained,
        names=asked.names,
        title=arguments.title or f"Explanations of {' and '.join(called)}",
        note=asked.found.note,
        n_images=arguments.images,
        verbose=int(not arguments.quiet),
        **asked.options,
    )
    assert not isinstance(found, Evaluation)  # but one for each
    tables = {name or _own_method(asked): result.summary() for name, result in found.items()}
    text = [f"{name}\n{table!r}" for name, table in tables.items()]
    values = _values(arguments, asked, tables)
    values["model"] = models[0] if len(models) == 1 else models
    return Result("\n\n".join([*text, arguments.out]), {"out": arguments.out, **values})


def _beside(asked: _Question, model: str, arguments: Namespace) -> Explainer:
    """Return the explainer of another model; an error if its labels are not the first one's."""
    own = copy(arguments)
    own.model = model
    explainer = explainer_of(own)
    # From the names, which both know: the same number may be another class.
    labels: Any = None
    target = target_of(arguments, explainer, asked.folders)
    if asked.folders is not None:
        try:
            labels = explainer.expected_labels(None, asked.folders, "report")
            if explainer.classes_ is not None:
                explainer.as_target(labels, len(labels))
        except ValueError as error:
            raise ValueError(
                f"The classes of {model} are not those of {arguments.model}: {error}"
            ) from error
    if not (
        np.array_equal(labels, asked.labels) and np.array_equal(target, asked.options["target"])
    ):
        raise ValueError(
            f"The classes of {model} are not those of {arguments.model}, or not in their order: "
            "write a report on each."
        )
    return explainer


def _own_method(asked: _Question) -> str:
    return method_name(asked.explainer.method)


def _called(model: str) -> str:
    return Path(model).name.removesuffix(".sklcam") if is_file(model) else model


def _values(arguments: Namespace, asked: _Question, tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return for ``--json`` what the tables say."""
    return {
        "model": arguments.model,
        "n_images": len(asked.images),
        "skipped": asked.found.listed,
        "has_labels": asked.labels is not None,
        "methods": plain({name: dict(table) for name, table in tables.items()}),
    }


def _write_values(path: Path, asked: _Question, found: Mapping[str, Evaluation]) -> None:
    """Write a row for each method and image; those of skipped images have no values."""
    columns = list(next(iter(found.values())))
    with replacing(path) as file:
        table = csv.writer(text := io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=""))
        table.writerow(["file", "method", *columns])
        for method, result in found.items():
            rows = zip(asked.names, *(result[name].tolist() for name in columns), strict=True)
            table.writerows([name, method, *values] for name, *values in rows)
            table.writerows([name, method, *[""] * len(columns)] for name in asked.found.skipped)
        text.detach()
