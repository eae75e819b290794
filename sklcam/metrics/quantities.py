"""What metrics need from a batch of images: maps, confidences, curves, annotations.

A :class:`~sklcam.metrics.Metric` names the quantities that it is a function of. A
:class:`~sklcam.metrics.Measurement` computes those that are asked for, each of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import check_callable, check_count, check_number, describe
from sklcam.cam import Occlusion, get_method
from sklcam.images.views import ViewSampler
from sklcam.metrics.annotations import (
    LazyTensors,
    as_reference,
    check_covers,
    is_by_class,
    of_class,
)
from sklcam.metrics.causal import PixelSweep
from sklcam.metrics.consistency import is_constant
from sklcam.metrics.cose import (
    check_checkpoints,
    check_magnitudes,
    check_transformations,
    similarities,
)
from sklcam.metrics.masks import as_mask, box_masks, with_sides
from sklcam.metrics.ranked import OfClass, RankedClasses
from sklcam.metrics.stability import neighbours

if TYPE_CHECKING:
    from sklcam.metrics.measurement import Measurement


class Check(Protocol):
    """A check of an option: raises a ValueError that names it."""

    def __call__(self, name: str, value: Any) -> object: ...


@dataclass(frozen=True)
class Quantity:
    """Something that metrics need from a batch.

    Parameters
    ----------
    compute : callable
        Computes it from a Measurement.
    needs : tuple of str, default=()
        The quantities that it is computed from.
    options : mapping of str to callable, default={}
        The options that it takes, each with its check.
    """

    compute: Callable[[Measurement], Any]
    needs: tuple[str, ...] = ()
    options: Mapping[str, Check] = field(default_factory=dict)


# The checks of options


def _check_base(name: str, value: Any) -> None:
    if value is not None:
        check_callable(
            name, value, "that makes it from a batch of images, such as torch.zeros_like"
        )


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False; got {describe(value)}.")


def _check_method(name: str, value: Any) -> None:
    if value is not None:
        get_method(value).check()


def _check_views(name: str, value: Any) -> None:
    if not isinstance(value, ViewSampler | None):
        raise ValueError(f"{name} must be a ViewSampler or None; got {describe(value)}.")


def _check_occlusion(name: str, value: Any) -> None:
    if not isinstance(value, Occlusion):
        raise ValueError(f"{name} must be an Occlusion(); got {describe(value)}.")
    value.check()


# Quantities that take more than a line


def _pixel_sweep(measurement: Measurement) -> PixelSweep:
    perturbation = measurement["perturbation"]
    return PixelSweep(
        perturbation,
        perturbation.images,
        measurement["curve_maps"],
        full=measurement["confidence"],
        batch_size=perturbation.batch_size,
        **measurement.options("pixel_sweep"),
    )


def _pass_of_view(measurement: Measurement) -> tuple[Tensor, Tensor]:
    """Return the maps of the views, and the network's output for them."""
    inputs, warp = measurement.batch.inputs, measurement["warp"]
    seen = inputs.with_images(measurement.preprocessing.view(inputs.images, warp))
    # The question is asked again: a view is explained for its own prediction, unless a class was
    # asked for.
    method, scaled = measurement.plan.explained["view_maps"]
    return measurement.explain(seen, measurement.question, method, normalize=scaled)


def _valid_in_view(measurement: Measurement) -> Tensor | None:
    """Return which pixels of the views come from inside the images; None if all do."""
    warp = measurement["warp"]
    return None if warp.is_inside else warp.valid(measurement.batch.inputs.size)


def _framed_maps(measurement: Measurement) -> Sequence[Tensor]:
    # The function keeps what it needs, and not the measurement, which keeps the function.
    explainer, sizes = measurement.explainer, measurement.batch.sizes
    # Shares of the maximum, energies and means are those of the papers' map: after the ReLU, and
    # with the floor that scaling by minimum and maximum would remove.
    maps = measurement["raw_maps"].clamp(min=0)
    return LazyTensors(lambda i: explainer.to_frame(maps[i], sizes[i]), len(sizes))


def _boxes(measurement: Measurement) -> Sequence[Tensor] | None:
    """Return the boxes of each image; for boxes by class, those of the explained class."""
    entries = measurement.annotations.boxes
    if not is_by_class(entries):
        for i, corners in enumerate(entries or ()):
            _check_inside(measurement, i, corners)
        return entries
    boxes = _class_boxes(measurement)
    return [boxes[i](label) for i, label in enumerate(measurement.explained_labels())]


