"""Labels: those that data sets keep, and the numbers that stand for them."""

import numpy as np
import pytest
import torch
from image_forms import Stream
from sklearn.exceptions import DataConversionWarning
from torch.utils.data import Dataset, Subset

from sklcam.images import ImageDataset
from sklcam.images.labels import (
    check_labels,
    check_numbering,
    dataset_labels,
    encode_labels,
    label_names,
    labels_for,
    names_of_classes,
)


class UnreadableDataset(Dataset):
    """Four images that must not be loaded."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        raise AssertionError("an image was read")


def test_labels_of_data_sets_without_a_read():
    dataset = UnreadableDataset()
    assert dataset_labels(dataset) is None
    dataset.labels = np.array([3, 1, 2, 0])
    assert dataset_labels(dataset).tolist() == [3, 1, 2, 0]
    dataset.targets = torch.tensor([30, 10, 20, 0])
    nested = Subset(Subset(dataset, [3, 2, 1]), torch.tensor([2, 0]))
    assert dataset_labels(nested).tolist() == [10, 0]
    dataset.target_transform = lambda target: f"class {target // 10}"
    assert dataset_labels(nested).tolist() == ["class 1", "class 0"]


def test_what_has_no_labels():
    dataset = UnreadableDataset()
    dataset.targets = ["cat", "dog"]  # the names of two classes, not the labels of four images
    assert dataset_labels(dataset) is None
    assert dataset_labels(Subset(dataset, [0])) is None
    assert dataset_labels(Stream()) is None
    assert dataset_labels(np.zeros((2, 4, 4))) is None
    assert dataset_labels(["cat.png"]) is None


@pytest.mark.parametrize("find", [check_labels, lambda X, y: labels_for(X, y, "the test")])
def test_labels_come_from_y_or_else_from_the_data_set(find):
    dataset = UnreadableDataset()
    dataset.targets = [3, 1, 2, 0]
    assert find(dataset, None).tolist() == [3, 1, 2, 0]
    assert find(dataset, ["a", "b", "a", "b"]).tolist() == ["a", "b", "a", "b"]
    assert find(dataset, torch.tensor([1, 1, 0, 0])).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("find", [check_labels, lambda X, y: labels_for(X, y, "the test")])
def test_a_column_of_labels_is_flat_and_warned_of(find):
    for column in (np.array([["a"], ["b"]]), torch.tensor([[1], [0]])):
        with pytest.warns(DataConversionWarning, match="column-vector"):
            assert find(np.zeros((2, 4, 4)), column).shape == (2,)


def test_no_labels_are_an_error_that_says_what_needs_them():
    with pytest.raises(ValueError, match="the test needs y"):
        labels_for(["cat.png"], None, "the test")
    with pytest.raises(ValueError, match="the target y is None"):
        check_labels(["cat.png"], None)


def test_measurements_are_no_labels():
    with pytest.raises(ValueError, match="continuous"):
        check_labels(np.zeros((3, 4, 4)), [0.1, 0.5, 0.7])


def test_labels_are_numbered_in_the_order_of_the_classes():
    classes = np.array(["pear", "apple", "fig"])
    assert encode_labels(np.array(["fig", "pear", "fig"]), classes).tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match=r"not seen in fit: \['kiwi'\]"):
        encode_labels(np.array(["fig", "kiwi"]), classes)


def named_dataset(targets=(1, 0, 2, 1), classes=("cat", "dog", "emu"), **attributes):
    dataset = UnreadableDataset()
    vars(dataset).update(targets=list(targets), classes=classes, **attributes)
    return dataset


def test_names_of_labels_are_those_of_their_numbers():
    names = ("cat", "dog", "emu")
    dataset = named_dataset(class_to_idx={"cat": 0, "dog": 1, "emu": 2})
    for y in (None, [1, 0, 2, 1], torch.tensor([1, 0, 2, 1])):
        assert label_names(dataset, y) == names
    part = Subset(Subset(dataset, [3, 0, 2]), [0, 2])
    assert label_names(part) == label_names(part, [1, 2]) == names
    # As in torchvision's ImageNet.
    synonyms = named_dataset(classes=[("tench", "Tinca tinca"), ("goldfish",), ("shark",)])
    assert label_names(synonyms) == ("tench, Tinca tinca", "goldfish", "shark")


@pytest.mark.parametrize(
    ("dataset", "y"),
    [
        *((named_dataset(), y) for y in ([1, 0, 2, 0], ["cat", "dog", "emu", "cat"], [[1], [0]])),
        (named_dataset(), [{"cat"}, {"dog", "emu"}, {"emu"}, set()]),
        (named_dataset(targets=["dog", "cat", "emu", "dog"]), None),
        (named_dataset(targets=[1, 2, 3, 1]), None),
        (named_dataset(targets=[-1, 0, 2, 1]), None),
        (named_dataset(target_transform=lambda target: 2 - target), None),
        (named_dataset(classes=[3, 1, 2]), None),
        (named_dataset(classes="cat"), None),
        (named_dataset(class_to_idx={"cat": 2, "dog": 1, "emu": 0}), None),
        (UnreadableDataset(), None),
        (np.zeros((4, 2, 2)), [0, 1, 2, 0]),
    ],
    ids=[f"case {i}" for i in range(13)],
)
def test_other_labels_have_no_names(dataset, y):
    assert label_names(dataset, y) is None


def test_names_of_hugging_face_data_sets():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"image": [np.zeros((2, 2, 3), np.uint8)] * 3, "label": [1, 0, 1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    images = ImageDataset(dataset)
    for X, y in (
        *((dataset, None), (dataset, [1, 0, 1]), (dataset["image"], dataset["label"])),
        *((images, None), (images[1:], None), (images[1:], [0, 1]), (None, dataset["label"])),
    ):
        assert label_names(X, y) == ("cat", "dog")
    assert label_names(dataset, [0, 1, 1]) is None
    assert label_names(ImageDataset(dataset, [1, 0, 1])) is None


def test_names_of_classes_that_are_numbers():
    names = ("cat", "dog", "emu")
    assert names_of_classes(names, np.array([0, 2])) == ("cat", "emu")
    for classes in (np.array([1, 3]), np.array(["cat", "dog"]), np.array([0.0, 1.0])):
        assert names_of_classes(names, classes) is None
    assert names_of_classes(None, np.arange(3)) is None
    assert names_of_classes(["cat", "dog"], np.array([-1, 0])) is None


def test_data_sets_that_number_their_classes_otherwise():
    """As the folders of two splits are, if one of them lacks a class."""
    fewer = named_dataset(targets=[0, 1, 1, 0], classes=["cat", "emu"])
    known = (np.arange(3), ("cat", "dog", "emu"))
    with pytest.raises(ValueError, match=r"label for 'emu' is 1, but the estimator's is 2\. Give"):
        check_numbering(fewer, None, *known)
    check_numbering(fewer, [0, 2, 2, 0], *known)
    check_numbering(named_dataset(), None, *known)
    check_numbering(named_dataset(classes=["cats", "dogs", "emus"]), None, *known)
    check_numbering(named_dataset(), None, np.arange(3), ("cat", "dog", "cat"))
    check_numbering(fewer, None, np.array([0, 1]), ("cat", "emu"))
    check_numbering(fewer, None, np.arange(3), None)
