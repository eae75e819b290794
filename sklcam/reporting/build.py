"""Measure, explain, and write the page.

The metrics are over all images. Of those that are shown, no more than the thumbnails is kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from skorch import NeuralNetBinaryClassifier
from torch import Tensor
from torch.utils.data import Subset
from tqdm.auto import tqdm

from sklcam._files import replacing
from sklcam._validation import check_count, describe
from sklcam.embeddings.explainer import EmbeddingCAMExplainer
from sklcam.explain.base import AnyMethod
from sklcam.metrics import Evaluation, evaluate
from sklcam.metrics.evaluate import METRICS
from sklcam.plotting.pictures import (
    explainers_by_name,
    labels_of_images,
    method_name,
    picture_of,
)
from sklcam.reporting.pictures import histogram, image_uri, map_uri, thumbnail_size, viridis

_WITH_CLASSES = ("adcc", "iauc", "dauc", "consistency")
_WITHOUT_CLASSES = ("complexity", "sparsity", "consistency")
_N_STEPS = 28  # of insertion and deletion, which cost 2 n_steps + 1 passes an image
_CHUNK = 64  # images that are taken out of X together, where only some are shown
_SIZES = (32, 1024)
_N_COLOURS = 9  # of the bar that explains them

# What a metric is, in a few words, for readers who have not met it.
_MEANINGS = {
    "accuracy": "share of images whose predicted class is the true one",
    "adcc": "harmonic mean of coherency, simplicity and kept confidence",
    "arcc": "harmonic mean of coherency, simplicity and ROAD",
    "average_drop": "confidence lost when only what the map shows is seen",
    "average_increase": "share of images whose confidence rises when only the map is seen",
    "coherency": "correlation of the map with the map of what it shows",
    "complexity": "how much of the image the map covers",
    "consistency": "likeness of the map's view and the view's map",
    "dauc": "confidence while pixels are deleted, the map's brightest first",
    "heatmap_ratio": "share of the map that lies inside the object",
    "iauc": "confidence while pixels are inserted, the map's brightest first",
    "inside_outside_ratio": "mean of the map inside the object over its mean outside",
    "localization_accuracy": "share of images whose box, made from the map, fits a true one",
    "mean_adcc": "mean of the images' own adcc",
    "pointing_game": "share of images whose brightest pixel is on the object",
    "rank_correlation": "correlation of the ranks of the map and of occlusion's map",
    "road": "confidence without the least relevant pixels, against without the most",
    "sparsity": "Gini index of the map: how much of it lies in few pixels",
}


def report(
    estimator: Any,
    X: Any,
    y: Any = None,
    path: str | os.PathLike[str] | None = None,
    *,
    metrics: str | Sequence[str] | None = None,
    method: AnyMethod | None = None,
    target: Any = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    n_images: int | None = None,
    thumbnail: int = 224,
    verbose: int = 1,
    **options: Any,
) -> Evaluation:
    """Write a page of HTML with the metrics of an explainer, its images and their maps.

    The page is one file that loads nothing from anywhere. Images can be sorted by metric, filtered
    by class, and seen through their maps.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, CAMExplainer, EmbeddingCAMExplainer, EmbeddingNet or Module
        Fitted, as of :func:`~sklcam.metrics.evaluate`. An EmbeddingNet is explained by the images'
        own embeddings.
    X : images
        In any form that the estimator takes.
    y : array-like of shape (n_images,) or None, default=None
        True labels; None takes those of X, if it is a data set that knows its own.
    path : str or path-like
        Where to write the page. A file that is there is replaced once the new one is complete.
    metrics : str, sequence of str or None, default=None
        As of :func:`~sklcam.metrics.evaluate`. None is ADCC, insertion and deletion in 28 steps
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
    verbose : int, default=1
        0 silences the progress bars.
    **options
        Further arguments of :func:`~sklcam.metrics.evaluate`, such as ``boxes``, ``score``,
        ``metric_params``, ``n_jobs`` and ``random_state``.

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
    explainer = next(iter(explainers_by_name({"": estimator}, X).values()))
    n_all = len(explainer._image_dataset(X))
    labels = labels_of_images(X, y, n_all)
    if names is not None and (not isinstance(names, Sized) or len(names) != n_all):
        came = f"{len(names)}" if isinstance(names, Sized) else describe(names)
        raise ValueError(f"names must have one entry for each of {n_all} images; got {came}.")
    if metrics is None:
        metrics = _default_metrics(explainer, labels, options)
        if "iauc" in metrics:
            given = options.get("metric_params") or {}
            few = {"n_steps": _N_STEPS, **given.get("iauc", {})}
            options["metric_params"] = {**given, "iauc": few}
    with replacing(path) as file:
        result = evaluate(
            explainer,
            X,
            labels,
            metrics=metrics,
            method=method,
            target=target,
            progress=bool(verbose),
            **options,
        )
        shown = _spread(n_all, n_images)
        images = _explained(explainer, X, target, method, shown, n_all, thumbnail, verbose)
        cards = _cards(images, result, shown, _names(X, names), _spelled(explainer, labels))
        page = _page(explainer, result, cards, n_all, method, title)
        for part in template.generate(page):
            file.write(part.encode("utf-8", errors="replace"))
    return result


