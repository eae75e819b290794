"""Networks: by name, or made from a class, a callable or an instance.

They get the head and the stem that the data needs, if there is a known way to set them. Names are
looked up in ``sources.py``.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models import WeightsEnum

from sklcam._validation import check_count, check_size, describe
from sklcam.networks import (
    from_efficientnet_lite,
    from_timm,
    from_torchvision,
    from_transformers,
)
from sklcam.networks.dry_run import unwrap
from sklcam.networks.sources import find_source


def available_models() -> list[str]:
    """List the names that `build_model` takes without a source.

    Returns
    -------
    list of str
        The classification networks of the installed torchvision, and EfficientNet-Lite's if its
        package is installed (the extra ``pretrained``), sorted.

    Examples
    --------
    >>> from sklcam.networks import available_models
    >>> "resnet18" in available_models()
    True
    """
    return sorted([*from_torchvision.names(), *from_efficientnet_lite.names()])


def build_model(
    name: str,
    *,
    n_classes: int | None = None,
    in_channels: int = 3,
    image_size: tuple[int, int] | None = None,
    weights: str | os.PathLike[str] | WeightsEnum | None = None,
    config: Any = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a network by its name, with a head and a stem of the wanted size.

    Parameters
    ----------
    name : str
        - "resnet18" or "torchvision/resnet18": one of `available_models()`, in upper or lower case;
        - "efficientnet_lite0" to "efficientnet_lite4", from the package efficientnet-lite-pytorch;
          the weights of the first three are packages as well;
        - "timm/resnet50", or "timm/resnet50.a1_in1k" with the tag of its weights: one of
          ``timm.list_models()``; "hf-hub:owner/name": a repository in timm's format;
          "timm//path/of/a/folder": the contents of such a repository;
        - "transformers/owner/name": a repository in transformers' format, and
          "transformers//path/of/a/folder": a folder that ``save_pretrained`` wrote.
    n_classes : int or None, default=None
        Number of outputs. The head of the weights is kept if it has as many outputs, and replaced
        by a new one otherwise. None takes the number from the weights, also those of a file, or
        from the source's configuration.
    in_channels : int, default=3
        Channels of the images. The first convolution of the weights is averaged over its input
        channels and repeated, so that its response to a grey image does not change; a random one is
        drawn with the same spread. Timm and transformers have a way of their own.
    image_size : tuple of int (height, width) or None, default=None
        Only needed for a network whose parameters depend on it. Positional embeddings of weights
        for another size are interpolated. None is the source's own size, or (224, 224).
    weights : str, path or None, default=None
        None for random initialisation; "DEFAULT" for the published weights, which for
        EfficientNet-Lite are in a package; the name of others ("IMAGENET1K_V1" of torchvision, a
        tag of timm); or the path of a file with a state dict, or of a folder in timm's or
        transformers' format.
    config : dict or configuration of transformers or None, default=None
        For transformers only: the configuration. None looks it up by the name.
    **kwargs
        Passed to the source's builder of the network, such as ``dropout``; for transformers,
        entries of the configuration.

    Returns
    -------
    nn.Module
        The network, in training mode. It maps a float Tensor of shape
        (n, in_channels, height, width) to logits of shape (n, n_classes), in both training and
        evaluation mode. Networks of transformers return an output with ``logits``.

    Raises
    ------
    ValueError
        If the name, the weights or the image size do not fit.
    ImportError
        If the source is not installed.
    OSError
        If a download fails.

    Notes
    -----
    GoogLeNet and Inception of torchvision are built without their auxiliary heads. With three
    channels they rescale ImageNet's normalisation to the one their published weights expect
    (`transform_input`). They do so whatever the weights are, so that a state dict means the same
    network wherever it came from.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks import build_model
    >>> model = build_model("squeezenet1_1", n_classes=3, in_channels=1)
    >>> model(torch.zeros(2, 1, 64, 64)).shape
    torch.Size([2, 3])
    """
    if n_classes is not None:
        check_count("n_classes", n_classes)
    check_count("in_channels", in_channels)
    size = None if image_size is None else check_size(image_size, "image_size")
    if not isinstance(weights, str | os.PathLike | WeightsEnum | None):
        raise ValueError(f"weights must be a name, a path or None; got {describe(weights)}.")
    source = find_source(str(name), config)
    model: Any = source.build(n_classes, in_channels, size, weights, kwargs)
    origin = source.origin(weights)
    if size is not None:
        origin = replace(origin, preprocessing=replace(origin.preprocessing, image_size=size))
    model.origin = origin
    return model


