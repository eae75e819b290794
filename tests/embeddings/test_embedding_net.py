"""Embedding nets: against pytorch-metric-learning called by hand, and as scikit-learn's guests."""

from __future__ import annotations

import copy
import random
import sys

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from pytorch_metric_learning import losses, miners, samplers
from pytorch_metric_learning.utils import common_functions
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.pipeline import make_pipeline
from skorch.dataset import ValidSplit
from small_networks import SmallNet, TupleNet, digits
from torch import nn
from torch.utils.data import BatchSampler, Dataset, Sampler, SequentialSampler

from sklcam import CAMExplainer, EmbeddingCAMExplainer, EmbeddingNet
from sklcam.datasets import load_digits
from sklcam.images import ImageDataset, normalize
from sklcam.metrics import box_masks, heatmap_ratio

X, Y = digits()
NAMES = np.array(["pear", "apple", "fig"])[Y]
CLASSES = ["apple", "fig", "pear"]
CODES = np.searchsorted(CLASSES, NAMES)
DIM = 4
BY_NAME = ["margin", "triplet", "proxy-anchor", "proxy-nca++"]


def embedder(module=SmallNet, **options):
    defaults = {
        "embedding_dim": DIM,
        "image_size": 16,
        "max_epochs": 1,
        "batch_size": 12,
        "lr": 0.01,
        "verbose": 0,
        "random_state": 0,
        "device": "cpu",
    }
    return EmbeddingNet(module, **{**defaults, **options})


@pytest.fixture(scope="module")
def fitted():
    return embedder(max_epochs=2).fit(X, NAMES)


@pytest.fixture(scope="module")
def with_proxies():
    return embedder(criterion="proxy-anchor", max_epochs=2).fit(X, NAMES)


def prepared(images=X, size=16):
    """What the network is to be given, made by hand."""
    images = torch.stack([image for image, _ in ImageDataset(images, image_size=size)])
    return normalize(images, 0.449, 0.226)  # the mean of ImageNet's statistics over its colours


def outputs(net, images=X):
    with torch.no_grad():
        return net.module_.eval()(prepared(images)).numpy()


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.module_.parameters()])


def at_length_one(embeddings):
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


