"""What only some epochs have, or none: known before the first, and an empty cell in the log."""

from __future__ import annotations

import numpy as np
import pytest
from classifiers import X, Y, classifier
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, LoadInitState, LRScheduler
from skorch.dataset import ValidSplit
from torch.utils.data import DataLoader, Sampler

from sklcam.training import WarmUp

MASKS = list(X > 0.4)
TERMS = {"beta": 0, "augment": None, "recalibrate": False, "max_epochs": 5}  # of three steps
VALID = {"validation": (X[:20], Y[:20])}


class Starts(Callback):
    """Counts the epochs that began."""

    n_epochs = 0

    def on_epoch_begin(self, net, **kwargs):
        self.n_epochs += 1


def stop(monitor):
    return EarlyStopping(monitor)


def keep(monitor):
    return Checkpoint(monitor, f_params=None, f_optimizer=None, f_criterion=None, f_history=None)


def plateau(monitor):
    return LRScheduler("ReduceLROnPlateau", monitor=monitor)


MONITORED = {
    "every": (stop, "train_inconsistency", {"every": 5}, {}, "epoch 3 .* 3 step.* Set every to 3"),
    "every, the best": (
        keep,
        "train_inconsistency_best",
        {"every": 4},
        {},
        "epoch 4 does not have",
    ),
    "every, a balanced weight": (stop, "train_alpha", {"every": 5, "alpha": "auto"}, {}, "epoch 3"),
    "a schedule": (
        stop,
        "train_inconsistency",
        {"alpha": WarmUp(1.0, 2, wait=3)},
        {},
        "alpha is 0",
    ),
    "a schedule, in validation": (
        *(plateau, "valid_inconsistency", {"alpha": WarmUp(1.0, 2, wait=3)}, VALID),
        "epoch 1 does not have: alpha is 0.0 there. .* 'valid_loss'",
    ),
    "a weight that is a number at times": (
        *(stop, "train_alpha", {"alpha": lambda epoch: "auto" if epoch else 1.0}, {}),
        "epoch 1 does not have: alpha is 1.0 there",
    ),
    "a schedule that ends": (
        *(stop, "train_inconsistency", {"alpha": lambda epoch: float(epoch < 4)}, {}),
        "epoch 5 does not have",
    ),
    "masks": (
        *(plateau, "valid_energy", {"gamma": 1.0}, {"masks": MASKS, **VALID}),
        'needs masks or boxes, and no image to validate on has any. .* validation={"X"',
    ),
    "masks of other images": (
        *(stop, "valid_energy", {"gamma": 1.0, "train_split": ValidSplit(3, stratified=False)}),
        {"masks": [None] * 20 + MASKS[20:]},
        "no image to validate on has any",
    ),
    "masks of some, at times": (
        *(stop, "train_energy", {"gamma": 1.0, "every": 2}, {"masks": [None, *MASKS[1:]]}),
        "an epoch may lack: with every=2",
    ),
    "pixels": (
        *(stop, "valid_rrr", {"gamma": 1.0, "mask_loss": "rrr"}, {"masks": MASKS, **VALID}),
        "gradient at the pixels, .* Monitor 'train_rrr'",
    ),
    "a term that weighs nothing": (
        *(stop, "train_norm", {"alpha": 1.0, "beta": 0}, {}),
        "is not recorded. Did you mean",
    ),
    "a schedule that is 0": (
        *(stop, "train_inconsistency", {"alpha": WarmUp(1.0, wait=9)}, {}),
        "is not recorded. Did you mean",
    ),
}


@pytest.mark.parametrize("kind", [*MONITORED])
def test_it_is_not_monitored(kind):
    callback, monitor, options, data, match = MONITORED[kind]
    starts = Starts()  # may record what it likes, but not these
    clf = classifier(**{**TERMS, **options}, callbacks=[starts, callback(monitor)])
    with pytest.raises(ValueError, match=f"monitors '{monitor}', which .*{match}"):
        clf.fit(X, Y, **data)
    assert starts.n_epochs == 0


FINE = {
    "three steps": (stop, "train_inconsistency", {"every": 3}, {}),
    "in validation": (stop, "valid_inconsistency", {"every": 5}, VALID),
    "its weight grows": (stop, "train_inconsistency", {"alpha": WarmUp(1.0, 2)}, {}),
    "a loss": (keep, "train_loss_best", {"every": 5, "alpha": WarmUp(1.0, wait=3)}, {}),
    "a split that has masks": (
        *(stop, "valid_energy", {"gamma": 1.0, "train_split": ValidSplit(3)}, {"masks": MASKS}),
    ),
    "masks of a term in training": (stop, "train_energy", {"gamma": 1.0}, {"masks": MASKS}),
    "masks of some": (stop, "train_energy", {"gamma": 1.0}, {"masks": [MASKS[0]] + [None] * 59}),
    "masks of all, at times": (stop, "train_energy", {"gamma": 1.0, "every": 2}, {"masks": MASKS}),
    "pixels in training": (
        *(
            stop,
            "train_rrr",
            {"gamma": 1.0, "mask_loss": "rrr", "max_epochs": 1},
        ),
        {"masks": MASKS},
    ),
}


