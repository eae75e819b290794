"""One pass for all metrics: against each of them by hand."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from evaluations import (
    ALL,
    BOXES,
    IMAGES,
    LABELS,
    N_STEPS,
    OF_CONFIDENCE,
    N,
    assert_same,
    by_hand,
    correlation,
    counted,
    explainer,
    measure,
    network,
    of_truth,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import trapezoid
from scipy.stats import spearmanr
from small_networks import ImageAndVector, SmallNet, digits
from torch import nn
from torchcam.metrics import ClassificationMetric

from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.cam import Occlusion, Saliency, TopK
from sklcam.explain import ExplanationWarning
from sklcam.metrics import (
    causal_curves,
    consistency_score,
    evaluate,
    insertion_auc,
)
from sklcam.networks import TargetLayer
from sklcam.training import ViewSampler


@pytest.fixture(scope="module")
def fitted():
    X, y = digits(60)
    options = {"image_size": 16, "max_epochs": 1, "lr": 0.05, "verbose": 0, "random_state": 0}
    names = np.array(["nought", "one", "two"])
    clf = ConsistentCAMClassifier(SmallNet, target_layer="5", device="cpu", batch_size=4, **options)
    return clf.fit(X, names[y]), X[:N], names[y[:N]]


# Each metric by hand


@pytest.mark.parametrize("target", [None, LABELS], ids=["predicted", "labels"])
@pytest.mark.parametrize("method", ["gradcam", "layercam", "scorecam", "fakecam"])
def test_an_explainer(target, method):
    model = network()
    result = measure(
        explainer(model), y=LABELS, metrics=ALL, boxes=BOXES, target=target, method=method
    )
    expected = by_hand(model, IMAGES, target, method)
    maps = explainer(model).explain(IMAGES, target, method=method, normalize=False)
    right = result["accuracy"] if target is None else None
    assert_same(result, {**expected, **of_truth(maps, BOXES, right=right)})
    assert_array_equal(result["accuracy"], model(IMAGES).argmax(1).numpy() == LABELS)
    assert set(result) == set(ALL)
    assert all(of.shape == (N,) and of.dtype == float for of in result.values())


def test_a_classifier(fitted):
    clf, X, y = fitted
    result = measure(clf, X, y, metrics=ALL, boxes=BOXES)
    inputs = torch.cat(list(clf.iter_inputs(X)))
    assert_same(result, by_hand(clf.module_, inputs))
    # Boxes are in pixels of the images, which are 8 x 8, not 16 x 16.
    framed = clf.explain(X, frame="image", normalize=False)
    assert framed.shape == (N, 8, 8) and framed.any((1, 2)).all()
    assert_same(result, of_truth(framed, BOXES, right=result["accuracy"]))
    assert result["accuracy"].mean() == pytest.approx(clf.score(X, y))
    labelled = measure(clf, X, target=y)
    codes = [list(clf.classes_).index(label) for label in y]
    assert_same(labelled, by_hand(clf.module_, inputs, codes), names=set(labelled))
    around = CAMExplainer(clf, verbose=0).fit()
    assert_same(measure(around, X, y, metrics=ALL, boxes=BOXES), result)


def test_a_bare_network():
    """Its target layer is found: the last with a spatial output, which is the pooling's."""
    model = network().train()
    ours = measure(model, method="fakecam", metrics=("adcc", "iauc", "dauc"))
    assert model.training
    expected = by_hand(network(), IMAGES, method="fakecam")
    assert_same(ours, expected, names=set(ours))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_precisions(dtype):
    model = network().to(dtype)
    options = {"y": LABELS, "metrics": ALL, "boxes": BOXES}
    result = measure(explainer(model, X=IMAGES.to(dtype)), IMAGES.to(dtype), **options)
    expected = measure(explainer(), **options)
    split = ("consistency_kept", "consistency_changed")  # each of some images
    assert all(np.isfinite(result[name]).all() for name in result if name not in split)
    atol = 0.2 if dtype == torch.bfloat16 else 1e-4
    assert_same(result, expected, atol, ("complexity", "average_drop", "iauc", "dauc", "sparsity"))


