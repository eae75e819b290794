"""Backbones by name, their heads, their target layers.

This is where a name such as "resnet18" becomes a network with the wanted classes and channels, and
where a network is asked which of its layers to explain. It trains nothing and computes no maps.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchvision import models as zoo
from torchvision.models import WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings

from sklcam.arguments import check_callable, check_count, check_size, check_tensor, describe

__all__ = [
    "TargetLayer",
    "available_models",
    "build_model",
    "check_output",
    "construct",
    "find_target_layer",
    "load_weights",
]


# --- networks by name -----------------------------------------------------------------------------


def available_models() -> list[str]:
    """List the names that `build_model` takes.

    Returns
    -------
    list of str
        The classification networks of the installed torchvision, sorted.

    Examples
    --------
    >>> from sklcam.models import available_models
    >>> "resnet18" in available_models()
    True
    """
    return zoo.list_models(module=zoo)


def build_model(
    name: str,
    *,
    n_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (224, 224),
    weights: str | os.PathLike[str] | WeightsEnum | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a torchvision network with a head and a stem of the wanted size.

    Parameters
    ----------
    name : str
        One of `available_models()`, in any case.
    n_classes : int
        Number of outputs. The head of the weights is kept when it has as many, and is a fresh one
        otherwise.
    in_channels : int, default=3
        Channels of the images. The first convolution of the weights is averaged over its input
        channels and repeated, so that it answers a grey image as it did before; a random one is
        drawn with the same spread.
    image_size : tuple of int (height, width), default=(224, 224)
        Only a network whose parameters depend on it (vit, maxvit) needs it. Positional embeddings
        of weights for another size are interpolated.
    weights : str, path or None, default=None
        None for random initialisation, "DEFAULT", one of the network's torchvision weights
        ("IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"), or the path of a file with a state
        dict.
    **kwargs
        For torchvision's builder of that network, such as ``dropout``.

    Returns
    -------
    nn.Module
        In training mode; it maps a float Tensor of shape (n, in_channels, height, width) to logits
        of shape (n, n_classes), in training as in evaluation.

    Raises
    ------
    ValueError
        If the name, the weights or the image size do not fit.
    OSError
        If torchvision's weights cannot be downloaded.

    Notes
    -----
    GoogLeNet and Inception are built without their auxiliary heads. With three channels they
    rescale ImageNet's normalisation to the one their published weights expect (`transform_input`),
    whatever the weights are, so that a state dict means the same network wherever it came from.

    Examples
    --------
    >>> import torch
    >>> from sklcam.models import build_model
    >>> model = build_model("squeezenet1_1", n_classes=3, in_channels=1)
    >>> model(torch.zeros(2, 1, 64, 64)).shape
    torch.Size([2, 3])
    """
    name = _known_name(name)
    check_count("n_classes", n_classes)
    check_count("in_channels", in_channels)
    image_size = check_size(image_size, "image_size")
    if not isinstance(weights, str | os.PathLike | WeightsEnum | None):
        raise ValueError(f"weights must be a name, a path or None; got {describe(weights)}.")
    source = None if weights is None else _find_weights(name, weights)
    options = {**_builder_options(name, in_channels, image_size), **kwargs}
    model = zoo.get_model(name, weights=None, num_classes=n_classes, **options)
    if in_channels != 3:
        _redraw_stem(model, in_channels)
    if isinstance(source, WeightsEnum):
        _load_state(model, _download(source), str(source))
        _renew_blank_layers(model)
    elif source is not None:
        load_weights(model, source)
    return model


def _known_name(name: str) -> str:
    known = available_models()
    if str(name).lower() in known:
        return str(name).lower()
    raise ValueError(
        f"Unknown model {name!r}.{_closest(str(name).lower(), known)} available_models() lists all "
        "names; for any other network pass an nn.Module, its class or a callable that returns one."
    )


