"""The programs of what maps are used for, on a handful of synthetic images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

TINY = ["--quick", "--weights", "none", "--image-size", "64", "--device", "cpu"]


def lines_of(capsys):
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_what_covering_adds(boxed, capsys):
    import counterfactuals

    options = ["--data", str(boxed), "--arch", "squeezenet1_1", "--images", "4"]
    counterfactuals.main([*TINY, *options])
    lines = lines_of(capsys)
    assert "Effect of covering a fifth of an image, squeezenet1_1, 4 images" in lines
    rows = [line for line in lines if line.startswith(("predicted class", "second class"))]
    assert len(rows) == 16 and sum("a fifth 4 " in row for row in rows) == 4
    assert sum(" covering it raises " in line for line in lines) == 4


def test_random_regions_are_as_large_as_others():
    from counterfactuals import as_large

    from sklcam.metrics import cover

    maps, random = torch.zeros(3, 10, 10), torch.rand(3, 10, 10)
    maps[0, 0, :3], maps[1, :5] = 1, torch.rand(5, 10) + 0.1
    marked = cover(maps[:, None], as_large(random, maps))[1]
    assert marked.sum(dim=(1, 2)).tolist() == [3, 20, 0]
    lowest = random[1][marked[1]].min()
    assert (random[1] > lowest).sum() == 19


def test_attacks_are_bounded_and_reported(boxed, capsys):
    import attacked_images

    options = ["--data", str(boxed), "--arch", "squeezenet1_1", "--images", "4", "--steps", "2"]
    attacked_images.main([*TINY, *options])
    lines = lines_of(capsys)
    assert any(line.startswith("probability of the class, per cent") for line in lines)
    assert sum("hundredths" in line for line in lines) == 2


def test_an_attack_finds_the_wrong_class():
    from argparse import Namespace

    from attacked_images import attacked

    from sklcam import CAMExplainer

    network = torch.nn.Sequential(
        torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    explainer = CAMExplainer(network, target_layer="0", mean=0.5, std=0.5, verbose=0).fit()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.25
    options = Namespace(steps=8, epsilon=255 / 10)
    changed = attacked(explainer, images, torch.tensor([0, 2]), options)
    moved = changed - images
    assert 0.19 < moved.abs().max() <= 0.2 + 1e-6  # a tenth of what is 2 wide
    before, after = network(images).softmax(1), network(changed).softmax(1)
    assert (after > before).tolist() == [[True, False, False], [False, False, True]]


def test_seeds_and_a_network_that_learns_from_them(boxed, capsys):
    import segmentation

    pytest.importorskip("cv2")
    options = ["--data", str(boxed), "--arch", "resnet18", "--images", "8", "--epochs", "1"]
    segmentation.main([*TINY, *options])
    lines = lines_of(capsys)
    for start in ("seeds yes", "seeds, GrabCut yes", "network, of seeds no", "network, of GrabCut"):
        assert any(line.startswith(start) for line in lines), (start, lines)


def test_masks_of_boxes_and_the_mean_iou_by_hand():
    from segmentation import counts_of, mask_of, mean_iou

    boxes = {"a": np.array([[0.0, 0, 2, 1]]), "b": np.array([[1.0, 0, 3, 1]])}
    mask = mask_of(boxes, ["a", "b"], (1, 4))
    assert mask.tolist() == [[1, 255, 2, 0]]
    assert mask_of({"b": boxes["b"]}, ["a", "b"], (1, 4)).tolist() == [[0, 2, 2, 0]]
    counts = counts_of([np.array([[1, 1, 0, 0]], np.uint8)], [mask], 3)
    # The background has 1 of 2, a its one, b none of one.
    assert mean_iou(counts) == pytest.approx(100 * (0.5 + 1 + 0) / 3)
