"""Files of classifiers of every task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import SmallNet, digits
from test_round_trips import classifier, round_trip
from torch import nn

X, Y = digits(24)
SETS = [{"round"} if label == 0 else {"thin", "tall"} if label == 1 else set() for label in Y]
WORDS = np.where(Y == 1, "one", "other")


class OneLogit(SmallNet):
    """Has one output, whatever it is asked for."""

    def __init__(self, in_channels: int = 1):
        super().__init__(1, in_channels)


FITTED = {
    "binary": ({"task": "binary"}, WORDS),
    "by its loss": ({"criterion": nn.BCEWithLogitsLoss, "criterion__pos_weight": [2.0]}, WORDS),
    "by its network": ({"module": OneLogit}, WORDS),
    "a torchvision name": (
        {"module": "squeezenet1_1", "task": "binary", "image_size": 64, "max_epochs": 0},
        WORDS,
    ),
    "label sets": ({}, SETS),
    "names of columns": ({"task": "multilabel", "classes": ["a", "b", "c"]}, np.eye(3)[Y]),
    "numbers": ({"task": "regression"}, X.mean((1, 2))),
    "named numbers": (
        {"task": "regression", "classes": ["ink", "none"], "alpha": 0, "beta": 0},
        np.stack([X.mean((1, 2)), 0 * Y], axis=1),
    ),
}


@pytest.mark.parametrize("case", FITTED)
def test_a_task_goes_through_a_file(case, tmp_path):
    options, y = FITTED[case]
    clf = classifier(**options).fit(X, y)
    loaded = round_trip(clf, tmp_path, {"SmallNet": SmallNet, "OneLogit": OneLogit})
    assert loaded.task_ == clf.task_ and type(loaded.criterion_) is type(clf.criterion_)
    np.testing.assert_array_equal(loaded.classes_, clf.classes_)
    np.testing.assert_array_equal(loaded.predict(X), clf.predict(X))
    assert loaded.score(X, y) == clf.score(X, y)
    again = [each.partial_fit(X, y).module_.state_dict() for each in (clf, loaded)]
    assert all(torch.equal(again[0][name], again[1][name]) for name in again[0])
