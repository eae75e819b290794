"""The way back of a class token alone: what other tokens hand on has no gradient, and costs none.

A transformer whose head reads its class token has gradients at that token behind the attention of
the last block. All that works on each token by itself there, as a block's MLP does, needs no more
than the rows before the places on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sklcam.networks.dry_run import replaced
from sklcam.networks.layers import TargetLayer

_RowFunction = Callable[[Tensor], Tensor]
_PER_ROW = (nn.Linear, nn.LayerNorm, nn.RMSNorm)


class PrefixRows:
    """Which parts of a network have gradients at the first tokens alone, learned from one pass.

    Parameters
    ----------
    n_rows : int
        How many tokens are before the places.

    Notes
    -----
    What was learned saves time and decides nothing: each way back looks at the gradients that it
    is given, and goes all the way where they are not 0. That look is free on a CPU and a wait
    elsewhere, so that other devices do without.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks.prefix_rows import PrefixRows
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    >>> tokens, rows = torch.rand(5, 9, 4, requires_grad=True), PrefixRows(1)
    >>> for _ in range(2):  # learn, and use
    ...     with rows.used(net):
    ...         score = net(tokens)[:, 0].sum()
    ...     (gradient,) = torch.autograd.grad(score, tokens)
    >>> torch.equal(gradient[0, 0], net[1].weight.sum(0) @ net[0].weight), gradient[:, 1:].any()
    (True, tensor(False))
    """

    def __init__(self, n_rows: int):
        self._n_rows = n_rows
        self._is_prefix_alone: dict[nn.Module, bool] = {}  # by the part; empty until it is learned

    @contextmanager
    def used(self, network: nn.Module) -> Iterator[None]:
        """Spare the rows' way back of passes in the block; the first of them is looked at instead.

        Parameters
        ----------
        network : nn.Module
        """
        with ExitStack() as stack:
            if self._is_prefix_alone:
                for part in self._outermost(network):
                    stack.enter_context(self._short_way_back(part))
            else:
                for part in network.modules():
                    if _works_on_rows(part):
                        hook = part.register_forward_hook(self._look)
                        stack.callback(hook.remove)
            yield

    def _outermost(self, network: nn.Module) -> list[nn.Module]:
        found, inside = [], set[nn.Module]()
        for part in network.modules():  # what holds others comes before them
            if part not in inside and self._is_prefix_alone.get(part) and _works_on_rows(part):
                found.append(part)
                inside.update(part.modules())
        return found

    def _look(self, part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not (_is_rows(inputs) and isinstance(output, Tensor) and output.requires_grad):
            return
        if not self._looks_at_own(part, inputs[0].detach(), output.detach()):
            return

        def note(gradient: Tensor) -> None:
            is_alone = not gradient[:, self._n_rows :].any()
            self._is_prefix_alone[part] = is_alone and self._is_prefix_alone.get(part, True)

        output.register_hook(note)

    @contextmanager
    def _short_way_back(self, part: nn.Module) -> Iterator[None]:
        forward, thread = part.forward, get_ident()

        def shortened(*args: Any, **kwargs: Any) -> Any:
            if kwargs or not _is_rows(args) or get_ident() != thread:
                return forward(*args, **kwargs)
            return _FirstRows.apply(args[0], forward, self._n_rows, lambda: self._forget(part))

        with replaced(part, "forward", shortened):
            yield

    def _looks_at_own(self, part: nn.Module, x: Tensor, output: Tensor) -> bool:
        """Whether a part makes the first rows of an image the same beside a row of NaN."""
        if output.shape[:2] != x.shape[:2]:
            return False
        first = x[:1, : self._n_rows]
        few = torch.cat([first, torch.full_like(first[:, :1], torch.nan)], dim=1)
        try:
            with torch.no_grad():
                rows = part.forward(few)[:, :-1]
        except Exception:  # of positions that are known by heart, there are as many as there are
            return False
        return _is_close(rows, output[:1, : self._n_rows])

    def _forget(self, part: nn.Module) -> None:
        self._is_prefix_alone[part] = False


# By network and layer. A layer's rows hold parts of the network, and not the network itself.
_known: WeakKeyDictionary[nn.Module, dict[TargetLayer, PrefixRows]] = WeakKeyDictionary()


def prefix_rows(network: nn.Module, layer: TargetLayer) -> PrefixRows | None:
    """Return what is known of a network behind a layer; None of one without tokens before places.

    Parameters
    ----------
    network : nn.Module
    layer : TargetLayer

    Returns
    -------
    PrefixRows or None
        The same for the same network and layer.

    Examples
    --------
    >>> from torch import nn
    >>> from sklcam.networks import TargetLayer
    >>> from sklcam.networks.prefix_rows import prefix_rows
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> layer = TargetLayer("0", layout="tokens", grid=(2, 2), n_prefix=1)
    >>> prefix_rows(net, layer) is prefix_rows(net, layer)
    True
    """
    if layer.layout != "tokens" or not layer.n_prefix:
        return None
    return _known.setdefault(network, {}).setdefault(layer, PrefixRows(layer.n_prefix))


def _works_on_rows(part: nn.Module) -> bool:
    """Whether a part may work on each token by itself, with nobody to look at it while it does."""
    has_weights = False
    for each in part.modules():
        if each.training or each._forward_hooks or each._forward_pre_hooks:
            return False
        if vars(each).get("_compiled_call_impl") is not None or "forward" in vars(each):
            return False
        is_leaf = not each._modules
        if is_leaf and not isinstance(each, _PER_ROW) and any(True for _ in each.parameters()):
            return False
        has_weights = has_weights or isinstance(each, nn.Linear)
    return has_weights


def _is_rows(inputs: tuple[Any, ...]) -> bool:
    """Whether they are one tensor (n, tokens, ...) with a graph, where looking at it is free."""
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        return False
    (x,) = inputs
    return x.ndim == 3 and x.requires_grad and x.device.type == "cpu" and torch.is_grad_enabled()


def _is_close(rows: Tensor, expected: Tensor) -> bool:
    """Whether rows are the same but for how they are rounded, as fewer of them may be otherwise."""
    tolerance = torch.finfo(rows.dtype).eps ** 0.5
    scale = float(expected.abs().amax())
    return torch.allclose(rows, expected, rtol=tolerance, atol=tolerance * scale)


class _FirstRows(torch.autograd.Function):
    """Run a function of rows without a graph, and the first rows again on the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, function: _RowFunction, n_rows: int, forget: Callable[[], None]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.first = x[:, :n_rows].clone()  # as what follows may work in place
        output = function(x)
        ctx.expected = output[:, :n_rows].clone()
        ctx.function, ctx.forget = function, forget
        ctx.autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        n_rows, n_all = ctx.first.shape[1], gradient.shape[1]
        if not gradient[:, n_rows:].any():
            output, few = _run(ctx, ctx.first, gradient[:, :n_rows])
            if _is_close(output, ctx.expected):
                return F.pad(few, (0, 0, 0, n_all - n_rows)), None, None, None
        ctx.forget()  # the network has changed
        (x,) = ctx.saved_tensors
        return _run(ctx, x, gradient)[1], None, None, None


def _run(ctx: Any, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a function makes of rows, and its gradient with respect to them."""
    dtype, enabled = ctx.autocast
    x = x.detach().requires_grad_()
    with torch.enable_grad(), torch.autocast("cpu", dtype, enabled):
        output = ctx.function(x)
    return output.detach(), torch.autograd.grad(output, x, gradient)[0]
