"""The trunk: the part of a forward pass before a layer, kept so that the pass can resume there.

The part behind the layer can then run again on other activations, without the part before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from sklcam.networks.dry_run import exclusive, first_output, replaced
from sklcam.networks.layers import Layer, module_of


class Trunk:
    """The part of a forward pass before a layer; made by :func:`record_trunk`.

    With it, a pass can resume at the layer: modules that had finished before it return their
    recorded outputs, and only the part behind the layer is computed.

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
    ...     print(torch.equal(net(x)[0], net[2].bias))  # nothing before the layer runs
    True
    """

    def __init__(self, layer: nn.Module, run: int | None = None) -> None:
        self._layer = layer
        self._run = -1 if run is None else run
        # For each run of the layer, the outermost calls that had finished by then, with their
        # outputs.
        self._runs: list[list[tuple[nn.Module, Any]]] = []

    @property
    def before(self) -> list[tuple[nn.Module, Any]]:
        """The calls that had finished when the layer began the chosen run, by default the last."""
        return self._runs[self._run] if self._runs else []

    def enter_layer(self, finished: list[tuple[nn.Module, Any]]) -> None:
        """Record the calls that had finished when a run of the layer begins."""
        self._runs.append(list(finished))

    @contextmanager
    def resumed(
        self,
        activations: Any,
        *,
        image: int | None = None,
        n_images: int = 0,
        from_start: bool = False,
    ) -> Iterator[None]:
        """Start the forward pass in the block at the layer, with other activations.

        Parameters
        ----------
        activations : Tensor of shape (m, ...)
            The layer's output: m variants for one image of the recorded batch, or whatever the
            layer returns for the batch itself.
        image : int or None, default=None
            The image; None is the batch itself.
        n_images : int, default=0
            Number of images in the recorded batch, if one of them is chosen.
        from_start : bool, default=False
            Also run the part before the layer, instead of returning its recorded outputs. Slower,
            but needed if the network changes tensors in place between its modules.

        Notes
        -----
        Each use is for one forward pass.
        """
        answers: dict[nn.Module, deque[Any]] = {}
        if from_start:
            answers[self._layer] = deque([_RUN] * (self._run % len(self._runs)))
        else:
            for module, output in self.before:
                rows = output
                if image is not None:
                    rows = _repeat(output, image, n_images, len(activations))
                answers.setdefault(module, deque()).append(rows)
        answers.setdefault(self._layer, deque()).append(activations)
        with ExitStack() as stack:
            for module, queue in answers.items():
                stack.enter_context(_answering(module, queue))
            yield


_RUN = object()  # a placeholder: the module runs itself


@contextmanager
def _answering(module: nn.Module, answers: deque[Any]) -> Iterator[None]:
    """Set the outputs of a module's next calls. Once they are used up, the module runs itself."""
    # A hook could change the output of a module, but not save its cost.
    forward, thread = module.forward, get_ident()
    given: list[Any] = []

    def answer(*args: Any, **kwargs: Any) -> Any:
        if get_ident() != thread:  # passes of other threads are not affected
            return forward(*args, **kwargs)
        ready = answers.popleft() if answers else _RUN
        given[:] = [] if ready is _RUN else [ready]
        return forward(*args, **kwargs) if ready is _RUN else ready

    def again(module: nn.Module, inputs: Any, output: Any) -> Any:
        # The recorded output already includes the changes of other hooks.
        return given.pop() if given and get_ident() == thread else None

    # The first hook is for torch's TransformerEncoderLayer: unless one of its parts has a hook, it
    # calls none of them and computes everything in one kernel.
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: None),
        module.register_forward_hook(again),
    ]
    try:
        with replaced(module, "forward", answer):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _repeat(output: Any, image: int, n_images: int, m: int) -> Any:
    """Return one image's part of a module's output, m times, without copying it."""
    if isinstance(output, Tensor):
        # An output with as many rows as images is taken to have one per image; any other output
        # belongs to the whole batch.
        if output.ndim and len(output) == n_images:
            return output[image : image + 1].expand(m, *output.shape[1:])
        return output
    if isinstance(output, tuple | list):
        return type(output)(_repeat(item, image, n_images, m) for item in output)
    if isinstance(output, dict):
        return {key: _repeat(item, image, n_images, m) for key, item in output.items()}
    return output


