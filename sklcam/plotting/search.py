"""The candidates of a search: how much of one score another costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sklcam._validation import describe
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable


_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_NOT_SET = "not set"
_SIZE = 8.0  # points
_FINEST = 200  # places along an axis at which points are told apart
_ON_FRONT: dict[str, Any] = {"markeredgewidth": 2.2}


@dataclass(kw_only=True, eq=False, repr=False)
class TradeoffDisplay(Display):
    """Accuracy against consistency, or any two scores, of a search's candidates.

    Up and to the right is better. Candidates that no other beats in both, the Pareto front, have a
    thick edge, and a dashed line joins them. Those with the same scores lie within each other, the
    first of them the largest, and the number beside them says how many they are.

    Parameters
    ----------
    x, y : ndarray of shape (n_candidates,)
        Means over the folds.
    x_error, y_error : ndarray of shape (n_candidates,)
        Standard deviations over the folds.
    params : list of dict
        The parameters of each candidate.
    x_name, y_name : str
        Names of the scores.
    n_splits : int
    best_index : int or None, default=None
        The candidate that the search has chosen.

    Attributes
    ----------
    x, y, x_error, y_error, params, x_name, y_name, n_splits, best_index
        As above.
    front : ndarray of int
        The candidates that no other beats in both scores, by falling ``x``.
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    points_ : list of ErrorbarContainer
        One for each candidate that has scores; None for others.
    legend_ : matplotlib Legend
    colorbar_ : matplotlib Colorbar or None

    Examples
    --------
    >>> from sklcam.plotting import TradeoffDisplay
    >>> results = {"params": [{"alpha": 0}, {"alpha": 1}]}
    >>> for name, means in {"accuracy": [0.9, 0.8], "consistency": [0.5, 0.7]}.items():
    ...     results[f"mean_test_{name}"], results[f"std_test_{name}"] = means, [0.01, 0.02]
    >>> display = TradeoffDisplay.from_cv_results(results)
    >>> [text.get_text() for text in display.legend_.get_texts()]
    ['alpha = 0', 'alpha = 1', 'no other is better in both']
    """

    x: np.ndarray
    y: np.ndarray
    x_error: np.ndarray
    y_error: np.ndarray
    params: Sequence[Mapping[str, Any]]
    x_name: str
    y_name: str
    n_splits: int
    best_index: int | None = None

    @classmethod
    def from_estimator(cls, search: BaseEstimator, **options: Any) -> TradeoffDisplay:
        """Draw the candidates of a finished search.

        Parameters
        ----------
        search : fitted GridSearchCV or its like
            With several scores.
        **options
            Those of :meth:`from_cv_results`.

        Returns
        -------
        TradeoffDisplay

        Raises
        ------
        NotFittedError
            If the search has not been fitted.
        TypeError
            If ``search`` is not an estimator.
        """
        cls._check_matplotlib()
        check_is_fitted(search, "cv_results_")
        best = getattr(search, "best_index_", None)  # without refit there is none
        return cls.from_cv_results(search.cv_results_, **{"best_index": best, **options})

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        *,
        x: str = "accuracy",
        y: str = "consistency",
        best_index: int | None = None,
        **options: Any,
    ) -> TradeoffDisplay:
        """Draw the candidates of a search by its table.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of the search.
        x, y : str
            Names of two scores.
        best_index : int or None, default=None
            A candidate that is ringed.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        TradeoffDisplay

        Raises
        ------
        ValueError
            If ``cv_results`` is not a dict, or has no such score or parameter, or no candidate has
            both scores.
        """
        cls._check(**options)
        (x_mean, x_error), (y_mean, y_error) = (_scores(cv_results, name) for name in (x, y))
        display = cls(
            x=x_mean,
            y=y_mean,
            x_error=x_error,
            y_error=y_error,
            params=list(cv_results["params"]),
            x_name=x,
            y_name=y,
            n_splits=sum(_is_of_a_fold(name, x) for name in cv_results),
            best_index=best_index,
        )
        return display.plot(**options)

    @property
    def front(self) -> np.ndarray:
        """The candidates that no other beats in both scores."""
        order = np.lexsort((-self.y, -self.x))
        order = order[np.isfinite(self.x[order]) & np.isfinite(self.y[order])]
        best_before = np.maximum.accumulate(np.r_[-np.inf, self.y[order][:-1]])
        return order[self.y[order] > best_before]

    def plot(
        self,
        *,
        ax: AnyAxes = None,
        color_by: str | None = None,
        marker_by: str | None = None,
        errors: bool = True,
    ) -> TradeoffDisplay:
        """Draw a point for each candidate.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            None makes a new figure.
        color_by, marker_by : str or None, default=None
            Parameters that colours and shapes stand for; None are the first two that vary.
        errors : bool, default=True
            Whether bars show the standard deviation over the folds.

        Returns
        -------
        TradeoffDisplay
            ``self``.

        Raises
        ------
        ValueError
            If no candidate has both scores, or there is no such parameter.
        """
        self._check()
        scored = np.flatnonzero(np.isfinite(self.x) & np.isfinite(self.y))
        if not scored.size:
            raise ValueError("No candidate has both scores: did all fits fail?")
        color_by, marker_by = self._encodings(color_by, marker_by)
        levels, level_of = _levels(self.params, color_by)
        shapes, shape_of = _levels(self.params, marker_by)
        colors, scale = _palette(levels)
        same = color_by == marker_by
        # So many that they make a scale cannot have a shape each.
        many = same and scale is not None
        markers = ["o" if many else _MARKERS[i % len(_MARKERS)] for i in range(len(shapes))]
        place = self._take_axes(ax, width=7.2)
        self.points_: list[Any] = [None] * len(self.params)
        looks = self._looks(scored)
        for i in scored.tolist():
            bars = {"xerr": self.x_error[i], "yerr": self.y_error[i]} if errors else {}
            look = _point(colors[level_of[i]], markers[shape_of[i]]) | looks[i]
            self.points_[i] = place.errorbar(self.x[i], self.y[i], elinewidth=1, **bars, **look)
        self._count(place, scored)
        labels, artists = [], []
        if color_by is not None and scale is None:
            labels += [f"{color_by} = {draw.shortened(level)}" for level in levels]
            own = markers if same else ["o"] * len(levels)
            artists += [draw.key(**_point(*look)) for look in zip(colors, own, strict=True)]
        if marker_by is not None and not same:
            labels += [f"{marker_by} = {draw.shortened(shape)}" for shape in shapes]
            artists += [draw.key(**_point("0.75", marker)) for marker in markers]
        front = self.front
        dashes: dict[str, Any] = {"linestyle": "--", "color": "0.3", "linewidth": 1.2, "zorder": 1}
        place.plot(self.x[front], self.y[front], **dashes)
        artists.append(draw.key(**_point("0.3", "o") | dashes | _ON_FRONT, markerfacecolor="white"))
        labels.append("no other is better in both")
        if self.best_index is not None:
            ring: dict[str, Any] = {"marker": "o", "color": "black", "markerfacecolor": "none"}
            at = (self.x[self.best_index], self.y[self.best_index])
            place.plot(*at, linestyle="", zorder=4, markersize=18, **ring)
            artists.append(draw.key(markersize=12, **ring))
            labels.append("chosen")
        self.legend_ = draw.legend(
            place, artists, labels, **({} if ax is not None else draw.BESIDE)
        )
        self.colorbar_ = None
        if scale is not None:
            self.colorbar_ = self.figure_.colorbar(scale, ax=place)
            self.colorbar_.set_label(f"{color_by}", **draw.PLAIN)
        folds = f", mean of {self.n_splits} folds" if self.n_splits else ""
        place.set_xlabel(f"{self.x_name}{folds}", **draw.PLAIN)
        place.set_ylabel(f"{self.y_name}{folds}", **draw.PLAIN)
        return self

    def _together(self, scored: np.ndarray) -> list[list[int]]:
        """Return the candidates in groups of those that would hide each other."""
        scores = np.stack([self.x, self.y])[:, scored]
        spread = np.ptp(scores, axis=1, keepdims=True)
        cells = np.round(_FINEST * (scores - scores[:, :1]) / np.where(spread > 0, spread, 1))
        found: dict[tuple[float, ...], list[int]] = {}
        for i, cell in zip(scored.tolist(), cells.T.tolist(), strict=True):
            found.setdefault(tuple(cell), []).append(i)
        return [*found.values()]

    def _looks(self, scored: np.ndarray) -> dict[int, dict[str, Any]]:
        """Return how large and how far above others each point is, and its edge."""
        best = {(self.x[i], self.y[i]) for i in self.front}
        looks: dict[int, dict[str, Any]] = {}
        for group in self._together(scored):
            step = min(5.0, 16 / max(len(group) - 1, 1))
            for inward, i in enumerate(group):
                size = _SIZE + step * (len(group) - 1 - inward)
                looks[i] = {"markersize": size, "zorder": 3 + inward / len(group)}
                looks[i] |= _ON_FRONT if (self.x[i], self.y[i]) in best else {}
                if inward:  # of dark points within each other, black edges would not be seen
                    looks[i]["markeredgecolor"] = "white"
        return looks

    def _count(self, place: Axes, scored: np.ndarray) -> None:
        """Write beside points within each other how many they are."""
        for group in self._together(scored):
            if len(group) > 1:
                away: dict[str, Any] = {
                    "xytext": (14, 10),
                    "textcoords": "offset points",
                    "fontsize": 9,
                }
                place.annotate(f"\u00d7{len(group)}", (self.x[group[0]], self.y[group[0]]), **away)

    def _encodings(
        self, color_by: str | None, marker_by: str | None
    ) -> tuple[str | None, str | None]:
        """Return the parameters that colours and shapes tell; the same one if only one varies."""
        for name in filter(None, (color_by, marker_by)):
            _check_name(name, self.params)
        varying = [name for name in _names(self.params) if len(_levels(self.params, name)[0]) > 1]
        rest = [name for name in varying if name not in (color_by, marker_by)]
        color_by = color_by or (rest.pop(0) if rest else marker_by)
        return color_by, marker_by or (rest.pop(0) if rest else color_by)


@dataclass(kw_only=True, eq=False, repr=False)
class TradeoffBoxDisplay(Display):
    """A score of a search's candidates, or its gain over a baseline, by a parameter.

    Parameters
    ----------
    values : dict of str to ndarray of shape (n_candidates,)
        For each value of the parameter the mean scores of its candidates.
    name : str
        Of the score.
    by : str
        Of the parameter.
    is_difference : bool, default=False
        Whether the baseline has been subtracted.

    Attributes
    ----------
    values, name, by, is_difference
        As above.
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    boxes_ : dict
        The result of matplotlib's ``boxplot``.
    points_ : list of Line2D
        The candidates of each box.

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", figure 3.

    Examples
    --------
    >>> from sklcam.plotting import TradeoffBoxDisplay
    >>> architectures = ["resnet18", "resnet18", "convnext_tiny", "convnext_tiny"]
    >>> params = [{"module": name, "alpha": i % 2} for i, name in enumerate(architectures)]
    >>> results = {"params": params, "mean_test_accuracy": [0.7, 0.6, 0.9, 0.8]}
    >>> display = TradeoffBoxDisplay.from_cv_results(results, by="module", baseline={"alpha": 0})
    >>> {name: values.round(2).tolist() for name, values in display.values.items()}
    {'resnet18': [-0.1], 'convnext_tiny': [-0.1]}
    """

    values: Mapping[str, np.ndarray]
    name: str
    by: str
    is_difference: bool = False

    @classmethod
    def from_estimator(cls, search: BaseEstimator, **options: Any) -> TradeoffBoxDisplay:
        """Draw the candidates of a finished search.

        Parameters
        ----------
        search : fitted GridSearchCV or its like
        **options
            Those of :meth:`from_cv_results`.

        Returns
        -------
        TradeoffBoxDisplay

        Raises
        ------
        NotFittedError
            If the search has not been fitted.
        TypeError
            If ``search`` is not an estimator.
        """
        cls._check_matplotlib()
        check_is_fitted(search, "cv_results_")
        return cls.from_cv_results(search.cv_results_, **options)

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        *,
        by: str,
        score: str = "accuracy",
        baseline: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TradeoffBoxDisplay:
        """Draw the candidates of a search by its table.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of the search.
        by : str
            The parameter that has a box for each value, such as the architecture.
        score : str, default="accuracy"
            ``"score"`` for a search with a single one.
        baseline : dict or None, default=None
            Parameters of the candidate, for each value of ``by``, that others are compared with,
            such as ``{"alpha": 0, "beta": 0}``.
        **options
            ``ax``, as of :meth:`plot`.

        Returns
        -------
        TradeoffBoxDisplay

        Raises
        ------
        ValueError
            If ``cv_results`` is not a dict, or has no such score or parameter, or the baseline is
            not one candidate for each value.
        """
        cls._check(**options)
        means, _ = _scores(cv_results, score)
        params = list(cv_results["params"])
        _check_name(by, params)
        levels, level_of = _levels(params, by)
        values = {}
        for i, level in enumerate(levels):
            own = [k for k in range(len(params)) if level_of[k] == i and np.isfinite(means[k])]
            subtracted = 0.0
            if baseline is not None:
                among = [k for k in own if baseline.items() <= params[k].items()]
                if len(among) != 1:
                    raise ValueError(
                        f"baseline={dict(baseline)} must be one candidate for each {by}; there are "
                        f"{len(among)} with {by}={draw.shortened(level)}."
                    )
                own.remove(among[0])
                subtracted = means[among[0]]
            values[draw.shortened(level)] = means[own] - subtracted
        display = cls(values=values, name=score, by=by, is_difference=baseline is not None)
        return display.plot(**options)

    def plot(self, *, ax: AnyAxes = None) -> TradeoffBoxDisplay:
        """Draw a box, and the candidates in it, for each value of the parameter.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            None makes a new figure.

        Returns
        -------
        TradeoffBoxDisplay
            ``self``.
        """
        self._check()
        axes = self._take_axes(ax, width=1.8 + 1.1 * len(self.values))
        places = np.arange(len(self.values))
        lines: dict[str, Any] = {
            f"{name}props": {"color": "0.25"} for name in ("box", "whisker", "cap")
        }
        self.boxes_ = axes.boxplot(
            list(self.values.values()),
            positions=places,
            widths=0.5,
            showfliers=False,  # all candidates are drawn
            medianprops={"color": draw.COLORS[1], "linewidth": 2.5},
            **lines,
        )
        look: dict[str, Any] = {"color": draw.COLORS[0], "alpha": 0.6, "markersize": 5}
        self.points_ = []
        for place, scores in zip(places, self.values.values(), strict=True):
            self.points_ += axes.plot(np.full(len(scores), place), scores, "o", **look)
        labels = [draw.wrapped(name, 13, max_lines=4) for name in self.values]
        axes.set_xticks(places, labels, **draw.PLAIN)
        axes.set_xlabel(self.by, **draw.PLAIN)
        suffix = ", less the baseline's" if self.is_difference else ""
        axes.set_ylabel(f"{self.name}{suffix}", **draw.PLAIN)
        if self.is_difference:
            axes.axhline(0, linestyle="--", color="0.4", linewidth=1, zorder=0)
        return self


def _scores(cv_results: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidates' means and deviations of one score."""
    if not isinstance(cv_results, Mapping):
        raise ValueError(
            f"cv_results must be the dict cv_results_ of a search; got {describe(cv_results)}."
        )
    known = [key.removeprefix("mean_test_") for key in cv_results if key.startswith("mean_test_")]
    if name not in known:
        raise ValueError(
            f"The search has no score {name!r}; it has {sorted(known)}. Give it "
            "scoring= with all that is to be drawn."
        )
    means = np.asarray(cv_results[f"mean_test_{name}"], dtype=float)
    return means, np.asarray(cv_results.get(f"std_test_{name}", np.zeros_like(means)), dtype=float)


