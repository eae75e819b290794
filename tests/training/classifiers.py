"""A classifier of digits that trains in no time, and its weights."""

from __future__ import annotations

import numpy as np
import torch
from small_networks import SmallNet, digits

from sklcam import ConsistentCAMClassifier

X, Y = digits()
NAMES = np.array(["nought", "one", "two"])[Y]


def classifier(module=SmallNet, **options):
    defaults = {
        "image_size": 16,
        "max_epochs": 1,
        "batch_size": 20,
        "lr": 0.05,
        "verbose": 0,
        "random_state": 0,
        "device": "cpu",
    }
    return ConsistentCAMClassifier(module, **{**defaults, **options})


def weights(clf):
    return weights_of(clf.module_)


def weights_of(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])
