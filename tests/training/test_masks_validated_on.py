"""Masks and boxes of the images to validate on: energy by hand, in every form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerated import INK, MASKS, Y
from accelerated import LARGE as X
from by_hand import Area, classifier, explained, resized
from skorch.callbacks import EarlyStopping
from skorch.dataset import ValidSplit

TRAIN, VALID = slice(0, 40), slice(40, 60)
NAMES = np.array(["nought", "one", "two"])[Y]
BOXES = [np.array([[2 + i % 5, 3, 9, 12 - i % 3]]) for i in range(20)]
OF_BOXES = np.zeros((20, 16, 16), bool)
for i, ((x1, y1, x2, y2),) in enumerate(BOXES):
    OF_BOXES[i, y1:y2, x1:x2] = True
OF_OTHERS = [{NAMES[40 + i]: box, "other": [[0, 0, 16, 16]]} for i, box in enumerate(BOXES)]


def fitted(given, y=Y, **options):
    """Train on some images with masks, with a learning rate of 0, and validate on others."""
    options = {"gamma": 0.3, "lr": 0.0, "max_epochs": 1, **options}
    validation = {"X": X[VALID], "y": y[VALID], **given}
    return classifier(**options).fit(X[TRAIN], y[TRAIN], masks=INK[TRAIN], validation=validation)


def by_hand(clf, masks):
    """The share of the map of each image's label that lies outside, over images with a mask."""
    images = torch.cat(list(clf.iter_inputs(X[VALID])))
    _, maps = explained(clf.module_, images, torch.from_numpy(Y[VALID]))
    energy = resized(maps).detach().abs().numpy()
    shares = [
        ((1 - mask.astype(float)) * each).sum() / each.sum()
        for each, mask in zip(energy, masks, strict=True)
        if mask is not None
    ]
    return np.mean(shares)


HALF = [mask if i % 2 else None for i, mask in enumerate(OF_BOXES)]
SOFT = INK[VALID] * np.linspace(0.2, 1.0, 20)[:, None, None]
MASKED = {
    "an array": ({"masks": INK[VALID]}, INK[VALID]),
    "integers": ({"masks": 7 * INK[VALID].astype(np.uint8)}, INK[VALID]),
    "shares of pixels": ({"masks": SOFT.astype(np.float32)}, SOFT),
    "a tensor": ({"masks": torch.from_numpy(INK[VALID])}, INK[VALID]),
    "a list, with images without": ({"masks": MASKS[VALID]}, MASKS[VALID]),
    "boxes": ({"boxes": BOXES}, OF_BOXES),
    "lists of boxes, with images without": (
        {"boxes": [box.tolist() if i % 2 else None for i, box in enumerate(BOXES)]},
        HALF,
    ),
    "masks and boxes": (
        {
            "masks": [None if i % 2 else mask for i, mask in enumerate(OF_BOXES)],
            "boxes": [box if i % 2 else [] for i, box in enumerate(BOXES)],
        },
        OF_BOXES,
    ),
}


@pytest.mark.parametrize("form", [*MASKED])
def test_energy_of_the_images_to_validate_on(form):
    given, masks = MASKED[form]
    clf = fitted(given)
    assert clf.history[-1, "valid_energy"] == pytest.approx(by_hand(clf, masks), rel=1e-5)


def test_boxes_by_label_are_those_of_the_images_own():
    clf = fitted({"boxes": OF_OTHERS}, NAMES)
    assert clf.history[-1, "valid_energy"] == pytest.approx(by_hand(clf, OF_BOXES), rel=1e-5)


def test_it_is_that_of_a_split_of_images_with_masks():
    split = ValidSplit(3, stratified=False)
    _, valid = split(X, Y)
    rows = np.asarray(valid.indices)
    rest = np.setdiff1d(np.arange(60), rows)
    options = {"gamma": 0.3, "alpha": 0.5, "beta": 1e-4, "lr": 0.0, "batch_size": 7}
    given = {"X": X[rows], "y": Y[rows], "masks": [MASKS[i] for i in rows]}
    clf = classifier(**options)
    clf.fit(X[rest], Y[rest], masks=[MASKS[i] for i in rest], validation=given)
    of_split = classifier(**options, train_split=split).fit(X, Y, masks=MASKS)
    names = [name for name in of_split.history[-1] if name.startswith("valid_")]
    assert "valid_energy" in names
    for name in names:
        assert clf.history[-1, name] == pytest.approx(of_split.history[-1, name], rel=1e-6)


