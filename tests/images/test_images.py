"""Tests of sklcam.images, against Pillow, torchvision and numbers worked by hand."""

from __future__ import annotations

import os
import pickle
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from scipy.sparse import csr_matrix
from skorch.helper import SliceDataset
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from sklcam.images import (
    ImageDataset,
    check_images,
    default_statistics,
    map_to_frame,
    n_images,
    normalize,
)

ORIENTATION = 0x0112  # the number of EXIF's tag


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class CountingDataset(Dataset):
    """Items as they are given, and a list of the indices that were asked for."""

    def __init__(self, items):
        self.items = items
        self.reads = []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.reads.append(i)
        return self.items[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(3, 4, 4)])


def noise(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def save(array, path, **options):
    Image.fromarray(array).save(path, **options)
    return path


def channels_first(array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


# Forms of X


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.uint8, torch.uint8),
        (np.float16, torch.float32),
        (np.float32, torch.float32),
        (np.float64, torch.float32),
        (np.dtype(">f4"), torch.float32),
    ],
)
@pytest.mark.parametrize("n_channels", [None, 1, 2, 3, 5])
def test_arrays_come_out_channels_first_and_unchanged(rng, dtype, expected, n_channels):
    X = noise(rng, 4, 6, 7) if n_channels is None else noise(rng, 4, 6, 7, n_channels)
    X = X if dtype is np.uint8 else (X / 255).astype(dtype)
    images = ImageDataset(X, image_size=(6, 7))
    assert (len(images), images.n_channels, images.uniform_size) == (4, n_channels or 1, (6, 7))
    for i in range(4):
        image, label = images[i]
        by_hand = X[i][None] if n_channels is None else np.moveaxis(X[i], -1, 0)
        assert image.dtype == expected
        np.testing.assert_array_equal(image.numpy(), by_hand.astype(image.numpy().dtype))
        assert isinstance(label, torch.Tensor)
        assert label == 0
        assert images.original_size(i) == (6, 7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_keep_their_axes(dtype):
    X = torch.randint(0, 256, (3, 2, 5, 6), dtype=torch.uint8)
    X = X if dtype == torch.uint8 else (X / 255).to(dtype)
    images = ImageDataset(X, image_size=(5, 6))
    assert (images.n_channels, images.uniform_size) == (2, (5, 6))
    image, _ = images[2]
    assert image.dtype == (torch.uint8 if dtype == torch.uint8 else torch.float32)
    assert torch.equal(image, X[2].to(image.dtype))


def test_tensors_that_require_grad_come_out_detached():
    images = ImageDataset(torch.rand(2, 3, 8, 8, requires_grad=True), image_size=4)
    assert not images[0][0].requires_grad


def test_images_share_no_memory_with_x(rng):
    for X in (noise(rng, 2, 8, 8), torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 8, 8).byte()):
        before = X.copy() if isinstance(X, np.ndarray) else X.clone()
        ImageDataset(X, image_size=8)[0][0].fill_(1)
        assert (before == X).all()


def test_read_only_and_reversed_arrays_give_no_warning(rng):
    X = noise(rng, 3, 8, 8, 3)
    X.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, _ = ImageDataset(X[::-1, :, ::-1], image_size=8)[0]
    assert torch.equal(image, channels_first(X[2, :, ::-1]))


def test_indices_count_from_the_end_too_and_stop_at_the_end(rng):
    X = noise(rng, 3, 4, 4)
    images = ImageDataset(X, y=[5, 6, 7], image_size=4)
    assert torch.equal(images[-1][0][0], torch.from_numpy(X[2]))
    assert [int(label) for _, label in images] == [5, 6, 7]
    with pytest.raises(IndexError):
        images[3]


