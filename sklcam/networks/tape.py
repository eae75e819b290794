"""The tape: layers' activations in a forward pass, and an autograd graph that grows from there.

A class activation map needs the gradient of a score with respect to one layer. What lies before
that layer needs no graph at all when explaining; when training it needs one, but the map's own
gradient still stops at the layer. Nothing here knows of maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sklcam._validation import describe


class Tape:
    """What one forward pass recorded; made by :func:`record`.

    Attributes
    ----------
    activations : Tensor
        The layer's output in the last forward pass, in the layer's own layout; of the first layer
        if there are several. A score computed from the same pass can be differentiated with respect
        to it.

    Raises
    ------
    RuntimeError
        When the activations are asked for, if no layer was named or the layer did not run.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks import record
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> with record(net, net[1]) as tape:
    ...     scores = net(torch.rand(5, 3))
    ...     print(tape.activations.shape)
    torch.Size([5, 4])
    """

    def __init__(self, *layers: nn.Module, trunk: bool = False, head: bool = True) -> None:
        self._layers = layers
        self._trunk = trunk
        self._head = head
        self._activations: dict[nn.Module, Tensor] = {}

    @property
    def activations(self) -> Tensor:
        if not self._layers:
            raise RuntimeError("Nothing was recorded: no target layer was named.")
        return self.of(self._layers[0])

    def of(self, layer: nn.Module) -> Tensor:
        """Return the activations of one of the layers.

        Parameters
        ----------
        layer : nn.Module

        Returns
        -------
        Tensor

        Raises
        ------
        RuntimeError
            If the layer did not run.
        """
        if layer not in self._activations:
            raise RuntimeError(
                "Nothing was recorded: the target layer did not run in this forward pass. "
                "Name a layer that the output depends on."
            )
        return self._activations[layer]

    def begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Start a pass of the network; a hook before its forward."""
        # An earlier pass of the block has turned gradients on, at the layer.
        if not self._trunk:
            torch.set_grad_enabled(False)

    def keep(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Record a layer's output, and hand on a copy of it; a hook behind its forward."""
        if not isinstance(output, Tensor):
            raise TypeError(
                f"The target layer {type(layer).__name__} returned a {type(output).__name__}; "
                "a layer whose output is one tensor is needed."
            )
        # Without trunk, gradients are off until the first layer has turned them on.
        is_behind_another = len(self._layers) > 1 and torch.is_grad_enabled()
        if self._trunk or is_behind_another:
            activations = output
            if not activations.requires_grad:  # nothing before the layer is trained
                activations = activations.detach().requires_grad_()
        else:
            activations = output.detach()
            if activations.is_inference():  # a layer that hands on its input, in inference mode
                activations = activations.clone()
            activations.requires_grad_(self._head)
            # Stays on for the rest of the pass; the no_grad() around the block restores it.
            torch.set_grad_enabled(self._head)
        self._activations[layer] = activations
        return activations.clone()  # what follows may work in place, as ReLU often does

    def clear(self) -> None:
        """Forget the activations, so that their graph can be freed."""
        self._activations = {}

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Let passes in this block grow a graph of the head alone, though the tape records trunks.

        Their activations are a leaf. Its gradient can be taken back through the trunk later, by
        another pass.

        Examples
        --------
        >>> import torch
        >>> from torch import nn
        >>> from sklcam.networks import record
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> x = torch.rand(5, 3)
        >>> with record(net, net[1], trunk=True) as tape:
        ...     with tape.cut():
        ...         scores = net(x)
        ...     leaf = tape.activations
        ...     scores.sum().backward()  # reaches the head, net[2], and no further
        ...     _ = net(x)
        ...     tape.activations.backward(leaf.grad)
        >>> net[0].weight.grad is not None
        True
        """
        self._trunk, was = False, self._trunk
        try:
            with torch.no_grad(), _no_fused_attention():
                yield
        finally:
            self._trunk = was


@contextmanager
def record(
    module: nn.Module, *layers: nn.Module, trunk: bool = False, head: bool = True
) -> Iterator[Tape]:
    """Record layers' activations during the forward passes made inside the ``with`` block.

    Parameters
    ----------
    module : nn.Module
        The network. Its mode, hooks, gradients and flags are left as they were.
    *layers : nn.Module
        The target layers, submodules of ``module`` whose output is one tensor.
    trunk : bool, default=False
        False is for explaining: gradients are off up to the first of the layers, whose activations
        become a leaf, and on from there, so that the graph holds the head alone. True is for
        training: the graph reaches back to the parameters of the trunk, as the loss must train
        them.
    head : bool, default=True
        Without trunk, False builds no graph at all.

    Yields
    ------
    Tape

    Raises
    ------
    TypeError
        If a layer's output is not a tensor.
    ValueError
        If a layer is not part of ``module``.

    Notes
    -----
    Works for callers under ``torch.no_grad()`` and ``torch.inference_mode()``. Where a layer runs
    several times in a pass, the last run counts.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks import record
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> with record(net, net[1]) as tape:
    ...     scores = net(torch.rand(5, 3, 8, 8))
    ...     (gradient,) = torch.autograd.grad(scores[:, 0].sum(), tape.activations)
    >>> gradient.shape
    torch.Size([5, 4, 6, 6])
    """
    check_parts(module, *layers)
    tape = Tape(*layers, trunk=trunk, head=head)
    with ExitStack() as stack:
        stack.callback(tape.clear)
        stack.enter_context(torch.inference_mode(False))
        if trunk:
            stack.enter_context(torch.enable_grad())
        else:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_no_fused_attention())
        stack.callback(module.register_forward_pre_hook(tape.begin).remove)
        for layer in layers:
            stack.callback(layer.register_forward_hook(tape.keep).remove)
        yield tape


def check_parts(module: nn.Module, *layers: nn.Module) -> None:
    """Raise a ValueError unless all layers are parts of a network."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be an nn.Module; got {describe(module)}.")
    parts = set(module.modules())
    for layer in layers:
        if layer not in parts:
            raise ValueError(
                f"The target layer {type(layer).__name__} is not a part of {type(module).__name__}."
            )


@contextmanager
def _no_fused_attention() -> Iterator[None]:
    # Without gradients torch runs attention in a fused kernel that rounds differently: the
    # activations would not be those of the same pass with a graph.
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


class _Stop(Exception):
    """The layer has run, and what follows it is not needed."""


@contextmanager
def stopping_after(layer: nn.Module) -> Iterator[None]:
    """End the forward pass in the block, and the block, once a layer has run.

    Parameters
    ----------
    layer : nn.Module

    Raises
    ------
    ValueError
        If the layer is not an nn.Module.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks import record, stopping_after
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(7, 1))  # the last does not fit
    >>> with record(net, net[1]) as tape:
    ...     with stopping_after(net[1]):
    ...         _ = net(torch.zeros(4, 2))
    ...     tape.activations.shape
    torch.Size([4, 3])
    """
    if not isinstance(layer, nn.Module):
        raise ValueError(f"layer must be an nn.Module; got {describe(layer)}.")

    def stop(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        raise _Stop

    handle = layer.register_forward_hook(stop)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()
