"""Images as they are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sklcam.images.pictures import to_picture


def test_bytes_become_shares_of_255():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1)
    np.testing.assert_allclose(to_picture(image), [[[0, 0.2, 1]]], rtol=1e-6)


def test_floats_in_range_stay_as_they_are():
    image = torch.tensor([0.25, 0.5, 0.75]).reshape(3, 1, 1)
    assert to_picture(image).tolist() == [[[0.25, 0.5, 0.75]]]


def test_floats_out_of_range_are_scaled_to_it():
    image = torch.tensor([[[-2.0, 0.0, 6.0]]], requires_grad=True)
    assert to_picture(image).tolist() == [[0, 0.25, 1]]


@pytest.mark.parametrize(
    ("n_channels", "shape"), [(1, (4, 5)), (2, (4, 5)), (3, (4, 5, 3)), (6, (4, 5, 3))]
)
def test_one_channel_or_two_are_grey_and_of_many_the_first_three_show(n_channels, shape):
    image = torch.rand(n_channels, 4, 5, dtype=torch.float64)
    picture = to_picture(image)
    assert picture.shape == shape
    assert picture.dtype == np.float32
    expected = image.mean(dim=0) if n_channels < 3 else image[:3].movedim(0, 2)
    np.testing.assert_allclose(picture, expected.numpy(), rtol=1e-6)
