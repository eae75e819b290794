"""What metrics need of a batch of images: maps, confidences, curves, annotations.

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

from sklcam._validation import check_callable, check_count, describe
from sklcam.cam import Occlusion, get_method
from sklcam.images.views import ViewSampler, Warp
from sklcam.metrics.causal import DeletionCurve, InsertionCurve, PixelSweep
from sklcam.metrics.consistency import is_constant
from sklcam.metrics.masks import as_mask, box_masks

if TYPE_CHECKING:
    from sklcam.metrics.measurement import Measurement, Perturbation


class Check(Protocol):
    """A check of an option: raises a ValueError that names it."""

    def __call__(self, name: str, value: Any) -> object: ...


@dataclass(frozen=True)
class Quantity:
    """Something that metrics need of a batch.

    Parameters
    ----------
    compute : callable
        Makes it of a Measurement.
    needs : tuple of str, default=()
        The quantities that it is made of.
    options : mapping of str to callable, default={}
        The options that it takes, each with its check.
    """

    compute: Callable[[Measurement], Any]
    needs: tuple[str, ...] = ()
    options: Mapping[str, Check] = field(default_factory=dict)


QUANTITIES: dict[str, Quantity] = {}


def _quantity(
    name: str, *, needs: tuple[str, ...] = (), options: Mapping[str, Check] | None = None
) -> Callable[[Callable[[Measurement], Any]], Callable[[Measurement], Any]]:
    """Make a function a quantity."""

    def add(compute: Callable[[Measurement], Any]) -> Callable[[Measurement], Any]:
        QUANTITIES[name] = Quantity(compute, needs, options or {})
        return compute

    return add


class _Lazy(Sequence[Tensor]):
    """Tensors that are made when they are asked for: a batch of large images would not fit."""

    def __init__(self, make: Callable[[int], Tensor], length: int):
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: Any) -> Any:
        return self._make(range(self._length)[i])


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


# Of the images themselves, from one pass of the network

EXPLAINED = ("maps", "view_maps", "curve_maps", "raw_maps")
_OPTIONS_OF_EXPLAINED: dict[str, dict[str, Check]] = {
    "view_maps": {"method": _check_method},
    "curve_maps": {"relu": _check_flag},
}


def _explained(name: str, measurement: Measurement) -> Tensor:
    return measurement.explained(name)


for _name in EXPLAINED:
    QUANTITIES[_name] = Quantity(
        partial(_explained, _name), options=_OPTIONS_OF_EXPLAINED.get(_name, {})
    )


@_quantity("images")
def _images(measurement: Measurement) -> Tensor:
    return measurement.batch.inputs.images


@_quantity("output")
def _output(measurement: Measurement) -> Tensor:
    return measurement.output


@_quantity("predictions", needs=("output",))
def _predictions(measurement: Measurement) -> np.ndarray:
    indices = measurement.explainer.decide(measurement.output)
    return np.asarray(measurement.explainer.classes_)[indices.cpu().numpy()]


@_quantity("confidence", needs=("output",))
def _confidence(measurement: Measurement) -> Tensor:
    return measurement.confidence(measurement.output)


# Of the images times their maps


@_quantity("masked_confidence", needs=("maps", "confidence"))
def _masked_confidence(measurement: Measurement) -> Tensor:
    return measurement.confidence(measurement.masked[1])


@_quantity("maps_of_masked", needs=("maps",))
def _maps_of_masked(measurement: Measurement) -> Tensor:
    maps = measurement.masked[0]
    assert maps is not None  # a plan with this quantity explains the masked images
    return maps


# Of images that are changed pixel by pixel


@_quantity("perturbation", needs=("confidence",))
def _perturbation(measurement: Measurement) -> Perturbation:
    return measurement.perturbation()


@_quantity(
    "pixel_sweep",
    needs=("perturbation", "confidence", "curve_maps"),
    options={"n_steps": check_count, "start": _check_base, "end": _check_base},
)
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


@_quantity("insertion_curve", needs=("pixel_sweep",))
def _insertion_curve(measurement: Measurement) -> InsertionCurve:
    sweep = measurement["pixel_sweep"]
    return InsertionCurve(sweep.fractions, sweep.insertion())


@_quantity("deletion_curve", needs=("pixel_sweep",))
def _deletion_curve(measurement: Measurement) -> DeletionCurve:
    sweep = measurement["pixel_sweep"]
    return DeletionCurve(sweep.fractions, sweep.deletion())


# Of views


@_quantity("warp", options={"views": _check_views})
def _warp(measurement: Measurement) -> Warp:
    return measurement.draw_views(measurement.options("warp").get("views") or ViewSampler())


@_quantity("view_of_maps", needs=("view_maps", "warp"))
def _view_of_maps(measurement: Measurement) -> Tensor:
    return measurement["warp"](measurement["view_maps"])


@_quantity("maps_of_view", needs=("view_maps", "warp"))
def _maps_of_view(measurement: Measurement) -> Tensor:
    inputs = measurement.batch.inputs
    warped = inputs.with_images(measurement["warp"](inputs.images))
    # The question is asked anew: what is explained of a view is its own prediction, unless a class
    # was asked for.
    return measurement.explain(warped, measurement.question, like="view_maps")


@_quantity("constant_views", needs=("view_maps", "maps_of_view"))
def _constant_views(measurement: Measurement) -> Tensor:
    return is_constant(measurement["view_maps"]) | is_constant(measurement["maps_of_view"])


# By occlusion


@_quantity("occlusion", options={"occlusion": _check_occlusion})
def _occlusion(measurement: Measurement) -> Occlusion:
    return measurement.options("occlusion").get("occlusion", Occlusion(relu=False))


@_quantity("occlusion_maps", needs=("occlusion",))
def _occlusion_maps(measurement: Measurement) -> Tensor:
    maps, _ = measurement.explainer.explain_inputs(
        measurement.batch.inputs,
        measurement.target,
        method=measurement["occlusion"],
        normalize=False,
    )
    return maps


@_quantity("occlusion_stride", needs=("occlusion",))
def _occlusion_stride(measurement: Measurement) -> int:
    _, stride = measurement["occlusion"].patch_and_stride(*measurement.batch.inputs.size)
    return stride


# Against annotations, in the frame of each image


@_quantity("labels")
def _labels(measurement: Measurement) -> np.ndarray | None:
    return measurement.annotations.labels


@_quantity("framed_maps", needs=("maps",))
def _framed_maps(measurement: Measurement) -> Sequence[Tensor]:
    # The function holds on to what it needs, and not to the measurement, which holds on to it.
    explainer, maps, sizes = measurement.explainer, measurement["maps"], measurement.batch.sizes
    return _Lazy(lambda i: explainer.to_frame(maps[i], sizes[i]), len(sizes))


@_quantity("boxes")
def _boxes(measurement: Measurement) -> Sequence[Tensor] | None:
    boxes = measurement.annotations.boxes
    if boxes is None:
        return None
    return [torch.as_tensor(np.asarray(corners, dtype=np.float32)) for corners in boxes]


@_quantity("masks", needs=("boxes",))
def _masks(measurement: Measurement) -> Sequence[Tensor] | None:
    masks, boxes, sizes = (
        measurement.annotations.masks,
        measurement["boxes"],
        measurement.batch.sizes,
    )
    device = measurement.output.device
    if masks is not None:
        return _Lazy(lambda i: as_mask(masks[i]).to(device), len(sizes))
    if boxes is None:
        return None
    return _Lazy(lambda i: box_masks([boxes[i]], sizes[i])[0].to(device), len(sizes))


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
