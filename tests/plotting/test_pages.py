"""What pages are made of: thumbnails, maps over them, and data that stays data."""

from __future__ import annotations

import base64
import io
import json

import matplotlib
import numpy as np
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from sklcam.images import Resizing
from sklcam.plotting.pages import (
    image_uri,
    map_uri,
    overlay_uri,
    script_json,
    thumbnail_size,
    viridis,
)


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_json_cannot_end_its_script():
    value = {"a": "</script><!-- & \u2028 \u2029"}
    text = script_json(value)
    assert json.loads(text) == value
    assert not set(text) & {"<", ">", "&", "\u2028", "\u2029"}


def test_colours_are_viridis():
    expected = matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255
    assert np.abs(viridis() - expected).max() < 3


def test_thumbnails_keep_proportions():
    assert thumbnail_size(300, 600, 224) == (112, 224)
    assert thumbnail_size(8, 8, 224) == (8, 8)
    assert thumbnail_size(1, 10_000, 224) == (1, 224)
    assert image_uri(np.zeros((8, 8)), (8, 8)).startswith("data:image/png;base64,")


def test_an_overlay_mixes_a_grey_image_with_the_colours_of_its_map():
    picture = np.zeros((2, 2, 3))
    picture[0, 0] = (1, 0, 0)  # whose luma is 0.299
    map_ = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    drawn = opened(overlay_uri(picture, map_, (2, 2), resize=Resizing(), alpha=0.25))
    low, high = viridis()[[0, 255]].astype(float)
    expected = np.array([[0.75 * 76 + 0.25 * low, 0.25 * high], [0.25 * low, 0.25 * low]])
    assert np.abs(np.asarray(drawn) - expected).max() <= 0.51
    alone = opened(map_uri(map_, (2, 2), resize=Resizing()))
    assert_array_equal(np.asarray(alone), [[0, 255], [0, 0]])
    whole = opened(overlay_uri(picture, map_, (2, 2), resize=Resizing(), alpha=1))
    assert_array_equal(np.asarray(whole), np.asarray(alone.convert("RGB")))
