"""Where a grid of places answers: whether it is one of all of the image, and begins where it does.

Quadrants answer in place, too, where a grid is shifted by a few positions, or is one of a part of
the image. So narrow strips along the borders of an image are changed: each must change something,
and the half of the grid on its side more than the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from sklcam.networks.dry_run import left_as_found, tolerating
from sklcam.networks.layers import TargetLayer
from sklcam.networks.precision import at_least_float32

# How much more the half of a grid on a strip's side answers where there is no doubt, and how many
# images are tried while there is.
_CLEAR = 1.25
_MOST_TRIES = 3
# What is a rounding error beside the answers to other sides.
_SILENT = 1e-5
# Of volumes the last two, and all eight.
_SIDES = ("left", "right", "top", "bottom", "front", "back")
_QUADRANTS = ("top left", "top right", "bottom left", "bottom right")

Size = tuple[int, ...]
Part = tuple[slice, ...]


def misplacement(
    model: nn.Module,
    layer: TargetLayer,
    draw: Callable[[int], Tensor],
    forward: Callable[[Tensor], Any],
) -> str | None:
    """Say what is wrong with where a grid answers, if anything is.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
        Whose quadrants answer in place.
    draw : callable
        Takes a scale and returns two images of that times the usual size, others at each call.
    forward : callable
        Runs the network on images.

    Returns
    -------
    str or None
        What was seen, to follow the layer's name. None if nothing was, or nothing can be told.
    """
    seen = None
    # As in `probing.layouts_of`: of few positions larger images tell more.
    for scale in (1,) if layer.layout == "tokens" else (1, 2, 4):
        sums: Tensor | float = 0.0
        for i in range(_MOST_TRIES):
            images = draw(scale)
            changes = None
            with tolerating():
                changes = _changes(model, layer, images, forward, _strips)
            if changes is None:
                return seen
            sums = sums + _answers(changes)
            # The better of both readings, by side; nothing is told by a side where nothing answers.
            ratios = (sums[..., 0] / sums[..., 1]).nan_to_num(nan=1.0).amax(dim=0)
            if bool((ratios > _CLEAR).all()):
                return None
            sizes = sums[0].sum(dim=1)
            is_silent = sizes <= _SILENT * sizes.max()
            if i and bool(is_silent.any()) and not bool(is_silent.all()):
                return _said_of_silent(is_silent, _strips(_size(images), _size(changes)), images)
        seen = _said_of_wrong(ratios < 1)
        if seen is None:
            break
    return seen


def _said_of_silent(is_silent: Tensor, strips: list[Part], images: Tensor) -> str:
    found = []
    for i in is_silent.nonzero().flatten().tolist():
        axis, what = _axis_of(i, len(strips) // 2), ("columns", "rows", "slices")[i // 2]
        n = _size(images)[axis]
        found.append(f"the {_SIDES[i]} {len(range(n)[strips[i][axis]])} of {n} {what} of pixels")
    return f"is a grid of a part of the images: {' and '.join(found)} change nothing in it"


def _said_of_wrong(is_wrong: Tensor) -> str | None:
    sides = [
        f"changes at the {_SIDES[i]} of the images show most at its {_SIDES[i ^ 1]}"
        for i in is_wrong.nonzero().flatten().tolist()
    ]
    return f"is shifted: {' and '.join(sides)}" if sides else None


def quadrants_elsewhere(
    model: nn.Module,
    layer: TargetLayer,
    draw: Callable[[int], Tensor],
    forward: Callable[[Tensor], Any],
) -> str | None:
    """Say which quadrants of a grid answer to the change of another, if that is clear.

    Parameters
    ----------
    model, layer, draw, forward
        As in :func:`misplacement`.

    Returns
    -------
    str or None
        What was seen of the first such quadrant, to follow the layer's name.
    """
    for scale in (1,) if layer.layout == "tokens" else (1, 2, 4):
        sums: Tensor | float = 0.0
        for _ in range(_MOST_TRIES):
            changes = None
            with tolerating():
                changes = _changes(model, layer, draw(scale), forward, _quadrants)
            if changes is None:
                return None
            changes = changes - changes.mean(dim=_places(changes), keepdim=True)
            answers = changes.abs().sum(dim=1)
            for n in answers.shape[1:]:  # each axis of places in turn becomes its two halves, last
                answers = torch.tensordot(answers, _halves(n).to(answers), dims=([1], [1]))
            sums = sums + answers.flatten(1).cpu()
        assert isinstance(sums, Tensor)
        for i, answers in enumerate(sums):
            if answers.max() > _CLEAR * answers[i]:
                own, most = (_quadrant_name(int(j), len(sums)) for j in (i, answers.argmax()))
                return f"changes at the {own} of the images show most at its {most}"
    return None


def _changes(
    model: nn.Module,
    layer: TargetLayer,
    images: Tensor,
    forward: Callable[[Tensor], Any],
    parts: Callable[[Size, Size], list[Part]],
) -> Tensor:
    """Return by how much a grid changes, (parts, K, u, v), with each of some parts of an image."""
    grids: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        grids.append(at_least_float32(layer.to_grid(output.detach())))

    image, other = images.split(1)
    with torch.inference_mode(False), left_as_found(model):
        handle = layer.of(model).register_forward_hook(note)
        try:
            forward(image.clone())
            changed = []
            for part in parts(_size(images), _size(grids[-1])):
                changed.append(image.clone())
                changed[-1][..., *part] = other[..., *part]
            forward(torch.cat([image, *changed]))
        finally:
            handle.remove()
    if len(grids[-1]) != 1 + len(changed):
        raise ValueError("The layer has not a row for each image.")
    return grids[-1][1:] - grids[-1][:1]


def _size(images: Tensor) -> Size:
    return tuple(images.shape[2:])


def _places(changes: Tensor) -> tuple[int, ...]:
    return tuple(range(2, changes.ndim))


def _axis_of(side: int, n_axes: int) -> int:
    """Return along which axis of places a side lies: left and right are the last."""
    return n_axes - 1 - side // 2


def _quadrant_name(i: int, n: int) -> str:
    """Return what a quadrant is called, or one of the eight parts of a volume."""
    return _QUADRANTS[i] if n == 4 else f"{_SIDES[4 + i // 4]} {_QUADRANTS[i % 4]}"


def _quadrants(size: Size, grid: Size) -> list[Part]:
    middles = [n // 2 for n in size]
    return [*product(*((slice(None, middle), slice(middle, None)) for middle in middles))]


def _strips(size: Size, grid: Size) -> list[Part]:
    """Return strips along the four borders, or along the six of volumes.

    They are so wide that networks use some of each: those that cut an image into patches may leave
    out less than one at the end, or less than a half of one on both sides.
    """
    starts = [math.ceil(n / (2 * u)) for n, u in zip(size, grid, strict=True)]
    ends = [n - math.ceil(n / (u + 1)) for n, u in zip(size, grid, strict=True)]
    strips = []
    for axis in reversed(range(len(size))):
        for strip in (slice(None, starts[axis]), slice(ends[axis], size[axis])):
            part = [slice(None)] * len(size)
            part[axis] = strip
            strips.append(tuple(part))
    return strips


def _answers(changes: Tensor) -> Tensor:
    """Return how much halves answer to strips, (2 readings, 4 or 6 sides, own and other)."""
    readings = []
    # Layers that mix all places change all alike, which is less telling than what is left without.
    for part in (changes, changes - changes.mean(dim=_places(changes), keepdim=True)):
        sides = []
        for i, answer in enumerate(part.abs().mean(dim=1)):
            axis = _axis_of(i, answer.ndim)
            along = answer.mean(dim=[other for other in range(answer.ndim) if other != axis])
            halves = _halves(len(along)).to(along) @ along
            if len(along) == 1:  # which is in place
                halves[i % 2 ^ 1] = 0
            sides.append(halves if i % 2 == 0 else halves.flip(0))
        readings.append(torch.stack(sides))
    return torch.stack(readings)


def _halves(n: int) -> Tensor:
    """Return how much of each of some positions lies in the first half, and in the second."""
    first = (n / 2 - torch.arange(n)).clamp(0, 1)
    return torch.stack([first, first.flip(0)])
