"""Why it failed: which images are drawn, in which order, and what speaks for both classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from displayed import titles
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.utils.data import Dataset

from sklcam import CAMExplainer, FailuresDisplay
from sklcam.explain import ExplanationWarning
from sklcam.images import ImageDataset

CLASSES = ["red", "green", "blue"]
# How much there is of red, green and blue: the means are the logits.
SHARES = [[3, 1, 2], [1, 4, 2], [2, 1, 8], [5, 1, 1], [2, 6, 1], [1, 2.5, 3], [4, 3, 1]]
TRUE = ["green", "green", "red", "red", "blue", "red", "blue"]
WRONG = [0, 2, 4, 5, 6]


def images(shares=SHARES):
    X = torch.zeros(len(shares), 3, 4, 4)
    for i, row in enumerate(shares):
        for channel, amount in enumerate(row):
            X[i, channel, channel] = 4.0 * amount  # a row of four of its own
    return X


def explainer(**options):
    network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    options = {"target_layer": "0", "classes": CLASSES, "batch_size": 2, "verbose": 0, **options}
    return CAMExplainer(network.eval(), **options).fit(images())


def by_hand():
    """The softmax of the shares, of the wrong rows, the surest first."""
    odds = np.exp(np.array(SHARES, float))
    chances = odds / odds.sum(axis=1, keepdims=True)
    assert [CLASSES[i] != name for i, name in zip(chances.argmax(1), TRUE, strict=True)] == [
        i in WRONG for i in range(len(TRUE))
    ]
    rows = sorted(WRONG, key=lambda i: -chances[i].max())
    pairs = [(chances[i].max(), chances[i, CLASSES.index(TRUE[i])]) for i in rows]
    return rows, pairs


def test_the_surest_errors_come_first():
    rows, pairs = by_hand()
    assert rows == [2, 4, 6, 0, 5]
    display = FailuresDisplay.from_estimator(explainer(), images(), TRUE)
    assert display.rows_.tolist() == rows and display.n_wrong_ == 5
    assert_allclose(display.probabilities, pairs, rtol=1e-5)
    assert display.predicted == ["blue", "green", "red", "red", "blue"]
    assert display.true == ["red", "blue", "blue", "green", "red"]
    assert display.axes_.shape == display.ims_.shape == (5, 3)
    # The odds are e^6, e^-1 and 1.
    assert titles(display.axes_[0]) == ["image 2", "predicted (1.00):\nblue", "true (0.00):\nred"]
    assert titles(display.axes_[3]) == ["image 0", "predicted (0.67):\nred", "true (0.09):\ngreen"]


@pytest.mark.parametrize("method", [None, "scorecam"])
def test_maps_are_those_of_each_class_alone(method):
    fitted, X = explainer(), images()
    display = FailuresDisplay.from_estimator(fitted, X, TRUE, n_images=3, method=method)
    assert display.rows_.tolist() == [2, 4, 6] and display.n_wrong_ == 5
    for row, i in enumerate(display.rows_):
        for maps, name in (
            (display.maps_predicted, display.predicted[row]),
            (display.maps_true, display.true[row]),
        ):
            (alone,) = fitted.explain(X[i : i + 1], target=name, method=method)
            assert_allclose(maps[row], alone, atol=1e-6)
            if method is None:  # of each class its own row of pixels is hot, and nothing else
                assert (maps[row][CLASSES.index(name)] == 1).all()
                assert np.count_nonzero(maps[row]) == 4
    assert_array_equal(display.images[0], X[2].permute(1, 2, 0) / X[2].max())


def test_maps_are_of_the_images_own_sizes():
    fitted = explainer(image_size=4, mean=0.0, std=1 / 16)
    wide = np.zeros((2, 4, 8, 3), dtype=np.uint8)
    wide[0, 0, :, 0] = wide[1, 1, :, 1] = 160
    wide[0, 3, :, 2] = wide[1, 0, :, 0] = 20
    X = ImageDataset(wide, channels="last")
    display = FailuresDisplay.from_estimator(fitted, X, ["blue", "green"])
    (alone, _) = fitted.explain(X, target="red", frame="image")
    assert display.images[0].shape == (4, 8, 3) and display.maps_predicted[0].shape == (4, 8)
    assert_array_equal(display.maps_predicted[0], alone)
    assert display.rows_.tolist() == [0]


def test_equal_errors_stay_in_their_order_and_few_are_drawn_as_they_are():
    X = images([[2, 3, 1], [2, 1, 3], [1, 2, 3], [5, 1, 1]])
    display = FailuresDisplay.from_estimator(explainer(), X, ["red"] * 4, n_images=100)
    assert np.ptp(display.probabilities[:2]) > 0.4 and np.ptp(display.probabilities[:2, 0]) == 0
    assert display.rows_.tolist() == [0, 1, 2] and len(display.images) == 3


def test_labels_are_numbers_or_names_of_classes():
    fitted = explainer(classes=None)
    numbers = [CLASSES.index(name) for name in TRUE]
    display = FailuresDisplay.from_estimator(fitted, images(), numbers, n_images=1)
    assert display.predicted == ["2"] and display.true == ["0"]
    network = explainer().model
    display = FailuresDisplay.from_estimator(network, images(), numbers, n_images=1)
    assert display.rows_.tolist() == [2]


def test_one_logit_of_two_classes():
    network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    weight, bias = torch.tensor([[-1.0, 1, 0]]), torch.zeros(1)
    network[-1].load_state_dict({"weight": weight, "bias": bias})
    options = {"classes": ["red", "green"], "task": "binary", "target_layer": "0", "verbose": 0}
    X = images([[1, 3, 0], [4, 1, 0], [1, 4, 0]])
    fitted = CAMExplainer(network.eval(), **options).fit(X)
    display = FailuresDisplay.from_estimator(fitted, X, ["red", "green", "green"])
    assert display.rows_.tolist() == [1, 0]
    likely = 1 / (1 + np.exp([-3, -2]))
    assert_allclose(display.probabilities, np.stack([likely, 1 - likely], axis=1), rtol=1e-5)
    (alone,) = fitted.explain(X[1:2], target="green")
    assert_array_equal(display.maps_true[0], alone)


def test_an_output_that_is_nan_is_neither_right_nor_wrong():
    X = images()
    X[2, 2] = 3e38  # which is more than a float holds once it is added up
    true = [*TRUE[:2], "green", *TRUE[3:]]  # an argmax of NaN would be the first, red
    with pytest.warns(ExplanationWarning, match="1 of 7 outputs of the network are NaN"):
        display = FailuresDisplay.from_estimator(explainer(), X, true)
    assert display.rows_.tolist() == [4, 6, 0, 5] and display.n_wrong_ == 4


class Read(Dataset):
    """Images that know how often they were read, and may change each time."""

    def __init__(self, changing):
        self.changing, self.reads = changing, []

    def __len__(self):
        return len(SHARES)

    def __getitem__(self, i):
        self.reads.append(i)
        # In the place of red there is green once it has been seen.
        is_other = self.changing and i and self.reads.count(i) > 1
        return images()[i].roll(1, 0) if is_other else images()[i]


def test_only_those_that_are_drawn_are_read_again():
    X = Read(changing=False)
    FailuresDisplay.from_estimator(explainer(), X, TRUE, n_images=2)
    assert [X.reads.count(i) for i in range(1, 7)] == [1, 2, 1, 2, 1, 1]


def test_images_that_change_are_refused():
    with pytest.raises(ValueError, match="other probabilities when it is read again, by 1"):
        FailuresDisplay.from_estimator(explainer(), Read(changing=True), TRUE)


def test_what_is_there_already_on_given_axes():
    import matplotlib.pyplot as plt

    pictures, maps = np.full((2, 6, 6), 0.5), np.ones((2, 6, 6)) * np.linspace(0, 1, 6)
    figure, axes = plt.subplots(2, 3)
    display = FailuresDisplay.from_predictions(
        pictures,
        maps,
        maps[:, ::-1],
        predicted=[1, 0],
        true=[0, 1],
        names="ab",
        ax=axes,
        kind="map",
    )
    assert display.figure_ is figure and display.rows_ is None
    assert_array_equal(display.ims_[1, 2].get_array(), maps[1, ::-1])
    assert titles(display.axes_[1]) == ["b", "predicted:\n0", "true:\n1"]
    assert titles(display.plot(colorbar=False).axes_[0])[0] == "a" and display.colorbar_ is None
