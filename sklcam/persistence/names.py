"""The names in files: which classes and functions they may stand for."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from sklcam.persistence.errors import PersistenceError

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


def dotted_name(name: str) -> str:
    """Return a name as people write it; in files a colon parts the module from the rest."""
    return name.replace(":", ".")


def may_be_known(name: str) -> bool:
    """Whether a name is in a place where known classes are; says so without importing anything."""
    module, _, attribute = name.partition(":")
    if not all(map(_IDENTIFIER.fullmatch, [*module.split("."), attribute])):
        return False
    return attribute in _NAMED.get(module, ()) or any(
        f"{module}.".startswith(f"{package}.") for package in _CLASSES
    )


def is_known(name: str, found: object) -> bool:
    """Whether what a name has led to is what it says, and among the known."""
    module, _, attribute = name.partition(":")
    if attribute in _NAMED.get(module, ()):
        return True
    if not isinstance(found, type) or (found.__module__, found.__qualname__) != (module, attribute):
        return False
    bases = [of for package, of in _CLASSES.items() if f"{module}.".startswith(f"{package}.")]
    return any(issubclass(found, of) for of in bases)


def trusted_names(trusted: Iterable[Any]) -> dict[str, Any]:
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


def find_name(name: str) -> Any:
    """Import what a name stands for."""
    module, _, qualname = name.partition(":")
    found = import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def find_installed(name: str) -> Any:
    """Import what a name stands for; an error of the file's if it is not there."""
    try:
        return find_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PersistenceError(
            f"it needs {dotted_name(name)}, which is not in what is installed here ({error})"
        ) from error


def name_of(found: Any, where: str) -> str:
    """Return the name that a class or function can be found by; an error if there is none."""
    for module, names in _NAMED.items():  # those of torch written in C do not know theirs
        for name in names:
            if name == getattr(found, "__name__", None) and find_name(f"{module}:{name}") is found:
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
        same = find_name(name) is found
    except (ImportError, AttributeError):
        same = False
    if not same:
        raise PersistenceError(f"{where} is {found!r}, which {dotted_name(name)} is not; {advice}.")
    return name


def names_in(content: Any) -> Iterator[str]:
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
