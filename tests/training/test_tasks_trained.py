"""Tasks of training: one logit, several labels, numbers; against torch and against closed forms."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from classifiers import classifier, weights
from labels_of_tasks import (
    INK,
    LABELS,
    N_OUTPUTS,
    PLAIN,
    SETS,
    TABLE,
    WORDS,
    X,
    Y,
    ending_in_sigmoid,
    flat,
    of_task,
)
from numpy.testing import assert_allclose
from scipy import sparse
from sklearn.base import is_classifier, is_regressor
from sklearn.exceptions import ConvergenceWarning
from small_networks import SmallNet
from torch import nn
from torch.nn import functional as F

from sklcam.cam import min_max, upsample
from sklcam.training import Balanced, CollapseWarning, Term


def encoded(task):
    if task == "multilabel":
        return torch.tensor(TABLE, dtype=torch.float32)
    if task == "regression":
        return torch.tensor(INK, dtype=torch.float32)
    return torch.tensor(Y if task == "multiclass" else (WORDS == "yes").astype(np.float32))


# The task is settled once


@pytest.mark.parametrize(
    ("y", "options", "task"),
    [
        (Y, {}, "multiclass"),
        (WORDS, {}, "multiclass"),
        (WORDS, {"criterion": nn.BCEWithLogitsLoss}, "binary"),
        (WORDS, {"criterion": nn.BCEWithLogitsLoss()}, "binary"),
        (WORDS, {"module": lambda: SmallNet(1)}, "binary"),
        (WORDS, {"module": lambda: nn.Sequential(*SmallNet(1), nn.Flatten(0))}, "binary"),
        (WORDS, {"module__num_classes": 1}, "binary"),
        (WORDS, {"task": "binary"}, "binary"),
        (WORDS, {"task": "multiclass"}, "multiclass"),
        (WORDS[:, None] == "yes", {"criterion": nn.BCEWithLogitsLoss}, "binary"),
        (SETS, {}, "multilabel"),
        ([*map(sorted, SETS)], {}, "multilabel"),
        (TABLE, {}, "multilabel"),
        (sparse.csr_matrix(TABLE), {}, "multilabel"),
        (torch.tensor(TABLE), {"criterion": nn.BCEWithLogitsLoss}, "multilabel"),
        (INK, {"task": "regression"}, "regression"),
        (Y, {"task": "regression", "criterion": nn.L1Loss}, "regression"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:A column-vector")
def test_the_task_is_that_of_labels_loss_and_network(y, options, task):
    clf = classifier(max_epochs=0, **options).fit(X, y)
    assert clf.task_ == task and clf.get_params()["task"] == options.get("task", "auto")
    asked = {"multiclass": nn.CrossEntropyLoss, "regression": nn.MSELoss}
    if "criterion" not in options:
        assert type(clf.criterion_) is asked.get(task, nn.BCEWithLogitsLoss)
        assert clf.get_params()["criterion"] == "auto"
    assert is_regressor(clf) is (task == "regression") is not is_classifier(clf)


UNSETTLED = {
    "numbers": ({}, INK, r'Unknown label type: continuous.*task="regression"'),
    "rows": ({}, np.stack([INK, INK], 1), r'Unknown label type: continuous.*task="regression"'),
    "ranks": ({}, np.stack([Y, Y + 1], 1), r'task="regression".*table of 0 and 1'),
    "one output": ({"module": lambda: SmallNet(1)}, Y, r"one output.*3 classes.*num_classes=3"),
    "two outputs": ({"task": "binary", "module": lambda: SmallNet(2)}, WORDS, "1 logit of two"),
    "three in one": ({"task": "binary"}, Y, r"two classes apart, and there are 3: \[0, 1, 2\]"),
    "BCE of three": ({"criterion": nn.BCEWithLogitsLoss}, Y, "sets of labels"),
    "CE of labels": ({"criterion": nn.CrossEntropyLoss}, SETS, "task='multiclass', and the task"),
    "CE of numbers": ({"task": "regression", "criterion": nn.NLLLoss}, INK, "auto.*MSELoss"),
    "MSE of classes": ({"criterion": nn.MSELoss}, Y, "loss for task='regression'"),
    "BCE of classes": ({"task": "multiclass", "criterion": nn.BCELoss}, WORDS, "CrossEntropyLoss"),
    "-1 and 1": ({"task": "binary", "criterion": nn.SoftMarginLoss}, WORDS, "BCEWithLogitsLoss"),
    "several numbers": ({"task": "regression"}, np.stack([INK, INK], 1), "alpha=0, beta=0"),
    "one label": ({"task": "multilabel"}, Y, "each image may have several labels, or none"),
    "words": ({"task": "regression"}, WORDS, "A regression needs finite numbers"),
    "a label": ({"task": "multilabel", "classes": ["round"]}, SETS, r"not seen in fit: \['t"),
    "names": ({"task": "regression", "classes": ["a", "b"]}, INK, "y has 1 number"),
    "known task": ({"task": "several"}, Y, "'task' parameter"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSETTLED)
def test_what_cannot_be_settled_says_what_would_settle_it(case):
    options, y, message = UNSETTLED[case]
    clf = classifier(**options)
    with pytest.raises(ValueError, match=message):
        clf.fit(X, y)
    assert not clf.initialized_ and not hasattr(clf, "module_")


class Focal(nn.Module):
    """A loss of one's own, of which nobody knows what it takes."""

    def forward(self, output, y):
        chance = torch.where(y == 1, output, 1 - output)
        return -((1 - chance) * chance.log()).mean()


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_networks_that_end_in_a_sigmoid(task):
    module = ending_in_sigmoid(N_OUTPUTS[task])
    with pytest.raises(ValueError, match=r"ends in a sigmoid.*torch\.nn\.BCELoss"):
        of_task(task, module).fit(X, LABELS[task])
    with pytest.raises(ValueError, match="predict_nonlinearity=None"):
        of_task(task, module, criterion=Focal).fit(X, LABELS[task])
    # The same network and loss, the sigmoid here in the one and there in the other.
    inside = of_task(task, module, criterion=nn.BCELoss).fit(X, LABELS[task])
    outside = of_task(task).fit(X, LABELS[task])
    assert_allclose(inside.history[-1, "train_ce"], outside.history[-1, "train_ce"], rtol=1e-5)
    own = of_task(task, module, criterion=Focal, predict_nonlinearity=None).fit(X, LABELS[task])
    with torch.no_grad():
        expected = own.module_.eval()(torch.cat([*own.iter_inputs(X)])).numpy()
    assert_allclose(own.predict_proba(X)[:, -1], expected[:, -1], atol=1e-6)


