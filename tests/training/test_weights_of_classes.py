"""class_weight, against torch's own weights of classes and scikit-learn's definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifiers import NAMES, X, Y, classifier, weights
from sklearn.base import clone
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import Dataset

import sklcam

ROWS = np.flatnonzero((Y != 1) | (np.arange(60) % 3 == 0))  # few of "one"


@pytest.mark.parametrize("options", [{"alpha": 0, "beta": 0}, {"memory": "low"}], ids=["", "maps"])
@pytest.mark.parametrize("weight", [{"one": 3.0, "two": 0.5}, "balanced"], ids=["dict", "balanced"])
def test_classes_weigh_what_torch_lets_them_weigh(options, weight):
    y = NAMES[ROWS]
    expected = compute_class_weight(weight, classes=np.unique(y), y=y)
    ours = classifier(class_weight=weight, max_epochs=2, **options)
    torchs = classifier(
        criterion__weight=torch.tensor(expected, dtype=torch.float32), max_epochs=2, **options
    )
    for clf in (ours, torchs):
        clf.fit(X[ROWS], y, validation=(X, NAMES))
    columns = ("train_loss", "train_ce", "valid_loss", "valid_ce")
    assert np.allclose(ours.history[:, columns], torchs.history[:, columns], rtol=1e-5)
    assert torch.allclose(weights(ours), weights(torchs), atol=1e-6)


def test_weights_of_classes_are_multiplied_by_those_of_images():
    own = np.linspace(0.5, 2, 60)
    both = classifier(class_weight={0: 2.0, 2: 0.25}).fit(X, Y, sample_weight=own)
    product = own * np.array([2.0, 1.0, 0.25])[Y]
    by_hand = classifier().fit(X, Y, sample_weight=product)
    assert torch.allclose(weights(both), weights(by_hand), atol=1e-6)
    assert both.history[-1, "train_loss"] == pytest.approx(by_hand.history[-1, "train_loss"])


class Named(Dataset):
    targets, classes = Y.tolist(), ["nought", "one", "two"]

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return torch.tensor(X[i], dtype=torch.float32)[None], self.targets[i]


def test_classes_go_by_their_names_as_well():
    named = classifier(class_weight={"one": 4.0}).fit(Named())
    numbered = classifier(class_weight={1: 4.0}).fit(X, Y)
    assert torch.allclose(weights(named), weights(numbered), atol=1e-5)


def test_a_class_has_one_weight():
    with pytest.raises(ValueError, match="two weights for the same class, 'one' and 1"):
        classifier(class_weight={"one": 4.0, 1: 2.0}).fit(Named())


def test_one_output_and_parts_of_the_classes():
    options = {"task": "binary", "alpha": 0, "beta": 0}
    ours = classifier(class_weight={True: 3.0}, **options).fit(X, Y > 0)
    by_hand = classifier(**options).fit(X, Y > 0, sample_weight=np.where(Y > 0, 3.0, 1.0))
    assert torch.equal(weights(ours), weights(by_hand))
    clf = classifier(class_weight="balanced")
    clf.partial_fit(X[Y < 2], Y[Y < 2], classes=[0, 1, 2])  # a class that is not there
    assert np.isfinite(clf.history[-1, "train_loss"])


def test_parameters_go_through_clones_and_files(tmp_path):
    clf = clone(classifier(class_weight={"one": 2.0}, freeze=2, max_epochs=0)).fit(X, NAMES)
    sklcam.save(clf, tmp_path / "clf.sklcam")
    loaded = sklcam.load(tmp_path / "clf.sklcam", objects={"SmallNet": type(clf.module_)})
    assert (loaded.class_weight, loaded.freeze) == ({"one": 2.0}, 2)


def test_a_class_that_is_not_there_is_not_weighed_up():
    from sklcam.training._criteria import weights_of_classes
    from sklcam.training.tasks import TASKS

    labels, classes = np.array([1, 1, 1, 2]), np.arange(3)
    found = weights_of_classes("balanced", TASKS["multiclass"], labels, classes, None)
    np.testing.assert_allclose(found, [1, 4 / (2 * 3), 4 / (2 * 1)])  # n / (n_classes * n_of_each)
