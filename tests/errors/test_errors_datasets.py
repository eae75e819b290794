"""What loaders of data sets refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from refusals import Row, X, rows_of, written

from sklcam import datasets


def of_folders(load: Callable, tree: str, missing: str) -> list[Row]:
    """What loaders of folders refuse, all alike."""
    return [
        ("None", lambda _: load(None), "expected str, bytes or os.PathLike.* not None", TypeError),
        (
            "no folder",
            lambda f: load(f / "no"),
            rf"no is not a folder\. The expected layout is:\n{tree}",
            FileNotFoundError,
        ),
        ("empty", lambda f: load(f), missing, (ValueError, FileNotFoundError)),
    ]


REFUSALS: dict[str, list[Row]] = {
    "load_digits": [
        ("none", lambda: datasets.load_digits(n_class=0), "n_class.* must be .* Got 0"),
        ("11", lambda: datasets.load_digits(n_class=11), "n_class.* must be .* Got 11"),
    ],
    "LazyMask": [
        ("an array", lambda: datasets.LazyMask(X), "read must be a callable .* an ndarray"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()


FILES: dict[str, list[Row]] = {
    "find_images": [
        ("None", lambda _: datasets.find_images(None), "not 'NoneType'|not NoneType", TypeError),
        ("no folder", lambda f: datasets.find_images(f / "no"), "no folder", FileNotFoundError),
        ("empty", lambda f: datasets.find_images(f), "no images .* suffixes .*.jpeg, .jpg"),
        ("a file", lambda f: datasets.find_images(written(f, b"")), "no folder", FileNotFoundError),
    ],
    "load_class_folders": of_folders(
        datasets.load_class_folders, "<root>/<class>", "has no folders of classes"
    ),
    "load_caltech101": [
        *of_folders(
            datasets.load_caltech101,
            "<root>/101_ObjectCategories/<class>/image_0001",
            "has no 101_ObjectCategories",
        ),
        (
            "a part",
            lambda f: datasets.load_caltech101(f, subset="val"),
            "subset must be one of train, test, all; got 'val'",
        ),
    ],
    "load_cub200": [
        *of_folders(datasets.load_cub200, "<root>/images.txt", "has no images.txt"),
        ("a part", lambda f: datasets.load_cub200(f, subset=["x"]), "train, test, all; got .'x'"),
    ],
    "load_imagenet": [
        *of_folders(datasets.load_imagenet, "<root>/<subset>/<wnid>", "has no val"),
        (
            "a part",
            lambda f: datasets.load_imagenet(f, subset="test"),
            "subset must be one of train, val; got 'test'",
        ),
    ],
    "load_voc": [
        ("None", lambda _: datasets.load_voc(None), "os.PathLike.* not .*None", TypeError),
        (
            "no folder",
            lambda f: datasets.load_voc(f),
            r"VOC2012 is not a folder\. The expected layout is:\n<root>/VOCdevkit/VOC<year>/JPEG",
            FileNotFoundError,
        ),
        ("a year", lambda f: datasets.load_voc(f, year="2013"), "one of 2007, .*2012; got '2013'"),
        ("a part", lambda f: datasets.load_voc(f, subset="all"), "trainval, test; got 'all'"),
    ],
    "load_boxes_csv": [
        ("None", lambda _: datasets.load_boxes_csv(None), "not NoneType", TypeError),
        ("missing", lambda f: datasets.load_boxes_csv(f / "no"), "No such file", FileNotFoundError),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(FILES))
def test_refusals_of_files(call, match, error, tmp_path):
    with pytest.raises(error, match=match):
        call(tmp_path)
