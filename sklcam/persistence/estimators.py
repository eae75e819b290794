"""The schema of estimators: which parameters and which learned attributes a file may hold.

An estimator is made by its constructor from its parameters, as a user makes it, and filled with the
attributes that stand here by name. Networks are built first on the meta device, where they take no
memory: if the tensors in the file are not exactly theirs, nothing is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from inspect import signature
from itertools import groupby
from numbers import Integral, Real
from typing import Any
from warnings import warn

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._metadata_requests import MethodMetadataRequest
from sklearn.utils._param_validation import validate_parameter_constraints
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping, LRScheduler, PassthroughScoring
from skorch.callbacks.scoring import ScoringBase
from skorch.exceptions import DeviceWarning
from skorch.history import History
from torch import Tensor, nn
from torch.amp import GradScaler

from sklcam import embeddings, explain, training
from sklcam._validation import check_size
from sklcam.networks import TargetLayer, build_model
from sklcam.networks.construction import parameter_names
from sklcam.persistence.errors import PersistenceError
from sklcam.persistence.known import check_policy
from sklcam.persistence.states import check_generator, check_optimizer, check_scaler
from sklcam.persistence.values import Reader, Writer, expect
from sklcam.training.net import ImageNeuralNet

KINDS: dict[str, type] = {
    "AcceleratedCAMClassifier": training.AcceleratedCAMClassifier,
    "CAMExplainer": explain.CAMExplainer,
    "ConsistentCAMClassifier": training.ConsistentCAMClassifier,
    "EmbeddingCAMExplainer": embeddings.EmbeddingCAMExplainer,
    "EmbeddingNet": embeddings.EmbeddingNet,
}

# What is learned, and what it must be. Anything else in a file is refused. A net's is complete; of
# an explainer's there is what its kind of fit has found.
_NET: dict[str, Any] = {
    "classes_inferred_": np.ndarray,
    "n_channels_": Integral,
    "random_states_": dict,
    "optimizer": dict,
    "scaler": dict | None,
    "gradient_sizes": dict | None,
    "callbacks": dict,
    "history": list,
}
_EXPLAINER: dict[str, Any] = {
    "classes_": np.ndarray | None,
    "gives_probabilities_": bool,
    "n_images_per_class_": np.ndarray,
    "proxies_": np.ndarray | None,
    "_counts_": dict,
    "_dim_": Integral,
    "_sums_": dict,
}
_CALLBACKS: dict[type, dict[str, Any]] = {
    training.CollapseWarning: {"collapsed_": dict, "in_a_row_": dict},
    EarlyStopping: {"best_epoch_": Integral, "dynamic_threshold_": Real, "misses_": Integral},
    PassthroughScoring: {"best_score_": Real},
    ScoringBase: {"best_score_": Real},
    LRScheduler: {"batch_idx_": Integral},
}

# Parameters beside those of the constructor are called prefix__name.
_PREFIXES = (
    *("callbacks", "compile", "criterion", "dataset", "iterator_train", "iterator_valid"),
    *("miner", "module", "optimizer", "sampler"),
)
# By these a file could name programs, other files or processes: the reader brings them along.
_FOR_THE_READER = ("accelerator", "compile__", "torch_load_kwargs")

_DEVICES = ("cpu", "cuda", "mps", "xpu")
_LARGEST_INPUT = 2**26  # pixels
_LARGEST_OPTION = 2**16  # of a network's builder, which may loop as often
_MOST_WORKERS = 128


# Estimators


def write_estimator(estimator: Any, writer: Writer, where: str = "") -> dict[str, Any]:
    """Put an estimator in JSON.

    Parameters
    ----------
    estimator : estimator
    writer : Writer
    where : str, default=""
        Before the names of its tensors.

    Returns
    -------
    dict

    Raises
    ------
    PersistenceError
        If it is not one of ours, or was changed by hand so that it could not be made again.
    """
    kind = type(estimator)
    if not issubclass(kind, tuple(KINDS.values())):
        raise PersistenceError(
            f"save takes the estimators of sklcam; got a {kind.__name__}. Other skorch nets and "
            "bare networks are saved by a CAMExplainer around them."
        )
    if getattr(estimator, "_trimmed_for_prediction", False):
        raise PersistenceError("The estimator was trimmed for prediction; save it before that.")
    is_ours = KINDS.get(kind.__name__) is kind
    is_net = issubclass(kind, ImageNeuralNet)
    own: dict[str, Any] = vars(estimator)
    parameters = _parameters_of(estimator)
    is_fitted = ("module_" in own and estimator.initialized_) if is_net else "target_layers_" in own
    node: dict[str, Any] = {
        "estimator": kind.__name__ if is_ours else writer.label(kind, ""),
        "parameters": {
            name: _write_parameter(name, value, writer, f"{where}.{name}")
            for name, value in parameters.items()
        },
        "learned": None,
        "layers": [],
        "modules": {},
        **_settings_of(estimator),
    }
    if is_fitted:
        learned = _learned_by_net(estimator) if is_net else _part_of(own, _EXPLAINER)
        layers = [estimator.target_layer_] if is_net else estimator.target_layers_
        node["learned"] = writer.write(learned, where)
        node["layers"] = writer.write(layers, f"{where}.layers", "target_layer")
    if is_fitted and is_net:
        modules = _modules_of(estimator)
        _check_can_be_made_again(estimator, parameters, modules)
        node["modules"] = {
            name: _write_module(module, writer, f"{where}.{name}")
            for name, module in modules.items()
        }
    return node


def read_estimator(node: Any, reader: Reader) -> Any:
    """Make an estimator of what :func:`write_estimator` has put in JSON.

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
        If the file holds anything that does not stand in the schema, or does not fit.
    """
    parts = ("estimator", "parameters", "learned", "layers", "modules", "output", "requests")
    kind, nodes, learned, layers, modules, output, requests = _entries(node, *parts)
    found = KINDS.get(kind) if isinstance(kind, str) else reader.read(kind, "estimator")
    if not isinstance(found, type) or not issubclass(found, tuple(KINDS.values())):
        raise PersistenceError(f"{str(kind)[:80]!r} is not an estimator of sklcam")
    _check_names(found, expect(nodes, dict, "parameters"))
    parameters = {name: _read_parameter(name, value, reader) for name, value in nodes.items()}
    estimator: Any = found(**parameters)
    if learned is not None:
        learned, layers = reader.read(learned), reader.read(layers, "target_layer")
        if not all(isinstance(layer, TargetLayer) for layer in expect(layers, list, "layers")):
            raise PersistenceError("a target layer is not one")
        is_net = isinstance(estimator, ImageNeuralNet)
        _check_learned(learned, _NET if is_net else _EXPLAINER)
        if is_net:
            (learned["target_layer_"],) = layers
            _fill_net(estimator, parameters, learned, modules, reader)
        else:
            validate_parameter_constraints(
                estimator._parameter_constraints, parameters, caller_name=found.__name__
            )
            estimator.__dict__.update(learned, target_layers_=layers)
    _set(estimator, output, requests)
    return estimator


def _entries(node: Any, *names: str) -> list[Any]:
    """Return the entries of an object in the JSON, which must have these and no others."""
    if expect(node, dict, "entries").keys() != set(names):
        raise PersistenceError(f"its JSON has {[*node][:8]} in the place of {list(names)}")
    return [node[name] for name in names]


# Parameters


def _parameters_of(estimator: BaseEstimator) -> dict[str, Any]:
    parameters = estimator.get_params(deep=False)
    if isinstance(estimator, NeuralNet):
        # skorch lists its callbacks' parameters only once they are there, and never all of them.
        for name, _ in getattr(estimator, "callbacks_", ()):
            parameters.pop(f"callbacks__{name}", None)
        own = vars(estimator)
        parameters |= {name: own[name] for name in own if "__" in name and name[0] != "_"}
    parameters.pop("accelerator", None)
    _check_names(type(estimator), parameters)
    return parameters


def _check_names(kind: type, names: Iterable[str]) -> None:
    """Refuse parameters that are none: skorch would set any of them as an attribute."""
    own = parameter_names(kind)
    for name in names:
        prefix, *rest = name.split("__")
        is_nested = prefix in _PREFIXES and 1 <= len(rest) <= 2
        are_names = all(part.isidentifier() and part.strip("_") == part for part in rest)
        if name not in own and not (is_nested and are_names):
            raise PersistenceError(f"{kind.__name__} has no parameter {name[:80]!r}")


def _write_parameter(name: str, value: Any, writer: Writer, where: str) -> Any:
    at = name.rpartition("__")[2]
    if name == "model":
        is_ours = isinstance(value, ImageNeuralNet)
        return (write_estimator if is_ours else _write_network)(value, writer, where)
    if name.startswith(_FOR_THE_READER) and value is not None:
        return writer.label(value, at)
    return writer.write(value, where, at)


def _read_parameter(name: str, node: Any, reader: Reader) -> Any:
    at = name.rpartition("__")[2]
    if name == "model":
        is_network = "network" in expect(node, dict, "model")
        model = (_read_network if is_network else read_estimator)(node, reader)
        return expect(model, nn.Module | NeuralNet, "network, or the net around one")
    is_label = isinstance(node, dict) and "object" in node
    if name.startswith(_FOR_THE_READER) and node is not None and not is_label:
        raise PersistenceError(f"{name} may name what is run; a file holds no value for it")
    if name == "module" and not (isinstance(node, str) or is_label):
        raise PersistenceError("module is neither a name nor a label")
    value = reader.read(node, at)
    if at == "policy":
        check_policy(value)
    if name == "compile":
        expect(value, bool, name)
    if at == "num_workers" and not (type(value) is int and 0 <= value <= _MOST_WORKERS):
        raise PersistenceError(f"{str(value)[:20]} is not a number of workers")
    is_size = at == "image_size" and value is not None
    if is_size and math.prod(check_size(value, at)) > _LARGEST_INPUT:
        raise PersistenceError(f"image_size={value} is of no network")
    return device_here(value) if name == "device" else value


def device_here(device: Any) -> Any:
    """Return the device, or the CPU where there is no such GPU."""
    if device is None or device == "auto":
        return device
    wanted = torch.device(device)
    if wanted.type not in _DEVICES:
        raise PersistenceError(f"networks are not used on {wanted}")
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
            raise PersistenceError(f"{str(output)[:40]!r} is no form of output")
        estimator.set_output(transform=output)
    for method, wanted in expect(requests, dict, "requests").items():
        all_requests = estimator._get_metadata_request()
        request = expect(vars(all_requests).get(method), MethodMetadataRequest, "request")
        for name, alias in expect(wanted, dict, "request").items():
            expect(name.isidentifier() and name, str, "name of metadata")
            request.add_request(param=name, alias=expect(alias, bool | str | None, "alias"))
        estimator._metadata_request = all_requests


# Learned attributes


def _part_of(values: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in schema if name in values}


def _check_learned(values: Any, schema: Mapping[str, Any]) -> None:
    for name, value in expect(values, dict, "learned attributes").items():
        is_bool = isinstance(value, bool)  # which is an int to Python
        if not isinstance(value, schema.get(name, ())) or is_bool is not (schema[name] is bool):
            raise PersistenceError(f"{str(name)[:80]!r} is not learned, or is something else")


def _learned_by_net(net: ImageNeuralNet) -> dict[str, Any]:
    own = vars(net)
    scaler, sizes = own.get("scaler_"), own.get("gradient_sizes_")
    return {
        **_part_of(own, _NET),
        "optimizer": net.optimizer_.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None and scaler.is_enabled() else None,
        "gradient_sizes": None if sizes is None else sizes.averages,
        "callbacks": {
            name: _part_of(vars(callback), _schema_of(callback))
            for name, callback in net.callbacks_
        },
        "history": [_in_columns(row) for row in net.history],
    }


def _fill_net(
    net: Any, parameters: dict[str, Any], learned: dict[str, Any], nodes: Any, reader: Reader
) -> None:
    if not _NET.keys() <= learned.keys() or learned["classes_inferred_"].ndim != 1:
        raise PersistenceError(f"it lacks some of {sorted(_NET)}, or classes")
    attributes = {name: value for name, value in learned.items() if name.endswith("_")}
    states = attributes["random_states_"]
    if states.keys() != {"seed", "global", "cuda", "views"} or type(states["seed"]) is not int:
        raise PersistenceError("the states of the random generators are not complete")
    check_generator(states["global"])
    check_generator(states["views"])
    modules = {
        name: _read_state(node, reader) for name, node in expect(nodes, dict, "networks").items()
    }
    rehearsed = _rehearse(type(net), parameters, attributes)
    if rehearsed is not None:
        _check_modules(rehearsed, modules)
    made = _modules_of(net.restore(attributes))
    _check_modules(made, modules)
    for name, module in made.items():
        is_built = name == "module_" and isinstance(net.module, str)
        _load(module, modules.pop(name), nodes[name], is_built=is_built)
    check_optimizer(net.optimizer_, learned["optimizer"])
    net.optimizer_.load_state_dict(learned["optimizer"])
    if learned["scaler"] is not None:
        vars(net)["scaler_"] = GradScaler(torch.device(net.device or "cpu").type)
        check_scaler(net.scaler_, learned["scaler"])
        net.scaler_.load_state_dict(learned["scaler"])
    if learned["gradient_sizes"] is not None:
        vars(net)["gradient_sizes_"] = training.GradientSizes()
        net.gradient_sizes_.averages = learned["gradient_sizes"]
    callbacks = dict(net.callbacks_)
    for name, values in learned["callbacks"].items():
        _check_learned(values, _schema_of(callbacks[name]))
        callbacks[name].__dict__.update(values)
    vars(net)["history_"] = History(map(_in_rows, learned["history"]))


def _schema_of(callback: Any) -> dict[str, Any]:
    found = (_CALLBACKS[kind] for kind in _CALLBACKS if isinstance(callback, kind))
    return next(found, {})


def _in_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an epoch of a history with arrays in place of its batches, which are many."""
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


