"""Many paths: what is held in one piece, and found without a question for each."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sklcam.images._paths import Paths, missing_files
from sklcam.images.dataset import ImageDataset, file_paths


@given(st.lists(st.text(st.characters(exclude_categories=()))))
def test_paths_are_what_was_given(given):
    paths = Paths(given)
    assert [*paths] == given and len(paths) == len(given)
    assert [*pickle.loads(pickle.dumps(paths))] == given
    for i in range(-len(given), len(given)):
        assert paths[i] == given[i]
    with pytest.raises(IndexError):
        paths[len(given)]


def test_they_hold_arrays_and_no_strings():
    paths = Paths([f"/data/imagenet/train/n{i:08d}/image.jpeg" for i in range(1000)])
    assert {type(value) for value in vars(paths).values()} == {np.ndarray}
    assert len(pickle.dumps(paths)) < 1000 * 60


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "many").mkdir()
    (tmp_path / "few").mkdir()
    for i in range(100):
        (tmp_path / "many" / f"{i}.png").touch()
    (tmp_path / "few" / "1.png").touch()
    (tmp_path / "many" / "folder.png").mkdir()
    os.symlink(tmp_path / "few" / "1.png", tmp_path / "many" / "link.png")
    os.symlink(tmp_path / "few" / "2.png", tmp_path / "many" / "broken.png")
    return tmp_path


def test_missing_files_are_those_that_are_not_there(folder):
    names = [*(f"many/{i}.png" for i in range(103)), "few/1.png", "few/2.png", "none/1.png"]
    names += ["many/folder.png", "many/link.png", "many/broken.png", "many/99.png", "many/102.png"]
    names += ["many//1.png", "many/", "", "many/\0.png", "many/\udce4.png", "no\0/a.png"]
    names += [f"none/{i}.png" for i in range(70)] + [f"no\0/{i}.png" for i in range(70)]
    paths = [str(folder / name) if name else "" for name in names]
    expected = [path for path in paths if not os.path.isfile(path)]
    assert missing_files(paths) == expected and len(expected) > 145


def test_a_folder_is_listed_once(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or True)
    paths = [str(folder / "many" / f"{i}.png") for i in range(100)]
    few = [str(folder / "few" / "1.png")]
    assert missing_files(Paths(paths + few)) == [] and asked == few


def test_of_a_folder_of_very_many_the_first_are_listed(folder, monkeypatch):
    for i in range(3000):
        (folder / "many" / f"other_{i}").touch()
    seen, inner = [], os.scandir

    class Counted:
        def __init__(self, path):
            self.inner = inner(path)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.inner.close()

        def __iter__(self):
            for entry in self.inner:
                seen.append(entry.name)
                yield entry

    monkeypatch.setattr(os, "scandir", Counted)
    paths = [str(folder / "many" / f"{i}.png") for i in range(64)] + [str(folder / "many" / "x")]
    assert missing_files(paths) == paths[-1:] and len(seen) <= 20 * 65


def test_images_of_paths_are_read_from_them(tmp_path):
    given = [tmp_path / f"{name}.png" for name in ("a", "ä", "b")]
    for shade, path in enumerate(given):
        Image.new("RGB", (4, 4), (shade, 0, 0)).save(path)
    images = ImageDataset(given, image_size=4)
    assert file_paths(images) == [str(path) for path in given]
    assert isinstance(images.source._items, Paths)
    assert [int(images[i][0][0, 0, 0]) for i in range(3)] == [0, 1, 2]
