"""The program that trains transformers beside convolutions, on a handful of digits."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

SMALL = ["--quick", "--images", "32", "--epochs", "1", "--device", "cpu"]


def test_networks_are_trained_with_and_without_the_terms(tmp_path, capsys, monkeypatch):
    import architectures

    kept, figure, claims = (tmp_path / name for name in ("runs.jsonl", "arrows.png", "claims.csv"))
    call = [*SMALL, "--arch", "ViT", "ConvNeXt", "--results", str(kept)]
    call += ["--settings", "1,6e-6,1", "--figure", str(figure), "--claims", str(claims)]
    architectures.main(call)
    entries = [json.loads(line) for line in kept.read_text().splitlines()]
    runs = [json.loads(entry["key"]) for entry in entries]
    assert {(run["arch"], run["setting"]) for run in runs} == {
        (arch, setting) for arch in ("ViT", "ConvNeXt") for setting in ("0,0,1", "1,6e-6,1")
    }
    of_vit = [
        entry["measures"] for entry, run in zip(entries, runs, strict=True) if run["arch"] == "ViT"
    ]
    baseline, ours = of_vit
    assert {len(each["consistency"]) for each in of_vit} == {32}
    change = 100 * (np.mean(ours["consistency"]) - np.mean(baseline["consistency"]))
    assert figure.stat().st_size > 0
    with claims.open(newline="") as file:
        found = {row["claim"]: row["measured"] for row in csv.DictReader(file)}
    assert found["ViT, alpha = 1: consistency rises"] == f"{change:+.1f} points"
    assert "ViT" in capsys.readouterr().out

    monkeypatch.setattr(architectures, "measured", lambda run: pytest.fail("measured again"))
    architectures.main(call)


@pytest.mark.parametrize("network", ["ResNet", "ConvNeXt", "ViT", "Swin"])
def test_small_networks_have_maps_of_8_by_8_places(network):
    import architectures

    from sklcam import CAMExplainer

    torch.manual_seed(0)
    model = architectures.SMALL[network](10, 1)
    X = torch.rand(2, 1, 32, 32)
    maps = CAMExplainer(model, task="multiclass", verbose=0).fit(X).explain(X, frame="layer")
    assert maps.shape == (2, 8, 8)


def test_other_sizes_are_refused(capsys):
    import architectures

    with pytest.raises(SystemExit):
        architectures.main([*SMALL, "--image-size", "64"])
    assert "take 32 pixels" in capsys.readouterr().err