def _check_inside(measurement: Measurement, i: int, corners: Tensor) -> None:
    sides = measurement.batch.sizes[i][::-1]  # width, height
    try:
        corners = with_sides(corners, len(sides))
    except ValueError as error:
        raise ValueError(f"boxes[{measurement.rows[i]}]: {error}") from None
    lows, highs = corners.split(len(sides), dim=1)
    outside = (lows >= torch.tensor(sides)) | (highs <= 0)
    if len(corners) and outside.any(dim=1).all():
        form = "(x1, y1, x2, y2)" if len(sides) == 2 else "(x1, y1, z1, x2, y2, z2)"
        raise ValueError(
            f"boxes[{measurement.rows[i]}] has no box in its image of "
            f"{' x '.join(map(str, sides))} pixels: {corners[0].tolist()}. Boxes are {form} in "
            "pixels of the image itself, before it is resized."
        )


def _masks(measurement: Measurement) -> Sequence[Tensor] | None:
    masks, boxes = measurement.annotations.masks, measurement["boxes"]
    sizes, device = measurement.batch.sizes, measurement.output.device
    if is_by_class(masks):
        of_classes, labels = _class_masks(measurement), measurement.explained_labels()
        return LazyTensors(lambda i: of_classes[i](labels[i]), len(sizes))
    if masks is not None:
        return LazyTensors(lambda i: as_mask(masks[i]).to(device), len(sizes))
    if boxes is not None:
        return LazyTensors(lambda i: box_masks([boxes[i]], sizes[i])[0].to(device), len(sizes))
    return None


def _own_labels(measurement: Measurement) -> Sequence[Any]:
    labels = measurement.annotations.labels
    return [None] * len(measurement.batch) if labels is None else labels.tolist()


def _class_boxes(measurement: Measurement) -> list[OfClass]:
    """Return, for each image, a function that returns the boxes of a class."""
    entries, empty = measurement.annotations.boxes or (), torch.empty(0, 4)
    for i, entry in enumerate(entries):
        for corners in entry.values() if isinstance(entry, Mapping) else [entry]:
            _check_inside(measurement, i, corners)
    pairs = zip(entries, _own_labels(measurement), strict=True)
    return [partial(of_class, entry, own=own, empty=empty) for entry, own in pairs]


def _class_masks(measurement: Measurement) -> Sequence[OfClass]:
    """Return, for each image, a function that returns the mask of a class."""
    masks, sizes = measurement.annotations.masks, measurement.batch.sizes
    device, labels = measurement.batch.inputs.images.device, _own_labels(measurement)
    boxes = None if masks is not None else _class_boxes(measurement)

    def mask(i: int, label: Any) -> Tensor:
        if boxes is not None:
            return box_masks([boxes[i](label)], sizes[i])[0].to(device)
        assert masks is not None
        found = of_class(masks[i], label, own=labels[i], empty=None)
        return as_mask(np.zeros(sizes[i], bool) if found is None else found).to(device)

    return [partial(mask, i) for i in range(len(sizes))]


def _ranked(measurement: Measurement, k: int) -> RankedClasses:
    return measurement.ranked(k)


def _references(measurement: Measurement) -> Sequence[Tensor] | None:
    given, sizes = measurement.annotations.references, measurement.batch.sizes
    if given is None:
        return None

    def read(i: int) -> Tensor:
        reference = as_reference(given[i], measurement.rows[i], len(sizes[i]))
        check_covers(reference, sizes[i], measurement.rows[i])
        return reference

    return LazyTensors(read, len(sizes))


# Maps that are made in the first pass of a batch; the plan says how.
EXPLAINED = ("raw_maps", "maps", "curve_maps", "view_maps")

# How many of the classes that score the highest are explained.
RANKS = {"top1": 1, "top5": 5}

