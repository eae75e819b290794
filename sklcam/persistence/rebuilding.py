"""Networks built anew from an estimator's parameters, as ``fit`` builds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor, nn

from sklcam.persistence.errors import PersistenceError
from sklcam.training.net import ImageNeuralNet

# Attributes that initialize makes, or that hold for a step.
_REMADE = {
    *("accelerator_", "callbacks_", "cuda_dependent_attributes_", "generator_", "history_"),
    *("in_step_", "init_context_", "initialized_", "parts_", "prefixes_", "scaler_", "tape_"),
    *("valid_generator_", "virtual_params_"),
}
_REMADE_OF_CALLBACKS = {
    *("X_indexing_", "checkpoint_", "lr_scheduler_", "pbar_", "policy_", "y_indexing_"),
}


def modules_of(net: NeuralNet) -> dict[str, nn.Module]:
    """Return the networks and losses of a net, by attribute."""
    names = [f"{name}_" for name in [*net._modules, *net._criteria]]
    found = {name: getattr(net, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, nn.Module)}


def learned_by(net_or_callback: Any) -> dict[str, Any]:
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


def check_rebuilt(net: NeuralNet, params: dict[str, Any]) -> None:
    """Refuse a network that is not the one that its parameters make: it could not be loaded."""
    if "accelerator" in params:  # other processes would be waited for
        return
    bare = type(net)(**{**params, "device": "cpu"})
    with building(bare, learned_by(net)):
        bare._initialize_virtual_params()
        bare._initialize_module()
        bare._initialize_criterion()
    modules = modules_of(net)
    built = modules_of(bare)
    try:
        check_same(built, modules, "networks and losses")
        for name, module in built.items():
            _check_state(module.state_dict(), modules[name].state_dict(), name)
    except PersistenceError as error:
        raise PersistenceError(
            f"The estimator is not what fit makes of its parameters, and could not be loaded: "
            f"{error}. Was module_ changed after fit? Give the changed network as module, or save "
            "it in a CAMExplainer."
        ) from None


def check_unpickling(params: dict[str, Any]) -> None:
    """Refuse the parameter by which the estimator would let other files run code."""
    given = params.get("torch_load_kwargs")
    if given is not None and given != {"weights_only": True}:
        raise PersistenceError(
            f"torch_load_kwargs={given!r} would let files that the estimator reads run code; leave "
            "it at None."
        )


@contextmanager
def building(net: NeuralNet, learned: dict[str, Any]) -> Iterator[None]:
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


def check_same(expected: Iterable[str], found: Iterable[str], what: str) -> None:
    """Raise an error if a file does not hold what the parameters make."""
    if set(expected) != set(found):
        raise PersistenceError(
            f"its parameters make the {what} {sorted(expected)}, and it holds {sorted(found)}"
        )


def _check_state(own: dict[str, Any], state: dict[str, Any], name: str) -> None:
    """Raise an error if tensors are not exactly those that a network has."""
    check_same(own, state, f"entries of {name}")
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


def load_state(module: nn.Module, state: dict[str, Any], name: str) -> None:
    """Fill a network with tensors, if they are exactly those that it has."""
    own = module.state_dict()  # with the layers' versions, which some refuse to be without
    _check_state(own, state, name)
    own.update(state)
    module.load_state_dict(own)