class Recorder(nn.Module):
    """A loss that learns nothing, and keeps what it was called with in training."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, embeddings, labels, *tuples):
        if embeddings.requires_grad:
            self.calls.append((embeddings.detach().clone(), labels.clone(), *tuples))
        return embeddings.square().mean()

    @property
    def labels(self):
        return [labels.numpy() for _, labels, *_ in self.calls]


class Spread(nn.Module):
    """A loss as plain as can be, with a number that it learns and one that it is given."""

    def __init__(self, num_classes, scale=1.0):
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(num_classes))
        self.scale = scale

    def forward(self, embeddings, labels):
        return self.scale * (embeddings.mean(dim=1) - self.centres[labels]).square().mean()


class Falling(Sampler):
    """The first few images, from the highest class to the lowest."""

    def __init__(self, labels, count=None):
        self.order = np.argsort(-labels, kind="stable")[:count].tolist()

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return len(self.order)


# Embeddings


def test_embeddings_have_length_one_unless_told_otherwise(fitted):
    embeddings = fitted.transform(X)
    assert embeddings.shape == (60, DIM) and embeddings.dtype == np.float32
    assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert_allclose(embeddings, at_length_one(outputs(fitted)), atol=1e-6)
    raw = copy.deepcopy(fitted).set_params(normalize=False).transform(X)
    assert_allclose(raw, outputs(fitted), atol=1e-6)
    assert raw.dtype == np.float32
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1, atol=0.01)


@pytest.mark.parametrize("batch_size", [1, 7, 60, -1])
def test_other_images_in_the_batch_make_no_difference(batch_size, fitted):
    expected = at_length_one(outputs(fitted))
    net = copy.deepcopy(fitted).set_params(batch_size=batch_size)
    assert_allclose(net.transform(X), expected, atol=1e-5)
    assert_allclose(net.transform(X[::-1]), expected[::-1], atol=1e-5)
    assert_allclose(net.transform(X[5:6]), expected[5:6], atol=1e-5)


def test_a_network_with_auxiliary_outputs():
    net = embedder(TupleNet, target_layer="net.5").fit(X, NAMES)
    with torch.no_grad():
        expected = net.module_.eval()(prepared())[0].numpy()
    assert_allclose(net.transform(X), at_length_one(expected), atol=1e-6)


@pytest.mark.parametrize("form", ["uint8", "float", "tensor", "pictures", "paths"])
def test_images_in_any_form(form, tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(array) for array in arrays]
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    given = {
        "uint8": arrays,
        "float": arrays / 255,
        "tensor": torch.from_numpy(arrays).movedim(-1, 1),
        "pictures": pictures,
        "paths": paths,
    }[form]
    net = embedder().fit(given, NAMES[:12])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = ((torch.from_numpy(arrays) / 255 - mean) / std).movedim(-1, 1)
    with torch.no_grad():
        expected = net.module_.eval()(inputs).numpy()
    assert_allclose(net.transform(given), at_length_one(expected), atol=1e-5)


def test_image_size_as_a_pair():
    net = embedder(image_size=(12, 20)).fit(X, NAMES)
    with torch.no_grad():
        expected = net.module_.eval()(prepared(size=(12, 20))).numpy()
    assert_allclose(net.transform(X), at_length_one(expected), atol=1e-6)
    assert net.explain(X[:2]).shape == (2, 12, 20)


def test_a_dead_network_has_no_directions():
    class DeadNet(SmallNet):
        def forward(self, x):
            return 0 * super().forward(x)

    net = embedder(DeadNet).fit(X, NAMES)
    for ask in (net.transform, lambda images: net.score(images, NAMES)):
        with pytest.raises(ValueError, match=r"embeddings of .* are zero or not finite"):
            ask(X)
    assert_array_equal(net.set_params(normalize=False).transform(X), np.zeros((60, DIM)))


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
    with pytest.raises(ValueError, match=r"criterion is an instance of ProxyAnchorLoss.*alpha"):
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
    with pytest.raises(ValueError, match=r"miner is an instance of MultiSimilarityMiner.*epsilon"):
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


# Labels


@pytest.mark.parametrize("labels", [NAMES, list(NAMES), NAMES.astype(object), 10 - 3 * Y, Y == 1])
def test_labels_of_any_kind(labels):
    net = embedder(criterion=Recorder, sampler=None).fit(X, labels)
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    assert_array_equal(net.classes_, classes)
    assert sorted(np.concatenate(net.criterion_.labels)) == sorted(codes)


def test_classes_that_come_later():
    few = NAMES != "pear"
    net = embedder(criterion="proxy-anchor", classes=["pear", "fig", "apple"])
    net.fit(X[few], NAMES[few])
    assert_array_equal(net.classes_, CLASSES)
    assert net.proxies_.shape == (3, DIM)
    first = embedder().partial_fit(X[few], NAMES[few], classes=CLASSES)
    assert first.partial_fit(X, NAMES).criterion_.beta.shape == (3,)
    with pytest.raises(ValueError, match="not the same as on the first call"):
        first.partial_fit(X, NAMES, classes=["apple", "fig"])


def test_a_class_that_was_not_announced():
    few = NAMES != "pear"
    net = embedder().partial_fit(X[few], NAMES[few])
    with pytest.raises(ValueError, match=r"not seen in fit: \['pear'\]"):
        net.partial_fit(X, NAMES)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "requires y to be passed, but the target y is None"),
        (NAMES[:50], "50"),
        (np.zeros(60), "one class"),
        (np.linspace(0, 1, 60), "Unknown label type|continuous"),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    net = embedder()
    with pytest.raises(ValueError, match=message):
        net.fit(X, labels)
    with pytest.raises(NotFittedError):
        net.transform(X)


def test_a_data_set_brings_its_labels(fitted):
    class Images(Dataset):
        targets = NAMES

        def __len__(self):
            return 60

        def __getitem__(self, i):
            return torch.from_numpy(X[i : i + 1]).float(), NAMES[i]

    net = embedder(max_epochs=2).fit(Images())
    assert_array_equal(net.classes_, CLASSES)
    assert_allclose(net.transform(Images()), fitted.transform(X), atol=1e-6)
    assert net.score(Images()) == fitted.score(X, NAMES)


# Score


@pytest.mark.parametrize("labels", [NAMES, np.arange(60) % 7, Y + 3 * (np.arange(60) % 2)])
def test_score_is_recall_leaving_one_out(labels, fitted):
    neighbors = NearestNeighbors(n_neighbors=1).fit(at_length_one(outputs(fitted)))
    nearest = neighbors.kneighbors(return_distance=False)[:, 0]
    expected = np.mean(labels[nearest] == labels)
    assert 0 < expected < 1
    assert fitted.score(X, labels) == pytest.approx(expected)
    raw = copy.deepcopy(fitted).set_params(normalize=False)
    assert raw.score(X, labels) == pytest.approx(expected)


def test_score_needs_labels(fitted):
    with pytest.raises(ValueError, match="requires y to be passed"):
        fitted.score(X)
    with pytest.raises(ValueError, match=r"\(60, 4\), and labels of shape \(50,\)"):
        fitted.score(X, NAMES[:50])


def test_an_unfitted_net_says_so():
    net = embedder()
    calls = [net.transform, net.explain, lambda X: net.score(X, NAMES)]
    for call in calls:
        with pytest.raises(NotFittedError):
            call(X)
    with pytest.raises(NotFittedError):
        net.initialize()
    with pytest.raises(AttributeError, match="once a loss with proxies has been fitted"):
        embedder(criterion="proxy-anchor").proxies_  # noqa: B018


def textures(n, seed):
    """Faint stripes across, stripes along and a chequerboard, under noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((8, 8))
    patterns = np.stack([rows % 2, columns % 2, (rows + columns) % 2])
    labels = np.arange(n) % 3
    brightness = rng.uniform(0, 0.5, (n, 1, 1))
    return 0.1 * patterns[labels] + brightness + 0.2 * rng.random((n, 8, 8)), labels


