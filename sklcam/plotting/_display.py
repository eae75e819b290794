"""The base of the displays. It refuses what cannot be drawn before anything is computed."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np

from sklcam._validation import check_count, check_number, describe, suggestion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AnyAxes: TypeAlias = "Axes | Sequence[Axes] | np.ndarray | None"

CELL = 2.0  # inches that a picture is wide
_GAP = 0.1  # of a picture's width, between groups of them
TITLE = 0.42  # inches that a title is high
_LARGEST_FIGURE = 18.0  # inches wide
_MOST_ROWS = 100


class Display(ABC):
    """Base of the displays, in scikit-learn's protocol.

    ``from_estimator`` computes, and ``from_predictions`` takes results that exist already. Both
    call :meth:`plot`, and take its options.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : ndarray of matplotlib Axes
        In displays of pictures.
    ims_ : ndarray of matplotlib AxesImage or None, of the same shape
    ax_ : matplotlib Axes
        In displays of numbers.

    Raises
    ------
    ImportError
        If matplotlib is missing; it comes with the extra ``plot``.
    NotFittedError
        If an estimator has not been fitted.
    TypeError
        If an option is not one of :meth:`plot`.
    ValueError
        If an estimator does not explain, or if images, labels, methods, targets, axes or options
        do not fit. It is raised before anything is computed.
    """

    kinds: ClassVar[Sequence[str]] = ()

    figure_: Any  # a figure, or a part of one
    axes_: np.ndarray
    ax_: Any

    @abstractmethod
    def plot(self, *, ax: AnyAxes = None) -> Self:
        """Draw on new axes, or on the given ones."""

    @classmethod
    def _check(cls, *, ax: AnyAxes = None, **options: Any) -> None:
        """Raise an error for options that could not be drawn."""
        cls._check_matplotlib()
        # plot would refuse them, too, but only after the network has run.
        known = set(inspect.signature(cls.plot).parameters) - {"self", "ax"}
        unknown = sorted(set(options) - known)
        if unknown:
            # What was meant may belong to the method that the option was given to.
            for name in ("from_estimator", "from_predictions", "from_cv_results"):
                known |= set(inspect.signature(getattr(cls, name, cls.plot)).parameters)
            raise TypeError(
                f"{cls.__name__} has no option {unknown[0]!r}. "
                f"{suggestion(unknown[0], known - {'self', 'ax', 'options'})}"
            )
        if ax is not None:
            _check_axes(ax)
        for name, value in options.items():
            _check_look(name, value, cls.kinds)

    @classmethod
    def _check_matplotlib(cls) -> None:
        try:
            import_module("matplotlib")
        except ImportError as error:
            raise ImportError(
                f'{cls.__name__} needs matplotlib. It comes with: pip install "sklcam[plot]"'
            ) from error

    @classmethod
    def _check_n_rows(cls, n_rows: int) -> None:
        """Raise a ValueError for a figure that would be too tall to look at."""
        if n_rows > _MOST_ROWS:
            raise ValueError(
                f"{cls.__name__} draws at most {_MOST_ROWS} rows, and this would be {n_rows}. "
                "Choose fewer images."
            )

    def _take_grid(
        self,
        ax: AnyAxes,
        n_columns: int,
        rows: Sequence[Sequence[np.ndarray]],
        *,
        groups: Sequence[int] = (),
        cell: float = CELL,
        title: float = TITLE,
    ) -> np.ndarray:
        """Return axes for rows of images, (n_rows, n_columns): new ones, or the given ones.

        A row is as high as its images are at the width of a column, but portraits are no higher
        than other images. ``groups`` are numbers of columns; there is some space between groups.
        """
        if ax is not None:
            self._take_given(ax, (len(rows), n_columns))
        else:
            import matplotlib.pyplot as plt

            self._check_n_rows(len(rows))
            shapes = [[image.shape[0] / image.shape[1] for image in images] for images in rows]
            narrowest, highest = _proportions([shape for row in shapes for shape in row])
            width = min(cell * narrowest * n_columns, _LARGEST_FIGURE - 1) / n_columns
            heights = [width / narrowest * min(max(max(row), 0.3), highest) for row in shapes]
            widths = [1.0] * n_columns
            for start in reversed(np.cumsum(groups)[:-1].tolist()):
                widths.insert(start, _GAP)  # a column without axes
            size = (width * sum(widths) + 0.8, sum(heights) + title * len(rows) + 0.3)
            self.figure_ = plt.figure(figsize=size, layout="constrained")
            ratios = {"width_ratios": widths, "height_ratios": heights}
            grid = self.figure_.add_gridspec(len(rows), len(widths), wspace=0.02, **ratios)
            columns = [i for i, share in enumerate(widths) if share == 1]
            axes = [
                [self.figure_.add_subplot(grid[i, j]) for j in columns] for i in range(len(rows))
            ]
            self.axes_ = np.array(axes, dtype=object)
        self.ims_ = np.full(self.axes_.shape, None, dtype=object)
        return self.axes_

    def _take_given(self, ax: AnyAxes, shape: tuple[int, int]) -> None:
        """Take the given axes, in rows and columns."""
        axes = _check_axes(ax)
        # A row of axes may stand in any order, such as for the maps of one image in several rows;
        # rows and columns must be the picture's own.
        is_other_grid = axes.ndim == 2 and 1 not in shape and axes.shape != shape
        if axes.size != shape[0] * shape[1] or is_other_grid:
            raise ValueError(
                f"{type(self).__name__} needs {shape[0]} x {shape[1]} axes here, rows by columns; "
                f"ax has {' x '.join(map(str, axes.shape)) or 'one'}."
            )
        self.axes_ = axes.reshape(shape)
        self.figure_ = self.axes_[0, 0].figure

    def _take_axes(self, ax: AnyAxes, width: float = 6.0, height: float = 4.2) -> Axes:
        """Return one axes, a new one or the given one."""
        from matplotlib.axes import Axes

        if ax is None:
            import matplotlib.pyplot as plt

            self.figure_, self.ax_ = plt.subplots(figsize=(width, height), layout="constrained")
        elif isinstance(ax, Axes):
            self.figure_, self.ax_ = ax.figure, ax
        else:
            raise ValueError(f"ax must be one matplotlib Axes; got a {type(ax).__name__}.")
        return self.ax_


def _proportions(shapes: Sequence[float]) -> tuple[float, float]:
    """Return the width of a column and the largest height of a picture, in units of a cell.

    Portraits are as high as the highest of the other images, or a photograph across, if these are
    panoramas. Where all are portraits, columns are as narrow as the widest of them.
    """
    others = [shape for shape in shapes if shape <= 1]
    if others:
        return 1.0, max(*others, 2 / 3)
    return max(1 / min(shapes), 0.6), 1.0


def _check_axes(ax: AnyAxes) -> np.ndarray:
    axes = np.asarray(ax, dtype=object)
    if not all(hasattr(place, "imshow") for place in axes.flat):
        raise ValueError(f"ax must be matplotlib axes; got {describe(ax)}.")
    return axes


def check_option(name: str, value: object, known: Sequence[str]) -> None:
    """Raise a ValueError unless the value is a known one."""
    if value not in known:
        raise ValueError(f"{name} must be one of {list(known)}; got {value!r}.")


def _check_look(name: str, value: Any, kinds: Sequence[str]) -> None:
    """Raise a ValueError for an option that cannot be drawn. A name means the same everywhere."""
    from matplotlib.cm import ScalarMappable

    if name == "kind":
        check_option(name, value, kinds)
    elif name == "cmap":
        ScalarMappable(cmap=value)  # matplotlib's error names the closest
    elif name == "alpha" and isinstance(value, str):
        if value != "map":
            raise ValueError(f'alpha must be "map" or a number from 0 to 1; got {value!r}.')
    elif name == "alpha":
        check_number(name, value, 0, 1)
    elif name == "limits" and value is not None:
        if np.shape(value) != (2,) or not value[0] < value[1]:
            raise ValueError(f"limits must be two numbers, low < high; got {value!r}.")
    elif name in ("n_columns", "bins"):
        check_count(name, value)


def check_maps(maps: Mapping[str, Any], n_images: int) -> None:
    """Raise a ValueError unless there is one map (height, width) per image."""
    for name, given in maps.items():
        if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str):
            raise ValueError(
                f"maps {name!r} must be one map for each image; got {describe(given)}."
            )
        if len(given) != n_images:
            raise ValueError(f"There are {len(given)} maps {name!r} for {n_images} images.")
        for map_ in given:
            check_map_shape(name, np.shape(map_))


def check_map_shape(name: str, shape: tuple[int, ...], n_axes: int = 2) -> None:
    """Raise a ValueError unless a map is one of height and width, or a volume of three axes."""
    if len(shape) != n_axes:
        raise ValueError(
            f"A display draws one map (height, width) per image; a map {name!r} is of shape "
            f"{shape}."
        )


def check_titles(titles: Sequence[str] | None, n_images: int) -> None:
    """Raise a ValueError unless there is one title per image."""
    if titles is not None and len(titles) != n_images:
        raise ValueError(f"There are {len(titles)} titles for {n_images} images.")
