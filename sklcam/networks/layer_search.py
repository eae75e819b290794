"""Which layer of a network to explain: its family's, or the last with a spatial output."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from sklcam._validation import check_tensor, describe, suggestion
from sklcam.networks.dry_run import run_dry, unwrap
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
        network; or "auto": the usual layer of a known family, and for any other network the last
        of those that run once and give a Tensor of four axes with more than one position.
    sample : float Tensor of shape (1, channels, height, width) or None, default=None
        "auto" on networks of an unknown family needs it, for one dry run that leaves the network as
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
    model = unwrap(model)
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
            return TargetLayer(name)
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
    known = [layer for layer, _ in model.named_modules() if layer]
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


def _last_spatial_layer(model: nn.Module, sample: Tensor) -> TargetLayer:
    finished = _finished_layers(model, sample)
    # A layer that runs twice, such as a ReLU used after every convolution, has no one output.
    runs = Counter(name for name, _ in finished)
    spatial = [
        name
        for name, shape in finished
        if runs[name] == 1 and len(shape) == 4 and shape[2] * shape[3] > 1
    ]
    if not spatial:
        raise ValueError(
            f"No layer of {type(model).__name__} gives a Tensor (n, K, u, v) with more than one "
            f"position for a sample of shape {tuple(sample.shape)}. Grad-CAM needs a layer with a "
            "spatial output: name it, as a TargetLayer where the axes are others."
        )
    # A known network inside (behind a normalisation, say) has its usual layer, if that ran.
    prefix, network, family = _network_around(model, spatial[-1])
    if family is not None:
        usual = family.usual_layer(network)
        if runs[prefix + usual.name]:
            return replace(usual, name=prefix + usual.name)
    return TargetLayer(spatial[-1])


def _finished_layers(model: nn.Module, sample: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and output shapes of the layers as they finish: a container after its entries.

    What is not a tensor has no axes.
    """
    finished: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        finished.append((name, tuple(output.shape) if isinstance(output, Tensor) else ()))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(partial(note, name)).remove)
        run_dry(model, sample)
    return finished
