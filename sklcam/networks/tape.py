"""One forward pass that records layers' activations and grows the autograd graph from there on.

A class activation map needs the gradient of a score with respect to one layer. What lies before
that layer needs no graph at all when explaining; when training it needs one, but the map's own
gradient still stops at the layer. And what follows a layer can be run again on other activations,
without what lies before it. This module knows of modules and graphs, not of maps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
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

    def __init__(self, *layers: nn.Module, trunk: bool = False) -> None:
        self._layers = layers
        self._trunk = trunk
        self._activations: dict[int, Tensor] = {}

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
        if id(layer) not in self._activations:
            raise RuntimeError(
                "Nothing was recorded: the target layer did not run in this forward pass. "
                "Name a layer that the output depends on."
            )
        return self._activations[id(layer)]

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
    _check_parts(module, layers)
    tape = Tape(*layers, trunk=trunk)
    with ExitStack() as stack:
        stack.callback(tape.clear)
        stack.enter_context(torch.inference_mode(False))
        if trunk:
            stack.enter_context(torch.enable_grad())
        else:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_no_fused_attention())
        stack.callback(module.register_forward_pre_hook(_stop_gradients(tape)).remove)
        hook = _hook(tape, head)
        for layer in layers:
            stack.callback(layer.register_forward_hook(hook).remove)
        yield tape


def _check_parts(module: nn.Module, layers: tuple[nn.Module, ...]) -> None:
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be an nn.Module; got {describe(module)}.")
    parts = {id(part) for part in module.modules()}
    for layer in layers:
        if id(layer) not in parts:
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


def _keep(tape: Tape) -> Callable[..., Tensor]:
    def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        activations = _check_tensor(layer, output)
        if not activations.requires_grad:  # nothing before the layer is trained
            activations = activations.detach().requires_grad_()
        tape._activations[id(layer)] = activations
        return activations.clone()  # what follows may work in place (as ReLU often does)

    return hook


def _stop_gradients(tape: Tape) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # The hook below has turned them on if this is not the first pass of the block.
        if not tape._trunk:
            torch.set_grad_enabled(False)

    return hook


def _hook(tape: Tape, head: bool) -> Callable[..., Tensor]:
    keep, cut = _keep(tape), _cut(tape, head)

    def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return keep(layer, inputs, output) if tape._trunk else cut(layer, inputs, output)

    return hook


def _cut(tape: Tape, head: bool) -> Callable[..., Tensor]:
    keep = _keep(tape)

    def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(tape._layers) > 1:  # an earlier layer is the leaf
            return keep(layer, inputs, output)
        activations = _check_tensor(layer, output).detach()
        if activations.is_inference():  # a layer that hands on its input, in inference mode
            activations = activations.clone()
        # Stays on for the rest of the pass; the no_grad() around the block restores it on exit.
        torch.set_grad_enabled(head)
        tape._activations[id(layer)] = activations.requires_grad_(head)
        return tape._activations[id(layer)].clone()

    return hook


def _check_tensor(layer: nn.Module, output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The target layer {type(layer).__name__} returned a {type(output).__name__}; "
            "a layer whose output is one tensor is needed."
        )
    return output


class Trunk:
    """What a forward pass did before a layer ran; made by :func:`record_trunk`.

    With it, the pass can be resumed at the layer: modules that had finished by then hand out what
    they returned, and only what follows the layer is computed.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks import record_trunk
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> x = torch.rand(1, 3)
    >>> with torch.no_grad(), record_trunk(net, net[1]) as trunk:
    ...     _ = net(x)
    >>> with torch.no_grad(), trunk.resumed(torch.zeros(1, 4), image=0, n_images=1):
    ...     print(torch.equal(net(x)[0], net[2].bias))  # of all that precedes it, nothing is run
    True
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._finished: list[tuple[nn.Module, Any]] = []  # outermost calls only, in their order
        self._runs = 0  # of the layer
        self._before_layer: list[tuple[nn.Module, Any]] = []

    @contextmanager
    def resumed(
        self, activations: Tensor, *, image: int, n_images: int, from_start: bool = False
    ) -> Iterator[None]:
        """Let the forward passes in the block start at the layer, with other activations.

        Parameters
        ----------
        activations : Tensor of shape (m, ...)
            What the layer returns, m variants for one image of the recorded batch.
        image : int
            Which image.
        n_images : int
            Number of images in the recorded batch.
        from_start : bool, default=False
            Run what lies before the layer, too, instead of handing out what it returned. Slower;
            needed where the network changes tensors in place between its modules.

        Notes
        -----
        One forward pass for each use.
        """
        answers: dict[nn.Module, deque[Any]] = {}
        if from_start:
            answers[self._layer] = deque([_RUN] * (self._runs - 1))
        else:
            for module, output in self._before_layer:
                rows = _repeat(output, image, n_images, len(activations))
                answers.setdefault(module, deque()).append(rows)
        answers.setdefault(self._layer, deque()).append(activations)
        with ExitStack() as stack:
            for module, queue in answers.items():
                stack.enter_context(_answering(module, queue))
            yield


_RUN = object()  # stands for: run the module itself


