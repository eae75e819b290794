"""The terms that a training loss adds to cross-entropy, each a measure of explanations.

A term takes the maps of a batch and returns a number for each image. A training step makes the
maps; the loss weights the terms and differentiates them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import check_alike, check_maps, check_sides, check_tensor, describe
from sklcam.cam import min_max, upsample
from sklcam.images.views import ViewSampler
from sklcam.images.warps import Warp
from sklcam.networks.readouts import Readout
from sklcam.training.agreement import Comparison, agreement_of
from sklcam.training.weights import Balanced, Scale, Schedule, Weight, weight_in

Need = Literal["view", "masks", "labels", "pixels"]
NEEDS: tuple[Need, ...] = ("view", "masks", "labels", "pixels")

MAPS = ("maps", "maps_of_view", "of_labels")  # what terms are differentiated with respect to
_SURROGATE_WIDTH = 0.1


@dataclass(frozen=True, eq=False)
class Pixels:
    """The path from a network's scores back to its input, for terms on gradients at the pixels.

    Parameters
    ----------
    images : Tensor of shape (n_images, channels, height, width)
        The input; it requires a gradient.
    scores : Tensor of shape (n_images, k)
        The scores that were computed from it.
    read : Readout
        How scores become probabilities.
    scale : callable or None, default=None
        Scales a value before it is differentiated, if gradients are too small for half precision.
    """

    images: Tensor
    scores: Tensor
    read: Readout
    scale: Scale = None

    def log_probabilities(self) -> Tensor:
        """Return the logarithm of each class's probability, (n_images, k)."""
        if self.read.is_probability:
            probabilities = self.read.probabilities(self.scores)
            return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
        if self.read.task == "binary":  # whose scores are a logit and its negative
            return F.logsigmoid(self.scores)
        return self.scores.log_softmax(dim=1)

    def contrast(self) -> Tensor:
        """Return the second class's score less the first one's, (n_images,)."""
        first, second = self.scores.unbind(dim=1)
        return second if self.read.task == "binary" else second - first

    def gradients(self, of: Tensor) -> Tensor:
        """Return the gradient of values computed from the scores; it can be differentiated again.

        Parameters
        ----------
        of : Tensor of shape (n_images,)

        Returns
        -------
        Tensor of shape (n_images, channels, height, width)
        """
        total = of.sum() if self.scale is None else self.scale(of.sum())
        (gradients,) = torch.autograd.grad(total, self.images, create_graph=True)
        return gradients if self.scale is None else gradients / self.scale(torch.ones_like(total))


