"""A warning when training on explanations has collapsed.

A network that classifies nothing can easily have consistent and sparse maps: blank ones, or a spot
in a corner. "Staying Consistent with GradCAM" (section 4.3) shows both. The warning looks for
these, and for maps that are the same for every image, which a network that does classify may have
as well.
"""

from __future__ import annotations

import math
import warnings
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.dataset import unpack_data
from skorch.history import History
from torch import Tensor

from sklcam._validation import check_count, check_maps, check_number, check_tensor, describe
from sklcam.cam.maps import rounding, sides
from sklcam.training import _criteria as criteria

_OF_MAPS = ("constant_maps", "corner_maps", "alike_maps")
_ALIKE = 0.9  # the correlation of maps that hardly depend on the image
_FEWEST = 4  # images: maps of fewer may be alike by chance
_SHORTEST = 3  # side of a map that has more places than its corners


def signs_of_collapse(
    logits: Tensor, classes: Tensor | None, maps: Tensor, *, spatial_dims: int = 2
) -> dict[str, Tensor]:
    """Return the visible signs of a collapse, as shares of a batch.

    Parameters
    ----------
    logits : Tensor of shape (n_images, n_classes)
    classes : Tensor of shape (n_images,), int64, or None
        The true classes; None if images do not have exactly one class each.
    maps : Tensor of shape (n_images, u, v)
        At the layer's own resolution, unscaled.
    spatial_dims : {2, 3}, default=2
        How many sides a map has: 3 for volumes, (n_images, d, u, v).

    Returns
    -------
    dict of str to scalar Tensor, in [0, 1]
        ``correct``: images that are classified correctly; only with classes.
        ``constant_maps``: maps of a single value, up to rounding. ``corner_maps``: maps that vary
        and are highest in one of the corners; only if no side is shorter than 3. ``alike_maps``:
        maps that vary, and correlate by more than 0.9 with the mean of the other images' maps, each
        map taken as a deviation from its mean, of length 1; only if no side is shorter than 3, and
        there are at least four images.

    Raises
    ------
    ValueError
        If logits and maps are not floating-point tensors, if the classes are not integers, or if
        the three are not of the same images, at least one.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import signs_of_collapse
    >>> maps = torch.zeros(2, 3, 3)
    >>> maps[1, 0, 2] = 1
    >>> signs = signs_of_collapse(torch.eye(2), torch.tensor([0, 0]), maps)
    >>> {name: share.item() for name, share in signs.items()}  # 2 images cannot be alike
    {'correct': 0.5, 'constant_maps': 0.5, 'corner_maps': 0.5}
    """
    check_tensor("logits", logits, "n_images", "n_classes")
    check_maps(spatial_dims, maps=maps)
    if classes is not None:
        check_tensor("classes", classes, "n_images", floating=False)
        if classes.is_floating_point():
            raise ValueError(f"classes must be indices, integers; got {describe(classes)}.")
    counts = [len(each) for each in (logits, classes, maps) if each is not None]
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            "logits, classes and maps must be of the same images, at least one; got "
            f"{', '.join(map(str, counts[:-1]))} and {counts[-1]}."
        )
    maps = maps.detach()
    low, high = maps.amin(dim=sides(maps)), maps.amax(dim=sides(maps))
    varies = high - low > rounding(low, high)
    shares = {"constant_maps": ~varies}
    if classes is not None:
        shares = {"correct": logits.detach().argmax(dim=1) == classes, **shares}
    if min(maps.shape[1:]) >= _SHORTEST:
        shares["corner_maps"] = _are_highest_in_corners(maps) & varies
        if len(maps) >= _FEWEST:
            shares["alike_maps"] = (_correlations_with_others(maps) > _ALIKE) & varies
    means = torch.stack([*shares.values()]).mean(dim=1, dtype=torch.float32)
    return dict(zip(shares, means.unbind(), strict=True))


def _are_highest_in_corners(maps: Tensor) -> Tensor:
    n, *others = maps.shape[1:]
    # Both ends of the first side become corners; places between them do not.
    at = maps.flatten(1).argmax(dim=1) % ((n - 1) * math.prod(others))
    corners = [0]
    for side in others:
        corners = [corner * side + end for corner in corners for end in (0, side - 1)]
    return reduce(torch.bitwise_or, (at == corner for corner in corners))


