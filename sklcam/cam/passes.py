"""Forward passes that several methods share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sklcam._callers import level_of_user
from sklcam.cam.base import Method
from sklcam.cam.recorded import RecordedPass
from sklcam.cam.targets import Target
from sklcam.networks.inputs import Inputs
from sklcam.networks.layers import TargetLayer


def sharing_a_pass(methods: Sequence[Method]) -> list[list[int]]:
    """Group the positions of methods that can share a forward pass.

    A rule changes the backward pass, so a method with a rule needs a forward pass of its own. All
    other methods differ only in how much of the graph they need.
    """
    with_rule = [i for i, method in enumerate(methods) if method.rule() is not None]
    plain = [i for i in range(len(methods)) if i not in with_rule]
    # Methods that need the graph come first: it is freed before the others run the network often.
    plain.sort(key=lambda i: methods[i].graph is None)
    return [*([plain] if plain else []), *([i] for i in with_rule)]


def record_for(
    methods: Sequence[Method],
    network: nn.Module,
    layers: Sequence[TargetLayer],
    inputs: Inputs | Tensor,
    target: Target | None = None,
    *,
    forward: Callable[[Inputs], Tensor] | None = None,
    top_channels: int | None = None,
    extent: tuple[float, float] = (1.0, 1.0),
    probabilities: Callable[[Tensor], Tensor] | None = None,
    autocast: torch.dtype | None = None,
) -> RecordedPass:
    """Run a batch through the network once for all of these methods.

    Parameters
    ----------
    methods : sequence of Method
        The methods of one group of :func:`sharing_a_pass`.
    network, layers, inputs, target, forward, top_channels, extent, probabilities
        See :class:`RecordedPass`.
    autocast : torch.dtype or None, default=None
        See :class:`RecordedPass`.

    Returns
    -------
    RecordedPass

    Warns
    -----
    UserWarning
        If a method changes the backward pass of some kind of layer, and there is no such layer.
    """
    for method in methods:
        method.check()
    graphs = {method.graph for method in methods}
    rule = methods[0].rule() if len(methods) == 1 else None
    recorded = RecordedPass(
        network,
        # A layer that no method uses need not even run.
        layers if any(method.uses_layers for method in methods) else (),
        inputs,
        target,
        forward=forward,
        # The backward pass to the images passes through the layers, so it serves both.
        graph="images" if "images" in graphs else "head" if "head" in graphs else None,
        rule=rule,
        resumable=any(method.resumes for method in methods),
        # The layers' gradients are computed once for all methods. Gradients of the images and of
        # other scores follow.
        keep_graph=len(methods) > 1
        and ("images" in graphs or any(method.asks_another_question for method in methods)),
        top_channels=top_channels,
        extent=extent,
        probabilities=probabilities,
        autocast=autocast,
    )
    if rule is not None and rule.idle:
        warnings.warn(
            f"{methods[0]!r} {rule.idle} Try an earlier target layer.", stacklevel=level_of_user()
        )
    return recorded
