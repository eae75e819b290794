"""Where a grid of places answers: whether it is one of all of the image, and begins where it does.

Quadrants answer in place, too, where a grid is shifted by a few positions, or is one of a part of
the image. So narrow strips along the borders of an image are changed: each must change something,
and the half of the grid on its side more than the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
_SIDES = ("left", "right", "top", "bottom")
_QUADRANTS = ("top left", "top right", "bottom left", "bottom right")

Size = tuple[int, int]
Part = tuple[slice, slice]


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
        axis, what = (1, "columns") if i < 2 else (0, "rows")
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
        sums = torch.zeros(4, 4)
        for _ in range(_MOST_TRIES):
            changes = None
            with tolerating():
                changes = _changes(model, layer, draw(scale), forward, _quadrants)
            if changes is None:
                return None
            changes = changes - changes.mean(dim=(2, 3), keepdim=True)
            rows, columns = (_halves(n).to(changes) for n in changes.shape[2:])
            sums += torch.einsum("qkuv,au,bv->qab", changes.abs(), rows, columns).flatten(1).cpu()
        for i, answers in enumerate(sums):
            if answers.max() > _CLEAR * answers[i]:
                most = _QUADRANTS[int(answers.argmax())]
                return f"changes at the {_QUADRANTS[i]} of the images show most at its {most}"
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
    height, width = images.shape[-2:]
    return height, width


def _quadrants(size: Size, grid: Size) -> list[Part]:
    middles = [n // 2 for n in size]
    rows, columns = ((slice(None, middle), slice(middle, None)) for middle in middles)
    return [(row, column) for row in rows for column in columns]


def _strips(size: Size, grid: Size) -> list[Part]:
    """Return strips along the four borders.

    They are so wide that networks use some of each: those that cut an image into patches may leave
    out less than one at the end, or less than a half of one on both sides.
    """
    starts = [math.ceil(n / (2 * u)) for n, u in zip(size, grid, strict=True)]
    ends = [n - math.ceil(n / (u + 1)) for n, u in zip(size, grid, strict=True)]
    everything = slice(None)
    return [
        (everything, slice(None, starts[1])),
        (everything, slice(ends[1], size[1])),
        (slice(None, starts[0]), everything),
        (slice(ends[0], size[0]), everything),
    ]


def _answers(changes: Tensor) -> Tensor:
    """Return how much halves answer to strips, (2 readings, 4 sides, own and other)."""
    readings = []
    # Layers that mix all places change all alike, which is less telling than what is left without.
    for part in (changes, changes - changes.mean(dim=(2, 3), keepdim=True)):
        sides = []
        for i, answer in enumerate(part.abs().mean(dim=1)):
            along = answer.mean(dim=0 if i < 2 else 1)
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
