"""All numbers of an explainer in one pass over the data.

What several metrics need is computed once a batch: the maps and the prediction in one forward pass,
the map and the prediction of the masked image in another, one set of insertion and deletion curves.
Nothing but one value per image and metric outlives its batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from sklearn.base import clone
from sklearn.utils import check_random_state
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from sklcam.cam import GradCAM, Method, Occlusion, TopK
from sklcam.cam.targets import target_classes
from sklcam.explainer import CAMExplainer, ExplainerMixin
from sklcam.folding import ManyRuns, learn_many_runs
from sklcam.images import dataset_labels, map_to_frame
from sklcam.metrics import causal, confidence, faithfulness, localization
from sklcam.metrics.confidence import is_constant
from sklcam.metrics.consistency import ssim_consistency
from sklcam.metrics.summary import ADCC_TERMS, Evaluation
from sklcam.views import Views, ViewSampler


@dataclass
class _Options:
    """What is the same for all batches."""

    method: Any
    metrics: frozenset[str]
    params: dict[str, dict[str, Any]]
    score: Callable[[Tensor], Tensor] | None
    batch_size: int | None
    seed: int

    def of(self, metric: str) -> dict[str, Any]:
        return self.params.get(metric, {})


class _Shared:
    """What batches hand on to the next: the views' generator, and how the network runs fast.

    Parameters
    ----------
    options : _Options
    n_before : int
        How many images precede the first batch: their views are drawn and left aside.
    """

    def __init__(self, options: _Options, n_before: int):
        self.n_constant = 0  # images whose consistency is 0 as a map is constant
        self._generator = torch.Generator().manual_seed(options.seed)
        self._n_before = n_before
        self._many_runs: ManyRuns | None = None

    def views(self, sampler: ViewSampler, n_images: int, size: tuple[int, int]) -> Views:
        """Draw the next images' views."""
        if self._n_before:
            sampler(self._n_before, size=size, generator=self._generator)
            self._n_before = 0
        return sampler(n_images, size=size, generator=self._generator)

    def many_runs(self, learn: Callable[[], ManyRuns]) -> ManyRuns:
        """Return how the network runs the fastest, which is learnt once."""
        if self._many_runs is None:
            self._many_runs = learn()
        return self._many_runs


