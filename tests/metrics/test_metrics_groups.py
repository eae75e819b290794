"""Numbers by group of images, and the largest gaps: by hand and by the normal distribution."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from evaluations import LABELS, explainer, measure
from numpy.testing import assert_array_equal
from scipy.stats import hmean, norm, sem

from sklcam.metrics import Evaluation

CAMERAS = np.array(["old", "new", "old", "new", "new", "old", "old"])


def test_gaps_by_hand():
    values = np.array([1.0, 2, 6, 10, 20, 4, 4])
    groups = np.array(["a", "a", "a", "b", "b", "c", "c"])  # means 3, 15, 4
    summary = Evaluation(iauc=values).summary(by=groups)
    gap = summary.gaps["iauc"]
    assert (gap.mean, gap.groups, gap.n_pairs) == (12, ("b", "a"), 3)
    assert 10 - 6 <= gap.low < 12 < gap.high <= 20 - 1
    assert repr(summary).splitlines()[-1].startswith("iauc: b is above a by 12.0000 (")
    (gap,) = Evaluation(iauc=-values).summary(by=groups).gaps.values()
    assert (gap.mean, gap.groups) == (12, ("a", "b"))


@pytest.mark.parametrize(("n_groups", "level"), [(2, 0.95), (2, 0.8), (4, 0.8)])
def test_intervals_are_the_normal_ones_of_all_pairs(n_groups, level):
    values = np.random.default_rng(0).normal(size=400 * n_groups)
    groups = np.arange(len(values)) % n_groups
    parts = [values[groups == group] for group in range(n_groups)]
    means = [part.mean() for part in parts]
    high, low = np.argmax(means), np.argmin(means)
    result = Evaluation(iauc=values)
    gap = result.summary(by=groups, level=level, n_resamples=6000).gaps["iauc"]
    assert gap.groups == (high, low) and gap.mean == pytest.approx(means[high] - means[low])
    n_pairs = n_groups * (n_groups - 1) / 2
    half = norm.ppf(1 - (1 - level) / 2 / n_pairs) * np.hypot(sem(parts[high]), sem(parts[low]))
    assert (gap.low, gap.high) == pytest.approx((gap.mean - half, gap.mean + half), abs=half / 10)


def test_gaps_of_adcc_are_of_harmonic_means():
    generator = np.random.default_rng(0)
    terms = {name: generator.random(60) for name in ("coherency", "complexity", "average_drop")}
    groups = np.arange(60) < 20
    result = Evaluation(adcc=generator.random(60), **terms)

    def of(part):
        coherency, complexity, drop = (terms[name][part].mean() for name in terms)
        return hmean([coherency, 1 - complexity, 1 - drop])

    gap = result.summary(by=groups).gaps["adcc"]
    assert gap.mean == pytest.approx(abs(of(groups) - of(~groups)))


def test_there_is_no_interval_of_single_values_and_no_gap_of_unknown_means():
    groups = ["a", "a", "b"]
    gap = Evaluation(iauc=np.array([0.0, 0.5, 1.0])).summary(by=groups).gaps["iauc"]
    assert gap.mean == 0.75 and np.isnan([gap.low, gap.high]).all()
    summary = Evaluation(iauc=np.array([0.0, np.nan, 1.0])).summary(by=groups)
    assert summary.gaps["iauc"].groups is None and np.isnan(summary.gaps["iauc"].mean)
    assert " is above " not in repr(summary)
    alone = Evaluation(iauc=np.array([0.0, 0.5])).summary(by=["a", "a"])
    assert alone.gaps["iauc"].groups is None and alone.gaps["iauc"].n_pairs == 0


@pytest.mark.parametrize(
    "form", [list, np.asarray, pd.Series, pd.Categorical, lambda labels: np.array(labels, object)]
)
def test_evaluate_knows_the_groups(form):
    result = measure(explainer(), metrics="sparsity", groups=form(CAMERAS))
    found = result.by_group()
    assert list(found) == ["group"] and list(found["group"]) == ["new", "old"]
    for camera, table in found["group"].items():
        of_camera = result["sparsity"][camera == CAMERAS]
        assert table["sparsity"].mean == pytest.approx(of_camera.mean())
    assert repr(result.summary(by="group")) == repr(found["group"])
    assert repr(result.summary(by=CAMERAS)) == repr(found["group"])
    for copied in (copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert list(copied) == ["sparsity"] and copied.by_group().keys() == {"group"}


def test_several_groupings_methods_folders_and_processes(tmp_path):
    ages = torch.tensor([1, 2, 3, 1, 2, 3, 1])
    options = {"metrics": ("accuracy", "sparsity"), "y": LABELS, "method": ["gradcam", "layercam"]}
    ours, several = explainer(), {"camera": CAMERAS, "age": ages}
    expected = measure(ours, **options)
    # A folder of values serves any groups.
    for groups in (several, {"camera": CAMERAS[::-1], "age": ages}):
        for how in ({}, {"store": tmp_path / "values"}):
            found = measure(ours, groups=groups, **options, **how)
            assert list(found) == ["gradcam", "layercam"]
            for method, result in found.items():
                assert_array_equal(result["sparsity"], expected[method]["sparsity"])
                assert list(result.by_group()) == ["camera", "age"]
                by_hand = expected[method].summary(by=groups["camera"])
                assert repr(result.summary(by="camera")) == repr(by_hand)
                assert list(result.by_group()["age"]) == [1, 2, 3]
                assert result.summary(by="class").keys() == {0, 1, 2}
