"""ROAD and its imputation: loops by hand, identities, pytorch-grad-cam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pytorch_grad_cam.metrics import road as peer
from scored_images import IMAGES, MAPS, SIDE, Counted, N, share_of_ones

from sklcam.metrics import impute, road


def some_removed(share, shape=(SIDE, SIDE), seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 12), (18, 16)])
def test_impute_is_the_peers(share, size):
    images = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(0))
    removed = some_removed(share, (3, *size))
    removed[:, 0, 0], removed[:, -1, -1] = True, False
    imputer = peer.NoisyLinearImputer(noise=0)
    expected = [imputer(*pair).numpy() for pair in zip(images, (~removed).float(), strict=True)]
    assert_allclose(impute(images, removed, noise=0), expected, atol=1e-5)


def test_one_pixel_by_hand():
    image = torch.arange(16.0).view(1, 1, 4, 4) ** 2
    removed = torch.zeros(1, 4, 4, dtype=torch.bool)
    removed[0, 1, 1] = removed[0, 3, 3] = True
    filled = impute(image, removed, noise=0)[0, 0]
    # Around 5 in the inside, rows and columns 1, 4, 6, 9 and diagonals 0, 2, 8, 10; in the corner
    # 14, 11 and 10 weigh 2, 2 and 1 of 5.
    inside = (1 + 16 + 36 + 81) / 6 + (0 + 4 + 64 + 100) / 12
    assert filled[1, 1].item() == pytest.approx(inside)
    assert filled[3, 3].item() == pytest.approx((2 * 196 + 2 * 121 + 100) / 5)
    assert filled[~removed[0]].equal(image[0, 0][~removed[0]])


def test_removed_pixels_are_the_mean_of_their_neighbours():
    removed = some_removed(0.6, (N, SIDE, SIDE))
    filled = impute(IMAGES.double(), removed, noise=0)
    for i, row, column in removed.nonzero().tolist():
        total = weight = 0
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                y, x = row + down, column + right
                if (down, right) != (0, 0) and 0 <= y < SIDE and 0 <= x < SIDE:
                    part = 1 / 12 if down and right else 1 / 6
                    total, weight = total + part * filled[i, :, y, x], weight + part
        assert_allclose(filled[i, :, row, column], total / weight, atol=1e-9)


@pytest.mark.parametrize("length", [40, 400, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_between_the_ends_of_a_line_all_is_straight(length, dtype):
    ramp = torch.linspace(-1, 2, length, dtype=torch.float64)[None, None, None].to(dtype)
    removed = torch.ones(1, 1, length, dtype=torch.bool)
    removed[..., 0] = removed[..., -1] = False
    filled = impute(ramp * ~removed, removed, noise=0)
    atol = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float64: 1e-9}[dtype]
    assert_allclose(filled.double(), ramp.double(), atol=atol)
    assert filled.dtype == dtype


def test_a_single_known_pixel_is_everywhere():
    images = torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    removed = torch.ones(2, 37, 50, dtype=torch.bool)
    removed[0, 30, 41] = removed[1, 0, 0] = False
    filled = impute(images, removed, noise=0)
    for one, known in zip(filled, (images[0, :, 30, 41], images[1, :, 0, 0]), strict=True):
        assert_allclose(one, known[:, None, None].expand(3, 37, 50), atol=1e-6)


@pytest.mark.parametrize("size", [(9, 30), (20, 30)])
def test_as_many_threads_as_there_may_be_fill_in_the_same(size):
    images = torch.rand(6, 2, *size, generator=torch.Generator().manual_seed(0))
    removed, n_threads = some_removed(0.7, (6, *size)), torch.get_num_threads()
    filled = []
    try:
        for n in (1, 4, 4):
            torch.set_num_threads(n)
            filled.append(impute(images, removed, generator=torch.Generator().manual_seed(0)))
    finally:
        torch.set_num_threads(n_threads)
    assert_allclose(filled[0], filled[1], atol=1e-6)  # several images at a time, it is rounded so
    assert filled[1].equal(filled[2])


def test_nothing_removed_and_all_removed():
    before = IMAGES.clone()
    none, every = torch.zeros(N, SIDE, SIDE).bool(), torch.ones(N, SIDE, SIDE).bool()
    assert impute(IMAGES, none).equal(IMAGES)
    assert not impute(IMAGES, every, noise=0).any()
    noise = impute(IMAGES, every, noise=0.5, generator=torch.Generator().manual_seed(0))
    assert noise.std().item() == pytest.approx(0.5, rel=0.15)
    assert IMAGES.equal(before)


def test_noise_is_the_same_for_every_image():
    removed = some_removed(0.5, (1, SIDE, SIDE))
    alone = impute(IMAGES[2:3], removed, generator=torch.Generator().manual_seed(0))
    removed = torch.cat([some_removed(0.3, (2, SIDE, SIDE)), removed])
    together = impute(IMAGES[:3], removed, generator=torch.Generator().manual_seed(0))
    assert together[2].equal(alone[0])


def test_noise_is_on_what_is_filled_in_and_has_a_seed():
    removed = some_removed(0.5, (N, SIDE, SIDE))
    first, again, other = (
        impute(IMAGES, removed, noise=0.1, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    difference = first - impute(IMAGES, removed, noise=0)
    assert first.equal(again) and not first.equal(other)
    assert not difference.movedim(1, -1)[~removed].any()
    drawn = difference.movedim(1, -1)[removed]
    assert drawn.std().item() == pytest.approx(0.1, rel=0.2)
    assert drawn.mean().item() == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("percentiles", [(20, 40, 60, 80), (10, 50, 90), (30,)])
@pytest.mark.parametrize("side", [8, 9])  # of 81 pixels, percentiles are values of the map
def test_road_is_the_peers(percentiles, side, monkeypatch):
    monkeypatch.setattr(
        peer.NoisyLinearImputer.__init__, "__defaults__", (0.0, peer.neighbors_weights)
    )
    generator = torch.Generator().manual_seed(side)
    images = torch.randn(3, 2, side, side, generator=generator)
    maps = torch.rand(3, side, side, generator=generator)
    score = Counted(3, images)
    targets = [lambda output, c=c: output.softmax(0)[c] for c in score.classes]
    combined = peer.ROADCombined(percentiles=list(percentiles))
    expected = combined(images, maps.numpy(), targets, score.model)
    ours = road(score, images, maps, percentiles=percentiles, noise=0)
    assert_allclose(ours, expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-4


def test_road_of_images_that_neighbours_tell():
    """Of an even image nothing is lost, whichever pixels go."""
    images = torch.full((2, 1, 8, 8), 0.7)
    assert_allclose(road(share_of_ones, images, MAPS[:2], noise=0), [0, 0], atol=1e-6)


def test_road_by_hand():
    """A bright half: without it the image is dark, without the other half it is all bright."""
    images = torch.zeros(1, 1, 4, 8)
    images[..., :4] = 1
    maps = images[:, 0] + torch.rand(1, 4, 8, generator=torch.Generator().manual_seed(0)) / 100
    value = road(share_of_ones, images, maps, percentiles=[50], noise=0)
    assert value.item() == pytest.approx((1 - 0) / 2, abs=1e-6)
    value = road(share_of_ones, images, -maps, percentiles=[50], noise=0)
    assert value.item() == pytest.approx(-0.5, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_road_of_a_constant_map_is_zero(value):
    """It has no order: all pixels go, for the most relevant and for the least."""
    ours = road(Counted(), IMAGES, torch.full((N, 8, 8), value), noise=0)
    assert ours.tolist() == [0] * N


@pytest.mark.parametrize("scale", [1e-6, 1e-9, 1e6])
def test_only_the_order_counts_for_road(scale):
    ours, theirs = (road(Counted(), IMAGES, maps, noise=0) for maps in (MAPS, scale * MAPS))
    assert_allclose(ours, theirs, atol=1e-6)


def test_percentiles_of_maps_in_half_precision_are_not_rounded():
    """Between 1/2 and the next number, the median would round to 1/2."""
    maps = torch.tensor([[[0.0, 0.5], [0.5 + 2**-8, 1.0]]]).bfloat16()
    image = torch.tensor([[[[0.0, 1.0], [3.0, 7.0]]]])
    of_halves, of_floats = (
        road(share_of_ones, image, each, percentiles=[50], noise=0) for each in (maps, maps.float())
    )
    assert of_halves.equal(of_floats)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_road_in_batches(batch_size):
    score = Counted()
    options = {"percentiles": (25, 75), "batch_size": batch_size}
    first, again = (
        road(score, IMAGES, MAPS, generator=torch.Generator().manual_seed(2), **options)
        for _ in range(2)
    )
    assert first.equal(again) and max(score.batches) <= batch_size
    assert sum(score.batches) == 2 * 2 * 2 * N
    expected = road(score, IMAGES, MAPS, percentiles=(25, 75), noise=0)
    assert_allclose(road(score, IMAGES, MAPS, noise=0, **options), expected, atol=1e-6)
    assert (first.abs() <= 0.5).all()


def test_a_map_with_nan_has_no_road():
    images = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    maps = images[:, 0].clone()
    maps[1, 2, 2] = float("nan")
    values = road(lambda images, rows: images.mean((1, 2, 3)), images, maps, percentiles=[50])
    assert values.isnan().tolist() == [False, True, False]
