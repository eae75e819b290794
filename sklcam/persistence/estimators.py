"""The schema of estimators: which parameters and which learned attributes a file may hold.

An estimator is made from its parameters by its constructor, as a user makes it, and then given the
attributes that are named here. Networks are in ``networks.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import groupby
from numbers import Integral, Real
from typing import Any
from warnings import warn

import numpy as np
import torch
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping, LRScheduler, PassthroughScoring
from skorch.callbacks.scoring import ScoringBase
from skorch.exceptions import DeviceWarning
from skorch.history import History
from torch import nn
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from sklcam import embeddings, explain, language, training
from sklcam._validation import check_sides
from sklcam.networks import Origin, TargetLayer
from sklcam.networks.construction import parameter_names
from sklcam.networks.nested import unnest
from sklcam.networks.precision import PRECISIONS
from sklcam.persistence.errors import PersistenceError
from sklcam.persistence.known import check_policy
from sklcam.persistence.networks import (
    LARGEST_INPUT,
    check_fit,
    check_options,
    check_recipe,
    entries,
    load_numbers,
    numbers_of,
    read_network,
    read_origin,
    write_network,
    write_origin,
)
from sklcam.persistence.states import (
    check_average,
    check_generator,
    check_optimizer,
    check_scaler,
)
from sklcam.persistence.uses import USES, check_found, found_by, schema_of
from sklcam.persistence.values import Reader, Writer, expect
from sklcam.segmentation import CAMSegmenter
from sklcam.training.averaging import Average, average_of, floats_of
from sklcam.training.net import ImageNeuralNet
from sklcam.training.tasks import TASKS

_KINDS = (
    *(training.AcceleratedCAMClassifier, training.ConsistentCAMClassifier, explain.CAMExplainer),
    *(embeddings.EmbeddingCAMExplainer, embeddings.EmbeddingNet),
    *(language.CaptionExplainer, language.VQAExplainer, *USES),
)
KINDS: dict[str, type] = {kind.__name__: kind for kind in _KINDS}

# The learned attributes, and their types. Anything else in a file is refused. A net has all of its
# attributes; an explainer has those that its kind of fit finds.
_NET: dict[str, Any] = {
    "classes_inferred_": np.ndarray,
    "n_channels_": Integral,
    "origin_": dict | None,
    "random_states_": dict,
    "recalibrated_": Integral,
    "recipe_": dict | None,
    "modules": dict,
    "optimizer": dict,
    "scaler": dict | None,
    "gradient_sizes": dict | None,
    "average": dict | None,
    "callbacks": dict,
    "history": list,
}
_CLASSIFIER: dict[str, Any] = {**_NET, "task_": str}
_EXPLAINER: dict[str, Any] = {
    "classes_": np.ndarray | None,
    "gives_probabilities_": bool,
    "task_": str | None,
    "output_names_": np.ndarray | None,
    "n_images_per_class_": np.ndarray,
    "normalizes_": bool,
    "origin_": dict | None,
    "proxies_": np.ndarray | None,
    "_counts_": dict,
    "_dim_": Integral,
    "_habits_": dict,
    "_sums_": dict,
}
_CALLBACKS: dict[type, dict[str, Any]] = {
    training.CollapseWarning: {"collapsed_": dict, "in_a_row_": dict},
    EarlyStopping: {"best_epoch_": Integral, "dynamic_threshold_": Real, "misses_": Integral},
    PassthroughScoring: {"best_score_": Real},
    ScoringBase: {"best_score_": Real},
    LRScheduler: {"batch_idx_": Integral},
}

# Parameters that are not the constructor's are called prefix__name.
_PREFIXES = (
    *("callbacks", "compile", "criterion", "dataset", "iterator_train", "iterator_valid"),
    *("miner", "module", "optimizer", "sampler"),
)
# With these, a file could name programs, other files or processes: users pass them to load.
_FOR_THE_READER = ("accelerator", "compile__", "torch_load_kwargs")

_DEVICES = ("cpu", "cuda", "mps", "xpu")
_MOST_WORKERS = 128
_SMALL = 2**16  # numbers that a network may make outside the meta device


# Estimators


def alone(estimator: Any) -> Any:
    """Return the estimator inside a search or a frozen one.

    Parameters
    ----------
    estimator : estimator

    Returns
    -------
    estimator

    Raises
    ------
    PersistenceError
        If the steps of a pipeline come before it.
    """
    inner, transformers = unnest(estimator)
    if transformers:
        raise PersistenceError(
            "save does not store the transformers of a Pipeline, and without them its last step "
            "would get other images. Save pipeline[-1], and rebuild the Pipeline after loading."
        )
    return inner


def write_estimator(estimator: Any, writer: Writer, where: str = "") -> dict[str, Any]:
    """Write an estimator as JSON.

    Parameters
    ----------
    estimator : estimator
    writer : Writer
    where : str, default=""
        The prefix of its tensors' names.

    Returns
    -------
    dict

    Raises
    ------
    PersistenceError
        If it is not an estimator of sklcam, or was changed by hand and cannot be made again.
    """
    kind = type(estimator)
    if not issubclass(kind, _KINDS):
        raise PersistenceError(
            f"save takes the estimators {', '.join(KINDS)}; got a {kind.__name__}. Put a "
            "CAMExplainer around other skorch nets and bare networks, and save that."
        )
    if getattr(estimator, "_trimmed_for_prediction", False):
        raise PersistenceError("The estimator was trimmed for prediction. Save it before trimming.")
    parameters = _parameters_of(estimator)
    learned, layers = _learned_by(estimator, parameters)
    built = _built_by(estimator, parameters)
    if "explainer" in parameters and getattr(built, "model", estimator) is parameters["explainer"]:
        del parameters["explainer"]  # a network, which the explainer around it holds
    return {
        "estimator": kind.__name__ if kind in _KINDS else writer.label(kind, ""),
        "parameters": {
            name: _write_parameter(name, value, writer, f"{where}.{name}")
            for name, value in parameters.items()
        },
        "learned": writer.write(learned, where),
        "layers": writer.write(layers, f"{where}.layers", "target_layer"),
        "built": None if built is None else _write_model(built, writer, f"{where}.built"),
        **_settings_of(estimator),
    }


def read_estimator(node: Any, reader: Reader) -> Any:
    """Make an estimator from the JSON of :func:`write_estimator`.

    Parameters
    ----------
    node : dict
    reader : Reader

    Returns
    -------
    estimator

    Raises
    ------
    PersistenceError
        If the file holds anything that is not in the schema, or does not fit.
    """
    parts = ("estimator", "parameters", "learned", "layers", "built", "output", "requests")
    kind, nodes, learned, layers, built, output, requests = entries(node, *parts)
    found = KINDS.get(kind) if isinstance(kind, str) else reader.read(kind, "estimator")
    if not isinstance(found, type) or not issubclass(found, _KINDS):
        raise PersistenceError(f"{str(kind)[:80]!r} is not an estimator of sklcam")
    _check_names(found, expect(nodes, dict, "parameters"))
    parameters = {name: _read_parameter(name, value, reader) for name, value in nodes.items()}
    if issubclass(found, USES):
        return _read_use(found, parameters, reader, node)
    estimator: Any = found(**parameters)
    learned, layers = reader.read(learned), reader.read(layers, "target_layer")
    if not all(isinstance(layer, TargetLayer) for layer in expect(layers, list, "layers")):
        raise PersistenceError("a target layer has the wrong type")
    if learned is not None and isinstance(estimator, ImageNeuralNet):
        _check_learned(learned, _schema_of_net(estimator))
        (learned["target_layer_"],) = layers
        _fill_net(estimator, parameters, learned)
    elif learned is not None:
        _check_learned(learned, _EXPLAINER)
        estimator.check_parameters()
        origin = read_origin(learned.pop("origin_", None))
        estimator.preprocessing_ = origin.preprocessing
        names = origin.class_names
        estimator.class_names_ = None if names is None else np.array(names)
        estimator.model_ = estimator.model
        if isinstance(estimator.model, str):
            estimator.model_ = read_network(built, reader)
        estimator.__dict__.update(learned, target_layers_=layers)
    _set(estimator, output, requests)
    return estimator


def _built_by(estimator: Any, parameters: Mapping[str, Any]) -> Any:
    """Return what fit made from a parameter: a segmenter's explainer, a network from its name."""
    own = vars(estimator)
    if isinstance(estimator, CAMSegmenter) and "explainer_" in own:
        fitted = alone(own["explainer_"])
        return None if fitted is _held(parameters["explainer"]) else fitted
    return own.get("model_") if isinstance(parameters.get("model"), str) else None


