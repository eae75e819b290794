"""The program that plants a watermark, finds it and does away with it, on a handful of images."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
from small_networks import SmallNet

from sklcam import ConsistentCAMClassifier


def test_marks_are_found_and_what_follows_is_reported(splits, capsys, monkeypatch):
    import watermark

    def small(arch, **options):
        return ConsistentCAMClassifier(SmallNet, target_layer="5", **options)

    monkeypatch.setattr(watermark, "ConsistentCAMClassifier", small)
    options = ["--classes", "blue", "green", "red", "--min-size", "2"]
    watermark.main(
        [
            *("--quick", "--weights", "none", "--device", "cpu", "--image-size", "32"),
            *("--data", str(splits), "--batch-size", "9", *options),
        ]
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("1 ") for line in lines)
    for start in ("original images", "rebalanced", "energy"):
        assert sum(line.startswith(f"{start} ") for line in lines) == 1
    assert sum(line.startswith("Watermark, energy: ") for line in lines) == 3


def test_the_mark_is_half_a_checker_and_the_rest_stays():
    from watermark import marked

    images = np.full((2, 32, 32, 3), 100, dtype=np.uint8)
    changed = marked(images, 0.5)
    differs = (changed != images).any(axis=(0, 3))
    rows, columns = np.nonzero(differs)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 29, 20, 29)
    assert {*np.unique(changed[:, differs])} == {50, 177} and differs.sum() == 100


def test_as_many_are_marked_as_asked_for():
    from watermark import partly_marked

    options = Namespace(seed=0, classes=("a", "b"), opacity=0.5)
    X, y = np.full((40, 32, 32, 3), 100, dtype=np.uint8), np.repeat(["a", "b"], 20)
    is_marked = (partly_marked(X, y, (0.95, 0.05), options) != X).any(axis=(1, 2, 3))
    assert is_marked[:20].sum() == 19 and is_marked[20:].sum() == 1