def _modules_of(net: NeuralNet) -> dict[str, nn.Module]:
    """Return the networks and losses of a net, by attribute."""
    names = [f"{name}_" for name in [*net._modules, *net._criteria]]
    found = {name: getattr(net, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, nn.Module)}


def _write_module(module: nn.Module, writer: Writer, where: str) -> dict[str, Any]:
    state = module.state_dict().items()
    return {
        "state": {name: writer.store(tensor, f"{where}.{name}") for name, tensor in state},
        "frozen": [name for name, p in module.named_parameters() if not p.requires_grad],
        "training": [name for name, part in module.named_modules() if part.training],
    }


def _read_state(node: Any, reader: Reader) -> dict[str, Tensor]:
    state, _, _ = _entries(node, "state", "frozen", "training")
    return {name: reader.tensor(at) for name, at in expect(state, dict, "tensors").items()}


def _load(
    network: nn.Module, state: dict[str, Tensor], node: dict[str, Any], *, is_built: bool
) -> None:
    own = network.state_dict()  # with the layers' versions, which some refuse to be without
    for name, value in own.items() if is_built else ():
        # Tables such as Swin's of relative positions: a GPU does not check what it is pointed to.
        is_table = value.ndim > 0 and not value.is_floating_point()
        if is_table and not torch.equal(value.cpu(), state[name]):
            raise PersistenceError(f"{name} is a table that is not learned, and another")
    own.update(state)
    network.load_state_dict(own)
    frozen, in_training = (set(expect(node[k], list, k)) for k in ("frozen", "training"))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad is (name in frozen):
            parameter.requires_grad_(name not in frozen)
    for name, part in network.named_modules():
        part.training = name in in_training