# What is asked for


def _template() -> Any:
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
    return environment.from_string(_text("page.html"))


def _text(name: str) -> str:
    return files("sklcam.reporting").joinpath(name).read_text(encoding="utf-8")


def _default_metrics(explainer: Any, labels: Any, options: Mapping[str, Any]) -> Sequence[str]:
    if explainer.classes_ is None:
        scored = options.get("score") is not None
        return _WITH_CLASSES if scored else _WITHOUT_CLASSES
    return _WITH_CLASSES if labels is None else ("accuracy", *_WITH_CLASSES)


def _spread(n_all: int, n_shown: int | None) -> np.ndarray:
    if n_shown is None or n_shown >= n_all:
        return np.arange(n_all)
    return np.linspace(0, n_all - 1, n_shown).round().astype(int)


def _names(X: Any, names: Sequence[str] | None) -> Callable[[int], str]:
    """Return what tells the name of an image; of files no folders, which are no one's business."""
    if names is not None:
        return lambda i: str(names[i])
    if isinstance(X, list | tuple | np.ndarray) and isinstance(X[0], str | os.PathLike):
        return lambda i: PurePath(X[i]).name if isinstance(X[i], str | os.PathLike) else f"{i}"
    return lambda i: f"image {i}"


# Images and their maps


def _explained(
    explainer: Any,
    X: Any,
    target: Any,
    method: Any,
    shown: np.ndarray,
    n_all: int,
    longest: int,
    verbose: int,
) -> Iterator[dict[str, Any]]:
    """Yield thumbnail, map and prediction of the images that are shown."""
    chunks = np.array_split(shown, math.ceil(len(shown) / _CHUNK))
    parts: Iterable[tuple[Any, Any]] = [(X, target)]
    if len(shown) < n_all:
        parts = ((_rows(X, chunk), _target_rows(target, chunk, n_all)) for chunk in chunks)
    with tqdm(total=len(shown), desc="report", leave=False, disable=not verbose) as bar:
        for some, target_of_some in parts:
            for image in _explained_part(explainer, some, target_of_some, method, longest):
                yield image
                bar.update()


def _explained_part(
    explainer: Any, X: Any, target: Any, method: Any, longest: int
) -> Iterator[dict[str, Any]]:
    dataset = explainer._image_dataset(X)
    encoded = explainer._encode_target(target, len(dataset))
    start = 0
    for inputs, batch_target in explainer._iter_targeted(dataset, encoded):
        maps, output = explainer.explain_inputs(inputs, batch_target, method=method)
        predictions = _predictions(explainer, output)
        targets = _target_names(explainer, batch_target, len(maps))
        for i, map_ in enumerate(maps):
            picture = picture_of(dataset, start + i, own_size=True)
            size = thumbnail_size(picture.shape[0], picture.shape[1], longest)
            yield {
                "image": image_uri(picture, size),
                "map": map_uri(map_, size, resize=explainer._frame_resize()),
                "height": size[0],
                "width": size[1],
                "explained": targets[i],
                **predictions[i],
            }
        start += len(maps)


def _predictions(explainer: Any, output: Tensor) -> list[dict[str, Any]]:
    """Return predicted class and its probability for each image, None where there are no classes.

    The cosines of embeddings are no probabilities that mean anything to a reader.
    """
    if explainer.classes_ is None or output.ndim != 2:
        return [{"predicted": None, "probability": None}] * len(output)
    probabilities = explainer.probabilities(output)
    indices = probabilities.argmax(dim=1)
    if isinstance(getattr(explainer, "model", None), NeuralNetBinaryClassifier):
        indices = (probabilities[:, 1] > explainer.model.threshold).long()
    chances = probabilities.gather(1, indices[:, None])[:, 0].tolist()
    if isinstance(explainer, EmbeddingCAMExplainer):
        chances = [None] * len(chances)
    classes = _class_list(explainer)
    return [
        {"predicted": str(classes[i]), "probability": chance}
        for i, chance in zip(indices.tolist(), chances, strict=True)
    ]


