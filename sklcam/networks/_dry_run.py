"""Passes that are made to look at a network, and leave it as it was found."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sklcam._validation import describe


def _run_dry(model: nn.Module, sample: Tensor) -> Any:
    model = _unwrap(model)  # a dry run is no reason to compile
    first = next(model.parameters(), None)
    try:
        with _left_as_found(model):
            return model(sample if first is None else sample.to(first.device))
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        channels, size = sample.shape[1], " x ".join(map(str, sample.shape[2:]))
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(
            f"{type(model).__name__} fails on images of {size} pixels and {channels} channel(s): "
            f"{reason} Try another image_size, or make sure that the network takes {channels} "
            "input channel(s)."
        ) from error


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes, buffers and random state are put back after it."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training  # not train(), which a network may have overridden
            for module, name, buffer, value in buffers:
                setattr(module, name, buffer.copy_(value))


def _unwrap(model: nn.Module) -> nn.Module:
    """The network inside a compiled one."""
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, nn.Module):
        raise ValueError(f"model must be an nn.Module; got {describe(model)}.")
    return inner
