"""Methods that work on pixels: gradients with respect to the image, and occlusion.

Their maps have the resolution of the network's input, except for excitation backpropagation, which
ends at a layer. Maps of gradients are the largest absolute value over the channels, or signed, with
one map per channel.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import reduce
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from sklcam._validation import check_count, check_number
from sklcam.cam.base import Method, batch_size_for, check_batch_size
from sklcam.cam.gradient import GradCAM
from sklcam.cam.recorded import RecordedPass
from sklcam.cam.rules import ExcitationRule, ReluRule

Channels = Literal["max", "keep"]


class _PixelMethod(Method):
    graph = "images"
    uses_layers = False
    at_layer = False

    def __init__(self, channels: Channels = "max"):
        self.channels = channels

    @property
    def keeps_channels(self) -> bool:
        return self.channels == "keep"

    @property
    def scaled(self) -> bool:
        return not self.keeps_channels  # scaling to [0, 1] would lose the sign

    def check(self) -> None:
        if self.channels not in ("max", "keep"):
            raise ValueError(f'channels must be "max" or "keep"; got {self.channels!r}.')

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        signed = recorded.for_each_score(lambda column: self.signed(recorded, column))
        return signed if self.keeps_channels else [maps.abs().amax(dim=2) for maps in signed]

    @abstractmethod
    def signed(self, recorded: RecordedPass, column: int) -> list[Tensor]:
        """Return the signed maps of one score, (n_images, channels, height, width).

        There is one tensor per layer, or a single tensor if layers are not used.
        """


class Saliency(_PixelMethod):
    """Saliency: the gradient of the score with respect to the image.

    Parameters
    ----------
    channels : {"max", "keep"}, default="max"
        "max" takes the largest absolute value over the image's channels. "keep" keeps the signed
        gradient of each channel, in maps of shape (n_images, channels, height, width) that are
        never scaled.

    References
    ----------
    Simonyan et al., "Deep Inside Convolutional Networks", ICLR workshop 2014, section 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import Saliency
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=Saliency(), target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=0)
    array([[[0., 1.],
            [1., 0.]]], dtype=float32)
    """

    def signed(self, recorded: RecordedPass, column: int) -> list[Tensor]:
        return [recorded.image_gradients(column)]


class GuidedBackprop(Saliency):
    """Guided backpropagation: the gradient, with negative values set to zero at every ReLU.

    Parameters
    ----------
    channels : {"max", "keep"}, default="max"
        See :class:`Saliency`.

    References
    ----------
    Springenberg et al., "Striving for Simplicity", ICLR workshop 2015, section 3.4.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import GuidedBackprop
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> method = GuidedBackprop(channels="keep")
    >>> explainer = CAMExplainer(network, method=method, target_layer="0", verbose=0).fit()
    >>> explainer.explain(torch.tensor([[[[-1.0, 2.0]]]]), target=lambda out: 2 * out[:, 0])
    array([[[[0., 1.]]]], dtype=float32)
    >>> explainer.explain(torch.tensor([[[[-1.0, 2.0]]]]), target=lambda out: -2 * out[:, 0])
    array([[[[0., 0.]]]], dtype=float32)
    """

    def rule(self) -> ReluRule:
        return ReluRule("guided")


class Deconvnet(Saliency):
    """Deconvolution: each ReLU is applied to the gradient, whatever it did in the forward pass.

    Parameters
    ----------
    channels : {"max", "keep"}, default="max"
        See :class:`Saliency`.

    References
    ----------
    Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 2.1.

    Examples
    --------
    Places that a ReLU has set to zero in the forward pass are not blank in the map:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import Deconvnet
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> method = Deconvnet(channels="keep")
    >>> explainer = CAMExplainer(network, method=method, target_layer="0", verbose=0).fit()
    >>> explainer.explain(torch.tensor([[[[-1.0, 2.0]]]]), target=lambda out: 2 * out[:, 0])
    array([[[[1., 1.]]]], dtype=float32)
    """

    def rule(self) -> ReluRule:
        return ReluRule("deconv")


class GuidedGradCAM(_PixelMethod):
    """Guided Grad-CAM: a gradient at the pixels, multiplied by the upsampled Grad-CAM map.

    Both come from one forward pass.

    Parameters
    ----------
    pixel : {"guided", "deconv"}, default="guided"
        "guided" is guided backpropagation. "deconv" is deconvolution, which makes the method
        Deconvolution Grad-CAM.
    channels : {"max", "keep"}, default="max"
        See :class:`Saliency`.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, sections 3.2 and 5.1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import GuidedGradCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=GuidedGradCAM(), target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=0)
    array([[[0. , 1. ],
            [0.5, 0. ]]], dtype=float32)
    """

    uses_layers = True

    def __init__(self, pixel: Literal["guided", "deconv"] = "guided", channels: Channels = "max"):
        super().__init__(channels)
        self.pixel = pixel

    def check(self) -> None:
        super().check()
        if self.pixel not in ("guided", "deconv"):
            raise ValueError(f'pixel must be "guided" or "deconv"; got {self.pixel!r}.')

    def rule(self) -> ReluRule:
        return ReluRule(self.pixel)

    def signed(self, recorded: RecordedPass, column: int) -> list[Tensor]:
        gradcam, rule = GradCAM(), recorded.rule
        assert isinstance(rule, ReluRule)
        # Grad-CAM uses plain gradients. The rule is only for the gradient at the pixels.
        with rule.suspended():
            grids = recorded.gradient_grids(column, keep=True)
        pixels = recorded.image_gradients(column)
        maps = [
            gradcam.combine(recorded.grid(layer), gradients).relu()
            for layer, gradients in enumerate(grids)
        ]
        return [recorded.upsample(each[:, None]) * pixels for each in maps]


class ExcitationBackprop(Method):
    """Excitation backpropagation: where a class's winning probability comes from, at a layer.

    Parameters
    ----------
    contrastive : bool, default=True
        Whether to subtract the probability of the dual class, the evidence against the class, and
        show the positive rest (c-MWP). False is MWP. True needs a layer with weights between the
        target layer and the output; a warning says if there is none.

    References
    ----------
    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import ExcitationBackprop
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> method = ExcitationBackprop(contrastive=False)
    >>> explainer = CAMExplainer(network, method=method, target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=0)
    array([[[0. , 1. ],
            [0.5, 0. ]]], dtype=float32)
    """

    graph = "head"

    def __init__(self, contrastive: bool = True):
        self.contrastive = contrastive

    def rule(self) -> ExcitationRule:
        return ExcitationRule(self.contrastive)

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        return recorded.for_each_score(lambda column: self._won(recorded, column))

    def _won(self, recorded: RecordedPass, column: int) -> list[Tensor]:
        """Return the probability that each position of each layer wins, (n_images, u, v)."""
        rule = recorded.rule
        assert isinstance(rule, ExcitationRule)
        rule.begin()  # the dual is subtracted once per backward pass, at the topmost layer
        won = [_channel_sum(gradients) for gradients in recorded.gradient_grids(column)]
        return [maps.relu() for maps in won] if self.contrastive else won


def _channel_sum(gradients: Tensor) -> Tensor:
    """Sum over channels (n_images, K, u, v), and return exactly 0 where they cancel up to rounding.

    Otherwise, scaling to [0, 1] would turn the rounding errors of an empty map into a visible map.
    """
    total, size = gradients.sum(dim=1), gradients.abs().sum(dim=1)
    is_rounding = total.abs() < 8 * torch.finfo(gradients.dtype).eps * size  # False for inf and NaN
    return torch.where(is_rounding, 0.0, total)


class Occlusion(Method):
    """Occlusion: by how much the score falls when a patch of the image is covered.

    A pixel's value is the mean over the patches that cover it. The first patch starts in the top
    left corner, and the others follow at every stride. Patches may be cut off at the right and
    lower edges.

    Parameters
    ----------
    patch : int or None, default=None
        Side of the square patch, or of the cube for volumes, in pixels of the network's input. None
        is a seventh of the shortest side, such as 32 pixels for 224.
    stride : int or None, default=None
        Distance between patches. None is half the patch.
    fill : float, default=0.0
        The value that covers patches, in units of the network's input: 0 is the mean colour.
    relu : bool, default=True
        Whether to set negative falls to zero. They belong to patches that, once covered, raise the
        score.
    batch_size : int or None, default=None
        The largest number of covered images that go through the network at a time. None is 10
        images of 224 x 224 pixels on a CPU, as its caches hold no more, 83 elsewhere, and more if
        the images are smaller.

    References
    ----------
    Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import Occlusion
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=Occlusion(patch=1), target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=0)
    array([[[0. , 1. ],
            [0.5, 0. ]]], dtype=float32)
    """

    uses_layers = False

    def __init__(
        self,
        patch: int | None = None,
        stride: int | None = None,
        fill: float = 0.0,
        relu: bool = True,
        batch_size: int | None = None,
    ):
        self.patch = patch
        self.stride = stride
        self.fill = fill
        self.relu = relu
        self.batch_size = batch_size

    def check(self) -> None:
        check_batch_size(self.batch_size)
        for name, pixels in (("patch", self.patch), ("stride", self.stride)):
            if pixels is not None:
                check_count(f"{name}, a number of pixels,", pixels)
        check_number("fill", self.fill)

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        side, stride = self.patch_and_stride(*recorded.size)
        device = recorded.images.device
        starts = [torch.arange(0, n - side + stride, stride, device=device) for n in recorded.size]
        corners = torch.cartesian_prod(*starts)  # (n_patches, 2), or 3 for volumes
        recorded.prepare_inference()  # worth its two passes, as dozens follow for each image
        # Each patch is placed on all images in turn. Batches need not end with a patch.
        every = torch.arange(recorded.n_images * len(corners), device=device)
        scores = []
        for part in every.split(batch_size_for(recorded.images, self.batch_size)):
            rows = part % recorded.n_images
            patches = _covers(corners[part // recorded.n_images], side, recorded.size)
            covered = recorded.images[rows].masked_fill_(patches[:, None], self.fill)
            scores.append(recorded.score(recorded.run(covered, rows), rows))
        covered_scores = torch.cat(scores).unflatten(0, (-1, recorded.n_images))
        falls = (recorded.scores.detach() - covered_scores).permute(1, 2, 0)
        counts = [len(each) for each in starts]
        maps = _mean_over_patches(falls.unflatten(2, counts), side, stride, recorded.size)
        return [maps.relu() if self.relu else maps]

    def patch_and_stride(self, *sides: int) -> tuple[int, int]:
        """Return the patch and the stride for images with these sides."""
        side = self.patch or max(1, min(sides) // 7)
        stride = self.stride or max(1, side // 2)
        if side > min(sides) or stride > side:
            raise ValueError(
                f"Occlusion needs a patch that fits in the image and a stride no longer than the "
                f"patch; got patch={side} and stride={stride} for images of "
                f"{' x '.join(map(str, sides))}."
            )
        return side, stride


def _covers(corners: Tensor, side: int, size: tuple[int, ...]) -> Tensor:
    """Return which pixels the patches cover, bool of shape (m, height, width).

    Parameters
    ----------
    corners : Tensor of shape (m, 2), int64
        The patches' top left corners; (m, 3) for volumes.
    side : int
    size : tuple of int
        The size of the images.
    """
    shown: list[Tensor] = []
    for axis, length in enumerate(size):
        places, start = torch.arange(length, device=corners.device), corners[:, axis, None]
        along = (places >= start) & (places < start + side)
        shown.append(along.reshape(-1, *[length if i == axis else 1 for i in range(len(size))]))
    return reduce(torch.logical_and, shown)


def _mean_over_patches(values: Tensor, side: int, stride: int, size: tuple[int, ...]) -> Tensor:
    """Return for each pixel the mean of the values of the patches that cover it.

    Parameters
    ----------
    values : Tensor of shape (n, k, rows, columns)
        One value for each patch of a lattice.
    side, stride : int
        The side and stride of the patches. The stride is no longer than the side.
    size : tuple of int
        The size of the images. Patches may be cut off at the far edges.

    Returns
    -------
    Tensor of shape (n, k, height, width)
    """
    axes = zip(size, values.shape[2:], strict=True)
    along = [_covering(length, count, side, stride, values.device) for length, count in axes]
    total, n_covering = values.new_zeros(*values.shape[:2], *size), values.new_zeros(size)
    # A pixel has a few patches along each axis. Each step takes one combination of them, for all
    # pixels. Others are masked out by torch.where, as a product with 0 would spread NaN.
    for choice in product(range(-(-side // stride)), repeat=len(size)):
        chosen = [(of[i], are[i]) for i, (of, are) in zip(choice, along, strict=True)]
        places: list[Any] = [slice(None)] * 2
        places += torch.meshgrid(*[of for of, _ in chosen], indexing="ij")
        covered = reduce(
            torch.logical_and, torch.meshgrid(*[are for _, are in chosen], indexing="ij")
        )
        total += torch.where(covered, values[tuple(places)], 0)
        n_covering += covered
    return total / n_covering.clamp(min=1)


def _covering(
    length: int, count: int, side: int, stride: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return which patches may cover each pixel of an axis, (m, length), and whether they do."""
    pixels = torch.arange(length, device=device)
    # Patches in order. The last one that may cover a pixel starts at it or just before it.
    back = torch.arange(-(-side // stride) - 1, -1, -1, device=device)
    patches = pixels // stride - back[:, None]
    is_there = (patches >= 0) & (patches < count) & (pixels - patches * stride < side)
    return patches.clamp(0, count - 1), is_there
