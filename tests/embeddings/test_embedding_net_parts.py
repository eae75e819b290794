"""Losses, miners and samplers of embedding nets: against pytorch-metric-learning called by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from embedding_nets import (
    BY_NAME,
    CLASSES,
    CODES,
    DIM,
    NAMES,
    Falling,
    Recorder,
    Spread,
    X,
    embedder,
    outputs,
    prepared,
    weights,
)
from numpy.testing import assert_array_equal
from pytorch_metric_learning import losses, miners, samplers
from sklearn.model_selection import KFold
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import BatchSampler, SequentialSampler

# Losses


def one_step(criterion, **options):
    """Train for one step that changes nothing; return the net, its inputs and its triplets."""
    still = {"lr": 0.0, "proxy_lr": 0.0, "augment": None, "batch_size": -1, "sampler": None}
    net = embedder(
        criterion=criterion, max_epochs=0, iterator_train__shuffle=False, **still, **options
    ).fit(X, NAMES)
    embeddings = copy.deepcopy(net.module_).train()(prepared())
    mined = []
    if net.miner_ is not None:
        net.miner_.register_forward_pre_hook(lambda *_: mined.append(torch.get_rng_state()))
        net.miner_.register_forward_hook(lambda *args: mined.append(args[-1]))
    net.set_params(max_epochs=1).partial_fit(X, NAMES)
    return net, embeddings, torch.from_numpy(CODES), mined


def test_margin_loss_by_hand():
    net, embeddings, labels, (state, mined) = one_step("margin")
    with torch.random.fork_rng():
        torch.set_rng_state(state)
        tuples = miners.DistanceWeightedMiner()(embeddings, labels)
    assert len(tuples[0]) > 100
    for ours, theirs in zip(mined, tuples, strict=True):
        assert torch.equal(ours, theirs)
    loss = losses.MarginLoss(learn_beta=True, num_classes=3)(embeddings, labels, tuples)
    assert net.history[-1, "train_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_triplet_loss_by_hand():
    net, embeddings, labels, (_, mined) = one_step("triplet")
    tuples = miners.TripletMarginMiner(0.2, type_of_triplets="semihard")(embeddings, labels)
    assert all(torch.equal(*pair) for pair in zip(mined, tuples, strict=True))
    anchors, positives, negatives = (
        nn.functional.normalize(embeddings)[indices] for indices in tuples
    )
    near, far = (anchors - positives).norm(dim=1), (anchors - negatives).norm(dim=1)
    assert bool((far > near).all())
    terms = nn.functional.relu(near - far + 0.2)
    assert net.history[-1, "train_loss"] == pytest.approx(terms[terms > 0].mean().item(), rel=1e-4)
    theirs = losses.TripletMarginLoss(margin=0.2)(embeddings, labels, tuples)
    assert net.history[-1, "train_loss"] == pytest.approx(theirs.item(), rel=1e-5)


def test_proxy_anchor_loss_by_hand():
    net, embeddings, labels, _ = one_step("proxy-anchor")
    theirs = losses.ProxyAnchorLoss(3, DIM)
    theirs.proxies.data = torch.tensor(net.proxies_)
    loss = theirs(embeddings, labels).item()
    assert net.history[-1, "train_loss"] == pytest.approx(loss, rel=1e-5)


def test_proxy_nca_loss_by_hand():
    """The probabilities of the paper: a softmax over squared distances at temperature 1/9."""
    net, embeddings, labels, _ = one_step("proxy-nca++")
    proxies = nn.functional.normalize(torch.tensor(net.proxies_))
    squared = torch.cdist(nn.functional.normalize(embeddings), proxies).square()
    loss = nn.functional.cross_entropy(-9 * squared, labels).item()
    assert net.history[-1, "train_loss"] == pytest.approx(loss, rel=1e-4)


def test_validation_loss_by_hand():
    # With the statistics that validation had.
    options = {"train_split": ValidSplit(3), "recalibrate": False}
    net = embedder(criterion="triplet", batch_size=-1, **options).fit(X, NAMES)
    _, held_out = next(KFold(3).split(X))
    embeddings = torch.from_numpy(outputs(net, X[held_out]))
    labels = torch.from_numpy(CODES[held_out])
    tuples = miners.TripletMarginMiner(0.2, type_of_triplets="semihard")(embeddings, labels)
    loss = losses.TripletMarginLoss(0.2)(embeddings, labels, tuples).item()
    assert net.history[-1, "valid_loss"] == pytest.approx(loss, rel=1e-5)


def test_the_recipes():
    made = {name: embedder(criterion=name, max_epochs=0).fit(X, NAMES) for name in BY_NAME}
    margin, triplet, anchor, nca = (net.criterion_ for net in made.values())
    assert isinstance(margin, losses.MarginLoss) and margin.learn_beta
    assert isinstance(margin.beta, nn.Parameter) and margin.beta.shape == (3,)
    assert isinstance(made["margin"].miner_, miners.DistanceWeightedMiner)
    assert isinstance(triplet, losses.TripletMarginLoss) and triplet.margin == 0.2
    semihard = made["triplet"].miner_
    assert isinstance(semihard, miners.TripletMarginMiner)
    assert (semihard.margin, semihard.type_of_triplets) == (0.2, "semihard")
    assert isinstance(anchor, losses.ProxyAnchorLoss) and anchor.proxies.shape == (3, DIM)
    assert isinstance(nca, losses.ProxyNCALoss) and nca.proxies.shape == (3, DIM)
    assert nca.softmax_scale == 9
    assert made["proxy-anchor"].miner_ is None and made["proxy-nca++"].miner_ is None


@pytest.mark.parametrize(
    ("options", "of_criterion"),
    [
        ({"criterion": "margin", "criterion__margin": 0.4}, {"margin": 0.4, "learn_beta": True}),
        ({"criterion": "margin", "criterion__learn_beta": False}, {"learn_beta": False}),
        ({"criterion": "triplet", "criterion__margin": 0.5}, {"margin": 0.5}),
        ({"criterion": "proxy-anchor", "criterion__alpha": 8}, {"alpha": 8, "margin": 0.1}),
        ({"criterion": "proxy-nca++", "criterion__softmax_scale": 3}, {"softmax_scale": 3}),
        ({"criterion": losses.ContrastiveLoss, "criterion__neg_margin": 0.7}, {"neg_margin": 0.7}),
        ({"criterion": Spread, "criterion__scale": 2.0}, {"scale": 2.0}),
    ],
)
def test_options_of_the_criterion(options, of_criterion):
    criterion = embedder(**options).fit(X, NAMES).criterion_
    assert {name: getattr(criterion, name) for name in of_criterion} == of_criterion


def test_any_loss_as_a_class():
    net = embedder(criterion=losses.MultiSimilarityLoss).fit(X, NAMES)
    assert isinstance(net.criterion_, losses.MultiSimilarityLoss) and net.miner_ is None
    net = embedder(criterion=losses.ArcFaceLoss, embedding_dim=6).fit(X, NAMES)
    assert net.criterion_.W.shape == (6, 3)
    other = embedder(criterion=losses.ProxyAnchorLoss, criterion__num_classes=8).fit(X, NAMES)
    assert other.criterion_.proxies.shape == (8, DIM)


def test_a_plain_module_as_a_loss():
    net, embeddings, _, _ = one_step(Spread, criterion__scale=3.0)
    expected = 3 * embeddings.mean(dim=1).square().mean().item()
    assert net.history[-1, "train_loss"] == pytest.approx(expected, rel=1e-5)
    trained = embedder(criterion=Spread).fit(X, NAMES)
    assert trained.criterion_.centres.shape == (3,) and trained.criterion_.centres.all()


def test_an_instance_of_a_loss_is_copied_never_trained():
    loss = losses.ProxyAnchorLoss(3, DIM)
    before = loss.proxies.detach().clone()
    net = embedder(criterion=loss).fit(X, NAMES)
    assert net.criterion_ is not loss
    assert torch.equal(loss.proxies, before) and loss.proxies.grad is None
    assert not np.allclose(net.proxies_, before.numpy())
    still = embedder(criterion=loss, max_epochs=0).fit(X, NAMES)
    assert_array_equal(still.proxies_, before.numpy())
    with pytest.raises(
        ValueError, match=r"alpha were .* criterion is an instance of ProxyAnchorLoss"
    ):
        embedder(criterion=loss, criterion__alpha=3).fit(X, NAMES)


@pytest.mark.parametrize("loss", [losses.CosFaceLoss, losses.SubCenterArcFaceLoss])
def test_a_loss_that_hands_its_sizes_on_to_a_parent(loss):
    net = embedder(criterion=loss).fit(X, NAMES)
    assert net.criterion_.W.shape[0] == DIM
    assert net.criterion_.W.shape[1] % len(CLASSES) == 0


# Miners


def test_a_miner_as_a_class_an_instance_or_a_name():
    of_class = embedder(miner=miners.MultiSimilarityMiner, miner__epsilon=0.3).fit(X, NAMES)
    assert isinstance(of_class.miner_, miners.MultiSimilarityMiner)
    assert of_class.miner_.epsilon == 0.3
    instance = miners.MultiSimilarityMiner(epsilon=0.3)
    of_instance = embedder(miner=instance).fit(X, NAMES)
    assert of_instance.miner_ is not instance and of_instance.miner_.epsilon == 0.3
    assert torch.equal(weights(of_class), weights(of_instance))
    set_later = embedder().fit(X, NAMES).set_params(miner=instance).fit(X, NAMES)
    assert set_later.get_params()["miner"] is instance
    assert torch.equal(weights(set_later), weights(of_instance))
    by_name = embedder(criterion=losses.TripletMarginLoss, miner="semihard").fit(X, NAMES)
    assert by_name.miner_.type_of_triplets == "semihard"
    with pytest.raises(
        ValueError, match=r"epsilon were .* miner is an instance of MultiSimilarityMiner"
    ):
        embedder(miner=instance, miner__epsilon=0.1).fit(X, NAMES)


def test_options_of_the_miner():
    margin = embedder(miner__cutoff=0.3).fit(X, NAMES)
    assert (margin.miner_.cutoff, margin.miner_.nonzero_loss_cutoff) == (0.3, 1.4)
    triplet = embedder(criterion="triplet", miner__margin=0.5).fit(X, NAMES)
    assert (triplet.miner_.margin, triplet.miner_.type_of_triplets) == (0.5, "semihard")


def test_without_a_miner_the_loss_looks_at_all_triplets():
    net, embeddings, labels, _ = one_step("margin", miner=None)
    assert net.miner_ is None
    loss = losses.MarginLoss(learn_beta=True, num_classes=3)(embeddings, labels).item()
    assert net.history[-1, "train_loss"] == pytest.approx(loss, rel=1e-5)


def test_a_loss_of_ones_own_gets_what_was_mined():
    net = embedder(criterion=Recorder, miner="semihard", augment=None).fit(X, NAMES)
    miner = miners.TripletMarginMiner(0.2, type_of_triplets="semihard")
    assert len(net.criterion_.calls) == 5
    for embeddings, labels, tuples in net.criterion_.calls:
        expected = miner(embeddings, labels)
        assert len(expected[0]) > 0
        assert all(torch.equal(*pair) for pair in zip(tuples, expected, strict=True))


def test_another_criterion_after_a_fit_brings_its_own_miner():
    net = embedder(criterion="margin").fit(X, NAMES)
    net.set_params(criterion="proxy-anchor").fit(X, NAMES)
    assert net.miner_ is None
    fresh = embedder(criterion="proxy-anchor").fit(X, NAMES)
    assert torch.equal(weights(net), weights(fresh))


# Samplers


@pytest.mark.parametrize(("m", "batch_size"), [(4, 12), (4, 24), (2, 6), (5, 30), (4, 8)])
def test_batches_hold_m_images_of_a_class(m, batch_size):
    options = {} if m == 4 else {"sampler__m": m}
    net = embedder(criterion=Recorder, batch_size=batch_size, max_epochs=2, **options)
    batches = net.fit(X, NAMES).criterion_.labels
    assert sum(map(len, batches)) == 2 * 60
    for labels in batches:
        turns = labels.reshape(-1, m)
        assert (turns == turns[:, :1]).all()
        if batch_size % (3 * m) == 0:
            assert_array_equal(np.bincount(labels), len(labels) // 3)


def test_the_images_of_a_turn_are_different_ones():
    net = embedder(criterion=Recorder, augment=None).fit(X, NAMES)
    for embeddings, labels, *_ in net.criterion_.calls:
        for code in range(3):
            assert len(np.unique(embeddings[labels == code].numpy(), axis=0)) == 4


def test_classes_with_fewer_images_than_m_repeat_them():
    few = np.concatenate([np.flatnonzero(CODES == 0)[:2], np.flatnonzero(CODES)])
    net = embedder(criterion=Recorder, augment=None).fit(X[few], NAMES[few])
    for embeddings, labels, *_ in net.criterion_.calls:
        assert_array_equal(np.bincount(labels), 4)
        assert len(np.unique(embeddings[labels == 0].numpy(), axis=0)) <= 2
        assert len(np.unique(embeddings[labels == 1].numpy(), axis=0)) == 4


def test_all_images_in_one_batch():
    (labels,) = embedder(criterion=Recorder, batch_size=-1).fit(X, NAMES).criterion_.labels
    assert_array_equal(np.bincount(labels), 20)


def test_fewer_images_than_a_turn_make_one_turn():
    net = embedder(criterion=Recorder).fit(X[:6], NAMES[:6])
    (labels,) = net.criterion_.labels
    assert_array_equal(np.bincount(labels), 4)


def test_epochs_are_put_together_anew():
    net = embedder(criterion=Recorder, augment=None, max_epochs=2, lr=0.0).fit(X, NAMES)
    calls = net.criterion_.calls
    assert not torch.equal(calls[0][0], calls[5][0])


@pytest.mark.parametrize("options", [{"sampler": None}, {"sampler": "auto"}])
def test_without_a_sampler_each_image_comes_once(options):
    seen = []
    net = embedder(criterion="proxy-anchor", **options, max_epochs=0).fit(X, NAMES)
    net.criterion_.register_forward_hook(lambda _, args, __: seen.extend(args[1].tolist()))
    net.set_params(max_epochs=1).partial_fit(X, NAMES)
    assert sorted(seen) == sorted(CODES)
    assert seen != CODES.tolist()


def test_the_samplers_of_the_recipes(monkeypatch):
    made = []

    class Spy(samplers.MPerClassSampler):
        def __init__(self, labels, m, length_before_new_iter):
            made.append((m, length_before_new_iter))
            super().__init__(labels, m, length_before_new_iter=length_before_new_iter)

    monkeypatch.setattr(samplers, "MPerClassSampler", Spy)
    for criterion in BY_NAME:
        made.clear()
        embedder(criterion=criterion).fit(X, NAMES)
        assert made == ([] if criterion == "proxy-anchor" else [(4, 60)])
    made.clear()
    embedder(criterion="proxy-anchor", sampler="m-per-class", sampler__m=2).fit(X, NAMES)
    assert made == [(2, 60)]


def test_a_sampler_of_ones_own_takes_the_labels():
    net = embedder(criterion=Recorder, sampler=Falling, sampler__count=30).fit(X, NAMES)
    assert [len(labels) for labels in net.criterion_.labels] == [12, 12, 6]
    seen = np.concatenate(net.criterion_.labels)
    assert_array_equal(seen, np.sort(CODES)[::-1][:30])


def test_a_callable_may_return_whole_batches():
    def batches(labels, size):
        assert isinstance(labels, np.ndarray) and labels.dtype.kind == "i"
        return BatchSampler(SequentialSampler(labels), size, drop_last=False)

    net = embedder(criterion=Recorder, sampler=batches, sampler__size=25).fit(X, NAMES)
    assert [len(labels) for labels in net.criterion_.labels] == [25, 25, 10]
    assert_array_equal(np.concatenate(net.criterion_.labels), CODES)


def test_the_sampler_sees_the_labels_of_the_training_images():
    given = []

    def falling(labels):
        given.append(labels)
        return Falling(labels)

    train, _ = next(KFold(3).split(X))
    split = ValidSplit(3)
    net = embedder(criterion=Recorder, sampler=falling, train_split=split).fit(X, NAMES)
    assert_array_equal(given[0], CODES[train])
    seen = np.concatenate(net.criterion_.labels)
    assert_array_equal(seen, np.sort(CODES[train])[::-1])
    per_class = embedder(criterion=Recorder, train_split=split).fit(X, NAMES)
    for labels in per_class.criterion_.labels:
        assert_array_equal(np.bincount(labels), 4)


def test_a_sampler_that_makes_batches_and_draws_when_it_is_made():
    def make(labels):
        levels = np.stack([labels, labels // 2], axis=1)
        return samplers.HierarchicalSampler(levels, batch_size=8, samples_per_class=4)

    state = np.random.get_state()  # noqa: NPY002
    net = embedder(criterion=Recorder, miner=None, sampler=make, lr=0).fit(X, NAMES)
    assert_array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002
    again = embedder(criterion=Recorder, miner=None, sampler=make, lr=0).fit(X, NAMES)
    assert {len(batch) for batch in net.criterion_.labels} <= {4, 8}
    for batch, other in zip(net.criterion_.labels, again.criterion_.labels, strict=True):
        assert_array_equal(batch, other)


def test_options_of_the_sampler_after_a_fit():
    net = embedder(criterion=Recorder, miner=None).fit(X, NAMES)
    net.set_params(sampler__m=2).partial_fit(X, NAMES)
    assert net.get_params()["sampler__m"] == 2
    for start in range(0, 12, 2):
        assert len(set(net.criterion_.labels[-1][start : start + 2])) == 1
    assert any(len(set(batch[:4])) == 2 for batch in net.criterion_.labels[-8:])
