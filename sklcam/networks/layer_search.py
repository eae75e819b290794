"""Which layer of a network to explain: the usual one of its family, or the last that has places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision import models as zoo

from sklcam._validation import check_tensor, describe
from sklcam.networks._dry_run import _run_dry, _unwrap
from sklcam.networks.layers import TargetLayer
from sklcam.networks.zoo import _closest


def find_target_layer(
    model: nn.Module, target_layer: str | TargetLayer = "auto", *, sample: Tensor | None = None
) -> TargetLayer:
    """Find the layer to explain, by name or by the network's family.

    Parameters
    ----------
    model : nn.Module
        A torchvision network, or any other.
    target_layer : str or TargetLayer, default="auto"
        A dotted name; a `TargetLayer` where the layout cannot be guessed from the class of the
        network; or "auto": the usual layer of torchvision's families, and for any other network the
        last of those that run once and give a Tensor of four axes with more than one position.
    sample : float Tensor of shape (1, channels, height, width) or None, default=None
        "auto" on networks of no known family needs it, for one dry run that leaves the network as
        it was found.

    Returns
    -------
    TargetLayer

    Raises
    ------
    ValueError
        If there is no such layer, or a sample is needed to find one.

    Examples
    --------
    >>> from sklcam.networks import build_model, find_target_layer
    >>> find_target_layer(build_model("squeezenet1_1", n_classes=3))
    TargetLayer(name='features.12', layout='nchw', grid=None, n_prefix=0, reshape=None)
    """
    model = _unwrap(model)
    if sample is not None:
        check_tensor("sample", sample, "1", "channels", "height", "width")
    if isinstance(target_layer, TargetLayer):
        return replace(target_layer, name=_known_layer(model, target_layer.name))
    if not isinstance(target_layer, str):
        raise ValueError(
            "target_layer must be a layer's dotted name, such as 'features.3', a TargetLayer or "
            f"'auto'; got {describe(target_layer)}."
        )
    if target_layer != "auto":
        return _named_layer(model, _known_layer(model, target_layer))
    layer = _usual_layer(model)
    if layer is not None:
        return layer
    if sample is None:
        raise ValueError(
            f"No target layer is known for {type(model).__name__}: name one, as in "
            "target_layer='features.3', or give a sample to find one by a dry run."
        )
    return _last_spatial_layer(model, sample)


def _child(*path: str | int) -> str:
    return ".".join(map(str, path))


def _last_convnext_block(model: Any) -> TargetLayer:
    return TargetLayer(_child("features", len(model.features) - 1, len(model.features[-1]) - 1))


def _last_feature(model: Any) -> TargetLayer:
    return TargetLayer(_child("features", len(model.features) - 1))


def _before_last_pooling(model: Any) -> TargetLayer:
    return TargetLayer(_child("features", len(model.features) - 2))


def _last_vit_norm(model: Any) -> TargetLayer:
    # At the block's output only the class token has a gradient; before the attention, all have.
    return _vit_tokens(
        model, _child("encoder.layers", f"encoder_layer_{len(model.encoder.layers) - 1}", "ln_1")
    )


def _vit_tokens(model: Any, name: str) -> TargetLayer:
    side = model.image_size // model.patch_size
    return TargetLayer(name, layout="tokens", grid=(side, side), n_prefix=1)


def _layer(name: str, layout: Literal["nchw", "nhwc"] = "nchw") -> Callable[[Any], TargetLayer]:
    return lambda model: TargetLayer(name, layout)


_USUAL_LAYERS: tuple[tuple[type[nn.Module], Callable[[Any], TargetLayer]], ...] = (
    (zoo.ResNet, _layer("layer4")),
    (zoo.ConvNeXt, _last_convnext_block),
    (zoo.VGG, _before_last_pooling),
    (zoo.AlexNet, _before_last_pooling),
    (zoo.DenseNet, _layer("features")),
    (zoo.GoogLeNet, _layer("inception5b")),
    (zoo.Inception3, _layer("Mixed_7c")),
    (zoo.MobileNetV2, _last_feature),
    (zoo.MobileNetV3, _last_feature),
    (zoo.EfficientNet, _last_feature),
    (zoo.RegNet, _layer("trunk_output")),
    (zoo.ShuffleNetV2, _layer("conv5")),
    (zoo.SqueezeNet, _last_feature),
    (zoo.MNASNet, _layer("layers")),
    (zoo.VisionTransformer, _last_vit_norm),
    (zoo.SwinTransformer, _layer("norm", "nhwc")),
    (zoo.MaxVit, lambda model: TargetLayer(_child("blocks", len(model.blocks) - 1))),
)


def _usual_layer(model: nn.Module) -> TargetLayer | None:
    for family, find in _USUAL_LAYERS:
        if isinstance(model, family):
            return find(model)
    return None


def _known_layer(model: nn.Module, name: str) -> str:
    known = [layer for layer, _ in model.named_modules() if layer]
    found = name.removeprefix("_orig_mod.")
    if found in known:
        return found
    raise ValueError(
        f"{type(model).__name__} has no layer {name!r}.{_closest(found, known)} "
        "model.named_modules() lists all."
    )


def _named_layer(model: nn.Module, name: str) -> TargetLayer:
    prefix, network = _network_around(model, name)
    inner = name[len(prefix) :]
    if isinstance(network, zoo.VisionTransformer) and inner.startswith("encoder"):
        return _vit_tokens(network, name)
    # A convolution cuts the patches, and a permutation to channels first follows the last norm.
    channels_last = inner.startswith(("features", "norm")) and not isinstance(
        model.get_submodule(name), nn.Conv2d
    )
    if isinstance(network, zoo.SwinTransformer) and channels_last:
        return TargetLayer(name, layout="nhwc")
    return TargetLayer(name)


def _network_around(model: nn.Module, name: str) -> tuple[str, nn.Module | None]:
    """The innermost torchvision network that holds a layer, and the prefix of its layers' names."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        network = model.get_submodule(".".join(parts[:depth]))
        if _usual_layer(network) is not None:
            return "".join(f"{part}." for part in parts[:depth]), network
    return "", None


