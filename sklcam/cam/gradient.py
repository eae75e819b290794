"""Methods that use the gradient of a score with respect to a layer's activations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from sklearn.utils import check_random_state
from torch import Tensor

from sklcam._validation import draw_seed
from sklcam.cam.base import (
    ChannelMethod,
    GradientMethod,
    RandomState,
    WeightedGradientMethod,
    check_noise,
)
from sklcam.cam.maps import places
from sklcam.cam.recorded import RecordedPass
from sklcam.cam.rules import ReluRule
from sklcam.networks.precision import at_least_float32


class GradCAM(WeightedGradientMethod):
    r"""Grad-CAM: channels weighted by their mean gradient.

    .. math:: \alpha_k = \frac{1}{Z} \sum_{ij} \frac{\partial y_c}{\partial A_{k,ij}}, \qquad
              L = \mathrm{ReLU}\Big(\sum_k \alpha_k A_k\Big)

    The options are the ablations of the paper's appendix B.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero. Training on explanations needs False: with the
        ReLU, a network learns maps that are negative everywhere.
    pooling : {"mean", "max"}, default="mean"
        How a channel's gradients are pooled into its weight.
    gradient : {"plain", "absolute", "guided", "deconv"}, default="plain"
        "absolute" takes absolute values of the gradients before pooling. "guided" and "deconv"
        change the backward pass through the ReLUs between the layer and the score. If there are
        none, as after ResNet's last block, they change nothing, and a warning says so.

    References
    ----------
    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", IJCV 2020, eq. 1-2 and appendix B. Without the ReLU: Sun, Phan, Nguyen, "Staying
    Consistent with GradCAM", section 3.2.3.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import GradCAM
    >>> activations = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]], requires_grad=True)
    >>> scores = 2 * activations[:, 0].sum((1, 2)) - activations[:, 1].sum((1, 2))
    >>> GradCAM()(scores, activations)
    tensor([[[2., 3.]]])
    """

    def __init__(
        self,
        relu: bool = True,
        pooling: Literal["mean", "max"] = "mean",
        gradient: Literal["plain", "absolute", "guided", "deconv"] = "plain",
    ):
        super().__init__(relu)
        self.pooling = pooling
        self.gradient = gradient

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        if self.gradient == "absolute":
            gradients = gradients.abs()
        pool = gradients.mean if self.pooling == "mean" else gradients.amax
        return pool(dim=places(gradients))

    def check(self) -> None:
        if self.pooling not in ("mean", "max"):
            raise ValueError(f'pooling must be "mean" or "max"; got {self.pooling!r}.')
        if self.gradient not in ("plain", "absolute", "guided", "deconv"):
            raise ValueError(
                'gradient must be "plain", "absolute", "guided" or "deconv"; got '
                f"{self.gradient!r}."
            )

    def rule(self) -> ReluRule | None:
        return ReluRule(self.gradient) if self.gradient in ("guided", "deconv") else None


class Counterfactual(GradCAM):
    """Counterfactual Grad-CAM: the evidence against a class, by the negated gradient.

    Parameters
    ----------
    relu, pooling, gradient
        See :class:`GradCAM`. "absolute" is refused, as absolute values lose the sign.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, eq. 12.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import Counterfactual
    >>> activations = torch.tensor([[[[1.0, 2.0]], [[4.0, 1.0]]]], requires_grad=True)
    >>> scores = 2 * activations[:, 0].sum((1, 2)) - activations[:, 1].sum((1, 2))
    >>> Counterfactual()(scores, activations)
    tensor([[[2., 0.]]])
    """

    def check(self) -> None:
        super().check()
        if self.gradient == "absolute":
            raise ValueError(
                'Counterfactual(gradient="absolute") would equal GradCAM(gradient="absolute"), as '
                "absolute values lose the sign. Choose another gradient, or use GradCAM."
            )

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return super().weights(activations, -gradients)


class CAM(ChannelMethod):
    """CAM: channels weighted by the weights of the linear layer that follows global pooling.

    CAM is only for networks whose head is global average pooling and one linear layer.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.

    References
    ----------
    Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import CAM
    >>> linear = nn.Linear(2, 2)
    >>> _ = nn.init.eye_(linear.weight)
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    >>> images = torch.tensor([[[[0.0, 2.0]], [[3.0, 0.0]]]])
    >>> explainer = CAMExplainer(network, method=CAM(), target_layer="0", verbose=0).fit(images)
    >>> explainer.explain(images, target=0)
    array([[[0., 1.]]], dtype=float32)
    """

    def channel_weights(self, recorded: RecordedPass) -> list[Tensor]:
        return [_head_weights(recorded, layer) for layer in range(len(recorded.layers))]


def _head_weights(recorded: RecordedPass, layer: int) -> Tensor:
    """Return the classes' rows of the linear layer, or raise a ValueError for any other head."""
    target = recorded.target
    is_of_images = recorded.output.ndim == 2
    if not is_of_images or (target.indices is None and target.directions is None):
        raise ValueError(
            "CAM explains classes of images, and has no weights for pixels or a callable target. "
            "Name a class, or use another method, such as Grad-CAM."
        )
    grid = recorded.grid(layer)
    pooled = grid.mean(dim=places(grid))
    output = at_least_float32(recorded.output.detach())
    heads = [
        module
        for module in recorded.network.modules()
        if isinstance(module, torch.nn.Linear)
        and module.in_features == pooled.shape[1]
        and module.out_features in (1, output.shape[1])
    ]
    # A layer with the right shape may be anywhere in the network. Only the numbers show that it is
    # the head: it turns the pooled activations into the output, up to the network's precision. NaN
    # in an image or a weight is ignored here, as it cannot tell heads apart; a warning comes later.
    known = output.isfinite()
    scale = output.where(known, 0).abs().amax().clamp(min=torch.finfo(output.dtype).tiny)
    tolerance = (0.05 if recorded.is_half else 1e-3) * scale
    for head in heads:
        weight = at_least_float32(head.weight.detach())
        bias = weight.new_zeros(1) if head.bias is None else at_least_float32(head.bias.detach())
        if head.out_features == 1 and output.shape[1] == 2:  # one logit; class 0 has its negative
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        if len(weight) != output.shape[1]:
            continue
        is_close = (pooled @ weight.T + bias - output).abs() <= tolerance
        if (is_close | ~known).all():
            if target.directions is not None:
                return target.directions @ weight
            return weight[target.indices]
    raise ValueError(
        "CAM needs a head of global average pooling and one linear layer, which does not follow "
        f"{recorded.layers[layer].name!r}. Use Grad-CAM, which gives the same maps where CAM is "
        "defined and works here too."
    )


