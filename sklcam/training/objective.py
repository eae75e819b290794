"""The training loss: cross-entropy and a weighted sum of terms on explanations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sklcam._validation import check_tensor, describe
from sklcam.training.agreement import Comparison, agreement_of
from sklcam.training.terms import (
    MAPS,
    Consistency,
    Explanations,
    Need,
    ScaledOnce,
    Sparsity,
    Term,
    check_terms,
)
from sklcam.training.weights import (
    Balanced,
    GradientSizes,
    Scale,
    Schedule,
    Weight,
    weight_in,
)

# A batch's maps are brought to the images' resolution one part after the other. Small parts stay in
# a CPU's caches. On other devices parts are as large as memory allows, as each operation has a
# fixed cost: 83 images of 224 x 224 pixels.
_N_PARTS_ON_CPU, _PIXELS_A_PART = 4, 2**22


class LossValues(NamedTuple):
    """The loss and its parts; each value is a scalar Tensor.

    Attributes
    ----------
    total : Tensor
        The loss to differentiate.
    cross_entropy : Tensor
    terms : dict of str to Tensor
        Each term in use, by name: its unweighted mean over the images.
    weights : dict of str to Tensor
        The weights that balance themselves, by name: ``alpha``, ``beta``, ``<name>_weight``.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import ConsistentCAMLoss
    >>> ConsistentCAMLoss(alpha=0, beta=0)(torch.tensor(0.7)).terms
    {}
    """

    total: Tensor
    cross_entropy: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, Tensor]


class ConsistentCAMLoss:
    r"""Cross-entropy plus weighted terms on explanations.

    .. math:: \mathcal{L} = \mathcal{L}_{CE} + \alpha \mathcal{L}_C + \beta \mathcal{L}_S
        + \sum_i w_i \mathcal{L}_i

    Parameters
    ----------
    alpha : float >= 0, "auto", Balanced or callable, default=1.0
        Weight of :class:`Consistency`; 0 leaves it out, and no view is needed.
    beta : float >= 0, "auto", Balanced or callable, default=1e-6
        Weight of :class:`Sparsity`; 0 leaves it out.
    p : float, 0 or >= 1, default=1
        The p of the norm; 0 counts the pixels that are not zero.
    agreement : {"ssim", "cgc", "mse"} or callable, default="ssim"
        How maps are compared, as in :class:`~sklcam.ConsistentCAMClassifier`.
    terms : sequence of Term, default=()
        Further terms.
    sizes : GradientSizes or None, default=None
        The gradient sizes of earlier steps, for weights that balance themselves; kept up to date.
    epoch : int, default=0
        The epoch, for weights that are callables of it.
    factor : float, default=1.0
        All weights are multiplied by it: k if the terms are part of every k-th step.

    Attributes
    ----------
    terms : tuple of Term
        The terms in use: those whose weight is not 0.
    needs : set of {"view", "masks", "labels", "pixels"}
        What they need besides maps.

    Raises
    ------
    ValueError
        If a weight is neither a finite number >= 0, nor "auto" or Balanced; if p is neither 0 nor
        at least 1; if the agreement is not one; if ``terms`` are not terms, or two share a name; or
        if ``sizes`` is neither GradientSizes nor None.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", eq. 4.

    Notes
    -----
    A map at the images' resolution is many times as large as the layer's own, and so is everything
    computed from it. None of that is kept for the backward pass: terms that do not couple images
    are differentiated with respect to the layer's own maps as they are computed, some images at a
    time. They can be differentiated once.

    Examples
    --------
    In your own training loop, on a network whose layer ``layer`` is explained:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam.cam import GradCAM, target_scores
    >>> from sklcam.networks import record
    >>> from sklcam.training import ConsistentCAMLoss, Explanations, ViewSampler
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
    ...                     nn.Flatten(), nn.Linear(4, 2))
    >>> layer, phi, loss = net[1], GradCAM(relu=False), ConsistentCAMLoss(alpha=0.5, beta=1e-3)
    >>> images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 0, 1])
    >>> warp = ViewSampler()(4, size=(16, 16))
    >>> def explained(tape, images):
    ...     logits = net(images)
    ...     return logits, phi(target_scores(logits), tape.activations, create_graph=True)
    >>> with record(net, layer, trunk=True) as tape:
    ...     logits, maps = explained(tape, images)
    ...     _, maps_of_view = explained(tape, warp(images))
    ...     ce = nn.functional.cross_entropy(logits, labels)
    ...     values = loss(ce, Explanations(maps, maps_of_view, warp, size=(16, 16)))
    ...     values.total.backward()
    >>> bool(net[0].weight.grad.abs().sum() > 0)
    True
    """

    def __init__(
        self,
        alpha: Weight | Schedule = 1.0,
        beta: Weight | Schedule = 1e-6,
        p: float = 1,
        *,
        agreement: str | Comparison = "ssim",
        terms: Sequence[Term] = (),
        sizes: GradientSizes | None = None,
        epoch: int = 0,
        factor: float = 1.0,
    ):
        if not isinstance(sizes, GradientSizes | None):
            raise ValueError(f"sizes must be GradientSizes or None; got {describe(sizes)}.")
        if not isinstance(terms, list | tuple):
            raise ValueError(f"terms must be a list of terms; got {describe(terms)}.")
        self.factor = factor
        self.sizes = GradientSizes() if sizes is None else sizes
        all_terms = (Consistency(alpha, agreement), Sparsity(beta, p), *terms)
        check_terms(all_terms)
        self._weights: dict[str, float | Balanced] = {}
        for term in all_terms:
            weight = weight_in(epoch, term.weight, term.weight_name)
            self._weights[term.name] = term.balance if isinstance(weight, str) else weight
        # A term of weight 0 costs nothing: if no other term needs one, there is no view.
        self.terms = tuple(term for term in all_terms if self._weights[term.name])
        self.needs: set[Need] = {need for term in self.terms for need in term.needs}

    def __call__(
        self,
        cross_entropy: Tensor,
        explained: Explanations | None = None,
        *,
        activations: Tensor | None = None,
        scale: Scale = None,
    ) -> LossValues:
        """Add the terms to cross-entropy.

        Parameters
        ----------
        cross_entropy : scalar Tensor
        explained : Explanations or None, default=None
            Explanations of the same images; needed for any term.
        activations : Tensor or None, default=None
            Activations of the target layer on the images, for weights that balance themselves. None
            leaves these weights as they are, as in validation.
        scale : callable or None, default=None
            As for :meth:`GradientSizes.update`.

        Returns
        -------
        LossValues
            Terms are means over the batch. A term that needs masks, or gradients at the pixels, is
            left out if there are none.

        Raises
        ------
        ValueError
            If ``cross_entropy`` is not a floating-point scalar; if a term is in use and its maps
            are missing, or are compared at fewer than 11 x 11 pixels; or if a weight balances
            itself and no gradients have been measured yet.
        """
        check_tensor("cross_entropy", cross_entropy)
        if not isinstance(activations, Tensor | None):
            raise ValueError(f"activations must be a Tensor or None; got {describe(activations)}.")
        terms = [term for term in self.terms if _can_be_measured(term, explained)]
        total, values = cross_entropy, dict.fromkeys((term.name for term in terms), cross_entropy)
        together = self._summed_at_once(terms)
        if together:
            assert explained is not None
            weighted, *means = _sum_of(together, explained)
            total = total + weighted
            values |= {term.name: mean for term, mean in zip(together, means, strict=True)}
        rest = [term for term in terms if term not in together]
        for term in rest:
            assert explained is not None
            values[term.name] = _values_of(term, explained).mean()
        if activations is not None:  # before the weights are asked for: the first step needs some
            losses = {
                "cross_entropy": cross_entropy,
                **{term.name: values[term.name] for term in rest},
            }
            self._update_sizes(losses, activations, scale)
        weights: dict[str, Tensor] = {}
        for term in rest:
            weight = self._weights[term.name]
            if isinstance(weight, Balanced):
                weights[term.weight_name] = self._balance(weight, term)
                total = total + self.factor * weights[term.weight_name] * values[term.name]
            else:
                total = total + self.factor * weight * values[term.name]
        return LossValues(total, cross_entropy, values, weights)

    def _summed_at_once(self, terms: list[Term]) -> dict[Term, float]:
        """Return terms that share their maps, with their weights, if there are several."""
        weights = {
            term: self.factor * weight
            for term in terms
            if not isinstance(weight := self._weights[term.name], Balanced) and _shares_maps(term)
        }
        return weights if len(weights) > 1 else {}

    def _update_sizes(self, losses: dict[str, Tensor], activations: Tensor, scale: Scale) -> None:
        balanced = [name for name, weight in self._weights.items() if isinstance(weight, Balanced)]
        if balanced:
            for name in ("cross_entropy", *balanced):
                if name in losses:
                    self.sizes.update(name, losses[name], activations, scale)

    def _balance(self, weight: Balanced, term: Term) -> Tensor:
        if term.name not in self.sizes.averages:
            raise ValueError(
                f"The weight of {term.name} is balanced by gradients, and none have been measured "
                "yet. Give activations=."
            )
        return weight(self.sizes, term.name)


def _can_be_measured(term: Term, explained: Explanations | None) -> bool:
    """Whether a term's needs are met; a ValueError if they have to be."""
    if not isinstance(explained, Explanations):
        raise ValueError(
            f"{term.weight_name} > 0 needs the explained images; got {describe(explained)}."
        )
    if "view" in term.needs and explained.warp is None:
        raise ValueError(f"{term.weight_name} > 0 needs maps_of_view and warp; got neither.")
    if "masks" in term.needs and explained.masks is None:  # as in a validation set
        return False
    return "pixels" not in term.needs or explained.pixels is not None  # as in validation


