"""Figures from one value per image: means, bootstrap intervals, and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import Bunch, check_random_state

from sklcam._validation import check_count, check_number, describe, draw_seed
from sklcam.metrics._tables import (
    table_of_evaluation,
    table_of_groups,
    table_of_summary,
    text_of_summary,
)
from sklcam.metrics.groups import labels_of_groups, largest_gaps
from sklcam.metrics.registry import metric_of_row

_RESAMPLES_AT_A_TIME = 50  # a row of them is as long as there are images


class Evaluation(Bunch):
    """The values of an evaluation: for each metric an ndarray of shape (n_images,).

    Made by :func:`evaluate`. An image whose map or score is NaN has the value NaN.

    Parameters
    ----------
    meanings : mapping of str to str or None, default=None
        What metrics mean here, as this may depend on the target.
    labels : array-like of shape (n_images,) or None, default=None
        The class of each image, for :meth:`summary` by class.
    groups : mapping of str to ndarray of shape (n_images,), or None, default=None
        The label of each image in each grouping, for :meth:`summary` by its name.
    **values : ndarray of shape (n_images,)
        By the metrics' names.

    Attributes
    ----------
    meanings : dict of str to str
    labels : ndarray of shape (n_images,) or None
    groups : dict of str to ndarray of shape (n_images,)

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.metrics import Evaluation
    >>> result = Evaluation(complexity=np.array([0.2, 0.4]), sparsity=np.array([0.5, np.nan]))
    >>> {name: round(mean, 3) for name, mean in result.means().items()}
    {'complexity': 0.3, 'sparsity': nan}
    """

    def __init__(
        self,
        meanings: Mapping[str, str] | None = None,
        labels: Any = None,
        groups: Mapping[str, np.ndarray] | None = None,
        /,
        **values: np.ndarray,
    ):
        super().__init__(**values)
        # Not by an assignment, which would make a key of a Bunch.
        self.__dict__["meanings"] = dict(meanings or {})
        self.__dict__["labels"] = None if labels is None else np.asarray(labels)
        self.__dict__["groups"] = dict(groups or {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # a Bunch forgets its attributes

    @overload
    def summary(
        self,
        *,
        by: None = None,
        level: float = 0.95,
        n_resamples: int = 2000,
        random_state: int | np.random.RandomState | None = 0,
    ) -> Summary: ...

    @overload
    def summary(
        self,
        *,
        by: ArrayLike,
        level: float = 0.95,
        n_resamples: int = 2000,
        random_state: int | np.random.RandomState | None = 0,
    ) -> GroupedSummary: ...

    def summary(
        self,
        *,
        by: ArrayLike | None = None,
        level: float = 0.95,
        n_resamples: int = 2000,
        random_state: int | np.random.RandomState | None = 0,
    ) -> Summary | GroupedSummary:
        """Return mean, deviation and bootstrap interval of each metric.

        Parameters
        ----------
        by : None, "class", str or array-like of shape (n_images,), default=None
            How to group the images, for a table for each group and one of the means over groups: by
            the true class, by the name of a grouping that :func:`evaluate` was given ("group" if it
            has no name), or by your own labels. None gives one table of all images.
        level : float, default=0.95
            The level of the interval, which lies between percentiles of resampled means.
        n_resamples : int, default=2000
        random_state : int, RandomState or None, default=0

        Returns
        -------
        Summary, or GroupedSummary with ``by=``
            A row for each metric. Its figures are NaN if the value of an image is not finite; but
            if a metric may be undefined (see :class:`Metric`), such values are left out.
            ``adcc`` is the harmonic mean of the averages of its terms, as in the paper's tables,
            and ``mean_adcc`` the mean of the images' own values.

        Raises
        ------
        ValueError
            If ``level`` is not between 0 and 1, ``n_resamples`` is not an int >= 1, there is no
            metric, or metrics have different numbers of values; or if ``by`` is neither a known
            grouping nor one label per image, or is "class" without ``y`` or with several labels per
            image.

        Examples
        --------
        >>> import numpy as np
        >>> from sklcam.metrics import Evaluation
        >>> result = Evaluation(complexity=np.array([0.1, 0.3, 0.6]))
        >>> result.summary(by=["cat", "cat", "dog"])
                       n  complexity
        cat            2  0.2000 ± 0.1000
        dog            1  0.6000 ± nan
        mean of 2      3  0.4000 ± nan
        complexity: dog is above cat by 0.4000 (nan .. nan)
        """
        _check_options(level, n_resamples)
        if by is None:
            figures = _figures(self, n_resamples, random_state)
            return Summary(_rows(self, figures, level), self.meanings)
        groups = self._groups(by)
        # One stream of draws for all groups, or groups of one size would be resampled alike.
        generator = check_random_state(random_state)
        found, tables = [], {}
        for group in np.unique(groups).tolist():
            part = Evaluation(self.meanings)
            for name, values in self.items():
                part[name] = values[groups == group]
            found.append(_figures(part, n_resamples, generator))
            tables[group] = Summary(_rows(part, found[-1], level), self.meanings)
        means = {}
        for name in found[0]:
            # Each group was resampled by itself: the interval is that of a stratified bootstrap.
            figures = np.mean([of_group[name] for of_group in found], axis=0)
            errors = np.array([table[name].sem for table in tables.values()])
            low, high = _interval(figures[1:], level)
            means[name] = Bunch(
                mean=float(figures[0]),
                std=float(np.std([of[name][0] for of in found], ddof=len(found) > 1)),
                sem=float(np.sqrt((errors**2).sum()) / len(errors)),
                low=low,
                high=high,
                n=sum(table[name].n for table in tables.values()),
                n_missing=sum(table[name].n_missing for table in tables.values()),
            )
        gaps = largest_gaps(found, tables, level)
        return GroupedSummary(tables, Summary(means, self.meanings), gaps)

    def by_group(
        self,
        *,
        level: float = 0.95,
        n_resamples: int = 2000,
        random_state: int | np.random.RandomState | None = 0,
    ) -> dict[str, GroupedSummary]:
        """Return the tables of all groupings that :func:`evaluate` was given, with their gaps.

        Parameters
        ----------
        level, n_resamples, random_state
            See :meth:`summary`.

        Returns
        -------
        dict of str to GroupedSummary
            By the groupings' names.

        Raises
        ------
        ValueError
            If there are no groups; and as for :meth:`summary`.

        Examples
        --------
        >>> import numpy as np
        >>> from sklcam.metrics import Evaluation
        >>> groups = {"camera": np.array(["old", "old", "old", "new", "new", "new"])}
        >>> right = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
        >>> result = Evaluation(None, None, groups, accuracy=right)
        >>> result.by_group()["camera"]
                       n  accuracy
        new            3  1.0000 ± 0.0000
        old            3  0.3333 ± 0.3333
        mean of 2      6  0.6667 ± 0.1667
        accuracy: new is above old by 0.6667 (0.0000 .. 1.0000)
        """
        if not self.groups:
            raise ValueError("There are no groups of images. Give groups= to evaluate.")
        options: dict[str, Any] = {"level": level, "n_resamples": n_resamples}
        return {
            name: self.summary(by=labels, random_state=random_state, **options)
            for name, labels in self.groups.items()
        }

    def _groups(self, by: ArrayLike) -> np.ndarray:
        if isinstance(by, str) and by in self.groups:
            return self.groups[by]
        if isinstance(by, str) and by == "class":
            if self.labels is None:
                raise ValueError('by="class" needs y, the true labels. Give them to evaluate.')
            if self.labels.ndim != 1:
                raise ValueError(
                    "Images have several labels each, and so several classes. Give by= one group "
                    "for each image."
                )
            return np.asarray(self.labels)
        n_images = len(next(iter(self.values()), ()))
        if isinstance(by, str):
            known = ", ".join(["'class'", *map(repr, self.groups)])
            raise ValueError(f"There is no grouping {by!r}; by= takes {known}, or labels.")
        return labels_of_groups("by", by, n_images)

    def __repr__(self) -> str:
        try:
            means = self.means()
        except ValueError:  # there are none; summary says what is wrong
            return super().__repr__()
        told = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
        return f"<Evaluation of {len(next(iter(self.values())))} images: {told}>"

    def _repr_html_(self) -> str | None:
        return table_of_evaluation(self)

    def means(self) -> dict[str, float]:
        """Return each metric's mean over the images, as :meth:`summary` has it.

        Raises
        ------
        ValueError
            If there is no metric, or metrics have different numbers of values.
        """
        return {name: float(figures[0]) for name, figures in _figures(self, 0, 0).items()}

    def to_frame(self) -> Any:
        """Return a pandas data frame with one row per image; pandas must be installed."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                'to_frame needs pandas. It comes with: pip install "sklcam[pandas]"'
            ) from error

        return pandas.DataFrame(dict(self))