class _Batch:
    """One batch, and what metrics ask about it; each answer is computed once, when asked for."""

    def __init__(
        self,
        estimator: Any,
        inputs: Any,
        target: Any,
        truth: dict[str, Any],
        options: _Options,
        shared: _Shared,
    ):
        self.estimator = estimator
        self.inputs = inputs
        self.target = target
        self.truth = truth
        self.options = options
        self.shared = shared
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
        """Run the network on other images, as the causal metrics do many times."""
        inputs = self.estimator.with_images(self.inputs, images, rows)
        with self._many_runs.folded:
            return self.confidence(self.estimator.output_of(inputs), rows)

    @property
    def _many_runs(self) -> ManyRuns:
        first = torch.zeros(1, dtype=torch.long, device=self.images.device)
        return self.shared.many_runs(
            lambda: learn_many_runs(
                self.estimator.output_of,
                lambda image: self.estimator.with_images(self.inputs, image, first),
                self.images[:1],
                self.output[:1],
            )
        )

    @property
    def _images_to_change(self) -> Tensor:
        return self._many_runs.arrange(self.images)

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
            self._images_to_change,
            self.maps,
            generator=torch.Generator().manual_seed(self.options.seed),
            batch_size=self.options.batch_size,
            **self.options.of("road"),
        )

    @cached_property
    def _curves(self) -> Any:
        """Insertion, deletion or both, as is asked for."""
        asked = self.options.metrics & {"iauc", "dauc"}
        follow, unused = _CURVES[frozenset(asked)]
        options = self.options.of("iauc")
        options = {name: of for name, of in options.items() if name not in ("relu", unused)}
        maps = self._explained[0]
        return follow(
            self.score,
            self._images_to_change,
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
        size = (self.images.shape[-2], self.images.shape[-1])
        sampler = options.get("views") or ViewSampler()
        view = self.shared.views(sampler, len(self.images), size).to(self.images.device)
        inputs = self.estimator.with_images(self.inputs, view(self.images))
        maps = self._explained[0]["consistency"]
        maps_of_view, _ = self.estimator.explain_inputs(
            inputs, self.target, method=_view_method(options)
        )
        self.shared.n_constant += int((is_constant(maps) | is_constant(maps_of_view)).sum())
        return ssim_consistency(view(maps), maps_of_view)

    @cached_property
    def rank_correlation(self) -> Tensor:
        occlusion = self.options.of("rank_correlation").get("occlusion", Occlusion(relu=False))
        references, _ = self.estimator.explain_inputs(
            self.inputs, self.fixed_target, method=occlusion, normalize=False
        )
        _, stride = occlusion.patch_and_stride(*self.images.shape[-2:])
        return faithfulness.rank_correlation(self.maps, references, cell=stride)

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
                mask = _as_mask(truth)[None]
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
# What follows the curves that are asked for, and the option that it has no use for.
_CURVES: dict[frozenset[str], tuple[Callable[..., Any], str | None]] = {
    frozenset({"iauc", "dauc"}): (causal.causal_curves, None),
    frozenset({"iauc"}): (causal.insertion_curve, "end"),
    frozenset({"dauc"}): (causal.deletion_curve, "start"),
}
_PARTS_PER_JOB = 4  # so that the bar moves
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
    batch_size: int | None = None,
    n_jobs: int | None = None,
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
    >>> from sklcam.models import build_model
    >>> network = build_model("resnet18", n_classes=5)
    >>> images = torch.randn(3, 3, 64, 64)
    >>> result = evaluate(network, images, metrics=("adcc", "sparsity"), method="fakecam")
    >>> [f"{value:.4f}" for value in result["complexity"]]
    ['0.9998', '0.9998', '0.9998']
    """
    names = _check_metrics(metrics)
    _check_needs(names, boxes, masks, score, target, metric_params)
    if y is None and "accuracy" in names:
        y = _labels_of(X)
    estimator = _as_explainer(estimator, X)
    options = _Options(
        estimator._method(method),
        frozenset(names),
        {name: dict(params) for name, params in (metric_params or {}).items()},
        score,
        batch_size,
        int(check_random_state(random_state).randint(2**31 - 1)),
    )
    _check_maps_are_single(estimator, options.method)
    dataset = estimator._image_dataset(X)
    estimator._encode_target(target, len(dataset))
    truth = {"y": None if y is None else _as_array(y), "boxes": boxes, "masks": masks}
    _check_lengths(truth, len(dataset))
    with tqdm(total=len(dataset), desc="evaluate", leave=False, disable=not progress) as bar:
        parts = _in_processes if effective_n_jobs(n_jobs) > 1 else _in_one_go
        results = list(parts(estimator, X, target, truth, options, bar, n_jobs))
    values, n_constant = zip(*results, strict=True)
    if any(n_constant):
        warnings.warn(
            f"{sum(n_constant)} of {len(dataset)} images have a constant map, for themselves or "
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
    estimator: Any, X: Any, target: Any, truth: dict[str, Any], options: _Options, bar: Any, _: Any
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    yield _measure(estimator, X, target, truth, options, on_images=bar.update)


def _in_processes(
    estimator: Any,
    X: Any,
    target: Any,
    truth: dict[str, Any],
    options: _Options,
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
    options: _Options,
    *,
    n_before: int = 0,
    on_images: Callable[[int], Any] | None = None,
) -> tuple[dict[str, np.ndarray], int]:
    """Return each metric's values on X, and how many images have a constant map."""
    dataset = estimator._image_dataset(X)
    target = estimator._encode_target(target, len(dataset))
    collected: dict[str, list[np.ndarray]] = {name: [] for name in options.metrics}
    shared = _Shared(options, n_before)
    start = 0
    for inputs, batch_target in estimator._iter_targeted(dataset, target):
        stop = start + len(estimator.images_of(inputs))
        of_batch = {name: None if of is None else of[start:stop] for name, of in truth.items()}
        of_batch["sizes"] = [dataset.original_size(i) for i in range(start, stop)]
        batch = _Batch(estimator, inputs, batch_target, of_batch, options, shared)
        for name, values in collected.items():
            values.append(getattr(batch, name).detach().double().cpu().numpy())
        if on_images is not None:
            on_images(stop - start)
        start = stop
    return {name: np.concatenate(of) for name, of in collected.items()}, shared.n_constant


def _as_array(labels: Any) -> np.ndarray:
    return np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)


def _as_mask(mask: Any) -> Tensor:
    """Return a mask as bool, or as the shares of pixels that it holds."""
    array = np.asarray(mask)
    if array.dtype.kind in "biu":
        return torch.as_tensor(array != 0)
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            "A mask must be bool, an integer that is 0 outside the object, or a float in [0, 1]; "
            f"got {array.dtype}{' beyond [0, 1]' if array.dtype.kind == 'f' else ''}."
        )
    return torch.as_tensor(array)


def _labels_of(X: Any) -> np.ndarray:
    labels = dataset_labels(X) if isinstance(X, Dataset) else None
    if labels is None:
        raise ValueError("accuracy needs y, the true labels.")
    return labels


def _check_lengths(truth: Mapping[str, Any], n_images: int) -> None:
    for name, values in truth.items():
        if values is not None and len(values) != n_images:
            raise ValueError(f"{name} has {len(values)} entries for {n_images} images.")


def _check_maps_are_single(estimator: Any, method: Method) -> None:
    n_layers = len(estimator._target_layers())
    if method.uses_layers and n_layers > 1 and estimator._layer_fusion() is None:
        raise ValueError(
            f"layer_fusion=None keeps the maps of {n_layers} layers apart; evaluate measures one "
            'map per image: choose layer_fusion="mean" or "max", or one layer.'
        )
    if getattr(method, "channels", None) == "keep":
        raise ValueError('evaluate measures one map per image; leave channels="keep" out.')


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
    boxes: Any,
    masks: Any,
    score: Any,
    target: Any,
    params: Mapping[str, Any] | None,
) -> None:
    chosen = set(names)
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
    for name in ("start", "end"):
        base = (params or {}).get("iauc", {}).get(name)
        if base is not None and not callable(base):
            raise ValueError(
                f"{name} must be a callable that makes it from a batch of images, such as "
                f"torch.zeros_like; got {type(base).__name__}."
            )
