"""Callbacks of training: a warning when it has collapsed, means, scores, labels for scores.

Consistent and sparse maps are easy to have of a network that classifies nothing: blank ones, or a
spot in a corner. "Staying Consistent with GradCAM" (section 4.3) shows both. That is what the
warning looks for, and for maps that are the same whatever the image, which one that does classify
may have as well.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback, PassthroughScoring
from skorch.dataset import unpack_data
from skorch.history import History
from skorch.utils import to_numpy
from torch import Tensor

from sklcam._validation import check_count, check_number, check_tensor, describe
from sklcam.cam.maps import rounding

_OF_MAPS = ("constant_maps", "corner_maps", "alike_maps")
_ALIKE = 0.9  # the correlation of maps that hardly depend on the image


def signs_of_collapse(logits: Tensor, classes: Tensor | None, maps: Tensor) -> dict[str, Tensor]:
    """Return the signs of a collapse, as shares of a batch.

    Parameters
    ----------
    logits : Tensor of shape (n_images, n_classes)
    classes : Tensor of shape (n_images,), int64, or None
        The true ones. None is for images that are not of one class each.
    maps : Tensor of shape (n_images, u, v)
        At the layer's own resolution, unscaled.

    Returns
    -------
    dict of str to scalar Tensor, in [0, 1]
        ``correct``: images that are classified correctly, if there are classes. ``constant_maps``:
        maps of a single value, up to rounding. ``corner_maps``: maps that vary, and are highest in
        one of the four corners; none where a layer has no other places. ``alike_maps``: maps that
        vary, and correlate by more than 0.9 with the mean of the other images' maps, each map taken
        as a deviation from its mean, of length 1; none of fewer than four images.

    Raises
    ------
    ValueError
        If logits and maps are not floating-point tensors, the classes not integers, or the three
        not of the same images, at least one.

    Examples
    --------
    >>> import torch
    >>> from sklcam.training import signs_of_collapse
    >>> maps = torch.zeros(2, 3, 3)
    >>> maps[1, 0, 2] = 1
    >>> signs = signs_of_collapse(torch.eye(2), torch.tensor([0, 0]), maps)
    >>> {name: share.item() for name, share in signs.items()}
    {'correct': 0.5, 'constant_maps': 0.5, 'corner_maps': 0.5, 'alike_maps': 0.0}
    """
    check_tensor("logits", logits, "n_images", "n_classes")
    check_tensor("maps", maps, "n_images", "height", "width")
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
    rows, columns = maps.shape[-2:]
    low, high = maps.amin(dim=(-2, -1)), maps.amax(dim=(-2, -1))
    is_constant = high - low <= rounding(low, high)
    at = maps.flatten(1).argmax(dim=1)
    row, column = at // columns, at % columns
    in_corner = ((row == 0) | (row == rows - 1)) & ((column == 0) | (column == columns - 1))
    is_alike = _correlations_with_others(maps) > _ALIKE
    if min(rows, columns) < 3:  # too small for the highest place, or the form, to say anything
        in_corner, is_alike = torch.zeros_like(in_corner), torch.zeros_like(is_alike)
    if len(maps) < 4:
        is_alike = torch.zeros_like(is_alike)
    shares = {
        "constant_maps": is_constant,
        "corner_maps": in_corner & ~is_constant,
        "alike_maps": is_alike & ~is_constant,
    }
    if classes is not None:
        shares = {"correct": logits.detach().argmax(dim=1) == classes, **shares}
    return {name: which.float().mean() for name, which in shares.items()}


def _correlations_with_others(maps: Tensor) -> Tensor:
    """Return the correlation of each map with the mean of the other images' maps."""
    deviations = maps.flatten(1) - maps.mean(dim=(-2, -1))[:, None]
    deviations = torch.nn.functional.normalize(deviations, dim=1)
    others = deviations.sum(dim=0) - deviations
    return torch.nn.functional.cosine_similarity(deviations, others, dim=1)


