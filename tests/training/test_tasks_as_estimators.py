"""Classifiers of any task as scikit-learn has them: labels, searches, copies, callbacks."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
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
    ending_in_sigmoid,
    of_task,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from skorch.callbacks import EpochScoring
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import ValidSplit
from skorch.helper import predefined_split
from small_networks import SmallNet
from torch import nn

from sklcam import CAMExplainer, EmbeddingNet
from sklcam.cam import GradCAM, upsample
from sklcam.training import AcceleratedCAMClassifier


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
    with pytest.raises(ValueError, match=r"2 number\(s\) per image"):
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
    with pytest.raises(ValueError, match="differs from the classes of the first call"):
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
