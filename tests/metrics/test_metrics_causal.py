"""Insertion, deletion and ROAD: loops by hand, identities, SciPy, torchcam, pytorch-grad-cam."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pytorch_grad_cam.metrics import road as peer
from scipy.ndimage import convolve, gaussian_filter
from small_networks import SmallNet
from torchcam.metrics import DeletionInsertionMetric

from sklcam.metrics import (
    blur,
    causal_curves,
    deletion_auc,
    deletion_curve,
    impute,
    insertion_auc,
    insertion_curve,
    road,
)

N, SIDE = 5, 8
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(N, 2, SIDE, SIDE, generator=GENERATOR)
# All values differ: a permutation for each image, so that nothing hangs on ties.
MAPS = torch.stack([torch.randperm(SIDE**2, generator=GENERATOR) for _ in range(N)]) / 64.0
MAPS = MAPS.view(N, SIDE, SIDE)


class Counted:
    """The probability of each image's predicted class, and how many images were asked for."""

    def __init__(self, n_images=N, images=IMAGES):
        torch.manual_seed(3)
        self.model = SmallNet(in_channels=images.shape[1]).eval()
        with torch.no_grad():
            self.classes = self.model(images).argmax(1)
        self.batches = []

    @torch.no_grad()
    def __call__(self, images, rows):
        self.batches.append(len(images))
        probabilities = self.model(images).softmax(1)
        return probabilities[torch.arange(len(images)), self.classes[rows]]


def order_of(map_):
    """Pixels by decreasing saliency; those that tie as they come."""
    values = map_.flatten().tolist()
    return sorted(range(len(values)), key=lambda i: -values[i])


def curve_by_hand(score, image, row, order, counts, first, then):
    """Start from one image and take the first pixels of the order from another."""
    points = []
    for count in counts:
        mixed = first.clone().flatten(1)
        chosen = order[:count]
        mixed[:, chosen] = then.flatten(1)[:, chosen]
        points.append(score(mixed.view_as(image)[None], torch.tensor([row])).item())
    return points


def trapezoid(points, counts):
    steps = zip(pairwise(points), pairwise(counts), strict=True)
    return sum((a + b) / 2 * (z - x) / counts[-1] for (a, b), (x, z) in steps)


# The blur


def test_blur_is_a_convolution_with_the_authors_kernel():
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = gaussian_filter(impulse, 5)
    images = torch.randn(2, 3, 13, 17, generator=torch.Generator().manual_seed(0))
    expected = [[convolve(of.numpy(), kernel, mode="constant") for of in image] for image in images]
    assert_allclose(blur(images), expected, atol=1e-6)


def test_the_kernel_is_a_gaussian_folded_at_the_edges():
    """A Gaussian of 41 taps (4 sigma) whose ends are mirrored into the 11 pixels."""
    taps = {d: np.exp(-(d**2) / 50) for d in range(-20, 21)}
    line = np.zeros(11)
    for i in range(11):
        for distance, tap in taps.items():
            place = (i + distance) % 22
            line[i] += tap * ((21 - place if place > 10 else place) == 5)
    line /= sum(taps.values())
    point = torch.zeros(1, 1, 11, 11, dtype=torch.float64)
    point[..., 5, 5] = 1
    assert_allclose(blur(point)[0, 0], np.outer(line, line), atol=1e-12)
    assert line.sum() == pytest.approx(1) and line[0] / line[5] > 0.6  # e^-0.5 if it were cut off


def test_blur_keeps_even_images_but_at_the_edges():
    blurred = blur(torch.full((1, 2, 15, 15), 3.0))
    assert_allclose(blurred[..., 5:10, 5:10], torch.full((1, 2, 5, 5), 3.0), rtol=1e-6)
    assert (blurred[..., 0, 0] < 1.5).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_blur_keeps_the_precision(dtype):
    assert blur(IMAGES.to(dtype)).dtype == dtype


# Insertion and deletion


@pytest.mark.parametrize("n_steps", [1, 4, 10, 63, 64])
@pytest.mark.parametrize("baselines", ["own", "default"])
def test_curves_by_hand(n_steps, baselines):
    score = Counted()
    start = torch.full_like(IMAGES, 0.5) if baselines == "own" else None
    end = IMAGES.flip(0) if baselines == "own" else None
    curves = causal_curves(score, IMAGES, MAPS, n_steps=n_steps, start=start, end=end)
    start = blur(IMAGES) if start is None else start
    end = torch.zeros_like(IMAGES) if end is None else end
    counts = [round(i * 64 / n_steps) for i in range(n_steps + 1)]
    assert_allclose(curves.fractions, np.array(counts) / 64)
    for i in range(N):
        order = order_of(MAPS[i])
        insertion = curve_by_hand(score, IMAGES[i], i, order, counts, start[i], IMAGES[i])
        deletion = curve_by_hand(score, IMAGES[i], i, order, counts, IMAGES[i], end[i])
        assert_allclose(curves.insertion[i], insertion, atol=1e-6)
        assert_allclose(curves.deletion[i], deletion, atol=1e-6)
        areas = insertion_auc(curves)[i].item(), deletion_auc(curves)[i].item()
        expected = trapezoid(insertion, counts), trapezoid(deletion, counts)
        assert areas == pytest.approx(expected, abs=1e-6)


