"""Insertion and deletion: loops by hand, identities, SciPy, torchcam."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.ndimage import convolve, gaussian_filter
from scored_images import IMAGES, MAPS, Counted, N, share_of_ones
from torchcam.metrics import DeletionInsertionMetric

from sklcam.metrics import (
    blur,
    causal_curves,
    cover,
    deletion_auc,
    deletion_curve,
    insertion_auc,
    insertion_curve,
    road,
)


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
    # Two sums of eleven products in float32.
    assert_allclose(blurred[..., 5:10, 5:10], torch.full((1, 2, 5, 5), 3.0), rtol=1e-5)
    assert (blurred[..., 0, 0] < 1.5).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_blur_keeps_the_precision(dtype):
    assert blur(IMAGES.to(dtype)).dtype == dtype


# The curves


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


def test_there_are_56_steps_unless_more_are_asked_for():
    """The number that the documentation says the error of."""
    score = Counted()
    curves = causal_curves(score, IMAGES, MAPS)
    assert curves.fractions.shape == (57,)
    assert insertion_curve(score, IMAGES, MAPS).insertion.shape == (len(IMAGES), 57)
    assert deletion_curve(score, IMAGES, MAPS).deletion.shape == (len(IMAGES), 57)


@pytest.mark.parametrize("n_steps", [1, 7, 16, 64])
def test_insertion_mirrors_deletion_of_the_reverse_order(n_steps):
    """Exactly, with one baseline for both, and a score whose sums do not depend on the batch."""
    base = torch.full_like(IMAGES, 0.25)
    for score, tolerance in ((lambda images, rows: images.amax((1, 2, 3)), 0), (Counted(), 1e-5)):
        there, back = (
            causal_curves(score, IMAGES, maps, n_steps=n_steps, start=base, end=base)
            for maps in (MAPS, -MAPS)
        )
        assert_allclose(there.insertion, back.deletion.flip(1), atol=tolerance, rtol=0)
        assert_allclose(insertion_auc(there), deletion_auc(back), rtol=1e-5)  # of 65 in float32


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


def test_a_map_with_nan_has_no_order_and_no_scores():
    maps = MAPS.clone()
    maps[1, 3, 3] = float("nan")

    def share(images, rows):
        return images.mean(dim=(1, 2, 3))

    curves = causal_curves(share, IMAGES, maps, n_steps=4)
    others = [0, 2, 3, 4]
    expected = causal_curves(share, IMAGES[others], MAPS[others], n_steps=4)
    for found, of_others in zip(curves[1:], expected[1:], strict=True):
        assert found[1].isnan().all()
        assert_allclose(found[others], of_others, atol=1e-6)
    assert insertion_auc(curves).isnan().tolist() == [i == 1 for i in range(5)]


# Covering


def test_cover_by_hand():
    images = torch.arange(8.0).view(2, 1, 2, 2)
    maps = torch.tensor([[[0.3, 0.2], [0.1, 0.4]], [[0.0, 0.0], [0.0, 1.0]]])
    covered, marked = cover(images, maps, share=0.5, base=torch.zeros_like)
    assert marked.tolist() == [[[True, False], [False, True]], [[False, False], [False, True]]]
    assert covered.tolist() == [[[[0, 1], [2, 0]]], [[[4, 5], [6, 0]]]]
    # Shares are rounded up, and a blank map or one with NaN marks nothing.
    assert cover(images, maps, share=0.01)[1].sum(dim=(1, 2)).tolist() == [1, 1]
    assert not cover(images, maps, share=0.0)[1].any()
    assert not cover(images, torch.full_like(maps, 0.7))[1].any()
    assert not cover(images, maps * torch.nan)[1].any()
    soft, marked = cover(images, maps, share=0.5)
    assert torch.equal(soft, torch.where(marked[:, None], blur(images), images))


def test_what_is_covered_first_is_what_deletion_deletes():
    generator = torch.Generator().manual_seed(0)
    images, maps = (
        torch.rand(3, 2, 5, 5, generator=generator),
        torch.rand(3, 5, 5, generator=generator),
    )

    def score(images, rows):
        return images.mean((1, 2, 3))

    curve = deletion_curve(score, images, maps, n_steps=5).deletion
    covered, _ = cover(images, maps, share=0.2, base=torch.zeros_like)
    assert_allclose(score(covered, None), curve[:, 1])
    volumes = images[:, :, None].expand(-1, -1, 4, -1, -1)
    assert cover(volumes, maps[:, None].expand(-1, 4, -1, -1))[1].sum() == 3 * 20
