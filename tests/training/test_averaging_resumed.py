"""An average of weights, and all that may happen to a net between two trainings."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from classifiers import X, Y, classifier
from skorch import NeuralNet
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, LoadInitState, TrainEndCheckpoint
from small_networks import SmallNet
from test_averaging import Trail, averaged, close, floats

import sklcam
from sklcam.persistence.errors import PersistenceError
from sklcam.persistence.states import check_average
from sklcam.training import EMA

PLAIN = {"alpha": 0, "beta": 0, "recalibrate": False, "max_epochs": 2}


def net(**options):
    return classifier(**{**PLAIN, "callbacks": [("ema", EMA(0.9))], **options})


def followed(clf, decay=0.9):
    """Train on, and return what training and its average go on from, and what comes of it."""
    clf.set_params(lr=1e-3).callbacks_.append(("trail", Trail().initialize()))
    before = floats(clf)
    clf.partial_fit(X, Y)
    trail = dict(clf.callbacks_)["trail"].trail_
    learned = [name for name, _ in clf.module_.named_parameters()]
    # After a step, training has come no further than a step leads.
    assert max((trail[1][name] - before[name]).abs().max() for name in learned) < 0.05
    return before, averaged([before, *trail[1:]], decay)


def is_first(net):
    return len(net.history) == 1


def other_weights():
    torch.manual_seed(7)
    return {
        name: torch.rand_like(value) + 0.1 if value.is_floating_point() else value
        for name, value in classifier(max_epochs=0).fit(X, Y).module_.state_dict().items()
    }


def by_load_params(clf, path):
    torch.save(other_weights(), path / "other.pt")
    clf.load_params(f_params=path / "other.pt")


def by_hand(clf, path):
    clf.module_.load_state_dict(other_weights())


def by_the_checkpoint(clf, path):
    clf.load_params(checkpoint=dict(clf.callbacks_)["Checkpoint"])


def by_another_network(clf, path):
    clf.set_params(module=SmallNet)  # untrained after that


def in_a_copy(clf, path):
    by_hand(clf, path)
    return pickle.loads(pickle.dumps(clf))


def in_a_file(clf, path):
    by_hand(clf, path)
    sklcam.save(clf, path / "clf.sklcam")
    return sklcam.load(path / "clf.sklcam", objects={"SmallNet": SmallNet})


def in_a_network_of_another_type(clf, path):
    clf.module_.double().float().load_state_dict(other_weights())


@pytest.mark.parametrize(
    "change",
    [
        by_load_params,
        by_hand,
        by_the_checkpoint,
        by_another_network,
        in_a_copy,
        in_a_file,
        in_a_network_of_another_type,
    ],
)
def test_training_goes_on_from_weights_that_were_changed(change, tmp_path):
    keep = [Checkpoint(is_first, dirname=str(tmp_path))] if change is by_the_checkpoint else []
    clf = net(callbacks=[("ema", EMA(0.9)), *keep]).fit(X, Y)
    was = floats(clf)
    clf = change(clf, tmp_path) or clf
    assert not close(was, floats(clf))
    _, expected = followed(clf)
    assert close(floats(clf), expected)


def test_the_best_epoch_is_loaded_and_gone_on_from(tmp_path):
    keep = Checkpoint(is_first, dirname=str(tmp_path), load_best=True)
    clf = net(callbacks=[EMA(0.9), keep]).fit(X, Y)
    assert close(floats(clf), torch.load(tmp_path / "params.pt", weights_only=True))
    keep.load_best = False
    _, expected = followed(clf)
    assert close(floats(clf), expected)


class RollsBack(Callback):
    """Loads weights after the first epoch, and looks at those that the second begins with."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 1:
            net.module_.load_state_dict(other_weights())

    def on_batch_begin(self, net, training=False, **kwargs):
        if training and len(net.history) == 2 and len(net.history[-1]["batches"]) == 1:
            self.found_ = floats(net)


def test_weights_that_a_callback_loads_between_epochs_are_trained_on():
    back = RollsBack()
    clf = net(callbacks=[EMA(0.9), back]).fit(X, Y)
    expected = {name: value for name, value in other_weights().items() if name in back.found_}
    assert close(back.found_, expected)
    stop = EarlyStopping("train_loss", patience=1, threshold=10.0, load_best=True, sink=str)
    clf = net(callbacks=[EMA(0.9), stop], max_epochs=5).fit(X, Y)
    assert len(clf.history) == 2
    stop.load_best = False
    _, expected = followed(clf)
    assert close(floats(clf), expected)


UNCHANGED = {
    "nothing": lambda clf: clf,
    "the decay": lambda clf: clf.set_params(callbacks__ema__decay=0.9),
    "another callback": lambda clf: clf.set_params(callbacks__print_log=None),
    "another object": lambda clf: clf.set_params(callbacks__ema=EMA(0.9)),
    "all callbacks": lambda clf: clf.set_params(callbacks=[EMA(0.9)]),
    "the rate": lambda clf: clf.set_params(lr=0.05),
    "a copy": copy.deepcopy,
    "a pickle": lambda clf: pickle.loads(pickle.dumps(clf)),
    "its own weights": lambda clf: clf.module_.load_state_dict(clf.module_.state_dict()) and clf,
}