def _write_network(model: nn.Module | NeuralNet, writer: Writer, where: str) -> dict[str, Any]:
    """Put a network in JSON by the name that it was built by, or as a label; and its tensors."""
    network = model.module_ if isinstance(model, NeuralNet) else model
    recipe = getattr(model, "built_as", None)
    is_built = recipe is not None and not _differences(_on_meta(recipe), network.state_dict())
    return {
        "network": writer.write(recipe, where) if is_built else writer.label(model, "model"),
        "numbers": _write_module(network, writer, where),
    }


def _read_network(node: Any, reader: Reader) -> nn.Module | NeuralNet:
    source, numbers = _entries(node, "network", "numbers")
    state, model = _read_state(numbers, reader), reader.read(source, "model")
    is_built = isinstance(model, dict)
    if is_built:
        recipe = model
        _check_modules({"network": _on_meta(recipe)}, {"network": state})
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            model = build_model(**recipe)
    elif isinstance(model, type) and issubclass(model, nn.Module):
        model = model()
    network = vars(model).get("module_") if isinstance(model, NeuralNet) else model
    if not isinstance(network, nn.Module):
        raise PersistenceError(
            f"objects has a {type(model).__name__} in the place of a network; give an nn.Module, "
            "its class, or a fitted skorch net around one"
        )
    _check_modules({"network": network}, {"network": state})
    _load(network, state, numbers, is_built=is_built)
    return model


