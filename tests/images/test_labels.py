"""Labels: those that data sets keep, and the numbers that stand for them."""

import numpy as np
import pytest
import torch
from image_forms import Stream
from sklearn.exceptions import DataConversionWarning
from torch.utils.data import Dataset, Subset

from sklcam.images.labels import check_labels, dataset_labels, encode_labels, labels_for


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
