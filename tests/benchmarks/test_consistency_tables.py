"""The program of Sun et al.'s tables, on a handful of images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

SMALL = [
    *["--quick", "--weights", "none", "--arch", "resnet18", "--draw-arch", "resnet18"],
    *["--image-size", "48", "--classes", "3", "--grid-classes", "2", "--draw-classes", "2"],
    *["--epochs", "1", "--paper-epochs", "1", "--grid-epochs", "1", "--draw-epochs", "1"],
    *["--draws", "2", "--seeds", "1", "--paper-seeds", "1"],
    *["--causal-images", "2", "--causal-steps", "2", "--device", "cpu"],
]


def test_a_run_that_was_cut_off_goes_on_and_says_the_same(splits, tmp_path, capsys, monkeypatch):
    import consistency_tables

    kept, table = tmp_path / "runs.jsonl", tmp_path / "tables.rst"
    call = [*SMALL, "--data", str(splits), "--results", str(kept), "--rst", str(table)]
    consistency_tables.main([*call, "--tables", "1"])
    printed, written = capsys.readouterr().out, table.read_text()
    entries = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(entries) == 4  # baseline and ours, on the paper's schedule and on ours
    for entry in entries:
        assert {len(entry["measures"][name]) for name in ("accuracy", "consistency")} == {6}
        assert len(entry["measures"]["iauc"]) == 2
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert any(line.startswith("resnet18 the paper's 1, 1e-6, 1") for line in lines)
    assert "resnet18 paper, Caltech 101 theirs 92.5 83.4 82.0" in lines

    monkeypatch.setattr(consistency_tables, "measured", lambda run: pytest.fail("measured again"))
    consistency_tables.main([*call, "--tables", "1"])
    assert table.read_text() == written


def test_claims_are_of_what_was_measured(splits, tmp_path, capsys, monkeypatch):
    import consistency_tables
    import training_runs

    right = {"0,0,1": 90, "10,1e-5,1": 10, "1,1e-5,1": 70, "1,1e-6,2": 80}  # of 100 images

    def measured(run):
        accuracy = [1.0] * right.get(run.setting, 90)
        accuracy += [0.0] * (100 - len(accuracy))
        measures = dict.fromkeys(training_runs.MEASURES, accuracy)
        return run, {**measures, "corners": 0.25, "warned of": ["chance in epoch 2"], "seconds": 1}

    monkeypatch.setattr(consistency_tables, "measured", measured)
    consistency_tables.main(
        [
            *SMALL,
            "--data",
            str(splits),
            "--tables",
            "2",
            "3",
            "--boxes",
            str(tmp_path / "boxes.png"),
        ]
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    found = {line.rpartition(" points ")[0]: line.rpartition(" ")[2] for line in lines}
    starts = ("alpha, beta, p = 10, 1e-5, 1 fails", "alpha, beta, p = 1, 1e-5, 1 fails")
    assert [v for start in starts for k, v in found.items() if k.startswith(start)] == [
        "holds",
        "hold",
    ]
    assert "1, 1e-6, 2 81.3 80.0 80.0 80.0 80.0 25 chance in epoch 2" in lines
    assert any(
        line.startswith("p changes the accuracy") and "-8.0 points" in line for line in lines
    )
    assert any("Figure 3: 2 settings" in line for line in lines)
    assert (tmp_path / "boxes.png").stat().st_size


def test_figure_4_shows_the_maps_of_each_setting(splits, tmp_path):
    from argparse import Namespace

    from consistency_tables import BASELINE, draw_maps
    from training_runs import trained

    clf = trained(small_run(splits, setting=BASELINE))
    picture = tmp_path / "figure_4.png"
    images = [splits / "test" / "red" / "0.png"]
    draw_maps({"0, 0, 1": clf, "1, 1e-6, 1": clf}, Namespace(images=images, maps=picture))
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 50


def small_run(splits, **changes):
    from training_runs import Run

    return Run(
        **{"arch": "resnet18", "weights": None, "data": str(splits), "n_classes": 2},
        **{"image_size": 48, "held_out": True, "measured_on": "held out", "seed": 0, "lr": 0.1},
        **{"epochs": 1, "step_size": 1, "batch_size": 4, "device": "cpu"},
        **changes,
    )


def test_held_out_images_are_no_training_images(splits):
    from training_runs import images_of

    run = small_run(splits, setting="0,0,1")
    (train, labels), (held, names) = images_of(run, "train"), images_of(run, "held out")
    assert labels.tolist() == ["blue"] * 4 + ["green"] * 4
    assert names.tolist() == ["blue"] * 2 + ["green"] * 2
    together = np.concatenate([train, held]).reshape(12, -1)
    assert len(np.unique(together, axis=0)) == 12


def test_an_interval_is_that_of_the_images():
    from paper_tables import Claim, interval_of

    # A mean of 400 values of deviation 2 is known to 0.1, and 95 % lie within 1.96 of that.
    values = np.random.default_rng(1).normal(3, 2, 400)
    value, low, high = interval_of(np.mean, values)
    assert value == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    verdicts = [Claim("", 0, *bounds).verdict for bounds in ((1, 2), (-2, -1), (-1, 1))]
    assert verdicts == ["holds", "does not hold", "cannot be told"]


class Known:
    """Results that are made up, of a value by setting, and what was asked of them."""

    def __init__(self, **of_image):
        self.of_image, self.asked = of_image, []

    def complete(self, runs, jobs=1):
        self.asked += runs

    def __getitem__(self, run):
        setting = getattr(run, "setting", run)
        return {name: of(setting) for name, of in self.of_image.items()}


def test_claims_of_table_1_by_hand():
    from consistency_tables import claims_of_table_1

    # Of a mean of 60 and a deviation of 20, and of one of 80 and 10.
    old, new = [0.4, 0.8] * 50, [0.7, 0.9] * 50
    results = Known(
        consistency=lambda run: {"old": old, "new": new}[run],
        accuracy=lambda run: [{"old": 0.9, "new": 0.895}[run]] * 100,
        iauc=lambda run: [0.0] * 100,
        complexity=lambda run: [0.0] * 100,
    )
    claims = claims_of_table_1(results, "some net", ["old"], ["new"])
    assert [claim.value for claim in claims] == pytest.approx([20, 10, 0.5])
    assert {claim.verdict for claim in claims} == {"holds"}


def test_claims_of_table_2_by_hand():
    from consistency_tables import claims_of_table_2

    accuracy = {"0,0,1": 90, "1,1e-6,1": 89, "1,1e-7,1": 87, "10,1e-5,1": 10, "1,1e-5,1": 50}
    claims = claims_of_table_2({setting: np.full(8, of) for setting, of in accuracy.items()})
    found = {claim.text.split(" = ")[1]: (claim.value, claim.verdict) for claim in claims}
    # Two points less a fall of one, and of three; half of 89 less 10, and less 50.
    assert found == {
        "1, 1e-6, 1 costs less than two points of accuracy": (1, "holds"),
        "1, 1e-7, 1 costs less than two points of accuracy": (-1, "does not hold"),
        "10, 1e-5, 1 fails: less than half the accuracy of 1, 1e-6, 1": (34.5, "holds"),
        "1, 1e-5, 1 fails: less than half the accuracy of 1, 1e-6, 1": (-5.5, "does not hold"),
    }


def test_claims_of_settings_at_random_by_hand(splits):
    from argparse import Namespace

    from consistency_tables import BASELINE, table_3

    asked = {"draws": 3, "draw_arch": ["resnet18"], "draw_classes": 2, "draw_epochs": 1, "jobs": 1}
    base = small_run(splits, setting=BASELINE)
    for change, verdict in ((0.03, "holds"), (-0.03, "does not hold")):
        results = Known(
            accuracy=lambda setting, by=change: [0.8 + by * (setting != BASELINE)] * 4,
            consistency=lambda setting: [0.5] * 4,
        )
        (claim,) = table_3(base, Namespace(**asked, boxes=None), results).claims
        assert claim.value == pytest.approx(1 + 100 * change) and claim.verdict == verdict
        assert len(results.asked) == 4


def test_settings_are_chosen_on_images_that_are_held_out(splits):
    from argparse import Namespace

    from consistency_tables import BASELINE, choose

    names = ("accuracy", "consistency", "iauc", "complexity")
    results = Known(**dict.fromkeys(names, lambda setting: [0.5] * 4))
    base = replace(small_run(splits, setting=BASELINE), held_out=False, measured_on="test")
    options = Namespace(arch=["resnet18"], choices=["1,1e-6,1"], seeds=2, jobs=1)
    choose(base, options, results)
    assert len(results.asked) == 4
    assert {(run.held_out, run.measured_on) for run in results.asked} == {(True, "held out")}


def test_the_last_third_of_each_class_is_held_out():
    from training_runs import _last_third

    assert _last_third(np.array([*"aaabbbbbbcc"])).nonzero()[0].tolist() == [2, 7, 8]


@pytest.mark.parametrize(("p", "growth"), [("0", 4), ("1", 4), ("2", 2)])
def test_beta_is_given_for_224_pixels(splits, monkeypatch, p, growth):
    import training_runs

    class Kept:
        def __init__(self, *args, **params):
            self.params = params

        def fit(self, X, y):
            return self

    monkeypatch.setattr(training_runs, "ConsistentCAMClassifier", Kept)
    monkeypatch.setattr(training_runs, "images_of", lambda run, part: (None, None))
    # A map of half the side has a quarter of the pixels to add up, or half the root of that.
    for beta in ("1e-6", "warmup:1e-6:3"):
        run = small_run(splits, setting=f"warmup:10:3,{beta},{p}")
        params = training_runs.trained(replace(run, image_size=112)).params
        given = params["beta"].weight if ":" in beta else params["beta"]
        assert given == pytest.approx(growth * 1e-6)
        assert params["alpha"].weight == 10


def test_maps_that_are_highest_in_a_corner_are_told():
    from argparse import Namespace

    import torch
    from training_runs import _highest_in_a_corner

    maps = torch.zeros(6, 3, 4)
    for map_, place in zip(maps, ((0, 0), (0, 3), (2, 0), (2, 3), (1, 1), (0, 1)), strict=True):
        map_[place] = 1
    clf = Namespace(iter_inputs=lambda X: [X], explain_inputs=lambda X, method: (maps, None))
    assert _highest_in_a_corner(clf, maps) == [True] * 4 + [False] * 2


def test_deviations_over_seeds_by_hand():
    from consistency_tables import spread

    results = {seed: {"accuracy": [of] * 4} for seed, of in enumerate((0.88, 0.90, 0.92))}
    assert spread(results, [0, 1, 2], "accuracy") == "90.0 ± 2.0"
    assert spread(results, [0], "accuracy") == "88.0"


def test_insertion_is_of_maps_without_the_relu(splits, monkeypatch):
    import training_runs

    asked = {}

    def evaluate(clf, X, y=None, *, metrics, metric_params=None, progress):
        asked[metrics] = metric_params
        return {name: np.zeros(len(X)) for name in training_runs.MEASURES}

    monkeypatch.setattr(training_runs, "evaluate", evaluate)
    training_runs.measured(small_run(splits, setting="0,0,1", n_steps=3))
    assert asked["iauc"] == {"iauc": {"n_steps": 3, "relu": False}}
