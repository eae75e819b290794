"""Warp against torch.flip, torchvision's crops, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from sklcam.training import ViewSampler, Warp


def smooth_images(n: int, size: int) -> torch.Tensor:
    """Band-limited images: bilinear resampling of them is accurate."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("size", [(32, 32), (112, 96), (224, 224), (299, 299)])
def test_identity_and_flips_are_exact(size):
    images = torch.rand(3, 2, *size)
    assert torch.equal(Warp.identity(3)(images), images)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(3, 1)
    flip = torch.tensor([True, False, True])
    expected = torch.stack([images[0].flip(-1), images[1], images[2].flip(-1)])
    assert torch.equal(Warp.from_crops(whole, flip)(images), expected)


def test_maps_and_images_are_warped_alike():
    maps = torch.rand(4, 20, 30)
    views = ViewSampler()(4, size=(20, 30))
    assert torch.equal(views(maps), views(maps[:, None])[:, 0])


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 64, 64), (8, 4, 40, 24), (31, 0, 33, 64), (0, 50, 14, 14)])
def test_crops_agree_with_torchvision(box, flipped):
    left, top, width, height = box
    images = smooth_images(2, 64)
    expected = tv.resized_crop(
        images, top, left, height, width, [64, 64], InterpolationMode.BILINEAR, antialias=False
    )
    if flipped:
        expected = tv.horizontal_flip(expected)
    boxes = torch.tensor([[left, top, width, height]]).repeat(2, 1) / 64
    warped = Warp.from_crops(boxes, torch.tensor([flipped] * 2))(images)
    # torchvision repeats the crop's own border, a view sees the image beyond it: within half an
    # input pixel of the edge they may differ by the slope of the image there.
    edge = math.ceil(0.5 * 64 / min(width, height))
    inner = (..., slice(edge, 64 - edge), slice(edge, 64 - edge))
    torch.testing.assert_close(warped[inner], expected[inner], atol=1e-5, rtol=0)


def test_a_ramp_is_sampled_where_the_matrix_says():
    ramp = ((torch.arange(100) + 0.5) / 100).expand(1, 1, 100, 100).contiguous()
    views = Warp.from_crops(torch.tensor([[0.2, 0.3, 0.5, 0.4]]), torch.tensor([True]))
    position = 0.2 + 0.5 * (1 - (torch.arange(100) + 0.5) / 100)
    torch.testing.assert_close(views(ramp)[0, 0], position.expand(100, 100), atol=1e-5, rtol=0)


def test_differentiable():
    images = torch.rand(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    views = ViewSampler()(2, size=(5, 6), generator=torch.Generator().manual_seed(1))
    weights = torch.rand(2, 1, 5, 6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((views(images) * weights).sum(), images)
    step = torch.zeros_like(images)
    step[1, 0, 2, 3] = 1.0  # the warp is linear: a unit step gives the derivative
    with torch.no_grad():
        change = ((views(images + step) - views(images)) * weights).sum()
    torch.testing.assert_close(gradient[1, 0, 2, 3], change, atol=1e-6, rtol=0)


def test_half_precision_images_keep_their_dtype():
    images = smooth_images(2, 64)
    views = ViewSampler()(2, size=(64, 64), generator=torch.Generator().manual_seed(1))
    half = views(images.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), views(images), atol=0.01, rtol=0)


def test_sampled_crops_follow_the_distribution():
    n, size = 20_000, (60, 90)
    matrix = ViewSampler()(n, size=size, generator=torch.Generator().manual_seed(0)).matrix
    width, height = matrix[:, 0, 0].abs(), matrix[:, 1, 1]
    assert (width > 0).all() and (width <= 1).all() and (height > 0).all() and (height <= 1).all()
    assert (matrix[:, 0, 2].abs() <= 1 - width + 1e-6).all()  # inside the image
    assert (matrix[:, 1, 2].abs() <= 1 - height + 1e-6).all()
    ratio = width * size[1] / (height * size[0])
    assert ratio.min() >= 3 / 4 - 1e-4 and ratio.max() <= 4 / 3 + 1e-4
    area = width * height
    assert 0.08 - 1e-4 <= area.min() < 0.09
    assert abs((matrix[:, 0, 0] < 0).float().mean() - 0.5) < 0.015


def test_the_ratio_is_symmetric_on_a_square():
    generator = torch.Generator().manual_seed(0)
    matrix = ViewSampler()(20_000, size=(64, 64), generator=generator).matrix
    log_ratio = (matrix[:, 0, 0].abs() / matrix[:, 1, 1]).log()
    assert abs(log_ratio.mean()) < 0.01  # wide and tall crops are refused alike there


def test_areas_are_those_of_torchvisions_crop():
    torch.manual_seed(0)
    image, n = torch.zeros(1, 64, 64), 4000
    from torchvision.transforms import RandomResizedCrop

    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    ).double()
    matrix = ViewSampler()(n, size=(64, 64), generator=torch.Generator().manual_seed(0)).matrix
    ours = (matrix[:, 0, 0].abs() * matrix[:, 1, 1]).double()
    areas = theirs[:, 2] * theirs[:, 3] / 64**2
    quantiles = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    torch.testing.assert_close(
        ours.quantile(quantiles), areas.quantile(quantiles), atol=0.03, rtol=0
    )


