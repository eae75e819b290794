"""One pass for all metrics: against each of them by hand, and what it costs."""

from __future__ import annotations

import warnings
import weakref
from contextlib import contextmanager, nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.integrate import trapezoid
from scipy.stats import hmean, pearsonr, spearmanr
from small_networks import ImageAndVector, SmallNet, digits
from torch import nn
from torchcam.metrics import ClassificationMetric

from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.cam import GradCAM, Occlusion, Saliency, TopK
from sklcam.metrics import (
    METRICS,
    Evaluation,
    box_from_map,
    box_iou,
    box_masks,
    causal_curves,
    compare,
    consistency_score,
    deletion_auc,
    evaluate,
    heatmap_ratio,
    insertion_auc,
    inside_outside_ratio,
    pointing_game,
    road,
    sparsity,
    ssim_consistency,
)
from sklcam.training import ViewSampler

N, N_STEPS = 7, 8
IMAGES = torch.randn(N, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
LABELS = [0, 2, 1, 1, 0, 2, 2]
BOXES = [[[i, 1.5, i + 5, 9]] for i in range(N - 1)] + [[[0, 0, 4, 4], [3, 8, 20, 20]]]
PARAMS = {"iauc": {"n_steps": N_STEPS}, "road": {"noise": 0, "percentiles": (30, 60)}}
OF_CONFIDENCE = ("adcc", "arcc", "average_increase", "iauc", "dauc", "road", "consistency")
ALL = tuple(METRICS)


def network(module=SmallNet, **options):
    torch.manual_seed(1)
    return module(**options).eval()


def explainer(model=None, *, X=IMAGES, batch_size=4, **options):
    model = network() if model is None else model
    options = {"target_layer": "5", "verbose": 0, "batch_size": batch_size, **options}
    return CAMExplainer(model, **options).fit(X)


def measure(estimator, X=IMAGES, y=None, metrics=OF_CONFIDENCE, **options):
    options = {"metric_params": PARAMS, "progress": False, **options}
    return evaluate(estimator, X, y, metrics=metrics, **options)


@contextmanager
def counted(model):
    """The number of images in each forward pass."""
    passes = []

    def count(module, args, kwargs):
        passes.append(len([*args, *kwargs.values()][0]))

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    yield passes
    handle.remove()


@pytest.fixture(scope="module")
def fitted():
    X, y = digits(60)
    options = {"image_size": 16, "max_epochs": 1, "lr": 0.05, "verbose": 0, "random_state": 0}
    names = np.array(["nought", "one", "two"])
    clf = ConsistentCAMClassifier(SmallNet, target_layer="5", device="cpu", batch_size=4, **options)
    return clf.fit(X, names[y]), X[:N], names[y[:N]]


def constant(map_):
    return bool(map_.min() == map_.max())


def correlation(of, first, second):
    if constant(first) or constant(second):
        return 0
    return of(first.ravel(), second.ravel()).statistic


@torch.no_grad()
def by_hand(model, inputs, classes=None, method="gradcam", seed=0, run=None):
    """All that needs no truth, from maps of ``explain`` and softmax scores in plain torch."""
    run = run or (lambda images, rows: model(images))
    every = torch.arange(len(inputs))
    fixed = run(inputs, every).argmax(1) if classes is None else torch.tensor(classes)

    def explain(images, target=None, **options):
        options = {"method": method, **options}
        return torch.tensor(explainer(model, X=inputs).explain(images, target, **options))

    def score(images, rows):
        return run(images, rows).softmax(1)[torch.arange(len(rows)), fixed[rows]]

    maps = explain(inputs, fixed)
    masked = inputs * maps[:, None]
    full, drop = score(inputs, every), score(masked, every)
    values = {
        "average_drop": (full - drop).clamp(min=0) / full,
        "average_increase": drop > full,
        "complexity": maps.mean((1, 2)),
        "sparsity": sparsity(maps),
    }
    pairs = zip(maps, explain(masked, fixed), strict=True)
    values["coherency"] = np.array([correlation(pearsonr, *p) / 2 + 0.5 for p in pairs])
    values["coherency"][[constant(of) for of in maps]] = 0
    terms = values["coherency"], 1 - values["complexity"]
    values["adcc"] = hmean([*terms, 1 - values["average_drop"]])
    curves = causal_curves(score, inputs, maps, n_steps=N_STEPS)
    values["iauc"], values["dauc"] = insertion_auc(curves), deletion_auc(curves)
    values["road"] = road(score, inputs, maps, **PARAMS["road"])
    values["arcc"] = hmean([*terms, (2 * values["road"]).clamp(0, 1)])
    drawn = np.random.RandomState(seed).randint(2**31 - 1)
    generator = torch.Generator().manual_seed(int(drawn))
    view = ViewSampler()(len(inputs), size=(16, 16), generator=generator)
    # What is explained of a view is its own prediction, unless a class was asked for.
    target = None if classes is None else fixed
    without, of_view = (
        explain(images, target, method=GradCAM(relu=False)) for images in (inputs, view(inputs))
    )
    values["consistency"] = ssim_consistency(view(without), of_view)
    occlusion = explain(inputs, fixed, method=Occlusion(relu=False), normalize=False)
    pairs = zip(maps, occlusion, strict=True)
    values["rank_correlation"] = np.array([correlation(spearmanr, *p) for p in pairs])
    return values


def of_truth(framed, boxes, threshold=0.15):
    """The metrics of localisation, image by image, each map in its own image's frame."""
    values = {name: [] for name in ("heatmap_ratio", "inside_outside_ratio", "pointing_game")}
    values["localization_accuracy"] = []
    for map_, of_image in zip(framed, boxes, strict=True):
        map_, of_image = torch.tensor(map_)[None], torch.tensor(of_image, dtype=torch.float32)
        mask = box_masks([of_image], map_.shape[1:])
        values["heatmap_ratio"].append(heatmap_ratio(map_, mask).item())
        values["inside_outside_ratio"].append(inside_outside_ratio(map_, mask).item())
        values["pointing_game"].append(pointing_game(map_, mask).item())
        ious = box_iou(box_from_map(map_, threshold), of_image)
        values["localization_accuracy"].append(float(ious.max() >= 0.5))
    return values


def assert_same(result, expected, atol=2e-5, names=None):
    for name in names or expected:
        assert_allclose(result[name], expected[name], atol=atol, rtol=1e-4, err_msg=name)


# Each metric by hand


@pytest.mark.parametrize("target", [None, LABELS], ids=["predicted", "labels"])
@pytest.mark.parametrize("method", ["gradcam", "layercam", "scorecam", "fakecam"])
def test_an_explainer(target, method):
    model = network()
    result = measure(
        explainer(model), y=LABELS, metrics=ALL, boxes=BOXES, target=target, method=method
    )
    expected = by_hand(model, IMAGES, target, method)
    maps = explainer(model).explain(IMAGES, target, method=method)
    assert_same(result, {**expected, **of_truth(maps, BOXES)})
    assert_array_equal(result["accuracy"], model(IMAGES).argmax(1).numpy() == LABELS)
    assert set(result) == set(METRICS)
    assert all(of.shape == (N,) and of.dtype == float for of in result.values())


def test_a_classifier(fitted):
    clf, X, y = fitted
    result = measure(clf, X, y, metrics=ALL, boxes=BOXES)
    inputs = torch.cat(list(clf.iter_inputs(X)))
    assert_same(result, by_hand(clf.module_, inputs))
    # Boxes are in pixels of the images, which are 8 x 8, not 16 x 16.
    framed = clf.explain(X, frame="image")
    assert framed.shape == (N, 8, 8) and framed.any((1, 2)).all()
    assert_same(result, of_truth(framed, BOXES))
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
    result = measure(explainer(model, X=IMAGES.to(dtype)), IMAGES.to(dtype), metrics=ALL[1:], **{
        "boxes": BOXES
    })  # fmt: skip
    expected = measure(explainer(), metrics=ALL[1:], boxes=BOXES)
    assert all(np.isfinite(values).all() for values in result.values())
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
    """Even images have even maps, which become zeros: nothing is seen, and nothing explained."""
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
    assert all(not values.any() for values in result.values())
    assert summary["adcc"].mean == summary["adcc"].high == 0


# What it costs


@pytest.mark.parametrize(
    ("metrics", "passes"),
    [
        (("complexity", "sparsity", "accuracy", "heatmap_ratio"), 1),
        (("adcc",), 2),
        (("average_drop", "average_increase"), 2),
        (("consistency",), 2),
        (("adcc", "consistency"), 3),
        (("iauc", "dauc"), 2 * N_STEPS),
        (("dauc",), N_STEPS),
        (("iauc", "adcc"), N_STEPS + 2),
        (("adcc", "consistency", "iauc", "dauc"), 2 * N_STEPS + 2),
        (("road",), 1 + 4),
        (("arcc", "adcc", "road"), 2 + 4),
    ],
)
@pytest.mark.parametrize("batch_size", [4, N])
def test_images_through_the_network(metrics, passes, batch_size):
    """Where many passes follow, two more of one image teach a network to fold its normalisation.

    What deletion ends at is one image for all that go through the network at a time.
    """
    model = network()
    estimator = explainer(model, batch_size=batch_size)
    with counted(model) as images:
        measure(estimator, y=LABELS, metrics=metrics, boxes=BOXES, batch_size=5)
    n_to_fold = 2 * bool({"iauc", "dauc", "road"} & set(metrics))
    n_ends = 2 * ("dauc" in metrics)  # of 4 + 3 images, or of 7 as 5 + 2
    assert sum(images) == passes * N + n_to_fold + n_ends
    assert max(images) <= max(5, batch_size)


def test_consistency_alone_does_not_pay_for_the_estimators_own_method():
    model = network()
    estimator = explainer(model, method="scorecam")
    with counted(model) as images:
        measure(estimator, metrics="consistency")
    assert sum(images) == 2 * N


def test_maps_without_the_relu_share_the_pass():
    model = network()
    params = {"iauc": {"n_steps": N_STEPS, "relu": False}}
    estimator = explainer(model)
    with counted(model) as images:
        result = measure(estimator, metric_params=params, metrics=("adcc", "iauc", "dauc"))
    assert sum(images) == (2 * N_STEPS + 1) * N + 2 + 2  # to fold, and what deletion ends at
    without = by_hand(model, IMAGES, method=GradCAM(relu=False))
    assert_same(result, without, names=("iauc", "dauc"))
    assert_same(result, by_hand(model, IMAGES), names=("adcc",))
    assert not np.allclose(without["iauc"], by_hand(model, IMAGES)["iauc"], atol=1e-3)
    with pytest.raises(ValueError, match="has no relu to leave out"):
        measure(explainer(), metric_params=params, method="fakecam")


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_batches_make_no_difference(batch_size):
    metrics = [name for name in ALL if name != "rank_correlation"]  # ranks turn on the last digit
    options = {"y": LABELS, "metrics": metrics, "boxes": BOXES}
    together = measure(explainer(batch_size=N), **options)
    assert_same(measure(explainer(batch_size=batch_size), **options), together)
    assert_same(measure(explainer(), batch_size=batch_size, **options), together)


@pytest.mark.parametrize("form", ["tensor", "dataset", "files", "inputs"])
def test_processes_make_no_difference(form, tmp_path):
    """Warp, noise, labels and truth are those of each image, whichever process has it."""
    options = {"y": LABELS, "target": np.array(LABELS), "boxes": BOXES}
    options["metrics"] = [name for name in ALL if name != "rank_correlation"]
    options["metric_params"] = {"iauc": {"n_steps": 4}, "road": {"percentiles": (30,)}}
    X, estimator = IMAGES, explainer()
    if form == "dataset":
        X = torch.utils.data.TensorDataset(IMAGES, torch.tensor(LABELS))
        X.targets, options["y"] = LABELS, None
    if form == "files":
        X = [tmp_path / f"{i}.png" for i in range(N)]
        for path, image in zip(X, IMAGES, strict=True):
            Image.fromarray(image[0].mul(40).add(128).clamp(0, 255).byte().numpy()).save(path)
        model = nn.Sequential(nn.Conv2d(3, 1, 1), *network())
        estimator = explainer(model, target_layer="6", image_size=16, X=None)
    if form == "inputs":
        X = {"image": IMAGES, "vector": torch.arange(2.0 * N).view(N, 2)}
        model = network(ImageAndVector)
        options["metrics"] = ["adcc", "iauc", "consistency", "accuracy"]
        estimator = explainer(model, X=X, image_input="image", target_layer="conv")
    one, two = (measure(estimator, X, n_jobs=n_jobs, **options) for n_jobs in (None, 2))
    assert list(one) == list(two)
    assert_same(two, one, atol=1e-6)
    if "road" in one:  # the noise counts
        other = measure(estimator, X, random_state=1, **options)
        assert not np.allclose(other["road"], one["road"])


def test_processes_warn_once_of_constant_maps():
    model = network()
    nn.init.zeros_(model[-1].weight)
    estimator = explainer(model)
    with pytest.warns(UserWarning, match="7 of 7 images have a constant map") as caught:
        measure(estimator, metrics="consistency", n_jobs=2)
    assert len(caught) == 1


def test_many_passes_are_folded_and_in_channels_last(monkeypatch):
    """Those of the causal metrics; the normalisation is then not computed at all."""
    seen = []
    normalize = torch.batch_norm

    def watched(x, *args, **kwargs):
        seen.append(len(x))
        return normalize(x, *args, **kwargs)

    monkeypatch.setattr(torch, "batch_norm", watched)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()  # fmt: skip
    formats = []
    model[3].register_forward_pre_hook(
        lambda module, args: formats.append(
            args[0].is_contiguous(memory_format=torch.channels_last)
        )
    )
    images = IMAGES.expand(-1, 3, -1, -1)
    estimator = explainer(model, X=images, target_layer="3", batch_size=N)
    seen.clear()
    formats.clear()
    measure(estimator, images, metrics=("iauc", "dauc"))
    assert seen == [N, 1]  # the explanation, and the pass that the folding is learnt from
    assert all(formats[3:])


def test_nothing_of_a_batch_outlives_it(monkeypatch):
    estimator, batches = explainer(batch_size=2), []
    original = estimator.explain_inputs_by

    def watched(inputs, *args, **options):
        if len(inputs) and len(options["methods"]) == 2:  # the first pass of a batch
            assert all(ref() is None for refs in batches for ref in refs)
            batches.append([])
        maps, output = original(inputs, *args, **options)
        batches[-1] += map(weakref.ref, [inputs, *maps, output])
        return maps, output

    monkeypatch.setattr(estimator, "explain_inputs_by", watched)
    result = measure(estimator, y=LABELS, metrics=ALL, boxes=BOXES)
    assert len(batches) == 4 and min(map(len, batches)) >= 4
    assert all(ref() is None for refs in batches for ref in refs)
    assert all(values.base is None for values in result.values())


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
        explainer(model),
        metrics=metrics,
        target=lambda output: output[:, 1].flatten(1).mean(1) if output.ndim > 2 else output[:, 1],
    )
    assert tuple(result) == metrics
    assert all(np.isfinite(values).all() for values in result.values())
    if shape == "classes":
        assert_same(result, by_hand(model, IMAGES, [1] * N), names=metrics)


