"""Training that is interrupted and goes on: as if it had not been."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from classifiers import X, Y, classifier, weights
from skorch.callbacks import Checkpoint, EarlyStopping, LoadInitState, LRScheduler
from small_networks import DropoutNet

import sklcam

NO_RANDOMNESS = {"alpha": 0, "beta": 0, "augment": None, "iterator_train__shuffle": False}


def is_second(net):
    return len(net.history) == 2


def schedule(policy):
    return {
        "StepLR": LRScheduler("StepLR", step_size=2, gamma=0.1),
        "cosine": LRScheduler("CosineAnnealingLR", T_max=5),
        "batches": LRScheduler("StepLR", step_size=6, gamma=0.5, step_every="batch"),
    }[policy]


@pytest.mark.parametrize("policy", ["StepLR", "cosine", "batches"])
def test_partial_fit_goes_on_with_the_schedule(policy):
    whole = classifier(max_epochs=4, callbacks=[schedule(policy)], **NO_RANDOMNESS).fit(X, Y)
    parts = classifier(max_epochs=2, callbacks=[schedule(policy)], **NO_RANDOMNESS).fit(X, Y)
    parts.partial_fit(X, Y)
    if policy != "batches":  # whose rates are recorded with the batches
        assert parts.history[:, "event_lr"] == pytest.approx(whole.history[:, "event_lr"])
    assert torch.allclose(weights(parts), weights(whole), atol=1e-6)


def test_a_file_goes_on_as_if_training_had_not_ended(tmp_path):
    options = {"callbacks__lr_scheduler__step_size": 2, "recalibrate": False}
    whole = classifier(DropoutNet, max_epochs=4, **options).fit(X, Y, validation=(X, Y))
    part = classifier(DropoutNet, max_epochs=2, **options).fit(X, Y, validation=(X, Y))
    sklcam.save(part, tmp_path / "part.sklcam")
    loaded = sklcam.load(tmp_path / "part.sklcam", objects={"DropoutNet": DropoutNet})
    loaded.partial_fit(X, Y, validation=(X, Y))
    assert torch.equal(weights(loaded), weights(whole))
    columns = ("epoch", "train_loss", "valid_accuracy", "valid_loss_best", "event_lr")
    assert loaded.history[:, columns] == whole.history[:, columns]


def test_a_pickle_of_the_middle_of_a_fit_goes_on(tmp_path):
    keep = Checkpoint(is_second, f_pickle="net.pkl", dirname=str(tmp_path), f_history=None)
    options = {"recalibrate": False, "callbacks__lr_scheduler__step_size": 2, "freeze": 3}
    whole = classifier(DropoutNet, max_epochs=4, callbacks=[keep], **options).fit(X, Y)
    with open(tmp_path / "net.pkl", "rb") as file:
        part = pickle.load(file)
    assert len(part.history) == 2
    part.set_params(max_epochs=2).partial_fit(X, Y)
    assert torch.equal(weights(part), weights(whole))


def test_a_checkpoint_of_skorch_goes_on(tmp_path):
    def net(n_epochs):
        keep = Checkpoint(monitor=None, dirname=str(tmp_path))
        # As skorch has it, and in the order in which it does not work there.
        callbacks = [keep, LRScheduler("StepLR", step_size=2), LoadInitState(keep)]
        return classifier(max_epochs=n_epochs, callbacks=callbacks, **NO_RANDOMNESS)

    whole = classifier(
        max_epochs=4, callbacks=[LRScheduler("StepLR", step_size=2)], **NO_RANDOMNESS
    ).fit(X, Y)
    net(2).fit(X, Y)
    resumed = net(2).fit(X, Y)
    assert resumed.history[:, "event_lr"] == whole.history[:, "event_lr"]
    assert resumed.history[:, "train_loss"] == pytest.approx(whole.history[:, "train_loss"])
    assert torch.allclose(weights(resumed), weights(whole), atol=1e-6)


def test_a_checkpoint_without_its_optimizer_goes_on(tmp_path):
    keep = Checkpoint(monitor=None, dirname=str(tmp_path), f_optimizer=None)
    options = {"callbacks": [keep, LoadInitState(keep)], **NO_RANDOMNESS}
    classifier(**options).fit(X, Y)
    assert len(classifier(**options).fit(X, Y).history) == 2


def test_the_best_epoch_is_that_of_all_training(tmp_path):
    keep = Checkpoint(monitor=None, dirname=str(tmp_path))
    options = {"callbacks": [keep, LoadInitState(keep)], "max_epochs": 1, **NO_RANDOMNESS}
    best = classifier(**options).fit(X, Y).history[-1, "train_loss"]
    loaded = classifier(**options).fit(X, np.roll(Y, 1))  # of which it knows nothing
    assert loaded.history[0, "train_loss"] == best < loaded.history[1, "train_loss"]
    assert loaded.history[:, "train_loss_best"] == [True, False]


def test_early_stopping_and_the_best_checkpoint_by_accuracy(tmp_path):
    callbacks = [
        EarlyStopping("valid_accuracy", lower_is_better=False, patience=2),
        Checkpoint("valid_accuracy_best", dirname=str(tmp_path), load_best=True),
    ]
    clf = classifier(max_epochs=8, callbacks=callbacks, recalibrate=False)
    clf.fit(X, Y, validation=(X, Y))
    best = max(clf.history[:, "valid_accuracy"])
    assert clf.score(X, Y) == pytest.approx(best)