def test_masks_are_resized_as_their_images_are_for_prediction():
    large = np.stack([np.kron(image, np.ones((4, 2))) for image in X[:3]])  # 64 x 32
    masks = [np.zeros((64, 32), bool) for _ in large]
    masks[0][8:56] = True
    masks[1][:32, :16] = True
    masks[2][:8] = True
    boxes = [[[0, 8, 32, 56]], [[0, 0, 16, 32]], [[0, 0, 32, 8]]]
    for given in ({"masks": masks}, {"boxes": boxes}):
        for n in (1, 2, 3):
            some = {name: each[:n] for name, each in given.items()}
            clf = classifier(terms=[Area()], resize="center_crop", lr=0.0).fit(
                X, Y, masks=INK, validation={"X": large[:n], "y": Y[:n], **some}
            )
            expected = np.mean([1.0, 0.25, 0.0][:n])  # of the middle half
            assert clf.history[-1, "valid_area"] == pytest.approx(expected, abs=1e-6)


def test_a_term_on_masks_is_monitored_in_validation():
    stop = EarlyStopping("valid_energy", patience=1, threshold=9.0, sink=str)
    clf = fitted({"masks": MASKS[VALID]}, callbacks=[stop], max_epochs=5)
    assert len(clf.history) == 2
    clf.set_params(callbacks=[])
    clf.partial_fit(
        X[TRAIN], Y[TRAIN], masks=INK[TRAIN],
        validation={"X": X[VALID], "y": Y[VALID], "boxes": BOXES},
    )  # fmt: skip
    assert clf.history[-1, "valid_energy"] == pytest.approx(by_hand(clf, OF_BOXES), rel=1e-5)


def test_a_dict_may_hold_images_and_labels_alone():
    options = {"lr": 0.0, "max_epochs": 1}
    given = {"X": X[VALID], "y": Y[VALID]}
    named = classifier(**options).fit(X[TRAIN], Y[TRAIN], validation=given)
    pair = classifier(**options).fit(X[TRAIN], Y[TRAIN], validation=(X[VALID], Y[VALID]))
    assert named.history[-1, "valid_loss"] == pair.history[-1, "valid_loss"]


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"gamma": 0.3, "mask_loss": "rrr"}])
def test_masks_that_no_term_in_validation_looks_at_are_warned_of(options):
    given = {"X": X[VALID], "y": Y[VALID], "masks": INK[VALID]}
    masks = INK[TRAIN] if options["gamma"] else None
    with pytest.warns(UserWarning, match="validation: masks and boxes are not used"):
        clf = classifier(**options).fit(X[TRAIN], Y[TRAIN], masks=masks, validation=given)
    assert "valid_loss" in clf.history[-1]


REFUSED = {
    "too few": ({"masks": INK[:7]}, "validation: masks must have one entry for each of 20 images"),
    "another size": ({"masks": INK[VALID, :9]}, r"validation: masks\[0\] must be of its image's"),
    "no shares": ({"masks": INK[VALID] * 2.0}, r"validation: masks\[0\] must be bool, .* in \[0"),
    "of no image": ({"masks": [None] * 20}, "validation: None of the images has a mask or a box"),
    "no box": ({"boxes": [None] * 19 + [[]]}, "validation: None of the images has a mask or a box"),
    "beside the image": ({"boxes": [[[16, 0, 18, 4]]] * 20}, r"validation: boxes\[0\] lie outside"),
    "too many boxes": ({"boxes": BOXES * 2}, "validation: boxes must have one entry .* 20 images"),
    "both": ({"boxes": BOXES, "masks": INK[VALID]}, "validation: Image 0 has both a mask and"),
    "weights": ({"sample_weight": np.ones(20)}, "validation may be given by name, .* no other"),
    "no images": ({"X": None}, "validation may be given by name"),
    "no labels": ({"y": None}, "validation: requires y"),
}


@pytest.mark.parametrize("kind", [*REFUSED])
def test_what_does_not_fit_is_refused(kind):
    given, match = REFUSED[kind]
    with pytest.raises(ValueError, match=match):
        fitted(given)


def test_masks_as_a_third_entry_are_asked_for_by_name():
    with pytest.raises(ValueError, match="Masks and boxes are given by name, validation="):
        classifier(gamma=0.3).fit(X, Y, masks=MASKS, validation=(X, Y, MASKS))