def _closest(name: str, candidates: Sequence[str]) -> str:
    """The end of a message about an unknown name."""
    matches = difflib.get_close_matches(name, candidates, n=5, cutoff=0.4)
    return f" Did you mean {', '.join(map(repr, matches))}?" if matches else ""


def _builder_options(name: str, in_channels: int, image_size: tuple[int, int]) -> dict[str, Any]:
    if name in ("googlenet", "inception_v3"):
        # init_weights is spelt out because torchvision warns when it is left to its default.
        return {"aux_logits": False, "init_weights": True, "transform_input": in_channels == 3}
    if name.startswith("vit_"):
        return {"image_size": _patchable_side(name, image_size)}
    if name.startswith("maxvit"):
        return {"input_size": tuple(image_size)}
    return {}


def _patchable_side(name: str, image_size: tuple[int, int]) -> int:
    patch = int(name.rsplit("_", 1)[-1])  # torchvision ends the name with it: vit_b_16
    height, width = image_size
    if height == width and height > 0 and height % patch == 0:
        return height
    side = patch * max(1, round(min(height, width) / patch))
    raise ValueError(
        f"{name} takes square images whose side is a multiple of {patch}, got "
        f"image_size={tuple(image_size)}; ({side}, {side}) would do."
    )


def _redraw_stem(model: nn.Module, in_channels: int) -> None:
    stem = model.get_submodule(_stem_name(model) or "")
    assert isinstance(stem, nn.Conv2d)
    old = stem.weight.detach()
    kernel = old.new_empty(old.shape[0], in_channels, *old.shape[2:])
    stem.weight = nn.Parameter(kernel.normal_().mul_(old.std()))
    stem.in_channels = in_channels


# --- weights --------------------------------------------------------------------------------------


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, head: str | None = None
) -> nn.Module:
    """Load a state dict from a file into a network, adapting the head and the stem.

    A head for other classes is left out: the network keeps its own. A first convolution for another
    number of channels is averaged over its input channels and repeated. All else must fit. No code
    runs from the file.

    Parameters
    ----------
    model : nn.Module
        The network to fill, in place.
    path : str or path
        A file written by `torch.save`: a state dict, or a dict that holds one under "state_dict" or
        "model". The prefixes that `DataParallel` and `torch.compile` leave on the names are taken
        off.
    head : str or None, default=None
        Dotted name of the classification head; None is the last `Linear`, or the last `Conv2d` of a
        network that has no `Linear`.

    Returns
    -------
    nn.Module
        `model`.

    Raises
    ------
    ValueError
        If the file cannot be read, holds anything but tensors, or does not fit the network, which
        is then left as it was.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from sklcam.models import build_model, load_weights
    >>> trained = build_model("squeezenet1_1", n_classes=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(trained.state_dict(), f"{folder}/trained.pt")
    ...     other = load_weights(build_model("squeezenet1_1", n_classes=5), f"{folder}/trained.pt")
    >>> torch.equal(other.features[0].weight, trained.features[0].weight)
    True
    >>> other.classifier[1].out_channels
    5
    """
    network = _unwrap(model)
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path must be the path of a file; got {describe(path)}.")
    _load_state(network, _read_state(path), repr(os.fspath(path)), head)
    return model


def _find_weights(name: str, weights: str | os.PathLike[str] | WeightsEnum) -> WeightsEnum | Path:
    published = zoo.get_model_weights(name)
    member = str(weights).removeprefix(f"{published.__name__}.")
    if not isinstance(weights, os.PathLike) and member in published.__members__:
        return published[member]
    path = Path(str(weights))
    if path.is_file():
        return path
    raise ValueError(
        f"weights={str(weights)!r} is no weights name of {name}, which has "
        f"{', '.join(published.__members__)}, and no such file exists."
    )


def _download(weights: WeightsEnum) -> Mapping[str, Tensor]:
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise OSError(
            f"{weights} could not be downloaded from {weights.url} ({error}). Fetch the file by "
            "other means and pass its path as weights."
        ) from error


