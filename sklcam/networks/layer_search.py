"""Which layer of a network to explain: its family's, or the last with a spatial output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import MutableMapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.weak import WeakTensorKeyDictionary

from sklcam._validation import check_tensor, describe, suggestion
from sklcam.networks.dry_run import check_explainable, exclusive, run_dry, unwrap
from sklcam.networks.families import Family, find_family
from sklcam.networks.layers import TargetLayer


def find_target_layer(
    model: nn.Module, target_layer: str | TargetLayer = "auto", *, sample: Tensor | None = None
) -> TargetLayer:
    """Find the layer to explain, by name or by the network's family.

    Parameters
    ----------
    model : nn.Module
        A network of a known family, or any other.
    target_layer : str or TargetLayer, default="auto"
        A dotted name; a `TargetLayer` where the layout cannot be guessed from the class of the
        network or by a dry run; or "auto": the usual layer of a known family, and for any other
        network the last of those that run once and give a Tensor of four axes with more than one
        position.
    sample : float Tensor of shape (1, channels, height, width) or None, default=None
        "auto" on networks of an unknown family needs it, for one dry run that leaves the network as
        it was found. With it, a named layer is recognised as (n, u, v, K) where layers work along
        its last axis, as `nn.Linear` and `nn.LayerNorm` do.

    Returns
    -------
    TargetLayer

    Raises
    ------
    ValueError
        If there is no such layer, its layout cannot be told, every layer runs several times, or a
        sample is needed to find one; or if the network is one whose layers cannot be looked into:
        traced, scripted, quantized, or made in inference mode.

    Examples
    --------
    >>> from sklcam.networks import build_model, find_target_layer
    >>> find_target_layer(build_model("squeezenet1_1", n_classes=3))
    TargetLayer(name='features.12', layout='nchw', grid=None, n_prefix=0, reshape=None, run=None)
    """
    model = unwrap(model)
    check_explainable(model)
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
        name = _known_layer(model, target_layer)
        prefix, network, family = _network_around(model, name)
        if family is None:
            return _named_layer(model, name, sample)
        layer = family.target_layer(network, name.removeprefix(prefix))
        return replace(layer, name=name)
    family = find_family(model)
    if family is not None:
        return family.usual_layer(model)
    if sample is None:
        raise ValueError(
            f"No target layer is known for {type(model).__name__}: name one, as in "
            "target_layer='features.3', or give a sample to find one by a dry run."
        )
    return _last_spatial_layer(model, sample)


def _known_layer(model: nn.Module, name: str) -> str:
    known = [layer for layer, _ in model.named_modules(remove_duplicate=False) if layer]
    found = name.removeprefix("_orig_mod.")  # so a compiled network calls its layers
    if found in known:
        return found
    raise ValueError(
        f"{type(model).__name__} has no layer {name!r}. {suggestion(found, known)} "
        "model.named_modules() lists all."
    )


def _network_around(model: nn.Module, name: str) -> tuple[str, nn.Module, Family | None]:
    """Return the innermost network of a known family that holds a layer, and its layers' prefix."""
    parts = name.split(".")
    # From the inside, as a known network may be a part of another.
    for depth in range(len(parts) - 1, -1, -1):
        network = model.get_submodule(".".join(parts[:depth]))
        family = find_family(network)
        if family is not None:
            return "".join(f"{part}." for part in parts[:depth]), network, family
    return "", model, None


class _Finished(NamedTuple):
    """A layer that has run in a dry run, and its output's axes; none if it is not a tensor."""

    name: str
    shape: tuple[int, ...]
    layouts: set[str]

    def target(self) -> TargetLayer:
        """Return the layer as a target; a ValueError if its layout cannot be told."""
        if len(self.layouts) > 1:
            raise ValueError(
                f"Whether {self.name!r}, of shape {self.shape}, gives (n, K, u, v) or "
                f"(n, u, v, K) cannot be told; say so, as in TargetLayer({self.name!r}, "
                'layout="nhwc").'
            )
        return TargetLayer(self.name, layout="nhwc" if "nhwc" in self.layouts else "nchw")

    @property
    def n_positions(self) -> int:
        if len(self.shape) != 4:
            return 0
        return math.prod(self.shape[1:3] if self.layouts == {"nhwc"} else self.shape[2:])


