"""Precision: what half-precision networks hand over to what is computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half-precision tensors as float32, others as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
