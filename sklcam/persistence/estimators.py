"""The schema of estimators: which parameters and which learned attributes a file may hold.

An estimator is made by its constructor from its parameters, as a user makes it, and filled by
:func:`_fill_net` or :func:`_fill_explainer` with the attributes that stand here by name. A network
is built by name as the constructor builds it, on the meta device first: if the tensors in the file
are not exactly its own, nothing is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from warnings import warn

import numpy as np
import torch
from sklearn.base import BaseEstimator
from skorch import NeuralNet
from skorch.callbacks import EarlyStopping, EpochScoring, LRScheduler
from skorch.exceptions import DeviceWarning
from skorch.history import History
from torch import Tensor, nn
from torch.amp import GradScaler

from sklcam.embeddings import EmbeddingCAMExplainer, EmbeddingNet
from sklcam.explain import CAMExplainer
from sklcam.networks import TargetLayer, build_model
from sklcam.persistence.errors import PersistenceError
from sklcam.persistence.values import Reader, Writer
from sklcam.training import (
    AcceleratedCAMClassifier,
    CollapseWarning,
    ConsistentCAMClassifier,
    GradientSizes,
)
from sklcam.training.net import ImageNeuralNet

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        AcceleratedCAMClassifier,
        CAMExplainer,
        ConsistentCAMClassifier,
        EmbeddingCAMExplainer,
        EmbeddingNet,
    )
}

# What fit learns, and what it must be. Anything else in a file is refused.
_NET = {
    "classes_inferred_": np.ndarray,
    "n_channels_": int,
    "random_states_": dict,
    "target_layer_": TargetLayer,
}
_EXPLAINER: dict[str, Any] = {
    "classes_": np.ndarray | None,
    "target_layers_": list,
    "_counts_": dict,
    "_dim_": int,
    "_sums_": dict,
    "n_images_per_class_": np.ndarray,
    "proxies_": np.ndarray | None,
}
_CALLBACKS: dict[type, dict[str, Any]] = {
    CollapseWarning: {"collapsed_": dict, "in_a_row_": dict},
    EarlyStopping: {"best_epoch_": int, "dynamic_threshold_": float, "misses_": int},
    EpochScoring: {"best_score_": float | int},
    LRScheduler: {"batch_idx_": int},
}

# Parameters by which a file could name programs or other files: the reader brings them along.
_FOR_THE_READER = ("compile__", "torch_load_kwargs", "init_context")
_OF_THE_PROCESS = ("accelerator",)

_LARGEST_INPUT = 2**24  # pixels; a network may be run once at this size
_MOST_WORKERS = 1024


def is_ours(value: Any) -> bool:
    """Whether a value is an estimator that files hold."""
    return isinstance(value, ImageNeuralNet | CAMExplainer)


# Writing


def write_estimator(estimator: Any, writer: Writer, where: str) -> dict[str, Any]:
    """Put an estimator in JSON.

    Parameters
    ----------
    estimator : estimator
    writer : Writer
    where : str
        Before the names of its tensors.

    Returns
    -------
    dict

    Raises
    ------
    PersistenceError
        If it is not one of ours, or was changed by hand so that it could not be made again.
    """
    if not is_ours(estimator):
        raise PersistenceError(
            f"save takes the estimators of sklcam; got a {type(estimator).__name__}. Other skorch "
            "nets and bare networks are saved by a CAMExplainer around them."
        )
    if getattr(estimator, "_trimmed_for_prediction", False):
        raise PersistenceError("The estimator was trimmed for prediction; save it before that.")
    parameters = _parameters_of(estimator)
    node: dict[str, Any] = {"estimator": type(estimator).__name__}
    if KINDS.get(type(estimator).__name__) is not type(estimator):
        node["estimator"] = writer.label(type(estimator), where)
    node["parameters"] = {
        name: _write_parameter(name, value, writer, f"{where}.{name}")
        for name, value in parameters.items()
    }
    if isinstance(estimator, NeuralNet):
        is_fitted = estimator.initialized_ and "module_" in vars(estimator)
        node["learned"] = _write_net(estimator, writer, where) if is_fitted else None
    else:
        learned = {name: vars(estimator)[name] for name in _EXPLAINER if name in vars(estimator)}
        node["learned"] = writer.members(learned, where)
    return {**node, **_write_settings(estimator)}


def _parameters_of(estimator: Any) -> dict[str, Any]:
    parameters = estimator.get_params(deep=False)
    if isinstance(estimator, NeuralNet):
        # skorch lists its callbacks' parameters only once they are there, and never all of them.
        own = {name: value for name, value in vars(estimator).items() if "__" in name}
        parameters |= {name: value for name, value in own.items() if name[0] != "_"}
        virtual = [name for name, _ in getattr(estimator, "callbacks_", ())]
        for name in virtual:
            parameters.pop(f"callbacks__{name}", None)
    return {name: value for name, value in parameters.items() if name not in _OF_THE_PROCESS}


def _write_parameter(name: str, value: Any, writer: Writer, where: str) -> Any:
    if name == "model":
        if is_ours(value):
            return write_estimator(value, writer, where)
        return _write_network(value, writer, where)
    if name.startswith(_FOR_THE_READER) and value is not None:
        return writer.label(value, where)
    return writer.write(value, where)


def _write_network(model: nn.Module | NeuralNet, writer: Writer, where: str) -> dict[str, Any]:
    """Put a network in JSON by the name that it was built by, or as a label; and its tensors."""
    network = model.module_ if isinstance(model, NeuralNet) else model
    state = network.state_dict()
    recipe = getattr(model, "built_as", None)
    is_rebuilt = recipe is not None and _differences(_on_meta(recipe), state) is None
    return {
        "network": writer.members(recipe, where) if is_rebuilt else writer.label(model, where),
        "state": {name: writer.store(tensor, f"{where}.{name}") for name, tensor in state.items()},
        "frozen": [n for n, value in network.named_parameters() if not value.requires_grad],
        "training": [name for name, module in network.named_modules() if module.training],
    }


def _write_net(net: ImageNeuralNet, writer: Writer, where: str) -> dict[str, Any]:
    scaler = vars(net).get("scaler_")
    sizes = vars(net).get("gradient_sizes_")
    modules = _modules_of(net)
    _check_is_what_it_was_built_as(net, modules)
    return {
        "attributes": writer.members({name: vars(net)[name] for name in _NET}, where),
        "modules": {
            name: {
                entry: writer.store(tensor, f"{where}.{name}.{entry}")
                for entry, tensor in module.state_dict().items()
            }
            for name, module in modules.items()
        },
        "frozen": {
            name: [entry for entry, p in module.named_parameters() if not p.requires_grad]
            for name, module in modules.items()
        },
        "optimizer": writer.write(net.optimizer_.state_dict(), f"{where}.optimizer_"),
        "gradient_sizes": writer.write(sizes and sizes.averages, f"{where}.gradient_sizes_"),
        "scaler": writer.write(
            scaler.state_dict() if scaler is not None and scaler.is_enabled() else None, where
        ),
        "callbacks": [
            [name, writer.members(_learned_by(callback), f"{where}.callbacks.{name}")]
            for name, callback in net.callbacks_
        ],
        "history": writer.write([dict(row) for row in net.history], f"{where}.history"),
    }


def _learned_by(callback: Any) -> dict[str, Any]:
    known = _attributes_of(callback)
    return {name: vars(callback)[name] for name in known if name in vars(callback)}


def _attributes_of(callback: Any) -> dict[str, Any]:
    for kind, attributes in _CALLBACKS.items():
        if isinstance(callback, kind):
            return attributes
    return {}


def _modules_of(net: NeuralNet) -> dict[str, nn.Module]:
    """Return the networks and losses of a net, by attribute."""
    names = [f"{name}_" for name in [*net._modules, *net._criteria]]
    found = {name: getattr(net, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, nn.Module)}


def _write_settings(estimator: BaseEstimator) -> dict[str, Any]:
    """Return what ``set_output`` and the requests for metadata have set."""
    settings: dict[str, Any] = {}
    if "_sklearn_output_config" in vars(estimator):
        settings["output"] = dict(vars(estimator)["_sklearn_output_config"])
    if "_metadata_request" in vars(estimator):
        requests = vars(estimator)["_metadata_request"]
        settings["requests"] = {
            method: dict(getattr(requests, method).requests)
            for method in ("fit", "partial_fit", "score")
            if getattr(requests, method).requests
        }
    return settings


def _check_is_what_it_was_built_as(net: ImageNeuralNet, modules: Mapping[str, nn.Module]) -> None:
    """Refuse a network that its name does not make any more: it could not be loaded."""
    if not isinstance(net.module, str):
        return  # the reader brings it along
    wrong = _differences(_on_meta(_recipe_of(net)), modules["module_"].state_dict())
    if wrong:
        raise PersistenceError(
            f"The estimator is not what fit makes of its parameters, and could not be loaded: "
            f"{wrong}. Was module_ changed after fit? Give the changed network as module, or save "
            "it in a CAMExplainer."
        )


# Networks by name


def _recipe_of(net: ImageNeuralNet) -> dict[str, Any]:
    options = {name[8:]: v for name, v in vars(net).items() if name.startswith("module__")}
    sizes = {"n_classes": net.n_outputs, "in_channels": net.n_channels_}
    return {"name": net.module, **sizes, "image_size": net.input_size, **options}


def _on_meta(recipe: Mapping[str, Any]) -> nn.Module:
    """Build a network without its numbers, which takes no memory."""
    plain = (bool, int, float, str, tuple)
    wrong = [
        name
        for name, value in recipe.items()
        if not isinstance(value, plain) or (isinstance(value, int) and value > 2**16)
    ]
    if wrong:
        raise PersistenceError(f"no network is built with such a {wrong[0][:80]!r}")
    try:
        with torch.device("meta"):
            return build_model(**recipe)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise PersistenceError(f"no network is built like this: {error}") from error


def _differences(network: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Return in what respect tensors are not those of a network, if they are not."""
    own = network.state_dict()
    if own.keys() != state.keys():
        some = sorted(own.keys() ^ state.keys())[:5]
        return f"its tensors are others, such as {some}"
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


