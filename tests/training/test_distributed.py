"""Training by two processes on the CPU, against one that has the whole batch."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import subprocess
import sys
from types import SimpleNamespace

import accelerated
import joblib
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerated import CONTRASTIVE, FIXED, MODES, RANDOM, Plain, X, Y, ends, gradients_of
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.hf import AccelerateMixin
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.training import AcceleratedCAMClassifier

N_PROCESSES = 2
SEEDED = {**RANDOM, "random_state": 0}


def accelerated_classifier(**options):
    options = {"accelerator": Accelerator(cpu=True), **FIXED, "batch_size": 10, **options}
    return AcceleratedCAMClassifier(**options)


def assert_same_ends(ends, expected, **tolerance):
    assert ends["state"].keys() == expected["state"].keys()
    for name, value in expected["state"].items():
        assert_allclose(ends["state"][name], value, **tolerance, err_msg=name)
    assert len(ends["history"]) == len(expected["history"]) > 0
    for row, expected_row in zip(ends["history"], expected["history"], strict=True):
        assert row.keys() == expected_row.keys()
        for name, value in expected_row.items():
            # History has floats of float32 losses.
            assert_allclose(row[name], value, rtol=1e-6 if tolerance else 0, err_msg=name)


# Several processes


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of the processes found, and what it wrote."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(N_PROCESSES),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": ":".join(path for path in sys.path if path),
    }
    processes = []
    for rank in map(str, range(N_PROCESSES)):
        with open(folder / f"{rank}.log", "w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, accelerated.__file__, str(folder)],
                    env={**os.environ, **variables, "RANK": rank, "LOCAL_RANK": rank},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = [(folder / f"{rank}.log").read_text() for rank in range(N_PROCESSES)]
    assert codes == [0] * N_PROCESSES, "\n".join(logs)
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(N_PROCESSES)]
    return SimpleNamespace(found=found, logs=logs, folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_two_processes_are_one_on_the_whole_batch(together, mode):
    clf, gradients = gradients_of(
        ConsistentCAMClassifier, **{**FIXED, "batch_size": 20, **MODES[mode]}
    )
    assert len(gradients) >= 3 and gradients.abs().amax(dim=1).min() > 0
    for found in together.found:
        assert_allclose(found[mode]["gradients"], gradients, rtol=1e-7, atol=1e-12)
        assert_same_ends(found[mode], ends(clf), rtol=1e-7, atol=1e-12)


@pytest.mark.slow
def test_gradients_leave_during_the_last_backward_pass(together):
    """The first step finds their order; then all that the last backward pass meets leave in it."""
    for found in together.found:
        for name, sent in found["sent"].items():
            assert sent[0] == 0 and min(sent[1:]) == max(sent[1:]) > 0, name


@pytest.mark.slow
def test_negatives_are_those_of_the_same_process(together):
    """As of the halves of the whole batch, which are the shares of the two."""
    options = {**CONTRASTIVE, "batch_size": 20}
    clf, gradients = gradients_of(ConsistentCAMClassifier, **options, batch_accumulation=2)
    _, of_whole = gradients_of(ConsistentCAMClassifier, **options)
    for found in together.found:
        assert_allclose(found["contrastive"]["gradients"], gradients, rtol=1e-7, atol=1e-12)
        assert_same_ends(found["contrastive"], ends(clf), rtol=1e-7, atol=1e-12)
    assert not torch.allclose(gradients, of_whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *MODES,
        "contrastive",
        "random",
        "low and random",
        "uneven",
        "balanced",
        "set by a callback",
        "validated",
        "partly used",
        "overflowing",
    ],
)
def test_all_processes_end_with_one_network_and_one_history(together, name):
    first, *others = [found[name] for found in together.found]
    assert all(value.isfinite().all() for value in first["state"].values())
    for other in others:
        assert_same_ends(other, first)


@pytest.mark.slow
def test_processes_share_the_images_and_draw_for_themselves(together):
    found = [found["random"] for found in together.found]
    first, second = torch.cat([each["images"].reshape(2, -1) for each in found], dim=1)  # epochs
    assert len(first.unique()) == len(second.unique()) == len(X)
    assert_array_equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)  # shuffled
    views = torch.cat([each["views"] for each in found])
    assert len(views) == len(views.unique(dim=0)) == 2 * len(X)
    assert not torch.equal(*(each["global"] for each in found))


@pytest.mark.slow
def test_parameters_that_only_some_processes_use(together):
    for found in together.found:
        state = found["partly used"]["state"]
        assert found["partly used"]["idle"]
        assert_array_equal(state["idle"], np.ones(3))  # no weight decay without a gradient
        assert not np.array_equal(state["main"], np.ones(3))


@pytest.mark.slow
def test_an_overflow_in_one_process_is_one_in_all(together):
    (scale,) = {found["overflowing"]["scale"] for found in together.found}
    assert scale < 2.0**16  # with which it began


@pytest.mark.slow
def test_the_main_process_alone_prints(together):
    main, *others = together.logs
    assert others == [""] * len(others)
    assert main.count("epoch") == 1  # that with verbose=1


@pytest.mark.slow
def test_the_main_process_explains_scores_and_saves_alone(together):
    maps, score = together.found[0]["alone"]
    clf = accelerated_classifier(batch_size=20).fit(X, Y)
    assert_allclose(maps, clf.explain(X), atol=1e-5)
    assert score == clf.score(X, Y)
    saved = torch.load(together.folder / "alone.pt")
    assert_array_equal(saved["8.bias"], together.found[0]["normal"]["state"]["8.bias"])
    assert (together.folder / "best" / "params.pt").exists()
    assert [path.name for path in together.folder.glob("by *.pt")] == ["by 0.pt"]


@pytest.mark.slow
def test_processes_with_other_data_are_refused(together):
    for found in together.found:
        assert (
            "were given different images, labels, masks, boxes, weights or classes"
            in found["refused"]
        )


# A single process


@pytest.mark.parametrize(
    "options", [{}, {"memory": "low", "batch_accumulation": 2}, {"precision": "bf16"}]
)
def test_a_single_process_equals_the_classifier_it_extends(options):
    options = {**SEEDED, **options}
    plain = ConsistentCAMClassifier(**options, device="cpu").fit(X, Y)
    accelerated = accelerated_classifier(**options).fit(X, Y)
    assert_same_ends(ends(accelerated), ends(plain))
    assert_array_equal(accelerated.explain(X), plain.explain(X))
    assert torch.equal(accelerated.random_states_["global"], plain.random_states_["global"])
    accelerated.partial_fit(X, Y)
    assert_same_ends(ends(accelerated), ends(plain.partial_fit(X, Y)))


def test_the_accelerator_may_be_left_out():
    clf = accelerated_classifier(accelerator=None).fit(X, Y)
    assert isinstance(clf.accelerator_, Accelerator) and clf.accelerator is None
    assert_same_ends(ends(clf), ends(accelerated_classifier().fit(X, Y)))


def test_the_accelerator_is_shared_by_clones_and_copies():
    clf = accelerated_classifier(max_epochs=1).fit(X, Y)
    for twin in (clone(clf), copy.deepcopy(clf)):
        assert twin.accelerator is clf.accelerator
        assert twin.get_params()["alpha"] == clf.alpha
    assert not hasattr(clone(clf), "module_")
    assert_array_equal(copy.deepcopy(clf).predict(X), clf.predict(X))
    params = clf.get_params()
    assert params["accelerator"] is clf.accelerator and "accelerator_" not in params
    assert params["device"] == "auto" and params["verbose"] == 0
    clf.set_params(alpha=0.1, accelerator=None).fit(X, Y)


def test_grid_search():
    grid = {"alpha": [0, 0.5], "lr": [0.01, 0.1]}
    options = {**SEEDED, "max_epochs": 1}
    searches = [
        GridSearchCV(clf, grid, cv=2).fit(X, Y)
        for clf in (
            accelerated_classifier(**options),
            ConsistentCAMClassifier(**options, device="cpu"),
        )
    ]
    ours, plain = searches
    assert_array_equal(*(search.cv_results_["mean_test_score"] for search in searches))
    assert_array_equal(ours.predict_proba(X), plain.predict_proba(X))


def test_files_load_without_accelerate(tmp_path):
    clf = accelerated_classifier().fit(X, Y)
    joblib.dump(clf, tmp_path / "clf.joblib")
    np.save(tmp_path / "X.npy", X)
    script = (
        "import sys; sys.modules['accelerate'] = None; import joblib, numpy as np, torch;"
        "torch.set_num_threads(1); clf = joblib.load(sys.argv[1]);"
        "np.save(sys.argv[3], clf.explain(np.load(sys.argv[2])))"
    )
    names = [str(tmp_path / name) for name in ("clf.joblib", "X.npy", "maps.npy")]
    here = ":".join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": here}
    subprocess.run([sys.executable, "-c", script, *names], check=True, env=environment)
    assert_allclose(np.load(names[-1]), clf.explain(X), atol=1e-6)


def test_training_goes_on_from_a_file():
    clf = accelerated_classifier(**SEEDED).fit(X, Y)
    loaded = pickle.loads(pickle.dumps(clf))
    assert loaded.accelerator is None and not hasattr(loaded, "accelerator_")
    assert_same_ends(ends(loaded.partial_fit(X, Y)), ends(clf.partial_fit(X, Y)))


def test_the_accelerator_does_not_keep_the_images():
    accelerator = Accelerator(cpu=True)
    accelerated_classifier(accelerator=accelerator, max_epochs=1).fit(X, Y)
    assert accelerator._dataloaders == []


def test_a_pass_in_training_mode_is_not_shared():
    clf = accelerated_classifier(max_epochs=1).fit(X, Y)
    clf.accelerator_ = None  # would fail if asked
    assert len(clf.forward(X, training=True)) == len(X)


def test_verbose(capsys):
    accelerated_classifier(max_epochs=1).fit(X, Y)
    assert capsys.readouterr() == ("", "")
    accelerated_classifier(max_epochs=1, verbose=1).fit(X, Y)
    assert "train_loss" in capsys.readouterr().out


def test_a_missing_accelerate_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'pip install "sklcam\[accelerate\]"'):
        accelerated_classifier(accelerator=None).fit(X, Y)


def test_accelerate_is_not_imported_with_the_library():
    script = (
        "import sys, sklcam, sklcam.training.distributed;"
        "assert not {'accelerate', 'dask'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"distributed_type": "FSDP"}, "distributed_type FSDP splits it"),
        ({"mixed_precision": "bf16"}, "set the classifier's precision"),
        ({"gradient_accumulation_steps": 2}, "batch_accumulation"),
        ({"num_processes": 2, "even_batches": False}, "even_batches=False"),
    ],
)
def test_settings_of_the_accelerator_that_are_refused(setting, message):
    accelerator = SimpleNamespace(
        **{
            "prepare_data_loader": print,
            "wait_for_everyone": print,
            "distributed_type": "NO",
            "mixed_precision": "no",
            "gradient_accumulation_steps": 1,
            "num_processes": 1,
            "even_batches": True,
            **setting,
        }
    )
    with pytest.raises(ValueError, match=message):
        accelerated_classifier(accelerator=accelerator).fit(X, Y)


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"accelerator": "cpu"}])
def test_parameters_that_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        accelerated_classifier(**options).fit(X, Y)


# skorch's mixin


class Mixed(AccelerateMixin, ConsistentCAMClassifier):
    pass


def mixed(**options):
    return Mixed(
        **{**SEEDED, **options},
        device=None,
        accelerator=Accelerator(cpu=True),
        callbacks__print_log__sink=print,
    )


def test_skorchs_mixin_in_a_single_process():
    plain = ConsistentCAMClassifier(**SEEDED, device="cpu").fit(X, Y)
    clf = mixed().fit(X, Y)
    assert_same_ends(ends(clf), ends(plain))
    assert_array_equal(clf.explain(X), plain.explain(X))


@pytest.mark.parametrize(
    "options", [{"memory": "low"}, {"batch_accumulation": 2}, {"precision": "fp16"}]
)
def test_what_skorchs_mixin_would_lose_is_refused(options):
    module = nn.Sequential(*list(Plain())).float() if "precision" in options else Plain
    with pytest.raises(RuntimeError, match="AcceleratedCAMClassifier"):
        mixed(**options, module=module, target_layer="3").fit(X, Y)
