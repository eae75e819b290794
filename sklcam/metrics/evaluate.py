"""All numbers of an explainer in one pass over the data.

What several metrics need is computed once a batch: the maps and the prediction in one forward pass,
the map and the prediction of the masked image in another, one set of insertion and deletion curves.
Nothing but one value per image and metric outlives its batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import check_random_state
from torch import Tensor
from tqdm.auto import tqdm

from sklcam.cam import GradCAM, Method, Occlusion, TopK
from sklcam.cam.targets import target_classes
from sklcam.explainer import CAMExplainer, ExplainerMixin
from sklcam.images import map_to_frame
from sklcam.metrics import causal, confidence, faithfulness, localization
from sklcam.metrics.confidence import is_constant
from sklcam.metrics.consistency import ssim_consistency
from sklcam.metrics.summary import ADCC_TERMS, Evaluation
from sklcam.views import ViewSampler


@dataclass
class _Options:
    """What is the same for all batches."""

    method: Any
    metrics: frozenset[str]
    params: dict[str, dict[str, Any]]
    score: Callable[[Tensor], Tensor] | None
    view_generator: torch.Generator
    noise_generator: torch.Generator
    batch_size: int = 32
    views: ViewSampler = field(default_factory=ViewSampler)
    n_constant: int = 0  # images whose consistency is 0 as a map is constant

    def of(self, metric: str) -> dict[str, Any]:
        return self.params.get(metric, {})


class _Batch:
    """One batch, and what metrics ask about it; each answer is computed once, when asked for."""

    def __init__(
        self, estimator: Any, inputs: Any, target: Any, truth: dict[str, Any], options: _Options
    ):
        self.estimator = estimator
        self.inputs = inputs
        self.target = target
        self.truth = truth
        self.options = options
        self.images = estimator.images_of(inputs)

    @cached_property
    def _explained(self) -> tuple[dict[str, Tensor], Tensor]:
        """The maps that are needed of the images, from one forward pass, and the output."""
        methods = {}
        if self.options.metrics != {"consistency"}:
            methods["maps"] = self.options.method
        if "consistency" in self.options.metrics:
            methods["consistency"] = _view_method(self.options.of("consistency"))
        if not self.options.of("iauc").get("relu", True):
            methods["without_relu"] = without_relu(self.options.method)
        maps, output = self.estimator.explain_inputs_by(
            self.inputs, self.target, methods=list(methods.values())
        )
        return dict(zip(methods, maps, strict=True)), output

    @property
    def maps(self) -> Tensor:
        return self._explained[0]["maps"]

    @property
    def output(self) -> Tensor:
        return self._explained[1]

    @cached_property
    def fixed_target(self) -> Any:
        """The target, with the predicted class for None: what is explained of other images too."""
        if callable(self.target):
            return self.target
        return target_classes(self.output, self.target)[:, 0]

    def confidence(self, output: Tensor, rows: Any = slice(None)) -> Tensor:
        """Return the score of what is explained, in [0, 1]."""
        if self.options.score is not None:
            return self.options.score(output)
        probabilities = self.estimator.probabilities(output)
        return probabilities.gather(1, self.fixed_target[rows][:, None])[:, 0]

    @cached_property
    def full(self) -> Tensor:
        return self.confidence(self.output)

    @cached_property
    def _masked(self) -> tuple[Tensor | None, Tensor]:
        """The map of the masked image, if it is needed, and the network's output for it."""
        images = self.images * self.maps[:, None].to(self.images.dtype)
        inputs = self.estimator.with_images(self.inputs, images)
        if not {"coherency", "adcc", "arcc"} & self.options.metrics:
            return None, self.estimator.output_of(inputs)
        return self.estimator.explain_inputs(inputs, self.fixed_target, method=self.options.method)

    def score(self, images: Tensor, rows: Tensor) -> Tensor:
        """Run the network on other images, as the causal metrics do."""
        inputs = self.estimator.with_images(self.inputs, images, rows)
        return self.confidence(self.estimator.output_of(inputs), rows)

    @cached_property
    def average_drop(self) -> Tensor:
        return confidence.average_drop(self.full, self.confidence(self._masked[1]))

    @cached_property
    def average_increase(self) -> Tensor:
        return confidence.average_increase(self.full, self.confidence(self._masked[1]))

    @cached_property
    def coherency(self) -> Tensor:
        maps = self._masked[0]
        assert maps is not None
        return confidence.coherency(self.maps, maps)

    @cached_property
    def complexity(self) -> Tensor:
        return confidence.complexity(self.maps)

    @cached_property
    def sparsity(self) -> Tensor:
        return confidence.sparsity(self.maps)

    @cached_property
    def adcc(self) -> Tensor:
        return confidence.adcc(self.coherency, self.complexity, self.average_drop)

    @cached_property
    def arcc(self) -> Tensor:
        return confidence.arcc(self.coherency, self.complexity, self.road)

    @cached_property
    def road(self) -> Tensor:
        return causal.road(
            self.score,
            self.images,
            self.maps,
            generator=self.options.noise_generator,
            batch_size=self.options.batch_size,
            **self.options.of("road"),
        )

    @cached_property
    def _curves(self) -> causal.CausalCurves:
        options = {name: value for name, value in self.options.of("iauc").items() if name != "relu"}
        maps = self._explained[0]
        return causal.causal_curves(
            self.score,
            self.images,
            maps.get("without_relu", maps["maps"]),
            full=self.full,
            batch_size=self.options.batch_size,
            **options,
        )

    @cached_property
    def iauc(self) -> Tensor:
        return causal.insertion_auc(self._curves)

    @cached_property
    def dauc(self) -> Tensor:
        return causal.deletion_auc(self._curves)

    @cached_property
    def consistency(self) -> Tensor:
        options = self.options.of("consistency")
        sampler = options.get("views") or self.options.views
        size = (self.images.shape[-2], self.images.shape[-1])
        view = sampler(len(self.images), size=size, generator=self.options.view_generator)
        view = view.to(self.images.device)
        inputs = self.estimator.with_images(self.inputs, view(self.images))
        maps = self._explained[0]["consistency"]
        maps_of_view, _ = self.estimator.explain_inputs(
            inputs, self.target, method=_view_method(options)
        )
        self.options.n_constant += int((is_constant(maps) | is_constant(maps_of_view)).sum())
        return ssim_consistency(view(maps), maps_of_view)

    @cached_property
    def rank_correlation(self) -> Tensor:
        options = self.options.of("rank_correlation")
        occlusion = options.get("occlusion", Occlusion(relu=False))
        references, _ = self.estimator.explain_inputs(
            self.inputs, self.fixed_target, method=occlusion, normalize=False
        )
        return faithfulness.rank_correlation(self.maps, references)

    @cached_property
    def accuracy(self) -> Tensor:
        predicted = self.estimator.classes_[self.output.argmax(dim=1).cpu().numpy()]
        return torch.as_tensor(predicted == self.truth["y"])

    # With the truth, in the frame of each image

    def _per_image(self, measure: Callable[[Tensor, Any], Tensor], kind: str) -> Tensor:
        values = []
        for map_, truth, size in zip(self.maps, self.truth[kind], self.truth["sizes"], strict=True):
            framed = map_to_frame(map_, size, resize=self.estimator._frame_resize())[None]
            values.append(measure(framed, truth)[0])
        return torch.stack(values)

    def _against_mask(self, measure: Callable[..., Tensor], name: str) -> Tensor:
        options = self.options.of(name)

        def of_image(map_: Tensor, truth: Any) -> Tensor:
            if self.truth["masks"] is None:
                boxes = torch.as_tensor(np.asarray(truth, dtype=np.float32))
                mask = localization.box_masks([boxes], (map_.shape[-2], map_.shape[-1]))
            else:
                mask = torch.as_tensor(np.asarray(truth))[None]
            return measure(map_, mask.to(map_.device), **options)

        return self._per_image(of_image, "boxes" if self.truth["masks"] is None else "masks")

    @cached_property
    def heatmap_ratio(self) -> Tensor:
        return self._against_mask(localization.heatmap_ratio, "heatmap_ratio")

    @cached_property
    def inside_outside_ratio(self) -> Tensor:
        return self._against_mask(localization.inside_outside_ratio, "inside_outside_ratio")

    @cached_property
    def pointing_game(self) -> Tensor:
        return self._against_mask(localization.pointing_game, "pointing_game")

    @cached_property
    def localization_accuracy(self) -> Tensor:
        options = dict(self.options.of("localization_accuracy"))
        threshold = options.pop("threshold", 0.15)

        def of_image(map_: Tensor, truth: Any) -> Tensor:
            boxes = torch.as_tensor(np.asarray(truth, dtype=np.float32))
            found = localization.box_from_map(map_, threshold)
            return localization.localization_accuracy(found, [boxes], **options)

        return self._per_image(of_image, "boxes")


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
_BOXES_OR_MASKS = {"heatmap_ratio", "inside_outside_ratio", "pointing_game"}


