"""What maps and values depend on, in a few words: to tell whether work can go on as it was begun.

Long things stand as a digest of all that they hold: weights, labels, the paths of images. Of images
that are not files, some are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from os import PathLike, fspath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sklcam.explain.base import Explainer
    from sklcam.explain.opened import OpenedImages

_SAMPLE = 8  # images that are read, of those that are not files
_LONGEST = 300  # characters that are kept as they are
_DEEPEST = 6

# What an explainer may have beside a network, under the names that its parameters have.
_SETTINGS = (
    *("layer_fusion", "reshape", "image_input", "output_name", "top_channels"),
    *("contrast", "embedding_layer", "proxies_"),
)


def digest(*parts: bytes) -> str:
    """Return a short name for bytes, which others do not have."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return f"sha256:{found.hexdigest()[:32]}"


def described(value: Any) -> Any:
    """Return a value as JSON that tells it from others, in any process.

    Functions are told apart by name and code, objects by their class and attributes.

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
    """Return a value as text that is the same in each process."""
    if depth > _DEEPEST:
        return _name(type(value))
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return json.dumps(value)
    if isinstance(value, Tensor | np.ndarray):
        return _of_array(value)
    if hasattr(value, "__array_interface__"):  # a picture of Pillow's
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
    if isinstance(value, type | BuiltinFunctionType | torch.dtype | torch.device | Enum):
        return _name(value)
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
    """Return what tells a function, or an object that is called, from others."""
    if isinstance(value, partial):
        parts = (value.func, value.args, value.keywords)
        return f"partial({', '.join(_text(part, depth + 1) for part in parts)})"
    if isinstance(value, nn.Module):
        return f"{_name(type(value))}({weights_of(value)})"
    if isinstance(value, MethodType):
        return f"{_text(value.__self__, depth + 1)}.{value.__name__}"
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        rest = _text([held, value.__defaults__, value.__kwdefaults__], depth + 1)
        # The library's own go by their names: code may look different to another Python.
        code = b"" if value.__module__.startswith("sklcam.") else _code_of(value.__code__)
        return f"{_name(value)} {digest(code, rest.encode())}"
    return _of_object(value, depth)


def _code_of(code: CodeType) -> bytes:
    constants = [
        _code_of(each) if isinstance(each, CodeType) else repr(each).encode()
        for each in code.co_consts
    ]
    return digest(code.co_code, repr(code.co_names).encode(), *constants).encode()


def _of_object(value: Any, depth: int) -> str:
    if isinstance(value, np.random.RandomState):
        return f"RandomState({_text(value.get_state(), depth + 1)})"
    if hasattr(value, "get_params"):
        held = value.get_params(deep=False)
    elif is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in fields(value)}
    else:
        held = getattr(value, "__dict__", {})
    pairs = (f"{name}={_text(each, depth + 1)}" for name, each in held.items())
    return f"{_name(type(value))}({', '.join(pairs)})"


# Networks and images


def weights_of(network: nn.Module) -> str:
    """Return a short name for the weights and buffers of a network."""
    parts: list[bytes] = []
    for name, value in network.state_dict().items():
        parts += [name.encode(), _text(value, 0).encode()]
    return digest(*parts)


def images_of(opened: OpenedImages) -> str:
    """Return a short name for images: of files their paths, of others some of their pixels."""
    paths = opened.files()
    if paths is not None:
        parts = [path.encode("utf-8", "surrogateescape") for path in paths]
    else:
        rows = np.unique(np.linspace(0, len(opened) - 1, _SAMPLE).astype(int)).tolist()
        parts = [_text(image, 0).encode() for image in opened.originals(rows)]
    return digest(*parts, _text(opened.other_inputs, 0).encode())


def dependencies(explainer: Explainer, opened: OpenedImages, target: Any) -> dict[str, Any]:
    """Return what an explainer's numbers for some images depend on, but for the method.

    Parameters
    ----------
    explainer : Explainer
    opened : OpenedImages
    target : Any
        As a user asks for it.

    Returns
    -------
    dict of str to JSON
        By names that a message can use.
    """
    adapter = explainer.adapter
    settings = {name: getattr(explainer, name, None) for name in _SETTINGS}
    preparation: Any = None
    if not opened.is_network_input:
        said = adapter.preprocessing(opened.n_channels)
        preparation = (said.image_size, said.resizing, said.mean, said.std, said.channel_order)
    layers = [(layer.name, layer.run) for layer in explainer.target_layers]
    return {
        "images": images_of(opened),
        "network": _name(type(adapter.network)),
        "weights": weights_of(adapter.network),
        "task": adapter.task,
        "precision": getattr(adapter, "precision", "fp32"),
        "preparation of images": described(preparation),
        "target layers": described(layers),
        "settings": described({k: v for k, v in settings.items() if v is not None}),
        "target": described(target),
    }
