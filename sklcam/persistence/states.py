"""Checks of states that torch takes as they are and relies on."""

from __future__ import annotations

import struct
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from sklcam.persistence.errors import PersistenceError
from sklcam.persistence.values import expect

_WORDS = 624  # of a Mersenne Twister


def check_generator(state: Any) -> None:
    """Refuse a state from which a CPU generator would read beyond its words.

    It reads ``left`` - 1 words before it makes new ones, and torch does not check that so many
    follow its position.
    """
    torch.Generator().set_state(expect(state, Tensor, "state of a generator"))
    left, _, position = struct.unpack_from("=iiQ", state.numpy().tobytes(), 8)
    if position + left > _WORDS + 1:
        raise PersistenceError("the state of a random generator is not valid")


def check_optimizer(optimizer: Optimizer, state: dict[Any, Any]) -> None:
    """Refuse a state that does not belong to this optimizer.

    Fused kernels read and write as many numbers as a parameter has, whatever the state's size.
    """
    own = optimizer.state_dict()
    if state.keys() != own.keys() or len(state["param_groups"]) != len(own["param_groups"]):
        raise PersistenceError("the optimizer's state has other groups of parameters")
    if not type(optimizer).__module__.startswith("torch."):
        return  # the user has passed it, and it may keep anything
    for group, wanted in zip(state["param_groups"], own["param_groups"], strict=True):
        wrong = [name for name in group if not _fits(group[name], wanted.get(name, 0.0))]
        if wrong or not wanted.keys() <= group.keys() or group["params"] != wanted["params"]:
            raise PersistenceError(f"the optimizer's options do not belong to it: {wrong[:5]}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        for name, value in values.items() if "fused" in optimizer.defaults else ():
            parameter = parameters[index]
            shape = () if name == "step" else parameter.shape
            if not isinstance(value, Tensor | None) or (value is not None and value.shape != shape):
                raise PersistenceError(
                    f"the optimizer's {str(name)[:80]!r} does not fit the parameter"
                )
            if name != "step" and value is not None and value.stride() != parameter.stride():
                # Kernels go through both in the order of memory, which a file does not record.
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_scaler(scaler: GradScaler, state: dict[Any, Any]) -> None:
    """Refuse a state that does not belong to a gradient scaler."""
    if state.keys() != scaler.state_dict().keys() or not all(map(_is_number, state.values())):
        raise PersistenceError("the state of the gradient scaler is not valid")


def check_average(values: dict[str, Tensor], n_steps: Any, own: Any) -> None:
    """Refuse weights that these values cannot be the average of."""
    if type(n_steps) is not int or n_steps < 0 or expect(own, dict, "own").keys() != values.keys():
        raise PersistenceError("the weights that were averaged are not those of the network")
    for name, value in values.items():
        other = expect(own[name], Tensor, "own")
        if other.shape != value.shape or other.dtype != value.dtype:
            raise PersistenceError(f"{name} differs from its average in shape or dtype")


def _fits(value: Any, wanted: Any) -> bool:
    """Return whether an option may have this value: schedules change only numbers."""
    if isinstance(wanted, tuple | list):
        is_alike = isinstance(value, tuple | list) and len(value) == len(wanted)
        return is_alike and all(map(_fits, value, wanted))
    if _is_number(wanted):
        return _is_number(value)
    return type(value) is type(wanted) and bool(value == wanted)


def _is_number(value: Any) -> bool:
    is_scalar = isinstance(value, Tensor) and value.ndim == 0
    return is_scalar or (isinstance(value, Real) and not isinstance(value, bool))
