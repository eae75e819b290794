"""ONNX files: a network's outputs without sklcam and without torch.

A file takes images in [0, 1], as they are displayed, and normalises them itself. It returns the
network's outputs and, if they need no gradient, the maps of all classes. With a head of global
average pooling and one linear layer, Grad-CAM is CAM, whose weights are the same for every image.
"""

from __future__ import annotations

import json
import os
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sklcam._files import replacing
from sklcam._validation import describe
from sklcam._versions import REQUIRED, installed_versions
from sklcam.cam import CAM, GradCAM, Method, RecordedPass
from sklcam.images.normalization import to_unit_floats
from sklcam.networks.adapters import Adapter, LastStep, ModuleAdapter
from sklcam.networks.dry_run import first_output, left_as_found, unwrap
from sklcam.networks.inputs import Inputs, stem_of
from sklcam.networks.layers import module_of
from sklcam.networks.mixed_precision import InPrecision
from sklcam.networks.preprocessing import Origin, Preprocessing

if TYPE_CHECKING:
    from sklcam.explain.base import Explainer

Maps = Literal["auto"] | bool

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_OPSET = 18  # the oldest that torch writes, which most runtimes support
_LARGEST = 2**31 - 2**20  # bytes of weights: a file is a single message of less than 2 GiB
_N_IMAGES = 3  # in a sample
_N_CLASSES = 4  # gradients of these are compared with the linear layer
# How far rounding may move results from those of another implementation, relative to the largest.
# By default GPUs round the factors of products to 10 bits, while a file is checked on the CPU.
_ROUNDING, _ROUNDING_OF_GPUS = 1e-4, 1e-2


def write_onnx(
    explainer: Explainer, path: str | os.PathLike[str], X: Any, maps: Maps, card: str | None
) -> None:
    """Write an explainer's network to a file. See ``Explainer.export``."""
    _check_arguments(path, maps, card)
    adapter = explainer.adapter
    _check_adapter(adapter)
    _, onnxruntime, _ = map(_imported, _PACKAGES)
    with replacing(path) as file, torch.inference_mode(False), left_as_found(adapter.network):
        sample = _Sample(explainer, X)
        weights, reason = _class_weights(sample) if maps else (None, "maps=False")
        if reason and maps is True:
            raise ValueError(
                f"maps=True, but the file would have no maps: {reason}. To write it without them, "
                "set maps=False."
            )
        if reason and maps:
            warnings.warn(f"The file has no maps: {reason}.", stacklevel=3)
        names = [name for name, _ in _read(adapter, sample.output)]
        names += [] if weights is None else ["maps"]
        model = _to_onnx(_Deployed(sample, weights), sample.images, names)
        model.doc_string = "\n\n".join(filter(None, [card, _usage(sample, names)]))
        for name, value in _facts(sample, reason).items():
            model.metadata_props.add(key=name, value=json.dumps(value, default=str))
        data = _serialized(model)
        _check_answers(data, sample, names, onnxruntime)
        file.write(data)


# Checks


def _check_arguments(path: Any, maps: object, card: object) -> None:
    if not str(os.fspath(path)).endswith(".onnx"):
        raise ValueError(f'path must end in ".onnx"; got {describe(path)}.')
    if maps != "auto" and not isinstance(maps, bool):
        raise ValueError(f'maps must be "auto", True or False; got {describe(maps)}.')
    if not isinstance(card, str | None):
        raise ValueError(f"card must be a string, as model_card returns it; got {describe(card)}.")


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f'export needs the package {name}. It comes with: pip install "sklcam[onnx]"'
        ) from error


def _check_adapter(adapter: Adapter) -> None:
    name = type(adapter.network).__name__
    if isinstance(adapter, InPrecision):
        raise ValueError(
            f"The explainer runs {name} with precision={adapter.precision!r}, but a file computes "
            'in float32. Export an explainer with precision="fp32".'
        )
    if isinstance(adapter, LastStep):
        raise ValueError(
            "A file holds only a network, but the earlier steps of this pipeline change the "
            "images first. Export an explainer of the last step."
        )
    if isinstance(stem_of(adapter.network), nn.Conv3d):
        raise ValueError(
            f"{name} takes volumes, but a file prepares pictures. Use torch.onnx.export, which "
            "writes any network, without maps."
        )
    if adapter.task is None:
        raise ValueError(
            "A file holds a classifier or a regressor, but the output of "
            f"{name} is that of neither. Use torch.onnx.export, which writes any network, without "
            "maps."
        )
    tensors = [*adapter.network.parameters(), *adapter.network.buffers()]
    others = {each.dtype for each in tensors if each.is_floating_point()} - {torch.float32}
    if others:
        raise ValueError(
            f"{name} computes in {', '.join(sorted(map(str, others)))}, but a file in float32. "
            "Export an explainer of copy.deepcopy(network).float(), and compare its predictions."
        )
    n_bytes = sum(each.numel() * each.element_size() for each in tensors)
    if n_bytes > _LARGEST:
        raise _too_large(f"{name} has {n_bytes / 1e9:.2f} GB of weights")
    # A net trained by this library knows how its images were prepared. Other networks may not.
    if not isinstance(adapter, ModuleAdapter) or Origin(adapter.preprocessing()).is_known:
        return
    given = adapter.preparation
    wanted = {"image_size": given.image_size, "mean": given.mean, "std": given.std}
    missing = [f"{key}=" for key, each in wanted.items() if each is None or isinstance(each, str)]
    if missing:
        raise ValueError(
            f"A file prepares images for the network, but {name} does not say how. Give the "
            f"explainer {', '.join(missing)}, and fit it."
        )


