"""The candidates of a search: what one score costs in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklcam._validation import describe
from sklcam.plotting.drawing import (
    COLORS,
    MAP_CMAP,
    PLAIN,
    check_matplotlib,
    legend_key,
    plain_legend,
    shortened,
    single_axes,
    wrapped_text,
)

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_NOT_SET = "not set"


class TradeoffDisplay:
    """Accuracy against consistency, or any two scores, of a search's candidates.

    Up and to the right is better. A dashed line joins the candidates that no other beats in both.

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

    def __init__(
        self,
        *,
        x: np.ndarray,
        y: np.ndarray,
        x_error: np.ndarray,
        y_error: np.ndarray,
        params: Sequence[Mapping[str, Any]],
        x_name: str,
        y_name: str,
        n_splits: int,
        best_index: int | None = None,
    ):
        self.x = x
        self.y = y
        self.x_error = x_error
        self.y_error = y_error
        self.params = params
        self.x_name = x_name
        self.y_name = y_name
        self.n_splits = n_splits
        self.best_index = best_index

    @classmethod
    def from_estimator(
        cls,
        search: Any,
        *,
        x: str = "accuracy",
        y: str = "consistency",
        ax: Any = None,
        **options: Any,
    ) -> TradeoffDisplay:
        """Draw the candidates of a finished search.

        Parameters
        ----------
        search : fitted GridSearchCV or its like
            With several scores.
        x, y : str
            Names of two of them.
        ax : matplotlib Axes or None, default=None
        **options
            Of :meth:`plot`.

        Returns
        -------
        TradeoffDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        NotFittedError
            If the search has not been fitted.
        TypeError
            If ``search`` is no estimator.
        ValueError
            If the search has no such score or parameter, no candidate has both scores, or ``ax`` is
            not one Axes.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        check_is_fitted(search, "cv_results_")
        # Without refit there is none.
        best_index = getattr(search, "best_index_", None)
        return cls.from_cv_results(
            search.cv_results_, x=x, y=y, best_index=best_index, ax=ax, **options
        )

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        *,
        x: str = "accuracy",
        y: str = "consistency",
        best_index: int | None = None,
        ax: Any = None,
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
        ax : matplotlib Axes or None, default=None
        **options
            Of :meth:`plot`.

        Returns
        -------
        TradeoffDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If ``cv_results`` is no dict, or has no such score or parameter, no candidate has both
            scores, or ``ax`` is not one Axes.
        """
        check_matplotlib(f"{cls.__name__}.from_cv_results")
        (x_mean, x_error), (y_mean, y_error) = (_scores(cv_results, name) for name in (x, y))
        display = cls(
            x=x_mean,
            y=y_mean,
            x_error=x_error,
            y_error=y_error,
            params=list(cv_results["params"]),
            x_name=x,
            y_name=y,
            n_splits=sum(
                name.startswith("split") and name.endswith(f"_test_{x}") for name in cv_results
            ),
            best_index=best_index,
        )
        return display.plot(ax=ax, **options)

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
        ax: Any = None,
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
            Parameters that are told by colour and by shape; None are the first two that vary.
        errors : bool, default=True
            Whether bars show the standard deviation over the folds.

        Returns
        -------
        TradeoffDisplay
            ``self``.

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If no candidate has both scores, there is no such parameter, or ``ax`` is not one Axes.
        """
        check_matplotlib(f"{type(self).__name__}.plot")
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
        self.figure_, self.ax_ = single_axes(ax, width=7.2)
        self.points_: list[Any] = [None] * len(self.params)
        for i in scored.tolist():
            self.points_[i] = self.ax_.errorbar(
                self.x[i],
                self.y[i],
                xerr=self.x_error[i] if errors else None,
                yerr=self.y_error[i] if errors else None,
                elinewidth=1,
                zorder=3,
                **_point(colors[level_of[i]], markers[shape_of[i]]),
            )
        keys = []
        if color_by is not None and scale is None:
            for i, level in enumerate(levels):
                style = _point(colors[i], markers[i] if same else "o")
                keys.append((f"{color_by} = {shortened(level)}", style))
        if marker_by is not None and not same:
            for marker, shape in zip(markers, shapes, strict=True):
                keys.append((f"{marker_by} = {shortened(shape)}", _point("0.75", marker)))
        labels, artists = [label for label, _ in keys], [legend_key(**style) for _, style in keys]
        front = self.front
        style = {"linestyle": "--", "color": "0.4", "linewidth": 1, "zorder": 1}
        artists += self.ax_.plot(self.x[front], self.y[front], **style)
        labels.append("no other is better in both")
        if self.best_index is not None:
            ring = {"marker": "o", "markersize": 18, "color": "black", "markerfacecolor": "none"}
            at = (self.x[self.best_index], self.y[self.best_index])
            self.ax_.plot(*at, linestyle="", zorder=4, **ring)
            artists.append(legend_key(**{**ring, "markersize": 12}))
            labels.append("chosen")
        self.legend_ = plain_legend(self.ax_, artists, labels, beside=ax is None)
        self.colorbar_ = None
        if scale is not None:
            self.colorbar_ = self.figure_.colorbar(scale, ax=self.ax_)
            self.colorbar_.set_label(color_by, **PLAIN)
        folds = f", mean of {self.n_splits} folds" if self.n_splits else ""
        self.ax_.set_xlabel(f"{self.x_name}{folds}", **PLAIN)
        self.ax_.set_ylabel(f"{self.y_name}{folds}", **PLAIN)
        return self

    def _encodings(self, color_by: str | None, marker_by: str | None) -> tuple[Any, Any]:
        """Return the parameters that colours and shapes tell; the same one if only one varies."""
        known = list(dict.fromkeys(name for of in self.params for name in of))
        for name in (color_by, marker_by):
            if name is not None and name not in known:
                raise ValueError(f"The search has no parameter {name!r}; it has {sorted(known)}.")
        varying = [name for name in known if len(_levels(self.params, name)[0]) > 1]
        rest = [name for name in varying if name not in (color_by, marker_by)]
        color_by = color_by or (rest.pop(0) if rest else marker_by)
        return color_by, marker_by or (rest.pop(0) if rest else color_by)


class TradeoffBoxDisplay:
    """A score of a search's candidates, or what it gains over a baseline, by a parameter.

    Parameters
    ----------
    values : dict of str to ndarray of shape (n_candidates,)
        For each value of the parameter the mean scores of its candidates.
    name : str
        Of the score.
    by : str
        Of the parameter.
    is_difference : bool, default=False
        Whether the baseline has been taken off.

    Attributes
    ----------
    values, name, by, is_difference
        As above.
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    boxes_ : dict
        What matplotlib's ``boxplot`` returns.
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
    >>> {name: of.round(2).tolist() for name, of in display.values.items()}
    {'resnet18': [-0.1], 'convnext_tiny': [-0.1]}
    """

    def __init__(
        self,
        *,
        values: Mapping[str, np.ndarray],
        name: str,
        by: str,
        is_difference: bool = False,
    ):
        self.values = values
        self.name = name
        self.by = by
        self.is_difference = is_difference

    @classmethod
    def from_estimator(
        cls,
        search: Any,
        *,
        by: str,
        score: str = "accuracy",
        baseline: Mapping[str, Any] | None = None,
        ax: Any = None,
    ) -> TradeoffBoxDisplay:
        """Draw the candidates of a finished search.

        Parameters
        ----------
        search : fitted GridSearchCV or its like
        by : str
            The parameter that has a box for each value, such as the architecture.
        score : str, default="accuracy"
            ``"score"`` for a search with a single one.
        baseline : dict or None, default=None
            Parameters of the candidate, for each value of ``by``, that others are compared with,
            such as ``{"alpha": 0, "beta": 0}``.
        ax : matplotlib Axes or None, default=None

        Returns
        -------
        TradeoffBoxDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        NotFittedError
            If the search has not been fitted.
        TypeError
            If ``search`` is no estimator.
        ValueError
            If the search has no such score or parameter, the baseline is not one candidate for each
            value, or ``ax`` is not one Axes.
        """
        check_matplotlib(f"{cls.__name__}.from_estimator")
        check_is_fitted(search, "cv_results_")
        return cls.from_cv_results(search.cv_results_, by=by, score=score, baseline=baseline, ax=ax)

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        *,
        by: str,
        score: str = "accuracy",
        baseline: Mapping[str, Any] | None = None,
        ax: Any = None,
    ) -> TradeoffBoxDisplay:
        """Draw the candidates of a search by its table.

        Parameters
        ----------
        cv_results : dict
            ``cv_results_`` of the search.
        by, score, baseline, ax
            As of :meth:`from_estimator`.

        Returns
        -------
        TradeoffBoxDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If ``cv_results`` is no dict, or has no such score or parameter, the baseline is not one
            candidate for each value, or ``ax`` is not one Axes.
        """
        check_matplotlib(f"{cls.__name__}.from_cv_results")
        means, _ = _scores(cv_results, score)
        params = list(cv_results["params"])
        if not any(by in of for of in params):
            known = sorted({name for of in params for name in of})
            raise ValueError(f"The search has no parameter {by!r}; it has {known}.")
        levels, level_of = _levels(params, by)
        values = {}
        for i, level in enumerate(levels):
            own = [k for k in range(len(params)) if level_of[k] == i and np.isfinite(means[k])]
            taken_off = 0.0
            if baseline is not None:
                among = [k for k in own if baseline.items() <= params[k].items()]
                if len(among) != 1:
                    raise ValueError(
                        f"baseline={dict(baseline)} must be one candidate for each {by}; there are "
                        f"{len(among)} with {by}={shortened(level)}."
                    )
                own.remove(among[0])
                taken_off = means[among[0]]
            values[shortened(level)] = means[own] - taken_off
        display = cls(values=values, name=score, by=by, is_difference=baseline is not None)
        return display.plot(ax=ax)

    def plot(self, *, ax: Any = None) -> TradeoffBoxDisplay:
        """Draw a box, and the candidates in it, for each value of the parameter.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            None makes a new figure.

        Returns
        -------
        TradeoffBoxDisplay
            ``self``.

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If ``ax`` is not one Axes.
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        self.figure_, self.ax_ = single_axes(ax, width=1.8 + 1.1 * len(self.values))
        places = np.arange(len(self.values))
        dark = {"color": "0.25"}
        self.boxes_ = self.ax_.boxplot(
            list(self.values.values()),
            positions=places,
            widths=0.5,
            showfliers=False,  # all candidates are drawn
            boxprops=dark,
            whiskerprops=dark,
            capprops=dark,
            medianprops={"color": COLORS[1], "linewidth": 2.5},
        )
        self.points_ = []
        for place, of in zip(places, self.values.values(), strict=True):
            self.points_ += self.ax_.plot(
                np.full(len(of), place), of, "o", color=COLORS[0], alpha=0.6, markersize=5
            )
        labels = [wrapped_text(name, 13, max_lines=4) for name in self.values]
        self.ax_.set_xticks(places, labels, **PLAIN)
        self.ax_.set_xlabel(self.by, **PLAIN)
        of_what = f"{self.name}, less the baseline's" if self.is_difference else self.name
        self.ax_.set_ylabel(of_what, **PLAIN)
        if self.is_difference:
            self.ax_.axhline(0, linestyle="--", color="0.4", linewidth=1, zorder=0)
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