def _rehearse(
    kind: Any, parameters: Mapping[str, Any], attributes: Mapping[str, Any]
) -> dict[str, nn.Module] | None:
    """Make a net's networks and losses on the meta device; None if they cannot be made there."""
    module = parameters["module"]
    if not isinstance(module, str | nn.Module | type):
        return None  # a function of the reader's own, which is called once
    options = {name: v for name, v in parameters.items() if not name.startswith("callbacks__")}
    options |= {"callbacks": "disable", "verbose": 0, "compile": False, "device": None}
    if isinstance(module, str):
        _check_options({name[8:]: options[name] for name in options if name[:8] == "module__"})
    if issubclass(kind, training.AcceleratedCAMClassifier):
        kind = training.ConsistentCAMClassifier
    try:
        with torch.device("meta"):
            return _modules_of(kind(**options).restore(attributes))
    except Exception:
        if isinstance(module, str):
            raise
        return None  # not every network of a reader's own can be made there


def _check_can_be_made_again(
    net: ImageNeuralNet, parameters: Mapping[str, Any], modules: Mapping[str, nn.Module]
) -> None:
    """Refuse a network that its parameters do not make any more: it could not be loaded."""
    attributes = {name: value for name, value in vars(net).items() if name in _NET}
    rehearsed = _rehearse(type(net), parameters, {**attributes, "target_layer_": net.target_layer_})
    try:
        states = {name: module.state_dict() for name, module in modules.items()}
        _check_modules(modules if rehearsed is None else rehearsed, states)
    except PersistenceError as error:
        raise PersistenceError(
            f"The estimator is not what fit makes of its parameters, and could not be loaded: "
            f"{error}. Was module_ changed after fit? Give the changed network as module, or save "
            "it in a CAMExplainer."
        ) from None


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a builder by which it could read files, or never come to an end."""
    for name, value in options.items():
        numbers = value if isinstance(value, tuple) and len(value) <= 8 else (value,)
        is_free = name not in signature(build_model).parameters
        if not is_free or not all(isinstance(n, bool | int | float | None) for n in numbers):
            raise PersistenceError(f"{name[:80]!r} is not an option of a network by name")
        if any(n is not None and not abs(n) <= _LARGEST_OPTION for n in numbers):
            raise PersistenceError(f"{name[:80]!r} is too large for an option of a network")


def _on_meta(recipe: Mapping[str, Any]) -> nn.Module:
    """Build a network by name without its numbers, which takes no memory."""
    sizes = ("name", "n_classes", "in_channels", "image_size")
    _check_options({name: value for name, value in recipe.items() if name not in sizes})
    with torch.device("meta"):
        return build_model(**recipe)


def _check_modules(
    modules: Mapping[str, nn.Module], states: Mapping[str, Mapping[str, Tensor]]
) -> None:
    if modules.keys() != states.keys():
        raise PersistenceError(f"its networks are {sorted(states)}, not {sorted(modules)}")
    for name, module in modules.items():
        wrong = _differences(module, states[name])
        if wrong:
            raise PersistenceError(f"it does not fit {type(module).__name__}: {wrong}")


def _differences(network: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Return in what respect tensors are not those of a network, if they are not."""
    own = network.state_dict()
    if own.keys() != state.keys():
        return f"its tensors are others, such as {sorted(own.keys() ^ state.keys())[:5]}"
    for name, value in own.items():
        given = state[name]
        if not isinstance(value, Tensor):
            return f"{name} is not a tensor"
        if (given.shape, given.dtype) != (value.shape, value.dtype):
            return (
                f"{name} must be of shape {tuple(value.shape)} and {value.dtype}; it is of "
                f"{tuple(given.shape)} and {given.dtype}"
            )
    return None
