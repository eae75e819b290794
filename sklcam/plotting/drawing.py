"""What all displays draw with: pictures, maps over them, boxes, titles and legends.

Maps are drawn in colours whose lightness rises with the map, and lines differ by more than their
colour, so that a picture is legible in grey. Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from sklcam._validation import check_count, check_number, describe, suggestion

MAP_CMAP = "viridis"
# Okabe and Ito's, which the colour-blind can tell apart, but for the yellow, too light on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
RIGHT: dict[str, Any] = {"color": COLORS[0], "ls": "-"}
WRONG: dict[str, Any] = {"color": COLORS[1], "ls": (0, (2, 1.5))}
# Class names and the like are no mathematics, whatever signs they hold.
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}

TITLE = 0.42  # inches that a title is high

_CELL = 2.0  # inches that a picture is wide
_GAP = 0.1  # of a picture's width, between groups of them
_LARGEST_FIGURE = 18.0  # inches wide
_MOST_ROWS = 100
_SMALL = 9  # points
_LETTER = 0.5  # mean width of a letter, in units of the font's size


def check_matplotlib(caller: str) -> None:
    """Raise an ImportError that names the extra, before anything is computed."""
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise ImportError(
            f'{caller} needs matplotlib. It comes with: pip install "sklcam[plot]"'
        ) from error


def check_option(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise a ValueError unless the value is one of those known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {list(known)}; got {value!r}.")


def check_options(
    display: type[Any], ax: Any, options: Mapping[str, Any], kinds: Sequence[str] = ()
) -> None:
    """Raise an error for what a display could not draw, before anything is computed for it.

    Parameters
    ----------
    display : class of displays
    ax : Any
        The axes that were given, or None.
    options : mapping
        Keyword arguments of its ``plot``.
    kinds : sequence of str
        What its ``kind`` may be.
    """
    check_matplotlib(f"{display.__name__}.from_estimator")
    known = set(inspect.signature(display.plot).parameters) - {"self", "ax"}
    unknown = sorted(set(options) - known)
    if unknown:
        known |= set(inspect.signature(display.from_estimator).parameters)
        raise TypeError(
            f"{display.__name__} has no option {unknown[0]!r}. "
            f"{suggestion(unknown[0], known - {'ax', 'options'})}"
        )
    if ax is not None:
        _check_axes(ax)
    if "kind" in options:
        check_option("kind", options["kind"], kinds)
    check_looks(**options)


def check_looks(**looks: Any) -> None:
    """Raise a ValueError for looks that cannot be drawn; each of one meaning in all displays."""
    from matplotlib.cm import ScalarMappable

    for name, value in looks.items():
        if name == "cmap":
            ScalarMappable(cmap=value)  # matplotlib's error names the closest
        elif name == "alpha" and isinstance(value, str):
            check_option(name, value, ("map",))
        elif name == "alpha":
            check_number(name, value, 0, 1)
        elif name == "limits" and value is not None:
            if np.shape(value) != (2,) or not value[0] < value[1]:
                raise ValueError(f"limits must be two numbers, low < high; got {value!r}.")
        elif name in ("n_columns", "bins"):
            check_count(name, value)


def check_n_rows(n_rows: int, name: str) -> None:
    """Raise a ValueError for a picture that would be too high to be looked at."""
    if n_rows > _MOST_ROWS:
        raise ValueError(
            f"{name} draws at most {_MOST_ROWS} rows, and this would be {n_rows}: choose some "
            "images."
        )


def check_maps(maps: Mapping[str, Any], n_images: int) -> None:
    """Raise a ValueError unless there is one finite map (height, width) per image."""
    for name, of in maps.items():
        if not isinstance(of, Sequence | np.ndarray) or isinstance(of, str):
            raise ValueError(f"maps {name!r} must be one map for each image; got {describe(of)}.")
        if len(of) != n_images:
            raise ValueError(f"There are {len(of)} maps {name!r} for {n_images} images.")
        for map_ in of:
            if np.ndim(map_) != 2:
                raise ValueError(
                    f"A display draws one map (height, width) per image; a map {name!r} is of "
                    f"shape {np.shape(map_)}."
                )
            if not np.isfinite(map_).all():
                raise ValueError(f"A map {name!r} has values that are NaN or infinite.")


def check_titles(titles: Sequence[str] | None, n_images: int) -> None:
    """Raise a ValueError unless there is one title per image."""
    if titles is not None and len(titles) != n_images:
        raise ValueError(f"There are {len(titles)} titles for {n_images} images.")


def map_limits(maps: Mapping[str, Any]) -> tuple[float, float]:
    """Return what the ends of the colour map stand for: 0 and 1, and what goes beyond."""
    low = min(float(np.min(map_)) for of in maps.values() for map_ in of)
    high = max(float(np.max(map_)) for of in maps.values() for map_ in of)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if low < high else (min(low, 0.0), max(high, 1.0))


def axes_grid(
    ax: Any,
    n_columns: int,
    rows: Sequence[Sequence[np.ndarray]],
    name: str,
    *,
    groups: Sequence[int] = (),
    cell: float = _CELL,
    title: float = TITLE,
) -> tuple[Any, np.ndarray]:
    """Return a figure and its axes, (n_rows, n_columns): new ones, or those that were given.

    Rows are as high as the images that will be in them are, at the width of a column. Of groups of
    so many columns each, there is some space between.
    """
    if ax is not None:
        return given_axes(ax, (len(rows), n_columns), name)
    import matplotlib.pyplot as plt

    check_n_rows(len(rows), name)
    width = min(cell * n_columns, _LARGEST_FIGURE - 1) / n_columns
    shapes = [[image.shape[0] / image.shape[1] for image in images] for images in rows]
    heights = [width * min(max(max(row), 0.3), 3) for row in shapes]
    ratios = [1.0] * n_columns
    for start in reversed(np.cumsum(groups)[:-1].tolist()):
        ratios.insert(start, _GAP)  # a column without axes
    size = (width * sum(ratios) + 0.8, sum(heights) + title * len(rows) + 0.3)
    figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(
        len(rows), len(ratios), width_ratios=ratios, height_ratios=heights, wspace=0.02
    )
    columns = [i for i, ratio in enumerate(ratios) if ratio == 1]
    axes = [[figure.add_subplot(grid[row, i]) for i in columns] for row in range(len(rows))]
    return figure, np.array(axes, dtype=object)


def given_axes(ax: Any, shape: tuple[int, int], name: str) -> tuple[Any, np.ndarray]:
    """Return the figure of the axes that were given, and these in rows and columns."""
    axes = _check_axes(ax)
    if axes.size != shape[0] * shape[1] or (axes.ndim == 2 and 1 not in shape != axes.shape):
        raise ValueError(
            f"{name} needs {shape[0]} x {shape[1]} axes here, rows by columns; ax has "
            f"{' x '.join(map(str, axes.shape)) or 'one'}."
        )
    axes = axes.reshape(shape)
    return axes.flat[0].figure, axes


def _check_axes(ax: Any) -> np.ndarray:
    axes = np.asarray(ax, dtype=object)
    if not all(hasattr(place, "imshow") for place in axes.flat):
        raise ValueError(f"ax must be matplotlib axes; got {describe(ax)}.")
    return axes


def single_axes(ax: Any, width: float = 6.0, height: float = 4.2) -> tuple[Any, Any]:
    """Return a figure and its one axes: new ones, or those that were given."""
    if ax is None:
        import matplotlib.pyplot as plt

        return plt.subplots(figsize=(width, height), layout="constrained")
    if not hasattr(ax, "errorbar"):
        raise ValueError(f"ax must be one matplotlib Axes; got a {type(ax).__name__}.")
    return ax.figure, ax


def _frame(image: np.ndarray) -> tuple[float, float, float, float]:
    """Return the extent in which pixels are areas, so that a box's edges are edges of pixels."""
    height, width = image.shape[:2]
    return (0, width, height, 0)