def _levels(params: Sequence[Mapping[str, Any]], name: str | None) -> tuple[list[Any], list[int]]:
    """Return the different values of a parameter, numbers in order, and each candidate's."""
    if name is None:
        return [None], [0] * len(params)
    values = [of.get(name, _NOT_SET) for of in params]
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
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _point(color: Any, marker: str) -> dict[str, Any]:
    edge = {"markeredgecolor": "black", "markeredgewidth": 0.6}
    return {"color": color, "marker": marker, "markersize": 8, "linestyle": "", **edge}


def _palette(levels: Sequence[Any]) -> tuple[list[Any], Any]:
    """Return a colour for each level, and the scale of numbers too many for a key each.

    Numbers get lighter as they grow, so that their order is seen.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, SymLogNorm

    numbers = [level for level in levels if _is_number(level)]
    if not numbers:
        return [COLORS[i % len(COLORS)] for i in range(len(levels))], None
    shades = colormaps[MAP_CMAP]
    if len(levels) <= len(COLORS):
        light = np.linspace(0.05, 0.85, len(numbers))
        return [*shades(light), *["white"] * (len(levels) - len(numbers))], None
    low, high = min(numbers), max(numbers)
    least = min((number for number in numbers if number > 0), default=0)
    spreads = low >= 0 and 0 < 100 * least < high  # over orders of magnitude, but for a zero
    norm = SymLogNorm(least, vmin=low, vmax=high) if spreads else Normalize(low, high)
    scale = ScalarMappable(norm, shades)
    return [scale.to_rgba(of) if _is_number(of) else "white" for of in levels], scale
