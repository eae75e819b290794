"""Evaluators: an observer sees each batch once, in the pass that measures it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluations import BOXES, IMAGES, LABELS, N, by_hand, counted, explainer, measure, network
from numpy.testing import assert_allclose, assert_array_equal

from sklcam.cam import GradCAM
from sklcam.metrics import Evaluator, causal_curves, default_metrics
from sklcam.training import ViewSampler

PICTURES = [
    np.random.default_rng(i).integers(0, 256, (20 + i, 18, 3), dtype=np.uint8) for i in range(6)
]


def of_pictures(**options):
    return explainer(network(in_channels=3), X=None, image_size=16, **options)


def look(measurement):
    """What a report takes of a batch."""
    return {
        "rows": measurement.rows,
        "maps": measurement["maps"].numpy(),
        "sizes": [tuple(original.shape) for original in measurement.batch.originals],
        "firsts": [int(original[0, 0, 0]) for original in measurement.batch.originals],
        "sparsity": measurement["sparsity"].numpy(),
        "predicted": measurement["predictions"],
    }


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_observers_see_images_maps_and_values_in_their_order(n_jobs):
    from PIL import Image

    X = [Image.fromarray(picture) for picture in PICTURES]
    estimator = of_pictures(batch_size=2)
    evaluator = Evaluator(estimator, X, metrics="sparsity", needs=["maps"], originals=True)
    result, observed = evaluator.run(observe=look, n_jobs=n_jobs, progress=False)
    assert [i for seen in observed for i in seen["rows"]] == list(range(6))
    maps = np.concatenate([seen["maps"] for seen in observed])
    assert_allclose(maps, estimator.explain(X), atol=1e-5)  # of other batches, in float32
    sizes = [size for seen in observed for size in seen["sizes"]]
    assert sizes == [(3, 20 + i, 18) for i in range(6)]
    firsts = [first for seen in observed for first in seen["firsts"]]
    assert firsts == [int(picture[0, 0, 0]) for picture in PICTURES]
    values = np.concatenate([seen["sparsity"] for seen in observed])
    assert_allclose(values, result["sparsity"], atol=1e-6)
    predicted = np.concatenate([seen["predicted"] for seen in observed])
    outputs = [estimator.output_of(inputs) for inputs in estimator.iter_inputs(X)]
    assert_array_equal(predicted, torch.cat(outputs).argmax(1))


def test_what_an_observer_asks_for_changes_no_number():
    names = ("adcc", "iauc", "consistency")
    params = {"iauc": {"n_steps": 4}}
    expected = measure(explainer(), metrics=names, metric_params=params)
    evaluator = Evaluator(
        explainer(), IMAGES, metrics=names, metric_params=params, needs=["raw_maps"]
    )
    result, raw = evaluator.run(observe=lambda m: m["raw_maps"].numpy(), progress=False)
    for name, values in expected.items():
        assert_array_equal(result[name], values)
    assert_allclose(np.concatenate(raw), explainer().explain(IMAGES, normalize=False), atol=1e-6)


def test_all_maps_of_a_batch_are_from_one_pass():
    """Scaled, raw, without the ReLU, and consistency's own."""
    model = network()
    estimator = explainer(model, batch_size=4)
    seen = []
    handle = model[0].register_forward_hook(lambda _, args, output: seen.append(len(output)))
    evaluator = Evaluator(
        estimator,
        IMAGES,
        metrics="complexity",
        metric_params={"iauc": {"relu": False}, "consistency": {"method": "layercam"}},
        needs=["maps", "raw_maps", "curve_maps", "view_maps"],
    )
    names = ("maps", "raw_maps", "curve_maps", "view_maps")
    _, observed = evaluator.run(
        observe=lambda m: {name: m[name].numpy() for name in names}, progress=False
    )
    handle.remove()
    assert seen == [4, 3]
    maps = {name: np.concatenate([batch[name] for batch in observed]) for name in names}
    expected = {
        "maps": {},
        "raw_maps": {"normalize": False},
        "curve_maps": {"method": GradCAM(relu=False)},
        "view_maps": {"method": "layercam"},
    }
    for name, options in expected.items():
        assert_allclose(maps[name], explainer().explain(IMAGES, **options), atol=1e-6)


