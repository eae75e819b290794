"""The metrics by name: one object each, used by evaluate, scorers, the report and the docs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from sklcam._validation import check_callable, check_count, check_number, describe, suggestion
from sklcam.metrics.causal import deletion_auc, insertion_auc
from sklcam.metrics.composites import (
    adcc,
    arcc,
    average_drop,
    average_increase,
    complexity,
    sparsity,
)
from sklcam.metrics.consistency import coherency, ssim_consistency
from sklcam.metrics.cose import cose
from sklcam.metrics.localization import pointing_game
from sklcam.metrics.masks import heatmap_ratio, inside_outside_ratio
from sklcam.metrics.of_quantities import (
    accuracy,
    consistency_changed,
    consistency_kept,
    correlation_with_occlusion,
    cose_consistency,
    cose_sensitivity,
    image_by_image,
    localization_of_maps,
    reference_correlation,
    road_of_perturbation,
    top1_localization,
)
from sklcam.metrics.pixel_ranks import pixel_auc, relevance_rank_accuracy, topk_intersection
from sklcam.metrics.quantities import QUANTITIES, Check, closure
from sklcam.metrics.ranked import ranked_localization_error, ranked_pointing_game
from sklcam.metrics.stability import local_lipschitz, max_sensitivity


@dataclass(frozen=True)
class Metric:
    """A number for each image that says how good its explanation is.

    A metric can be given wherever a name can: to :func:`evaluate`, :func:`get_scorer` and the
    report.

    Parameters
    ----------
    name : str
        The key of its values.
    function : callable
        Takes the quantities of ``needs``, in this order, and the options by their names. Returns a
        Tensor of shape (n_images,). If it has a parameter ``spatial_dims``, it receives the number
        of sides of a map: 2, or 3 for volumes.
    needs : tuple of str
        Names of quantities of a batch of n images, or of other metrics, whose values it takes:

        - ``"maps"``, ``"raw_maps"``: Tensor (n, height, width), at the size of the network's input,
          scaled to [0, 1] or the method's own numbers;
        - ``"images"``, ``"output"``: Tensor, what the network gets and returns;
        - ``"confidence"``, ``"masked_confidence"``: Tensor (n,), the score of the target
          in [0, 1], for the images and for the images times their maps;
        - ``"maps_of_masked"``: Tensor (n, height, width), the maps of the images times their maps;
        - ``"view_of_maps"``, ``"maps_of_view"``: Tensor (n, height, width), without the ReLU: the
          warped maps, and the maps of the images warped in the same way; ``"valid_in_view"``:
          Tensor (n, height, width), bool, which of their pixels come from inside the images, or
          None if all do; ``"view_keeps_prediction"``: Tensor (n,), bool;
        - ``"insertion_curve"``, ``"deletion_curve"``: see :func:`insertion_curve`;
        - ``"perturbation"``: a callable that takes changed images (m, channels, height, width) and
          rows (m,), the image of the batch that each was made from, and returns their confidence
          (m,); its attribute ``images`` holds the images to change, and ``generator()`` makes the
          seeded ``torch.Generator``;
        - ``"neighbour_maps"``: Tensor (n_samples, n, height, width), raw maps of images close
          to each image; ``"neighbour_distances"``: Tensor (n_samples, n), their distances to it;
        - ``"occlusion_maps"``: Tensor (n, height, width), see :class:`sklcam.cam.Occlusion`;
        - ``"predictions"``, ``"labels"``: ndarray (n,), the predicted and the true labels; for
          several labels per image, (n, n_classes), 0 or 1; ``"prediction_is_right"``: Tensor (n,),
          bool, whether they are the same; ``"class_is_right"``: Tensor (n,), bool, whether the
          predicted class is the true one or, for several labels, the explained one is among them;
        - ``"framed_maps"``, ``"boxes"``, ``"masks"``: sequences with one Tensor per image, all in
          the frame of the image at its own size: (height, width), (n_boxes, 4), (height, width).
          The maps are ``"raw_maps"`` after the ReLU, and not scaled. If boxes and masks are given
          by class, these are the ones of the explained class;
        - ``"references"``: sequence with one Tensor per image, at any size that covers it;
        - ``"top1"``, ``"top5"``: the one or five highest-scoring classes of each image: an
          object with ``labels``, a list of k labels for each image, and ``maps``, a Tensor (k,
          height, width) for each, like ``"framed_maps"``;
        - ``"class_boxes"``, ``"class_masks"``: sequences with one function per image, which returns
          the boxes, or the mask, of the class whose label it is given.
    meaning : str, default=""
        A short sentence that says to newcomers what the metric measures.
    higher_is_better : bool, default=True
    range : tuple of two floats, default=(0, 1)
        The lowest and the highest possible value.
    may_be_undefined : bool, default=False
        Whether images may have no value, such as a ratio to the outside if there is no outside.
        Values that are not finite are then left out of the mean, which would be NaN otherwise.
    options : mapping of str to callable, default={}
        The keyword arguments of the function that a user may set, each with its check: it takes the
        name and the value, and raises a ValueError that names both.
    of_averages : bool, default=False
        Whether a data set's figure is the function applied to the averages of its needs, instead of
        the average of the images' own values. Its needs are then evaluated along with it.

    Raises
    ------
    ValueError
        If it has no name, the function is not callable, a quantity or metric that it needs is not
        known, or the range is not (low, high).

    Examples
    --------
    The largest share of the map that a single pixel holds; lower is better:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.metrics import Metric, evaluate, get_scorer
    >>> def peak_share(maps):
    ...     return maps.amax(dim=(1, 2)) / maps.sum(dim=(1, 2))
    >>> peak = Metric("peak_share", peak_share, needs=("maps",), higher_is_better=False)
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> result = evaluate(explainer, images, metrics=["sparsity", peak], target=0)
    >>> round(result["peak_share"].item(), 3)
    0.667
    >>> round(get_scorer(peak, target=0)(explainer, images), 3)  # for scorers higher is better
    -0.667
    """

    name: str
    function: Callable[..., Tensor]
    needs: tuple[str, ...]
    meaning: str = ""
    higher_is_better: bool = True
    range: tuple[float, float] = (0.0, 1.0)
    options: Mapping[str, Check] = field(default_factory=dict)
    of_averages: bool = False
    may_be_undefined: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"A metric needs a name; got {describe(self.name)}.")
        if self.name in QUANTITIES:
            raise ValueError(f"{self.name!r} is the name of a quantity. Choose another.")
        check_callable("function", self.function, "of the quantities that the metric needs")
        if isinstance(self.needs, str) or not isinstance(self.needs, Sequence):
            raise ValueError(f"needs must be a tuple of names; got {describe(self.needs)}.")
        known = [*QUANTITIES, *_REGISTERED]
        for need in self.needs:
            if need not in known:
                raise ValueError(
                    f"{self.name} needs {need!r}, which is neither a quantity nor a registered "
                    f"metric. {suggestion(need, known)}"
                )
        if len(self.range) != 2 or not self.range[0] < self.range[1]:
            raise ValueError(f"range must be (low, high) with low < high; got {self.range!r}.")


_REGISTERED: dict[str, Metric] = {}


def register(metric: Metric) -> None:
    """Make a metric available by its name: to :func:`evaluate`, scorers and the report.

    Parameters
    ----------
    metric : Metric

    Raises
    ------
    ValueError
        If it is not a Metric, or another one has its name.

    Examples
    --------
    >>> from sklcam.metrics import Metric, register
    >>> register(Metric("adcc", max, needs=("coherency", "complexity")))
    Traceback (most recent call last):
    ...
    ValueError: There is a metric 'adcc' already. Choose another name.
    """
    if not isinstance(metric, Metric):
        raise ValueError(f"register takes a Metric; got {describe(metric)}.")
    if _REGISTERED.setdefault(metric.name, metric) is not metric:
        raise ValueError(f"There is a metric {metric.name!r} already. Choose another name.")


def available() -> list[str]:
    """Return the names of the registered metrics.

    Returns
    -------
    list of str
        In alphabetical order.

    Examples
    --------
    >>> from sklcam.metrics import available
    >>> available()[:3]
    ['accuracy', 'adcc', 'arcc']
    """
    return sorted(_REGISTERED)


def get_metric(metric: str | Metric) -> Metric:
    """Return a metric by its name.

    Parameters
    ----------
    metric : str or Metric
        One of :func:`available`, or a metric, which is returned as it is.

    Returns
    -------
    Metric

    Raises
    ------
    ValueError
        If there is no such metric.

    Examples
    --------
    >>> from sklcam.metrics import get_metric
    >>> dauc = get_metric("dauc")
    >>> dauc.higher_is_better, dauc.meaning
    (False, "mean confidence while pixels are deleted, the map's brightest first")
    """
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str) or metric not in _REGISTERED:
        raise ValueError(f"There is no metric {metric!r}. {suggestion(metric, _REGISTERED)}")
    return _REGISTERED[metric]


def get_metrics(metrics: str | Metric | Iterable[str | Metric]) -> dict[str, Metric]:
    """Return metrics by name, and last the terms that they bring along; a ValueError for none."""
    if not isinstance(metrics, str | Metric | Iterable):
        raise ValueError(f"metrics must be a name or a sequence of names; got {describe(metrics)}.")
    asked = [metrics] if isinstance(metrics, str | Metric) else list(metrics)
    if not asked:
        raise ValueError("metrics is empty. Name at least one.")
    found = [get_metric(metric) for metric in asked]
    # Terms come last, so that the requested metrics keep their places in tables.
    found += [get_metric(term) for metric in found if metric.of_averages for term in metric.needs]
    named: dict[str, Metric] = {}
    for metric in found:
        if named.setdefault(metric.name, metric) is not metric:
            raise ValueError(f"There are two metrics named {metric.name!r}; rename one of them.")
    return named


def default_metrics(*, confidence: bool = True, labels: bool = False) -> tuple[str, ...]:
    """Return the names of the metrics that give a first picture of an explainer.

    Parameters
    ----------
    confidence : bool, default=True
        Whether the target has a probability, or a score in its place.
    labels : bool, default=False
        Whether there are true labels.

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> from sklcam.metrics import default_metrics
    >>> default_metrics(), default_metrics(confidence=False)
    (('adcc', 'iauc', 'dauc', 'consistency'), ('complexity', 'sparsity', 'consistency'))
    """
    if not confidence:
        return "complexity", "sparsity", "consistency"
    names = ("adcc", "iauc", "dauc", "consistency")
    return ("accuracy", *names) if labels else names


def metric_of_row(row: str) -> Metric | None:
    """Return the metric that a row of a :class:`Summary` is about; None if it is not registered.

    Parameters
    ----------
    row : str
        The name of a metric; or, for a metric whose own row is computed from averages, the name of
        its mean over the images, such as ``"mean_adcc"``.

    Returns
    -------
    Metric or None

    Examples
    --------
    >>> from sklcam.metrics import metric_of_row
    >>> metric_of_row("mean_adcc").name
    'adcc'
    """
    if row in _REGISTERED:
        return _REGISTERED[row]
    metric = _REGISTERED.get(row.removeprefix("mean_"))
    return metric if metric is not None and metric.of_averages else None


def row_meaning(row: str) -> str:
    """Return the meaning of a row of a :class:`Summary`, in a few words; "" if it is unknown.

    Parameters
    ----------
    row : str
        See :func:`metric_of_row`.

    Returns
    -------
    str

    Examples
    --------
    >>> from sklcam.metrics import row_meaning
    >>> row_meaning("mean_adcc")
    "mean of the images' own adcc"
    """
    metric = metric_of_row(row)
    if metric is None:
        return ""
    return metric.meaning if metric.name == row else f"mean of the images' own {metric.name}"


# What metrics are made of


def needs_of(name: str, metrics: Mapping[str, Metric]) -> Sequence[str]:
    """Return what a quantity or a metric is made of; a ValueError if no such thing exists."""
    if name in QUANTITIES:
        return QUANTITIES[name].needs
    known = _REGISTERED | dict(metrics)
    if name not in known:
        raise ValueError(
            f"There is no metric or quantity {name!r}. {suggestion(name, [*QUANTITIES, *known])}"
        )
    return known[name].needs


def all_needs(metric: Metric) -> list[str]:
    """Return the names of all quantities and metrics that go into a metric, its own first."""
    return closure([metric.name], lambda name: needs_of(name, {metric.name: metric}))


def option_takers(metric: Metric) -> dict[str, Mapping[str, Check]]:
    """Return the options that may be given under a metric's name, by what takes them."""
    quantities = [name for name in all_needs(metric) if name in QUANTITIES]
    return {metric.name: metric.options} | {name: QUANTITIES[name].options for name in quantities}


