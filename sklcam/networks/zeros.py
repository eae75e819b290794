"""Networks before training: parameters that are 0 hide which pixels a network depends on.

A head that starts at 0 has no gradient at all, and a network whose residual branches start at 0 may
skip pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy


def zeros_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters whose values are all 0, except biases."""
    named = model.named_parameters()
    found = [p for name, p in named if not name.endswith("bias") and not is_lazy(p)]
    return [p for p in found if not p.is_meta and p.numel() and not p.any()]


@contextmanager
def zeros_filled(model: nn.Module) -> Iterator[None]:
    """Replace parameters whose values are all 0 within the block, and restore them afterwards."""
    generator = torch.Generator().manual_seed(0)
    with _replaced(zeros_of(model), generator):
        yield


@contextmanager
def redrawn(model: nn.Module, seed: int) -> Iterator[None]:
    """Replace a network's weights by random ones within the block, and restore them afterwards.

    What holds for any weights is due to the network's structure. Scales and biases stay.
    """
    drawn = [p for p in model.parameters() if not is_lazy(p) and not p.is_meta and p.numel()]
    with _replaced([p for p in drawn if p.ndim > 1], torch.Generator().manual_seed(seed)):
        yield


@contextmanager
def _replaced(parameters: Iterable[nn.Parameter], generator: torch.Generator) -> Iterator[None]:
    kept = [(parameter, parameter.data) for parameter in parameters]
    try:
        for parameter, values in kept:
            if values.ndim < 2:  # a scale
                parameter.data = torch.ones_like(values)
            else:
                spread = 1 / math.sqrt(values[0].numel())
                noise = torch.randn(values.shape, generator=generator)
                parameter.data = noise.mul_(spread).to(values)
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values