@pytest.mark.parametrize("kind", [*FINE])
def test_what_all_epochs_have_is(kind):
    callback, monitor, options, data = FINE[kind]
    clf = classifier(**{**TERMS, "max_epochs": 2, **options}, callbacks=[callback(monitor)])
    clf.fit(X, Y, **data)
    assert all(monitor in row for row in clf.history)


def test_steps_are_counted_on_in_partial_fit():
    clf = classifier(every=4, **{**TERMS, "max_epochs": 2}).fit(X, Y)  # steps 0 and 4, of 0 to 5
    clf.set_params(callbacks=[stop("train_inconsistency")], max_epochs=1)
    clf.partial_fit(X, Y)  # 8, of 6 to 8
    with pytest.raises(ValueError, match="which epoch 4 does not have"):
        clf.set_params(max_epochs=2).partial_fit(X, Y)  # 12, of 9 to 11 and 12 to 14
    assert len(clf.history) == 3  # and not the beginning of another
    clf.set_params(callbacks=[]).partial_fit(X, Y)
    assert ["train_inconsistency" in row for row in clf.history] == [True] * 3 + [False, True]


class Unsized(Sampler):
    def __init__(self, data):
        self.n = len(data)

    def __iter__(self):
        yield from range(self.n)


def unsized(dataset, shuffle=None, **options):
    return DataLoader(dataset, sampler=Unsized(dataset), **options)


def test_where_nobody_knows_how_many_steps_there_are():
    clf = classifier(every=2, iterator_train=unsized, callbacks=[stop("train_norm")], max_epochs=1)
    with pytest.raises(ValueError, match="a loader that does not say how many steps an epoch has"):
        clf.fit(X, Y)
    with pytest.warns(match="every=9 made terms part of the first step only, as there were 3"):
        classifier(every=9, iterator_train=unsized).fit(X, Y)


def test_terms_that_no_second_step_would_have():
    with pytest.raises(
        ValueError, match=r"one step in 16, .* there are 15 in all, .* Set every to 3"
    ):
        classifier(every=16, **TERMS).fit(X, Y)
    classifier(every=16, **{**TERMS, "alpha": 0}).fit(X, Y)  # there are none
    clf = classifier(every=4, **{**TERMS, "max_epochs": 1}).partial_fit(X, Y)
    clf.partial_fit(X, Y)  # of as much as comes at a time
    assert ["train_inconsistency" in row for row in clf.history] == [True, True]


def test_a_run_that_starts_again_counts_on(tmp_path):
    def one_epoch():
        keep = Checkpoint(monitor=None, dirname=str(tmp_path))
        options = {**TERMS, "max_epochs": 1, "every": 3 if not [*tmp_path.iterdir()] else 5}
        return classifier(callbacks=[keep, LoadInitState(keep)], **options).fit(X, Y)

    assert len(one_epoch().history) == 1
    clf = one_epoch()  # steps 3 to 5, of 6 in all
    assert ["train_inconsistency" in row for row in clf.history] == [True, True]


def columns(text):
    """Return the tables of a log: their headings, and rows of cells under these."""
    tables, ends = [], []
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("-"):
            continue
        if i + 1 < len(lines) and lines[i + 1].startswith("-"):
            ends = np.cumsum([len(dashes) + 2 for dashes in lines[i + 1].split("  ")]).tolist()
            tables.append(([], []))
            tables[-1][0].extend(cells(line, ends))
        else:
            tables[-1][1].append(cells(line, ends))
    return tables


def cells(line, ends):
    return [line[start:end].strip() for start, end in zip([0, *ends], ends, strict=False)]


def test_what_an_epoch_lacks_is_an_empty_cell(capsys):
    clf = classifier(every=5, verbose=1, **TERMS).fit(X, Y)
    ((names, rows),) = columns(capsys.readouterr().out)
    assert len(rows) == 5 and "train_inconsistency" in names
    for row, found in zip(clf.history, rows, strict=True):
        for name in ("train_ce", "train_inconsistency", "train_loss", "train_accuracy"):
            value = row.get(name)
            shown = found[names.index(name)]
            assert shown == "" if value is None else float(shown) == pytest.approx(value, abs=1e-4)
    assert [row[names.index("train_inconsistency")] == "" for row in rows] == [
        *(False, False, True, False, True)
    ]


def test_what_a_later_epoch_has_comes_with_a_new_heading(capsys):
    clf = classifier(verbose=1, **{**TERMS, "alpha": WarmUp(1.0, 1, wait=2), "max_epochs": 3})
    clf.fit(X, Y).set_params(max_epochs=1).partial_fit(X, Y, validation=(X, Y))
    clf.partial_fit(X, Y)
    tables = columns(capsys.readouterr().out)
    assert [len(rows) for _, rows in tables] == [2, 1, 2]
    assert ["train_inconsistency" in names for names, _ in tables] == [False, True, True]
    names, rows = tables[-1]
    shown = [row[names.index("valid_accuracy")] for row in rows]
    assert float(shown[0]) == pytest.approx(clf.history[3, "valid_accuracy"], abs=1e-4)
    assert shown[1] == ""
