"""``ImageDataset`` as a torch data set: indices, labels, batches, devices."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from image_forms import CountingDataset, channels_first, noise, save
from PIL import Image
from torch.utils.data import DataLoader, Subset

from sklcam.images import (
    ImageDataset,
)


def test_indices_count_from_the_end_too_and_stop_at_the_end(rng):
    X = noise(rng, 3, 4, 4)
    images = ImageDataset(X, y=[5, 6, 7], image_size=4)
    assert torch.equal(images[-1][0][0], torch.from_numpy(X[2]))
    assert [int(label) for _, label in images] == [5, 6, 7]
    with pytest.raises(IndexError):
        images[3]


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


def test_original_images_are_not_resized():
    pixels = np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)
    for X in (pixels, [Image.fromarray(image) for image in pixels]):
        image = ImageDataset(X, image_size=4).original_image(1)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels[1])


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
@pytest.mark.parametrize("shape", [(8, 12), (8, 12, 1), (20, 32, 3), (33, 18, 4), (300, 200, 3)])
@pytest.mark.parametrize("kind", ["array", "tensor", "slice", "memmap"])
def test_batches_are_their_items_bit_by_bit(rng, tmp_path, kind, shape, dtype, resize):
    X = noise(rng, 7, *shape)
    X = X if dtype is np.uint8 else X.astype(dtype) / dtype(255)
    if kind == "memmap":
        np.save(tmp_path / "X.npy", X)
        X = np.load(tmp_path / "X.npy", mmap_mode="r")
    elif kind == "slice":
        X = X[::-1, :, ::2]
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
        assert ImageDataset(X).tensor_device == torch.device("cpu")
    elsewhere = torch.empty(2, 3, 6, 8, dtype=torch.uint8, device="meta")
    assert ImageDataset(elsewhere).tensor_device == torch.device("meta")
    assert ImageDataset(CountingDataset(list(elsewhere))).tensor_device == torch.device("meta")


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


def test_a_single_image_with_its_channels_first_is_told_from_grey_ones():
    with pytest.raises(ValueError, match=r"fitted on 3. If X is one image, pass X.None"):
        ImageDataset(np.zeros((3, 28, 28)), n_channels=3)