def _read_state(nodes: Any, reader: Reader) -> dict[str, Tensor]:
    return {name: reader.tensor(node) for name, node in _dict(nodes, "tensors").items()}


def _load(network: nn.Module, state: dict[str, Tensor], frozen: Any) -> None:
    wrong = _differences(network, state)
    if wrong:
        raise PersistenceError(f"it does not fit {type(network).__name__}: {wrong}")
    own = network.state_dict()  # with the layers' versions, which some refuse to be without
    own.update(state)
    network.load_state_dict(own)
    names = set(_list(frozen, "frozen parameters"))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad is (name in names):
            parameter.requires_grad_(name not in names)


def _read_network(node: dict[str, Any], reader: Reader) -> nn.Module | NeuralNet:
    state = _read_state(node.get("state"), reader)
    source = _dict(node["network"], "network")
    model: Any
    if "object" in source:
        model = reader.read(source)
        model = model() if isinstance(model, type) else model
    else:
        recipe = reader.members(source)
        wrong = _differences(_on_meta(recipe), state)
        if wrong:
            raise PersistenceError(f"it does not fit {str(recipe.get('name'))[:80]}: {wrong}")
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            model = build_model(**recipe)
    network = getattr(model, "module_", model) if isinstance(model, NeuralNet) else model
    if not isinstance(network, nn.Module):
        raise PersistenceError(
            f"objects has a {type(model).__name__} in the place of a network; give an nn.Module, "
            "its class, or a fitted skorch net around one"
        )
    _load(network, state, node.get("frozen"))
    training = set(_list(node.get("training"), "modules in training"))
    for name, module in network.named_modules():
        module.training = name in training
    return model


