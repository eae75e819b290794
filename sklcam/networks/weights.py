"""Weights: state dicts, read and fitted to a network with other classes or channels."""

from __future__ import annotations

import copy
import os
import re
import textwrap
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from sklcam._validation import describe
from sklcam.networks.dry_run import unwrap
from sklcam.networks.families import find_family

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # the entries of networks in checkpoints


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, head: str | None = None
) -> nn.Module:
    """Load a state dict from a file into a network, adapting the head and the stem.

    If the head is for other classes, it is left out and the network keeps its own. If the first
    convolution is for another number of channels, it is averaged over its input channels and
    repeated. Everything else must fit. No code in the file runs.

    Parameters
    ----------
    model : nn.Module
        The network to fill, in place.
    path : str or path
        A state dict, as a ``.safetensors`` file or written by `torch.save`, which may also hold it
        under "state_dict", "model_state_dict" or "model". Prefixes that wrappers such as
        `DataParallel`, `torch.compile` and Lightning's modules add to every name are removed.
    head : str or None, default=None
        Dotted name of the classification head. None is the last `Linear`, or the last `Conv2d` in a
        network without a `Linear`.

    Returns
    -------
    nn.Module
        `model`.

    Raises
    ------
    ValueError
        If the file cannot be read, holds anything but tensors, or does not fit the network. The
        network then stays as it was.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from sklcam.networks import build_model, load_weights
    >>> trained = build_model("squeezenet1_1", n_classes=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(trained.state_dict(), f"{folder}/trained.pt")
    ...     other = load_weights(build_model("squeezenet1_1", n_classes=5), f"{folder}/trained.pt")
    >>> torch.equal(other.features[0].weight, trained.features[0].weight)
    True
    >>> other.classifier[1].out_channels
    5
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path must be the path of a file; got {describe(path)}.")
    load_state(unwrap(model), read_state(path), repr(os.fspath(path)), head)
    return model


def find_weights(name: str, weights: str | os.PathLike[str] | WeightsEnum) -> WeightsEnum | Path:
    """Return the weights that a parameter names: published by torchvision, or in a file."""
    published = models.get_model_weights(name)
    member = str(weights).removeprefix(f"{published.__name__}.")
    if not isinstance(weights, os.PathLike) and member in published.__members__:
        return published[member]
    path = Path(str(weights))
    if path.is_file():
        return path
    raise ValueError(
        f"weights={str(weights)!r} is not the name of weights of {name}, and there is no such "
        f"file. Use one of {', '.join(published.__members__)}, or the path of a file."
    )


def fill(model: nn.Module, source: WeightsEnum | Path) -> None:
    """Load the weights that `find_weights` found."""
    if isinstance(source, Path):
        load_weights(model, source)
        return
    load_state(model, _download(source), str(source))
    # Some weights lack layers: IMAGENET1K_FEATURES has NaN for a classifier. These are drawn anew.
    for module in model.modules():
        if any(bool(parameter.isnan().any()) for parameter in module.parameters(recurse=False)):
            module.reset_parameters()  # type: ignore[operator]


def _download(weights: WeightsEnum) -> Mapping[str, Tensor]:
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise OSError(
            f"{weights} could not be downloaded from {weights.url} ({error}). Fetch the file by "
            "other means, and pass its path as weights."
        ) from error


def n_classes_in(path: str | os.PathLike[str], network: nn.Module) -> int | None:
    """Return the number of classes of the head in a file; None if the file has no head.

    Parameters
    ----------
    path : str or path
        The path of a state dict.
    network : nn.Module
        A network of the same kind for any number of classes, also on the meta device.
    """
    state = renamed_entries(network, read_state(path))
    weight = state.get(f"{_head_name(network)}.weight")
    return None if weight is None else len(weight)


def read_state(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """Return the state dict in a file, which holds tensors and nothing else."""
    try:
        if os.fspath(path).endswith(".safetensors"):
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for a damaged or foreign file, the unpickler may raise anything
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise ValueError(
            f"{os.fspath(path)!r} cannot be read as a state dict ({type(error).__name__}: "
            f"{reason}). Write it with torch.save(model.state_dict(), path). A file that holds "
            "anything but tensors is refused."
        ) from error
    # Checkpoints hold more, such as an epoch and an optimizer.
    while isinstance(state, Mapping):
        inner = [state[k] for k in _WRAPPERS if isinstance(state.get(k), Mapping)]
        if not inner:
            break
        state = inner[0]
    entries = state.items() if isinstance(state, Mapping) else ()
    if not entries or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in entries):
        raise ValueError(
            f"{os.fspath(path)!r} holds a {type(state).__name__} that is not a state dict. Give a "
            "dict of names and tensors, as torch.save(model.state_dict(), path) writes it."
        )
    return state


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], source: str, head: str | None = None
) -> None:
    """Load a state dict as :func:`load_weights` does; ``source`` is for the message."""
    fitted = _fit_state(model, state, head)
    before = copy.deepcopy(model.state_dict())
    try:
        model.load_state_dict(fitted)
    except RuntimeError as error:
        model.load_state_dict(before)  # the entries that fit have already been copied
        faults = str(error).splitlines()[1:5]
        named = " ".join(textwrap.shorten(line, 200, placeholder=" ...") for line in faults)
        raise ValueError(f"{source} does not fit {type(model).__name__}. {named}") from error


def _fit_state(
    model: nn.Module, state: Mapping[str, Tensor], head: str | None
) -> dict[str, Tensor]:
    own = model.state_dict()
    fitted = renamed_entries(model, state)
    family = find_family(model)
    for name in fitted.keys() - own.keys():
        if family is not None and name.startswith(family.auxiliary_heads):
            del fitted[name]
    if isinstance(model, models.VisionTransformer) and "encoder.pos_embedding" in fitted:
        fitted.update(interpolate_embeddings(model.image_size, model.patch_size, fitted))
    _fit_stem(fitted, own, stem_name(model))
    _fit_head(fitted, own, _head_name(model) if head is None else head)
    return fitted


class _StateDict(dict[str, Tensor]):
    """A state dict with the layers' versions, which are needed to read old files correctly."""

    _metadata: dict[str, dict[str, Any]]