def test_files_and_pil_images_mix_in_any_mode_and_size(rng, tmp_path):
    colour, grey = noise(rng, 9, 12, 3), noise(rng, 20, 10)
    with_alpha = noise(rng, 5, 6, 4)
    X = [
        str(save(colour, tmp_path / "colour.png")),
        save(grey, tmp_path / "grey.png"),
        Image.fromarray(with_alpha),
        Image.fromarray(grey > 127),
    ]
    expected = [
        colour,
        np.stack([grey] * 3, axis=-1),
        with_alpha[..., :3],
        np.stack([(grey > 127) * np.uint8(255)] * 3, axis=-1),
    ]
    images = ImageDataset(X, image_size=8)
    assert (images.n_channels, images.uniform_size) == (3, None)
    for i, array in enumerate(expected):
        assert images.original_size(i) == array.shape[:2]
        image, _ = ImageDataset(X, image_size=array.shape[:2])[i]
        assert torch.equal(image, channels_first(array))
        by_torchvision = v2.functional.resize(channels_first(array), [8, 8], antialias=True)
        assert torch.equal(images[i][0], by_torchvision)


@pytest.mark.parametrize("container", [list, tuple, np.array, lambda X: np.array(X, dtype=object)])
def test_containers_of_paths(rng, tmp_path, container):
    X = container([str(save(noise(rng, 4, 4), tmp_path / f"{i}.png")) for i in range(3)])
    assert n_images(X) == 3
    assert ImageDataset(X, image_size=4)[2][0].shape == (3, 4, 4)


def test_object_arrays_of_pil_images(rng):
    X = np.empty(2, dtype=object)
    X[:] = [Image.fromarray(noise(rng, 4, 5)) for _ in range(2)]
    assert ImageDataset(X).original_size(1) == (4, 5)


def test_transparent_palettes_give_their_colours_and_no_warning():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = b"\x00\xff"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, _ = ImageDataset([image], image_size=(1, 2))[0]
    assert pixels[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]


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


def test_a_batch_that_mixes_bit_depths_is_float_throughout(rng, tmp_path):
    deep = np.full((4, 4), 65535, dtype=np.uint16)
    shallow = noise(rng, 4, 4, 3)
    X = [save(shallow, tmp_path / "shallow.png"), save(deep, tmp_path / "deep.png")]
    images = ImageDataset(X, image_size=4)
    batch, _ = next(iter(DataLoader(Subset(images, [1, 0]), batch_size=2)))
    assert batch.dtype == torch.float32
    assert (batch[0] == 1).all()
    torch.testing.assert_close(batch[1], channels_first(shallow).float() / 255)
    # One depth in the batch: as single items are.
    batch, _ = next(iter(DataLoader(images, batch_size=1)))
    assert batch.dtype == torch.uint8


@pytest.mark.parametrize("wrap", [lambda item: item, lambda item: (item, 7), lambda item: [item]])
@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (torch.full((2, 3, 4), 9, dtype=torch.uint8), torch.full((2, 3, 4), 9)),
        (tv_tensors.Image(torch.full((3, 3, 4), 9).byte()), torch.full((3, 3, 4), 9)),
        (torch.full((1, 3, 4), 0.5, dtype=torch.float64), torch.full((1, 3, 4), 0.5)),
        (np.full((3, 4), 0.25), torch.full((1, 3, 4), 0.25)),
        (np.full((3, 4, 2), 8, dtype=np.uint8), torch.full((2, 3, 4), 8)),
        (Image.new("L", (4, 3), 6), torch.full((3, 3, 4), 6)),
    ],
)
def test_items_of_data_sets(item, expected, wrap):
    images = ImageDataset(CountingDataset([wrap(item)]), image_size=(3, 4))
    assert images.n_channels == len(expected)
    assert images.uniform_size is None
    assert images.original_size(0) == (3, 4)
    image, _ = images[0]
    assert type(image) is torch.Tensor
    assert torch.equal(image, expected.to(image.dtype))


def test_slice_datasets_of_skorch(rng):
    X = noise(rng, 5, 4, 4, 3)
    sliced = SliceDataset(CountingDataset([(array, i) for i, array in enumerate(X)]))[1:4]
    assert n_images(sliced) == 3
    images = ImageDataset(sliced, y=[1, 2, 3], image_size=4)
    assert [len(images), images.n_channels] == [3, 3]
    assert torch.equal(images[2][0], channels_first(X[3]))


# Laziness


def test_data_sets_are_read_once_at_the_door_and_then_when_asked():
    dataset = CountingDataset([(torch.rand(3, 4, 4), 0) for _ in range(5)])
    assert n_images(dataset) == 5
    assert dataset.reads == []
    images = ImageDataset(dataset, image_size=4)
    assert dataset.reads == [0]
    images[3]
    images[-1]
    assert dataset.reads == [0, 3, 4]


