"""Inputs: images and what goes with them, and tensors that are a network's input already."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from sklcam.images import ImageDataset
from sklcam.networks import Inputs
from sklcam.networks.inputs import (
    NetworkTensors,
    OtherInputs,
    is_network_input,
    name_of_images,
)

IMAGES = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 5)
AGES = torch.tensor([30, 40, 50, 60])


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class ByName(nn.Module):
    def forward(self, age, image):
        return image + age[:, None, None, None]


def patients() -> Inputs:
    return Inputs.of({"image": IMAGES, "age": AGES}, "image")


def test_a_tensor_is_the_images():
    inputs = Inputs.of(IMAGES)
    assert inputs.images is inputs.arguments is IMAGES
    assert (len(inputs), inputs.size, inputs.name) == (4, (2, 5), None)
    assert torch.equal(inputs.call(nn.Identity()), IMAGES)
    assert Inputs.of(inputs) is inputs


def test_a_mapping_is_passed_by_name():
    inputs = patients()
    assert inputs.images is IMAGES
    assert inputs.others == {"age": AGES}
    assert torch.equal(inputs.call(ByName()), IMAGES + AGES[:, None, None, None])


def test_a_name_alone_does_not_make_a_tensor_a_mapping():
    assert Inputs.of(IMAGES, "image").arguments is IMAGES


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), slice(1, 3)])
def test_rows_are_taken_of_all_inputs(rows):
    taken = patients().take(rows)
    assert torch.equal(taken.images, IMAGES[rows])
    assert torch.equal(taken.arguments["age"], AGES[rows])
    assert torch.equal(Inputs.of(IMAGES).take(rows).images, IMAGES[rows])


def test_other_images_go_with_the_inputs_of_their_rows():
    images = torch.zeros(3, 3, 2, 5)
    rows = torch.tensor([1, 1, 3])
    assert patients().with_images(images, rows).arguments["age"].tolist() == [40, 40, 60]
    assert patients().with_images(IMAGES * 2).arguments["age"] is AGES
    assert patients().with_images(images, rows).arguments["image"] is images
    assert Inputs.of(IMAGES).with_images(images, rows).arguments is images


def test_inputs_made_in_inference_mode_become_recordable():
    with torch.inference_mode():
        inputs = Inputs.of({"image": IMAGES.clone(), "age": AGES.float()}, "image")
    recordable = inputs.recordable()
    weight = torch.ones((), requires_grad=True)
    (recordable.images.sum() * weight + (recordable.others["age"] * weight).sum()).backward()
    assert weight.grad == IMAGES.sum() + AGES.sum()
    plain = patients()
    assert plain.recordable().images is plain.images


@pytest.mark.parametrize(
    ("value", "name", "message"),
    [
        (IMAGES[0], None, r"images must be a Tensor .* shape \(3, 2, 5\)"),
        (IMAGES[:0], None, "without an empty axis"),
        (IMAGES.numpy(), None, "got an ndarray"),
        (
            {"a": IMAGES, "b": IMAGES},
            None,
            r"a dict of \['a', 'b'\]; image_input must name .* None",
        ),
        ({"age": AGES}, None, r"a dict of \['age'\]; image_input must name .* None"),
        ({"image": IMAGES}, "picture", "image_input must name .* 'picture'"),
        ({"image": AGES}, "image", "images must be a Tensor"),
    ],
)
def test_what_is_no_input(value, name, message):
    with pytest.raises(ValueError, match=message):
        Inputs.of(value, name)


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        ({"age": AGES, "picture": IMAGES}, "picture"),
        ({"pixel_values": IMAGES, "pixel_mask": IMAGES}, "pixel_values"),
        ({"files": ["a.png"], "mask": IMAGES, "image": IMAGES}, "image"),
    ],
)
def test_the_entry_of_images_is_named_or_found(inputs, name):
    given = name if name == "image" else None
    assert name_of_images(inputs, given) == name


# Other inputs


def test_other_inputs_go_to_the_images_in_their_precision():
    others = OtherInputs({"age": [30, 40, 50], "height": np.array([1.5, 1.75, 2.0])}, 3)
    taken = others.take(np.array([2, 0]), torch.zeros(2, 3, 4, 4, dtype=torch.float16))
    assert taken["age"].tolist() == [50, 30]
    assert taken["age"].dtype == torch.int64
    assert taken["height"].tolist() == [2.0, 1.5]
    assert taken["height"].dtype == torch.float16


def test_other_inputs_have_one_entry_an_image():
    with pytest.raises(ValueError, match=r"'age' must have one entry for each of the 3 images"):
        OtherInputs({"age": [30, 40]}, 3)
    with pytest.raises(ValueError, match=r"'age' .* shape \(\)"):
        OtherInputs({"age": 30}, 3)


# Tensors that are a network's input


@pytest.mark.parametrize(
    ("X", "expected"),
    [
        (torch.rand(2, 3, 4, 4), True),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), False),
        (np.zeros((2, 4, 4)), False),
        (["cat.png"], False),
        (TensorDataset(torch.rand(2, 3, 4, 4), torch.zeros(2)), True),
        (Items([torch.zeros(3, 4, 4, dtype=torch.uint8)]), False),
        (Items([np.zeros((4, 4))]), False),
        (Items([]), False),
        (ImageDataset(torch.rand(2, 3, 4, 4)), False),
    ],
)
def test_only_float_tensors_are_a_networks_own_input(X, expected):
    assert is_network_input(X) is expected


@pytest.mark.parametrize("wrap", [lambda X: X, TensorDataset, lambda X: Items([*X])])
def test_tensors_come_out_untouched(wrap):
    X = torch.randn(3, 2, 4, 5) * 100
    found = NetworkTensors(wrap(X))
    assert (len(found), found.n_channels) == (3, 2)
    assert found.image_size == found.uniform_size == (4, 5)
    for i, (image, original, _) in zip([2, 0], found.read_batch([2, 0]), strict=True):
        assert torch.equal(image, X[i])
        assert original is image


def test_tensors_come_out_detached():
    assert (
        not NetworkTensors(torch.rand(2, 3, 4, 4, requires_grad=True)).read(0).image.requires_grad
    )


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (torch.zeros(0, 3, 4, 4), "X is empty"),
        (torch.zeros(3, 4, 4), r"for volumes; the first one of X has shape \(4, 4\)"),
        (Items([torch.zeros(4, 4)]), r"the first one of X has shape \(4, 4\)"),
        (torch.zeros(1, 3, 4, 4, device="meta"), "meta device"),
        (torch.full((1, 3, 4, 4), torch.inf), "X has values that are NaN or infinite"),
    ],
)
def test_tensors_are_checked_at_the_door(X, message):
    with pytest.raises(ValueError, match=message):
        NetworkTensors(X)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.zeros(3, 4, 5), r"Item 1 of X has shape \(3, 4, 5\), but the first one \(3, 4, 4\)"),
        (torch.full((3, 4, 4), torch.nan), "Item 1 of X has values that are NaN"),
    ],
)
def test_items_are_checked_when_they_are_read(item, message):
    found = NetworkTensors(Items([torch.zeros(3, 4, 4), item]))
    found.read(0)
    with pytest.raises(ValueError, match=message):
        found.read(1)


@pytest.mark.parametrize("n_channels", [1, 4])
def test_images_of_other_channels_than_the_networks_are_named(n_channels):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    inputs = Inputs.of(torch.rand(2, n_channels, 8, 8))
    message = rf"does not take images of \({n_channels}, 8, 8\): .* np.repeat\(X"
    with pytest.raises(ValueError, match=message):
        inputs.call(network)
