"""Values in a file: plain ones as JSON, numbers as tensors, all else by name.

A value is null, a bool, an int of 64 bits, a float, a string or a list, as JSON has them. Anything
else is an object with exactly the keys of one of these forms. Data, which is all that an estimator
has learned:

====================================================  ==============================================
``{"float": "nan"}``                                  a float that JSON has no word for
``{"tuple": [...]}``                                  a tuple
``{"dict": [[key, value], ...]}``                     a dict; its keys are strings or numbers
``{"tensor": tensor}``, ``{"array": tensor}``         a tensor, an array of numbers
``{"dates": tensor, "dtype": ...}``                   an array of dates
``{"items": [...], "dtype": ...}``                    an array of strings, or of plain objects
====================================================  ==============================================

And what only parameters hold:

====================================================  ==============================================
``{"random_state": [tensor, ...]}``                   a ``RandomState``
``{"known": name}``                                   a class or function of the table in ``known``
``{"made": name, "with": {...}, "learned": {...}}``   an instance, made by a class of that table
``{"object": label}``                                 anything else; the reader brings it along
``{"instance": label}``                               the same, and no class will do
====================================================  ==============================================

NumPy's scalars are in it as plain numbers, paths and devices as strings. Names are only ever looked
up in tables. Each tensor belongs to one value, so that a file cannot ask for more memory than it
has numbers.
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

# Bytes of string arrays, all of whose strings take as much room as the longest.
_LARGEST_STRINGS = 2**26

_NUMBERS = "?bBhHiIlLqQefd"  # NumPy's codes of the dtypes that safetensors holds

# The forms, by their keys.
_DATA = ("float", "tuple", "dict", "tensor", "array", "dates dtype", "items dtype")
_OF_PARAMETERS = ("random_state", "known", "made with learned", "object", "instance")

# The key of tables that a label stands in, and what a reader copies out of an error message.
_LABEL = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)


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

    def write(self, value: Any, where: str, at: str | None = None) -> Any:
        """Return a value as JSON.

        Parameters
        ----------
        value : object
        where : str
            Names its tensors, and the value in messages.
        at : str or None, default=None
            The parameter that it is the value of; None takes data alone.
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
            raise PersistenceError(f"{where} is a {type(value).__name__}, which files do not hold.")
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
        """Keep a tensor under a name of its own, and return that."""
        if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise PersistenceError(f"{where} is a tensor without numbers, or a sparse one.")
        if tensor.is_quantized:
            raise PersistenceError(f"{where} is a quantized tensor, which files do not hold.")
        where = where.removeprefix(".")
        name, n = where, 1
        while name in self.tensors:
            n += 1
            name = f"{where}#{n}"
        # Tensors in a file share no memory, and none is larger than what is seen of it.
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
        """Keep something under a label, for the reader to bring along."""
        found = getattr(value, "__name__", None)
        if not isinstance(found, str):
            found = type(value).__name__
        # A lambda has no name; its parameter has.
        found = at if "<" in found else found
        label = re.sub(r"\W|^(?=\d)", "_", found[:60], flags=re.ASCII) or "_"
        while self.objects.get(label, value) is not value:
            label += "_"
        self.objects[label] = value
        # A network's class may stand for it: the numbers that make the difference are in the file.
        is_class = isinstance(value, type) or at == "model"
        return {"object": label} if is_class else {"instance": label}


class Reader:
    """Makes values of what :class:`Writer` has put in JSON.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Each is taken out once it is used.
    objects : mapping of str to object
        What the reader of the file brings along, by label.
    """

    def __init__(self, tensors: dict[str, Tensor], objects: Mapping[str, Any]):
        self.tensors = tensors
        self.objects = objects
        self._depth = 0
        self._room = _LARGEST_STRINGS

    def read(self, node: Any, at: str | None = None) -> Any:
        """Return the value that JSON stands for.

        Parameters
        ----------
        node : object
        at : str or None, default=None
            The parameter that it is the value of; None refuses all but data.
        """
        self._depth += 1
        if self._depth > _DEEPEST:
            raise PersistenceError(f"its JSON is nested more than {_DEEPEST} times")
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
        """Take a tensor."""
        if not isinstance(name, str) or name not in self.tensors:
            raise PersistenceError(f"it has no tensor {str(name)[:80]!r}, or uses it twice")
        return self.tensors.pop(name)

    def _value_of(self, node: dict[str, Any], at: str | None) -> Any:
        form = " ".join(node)
        is_data = form in _DATA
        if not is_data and not (at and form in _OF_PARAMETERS):
            raise PersistenceError(f"its JSON has {[*node][:8]} where no such form may stand")
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
                        f"objects has a class, {found.__name__}, where the file had an instance: "
                        f"bring one along, with the arguments it had, {label}(...)"
                    )
                return found
        raise PersistenceError(f"its JSON has a {form.split()[0]} that is not one")

    def _dict(self, pairs: list[Any], at: str | None) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for pair in pairs:
            key, value = expect(pair, list, "pair of a dict")
            key = self.read(key)
            # Hashes of strings are salted; tuples could be chosen so that all theirs are the same.
            if not isinstance(key, str | int | float | None) or key in found:
                raise PersistenceError("a dict in its JSON has a key that is not plain, or twice")
            found[key] = self.read(value, at)
        return found

    def _items(self, items: list[Any], dtype: np.dtype[Any]) -> np.ndarray:
        is_text = dtype.kind == "U"
        if not all(isinstance(item, str) if is_text else _is_plain(item) for item in items):
            raise PersistenceError(f"an array of {dtype} in its JSON has something else in it")
        self._room -= dtype.itemsize * len(items) if is_text else 0
        if self._room < 0 or dtype.itemsize == 0:
            raise PersistenceError(f"its arrays of {dtype} and the like take too much memory")
        return np.array(items, dtype=dtype)


def expect(value: Any, kind: Any, what: str) -> Any:
    """Return a part of the JSON; an error if it is not of that kind."""
    if not isinstance(value, kind):
        raise PersistenceError(f"its JSON has something else in the place of the {what}")
    return value


def check_label(label: Any) -> str:
    """Return a label, which a reader may copy into a program; an error if it is not a name."""
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise PersistenceError(f"{str(label)[:40]!r} is not a label")
    return label


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def _dtype(name: Any, kinds: str) -> np.dtype[Any]:
    found = np.dtype(name) if isinstance(name, str) and len(name) < 16 else None
    if found is None or found.kind not in kinds or found.fields or found.subdtype:
        raise PersistenceError(f"{str(name)[:40]!r} is not a dtype that files hold")
    return found


def _random_state(
    key: np.ndarray, position: int, has_gauss: int, cached: float
) -> np.random.RandomState:
    # NumPy trusts the position, and would read beyond the key. From zeros it draws zeros, and waits
    # for ever for a normal number.
    is_key = key.dtype == np.uint32 and key.shape == (624,) and key.any()
    if not is_key or not 0 <= position <= 624:
        raise PersistenceError("the state of a RandomState is not one")
    made = np.random.RandomState(0)
    made.set_state(("MT19937", key, position, int(has_gauss), float(cached)))
    return made
