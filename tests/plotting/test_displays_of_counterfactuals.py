"""For and against a class, by a network whose every number can be worked out."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from displayed import titles
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from sklcam import CAMExplainer
from sklcam.plotting import CounterfactualDisplay

IMAGE = torch.zeros(1, 3, 4, 4)
IMAGE[0, 0, :2] = 1.0  # red speaks for the first class,
IMAGE[0, 1, 3, :2] = 1.0  # green for the second, and against the first


def explainer(**options):
    network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    weight, bias = torch.tensor([[4.0, -8, 0], [-4, 8, 0]]), torch.zeros(2)
    network[-1].load_state_dict({"weight": weight, "bias": bias})
    options = {"target_layer": "0", "classes": ["warm", "cold"], "verbose": 0, **options}
    return CAMExplainer(network.eval(), **options).fit(IMAGE)


def drawn(target=None, **options):
    return CounterfactualDisplay.from_estimator(
        explainer(), IMAGE, target=target, base=torch.zeros_like, **options
    )


def test_what_speaks_against_a_class_is_covered():
    display = drawn()
    for_, against = IMAGE[0, 0].numpy(), IMAGE[0, 1].numpy()
    assert_array_equal(display.maps_for[0], for_)
    assert_array_equal(display.maps_against[0], against)
    assert_array_equal(display.images[0], IMAGE[0].permute(1, 2, 0))
    covered = IMAGE[0] * torch.tensor([1.0, 0, 1])[:, None, None]
    assert_array_equal(display.covered[0], covered.permute(1, 2, 0))
    # The logits are 2 - 1 and -2 + 1, and without the green 2 and -2.
    expected = torch.tensor([2.0, 4.0]).sigmoid()
    assert_allclose(display.scores, expected[None], rtol=1e-6)
    assert titles(display.axes_) == ["warm", "for", "against", "covered: 0.88 to 0.98"]
    plt.close(display.figure_)


def test_for_the_other_class_the_maps_change_places():
    display = drawn("cold", kind="map", colorbar=False)
    assert_array_equal(display.maps_for[0], IMAGE[0, 1].numpy())
    assert_array_equal(display.maps_against[0], IMAGE[0, 0].numpy())
    # A fifth of 16 pixels are 4 of the 8 that are red: the logits are 1 - 1 and -1 + 1.
    assert_allclose(display.scores, torch.tensor([[-2.0, 0.0]]).sigmoid(), rtol=1e-6)
    assert display.labels == ["cold"] and display.colorbar_ is None
    plt.close(display.figure_)


def test_the_share_and_the_blur():
    display = CounterfactualDisplay.from_estimator(explainer(), IMAGE, target="cold", share=0.5)
    assert ((display.covered[0] != display.images[0]).any(axis=2) == IMAGE[0, 0].numpy()).all()
    plt.close(display.figure_)


def test_where_nothing_speaks_against_it_nothing_is_covered():
    image = IMAGE * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    with pytest.warns(UserWarning, match="blank"):
        display = CounterfactualDisplay.from_estimator(explainer(), image)
    assert_array_equal(display.covered[0], display.images[0])
    assert display.scores[0, 0] == display.scores[0, 1]
    plt.close(display.figure_)


def test_scores_that_are_no_probabilities():
    display = drawn(lambda output: output[:, 0])
    assert_allclose(display.scores, [[1.0, 2.0]])
    assert titles(display.axes_)[0] == "" and titles(display.axes_)[3] == "covered: 1.00 to 2.00"
    plt.close(display.figure_)


def test_grey_images_and_given_axes():
    figure, axes = plt.subplots(2, 4)
    images, maps = np.full((2, 6, 6), 0.5), np.ones((2, 6, 6)) * np.linspace(0, 1, 6)
    display = CounterfactualDisplay.from_predictions(
        images, maps, maps[:, ::-1], images / 2, ax=axes
    )
    assert display.axes_.shape == display.ims_.shape == (2, 4)
    assert_array_equal(display.ims_[1, 3].get_array(), images[1] / 2)
    plt.close(figure)
