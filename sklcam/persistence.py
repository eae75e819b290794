"""Files of estimators that run no code when they are loaded.

A file is a zip archive, stored without compression, of two members: ``estimator.json`` says what
there is, ``weights.safetensors`` holds the numbers. Estimators are built anew from their
parameters, as ``fit`` builds them, and filled. Classes and functions are in the file by name only;
a name that is neither of a known library nor trusted by the caller is never imported.
"""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import hashlib
import json
import math
import os
import re
import secrets
import textwrap
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path, PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, BinaryIO
from warnings import warn

import numpy as np
import safetensors.torch
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.exceptions import DeviceWarning
from skorch.history import History
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, Sampler

from sklcam.explainer import CAMExplainer
from sklcam.net import ImageNeuralNet
from sklcam.versions import REQUIRED, installed_versions

__all__ = ["PersistenceError", "UntrustedError", "VersionWarning", "load", "model_card", "save"]

_FORMAT = "sklcam"
_FORMAT_VERSION = 1
_MEMBERS = ("estimator.json", "weights.safetensors")
_LARGEST_JSON = 2**27
_DIGEST = "sha256:"
_TRAILER = len(_DIGEST) + 64


class PersistenceError(ValueError):
    """An estimator cannot be saved, or a file cannot be loaded."""


class UntrustedError(PersistenceError):
    """A file asks for classes or functions that are not trusted.

    Attributes
    ----------
    names : list of str
        Their dotted names, as ``trusted`` takes them.
    """

    def __init__(self, names: Iterable[str]):
        self.names = sorted(set(names))
        super().__init__(
            f"The file needs {', '.join(self.names)}. Loading it would import and run this code. "
            f"If you know it and trust the file, pass trusted={self.names!r}."
        )


class VersionWarning(UserWarning):
    """A file was written with versions that may behave in another way than the installed ones."""


# --- the two functions ----------------------------------------------------------------------------


