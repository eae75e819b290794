"""The programs that time ours beside the peers', on a handful of small images.

What they time is not looked at; that they agree with the peers is, by the programs themselves.
"""

from __future__ import annotations

import re
from importlib import import_module

import pretend_device  # noqa: F401  which torch must know of before the first backward pass
import pytest

SMALL = ["--arch", "resnet18", "--batch-size", "2", "--image-size", "48", "--device", "cpu"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Return what a program prints."""

    def call(program: str, *options: str) -> str:
        monkeypatch.setattr("sys.argv", [program, *SMALL, *options])
        import_module(program).main()
        return capsys.readouterr().out

    return call


def test_explanations(run):
    printed = run("explain", "--methods", "gradcam", "--rounds", "1")
    for ratio in ("sklcam / predict", "pytorch-grad-cam / sklcam", "captum / sklcam"):
        assert re.search(rf"{ratio} .*time +\d", printed)
    assert "agree" in printed


def test_training_steps(run):
    printed = run("train_step", "--objectives", "--repeats", "1")
    assert re.search(r"sklcam and .* agree: loss differs by", printed)
    for contender in ("two views", "sklcam", "CGC", "every fourth"):
        assert re.search(rf"^  {contender} .*time \d", printed, re.MULTILINE)


def test_operations_of_a_training_step(run):
    printed = run("train_step", "--count", "--image-size", "96", "--memory", "normal")
    assert "two views" in printed and "bar: 3.2 reached" in printed
    assert re.search(r"^  sklcam .*waits 1 ", printed, re.MULTILINE)


def test_metrics(run):
    printed = run("metrics", "--only", "adcc", "--n-images", "2", "--n-steps", "2", "--rounds", "1")
    assert re.search(r"pytorch-grad-cam / sklcam +\d", printed) and "values agree" in printed


def test_loading(run):
    printed = run("loading", "--batches", "2", "--workers", "0", "--repeats", "1", "--plain")
    assert "pixels agree" in printed and re.search(r"epoch +sklcam \d", printed)


def test_what_the_peers_do(run):
    assert "| forward passes for three classes | 1 | 3 |" in run("peers")


def test_what_a_patch_reaches(capsys):
    import occlusion_reach
    import torch
    from torch import nn

    # Two convolutions of 3 x 3: of a patch of 2, 4 x 4 places change, and then 6 x 6.
    network = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1))
    share, whole = occlusion_reach.reached(network, 8, 2)
    first, second = 3 * 2, 2 * 4  # multiplications of a place, of each of the kernel's
    assert share == pytest.approx((16 * first + 36 * second) / (64 * (first + second)))
    assert whole == 0
    assert occlusion_reach.share_around(torch.zeros(3, 3, dtype=torch.bool)) == 0
    occlusion_reach.main(["--arch", "resnet18", "--image-size", "48", "--patch", "8"])
    assert "resnet18" in capsys.readouterr().out.splitlines()[1]


def test_decoding(capsys):
    import decode

    decode.main(["--size", "300", "400", "--image-size", "32", "--rounds", "1"])
    times, levels = capsys.readouterr().out.splitlines()
    assert re.match(r"3 files; exact / fast: \d", times)
    assert 0 < float(levels.split()[2]) < 2  # some are decoded at a fraction, and near
