"""The drawing tools of the displays: pictures, maps over them, boxes, titles and legends.

Maps are drawn in colours whose lightness rises with the map, and lines differ by more than their
colour, so that a picture is legible in grey. Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from sklcam.explain.checks import remark

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.image import AxesImage
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

Alpha = float | Literal["map"]
Extend = Literal["neither", "max", "both"]  # ends of a scale beyond which values continue
AnyColormap: TypeAlias = "str | Colormap"

MAP_CMAP = "viridis"
SIGNED_CMAP = "RdBu_r"  # white at 0; red and blue are told apart by the colour-blind, too
_LEAST_PEAK = 0.75  # of scaled maps, which were 1 before they were resized to their images
_PERCENTILE = 99  # at which colours of maps of single pixels end: a few outshine all others
# Okabe and Ito's, which the colour-blind can tell apart, but for the yellow, too light on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
RIGHT: dict[str, Any] = {"color": COLORS[0], "linestyle": "-"}
WRONG: dict[str, Any] = {"color": COLORS[1], "linestyle": (0, (2, 1.5))}
SIGNS = {True: "\u2713 ", False: "\u2717 ", None: ""}  # before what is right, wrong, or unknown
# Class names and the like are not mathematics, whatever characters they contain.
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}
# Places where a legend covers nothing.
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "frameon": False}
ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2}
ABOVE |= {"frameon": False}

GREY = np.array([0.299, 0.587, 0.114])  # luma of red, green and blue, ITU-R BT.601
_SMALL = 9  # points
_LETTER = 0.6  # mean width of a letter, in units of the font's size
_BEFORE_NUMBER = re.compile(r" (?=\(?[+-]?\d)")
_NO_BREAK = "\u00a0"


def _extent(image: np.ndarray) -> tuple[float, float, float, float]:
    """Return the extent of an image, so that box edges are the edges of pixels."""
    height, width = image.shape[:2]
    return (0, width, height, 0)


def image(place: Axes, pixels: np.ndarray) -> AxesImage:
    """Draw an image. Grey ones are drawn from black at 0 to white at 1."""
    place.set(xticks=[], yticks=[])
    return place.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=_extent(pixels))


def frame(place: Axes, is_right: bool | None) -> None:
    """Frame a picture as right or wrong, by colour and by line."""
    if is_right is not None:
        style = RIGHT if is_right else WRONG
        place.spines[:].set(linewidth=3, color=style["color"], linestyle=style["linestyle"])


def painter_of(
    maps: Mapping[str, Any],
    cmap: AnyColormap | None = None,
    alpha: Alpha = "map",
    limits: tuple[float, float] | None = None,
    *,
    pixelwise: bool = False,
) -> MapPainter:
    """Return the painter of these maps, which may be of single pixels."""
    kind = PixelMapPainter if pixelwise else MapPainter
    return kind.of(maps, cmap, alpha, limits)


@dataclass(frozen=True)
class MapPainter:
    """Draws maps in one look.

    Parameters
    ----------
    cmap : str, matplotlib Colormap or None
        None is viridis, or red and blue with white at 0 if the limits have two signs.
    limits : tuple of (float, float)
        The values at the ends of the colour map.
    alpha : float in [0, 1] or "map"
        How opaque a map is on its image.
    extend : {"neither", "max", "both"}
        At which ends of the scale values go on, in the last colour.
    """

    cmap: AnyColormap | None = None
    limits: tuple[float, float] = (0.0, 1.0)
    alpha: Alpha = "map"
    extend: Extend = "neither"

    @classmethod
    def of(
        cls,
        maps: Mapping[str, Any],
        cmap: AnyColormap | None,
        alpha: Alpha,
        limits: tuple[float, float] | None = None,
    ) -> MapPainter:
        """Return the painter of these maps. Limits that are None are those of :meth:`ends_of`."""
        if limits is not None:
            return cls(cmap, limits, alpha)
        ends, extend = cls.ends_of(maps)
        return cls(cmap, ends, alpha, extend)

    @staticmethod
    def ends_of(maps: Mapping[str, Any]) -> tuple[tuple[float, float], Extend]:
        """Return the ends of a scale that holds all values, and where values continue."""
        return map_limits(maps), "neither"

    @property
    def is_signed(self) -> bool:
        return self.limits[0] < 0 < self.limits[1]

    @property
    def note(self) -> str:
        """Where the colours end, for the title of a map that the figure's scale is not for."""
        return ""

    def kinds(self, kind: str) -> Sequence[str]:
        """Return how a map is drawn, beside each other; kind="both" is two pictures."""
        return ("map", "overlay") if kind == "both" else (kind,)

    def _colors(self) -> tuple[Normalize, AnyColormap]:
        from matplotlib.colors import Normalize, TwoSlopeNorm

        if self.cmap is None and self.is_signed:
            return TwoSlopeNorm(0, *self.limits), SIGNED_CMAP
        return Normalize(*self.limits), self.cmap or MAP_CMAP

    def draw(self, place: Axes, map_: np.ndarray, pixels: np.ndarray) -> AxesImage:
        """Draw a map where its image would be."""
        place.set(xticks=[], yticks=[])
        norm, cmap = self._colors()
        drawn = place.imshow(map_, cmap=cmap, norm=norm, extent=_extent(pixels))
        if text := remark(map_):
            style: dict[str, Any] = {"ha": "center", "va": "center", "color": "white"}
            style |= {"bbox": {"facecolor": "black", "alpha": 0.6, "linewidth": 0}}
            style |= {"fontsize": _SMALL, "transform": place.transAxes}
            place.text(0.5, 0.5, wrapped(text, 12), **style)
        return drawn

    def draw_as(self, kind: str, place: Axes, map_: np.ndarray, pixels: np.ndarray) -> AxesImage:
        """Draw a map by itself, kind="map", or on its image, kind="overlay"."""
        draw = self.draw if kind == "map" else self.draw_over
        return draw(place, map_, pixels)

    def draw_over(self, place: Axes, map_: np.ndarray, pixels: np.ndarray) -> AxesImage:
        """Draw a map on its image, which is grey, so that only the map has colours."""
        image(place, pixels if pixels.ndim == 2 else pixels @ GREY)
        drawn = self.draw(place, map_, pixels)
        drawn.set_alpha(self._opacity(map_) if self.alpha == "map" else self.alpha)
        return drawn

    def _opacity(self, map_: np.ndarray) -> np.ndarray:
        """Return how far each value is from 0, or, without two signs, from the lower limit."""
        low, high = self.limits
        if self.is_signed:
            shares = np.where(map_ < 0, map_ / low, map_ / high)
        else:
            shares = (map_ - low) / (high - low)
        opacity: np.ndarray = np.nan_to_num(shares, posinf=1, neginf=0).clip(0, 1)
        return opacity

    def scale(self, place: Axes) -> Colorbar:
        """Draw the colour scale beside a map, as high as the map."""
        from matplotlib.cm import ScalarMappable

        bar = place.figure.colorbar(
            ScalarMappable(*self._colors()),
            cax=place.inset_axes((1.06, 0, 0.08, 1)),
            extend=self.extend,
        )
        bar.set_label("map", fontsize=_SMALL)
        bar.ax.tick_params(labelsize=_SMALL)
        return bar


