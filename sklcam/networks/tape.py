"""The tape: layers' activations in a forward pass, and an autograd graph that grows from there.

A class activation map needs the gradient of a score with respect to one layer. For explaining, the
network before that layer needs no graph at all. For training it needs one, but the map's own
gradient still stops at the layer. Nothing here depends on maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sklcam._validation import describe
from sklcam.networks.dry_run import exclusive, uncompiled
from sklcam.networks.layers import Layer, module_of


class Tape:
    """The record of one forward pass; made by :func:`record`.

    Attributes
    ----------
    activations : Tensor
        The layer's output in the last forward pass, in the layer's own layout; the first layer's if
        there are several. A score from the same pass can be differentiated with respect to it.

    Raises
    ------
    RuntimeError
        On access to the activations, if no layer was named or the layer did not run.
    ValueError
        On access to the activations, if the layer ran several times and no run was chosen.

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

    def __init__(
        self,
        module: nn.Module | None = None,
        *layers: Layer,
        trunk: bool = False,
        head: bool = True,
        twice: bool = True,
    ) -> None:
        self._module = module
        self._layers = {layer: module_of(module, layer) for layer in layers}
        self._trunk = trunk
        self._head = head
        self._is_for_training = trunk and twice
        self._kernels = ExitStack()  # the attention kernels behind the layer
        self._thread = get_ident()
        self._is_running = True
        self._runs: dict[nn.Module, list[Tensor]] = {}  # each layer's outputs, run by run

    @property
    def parts(self) -> set[nn.Module]:
        """The layers, each once."""
        return {part for part, _ in self._layers.values()}

    @property
    def activations(self) -> Tensor:
        if not self._layers:
            raise RuntimeError(
                "Nothing was recorded, as no target layer was named. Pass one to record()."
            )
        return self.of(next(iter(self._layers)))

    def of(self, layer: Layer) -> Tensor:
        """Return the activations of one of the layers.

        Parameters
        ----------
        layer : nn.Module or TargetLayer

        Returns
        -------
        Tensor

        Raises
        ------
        RuntimeError
            If the layer did not run.
        ValueError
            If it ran several times and no run was chosen, or there was no such run.
        """
        part, run = self._layers.get(layer, (None, None))
        runs = [] if part is None else self._runs.get(part, [])
        if not runs:
            raise RuntimeError(
                "Nothing was recorded, as the target layer did not run in this forward pass. "
                "Name a layer that the output depends on."
            )
        if (run is None and len(runs) > 1) or not -len(runs) <= (run or 0) < len(runs):
            assert self._module is not None
            name = next(name for name, each in self._module.named_modules() if each is part)
            asked = "" if run is None else f", and run={run} is not one of these runs"
            raise ValueError(
                f"The target layer {name!r} runs {len(runs)} time(s) in a pass{asked}. Name a "
                f"layer that runs once, or the run to explain, as in "
                f"TargetLayer({name!r}, run=0) for the first or run=-1 for the last."
            )
        return runs[run or 0]

    def begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Start a pass of the network. This is a hook before its forward."""
        if get_ident() != self._thread:
            return
        self.clear()
        self._is_running = True
        # An earlier pass in this context has turned gradients on at the layer.
        if not self._trunk:
            torch.set_grad_enabled(False)

    def end(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """End a pass. Later runs of layers, as checkpointing causes, are not part of it."""
        if get_ident() == self._thread:
            self._is_running = False
            self._kernels.close()

    def keep(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Record a layer's output, and return a copy of it. This is a hook behind its forward."""
        if get_ident() != self._thread:  # another thread's pass through the same network
            return output
        if not isinstance(output, Tensor):
            raise TypeError(
                f"The target layer {type(layer).__name__} returned a {type(output).__name__}. "
                "Name a layer whose output is one tensor."
            )
        n_runs = len(self._runs.get(layer, ()))
        if self._is_running and not self._trunk and n_runs < self._first_run(layer):
            self._runs.setdefault(layer, []).append(output.detach())
            return output
        has_begun = any(run.requires_grad for runs in self._runs.values() for run in runs)
        # Without a trunk, gradients are off until the first layer has turned them on.
        if output.requires_grad and (self._trunk or has_begun):
            activations = output
        else:  # nothing before the layer is trained
            activations = output.detach()
            if activations.is_inference():  # a layer that returned its input, in inference mode
                activations = activations.clone()
            activations.requires_grad_(self._head)
        if not self._trunk:
            # It stays on for the rest of the pass; the no_grad() around the context restores it.
            torch.set_grad_enabled(self._head)
        if self._is_for_training and self._is_running and not has_begun:
            # A loss on maps differentiates the part behind the layer twice, and the fused kernels
            # of attention have no second derivative. The part before the layer stays fused.
            self._kernels.enter_context(plain_attention())
        if self._is_running:
            self._runs.setdefault(layer, []).append(activations)
        # Later operations may work in place, as ReLU often does. A network that computes the layer
        # under no_grad() continues with the copy, which has a gradient nevertheless.
        with torch.set_grad_enabled(self._head):
            return activations.clone()

    def _first_run(self, layer: nn.Module) -> int:
        """Return the first run of a layer that may be needed, as far as this is known."""
        return max(0, min(run or 0 for part, run in self._layers.values() if part is layer))

    def clear(self) -> None:
        """Forget what was recorded."""
        self._runs.clear()
        self._kernels.close()  # after a pass that was interrupted

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Build a graph of the head alone for passes in the block, although the tape has a trunk.

        Their activations are a leaf. Another pass can later propagate its gradient through the
        trunk.

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
            with torch.no_grad():
                yield
        finally:
            self._trunk = was


