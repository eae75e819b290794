"""X, opened: its rows batch by batch, with originals, other inputs and workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import ImageAndVector
from torch import nn
from torch.utils.data import Dataset

from sklcam.explain.opened import OpenedImages
from sklcam.images.normalization import normalize
from sklcam.networks import Preparation, adapt

PICTURES = [
    np.random.default_rng(i).integers(0, 256, (6 + i, 9, 3), dtype=np.uint8) for i in range(5)
]


class Pictures(Dataset):
    """Pictures of several sizes, and a list of what was read."""

    def __init__(self):
        self.reads = []

    def __len__(self):
        return len(PICTURES)

    def __getitem__(self, i):
        self.reads.append(i)
        return Image.fromarray(PICTURES[i]), 0


def adapter(model=None, **options):
    preparation = {"image_size": 4, "batch_size": 2, "mean": 0.5, "std": 0.25, **options}
    return adapt(model or nn.Conv2d(3, 4, 1), Preparation(**preparation))


def together(opened):
    """All that the batches bring, in one piece each."""
    batches = list(opened.batches())
    images = torch.cat([batch.inputs.images for batch in batches])
    sizes = [size for batch in batches for size in batch.sizes]
    return batches, images, sizes


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_cover_all_rows_in_their_order(num_workers):
    opened = OpenedImages(adapter(num_workers=num_workers), Pictures())
    assert (len(opened), opened.n_channels, opened.image_size) == (5, 3, (4, 4))
    batches, images, sizes = together(opened)
    assert [(batch.start, batch.stop, len(batch)) for batch in batches] == [
        (0, 2, 2),
        (2, 4, 2),
        (4, 5, 1),
    ]
    assert images.shape == (5, 3, 4, 4)
    assert sizes == [(6, 9), (7, 9), (8, 9), (9, 9), (10, 9)]
    assert all(batch.originals is None and batch.resized is None for batch in batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_originals_come_with_the_images_that_were_made_of_them(num_workers):
    opened = OpenedImages(adapter(num_workers=num_workers), Pictures(), originals=True)
    batches, images, _ = together(opened)
    originals = [original for batch in batches for original in batch.originals]
    for original, picture in zip(originals, PICTURES, strict=True):
        np.testing.assert_array_equal(original.permute(1, 2, 0).numpy(), picture)
    resized = torch.cat([batch.resized for batch in batches])
    assert resized.dtype == torch.uint8
    assert torch.equal(normalize(resized, 0.5, 0.25), images)


def test_a_subset_reads_its_rows_alone_and_each_once():
    pictures = Pictures()
    opened = OpenedImages(adapter(), pictures)
    _, images, _ = together(opened)
    pictures.reads.clear()
    subset = opened.subset([4, 1, 4])
    assert (len(subset), len(opened)) == (3, 5)
    batches, some, sizes = together(subset)
    assert pictures.reads == [4, 1, 4]
    assert [(batch.start, batch.stop) for batch in batches] == [(0, 2), (2, 3)]
    assert torch.equal(some, images[[4, 1, 4]])
    assert sizes == [(10, 9), (7, 9), (10, 9)]
    assert torch.equal(together(subset.subset(range(1, 2)))[1], images[[1]])


def test_bit_depths_mix_in_a_batch():
    deep = Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16))
    opened = OpenedImages(adapter(), [Image.fromarray(PICTURES[0]), deep], originals=True)
    ((batch,), images, _) = together(opened)
    assert [original.dtype for original in batch.originals] == [torch.uint8, torch.float32]
    assert (images[1] == 2).all()  # (1 - .5) / .25
    alone = together(OpenedImages(adapter(), [Image.fromarray(PICTURES[0])]))[1]
    torch.testing.assert_close(images[:1], alone)


def test_other_inputs_follow_their_images():
    X = {"vector": np.arange(10.0).reshape(5, 2), "image": torch.rand(5, 1, 4, 4)}
    opened = OpenedImages(adapter(ImageAndVector()), X, "image").subset([3, 0, 2])
    batches, images, _ = together(opened)
    assert torch.equal(images, X["image"][[3, 0, 2]])
    vectors = torch.cat([batch.inputs.arguments["vector"] for batch in batches])
    assert vectors.dtype == torch.float32
    assert vectors.tolist() == [[6, 7], [0, 1], [4, 5]]


def test_a_mapping_needs_the_name_of_its_image():
    X = {"vector": np.zeros((5, 2)), "image": torch.rand(5, 1, 4, 4)}
    for name in ("picture",):
        with pytest.raises(ValueError, match=rf"\['image', 'vector'\]; .* and is {name!r}"):
            OpenedImages(adapter(), X, name)
    with pytest.raises(ValueError, match="'vector' must have one entry for each of the 5 images"):
        OpenedImages(adapter(), {**X, "vector": np.zeros((4, 2))}, "image")