def _read_use(kind: Any, parameters: dict[str, Any], reader: Reader, node: Any) -> Any:
    """Make one of the estimators that use explainers."""
    learned, built = reader.read(node["learned"]), node["built"]
    if built is not None:
        built = _read_explainer(built, reader)
        parameters = {"explainer": getattr(built, "model", None), **parameters}
    estimator = kind(**parameters)
    if learned is not None:
        _check_learned(learned, schema_of(kind))
        check_found(kind, learned)
        vars(estimator).update(learned)
        if isinstance(estimator, CAMSegmenter):
            estimator.explainer_ = estimator.explainer if built is None else built
    _set(estimator, node["output"], node["requests"])
    return estimator


# Parameters


def _parameters_of(estimator: BaseEstimator) -> dict[str, Any]:
    parameters = estimator.get_params(deep=False)
    if isinstance(estimator, NeuralNet):
        # skorch lists its callbacks' parameters only once these exist, and never all of them.
        for name, _ in getattr(estimator, "callbacks_", ()):
            parameters.pop(f"callbacks__{name}", None)
        own = vars(estimator)
        parameters |= {name: own[name] for name in own if "__" in name and name[0] != "_"}
    parameters.pop("accelerator", None)
    _check_names(type(estimator), parameters)
    return parameters


