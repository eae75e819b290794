"""Other ways to go back through a network: what a layer hands on, in place of its gradient.

A rule is a context for the *forward* pass, in which it puts its own backward step behind each
function that it is about; the values of the forward pass stay what they are. It sees functions, not
modules, so that ``torch.relu`` counts as ``nn.ReLU`` does, in place or not.
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
    """Return the functions of these names: of torch, of torch.nn.functional and of tensors."""
    return frozenset(
        getattr(place, name)
        for name in names.split()
        for place in (torch, F, Tensor)
        if hasattr(place, name)
    )


# What is never negative; a hardtanh or a clamp is so if its lower bound is. ReLU6 is a hardtanh.
_RELUS = _functions("relu relu_ relu6")
_BOUNDED = _functions("hardtanh hardtanh_ clamp clamp_ clamp_min clamp_min_ clip clip_")
# What lets something of the negative pass.
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
    """Hand back something other than gradients, function by function.

    It is entered around a forward pass, and holds for any way back through that pass.

    Attributes
    ----------
    name : str
        Of the method, for messages.
    handlers : mapping of functions of torch's to methods
        What is called in a function's place: with it, and with its arguments.
    refused : set of functions
        Those without a rule: a network that has one on the way back cannot be explained.
    idle : str
        Why the rule has changed nothing in the pass; empty if it has.
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
        # Without gradients we are in the trunk, which no way back leads through.
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if not _is_signal((*args, *kwargs.values())):
            result = func(*args, **kwargs)
            # What is made of weights alone is a weight, and nothing is handed back to it.
            return _without_graph(result) if _is_signal(result) else result
        if func in self.handlers:
            x, *others = args or (kwargs.pop("input"),)
            return self.handlers[func](self, func, x, *others, **kwargs)
        result = func(*args, **kwargs)
        if func in self.refused and _is_signal(result):
            self.refuse(func)
        return result

    def refuse(self, func: Function) -> NoReturn:
        """Raise a ValueError that names the function, and the module that calls it."""
        raise ValueError(self.refusal(func))

    def refusal(self, func: Function) -> str:
        """Return why a function that is being called cannot be explained."""
        return (
            f"{self.name} is defined for ReLU networks; this one uses {func.__name__.strip('_')}, "
            f"for which there is no rule, in {_caller()}, on the way back from the output. Name a "
            "target layer that comes after it, or explain by another method."
        )


def _is_signal(value: Any) -> bool:
    """Whether a gradient goes back through a value, or through one of several; not to weights."""
    if isinstance(value, tuple | list):
        return any(map(_is_signal, value))
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)


def _without_graph(value: Any) -> Any:
    """Return a value, or several as of an LSTM, through which no gradient goes back."""
    if isinstance(value, tuple | list):
        return type(value)(map(_without_graph, value))
    return value.detach() if isinstance(value, Tensor) else value


def _caller() -> str:
    """Return the name of the module that is running, for a message."""
    modules: list[nn.Module] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            modules.append(module)
        frame = frame.f_back
    # From the inside out: the last one is the network.
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
    """Return what a function makes of x, without a graph, and whether it writes it into x."""
    with torch.no_grad():
        copy = x.clone()
        y = func(copy, *args, **kwargs)
    return y, y is copy


