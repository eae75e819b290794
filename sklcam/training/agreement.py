"""Comparisons of the map of a view with the view of the map: one number per image, 0 at best.

This is the loss's first term, which alpha weighs. The paper uses SSIM; the choices of other papers
are here as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sklcam._validation import check_maps, check_number, describe
from sklcam.cam import min_max
from sklcam.cam.maps import sides
from sklcam.metrics.consistency import structural_similarity, valid_windows

Comparison = Callable[[Tensor, Tensor], Tensor]

_SMALLEST = 1e-8  # of Pillai et al.


def consistency_loss(
    view_of_maps: Tensor,
    maps_of_view: Tensor,
    valid: Tensor | None = None,
    *,
    spatial_dims: int = 2,
) -> Tensor:
    r"""One minus SSIM between the view of the map and the map of the view.

    .. math:: \mathcal{L}_C = 1 - \mathrm{SSIM}\big(t(\Phi(f, x)),\, \Phi(f, t(x))\big)

    Parameters
    ----------
    view_of_maps, maps_of_view : Tensor of shape (n_images, height, width), in [0, 1]
    valid : Tensor of shape (n_images, height, width), bool, or None, default=None
        Which pixels are compared, such as those of ``Warp.valid``; None is all.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,), in [0, 2]
        0 if no window of SSIM is valid, as there is nothing to learn from.

    Raises
    ------
    ValueError
        If they are not floating-point tensors of the same shape, (n_images, height, width), on one
        device, or are smaller than SSIM's window of 11 x 11 pixels; or if ``valid`` is not bool or
        not of their shape.

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
    check_maps(spatial_dims, view_of_maps=view_of_maps, maps_of_view=maps_of_view)
    loss = 1 - structural_similarity(
        view_of_maps, maps_of_view, valid=valid, spatial_dims=spatial_dims
    )
    if valid is None:
        return loss
    return torch.where(valid_windows(valid).flatten(1).any(dim=1), loss, 0.0)


class Agreement(ABC):
    """A comparison, and the form in which it takes maps.

    Attributes
    ----------
    couples_images : bool
        Whether an image's number depends on other images.
    has_window : bool
        Whether maps must be as large as SSIM's window.
    scales : bool
        Whether it takes maps scaled to [0, 1] and does not modify them: others may use the same
        tensor.
    """

    couples_images: bool = False
    has_window: bool = False
    scales: bool = False

    def normalized(self, maps: Tensor) -> Tensor:
        """Return maps at the images' size, (n_images, height, width), in the form to be warped."""
        return min_max(maps, maps.ndim - 1)

    @abstractmethod
    def __call__(
        self, view_of_maps: Tensor, maps_of_view: Tensor, *, spatial_dims: int = 2
    ) -> Tensor:
        """Return how far they disagree, (n_images,)."""

    def within(
        self, valid: Tensor, view_of_maps: Tensor, maps_of_view: Tensor, *, spatial_dims: int = 2
    ) -> Tensor:
        """Return how far they disagree on valid pixels; the others are 0 in both."""
        maps = (torch.where(valid, each, 0.0) for each in (view_of_maps, maps_of_view))
        return self(*maps, spatial_dims=spatial_dims)


class _Structural(Agreement):
    has_window = True
    scales = True

    def __call__(
        self, view_of_maps: Tensor, maps_of_view: Tensor, *, spatial_dims: int = 2
    ) -> Tensor:
        return consistency_loss(view_of_maps, maps_of_view, spatial_dims=spatial_dims)

    def within(
        self, valid: Tensor, view_of_maps: Tensor, maps_of_view: Tensor, *, spatial_dims: int = 2
    ) -> Tensor:
        return consistency_loss(view_of_maps, maps_of_view, valid, spatial_dims=spatial_dims)


class _OfDistributions(Agreement):
    """Comparisons of positive evidence as a share of its sum."""

    def normalized(self, maps: Tensor) -> Tensor:
        evidence = maps.clamp(min=0)  # maps with the ReLU stay as they are
        return evidence / (evidence.sum(dim=sides(maps), keepdim=True) + _SMALLEST) + _SMALLEST

    @staticmethod
    def directions(maps: Tensor) -> Tensor:
        """Return maps of length 1, (n_images, n_pixels)."""
        flat = maps.flatten(1)
        norms = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        return flat / norms.clamp(min=torch.finfo(flat.dtype).tiny)


class _MeanSquare(_OfDistributions):
    def __call__(
        self, view_of_maps: Tensor, maps_of_view: Tensor, *, spatial_dims: int = 2
    ) -> Tensor:
        keys, queries = self.directions(view_of_maps), self.directions(maps_of_view)
        return (queries - keys).square().mean(dim=1)


