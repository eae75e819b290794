"""What ``explain.py`` times: each method, as sklcam and the other libraries compute it.

Each library gets what it needs to make the same maps: those of the predicted class, at the size of
the images, scaled to [0, 1]. If a library deviates from the paper, its entry says why, and in which
setting the deviation does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import captum.attr
import numpy as np
import pytorch_grad_cam
import pytorch_grad_cam.eigen_cam
import torch
import torchcam.methods
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction
from timed_networks import SEED, last_linear
from torch import Tensor, nn
from torch.nn import functional as F

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
from sklcam.networks import record

MASKED = 32  # masked images at a time for peers: torchcam's default; sklcam has its own
LOUD = 1e4  # times LOGIT: gradients so large that no epsilon matters
FAINT = 1e-9  # standard deviation of noise that changes nothing
FIVE = ("gradcam", "gradcam++", "xgradcam", "layercam", "hirescam")  # of one gradient


@dataclass(frozen=True)
class Explained:
    """Images, and one network in evaluation mode with the layer that is explained."""

    network: nn.Module
    explainer: CAMExplainer
    images: Tensor

    @property
    def layer(self) -> nn.Module:
        return self.explainer.target_layers_[0].of(self.network)

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[-2], self.images.shape[-1]


@dataclass(frozen=True)
class Case(Explained):
    """The input of every contender: one batch, and a method."""

    method: Method

    def predicted(self) -> Tensor:
        with torch.no_grad():
            return self.network(self.images).argmax(dim=1)


Explain = Callable[[Case], Tensor]


@dataclass(frozen=True)
class Peer:
    """Another library's way to the same maps.

    ``why`` says how it deviates from the paper, if it does; ``equal`` returns a context in which it
    does not, or None for networks that have no such context. ``needs_nchw`` says whether the
    layer's output must be (n, K, u, v).
    """

    library: str
    explain: Explain
    why: str = ""
    needs_nchw: bool = False
    equal: Callable[[Case], AbstractContextManager | None] | None = None


@dataclass(frozen=True)
class Spec:
    """A method, its peers, and the number of images and rounds that are affordable."""

    method: str | Method
    peers: tuple[Peer, ...]
    n_images: int | None = None  # None is the whole batch
    rounds: int | None = None


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
    """Resize raw maps (n_images, u, v) and scale each to [0, 1], for libraries that do not."""
    maps = maps.detach()
    if tuple(maps.shape[-2:]) != size:
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def strongest(pixels: Tensor) -> Tensor:
    """Reduce signed maps of each channel to one map per image, as sklcam does."""
    return finish(pixels.abs().amax(dim=1), (pixels.shape[-2], pixels.shape[-1]))


def pytorch_grad_cam_maps(case: Case, *, kind: type) -> Tensor:
    layer = case.explainer.target_layers_[0]
    reshape = None if layer.layout == "nchw" else layer.to_grid
    with kind(case.network, target_layers=[case.layer], reshape_transform=reshape) as cam:
        cam.batch_size = MASKED
        return torch.from_numpy(cam(input_tensor=case.images, targets=None))


def pytorch_grad_cam_guided(case: Case) -> Tensor:
    # It replaces the network's ReLUs, and takes one image at a time.
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
    """Return our method's options, under torchcam's names."""
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


# Settings in which a deviation does not matter. Every change applies to both sides.


@contextmanager
def loud_head(case: Case) -> Iterator[None]:
    """Make gradients so large that no epsilon matters beside their squares."""
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
    """Make noise too small to matter; None if gradients may differ from place to place.

    In that case, torchcam multiplies their cubes with activations before it sums, and the paper
    after.
    """
    return _faint_noise(case) if has_pooled_head(case) else None


@contextmanager
def _faint_noise(case: Case) -> Iterator[None]:
    with option(case, std=FAINT), loud_head(case):
        yield


@contextmanager
def option(case: Case, **options: object) -> Iterator[None]:
    """Give our method other options inside the block."""
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
    """Return the unchanged setting if the layer ends in a ReLU."""
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
    "why": "it scales masks before upsampling, and the paper after",
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
                # alpha[idx][mask].div_(...) divides a copy, so alpha stays the square.
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
                why="its noise differs; it weights channels of the last noisy copy, not the image",
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
                why="it sets channels to -1e7, and the paper to 0, if some are negative",
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
                why="its noise differs; it scales masks before upsampling, and the paper after",
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


def why_not(name: str, case: Case) -> str:
    if name in NEEDS_RELU and not has_relus(case.network):
        return "because the network has no ReLUs"
    if name in NEEDS_TOKENS and case.explainer.target_layers_[0].layout != "tokens":
        return "because its attention, if any, is not between all tokens of an image"
    if name in NEEDS_POOLED_HEAD and not has_pooled_head(case):
        return "because the layer is not followed by only pooling and one linear layer"
    return ""


def has_pooled_head(case: Case) -> bool:
    """Return whether the layer is followed by global pooling and one linear layer."""
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
