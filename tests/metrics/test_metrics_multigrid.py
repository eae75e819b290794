"""Pixels filled in over many grids: SciPy's solution of the same equations, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.sparse import diags_array, eye_array, kron
from scipy.sparse.linalg import spsolve

from sklcam.metrics import imputation, impute, multigrid


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blobs(n, size, seed=1):
    """The pixels over a threshold, another for each, of a smooth field."""
    field = torch.nn.functional.interpolate(drawn(n, 1, 4, 4, seed=seed), size, mode="bilinear")
    thresholds = torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    return torch.stack(
        [each > each.quantile(share) for each, share in zip(field[:, 0], thresholds, strict=True)]
    )


def exactly(images, removed):
    """Solve the equations as they stand in the paper, put together from those of two lines."""
    height, width = removed.shape[1:]
    lines = [diags_array([1, 2, 1], offsets=[-1, 0, 1], shape=(n, n)) for n in (height, width)]
    weights = ((kron(*lines) - 4 * eye_array(height * width)) / 12).tocsr()
    degrees = diags_array(weights.sum(axis=1))
    filled = images.double().numpy().copy()
    for image, mask in zip(filled, removed.numpy(), strict=True):
        lost, values = mask.ravel(), image.reshape(len(image), -1)
        if lost.any():
            system = (degrees - weights)[lost][:, lost].tocsc()
            right = weights[lost][:, ~lost] @ values[:, ~lost].T
            values[:, lost] = spsolve(system, right).reshape(-1, len(image)).T
    return filled


def ranges(images):
    return (images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3))).view(-1, 1, 1, 1).numpy()


@pytest.fixture
def on_the_host(monkeypatch):
    """How many images the grids did not fill in, each time."""
    counts = []
    solve = imputation._fill_exactly
    monkeypatch.setattr(
        imputation,
        "_fill_exactly",
        lambda images, lost: counts.append(len(images)) or solve(images, lost),
    )
    return counts


@pytest.mark.parametrize("size", [(17, 16), (32, 32), (48, 37), (16, 250), (250, 16)])
def test_all_grids_together_solve_the_equations(size, on_the_host):
    images, removed = drawn(8, 2, *size), blobs(8, size)
    removed[4:] = drawn(4, *size, seed=2) < torch.tensor([0.3, 0.6, 0.8, 0.95])[:, None, None]
    expected = exactly(images, removed)
    filled = impute(images.float(), removed, noise=0)
    assert_allclose(filled, expected, atol=5e-6 * ranges(images).min())
    assert filled.dtype == torch.float32
    assert_allclose(impute(images, removed, noise=0), expected, atol=1e-10)
    assert not on_the_host


def test_what_is_far_from_all_that_is_known(on_the_host):
    """The ends of a long plane, single pixels and thin lines: rounding must not add up."""
    removed = torch.ones(4, 20, 600, dtype=torch.bool)
    removed[0, :, 0] = removed[0, :, -1] = False
    removed[1, 3, 5] = removed[1, 18, 590] = False
    removed[2, :, ::100] = False
    removed[3, 19, 599] = removed[3, 0, 0] = removed[3, :, 250] = False
    images = torch.linspace(0, 1, 600, dtype=torch.float64).expand(4, 1, 20, 600).contiguous()
    images[2:] = drawn(2, 1, 20, 600)
    filled = impute(images.float(), removed, noise=0)
    assert_allclose(filled, exactly(images, removed), atol=5e-6)
    assert_allclose(filled[0], images[0], atol=5e-6)
    assert not on_the_host


def test_between_two_sides_of_a_large_image(on_the_host):
    """The solution is the line between them, which rounding must not bend."""
    image = torch.linspace(0, 1, 500, dtype=torch.float64).expand(1, 1, 300, 500).contiguous()
    removed = torch.ones(1, 300, 500, dtype=torch.bool)
    removed[..., 0] = removed[..., -1] = False
    assert_allclose(impute(image.float(), removed, noise=0), image, atol=1e-5)
    assert not on_the_host


@pytest.mark.parametrize("size", [(1, 300), (15, 40), (16, 16), (16, 1100)])
def test_strips_and_small_images_have_no_grids(size, on_the_host):
    images, removed = drawn(2, 1, *size).float(), drawn(2, *size, seed=1) < 0.7
    assert_allclose(impute(images, removed, noise=0), exactly(images, removed), atol=1e-6)
    assert on_the_host == [2]


def test_all_nothing_and_one_colour(on_the_host):
    images = drawn(4, 3, 24, 20).float()
    images[2] = 0.7
    removed = blobs(4, (24, 20))
    removed[0], removed[1] = True, False
    filled = impute(images, removed, noise=0)
    assert not filled[0].any() and filled[1].equal(images[1])
    assert_allclose(filled[2], images[2], atol=1e-6)
    noise = impute(images, removed, noise=0.5, generator=torch.Generator().manual_seed(0)) - filled
    assert not noise[1].any() and noise[0].std().item() == pytest.approx(0.5, rel=0.1)
    assert not noise.movedim(1, -1)[~removed].any()
    assert not on_the_host


@pytest.mark.parametrize("change", [(1e-30, 0), (1e30, 0), (1e-3, 100), (-1, 1)])
def test_units_do_not_matter(change, on_the_host):
    """Errors are in shares of the range, wherever it lies."""
    scale, offset = change
    images, removed = drawn(2, 1, 24, 30), blobs(2, (24, 30))
    changed = (scale * images + offset).float()
    filled = impute(changed, removed, noise=0).double()
    expected = exactly(changed, removed)
    rounding = np.abs(expected).max() * 1e-7
    assert_allclose(filled, expected, rtol=0, atol=5e-6 * abs(scale) + rounding)
    assert not on_the_host


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_a_number_spoils_its_own_image(value, on_the_host):
    images, removed = drawn(3, 1, 24, 20).float(), blobs(3, (24, 20))
    known = (~removed[1]).nonzero()[0]
    spoilt = images.clone()
    spoilt[1, 0, known[0], known[1]] = value
    expected = impute(images, removed, noise=0)
    filled = impute(spoilt, removed, noise=0)
    assert filled[0].equal(expected[0]) and filled[2].equal(expected[2])
    assert on_the_host == [1]
    # Where it is removed, it is gone.
    spoilt = images.clone()
    spoilt[removed[:, None]] = value
    assert impute(spoilt, removed, noise=0).equal(expected)


def test_what_grids_do_not_solve_the_host_does(monkeypatch, on_the_host):
    images, removed = drawn(3, 2, 30, 20).float(), blobs(3, (30, 20))
    monkeypatch.setattr(multigrid, "_MOST_STEPS", 2)
    filled = impute(images, removed, noise=0)
    assert_allclose(filled, exactly(images, removed), atol=1e-6)
    assert on_the_host == [3]


def test_an_image_is_filled_in_alike_in_every_batch(monkeypatch):
    images, removed = drawn(5, 3, 33, 40).float(), blobs(5, (33, 40))
    together = impute(images, removed, noise=0)
    for image, mask, filled in zip(images, removed, together, strict=True):
        assert_allclose(impute(image[None], mask[None], noise=0)[0], filled, atol=1e-7)
    monkeypatch.setattr(imputation, "_VALUES_A_THREAD", 2 * images[0].numel())
    assert_allclose(impute(images, removed, noise=0), together, atol=1e-7)


def test_nobody_waits_for_others_in_a_batch():
    """The same image beside one that takes fewer steps, and beside one that takes more."""
    images, removed = drawn(2, 1, 60, 60).float(), torch.zeros(2, 60, 60, dtype=torch.bool)
    removed[0] = drawn(60, 60, seed=1) < 0.7
    first = impute(images, removed, noise=0)[0]
    removed[1, :, 1:] = True
    removed[1, ::9, 1:20] = False
    assert impute(images, removed, noise=0)[0].equal(first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_of_the_images_alone(dtype):
    images, removed = drawn(2, 3, 32, 20).to(dtype), blobs(2, (32, 20))
    filled = impute(images, removed, noise=0)
    assert filled.dtype == dtype
    expected = torch.as_tensor(exactly(images, removed))
    assert_allclose(filled.double(), expected.to(dtype).double(), atol=torch.finfo(dtype).eps)


def test_autocast_changes_nothing():
    images, removed = drawn(2, 3, 32, 20).float(), blobs(2, (32, 20))
    with torch.autocast("cpu", torch.bfloat16):
        filled = impute(images, removed, noise=0)
    assert filled.equal(impute(images, removed, noise=0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("steps", [24, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_device_fills_in_what_the_host_does(steps, dtype, monkeypatch):
    monkeypatch.setattr(multigrid, "_MOST_STEPS", steps)
    monkeypatch.setattr(imputation, "_VALUES_AT_ONCE", 2 * 3 * 40 * 30)
    images, removed = drawn(5, 3, 40, 30).to(dtype), blobs(5, (40, 30))
    filled = impute(images.cuda(), removed.cuda(), generator=torch.Generator().manual_seed(0))
    expected = impute(images, removed, generator=torch.Generator().manual_seed(0))
    assert_allclose(filled.cpu(), expected, atol=5e-6)
