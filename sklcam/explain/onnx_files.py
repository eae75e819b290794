"""ONNX files: a network's answers without sklcam and without torch.

A file takes images in [0, 1], as they are displayed, and normalises them itself. Besides the
answers it has the maps of all classes, where these need no gradient: with a head of global average
pooling and one linear layer, Grad-CAM is CAM, whose weights are the same for every image.
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
_OPSET = 18  # the oldest that torch writes, which most runtimes take
_LARGEST = 2**31 - 2**20  # bytes of weights: a file is one message, of less than 2 GiB
_N_IMAGES = 3  # of a sample
_N_CLASSES = 4  # whose gradients are compared with the linear layer
# How far rounding may move results from those of another implementation, relative to the largest.
# GPUs round the factors of products to 10 bits, unless they are told not to; a file is tried on the
# CPU.
_ROUNDING, _ROUNDING_OF_GPUS = 1e-4, 1e-2


def write_onnx(
    explainer: Explainer, path: str | os.PathLike[str], X: Any, maps: Maps, card: str | None
) -> None:
    """Write an explainer's network to a file; see ``Explainer.export``."""
    _check_arguments(path, maps, card)
    adapter = explainer.adapter
    _check_adapter(adapter)
    _, onnxruntime, _ = map(_imported, _PACKAGES)
    with replacing(path) as file, torch.inference_mode(False), left_as_found(adapter.network):
        sample = _Sample(explainer, X)
        weights, reason = _class_weights(sample) if maps else (None, "maps=False")
        if reason and maps is True:
            raise ValueError(f"maps=True, but the file would have none: {reason}.")
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


# What is asked for


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
            f"The explainer runs {name} with precision={adapter.precision!r}, and a file computes "
            'in float32: export one with precision="fp32".'
        )
    if isinstance(adapter, LastStep):
        raise ValueError(
            "A file holds a network, and this is a pipeline whose earlier steps change the "
            "images first: export an explainer of its last step."
        )
    if isinstance(stem_of(adapter.network), nn.Conv3d):
        raise ValueError(
            f"{name} takes volumes, and a file prepares pictures: torch.onnx.export writes any "
            "network, without maps."
        )
    if adapter.task is None:
        raise ValueError(
            "A file holds a classifier, or a regressor, and the output of "
            f"{name} is neither: torch.onnx.export writes any network, without maps."
        )
    tensors = [*adapter.network.parameters(), *adapter.network.buffers()]
    others = {each.dtype for each in tensors if each.is_floating_point()} - {torch.float32}
    if others:
        raise ValueError(
            f"{name} computes in {', '.join(sorted(map(str, others)))}, and a file in float32: "
            "export an explainer of copy.deepcopy(network).float(), and compare what it predicts."
        )
    n_bytes = sum(each.numel() * each.element_size() for each in tensors)
    if n_bytes > _LARGEST:
        raise _too_large(f"{name} has {n_bytes / 1e9:.2f} GB of weights")
    # A net that was trained here knows how its images were prepared; another may not.
    if not isinstance(adapter, ModuleAdapter) or Origin(adapter.preprocessing()).is_known:
        return
    given = adapter.preparation
    wanted = {"image_size": given.image_size, "mean": given.mean, "std": given.std}
    missing = [f"{key}=" for key, each in wanted.items() if each is None or isinstance(each, str)]
    if missing:
        raise ValueError(
            f"A file prepares images for the network, and {name} does not say how: give the "
            f"explainer {', '.join(missing)}, and fit it."
        )


