"""Names of classes that data sets bring, from fit to target, score and files."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import SmallNet
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

import sklcam
from sklcam import CAMDisplay, CAMExplainer, ConsistentCAMClassifier
from sklcam.explain.predictions import predictions
from sklcam.images.labels import labels_of_names

OBJECTS = {"SmallNet": SmallNet}
OPTIONS = {"image_size": 16, "max_epochs": 1, "verbose": 0, "alpha": 0, "beta": 0}


def pets(root, *names) -> ImageFolder:
    """Two images each, in folders."""
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return ImageFolder(root)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> ImageFolder:
    return pets(tmp_path_factory.mktemp("train"), "cat", "dog", "emu")


@pytest.fixture(scope="module")
def classifier(folders) -> ConsistentCAMClassifier:
    return ConsistentCAMClassifier(SmallNet, random_state=0, **OPTIONS).fit(folders)


def test_labels_stay_numbers_and_have_names(classifier, folders, tmp_path):
    assert classifier.classes_.tolist() == [0, 1, 2]
    assert classifier.class_names_.tolist() == ["cat", "dog", "emu"]
    assert classifier.predict(folders).dtype.kind == "i"
    named, numbered = (classifier.explain(folders, target=target) for target in ("dog", 1))
    np.testing.assert_array_equal(named, numbered)
    output = torch.eye(3)[[2, 0]] * 9
    assert [each.label for each in predictions(classifier, output)] == ["emu", "cat"]
    around = CAMExplainer(classifier).fit()
    assert around.class_names_.tolist() == ["cat", "dog", "emu"]
    for estimator in (classifier, around):
        path = tmp_path / type(estimator).__name__
        sklcam.save(estimator, path)
        loaded = sklcam.load(path, objects=OBJECTS)
        assert loaded.class_names_.tolist() == ["cat", "dog", "emu"]


def test_pictures_write_names_for_labels_too(classifier, folders):
    display = CAMDisplay.from_estimator(classifier, folders, y=folders.targets)
    assert [title.split()[1] for title in display.image_titles] == [
        folders.classes[label] for label in folders.targets
    ]


def test_names_of_some_classes(folders):
    some = Subset(folders, [0, 1, 4, 5])
    clf = ConsistentCAMClassifier(SmallNet, **OPTIONS).fit(some)
    assert (clf.classes_.tolist(), clf.class_names_.tolist()) == ([0, 2], ["cat", "emu"])


def test_labels_of_the_users_own_have_no_names(folders):
    clf = ConsistentCAMClassifier(SmallNet, **OPTIONS)
    assert clf.class_names_ is None
    assert clf.fit(folders, [0, 0, 1, 1, 1, 1]).class_names_ is None
    names = np.array(folders.classes)[folders.targets]
    assert clf.fit(folders, names).class_names_ is None and clf.classes_.tolist() == folders.classes
    numbers = clf.set_params(task="regression").fit(folders)
    assert numbers.class_names_ is None


def test_other_numbers_for_the_same_names(classifier, folders, tmp_path):
    fewer = pets(tmp_path / "fewer", "cat", "emu")
    network = CAMExplainer(classifier.module_, verbose=0).fit(folders)
    message = "label for 'emu' is 1, but the estimator's is 2. Give y"
    for estimator in (classifier, CAMExplainer(classifier, verbose=0).fit(), network):
        with pytest.raises(ValueError, match=message):
            estimator.score(fewer)
        assert 0 <= estimator.score(fewer, [0, 0, 2, 2]) <= 1
    with pytest.raises(ValueError, match=message):
        ConsistentCAMClassifier(SmallNet, **OPTIONS).fit(folders).partial_fit(fewer)


def test_labels_may_be_names_wherever_the_numbers_are_known(classifier, folders):
    """In each form, y is the names of the labels, which mean the numbers."""
    files = [path for path, _ in folders.samples]
    names = [folders.classes[label] for label in folders.targets]
    wrong = np.roll(names, 2).astype(object)
    for y, numbers in ((names, folders.targets), (wrong, np.roll(folders.targets, 2))):
        expected = classifier.score(files, numbers)
        for estimator in (classifier, CAMExplainer(classifier, verbose=0).fit()):
            assert estimator.score(files, y) == expected
            measured = sklcam.metrics.evaluate(estimator, files, y, metrics=["accuracy"])
            assert measured["accuracy"].mean() == expected
        clf = ConsistentCAMClassifier(SmallNet, random_state=0, **OPTIONS)
        clf.fit(folders, validation=(files, y))
        assert clf.history[-1, "valid_accuracy"] == clf.score(files, numbers)
        assert clf.partial_fit(files, y).classes_.tolist() == [0, 1, 2]
    for labels in (["cat", "dgo"] * 3, ["cat", 1] * 3):
        with pytest.raises(ValueError, match="labels that were not seen in fit"):
            classifier.score(files, labels)


def test_a_name_of_two_classes_is_no_label(classifier):
    names = np.array(["cat", "cat", "emu"])
    assert labels_of_names(["emu"], np.arange(3), names).tolist() == [2]
    with pytest.raises(ValueError, match=r"classes \[0, 1\] all have the name 'cat'"):
        labels_of_names(["emu", "cat"], np.arange(3), names)


def test_a_bare_network_is_told_by_as_many_names(classifier, folders):
    explainer = CAMExplainer(classifier.module_, verbose=0).fit(folders)
    assert explainer.class_names_.tolist() == ["cat", "dog", "emu"]
    assert explainer.classes_.tolist() == [0, 1, 2]
    two = CAMExplainer(SmallNet(num_classes=2, in_channels=3), verbose=0).fit(folders)
    assert two.class_names_ is None
    labelled = CAMExplainer(classifier.module_, classes=["a", "b", "c"], verbose=0).fit(folders)
    assert labelled.class_names_ is None


def test_published_weights_do_not_name_other_classes():
    """A network that is known for 3 classes is trained on 3 others."""
    import timm

    given = timm.create_model("test_resnet", num_classes=3)
    given.pretrained_cfg |= {"num_classes": 3, "label_names": ["ant", "bee", "cow"]}
    X, y = np.zeros((4, 16, 16, 3), np.uint8), [0, 1, 2, 0]
    assert CAMExplainer(given, verbose=0).fit(X).class_names_.tolist() == ["ant", "bee", "cow"]
    clf = ConsistentCAMClassifier(given, **(OPTIONS | {"image_size": 64})).fit(X, y)
    assert clf.class_names_ is None
