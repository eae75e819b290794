"""Large JPEG files, decoded at a fraction of their sides: near what they are, never too small.

Pictures are smooth, as photographs are between their edges.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from small_networks import SmallNet
from torch.utils.data import Dataset

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.images import ImageDataset, Resizing

FAST = Resizing(decode="fast")


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def drafts(monkeypatch):
    """The sizes (width, height) that files are decoded at."""
    sizes, load = [], ImageFile.load

    def noted(image):
        sizes.append(image.size)
        return load(image)

    monkeypatch.setattr(ImageFile, "load", noted)
    return sizes


def images_of(X, resizing, size=32):
    dataset = ImageDataset(X, image_size=size, resize=resizing)
    return dataset, torch.stack([image for image, _ in dataset.__getitems__(range(len(X)))])


@pytest.mark.parametrize("mode", ["stretch", "center_crop", "pad"])
@pytest.mark.parametrize("size", [(600, 800), (601, 803), (900, 300), (64, 65)])
def test_images_are_near_and_of_the_same_size(mode, size):
    X, exact = [encoded(picture(*size), quality=95)], Resizing(mode)
    _, expected = images_of(X, exact)
    dataset, found = images_of(X, replace(exact, decode="fast"))
    assert found.dtype == torch.uint8 and found.shape == expected.shape
    difference = (found.double() - expected.double()).abs()
    assert difference.mean() < 1.5 and difference.max() <= 24
    assert dataset.original_size(0) == size
    assert dataset.original_image(0).shape == (3, *size)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((600, 800), (100, 75)),
        ((511, 800), (200, 128)),
        ((255, 800), (400, 128)),
        ((127, 99), (99, 127)),
    ],
)
def test_no_side_is_less_than_twice_what_is_needed(size, decoded, drafts):
    """At 32 pixels a side: 1/8 of 600 x 800 is 75 x 100; of fewer than 512 pixels it is 1/4."""
    images_of([encoded(picture(*size))], FAST)
    assert decoded in drafts and min(min(each) for each in drafts) >= min(64, *size)


def test_what_is_not_a_large_jpeg_is_the_same_to_the_last_bit():
    large = picture(600, 800)
    X = [
        encoded(large, "PNG"),
        encoded(picture(100, 120)),
        encoded(large, "WEBP"),
        encoded(picture(100, 120).convert("L")),
        large,
    ]
    expected, found = images_of(X, Resizing())[1], images_of(X, FAST)[1]
    assert found.equal(expected)
    array = np.asarray(large)[None]
    assert images_of(array, FAST)[1].equal(images_of(array, Resizing())[1])


def test_an_image_that_lies_on_its_side_is_turned():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    X = [encoded(picture(400, 900), exif=exif, quality=95)]
    dataset, found = images_of(X, FAST)
    assert dataset.original_size(0) == (900, 400)
    difference = found.double() - images_of(X, Resizing())[1].double()
    assert difference.abs().mean() < 1.5
    # It takes 128 x 32 pixels at least, and has seven times as many rows: a quarter is enough.
    high, _ = images_of(X, FAST, size=(64, 16))
    (framed,) = high.read_batch([0], originals=False)
    assert framed.size == (900, 400) and framed.original.shape[1:] == (225, 100)


def test_originals_are_read_as_they_are():
    X = [encoded(picture(600, 800))]
    dataset = ImageDataset(X, image_size=32, resize=FAST)
    (framed,) = dataset.read_batch([0])
    assert framed.size == framed.original.shape[1:] == (600, 800)
    assert framed.image.equal(images_of(X, Resizing())[1][0])


class Files(Dataset):
    def __init__(self, items):
        self.items, self.n_read = items, 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.n_read += 1
        return self.items[i], 0


def test_data_sets_of_files_and_parts_of_them():
    X = [encoded(picture(600, 800, seed)) for seed in range(3)]
    expected = images_of(X, FAST)[1]
    assert not expected.equal(images_of(X, Resizing())[1])
    assert images_of(Files(X), FAST)[1].equal(expected)
    part = ImageDataset(X, image_size=32, resize=FAST)[[2, 0]]
    assert torch.stack([image for image, _ in part.__getitems__([0, 1])]).equal(expected[[2, 0]])


def test_items_are_read_once():
    items = Files([torch.rand(3, 40, 50), torch.rand(3, 60, 50)])
    dataset = ImageDataset(items, image_size=32, resize=FAST)
    items.n_read = 0
    sizes = [framed.size for framed in dataset.read_batch([0, 1], originals=False)]
    assert sizes == [(40, 50), (60, 50)] and items.n_read == 2
    mixed = ImageDataset(Files([torch.rand(3, 9, 9), torch.rand(1, 9, 9)]), resize=FAST)
    with pytest.raises(ValueError, match="1 channel"):
        mixed.read_batch([1], originals=False)


@pytest.mark.parametrize("hold", [Files, pd.Series])
def test_somebodys_opened_picture_stays_as_it_is(hold):
    opened = Image.open(io.BytesIO(encoded(picture(600, 800))))
    images_of(hold([opened]), FAST)
    assert opened.size == (800, 600)


def test_maps_are_of_the_images_own_sizes():
    X = [encoded(picture(600, 800, seed)) for seed in range(2)]
    torch.manual_seed(0)
    ours = CAMExplainer(
        SmallNet(in_channels=3).eval(), decode="fast", image_size=32, batch_size=2, verbose=0
    ).fit(X)
    assert ours.preprocessing_.resizing == Resizing(decode="fast")
    maps = ours.explain(X, frame="image")
    assert [each.shape for each in maps] == [(600, 800)] * 2
    (batch,) = ours.open(X, originals=True).batches()
    assert [each.shape for each in batch.originals] == [(3, 600, 800)] * 2
    (batch,) = ours.open(X).batches()
    plain = CAMExplainer(ours.model, image_size=32, batch_size=2, verbose=0).fit(X)
    (exact,) = plain.open(X).batches()
    assert not batch.inputs.images.equal(exact.inputs.images)
    assert (batch.inputs.images - exact.inputs.images).abs().mean() < 0.05


def test_files_of_estimators_keep_it(tmp_path):
    torch.manual_seed(0)
    ours = CAMExplainer("resnet18", decode="fast", image_size=64, verbose=0).fit()
    sklcam.save(ours, tmp_path / "explainer")
    loaded = sklcam.load(tmp_path / "explainer")
    assert loaded.decode == "fast" and loaded.preprocessing_.resizing.decode == "fast"


def test_a_fitted_estimator_has_its_own():
    X, options = [encoded(picture(40, 40, seed)) for seed in range(4)], {"verbose": 0}
    clf = ConsistentCAMClassifier(SmallNet, image_size=16, max_epochs=0, alpha=0, **options)
    clf.fit(X, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="decode"):
        CAMExplainer(clf, decode="fast", **options).fit()


def test_training_reads_what_it_crops_as_it_is(drafts):
    X, y = [encoded(picture(300, 400, seed)) for seed in range(4)], [0, 1, 0, 1]
    options = {"image_size": 16, "max_epochs": 1, "batch_size": 4, "verbose": 0, "device": "cpu"}
    clf = ConsistentCAMClassifier(SmallNet, decode="fast", **options, alpha=0, beta=0)
    drafts.clear()
    clf.fit(X, y)
    assert (400, 300) in drafts  # crops
    drafts.clear()
    clf.predict(X)
    assert {*drafts} == {(50, 38)}
