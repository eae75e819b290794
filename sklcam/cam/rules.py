"""Backward rules: what a layer propagates to the layer below it in place of its gradient.

A rule is a context around the *forward* pass, in which it replaces the backward step of each
function that it covers. The values of the forward pass stay the same. A rule sees functions, not
modules, so ``torch.relu`` counts just as ``nn.ReLU`` does, whether or not it works in place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sklcam.networks.precision import at_least_float32

Function = Callable[..., Any]
ReluBackward = Literal["plain", "guided", "deconv"]


def _functions(names: str) -> frozenset[Function]:
    """Return the functions with these names in torch, torch.nn.functional and torch.Tensor."""
    return frozenset(
        getattr(place, name)
        for name in names.split()
        for place in (torch, F, Tensor)
        if hasattr(place, name)
    )


# Activations whose output is never negative. Whether this holds for a hardtanh or a clamp depends
# on its lower bound. ReLU6 is a hardtanh.
_RELUS = _functions("relu relu_ relu6")
_BOUNDED = _functions("hardtanh hardtanh_ clamp clamp_ clamp_min clamp_min_ clip clip_")
# Activations that let negative values through in part.
_SOFT_RELUS = _functions(
    "leaky_relu leaky_relu_ prelu rrelu rrelu_ elu elu_ selu selu_ celu celu_ gelu silu hardswish "
    "mish"
)
_OTHER_ACTIVATIONS = _functions(
    "sigmoid sigmoid_ hardsigmoid tanh tanh_ softplus softsign logsigmoid tanhshrink hardshrink "
    "softshrink glu"
)
_WEIGHTED: frozenset[Function] = frozenset({F.linear, F.conv1d, F.conv2d, F.conv3d})
_PRODUCTS = _functions("matmul __matmul__ mm bmm addmm baddbmm einsum")


class BackwardRule(TorchFunctionMode):
    """Propagate something other than gradients, function by function.

    Enter the rule around a forward pass. It then applies to every backward pass through its graph.

    Attributes
    ----------
    name : str
        The method's name, for messages.
    handlers : mapping of torch functions to methods
        The method that is called instead of each function, with the function and its arguments.
    refused : set of functions
        Functions without a rule. A network cannot be explained if its backward pass meets one.
    idle : str
        Why the rule has changed nothing in the pass. Empty if it has changed something.
    """

    name: ClassVar[str] = ""
    handlers: ClassVar[Mapping[Function, Function]] = {}
    refused: ClassVar[frozenset[Function]] = frozenset()
    idle: str = ""

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        # Gradients are off in the trunk, which no backward pass reaches.
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if not _is_signal((*args, *kwargs.values())):
            result = func(*args, **kwargs)
            # A result computed only from weights counts as a weight, so nothing flows back to it.
            return _without_graph(result) if _is_signal(result) else result
        if func in self.handlers:
            x, *others = args or (kwargs.pop("input"),)
            return self.handlers[func](self, func, x, *others, **kwargs)
        result = func(*args, **kwargs)
        if func in self.refused and _is_signal(result):
            self.refuse(func)
        return result

    def refuse(self, func: Function) -> NoReturn:
        """Raise a ValueError that names the function and the module that calls it."""
        raise ValueError(self.refusal(func))

    def refusal(self, func: Function) -> str:
        """Return why a function that is being called cannot be explained."""
        return (
            f"{self.name} is defined for ReLU networks. Its backward pass through this network "
            f"meets {func.__name__.strip('_')}, for which it has no rule, in {_caller()}. Name a "
            "target layer that comes after it, or use another method."
        )


def _is_signal(value: Any) -> bool:
    """Whether a gradient flows through a value, or through one of several. Weights do not count."""
    if isinstance(value, tuple | list):
        return any(map(_is_signal, value))
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)


def _without_graph(value: Any) -> Any:
    """Detach a value, or several values such as an LSTM returns, from the graph."""
    if isinstance(value, tuple | list):
        return type(value)(map(_without_graph, value))
    return value.detach() if isinstance(value, Tensor) else value


def _caller() -> str:
    """Return the name of the running module, for a message."""
    modules: list[nn.Module] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            modules.append(module)
        frame = frame.f_back
    # The frames run from the inside out, so the last module is the network.
    names = {id(module): name for name, module in modules[-1].named_modules()} if modules else {}
    name = names.get(id(modules[0])) if modules else None
    return f"{name!r} ({type(modules[0]).__name__})" if name else "the network's own forward"


def _lower_bound(func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Return the lower bound of a hardtanh or clamp, from its arguments after the first."""
    is_hardtanh = "hardtanh" in func.__name__
    name, default = ("min_val", -1.0) if is_hardtanh else ("min", -torch.inf)
    low = args[0] if args else kwargs.get(name, default)
    return float(low) if isinstance(low, int | float) else -torch.inf