class PixelMapPainter(MapPainter):
    """Draws maps of single pixels, such as saliency, in one look.

    A few pixels outshine all others, so the colours end at a percentile of the values of all maps.
    Over an image single pixels are not seen, so these maps are always drawn by themselves.
    """

    @staticmethod
    def ends_of(maps: Mapping[str, Any]) -> tuple[tuple[float, float], Extend]:
        """Return the ends of a scale at a percentile, and where values continue."""
        low, high = map_limits(maps)
        values = _values(maps)
        end = float(np.percentile(np.abs(np.concatenate(values)), _PERCENTILE)) if values else 0.0
        # Unscaled gradients are hardly ever 0, but begin near it. Values far from it have no 0.
        if low > end / 2 or not 0 < end < high:
            return (low, high), "neither"
        return ((-end, end), "both") if low < 0 else ((0.0, end), "max")

    @property
    def note(self) -> str:
        return "" if self.extend == "neither" else f"up to the {_PERCENTILE}th percentile"

    def kinds(self, kind: str) -> Sequence[str]:
        return ("map",)

    def draw_over(self, place: Axes, map_: np.ndarray, pixels: np.ndarray) -> AxesImage:
        return self.draw(place, map_, pixels)

    def scale(self, place: Axes) -> Colorbar:
        """Draw the scale; for a percentile without numbers, so that it holds for other methods."""
        bar = super().scale(place)
        if self.extend != "neither":
            ticks = {0.0: "0", self.limits[1]: f"top {100 - _PERCENTILE} %"}
            if self.extend == "both":
                ticks[self.limits[0]] = ticks[self.limits[1]]
            bar.set_ticks(list(ticks), labels=list(ticks.values()))
        return bar