def _view_method(options: Mapping[str, Any]) -> Any:
    return options.get("method") or GradCAM(relu=False)


def without_relu(method: Method) -> Method:
    """Return the method with its ReLU left out; an error if it has none to leave out."""
    if "relu" not in method.get_params(deep=False):
        raise ValueError(f"{method!r} has no relu to leave out.")
    return clone(method).set_params(relu=False)


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
    batch_size: int = 32,
    random_state: Any = 0,
    progress: bool = True,
) -> Evaluation:
    """Measure an explainer on X, in one pass over the data.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, CAMExplainer or nn.Module
        Fitted. A module is explained by a :class:`~sklcam.CAMExplainer` with its defaults.
    X : images
        In any form that the estimator takes.
    y : array-like of shape (n_images,) or None, default=None
        True labels; for ``"accuracy"`` only.
    metrics : str or sequence of str
        Among the keys of ``sklcam.metrics.METRICS``. ``"adcc"`` brings its three terms along.
    method : str, Method or None, default=None
        The explanation; None is the estimator's own.
    target : None, labels or callable, default=None
        What is explained: as of the estimator's ``explain``, one class an image.
    boxes : sequence of array-like of shape (n_boxes, 4) or None, default=None
        The objects of each image, ``(x1, y1, x2, y2)`` in pixels of the image itself.
    masks : sequence of array-like of shape (height, width) or None, default=None
        The same as masks of the image's own size; they go before boxes where either would do.
    score : callable or None, default=None
        Turns the network's output into one score in [0, 1] per image. Needed for the metrics of
        confidence where the target is a callable.
    metric_params : mapping of metric to options, or None
        Such as ``{"iauc": {"n_steps": 56, "relu": False}, "consistency": {"views": views}}``: the
        keyword arguments of :func:`causal_curves` (for ``"iauc"`` and ``"dauc"`` together, under
        the first name), :func:`road`, :func:`pointing_game`, :func:`localization_accuracy` (and the
        ``threshold`` of :func:`box_from_map`); ``method`` and ``views`` of consistency;
        ``occlusion`` of ``"rank_correlation"``.
    batch_size : int, default=32
        Most perturbed images that go through the network at a time.
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
    >>> from sklcam.models import build_model
    >>> network = build_model("resnet18", n_classes=5)
    >>> images = torch.randn(3, 3, 64, 64)
    >>> result = evaluate(network, images, metrics=("adcc", "sparsity"), method="fakecam")
    >>> [f"{value:.4f}" for value in result["complexity"]]
    ['0.9998', '0.9998', '0.9998']
    """
    names = _check_metrics(metrics)
    _check_needs(names, y, boxes, masks, score, target, metric_params)
    estimator = _as_explainer(estimator, X)
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    options = _Options(
        estimator._method(method),
        frozenset(names),
        {name: dict(params) for name, params in (metric_params or {}).items()},
        score,
        # One each, so that the views are the same whatever else is measured.
        torch.Generator().manual_seed(seed),
        torch.Generator().manual_seed(seed),
        batch_size,
    )
    truth = {"y": None if y is None else _as_array(y), "boxes": boxes, "masks": masks}
    collected: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for batch in _iter_batches(estimator, X, target, truth, options, progress):
        for name in names:
            collected[name].append(getattr(batch, name).detach().double().cpu().numpy())
    result = Evaluation(**{name: np.concatenate(values) for name, values in collected.items()})
    if options.n_constant:
        warnings.warn(
            f"{options.n_constant} of {len(result[names[0]])} images have a constant map, for "
            "themselves or for their view; each counts as 0.",
            stacklevel=2,
        )
    return result


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


