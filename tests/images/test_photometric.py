"""Photometric views against torchvision and PIL."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torchvision.transforms.v2 import functional as tv

from sklcam.images.photometric import BLUR, SMOOTH, Photometry, filtered
from sklcam.training import ViewSampler

IMAGES = torch.rand(4, 3, 20, 17, generator=torch.Generator().manual_seed(0))
FACTORS = torch.tensor([0.0, 0.4, 1.0, 1.9])
THEIRS = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "color": tv.adjust_saturation,
    "sharpness": tv.adjust_sharpness,
}


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("name", THEIRS)
def test_factors_are_torchvisions(name, n_channels):
    images = IMAGES[:, :n_channels]
    found = Photometry(**{name: FACTORS})(images)
    pairs = zip(images, FACTORS.tolist(), strict=True)
    expected = torch.stack([THEIRS[name](image, factor) for image, factor in pairs])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found[2] - images[2]).abs().max() < 1e-6
    if (name, n_channels) != ("color", 1):
        assert (found[1] - images[1]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("color", ImageEnhance.Color),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_factors_are_pils(name, enhancer):
    pixels = (IMAGES * 255).round().to(torch.uint8)
    found = Photometry(**{name: FACTORS})(pixels / 255)
    for image, factor, ours in zip(pixels, FACTORS.tolist(), found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        theirs = torch.from_numpy(np.array(enhancer(picture).enhance(factor))).permute(2, 0, 1)
        # PIL rounds to bytes, the mean too.
        torch.testing.assert_close(ours * 255, theirs.float(), atol=2.5, rtol=0)


@pytest.mark.parametrize(("kernel", "theirs"), [(SMOOTH, "SMOOTH"), (BLUR, "BLUR")])
def test_filters_are_pils_at_the_border_too(kernel, theirs):
    pixels = (IMAGES * 255).round().to(torch.uint8)
    found = filtered(pixels / 255, kernel) * 255
    for image, ours in zip(pixels, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        blurred = np.array(picture.filter(getattr(ImageFilter, theirs)))
        expected = torch.from_numpy(blurred).permute(2, 0, 1).float()
        torch.testing.assert_close(ours, expected, atol=0.51, rtol=0)
    tiny = torch.rand(1, 2, len(kernel) - 1, 9)
    assert torch.equal(filtered(tiny, kernel), tiny)


@pytest.mark.parametrize("shape", [(3, 20, 17), (2, 4, 30), (1, 1, 1)])
def test_the_blur_is_torchvisions(shape):
    images, sigmas = torch.rand(3, *shape), torch.tensor([0.3, 1.0, 1.7])
    found = Photometry(blur=sigmas, largest_blur=1.7)(images)
    sizes = [2 * min(6, side - 1) + 1 for side in shape[:0:-1]]  # 3 x 1.7, rounded up; x first
    for image, sigma, ours in zip(images, sigmas.tolist(), found, strict=True):
        expected = tv.gaussian_blur(image, sizes, [sigma, sigma])
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert torch.equal(Photometry(blur=torch.zeros(3), largest_blur=1.7)(images), images)


def test_grey_is_torchvisions():
    found = Photometry(grey=torch.tensor([True, False, True, False]))(IMAGES)
    assert torch.equal(found[1::2], IMAGES[1::2])
    expected = tv.rgb_to_grayscale(IMAGES[::2], 3)
    torch.testing.assert_close(found[::2], expected, atol=1e-6, rtol=0)


def test_changes_come_in_the_order_of_the_parameters():
    factor = torch.tensor([1.5])
    names = list(THEIRS)
    found = Photometry(**dict.fromkeys(names, factor))(IMAGES[:1])
    expected = IMAGES[:1]
    for name in names:
        expected = THEIRS[name](expected, 1.5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["contrast", "color", "grey"])
def test_colors_are_of_grey_or_rgb_images(name):
    views = ViewSampler(**{name: 1})(2, size=(5, 5))
    with pytest.raises(ValueError, match=rf"{name} of a view .* these have 4 channels.*at 0"):
        views.of_images(torch.rand(2, 4, 5, 5))
    assert torch.equal(views(torch.rand(2, 4, 5, 5)).isnan().any(), torch.tensor(False))


def test_strengths_are_drawn_as_by_color_jitter():
    sampler = ViewSampler(brightness=0.3, contrast=2.5, color=1, sharpness=0.9, blur=2, grey=0.2)
    changes = sampler(4000, size=(8, 8), generator=torch.Generator().manual_seed(0)).photometry
    ranges = {"brightness": (0.7, 1.3), "contrast": (0, 3.5), "color": (0, 2)}
    ranges |= {"sharpness": (0.1, 1.9), "blur": (0, 2)}
    drawn = []
    for name, (low, high) in ranges.items():
        values = getattr(changes, name)
        drawn.append(values)
        assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        assert float(values.std()) == pytest.approx((high - low) / 12**0.5, rel=0.03)
    assert float(changes.grey.float().mean()) == pytest.approx(0.2, abs=0.02)
    correlations = torch.corrcoef(torch.stack([*drawn, changes.grey.float()]))
    assert (correlations - torch.eye(6)).abs().max() < 0.05
    assert ViewSampler(grey=1)(500, size=(8, 8)).photometry.grey.all()


def test_only_what_is_asked_for_is_recorded():
    assert ViewSampler(rotation=3)(2, size=(8, 8)).photometry is None
    views = ViewSampler((1, 1), (1, 1), flip=0, sharpness=0.5)(4, size=(20, 17))
    assert views.is_inside and views.photometry.brightness is None
    whole = ViewSampler((1, 1), (20 / 17, 20 / 17), flip=0)(4, size=(17, 20))
    assert torch.equal(whole.of_images(IMAGES.mT), IMAGES.mT)


def test_colors_come_last():
    colors, turns = ViewSampler(brightness=1), ViewSampler(rotation=9)
    views = turns(2, size=(4, 4)).then(colors(2, size=(4, 4)))
    assert views.photometry is not None and views.inverse().photometry is None
    with pytest.raises(ValueError, match="after one that does not change colours"):
        views.then(turns(2, size=(4, 4)))
    with pytest.raises(ValueError, match=r"then needs a Warp of 2 .* got .*n_images=3"):
        turns(2, size=(4, 4)).then(turns(3, size=(4, 4)))
