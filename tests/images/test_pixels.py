"""Single images, against Pillow: orientations, depths, palettes, and pixels out of range."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest
import torch
from image_forms import CountingDataset, channels_first, composed_on_white, noise, save
from PIL import Image, ImageOps
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
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


def test_transparent_palettes_are_laid_on_white_without_a_warning():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = b"\x00\xff"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, _ = ImageDataset([image], image_size=(1, 2))[0]
    assert pixels[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize(
    ("mode", "pixel", "options", "on_white", "on_red"),
    [
        ("RGBA", (10, 20, 30, 0), {}, (255, 255, 255), (255, 0, 0)),
        ("RGBA", (10, 20, 30, 255), {}, (10, 20, 30), (10, 20, 30)),
        ("RGBA", (0, 100, 200, 51), {}, (204, 224, 244), (204, 20, 40)),  # a fifth of it
        ("LA", (0, 0), {}, (255, 255, 255), (255, 0, 0)),
        ("LA", (100, 51), {}, (224, 224, 224), (224, 20, 20)),
        ("L", 7, {"transparency": 7}, (255, 255, 255), (255, 0, 0)),
        ("L", 7, {"transparency": 8}, (7, 7, 7), (7, 7, 7)),
        ("1", 0, {"transparency": 0}, (255, 255, 255), (255, 0, 0)),
        ("RGB", (1, 2, 3), {"transparency": (1, 2, 3)}, (255, 255, 255), (255, 0, 0)),
        ("P", 0, {"transparency": 0}, (255, 255, 255), (255, 0, 0)),
        ("I;16", 5, {"transparency": 5}, (1, 1, 1), (1, 0, 0)),
        ("I;16", 65535, {"transparency": 5}, (1, 1, 1), (1, 1, 1)),
    ],
)
def test_transparent_files_are_laid_on_a_background(
    tmp_path, mode, pixel, options, on_white, on_red
):
    Image.new(mode, (3, 2), pixel).save(tmp_path / "a.png", **options)
    for background, expected in ((None, on_white), ("red", on_red), ((255, 0, 0), on_red)):
        images = ImageDataset([tmp_path / "a.png"], image_size=4, background=background)
        assert images[0][0][:, 1, 1].tolist() == list(expected)
        assert images.original_image(0)[:, 1, 1].tolist() == list(expected)


def test_what_lies_under_transparency_is_not_seen(rng):
    drawings = noise(rng, 2, 16, 16, 4)
    drawings[..., 3] = 255 * (drawings[..., 3] > 127)
    drawings[1, ..., 3] = drawings[0, ..., 3]
    shown = drawings[0, ..., 3] == 255
    drawings[1][shown] = drawings[0][shown]
    X = [Image.fromarray(drawing) for drawing in drawings]
    a, b = (image for image, _ in ImageDataset(X, image_size=16))
    assert torch.equal(a, b)
    assert (a[:, torch.from_numpy(~shown)] == 255).all()


def test_image_folders_of_torchvision_do_not_hide_transparency(tmp_path):
    for label, pixel in (("a", (0, 0, 0, 0)), ("b", (0, 0, 0, 255))):
        (tmp_path / label).mkdir()
        Image.new("RGBA", (8, 8), pixel).save(tmp_path / label / "1.png")
    files = ImageFolder(str(tmp_path))
    for X, values in ((files, [255, 0]), (Subset(Subset(files, [1, 0]), [1]), [255])):
        images = ImageDataset(X, image_size=4)
        assert [image.unique().tolist() for image, _ in images] == [[value] for value in values]
    files = ImageFolder(str(tmp_path), transform=ImageOps.grayscale)  # a transform is theirs to do
    assert ImageDataset(files, image_size=4)[0][0].unique().tolist() == [0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("form", ["array", "tensor", "items"])
def test_arrays_are_composed_only_if_told(rng, dtype, form):
    rgba = noise(rng, 3, 8, 9, 4)
    expected = np.stack([composed_on_white(image) for image in rgba])
    X = rgba if dtype == np.uint8 else (rgba / 255).astype(np.float32)
    if form != "array":
        X = torch.from_numpy(X).permute(0, 3, 1, 2)
    X = CountingDataset(X) if form == "items" else X
    assert ImageDataset(X, image_size=8).n_channels == 4
    images = ImageDataset(X, image_size=(8, 9), background="white")
    assert images.n_channels == 3
    for i in range(3):
        pixels = images[i][0].numpy() * (1 if dtype == np.uint8 else 255)
        np.testing.assert_allclose(pixels, expected[i].transpose(2, 0, 1), atol=0.51)


def test_grey_arrays_with_opacity():
    X = np.zeros((1, 8, 8, 2), dtype=np.uint8)
    images = ImageDataset(X, image_size=8, background=(0, 255, 0))
    assert images.n_channels == 1
    assert (images[0][0] == 150).all()  # green's luma, 0.587 * 255


def tiff(values, bits, photometric):
    """A greyscale TIFF file, little-endian, in one strip without compression."""
    height, width = values.shape
    data = values.astype("<u2").tobytes()
    if bits == 12:  # two pixels in three bytes
        digits = "".join(f"{value:03x}" for value in values.ravel())
        data = bytes.fromhex(digits + "0" * (len(digits) % 2))
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data)}
    data += b"\0" * (len(data) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4


@pytest.mark.parametrize(
    ("bits", "photometric", "expected"),
    [
        (12, 1, [[0, 1 / 4095], [2048 / 4095, 1]]),
        (16, 1, [[0, 1 / 65535], [2048 / 65535, 4095 / 65535]]),
        (16, 0, [[1, 65534 / 65535], [63487 / 65535, 61440 / 65535]]),  # 0 is white
    ],
)
def test_deep_tiffs_have_their_own_range(tmp_path, bits, photometric, expected):
    values = np.array([[0, 1], [2048, 4095]])
    (tmp_path / "a.tif").write_bytes(tiff(values, bits, photometric))
    image, _ = ImageDataset([tmp_path / "a.tif"], image_size=2)[0]
    np.testing.assert_allclose(image[1].numpy(), expected, rtol=0, atol=1e-6)


def test_stacks_of_pages_are_refused(rng, tmp_path):
    pages = [Image.fromarray(noise(rng, 8, 8)) for _ in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"stack\.tif' cannot be read.*it has 3 pages"):
        ImageDataset([tmp_path / "stack.tif"])[0]
    with Image.open(tmp_path / "stack.tif") as opened:
        opened.seek(2)
        image, _ = ImageDataset([opened], image_size=8)[0]
    assert torch.equal(image[0], torch.from_numpy(np.array(pages[2])))


def test_thumbnails_are_no_pages(rng, tmp_path):
    page = Image.fromarray(noise(rng, 16, 16))
    thumbnail = page.resize((4, 4))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    page.save(tmp_path / "a.tif", save_all=True, append_images=[thumbnail])
    image, _ = ImageDataset([tmp_path / "a.tif"], image_size=16)[0]
    assert torch.equal(image[0], torch.from_numpy(np.array(page)))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_picture_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    image, _ = ImageDataset([tmp_path / f"a.{suffix}"], image_size=8)[0]
    assert image[:, 4, 4].tolist() == [255, 0, 0]


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