def _read_state(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # a damaged or foreign file makes the unpickler raise nearly anything
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise ValueError(
            f"{os.fspath(path)!r} cannot be read as a state dict ({type(error).__name__}: "
            f"{reason}). Write it with torch.save(model.state_dict(), path): a file that holds "
            "anything but tensors is refused."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not _is_state_dict(state):
        raise ValueError(
            f"{os.fspath(path)!r} holds a {type(state).__name__} that is no state dict; a dict of "
            "names and tensors is expected, as torch.save(model.state_dict(), path) writes it."
        )
    return state


def _is_state_dict(state: object) -> bool:
    if not isinstance(state, Mapping) or not state:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())


def _load_state(
    model: nn.Module, state: Mapping[str, Tensor], source: str, head: str | None = None
) -> None:
    fitted = _fit_state(model, state, head)
    before = copy.deepcopy(model.state_dict())
    try:
        model.load_state_dict(fitted)
    except RuntimeError as error:
        model.load_state_dict(before)
        faults = [
            textwrap.shorten(line, 200, placeholder=" ...") for line in str(error).splitlines()[1:5]
        ]
        raise ValueError(
            f"{source} does not fit {type(model).__name__}. {' '.join(faults)}"
        ) from error


def _fit_state(
    model: nn.Module, state: Mapping[str, Tensor], head: str | None
) -> dict[str, Tensor]:
    own = model.state_dict()
    fitted = _rename_entries(model, state)
    for name in [name for name in fitted if name not in own and _is_auxiliary(model, name)]:
        del fitted[name]
    if isinstance(model, zoo.VisionTransformer) and "encoder.pos_embedding" in fitted:
        fitted.update(interpolate_embeddings(model.image_size, model.patch_size, fitted))
    _fit_stem(fitted, own, _stem_name(model))
    _fit_head(fitted, own, _head_name(model) if head is None else head)
    return fitted


class _StateDict(dict[str, Tensor]):
    """A state dict with the layers' versions, which old files need to be read as what they were."""

    _metadata: dict[str, dict[str, Any]]


def _rename_entries(model: nn.Module, state: Mapping[str, Tensor]) -> _StateDict:
    # A network may have a layer called "module" of its own.
    prefix = _wrapper_prefix(state).removesuffix(_wrapper_prefix(model.state_dict()))
    renamed = _StateDict((_current_name(name[len(prefix) :]), state[name]) for name in state)
    # A plain dict has lost the versions; without its own, MNASNet refuses to load at all.
    versions = getattr(state, "_metadata", {prefix[:-1]: {"version": model._version}})
    renamed._metadata = {
        f"{layer}.".removeprefix(prefix)[:-1]: version
        for layer, version in versions.items()
        if f"{layer}.".startswith(prefix)
    }
    return renamed


def _wrapper_prefix(names: Iterable[str]) -> str:
    """What DataParallel and torch.compile have put before every name."""
    wrappers = re.compile(r"^(?:module\.|_orig_mod\.)+")
    return min((name.removesuffix(wrappers.sub("", name)) for name in names), key=len, default="")


def _current_name(name: str) -> str:
    """The published DenseNets still carry names such as "denselayer1.norm.1.weight"."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2.", name)


def _is_auxiliary(model: nn.Module, name: str) -> bool:
    if isinstance(model, zoo.GoogLeNet):
        return name.startswith(("aux1.", "aux2."))
    return isinstance(model, zoo.Inception3) and name.startswith("AuxLogits.")


def _fit_stem(state: dict[str, Tensor], own: Mapping[str, Tensor], stem: str | None) -> None:
    entry = f"{stem}.weight"
    if stem is None or entry not in state or entry not in own:
        return
    kernel, wanted = state[entry], own[entry].shape
    if kernel.ndim == 4 and kernel.shape[1] != wanted[1]:
        # the mean over the old channels times old / new: a grey image is answered as before
        state[entry] = (kernel.sum(dim=1, keepdim=True) / wanted[1]).repeat(1, wanted[1], 1, 1)


def _fit_head(state: dict[str, Tensor], own: Mapping[str, Tensor], head: str | None) -> None:
    if head is None:
        return
    kept = {name: value for name, value in own.items() if name.startswith(f"{head}.")}
    if all(name not in state or state[name].shape == value.shape for name, value in kept.items()):
        return
    for name in [name for name in state if name.startswith(f"{head}.")]:
        del state[name]
    state.update(kept)


def _stem_name(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name if module.groups == 1 else None
    return None


def _head_name(model: nn.Module) -> str | None:
    for kind in (nn.Linear, nn.Conv2d):
        names = [name for name, module in model.named_modules() if isinstance(module, kind)]
        if names:
            return names[-1]
    return None


def _renew_blank_layers(model: nn.Module) -> None:
    """Draw anew what the weights leave out: IMAGENET1K_FEATURES has NaN for a classifier."""
    for module in model.modules():
        if any(bool(parameter.isnan().any()) for parameter in module.parameters(recurse=False)):
            module.reset_parameters()  # type: ignore[operator]


# --- networks of one's own ------------------------------------------------------------------------


def construct(
    module: nn.Module | Callable[..., nn.Module], *, n_classes: int, in_channels: int, **kwargs: Any
) -> nn.Module:
    """Make a network from a class, a callable or an instance.

    Parameters
    ----------
    module : nn.Module class, callable or nn.Module
        A class or callable is called; an instance is copied, so that training never touches the
        caller's.
    n_classes : int
        Passed as `num_classes` or `n_classes` if the signature names one of them; a bare `**kwargs`
        does not count.
    in_channels : int
        Passed as `in_channels` if the signature names it.
    **kwargs
        Passed on; they win over the two above.

    Returns
    -------
    nn.Module

    Raises
    ------
    ValueError
        If `module` is none of these, does not return an nn.Module, or is an instance and gets
        `kwargs`.

    Examples
    --------
    >>> from torch import nn
    >>> from sklcam.models import construct
    >>> class Net(nn.Sequential):
    ...     def __init__(self, in_channels=3, num_classes=10):
    ...         super().__init__(nn.Conv2d(in_channels, num_classes, 1), nn.Flatten())
    >>> construct(Net, n_classes=2, in_channels=1)[0]
    Conv2d(1, 2, kernel_size=(1, 1), stride=(1, 1))
    """
    if isinstance(module, nn.Module):
        return copy_instance(module, kwargs, "module")
    if not callable(module):
        raise ValueError(
            "module must be a torchvision name, an nn.Module (class or instance) or a callable "
            f"that returns one, got {module!r} of type {type(module).__name__}."
        )
    model = module(**_wanted_arguments(module, n_classes, in_channels, kwargs), **kwargs)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"{_title(module)} must return an nn.Module, it returned a {type(model).__name__}."
        )
    return model


def copy_instance(module: nn.Module, kwargs: dict[str, Any], name: str) -> nn.Module:
    """Copy a module that was given as a parameter; an error if it is to take parameters itself."""
    if kwargs:
        raise ValueError(
            f"{name} is an instance of {type(module).__name__}, which takes no parameters any "
            f"more, got {', '.join(sorted(kwargs))}; pass its class instead."
        )
    return copy.deepcopy(module)


def _wanted_arguments(
    module: Callable[..., nn.Module], n_classes: int, in_channels: int, kwargs: dict[str, Any]
) -> dict[str, int]:
    named = parameter_names(module)
    wanted: dict[str, int] = {}
    if not {"num_classes", "n_classes"} & kwargs.keys():
        wanted = {name: n_classes for name in ("num_classes", "n_classes") if name in named}
    if "in_channels" in named and "in_channels" not in kwargs:
        wanted["in_channels"] = in_channels
    return wanted


def parameter_names(function: Callable[..., Any]) -> set[str]:
    """Return the parameters that a function, or a class, takes by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a callable written in C may have no signature
        return set()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name for parameter in parameters if parameter.kind in by_name}


