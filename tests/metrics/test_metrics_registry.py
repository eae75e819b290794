"""Metrics as objects: those that are there, and a user's own wherever a name goes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from evaluations import ALL, BOXES, IMAGES, LABELS, N, explainer, measure, network
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import gmean, hmean
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from small_networks import SmallNet, digits

from sklcam import ConsistentCAMClassifier
from sklcam.metrics import (
    Evaluation,
    Metric,
    available,
    evaluate,
    explanation_scorer,
    get_metric,
    get_scorer,
    metric_of_row,
    register,
    registry,
    row_meaning,
    sparsity,
)

# The papers' directions: what is lost, how much is covered, what deletion leaves.
LOWER_IS_BETTER = {
    *("average_drop", "complexity", "dauc", "top1_localization_error", "top5_localization_error"),
    *("consistency_changed", "max_sensitivity", "local_lipschitz"),
}


def peak_share(maps, *, power=1):
    return (maps.amax(dim=(1, 2)) / maps.sum(dim=(1, 2))) ** power


def check_power(name, value):
    if value not in (1, 2):
        raise ValueError(f"{name} must be 1 or 2; got {value!r}.")


PEAK = Metric(
    "peak_share",
    peak_share,
    needs=("maps",),
    higher_is_better=False,
    meaning="largest share of the map in one pixel",
    options={"power": check_power},
)


def peak_by_hand(maps, power=1):
    return [(map_.max() / map_.sum()) ** power for map_ in maps]


@pytest.fixture
def registered(monkeypatch):
    """Register for one test."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    return register


# Those that are there


def test_available_metrics_say_what_they_are():
    assert len(available()) == 31 and available() == sorted(available())
    for name in available():
        metric = get_metric(name)
        assert metric.name == name and get_metric(metric) is metric
        assert metric.higher_is_better == (name not in LOWER_IS_BETTER)
        assert 20 < len(metric.meaning) < 80 and not metric.meaning.endswith(".")
        assert pickle.loads(pickle.dumps(metric)).name == name


def test_values_lie_in_the_ranges():
    params = {"iauc": {"n_steps": 4}, "road": {"percentiles": (30,)}}
    result = measure(explainer(), y=LABELS, metrics=ALL, boxes=BOXES, metric_params=params)
    for name, values in result.items():
        low, high = get_metric(name).range
        known = values[~np.isnan(values)] if get_metric(name).may_be_undefined else values
        assert (known >= low).all() and (known <= high).all(), name


def test_rows_of_summaries_have_a_metric():
    summary = measure(explainer(), metrics="adcc").summary()
    assert metric_of_row("mean_adcc") is metric_of_row("adcc") is get_metric("adcc")
    assert row_meaning("mean_adcc") == "mean of the images' own adcc"
    assert row_meaning("adcc") == get_metric("adcc").meaning
    assert all(metric_of_row(row) for row in summary)
    for unknown in ("mean_sparsity", "peak_share", "mean_peak_share"):
        assert metric_of_row(unknown) is None and row_meaning(unknown) == ""


# One's own


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_a_metric_of_ones_own(n_jobs):
    result = measure(explainer(), metrics=["sparsity", PEAK], n_jobs=n_jobs, metric_params={})
    maps, unscaled = (explainer().explain(IMAGES, normalize=scaled) for scaled in (True, False))
    assert list(result) == ["sparsity", "peak_share"]
    assert_allclose(result["peak_share"], peak_by_hand(maps), rtol=1e-5)
    assert_allclose(result["sparsity"], sparsity(torch.tensor(unscaled)), atol=1e-6)
    squares = measure(explainer(), metrics=PEAK, metric_params={"peak_share": {"power": 2}})
    assert_allclose(squares["peak_share"], peak_by_hand(maps, 2), rtol=1e-5)


def test_scorers_of_a_metric_of_ones_own():
    """Lower is better: the scorers are negative."""
    maps = explainer().explain(IMAGES)
    scorer = get_scorer(PEAK, power=2, method="layercam")
    layercam = explainer().explain(IMAGES, method="layercam")
    for twin in (scorer, clone(scorer), pickle.loads(pickle.dumps(scorer))):
        expected = -np.mean(peak_by_hand(layercam, 2))
        assert twin(explainer(), IMAGES) == pytest.approx(expected, rel=1e-5)
    together = explanation_scorer([PEAK, "sparsity"])(explainer(), IMAGES)
    assert list(together) == ["neg_peak_share", "sparsity"]
    assert together["neg_peak_share"] == pytest.approx(-np.mean(peak_by_hand(maps)), rel=1e-5)