def _shares_maps(term: Term) -> bool:
    """Whether others may use the same scaled maps; not if a user's term may write into them."""
    if type(term) is Consistency:
        return agreement_of(term.agreement).scales
    return type(term) is Sparsity


def _values_of(term: Term, explained: Explanations) -> Tensor:
    """Measure each image; those without a mask count as zero if a term needs masks."""
    explained = _as_needed(term.needs, explained)
    if _shares_maps(term):
        explained = ScaledOnce(**vars(explained))
    leaves = _maps_of(explained)
    has_graph = torch.is_grad_enabled() and any(maps.requires_grad for maps in leaves.values())
    if has_graph and not term.couples_images and explained.pixels is None:
        values, _ = _DifferentiatedAtOnce.apply(
            {term: 1.0}, explained, tuple(leaves), *leaves.values()
        )
        return values
    values = _checked_values(term, explained, is_trained=has_graph)
    return _zero_without_mask(values, explained)


def _sum_of(terms: dict[Term, float], explained: Explanations) -> list[Tensor]:
    """Measure terms that share their maps: their weighted sum, and each as a mean over images.

    Only the sum is differentiated, which saves most of the backward pass.
    """
    explained = _as_needed({need for term in terms for need in term.needs}, explained)
    explained = ScaledOnce(**vars(explained))
    leaves = _maps_of(explained)
    if torch.is_grad_enabled() and any(maps.requires_grad for maps in leaves.values()):
        found = _DifferentiatedAtOnce.apply(terms, explained, tuple(leaves), *leaves.values())
    else:
        values = [_checked_values(term, explained, is_trained=False) for term in terms]
        found = [_weighted(values, terms.values()), *values]
    return [values.mean() for values in found]