class Summary(dict[str, Bunch]):
    """A table: for each metric its ``mean``, ``std`` and interval ``low`` to ``high``.

    ``sem`` is the standard error of the mean, NaN for a single image; if the figure is not a mean
    of images' values, like ADCC's, it is the bootstrap's. ``n`` is how many images have a finite
    value, and ``n_missing`` how many have none. The meaning of a row is shown under the table if it
    depends on the target. ``is_difference`` says that the table is a result of :func:`compare`:
    differences that are more than chance then have a verdict.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.metrics import Evaluation
    >>> summary = Evaluation(complexity=np.array([0.25, 0.25, 0.25])).summary()
    >>> summary
                      mean       std   interval
    complexity    0.2500    0.0000   0.2500 .. 0.2500
    >>> summary["complexity"].mean
    0.25
    """

    def __init__(
        self,
        rows: Mapping[str, Bunch],
        meanings: Mapping[str, str] | None = None,
        *,
        is_difference: bool = False,
    ):
        super().__init__(rows)
        self.meanings = dict(meanings or {})
        self.is_difference = is_difference

    def __repr__(self) -> str:
        lines = text_of_summary(self, is_difference=self.is_difference)
        return "\n".join(lines + self._notes())

    def _repr_html_(self) -> str:
        return table_of_summary(self, self._notes(), is_difference=self.is_difference)

    def _notes(self) -> list[str]:
        missing = [
            f"{name}: {row.n_missing} images have no finite value"
            for name, row in self.items()
            if row.n_missing
        ]
        # The name of localisation depends on the class that was explained.
        meanings = self.meanings.items()
        return missing + [f"{name}: {text}" for name, text in meanings if name.startswith("locali")]