@dataclass(frozen=True, eq=False)
class Explanations:
    """The explained images of a batch, as terms see them.

    Parameters
    ----------
    maps : Tensor of shape (n_images, u, v)
        Explanations of the images, without ReLU and unscaled.
    maps_of_view : Tensor of shape (n_images, u, v) or None, default=None
        Explanations of a view of each image.
    warp : Warp or None, default=None
        The view: how each image was warped.
    masks : Tensor of shape (n_images, height, width) or None, default=None
        How much of each pixel is annotated, in [0, 1]; warped as the image is by its augmentation.
    annotated : Tensor of shape (n_images,), bool, or None, default=None
        Which images have a mask; the others' masks are zero. None stands for all.
    size : (height, width) or None, default=None
        The images' size in pixels, to which :attr:`scaled` maps are resized. None leaves maps at
        their own size.
    of_labels : Tensor of shape (n_images, u, v) or None, default=None
        Explanations of the images' own labels, whatever is predicted.
    pixels : Pixels or None, default=None
        The path back to the network's input.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, d, u, v).

    Raises
    ------
    ValueError
        If maps, views or masks are of the wrong type, or do not fit each other.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import Explanations
    >>> explained = Explanations(torch.tensor([[[1.0, 5.0], [3.0, 1.0]]]))
    >>> explained.scaled
    tensor([[[0.0000, 1.0000],
             [0.5000, 0.0000]]])
    """

    maps: Tensor
    maps_of_view: Tensor | None = None
    warp: Warp | None = None
    masks: Tensor | None = None
    annotated: Tensor | None = None
    size: tuple[int, ...] | None = None
    of_labels: Tensor | None = None
    pixels: Pixels | None = None
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        check_maps(self.spatial_dims, maps=self.maps)
        if self.maps_of_view is not None or self.warp is not None:
            check_maps(self.spatial_dims, maps=self.maps, maps_of_view=self.maps_of_view)
            if not isinstance(self.warp, Warp) or len(self.warp) != len(self.maps):
                given = describe(self.warp)
                if isinstance(self.warp, Warp):
                    given = f"one for {len(self.warp)}"
                raise ValueError(
                    f"warp must be a Warp for each of the {len(self.maps)} images; got {given}."
                )
        if self.of_labels is not None:
            check_maps(self.spatial_dims, maps=self.maps, of_labels=self.of_labels)
        if self.masks is not None:
            check_tensor("masks", self.masks, "n_images", "height", "width")
            if len(self.masks) != len(self.maps):
                raise ValueError(
                    f"There are {len(self.maps)} maps and {len(self.masks)} masks. Give one mask "
                    "per map."
                )
        if self.annotated is not None:
            check_tensor("annotated", self.annotated, "n_images", floating=False)
            first = self.maps.flatten(1)[:, 0]
            check_alike({"annotated": self.annotated, "one of each map": first})
        if self.size is not None:
            object.__setattr__(self, "size", check_sides(self.size, "size"))

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def scaled(self) -> Tensor:
        """The maps at the images' size, each scaled to [0, 1]."""
        return min_max(self.resized(self.maps), self.spatial_dims)

    @property
    def scaled_of_view(self) -> Tensor:
        """The view's maps at the images' size, each scaled to [0, 1]."""
        assert self.maps_of_view is not None  # the term has said that it needs them
        return min_max(self.resized(self.maps_of_view), self.spatial_dims)

    @property
    def masks_of_view(self) -> Tensor:
        """The masks, warped as the view is."""
        assert self.masks is not None and self.warp is not None
        return self.warp(self.masks)

    def resized(self, maps: Tensor) -> Tensor:
        """Return maps at the images' size, unscaled."""
        return maps if self.size is None else upsample(maps, self.size)

    def take(self, rows: slice) -> Explanations:
        """Return the explanations of some of the images.

        Parameters
        ----------
        rows : slice

        Returns
        -------
        Explanations
        """
        names = (*MAPS, "masks", "annotated")
        fields = {name: getattr(self, name) for name in names}
        part = {name: value[rows] for name, value in fields.items() if value is not None}
        warp = None if self.warp is None else self.warp[rows]
        return replace(self, **part, warp=warp)


class ScaledOnce(Explanations):
    """Explanations whose maps are scaled only once, those of images and of views together.

    They are for terms that do not write into them, as other terms use the same tensors.
    """

    @cached_property
    def _both(self) -> tuple[Tensor, ...]:
        maps = self.maps
        if self.maps_of_view is not None:
            maps = torch.cat([maps, self.maps_of_view])
        return min_max(self.resized(maps), self.spatial_dims).split(len(self.maps))

    @property
    def scaled(self) -> Tensor:
        return self._both[0]

    @property
    def scaled_of_view(self) -> Tensor:
        return self._both[1]