def _weighted(values: Iterable[Tensor], weights: Iterable[float]) -> Tensor:
    (first, weight), *others = zip(values, weights, strict=True)
    total = first if weight == 1 else weight * first
    for each, weight in others:
        total = total.add(each, alpha=weight)
    return total


def _maps_of(explained: Explanations) -> dict[str, Tensor]:
    found = {name: getattr(explained, name) for name in MAPS}
    return {name: maps for name, maps in found.items() if maps is not None}


def _as_needed(needs: Set[Need], explained: Explanations) -> Explanations:
    """Leave out what terms do not need, as they are differentiated with respect to all of it."""
    if "view" not in needs:
        explained = replace(explained, maps_of_view=None, warp=None)
    if "masks" not in needs:
        explained = replace(explained, masks=None, annotated=None)
    if "labels" not in needs:
        explained = replace(explained, of_labels=None)
    if "pixels" not in needs:
        explained = replace(explained, pixels=None)
    return explained


def _checked_values(term: Term, explained: Explanations, *, is_trained: bool) -> Tensor:
    values = term.values(explained)
    if not isinstance(values, Tensor) or values.shape != (len(explained),):
        raise ValueError(
            f"{type(term).__name__}.values must return a number for each of {len(explained)} "
            f"images, a Tensor of shape (n_images,); got {describe(values)}."
        )
    if is_trained and not values.requires_grad:
        raise ValueError(
            f"{type(term).__name__}.values cannot be differentiated, so nothing would be learned "
            "from it: compute it (or the agreement it uses) from the maps with torch, without "
            "detach(), numpy or torch.no_grad()."
        )
    return values