def test_one_hot_rows_may_be_classes_or_labels():
    with pytest.raises(ValueError, match=r'exactly one label.*argmax.*task="multilabel"'):
        classifier(max_epochs=0).fit(X, np.eye(3)[Y])
    for options in ({"task": "multilabel"}, {"criterion": nn.BCEWithLogitsLoss}):
        clf = classifier(max_epochs=0, **options).fit(X, np.eye(3)[Y])
        assert clf.task_ == "multilabel"


# The loss


def by_hand(task, output, y, pos_weight=None):
    """The losses of images."""
    if task == "multiclass":
        return F.cross_entropy(output, y, reduction="none")
    if task == "regression":
        return (output[:, 0] - y) ** 2
    y = y[:, None] if task == "binary" else y
    weight = 1 if pos_weight is None else pos_weight
    return (weight * y * F.softplus(-output) + (1 - y) * F.softplus(output)).mean(dim=1)


@pytest.mark.parametrize("task", [*LABELS])
@pytest.mark.parametrize("kind", ["plain", "sample_weight", "parts", "pos_weight"])
def test_a_step_is_that_of_the_loss_written_by_hand(task, kind):
    chances = np.random.default_rng(0).random(60)
    options, given, pos_weight = {}, None, None
    if kind == "sample_weight":
        given = chances
    elif kind == "parts":
        options = {"batch_accumulation": 3}
    elif kind == "pos_weight":
        if task not in ("binary", "multilabel"):
            pytest.skip("not of this loss")
        pos_weight = torch.tensor([3.0] if task == "binary" else [3.0, 0.5, 2.0])
        options = {"criterion__pos_weight": pos_weight.tolist()}
    norm = nn.GroupNorm(2, 8)  # not of the batch, which may come in parts

    def module():
        network = SmallNet(N_OUTPUTS[task])
        network[1] = copy.deepcopy(norm)
        return network

    options = {**PLAIN, **options, "optimizer__momentum": 0, "optimizer__weight_decay": 0}
    first = of_task(task, module, max_epochs=0, **options).fit(X, LABELS[task])
    network = copy.deepcopy(first.module_).train()
    images = torch.cat([*first.iter_inputs(X)])
    losses = by_hand(task, network(images), encoded(task), pos_weight)
    loss = losses.mean() if given is None else (losses * torch.tensor(given)).sum() / given.sum()
    loss.backward()
    clf = of_task(task, module, **options).fit(X, LABELS[task], sample_weight=given)
    name = "train_criterion" if task == "regression" else "train_ce"
    assert_allclose(clf.history[-1, name], loss.item(), rtol=1e-5)
    step = (weights(first) - weights(clf)) / 0.05
    torch.testing.assert_close(
        step, flat(p.grad for p in network.parameters()), atol=1e-5, rtol=1e-3
    )


