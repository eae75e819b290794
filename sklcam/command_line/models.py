"""The model behind ``--model``, ready to explain."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from skorch import NeuralNet

from sklcam._validation import check_count
from sklcam.cam import get_method
from sklcam.embeddings import EmbeddingCAMExplainer
from sklcam.explain import CAMExplainer
from sklcam.explain.base import Explainable, Explainer
from sklcam.networks import Origin, build_model
from sklcam.networks.adapters import ModuleAdapter
from sklcam.networks.nested import unnest
from sklcam.persistence import PersistenceError, load
from sklcam.training.net import ImageNeuralNet

# Options about classes and images, most of which a trained classifier knows itself.
_OF_IMAGES = ("classes", "image_size", "resize", "mean", "std")
_OF_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")


def explainer_of(arguments: Namespace) -> Explainer:
    """Return an explainer of the requested model, on its device.

    Parameters
    ----------
    arguments : Namespace
        The arguments of a command that takes a model.

    Returns
    -------
    Explainer

    Raises
    ------
    ValueError
        If there is no such model or device, an option does not fit it, or no source says how to
        prepare images for its weights.
    """
    device = _device(arguments.device)
    method = None if arguments.method is None else method_of(arguments.method)
    options = {
        "classes": None if arguments.classes is None else _lines(Path(arguments.classes)),
        **{name: getattr(arguments, name) for name in ("image_size", "resize", "mean", "std")},
        "target_layer": arguments.layer,
        "precision": arguments.precision,
        "batch_size": arguments.batch_size,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if is_file(arguments.model):
        explainer = _of_file(arguments, given, device)
    else:
        explainer = _by_name(arguments, given | ({"method": method} if method else {}), device)
    if arguments.quiet and hasattr(explainer, "verbose"):
        explainer.verbose = 0
    return explainer


def is_file(model: str) -> bool:
    """Whether a model is a file rather than the name of a network."""
    return model.endswith(".sklcam") or os.path.isfile(model)


def methods_of(text: str | None) -> list[str]:
    """Return the methods in a comma-separated list; a ValueError if one does not exist."""
    names = [] if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        method_of(name)
    return names


def method_of(name: str) -> str:
    """Return the name of a method; a ValueError if there is no such method."""
    get_method(name).check()
    return name


def _by_name(arguments: Namespace, given: dict[str, Any], device: torch.device) -> Explainer:
    size = given.get("image_size")
    network = build_model(
        arguments.model,
        image_size=(size, size) if isinstance(size, int) else size,
        weights="DEFAULT" if arguments.weights is None else arguments.weights,
    )
    # Move the network first: whether it computes in a precision depends on its device.
    explainer = CAMExplainer(network.eval().to(device), **given).fit()
    if missing := _unknown(explainer):
        weights = arguments.weights or arguments.model
        raise ValueError(
            f"No source says how to prepare images for the weights of {weights}. Give "
            f"{_written(missing)} as in training. For many networks these are --image-size 224 "
            "--resize center_crop --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225."
        )
    return explainer


def _of_file(arguments: Namespace, given: dict[str, Any], device: torch.device) -> Explainer:
    if arguments.weights is not None:
        raise ValueError(
            f"--weights is for a network by name, and {arguments.model} is a file that has its "
            "own. Leave out --weights."
        )
    loaded = _loaded(arguments.model)
    makes_maps = isinstance(loaded, Explainable)
    if not makes_maps:
        raise ValueError(
            f"{arguments.model} holds a {type(loaded).__name__}, which makes no maps of classes. "
            "Load it in Python: sklcam.load(path)."
        )
    if "batch_size" in given:  # read at each use: no new fit needed
        check_count("--batch-size", size := given.pop("batch_size"))
        loaded.set_params(batch_size=size)
    explainer = loaded.as_explainer()
    if type(explainer) is EmbeddingCAMExplainer and "precision" in given:  # for its passes
        explainer.set_params(precision=given.pop("precision"))
    if given:
        explainer = _changed(arguments.model, explainer, given)
    # The file may choose how to resize; the other settings are facts about its network.
    if missing := [name for name in _unknown(explainer) if name != "resize"]:
        kind = type(explainer).__name__
        raise ValueError(
            f"No source says how to prepare images for the network in {arguments.model}. Give "
            f"{_written(missing)} as in training, or give them to the {kind} in Python, fit it, "
            "and save it again."
        )
    if arguments.device != "auto" or device.type != "cpu":
        _move(explainer, device)
    return explainer


def _loaded(path: str) -> Any:
    try:
        return load(path)
    except PersistenceError as error:
        if Path(path).suffix not in _OF_WEIGHTS:
            raise
        raise ValueError(
            f"{error} If the file holds only weights, give the name of their network: --model "
            f"torchvision/NAME, or timm/NAME, and --weights {path}."
        ) from error


def _changed(path: str, explainer: Explainer, given: dict[str, Any]) -> Explainer:
    """Return an explainer of the same model with other settings."""
    of_images = [name for name in _OF_IMAGES if name in given]
    if isinstance(explainer, NeuralNet) and not of_images:
        return CAMExplainer(explainer, **given).fit()
    is_trained_here = isinstance(getattr(explainer, "model_", None), NeuralNet)
    if type(explainer) is not CAMExplainer or (is_trained_here and of_images):
        raise ValueError(
            f"The {type(explainer).__name__} in {path} keeps the settings of its fit. Leave out "
            f"{_written(given)}."
        )
    fixed = {"model": explainer.model_, "weights": None, "task": explainer.task_ or "auto"}
    changed = CAMExplainer(**{**explainer.get_params(deep=False), **fixed, **given}).fit()
    if "classes" not in given:  # the fitted ones stay
        for name in ("output_names_", "classes_", "class_names_"):
            setattr(changed, name, getattr(explainer, name))
    return changed


def _written(names: Iterable[str]) -> str:
    """Return options as a command line writes them."""
    written = [name.removeprefix("target_").replace("_", "-") for name in names]
    return ", ".join(f"--{name}" for name in written)


def _unknown(explainer: Explainer) -> list[str]:
    """Return the settings of images that neither the network's source nor the user gives."""
    adapter = explainer.adapter
    if not isinstance(adapter, ModuleAdapter) or Origin(adapter.preprocessing()).is_known:
        return []
    given = adapter.preparation
    missing = [name for name in ("image_size", "resize") if getattr(given, name) is None]
    return missing + [name for name in ("mean", "std") if isinstance(getattr(given, name), str)]


def _device(name: str) -> torch.device:
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if n_cuda else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "meta":
        raise ValueError(f"--device must be auto, cpu, cuda, or one such as cuda:1; got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= n_cuda:
        raise ValueError(
            f"--device {name} does not exist: torch finds {n_cuda} CUDA devices. Give one of them, "
            "or cpu."
        )
    return device


def _move(explainer: Explainer, device: torch.device) -> None:
    model, _ = unnest(getattr(explainer, "model_", explainer))
    if isinstance(model, ImageNeuralNet):  # it also sends its images there
        model.device = device.type if device.index is None else str(device)
        for network in model.networks.values():
            network.to(device)
    explainer.adapter.network.to(device)


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file, without empty lines at its end."""
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    names = [line.strip() for line in lines]
    if not names or len(set(names)) < len(names) or not all(names):
        raise ValueError(f"{path} must have one class name in each line, each of them once.")
    return names