def renamed_entries(model: nn.Module, state: Mapping[str, Tensor]) -> _StateDict:
    """Return a state dict without the prefix that wrappers have added to the network's names."""
    prefix = _common_prefix(state, model.state_dict())
    renamed = _StateDict((_unwrapped(name, prefix), state[name]) for name in state)
    # A plain dict has lost the versions, and MNASNet refuses to load at all without its own.
    versions = getattr(state, "_metadata", {prefix[:-1]: {"version": model._version}})
    renamed._metadata = {
        f"{layer}.".removeprefix(prefix)[:-1]: version
        for layer, version in versions.items()
        if f"{layer}.".startswith(prefix)
    }
    return renamed


def _common_prefix(names: Collection[str], own: Collection[str]) -> str:
    """Return the prefix that wrappers have added to every name.

    The network's own names may also share a prefix. The result is the shortest prefix whose removal
    leaves the most names of the network.
    """
    parts = next(iter(names)).split(".")
    prefixes = ["".join(f"{part}." for part in parts[:n]) for n in range(len(parts))]
    common = [prefix for prefix in prefixes if all(name.startswith(prefix) for name in names)]
    return max(common, key=lambda prefix: sum(_unwrapped(n, prefix) in own for n in names))


def _unwrapped(name: str, prefix: str) -> str:
    return _current_name(name.removeprefix(prefix))


def _current_name(name: str) -> str:
    """Update old names in the published DenseNets, such as "denselayer1.norm.1.weight"."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", name)


def _fit_stem(state: dict[str, Tensor], own: Mapping[str, Tensor], stem: str | None) -> None:
    entry = f"{stem}.weight"
    if stem is None or entry not in state or entry not in own:
        return
    kernel, wanted = state[entry], own[entry].shape
    if kernel.ndim == 4 and kernel.shape[1] != wanted[1]:
        # The mean over the old channels, times old / new: the response to a grey image is the same.
        state[entry] = (kernel.sum(dim=1, keepdim=True) / wanted[1]).repeat(1, wanted[1], 1, 1)


def _fit_head(state: dict[str, Tensor], own: Mapping[str, Tensor], head: str | None) -> None:
    if head is None:
        return
    kept = {name: value for name, value in own.items() if name.startswith(f"{head}.")}
    if all(name not in state or state[name].shape == value.shape for name, value in kept.items()):
        return
    # The names may differ too, as the file's head may be another kind of module.
    for name in [name for name in state if name.startswith(f"{head}.")]:
        del state[name]
    state.update(kept)


def stem_name(model: nn.Module) -> str | None:
    """Return the name of the convolution that takes the images; None if it cannot be adapted."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            # A kernel of several groups cannot be averaged over its channels.
            return name if module.groups == 1 else None
    return None


def redraw_stem(model: nn.Module, in_channels: int) -> None:
    """Give an untrained network a first convolution for another number of channels."""
    stem = model.get_submodule(stem_name(model) or "")
    assert isinstance(stem, nn.Conv2d)
    old = stem.weight.detach()
    # Torchvision's spread depends on the outputs, so it is right for any number of channels.
    kernel = old.new_empty(old.shape[0], in_channels, *old.shape[2:])
    stem.weight = nn.Parameter(kernel.normal_().mul_(old.std()))
    stem.in_channels = in_channels


def _head_name(model: nn.Module) -> str | None:
    # In a network without a linear layer, such as SqueezeNet, the head is a convolution.
    for kind in (nn.Linear, nn.Conv2d):
        names = [name for name, module in model.named_modules() if isinstance(module, kind)]
        if names:
            return names[-1]
    return None
