"""A backward pass for a class token alone, at no cost for tokens without a gradient.

If a transformer's head reads its class token, only this token has a gradient behind the attention
of the last block. The backward pass is cheap there for most parts, but a linear layer multiplies
the gradient by its weights, and only the first rows of this product are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklcam.networks.dry_run import replaced
from sklcam.networks.layers import TargetLayer


@contextmanager
def shorter_backward(network: nn.Module, layer: TargetLayer) -> Iterator[None]:
    """Propagate only the gradients of the tokens before the places, if other tokens have none.

    Parameters
    ----------
    network : nn.Module
        A network whose forward and backward passes run within this context, as checkpoints run
        parts again in backward passes. Weights get no gradients from such a pass.
    layer : TargetLayer
        A layer without tokens before the places changes nothing.

    Notes
    -----
    Nothing is assumed about the network: each linear layer checks the gradient that it receives.
    This check is free on a CPU. On other devices it would have to wait, so it is left out.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks import TargetLayer
    >>> from sklcam.networks.prefix_rows import shorter_backward
    >>> net, tokens = nn.Linear(4, 2), torch.rand(5, 10, 4, requires_grad=True)
    >>> with shorter_backward(net, TargetLayer("0", layout="tokens", grid=(3, 3), n_prefix=1)):
    ...     (gradient,) = torch.autograd.grad(net(tokens)[:, 0].sum(), tokens)
    >>> torch.allclose(gradient[:, 0], net.weight.sum(0).expand(5, 4)), gradient[:, 1:].any()
    (True, tensor(False))
    """
    with ExitStack() as stack:
        if layer.layout == "tokens" and layer.n_prefix:
            for part in network.modules():
                # Not a linear layer that another library has changed, nor a compiled one.
                own = vars(part).keys() & {"forward", "_compiled_call_impl"}
                if type(part) is nn.Linear and not own:
                    stack.enter_context(_shortened(part, layer.n_prefix))
        yield


@contextmanager
def _shortened(part: nn.Linear, n_rows: int) -> Iterator[None]:
    thread = get_ident()

    def forward(x: Tensor) -> Tensor:
        has_graph = x.requires_grad and torch.is_grad_enabled()
        is_looked_at = has_graph and x.ndim == 3 and x.device.type == "cpu"
        if is_looked_at and get_ident() == thread:  # not the pass of another thread
            return _Linear.apply(x, part.weight, part.bias, n_rows)
        return F.linear(x, part.weight, part.bias)

    with replaced(part, "forward", forward):
        yield


class _Linear(torch.autograd.Function):
    """A linear layer whose backward pass skips rows behind the first ones without a gradient."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, n_rows: int) -> Tensor:
        output = F.linear(x.flatten(0, 1), weight, bias)
        # Not a view, as later operations may work in place, which a function's views forbid.
        return torch.ops.aten._unsafe_view(output, [*x.shape[:2], len(weight)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, _, ctx.n_rows = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        weight = weight.to(gradient.dtype)  # they may differ under autocast
        # If this is differentiated again, rows with a zero gradient count too.
        if torch.is_grad_enabled() or gradient[:, ctx.n_rows :].any():
            return gradient @ weight, None, None, None
        few = gradient[:, : ctx.n_rows] @ weight
        return F.pad(few, (0, 0, 0, gradient.shape[1] - ctx.n_rows)), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return torch.vmap(F.linear, in_dims[:3])(*args[:3]), 0