def test_other_inputs_follow_their_image():
    model = network(ImageAndVector)
    vectors = torch.randn(N, 2, generator=torch.Generator().manual_seed(1))
    X = {"image": IMAGES, "vector": vectors}
    estimator = explainer(model, X=X, image_input="image", target_layer="conv")
    result = measure(estimator, X, metrics=OF_CONFIDENCE)
    for i in range(N):
        alone = {name: value[[i]] for name, value in X.items()}
        ours = measure(estimator, alone, metrics=("adcc", "iauc", "dauc", "road"))
        assert_same(ours, {name: result[name][[i]] for name in ours})

    @torch.no_grad()
    def score(images, rows):
        probabilities = model(images, vectors[rows]).softmax(1)
        return probabilities[torch.arange(len(rows)), model(IMAGES, vectors).argmax(1)[rows]]

    maps = torch.tensor(estimator.explain(X))
    curves = causal_curves(score, IMAGES, maps, n_steps=N_STEPS)
    assert_allclose(result["iauc"], insertion_auc(curves), atol=1e-5)
    full, masked = (score(of, torch.arange(N)) for of in (IMAGES, IMAGES * maps[:, None]))
    assert_allclose(result["average_drop"], (full - masked).clamp(min=0) / full, atol=1e-5)


def test_drop_and_increase_are_torchcams():
    class Given:
        """torchcam's extractor, with our maps."""

        def __init__(self, model, maps):
            self.model, self.maps = model, maps

        def __call__(self, *args, **kwargs):
            return [self.maps]

        def fuse_cams(self, cams):
            return cams[0]

        def _hooks_off(self):
            return nullcontext()

    model = network()
    maps = torch.tensor(explainer(model).explain(IMAGES))
    metric = ClassificationMetric(Given(model, maps), lambda logits: logits.softmax(1))
    metric.update(IMAGES)
    means = measure(explainer(model), metrics=("average_drop", "average_increase")).means()
    theirs = metric.summary()
    assert means["average_drop"] == pytest.approx(theirs["avg_drop"], abs=1e-5)
    assert means["average_increase"] == theirs["conf_increase"]


class Brightness(nn.Module):
    """Logits (slope times the mean, 0): the first class has a softmax of sigmoid(slope mean)."""

    def __init__(self, slope):
        super().__init__()
        self.same = nn.Identity()
        self.slope = slope

    def forward(self, x):
        mean = self.same(x).mean((1, 2, 3))
        return torch.stack([self.slope * mean, 0 * mean], dim=1)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, dtype=float)))


def bright(slope=3.0, side=4, **options):
    model = Brightness(slope)
    images = torch.ones(2, 1, side, side)
    options = {"target": [0, 0], "progress": False, **options}
    return evaluate(explainer(model, X=images, target_layer="same"), images, **options)


def test_a_softmax_that_is_known():
    params = {"iauc": {"n_steps": 16, "start": torch.zeros_like}}
    result = bright(metrics=("adcc", "dauc", "iauc"), method="fakecam", metric_params=params)
    drop = 1 - sigmoid(3 * 15 / 16) / sigmoid(3)
    area = trapezoid(sigmoid(3 * np.arange(17) / 16), dx=1 / 16)
    expected = {
        "average_drop": drop,
        "coherency": 1,
        "complexity": 15 / 16,
        "adcc": 3 / (1 + 16 + 1 / (1 - drop)),
        "iauc": area,  # of ones it does not matter which come first
        "dauc": area,
    }
    assert_same(result, {name: [value] * 2 for name, value in expected.items()}, atol=1e-6)
    uniform = bright(method="uniform", metrics=("adcc", "average_increase", "sparsity"))
    assert uniform["adcc"].tolist() == uniform["coherency"].tolist() == [0, 0]
    assert uniform["average_drop"].tolist() == [0, 0] and not uniform["average_increase"].any()


