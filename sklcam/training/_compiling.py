"""Kernels and compiled code for a loss that is differentiated twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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
def differentiable_twice(*, compiled: bool, on_maps: bool) -> Iterator[None]:
    """Choose for the block what a second derivative needs, where it is taken."""
    with ExitStack() as stack:
        if on_maps:  # the fused kernels of attention have no second derivative
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if compiled:
            # Blocks share their code, and each is compiled for itself: in training and evaluation,
            # with a graph and without, with statistics that are updated and that are not.
            limits = {"recompile_limit": 256, "accumulated_recompile_limit": 4096}
            stack.enter_context(torch._dynamo.config.patch(limits))
        yield