def draw_image(place: Any, image: np.ndarray) -> Any:
    """Draw an image, grey ones from black to white as they are."""
    place.set(xticks=[], yticks=[])
    return place.imshow(image, cmap="gray", vmin=0, vmax=1, extent=_frame(image))


def draw_map(
    place: Any,
    map_: np.ndarray,
    limits: tuple[float, float],
    cmap: Any,
    alpha: Any = 1.0,
    *,
    on: np.ndarray | None = None,
    frame: np.ndarray,
) -> Any:
    """Draw a map where its image would be; on the image in grey, whose colours would mislead."""
    low, high = limits
    options = {"cmap": cmap, "vmin": low, "vmax": high, "extent": _frame(frame)}
    if on is not None:
        draw_image(place, on if on.ndim == 2 else on @ np.array([0.299, 0.587, 0.114]))
        if isinstance(alpha, str):
            check_option("alpha", alpha, ("map",))
            alpha = np.clip((map_ - low) / (high - low), 0, 1)
        options["alpha"] = alpha
    place.set(xticks=[], yticks=[])
    return place.imshow(map_, **options)


def map_scale(place: Any, limits: tuple[float, float], cmap: Any) -> Any:
    """Draw what the colours of the maps stand for, beside one of them and as high as it is."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = place.figure.colorbar(
        ScalarMappable(Normalize(*limits), cmap), cax=place.inset_axes([1.06, 0, 0.08, 1])
    )
    bar.set_label("map", fontsize=_SMALL)
    bar.ax.tick_params(labelsize=_SMALL)
    return bar


def draw_box(place: Any, box: Any, style: Mapping[str, Any]) -> None:
    """Draw a box that is seen on any ground: a line within a white one."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = map(float, box)
    looks: tuple[tuple[float, Any], ...] = ((3.6, {"color": "white"}), (1.8, style))
    for width, look in looks:
        frame = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=width, **look)
        frame.set_clip_on(False)
        place.add_patch(frame)