class CollapseWarning(Callback):
    """Warn when training on explanations has collapsed, and say what to change.

    Part of :class:`~sklcam.ConsistentCAMClassifier` under the name ``collapse_warning``:
    ``callbacks__collapse_warning=None`` leaves it out, ``callbacks__collapse_warning__patience=10``
    lets it wait.

    Parameters
    ----------
    patience : int, default=5
        How many epochs in a row must look collapsed: a network that starts from random weights
        does at first.
    share : float in (0, 1], default=0.8
        How many of an epoch's maps must be constant, highest in a corner, or like the others.

    Attributes
    ----------
    collapsed_ : dict of str to int
        The epoch, counted from 1, of each warning: "chance", "constant_maps", "corner_maps",
        "alike_maps".

    Notes
    -----
    Accuracy is on the training images as they are trained on, and at chance where it is within two
    standard deviations of naming the most frequent class every time. It is looked at where an image
    has one class: of several labels an image, most are rare, and naming none is right most of the
    time also for a network that learns.

    Maps of objects that all fill the same part of their image are alike, too, and need no mending.
    Crops keep them apart in training.

    Examples
    --------
    >>> from sklcam import ConsistentCAMClassifier
    >>> clf = ConsistentCAMClassifier(callbacks__collapse_warning__patience=10)
    """

    def __init__(self, patience: int = 5, share: float = 0.8):
        self.patience = patience
        self.share = share

    def initialize(self) -> CollapseWarning:
        """Check the parameters, and forget what was seen.

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
        self.counts_ = torch.zeros(0, dtype=torch.int64)

    def on_batch_end(
        self, net: NeuralNet, batch: Any = None, training: bool = False, **kwargs: Any
    ) -> None:
        if training and "train_correct" in net.history[-1, "batches", -1]:  # there are classes
            counts = torch.bincount(batch[1], minlength=len(self.counts_)).cpu()
            counts[: len(self.counts_)] += self.counts_
            self.counts_ = counts

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        shares = self._shares(net.history)
        lost = not math.isfinite(net.history[-1].get("train_loss", 0.0))  # the net warns of that
        if lost or not shares:  # no maps in this epoch
            return
        found = {name: shares[name] >= self.share for name in _OF_MAPS}
        found["alike_maps"] &= not found["corner_maps"]  # which says more
        n_images, chance = int(self.counts_.sum()), math.nan
        if n_images:
            chance = float(self.counts_.max()) / n_images
            noise = math.sqrt(chance * (1 - chance) / n_images)
            # A classifier that names the most frequent class is right that often, give or take.
            found["chance"] = shares["correct"] <= chance + 2 * noise
        for name, is_found in found.items():
            self.in_a_row_[name] = self.in_a_row_[name] + 1 if is_found else 0
            if self.in_a_row_[name] == self.patience and name not in self.collapsed_:
                self.collapsed_[name] = len(net.history)
                warnings.warn(self._message(name, shares, chance, net), ConvergenceWarning, 2)

    def _shares(self, history: History) -> dict[str, float]:
        """Return the signs' means over the epoch's images; nothing if it had no maps."""
        batches = [batch for batch in history[-1]["batches"] if "train_corner_maps" in batch]
        if not batches:
            return {}
        sizes = [batch["train_batch_size"] for batch in batches]
        names = ("correct", *_OF_MAPS)
        return {
            name: float(np.average([batch[f"train_{name}"] for batch in batches], weights=sizes))
            for name in names
            if f"train_{name}" in batches[0]
        }

    def _message(self, name: str, shares: dict[str, float], chance: float, net: NeuralNet) -> str:
        accuracy = shares.get("correct", math.nan)
        seen = {
            "chance": f"accuracy on the training images is {accuracy:.1%}, and naming the most "
            f"frequent class every time would give {chance:.1%}",
            "constant_maps": f"{shares['constant_maps']:.0%} of the maps are constant, so that "
            "they agree and are sparse without explaining anything",
            "corner_maps": f"{shares['corner_maps']:.0%} of the maps are highest in a corner of "
            "the image, where they agree and are sparse without explaining anything",
            "alike_maps": f"{shares['alike_maps']:.0%} of the maps are much the same whatever the "
            "image, so that they agree without explaining it (unless all objects lie in one place)",
        }[name]
        return (
            f"For {self.patience} epochs, up to epoch {len(net.history)}: {seen}. The terms on "
            f"explanations (alpha={net.alpha!r}, beta={net.beta!r}) may weigh too much: make them "
            "smaller, bring them in late by sklcam.training.WarmUp, or balance them by "
            'alpha="auto", beta="auto", or by sklcam.training.Balanced with a smaller ratio. If a '
            "classifier with alpha=0, beta=0 does not train, either, change lr first."
        )


def decoding(callback: Callback, classes: np.ndarray) -> Callback:
    """Let a scoring callback of skorch compare labels with labels: batches hold class indices.

    Parameters
    ----------
    callback : Callback
        Any; one that scores nothing, or extracts its targets in a way of its own, is returned.
    classes : ndarray of shape (n_classes,)

    Returns
    -------
    Callback
        A copy, as the caller's own may be part of another net.
    """
    if getattr(callback, "target_extractor", None) is not to_numpy:
        return callback
    callback = copy.copy(callback)
    callback.target_extractor = LabelDecoder(classes)
    return callback


class LabelDecoder:
    """Turn class indices back into labels, for skorch's scoring callbacks."""

    def __init__(self, classes: np.ndarray):
        self.classes = classes

    def __call__(self, indices: Tensor | np.ndarray) -> np.ndarray:
        return self.classes[to_numpy(indices)]