class Term(ABC):
    """A part of the training loss: a number for each image, from its explanation.

    A subclass has a ``name`` and computes :meth:`values`; ``ConsistentCAMClassifier(terms=[...])``
    adds it to the terms of alpha and beta.

    Attributes
    ----------
    name : str
        The history has the term's mean over the images, unweighted, as ``train_<name>`` and
        ``valid_<name>``. If the term needs masks, the mean is over the images that have one;
        ``train_<name>_annotated`` is their share of a batch, and a batch without any lacks the
        term.
    weight : float >= 0, "auto", Balanced or callable, default=1.0
        As ``alpha`` of :class:`~sklcam.ConsistentCAMClassifier`.
    needs : set of {"view", "masks", "labels", "pixels"}, default=empty
        "view": a view of each image, its maps, and how it was warped. "masks": the masks given to
        ``fit``; images without one contribute nothing, whatever the term returns for them.
        "labels": maps of the images' own labels. "pixels": the path back to the network's input,
        only in training; the whole network is then differentiated twice.
    couples_images : bool, default=False
        Whether the value of an image depends on others in the batch. If not, the term is
        differentiated for a few images at a time, and nothing of an image's size is kept.
    balance : Balanced, default=Balanced(0.1)
        The meaning of the weight "auto".

    Examples
    --------
    The share of a map that lies outside its image's mask:

    >>> import torch
    >>> from dataclasses import dataclass
    >>> from sklcam.training import Explanations, Term
    >>> @dataclass(frozen=True)
    ... class Outside(Term):
    ...     weight: float = 1.0
    ...     name = "outside"
    ...     needs = frozenset({"masks"})
    ...
    ...     def values(self, explained):
    ...         energy = explained.scaled
    ...         return ((1 - explained.masks) * energy).sum((1, 2)) / energy.sum((1, 2))
    >>> maps, masks = torch.tensor([[[0.0, 0.25, 1.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]])
    >>> Outside().values(Explanations(maps, masks=masks))
    tensor([0.2000])
    """

    name: str
    weight: Weight | Schedule = 1.0
    needs: frozenset[Need] = frozenset()
    couples_images: bool = False
    balance: ClassVar[Balanced] = Balanced(0.1)

    @abstractmethod
    def values(self, explained: Explanations) -> Tensor:
        """Measure each image.

        Parameters
        ----------
        explained : Explanations
            With everything that the term needs.

        Returns
        -------
        Tensor of shape (n_images,)
            It must be differentiable once with respect to the maps.
        """

    @property
    def weight_name(self) -> str:
        """The weight's name in the history, if it balances itself."""
        return f"{self.name}_weight"


@dataclass(frozen=True)
class Consistency(Term):
    """The paper's first term: how much the map of a view differs from the view of the map.

    Parameters
    ----------
    weight : float >= 0, "auto", Balanced or callable, default=1.0
        The paper's alpha.
    agreement : {"ssim", "cgc", "mse"} or callable, default="ssim"
        How the two are compared, as in :class:`~sklcam.ConsistentCAMClassifier`.

    Raises
    ------
    ValueError
        If the agreement is something else.

    See Also
    --------
    consistency_loss : The number that is computed.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import Consistency, Explanations, Warp
    >>> maps = torch.rand(2, 12, 12)
    >>> Consistency().values(Explanations(maps, maps_of_view=maps, warp=Warp.identity(2)))
    tensor([0., 0.])
    """

    weight: Weight | Schedule = 1.0
    agreement: str | Comparison = "ssim"

    name = "inconsistency"
    needs = frozenset({"view"})
    balance = Balanced(0.2)

    def __post_init__(self) -> None:
        couples = agreement_of(self.agreement).couples_images
        object.__setattr__(self, "couples_images", couples)

    def values(self, explained: Explanations) -> Tensor:
        assert explained.warp is not None and explained.maps_of_view is not None
        compare = agreement_of(self.agreement)
        if compare.scales:
            maps, of_view = explained.scaled, explained.scaled_of_view
        else:
            maps, of_view = (
                compare.normalized(explained.resized(maps))
                for maps in (explained.maps, explained.maps_of_view)
            )
        view_of_maps, n = explained.warp(maps), explained.spatial_dims
        if explained.warp.is_inside:
            return compare(view_of_maps, of_view, spatial_dims=n)
        valid = explained.warp.valid(tuple(maps.shape[1:]))
        return compare.within(valid, view_of_maps, of_view, spatial_dims=n)

    @property
    def weight_name(self) -> str:
        return "alpha"


@dataclass(frozen=True)
class Sparsity(Term):
    """The paper's second term: the norm of the map.

    Parameters
    ----------
    weight : float >= 0, "auto", Balanced or callable, default=1e-6
        The paper's beta.
    p : float, 0 or >= 1, default=1
        The p of the norm; 0 counts the pixels that are not zero.

    Raises
    ------
    ValueError
        If p is neither 0 nor at least 1.

    See Also
    --------
    sparsity_loss : The number that is computed.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import Explanations, Sparsity
    >>> Sparsity(p=1).values(Explanations(torch.tensor([[[1.0, 2.0, 5.0]]])))
    tensor([1.2500])
    """

    weight: Weight | Schedule = 1e-6
    p: float = 1

    name = "norm"
    balance = Balanced(0.05)

    def __post_init__(self) -> None:
        check_p(self.p)

    def values(self, explained: Explanations) -> Tensor:
        return sparsity_loss(explained.scaled, self.p, spatial_dims=explained.spatial_dims)

    @property
    def weight_name(self) -> str:
        return "beta"