def test_a_map_that_is_known():
    """The layer is the image, all of its pixels weigh the same: so is the map."""
    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:6, 2:6] = 0.17
    image[..., 3:5, 3:5] = 1
    estimator = explainer(Brightness(3.0), X=image, target_layer="same")
    inner, outer = [[3, 3, 5, 5]], [[2, 2, 6, 6]]
    expected = {
        "heatmap_ratio": 4 / (4 + 12 * 0.17),
        "inside_outside_ratio": 1 / (12 * 0.17 / 60),
        "pointing_game": 1,
        "localization_accuracy": 0,  # at 0.15 of the maximum the box is the outer one
        "complexity": (4 + 12 * 0.17) / 64,
    }
    names, options = tuple(expected), {"target": [0], "boxes": [inner]}
    assert_same(measure(estimator, image, metrics=names, **options), expected)
    for threshold, box, hit in ((None, outer, 1), (0.2, outer, 0), (0.2, inner, 1)):
        params = {"localization_accuracy": {"threshold": threshold} if threshold else {}}
        options = {"target": [0], "boxes": [box], "metric_params": params}
        result = measure(estimator, image, metrics="localization_accuracy", **options)
        assert result["localization_accuracy"] == [hit]


def test_fake_cam_at_the_papers_size():
    result = bright(side=224, metrics="adcc", method="fakecam")
    assert result["coherency"] == pytest.approx([1, 1], abs=1e-5)
    assert result["complexity"] == pytest.approx([1 - 1 / 50176] * 2, abs=1e-6)
    assert result["adcc"] == pytest.approx([3 / 50178] * 2, rel=2e-2)
    assert result.means()["adcc"] == pytest.approx(3 / 50178, rel=2e-2)


