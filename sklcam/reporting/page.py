"""The content of the page's template: tables, strips, confusions, and the script's data."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklcam._versions import installed_versions
from sklcam.explain.base import Explainer
from sklcam.explain.predictions import NO_ANSWER, class_names
from sklcam.metrics import Evaluation, Evaluator, Summary, compare
from sklcam.metrics.registry import metric_of_row, row_meaning
from sklcam.metrics.retrieval import nearest_neighbors
from sklcam.metrics.verdicts import verdict
from sklcam.plotting.pages import digest, script_json, style_of, text_of, viridis
from sklcam.reporting._histogram import histogram
from sklcam.reporting.cards import Seen
from sklcam.reporting.names import plain_grid, plain_layer, plain_name
from sklcam.reporting.words import Facts, classes_of, comparison, mean_of, sentences

HERE = "sklcam.reporting"
_N_COLOURS = 9  # in the colour bar
_N_IN_STRIP = 3
_N_NEIGHBOURS = 5
_LARGEST_MATRIX = 12  # classes; more are hard to read, and to click
_N_CONFUSIONS = 12  # the most frequent ones, if there are more classes
# The first of these metrics that was measured ranks the images from best to worst.
_KEYS = ("adcc", "consistency", "pointing_game", "sparsity", "complexity")


@dataclass(eq=False)
class Column:
    """A model and a method, with their evaluation and its results.

    Attributes
    ----------
    label : str
        "" if there is only one column.
    model : str
        The model's name. The columns of one model differ in the method.
    method : str
    grid : tuple of int
        Rows and columns of the maps at their layer; empty if unknown, or without a layer.
    evaluator : Evaluator
    labels : list of str or None
        The true labels, spelled as the model's classes are.
    result : Evaluation
    seen : list of Seen
    """

    label: str
    model: str
    method: str
    grid: tuple[int, ...]
    evaluator: Evaluator[Seen]
    labels: list[str] | None
    result: Evaluation
    seen: list[Seen]

    @property
    def explainer(self) -> Explainer:
        return self.evaluator.explainer

    @property
    def predicted(self) -> list[str | None]:
        return [label for batch in self.seen for label in batch.predicted]

    @property
    def has_classes(self) -> bool:
        """Whether the model predicts classes, one or several per image."""
        return self.explainer.adapter.task != "regression"

    @property
    def facts(self) -> Facts:
        """The data for the sentences about the column."""
        strangers = [value for batch in self.seen for value in batch.strangers]
        shares = [value for batch in self.seen for value in batch.shares]
        return Facts(
            self.result,
            self.labels if self.has_classes else None,
            self.predicted,
            sum(batch.n_silent for batch in self.seen),
            sum(batch.n_broken for batch in self.seen),
            mean_of(strangers),
            mean_of(shares),
        )


def context(
    columns: Sequence[Column], cards: list[dict[str, Any]], title: str | None, note: str | None
) -> dict[str, Any]:
    """Return the variables of the template.

    Parameters
    ----------
    columns : sequence of Column
    cards : list of dict
        One for each shown image; see :func:`~sklcam.reporting.cards.merged`. Beside what was seen,
        each has its ``name``, its label ``true``, and ``values`` and ``true`` for each column.
    title : str or None
        None makes one from the models' names.
    note : str or None
        A sentence under the title.
    """
    from markupsafe import Markup

    first = columns[0]
    models = _models(columns)
    metrics = list(dict.fromkeys(name for column in columns for name in column.result))
    options = _options(columns, models, cards)
    nearest = [_neighbours(model) for model in models]
    differences = [_differences(first, column) for column in columns[1:]]
    data = [
        _entry(card, columns, models, options, metrics, [of[i] for of in nearest if of])
        for i, card in enumerate(cards)
    ]
    script = text_of(HERE, "page.js")
    colours = viridis()[np.linspace(0, 255, _N_COLOURS).astype(int)]
    labels = first.labels if first.has_classes else None
    return {
        "title": title or "Explanations of " + " and ".join(map(_model_name, models)),
        "note": note,
        "date": datetime.date.today().isoformat(),
        "about": [_about(column) for column in columns],
        "version": installed_versions(["sklcam"]).get("sklcam", "not installed"),
        "n_all": len(first.evaluator.opened),
        "classes": classes_of(labels) if labels else "",
        "told": _sentences(columns, models, differences),
        "cards": cards,
        "columns": columns,
        "metrics": metrics,
        "strips": _strips(columns, cards, data, metrics),
        "tables": [(column.label, _rows(column)) for column in columns],
        "differences": differences,
        "confusions": [_confusions(column, i, options) for i, column in enumerate(models)],
        "histograms": [
            (column.label, name, histogram(values))
            for column in columns
            for name, values in column.result.items()
            if name != "accuracy"  # it has two bars
        ],
        "sorts": _sorts(columns, models, metrics, data),
        "options": options,
        "right": _right_options(data, models),
        "has_large": any(card["large"] for card in cards),
        "data": Markup(
            script_json(
                {
                    "metrics": metrics,
                    "images": data,
                    # The models whose neighbours are shown.
                    "near": [m.model for m, of in zip(models, nearest, strict=True) if of],
                }
            )
        ),
        "large": Markup(script_json([card["large"] for card in cards])),
        "style": Markup(style_of(HERE)),
        "script": Markup(script),
        "digest": digest(script),
        "colours": ", ".join("#" + bytes(colour).hex() for colour in colours),
    }


def _sentences(
    columns: Sequence[Column], models: Sequence[Column], differences: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[str]]]:
    """Return sentences about each column, and about its difference from the first."""
    found = [(column.label, sentences(column.facts, is_new=column in models)) for column in columns]
    for (_, lines), difference in zip(found[1:], differences, strict=True):
        verdicts = {row["name"]: row["verdict"] for row in difference["rows"]}
        if sentence := comparison(verdicts, difference["first"]):
            lines.append(sentence)
    return found


# The models


def _models(columns: Sequence[Column]) -> list[Column]:
    """Return the first column of each model."""
    return list({column.model: column for column in reversed(columns)}.values())[::-1]


def _model_name(column: Column) -> str:
    """Return the name of a model in the title."""
    if column.model:
        return column.model
    model = getattr(column.explainer, "model", column.explainer)
    return model if isinstance(model, str) else type(model).__name__


def _about(column: Column) -> dict[str, str]:
    explainer = column.explainer
    model = getattr(explainer, "model", None)
    network = model if isinstance(model, str) else type(explainer.adapter.network).__name__
    return {
        "label": column.label,
        "estimator": type(explainer).__name__,
        "network": network,
        "layer": plain_layer(explainer),
        "grid": plain_grid(column.grid),
        "method": column.method,
    }


# Numbers


def _rows(column: Column) -> list[dict[str, Any]]:
    rows = column.result.summary()
    return [{"name": name, **_meant(name, column), **row} for name, row in rows.items()]


def _meant(row: str, column: Column) -> dict[str, Any]:
    """Return the direction and the meaning of a row of the summary."""
    own = column.evaluator.metrics.get(row)  # its meaning may depend on its arguments
    metric = own or metric_of_row(row)
    meaning = own.meaning if own else row_meaning(row)
    return {"higher_is_better": metric is None or metric.higher_is_better, "meaning": meaning}


def _differences(first: Column, other: Column) -> dict[str, Any]:
    """Return how a column differs from the first, image by image."""
    differences: Summary = compare(other.result, first.result)
    means = first.result.means(), other.result.means()
    rows = []
    for name, row in differences.items():
        meant = _meant(name, other)
        word = verdict(row, meant["higher_is_better"])
        of_each = [side.get(name, math.nan) for side in means]
        rows.append({"name": name, **meant, "of_each": of_each, "verdict": word, **row})
    return {"first": first.label, "other": other.label, "rows": rows}


# Classes


def _options(
    columns: Sequence[Column], models: Sequence[Column], cards: list[dict[str, Any]]
) -> dict[str, list[str]]:
    """Return the classes to filter by, in the order of the models' classes."""
    order: dict[str, int] = {}
    for model in models:
        for name in class_names(model.explainer):
            order.setdefault(name, len(order))

    def in_order(names: Iterable[str | None]) -> list[str]:
        known = {name for name in names if name is not None}
        return sorted(known, key=lambda name: (order.get(name, len(order)), name))

    if not columns[0].has_classes:
        return {"true": [], "predicted": []}
    return {
        "true": in_order(card["true"] for card in cards),
        "predicted": in_order(each["predicted"] for card in cards for each in card["columns"]),
    }


