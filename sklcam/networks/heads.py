"""Heads: the operations behind a layer, recorded so that they can be computed again.

A pass is recorded operation by operation. If the scores are an affine function of the layer's
output, or depend only on global pooling of each channel, the scores without a channel follow
without another pass of the whole output through the rest of the network. This is decided by the
operations, never by values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sklcam.networks.dry_run import memory_of, version_of
from sklcam.networks.precision import at_least_float32

aten = torch.ops.aten

# A "grid" has the layer's channels, and each of its channels depends on the same one of the layer
# alone. The "head" depends on the layer only through channels without places. All else is "mixed".
_Stage = Literal["grid", "head", "mixed"]


@dataclass
class _Value:
    """A tensor that depends on the layer, and how it does."""

    tensor: Tensor  # kept, so that its memory is not used again
    stage: _Stage
    is_affine: bool = False  # in the layer's output; in the head, in the channels without places
    axis: int = 0  # the axis of the channels, in a grid


@dataclass(frozen=True)
class _Slot:
    """A placeholder for a value among the arguments of a step."""

    index: int


@dataclass(frozen=True)
class _Step:
    """An operation on values and constants, and the values that it returns."""

    function: Any
    args: Any
    kwargs: Any
    results: list[int | None]
    stage: _Stage


class _Stop(Exception):
    """Raised if the rest of the network does not allow the shortcut."""


class Head:
    """The computation of scores from the output of a layer; made by :func:`trace_head`.

    Attributes
    ----------
    scores : Tensor of shape (n_images, k)
        The scores of the traced pass.

    Examples
    --------
    The channels of this layer have the means 1 and 4. Without a channel, a linear score falls by
    the channel's mean times its weight:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks.heads import trace_head
    >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))
    >>> _ = net[2].weight.data.copy_(torch.tensor([[3.0, -0.5]]))
    >>> activations = torch.tensor([[[[0.0, 2.0]], [[3.0, 5.0]]]])
    >>> trace_head(net, activations, axis=1).falls(batch_size=8)
    tensor([[[ 3., -2.]]])
    """

    def __init__(
        self,
        scores: Tensor,
        activations: Tensor,
        cuts: dict[int, int],
        before: Sequence[_Step],
        behind: Sequence[_Step],
        last: _Slot,
        is_affine: bool,
    ):
        self.scores = scores
        self._activations = activations
        self._cuts = cuts  # the values that the scores depend on, with the axes of the channels
        self._before = before
        self._behind = behind
        self._last = last
        self._is_affine = is_affine

    def falls(self, batch_size: int) -> Tensor:
        """Return by how much the scores fall if a channel of the layer is set to zero.

        Parameters
        ----------
        batch_size : int
            The largest number of rows that go through the head at once, if any need to.

        Returns
        -------
        Tensor of shape (n_images, k, K)
            float32, or float64 if the network computes in it. Half precision has too few digits for
            the effect of a single channel.
        """
        with self._exactly():
            there, gone = self._there_and_gone()
            if self._is_affine:
                return self._by_gradient(there, gone)
            return self._by_passes(there, gone, batch_size)

    def without(self, gone: Tensor, falls: Tensor) -> Tensor:
        """Return the scores if several channels of the layer are set to zero.

        Parameters
        ----------
        gone : bool Tensor of shape (K,)
        falls : Tensor of shape (n_images, k, K)
            As :meth:`falls` returns them.

        Returns
        -------
        Tensor of shape (n_images, k)
            float32, or float64 if the network computes in it.
        """
        with self._exactly():
            there, empty = self._there_and_gone()
            if self._is_affine:
                return self._score(there) - falls[..., gone].sum(dim=2)
            return self._score(
                torch.where(gone.reshape(-1, *[1] * (full.ndim - axis - 1)), none, full)
                for full, none, axis in zip(there, empty, self._cuts.values(), strict=True)
            )

    @contextmanager
    def _exactly(self) -> Iterator[None]:
        with torch.no_grad(), torch.autocast(self._activations.device.type, enabled=False):
            yield

    def _there_and_gone(self) -> tuple[list[Tensor], list[Tensor]]:
        given = at_least_float32(self._activations)
        return self._pooled(given.clone()), self._pooled(torch.zeros_like(given))

    def _pooled(self, activations: Tensor) -> list[Tensor]:
        values = _run(self._before, {0: activations})
        return [values[index] for index in self._cuts]

    def _score(self, pooled: Iterable[Tensor]) -> Tensor:
        copies = [each.clone() for each in pooled]  # a step may work in place
        values = _run(self._behind, dict(zip(self._cuts, copies, strict=True)))
        return values[self._last.index]

    def _by_gradient(self, there: list[Tensor], gone: list[Tensor]) -> Tensor:
        """Return the falls of affine scores: the gradient times the values that are removed."""
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_() for each in there]
            columns = self._score(leaves).sum(dim=0)
            every = [
                torch.autograd.grad(column, leaves, retain_graph=True, materialize_grads=True)
                for column in columns
            ]
        away = [full - empty for full, empty in zip(there, gone, strict=True)]
        falls = []
        for gradients in every:
            of_each = [
                _sum_of_places(gradient * each, axis)
                for gradient, each, axis in zip(gradients, away, self._cuts.values(), strict=True)
            ]
            falls.append(torch.stack(of_each).sum(dim=0))
        return torch.stack(falls, dim=1)

    def _by_passes(self, there: list[Tensor], gone: list[Tensor], batch_size: int) -> Tensor:
        axes = list(self._cuts.values())

        def without(channel: Tensor) -> Tensor:
            return self._score(
                torch.where(_at(channel, full, axis), empty, full)
                for full, empty, axis in zip(there, gone, axes, strict=True)
            )

        intact = self._score(there)
        channels = torch.arange(there[0].shape[axes[0]], device=intact.device)
        # At a time, all images without each of some channels.
        at_once = max(1, batch_size // len(intact))
        scores = torch.vmap(without, chunk_size=at_once)(channels)
        return (intact - scores).permute(1, 2, 0)


def _sum_of_places(tensor: Tensor, axis: int) -> Tensor:
    return tensor.movedim(axis, 1).reshape(len(tensor), tensor.shape[axis], -1).sum(dim=2)


def _at(channel: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """Return a mask of one channel along an axis of a tensor, for broadcasting with it."""
    channels = torch.arange(tensor.shape[axis], device=tensor.device)
    return (channels == channel).reshape(-1, *[1] * (tensor.ndim - axis - 1))


def trace_head(
    scores_of: Callable[[Tensor], Tensor], activations: Tensor, axis: int
) -> Head | None:
    """Record how scores are computed from a layer's output.

    Parameters
    ----------
    scores_of : callable
        Maps the layer's output to scores (n_images, k), each row from its own image alone.
    activations : Tensor of shape (n_images, ...)
        The layer's output.
    axis : int
        The axis of the channels.

    Returns
    -------
    Head or None
        None if channels are combined before they are pooled, unless all operations are affine, or
        if an operation cannot be followed. The pass ends there.
    """
    try:
        with torch.no_grad(), _Trace(activations, axis) as trace, _NoEscape(trace):
            scores = scores_of(trace.given)
        return trace.head(scores, activations)
    except _Stop:
        return None


class _Trace(TorchDispatchMode):
    """Record the operations on a layer's output, and on everything computed from it."""

    def __init__(self, activations: Tensor, axis: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.given = activations.clone()
        self._axis = axis
        self._steps: list[_Step] = []
        self._constants: list[tuple[Tensor, int | None]] = []  # with the count of writes to each
        self._values: list[_Value] = []
        self._indices: dict[Any, int] = {}
        self._cuts: dict[int, int] = {}
        self._add(_Value(self.given, "grid", is_affine=True, axis=axis))

    def head(self, scores: Tensor, activations: Tensor) -> Head:
        """Return the recorded head, for a layer's output and the scores computed from it."""
        last = self.placed(scores)
        if not isinstance(last, _Slot):  # the scores do not depend on the layer
            raise _Stop
        value = self._values[last.index]
        cuts, before, behind = {0: self._axis}, [], self._steps
        if value.stage == "head":
            cuts = self._cuts
            before = [step for step in self._steps if step.stage == "grid"]
            behind = [step for step in self._steps if step.stage == "head"]
        elif not value.is_affine:
            raise _Stop
        if any(version_of(constant) != version for constant, version in self._constants):
            raise _Stop  # something wrote to them after their use
        return Head(scores, activations, cuts, before, behind, last, value.is_affine)

    def placed(self, argument: Any) -> Any:
        """Return the slot of an argument that is a value, and any other argument itself."""
        is_value = isinstance(argument, Tensor) and _identity(argument) in self._indices
        return _Slot(self._indices[_identity(argument)]) if is_value else argument

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        taken, options = tree_map(self.placed, (args, kwargs))
        slots = [leaf for leaf in tree_leaves((taken, options)) if isinstance(leaf, _Slot)]
        is_hidden = slots and not _HIDDEN.isdisjoint(func.tags)
        if is_hidden or torch.Tag.nondeterministic_seeded in func.tags:
            raise _Stop
        if not slots or func.overloadpacket in _OF_SHAPES:
            return func(*args, **kwargs)
        if func.overloadpacket is aten.as_strided_:  # changes the strides, not the values
            return self._restrided(func, args, slots)
        values = [self._values[slot.index] for slot in slots]
        stage, is_affine, axis = _Operation(func, taken, options, values).outcome()
        constants = [leaf for leaf in tree_leaves((taken, options)) if isinstance(leaf, Tensor)]
        self._constants += [(constant, version_of(constant)) for constant in constants]
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not made:  # a number, on which the network's next steps may depend
            raise _Stop
        main = _Value(made[0], stage, is_affine, axis)
        if func._schema.is_mutable:
            self._check_written(main)
        results: list[int | None] = [self._add(main)]
        for tensor in made[1:]:  # such as the indices of maxima, which are not followed in a grid
            value = _Value(tensor, "head" if stage == "head" else "mixed")
            results.append(self._add(value) if tensor.numel() else None)
        self._steps.append(_Step(func, taken, options, results, stage))
        return result

    def _restrided(self, func: Any, args: Any, slots: list[_Slot]) -> Tensor:
        tensor, sizes = args[:2]
        if tuple(sizes) != tensor.shape:
            raise _Stop
        result = func(*args)
        self._indices[_identity(result)] = slots[0].index
        return result

    def _add(self, value: _Value) -> int:
        index = self._indices.setdefault(_identity(value.tensor), len(self._values))
        shape = value.tensor.shape
        if value.stage == "grid" and math.prod(shape) == shape[0] * shape[value.axis]:
            self._cuts[index] = value.axis
            value = _Value(value.tensor, "head", is_affine=True)
        self._values[index : index + 1] = [value]
        return index

    def _check_written(self, written: _Value) -> None:
        """Stop unless a tensor written in place is known, with all that shares its memory."""
        identity, memory = _identity(written.tensor), memory_of(written.tensor)
        if identity not in self._indices:
            raise _Stop
        for value in self._values:
            if memory_of(value.tensor) == memory and _identity(value.tensor) != identity:
                if value.stage != written.stage:
                    raise _Stop
                value.is_affine = value.is_affine and written.is_affine


@dataclass(frozen=True)
class _Operation:
    """An operation on values."""

    func: Any
    args: Any
    kwargs: Any
    values: list[_Value]

    def outcome(self) -> tuple[_Stage, bool, int]:
        """Return the stage of the result, whether it is affine, and the axis of its channels."""
        is_affine = all(value.is_affine for value in self.values) and self._is_affine()
        stages = {value.stage for value in self.values}
        if stages == {"head"}:
            return "head", is_affine, 0
        axis = self._axis() if stages == {"grid"} else None
        if axis is not None:
            return "grid", is_affine, axis
        # If pooled channels meet others, no single set of values determines the scores.
        if "head" in stages or not is_affine:
            raise _Stop
        return "mixed", True, 0

    def _is_affine(self) -> bool:
        packet, dtype = self.func.overloadpacket, self.kwargs.get("dtype")
        if self.func is aten.view.dtype:  # reads the same bits as other numbers
            return False
        if self.kwargs.get("rounding_mode") or not (dtype is None or dtype.is_floating_point):
            return False
        if packet in _SUMS:
            return True
        is_one = len(self.values) == 1
        if packet in _PRODUCTS:
            return is_one
        if packet in _NORMS and self._is_training():
            return False
        return is_one and isinstance(self.args[0], _Slot) and packet in _OF_FIRST

    def _is_training(self) -> bool:
        # All normalisations but one, which is for evaluation only, have this argument.
        return any(argument is True for argument in self.args[5:6])

    def _axis(self) -> int | None:
        """Return the axis of the channels in the result, if it keeps them separate, else None."""
        shape, axis = self.values[0].tensor.shape, self.values[0].axis
        packet = self.func.overloadpacket
        if torch.Tag.pointwise in self.func.tags or packet in _POINTWISE:
            return axis if self._is_aligned(shape, axis) else None
        rule = _AXES.get(packet)
        if rule is None or len(self.values) > 1 or not isinstance(self.args[0], _Slot):
            return None
        if self.func is aten.view.dtype:
            return None
        if packet in _NORMS and self._is_training():
            return None
        return rule(shape, axis, *self.args[1:], **self.kwargs)

    def _is_aligned(self, shape: torch.Size, axis: int) -> bool:
        """Whether all operands of an elementwise operation have the channels on the same axis."""
        leaves = tree_leaves((self.args, self.kwargs))
        constants = [leaf.shape for leaf in leaves if isinstance(leaf, Tensor)]
        return all(
            (value.tensor.shape, value.axis) == (shape, axis) for value in self.values
        ) and all(torch.broadcast_shapes(shape, other) == shape for other in constants)


# The axis of the channels after an operation on (n_images, ...) that had them on a given axis. Each
# function also gets the operation's other arguments. None if rows or channels are mixed.


def _permuted(shape: torch.Size, axis: int, dims: Sequence[int]) -> int | None:
    order = [dim % len(shape) for dim in dims]
    return None if order[0] else order.index(axis)


def _transposed(shape: torch.Size, axis: int, *dims: int) -> int | None:
    order = list(range(len(shape)))
    one, other = dims
    order[one], order[other] = order[other], order[one]
    return _permuted(shape, axis, order)


def _viewed(shape: torch.Size, axis: int, size: Sequence[int]) -> int | None:
    sizes = list(size)
    if -1 in sizes:
        sizes[sizes.index(-1)] = shape.numel() // -math.prod(sizes)
    before, n_channels = math.prod(shape[:axis]), shape[axis]
    for i, side in enumerate(sizes):
        if i and sizes[0] == shape[0] and math.prod(sizes[:i]) == before and side == n_channels:
            return i
    return None


def _inserted(shape: torch.Size, axis: int, dim: int) -> int | None:
    place = dim % (len(shape) + 1)
    return axis + (place <= axis) if place else None


def _reduced(
    shape: torch.Size,
    axis: int,
    dims: int | Sequence[int] | None = None,
    keepdim: bool = False,
    **_: Any,
) -> int | None:
    gone = {dim % len(shape) for dim in ([dims] if isinstance(dims, int) else dims or [0])}
    if 0 in gone or axis in gone:
        return None
    return axis if keepdim else axis - sum(dim < axis for dim in gone)


def _squeezed(shape: torch.Size, axis: int, dims: int | Sequence[int] = 0) -> int | None:
    gone = [dims] if isinstance(dims, int) else dims
    return _reduced(shape, axis, [dim for dim in gone if shape[dim] == 1]) if gone else axis


def _selected(shape: torch.Size, axis: int, dim: int, _: int) -> int | None:
    return _reduced(shape, axis, dim)


def _sliced(shape: torch.Size, axis: int, dim: int = 0, *_: Any) -> int | None:
    return _reduced(shape, axis, dim, keepdim=True)


def _unmoved(shape: torch.Size, axis: int, *_: Any, **__: Any) -> int | None:
    return axis


def _of_images(shape: torch.Size, axis: int, *_: Any, **__: Any) -> int | None:
    """Return the axis for operations on (n_images, K, ...) that keep the channels separate."""
    return 1 if axis == 1 and len(shape) > 3 else None


def _of_pictures(shape: torch.Size, axis: int, *_: Any, **__: Any) -> int | None:
    return 1 if axis == 1 and len(shape) == 4 else None


def _of_volumes(shape: torch.Size, axis: int, *_: Any, **__: Any) -> int | None:
    # With four axes, the operation would take the images for channels and the channels for places.
    return 1 if axis == 1 and len(shape) == 5 else None


_NORMS = {
    aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm,
    aten.miopen_batch_norm, aten._batch_norm_no_update,
}  # fmt: skip
_POOLINGS = {
    aten.avg_pool2d: _of_pictures, aten._adaptive_avg_pool2d: _of_pictures,
    aten.avg_pool3d: _of_volumes, aten._adaptive_avg_pool3d: _of_volumes,
}  # fmt: skip
_MAXIMA = {
    aten.max_pool2d_with_indices: _of_pictures, aten.adaptive_max_pool2d: _of_pictures,
    aten.max_pool3d_with_indices: _of_volumes, aten.adaptive_max_pool3d: _of_volumes,
}  # fmt: skip
_AXES: dict[Any, Callable[..., int | None]] = {
    aten.permute: _permuted,
    aten.transpose: _transposed,
    aten.view: _viewed,
    aten._unsafe_view: _viewed,
    aten.unsqueeze: _inserted,
    aten.squeeze: _squeezed,
    aten.select: _selected,
    aten.slice: _sliced,
    aten.detach: _unmoved,
    aten.alias: _unmoved,
    aten._to_copy: _unmoved,
    **dict.fromkeys((aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min), _reduced),
    **dict.fromkeys(_NORMS, _of_images),
    **_POOLINGS,
    **_MAXIMA,
}
# Elementwise functions that torch does not tag as pointwise.
_POINTWISE = {aten.hardswish, aten.hardswish_, aten._prelu_kernel, aten.log_sigmoid_forward}
# Affine in all of their tensors together; in one if the others are constants; in the first one.
_SUMS = {aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub, aten.cat, aten.stack}
_PRODUCTS = {
    aten.mul, aten.mul_, aten.mm, aten.bmm, aten.mv, aten.dot, aten.addmm, aten.addmv, aten.baddbmm,
    aten.convolution,
}  # fmt: skip
_OF_FIRST = {
    *_NORMS, *_POOLINGS, aten.div, aten.div_, aten.neg, aten.mean, aten.sum, aten.permute,
    aten.transpose, aten.t, aten.view, aten._unsafe_view, aten.unsqueeze, aten.squeeze, aten.select,
    aten.slice, aten.alias, aten.clone, aten._to_copy, aten.expand, aten.gather, aten.index,
    aten.index_select, aten.diagonal,
}  # fmt: skip
# These use a tensor's shape alone.
_OF_SHAPES = {
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.new_zeros,
    aten.new_ones, aten.new_full, aten.new_empty,
}  # fmt: skip
# Their results depend on more than the values, or the shapes of the results depend on values.
_HIDDEN = {
    torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
}  # fmt: skip


class _NoEscape(TorchFunctionMode):
    """Stop a trace where values leave torch and can no longer be followed."""

    def __init__(self, trace: _Trace):
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ESCAPES and any(isinstance(self._trace.placed(each), _Slot) for each in args):
            raise _Stop
        return func(*args, **(kwargs or {}))


_ESCAPES = {Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr}


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that identifies a tensor, as the same view may come as another object."""
    place = memory_of(tensor), tensor.storage_offset()
    return (*place, tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _run(steps: Sequence[_Step], values: dict[int, Tensor]) -> dict[int, Tensor]:
    """Repeat the steps with other values, in at least float32."""

    def fill(argument: Any) -> Any:
        if isinstance(argument, _Slot):
            return values[argument.index]
        if isinstance(argument, Tensor):
            return argument.float() if argument.dtype in _NARROW else argument
        return torch.float32 if argument in _NARROW else argument

    for step in steps:
        args, kwargs = tree_map(fill, (step.args, step.kwargs))
        results = tree_leaves(step.function(*args, **kwargs))
        tensors = [result for result in results if isinstance(result, Tensor)]
        for index, tensor in zip(step.results, tensors, strict=True):
            if index is not None:
                values[index] = tensor
    return values


_NARROW = (torch.float16, torch.bfloat16)
