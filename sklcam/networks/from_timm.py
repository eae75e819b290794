"""Networks of timm: by name, by a repository of the Hugging Face hub, or by a folder."""

from __future__ import annotations

import json
import os
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sklcam._validation import suggestion
from sklcam.images.frames import Resizing
from sklcam.networks import from_torchvision
from sklcam.networks.named import (
    AnyWeights,
    Source,
    check_folder,
    check_hub,
    is_offline,
    missing,
)
from sklcam.networks.preprocessing import Origin, Preprocessing
from sklcam.networks.weights import read_state, renamed_entries

# Options that build_model has parameters of its own for.
_RENAMED = {
    **{"num_classes": "n_classes", "in_chans": "in_channels", "img_size": "image_size"},
    **dict.fromkeys(("pretrained", "checkpoint_path", "cache_dir"), "weights"),
    **dict.fromkeys(("pretrained_cfg", "pretrained_cfg_overlay"), "weights"),
}
_MODES = {"squash": "stretch", "border": "pad"}  # else "center_crop"


class TimmSource(Source):
    """A network of timm: "NAME", "NAME.TAG", "hf-hub:OWNER/NAME" or "local-dir:FOLDER".

    These are timm's own names. A folder with an absolute path is also "timm//PATH".
    """

    def __init__(self, name: str):
        timm = _timm()
        kind, _, self.where = name.replace("hf_hub:", "hf-hub:").rpartition(":")
        self.kind = kind or "timm"
        self.architecture, _, self.tag = self.where.partition(".")
        if self.kind != "timm":
            return
        if not timm.is_model(self.architecture):
            raise ValueError(
                f"timm has no model {self.architecture!r}. {self._meant(timm.list_models())} "
                "timm.list_models() lists all names."
            )
        if self.tag and not self._has(self.tag):
            raise ValueError(
                f"timm has no weights {self.tag!r} of {self.architecture}. It has "
                f"{', '.join(self._tags()) or 'none'}."
            )

    def _meant(self, known: list[str]) -> str:
        if os.path.isdir(self.where):
            return f'A folder has this name: use "local-dir:{self.where}" for it.'
        if self.where in from_torchvision.names():
            return f'torchvision has one: use "torchvision/{self.where}".'
        return suggestion(self.architecture, known)

    def _has(self, tag: str) -> bool:
        try:
            name = f"{self.architecture}.{tag}"
            return _timm().get_pretrained_cfg(name, allow_unregistered=False) is not None
        except RuntimeError:
            return False

    def _tags(self) -> list[str]:
        names = _timm().list_models(f"{self.architecture}.*", pretrained=True)
        return [name.partition(".")[2] for name in names]

    def build(
        self,
        n_classes: int | None,
        in_channels: int,
        image_size: tuple[int, int] | None,
        weights: AnyWeights,
        options: dict[str, Any],
    ) -> nn.Module:
        for name in options.keys() & _RENAMED.keys():
            raise ValueError(f"{name} is not an option here. Use {_RENAMED[name]}= instead.")
        kind, where = self._chosen(weights)
        architecture, cfg, args = self._described(kind, where)
        given = {**args, **options, "in_chans": in_channels}
        given["num_classes"] = cfg.get("num_classes", 1000) if n_classes is None else n_classes
        own_size = tuple(cfg.get("input_size", (3, 224, 224))[1:])
        if image_size is not None and cfg.get("fixed_input_size") and image_size != own_size:
            given["img_size"] = image_size
        name = where if kind == "timm" else f"{kind}:{where}"
        create = partial(_timm().create_model, name, **given)
        try:
            if weights is None:
                model = create()
            elif isinstance(weights, str | os.PathLike) and Path(weights).is_file():
                model = create()
                if n_classes is None and (n_in_file := _n_classes_in(weights, model, cfg)):
                    given["num_classes"] = n_in_file
                    model = create(num_classes=n_in_file)
                model = _filled(model, architecture, cfg, given, Path(weights))
            else:
                _check_hub(kind, where, cfg)
                model = create(pretrained=True)
        except Exception as error:  # from timm, torch or a download, without a common class
            explained = self._explained(error, kind, where, given, cfg)
            if explained is None:
                raise
            raise explained from error
        # By its architecture, so that it can be built again without the folder or a connection.
        model.built_as = {
            **{"name": f"timm/{where if kind == 'timm' else architecture}"},
            **{"n_classes": given["num_classes"], "in_channels": in_channels},
            **{"image_size": image_size or own_size},
            **{key: value for key, value in args.items() if key not in _RENAMED},
            **options,
        }
        return model

    def origin(self, weights: AnyWeights) -> Origin:
        kind, where = self._chosen(weights)
        architecture, cfg, _ = self._described(kind, where)
        names = _names_in(cfg)
        is_published = weights is not None and not os.path.isfile(str(weights))
        if names is None and is_published:
            names = _names_of_imagenet(cfg)
        shown = where if kind == "timm" else f"{architecture} in {where}"
        return Origin(_read(cfg, shown), names)

    def _chosen(self, weights: AnyWeights) -> tuple[str, str]:
        """Return the kind and the name of the network with these weights."""
        if weights is None or str(weights) == "DEFAULT":
            return self.kind, self.where
        if isinstance(weights, str) and self.kind == "timm" and self._has(weights):
            return "timm", f"{self.architecture}.{weights}"
        if isinstance(weights, str | os.PathLike) and Path(weights).is_dir():
            return "local-dir", os.fspath(weights)
        if isinstance(weights, str | os.PathLike) and Path(weights).is_file():
            return self.kind, self.where
        has = f" timm has {', '.join(self._tags())}." if self.kind == "timm" else ""
        raise ValueError(
            f"weights={str(weights)!r} is not the name of weights of {self.where}, and there is "
            f'no such file or folder.{has} "DEFAULT" stands for the published weights.'
        )

    def _described(self, kind: str, where: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return the architecture, the configuration and the arguments that a name stands for."""
        from timm.models import load_model_config_from_hf

        if kind == "timm":
            cfg = _timm().get_pretrained_cfg(where)
            return self.architecture, {} if cfg is None else cfg.to_dict(), {}
        if kind == "local-dir":
            check_folder(where)
        read = load_model_config_from_hf if kind == "hf-hub" else _config_in_folder
        try:
            if kind == "hf-hub":
                check_hub(where, "config.json")
            cfg, architecture, args = read(where)
        except Exception as error:  # from a file or a download, without a common class
            explained = self._explained(error, kind, where, {}, {})
            if explained is None:
                raise
            raise explained from error
        if args and args.get("img_size") is not None:  # older files do not repeat it in input_size
            side, channels = args["img_size"], cfg.get("input_size", (3,))[0]
            cfg["input_size"] = (channels, *((side, side) if isinstance(side, int) else side))
        if self.kind == "timm" and architecture != self.architecture:
            raise ValueError(
                f"{where!r} holds the weights of {architecture}, not of {self.architecture}. "
                f'Build "timm/{architecture}" instead, or give other weights.'
            )
        return architecture, cfg, dict(args or {})

    def _explained(
        self,
        error: Exception,
        kind: str,
        where: str,
        given: dict[str, Any],
        cfg: dict[str, Any],
    ) -> Exception | None:
        """Return an error that explains another one and its remedy; None if it is not known."""
        if isinstance(error, AssertionError) or "img_size" in str(error):
            return ValueError(
                f"timm's {where} cannot be built for images of {given.get('img_size')}: {error}"
            )
        if isinstance(error, RuntimeError) and "No pretrained weights" in str(error):
            return ValueError(
                f"timm has no weights of {where}. Of {self.architecture} it has "
                f"{', '.join(self._tags()) or 'none'}. Give weights= the path of a file instead."
            )
        if kind == "local-dir" and isinstance(error, OSError | KeyError | RuntimeError):
            return ValueError(
                f"timm cannot read the folder {where!r}. It must hold config.json and "
                f"model.safetensors, as timm.models.save_for_hf writes them. {error}"
            )
        if is_offline(error):
            return OSError(
                f"timm's {where} could not be downloaded ({error}). {_instead(kind, where, cfg)}"
            )
        return None


def origin_of_timm(network: nn.Module) -> Origin | None:
    """Return how a network of timm takes its images; None for any other network."""
    cfg = getattr(network, "pretrained_cfg", None)
    if not isinstance(cfg, dict) or not {"mean", "input_size"} <= cfg.keys():
        return None
    size = getattr(getattr(network, "patch_embed", None), "img_size", None)
    found = _read(cfg, f"{cfg.get('architecture', 'a network')}", size)
    return Origin(found, _names_in(cfg) if _n_classes(network) == cfg.get("num_classes") else None)


def with_classes(network: nn.Module, n_classes: int) -> None:
    """Give a network of timm a new head, in timm's way, if it has another number of classes."""
    n_own, n_features = _n_classes(network), getattr(network, "num_features", None)
    reset = getattr(network, "reset_classifier", None)
    is_timm = isinstance(getattr(network, "pretrained_cfg", None), dict)
    # Without classes, it outputs its features.
    if is_timm and callable(reset) and n_own != n_classes and (n_own or n_features) != n_classes:
        reset(n_classes)


def _n_classes(network: nn.Module) -> int | None:
    return getattr(network, "num_classes", None)


def is_in_timm(name: str) -> bool:
    """Whether timm is installed and has a network of this name, with or without a tag."""
    try:
        return bool(_timm().is_model(name.partition(".")[0]))
    except ImportError:
        return False


def is_builder(function: Any) -> bool:
    """Whether a function, or a partial of one, builds a network of timm."""
    inner = function.func if isinstance(function, partial) else function
    if not str(getattr(inner, "__module__", "")).startswith("timm.models"):
        return False
    name = getattr(inner, "__name__", "")
    return name == "create_model" or bool(_timm().is_model(name))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise missing("timm") from error
    return timm


def _instead(kind: str, where: str, cfg: dict[str, Any]) -> str:
    """Return a sentence that says which files to fetch by other means, and how to name them."""
    repository = _repository(kind, where, cfg)
    if not repository:
        return f"Fetch {cfg.get('url')} by other means, and pass the path of that file as weights."
    if kind == "hf-hub":
        name = '"timm//path/of/the/folder", or timm\'s own "local-dir:/path/of/the/folder"'
    else:
        name = (
            'weights="/path/of/the/folder", or, without names of classes, '
            'weights="/path/of/model.safetensors"'
        )
    return (
        f"Fetch config.json and model.safetensors from https://huggingface.co/{repository} by "
        f"other means, put them into one folder, and give that: {name}."
    )


def _repository(kind: str, where: str, cfg: dict[str, Any]) -> str | None:
    """Return the repository of the Hugging Face hub that weights come from."""
    return where if kind == "hf-hub" else cfg.get("hf_hub_id")


def _check_hub(kind: str, where: str, cfg: dict[str, Any]) -> None:
    """Raise at once if published weights cannot be fetched."""
    repository = _repository(kind, where, cfg)
    # With this variable, timm uses weights that older versions have fetched elsewhere.
    if kind != "local-dir" and repository and not os.environ.get("TIMM_USE_OLD_CACHE"):
        own = cfg.get("hf_hub_filename")
        check_hub(repository, *([own] if own else ["model.safetensors", "pytorch_model.bin"]))


def _config_in_folder(folder: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return the configuration, the architecture and the arguments in a folder."""
    entries = json.loads((Path(folder) / "config.json").read_text())
    cfg = {**entries.get("pretrained_cfg", entries)}
    for name in ("num_classes", "label_names", "label_descriptions"):
        if name in entries:
            cfg[name] = entries[name]
    return cfg, entries["architecture"], entries.get("model_args", {})


def _read(cfg: dict[str, Any], shown: str, size: tuple[int, int] | None = None) -> Preprocessing:
    """Return the preprocessing that timm reads from a configuration, for evaluation."""
    data: Any = import_module("timm.data")
    read = data.resolve_data_config({}, pretrained_cfg=cfg or {"architecture": shown})
    mean = tuple(map(float, read["mean"]))
    mode: Any = _MODES.get(read["crop_mode"], "center_crop")
    return Preprocessing(
        image_size=tuple(size or read["input_size"][1:]),
        resizing=Resizing(
            mode,
            float(read["crop_pct"]),
            read["interpolation"],
            # The fill of timm: the mean for "border", black for a centre crop.
            tuple(round(255 * value) / 255 for value in mean) if mode == "pad" else (0.0,),
        ),
        mean=mean,
        std=tuple(map(float, read["std"])),
        source=f"timm's configuration of {shown}",
    )


def _names_in(cfg: dict[str, Any]) -> tuple[str, ...] | None:
    names, texts = cfg.get("label_names"), cfg.get("label_descriptions")
    if not names or len(names) != cfg.get("num_classes"):
        return None
    texts = texts if isinstance(texts, dict) else {}
    return tuple(str(texts.get(name, name)) for name in names)


def _names_of_imagenet(cfg: dict[str, Any]) -> tuple[str, ...] | None:
    data: Any = import_module("timm.data")
    subset = data.infer_imagenet_subset(cfg)
    return None if subset is None else tuple(data.ImageNetInfo(subset).label_descriptions())


def _heads(cfg: dict[str, Any]) -> list[str]:
    heads = cfg.get("classifier") or ()
    return [heads] if isinstance(heads, str) else [*heads]


def _n_classes_in(
    path: str | os.PathLike[str], network: nn.Module, cfg: dict[str, Any]
) -> int | None:
    """Return the number of classes of a file's head, if it differs from the published one."""
    state, usual = renamed_entries(network, read_state(path)), cfg.get("num_classes", 1000)
    found = [len(state[name]) for head in _heads(cfg) if (name := f"{head}.weight") in state]
    is_usual = not found or found[0] in (usual, usual + (cfg.get("label_offset") or 0))
    return None if is_usual else found[0]


def _filled(
    model: nn.Module,
    architecture: str,
    cfg: dict[str, Any],
    given: dict[str, Any],
    path: Path,
) -> nn.Module:
    """Return the network with a file's weights, as timm adapts them.

    A head for another number of classes keeps its own weights. Everything else must fit: with a new
    head, timm would silently skip whatever does not.
    """
    state: dict[str, Tensor] = dict(renamed_entries(model, read_state(path)))
    own, offset = model.state_dict(), 0
    for head in _heads(cfg):
        weight = f"{head}.weight"
        if weight not in state or weight not in own:
            continue
        n_in_file, n_wanted = len(state[weight]), len(own[weight])
        background = cfg.get("label_offset") or 0
        if background and n_in_file == n_wanted + background:
            offset = background
        elif n_in_file != n_wanted:
            for name in [name for name in own if name.startswith(f"{head}.")]:
                state[name] = own[name]
    overlay = {
        **{"state_dict": state, "file": None, "source": None, "custom_load": False},
        **{"num_classes": given["num_classes"], "label_offset": offset},
    }
    described = {**cfg, **overlay}
    try:
        filled = _timm().create_model(
            architecture, pretrained=True, pretrained_cfg=described, **given
        )
    except (RuntimeError, KeyError) as error:
        faults = " ".join(str(error).split())[:500]
        raise ValueError(
            f"{os.fspath(path)!r} does not fit timm's {architecture}: {faults}"
        ) from error
    filled.pretrained_cfg["state_dict"] = None  # else the network would keep it, and copies too
    return filled
