"""What training refuses before it starts, says when it is lost, and leaves as it was."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning
from skorch.callbacks import Checkpoint, EarlyStopping, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from sklcam import ConsistentCAMClassifier, EmbeddingNet
from sklcam.networks.dry_run import generators_lock
from sklcam.training._compiling import differentiable_twice

X = np.random.RandomState(0).rand(12, 16, 16).astype(np.float32)
Y = np.array(["a", "b", "c"])[np.arange(12) % 3]


class Net(nn.Sequential):
    def __init__(self, num_classes=3, width=6, last=nn.Identity):
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            last(),
            nn.Dropout(0.3),
            nn.Linear(width, num_classes),
        )


def normalised():
    return nn.BatchNorm1d(6)


FIXED = {
    "image_size": 16,
    "target_layer": "1",
    "max_epochs": 2,
    "batch_size": 6,
    "verbose": 0,
    "random_state": 0,
    "device": "cpu",
}


def classifier(**options):
    return ConsistentCAMClassifier(Net, **{**FIXED, "alpha": 0, "beta": 0, "lr": 0.05, **options})


def embedder(**options):
    return EmbeddingNet(Net, **{**FIXED, "embedding_dim": 3, **options})


def weights_of(net):
    return torch.cat([value.flatten() for value in net.module_.state_dict().values()])


# Batches of one under batch normalisation


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (classifier, {"batch_size": 11}),
        (classifier, {"batch_size": 1}),
        (classifier, {"batch_accumulation": 6}),
        (classifier, {"batch_size": 7, "train_split": ValidSplit(3)}),
        (embedder, {"batch_size": 11}),
        (embedder, {"batch_size": 11, "sampler": None}),
    ],
)
def test_a_single_image_is_not_normalised_by_itself(make, options):
    net = make(module__last=normalised, **options)
    with pytest.raises(
        ValueError, match=r"a pass with a single image.*iterator_train__drop_last=True"
    ):
        net.fit(X, Y)
    assert not net.initialized_


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 11, "iterator_train__drop_last": True},
        {"batch_size": 5},
        {"batch_size": 11, "module__last": nn.Identity},
    ],
)
def test_other_batches_are_taken(options):
    net = classifier(**{"module__last": normalised, **options})
    assert np.isfinite(net.fit(X, Y).history[:, "train_loss"]).all()


def test_looking_for_single_images_changes_nothing():
    class Spatial(Net):  # a single image has many positions here
        def __init__(self, num_classes=3):
            super().__init__(num_classes)
            self[1] = nn.Sequential(nn.Tanh(), nn.BatchNorm2d(6))

    options = {**FIXED, "alpha": 0, "beta": 0, "iterator_train__shuffle": False, "max_epochs": 1}
    single = ConsistentCAMClassifier(Spatial, **{**options, "batch_size": 11}).fit(X, Y)
    assert single.module_[1][1].num_batches_tracked == 2


@pytest.mark.parametrize("make", [classifier, embedder])
def test_a_loader_that_drops_all_images_is_refused(make):
    with pytest.raises(ValueError, match=r"drops all 12 training images, as batch_size=13"):
        make(batch_size=13, iterator_train__drop_last=True).fit(X, Y)


# Networks


class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()


class TrainedAlone(Net):
    def forward(self, x):
        with torch.set_grad_enabled(self.training):
            return super().forward(x)


@pytest.mark.parametrize("make", [ConsistentCAMClassifier, EmbeddingNet])
def test_networks_that_would_not_learn_are_refused(make):
    options = {"alpha": 0, "beta": 0} if make is ConsistentCAMClassifier else {"embedding_dim": 3}
    net = make(Detached, **FIXED, **options)
    with pytest.raises(ValueError, match=r"No gradient leads from the output of Detached"):
        net.fit(X, Y)
    assert not net.initialized_
    before = weights_of(make(TrainedAlone, **{**FIXED, "max_epochs": 0}, **options).fit(X, Y))
    after = weights_of(make(TrainedAlone, **FIXED, **options).fit(X, Y))
    assert not torch.equal(before, after)


def test_a_frozen_network_lets_its_loss_learn():
    frozen = Net().requires_grad_(False)
    net = EmbeddingNet(frozen, **FIXED, embedding_dim=3, criterion="proxy-anchor").fit(X, Y)
    assert torch.equal(
        weights_of(net), torch.cat([v.flatten() for v in frozen.state_dict().values()])
    )


# Callbacks


@pytest.mark.parametrize(
    "callback",
    [
        EarlyStopping(),
        EarlyStopping(monitor="valid_acc"),
        Checkpoint(monitor="valid_loss_best"),
        LRScheduler(ReduceLROnPlateau, monitor="valid_loss"),
        LRScheduler("ReduceLROnPlateau", monitor="valid_loss"),
        ("named", EarlyStopping()),
        EarlyStopping,
    ],
)
@pytest.mark.parametrize("make", [classifier, embedder])
def test_what_monitors_validation_needs_some(make, callback):
    net = make(callbacks=[callback], train_split=None)
    with pytest.raises(ValueError, match=r"monitors 'valid_.* train_split=.* monitor=\"train_loss"):
        net.fit(X, Y)
    assert not net.initialized_


def test_what_monitors_validation_has_some():
    split = ValidSplit(3, stratified=True)
    classifier(callbacks=[EarlyStopping()], train_split=split).fit(X, Y)
    classifier(callbacks=[EarlyStopping(monitor="train_loss")]).fit(X, Y)


def test_schedules_by_name_and_by_class():
    options = {"max_lr": 0.1, "total_steps": 4, "step_every": "batch"}
    with pytest.raises(ValueError, match=r"LRScheduler\(torch\.optim\.lr_scheduler\.OneCycleLR"):
        classifier(callbacks=[LRScheduler("OneCycleLR", **options)]).fit(X, Y)
    clf = classifier(callbacks=[LRScheduler(OneCycleLR, **options)]).fit(X, Y)
    rates = [batch["event_lr"] for epoch in clf.history[:, "batches"] for batch in epoch]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    schedule = OneCycleLR(optimizer, max_lr=0.1, total_steps=4)
    expected = []
    for _ in range(4):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates, expected)


# Losses


class Lost(Net):
    """NaN from the fourth image batch in training on."""

    def forward(self, x):
        self.n = getattr(self, "n", 0) + self.training
        return super().forward(x) * (float("nan") if self.n >= 4 else 1)


@pytest.mark.parametrize("make", [ConsistentCAMClassifier, EmbeddingNet])
def test_a_loss_that_is_nan_is_told_with_its_epoch_and_batch(make):
    options = {"criterion": "proxy-anchor", "embedding_dim": 3} if make is EmbeddingNet else {}
    options = {**FIXED, **options, "max_epochs": 4, "lr": 1e-3}
    if make is ConsistentCAMClassifier:
        options |= {"alpha": 0, "beta": 0}
    with pytest.warns(ConvergenceWarning, match="is nan in epoch 2, first in batch 2 of 2") as all_:
        make(Lost, **options).fit(X, Y)
    assert len([each for each in all_ if each.category is ConvergenceWarning]) == 1


class OwnLoss(nn.Module):
    def forward(self, scores, labels):
        return nn.functional.binary_cross_entropy_with_logits(scores, labels)


@pytest.mark.parametrize("criterion", [nn.KLDivLoss, OwnLoss])
def test_criteria_that_do_not_compare_scores_with_labels(criterion):
    clf = classifier(criterion=criterion)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"Loss does not take scores of shape .*: .*"):
            clf.fit(X, Y)
    assert not clf.initialized_


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({"criterion__reduction": "none"}, None, 'Use reduction="mean"'),
        ({"criterion__reduction": "sum"}, np.ones(12), "with reduction='sum'"),
        ({"criterion__weight": "balanced"}, None, "one number for each class; got a str"),
        ({"criterion__weight": {"a": 1.0}}, None, "one number for each class; got a dict"),
        ({"criterion": nn.CrossEntropyLoss(torch.ones(2))}, None, r"its shape is \(2,\)"),
    ],
)
def test_weights_and_reductions_that_do_not_fit(options, given, message):
    with pytest.raises(ValueError, match=message):
        classifier(**options).fit(X, Y, given)


def test_a_criterion_that_was_made_weighs_images():
    found = classifier(criterion=nn.CrossEntropyLoss()).fit(X, Y, np.arange(12))
    expected = classifier().fit(X, Y, np.arange(12))
    assert torch.equal(weights_of(found), weights_of(expected))


def test_weights_of_images_are_refused_where_no_loss_is_an_images_own():
    net = embedder(max_epochs=1).fit(X, Y, sample_weight=None)
    for train in (net.fit, net.partial_fit):
        with pytest.raises(ValueError, match="EmbeddingNet does not take sample_weight"):
            train(X, Y, sample_weight=np.ones(12))


# What is set once a net is fitted


@pytest.mark.parametrize(
    ("options", "look", "expected"),
    [
        ({"optimizer__momentum": 0.5}, lambda c: c.optimizer_.param_groups[0]["momentum"], 0.5),
        (
            {"optimizer__weight_decay": 0.0},
            lambda c: c.optimizer_.param_groups[0]["weight_decay"],
            0,
        ),
        ({"optimizer": torch.optim.Adam}, lambda c: type(c.optimizer_), torch.optim.Adam),
        ({"module__width": 4}, lambda c: c.module_[0].out_channels, 4),
        ({"criterion__label_smoothing": 0.1}, lambda c: c.criterion_.label_smoothing, 0.1),
        ({"iterator_train__drop_last": True}, lambda c: len(c.history[-1, "batches"]), 1),
        ({"callbacks__print_log": None}, lambda c: "print_log" in dict(c.callbacks_), False),
        ({"lr": 0.5}, lambda c: c.optimizer_.param_groups[0]["lr"], 0.5),
    ],
)
@pytest.mark.parametrize("train", ["fit", "partial_fit"])
def test_what_is_set_holds_when_training_goes_on_and_starts_anew(options, look, expected, train):
    clf = classifier(batch_size=7).fit(X, Y)
    clf.set_params(**options)
    name, value = next(iter(options.items()))
    assert clf.get_params()[name] is value and clone(clf).get_params()[name] is value
    getattr(clf, train)(X, Y)
    assert look(clf) == expected


def test_samplers_are_set_once_embeddings_are_learned():
    net = embedder(max_epochs=1).fit(X, Y)
    net.set_params(sampler=None, batch_size=4).partial_fit(X, Y)
    assert len(net.history[-1, "batches"]) == 3


def test_misspelt_parameters_are_named_before_and_after():
    for clf in (classifier(), classifier().fit(X, Y)):
        with pytest.raises(ValueError, match="Invalid parameter 'momentun'"):
            clf.set_params(momentun=0.5)


# What is left


def test_an_error_leaves_a_fitted_net_as_it_was():
    clf = classifier(criterion__weight=[1.0, 2.0, 3.0]).fit(X, Y)
    before, maps = clf.predict(X), clf.explain(X)
    others = np.array(["d", "e"])[np.arange(12) % 2]
    with pytest.raises(ValueError, match="one weight for each of 2 classes"):
        clf.fit(X, others)  # of other classes, for which the weights do not fit
    assert clf.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(clf.predict(X), before)
    np.testing.assert_array_equal(clf.explain(X), maps)


def test_fits_in_threads_are_those_one_after_the_other():
    makers = {seed: lambda seed=seed: classifier(random_state=seed) for seed in range(3)}
    makers["embedding"] = lambda: embedder()
    expected = {name: weights_of(make().fit(X, Y)) for name, make in makers.items()}
    found = {}
    torch.manual_seed(123)
    state = torch.get_rng_state()

    def work(name):
        found[name] = weights_of(makers[name]().fit(X, Y))

    threads = [threading.Thread(target=work, args=(name,)) for name in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[name], expected[name]) for name in makers)
    assert torch.equal(torch.get_rng_state(), state)


class Failing(Net):
    def forward(self, x):
        if self.training:
            torch.rand(1)
            raise RuntimeError("out of order")
        return super().forward(x)


def test_an_error_in_training_leaves_torchs_generator():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="out of order"):
        ConsistentCAMClassifier(Failing, **FIXED, alpha=0, beta=0).fit(X, Y)
    assert torch.equal(torch.get_rng_state(), state)
    classifier(max_epochs=1).fit(X, Y)  # the lock is free


@pytest.mark.parametrize("make", [classifier, embedder])
def test_a_column_of_labels_is_flat(make):
    with pytest.warns(DataConversionWarning, match="column-vector"):
        column = make().fit(X, Y[:, None])
    assert torch.equal(weights_of(column), weights_of(make().fit(X, Y)))


def test_flags_of_the_process_are_set_by_one_fit_at_a_time(monkeypatch):
    """Attention's kernels are chosen for the process: until they are put back, others wait."""
    free = []

    def is_free():
        taken = generators_lock.acquire(blocking=False)
        if taken:
            generators_lock.release()
        return taken

    @contextmanager
    def looking(**options):
        with ThreadPoolExecutor(1) as other:
            free.append(other.submit(is_free).result())
        with differentiable_twice(**options):
            yield

    monkeypatch.setattr("sklcam.training._stepping.differentiable_twice", looking)
    classifier().fit(X, Y)
    assert free == [False]
