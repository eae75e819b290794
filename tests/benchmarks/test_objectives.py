"""The program that compares objectives, on a handful of images."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from small_networks import SmallNet

from sklcam import ConsistentCAMClassifier

SMALL = [
    *["--quick", "--weights", "none", "--arch", "resnet18", "--image-size", "48", "--classes", "3"],
    *["--epochs", "1", "--seeds", "1", "--some", "2", "--steps", "2", "--device", "cpu"],
    *["--batch-size", "9"],
]


@pytest.fixture
def boxed(splits):
    """The folder of images, with boxes of the blue ones."""
    with (splits / "boxes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "x1", "y1", "x2", "y2"])
        for part, n_images in (("train", 6), ("test", 2)):
            rows.writerows([f"{part}/blue/{i}.png", 12, 6, 36, 24] for i in range(n_images))
    return splits


def test_objectives_are_trained_and_measured(boxed, tmp_path, capsys, monkeypatch):
    import objectives

    kept = tmp_path / "runs.jsonl"
    call = [*SMALL, "--data", str(boxed), "--boxes", "boxes.csv", "--results", str(kept)]
    call += ["--objectives", "energy"]
    objectives.main(call)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    table = lines[lines.index("Objectives: resnet18") + 2 :]
    assert [line.split()[0] for line in table[:2]] == ["baseline", "energy"]
    assert all(len(line.split()) == 9 for line in table[:2])  # with that of the boxes
    entries = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(entries) == 2
    for entry in entries:
        measures = entry["measures"]
        assert {len(measures[name]) for name in ("accuracy", "consistency")} == {6}
        assert len(measures["iauc"]) == len(measures["inside"]) == 2 and measures["step"] > 0

    monkeypatch.setattr(objectives, "measured", lambda run: pytest.fail("measured again"))
    objectives.main(call)


def test_boxes_are_of_the_images_as_they_are_resized(boxed):
    import objectives

    run = objectives.ObjectiveRun(
        **{"arch": "resnet18", "weights": None, "data": str(boxed), "n_classes": 3},
        **{"image_size": 24, "held_out": False, "measured_on": "test", "setting": "1,0,1"},
        **{"seed": 0, "lr": 0.1, "epochs": 1, "step_size": 1, "batch_size": 9},
        boxes="boxes.csv",
    )
    boxes = objectives.boxes_of(run, "train")
    assert [each is not None for each in boxes] == [True] * 6 + [False] * 12
    np.testing.assert_allclose(boxes[0], [[6, 3, 18, 12]])
    assert replace(run, objective="CGC").key != run.key


def test_boxes_of_classes_that_are_left_out_are_refused(boxed, capsys):
    import objectives

    csv_file = boxed / "boxes.csv"
    csv_file.write_text(csv_file.read_text().replace("blue", "red"))
    with pytest.raises(SystemExit):
        objectives.main([*SMALL, "--classes", "2", "--data", str(boxed), "--boxes", "boxes.csv"])
    assert "boxes.csv has no box of a train image of the chosen classes" in capsys.readouterr().err


def test_claims_are_of_what_was_measured(boxed, capsys, monkeypatch):
    import objectives

    steps = {"baseline": 1.0, "ours": 2.0, "CGC": 4.0, "lazy": 1.25}
    right = {"ours": 90, "CGC": 80}

    def measured(run):
        n_right = right.get(run.objective, 85)
        accuracy = [1.0] * n_right + [0.0] * (100 - n_right)
        consistency = [0.5 + 0.1 * (run.objective != "baseline")] * 100
        per_image = {"accuracy": accuracy, "consistency": consistency, "iauc": accuracy}
        rest = {"complexity": accuracy, "adcc": 0.5, "cose": 0.25, "inside": [], "seconds": 1}
        return run, {**per_image, **rest, "step": steps[run.objective]}

    monkeypatch.setattr(objectives, "measured", measured)
    objectives.main([*SMALL, "--data", str(boxed), "--objectives", "ours", "CGC", "lazy"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "lazy 85.0 60.0 25.0 85.0 50.0 85.0 1.25" in lines
    assert "ours 90.0 60.0 25.0 90.0 50.0 90.0 2.00" in lines
    starts = ("Ours takes at most 0.65", "Ours loses less", "Consistency is above the baseline's")
    verdicts = [line.rpartition(" ")[2] for line in lines if line.startswith(starts)]
    assert verdicts == ["holds"] * 5
    assert any("+15.0 %" in line for line in lines) and any(
        "+11.0 points" in line for line in lines
    )


def test_objectives_are_what_the_classifier_takes(boxed):
    """Without training: the parameters are checked at the door."""
    import objectives

    X, y = np.zeros((6, 48, 48, 3), dtype=np.uint8), np.arange(6) % 2
    for options in objectives.OBJECTIVES.values():
        boxes = [[[1, 1, 9, 9]]] * 6 if options.get("gamma") else None
        clf = ConsistentCAMClassifier(SmallNet, **options, image_size=48, max_epochs=0, verbose=0)
        clf.fit(X, y, boxes=boxes)


def test_energy_without_boxes_is_refused(splits):
    import objectives

    with pytest.raises(SystemExit):
        objectives.main([*SMALL, "--data", str(splits), "--objectives", "energy"])
