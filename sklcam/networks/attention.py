"""Attention: the weights that tokens of an image give each other in a forward pass.

Networks compute attention by one function of torch's, by ``nn.MultiheadAttention``, or by a softmax
and a product of their own. All are functions, so that nothing need be known of modules. A fused
kernel has no weights to show: in its place the same product is computed step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import RLock, get_ident
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sklcam.networks.dry_run import replaced
from sklcam.networks.trunk import Trunk

Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Block:
    """The run of the outermost module around one run of attention that gives tokens.

    Attributes
    ----------
    output : object
        What it returned; a Tensor of tokens (n_images, n_tokens, K), or a tuple that begins so.
    trunk : Trunk
        What had been run when it began.
    """

    output: Any
    trunk: Trunk

    @property
    def tokens(self) -> Tensor:
        """What the block made of each token."""
        return _first(self.output)

    def like(self, tokens: Tensor) -> Any:
        """Return other tokens as the block would return them."""
        if isinstance(self.output, Tensor):
            return tokens
        return type(self.output)([tokens, *self.output[1:]])


class AttentionRecord(TorchFunctionMode):
    """The attention of one forward pass; it is entered around that pass.

    Parameters
    ----------
    keep : callable or None, default=None
        What is kept of each run's weights; None is the weights themselves, with their graph.
    with_blocks : bool, default=False
        Whether blocks and sums are kept.

    Attributes
    ----------
    weights : list of Tensor of shape (n_images, n_heads, n_queries, n_keys)
        Of each run, in their order; or what ``keep`` made of them.
    shapes : list of tuple of int
        The shapes that weights had.
    result : Tensor of shape (n_images, n_heads, n_queries, K) or None
        Of the last run, the sums of values, if they have a graph.
    sums : list of tuple of (Tensor, Tensor)
        Of each run, the sums of values and the values, of shape (n_images, n_heads, n_keys, K).
    blocks : list of Block or None
        For each run, the module around it; see :meth:`around`.

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

    idle = ""  # as of the rules that are entered in its place

    def __init__(
        self, keep: Callable[[Tensor], Tensor] | None = None, *, with_blocks: bool = False
    ):
        super().__init__()
        self._keep = keep
        self._with_blocks = with_blocks
        self._softmaxes: list[Tensor] = []
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self.weights: list[Tensor] = []
        self.shapes: list[tuple[int, ...]] = []
        self.result: Tensor | None = None
        self.sums: list[tuple[Tensor, Tensor]] = []
        self.blocks: list[Block | None] = []
        self._softmaxes.clear()

    def __enter__(self) -> Self:
        self.clear()  # of a pass that failed
        TorchFunctionMode.__enter__(self)
        return self

    def __exit__(self, *error: Any) -> None:
        TorchFunctionMode.__exit__(self, *error)
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
            return func(*args, **(kwargs or {}))
        return handler(self, func, *args, **(kwargs or {}))

    def _note(self, weights: Tensor, result: Tensor, value: Tensor) -> None:
        self.shapes.append(tuple(weights.shape))
        self.weights.append(weights if self._keep is None else self._keep(weights.detach()))
        self.blocks.append(None)
        self.result = result if result.requires_grad else None
        if self._with_blocks:
            self.sums.append((result, value.detach()))

    def _attend(self, func: Function, *args: Any, **kwargs: Any) -> Tensor:
        return self._attended(*args, **kwargs)[1]

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
        self._note(weights, result, value)
        return weights, result

    def _attend_by_module(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        # What it calls is not seen here, and with weights to return it calls something else.
        wants_weights = kwargs.get("need_weights", True)
        thread = get_ident()
        found: list[Tensor] = []

        def attend(*args: Any, **kwargs: Any) -> Tensor:
            if get_ident() != thread:  # somebody else's attention
                return fused(*args, **kwargs)
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
            self._softmaxes.append(output)
        return output

    def _same(self, func: Function, *args: Any, **kwargs: Any) -> Any:
        output = func(*args, **kwargs)
        if args and any(args[0] is each for each in self._softmaxes):
            self._softmaxes.append(output)
        return output

    def _product(self, func: Function, weights: Any, *args: Any, **kwargs: Any) -> Any:
        result = func(weights, *args, **kwargs)
        # A softmax is attention if values are summed by it as it is.
        if args and any(weights is each for each in self._softmaxes):
            self._softmaxes.clear()
            self._note(weights, result, args[0])
        return result

    def _einsum(self, func: Function, equation: Any, *args: Any) -> Any:
        if len(args) != 2 or not any(args[0] is each for each in self._softmaxes):
            return func(equation, *args)
        inputs, _, output = equation.replace(" ", "").partition("->")
        first, _, second = inputs.partition(",")
        rest = sorted(set(output) - set(first[:3]))
        usual, of_values = first[:3] + rest[0] if len(rest) == 1 else "", ""
        if usual:
            of_values = first[:2] + first[3:] + rest[0]
        if sorted(output) != sorted(usual) or sorted(second) != sorted(of_values):
            return func(equation, *args)  # some other sum
        # In the usual order of axes, in which what is noted is what gradients go through.
        values = torch.einsum(f"{second}->{of_values}", args[1])
        result = self._product(torch.matmul, args[0], values)
        return torch.einsum(f"{usual}->{output}", result)

    _handlers: ClassVar[Mapping[Function, Function]] = {
        F.scaled_dot_product_attention: _attend,
        F.multi_head_attention_forward: _attend_by_module,
        **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _softmax),
        # What leaves weights as they are, but for their precision; in evaluation mode, dropout.
        **dict.fromkeys(
            (F.dropout, torch.dropout, Tensor.to, Tensor.type_as, Tensor.contiguous), _same
        ),
        **dict.fromkeys(
            (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), _product
        ),
        torch.einsum: _einsum,
    }

    @contextmanager
    def around(self, network: nn.Module) -> Iterator[None]:
        """Note, in passes of the block, which modules' runs lie around each run of attention.

        Parameters
        ----------
        network : nn.Module
        """
        thread = get_ident()
        running: list[tuple[int, int, Trunk]] = []
        finished: list[tuple[nn.Module, Any]] = []

        def begin(part: nn.Module, inputs: tuple[Any, ...]) -> None:
            if get_ident() != thread:
                return
            trunk = Trunk(part)
            trunk.enter_layer(finished)
            running.append((len(finished), len(self.weights), trunk))

        def end(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if get_ident() != thread:
                return
            start, n_before, trunk = running.pop()
            del finished[start:]  # what ran inside it
            finished.append((part, output))
            tokens = _first(output)
            is_alone = len(self.weights) == n_before + 1
            # The outermost is the last to end.
            if is_alone and isinstance(tokens, Tensor) and tokens.ndim == 3:
                self.blocks[n_before] = Block(output, trunk)

        with ExitStack() as stack:
            for part in network.modules() if self._with_blocks else ():
                stack.callback(part.register_forward_pre_hook(begin).remove)
                stack.callback(part.register_forward_hook(end).remove)
            yield


# Held while a function of torch's is replaced for one call.
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
        Its own.

    Returns
    -------
    weights : Tensor of shape (..., n_queries, n_keys)
        In [0, 1]; rows add up to 1.
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
    return products.softmax(dim=-1).to(value.dtype), value


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) and output else output
