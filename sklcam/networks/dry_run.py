"""Dry runs: passes that are made to look at a network, and leave it as it was found."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sklcam._validation import check_count, check_tensor, describe


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside a compiled one; others as they are."""
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, nn.Module):
        raise ValueError(f"model must be an nn.Module; got {describe(model)}.")
    return inner


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a network to evaluation mode, and put back the mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training  # not train(), which a network may have overridden


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; modes, buffers and random state are put back afterwards."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not is_lazy(buffer)  # whose values the first pass decides
    ]
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=devices), torch.no_grad(), evaluating(model):
        try:
            yield
        finally:
            for module, name, buffer, value in buffers:
                setattr(module, name, buffer.copy_(value))


def run_dry(model: nn.Module, sample: Tensor) -> Any:
    """Run a network on a sample; a ValueError that says what is wrong if it fails."""
    model = unwrap(model)  # nothing is gained by compiling for a single run
    first = next(model.parameters(), None)
    try:
        with left_as_found(model):
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


def check_output(
    model: nn.Module, sample: Tensor, n_outputs: int, *, name: str = "classes"
) -> None:
    """Check by one dry run that a network takes such images and has as many outputs as it should.

    The network's mode, hooks, buffers and gradients, and the random generators, are left as they
    were found.

    Parameters
    ----------
    model : nn.Module
        Its output, or the first entry of it, are the logits, or an embedding.
    sample : float Tensor of shape (n, channels, height, width)
        One image will do.
    n_outputs : int
        How many are expected.
    name : str, default="classes"
        What there should be as many of, for the message.

    Raises
    ------
    ValueError
        If the network fails on the sample, or returns anything but a Tensor of shape
        (n, n_outputs).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks import check_output
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    >>> check_output(model, torch.zeros(1, 3, 2, 2), 3)
    """
    check_tensor("sample", sample, "n_images", "channels", "height", "width")
    check_count("n_outputs", n_outputs)
    output = run_dry(model, sample)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"module returned a {type(output).__name__} for {n_outputs} {name}; it must return a "
            f"Tensor of shape (n_images, {n_outputs}), or a tuple that begins with one."
        )
    if output.shape != (len(sample), n_outputs):
        raise ValueError(
            f"module returned shape {tuple(output.shape)} for {n_outputs} {name}, where "
            f"{(len(sample), n_outputs)} is wanted; give it num_classes={n_outputs}."
        )
