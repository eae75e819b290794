"""What a file may name: one table of classes and functions, each with the parameters it takes.

Nothing else is ever looked up for a file. The classes only keep their parameters when they are
made, or check them; what they do later, in ``fit``, is the library's own work on plain values.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from sklearn import model_selection
from sklearn.base import BaseEstimator
from skorch import callbacks as skorch_callbacks
from skorch.callbacks import Callback, LRScheduler
from skorch.dataset import Dataset, ValidSplit
from skorch.utils import freeze_parameter, noop, to_numpy, unfreeze_parameter
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sklcam import cam, training
from sklcam.embeddings import TripletCAM
from sklcam.networks import TargetLayer
from sklcam.persistence.errors import PersistenceError
from sklcam.training.callbacks import SilentableProgressBar

_OPTIMIZERS = (
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "NAdam"),
    *("RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam"),
)
_LOSSES = (
    *("BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "HuberLoss", "KLDivLoss", "L1Loss"),
    *("MSELoss", "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "MultiMarginLoss"),
    *("NLLLoss", "SmoothL1Loss", "SoftMarginLoss"),
)
_SCHEDULERS = (
    *("ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR"),
    *("ExponentialLR", "LambdaLR", "LinearLR", "MultiStepLR", "MultiplicativeLR", "OneCycleLR"),
    *("PolynomialLR", "ReduceLROnPlateau", "StepLR", "WarmRestartLR"),
)
# Those that write files, such as Checkpoint, are for the reader to bring along.
_CALLBACKS = (
    *("BatchScoring", "EarlyStopping", "EpochScoring", "EpochTimer", "Freezer"),
    *("GradientNormClipping", "LRScheduler", "ParamMapper", "PassthroughScoring", "PrintLog"),
    *("ProgressBar", "Unfreezer"),
)
_SPLITTERS = (
    *("GroupKFold", "KFold", "RepeatedKFold", "RepeatedStratifiedKFold", "ShuffleSplit"),
    *("StratifiedKFold", "StratifiedShuffleSplit"),
)
_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(print, noop, to_numpy, freeze_parameter, unfreeze_parameter),
)
# What LRScheduler hands on to its policy has any name.
_OPEN = (LRScheduler,)
_LEARNED: dict[type, dict[str, type]] = {TripletCAM: {"embeddings_": Tensor, "weights_": list}}


@dataclass(frozen=True)
class _Entry:
    """A class or function that may be named, and what an instance of it is made of."""

    found: Any
    parameters: frozenset[str] = frozenset()
    is_made: bool = False
    learned: Mapping[str, type] = field(default_factory=dict)


@cache
def _table() -> dict[str, _Entry]:
    """Return all that may be named, by name."""
    table = {
        f"torch.optim.{name}": _Entry(getattr(torch.optim, name, None)) for name in _OPTIMIZERS
    }
    table |= {f"torch.nn.{name}": _Entry(getattr(nn, name)) for name in _LOSSES}
    schedulers = {name: getattr(torch.optim.lr_scheduler, name, None) for name in _SCHEDULERS}
    schedulers["WarmRestartLR"] = skorch_callbacks.WarmRestartLR
    table |= {f"torch.optim.lr_scheduler.{name}": _Entry(of) for name, of in schedulers.items()}
    table |= {function.__name__: _Entry(function) for function in _FUNCTIONS}
    table |= {"DataLoader": _Entry(DataLoader), "Dataset": _Entry(Dataset)}
    made = [getattr(skorch_callbacks, name) for name in _CALLBACKS]
    made += [getattr(model_selection, name) for name in _SPLITTERS]
    made += [type(cam.get_method(name)) for name in cam.available()]
    made += [ValidSplit, SilentableProgressBar, TargetLayer, TripletCAM, cam.TopK]
    made += [training.Balanced, training.CollapseWarning, training.Consistency, training.Sparsity]
    made += [training.ViewSampler, training.WarmUp]
    for kind in made:
        parameters = frozenset(_parameter_names(kind))
        table[kind.__name__] = _Entry(kind, parameters, True, _LEARNED.get(kind, {}))
    return {name: entry for name, entry in table.items() if entry.found is not None}


def _parameter_names(kind: type) -> list[str]:
    if issubclass(kind, skorch_callbacks.ParamMapper):  # whose children take *args
        kind = skorch_callbacks.ParamMapper
    usual = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(kind).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in usual]


def name_of(value: Any) -> str | None:
    """Return the name of a class or function, if it may be named."""
    name = getattr(value, "__name__", "")
    for prefix in ("", "torch.optim.", "torch.nn.", "torch.optim.lr_scheduler."):
        entry = _table().get(f"{prefix}{name}")
        if entry is not None and entry.found is value:
            return f"{prefix}{name}"
    return None


def is_instance(value: Any) -> bool:
    """Whether a value is made of parameters, by a class that may be named."""
    name = name_of(type(value))
    return name is not None and _table()[name].is_made


def parameters_of(value: Any) -> dict[str, Any]:
    """Return what an instance was made of."""
    entry = _table()[name_of(type(value)) or ""]
    if dataclasses.is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, BaseEstimator) and not isinstance(value, Callback):
        return value.get_params(deep=False)
    found = {name: vars(value)[name] for name in sorted(entry.parameters) if name in vars(value)}
    return {**found, **value.kwargs} if isinstance(value, _OPEN) else found


def learned_of(value: Any) -> dict[str, Any]:
    """Return what an instance has learned since."""
    learned = _table()[name_of(type(value)) or ""].learned
    return {name: vars(value)[name] for name in learned if name in vars(value)}


def find(name: Any) -> Any:
    """Return the class or function of that name; an error if there is none."""
    return _entry(name).found


def make(name: Any, parameters: Mapping[str, Any], learned: Mapping[str, Any]) -> Any:
    """Make an instance of the class of that name, if it takes these parameters."""
    entry = _entry(name)
    is_open = entry.found in _OPEN
    wrong = [key for key in parameters if key not in entry.parameters and not is_open]
    if not entry.is_made or wrong:
        raise PersistenceError(f"{str(name)[:80]} is not made of {wrong[:5] or 'parameters'}")
    policy = parameters.get("policy", "StepLR")
    if is_open and not (policy in _SCHEDULERS if isinstance(policy, str) else callable(policy)):
        raise PersistenceError(f"{str(policy)[:80]!r} is not a schedule of learning rates")
    try:
        made = entry.found(**parameters)
    except (TypeError, ValueError) as error:
        raise PersistenceError(f"{name} is not made of these parameters: {error}") from error
    for key, value in learned.items():
        if not isinstance(value, entry.learned.get(key, ())):
            raise PersistenceError(f"{name} has not learned {key[:80]!r}")
        setattr(made, key, value)
    return made


def _entry(name: Any) -> _Entry:
    entry = _table().get(name) if isinstance(name, str) else None
    if entry is None:
        raise PersistenceError(f"{str(name)[:80]!r} is nothing that a file may name")
    return entry