def _is_of_a_fold(key: str, score: str) -> bool:
    return key.startswith("split") and key.endswith(f"_test_{score}")


def _names(params: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of all parameters; candidates of several grids may not share them."""
    return list(dict.fromkeys(name for candidate in params for name in candidate))


def _check_name(name: str, params: Sequence[Mapping[str, Any]]) -> None:
    known = _names(params)
    if name not in known:
        raise ValueError(f"The search has no parameter {name!r}; it has {sorted(known)}.")


def _levels(params: Sequence[Mapping[str, Any]], name: str | None) -> tuple[list[Any], list[int]]:
    """Return the different values of a parameter, numbers in order, and each candidate's."""
    if name is None:
        return [None], [0] * len(params)
    values = [candidate.get(name, _NOT_SET) for candidate in params]
    levels: list[Any] = []
    for value in values:
        if not any(_same(value, level) for level in levels):
            levels.append(value)
    levels.sort(key=lambda level: (0, level) if _is_number(level) else (1, 0))
    return levels, [
        next(i for i, level in enumerate(levels) if _same(value, level)) for value in values
    ]


def _same(value: Any, other: Any) -> bool:
    if _is_number(value) and _is_number(other):
        return bool(value == other)
    return value is other or (type(value) is type(other) and bool(np.all(value == other)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _point(color: Any, marker: str) -> dict[str, Any]:
    edge = {"markeredgecolor": "black", "markeredgewidth": 0.6}
    return {"color": color, "marker": marker, "markersize": _SIZE, "linestyle": "", **edge}


def _palette(levels: Sequence[Any]) -> tuple[list[Any], ScalarMappable | None]:
    """Return a colour for each level, and the scale of numbers too many for a key each.

    Numbers get lighter as they grow, so that their order is seen.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, SymLogNorm

    numbers = [level for level in levels if _is_number(level)]
    if not numbers:
        return [draw.COLORS[i % len(draw.COLORS)] for i in range(len(levels))], None
    shades = colormaps[draw.MAP_CMAP]
    if len(levels) <= len(draw.COLORS):
        light = np.linspace(0.05, 0.85, len(numbers))
        return [*shades(light), *["white"] * (len(levels) - len(numbers))], None
    low, high = min(numbers), max(numbers)
    least = min((number for number in numbers if number > 0), default=0)
    spreads = low >= 0 and 0 < 100 * least < high  # over orders of magnitude, but for a zero
    norm = SymLogNorm(least, vmin=low, vmax=high) if spreads else Normalize(low, high)
    scale = ScalarMappable(norm, shades)
    return [scale.to_rgba(each) if _is_number(each) else "white" for each in levels], scale
