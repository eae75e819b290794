"""What training shows: one bar for the fit, a log without codes, nothing with verbose=0."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from classifiers import X, Y, classifier
from skorch.callbacks import TensorBoard

PLAIN = {"alpha": 0, "beta": 0, "augment": None, "recalibrate": False, "max_epochs": 3}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fit_on_a_terminal(**options):
    with redirect_stdout(Terminal()) as out, redirect_stderr(Terminal()) as err:
        classifier(**PLAIN, **options).fit(X, Y, validation=(X, Y))
    return out.getvalue(), err.getvalue()


def test_one_bar_for_the_whole_fit_with_the_time_left():
    out, err = fit_on_a_terminal(verbose=1)
    shown = [each for each in err.split("\r") if "/" in each]
    assert shown and all("/18 " in each for each in shown)  # 3 epochs of 3 + 3 batches
    assert "<" in shown[-1]  # elapsed<remaining
    assert "\x1b[36m" in out  # the log has its colours on a screen
    assert len(out.splitlines()) == 5


def test_no_bar_and_no_codes_without_a_terminal(capsys):
    clf = classifier(verbose=1, **PLAIN).fit(X, Y, validation=(X, Y))
    out, err = capsys.readouterr()
    assert "\x1b" not in out and not err
    lines = out.splitlines()
    assert len(lines) == 5 and "valid_accuracy" in lines[0]
    assert f"{clf.history[0, 'train_loss']:.4f}" in lines[2]
    assert all(row.keys() == clf.history[0].keys() for row in clf.history)


def test_verbose_0_is_silent_on_a_terminal_as_well():
    assert fit_on_a_terminal() == ("", "")


def test_the_history_as_a_table():
    pandas = pytest.importorskip("pandas")
    clf = classifier(**PLAIN | {"max_epochs": 2}).fit(X, Y, validation=(X, Y))
    table = clf.history_frame_
    assert isinstance(table, pandas.DataFrame) and len(table) == 2
    assert list(table["epoch"]) == [1, 2] and "batches" not in table
    for name in ("train_loss", "valid_accuracy"):
        np.testing.assert_array_equal(table[name], clf.history[:, name])


class Writer:
    """Takes what torch's SummaryWriter takes."""

    def __init__(self):
        self.scalars = []

    def add_scalar(self, tag, scalar_value, global_step):
        self.scalars.append((tag, scalar_value, global_step))

    def close(self):
        pass


def test_tensorboard_by_skorchs_callback():
    writer = Writer()
    clf = classifier(callbacks=[TensorBoard(writer)], **PLAIN).fit(X, Y, validation=(X, Y))
    written = {(tag, step): value for tag, value, step in writer.scalars}
    for name in ("train_accuracy", "valid_accuracy", "valid_loss"):
        values = [written[f"Loss/{name}", step] for step in (1, 2, 3)]
        assert values == clf.history[:, name]