def _target_names(explainer: Any, target: Any, n_images: int) -> list[str | None]:
    """Return the class that is explained where it was chosen."""
    if isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point():
        classes = _class_list(explainer)
        return [str(classes[i]) for i in target.tolist()]
    return [None] * n_images


def _rows(X: Any, indices: np.ndarray) -> Any:
    """Return some of the images in a form that is taken as X is."""
    if isinstance(X, Mapping):
        return {name: _rows(value, indices) for name, value in X.items()}
    if hasattr(X, "iloc"):
        X = np.asarray(X)
    if isinstance(X, np.ndarray):
        return X[indices]
    if isinstance(X, Tensor):
        return X[torch.from_numpy(indices)]
    if isinstance(X, list | tuple):
        return [X[i] for i in indices.tolist()]
    return Subset(X, indices.tolist())


def _target_rows(target: Any, indices: np.ndarray, n_all: int) -> Any:
    per_image = isinstance(target, Sized) and not isinstance(target, str) and not callable(target)
    if not per_image or getattr(target, "ndim", 1) == 0 or len(target) != n_all:
        return target
    return _rows(target, indices)


def _class_list(explainer: Any) -> list[Any]:
    """Return the labels as Python's own values, which are written as their users write them."""
    return [] if explainer.classes_ is None else np.asarray(explainer.classes_).tolist()


# The page


def _cards(
    images: Iterator[dict[str, Any]],
    result: Evaluation,
    shown: np.ndarray,
    called: Callable[[int], str],
    truth: list[str] | None,
) -> list[dict[str, Any]]:
    """Return what is known of each image that is shown."""
    return [
        {
            "name": called(i),
            "true": None if truth is None else truth[i],
            "values": {name: _number(values[i]) for name, values in result.items()},
            **image,
        }
        for i, image in zip(shown.tolist(), images, strict=True)
    ]


def _spelled(explainer: Any, labels: Any) -> list[str] | None:
    """Return labels as text; those of a class as the class is written, such as 1 for 1.0."""
    if labels is None:
        return None
    classes = {label: str(label) for label in _class_list(explainer)}
    return [classes.get(label, str(label)) for label in labels.tolist()]


def _page(
    explainer: Any,
    result: Evaluation,
    cards: list[dict[str, Any]],
    n_all: int,
    method: Any,
    title: str | None,
) -> dict[str, Any]:
    """Return what the template is filled with."""
    from markupsafe import Markup

    from sklcam import __version__

    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    summary = result.summary()
    options = {
        name: list(dict.fromkeys(card[name] for card in cards if card[name] is not None))
        for name in ("true", "predicted")
    }
    order = {str(label): i for i, label in enumerate(_class_list(explainer))}
    for of in options.values():
        of.sort(key=lambda name: (order.get(name, len(order)), name))
    what = type(getattr(explainer, "model", explainer)).__name__
    return {
        "title": title or f"Explanations of {what}",
        "method": method_name(explainer._default_method() if method is None else method),
        "estimator": type(explainer).__name__,
        "version": __version__,
        "n_all": n_all,
        "cards": cards,
        "metrics": list(result),
        "rows": [{"name": name, **row} for name, row in summary.items()],
        "better": {name: METRICS.get(name, True) for name in summary},
        "meanings": _MEANINGS,
        "histograms": {name: histogram(values) for name, values in result.items()},
        "summary": summary,
        "options": options,
        "data": Markup(_json(_data(cards, options))),
        "style": Markup(_text("page.css")),
        "script": Markup(script),
        "digest": digest,
        "colours": ", ".join(
            "#" + bytes(colour).hex()
            for colour in viridis()[np.linspace(0, 255, _N_COLOURS).astype(int)]
        ),
    }


def _data(cards: list[dict[str, Any]], options: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Return what the script sorts and filters by; classes by their place in the lists."""
    places = {name: {label: i for i, label in enumerate(of)} for name, of in options.items()}
    return [
        {
            "values": card["values"],
            "true": places["true"].get(card["true"]),
            "predicted": places["predicted"].get(card["predicted"]),
            "right": _is_right(card),
        }
        for card in cards
    ]


def _is_right(card: Mapping[str, Any]) -> bool | None:
    if card["true"] is None or card["predicted"] is None:
        return None
    return card["true"] == card["predicted"]


def _number(value: Any) -> float | None:
    """Return a float that JSON has a word for, or None."""
    return float(value) if math.isfinite(value) else None


def _figure(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _json(value: Any) -> str:
    """Return JSON that can stand in a script element: no sign in it can end that."""
    text = json.dumps(value, allow_nan=False)  # in ASCII, and with it U+2028
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
