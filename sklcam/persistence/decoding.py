"""Estimators from JSON and tensors, of known and trusted classes alone."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any
from warnings import warn

import numpy as np
import torch
from skorch import NeuralNet
from skorch.exceptions import DeviceWarning
from skorch.history import History
from torch import Tensor, nn
from torch.amp import GradScaler

from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.persistence.errors import PersistenceError, UntrustedError
from sklcam.persistence.names import (
    dotted_name,
    find_installed,
    is_known,
    may_be_known,
    names_in,
)
from sklcam.persistence.rebuilding import (
    building,
    check_same,
    check_unpickling,
    load_state,
    modules_of,
)


class Decoder:
    """Builds what :class:`Encoder` has put in JSON, of known and trusted classes alone."""

    def __init__(self, tensors: dict[str, Tensor], trusted: dict[str, Any]):
        self._tensors = tensors
        self._trusted = trusted
        self._made: dict[int, Any] = {}
        self._parameters: dict[str, Tensor] = {}

    def check_names(self, content: Any) -> None:
        """Refuse a file with names that are neither known nor trusted, and name all of them."""
        names = [name for name in names_in(content) if not self._is_allowed(name)]
        if names:
            raise UntrustedError(map(dotted_name, names))

    def check_trusted(self, name: str) -> None:
        """Refuse a name that the caller does not trust, be it known or not."""
        if dotted_name(name) not in self._trusted:
            raise UntrustedError([dotted_name(name)])

    def _is_allowed(self, name: str) -> bool:
        return dotted_name(name) in self._trusted or may_be_known(name)

    def _find(self, name: str) -> Any:
        dotted = dotted_name(name)
        if dotted in self._trusted:
            given = self._trusted[dotted]
            return find_installed(name) if given is None else given
        found = find_installed(name) if may_be_known(name) else None
        if not is_known(name, found):
            raise UntrustedError([dotted])
        return found

    def _class(self, name: str, base: type) -> Any:
        found = self._find(name)
        if not isinstance(found, type) or not issubclass(found, base):
            raise PersistenceError(f"{dotted_name(name)} is not a {base.__name__}")
        return found

    def decode(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        if not any(key.startswith("@") for key in node):
            return self._members(node)
        kind = next(iter(node))
        if kind not in self._KINDS:
            raise PersistenceError(f"its JSON has an unknown entry {kind!r}")
        if kind == "@tensor":
            return self._tensor(node)
        return self._KINDS[kind](self, node[kind])

    def _members(self, node: dict[str, Any]) -> dict[str, Any]:
        return {name: self.decode(value) for name, value in node.items()}

    def _pairs(self, node: list[Any]) -> dict[Any, Any]:
        return {self.decode(key): self.decode(value) for key, value in node}

    def _tensor(self, node: dict[str, Any]) -> Tensor:
        name = node["@tensor"]
        if "parameter" in node:
            if name not in self._parameters:
                made = nn.Parameter(self._tensors[name], requires_grad=bool(node["parameter"]))
                self._parameters[name] = made
            return self._parameters[name]
        return self._tensors[name].requires_grad_(bool(node.get("requires_grad")))

    def _array(self, node: dict[str, Any]) -> np.ndarray:
        shape, dtype = tuple(node["shape"]), np.dtype(node["dtype"])
        if "items" in node:
            items = np.empty(len(node["items"]), dtype=object)
            items[:] = self.decode(node["items"])
            longest = max((len(item) for item in items if isinstance(item, str)), default=0)
            if dtype.kind != "O" and dtype.itemsize > 4 * max(longest, 1024):
                raise PersistenceError(f"its JSON has {longest} letters as {dtype}")
            return items.astype(dtype).reshape(shape)
        found = self._tensors[node["tensor"]].numpy()
        if dtype.kind in "Mm":
            found = found.view(dtype)
        if found.dtype != dtype:
            raise PersistenceError(f"{node['tensor']} has numbers of {found.dtype}, not {dtype}")
        return found.reshape(shape)

    def _torch(self, name: str) -> Any:
        found = getattr(torch, name.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype | torch.memory_format):
            raise PersistenceError(f"{name!r} is no dtype")
        return found

    def _object(self, node: dict[str, Any]) -> Any:
        kind = self._class(node["class"], object)
        if issubclass(kind, NeuralNet):  # whose __setstate__ unpickles
            raise PersistenceError(f"{kind.__name__} is stored as what it is not")
        made = self._made[node["id"]] = kind.__new__(kind)
        state = self._members(node["state"])
        if hasattr(made, "__setstate__"):
            made.__setstate__(state)
        else:
            vars(made).update(state)
        return made

    def _dataclass(self, node: dict[str, Any]) -> Any:
        kind = self._class(node["class"], object)
        if not hasattr(kind, "__dataclass_fields__"):
            raise PersistenceError(f"{kind.__name__} is no dataclass")
        return kind(**self._members(node["fields"]))

    def _enum(self, node: dict[str, Any]) -> enum.Enum:
        return self._class(node["class"], enum.Enum)[node["member"]]

    def _method(self, node: dict[str, Any]) -> Any:
        kind, owner = self._class(node["class"], object), self.decode(node["of"])
        found = getattr(kind, node["name"], None)
        if type(owner) is not kind or not isinstance(found, FunctionType):
            raise PersistenceError(f"{dotted_name(node['class'])} has no method {node['name']!r}")
        # Losses have such attributes. Methods of others may write files, or compile.
        of_class = f"{found.__module__}:{found.__qualname__.rpartition('.')[0]}"
        if not of_class.startswith("pytorch_metric_learning."):
            self.check_trusted(of_class)
        return getattr(owner, node["name"])

    def _partial(self, node: dict[str, Any]) -> partial[Any]:
        parts = self._members(node)
        return partial(parts["function"], *parts["args"], **parts["keywords"])

    def _random_state(self, node: list[Any]) -> np.random.RandomState:
        made = np.random.RandomState(0)
        made.set_state(("MT19937", *self.decode(node)))
        return made

    def _generator(self, node: Any) -> torch.Generator:
        made = torch.Generator()
        made.set_state(self.decode(node))
        return made

    def _explainer(self, node: dict[str, Any]) -> CAMExplainer:
        made = self._class(node["class"], CAMExplainer)(**self._members(node["params"]))
        vars(made).update(self._learned(node["attributes"]))
        return made

    def _learned(self, node: dict[str, Any]) -> dict[str, Any]:
        learned = self._members(node)
        wrong = [name for name in learned if not name.endswith("_") or name.endswith("__")]
        if wrong:
            raise PersistenceError(f"{wrong} is nothing that is learned")
        return learned

    # Nets

    def _net(self, node: dict[str, Any]) -> NeuralNet:
        kind = self._class(node["class"], NeuralNet)
        params = self._members(node["params"])
        check_unpickling(params)
        if any(name.startswith("compile__") for name in params):
            # Its options may name programs to run.
            self.check_trusted("torch:compile")
        params["device"] = _device_here(params.get("device"))
        net = kind(**params)
        if node["fitted"] is not None:
            self._fill(net, node["fitted"])
        return net

    def _fill(self, net: NeuralNet, fitted: dict[str, Any]) -> None:
        with building(net, self._learned(fitted["attributes"])):
            net.initialize()
        modules = modules_of(net)
        check_same(modules, fitted["modules"], "networks and losses")
        check_same([f"{name}_" for name in net._optimizers], fitted["optimizers"], "optimizers")
        for name, module in modules.items():
            load_state(module, self._members(fitted["modules"][name]), name)
            frozen = set(fitted["frozen"][name])
            for of_parameter, parameter in module.named_parameters():
                if parameter.requires_grad is (of_parameter in frozen):
                    parameter.requires_grad_(of_parameter not in frozen)
        for name, state in fitted["optimizers"].items():
            getattr(net, name).load_state_dict(self.decode(state))
        if fitted["scaler"]:
            scaler = GradScaler(torch.device(net.device or "cpu").type)
            scaler.load_state_dict(self.decode(fitted["scaler"]))
            net.scaler_ = scaler
        callbacks = dict(net.callbacks_)
        for name, state in fitted["callbacks"]:
            callbacks[name].__dict__.update(self._learned(state))
        net.history_ = History(self.decode(fitted["history"]))

    _KINDS: dict[str, Callable[[Decoder, Any], Any]] = {
        "@array": _array,
        "@dataclass": _dataclass,
        "@device": lambda self, node: torch.device(node),
        "@dict": _pairs,
        "@dtype": lambda self, node: np.dtype(node),
        "@enum": _enum,
        "@explainer": _explainer,
        "@float": lambda self, node: float(node),
        "@generator": _generator,
        "@name": lambda self, node: self._find(node),
        "@net": _net,
        "@method": _method,
        "@number": lambda self, node: self._array(node).reshape(-1)[0],
        "@object": _object,
        "@ordered": lambda self, node: OrderedDict(self._pairs(node)),
        "@partial": _partial,
        "@path": lambda self, node: Path(node),
        "@random_state": _random_state,
        "@range": lambda self, node: range(*node),
        "@ref": lambda self, node: self._made[node],
        "@set": lambda self, node: set(self.decode(node)),
        "@size": lambda self, node: torch.Size(self.decode(node)),
        "@slice": lambda self, node: slice(*self.decode(node)),
        "@tensor": _tensor,
        "@torch": _torch,
        "@tuple": lambda self, node: tuple(self.decode(node)),
    }


def _device_here(device: Any) -> Any:
    """Return the device, or the CPU where there is no such GPU."""
    if device is None or device == "auto":
        return device
    wanted = torch.device(device)
    n_devices = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (wanted.index or 0) < n_devices.get(wanted.type, 1):
        return device
    warn(
        f"The estimator was on {wanted}, which is not available here; it is loaded on the CPU.",
        DeviceWarning,
        stacklevel=2,
    )
    return "cpu"