def test_constant_maps_count_as_nothing_and_warn_for_consistency_alone():
    """Even images have even maps, which become zeros: nothing is seen, and nothing explained.

    Of the map itself, the share of the image is in the box.
    """
    metrics = ("adcc", "arcc", "heatmap_ratio", "pointing_game", "sparsity")
    options = {"side": 16, "boxes": [[[0, 0, 4, 4]]] * 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bright(metrics=metrics, **options)
    with pytest.warns(UserWarning, match="2 of 2 images have a constant map"):
        result = bright(metrics=(*metrics, "consistency"), **options)
    summary = result.summary()
    drop = 1 - sigmoid(0) / sigmoid(3)
    assert result.pop("average_drop") == pytest.approx([drop] * 2)
    assert result.pop("heatmap_ratio") == pytest.approx([1 / 16] * 2)
    assert all(not values.any() for values in result.values())
    assert summary["adcc"].mean == summary["adcc"].high == 0


# Targets and scores


def test_a_callable_target_and_its_score():
    estimator = explainer()
    labels = measure(estimator, target=[1] * N)
    ours = measure(
        estimator,
        target=lambda output: output[:, 1],
        score=lambda output: output.softmax(1)[:, 1],
    )
    assert_same(ours, labels)
    assert_same(measure(estimator, target=1), labels)


def test_a_score_of_ones_own_for_the_predicted_class():
    """It takes the place of the probability; the map stays the predicted class's."""
    ours = measure(explainer(), score=lambda output: output.sigmoid().amax(1))
    full, masked = (network()(of).sigmoid().amax(1).detach() for of in (
        IMAGES, IMAGES * torch.tensor(explainer().explain(IMAGES))[:, None]
    ))  # fmt: skip
    assert_allclose(ours["average_drop"], (full - masked).clamp(min=0) / full, atol=1e-5)


@pytest.mark.parametrize("shape", ["classes", "maps"])
def test_what_needs_no_score(shape):
    class Everywhere(SmallNet):
        """Classes at each pixel, as segmentation has them."""

        def forward(self, x):
            for layer in list(self)[:6]:
                x = layer(x)
            return x

    model = network(Everywhere) if shape == "maps" else network()
    metrics = ("coherency", "complexity", "sparsity", "consistency", "rank_correlation")
    result = measure(
        explainer(model, target_layer="2" if shape == "maps" else "5"),
        metrics=metrics,
        target=lambda output: output[:, 1].flatten(1).mean(1) if output.ndim > 2 else output[:, 1],
    )
    assert tuple(result) == metrics
    assert all(np.isfinite(values).all() for values in result.values())
    if shape == "classes":
        assert_same(result, by_hand(model, IMAGES, [1] * N), names=metrics)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": "adc"}, "There is no metric 'adc'. Did you mean: adcc"),
        ({"metrics": ["adcc", 3]}, "There is no metric 3"),
        ({"metrics": ()}, "metrics is empty"),
        ({"metrics": "accuracy"}, "accuracy needs y"),
        ({"metrics": "localization_accuracy"}, "localization_accuracy needs boxes"),
        (
            {"metrics": "localization_accuracy", "masks": np.ones((N, 16, 16))},
            "localization_accuracy needs boxes",
        ),
        (
            {"metrics": ["heatmap_ratio", "adcc", "pointing_game"]},
            "heatmap_ratio, pointing_game needs boxes or masks",
        ),
        (
            {"metrics": ["adcc", "coherency"], "target": lambda output: output[:, 0]},
            "adcc, average_drop: a target that is not a class, .* Give score=",
        ),
        ({"target": TopK(2)}, "one class per image"),
        ({"target": np.zeros((N, 2), dtype=int)}, "one class per image"),
        ({"target": [0, 1]}, "one per image|for 7 images"),
        ({"target": [9] * N}, "labels that were not seen"),
        ({"metric_params": {"iuac": {}}}, r"unknown metrics: \['iuac'\]\. Did you mean: iauc"),
        ({"metric_params": {"dauc": {"steps": 9}}}, r"dauc has no options \['steps'\]"),
        (
            {"metric_params": {"iauc": {"n_steps": 5}, "dauc": {"n_steps": 9}}},
            "n_steps is shared by several metrics, but given as 5 and as 9",
        ),
        ({"metric_params": {"adcc": {"relu": False}}}, r"adcc has no options \['relu'\]"),
        ({"metric_params": {"iauc": {"nsteps": 9}}}, r"takes .*iauc: \['end', 'n_steps', 'relu'"),
        ({"metrics": "accuracy", "y": [0, 1]}, "y has 2 entries for 7 images"),
        ({"metrics": "heatmap_ratio", "boxes": BOXES[:3]}, "boxes has 3 entries for 7 images"),
        ({"metrics": "heatmap_ratio", "masks": np.ones((8, 16, 16))}, "masks has 8 entries"),
        ({"method": "gradcamm"}, "gradcam"),
        (
            {"metric_params": {"iauc": {"start": torch.zeros(N, 1, 16, 16)}}},
            "start must be a callable .* torch.zeros_like; got a Tensor",
        ),
        ({"metric_params": {"iauc": {"end": 0.5}}}, "end must be a callable"),
    ],
)
def test_errors_come_before_any_work(options, message):
    model = network()
    estimator = explainer(model)
    with counted(model) as images, pytest.raises(ValueError, match=message):
        evaluate(estimator, IMAGES, **options)
    assert not images
    needs = ("needs", "options", "no metric", "empty", "score=", "one class")
    if any(need in message for need in needs):
        with counted(model) as images, pytest.raises(ValueError, match=message):
            evaluate(model, IMAGES, **options)
        assert not images