@contextmanager
def record(
    module: nn.Module,
    *layers: Layer,
    trunk: bool = False,
    head: bool = True,
    twice: bool = True,
) -> Iterator[Tape]:
    """Record layers' activations during the forward passes made inside the ``with`` block.

    Parameters
    ----------
    module : nn.Module
        The network. Its mode, hooks, gradients and flags stay as they were. Other threads wait for
        the block to end before they record it, or a network that shares a part with it.
    *layers : nn.Module or TargetLayer
        The target layers: submodules of ``module`` whose output is one tensor. A TargetLayer says
        which run of a layer counts.
    trunk : bool, default=False
        False is for explaining: gradients are off up to the first of the layers, whose activations
        become a leaf, and on behind it, so the graph holds the head alone. True is for training:
        the graph reaches back to the parameters of the trunk, so that the loss can train them.
    head : bool, default=True
        False builds no graph at all if ``trunk`` is False.
    twice : bool, default=True
        With ``trunk``, whether the part behind the layers can be differentiated twice, as a loss on
        maps needs. The fused kernels of attention cannot.

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
    Works for callers under ``torch.no_grad()`` and ``torch.inference_mode()``. Modules that contain
    a target layer run uncompiled, as compiled code calls no hooks.

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
    tape = Tape(module, *layers, trunk=trunk, head=head, twice=twice)
    parts = tape.parts
    with ExitStack() as stack:
        stack.callback(tape.clear)
        stack.enter_context(exclusive(module))
        stack.enter_context(uncompiled(module, around=parts))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad() if trunk else torch.no_grad())
        # Parts that run again in the backward pass must run as before, wherever the layer is.
        if trunk and _checkpoints(module):
            stack.enter_context(plain_attention())
        stack.callback(module.register_forward_pre_hook(tape.begin).remove)
        stack.callback(module.register_forward_hook(tape.end, always_call=True).remove)
        for part in parts:
            stack.callback(part.register_forward_hook(tape.keep).remove)
        yield tape


def differentiate(
    scores: Tensor,
    leaves: Sequence[Tensor],
    names: Sequence[str],
    *,
    chosen: Tensor | None = None,
    keep_graph: bool = False,
    create_graph: bool = False,
) -> list[Tensor]:
    """Return the gradients of scores with respect to recorded tensors.

    Parameters
    ----------
    scores : Tensor of shape (n_images, ...)
        The scores of the same pass.
    leaves : sequence of Tensor
        The recorded tensors.
    names : sequence of str
        The names of the leaves, for the message.
    chosen : Tensor of the scores' shape or None, default=None
        The weight of each score in their sum; None is 1.
    keep_graph, create_graph : bool, default=False
        Whether the graph is kept for another gradient, and whether this one has a graph.

    Returns
    -------
    list of Tensor

    Raises
    ------
    ValueError
        If no gradient leads from the scores to a leaf.
    """
    gradients: Sequence[Tensor | None] = [None] * len(leaves)
    if scores.requires_grad:
        gradients = torch.autograd.grad(
            scores,
            leaves,
            torch.ones_like(scores) if chosen is None else chosen,
            retain_graph=keep_graph or create_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"No gradient leads from the scores back to {name}. The network may stop it with "
                "detach(), torch.no_grad() or checkpoint(use_reentrant=True) in its forward, or "
                "its first output may depend on something else. Remove the cause (a part with "
                "requires_grad_(False) stays frozen without it, and use_reentrant=False lets "
                "gradients through), name a target layer behind it, or explain with a method "
                "without gradients, such as ScoreCAM."
            )
    return [gradient for gradient in gradients if gradient is not None]


def differentiate_in_float16(
    scores: Tensor,
    leaves: Sequence[Tensor],
    names: Sequence[str],
    chosen: Tensor,
    n_positions: int,
    *,
    keep_graph: bool = False,
    again: Callable[[], None] | None = None,
) -> list[Tensor]:
    """Return the gradients of scores for a backward pass in float16, whose range is narrow.

    Parameters
    ----------
    scores, leaves, names, chosen, keep_graph
        See :func:`differentiate`.
    n_positions : int
        The number of places of a leaf, which share a score's gradient.
    again : callable or None, default=None
        Called before the second of two backward passes.

    Returns
    -------
    list of Tensor, float32
    """
    # At one of many positions, a score's gradient can be too small for float16. It is scaled by
    # their number, rounded down to a power of two, which changes no digit.
    scale = 2.0 ** min(n_positions.bit_length() - 1, 15)
    scaled = differentiate(scores, leaves, names, chosen=chosen * scale, keep_graph=True)
    if again is not None:
        again()
    plain = differentiate(scores, leaves, names, chosen=chosen, keep_graph=keep_graph)
    # If the scaled gradient overflows, the plain one is large enough.
    return [
        torch.where(large.isfinite(), large.float() / scale, small.float())
        for large, small in zip(scaled, plain, strict=True)
    ]


# The number of contexts that need plain attention, its lock, and what restores the chosen kernels.
_n_plain, _kernels_lock, _chosen = 0, Lock(), ExitStack()


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention with matrix products in the block, so that it can be differentiated twice.

    The fused kernels have no second derivative. The choice of kernels applies to the process: other
    threads use the same ones, and it ends with the last of the open blocks.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.functional import scaled_dot_product_attention
    >>> from sklcam.networks.tape import plain_attention
    >>> query = torch.rand(1, 1, 4, 8, requires_grad=True)
    >>> with plain_attention():
    ...     found = scaled_dot_product_attention(query, query, query)
    >>> (gradient,) = torch.autograd.grad(found.square().sum(), query, create_graph=True)
    >>> gradient.square().sum().backward()
    """
    global _n_plain
    with _kernels_lock:
        if not _n_plain:
            _chosen.enter_context(sdpa_kernel(SDPBackend.MATH))
        _n_plain += 1
    try:
        yield
    finally:
        with _kernels_lock:
            _n_plain -= 1
            if not _n_plain:
                _chosen.close()


def _checkpoints(module: nn.Module) -> bool:
    """Whether a network says that it runs parts of itself again in the backward pass.

    There is no single flag: timm's is `grad_checkpointing`, Hugging Face's
    `gradient_checkpointing`, others have a `use_checkpoint`, and torch and fairscale wrap parts in
    modules with "checkpoint" in their names.
    """
    return any(
        "checkpoint" in type(part).__name__.lower()
        or any("checkpoint" in name and value is True for name, value in vars(part).items())
        for part in module.modules()
    )


class _Stop(Exception):
    """Raised when the layer has run, as the rest of the pass is not needed."""


@contextmanager
def stopping_after(layer: nn.Module) -> Iterator[None]:
    """End the forward pass in the block, and the block itself, once a layer has run.

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
