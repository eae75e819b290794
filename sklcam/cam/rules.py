"""Other ways to go back through a network: what a layer hands on, in place of its gradient.

A rule is a context for the *forward* pass, in which it puts its own backward step behind each
function that it is about; the values of the forward pass stay what they are. It sees functions, not
modules, so that ``torch.relu`` counts as ``nn.ReLU`` does, in place or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]
ReluBackward = Literal["plain", "guided", "deconv"]


class BackwardRule(TorchFunctionMode):
    """Hand back something other than gradients, function by function.

    It is entered around a forward pass, and holds for any way back through that pass.

    Attributes
    ----------
    handlers : mapping of functions of torch's to methods
        What is called in a function's place: with it, and with its arguments.
    refused : set of functions
        Those without a rule: a network that has one on the way back cannot be explained.
    """

    handlers: ClassVar[Mapping[Function, Function]] = {}
    refused: ClassVar[frozenset[Function]] = frozenset()

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        handler = self.handlers.get(func)
        # Without gradients we are in the trunk, which no way back leads through.
        if handler is not None and torch.is_grad_enabled():
            x, *others = args or (kwargs.pop("input"),)
            return handler(self, func, x, *others, **kwargs)
        result = func(*args, **kwargs)
        first = result[0] if isinstance(result, tuple) and result else result
        if func in self.refused and isinstance(first, Tensor) and first.requires_grad:
            raise ValueError(
                f"Excitation backpropagation is defined for ReLU networks; this one uses "
                f"{func.__name__} between the target layer and the output."
            )
        return result


_IN_PLACE_RELUS = frozenset({torch.relu_, Tensor.relu_})
_RELUS = frozenset({F.relu, torch.relu, Tensor.relu}) | _IN_PLACE_RELUS


def _is_in_place(func: Function, inplace: bool = False) -> bool:
    """Whether a call of a ReLU, with these arguments after the first, overwrites its input."""
    return func in _IN_PLACE_RELUS or inplace


class ReluRule(BackwardRule):
    """Change what ReLUs hand back.

    Parameters
    ----------
    backward : {"guided", "deconv"}
        "guided" hands back positive gradients where the ReLU was active (Springenberg et al. 2015),
        "deconv" positive gradients wherever they are (Zeiler and Fergus 2014).

    Attributes
    ----------
    n_relus : int
        How many ReLUs with a graph the rule has met; without any it changes nothing.
    """

    def __init__(self, backward: ReluBackward):
        super().__init__()
        self.backward = backward
        self.n_relus = 0

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Take plain gradients through the same graph."""
        backward, self.backward = self.backward, "plain"
        try:
            yield
        finally:
            self.backward = backward

    def _relu(self, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = _Relu.apply(x, self)
        self.n_relus += y.requires_grad
        return x.copy_(y) if _is_in_place(func, *args, **kwargs) else y

    handlers = dict.fromkeys(_RELUS, _relu)


class _Relu(torch.autograd.Function):
    # It asks the rule on the way back, not on the way forward, so that a rule can be suspended.

    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: ReluRule) -> Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y)
        ctx.rule = rule
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        if ctx.rule.backward != "plain":
            gradient = gradient.relu()
        if ctx.rule.backward != "deconv":
            gradient = gradient * (y > 0)
        return gradient, None


