"""Tasks of training: one logit, several labels, numbers; against torch and against closed forms."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from classifiers import classifier, weights
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from skorch.callbacks import EpochScoring
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import ValidSplit
from skorch.helper import predefined_split
from small_networks import SmallNet, digits
from torch import nn
from torch.nn import functional as F

from sklcam import CAMExplainer, EmbeddingNet
from sklcam.cam import GradCAM, min_max, upsample
from sklcam.training import AcceleratedCAMClassifier, Balanced, CollapseWarning, Term

X, Y = digits()
WORDS = np.array(["no", "yes"])[(Y == 1).astype(int)]
SETS = [{"round"} if label == 0 else {"thin", "tall"} if label == 1 else set() for label in Y]
TABLE = np.array([["round" in row, "tall" in row, "thin" in row] for row in SETS]).astype(int)
INK = X.mean((1, 2))

LABELS = {"multiclass": Y, "binary": WORDS, "multilabel": SETS, "regression": INK}
N_OUTPUTS = {"multiclass": 3, "binary": 1, "multilabel": 3, "regression": 1}


def encoded(task):
    if task == "multilabel":
        return torch.tensor(TABLE, dtype=torch.float32)
    if task == "regression":
        return torch.tensor(INK, dtype=torch.float32)
    return torch.tensor(Y if task == "multiclass" else (WORDS == "yes").astype(np.float32))


def flat(parts):
    return torch.cat([part.flatten() for part in parts])


def of_task(task, module=SmallNet, **options):
    return classifier(module, task=task, **options)


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
    "one label": ({"task": "multilabel"}, Y, "several labels, or none, and y does not say which"),
    "words": ({"task": "regression"}, WORDS, "A regression learns finite numbers"),
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


def ending_in_sigmoid(n_outputs):
    return lambda: nn.Sequential(*SmallNet(n_outputs), nn.Sigmoid())


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


PLAIN = {"alpha": 0, "beta": 0, "augment": None, "batch_size": 60}


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
    found = {}
    for name, module, layer in [("one", one, "5"), ("two", Halves(one), "network.5")]:
        task = "binary" if name == "one" else "multiclass"
        clf = of_task(task, copy.deepcopy(module), target_layer=layer, max_epochs=2,
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
    "of two classes": ("binary", {"criterion__weight": [1.0, 2.0]}, "pos_weight: how much more"),
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


# As scikit-learn has it


def test_two_words_by_one_logit():
    clf = of_task("binary", max_epochs=3).fit(X, WORDS)
    assert clf.classes_.tolist() == ["no", "yes"] and clf.module_[-1].out_features == 1
    chances = clf.predict_proba(X)
    with torch.no_grad():
        logits = clf.module_(torch.cat([*clf.iter_inputs(X)]))[:, 0]
    assert_allclose(chances[:, 1], logits.sigmoid(), atol=1e-6)
    assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    assert_array_equal(clf.predict(X), np.where(logits > 0, "yes", "no"))
    assert clf.score(X, WORDS) == accuracy_score(WORDS, clf.predict(X))
    with pytest.raises(ValueError, match=r"not seen in fit: \['maybe'\]"):
        clf.score(X, np.where(WORDS == "no", "maybe", "yes"))


@pytest.mark.parametrize("nonlinearity", ["auto", torch.sigmoid])
def test_probabilities_by_a_function_of_ones_own(nonlinearity):
    clf = of_task("binary", predict_nonlinearity=nonlinearity).fit(X, WORDS)
    assert_allclose(
        clf.predict_proba(X), of_task("binary").fit(X, WORDS).predict_proba(X), atol=1e-6
    )


FORMS = {
    "table": TABLE,
    "sets": SETS,
    "lists": [*map(sorted, SETS)],
    "frame": pd.DataFrame(TABLE, columns=["round", "tall", "thin"]),
    "sparse": sparse.csr_matrix(TABLE),
    "tensor": torch.tensor(TABLE),
}


@pytest.mark.parametrize("form", FORMS)
def test_several_labels_in_any_form(form):
    y = FORMS[form]
    clf = of_task("auto", max_epochs=2).fit(X, y)
    has_names = form in ("sets", "lists", "frame")
    assert clf.classes_.tolist() == (["round", "tall", "thin"] if has_names else [0, 1, 2])
    chances, predicted = clf.predict_proba(X), clf.predict(X)
    with torch.no_grad():
        logits = clf.module_(torch.cat([*clf.iter_inputs(X)]))
    assert_allclose(chances, logits.sigmoid(), atol=1e-6)
    assert_array_equal(predicted, (logits > 0).int())
    assert clf.score(X, y) == clf.score(X, TABLE) == accuracy_score(TABLE, predicted)
    reference = of_task("auto", max_epochs=2).fit(X, TABLE)
    assert torch.equal(weights(clf), weights(reference))


def test_columns_of_labels_have_the_names_that_are_given():
    clf = classifier(max_epochs=0, classes=["z", "y", "x"]).fit(X, TABLE)
    assert clf.classes_.tolist() == ["z", "y", "x"]  # in the order of the columns
    assert clf.score(X, [set()] * 60) == accuracy_score(np.zeros((60, 3)), clf.predict(X))
    with pytest.raises(ValueError, match="2 columns for 3 labels"):
        clf.score(X, TABLE[:, :2])


def test_numbers_are_learned():
    clf = of_task("regression", max_epochs=8, batch_size=10, beta=0).fit(X, INK)
    assert clf.classes_ is None and not hasattr(clf, "predict_proba")
    assert clf.predict(X).shape == (60,)
    assert_allclose(clf.score(X, INK), r2_score(INK, clf.predict(X)))
    flat = of_task("regression", nn.Sequential(*SmallNet(1), nn.Flatten(0))).fit(X, INK)
    assert flat.predict(X).shape == (60,)
    both = np.stack([INK, 1 - INK], axis=1)
    clf = of_task("regression", **PLAIN).fit(X, both)
    assert clf.predict(X).shape == (60, 2) and clf.module_[-1].out_features == 2
    assert_allclose(clf.score(X, both), r2_score(both, clf.predict(X)))
    with pytest.raises(ValueError, match=r"2 number\(s\) an image"):
        clf.score(X, INK)
    unfitted = of_task("regression")
    assert not hasattr(unfitted, "predict_proba") and is_regressor(unfitted)
    for call in (unfitted.predict, unfitted.explain, lambda X: unfitted.score(X, INK)):
        with pytest.raises(NotFittedError):
            call(X)


class Squeezed(SmallNet):
    """Loses an axis, and of a single image both."""

    def forward(self, x):
        return super().forward(x).squeeze()


@pytest.mark.parametrize("task", ["auto", "regression"])
def test_outputs_that_are_squeezed(task):
    y = WORDS if task == "auto" else INK
    networks = (lambda: Squeezed(1), lambda: SmallNet(1))
    ours, plain = (of_task(task, net, batch_size=59).fit(X, y) for net in networks)
    assert torch.equal(weights(ours), weights(plain))
    for some in (X, X[:1]):
        assert_array_equal(ours.predict(some), plain.predict(some))
        assert_allclose(ours.explain(some), plain.explain(some))


@pytest.mark.parametrize("task", [*LABELS])
def test_searches_and_cross_validation(task):
    y = TABLE if task == "multilabel" else LABELS[task]
    search = GridSearchCV(of_task(task, beta=0), {"alpha": [0, 0.1]}, cv=3, error_score="raise")
    search.fit(X, y)
    assert search.best_estimator_.task_ == task and search.predict(X).shape == np.shape(y)
    scores = cross_val_score(of_task(task, **PLAIN), X, y, cv=3, error_score="raise")
    assert np.isfinite(scores).all()


def test_searches_over_sets_of_labels():
    search = GridSearchCV(
        classifier(**PLAIN, classes=["round", "tall", "thin"]), {"lr": [0.01, 0.1]}, cv=KFold(2),
        error_score="raise",
    )  # fmt: skip
    assert search.fit(X, SETS).predict(X).shape == (60, 3)


@pytest.mark.parametrize("task", [*LABELS])
def test_validation_splits(task):
    clf = of_task(task, train_split=ValidSplit(3)).fit(X, LABELS[task])
    name = "valid_criterion" if task == "regression" else "valid_ce"
    assert np.isfinite([clf.history[-1, key] for key in ("valid_loss", name, "valid_norm")]).all()
    own = predefined_split(
        SkorchDataset(X[:20], TABLE[:20] if task == "multilabel" else LABELS[task][:20])
    )
    valid = of_task(task, train_split=own).fit(X, LABELS[task])
    assert np.isfinite(valid.history[-1, "valid_loss"])
    stratified = of_task(task, train_split=ValidSplit(3, stratified=True))
    if task in ("multiclass", "binary"):
        stratified.fit(X, LABELS[task])
    else:
        with pytest.raises(ValueError, match="stratified=False"):
            stratified.fit(X, LABELS[task])
    if task == "multilabel":  # by the whole set of labels, as scikit-learn has it
        of_task(task, train_split=ValidSplit(0.3, stratified=True, random_state=0)).fit(X, SETS)


@pytest.mark.parametrize("task", [*LABELS])
def test_training_goes_on(task):
    y, left_alone = LABELS[task], {"recalibrate": False}  # as partial_fit does not
    twice = of_task(task, max_epochs=1, warm_start=True, **left_alone).fit(X, y).fit(X, y)
    parts = of_task(task, max_epochs=1).partial_fit(X, y).partial_fit(X, y)
    at_once = of_task(task, max_epochs=2, **left_alone).fit(X, y)
    assert torch.equal(weights(twice), weights(at_once))
    assert torch.equal(weights(parts), weights(at_once))


def test_classes_that_come_later():
    clf = of_task("binary").partial_fit(X[:1], ["no"], classes=["no", "yes"])
    assert clf.partial_fit(X, WORDS).classes_.tolist() == ["no", "yes"]
    names = ["thin", "tall", "round"]
    clf = classifier().partial_fit(X[:5], [{"thin"}] * 5, classes=names)
    assert clf.classes_.tolist() == names
    clf.partial_fit(X, SETS)
    with pytest.raises(ValueError, match="not the same as on the first call"):
        clf.partial_fit(X, SETS, classes=sorted(names))
    with pytest.raises(ValueError, match=r"not seen in fit: \['wide'\]"):
        clf.partial_fit(X, [{"wide"}] * 60)


def test_a_new_fit_settles_the_task_anew():
    clf = classifier(max_epochs=0)
    for task in ("multilabel", "multiclass"):
        assert clf.fit(X, LABELS[task]).task_ == task
    assert type(clf.criterion_) is nn.CrossEntropyLoss
    clf = classifier(lambda: SmallNet(1), max_epochs=0).fit(X, WORDS)
    clf.set_params(module=lambda: SmallNet(2))  # which builds it at once
    assert clf.fit(X, WORDS).task_ == "multiclass"
    with pytest.raises(ValueError, match="Unknown label type"):
        clf.fit(X, INK)
    assert clf.task_ == "multiclass" and clf.predict(X).shape == (60,)


@pytest.mark.parametrize("task", [*LABELS])
def test_callbacks_score_as_outside_of_training(task):
    scoring = "r2" if task == "regression" else "accuracy"
    score = EpochScoring(
        scoring, name="seen", on_train=True, use_caching=False, lower_is_better=False
    )
    clf = of_task(task, **PLAIN, callbacks=[score], recalibrate=False).fit(X, LABELS[task])
    assert_allclose(clf.history[-1, "seen"], clf.score(X, LABELS[task]), atol=1e-6)


@pytest.mark.parametrize("task", [*LABELS])
def test_copies(task):
    clf = of_task(task).fit(X, LABELS[task])
    for twin in (copy.deepcopy(clf), pickle.loads(pickle.dumps(clf))):
        assert twin.task_ == task
        assert_array_equal(twin.predict(X), clf.predict(X))
        twin.partial_fit(X, LABELS[task])
    assert clone(clf).get_params()["task"] == task


@pytest.mark.parametrize("task", [*LABELS])
@pytest.mark.parametrize("ends_in", ["scores", "sigmoid"])
def test_explainers_answer_as_the_classifier_does(task, ends_in):
    options = {}
    if ends_in == "sigmoid":
        if task not in ("binary", "multilabel"):
            pytest.skip("it has none")
        options = {"module": ending_in_sigmoid(N_OUTPUTS[task]), "criterion": nn.BCELoss}
    clf = of_task(task, **options, target_layer="5").fit(X, LABELS[task])
    explainer = CAMExplainer(clf, verbose=0).fit()
    assert explainer.task_ == task
    assert_array_equal(explainer.predict(X), clf.predict(X))
    assert_allclose(explainer.score(X, LABELS[task]), clf.score(X, LABELS[task]))
    if task != "regression":
        assert_allclose(explainer.predict_proba(X), clf.predict_proba(X), atol=1e-6)
    maps = clf.explain(X, method=GradCAM(relu=False), normalize=False)
    assert_allclose(explainer.explain(X, method=GradCAM(relu=False), normalize=False), maps)
    images = torch.cat([*clf.iter_inputs(X)])
    layers = [*clf.module_.eval()]
    with torch.no_grad():
        activations = nn.Sequential(*layers[:6])(images)
    activations.requires_grad_()
    output = nn.Sequential(*layers[6:])(activations)
    scores = output.max(dim=1).values
    if task == "binary":  # either of +z and -z, or of p and 1 - p
        is_second = output[:, 0] > (0.5 if ends_in == "sigmoid" else 0)
        scores = torch.where(is_second, output[:, 0], -output[:, 0])
    (gradient,) = torch.autograd.grad(scores.sum(), activations)
    expected = (gradient.mean((2, 3), keepdim=True) * activations.detach()).sum(1)
    assert_allclose(maps, upsample(expected, (16, 16)), atol=1e-5)


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression"])
def test_processes_train_any_task(task):
    from accelerate import Accelerator

    ours = of_task(task, augment=None).fit(X, LABELS[task])
    options = {"image_size": 16, "max_epochs": 1, "batch_size": 20, "lr": 0.05, "verbose": 0}
    theirs = AcceleratedCAMClassifier(SmallNet, accelerator=Accelerator(cpu=True), task=task,
                                      random_state=0, augment=None, **options)  # fmt: skip
    theirs.fit(X, LABELS[task])
    torch.testing.assert_close(weights(ours), weights(theirs))


def test_embeddings_know_of_no_task():
    assert "task" not in EmbeddingNet().get_params()
    with pytest.raises(ValueError, match="1d array"):
        EmbeddingNet(SmallNet, image_size=16, max_epochs=0, verbose=0).fit(X, TABLE)


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