def share_of_ones(images, rows):
    return images.mean((1, 2, 3))


def test_a_linear_score_in_closed_form():
    """Of ones and zeros the score is the share inserted: both areas are a half."""
    images, maps = torch.ones(1, 1, 8, 8), MAPS[:1]
    curves = causal_curves(share_of_ones, images, maps, n_steps=16, start=images * 0)
    assert_allclose(curves.insertion[0], np.linspace(0, 1, 17), atol=1e-6)
    assert_allclose(curves.deletion[0], np.linspace(1, 0, 17), atol=1e-6)
    assert insertion_auc(curves).item() == pytest.approx(0.5)
    assert deletion_auc(curves).item() == pytest.approx(0.5)


def test_the_best_order_in_closed_form():
    """One quarter of the pixels is all that counts, and comes first: 1 - 1/8 and 1/8."""
    images, maps = torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8)
    images[..., 2:6, 2:6] = 4
    maps[:, 2:6, 2:6] = 1
    for sign, insertion in ((1, 7 / 8), (-1, 1 / 8)):
        curves = causal_curves(share_of_ones, images, sign * maps, n_steps=64, start=images * 0)
        assert insertion_auc(curves).item() == pytest.approx(insertion)
        assert deletion_auc(curves).item() == pytest.approx(1 - insertion)


@pytest.mark.parametrize("baseline", [0.0, 1.5])
@pytest.mark.parametrize("steps", [1, 8, 32])
def test_against_torchcam(steps, baseline):
    """Its steps are of equal size, and so are ours where they divide the pixels."""

    class Given:
        def __init__(self, model, maps):
            self.model, self.maps = model, maps

        def __call__(self, *args, **kwargs):
            return [self.maps]

        def fuse_cams(self, cams):
            return cams[0]

        def _hooks_off(self):
            return nullcontext()

    score, start = Counted(), torch.full_like(IMAGES, baseline)
    curves = causal_curves(score, IMAGES, MAPS, n_steps=steps, start=start, end=start)
    for i in range(N):
        metric = DeletionInsertionMetric(
            Given(score.model, MAPS[i : i + 1]),
            lambda logits: logits.softmax(1),
            steps=steps,
            baseline=start[:1],
        )
        metric.update(IMAGES[i : i + 1])
        theirs = metric.summary()
        assert theirs["insertion_auc"] == pytest.approx(insertion_auc(curves)[i].item(), abs=1e-6)
        assert theirs["deletion_auc"] == pytest.approx(deletion_auc(curves)[i].item(), abs=1e-6)