_IN_PLACE_SUMS = frozenset({Tensor.add_, Tensor.__iadd__})
_SUMS: frozenset[Function] = _IN_PLACE_SUMS | frozenset(
    {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
)
_POOLINGS: frozenset[Function] = frozenset(
    {
        F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
        F.adaptive_avg_pool3d, torch.mean, Tensor.mean, torch.sum, Tensor.sum,
    }
)  # fmt: skip
_NO_EXCITATION: frozenset[Function] = frozenset(
    {
        F.gelu, F.silu, F.elu, F.selu, F.celu, F.mish, F.hardswish, F.leaky_relu, F.layer_norm,
        F.group_norm, F.scaled_dot_product_attention, F.multi_head_attention_forward, F.sigmoid,
        F.tanh, F.hardsigmoid, torch.sigmoid, torch.tanh, Tensor.sigmoid, Tensor.tanh,
        F.softmax, F.log_softmax, torch.softmax, Tensor.softmax, torch.log_softmax,
        Tensor.log_softmax, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm,
        torch.bmm, Tensor.bmm, torch.addmm, torch.einsum,
    }
)  # fmt: skip


class ExcitationRule(BackwardRule):
    r"""Hand back winning probabilities in place of gradients.

    A neuron's probability goes to the neurons below it in proportion to what they excite it by:

    .. math:: P(a_j) = \sum_i P(a_i)\, \frac{a_j w_{ij}^+}{\sum_{j'} a_{j'} w_{ij'}^+}

    with :math:`w^+ = \max(w, 0)` and no biases. It is defined for layers whose inputs are not
    negative, as after ReLUs; what is negative excites nothing. Batch normalisation counts as part
    of the convolution before it, and sums (residual connections) as neurons with weights of one.

    Parameters
    ----------
    contrastive : bool
        Subtract what the dual of the class, the class with its weights negated, would win: at the
        topmost layer with weights, once.

    References
    ----------
    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, eq. 5 and
    section 3.3.
    """

    def __init__(self, contrastive: bool):
        super().__init__()
        self.contrastive = contrastive
        self._is_top = True
        # What made each output of a convolution, by the output's id: a batch normalisation that
        # follows is folded into it. The output is held along, as ids of the dead are used again.
        self._convolutions: dict[int, tuple[Tensor, Function, tuple[Any, ...]]] = {}

    def __exit__(self, *error: Any) -> None:
        TorchFunctionMode.__exit__(self, *error)
        self._convolutions.clear()  # they hold the graph, which holds this rule

    def begin(self) -> None:
        """Start a way back from the output."""
        self._is_top = True

    def take_top(self) -> bool:
        """Whether this is the topmost layer with weights, once in each way back."""
        is_top, self._is_top = self._is_top, False
        return is_top

    def _weighted(
        self,
        func: Function,
        x: Tensor,
        weight: Tensor,
        bias: Any = None,
        *rest: Any,
        **kwargs: Any,
    ) -> Tensor:
        def linear(x: Tensor, weight: Tensor) -> Tensor:
            return func(x, weight, None, *rest, **kwargs)

        with torch.no_grad():
            y = func(x, weight, bias, *rest, **kwargs)
        y = _Excite.apply(x, y, self, linear, weight.detach())
        self._convolutions[id(y)] = (y, linear, (x, weight.detach()))
        return y

    def _batch_norm(self, func: Function, x: Tensor, running_mean: Any, running_var: Any,
                    weight: Any = None, bias: Any = None, training: bool = False,
                    momentum: float = 0.1, eps: float = 1e-5) -> Tensor:  # fmt: skip
        with torch.no_grad():
            y = func(x, running_mean, running_var, weight, bias, training, momentum, eps)
        if training or running_mean is None:
            raise ValueError("Excitation backpropagation needs a network in evaluation mode.")
        scale = (running_var + eps).rsqrt() * (1 if weight is None else weight.detach())
        known = self._convolutions.get(id(x))
        if known is not None and known[0] is x:
            _, linear, (source, weights) = known
            folded = weights * scale.view(-1, *[1] * (weights.ndim - 1))
            return _Excite.apply(source, y, self, linear, folded)
        # On its own it is a layer with one weight a channel.
        scale = scale.view(-1, *[1] * (x.ndim - 2))
        return _Excite.apply(x, y, self, torch.mul, scale)

    def _pooled(self, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def linear(x: Tensor, _: Tensor) -> Tensor:
            return func(x, *args, **kwargs)

        # Weights of one, whose dual would have nothing to excite: it is not a layer with weights.
        with torch.no_grad():
            y = func(x, *args, **kwargs)
        return _Excite.apply(x, y, None, linear, torch.ones(()))

    def _summed(self, func: Function, x: Tensor, other: Any, **kwargs: Any) -> Tensor:
        # A bias that is added to a tensor is not a neuron; nor is what lies before the layer.
        both = all(isinstance(term, Tensor) and term.requires_grad for term in (x, other))
        if not both or kwargs.get("alpha", 1) != 1 or x.shape != other.shape:
            return func(x, other, **kwargs)
        y = _ExciteSum.apply(x, other)
        return x.copy_(y) if func in _IN_PLACE_SUMS else y

    def _passed_on(self, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            y = torch.relu(x)
        y = _PassOn.apply(x, y)
        return x.copy_(y) if _is_in_place(func, *args, **kwargs) else y

    refused = _NO_EXCITATION
    handlers = {
        **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d), _weighted),
        F.batch_norm: _batch_norm,
        **dict.fromkeys(_POOLINGS, _pooled),
        **dict.fromkeys(_SUMS, _summed),
        **dict.fromkeys(_RELUS, _passed_on),
    }


class _Excite(torch.autograd.Function):
    """Eq. 5 for any function that is linear in its input and in its weights."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        rule: ExcitationRule | None,
        linear: Function,
        weight: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rule, ctx.linear = rule, linear
        return y.clone()

    @staticmethod
    def backward(ctx: Any, probability: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        won = _share(ctx.linear, x, weight.clamp(min=0), probability)
        if ctx.rule is not None and ctx.rule.take_top() and ctx.rule.contrastive:
            won = won - _share(ctx.linear, x, (-weight).clamp(min=0), probability)
        return won, None, None, None, None


def _share(linear: Function, x: Tensor, weight: Tensor, probability: Tensor) -> Tensor:
    excitation = x.detach().clamp(min=0).requires_grad_()
    # The sums over the weights are those of the layer's own gradient: let autograd take it.
    with torch.enable_grad():
        total = linear(excitation, weight)
    ratio = _ratio(probability, total)
    (share,) = torch.autograd.grad(total, excitation, ratio)
    return share * excitation.detach()


class _ExciteSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor) -> Tensor:
        ctx.save_for_backward(x.clamp(min=0), other.clamp(min=0))
        return x + other

    @staticmethod
    def backward(ctx: Any, probability: Tensor) -> tuple[Tensor, Tensor]:
        x, other = ctx.saved_tensors
        ratio = _ratio(probability, x + other)
        return ratio * x, ratio * other


class _PassOn(torch.autograd.Function):
    # What a ReLU has cut off excites nothing, and so wins nothing in the layer below.

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, probability: Tensor) -> tuple[Tensor, None]:
        return probability, None


def _ratio(probability: Tensor, total: Tensor) -> Tensor:
    """Return the quotient; nobody wins what comes from a neuron that nothing excites."""
    tiny = torch.finfo(total.dtype).tiny
    return torch.where(total <= 0, 0.0, probability / total.clamp(min=tiny))
