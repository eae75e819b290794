"""What an explanation costs, beside a prediction and beside other libraries.

Runs sklcam, pytorch-grad-cam, torchcam and captum in one process, in turns, on the same tensors and
the same network, for every method they share. Each gets what it needs to end at the same maps:
those of the predicted class, at the size of the images, scaled to [0, 1]. They must agree, or the
program stops; where a library computes something else than the paper, the reason is printed, and
agreement is checked in a setting in which the deviation does not count, if there is one.

    python benchmarks/explain.py --arch resnet18 resnet50 convnext_tiny
    python benchmarks/explain.py --arch resnet50 --methods ablationcam --only-ours
    python benchmarks/explain.py --arch resnet18 --methods scorecam ablationcam --autocast
    python benchmarks/explain.py --arch vgg16 --methods all --device cuda
    python benchmarks/explain.py --arch timm/vit_small_patch16_224 swin_t --methods gradcam
    python benchmarks/explain.py --arch resnet18 --methods none --memory-images 2000

"predict" is a plain forward pass of the same batch under ``torch.inference_mode()``; all the others
make their own forward passes. Expensive methods take one or two images and fewer rounds.

The networks are not trained (there is no need to download anything), but made to behave as if they
were: running statistics are those of images, and the highest logits are as high as a trained
network's. Images are smooth noise unless ``--data DIR`` names a folder of them.

Names that begin with "timm/" are timm's. Where a layer's output is no image of channels, as in
transformers, torchcam and captum have no maps of it, and pytorch-grad-cam is told how to make one.

DenseNets are not for this program: they change the layer's output in place, and the others' hooks
record what it has become.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import captum.attr
import numpy as np
import pytorch_grad_cam
import pytorch_grad_cam.eigen_cam
import timm
import torch
import torchcam.methods
import torchvision
import tqdm
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from train_step import peak_of_allocations, seconds, wait

from sklcam import CAMExplainer
from sklcam.cam import (
    CAM,
    ISCAM,
    RISE,
    SSCAM,
    EigenCAM,
    FinerCAM,
    Method,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
    get_method,
)
from sklcam.images import ImageDataset, normalize
from sklcam.networks import build_model, record

SEED = 0
TOLERANCE = 1e-3  # on the largest difference of two maps in [0, 1]
TOLERANCE_BFLOAT16 = 0.05  # on their mean difference
MASKED = 32  # masked images that peers run at a time, torchcam's default; sklcam has its own
LOGIT = 15.0  # the highest logit of an image, on average: about that of a trained ResNet
LOUD = 1e4  # times LOGIT: gradients beside which no epsilon counts
FAINT = 1e-9  # standard deviation of noise that changes nothing
IMAGE_KINDS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Case:
    """What every contender gets: one batch, and one network in evaluation mode."""

    network: nn.Module
    explainer: CAMExplainer
    images: Tensor
    method: Method

    @property
    def layer(self) -> nn.Module:
        return self.explainer.target_layers_[0].of(self.network)

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[-2], self.images.shape[-1]

    def predicted(self) -> Tensor:
        with torch.no_grad():
            return self.network(self.images).argmax(dim=1)


Explain = Callable[[Case], Tensor]


@dataclass(frozen=True)
class Peer:
    """Another library's way to the same maps.

    ``why`` is how it deviates, if it does; ``equal`` is a context in which it does not. It returns
    None for networks for which there is no such context. ``needs_nchw`` says whether the layer's
    output must be (n, K, u, v).
    """

    library: str
    explain: Explain
    why: str = ""
    needs_nchw: bool = False
    equal: Callable[[Case], AbstractContextManager | None] | None = None


@dataclass(frozen=True)
class Spec:
    """A method, its peers, and how much of it one can afford."""

    method: str | Method
    peers: tuple[Peer, ...]
    n_images: int | None = None  # None is the whole batch
    rounds: int | None = None


@dataclass(frozen=True)
class Bar:
    """What a ratio should be."""

    archs: tuple[str, ...]
    method: str
    ratio: str
    limit: float
    at_most: bool = False

    def verdict(self, value: float) -> str:
        met = value <= self.limit if self.at_most else value >= self.limit
        sign = "<=" if self.at_most else ">="
        return f"bar {sign} {self.limit:g}: {'reached' if met else 'NOT REACHED'}"


FIVE = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam")  # of one gradient
THREE = ("resnet18", "resnet50", "convnext_tiny")
TRANSFORMERS = (
    "timm/vit_small_patch16_224",
    "timm/swin_tiny_patch4_window7_224",
    "swin_t",
    "vit_b_16",
)
VIT = "timm/vit_small_patch16_224"
BARS = (
    Bar((VIT, "resnet18"), "eigencam", "sklcam / predict", 1.15, at_most=True),
    Bar((VIT,), "rollout", "sklcam / predict", 1.15, at_most=True),
    Bar((VIT,), "legrad", "sklcam / predict", 1.15, at_most=True),
    Bar(TRANSFORMERS, "gradcam", "sklcam / predict", 1.10, at_most=True),
    Bar(THREE, "gradcam", "sklcam / predict", 1.10, at_most=True),
    Bar(THREE, "gradcam", "sklcam five methods / sklcam", 1.15, at_most=True),
    Bar(THREE, "gradcam", "pytorch-grad-cam / sklcam", 2.5),
    Bar(THREE, "gradcam", "torchcam / sklcam", 1.0),
    Bar(THREE, "gradcam", "captum / sklcam", 1.0),
    Bar(("resnet18",), "ablationcam", "pytorch-grad-cam / sklcam", 100.0),
    Bar(("resnet18", "resnet50"), "ablationcam", "sklcam / sklcam gradcam", 1.3, at_most=True),
    Bar(("resnet18",), "scorecam", "torchcam / sklcam", 1.4),
    Bar(("resnet18",), "scorecam", "torchcam / sklcam bfloat16", 2.5),
)


# What the libraries do


def predict(case: Case) -> Tensor:
    with torch.inference_mode():
        return case.network(case.images)


def ours(case: Case) -> Tensor:
    maps, _ = case.explainer.explain_inputs(case.images, method=case.method)
    return maps


def our_five(case: Case) -> Tensor:
    maps, _, _ = case.explainer.explain_batch(case.images, methods=FIVE)
    return maps[0]


def our_gradcam(case: Case) -> Tensor:
    return ours(replace(case, method=get_method("gradcam")))


def ours_in_bfloat16(case: Case) -> Tensor:
    with torch.autocast(case.images.device.type, torch.bfloat16):
        return ours(case)


def finish(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize raw maps (n_images, u, v) and scale each to [0, 1], for those who leave it to us."""
    maps = maps.detach()
    if tuple(maps.shape[-2:]) != size:
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def strongest(pixels: Tensor) -> Tensor:
    """Signed maps of each channel to one per image, as sklcam does."""
    return finish(pixels.abs().amax(dim=1), (pixels.shape[-2], pixels.shape[-1]))


