"""A fitted classifier and its report; without Jinja2 there is nothing to test."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from pages import NAMES, QUICK, X, trained

import sklcam

collect_ignore_glob = [] if find_spec("jinja2") else ["test_*.py"]


@pytest.fixture(scope="module")
def fitted():
    return trained()


@pytest.fixture(scope="module")
def written(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    result = sklcam.report(fitted, X, NAMES, path, metrics=QUICK, verbose=0)
    return path, result
