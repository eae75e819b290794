"""Networks of Hugging Face's transformers, by name or by a folder of ``save_pretrained``."""

from __future__ import annotations

import copy
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sklcam._callers import level_of_user
from sklcam.networks.named import (
    AnyWeights,
    Source,
    check_folder,
    check_hub,
    is_offline,
    missing,
)
from sklcam.networks.preprocessing import Origin, Preprocessing
from sklcam.networks.processors import read_processor
from sklcam.networks.weights import load_state, read_state

_REPOSITORY = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")
_FILES_OF_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


class TransformersSource(Source):
    """An image network of transformers: "OWNER/NAME", or the absolute path of a folder.

    If a configuration is given, nothing is looked up and the name is only shown.
    """

    def __init__(self, name: str, config: Any = None):
        self._auto = _transformers()
        self.where = name
        self._given = config
        if not name:
            raise ValueError(
                'The name "transformers/" is incomplete. Give "transformers/OWNER/NAME", or a '
                'folder as "transformers//path/of/the/folder".'
            )

    def build(
        self,
        n_classes: int | None,
        in_channels: int,
        image_size: tuple[int, int] | None,
        weights: AnyWeights,
        options: dict[str, Any],
    ) -> nn.Module:
        config = self._config(weights)
        wanted = self._changed(config, n_classes, in_channels, image_size, options)
        model: Any = self._from(wanted)
        if weights is not None and Path(str(weights)).is_file():
            state, source = dict(read_state(os.fspath(weights))), repr(str(weights))
            if n_classes is None and (n_in_file := _n_classes_in(state, model)):
                wanted = self._changed(config, n_in_file, in_channels, image_size, options)
                model = self._from(wanted)
            _load(model, state, source)
        elif weights is not None:
            where = self._where(weights)
            trained, lacking = self._trained(where)
            if lacking and n_classes is None:
                raise ValueError(
                    f"{where} has no weights for {', '.join(lacking[:4])}, as it was not trained "
                    "to classify images. Train it first, for example with ConsistentCAMClassifier."
                )
            state = {name: v for name, v in trained.state_dict().items() if name not in lacking}
            _load(model, {**model.state_dict(), **state} if lacking else state, where)
        model.built_as = {
            **{"name": f"transformers/{config.model_type}", "config": _architecture(wanted)},
            **{"n_classes": wanted.num_labels, "in_channels": in_channels},
            **{"image_size": image_size or _size_in(wanted)},
        }
        return model

    def origin(self, weights: AnyWeights) -> Origin:
        config = self._config(weights)
        names = None if weights is None else _names_in(config)
        if self._given is not None and (weights is None or not Path(str(weights)).is_dir()):
            return Origin(_by_default(config, f"transformers' {config.model_type}"), names)
        where = self._where(weights)
        with _fetching(where, weights, "preprocessor_config.json"):
            pass  # otherwise images would silently be prepared in another way when offline
        return Origin(_processor_of(where, config), names)

    def _where(self, weights: AnyWeights) -> str:
        """Return the folder or repository of the network with these weights."""
        if weights is None or str(weights) == "DEFAULT" or Path(str(weights)).is_file():
            return self.where
        if Path(str(weights)).is_dir():
            return os.fspath(weights)
        raise ValueError(
            f'weights={str(weights)!r} is neither "DEFAULT", for the published weights of '
            f"{self.where}, nor the path of a file or of a folder that save_pretrained wrote."
        )

    def _config(self, weights: AnyWeights) -> Any:
        if isinstance(self._given, Mapping):
            entries = dict(self._given)
            kind = entries.pop("model_type", self.where)
            return self._auto.AutoConfig.for_model(kind, **entries)
        if self._given is not None:
            return self._given
        where = self._where(weights)
        _check_name(where)
        with _fetching(where, weights, "config.json"):
            return self._auto.AutoConfig.from_pretrained(where, trust_remote_code=False)

    def _trained(self, where: str) -> tuple[nn.Module, list[str]]:
        with _fetching(where, "DEFAULT", *_FILES_OF_WEIGHTS):
            model, found = self._auto.AutoModelForImageClassification.from_pretrained(
                where, output_loading_info=True, trust_remote_code=False
            )
        return model.float(), sorted(found["missing_keys"])

    def _from(self, config: Any) -> nn.Module:
        try:
            model = self._auto.AutoModelForImageClassification.from_config(
                config, trust_remote_code=False
            )
        except ValueError as error:
            if "Unrecognized configuration" not in str(error):
                raise
            raise ValueError(
                f"transformers has no network of the kind {config.model_type!r} that classifies "
                "images. Pass an nn.Module that does."
            ) from error
        return model.float().train()

    def _changed(
        self,
        config: Any,
        n_classes: int | None,
        in_channels: int,
        image_size: tuple[int, int] | None,
        options: dict[str, Any],
    ) -> Any:
        config = copy.deepcopy(config)
        if n_classes is not None and n_classes != config.num_labels:
            config.num_labels = n_classes
        changes = dict(options)
        if in_channels != getattr(config, "num_channels", 3):
            changes["num_channels"] = in_channels
        if image_size is not None and _size_in(config) not in (None, image_size):
            changes["image_size"] = image_size[0] if len(set(image_size)) == 1 else [*image_size]
        for name, value in changes.items():
            if not hasattr(config, name):
                raise ValueError(
                    f"The configuration of {self.where} has no {name}. Leave it out, or use "
                    "another network."
                )
            setattr(config, name, value)
        return config


