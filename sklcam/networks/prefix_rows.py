"""The way back of a class token alone: what other tokens hand on has no gradient, and costs none.

A transformer whose head reads its class token has gradients at that token alone, behind the
attention of the last block. Of most parts the way back costs little; of linear layers it is a
product with their weights, of which no more than the first rows are needed there.
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
def short_way_back(network: nn.Module, layer: TargetLayer) -> Iterator[None]:
    """Let gradients of the tokens before the places go back alone, where others have none.

    Parameters
    ----------
    network : nn.Module
        Of which passes are made in the block, and ways back are gone, as checkpoints run parts
        again on these. Weights get no gradients from such a pass.
    layer : TargetLayer
        Nothing is done for one without tokens before the places.

    Notes
    -----
    Nothing is assumed of the network: each linear layer looks at the gradient that it is given.
    That look is free on a CPU and a wait elsewhere, so that other devices do without.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks import TargetLayer
    >>> from sklcam.networks.prefix_rows import short_way_back
    >>> net, tokens = nn.Linear(4, 2), torch.rand(5, 10, 4, requires_grad=True)
    >>> with short_way_back(net, TargetLayer("0", layout="tokens", grid=(3, 3), n_prefix=1)):
    ...     (gradient,) = torch.autograd.grad(net(tokens)[:, 0].sum(), tokens)
    >>> torch.allclose(gradient[:, 0], net.weight.sum(0).expand(5, 4)), gradient[:, 1:].any()
    (True, tensor(False))
    """
    with ExitStack() as stack:
        if layer.layout == "tokens" and layer.n_prefix:
            for part in network.modules():
                # Not what another library has made of a linear layer, nor what is compiled.
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
        if is_looked_at and get_ident() == thread:  # nobody else's pass
            return _Linear.apply(x, part.weight, part.bias, n_rows)
        return F.linear(x, part.weight, part.bias)

    with replaced(part, "forward", forward):
        yield


class _Linear(torch.autograd.Function):
    """A linear layer of rows, with the way back of the first ones if others have no gradient."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, n_rows: int) -> Tensor:
        output = F.linear(x.flatten(0, 1), weight, bias)
        # No view of it, as what follows may work in place, which views of a function's do not let.
        return torch.ops.aten._unsafe_view(output, [*x.shape[:2], len(weight)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, _, ctx.n_rows = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        weight = weight.to(gradient.dtype)  # of autocast
        # Where it is differentiated again, rows count whose gradient is 0.
        if torch.is_grad_enabled() or gradient[:, ctx.n_rows :].any():
            return gradient @ weight, None, None, None
        few = gradient[:, : ctx.n_rows] @ weight
        return F.pad(few, (0, 0, 0, gradient.shape[1] - ctx.n_rows)), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return torch.vmap(F.linear, in_dims[:3])(*args[:3]), 0
