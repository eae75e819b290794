"""What a file may name: one table of values of parameters, and one of classes to make.

Nothing else is ever looked up for a file. When the classes are made, they only keep or check their
parameters; what they do later, in ``fit``, is the library's own work on plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from sklearn import model_selection
from skorch import callbacks as skorch_callbacks
from skorch.callbacks import LRScheduler
from skorch.dataset import Dataset, ValidSplit
from skorch.utils import freeze_parameter, noop, to_numpy, unfreeze_parameter
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader

from sklcam import cam, training
from sklcam.embeddings import Text, TripletCAM
from sklcam.networks import TargetLayer
from sklcam.networks.construction import parameter_names
from sklcam.persistence.errors import PersistenceError
from sklcam.training._logging import PlainPrintLog, SilentableProgressBar

_OPTIMIZERS = (
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "NAdam"),
    *("RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam"),
)
_LOSSES = (
    *("BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "HuberLoss", "L1Loss", "MSELoss"),
    *("MultiLabelSoftMarginLoss", "MultiMarginLoss", "NLLLoss", "PoissonNLLLoss", "SmoothL1Loss"),
    "SoftMarginLoss",
)
_SCHEDULES = (
    *("ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "LambdaLR"),
    *("ExponentialLR", "LinearLR", "MultiStepLR", "MultiplicativeLR", "OneCycleLR"),
    *("PolynomialLR", "ReduceLROnPlateau", "StepLR"),
)
# Users pass callbacks that write files, such as Checkpoint, to load.
_CALLBACKS = (
    *("BatchScoring", "EarlyStopping", "EpochScoring", "EpochTimer", "Freezer", "LRScheduler"),
    *("GradientNormClipping", "ParamMapper", "PassthroughScoring", "PrintLog", "ProgressBar"),
    "Unfreezer",
)
_SPLITTERS = ("GroupKFold", "KFold", "ShuffleSplit", "StratifiedKFold", "StratifiedShuffleSplit")
_LEARNED: dict[str, dict[str, type]] = {"TripletCAM": {"embeddings_": Tensor, "weights_": list}}


@cache
def _values() -> dict[str, tuple[Any, tuple[str, ...]]]:
    """Return the classes and functions that may be values, and of which parameters."""
    schedules = torch.optim.lr_scheduler
    return {
        **{f"torch.optim.{name}": (getattr(optim, name), ("optimizer",)) for name in _OPTIMIZERS},
        **{f"torch.nn.{name}": (getattr(nn, name), ("criterion",)) for name in _LOSSES},
        **{name: (getattr(schedules, name), ("policy",)) for name in _SCHEDULES},
        **{kind.__name__: (kind, ("method", "saliency")) for kind in _methods()},
        "DataLoader": (DataLoader, ("iterator_train", "iterator_valid")),
        "Dataset": (Dataset, ("dataset",)),
        "print": (print, ("sink",)),
        "noop": (noop, ("sink",)),
        "to_numpy": (to_numpy, ("target_extractor",)),
        "freeze_parameter": (freeze_parameter, ("fn",)),
        "unfreeze_parameter": (unfreeze_parameter, ("fn",)),
    }


@cache
def _kinds() -> dict[str, type]:
    """Return the classes whose instances a file may hold."""
    kinds = [
        *(getattr(skorch_callbacks, name) for name in _CALLBACKS),
        *(getattr(model_selection, name) for name in _SPLITTERS),
        *_methods(),
        *(PlainPrintLog, SilentableProgressBar, TargetLayer, Text, TripletCAM, ValidSplit),
        *(training.Balanced, training.CollapseWarning, training.Consistency, training.Sparsity),
        *(training.Energy, training.ForgetBatches, training.GradMask, training.RightReasons),
        *(training.Contrastive, training.EMA, training.ViewSampler, training.WarmUp),
    ]
    return {kind.__name__: kind for kind in kinds}


def _methods() -> list[type]:
    return [type(cam.get_method(name)) for name in cam.available()]


def _parameters(kind: type) -> frozenset[str]:
    if issubclass(kind, skorch_callbacks.ParamMapper):  # its subclasses take *args
        kind = skorch_callbacks.ParamMapper
    return frozenset(parameter_names(kind))


def name_of(value: Any, at: str) -> str | None:
    """Return the name of a class or function, if it may be the value of the parameter `at`."""
    for name, (found, places) in _values().items():
        if found is value and at in places:
            return name
    return None


def find(name: Any, at: str) -> Any:
    """Return the class or function of that name, if it may be the value of the parameter `at`."""
    found, places = _values().get(name, (None, ())) if isinstance(name, str) else (None, ())
    if at not in places:
        raise PersistenceError(
            f"{str(name)[:80]!r} is not something that a file may name as {at[:40]!r}"
        )
    return found


def parameters_of(value: Any) -> dict[str, Any] | None:
    """Return the parameters of an instance, if it can be made again from them."""
    kind = type(value)
    if _kinds().get(kind.__name__) is not kind:
        return None
    names = sorted(_parameters(kind))
    if kind is LRScheduler:
        names += value.kwargs
    has_all = all(name in vars(value) for name in names)
    return {name: vars(value)[name] for name in names} if has_all else None


def learned_of(value: Any) -> dict[str, Any]:
    """Return what an instance has learned since."""
    learned = _LEARNED.get(type(value).__name__, {})
    return {name: vars(value)[name] for name in learned if name in vars(value)}


def make(name: Any, parameters: Mapping[str, Any], learned: Mapping[str, Any]) -> Any:
    """Make an instance of the class of that name, if it takes these parameters."""
    kind = _kinds().get(name) if isinstance(name, str) else None
    wrong = [key for key in parameters if kind is None or not _takes(kind, key)]
    if kind is None or wrong:
        raise PersistenceError(f"{str(name)[:80]!r} cannot be made from {wrong[:5]}")
    check_policy(parameters.get("policy"))
    try:
        made = kind(**parameters)
    except (TypeError, ValueError) as error:
        raise PersistenceError(f"{name} cannot be made from these parameters: {error}") from error
    for key, value in learned.items():
        if not isinstance(value, _LEARNED.get(kind.__name__, {}).get(key, ())):
            raise PersistenceError(f"{name} does not learn {str(key)[:80]!r}")
        setattr(made, key, value)
    return made


def _takes(kind: type, key: str) -> bool:
    # LRScheduler sets its policy's options as attributes; none may be an attribute of its class.
    is_free = key.isidentifier() and key.strip("_") == key and not hasattr(kind, key)
    return key in _parameters(kind) or (kind is LRScheduler and is_free)


def check_policy(policy: Any) -> None:
    """Refuse a name that is not a schedule's: skorch looks it up among all its imports."""
    if isinstance(policy, str) and policy not in _SCHEDULES:
        raise PersistenceError(f"{policy[:80]!r} is not a schedule of learning rates")