def origin_of_transformers(network: nn.Module) -> Origin | None:
    """Return how a network of transformers takes its images; None for any other network.

    Its image processor is read from the disk; nothing is downloaded.
    """
    config = getattr(network, "config", None)
    if not (hasattr(config, "model_type") and hasattr(network, "main_input_name")):
        return None
    where = str(getattr(config, "_name_or_path", "") or "")
    kind = type(network).__name__
    found = _processor_of(where, config, kind) if where else _by_default(config, kind)
    return Origin(found, _names_in(config))


def with_classes(network: nn.Module, n_classes: int) -> nn.Module:
    """Return a network of transformers with a new head, if it has another number of classes."""
    config: Any = getattr(network, "config", None)
    is_other = hasattr(config, "model_type") and hasattr(network, "main_input_name")
    if not is_other or getattr(network, "num_labels", n_classes) == n_classes:
        return network
    wanted = copy.deepcopy(config)
    wanted.num_labels = n_classes
    made = type(network)(wanted)
    first = next(network.parameters())
    made = made.to(first.device, first.dtype).train(network.training)
    _load(made, dict(network.state_dict()), type(network).__name__)
    return made


def is_builder(function: Any) -> bool:
    """Whether a function, or a partial of one, is ``from_pretrained`` of a class for images."""
    inner = getattr(function, "func", function)
    kind = getattr(inner, "__self__", None)
    return (
        getattr(inner, "__name__", "") == "from_pretrained"
        and str(getattr(kind, "__module__", "")).startswith("transformers.")
        and "ForImageClassification" in getattr(kind, "__name__", "")
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise missing("transformers") from error
    return transformers


def _check_name(where: str) -> None:
    """Raise a ValueError unless this is an existing folder or the name of a repository."""
    if Path(where).is_dir():
        return
    if os.path.isabs(where) or not _REPOSITORY.fullmatch(where):
        check_folder(where)


@contextmanager
def _fetching(where: str, weights: AnyWeights, *files: str) -> Iterator[None]:
    """Turn the error of a missing file into one that says which files to fetch."""
    is_folder = Path(where).is_dir()
    try:
        if not is_folder:
            check_hub(where, *files)
        yield
    except Exception as error:
        if not is_offline(error):
            raise
        # These include the files that are needed later.
        needed = "config.json and preprocessor_config.json"
        if weights is not None and not Path(str(weights)).is_file():
            needed = "config.json, preprocessor_config.json and model.safetensors"
        if is_folder:
            raise ValueError(
                f"transformers cannot read the folder {where!r}. It must hold {needed}, as "
                f"save_pretrained writes them. {error}"
            ) from error
        folder = os.path.abspath(f"/{where}")
        meant = f' Do you mean the folder "transformers/{folder}"?' if os.path.isdir(folder) else ""
        raise OSError(
            f"transformers' {where} could not be downloaded ({error}).{meant} Fetch {needed} from "
            f"https://huggingface.co/{where} by other means, put them into one folder, and give "
            'that: "transformers//path/of/the/folder".'
        ) from error


def _processor_of(where: str, config: Any, instance: str | None = None) -> Preprocessing:
    """Return the preprocessing of the image processor that is stored with a network."""
    shown = instance or f"transformers' {where}"
    try:
        processor = _transformers().AutoImageProcessor.from_pretrained(
            where, trust_remote_code=False, **({"local_files_only": True} if instance else {})
        )
    except Exception as error:  # a missing or unknown processor may raise anything
        if instance is None:
            reason = " ".join(str(error).split())[:200]
            warnings.warn(
                f"The image processor of {where} cannot be read ({reason}). Images are prepared "
                "with ImageNet's mean and standard deviation unless mean=, std=, image_size= and "
                "resize= say otherwise.",
                stacklevel=level_of_user(),
            )
        return _by_default(config, shown)
    return read_processor(processor, f"the image processor of {where}")


def _by_default(config: Any, shown: str) -> Preprocessing:
    return Preprocessing.by_default(shown, _size_in(config))


def _size_in(config: Any) -> tuple[int, int] | None:
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    return (int(size[0]), int(size[1])) if is_pair else None  # type: ignore[index]


def _names_in(config: Any) -> tuple[str, ...] | None:
    names = getattr(config, "id2label", None) or {}
    given = [names.get(i, names.get(str(i))) for i in range(len(names))]
    if not given or given == [f"LABEL_{i}" for i in range(len(given))] or None in given:
        return None
    return tuple(map(str, given))


def _architecture(config: Any) -> dict[str, Any]:
    """Return the entries of a configuration that describe the architecture and nothing else."""
    of_all = _transformers().PretrainedConfig().to_dict().keys() | {"architectures", "dtype"}
    entries = config.to_dict().items()
    return {key: v for key, v in entries if key == "model_type" or key not in of_all}


def _n_classes_in(state: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """Return the number of classes of the weights' head, if it differs from the network's."""
    for name, value in model.state_dict().items():
        if name in state and _is_other_head(state[name], value, model):
            return len(state[name])
    return None


def _is_other_head(given: Tensor, own: Tensor, model: nn.Module) -> bool:
    if given.shape == own.shape or not own.ndim or given.ndim != own.ndim:
        return False
    return len(own) == getattr(model, "num_labels", None) and given.shape[1:] == own.shape[1:]


def _load(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load weights, except heads of other classes; interpolate embeddings of other positions."""
    own = model.state_dict()
    for name, value in own.items():
        given = state.get(name)
        if given is None or given.shape == value.shape:
            continue
        if _is_other_head(given, value, model):
            state[name] = value
        elif "position_embedding" in name and value.ndim == 3:
            state[name] = _at_other_positions(given, value.shape[1])
    load_state(model, state, source)


def _at_other_positions(embeddings: Tensor, n_positions: int) -> Tensor:
    """Interpolate the embeddings of a square grid to a new size, and keep the prefix tokens'."""
    old = math.isqrt(embeddings.shape[1])
    new = math.isqrt(n_positions)
    n_prefix = embeddings.shape[1] - old**2
    if n_positions - new**2 != n_prefix or n_prefix > 2:
        return embeddings  # load_state raises the error
    prefix, grid = embeddings[:, :n_prefix], embeddings[:, n_prefix:]
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return torch.cat([prefix, grid.permute(0, 2, 3, 1).reshape(1, new**2, -1)], dim=1)
