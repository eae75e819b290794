"""One forward pass that records a layer's activations and grows the autograd graph from there on.

A class activation map needs the gradient of a score with respect to one layer. What lies before
that layer needs no graph at all when explaining; when training it needs one, but the map's own
gradient still stops at the layer. This module knows of modules and graphs, not of maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


class Tape:
    """What one forward pass recorded; made by :func:`record`.

    Attributes
    ----------
    activations : Tensor
        The layer's output in the last forward pass, in the layer's own layout. A score computed
        from the same pass can be differentiated with respect to it.
    """

    def __init__(self) -> None:
        self._activations: Tensor | None = None

    @property
    def activations(self) -> Tensor:
        if self._activations is None:
            raise RuntimeError(
                "Nothing was recorded: the target layer did not run in this forward pass. "
                "Name a layer that the output depends on."
            )
        return self._activations

    def clear(self) -> None:
        """Forget the activations, so that their graph can be freed."""
        self._activations = None


@contextmanager
def record(module: nn.Module, layer: nn.Module, *, trunk: bool = False) -> Iterator[Tape]:
    """Record a layer's activations during the forward passes made inside the ``with`` block.

    Parameters
    ----------
    module : nn.Module
        The network. Its mode, hooks, gradients and flags are left as they were.
    layer : nn.Module
        The target layer, a submodule of ``module`` whose output is one tensor.
    trunk : bool, default=False
        False is for explaining: gradients are off up to the layer, whose activations become a leaf,
        and on from there, so that the graph holds the head alone. True is for training: the graph
        reaches back to the parameters of the trunk, as the loss must train them.

    Yields
    ------
    Tape

    Raises
    ------
    TypeError
        If the layer's output is not a tensor.
    ValueError
        If ``layer`` is not part of ``module``.

    Notes
    -----
    Works for callers under ``torch.no_grad()`` and ``torch.inference_mode()``. Where the layer runs
    several times in a pass, the last run counts.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.tape import record
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> with record(net, net[1]) as tape:
    ...     scores = net(torch.rand(5, 3, 8, 8))
    ...     (gradient,) = torch.autograd.grad(scores[:, 0].sum(), tape.activations)
    >>> gradient.shape
    torch.Size([5, 4, 6, 6])
    """
    if not any(candidate is layer for candidate in module.modules()):
        raise ValueError(
            f"The target layer {type(layer).__name__} is not a part of {type(module).__name__}."
        )
    tape = Tape()
    with ExitStack() as stack:
        stack.callback(tape.clear)
        stack.enter_context(torch.inference_mode(False))
        if trunk:
            stack.enter_context(torch.enable_grad())
            handles = [layer.register_forward_hook(_keep(tape))]
        else:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_no_fused_attention())
            handles = [
                module.register_forward_pre_hook(_stop_gradients),
                layer.register_forward_hook(_cut(tape)),
            ]
        for handle in handles:
            stack.callback(handle.remove)
        yield tape


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


def _keep(tape: Tape) -> Callable[..., Tensor]:
    def hook(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        activations = _check_tensor(layer, output)
        if not activations.requires_grad:  # the whole trunk is frozen
            activations = activations.detach().requires_grad_()
        tape._activations = activations
        return activations.clone()  # what follows may work in place (as ReLU often does)

    return hook


def _stop_gradients(module: nn.Module, inputs: tuple) -> None:
    # The hook below has turned them on if this is not the first pass of the block.
    torch.set_grad_enabled(False)


def _cut(tape: Tape) -> Callable[..., Tensor]:
    def hook(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        activations = _check_tensor(layer, output).detach()
        if activations.is_inference():  # a layer that hands on its input, in inference mode
            activations = activations.clone()
        # Stays on for the rest of the pass; the no_grad() around the block restores it on exit.
        torch.set_grad_enabled(True)
        tape._activations = activations.requires_grad_()
        return tape._activations.clone()

    return hook


def _check_tensor(layer: nn.Module, output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The target layer {type(layer).__name__} returned a {type(output).__name__}; "
            "a layer whose output is one tensor is needed."
        )
    return output
