"""Networks of one's own: made from a class, a callable or an instance, and checked."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sklcam._validation import check_count, check_tensor
from sklcam.networks._dry_run import _run_dry


def construct(
    module: nn.Module | Callable[..., nn.Module], *, n_classes: int, in_channels: int, **kwargs: Any
) -> nn.Module:
    """Make a network from a class, a callable or an instance.

    Parameters
    ----------
    module : nn.Module class, callable or nn.Module
        A class or callable is called; an instance is copied, so that training never touches the
        caller's.
    n_classes : int
        Passed as `num_classes` or `n_classes` if the signature names one of them; a bare `**kwargs`
        does not count.
    in_channels : int
        Passed as `in_channels` if the signature names it.
    **kwargs
        Passed on; they win over the two above.

    Returns
    -------
    nn.Module

    Raises
    ------
    ValueError
        If `module` is none of these, does not return an nn.Module, or is an instance and gets
        `kwargs`.

    Examples
    --------
    >>> from torch import nn
    >>> from sklcam.networks import construct
    >>> class Net(nn.Sequential):
    ...     def __init__(self, in_channels=3, num_classes=10):
    ...         super().__init__(nn.Conv2d(in_channels, num_classes, 1), nn.Flatten())
    >>> construct(Net, n_classes=2, in_channels=1)[0]
    Conv2d(1, 2, kernel_size=(1, 1), stride=(1, 1))
    """
    if isinstance(module, nn.Module):
        return copy_instance(module, kwargs, "module")
    if not callable(module):
        raise ValueError(
            "module must be a torchvision name, an nn.Module (class or instance) or a callable "
            f"that returns one, got {module!r} of type {type(module).__name__}."
        )
    model = module(**_wanted_arguments(module, n_classes, in_channels, kwargs), **kwargs)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{_title(module)} must return an nn.Module, it returned a {type(model).__name__}."
        )
    return model


def copy_instance(module: nn.Module, kwargs: dict[str, Any], name: str) -> nn.Module:
    """Copy a module that was given as a parameter; an error if it is to take parameters itself."""
    if kwargs:
        raise ValueError(
            f"{name} is an instance of {type(module).__name__}, which takes no parameters any "
            f"more, got {', '.join(sorted(kwargs))}; pass its class instead."
        )
    return copy.deepcopy(module)


def _wanted_arguments(
    module: Callable[..., nn.Module], n_classes: int, in_channels: int, kwargs: dict[str, Any]
) -> dict[str, int]:
    named = parameter_names(module)
    wanted: dict[str, int] = {}
    if not {"num_classes", "n_classes"} & kwargs.keys():
        wanted = {name: n_classes for name in ("num_classes", "n_classes") if name in named}
    if "in_channels" in named and "in_channels" not in kwargs:
        wanted["in_channels"] = in_channels
    return wanted


def parameter_names(function: Callable[..., Any]) -> set[str]:
    """Return the parameters that a function, or a class, takes by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a callable written in C may have no signature
        return set()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name for parameter in parameters if parameter.kind in by_name}


def _title(module: object) -> str:
    return getattr(module, "__name__", None) or repr(module)


def check_output(model: nn.Module, sample: Tensor, n_outputs: int, *, of: str = "classes") -> None:
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
    of : str, default="classes"
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
    output = _run_dry(model, sample)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"module returned a {type(output).__name__} for {n_outputs} {of}; it must return a "
            f"Tensor of shape (n_images, {n_outputs}), or a tuple that begins with one."
        )
    if output.shape != (len(sample), n_outputs):
        raise ValueError(
            f"module returned shape {tuple(output.shape)} for {n_outputs} {of}, where "
            f"{(len(sample), n_outputs)} is wanted; give it num_classes={n_outputs}."
        )
