"""The paper's table of how people judge explanations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sklcam._validation import describe
from sklcam.study.analysis import StudyResult

_COLUMNS = {"class": "human_accuracy", "reliability": "relative_reliability"}
_HEADS = {
    "human_accuracy": "Human classification accuracy",
    "relative_reliability": "Relative reliability",
}


class StudyTable(list[dict[str, Any]]):
    """A row for each method; made by :func:`table`.

    Each row is a dict with the ``method`` and, for each study, the mean and the ends of its
    interval: ``human_accuracy``, ``human_accuracy_low`` and ``human_accuracy_high``, from 0 to 1,
    and ``relative_reliability`` likewise, from -2 to 2. A value is NaN if no question was about it.
    ``pandas.DataFrame`` takes the table as it is. Its text is the paper's table.

    Examples
    --------
    >>> from sklcam.study import StudyTable
    >>> print(StudyTable([{"method": "gradcam", "rank_correlation": 0.254}]))
    Method   Rank correlation
    gradcam             0.254
    """

    def __str__(self) -> str:
        names = [name for name in (self[0] if self else {}) if not name.endswith(("_low", "_high"))]
        cells = [[_HEADS.get(name, name.replace("_", " ").capitalize()) for name in names]]
        cells += [[_written(row, name) for name in names] for row in self]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                f"{cell:{width}}" if i == 0 else f"{cell:>{width}}"
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        )


def table(*results: StudyResult, **columns: Mapping[str, float]) -> StudyTable:
    """Return how people judge each method, in the form of the paper's table 2.

    Parameters
    ----------
    *results : StudyResult
        One result of each kind, or of only one kind.
    **columns : mapping of str to float
        Other columns, by their names, with a number for each method, such as
        ``rank_correlation={"gradcam": 0.254}``.

    Returns
    -------
    StudyTable

    Raises
    ------
    ValueError
        If there is no result, or two of one kind, or a column is not a mapping.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, table 2.

    Examples
    --------
    >>> from sklcam import study
    >>> item = {"image": 0, "truth": 1, "model": "", "method": "gradcam"}
    >>> key = {"format": "sklcam-study-key", "version": 1, "study": "s", "kind": "class",
    ...        "methods": ["gradcam"], "items": {"a": item}}
    >>> answers = {"format": "sklcam-study-answers", "version": 1, "study": "s", "rater": "Ann",
    ...            "answers": [{"item": "a", "value": 1}]}
    >>> print(study.table(study.analyse(answers, key), rank_correlation={"gradcam": 0.254}))
    Method   Human classification accuracy  Rank correlation
    gradcam       100.00 (100.00 to 100.00)             0.254
    """
    for result in results:
        if not isinstance(result, StudyResult):
            raise ValueError(f"table takes the results of analyse; got {describe(result)}.")
    kinds = [result.kind for result in results]
    if not kinds or len({*kinds}) < len(kinds):
        raise ValueError(
            f"table takes one result of each kind; got {' and '.join(kinds) or 'none'}."
        )
    for name, values in columns.items():
        if not isinstance(values, Mapping):
            raise ValueError(
                f"{name} must be a mapping of methods to numbers; got {describe(values)}."
            )
    rows = StudyTable()
    for method in dict.fromkeys(name for result in results for name in result.methods):
        row: dict[str, Any] = {"method": method}
        for result in results:
            found, name = result.methods.get(method, {}), _COLUMNS[result.kind]
            row[name] = found.get("mean", math.nan)
            row[f"{name}_low"] = found.get("low", math.nan)
            row[f"{name}_high"] = found.get("high", math.nan)
        row |= {name: float(values.get(method, math.nan)) for name, values in columns.items()}
        rows.append(row)
    return rows


def _written(row: Mapping[str, Any], name: str) -> str:
    """Return a figure as the paper writes it: per cent, a signed rating, or a number."""
    value = row.get(name, math.nan)
    if name == "method":
        return str(value)
    if math.isnan(value):
        return "–"
    if name not in _HEADS:
        return f"{value:.3f}"
    form, times = (".2f", 100) if name == "human_accuracy" else ("+.2f", 1)
    low, high = (times * row[f"{name}{end}"] for end in ("_low", "_high"))
    return f"{times * value:{form}} ({low:{form}} to {high:{form}})"