def _correlations_with_others(maps: Tensor) -> Tensor:
    """Return the correlation of each map with the mean of the other images' maps."""
    deviations = maps.flatten(1) - maps.mean(dim=sides(maps))[:, None]
    deviations = torch.nn.functional.normalize(deviations, dim=1)
    others = deviations.sum(dim=0) - deviations
    norms = torch.linalg.vector_norm(others, dim=1)
    return (deviations * others).sum(dim=1) / norms.clamp(min=torch.finfo(norms.dtype).tiny)


class Chance(NamedTuple):
    """How often predictions are right, and how often they would be by chance.

    Attributes
    ----------
    accuracy : float
    constant : float
        The accuracy of the best constant prediction.
    noise : float
        The standard deviation of the accuracy when these predictions are shuffled over the images.
    """

    accuracy: float
    constant: float
    noise: float

    def __bool__(self) -> bool:
        """Whether predictions are no better than a constant one."""
        return self.accuracy <= self.constant + 2 * self.noise


def chance_of(labels: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> Chance:
    r"""Compare predictions with a constant one.

    Parameters
    ----------
    labels, answers : ndarray of shape (n_images,), int
        Indices of classes.
    weights : ndarray of shape (n_images,)
        How much each image counts.

    Returns
    -------
    Chance

    Notes
    -----
    With :math:`a_{ij} = w_i [y_i = \hat{y}_j]`, the variance over all permutations of the
    predictions is that of Hoeffding, "A combinatorial central limit theorem", 1951, theorem 2. It
    is 0 for constant predictions, and small for nearly constant ones: recognising a few rare images
    is not chance.
    """
    n_classes, n_images = 1 + int(max(labels.max(), answers.max())), len(labels)

    def by_class(numbers: np.ndarray) -> np.ndarray:
        return np.bincount(labels, numbers, n_classes)

    of_classes, squares = by_class(weights), by_class(weights**2)
    right = by_class(weights * (labels == answers))
    given = np.bincount(answers, minlength=n_classes) / n_images
    means = of_classes / n_images
    spread = squares @ (given - given**2) - n_images * (given @ means**2 - (given @ means) ** 2)
    variance = max(0.0, float(spread) * n_images / max(1, n_images - 1))
    total = float(of_classes.sum())
    return Chance(
        float(right.sum()) / total, float(of_classes.max()) / total, math.sqrt(variance) / total
    )


class CollapseWarning(Callback):
    """Warn when training on explanations has collapsed, and say what to change.

    It is part of :class:`~sklcam.ConsistentCAMClassifier` under the name ``collapse_warning``:
    ``callbacks__collapse_warning=None`` removes it, ``callbacks__collapse_warning__patience=10``
    makes it wait longer.

    Parameters
    ----------
    patience : int, default=5
        How many epochs in a row must look collapsed. A network that starts from random weights
        looks collapsed at first.
    share : float in (0, 1], default=0.8
        The share of an epoch's maps that must be constant, highest in a corner, or like the others.

    Attributes
    ----------
    collapsed_ : dict of str to int
        The epoch, counted from 1, of each warning: "chance", "constant_maps", "corner_maps",
        "alike_maps".

    Notes
    -----
    Accuracy is measured on the training images as augmented, each counted as its label is in the
    loss, by ``class_weight``, ``sample_weight``, ``criterion__weight`` or
    ``criterion__pos_weight``. The weights of a user's own criterion are not known, and all classes
    then count equally. Accuracy is at chance if it is within two standard deviations of the best
    constant prediction; the deviation is that of the same predictions, shuffled over the images. It
    is checked only if images have one class: with several labels per image most are rare, and
    predicting none is right most of the time even for a network that learns.

    There is no warning about what cannot be seen: whether maps are alike in batches of fewer than
    four images, and where they are highest if they have fewer than three rows or columns.

    Maps of objects that all fill the same part of their image are also alike, and nothing is wrong
    with that. Crops keep them apart in training.

    Examples
    --------
    >>> from sklcam import ConsistentCAMClassifier
    >>> clf = ConsistentCAMClassifier(callbacks__collapse_warning__patience=10)
    """

    def __init__(self, patience: int = 5, share: float = 0.8):
        self.patience = patience
        self.share = share

    def initialize(self) -> CollapseWarning:
        """Check the parameters and reset the counts.

        Raises
        ------
        ValueError
            If the patience is not an int >= 1, or the share is outside 0 to 1.
        """
        check_count("patience", self.patience)
        check_number("share", self.share, 0, 1, closed="right")
        self.collapsed_: dict[str, int] = {}
        self.in_a_row_ = dict.fromkeys(("chance", *_OF_MAPS), 0)
        return self

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.seen_: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def on_batch_end(
        self,
        net: NeuralNet,
        batch: Any = None,
        training: bool = False,
        y_pred: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if training and "train_correct" in net.history[-1, "batches", -1]:  # there are classes
            assert y_pred is not None
            weights = getattr(batch, "annotations", {}).get("weights")
            # On the device: reading the predictions would wait for it.
            self.seen_.append((unpack_data(batch)[1], net.decided(y_pred), weights))

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        seen, self.seen_ = self.seen_, []
        shares = _shares(net.history)
        lost = not math.isfinite(net.history[-1].get("train_loss", 0.0))  # the net warns about that
        if lost or not shares:  # no maps in this epoch
            return
        looks = {
            name: (shares[name] >= self.share, _MESSAGES[name].format(shares[name]))
            for name in _OF_MAPS
            if name in shares
        }
        if looks.get("corner_maps", (False,))[0]:  # corners say more
            looks.pop("alike_maps", None)
        if seen:
            looks["chance"] = _look_at_answers(net, *zip(*seen, strict=True))
        for name in self.in_a_row_:
            is_found, what = looks.get(name, (False, ""))
            self.in_a_row_[name] = self.in_a_row_[name] + 1 if is_found else 0
            if self.in_a_row_[name] == self.patience and name not in self.collapsed_:
                self.collapsed_[name] = len(net.history)
                warnings.warn(self._message(what, net), ConvergenceWarning, 2)

    def _message(self, what: str, net: NeuralNet) -> str:
        return (
            f"For {self.patience} epochs, up to epoch {len(net.history)}: {what}. The terms on "
            f"explanations (alpha={net.alpha!r}, beta={net.beta!r}) may weigh too much: lower the "
            "weights, introduce them late with sklcam.training.WarmUp, or balance them with "
            'alpha="auto", beta="auto", or with sklcam.training.Balanced and a smaller ratio. If '
            "a classifier with alpha=0, beta=0 does not train either, change lr first."
        )


_MESSAGES = {
    "constant_maps": "{:.0%} of the maps are constant, so they agree and are sparse without "
    "explaining anything",
    "corner_maps": "{:.0%} of the maps are highest in a corner of the image, where they agree and "
    "are sparse without explaining anything",
    "alike_maps": "{:.0%} of the maps are much the same for every image, so they agree "
    "without explaining it (unless all objects are in the same place)",
}


def _shares(history: History) -> dict[str, float]:
    """Return the signs' means over the epoch's images for which they could be seen."""
    shares = {}
    for name in _OF_MAPS:
        batches = [each for each in history[-1]["batches"] if f"train_{name}" in each]
        sizes = [each["train_batch_size"] for each in batches]
        if batches:
            found = [each[f"train_{name}"] for each in batches]
            shares[name] = float(np.average(found, weights=sizes))
    return shares


def _look_at_answers(
    net: NeuralNet,
    labels: tuple[Tensor, ...],
    answers: tuple[Tensor, ...],
    weights: tuple[Tensor | None, ...],
) -> tuple[bool, str]:
    """Return whether an epoch's predictions are at chance, and the message about them."""
    y, decided = torch.cat(labels).cpu(), torch.cat(answers).cpu()
    own = [each for each in weights if each is not None]
    of_images = torch.cat(own).cpu() if own else torch.ones(len(y))
    of_labels = criteria.weights_of_labels(net.criterion_, y, of_images)
    what = ""
    if of_labels is not None and not of_labels.any():  # a process whose images do not count
        return False, ""
    if of_labels is None:
        of_labels, what = 1 / y.bincount()[y], ", with all classes weighted equally,"
    elif bool((of_labels != of_labels[0]).any()):
        what = ", weighted as in the loss,"
    chance = chance_of(y.numpy(), decided.numpy(), of_labels.double().numpy())
    return bool(chance), (
        f"accuracy on the training images{what} is {chance.accuracy:.1%}, and naming "
        f"{'one' if what else 'the most frequent'} class every time would give "
        f"{chance.constant:.1%}"
    )
