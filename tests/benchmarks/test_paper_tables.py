"""What the programs of tables share: claims, and the one table of all of them."""

from __future__ import annotations

import csv
import re
from argparse import Namespace
from pathlib import Path

import pytest

CLAIMS = Path(__file__).parents[2] / "docs" / "explanation" / "claims.csv"
HEADER = ["paper", "claim", "measured", "interval of 95 %", "verdict"]


def test_claims_go_where_the_same_ones_were(tmp_path, capsys):
    from paper_tables import Claim, Table, publish

    file = tmp_path / "claims.csv"
    before = [
        HEADER,
        ["A", "it rises, much", "+9.0 points", "+8.0 to +10.0", "holds"],
        ["A", "it stays", "+0.0 points", "-1.0 to +1.0", "cannot be told"],
        ["B", "it rises, much", "+3.0 points", "+2.0 to +4.0", "holds"],
    ]
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows(before)
    table = Table("Title", ["one"], claims=[Claim("it rises, much", -2, -3, -1, n_images=7)])
    table.claims.append(Claim("it falls", 2, -1, 5, "hundredths", n_images=7))
    publish([table], Namespace(rst=None, claims=file), "A")
    with file.open(encoding="utf-8", newline="") as opened:
        after = list(csv.reader(opened))
    assert after == [
        before[0],
        ["A", "it rises, much", "-2.0 points", "-3.0 to -1.0", "does not hold"],
        before[2],
        ["A", "it falls", "+2.0 hundredths", "-1.0 to +5.0", "cannot be told from 7 images"],
        before[3],
    ]
    publish([table], Namespace(rst=None, claims=file), "C")  # a paper that was not there
    with file.open(encoding="utf-8", newline="") as opened:
        assert [row[0] for row in csv.reader(opened)] == ["paper", *"AAABCC"]
    assert capsys.readouterr().out.count("it rises, much") == 2
    new = tmp_path / "new" / "claims.csv"  # where there is none
    publish([table], Namespace(rst=None, claims=new), "A")
    with new.open(encoding="utf-8", newline="") as opened:
        assert list(csv.reader(opened)) == [HEADER, after[1], after[3]]


def claims_of_the_docs():
    with CLAIMS.open(encoding="utf-8", newline="") as opened:
        header, *rows = csv.reader(opened)
    assert header == HEADER
    return rows


@pytest.mark.parametrize("row", claims_of_the_docs(), ids=lambda row: f"{row[0]}: {row[1]}")
def test_verdicts_of_the_docs_are_those_of_their_intervals(row):
    _, _, measured, interval, verdict = row
    value = float(measured.split()[0])
    low, high = map(float, re.fullmatch(r"([+-]\d+\.\d) to ([+-]\d+\.\d)", interval).groups())
    assert low <= value <= high
    if verdict == "no image differs":
        assert value == low == high == 0
    elif low > 0:
        assert verdict == "holds"
    elif high < 0:
        assert verdict == "does not hold"
    elif 0 not in (low, high):  # of a bound that was rounded to 0, the side is not known
        assert verdict.startswith("cannot be told")


def test_no_claim_of_the_docs_is_there_twice():
    claims = [tuple(row[:2]) for row in claims_of_the_docs()]
    assert len(claims) == len(set(claims))
