"""Normalisation, by hand and against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_forms import noise
from torch._subclasses import FakeTensorMode
from torchvision.transforms import v2

from sklcam.images import (
    default_statistics,
    normalize,
)


def test_normalize_by_hand():
    batch = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    out = normalize(batch, mean=(0.5, 0.1, 0.0), std=(0.25, 0.2, 2.0))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.flatten(), torch.tensor([-2.0, 0.5, 0.5]))


@pytest.mark.parametrize("kind", [tuple, list, np.array, torch.tensor])
def test_normalize_is_torchvisions_on_bytes_and_floats(rng, kind):
    batch = torch.from_numpy(noise(rng, 4, 3, 5, 6))
    mean, std = default_statistics(3)
    floats = batch.float() / 255
    out = normalize(batch, kind(mean), kind(std))
    assert torch.equal(out, normalize(floats, kind(mean), kind(std)))
    torch.testing.assert_close(out, v2.functional.normalize(floats, list(mean), list(std)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_normalize_keeps_the_dtype_of_floats(dtype):
    out = normalize(torch.ones(2, 1, 3, 3, dtype=dtype), torch.tensor([0.5]), 0.25)
    assert out.dtype == dtype
    assert (out == 2).all()


def test_normalize_passes_gradients():
    batch = torch.rand(1, 2, 2, 2, requires_grad=True)
    normalize(batch, 0.5, (0.5, 0.25)).sum().backward()
    assert batch.grad.mean(dim=(0, 2, 3)).tolist() == [2.0, 4.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_normalize_on_cuda_does_not_make_the_host_wait():
    batch = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = normalize(batch, (0.5, 0.5, 0.5), [0.5, 0.25, 0.125])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.device == batch.device
    torch.testing.assert_close(out[0, :, 0, 0].cpu(), torch.tensor([1.0, 2.0, 4.0]))


@pytest.mark.parametrize("n_channels", [1, 3, 5])
def test_normalising_by_the_default_statistics(n_channels):
    batch = torch.rand(2, n_channels, 3, 4)
    mean, std = default_statistics(n_channels)
    assert torch.equal(normalize(batch, "auto", "auto"), normalize(batch, mean, std))
    assert torch.equal(normalize(batch, "auto", 1.0), normalize(batch, mean, 1.0))


def test_default_statistics():
    assert default_statistics(3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = default_statistics(4)
    assert mean == pytest.approx([0.449] * 4)
    assert std == pytest.approx([0.226] * 4)


def test_what_is_traced_is_not_kept():
    with FakeTensorMode():
        normalize(torch.rand(1, 3, 4, 4), 0.3, 0.2)
    pixels = torch.rand(1, 3, 4, 4)
    assert torch.equal(normalize(pixels, 0.3, 0.2), (pixels - 0.3) / 0.2)
    with FakeTensorMode():
        assert normalize(torch.rand(1, 3, 4, 4), 0.3, 0.2).shape == (1, 3, 4, 4)