def map_limits(maps: Mapping[str, Any]) -> tuple[float, float]:
    """Return what the ends of the colour map stand for: 0 and 1 if maps have been scaled to that.

    Otherwise the lowest and the highest value, equally far from 0 if maps have two signs.
    """
    known = _values(maps)
    low = min((float(values.min()) for values in known), default=0.0)
    high = max((float(values.max()) for values in known), default=1.0)
    if low >= 0 and high <= 1:
        is_scaled = high > _LEAST_PEAK or high == 0
        return 0.0, 1.0 if is_scaled else high
    if low < 0 < high:
        low, high = min(low, -high), max(high, -low)
    return (low, high) if low < high else (min(low, 0.0), max(high, 1.0))


def _values(maps: Mapping[str, Any]) -> list[np.ndarray]:
    """Return the finite values of each map that has some."""
    found = [map_[np.isfinite(map_)] for some in maps.values() for map_ in map(np.asarray, some)]
    return [values for values in found if len(values)]


def box(place: Axes, corners: Sequence[float] | np.ndarray, style: Mapping[str, Any]) -> None:
    """Draw a box that is visible on any image: a line on a wider white one."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = map(float, corners)
    _within_white(place, partial(Rectangle, (x1, y1), x2 - x1, y2 - y1), style)


def outline(place: Axes, corners: np.ndarray, style: Mapping[str, Any]) -> None:
    """Draw a polygon, (n_corners, 2), as :func:`box` draws a box."""
    from matplotlib.patches import Polygon

    _within_white(place, partial(Polygon, corners), style)


def _within_white(place: Axes, shape: Callable[..., Patch], style: Mapping[str, Any]) -> None:
    """Draw the outline of a shape in a style, on a wider white one."""
    looks: tuple[tuple[float, Any], ...] = ((3.6, {"color": "white"}), (1.8, style))
    for width, look in looks:
        place.add_patch(shape(fill=False, linewidth=width, clip_on=False, **look))


def stacked(*parts: str) -> str:
    """Return lines of text, without the empty ones."""
    return "\n".join(part for part in parts if part)


def wrapped(text: str, width: int, max_lines: int = 2) -> str:
    """Break text into lines of at most a width in letters, and cut it after some.

    A number stays on the same line as the word before it.
    """
    bound = _BEFORE_NUMBER.sub(_NO_BREAK, text)
    lines = textwrap.wrap(bound, width, max_lines=max_lines, placeholder=" …")
    return "\n".join(lines).replace(_NO_BREAK, " ")


def title(place: Axes, *lines: str, columns: int = 1) -> None:
    """Write lines over a picture, as plain text, no wider than some columns."""
    inches = place.get_window_extent().width / place.figure.dpi
    if place.figure.get_layout_engine() is not None:
        inches *= 1.2  # it has yet to fill the space between
    letters = max(12, int(columns * inches * 72 / (_LETTER * _SMALL)))
    given = stacked(*lines).splitlines()
    text = "\n".join(wrapped(line, letters) for line in given)
    place.set_title(text, fontsize=_SMALL, **PLAIN)


def row_title(places: Sequence[Axes], text: str) -> None:
    """Write a line over a row of pictures, from its left edge on."""
    title(places[0], text, columns=len(places))
    places[0].title.set_horizontalalignment("left")
    places[0].title.set_x(0)


def caption(place: Axes, text: str) -> None:
    """Write a line under a picture."""
    place.set_xlabel(text, fontsize=_SMALL, labelpad=2, **PLAIN)


def styles() -> Iterator[dict[str, Any]]:
    """Yield a colour and a line for each of any number of curves."""
    i = 0
    while True:
        # Once all lines have been used, they go with other colours than before.
        line = LINES[(i + i // len(LINES)) % len(LINES)]
        yield {"color": COLORS[i % len(COLORS)], "linestyle": line}
        i += 1


def shortened(value: Any) -> str:
    """Return a parameter's value as a legend writes it."""
    if isinstance(value, float | np.floating):
        return f"{value:g}"
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) else " ".join(str(value).split())


def key(**style: Any) -> Line2D:
    """Return a line or marker for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"linestyle": "", "label": "", **style})


def legend(
    place: Axes,
    artists: Sequence[Artist],
    labels: Sequence[str],
    *,
    characters: int = 40,
    **options: Any,
) -> Legend:
    """Write a legend of labels as plain text, with those that matplotlib would leave out.

    A line has at most ``characters`` characters.
    """
    # Each label is set once it is there: matplotlib hides those that begin with an underscore.
    made = place.legend(
        artists, ["label"] * len(labels), fontsize=_SMALL, title_fontsize=_SMALL, **options
    )
    for text, label in zip(made.get_texts(), labels, strict=True):
        text.set(text=wrapped(label, characters), **PLAIN)
    return made