def pytorch_grad_cam_maps(case: Case, *, kind: type) -> Tensor:
    layer = case.explainer.target_layers_[0]
    reshape = None if layer.layout == "nchw" else layer.to_grid
    with kind(case.network, target_layers=[case.layer], reshape_transform=reshape) as cam:
        cam.batch_size = MASKED
        return torch.from_numpy(cam(input_tensor=case.images, targets=None))


def pytorch_grad_cam_guided(case: Case) -> Tensor:
    # It puts other ReLUs into the network, and takes one image at a time.
    network = pytorch_grad_cam.GuidedBackpropReLUModel(case.network)
    pixels = [network(image[None].clone()) for image in case.images]
    return strongest(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))


def torchcam_maps(case: Case, *, kind: type) -> Tensor:
    gradient_free = issubclass(kind, (torchcam.methods.CAM, torchcam.methods.ScoreCAM))
    with kind(case.network, case.layer, **torchcam_options(case)) as extractor:
        with torch.set_grad_enabled(not gradient_free):
            output = case.network(case.images)
        (maps,) = extractor(output.argmax(dim=1).tolist(), output, normalized=False)
    return finish(maps, case.size)


def torchcam_options(case: Case) -> dict[str, object]:
    """Our method's options, under torchcam's names."""
    if isinstance(case.method, CAM):
        return {"fc_layer": last_linear(case.network)}
    names = {"n_samples": "num_samples", "std": "std"}
    own = case.method.get_params()
    return {theirs: own[name] for name, theirs in names.items() if name in own}


