"""Steps of the optimizer of an embedding net, and where its chance comes from."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from embedding_nets import BY_NAME, CODES, DIM, NAMES, Spread, X, embedder, prepared, weights
from numpy.testing import assert_allclose, assert_array_equal
from pytorch_metric_learning import losses, samplers
from pytorch_metric_learning.utils import common_functions
from skorch.dataset import ValidSplit


@pytest.fixture(scope="module")
def fitted():
    return embedder(max_epochs=2).fit(X, NAMES)


# The optimizer


@pytest.mark.parametrize(("proxy_lr", "rate"), [(None, 0.1), (0.3, 0.3), (0.0, 0.0)])
def test_one_step_of_the_network_and_of_the_proxies(proxy_lr, rate):
    """SGD written out: proxies have a rate of their own, and do not decay."""
    options = {"optimizer": torch.optim.SGD, "optimizer__weight_decay": 0.1, "augment": None}
    options |= {"batch_size": -1, "proxy_lr": proxy_lr, "max_epochs": 0}
    net = embedder(criterion="proxy-anchor", **options).fit(X, NAMES)
    model = copy.deepcopy(net.module_).train()
    loss = losses.ProxyAnchorLoss(3, DIM)
    loss.proxies.data = torch.tensor(net.proxies_)
    net.set_params(max_epochs=1).partial_fit(X, NAMES)

    value = loss(model(prepared()), torch.from_numpy(CODES))
    *gradients, of_proxies = torch.autograd.grad(value, [*model.parameters(), loss.proxies])
    expected = [
        (p - 0.01 * (g + 0.1 * p)).flatten()
        for p, g in zip(model.parameters(), gradients, strict=True)
    ]
    torch.testing.assert_close(weights(net), torch.cat(expected), rtol=1e-4, atol=1e-6)
    stepped = (loss.proxies - rate * of_proxies).detach().numpy()
    assert_allclose(net.proxies_, stepped, rtol=1e-4, atol=1e-5)


def test_groups_of_the_optimizer():
    margin = embedder().fit(X, NAMES)
    network, of_loss = margin.optimizer_.param_groups
    assert isinstance(margin.optimizer_, torch.optim.AdamW)
    assert_allclose([network["lr"], of_loss["lr"]], [0.01, 0.1])
    assert (network["weight_decay"], of_loss["weight_decay"]) == (0.01, 0)  # torch's own, and none
    assert [id(p) for p in of_loss["params"]] == [id(margin.criterion_.beta)]
    assert {id(p) for p in network["params"]} == {id(p) for p in margin.module_.parameters()}
    (alone,) = embedder(criterion="triplet").fit(X, NAMES).optimizer_.param_groups
    assert alone["lr"] == 0.01


def test_an_optimizer_without_weight_decay():
    net = embedder(optimizer=torch.optim.Rprop).fit(X, NAMES)
    assert_allclose([group["lr"] for group in net.optimizer_.param_groups], [0.01, 0.1])


def test_groups_of_ones_own_win():
    groups = [("beta", {"lr": 0.5}), ("0.weight", {"lr": 0.2})]
    net = embedder(optimizer__param_groups=groups, proxy_lr=7.0).fit(X, NAMES)
    given = {id(p): group["lr"] for group in net.optimizer_.param_groups for p in group["params"]}
    assert given[id(net.criterion_.beta)] == 0.5
    assert given[id(net.module_[0].weight)] == 0.2
    assert given[id(net.module_[8].bias)] == 0.01


@pytest.mark.parametrize("criterion", ["margin", "proxy-anchor", "proxy-nca++", Spread])
def test_what_the_loss_learns_changes(criterion):
    start, end = (embedder(criterion=criterion, max_epochs=n).fit(X, NAMES) for n in (0, 1))
    before, after = (list(net.criterion_.parameters()) for net in (start, end))
    assert len(before) == 1
    assert not torch.allclose(before[0], after[0], atol=1e-3)


def test_rates_that_are_set_after_a_fit():
    net = embedder(criterion="proxy-anchor", lr=0.001).fit(X, NAMES)

    def rates():
        return [group["lr"] for group in net.optimizer_.param_groups]

    assert rates() == pytest.approx([0.001, 0.01])
    net.set_params(lr=0.002)
    assert rates() == pytest.approx([0.002, 0.02])
    net.set_params(proxy_lr=0.5)
    assert rates() == pytest.approx([0.002, 0.5])
    net.set_params(lr=0.003)
    assert rates() == pytest.approx([0.003, 0.5])


# Randomness


@pytest.mark.parametrize("criterion", BY_NAME)
def test_a_seed_makes_the_same_network(criterion):
    first, second = (embedder(criterion=criterion).fit(X, NAMES) for _ in range(2))
    assert torch.equal(weights(first), weights(second))
    assert_array_equal(first.transform(X), second.transform(X))
    for ours, theirs in zip(
        first.criterion_.parameters(), second.criterion_.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    other = embedder(criterion=criterion, random_state=1).fit(X, NAMES)
    assert not torch.equal(weights(first), weights(other))


def test_global_generators_make_no_difference(fitted):
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    random.seed(3)
    assert torch.equal(weights(embedder(max_epochs=2).fit(X, NAMES)), weights(fitted))


def test_no_seed_differs_and_a_random_state_moves_on():
    first, second = (embedder(random_state=None).fit(X, NAMES) for _ in range(2))
    assert not torch.equal(weights(first), weights(second))
    state = np.random.RandomState(0)
    first, second = (embedder(random_state=state).fit(X, NAMES) for _ in range(2))
    assert not torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("criterion", BY_NAME)
def test_global_generators_are_left_alone(criterion):
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002
    net = embedder(criterion=criterion, train_split=ValidSplit(3)).fit(X, NAMES)
    net.partial_fit(X, NAMES)
    net.transform(X), net.score(X, NAMES), net.explain(X), net.explain(X, target=X[:1])
    after = (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert_array_equal(before[1][1], after[1][1])
    assert before[1][2:] == after[1][2:]
    assert before[2] == after[2]
    assert common_functions.NUMPY_RANDOM is np.random


def test_an_error_in_a_sampler_leaves_the_generators_alone():
    class Broken(samplers.MPerClassSampler):
        def __iter__(self):
            common_functions.NUMPY_RANDOM.shuffle(self.labels)
            raise RuntimeError("failed on purpose")

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(RuntimeError, match="on purpose"):
        embedder(sampler=Broken, sampler__m=4).fit(X, NAMES)
    assert common_functions.NUMPY_RANDOM is np.random
    assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("criterion", BY_NAME)
def test_one_epoch_and_another_are_two(criterion):
    at_once = embedder(criterion=criterion, max_epochs=2).fit(X, NAMES)
    in_turns = embedder(criterion=criterion)
    for _ in range(2):
        assert in_turns.partial_fit(X, NAMES) is in_turns
    assert torch.equal(weights(at_once), weights(in_turns))
    for one, other in zip(
        at_once.criterion_.parameters(), in_turns.criterion_.parameters(), strict=True
    ):
        assert torch.equal(one, other)
