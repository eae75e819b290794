"""Compiled code for a loss that is differentiated twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sklcam.networks.trunk import blocks_of_trunk


def compile_trunk(
    module: nn.Module, layer: nn.Module, sample: Tensor, options: dict[str, Any]
) -> nn.Module:
    """Compile a network's blocks up to the target layer.

    Compiled as a whole, it would be a single node of the graph, which cannot be cut at the layer.
    """
    for block in blocks_of_trunk(module.eval(), layer, sample):
        block.compile(**options)
    return module


@contextmanager
def differentiable_twice(*, compiled: bool) -> Iterator[None]:
    """Allow the variants of compiled code that a loss on maps needs."""
    if not compiled:
        yield
        return
    # Blocks share their code, and each is compiled separately: for training and evaluation, with
    # and without a graph, with and without updated statistics.
    limits = {"recompile_limit": 256, "accumulated_recompile_limit": 4096}
    with torch._dynamo.config.patch(limits):
        yield