def option_checks(metric: Metric) -> dict[str, Check]:
    """Return the options that may be given under a metric's name, with their checks."""
    takers = option_takers(metric).values()
    return {option: check for checks in takers for option, check in checks.items()}


def required_options(metric: Metric) -> list[str]:
    """Return the options for which the function of a metric has no default."""
    parameters = inspect.signature(metric.function).parameters
    return [
        option
        for option in metric.options
        if option in parameters and parameters[option].default is inspect.Parameter.empty
    ]


def takes_spatial_dims(metric: Metric) -> bool:
    """Whether the function of a metric takes the number of sides of a map."""
    try:
        return "spatial_dims" in inspect.signature(metric.function).parameters
    except ValueError:  # a function in C, such as torch.amax, may have no signature
        return False


_IN_UNIT_INTERVAL = partial(check_number, low=0, high=1)
_NOT_NEGATIVE = partial(check_number, low=0)


def _check_percentiles(name: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, Iterable) or not list(value):
        raise ValueError(f"{name} must be a sequence of at least one number; got {value!r}.")
    for percentile in value:
        check_number(f"Each of {name}", percentile, 0, 100, closed="neither")


_CONFIDENCES = ("confidence", "masked_confidence")
_OBJECTS = ("framed_maps", "masks")
_BOX_OPTIONS = {"iou_threshold": _IN_UNIT_INTERVAL, "threshold": _IN_UNIT_INTERVAL}

