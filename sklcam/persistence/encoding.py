"""Estimators in JSON, and their numbers in tensors by name."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.persistence.errors import PersistenceError
from sklcam.persistence.names import name_of
from sklcam.persistence.rebuilding import check_rebuilt, check_unpickling, learned_by, modules_of


class Encoder:
    """Puts estimators in JSON, and their numbers in tensors by name.

    What JSON has no word for is an object with one key that begins with "@".
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        # By identity; the things are kept, so that no other can come to have theirs.
        self._known: dict[int, tuple[Any, Any]] = {}
        self._memory: set[int] = set()

    def estimator(self, estimator: Any, where: str) -> dict[str, Any]:
        if isinstance(estimator, NeuralNet):
            return self._net(estimator, where)
        if isinstance(estimator, CAMExplainer):
            return self._explainer(estimator, where)
        raise PersistenceError(
            "save takes the estimators of sklcam and other skorch nets; got a "
            f"{type(estimator).__name__}. A network alone is saved by an explainer around it."
        )

    def _explainer(self, explainer: CAMExplainer, where: str) -> dict[str, Any]:
        learned = {name: value for name, value in vars(explainer).items() if name.endswith("_")}
        node = {
            "class": name_of(type(explainer), where or "the estimator"),
            "params": self._members(explainer.get_params(deep=False), where),
            "attributes": self._members(learned, where),
        }
        return {"@explainer": node}

    def _net(self, net: NeuralNet, where: str) -> dict[str, Any]:
        if getattr(net, "_trimmed_for_prediction", False):
            raise PersistenceError(
                f"{where or 'the estimator'} was trimmed for prediction; save it before that."
            )
        params = {name: v for name, v in net.get_params(deep=False).items() if name[0] != "_"}
        if "accelerator" in params:
            params["accelerator"] = None
        check_unpickling(params)
        fitted = None
        if net.initialized_ and "module_" in vars(net):
            fitted = self._fitted(net, where)
            check_rebuilt(net, params)
        node = {
            "class": name_of(type(net), where or "the estimator"),
            "params": self._members(params, where),
            "fitted": fitted,
        }
        return {"@net": node}

    def _fitted(self, net: NeuralNet, where: str) -> dict[str, Any]:
        modules, learned = modules_of(net), learned_by(net)
        scaler = getattr(net, "scaler_", None)
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        return {
            "attributes": self._members(learned, where),
            "modules": self._members({n: dict(m.state_dict()) for n, m in modules.items()}, where),
            "frozen": {
                n: [p for p, value in m.named_parameters() if not value.requires_grad]
                for n, m in modules.items()
            },
            "optimizers": self._members(
                {f"{n}_": getattr(net, f"{n}_").state_dict() for n in net._optimizers}, where
            ),
            "scaler": self.encode(scaler and scaler.state_dict(), _join(where, "scaler_")),
            "callbacks": [
                [name, self._members(learned_by(callback), _join(where, "callbacks", name))]
                for name, callback in net.callbacks_
            ],
            "history": self.encode(list(net.history), _join(where, "history")),
        }

    def _members(self, values: dict[str, Any], where: str) -> dict[str, Any]:
        return {name: self.encode(value, _join(where, name)) for name, value in values.items()}

    def encode(self, value: Any, where: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"@float": repr(value)}
        for kind, encode in self._KINDS:
            if isinstance(value, kind):
                return encode(self, value, where)
        return self._object(value, where)

    def _items(self, values: Iterable[Any], where: str) -> list[Any]:
        return [self.encode(value, _join(where, str(i))) for i, value in enumerate(values)]

    def _list(self, values: Any, where: str) -> Any:
        kind = type(values)
        if kind is list:
            return self._items(values, where)
        if kind not in (tuple, torch.Size, set):
            raise _unsaved(values, where)
        if kind is set:
            values = sorted(values, key=repr)
        return {f"@{kind.__name__.lower()}": self._items(values, where)}

    def _dict(self, values: Any, where: str) -> Any:
        if type(values) not in (dict, OrderedDict):
            raise _unsaved(values, where)
        plain = all(type(key) is str and not key.startswith("@") for key in values)
        if type(values) is dict and plain:
            return self._members(values, where)
        pairs = [
            [self.encode(key, where), self.encode(value, _join(where, str(key)))]
            for key, value in values.items()
        ]
        return {"@ordered" if isinstance(values, OrderedDict) else "@dict": pairs}

    def _tensor(self, value: Tensor, where: str) -> Any:
        if id(value) in self._known:
            return self._known[id(value)][0]
        if is_lazy(value) or value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise PersistenceError(f"{where} is a tensor without numbers, sparse or quantized.")
        node: dict[str, Any] = {"@tensor": self._stored(value.detach(), where)}
        if isinstance(value, nn.Parameter):
            node["parameter"] = value.requires_grad
        elif value.requires_grad and value.is_leaf:
            node["requires_grad"] = True
        self._known[id(value)] = node, value
        return node

    def _stored(self, value: Tensor, where: str) -> str:
        name, n = where, 1
        while name in self.tensors:
            n += 1
            name = f"{where}#{n}"
        stored = value.cpu().contiguous()
        memory = stored.untyped_storage()
        if memory.nbytes() != stored.nbytes or memory.data_ptr() in self._memory:
            stored = stored.clone()  # tensors in a file of safetensors share no memory
        self._memory.add(stored.untyped_storage().data_ptr())
        self.tensors[name] = stored
        return name

    def _array(self, value: np.ndarray, where: str) -> Any:
        kind = value.dtype.kind
        if type(value) not in (np.ndarray, np.memmap):  # such as masked ones
            raise _unsaved(value, where)
        if kind in "Mm":
            node = self._array(value.view(np.int64), where)["@array"]
            return {"@array": {**node, "dtype": value.dtype.str}}
        node = {"shape": list(value.shape), "dtype": "object" if kind == "O" else value.dtype.str}
        if kind in "OU":
            return {"@array": {**node, "items": self._items(value.ravel().tolist(), where)}}
        try:
            plain = np.array(value, dtype=value.dtype.newbyteorder("="), order="C", ndmin=1)
            stored = self._stored(torch.from_numpy(plain), where)
        except TypeError:
            raise _unsaved(value, where) from None
        return {"@array": {**node, "dtype": plain.dtype.str, "tensor": stored}}

    def _object(self, value: Any, where: str) -> Any:
        if id(value) in self._known:
            return self._known[id(value)][0]
        name = name_of(type(value), where)
        if dataclasses.is_dataclass(value) and name.startswith("sklcam."):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {"@dataclass": {"class": name, "fields": self._members(fields, where)}}
        number = len(self._known)
        self._known[id(value)] = {"@ref": number}, value
        state = self._dict_of(value, where)
        return {"@object": {"class": name, "id": number, "state": self._members(state, where)}}

    def _dict_of(self, value: Any, where: str) -> dict[str, Any]:
        """Return the state that makes a copy of an object, if it is a dict and all there is."""
        if isinstance(value, Callback):  # its parameters; what it has learned goes with the net
            return {n: v for n, v in vars(value).items() if not n.endswith("_")}
        try:
            make, arguments, state, *rest = value.__reduce_ex__(2)
        except Exception as error:  # each kind of object refuses in its own way
            raise _unsaved(value, where) from error
        state = {} if state is None else state
        is_usual = make.__name__ == "__newobj__" and arguments == (type(value),)
        if not is_usual or not isinstance(state, dict) or any(part is not None for part in rest):
            raise _unsaved(value, where)
        return state

    def _named(self, value: Any, where: str) -> Any:
        return {"@name": name_of(value, where)}

    def _partial(self, value: partial[Any], where: str) -> Any:
        node = {"function": value.func, "args": value.args, "keywords": value.keywords}
        return {"@partial": self._members(node, where)}

    def _random_state(self, value: np.random.RandomState, where: str) -> Any:
        state: Any = value.get_state()
        if state[0] != "MT19937":
            raise _unsaved(value, where)
        return {"@random_state": self._items(state[1:], where)}

    def _generator(self, value: torch.Generator, where: str) -> Any:
        if value.device.type != "cpu":
            raise _unsaved(value, where)
        return {"@generator": self.encode(value.get_state(), where)}

    def _method(self, value: MethodType, where: str) -> Any:
        if getattr(type(value.__self__), value.__name__, None) is not value.__func__:
            raise _unsaved(value, where)
        owner = self.encode(value.__self__, where)
        kind = name_of(type(value.__self__), where)
        return {"@method": {"class": kind, "of": owner, "name": value.__name__}}

    def _enum(self, value: enum.Enum, where: str) -> Any:
        return {"@enum": {"class": name_of(type(value), where), "member": value.name}}

    _KINDS: tuple[tuple[Any, Callable[..., Any]], ...] = (
        (NeuralNet, _net),
        (CAMExplainer, _explainer),
        (Tensor, _tensor),
        (np.ndarray, _array),
        (
            np.generic,
            lambda self, v, where: {"@number": self._array(np.asarray(v), where)["@array"]},
        ),
        (enum.Enum, _enum),
        (dict, _dict),
        ((list, tuple, set), _list),
        (torch.device, lambda self, v, where: {"@device": str(v)}),
        ((torch.dtype, torch.memory_format), lambda self, v, where: {"@torch": str(v)}),
        (np.dtype, lambda self, v, where: {"@dtype": v.str}),
        (PurePath, lambda self, v, where: {"@path": str(v)}),
        (slice, lambda self, v, w: {"@slice": self._items((v.start, v.stop, v.step), w)}),
        (range, lambda self, v, where: {"@range": [v.start, v.stop, v.step]}),
        (partial, _partial),
        (MethodType, _method),
        (np.random.RandomState, _random_state),
        (torch.Generator, _generator),
        ((type, FunctionType, BuiltinFunctionType), _named),
    )


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _unsaved(value: Any, where: str) -> PersistenceError:
    return PersistenceError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be put in "
        "words and numbers; leave it out or replace it before saving, and set it again after."
    )