@pytest.mark.parametrize("criterion", BY_NAME)
def test_training_brings_classes_together(criterion):
    options = {"image_size": 8, "batch_size": 24, "augment": None, "proxy_lr": 0.1}
    images, labels = textures(120, seed=0)
    before, after = (
        embedder(criterion=criterion, max_epochs=n, **options)
        .fit(images, labels)
        .score(*textures(60, seed=1))
        for n in (0, 30)
    )
    assert after > before + 0.15 and after > 0.85


# Explanations


def explainer_of(net, **options):
    options = {"target_layer": "5", "verbose": 0, **options}
    return EmbeddingCAMExplainer(net.module_, **options)


def test_explain_shows_where_an_image_is_like_itself(fitted):
    maps = fitted.explain(X)
    assert maps.shape == (60, 16, 16) and maps.dtype == np.float32
    bare = explainer_of(fitted, proxy="self").fit()
    assert_allclose(maps, bare.explain(prepared()), atol=1e-6)
    raw = fitted.explain(X, normalize=False)
    assert_allclose(raw, bare.explain(prepared(), normalize=False), rtol=1e-4, atol=1e-6)
    around_net = EmbeddingCAMExplainer(fitted, proxy="self", verbose=0).fit()
    assert_array_equal(maps, around_net.explain(X))


@pytest.mark.parametrize("count", [1, 60])
def test_explain_shows_where_an_image_is_like_another(count, fitted):
    references = X[::-1][:count]
    maps = fitted.explain(X, references)
    bare = explainer_of(fitted, proxy="self").fit()
    assert_allclose(maps, bare.explain(prepared(), prepared(references.copy())), atol=1e-6)
    assert not np.allclose(maps, fitted.explain(X), atol=0.01)
    with pytest.raises(ValueError, match="7 reference images for 60 images"):
        fitted.explain(X, X[:7])


def test_options_of_explain(fitted):
    maps = fitted.explain(X[:5], method="scorecam")
    bare = explainer_of(fitted, proxy="self", method="scorecam").fit()
    assert_allclose(maps, bare.explain(prepared(X[:5])), atol=1e-5)
    assert fitted.explain(X[:5], frame="image").shape == (5, 8, 8)


def test_an_explainer_prepares_images_as_the_net_does(fitted):
    arrays = (255 * X).astype(np.uint8)
    around_net = EmbeddingCAMExplainer(fitted, verbose=0).fit(arrays, NAMES)
    around_module = explainer_of(fitted).fit(prepared(arrays), NAMES)
    assert_allclose(around_net.proxies_, around_module.proxies_, atol=1e-6)
    for target in (None, NAMES, "self"):
        maps = around_net.explain(arrays, target)
        assert_allclose(maps, around_module.explain(prepared(arrays), target), atol=1e-6)
    assert_allclose(around_net.transform(arrays), fitted.transform(arrays), atol=1e-6)