def undecided():
    """A network of one logit that is above 0 for half of the images."""
    torch.manual_seed(3)
    network = SmallNet(1).train()
    images = torch.cat([*classifier(max_epochs=0).fit(X, Y).iter_inputs(X)])
    with torch.no_grad():
        network[-1].weight *= 20
        network[-1].bias -= copy.deepcopy(network)(images).median()
    return network


class Halves(nn.Module):
    """Writes the logit z of a network as two, -z/2 and z/2, whose softmax is the sigmoid of z."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        z = self.network(x)
        return torch.cat([-z / 2, z / 2], dim=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory": "low"},
        {"batch_accumulation": 2},
        {"alpha": "auto", "beta": Balanced(0.1)},
        {"view_target": "shared", "p": 2, "beta": 1e-2},
        {"precision": "bf16", "beta": 0},
    ],
    ids=["usual", "low", "parts", "balanced", "shared", "bf16"],
)
def test_one_logit_is_trained_as_two_are(options):
    one = undecided()
    # One epoch: in a second, rounding of 1e-7 has grown to 1e-5.
    found = {}
    for name, module, layer in [("one", one, "5"), ("two", Halves(one), "network.5")]:
        task = "binary" if name == "one" else "multiclass"
        clf = of_task(task, copy.deepcopy(module), target_layer=layer, max_epochs=1,
                      **{"beta": 1e-3, **options})  # fmt: skip
        clf.fit(X, WORDS)
        found[name] = clf
    one, two = found["one"], found["two"]
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if "precision" in options else {"rtol": 1e-4}
    for name in ("train_loss", "train_ce", "train_inconsistency", "train_norm"):
        if name in one.history[-1]:
            batches = [[batch[name] for batch in epoch["batches"]] for epoch in one.history]
            others = [[batch[name] for batch in epoch["batches"]] for epoch in two.history]
            assert_allclose(batches, others, **tolerance, err_msg=name)
    assert_allclose(weights(one), weights(two), rtol=1e-3, atol=tolerance.get("atol", 1e-5))
    assert_allclose(one.predict_proba(X), two.predict_proba(X), atol=tolerance.get("atol", 1e-5))


@pytest.mark.parametrize("task", [*LABELS])
def test_maps_are_of_the_score_that_the_task_has(task):
    """The norm of the maps of an untrained network's images, by autograd written out."""
    network = nn.Sequential(*(undecided() if task == "binary" else SmallNet(N_OUTPUTS[task])))
    clf = of_task(task, network, **{**PLAIN, "beta": 1e-9}, lr=1e-9).fit(X, LABELS[task])
    images = torch.cat([*clf.iter_inputs(X)])
    network.train()
    activations = network[:6](images).detach().requires_grad_()
    output = network[6:](activations)
    if task == "binary":
        scores = torch.where(output[:, 0] > 0, output[:, 0], -output[:, 0])  # +z or -z
        assert 0 < (output > 0).float().mean() < 1
    elif task == "regression":
        scores = output[:, 0]
    else:
        scores = output.max(dim=1).values  # the highest-scoring class or label
    (gradient,) = torch.autograd.grad(scores.sum(), activations)
    maps = (gradient.mean((2, 3), keepdim=True) * activations.detach()).sum(1)
    expected = min_max(upsample(maps, (16, 16))).sum((1, 2)).mean().item()
    assert_allclose(clf.history[-1, "train_norm"], expected, rtol=1e-4)


