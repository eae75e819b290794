"""A copy of a network whose weights are made random, layer by layer, from the output backwards."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sklcam._validation import suggestion
from sklcam.explain.base import Explainer
from sklcam.metrics.cose import randomized
from sklcam.networks.inputs import Inputs

Mode = Literal["cascading", "independent"]
Layers = int | Sequence[str] | None


class _Uses(TorchDispatchMode):
    """Notes which tensors a network uses, the one that it used last at the end."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self.names: dict[str, None] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for each in value if isinstance(value, list | tuple) else [value]:
                if (name := self._names.get(id(each))) is not None:
                    self.names.pop(name, None)
                    self.names[name] = None
        return function(*args, **kwargs)


class Randomizable:
    """A copy of an explainer, whose network's weights can be made random, layer by layer.

    Parameters
    ----------
    explainer : Explainer
    inputs : Inputs
        The first image shows in which order the layers are used.
    layers : int, None or sequence of str
        See :func:`sanity_check`.
    seed : int

    Attributes
    ----------
    explainer : Explainer
        The copy.
    layers : list of tuple of str
        The layers of each step.

    Raises
    ------
    ValueError
        If the network cannot be copied, if it is not visible where its weights are used, or if
        ``layers`` names modules that it does not have.
    """

    def __init__(self, explainer: Explainer, inputs: Inputs, layers: Layers, seed: int):
        network = explainer.adapter.network
        try:
            self.explainer = copy.deepcopy(explainer)
            random = randomized(network, seed)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"The network cannot be copied, and its own weights must not change: {error}. "
                "The usual reasons are locks, open files and tensors with a graph. Leave them out."
            ) from error
        self._own = _tensors(self.explainer.adapter.network)
        self._trained, random_tensors = _tensors(network), _tensors(random)
        self._random = {
            name: tensor
            for name, tensor in random_tensors.items()
            if tensor.is_floating_point() and not torch.equal(tensor, self._trained[name].cpu())
        }
        sample = inputs.take(slice(0, 1))
        uses = _Uses(self._own)
        with uses:
            before = self.explainer.output_of(sample)
        # Backwards, each layer at its last use.
        used = dict.fromkeys(_layer_of(name) for name in reversed(uses.names))
        learned = {_layer_of(name) for name in self._random}
        self._check_unseen(sorted(learned - used.keys()), sample, before)
        found = [layer for layer in used if layer in learned]
        if not found:
            raise ValueError(
                "The network's output does not depend on any weights, so none can be made random."
            )
        self.layers = _grouped(found, layers, network)

    def _check_unseen(self, layers: Sequence[str], sample: Inputs, before: Tensor) -> None:
        """Raise a ValueError if the output depends on layers whose place is not known."""
        if not layers:
            return
        self._set(layers, self._random)
        after = self.explainer.output_of(sample)
        self._set(layers, self._trained)
        if not torch.equal(before, after):
            raise ValueError(
                f"It is not visible when the network uses the weights of {', '.join(layers[:5])}. "
                "Compiled or scripted parts may hide it. Give the network as it was before."
            )

    def steps(self, mode: Mode) -> Iterable[None]:
        """Make weights random, step by step; afterwards they are as they were trained."""
        try:
            for group in self.layers:
                self._set(group, self._random)
                yield
                if mode == "independent":
                    self._set(group, self._trained)
        finally:
            self._set(sum(self.layers, ()), self._trained)

    def _set(self, layers: Sequence[str], source: Mapping[str, Tensor]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for name in self._random:
                if _layer_of(name) in layers:
                    self._own[name].copy_(source[name])


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, each of them once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _layer_of(name: str) -> str:
    """Return the module that a tensor belongs to; "" is the network itself."""
    return f".{name}".rpartition(".")[0].partition(".parametrizations.")[0].removeprefix(".")


def _grouped(found: Sequence[str], layers: Layers, network: nn.Module) -> list[tuple[str, ...]]:
    """Return the layers of each step, in the order in which they were found."""
    if layers is None or isinstance(layers, int):
        n_steps = len(found) if layers is None else min(layers, len(found))
        ends = [round(i * len(found) / n_steps) for i in range(n_steps + 1)]
        return [tuple(found[start:end]) for start, end in pairwise(ends)]
    known = {name for name, _ in network.named_modules()}
    groups = []
    for name in layers:
        if name not in known:
            raise ValueError(f"The network has no module {name!r}. {suggestion(name, known)}")
        inside = tuple(each for each in found if f"{each}.".startswith(f"{name}."))
        if not inside:
            raise ValueError(f"{name} has no weights that the output depends on.")
        groups.append(inside)
    every = sum(groups, ())
    if len(set(every)) < len(every):
        raise ValueError(
            f"layers names a module, and another within it: {list(layers)}. Leave one of them out."
        )
    return sorted(groups, key=lambda group: found.index(group[0]))
