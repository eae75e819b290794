"""The weights of the loss's terms: numbers, schedules, and weights that balance gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import check_count, check_number

# A term whose gradient all but vanishes would otherwise get a weight that lets it explode later.
_LARGEST_WEIGHT = 1e4

Scale = Callable[[Tensor], Tensor] | None


@dataclass(frozen=True)
class WarmUp:
    """A weight that grows over epochs: explanations count for little until a classifier exists.

    A schedule for ``alpha`` or ``beta`` of :class:`~sklcam.ConsistentCAMClassifier`, or for the
    weight of any other term; any callable of the epoch is one.

    Parameters
    ----------
    weight : float >= 0
        The weight that is reached, and kept.
    epochs : int, default=5
        How many epochs the growth takes, in equal steps.
    wait : int, default=0
        How many epochs the weight stays 0 before that.

    Raises
    ------
    ValueError
        If the weight is not a finite number >= 0, ``epochs`` is not an int >= 1, or ``wait`` is
        not an int >= 0.

    Examples
    --------
    >>> from sklcam.training import WarmUp
    >>> schedule = WarmUp(1.0, epochs=4, wait=2)
    >>> [schedule(epoch) for epoch in range(8)]
    [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    weight: float
    epochs: int = 5
    wait: int = 0

    def __post_init__(self) -> None:
        if not _is_number(self.weight):
            raise ValueError(f"weight must be a finite number >= 0; got {self.weight!r}.")
        check_count("epochs", self.epochs)
        check_count("wait", self.wait, 0)

    def __call__(self, epoch: int) -> float:
        """Return the weight in an epoch, counted from 0."""
        return self.weight * min(1.0, max(0.0, (epoch + 1 - self.wait) / self.epochs))


@dataclass(frozen=True)
class Balanced:
    r"""A weight that keeps a term's gradient in proportion to that of cross-entropy.

    .. math:: \alpha = \rho\, \frac{\lVert \partial \mathcal{L}_{CE} / \partial A \rVert_2}
        {\lVert \partial \mathcal{L}_C / \partial A \rVert_2}

    and in the same way for the other terms, where :math:`A` are the activations of the target layer
    on the images, and the norms are moving averages over the steps. So a term can neither drown
    classification nor be drowned by it, whatever its scale.

    The weight "auto" is ``Balanced(0.2)`` for ``alpha`` and ``Balanced(0.05)`` for ``beta``, as
    sparser maps overlap less; each :class:`~sklcam.training.Term` has its own ``balance``.

    Parameters
    ----------
    ratio : float > 0
        The desired size of the term's gradient, as a multiple of cross-entropy's.

    Raises
    ------
    ValueError
        If the ratio is not a finite number > 0.

    Notes
    -----
    A term without a gradient gets the weight 0, and no weight is above 1e4.

    References
    ----------
    Esser, Rombach, Ommer, "Taming transformers for high-resolution image synthesis", CVPR 2021,
    eq. 7, at the last layer of a decoder; in the spirit of Chen et al., "GradNorm", ICML 2018.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import Balanced, GradientSizes
    >>> activations = torch.ones(2, requires_grad=True)
    >>> sizes = GradientSizes()
    >>> sizes.update("cross_entropy", 6 * activations.sum(), activations)
    >>> sizes.update("inconsistency", 2 * activations.sum(), activations)
    >>> Balanced(0.5)(sizes, "inconsistency")
    tensor(1.5000)
    """

    ratio: float

    def __post_init__(self) -> None:
        if not (isinstance(self.ratio, int | float | np.number) and 0 < self.ratio < math.inf):
            raise ValueError(f"ratio must be a finite number > 0; got {self.ratio!r}.")

    def __call__(self, sizes: GradientSizes, term: str) -> Tensor:
        """Return the weight of a term, a scalar Tensor."""
        reference, size = sizes.averages["cross_entropy"], sizes.averages[term]
        # torch.where, not if: to look at a number on a GPU, the host would have to wait for it.
        has_gradient = size > 0
        weight = self.ratio * reference / torch.where(has_gradient, size, 1.0)
        return torch.where(has_gradient, weight, 0.0).clamp(max=_LARGEST_WEIGHT)


Weight = float | str | Balanced  # the str is "auto"
Schedule = Callable[[int], Weight]


class GradientSizes:
    """Sizes of the terms' gradients at the target layer, as moving averages over steps.

    Parameters
    ----------
    decay : float in [0, 1), default=0.9
        How much of an average a step keeps.

    Attributes
    ----------
    averages : dict of str to scalar Tensor
        By term, on the device of the activations; nothing is read back to the host.

    Raises
    ------
    ValueError
        If the decay is not a number from 0 up to, but not including, 1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import GradientSizes
    >>> activations = torch.ones(4, requires_grad=True)
    >>> sizes = GradientSizes(decay=0.5)
    >>> sizes.update("inconsistency", 3 * activations.sum(), activations)
    >>> sizes.update("inconsistency", activations.sum(), activations)
    >>> sizes.averages
    {'inconsistency': tensor(4.)}
    """

    def __init__(self, decay: float = 0.9):
        check_number("decay", decay, 0, 1, closed="left")
        self.decay = decay
        self.averages: dict[str, Tensor] = {}

    def update(self, term: str, loss: Tensor, activations: Tensor, scale: Scale = None) -> None:
        """Add a step's gradient to a term's average.

        Parameters
        ----------
        term : str
        loss : scalar Tensor
            Its graph is kept.
        activations : Tensor
            Activations of the target layer, with the graph from them to the loss.
        scale : callable or None, default=None
            Scales the loss before it is differentiated, if gradients are too small for half
            precision.
        """
        scaled = loss if scale is None else scale(loss)
        (gradient,) = torch.autograd.grad(
            scaled, activations, retain_graph=True, materialize_grads=True
        )
        size = torch.linalg.vector_norm(
            gradient, dtype=torch.promote_types(gradient.dtype, torch.float32)
        )
        if scale is not None:
            size = size / scale(torch.ones_like(size))
        average = self.averages.get(term)
        if average is None:
            average = size
        average = average.to(size.device)
        new = self.decay * average + (1 - self.decay) * size
        # One overflow in half precision would otherwise spoil the average for good.
        self.averages[term] = torch.where(new.isfinite(), new, average.nan_to_num(0, 0, 0)).detach()

    def to(self, device: torch.device | str) -> None:
        """Move the averages to a device: those that were loaded are on the CPU.

        Parameters
        ----------
        device : torch.device or str
        """
        self.averages = {term: average.to(device) for term, average in self.averages.items()}

    def __getstate__(self) -> dict[str, Any]:
        # So that what was trained on a GPU can be loaded where there is none.
        averages = {term: average.cpu() for term, average in self.averages.items()}
        return {**vars(self), "averages": averages}


def weight_in(epoch: int, weight: Weight | Schedule, name: str) -> Weight:
    """Return a weight as it is in an epoch; a ValueError if it is not one.

    Parameters
    ----------
    epoch : int
        Counted from 0.
    weight : float >= 0, "auto", Balanced or callable
        A callable takes the epoch and returns one of the others.
    name : str
        The weight's name, for the message.
    """
    if callable(weight) and not isinstance(weight, Balanced):
        weight = weight(epoch)
        name = f"The weight that {name} returns for epoch {epoch}"
    is_balanced = isinstance(weight, Balanced) or (isinstance(weight, str) and weight == "auto")
    if not is_balanced and not _is_number(weight):
        raise ValueError(
            f'{name} must be a finite number >= 0, "auto" or a Balanced; got {weight!r}.'
        )
    return weight


def _is_number(weight: object) -> bool:
    return isinstance(weight, int | float | np.number) and bool(0 <= weight < math.inf)