def _too_large(what: str) -> ValueError:
    return ValueError(
        f"{what}, but an ONNX file holds less than {_LARGEST / 1e9:.2f} GB. Use "
        "torch.onnx.export(network, (images,), path, dynamo=True), which writes the weights to a "
        "second file. It takes the network's own input, and has no maps."
    )


class _Sample:
    """Some images, and the explainer's own results for them."""

    def __init__(self, explainer: Explainer, X: Any):
        self.explainer, self.adapter = explainer, explainer.adapter
        self.method: Method = explainer.as_method(None)
        self.images = _noise(self.adapter.blank()) if X is None else _some_of(explainer, X)
        self.preprocessing: Preprocessing = self.adapter.preprocessing(self.images.shape[1])
        device = next(self.adapter.network.parameters(), self.images).device
        self.images = self.images.to(device)
        self.inputs = Inputs(self.preprocessing.normalize(self.images))
        output = self.adapter.forward(self.inputs)
        if not bool(output.isfinite().all()):
            raise ValueError(
                "The network returns NaN or infinite numbers for some images, so the file cannot "
                "be checked. Give X: images like those that it was trained on."
            )
        self.output = output
        self.n_columns = output.shape[1]
        # Only these columns are checked one by one.
        self.columns = np.unique(np.linspace(0, self.n_columns - 1, _N_CLASSES).astype(int))

    @property
    def tolerance(self) -> float:
        """The allowed difference from another implementation, relative to the largest value."""
        return _ROUNDING if self.images.device.type == "cpu" else _ROUNDING_OF_GPUS

    def record(self, columns: Any) -> RecordedPass:
        """Run the images once to explain some columns of the output."""
        target = torch.as_tensor(columns).expand(len(self.images), -1)
        return RecordedPass(
            self.adapter.network,
            self.explainer.target_layers,
            self.inputs,
            self.explainer.translate(target),
            forward=self.adapter.forward,
        )

    def answers(self, names: list[str]) -> dict[str, tuple[Any, Tensor]]:
        """Return, by name, which entries of each output are known, and their values."""
        everything: Any = slice(None)
        found = {name: (everything, each) for name, each in _read(self.adapter, self.output)}
        if "maps" in names:
            (maps,) = self.method.explain(self.record(self.columns))
            found["maps"] = (everything, self.columns), maps
        return found


def _noise(like: Tensor) -> Tensor:
    return torch.rand(_N_IMAGES, *like.shape[1:], generator=torch.Generator().manual_seed(0))


def _some_of(explainer: Explainer, X: Any) -> Tensor:
    """Return the first images in [0, 1], at the network's size."""
    opened = explainer.open(X, originals=True)
    if opened.is_network_input:
        raise ValueError(
            "X must be images as arrays, files or PIL images, as a file normalises images itself; "
            "got tensors that are the network's own input."
        )
    batch = opened.subset(range(min(_N_IMAGES, len(opened)))).whole()
    assert batch.resized is not None  # as originals were requested
    images = to_unit_floats(batch.resized).float()
    return images if len(images) > 1 else images.repeat(2, *[1] * (images.ndim - 1))


