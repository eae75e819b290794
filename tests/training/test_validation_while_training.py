"""Images to validate on, and the scores that training records."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifiers import NAMES, X, Y, classifier
from PIL import Image
from sklearn import config_context
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, LRScheduler
from skorch.dataset import ValidSplit
from skorch.helper import predefined_split
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import ImageFolder

from sklcam import EmbeddingNet
from sklcam.datasets import load_class_folders
from sklcam.images import ImageDataset

TRAIN, VALID = slice(0, 40), slice(40, 60)
PLAIN = {"alpha": 0, "beta": 0, "augment": None, "recalibrate": False}
SEVERAL = np.stack([Y == 0, Y > 0, X.mean((1, 2)) > 0.3], axis=1).astype(int)


class Seen(Callback):
    """Keeps what the network answers in training, with the labels."""

    def on_epoch_begin(self, net, **kwargs):
        self.rows_ = {True: [], False: []}

    def on_batch_end(self, net, batch=None, training=False, y_pred=None, **kwargs):
        self.rows_[training].append((y_pred.detach(), batch[1]))

    def joined(self, training):
        return [torch.cat(each).numpy() for each in zip(*self.rows_[training], strict=True)]


TASKS = {
    "multiclass": (NAMES, {}, lambda y, z: accuracy_score(y, z.argmax(axis=1))),
    "binary": (Y > 0, {"task": "binary"}, lambda y, z: accuracy_score(y, z[:, 0] > 0)),
    "multilabel": (SEVERAL, {}, lambda y, z: accuracy_score(y, z > 0)),
    "regression": (
        X.mean((1, 2)) * 10,
        {"task": "regression", "lr": 1e-3},
        lambda y, z: r2_score(y, z[:, 0]),
    ),
}


@pytest.mark.parametrize("task", [*TASKS])
def test_scores_of_an_epoch_are_scikit_learns_of_its_predictions(task):
    y, options, measure = TASKS[task]
    clf = classifier(max_epochs=2, batch_size=16, callbacks=[Seen()], **{**PLAIN, **options})
    clf.fit(X[TRAIN], y[TRAIN], validation=(X[VALID], y[VALID]))
    name = "r2" if task == "regression" else "accuracy"
    for phase, training in (("train", True), ("valid", False)):
        answers, labels = dict(clf.callbacks_)["Seen"].joined(training)
        assert clf.history[-1, f"{phase}_{name}"] == pytest.approx(measure(labels, answers))
    assert clf.history[-1, f"valid_{name}"] == pytest.approx(clf.score(X[VALID], y[VALID]))
    assert isinstance(clf.history[0, f"valid_{name}_best"], bool)


@pytest.mark.parametrize("options", [{"memory": "low"}, {"batch_accumulation": 3}])
def test_scores_of_steps_in_parts(options):
    clf = classifier(callbacks=[Seen()], **options).fit(X, Y)
    answers, labels = dict(clf.callbacks_)["Seen"].joined(training=True)
    assert clf.history[-1, "train_accuracy"] == pytest.approx((answers.argmax(1) == labels).mean())


def test_without_validation_there_is_nothing_of_it(capsys):
    clf = classifier(verbose=1, **PLAIN).fit(X, Y)
    assert not [name for name in clf.history[-1] if name.startswith("valid_")]
    assert "valid" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    for part, rows in (("train", TRAIN), ("valid", VALID)):
        for i, (image, name) in enumerate(zip(X[rows], NAMES[rows], strict=True)):
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255).round().astype(np.uint8)).save(folder / f"{i}.png")
    return root


def grey(path):
    with Image.open(path) as image:
        return image.convert("L")


def of_folders(root):
    train, valid = load_class_folders(root / "train"), load_class_folders(root / "valid")
    yield "pairs", (train.data, train.target), (valid.data, valid.target)
    yield "lists", (train.data, train.target), [valid.data, valid.target]
    yield "bunches", (train.data, train.target), valid
    yield (
        "arrays of paths",
        (np.array(train.data), list(train.target)),
        (np.array(valid.data), valid.target.tolist()),
    )
    pils = [grey(path) for path in valid.data]
    yield "images", (train.data, train.target), (pils, valid.target)
    sets = [ImageFolder(root / part, loader=grey) for part in ("train", "valid")]
    yield "data sets", (sets[0], None), sets[1]
    yield "data sets and None", (sets[0], None), (sets[1], None)
    yield "a subset", (sets[0], None), Subset(sets[1], range(len(sets[1])))


def test_a_folder_to_validate_on_in_every_form(folders):
    found = {}
    for name, train, valid in of_folders(folders):
        clf = classifier(max_epochs=2, **PLAIN).fit(*train, validation=valid)
        found[name] = clf.history[:, ("train_loss", "valid_loss", "valid_accuracy")]
        names = clf.class_names_ if clf.class_names_ is not None else clf.classes_
        assert list(names) == ["nought", "one", "two"]
    expected = found["pairs"]
    assert len(found) == 8
    for rows in found.values():
        assert rows == pytest.approx(expected) if len(rows) == 1 else True
        assert np.allclose(rows, expected, atol=1e-5)


def test_labels_of_another_number_are_refused(folders, tmp_path):
    # Without the folder "nought", torchvision calls "one" 0.
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(folders / "valid" / name)
    train, valid = ImageFolder(folders / "train", loader=grey), ImageFolder(tmp_path, loader=grey)
    with pytest.raises(ValueError, match="validation: The data set's label for 'one' is 0"):
        classifier(**PLAIN).fit(train, validation=valid)


def test_images_to_validate_on_are_read_as_for_prediction():
    large = np.kron(X[VALID], np.ones((1, 5, 3)))  # of another size and shape
    clf = classifier(resize="center_crop", **PLAIN).fit(
        X[TRAIN], Y[TRAIN], validation=(large, Y[VALID])
    )
    assert clf.history[-1, "valid_accuracy"] == pytest.approx(clf.score(large, Y[VALID]))
    logits = torch.tensor(clf.predict_proba(large)).log()
    expected = torch.nn.functional.nll_loss(logits, torch.tensor(Y[VALID]))
    assert clf.history[-1, "valid_ce"] == pytest.approx(float(expected), abs=1e-5)


def test_validation_is_that_of_a_split_that_is_made_by_hand():
    given = classifier(max_epochs=2).fit(
        X[TRAIN], NAMES[TRAIN], validation=(X[VALID], NAMES[VALID])
    )
    split = predefined_split(ImageDataset(X[VALID], NAMES[VALID], image_size=16))
    split = classifier(max_epochs=2, train_split=split).fit(X[TRAIN], NAMES[TRAIN])
    columns = ("train_loss", "valid_loss", "valid_inconsistency", "valid_accuracy")
    assert given.history[:, columns] == split.history[:, columns]


def test_partial_fit_and_embedding_nets_are_validated():
    clf = classifier(**PLAIN).partial_fit(
        X[:30], Y[:30], classes=[0, 1, 2], validation=(X[VALID], Y[VALID])
    )
    clf.partial_fit(X[30:40], Y[30:40])
    assert "valid_loss" in clf.history[0] and "valid_loss" not in clf.history[1]
    net = EmbeddingNet(
        "squeezenet1_1", embedding_dim=4, image_size=32, max_epochs=1, verbose=0, device="cpu",
        criterion=torch.nn.CrossEntropyLoss, miner=None, sampler=None, random_state=0,
    ).fit(X[TRAIN], Y[TRAIN], validation=(X[VALID], Y[VALID]))  # fmt: skip
    assert np.isfinite(net.history[-1, "valid_loss"])


def test_a_search_validates_each_fit_on_the_same_images():
    given = (X[VALID], NAMES[VALID])
    search = GridSearchCV(classifier(**PLAIN), {"lr": [0.01, 0.1]}, cv=2, error_score="raise")
    search.fit(X[TRAIN], NAMES[TRAIN], validation=given)
    best = search.best_estimator_
    assert best.history[-1, "valid_accuracy"] == pytest.approx(best.score(*given))
    with config_context(enable_metadata_routing=True):
        clf = classifier(**PLAIN).set_fit_request(validation=True)
        search = GridSearchCV(clf, {"lr": [0.01]}, cv=2, error_score="raise")
        search.fit(X[TRAIN], NAMES[TRAIN], validation=given)
    assert "valid_accuracy" in search.best_estimator_.history[-1]


def test_a_plateau_of_accuracy_lowers_the_rate():
    schedule = LRScheduler(
        "ReduceLROnPlateau", monitor="valid_accuracy", mode="max", patience=0, threshold=2
    )
    clf = classifier(max_epochs=3, callbacks=[schedule], **PLAIN)  # none is 2 better than the best
    clf.fit(X[TRAIN], Y[TRAIN], validation=(X[VALID], Y[VALID]))
    assert clf.history[:, "event_lr"] == pytest.approx([0.05, 0.05, 0.005])


def test_what_a_callback_of_ones_own_records_may_be_monitored():
    class Records(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("my_score", -len(net.history))

    schedule = LRScheduler("ReduceLROnPlateau", monitor="my_score")
    clf = classifier(callbacks=[Records(), schedule], train_split=ValidSplit(3), **PLAIN)
    assert len(clf.fit(X, Y).history) == 1


def test_tensors_are_no_data_set_that_has_its_labels():
    data = TensorDataset(
        torch.tensor(X[VALID], dtype=torch.float32)[:, None], torch.tensor(Y[VALID])
    )
    with pytest.raises(ValueError, match="validation must be a pair"):
        classifier(**PLAIN).fit(X[TRAIN], Y[TRAIN], validation=data)
