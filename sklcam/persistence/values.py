"""Values in a file: plain ones as JSON, numbers as tensors, known objects and labels by name.

A value is null, a bool, an int, a float, a string or a list as JSON has them. Anything else is an
object of exactly one of these forms:

====================================================  ==============================================
``{"float": "nan"}``                                  a float that JSON has no word for
``{"tuple": [...]}``                                  a tuple
``{"dict": [[key, value], ...]}``                     a dict of plain keys
``{"scalar": dtype, "value": ...}``                   a NumPy scalar
``{"array": tensor name, "dtype": ..., "shape": ...}``  an array of numbers
``{"items": [...], "dtype": ..., "shape": ...}``      an array of strings, or of plain values
``{"tensor": tensor name}``                           a tensor
``{"random_state": [tensor name, ...]}``              a ``RandomState``
``{"device": "cuda:0"}``                              a torch device
``{"known": name}``                                   a class or function of a fixed table
``{"known": name, "with": {...}, "learned": {...}}``  an instance of one, made from its parameters
``{"object": label}``                                 anything else; the reader brings it along
====================================================  ==============================================

Reading imports nothing, calls nothing and sets nothing that the file names: names are looked up in
tables, and what is looked up is checked before it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sklcam.persistence import known
from sklcam.persistence.errors import MissingObjectsError, PersistenceError

# Deeper than any parameter of an estimator, and far from Python's limit of recursion.
_DEEPEST = 24

# Bytes of a string array, all of whose strings take as much as the longest.
_LARGEST_STRINGS = 2**26

_NUMBERS = "?bBhHiIlLqQefd"  # NumPy's codes of the dtypes that safetensors holds


class Writer:
    """Puts values in JSON, and their numbers in tensors by name.

    Attributes
    ----------
    tensors : dict of str to Tensor
    objects : dict of str to object
        What the reader has to bring along, by label.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.objects: dict[str, Any] = {}

    def members(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {name: self.write(value, f"{where}.{name}") for name, value in values.items()}

    def write(self, value: Any, where: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) in (list, tuple):
            items = [self.write(item, f"{where}.{i}") for i, item in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
            pairs = [
                [self.write(k, where), self.write(v, f"{where}.{k}")] for k, v in value.items()
            ]
            return {"dict": pairs}
        return self._numbers(value, where) or self._known(value, where) or self.label(value, where)

    def _numbers(self, value: Any, where: str) -> dict[str, Any] | None:
        if isinstance(value, np.generic) and value.dtype.kind in "biufUS":
            return {"scalar": value.dtype.str, "value": self.write(value.item(), where)}
        if type(value) in (np.ndarray, np.memmap):
            return self._array(value, where)
        if type(value) in (Tensor, nn.Parameter):
            return {"tensor": self.store(value, where)}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, np.random.RandomState):
            kind, key, *rest = value.get_state(legacy=True)
            if kind == "MT19937":
                return {"random_state": [self.store(torch.from_numpy(key), where), *rest]}
        return None

    def _array(self, value: np.ndarray, where: str) -> dict[str, Any] | None:
        node: dict[str, Any] = {"dtype": value.dtype.str, "shape": list(value.shape)}
        if value.dtype.char in _NUMBERS:
            plain = np.array(value, dtype=value.dtype.newbyteorder("="), order="C", ndmin=1)
            node["dtype"] = plain.dtype.str
            return {"array": self.store(torch.from_numpy(plain), where), **node}
        if value.dtype.kind in "UO":
            return {"items": self.write(value.ravel().tolist(), where), **node}
        return None

    def store(self, tensor: Tensor, where: str) -> str:
        """Keep a tensor under a name of its own, and return that."""
        if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise PersistenceError(f"{where} is a tensor without numbers, or a sparse one.")
        if tensor.is_quantized:
            raise PersistenceError(f"{where} is a quantized tensor, which files do not hold.")
        name, n = where.removeprefix("."), 1
        while name in self.tensors:
            n += 1
            name = f"{where.removeprefix('.')}#{n}"
        # Tensors in a file share no memory, and none is larger than what is seen of it.
        self.tensors[name] = tensor.detach().cpu().contiguous().clone()
        return name

    def _known(self, value: Any, where: str) -> dict[str, Any] | None:
        name = known.name_of(value)
        if name is not None:
            return {"known": name}
        if not known.is_instance(value):
            return None
        node = {"known": known.name_of(type(value))}
        node["with"] = self.members(known.parameters_of(value), where)
        learned = known.learned_of(value)
        return {**node, "learned": self.members(learned, where)} if learned else node

    def label(self, value: Any, where: str) -> dict[str, Any]:
        """Keep something under a label, for the reader to bring along."""
        found = getattr(value, "__name__", type(value).__name__)
        # A lambda has no name; its parameter has.
        label = where.rpartition(".")[2] if "<" in found else found
        while self.objects.get(label, value) is not value:
            label += "_"
        self.objects[label] = value
        return {"object": label}


class Reader:
    """Makes values of what :class:`Writer` has put in JSON.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    objects : mapping of str to object
        What the reader of the file brings along, by label.
    """

    def __init__(self, tensors: Mapping[str, Tensor], objects: Mapping[str, Any]):
        self.tensors = tensors
        self.objects = objects

    def members(self, nodes: Any, depth: int = 0) -> dict[str, Any]:
        if not isinstance(nodes, dict):
            raise PersistenceError("its JSON has something else in the place of named values")
        return {name: self.read(node, depth) for name, node in nodes.items()}

    def read(self, node: Any, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            raise PersistenceError(f"its JSON is nested more than {_DEEPEST} times")
        if isinstance(node, list):
            return [self.read(item, depth + 1) for item in node]
        if not isinstance(node, dict):
            return node
        for form, read in self._FORMS.items():
            if form in node:
                return read(self, node, depth + 1)
        raise PersistenceError(f"its JSON has a value of no known form, {sorted(node)[:5]}")

    def _float(self, node: dict[str, Any], depth: int) -> float:
        if node["float"] not in ("nan", "inf", "-inf"):
            raise PersistenceError(f"{node['float']!r} is not nan, inf or -inf")
        return float(node["float"])

    def _tuple(self, node: dict[str, Any], depth: int) -> tuple[Any, ...]:
        if not isinstance(node["tuple"], list):
            raise PersistenceError("a tuple in its JSON is not written as a list")
        return tuple(self.read(node["tuple"], depth))

    def _dict(self, node: dict[str, Any], depth: int) -> dict[Any, Any]:
        pairs = [pair for pair in node["dict"] if isinstance(pair, list) and len(pair) == 2]
        if len(pairs) < len(node["dict"]):
            raise PersistenceError("a dict in its JSON is not written as pairs")
        found = [(self.read(key, depth), self.read(value, depth)) for key, value in pairs]
        if not all(isinstance(key, str | int | float | tuple | None) for key, _ in found):
            raise PersistenceError("a dict in its JSON has a key that is not plain")
        return dict(found)

    def _scalar(self, node: dict[str, Any], depth: int) -> Any:
        dtype, value = _dtype(node["scalar"], "biufUS"), self.read(node.get("value"), depth)
        if not isinstance(value, bool | int | float | str) or _too_long(dtype, 1):
            raise PersistenceError("a number in its JSON is not one")
        return np.array(value).astype(dtype)[()]

    def _array(self, node: dict[str, Any], depth: int) -> np.ndarray:
        dtype = _dtype(node.get("dtype"), "biuf")
        found = self.tensor(node["array"]).numpy()
        if found.dtype != dtype:
            raise PersistenceError(f"{node['array']} has numbers of {found.dtype}, not {dtype}")
        return found.reshape(_shape(node, found.size))

    def _items(self, node: dict[str, Any], depth: int) -> np.ndarray:
        dtype = _dtype(node.get("dtype"), "UO")
        values = self.read(node["items"], depth)
        if not isinstance(values, list) or _too_long(dtype, len(values)):
            raise PersistenceError(f"its JSON has an array of {dtype} that is none")
        if dtype.kind == "U" and not all(isinstance(value, str) for value in values):
            raise PersistenceError("an array of strings in its JSON has something else in it")
        items = np.empty(len(values), dtype=object)
        items[:] = values
        return items.astype(dtype).reshape(_shape(node, len(values)))

    def tensor(self, name: Any) -> Tensor:
        if not isinstance(name, str) or name not in self.tensors:
            raise PersistenceError(f"it has no tensor {str(name)[:80]!r}")
        return self.tensors[name]

    def _random_state(self, node: dict[str, Any], depth: int) -> np.random.RandomState:
        values = node["random_state"]
        if not isinstance(values, list) or len(values) != 4:
            raise PersistenceError("a RandomState in its JSON is not of four values")
        key, position, has_gauss, cached = self.tensor(values[0]), *values[1:]
        # NumPy trusts the position, and would read beyond the key.
        fits = key.dtype == torch.uint32 and key.shape == (624,) and type(position) is int
        if not fits or not 0 <= position <= 624 or has_gauss not in (0, 1):
            raise PersistenceError("the state of a RandomState is not one")
        if type(cached) not in (int, float):
            raise PersistenceError("the state of a RandomState is not one")
        made = np.random.RandomState(0)
        made.set_state(("MT19937", key.numpy(), position, has_gauss, float(cached)))
        return made

    def _device(self, node: dict[str, Any], depth: int) -> torch.device:
        try:
            return torch.device(node["device"])
        except (RuntimeError, TypeError):
            raise PersistenceError(f"{str(node['device'])[:40]!r} is not a device") from None

    def _known(self, node: dict[str, Any], depth: int) -> Any:
        if "with" not in node:
            return known.find(node["known"])
        learned = self.members(node.get("learned", {}), depth)
        return known.make(node["known"], self.members(node["with"], depth), learned)

    def _object(self, node: dict[str, Any], depth: int) -> Any:
        label = node["object"]
        if not isinstance(label, str) or label not in self.objects:
            raise MissingObjectsError([label])
        return self.objects[label]

    _FORMS: Mapping[str, Callable[[Reader, dict[str, Any], int], Any]] = {
        "float": _float,
        "tuple": _tuple,
        "dict": _dict,
        "scalar": _scalar,
        "array": _array,
        "items": _items,
        "tensor": lambda self, node, depth: self.tensor(node["tensor"]),
        "random_state": _random_state,
        "device": _device,
        "known": _known,
        "object": _object,
    }


def labels_in(content: Any) -> list[str]:
    """Return the labels of all objects that a file asks for, each once."""
    found: dict[str, None] = {}
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if isinstance(node.get("object"), str):
                found[node["object"]] = None
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return sorted(found)


def _dtype(name: Any, kinds: str) -> np.dtype[Any]:
    try:
        found = np.dtype(name) if isinstance(name, str) and len(name) < 16 else None
    except TypeError:
        found = None
    if found is None or found.kind not in kinds or found.fields or found.subdtype:
        raise PersistenceError(f"{str(name)[:40]!r} is not a dtype that files hold")
    return found


def _too_long(dtype: np.dtype[Any], n: int) -> bool:
    return dtype.kind in "US" and dtype.itemsize * max(n, 1) > _LARGEST_STRINGS


def _shape(node: dict[str, Any], size: int) -> tuple[int, ...]:
    shape = node.get("shape")
    is_shape = isinstance(shape, list) and len(shape) <= 8
    if not is_shape or not all(type(n) is int and n >= 0 for n in shape):
        raise PersistenceError("an array in its JSON has no shape")
    if math.prod(shape) != size:
        raise PersistenceError(f"{size} numbers in its JSON do not make an array of {shape}")
    return tuple(shape)
