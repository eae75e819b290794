"""The program that compares methods with fewer passes with Score-CAM, on a handful of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import SmallNet


def test_passes_are_counted_where_they_run():
    import faster_methods

    from sklcam import CAMExplainer
    from sklcam.cam import ReciproCAM

    network = SmallNet(in_channels=1).eval()
    images = torch.rand(2, 1, 12, 12)
    explainer = CAMExplainer(network, target_layer="5", verbose=0).fit(images)
    with faster_methods.counted(network) as passes:
        network(images)
    assert (passes.whole, passes.head) == (2, 2)
    with faster_methods.counted(network) as passes:
        explainer.explain(images, method=ReciproCAM())
    # Of each image 36 places go through the head, and the image itself as a check.
    assert (passes.whole, passes.head) == (2, 2 + 2 * 37)
    assert "forward" not in vars(network[0]) | vars(network[-1])


def test_closeness_by_hand():
    import faster_methods

    maps = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
    near = faster_methods.closeness(torch.stack([maps[0], 1 - maps[0]]), maps[[0, 0]])
    assert near["Pearson"] == pytest.approx([1, -1])
    assert near["difference"] == pytest.approx([0, float((1 - 2 * maps[0]).abs().mean())])
    assert near["SSIM"][0] == pytest.approx(1) and near["SSIM"][1] < 0
    assert np.isnan(faster_methods.closeness(torch.ones(1, 12, 12), maps[:1])["Pearson"]).all()


def test_a_table_is_printed(splits, capsys, monkeypatch):
    import faster_methods

    few = {"few": faster_methods.FasterScoreCAM(n_channels=1)}
    monkeypatch.setattr(faster_methods, "METHODS", few)
    monkeypatch.setattr(faster_methods, "ScoreCAM", few["few"].__class__)  # of 10 channels
    faster_methods.main(["--data", str(splits), "--quick"])
    head, _, row = capsys.readouterr().out.splitlines()[-3:]
    assert head.startswith("Score-CAM: ") and row.split()[0] == "few"
    assert -1 <= float(row.split()[3]) <= 1 and float(row.split()[-1]) > 1
