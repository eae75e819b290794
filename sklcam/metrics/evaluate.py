"""All numbers of an explainer in one pass over the data.

Checks what is asked for, sends batch after batch through the metrics, in one process or several,
and keeps nothing of a batch but one value per image and metric.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from sklcam._validation import check_callable, check_count, check_number, describe, suggestion
from sklcam.cam import Method, Occlusion, TopK, get_method
from sklcam.cam.base import check_batch_size
from sklcam.explain.base import Explainer
from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.images.labels import labels_for
from sklcam.images.views import ViewSampler
from sklcam.metrics.batch import Batch, Options, Shared
from sklcam.metrics.masks import check_boxes
from sklcam.metrics.summary import ADCC_TERMS, Evaluation, seed_drawn_from

# Whether higher is better.
METRICS = {
    "accuracy": True,
    "adcc": True,
    "arcc": True,
    "average_drop": False,
    "average_increase": True,
    "coherency": True,
    "complexity": False,
    "consistency": True,
    "dauc": False,
    "heatmap_ratio": True,
    "iauc": True,
    "inside_outside_ratio": True,
    "localization_accuracy": True,
    "pointing_game": True,
    "rank_correlation": True,
    "road": True,
    "sparsity": True,
}
# What metric_params may hold; insertion and deletion share their curves, and these their options.
OPTIONS = {
    "consistency": {"method", "views"},
    "iauc": {"end", "n_steps", "relu", "start"},
    "localization_accuracy": {"iou_threshold", "threshold"},
    "pointing_game": {"tolerance"},
    "rank_correlation": {"occlusion"},
    "road": {"noise", "percentiles"},
}
_BOUNDED = {"adcc", "arcc", "average_drop", "average_increase", "dauc", "iauc", "road"}
_PARTS_PER_JOB = 4  # so that the bar moves
_BOXES_OR_MASKS = {"heatmap_ratio", "inside_outside_ratio", "pointing_game"}


def evaluate(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    metrics: str | Sequence[str] = ("adcc", "iauc", "dauc", "consistency"),
    method: Any = None,
    target: Any = None,
    boxes: Any = None,
    masks: Any = None,
    score: Callable[[Tensor], Tensor] | None = None,
    metric_params: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
    n_jobs: int | None = None,
    random_state: Any = 0,
    progress: bool = True,
) -> Evaluation:
    """Measure an explainer on X, in one pass over the data.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, CAMExplainer, EmbeddingCAMExplainer or nn.Module
        Fitted. A module is explained by a :class:`~sklcam.CAMExplainer` with its defaults.
    X : images
        In any form that the estimator takes.
    y : array-like of shape (n_images,) or None, default=None
        True labels; for ``"accuracy"`` only. None takes those of X, if it is a data set that knows
        its own.
    metrics : str or sequence of str
        Among the keys of ``sklcam.metrics.METRICS``. ``"adcc"`` brings its three terms along.
    method : str, Method or None, default=None
        The explanation; None is the estimator's own.
    target : None, labels or callable, default=None
        What is explained: as of the estimator's ``explain``, one class an image.
    boxes : sequence of array-like of shape (n_boxes, 4) or None, default=None
        The objects of each image, ``(x1, y1, x2, y2)`` in pixels of the image itself.
    masks : sequence of array-like of shape (height, width) or None, default=None
        The same as masks of the image's own size, bool, 0 and anything else as integers, or shares
        in [0, 1]; they go before boxes where either would do.
    score : callable or None, default=None
        Turns the network's output into one score in [0, 1] per image. Needed for the metrics of
        confidence where the target is a callable.
    metric_params : mapping of metric to options, or None
        Such as ``{"iauc": {"n_steps": 56, "relu": False}, "consistency": {"views": views}}``: the
        keyword arguments of :func:`causal_curves` (for ``"iauc"`` and ``"dauc"`` together, under
        the first name), :func:`road`, :func:`pointing_game`, :func:`localization_accuracy` (and the
        ``threshold`` of :func:`box_from_map`); ``method`` and ``views`` of consistency;
        ``occlusion`` of ``"rank_correlation"``. What insertion starts from, and deletion ends at,
        are callables that make it from a batch of images.
    batch_size : int or None, default=None
        Most perturbed images that go through the network at a time. None is 10 of 224 x 224 pixels
        on a CPU, whose caches hold no more, 83 elsewhere, and more of smaller ones.
    n_jobs : int or None, default=None
        Processes that share the images, as joblib counts them; the numbers are the same. It pays
        on many cores, for many images: each process gets a copy of the network.
    random_state : int, RandomState or None, default=0
        Of views and of ROAD's noise.
    progress : bool, default=True
        Whether a bar is shown.

    Returns
    -------
    Evaluation
        A value for each image under the metric's name, and :meth:`Evaluation.summary`.

    Raises
    ------
    ValueError
        If there is no such metric or option, or what it needs is missing; before any work.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import evaluate
    >>> from sklcam.networks import build_model
    >>> network = build_model("resnet18", n_classes=5)
    >>> images = torch.randn(3, 3, 64, 64)
    >>> result = evaluate(network, images, metrics=("adcc", "sparsity"), method="fakecam")
    >>> [f"{value:.4f}" for value in result["complexity"]]
    ['0.9998', '0.9998', '0.9998']
    """
    names = _check_metrics(metrics)
    _check_needs(names, boxes, masks, target)
    check_metric_params(metric_params)
    check_batch_size(batch_size)
    if n_jobs is not None and not (isinstance(n_jobs, Integral) and n_jobs):
        raise ValueError(f"n_jobs must be None or an int other than 0; got {n_jobs!r}.")
    if score is None:
        check_has_probability(target, names, encoded=False)
    else:
        check_callable("score", score, "of the network's output that returns one number per image")
    if y is not None or "accuracy" in names:
        y = labels_for(X, y, "accuracy")
        if y.ndim != 1:
            raise ValueError(f"y must be one label per image; got shape {y.shape}.")
    estimator = as_explainer(estimator, X)
    _ = estimator.adapter  # an error if it is not fitted
    options = Options(
        estimator.as_method(method),
        frozenset(names),
        {name: dict(params) for name, params in (metric_params or {}).items()},
        score,
        batch_size,
        seed_drawn_from(random_state),
    )
    opened = estimator.open(X)
    question = estimator.as_target(target, len(opened))
    check_maps_are_single(estimator, options.method)
    if score is None:
        check_has_probability(question, names, encoded=True)
    truth = {"y": y, "boxes": boxes, "masks": masks}
    _check_lengths(truth, len(opened))
    if "accuracy" in names:
        _check_classes(y, estimator.classes_)
    _check_boxes(boxes)
    with tqdm(total=len(opened), desc="evaluate", leave=False, disable=not progress) as bar:
        parts = _in_processes if effective_n_jobs(n_jobs) > 1 else _in_one_go
        results = list(parts(estimator, X, target, truth, options, bar, n_jobs))
    values, n_constant = zip(*results, strict=True)
    if any(n_constant):
        warnings.warn(
            f"{sum(n_constant)} of {len(opened)} images have a constant map, for themselves or "
            "for their view; each counts as 0.",
            stacklevel=2,
        )
    return Evaluation(**{name: np.concatenate([part[name] for part in values]) for name in names})


def consistency_score(
    estimator: Any,
    X: Any,
    *,
    method: str | Method | None = None,
    views: ViewSampler | None = None,
    random_state: int | np.random.RandomState | None = 0,
) -> float:
    """Mean SSIM between the view of the map and the map of the view, over the images of X.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier
        Fitted.
    X : images
        In any form that the estimator takes.
    method : str, Method or None, default=None
        The explanation; None is Grad-CAM without the ReLU, as in training.
    views : ViewSampler or None, default=None
        The distribution of crops and flips; None is the paper's, whatever an estimator was trained
        with, so that estimators can be compared.
    random_state : int, RandomState or None, default=0
        One seed gives every model and every batch size the same views.

    Returns
    -------
    float, in [-1, 1]; higher is better. The paper prints it times 100.

    Raises
    ------
    NotFittedError
        If the estimator has not been fitted.
    ValueError
        If the estimator does not explain, or X, the method, the views or the seed make no sense; or
        if images are smaller, as the network gets them, than SSIM's window of 11 x 11 pixels.

    Warns
    -----
    UserWarning
        If maps were constant; each such image counts as 0.

    Notes
    -----
    The map is scaled before it is cropped and not after, so that a crop without the map's brightest
    pixel peaks below 1: even a network that is perfectly consistent scores about 0.95 on crops.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", section 3.2.2 and table 1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklcam import ConsistentCAMClassifier
    >>> from sklcam.metrics import consistency_score
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> X = (X / 16).reshape(-1, 8, 8)
    >>> clf = ConsistentCAMClassifier("resnet18", image_size=64, max_epochs=1, verbose=0,
    ...                               random_state=0).fit(X[:64], y[:64])
    >>> 0 < consistency_score(clf, X[64:96]) < 1
    True
    """
    result = evaluate(
        estimator,
        X,
        metrics="consistency",
        metric_params={"consistency": {"method": method, "views": views}},
        random_state=random_state,
        progress=False,
    )
    return result.means()["consistency"]


def _in_one_go(
    estimator: Any, X: Any, target: Any, truth: dict[str, Any], options: Options, bar: Any, _: Any
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    yield _measure(estimator, X, target, truth, options, on_images=bar.update)


def _in_processes(
    estimator: Any,
    X: Any,
    target: Any,
    truth: dict[str, Any],
    options: Options,
    bar: Any,
    n_jobs: int | None,
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Yield what parts of the images give, in their order."""
    per_image = not callable(target) and np.ndim(target) > 0
    edges = np.linspace(0, bar.total, _PARTS_PER_JOB * effective_n_jobs(n_jobs) + 1).astype(int)
    spans = [(i, j) for i, j in pairwise(edges.tolist()) if i < j]
    results = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_measure)(
            estimator,
            _part_of(X, start, stop),
            target[start:stop] if per_image else target,
            {name: None if of is None else of[start:stop] for name, of in truth.items()},
            options,
            n_before=start,
        )
        for start, stop in spans
    )
    for (start, stop), result in zip(spans, results, strict=True):
        bar.update(stop - start)
        yield result


