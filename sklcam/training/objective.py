"""The training loss on explanations: cross-entropy, consistency and sparsity.

The terms are functions of maps; where the maps come from is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sklcam._validation import (
    check_maps,
    check_size,
    check_tensor,
    describe,
)
from sklcam.cam import min_max, upsample
from sklcam.images.views import Warp
from sklcam.metrics.consistency import structural_similarity
from sklcam.training.weights import _AUTO, Balanced, GradientSizes, Scale, Weight, check_weight

_SURROGATE_WIDTH = 0.1


_N_PARTS = 4  # of a batch, whose maps are at the images' resolution one after the other


def consistency_loss(view_of_maps: Tensor, maps_of_view: Tensor) -> Tensor:
    r"""One minus SSIM between the view of the map and the map of the view.

    .. math:: \mathcal{L}_C = 1 - \mathrm{SSIM}\big(t(\Phi(f, x)),\, \Phi(f, t(x))\big)

    Parameters
    ----------
    view_of_maps, maps_of_view : Tensor of shape (n_images, height, width), in [0, 1]

    Returns
    -------
    Tensor of shape (n_images,), in [0, 2]

    Raises
    ------
    ValueError
        If they are not floating-point tensors of one shape, (n_images, height, width), on one
        device, or are smaller than SSIM's window of 11 x 11 pixels.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", eq. 2.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import consistency_loss
    >>> maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> consistency_loss(maps, maps)
    tensor([0., 0.])
    """
    check_maps(view_of_maps=view_of_maps, maps_of_view=maps_of_view)
    return 1 - structural_similarity(view_of_maps, maps_of_view)


def sparsity_loss(maps: Tensor, p: float = 1) -> Tensor:
    r"""The L_p norm of each map, over all its pixels.

    .. math:: \mathcal{L}_S = \Big(\sum_j |\Phi_j|^p\Big)^{1/p}

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), in [0, 1]
    p : float, 0 or >= 1, default=1
        0 counts the pixels that are not zero.

    Returns
    -------
    Tensor of shape (n_images,)
        It grows with the area: a beta that suits 224 x 224 pixels weighs a quarter at 112 x 112
        with p = 1.

    Raises
    ------
    ValueError
        If p lies between 0 and 1 (the gradient has no bound at 0) or is negative.

    Notes
    -----
    The count of p = 0 is exact, but flat: its gradient is zero wherever it exists. So the gradient
    is that of :math:`\sum_j 1 - e^{-|\Phi_j| / \sigma}` with :math:`\sigma = 0.1`, which tends to
    the count as :math:`\sigma` does to 0: pixels near zero are pushed there, bright ones are left.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", eq. 3. The surrogate is in the manner of
    Mohimani, Babaie-Zadeh, Jutten, "A fast approach for overcomplete sparse decomposition based on
    smoothed L0 norm", 2009.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import sparsity_loss
    >>> maps = torch.tensor([[[0.0, 0.6], [0.0, 0.8]]])
    >>> [round(sparsity_loss(maps, p).item(), 4) for p in (0, 1, 2)]
    [2.0, 1.4, 1.0]
    """
    check_p(p)
    check_maps(maps=maps)
    flat = maps.flatten(1)
    if p == 0:
        count = (flat != 0).sum(dim=1).to(flat.dtype)
        surrogate = (1 - torch.exp(-flat.abs() / _SURROGATE_WIDTH)).sum(dim=1)
        return count + (surrogate - surrogate.detach())
    return torch.linalg.vector_norm(flat, ord=p, dim=1)


def check_p(p: object) -> None:
    """Raise a ValueError unless p is 0 or at least 1."""
    is_number = isinstance(p, int | float | np.number) and not isinstance(p, bool)
    if not (is_number and (p == 0 or p >= 1)):  # type: ignore[operator]
        raise ValueError(
            f"p must be 0 or at least 1; got {p!r}. Between 0 and 1 the norm's gradient is "
            "unbounded at 0, where a sparse map has most of its pixels."
        )


class LossTerms(NamedTuple):
    """The loss, its terms unweighted, and the weights that balance them, each a scalar Tensor.

    None for a term that is not in use, and for a weight that was given as a number.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import LossTerms
    >>> terms = LossTerms(total=torch.tensor(0.7), cross_entropy=torch.tensor(0.7))
    >>> terms.consistency is None  # with alpha=0
    True
    """

    total: Tensor
    cross_entropy: Tensor
    consistency: Tensor | None = None
    sparsity: Tensor | None = None
    alpha: Tensor | None = None
    beta: Tensor | None = None


class ConsistentCAMLoss:
    r"""Cross-entropy plus the weighted terms on the explanations.

    .. math:: \mathcal{L} = \mathcal{L}_{CE} + \alpha \mathcal{L}_C + \beta \mathcal{L}_S

    Parameters
    ----------
    alpha : float >= 0, "auto" or Balanced, default=1.0
        Weight of the inconsistency; 0 leaves it out, and no second view is needed.
    beta : float >= 0, "auto" or Balanced, default=1e-6
        Weight of the norm; 0 leaves it out.
    p : float, 0 or >= 1, default=1
        Which norm.
    sizes : GradientSizes or None, default=None
        What is known of the gradients of earlier steps, and kept up to date, for balanced weights.

    Raises
    ------
    ValueError
        If a weight is neither a finite number >= 0, nor "auto" or Balanced; if p is neither 0 nor
        at least 1; or if ``sizes`` is something else.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", eq. 4.

    Notes
    -----
    What is made of a map at the images' resolution is not kept for the way back: it would be many
    times the map. The terms are differentiated with respect to the layer's own small maps as they
    are computed, some images at a time. They can be differentiated once.

    Examples
    --------
    In a training loop of one's own, on a network whose layer ``layer`` is explained:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam.cam import GradCAM, target_scores
    >>> from sklcam.training import ConsistentCAMLoss
    >>> from sklcam.networks import record
    >>> from sklcam.training import ViewSampler
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
    ...                     nn.Flatten(), nn.Linear(4, 2))
    >>> layer, phi, loss = net[1], GradCAM(relu=False), ConsistentCAMLoss(alpha=0.5, beta=1e-3)
    >>> images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 0, 1])
    >>> views = ViewSampler()(4, size=(16, 16))
    >>> def explained(tape, images):
    ...     logits = net(images)
    ...     return logits, phi(target_scores(logits), tape.activations, create_graph=True)
    >>> with record(net, layer, trunk=True) as tape:
    ...     logits, maps = explained(tape, images)
    ...     _, maps_of_view = explained(tape, views(images))
    ...     ce = nn.functional.cross_entropy(logits, labels)
    ...     terms = loss(ce, maps, maps_of_view, views, size=(16, 16))
    ...     terms.total.backward()
    >>> bool(net[0].weight.grad.abs().sum() > 0)
    True
    """

    def __init__(
        self,
        alpha: Weight = 1.0,
        beta: Weight = 1e-6,
        p: float = 1,
        sizes: GradientSizes | None = None,
    ):
        for name, weight in (("alpha", alpha), ("beta", beta)):
            check_weight(name, weight)
        check_p(p)
        if not isinstance(sizes, GradientSizes | None):
            raise ValueError(f"sizes must be GradientSizes or None; got {describe(sizes)}.")
        self.alpha = alpha
        self.beta = beta
        self.p = p
        self.sizes = GradientSizes() if sizes is None else sizes

    def __call__(
        self,
        cross_entropy: Tensor,
        maps: Tensor | None = None,
        maps_of_view: Tensor | None = None,
        views: Warp | None = None,
        *,
        size: tuple[int, int] | None = None,
        activations: Tensor | None = None,
        scale: Scale = None,
    ) -> LossTerms:
        """Combine the terms.

        Parameters
        ----------
        cross_entropy : scalar Tensor
        maps : Tensor of shape (n_images, u, v) or None
            Explanations of the images, without ReLU and unscaled; needed for any other term.
        maps_of_view : Tensor of shape (n_images, u, v) or None
            Those of the warped images; needed for alpha > 0.
        views : Warp or None
            How the images were warped; needed for alpha > 0.
        size : (height, width) or None, default=None
            What maps are resized to, and scaled to [0, 1] there, before they are compared or
            measured: the images' size in pixels. None takes them at the size that they have.
        activations : Tensor or None, default=None
            Of the target layer on the images, for balanced weights. None leaves them as they are,
            as in validation.
        scale : callable or None, default=None
            As in :meth:`GradientSizes.update`.

        Returns
        -------
        LossTerms
            The terms are means over the batch.

        Raises
        ------
        ValueError
            If ``cross_entropy`` is no floating-point scalar; if a term is in use and its maps are
            missing, do not fit each other or the views, or are compared at less than 11 x 11
            pixels; or if a weight is balanced and no gradients were measured yet.
        """
        check_tensor("cross_entropy", cross_entropy)
        self._check_maps(maps, maps_of_view, views)
        size = None if size is None else check_size(size, "size")
        if not isinstance(activations, Tensor | None):
            raise ValueError(f"activations must be a Tensor or None; got {describe(activations)}.")
        terms = self._terms(maps, maps_of_view, views, size)
        if activations is not None:
            self._measure({"cross_entropy": cross_entropy, **terms}, activations, scale)
        total = cross_entropy
        balancing: dict[str, Tensor] = {}
        for name, term in terms.items():
            weight = self._weights[name]
            if isinstance(weight, Balanced):
                balancing[name] = self._balance(weight, name)
                total = total + balancing[name] * term
            else:
                total = total + weight * term
        return LossTerms(
            total,
            cross_entropy,
            *(values.get(name) for values in (terms, balancing) for name in self._weights),
        )

    @property
    def _weights(self) -> dict[str, float | Balanced]:
        given = {"consistency": self.alpha, "sparsity": self.beta}
        return {
            name: _AUTO[name] if isinstance(weight, str) else weight
            for name, weight in given.items()
        }

    def _check_maps(self, maps: Any, maps_of_view: Any, views: Any) -> None:
        if self.alpha:
            if maps is None or maps_of_view is None or views is None:
                raise ValueError("alpha > 0 needs maps, maps_of_view and views.")
            check_maps(maps=maps, maps_of_view=maps_of_view)
            if not isinstance(views, Warp) or len(views) != len(maps):
                came = f"{len(views)} views" if isinstance(views, Warp) else describe(views)
                raise ValueError(
                    f"views must be Warp, one for each of {len(maps)} maps; got {came}."
                )
        elif self.beta:
            if maps is None:
                raise ValueError("beta > 0 needs maps.")
            check_maps(maps=maps)

    def _terms(
        self,
        maps: Tensor | None,
        maps_of_view: Tensor | None,
        views: Warp | None,
        size: tuple[int, int] | None,
    ) -> dict[str, Tensor]:
        """Return the terms that are in use, by name."""
        terms = {}
        if self.alpha:
            assert maps is not None and maps_of_view is not None and views is not None
            inconsistency = partial(_inconsistency, size=size)
            values = _image_by_image(inconsistency, maps, maps_of_view, views.matrix)
            terms["consistency"] = values.mean()
        if self.beta:
            assert maps is not None
            terms["sparsity"] = _image_by_image(partial(_norm, size=size, p=self.p), maps).mean()
        return terms

    def _measure(self, losses: dict[str, Tensor], activations: Tensor, scale: Scale) -> None:
        balanced = [name for name, of in self._weights.items() if isinstance(of, Balanced)]
        if balanced:
            for name in ("cross_entropy", *balanced):
                self.sizes.update(name, losses[name], activations, scale)

    def _balance(self, weight: Balanced, term: str) -> Tensor:
        if term not in self.sizes.averages:
            raise ValueError(
                f"The weight of {term} is balanced by gradients, and none were measured yet; hand "
                "over activations."
            )
        return weight(self.sizes, term)


def _inconsistency(
    maps: Tensor, maps_of_view: Tensor, matrix: Tensor, size: tuple[int, int] | None
) -> Tensor:
    return consistency_loss(Warp(matrix)(_scaled(maps, size)), _scaled(maps_of_view, size))


def _norm(maps: Tensor, size: tuple[int, int] | None, p: float) -> Tensor:
    return sparsity_loss(_scaled(maps, size), p)


def _scaled(maps: Tensor, size: tuple[int, int] | None) -> Tensor:
    return min_max(maps if size is None else upsample(maps, size))


def _image_by_image(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply a function that makes one number of each image's inputs, and keep no graph of it."""
    if torch.is_grad_enabled() and any(each.requires_grad for each in inputs):
        return _DifferentiatedAtOnce.apply(function, *inputs)
    return function(*inputs)


class _DifferentiatedAtOnce(torch.autograd.Function):
    """One number an image, differentiated in the forward pass, a part of a batch at a time.

    What is kept is the gradient, of the inputs' size, in place of all that is between.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        values, gradients = [], []
        n_at_once = -(-len(inputs[0]) // _N_PARTS)
        for some in zip(*(each.split(n_at_once) for each in inputs), strict=True):
            leaves = [each.detach().requires_grad_(i in wanted) for i, each in enumerate(some)]
            with torch.enable_grad():
                value = function(*leaves)
                gradients.append(torch.autograd.grad(value.sum(), [leaves[i] for i in wanted]))
            values.append(value.detach())
        ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*gradients, strict=True)))
        ctx.wanted = wanted
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 1)
        for i, of_input in zip(ctx.wanted, ctx.saved_tensors, strict=True):
            results[i] = gradient.reshape(-1, *[1] * (of_input.ndim - 1)) * of_input
        return None, *results
