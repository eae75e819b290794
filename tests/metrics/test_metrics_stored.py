"""Evaluations in a folder: killed and gone on with, shared by processes, and refused."""

from __future__ import annotations

import os
import signal

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from processes import in_a_process
from small_networks import SmallNet

from sklcam import CAMExplainer
from sklcam._folders import ChunkFolder
from sklcam.cam import GradCAM
from sklcam.metrics import Metric, evaluate

N = 7
IMAGES = torch.rand(N, 1, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = np.arange(N) % 3
METRICS = ("adcc", "iauc", "consistency", "accuracy")
OPTIONS = {
    "metrics": METRICS,
    "metric_params": {"iauc": {"n_steps": 4}},
    "progress": False,
}
needs_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")


def explainer(seed=0, **options):
    torch.manual_seed(seed)
    shared = {"target_layer": "5", "batch_size": 2, "verbose": 0, "method": "layercam"}
    return CAMExplainer(SmallNet().eval(), **{**shared, **options}).fit(IMAGES)


@pytest.fixture(scope="module")
def ours():
    return explainer()


def measured(explainer, **options):
    return evaluate(explainer, IMAGES, LABELS, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def expected(ours):
    return measured(ours)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert_array_equal(found[name], values, name)
    assert repr(found.summary()) == repr(expected.summary())
    assert_array_equal(found.labels, expected.labels)


def evaluate_until_killed(path):
    """Killed in the pass that follows the second batch's last one, or in its middle."""
    torch.set_num_threads(1)
    ours, finish = explainer(), ChunkFolder.finish

    def finish_or_die(self, chunk, content=b""):
        if self.n_done == 2 and chunk == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(self, chunk, content)

    ChunkFolder.finish = finish_or_die
    measured(ours, store=path)


@needs_sigkill
def test_killed_it_goes_on_and_ends_with_the_same_numbers(ours, expected, tmp_path):
    process = in_a_process(evaluate_until_killed, tmp_path / "values")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert ChunkFolder(tmp_path / "values").n_done == 2
    passes = []
    handle = ours.model_.register_forward_hook(lambda layer, given, _: passes.append(given))
    assert_same(measured(ours, store=tmp_path / "values"), expected)
    assert passes
    passes.clear()
    assert_same(measured(ours, store=tmp_path / "values"), expected)
    assert not passes  # all is read
    handle.remove()


def evaluate_a_share(path, shard):
    torch.set_num_threads(1)
    np.save(f"{path}_{shard[0]}.npy", measured(explainer(), store=path, shard=shard)["iauc"])


def test_processes_that_share_it_all_return_the_whole(ours, expected, tmp_path):
    both = [in_a_process(evaluate_a_share, tmp_path / "values", (i, 2)) for i in range(2)]
    for process in both:
        process.join()
        assert process.exitcode == 0
    for i in range(2):
        assert_array_equal(np.load(tmp_path / f"values_{i}.npy"), expected["iauc"])
    assert_same(measured(ours, store=tmp_path / "values"), expected)


def test_jobs_write_into_it(ours, expected, tmp_path):
    """See test_cluster.py for jobs that are processes."""
    with joblib.parallel_config(backend="threading"):
        assert_same(measured(ours, store=tmp_path / "values", n_jobs=2), expected)
        (tmp_path / "values" / "done" / "00000001").unlink()
        assert_same(measured(ours, store=tmp_path / "values", n_jobs=2), expected)


def test_several_methods_share_a_folder(ours, tmp_path):
    named = {"own": None, "free": GradCAM(relu=False)}
    whole = measured(ours, method=named)
    assert not np.array_equal(whole["own"]["iauc"], whole["free"]["iauc"])
    for _ in range(2):
        found = measured(ours, method=named, store=tmp_path / "values")
        assert found.keys() == whole.keys()
        for name, expected in whole.items():
            assert_same(found[name], expected)
        (tmp_path / "values" / "done" / "00000001").unlink()
    with pytest.raises(ValueError, match="differ: method "):
        measured(ours, method=["gradcam"], store=tmp_path / "values")


def test_what_differs_is_said(ours, tmp_path):
    path = tmp_path / "values"
    first = measured(ours, store=path)
    own = {"metrics": [*METRICS, Metric("mean", lambda maps: maps.mean(dim=(1, 2)), ("maps",))]}
    for call, match in [
        (lambda: measured(explainer(seed=1), store=path), "differ: weights. Continue"),
        (lambda: measured(ours, store=path, metrics="adcc"), r"differ: metrics \("),
        (lambda: measured(ours, store=path, **own), "; functions of the metrics. Continue"),
        (lambda: measured(ours, store=path, method="gradcam"), r"method \(.*LayerCAM.*GradCAM"),
        (lambda: measured(ours, store=path, random_state=1), r"differ: random_state \("),
        (lambda: measured(ours, store=path, target=1), r"target \(None there, 1 now\)"),
        (
            lambda: measured(ours, store=path, metric_params={"iauc": {"n_steps": 5}}),
            r"options of the metrics \(.*n_steps.*4.*5",
        ),
        (
            lambda: evaluate(ours, IMAGES, LABELS[::-1], store=path, **OPTIONS),
            "differ: y. Continue",
        ),
        (lambda: ours.explain_to(IMAGES, path), "holds values, not maps"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    assert_same(measured(ours, store=path), first)


def test_a_damaged_chunk_is_named(ours, tmp_path):
    measured(ours, store=tmp_path / "values")
    mark = tmp_path / "values" / "done" / "00000002"
    for content in (b"", mark.read_bytes()[:-30], (mark.parent / "00000003").read_bytes()):
        mark.write_bytes(content)
        with pytest.raises(ValueError, match=r"Chunk 2 of .* is damaged"):
            measured(ours, store=tmp_path / "values")