def save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Write an estimator to a file that :func:`load` reads without running code from it.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, EmbeddingNet, CAMExplainer, EmbeddingCAMExplainer
        Or an AcceleratedCAMClassifier, or another skorch net; fitted or not. With it goes all that
        it needs to predict, to explain and to be trained on: weights, optimizer, history, random
        generators, and the network in an explainer.
    path : str or path
        The file to write. What is there is replaced once the new file is complete, and kept if
        anything goes wrong. A link is followed.

    Raises
    ------
    PersistenceError
        If something in the estimator has no name to be found by, such as a lambda or a class of a
        notebook, or cannot be put in words and numbers; the message says what, and where it is.
    OSError
        If the file cannot be written.

    Notes
    -----
    The same estimator gives the same bytes. Of an AcceleratedCAMClassifier in several processes
    the main one writes the file, with its own random generators; its accelerator is left out, as
    are images, loaders and what training holds between steps.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> import sklcam
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> X = (X / 16).reshape(-1, 8, 8)
    >>> clf = sklcam.ConsistentCAMClassifier("resnet18", image_size=64, max_epochs=1, verbose=0,
    ...                                      random_state=0).fit(X[:32], y[:32])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sklcam.save(clf, f"{folder}/digits.sklcam")
    ...     loaded = sklcam.load(f"{folder}/digits.sklcam")
    >>> np.array_equal(clf.predict_proba(X[:4]), loaded.predict_proba(X[:4]))
    True
    """
    accelerator = vars(estimator).get("accelerator_") if isinstance(estimator, NeuralNet) else None
    if accelerator is not None and not accelerator.is_main_process:
        return
    encoder = _Encoder()
    content = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "versions": installed_versions(REQUIRED),
        "estimator": encoder.estimator(estimator, ""),
    }
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":")).encode()
    if len(text) > _LARGEST_JSON:
        raise PersistenceError(
            f"All but the arrays takes {len(text)} bytes, and files of more than {_LARGEST_JSON} "
            "are refused; is the history very long, or a list of numbers not an array?"
        )
    with _replacing(path) as file:
        _write(file, text, encoder.tensors)


def load(path: str | os.PathLike[str], *, trusted: Iterable[Any] = ()) -> Any:
    """Read an estimator from a file that :func:`save` has written.

    No code comes from the file. Classes and functions are found by name among those of sklcam,
    torch, torchvision, skorch, scikit-learn's splitters and pytorch-metric-learning that do no
    harm; for any other the file is refused, unless you trust it.

    Parameters
    ----------
    path : str or path
    trusted : iterable of str, classes or functions, default=()
        What else the file may ask for: dotted names such as ``"mynets.Net"``, or the classes and
        functions themselves. It is imported, called, and has its attributes set from the file.

    Returns
    -------
    estimator
        As it was saved. On a machine without the GPU that it was on, it is on the CPU.

    Raises
    ------
    UntrustedError
        If the file asks for anything else, before that is imported; it names all of it.
    PersistenceError
        If the file is none of :func:`save`, is damaged or cut off, comes from a later version,
        or holds what does not fit the network that its parameters describe.
    OSError
        If the file cannot be read.

    Warns
    -----
    VersionWarning
        If a major version differs from the installed one, or sklcam's is later.

    Notes
    -----
    The file ends with a SHA-256 of all that comes before. It is there for damage: who writes a file
    on purpose writes its checksum, too, and can have an estimator of known classes with any weights
    and parameters, as large as the machine can bear. Whose weights you use remains a question of
    trust; what they cannot do is run code of their own.

    Examples
    --------
    >>> import sklcam
    >>> clf = sklcam.load("birds.sklcam", trusted=["mynets.Net"])  # doctest: +SKIP
    """
    names = _trusted_names(trusted)
    path = Path(path)
    with path.open("rb") as file:
        text, weights = _read(file, str(path))
    try:
        content = _parse(text)
        _check_versions(content)
        tensors = safetensors.torch.load(weights)
        decoder = _Decoder(tensors, names)
        decoder.check_names(content)
        found = decoder.decode(content["estimator"])
        if not isinstance(found, NeuralNet | CAMExplainer):
            raise PersistenceError(f"it holds a {type(found).__name__}, not an estimator")
    except UntrustedError:
        raise
    except Exception as error:  # whatever a file that was made up can lead to
        reason = textwrap.shorten(f"{error}", 500, placeholder=" ...")
        kind = "" if isinstance(error, PersistenceError) else f"{type(error).__name__}: "
        raise PersistenceError(f"{str(path)!r} cannot be loaded: {kind}{reason}") from error
    return found


# --- the container --------------------------------------------------------------------------------


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file beside the wanted one, and put it in its place once it is complete."""
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; give the path of a file in it.")
    if not final.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(final.parent)!r} to save to.")
    beside = final.with_name(f".{final.name[:64]}.{secrets.token_hex(8)}.tmp")
    try:
        with beside.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            beside.chmod(final.stat().st_mode & 0o7777)
        os.replace(beside, final)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    _flush_folder(final.parent)


def _flush_folder(folder: Path) -> None:
    """Have the new name on the disk, too, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write(file: BinaryIO, text: bytes, tensors: dict[str, Tensor]) -> None:
    try:
        weights = safetensors.torch.save(tensors)
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise PersistenceError(f"A tensor is of a kind that files do not hold: {error}") from error
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = f"{_DIGEST}{'0' * 64}".encode()
        _write_member(archive, _MEMBERS[0], text)
        _write_member(archive, _MEMBERS[1], weights)
    digest = _digest(file, file.seek(0, os.SEEK_END))
    file.seek(-64, os.SEEK_END)
    file.write(digest.encode())


def _write_member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # the same bytes at any time
    member.create_system = 3
    member.external_attr = 0o644 << 16
    archive.writestr(member, data)


def _digest(file: BinaryIO, size: int) -> str:
    """Return the SHA-256 of all but the digest at the end."""
    file.seek(0)
    found = hashlib.sha256()
    left = size - 64
    while left > 0:
        block = file.read(min(left, 2**20))
        if not block:
            break
        found.update(block)
        left -= len(block)
    return found.hexdigest()


def _read(file: BinaryIO, name: str) -> tuple[bytes, bytes]:
    """Return the two members, once the file has been found whole and of the expected form."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(30 + len(_MEMBERS[0]))
    begins = head[:4] == b"PK\x03\x04" and head[30:] == _MEMBERS[0].encode()
    file.seek(max(0, size - _TRAILER))
    trailer = file.read(_TRAILER)
    ends = trailer.startswith(_DIGEST.encode())
    if not begins and not ends:
        raise PersistenceError(f"{name!r} is not a file that sklcam.save has written.")
    if not begins or not ends or trailer[-64:] != _digest(file, size).encode():
        raise PersistenceError(
            f"{name!r} is damaged or cut off: its checksum is not that of its content. Copy it "
            "again, or save the estimator again."
        )
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(archive.infolist(), size)
            text, weights = (archive.read(member) for member in _MEMBERS)
            return text, weights
    except PersistenceError as error:
        raise PersistenceError(
            f"{name!r} is not of the form that sklcam.save writes: {error}"
        ) from None
    except Exception as error:
        raise PersistenceError(f"{name!r} is no sound archive: {error}") from error


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    names = [member.filename for member in members]
    if tuple(names) != _MEMBERS:
        raise PersistenceError(
            f"it holds {textwrap.shorten(repr(names), 200)} in place of {list(_MEMBERS)}."
        )
    for member in members:
        # Nothing is compressed, so that nothing can be larger than the file.
        is_plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
        if not is_plain or not member.compress_size == member.file_size <= size:
            raise PersistenceError(
                f"{member.filename} is compressed, encrypted or of a false size."
            )
    if members[0].file_size > _LARGEST_JSON:
        raise PersistenceError(
            f"{members[0].filename} has {members[0].file_size} bytes; more than {_LARGEST_JSON} "
            "are refused."
        )


