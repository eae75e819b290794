"""Measure, explain, and write the page.

The metrics cover all images. Only the pictures of the shown images are kept in memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from sklcam._files import replacing
from sklcam._validation import check_count, check_number, describe, draw_seed
from sklcam.explain.base import AnyMethod, Methods, method_name
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.explain.predictions import spelled
from sklcam.images.labels import dataset_labels
from sklcam.images.pictures import check_is_picture
from sklcam.metrics import Evaluation, Evaluator, default_metrics
from sklcam.metrics.evaluate import AnyMetrics
from sklcam.plotting.pages import AnyNames, image_names, text_of
from sklcam.reporting.cards import Look, Seen, merged
from sklcam.reporting.names import plain_name, watched_grid
from sklcam.reporting.page import HERE, Column, context
from sklcam.reporting.words import figure

if TYPE_CHECKING:
    from jinja2 import Template

_N_STEPS = 28  # of insertion and deletion, which cost 2 n_steps + 1 passes per image
_SIZES = (32, 1024)


def report(
    estimator: AnyEstimator | Mapping[str, AnyEstimator],
    X: Any,
    y: ArrayLike | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    metrics: AnyMetrics | None = None,
    method: AnyMethod | None = None,
    methods: Methods | None = None,
    target: Any = None,
    names: AnyNames | None = None,
    title: str | None = None,
    note: str | None = None,
    n_images: int | None = None,
    thumbnail: int = 224,
    budget: float = 12.0,
    n_jobs: int | None = None,
    verbose: int = 1,
    **options: Any,
) -> Evaluation | dict[str, Evaluation]:
    """Write an HTML page that shows what a network looks at: in words, in numbers, on each image.

    The page begins with a summary in words, and with the best, the worst and the wrong images. All
    images can be sorted by metric or by the confidence of wrong predictions, filtered by class, and
    enlarged. The page is one file that loads nothing from elsewhere. Each model reads each image
    once.

    Parameters
    ----------
    estimator : estimator, Module, or mapping of str to these
        A fitted ConsistentCAMClassifier, CAMExplainer, EmbeddingCAMExplainer or EmbeddingNet, or a
        network; see :func:`~sklcam.metrics.evaluate`. An EmbeddingNet is explained by the images'
        own embeddings. Several in a mapping are shown side by side, and compared with the first.
    X : images
        In any form that the estimators take.
    y : array-like of shape (n_images,) or (n_images, n_classes), label sets, or None, default=None
        True labels; None takes those of X, if it is a data set with labels.
    path : str or path-like
        Where to write the page. An existing file is replaced once the new one is complete.
    metrics : str, Metric, sequence of them, or None, default=None
        See :func:`~sklcam.metrics.evaluate`. None is ADCC, insertion and deletion in 28 steps
        (unless ``metric_params`` says how many), and consistency; without classes, complexity,
        sparsity and consistency. If there are labels, accuracy is added.
    method : str, Method or None, default=None
        The explanation; None is the estimator's own.
    methods : sequence of str and Method, mapping of str to Method, or None, default=None
        Several methods, side by side, and compared with the first; they share their passes.
    target : None, labels or callable, default=None
        The target to explain; None is the predicted class.
    names : sequence of str, mapping or None, default=None
        The name of each image; None takes the names of files, or numbers. The keys of a mapping
        are row numbers, or the names that the images would have with None.
    title : str or None, default=None
        The title of the page; None makes one from the models' names.
    note : str or None, default=None
        A sentence under the title, such as where the images come from, or which were left out.
    n_images : int or None, default=None
        How many images to show, evenly spread over X; None shows all. The metrics cover all.
    thumbnail : int, default=224
        The longer side of a thumbnail in pixels, 32 to 1024. Smaller images keep their size.
    budget : float, default=12.0
        Megabytes for all enlarged images together, without thumbnails and maps. Each gets an equal
        share, and is as large as that allows, up to its own size; 0 enlarges the thumbnails.
    n_jobs : int or None, default=None
        See :func:`~sklcam.metrics.evaluate`.
    verbose : int, default=1
        0 silences the progress bar.
    **options
        Further arguments of :func:`~sklcam.metrics.evaluate`, such as ``score``,
        ``metric_params``, ``random_state``, and ``boxes`` and ``masks``, which are also drawn.

    Returns
    -------
    Evaluation, or dict of str to Evaluation
        The numbers on the page. For several models or methods, the keys are their names, or both
        names, such as ``"baseline, gradcam"``.

    Raises
    ------
    ImportError
        If Jinja2 is missing; it comes with the extra ``report``.
    IsADirectoryError, FileNotFoundError
        If the path is a folder, or its folder does not exist; before any work.
    NotFittedError
        If an estimator has not been fitted.
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
    check_number("budget", budget, 0)
    if method is not None and methods is not None:
        raise ValueError(
            "Got both method= and methods=. Give method= for one, or methods= for several."
        )
    models = _models(estimator)
    options = _with_one_seed(options) if len(models) > 1 else options
    explained = method if methods is None else methods
    evaluators = {
        name: _evaluator(each, X, y, metrics, explained, target, options)
        for name, each in models.items()
    }
    first = next(iter(evaluators.values()))
    n_all = len(first.opened)
    check_is_picture(first.opened.image_size)
    called = image_names(X, names, n_all)
    shown = _spread(n_all, n_images)
    with replacing(path) as file:  # an error now if nothing can be written there
        columns: list[Column] = []
        for name, evaluator in evaluators.items():
            is_of_one_class = evaluator.explainer.adapter.task in ("multiclass", "binary")
            look = Look(
                frozenset(shown),
                thumbnail,
                int(budget * 1e6 / len(shown)),
                evaluator.labels is not None and is_of_one_class,
                has_pictures=not columns,
            )
            with _grid(evaluator, n_jobs) as grid:
                found = evaluator.run_each(observe=look, n_jobs=n_jobs, progress=bool(verbose))
            columns += _columns(name, evaluator, *found, tuple(grid))
        cards = merged({column.label: column.seen for column in columns})
        for i, card in zip(shown, cards, strict=True):
            first_labels = columns[0].labels
            card |= {"name": called[i], "true": None if first_labels is None else first_labels[i]}
            for column, part in zip(columns, card["columns"], strict=True):
                part["values"] = {name: values[i] for name, values in column.result.items()}
                part["true"] = None if column.labels is None else column.labels[i]
        for text in template.generate(context(columns, cards, title, note)):
            file.write(text.encode("utf-8", errors="replace"))
    results = {column.label: column.result for column in columns}
    return results if isinstance(estimator, Mapping) or methods is not None else results[""]


