"""X without a length: whatever yields images is explained as the same images in an array are."""

from __future__ import annotations

import io
import multiprocessing
import weakref

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.exceptions import NotFittedError
from small_networks import ImageAndVector
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from tqdm import tqdm
from transformers import BatchFeature

from sklcam import CAMExplainer, EmbeddingCAMExplainer
from sklcam.explain import ExplanationWarning

RNG = np.random.default_rng(0)
ARRAYS = [RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8) for _ in range(5)]
PICTURES = [Image.fromarray(array) for array in ARRAYS]
TENSORS = torch.randn(5, 3, 12, 12, generator=torch.manual_seed(0))
LABELS = torch.arange(5)


def encoded(picture):
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


BYTES = [*map(encoded, PICTURES)]


class Listed(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Streaming(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def explainer(**options):
    options = {"target_layer": "1", "image_size": 12, "batch_size": 2, "verbose": 0, **options}
    return CAMExplainer(network(), **options).fit()


def hugging_face(**columns):
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[*"abcde"])}
    )
    columns = {"image": PICTURES, "label": [*range(5)], **columns}
    return datasets.Dataset.from_dict(columns, features=features)


IN_ITEMS = {
    "paths": lambda folder: iter([folder / f"{i}.png" for i in range(5)]),
    "pictures": lambda folder: (picture for picture in PICTURES),
    "arrays": lambda folder: iter(ARRAYS),
    "bytes": lambda folder: iter(BYTES),
    "files in memory": lambda folder: map(io.BytesIO, BYTES),
    "pairs": lambda folder: zip(PICTURES, "abcde", strict=True),
    "dicts": lambda folder: ({"image": each, "label": 0} for each in PICTURES),
    "many kinds": lambda folder: iter([PICTURES[0], ARRAYS[1], BYTES[2], *PICTURES[3:]]),
    "iterable data set": lambda folder: Streaming(PICTURES),
    "iterable data set of pairs": lambda folder: Streaming([*zip(PICTURES, LABELS, strict=True)]),
    "Hugging Face": lambda folder: hugging_face().to_iterable_dataset(),
    "Hugging Face's tensors": lambda folder: (
        hugging_face().to_iterable_dataset().with_format("torch")
    ),
    "Hugging Face's column": lambda folder: hugging_face().to_iterable_dataset()["image"],
}
IN_BATCHES = {
    "arrays": lambda: iter([np.stack(ARRAYS[:3]), np.stack(ARRAYS[3:])]),
    "lists": lambda: iter([PICTURES[:3], PICTURES[3:]]),
    "arrays and labels": lambda: iter(
        [(np.stack(ARRAYS[:3]), "abc"), (np.stack(ARRAYS[3:]), "de")]
    ),
    "tables": lambda: iter(
        [pd.DataFrame({"bytes": BYTES[:3]}), pd.DataFrame({"bytes": BYTES[3:]})]
    ),
    "record batches": lambda: iter(pa.table({"image": BYTES}).to_batches(3)),
    "Hugging Face": lambda: hugging_face().to_iterable_dataset().batch(3),
    "a loader of bytes": lambda: DataLoader(
        TensorDataset(torch.from_numpy(np.stack(ARRAYS)).permute(0, 3, 1, 2), LABELS), 3
    ),
    "a loader of items": lambda: DataLoader(
        Listed([*zip(PICTURES, LABELS, strict=True)]), 3, collate_fn=lambda items: items
    ),
    "a loader of columns": lambda: DataLoader(
        Listed([*zip(PICTURES, LABELS, strict=True)]),
        3,
        collate_fn=lambda items: [*zip(*items, strict=True)],
    ),
    "a loader of dicts": lambda: DataLoader(
        Listed([{"image": each, "label": 0} for each in PICTURES]), 3, collate_fn=list
    ),
}
AS_NETWORK_INPUT = {
    "tensors": lambda: iter(TENSORS),
    "batches": lambda: iter(TENSORS.split(2)),
    "lists of tensors": lambda: iter([[*part] for part in TENSORS.split(2)]),
    "a loader": lambda: DataLoader(TensorDataset(TENSORS), 2),
    "a loader with labels": lambda: DataLoader(TensorDataset(TENSORS, LABELS), 2),
    "a loader without batches": lambda: DataLoader(TensorDataset(TENSORS, LABELS), None),
    "a loader of a stream": lambda: DataLoader(Streaming([*TENSORS]), 2),
    "a loader of dicts": lambda: DataLoader(
        Listed([{"pixel_values": x, "labels": y} for x, y in zip(TENSORS, LABELS, strict=True)]), 2
    ),
    "a loader of dicts and labels": lambda: DataLoader(
        Listed([({"scan": x, "age": 3}, y) for x, y in zip(TENSORS, LABELS, strict=True)]), 2
    ),
    "a processor's": lambda: iter([BatchFeature({"pixel_values": x}) for x in TENSORS.split(2)]),
    "a processor's arrays": lambda: iter(
        [BatchFeature({"pixel_values": [*x.numpy()]}) for x in TENSORS.split(2)]
    ),
    "a progress bar": lambda: tqdm(DataLoader(TensorDataset(TENSORS, LABELS), 2), disable=True),
}