# Reading


def read_estimator(node: dict[str, Any], reader: Reader) -> Any:
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
    kind = node["estimator"]
    found = KINDS.get(kind) if isinstance(kind, str) else reader.read(kind)
    if not isinstance(found, type) or not issubclass(found, tuple(KINDS.values())):
        raise PersistenceError(f"{str(kind)[:80]!r} is not an estimator of sklcam")
    nodes = _dict(node.get("parameters"), "parameters")
    parameters = {name: _read_parameter(name, value, reader) for name, value in nodes.items()}
    try:
        estimator = found(**parameters)
    except TypeError as error:
        raise PersistenceError(f"{found.__name__} has no such parameters: {error}") from error
    learned = node.get("learned")
    if isinstance(estimator, ImageNeuralNet):
        if learned is not None:
            _fill_net(estimator, _dict(learned, "what was learned"), reader)
    elif isinstance(estimator, CAMExplainer):
        attributes = reader.members(learned)
        _check_attributes(attributes, _EXPLAINER, needed=())
        _check_layers(attributes.get("target_layers_", []))
        vars(estimator).update(attributes)
    _read_settings(estimator, node)
    return estimator


def _read_parameter(name: str, node: Any, reader: Reader) -> Any:
    if name == "model" and isinstance(node, dict) and "network" in node:
        return _read_network(node, reader)
    if name == "model" and isinstance(node, dict) and "estimator" in node:
        return read_estimator(node, reader)
    is_label = isinstance(node, dict) and "object" in node
    if name.startswith(_FOR_THE_READER) and node is not None and not is_label:
        raise PersistenceError(f"{name} may name what is run; a file holds no value for it")
    if name == "module" and not (isinstance(node, str) or is_label):
        raise PersistenceError("module is neither a name nor a label")
    value = reader.read(node)
    if name.endswith("num_workers") and not (type(value) is int and 0 <= value <= _MOST_WORKERS):
        raise PersistenceError(f"{name}={str(value)[:20]} is not a number of workers")
    return device_here(value) if name == "device" else value


