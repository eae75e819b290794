"""What sklcam and its peers do for the same request: passes, traces, gradients.

Nothing is timed here; ``explain.py``, ``metrics.py`` and ``train_step.py`` do that. Each library
runs as its own documentation says, on copies of one network and on the same images. The program
counts or checks

- how many forward passes Grad-CAM takes for several classes of an image;
- whether the backward pass goes through the whole network, or ends at the layer;
- what an explanation leaves behind in a network: hooks, gradients of parameters, a changed mode,
  changed running statistics of batch normalisation;
- whether maps can be trained on: the derivative of the sum of a map's squares with respect to all
  weights, compared with finite differences, in float64;
- whether scikit-learn can copy the explainer, as its searches do;
- how many of the four papers' methods and metrics there are.

    python benchmarks/peers.py
    python benchmarks/peers.py --arch vgg16_bn --batch-size 4 --device cuda

The maps must agree, or the program stops. Quantus measures maps but makes none; its metrics are
counted if it is installed. The others also have methods and metrics of other papers.
"""

from __future__ import annotations

import argparse
import copy
import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

import captum.attr
import pytorch_grad_cam
import torch
import torchcam.methods
from explain_contenders import finish
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from sklearn.base import clone
from timed_networks import noise_images, prepared_network
from torch import Tensor, nn

from sklcam import CAMExplainer
from sklcam.cam import GradCAM, available
from sklcam.metrics import available as available_metrics
from sklcam.networks import find_target_layer, record

TOLERANCE = 1e-4  # bound on the largest difference of two maps in [0, 1]
STEP = 1e-8  # of finite differences, as a share of the weights: few ReLUs switch
N_CLASSES = 3  # classes explained for each image

# What the four papers name, and its place in pytorch-grad-cam, torchcam and captum, or None.
METHODS = {
    "CAM": (None, "methods.CAM", None),
    "Grad-CAM": ("GradCAM", "methods.GradCAM", "attr.LayerGradCam"),
    "Grad-CAM++": ("GradCAMPlusPlus", "methods.GradCAMpp", None),
    "XGrad-CAM": ("XGradCAM", "methods.XGradCAM", None),
    "Smooth Grad-CAM++": (None, "methods.SmoothGradCAMpp", None),
    "Score-CAM": ("ScoreCAM", "methods.ScoreCAM", None),
    "SS-CAM": (None, "methods.SSCAM", None),
    "IS-CAM": (None, "methods.ISCAM", None),
    "Ablation-CAM": ("AblationCAM", None, None),
    "counterfactual": (None, None, None),
    "guided backprop": ("GuidedBackpropReLUModel", None, "attr.GuidedBackprop"),
    "deconvnet": (None, None, "attr.Deconvolution"),
    "Guided Grad-CAM": (None, None, "attr.GuidedGradCam"),
    "saliency": (None, None, "attr.Saliency"),
    "occlusion": (None, None, "attr.Occlusion"),
    "excitation backprop": (None, None, None),
    "Fake-CAM": (None, None, None),
}
_DROP, _CURVES = "metrics.ClassificationMetric", "metrics.DeletionInsertionMetric"
METRICS = {
    "average drop": ("metrics.cam_mult_image.DropInConfidence", _DROP, None),
    "average increase": ("metrics.cam_mult_image.IncreaseInConfidence", _DROP, None),
    "coherency": ("metrics.arcc.Coherency", None, None),
    "complexity": ("metrics.arcc.Complexity", None, None),
    "adcc": (None, None, None),
    "iauc": (None, _CURVES, None),
    "dauc": (None, _CURVES, None),
    "consistency": (None, None, None),
    "localization accuracy": (None, None, None),
    "pointing game": (None, None, None),
    "rank correlation": (None, None, None),
}
OF_QUANTUS = {"dauc": "PixelFlipping", "pointing game": "PointingGame"}
PEERS = ("pytorch_grad_cam", "torchcam", "captum")


