"""Max-sensitivity and the local Lipschitz estimate: by hand, captum's and Quantus'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluations import IMAGES, N, explainer, measure
from numpy.testing import assert_allclose
from sklearn.base import clone

from sklcam.cam import RISE, GradCAM, SmoothGradCAMPlusPlus
from sklcam.metrics import get_metric, local_lipschitz, max_sensitivity

NAMES = ("max_sensitivity", "local_lipschitz")
RADIUS, N_SAMPLES = 0.3, 4
PARAMS = {"max_sensitivity": {"radius": RADIUS, "n_samples": N_SAMPLES}}
METHOD = GradCAM(relu=False)  # whose maps are never blank here
SEED = int(np.random.RandomState(0).randint(2**31 - 1))  # of random_state=0


def noise():
    """What is added to each image: uniform draws, of a generator of its own."""
    draws = [np.random.default_rng([SEED, row]) for row in range(N)]
    samples = [
        [2 * draw.random((1, 16, 16), dtype=np.float32) - 1 for draw in draws]
        for _ in range(N_SAMPLES)
    ]
    return torch.tensor(np.array(samples)) * RADIUS  # (n_samples, N, 1, 16, 16)


def maps_of(images, classes):
    return torch.tensor(explainer().explain(images, classes, method=METHOD, normalize=False))


@pytest.fixture(scope="module")
def result():
    return measure(explainer(), metrics=NAMES, metric_params=PARAMS, method=METHOD)


@pytest.fixture(scope="module")
def by_hand():
    classes = explainer().predict(IMAGES)
    maps = maps_of(IMAGES, classes)
    others = torch.stack([maps_of(IMAGES + each, classes) for each in noise()])
    return classes, maps, others


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(5)], ids=["none", "state"])
@pytest.mark.parametrize("method", [SmoothGradCAMPlusPlus(n_samples=2), RISE(4, cells=2)], ids=type)
def test_all_images_have_the_same_draws(method, random_state):
    options = {"metrics": NAMES, "metric_params": PARAMS}
    unseeded = clone(method).set_params(random_state=random_state)
    found = measure(explainer(), method=unseeded, **options)
    expected = measure(explainer(), method=clone(method).set_params(random_state=SEED), **options)
    for name in NAMES:
        assert np.isfinite(expected[name]).any()
        assert_allclose(found[name], expected[name])
    assert unseeded.random_state is random_state


def test_functions_by_hand():
    maps = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 0.0], [0.0, 0.0]]])
    others = torch.stack([maps + torch.tensor([[1.0, 0.0], [0.0, 0.0]]), maps * 2])
    assert_allclose(max_sensitivity(maps, others), [1, 1])
    assert_allclose(max_sensitivity(maps, others[:1]), [1 / 5, 1])
    distances = torch.tensor([[0.5, 4.0], [10.0, 0.5]])
    assert_allclose(local_lipschitz(maps, others, distances), [2, 2])


def test_an_evaluation_by_hand(result, by_hand):
    _, maps, others = by_hand
    changes = np.linalg.norm((others - maps).flatten(2), axis=2)
    sizes, distances = (
        np.linalg.norm(maps.flatten(1), axis=1),
        np.linalg.norm(noise().flatten(2), axis=2),
    )
    assert_allclose(result["max_sensitivity"], (changes / sizes).max(axis=0), rtol=1e-4)
    assert_allclose(result["local_lipschitz"], (changes / distances).max(axis=0), rtol=1e-4)


def test_max_sensitivity_is_captums(result, by_hand):
    metrics = pytest.importorskip("captum.metrics")
    classes = torch.tensor(by_hand[0])

    def perturbed(inputs, radius):  # each image as often as there are samples, one after the other
        return (inputs + noise().transpose(0, 1).flatten(0, 1),)

    def explained(inputs):
        of_each = classes.repeat_interleave(len(inputs[0]) // N).numpy()
        with torch.enable_grad():
            return (maps_of(inputs[0], of_each)[:, None],)

    expected = metrics.sensitivity_max(explained, IMAGES, perturbed, n_perturb_samples=N_SAMPLES)
    assert_allclose(result["max_sensitivity"], expected, rtol=1e-4)


def test_local_lipschitz_is_quantus(result, by_hand):
    similarity = pytest.importorskip("quantus.functions.similarity_func")
    options = {"norm_numerator": similarity.distance_euclidean}  # by default, not the paper's norm
    _, maps, others = by_hand
    rows = maps.flatten(1).numpy(), IMAGES.flatten(1).numpy()
    estimates = [
        similarity.lipschitz_constant(
            rows[0],
            other.flatten(1).numpy(),
            rows[1],
            (IMAGES + each).flatten(1).numpy(),
            **options,
        )
        for other, each in zip(others, noise(), strict=True)
    ]
    assert_allclose(result["local_lipschitz"], np.max(estimates, axis=0), rtol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_make_no_difference(result, batch_size):
    other = measure(
        explainer(batch_size=batch_size), metrics=NAMES, metric_params=PARAMS, method=METHOD
    )
    for name in NAMES:
        assert_allclose(other[name], result[name], rtol=1e-4)


def test_maps_of_zeros_have_nothing_to_change():
    maps, others = torch.zeros(2, 3, 3), torch.rand(4, 2, 3, 3)
    maps[1, 0, 0] = 2
    for values in (
        max_sensitivity(maps, others),
        local_lipschitz(maps, others, torch.ones(4, 2)),
    ):
        assert values.isnan().tolist() == [True, False]
    others[2, 1, 1, 1] = torch.nan
    assert max_sensitivity(maps, others).isnan().all()
    assert all(get_metric(name).may_be_undefined for name in NAMES)


def test_maps_that_never_change_are_perfectly_stable():
    result = measure(explainer(), metrics=NAMES, metric_params={}, method="uniform")
    assert not result["max_sensitivity"].any() and not result["local_lipschitz"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0}, "radius must be a finite number > 0; got 0"),
        ({"n_samples": 0}, "n_samples must be an int >= 1; got 0"),
    ],
)
def test_options_are_checked(options, message):
    for name in NAMES:
        with pytest.raises(ValueError, match=message):
            measure(explainer(), metrics=NAMES, metric_params={name: options})