def _iter_batches(
    estimator: Any, X: Any, target: Any, truth: dict[str, Any], options: _Options, progress: bool
) -> Iterator[_Batch]:
    dataset = estimator._image_dataset(X)
    for name, values in truth.items():
        if values is not None and len(values) != len(dataset):
            raise ValueError(f"{name} has {len(values)} entries for {len(dataset)} images.")
    target = estimator._encode_target(target, len(dataset))
    bar = tqdm(total=len(dataset), desc="evaluate", leave=False, disable=not progress)
    start = 0
    with bar:
        for inputs, batch_target in estimator._iter_targeted(dataset, target):
            stop = start + len(estimator.images_of(inputs))
            part = {
                name: None if values is None else values[start:stop]
                for name, values in truth.items()
            }
            part["sizes"] = [dataset.original_size(i) for i in range(start, stop)]
            yield _Batch(estimator, inputs, batch_target, part, options)
            bar.update(stop - start)
            start = stop


def _as_array(labels: Any) -> np.ndarray:
    return np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)


def _as_explainer(estimator: Any, X: Any) -> Any:
    if isinstance(estimator, torch.nn.Module):
        return CAMExplainer(estimator, verbose=0).fit(X)
    if not isinstance(estimator, ExplainerMixin):
        raise ValueError(
            "estimator must be a ConsistentCAMClassifier, a CAMExplainer or a network; got "
            f"{type(estimator).__name__}. CAMExplainer explains other skorch nets."
        )
    return estimator


