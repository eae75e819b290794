"""The program that shows the pretrained network on photographs, on a handful of images."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image


@pytest.mark.filterwarnings("ignore::sklcam.training.LaggingStatisticsWarning")
def test_it_is_fine_tuned_measured_and_drawn(splits, tmp_path, capsys):
    import photographs

    output = tmp_path / "photographs.png"
    small = ["--image-size", "64", "--epochs", "1", "--views", "1", "--batch-size", "9"]
    photographs.main(
        [
            *("--data", str(splits), "--classes", "blue", "green", "red"),
            *("--output", str(output), "--device", "cpu", *small),
        ]
    )
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-5:-2]] == ["accuracy", "without", "with"]
    assert printed[-5].endswith("likeness of maps")
    assert all(-1 <= float(line.split()[-1]) <= 1 for line in printed[-4:-2])
    with Image.open(output) as picture:
        assert picture.width > 800


def test_names_are_counted(splits, capsys, monkeypatch):
    import photographs

    Image.fromarray(skimage.data.coffee()).save(splits / "test" / "red" / "0.png")
    monkeypatch.setattr(photographs, "NAMES", {"Red": ("espresso",)})
    photographs.main(["--named", "--data", str(splits)])
    red, everything = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert red[:3] == ["red", "2", "0.50"] and everything[1] == "2"  # the other is a red square


def test_likeness_of_maps_is_the_mean_over_pairs():
    import torch
    from training_runs import likeness

    one = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert likeness([torch.stack([one, one])]) == pytest.approx(1)
    # Of one map, its negative and its like at another scale, the pairs have -1, 1 and -1.
    assert likeness([one[None], torch.stack([1 - one, 3 * one + 1])]) == pytest.approx(-1 / 3)
    maps = np.random.default_rng(0).random((7, 3, 4))
    pairs = np.corrcoef(maps.reshape(7, -1))[np.triu_indices(7, k=1)]
    assert likeness(torch.tensor(maps).split(3)) == pytest.approx(pairs.mean())
    constant = torch.cat([torch.tensor(maps), torch.ones(1, 3, 4)])
    assert likeness([constant]) == pytest.approx(pairs.sum() / 28)
