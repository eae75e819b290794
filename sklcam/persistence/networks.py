"""Networks in files: a name from which they are built, or a label, and their numbers.

A name stands only for what the library builds by itself: no file is read for it, and nothing is
downloaded. Networks are built first on the meta device, where they take no memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from inspect import signature
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor, nn

from sklcam._validation import check_size
from sklcam.images import Resizing
from sklcam.networks import Origin, Preprocessing, build_model, origin_of
from sklcam.networks.dry_run import generators_lock
from sklcam.persistence.errors import PersistenceError
from sklcam.persistence.values import Reader, Writer, expect

LARGEST_INPUT = 2**26  # pixels
_LARGEST_OPTION = 2**16  # of a network's builder, which may loop that often
_MOST_NAMES = 2**16

# Networks of torchvision, of timm, and of transformers, which need a configuration. A name is
# neither a folder nor a repository.
_NAME = re.compile(r"(torchvision/|timm/|transformers/)?[\w.\-]+", re.ASCII)
_WORD = re.compile(r"[\w.\- ]{0,64}", re.ASCII)
# The arguments of a timm network whose words are looked up in tables.
_WORDS = ("act_layer", "global_pool", "norm_layer")
# With these, a configuration could name programs or other networks to fetch.
_FETCHED = re.compile(
    r".*(backbone|auto_map|quantization|attn_implementation|experts_implementation|kernel"
    r"|architecture|name_or_path|model_args|commit|torchscript).*"
)
_DEEPEST, _MOST_ENTRIES = 4, 1024


def write_network(model: nn.Module | NeuralNet, writer: Writer, where: str) -> dict[str, Any]:
    """Write a network as the name from which it was built, or as a label, with its tensors."""
    network = model.module_ if isinstance(model, NeuralNet) else model
    recipe = getattr(model, "built_as", None)
    is_built = recipe is not None and _is_made_by(recipe, network)
    origin = write_origin(origin_of(network)) if is_built else None
    return {
        "network": writer.write(recipe, where) if is_built else writer.label(model, "model"),
        "numbers": writer.write(numbers_of(network), where),
        "origin": writer.write(origin, where),
    }


def read_network(node: Any, reader: Reader) -> nn.Module | NeuralNet:
    """Make a network from the JSON of :func:`write_network`."""
    source, numbers, origin = entries(node, "network", "numbers", "origin")
    model, numbers = reader.read(source, "model"), reader.read(numbers)
    is_built = isinstance(model, dict)
    if is_built:
        check_fit(on_meta(model), numbers["state"])
        with generators_lock, torch.random.fork_rng(range(torch.cuda.device_count())):
            model = build_model(**model)
        vars(model)["origin"] = read_origin(reader.read(origin))
    elif isinstance(model, type) and issubclass(model, nn.Module):
        model = model()
    network = vars(model).get("module_") if isinstance(model, NeuralNet) else model
    if not isinstance(network, nn.Module):
        raise PersistenceError(
            f"objects has a {type(model).__name__} in place of a network; pass an nn.Module, its "
            "class, or a fitted skorch net around one"
        )
    load_numbers(network, numbers, is_built=is_built)
    return model


def _is_made_by(recipe: Mapping[str, Any], network: nn.Module) -> bool:
    try:
        made = on_meta(recipe)
    except PersistenceError:
        raise
    except Exception:  # not every network can be built without numbers
        return False
    return not misfit(made, network.state_dict())


def numbers_of(network: nn.Module) -> dict[str, Any]:
    """Return the tensors of a network, and which of its parts are frozen or in training mode."""
    return {
        "state": network.state_dict(),
        "frozen": [name for name, p in network.named_parameters() if not p.requires_grad],
        "training": [name for name, part in network.named_modules() if part.training],
    }


def load_numbers(network: nn.Module, numbers: Any, *, is_built: bool) -> None:
    """Load the numbers of a file into a network, which must need exactly these."""
    state, frozen, in_training = entries(numbers, "state", "frozen", "training")
    check_fit(network, state)
    own = network.state_dict()  # with the layers' versions, which some layers require
    for name, value in own.items() if is_built else ():
        # Tables such as Swin's relative positions are indices, and a GPU does not check these.
        is_table = value.ndim > 0 and not value.is_floating_point()
        if is_table and not torch.equal(value.cpu(), state[name]):
            raise PersistenceError(f"{name} is a table that is not learned, and differs")
    own.update(state)
    network.load_state_dict(own)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad is (name in frozen):
            parameter.requires_grad_(name not in frozen)
    for name, part in network.named_modules():
        part.training = name in in_training


# Names


def on_meta(recipe: Mapping[str, Any]) -> nn.Module:
    """Build a network by name without its numbers, which takes no memory."""
    check_recipe(recipe)
    with torch.device("meta"):
        return build_model(**recipe)


def check_recipe(recipe: Any) -> None:
    """Refuse a recipe that would make ``build_model`` fetch something, or never end."""
    sizes = ("name", "n_classes", "in_channels", "image_size")
    name = expect(recipe, dict, "network").get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PersistenceError(f"{str(name)[:80]!r} is not a network that a file may name")
    if name.startswith("transformers/") and not isinstance(recipe.get("config"), dict):
        raise PersistenceError("a network of transformers has no configuration")
    size = check_size(recipe.get("image_size"), "image_size")
    if math.prod(size) > LARGEST_INPUT:
        raise PersistenceError(f"image_size={size} has more than {LARGEST_INPUT} pixels")
    check_options({key: value for key, value in recipe.items() if key not in sizes})


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that could make a builder read files, or never end."""
    for name, value in options.items():
        if name == "config":
            _check_config(value, 0)
            continue
        numbers = value if isinstance(value, tuple) and len(value) <= 8 else (value,)
        is_free = name not in signature(build_model).parameters
        if name in _WORDS and isinstance(value, str) and _WORD.fullmatch(value):
            continue
        if not is_free or not all(isinstance(n, bool | int | float | None) for n in numbers):
            raise PersistenceError(f"{name[:80]!r} is not an option of networks built by name")
        if any(n is not None and not abs(n) <= _LARGEST_OPTION for n in numbers):
            raise PersistenceError(f"{name[:80]!r} is too large for an option of a network")