def test_crops_in_pixels_are_the_views_of_the_same_numbers():
    sampler, sizes = ViewSampler(), [(50, 70), (200, 90), (10, 1000)] * 100
    crops = sampler.crops(sampler.draw(300, torch.Generator().manual_seed(0)), sizes)
    for i, (crop, (height, width)) in enumerate(zip(crops, sizes, strict=True)):
        generator = torch.Generator().manual_seed(0)
        matrix = sampler(i + 1, size=(height, width), generator=generator).matrix[i]
        left = (matrix[0, 2] + 1 - matrix[0, 0].abs()) / 2 * width
        top = (matrix[1, 2] + 1 - matrix[1, 1]) / 2 * height
        found = torch.tensor([crop.left, crop.top, crop.width, crop.height], dtype=torch.float32)
        expected = torch.stack([left, top, matrix[0, 0].abs() * width, matrix[1, 1] * height])
        torch.testing.assert_close(found, expected, atol=0.51, rtol=1e-6)
        assert crop.is_flipped == (matrix[0, 0] < 0)
        assert 0 <= crop.left <= width - crop.width and 0 <= crop.top <= height - crop.height


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (3, 2)])
def test_crops_of_tiny_images_have_a_pixel(size):
    sampler = ViewSampler(scale=(1e-6, 1e-6))
    for crop in sampler.crops(sampler.draw(20), [size] * 20):
        assert crop.height >= 1 and crop.width >= 1
        assert crop(torch.rand(3, *size), (8, 8)).shape == (3, 8, 8)


@pytest.mark.parametrize("size", [(10, 1000), (1000, 10)])
def test_where_no_try_fits_the_largest_central_crop_is_taken(size):
    views = ViewSampler(scale=(1, 1), flip=0.0)(50, size=size)
    width, height = views.matrix[:, 0, 0] * size[1], views.matrix[:, 1, 1] * size[0]
    expected = 4 / 3 if size[1] > size[0] else 3 / 4
    torch.testing.assert_close(width / height, torch.full((50,), expected))
    torch.testing.assert_close(views.matrix[:, :, 2], torch.zeros(50, 2))


def test_seeded_and_independent_of_the_batches():
    sample, generator = ViewSampler(), torch.Generator
    whole = sample(7, size=(30, 40), generator=generator().manual_seed(3)).matrix
    pieces = generator().manual_seed(3)
    parts = [sample(n, size=(30, 40), generator=pieces).matrix for n in (1, 4, 2)]
    assert torch.equal(whole, torch.cat(parts))
    other = sample(7, size=(30, 40), generator=generator().manual_seed(4)).matrix
    assert not torch.equal(whole, other)
    state = torch.get_rng_state()
    sample(7, size=(30, 40), generator=generator().manual_seed(3))
    assert torch.equal(state, torch.get_rng_state())


def test_errors_say_what_came():
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        Warp(torch.eye(2, 3))
    with pytest.raises(ValueError, match="Got 3 images for 2 views"):
        Warp.identity(2)(torch.rand(3, 1, 4, 4))
    with pytest.raises(ValueError, match="scale"):
        ViewSampler(scale=(0.5, 1.5))
    with pytest.raises(ValueError, match="ratio"):
        ViewSampler(ratio=(2.0, 1.0))
    with pytest.raises(ValueError, match="flip"):
        ViewSampler(flip=1.5)
