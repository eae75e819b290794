"""Division where the denominator may be zero."""

from __future__ import annotations

import torch
from torch import Tensor


def ratio_or_zero(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, and 0 where the denominator is 0."""
    some = denominator != 0
    return torch.where(some, numerator / torch.where(some, denominator, 1.0), 0.0)
