"""What files and pages refuse; a write that fails leaves the old file as it was."""

from __future__ import annotations

import copy
import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import (
    INPUTS,
    NET,
    Row,
    X,
    Y,
    classifier,
    embedder,
    explainer,
    fitted,
    rows_of,
    written,
)
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from small_networks import SmallNet
from torch import nn

import sklcam
from sklcam import CAMExplainer
from sklcam.persistence import PersistenceError


def saved(folder: Path, estimator: Any) -> Path:
    sklcam.save(estimator, folder / "saved")
    return folder / "saved"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def report(folder: Path, **changes: Any) -> Any:
    options = {"estimator": fitted(), "X": X, "y": Y, "path": folder / "page.html", "verbose": 0}
    return sklcam.report(**{**options, "metrics": "sparsity", **changes})


def export(folder: Path, model: Any = None, **changes: Any) -> None:
    options = {"path": folder / "a.onnx", **changes}
    (fitted() if model is None else model).export(**options)


def around(network: nn.Module, sample: Any = INPUTS, **options: Any) -> CAMExplainer:
    return CAMExplainer(network, verbose=0, **options).fit(sample)


def of_volumes() -> CAMExplainer:
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return around(network, torch.rand(2, 1, 6, 6, 6), target_layer="1")


PREPARED = {"image_size": 16, "mean": 0.4, "std": 0.25}
STEPS = make_pipeline(FunctionTransformer(), classifier())
SEARCH = GridSearchCV(classifier(), {"lr": [0.1]})


def namer(concept: Any) -> sklcam.ConceptNamer:
    halves = torch.arange(16)[:, None].expand(len(INPUTS), 16, 16) < 8
    return sklcam.ConceptNamer().fit(explainer(), INPUTS, {concept: halves})


