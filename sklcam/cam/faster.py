"""Methods that need fewer passes than Score-CAM and give other maps.

They do not approximate Score-CAM within a known error. ``benchmarks/faster_methods.py`` measures
how far their maps are from those of Score-CAM.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import check_count, check_number
from sklcam.cam.base import Method, batch_size_for, check_batch_size
from sklcam.cam.maps import places
from sklcam.cam.perturbation import ScoreCAM, check_rows, resumed_output
from sklcam.cam.recorded import RecordedPass
from sklcam.networks.layers import TargetLayer

_BLUR_WIDTH, _BLUR_SIGMA = 51, 50.0


class FasterScoreCAM(ScoreCAM):
    r"""Faster-Score-CAM: Score-CAM with only the channels that vary most.

    .. math:: w_k = \frac{\exp y_c(x \odot H_k)}{\sum_{j \in S} \exp y_c(x \odot H_j)}
              \text{ for } k \in S, \text{ and else } 0

    where S is the set of the ``n_channels`` channels whose activations have the largest variance
    over the places. With all channels of a layer, the method is Score-CAM.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.
    batch_size : int or None, default=None
        The largest number of masked images that go through the network at a time. None is 10 images
        of 224 x 224 pixels on a CPU, as its caches hold no more, 83 elsewhere, and more if the
        images are smaller.
    n_channels : int, default=10
        The number of channels; each costs a pass. All channels are used if there are fewer.

    References
    ----------
    Tabayashi, "Faster Score-CAM", 2020, https://github.com/tabayashi0117/Score-CAM (no paper). Wang
    et al., "Score-CAM", CVPRW 2020.

    Examples
    --------
    The second channel varies less and is left out:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import FasterScoreCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> method = FasterScoreCAM(n_channels=1)
    >>> explainer = CAMExplainer(network, method=method, target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 8.0], [4.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=1)
    array([[[0. , 1. ],
            [0.5, 0. ]]], dtype=float32)
    """

    def __init__(self, relu: bool = True, batch_size: int | None = None, n_channels: int = 10):
        super().__init__(relu, batch_size)
        self.n_channels = n_channels

    def check(self) -> None:
        super().check()
        check_count("n_channels", self.n_channels)

    def weights(self, recorded: RecordedPass, layer: int) -> Tensor:
        activations = recorded.grid(layer)
        variance = activations.flatten(2).var(dim=2, correction=0)
        # The sort is stable: ties between channels go to the first, for any batch.
        order = variance.argsort(dim=1, descending=True, stable=True)
        chosen = order[:, : self.n_channels]
        own = torch.arange(recorded.n_images, device=chosen.device)[:, None]
        few = self.weights_of(recorded, activations[own, chosen])
        weights = few.new_zeros(*few.shape[:2], activations.shape[1])
        return weights.scatter(2, chosen[:, None].expand_as(few), few)


class GroupCAM(Method):
    r"""Group-CAM: groups of channels, weighted by the confidence that each restores.

    .. math:: L = \mathrm{ReLU}\Big(\sum_{g=1}^{G} (p_c(x_g) - p_c(\tilde x))\, M_g\Big), \qquad
              x_g = M_g \odot x + (1 - M_g) \odot \tilde x

    where :math:`\tilde x` is the blurred image. The masks are partial sums of Grad-CAM,

    .. math:: M_g = s\Big(\mathrm{up}\Big(D_\theta\Big(\mathrm{ReLU}\sum_{k \in g} \alpha_k A_k
              \Big)\Big)\Big)

    :math:`D_\theta` sets values to 0 that are not above the percentile :math:`\theta` over the
    places, and s scales to [0, 1]. :math:`p_c` is the probability of the class, or the score for
    targets without a probability, such as callables and proxies. Maps are at the images'
    resolution.

    Parameters
    ----------
    n_groups : int, default=32
        G, the number of groups; each costs a pass. A group holds consecutive channels, the same
        number in each group but the last. If there are fewer channels than groups, each channel is
        a group.
    percentile : float from 0 to 100, default=70.0
        :math:`\theta`.
    batch_size : int or None, default=None
        The largest number of masked images that go through the network at a time. None is 10 images
        of 224 x 224 pixels on a CPU, as its caches hold no more, 83 elsewhere, and more if the
        images are smaller.

    Notes
    -----
    The blur is that of the authors' code: a Gaussian of 51 x 51 pixels with a sigma of 50 and
    reflected borders. If a side of the images is shorter than 26 pixels, the Gaussian is as wide as
    reflection allows.

    References
    ----------
    Zhang, Rao, Yang, "Group-CAM: Group Score-Weighted Visual Explanations for Deep Convolutional
    Networks", 2021, section 3, and the authors' code.

    Examples
    --------
    Two groups of one channel each. The second counts against the class and has an empty mask:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import GroupCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, GroupCAM(n_groups=2, percentile=0), "0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 8.0], [4.0, 0.0]], [[8.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=lambda out: out[:, 0] ** 2 - out[:, 1])
    array([[[0. , 1. ],
            [0.5, 0. ]]], dtype=float32)
    """

    graph = "head"
    at_layer = False

    def __init__(self, n_groups: int = 32, percentile: float = 70.0, batch_size: int | None = None):
        self.n_groups = n_groups
        self.percentile = percentile
        self.batch_size = batch_size

    def check(self) -> None:
        check_count("n_groups", self.n_groups)
        check_number("percentile", self.percentile, 0, 100)
        check_batch_size(self.batch_size)

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        masks = recorded.for_each_score(
            lambda column: [
                self._denoised(recorded.grid(layer), gradients)
                for layer, gradients in enumerate(recorded.gradient_grids(column))
            ]
        )
        recorded.prepare_inference()
        blurred = _blurred(recorded.images)
        with torch.no_grad():
            base = self._confidence(recorded, blurred)
            return [self._weighed(recorded, each, blurred, base) for each in masks]

    def _denoised(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return each group's sum, with low values set to 0, (n_images, G, u, v)."""
        alpha = gradients.mean(dim=places(gradients), keepdim=True)
        groups = (alpha * activations).chunk(self.n_groups, dim=1)
        sums = torch.stack([group.sum(dim=1) for group in groups], dim=1).relu()
        threshold = _percentile(sums.flatten(2), self.percentile)
        threshold = threshold.reshape(*sums.shape[:2], *[1] * (sums.ndim - 2))
        # torch.where with ">" would turn NaN into 0; this keeps it.
        return sums.masked_fill(sums <= threshold, 0)

    def _weighed(
        self, recorded: RecordedPass, masks: Tensor, blurred: Tensor, base: Tensor
    ) -> Tensor:
        """Return the maps (n_images, k, height, width) of masks (n_images, k, G, u, v)."""
        n_images, k, n_groups = masks.shape[:3]
        most = batch_size_for(recorded.images, self.batch_size)
        flat, gains = masks.flatten(0, 2), []
        every = torch.arange(len(flat), device=flat.device)
        for part in every.split(most):
            rows, columns = part // (k * n_groups), part // n_groups % k
            shown = self._enlarged(recorded, flat[part][:, None]).to(blurred.dtype)
            mixed = shown * recorded.images[rows] + (1 - shown) * blurred[rows]
            found = recorded.confidence(recorded.run(mixed, rows), rows) - base[rows]
            gains.append(found.gather(1, columns[:, None])[:, 0])
        weights = torch.cat(gains).reshape(n_images, k, n_groups)
        # Upsample the masks again, a few images at a time. All of them would take the memory of
        # many batches.
        maps = [
            torch.einsum("nkg,nkg...->nk...", part_weights, self._enlarged(recorded, part))
            for part_weights, part in zip(
                *(each.split(max(1, most // (k * n_groups))) for each in (weights, masks)),
                strict=True,
            )
        ]
        return torch.cat(maps).relu()

    def _enlarged(self, recorded: RecordedPass, masks: Tensor) -> Tensor:
        """Upsample masks (n, ..., u, v) to the images' size and scale each to [0, 1]."""
        n_axes = len(recorded.size)
        flat = masks.reshape(len(masks), -1, *masks.shape[-n_axes:])
        scaled = recorded.scaled(recorded.upsample(flat))
        return scaled.reshape(*masks.shape[:-n_axes], *recorded.size)

    def _confidence(self, recorded: RecordedPass, images: Tensor) -> Tensor:
        rows = torch.arange(len(images), device=images.device)
        parts = rows.split(batch_size_for(images, self.batch_size))
        return torch.cat(
            [recorded.confidence(recorded.run(images[part], part), part) for part in parts]
        )


def _percentile(values: Tensor, percentile: float) -> Tensor:
    """Return the percentile over the last axis, with linear interpolation as in NumPy."""
    # torch.quantile uses float64 internally, which some devices do not support.
    place = percentile / 100 * (values.shape[-1] - 1)
    ordered, below = values.sort(dim=-1).values, int(place)
    above = min(below + 1, values.shape[-1] - 1)
    return torch.lerp(ordered[..., below], ordered[..., above], place - below)


def _blurred(images: Tensor) -> Tensor:
    """Blur images (n, channels, ...) by the authors' Gaussian, one axis after the other."""
    convolve = F.conv2d if images.ndim == 4 else F.conv3d
    blurred, n_channels = images.detach(), images.shape[1]
    for axis in range(2, images.ndim):
        half = min(_BLUR_WIDTH // 2, images.shape[axis] - 1)
        if half == 0:
            continue
        places = torch.arange(-half, half + 1, device=images.device, dtype=torch.float32)
        kernel = torch.softmax(-(places**2) / (2 * _BLUR_SIGMA**2), dim=0).to(images.dtype)
        shape = [2 * half + 1 if i == axis else 1 for i in range(2, images.ndim)]
        kernels = kernel.reshape(1, 1, *shape).expand(n_channels, 1, *shape)
        sides = [half if i == axis else 0 for i in reversed(range(2, images.ndim)) for _ in (0, 1)]
        blurred = convolve(F.pad(blurred, sides, mode="reflect"), kernels, groups=n_channels)
    return blurred


class ReciproCAM(Method):
    r"""Recipro-CAM: places weighted by the network's output when it sees only that place.

    .. math:: L_{ij} = p_c(A \odot E^{ij})

    where :math:`E^{ij}` is 1 at the place (i, j) of the layer, in all channels, and 0 elsewhere.
    :math:`p_c` is the probability of the class, or the score for targets without a probability,
    such as callables and proxies. The part of the network before the layer runs once, in the pass
    that also gives the prediction. The masked activations go only through the part after it.

    Parameters
    ----------
    batch_size : int, default=256
        The largest number of masked activations that go through the head at a time.

    Notes
    -----
    The method is for networks whose layer is a grid of places and nothing else: with a class token,
    the network never sees a place alone. If the head is a mean over Z places and one linear layer,
    the logits of a place are the weighted sum of its channels, divided by Z, plus the bias. The map
    is then CAM after a softmax.

    The authors' code can also spread a place to its neighbours by a 3 x 3 Gaussian, which it does
    not do by default. This option is left out.

    References
    ----------
    Byun, Lee, "Recipro-CAM: Fast gradient-free visual explanations for convolutional neural
    networks", 2022, and as "ReciproCAM", CVPRW 2024, with the authors' code.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import ReciproCAM
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=ReciproCAM(), target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=lambda out: out[:, 0])
    array([[[0. , 1. ],
            [0.5, 0. ]]], dtype=float32)
    """

    resumes = True

    def __init__(self, batch_size: int = 256):
        self.batch_size = batch_size

    def check(self) -> None:
        check_count("batch_size", self.batch_size)

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        maps = []
        for i, layer in enumerate(recorded.layers):
            check_rows(recorded, i, self)
            _check_is_grid(layer)
            grid = recorded.grid(i).shape[2:]
            with torch.no_grad():
                found = [self._alone(recorded, i, image) for image in range(recorded.n_images)]
            maps.append(torch.stack(found).unflatten(2, grid))
        return maps

    def _alone(self, recorded: RecordedPass, layer: int, image: int) -> Tensor:
        """Return the confidence (k, places) in an image when the network sees one place of it."""
        activations = recorded.activations[layer].detach()[image]
        axis = recorded.layers[layer].channel_axis(recorded.activations[layer]) - 1
        # Keep the layer's own layout, as the network continues from it. The axes are in order.
        by_place = activations.movedim(axis, -1).flatten(0, -2)
        found = []
        every = torch.arange(len(by_place), device=activations.device)
        for part in every.split(self.batch_size):
            alone = by_place.new_zeros(len(part) + 1, *by_place.shape)
            alone[0] = by_place  # unchanged, for a check
            alone[torch.arange(1, len(alone), device=part.device), part] = by_place[part]
            shape = activations.movedim(axis, -1).shape
            changed = alone.reshape(len(alone), *shape).movedim(-1, axis + 1).contiguous()
            rows = torch.full((len(part),), image, device=part.device)
            output = resumed_output(recorded, layer, changed, image, self)
            found.append(recorded.confidence(output, rows))
        return torch.cat(found).T


def _check_is_grid(layer: TargetLayer) -> None:
    if layer.n_prefix or layer.reshape is not None:
        beside = "tokens besides its places" if layer.n_prefix else "a reshape of its own"
        raise ValueError(
            f"ReciproCAM needs a target layer that is a grid of places, but {layer.name!r} has "
            f"{beside}. Name a layer that is a grid, or use another method."
        )