@pytest.mark.parametrize("n_steps", [1, 7, 16, 64])
def test_insertion_mirrors_deletion_of_the_reverse_order(n_steps):
    """Exactly, with one baseline for both, and a score whose sums do not depend on the batch."""
    base = torch.full_like(IMAGES, 0.25)
    for score, tolerance in ((lambda images, rows: images.amax((1, 2, 3)), 0), (Counted(), 1e-6)):
        there, back = (
            causal_curves(score, IMAGES, maps, n_steps=n_steps, start=base, end=base)
            for maps in (MAPS, -MAPS)
        )
        assert_allclose(there.insertion, back.deletion.flip(1), atol=tolerance, rtol=0)
        assert_allclose(insertion_auc(there), deletion_auc(back), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_pixels_that_tie_keep_their_raster_order(value):
    """Step k of a constant map inserts pixel k: the score is its number."""
    images = torch.arange(1.0, 65).view(1, 1, 8, 8)
    curves = causal_curves(
        lambda images, rows: images.amax((1, 2, 3)),
        images,
        torch.full((1, 8, 8), value),
        n_steps=64,
        start=images * 0,
    )
    assert curves.insertion[0].tolist() == list(range(65))


def test_ties_among_others_keep_it_too():
    maps = torch.tensor([[[1.0, 2.0, 1.0], [2.0, 0.0, 2.0]]])
    values = torch.tensor([[[[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]]])
    curves = causal_curves(
        lambda images, rows: images.sum((1, 2, 3)), values, maps, n_steps=6, start=values * 0
    )
    assert curves.insertion[0].diff().tolist() == [2, 8, 32, 1, 4, 16]


@pytest.mark.parametrize("batch_size", [1, 4, 32, 1000])
@pytest.mark.parametrize("known", [False, True])
def test_images_through_the_network(batch_size, known):
    score, n_steps = Counted(), 8
    expected = causal_curves(score, IMAGES, MAPS, n_steps=n_steps)
    score.batches.clear()
    full = expected.insertion[:, -1] if known else None
    curves = causal_curves(score, IMAGES, MAPS, n_steps=n_steps, full=full, batch_size=batch_size)
    assert sum(score.batches) == (2 * n_steps + (not known)) * N
    assert max(score.batches) <= batch_size
    for ours, theirs in zip(curves, expected, strict=True):
        assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("full", [None, torch.linspace(0, 1, N)])
def test_one_curve_is_one_of_the_two_for_half_the_passes(full):
    both = causal_curves(Counted(), IMAGES, MAPS, n_steps=8, full=full)
    known = full is not None
    score = Counted()
    insertion = insertion_curve(score, IMAGES, MAPS, n_steps=8, full=full)
    assert sum(score.batches) == (9 - known) * N
    score = Counted()
    deletion = deletion_curve(score, IMAGES, MAPS, n_steps=8, full=full)
    assert sum(score.batches) == (9 - known) * N
    assert_allclose(insertion.insertion, both.insertion, atol=1e-6)
    assert_allclose(deletion.deletion, both.deletion, atol=1e-6)
    assert insertion.fractions.equal(both.fractions) and deletion.fractions.equal(both.fractions)
    assert_allclose(insertion_auc(insertion), insertion_auc(both), atol=1e-6)
    assert_allclose(deletion_auc(deletion), deletion_auc(both), atol=1e-6)


def test_bases_may_be_made_from_the_images():
    def half(images):
        return images / 2

    made = causal_curves(Counted(), IMAGES, MAPS, n_steps=4, start=half, end=torch.ones_like)
    given = causal_curves(
        Counted(), IMAGES, MAPS, n_steps=4, start=IMAGES / 2, end=torch.ones_like(IMAGES)
    )
    assert made.insertion.equal(given.insertion) and made.deletion.equal(given.deletion)


def test_the_full_score_is_taken_as_it_is():
    full = torch.linspace(0, 1, N)
    curves = causal_curves(Counted(), IMAGES, MAPS, n_steps=4, full=full)
    assert curves.insertion[:, -1].equal(full) and curves.deletion[:, 0].equal(full)


def test_images_alone_or_together():
    together = causal_curves(Counted(), IMAGES, MAPS, n_steps=8)
    score = Counted()
    for i in range(N):
        alone = causal_curves(
            lambda images, rows, i=i: score(images, rows + i), IMAGES[[i]], MAPS[[i]], n_steps=8
        )
        assert_allclose(alone.insertion[0], together.insertion[i], atol=1e-6)
        assert_allclose(alone.deletion[0], together.deletion[i], atol=1e-6)


@pytest.mark.parametrize(
    "rescale",
    [lambda m: 1e-6 * m, lambda m: 255 * m + 3, lambda m: m - 9, lambda m: m**3],
    ids=["small", "bytes", "negative", "cubed"],
)
def test_only_the_order_counts(rescale):
    ours, theirs = (
        causal_curves(Counted(), IMAGES, maps, n_steps=8) for maps in (MAPS, rescale(MAPS))
    )
    assert ours.insertion.equal(theirs.insertion) and ours.deletion.equal(theirs.deletion)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(dtype):
    images = torch.ones(2, 1, 8, 8, dtype=dtype)
    curves = causal_curves(
        lambda images, rows: images.float().mean((1, 2, 3)).to(dtype),
        images,
        MAPS[:2].to(dtype),
        n_steps=4,
        start=images * 0,
    )
    assert curves.insertion.dtype == torch.float32
    assert_allclose(curves.insertion, [[0, 0.25, 0.5, 0.75, 1]] * 2)


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (MAPS[:3], {}, r"maps must be of shape .* \(5, 8, 8\) .*; got \(3, 8, 8\)"),
        (MAPS[:, :4], {}, r"got \(5, 4, 8\)"),
        (MAPS[:, None], {}, r"got .* shape \(5, 1, 8, 8\)"),
        (MAPS.where(MAPS > 0.5, float("nan")), {}, "Some maps have NaN"),
        (MAPS, {"n_steps": 0}, "n_steps, for 64 pixels, must be an int from 1 to 64; got 0"),
        (MAPS, {"n_steps": 65}, "got 65"),
        (MAPS, {"start": IMAGES[:1], "n_steps": 4}, r"of the images' shape, .* got \(1"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(maps, options, message):
    score = Counted()
    with pytest.raises(ValueError, match=message):
        causal_curves(score, IMAGES, maps, **options)
    if not options:
        with pytest.raises(ValueError, match=message):
            road(score, IMAGES, maps)
    assert not score.batches


# ROAD


def some_removed(share, shape=(SIDE, SIDE), seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 12)])
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