# Arguments


def _models(estimator: Any) -> dict[str, Any]:
    """Return the estimators by name, "" for a single one; a ValueError if names are missing."""
    if not isinstance(estimator, Mapping):
        return {"": estimator}
    if not estimator or not all(isinstance(name, str) and name for name in estimator):
        raise ValueError(
            'Give several estimators by name, such as {"baseline": a, "consistent": b}; got '
            f"{describe(estimator)} with the keys {[*estimator]}."
        )
    return dict(estimator)


def _with_one_seed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with one seed, by which all models see the same views."""
    seed = draw_seed(check_random_state(options.get("random_state", 0)))
    return {**options, "random_state": seed}


def _evaluator(
    estimator: AnyEstimator,
    X: Any,
    y: Any,
    metrics: AnyMetrics | None,
    method: AnyMethod | Methods | None,
    target: Any,
    options: Mapping[str, Any],
) -> Evaluator[Seen]:
    """Return an evaluation that is ready to run."""
    explainer, images = as_explainer(estimator, X, y)
    has_labels = y is not None or dataset_labels(X) is not None
    labels = explainer.expected_labels(X, y, "report") if has_labels else None
    if metrics is None:
        n_classes = 0 if explainer.classes_ is None else len(explainer.classes_)
        has_classes = n_classes > 1 or (n_classes == 1 and explainer.adapter.task == "multilabel")
        has_confidence = has_classes or options.get("score") is not None
        has_truth = explainer.classes_ is not None and labels is not None
        metrics = default_metrics(confidence=has_confidence, labels=has_truth)
        options = _with_few_steps(options) if has_confidence else options
    is_annotated = options.get("boxes") is not None or options.get("masks") is not None
    return Evaluator(
        explainer,
        images,
        labels,
        metrics=metrics,
        method=method,
        target=target,
        needs=("maps", "boxes", "masks") if is_annotated else ("maps",),
        originals=True,
        **options,
    )


def _columns(
    model: str,
    evaluator: Evaluator[Seen],
    results: Mapping[str, Evaluation],
    seen: Mapping[str, list[Seen]],
    grid: tuple[int, ...],
) -> list[Column]:
    """Return a column for each method of a model."""
    explainer = evaluator.explainer
    labels = None if evaluator.labels is None else spelled(explainer, evaluator.labels)
    columns = []
    for method, result in results.items():
        parts = [model, method] if len(results) > 1 else [model]
        label = ", ".join(part for part in parts if part)
        made_by = evaluator.plans[method].method
        called = method_name(made_by).removesuffix("()")
        places = grid if made_by.at_layer else ()
        columns.append(
            Column(label, model, called, places, evaluator, labels, result, seen[method])
        )
    return columns


def _grid(evaluator: Evaluator[Seen], n_jobs: int | None) -> AbstractContextManager[list[int]]:
    """Return a context that records the grid of the maps; only possible in this process."""
    return watched_grid(evaluator.explainer) if n_jobs in (None, 1) else nullcontext([])


def _template() -> Template:
    """Return the page's template; an ImportError that names the extra if Jinja2 is missing."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError(
            'report needs Jinja2. It comes with: pip install "sklcam[report]"'
        ) from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = figure
    environment.filters["plain"] = plain_name
    return environment.from_string(text_of(HERE, "page.html"))


def _with_few_steps(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with few steps of insertion and deletion, unless they say how many."""
    given = options.get("metric_params") or {}
    few = {"n_steps": _N_STEPS, **given.get("iauc", {})}
    return {**options, "metric_params": {**given, "iauc": few}}


def _spread(n_all: int, n_shown: int | None) -> list[int]:
    if n_shown is None or n_shown >= n_all:
        return list(range(n_all))
    return np.linspace(0, n_all - 1, n_shown).round().astype(int).tolist()