def _title(module: object) -> str:
    return getattr(module, "__name__", None) or repr(module)


def check_output(model: nn.Module, sample: Tensor, n_outputs: int, *, of: str = "classes") -> None:
    """Check by one dry run that a network takes such images and has as many outputs as it should.

    The network's mode, hooks, buffers and gradients, and the random generators, are left as they
    were found.

    Parameters
    ----------
    model : nn.Module
        Its output, or the first entry of it, are the logits, or an embedding.
    sample : float Tensor of shape (n, channels, height, width)
        One image will do.
    n_outputs : int
        How many are expected.
    of : str, default="classes"
        What there should be as many of, for the message.

    Raises
    ------
    ValueError
        If the network fails on the sample, or returns anything but a Tensor of shape
        (n, n_outputs).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.models import check_output
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    >>> check_output(model, torch.zeros(1, 3, 2, 2), 3)
    """
    check_tensor("sample", sample, "n_images", "channels", "height", "width")
    check_count("n_outputs", n_outputs)
    output = _run_dry(model, sample)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"module returned a {type(output).__name__} for {n_outputs} {of}; it must return a "
            f"Tensor of shape (n_images, {n_outputs}), or a tuple that begins with one."
        )
    if output.shape != (len(sample), n_outputs):
        raise ValueError(
            f"module returned shape {tuple(output.shape)} for {n_outputs} {of}, where "
            f"{(len(sample), n_outputs)} is wanted; give it num_classes={n_outputs}."
        )


