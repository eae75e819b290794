"""Precision: its names, and the conversion of half-precision outputs to float32."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half-precision tensors to float32, and return others as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
