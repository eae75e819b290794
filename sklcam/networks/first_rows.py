"""A graph of a transformer's first tokens alone, beside a pass of all tokens without a graph.

If the head reads a class token, only this token has a gradient back to the last attention. Between
them, operations on each token by itself need no graph for the others. The pass itself is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]

# Networks whose scores also read other rows in some way: a graph of the first rows is no use there.
READ_ALL_ROWS: WeakSet[nn.Module] = WeakSet()

_NAME = "_first_rows"  # the attribute that is set on tensors


class FirstRows(TorchFunctionMode):
    """Passes in which the results of some tensors have a graph of their first rows alone.

    Operations that treat each row by itself run twice: without a graph for all rows, which gives
    the result that the network continues with, and with a graph for the first rows. Any other
    operation has a graph of all rows as usual, back to its inputs. A gradient that arrives there is
    passed to the first rows, and the record notes whether other rows have one, which would be lost.

    Parameters
    ----------
    n_rows : int

    Notes
    -----
    Nothing is assumed about the network: operations that are not recognised keep their own graph.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks.first_rows import FirstRows
    >>> rows, net = FirstRows(1), nn.Sequential(nn.Linear(4, 4), nn.GELU())
    >>> first, tokens = rows.begin(torch.rand(2, 10, 4), axis=1)
    >>> with rows:
    ...     output = net(tokens)
    >>> (gradient,) = torch.autograd.grad(output[:, 0].sum(), first, retain_graph=True)
    >>> gradient.shape, rows.miss_others()
    (torch.Size([2, 1, 4]), False)
    >>> _ = torch.autograd.grad(output.sum(), first)
    >>> rows.miss_others()
    True
    """

    def __init__(self, n_rows: int):
        super().__init__()
        self.n_rows = n_rows
        self._others: list[Tensor] = []

    def begin(self, output: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Begin a graph at the first rows of a tensor.

        Parameters
        ----------
        output : Tensor
            A tensor with more rows, which nothing else keeps.
        axis : int
            The axis of its rows.

        Returns
        -------
        first : Tensor
            The first rows, to differentiate with respect to.
        output : Tensor
            The same values as given, for the network to continue with.
        """
        axis = axis % output.ndim - output.ndim  # counted from the end, as broadcasting does
        first = output.detach().narrow(axis, 0, self.n_rows).clone().requires_grad_()
        return first, self._join(first, output.detach(), axis)

    def of(self, output: Tensor) -> Tensor:
        """Return the first rows of a later tensor, (n_images, n_rows, K), with their graph."""
        few = _noted_at(output)
        if few is not None and few.axis == -2:
            return few.rows
        return output[:, : self.n_rows]

    def miss_others(self) -> bool:
        """Whether other rows have a gradient too, so that the first rows do not tell everything."""
        return bool(self._others) and bool(torch.stack(self._others).any())

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        handler = self._handlers.get(func)
        if handler is None or not torch.is_grad_enabled():
            return func(*args, **(kwargs or {}))
        return handler(self, func, *args, **(kwargs or {}))

    def _join(self, rows: Tensor, output: Tensor, axis: int) -> Tensor:
        if not rows.requires_grad:
            return output
        # Not a view, as later operations may work in place, which a function's views forbid.
        output = torch.ops.aten._unsafe_view(output, output.shape)
        joined: Tensor = _Joined.apply(rows, (output,), axis, self._others)
        return _noted(joined, rows, axis)

    def _by_row(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        return self._of_each(func, 0, *args, **kwargs)

    def _linear(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        few = _noted_at(args[0]) if args else None
        # Weights may be the result of something with a graph.
        is_usual = not kwargs and all(each is None or each.is_leaf for each in args[1:])
        if few is None or few.axis != -2 or not is_usual:
            return self._of_each(func, 1, *args, **kwargs)
        with torch.no_grad():
            output = func(*args)
        # The values are already computed.
        rows = _Linear.apply(few.rows, args[1], output.narrow(-2, 0, self.n_rows).clone)
        return self._join(rows, output, -2)

    def _norm(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
        return self._of_each(func, len(shape), *args, **kwargs)

    def _of_each(self, func: Function, n_mixed: int, *args: Any, **kwargs: Any) -> Any:
        """Run an operation that mixes no more than the last ``n_mixed`` axes."""
        few = _noted_at(args[0]) if args else None
        in_place = kwargs.get("inplace", False) or any(each is True for each in args)
        if few is None or in_place or -few.axis <= n_mixed:
            return func(*args, **kwargs)
        with torch.no_grad():
            output = func(*args, **kwargs)
        if output is args[0]:  # such as ``to`` with the dtype that it already has
            return output
        return self._join(func(few.rows, *args[1:], **kwargs), output, few.axis)

    def _of_two(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        """Run an operation that broadcasts two tensors, or a tensor and a number."""
        found = [few for each in args if (few := _noted_at(each)) is not None]
        if not found or len(args) != 2 or "out" in kwargs or len({few.axis for few in found}) > 1:
            return func(*args, **kwargs)
        with torch.no_grad():
            output = func(*args, **kwargs)
        axis = found[0].axis
        rows = [self._rows_of(each, output.shape[axis], axis) for each in args]
        return self._join(func(*rows, **kwargs), output, axis)

    def _rows_of(self, each: Any, n_all: int, axis: int) -> Any:
        few = _noted_at(each)
        if few is not None:
            return few.rows
        if not isinstance(each, Tensor) or each.ndim < -axis or each.shape[axis] != n_all:
            return each  # the same for all rows
        return each.narrow(axis, 0, self.n_rows)

    def _turned(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        output = func(*args, **kwargs)
        few = _noted_at(args[0]) if args else None
        if few is None or output is args[0]:
            return output
        rows = func(few.rows, *args[1:], **kwargs)
        (axis,) = (i for i in range(-rows.ndim, 0) if rows.shape[i] != output.shape[i])
        return _noted(output, rows, axis)

    def _reshaped(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        output = func(*args, **kwargs)
        few = _noted_at(args[0]) if args else None
        if few is None or output is args[0]:
            return output
        axis = _axis_in(output.shape, args[0].shape, few.axis)
        if axis is None or output.dtype != few.rows.dtype:  # the same bytes viewed as another dtype
            return output
        shape = [*output.shape]
        shape[axis] = self.n_rows
        return _noted(output, few.rows.reshape(shape), axis)

    _handlers: ClassVar[Mapping[Function, Function]] = {
        F.linear: _linear,
        **dict.fromkeys((F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm), _norm),
        **dict.fromkeys(
            (
                *(F.gelu, F.relu, F.silu, F.elu, F.leaky_relu, F.tanh, F.sigmoid, F.hardswish),
                *(torch.relu, torch.tanh, torch.sigmoid, Tensor.relu, Tensor.tanh, Tensor.sigmoid),
                *(Tensor.to, Tensor.type_as, Tensor.float, Tensor.contiguous, Tensor.clone),
            ),
            _by_row,
        ),
        **dict.fromkeys(
            (
                *(torch.add, Tensor.add, torch.sub, Tensor.sub, torch.mul, Tensor.mul),
                *(torch.div, Tensor.div),
            ),
            _of_two,
        ),
        **dict.fromkeys(
            (torch.transpose, Tensor.transpose, torch.permute, Tensor.permute), _turned
        ),
        **dict.fromkeys(
            (torch.reshape, Tensor.reshape, torch.flatten, Tensor.flatten, Tensor.view), _reshaped
        ),
    }


@dataclass(frozen=True, eq=False)
class _Few:
    """The first rows of a tensor, with their graph; valid until something writes to the tensor."""

    rows: Tensor
    axis: int
    version: int
    node: Node | None


def _noted(output: Tensor, rows: Tensor, axis: int) -> Tensor:
    setattr(output, _NAME, _Few(rows, axis, output._version, output.grad_fn))
    return output


def _noted_at(each: Any) -> _Few | None:
    few = getattr(each, _NAME, None) if isinstance(each, Tensor) else None
    if few is None or few.version != each._version or few.node is not each.grad_fn:
        return None
    assert isinstance(few, _Few)
    return few


def _axis_in(shape: Sequence[int], was: Sequence[int], axis: int) -> int | None:
    """Return the axis of a reshaped tensor that an axis became; None if it was split or merged."""
    n_before, n_rows = torch.Size(was[:axis]).numel(), was[axis]
    for i in range(len(shape)):
        if shape[i] == n_rows and torch.Size(shape[:i]).numel() == n_before:
            return i - len(shape)
    return None


class _Joined(torch.autograd.Function):
    """All rows, with the graph of the first ones."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, output: tuple[Tensor], axis: int, others: list[Tensor]
    ) -> Tensor:
        ctx.n_rows, ctx.axis, ctx.others = rows.shape[axis], axis, others
        return output[0]  # from a tuple, as returning a direct input would make it a view

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        n_others = gradient.shape[ctx.axis] - ctx.n_rows
        ctx.others.append(gradient.narrow(ctx.axis, ctx.n_rows, n_others).any())
        return gradient.narrow(ctx.axis, 0, ctx.n_rows), None, None, None


class _Linear(torch.autograd.Function):
    """A linear layer whose values are known: only the backward pass is computed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, output: Callable[[], Tensor]) -> Tensor:
        ctx.save_for_backward(weight)
        return output()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradient @ weight.to(gradient.dtype), None, None
