"""On a device, the numbers of a step are read when the next is queued, unless somebody looks."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pretend_device import PretendDevice
from skorch.callbacks import (
    BatchScoring,
    Callback,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
    ProgressBar,
)
from skorch.dataset import ValidSplit
from small_networks import SmallNet, digits
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sklcam import ConsistentCAMClassifier
from sklcam.training import EMA, ForgetBatches
from sklcam.training._readings import Reading, Readings
from sklcam.training.objective import ConsistentCAMLoss

SIZE = 12
X, Y = digits(12)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def classifier(device="pretend", of=ConsistentCAMClassifier, **options):
    options = {"image_size": SIZE, "max_epochs": 2, "batch_size": 4, "lr": 0.05, **options}
    return of(SmallNet, target_layer="5", device=device, random_state=0, verbose=0, **options)


@pytest.fixture
def events(monkeypatch):
    """Return a list of what happens to the numbers of steps, in order."""
    seen, add, read = [], Readings.add, Reading.read

    def noted(self, reading):
        seen.append("queued")
        return add(self, reading)

    monkeypatch.setattr(Readings, "add", noted)
    monkeypatch.setattr(Reading, "read", lambda self: seen.append("read") or read(self))
    return seen


LATE = ["queued", "queued", "read", "queued", "read", "read"]
AT_ONCE = ["queued", "read"] * 3

BLIND = {
    "none": [],
    "an average of weights": [EMA()],
    "scores of epochs": [EpochScoring("accuracy", name="scored", on_train=True)],
    "clipping": [GradientNormClipping(1.0)],
    "a schedule": [LRScheduler("StepLR", step_size=2, step_every="batch")],
    "forgetting": [ForgetBatches()],
}


@pytest.mark.parametrize("callbacks", BLIND.values(), ids=BLIND)
def test_numbers_are_read_a_step_late(callbacks, events):
    with PretendDevice():
        classifier(callbacks=callbacks, max_epochs=1).fit(X, Y)
    assert events == LATE


def test_a_host_reads_at_once(events):
    classifier("cpu", max_epochs=1).fit(X, Y)
    assert events == AT_ONCE


@pytest.mark.parametrize("options", [{}, {"every": 2}, {"gamma": 1.0}])
def test_the_history_is_that_of_a_host(options, monkeypatch):
    monkeypatch.setattr("sklcam.training.objective._N_PARTS_ON_CPU", 1)
    masks = [np.ones((8, 8), bool), *[None] * 6, *[np.eye(8, dtype=bool)] * 5]
    options = {**options, "train_split": ValidSplit(3, stratified=True)}
    given = {"masks": masks} if "gamma" in options else {}
    with PretendDevice():
        ours = classifier(**options).fit(X, Y, **given)
    host = classifier("cpu", **options).fit(X, Y, **given)
    for epoch, expected in zip(ours.history, host.history, strict=True):
        for row, wanted in zip(epoch["batches"], expected["batches"], strict=True):
            assert row.keys() == wanted.keys()
            assert_allclose([*row.values()], [wanted[name] for name in row], atol=1e-6)
        numbers = [name for name, value in expected.items() if isinstance(value, float)]
        numbers.remove("dur")
        assert_allclose(
            [epoch[name] for name in numbers], [expected[name] for name in numbers], atol=1e-6
        )


class Looking(Callback):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, net, **kwargs):
        self.seen.append(net.history[-1, "batches", -1, "train_loss"])


class LookingNet(ConsistentCAMClassifier):
    def train_step(self, batch, **fit_params):
        found = super().train_step(batch, **fit_params)
        assert math.isfinite(found["loss"].item())
        return found


class NetThatIsTold(ConsistentCAMClassifier):
    def on_batch_end(self, net, **kwargs):
        assert math.isfinite(self.history[-1, "batches", -1, "train_loss"])


plateau = {"step_every": "batch", "monitor": "train_loss"}
LOOKING = {
    "a callback": {"callbacks": [Looking()]},
    "a bar of skorch's": {"callbacks": [("bar", ProgressBar())]},
    "a score of batches": {"callbacks": [BatchScoring("accuracy", name="scored")]},
    "a schedule by the loss": {"callbacks": [LRScheduler(ReduceLROnPlateau, **plateau)]},
    "a class with steps of its own": {"of": LookingNet},
    "a class that is told": {"of": NetThatIsTold},
}


@pytest.mark.parametrize("options", LOOKING.values(), ids=LOOKING)
def test_who_looks_finds_numbers(options, events):
    with PretendDevice():
        clf = classifier(max_epochs=1, **options).fit(X, Y)
    assert events == AT_ONCE
    for _, callback in clf.callbacks_:
        if isinstance(callback, Looking):
            assert callback.seen == list(clf.history[-1, "batches", :, "train_loss"])


def test_what_an_instance_hears_counts(events):
    class Mute(Callback):
        pass

    mute, seen = Mute(), []
    mute.on_batch_end = lambda net, **_: seen.append(net.history[-1, "batches", -1, "train_loss"])
    with PretendDevice():
        classifier(max_epochs=1, callbacks=[mute]).fit(X, Y)
    assert events == AT_ONCE and np.isfinite(seen).all()


def test_numbers_of_an_interrupted_epoch_are_read(monkeypatch):
    calls, losses = [], ConsistentCAMLoss.__call__

    def breaking(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return losses(self, *args, **kwargs)

    monkeypatch.setattr(ConsistentCAMLoss, "__call__", breaking)
    with PretendDevice():
        clf = classifier(max_epochs=1).fit(X, Y)  # skorch stops, and keeps what there is
    rows = [row for row in clf.history[-1]["batches"] if "train_loss" in row]
    assert len(rows) == 2
    assert all(math.isfinite(row["train_loss"]) for row in rows)


def test_the_bar_shows_the_last_loss_that_is_known():
    clf = classifier("cpu", max_epochs=1).fit(X, Y)
    bar = dict(clf.callbacks_)["progress_bar"]
    rows = clf.history[-1]["batches"]
    assert bar._get_postfix_dict(clf)["train_loss"] == rows[-1]["train_loss"]
    rows[-1]["train_loss"] = math.nan  # it is on its way
    assert bar._get_postfix_dict(clf)["train_loss"] == rows[-2]["train_loss"]
    rows[-2]["train_loss"] = math.nan  # it is NaN
    assert math.isnan(bar._get_postfix_dict(clf)["train_loss"])