def test_files_are_read_when_asked_for(rng, tmp_path):
    paths = [save(noise(rng, 4, 4), tmp_path / f"{i}.png") for i in range(3)]
    images = ImageDataset(paths, image_size=4)
    paths[1].write_bytes(b"no image any more")
    assert images[0][0].shape == images[2][0].shape
    with pytest.raises(ValueError, match=r"1\.png' cannot be read as an image") as caught:
        images[1]
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ValueError, match=r"1\.png"):
        images.original_size(1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_memory_maps_stay_on_the_disk(tmp_path, dtype):
    X = np.lib.format.open_memmap(
        tmp_path / "X.npy", mode="w+", dtype=dtype, shape=(400, 128, 128, 3)
    )
    X[7] = 1
    X.flush()
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    tracemalloc.start()
    image, _ = ImageDataset(X, image_size=128)[7]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (image == 1).all()
    assert peak < X.nbytes / 8


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


# Errors at the door


RAGGED = [np.zeros((4, 4)), np.zeros((5, 4))]
OBJECTS = np.empty(2, dtype=object)
OBJECTS[:] = RAGGED


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (None, "X is None. X may be"),
        (3, "X is a int. X may be"),
        (np.float64(0.5), "X is a numpy.float64"),
        ("cat.png", r"X is one file path, 'cat.png': wrap it in a list"),
        (Path("cat.png"), r"one file path, .*wrap it in a list"),
        (b"cat.png", "wrap it in a list"),
        (Image.new("L", (4, 4)), "one PIL image: wrap it in a list"),
        ((path for path in ["cat.png"]), r"X is a generator, which has no length: pass list\(X\)"),
        ({"cat": "cat.png"}, "X is a dict. X may be"),
        ({"cat.png"}, "X is a set. X may be"),
        (range(3), "X is a range. X may be"),
        (pd.DataFrame({"path": ["cat.png"]}), r"DataFrame: .*pass X\[column\].tolist\(\)"),
        (pd.Series(["cat.png"]), r"Series: .*tolist"),
        (csr_matrix(np.eye(3)), "sparse matrix .*tables are not images"),
        (torch.zeros(1, 1, 3, 3).to_sparse(), "sparse tensor"),
        (Stream(), "without length or indices: a map-style Dataset is needed"),
        ([], "X is empty"),
        ((), "X is empty"),
        (np.array([], dtype=object), "X is empty"),
        (CountingDataset([]), "X is empty"),
        (np.zeros((0, 8, 8)), "X is empty, of shape"),
        (torch.zeros(0, 3, 8, 8), "X is empty, of shape"),
        (np.zeros((2, 0, 8)), "has shape .2, 0, 8.: its images have no pixels"),
        (np.zeros((2, 8, 0, 3)), "no pixels"),
        (np.zeros((2, 8, 8, 0)), "no pixels"),
        (torch.zeros(2, 3, 8, 0), "no pixels"),
        (np.zeros((10, 64)), r"tables are not images.*reshape to \(n_samples, height, width\)"),
        (np.zeros((10, 64), dtype=int), "tables are not images"),
        (torch.zeros(10, 64), "tables are not images"),
        (np.zeros(64), "X is 1-dimensional"),
        (np.array(0.5), "X is 0-dimensional"),
        (np.zeros((2, 3, 4, 5, 3)), "X is 5-dimensional"),
        (torch.zeros(2, 8, 8), "X is 3-dimensional"),
        (torch.zeros(2, 1, 3, 8, 8), "X is 5-dimensional"),
        (np.zeros((2, 8, 8), dtype=np.int64), r"dtype int64; .*pass X.astype\(np.uint8\)"),
        (np.zeros((2, 8, 8), dtype=np.uint16), r"dtype uint16; .*astype\(np.uint8\)"),
        (np.zeros((2, 8, 8), dtype=bool), "dtype bool"),
        (np.zeros((2, 8, 8), dtype=complex), "dtype complex128"),
        (np.zeros((2, 8, 8), dtype=object), "dtype object and shape"),
        (np.array([["a.png", "b.png"]]), "whose entries are not pixels"),
        (torch.zeros(2, 1, 8, 8).int(), r"dtype torch.int32; .*to\(torch.uint8\)"),
        (torch.zeros(2, 1, 8, 8).bool(), "dtype torch.bool"),
        (np.zeros((2, 3, 8, 9)), r"pass X.transpose\(0, 2, 3, 1\).*torch.from_numpy\(X\)"),
        (torch.zeros(2, 8, 9, 3), r"pass X.permute\(0, 3, 1, 2\)"),
        (RAGGED, "arrays of different sizes cannot be mixed. Pass file paths or PIL images"),
        (OBJECTS, "arrays of different sizes cannot be mixed"),
        ([np.zeros((4, 4)), "cat.png"], "cannot be mixed"),
        ([np.zeros((4, 4))] * 2, r"arrays of shape \(4, 4\): pass np.stack\(X\)"),
        ([torch.zeros(3, 4, 4)] * 2, r"pass torch.stack\(X\)"),
        ([[0, 1], [2, 3]], r"X\[0\] is a list, not a file path or a PIL image"),
        ([Image.new("L", (4, 4)), None], r"X\[1\] is a NoneType, not a file path"),
        ([b"cat.png"], r"X\[0\] is a bytes, not a file path"),
        (np.array([b"cat.png"]), r"X\[0\] is a bytes_, not a file path"),
    ],
)
def test_what_is_no_form_of_images(X, message):
    for check in (ImageDataset, check_images, n_images):
        with pytest.raises(ValueError, match=message):
            check(X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (["/no/cat.png", __file__, "/no/dog.png"], r"2 of the 3 file\(s\).*first is '/no/cat.png'"),
        ([os.path.dirname(__file__)], r"1 of the 1 file\(s\) in X do not exist.*a folder"),
        ([Image.new("L", (4, 0))], r"X\[0\], a PIL image, cannot be read.*size is 4 x 0"),
        ([Image.new("I", (4, 4))], r"X\[0\].*mode 'I'.*float arrays in \[0, 1\]"),
        ([Image.new("L", (4, 4)), Image.new("F", (4, 4))], r"X\[1\].*mode 'F'"),
        (np.full((2, 4, 4), 255.0), "range from 255 to 255; .*divide by 255"),
        (np.array([[[-1.0, 0.5]]]), "range from -1 to 0.5; .*shift and scale"),
        (torch.full((2, 1, 4, 4), 200.0), "range from 200 to 200; .*divide by 255"),
        (np.array([[[0.0]], [[np.nan]]]), r"X\[1\] has pixels that are NaN or infinite"),
        (torch.tensor([0.0, -torch.inf]).reshape(2, 1, 1, 1), r"X\[1\] has pixels that are NaN"),
        (CountingDataset([{"image": 0}]), r"X\[0\] is a dict; an item of a data set must be"),
        (CountingDataset([()]), r"X\[0\] is a tuple"),
        (SliceDataset(CountingDataset([(torch.zeros(3, 4, 4), 2)]), idx=1), r"X\[0\] is a int"),
    ],
)
def test_what_only_the_content_shows(X, message):
    n_images(X)
    for check in (ImageDataset, check_images):
        with pytest.raises(ValueError, match=message):
            check(X)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.full((3, 4, 4), 2.0), r"pixels of X\[1\] range from 2 to 2; .*divide by 255"),
        (torch.full((3, 4, 4), torch.nan), r"X\[1\] has pixels that are NaN"),
        (torch.zeros(1, 4, 4), r"X\[1\] has 1 channel\(s\), but X\[0\] has 3"),
        (torch.zeros(4, 4), r"X\[1\] has shape \(4, 4\); an image is"),
        (torch.zeros(3, 4, 0), r"X\[1\] has shape \(3, 4, 0\).*no pixels"),
        (torch.zeros(8, 8, 3), r"X\[1\].permute\(2, 0, 1\)"),
        (np.zeros((3, 8, 8)), r"X\[1\].transpose\(1, 2, 0\)"),
        (np.zeros(4), r"X\[1\] has shape \(4,\)"),
        (np.zeros((4, 4, 3), dtype=np.int32), r"X\[1\] has dtype int32"),
        (Image.new("F", (4, 4)), r"X\[1\] cannot be read as an image: .*mode 'F'"),
        ("cat.png", r"X\[1\] is a str; an item of a data set"),
    ],
)
def test_bad_items_are_named_when_they_are_read(item, message):
    images = ImageDataset(CountingDataset([torch.zeros(3, 4, 4), item]), image_size=4)
    images[0]
    with pytest.raises(ValueError, match=message):
        images[1]