def _check_names(kind: type, names: Iterable[str]) -> None:
    """Refuse names that are not parameters: skorch would set each of them as an attribute."""
    own = parameter_names(kind)
    for name in names:
        prefix, *rest = name.split("__")
        is_nested = prefix in _PREFIXES and 1 <= len(rest) <= 2
        are_names = all(part.isidentifier() and part.strip("_") == part for part in rest)
        if name not in own and not (is_nested and are_names):
            raise PersistenceError(f"{kind.__name__} has no parameter {name[:80]!r}")


def _write_parameter(name: str, value: Any, writer: Writer, where: str) -> Any:
    at = name.rpartition("__")[2]
    is_explainer = name == "explainer" or (name == "encoder" and not isinstance(value, tuple))
    if is_explainer or (name == "model" and not isinstance(value, str)):
        return _write_model(_held(value), writer, where)
    if name.startswith(_FOR_THE_READER) and value is not None:
        return writer.label(value, at)
    return writer.write(value, where, at)


def _held(estimator: Any) -> Any:
    """Return the estimator inside one that is a parameter."""
    try:
        return alone(estimator)
    except NotFittedError as error:
        raise PersistenceError(
            f"A file cannot hold a search that has not been fitted. {error} In a segmenter, "
            "replace it with what fit found: segmenter.set_params(explainer=segmenter.explainer_)."
        ) from None


def _write_model(value: Any, writer: Writer, where: str) -> dict[str, Any]:
    """Write a network, or an estimator around one, as JSON."""
    is_ours = isinstance(value, _KINDS) or not isinstance(value, nn.Module | NeuralNet)
    return (write_estimator if is_ours else write_network)(value, writer, where)