def _check_config(value: Any, depth: int) -> None:
    """Refuse a configuration of transformers that holds more than numbers and words."""
    items: Any = ()
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or _FETCHED.fullmatch(key):
                raise PersistenceError(f"a configuration may not have {str(key)[:80]!r}")
        if depth == 0 and value.get("model_type") == "timm_wrapper":
            raise PersistenceError("a configuration may not name a network of another library")
        items = value.values()
    elif isinstance(value, list | tuple):
        items = value
    elif isinstance(value, str):
        if not _WORD.fullmatch(value):
            raise PersistenceError(f"a configuration may not have {value[:80]!r}")
    elif not isinstance(value, bool | int | float | None):
        raise PersistenceError(f"a configuration may not have a {type(value).__name__}")
    elif value is not None and not abs(value) <= _LARGEST_OPTION:
        raise PersistenceError(f"{str(value)[:40]} is too large for a configuration")
    if depth > _DEEPEST or len(items) > _MOST_ENTRIES:
        raise PersistenceError("a configuration is nested too deeply, or has too many entries")
    for item in items:
        _check_config(item, depth + 1)


# Where networks come from


def write_origin(origin: Origin) -> dict[str, Any] | None:
    """Return what is known about a network as plain values, or None if nothing is known."""
    preprocessing = origin.preprocessing
    if isinstance(preprocessing.mean, str) and origin == Origin():
        return None
    plain = {name: getattr(preprocessing, name) for name in preprocessing.__dataclass_fields__}
    return {
        "preprocessing": {**plain, "resizing": asdict(preprocessing.resizing)},
        "class_names": None if origin.class_names is None else [*origin.class_names],
    }


def read_origin(value: Any) -> Origin:
    """Return what is known about a network, and refuse anything else."""
    if value is None:
        return Origin()
    plain, names = entries(value, "preprocessing", "class_names")
    try:
        resizing = Resizing(**expect(plain, dict, "preprocessing").pop("resizing"))
        preprocessing = Preprocessing(**plain, resizing=resizing)
        n_pixels = math.prod(preprocessing.image_size)
        preprocessing.of_channels(1)
    except (TypeError, ValueError, KeyError) as error:
        raise PersistenceError(
            f"it does not say clearly how images are prepared: {error}"
        ) from error
    if n_pixels > LARGEST_INPUT or not isinstance(preprocessing.source, str):
        raise PersistenceError("it does not say clearly how images are prepared")
    if names is None:
        return Origin(preprocessing)
    expect(names, list, "names of classes")
    if len(names) > _MOST_NAMES or not all(isinstance(name, str) for name in names):
        raise PersistenceError("the names of classes are not names")
    return Origin(preprocessing, tuple(names))


# Checks


def check_fit(network: nn.Module, state: Any) -> None:
    """Refuse tensors that do not fit a network."""
    wrong = misfit(network, expect(state, dict, "tensors"))
    if wrong:
        raise PersistenceError(f"it does not fit {type(network).__name__}: {wrong}")


def misfit(network: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Return how tensors differ from those of a network; None if they fit."""
    own = network.state_dict()
    if own.keys() != state.keys():
        return f"names of tensors differ, such as {sorted(own.keys() ^ state.keys())[:5]}"
    for name, value in own.items():
        given = state[name]
        if not isinstance(value, Tensor) or not isinstance(given, Tensor):
            return f"{name} is not a tensor"
        if (given.shape, given.dtype) != (value.shape, value.dtype):
            return (
                f"{name} must be of shape {tuple(value.shape)} and dtype {value.dtype}; it is of "
                f"shape {tuple(given.shape)} and dtype {given.dtype}"
            )
    return None


def entries(node: Any, *names: str) -> list[Any]:
    """Return the entries of an object in the JSON, which must have these and no others."""
    if expect(node, dict, "entries").keys() != set(names):
        raise PersistenceError(f"its JSON has {[*node][:8]} in place of {list(names)}")
    return [node[name] for name in names]
