"""Tables that a notebook shows: the figures of the text, directions, and marks of differences."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from sklcam.metrics import Evaluation, _tables, compare


def cells(html):
    """Return the text of each row of all tables, and what is said below them."""
    found = ElementTree.fromstring(f"<div>{html}</div>")
    rows = [["".join(cell.itertext()) for cell in row] for row in found.iter("tr")]
    return rows, ["".join(each.itertext()) for each in found.iter("p")]


def figures(text):
    return re.findall(r"-?\d+\.\d{4}|nan", text)


def text_of(rows):
    return " ".join(cell for row in rows for cell in row)


def evaluation(shift=0.0, **others):
    drawn = np.random.default_rng(0).random((3, 20))
    named = {"adcc": drawn[0] + shift, "complexity": drawn[1] + shift, "<i>&": drawn[2] - shift}
    return Evaluation(None, None, others, **named)


def test_a_summary_has_the_figures_of_its_text_and_directions():
    summary = evaluation().summary()
    rows, notes = cells(summary._repr_html_())
    assert rows[0] == ["", "better", "mean", "std", "interval"] and not notes
    assert [row[:2] for row in rows[1:]] == [
        *(["adcc", "↑ higher"], ["complexity", "↓ lower"], ["<i>&", ""])
    ]
    assert figures(text_of(rows)) == figures(repr(summary))


def test_an_evaluation_is_a_line_among_others():
    values = Evaluation(adcc=np.array([0.25, 0.5]), complexity=np.array([0.5, np.nan]))
    expected = "{'a': <Evaluation of 2 images: adcc 0.3750, complexity nan>}"
    assert repr({"a": values}) == expected
    assert repr(Evaluation()) == "{}"


def test_what_is_said_under_the_text_is_said_under_the_table():
    values = np.array([0.5, np.nan, 0.7])
    meanings = {"localization_accuracy": "<b>"}
    summary = Evaluation(meanings, pointing_game=values).summary()
    rows, notes = cells(summary._repr_html_())
    assert len(rows) == 2
    assert notes == ["pointing_game: 1 images have no finite value", "localization_accuracy: <b>"]


def test_a_difference_that_is_more_than_chance_is_marked():
    noise = np.random.default_rng(1).normal(scale=0.01, size=20)
    first, second = evaluation(0.2), evaluation()
    first["noise"], second["noise"] = noise, np.zeros(20)
    difference = compare(first, second)
    rows, notes = cells(difference._repr_html_())
    assert rows[0][2] == "difference"
    verdicts = {row[0]: row[-1] for row in rows[1:]}
    assert verdicts == {
        "adcc": "● better",
        "complexity": "● worse",
        "<i>&": "● lower",
        "noise": "no clear difference",
    }
    assert "more than chance" in notes[-1]
    head, *lines = repr(difference).splitlines()
    assert head.split() == ["difference", "std", "interval"]
    ends = {line.split()[0]: line.split("   ")[-1].strip() for line in lines}
    assert ends.pop("noise").count("..") == 1
    words = {"adcc": "better", "complexity": "worse", "<i>&": "lower"}
    assert ends == {name: f"the first is {word}" for name, word in words.items()}
    swapped, _ = cells(compare(second, first)._repr_html_())
    assert [row[-1] for row in swapped[1:4]] == ["● worse", "● better", "● higher"]
    assert figures(text_of(rows)) == figures(repr(difference))
    # An interval of nothing says nothing, nor does one that ends at 0.
    none = "no clear difference"
    for low, high, word in ((np.nan, np.nan, "unknown"), (0.0, 1.0, none), (-1.0, 0.0, none)):
        difference["adcc"].update(low=low, high=high)
        assert cells(difference._repr_html_())[0][1][-1] == word


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_groups_have_their_means_and_the_largest_gaps(shift):
    values = np.random.default_rng(0).random(20)
    values[10:] += shift
    groups = np.array(["<a>"] * 10 + ["b"] * 10)
    summary = Evaluation(adcc=values).summary(by=groups)
    rows, _ = cells(summary._repr_html_())
    assert [row[0] for row in rows] == ["", "<a>", "b", "mean of 2", "largest gap", "adcc"]
    assert rows[0] == ["", "n", "adcc ↑"]
    assert figures(text_of(rows)) == figures(repr(summary))
    gap = summary.gaps["adcc"]
    assert rows[-1][1:3] == list(gap.groups)
    assert rows[-1][-1] == ("● excludes 0" if shift else "")


def test_one_group_has_no_gap():
    rows, _ = cells(Evaluation(adcc=np.ones(3)).summary(by=[0, 0, 0])._repr_html_())
    assert [row[0] for row in rows] == ["", "0", "mean of 1"]


def test_an_evaluation_shows_its_summary_and_groups(monkeypatch):
    result = evaluation(camera=np.array(["old", "new"] * 10))
    rows, notes = cells(result._repr_html_())
    assert rows == cells(result.summary()._repr_html_())[0]
    assert notes[-1].startswith("20 images, in groups by 'camera'")
    assert Evaluation()._repr_html_() is None
    assert Evaluation(a=np.ones(2), b=np.ones(3))._repr_html_() is None
    monkeypatch.setattr(_tables, "_MOST_RESAMPLED", 10)
    many, notes = cells(result._repr_html_())
    assert [row[:4] for row in many] == [row[:4] for row in rows]
    assert {row[-1] for row in many[1:]} == {"nan .. nan"} and "result.summary()" in notes[-1]


def test_tables_take_the_colours_of_the_notebook():
    html = evaluation()._repr_html_() + compare(evaluation(1), evaluation())._repr_html_()
    assert "color" not in html and "background" not in html
