"""Nets that train only their head, for some epochs or for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skorch import NeuralNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sklcam.networks.dry_run import run_dry, unwrap
from sklcam.training._statistics import RecalibratingNet


@dataclass
class Trunk:
    """Everything before a network's head: its parts, and the parameters that would be trained."""

    parts: tuple[nn.Module, ...] = ()
    parameters: tuple[nn.Parameter, ...] = ()
    is_frozen: bool = False

    def __reduce__(self) -> tuple[type[Trunk], tuple[()]]:
        return Trunk, ()  # a callback may pickle the net in training; its copy finds its own trunk


def trunk_of(module: nn.Module, sample: Tensor) -> Trunk:
    """Return what comes before the head of a network.

    The head is the last layer that has weights, or several consecutive linear ones with the same
    numbers of features and outputs, and whatever follows. Parameters that a network holds itself,
    such as a token, belong to the trunk.

    Parameters
    ----------
    module : nn.Module
    sample : Tensor of shape (1, channels, height, width)

    Returns
    -------
    Trunk

    Raises
    ------
    ValueError
        If the last layer with weights has a different number of outputs, or nothing before it.
    """
    module = unwrap(module)
    ran: list[nn.Module] = []
    handles = [
        part.register_forward_hook(lambda part, inputs, output: ran.append(part))
        for part in module.modules()
        if [*part.parameters(recurse=False)]
    ]
    try:
        output = run_dry(module, sample)
    finally:
        for handle in handles:
            handle.remove()
    n_outputs = output.shape[-1] if output.ndim > 1 else 1
    at = [i for i, part in enumerate(ran) if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d)]
    start = len(ran)
    if at and _widths(ran[at[-1]])[1] == n_outputs:
        start = at.pop()
        head = _widths(ran[start])
        # Several heads take the same features. A layer before a head may have the same width by
        # chance.
        while at and head[0] != head[1] and _are_heads(ran[at[-1]], ran[start]):
            start = at.pop()
    if start == len(ran) or not at:
        lacks = "nothing before it" if start < len(ran) else "no such layer at its end"
        raise ValueError(
            "freeze stops the training of everything before the head, a linear or convolutional "
            f"layer with {n_outputs} output(s); {type(module).__name__} has {lacks}. Set "
            "requires_grad=False on the parameters not to be trained, and give the network as an "
            "instance."
        )
    behind = {
        id(part) for part in ran[start:] if part is ran[start] or ran[start] not in part.modules()
    }
    parts = tuple(part for part in module.modules() if id(part) not in behind)
    own = [parameter for part in parts for parameter in part.parameters(recurse=False)]
    return Trunk(parts, tuple(parameter for parameter in own if parameter.requires_grad))


def _are_heads(one: nn.Module, other: nn.Module) -> bool:
    are_linear = isinstance(one, nn.Linear) and isinstance(other, nn.Linear)
    return are_linear and _widths(one) == _widths(other)


def _widths(layer: Any) -> tuple[int, int]:
    """Return how many features a layer takes, and how many it returns."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


class FreezingNet(RecalibratingNet):
    """A skorch net that can freeze all of its network except the head."""

    freeze: str | int | None = None
    _trunk: Trunk | None = None

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        self._trunk = None if self.freeze is None else trunk_of(self.module_, self._sample())
        try:
            return super().fit_loop(X, y, epochs, **kwargs)
        finally:
            self._freeze(False)
            self._trunk = None

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        super().on_epoch_begin(net, **kwargs)
        # Epochs are counted from the network's first one, through partial_fit and files.
        self._freeze(self.freeze == "trunk" or len(self.history) <= int(self.freeze or 0))

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self._freeze(False)  # callbacks may keep the network, to be trained on
        super().on_epoch_end(net, **kwargs)

    def _freeze(self, is_frozen: bool) -> None:
        if self._trunk is not None:
            self._trunk.is_frozen = is_frozen
            for parameter in self._trunk.parameters:
                # Without a gradient, the optimizer skips it and keeps no state for it.
                parameter.requires_grad_(not is_frozen)

    def _set_training(self, training: bool = True) -> None:
        super()._set_training(training)
        if self._trunk is not None and self._trunk.is_frozen:
            for part in self._trunk.parts:
                if isinstance(part, _NormBase):  # whose statistics would follow the images
                    part.eval()
