"""Fingerprints of everything that maps and values depend on, to tell whether work can be resumed.

Weights, labels and the paths of images are reduced to a digest of their whole content. For an
array, all images are included. For files and items of data sets, some are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from itertools import chain
from os import PathLike, fspath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sklcam.explain.base import Explainer
    from sklcam.explain.opened import OpenedImages

_SAMPLE = 8  # images to read if X is not an array
_START = 2**20  # bytes to read of a file
_NUMBERS = 4096  # values of an image in an array, at equal distances
_AT_ONCE = 256  # images
_LONGEST = 300  # characters of a text that is not shortened
_DEEPEST = 6  # levels of nesting
_PLAIN = (bool, int, float, str)
_LOOKED_UP = (*_PLAIN, tuple, list, dict, set, frozenset, np.ndarray, Tensor)

# Classes and functions of these packages are described by name only, as their compiled code differs
# between Python versions.
_BY_NAME = {
    *("abc", "builtins", "collections", "numpy", "open_clip", "sklcam", "sklearn", "skorch"),
    *("timm", "torch", "torchvision", "transformers", "typing"),
}

# Settings that an explainer may have besides a network, by attribute.
_SETTINGS = (
    *("layer_fusion", "reshape", "image_input", "output_name", "top_channels"),
    *("contrast", "embedding_layer", "proxies_"),
)


def digest(*parts: bytes) -> str:
    """Return a short name for these bytes, which other bytes do not share."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return f"sha256:{found.hexdigest()[:32]}"


def described(value: Any) -> Any:
    """Return a value as JSON that distinguishes it from others, in any process.

    Functions are distinguished by their name and code, and by the global numbers, strings and
    arrays that they use, also in lists and dicts. Objects are distinguished by their class, its
    code and their attributes.

    Examples
    --------
    >>> from sklcam.cam import GradCAM
    >>> from sklcam.explain.fingerprints import described
    >>> described(GradCAM(relu=False))
    'sklcam.cam.gradient.GradCAM(gradient="plain", pooling="mean", relu=false)'
    >>> described([1, "a"])
    '[1, "a"]'
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value if not isinstance(value, str) or len(value) <= _LONGEST else _short(value)
    return _short(_text(value, 0))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:60]}... {digest(text.encode())}"


def _text(value: Any, depth: int) -> str:
    """Return a value as text that is the same in every process."""
    if depth > _DEEPEST:
        return _name(type(value))
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return json.dumps(value)
    if isinstance(value, Tensor | np.ndarray):
        return _of_array(value)
    if hasattr(value, "__array_interface__"):  # a Pillow image
        return _of_array(np.asarray(value))
    if isinstance(value, bytes | bytearray):
        return digest(bytes(value))
    if isinstance(value, Mapping):
        pairs = (f"{_text(k, depth + 1)}: {_text(v, depth + 1)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(each, depth + 1) for each in value)}]"
    if isinstance(value, Set):
        return f"{{{', '.join(sorted(_text(each, depth + 1) for each in value))}}}"
    if isinstance(value, PathLike):
        return json.dumps(str(fspath(value)))
    if isinstance(value, type):
        return _of_class(value)
    if isinstance(value, BuiltinFunctionType | torch.dtype | torch.device | Enum):
        return _name(value)
    if not callable(value) and hasattr(value, "__array__"):  # a column of a table
        return f"{_name(type(value))} {_of_array(np.asarray(value))}"
    return _of_code(value, depth) if callable(value) else _of_object(value, depth)


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return str(value) if name is None else f"{value.__module__}.{name}"


def _of_array(value: Tensor | np.ndarray) -> str:
    if isinstance(value, np.ndarray) and value.dtype == object:
        return _text(value.tolist(), 0)
    shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
    return f"{dtype} {shape} {digest(_bytes_of(value))}"


def _bytes_of(value: Tensor | np.ndarray) -> bytes:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _of_code(value: Any, depth: int) -> str:
    """Return a text that distinguishes a function, or a callable object, from others."""
    if isinstance(value, partial):
        parts = (value.func, value.args, value.keywords)
        return f"partial({', '.join(_text(part, depth + 1) for part in parts)})"
    if isinstance(value, nn.Module):
        return f"{_name(type(value))}({weights_of(value)})"
    if isinstance(value, MethodType):
        return f"{_text(value.__self__, depth + 1)}.{value.__name__}"
    if isinstance(value, FunctionType):
        cells = [_in_cell(cell) for cell in value.__closure__ or ()]
        rest = _text([cells, value.__defaults__, value.__kwdefaults__], depth + 1)
        return f"{_name(value)} {digest(_own_code(value), rest.encode())}"
    return _of_object(value, depth)


def _in_cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is empty
        return None


def _of_class(value: type) -> str:
    """Describe a class by its name and by code that users may change, parents' code included."""
    codes = [
        name.encode() + _own_code(each)
        for parent in value.__mro__
        if not _goes_by_name(parent)
        for name, held in sorted(vars(parent).items())
        for each in _functions_in(held)
    ]
    plain = [
        f"{name}={held!r}".encode()
        for parent in value.__mro__
        if not _goes_by_name(parent)
        for name, held in sorted(vars(parent).items())
        if isinstance(held, _PLAIN) and not name.startswith("__")
    ]
    return f"{_name(value)} {digest(*codes, *plain)}" if codes or plain else _name(value)


