"""Attention: the weights that the tokens of an image give each other in a forward pass.

Networks compute attention with one function of torch, with ``nn.MultiheadAttention``, or with a
softmax and a product of their own. All of these are function calls, so nothing needs to be known of
the modules. A fused kernel shows no weights: the same product is computed step by step instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import RLock, get_ident
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch._ops import OperatorBase, OpOverloadPacket
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sklcam.networks.dry_run import replaced
from sklcam.networks.first_rows import READ_ALL_ROWS, FirstRows
from sklcam.networks.trunk import Trunk

Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Block:
    """The run of the outermost module that returns tokens and holds just one run of attention.

    Attributes
    ----------
    output : object
        The output of the module: a Tensor of tokens (n_images, n_tokens, K), or a tuple that begins
        with one. If only the first tokens have a graph, only these are kept.
    shape : tuple of int
        The shape of all tokens.
    trunk : Trunk
        The modules that had run when the block began.
    """

    output: Any
    shape: tuple[int, ...]
    trunk: Trunk

    @property
    def tokens(self) -> Tensor:
        """The block's output for each token that is kept."""
        return _first(self.output)

    def like(self, tokens: Tensor) -> Any:
        """Return other tokens in the form in which the block returns its own."""
        if isinstance(self.output, Tensor):
            return tokens
        return type(self.output)([tokens, *self.output[1:]])