@contextmanager
def record_trunk(module: nn.Module, layer: Layer) -> Iterator[Trunk]:
    """Record the part of a forward pass before a layer, to resume it there later.

    Parameters
    ----------
    module : nn.Module
        The network.
    layer : nn.Module or TargetLayer
        A submodule of ``module``. A TargetLayer says which run of it counts; the last by default.

    Yields
    ------
    Trunk
        It keeps the outputs of the modules before the layer as long as it exists.

    Raises
    ------
    ValueError
        If ``module`` is not an nn.Module, or the layer is not part of it.

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
    start, run = module_of(module, layer)
    trunk = Trunk(start, run)
    finished: list[tuple[nn.Module, Any]] = []
    starts: list[int] = []  # for each open call, how many calls had finished when it began

    thread = get_ident()

    def begin(part: nn.Module, inputs: tuple[Any, ...]) -> None:
        if get_ident() != thread:
            return
        if part is start:
            trunk.enter_layer(finished)
        starts.append(len(finished))

    def end(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if get_ident() != thread:
            return
        del finished[starts.pop() :]  # the calls inside it
        finished.append((part, output))

    with exclusive(module), ExitStack() as stack:
        for part in module.modules():
            stack.callback(part.register_forward_pre_hook(begin).remove)
            stack.callback(part.register_forward_hook(end).remove)
        yield trunk


def blocks_of_trunk(module: nn.Module, layer: nn.Module, sample: Tensor) -> list[nn.Module]:
    """Return the largest modules that lie entirely before the end of a layer.

    These can be compiled although the layer is recorded. A compiled module is one node of the
    graph, which cannot be split at the layer, nor be differentiated twice.

    Parameters
    ----------
    module : nn.Module
        The network, in evaluation mode, as it runs once.
    layer : nn.Module
        A submodule of it.
    sample : Tensor of shape (1, channels, height, width)

    Returns
    -------
    list of nn.Module
        In the order in which they run. Modules without submodules are left out, as compiling them
        saves nothing.

    Raises
    ------
    ValueError
        If the layer is not part of the network.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks import blocks_of_trunk, build_model
    >>> net = build_model("resnet18", n_classes=2).eval()
    >>> blocks = blocks_of_trunk(net, net.layer4, torch.zeros(1, 3, 32, 32))
    >>> blocks == [net.layer1, net.layer2, net.layer3, *net.layer4]
    True
    """
    with torch.no_grad(), record_trunk(module, layer) as trunk:
        module(sample)
        before = [part for part, _ in trunk.before]
    runs = dict.fromkeys([*before, *layer.children()])  # each once
    return [part for part in runs if any(True for _ in part.children())]


def is_bypassed(module: nn.Module, layer: nn.Module, sample: Tensor) -> bool:
    """Whether a path leads from the images to the output around a layer.

    Parameters
    ----------
    module : nn.Module
        The network, in evaluation mode, as it runs once.
    layer : nn.Module
        A submodule of it.
    sample : Tensor of shape (1, channels, height, width)

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        If the layer is not part of the network.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks import build_model, is_bypassed
    >>> net = build_model("resnet18", n_classes=2).eval()
    >>> sample = torch.zeros(1, 3, 32, 32)
    >>> is_bypassed(net, net.layer4, sample), is_bypassed(net, net.layer4[1].conv2, sample)
    (False, True)
    """
    part, _ = module_of(module, layer)
    images = sample.clone().requires_grad_()
    n_runs = 0

    def cut(part: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal n_runs
        n_runs += 1
        return output.detach()

    handle = part.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            # A copy, as the first module may work in place.
            output = first_output(module(images.clone()))
            if n_runs > 1:  # each run bypasses the others
                return True
            if not output.requires_grad:
                return False
            # With the hook, as checkpoints run the layer again in the backward pass.
            (gradient,) = torch.autograd.grad(output.sum(), images, allow_unused=True)
    finally:
        handle.remove()
    return gradient is not None