# What is wrong


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
            "heatmap_ratio, pointing_game: needs boxes or masks",
        ),
        (
            {"metrics": ["adcc", "coherency"], "target": lambda output: output[:, 0]},
            "adcc, average_drop: a target that is no class, such as a callable.* give score=",
        ),
        ({"target": TopK(2)}, "one class per image"),
        ({"target": np.zeros((N, 2), dtype=int)}, "one class per image"),
        ({"target": [0, 1]}, "one per image|for 7 images"),
        ({"target": [9] * N}, "labels that were not seen"),
        ({"metric_params": {"iuac": {}}}, r"options for what is no metric: \['iuac'\]"),
        ({"metric_params": {"dauc": {"n_steps": 9}}}, r"dauc has no options \['n_steps'\]"),
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


# Truths


def images_of_many_sizes(tmp_path=None):
    sizes = [(16, 16), (20, 30), (33, 9), (8, 8), (50, 24)]
    numbers = np.random.default_rng(0)
    images = [
        Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes
    ]
    boxes = [
        [[1, 2, 9, 14.5]],
        [[5, 0, 25, 20]],
        [[0, 3, 9, 30], [2, 2, 3, 3]],
        [[0, 0, 8, 8]],
        [],
    ]
    if tmp_path is None:
        return images, boxes, sizes
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return paths, boxes, sizes