def _fill_net(net: ImageNeuralNet, node: dict[str, Any], reader: Reader) -> None:
    attributes = reader.members(node.get("attributes"))
    _check_attributes(attributes, _NET, needed=_NET)
    _check_layers([attributes["target_layer_"]])
    if attributes["classes_inferred_"].ndim != 1 or math.prod(net.input_size) > _LARGEST_INPUT:
        raise PersistenceError("its classes or its image_size are of no network")
    _check_generators(attributes["random_states_"])
    nodes = _dict(node.get("modules"), "networks")
    states = {name: _read_state(entries, reader) for name, entries in nodes.items()}
    if isinstance(net.module, str):
        vars(net).update(attributes)
        wrong = _differences(_on_meta(_recipe_of(net)), states.get("module_", {}))
        if wrong:
            raise PersistenceError(f"it does not fit {net.module}: {wrong}")
    net.restore(attributes)
    modules = _modules_of(net)
    if modules.keys() != states.keys():
        raise PersistenceError(
            f"its parameters make the networks and losses {sorted(modules)}, and it holds "
            f"{sorted(states)}"
        )
    frozen = _dict(node.get("frozen"), "frozen parameters")
    for name, module in modules.items():
        _load(module, states[name], frozen.get(name))
    net.optimizer_.load_state_dict(reader.read(node.get("optimizer")))
    averages = reader.read(node.get("gradient_sizes"))
    if averages is not None and hasattr(net, "gradient_sizes_"):
        net.gradient_sizes_ = GradientSizes()
        net.gradient_sizes_.averages = _tensors(averages)
    scaler = reader.read(node.get("scaler"))
    if scaler is not None:
        vars(net)["scaler_"] = GradScaler(torch.device(net.device or "cpu").type)
        vars(net)["scaler_"].load_state_dict(_dict(scaler, "the scaler"))
    callbacks = dict(net.callbacks_)
    for pair in _list(node.get("callbacks"), "callbacks"):
        name, learned = pair if isinstance(pair, list) and len(pair) == 2 else ("", {})
        if not isinstance(name, str) or name not in callbacks:
            raise PersistenceError(f"there is no callback {str(name)[:80]!r}")
        values = reader.members(learned)
        _check_attributes(values, _attributes_of(callbacks[name]), needed=())
        vars(callbacks[name]).update(values)
    history = _list(reader.read(node.get("history")), "the history")
    vars(net)["history_"] = History([_dict(row, "an epoch of the history") for row in history])


def _read_settings(estimator: Any, node: dict[str, Any]) -> None:
    output = node.get("output")
    if output is not None:
        estimator.set_output(**_dict(output, "the output's configuration"))
    for method, requests in _dict(node.get("requests", {}), "requests").items():
        if method not in ("fit", "partial_fit", "score"):
            raise PersistenceError(f"{str(method)[:80]!r} requests no metadata")
        all_requests = estimator._get_metadata_request()
        for parameter, alias in _dict(requests, "requests").items():
            if not isinstance(alias, bool | str | None):
                raise PersistenceError("a request for metadata is neither yes, no nor a name")
            getattr(all_requests, method).add_request(param=parameter, alias=alias)
        estimator._metadata_request = all_requests


def _check_attributes(values: Mapping[str, Any], schema: Mapping[str, Any], needed: Any) -> None:
    wrong = [name for name in values if name not in schema]
    missing = [name for name in needed if name not in values]
    if wrong or missing:
        raise PersistenceError(f"{(wrong or missing)[0][:80]!r} is not learned, or is missing")
    for name, value in values.items():
        is_bool = isinstance(value, bool) and schema[name] is int
        if is_bool or not isinstance(value, schema[name]):
            raise PersistenceError(f"{name} is a {type(value).__name__}, which is never learned")


def _check_layers(layers: list[Any]) -> None:
    if not all(isinstance(layer, TargetLayer) for layer in layers):
        raise PersistenceError("a target layer is not one")


def _check_generators(states: dict[Any, Any]) -> None:
    """Refuse states of random generators that torch would not take."""
    names = {"seed", "global", "cuda", "views"}
    if set(states) != names or type(states["seed"]) is not int or type(states["cuda"]) is not list:
        raise PersistenceError("the states of the random generators are not complete")
    for state in (states["global"], states["views"]):
        try:
            torch.Generator().set_state(state)
        except (RuntimeError, TypeError) as error:
            raise PersistenceError(f"the state of a random generator is not one: {error}") from None


def _tensors(values: Any) -> dict[str, Tensor]:
    found = _dict(values, "averages")
    if not all(isinstance(value, Tensor) and value.ndim == 0 for value in found.values()):
        raise PersistenceError("the sizes of gradients are not numbers")
    return found


def _dict(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PersistenceError(f"its JSON has no {what}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise PersistenceError(f"its JSON has no {what}")
    return value


def device_here(device: Any) -> Any:
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