def _zero_without_mask(per_image: Tensor, explained: Explanations) -> Tensor:
    if explained.annotated is None:
        return per_image
    # By torch.where: a term may have returned NaN for an empty mask, and NaN times 0 is NaN.
    annotated = explained.annotated.reshape(-1, *[1] * (per_image.ndim - 1))
    return torch.where(annotated, per_image, 0.0)


class _DifferentiatedAtOnce(torch.autograd.Function):
    """A weighted sum of terms, differentiated in the forward pass, one part of a batch at a time.

    It keeps the gradient, of the maps' size, instead of the graph. The values of each term,
    returned beside the sum, have no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        terms: dict[Term, float],
        explained: Explanations,
        names: tuple[str, ...],
        *maps: Tensor,
    ) -> tuple[Tensor, ...]:
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        parts = []
        n_at_once = _n_at_once(explained)
        for start in range(0, len(explained), n_at_once):
            rows = slice(start, start + n_at_once)
            leaves = [
                each[rows].detach().requires_grad_(i in wanted) for i, each in enumerate(maps)
            ]
            fields: dict[str, Any] = dict(zip(names, leaves, strict=True))
            some = replace(explained.take(rows), **fields)
            with torch.enable_grad():
                values = [_checked_values(term, some, is_trained=True) for term in terms]
                total = _weighted(values, terms.values())
                # The gradient of the sum is each image's own, as images do not depend on each
                # other.
                found = torch.autograd.grad(
                    total,
                    [leaves[i] for i in wanted],
                    torch.ones_like(total),
                    materialize_grads=True,
                )
            measured = [total.detach(), *(value.detach() for value in values), *found]
            parts.append([_zero_without_mask(each, some) for each in measured])
        whole = parts[0]
        if len(parts) > 1:
            whole = [torch.cat(each) for each in zip(*parts, strict=True)]
        n_values = 1 + len(terms)
        ctx.save_for_backward(*whole[n_values:])
        ctx.set_materialize_grads(False)
        ctx.wanted = wanted
        ctx.mark_non_differentiable(*whole[1:n_values])
        return tuple(whole[:n_values])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if gradient is None:  # the sum is not part of the loss
            return tuple(results)
        for i, saved in zip(ctx.wanted, ctx.saved_tensors, strict=True):
            results[3 + i] = gradient.reshape(-1, *[1] * (saved.ndim - 1)) * saved
        return tuple(results)


def _n_at_once(explained: Explanations) -> int:
    """Return how many images' maps are enlarged at a time."""
    if explained.maps.device.type == "cpu":
        return -(-len(explained) // _N_PARTS_ON_CPU)
    return max(1, _PIXELS_A_PART // math.prod(explained.size or explained.maps.shape[1:]))