LOCATED = ("heatmap_ratio", "inside_outside_ratio", "pointing_game", "localization_accuracy")


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
@pytest.mark.parametrize("form", ["images", "files"])
def test_boxes_are_in_pixels_of_each_image(resize, form, tmp_path):
    X, boxes, _ = images_of_many_sizes(tmp_path if form == "files" else None)
    model = network(in_channels=3)
    estimator = explainer(model, X=X, image_size=16, resize=resize, batch_size=2)
    params = {"localization_accuracy": {"threshold": 0.4}}
    result = measure(estimator, X, metrics=LOCATED, boxes=boxes, metric_params=params)
    framed = estimator.explain(X, frame="image")
    expected = of_truth(framed[:4], boxes[:4], threshold=0.4)
    assert_same({name: result[name][:4] for name in LOCATED}, expected)
    # The last one has no objects.
    assert [result[name][4] for name in LOCATED[::2]] == [0, 0]
    assert result["localization_accuracy"][4] == 0 and np.isnan(result["inside_outside_ratio"][4])


def test_masks_of_each_image():
    X, boxes, sizes = images_of_many_sizes()
    estimator = explainer(network(in_channels=3), X=X, image_size=16, batch_size=2)
    masks = [np.random.default_rng(i).random(size) > 0.5 for i, size in enumerate(sizes)]
    result = measure(estimator, X, metrics=LOCATED[:3], masks=masks, boxes=boxes)
    framed = estimator.explain(X, frame="image")
    for i, (map_, mask) in enumerate(zip(framed, masks, strict=True)):
        inside, outside = map_[mask], map_[~mask]
        ratio = inside.sum() / map_.sum()
        assert result["heatmap_ratio"][i] == pytest.approx(ratio, abs=1e-5)
        means = inside.mean() / outside.mean()
        assert result["inside_outside_ratio"][i] == pytest.approx(means, rel=1e-4)
        assert result["pointing_game"][i] == mask.flat[map_.argmax()]
    as_tensors = measure(
        estimator, X, metrics=LOCATED[:3], masks=[torch.tensor(mask) for mask in masks]
    )
    assert_same(as_tensors, result)