def captum_gradcam(case: Case) -> Tensor:
    attribution = captum.attr.LayerGradCam(case.network, case.layer)
    maps = attribution.attribute(case.images, case.predicted(), relu_attributions=True)
    return finish(maps[:, 0], case.size)


def captum_pixels(case: Case, *, kind: type) -> Tensor:
    return strongest(kind(case.network).attribute(case.images, target=case.predicted()))


def captum_guided_gradcam(case: Case) -> Tensor:
    attribution = captum.attr.GuidedGradCam(case.network, case.layer)
    return strongest(
        attribution.attribute(case.images, case.predicted(), interpolate_mode="bilinear")
    )


def captum_occlusion(case: Case) -> Tensor:
    n_images, n_channels = case.images.shape[:2]
    patch_ = max(1, min(case.size) // 7)
    stride = max(1, patch_ // 2)
    maps = captum.attr.Occlusion(case.network).attribute(
        case.images,
        sliding_window_shapes=(n_channels, patch_, patch_),
        strides=(n_channels, stride, stride),
        target=case.predicted(),
        perturbations_per_eval=max(1, MASKED // n_images),
    )
    return finish(maps[:, 0].relu(), case.size)


# Settings in which a deviation does not count. What is changed is changed for both sides.


@contextmanager
def loud_head(case: Case) -> Iterator[None]:
    """Gradients so large that no epsilon matters beside their squares."""
    head = last_linear(case.network)
    weight = head.weight.detach().clone()
    with torch.no_grad():
        head.weight.mul_(LOUD)
    try:
        yield
    finally:
        with torch.no_grad():
            head.weight.copy_(weight)


def faint_noise(case: Case) -> AbstractContextManager | None:
    """Noise that makes no difference; None where gradients may differ from place to place.

    There, torchcam multiplies their cubes with activations before it sums, the paper after.
    """
    return _faint_noise(case) if has_pooled_head(case) else None


@contextmanager
def _faint_noise(case: Case) -> Iterator[None]:
    with option(case, std=FAINT), loud_head(case):
        yield


@contextmanager
def option(case: Case, **options: object) -> Iterator[None]:
    """Give our method other options for a while."""
    before = {name: getattr(case.method, name) for name in options}
    case.method.set_params(**options)
    try:
        yield
    finally:
        case.method.set_params(**before)


def scaled_last(case: Case) -> AbstractContextManager:
    """Have torchcam scale masks after upsampling them, as the paper writes it: s(up(A))."""
    kind = torchcam.methods.ScoreCAM
    plain = kind._upsample

    def upsample_and_scale(self: object, activation: Tensor) -> Tensor:
        return kind._normalize(plain(self, activation), activation.ndim - 2)

    return patch.object(kind, "_upsample", upsample_and_scale)


@contextmanager
def scaled_last_and_faint_noise(case: Case) -> Iterator[None]:
    with option(case, std=FAINT), scaled_last(case):
        yield


def pixel_centres(case: Case) -> AbstractContextManager:
    """Have pytorch-grad-cam upsample masks with ``align_corners=False``, as it does with maps."""
    upsample = partial(nn.Upsample, mode="bilinear", align_corners=False)
    return patch.object(nn, "UpsamplingBilinear2d", upsample)


def settled_sign(case: Case) -> AbstractContextManager:
    """Have pytorch-grad-cam settle the sign of a component, as it does in its SegEigenCAM."""
    module = pytorch_grad_cam.eigen_cam
    return patch.object(module, "get_2d_projection", get_2d_projection_with_sign_correction)


def nothing_negative(case: Case) -> AbstractContextManager | None:
    """The setting as it is if the layer ends in a ReLU."""
    with record(case.network, case.layer) as tape:
        case.network(case.images)
        return nullcontext() if bool(tape.activations.min() == 0) else None


# Who is compared in what


def by_pytorch_grad_cam(name: str, **deviation: object) -> Peer:
    maps = partial(pytorch_grad_cam_maps, kind=getattr(pytorch_grad_cam, name))
    return Peer("pytorch-grad-cam", maps, **deviation)


def by_torchcam(name: str, **deviation: object) -> Peer:
    maps = partial(torchcam_maps, kind=getattr(torchcam.methods, name))
    return Peer("torchcam", maps, needs_nchw=True, **deviation)


def by_captum(name: str) -> Peer:
    return Peer("captum", partial(captum_pixels, kind=getattr(captum.attr, name)))


SCALED_FIRST = {
    "why": "it scales masks before upsampling, the paper after",
    "equal": scaled_last,
}
CHEAP = {
    "gradcam": Spec(
        "gradcam",
        (
            by_pytorch_grad_cam("GradCAM"),
            by_torchcam("GradCAM"),
            Peer("captum", captum_gradcam, needs_nchw=True),
        ),
    ),
    "gradcam++": Spec(
        "gradcam++",
        (
            by_pytorch_grad_cam(
                "GradCAMPlusPlus",
                why="its epsilon of 1e-6 swamps the squares of small gradients",
                equal=loud_head,
            ),
            by_torchcam(
                "GradCAMpp",
                # alpha[idx][mask].div_(...) divides a copy, so that alpha stays the square.
                why="its weights are not divided by the paper's denominator",
            ),
        ),
    ),
    "xgradcam": Spec("xgradcam", (by_pytorch_grad_cam("XGradCAM"), by_torchcam("XGradCAM"))),
    "layercam": Spec("layercam", (by_pytorch_grad_cam("LayerCAM"), by_torchcam("LayerCAM"))),
    "hirescam": Spec("hirescam", (by_pytorch_grad_cam("HiResCAM"),)),
    "cam": Spec(
        "cam",
        (by_torchcam("CAM", why="it keeps negative evidence", equal=partial(option, relu=False)),),
    ),
    "smoothgradcam++": Spec(
        SmoothGradCAMPlusPlus(n_samples=4, std=0.3, random_state=SEED),
        (
            by_torchcam(
                "SmoothGradCAMpp",
                why="other noise; it weighs the channels of the last noisy copy, not of the image",
                equal=faint_noise,
            ),
        ),
    ),
    "finercam": Spec(FinerCAM(weights="probability"), (by_pytorch_grad_cam("FinerCAM"),)),
    "eigencam": Spec(
        EigenCAM(center=True),
        (
            by_pytorch_grad_cam(
                "EigenCAM", why="its sign is whichever NumPy returns", equal=settled_sign
            ),
        ),
    ),
    "eigengradcam": Spec(
        "eigengradcam",
        (by_pytorch_grad_cam("EigenGradCAM", why="its sign is whichever NumPy returns"),),
    ),
    "rollout": Spec("rollout", ()),
    "attentionrelevance": Spec("attentionrelevance", ()),
    "legrad": Spec("legrad", ()),
    "saliency": Spec("saliency", (by_captum("Saliency"),)),
    "guidedbackprop": Spec(
        "guidedbackprop",
        (Peer("pytorch-grad-cam", pytorch_grad_cam_guided), by_captum("GuidedBackprop")),
    ),
    "deconvnet": Spec("deconvnet", (by_captum("Deconvolution"),)),
    "guidedgradcam": Spec("guidedgradcam", (Peer("captum", captum_guided_gradcam),)),
}
EXPENSIVE = {
    "scorecam": Spec(
        ScoreCAM(),
        (
            by_pytorch_grad_cam(
                "ScoreCAM", why="it upsamples masks with align_corners=True", equal=pixel_centres
            ),
            by_torchcam("ScoreCAM", **SCALED_FIRST),
        ),
        n_images=2,
        rounds=3,
    ),
    "ablationcam": Spec(
        "ablationcam",
        (
            by_pytorch_grad_cam(
                "AblationCAM",
                why="it sets channels to -1e7, the paper to 0, where some are negative",
                equal=nothing_negative,
            ),
        ),
        n_images=1,
        rounds=1,
    ),
    "occlusion": Spec("occlusion", (Peer("captum", captum_occlusion),), n_images=2, rounds=1),
    "rise": Spec(RISE(n_samples=200, random_state=SEED), (), n_images=1, rounds=1),
    "iscam": Spec(
        ISCAM(n_samples=2),
        (by_torchcam("ISCAM", **SCALED_FIRST),),
        n_images=1,
        rounds=1,
    ),
    "sscam": Spec(
        SSCAM(n_samples=2, random_state=SEED),
        (
            by_torchcam(
                "SSCAM",
                why="other noise; it scales masks before upsampling, the paper after",
                equal=scaled_last_and_faint_noise,
            ),
        ),
        n_images=1,
        rounds=1,
    ),
}
SPECS = {**CHEAP, **EXPENSIVE}
NEEDS_RELU = ("guidedbackprop", "deconvnet", "guidedgradcam")
NEEDS_POOLED_HEAD = ("cam",)
NEEDS_TOKENS = ("rollout", "attentionrelevance", "legrad")


# Networks and images


def trained_network(arch: str, weights: Path, device: str) -> nn.Module:
    """A network with the weights of a state dict, and as many classes."""
    state = torch.load(weights, weights_only=True)
    head = next(name for name in reversed(state) if name.endswith(".weight"))
    return build_model(arch, n_classes=len(state[head]), weights=weights).to(device).eval()


def prepared_network(arch: str, size: int, device: str) -> nn.Module:
    """A network that behaves as if it had been trained, without a download."""
    torch.manual_seed(SEED)
    network = untrained_network(arch).to(device)
    images = noise_images(16, size, seed=SEED + 1).to(device)
    settle_running_statistics(network, images)
    network.eval()
    head = last_linear(network)
    with torch.no_grad():
        if not head.weight.any():  # as some begin
            nn.init.normal_(head.weight)
        head.weight.mul_(LOGIT / network(images).amax(dim=1).mean())
    return network


def untrained_network(arch: str) -> nn.Module:
    if arch.startswith("timm/"):
        return timm.create_model(arch.removeprefix("timm/"))
    return torchvision.models.get_model(arch, weights=None)


def settle_running_statistics(network: nn.Module, images: Tensor) -> None:
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for batch in images.split(8) if norms else ():
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def last_linear(network: nn.Module) -> nn.Linear:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def has_pooled_head(case: Case) -> bool:
    """Whether what follows the layer is global pooling and one linear layer."""
    head = last_linear(case.network)
    layer = case.explainer.target_layers_[0]
    with record(case.network, case.layer) as tape, torch.no_grad():
        output = case.network(case.images).detach()
        pooled = layer.to_grid(tape.activations.detach()).mean(dim=(2, 3))
    if pooled.shape[1] != head.in_features:
        return False
    with torch.no_grad():
        return torch.allclose(head(pooled), output, rtol=1e-3, atol=1e-3)


def has_relus(network: nn.Module) -> bool:
    return any(isinstance(module, nn.ReLU) for module in network.modules())


def noise_images(n_images: int, size: int, seed: int) -> Tensor:
    """Coarse and fine noise, as the network gets it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n_images, 3, 7, 7, generator=generator)
    coarse = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    fine = torch.rand(n_images, 3, size, size, generator=generator)
    pixels = (255 * (0.8 * coarse + 0.2 * fine)).to(torch.uint8)
    return normalize(pixels, "auto", "auto")


def images_of(folder: Path, n_images: int, size: int) -> Tensor:
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_KINDS]
    if len(paths) < n_images:
        raise SystemExit(f"A batch needs {n_images} images; {folder} has {len(paths)}.")
    generator = torch.Generator().manual_seed(SEED)
    drawn = [paths[i] for i in torch.randperm(len(paths), generator=generator)[:n_images]]
    dataset = ImageDataset(drawn, image_size=size)
    pixels = torch.stack([dataset[i][0] for i in range(n_images)])
    return normalize(pixels, "auto", "auto")


# Measuring


def contenders(case: Case, spec: Spec, autocast: bool) -> dict[str, Explain]:
    field = {"predict": predict, "sklcam": ours}
    if spec.method == "gradcam":
        field["sklcam five methods"] = our_five
    if spec.method == "ablationcam":
        field["sklcam gradcam"] = our_gradcam
    if autocast and isinstance(case.method, ScoreCAM):
        field["sklcam bfloat16"] = ours_in_bfloat16
    return field | {peer.library: peer.explain for peer in spec.peers}


def measured_run(explain: Explain, case: Case, device: str) -> tuple[Tensor, int]:
    """Return the maps, and the most bytes alive at once beyond those that were before."""
    result: list[Tensor] = []
    step = partial(keep, result, explain, case)
    clean_up(case)
    if device == "cpu":
        peak = peak_of_allocations(step)
    else:
        wait(device)
        resting = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        wait(device)
        peak = torch.cuda.max_memory_allocated() - resting
    clean_up(case)
    return result[0].float().cpu(), peak


def keep(result: list[Tensor], explain: Explain, case: Case) -> None:
    result.append(explain(case))


def clean_up(case: Case) -> None:
    case.network.zero_grad()  # pytorch-grad-cam leaves gradients on all parameters
    gc.collect()


def timed_rounds(
    field: dict[str, Explain], case: Case, n_rounds: int, options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Time all in turns, each round starting with another one."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in field}
    names = list(field)
    for i in range(n_rounds):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            case.network.zero_grad()
            times[name].append(seconds(partial(field[name], case), options.device, clock))
    return {name: np.array(of_one) for name, of_one in times.items()}


def agreement(case: Case, peer: Peer, own: Tensor, theirs: Tensor) -> str:
    """Say how far two maps are apart; stop if they should not be."""
    found = largest_difference(own, theirs)
    if found <= TOLERANCE:
        return f"maps agree to {found:.0e}"
    setting = peer.equal(case) if peer.equal else None
    if setting is None:
        if not peer.why:
            stop(peer, case, found)
        return f"maps differ by {found:.0e}: {peer.why}"
    with setting:
        rest = largest_difference(ours(case).cpu(), peer.explain(case).cpu())
    clean_up(case)
    if not rest <= TOLERANCE:
        stop(peer, case, rest)
    return f"maps differ by {found:.0e}: {peer.why}; without that, they agree to {rest:.0e}"


def largest_difference(own: Tensor, theirs: Tensor) -> float:
    return float((own - theirs).abs().max())


def stop(peer: Peer, case: Case, found: float) -> None:
    raise SystemExit(
        f"sklcam and {peer.library} disagree on {case.method!r}: maps in [0, 1] differ by "
        f"{found:.1e}; {TOLERANCE:.0e} is allowed."
    )


def closeness_of_bfloat16(own: Tensor, in_bfloat16: Tensor) -> str:
    found = float((own - in_bfloat16).abs().mean())
    if not found <= TOLERANCE_BFLOAT16:
        raise SystemExit(f"In bfloat16 maps differ by {found:.2f} on average.")
    return f"maps differ by {found:.0e} on average, {largest_difference(own, in_bfloat16):.0e} most"


# Reporting


def measure(arch: str, name: str, case: Case, spec: Spec, options: argparse.Namespace) -> None:
    field = contenders(case, spec, options.autocast)
    runs = {who: measured_run(explain, case, options.device) for who, explain in field.items()}
    maps = {who: run[0] for who, run in runs.items()}
    peaks = {who: run[1] for who, run in runs.items()}
    notes = {
        peer.library: agreement(case, peer, maps["sklcam"], maps[peer.library])
        for peer in spec.peers
    }
    n_rounds = min(options.rounds, spec.rounds or options.rounds)
    times = timed_rounds(field, case, n_rounds, options)
    print(
        f"\n{arch}, {name}, images: {len(case.images)}, rounds: {n_rounds}\n"
        f"  predict takes {np.median(times['predict']):.3f} s, sklcam "
        f"{np.median(times['sklcam']):.3f} s and {peaks['sklcam'] / 2**20:.0f} MiB "
        f"({peaks['sklcam'] / peaks['predict']:.2f} x predict)"
    )
    report = partial(report_ratio, arch, name, times, peaks)
    report("sklcam", "predict")
    if "sklcam five methods" in field:
        report("sklcam five methods", "sklcam", note=f"together: {', '.join(FIVE)}")
    if "sklcam gradcam" in field:
        report("sklcam", "sklcam gradcam")
    for peer in spec.peers:
        report(peer.library, "sklcam", note=notes[peer.library])
    if "sklcam bfloat16" in field:
        report(
            "sklcam",
            "sklcam bfloat16",
            note=closeness_of_bfloat16(maps["sklcam"], maps["sklcam bfloat16"]),
        )
        for peer in spec.peers:
            report(peer.library, "sklcam bfloat16")


def report_ratio(
    arch: str,
    name: str,
    times: dict[str, np.ndarray],
    peaks: dict[str, int],
    one: str,
    other: str,
    *,
    note: str = "",
) -> None:
    title, ratio = f"{one} / {other}", times[one] / times[other]
    median = float(np.median(ratio))
    verdicts = [
        bar.verdict(median)
        for bar in BARS
        if arch in bar.archs and (bar.method, bar.ratio) == (name, title)
    ]
    columns = (
        f"  {title:36}time {median:7.2f} [{ratio.min():.2f} .. {ratio.max():.2f}]",
        f"memory {peaks[one] / peaks[other]:6.2f}",
        *verdicts,
    )
    print("   ".join(columns) + (f"\n{'':6}{note}" if note else ""), flush=True)


def measure_arch(arch: str, images: Tensor, options: argparse.Namespace) -> None:
    if options.weights is None:
        network = prepared_network(arch, options.image_size, options.device)
    else:
        network = trained_network(arch, options.weights, options.device)
    explainer = CAMExplainer(network, image_size=options.image_size, verbose=0).fit(images[:1])
    layer = explainer.target_layers_[0]
    for name in options.methods:
        spec = SPECS[name]
        if layer.layout != "nchw":
            spec = replace(spec, peers=tuple(p for p in spec.peers if not p.needs_nchw))
        if options.only_ours:
            spec = replace(spec, peers=(), n_images=None, rounds=None)
        own = copy.deepcopy(network)  # peers leave traces
        case = Case(
            own,
            CAMExplainer(own, target_layer=layer, image_size=images.shape[-1], verbose=0).fit(),
            images[: spec.n_images],
            copy.deepcopy(get_method(spec.method)),
        )
        if reason := why_not(name, case):
            print(f"\n{arch}, {name}: left out, {reason}")
        else:
            measure(arch, name, case, spec, options)


def why_not(name: str, case: Case) -> str:
    if name in NEEDS_RELU and not has_relus(case.network):
        return "as the network has no ReLUs"
    if name in NEEDS_TOKENS and case.explainer.target_layers_[0].layout != "tokens":
        return "as its attention, if it has any, is not between all tokens of an image"
    if name in NEEDS_POOLED_HEAD and not has_pooled_head(case):
        return "as the layer is not followed by pooling and one linear layer alone"
    return ""


# Memory over many images


class LazyImages(Dataset):
    """Images that exist only while they are asked for."""

    def __init__(self, n_images: int, size: int = 112):
        self.n_images, self.size = n_images, size

    def __len__(self) -> int:
        return self.n_images

    def __getitem__(self, i: int) -> Tensor:
        return torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(i))


def measure_resident(n_images: int, options: argparse.Namespace) -> None:
    """Does resident memory grow with the number of images?"""
    network = torchvision.models.resnet18(weights=None).to(options.device)
    explainer = CAMExplainer(network, batch_size=options.batch_size, verbose=0).fit()
    n_done = early = 0
    for maps in explainer.iter_explain(LazyImages(n_images)):
        n_done += len(maps)
        if not early and n_done >= min(200, n_images):
            early, n_early = resident_bytes(), n_done
    late = resident_bytes()
    print(
        f"\niter_explain, resnet18 at 112 pixels: {early / 2**20:.0f} MiB resident after {n_early} "
        f"images, {late / 2**20:.0f} MiB after {n_done}: {100 * (late / early - 1):+.1f} %"
    )


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]  # Linux
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50", "convnext_tiny"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["cheap"],
        choices=("cheap", "all", "none", *SPECS),
        help="default: those of few passes",
    )
    parser.add_argument("--autocast", action="store_true", help="our Score-CAM in bfloat16, too")
    parser.add_argument(
        "--cpu-time", action="store_true", help="the process's own, where others use the machine"
    )
    parser.add_argument("--only-ours", action="store_true", help="whole batches, without peers")
    parser.add_argument("--memory-images", type=int, default=0, metavar="N")
    parser.add_argument("--data", type=Path, help="folder of images; else noise")
    parser.add_argument("--weights", type=Path, help="state dict of a trained network")
    options = parser.parse_args()
    groups = {"cheap": list(CHEAP), "all": list(SPECS), "none": []}
    options.methods = [one for name in options.methods for one in groups.get(name, [name])]
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def print_setting(options: argparse.Namespace) -> None:
    hardware, meter = platform.machine(), "torch's peak of live bytes (NumPy's are not counted)"
    if options.device == "cuda":
        hardware, meter = torch.cuda.get_device_name(), "torch.cuda's peak of allocated bytes"
    images = "noise" if options.data is None else f"images of {options.data}"
    print(
        f"torch {torch.__version__} on {options.device} ({hardware}), {torch.get_num_threads()} "
        f"threads; captum {captum.__version__}, torchcam {torchcam.__version__}, pytorch-grad-cam "
        f"{version('grad-cam')}\n"
        f"batches of {options.batch_size}, {images}, image size {options.image_size}; the bars are "
        "for batches of 16 at 224 pixels on a CPU\n"
        f"{'CPU ' if options.cpu_time else ''}time: median [min .. max] over the rounds, each "
        "ratio within its round\n"
        f"memory: {meter}, above the resting state"
    )


def main() -> None:
    options = parse()
    print_setting(options)
    images = noise_images(options.batch_size, options.image_size, SEED)
    if options.data is not None:
        images = images_of(options.data, options.batch_size, options.image_size)
    warnings.filterwarnings("ignore", module="captum")
    with patch.object(tqdm, "tqdm", partial(tqdm.tqdm, disable=True)):
        for arch in options.arch if options.methods else ():
            measure_arch(arch, images.to(options.device), options)
    if options.memory_images:
        measure_resident(options.memory_images, options)


if __name__ == "__main__":
    main()