def _last_spatial_layer(model: nn.Module, sample: Tensor) -> TargetLayer:
    finished = _finished_layers(model, sample)
    # A layer that runs twice, such as a ReLU used after every convolution, has no one output.
    runs = Counter(name for name, _ in finished)
    spatial = [name for name, shape in finished if runs[name] == 1 and _is_spatial(shape)]
    if not spatial:
        raise ValueError(
            f"No layer of {type(model).__name__} gives a Tensor (n, K, u, v) with more than one "
            f"position for a sample of shape {tuple(sample.shape)}. Grad-CAM needs a layer with a "
            "spatial output: name it, as a TargetLayer where the axes are others."
        )
    # A torchvision network inside (behind a normalisation, say) has its usual layer, if that ran.
    prefix, network = _network_around(model, spatial[-1])
    usual = None if network is None else _usual_layer(network)
    if usual is not None and prefix + usual.name in dict(finished):
        return replace(usual, name=prefix + usual.name)
    return TargetLayer(spatial[-1])


def _finished_layers(model: nn.Module, sample: Tensor) -> list[tuple[str, torch.Size | None]]:
    """Names and output shapes of the layers as they finish: a container after its entries."""
    finished: list[tuple[str, torch.Size | None]] = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            finished.append((name, output.shape if isinstance(output, Tensor) else None))

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(record(name)).remove)
        _run_dry(model, sample)
    return finished


def _is_spatial(shape: torch.Size | None) -> bool:
    return shape is not None and len(shape) == 4 and shape[2] * shape[3] > 1


def single_position(
    layer: TargetLayer, activations: Tensor, image_size: tuple[int, int]
) -> str | None:
    """Return what is wrong with a layer's activations if they are those of a single position."""
    rows, columns = layer.to_grid(activations).shape[-2:]
    if rows * columns > 1:
        return None
    return (
        f"The target layer {layer.name!r} has a single position for images of {image_size[0]} x "
        f"{image_size[1]} pixels, so that every map is constant; use a larger image_size or an "
        "earlier target_layer."
    )