def test_files_of_unknown_range_are_named(tmp_path):
    path = save(np.zeros((4, 4), dtype=np.int32), tmp_path / "wide.tiff")
    with pytest.raises(ValueError, match=r"wide\.tiff' cannot be read.*mode 'I'.*float arrays"):
        ImageDataset([path])[0]


def test_small_images_with_three_rows_are_not_taken_for_channels_first():
    assert ImageDataset(np.zeros((2, 3, 4, 4))).n_channels == 4
    assert ImageDataset(torch.zeros(2, 4, 4, 3)).n_channels == 4


def test_floats_that_rounding_took_out_of_range_are_clamped():
    X = np.array([[[-1e-9, 1 + 1e-9]]]).astype(np.float64)
    image, _ = ImageDataset(X, image_size=(1, 2))[0]
    assert image.tolist() == [[[0.0, 1.0]]]


# Labels


@pytest.mark.parametrize(
    "y",
    [
        ["a", "b", "c"],
        ("a", "b", "c"),
        np.array(["a", "b", "c"]),
        pd.Series(["a", "b", "c"], index=[2, 1, 0]),
    ],
)
def test_labels_are_taken_by_position(y):
    images = ImageDataset(np.zeros((3, 4, 4)), y)
    assert [images[i][1] for i in range(3)] == ["a", "b", "c"]


