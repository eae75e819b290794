"""Tables of figures, as a notebook shows them and as text.

They take the notebook's colours, dark or light, and mark rows only by signs and bold type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from sklearn.utils import Bunch

from sklcam.metrics.registry import metric_of_row, row_meaning
from sklcam.metrics.verdicts import CLEAR, verdict

if TYPE_CHECKING:
    from sklcam.metrics.summary import Evaluation

_MOST_RESAMPLED = 10_000  # images
_STYLE = "text-align:right; white-space:nowrap; padding:0.2em 0.7em"
_LEFT = "text-align:left; white-space:nowrap; padding:0.2em 0.7em"


def direction(name: str) -> str:
    """Return an arrow and a word for which values of a metric are good; "" if unknown.

    Parameters
    ----------
    name : str
        The name of a row of a :class:`Summary`.
    """
    metric = metric_of_row(name)
    if metric is None:
        return ""
    return "\u2191 higher" if metric.higher_is_better else "\u2193 lower"


def _verdict(name: str, row: Bunch) -> str:
    metric = metric_of_row(name)
    return verdict(row, None if metric is None else metric.higher_is_better)


def table_of_evaluation(evaluation: Evaluation) -> str | None:
    """Return the table of an evaluation's summary; None if it has none.

    For very many images it has no intervals: they take seconds, and a table is shown unasked.
    """
    lengths = {len(values) for values in evaluation.values()}
    if len(lengths) != 1:
        return None  # summary says what is wrong
    (n_images,) = lengths
    groups = "".join(f", in groups by {name!r}" for name in evaluation.groups)
    notes = [f"{n_images} images{groups}. result[name] holds a value for each of them."]
    if n_images <= _MOST_RESAMPLED:
        return table_of_summary(evaluation.summary(), notes)
    rows = evaluation.summary(n_resamples=1)
    for row in rows.values():
        row.low = row.high = float("nan")
    notes.append("Intervals of so many images take a while: result.summary() has them.")
    return table_of_summary(rows, notes)


def text_of_summary(rows: Mapping[str, Bunch], *, is_difference: bool) -> list[str]:
    """Return the lines of a table with a row for each metric; see :func:`table_of_summary`."""
    width = max(map(len, rows), default=0)
    head = "difference" if is_difference else "mean"
    lines = [f"{'':{width}}{head:>10}{'std':>10}   interval"]
    for name, row in rows.items():
        line = f"{name:{width}}{row.mean:10.4f}{row.std:10.4f}   {_interval(row)}"
        if is_difference and (word := _verdict(name, row)) in CLEAR:
            line = f"{line:{width + 41}}   the first is {word}"
        lines.append(line)
    return lines


def table_of_summary(
    rows: Mapping[str, Bunch], notes: Iterable[str], *, is_difference: bool = False
) -> str:
    """Return a table with a row for each metric.

    Parameters
    ----------
    rows : mapping of str to Bunch
        The rows of a :class:`Summary`.
    notes : iterable of str
        Sentences under the table.
    is_difference : bool
        Whether they are differences of two evaluations, the first less the second.
    """
    heads = ["", "better", "difference" if is_difference else "mean", "std", "interval"]
    body = []
    for name, row in rows.items():
        cells = [direction(name), f"{row.mean:.4f}", f"{row.std:.4f}", _interval(row)]
        is_sure = False
        if is_difference:
            word = _verdict(name, row)
            is_sure = word in CLEAR
            cells.append(f"\u25cf {word}" if is_sure else word)
        body.append(_row(name, cells, title=_meaning(name), bold=is_sure))
    if is_difference:
        heads.append("the first is")
        notes = [
            *notes,
            "\u25cf The interval does not contain 0: the difference is more than chance.",
        ]
    return _table(heads, body, notes)


def table_of_groups(
    tables: Mapping[str, Mapping[str, Bunch]], gaps: Mapping[str, Bunch], n_groups: int
) -> str:
    """Return a table with a row for each group, and one of the largest gaps between two.

    Parameters
    ----------
    tables : mapping of str to Summary
        The groups' tables and, last, that of the mean over them.
    gaps : mapping of str to Bunch
        The gaps of a :class:`GroupedSummary`.
    n_groups : int
        How many groups there are; the rows after them are in bold.
    """
    columns = [*next(iter(tables.values()), {})]
    heads = ["", "n", *(f"{name} {direction(name)[:1]}".strip() for name in columns)]
    body = []
    for i, (group, table) in enumerate(tables.items()):
        n_images = max((row.n + row.n_missing for row in table.values()), default=0)
        cells = [f"{row.mean:.4f} \u00b1 {row.sem:.4f}" for row in table.values()]
        body.append(_row(group, [str(n_images), *cells], bold=i >= n_groups))
    found = _table(heads, body, ())
    known = {name: gap for name, gap in gaps.items() if gap.groups is not None}
    if not known:
        return found
    rows = []
    for name, gap in known.items():
        is_sure = _verdict(name, gap) in CLEAR
        mark = "\u25cf excludes 0" if is_sure else ""
        cells = [*map(str, gap.groups), f"{gap.mean:.4f}", _interval(gap), mark]
        rows.append(_row(name, cells, bold=is_sure))
    return found + _table([*_GAP_HEADS], rows, (), shift=True)


_GAP_HEADS = ("largest gap", "highest", "lowest", "difference", "interval", "")


def _interval(row: Bunch) -> str:
    return f"{row.low:.4f} .. {row.high:.4f}"


def _meaning(name: str) -> str:
    return row_meaning(name) if metric_of_row(name) is not None else ""


def _row(name: str, cells: Sequence[str], *, title: str = "", bold: bool = False) -> str:
    hint = f' title="{escape(title)}"' if title else ""
    weight = "; font-weight:bold" if bold else ""
    inner = "".join(f'<td style="{_STYLE}{weight}">{escape(cell)}</td>' for cell in cells)
    return f'<tr><th scope="row" style="{_LEFT}{weight}"{hint}>{escape(str(name))}</th>{inner}</tr>'


def _table(
    heads: Sequence[str], body: Sequence[str], notes: Iterable[str], *, shift: bool = False
) -> str:
    columns = "".join(
        f'<th scope="col" style="{_LEFT if i == 0 else _STYLE}">{escape(head)}</th>'
        for i, head in enumerate(heads)
    )
    below = "".join(f"<p>{escape(note)}</p>" for note in notes)
    margin = ' style="margin-top:0.8em"' if shift else ""
    rows = "".join(body)
    return f"<table{margin}><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>{below}"
