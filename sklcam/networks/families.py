"""Families of networks: what is known of their layers, one entry per family.

To add a family, add an entry to `FAMILIES`, and a small member of it to the list in
``tests/networks/test_families.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision import models

from sklcam.networks.layers import TargetLayer


@dataclass(frozen=True)
class Family:
    """Networks of one architecture.

    Parameters
    ----------
    kind : type of nn.Module
        The class of the networks.
    usual : str
        The path of the layer that is explained by default. A negative number counts the entries of
        a container from the end, as in ``"features.-1"``.
    target_layer : callable
        Takes the network and the name of any of its layers, and returns the `TargetLayer`. By
        default, layers output (n, K, u, v).
    auxiliary_heads : tuple of str, default=()
        Prefixes of the names of heads that only training uses. Published weights may have them.
    """

    kind: type[nn.Module]
    usual: str
    target_layer: Callable[[Any, str], TargetLayer] = lambda network, name: TargetLayer(name)
    auxiliary_heads: tuple[str, ...] = ()

    def usual_layer(self, network: nn.Module) -> TargetLayer:
        """Return the layer that is explained by default."""
        names: list[str] = []
        for part in self.usual.split("."):
            children = [name for name, _ in network.get_submodule(".".join(names)).named_children()]
            names.append(children[int(part)] if part.startswith("-") else part)
        return self.target_layer(network, ".".join(names))

    def is_plain(self, network: nn.Module) -> bool:
        """Whether a network is as its class builds it, up to the usual layer.

        What is known of a class holds for no other network: a forward method of its own, a hook or
        an unknown part may turn, shift or crop the images on their way.
        """
        methods = {name: each for name, each in vars(self.kind).items() if callable(each)}
        methods.pop("__init__", None)
        if any(getattr(type(network), name) is not each for name, each in methods.items()):
            return False
        if not methods.keys().isdisjoint(vars(network)):
            return False
        usual = self.usual_layer(network).of(network)
        for part in network.modules():
            if "forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks:
                return False
            if not type(part).__module__.startswith(_PLAIN) and part is not network:
                return False
            if part is usual:  # the head, which is registered after it, may be replaced
                break
        return True


# The modules whose classes the families consist of. None of these classes moves its input.
_PLAIN = (
    "torchvision.models.",
    "torchvision.ops.",
    "torch.nn.utils.parametri",
    "efficientnet_lite_pytorch.",
    *(
        f"torch.nn.modules.{name}"
        for name in (
            *("activation", "batchnorm", "container", "conv", "dropout", "instancenorm", "linear"),
            *("normalization", "pooling"),
        )
    ),
)


def _of_vision_transformer(network: models.VisionTransformer, name: str) -> TargetLayer:
    if not name.startswith("encoder"):
        return TargetLayer(name)
    side = network.image_size // network.patch_size
    return TargetLayer(name, layout="tokens", grid=(side, side), n_prefix=1)


def _of_swin_transformer(network: models.SwinTransformer, name: str) -> TargetLayer:
    # A convolution makes the patches, and a permutation to channels first follows the last norm.
    is_convolution = isinstance(network.get_submodule(name), nn.Conv2d)
    channels_last = name.startswith(("features", "norm")) and not is_convolution
    return TargetLayer(name, layout="nhwc" if channels_last else "nchw")


def _of_conv_next(network: models.ConvNeXt, name: str) -> TargetLayer:
    # Within a block, a permutation moves the channels to the end; the last part moves them back.
    path, _, place = name.rpartition(".")
    is_inside = path.endswith(".block") and place in ("1", "2", "3", "4", "5")
    return TargetLayer(name, layout="nhwc" if is_inside else "nchw")


FAMILIES = (
    Family(models.ResNet, "layer4"),
    Family(models.ConvNeXt, "features.-1.-1", _of_conv_next),
    Family(models.VGG, "features.-2"),  # before the last pooling
    Family(models.AlexNet, "features.-2"),
    Family(models.DenseNet, "features"),
    Family(models.GoogLeNet, "inception5b", auxiliary_heads=("aux1.", "aux2.")),
    Family(models.Inception3, "Mixed_7c", auxiliary_heads=("AuxLogits.",)),
    Family(models.MobileNetV2, "features.-1"),
    Family(models.MobileNetV3, "features.-1"),
    Family(models.EfficientNet, "features.-1"),
    Family(models.RegNet, "trunk_output"),
    Family(models.ShuffleNetV2, "conv5"),
    Family(models.SqueezeNet, "features.-1"),
    Family(models.MNASNet, "layers"),
    # At a block's output only the class token has a gradient; before the attention, all tokens do.
    Family(models.VisionTransformer, "encoder.layers.-1.ln_1", _of_vision_transformer),
    Family(models.SwinTransformer, "norm", _of_swin_transformer),
    Family(models.MaxVit, "blocks.-1"),
)


def find_family(network: nn.Module) -> Family | None:
    """Return the family of a network; None if it is not known."""
    return next(
        (family for family in FAMILIES if isinstance(network, family.kind)), _of_package(network)
    )


def _of_package(network: nn.Module) -> Family | None:
    """Return the family of a network of a package that is an extra; None for other networks."""
    kind = lite_class(network)
    return None if kind is None else Family(kind, "_swish", _of_efficient_net_lite)


def _of_efficient_net_lite(network: nn.Module, name: str) -> TargetLayer:
    # The stem and the head share one activation module; the output of its second run is pooled.
    return TargetLayer(name, run=1 if name == "_swish" else None)


def lite_class(network: nn.Module) -> type[nn.Module] | None:
    """Return efficientnet-lite-pytorch's class if a network is an instance of it, else None."""
    names = {f"{each.__module__}.{each.__name__}": each for each in type(network).__mro__}
    return names.get("efficientnet_lite_pytorch.model.EfficientNet")