# Resizing


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (7, 100), (5, 5), (12, 12), (24, 12)])
def test_center_crop_is_torchvisions_for_square_sizes(rng, dtype, shape):
    X = noise(rng, 1, *shape, 3) if dtype == np.uint8 else rng.random((1, *shape, 3), dtype=dtype)
    image, _ = ImageDataset(X, image_size=12, resize="center_crop")[0]
    oracle = v2.Compose([v2.Resize(12, antialias=True), v2.CenterCrop(12)])
    torch.testing.assert_close(image, oracle(channels_first(X[0])), rtol=0, atol=1e-6)


def test_center_crop_covers_sizes_that_are_not_square(rng):
    X = noise(rng, 1, 10, 10)
    # Already wide enough: 10 rows become the middle 4 of them, and no pixel is touched.
    image, _ = ImageDataset(X, image_size=(4, 10), resize="center_crop")[0]
    assert torch.equal(image[0], torch.from_numpy(X[0, 3:7]))
    # max(20 / 10, 6 / 10) = 2: scaled to 20 x 20, of which columns 7 to 12 stay.
    image, _ = ImageDataset(X, image_size=(20, 6), resize="center_crop")[0]
    scaled = v2.functional.resize(torch.from_numpy(X), [20, 20], antialias=True)
    assert torch.equal(image, scaled[..., 7:13])


@pytest.mark.parametrize("size", [5, 16, (9, 31)])
def test_arrays_tensors_and_files_are_resized_alike(rng, tmp_path, size):
    X = noise(rng, 1, 13, 17, 3)
    forms = [
        X,
        channels_first(X[0])[None],
        [Image.fromarray(X[0])],
        [save(X[0], tmp_path / "image.png")],
        CountingDataset([X[0]]),
    ]
    for resize in ("stretch", "center_crop"):
        first, *others = [
            ImageDataset(form, image_size=size, resize=resize)[0][0] for form in forms
        ]
        assert first.dtype == torch.uint8
        assert first.is_contiguous()
        for other in others:
            assert torch.equal(first, other)


def test_resizing_is_antialiased_as_pillows(rng):
    X = noise(rng, 1, 64, 48, 3)
    image, _ = ImageDataset(X, image_size=(16, 12))[0]
    pillow = np.array(Image.fromarray(X[0]).resize((12, 16), Image.Resampling.BILINEAR))
    # Both round to whole grey levels, each in its own order.
    assert (image.int() - channels_first(pillow).int()).abs().max() <= 1


# In a DataLoader


