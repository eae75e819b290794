"""Methods by name, and what is private to none of them."""

from __future__ import annotations

import pytest
import torch

from sklcam.cam import GradCAM, available, get_method
from sklcam.cam.base import batch_size_for


def test_methods_by_name():
    assert "gradcam" in available()
    assert isinstance(get_method("GradCAM"), GradCAM)
    own = GradCAM(relu=False)
    assert get_method(own) is own


@pytest.mark.parametrize(
    ("method", "message"), [("gradcma", "gradcam"), (3, "got 3"), (int, "derive from Method")]
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
