"""Probing: which outputs of a network are grids of places, and which of them the result depends on.

The shape of a tensor does not say which of its axes are places. Changing a part of an image does:
if, for each of four parts, the same part of a grid responds most, the grid is laid out as the image
is. The graph of one pass shows which outputs nothing bypasses, and which have a gradient.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sklcam.networks.dry_run import exclusive, left_as_found, memory_of, tolerating
from sklcam.networks.layers import TargetLayer, channels_first, channels_last
from sklcam.networks.precision import at_least_float32
from sklcam.networks.quadrants import agreement, contrast, with_quadrant
from sklcam.networks.reentrant import REENTRANT, ReentrantCheckpoint, is_reentrant
from sklcam.networks.tape import record
from sklcam.networks.token_order import are_in_order
from sklcam.networks.zeros import redrawn, zeros_filled

Forward = Callable[[Tensor], Any]
Size = tuple[int, ...]

# An image goes through the network with two changed ones, which distinguishes rows from other axes.
_N_ROWS = 3
# The ratio by which the changed quadrant must respond more than others, at once or after all tries.
_CLEAR, _ENOUGH = 1.25, 1.02
_MOST_TRIES = 6
_MOST_PREFIX_TOKENS = 16
_MOST_SPECIAL_TOKENS = 5  # a class token, and four registers
# Modules that always return (n, K, ...).
_CHANNELS_FIRST = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.modules.pooling._MaxPoolNd),
    *(nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d),
)


class _Run(NamedTuple):
    module: nn.Module
    output: Any
    given: Tensor | None
    nodes: tuple[Any, Any]


@dataclass(frozen=True, eq=False)
class Traced:
    """A run of a module in a pass: its output, and the output's place in the graph.

    Attributes
    ----------
    name : str
    module : nn.Module
    output, given : Tensor
        Its output, and its first input.
    nodes : tuple
        The places of both in the graph, before any operation changed them in place.
    depth : float, in [0, 1]
        Among the runs that may return grids, the fraction that had ended with this one.
    """

    name: str
    module: nn.Module
    output: Tensor
    given: Tensor | None
    nodes: tuple[Any, Any]
    depth: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.output.shape)

    @property
    def passes_on(self) -> bool:
        """Whether the module returns its input unchanged in evaluation mode."""
        return isinstance(self.module, nn.Identity | _DropoutNd) or _is_called(self, "DropPath")

    @property
    def normalizes(self) -> bool:
        """Whether this is a plain normalisation, which moves nothing, and not a block named so."""
        same = self.given is not None and self.given.shape == self.output.shape
        return same and _is_called(self, "norm") and not any(self.module.children())


def _is_called(traced: Traced, word: str) -> bool:
    return word.lower() in type(traced.module).__name__.lower()


@dataclass(frozen=True, eq=False)
class Trace:
    """A pass with a graph, on one image of noise.

    Attributes
    ----------
    traced : list of Traced
        The modules whose output may be a grid and that ran once, in the order they finished.
    repeated : list of str
        The names of modules whose output may be a grid and that ran several times, in that order.
    others : dict of nn.Module to str
        A description of the output of each module whose output cannot be a grid.
    folded : list of Traced
        The runs that returned several rows for the one image, each of which may be a grid.
    sequences : list of Traced
        The runs whose output may be tokens with the image on the second axis.
    """

    traced: list[Traced]
    repeated: list[str]
    others: dict[nn.Module, str]
    folded: list[Traced]
    sequences: list[Traced]
    output: Tensor
    images: Any

    @property
    def is_reentrant(self) -> bool:
        """Whether parts of the network run in reentrant checkpoints, which keep no graph."""
        return is_reentrant(self.output)

    def is_nchw(self, traced: Traced) -> bool:
        """Whether a module's output is (n, K, ...), as a convolution's of the same shape is."""
        if isinstance(traced.module, _CHANNELS_FIRST):
            return True
        shapes = {each.shape for each in self.traced if isinstance(each.module, _CHANNELS_FIRST)}
        # With three axes, the axis of the images is missing.
        n_channels = traced.shape[0 if len(traced.shape) == 3 else 1]
        return traced.shape in shapes and n_channels != traced.shape[-1]

    def is_output(self, traced: Traced) -> bool:
        """Whether a module's output is what the network returns."""
        own, last = traced.output, self.output
        return own.numel() == last.numel() and memory_of(own) == memory_of(last)

    def holds_all(self, traced: Traced) -> bool:
        """Whether nothing bypasses a module's output or, for a normalisation, its input."""
        return not self.is_passed(traced) or (
            traced.normalizes and not self._reaches(traced.nodes[1])
        )

    def is_passed(self, traced: Traced) -> bool:
        """Whether something bypasses a module's output."""
        return self._reaches(traced.nodes[0])

    def _reaches(self, barred: Any) -> bool:
        """Whether a path leads from the output to the images around a place in the graph."""
        seen, ahead = {barred}, [_place(self.output)]
        while ahead:
            place = ahead.pop()
            node = place[0]
            if node is None or place in seen:
                continue
            if node is self.images:
                return True
            seen.add(place)
            ahead += node.next_functions
        return False


