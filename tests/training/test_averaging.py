"""Weights averaged over training, against an average that is written out."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from classifiers import X, Y, classifier
from skorch.callbacks import Callback, Checkpoint

import sklcam
from sklcam.training import EMA

PLAIN = {"recalibrate": False, "max_epochs": 3}


class Trail(Callback):
    """Keeps the network's floats as they are before training and after each of its steps."""

    def initialize(self):
        self.trail_ = []
        return self

    def on_train_begin(self, net, **kwargs):
        self.trail_ = self.trail_ or [floats(net)]

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.trail_.append(floats(net))


def floats(net):
    state = net.module_.state_dict()
    return {name: value.clone() for name, value in state.items() if value.is_floating_point()}


def averaged(trail, decay):
    average = dict(trail[0])
    for t, weights in enumerate(trail[1:], start=1):
        d = min(decay, (1 + t) / (10 + t))
        average = {name: d * average[name] + (1 - d) * weights[name] for name in average}
    return average


def close(one, other):
    return all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_prediction_is_by_the_average_and_training_by_the_weights():
    trail = Trail()
    clf = classifier(callbacks=[trail, EMA(0.6)], **PLAIN).fit(X, Y, validation=(X, Y))
    plain = classifier(callbacks=[Trail()], **PLAIN).fit(X, Y, validation=(X, Y))
    found = dict(clf.callbacks_)["Trail"].trail_
    assert len(found) == 10
    assert close(found[-1], dict(plain.callbacks_)["Trail"].trail_[-1])  # the same training
    assert close(floats(clf), averaged(found, 0.6))  # statistics of batch normalisation, too
    assert not close(floats(clf), found[-1])
    assert clf.history[-1, "valid_accuracy"] == pytest.approx(clf.score(X, Y))
    # By then d is still (1 + t) / (10 + t), whatever it is to be in the end.
    assert close(averaged(found, 0.9), averaged(found, 0.999))


@pytest.mark.parametrize("way", ["itself", "a copy", "a pickle"])
def test_partial_fit_goes_on_with_both(way):
    whole = classifier(callbacks=[EMA(0.9)], **{**PLAIN, "max_epochs": 4}).fit(X, Y)
    part = classifier(callbacks=[EMA(0.9)], **{**PLAIN, "max_epochs": 2}).fit(X, Y)
    if way == "a copy":
        part = copy.deepcopy(part)
    if way == "a pickle":
        part = pickle.loads(pickle.dumps(part))
    assert close(floats(part.partial_fit(X, Y)), floats(whole))
    again = part.set_params(max_epochs=4).fit(X, Y)  # from the start
    assert close(floats(again), floats(whole))


def test_a_checkpoint_keeps_the_average_in_whichever_order(tmp_path):
    keep = Checkpoint(monitor=None, dirname=str(tmp_path))
    clf = classifier(callbacks=[keep, EMA(0.9)], **PLAIN).fit(X, Y)
    kept = torch.load(tmp_path / "params.pt", weights_only=True)
    assert close(floats(clf), kept)


def test_a_file_keeps_the_average(tmp_path):
    clf = classifier(callbacks=[EMA(0.9)], **PLAIN).fit(X, Y)
    sklcam.save(clf, tmp_path / "clf.sklcam")
    loaded = sklcam.load(tmp_path / "clf.sklcam", objects={"SmallNet": type(clf.module_)})
    assert close(floats(loaded), floats(clf))
    assert loaded.callbacks[0].decay == 0.9
    loaded.partial_fit(X, Y)


def test_a_file_that_is_written_changes_nothing(tmp_path):
    """The callbacks that are given are also those that look on: a rehearsal must not start them."""
    nets = [classifier(callbacks=[EMA(0.9)], **PLAIN).fit(X, Y) for _ in range(2)]
    sklcam.save(nets[0], tmp_path / "clf.sklcam")
    saved, other = (floats(net.partial_fit(X, Y)) for net in nets)
    assert close(saved, other)


def test_statistics_of_the_average_are_re_estimated_where_that_is_asked_for():
    clf = classifier(callbacks=[EMA(0.9)], max_epochs=2, recalibrate=True).fit(X, Y)
    assert clf.recalibrated_ == 60
    with torch.no_grad():
        batches = [clf.prepare_images(batch[0]) for batch in clf.get_iterator(clf.get_dataset(X))]
        seen = clf.module_[0](torch.cat(batches))
    assert torch.allclose(clf.module_[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
