"""Weights of images and of classes, in the cross-entropy."""

import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from skorch.dataset import ValidSplit
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Subset

from sklcam import ConsistentCAMClassifier, EmbeddingNet
from sklcam.training import Term, ViewSampler

RNG = np.random.RandomState(0)
X = RNG.rand(18, 16, 16).astype(np.float32)
Y = np.array(["a", "b", "c"])[np.arange(18) % 3]
WEIGHTS = RNG.rand(18)
CLASS_WEIGHTS = [1.0, 5.0, 0.5]
EACH = np.array(CLASS_WEIGHTS)[np.arange(18) % 3]


class Net(nn.Sequential):
    """Images do not see each other: there is no batch normalisation."""

    def __init__(self, num_classes=3):
        super().__init__(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(6, 4, 3, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, num_classes),
        )


def classifier(**options):
    defaults = {
        "image_size": 16,
        "target_layer": "3",
        "augment": None,
        "alpha": 0,
        "beta": 0,
        "max_epochs": 3,
        "batch_size": 6,
        "lr": 0.1,
        "verbose": 0,
        "random_state": 0,
        "device": "cpu",
    }
    return ConsistentCAMClassifier(Net, **{**defaults, **options})


def weights_of(clf):
    return torch.cat([p.detach().flatten() for p in clf.module_.parameters()]).numpy()


def differ(a, b):
    return np.abs(weights_of(a) - weights_of(b)).max() > 1e-4


MODES = {
    "plain": {},
    "terms": {"alpha": 1.0, "beta": 1e-3},
    "low memory": {"alpha": 1.0, "memory": "low"},
    "balanced": {"alpha": "auto", "beta": "auto"},
    "adam": {"optimizer": torch.optim.Adam},
    "label smoothing": {"criterion__label_smoothing": 0.1},
}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_weighs_what_torch_lets_its_class_weigh(mode):
    by_class = classifier(criterion__weight=CLASS_WEIGHTS, **MODES[mode]).fit(X, Y)
    if mode == "label smoothing":  # torch smooths by the weights of all classes
        ours = classifier(criterion__weight=CLASS_WEIGHTS, **MODES[mode]).fit(X, Y, np.full(18, 7))
    else:
        ours = classifier(**MODES[mode]).fit(X, Y, EACH)
    assert_allclose(weights_of(ours), weights_of(by_class), rtol=0, atol=2e-6)
    assert differ(ours, classifier(**MODES[mode]).fit(X, Y))


@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "beta": 1e-3}])
def test_equal_weights_change_nothing(options):
    plain = classifier(**options).fit(X, Y)
    weighted = classifier(**options).fit(X, Y, sample_weight=np.full(18, 0.3))
    assert_allclose(weights_of(weighted), weights_of(plain), rtol=0, atol=1e-6)


def test_an_image_of_weight_k_is_as_good_as_k_copies():
    times = np.arange(18) % 4
    weighted = classifier(batch_size=-1).fit(X, Y, sample_weight=times)
    repeated = classifier(batch_size=-1).fit(np.repeat(X, times, axis=0), np.repeat(Y, times))
    assert_allclose(weights_of(weighted), weights_of(repeated), rtol=0, atol=1e-6)


