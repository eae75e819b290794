"""Measure, explain, and write the page.

The metrics are over all images. Of those that are shown, no more than the thumbnails is kept.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from sklcam._files import replacing
from sklcam._validation import check_count
from sklcam._versions import installed_versions
from sklcam.explain.base import AnyMethod, method_name
from sklcam.explain.checks import remark
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.explain.predictions import class_names, predictions, spelled
from sklcam.images.labels import dataset_labels
from sklcam.images.pictures import check_is_picture, to_picture
from sklcam.metrics import Evaluation, Evaluator, Measurement, default_metrics
from sklcam.metrics.evaluate import AnyMetrics
from sklcam.metrics.registry import metric_of_row, row_meaning
from sklcam.plotting.pages import (
    digest,
    image_names,
    image_uri,
    map_uri,
    script_json,
    style_of,
    text_of,
    thumbnail_size,
    viridis,
)
from sklcam.reporting._histogram import histogram

if TYPE_CHECKING:
    from jinja2 import Template

_HERE = "sklcam.reporting"
_N_STEPS = 28  # of insertion and deletion, which cost 2 n_steps + 1 passes an image
_SIZES = (32, 1024)
_N_COLOURS = 9  # of the bar that explains them


def report(
    estimator: AnyEstimator,
    X: Any,
    y: ArrayLike | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    metrics: AnyMetrics | None = None,
    method: AnyMethod | None = None,
    target: Any = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    n_images: int | None = None,
    thumbnail: int = 224,
    n_jobs: int | None = None,
    verbose: int = 1,
    **options: Any,
) -> Evaluation:
    """Write a page of HTML with the metrics of an explainer, its images and their maps.

    The page is one file that loads nothing from anywhere. Images can be sorted by metric, or by how
    sure a wrong prediction was; filtered by class; and seen through their maps. Each image is read
    once.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, CAMExplainer, EmbeddingCAMExplainer, EmbeddingNet or Module
        Fitted; see :func:`~sklcam.metrics.evaluate`. An EmbeddingNet is explained by the images'
        own embeddings.
    X : images
        In any form that the estimator takes.
    y : array-like of shape (n_images,) or (n_images, n_classes), label sets, or None, default=None
        True labels; None takes those of X, if it is a data set that knows its own.
    path : str or path-like
        Where to write the page. A file that is there is replaced once the new one is complete.
    metrics : str, Metric, sequence of them, or None, default=None
        See :func:`~sklcam.metrics.evaluate`. None is ADCC, insertion and deletion in 28 steps
        (unless ``metric_params`` says how many), and consistency; without classes complexity,
        sparsity and consistency; and accuracy where there are labels.
    method : str, Method or None, default=None
        The explanation; None is the estimator's own.
    target : None, labels or callable, default=None
        What is explained; None is the predicted class.
    names : sequence of str or None, default=None
        What each image is called; None is the names of files, or numbers.
    title : str or None, default=None
        Of the page.
    n_images : int or None, default=None
        How many images are shown, evenly spread over X; None is all. The metrics are over all.
    thumbnail : int, default=224
        Pixels of a thumbnail's longer side, 32 to 1024. Smaller images stay as they are.
    n_jobs : int or None, default=None
        See :func:`~sklcam.metrics.evaluate`.
    verbose : int, default=1
        0 silences the progress bar.
    **options
        Further arguments of :func:`~sklcam.metrics.evaluate`, such as ``boxes``, ``score``,
        ``metric_params`` and ``random_state``.

    Returns
    -------
    Evaluation
        The numbers on the page.

    Raises
    ------
    ImportError
        If Jinja2 is missing; it comes with the extra ``report``.
    IsADirectoryError, FileNotFoundError
        If the path is a folder, or in none that exists; before any work.
    NotFittedError
        If the estimator has not been fitted.
    ValueError
        If an argument does not fit; before any work.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> import sklcam
    >>> from sklcam.networks import build_model
    >>> network = build_model("resnet18", n_classes=5)
    >>> explainer = sklcam.CAMExplainer(network, verbose=0).fit()
    >>> images = torch.randn(3, 3, 64, 64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "report.html")
    ...     result = sklcam.report(explainer, images, path=path, metrics="sparsity", verbose=0)
    ...     page = path.read_text(encoding="utf-8")
    >>> page.count('<article class="card"'), list(result)
    (3, ['sparsity'])
    """
    template = _template()
    if path is None:
        raise ValueError('report needs path=, the file to write, such as "report.html".')
    if n_images is not None:
        check_count("n_images", n_images)
    check_count("thumbnail", thumbnail, *_SIZES)
    explainer, images = as_explainer(estimator, X, y)
    has_labels = y is not None or dataset_labels(X) is not None
    labels = explainer.expected_labels(X, y, "report") if has_labels else None
    if metrics is None:
        n_classes = 0 if explainer.classes_ is None else len(explainer.classes_)
        is_told = n_classes > 1 or (n_classes == 1 and explainer.adapter.task == "multilabel")
        has_confidence = is_told or options.get("score") is not None
        has_truth = explainer.classes_ is not None and labels is not None
        metrics = default_metrics(confidence=has_confidence, labels=has_truth)
        options = _with_few_steps(options) if has_confidence else options
    evaluator: Evaluator[list[dict[str, Any]]] = Evaluator(
        explainer,
        images,
        labels,
        metrics=metrics,
        method=method,
        target=target,
        needs=("maps",),
        originals=True,
        **options,
    )
    check_is_picture(evaluator.opened.image_size)
    n_all = len(evaluator.opened)
    called = image_names(X, names, n_all)
    is_of_one_class = explainer.adapter.task in ("multiclass", "binary")
    shown = _spread(n_all, n_images)
    with replacing(path) as file:  # an error now if it cannot be written there
        result, batches = evaluator.run(
            observe=_Cards(frozenset(shown), thumbnail, labels is not None and is_of_one_class),
            n_jobs=n_jobs,
            progress=bool(verbose),
        )
        truth = [None] * n_all if labels is None else spelled(explainer, labels)
        cards = [card for batch in batches for card in batch]
        for i, card in zip(shown, cards, strict=True):
            values = {name: _number(values[i]) for name, values in result.items()}
            card |= {"name": called[i], "true": truth[i], "values": values}
        page = _page(evaluator, result, cards, method, title)
        for part in template.generate(page):
            file.write(part.encode("utf-8", errors="replace"))
    return result


# What is asked for


def _template() -> Template:
    """Return the page's template; an ImportError that names the extra if there is no Jinja2."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError(
            'report needs Jinja2. It comes with: pip install "sklcam[report]"'
        ) from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = _figure
    return environment.from_string(text_of(_HERE, "page.html"))