def construct(
    module: nn.Module | Callable[..., nn.Module], *, n_classes: int, in_channels: int, **kwargs: Any
) -> nn.Module:
    """Make a network from a class, a callable or an instance.

    Parameters
    ----------
    module : nn.Module class, callable or nn.Module
        A class or callable is called. An instance is copied, so that training never changes the
        caller's.
    n_classes : int
        Passed as `num_classes` or `n_classes` if the signature names one of them. A bare `**kwargs`
        does not count, except in builders of timm, torchvision and transformers. An instance of
        timm or transformers with another number of classes gets a new head, in its library's way.
    in_channels : int
        Passed as `in_channels` if the signature names it, and as `in_chans` to builders of timm.
    **kwargs
        Passed on; they take precedence over the two above.

    Returns
    -------
    nn.Module

    Raises
    ------
    ValueError
        If `module` is none of these, does not return an nn.Module, or is an instance and `kwargs`
        are given.

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
        made = from_transformers.with_classes(copy_instance(module, kwargs, "module"), n_classes)
        from_timm.with_classes(made, n_classes)
        return made
    if not callable(module):
        raise ValueError(
            "module must be the name of a network, an nn.Module (class or instance) or a callable "
            f"that returns one; got {module!r} of type {type(module).__name__}."
        )
    named = parameter_names(module) - kwargs.keys()
    sizes = {"num_classes": n_classes, "n_classes": n_classes, "in_channels": in_channels}
    if {"num_classes", "n_classes"} & kwargs.keys():  # two names of one thing
        sizes = {"in_channels": in_channels}
    wanted = {name: size for name, size in sizes.items() if name in named}
    known = _known_by_its_builder(module, n_classes, in_channels)
    wanted |= {name: value for name, value in known.items() if name not in kwargs}
    model = module(**wanted, **kwargs)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"module must return an nn.Module; {describe(module)} returned {describe(model)}."
        )
    return model


def _known_by_its_builder(
    module: Callable[..., nn.Module], n_classes: int, in_channels: int
) -> dict[str, Any]:
    """Return what builders take that hide it behind ``**kwargs``, unless a partial sets it."""
    known: dict[str, Any] = {}
    if from_timm.is_builder(module):
        known = {"num_classes": n_classes, "in_chans": in_channels}
    elif from_torchvision.is_builder(module):
        known = {"num_classes": n_classes}
    elif from_transformers.is_builder(module):
        known = {"num_labels": n_classes, "ignore_mismatched_sizes": True}
    preset = module.keywords if isinstance(module, partial) else {}
    return {name: value for name, value in known.items() if name not in preset}


def copy_instance(module: nn.Module, kwargs: dict[str, Any], name: str) -> nn.Module:
    """Copy a module that was given as a parameter; raise an error if it comes with parameters."""
    if kwargs:
        raise ValueError(
            f"Parameters {', '.join(sorted(kwargs))} were given, but {name} is an instance of "
            f"{type(module).__name__}, which is already built. Pass its class instead."
        )
    module = unwrap(module)
    # Tensors that a network has kept from its last pass have a graph, which cannot be copied.
    kept = (tensor for part in module.modules() for tensor in _with_graphs([*vars(part).values()]))
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in kept})


def _with_graphs(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and not value.is_leaf:
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from _with_graphs(value.values() if isinstance(value, dict) else value)


def parameter_names(function: Callable[..., Any]) -> set[str]:
    """Return the names of the parameters that a function or a class takes by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a callable written in C may have no signature
        return set()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name for parameter in parameters if parameter.kind in by_name}