class GradCAMPlusPlus(WeightedGradientMethod):
    r"""Grad-CAM++: channels weighted by positive gradients, with a coefficient for each position.

    .. math:: w_k = \sum_{ij} \frac{g_{ij}^2}{2 g_{ij}^2 + \sum_{ab} A_{ab}\, g_{ij}^3}\,
              \mathrm{ReLU}(g_{ij}) = \sum_{ij} \frac{\mathrm{ReLU}(g_{ij})}
              {2 + g_{ij} \sum_{ab} A_{ab}}, \qquad g = \frac{\partial y_c}{\partial A_k}

    The form on the right is computed. It does not divide by tiny squares and cubes, so small
    gradients need no epsilon, which would otherwise decide the result.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.

    References
    ----------
    Chattopadhay et al., "Grad-CAM++", WACV 2018, eq. 5 and 19.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import GradCAMPlusPlus
    >>> activations = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]], requires_grad=True)
    >>> scores = 2 * activations[:, 0].sum((1, 2)) - activations[:, 1].sum((1, 2))
    >>> GradCAMPlusPlus()(scores, activations)
    tensor([[[0.5000, 1.0000]]])
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        total = activations.sum(dim=places(activations), keepdim=True)
        weighed = _divide(gradients.relu(), 2 + gradients * total)
        return weighed.sum(dim=places(weighed))


class SmoothGradCAMPlusPlus(ChannelMethod):
    r"""Smooth Grad-CAM++: Grad-CAM++ with derivatives averaged over noisy copies of the image.

    .. math:: w_k = \sum_{ij} \frac{\overline{g_{ij}^2}}{2\,\overline{g_{ij}^2} +
              \sum_{ab} A_{ab}\, \overline{g_{ij}^3}}\, \mathrm{ReLU}(\overline{g_{ij}})

    The paper prints the mean of :math:`g` instead of that of :math:`g^2` in the numerator. In the
    form used here, one copy without noise gives Grad-CAM++.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.
    n_samples : int, default=10
        Number of noisy copies, each a forward pass.
    std : float, default=0.3
        Standard deviation of the noise, in units of the network's input.
    random_state : int, RandomState or None, default=None
        Seed of the noise. All images share the same noise, so a map does not depend on the batch.

    References
    ----------
    Omeiza et al., "Smooth Grad-CAM++", 2019, section 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import SmoothGradCAMPlusPlus
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> method = SmoothGradCAMPlusPlus(n_samples=4, random_state=0)
    >>> explainer = CAMExplainer(network, method=method, target_layer="0", verbose=0)
    >>> images = torch.tensor([[[[0.0, 2.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]]]])
    >>> explainer.fit().explain(images, target=0)
    array([[[0. , 1. ],
            [0.5, 0. ]]], dtype=float32)
    """

    graph = "head"

    def __init__(
        self,
        relu: bool = True,
        n_samples: int = 10,
        std: float = 0.3,
        random_state: RandomState = None,
    ):
        super().__init__(relu)
        self.n_samples = n_samples
        self.std = std
        self.random_state = random_state

    def check(self) -> None:
        check_noise(self.n_samples, self.std)
        check_random_state(self.random_state)

    def channel_weights(self, recorded: RecordedPass) -> list[Tensor]:
        # Keep the means of g, g^2 and g^3, not the samples, so that memory does not grow with them.
        means = [[[torch.zeros(())] * 3 for _ in recorded.layers] for _ in range(recorded.target.k)]
        for noisy in self._noisy(recorded):
            for column, per_layer in enumerate(means):
                for layer, gradients in enumerate(noisy.gradient_grids(column)):
                    square = gradients**2
                    powers = gradients, square, square * gradients
                    per_layer[layer] = [
                        mean + power / self.n_samples
                        for mean, power in zip(per_layer[layer], powers, strict=True)
                    ]
        return recorded.for_each_score(
            lambda column: [
                self._weights(recorded.grid(layer), *powers)
                for layer, powers in enumerate(means[column])
            ]
        )

    def _weights(self, activations: Tensor, g: Tensor, g2: Tensor, g3: Tensor) -> Tensor:
        total = activations.sum(dim=places(activations), keepdim=True)
        weighed = _divide(g2, 2 * g2 + total * g3) * g.relu()
        return weighed.sum(dim=places(weighed))

    def _noisy(self, recorded: RecordedPass) -> Iterator[RecordedPass]:
        images = recorded.images
        # All images share the noise, so that a map does not depend on the rest of the batch.
        generator = torch.Generator(images.device).manual_seed(draw_seed(self.random_state))
        for _ in range(self.n_samples):
            noise = torch.randn(images.shape[1:], generator=generator, device=images.device)
            yield recorded.on(images + self.std * noise.to(images.dtype))


class XGradCAM(WeightedGradientMethod):
    r"""XGrad-CAM: gradients averaged where the channel is active.

    .. math:: w_k = \sum_{ij} \frac{A_{k,ij}}{\sum_{ab} A_{k,ab}}\,
              \frac{\partial y_c}{\partial A_{k,ij}}

    For networks with a head of global average pooling and one linear layer, it equals Grad-CAM.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.

    References
    ----------
    Fu et al., "Axiom-based Grad-CAM", BMVC 2020, eq. 8.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import XGradCAM
    >>> activations = torch.tensor([[[[1.0, 3.0]]]], requires_grad=True)
    >>> scores = (activations**2).sum((1, 2, 3))
    >>> XGradCAM()(scores, activations)
    tensor([[[ 5., 15.]]])
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        axes = places(activations)
        return _divide((gradients * activations).sum(dim=axes), activations.sum(dim=axes))