def noise(sample: Tensor, n: int, generator: torch.Generator, scale: int = 1) -> Tensor:
    """Return noise images with the channels of a sample and ``scale`` times its size."""
    _, n_channels, *sides = sample.shape
    images = torch.randn(n, n_channels, *(side * scale for side in sides), generator=generator)
    return images.to(sample)


def taking_noise(model: nn.Module, sample: Tensor, forward: Forward) -> Forward:
    """Return a function that runs a network on noise, even if it takes no negative values.

    With roots and logarithms, the output would be NaN, which tells nothing. Each value is then
    brought between 0 and 1 by itself, so that everything stays in place.
    """
    output = None
    with tolerating(), left_as_found(model):  # tracing will raise the error
        output = forward(noise(sample, 1, torch.Generator().manual_seed(0)))
    if not isinstance(output, Tensor) or bool(output.isfinite().all()):
        return forward
    return lambda images: forward(images.sigmoid())


def trace(model: nn.Module, sample: Tensor, forward: Forward) -> Trace:
    """Run a network once with a graph, and record the outputs of its modules.

    Parameters
    ----------
    model : nn.Module
    sample : float Tensor of shape (1, channels, height, width)
        An image in the form that the network takes.
    forward : callable
        Runs the network on images and returns its output.

    Returns
    -------
    Trace
    """
    runs: list[_Run] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        given = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        runs.append(_Run(module, output, given, (_place(output), _place(given))))

    names = {module: name for name, module in model.named_modules() if name}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(exclusive(model))
        stack.enter_context(left_as_found(model))
        for module in names:
            stack.callback(module.register_forward_hook(note).remove)
        leaf = noise(sample, 1, torch.Generator().manual_seed(0)).requires_grad_()
        try:
            with torch.enable_grad():
                images = leaf.clone()  # some networks write into their input
                output = forward(images)
        except RuntimeError:  # a network that fails with a graph may still run without one
            runs.clear()
            images = leaf.detach()
            output = forward(images.clone())
    counts = Counter(run.module for run in runs)
    grids = [run for run in runs if _may_be_grid(run.output, sample.ndim)]
    traced, folded, sequences, n_ended = [], [], [], 0
    for run in runs:
        is_grid = _may_be_grid(run.output, sample.ndim)
        n_ended += is_grid
        depth = n_ended / max(1, len(grids))
        if is_grid and counts[run.module] == 1:
            traced.append(Traced(names[run.module], *run, depth=depth))
        elif _are_folded(run.output, sample.ndim):
            folded.append(Traced(names[run.module], *run, depth=depth))
        elif _may_be_sequence(run.output):
            sequences.append(Traced(names[run.module], *run, depth=depth))
    repeated = [names[run.module] for run in grids if counts[run.module] > 1]
    others = {
        run.module: _kind(run.output) for run in runs if not _may_be_grid(run.output, sample.ndim)
    }
    return Trace(traced, repeated, others, folded, sequences, output, images.grad_fn)


