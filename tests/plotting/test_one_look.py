"""What displays cost: images that are read, and passes of the network."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from small_networks import SmallNet, digits
from torch.utils.data import Dataset

from sklcam import CAMExplainer, EmbeddingCAMExplainer
from sklcam.cam import TopK
from sklcam.plotting import (
    CAMDisplay,
    CausalCurveDisplay,
    ConsistencyDisplay,
    LocalizationDisplay,
    RetrievalDisplay,
    ViewPairDisplay,
)

N = 12
IMAGES, LABELS = digits(N)
BOXES = np.tile([1.0, 1.0, 6.0, 7.0], (N, 1, 1))


class Counted(Dataset):
    """Images that count how often each of them is read."""

    targets = LABELS

    def __init__(self, images=IMAGES):
        self.images = images
        self.reads = Counter()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.reads[i] += 1
        return self.images[i], 0

    def assert_each_was_read_once(self):
        """Each image once, but for the looks at the first that find out what kind they are."""
        assert [self.reads[i] for i in range(1, len(self))] == [1] * (len(self) - 1)
        assert 1 <= self.reads[0] <= 3


@contextmanager
def counted_passes(network):
    """Count the images that go through the network's first layer."""
    passes = []
    handle = network[0].register_forward_hook(lambda module, inputs, _: passes.append(inputs[0]))
    yield lambda: sum(map(len, passes))
    handle.remove()


@pytest.fixture
def explainer():
    torch.manual_seed(0)
    return CAMExplainer(SmallNet(), image_size=16, batch_size=5, verbose=0).fit()


def count(draw, network, data):
    with counted_passes(network) as n_passed:
        display = draw(data)
    return display, n_passed()


@pytest.mark.parametrize("frame", ["image", "input"])
def test_three_methods_from_one_look(explainer, frame):
    methods = ["gradcam", "layercam", "hirescam"]
    data = Counted()
    display, n_passed = count(
        lambda X: CAMDisplay.from_estimator(explainer, X, methods=methods, frame=frame),
        explainer.model,
        data,
    )
    data.assert_each_was_read_once()
    assert n_passed == N
    for method, maps in explainer.explain(IMAGES, method=methods, frame=frame).items():
        np.testing.assert_array_equal(np.stack(display.maps[method]), maps)


def test_each_model_looks_once(explainer):
    torch.manual_seed(1)
    other = CAMExplainer(SmallNet(), image_size=24, batch_size=4, verbose=0).fit()
    data = Counted()
    with counted_passes(explainer.model) as first, counted_passes(other.model) as second:
        CAMDisplay.from_estimator({"a": explainer, "b": other}, data)
    assert [data.reads[i] for i in range(1, N)] == [2] * (N - 1)
    assert first() == second() == N


@pytest.mark.parametrize(
    ("draw", "n_passes"),
    [
        (lambda of, X: LocalizationDisplay.from_estimator(of, X, BOXES), 1),
        (lambda of, X: ViewPairDisplay.from_estimator(of, X), 2),
        (lambda of, X: ConsistencyDisplay.from_estimator(of, X), 2),
        # Two images more to fold the network's normalisation, and one for the end of deletion in
        # each of three batches.
        (lambda of, X: CausalCurveDisplay.from_estimator(of, X, n_steps=4), 2 * 4 + (2 + 3) / N),
    ],
)
def test_one_look_of_other_displays(explainer, draw, n_passes):
    data = Counted()
    _, n_passed = count(lambda X: draw(explainer, X), explainer.model, data)
    data.assert_each_was_read_once()
    assert n_passed == pytest.approx(n_passes * N)


def test_only_neighbours_are_read_again():
    """They have to be found first, then explained, and drawn."""
    torch.manual_seed(0)
    explainer = EmbeddingCAMExplainer(SmallNet(4), "self", image_size=16, verbose=0).fit()
    found = set(explainer.explain_neighbors(IMAGES[:3], IMAGES, k=2).indices.ravel().tolist())
    data = Counted()
    display = RetrievalDisplay.from_estimator(
        explainer, IMAGES[:3], data, k=2, query_labels=LABELS[:3]
    )
    assert display.axes_.shape == (6, 3)
    others = [i for i in range(1, N) if i not in found]
    assert others and [data.reads[i] for i in others] == [1] * len(others)
    # Two looks at the first image of a selection find out what kind it is.
    assert all(3 <= data.reads[i] <= 3 + 2 for i in found - {0})


def test_pictures_are_the_networks_input_before_normalisation():
    torch.manual_seed(0)
    images = (IMAGES * 255).astype(np.uint8)
    options = {"image_size": 16, "mean": 0.4, "std": 0.2, "verbose": 0}
    explainer = CAMExplainer(SmallNet(), **options).fit()
    display = CAMDisplay.from_estimator(explainer, images[:2], frame="input")
    (inputs,) = explainer.iter_inputs(images[:2])
    for picture, given in zip(display.images, inputs, strict=True):
        np.testing.assert_allclose((picture - 0.4) / 0.2, given[0], atol=1e-5)


MANY = np.concatenate([IMAGES] * 9)


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda of: CAMDisplay.from_estimator(of, MANY), "at most 100 rows"),
        (lambda of: CAMDisplay.from_estimator(of, IMAGES, colour="red"), "no option 'colour'"),
        (lambda of: CAMDisplay.from_estimator(of, IMAGES, LABELS[:3]), "one label for each of 12"),
        (
            lambda of: LocalizationDisplay.from_estimator(of, IMAGES, BOXES, target=TopK(2)),
            "one map",
        ),
        (lambda of: ViewPairDisplay.from_estimator(of, MANY), "at most 100 rows"),
        (lambda of: LocalizationDisplay.from_estimator(of, MANY, BOXES), "at most 100 rows"),
        (lambda of: LocalizationDisplay.from_estimator(of, IMAGES, BOXES[:3]), "3 entries for 12"),
        (lambda of: RetrievalDisplay.from_estimator(of, MANY, IMAGES), "at most 100 rows"),
        (
            lambda of: RetrievalDisplay.from_estimator(of, IMAGES, MANY, query_labels=LABELS),
            "or neither",
        ),
    ],
)
def test_refusals_come_before_the_first_pass(draw, match):
    torch.manual_seed(0)
    network = SmallNet(4)
    explainer = EmbeddingCAMExplainer(network, image_size=16, verbose=0).fit(IMAGES, LABELS)
    with counted_passes(network) as n_passed, pytest.raises((ValueError, TypeError), match=match):
        draw(explainer)
    assert n_passed() == 0
