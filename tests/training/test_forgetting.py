"""A history that forgets its batches: all else is what it was."""

from __future__ import annotations

import numpy as np
from small_networks import SmallNet, digits

import sklcam
from sklcam import ConsistentCAMClassifier
from sklcam.training import ForgetBatches

X, Y = digits()


def trained(max_epochs=4, **options):
    return ConsistentCAMClassifier(
        SmallNet,
        **{"image_size": 16, "target_layer": "5", "batch_size": 20, "max_epochs": max_epochs},
        **{"verbose": 0, "random_state": 0, "device": "cpu", "every": 2, **options},
    ).fit(X, Y)


def epochs_of(clf):
    """What the history has of epochs, but for how long they took."""
    return [{k: v for k, v in row.items() if k not in ("batches", "dur")} for row in clf.history]


def test_epochs_are_what_they_were_and_training_goes_on(tmp_path):
    options = {"callbacks": [ForgetBatches()]}
    whole, forgetful = trained(6), trained(6, **options)
    assert [len(row["batches"]) for row in forgetful.history] == [0, 0, 0, 0, 3, 3]
    assert epochs_of(forgetful) == epochs_of(whole)
    first = trained(4, **options)
    sklcam.save(first, tmp_path / "clf.sklcam")
    loaded = sklcam.load(tmp_path / "clf.sklcam", objects={"SmallNet": SmallNet})
    loaded.max_epochs = 2
    loaded.partial_fit(X, Y)
    assert [len(row["batches"]) for row in loaded.history] == [0, 0, 0, 0, 3, 3]
    np.testing.assert_array_equal(loaded.predict_proba(X), whole.predict_proba(X))


def test_as_many_epochs_as_one_likes():
    clf = trained(callbacks=[ForgetBatches(keep=3)])
    assert [len(row["batches"]) for row in clf.history] == [0, 3, 3, 3]
