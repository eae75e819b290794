"""Callbacks of training: an epoch's means and scores, and labels for scores."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, PassthroughScoring
from skorch.dataset import unpack_data
from skorch.history import History
from skorch.utils import to_numpy
from torch import Tensor

from sklcam._validation import check_count


def decoding(callback: Callback, classes: np.ndarray) -> Callback:
    """Let a skorch scoring callback compare labels with labels: batches hold class indices.

    Parameters
    ----------
    callback : Callback
        Any; one that scores nothing, or extracts its targets in its own way, is returned unchanged.
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
    """An epoch score that knows the best one of earlier training."""

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        best = [row[self.name] for row in net.history if row.get(f"{self.name}_best")]
        if best:  # a history that was loaded
            self.best_score_ = best[-1]


class EpochScore(ResumedScoring):
    """The score of the predictions that an epoch made for its loss.

    In training, these are predictions for augmented images, by weights that keep changing.
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
            # On the device: reading them would wait for it.
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


class ForgetBatches(Callback):
    """Keep the history of all epochs, but only the last epochs' batches.

    Each batch adds a row of some 450 bytes, in memory and in files: 180 MB for 400,000 steps. The
    epochs' own values, such as ``history[:, "train_loss"]``, stay.

    Parameters
    ----------
    keep : int, default=2
        How many epochs keep their batches, including the running one.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklcam import ConsistentCAMClassifier
    >>> from sklcam.training import ForgetBatches
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> X = (X[:8] / 16).reshape(-1, 8, 8)
    >>> clf = ConsistentCAMClassifier("resnet18", image_size=64, max_epochs=4, verbose=0,
    ...                               random_state=0, callbacks=[ForgetBatches()]).fit(X, y[:8])
    >>> [len(epoch["batches"]) for epoch in clf.history], len(clf.history[:, "train_loss"])
    ([0, 0, 1, 1], 4)
    """

    def __init__(self, keep: int = 2):
        self.keep = keep

    def initialize(self) -> ForgetBatches:
        """Check the parameter.

        Raises
        ------
        ValueError
            If ``keep`` is not an int of 2 or more: callbacks at the end of an epoch may need the
            one before.
        """
        check_count("keep", self.keep, 2)
        return self

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        for epoch in net.history[: -self.keep]:
            epoch["batches"].clear()


ANNOTATED = "_annotated"  # after a term's name: the share of a batch that it is a mean of

# The criterion's loss on images, on their views and on augmented copies, by task.
_CRITERIA = [f"{loss}{of}" for loss in ("ce", "criterion") for of in ("", "_view", "_augmented")]


class EpochMean(ResumedScoring):
    """The mean of a loss over an epoch's batches, weighted if images have weights.

    Only the criterion's loss is weighted: terms on explanations count all images equally, and terms
    on masks those that have one.
    """

    def get_avg_score(self, history: History) -> float:
        phase, _, name = self.name.partition("_")
        batches = [batch for batch in history[-1, "batches"] if self.name in batch]
        if self.name + ANNOTATED in batches[0]:
            keys = (f"{phase}_batch_size", self.name + ANNOTATED, self.name)
            sizes, shares, values = np.array([[b[key] for key in keys] for b in batches]).T
            return float(np.average(values, weights=sizes * shares))
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