@pytest.mark.parametrize("form", IN_ITEMS.values(), ids=IN_ITEMS)
def test_images_one_by_one(form, tmp_path):
    for i, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{i}.png")
    ours = explainer()
    maps = [*ours.iter_explain(form(tmp_path))]
    assert [*map(len, maps)] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(maps), ours.explain(np.stack(ARRAYS)))


@pytest.mark.parametrize("form", IN_BATCHES.values(), ids=IN_BATCHES)
def test_batches_stay_as_they_are(form):
    ours = explainer(batch_size=3)
    maps = [*ours.iter_explain(form())]
    assert [*map(len, maps)] == [3, 2]
    np.testing.assert_array_equal(np.concatenate(maps), ours.explain(np.stack(ARRAYS)))


@pytest.mark.parametrize("form", AS_NETWORK_INPUT.values(), ids=AS_NETWORK_INPUT)
def test_float_tensors_are_the_network_s_own_input(form):
    ours = explainer()
    maps = np.concatenate([*ours.iter_explain(form())])
    np.testing.assert_array_equal(maps, ours.explain(TENSORS))


def test_images_between_batches_keep_their_order():
    ours = explainer()
    mixed = iter([PICTURES[0], PICTURES[1:3], PICTURES[3], PICTURES[4]])
    maps = [*ours.iter_explain(mixed)]
    assert [*map(len, maps)] == [1, 2, 2]
    np.testing.assert_allclose(
        np.concatenate(maps), ours.explain(np.stack(ARRAYS)), rtol=0, atol=1e-6
    )


def test_maps_in_the_frames_of_images_of_many_sizes():
    pictures = [Image.fromarray(ARRAYS[0][:height]) for height in (5, 9, 12)]
    ours = explainer()
    maps = [each for some in ours.iter_explain(iter(pictures), frame="image") for each in some]
    assert [each.shape for each in maps] == [(5, 12), (9, 12), (12, 12)]
    for ours_, expected in zip(maps, ours.explain(pictures, frame="image"), strict=True):
        np.testing.assert_array_equal(ours_, expected)


@pytest.mark.parametrize(
    "target", [None, 2, lambda output: output[:, 2]], ids=["None", "2", "callable"]
)
def test_one_target_for_all(target):
    ours = explainer()
    maps = np.concatenate([*ours.iter_explain(iter(TENSORS), target)])
    assert maps.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(maps, ours.explain(TENSORS, target))


def test_one_reference_for_all():
    ours = EmbeddingCAMExplainer(network(), "self", target_layer="1", batch_size=2, verbose=0)
    ours.fit(TENSORS)
    maps = np.concatenate([*ours.iter_explain(iter(TENSORS), TENSORS[:1])])
    np.testing.assert_array_equal(maps, ours.explain(TENSORS, TENSORS[:1]))


def test_other_inputs_of_the_network_come_along():
    torch.manual_seed(0)
    images, vectors = torch.rand(5, 1, 4, 4), torch.rand(5, 2)
    rows = [
        {"image": image, "vector": vector, "label": 1}
        for image, vector in zip(images, vectors, strict=True)
    ]
    ours = CAMExplainer(ImageAndVector(), target_layer="conv", batch_size=2, verbose=0)
    X = {"image": images, "vector": vectors}
    expected = ours.fit(X).explain(X)
    assert np.ptp(expected, axis=0).any()
    for stream in (iter(rows), DataLoader(Listed(rows), 2), iter([X])):
        maps = np.concatenate([*ours.iter_explain(stream)])
        np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-6)
    with pytest.raises(
        ValueError,
        match=r"hold 'vector' besides 'image', and the network.* DataLoader to iter_explain",
    ):
        ours.explain(Listed(rows))


# What is read, and kept


def test_nothing_is_read_ahead_and_nothing_kept():
    living = []

    def batches():
        for _ in range(6):
            batch = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
            living.append(weakref.ref(batch))
            yield batch
            del batch

    maps = explainer().iter_explain(batches())
    assert living == []
    for n_read in range(1, 7):
        next(maps)
        assert len(living) == n_read
        assert sum(each() is not None for each in living) <= 2
    assert next(maps, None) is None


def test_workers_end_where_the_caller_stops():
    loader = DataLoader(TensorDataset(TENSORS), 1, num_workers=2)
    others = {*multiprocessing.active_children()}  # of tests before this one
    maps = explainer().iter_explain(loader)
    next(maps)
    assert len({*multiprocessing.active_children()} - others) == 2
    maps.close()
    assert not {*multiprocessing.active_children()} - others


