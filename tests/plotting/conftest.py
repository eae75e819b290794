"""Fitted estimators for the tests of displays; without matplotlib there is nothing to test."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import pytest
import torch
from displayed import NAMES, X, small
from small_networks import SmallNet

from sklcam import EmbeddingCAMExplainer

collect_ignore_glob = [] if find_spec("matplotlib") else ["test_*.py"]


@pytest.fixture(scope="module")
def fitted():
    return small().fit(X, NAMES)


@pytest.fixture(scope="module")
def other():
    return small(random_state=1).fit(X, NAMES)


@pytest.fixture(scope="module")
def embedding():
    torch.manual_seed(0)
    network = SmallNet(num_classes=4)
    options = {"image_size": 16, "mean": 0.5, "std": 0.5, "verbose": 0}
    return EmbeddingCAMExplainer(network, **options).fit(X, NAMES)


@pytest.fixture(autouse=True)
def _no_warnings():
    """Drawing and rendering are silent, and a figure that pyplot made is closed."""
    import matplotlib.pyplot as plt

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
    plt.close("all")
