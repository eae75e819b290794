"""The extent of a grid: whether it is one of all of the image, and of nothing around it.

Networks that pad or crop their images by a wide margin have grids whose borders still answer to the
borders of the images, as `placement` asks, but that are of a larger or a smaller area. Two things
tell: what the first convolution is given at its borders when all of an image changes, and which
pixels a grid has a gradient for. Padding and strides of the convolutions themselves do neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sklcam.networks.dry_run import left_as_found, tolerating
from sklcam.networks.layers import TargetLayer

# What part of a side a margin has to be: less moves a map by less than half of that.
_LEAST_MARGIN = 0.1
_AXES = ("slices", "rows", "columns")

Margins = tuple[int, int]


class _Seen(NamedTuple):
    """One pass: rows and columns of a grid; margins of padding, and of pixels that are not seen."""

    grid: tuple[int, ...] | None
    given: tuple[int, ...] | None  # to the first convolution
    padding: list[Margins] | None
    unseen: list[Margins] | None


def other_extent(
    model: nn.Module,
    layer: TargetLayer,
    draw: Callable[[int], Tensor],
    forward: Callable[[Tensor], Any],
) -> str | None:
    """Say what a grid is of, if that is clearly not the images.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
        Whose borders answer in place.
    draw, forward
        As in :func:`~sklcam.networks.placement.misplacement`.

    Returns
    -------
    str or None
        What was seen, to follow the layer's name. None if nothing was, or nothing can be told.
    """
    images = draw(1)
    names = _AXES[-(images.ndim - 2) :]
    seen = _look(model, layer, images, forward)
    cropped = [
        _is_wide(each, n) for each, n in zip(seen.unseen or [], images.shape[2:], strict=False)
    ]
    if not any(cropped) and not any(_is_padded(seen)):
        return None
    larger = _look(model, layer, draw(2), forward)
    for axis, is_padded in enumerate(_is_padded(seen)):
        if is_padded and not _is_made_up_for(seen, larger, axis):
            assert seen.given is not None and seen.padding is not None
            before, behind = seen.padding[axis]
            return (
                f"is a grid of more than the images: of the {seen.given[axis]} {names[axis]} that "
                f"the network works on the first {before} and the last {behind} are padding"
            )
    for axis, is_cropped in enumerate(cropped):
        if not is_cropped:
            continue
        assert seen.unseen is not None
        n, total = images.shape[2 + axis], sum(seen.unseen[axis])
        # Strides leave out less than a stride, and nothing of images that end where they do.
        cut = images.narrow(2 + axis, 0, n - total)
        ending = _look(model, layer, cut, forward)
        if (larger.unseen is not None and sum(larger.unseen[axis]) > n) or (
            ending.unseen is not None and 2 * sum(ending.unseen[axis]) >= total
        ):
            before, behind = seen.unseen[axis]
            return (
                f"is a grid of a part of the images: the first {before} and the last {behind} of "
                f"{n} {names[axis]} of pixels change nothing in it"
            )
    return None


def _is_wide(margins: Margins, n: int) -> bool:
    return _LEAST_MARGIN * n <= sum(margins) < n


def _is_padded(seen: _Seen) -> list[bool]:
    """Whether, by axis, padding on a side is as wide as a position of the grid."""
    if seen.grid is None or seen.given is None or seen.padding is None:
        return []
    return [
        max(margins) * u >= n and max(margins) >= _LEAST_MARGIN * n and sum(margins) < n
        for margins, n, u in zip(seen.padding, seen.given, seen.grid, strict=True)
    ]


def _is_made_up_for(seen: _Seen, larger: _Seen, axis: int) -> bool:
    """Whether convolutions without padding take away what was put around the images.

    Then the grid of twice the image has no less than twice the positions.
    """
    if seen.grid is None or larger.grid is None or larger.grid[axis] == seen.grid[axis]:
        return False
    return larger.grid[axis] >= 2 * seen.grid[axis]


def _look(
    model: nn.Module, layer: TargetLayer, images: Tensor, forward: Callable[[Tensor], Any]
) -> _Seen:
    """Run two images that differ everywhere, as far as the layer."""
    given: list[Tensor] = []
    outputs: list[Tensor] = []

    def note_given(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not given and isinstance(inputs[0], Tensor):
            given.append(inputs[0].detach())

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        outputs.append(output.clone())  # what is behind may work on it in place

    with torch.inference_mode(False), left_as_found(model), torch.enable_grad():
        handles = [layer.of(model).register_forward_hook(note)]
        for part in model.modules():
            # Those of single pixels may be a normalisation in front of the padding.
            if isinstance(part, nn.Conv2d | nn.Conv3d) and max(part.kernel_size) > 1:
                handles.append(part.register_forward_pre_hook(note_given))
        leaf = images.clone().requires_grad_()
        try:
            with tolerating():  # what is before the layer has run, or has not
                forward(leaf.clone())
        finally:
            for handle in handles:
                handle.remove()
        grid = size = padding = unseen = None
        if outputs and len(outputs[-1]) == len(images):
            grid = _grid_of(layer, outputs[-1])
            unseen = _unseen(outputs[-1], leaf)
        if given and given[0].ndim == images.ndim and len(given[0]) == len(images):
            size = tuple(given[0].shape[2:])
            padding = _margins(given[0][1] != given[0][0])
    return _Seen(grid, size, padding, unseen)


def _grid_of(layer: TargetLayer, output: Tensor) -> tuple[int, ...] | None:
    try:
        return tuple(layer.to_grid(output).shape[2:])
    except (ValueError, RuntimeError):  # tokens of images of another size
        return None


def _unseen(output: Tensor, images: Tensor) -> list[Margins] | None:
    """Return how many rows and columns of pixels at the borders have no gradient at all."""
    if not output.requires_grad:
        return None
    # In any direction, as normalised channels have a constant sum.
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output)
    try:
        (gradient,) = torch.autograd.grad(2**8 * (output * weights).sum(), images)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # of what has no way back
        return None
    counts = (gradient != 0).any(dim=0)
    return _margins(counts) if counts.any() else None  # dead networks tell nothing


def _margins(counts: Tensor) -> list[Margins]:
    """Return how many of the first rows do not count, and of the last; and of the other axes."""
    found = []
    for axis in range(1, counts.ndim):
        others = [other for other in range(counts.ndim) if other != axis]
        where = counts.sum(dim=others).nonzero().flatten().tolist() or [0]
        found.append((where[0], counts.shape[axis] - 1 - where[-1]))
    return found
