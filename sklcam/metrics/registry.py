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
        Tensor of shape (n_images,). If it has a parameter ``spatial_dims``, it is given how many
        sides a map has: 2, or 3 of volumes.
    needs : tuple of str
        Names of quantities of a batch of n images, or of other metrics, whose values are meant:

        - ``"maps"``, ``"raw_maps"``: Tensor (n, height, width), at the size of the network's input,
          scaled to [0, 1] or the method's own numbers;
        - ``"images"``, ``"output"``: Tensor, what the network gets and returns;
        - ``"confidence"``, ``"masked_confidence"``: Tensor (n,), the score in [0, 1] of what is
          explained, on the images and on the images times their maps;
        - ``"maps_of_masked"``: Tensor (n, height, width), the maps of the images times their maps;
        - ``"view_of_maps"``, ``"maps_of_view"``: Tensor (n, height, width), without the ReLU: the
          maps warped, and those of the images warped likewise; ``"valid_in_view"``: Tensor (n,
          height, width), bool, which of their pixels come from inside the images, or None, if all
          do; ``"view_keeps_prediction"``: Tensor (n,), bool;
        - ``"insertion_curve"``, ``"deletion_curve"``: see :func:`insertion_curve`;
        - ``"perturbation"``: a callable of changed images (m, channels, height, width) and rows
          (m,), which image of the batch each was made from, that returns their confidence (m,); its
          attribute ``images`` are the images to change, and ``generator()`` makes the seeded
          ``torch.Generator``;
        - ``"neighbour_maps"``: Tensor (n_samples, n, height, width), raw maps of images near to
          each; ``"neighbour_distances"``: Tensor (n_samples, n), how near;
        - ``"occlusion_maps"``: Tensor (n, height, width), see :class:`sklcam.cam.Occlusion`;
        - ``"predictions"``, ``"labels"``: ndarray (n,), the predicted and the true labels; of
          several an image, (n, n_classes), 0 or 1; ``"prediction_is_right"``: Tensor (n,), bool,
          whether they are the same; ``"class_is_right"``: Tensor (n,), bool, whether the predicted
          class is the true one, or, of several, the explained one is among them;
        - ``"framed_maps"``, ``"boxes"``, ``"masks"``: sequences with one Tensor per image, all in
          the frame of the image at its own size: (height, width), (n_boxes, 4), (height, width).
          The maps are ``"raw_maps"`` after the ReLU, and not scaled. Of boxes and masks by class
          they are those of the class that is explained;
        - ``"references"``: sequence with one Tensor per image, at any size that covers it;
        - ``"top1"``, ``"top5"``: the one class, or five, that score the highest in each image: an
          object with ``labels``, a list of k labels for each image, and ``maps``, a Tensor (k,
          height, width) for each, as ``"framed_maps"`` are;
        - ``"class_boxes"``, ``"class_masks"``: sequences with one function per image, which returns
          the boxes, or the mask, of the class whose label it is given.
    meaning : str, default=""
        One sentence, or less, for readers who do not know it.
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
        known, or the range is not one.

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
            raise ValueError(f"A metric has a name; got {describe(self.name)}.")
        if self.name in QUANTITIES:
            raise ValueError(f"{self.name!r} is the name of a quantity; choose another.")
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
    ValueError: There is a metric 'adcc' already; choose another name.
    """
    if not isinstance(metric, Metric):
        raise ValueError(f"register takes a Metric; got {describe(metric)}.")
    if _REGISTERED.setdefault(metric.name, metric) is not metric:
        raise ValueError(f"There is a metric {metric.name!r} already; choose another name.")


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
    (False, "confidence while pixels are deleted, the map's brightest first")
    """
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str) or metric not in _REGISTERED:
        raise ValueError(f"There is no metric {metric!r}. {suggestion(metric, _REGISTERED)}")
    return _REGISTERED[metric]


