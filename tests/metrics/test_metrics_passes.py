"""What an evaluation costs: images read, passes of the network, processes, memory."""

from __future__ import annotations

import weakref

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from evaluations import (
    ALL,
    BOXES,
    IMAGES,
    LABELS,
    N_STEPS,
    N,
    assert_same,
    by_hand,
    counted,
    explainer,
    measure,
    network,
)
from PIL import Image
from small_networks import ImageAndVector
from torch import nn

from sklcam.cam import GradCAM, Occlusion
from sklcam.metrics import Evaluator
from sklcam.plotting import CausalCurveDisplay


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


def test_masked_images_are_not_explained_for_their_confidence():
    """Occlusion runs the network many times for a map: for one of each image alone."""
    model = network()
    occlusion = Occlusion(patch=8, stride=8)
    counts = []
    for metric in ("complexity", "average_drop", "coherency"):
        estimator = explainer(model, method=occlusion)
        with counted(model) as images:
            measure(estimator, metrics=metric, metric_params={})
        counts.append(sum(images))
    explained, dropped, coherent = counts
    assert dropped == explained + N and coherent == 2 * explained and explained > 2 * N


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
    with pytest.raises(ValueError, match="has no ReLU to leave out"):
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
    original = estimator.explain_batch

    def watched(inputs, *args, **options):
        if len(options["methods"]) == 3:  # the first pass of a batch
            assert all(ref() is None for refs in batches for ref in refs)
            batches.append([])
        maps, output, target = original(inputs, *args, **options)
        batches[-1] += map(weakref.ref, [inputs.images, *maps, output])
        return maps, output, target

    monkeypatch.setattr(estimator, "explain_batch", watched)
    result = measure(estimator, y=LABELS, metrics=ALL, boxes=BOXES)
    assert len(batches) == 4 and min(map(len, batches)) >= 4
    assert all(ref() is None for refs in batches for ref in refs)
    assert all(values.base is None for values in result.values())


# Images are read once


class Counting(torch.utils.data.Dataset):
    """Twelve images, of sizes of their own, and how often each was read."""

    def __init__(self):
        self.reads = dict.fromkeys(range(12), 0)

    def __len__(self):
        return 12

    def __getitem__(self, i):
        self.reads[i] += 1
        return np.random.default_rng(i).integers(0, 256, (20 + i, 18, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("metrics", "options", "passes"),
    [
        ("sparsity", {}, 1),
        ("accuracy", {"y": LABELS + LABELS[:5], "method": "scorecam"}, 1),
        (("sparsity", "consistency"), {}, 2),
        (("heatmap_ratio", "localization_accuracy"), {"boxes": [[[0, 0, 8, 8]]] * 12}, 1),
        (("adcc", "consistency", "heatmap_ratio"), {"masks": "own"}, 3),
    ],
)
def test_each_image_is_read_once_and_explained_once(metrics, options, passes):
    """Two more reads of an image at most tell what X holds."""
    if options.get("masks") == "own":
        options = {"masks": [np.ones((20 + i, 18), dtype=bool) for i in range(12)]}
    model = network(in_channels=3)
    estimator = explainer(model, X=None, image_size=16)
    X = Counting()
    trunk = []
    handle = model[0].register_forward_hook(lambda _, args, output: trunk.append(len(output)))
    measure(estimator, X, metrics=metrics, n_jobs=None, metric_params={}, **options)
    handle.remove()
    assert sum(X.reads.values()) <= 12 + 2 and min(X.reads.values()) == 1
    assert trunk == [4] * 3 * passes


@pytest.mark.parametrize(
    ("metrics", "passes"),
    [(("adcc",), 1 + 3), ("sparsity", 1), (("adcc", "iauc"), 1 + 3 * (1 + N_STEPS))],
)
def test_several_methods_share_the_first_pass(metrics, passes):
    """And the numbers are those of each alone."""
    model = network()
    estimator = explainer(model, batch_size=4)
    methods = ["gradcam", "layercam", "xgradcam"]
    alone = [measure(estimator, metrics=metrics, method=method) for method in methods]
    trunk = []
    handle = model[0].register_forward_hook(lambda _, args, output: trunk.append(len(output)))
    together = measure(estimator, metrics=metrics, method=methods)
    handle.remove()
    n_to_fold = 2 * 3 * ("iauc" in metrics)
    assert sum(trunk) == passes * N + n_to_fold
    assert list(together) == methods
    for method, expected in zip(methods, alone, strict=True):
        assert together[method].keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(together[method][name], values, rtol=1e-6, atol=1e-7)


def test_several_methods_by_names_of_ones_own_and_in_processes():
    estimator = explainer(network(), batch_size=4)
    methods = {"plain": "gradcam", "signed": GradCAM(relu=False)}
    alone = [measure(estimator, metrics="adcc", method=method) for method in methods.values()]
    both = measure(estimator, metrics="adcc", method=methods, n_jobs=2)
    assert list(both) == ["plain", "signed"]
    for found, expected in zip(both.values(), alone, strict=True):
        np.testing.assert_allclose(found["adcc"], expected["adcc"], rtol=1e-6)


def test_an_observer_sees_each_method():
    evaluator = Evaluator(
        explainer(network(), batch_size=4), IMAGES, metrics="sparsity", method=["gradcam", "cam"],
        needs=["maps"],
    )  # fmt: skip
    _, seen = evaluator.run_each(observe=lambda measurement: measurement["maps"], progress=False)
    for method, maps in seen.items():
        expected = evaluator.explainer.explain(IMAGES, method=method)
        np.testing.assert_allclose(torch.cat(maps), expected, atol=1e-6)


def test_curves_of_several_methods_share_the_first_pass():
    model = network()
    ours = explainer(model, batch_size=N)
    with counted(model) as images:
        CausalCurveDisplay.from_estimator(
            ours, IMAGES, methods=["gradcam", "layercam"], n_steps=N_STEPS
        )
    plt.close("all")
    with counted(model) as of_one:
        CausalCurveDisplay.from_estimator(ours, IMAGES, methods="gradcam", n_steps=N_STEPS)
    plt.close("all")
    assert sum(images) == 2 * sum(of_one) - N