def test_observers_see_curves_and_views():
    """What the displays of curves and views draw."""
    params = {"iauc": {"n_steps": 4}}
    evaluator = Evaluator(
        explainer(batch_size=N),
        IMAGES,
        metrics=("iauc", "dauc", "consistency"),
        metric_params=params,
        random_state=3,
    )
    names = ("insertion_curve", "deletion_curve", "warp", "view_of_maps", "maps_of_view")
    result, [seen] = evaluator.run(
        observe=lambda m: {name: m[name] for name in names}, progress=False
    )
    model = network()
    maps = torch.tensor(explainer().explain(IMAGES))
    classes = model(IMAGES).argmax(1)

    @torch.no_grad()
    def score(images, rows):
        return model(images).softmax(1)[torch.arange(len(rows)), classes[rows]]

    curves = causal_curves(score, IMAGES, maps, n_steps=4)
    assert_allclose(seen["insertion_curve"].insertion, curves.insertion, atol=1e-6)
    assert_allclose(seen["deletion_curve"].deletion, curves.deletion, atol=1e-6)
    seed = int(np.random.RandomState(3).randint(2**31 - 1))
    warp = ViewSampler()(N, size=(16, 16), generator=torch.Generator().manual_seed(seed))
    assert seen["warp"].matrix.equal(warp.matrix)
    without = torch.tensor(explainer().explain(IMAGES, method=GradCAM(relu=False)))
    assert_allclose(seen["view_of_maps"], warp(without), atol=1e-6)
    assert_allclose(result["consistency"], by_hand(model, IMAGES, seed=3)["consistency"], atol=1e-5)


def test_an_evaluator_is_ready_before_any_work():
    model = network()
    estimator = explainer(model)
    with counted(model) as passes:
        evaluator = Evaluator(estimator, IMAGES, LABELS, metrics=("accuracy", "pointing_game"),
                              boxes=BOXES)  # fmt: skip
    assert not passes and evaluator.explainer is estimator and len(evaluator.opened) == N
    assert list(evaluator.metrics) == ["accuracy", "pointing_game"]
    assert_array_equal(evaluator.labels, LABELS)
    again = [evaluator.run(progress=False)[0] for _ in range(2)]
    assert_array_equal(again[0]["pointing_game"], again[1]["pointing_game"])


def test_maps_that_were_not_asked_for():
    evaluator = Evaluator(explainer(), IMAGES, metrics="complexity")
    with pytest.raises(ValueError, match=r"'raw_maps' comes from the first pass .* needs="):
        evaluator.run(observe=lambda m: m["raw_maps"], progress=False)
    with pytest.raises(KeyError, match="'sparsity' is neither a quantity nor a metric"):
        evaluator.run(observe=lambda m: m["sparsity"], progress=False)
    with pytest.raises(ValueError, match=r"no metric or quantity 'mapz'\. Did you mean: maps"):
        Evaluator(explainer(), IMAGES, metrics="complexity", needs=["mapz"])


def test_default_metrics():
    for options, n_metrics in (({}, 4), ({"labels": True}, 5), ({"confidence": False}, 3)):
        names = default_metrics(**options)
        assert len(names) == n_metrics and ("accuracy" in names) == ("labels" in options)
    without = default_metrics(confidence=False)
    measure(explainer(), metrics=without, target=lambda output: output[:, 0], metric_params={})


def test_an_image_has_its_view_whichever_batches_are_asked():
    """Views that nobody asked for are left out, and not given to the next images."""

    def matrices(asked):
        evaluator = Evaluator(explainer(batch_size=2), IMAGES, metrics="complexity")
        _, seen = evaluator.run(
            observe=lambda m: m["warp"].matrix if m.rows.start in asked else None, progress=False
        )
        return [None if matrix is None else matrix.tolist() for matrix in seen]

    every = matrices({0, 2, 4, 6})
    some = matrices({2, 6})
    assert some == [None, every[1], None, every[3]]