@pytest.mark.parametrize("target", CLASSES)
def test_the_proxies_that_were_trained_are_explained(target, with_proxies):
    net = with_proxies
    ours = EmbeddingCAMExplainer(net, proxy=net.proxies_, classes=net.classes_, verbose=0).fit()
    proxy = torch.from_numpy(net.proxies_[CLASSES.index(target)])
    theirs = CAMExplainer(net.module_, target_layer="5", verbose=0).fit()
    expected = theirs.explain(prepared(), lambda embeddings: embeddings @ proxy)
    assert_allclose(ours.explain(X, target), expected, atol=1e-5)


@pytest.mark.parametrize("criterion", ["proxy-anchor", "proxy-nca++", losses.ProxyAnchorLoss])
def test_proxies(criterion):
    net = embedder(criterion=criterion).fit(X, NAMES)
    assert net.proxies_.shape == (3, DIM) and net.proxies_.dtype == np.float32
    (learned,) = net.criterion_.parameters()
    assert_array_equal(net.proxies_, learned.detach().numpy())


@pytest.mark.parametrize("criterion", ["margin", "triplet", losses.ArcFaceLoss])
def test_losses_without_proxies(criterion):
    net = embedder(criterion=criterion).fit(X, NAMES)
    assert not hasattr(net, "proxies_")
    with pytest.raises(AttributeError, match="a loss with proxies"):
        net.proxies_  # noqa: B018


def test_proxies_are_a_copy(with_proxies):
    net = copy.deepcopy(with_proxies)
    kept = net.proxies_
    before = kept.copy()
    net.partial_fit(X, NAMES)
    assert_array_equal(kept, before)
    assert not np.array_equal(net.proxies_, before)


def hidden_digits(n_classes=4, n_each=80):
    """Digits anywhere in 40 x 40 pixels of noise, twice as large as they came, and their boxes."""
    data = load_digits(n_class=n_classes)
    generator = np.random.default_rng(0)
    rows = np.concatenate([np.flatnonzero(data.target == c)[:n_each] for c in range(n_classes)])
    images = generator.uniform(0, 0.5, size=(len(rows), 40, 40)).astype(np.float32)
    corners = generator.integers(0, 24, size=(len(rows), 2))
    for image, row, (left, top) in zip(images, rows, corners, strict=True):
        image[top : top + 16, left : left + 16] += data.data[row].repeat(2, 0).repeat(2, 1)
    boxes = torch.from_numpy(np.concatenate([corners, corners + 16], axis=1)).double()
    return images.clip(0, 1), data.target[rows], box_masks(list(boxes[:, None]), (40, 40)).float()


def test_a_trained_network_looks_at_the_object():
    """Held-out images: the share of the map that lies on the digit, which covers a sixth."""
    images, labels, masks = hidden_digits()
    held_out = np.arange(len(labels)) % 4 == 0
    options = {"module__width": 16, "image_size": 40, "embedding_dim": 16, "batch_size": 16}
    net = embedder(**options, augment=None, max_epochs=20)
    net.fit(images[~held_out], labels[~held_out])
    assert net.score(images[held_out], labels[held_out]) > 0.6  # by chance a quarter
    masks = masks[held_out]
    uniform = heatmap_ratio(torch.ones_like(masks), masks).mean()
    for contrast in (False, True):
        explainer = EmbeddingCAMExplainer(net, contrast=contrast, verbose=0)
        explainer.fit(images[~held_out], labels[~held_out])
        for target in (labels[held_out], "self"):
            maps = torch.from_numpy(explainer.explain(images[held_out], target))
            assert heatmap_ratio(maps, masks).nanmean() > uniform + 0.3


# Networks of one's own


class Wanting(SmallNet):
    """Takes all that it may be given."""

    def __init__(self, embedding_dim, num_classes, n_classes, in_channels, width=8):
        super().__init__(embedding_dim, in_channels, width)
        self.given = (embedding_dim, num_classes, n_classes, in_channels, width)


def test_a_class_of_networks_is_given_what_it_takes():
    assert embedder(Wanting).fit(X, NAMES).module_.given == (DIM, DIM, DIM, 1, 8)
    colour = np.repeat(X[..., None], 3, axis=3)
    net = embedder(Wanting, embedding_dim=6, module__width=5).fit(colour, NAMES)
    assert net.module_.given == (6, 6, 6, 3, 5)
    assert net.n_channels_ == 3


def test_a_callable_that_takes_the_dimensions():
    net = embedder(lambda embedding_dim: SmallNet(embedding_dim), embedding_dim=5).fit(X, NAMES)
    assert net.transform(X).shape == (60, 5)