def _part_of(X: Any, start: int, stop: int) -> Any:
    if isinstance(X, Mapping):
        return {name: _part_of(value, start, stop) for name, value in X.items()}
    if isinstance(X, Dataset):
        return Subset(X, range(start, stop))
    return X[start:stop]


def _measure(
    estimator: Any,
    X: Any,
    target: Any,
    truth: dict[str, Any],
    options: Options,
    *,
    n_before: int = 0,
    on_images: Callable[[int], Any] | None = None,
) -> tuple[dict[str, np.ndarray], int]:
    """Return each metric's values on X, and how many images have a constant map."""
    opened = estimator.open(X)
    question = estimator.as_target(target, len(opened))
    collected: dict[str, list[np.ndarray]] = {name: [] for name in options.metrics}
    shared = Shared(options, n_before)
    for part in opened.batches():
        rows = slice(part.start, part.stop)
        of_batch = {name: None if of is None else of[rows] for name, of in truth.items()}
        of_batch["sizes"] = part.sizes
        batch = Batch(estimator, part.inputs, question.take(rows), of_batch, options, shared)
        for name, values in collected.items():
            values.append(getattr(batch, name).detach().double().cpu().numpy())
        if on_images is not None:
            on_images(len(part))
    return {name: np.concatenate(of) for name, of in collected.items()}, shared.n_constant