@pytest.mark.parametrize("change", [*UNCHANGED])
def test_both_go_on_whatever_else_is_set(change):
    whole = net(max_epochs=4).fit(X, Y)
    part = UNCHANGED[change](net().fit(X, Y))
    assert close(floats(part.partial_fit(X, Y)), floats(whole))


def test_a_file_goes_on_with_both(tmp_path):
    whole = net(max_epochs=4).fit(X, Y)
    sklcam.save(net().fit(X, Y), tmp_path / "clf.sklcam")
    loaded = sklcam.load(tmp_path / "clf.sklcam", objects={"SmallNet": SmallNet})
    assert close(floats(loaded.partial_fit(X, Y)), floats(whole))


VALUES = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


@pytest.mark.parametrize(
    ("n_steps", "own"),
    [
        (-1, VALUES),
        (1.0, VALUES),
        (3, {}),
        (3, {**VALUES, "c": torch.zeros(4)}),
        (3, {**VALUES, "b": torch.zeros(5)}),
        (3, {**VALUES, "b": torch.zeros(4, dtype=torch.float64)}),
        (3, {**VALUES, "b": [0.0] * 4}),
    ],
    ids=["negative", "no count", "none", "one too many", "shape", "type", "no tensor"],
)
def test_a_file_holds_the_weights_of_its_own_network(n_steps, own):
    check_average(VALUES, 3, {name: value.clone() for name, value in VALUES.items()})
    with pytest.raises(PersistenceError):
        check_average(VALUES, n_steps, own)


def test_warm_start_goes_on_and_another_fit_does_not():
    whole = net(max_epochs=4).fit(X, Y)
    twice = net(warm_start=True).fit(X, Y).fit(X, Y)
    assert close(floats(twice), floats(whole))
    again = net().fit(X, Y)
    assert close(floats(again.set_params(max_epochs=4).fit(X, Y)), floats(whole))
    # Nor where the network is what the average was of: d begins at (1 + 1) / (10 + 1).
    still = net(lr=0.0).fit(X, Y).set_params(lr=0.05, max_epochs=4).fit(X, Y)
    assert close(floats(still), floats(whole))


def test_one_object_averages_several_nets():
    shared = EMA(0.9)
    nets = [net(callbacks=[shared], random_state=seed) for seed in (0, 5)]
    for each in nets:
        each.fit(X, Y)
    for each in reversed(nets):
        each.partial_fit(X, Y)
    for each, seed in zip(nets, (0, 5), strict=True):
        assert close(floats(each), floats(net(random_state=seed, max_epochs=4).fit(X, Y)))


def test_without_it_training_goes_on_from_the_average():
    clf = net().fit(X, Y)
    average = floats(clf)
    trail = Trail()
    clf.set_params(callbacks=[trail]).partial_fit(X, Y)
    assert close(trail.trail_[0], average)
    assert close(trail.trail_[-1], floats(clf))
    _, expected = followed(clf.set_params(callbacks=[EMA(0.9)]))
    assert close(floats(clf), expected)


def test_training_that_an_error_has_ended():
    class Fails(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            if training and self.is_on:
                raise RuntimeError("no more")

    failing = Fails()
    failing.is_on = False
    clf = net(callbacks=[EMA(0.9), failing]).fit(X, Y)
    failing.is_on = True
    with pytest.raises(RuntimeError, match="no more"):
        clf.partial_fit(X, Y)
    failing.is_on = False
    clf.module_.load_state_dict(other_weights())
    _, expected = followed(clf)
    assert close(floats(clf), expected)


def test_a_run_that_starts_again_goes_on_from_the_average_that_was_kept(tmp_path):
    keep = TrainEndCheckpoint(dirname=str(tmp_path))
    net(callbacks=[EMA(0.9), keep]).fit(X, Y)
    kept = torch.load(tmp_path / "train_end_params.pt", weights_only=True)
    trail = Trail()
    clf = net(callbacks=[keep, trail, EMA(0.9), LoadInitState(keep)]).fit(X, Y)
    trail = dict(clf.callbacks_)["Trail"].trail_
    assert close(trail[0], kept)
    assert close(floats(clf), averaged(trail, 0.9))


def test_several_averages_of_a_net_are_refused():
    with pytest.raises(ValueError, match=r"several EMA .* Keep one of them"):
        net(callbacks=[EMA(0.9), EMA(0.99)]).fit(X, Y)
    shared = EMA(0.9)
    with pytest.raises(ValueError, match="several EMA"):
        net(callbacks=[shared, shared]).fit(X, Y)


def test_any_net_of_skorch_is_averaged():
    class Linear(torch.nn.Linear):
        def __init__(self):
            super().__init__(256, 3)

    images, labels = X.reshape(len(X), -1)[:, :256].astype("float32"), Y.astype("int64")
    images = torch.nn.functional.pad(torch.tensor(images), (0, 256 - images.shape[1])).numpy()
    trail = Trail()
    plain = NeuralNet(
        Linear, torch.nn.CrossEntropyLoss, callbacks=[trail, EMA(0.9)], max_epochs=2, lr=0.1,
        train_split=None, verbose=0,
    )  # fmt: skip
    plain.fit(images, labels)
    assert close(floats(plain), averaged(trail.trail_, 0.9))
