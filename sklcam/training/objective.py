"""The training loss: cross-entropy and a weighted sum of terms on explanations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sklcam._validation import check_tensor, describe
from sklcam.training.agreement import Comparison
from sklcam.training.terms import MAPS, Consistency, Explanations, Need, Sparsity, Term, check_terms
from sklcam.training.weights import (
    Balanced,
    GradientSizes,
    Scale,
    Schedule,
    Weight,
    weight_in,
)

# Of a batch, whose maps are at the images' resolution one part after the other: memory goes down
# with their number, and the time that operations cost by themselves goes up.
_N_PARTS = 4


class LossValues(NamedTuple):
    """The loss, and what it was made of; each value is a scalar Tensor.

    Attributes
    ----------
    total : Tensor
        The one to differentiate.
    cross_entropy : Tensor
    terms : dict of str to Tensor
        Each term in use by its name: its mean over the images, unweighted.
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
        Which norm.
    agreement : {"ssim", "cgc", "mse"} or callable, default="ssim"
        How maps are compared, as in :class:`~sklcam.ConsistentCAMClassifier`.
    terms : sequence of Term, default=()
        Further terms.
    sizes : GradientSizes or None, default=None
        The gradients of earlier steps, for weights that balance themselves; they are kept up to
        date.
    epoch : int, default=0
        Which epoch's weights, where these are callables of it.
    factor : float, default=1.0
        By which all weights are multiplied: k where the terms are part of each k-th step.

    Attributes
    ----------
    terms : tuple of Term
        The terms in use: those whose weight is not 0.
    needs : set of {"view", "masks", "labels", "pixels"}
        Their needs, beside maps.

    Raises
    ------
    ValueError
        If a weight is neither a finite number >= 0, nor "auto" or Balanced; if p is neither 0 nor
        at least 1; if the agreement is not one; if ``terms`` are not terms, or two have one name;
        or if ``sizes`` is something else.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", eq. 4.

    Notes
    -----
    A map at the images' resolution is many times the layer's own, and so is all that is computed
    of it. None of that is kept for the way back: terms that do not couple images are differentiated
    with respect to the layer's own maps as they are computed, some images at a time. They can be
    differentiated once.

    Examples
    --------
    In a training loop of one's own, on a network whose layer ``layer`` is explained:

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
        # A term of weight 0 costs nothing: where no other needs one, there is no view.
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
            Of the same images; needed for any term.
        activations : Tensor or None, default=None
            Of the target layer on the images, for weights that balance themselves. None leaves
            these as they are, as in validation.
        scale : callable or None, default=None
            As for :meth:`GradientSizes.update`.

        Returns
        -------
        LossValues
            Terms are means over the batch. One that needs masks, or the way back to the pixels, is
            left out where there are none.

        Raises
        ------
        ValueError
            If ``cross_entropy`` is not a floating-point scalar; if a term is in use and its maps
            are missing, or are compared at less than 11 x 11 pixels; or if a weight balances itself
            and no gradients were measured yet.
        """
        check_tensor("cross_entropy", cross_entropy)
        if not isinstance(activations, Tensor | None):
            raise ValueError(f"activations must be a Tensor or None; got {describe(activations)}.")
        values = dict(self._measured(explained))
        if activations is not None:  # before the weights are asked for: the first step needs some
            self._update_sizes({"cross_entropy": cross_entropy, **values}, activations, scale)
        total = cross_entropy
        weights: dict[str, Tensor] = {}
        for term in self.terms:
            if term.name not in values:
                continue
            weight = self._weights[term.name]
            if isinstance(weight, Balanced):
                weights[term.weight_name] = self._balance(weight, term)
                total = total + self.factor * weights[term.weight_name] * values[term.name]
            else:
                total = total + self.factor * weight * values[term.name]
        return LossValues(total, cross_entropy, values, weights)

    def _measured(self, explained: Explanations | None) -> Iterator[tuple[str, Tensor]]:
        """Yield the mean of each term that is in use, by name."""
        for term in self.terms:
            if not isinstance(explained, Explanations):
                raise ValueError(
                    f"{term.weight_name} > 0 needs the explained images; got {describe(explained)}."
                )
            if "view" in term.needs and explained.warp is None:
                raise ValueError(f"{term.weight_name} > 0 needs maps_of_view and warp.")
            if "masks" in term.needs and explained.masks is None:  # as in a validation set
                continue
            if "pixels" in term.needs and explained.pixels is None:  # as in validation
                continue
            yield term.name, _values_of(term, explained).mean()

    def _update_sizes(self, losses: dict[str, Tensor], activations: Tensor, scale: Scale) -> None:
        balanced = [name for name, weight in self._weights.items() if isinstance(weight, Balanced)]
        if balanced:
            for name in ("cross_entropy", *balanced):
                if name in losses:
                    self.sizes.update(name, losses[name], activations, scale)

    def _balance(self, weight: Balanced, term: Term) -> Tensor:
        if term.name not in self.sizes.averages:
            raise ValueError(
                f"The weight of {term.name} is balanced by gradients, and none were measured yet; "
                "hand over activations."
            )
        return weight(self.sizes, term.name)


def _values_of(term: Term, explained: Explanations) -> Tensor:
    """Measure each image; those without a mask count as zero for a term that needs one."""
    explained = _as_needed(term, explained)
    leaves = {name: getattr(explained, name) for name in MAPS}
    leaves = {name: maps for name, maps in leaves.items() if maps is not None}
    has_graph = torch.is_grad_enabled() and any(maps.requires_grad for maps in leaves.values())
    if has_graph and not term.couples_images and explained.pixels is None:
        return _DifferentiatedAtOnce.apply(term, explained, tuple(leaves), *leaves.values())
    values = _checked_values(term, explained, is_trained=has_graph)
    return _zero_without_mask(values, explained)


def _as_needed(term: Term, explained: Explanations) -> Explanations:
    """Leave out what the term does not need: what it could see, it would be differentiated by."""
    if "view" not in term.needs:
        explained = replace(explained, maps_of_view=None, warp=None)
    if "masks" not in term.needs:
        explained = replace(explained, masks=None, annotated=None)
    if "labels" not in term.needs:
        explained = replace(explained, of_labels=None)
    if "pixels" not in term.needs:
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
            f"{type(term).__name__}.values cannot be differentiated, so that nothing would be "
            "learned of it: compute it (or the agreement that it asks) of the maps by torch, "
            "without detach(), numpy or torch.no_grad()."
        )
    return values


def _zero_without_mask(per_image: Tensor, explained: Explanations) -> Tensor:
    if explained.annotated is None:
        return per_image
    # By where: a term may well have made NaN of an empty mask, and NaN times 0 is NaN.
    annotated = explained.annotated.reshape(-1, *[1] * (per_image.ndim - 1))
    return torch.where(annotated, per_image, 0.0)


class _DifferentiatedAtOnce(torch.autograd.Function):
    """A term's values, differentiated in the forward pass, a part of a batch at a time.

    The gradient is kept, of the maps' size, in place of all that is between.
    """

    @staticmethod
    def forward(
        ctx: Any, term: Term, explained: Explanations, names: tuple[str, ...], *maps: Tensor
    ) -> Tensor:
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        values, gradients = [], []
        n_at_once = -(-len(explained) // _N_PARTS)
        for start in range(0, len(explained), n_at_once):
            some = explained.take(slice(start, start + n_at_once))
            leaves = [
                each[start : start + n_at_once].detach().requires_grad_(i in wanted)
                for i, each in enumerate(maps)
            ]
            fields: dict[str, Any] = dict(zip(names, leaves, strict=True))
            some = replace(some, **fields)
            with torch.enable_grad():
                value = _checked_values(term, some, is_trained=True)
                # The gradient of the sum is each image's own, as images do not see each other.
                found = torch.autograd.grad(
                    value.sum(), [leaves[i] for i in wanted], materialize_grads=True
                )
            values.append(_zero_without_mask(value.detach(), some))
            gradients.append([_zero_without_mask(gradient, some) for gradient in found])
        ctx.save_for_backward(*(torch.cat(parts) for parts in zip(*gradients, strict=True)))
        ctx.wanted = wanted
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        results: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, saved in zip(ctx.wanted, ctx.saved_tensors, strict=True):
            results[3 + i] = gradient.reshape(-1, *[1] * (saved.ndim - 1)) * saved
        return tuple(results)