def needs_masks(terms: Sequence[Term], masks: object, augment: object, ce_on: str) -> bool:
    """Return whether a term needs masks; a ValueError if they are missing, or would get lost."""
    needing = [term.name for term in terms if "masks" in term.needs]
    if needing and masks is None:
        raise ValueError(
            f"The term {needing[0]!r} needs masks, and there are none. Give fit masks= or boxes=."
        )
    is_lost = callable(augment) and not isinstance(augment, ViewSampler) and ce_on != "all"
    if needing and is_lost:
        raise ValueError(
            f"augment is {describe(augment)}, and masks, which must be cropped and flipped with "
            'their images, cannot follow it. Set augment to "auto", None or a ViewSampler.'
        )
    return bool(needing)


def check_terms(terms: Iterable[Term]) -> None:
    """Raise a ValueError unless these are terms that the history can tell apart.

    Parameters
    ----------
    terms : iterable of Term
    """
    # skorch, the loss and the warning of a collapse write these columns.
    taken = {f"{loss}_{of}" for loss in ("ce", "criterion") for of in ("view", "augmented")}
    taken |= {"loss", "ce", "criterion", "batch_size", "correct", "annotated"}
    taken |= {"constant_maps", "corner_maps", "alike_maps"}
    for term in terms:
        if not isinstance(term, Term):
            raise ValueError(f"terms must be sklcam.training.Term objects; got {describe(term)}.")
        name = getattr(term, "name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"{type(term).__name__}.name must be a str; got {name!r}.")
        if not callable(term.weight):
            weight_in(0, term.weight, term.weight_name)
        unknown = set(term.needs) - set(NEEDS)
        if unknown:
            raise ValueError(
                f"{type(term).__name__}.needs may hold {', '.join(NEEDS)}; got {sorted(unknown)}."
            )
        further = [f"{name}_annotated"] if "masks" in term.needs else []
        for each in (name, term.weight_name, *further):
            if each in taken:
                raise ValueError(
                    f"The history already has a column {each!r}. Give {type(term).__name__} "
                    "another name."
                )
            taken.add(each)


def sparsity_loss(maps: Tensor, p: float = 1, *, spatial_dims: int = 2) -> Tensor:
    r"""The L_p norm of each map, over all its pixels.

    .. math:: \mathcal{L}_S = \Big(\sum_j |\Phi_j|^p\Big)^{1/p}

    Parameters
    ----------
    maps : Tensor of shape (n_images, height, width), in [0, 1]
    p : float, 0 or >= 1, default=1
        0 counts the pixels that are not zero.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, depth, height, width).

    Returns
    -------
    Tensor of shape (n_images,)
        It grows with the area: with p = 1, the same beta weighs a quarter as much at 112 x 112
        pixels as at 224 x 224.

    Raises
    ------
    ValueError
        If p lies between 0 and 1 (the gradient is unbounded at 0) or is negative, or the maps are
        not a floating-point tensor of shape (n_images, height, width).

    Notes
    -----
    The count of p = 0 is exact, but flat: its gradient is zero wherever it exists. The gradient is
    therefore that of :math:`\sum_j 1 - e^{-|\Phi_j| / \sigma}` with :math:`\sigma = 0.1`, which
    tends to the count as :math:`\sigma` tends to 0. It pushes pixels near zero to zero, and hardly
    changes bright ones.

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
    check_maps(spatial_dims, maps=maps)
    flat = maps.flatten(1)
    if p == 0:
        count = (flat != 0).sum(dim=1).to(flat.dtype)
        surrogate = (1 - torch.exp(-flat.abs() / _SURROGATE_WIDTH)).sum(dim=1)
        # The value of the count, the gradient of the surrogate.
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
