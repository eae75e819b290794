"""Values in a file: plain ones as JSON, numbers as tensors, and everything else by name.

A null, a bool, an int of 64 bits, a float, a string and a list are written as JSON has them. Any
other value is an object with exactly the keys of one of these forms. The forms of data, which is
all that an estimator learns:

====================================================  ==============================================
``{"float": "nan"}``                                  a float that JSON has no word for
``{"tuple": [...]}``                                  a tuple
``{"dict": [[key, value], ...]}``                     a dict; its keys are strings or numbers
``{"tensor": tensor}``, ``{"array": tensor}``         a tensor, an array of numbers
``{"dates": tensor, "dtype": ...}``                   an array of dates
``{"items": [...], "dtype": ...}``                    an array of strings, or of plain objects
====================================================  ==============================================

The forms that only parameters may have:

====================================================  ==============================================
``{"random_state": [tensor, ...]}``                   a ``RandomState``
``{"known": name}``                                   a class or function of the table in ``known``
``{"made": name, "with": {...}, "learned": {...}}``   an instance, made by a class of that table
``{"object": label}``                                 anything else; the user passes it to ``load``
``{"instance": label}``                               the same, but its class will not do
====================================================  ==============================================

NumPy scalars are written as plain numbers, paths and devices as strings. Names are only ever looked
up in tables. Each tensor belongs to one value, so a file cannot ask for more memory than its
numbers take.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from sklcam.persistence import known
from sklcam.persistence.errors import MissingObjectsError, PersistenceError

# Deeper than any parameter of an estimator, and far from Python's limit of recursion.
_DEEPEST = 24

# Bytes of string arrays, in which every string takes as much room as the longest.
_LARGEST_STRINGS = 2**26

_NUMBERS = "?bBhHiIlLqQefd"  # NumPy's codes of the dtypes that safetensors holds

# The forms, by their keys.
_DATA = ("float", "tuple", "dict", "tensor", "array", "dates dtype", "items dtype")
_OF_PARAMETERS = ("random_state", "known", "made with learned", "object", "instance")

# A label is the key of tables, and users copy it from an error message into their program.
_LABEL = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)


class Writer:
    """Writes values as JSON, and their numbers as tensors by name.

    Attributes
    ----------
    tensors : dict of str to Tensor
    objects : dict of str to object
        The objects that the user has to pass to ``load``, by label.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.objects: dict[str, Any] = {}

    def write(self, value: Any, where: str, at: str | None = None) -> Any:
        """Return a value as JSON.

        Parameters
        ----------
        value : object
        where : str
            The name of its tensors, and of the value in messages.
        at : str or None, default=None
            The parameter whose value this is; None takes only data.
        """
        if value is None or type(value) in (bool, str):
            return value
        if type(value) is int and value.bit_length() <= 64:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) in (list, tuple):
            items = [self.write(item, f"{where}.{i}", at) for i, item in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
            pairs = [
                [self.write(k, where), self.write(v, f"{where}.{k}", at)] for k, v in value.items()
            ]
            return {"dict": pairs}
        if isinstance(value, np.generic) and value.dtype.char in f"{_NUMBERS}U":
            return self.write(value.item(), where)
        if isinstance(value, torch.device | Path) and at:
            return str(value)
        data = self._numbers(value, where)
        if data is None and at is None:
            raise PersistenceError(
                f"{where} is a {type(value).__name__}, which a file cannot hold."
            )
        return data or self._named(value, where, at or "") or self.label(value, at or "")

    def _numbers(self, value: Any, where: str) -> dict[str, Any] | None:
        if isinstance(value, Tensor):
            return {"tensor": self.store(value, where)}
        if type(value) not in (np.ndarray, np.memmap):
            return None
        plain = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
        if plain.dtype.char in _NUMBERS:
            return {"array": self.store(torch.from_numpy(plain), where)}
        dtype = plain.dtype.str
        if plain.dtype.kind in "mM":
            numbers = torch.from_numpy(plain.view(np.int64))
            return {"dates": self.store(numbers, where), "dtype": dtype}
        if plain.dtype.kind in "UO" and plain.ndim == 1 and all(map(_is_plain, plain.tolist())):
            return {"items": self.write(plain.tolist(), where), "dtype": dtype}
        return None

    def store(self, tensor: Tensor, where: str) -> str:
        """Keep a tensor under a name of its own, and return the name."""
        if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise PersistenceError(f"{where} is a tensor without numbers, or a sparse one.")
        if tensor.is_quantized:
            raise PersistenceError(f"{where} is a quantized tensor, which a file cannot hold.")
        where = where.removeprefix(".")
        name, n = where, 1
        while name in self.tensors:
            n += 1
            name = f"{where}#{n}"
        # Tensors in a file share no memory, and a view is stored without the rest of its memory.
        self.tensors[name] = tensor.detach().cpu().contiguous().clone()
        return name

    def _named(self, value: Any, where: str, at: str) -> dict[str, Any] | None:
        if isinstance(value, np.random.RandomState):
            kind, key, *rest = value.get_state(legacy=True)
            if kind == "MT19937":
                return {"random_state": [self.store(torch.from_numpy(key), where), *rest]}
        name = known.name_of(value, at)
        if name is not None:
            return {"known": name}
        parameters = known.parameters_of(value)
        if parameters is None:
            return None
        return {
            "made": type(value).__name__,
            "with": {n: self.write(v, f"{where}.{n}", n) for n, v in parameters.items()},
            "learned": self.write(known.learned_of(value), where),
        }

    def label(self, value: Any, at: str) -> dict[str, Any]:
        """Keep an object under a label, for the user to pass to ``load``."""
        found = getattr(value, "__name__", None)
        if not isinstance(found, str):
            found = type(value).__name__
        # A lambda has no name, but its parameter has one.
        found = at if "<" in found else found
        label = re.sub(r"\W|^(?=\d)", "_", found[:60], flags=re.ASCII) or "_"
        while self.objects.get(label, value) is not value:
            label += "_"
        self.objects[label] = value
        # A network's class may stand for it, as the file has the weights of the instance.
        is_class = isinstance(value, type) or at == "model"
        return {"object": label} if is_class else {"instance": label}


class Reader:
    """Makes values from the JSON of :class:`Writer`.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Each is removed once it is used.
    objects : mapping of str to object
        The objects that the user has passed to ``load``, by label.
    """

    def __init__(self, tensors: dict[str, Tensor], objects: Mapping[str, Any]):
        self.tensors = tensors
        self.objects = objects
        self._depth = 0
        self._room = _LARGEST_STRINGS

    def read(self, node: Any, at: str | None = None) -> Any:
        """Return the value that a node of the JSON stands for.

        Parameters
        ----------
        node : object
        at : str or None, default=None
            The parameter whose value this is; None refuses everything but data.
        """
        self._depth += 1
        if self._depth > _DEEPEST:
            raise PersistenceError(f"its JSON is nested more than {_DEEPEST} levels deep")
        value = node
        if isinstance(node, list):
            value = [self.read(item, at) for item in node]
        elif isinstance(node, dict):
            value = self._value_of(node, at)
        elif isinstance(node, int) and node.bit_length() > 64:
            raise PersistenceError("an int in its JSON has more than 64 bits")
        self._depth -= 1
        return value

    def tensor(self, name: Any) -> Tensor:
        """Return a tensor, which can be used only once."""
        if not isinstance(name, str) or name not in self.tensors:
            raise PersistenceError(f"it has no tensor {str(name)[:80]!r}, or uses it twice")
        return self.tensors.pop(name)

    def _value_of(self, node: dict[str, Any], at: str | None) -> Any:
        form = " ".join(node)
        is_data = form in _DATA
        if not is_data and not (at and form in _OF_PARAMETERS):
            raise PersistenceError(f"its JSON has {[*node][:8]} where this form is not allowed")
        match node:
            case {"float": "nan" | "inf" | "-inf" as text}:
                return float(text)
            case {"tuple": list(items)}:
                return tuple(self.read(items, at))
            case {"dict": list(pairs)}:
                return self._dict(pairs, at)
            case {"tensor": name}:
                return self.tensor(name)
            case {"array": name}:
                return self.tensor(name).numpy()
            case {"dates": name, "dtype": dtype}:
                return self.tensor(name).view(torch.int64).numpy().view(_dtype(dtype, "mM"))
            case {"items": list(items), "dtype": dtype}:
                return self._items(self.read(items), _dtype(dtype, "UO"))
            case {"random_state": [key, int(position), 0 | 1 as has_gauss, int() | float() as x]}:
                return _random_state(self.tensor(key).numpy(), position, has_gauss, x)
            case {"known": str(name)}:
                return known.find(name, at or "")
            case {"made": str(name), "with": dict(nodes), "learned": learned}:
                parameters = {key: self.read(value, key) for key, value in nodes.items()}
                return known.make(name, parameters, self.read(learned))
            case {"object": label} | {"instance": label}:
                if check_label(label) not in self.objects:
                    raise MissingObjectsError([label])
                found = self.objects[label]
                if "instance" in node and isinstance(found, type):
                    raise PersistenceError(
                        f"objects has a class, {found.__name__}, where the file had an instance. "
                        f"Pass an instance with the same arguments: {label}(...)"
                    )
                return found
        raise PersistenceError(f"its JSON has a {form.split()[0]} that is not valid")

    def _dict(self, pairs: list[Any], at: str | None) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for pair in pairs:
            key, value = expect(pair, list, "pair of a dict")
            key = self.read(key)
            # Hashes of strings are salted, but tuples could be chosen to have the same hash.
            if not isinstance(key, str | int | float | None) or key in found:
                raise PersistenceError(
                    "a dict in its JSON has a key that is not plain, or has it twice"
                )
            found[key] = self.read(value, at)
        return found

    def _items(self, items: list[Any], dtype: np.dtype[Any]) -> np.ndarray:
        is_text = dtype.kind == "U"
        if not all(isinstance(item, str) if is_text else _is_plain(item) for item in items):
            raise PersistenceError(f"an array of {dtype} in its JSON holds something else")
        self._room -= dtype.itemsize * len(items) if is_text else 0
        if self._room < 0 or dtype.itemsize == 0:
            raise PersistenceError(f"its arrays of strings, such as {dtype}, take too much memory")
        return np.array(items, dtype=dtype)


def expect(value: Any, kind: Any, what: str) -> Any:
    """Return a part of the JSON, and raise an error if it is not of that kind."""
    if not isinstance(value, kind):
        raise PersistenceError(f"its JSON has something else in place of the {what}")
    return value


def check_label(label: Any) -> str:
    """Return a label, which must be a name, as users may copy it into a program."""
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise PersistenceError(f"{str(label)[:40]!r} is not a label")
    return label


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def _dtype(name: Any, kinds: str) -> np.dtype[Any]:
    found = np.dtype(name) if isinstance(name, str) and len(name) < 16 else None
    if found is None or found.kind not in kinds or found.fields or found.subdtype:
        raise PersistenceError(f"{str(name)[:40]!r} is not a dtype that a file can hold")
    return found


def _random_state(
    key: np.ndarray, position: int, has_gauss: int, cached: float
) -> np.random.RandomState:
    # NumPy trusts the position, and would read beyond the key. A key of zeros gives only zeros, and
    # drawing a normal number would never end.
    is_key = key.dtype == np.uint32 and key.shape == (624,) and key.any()
    if not is_key or not 0 <= position <= 624:
        raise PersistenceError("the state of a RandomState is not valid")
    made = np.random.RandomState(0)
    made.set_state(("MT19937", key, position, int(has_gauss), float(cached)))
    return made
