"""A paper's table beside ours, as text and as reStructuredText, and the verdicts on its claims.

Measurements are kept in a file with one JSON object per line. The claims of all papers are in one
table of the docs, ``docs/explanation/claims.csv``, which the programs write with ``--claims``.
"""

from __future__ import annotations

import csv
import io
import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from joblib import Parallel, delayed


class Keyed(Protocol):
    """What is measured, with a key that holds everything the measures depend on."""

    @property
    def key(self) -> str: ...


RunT = TypeVar("RunT", bound=Keyed)


class Results(Generic[RunT]):
    """Measures by run, in a file that grows by one line per run, so interrupted programs resume.

    ``measured`` returns a run with its measures, and ``told`` the text that is printed about them.
    """

    def __init__(
        self,
        path: Path | None,
        measured: Callable[[RunT], tuple[RunT, dict[str, Any]]],
        told: Callable[[RunT, dict[str, Any]], str],
    ):
        self.path = path
        self._measured, self._told = measured, told
        self._known: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            for line in path.read_text("utf-8").splitlines():
                entry = json.loads(line)
                self._known[entry["key"]] = entry["measures"]

    def __contains__(self, run: RunT) -> bool:
        return run.key in self._known

    def __getitem__(self, run: RunT) -> dict[str, Any]:
        return self._known[run.key]

    def complete(self, runs: Iterable[RunT], jobs: int = 1) -> None:
        """Measure the runs that are not known yet, and print a line about each."""
        missing = list({run.key: run for run in runs if run.key not in self._known}.values())
        done = Parallel(n_jobs=jobs, return_as="generator_unordered")(
            delayed(self._measured)(run) for run in missing
        )
        for run, measures in done:
            self._known[run.key] = measures
            print(self._told(run, measures), flush=True)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": run.key, "measures": measures}) + "\n")


@dataclass
class Claim:
    """A paper's claim, as a number that is above 0 if the claim is true, with an interval."""

    text: str
    value: float
    low: float
    high: float
    unit: str = "points"
    n_images: int | None = None  # shown if these may be too few

    @property
    def verdict(self) -> str:
        if self.value == self.low == self.high == 0:
            return "no image differs"
        if self.low > 0:
            return "holds"
        if self.high < 0:
            return "does not hold"
        return "cannot be told" + (f" from {self.n_images} images" if self.n_images else "")

    def row(self) -> tuple[str, ...]:
        return (
            self.text,
            f"{self.value:+.1f} {self.unit}",
            f"{self.low:+.1f} to {self.high:+.1f}",
            self.verdict,
        )


@dataclass
class Table:
    """Rows of text under a title, with the claims that they test."""

    title: str
    header: Sequence[str]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        assert len(cells) == len(self.header), cells
        self.rows.append(cells)

    def text(self) -> str:
        rows = [tuple(self.header), *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.header))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows
        ]
        return "\n".join([self.title, *(line.rstrip() for line in lines)])

    def rst(self) -> str:
        lines = [f".. list-table:: {self.title}", "   :header-rows: 1", ""]
        for row in [tuple(self.header), *self.rows]:
            marks = ["   * - ", *["     - "] * (len(row) - 1)]
            lines += [(mark + cell).rstrip() for mark, cell in zip(marks, row, strict=True)]
        return "\n".join(lines)


CLAIM = ("claim", "measured", "interval of 95 %", "verdict")


def claims_table(tables: Sequence[Table]) -> Table:
    """Collect the claims of several tables in one."""
    found = Table("Claims", [*CLAIM])
    for table in tables:
        for claim in table.claims:
            found.add(*claim.row())
    return found


def publish(tables: Sequence[Table], options: Namespace, paper: str) -> None:
    """Print tables; write them, and the verdicts on a paper's claims, to the requested files."""
    tables = [*tables, *([claims_table(tables)] if any(table.claims for table in tables) else [])]
    for table in tables:
        print(f"\n{table.text()}", flush=True)
    if options.rst is not None:
        write_whole(options.rst, "\n\n".join(table.rst() for table in tables) + "\n")
    if options.claims is not None:
        record([claim for table in tables for claim in table.claims], options.claims, paper)


def record(claims: Sequence[Claim], file: Path, paper: str) -> None:
    """Put a paper's claims into the table of all claims, in place of its earlier claims."""
    rows = [["paper", *CLAIM]]
    if file.exists():
        with file.open(encoding="utf-8", newline="") as known:
            rows = list(csv.reader(known))
    for claim in claims:
        row = [paper, *claim.row()]
        places = [i for i, other in enumerate(rows) if other[0] == paper]
        same = [i for i in places if rows[i][1] == claim.text]
        if same:
            rows[same[0]] = row
        else:
            rows.insert(places[-1] + 1 if places else len(rows), row)
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows(rows)
    write_whole(file, written.getvalue())


def write_whole(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.part")
    unfinished.write_text(text, "utf-8")
    os.replace(unfinished, file)


def parser_of(
    doc: str,
    quick: Mapping[str, Any],
    full: Mapping[str, Any],
    docs: Mapping[str, Any] | None = None,
) -> ArgumentParser:
    """Return a parser with the options of all programs for tables.

    ``quick``, ``docs`` and ``full`` are the values of options that are not given: for minutes on
    two cores, for the figures in the docs, which take hours on two cores, and for the paper's
    setting. Without ``docs``, the quick values are also those of the docs.
    """
    parser = ArgumentParser(description=doc.splitlines()[0])
    scale = parser.add_mutually_exclusive_group(required=True)
    scales = {
        "--quick": (quick, "minutes on two cores, to see that it runs"),
        "--docs": (docs, "the setting of the figures in the docs; hours on two cores"),
        "--full": (full, "the paper's setting, for a GPU"),
    }
    for option, (values, meaning) in scales.items():
        if values is not None:
            scale.add_argument(
                option, action="store_const", dest="scale", const=values, help=meaning
            )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="also write reStructuredText")
    parser.add_argument(
        "--claims",
        type=Path,
        metavar="FILE",
        help="also put the claims into this table of all claims",
    )
    return parser


def options_of(parser: ArgumentParser, arguments: Sequence[str] | None) -> Namespace:
    """Return the given options, those of the scale for the others, and a definite device."""
    options = parser.parse_args(arguments)
    for name, value in options.scale.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def interval_of(
    statistic: Callable[..., float], *columns: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Return a statistic of values by image, and its 95 % interval by bootstrap over the images.

    The columns are resampled together, as they belong to the same images.
    """
    columns = tuple(np.asarray(column, dtype=float) for column in columns)
    rng = np.random.default_rng(seed)
    n = len(columns[0])
    resampled = (rng.integers(n, size=n) for _ in range(2000))
    values = [statistic(*(column[rows] for column in columns)) for rows in resampled]
    low, high = np.percentile(values, (2.5, 97.5))
    return float(statistic(*columns)), float(low), float(high)