def _read(adapter: Adapter, columns: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of the outputs."""
    read = adapter.readout
    if not read.has_probabilities:
        yield "predictions", columns
        return
    if not read.is_probability:
        own = read.own(columns)
        yield "logits", own if own.ndim > 1 else own[:, None]  # a single output may be squeezed
    yield "probabilities", adapter.probabilities(columns)


# Maps


def _is_plain(method: Method) -> bool:
    """Whether a method weights channels by their plain mean gradient, or by CAM's weights."""
    options = {name: each for name, each in method.get_params().items() if name != "relu"}
    usual = {"pooling": "mean", "gradient": "plain"}
    return type(method) in (CAM, GradCAM) and options.items() <= usual.items()


def _class_weights(sample: _Sample) -> tuple[Tensor | None, str]:
    """Return the weight of each channel for each class, or why there are no such weights."""
    method, layers = sample.method, sample.explainer.target_layers
    if not _is_plain(method):
        return None, f"{method!r} needs more than the activations (Grad-CAM may not)"
    if sample.output.ndim != 2:
        return None, "maps in a file explain scores of an image, but these scores are per pixel"
    if len(layers) != 1:
        return None, f"maps combine {len(layers)} layers, whose maps would be scaled first"
    recorded = sample.record(range(sample.n_columns))
    reason = (
        f"the head after {layers[0].name!r} is not global average pooling and one linear layer, so "
        "Grad-CAM needs a gradient for each image"
    )
    try:
        weights = CAM().channel_weights(recorded)[0][0]
    except ValueError:
        return None, reason
    if not bool(weights.any()):
        return None, "the weights of the last layer are all zero, so its kind cannot be checked"
    # Activations may prove nothing, for instance if all are zero. Gradients always do.
    for column in sample.columns.tolist():
        (gradients,) = recorded.gradient_grids(column, keep=True)
        n_positions = gradients[0, 0].numel()
        differences = gradients.flatten(2) * n_positions - weights[column, :, None]
        if differences.abs().max() > sample.tolerance * weights[column].abs().max():
            return None, reason
    return weights / n_positions if isinstance(method, GradCAM) else weights, ""


# The file


class _Runs:
    """A hook that collects a layer's outputs. Torch refuses a plain list on the module."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.found.append(output)


class _Deployed(nn.Module):
    """A module that takes images in [0, 1] and returns all outputs of the file."""

    class_weights: Tensor | None
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, sample: _Sample, weights: Tensor | None):
        super().__init__()
        preprocessing, explainer = sample.preprocessing, sample.explainer
        self.adapter = sample.adapter
        self.network = unwrap(self.adapter.network)
        self.output_name = getattr(explainer, "output_name", None)
        self.is_bgr = preprocessing.channel_order == "bgr"
        # A buffer called "mean" clashes with the name of an operator's value in torch 2.6.
        for name, statistic in {
            "image_mean": preprocessing.mean,
            "image_std": preprocessing.std,
        }.items():
            values = sample.images.new_tensor(statistic)
            self.register_buffer(name, values.reshape(-1, 1, 1))
        self.register_buffer("class_weights", weights)
        self.layer = None if weights is None else explainer.target_layers[0]
        self.relu = getattr(sample.method, "relu", True)
        self.runs = _Runs()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        inputs = (images - self.image_mean) / self.image_std
        self.runs.found.clear()
        output = self.network(inputs.flip(1) if self.is_bgr else inputs)
        if not isinstance(output, Tensor):
            output = first_output(output, self.output_name)
        answers = [each for _, each in _read(self.adapter, self.adapter.readout.columns(output))]
        if self.layer is not None and self.class_weights is not None:
            grid = self.layer.to_grid(self.runs.found[self.layer.run or 0])
            maps = (self.class_weights @ grid.flatten(2)).unflatten(2, grid.shape[2:])
            answers.append(maps.relu() if self.relu else maps)
        return tuple(answers)


def _to_onnx(network: _Deployed, images: Tensor, names: list[str]) -> Any:
    """Return the network as an onnx.ModelProto for any number of images."""
    hook = None
    if network.layer is not None:
        part, _ = module_of(network.network, network.layer)
        hook = part.register_forward_hook(network.runs)
    try:
        program = _followed(network.eval(), images)
    finally:
        network.runs.found.clear()
        if hook is not None:
            hook.remove()
    kind = type(network.network).__name__
    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=names,
            opset_version=_OPSET,
            verbose=False,
        )
        assert made is not None
        model = made.model_proto
    except Exception as error:  # torch's and onnxscript's exporters raise errors of any kind
        found = installed_versions(["torch", "onnxscript"])
        versions = " and ".join(f"{name} {version}" for name, version in found.items())
        raise ValueError(
            f"{kind} cannot be exported. torch.onnx.export says: {_cause(error)} It needs a "
            f"version of onnxscript about as old as torch's; installed are {versions}."
        ) from error
    _tidy(model.graph)
    return model


def _followed(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Return the network's program for any number of images."""
    # Without a maximum, torch 2.6 compares the number of images with the largest integer.
    shapes = {"images": {0: torch.export.Dim("n_images", max=2**31 - 1)}}
    errors = []
    # The first attempt runs the forward once. The second reads its code, so it knows that
    # len(images) may vary, but it cannot read all code.
    for strict in (False, True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # for example that the hook keeps its output
                return torch.export.export(network, (images,), dynamic_shapes=shapes, strict=strict)
        except Exception as error:  # including errors of the network's own code
            errors.append(error)
    raise ValueError(
        f"{type(network.network).__name__} cannot be exported. torch.export says: "
        f"{_cause(errors[0])} A file does the same for all images, so forward must not branch on "
        "the values of tensors or turn them into Python numbers or arrays (.item(), .numpy()). "
        "Choose between values with torch.where, and take the number of images from "
        "images.shape[0]."
    ) from errors[0]


def _cause(error: BaseException) -> str:
    """Return the beginning of the original error's message."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
    return text if text.endswith(".") else f"{text}."


def _tidy(graph: Any) -> None:
    """Remove torch's own additions, such as the paths of source files."""
    del graph.value_info[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n_images"


def _serialized(model: Any) -> bytes:
    try:
        data: bytes = model.SerializeToString()
    except Exception as error:  # versions of protobuf raise errors of several kinds
        raise _too_large(f"The network does not fit into one file ({_cause(error)})") from error
    return data


def _facts(sample: _Sample, reason: str) -> dict[str, Any]:
    """Return the metadata for programs that use the file."""
    explainer, preprocessing = sample.explainer, sample.preprocessing
    classes, names = explainer.output_names, explainer.class_names_
    n_channels = sample.images.shape[1]
    method = {"name": type(sample.method).__name__, **sample.method.get_params(deep=False)}
    return {
        "task": sample.adapter.task,
        "classes": None if classes is None else classes.tolist(),
        "class_names": None if names is None else names.tolist(),
        "image_size": preprocessing.image_size,
        "resize": asdict(preprocessing.resizing),
        "value_range": [0, 1],
        "channel_order": "rgb" if n_channels == 3 else None,
        "normalized_in_the_file": {
            "mean": np.broadcast_to(preprocessing.mean, n_channels).tolist(),
            "std": np.broadcast_to(preprocessing.std, n_channels).tolist(),
            "channel_order": preprocessing.channel_order,
        },
        "preparation_by": preprocessing.source,
        "target_layers": [layer.name for layer in explainer.target_layers],
        "maps": method if not reason else None,
        "no_maps_because": reason or None,
        "versions": installed_versions([*REQUIRED, *_PACKAGES]),
    }


_SAYS = {
    "logits": "the network's output",
    "probabilities": "the probability of each class",
    "predictions": "the numbers that the network returns",
    "maps": (
        "the map of each class at the layer's resolution, before scaling: resized bilinearly to "
        "the size of the images, and scaled to [0, 1] by its own minimum and maximum, it is the "
        "map that sklcam shows"
    ),
}


def _usage(sample: _Sample, names: list[str]) -> str:
    """Describe the input and the outputs in Markdown."""
    _, n_channels, height, width = sample.images.shape
    order = ", RGB" if n_channels == 3 else ""
    return "\n".join(
        [
            "## Input and outputs",
            "",
            f"- `images`: float32 of shape (n_images, {n_channels}, {height}, {width}) in [0, 1]"
            f"{order}, not normalised: the file normalises them itself",
            *(f"- `{name}`: {_SAYS[name]}" for name in names),
            "",
            "The metadata (JSON) names the classes and says how to resize images.",
        ]
    )


def _check_answers(data: bytes, sample: _Sample, names: list[str], onnxruntime: Any) -> None:
    """Raise a ValueError unless the file's outputs equal the explainer's, also for one image."""
    kind = type(sample.adapter.network).__name__
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        images = sample.images.cpu().numpy()
        found = [session.run(names, {"images": each}) for each in (images, images[:1])]
    except Exception as error:  # onnxruntime's errors share no base class
        raise ValueError(
            f"{kind} cannot be exported. onnxruntime does not accept the file: {_cause(error)}"
        ) from error
    for several, one, (name, (part, expected)) in zip(
        *found, sample.answers(names).items(), strict=True
    ):
        wanted = expected.cpu().numpy()
        largest = np.abs(wanted).max()
        difference = max(np.abs(several[part] - wanted).max(), np.abs(one[part] - wanted[:1]).max())
        if not difference <= sample.tolerance * largest:
            raise ValueError(
                f"{kind} cannot be exported: for a sample whose {name} reach {largest:.3g}, the "
                f"file differs from the network by {difference:.3g}. Check whether the network "
                "draws random numbers, uses the other images of a batch, or changes its own state."
            )