class GroupedSummary(dict[Any, Summary]):
    """Tables of groups of images: for each group a :class:`Summary`.

    Made by :meth:`Evaluation.summary` with ``by=``; printed with standard errors.

    Parameters
    ----------
    tables : mapping of labels to Summary
    mean : Summary
    gaps : mapping of str to Bunch, or None, default=None

    Attributes
    ----------
    mean : Summary
        The mean over groups, each of which counts equally; ``std`` is the deviation of the groups'
        means, and ``low`` to ``high`` the interval of a bootstrap within each group.
    gaps : dict of str to Bunch
        For each metric the largest difference between two groups: ``groups``, the one with the
        higher mean first; ``mean``, the difference; and ``low`` to ``high``, its interval. If the
        interval does not contain 0, the difference is more than chance: the level holds for all
        ``n_pairs`` pairs of groups together, among which the largest was found. The interval is NaN
        if one of the two has fewer than two values, and too narrow if one has only a few.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.metrics import Evaluation
    >>> result = Evaluation(complexity=np.array([0.1, 0.3, 0.6]))
    >>> summary = result.summary(by=["cat", "cat", "dog"])
    >>> round(summary["cat"]["complexity"].mean, 3), round(summary.mean["complexity"].mean, 3)
    (0.2, 0.4)
    """

    def __init__(
        self,
        tables: Mapping[Any, Summary],
        mean: Summary,
        gaps: Mapping[str, Bunch] | None = None,
    ):
        super().__init__(tables)
        self.mean = mean
        self.gaps = dict(gaps or {})

    def _named(self) -> dict[str, Summary]:
        return {**{str(group): of for group, of in self.items()}, f"mean of {len(self)}": self.mean}

    def _repr_html_(self) -> str:
        return table_of_groups(self._named(), self.gaps, len(self))

    def __repr__(self) -> str:
        named = self._named()
        width = max(map(len, named))
        columns = list(self.mean)
        lines = [f"{'':{width}}{'n':>7}" + "".join(f"  {name:15}" for name in columns)]
        for group, table in named.items():
            cells = [f"{row.mean:.4f} ± {row.sem:.4f}" for row in table.values()]
            n_images = max((row.n + row.n_missing for row in table.values()), default=0)
            lines.append(
                f"{group:{width}}{n_images:7}"
                + "".join(
                    f"  {cell:{max(15, len(name))}}"
                    for cell, name in zip(cells, columns, strict=True)
                )
            )
        lines += [
            f"{name}: {gap.groups[0]} is above {gap.groups[1]} by {gap.mean:.4f} "
            f"({gap.low:.4f} .. {gap.high:.4f})"
            for name, gap in self.gaps.items()
            if gap.groups is not None
        ]
        return "\n".join(line.rstrip() for line in lines)


