"""Terms on annotated images: maps must lie on the object.

They ignore images without a mask. The data decides what masks are and how they follow their images;
the loss decides how much the terms weigh.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sklcam.training.terms import Explanations, Pixels, Term
from sklcam.training.weights import Balanced, Schedule, Weight

MaskLoss = Literal["energy", "rrr", "gradmask"]


@dataclass(frozen=True)
class Energy(Term):
    r"""The share of the labelled class's map that lies outside the object.

    .. math:: \frac{\sum_j (1 - S_j)\, |\Phi_{y,j}|}{\sum_j |\Phi_{y,j}|}

    where S is the mask, 1 on the object. Its name is "energy" as ``mask_loss`` of
    :class:`~sklcam.ConsistentCAMClassifier`, and it costs next to nothing: a gradient from the
    scores to the layer.

    Parameters
    ----------
    weight : float >= 0, "auto", Balanced or callable, default=1.0

    Notes
    -----
    The map is unscaled, at the images' size. A map that is zero everywhere has a value of 1 and a
    gradient of zero.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import Energy, Explanations
    >>> maps, masks = torch.tensor([[[1.0, -1.0, 2.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]])
    >>> Energy().values(Explanations(maps, of_labels=maps, masks=masks))
    tensor([0.5000])
    """

    weight: Weight | Schedule = 1.0

    name = "energy"
    needs = frozenset({"masks", "labels"})
    balance = Balanced(0.2)

    def values(self, explained: Explanations) -> Tensor:
        assert explained.of_labels is not None and explained.masks is not None
        energy = explained.resized(explained.of_labels).abs()
        total = energy.sum(dim=(1, 2))
        outside = ((1 - explained.masks) * energy).sum(dim=(1, 2))
        is_empty = total <= 0  # false for NaN, which stays
        return torch.where(is_empty, 1.0, outside / torch.where(is_empty, 1.0, total))


@dataclass(frozen=True)
class AtPixels(Term):
    """A term on the gradient of a network's output at the pixels outside the object."""

    weight: Weight | Schedule = 1.0

    needs = frozenset({"masks", "pixels"})
    balance = Balanced(0.2)

    def values(self, explained: Explanations) -> Tensor:
        assert explained.pixels is not None and explained.masks is not None
        gradients = explained.pixels.gradients(self.score(explained.pixels))
        return self.size((1 - explained.masks)[:, None] * gradients).sum(dim=(1, 2, 3))

    @abstractmethod
    def score(self, pixels: Pixels) -> Tensor:
        """Return the number to differentiate for each image, (n_images,)."""

    @abstractmethod
    def size(self, gradients: Tensor) -> Tensor:
        """Return how much each gradient outside the object counts."""


class RightReasons(AtPixels):
    r"""Right for the right reasons: how steep the log-probabilities are outside the object.

    .. math:: \sum_{j} \Big((1 - S_j) \frac{\partial}{\partial x_j} \sum_k \log p_k\Big)^2

    over the pixels and channels of the network's input x. Its name is "rrr" as
    ``mask_loss`` of :class:`~sklcam.ConsistentCAMClassifier`.

    Parameters
    ----------
    weight : float >= 0, "auto", Balanced or callable, default=1.0

    Notes
    -----
    The whole network is differentiated twice, at the cost in time and memory of several steps.

    References
    ----------
    Ross, Hughes, Doshi-Velez, "Right for the Right Reasons", IJCAI 2017, eq. 1.

    Examples
    --------
    >>> from sklcam import ConsistentCAMClassifier
    >>> from sklcam.training import RightReasons
    >>> clf = ConsistentCAMClassifier(alpha=0, beta=0, terms=[RightReasons("auto")])
    """

    name = "rrr"

    def score(self, pixels: Pixels) -> Tensor:
        return pixels.log_probabilities().sum(dim=1)

    def size(self, gradients: Tensor) -> Tensor:
        return gradients.square()


class GradMask(AtPixels):
    r"""GradMask: how steep the contrast of two classes is outside the object.

    .. math:: \Big\lVert (1 - S) \frac{\partial |y_0 - y_1|}{\partial x} \Big\rVert_1

    over the pixels and channels of the network's input x, with the classes' logits y; for a network
    with one logit, that logit is their difference. Its name is "gradmask" as ``mask_loss`` of
    :class:`~sklcam.ConsistentCAMClassifier`, and it is for two classes.

    Parameters
    ----------
    weight : float >= 0, "auto", Balanced or callable, default=1.0

    Notes
    -----
    The whole network is differentiated twice, at the cost in time and memory of several steps.

    References
    ----------
    Simpson, Dutil, Bengio, Cohen, "GradMask: Reduce Overfitting by Regularizing Saliency", 2019.

    Examples
    --------
    >>> from sklcam import ConsistentCAMClassifier
    >>> from sklcam.training import GradMask
    >>> clf = ConsistentCAMClassifier(alpha=0, beta=0, terms=[GradMask("auto")])
    """

    name = "gradmask"

    def score(self, pixels: Pixels) -> Tensor:
        return pixels.contrast().abs()

    def size(self, gradients: Tensor) -> Tensor:
        return gradients.abs()


MASK_LOSSES: dict[str, type[Energy | AtPixels]] = {
    "energy": Energy,
    "rrr": RightReasons,
    "gradmask": GradMask,
}


def check_defined(terms: Iterable[Term], task: str, n_classes: int) -> None:
    """Raise a ValueError if a term is not defined for the task.

    Parameters
    ----------
    terms : iterable of Term
    task : {"multiclass", "binary", "multilabel", "regression"}
    n_classes : int
    """
    for term in terms:
        if "labels" in term.needs and task == "multilabel":
            raise ValueError(
                f"The term {term.name!r} needs the map of an image's own label, and with "
                'task="multilabel" an image may have several labels but one mask. Give one label '
                "per image, or leave the term out."
            )
        has_probabilities = task in ("multiclass", "binary")
        if isinstance(term, AtPixels) and not has_probabilities:
            raise ValueError(
                f"The term {term.name!r} is defined for classes that exclude each other, and the "
                f'task is {task!r}; "energy" is defined for numbers, too.'
            )
        if isinstance(term, GradMask) and n_classes != 2:
            raise ValueError(
                f'GradMask contrasts two classes, and there are {n_classes}. Use "rrr", which is '
                'defined for any number, or "energy".'
            )