def test_a_search_by_a_metric_of_ones_own():
    X, y = digits(30)
    clf = ConsistentCAMClassifier(
        SmallNet, target_layer="5", image_size=16, max_epochs=1, lr=0.1, verbose=0,
        random_state=0, device="cpu",
    )  # fmt: skip
    search = GridSearchCV(
        clf, {"lr": [0.01, 0.1]}, scoring=get_scorer(PEAK), cv=KFold(2), error_score="raise"
    ).fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert (scores < 0).all() and search.best_index_ == scores.argmax()


def test_a_registered_metric_goes_by_its_name(registered):
    registered(PEAK)
    registered(PEAK)  # once more changes nothing
    assert "peak_share" in available() and get_metric("peak_share") is PEAK
    expected = measure(explainer(), metrics=PEAK)["peak_share"]
    assert_array_equal(measure(explainer(), metrics="peak_share")["peak_share"], expected)
    assert get_scorer("neg_peak_share")(explainer(), IMAGES) == pytest.approx(-expected.mean())
    with pytest.raises(ValueError, match="Use 'neg_peak_share'"):
        get_scorer("peak_share")
    assert row_meaning("peak_share") == PEAK.meaning
    with pytest.raises(ValueError, match="There is a metric 'peak_share' already"):
        registered(Metric("peak_share", peak_share, needs=("maps",)))


def test_a_metric_of_averages(registered):
    """Its figure is the function of the averages, and its terms come along."""

    def geometric(first, second):
        return (first * second).sqrt()

    mean = Metric("geometric", geometric, needs=("sparsity", "complexity"), of_averages=True)
    registered(mean)
    result = measure(explainer(), metrics=mean)
    assert list(result) == ["geometric", "sparsity", "complexity"]
    summary, means = result.summary(), result.means()
    expected = gmean([result["sparsity"].mean(), result["complexity"].mean()])
    assert summary["geometric"].mean == pytest.approx(expected) == means["geometric"]
    assert summary["mean_geometric"].mean == pytest.approx(result["geometric"].mean())
    assert expected != pytest.approx(result["geometric"].mean(), abs=1e-4)
    # Without its terms, there are only the images' own values.
    alone = Evaluation(geometric=result["geometric"]).summary()
    assert list(alone) == ["geometric"]
    assert alone["geometric"].mean == pytest.approx(result["geometric"].mean())


def test_metrics_of_metrics_and_of_confidence():
    """The values of other metrics are quantities; what needs confidence is found out."""

    def of_three(drop, coherency, confidence):
        return torch.stack([1 - drop, coherency, confidence])

    def harmonic(*terms):
        stacked = of_three(*terms)
        return len(stacked) / (1 / stacked).sum(dim=0)

    metric = Metric("harmonic", harmonic, needs=("average_drop", "coherency", "confidence"))
    result = measure(explainer(), metrics=[metric, "average_drop", "coherency"])
    with torch.no_grad():
        confidence = network()(IMAGES).softmax(1).amax(1)
    terms = [1 - result["average_drop"], result["coherency"], confidence]
    assert_allclose(result["harmonic"], hmean(terms), rtol=1e-5)
    with pytest.raises(ValueError, match=r"^harmonic: a target that is not a class"):
        measure(explainer(), metrics=metric, target=lambda output: output[:, 0])


@pytest.mark.parametrize(
    ("quantity", "shape"),
    [
        ("maps", (N, 16, 16)),
        ("raw_maps", (N, 16, 16)),
        ("images", (N, 1, 16, 16)),
        ("output", (N, 3)),
        ("confidence", (N,)),
        ("masked_confidence", (N,)),
        ("maps_of_masked", (N, 16, 16)),
        ("view_of_maps", (N, 16, 16)),
        ("maps_of_view", (N, 16, 16)),
        ("occlusion_maps", (N, 16, 16)),
        ("labels", (N,)),
        ("predictions", (N,)),
    ],
)
def test_every_quantity_reaches_a_metric(quantity, shape):
    seen = []

    def look(values):
        seen.append(values)
        return torch.zeros(len(values))

    metric = Metric("look", look, needs=(quantity,))
    measure(explainer(batch_size=N), y=LABELS, metrics=metric, metric_params={})
    assert tuple(seen[0].shape) == shape
    if quantity == "raw_maps":
        expected = explainer().explain(IMAGES, normalize=False)
        assert_allclose(seen[0], expected, atol=1e-6)
    if quantity == "predictions":
        assert_array_equal(seen[0], network()(IMAGES).argmax(1))


