"""Output ranges: whether an output is probabilities or logarithms, by the functions that made it.

A network may end in a sigmoid, or in an equivalent: 1 / (1 + exp(-z)), (tanh(z) + 1) / 2. Values
alone tell nothing, as logits may lie in [0, 1] by chance. The bounds of values are therefore
followed through a pass, from functions with a bounded range. An output that lies in [0, 1] whatever
the image is consists of probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, inf, log
from typing import Any, Self

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from sklcam.networks.dry_run import memory_of
from sklcam.networks.precision import at_least_float32

# Rounding may take the sum of a row of probabilities this far from 1.
_SUM_TOLERANCE = 1e-3
_LEAST = 0.9  # the least part of [0, 1] for probabilities, as clamps and smoothing narrow it


@dataclass(frozen=True)
class _Range:
    """The bounds of a tensor's values, whatever the image is.

    Parameters
    ----------
    low, high : float
    rises : bool or None, default=True
        Whether values increase with their inputs; None if some do and others do not.
    is_shared : bool, default=False
        Whether values depend on each other, as those of a softmax do.
    is_log : bool, default=False
        Whether the values are logarithms of a sigmoid, or their negatives.
    """

    low: float
    high: float
    rises: bool | None = True
    is_shared: bool = False
    is_log: bool = False

    @property
    def is_unit(self) -> bool:
        return self.low >= 0 and self.high <= 1

    @property
    def turned(self) -> bool | None:
        return None if self.rises is None else not self.rises

    @property
    def is_constant(self) -> bool:
        return self.low == self.high

    def plus(self, other: _Range) -> _Range:
        if self.is_constant or other.is_constant:
            varied = other if self.is_constant else self
        else:
            varied = _joint([self, other])
        return replace(varied, low=self.low + other.low, high=self.high + other.high, is_log=False)

    def divided(self) -> _Range | None:
        """Return the bounds of the reciprocal, also that of a negative constant."""
        if self.is_constant:
            return _Range(1 / self.low, 1 / self.low) if self.low else None
        return self.inverted()

    def scaled(self, by: float) -> _Range | None:
        if by == 0:
            return None
        low, high = sorted((self.low * by, self.high * by))
        is_log = self.is_log and abs(by) == 1
        rises = self.rises if by > 0 else self.turned
        return replace(self, low=low, high=high, rises=rises, is_log=is_log)

    def inverted(self) -> _Range | None:
        if self.low < 0:
            return None
        low, high = (inf if end == 0 else 1 / end for end in (self.high, self.low))
        return replace(self, low=low, high=high, rises=self.turned, is_log=False)

    def log(self) -> _Range | None:
        if self.low < 0:
            return None
        low, high = (-inf if end == 0 else log(end) for end in (self.low, self.high))
        # log(1 + exp(-z)) is the logarithm of 1 / sigmoid(z).
        is_log = (self.is_unit or self.low == 1) and not self.is_shared
        return replace(self, low=low, high=high, is_log=is_log)

    def exp(self) -> _Range:
        low, high = (exp(min(end, 700)) for end in (self.low, self.high))
        return replace(self, low=low, high=inf if self.high > 700 else high, is_log=False)


_ANY = _Range(-inf, inf)
_SOURCES = {
    "sigmoid": _Range(0, 1),
    "hardsigmoid": _Range(0, 1),
    "_softmax": _Range(0, 1, is_shared=True),
    "tanh": _Range(-1, 1),
    "erf": _Range(-1, 1),
    "softplus": _Range(0, inf, is_log=True),  # the negative of a logarithm
    "log_sigmoid_forward": _Range(-inf, 0, is_log=True),
}
# Functions whose results stay within the bounds: copies, selections, clamps and averages.
_COPIES = frozenset(
    {
        "_to_copy", "clone", "index", "index_select", "gather", "clamp", "nan_to_num", "mean",
        "amax", "amin", "max", "min", "_adaptive_avg_pool2d", "avg_pool2d",
        "max_pool2d_with_indices",
    }
)  # fmt: skip
# Functions that combine several tensors, with the position of the first one.
_JOINTS = {"cat": 0, "stack": 0, "maximum": 0, "minimum": 0, "where": 1}


def _joint(parts: list[_Range]) -> _Range:
    """Return the bounds of a combination of several tensors."""
    return _Range(
        min(part.low for part in parts),
        max(part.high for part in parts),
        parts[0].rises if len({part.rises for part in parts}) == 1 else None,
        any(part.is_shared for part in parts),
        all(part.is_log for part in parts),
    )


class OutputRanges(TorchDispatchMode):
    """Follow the bounds of values through a pass, to find out what the output is.

    Examples
    --------
    >>> import torch
    >>> from sklcam.networks.output_ranges import OutputRanges
    >>> z = torch.zeros(1, 3)
    >>> with OutputRanges() as ranges:
    ...     by_hand, logits = 1 / (1 + torch.exp(-z)), z + 0.5
    >>> ranges.are_probabilities(by_hand), ranges.are_probabilities(logits)
    (True, False)
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Keyed by memory. The tensors are kept, so that no others take their memory.
        self._found: dict[int, tuple[_Range, Tensor]] = {}

    def __enter__(self) -> Self:
        # Compiled code runs eagerly: torch does not compile within a mode, and code that insists,
        # such as FlexAttention, would fail.
        self._stance = torch.compiler.set_stance("force_eager")
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stance.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # its result is not known
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if func._schema.is_mutable and name.endswith("_"):
            name = name[:-1]
        found = self._range_of(name, args) if args and kwargs.get("alpha", 1) == 1 else None
        result = func(*args, **kwargs)
        made = result[0] if isinstance(result, tuple) and result else result
        if func._schema.is_mutable and args and isinstance(args[0], Tensor):
            self._found.pop(memory_of(args[0]), None)  # its values have changed
        if found not in (None, _ANY) and isinstance(made, Tensor):
            assert found is not None
            self._found[memory_of(made)] = found, made
        return result

    def _known(self, value: object) -> _Range:
        number = _number(value)
        if number is not None:
            return _Range(number, number)
        if not isinstance(value, Tensor) or memory_of(value) not in self._found:
            return _ANY
        return self._found[memory_of(value)][0]

    def _range_of(self, name: str, args: Any) -> _Range | None:
        """Return the bounds of the result of an ATen function; None if they are not known."""
        first = self._known(args[0])
        if name in _SOURCES:
            return replace(_SOURCES[name], rises=first.rises)
        if name == "hardtanh":  # relu6 as well
            low, high = (*args[1:3], -1, 1)[:2] if len(args) < 3 else args[1:3]
            return _Range(float(low), float(high), first.rises)
        if name in _COPIES:
            return first
        if name in _JOINTS:
            several = args[0] if name in ("cat", "stack") else args[_JOINTS[name] :]
            return _joint([self._known(part) for part in several])
        if name == "exp":
            return first.exp()
        if name == "log":
            return first.log()
        if name == "neg":
            return first.scaled(-1)
        if name == "reciprocal":
            return first.inverted()
        if name == "pow" and _number(args[1]) == -1:
            return first.inverted()
        if name in ("prod", "sqrt", "square") or (name == "pow" and (_number(args[1]) or 0) > 0):
            return first if first.is_unit else None
        if name == "ones_like":
            return _Range(1, 1)
        if name in ("add", "sub", "mul", "div", "rsub") and len(args) > 1:
            return self._of_arithmetic(name, args[0], args[1])
        return None

    def _of_arithmetic(self, name: str, left: object, right: object) -> _Range | None:
        if name == "rsub":  # subtracts the left from the right
            name, left, right = "sub", right, left
        one, other = self._known(left), self._known(right)
        if name == "div" and one.low >= 0 and other.low >= 1 and _is_one_less(left, right):
            return replace(one, low=0, high=1)  # z / (1 + z)
        if name in ("sub", "div"):  # as addition of the negative, multiplication by the reciprocal
            changed = other.scaled(-1) if name == "sub" else other.divided()
            if changed is None:
                return None
            other = changed
        if name in ("add", "sub"):
            return one.plus(other)
        if other.is_constant:
            return one.scaled(other.low)
        if one.is_constant:
            return other.scaled(one.low)
        # A product of probabilities is a probability.
        return _joint([one, other]) if one.is_unit and other.is_unit else None

    def _of_output(self, output: Tensor) -> _Range:
        found = self._known(output)
        # For classes that exclude each other, the probabilities depend on each other and add up to
        # 1, so they are not those of sigmoids.
        is_mixed = found.is_shared or found.rises is None
        return _ANY if is_mixed and is_distribution(output) else found

    def are_probabilities(self, output: Tensor) -> bool:
        """Whether each value of an output is a probability of its own, as a sigmoid's is."""
        found = self._of_output(output)
        return found.is_unit and found.high - found.low >= _LEAST

    def are_logarithms(self, output: Tensor) -> bool:
        """Whether an output is the logarithm of a sigmoid."""
        found = self._of_output(output)
        return found.is_log and found.high <= 0


def _is_one_less(left: object, right: object) -> bool:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.shape != right.shape:
        return False
    return torch.allclose(left + 1, right)


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def is_distribution(output: Tensor) -> bool:
    """Whether each row of an output consists of probabilities that add up to 1.

    Parameters
    ----------
    output : Tensor

    Returns
    -------
    bool
        False for a single column, whose softmax is 1 whatever the network says.
    """
    if output.ndim != 2 or output.shape[1] < 2 or not output.is_floating_point():
        return False
    # Each probability may be off by half of eps, which in bfloat16 is more.
    tolerance = max(_SUM_TOLERANCE, torch.finfo(output.dtype).eps)
    is_sum = (at_least_float32(output).sum(dim=1) - 1).abs() < tolerance
    return bool((is_sum & (output >= 0).all(dim=1)).all())