def _confusions(column: Column, model: int, options: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return how often each class is taken for each of the others, over all images."""
    nothing = {"label": column.model, "classes": [], "rows": [], "errors": []}
    if column.labels is None or not column.has_classes or not options["predicted"]:
        return nothing
    counts = Counter(zip(column.labels, column.predicted, strict=True))
    n_true = Counter(column.labels)
    # Include classes of images that are not shown, so that each row adds up to its class.
    others = {*column.labels, *(name for name in column.predicted if name is not None)}
    classes = list(dict.fromkeys([*options["true"], *options["predicted"], *sorted(others)]))

    def cell(true: str, predicted: str | None) -> dict[str, Any]:
        count, of = counts[true, predicted], n_true[true]
        is_shown = true in options["true"] and predicted in options["predicted"]
        link = (
            f"#true={options['true'].index(true)}"
            f"&predicted={model}.{options['predicted'].index(str(predicted))}"
            if is_shown
            else ""
        )
        return {
            "true": true,
            "predicted": predicted,
            "count": count,
            "share": count / of if of else 0.0,
            "link": link if count else "",
            "right": true == predicted,
        }

    if column.explainer.adapter.task == "multilabel" or len(classes) < 2:
        return nothing
    if len(classes) <= _LARGEST_MATRIX:
        seen = set(column.labels)
        rows = [
            (true, [cell(true, predicted) for predicted in classes])
            for true in classes
            if true in seen
        ]
        return {**nothing, "classes": classes, "rows": rows}
    wrong = [(pair, n) for pair, n in counts.most_common() if pair[0] != pair[1]]
    return {**nothing, "errors": [cell(*pair) for pair, _ in wrong[:_N_CONFUSIONS]]}


# Images


def _neighbours(column: Column) -> list[list[int]]:
    """Return the images nearest to each one; an empty list if the network is a classifier."""
    found = [batch.embeddings for batch in column.seen if batch.embeddings is not None]
    if not found:
        return []
    embeddings = np.concatenate(found)
    k = min(_N_NEIGHBOURS, len(embeddings) - 1)
    if k < 1:
        return []
    nearest, _ = nearest_neighbors(embeddings, embeddings, k, leave_one_out=True)
    return nearest.tolist()


def _number(value: float) -> float | None:
    """Return a finite value as a float, and any other as None: JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def _entry(
    card: dict[str, Any],
    columns: Sequence[Column],
    models: Sequence[Column],
    options: Mapping[str, list[str]],
    metrics: Sequence[str],
    near: list[list[int]],
) -> dict[str, Any]:
    """Return the values by which the script sorts and filters an image; classes as indices."""
    of_models = [card["columns"][columns.index(model)] for model in models]
    true = card["true"] if options["true"] else None
    for each in card["columns"]:
        # An output that is NaN is neither right nor wrong, as in the accuracy.
        is_known = true is not None and each["predicted"] not in (None, NO_ANSWER)
        each["right"] = each["true"] == each["predicted"] if is_known else None
    right = [each["right"] for each in of_models]
    return {
        "values": [
            [_number(each["values"].get(name, math.nan)) for name in metrics]
            for each in card["columns"]
        ],
        "true": None if true is None else options["true"].index(true),
        "predicted": [
            options["predicted"].index(each["predicted"])
            if each["predicted"] in options["predicted"]
            else None
            for each in of_models
        ],
        "right": right,
        # The model's confidence in a wrong class.
        "error": [
            _number(each["probability"])
            if is_right is False and each["probability"] is not None
            else None
            for each, is_right in zip(of_models, right, strict=True)
        ],
        "boxes": card["boxes"],
        "near": near,
    }


def _sorts(
    columns: Sequence[Column],
    models: Sequence[Column],
    metrics: Sequence[str],
    data: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return the options to sort by: groups of a key, its plain name, and its code name.

    A key is v with the indices of a column and a metric; d with the same, for the difference from
    the first column; or e with the index of a model, for its confidence in errors.
    """
    groups = []
    for i, column in enumerate(columns):
        named = [
            (f"v{i}.{k}", plain_name(name), name)
            for k, name in enumerate(metrics)
            if name in column.result
        ]
        groups.append((column.label, named))
    for i, column in enumerate(columns[1:], 1):
        shared = [name for name in metrics if name in column.result and name in columns[0].result]
        named = [
            (f"d{i}.{metrics.index(name)}", f"{plain_name(name)}: difference", name)
            for name in shared
        ]
        groups.append((f"{column.label} − {columns[0].label}", named))
    for i, model in enumerate(models):
        if any(entry["error"][i] is not None for entry in data):
            groups.append((model.model, [(f"e{i}", "confidence in errors", "")]))
    return groups


def _right_options(
    data: Sequence[Mapping[str, Any]], models: Sequence[Column]
) -> list[tuple[str, str]]:
    """Return the options to filter by which models are right."""
    if not any(value is not None for entry in data for value in entry["right"]):
        return []
    if len(models) == 1:
        return [("right", "right"), ("wrong", "wrong")]
    alone = [(f"only{i}", f"only {model.model} is right") for i, model in enumerate(models)]
    return [("right", "all are right"), ("wrong", "all are wrong"), *alone]


def _strips(
    columns: Sequence[Column],
    cards: Sequence[dict[str, Any]],
    data: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
) -> list[tuple[str, list[int]]]:
    """Return the images to begin with: the best, the worst, and the most confident errors."""
    known = [name for name in (*_KEYS, *metrics) if name in metrics and name != "accuracy"]
    strips: list[tuple[str, list[int]]] = []
    if known:
        key = known[0]
        sign = 1 if _meant(key, columns[0])["higher_is_better"] else -1
        k, last = metrics.index(key), len(columns) - 1
        scored = {}
        for i, entry in enumerate(data):
            value, before = entry["values"][last][k], entry["values"][0][k]
            of = cards[i]["columns"]
            if value is None or before is None or of[0]["remark"] or of[last]["remark"]:
                continue
            scored[i] = sign * (value - before if last else value)
        ranked = sorted(scored, key=lambda i: (-scored[i], i))
        # No image is on both sides, however few there are.
        n = min(_N_IN_STRIP, len(ranked) // 2)
        ends = ("Best explained", "Worst explained")
        if last:
            a, b = columns[last].label, columns[0].label
            ends = (f"Where {a} gains most over {b}", f"Where {a} loses most to {b}")
        sides = (ranked[:n], ranked[::-1][:n])
        strips += [
            (f"{end}, by {plain_name(key)}", side) for end, side in zip(ends, sides, strict=True)
        ]
    # Errors of the last model, whose maps and answers the strips show.
    wrong = [i for i, entry in enumerate(data) if entry["right"][-1] is False]
    wrong.sort(key=lambda i: (-(data[i]["error"][-1] or 0.0), i))
    is_ranked = any(data[i]["error"][-1] is not None for i in wrong)
    strips.append(("Most confident errors" if is_ranked else "Errors", wrong[:_N_IN_STRIP]))
    return [(name, places) for name, places in strips if places]