def _too_large(what: str) -> ValueError:
    return ValueError(
        f"{what}, and a file in ONNX holds less than {_LARGEST / 1e9:.2f} GB. torch.onnx.export("
        "network, (images,), path, dynamo=True) writes the weights into a second file beside it, "
        "without maps; its images are the network's own input."
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
                "The network answers some images with NaN or infinite numbers, so the file "
                "cannot be checked: give X, images like those it was trained on."
            )
        self.output = output
        self.n_columns = output.shape[1]
        # These are looked at one by one.
        self.columns = np.unique(np.linspace(0, self.n_columns - 1, _N_CLASSES).astype(int))

    @property
    def tolerance(self) -> float:
        """How far results may be from another implementation's, relative to the largest."""
        return _ROUNDING if self.images.device.type == "cpu" else _ROUNDING_OF_GPUS

    def record(self, columns: Any) -> RecordedPass:
        """Run the images once, to explain some columns of the output."""
        target = torch.as_tensor(columns).expand(len(self.images), -1)
        return RecordedPass(
            self.adapter.network,
            self.explainer.target_layers,
            self.inputs,
            self.explainer.translate(target),
            forward=self.adapter.forward,
        )

    def answers(self, names: list[str]) -> dict[str, tuple[Any, Tensor]]:
        """Return which entries of an answer are known, and their values, by name."""
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
            "X must be images as arrays, files or PIL images: a file normalises images itself, and "
            "these tensors are the network's own input."
        )
    batch = opened.subset(range(min(_N_IMAGES, len(opened)))).whole()
    assert batch.resized is not None  # as originals were asked for
    images = to_unit_floats(batch.resized).float()
    return images if len(images) > 1 else images.repeat(2, *[1] * (images.ndim - 1))


def _read(adapter: Adapter, columns: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the answers, by name."""
    read = adapter.readout
    if not read.has_probabilities:
        yield "predictions", columns
        return
    if not read.is_probability:
        own = read.own(columns)
        yield "logits", own if own.ndim > 1 else own[:, None]  # squeezed, of a single output
    yield "probabilities", adapter.probabilities(columns)


# Maps


def _is_plain(method: Method) -> bool:
    """Whether it weighs channels by their plain mean gradient, or by CAM's weights."""
    options = {name: each for name, each in method.get_params().items() if name != "relu"}
    usual = {"pooling": "mean", "gradient": "plain"}
    return type(method) in (CAM, GradCAM) and options.items() <= usual.items()


def _class_weights(sample: _Sample) -> tuple[Tensor | None, str]:
    """Return the weight of each channel for each class, or why there are no such weights."""
    method, layers = sample.method, sample.explainer.target_layers
    if not _is_plain(method):
        return None, f"{method!r} needs more than the activations; Grad-CAM may not"
    if sample.output.ndim != 2:
        return None, "they explain scores of an image, and these scores are per pixel"
    if len(layers) != 1:
        return None, f"they combine {len(layers)} layers, each of which would be scaled first"
    recorded = sample.record(range(sample.n_columns))
    reason = (
        f"what follows {layers[0].name!r} is not global average pooling and one linear layer, so "
        "Grad-CAM needs a gradient for each image"
    )
    try:
        weights = CAM().channel_weights(recorded)[0][0]
    except ValueError:
        return None, reason
    if not bool(weights.any()):
        return None, "the weights of the last layer are all zero, so its kind cannot be told"
    # Activations may tell nothing, for instance if all are zero; gradients always do.
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
    """Takes images in [0, 1], and returns everything that the file returns."""

    class_weights: Tensor | None
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, sample: _Sample, weights: Tensor | None):
        super().__init__()
        said, explainer = sample.preprocessing, sample.explainer
        self.adapter = sample.adapter
        self.network = unwrap(self.adapter.network)
        self.output_name = getattr(explainer, "output_name", None)
        self.is_bgr = said.channel_order == "bgr"
        # A buffer called "mean" clashes with the name of an operator's value in torch 2.6.
        for name, statistic in {"image_mean": said.mean, "image_std": said.std}.items():
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
    except Exception as error:  # of torch's exporter, or of onnxscript's, which is of any kind
        found = installed_versions(["torch", "onnxscript"])
        versions = " and ".join(f"{name} {version}" for name, version in found.items())
        raise ValueError(
            f"{kind} cannot be exported. torch.onnx.export says: {_said(error)} This is torch's "
            f"exporter, which needs an onnxscript of about its own age; installed are {versions}."
        ) from error
    _tidy(model.graph)
    return model