def test_generators_go_on_where_maps_stop():
    tensors = iter(TENSORS)
    next(explainer().iter_explain(tensors))
    assert len([*tensors]) == 3


def test_blank_maps_are_counted_over_all_batches():
    ours = explainer()
    ours.model[4].weight.data[:] = -1
    with pytest.warns(ExplanationWarning, match="5 of 5") as warned:
        [*ours.iter_explain(iter(TENSORS), 0)]
    assert len(warned) == 1


# Errors


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([0, 1], r"must be the same for all of its images; got a list.*for images, labels in X"),
        (["a"], "must be the same for all"),
        (np.array([1]), "must be the same for all"),
        (LABELS, "must be the same for all"),
        ("nought", "not seen in fit"),
    ],
)
def test_targets_of_each_image_need_a_length(target, message):
    with pytest.raises(ValueError, match=message):
        explainer().iter_explain(iter(TENSORS), target)  # at once


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (("a.png", "b.png"), "which may be several images, or one image and other data"),
        ((PICTURES[0], PICTURES[1]), "which may be several images"),
        ((TENSORS[:2], TENSORS[2:]), "which may be several images"),
        ([TENSORS[:2], TENSORS[2:]], "which may be several images"),
        ([("a.png", "cat"), ("b.png", "dog")], "cannot be told from other data"),
        ([(PICTURES[0], PICTURES[1])] * 2, "cannot be told from other data"),
        ({"scan": PICTURES[0], "mask": PICTURES[1]}, "dict of 'scan' .*, 'mask' .* image_input="),
        ({"path": "a.png", "label": 3}, "which entry is the image. Name it with image_input="),
        ({}, "a dict of nothing"),
        ((), "an empty tuple"),
        ([], "an empty list"),
        (3, r"begins with image 0 of X: X\[0\] is a int"),
        (None, r"X\[0\] is a NoneType"),
        ("/no.png", "begins with image 0 of X: .* '/no.png'"),
        (np.zeros((4, 12, 9), dtype=np.uint8), "channels first"),
        (TENSORS[0, 0], "must be of shape"),
        (torch.full((3, 12, 12), torch.nan), "NaN"),
    ],
)
def test_what_is_no_image(element, message):
    with pytest.raises(ValueError, match=message):
        next(explainer().iter_explain(iter([element])))


def test_matrices_that_a_loader_stacks_are_no_image():
    for loader in (DataLoader(TENSORS[:3, 0], 3), DataLoader(Listed([{"scan": TENSORS[0, 0]}]), 1)):
        with pytest.raises(ValueError, match="whose images have no channel axis"):
            next(explainer().iter_explain(loader))
    one = DataLoader(TENSORS, 1, collate_fn=lambda images: images[0])
    maps = np.concatenate([*explainer().iter_explain(one)])
    np.testing.assert_array_equal(maps, explainer().explain(TENSORS))


def test_masks_beside_images_are_not_looked_at():
    loader = DataLoader(TensorDataset(TENSORS, TENSORS.flip(0)), 2)
    maps = np.concatenate([*explainer().iter_explain(loader)])
    np.testing.assert_array_equal(maps, explainer().explain(TENSORS))


def test_a_stream_is_of_one_kind():
    for elements in ([TENSORS[:2], PICTURES[:2]], [PICTURES[:2], TENSORS[:2]]):
        maps = explainer().iter_explain(iter(elements))
        next(maps)
        with pytest.raises(ValueError, match=r"begins with image 2 of X: some .* float tensors"):
            next(maps)
    with pytest.raises(ValueError, match=r"Item 1 of X is an Image.*Pass only float tensors"):
        next(explainer().iter_explain(iter([TENSORS[0], PICTURES[0]])))


def test_the_entry_may_be_named():
    rows = [{"scan": a, "mask": b} for a, b in zip(PICTURES, PICTURES[::-1], strict=True)]
    ours = CAMExplainer(network(), "gradcam", "1", image_input="mask", image_size=12, verbose=0)
    ours.fit(np.stack(ARRAYS))
    maps = np.concatenate([*ours.iter_explain(iter(rows))])
    np.testing.assert_array_equal(maps, ours.explain(np.stack(ARRAYS[::-1])))


def test_other_methods_name_the_one_that_takes_streams():
    ours = explainer()
    for stream in (iter(TENSORS), DataLoader(TensorDataset(TENSORS), 2), Streaming([*TENSORS])):
        for method in (ours.explain, ours.predict, ours.predict_proba, ours.fit):
            with pytest.raises(ValueError, match="An explainer's iter_explain takes"):
                method(stream)


def test_an_explainer_is_fitted_first():
    with pytest.raises(NotFittedError):
        CAMExplainer(network()).iter_explain(iter(TENSORS))
