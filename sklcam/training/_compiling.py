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

    Whole, it would be one node of the graph, which cannot be cut open at the layer.
    """
    for block in blocks_of_trunk(module.eval(), layer, sample):
        block.compile(**options)
    return module


@contextmanager
def differentiable_twice(*, compiled: bool) -> Iterator[None]:
    """Leave room in the block for the variants of compiled code that such a loss takes."""
    if not compiled:
        yield
        return
    # Blocks share their code, and each is compiled for itself: in training and evaluation, with a
    # graph and without, with statistics that are updated and that are not.
    limits = {"recompile_limit": 256, "accumulated_recompile_limit": 4096}
    with torch._dynamo.config.patch(limits):
        yield
