"""The training loss on explanations: cross-entropy, consistency and sparsity.

The terms are functions of maps; where the maps come from is the caller's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklcam.metrics.consistency import structural_similarity

_SURROGATE_WIDTH = 0.1


def consistency_loss(view_of_maps: Tensor, maps_of_view: Tensor) -> Tensor:
    r"""One minus SSIM between the view of the map and the map of the view.

    .. math:: \mathcal{L}_C = 1 - \mathrm{SSIM}\big(t(\Phi(f, x)),\, \Phi(f, t(x))\big)

    Parameters
    ----------
    view_of_maps, maps_of_view : Tensor of shape (n_images, height, width), in [0, 1]

    Returns
    -------
    Tensor of shape (n_images,), in [0, 2]

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", eq. 2.

    Examples
    --------
    >>> import torch
    >>> from sklcam.loss import consistency_loss
    >>> maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> consistency_loss(maps, maps)
    tensor([0., 0.])
    """
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
    >>> from sklcam.loss import sparsity_loss
    >>> maps = torch.tensor([[[0.0, 0.6], [0.0, 0.8]]])
    >>> [round(sparsity_loss(maps, p).item(), 4) for p in (0, 1, 2)]
    [2.0, 1.4, 1.0]
    """
    check_p(p)
    flat = maps.flatten(1)
    if p == 0:
        count = (flat != 0).sum(dim=1).to(flat.dtype)
        surrogate = (1 - torch.exp(-flat.abs() / _SURROGATE_WIDTH)).sum(dim=1)
        return count + (surrogate - surrogate.detach())
    return torch.linalg.vector_norm(flat, ord=p, dim=1)


@dataclass(frozen=True)
class WarmUp:
    """A weight that grows over epochs: explanations count for little before there is a classifier.

    A schedule for ``alpha`` or ``beta`` of :class:`~sklcam.ConsistentCAMClassifier`, which takes
    any callable of the epoch.

    Parameters
    ----------
    weight : float >= 0
        What is reached, and kept.
    epochs : int, default=5
        How many it takes, in equal steps.
    wait : int, default=0
        How many epochs the weight is 0 before.

    Examples
    --------
    >>> from sklcam.loss import WarmUp
    >>> schedule = WarmUp(1.0, epochs=4, wait=2)
    >>> [schedule(epoch) for epoch in range(8)]
    [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    weight: float
    epochs: int = 5
    wait: int = 0

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        if self.epochs < 1 or self.wait < 0:
            raise ValueError(
                f"epochs must be positive and wait not negative; got {self.epochs} and {self.wait}."
            )

    def __call__(self, epoch: int) -> float:
        """Return the weight in an epoch, counted from 0."""
        return self.weight * min(1.0, max(0.0, (epoch + 1 - self.wait) / self.epochs))


def check_weight(name: str, weight: object) -> None:
    """Raise a ValueError unless a term's weight is a finite number, and not negative."""
    if not (isinstance(weight, int | float | np.number) and 0 <= weight < math.inf):
        raise ValueError(f"{name} must be a finite number >= 0; got {weight!r}.")


def check_p(p: object) -> None:
    """Raise a ValueError unless p is 0 or at least 1."""
    is_number = isinstance(p, int | float | np.number) and not isinstance(p, bool)
    if not (is_number and (p == 0 or p >= 1)):  # type: ignore[operator]
        raise ValueError(
            f"p must be 0 or at least 1; got {p!r}. Between 0 and 1 the norm's gradient is "
            "unbounded at 0, where a sparse map has most of its pixels."
        )


class LossTerms(NamedTuple):
    """The loss and its terms, each a scalar Tensor; None for a term that is not in use."""

    total: Tensor
    cross_entropy: Tensor
    consistency: Tensor | None
    sparsity: Tensor | None


class ConsistentCAMLoss:
    r"""Cross-entropy plus the weighted terms on the explanations.

    .. math:: \mathcal{L} = \mathcal{L}_{CE} + \alpha \mathcal{L}_C + \beta \mathcal{L}_S

    Parameters
    ----------
    alpha : float >= 0, default=1.0
        Weight of the inconsistency; 0 leaves it out, and no second view is needed.
    beta : float >= 0, default=1e-6
        Weight of the norm; 0 leaves it out.
    p : float, 0 or >= 1, default=1
        Which norm.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", eq. 4.

    Examples
    --------
    In a training loop of one's own, on a network whose layer ``layer`` is explained:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam.cam import GradCAM, min_max, target_scores, upsample
    >>> from sklcam.loss import ConsistentCAMLoss
    >>> from sklcam.tape import record
    >>> from sklcam.views import ViewSampler
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
    ...                     nn.Flatten(), nn.Linear(4, 2))
    >>> layer, phi, loss = net[1], GradCAM(relu=False), ConsistentCAMLoss(alpha=0.5, beta=1e-3)
    >>> images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 0, 1])
    >>> views = ViewSampler()(4, size=(16, 16))
    >>> def explained(tape, images):
    ...     logits = net(images)
    ...     maps = phi(target_scores(logits), tape.activations, create_graph=True)
    ...     return logits, min_max(upsample(maps, (16, 16)))
    >>> with record(net, layer, trunk=True) as tape:
    ...     logits, maps = explained(tape, images)
    ...     _, maps_of_view = explained(tape, views(images))
    ...     ce = nn.functional.cross_entropy(logits, labels)
    ...     terms = loss(ce, maps, views(maps), maps_of_view)
    ...     terms.total.backward()
    >>> bool(net[0].weight.grad.abs().sum() > 0)
    True
    """

    def __init__(self, alpha: float = 1.0, beta: float = 1e-6, p: float = 1):
        for name, weight in (("alpha", alpha), ("beta", beta)):
            check_weight(name, weight)
        check_p(p)
        self.alpha = alpha
        self.beta = beta
        self.p = p

    def __call__(
        self,
        cross_entropy: Tensor,
        maps: Tensor | None = None,
        view_of_maps: Tensor | None = None,
        maps_of_view: Tensor | None = None,
    ) -> LossTerms:
        """Combine the terms.

        Parameters
        ----------
        cross_entropy : scalar Tensor
        maps : Tensor of shape (n_images, height, width), in [0, 1], or None
            Explanations of the images; needed for beta > 0.
        view_of_maps, maps_of_view : Tensor of shape (n_images, height, width) or None
            The maps warped as the images were, and the explanations of the warped images; needed
            for alpha > 0.

        Returns
        -------
        LossTerms
            The terms unweighted, each the mean over the batch.

        Raises
        ------
        ValueError
            If a term is in use and its maps are missing.
        """
        total, consistency, sparsity = cross_entropy, None, None
        if self.alpha:
            if view_of_maps is None or maps_of_view is None:
                raise ValueError("alpha > 0 needs view_of_maps and maps_of_view.")
            consistency = consistency_loss(view_of_maps, maps_of_view).mean()
            total = total + self.alpha * consistency
        if self.beta:
            if maps is None:
                raise ValueError("beta > 0 needs maps.")
            sparsity = sparsity_loss(maps, self.p).mean()
            total = total + self.beta * sparsity
        return LossTerms(total, cross_entropy, consistency, sparsity)