@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("n_parts", [2, 5])
def test_parts_of_a_batch_add_up_to_the_batch(class_weights, n_parts):
    options = {"criterion__weight": class_weights} if class_weights else {}
    for weights in (WEIGHTS, None):
        whole = classifier(**options).fit(X, Y, weights)
        parts = classifier(batch_accumulation=n_parts, **options).fit(X, Y, weights)
        assert_allclose(weights_of(parts), weights_of(whole), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_parts", [1, 4])
def test_the_loss_is_the_weighted_mean_of_the_images_own(n_parts):
    clf = classifier(
        lr=0.0,
        batch_size=-1,
        max_epochs=1,
        batch_accumulation=n_parts,
        criterion__weight=np.array(CLASS_WEIGHTS),
        train_split=ValidSplit(3, stratified=True),
    ).fit(X, Y, WEIGHTS)
    labels = torch.from_numpy(np.arange(18) % 3)
    with torch.no_grad():
        logits = clf.module_(clf.prepare_images(torch.from_numpy(X)[:, None]))
    losses = F.cross_entropy(logits, labels, reduction="none").numpy()
    train, valid = clf.get_split_datasets(X, clf_labels := np.arange(18) % 3)
    for part, name in ((train, "train"), (valid, "valid")):
        rows = np.asarray(part.indices)
        factors = WEIGHTS[rows] * np.array(CLASS_WEIGHTS)[clf_labels[rows]]
        expected = (factors * losses[rows]).sum() / factors.sum()
        assert_allclose(clf.history[-1, f"{name}_ce"], expected, rtol=1e-5)


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("alpha", [0, 2.0])
@pytest.mark.parametrize("batch_size", [1, 4, 18])
def test_the_history_does_not_depend_on_the_size_of_batches(batch_size, alpha, by_class):
    options = {"lr": 0.0, "max_epochs": 1, "alpha": alpha, "beta": 1e-3}
    options |= {"train_split": ValidSplit(3, stratified=True), "iterator_train__shuffle": False}
    options |= {"views": ViewSampler(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)}
    options |= {"criterion__weight": CLASS_WEIGHTS} if by_class else {}
    weights = None if by_class else np.where(np.arange(18) % 4, WEIGHTS, 0.0)
    whole = classifier(batch_size=-1, **options).fit(X, Y, weights).history[-1]
    found = classifier(batch_size=batch_size, **options).fit(X, Y, weights).history[-1]
    for name in ("loss", "ce"):
        for phase in ("train", "valid"):
            key = f"{phase}_{name}"
            assert_allclose(found[key], whole[key], rtol=1e-4)


def test_images_to_validate_on_must_weigh_something():
    weights = np.ones(18)
    weights[Y == "a"] = 0
    with pytest.raises(ValueError, match="all validation images, have a weight of 0"):
        classifier(train_split=only_a).fit(X, Y, weights)


def only_a(dataset, y=None, **params):
    rows = np.arange(18)
    return Subset(dataset, rows[rows % 3 > 0]), Subset(dataset, rows[rows % 3 == 0])


def test_a_batch_that_weighs_nothing_teaches_nothing():
    clf = classifier(iterator_train__shuffle=False, max_epochs=1)
    weights = np.repeat([1.0, 0.0, 1.0], 6)
    clf.fit(X, Y, weights)
    without = classifier(iterator_train__shuffle=False, max_epochs=1, optimizer__momentum=0.0)
    assert [batch["train_loss"] for batch in clf.history[-1, "batches"]][1] == 0.0
    assert np.isfinite(weights_of(clf)).all()
    kept = weights > 0
    two = classifier(iterator_train__shuffle=False, max_epochs=1, optimizer__momentum=0.0)
    options = {"optimizer__weight_decay": 0.0}
    without.set_params(**options).fit(X, Y, weights)
    two.set_params(**options).fit(X[kept], Y[kept])
    assert_allclose(weights_of(without), weights_of(two), rtol=0, atol=1e-7)


class Inside(Term):
    name = "inside"
    needs = frozenset({"masks"})

    def values(self, explained):
        return 1 - (explained.masks * explained.scaled).mean((1, 2))


def test_masks_and_weights_come_together():
    masks = list(RNG.rand(18, 16, 16) > 0.5)
    options = {"terms": [Inside()], "augment": "auto"}
    found = classifier(**options).fit(X, Y, EACH, masks=masks)
    by_class = classifier(criterion__weight=CLASS_WEIGHTS, **options).fit(X, Y, masks=masks)
    assert_allclose(weights_of(found), weights_of(by_class), rtol=0, atol=2e-6)
    assert "train_inside" in found.history[-1]


def test_training_goes_on_with_weights():
    once = classifier(max_epochs=2, recalibrate=False).fit(X, Y, WEIGHTS)  # as partial_fit's are
    twice = classifier(max_epochs=1, iterator_train__shuffle=True).fit(X, Y, WEIGHTS)
    twice.partial_fit(X, Y, sample_weight=WEIGHTS)
    assert_allclose(weights_of(once), weights_of(twice), rtol=0, atol=1e-7)


@pytest.mark.parametrize("routing", [False, True])
def test_a_search_gives_each_fold_its_weights(routing):
    split = PredefinedSplit(np.repeat([0, 1], 9))
    with sklearn.config_context(enable_metadata_routing=routing):
        model = classifier(max_epochs=1)
        if routing:
            model.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"lr": [0.5]}, cv=split, refit=True)
        search.fit(X, Y, sample_weight=WEIGHTS)
        expected = []
        for train, test in split.split():
            alone = classifier(max_epochs=1, lr=0.5).fit(X[train], Y[train], WEIGHTS[train])
            score = alone.score(X[test], Y[test], sample_weight=WEIGHTS[test])
            expected.append(score)
    if routing:  # otherwise, scikit-learn's versions differ on whether scorers get weights
        assert_allclose(search.cv_results_["mean_test_score"], [np.mean(expected)])
    whole = classifier(max_epochs=1, lr=0.5).fit(X, Y, WEIGHTS)
    assert_allclose(weights_of(search.best_estimator_), weights_of(whole), rtol=0, atol=1e-7)