@pytest.mark.parametrize("module", [lambda: SmallNet(7), SmallNet(7)])
def test_a_network_of_another_width_is_refused(module):
    with pytest.raises(ValueError, match=r"\(1, 7\) for 4 embedding dimensions"):
        embedder(module).fit(X, NAMES)
    assert embedder(module, embedding_dim=7).fit(X, NAMES).transform(X).shape == (60, 7)


def test_an_instance_of_a_network_is_copied_never_trained():
    module = SmallNet(DIM)
    before = copy.deepcopy(module.state_dict())
    net = embedder(module).fit(X, NAMES)
    assert net.module_ is not module
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    first = weights(net)
    assert not torch.equal(first, torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(first, weights(net.fit(X, NAMES)))


def test_a_network_by_name():
    net = embedder("squeezenet1_1", image_size=64, max_epochs=0).fit(X[:6], NAMES[:6])
    assert net.transform(X[:2]).shape == (2, DIM)


# Parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"embedding_dim": 2.5}, "embedding_dim"),
        ({"criterion": "contrastive"}, "criterion.*margin"),
        ({"criterion": None}, "criterion"),
        ({"miner": "hard"}, "miner.*semihard"),
        ({"miner": 3}, "miner"),
        ({"sampler": "balanced"}, "sampler.*m-per-class"),
        ({"normalize": "l2"}, "normalize"),
        ({"proxy_lr": -1.0}, "proxy_lr"),
        ({"random_state": "zero"}, "random_state"),
        ({"image_size": 0}, "image_size"),
        ({"sampler_m": 2}, "sampler__m"),
        ({"embeding_dim": 2}, "has no parameter .embeding_dim.. Did you mean: embedding_dim"),
    ],
)
def test_parameters_that_do_not_fit(options, message):
    net = embedder(**options)
    with pytest.raises(ValueError, match=message):
        net.fit(X, NAMES)
    with pytest.raises(NotFittedError):
        net.transform(X)


@pytest.mark.parametrize("part", ["criterion", "miner", "sampler"])
def test_parameters_that_the_parts_do_not_know(part):
    with pytest.raises(TypeError, match="strange"):
        embedder(**{f"{part}__strange": 1}).fit(X, NAMES)


def test_parameters_survive_clone_and_set_params():
    own = {"embedding_dim": 3, "criterion": "triplet", "miner": "distance-weighted"}
    own |= {"sampler": None, "normalize": False, "proxy_lr": 0.5, "classes": CLASSES}
    dotted = {"criterion__margin": 0.3, "miner__cutoff": 0.4, "sampler__m": 2, "module__width": 4}
    net = clone(embedder(**own, **dotted))
    params = net.get_params()
    assert {name: params[name] for name in own | dotted} == own | dotted
    assert not any(name.startswith("_") for name in params)
    net.set_params(embedding_dim=5, criterion="margin", criterion__margin=0.1, miner__cutoff=0.2)
    net.fit(X, NAMES)
    assert (net.criterion_.margin, net.miner_.cutoff) == (0.1, 0.2)
    assert net.transform(X).shape == (60, 5)
    again = clone(net)
    assert not hasattr(again, "module_")
    assert again.get_params()["miner__cutoff"] == 0.2
    assert torch.equal(weights(again.fit(X, NAMES)), weights(net))


def test_clone_keeps_instances_as_they_were():
    loss, miner = losses.ProxyAnchorLoss(3, DIM), miners.MultiSimilarityMiner(epsilon=0.3)
    net = embedder(criterion=loss, miner=miner).fit(X, NAMES)
    assert net.get_params()["criterion"] is loss and net.get_params()["miner"] is miner
    twin = clone(net)
    assert torch.equal(twin.criterion.proxies, loss.proxies)
    assert torch.equal(weights(twin.fit(X, NAMES)), weights(net))


# As a transformer


def test_fit_transform(fitted):
    assert_array_equal(embedder(max_epochs=2).fit_transform(X, NAMES), fitted.transform(X))