def _check_metrics(metrics: str | Sequence[str]) -> list[str]:
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in METRICS:
            close = get_close_matches(str(name), METRICS, n=3) or sorted(METRICS)
            raise ValueError(f"There is no metric {name!r}. Did you mean: {', '.join(close)}?")
    if not names:
        raise ValueError("metrics is empty; name at least one.")
    if "adcc" in names:
        names += ADCC_TERMS
    return list(dict.fromkeys(names))


def _check_needs(
    names: Sequence[str],
    y: Any,
    boxes: Any,
    masks: Any,
    score: Any,
    target: Any,
    params: Mapping[str, Any] | None,
) -> None:
    chosen = set(names)
    if "accuracy" in chosen and y is None:
        raise ValueError("accuracy needs y, the true labels.")
    if "localization_accuracy" in chosen and boxes is None:
        raise ValueError("localization_accuracy needs boxes, the true ones of each image.")
    if chosen & _BOXES_OR_MASKS and boxes is None and masks is None:
        missing = ", ".join(sorted(chosen & _BOXES_OR_MASKS))
        raise ValueError(f"{missing}: needs boxes or masks, where the objects of each image are.")
    if callable(target) and score is None and chosen & _BOUNDED:
        raise ValueError(
            f"{', '.join(sorted(chosen & _BOUNDED))}: a callable target has no probability; give "
            "score=, a function of the network's output that returns one number in [0, 1] per "
            "image."
        )
    if isinstance(target, TopK) or (not callable(target) and np.ndim(target) > 1):
        raise ValueError("evaluate explains one class per image; give one label each.")
    unknown = sorted(set(params or {}) - set(METRICS))
    if unknown:
        raise ValueError(f"metric_params has options for what is no metric: {unknown}.")
    for name, options in (params or {}).items():
        wrong = sorted(set(options) - OPTIONS.get(name, set()))
        if wrong:
            known = ", ".join(f"{of}: {sorted(OPTIONS[of])}" for of in OPTIONS)
            raise ValueError(f"{name} has no options {wrong}; metric_params takes {known}.")
