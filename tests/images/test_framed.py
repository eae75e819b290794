"""Framed images: the network's and the original, read together, each once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_forms import CountingDataset, channels_first, noise, save
from torch.utils.data import DataLoader

from sklcam.images import ImageDataset
from sklcam.images.framed import FramedItems, collate_framed


def batches(items: FramedItems, **options):
    """All images, sizes and originals, as a loader hands them over."""
    loader = DataLoader(items, batch_size=2, collate_fn=collate_framed, **options)
    images, sizes, originals = [], [], []
    for batch, (batch_sizes, batch_originals) in loader:
        images.append(batch)
        sizes += batch_sizes
        originals += batch_originals
    return images, sizes, originals


@pytest.fixture
def pictures(rng):
    return [noise(rng, 6 + i, 9, 3) for i in range(5)]


def test_an_image_comes_with_the_picture_it_was_made_from(pictures):
    images = ImageDataset(CountingDataset(pictures), image_size=4)
    for i, picture in enumerate(pictures):
        framed = images.read(i)
        assert torch.equal(framed.original, channels_first(picture))
        assert torch.equal(framed.image, images[i][0])
        assert framed.image.shape == (3, 4, 4)


@pytest.mark.parametrize("originals", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_brings_sizes_and_what_it_is_asked_for(pictures, originals, num_workers):
    images = ImageDataset(CountingDataset(pictures), image_size=4)
    items = FramedItems(images, originals=originals)
    assert len(items) == 5
    read, sizes, found = batches(items, num_workers=num_workers)
    assert [len(batch) for batch in read] == [2, 2, 1]
    assert torch.equal(torch.cat(read), torch.stack([images[i][0] for i in range(5)]))
    assert sizes == [(6, 9), (7, 9), (8, 9), (9, 9), (10, 9)]
    if originals:
        for original, picture in zip(found, pictures, strict=True):
            assert torch.equal(original, channels_first(picture))
    else:
        assert found == [None] * 5


@pytest.mark.parametrize("rows", [[4, 0, 4], np.array([4, 0, 4])])
def test_a_run_over_some_rows(pictures, rows):
    images = ImageDataset(CountingDataset(pictures), image_size=4)
    read, sizes, originals = batches(FramedItems(images, rows, originals=True))
    assert torch.equal(torch.cat(read), torch.stack([images[i][0] for i in (4, 0, 4)]))
    assert sizes == [(10, 9), (6, 9), (10, 9)]
    assert torch.equal(originals[1], channels_first(pictures[0]))


def test_a_run_reads_each_image_once(pictures):
    dataset = CountingDataset(pictures)
    items = FramedItems(ImageDataset(dataset, image_size=4), originals=True)
    dataset.reads.clear()
    batches(items)
    assert dataset.reads == [0, 1, 2, 3, 4]


def test_a_batch_of_bytes_and_floats_is_float_and_its_originals_stay_as_they_are(rng, tmp_path):
    shallow, deep = noise(rng, 4, 5, 3), np.full((6, 5), 65535, dtype=np.uint16)
    paths = [save(shallow, tmp_path / "shallow.png"), save(deep, tmp_path / "deep.png")]
    items = FramedItems(ImageDataset(paths, image_size=(4, 5)), originals=True)
    (batch,), sizes, originals = batches(items)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch[0], channels_first(shallow).float() / 255)
    assert (batch[1] == 1).all()
    assert sizes == [(4, 5), (6, 5)]
    assert [original.dtype for original in originals] == [torch.uint8, torch.float32]
    assert torch.equal(originals[0], channels_first(shallow))


def test_a_run_is_on_the_device_of_its_images():
    elsewhere = torch.empty(2, 3, 6, 8, dtype=torch.uint8, device="meta")
    assert FramedItems(ImageDataset(elsewhere)).tensor_device == torch.device("meta")