class InMask(Term):
    weight = 0.1
    name = "in_mask"
    needs = frozenset({"masks"})

    def values(self, explained):
        return ((1 - explained.masks) * explained.scaled).mean((1, 2))


@pytest.mark.parametrize("task", [*LABELS])
@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"memory": "low", "batch_accumulation": 2, "precision": "bf16"},
        {"alpha": "auto", "beta": "auto", "channels_last": True},
        {"terms": [InMask()], "view_target": "shared"},
    ],
    ids=["bf16", "fp16", "low", "balanced", "masks"],
)
def test_all_that_training_can_do_it_does_for_every_task(task, options):
    masks = (X > 0.5) if "terms" in options else None
    chances = np.linspace(0.1, 1, 60)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Weights .*fp16|.*GradScaler")
        clf = of_task(task, batch_size=31, **options)
        clf.fit(X, LABELS[task], masks=masks, sample_weight=chances)
    row = clf.history[-1]
    terms = ["train_loss", "train_inconsistency", "train_norm"]
    terms += ["train_in_mask"] if masks is not None else []
    terms += ["train_criterion" if task == "regression" else "train_ce"]
    assert all(np.isfinite(row[name]) for name in terms)
    assert ("train_correct" in row["batches"][0]) is (task in ("multiclass", "binary"))


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression"])
def test_low_memory_has_the_same_gradient(task):
    normal, low = (
        of_task(task, augment=None, memory=memory).fit(X, LABELS[task])
        for memory in ("normal", "low")
    )
    torch.testing.assert_close(weights(normal), weights(low), rtol=1e-4, atol=1e-6)


# Weights of classes


WRONG_WEIGHTS = {
    "of two classes": (
        "binary",
        {"criterion__weight": [1.0, 2.0]},
        "pos_weight: the second class's weight",
    ),
    "of two": ("binary", {"criterion__pos_weight": [1.0, 2.0]}, "has 2 numbers for one output"),
    "of two labels": ("multilabel", {"criterion__weight": [1.0, 2.0]}, "one weight for each of 3"),
    "too few": ("multilabel", {"criterion__pos_weight": [1.0, 2.0]}, "pos_weight must be one"),
    "made": (
        "multilabel",
        {"criterion": nn.BCEWithLogitsLoss(pos_weight=torch.ones(2))},
        "pos_weight must be one",
    ),
    "negative": ("multilabel", {"criterion__pos_weight": [1.0, -2.0, 1.0]}, "finite, 0 or more"),
    "words": ("binary", {"criterion__pos_weight": "balanced"}, "one number for each class"),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_of_classes_that_do_not_fit(case):
    task, options, message = WRONG_WEIGHTS[case]
    with pytest.raises(ValueError, match=message):
        of_task(task, **options).fit(X, LABELS[task])


# The warning of a collapse


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression"])
def test_chance_is_looked_at_where_an_image_has_one_class(task):
    clf = of_task(task, alpha=0, lr=0.0, max_epochs=3, callbacks__collapse_warning__patience=2)
    if task == "binary":  # untrained, it is at chance
        with pytest.warns(ConvergenceWarning, match="most frequent class"):
            clf.fit(X, WORDS)
    else:
        clf.fit(X, LABELS[task])
    (warning,) = (each for _, each in clf.callbacks_ if isinstance(each, CollapseWarning))
    assert ("chance" in warning.collapsed_) is (task == "binary")