def test_before_a_classifier_of_neighbours(fitted):
    pipeline = make_pipeline(embedder(max_epochs=2), KNeighborsClassifier(3)).fit(
        X[:40], NAMES[:40]
    )
    net = embedder(max_epochs=2).fit(X[:40], NAMES[:40])
    by_hand = KNeighborsClassifier(3).fit(at_length_one(outputs(net, X[:40])), NAMES[:40])
    expected = by_hand.predict(at_length_one(outputs(net, X[40:])))
    assert_array_equal(pipeline.predict(X[40:]), expected)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("embedding_dim", [1, 5]),
        ("criterion", ["triplet", "proxy-anchor"]),
        ("criterion__margin", [0.1, 1.0]),
        ("miner__cutoff", [0.1, 1.2]),
        ("sampler__m", [2, 4]),
    ],
)
def test_search_inside_a_pipeline(name, values):
    pipeline = make_pipeline(embedder(), KNeighborsClassifier(3))
    search = GridSearchCV(pipeline, {f"embeddingnet__{name}": values}, cv=2).fit(X, NAMES)
    expected = [
        cross_val_score(
            make_pipeline(embedder(**{name: value}), KNeighborsClassifier(3)), X, NAMES, cv=2
        ).mean()
        for value in values
    ]
    assert_allclose(search.cv_results_["mean_test_score"], expected)
    best = search.best_estimator_[0]
    assert getattr(best, name) == values[int(np.argmax(expected))]
    fresh = embedder(**{name: getattr(best, name)}).fit(X, NAMES)
    assert torch.equal(weights(best), weights(fresh))


def test_search_by_its_own_score():
    search = GridSearchCV(embedder(), {"embedding_dim": [2, 6]}, cv=2).fit(X, NAMES)
    scores = [cross_val_score(embedder(embedding_dim=dim), X, NAMES, cv=2).mean() for dim in (2, 6)]
    assert_allclose(search.cv_results_["mean_test_score"], scores)


def test_names_and_frames(fitted):
    names = [f"embeddingnet{i}" for i in range(DIM)]
    assert fitted.get_feature_names_out().tolist() == names
    frame = embedder(max_epochs=2).set_output(transform="pandas").fit(X, NAMES).transform(X)
    assert frame.columns.tolist() == names
    assert len(embedder(embedding_dim=7).fit(X, NAMES).get_feature_names_out()) == 7
    assert_array_equal(frame.to_numpy(), fitted.transform(X))


def test_names_are_those_of_the_network_that_was_built(fitted):
    with pytest.raises(NotFittedError):
        embedder().get_feature_names_out()
    net = copy.deepcopy(fitted).set_params(embedding_dim=7)
    assert len(net.get_feature_names_out()) == net.transform(X[:2]).shape[1] == DIM


# Copies and files


def through_a_file(net, folder):
    joblib.dump(net, folder / "net.joblib")
    return joblib.load(folder / "net.joblib")


@pytest.mark.parametrize("make", [through_a_file, lambda net, _: copy.deepcopy(net)])
@pytest.mark.parametrize("criterion", BY_NAME)
def test_copies_embed_and_train_on_alike(make, criterion, tmp_path):
    net = embedder(criterion=criterion).fit(X, NAMES)
    twin = make(net, tmp_path)
    assert_array_equal(twin.transform(X), net.transform(X))
    assert_array_equal(twin.explain(X[:5]), net.explain(X[:5]))
    assert hasattr(twin, "proxies_") == criterion.startswith("proxy")
    before = net.transform(X)
    twin.partial_fit(X, NAMES)
    assert_array_equal(net.transform(X), before)
    assert torch.equal(weights(twin), weights(net.partial_fit(X, NAMES)))
    for ours, theirs in zip(twin.criterion_.parameters(), net.criterion_.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# Without pytorch-metric-learning


@pytest.fixture
def not_installed(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pytorch_metric_learning")]:
        monkeypatch.setitem(sys.modules, name, None)


class Unread(Dataset):
    targets = NAMES

    def __len__(self):
        return 60

    def __getitem__(self, i):
        raise AssertionError("an image was read")


@pytest.mark.parametrize(
    "options",
    [
        *({"criterion": name, "sampler": None} for name in BY_NAME),
        {"criterion": Recorder, "miner": "semihard", "sampler": None},
        {"criterion": Recorder, "sampler": "m-per-class"},
    ],
)
@pytest.mark.usefixtures("not_installed")
def test_parts_by_name_say_what_to_install(options):
    net = embedder(**options)
    for train in (net.fit, net.partial_fit):
        with pytest.raises(ImportError, match=r'pip install "sklcam\[metric-learning\]"'):
            train(Unread())


@pytest.mark.parametrize("sampler", [None, Falling])
@pytest.mark.usefixtures("not_installed")
def test_parts_of_ones_own_need_nothing(sampler):
    net = embedder(criterion=Spread, miner=None, sampler=sampler).fit(X, NAMES)
    assert_allclose(net.transform(X), at_length_one(outputs(net)), atol=1e-6)
    assert net.explain(X[:2]).shape == (2, 16, 16)
