"""What checks of arguments say; that each is made where it should be is in tests/errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.utils import check_random_state

from sklcam import _validation as validation


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"),
        (3, "an int, 3"),
        ("cat", "a str, 'cat'"),
        (np.zeros((2, 3)), "an ndarray of float64 and shape (2, 3)"),
        (torch.zeros(2), "a Tensor of torch.float32 and shape (2,)"),
        ([0] * 99, "a list, [" + "0, " * 25 + "0..."),
    ],
)
def test_values_are_described_by_their_form_or_themselves(value, words):
    assert validation.describe(value) == words


def test_a_slip_is_met_by_close_names_and_else_by_all():
    assert validation.suggestion("adc", ["iauc", "adcc"]) == "Did you mean: adcc?"
    assert validation.suggestion("ssim", ["iauc", "adcc"]) == "There are: adcc, iauc."
    assert validation.suggestion(3, ["b", "a"]) == "There are: a, b."
    numbered = [f"lite{i}" for i in range(5)]
    assert validation.suggestion("lite", numbered) == "Did you mean: lite0, lite1, lite2?"


def test_a_long_list_of_names_is_cut():
    found = validation.suggestion("?", (f"layer{i}" for i in range(1000)))
    assert found.startswith("There are: layer0, layer1, layer10, ")
    assert found.endswith(" ....")
    assert len(found) < 1100


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, 5, np.float64(2)])
def test_counts_are_ints_in_their_range(value):
    with pytest.raises(ValueError, match=r"^k must be an int from 1 to 4; got "):
        validation.check_count("k", value, 1, 4)
    for good in (1, 4, np.int64(2)):
        validation.check_count("k", good, 1, 4)


@pytest.mark.parametrize(
    ("closed", "bad", "words"),
    [
        ("both", [], "from 0 to 1"),
        ("left", [1], "from 0 to below 1"),
        ("right", [0], "above 0 to 1"),
        ("neither", [0, 1], "between 0 and 1"),
    ],
)
def test_numbers_lie_in_an_open_or_closed_range(closed, bad, words):
    for value in {0, 0.5, 1} - set(bad):
        validation.check_number("x", value, 0, 1, closed=closed)
    for value in (*bad, -0.1, 1.1, np.nan, np.inf, "0.5", None):
        with pytest.raises(ValueError, match=rf"^x must be a number {words}; got"):
            validation.check_number("x", value, 0, 1, closed=closed)


def test_tensors_have_their_axes_and_pixels():
    axes = ("n_images", "height", "width")
    validation.check_tensor("maps", torch.zeros(0, 2, 2), *axes)
    validation.check_tensor("maps", torch.zeros(1, 2, 2).int(), *axes, floating=False)
    for bad in (
        torch.zeros(1, 0, 2),
        torch.zeros(1, 2, 0),
        torch.zeros(2, 2),
        torch.zeros(1, 2, 2).int(),
    ):
        with pytest.raises(ValueError, match=r"maps must be .* \(n_images, height, width\); got"):
            validation.check_tensor("maps", bad, *axes)


def test_tensors_are_alike_in_shape_and_device():
    validation.check_alike({"a": torch.zeros(2), "b": torch.ones(2)})
    with pytest.raises(ValueError, match=r"a and b must be of one shape; got \(2,\) and \(3,\)"):
        validation.check_alike({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"a and b must be on one device; got cpu and meta"):
        validation.check_alike({"a": torch.zeros(2), "b": torch.zeros(2, device="meta")})


def test_a_seed_is_itself_or_drawn():
    assert validation.draw_seed(3) == 3
    assert validation.draw_seed(np.int64(3)) == 3
    first, second = np.random.RandomState(3), np.random.RandomState(3)
    assert validation.draw_seed(first) == second.randint(2**31 - 1)
    assert validation.draw_seed(first) == second.randint(2**31 - 1)
    of_numpy = copy.deepcopy(check_random_state(None))
    assert validation.draw_seed(None) == of_numpy.randint(2**31 - 1)
