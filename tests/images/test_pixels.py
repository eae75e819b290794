"""Single images, against Pillow: orientations, depths, palettes, and pixels out of range."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from image_forms import channels_first, noise, save
from PIL import Image, ImageOps
from torchvision.transforms import v2

from sklcam.images import (
    ImageDataset,
)

ORIENTATION = 0x0112  # the number of EXIF's tag


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_exif_orientation(rng, tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(noise(rng, 16, 24, 3), tmp_path / f"turned.{suffix}", exif=exif)
    with Image.open(path) as image:
        upright = np.array(ImageOps.exif_transpose(image))
    assert upright.shape[:2] == ((16, 24) if orientation < 5 else (24, 16))
    with Image.open(path) as opened:
        for images in (ImageDataset([path], image_size=16), ImageDataset([opened], image_size=16)):
            assert images.original_size(0) == upright.shape[:2]
            expected = v2.functional.resize(channels_first(upright), [16, 16], antialias=True)
            assert torch.equal(images[0][0], expected)


def test_original_size_of_a_file_needs_its_header_only(rng, tmp_path):
    path = save(noise(rng, 60, 80, 3), tmp_path / "cut.jpg")
    path.write_bytes(path.read_bytes()[:1000])
    images = ImageDataset([path])
    assert images.original_size(0) == (60, 80)
    with pytest.raises(ValueError, match=r"cut\.jpg' cannot be read"):
        images[0]


def test_orientation_behind_the_pixels_of_a_png_counts(rng, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = save(noise(rng, 4, 6, 3), tmp_path / "late.png", exif=exif)
    png = path.read_bytes()
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    trailer = png.index(b"IEND") - 4
    path.write_bytes(png[:start] + png[end:trailer] + png[start:end] + png[trailer:])
    images = ImageDataset([path], image_size=(6, 4))
    assert images.original_size(0) == (6, 4)
    with Image.open(path) as image:
        assert torch.equal(
            images[0][0], channels_first(np.array(image.transpose(Image.Transpose.ROTATE_270)))
        )


def test_transparent_palettes_give_their_colours_and_no_warning():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = b"\x00\xff"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, _ = ImageDataset([image], image_size=(1, 2))[0]
    assert pixels[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_files_keep_their_precision(tmp_path, suffix):
    grey = np.array([[0, 1, 255], [256, 40000, 65535]], dtype=np.uint16)
    path = save(grey, tmp_path / f"deep.{suffix}")
    image, _ = ImageDataset([path], image_size=(2, 3))[0]
    assert image.dtype == torch.float32
    expected = np.stack([grey / np.float32(65535)] * 3)
    np.testing.assert_allclose(image.numpy(), expected, rtol=1e-7, atol=0)


def test_big_endian_sixteen_bit_images():
    grey = np.array([[1, 2], [256, 65535]], dtype=np.uint16)
    image = Image.frombytes("I;16B", (2, 2), grey.astype(">u2").tobytes())
    pixels, _ = ImageDataset([image], image_size=2)[0]
    np.testing.assert_allclose(pixels[0].numpy(), grey / 65535, rtol=1e-6)


def test_files_of_unknown_range_are_named(tmp_path):
    path = save(np.zeros((4, 4), dtype=np.int32), tmp_path / "wide.tiff")
    with pytest.raises(ValueError, match=r"wide\.tiff' cannot be read.*mode 'I'.*float arrays"):
        ImageDataset([path])[0]


def test_bad_pixels_are_found_behind_the_first_chunk(monkeypatch):
    monkeypatch.setattr("sklcam.images._pixels._SCAN_PIXELS", 100)
    X = np.zeros((50, 8, 8), dtype=np.float32)
    X[33, 2, 3] = np.inf
    X[41] = np.nan
    with pytest.raises(ValueError, match=r"X\[33\] has pixels that are NaN or infinite"):
        ImageDataset(X)
    X[33], X[41] = 3, -2
    with pytest.raises(ValueError, match=r"range from -2 to 3"):
        ImageDataset(X)


def test_small_images_with_three_rows_are_not_taken_for_channels_first():
    assert ImageDataset(np.zeros((2, 3, 4, 4))).n_channels == 4
    assert ImageDataset(torch.zeros(2, 4, 4, 3)).n_channels == 4


def test_floats_that_rounding_took_out_of_range_are_clamped():
    X = np.array([[[-1e-9, 1 + 1e-9]]]).astype(np.float64)
    image, _ = ImageDataset(X, image_size=(1, 2))[0]
    assert image.tolist() == [[[0.0, 1.0]]]
