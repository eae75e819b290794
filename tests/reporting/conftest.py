"""A fitted classifier and its report; without Jinja2 there is nothing to test."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from pages import NAMES, QUICK, X
from small_networks import SmallNet

import sklcam
from sklcam import ConsistentCAMClassifier

collect_ignore_glob = [] if find_spec("jinja2") else ["test_*.py"]


@pytest.fixture(scope="module")
def fitted():
    options = {"alpha": 0, "beta": 0, "image_size": 16, "lr": 0.1, "max_epochs": 3}
    options |= {"random_state": 0, "verbose": 0, "augment": None}
    return ConsistentCAMClassifier(SmallNet, **options).fit(X, NAMES)


@pytest.fixture(scope="module")
def written(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    result = sklcam.report(fitted, X, NAMES, path, metrics=QUICK, verbose=0)
    return path, result
