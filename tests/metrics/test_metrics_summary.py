"""Means, intervals and comparisons: NumPy, the normal distribution, numbers by hand."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
from evaluations import LABELS, explainer, measure
from numpy.testing import assert_array_equal
from scipy.stats import hmean, sem

from sklcam.metrics import Evaluation, compare


def made_up(n=50, seed=0, **others):
    numbers = np.random.default_rng(seed)
    terms = {name: numbers.random(n) for name in ("coherency", "complexity", "average_drop")}
    adcc = hmean([terms["coherency"], 1 - terms["complexity"], 1 - terms["average_drop"]])
    return Evaluation(adcc=adcc, **terms, iauc=numbers.random(n), **others)


def test_summary_is_numpys():
    result = made_up()
    summary, means = result.summary(), result.means()
    for name in ("coherency", "complexity", "average_drop", "iauc"):
        assert (summary[name].mean, means[name]) == pytest.approx([result[name].mean()] * 2)
        assert summary[name].std == pytest.approx(result[name].std(ddof=1))
        assert summary[name].low < summary[name].mean < summary[name].high
    averages = (result[name].mean() for name in ("coherency", "complexity", "average_drop"))
    coherency, complexity, drop = averages
    expected = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))
    assert (summary["adcc"].mean, means["adcc"]) == pytest.approx((expected, expected))
    assert summary["mean_adcc"].mean == pytest.approx(result["adcc"].mean())
    assert expected > result["adcc"].mean() + 0.01  # they are not the same
    assert summary["adcc"].low < expected < summary["adcc"].high
    assert list(summary) == [*result, "mean_adcc"] == list(means)


def test_summary_of_an_evaluation():
    result = measure(explainer(), metrics=("adcc", "iauc"))
    expected = hmean([
        result["coherency"].mean(), 1 - result["complexity"].mean(),
        1 - result["average_drop"].mean(),
    ])  # fmt: skip
    assert result.summary()["adcc"].mean == pytest.approx(expected)
    assert result.means()["iauc"] == pytest.approx(result["iauc"].mean())


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.960), (0.8, 1.2816)])
def test_intervals_of_large_samples_are_the_normal_ones(level, z):
    result = made_up(3000)
    row = result.summary(level=level, n_resamples=3000)["iauc"]
    half = z * result["iauc"].std() / np.sqrt(3000)
    assert (row.low, row.high) == pytest.approx((row.mean - half, row.mean + half), abs=half / 10)


def test_summary_has_a_seed():
    result = made_up()
    first, again, other = (result.summary(random_state=seed)["iauc"].low for seed in (0, 0, 1))
    assert first == again != other


def test_what_is_not_finite_is_left_out_where_a_metric_may_be_undefined():
    odd = np.array([1.0, np.nan, 3, np.inf, -np.inf, 5])
    result = Evaluation(inside_outside_ratio=odd, iauc=np.arange(6.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = result.summary()
        row = summary["inside_outside_ratio"]
        assert (row.mean, row.std) == pytest.approx((3, 2)) and 1 <= row.low <= row.high <= 5
        assert summary["iauc"].mean == 2.5 and "inside_outside_ratio" in repr(summary)
        nothing = Evaluation(road=np.full(3, np.nan)).summary()["road"]
        assert np.isnan([nothing.mean, nothing.std, nothing.low, nothing.high]).all()
        one = Evaluation(road=np.array([0.25])).summary()["road"]
        assert (one.mean, one.std, one.low, one.high) == (0.25, 0, 0.25, 0.25)


def test_one_nan_makes_the_mean_nan_and_is_counted():
    terms = made_up(6)
    terms["coherency"][2] = np.nan
    terms["iauc"][:2] = np.nan, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary, means = terms.summary(), terms.means()
    for name in ("coherency", "adcc", "iauc"):
        row = summary[name]
        assert np.isnan([means[name], row.mean, row.std, row.low, row.high]).all()
    assert [summary[name].n_missing for name in ("complexity", "coherency", "iauc")] == [0, 1, 2]
    assert np.isfinite(summary["complexity"].mean) and np.isfinite(summary["mean_adcc"].mean)
    assert "iauc: 2 images have no finite value" in repr(summary)
    row = compare(terms, made_up(6))["coherency"]
    assert np.isnan(row.mean) and row.n_missing == 1


def test_meanings_go_along():
    result = Evaluation({"localization_accuracy": "top-1"}, localization_accuracy=np.ones(3))
    for copied in (result, copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert list(copied) == ["localization_accuracy"]
        assert repr(copied.summary()).splitlines()[-1] == "localization_accuracy: top-1"
    assert "top-1" in repr(compare(result, result))


def test_repr_is_a_table():
    lines = repr(made_up().summary()).splitlines()
    assert len(lines) == 7 and lines[0].split() == ["mean", "std", "interval"]
    assert lines[1].startswith("adcc") and ".." in lines[1]


def test_comparisons_are_of_pairs():
    first = made_up(400)
    same = compare(first, first)
    for row in same.values():
        assert (row.mean, row.std, row.low, row.high) == (0, 0, 0, 0)
    shift = np.random.default_rng(5).normal(0.02, 0.01, 400)
    second = Evaluation(iauc=first["iauc"] - shift, road=np.zeros(400))
    summary = compare(first, second, n_resamples=4000)
    assert list(summary) == ["iauc"]
    row, half = summary["iauc"], 1.96 * shift.std() / 20
    assert (row.mean, row.std) == pytest.approx((shift.mean(), shift.std(ddof=1)))
    assert (row.low, row.high) == pytest.approx((row.mean - half, row.mean + half), abs=half / 8)
    back = compare(second, first)["iauc"]
    assert back.mean == pytest.approx(-row.mean) and back.high < 0 < row.low


def test_comparisons_of_adcc():
    first, second = made_up(300, seed=0), made_up(300, seed=1)
    summary = compare(first, second)
    for name in ("adcc", "mean_adcc", "iauc"):
        difference = first.means()[name] - second.means()[name]
        assert summary[name].mean == pytest.approx(difference)
        assert summary[name].low < difference < summary[name].high


def test_comparisons_leave_out_what_one_of_them_lacks():
    """Images 1 and 3: only the difference of the others counts."""
    first = Evaluation(inside_outside_ratio=np.array([1.0, np.nan, 3.0, 50.0, 7.0]))
    second = Evaluation(inside_outside_ratio=np.array([2.0, 90.0, 1.0, np.inf, 3.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = compare(first, second)["inside_outside_ratio"]
    differences = np.array([-1.0, 2, 4])
    assert (row.mean, row.std) == pytest.approx((differences.mean(), differences.std(ddof=1)))
    assert -1 <= row.low <= row.mean <= row.high <= 4
    assert np.isnan(first["inside_outside_ratio"][1]) and second["inside_outside_ratio"][1] == 90


def test_what_cannot_be_compared():
    for other in (made_up(49), Evaluation(road=np.zeros(50))):
        with pytest.raises(ValueError, match="two evaluations of the same images"):
            compare(made_up(), other)


def test_to_frame():
    result = made_up()
    frame = result.to_frame()
    assert list(frame) == list(result) and frame.shape == (50, 5)
    assert_array_equal(frame["iauc"], result["iauc"])


# Groups of images


def test_means_of_classes_by_hand():
    values = np.array([1.0, 2, 6, 10, 20])
    labels = ["cat", "cat", "cat", "dog", "dog"]
    summary = Evaluation(None, labels, iauc=values).summary(by="class")
    assert list(summary) == ["cat", "dog"]
    cat, dog, mean = summary["cat"]["iauc"], summary["dog"]["iauc"], summary.mean["iauc"]
    assert (cat.mean, cat.n, dog.mean, dog.n) == (3, 3, 15, 2)
    assert cat.sem == pytest.approx(sem(values[:3])) and dog.sem == pytest.approx(sem(values[3:]))
    assert mean.mean == 9 and mean.n == 5  # and not 39 / 5
    assert mean.sem == pytest.approx(np.hypot(cat.sem, dog.sem) / 2)
    assert mean.std == pytest.approx(np.std([3, 15], ddof=1))
    lines = repr(summary).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["cat", "dog", "mean"]
    assert lines[-1].startswith("iauc: dog is above cat by 12.0000 (")
    assert lines[1].split()[1:] == ["3", "3.0000", "±", f"{cat.sem:.4f}"]


def test_groups_of_ones_own_and_the_standard_error():
    result = made_up(600)
    groups = np.arange(600) % 3
    summary = result.summary(by=groups, n_resamples=3000)
    for group, table in summary.items():
        part = Evaluation(**{name: values[groups == group] for name, values in result.items()})
        alone = part.summary(n_resamples=3000)
        for name, row in table.items():
            for figure in ("mean", "std", "n", "n_missing"):
                assert row[figure] == pytest.approx(alone[name][figure])
        # The bootstrap's own standard error is that of the mean, where there is one.
        iauc = table["iauc"]
        assert iauc.high - iauc.low == pytest.approx(2 * 1.96 * iauc.sem, rel=0.1)
        adcc = table["adcc"]
        assert adcc.high - adcc.low == pytest.approx(2 * 1.96 * adcc.sem, rel=0.1)
    mean = summary.mean["iauc"]
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * mean.sem, rel=0.1)
    assert summary.mean["adcc"].mean == pytest.approx(
        np.mean([table["adcc"].mean for table in summary.values()])
    )


def test_groups_are_resampled_one_by_one():
    """Two groups of opposite values: drawn alike, their mean would never move."""
    values = np.random.default_rng(0).normal(size=100)
    result = Evaluation(iauc=np.r_[values, -values])
    mean = result.summary(by=np.arange(200) < 100).mean["iauc"]
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * mean.sem, rel=0.1)


def test_a_class_without_a_value_has_no_mean():
    result = Evaluation(None, [0, 0, 1], iauc=np.array([0.5, np.nan, 0.25]))
    summary = result.summary(by="class")
    assert np.isnan(summary[0]["iauc"].mean) and summary[1]["iauc"].mean == 0.25
    assert np.isnan(summary.mean["iauc"].mean) and summary.mean["iauc"].n_missing == 1


def test_labels_go_along():
    result = Evaluation(None, ["b", "a"], iauc=np.array([0.0, 1.0]))
    for copied in (result, copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert list(copied) == ["iauc"] and list(copied.summary(by="class")) == ["a", "b"]


def test_evaluations_know_the_classes():
    result = measure(explainer(), y=LABELS, metrics="sparsity")
    summary = result.summary(by="class")
    for label in (0, 1, 2):
        of_class = result["sparsity"][np.array(LABELS) == label]
        assert summary[label]["sparsity"].mean == pytest.approx(of_class.mean())
    with pytest.raises(ValueError, match="needs y, the true labels"):
        measure(explainer(), metrics="sparsity").summary(by="class")
    for by in ([0, 1], np.zeros((7, 2))):
        with pytest.raises(ValueError, match="by must be one label for each of 7 images"):
            result.summary(by=by)
    several = Evaluation(None, np.eye(3, dtype=int), iauc=np.zeros(3))
    with pytest.raises(ValueError, match="several labels each"):
        several.summary(by="class")