def _place(tensor: Any) -> tuple[Any, int]:
    """Return the place of a tensor in its graph: a node, and the number of its result."""
    return (tensor.grad_fn, tensor.output_nr) if isinstance(tensor, Tensor) else (None, 0)


def _may_be_grid(output: Any, n_axes: int) -> bool:
    """Whether an output may be a grid of one image, with ``n_axes`` axes in all, or its tokens."""
    if not isinstance(output, Tensor) or output.ndim not in (3, n_axes) or len(output) != 1:
        return False
    sides = output.shape[1:]
    if output.ndim == 3:
        return min(sides) > 1
    # Several positions, whether channels are first or last; a single position does not count.
    return math.prod(sides[1:]) > 1 or (math.prod(sides[:-1]) > 1 and sides[-1] > 1)


def _are_folded(output: Any, n_axes: int) -> bool:
    """Whether an output may be the grids of several images made from the one."""
    return (
        isinstance(output, Tensor)
        and output.ndim > 0 < len(output)
        and (len(output) > 1 and _may_be_grid(output[:1], n_axes))
    )


def _may_be_sequence(output: Any) -> bool:
    """Whether an output may be (tokens, images, channels), which is never a grid of one image."""
    if not isinstance(output, Tensor) or output.ndim != 3:
        return False
    n_tokens, n_images, n_channels = output.shape
    return n_images == 1 and n_tokens > 1 and n_channels > 1


def _kind(output: Any) -> str:
    is_tensor = isinstance(output, Tensor)
    return f"shape {tuple(output.shape)}" if is_tensor else f"a {type(output).__name__}"


def layouts_of(
    model: nn.Module, name: str, sample: Tensor, forward: Forward, *, is_nchw: bool = False
) -> list[TargetLayer]:
    """Return the ways to read a layer's output as a grid that is laid out as the images are.

    Parameters
    ----------
    model : nn.Module
    name : str
        The name of a layer that runs once.
    sample, forward
        As in :func:`trace`.
    is_nchw : bool, default=False
        Whether the output is known to have its channels first. This then decides if nothing can be
        seen, as with few positions or NaN weights.

    Returns
    -------
    list of TargetLayer
        One if there is no doubt; none if the output does not respond in place.
    """
    # Two by two positions tell little. On larger images, if the network takes them, the four axes
    # of an output keep their meaning; tokens would be another grid.
    is_refuted = False
    first = channels_first(sample.ndim - 2)
    most = 2 if is_nchw else _MOST_TRIES
    for scale in (1, 2, 4):
        tried = None
        with tolerating():
            tried = _try(model, name, sample, forward, scale, most)
        if tried is None:
            break
        found, responses = tried
        if found or (first, False) not in responses:
            images = noise(sample, 2, torch.Generator().manual_seed(1))
            return [
                layer
                for layer in found
                if layer.layout != "tokens" or are_in_order(model, layer, images, forward)
            ]
        is_refuted = contrast(responses[first, False]) < 1 / _CLEAR  # NaN refutes nothing
        if is_nchw and not is_refuted:
            break
    return [TargetLayer(name, first)] if is_nchw and not is_refuted else []


def is_sequence_first(
    model: nn.Module, traced: Traced, sample: Tensor, forward: Forward, counts: Collection[int]
) -> bool:
    """Whether a module returns (tokens, images, channels), and the tokens are places.

    Parameters
    ----------
    model : nn.Module
    traced : Traced
        One of a trace's sequences.
    sample, forward
        As in :func:`trace`.
    counts : collection of int
        The numbers of positions of the grids before it.

    Returns
    -------
    bool
        True if the tokens are laid out as the images are, or if there are as many as positions
        before them, apart from class tokens and the like. For queries of a decoder, neither holds.
    """
    tried = None
    with tolerating():
        tried = _try(model, traced.name, sample, forward, 1, _MOST_TRIES, image_axis=1)
    if tried is not None and not tried[1]:
        return False
    n_tokens = len(traced.output)
    return bool(tried and tried[0]) or any(
        0 <= n_tokens - n <= _MOST_SPECIAL_TOKENS for n in counts
    )


