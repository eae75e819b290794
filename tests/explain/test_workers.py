"""Processes that read images ahead: the same images, and the same errors."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch
from joblib.externals.loky.backend import get_context
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.base import clone
from small_networks import SmallNet
from torch.utils.data import Dataset

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.explain import OpenedImages
from sklcam.metrics import evaluate

N = 7
MEASURED = {"metrics": ("adcc", "sparsity"), "progress": False}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(N):
        pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(N)]


@pytest.fixture(scope="module")
def ours():
    torch.manual_seed(0)
    network = SmallNet(in_channels=3).eval()
    return CAMExplainer(network, target_layer="5", image_size=16, batch_size=2, verbose=0).fit()


@pytest.fixture
def workers(monkeypatch):
    """How many workers the loaders have that are made."""
    made, inner = [], OpenedImages._loader

    def counted(self):
        loader = inner(self)
        made.append(loader.num_workers)
        return loader

    monkeypatch.setattr(OpenedImages, "_loader", counted)
    return made


def test_images_come_in_their_order(ours, paths, workers, tmp_path):
    expected, values = ours.explain(paths), evaluate(ours, paths, **MEASURED)
    workers.clear()
    assert_array_equal(ours.explain(paths, num_workers=2), expected)
    ours.explain_to(paths, tmp_path / "maps", num_workers=2)
    assert_array_equal(sklcam.open_maps(tmp_path / "maps"), expected)
    for name, found in evaluate(ours, paths, num_workers=2, **MEASURED).items():
        assert_array_equal(found, values[name])
    assert set(workers) == {2}


def test_within_a_process_of_joblibs(ours, paths, monkeypatch):
    """There, Python would start processes as joblib does, which cannot start those of a loader."""
    expected = ours.explain(paths)
    default = multiprocessing.context._default_context
    monkeypatch.setattr(default, "_actual_context", get_context("loky"))
    assert multiprocessing.get_start_method() == "loky"
    assert_array_equal(ours.explain(paths, num_workers=1), expected)
    own = clone(ours).set_params(num_workers=1).fit()
    assert_array_equal(own.explain(paths), expected)


def test_those_of_a_net_that_was_trained(paths, workers):
    clf = ConsistentCAMClassifier(
        SmallNet, image_size=16, max_epochs=1, batch_size=3, verbose=0, target_layer="5"
    ).fit(paths, np.arange(N) % 3)
    expected = clf.explain(paths, method="saliency")
    workers.clear()
    assert_array_equal(clf.explain(paths, method="saliency", num_workers=1), expected)
    assert workers == [1]


class Odd(KeyError):
    """An error that cannot be made anew from its message, as some of other libraries."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")
        self.cannot_be_pickled = lambda: None


class Failing(Dataset):
    def __init__(self, *error):
        self.error = error

    def __len__(self):
        return N

    def __getitem__(self, i):
        if i == 5:
            kind, *args = self.error
            raise kind(*args)
        return np.full((16, 16, 3), i, np.uint8)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "sent"), [((KeyError, "left out"), KeyError), ((Odd, "left", "out"), RuntimeError)]
)
def test_errors_name_the_image(ours, error, sent, num_workers):
    with pytest.raises(Exception, match="left out") as caught:
        ours.explain(Failing(*error), num_workers=num_workers)
    assert type(caught.value) is (sent if num_workers else error[0])
    notes = caught.value.__notes__
    assert notes[0] == "It is image 5 of X that could not be read."
    assert len(notes) == 1 + (num_workers > 0) and ("__getitem__" in notes[-1]) == (num_workers > 0)


def test_a_broken_file_is_one_error_whoever_reads_it(ours, paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    told = []
    for num_workers in (0, 2):
        with pytest.raises(ValueError, match="broken") as caught:
            ours.explain([*paths[:5], str(broken), paths[6]], num_workers=num_workers)
        told.append(str(caught.value))
        assert caught.value.__notes__[0] == "It is image 5 of X that could not be read."
    assert told[0] == told[1]
