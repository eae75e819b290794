"""Raw maps become those that people see: scaled and resized, constant maps included."""

from __future__ import annotations

import pytest
import torch

from sklcam.cam import min_max, upsample


def test_min_max_by_hand_and_its_gradient():
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]]], dtype=torch.float64, requires_grad=True)
    scaled = min_max(maps)
    torch.testing.assert_close(scaled, (maps - 1) / 4)
    assert torch.autograd.gradcheck(min_max, (maps,))


@pytest.mark.parametrize("value", [0.0, 3.7, -1e5, 1e-30])
@pytest.mark.parametrize("size", [(224, 224), (30, 30)])  # 30: with rounding noise of 2e-7
def test_a_constant_map_is_zero_with_zero_gradient_also_after_resizing(value, size):
    maps = torch.full((2, 7, 7), value, requires_grad=True)
    scaled = min_max(upsample(maps, size))
    assert torch.equal(scaled, torch.zeros(2, *size))
    scaled.sum().backward()
    assert torch.equal(maps.grad, torch.zeros(2, 7, 7))


def test_a_faint_map_is_still_scaled():
    maps = torch.tensor([[[1.0, 1.0 + 1e-5]]])
    assert min_max(maps).max() == 1


def test_upsample_is_bilinear_without_aligned_corners():
    maps = torch.tensor([[[0.0, 1.0]]])
    expected = torch.tensor([[[0.0, 0.25, 0.75, 1.0]]])
    torch.testing.assert_close(upsample(maps, (1, 4)), expected)
