"""The forms of X, against numbers worked by hand; and what is not a form of images."""

from __future__ import annotations

import os
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from image_forms import (
    CountingDataset,
    Stream,
    Unsized,
    channels_first,
    composed_on_white,
    noise,
    save,
)
from PIL import Image
from scipy.sparse import csr_matrix
from skorch.helper import SliceDataset
from torch.utils.data import Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from sklcam.images import (
    ImageDataset,
    check_images,
    n_images,
)


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
        composed_on_white(with_alpha),
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
        ((path for path in ["cat.png"]), r"X is a generator, which has no indices: pass list\(X\)"),
        ({"cat": "cat.png"}, r"X is a dict of 'cat': pass the entry .*X\[name\]"),
        ({"path": ["cat.png"], "label": [1]}, r"dict of 'path', 'label': pass the entry"),
        ({"cat.png"}, r"X is a set: pass list\(X\)"),
        (range(3), "X is a range. X may be"),
        (csr_matrix(np.eye(3)), "sparse matrix .*tables are not images"),
        (torch.zeros(1, 1, 3, 3).to_sparse(), "sparse tensor"),
        (Stream(), r"Stream, which has no indices: pass list\(X\) .*iter_explain"),
        (Unsized(), "without length or indices: pass a map-style Dataset"),
        ([], "X is empty"),
        ((), "X is empty"),
        (np.array([], dtype=object), "X is empty"),
        (CountingDataset([]), "X is empty"),
        (np.zeros((0, 8, 8)), "X is empty, of shape"),
        (torch.zeros(0, 3, 8, 8), "X is empty, of shape"),
        (np.zeros((2, 0, 8)), "has shape .2, 0, 8., so its images have no pixels"),
        (np.zeros((2, 8, 0, 3)), "no pixels"),
        (np.zeros((2, 8, 8, 0)), "no pixels"),
        (torch.zeros(2, 3, 8, 0), "no pixels"),
        (np.zeros((10, 64)), r"tables are not images.*reshape X to \(n_samples, height, width\)"),
        (np.zeros((10, 64), dtype=int), "tables are not images"),
        (torch.zeros(10, 64), "tables are not images"),
        (np.zeros(64), "X is 1-dimensional"),
        (np.array(0.5), "X is 0-dimensional"),
        (torch.zeros(2, 8, 8), "X is 3-dimensional"),
        (np.full((2, 8, 8), 99, dtype=np.int64), r"int64; .*0 to 255, pass X.astype\(np.uint8\)"),
        (np.ones((2, 8, 8), dtype=int), r"from 1 to 1: pass X.astype\(np.float32\)\."),
        (np.full((2, 8, 8), 999, dtype=np.uint16), r"uint16; .*X.astype\(np.float32\), .*4095 for"),
        (np.full((2, 8, 8), -999, dtype=">i2"), r">i2; .*-999 to -999: .*float32\), .* one window"),
        (np.zeros((2, 8, 8), dtype=bool), "dtype bool"),
        (np.zeros((2, 8, 8), dtype=complex), "dtype complex128"),
        (np.zeros((2, 8, 8), dtype=object), "dtype object and shape"),
        (np.array([["a.png", "b.png"]]), "whose entries are not pixels"),
        (torch.full((2, 1, 8, 8), 9), r"torch.int64; .*pass X.to\(torch.uint8\)"),
        (
            torch.full((2, 1, 8, 8), 4095).short(),
            r"int16; .*X.to\(torch.float32\), .*4095 for",
        ),
        (torch.zeros(2, 1, 8, 8).bool(), "dtype torch.bool"),
        (torch.full((2, 1, 8, 8), 4095).to(torch.uint16), r"torch.uint16; .*4095 for 12 bits"),
        (torch.ones(2, 1, 8, 8).to(torch.float8_e5m2), "dtype torch.float8_e5m2"),
        (np.ma.masked_less(np.zeros((2, 8, 8)), 1), r"masked array.*Pass X.filled"),
        *(
            (np.zeros((2, n, 8, 9)), r"first;.*Pass X.transpose\(0, 2, 3, 1\)")
            for n in (1, 2, 4, 6)
        ),
        *((torch.zeros(2, 8, 9, n), r"last;.*X.permute\(0, 3, 1, 2\)") for n in (1, 2, 4, 6)),
        (np.zeros((2, 3, 8, 3)), 'first or last. Pass .*ImageDataset.X, channels="last"'),
        (torch.zeros(2, 1, 9, 4), 'first or last. Pass .*ImageDataset.X, channels="first"'),
        (np.zeros((2, 8, 8, 9)), "first or last"),
        (torch.zeros(2, 8, 8, 8), "first or last"),
        (np.zeros((224, 200, 3)), r"seems to be one image.*pass X\[np.newaxis\]"),
        (np.zeros((28, 28)), r"one grey image, pass X\[np.newaxis\]"),
        (torch.zeros(28, 28), r"one grey image, pass X\[None, None\]"),
        (torch.zeros(3, 28, 28), r"one image, pass X\[None\]"),
        (
            np.zeros((2, 3, 8, 9)),
            r"X.transpose\(0, 2, 3, 1\), or .*channels='first'",
        ),
        (torch.zeros(2, 8, 9, 3), r"Pass X.permute\(0, 3, 1, 2\)"),
        (RAGGED, "arrays of different sizes cannot be mixed. Pass file paths or PIL images"),
        (OBJECTS, "arrays of different sizes cannot be mixed"),
        ([np.zeros((4, 4)), "cat.png"], "cannot be mixed"),
        ([np.zeros((4, 4))] * 2, r"arrays of shape \(4, 4\): pass np.stack\(X\)"),
        ([torch.zeros(3, 4, 4)] * 2, r"pass torch.stack\(X\)"),
        ([[0, 1], [2, 3]], r"X\[0\] is a list.*, not a file path.* np.asarray\(X\)"),
        ([Image.new("L", (4, 4)), None], r"X\[1\] is None, not a file path.* leave such rows out"),
        (np.array([b"cat.png"]), "zeros at their end, so pass a list"),
    ],
)
def test_what_is_no_form_of_images(X, message):
    for check in (ImageDataset, check_images, n_images):
        with pytest.raises(ValueError, match=message):
            check(X)