# --- dry runs -------------------------------------------------------------------------------------


def _run_dry(model: nn.Module, sample: Tensor) -> Any:
    model = _unwrap(model)  # a dry run is no reason to compile
    first = next(model.parameters(), None)
    try:
        with _left_as_found(model):
            return model(sample if first is None else sample.to(first.device))
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        channels, size = sample.shape[1], " x ".join(map(str, sample.shape[2:]))
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise ValueError(
            f"{type(model).__name__} fails on images of {size} pixels and {channels} channel(s): "
            f"{reason} Try another image_size, or make sure that the network takes {channels} "
            "input channel(s)."
        ) from error


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes, buffers and random state are put back after it."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training  # not train(), which a network may have overridden
            for module, name, buffer, value in buffers:
                setattr(module, name, buffer.copy_(value))


def _unwrap(model: nn.Module) -> nn.Module:
    """The network inside a compiled one."""
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, nn.Module):
        raise ValueError(f"model must be an nn.Module; got {describe(model)}.")
    return inner


# --- target layers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class TargetLayer:
    """A layer to explain, and how its output becomes a grid of activations.

    Parameters
    ----------
    name : str
        Dotted name, as `model.get_submodule` takes it.
    layout : {"nchw", "nhwc", "tokens"}, default="nchw"
        Axes of the output: (n, K, u, v), (n, u, v, K) or (n, n_prefix + u * v, K).
    grid : tuple of int (u, v) or None, default=None
        Rows and columns of the tokens.
    n_prefix : int, default=0
        Tokens before the grid, such as a class token; they are dropped.
    reshape : callable or None, default=None
        For outputs that no layout describes: takes the output and returns it as (n, K, u, v),
        differentiably.

    Raises
    ------
    ValueError
        If the name is empty or no str, the layout is not among these or has tokens and no grid,
        `grid` is not of positive ints, `n_prefix` is no int >= 0, or `reshape` cannot be called.

    Examples
    --------
    >>> import torch
    >>> from sklcam.models import TargetLayer
    >>> TargetLayer("norm", layout="nhwc").to_grid(torch.zeros(1, 7, 9, 96)).shape
    torch.Size([1, 96, 7, 9])
    """

    name: str
    layout: Literal["nchw", "nhwc", "tokens"] = "nchw"
    grid: tuple[int, int] | None = None
    n_prefix: int = 0
    reshape: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("A target layer needs a name; the network as a whole cannot be one.")
        if not isinstance(self.name, str):
            raise ValueError(f"A target layer's name is a str; got {describe(self.name)}.")
        if self.layout not in ("nchw", "nhwc", "tokens"):
            raise ValueError(f'layout must be "nchw", "nhwc" or "tokens", got {self.layout!r}.')
        if self.layout == "tokens" and self.grid is None:
            raise ValueError(f"Target layer {self.name!r} has tokens; give grid=(rows, columns).")
        if self.grid is not None and not isinstance(self.grid, tuple):
            raise ValueError(f"grid must be a tuple (rows, columns); got {describe(self.grid)}.")
        if self.grid is not None:
            check_size(self.grid, "grid")
        check_count("n_prefix", self.n_prefix, 0)
        if self.reshape is not None:
            check_callable("reshape", self.reshape, "that makes (n, K, u, v) of the layer's output")

    def of(self, model: nn.Module) -> nn.Module:
        """Return the layer itself.

        Parameters
        ----------
        model : nn.Module
            The network the layer belongs to, compiled or not.

        Returns
        -------
        nn.Module

        Raises
        ------
        AttributeError
            If `model` has no layer of this name.
        """
        return _unwrap(model).get_submodule(self.name)

    def to_grid(self, tensor: Tensor) -> Tensor:
        """View activations, or their gradients, as a grid.

        Parameters
        ----------
        tensor : Tensor
            Output of the layer, in its layout.

        Returns
        -------
        Tensor of shape (n, K, u, v)
            A view; gradients flow through it.

        Raises
        ------
        ValueError
            If the tensor does not have the axes that the layout says.
        """
        if self.reshape is not None:
            return self._reshaped(tensor)
        self._check_axes(tensor)
        if self.layout == "nchw":
            return tensor
        if self.layout == "nhwc":
            return tensor.permute(0, 3, 1, 2)
        assert self.grid is not None
        return tensor[:, self.n_prefix :].transpose(1, 2).unflatten(2, self.grid)

    def channel_axis(self, tensor: Tensor) -> int:
        """Return which axis of the layer's output holds the channels.

        Parameters
        ----------
        tensor : Tensor
            Output of the layer, in its layout.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            If a `reshape` leaves that open.
        """
        if self.reshape is None:
            return 1 if self.layout == "nchw" else tensor.ndim - 1
        n_channels = self.to_grid(tensor).shape[1]
        fitting = [axis for axis in range(1, tensor.ndim) if tensor.shape[axis] == n_channels]
        if len(fitting) != 1:
            raise ValueError(
                f"Which axis of {tuple(tensor.shape)} holds the {n_channels} channels of "
                f"{self.name!r} cannot be told from its reshape; use a layout instead."
            )
        return fitting[0]

    def _reshaped(self, tensor: Tensor) -> Tensor:
        assert self.reshape is not None
        grid = self.reshape(tensor)
        if not isinstance(grid, Tensor) or grid.ndim != 4 or len(grid) != len(tensor):
            came = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
            raise ValueError(
                f"reshape must turn the output of {self.name!r}, of shape {tuple(tensor.shape)}, "
                f"into a Tensor (n, K, u, v) of as many images; it returned {came}."
            )
        return grid

    def _check_axes(self, tensor: Tensor) -> None:
        wanted = {"nchw": "(n, K, u, v)", "nhwc": "(n, u, v, K)", "tokens": "(n, tokens, K)"}[
            self.layout
        ]
        given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if not isinstance(tensor, Tensor) or tensor.ndim != wanted.count(",") + 1:
            raise ValueError(
                f"Target layer {self.name!r} should give a Tensor {wanted} in the {self.layout} "
                f"layout, got {given}; name another layer, or pass a TargetLayer with the right "
                "layout."
            )
        if self.grid is not None and self.layout == "tokens":
            n_tokens = self.n_prefix + math.prod(self.grid)
            if tensor.shape[1] != n_tokens:
                raise ValueError(
                    f"Target layer {self.name!r} should give {n_tokens} tokens ({self.n_prefix} "
                    f"and a grid of {self.grid}), got {tensor.shape[1]} in shape {given}."
                )