class LayerCAM(GradientMethod):
    r"""LayerCAM: each position weighted by its own positive gradient.

    .. math:: L = \mathrm{ReLU}\Big(\sum_k \mathrm{ReLU}\Big(\frac{\partial y_c}{\partial
              A_k}\Big) \odot A_k\Big)

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.

    References
    ----------
    Jiang et al., "LayerCAM", IEEE TIP 2021, eq. 6-8.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import LayerCAM
    >>> activations = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]], requires_grad=True)
    >>> scores = (activations[:, 0] ** 2).sum((1, 2)) - activations[:, 1].sum((1, 2))
    >>> LayerCAM()(scores, activations)
    tensor([[[2., 8.]]])
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (gradients.relu() * activations).sum(dim=1)


class HiResCAM(GradientMethod):
    r"""HiResCAM: each position weighted by its own gradient.

    .. math:: L = \sum_k \frac{\partial y_c}{\partial A_k} \odot A_k

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero, as the paper's figures do.

    References
    ----------
    Draelos, Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations", 2020, eq. 5.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import HiResCAM
    >>> activations = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]], requires_grad=True)
    >>> scores = (activations[:, 0] ** 2).sum((1, 2)) - activations[:, 1].sum((1, 2))
    >>> HiResCAM()(scores, activations)
    tensor([[[2., 7.]]])
    """

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return (gradients * activations).sum(dim=1)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, and 0 where the denominator is 0."""
    some = denominator != 0  # the inner `where` keeps NaN out of the gradient too
    return torch.where(some, numerator / torch.where(some, denominator, 1.0), 0.0)