def _functions_in(held: Any) -> Iterator[FunctionType]:
    """Yield the functions behind an attribute of a class."""
    if isinstance(held, property):
        parts = [held.fget, held.fset]
    else:
        parts = [getattr(held, "__func__", held)]  # a class method or static method has __func__
    yield from (each for each in parts if isinstance(each, FunctionType))


def _goes_by_name(value: Any) -> bool:
    return str(value.__module__).split(".")[0] in _BY_NAME


def _own_code(value: FunctionType) -> bytes:
    """Digest a function's code and the global values that it uses, but nothing of a library."""
    if _goes_by_name(value):
        return b""
    held = {name: value.__globals__.get(name) for name in sorted({*_names_in(value.__code__)})}
    told = [
        f"{name}={_text(each, _DEEPEST - 1)}"
        for name, each in held.items()
        if isinstance(each, _LOOKED_UP)
    ]
    told += [
        f"{name}={_code_of(each.__code__)!r}"
        for name, each in held.items()
        if isinstance(each, FunctionType) and not _goes_by_name(each)
    ]
    return digest(_code_of(value.__code__), *(each.encode() for each in told)).encode()


def _names_in(code: CodeType) -> Iterator[str]:
    yield from (name for name in code.co_names if not name.startswith("__"))
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names_in(each)


def _code_of(code: CodeType) -> bytes:
    constants = [_constant(each) for each in code.co_consts]
    return digest(code.co_code, repr(code.co_names).encode(), *constants).encode()


def _constant(value: Any) -> bytes:
    if isinstance(value, CodeType):
        return _code_of(value)
    if isinstance(value, frozenset):  # its order differs between processes
        return repr(sorted(map(repr, value))).encode()
    return repr(value).encode()


def _of_object(value: Any, depth: int) -> str:
    if isinstance(value, np.random.RandomState):
        return f"RandomState({_text(value.get_state(), depth + 1)})"
    if hasattr(value, "get_params"):
        held = value.get_params(deep=False)
    elif is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in fields(value) if field.compare}
    else:
        held = getattr(value, "__dict__", None) or _reduced(value)
    pairs = (f"{name}={_text(each, depth + 1)}" for name, each in held.items())
    return f"{_of_class(type(value))}({', '.join(pairs)})"


def _reduced(value: Any) -> dict[str, Any]:
    """Return the contents of an object without attributes, such as a range or a generator."""
    with suppress(Exception):  # some objects cannot be reduced
        _, arguments, *rest = value.__reduce_ex__(2)
        if type(value) in arguments:  # for objects without any state
            arguments = tuple(each for each in arguments if each is not type(value))
        parts = [each if i == 0 else [*each] for i, each in enumerate(rest) if each is not None]
        return {str(i): each for i, each in enumerate([*arguments, *parts])}
    return {}


# Networks and images