class ReluRule(BackwardRule):
    """Change what ReLUs hand back, and the functions that are used in the place of ReLUs.

    "We mask out the values for which at least one of these values is negative": the gradient that
    comes from above, and, if guided, the activation from below. What is left passes on by the
    function's own derivative, which of a ReLU is 1.

    Parameters
    ----------
    backward : {"guided", "deconv"}
        "guided" hands back positive gradients where the ReLU was active (Springenberg et al. 2015,
        section 3.4), "deconv" positive gradients wherever they are (Zeiler and Fergus 2014).

    """

    def __init__(self, backward: ReluBackward):
        super().__init__()
        self.backward = backward
        self.idle = (
            "changes what ReLUs hand back, but there is none on the way back; what comes out is "
            "the plain gradient."
        )
        self._refusal: str | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return "Guided backpropagation" if self.backward == "guided" else "Deconvolution"

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Take plain gradients through the same graph."""
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
        # A hardtanh is an activation. A clamp is one from zero; others keep numbers from vanishing.
        if "hardtanh" in func.__name__ or _lower_bound(func, args, kwargs) == 0:
            return self._rectifier(func, x, *args, **kwargs)
        return func(x, *args, **kwargs)

    def _other(self, func: Function, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._check()
        y = func(x, *args, **kwargs)
        if _is_signal(y):
            # At the end it is part of the score, as the sigmoid of a binary classifier is.
            self._refusal = self.refusal(func)
        return y

    def _layer(self, func: Function, *args: Any, **kwargs: Any) -> Tensor:
        self._check()
        return func(*args, **kwargs)

    def _check(self) -> None:
        """Raise a ValueError if what lies below has no rule."""
        if self._refusal is not None:
            raise ValueError(self._refusal)

    handlers: ClassVar[Mapping[Function, Function]] = {
        **dict.fromkeys(_RELUS | _SOFT_RELUS, _rectifier),
        **dict.fromkeys(_BOUNDED, _bounded),
        **dict.fromkeys(_OTHER_ACTIVATIONS, _other),
        **dict.fromkeys(_WEIGHTED | _PRODUCTS, _layer),
    }


class _Rectifier(torch.autograd.Function):
    # It asks the rule on the way back, not on the way forward, so that a rule can be suspended.

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
# Neither linear in what is positive, nor a ReLU.
_NEGATIONS = _functions("neg __neg__ negative")
_NO_EXCITATION = _SOFT_RELUS | _OTHER_ACTIVATIONS | _PRODUCTS
_NO_EXCITATION |= _functions(
    "threshold threshold_ softmax softmin log_softmax layer_norm group_norm instance_norm rms_norm "
    "local_response_norm normalize scaled_dot_product_attention multi_head_attention_forward "
    "bilinear sub sub_ __sub__ __rsub__ __isub__ subtract neg_ negative_ pow __pow__ exp log sqrt "
    "rsqrt reciprocal __rtruediv__ square abs norm logsumexp lp_pool2d tensordot conv_transpose1d "
    "conv_transpose2d conv_transpose3d"
)


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

    name = "Excitation backpropagation"

    def __init__(self, contrastive: bool):
        super().__init__()
        self.contrastive = contrastive
        if contrastive:
            self.idle = (
                "sets a class off against its dual, whose weights are negated, but there is no "
                "layer with weights on the way back; what comes out is contrastive=False."
            )
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

    @property
    def is_at_top(self) -> bool:
        """Whether the way back has met no layer with weights yet."""
        return self._is_top

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
                "Excitation backpropagation goes back through a batch normalisation by its running "
                "statistics, and one of this network takes those of the batch: it is in training "
                "mode, or has track_running_stats=False."
            )
        self.idle = ""
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
        # A bias is not a neuron; nor is what lies before the layer.
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
        # A constant is the one weight of each neuron.
        y, in_place = _evaluate(func, x, (factor,), {})
        weight = torch.as_tensor(factor).detach().to(x)
        y = _Excite.apply(x, y, None, torch.mul, 1 / weight if is_quotient else weight)
        return x.copy_(y) if in_place else y

    def _negated(self, func: Function, x: Tensor) -> Tensor:
        # Above all weights it is a class with its weights negated; below, nothing is excited.
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
        # Under autocast the layer was computed in another type than its weights are of.
        x, weight = (at_least_float32(each) for each in ctx.saved_tensors)
        probability = at_least_float32(probability)
        for_it, against_it = weight.clamp(min=0), (-weight).clamp(min=0)
        if ctx.rule is None or not ctx.rule.take_top():
            won = _share(ctx.linear, x, for_it, probability)
        elif ctx.rule.contrastive:
            won = _share(ctx.linear, x, for_it, probability)
            won = won - _share(ctx.linear, x, against_it, probability)
        else:
            # What is negative is for the class whose weights are negated, as a logit's first is.
            won = _share(ctx.linear, x, for_it, probability.clamp(min=0))
            won = won + _share(ctx.linear, x, against_it, (-probability).clamp(min=0))
        return won.to(ctx.saved_tensors[0].dtype), None, None, None, None


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