@pytest.mark.parametrize("given", [torch.tensor(WEIGHTS), list(WEIGHTS), WEIGHTS * 1e30])
def test_weights_in_any_form_and_of_any_size(given):
    expected = classifier(max_epochs=1).fit(X, Y, WEIGHTS)
    found = classifier(max_epochs=1).fit(X, Y, given)
    assert_allclose(weights_of(found), weights_of(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("given", [CLASS_WEIGHTS, np.array(CLASS_WEIGHTS), [2, 10, 1]])
def test_weights_of_classes_in_any_form(given):
    expected = classifier(criterion__weight=torch.tensor(CLASS_WEIGHTS)).fit(X, Y)
    found = classifier(criterion__weight=given).fit(X, Y)
    assert_allclose(weights_of(found), weights_of(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (WEIGHTS[:5], "one number for each of 18 images"),
        (WEIGHTS[:, None], "one number for each of 18 images"),
        (["x"] * 18, "one number for each of 18 images"),
        (-WEIGHTS, "0 or more"),
        (WEIGHTS * np.nan, "finite"),
        (np.zeros(18), "not 0 for all"),
    ],
)
def test_what_are_no_weights_of_images(given, message):
    clf = classifier()
    with pytest.raises(ValueError, match=message):
        clf.fit(X, Y, given)
    assert not clf.initialized_


@pytest.mark.parametrize("given", [[1.0, 2.0], [1.0, -2.0, 1.0], [0.0, 0.0, 0.0]])
def test_what_are_no_weights_of_classes(given):
    with pytest.raises(ValueError, match="criterion__weight must be"):
        classifier(criterion__weight=given).fit(X, Y)


def test_a_class_that_weighs_nothing_is_left_out():
    order = np.argsort(Y)  # batches of one class each, the second of which weighs nothing
    options = {"iterator_train__shuffle": False, "max_epochs": 1, "optimizer__momentum": 0.0}
    options |= {"criterion__weight": [1.0, 0.0, 2.0], "optimizer__weight_decay": 0.0}
    found = classifier(**options).fit(X[order], Y[order])
    losses = [batch["train_loss"] for batch in found.history[-1, "batches"]]
    assert losses[1] == 0.0 and losses[0] > 0 and losses[2] > 0
    assert np.isfinite(weights_of(found)).all()


def test_torch_weighs_a_batch_of_classes_as_here():
    clf = classifier(lr=0.0, batch_size=-1, max_epochs=1, criterion__weight=CLASS_WEIGHTS)
    clf.fit(X, Y)
    with torch.no_grad():
        logits = clf.module_(clf.prepare_images(torch.from_numpy(X)[:, None]))
    expected = F.cross_entropy(
        logits, torch.from_numpy(np.arange(18) % 3), weight=torch.tensor(CLASS_WEIGHTS)
    )
    assert_allclose(clf.history[-1, "train_loss"], expected, rtol=1e-6)


def test_images_of_a_class_that_is_ignored_weigh_nothing():
    ignoring = classifier(criterion__ignore_index=2, batch_size=-1).fit(X, Y)
    weighted = classifier(criterion__ignore_index=2, batch_size=-1).fit(X, Y, np.ones(18))
    assert_allclose(weights_of(weighted), weights_of(ignoring), rtol=0, atol=1e-6)


class OwnLoss(nn.Module):
    def forward(self, logits, y):
        return F.cross_entropy(logits, y)


def test_what_cannot_weigh_images_says_so():
    with pytest.raises(ValueError, match=r'reduction="none".*OwnLoss'):
        classifier(criterion=OwnLoss).fit(X, Y, WEIGHTS)
    net = EmbeddingNet(Net, embedding_dim=3, image_size=16, target_layer="3", verbose=0)
    with pytest.raises(ValueError, match="EmbeddingNet does not take sample_weight"):
        net.fit(X, Y, sample_weight=WEIGHTS)