@contextmanager
def _answering(module: nn.Module, answers: deque[Any]) -> Iterator[None]:
    """Give a module answers for its next calls; it runs by itself once they are used up."""
    forward = module.forward

    def answer(*args: Any, **kwargs: Any) -> Any:
        ready = answers.popleft() if answers else _RUN
        return forward(*args, **kwargs) if ready is _RUN else ready

    shadowed = vars(module).get("forward")
    module.forward = answer
    try:
        yield
    finally:
        del module.forward
        if shadowed is not None:
            module.forward = shadowed


def _repeat(output: Any, image: int, n_images: int, m: int) -> Any:
    """Return one image's part of a module's output, m times, without copying it."""
    if isinstance(output, Tensor):
        if output.ndim and len(output) == n_images:
            return output[image : image + 1].expand(m, *output.shape[1:])
        return output
    if isinstance(output, tuple | list):
        return type(output)(_repeat(item, image, n_images, m) for item in output)
    if isinstance(output, dict):
        return {key: _repeat(item, image, n_images, m) for key, item in output.items()}
    return output


@contextmanager
def record_trunk(module: nn.Module, layer: nn.Module) -> Iterator[Trunk]:
    """Record what a forward pass does before a layer, to resume it there later.

    Parameters
    ----------
    module : nn.Module
        The network.
    layer : nn.Module
        A submodule of ``module``.

    Yields
    ------
    Trunk
        It holds the outputs of the modules before the layer for as long as it lives.

    Raises
    ------
    ValueError
        If ``module`` is no nn.Module, or the layer is not part of it.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks import record_trunk
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> images = torch.rand(5, 3, 8, 8)
    >>> with torch.no_grad(), record_trunk(net, net[1]) as trunk:
    ...     scores = net(images)
    >>> dark = torch.zeros(7, 4, 6, 6)
    >>> with torch.no_grad(), trunk.resumed(dark, image=0, n_images=5):
    ...     of_dark = net(images[:1].expand(7, -1, -1, -1))  # runs net[2] and net[3]
    >>> torch.equal(of_dark[0], net[3].bias)
    True
    """
    _check_parts(module, (layer,))
    trunk = Trunk(layer)
    starts: list[int] = []  # per open call: how many calls had finished when it began

    def begin(part: nn.Module, inputs: tuple[Any, ...]) -> None:
        if part is layer:
            trunk._runs += 1
            trunk._before_layer = list(trunk._finished)
        starts.append(len(trunk._finished))

    def end(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        del trunk._finished[starts.pop() :]  # what ran inside it
        trunk._finished.append((part, output))

    with ExitStack() as stack:
        for part in module.modules():
            stack.callback(part.register_forward_pre_hook(begin).remove)
            stack.callback(part.register_forward_hook(end).remove)
        try:
            yield trunk
        finally:
            trunk._finished = []


def blocks_of_trunk(module: nn.Module, layer: nn.Module, sample: Tensor) -> list[nn.Module]:
    """Return the largest modules that a layer's activations are made of and nothing else.

    They are what can be compiled when a layer is recorded: a compiled module is one node of the
    graph, which cannot be cut open at the layer, nor be differentiated twice.

    Parameters
    ----------
    module : nn.Module
        The network, in evaluation mode, as it is run once.
    layer : nn.Module
        A submodule of it.
    sample : Tensor of shape (1, channels, height, width)

    Returns
    -------
    list of nn.Module
        In the order in which they run; modules without submodules are left out, as compiling them
        gains nothing.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks import build_model
    >>> from sklcam.networks import blocks_of_trunk
    >>> net = build_model("resnet18", n_classes=2).eval()
    >>> blocks = blocks_of_trunk(net, net.layer4, torch.zeros(1, 3, 32, 32))
    >>> blocks == [net.layer1, net.layer2, net.layer3, *net.layer4]
    True
    """
    with torch.no_grad(), record_trunk(module, layer) as trunk:
        module(sample)
        before = [part for part, _ in trunk._before_layer]
    runs = dict.fromkeys([*before, *layer.children()])  # each once
    return [part for part in runs if any(True for _ in part.children())]


def is_bypassed(module: nn.Module, layer: nn.Module, sample: Tensor) -> bool:
    """Whether there is a way from the images to the output beside a layer.

    Parameters
    ----------
    module : nn.Module
        The network, in evaluation mode, as it is run once.
    layer : nn.Module
        A submodule of it.
    sample : Tensor of shape (1, channels, height, width)

    Returns
    -------
    bool

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks import build_model
    >>> from sklcam.networks import is_bypassed
    >>> net = build_model("resnet18", n_classes=2).eval()
    >>> sample = torch.zeros(1, 3, 32, 32)
    >>> is_bypassed(net, net.layer4, sample), is_bypassed(net, net.layer4[1].conv2, sample)
    (False, True)
    """
    images = sample.clone().requires_grad_()
    handle = layer.register_forward_hook(lambda layer, inputs, output: output.detach())
    try:
        with torch.enable_grad():
            output = module(images.clone())  # a copy, as the first module may work in place
    finally:
        handle.remove()
    output = output[0] if isinstance(output, tuple) else output
    if not output.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(output.sum(), images, allow_unused=True)
    return gradient is not None


class _Stop(Exception):
    """The layer has run, and what follows it is not needed."""


@contextmanager
def stopping_after(layer: nn.Module) -> Iterator[None]:
    """End the forward pass in the block, and the block, once a layer has run.

    Parameters
    ----------
    layer : nn.Module

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

    def stop(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        raise _Stop

    handle = layer.register_forward_hook(stop)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()
