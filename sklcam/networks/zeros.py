"""Networks before training: what is multiplied by 0 hides what a network looks at.

A head that starts at 0 has no gradient at all, and without its residual branches a network may skip
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy


def zeros_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are 0 throughout, other than biases."""
    named = model.named_parameters()
    found = [p for name, p in named if not name.endswith("bias") and not is_lazy(p)]
    return [p for p in found if not p.is_meta and p.numel() and not p.any()]


@contextmanager
def zeros_filled(model: nn.Module) -> Iterator[None]:
    """Put other weights in the place of those that are 0 throughout, and take them out again."""
    generator = torch.Generator().manual_seed(0)
    kept = [(parameter, parameter.data) for parameter in zeros_of(model)]
    try:
        for parameter, zeros in kept:
            if zeros.ndim < 2:  # a scale
                parameter.data = torch.ones_like(zeros)
            else:
                spread = 1 / math.sqrt(zeros[0].numel())
                noise = torch.randn(zeros.shape, generator=generator)
                parameter.data = noise.mul_(spread).to(zeros)
        yield
    finally:
        for parameter, zeros in kept:
            parameter.data = zeros
