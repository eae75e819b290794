"""The labels of digits that each task has, and classifiers of them."""

from __future__ import annotations

import numpy as np
import torch
from classifiers import classifier
from small_networks import SmallNet, digits
from torch import nn

X, Y = digits()
WORDS = np.array(["no", "yes"])[(Y == 1).astype(int)]
SETS = [{"round"} if label == 0 else {"thin", "tall"} if label == 1 else set() for label in Y]
TABLE = np.array([["round" in row, "tall" in row, "thin" in row] for row in SETS]).astype(int)
INK = X.mean((1, 2))
LABELS = {"multiclass": Y, "binary": WORDS, "multilabel": SETS, "regression": INK}
N_OUTPUTS = {"multiclass": 3, "binary": 1, "multilabel": 3, "regression": 1}


def flat(parts):
    return torch.cat([part.flatten() for part in parts])


def of_task(task, module=SmallNet, **options):
    return classifier(module, task=task, **options)


def ending_in_sigmoid(n_outputs):
    return lambda: nn.Sequential(*SmallNet(n_outputs), nn.Sigmoid())


PLAIN = {"alpha": 0, "beta": 0, "augment": None, "batch_size": 60}
