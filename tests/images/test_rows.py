"""Rows of X, in every form that X may have."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from image_forms import CountingDataset
from torch.utils.data import Subset

from sklcam.images import ImageDataset
from sklcam.images.rows import take_rows

ROWS = {
    "in order": range(1, 3),
    "backwards": range(3, 0, -2),
    "from the end": range(-2, 0),
    "none": range(0),
    "an array": np.array([3, 0, 3]),
    "an array of none": np.array([]),
}
FORMS = {
    "array": lambda: np.arange(20).reshape(4, 5),
    "objects": lambda: np.array([*"abcd", None], dtype=object)[:4],
    "tensor": lambda: torch.arange(20).reshape(4, 5),
    "list": lambda: ["a.png", "b.png", "c.png", "d.png"],
    "tuple": lambda: (1, 2, 3, 4),
    "series": lambda: pd.Series([*"abcd"], index=[3, 2, 1, 0]),
    "data set": lambda: CountingDataset([*"abcd"]),
}


def entries(X):
    """What X holds, row by row."""
    X = X.to_numpy() if isinstance(X, pd.Series) else X
    return [x.tolist() if hasattr(x, "tolist") else x for x in X]


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_rows_come_by_position_in_the_order_asked_for(form, rows):
    everything = entries(form())
    expected = [everything[int(i)] for i in rows]
    assert entries(take_rows(form(), rows)) == expected


def test_rows_keep_the_form_of_x():
    for form in ("array", "tensor", "list"):
        assert type(take_rows(FORMS[form](), np.array([1]))) is type(FORMS[form]())
    assert isinstance(take_rows(FORMS["data set"](), range(2)), Subset)
    assert isinstance(take_rows(FORMS["series"](), range(2)), np.ndarray)


def test_a_mapping_gives_the_same_rows_of_each_entry():
    data = {"image": ["a.png", "b.png", "c.png"], "age": torch.tensor([30, 40, 50])}
    taken = take_rows(data, np.array([2, 0]))
    assert taken["image"] == ["c.png", "a.png"]
    assert taken["age"].tolist() == [50, 30]


def test_nothing_is_read_of_a_data_set():
    dataset = CountingDataset([torch.zeros(3, 4, 4)] * 3)
    rows = take_rows(dataset, np.array([2, 1]))
    assert dataset.reads == []
    assert rows[0] is dataset.items[2]
    assert dataset.reads == [2]


def test_rows_of_an_image_data_set_have_their_own_sizes():
    images = ImageDataset(np.zeros((4, 1, 28, 30), dtype=np.uint8), channels="first", image_size=8)
    some = take_rows(images, np.array([3, 1]))
    assert ImageDataset(some).original_size(1) == (28, 30)


def test_neighbouring_rows_of_an_array_are_a_view():
    X = np.zeros((4, 5))
    assert take_rows(X, range(1, 3)).base is X
    assert take_rows(torch.zeros(4, 5), range(1, 3))._base is not None


def test_other_rows_do_not_share_memory():
    X = np.zeros((4, 5))
    take_rows(X, np.array([0, 1]))[:] = 1
    assert (X == 0).all()
