"""Networks: by name from torchvision, or made from a class, a callable or an instance.

Networks by name get the head and the stem that the data asks for.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

from sklcam._validation import check_count, check_size, describe, suggestion
from sklcam.networks.dry_run import unwrap
from sklcam.networks.weights import fill, find_weights, stem_name


def available_models() -> list[str]:
    """List the names that `build_model` takes.

    Returns
    -------
    list of str
        The classification networks of the installed torchvision, sorted.

    Examples
    --------
    >>> from sklcam.networks import available_models
    >>> "resnet18" in available_models()
    True
    """
    return models.list_models(module=models)


def build_model(
    name: str,
    *,
    n_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (224, 224),
    weights: str | os.PathLike[str] | WeightsEnum | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a torchvision network with a head and a stem of the wanted size.

    Parameters
    ----------
    name : str
        One of `available_models()`, in any case.
    n_classes : int
        Number of outputs. The head of the weights is kept when it has as many, and is a fresh one
        otherwise.
    in_channels : int, default=3
        Channels of the images. The first convolution of the weights is averaged over its input
        channels and repeated, so that it answers a grey image as it did before; a random one is
        drawn with the same spread.
    image_size : tuple of int (height, width), default=(224, 224)
        Only a network whose parameters depend on it (vit, maxvit) needs it. Positional embeddings
        of weights for another size are interpolated.
    weights : str, path or None, default=None
        None for random initialisation, "DEFAULT", one of the network's torchvision weights
        ("IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"), or the path of a file with a state
        dict.
    **kwargs
        For torchvision's builder of that network, such as ``dropout``.

    Returns
    -------
    nn.Module
        In training mode; it maps a float Tensor of shape (n, in_channels, height, width) to logits
        of shape (n, n_classes), in training as in evaluation.

    Raises
    ------
    ValueError
        If the name, the weights or the image size do not fit.
    OSError
        If torchvision's weights cannot be downloaded.

    Notes
    -----
    GoogLeNet and Inception are built without their auxiliary heads. With three channels they
    rescale ImageNet's normalisation to the one their published weights expect (`transform_input`),
    whatever the weights are, so that a state dict means the same network wherever it came from.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks import build_model
    >>> model = build_model("squeezenet1_1", n_classes=3, in_channels=1)
    >>> model(torch.zeros(2, 1, 64, 64)).shape
    torch.Size([2, 3])
    """
    name = _known_name(name)
    check_count("n_classes", n_classes)
    check_count("in_channels", in_channels)
    image_size = check_size(image_size, "image_size")
    if not isinstance(weights, str | os.PathLike | WeightsEnum | None):
        raise ValueError(f"weights must be a name, a path or None; got {describe(weights)}.")
    source = None if weights is None else find_weights(name, weights)
    options = {**_builder_options(name, in_channels, image_size), **kwargs}
    # Without weights: torchvision's builders would insist on the head that these were made for.
    model = models.get_model(name, weights=None, num_classes=n_classes, **options)
    model.built_as = {  # so that a file can name it
        **{"name": name, "n_classes": n_classes, "in_channels": in_channels},
        **{"image_size": image_size, **kwargs},
    }
    if in_channels != 3:
        _redraw_stem(model, in_channels)
    if source is not None:
        fill(model, source)
    return model


def _known_name(name: str) -> str:
    known = available_models()
    if str(name).lower() in known:
        return str(name).lower()
    raise ValueError(
        f"Unknown model {name!r}. {suggestion(str(name).lower(), known)} available_models() lists "
        "all names; for any other network pass an nn.Module, its class or a callable that returns "
        "one."
    )


def _builder_options(name: str, in_channels: int, image_size: tuple[int, int]) -> dict[str, Any]:
    if name in ("googlenet", "inception_v3"):
        # Torchvision warns when init_weights is left to its default.
        return {"aux_logits": False, "init_weights": True, "transform_input": in_channels == 3}
    if name.startswith("vit_"):
        return {"image_size": _patchable_side(name, image_size)}
    if name.startswith("maxvit"):
        return {"input_size": tuple(image_size)}
    return {}


def _patchable_side(name: str, image_size: tuple[int, int]) -> int:
    patch = int(name.rsplit("_", 1)[-1])  # torchvision ends the name with it: vit_b_16
    height, width = image_size
    if height == width and height > 0 and height % patch == 0:
        return height
    side = patch * max(1, round(min(height, width) / patch))
    raise ValueError(
        f"{name} takes square images whose side is a multiple of {patch}, got "
        f"image_size={tuple(image_size)}; ({side}, {side}) fits."
    )


def _redraw_stem(model: nn.Module, in_channels: int) -> None:
    stem = model.get_submodule(stem_name(model) or "")
    assert isinstance(stem, nn.Conv2d)
    old = stem.weight.detach()
    # Torchvision's spread goes by the outputs, so it is right for any number of channels.
    kernel = old.new_empty(old.shape[0], in_channels, *old.shape[2:])
    stem.weight = nn.Parameter(kernel.normal_().mul_(old.std()))
    stem.in_channels = in_channels


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
    named = parameter_names(module) - kwargs.keys()
    sizes = {"num_classes": n_classes, "n_classes": n_classes, "in_channels": in_channels}
    if {"num_classes", "n_classes"} & kwargs.keys():  # two names of one thing
        sizes = {"in_channels": in_channels}
    wanted = {name: size for name, size in sizes.items() if name in named}
    model = module(**wanted, **kwargs)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"module must return an nn.Module; {describe(module)}, returned {describe(model)}."
        )
    return model


def copy_instance(module: nn.Module, kwargs: dict[str, Any], name: str) -> nn.Module:
    """Copy a module that was given as a parameter; an error if it is to take parameters itself."""
    if kwargs:
        raise ValueError(
            f"{name} is an instance of {type(module).__name__}, which takes no parameters any "
            f"more, got {', '.join(sorted(kwargs))}; pass its class instead."
        )
    module = unwrap(module)
    # What a network has kept of its last pass hangs on a graph, which cannot be copied.
    kept = (tensor for part in module.modules() for tensor in _with_graphs([*vars(part).values()]))
    return copy.deepcopy(module, {id(tensor): tensor.detach().clone() for tensor in kept})


def _with_graphs(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and not value.is_leaf:
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from _with_graphs(value.values() if isinstance(value, dict) else value)


def parameter_names(function: Callable[..., Any]) -> set[str]:
    """Return the parameters that a function, or a class, takes by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a callable written in C may have no signature
        return set()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name for parameter in parameters if parameter.kind in by_name}