def _named_layer(model: nn.Module, name: str, sample: Tensor | None) -> TargetLayer:
    """Return a layer of an unknown network, in the layout that a dry run shows."""
    finished: list[_Finished] = []
    if sample is not None:
        with suppress(ValueError):  # an adapter may call the network in another way
            finished = _finished_layers(model, sample)
    part = model.get_submodule(name)
    for layer in reversed(finished):
        if model.get_submodule(layer.name) is part and len(layer.shape) == 4:
            return replace(layer.target(), name=name)
    return TargetLayer(name)


def _last_spatial_layer(model: nn.Module, sample: Tensor) -> TargetLayer:
    finished = _finished_layers(model, sample)
    # A layer that runs twice, such as a ReLU used after every convolution, has no one output; and
    # one with more rows than the sample has images holds several views of each.
    runs = Counter(layer.name for layer in finished)
    spatial = [
        layer for layer in finished if layer.n_positions > 1 and layer.shape[0] == len(sample)
    ]
    if not spatial:
        raise ValueError(
            f"No layer of {type(model).__name__} gives a Tensor (n, K, u, v) with more than one "
            f"position for a sample of shape {tuple(sample.shape)}. Grad-CAM needs a layer with a "
            "spatial output: name it, as a TargetLayer where the axes are others."
        )
    once = [layer for layer in spatial if runs[layer.name] == 1]
    found = (once or spatial)[-1]
    # A known network inside (behind a normalisation, say) has its usual layer, if that ran.
    prefix, network, family = _network_around(model, found.name)
    usual = None if family is None else family.usual_layer(network)
    name = found.name if usual is None else prefix + usual.name
    if not once:
        raise ValueError(
            f"Every layer of {type(model).__name__} with a spatial output runs several times in a "
            f"pass, so that none is the one to explain; say which run is, as in "
            f"TargetLayer({name!r}, run=0) for the first or run=-1 for the last."
        )
    if usual is not None and runs[name] == 1:
        return replace(usual, name=name)
    return found.target()


def _finished_layers(model: nn.Module, sample: Tensor) -> list[_Finished]:
    """Return the layers of a dry run as they finish: a container after its entries."""
    finished: list[_Finished] = []
    layouts_of: MutableMapping[Tensor, set[str]] = WeakTensorKeyDictionary()

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        strides = output.stride() if shape else ()
        own = _channel_axes(module, shape)
        seen[module] = own.union(*(seen.get(part, ()) for part in module.modules()))
        # Those of an entry tell nothing of a container that ends with other channels.
        is_grid = len(shape) == 4
        layouts = {layout for layout, axis, size in seen[module] if is_grid and shape[axis] == size}
        given = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        before = set() if given is None else layouts_of.get(given, set())
        if given is not None and (given.shape, given.stride()) == (shape, strides):
            layouts |= set() if layouts else before  # an activation keeps the axes as they were
        if any(layout == "nhwc" for layout, *_ in own) and not before:
            before.add("nhwc")  # nor does what came before tell, such as a permutation
        if is_grid:
            layouts = layouts_of.setdefault(output, layouts)
        finished.append(_Finished(name, shape, layouts))

    seen: dict[nn.Module, set[tuple[str, int, int]]] = {}
    with ExitStack() as hooks:
        hooks.enter_context(exclusive(model))
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(partial(note, name)).remove)
        run_dry(model, sample)
    return finished


def _channel_axes(module: nn.Module, shape: tuple[int, ...]) -> set[tuple[str, int, int]]:
    """Return which axis of four a layer has worked along as channels: the layout, axis and size."""
    if len(shape) != 4:
        return set()
    first, last = ("nchw", 1, shape[1]), ("nhwc", -1, shape[-1])
    if isinstance(module, nn.modules.conv._ConvNd | _NormBase | nn.GroupNorm):
        return {first}
    if isinstance(module, nn.Linear):
        return {last}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1:
        # There are subclasses that bring the channels to the end for the norm, and back again.
        (size,) = module.normalized_shape
        if size != shape[1] or type(module) in (nn.LayerNorm, nn.RMSNorm):
            return {last}
        return {first} if size != shape[-1] else set()
    return set()