def _followed(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Return the network's program for any number of images."""
    # Torch 2.6 compares it with the largest number that there is.
    shapes = {"images": {0: torch.export.Dim("n_images", max=2**31 - 1)}}
    errors = []
    # The first runs the forward once. The second reads its code, and so knows that len(images) may
    # vary; but there is much code that it cannot read.
    for strict in (False, True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as that the hook keeps what it sees
                return torch.export.export(network, (images,), dynamic_shapes=shapes, strict=strict)
        except Exception as error:  # of the network's own code, too
            errors.append(error)
    raise ValueError(
        f"{type(network.network).__name__} cannot be exported. torch.export says: "
        f"{_said(errors[0])} A file does the same for all images: forward must not branch on the "
        "values of tensors (torch.where chooses between two), must not turn them into Python "
        "numbers or arrays (.item(), .numpy()), and should take the number of images from "
        "images.shape[0]."
    ) from errors[0]


def _said(error: BaseException) -> str:
    """Return the beginning of the first message."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
    return text if text.endswith(".") else f"{text}."


def _tidy(graph: Any) -> None:
    """Remove what torch adds for itself, such as the paths of source files."""
    del graph.value_info[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n_images"


def _serialized(model: Any) -> bytes:
    try:
        data: bytes = model.SerializeToString()
    except Exception as error:  # protobuf's versions raise errors of several kinds
        raise _too_large(f"The network does not fit into one file ({_said(error)})") from error
    return data


def _facts(sample: _Sample, reason: str) -> dict[str, Any]:
    """Return what a program that uses the file has to know."""
    explainer, said = sample.explainer, sample.preprocessing
    classes, names = explainer.output_names, explainer.class_names_
    n_channels = sample.images.shape[1]
    method = {"name": type(sample.method).__name__, **sample.method.get_params(deep=False)}
    return {
        "task": sample.adapter.task,
        "classes": None if classes is None else classes.tolist(),
        "class_names": None if names is None else names.tolist(),
        "image_size": said.image_size,
        "resize": asdict(said.resizing),
        "value_range": [0, 1],
        "channel_order": "rgb" if n_channels == 3 else None,
        "normalized_in_the_file": {
            "mean": np.broadcast_to(said.mean, n_channels).tolist(),
            "std": np.broadcast_to(said.std, n_channels).tolist(),
            "channel_order": said.channel_order,
        },
        "preparation_by": said.source,
        "target_layers": [layer.name for layer in explainer.target_layers],
        "maps": method if not reason else None,
        "no_maps_because": reason or None,
        "versions": installed_versions([*REQUIRED, *_PACKAGES]),
    }


_SAYS = {
    "logits": "what the network returns",
    "probabilities": "of each class",
    "predictions": "the numbers that the network returns",
    "maps": (
        "the map of each class at the layer's resolution, before scaling: resized bilinearly to "
        "the size of the images, and scaled to [0, 1] by its own minimum and maximum, it is what "
        "sklcam shows"
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
            f"{order}, not normalised: the file does that itself",
            *(f"- `{name}`: {_SAYS[name]}" for name in names),
            "",
            "The metadata (JSON) says what the classes are and how images are resized.",
        ]
    )


def _check_answers(data: bytes, sample: _Sample, names: list[str], onnxruntime: Any) -> None:
    """Raise a ValueError unless the file answers as the explainer does, for one image as well."""
    kind = type(sample.adapter.network).__name__
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        images = sample.images.cpu().numpy()
        found = [session.run(names, {"images": each}) for each in (images, images[:1])]
    except Exception as error:  # onnxruntime's have no base of their own
        raise ValueError(
            f"{kind} cannot be exported. onnxruntime does not take the file: {_said(error)}"
        ) from error
    for several, one, (name, (part, expected)) in zip(
        *found, sample.answers(names).items(), strict=True
    ):
        wanted = expected.cpu().numpy()
        largest = np.abs(wanted).max()
        difference = max(np.abs(several[part] - wanted).max(), np.abs(one[part] - wanted[:1]).max())
        if not difference <= sample.tolerance * largest:
            raise ValueError(
                f"{kind} cannot be exported: in the {name} of a sample, up to {largest:.3g}, the "
                f"file is {difference:.3g} from what the network says here. Does it draw random "
                "numbers, look at the other images of a batch, or write into its own state?"
            )