def find_target_layer(
    model: nn.Module, target_layer: str | TargetLayer = "auto", *, sample: Tensor | None = None
) -> TargetLayer:
    """Find the layer to explain, by name or by the network's family.

    Parameters
    ----------
    model : nn.Module
        A torchvision network, or any other.
    target_layer : str or TargetLayer, default="auto"
        A dotted name; a `TargetLayer` where the layout cannot be guessed from the class of the
        network; or "auto": the usual layer of torchvision's families, and for any other network the
        last of those that run once and give a Tensor of four axes with more than one position.
    sample : float Tensor of shape (1, channels, height, width) or None, default=None
        "auto" on networks of no known family needs it, for one dry run that leaves the network as
        it was found.

    Returns
    -------
    TargetLayer

    Raises
    ------
    ValueError
        If there is no such layer, or a sample is needed to find one.

    Examples
    --------
    >>> from sklcam.models import build_model, find_target_layer
    >>> find_target_layer(build_model("squeezenet1_1", n_classes=3))
    TargetLayer(name='features.12', layout='nchw', grid=None, n_prefix=0, reshape=None)
    """
    model = _unwrap(model)
    if sample is not None:
        check_tensor("sample", sample, "1", "channels", "height", "width")
    if isinstance(target_layer, TargetLayer):
        return replace(target_layer, name=_known_layer(model, target_layer.name))
    if not isinstance(target_layer, str):
        raise ValueError(
            "target_layer must be a layer's dotted name, such as 'features.3', a TargetLayer or "
            f"'auto'; got {describe(target_layer)}."
        )
    if target_layer != "auto":
        return _named_layer(model, _known_layer(model, target_layer))
    layer = _usual_layer(model)
    if layer is not None:
        return layer
    if sample is None:
        raise ValueError(
            f"No target layer is known for {type(model).__name__}: name one, as in "
            "target_layer='features.3', or give a sample to find one by a dry run."
        )
    return _last_spatial_layer(model, sample)