def test_maps_must_be_one_per_image():
    model = network()
    several = explainer(model, target_layer=["2", "5"], layer_fusion=None)
    with counted(model) as images, pytest.raises(ValueError, match="maps of 2 layers apart"):
        measure(several)
    with pytest.raises(ValueError, match="channels="):
        measure(explainer(model), method=Saliency(channels="keep"))
    assert not images
    fused = explainer(model, target_layer=["2", "5"])
    assert measure(fused, metrics="complexity")["complexity"] == pytest.approx(
        fused.explain(IMAGES).mean((1, 2)), abs=1e-6
    )
    # A method without layers has one map in any case.
    measure(several, metrics="complexity", method="saliency")


def test_what_is_no_explainer():
    from sklearn.linear_model import LogisticRegression

    with pytest.raises(ValueError, match="must be a ConsistentCAMClassifier, a CAMExplainer or"):
        evaluate(LogisticRegression(), IMAGES)


def test_a_data_set_that_knows_its_labels():
    model = network()
    data = torch.utils.data.TensorDataset(IMAGES, torch.tensor(LABELS))
    data.targets = LABELS
    result = measure(explainer(model), data, metrics="accuracy")
    assert_array_equal(result["accuracy"], model(IMAGES).argmax(1).numpy() == LABELS)


# Options


def test_one_curve_alone_is_the_same():
    """Of the options that the two share, each takes its own."""
    bases = {"start": torch.zeros_like, "end": lambda images: images.flip(-1)}
    params = {"iauc": {"n_steps": 5, **bases}}
    both = measure(explainer(), metrics=("iauc", "dauc"), metric_params=params)
    for name in ("iauc", "dauc"):
        alone = measure(explainer(), metrics=name, metric_params=params)
        assert_allclose(alone[name], both[name], atol=1e-6)


def test_rank_correlation_is_on_the_occlusions_grid():
    occlusion = Occlusion(patch=4, stride=4, relu=False)
    result = measure(
        explainer(),
        metrics="rank_correlation",
        metric_params={"rank_correlation": {"occlusion": occlusion}},
    )
    maps = explainer().explain(IMAGES).reshape(N, 4, 4, 4, 4).mean((2, 4))
    falls = explainer().explain(IMAGES, method=occlusion, normalize=False)[:, ::4, ::4]
    pairs = zip(maps, falls, strict=True)
    expected = [correlation(spearmanr, *pair) for pair in pairs]
    assert_allclose(result["rank_correlation"], expected, atol=1e-5)


def test_options_reach_their_metric():
    params = {"pointing_game": {"tolerance": 99}, "localization_accuracy": {"iou_threshold": 0.0}}
    result = measure(explainer(), metrics=tuple(params), boxes=BOXES, metric_params=params)
    assert result["pointing_game"].all() and result["localization_accuracy"].all()
    flips = ViewSampler(scale=(1, 1), ratio=(1, 1), flip=0)
    params = {"consistency": {"views": flips, "method": "layercam"}}
    result = measure(explainer(), metrics="consistency", metric_params=params)
    assert result["consistency"] == pytest.approx([1] * N, abs=1e-5)
    occlusion = Occlusion(patch=4, stride=4, relu=False)
    params = {"rank_correlation": {"occlusion": occlusion}}
    result = measure(
        explainer(), metrics="rank_correlation", method=occlusion, metric_params=params
    )
    assert result["rank_correlation"] == pytest.approx([1] * N, abs=1e-6)


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, "series"])
def test_labels_in_any_form(form):
    y = pd.Series(LABELS, index=range(50, 50 + N)) if form == "series" else form(LABELS)
    result = measure(explainer(), y=y, metrics="accuracy")
    assert_array_equal(result["accuracy"], network()(IMAGES).argmax(1).numpy() == LABELS)


# Chance