def _evaluate(
    func: Function, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor, bool]:
    """Return a function's result for x, without a graph, and whether it was written into x."""
    with torch.no_grad():
        copy = x.clone()
        y = func(copy, *args, **kwargs)
    return y, y is copy


class ReluRule(BackwardRule):
    """Change what ReLUs, and functions used in their place, propagate in the backward pass.

    "We mask out the values for which at least one of these values is negative": the gradient from
    above and, if guided, the activation from below. The remaining values are multiplied by the
    function's own derivative, which is 1 for a ReLU.

    Parameters
    ----------
    backward : {"guided", "deconv"}
        "guided" propagates positive gradients where the ReLU was active (Springenberg et al. 2015,
        section 3.4). "deconv" propagates positive gradients everywhere (Zeiler and Fergus 2014).

    """

    def __init__(self, backward: ReluBackward):
        super().__init__()
        self.backward = backward
        self.idle = (
            "changes the backward pass through ReLUs, but this backward pass meets none. The "
            "result is the plain gradient."
        )
        self._refusal: str | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return "Guided backpropagation" if self.backward == "guided" else "Deconvolution"

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let the same graph give plain gradients."""
        backward, self.backward = self.backward, "plain"
        try:
            yield
        finally:
            self.backward = backward

    def _rectifier(self, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._check()
        y, in_place = _evaluate(func, x, args, kwargs)
        kept = x.detach().clone() if in_place else x.detach()
        y = _Rectifier.apply(x, y, kept, self, lambda x: func(x, *args, **kwargs))
        self.idle = ""
        return x.copy_(y) if in_place else y

    def _bounded(self, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # A hardtanh is an activation. So is a clamp at zero; other clamps only avoid tiny numbers.
        if "hardtanh" in func.__name__ or _lower_bound(func, args, kwargs) == 0:
            return self._rectifier(func, x, *args, **kwargs)
        return func(x, *args, **kwargs)

    def _other(self, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._check()
        y = func(x, *args, **kwargs)
        if _is_signal(y):
            # As the last function it is part of the score, such as a binary classifier's sigmoid.
            # It is refused only if another layer follows.
            self._refusal = self.refusal(func)
        return y

    def _layer(self, func: Function, *args: Any, **kwargs: Any) -> Tensor:
        self._check()
        return func(*args, **kwargs)

    def _check(self) -> None:
        """Raise a ValueError if an earlier function has no rule."""
        if self._refusal is not None:
            raise ValueError(self._refusal)

    handlers: ClassVar[Mapping[Function, Function]] = {
        **dict.fromkeys(_RELUS | _SOFT_RELUS, _rectifier),
        **dict.fromkeys(_BOUNDED, _bounded),
        **dict.fromkeys(_OTHER_ACTIVATIONS, _other),
        **dict.fromkeys(_WEIGHTED | _PRODUCTS, _layer),
    }


class _Rectifier(torch.autograd.Function):
    # The rule is read in the backward pass, not in the forward pass, so that it can be suspended.

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, kept: Tensor, rule: ReluRule, func: Function
    ) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.rule, ctx.func = rule, func
        return y.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        backward = ctx.rule.backward
        if backward != "plain":
            gradient = gradient.relu()
        if backward != "deconv":
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                # A copy, as the function may work in place.
                (gradient,) = torch.autograd.grad(ctx.func(leaf.clone()), leaf, gradient)
        if backward == "guided":
            gradient = torch.where(x < 0, 0.0, gradient)
        return gradient, None, None, None, None


_IN_PLACE_SUMS = frozenset({Tensor.add_, Tensor.__iadd__})
_SUMS: frozenset[Function] = _IN_PLACE_SUMS | frozenset(
    {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
)
_POOLINGS = _functions(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "mean sum interpolate"
)
_FACTORS = _functions(
    "mul mul_ __mul__ __rmul__ __imul__ multiply div div_ __truediv__ true_divide"
)
_NEGATIONS = _functions("neg __neg__ negative")
# Functions that are neither ReLUs nor linear with non-negative inputs.
_NO_EXCITATION = _SOFT_RELUS | _OTHER_ACTIVATIONS | _PRODUCTS
_NO_EXCITATION |= _functions(
    "threshold threshold_ softmax softmin log_softmax layer_norm group_norm instance_norm rms_norm "
    "local_response_norm normalize scaled_dot_product_attention multi_head_attention_forward "
    "bilinear sub sub_ __sub__ __rsub__ __isub__ subtract neg_ negative_ pow __pow__ exp log sqrt "
    "rsqrt reciprocal __rtruediv__ square abs norm logsumexp lp_pool2d tensordot conv_transpose1d "
    "conv_transpose2d conv_transpose3d"
)


class ExcitationRule(BackwardRule):
    r"""Propagate winning probabilities in place of gradients.

    A neuron's probability is shared among the neurons below it in proportion to how much each
    excites it:

    .. math:: P(a_j) = \sum_i P(a_i)\, \frac{a_j w_{ij}^+}{\sum_{j'} a_{j'} w_{ij'}^+}

    with :math:`w^+ = \max(w, 0)` and no biases. The rule is defined for layers with non-negative
    inputs, as after ReLUs; negative inputs excite nothing. Batch normalisation counts as part of
    the convolution before it, and sums (residual connections) as neurons with weights of one.

    Parameters
    ----------
    contrastive : bool
        Subtract what the class's dual, which has its weights negated, would win. This happens once,
        at the topmost layer with weights.

    References
    ----------
    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, eq. 5 and
    section 3.3.
    """

    name = "Excitation backpropagation"

    def __init__(self, contrastive: bool):
        super().__init__()
        self.contrastive = contrastive
        if contrastive:
            self.idle = (
                "contrasts a class with its dual, whose weights are negated, but the backward pass "
                "meets no layer with weights. The result is that of contrastive=False."
            )
        self._is_top = True
        # The function and inputs of each convolution, by its output's id, so that a following
        # batch normalisation can be folded into it. The output is kept too, as Python reuses the
        # ids of freed objects.
        self._convolutions: dict[int, tuple[Tensor, Function, tuple[Any, ...]]] = {}

    def __exit__(self, *error: Any) -> None:
        TorchFunctionMode.__exit__(self, *error)
        self._convolutions.clear()  # they hold the graph, which holds this rule

    def begin(self) -> None:
        """Start a backward pass from the output."""
        self._is_top = True

    @property
    def is_at_top(self) -> bool:
        """Whether the backward pass has met no layer with weights yet."""
        return self._is_top

    def take_top(self) -> bool:
        """Return True for the topmost layer with weights: at the first call in a backward pass."""
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
        self.idle = ""
        self._convolutions[id(y)] = (y, linear, (x, weight.detach()))
        return y

    def _batch_norm(self, func: Function, x: Tensor, running_mean: Any, running_var: Any,
                    weight: Any = None, bias: Any = None, training: bool = False,
                    momentum: float = 0.1, eps: float = 1e-5) -> Tensor:  # fmt: skip
        with torch.no_grad():
            y = func(x, running_mean, running_var, weight, bias, training, momentum, eps)
        if training or running_mean is None:
            raise ValueError(
                "Excitation backpropagation needs the running statistics of every batch "
                "normalisation, but one in this network uses the statistics of the batch: it is in "
                "training mode or has track_running_stats=False. Put the network into evaluation "
                "mode, or use another method."
            )
        self.idle = ""
        scale = (running_var + eps).rsqrt() * (1 if weight is None else weight.detach())
        known = self._convolutions.get(id(x))
        if known is not None and known[0] is x:
            _, linear, (source, weights) = known
            folded = weights * scale.view(-1, *[1] * (weights.ndim - 1))
            return _Excite.apply(source, y, self, linear, folded)
        # A batch normalisation without a convolution is a layer with one weight per channel.
        scale = scale.view(-1, *[1] * (x.ndim - 2))
        return _Excite.apply(x, y, self, torch.mul, scale)

    def _pooled(self, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def linear(x: Tensor, _: Tensor) -> Tensor:
            return func(x, *args, **kwargs)

        # Its weights are all one, so its dual would be excited by nothing: a pooling does not count
        # as a layer with weights.
        with torch.no_grad():
            y = func(x, *args, **kwargs)
        return _Excite.apply(x, y, None, linear, torch.ones(()))

    def _summed(self, func: Function, x: Tensor, other: Any, **kwargs: Any) -> Tensor:
        # Neither a bias nor an activation from before the target layer is a neuron.
        if not (_is_signal(x) and _is_signal(other)):
            return func(x, other, **kwargs)
        if kwargs.get("alpha", 1) != 1 or x.shape != other.shape:
            self.refuse(func)
        y = _ExciteSum.apply(x, other)
        return x.copy_(y) if func in _IN_PLACE_SUMS else y

    def _scaled(self, func: Function, x: Any, factor: Any, **kwargs: Any) -> Tensor:
        is_quotient = "div" in func.__name__
        if not _is_signal(x) and not is_quotient:
            x, factor = factor, x
        if not _is_signal(x) or _is_signal(factor) or kwargs:  # two activations, or a rounding mode
            self.refuse(func)
        # A constant factor is the single weight of each neuron.
        y, in_place = _evaluate(func, x, (factor,), {})
        weight = torch.as_tensor(factor).detach().to(x)
        y = _Excite.apply(x, y, None, torch.mul, 1 / weight if is_quotient else weight)
        return x.copy_(y) if in_place else y

    def _negated(self, func: Function, x: Tensor) -> Tensor:
        # Above all layers with weights, a negation negates the class's weights. Below, it excites
        # nothing.
        return _Negate.apply(x, self, self.refusal(func))

    def _passed_on(self, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if func in _BOUNDED and _lower_bound(func, args, kwargs) < 0:
            self.refuse(func)
        y, in_place = _evaluate(func, x, args, kwargs)
        y = _PassOn.apply(x, y)
        return x.copy_(y) if in_place else y

    refused = _NO_EXCITATION
    handlers: ClassVar[Mapping[Function, Function]] = {
        **dict.fromkeys(_WEIGHTED, _weighted),
        F.batch_norm: _batch_norm,
        **dict.fromkeys(_POOLINGS, _pooled),
        **dict.fromkeys(_SUMS, _summed),
        **dict.fromkeys(_FACTORS, _scaled),
        **dict.fromkeys(_RELUS | _BOUNDED, _passed_on),
        **dict.fromkeys(_NEGATIONS, _negated),
    }


class _Excite(torch.autograd.Function):
    """Equation 5 for any function that is linear in its input and in its weights."""

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
        # Under autocast the layer was computed in another dtype than that of its weights.
        x, weight = (at_least_float32(each) for each in ctx.saved_tensors)
        probability = at_least_float32(probability)
        for_it, against_it = weight.clamp(min=0), (-weight).clamp(min=0)
        if ctx.rule is None or not ctx.rule.take_top():
            won = _share(ctx.linear, x, for_it, probability)
        elif ctx.rule.contrastive:
            won = _share(ctx.linear, x, for_it, probability)
            won = won - _share(ctx.linear, x, against_it, probability)
        else:
            # A negative probability belongs to the class with negated weights, such as the first
            # class of a network with one logit.
            won = _share(ctx.linear, x, for_it, probability.clamp(min=0))
            won = won + _share(ctx.linear, x, against_it, (-probability).clamp(min=0))
        return won.to(ctx.saved_tensors[0].dtype), None, None, None, None


def _share(linear: Function, x: Tensor, weight: Tensor, probability: Tensor) -> Tensor:
    excitation = x.detach().clamp(min=0).requires_grad_()
    # The sums over the weights are the same as in the layer's own gradient: let autograd do them.
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


class _Negate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: ExcitationRule, refusal: str) -> Tensor:
        ctx.rule, ctx.refusal = rule, refusal
        return -x

    @staticmethod
    def backward(ctx: Any, probability: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.rule.is_at_top:
            raise ValueError(ctx.refusal)
        return -probability, None, None


class _PassOn(torch.autograd.Function):
    # An activation that a ReLU has set to zero excites nothing, so it wins nothing below.

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, probability: Tensor) -> tuple[Tensor, None]:
        return probability, None


def _ratio(probability: Tensor, total: Tensor) -> Tensor:
    """Return the quotient, and 0 for a neuron that nothing excites: no neuron wins its share."""
    tiny = torch.finfo(total.dtype).tiny
    return torch.where(total <= 0, 0.0, probability / total.clamp(min=tiny))
