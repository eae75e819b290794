"""``sklcam evaluate`` and ``sklcam report``: numbers, as a table or on a page."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from copy import copy
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from sklcam._files import replacing
from sklcam.command_line.models import explainer_of, is_file, methods_of
from sklcam.command_line.photographs import (
    Readable,
    counted,
    has_folders,
    images_in,
    labelled_images,
    readable,
    target_of,
)
from sklcam.command_line.results import Result, plain
from sklcam.explain.base import AnyMethod, Explainer, method_name
from sklcam.metrics import Evaluation, compare, default_metrics, evaluate
from sklcam.metrics.registry import metric_of_row
from sklcam.metrics.verdicts import verdict
from sklcam.reporting import report


def run(arguments: Namespace) -> Result:
    """Evaluate, or write a report."""
    if arguments.out is not None:
        _check_out(Path(arguments.out), overwrite=arguments.overwrite)
    return {"evaluate": _evaluate, "report": _report}[arguments.command](arguments)


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a path to which nothing could be written after hours of work."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder. Give the name of a file.")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out} is in a folder that does not exist. Create it first.")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} already exists. Give another name, or --overwrite.")


class _Question(NamedTuple):
    """What both commands need: an explainer, images, labels and options."""

    explainer: Explainer
    images: list[str]
    names: list[str]
    found: Readable
    folders: list[str] | None
    labels: Any
    options: dict[str, Any]


def _question(arguments: Namespace) -> _Question:
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
    """Return the folders' names as labels; an error if one is not a class."""
    try:
        labels = explainer.expected_labels(None, folders, "evaluate")
        if explainer.classes_ is not None:
            explainer.as_target(labels, len(labels))
    except ValueError as error:
        raise ValueError(
            f"The names of the folders in {root} are not labels of the model: {error} Give "
            "--no-labels to use the images without labels."
        ) from error
    return labels


class _Compared(NamedTuple):
    """The question, the models by name, and the methods."""

    asked: _Question
    explainers: dict[str, Explainer]
    methods: dict[str, AnyMethod]

    @property
    def several(self) -> bool:
        """Whether there are several models."""
        return len(self.explainers) > 1

    def label(self, model: str, method: str) -> str:
        """Return the label of a model and a method, as in the report."""
        parts = [model] * self.several + [method] * (len(self.methods) > 1 or not self.several)
        return ", ".join(parts)


def _compared(arguments: Namespace) -> _Compared:
    """Return the requested models; an error if their classes differ."""
    models, methods = arguments.model, methods_of(arguments.method)
    own = copy(arguments)
    # The explainer checks the network for the first method only; all methods are measured.
    own.method = methods[0] if methods else None
    own.model = models[0]
    names = [_name_of(model) for model in models]
    if len(set(names)) < len(models):
        raise ValueError(f"The models must have different names; got {', '.join(names)}.")
    asked = _question(own)
    explainers = {names[0]: asked.explainer}
    for name, model in zip(names[1:], models[1:], strict=True):
        explainers[name] = _other_explainer(asked, model, own)
    first: AnyMethod = asked.explainer.method  # explains the other models, too
    return _Compared(
        asked, explainers, {name: name for name in methods} or {method_name(first): first}
    )


def _evaluate(arguments: Namespace) -> Result:
    compared = _compared(arguments)
    asked = compared.asked
    found = _measured(arguments, compared)
    if arguments.out is not None:
        _write_values(Path(arguments.out), compared, found)
    results = {compared.label(*of): result for of, result in found.items()}
    tables = {label: result.summary() for label, result in results.items()}
    n_images = f"{counted(len(asked.images))}{asked.found.ending}"
    text = [f"{label}, {n_images}\n{table!r}" for label, table in tables.items()]
    differences = _differences(results)
    text += [f"{label}\n{_text_of(table)}" for label, table in differences.items()]
    return Result("\n\n".join(text), _values(arguments, asked, tables, differences))


def _measured(arguments: Namespace, compared: _Compared) -> dict[tuple[str, str], Evaluation]:
    """Return the numbers of each model and method."""
    asked = compared.asked
    n_classes = 0 if asked.explainer.classes_ is None else len(asked.explainer.classes_)
    options = {
        "metrics": default_metrics(confidence=n_classes > 1, labels=asked.labels is not None),
        **asked.options,
    }
    found: dict[tuple[str, str], Evaluation] = {}
    for model, explainer in compared.explainers.items():
        of_model = evaluate(
            explainer,
            asked.images,
            asked.labels,
            method=compared.methods,
            store=_store(arguments.store, model if compared.several else None),
            progress=not arguments.quiet,
            **options,
        )
        found |= {(model, method): result for method, result in of_model.items()}
    return found


