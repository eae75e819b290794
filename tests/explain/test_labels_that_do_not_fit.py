"""Labels and targets that are written otherwise than was learned: what the messages say."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from scipy.sparse import csr_matrix
from small_networks import SmallNet

from sklcam import CAMExplainer, ConsistentCAMClassifier, EmbeddingNet
from sklcam.images.labels import nearest_label
from sklcam.metrics import evaluate
from sklcam.networks import Origin

IMAGES = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
PICTURES = IMAGES[:, 0].numpy()
NAMES = ("tabby cat", "tiger", "golden retriever")
Y = np.array([0, 1, 2, 1])


def explainer(**options):
    torch.manual_seed(0)
    return CAMExplainer(SmallNet().eval(), target_layer="4", image_size=16, verbose=0, **options)


def named_by_its_source():
    ours = explainer()
    ours.model.origin = Origin(class_names=NAMES)
    return ours.fit(IMAGES)


def trained(cls=ConsistentCAMClassifier, **options):
    common = {"image_size": 16, "max_epochs": 0, "verbose": 0, "train_split": None}
    return cls(SmallNet, **common, **options)


MISSPELT = {
    "one letter": ("tabby cats", "'tabby cat'"),
    "its case": ("Golden Retriever", "'golden retriever'"),
    "a part": (["tiger", "tigr", "tiger", "tiger"], "'tiger'"),
}


@pytest.mark.parametrize("case", MISSPELT)
def test_the_nearest_name_is_suggested(case):
    target, meant = MISSPELT[case]
    given = explainer(classes=NAMES).fit(IMAGES)
    for ours in (given, named_by_its_source()):
        with pytest.raises(ValueError, match=rf"not seen in fit.*Did you mean {meant}\?"):
            ours.explain(IMAGES, target)


def test_the_nearest_label_of_other_kinds():
    with pytest.raises(ValueError, match=r"not seen in fit: \['2'\].*Did you mean 2\?"):
        explainer().fit(IMAGES).explain(IMAGES, "2")
    with pytest.raises(ValueError, match=r"the classes are \[0, 1, 2\]\.$"):
        explainer().fit(IMAGES).explain(IMAGES, 12)
    several = explainer(task="multilabel", classes=NAMES).fit(IMAGES)
    with pytest.raises(ValueError, match=r"Did you mean 'tiger'\?"):
        several.score(IMAGES, [{"tigger"}, set(), set(), set()])


def test_a_label_that_is_only_a_little_alike_is_not_suggested():
    assert nearest_label(["apple"], ["nipple", "tench"]) == ""
    assert "'custard apple'" in nearest_label(["apple"], ["nipple", "custard apple"])
    assert "'crane, bird'" in nearest_label(["crane"], ["crate", "crane, bird"])


RAGGED = {
    "lists": ([[0], [0, 1], [2], [1]], "got 1 for image 0 and 2 for image 1"),
    "names": ([["a", "b"], ["a", "b"], ["b"], []], "got 2 for image 0 and 1 for image 2"),
    "labels and lists": ([0, 1, [1, 2], 0], "got 1 for image 0 and 2 for image 2"),
    "an array of lists": (
        np.array([[0], [0, 1], [2], [1]], object),
        "got 1 for image 0 and 2 for image 1",
    ),
}


@pytest.mark.parametrize("case", RAGGED)
def test_targets_of_several_lengths(case):
    target, message = RAGGED[case]
    with pytest.raises(
        ValueError, match=rf'the same number of labels for each image.*{message}.*"positive"'
    ):
        explainer().fit(IMAGES).explain(IMAGES, target)


ONE_HOT = {
    "array": np.eye(3)[Y],
    "integers": np.eye(3, dtype=int)[Y],
    "booleans": np.eye(3, dtype=bool)[Y],
    "tensor": torch.eye(3)[Y],
    "lists": np.eye(3)[Y].tolist(),
    "DataFrame": pd.get_dummies(pd.Series(["a", "b", "c", "b"])),
    "sparse": csr_matrix(np.eye(3)[Y]),
}


@pytest.mark.parametrize("form", ONE_HOT)
def test_one_hot_rows_say_what_to_do(form):
    y = ONE_HOT[form]
    ours, message = explainer().fit(IMAGES), r"one-hot.*y\.argmax\(axis=1\).*idxmax"
    with pytest.raises(ValueError, match=rf"\(4, 3\).*{message}.*task=\"multilabel\""):
        ours.score(IMAGES, y)
    with pytest.raises(ValueError, match=message):
        evaluate(ours, IMAGES, y, metrics=("accuracy",), progress=False)
    with pytest.raises(ValueError, match=message):
        explainer(task="multiclass").fit(IMAGES, y)
    with pytest.raises(ValueError, match=message):
        trained(task="multiclass").fit(PICTURES, y)
    with pytest.raises(ValueError, match=message):
        trained().fit(PICTURES, Y).score(PICTURES, y)
    with pytest.raises(ValueError, match=message):
        trained(EmbeddingNet).fit(PICTURES, y)


def test_other_tables_are_not_called_one_hot():
    with pytest.raises(ValueError, match=r"1d array, one label per image; got shape \(4, 2\)\.$"):
        trained(task="multiclass").fit(PICTURES, np.arange(8).reshape(4, 2))


def test_names_stand_for_the_numbers_that_are_predicted():
    ours = named_by_its_source()
    assert_array_equal(ours.classes_, [0, 1, 2])
    predicted = ours.predict(IMAGES)
    names = ours.class_names_[predicted]
    assert_array_equal(ours.explain(IMAGES, names), ours.explain(IMAGES, predicted))
    assert ours.score(IMAGES, names) == ours.score(IMAGES, predicted) == 1
    found = evaluate(ours, IMAGES, names.tolist(), metrics=("accuracy",), progress=False)
    assert_array_equal(found["accuracy"], 1)
    with pytest.raises(ValueError, match=r"Did you mean 'tiger'\?"):
        ours.score(IMAGES, ["tigers"] * 4)


@pytest.mark.parametrize(
    ("name", "instead"),
    {
        "learning_rate": r"Did you mean: lr\?",
        "weight_decay": "optimizer__weight_decay",
        "momentum": "optimizer__momentum",
        "loss": "criterion",
    }.items(),
)
def test_parameters_that_others_call_so(name, instead):
    with pytest.raises(ValueError, match=rf"has no parameter '{name}'\. .*{instead}"):
        trained(**{name: 1}).fit(PICTURES, Y)