def compare(
    first: Evaluation,
    second: Evaluation,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | np.random.RandomState | None = 0,
) -> Summary:
    """Compare two explainers on the same images, metric by metric.

    Parameters
    ----------
    first, second : Evaluation
        Of the same images, in the same order.
    level : float, default=0.95
        The level of the interval.
    n_resamples : int, default=2000
    random_state : int, RandomState or None, default=0

    Returns
    -------
    Summary
        ``mean`` is the first's minus the second's, ``std`` the deviation of the images'
        differences, and ``low`` to ``high`` the bootstrap interval of pairs: if it does not contain
        0, the difference is more than chance. An image that lacks a value in one of them counts as
        lacking it in both, as in :meth:`Evaluation.summary`.

    Raises
    ------
    ValueError
        If the two have different numbers of images, share no metric, or share one that means
        something else in each, such as top-1 and GT-known localisation.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.metrics import Evaluation, compare
    >>> ours = Evaluation(complexity=np.array([0.1, 0.3, 0.5]))
    >>> others = Evaluation(complexity=np.array([0.2, 0.4, 0.6]))
    >>> compare(ours, others)
                difference       std   interval
    complexity   -0.1000    0.0000   -0.1000 .. -0.1000   the first is better
    """
    for name, given in (("first", first), ("second", second)):
        if not isinstance(given, Mapping):
            raise ValueError(f"{name} must be an Evaluation; got {describe(given)}.")
    _check_options(level, n_resamples)
    shared = [name for name in first if name in second]
    if not shared or len(first[shared[0]]) != len(second[shared[0]]):
        raise ValueError(
            "compare needs two evaluations of the same images with a metric in common; got "
            f"{_described(first)} and {_described(second)}."
        )
    meanings, others_meanings = (getattr(side, "meanings", {}) for side in (first, second))
    for name in meanings.keys() & others_meanings.keys() & set(shared):
        if meanings[name] != others_meanings[name]:
            raise ValueError(
                f"{name} means {meanings[name]!r} in the first, and {others_meanings[name]!r} in "
                "the second. Evaluate both with the same target and y."
            )
    pair = Evaluation(), Evaluation()
    for name in shared:
        both = np.isfinite(first[name]) & np.isfinite(second[name])
        pair[0][name] = np.where(both, first[name], np.nan)
        pair[1][name] = np.where(both, second[name], np.nan)
    seed = draw_seed(check_random_state(random_state))
    ours, others = (_figures(side, n_resamples, seed) for side in pair)  # of the same draws
    rows = {}
    for name in ours:
        differences = ours[name] - others[name]
        low, high = _interval(differences[1:], level)
        column = _column_of(name)
        rows[name] = _row(name, differences, low, high, pair[0][column] - pair[1][column])
    return Summary(rows, meanings, is_difference=True)


def mean_and_interval(
    values: np.ndarray,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    random_state: int | np.random.RandomState | None = 0,
) -> np.ndarray:
    """Return the mean of each column, and its bootstrap interval over the images.

    Parameters
    ----------
    values : ndarray of shape (n_images, n_columns)
        Values that are not finite are left out.
    level, n_resamples, random_state
        As in :meth:`Evaluation.summary`.

    Returns
    -------
    ndarray of shape (3, n_columns)
        The means, and the ends of the intervals.
    """
    _check_options(level, n_resamples)
    means = _resampled_means(values, n_resamples, random_state)
    return np.array([[column[0], *_interval(column[1:], level)] for column in means]).T


