"""The order of tokens: whether each token is the patch at its place in the grid.

Quadrants also respond in place if a class token lies in the middle of the others, or if tokens are
ordered by windows. Rows and columns are therefore numbered in binary, and for each digit those with
a 0 and those with a 1 are changed in turn. Each token shows its own number by responding more to
one of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sklcam.networks.dry_run import left_as_found
from sklcam.networks.layers import TargetLayer
from sklcam.networks.precision import at_least_float32

# The number of changed images that go through the network at a time.
_N_ROWS = 8
# The share of the tokens that must show their own row and column, or one beside it.
_LEAST_SHARE = 0.5


def are_in_order(
    model: nn.Module, layer: TargetLayer, images: Tensor, forward: Callable[[Tensor], Any]
) -> bool:
    """Whether the tokens of a layer, behind its prefix, are those of a grid, row by row.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
        A layer of tokens.
    images : Tensor of shape (2, channels, height, width)
        An image, and another that replaces parts of it.
    forward : callable
        Runs the network on images.

    Returns
    -------
    bool
    """
    assert layer.grid is not None
    answers = _answers(model, layer, images, forward)  # to a digit of 0, and of 1
    codes = _codes(layer.grid).to(answers)
    ones = (answers[1] / answers.sum(dim=0).clamp(min=torch.finfo(answers.dtype).tiny)).T
    # How well each token fits each patch, as the logarithm of a likelihood.
    chances = ones.clamp(1e-3, 1 - 1e-3)
    fits = codes @ chances.log().T + (1 - codes) @ (1 - chances).log().T  # (patches, tokens)
    own = fits.diagonal(layer.n_prefix)
    if layer.n_prefix:
        # The alternative: the last prefix token comes later, behind some of the patches.
        earlier = fits.diagonal(layer.n_prefix - 1)[: len(own)]
        if bool(((earlier - own).cumsum(dim=0) > 0).any()):
            return False
    decoded = _numbers(ones[layer.n_prefix :] > 0.5, layer.grid)
    numbers = _numbers(codes > 0.5, layer.grid)
    is_near = ((decoded - numbers).abs() <= 1).all(dim=1)
    return bool(is_near.float().mean() >= _LEAST_SHARE)


def _answers(
    model: nn.Module, layer: TargetLayer, images: Tensor, forward: Callable[[Tensor], Any]
) -> Tensor:
    """Return how much each token responds to changes, (2, digits, tokens)."""
    kept: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows = at_least_float32(output.detach())
        changes = rows[1:] - rows[:1]
        kept.append((changes - changes.mean(dim=1, keepdim=True)).abs().mean(dim=2))

    image, other = images.split(1)
    changed = [torch.where(mask, other, image) for mask in _masks(layer, images)]
    with torch.inference_mode(False), left_as_found(model):
        handle = layer.of(model).register_forward_hook(note)
        try:
            for start in range(0, len(changed), _N_ROWS):
                forward(torch.cat([image, *changed[start : start + _N_ROWS]]))
        finally:
            handle.remove()
    return torch.cat(kept).unflatten(0, (2, -1))


def _masks(layer: TargetLayer, images: Tensor) -> Iterator[Tensor]:
    """Yield, for each digit of rows and columns, the pixels that have a 0, and then all for 1."""
    assert layer.grid is not None
    for digit in (0, 1):
        for axis, n in zip((-2, -1), layer.grid, strict=True):
            size = images.shape[axis]
            numbers = torch.arange(size, device=images.device) * n // size
            for bits in _gray(n).to(images.device):
                mask = bits[numbers] == digit
                yield mask[:, None] if axis == -2 else mask[None]


def _gray(n: int) -> Tensor:
    """Return the Gray code of 0, ..., n - 1, (digits, n): neighbours differ in one digit."""
    numbers = torch.arange(n)
    numbers = numbers ^ (numbers >> 1)
    return (numbers >> torch.arange((n - 1).bit_length())[:, None]) & 1


def _codes(grid: tuple[int, ...]) -> Tensor:
    """Return the digits of the row and the column of each patch, (patches, digits)."""
    rows, columns = map(_gray, grid)
    rows = rows[:, :, None].expand(-1, *grid)
    columns = columns[:, None].expand(-1, *grid)
    return torch.cat([rows, columns]).flatten(1).T.float()


def _numbers(bits: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return the row and the column that the digits encode, (n, 2)."""
    parts = bits.long().split([(n - 1).bit_length() for n in grid], dim=1)
    found = []
    for digits in parts:
        number = torch.zeros(len(bits), dtype=torch.long, device=bits.device)
        above = torch.zeros_like(number)
        for k in reversed(range(digits.shape[1])):  # highest first; a Gray digit marks a change
            above = above ^ digits[:, k]
            number = number | (above << k)
        found.append(number)
    return torch.stack(found, dim=1)