class ResumedScoring(PassthroughScoring):
    """A score of epochs that knows the best one of those that were trained before."""

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        best = [row[self.name] for row in net.history if row.get(f"{self.name}_best")]
        if best:  # a history that was loaded
            self.best_score_ = best[-1]


class EpochScore(ResumedScoring):
    """The score of an epoch's predictions, as they were made for the loss.

    Those of training are of the images as they are augmented, by weights that change meanwhile.
    """

    def __init__(self, name: str, on_train: bool = False):
        super().__init__(name, lower_is_better=False, on_train=on_train)

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.outcomes_: list[Tensor] = []

    def on_batch_end(
        self,
        net: NeuralNet,
        batch: Any = None,
        training: bool = False,
        y_pred: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if training == self.on_train and y_pred is not None:
            # On the device: to read them would be to wait for it.
            self.outcomes_.append(net.outcome(y_pred, unpack_data(batch)[1]))

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        outcomes, self.outcomes_ = self.outcomes_, []
        if not outcomes:  # there is no validation
            return
        score = net.score_of(torch.cat(outcomes), training=self.on_train)
        is_best = self._is_best_score(score)
        if is_best:
            self.best_score_ = score
        net.history.record(self.name, score)
        net.history.record(f"{self.name}_best", bool(is_best))


# The criterion's loss of images, of their views and of what is augmented, by task.
_CRITERIA = [f"{loss}{of}" for loss in ("ce", "criterion") for of in ("", "_view", "_augmented")]


class EpochMean(ResumedScoring):
    """The mean of a loss over an epoch's batches, by their weight where images have one.

    Only the criterion's loss is weighted: terms on explanations count all images alike.
    """

    def get_avg_score(self, history: History) -> float:
        phase, _, name = self.name.partition("_")
        batches = [batch for batch in history[-1, "batches"] if self.name in batch]
        is_weighted = all(f"{phase}_weight" in batch for batch in batches)
        if name not in ("loss", *_CRITERIA) or not is_weighted:
            return float(super().get_avg_score(history))
        criteria = [self.name]
        if name == "loss":
            criteria = [f"{phase}_{each}" for each in _CRITERIA if f"{phase}_{each}" in batches[0]]
        keys = (f"{phase}_weight", f"{phase}_batch_size", self.name)
        weights, sizes, values = np.array([[b[key] for key in keys] for b in batches]).T
        losses = np.array([[b[key] for key in criteria] for b in batches]).sum(axis=1)
        return float(
            np.average(losses, weights=weights) + np.average(values - losses, weights=sizes)
        )