QUANTITIES: dict[str, Quantity] = {
    # Of the images themselves
    "maps": Quantity(lambda m: m.explained("maps")),
    "raw_maps": Quantity(lambda m: m.explained("raw_maps")),
    "view_maps": Quantity(lambda m: m.explained("view_maps"), (), {"method": _check_method}),
    "curve_maps": Quantity(lambda m: m.explained("curve_maps"), (), {"relu": _check_flag}),
    # Collected to find blank maps and NaN: it costs next to nothing, and waits for no device.
    "map_peaks": Quantity(lambda m: m.map_peaks()),
    "images": Quantity(lambda m: m.batch.inputs.images),
    "output": Quantity(lambda m: m.own_output()),
    "class_is_right": Quantity(lambda m: m.is_right(m.output, m.target), ("predictions", "labels")),
    "prediction_is_right": Quantity(
        lambda m: m.is_predicted_right(m.output), ("predictions", "labels")
    ),
    "predictions": Quantity(lambda m: m.predicted(m.output), ("output",)),
    "confidence": Quantity(lambda m: m.confidence(m.output), ("output",)),
    # Of the images times their maps
    "masked_confidence": Quantity(lambda m: m.confidence(m.masked[1]), ("maps", "confidence")),
    "maps_of_masked": Quantity(lambda m: m.masked[0], ("maps",)),
    # Of images that are changed pixel by pixel
    "perturbation": Quantity(lambda m: m.perturbation(), ("confidence",)),
    "pixel_sweep": Quantity(
        _pixel_sweep,
        ("perturbation", "confidence", "curve_maps"),
        {"n_steps": check_count, "start": _check_base, "end": _check_base},
    ),
    "insertion_curve": Quantity(lambda m: m["pixel_sweep"].insertion_curve(), ("pixel_sweep",)),
    "deletion_curve": Quantity(lambda m: m["pixel_sweep"].deletion_curve(), ("pixel_sweep",)),
    # Of views
    "warp": Quantity(
        lambda m: m.draw_views(m.options("warp").get("views") or ViewSampler()),
        options={"views": _check_views},
    ),
    "view_of_maps": Quantity(lambda m: m["warp"](m["view_maps"]), ("view_maps", "warp")),
    "pass_of_view": Quantity(_pass_of_view, ("view_maps", "warp")),
    "maps_of_view": Quantity(lambda m: m["pass_of_view"][0], ("pass_of_view",)),
    "valid_in_view": Quantity(_valid_in_view, ("warp",)),
    "view_keeps_prediction": Quantity(
        lambda m: m.is_predicted_alike(m["pass_of_view"][1]), ("predictions", "pass_of_view")
    ),
    "constant_views": Quantity(
        lambda m: is_constant(m["view_maps"]) | is_constant(m["maps_of_view"]),
        ("view_maps", "maps_of_view"),
    ),
    # Of transformed images, and of networks that know less
    "cose_similarities": Quantity(
        similarities,
        ("maps", "class_is_right"),
        {
            "transformations": check_transformations,
            "n_magnitudes": check_magnitudes,
            "randomized": _check_flag,
            "checkpoints": check_checkpoints,
        },
    ),
    # Of images that hardly differ
    "neighbours": Quantity(
        neighbours,
        ("raw_maps",),
        {"radius": partial(check_number, low=0, closed="neither"), "n_samples": check_count},
    ),
    "neighbour_maps": Quantity(lambda m: m["neighbours"][0], ("neighbours",)),
    "neighbour_distances": Quantity(lambda m: m["neighbours"][1], ("neighbours",)),
    # By occlusion
    "occlusion": Quantity(
        lambda m: m.options("occlusion").get("occlusion", Occlusion(relu=False)),
        options={"occlusion": _check_occlusion},
    ),
    "occlusion_maps": Quantity(
        lambda m: m.explain(m.batch.inputs, m.target, m["occlusion"], normalize=False)[0],
        ("occlusion",),
    ),
    "occlusion_stride": Quantity(
        lambda m: m["occlusion"].patch_and_stride(*m.batch.inputs.size)[1], ("occlusion",)
    ),
    # Against annotations, in the frame of each image
    "labels": Quantity(lambda m: m.annotations.labels),
    "framed_maps": Quantity(_framed_maps, ("raw_maps",)),
    "boxes": Quantity(_boxes),
    "masks": Quantity(_masks, ("boxes",)),
    "references": Quantity(_references),
    # Of several classes per image, from a pass of their own
    **{name: Quantity(partial(_ranked, k=k)) for name, k in RANKS.items()},
    "class_boxes": Quantity(_class_boxes),
    "class_masks": Quantity(_class_masks),
}


def closure(names: Iterable[str], needs_of: Callable[[str], Sequence[str]]) -> list[str]:
    """Return names with all that they need, directly or not, in the order of the first mention."""
    found: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = None
            waiting += needs_of(name)
    return list(found)