@dataclass(frozen=True)
class Contrastive(_OfDistributions):
    r"""CGC's comparison: the map of a view is contrasted with those of other images' views.

    .. math:: \ell_i = -\log \frac{\exp(q_i \cdot k_i / \tau)}
        {\exp(q_i \cdot k_i / \tau) + \sum_{j \neq i} \exp(q_i \cdot q_j / \tau)}

    where :math:`k_i` is the view of the map of image i and :math:`q_i` the map of its view, each
    divided by its 2-norm. Its name is "cgc" as ``agreement`` of
    :class:`~sklcam.ConsistentCAMClassifier`.

    Parameters
    ----------
    tau : float > 0, default=0.5
        The temperature.

    Raises
    ------
    ValueError
        If tau is not a finite number > 0.

    Notes
    -----
    Maps are :math:`\Phi / (\sum \Phi + 10^{-8}) + 10^{-8}` before they are warped. With
    ``phi=HiResCAM()``, which has the ReLU, they are the paper's; in maps without it, negative
    values count as 0.

    The term couples images. The negatives of an image are the others that go through the network
    together with it: those in its part of a batch with ``batch_accumulation``, and those of its own
    process with several processes. ``memory="low"`` does not change them. An image on
    its own has no negatives, and a value of 0.

    References
    ----------
    Pillai, Koohpayegani, Ouligian, Fong, Pirsiavash, "Consistent Explanations by Contrastive
    Learning", CVPR 2022.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import Contrastive
    >>> maps = torch.eye(4).reshape(4, 2, 2)[:2]  # nothing in common: q.k = 1, q.q = 0
    >>> Contrastive(tau=1.0)(maps, maps)  # log(1 + 1 / e)
    tensor([0.3133, 0.3133])
    """

    tau: float = 0.5

    couples_images = True

    def __post_init__(self) -> None:
        check_number("tau", self.tau, 0, closed="neither")

    def __call__(
        self, view_of_maps: Tensor, maps_of_view: Tensor, *, spatial_dims: int = 2
    ) -> Tensor:
        """Measure each image.

        Parameters
        ----------
        view_of_maps, maps_of_view : Tensor of shape (n_images, height, width), >= 0
        spatial_dims : {2, 3}, default=2
            How many sides a map has: 3 for volumes, (n_images, depth, height, width).

        Returns
        -------
        Tensor of shape (n_images,), >= 0
        """
        check_maps(spatial_dims, view_of_maps=view_of_maps, maps_of_view=maps_of_view)
        keys, queries = self.directions(view_of_maps), self.directions(maps_of_view)
        positive = (queries * keys).sum(dim=1) / self.tau
        is_self = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
        candidates = torch.where(is_self, positive[:, None], queries @ queries.T / self.tau)
        return candidates.logsumexp(dim=1) - positive


class _Own(Agreement):
    """A user's callable, on maps in [0, 1]."""

    def __init__(self, compare: Comparison):
        self._compare = compare
        # Unless it says so, it may couple images.
        self.couples_images = bool(getattr(compare, "couples_images", True))

    def __call__(
        self, view_of_maps: Tensor, maps_of_view: Tensor, *, spatial_dims: int = 2
    ) -> Tensor:
        return self._compare(view_of_maps, maps_of_view)


AGREEMENTS: dict[str, Agreement] = {
    "ssim": _Structural(),
    "cgc": Contrastive(),
    "mse": _MeanSquare(),
}


def agreement_of(agreement: str | Comparison) -> Agreement:
    """Return the requested comparison.

    Parameters
    ----------
    agreement : {"ssim", "cgc", "mse"} or callable

    Raises
    ------
    ValueError
        If it is anything else, or a class instead of an object.
    """
    if isinstance(agreement, str) and agreement in AGREEMENTS:
        return AGREEMENTS[agreement]
    if isinstance(agreement, Agreement):
        return agreement
    if isinstance(agreement, str | type) or not callable(agreement):
        raise ValueError(
            f"agreement must be one of {', '.join(AGREEMENTS)}, or a callable that takes the views "
            "of maps and the maps of views, (n_images, height, width), and returns a number for "
            f"each image, as sklcam.training.Contrastive() is; got {describe(agreement)}."
        )
    return _Own(agreement)


def check_negatives(agreement: str | Comparison, n_together: int, n_parts: int) -> None:
    """Raise a ValueError if an image would have no other to be contrasted with.

    Parameters
    ----------
    agreement : {"ssim", "cgc", "mse"} or callable
    n_together : int
        Images of a batch.
    n_parts : int
        How many parts a batch is divided into.
    """
    if isinstance(agreement_of(agreement), Contrastive) and n_together < 2 * n_parts:
        raise ValueError(
            f"agreement={agreement!r} contrasts the images within a part of a batch, and a batch "
            f"of {n_together} with batch_accumulation={n_parts} leaves parts with one image. Raise "
            "batch_size, or lower batch_accumulation."
        )