@pytest.mark.parametrize("num_workers", [0, 2])
def test_in_a_data_loader(rng, tmp_path, num_workers):
    arrays = [noise(rng, 6, 5 + i, 3) for i in range(4)]
    path = save(arrays[1], tmp_path / "opened.png")
    with Image.open(path) as opened:
        X = [Image.fromarray(arrays[0]), opened, path, Image.fromarray(arrays[3])]
        images = ImageDataset(X, y=["a", "b", "c", "d"], image_size=4)
        loader = DataLoader(images, batch_size=3, num_workers=num_workers)
        (first, labels), (second, _) = list(loader)
    assert list(labels) == ["a", "b", "c"]
    assert torch.equal(torch.cat([first, second]), torch.stack([image for image, _ in images]))


def test_batches_are_their_items(rng):
    images = ImageDataset(noise(rng, 5, 6, 7), y=range(5), image_size=4)
    for (image, label), i in zip(images.__getitems__([4, 0, 2]), [4, 0, 2], strict=True):
        assert torch.equal(image, images[i][0])
        assert label == i


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (20, 32, 3), (33, 18, 4), (300, 200, 3)])
@pytest.mark.parametrize("kind", ["array", "tensor", "slice", "memmap"])
def test_batches_are_their_items_bit_by_bit(rng, tmp_path, kind, shape, dtype, resize):
    X = noise(rng, 7, *shape)
    X = X if dtype is np.uint8 else X.astype(dtype) / dtype(255)
    if kind == "memmap":
        np.save(tmp_path / "X.npy", X)
        X = np.load(tmp_path / "X.npy", mmap_mode="r")
    elif kind == "slice":
        X = X[::-1, ::2]
    elif kind == "tensor":
        X = torch.from_numpy(X if X.ndim == 4 else X[..., None]).permute(0, 3, 1, 2)
    before = X.clone() if isinstance(X, torch.Tensor) else X.copy()
    for size in (shape[:2], 16, (40, 21)):
        images = ImageDataset(X, image_size=size, resize=resize)
        indices = [6, 0, 3, -2, 0]
        batch = [image for image, _ in images.__getitems__(indices)]
        for image, i in zip(batch, indices, strict=True):
            assert image.dtype == images[i][0].dtype
            assert torch.equal(image, images[i][0])
        for image in batch:
            image.zero_()
        assert (before == X).all()


def test_a_batch_of_what_is_not_there_is_an_error(rng):
    images = ImageDataset(noise(rng, 5, 6, 7), image_size=4)
    with pytest.raises(IndexError):
        images.__getitems__([0, 5])


def test_the_device_is_that_of_the_images(rng):
    array = noise(rng, 2, 6, 8, 3)
    for X in (array, torch.from_numpy(array).permute(0, 3, 1, 2), [Image.fromarray(array[0])]):
        assert ImageDataset(X).device == torch.device("cpu")
    elsewhere = torch.empty(2, 3, 6, 8, dtype=torch.uint8, device="meta")
    assert ImageDataset(elsewhere).device == torch.device("meta")
    assert ImageDataset(CountingDataset(list(elsewhere))).device == torch.device("meta")


@pytest.mark.parametrize("form", ["array", "tensor", "pil", "path", "dataset"])
def test_pickles(rng, tmp_path, form):
    array = noise(rng, 6, 8, 3)
    X = {
        "array": array[None],
        "tensor": channels_first(array)[None],
        "pil": [Image.fromarray(array)],
        "path": [save(array, tmp_path / "image.png")],
        "dataset": CountingDataset([(array, 1)]),
    }[form]
    images = ImageDataset(X, image_size=5)
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy[0][0], images[0][0])
    assert copy.original_size(0) == (6, 8)


# Normalisation


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_and_maps_stay_on_their_device():
    X = torch.rand(2, 3, 8, 8)
    image, _ = ImageDataset(X.cuda(), image_size=4)[1]
    assert image.is_cuda
    torch.testing.assert_close(image.cpu(), ImageDataset(X, image_size=4)[1][0])
    for resize in ("stretch", "center_crop"):
        on_device = map_to_frame(X[0].cuda(), (6, 11), resize=resize)
        torch.testing.assert_close(on_device.cpu(), map_to_frame(X[0], (6, 11), resize=resize))


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


