"""Networks that cannot be trained on their maps, and what to do about it."""

from __future__ import annotations

from torch import Tensor, nn

from sklcam.networks.layer_search import layer_instead
from sklcam.networks.layers import TargetLayer
from sklcam.networks.trunk import is_bypassed


def check_kernels(module: nn.Module) -> None:
    """Raise a ValueError if a network's attention has no second derivative."""
    for part in module.modules():
        kernels = getattr(getattr(part, "config", None), "_attn_implementation", None)
        if isinstance(kernels, str) and kernels not in ("eager", "sdpa"):
            raise ValueError(
                f"A loss on maps is differentiated twice, and attn_implementation={kernels!r} of "
                f"{type(part).__name__} does not support that. Call "
                '`set_attn_implementation("sdpa")` on the network before training.'
            )


def check_heads(module: nn.Module) -> None:
    """Raise a ValueError if a network predicts with a head that would not be trained."""
    if getattr(module, "distilled_training", False) is True:
        raise ValueError(
            f"{type(module).__name__} returns the outputs of two heads in distilled training, of "
            "which only the first would be trained, but predicts with their mean. Call "
            "`set_distilled_training(False)` on it to train both."
        )


def check_bottleneck(module: nn.Module, layer: TargetLayer, sample: Tensor) -> None:
    """Raise a ValueError if a view's gradient cannot pass back through the layer alone.

    Parameters
    ----------
    module : nn.Module
        It is set to evaluation mode.
    layer : TargetLayer
    sample : Tensor of shape (1, channels, height, width)
    """
    if not is_bypassed(module.eval(), layer.of(module), sample):
        return
    instead = layer_instead(module, layer, sample)
    remedy = "Use " if instead is None else f"Name target_layer={instead!r}, which works, or use "
    raise ValueError(
        'memory="low" takes the gradient of a view through the target layer alone, but '
        f'{layer.name!r} is bypassed on the way to the output. {remedy}memory="normal".'
    )