def _try(
    model: nn.Module,
    name: str,
    sample: Tensor,
    forward: Forward,
    scale: int,
    most: int,
    image_axis: int = 0,
) -> tuple[list[TargetLayer], dict[tuple[str, bool], Tensor]]:
    """Return the layouts found on images of ``scale`` times the size, and the responses."""
    sums: dict[tuple[str, bool], Tensor] = {}
    size = tuple(side * scale for side in sample.shape[2:])
    n_parts = 2 ** len(size)
    pairs = [(part, n_parts - 1 - part) for part in range(n_parts // 2)]
    pair = pairs[0]
    grids = {channels_first(len(size)): 1, channels_last(len(size)): 1 + len(size)}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.shape[image_axis] != _N_ROWS:  # without one row per image it is not their grid
            return
        rows = at_least_float32(output.detach()).movedim(image_axis, 0)
        changes = rows[1:] - rows[:1]
        channels = {"tokens": 2} if output.ndim == 3 else grids
        for layout, axis in channels.items():
            # In layers that mix all places, all change alike. What remains without this change
            # tells more.
            positions = [other for other in range(1, output.ndim) if other != axis]
            for less in (False, True):
                left = changes - changes.mean(dim=positions, keepdim=True) if less else changes
                answers = left.abs().mean(dim=axis)  # to the two changed images, (2, *positions)
                start = answers.new_zeros(n_parts, *answers.shape[1:])
                sums.setdefault((layout, less), start)[list(pair)] += answers

    generator = torch.Generator().manual_seed(0)
    found: list[TargetLayer] = []
    with torch.inference_mode(False), left_as_found(model):
        handle = model.get_submodule(name).register_forward_hook(note)
        try:
            for i in range(most):
                image, other = noise(sample, 2, generator, scale).split(1)
                for pair in pairs:
                    changed = [with_quadrant(image, other, quadrant) for quadrant in pair]
                    forward(torch.cat([image, *changed]))
                least = _ENOUGH if i == most - 1 else _CLEAR
                found = []
                for (layout, _), responses in sums.items():
                    layers = _in_place(name, layout, responses, size, least)
                    found += [layer for layer in layers if layer not in found]
                if len(found) == 1 or not sums:
                    break
        finally:
            handle.remove()
    return found, sums


def _in_place(
    name: str, layout: str, responses: Tensor, size: Size, least: float
) -> Iterator[TargetLayer]:
    if layout != "tokens":
        if _has_proportions(tuple(responses.shape[1:]), size) and contrast(responses) > least:
            yield TargetLayer(name, layout=layout)  # type: ignore[arg-type]
        return
    if len(size) != 2:  # too many grids of volumes have the same number of tokens
        return
    n_tokens = responses.shape[1]
    # Among grids of almost the same proportions, one responds best in place.
    fits = {
        grid: agreement(responses[:, n_tokens - math.prod(grid) :].unflatten(1, grid))
        / math.prod(grid)
        for grid in _grids(n_tokens, size)
    }
    best = max(fits.values(), default=0)
    for grid in (grid for grid, fit in fits.items() if fit * _ENOUGH > best):
        n_prefix = n_tokens - math.prod(grid)
        # If shifted by a token or two, quadrants still respond, but not as well.
        shifted = [
            agreement(responses[:, start : start + math.prod(grid)].unflatten(1, grid))
            for start in range(n_prefix + 1)
        ]
        own = responses[:, n_prefix:].unflatten(1, grid)
        if max(shifted) == shifted[n_prefix] and contrast(own) > least:
            yield TargetLayer(name, "tokens", grid, n_prefix, image_size=size)


def _has_proportions(grid: tuple[int, ...], size: Size) -> bool:
    u, *others = grid
    is_finer = all(v <= side for v, side in zip(grid, size, strict=True))
    return (
        math.prod(grid) > 1
        and is_finer
        and all(abs(u * n / size[0] - v) <= 1 for v, n in zip(others, size[1:], strict=True))
    )


def _grids(n_tokens: int, size: Size) -> Iterator[tuple[int, int]]:
    for u in range(math.isqrt(n_tokens * size[0] // size[1]) + 1, 0, -1):
        exact = u * size[1] / size[0]
        for v in sorted({math.floor(exact), math.ceil(exact)}):
            n_prefix = n_tokens - u * v
            if 0 <= n_prefix <= _MOST_PREFIX_TOKENS and _has_proportions((u, v), size):
                yield u, v


def count_positions(
    model: nn.Module, layer: TargetLayer, sample: Tensor, forward: Forward
) -> tuple[int, int | None]:
    """Count a layer's positions for an image, and those at which the output has a gradient.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
    sample, forward
        As in :func:`trace`.

    Returns
    -------
    n_positions : int
    n_alive : int or None
        None if no gradient at all leads from the output to the layer, which explaining reports, or
        all of it is zero.

    Raises
    ------
    ReentrantCheckpoint
        If parts behind the layer run in a reentrant checkpoint.
    """
    image = noise(sample, 1, torch.Generator().manual_seed(0))
    n_positions, n_alive = _positions(model, layer, image, forward)
    if n_alive == 1:  # by its structure, or only because a ReLU cuts off others with these weights
        for seed in range(3):
            with redrawn(model, seed):
                _, with_others = _positions(model, layer, image, forward)
            n_alive = max(n_alive, with_others or 0)
    return n_positions, n_alive


def _positions(
    model: nn.Module, layer: TargetLayer, image: Tensor, forward: Forward
) -> tuple[int, int | None]:
    # Behind a part under no_grad(), there is a graph only if gradients were on before it: see
    # RecordedPass.
    for trunk in (False, True):
        with left_as_found(model), zeros_filled(model), record(model, layer, trunk=trunk) as tape:
            output = at_least_float32(forward(image))
            activations = tape.of(layer)
            n_positions = layer.n_positions(activations.detach())
            if not output.requires_grad:
                continue
            try:
                (gradient,) = torch.autograd.grad(_score(output), activations, allow_unused=True)
            except RuntimeError as error:  # an operation has no backward pass
                if is_reentrant(output):
                    raise ReentrantCheckpoint(
                        f"No gradient leads back to the target layer {layer.name!r}: {REENTRANT}"
                    ) from error
                break
            # If all of it is zero, as in a dead network, this tells nothing about positions.
            if gradient is not None and bool(gradient.any()):
                return n_positions, int((layer.to_grid(gradient) != 0).any(dim=1).sum())
            break
    return n_positions, None


def is_passed_at(model: nn.Module, layer: TargetLayer, sample: Tensor, forward: Forward) -> bool:
    """Whether, at several positions, the output has a gradient that bypasses a normalisation.

    Parameters
    ----------
    model : nn.Module
    layer : TargetLayer
        A normalisation, whose input has the layout of its output.
    sample, forward
        As in :func:`trace`.

    Returns
    -------
    bool
    """
    given: list[Tensor] = []

    def cut(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given.append(inputs[0])
        return output.detach()

    with torch.inference_mode(False), left_as_found(model), zeros_filled(model):
        handle = layer.of(model).register_forward_hook(cut)
        try:
            with torch.enable_grad():
                image = noise(sample, 1, torch.Generator().manual_seed(0)).requires_grad_()
                output = at_least_float32(forward(image.clone()))
                score, last = _score(output), given[-1]
            if not (output.requires_grad and last.requires_grad):
                return False
            # With the hook, as checkpoints run the layer again in the backward pass.
            (gradient,) = torch.autograd.grad(score, last, allow_unused=True)
        finally:
            handle.remove()
    return gradient is not None and int((layer.to_grid(gradient) != 0).any(dim=1).sum()) > 1


def _score(output: Tensor) -> Tensor:
    """Return one number that depends on an output."""
    # One of several classes, as each may depend on a position of its own; otherwise a random
    # direction. Large, so that half precision loses no gradient.
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return 2**8 * (output.amax() if output.ndim == 2 else (output * weights).sum())