FILES: dict[str, list[Row]] = {
    "export": [
        ("unfitted", lambda f: export(f, classifier()), "call fit first", NotFittedError),
        ("unfitted, too", lambda f: export(f, CAMExplainer(NET)), "not fitted", NotFittedError),
        ("no path", lambda f: export(f, path=None), "not NoneType", TypeError),
        ("another file", lambda f: export(f, path=f / "a.sklcam"), "path must end in .* got a"),
        ("nowhere", lambda f: export(f, path=f / "a/b.onnx"), "no folder", FileNotFoundError),
        ("maps", lambda f: export(f, maps="yes"), "maps must be .* got .* 'yes'"),
        ("a card", lambda f: export(f, card=3), "card must be a string, .* got an int, 3"),
        ("no X", lambda f: export(f, X=3), "X is a int"),
        ("its input", lambda f: export(f, around(NET, **PREPARED), X=INPUTS), "own input"),
        ("an embedding", lambda f: export(f, embedder()), "holds a classifier or a regressor"),
        ("volumes", lambda f: export(f, of_volumes()), "takes volumes, .* prepares pictures"),
        (
            "half precision",
            lambda f: export(f, around(copy.deepcopy(NET).bfloat16())),
            r"computes in torch.bfloat16, .* copy.deepcopy\(network\).float\(\)",
        ),
        (
            "nobody says",
            lambda f: export(f, around(NET, image_size=16, mean=0)),
            "does not say how. Give the explainer std=, and fit it",
        ),
        (
            "a pipeline",
            lambda f: export(f, CAMExplainer(STEPS.fit(X, Y), verbose=0).fit()),
            "of the last step",
        ),
    ],
    "save": [
        ("None", lambda f: sklcam.save(None, f / "x"), "got a NoneType", PersistenceError),
        (
            "a network",
            lambda f: sklcam.save(NET, f / "x"),
            "Put a CAMExplainer around",
            PersistenceError,
        ),
        ("a class", lambda f: sklcam.save(CAMExplainer, f / "x"), "ABCMeta", PersistenceError),
        (
            "no numbers",
            lambda f: sklcam.save(classifier(classes=torch.eye(2).to_sparse()), f / "x"),
            "classes is a tensor without",
            PersistenceError,
        ),
        ("no path", lambda _: sklcam.save(explainer(), None), "not NoneType", TypeError),
        ("a folder", lambda f: sklcam.save(explainer(), f), "is a folder", IsADirectoryError),
        (
            "nowhere",
            lambda f: sklcam.save(explainer(), f / "a" / "b"),
            "no folder",
            FileNotFoundError,
        ),
        ("a pipe", lambda f: sklcam.save(explainer(), pipe(f)), "is a device, a pipe", OSError),
        (
            "a concept",
            lambda f: sklcam.save(namer(("a", "pair")), f / "x"),
            r"A concept's name is a tuple, \('a', 'pair'\), .* Give concepts such names",
            PersistenceError,
        ),
        (
            "a segmenter of a search",
            lambda f: sklcam.save(sklcam.CAMSegmenter(SEARCH), f / "x"),
            r"cannot hold a search .* segmenter.set_params\(explainer=segmenter.explainer_\)",
            PersistenceError,
        ),
        (
            "a segmenter of nothing",
            lambda f: sklcam.save(sklcam.CAMSegmenter(None), f / "x"),
            "got a NoneType",
            PersistenceError,
        ),
        (
            "a segmenter behind others",
            lambda f: sklcam.save(sklcam.CAMSegmenter(STEPS), f / "x"),
            "does not store the transformers of a Pipeline",
            PersistenceError,
        ),
    ],
    "load": [
        ("None", lambda _: sklcam.load(None), "not NoneType", TypeError),
        ("missing", lambda f: sklcam.load(f / "no"), "No such file", FileNotFoundError),
        ("a list", lambda f: sklcam.load(f / "x", objects=[SmallNet]), "objects must be a dict of"),
        ("a pipe", lambda f: sklcam.load(pipe(f)), "is a device or a pipe", PersistenceError),
        ("text", lambda f: sklcam.load(written(f, b"abc")), "not a file that", PersistenceError),
        (
            "no objects",
            lambda f: sklcam.load(saved(f, explainer())),
            "objects=.'SmallNet': SmallNet",
            PersistenceError,
        ),
        (
            "no refinement",
            lambda f: sklcam.load(saved(f, sklcam.CAMSegmenter(explainer(), refine=pipe))),
            "objects=.'SmallNet': SmallNet, 'pipe': pipe",
            PersistenceError,
        ),
    ],
    "model_card": [
        ("None", lambda _: sklcam.model_card(None), "describes the estimators .* got None"),
        ("a network", lambda _: sklcam.model_card(NET), "describes the estimators .* a SmallNet"),
        (
            "a class",
            lambda _: sklcam.model_card(CAMExplainer),
            "describes the estimators .*ABCMeta",
        ),
        ("a number", lambda _: sklcam.model_card(explainer(), metrics=3), "metrics must be a dict"),
        ("no file", lambda _: sklcam.model_card(explainer(), file=3), "file must be .* an int, 3"),
    ],
    "report": [
        ("no path", lambda f: report(f, path=None), "report needs path="),
        ("a folder", lambda f: report(f, path=f), "is a folder", IsADirectoryError),
        ("nowhere", lambda f: report(f, path=f / "a" / "b"), "There is no fold", FileNotFoundError),
        ("no one", lambda f: report(f, estimator=None), "estimator must be"),
        (
            "unfitted",
            lambda f: report(f, estimator=classifier()),
            "call fit first",
            NotFittedError,
        ),
        ("no images", lambda f: report(f, X=None), "X is None"),
        ("labels", lambda f: report(f, y=Y[:3]), "y has 3 entries for 12 images"),
        ("names", lambda f: report(f, names=["a"]), "one entry for each of 12 images; got 1"),
        ("a name", lambda f: report(f, names=3), "one entry for each of 12 images; got an int, 3"),
        ("a set", lambda f: report(f, names={*"abcdefghijkl"}), "names must .*; got a set, "),
        (
            "a dict",
            lambda f: report(f, names=dict.fromkeys("abcdefghijkl", "x")),
            "name for image 0: nei",
        ),
        (
            "none shown",
            lambda f: report(f, n_images=0),
            "n_images must be an int >= 1; got 0",
        ),
        (
            "tiny",
            lambda f: report(f, thumbnail=5),
            "thumbnail must be an int from 32 to 1024",
        ),
        ("a metric", lambda f: report(f, metrics="adc"), "Did you mean: adcc"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(FILES))
def test_refusals_of_files(call, match, error, tmp_path):
    with pytest.raises(error, match=match):
        call(tmp_path)


# Writes that are interrupted, and full disks


class FailingFile(io.BufferedRandom):
    """A file that takes some bytes, and then no more."""

    left = 0
    error: BaseException = OSError(errno.ENOSPC, "No space left on device")

    def write(self, data):
        self.left -= len(data)
        if self.left < 0:
            raise self.error
        return super().write(data)


@pytest.fixture(params=[OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def failing(request, monkeypatch) -> Iterator[Callable[[int], BaseException]]:
    """Let new files fail after so many bytes; the error that they raise."""
    really_open = Path.open

    def fail_after(n_bytes: int) -> BaseException:
        def opened(path, mode="r", *args, **kwargs):
            file = really_open(path, mode, *args, **kwargs)
            if "x" not in mode:
                return file
            failing_file = FailingFile(file.detach())
            failing_file.left, failing_file.error = n_bytes, request.param
            return failing_file

        monkeypatch.setattr(Path, "open", opened)
        return request.param

    return fail_after


@pytest.mark.parametrize("n_bytes", [0, 100, 4000])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: sklcam.save(explainer(), path),
        lambda path: sklcam.report(fitted(), X, Y, path, metrics="sparsity", verbose=0),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_no_other(write, n_bytes, failing, tmp_path):
    path = written(tmp_path, b"the old one")
    error = failing(n_bytes)
    with pytest.raises(type(error)):
        write(path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_end_leaves_the_old_file(step, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = written(tmp_path, b"the old one")
    monkeypatch.setattr(f"sklcam._files.os.{step}", full)
    with pytest.raises(OSError, match="No space left"):
        sklcam.save(explainer(), path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_is_interrupted_while_it_measures_leaves_the_old_page(tmp_path):
    def interrupt(output):
        raise KeyboardInterrupt

    path = written(tmp_path, b"the old one")
    with pytest.raises(KeyboardInterrupt):
        sklcam.report(fitted(), X, Y, path, metrics="adcc", score=interrupt, verbose=0)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]