def test_perturbed_images_and_objects_reach_a_metric():
    """Half of the image in grey; and the area of the objects, in the images' own frame."""

    def without_the_left(perturbation, confidence):
        changed = perturbation.images.clone()
        changed[..., :8] = 0
        return confidence - perturbation(changed, torch.arange(len(changed)))

    def area(maps, masks):
        assert [map_.shape for map_ in maps] == [mask.shape for mask in masks]
        return torch.stack([mask.sum() for mask in masks])

    metrics = [
        Metric("left", without_the_left, needs=("perturbation", "confidence"), range=(-1, 1)),
        Metric("area", area, needs=("framed_maps", "masks"), range=(0, 256)),
    ]
    result = measure(explainer(), metrics=metrics, boxes=BOXES, metric_params={})
    halved = IMAGES.clone()
    halved[..., :8] = 0
    with torch.no_grad():
        full, left = (network()(images).softmax(1) for images in (IMAGES, halved))
    rows, classes = torch.arange(N), full.argmax(1)
    assert_allclose(result["left"], (full - left)[rows, classes], atol=1e-6)
    assert result["area"][0] == pytest.approx(5 * 7.5)
    with pytest.raises(ValueError, match=r"^area needs boxes or masks"):
        measure(explainer(), metrics=metrics, metric_params={})


# Options


def test_options_of_insertion_and_deletion_are_of_both():
    by_name = [
        measure(explainer(), metrics=("iauc", "dauc"), metric_params={name: {"n_steps": 5}})
        for name in ("iauc", "dauc")
    ]
    other = measure(explainer(), metrics=("iauc", "dauc"), metric_params={"dauc": {"n_steps": 3}})
    for name in ("iauc", "dauc"):
        assert_array_equal(by_name[0][name], by_name[1][name])
        assert not np.allclose(by_name[0][name], other[name], atol=1e-4)
    same = {"iauc": {"n_steps": 5}, "dauc": {"n_steps": 5, "end": torch.zeros_like}}
    together = measure(explainer(), metrics=("iauc", "dauc"), metric_params=same)
    assert_array_equal(together["dauc"], by_name[0]["dauc"])


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        ("road", {"percentiles": ()}, "percentiles must be a sequence of at least one number"),
        ("road", {"percentiles": [0]}, "Each of percentiles must be .* between 0 and 100; got 0"),
        ("iauc", {"relu": "no"}, "relu must be True or False; got a str, 'no'"),
        ("rank_correlation", {"occlusion": None}, "occlusion must be an Occlusion"),
        (PEAK, {"power": 3}, "power must be 1 or 2; got 3"),
        (PEAK, {"base": 3}, r"peak_share has no options \['base'\]; .*peak_share: \['power'\]"),
    ],
)
def test_options_are_checked_before_any_work(metric, options, message):
    name = get_metric(metric).name
    with pytest.raises(ValueError, match=message):
        evaluate(None, None, metrics=metric, metric_params={name: options})


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "A metric needs a name; got a str, ''"),
        ({"name": "maps"}, "'maps' is the name of a quantity"),
        ({"function": 3}, "function must be a callable .* got an int, 3"),
        ({"needs": "maps"}, "needs must be a tuple of names; got a str, 'maps'"),
        ({"needs": ("mapz",)}, "needs 'mapz', which is neither .* Did you mean: maps"),
        ({"range": (1, 0)}, r"range must be \(low, high\) with low < high; got \(1, 0\)"),
    ],
)
def test_what_is_not_a_metric(changes, message):
    options = {"name": "mine", "function": peak_share, "needs": ("maps",)} | changes
    with pytest.raises(ValueError, match=message):
        Metric(**options)


def test_two_metrics_of_one_name():
    twin = Metric("peak_share", peak_share, needs=("raw_maps",))
    with pytest.raises(ValueError, match="two metrics named 'peak_share'"):
        measure(explainer(), metrics=[PEAK, twin])
    assert list(measure(explainer(), metrics=[PEAK, PEAK], metric_params={})) == ["peak_share"]


@pytest.mark.parametrize(
    "returned", [lambda maps: maps, lambda maps: 1.0, lambda maps: maps.mean((1, 2)).numpy()]
)
def test_a_metric_returns_one_number_an_image(returned):
    metric = Metric("mine", returned, needs=("maps",))
    with pytest.raises(ValueError, match="'mine' must return a Tensor of one number for each of 4"):
        measure(explainer(), metrics=metric, metric_params={})