def _parse(text: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise PersistenceError(f"{constant} is not JSON")

    content = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=refuse)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise PersistenceError('its JSON is not that of an estimator: it lacks "format": "sklcam"')
    versions = content.get("versions")
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise PersistenceError("its JSON does not say with which versions it was written")
    found = content.get("format_version")
    if type(found) is not int or found != _FORMAT_VERSION:
        raise PersistenceError(
            f"its format has version {found!r}, and this sklcam reads {_FORMAT_VERSION}; install "
            "the sklcam that it was written with, or a later one"
        )
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise PersistenceError("its JSON has a key twice")
    return found


def _check_versions(content: dict[str, Any]) -> None:
    installed, saved = installed_versions(REQUIRED), content["versions"]
    differing = [
        f"{package} {saved[package]} (here {installed.get(package, 'none')})"
        for package in REQUIRED
        if package in saved and _differ(package, saved[package], installed.get(package, ""))
    ]
    if differing:
        warn(
            f"The estimator was saved with {', '.join(differing)}. It may not behave as it did; "
            "compare its predictions with known ones.",
            VersionWarning,
            stacklevel=3,
        )


def _differ(package: str, saved: str, installed: str) -> bool:
    of_file, here = ([int(n) for n in re.findall(r"\d+", v)[:3]] for v in (saved, installed))
    if package == "sklcam" and of_file > here:
        return True
    n_parts = 2 if of_file[:1] == [0] else 1  # before 1.0 any release may change anything
    return of_file[:n_parts] != here[:n_parts]


# --- names ----------------------------------------------------------------------------------------

# Classes that a file may name, by the package that defines them. What writes files (skorch's
# Checkpoint), reads others (LoadInitState) or runs code (torch.fx) is not among them.
_CLASSES: dict[str, tuple[type, ...]] = {
    "torch.nn": (nn.Module,),
    "torch.optim": (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler),
    "torch.utils.data.dataloader": (DataLoader,),
    "torch.utils.data.dataset": (Dataset,),
    "torch.utils.data.sampler": (Sampler,),
    "torchvision.models": (nn.Module,),
    "torchvision.ops": (nn.Module,),
    "torchvision.transforms": (nn.Module, enum.Enum),
    "pytorch_metric_learning": (nn.Module, Sampler),
    "sklearn.model_selection._split": (object,),
    "sklcam": (object,),
}
_NAMED = {
    "builtins": ["print"],
    "skorch.net": ["NeuralNet"],
    "skorch.classifier": ["NeuralNetClassifier", "NeuralNetBinaryClassifier"],
    "skorch.regressor": ["NeuralNetRegressor"],
    "skorch.dataset": ["Dataset", "ValidSplit"],
    "skorch.helper": ["_make_split"],
    "skorch.utils": ["freeze_parameter", "noop", "to_numpy", "unfreeze_parameter"],
    "skorch.callbacks.logging": ["EpochTimer", "PrintLog", "ProgressBar"],
    "skorch.callbacks.lr_scheduler": ["LRScheduler", "WarmRestartLR"],
    "skorch.callbacks.regularization": ["GradientNormClipping"],
    "skorch.callbacks.scoring": ["BatchScoring", "EpochScoring", "PassthroughScoring"],
    "skorch.callbacks.training": ["EarlyStopping", "Freezer", "ParamMapper", "Unfreezer"],
    "torch": ["relu", "sigmoid", "softmax", "tanh"],
    "torch.nn.functional": [
        *("binary_cross_entropy_with_logits", "cross_entropy", "elu", "gelu", "hardswish"),
        *("leaky_relu", "log_softmax", "mish", "mse_loss", "nll_loss", "normalize", "relu"),
        *("relu6", "selu", "sigmoid", "silu", "softmax", "softplus", "tanh"),
    ],
}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _dotted(name: str) -> str:
    """Return a name as people write it; in files a colon parts the module from the rest."""
    return name.replace(":", ".")


