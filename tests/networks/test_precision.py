"""Precision: half is raised to float32, and nothing else is touched."""

import pytest
import torch

from sklcam.networks.precision import at_least_float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised(dtype):
    raised = at_least_float32(torch.tensor([0.5, 3.0], dtype=dtype))
    assert raised.dtype == torch.float32
    assert raised.tolist() == [0.5, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_returned_as_it_is(dtype):
    tensor = torch.rand(3, dtype=dtype)
    assert at_least_float32(tensor) is tensor