def get_metrics(metrics: str | Metric | Iterable[str | Metric]) -> dict[str, Metric]:
    """Return metrics by name, each followed by those that go with it; a ValueError for none."""
    if not isinstance(metrics, str | Metric | Iterable):
        raise ValueError(f"metrics must be a name or a sequence of names; got {describe(metrics)}.")
    asked = [metrics] if isinstance(metrics, str | Metric) else list(metrics)
    if not asked:
        raise ValueError("metrics is empty; name at least one.")
    found = [get_metric(metric) for metric in asked]
    # Terms follow all that was asked for, so that these keep their places in tables.
    found += [get_metric(term) for metric in found if metric.of_averages for term in metric.needs]
    named: dict[str, Metric] = {}
    for metric in found:
        if named.setdefault(metric.name, metric) is not metric:
            raise ValueError(f"There are two metrics of one name, {metric.name!r}.")
    return named


def default_metrics(*, confidence: bool = True, labels: bool = False) -> tuple[str, ...]:
    """Return the names of the metrics that give a first picture of an explainer.

    Parameters
    ----------
    confidence : bool, default=True
        Whether what is explained has a probability, or a score in its place.
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
        The name of a metric; or of the mean over the images where a metric's own row is the figure
        of the averages, such as ``"mean_adcc"``.

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
    """Return what a row of a :class:`Summary` tells, in a few words; "" if nothing is known.

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
    """Return what a quantity or a metric is made of; a ValueError if there is no such thing."""
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
    """Whether the function of a metric is told how many sides a map has."""
    try:
        return "spatial_dims" in inspect.signature(metric.function).parameters
    except ValueError:  # a function in C, such as torch.amax, may have none to look at
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
    "confidence lost when only what the map shows is seen", higher_is_better=False,
))
register(Metric(
    "average_increase", average_increase, _CONFIDENCES,
    "share of images whose confidence rises when only the map is seen",
))
register(Metric(
    "coherency", coherency, ("maps", "maps_of_masked"),
    "correlation of the map with the map of what it shows",
))
register(Metric(
    "complexity", complexity, ("maps",), "how much of the image the map covers",
    higher_is_better=False,
))
register(Metric(
    "adcc", adcc, ("coherency", "complexity", "average_drop"),
    "harmonic mean of coherency, simplicity and kept confidence", of_averages=True,
))
register(Metric(
    "road", road_of_perturbation, ("perturbation", "maps"),
    "confidence without the least relevant pixels, against without the most",
    range=(-0.5, 0.5), options={"noise": _NOT_NEGATIVE, "percentiles": _check_percentiles},
))
register(Metric(
    "arcc", arcc, ("coherency", "complexity", "road"),
    "harmonic mean of coherency, simplicity and ROAD",
))
register(Metric(
    "consistency", ssim_consistency, ("view_of_maps", "maps_of_view", "valid_in_view"),
    "likeness of the map's view and the view's map", range=(-1, 1),
))
register(Metric(
    "consistency_kept", consistency_kept, ("consistency", "view_keeps_prediction"),
    "consistency of the images whose view is predicted as they are", range=(-1, 1),
    may_be_undefined=True,
))
register(Metric(
    "consistency_changed", consistency_changed, ("consistency", "view_keeps_prediction"),
    "likeness of the two maps where the view is predicted to be something else",
    higher_is_better=False, range=(-1, 1), may_be_undefined=True,
))
register(Metric(
    "cose_consistency", cose_consistency, ("cose_similarities",),
    "likeness of the maps of transformed images that are still predicted right", range=(-1, 1),
    may_be_undefined=True,
))
register(Metric(
    "cose_sensitivity", cose_sensitivity, ("cose_similarities",),
    "unlikeness of the maps where a transformation, or a worse network, is wrong",
    range=(0, 2), may_be_undefined=True,
))
register(Metric(
    "cose", cose, ("cose_consistency", "cose_sensitivity"),
    "geometric mean of consistency while right and of sensitivity to what is not",
    range=(0, math.sqrt(2)), of_averages=True, may_be_undefined=True,
))
register(Metric(
    "iauc", insertion_auc, ("insertion_curve",),
    "confidence while pixels are inserted, the map's brightest first",
))
register(Metric(
    "dauc", deletion_auc, ("deletion_curve",),
    "confidence while pixels are deleted, the map's brightest first", higher_is_better=False,
))
register(Metric(
    "heatmap_ratio", partial(image_by_image, heatmap_ratio), _OBJECTS,
    "share of the map that lies inside the object",
))
register(Metric(
    "inside_outside_ratio", partial(image_by_image, inside_outside_ratio), _OBJECTS,
    "mean of the map inside the object over its mean outside", range=(0, float("inf")),
    may_be_undefined=True,
))
register(Metric(
    "pointing_game", partial(image_by_image, pointing_game), _OBJECTS,
    "share of images whose brightest pixel is on the object",
    options={"tolerance": _NOT_NEGATIVE},
))
register(Metric(
    "relevance_rank_accuracy", partial(image_by_image, relevance_rank_accuracy), _OBJECTS,
    "share of the brightest pixels, as many as the object's, that are on it",
    may_be_undefined=True,
))
register(Metric(
    "topk_intersection", partial(image_by_image, topk_intersection), _OBJECTS,
    "share of the k brightest pixels that are on the object", options={"k": check_count},
))
register(Metric(
    "pixel_auc", partial(image_by_image, pixel_auc), _OBJECTS,
    "probability that a pixel of the object is brighter than another",
    may_be_undefined=True,
))
register(Metric(
    "localization_accuracy", partial(image_by_image, localization_of_maps),
    ("framed_maps", "boxes"),
    "GT-known localisation: share of images whose map's box fits a true one",
    options=_BOX_OPTIONS,
))
register(Metric(
    "top1_localization_error", ranked_localization_error, ("top1", "class_boxes", "labels"),
    "share of images whose likeliest class is wrong, or badly boxed",
    higher_is_better=False, options=_BOX_OPTIONS,
))
register(Metric(
    "top5_localization_error", ranked_localization_error, ("top5", "class_boxes", "labels"),
    "share of images of whose five likeliest classes none is right and well boxed",
    higher_is_better=False, options=_BOX_OPTIONS,
))
register(Metric(
    "pointing_game_reject", ranked_pointing_game, ("top5", "class_masks", "labels"),
    "share of five likely classes found where they are, and rejected otherwise",
    options={"threshold": check_number, "tolerance": _NOT_NEGATIVE},
))
register(Metric(
    "reference_correlation", reference_correlation, ("framed_maps", "references"),
    "correlation of the ranks of the map and of the reference", range=(-1, 1),
    options={"grid": check_count},
))
register(Metric(
    "rank_correlation", correlation_with_occlusion, ("maps", "occlusion_maps", "occlusion_stride"),
    "correlation of the ranks of the map and of occlusion's map", range=(-1, 1),
))
register(Metric(
    "max_sensitivity", max_sensitivity, ("raw_maps", "neighbour_maps"),
    "most that the map changes with noise that is hardly seen, relative to it",
    higher_is_better=False, range=(0, math.inf), may_be_undefined=True,
))
register(Metric(
    "local_lipschitz", local_lipschitz, ("raw_maps", "neighbour_maps", "neighbour_distances"),
    "most that the map changes for each unit that the image does",
    higher_is_better=False, range=(0, math.inf), may_be_undefined=True,
))
register(Metric(
    "sparsity", sparsity, ("raw_maps",),
    "Gini index of the map: how much of it lies in few pixels",
))
# fmt: on


def of_the_predicted_class(metric: Metric, *, has_labels: bool) -> Metric:
    """Return what a metric of the class that is given is where the predicted one is explained."""
    if metric.name != "localization_accuracy":
        return metric
    if not has_labels:
        meaning = "share of images where the box of the predicted class fits a true one"
        return replace(metric, meaning=meaning)
    return replace(
        metric,
        function=top1_localization,
        needs=("framed_maps", "boxes", "class_is_right", "output"),
        meaning="top-1 localisation: share of images whose class and box are both right",
    )


def of_all_classes(metric: Metric) -> Metric:
    """Return what a metric of the true classes is where these are the ones that have objects."""
    if metric.function not in (ranked_localization_error, ranked_pointing_game):
        return metric
    # The functions take the labels last, and may be called without them.
    return replace(metric, needs=tuple(need for need in metric.needs if need != "labels"))