def _check_options(level: float, n_resamples: int) -> None:
    check_number("level", level, 0, 1, closed="neither")
    check_count("n_resamples", n_resamples)


def _described(evaluation: Evaluation) -> str:
    n_images = len(next(iter(evaluation.values()), ()))
    return f"{', '.join(evaluation) or 'no metric'} of {n_images} images"


def _column_of(row: str) -> str:
    """Return the metric whose values a row is made of."""
    metric = metric_of_row(row)
    return row if metric is None else metric.name


def _figures(
    evaluation: Evaluation, n_resamples: int, random_state: int | np.random.RandomState | None
) -> dict[str, np.ndarray]:
    """Return each row of a table over all images, and then over each resample of them."""
    lengths = {name: len(values) for name, values in evaluation.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            "An evaluation needs a metric, and the same number of values for each; got "
            f"{lengths or 'none at all'}."
        )
    means = dict(
        zip(
            evaluation,
            _resampled_means(np.column_stack(list(evaluation.values())), n_resamples, random_state),
            strict=True,
        )
    )
    for name, values in evaluation.items():
        metric = metric_of_row(name)
        if not np.isfinite(values).all() and (metric is None or not metric.may_be_undefined):
            means[name] = np.full_like(means[name], np.nan)
    for name in evaluation:
        metric = metric_of_row(name)
        if metric is not None and metric.of_averages and means.keys() >= set(metric.needs):
            means[f"mean_{name}"] = means[name]
            terms = (torch.as_tensor(means[term]) for term in metric.needs)
            means[name] = metric.function(*terms).numpy()
    return means


def _resampled_means(
    values: np.ndarray, n_resamples: int, random_state: int | np.random.RandomState | None
) -> np.ndarray:
    """Return the means of the finite values of each column, (n_columns, 1 + n_resamples)."""
    n_images = len(values)
    generator = check_random_state(random_state)
    finite = np.isfinite(values)
    filled = np.where(finite, values, 0.0)
    blocks = [np.ones((1, n_images))]
    means = []
    for start in range(0, n_resamples, _RESAMPLES_AT_A_TIME):
        size = min(_RESAMPLES_AT_A_TIME, n_resamples - start)
        means += [_weighted_means(blocks.pop(), filled, finite)]
        even = np.full(n_images, 1 / n_images)
        blocks.append(generator.multinomial(n_images, even, size=size).astype(float))
    means += [_weighted_means(blocks.pop(), filled, finite)]
    return np.concatenate(means).T


def _weighted_means(draws: np.ndarray, filled: np.ndarray, finite: np.ndarray) -> np.ndarray:
    counts = draws @ finite
    return np.divide(draws @ filled, counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def _rows(
    evaluation: Evaluation, figures: Mapping[str, np.ndarray], level: float
) -> dict[str, Bunch]:
    return {
        name: _row(name, of_row, *_interval(of_row[1:], level), evaluation[_column_of(name)])
        for name, of_row in figures.items()
    }


def _row(name: str, figures: np.ndarray, low: float, high: float, values: np.ndarray) -> Bunch:
    """Return a row of a table; if the mean is NaN, so is the deviation."""
    some, mean = values[np.isfinite(values)], float(figures[0])
    std = float(some.std(ddof=len(some) > 1)) if np.isfinite(mean) else float("nan")
    sem = std / np.sqrt(len(some)) if len(some) > 1 else float("nan")
    metric = metric_of_row(name)
    if metric is not None and metric.of_averages and metric.name == name and len(some) > 1:
        sem = float(np.std(figures[1:]))  # it is not the mean of the images' own values
    return Bunch(
        mean=mean,
        std=std,
        sem=float(sem),
        low=low,
        high=high,
        n=len(some),
        n_missing=len(values) - len(some),
    )


def _interval(resampled: np.ndarray, level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    some = resampled[np.isfinite(resampled)]
    low, high = np.percentile(some, [tail, 100 - tail]) if len(some) else [np.nan] * 2
    return float(low), float(high)