class AttentionRecord(TorchFunctionMode):
    """The attention of one forward pass. Enter the record around that pass.

    Parameters
    ----------
    keep : callable or None, default=None
        Maps the weights of each run to what is kept of them; None keeps the weights themselves,
        with their graph.
    layerwise : bool, default=False
        Whether each run is looked at separately: blocks and sums are kept, but no weights. Each
        run's sums begin a graph of their own, which does not lead further back, so a fused kernel
        may compute them.

    Attributes
    ----------
    weights : list of Tensor of shape (n_images, n_heads, n_queries, n_keys)
        The weights of each run, in order; or what ``keep`` made of them.
    shapes : list of tuple of int
        The shapes of the weights of each run.
    unread : list of tuple of int
        The shapes of tensors that may be the weights of an unknown form of attention: a softmax
        that no product uses to sum values, or a matrix in a product that is not a softmax.
    kernels : list of str
        The attention operators that were called directly, such as
        ``torch.ops.aten._scaled_dot_product_flash_attention`` and ``flex_attention``.
    is_differentiable : bool
        Whether the sums of values of all runs have a graph, or begin one.
    result : Tensor of shape (n_images, n_heads, n_queries, K) or None
        The sums of values of the last run, if they have a graph.
    sums : list of tuple of (Tensor, Tensor)
        For each run, the sums of values and the values, of shape (n_images, n_heads, n_keys, K).
    blocks : list of (Block or None)
        For each run, the block around it, if there is one; see :meth:`around`.

    Examples
    --------
    >>> import torch
    >>> from torch.nn.functional import scaled_dot_product_attention
    >>> from sklcam.networks.attention import AttentionRecord
    >>> query = torch.zeros(1, 2, 4, 8)
    >>> with AttentionRecord() as record:
    ...     _ = scaled_dot_product_attention(query, query, query)
    >>> record.weights[0][0, 0, 0]
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    idle = ""  # as the gradient rules have, which can be entered in its place

    def __init__(self, keep: Callable[[Tensor], Tensor] | None = None, *, layerwise: bool = False):
        super().__init__()
        self._keep = keep
        self._layerwise = layerwise
        self.first_rows: FirstRows | None = None
        # Each softmax that has summed no values yet, with the tensors that are copies of it.
        self._softmaxes: list[list[Tensor]] = []
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self.weights: list[Tensor] = []
        self.shapes: list[tuple[int, ...]] = []
        self.unread: list[tuple[int, ...]] = []
        self.kernels: list[str] = []
        self.is_differentiable = True
        self.result: Tensor | None = None
        self.sums: list[tuple[Tensor, Tensor]] = []
        self.blocks: list[Block | None] = []
        self._softmaxes.clear()

    def __enter__(self) -> Self:
        self.clear()  # the rest of a pass that failed
        TorchFunctionMode.__enter__(self)
        return self

    def __exit__(self, *error: Any) -> None:
        TorchFunctionMode.__exit__(self, *error)
        self.unread.extend(tuple(first.shape) for first, *_ in self._softmaxes)
        self._softmaxes.clear()

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        handler = self._handlers.get(func)
        if handler is None:
            if isinstance(func, OperatorBase | OpOverloadPacket) and _is_attention(str(func)):
                self.kernels.append(str(func))
            return func(*args, **(kwargs or {}))
        return handler(self, func, *args, **(kwargs or {}))

    def _note(self, weights: Tensor, result: Tensor, value: Tensor) -> Tensor:
        """Record a run, and return its sums."""
        if self._layerwise:
            return self._note_sums(tuple(weights.shape), result, value)
        self.weights.append(weights if self._keep is None else self._keep(weights.detach()))
        self._note_result(tuple(weights.shape), result)
        return result

    def _note_sums(self, shape: tuple[int, ...], result: Tensor, value: Tensor) -> Tensor:
        begin = result
        if torch.is_grad_enabled():
            if self.first_rows is None or result.shape[-2] <= self.first_rows.n_rows:
                begin = result = result.detach().requires_grad_()
            else:
                begin, result = self.first_rows.begin(result, axis=-2)
        # A copy: values may be a view between queries and keys, which would then be kept as well.
        self.sums.append((begin, value.detach().contiguous()))
        self._note_result(shape, result)
        return result

    def _note_result(self, shape: tuple[int, ...], result: Tensor) -> None:
        self.shapes.append(shape)
        self.blocks.append(None)
        self.is_differentiable &= result.requires_grad
        self.result = result if result.requires_grad else None

    def _attend(self, func: Function, *args: Any, **kwargs: Any) -> Tensor:
        if self._layerwise:
            return self._attended_fused(func, *args, **kwargs)
        return self._attended(*args, **kwargs)[1]

    def _attended_fused(
        self, func: Function, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        with torch.no_grad():
            result = func(query, key, value, *args, **kwargs)
            if result.shape[1] != value.shape[1] and kwargs.get("enable_gqa", False):
                value = value.repeat_interleave(result.shape[1] // value.shape[1], dim=1)
        shape = (*result.shape[:-1], key.shape[-2])
        return self._note_sums(shape, result, value)

    def _attended(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> tuple[Tensor, Tensor]:
        weights, value = attention_weights(
            query, key, value, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
        result = (F.dropout(weights, dropout_p) if dropout_p else weights) @ value
        return weights, self._note(weights, result, value)

    def _attend_by_module(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        # The functions that it calls are not seen here, and if it returns weights, they differ.
        wants_weights = kwargs.get("need_weights", True)
        thread = get_ident()
        found: list[Tensor] = []

        def attend(*args: Any, **kwargs: Any) -> Tensor:
            if get_ident() != thread:  # attention of another thread
                return fused(*args, **kwargs)
            if self._layerwise and not wants_weights:
                return self._attended_fused(fused, *args, **kwargs)
            weights, result = self._attended(*args, **kwargs)
            found.append(weights)
            return result

        with _function_lock:
            fused = F.scaled_dot_product_attention
            with replaced(F, "scaled_dot_product_attention", attend):
                result, _ = func(*args, **kwargs | {"need_weights": False})
        if not wants_weights:
            return result, None
        (weights,) = found
        is_averaged = kwargs.get("average_attn_weights", True)
        return result, weights.mean(dim=1) if is_averaged else weights

    def _softmax(self, func: Function, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = func(*args, **kwargs)
        if output.ndim in (3, 4):
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis in (-1, output.ndim - 1):
                self._softmaxes.append([output])
            else:  # every known form has the keys last
                self.unread.append(tuple(output.shape))
        return output

    def _group(self, weights: Any) -> list[Tensor] | None:
        """Return the softmax that some weights come from, with all of its copies."""
        for group in self._softmaxes:
            if any(weights is each for each in group):
                return group
        return None

    def _same(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        output = func(*args, **kwargs)
        if args and (group := self._group(args[0])) is not None:
            group.append(output)
        return output

    def _product(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        # A softmax is attention if it sums values unchanged.
        if len(args) > 1 and (group := self._group(args[0])) is not None:
            self._softmaxes = [each for each in self._softmaxes if each is not group]
            return self._note(args[0], result, args[1])
        self._note_unread(args)
        return result

    def _other_product(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        self._note_unread(args)
        return func(*args, **kwargs)

    def _note_unread(self, factors: Sequence[Any]) -> None:
        factors = [each for factor in factors for each in _as_list(factor)]
        shapes = [tuple(each.shape) for each in factors if isinstance(each, Tensor)]
        square = [each for each in shapes if len(each) > 2 and each[-1] == each[-2] > 1]
        if len(square) == 1:  # two may be queries and keys with as many channels as tokens
            self.unread.extend(square)

    def _einsum(self, func: Function, equation: Any, *args: Any) -> Any:
        if len(args) != 2 or self._group(args[0]) is None:
            return self._other_product(func, equation, *args)
        inputs, _, output = equation.replace(" ", "").partition("->")
        first, _, second = inputs.partition(",")
        rest = sorted(set(output) - set(first[:3]))
        usual, of_values = first[:3] + rest[0] if len(rest) == 1 else "", ""
        if usual:
            of_values = first[:2] + first[3:] + rest[0]
        if sorted(output) != sorted(usual) or sorted(second) != sorted(of_values):
            return self._other_product(func, equation, *args)  # some other sum
        # Computed in the usual order of axes, so that gradients pass through what is recorded.
        values = torch.einsum(f"{second}->{of_values}", args[1])
        result = self._product(torch.matmul, args[0], values)
        return torch.einsum(f"{usual}->{output}", result)

    _handlers: ClassVar[Mapping[Function, Function]] = {
        F.scaled_dot_product_attention: _attend,
        F.multi_head_attention_forward: _attend_by_module,
        **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _softmax),
        # These change weights in dtype at most; dropout does not change them in evaluation mode.
        **dict.fromkeys(
            (F.dropout, torch.dropout, Tensor.to, Tensor.type_as, Tensor.contiguous), _same
        ),
        **dict.fromkeys(
            (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), _product
        ),
        **dict.fromkeys((torch.baddbmm, Tensor.baddbmm, Tensor.__rmatmul__), _other_product),
        torch.einsum: _einsum,
    }

    def _block(self, output: Any, trunk: Trunk) -> Block | None:
        tokens = _first(output)
        if not isinstance(tokens, Tensor) or tokens.ndim != 3:
            return None
        block = Block(output, tuple(tokens.shape), trunk)
        if self.first_rows is None:
            return block
        with torch.enable_grad():
            return replace(block, output=block.like(self.first_rows.of(tokens)))

    @contextmanager
    def around(self, network: nn.Module, n_prefix: int = 0) -> Iterator[None]:
        """Record, for passes within this context, which module runs lie around each attention run.

        Enter this context before the record.

        Parameters
        ----------
        network : nn.Module
        n_prefix : int, default=0
            How many tokens precede those of the places, if a graph of these alone may suffice.
        """
        may_do = self._layerwise and n_prefix and network not in READ_ALL_ROWS
        self.first_rows = FirstRows(n_prefix) if may_do else None
        thread = get_ident()
        running: list[tuple[int, int, Trunk]] = []
        finished: list[tuple[nn.Module, Any]] = []

        def begin(part: nn.Module, inputs: tuple[Any, ...]) -> None:
            if get_ident() != thread:
                return
            trunk = Trunk(part)
            trunk.enter_layer(finished)
            running.append((len(finished), len(self.shapes), trunk))

        def end(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if get_ident() != thread:
                return
            start, n_before, trunk = running.pop()
            del finished[start:]  # the parts that ran inside it
            n_within = len(self.shapes) - n_before
            if self.first_rows is None or not self.shapes:
                finished.append((part, output))
            elif n_within:  # nothing else is needed, and no head should read an earlier output
                finished.append((part, _unreadable(output)))
            # The outermost module is the last to end.
            if n_within == 1:
                self.blocks[n_before] = self._block(output, trunk) or self.blocks[n_before]

        with ExitStack() as stack:
            stack.enter_context(self.first_rows or nullcontext())
            for part in network.modules() if self._layerwise else ():
                stack.callback(part.register_forward_pre_hook(begin).remove)
                stack.callback(part.register_forward_hook(end).remove)
            yield


# Held while a function of torch is replaced for one call.
_function_lock = RLock()


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the weights of :func:`torch.nn.functional.scaled_dot_product_attention`.

    Parameters
    ----------
    query, key, value, mask, is_causal, scale, enable_gqa
        As in that function.

    Returns
    -------
    weights : Tensor of shape (..., n_queries, n_keys)
        In [0, 1]; each row sums to 1, or to 0 if all keys are masked.
    value : Tensor
        The values, one for each head of the weights.
    """
    if enable_gqa:
        n_each = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(n_each, dim=-3) for each in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    products = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        shape, device = products.shape[-2:], products.device
        mask = torch.ones(shape, dtype=torch.bool, device=device).tril()
    if mask is not None and mask.dtype == torch.bool:
        products = products.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        products = products + mask
    if mask is None or is_causal:
        return products.softmax(dim=-1).to(value.dtype), value
    # A query whose keys are all masked attends to none, as in torch's own kernels.
    is_empty = (products == -torch.inf).all(dim=-1, keepdim=True)
    weights = products.masked_fill(is_empty, 0.0).softmax(dim=-1).masked_fill(is_empty, 0.0)
    return weights.to(value.dtype), value


def _is_attention(operator: str) -> bool:
    # Only the name tells; those of torch, xFormers and FlashAttention contain one of these.
    return any(part in operator for part in ("attention", "attn", "flash_fwd"))


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else [value]


def _unreadable(output: Any) -> Any:
    """Return NaN in the shape of an output: it takes no memory, and shows in all that reads it."""
    if isinstance(output, tuple | list) and type(output) in (tuple, list):
        return type(output)(map(_unreadable, output))
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return output
    return output.new_full((), torch.nan).expand(output.shape)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) and output else output
