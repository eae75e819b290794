"""Doctests draw without a screen, and leave no figure open."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
collect_ignore = [] if find_spec("matplotlib") else ["sklcam/plotting"]
collect_ignore += [] if find_spec("jinja2") else ["sklcam/reporting"]


@pytest.fixture(autouse=True)
def _no_figure_stays_open() -> Iterator[None]:
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