def test_volumes_are_images_of_three_sides():
    for X in (np.zeros((2, 3, 4, 5, 6)), torch.zeros(2, 1, 3, 8, 8)):
        with pytest.raises(ValueError, match="X is 5-dimensional"):
            ImageDataset(X)
        images = ImageDataset(X, image_size=X.shape[2:])
        assert n_images(X) == len(images) == 2
        assert images.original_size(0) == tuple(X.shape[2:])
        assert torch.equal(images[1][0], torch.as_tensor(X[1]).float())


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (["/no/cat.png", __file__, "/no/dog.png"], r"2 of the 3 file\(s\).*first is '/no/cat.png'"),
        ([os.path.dirname(__file__)], r"1 of the 1 file\(s\) in X do not exist.*a folder"),
        ([Image.new("L", (4, 0))], r"X\[0\], a PIL image, cannot be read.*size is 4 x 0"),
        ([Image.new("I", (4, 4))], r"X\[0\].*mode 'I'.*float arrays in \[0, 1\]"),
        ([Image.new("L", (4, 4)), Image.new("F", (4, 4))], r"X\[1\].*mode 'F'"),
        (np.full((2, 4, 4), 255.0), "range from 255 to 255; .*divide by 255"),
        (np.array([[[-1.0, 0.5]]]), r"range from -1 to 0.5; .*pass \(X \+ 1\) / 2"),
        (
            np.full((2, 4, 4), 16.0),
            "their largest possible value, 255 for 8 bits",
        ),
        (np.full((2, 4, 4), 3000.0), "possible value, 4095 for 12 bits or 65535 for 16 bits"),
        (np.full((2, 4, 4), 65535.0), "possible value, 65535 for 16 bits"),
        (np.full((2, 4, 4), 1e6), "their largest possible value"),
        (np.array([[[-0.02, 1.1]]]), "clip them"),
        (torch.linspace(-2.1, 2.6, 16).reshape(1, 1, 4, 4), "look normalised.*mean= and std="),
        (np.linspace(-1000, 400, 16).reshape(1, 4, 4), "use one window for all images"),
        (torch.full((2, 1, 4, 4), 200.0), "range from 200 to 200; .*divide by 255"),
        (np.array([[[0.0]], [[np.nan]]]), r"X\[1\] has pixels that are NaN or infinite"),
        (torch.tensor([0.0, -torch.inf]).reshape(2, 1, 1, 1), r"X\[1\] has pixels that are NaN"),
        (CountingDataset([{"image": 0}]), r"X\[0\] is a int. An item of a data set must be"),
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
        (
            torch.full((3, 4, 4), 2.0),
            r"pixels of X\[1\] range from 2 to 2; .* 255 for 8",
        ),
        (torch.full((3, 4, 4), torch.nan), r"X\[1\] has pixels that are NaN"),
        (torch.zeros(1, 4, 4), r"X\[1\] has 1 channel\(s\), but X\[0\] has 3"),
        (torch.zeros(4, 4), r"X\[1\] has shape \(4, 4\)\. An image must"),
        (torch.zeros(3, 4, 0), r"X\[1\] has shape \(3, 4, 0\).*no pixels"),
        (torch.zeros(8, 8, 3), r"X\[1\].permute\(2, 0, 1\)"),
        (np.zeros((3, 8, 8)), r"X\[1\].transpose\(1, 2, 0\)"),
        (np.zeros(4), r"X\[1\] has shape \(4,\)"),
        (np.zeros((4, 4, 3), dtype=np.int32), r"X\[1\] has dtype int32"),
        (Image.new("F", (4, 4)), r"X\[1\] cannot be read as an image: .*mode 'F'"),
        ("cat.png", r"X\[1\] cannot be read as an image: .*'cat.png'"),
    ],
)
def test_bad_items_are_named_when_they_are_read(item, message):
    images = ImageDataset(CountingDataset([torch.zeros(3, 4, 4), item]), image_size=4)
    images[0]
    with pytest.raises(ValueError, match=message):
        images[1]