def _read_explainer(node: Any, reader: Reader) -> Any:
    """Make an explainer, or a network that can be explained."""
    is_network = "network" in expect(node, dict, "explainer")
    found = (read_network if is_network else read_estimator)(node, reader)
    if isinstance(found, USES):
        raise PersistenceError("an explainer has the wrong type")
    return found


def _read_parameter(name: str, node: Any, reader: Reader) -> Any:
    at = name.rpartition("__")[2]
    if name == "model" and not isinstance(node, str):
        is_network = "network" in expect(node, dict, "model")
        model = (read_network if is_network else read_estimator)(node, reader)
        return expect(model, nn.Module | NeuralNet, "network, or of the net around one")
    if name == "explainer" or (name == "encoder" and "tuple" not in node):
        return _read_explainer(node, reader)
    is_label = isinstance(node, dict) and not node.keys().isdisjoint(("object", "instance"))
    if name.startswith(_FOR_THE_READER) and node is not None and not is_label:
        raise PersistenceError(f"{name} may name a program, so a file cannot hold its value")
    if name == "module" and not (isinstance(node, str) or is_label):
        raise PersistenceError("module is neither a name nor a label")
    value = reader.read(node, at)
    if at == "policy":
        check_policy(value)
    if name == "compile":
        expect(value, bool, name)
    if at == "num_workers" and not (type(value) is int and 0 <= value <= _MOST_WORKERS):
        raise PersistenceError(f"{str(value)[:20]} is not a number of workers")
    if at == "precision" and not (type(value) is str and value in PRECISIONS):
        raise PersistenceError(f"{str(value)[:20]} is not a precision")
    is_size = at == "image_size" and value is not None
    if is_size and math.prod(check_sides(value, at)) > LARGEST_INPUT:
        raise PersistenceError(f"image_size={value} has more than {LARGEST_INPUT} pixels")
    return device_here(value) if name == "device" else value