def _may_be_known(name: str) -> bool:
    """Whether a name is in a place where known classes are; says so without importing anything."""
    module, _, attribute = name.partition(":")
    if not all(map(_IDENTIFIER.fullmatch, [*module.split("."), attribute])):
        return False
    return attribute in _NAMED.get(module, ()) or any(
        f"{module}.".startswith(f"{package}.") for package in _CLASSES
    )


def _is_known(name: str, found: object) -> bool:
    """Whether what a name has led to is what it says, and among the known."""
    module, _, attribute = name.partition(":")
    if attribute in _NAMED.get(module, ()):
        return True
    if not isinstance(found, type) or (found.__module__, found.__qualname__) != (module, attribute):
        return False
    bases = [of for package, of in _CLASSES.items() if f"{module}.".startswith(f"{package}.")]
    return any(issubclass(found, of) for of in bases)


def _trusted_names(trusted: Iterable[Any]) -> dict[str, Any]:
    """Return what the caller trusts by its dotted name: the thing itself, or None for a name."""
    if isinstance(trusted, str) or not isinstance(trusted, Iterable):
        raise ValueError(
            f"trusted takes a list of dotted names, classes or functions; got {trusted!r}."
        )
    names: dict[str, Any] = {}
    for each in trusted:
        if isinstance(each, str):
            names[each] = None
        elif isinstance(getattr(each, "__qualname__", None), str):
            names[f"{each.__module__}.{each.__qualname__}"] = each
        else:
            raise ValueError(
                "trusted takes dotted names, such as 'mynets.Net', or classes and functions; got "
                f"{each!r}, a {type(each).__name__}."
            )
    return names