class Library(ABC):
    """Grad-CAM for one network at one layer."""

    name: str
    distribution: str
    package: str

    def __init__(self, network: nn.Module, layer: str, images: Tensor):
        self.network = network
        self.layer_name = layer

    @property
    def layer(self) -> nn.Module:
        return self.network.get_submodule(self.layer_name)

    @abstractmethod
    def maps(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return maps of shape (n, k, h, w), scaled to [0, 1], for k classes of each image."""

    @abstractmethod
    def raw(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return raw maps (n, u, v), with as much of a graph as the library can keep."""

    @abstractmethod
    def explainer(self) -> object:
        """Return the object that a user makes and keeps."""


class Ours(Library):
    name = "sklcam"
    distribution = "sklcam"

    def __init__(self, network: nn.Module, layer: str, images: Tensor):
        super().__init__(network, layer, images)
        self._fitted = self.explainer().fit(images)  # once for a network

    def explainer(self) -> CAMExplainer:
        return CAMExplainer(self.network, target_layer=self.layer_name, verbose=0)

    def maps(self, images: Tensor, classes: Tensor) -> Tensor:
        return torch.from_numpy(self._fitted.explain(images, target=classes.cpu().numpy()))

    def raw(self, images: Tensor, classes: Tensor) -> Tensor:
        with record(self.network, self.layer, trunk=True) as tape:
            scores = self.network(images).gather(1, classes[:, None])[:, 0]
            return GradCAM()(scores, tape.activations, create_graph=True)


class PytorchGradCAM(Library):
    name = "pytorch-grad-cam"
    distribution = "grad-cam"
    package = "pytorch_grad_cam"

    def explainer(self) -> pytorch_grad_cam.GradCAM:
        return pytorch_grad_cam.GradCAM(model=self.network, target_layers=[self.layer])

    def maps(self, images: Tensor, classes: Tensor) -> Tensor:
        with self.explainer() as cam:
            maps = [
                cam(input_tensor=images, targets=[ClassifierOutputTarget(int(c)) for c in column])
                for column in classes.T
            ]
        return torch.stack([torch.from_numpy(each) for each in maps], dim=1)

    def raw(self, images: Tensor, classes: Tensor) -> Tensor:
        targets = [ClassifierOutputTarget(int(c)) for c in classes]
        with self.explainer() as cam:
            return torch.as_tensor(cam(input_tensor=images, targets=targets))


class Torchcam(Library):
    name = "torchcam"
    distribution = "torchcam"
    package = "torchcam"

    def explainer(self) -> torchcam.methods.GradCAM:
        return torchcam.methods.GradCAM(self.network, self.layer)

    def maps(self, images: Tensor, classes: Tensor) -> Tensor:
        with self.explainer() as extractor:
            output = self.network(images)
            maps = [
                finish(self._raw(extractor, output, column), tuple(images.shape[-2:]))
                for column in classes.T
            ]
        return torch.stack(maps, dim=1).cpu()

    def _raw(self, extractor: object, output: Tensor, classes: Tensor) -> Tensor:
        return extractor(classes.tolist(), output, normalized=False, retain_graph=True)[0]

    def raw(self, images: Tensor, classes: Tensor) -> Tensor:
        with self.explainer() as extractor:
            return self._raw(extractor, self.network(images), classes)


class Captum(Library):
    name = "captum"
    distribution = "captum"
    package = "captum"

    def explainer(self) -> captum.attr.LayerGradCam:
        return captum.attr.LayerGradCam(self.network, self.layer)

    def maps(self, images: Tensor, classes: Tensor) -> Tensor:
        maps = [finish(self.raw(images, column), tuple(images.shape[-2:])) for column in classes.T]
        return torch.stack(maps, dim=1).cpu()

    def raw(self, images: Tensor, classes: Tensor) -> Tensor:
        return self.explainer().attribute(images, classes, relu_attributions=True)[:, 0]


# What is counted


class Passes:
    """Count forward passes, and gradients that reach the first layer with weights."""

    def __init__(self, network: nn.Module):
        self.forward = self.backward = 0
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        self._handles = [
            network.register_forward_pre_hook(self._on_forward),
            first.register_forward_hook(self._on_first_layer),
        ]

    def _on_forward(self, module: nn.Module, inputs: tuple) -> None:
        self.forward += 1

    def _on_first_layer(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(self._on_backward)

    def _on_backward(self, gradient: Tensor) -> None:
        self.backward += 1

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def passes(library: Library, images: Tensor, classes: Tensor) -> Passes:
    count = Passes(library.network)
    try:
        library.maps(images, classes)
    finally:
        count.remove()
    return count


def traces(library: Library, images: Tensor, classes: Tensor) -> list[str]:
    """Return what has changed in a network in training mode after an explanation."""
    network = library.network
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    library.maps(images, classes)
    found = ["hooks"] if any(hooks_of(module) for module in network.modules()) else []
    if any(parameter.grad is not None for parameter in network.parameters()):
        found.append("gradients")
    if not all(module.training for module in network.modules()):
        found.append("mode")
    if any(not torch.equal(value, before[name]) for name, value in network.state_dict().items()):
        found.append("statistics")
    return found


def hooks_of(module: nn.Module) -> list[object]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for kind in kinds for hook in getattr(module, kind).values()]


def has_derivatives(library: Library, images: Tensor) -> bool:
    """Return whether maps have the derivative of finite differences, in a random direction."""
    network = library.network.double()
    images = images.double()
    with torch.no_grad():
        classes = network(images).argmax(dim=1)
    parameters = list(network.parameters())
    generator = torch.Generator(images.device).manual_seed(0)
    direction = [
        parameter.detach().abs().mean()
        * torch.randn(
            parameter.shape, generator=generator, dtype=parameter.dtype, device=images.device
        )
        for parameter in parameters
    ]
    loss = library.raw(images, classes).square().sum()
    if not loss.requires_grad:
        return False
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(gradients, direction, strict=True)
    along = sum((gradient * d).sum() for gradient, d in pairs if gradient is not None)

    def moved(step: float) -> float:
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(d, alpha=step)
        return library.raw(images, classes).square().sum().item()

    ahead, behind = moved(STEP), moved(-2 * STEP)
    return math.isclose(float(along), (ahead - behind) / (2 * STEP), rel_tol=1e-3)


def is_copied(library: Library) -> bool:
    try:
        clone(library.explainer())
    except TypeError:
        return False
    return True


def present(package: str, where: dict[str, tuple[str | None, ...]]) -> int:
    names = [of[PEERS.index(package)] for of in where.values()]
    return sum(found(package, name) for name in names if name is not None)


def found(package: str, path: str) -> bool:
    """Look a name up, and stop if it is not where this program expects it."""
    module, _, name = f"{package}.{path}".rpartition(".")
    getattr(import_module(module), name)
    return True


def of_quantus() -> str:
    try:
        import_module("quantus")
    except ImportError:
        return "not installed"
    n_metrics = sum(found("quantus", name) for name in OF_QUANTUS.values())
    return f"{n_metrics} of {len(METRICS)}"


def check_names() -> None:
    """Stop if sklcam lacks what the table says it has."""
    ours = {name.replace("_", " ") for name in available_metrics()}
    missing = set(METRICS) - ours
    names = {re.sub("[^a-z+]", "", name.lower()) for name in METHODS}
    missing |= names - set(available())
    if missing:
        raise SystemExit(f"sklcam has no {sorted(missing)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    check_names()
    warnings.simplefilter("ignore")  # torchcam warns about networks in training mode
    network = prepared_network(options.arch, options.image_size, options.device)
    images = noise_images(options.batch_size, options.image_size, seed=0).to(options.device)
    layer = find_target_layer(network, sample=images[:1]).name
    with torch.no_grad():
        classes = network(images).topk(N_CLASSES).indices
    kinds = (Ours, PytorchGradCAM, Torchcam, Captum)
    columns, reference = {}, None
    for kind in kinds:

        def fresh(kind: type[Library] = kind) -> Library:
            return kind(copy.deepcopy(network), layer, images)

        maps = fresh().maps(images, classes)
        reference = maps if reference is None else reference
        difference = float((maps - reference).abs().max())
        if difference > TOLERANCE:
            raise SystemExit(f"{kind.name} disagrees: maps differ by up to {difference:.1g}.")
        columns[f"{kind.name} {version(kind.distribution)}"] = column(fresh, images, classes)
    columns["Quantus"] = {"metrics of the papers": of_quantus()}
    print(f"{options.arch} at {layer}, {options.batch_size} images, {N_CLASSES} classes each\n")
    print(table(columns))


def column(fresh: Callable[[], Library], images: Tensor, classes: Tensor) -> dict[str, str]:
    """Count everything, each on a fresh copy of the network."""
    kind = type(fresh())
    count = passes(fresh(), images, classes)
    left = traces(fresh(), images, classes)
    trainable = has_derivatives(fresh(), images)
    n_methods, n_metrics = len(METHODS), len(METRICS)
    if kind is not Ours:
        n_methods, n_metrics = (present(kind.package, of) for of in (METHODS, METRICS))
    return {
        "forward passes for three classes": str(count.forward),
        "backward passes through the whole network": str(count.backward),
        "left behind in a training network": ", ".join(left) or "nothing",
        "maps can be trained on": "yes" if trainable else "no",
        "scikit-learn can copy the explainer": "yes" if is_copied(fresh()) else "no",
        "methods of the papers": f"{n_methods} of {len(METHODS)}",
        "metrics of the papers": f"{n_metrics} of {len(METRICS)}",
    }


def table(columns: dict[str, dict[str, str]]) -> str:
    rows = list(next(iter(columns.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        lines.append(
            "| ".join([f"| {row} ", *(f"{of.get(row, '')} " for of in columns.values())]) + "|"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
