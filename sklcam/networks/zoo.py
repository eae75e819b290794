"""Networks by name, with the head and the stem that the data asks for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

from torch import nn
from torchvision import models as zoo
from torchvision.models import WeightsEnum

from sklcam._validation import check_count, check_size, describe
from sklcam.networks.weights import (
    _download,
    _find_weights,
    _load_state,
    _renew_blank_layers,
    _stem_name,
    load_weights,
)


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
    return zoo.list_models(module=zoo)


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
    source = None if weights is None else _find_weights(name, weights)
    options = {**_builder_options(name, in_channels, image_size), **kwargs}
    model = zoo.get_model(name, weights=None, num_classes=n_classes, **options)
    model.built_as = {  # so that a file can name it
        **{"name": name, "n_classes": n_classes, "in_channels": in_channels},
        **{"image_size": image_size, **kwargs},
    }
    if in_channels != 3:
        _redraw_stem(model, in_channels)
    if isinstance(source, WeightsEnum):
        _load_state(model, _download(source), str(source))
        _renew_blank_layers(model)
    elif source is not None:
        load_weights(model, source)
    return model


def _known_name(name: str) -> str:
    known = available_models()
    if str(name).lower() in known:
        return str(name).lower()
    raise ValueError(
        f"Unknown model {name!r}.{_closest(str(name).lower(), known)} available_models() lists all "
        "names; for any other network pass an nn.Module, its class or a callable that returns one."
    )


def _closest(name: str, candidates: Sequence[str]) -> str:
    """The end of a message about an unknown name."""
    matches = difflib.get_close_matches(name, candidates, n=5, cutoff=0.4)
    return f" Did you mean {', '.join(map(repr, matches))}?" if matches else ""


def _builder_options(name: str, in_channels: int, image_size: tuple[int, int]) -> dict[str, Any]:
    if name in ("googlenet", "inception_v3"):
        # init_weights is spelt out because torchvision warns when it is left to its default.
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
        f"image_size={tuple(image_size)}; ({side}, {side}) would do."
    )


def _redraw_stem(model: nn.Module, in_channels: int) -> None:
    stem = model.get_submodule(_stem_name(model) or "")
    assert isinstance(stem, nn.Conv2d)
    old = stem.weight.detach()
    kernel = old.new_empty(old.shape[0], in_channels, *old.shape[2:])
    stem.weight = nn.Parameter(kernel.normal_().mul_(old.std()))
    stem.in_channels = in_channels