def _child(*path: str | int) -> str:
    return ".".join(map(str, path))


def _last_convnext_block(model: Any) -> TargetLayer:
    return TargetLayer(_child("features", len(model.features) - 1, len(model.features[-1]) - 1))


def _last_feature(model: Any) -> TargetLayer:
    return TargetLayer(_child("features", len(model.features) - 1))


def _before_last_pooling(model: Any) -> TargetLayer:
    return TargetLayer(_child("features", len(model.features) - 2))


def _last_vit_norm(model: Any) -> TargetLayer:
    # At the block's output only the class token has a gradient; before the attention, all have.
    return _vit_tokens(
        model, _child("encoder.layers", f"encoder_layer_{len(model.encoder.layers) - 1}", "ln_1")
    )


def _vit_tokens(model: Any, name: str) -> TargetLayer:
    side = model.image_size // model.patch_size
    return TargetLayer(name, layout="tokens", grid=(side, side), n_prefix=1)


def _layer(name: str, layout: Literal["nchw", "nhwc"] = "nchw") -> Callable[[Any], TargetLayer]:
    return lambda model: TargetLayer(name, layout)


_USUAL_LAYERS: tuple[tuple[type[nn.Module], Callable[[Any], TargetLayer]], ...] = (
    (zoo.ResNet, _layer("layer4")),
    (zoo.ConvNeXt, _last_convnext_block),
    (zoo.VGG, _before_last_pooling),
    (zoo.AlexNet, _before_last_pooling),
    (zoo.DenseNet, _layer("features")),
    (zoo.GoogLeNet, _layer("inception5b")),
    (zoo.Inception3, _layer("Mixed_7c")),
    (zoo.MobileNetV2, _last_feature),
    (zoo.MobileNetV3, _last_feature),
    (zoo.EfficientNet, _last_feature),
    (zoo.RegNet, _layer("trunk_output")),
    (zoo.ShuffleNetV2, _layer("conv5")),
    (zoo.SqueezeNet, _last_feature),
    (zoo.MNASNet, _layer("layers")),
    (zoo.VisionTransformer, _last_vit_norm),
    (zoo.SwinTransformer, _layer("norm", "nhwc")),
    (zoo.MaxVit, lambda model: TargetLayer(_child("blocks", len(model.blocks) - 1))),
)


