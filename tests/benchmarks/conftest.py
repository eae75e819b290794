"""Folders of synthetic images for the programs in ``benchmarks/``, which import one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from boxed_images import write_boxed
from PIL import Image

PROGRAMS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    """Make the programs importable, as they are to one another."""
    monkeypatch.syspath_prepend(str(PROGRAMS))


@pytest.fixture
def splits(tmp_path):
    """Return a folder of ``train`` and ``test``, of three classes of coloured squares on noise."""
    rng = np.random.default_rng(0)
    for part, n_images in (("train", 6), ("test", 2)):
        for channel, name in enumerate(("blue", "green", "red")):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for i in range(n_images):
                pixels = rng.integers(0, 90, (48, 48, 3), dtype=np.uint8)
                row, column = rng.integers(0, 24, 2)
                pixels[row : row + 24, column : column + 24, 2 - channel] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def boxed(tmp_path):
    """Return a folder of squares on noise with their boxes, and one image of two of them."""
    write_boxed(tmp_path)
    return tmp_path
