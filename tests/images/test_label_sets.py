"""Several labels an image, and numbers: the forms they come in, and what is refused of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn.exceptions import DataConversionWarning
from sklearn.preprocessing import MultiLabelBinarizer
from torch.utils.data import Dataset, Subset

from sklcam.images.label_sets import as_indicator, as_numbers, kind_of_labels, learn_label_sets
from sklcam.images.labels import dataset_labels, given_labels

SETS = [{"tree", "car"}, set(), {"car"}]
TABLE = np.array([[1, 1], [0, 0], [1, 0]])  # car, tree


def objects(rows):
    array = np.empty(len(rows), dtype=object)
    array[:] = rows
    return array


COLLECTIONS = {
    "sets": SETS,
    "frozen": [*map(frozenset, SETS)],
    "lists": [*map(sorted, SETS)],
    "tuples": [*map(tuple, SETS)],
    "arrays": [np.array(sorted(row)) for row in SETS],
    "array of sets": objects(SETS),
    "array of lists": objects([*map(sorted, SETS)]),
    "series": pd.Series([*map(sorted, SETS)], index=[7, 8, 9]),
    "column": pd.DataFrame({"tags": [*map(sorted, SETS)]}),
}


@pytest.mark.parametrize("form", COLLECTIONS)
def test_collections_of_labels_of_any_form(form):
    y = COLLECTIONS[form]
    expected = MultiLabelBinarizer().fit(SETS)
    assert kind_of_labels(y) == "label sets"
    classes = learn_label_sets(y)
    assert_array_equal(classes, expected.classes_)
    assert_array_equal(as_indicator(y, classes), expected.transform(SETS))


TABLES = {
    "int": TABLE,
    "float": TABLE.astype(float),
    "bool": TABLE.astype(bool),
    "list": TABLE.tolist(),
    "tensor": torch.tensor(TABLE),
    "sparse matrix": sparse.csr_matrix(TABLE),
    "sparse array": sparse.csc_array(TABLE),
    "frame": pd.DataFrame(TABLE),
}


@pytest.mark.parametrize("form", TABLES)
def test_tables_of_0_and_1_of_any_form(form):
    assert kind_of_labels(TABLES[form]) == "indicator"
    assert learn_label_sets(TABLES[form]).tolist() == [0, 1]
    assert learn_label_sets(TABLES[form], ["car", "tree"]).tolist() == ["car", "tree"]
    found = as_indicator(TABLES[form], np.array(["car", "tree"]))
    assert found.dtype == np.int64
    assert_array_equal(found, TABLE)


def test_columns_of_a_frame_are_the_classes():
    frame = pd.DataFrame({"car": [1, 0, 1], "tree": [True, False, False]})  # of two types
    classes = learn_label_sets(frame)
    assert classes.tolist() == ["car", "tree"]
    assert_array_equal(as_indicator(frame, classes), TABLE)
    with pytest.raises(ValueError, match=r"columns of y are \['tree', 'car'\].*y\[classes\]"):
        as_indicator(frame[["tree", "car"]], classes)
    with pytest.raises(ValueError, match=r"columns of y are \[0, 1\]"):
        as_indicator(pd.DataFrame(TABLE), np.array([1, 0]))


def test_lists_of_one_length_are_labels_unless_they_are_rows_of_0_and_1():
    words = [["car", "tree"], ["tree", "bus"]]
    assert kind_of_labels(words) == "label sets"
    assert learn_label_sets(words).tolist() == ["bus", "car", "tree"]
    numbers = [[3, 5], [5, 3], [1, 2]]
    assert kind_of_labels(numbers) == "numbers"  # they might be measured: an error without a task
    assert learn_label_sets(numbers).tolist() == [1, 2, 3, 5]
    known = np.array([3, 5])
    assert as_indicator(numbers[:2], known).tolist() == [[1, 1], [1, 1]]
    # As a fold of label sets may be: no row of an indicator of three is that long.
    assert as_indicator([[0], [1], [0]], np.arange(3)).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_labels_of_one_image_stay_what_they_are():
    assert kind_of_labels(["cat", "dog"]) == kind_of_labels(np.array([[1], [0]])) == "labels"
    assert kind_of_labels(pd.DataFrame({"y": ["cat", "dog"]})) == "labels"
    assert kind_of_labels([0.0, 1.0]) == "labels"  # as scikit-learn has it
    assert kind_of_labels([0.5, 1.0]) == kind_of_labels(np.array([[0.5, 1], [1, 0]])) == "numbers"
    assert kind_of_labels(np.array([[2, 1], [1, 0]])) == "numbers"


REFUSED = {
    "one label": (["a", "b"], r"each image may have several labels, or none"),
    "some alone": ([{"a"}, "b"], r"collections of labels for some images, but a str, 'b'"),
    "unknown": ([{"a", "bus"}], r"not seen in fit: \['bus'\].*classes are \['a', 'b'\]"),
    "ragged rows": ([[0, 1, 0], [1, 0]], r"Image 0 has a label twice.*the same length"),
    "missing": ([{"a", None}], r"Image 0 has a missing label"),
    "NaN": ([["a"], ["b", np.nan]], r"Image 1 has a missing label"),
    "NA": ([["a", pd.NA], ["b"]], r"those of image 0 .*Leave out missing"),
    "deep": ([[["a"]], [["b"], ["a"]]], r"Labels must be numbers or strings; those of image 0"),
    "width": (np.eye(3), r"y has 3 columns for 2 labels, \['a', 'b'\]"),
    "values": (np.array([[0, 2], [1, -1]]), r"y has the values \[-1, 2\], but may hold only"),
    "shares": (np.array([[0.5, 1.0]]), r"y has the values \[0\.5\], but may hold only"),
    "gap": (pd.DataFrame({"a": pd.array([0, pd.NA], dtype="Int64"), "b": [1, 0]}), r"\[nan\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_indicator_and_no_label_sets(case):
    y, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        as_indicator(y, np.array(["a", "b"]))


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        ([set(), set()], None, "No image has a label"),
        ([[], []], None, "No image has a label"),
        ([{1}, {"a"}], None, "all numbers or all strings"),
        ([{"a"}], ["a", "a"], "name each label once"),
        (["a", "b"], None, "several labels, or none"),
    ],
)
def test_labels_that_cannot_be_learned(y, classes, message):
    with pytest.raises(ValueError, match=message):
        learn_label_sets(y, classes)


def test_numbers_are_finite_and_one_or_a_row_an_image():
    assert as_numbers(torch.tensor([1, 2])).tolist() == [1.0, 2.0]
    assert as_numbers(pd.DataFrame({"x": [0.5, 1], "y": [2, 3]})).shape == (2, 2)
    with pytest.warns(DataConversionWarning):
        assert as_numbers([[0.5], [1.5]]).shape == (2,)
    for wrong in ([0.5, np.nan], ["a", "b"], np.zeros((2, 2, 2)), 3.0, None, [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match="A regression needs finite numbers"):
            as_numbers(wrong)


def test_data_sets_keep_label_sets_too():
    class Pictures(Dataset):
        targets = (["car", "tree"], [], ["car"])

        def __len__(self):
            return 3

    assert dataset_labels(Subset(Pictures(), [2, 0])).tolist() == [["car"], ["car", "tree"]]
    own = given_labels(Pictures(), None)
    assert_array_equal(as_indicator(own, np.array(["car", "tree"])), TABLE)
    with pytest.raises(ValueError, match="the target y is None"):
        given_labels(np.zeros((2, 4, 4)), None)