def weights_of(network: nn.Module) -> str:
    """Return a short name for the weights and buffers of a network."""
    parts: list[bytes] = []
    passing = network.named_buffers()  # including buffers that state_dict leaves out
    for name, value in {**network.state_dict(), **dict(passing)}.items():
        parts += [name.encode(), _text(value, 0).encode()]
    return digest(*parts)


def layers_of(network: nn.Module) -> str:
    """Return a short name for the layers of a network and their options, without the weights."""
    parts = [
        f"{name}: {_of_class(type(layer))} {layer.extra_repr()} {_options_of(layer)}".encode()
        for name, layer in network.named_modules()
    ]
    return digest(*parts)


def _options_of(layer: nn.Module) -> list[str]:
    told = []
    for name, value in sorted(vars(layer).items()):
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, FunctionType):
            told.append(f"{name}={_name(value)} {_own_code(value)!r}")
        elif isinstance(value, BuiltinFunctionType | torch.dtype):
            told.append(f"{name}={_name(value)}")
        elif isinstance(value, list | tuple) and all(isinstance(each, _PLAIN) for each in value):
            told.append(f"{name}={[*value]!r}")
        elif value is None or isinstance(value, _PLAIN):
            told.append(f"{name}={value!r}")
    return told


def images_of(opened: OpenedImages) -> str:
    """Return a short name for images.

    It covers all images of an array, all paths and some contents of files, and the pixels of some
    images otherwise.
    """
    array = opened.array()
    rows = np.unique(np.linspace(0, len(opened) - 1, _SAMPLE).astype(int)).tolist()
    if array is not None:
        parts = _of_images(array)
    elif (paths := opened.files()) is not None:
        parts = chain(
            (path.encode("utf-8", "surrogatepass") for path in paths),
            (_start_of(paths[row]) for row in rows),
        )
    else:
        parts = (_text(image, 0).encode() for image in opened.originals(rows))
    return digest(*parts, _text(opened.other_inputs, 0).encode())


def _of_images(array: np.ndarray | Tensor) -> Iterator[bytes]:
    yield f"{array.dtype} {tuple(array.shape)}".encode()
    for start in range(0, len(array), _AT_ONCE):
        some = array[start : start + _AT_ONCE]
        rows = some.reshape(len(some), -1)
        # An odd step, so that it does not meet the same columns of the image again and again.
        yield digest(_bytes_of(rows[:, :: rows.shape[1] // _NUMBERS | 1])).encode()


def _start_of(path: str) -> bytes:
    with suppress(OSError), open(path, "rb") as file:  # an unreadable file is refused later
        return digest(file.read(_START)).encode()
    return b""


def dependencies(explainer: Explainer, opened: OpenedImages, target: Any) -> dict[str, Any]:
    """Return everything that an explainer's numbers for some images depend on, except the method.

    Parameters
    ----------
    explainer : Explainer
    opened : OpenedImages
    target : Any
        The target as the user gave it.

    Returns
    -------
    dict of str to JSON
        The keys are names that a message can use.
    """
    adapter = explainer.adapter
    readout = adapter.readout
    settings = {name: getattr(explainer, name, None) for name in _SETTINGS}
    preparation: Any = None
    if not opened.is_network_input:
        prepared = adapter.preprocessing(opened.n_channels)
        preparation = (
            prepared.image_size,
            prepared.resizing,
            prepared.mean,
            prepared.std,
            prepared.channel_order,
        )
    named = [(layer.name, layer.run) for layer in explainer.target_layers]
    names = (explainer.classes_, explainer.output_names, explainer.class_names_)
    return {
        "images": images_of(opened),
        "network": _name(type(adapter.network)),
        "weights": weights_of(adapter.network),
        "layers of the network": layers_of(adapter.network),
        "task": adapter.task,
        "how its output is read": described((type(readout), readout.is_probability)),
        "precision": getattr(adapter, "precision", "fp32"),
        "preparation of images": described(preparation),
        "target layers": described(named),
        "layout of target layers": described(explainer.target_layers),
        "settings": described({k: v for k, v in settings.items() if v is not None}),
        "target": described(target),
        # The meaning of labels, which matters only if there is a target.
        "classes": None if target is None else described(names),
    }