def stacked(*parts: str) -> str:
    """Return lines of text, without the empty ones."""
    return "\n".join(part for part in parts if part)


def wrapped_text(text: str, width: int, max_lines: int = 2) -> str:
    """Break text into lines of at most a width in letters, and cut it after some."""
    return "\n".join(textwrap.wrap(text, width, max_lines=max_lines, placeholder=" …"))


def set_title(place: Any, text: str, columns: int = 1) -> None:
    """Write lines over a picture, none wider than it or some columns, as they are."""
    inches = place.get_window_extent().width / place.figure.dpi
    if place.figure.get_layout_engine() is not None:
        inches *= 1.2  # it has yet to fill the space between
    letters = max(12, int(columns * inches * 72 / (_LETTER * _SMALL)))
    wrapped = "\n".join(wrapped_text(line, letters) for line in text.splitlines())
    place.set_title(wrapped, fontsize=_SMALL, **PLAIN)


def set_caption(place: Any, text: str) -> None:
    """Write a line under a picture."""
    place.set_xlabel(text, fontsize=_SMALL, labelpad=2, **PLAIN)


def line_styles() -> Iterator[dict[str, Any]]:
    """Yield a colour and a line for each of any number of curves."""
    i = 0
    while True:
        yield {
            "color": COLORS[i % len(COLORS)],
            "linestyle": LINES[(i + i // len(LINES)) % len(LINES)],
        }
        i += 1


def shortened(value: Any) -> str:
    """Return a parameter's value as it is told from others in a legend."""
    if isinstance(value, (float, np.floating)):
        return f"{value:g}"
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) else " ".join(str(value).split())


def legend_key(**style: Any) -> Any:
    """Return a line or marker for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"linestyle": "", "label": "", **style})


def plain_legend(
    place: Any,
    artists: Sequence[Any],
    labels: Sequence[str],
    *,
    beside: bool = False,
    above: bool = False,
    **options: Any,
) -> Any:
    """Write a legend of labels as they are: also those that matplotlib would leave out or set."""
    if beside:
        options |= {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "frameon": False}
    if above:
        options |= {
            "loc": "lower center",
            "bbox_to_anchor": (0.5, 1.0),
            "frameon": False,
            "ncols": 2,
        }
    legend = place.legend(
        artists, ["label"] * len(labels), fontsize=_SMALL, title_fontsize=_SMALL, **options
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=wrapped_text(label, 40), **PLAIN)
    return legend