def check_has_probability(target: Any, names: Sequence[str], *, encoded: bool) -> None:
    """Raise a ValueError where probabilities are needed and the target is no class."""
    is_class = not callable(target)
    if encoded:
        is_class = target.names_classes
    needy = sorted(_BOUNDED & set(names))
    if needy and not is_class:
        raise ValueError(
            f"{', '.join(needy)}: a target that is no class, such as a callable, has no "
            "probability; give score=, a function of the network's output that returns one number "
            "in [0, 1] per image."
        )


def _check_classes(y: np.ndarray, classes: Any) -> None:
    """Raise a ValueError if no label is one of the classes; some may be new to the network."""
    if classes is None:
        raise ValueError("accuracy needs classes, and the estimator has none.")
    known, found = np.asarray(classes).tolist(), list(dict.fromkeys(y.tolist()))
    if not set(known).intersection(found):
        raise ValueError(
            f"None of the labels in y is a class of the estimator: they are {found[:5]}, its "
            f"classes {known[:5]}{' ...' if len(known) > 5 else ''}. CAMExplainer takes classes=, "
            "the label of each output in their order."
        )


def _check_boxes(boxes: Any) -> None:
    for i, of_image in enumerate(() if boxes is None else boxes):
        try:
            check_boxes(of_image)
        except ValueError as error:
            raise ValueError(f"boxes[{i}]: {error}") from None


