"""What functions of images refuse."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from refusals import IMAGES, MAPS, NAN, VALUES, Row, X, rows_of

from sklcam.images import (
    ImageDataset,
    Resizing,
    check_images,
    dataset_labels,
    default_statistics,
    map_to_frame,
    n_images,
    normalize,
)


class SplitFolders(torch.utils.data.Dataset):
    class_to_idx: ClassVar = {"train": 0, "test": 1}

    def __len__(self):
        return 2


REFUSALS: dict[str, list[Row]] = {
    "ImageDataset": [
        *(
            (
                f"size {size!r}",
                lambda size=size: ImageDataset(X, image_size=size),
                "image_size must be|image_size=.8, 8, 3. is for volumes",
            )
            for size in (-8, 8.0, True, "8", "88", (8,), (8, 8, 3), (8, 0), None)
        ),
        ("size 0", lambda: ImageDataset(X, image_size=0), "a positive int or a pair .*got 0"),
        ("column", lambda: ImageDataset(X, image_column="a"), "image_column='a' is for"),
        ("no column", lambda: ImageDataset([{"b": 1}], image_column="a"), "no entry 'a'; it has b"),
        (
            "crop",
            lambda: ImageDataset(X, resize="crop"),
            "be 'stretch' or 'center_crop'; got 'crop'",
        ),
        ("no resize", lambda: ImageDataset(X, resize=None), "resize must be"),
        ("channels", lambda: ImageDataset(X, channels=1), "'first', 'last' or None; got 1"),
        (
            "channels first",
            lambda: ImageDataset(np.zeros((2, 1, 28, 28))),
            r"with its channels first; .* Pass X.transpose\(0, 2, 3, 1\)",
        ),
        (
            "channels?",
            lambda: ImageDataset(torch.zeros(2, 3, 28, 3)),
            r"may be first or last. Pass .*ImageDataset\(X, channels=",
        ),
        ("one image", lambda: ImageDataset(np.zeros((28, 28, 3))), r"pass X\[np.newaxis\]"),
        *(
            (
                f"background {colour!r}",
                lambda colour=colour: ImageDataset(X, background=colour),
                "background must be a colour, .* got",
            )
            for colour in ("no colour", 3, (0, 0), (0, 0, 256), (0, None, 0), "")
        ),
        ("a resize", lambda: ImageDataset(X, resize=["x"]), "resize must be .* got .'x'"),
        ("labels", lambda: ImageDataset(X, y=[1]), r"X has 12 image\(s\), but y has 1 label"),
        ("one label", lambda: ImageDataset(X, y=1), "y must hold one label per image; got 1"),
        (
            "ragged",
            lambda: ImageDataset(X[:2], y=[[1], [1, 2]]),
            "y must hold one label per image: ",
        ),
        ("channels", lambda: ImageDataset(X, n_channels=3), r"X has 1 channel.*fitted on 3\."),
        ("the 13th", lambda: ImageDataset(X)[12], "out of range", IndexError),
    ],
    "check_images": [("None", lambda: check_images(None), "X is None. X may be")],
    "n_images": [("None", lambda: n_images(None), "X is None. X may be")],
    "default_statistics": [
        ("0", lambda: default_statistics(0), "n_channels must be an int >= 1; got 0"),
    ],
    "normalize": [
        (
            "None",
            lambda: normalize(None, 0, 1),
            "batch must be a uint8 or float Tensor .* got None",
        ),
        ("arrays", lambda: normalize(IMAGES.numpy(), 0, 1), "batch must be .* got an ndarray"),
        ("one image", lambda: normalize(MAPS, 0, 1), r"batch must be .* shape \(2, 12, 12\)"),
        ("integers", lambda: normalize(IMAGES.int(), 0, 1), "batch must be .*int32"),
        ("no channel", lambda: normalize(IMAGES[:, :0], 0, 1), "n_channels must .* >= 1; got 0"),
        ("a word", lambda: normalize(IMAGES, "a", 1), "mean must be .*auto.* got a str, 'a'"),
        ("None as mean", lambda: normalize(IMAGES, None, 1), "mean must be .* got None"),
        ("ragged", lambda: normalize(IMAGES, [[1, 2], [3]], 1), "mean must be .* got a list"),
        (
            "two means",
            lambda: normalize(IMAGES, (1, 2), 1),
            r"mean has 2 values, .* 1 channel\(s\)",
        ),
        ("mean NaN", lambda: normalize(IMAGES, NAN, 1), "mean must be finite; got a float, nan"),
        (
            "std 0",
            lambda: normalize(IMAGES, 0, 0),
            "std must be finite and positive; got an int, 0",
        ),
        ("std -1", lambda: normalize(IMAGES, 0, -1), "std must be finite and positive"),
    ],
    "Resizing": [
        ("a mode", lambda: Resizing("squash"), "mode must be one of .* got 'squash'"),
        ("a filter", lambda: Resizing(interpolation="cubic"), "interpolation must be .* 'cubic'"),
        ("a decoder", lambda: Resizing(decode="quick"), 'decode must be "exact" or .* .quick'),
        ("nothing of it", lambda: Resizing(crop_fraction=0), "crop_fraction must be .* got 0"),
        ("a colour", lambda: Resizing(fill=(255.0,)), "fill must be .* got 255"),
    ],
    "map_to_frame": [
        ("None", lambda: map_to_frame(None, (2, 2)), "map_ must be .* got None"),
        ("an array", lambda: map_to_frame(MAPS.numpy(), (2, 2)), "map_ must be .* got an ndarray"),
        ("a row", lambda: map_to_frame(VALUES, (2, 2)), r"map_ must be .* shape \(2,\)"),
        ("integers", lambda: map_to_frame(MAPS.int(), (2, 2)), "map_ must be .*int32"),
        ("no pixels", lambda: map_to_frame(MAPS[:, :0], (2, 2)), r"map_ must be .* \(2, 0, 12\)"),
        ("no size", lambda: map_to_frame(MAPS, (0, 2)), r"size must be .* got \(0, 2\)"),
        ("a word", lambda: map_to_frame(MAPS, "ab"), "size must be .* got 'ab'"),
        ("a resize", lambda: map_to_frame(MAPS, (2, 2), resize="x"), "resize must be .* got 'x'"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()


FILES: dict[str, list[Row]] = {
    "dataset_labels": [
        (
            "folders of splits",
            lambda _: dataset_labels(SplitFolders()),
            "folders of splits, train, test. Make a data set of each",
        ),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(FILES))
def test_refusals_of_files(call, match, error, tmp_path):
    with pytest.raises(error, match=match):
        call(tmp_path)