def _with_few_steps(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with few steps of insertion and deletion, unless they say how many."""
    given = options.get("metric_params") or {}
    few = {"n_steps": _N_STEPS, **given.get("iauc", {})}
    return {**options, "metric_params": {**given, "iauc": few}}


def _spread(n_all: int, n_shown: int | None) -> list[int]:
    if n_shown is None or n_shown >= n_all:
        return list(range(n_all))
    return np.linspace(0, n_all - 1, n_shown).round().astype(int).tolist()


# What is seen of each image


@dataclass(frozen=True)
class _Cards:
    """Makes thumbnails and predictions of the images that are shown, batch by batch.

    It is an observer of an evaluation, so that no image has to be read again, and explained again
    only where the network is wrong: for the true class.
    """

    shown: frozenset[int]
    longest: int
    knows_truth: bool = False

    def __call__(self, measurement: Measurement) -> list[dict[str, Any]]:
        places = [i for i, row in enumerate(measurement.rows) if row in self.shown]
        if not places:
            return []
        explainer = measurement.explainer
        predicted = predictions(explainer, measurement.output)
        # The class that is explained is told where it was chosen.
        chosen = measurement.question.indices
        names = explainer.output_names
        classes = class_names(explainer) or ([] if names is None else [*map(str, names)])
        truths = self._truths(measurement, places) if self.knows_truth else {}
        return [
            {
                **self._thumbnails(measurement, i),
                "truth": truths.get(i),
                "predicted": predicted[i].label,
                "probability": predicted[i].probability,
                "written": predicted[i].text,
                "explained": classes[int(chosen[i, 0])] if chosen is not None and classes else None,
                "remark": remark(measurement["maps"][i].float().cpu().numpy()),
            }
            for i in places
        ]

    def _thumbnails(self, measurement: Measurement, i: int) -> dict[str, Any]:
        picture, size = self._picture(measurement, i)
        map_ = map_uri(measurement["maps"][i], size, resize=measurement.explainer.adapter.resize)
        height, width = size
        return {"image": image_uri(picture, size), "map": map_, "height": height, "width": width}

    def _picture(self, measurement: Measurement, i: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Return an image at its own size, and the size of its thumbnail."""
        originals = measurement.batch.originals
        assert originals is not None  # they were asked for when X was opened
        picture = to_picture(originals[i])
        return picture, thumbnail_size(picture.shape[0], picture.shape[1], self.longest)

    def _truths(self, measurement: Measurement, places: list[int]) -> dict[int, str]:
        """Return the maps of the true class, of images whose wrong prediction is explained."""
        explained, explainer = measurement.target.indices, measurement.explainer
        if explained is None:
            return {}
        decided = explainer.decide(measurement.output)
        true = measurement.true_classes
        is_wrong = ((true >= 0) & (decided != true) & (explained[:, 0] == decided)).tolist()
        wrong = [i for i in places if is_wrong[i]]
        if not wrong:
            return {}
        rows = torch.tensor(wrong).to(true.device)
        inputs = measurement.batch.inputs.take(rows)
        (maps,), _, _ = explainer.explain_batch(
            inputs, true[rows], methods=[measurement.plan.method]
        )
        resize = explainer.adapter.resize
        return {
            i: map_uri(map_, self._picture(measurement, i)[1], resize=resize)
            for i, map_ in zip(wrong, maps, strict=True)
        }


# The page


def _page(
    evaluator: Evaluator[Any],
    result: Evaluation,
    cards: list[dict[str, Any]],
    method: AnyMethod | None,
    title: str | None,
) -> dict[str, Any]:
    """Return what the template is filled with."""
    from markupsafe import Markup

    explainer = evaluator.explainer
    script = text_of(_HERE, "page.js")
    summary = result.summary()
    order = {name: i for i, name in enumerate(class_names(explainer))}
    # Numbers are no classes to filter by.
    is_of_classes = explainer.adapter.task != "regression"
    options = {
        name: sorted(
            {card[name] for card in cards if is_of_classes} - {None},
            key=lambda label: (order.get(label, len(order)), label),
        )
        for name in ("true", "predicted")
    }
    model = getattr(explainer, "model", explainer)
    explained = model if isinstance(model, str) else type(model).__name__
    data = list(_data(cards, options))
    colours = viridis()[np.linspace(0, 255, _N_COLOURS).astype(int)]
    return {
        "title": title or f"Explanations of {explained}",
        "method": method_name(explainer.method if method is None else method),
        "estimator": type(explainer).__name__,
        "version": installed_versions(["sklcam"]).get("sklcam", "not installed"),
        "n_all": len(evaluator.opened),
        "cards": cards,
        "metrics": list(result),
        "rows": [{"name": name, **_told(name, evaluator), **row} for name, row in summary.items()],
        "histograms": {name: histogram(values) for name, values in result.items()},
        "summary": summary,
        "options": options,
        "has_errors": any(card["error"] is not None for card in data),
        "data": Markup(script_json(data)),
        "style": Markup(style_of(_HERE)),
        "script": Markup(script),
        "digest": digest(script),
        "colours": ", ".join("#" + bytes(colour).hex() for colour in colours),
    }


def _told(row: str, evaluator: Evaluator[Any]) -> dict[str, Any]:
    """Return what there is to know of a row of the summary."""
    own = evaluator.metrics.get(row)  # what it means may depend on what was asked
    metric = own or metric_of_row(row)
    meaning = own.meaning if own else row_meaning(row)
    return {"higher_is_better": metric is None or metric.higher_is_better, "meaning": meaning}


def _data(
    cards: list[dict[str, Any]], options: Mapping[str, list[str]]
) -> Iterator[dict[str, Any]]:
    """Yield what the script sorts and filters by; classes by their place in the lists."""
    for card in cards:
        true = card["true"] if options["true"] else None
        predicted = card["predicted"]
        right = None if true is None or predicted is None else true == predicted
        is_sure = right is False and card["probability"] is not None
        yield {
            "values": card["values"],
            "true": None if true is None else options["true"].index(true),
            "predicted": None if predicted is None else options["predicted"].index(predicted),
            "right": right,
            "error": _number(card["probability"]) if is_sure else None,  # how sure it was of one
        }


def _number(value: float) -> float | None:
    """Return a float that JSON has a word for, or None."""
    return float(value) if math.isfinite(value) else None


def _figure(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"