def test_one_seed_one_result():
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    options = {"metric_params": {"iauc": {"n_steps": 2}}, "metrics": ("consistency", "road")}
    first, again, other = (measure(explainer(), random_state=s, **options) for s in (3, 3, 4))
    for name in ("consistency", "road"):
        assert_array_equal(first[name], again[name])
        assert not np.isclose(first[name], other[name], atol=0, rtol=1e-3).all()
    assert torch.get_rng_state().equal(state[0])
    assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002


def test_the_views_do_not_depend_on_what_else_is_measured():
    """Nor on the batches; and they are those of the score."""
    alone = measure(explainer(), metrics="consistency")["consistency"]
    assert alone.mean() == pytest.approx(consistency_score(explainer(), IMAGES), abs=1e-6)
    for batch_size in (2, N):
        for metrics in (("road", "consistency"), ("consistency", "road", "adcc")):
            noisy = {"road": {"noise": 0.1, "percentiles": (50,)}}
            estimator = explainer(batch_size=batch_size)
            result = measure(estimator, metrics=metrics, metric_params=noisy)
            assert_allclose(result["consistency"], alone, atol=1e-5)


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_if_wanted(progress, capsys):
    measure(explainer(), metrics="complexity", progress=progress)
    assert ("evaluate" in capsys.readouterr().err) == progress


# What says nothing


def test_nan_stays_nan_and_is_warned_of():
    """One weight is NaN: all maps and scores are, and no metric has a number for them."""
    model = network()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator = explainer(model, target_layer=TargetLayer("5"))
    message = f"{N} of {N} maps, {N} of {N} images' values are NaN"
    with pytest.warns(ExplanationWarning, match=message):
        result = measure(estimator, y=LABELS, metrics=ALL, boxes=BOXES)
    assert all(np.isnan(values).all() for values in result.values())
    assert np.isnan([*result.means().values()]).all()
    assert all(row.n_missing == N for row in result.summary().values())


class Overflowing(SmallNet):
    """What is too large has no answer."""

    def forward(self, images):
        is_large = images.abs().amax(dim=(1, 2, 3), keepdim=True) > 1000
        return super().forward(torch.where(is_large, torch.nan, images))


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_one_nan_image_is_counted(n_jobs):
    images = IMAGES.clone()
    images[2] *= 1e6
    options = {"y": LABELS, "metrics": ALL, "boxes": BOXES}
    message = f"1 of {N} maps, 1 of {N} images' values are NaN"
    with pytest.warns(ExplanationWarning, match=message):
        result = measure(explainer(network(Overflowing)), images, n_jobs=n_jobs, **options)
    expected = measure(explainer(), **options)
    others = np.arange(N) != 2
    for name, values in result.items():
        assert np.isnan(values[2]), name
        # Ranks jump where values that differ by rounding change places.
        atol = 1e-3 if name == "rank_correlation" else 1e-5
        assert_allclose(values[others], expected[name][others], atol=atol, err_msg=name)


def test_blank_maps_are_warned_of():
    """A head that all channels speak against: the ReLU leaves nothing."""
    model = network()
    with torch.no_grad():
        model[-1].weight.copy_(-model[-1].weight.abs())
    with pytest.warns(ExplanationWarning, match=f"{N} of {N} maps are blank"):
        measure(explainer(model), metrics="complexity")


def test_a_single_class_has_no_confidence_but_a_score_of_ones_own():
    """Its softmax is 1: insertion, deletion and drop would be constants."""
    with pytest.raises(ValueError, match=r'one output.*task="binary"'):
        explainer(network(num_classes=1))
    estimator = explainer(network(num_classes=1), task="regression")
    with pytest.raises(
        ValueError, match="iauc: the network returns numbers, which are not a confid"
    ):
        measure(estimator, metrics="iauc")
    score = lambda output: output[:, 0].sigmoid()  # noqa: E731
    areas = measure(estimator, metrics="iauc", score=score)["iauc"]
    assert np.ptp(areas) > 0 and (areas < 1).all()
    assert measure(estimator, metrics="complexity")["complexity"].shape == (N,)