# fmt: off
register(Metric(
    "accuracy", accuracy, ("prediction_is_right", "output"),
    "share of images whose predicted class is the true one",
))
register(Metric(
    "average_drop", average_drop, _CONFIDENCES,
    "confidence lost when the network sees only what the map shows", higher_is_better=False,
))
register(Metric(
    "average_increase", average_increase, _CONFIDENCES,
    "share of images whose confidence rises if only what the map shows is visible",
))
register(Metric(
    "coherency", coherency, ("maps", "maps_of_masked"),
    "similarity of the map to the one made when only what it shows is visible",
))
register(Metric(
    "complexity", complexity, ("maps",), "how much of the image the map covers",
    higher_is_better=False,
))
register(Metric(
    "adcc", adcc, ("coherency", "complexity", "average_drop"),
    "coherency, simplicity and kept confidence in one number (harmonic mean)", of_averages=True,
))
register(Metric(
    "road", road_of_perturbation, ("perturbation", "maps"),
    "confidence without the map's darkest pixels minus that without its brightest",
    range=(-0.5, 0.5), options={"noise": _NOT_NEGATIVE, "percentiles": _check_percentiles},
))
register(Metric(
    "arcc", arcc, ("coherency", "complexity", "road"),
    "coherency, simplicity and ROAD in one number (harmonic mean)",
))
register(Metric(
    "consistency", ssim_consistency, ("view_of_maps", "maps_of_view", "valid_in_view"),
    "how well the map follows when the image is cropped and flipped", range=(-1, 1),
))
register(Metric(
    "consistency_kept", consistency_kept, ("consistency", "view_keeps_prediction"),
    "consistency where crop and flip leave the prediction unchanged", range=(-1, 1),
    may_be_undefined=True,
))
register(Metric(
    "consistency_changed", consistency_changed, ("consistency", "view_keeps_prediction"),
    "consistency where crop and flip change the prediction",
    higher_is_better=False, range=(-1, 1), may_be_undefined=True,
))
register(Metric(
    "cose_consistency", cose_consistency, ("cose_similarities",),
    "how similar maps stay when an altered image is still predicted correctly", range=(-1, 1),
    may_be_undefined=True,
))
register(Metric(
    "cose_sensitivity", cose_sensitivity, ("cose_similarities",),
    "how much maps change if altering image or network makes the prediction wrong",
    range=(0, 2), may_be_undefined=True,
))
register(Metric(
    "cose", cose, ("cose_consistency", "cose_sensitivity"),
    "COSE's consistency and sensitivity in one number (geometric mean)",
    range=(0, math.sqrt(2)), of_averages=True, may_be_undefined=True,
))
register(Metric(
    "iauc", insertion_auc, ("insertion_curve",),
    "mean confidence while pixels are inserted, the map's brightest first",
))
register(Metric(
    "dauc", deletion_auc, ("deletion_curve",),
    "mean confidence while pixels are deleted, the map's brightest first", higher_is_better=False,
))
register(Metric(
    "heatmap_ratio", partial(image_by_image, heatmap_ratio), _OBJECTS,
    "share of the map's brightness that lies on the object",
))
register(Metric(
    "inside_outside_ratio", partial(image_by_image, inside_outside_ratio), _OBJECTS,
    "mean brightness of the map on the object, divided by that outside", range=(0, float("inf")),
    may_be_undefined=True,
))
register(Metric(
    "pointing_game", partial(image_by_image, pointing_game), _OBJECTS,
    "share of images where the map's brightest pixel is on the object",
    options={"tolerance": _NOT_NEGATIVE},
))
register(Metric(
    "relevance_rank_accuracy", partial(image_by_image, relevance_rank_accuracy), _OBJECTS,
    "share of an object of n pixels that is among the map's n brightest",
    may_be_undefined=True,
))
register(Metric(
    "topk_intersection", partial(image_by_image, topk_intersection), _OBJECTS,
    "share of the map's k brightest pixels that are on the object", options={"k": check_count},
))
register(Metric(
    "pixel_auc", partial(image_by_image, pixel_auc), _OBJECTS,
    "probability that a pixel of the object is brighter than one outside",
    may_be_undefined=True,
))
register(Metric(
    "localization_accuracy", partial(image_by_image, localization_of_maps),
    ("framed_maps", "boxes"),
    "GT-known localisation: share of images where the map's box fits a true box",
    options=_BOX_OPTIONS,
))
register(Metric(
    "top1_localization_error", ranked_localization_error, ("top1", "class_boxes", "labels"),
    "share of images where the likeliest class, or its box, is wrong",
    higher_is_better=False, options=_BOX_OPTIONS,
))
register(Metric(
    "top5_localization_error", ranked_localization_error, ("top5", "class_boxes", "labels"),
    "share of images where no class among the 5 likeliest is right and well boxed",
    higher_is_better=False, options=_BOX_OPTIONS,
))
register(Metric(
    "pointing_game_reject", ranked_pointing_game, ("top5", "class_masks", "labels"),
    "share of the 5 likeliest classes found if present, and rejected if absent",
    options={"threshold": check_number, "tolerance": _NOT_NEGATIVE},
))
register(Metric(
    "reference_correlation", reference_correlation, ("framed_maps", "references"),
    "how well the map ranks places as the reference does (rank correlation)", range=(-1, 1),
    options={"grid": check_count},
))
register(Metric(
    "rank_correlation", correlation_with_occlusion, ("maps", "occlusion_maps", "occlusion_stride"),
    "how well the map ranks places as occlusion does (rank correlation)", range=(-1, 1),
))
register(Metric(
    "max_sensitivity", max_sensitivity, ("raw_maps", "neighbour_maps"),
    "largest relative change of the map under barely visible noise",
    higher_is_better=False, range=(0, math.inf), may_be_undefined=True,
))
register(Metric(
    "local_lipschitz", local_lipschitz, ("raw_maps", "neighbour_maps", "neighbour_distances"),
    "largest change of the map per unit of change in the image",
    higher_is_better=False, range=(0, math.inf), may_be_undefined=True,
))
register(Metric(
    "sparsity", sparsity, ("raw_maps",),
    "how much of the map lies in few pixels (Gini index)",
))
# fmt: on


def of_the_predicted_class(metric: Metric, *, has_labels: bool) -> Metric:
    """Return the form that a metric takes if the predicted class is explained, not a given one."""
    if metric.name != "localization_accuracy":
        return metric
    if not has_labels:
        meaning = "share of images where the box of the predicted class fits a true box"
        return replace(metric, meaning=meaning)
    return replace(
        metric,
        function=top1_localization,
        needs=("framed_maps", "boxes", "class_is_right", "output"),
        meaning="top-1 localisation: share of images where class and box are both right",
    )


def of_all_classes(metric: Metric) -> Metric:
    """Return the form that a metric takes if the classes with objects are the true ones."""
    if metric.function not in (ranked_localization_error, ranked_pointing_game):
        return metric
    # The functions take the labels last, and may be called without them.
    return replace(metric, needs=tuple(need for need in metric.needs if need != "labels"))