# Maps in the frame of the original image


def test_map_to_frame_by_hand():
    # Bilinear, pixels as areas: the new pixels' centres lie at -0.25, 0.25, 0.75, 1.25.
    out = map_to_frame(torch.tensor([[0.0, 4.0]]), (1, 4))
    assert out.tolist() == [[0.0, 1.0, 3.0, 4.0]]


def test_map_to_frame_is_pytorchs_interpolation():
    maps = torch.rand(2, 3, 7, 9)
    interpolate = torch.nn.functional.interpolate
    larger = interpolate(maps, (20, 30), mode="bilinear", align_corners=False)
    torch.testing.assert_close(map_to_frame(maps, (20, 30)), larger)
    smaller = interpolate(maps, (3, 4), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(map_to_frame(maps, (3, 4)), smaller)
    assert torch.equal(map_to_frame(maps, (7, 9)), maps)


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_map_to_frame_keeps_leading_dimensions(resize, leading):
    maps = torch.rand(*leading, 8, 6, dtype=torch.float64)
    out = map_to_frame(maps, (5, 7), resize=resize)
    assert out.shape == (*leading, 5, 7)
    assert out.dtype == torch.float64
    for index in np.ndindex(*leading):
        torch.testing.assert_close(out[index], map_to_frame(maps[index], (5, 7), resize=resize))


def test_map_of_a_center_crop_by_hand():
    # 2 x 4 covers 2 x 2 as it is; the crop is columns 1 and 2.
    out = map_to_frame(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (2, 4), resize="center_crop")
    assert out.tolist() == [[0, 1, 2, 0], [0, 3, 4, 0]]


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (7, 23), (31, 31), (100, 70), (9, 8)])
@pytest.mark.parametrize("frame", [(16, 16), (12, 20)])
def test_map_of_a_center_crop_is_full_inside_and_zero_outside(size, frame):
    out = map_to_frame(torch.ones(frame), size, resize="center_crop")
    assert out.shape == size
    # max(H/h, W/w): how much of the original's height and width the crop shows.
    scale = max(frame[0] / size[0], frame[1] / size[1])
    for axis in (0, 1):
        lines = out.amax(dim=1 - axis)
        assert all(min(abs(line), abs(line - 1)) < 1e-6 for line in lines.tolist())
        # Scaled sizes are whole, which can be off by one scaled pixel, and so are original ones.
        assert lines.sum() == pytest.approx(frame[axis] / scale, abs=1 + 1 / scale)
        inside = lines.nonzero().flatten()
        assert inside.diff().eq(1).all()
        assert abs((inside[0] - (size[axis] - 1 - inside[-1])).item()) <= 1


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
@pytest.mark.parametrize("size", [(48, 32), (32, 48), (90, 60)])
def test_there_and_back_a_smooth_image_returns(resize, size):
    rows = torch.linspace(0, 3, size[0])[:, None]
    columns = torch.linspace(0, 3, size[1])
    picture = 0.5 + 0.25 * (torch.sin(rows) + torch.cos(columns))
    picture = picture.clamp(0.01, 1)
    images = ImageDataset(picture[None, None], image_size=24, resize=resize)
    back = map_to_frame(images[0][0][0], images.original_size(0), resize=resize)
    seen = back > 0
    assert seen.float().mean() == pytest.approx(1 if resize == "stretch" else 2 / 3, abs=0.02)
    torch.testing.assert_close(back[seen], picture[seen], rtol=0, atol=0.05)
    # Away from the borders, where half a pixel is missing, it is much closer.
    middle = (slice(size[0] // 3, -size[0] // 3), slice(size[1] // 3, -size[1] // 3))
    torch.testing.assert_close(back[middle], picture[middle], rtol=0, atol=0.005)


def test_map_to_frame_passes_gradients():
    maps = torch.rand(4, 4, requires_grad=True)
    map_to_frame(maps, (4, 8), resize="center_crop").sum().backward()
    assert (maps.grad == 1).all()


def test_original_images_are_not_resized():
    pixels = np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)
    for X in (pixels, [Image.fromarray(image) for image in pixels]):
        image = ImageDataset(X, image_size=4).original_image(1)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels[1])