def _find(name: str) -> Any:
    module, _, qualname = name.partition(":")
    found = import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _installed(name: str) -> Any:
    try:
        return _find(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PersistenceError(
            f"it needs {_dotted(name)}, which is not in what is installed here ({error})"
        ) from error


def _name_of(found: Any, where: str) -> str:
    """Return the name that a class or function can be found by; an error if there is none."""
    for module, names in _NAMED.items():  # those of torch written in C do not know theirs
        for name in names:
            if name == getattr(found, "__name__", None) and _find(f"{module}:{name}") is found:
                return f"{module}:{name}"
    home, qualname = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    advice = "define it at the top of a module that can be imported, by a name of its own"
    if not home or not qualname or home == "__main__" or "<" in qualname:
        raise PersistenceError(
            f"{where} is {found!r}, which a file cannot name, being of a script, a notebook, or "
            f"made on the spot; {advice}."
        )
    name = f"{home}:{qualname}"
    try:
        same = _find(name) is found
    except (ImportError, AttributeError):
        same = False
    if not same:
        raise PersistenceError(f"{where} is {found!r}, which {_dotted(name)} is not; {advice}.")
    return name


# --- estimators -> JSON and tensors ---------------------------------------------------------------

# Attributes that initialize makes, or that hold for a step.
_REMADE = {
    *("accelerator_", "callbacks_", "cuda_dependent_attributes_", "generator_", "history_"),
    *("in_step_", "init_context_", "initialized_", "parts_", "prefixes_", "scaler_", "tape_"),
    *("valid_generator_", "virtual_params_"),
}
_REMADE_OF_CALLBACKS = {
    *("X_indexing_", "checkpoint_", "lr_scheduler_", "pbar_", "policy_", "y_indexing_"),
}


class _Encoder:
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
            "class": _name_of(type(explainer), where or "the estimator"),
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
        _check_unpickling(params)
        fitted = None
        if net.initialized_ and "module_" in vars(net):
            fitted = self._fitted(net, where)
            _check_rebuilt(net, params)
        node = {
            "class": _name_of(type(net), where or "the estimator"),
            "params": self._members(params, where),
            "fitted": fitted,
        }
        return {"@net": node}

    def _fitted(self, net: NeuralNet, where: str) -> dict[str, Any]:
        modules, learned = _modules_of(net), _learned_by(net)
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
                [name, self._members(_learned_by(callback), _join(where, "callbacks", name))]
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

    def _module(self, value: nn.Module, where: str) -> Any:
        return self._object(value, where)

    def _object(self, value: Any, where: str) -> Any:
        if id(value) in self._known:
            return self._known[id(value)][0]
        name = _name_of(type(value), where)
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
        except Exception as error:
            raise _unsaved(value, where) from error
        state = {} if state is None else state
        is_usual = make is copyreg.__newobj__ and arguments == (type(value),)  # type: ignore[attr-defined]
        if not is_usual or not isinstance(state, dict) or any(part is not None for part in rest):
            raise _unsaved(value, where)
        return state

    def _named(self, value: Any, where: str) -> Any:
        return {"@name": _name_of(value, where)}

    def _partial(self, value: partial, where: str) -> Any:
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
        kind = _name_of(type(value.__self__), where)
        return {"@method": {"class": kind, "of": owner, "name": value.__name__}}

    def _enum(self, value: enum.Enum, where: str) -> Any:
        return {"@enum": {"class": _name_of(type(value), where), "member": value.name}}

    _KINDS: tuple[tuple[Any, Callable], ...] = (
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
        (nn.Module, _module),
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


def _modules_of(net: NeuralNet) -> dict[str, nn.Module]:
    names = [f"{name}_" for name in [*net._modules, *net._criteria]]
    found = {name: getattr(net, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, nn.Module)}


def _learned_by(net_or_callback: Any) -> dict[str, Any]:
    """Return what initialize does not make."""
    apart = _REMADE_OF_CALLBACKS
    if isinstance(net_or_callback, NeuralNet):
        parts = net_or_callback._modules + net_or_callback._criteria + net_or_callback._optimizers
        apart = {*_REMADE, *(f"{name}_" for name in parts)}
    return {
        name: value
        for name, value in vars(net_or_callback).items()
        if name.endswith("_") and not name.startswith("_") and name not in apart
    }


def _check_rebuilt(net: NeuralNet, params: dict[str, Any]) -> None:
    """Refuse a network that is not the one that its parameters make: it could not be loaded."""
    if "accelerator" in params:  # other processes would be waited for
        return
    bare = type(net)(**{**params, "device": "cpu"})
    with _building(bare, _learned_by(net)):
        bare._initialize_virtual_params()
        bare._initialize_module()
        bare._initialize_criterion()
    modules = _modules_of(net)
    built = _modules_of(bare)
    try:
        _check_same(built, modules, "networks and losses")
        for name, module in built.items():
            _check_state(module.state_dict(), modules[name].state_dict(), name)
    except PersistenceError as error:
        raise PersistenceError(
            f"The estimator is not what fit makes of its parameters, and could not be loaded: "
            f"{error}. Was module_ changed after fit? Give the changed network as module, or save "
            "it in a CAMExplainer."
        ) from None


def _check_unpickling(params: dict[str, Any]) -> None:
    """Refuse the parameter by which the estimator would let other files run code."""
    given = params.get("torch_load_kwargs")
    if given is not None and given != {"weights_only": True}:
        raise PersistenceError(
            f"torch_load_kwargs={given!r} would let files that the estimator reads run code; leave "
            "it at None."
        )


# --- JSON and tensors -> estimators ---------------------------------------------------------------


class _Decoder:
    """Builds what :class:`_Encoder` has put in JSON, of known and trusted classes alone."""

    def __init__(self, tensors: dict[str, Tensor], trusted: dict[str, Any]):
        self._tensors = tensors
        self._trusted = trusted
        self._made: dict[int, Any] = {}
        self._parameters: dict[str, Tensor] = {}

    def check_names(self, content: Any) -> None:
        """Refuse a file with names that are neither known nor trusted, and name all of them."""
        names = [name for name in _names_in(content) if not self._is_allowed(name)]
        if names:
            raise UntrustedError(map(_dotted, names))

    def check_trusted(self, name: str) -> None:
        """Refuse a name that the caller does not trust, be it known or not."""
        if _dotted(name) not in self._trusted:
            raise UntrustedError([_dotted(name)])

    def _is_allowed(self, name: str) -> bool:
        return _dotted(name) in self._trusted or _may_be_known(name)

    def _find(self, name: str) -> Any:
        dotted = _dotted(name)
        if dotted in self._trusted:
            given = self._trusted[dotted]
            return _installed(name) if given is None else given
        found = _installed(name) if _may_be_known(name) else None
        if not _is_known(name, found):
            raise UntrustedError([dotted])
        return found

    def _class(self, name: str, base: type) -> Any:
        found = self._find(name)
        if not isinstance(found, type) or not issubclass(found, base):
            raise PersistenceError(f"{_dotted(name)} is not a {base.__name__}")
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

    def _pairs(self, node: list) -> dict[Any, Any]:
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
            raise PersistenceError(f"{_dotted(node['class'])} has no method {node['name']!r}")
        # Losses have such attributes. Methods of others may write files, or compile.
        of_class = f"{found.__module__}:{found.__qualname__.rpartition('.')[0]}"
        if not of_class.startswith("pytorch_metric_learning."):
            self.check_trusted(of_class)
        return getattr(owner, node["name"])

    def _partial(self, node: dict[str, Any]) -> partial:
        parts = self._members(node)
        return partial(parts["function"], *parts["args"], **parts["keywords"])

    def _random_state(self, node: list) -> np.random.RandomState:
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
        _check_unpickling(params)
        if any(name.startswith("compile__") for name in params):
            # Its options may name programs to run.
            self.check_trusted("torch:compile")
        params["device"] = _device_here(params.get("device"))
        net = kind(**params)
        if node["fitted"] is not None:
            self._fill(net, node["fitted"])
        return net

    def _fill(self, net: NeuralNet, fitted: dict[str, Any]) -> None:
        with _building(net, self._learned(fitted["attributes"])):
            net.initialize()
        modules = _modules_of(net)
        _check_same(modules, fitted["modules"], "networks and losses")
        _check_same([f"{name}_" for name in net._optimizers], fitted["optimizers"], "optimizers")
        for name, module in modules.items():
            _load_state(module, self._members(fitted["modules"][name]), name)
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

    _KINDS: dict[str, Callable[[_Decoder, Any], Any]] = {
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


def _names_in(content: Any) -> Iterator[str]:
    """Yield all names of classes and functions in a file's JSON."""
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "@name":
                    yield str(value)
                elif key.startswith("@") and isinstance(value, dict) and "class" in value:
                    yield str(value["class"])
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


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


@contextmanager
def _building(net: NeuralNet, learned: dict[str, Any]) -> Iterator[None]:
    """Build a network for what is known of it, without pretrained weights or a new seed."""
    kept = {name: vars(net)[name] for name in ("weights",) if name in vars(net)}
    vars(net).update(dict.fromkeys(kept))
    vars(net).update(learned)  # such as the number of classes
    if isinstance(net, ImageNeuralNet):  # to draw one may move the parameter on
        net.__dict__["_seed"] = lambda: learned["random_states_"]
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        vars(net).pop("_seed", None)
        vars(net).update({**kept, **learned})


def _check_same(expected: Iterable[str], found: Iterable[str], what: str) -> None:
    if set(expected) != set(found):
        raise PersistenceError(
            f"its parameters make the {what} {sorted(expected)}, and it holds {sorted(found)}"
        )


def _check_state(own: dict[str, Any], state: dict[str, Any], name: str) -> None:
    """Raise an error if tensors are not exactly those that a network has."""
    _check_same(own, state, f"entries of {name}")
    for entry, value in own.items():
        if not isinstance(value, Tensor):
            continue
        given = state[entry]
        shape, dtype = getattr(given, "shape", ()), getattr(given, "dtype", type(given))
        if not isinstance(given, Tensor) or (shape, dtype) != (value.shape, value.dtype):
            raise PersistenceError(
                f"{name}.{entry} must be of shape {tuple(value.shape)} and {value.dtype}; it is of "
                f"{tuple(shape)} and {dtype}"
            )


def _load_state(module: nn.Module, state: dict[str, Any], name: str) -> None:
    own = module.state_dict()  # with the layers' versions, which some refuse to be without
    _check_state(own, state, name)
    own.update(state)
    module.load_state_dict(own)


# --- the card -------------------------------------------------------------------------------------


def model_card(estimator: Any, *, metrics: dict[str, Any] | None = None) -> str:
    """Describe an estimator in Markdown, to go with its file.

    Parameters
    ----------
    estimator : ConsistentCAMClassifier, EmbeddingNet, CAMExplainer, EmbeddingCAMExplainer
        Or another skorch net; fitted or not.
    metrics : dict of str to number, default=None
        What was measured of it, such as ``{"accuracy": 0.93}``; say on which images in the
        description.

    Returns
    -------
    str
        What it is, its classes and layers, parameters, the last epoch of its training, the metrics,
        how to load it and with which versions. The purpose, the data and the limitations are left
        for the author to write.

    Examples
    --------
    >>> from sklcam import ConsistentCAMClassifier, model_card
    >>> card = model_card(ConsistentCAMClassifier("resnet18"), metrics={"accuracy": 0.93})
    >>> print(card.splitlines()[0])
    # ConsistentCAMClassifier
    """
    net = estimator if isinstance(estimator, NeuralNet) else getattr(estimator, "model", None)
    kind = type(estimator)
    known = [name for name in _own_names(estimator) if not _may_be_known(name)]
    trusted = f", trusted={sorted(map(_dotted, known))!r}" if known else ""
    sections = [
        f"# {kind.__name__}",
        f"A `{kind.__module__}.{kind.__qualname__}`, "
        f"{'fitted' if _is_fitted(estimator) else 'not fitted'}.\n\n"
        "_What it is for, and what it was trained on._",
        *_section("Classes and layers", _facts(estimator)),
        *_section("Parameters", estimator.get_params(deep=False)),
        *_section("Metrics", metrics or {}),
        *_section("Last epoch of training", _last_epoch(net)),
        "## How to load it\n\n```python\nimport sklcam\n\n"
        f'estimator = sklcam.load("path/of/the/file"{trusted})\n```',
        *_section("Versions", installed_versions(REQUIRED)),
        "## Limitations\n\n_What it should not be used for, and where it is known to fail. A map "
        "shows where the network looked, not that it was right to._",
    ]
    return "\n\n".join(sections) + "\n"


def _own_names(estimator: Any) -> list[str]:
    """Return the names that a file of the estimator would ask for, as far as it can be written."""
    try:
        return list(_names_in(_Encoder().estimator(estimator, "")))
    except PersistenceError:
        return []


def _is_fitted(estimator: Any) -> bool:
    fitted = ("module_",) if isinstance(estimator, NeuralNet) else ("target_layers_",)
    return all(name in vars(estimator) for name in fitted)


def _facts(estimator: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    classes = getattr(estimator, "classes_", None) if _is_fitted(estimator) else None
    if classes is not None:
        facts["classes"] = np.asarray(classes).tolist()
    layers = vars(estimator).get("target_layers_") or [vars(estimator).get("target_layer_")]
    names = [layer.name for layer in layers if layer is not None]
    if names:
        facts["target layer"] = ", ".join(names)
    if isinstance(estimator, ImageNeuralNet) and _is_fitted(estimator):
        facts["channels of the images"] = estimator.n_channels_
    return facts


def _last_epoch(net: Any) -> dict[str, Any]:
    history = net.history if isinstance(net, NeuralNet) and "history_" in vars(net) else ()
    row = history[-1] if history else {}
    return {
        name: value
        for name, value in row.items()
        if name != "batches" and not name.endswith(("_best", "_batch_count"))
    }


def _section(title: str, values: dict[str, Any]) -> list[str]:
    if not values:
        return []
    rows = [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    return ["\n".join([f"## {title}", "", "| | |", "|---|---|", *rows])]


def _cell(value: Any) -> str:
    if isinstance(value, type):
        value = f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, float | np.floating):
        value = f"{value:.4g}"
    text = textwrap.shorten(value if isinstance(value, str) else repr(value), 300)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return text.replace("|", "\\|").replace("<", "&lt;") or "&nbsp;"