def device_here(device: Any) -> Any:
    """Return the device, or the CPU if there is no such GPU."""
    if device is None or device == "auto":
        return device
    wanted = torch.device(device)
    if wanted.type not in _DEVICES:
        raise PersistenceError(f"{wanted} is not a device that networks run on")
    n_devices = {"cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count()}
    n_devices["mps"] = int(torch.backends.mps.is_available())
    if (wanted.index or 0) < n_devices.get(wanted.type, 1):
        return device
    warn(
        f"The estimator was on {wanted}, which is not available here; it is loaded on the CPU.",
        DeviceWarning,
        stacklevel=2,
    )
    return "cpu"


def _settings_of(estimator: BaseEstimator) -> dict[str, Any]:
    """Return what ``set_output`` and the requests for metadata have set."""
    # Public methods set both, but none returns them: a skorch net routes metadata as a
    # meta-estimator, which hides its own requests.
    own = vars(estimator)
    requests = vars(own["_metadata_request"]) if "_metadata_request" in own else {}
    return {
        "output": own.get("_sklearn_output_config", {}).get("transform"),
        "requests": {
            method: dict(request.requests)
            for method, request in requests.items()
            if getattr(request, "requests", None)
        },
    }


def _set(estimator: Any, output: Any, requests: Any) -> None:
    if output is not None:
        if output not in ("default", "pandas", "polars"):
            raise PersistenceError(f"{str(output)[:40]!r} is not a form of output")
        estimator.set_output(transform=output)
    for method, wanted in expect(requests, dict, "requests").items():
        set_request = getattr(estimator, f"set_{method}_request", None)
        if set_request is None:
            raise PersistenceError(f"{method[:80]!r} takes no metadata")
        for name, alias in expect(wanted, dict, "request").items():
            if not name.isidentifier():
                raise PersistenceError(f"{name[:80]!r} cannot be a name of metadata")
            with config_context(enable_metadata_routing=True):
                set_request(**{name: expect(alias, bool | str | None, "alias")})


# Learned attributes


def _part_of(values: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in schema if name in values}


def _check_learned(values: Any, schema: Mapping[str, Any]) -> None:
    for name, value in expect(values, dict, "learned attributes").items():
        is_bool = isinstance(value, bool)  # which is an int to Python
        if not isinstance(value, schema.get(name, ())) or is_bool is not (schema[name] is bool):
            raise PersistenceError(f"{str(name)[:80]!r} is not learned, or has the wrong type")


def _learned_by(
    estimator: Any, parameters: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, list[TargetLayer]]:
    """Return what an estimator has learned, and its layers; nothing if it is not fitted."""
    own: dict[str, Any] = vars(estimator)
    if isinstance(estimator, USES):
        return found_by(estimator), []
    if not isinstance(estimator, ImageNeuralNet):
        layers = own.get("target_layers_")
        if layers is None:
            return None, []
        names = own["class_names_"]
        origin = Origin(own["preprocessing_"], None if names is None else tuple(names.tolist()))
        return {**_part_of(own, _EXPLAINER), "origin_": write_origin(origin)}, layers
    if not estimator.initialized_ or "module_" not in own:
        return None, []
    scaler, sizes = own.get("scaler_"), own.get("gradient_sizes_")
    # In the file, the others have the names of parameters: the optimizer, the callbacks.
    fitted = {
        name: value
        for name, value in _part_of(own, _schema_of_net(estimator)).items()
        if name.endswith("_")
    }
    learned = {
        **fitted,
        "origin_": write_origin(own["origin_"]),
        "modules": {name: numbers_of(module) for name, module in estimator.networks.items()},
        "optimizer": estimator.optimizer_.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None and scaler.is_enabled() else None,
        "gradient_sizes": None if sizes is None else sizes.averages,
        "average": _average_in(estimator),
        "callbacks": {
            name: _part_of(vars(callback), _schema_of(callback))
            for name, callback in estimator.callbacks_
        },
        "history": [_in_columns(row) for row in estimator.history],
    }
    try:
        attributes = {**fitted, "target_layer_": estimator.target_layer_}
        _rehearse(type(estimator), parameters, attributes, learned["modules"])
    except PersistenceError as error:
        raise PersistenceError(
            f"The estimator is not what fit makes from its parameters, and could not be loaded: "
            f"{error}. Was module_ changed after fit? Give the changed network as module, or save "
            "it in a CAMExplainer."
        ) from None
    return learned, [estimator.target_layer_]


def _fill_net(net: Any, parameters: dict[str, Any], learned: dict[str, Any]) -> None:
    schema, classes = _schema_of_net(net), learned.get("classes_inferred_")
    if not schema.keys() <= learned.keys() or classes is None or classes.ndim != 1:
        raise PersistenceError(f"it lacks some of {sorted(schema)}, or classes")
    if "task_" in schema:
        _check_task(learned["task_"], len(classes))
    attributes = {name: value for name, value in learned.items() if name.endswith("_")}
    attributes["origin_"] = read_origin(attributes["origin_"])
    states = attributes["random_states_"]
    if states.keys() != {"seed", "global", "cuda", "views"} or type(states["seed"]) is not int:
        raise PersistenceError("the states of the random generators are not complete")
    check_generator(states["global"])
    check_generator(states["views"])
    _rehearse(type(net), parameters, attributes, learned["modules"])
    made = net.restore(attributes).networks
    _check_same(made, learned["modules"])
    for name, module in made.items():
        is_built = name == "module_" and isinstance(net.module, str)
        load_numbers(module, learned["modules"].pop(name), is_built=is_built)
    check_optimizer(net.optimizer_, learned["optimizer"])
    net.optimizer_.load_state_dict(learned["optimizer"])
    if learned["scaler"] is not None:
        net.__dict__["scaler_"] = GradScaler(torch.device(net.device or "cpu").type)
        check_scaler(net.scaler_, learned["scaler"])
        net.scaler_.load_state_dict(learned["scaler"])
    if learned["gradient_sizes"] is not None:
        net.__dict__["gradient_sizes_"] = training.GradientSizes()
        net.gradient_sizes_.averages = learned["gradient_sizes"]
    if learned["average"] is not None:
        n_steps, own = entries(learned["average"], "n_steps", "own")
        values = {name: value.detach().clone() for name, value in floats_of(net.module_).items()}
        check_average(values, n_steps, own)
        net.__dict__["average_"] = Average(values, n_steps, own)
    callbacks = dict(net.callbacks_)
    for name, values in learned["callbacks"].items():
        _check_learned(values, _schema_of(callbacks[name]))
        callbacks[name].__dict__.update(values)
    net.__dict__["history_"] = History(map(_in_rows, learned["history"]))


def _average_in(net: ImageNeuralNet) -> dict[str, Any] | None:
    """Return the weights that an average has replaced, unless others have replaced it since."""
    average = average_of(net)
    if average is None or not average.own or not average.is_in(net.module_):
        return None
    return {"n_steps": average.n_steps, "own": average.own}


def _schema_of_net(net: ImageNeuralNet) -> dict[str, Any]:
    return _CLASSIFIER if isinstance(net, training.ConsistentCAMClassifier) else _NET


def _check_task(task: str, n_classes: int) -> None:
    if task not in TASKS or not n_classes or (task == "binary" and n_classes != 2):
        raise PersistenceError(f"{task[:40]!r} is not a task of {n_classes} classes")


def _schema_of(callback: Any) -> dict[str, Any]:
    found = (_CALLBACKS[kind] for kind in _CALLBACKS if isinstance(callback, kind))
    return next(found, {})


def _in_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an epoch of a history with its batches, which are many, as arrays."""
    runs = [list(run) for _, run in groupby(row["batches"], key=lambda batch: [*batch])]
    columns = [{name: _column([each[name] for each in run]) for name in run[0]} for run in runs]
    return {**row, "batches": columns}


def _column(values: list[Any]) -> Any:
    is_numeric = all(isinstance(v, float) for v in values) or {*map(type, values)} == {int}
    return np.array(values) if is_numeric else values


def _in_rows(row: Any) -> dict[str, Any]:
    batches = []
    for columns in expect(row, dict, "epoch")["batches"]:
        lists = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns.values()]
        batches += [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
    return {**row, "batches": batches}


# Networks


def _rehearse(
    kind: Any, parameters: Mapping[str, Any], attributes: Mapping[str, Any], numbers: Any
) -> None:
    """Make a net's networks and losses on the meta device, and refuse numbers that do not fit."""
    module = parameters["module"]
    if not isinstance(module, str | nn.Module | type):
        return  # a function of the user's own, which is called once
    options = {name: v for name, v in parameters.items() if not name.startswith("callbacks__")}
    options |= {"callbacks": "disable", "verbose": 0, "compile": False, "device": None}
    if isinstance(module, str):
        check_options({name[8:]: options[name] for name in options if name[:8] == "module__"})
        check_recipe(attributes["recipe_"])  # this is built, whatever the name stands for
    if issubclass(kind, training.AcceleratedCAMClassifier):
        kind = training.ConsistentCAMClassifier
    try:
        with torch.device("meta"), _LegacyOnMeta():  # type: ignore[no-untyped-call]
            made = kind(**options).restore(attributes).networks
    except Exception:
        if isinstance(module, str):
            raise
        return  # not every network of a user's own can be made without numbers
    _check_same(made, numbers)
    for name, each in made.items():
        check_fit(each, numbers[name]["state"])


class _LegacyOnMeta(TorchDispatchMode):
    """Moves ``torch.Tensor(n, m)`` to the meta device, which a device context does not do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten.empty.memory_format and math.prod(args[0]) > _SMALL:
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)


def _check_same(modules: Mapping[str, nn.Module], numbers: Mapping[str, Any]) -> None:
    if modules.keys() != numbers.keys():
        raise PersistenceError(f"its networks are {sorted(numbers)}, not {sorted(modules)}")