def _store(folder: str | None, model: str | None) -> Path | None:
    """Return the folder of a model's values; each of several models has its own."""
    if folder is None:
        return None
    return Path(folder) if model is None else Path(folder, quote(model, safe=""))


def _report(arguments: Namespace) -> Result:
    compared = _compared(arguments)
    asked = compared.asked
    found = report(
        compared.explainers if compared.several else asked.explainer,
        asked.images,
        asked.labels,
        arguments.out,
        methods=compared.methods,
        names=asked.names,
        title=arguments.title or f"Explanations of {' and '.join(compared.explainers)}",
        note=asked.found.note,
        n_images=arguments.images,
        verbose=int(not arguments.quiet),
        **asked.options,
    )
    assert not isinstance(found, Evaluation)  # but a dict of them
    results = dict(zip(_labels_of(compared), found.values(), strict=True))
    tables = {label: result.summary() for label, result in results.items()}
    text = [f"{label}\n{table!r}" for label, table in tables.items()]
    values = _values(arguments, asked, tables, _differences(results))
    return Result("\n\n".join([*text, arguments.out]), {"out": arguments.out, **values})


def _labels_of(compared: _Compared) -> list[str]:
    return [compared.label(*of) for of in product(compared.explainers, compared.methods)]


# Differences


def _differences(found: Mapping[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """Return the differences from the first, image by image, with a verdict on each metric."""
    (label, first), *others = found.items()
    tables = {}
    for other, result in others:
        rows = compare(result, first)
        tables[f"{other} against {label}"] = {
            name: {**row, "verdict": verdict(row, _higher_is_better(name))}
            for name, row in rows.items()
        }
    return tables


def _higher_is_better(row: str) -> bool | None:
    metric = metric_of_row(row)
    return None if metric is None else metric.higher_is_better


def _text_of(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the differences as text, each with its verdict."""
    width = max(map(len, table))
    lines = [f"{'':{width}}{'difference':>12}   {'95 % interval':22}"]
    for name, row in table.items():
        interval = f"{row['low']:.4f} .. {row['high']:.4f}"
        lines.append(f"{name:{width}}{row['mean']:12.4f}   {interval:22}{row['verdict']}")
    return "\n".join(line.rstrip() for line in lines)


def _other_explainer(asked: _Question, model: str, arguments: Namespace) -> Explainer:
    """Return the explainer of another model; an error if its classes differ from the first."""
    own = copy(arguments)
    own.model = model
    explainer = explainer_of(own)
    # Start from names, which both know: a number may stand for different classes.
    labels: Any = None
    target = target_of(arguments, explainer, asked.folders)
    if asked.folders is not None:
        try:
            labels = explainer.expected_labels(None, asked.folders, "report")
            if explainer.classes_ is not None:
                explainer.as_target(labels, len(labels))
        except ValueError as error:
            raise ValueError(
                f"The classes of {model} differ from those of {arguments.model}: {error}"
            ) from error
    if not (
        np.array_equal(labels, asked.labels) and np.array_equal(target, asked.options["target"])
    ):
        raise ValueError(
            f"The classes of {model} differ from those of {arguments.model}, or are in another "
            "order, so the two cannot be compared. Give one --model at a time."
        )
    return explainer


def _name_of(model: str) -> str:
    return Path(model).name.removesuffix(".sklcam") if is_file(model) else model


def _values(
    arguments: Namespace,
    asked: _Question,
    tables: Mapping[str, Any],
    differences: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of the tables for ``--json``."""
    models = arguments.model
    return {
        "model": models[0] if len(models) == 1 else models,
        "n_images": len(asked.images),
        "skipped": asked.found.listed,
        "has_labels": asked.labels is not None,
        "methods": plain({name: dict(table) for name, table in tables.items()}),
        "differences": plain(differences),
    }


def _write_values(
    path: Path, compared: _Compared, found: Mapping[tuple[str, str], Evaluation]
) -> None:
    """Write a row for each model, method and image; a skipped image has no values."""
    asked, several = compared.asked, compared.several
    columns = list(next(iter(found.values())))
    with replacing(path) as file:
        table = csv.writer(text := io.TextIOWrapper(file, "utf-8", "surrogateescape", newline=""))
        table.writerow(["file", *["model"] * several, "method", *columns])
        for (model, method), result in found.items():
            of = [model] * several + [method]
            rows = zip(asked.names, *(result[name].tolist() for name in columns), strict=True)
            table.writerows([name, *of, *values] for name, *values in rows)
            none = [""] * len(columns)
            table.writerows([name, *of, *none] for name in asked.found.skipped)
        text.detach()
