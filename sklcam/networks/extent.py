"""The extent of a grid: whether it covers the whole image, and nothing around it.

In networks that pad or crop their images by a wide margin, the borders of a grid still respond to
the borders of the images, as `placement` checks, but the grid covers a larger or a smaller area.
Two things show this: whether the first convolution's input changes at its borders when all of an
image changes, and which pixels a grid has a gradient for. Padding and strides of the convolutions
themselves affect neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sklcam.networks.dry_run import left_as_found, tolerating
from sklcam.networks.layers import TargetLayer

# The least fraction of a side that counts as a margin. A smaller one moves a map by less than half
# of this.
_LEAST_MARGIN = 0.1
_AXES = ("slices", "rows", "columns")

Margins = tuple[int, int]


class _Seen(NamedTuple):
    """One pass: the shape of the grid, and the margins of padding and of unseen pixels."""

    grid: tuple[int, ...] | None
    given: tuple[int, ...] | None  # the size of the first convolution's input
    padding: list[Margins] | None
    unseen: list[Margins] | None


def other_extent(
    model: nn.Module,
    layer: TargetLayer,
    draw: Callable[[int], Tensor],
    forward: Callable[[Tensor], Any],
) -> str | None:
    """Say what a grid covers, if this is clearly not the images.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
        A layer whose borders respond to those of the images.
    draw, forward
        As in :func:`~sklcam.networks.placement.misplacement`.

    Returns
    -------
    str or None
        The finding, in words that follow the layer's name. None if there is none.
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
                f"is a grid of more than the images: the network works on {seen.given[axis]} "
                f"{names[axis]}, the first {before} and the last {behind} of which are padding"
            )
    for axis, is_cropped in enumerate(cropped):
        if not is_cropped:
            continue
        assert seen.unseen is not None
        n, total = images.shape[2 + axis], sum(seen.unseen[axis])
        # Strides leave out less than one stride, and nothing of an image that ends at a stride.
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
    """Whether, for each axis, the padding on a side is at least as wide as a grid position."""
    if seen.grid is None or seen.given is None or seen.padding is None:
        return []
    return [
        max(margins) * u >= n and max(margins) >= _LEAST_MARGIN * n and sum(margins) < n
        for margins, n, u in zip(seen.padding, seen.given, seen.grid, strict=True)
    ]


def _is_made_up_for(seen: _Seen, larger: _Seen, axis: int) -> bool:
    """Whether convolutions without padding remove the padding around the images.

    Then twice the image gives at least twice the grid positions.
    """
    if seen.grid is None or larger.grid is None or larger.grid[axis] == seen.grid[axis]:
        return False
    return larger.grid[axis] >= 2 * seen.grid[axis]


def _look(
    model: nn.Module, layer: TargetLayer, images: Tensor, forward: Callable[[Tensor], Any]
) -> _Seen:
    """Run two images that differ everywhere, up to the layer."""
    given: list[Tensor] = []
    outputs: list[Tensor] = []

    def note_given(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not given and isinstance(inputs[0], Tensor):
            given.append(inputs[0].detach())

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        outputs.append(output.clone())  # later layers may change it in place

    with torch.inference_mode(False), left_as_found(model), torch.enable_grad():
        handles = [layer.of(model).register_forward_hook(note)]
        for part in model.modules():
            # A convolution of single pixels may be a normalisation before the padding.
            if isinstance(part, nn.Conv2d | nn.Conv3d) and max(part.kernel_size) > 1:
                handles.append(part.register_forward_pre_hook(note_given))
        leaf = images.clone().requires_grad_()
        try:
            with tolerating():  # a failure behind the layer does not matter
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
    except (ValueError, RuntimeError):  # the tokens of images of another size
        return None


def _unseen(output: Tensor, images: Tensor) -> list[Margins] | None:
    """Return how many rows and columns of pixels at the borders have no gradient at all."""
    if not output.requires_grad:
        return None
    # In a random direction, as the sum of normalised channels is constant.
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output)
    try:
        (gradient,) = torch.autograd.grad(2**8 * (output * weights).sum(), images)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # an operation has no backward pass
        return None
    counts = (gradient != 0).any(dim=0)
    return _margins(counts) if counts.any() else None  # a dead network shows nothing


def _margins(counts: Tensor) -> list[Margins]:
    """Return, for each axis, how many entries at the start and at the end do not count."""
    found = []
    for axis in range(1, counts.ndim):
        others = [other for other in range(counts.ndim) if other != axis]
        where = counts.sum(dim=others).nonzero().flatten().tolist() or [0]
        found.append((where[0], counts.shape[axis] - 1 - where[-1]))
    return found
