"""Methods by name, and what is private to none of them."""

from __future__ import annotations

import re
from importlib import import_module
from inspect import isabstract
from pathlib import Path

import pytest
import torch

from sklcam import cam
from sklcam.cam import GradCAM, Method, available, get_method
from sklcam.cam.base import batch_size_for

FAMILIES = (
    "attention",
    "eigen",
    "finer",
    "gradient",
    "perturbation",
    "pixel",
    "rise",
    "baselines",
    "faster",
)


def test_methods_by_name():
    assert "gradcam" in available()
    assert isinstance(get_method("GradCAM"), GradCAM)
    own = GradCAM(relu=False)
    assert get_method(own) is own


@pytest.mark.parametrize(
    ("method", "message"),
    [("gradcma", "gradcam"), (3, "got 3"), (int, "Derive it from sklcam.cam.Method")],
)
def test_unknown_methods(method, message):
    with pytest.raises(ValueError, match=message):
        get_method(method)


@pytest.mark.parametrize(
    ("size", "expected"), [((224, 224), 10), ((112, 112), 41), ((64, 128), 64), ((2000, 1000), 1)]
)
def test_as_many_changed_images_at_a_time_as_caches_hold(size, expected):
    images = torch.empty(1, 3, *size)
    assert batch_size_for(images, None) == expected
    assert batch_size_for(images, 7) == 7
    assert batch_size_for(images.to("meta"), None) == 2**22 // (size[0] * size[1])


def test_every_class_of_methods_has_a_name():
    modules = [import_module(f"sklcam.cam.{name}") for name in FAMILIES]
    classes = {
        value
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, type)
        and issubclass(value, Method)
        and not isabstract(value)
    }
    assert {type(get_method(name)) for name in available()} == classes
    assert all(getattr(cam, method.__name__) is method for method in classes)


def test_every_method_is_in_the_table_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "methods.rst").read_text()
    (_, _, rows, *_) = re.split(r"^=+  =+  =+$", page, flags=re.MULTILINE)
    first_column = [line.split("  ")[0] for line in rows.strip().splitlines()]
    assert sorted(", ".join(first_column).split(", ")) == available()