@pytest.mark.parametrize(
    "form", [lambda m: m * 255, lambda m: m.astype(int) * 7, lambda m: m.astype(float)]
)
def test_masks_are_what_is_not_zero(form):
    masks = np.random.default_rng(0).random((N, 16, 16)) < 0.4
    metrics = ("heatmap_ratio", "inside_outside_ratio", "pointing_game")
    expected = measure(explainer(), metrics=metrics, masks=masks)
    given = [form(mask.astype(np.uint8)) for mask in masks]
    assert_same(measure(explainer(), metrics=metrics, masks=given), expected, atol=0)


def test_masks_that_are_none():
    for mask, message in ((np.full((16, 16), 255.0), "beyond"), (np.full((16, 16), "a"), "<U1")):
        with pytest.raises(ValueError, match=f"A mask must be bool, .*{message}"):
            measure(explainer(), metrics="heatmap_ratio", masks=[mask] * N)


def test_a_data_set_that_knows_its_labels():
    model = network()
    data = torch.utils.data.TensorDataset(IMAGES, torch.tensor(LABELS))
    data.targets = LABELS
    result = measure(explainer(model), data, metrics="accuracy")
    assert_array_equal(result["accuracy"], model(IMAGES).argmax(1).numpy() == LABELS)


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


def test_truths_that_do_not_vary_in_number():
    """Arrays of one box an image, and of masks."""
    estimator, boxes = explainer(), np.array([of[0] for of in BOXES])
    result = measure(estimator, metrics=LOCATED, boxes=boxes)
    assert_same(result, of_truth(explainer().explain(IMAGES), boxes[:, None]))
    masks = box_masks(torch.tensor(boxes[:, None], dtype=torch.float32), (16, 16))
    assert_same(measure(estimator, metrics=LOCATED[:3], masks=masks), result, names=LOCATED[:3])


def test_options_reach_their_metric():
    params = {"pointing_game": {"tolerance": 99}, "localization_accuracy": {"iou_threshold": 0.0}}
    result = measure(explainer(), metrics=LOCATED, boxes=BOXES, metric_params=params)
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


# Summaries


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


def test_what_is_not_finite_is_left_out():
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


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_if_wanted(progress, capsys):
    measure(explainer(), metrics="complexity", progress=progress)
    assert ("evaluate" in capsys.readouterr().err) == progress
