"""Placement: whether a grid of places covers the whole image, and is not shifted.

Quadrants also respond in place if a grid is shifted by a few positions, or covers only a part of
the image. Narrow strips along the borders of an image are therefore changed: each must change the
grid, and the half on its own side more than the other.
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

# The ratio by which the half of a grid on a strip's side must respond more to leave no doubt, and
# the number of images that are tried while there is doubt.
_CLEAR = 1.25
_MOST_TRIES = 3
# A response this small beside those to other sides is a rounding error.
_SILENT = 1e-5
# Only volumes have a front and a back, and so eight parts.
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
    """Say how a grid is misplaced, if it is.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
        A layer whose quadrants respond in place.
    draw : callable
        Takes a scale and returns two images of the usual size times the scale, new ones each time.
    forward : callable
        Runs the network on images.

    Returns
    -------
    str or None
        The finding, in words that follow the layer's name. None if there is none.
    """
    seen = None
    # As in `probing.layouts_of`: if there are few positions, larger images tell more.
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
            # The better of both readings for each side. A side without a response shows nothing.
            ratios = (sums[..., 0] / sums[..., 1]).nan_to_num(nan=1.0).amax(dim=0)
            if bool((ratios > _CLEAR).all()):
                return None
            sizes = sums[0].sum(dim=1)
            is_silent = sizes <= _SILENT * sizes.max()
            if i and bool(is_silent.any()) and not bool(is_silent.all()):
                return _about_silent(is_silent, _strips(_size(images), _size(changes)), images)
        seen = _about_wrong(ratios < 1)
        if seen is None:
            break
    return seen


def _about_silent(is_silent: Tensor, strips: list[Part], images: Tensor) -> str:
    found = []
    for i in is_silent.nonzero().flatten().tolist():
        axis, what = _axis_of(i, len(strips) // 2), ("columns", "rows", "slices")[i // 2]
        n = _size(images)[axis]
        found.append(f"the {_SIDES[i]} {len(range(n)[strips[i][axis]])} of {n} {what} of pixels")
    return f"is a grid of a part of the images: {' and '.join(found)} change nothing in it"


def _about_wrong(is_wrong: Tensor) -> str | None:
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
    """Say which quadrant of a grid responds to changes in another one, if this is clear.

    Parameters
    ----------
    model, layer, draw, forward
        As in :func:`misplacement`.

    Returns
    -------
    str or None
        The finding for the first such quadrant, in words that follow the layer's name.
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
            for n in answers.shape[1:]:  # each spatial axis in turn becomes two halves, at the end
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
    """Return the changes of a grid, (parts, K, u, v), for the change of each part of an image."""
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
        raise ValueError("The layer does not have one row per image.")
    return grids[-1][1:] - grids[-1][:1]


def _size(images: Tensor) -> Size:
    return tuple(images.shape[2:])


def _places(changes: Tensor) -> tuple[int, ...]:
    return tuple(range(2, changes.ndim))


def _axis_of(side: int, n_axes: int) -> int:
    """Return the spatial axis of a side; left and right belong to the last one."""
    return n_axes - 1 - side // 2


def _quadrant_name(i: int, n: int) -> str:
    """Return the name of a quadrant, or of one of the eight parts of a volume."""
    return _QUADRANTS[i] if n == 4 else f"{_SIDES[4 + i // 4]} {_QUADRANTS[i % 4]}"


def _quadrants(size: Size, grid: Size) -> list[Part]:
    middles = [n // 2 for n in size]
    return [*product(*((slice(None, middle), slice(middle, None)) for middle in middles))]


def _strips(size: Size, grid: Size) -> list[Part]:
    """Return strips along the four borders, or the six borders of volumes.

    They are wide enough that every network uses a part of each: one that cuts an image into patches
    may leave out less than a patch at the end, or less than half a patch on both sides.
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
    """Return how much halves respond to strips, (2 readings, 4 or 6 sides, own and other)."""
    readings = []
    # In layers that mix all places, all change alike. What remains without this change tells more.
    for part in (changes, changes - changes.mean(dim=_places(changes), keepdim=True)):
        sides = []
        for i, answer in enumerate(part.abs().mean(dim=1)):
            axis = _axis_of(i, answer.ndim)
            along = answer.mean(dim=[other for other in range(answer.ndim) if other != axis])
            halves = _halves(len(along)).to(along) @ along
            if len(along) == 1:  # a single position is always in place
                halves[i % 2 ^ 1] = 0
            sides.append(halves if i % 2 == 0 else halves.flip(0))
        readings.append(torch.stack(sides))
    return torch.stack(readings)


def _halves(n: int) -> Tensor:
    """Return which fraction of each position lies in the first half, and in the second."""
    first = (n / 2 - torch.arange(n)).clamp(0, 1)
    return torch.stack([first, first.flip(0)])