def _usual_layer(model: nn.Module) -> TargetLayer | None:
    for family, find in _USUAL_LAYERS:
        if isinstance(model, family):
            return find(model)
    return None


def _known_layer(model: nn.Module, name: str) -> str:
    known = [layer for layer, _ in model.named_modules() if layer]
    found = name.removeprefix("_orig_mod.")
    if found in known:
        return found
    raise ValueError(
        f"{type(model).__name__} has no layer {name!r}.{_closest(found, known)} "
        "model.named_modules() lists all."
    )


def _named_layer(model: nn.Module, name: str) -> TargetLayer:
    prefix, network = _network_around(model, name)
    inner = name[len(prefix) :]
    if isinstance(network, zoo.VisionTransformer) and inner.startswith("encoder"):
        return _vit_tokens(network, name)
    # A convolution cuts the patches, and a permutation to channels first follows the last norm.
    channels_last = inner.startswith(("features", "norm")) and not isinstance(
        model.get_submodule(name), nn.Conv2d
    )
    if isinstance(network, zoo.SwinTransformer) and channels_last:
        return TargetLayer(name, layout="nhwc")
    return TargetLayer(name)


def _network_around(model: nn.Module, name: str) -> tuple[str, nn.Module | None]:
    """The innermost torchvision network that holds a layer, and the prefix of its layers' names."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        network = model.get_submodule(".".join(parts[:depth]))
        if _usual_layer(network) is not None:
            return "".join(f"{part}." for part in parts[:depth]), network
    return "", None


def _last_spatial_layer(model: nn.Module, sample: Tensor) -> TargetLayer:
    finished = _finished_layers(model, sample)
    # A layer that runs twice, such as a ReLU used after every convolution, has no one output.
    runs = Counter(name for name, _ in finished)
    spatial = [name for name, shape in finished if runs[name] == 1 and _is_spatial(shape)]
    if not spatial:
        raise ValueError(
            f"No layer of {type(model).__name__} gives a Tensor (n, K, u, v) with more than one "
            f"position for a sample of shape {tuple(sample.shape)}. Grad-CAM needs a layer with a "
            "spatial output: name it, as a TargetLayer where the axes are others."
        )
    # A torchvision network inside (behind a normalisation, say) has its usual layer, if that ran.
    prefix, network = _network_around(model, spatial[-1])
    usual = None if network is None else _usual_layer(network)
    if usual is not None and prefix + usual.name in dict(finished):
        return replace(usual, name=prefix + usual.name)
    return TargetLayer(spatial[-1])


def _finished_layers(model: nn.Module, sample: Tensor) -> list[tuple[str, torch.Size | None]]:
    """Names and output shapes of the layers as they finish: a container after its entries."""
    finished: list[tuple[str, torch.Size | None]] = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            finished.append((name, output.shape if isinstance(output, Tensor) else None))

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(record(name)).remove)
        _run_dry(model, sample)
    return finished


def _is_spatial(shape: torch.Size | None) -> bool:
    return shape is not None and len(shape) == 4 and shape[2] * shape[3] > 1