def _check_lengths(truth: Mapping[str, Any], n_images: int) -> None:
    for name, values in truth.items():
        if values is not None and not isinstance(values, Sized):
            raise ValueError(
                f"{name} must be a sequence with an entry for each of {n_images} images; got "
                f"{describe(values)}."
            )
        if values is not None and len(values) != n_images:
            raise ValueError(f"{name} has {len(values)} entries for {n_images} images.")


def check_maps_are_single(estimator: Any, method: Method) -> None:
    """Raise a ValueError where an image would have several maps, by layers or channels."""
    n_layers = len(estimator.target_layers)
    if method.uses_layers and n_layers > 1 and estimator.layer_fusion is None:
        raise ValueError(
            f"layer_fusion=None keeps the maps of {n_layers} layers apart; evaluate measures one "
            'map per image: choose layer_fusion="mean" or "max", or one layer.'
        )
    if getattr(method, "channels", None) == "keep":
        raise ValueError('evaluate measures one map per image; leave channels="keep" out.')


def as_explainer(estimator: Any, X: Any) -> Any:
    """Return what explains: the estimator itself, or a network in an explainer."""
    if isinstance(estimator, torch.nn.Module):
        return CAMExplainer(estimator, verbose=0).fit(X)
    if not isinstance(estimator, Explainer):
        raise ValueError(
            "estimator must be a ConsistentCAMClassifier, a CAMExplainer or a network; got "
            f"{type(estimator).__name__}. CAMExplainer explains other skorch nets, and of a search "
            "there is the best_estimator_."
        )
    return estimator


def _check_metrics(metrics: str | Sequence[str]) -> list[str]:
    if not isinstance(metrics, Iterable):
        raise ValueError(f"metrics must be a name or a sequence of names; got {describe(metrics)}.")
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if not isinstance(name, str) or name not in METRICS:
            raise ValueError(f"There is no metric {name!r}. {suggestion(name, METRICS)}")
    if not names:
        raise ValueError("metrics is empty; name at least one.")
    if "adcc" in names:
        names += ADCC_TERMS
    return list(dict.fromkeys(names))


def _check_needs(
    names: Sequence[str],
    boxes: Any,
    masks: Any,
    target: Any,
) -> None:
    chosen = set(names)
    if "localization_accuracy" in chosen and boxes is None:
        raise ValueError("localization_accuracy needs boxes, the true ones of each image.")
    if chosen & _BOXES_OR_MASKS and boxes is None and masks is None:
        missing = ", ".join(sorted(chosen & _BOXES_OR_MASKS))
        raise ValueError(f"{missing}: needs boxes or masks, where the objects of each image are.")
    if isinstance(target, TopK) or (not callable(target) and np.ndim(target) == 2):
        raise ValueError("evaluate explains one class per image; give one label each.")


def check_metric_params(params: Any) -> None:
    """Raise a ValueError unless options are of metrics that have them, and make sense."""
    if not isinstance(params, Mapping | None):
        raise ValueError(
            f"metric_params must be a dict of options by metric; got {describe(params)}."
        )
    unknown = sorted(set(params or {}) - set(METRICS))
    if unknown:
        raise ValueError(f"metric_params has options for what is no metric: {unknown}.")
    for name, options in (params or {}).items():
        if not isinstance(options, Mapping):
            raise ValueError(
                f"metric_params takes a dict of options of {name}; got {describe(options)}."
            )
        wrong = sorted(set(options) - OPTIONS.get(name, set()))
        if wrong:
            known = ", ".join(f"{of}: {sorted(OPTIONS[of])}" for of in OPTIONS)
            raise ValueError(f"{name} has no options {wrong}; metric_params takes {known}.")
        for option, value in options.items():
            _check_option(option, value)


def _check_option(name: str, value: Any) -> None:
    """Check one option of a metric; names are of one meaning wherever they occur."""
    if name in ("start", "end") and value is not None:
        check_callable(
            name, value, "that makes it from a batch of images, such as torch.zeros_like"
        )
    elif name == "n_steps":
        check_count(name, value)
    elif name in ("iou_threshold", "threshold"):
        check_number(name, value, 0, 1)
    elif name in ("tolerance", "noise"):
        check_number(name, value, 0)
    elif name == "method" and value is not None:
        get_method(value).check()
    elif name == "views" and not isinstance(value, ViewSampler | None):
        raise ValueError(f"views must be a ViewSampler or None; got {describe(value)}.")
    elif name == "occlusion":
        if not isinstance(value, Occlusion):
            raise ValueError(f"occlusion must be an Occlusion(); got {describe(value)}.")
        value.check()
