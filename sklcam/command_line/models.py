"""What ``--model`` stands for, ready to explain."""

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

# Options that say something about the network, of which a trained classifier knows most itself.
_OF_IMAGES = ("classes", "image_size", "resize", "mean", "std")
_OF_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")


def explainer_of(arguments: Namespace) -> Explainer:
    """Return what explains by the model that is asked for, on its device.

    Parameters
    ----------
    arguments : Namespace
        Those of a command that takes a model.

    Returns
    -------
    Explainer

    Raises
    ------
    ValueError
        If there is no such model or device, an option does not fit it, or nobody says how images
        are prepared for its weights.
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
    """Whether a model is a file, and not the name of a network."""
    return model.endswith(".sklcam") or os.path.isfile(model)


def methods_of(text: str | None) -> list[str]:
    """Return the names of methods in a list with commas, each of which there is."""
    names = [] if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        method_of(name)
    return names


def method_of(name: str) -> str:
    """Return the name of a method; a ValueError if there is none that is called so."""
    get_method(name).check()
    return name


def _by_name(arguments: Namespace, given: dict[str, Any], device: torch.device) -> Explainer:
    size = given.get("image_size")
    network = build_model(
        arguments.model,
        image_size=(size, size) if isinstance(size, int) else size,
        weights="DEFAULT" if arguments.weights is None else arguments.weights,
    )
    # On its device before it is tried: whether it computes in a precision depends on that.
    explainer = CAMExplainer(network.eval().to(device), **given).fit()
    if missing := _unsaid(explainer):
        weights = arguments.weights or arguments.model
        raise ValueError(
            f"Nobody says how images are prepared for the weights of {weights}: give "
            f"{_written(missing)}, as it was trained. Of many networks that is --image-size 224 "
            "--resize center_crop --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225."
        )
    return explainer


def _of_file(arguments: Namespace, given: dict[str, Any], device: torch.device) -> Explainer:
    if arguments.weights is not None:
        raise ValueError(
            f"--weights is for a network by name; {arguments.model} is a file, with its own."
        )
    loaded = _loaded(arguments.model)
    makes_maps = isinstance(loaded, Explainable)
    if not makes_maps:
        raise ValueError(
            f"{arguments.model} holds a {type(loaded).__name__}, which makes no maps of classes: "
            "load it in Python, sklcam.load(path)."
        )
    if "batch_size" in given:  # which it reads when it is used
        check_count("--batch-size", size := given.pop("batch_size"))
        loaded.set_params(batch_size=size)
    explainer = loaded.as_explainer()
    if type(explainer) is EmbeddingCAMExplainer and "precision" in given:  # of its passes alone
        explainer.set_params(precision=given.pop("precision"))
    if given:
        explainer = _changed(arguments.model, explainer, given)
    # How images get to a size is a choice of the file's; these are facts about its network.
    if missing := [name for name in _unsaid(explainer) if name != "resize"]:
        kind = type(explainer).__name__
        raise ValueError(
            f"Nobody says how images are prepared for the network in {arguments.model}: give "
            f"{_written(missing)}, as it was trained; or give them to the {kind} in Python, fit "
            "it, and save it again."
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
            f"{error} Weights alone go with the name of their network: --model torchvision/NAME, "
            f"or timm/NAME, and --weights {path}."
        ) from error


def _changed(path: str, explainer: Explainer, given: dict[str, Any]) -> Explainer:
    """Return an explainer of the same model with other settings."""
    of_images = [name for name in _OF_IMAGES if name in given]
    if isinstance(explainer, NeuralNet) and not of_images:
        return CAMExplainer(explainer, **given).fit()
    is_trained_here = isinstance(getattr(explainer, "model_", None), NeuralNet)
    if type(explainer) is not CAMExplainer or (is_trained_here and of_images):
        raise ValueError(
            f"The {type(explainer).__name__} in {path} is as it was fitted: leave out "
            f"{_written(given)}."
        )
    fixed = {"model": explainer.model_, "weights": None, "task": explainer.task_ or "auto"}
    changed = CAMExplainer(**{**explainer.get_params(deep=False), **fixed, **given}).fit()
    if "classes" not in given:  # those of the labels that it was fitted with
        for name in ("output_names_", "classes_", "class_names_"):
            setattr(changed, name, getattr(explainer, name))
    return changed


def _written(names: Iterable[str]) -> str:
    """Return options as they are given."""
    written = [name.removeprefix("target_").replace("_", "-") for name in names]
    return ", ".join(f"--{name}" for name in written)


def _unsaid(explainer: Explainer) -> list[str]:
    """Return what neither the source of a network nor the user says of its images."""
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
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:1 and the like; got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= n_cuda:
        raise ValueError(f"--device {name} is not here: torch finds {n_cuda} CUDA devices.")
    return device


def _move(explainer: Explainer, device: torch.device) -> None:
    model, _ = unnest(getattr(explainer, "model_", explainer))
    if isinstance(model, ImageNeuralNet):  # to which it also sends its images
        model.device = device.type if device.index is None else str(device)
        for network in model.networks.values():
            network.to(device)
    explainer.adapter.network.to(device)


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file, without those at its end that are empty."""
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    names = [line.strip() for line in lines]
    if not names or len(set(names)) < len(names) or not all(names):
        raise ValueError(f"{path} must have the name of a class in each line, each of them once.")
    return names