# Where the channels are


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4, 7])
def test_channels_may_be_said(rng, n_channels):
    last = noise(rng, 2, 8, 9, n_channels)
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    expected = torch.from_numpy(first)
    for X, channels in (
        *((first, "first"), (torch.from_numpy(first), "first"), (CountingDataset(first), "first")),
        *((last, "last"), (torch.from_numpy(last), "last"), (CountingDataset(last), "last")),
    ):
        said = ImageDataset(X, channels=channels, image_size=(8, 9))
        assert torch.equal(torch.stack([image for image, _ in said]), expected)
        # In the place of X, and in parts of it: what was said is still known.
        for again in (ImageDataset(said, image_size=(8, 9)), said[np.array([1, 0])][::-1]):
            assert torch.equal(torch.stack([image for image, _ in again]), expected)


def test_where_the_channels_are_is_said_of_shapes_that_mean_both():
    X = np.zeros((2, 3, 28, 3), dtype=np.uint8)
    X[:, 0] = 255
    assert ImageDataset(X, channels="first").original_size(0) == (28, 3)
    assert ImageDataset(X, channels="last").original_size(0) == (3, 28)
    assert (ImageDataset(X, channels="first").original_image(0)[0] == 255).all()


def test_some_rows_keep_their_labels_and_sizes(rng):
    images = ImageDataset([Image.new("L", (4, n)) for n in (5, 6, 7)], list("abc"), image_size=4)
    some = images[[False, True, True]]
    assert (len(some), some.shape, some.original_size(1), some[1][1]) == (2, (2,), (7, 4), "c")


def test_the_transform_of_a_data_set_is_named():
    data = CountingDataset([torch.rand(3, 8, 8) - 0.4])
    data.transform = v2.Compose([v2.ToImage(), v2.Normalize([0.5] * 3, [0.5] * 3)])
    for X in (data, Subset(data, [0])):
        with pytest.raises(ValueError, match="remove Normalize from it"):
            check_images(X)
    data.transform = v2.GaussianNoise(clip=False)
    with pytest.raises(ValueError, match="remove GaussianNoise from it"):
        check_images(data)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_bytes_of_0_and_1_are_warned_of(make):
    X = np.zeros((2, 8, 8, 8), dtype=np.uint8)
    X = X[:, :1] if make is torch.from_numpy else X[..., 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_images(make(X))
        check_images(make(X + 2))
    with pytest.warns(UserWarning, match=r"none is above 1, .* are black. .* pass X \* 255"):
        check_images(make(X + 1))
