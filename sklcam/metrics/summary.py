"""Figures made of one value per image: means, bootstrap intervals, and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch, check_random_state

from sklcam._validation import check_count, check_number, describe, draw_seed
from sklcam.metrics.registry import metric_of_row

_RESAMPLES_AT_A_TIME = 50  # a row of them is as long as there are images


class Evaluation(Bunch):
    """The values of an evaluation: for each metric an ndarray of shape (n_images,).

    Made by :func:`evaluate`. An image whose map or score is NaN has NaN for its value.

    Parameters
    ----------
    meanings : mapping of str to str or None, default=None
        What metrics mean here, where that depends on what was asked.
    **values : ndarray of shape (n_images,)
        By the metrics' names.

    Attributes
    ----------
    meanings : dict of str to str

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.metrics import Evaluation
    >>> result = Evaluation(complexity=np.array([0.2, 0.4]), sparsity=np.array([0.5, np.nan]))
    >>> {name: round(mean, 3) for name, mean in result.means().items()}
    {'complexity': 0.3, 'sparsity': nan}
    """

    def __init__(self, meanings: Mapping[str, str] | None = None, /, **values: np.ndarray):
        super().__init__(**values)
        # Not by an assignment, which would make a key of a Bunch.
        self.__dict__["meanings"] = dict(meanings or {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # a Bunch forgets its attributes

    def summary(
        self,
        *,
        level: float = 0.95,
        n_resamples: int = 2000,
        random_state: int | np.random.RandomState | None = 0,
    ) -> Summary:
        """Return mean, deviation and bootstrap interval of each metric.

        Parameters
        ----------
        level : float, default=0.95
            The level of the interval, which lies between percentiles of resampled means.
        n_resamples : int, default=2000
        random_state : int, RandomState or None, default=0

        Returns
        -------
        Summary
            A row for each metric. Its figures are NaN if the value of an image is not finite; where
            a metric may be undefined (see :class:`Metric`), what is not finite is left out.
            ``adcc`` is the harmonic mean of the averages of its terms, as in the paper's tables,
            and ``mean_adcc`` the mean of the images' own values.

        Raises
        ------
        ValueError
            If ``level`` is not between 0 and 1, ``n_resamples`` is not an int >= 1, or there is
            no metric, or not as many values of each.
        """
        _check_options(level, n_resamples)
        rows = {}
        for name, figures in _figures(self, n_resamples, random_state).items():
            low, high = _interval(figures[1:], level)
            rows[name] = _row(figures, low, high, self[_column_of(name)])
        return Summary(rows, self.meanings)

    def means(self) -> dict[str, float]:
        """Return each metric's mean over the images, as :meth:`summary` has it.

        Raises
        ------
        ValueError
            If there is no metric, or not as many values of each.
        """
        return {name: float(figures[0]) for name, figures in _figures(self, 0, 0).items()}

    def to_frame(self) -> Any:
        """Return a pandas data frame of one row per image; pandas must be installed."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install pandas") from error

        return pandas.DataFrame(dict(self))


class Summary(dict[str, Bunch]):
    """A table: for each metric its ``mean``, ``std`` and interval ``low`` to ``high``.

    ``n_missing`` is how many images have no finite value. What a row means is said under the table
    where that depends on what was asked.

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

    def __init__(self, rows: Mapping[str, Bunch], meanings: Mapping[str, str] | None = None):
        super().__init__(rows)
        self.meanings = dict(meanings or {})

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        lines = [f"{'':{width}}{'mean':>10}{'std':>10}   interval"]
        lines += [
            f"{name:{width}}{row.mean:10.4f}{row.std:10.4f}   {row.low:.4f} .. {row.high:.4f}"
            for name, row in self.items()
        ]
        lines += [
            f"{name}: {row.n_missing} images have no finite value"
            for name, row in self.items()
            if row.n_missing
        ]
        # Localisation is called by the class that was explained.
        lines += [
            f"{name}: {text}" for name, text in self.meanings.items() if name.startswith("locali")
        ]
        return "\n".join(lines)


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
        differences, and ``low`` to ``high`` the bootstrap interval of pairs: if it does not hold
        0, the difference is more than chance. An image without a value in either is without one in
        both, as in :meth:`Evaluation.summary`.

    Raises
    ------
    ValueError
        If the two are not of as many images, share no metric, or one that means something else in
        the other, such as top-1 and GT-known localisation.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.metrics import Evaluation, compare
    >>> ours = Evaluation(complexity=np.array([0.1, 0.3, 0.5]))
    >>> others = Evaluation(complexity=np.array([0.2, 0.4, 0.6]))
    >>> compare(ours, others)
                      mean       std   interval
    complexity   -0.1000    0.0000   -0.1000 .. -0.1000
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
                "the second: evaluate both with the same target and y."
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
        rows[name] = _row(differences, low, high, pair[0][column] - pair[1][column])
    return Summary(rows, meanings)


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
            "An evaluation needs a metric, and as many values of each; got "
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


def _row(figures: np.ndarray, low: float, high: float, values: np.ndarray) -> Bunch:
    """Return a row of a table; of values that make the mean NaN there is no deviation either."""
    some, mean = values[np.isfinite(values)], float(figures[0])
    std = float(some.std(ddof=len(some) > 1)) if np.isfinite(mean) else float("nan")
    return Bunch(mean=mean, std=std, low=low, high=high, n_missing=len(values) - len(some))


def _interval(resampled: np.ndarray, level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    some = resampled[np.isfinite(resampled)]
    low, high = np.percentile(some, [tail, 100 - tail]) if len(some) else [np.nan] * 2
    return float(low), float(high)
