"""Images and their maps: methods, models and parameters beside each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone, is_regressor

from sklcam._validation import describe
from sklcam.cam import get_method
from sklcam.explain.base import AnyMethod
from sklcam.explain.nested import as_explainer
from sklcam.images.dataset import n_images
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import (
    CELL,
    TITLE,
    AnyAxes,
    Display,
    check_maps,
    check_option,
    check_titles,
)
from sklcam.plotting._explained import (
    AnyEstimators,
    AnyMethods,
    Explanation,
    as_text,
    column_name,
    explainers_by_name,
    labels_of_images,
    map_list,
    named_values,
    pictures_of,
)

_LARGE_CELL = 3.2  # inches, of one image with few maps


@dataclass(kw_only=True, eq=False, repr=False)
class CAMDisplay(Display):
    """Images, and the maps of one or several methods or models beside them.

    Made by :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    images : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    maps : dict of str to list of ndarray of shape (height, width)
        For each method or model one map per image; of the image's size or another one, as it is
        stretched over it.
    image_titles : list of str or None, default=None
        The text over each image.
    map_titles : dict of str to list of str or None, default=None
        The text over each map.
    image_right : list of bool or None, default=None
        Whether each image's prediction is right, which frames the image; None for an image means
        unknown.
    map_right : dict of str to list of bool, or None, default=None
        The same for each map's model, which frames the map.
    pixelwise : collection of str, default=()
        The names in ``maps`` whose maps are of single pixels, such as saliency. A few of these
        pixels outshine all others, and over an image they would not be seen. So these maps are
        drawn by themselves, in colours that end at the 99th percentile of all their values.

    Attributes
    ----------
    images, maps, image_titles, map_titles, image_right, map_right, pixelwise
        As above.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_images, n_columns)
    ims_ : ndarray of AxesImage, of the shape of ``axes_``
        The image in the first column, and in the others the map.
    colorbar_ : matplotlib Colorbar or None

    Examples
    --------
    >>> import torch
    >>> from sklcam import CAMExplainer
    >>> from sklcam.networks import build_model
    >>> from sklcam.plotting import CAMDisplay
    >>> explainer = CAMExplainer(build_model("resnet18", n_classes=5), verbose=0).fit()
    >>> images = torch.rand(2, 3, 64, 64)
    >>> display = CAMDisplay.from_estimator(explainer, images, methods=["gradcam", "layercam"])
    >>> display.axes_.shape
    (2, 3)
    """

    kinds = ("overlay", "map", "both")

    images: Sequence[np.ndarray]
    maps: Mapping[str, Sequence[np.ndarray]]
    image_titles: Sequence[str] | None = None
    map_titles: Mapping[str, Sequence[str]] | None = None
    image_right: Sequence[bool | None] | None = None
    map_right: Mapping[str, Sequence[bool | None]] | None = None
    pixelwise: Collection[str] = ()

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimators,
        X: Any,
        y: ArrayLike | None = None,
        *,
        methods: AnyMethods = None,
        target: Any = None,
        frame: Literal["image", "input"] = "image",
        **options: Any,
    ) -> CAMDisplay:
        """Explain images, and draw them.

        Each image is read once, and one pass of the network makes the maps of all methods. For a
        volume, one slice is drawn: the one with the highest value of the first map. The title says
        which one, counted from 0.

        Parameters
        ----------
        estimator : estimator with ``explain``, nn.Module, or dict of names to them
            Fitted. Several are drawn side by side under their names.
        X : images
            In any form that the estimator takes: a row for each, at most 100.
        y : array-like of shape (n_images,) or None, default=None
            The true labels; a torch data set may bring its own. They are in the titles, and
            predictions are marked as right or wrong, by a sign and a frame.
        methods : str, Method, list of them, dict of names to them, or None, default=None
            The explanations, a column for each; None is the estimator's own.
        target : None, labels, callable or Target, default=None
            See ``explain``; None is the predicted class. Several classes of each image, such as
            ``TopK(3)``, have a column each.
        frame : {"image", "input"}, default="image"
            Images and maps at each image's own size, or as the network gets them.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        CAMDisplay
        """
        cls._check(**options)
        check_option("frame", frame, ("image", "input"))
        options_of = {"slices": True, "several": True}
        explanations = {
            name: Explanation(explainer, images, target, methods, frame, **options_of)
            for name, (explainer, images) in explainers_by_name(estimator, X, y).items()
        }
        alone = len(explanations) == 1
        # Models may see the images at different sizes; those of the first are drawn.
        first = next(iter(explanations.values()))
        n_rows = first.n_images
        cls._check_n_rows(n_rows)
        labels = labels_of_images(X, y, n_rows, first.explainer)
        titles = [""] * n_rows if labels is None else [f"true: {label}" for label in labels]
        columns: dict[str, _Column] = {}
        for name, explanation in explanations.items():
            explanation.run(first.slices)
            columns |= _columns(name, explanation, labels, n_models=len(explanations))
        if first.slices:
            titles = [
                draw.stacked(title, f"slice {i} of {first.n_slices}")
                for title, i in zip(titles, first.slices, strict=True)
            ]
        if alone:  # what is predicted is said once, over the image
            titles = [*map(draw.stacked, titles, _predicted(first, first.verdicts(labels)))]
        display = cls(
            images=first.pictures,
            maps={name: column.maps for name, column in columns.items()},
            image_titles=titles,
            map_titles={name: column.titles for name, column in columns.items()}
            if first.targets or not alone
            else None,
            image_right=first.verdicts(labels) if alone else None,
            map_right=None if alone else {name: each.right for name, each in columns.items()},
            pixelwise=[name for name, column in columns.items() if column.is_pixelwise],
        )
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        maps: Any,
        *,
        titles: Sequence[Any] | None = None,
        pixelwise: Collection[str] = (),
        **options: Any,
    ) -> CAMDisplay:
        """Draw maps that you already have.

        Parameters
        ----------
        images : images
            In any form that an estimator takes.
        maps : array-like of shape (n_images, height, width), list of maps, or dict of names to them
        titles : sequence of length n_images or None, default=None
            The text over each image, such as its label.
        pixelwise : collection of str, default=()
            Which of ``maps`` are of single pixels: see the class.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        CAMDisplay

        Raises
        ------
        ValueError
            If there is not one map (height, width) and one title for each image, or ``pixelwise``
            contains a name that is not in ``maps``.
        """
        cls._check(**options)
        named = {name: map_list(given) for name, given in named_values(maps, "map").items()}
        display = cls(
            images=pictures_of(images),
            maps=named,
            image_titles=as_text(titles),
            pixelwise=pixelwise,
        )
        return display.plot(**options)

    def plot(
        self,
        *,
        ax: AnyAxes = None,
        kind: Literal["overlay", "map", "both"] = "overlay",
        cmap: draw.AnyColormap | None = None,
        alpha: draw.Alpha = "map",
        limits: tuple[float, float] | None = None,
        colorbar: bool = True,
    ) -> CAMDisplay:
        """Draw a row for each image: the image, then its maps.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_images, n_columns), or as many in one row; None makes a new figure.
        kind : {"overlay", "map", "both"}, default="overlay"
            Each map on the image in grey, by itself, or both beside each other. For print without
            colours maps by themselves are the clearest; those of single pixels always are.
        cmap : str, matplotlib Colormap or None, default=None
            None is viridis, or red and blue of what speaks for and against in maps of two signs.
        alpha : float in [0, 1] or "map", default="map"
            How opaque a map is on its image; "map" is as opaque as the map is high, or far from 0
            if it has two signs, so that the image is seen where the map is low.
        limits : (float, float) or None, default=None
            What the ends of the colour map stand for. None is 0 and 1 for maps that are scaled to
            that, and the lowest and the highest value of all maps for others, equally far from 0 if
            they have two signs.
        colorbar : bool, default=True
            Whether there is a scale beside the maps.

        Returns
        -------
        CAMDisplay
            ``self``.

        Raises
        ------
        ValueError
            If there is not one map (height, width) and one title for each image, ``pixelwise``
            contains a name that is not in ``maps``, or a new figure would have over 100 rows.
        """
        self._check(ax=ax, kind=kind, cmap=cmap, alpha=alpha, limits=limits)
        check_maps(self.maps, len(self.images))
        for name in self.pixelwise:
            check_option("Each of pixelwise", name, list(self.maps))
        check_titles(self.image_titles, len(self.images))
        painters = self._painters(cmap, alpha, limits)
        # The figure has one scale, which is for maps of regions if there are any.
        main = painters[min(self.maps, key=lambda name: name in self.pixelwise)]
        columns = [(name, each) for name in self.maps for each in painters[name].kinds(kind)]
        titled = self.image_titles is not None or self.map_titles is not None
        # Without titles, the first row alone has something above: the names of the columns.
        title = TITLE if titled else 0.1
        axes = self._take_grid(
            ax,
            1 + len(columns),
            [[image] for image in self.images],
            cell=_LARGE_CELL if len(self.images) == 1 and len(columns) < 4 else CELL,
            title=title,
        )
        for i, (image, places) in enumerate(zip(self.images, axes, strict=True)):
            self.ims_[i, 0] = draw.image(places[0], image)
            draw.title(places[0], "" if self.image_titles is None else self.image_titles[i])
            draw.frame(places[0], None if self.image_right is None else self.image_right[i])
            for column, (name, each) in enumerate(columns, 1):
                map_, place, painter = self.maps[name][i], places[column], painters[name]
                self.ims_[i, column] = painter.draw_as(each, place, map_, image)
                draw.frame(place, None if self.map_right is None else self.map_right[name][i])
                if (
                    column == 1 or columns[column - 2][0] != name
                ):  # of two of a kind, over the first
                    note = "" if main.note else painter.note
                    draw.title(place, *self._captions(name, i, note))
        self.colorbar_ = main.scale(axes[0, -1]) if colorbar else None
        return self

    def _painters(
        self, cmap: draw.AnyColormap | None, alpha: draw.Alpha, limits: tuple[float, float] | None
    ) -> dict[str, draw.MapPainter]:
        """Return each column's painter: one of its own for single pixels, one for all others."""
        look = (cmap, alpha, limits)
        others = {name: maps for name, maps in self.maps.items() if name not in self.pixelwise}
        shared = draw.painter_of(others, *look)
        return {
            name: shared if name in others else draw.painter_of({name: maps}, *look, pixelwise=True)
            for name, maps in self.maps.items()
        }

    def _captions(self, name: str, i: int, note: str) -> tuple[str, ...]:
        """Return what is over a map: the column's name, in the first row, and the map's own."""
        head = (name, note) if i == 0 else ()
        return (*head, "" if self.map_titles is None else self.map_titles[name][i])


@dataclass(kw_only=True, eq=False, repr=False)
class MapGridDisplay(Display):
    """How one image's map changes as parameters do, one at a time.

    Parameters
    ----------
    image : ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    maps : dict of str to dict of value to ndarray of shape (height, width)
        For each parameter, a row, the map by each of its values.
    scores : dict of str to dict of value to float, or None, default=None
        The accuracy of each model.
    score_name : str, default="accuracy"
        What the scores are called.
    pixelwise : bool, default=False
        Whether the maps are of single pixels, such as saliency: see :class:`CAMDisplay`.

    Attributes
    ----------
    image, maps, scores, score_name, pixelwise
        As above.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_parameters, 1 + most_values)
        The image is in the first column of the first row.
    ims_ : ndarray of AxesImage or None, of the same shape
    colorbar_ : matplotlib Colorbar or None

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", figure 4 and table 2.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.plotting import MapGridDisplay
    >>> image, map_ = np.zeros((8, 8)), np.eye(8)
    >>> maps = {"alpha": {0.1: map_, 1: map_, 10: map_}, "p": {1: map_, 2: map_}}
    >>> MapGridDisplay.from_predictions(image, maps).axes_.shape
    (2, 4)
    """

    image: np.ndarray
    maps: Mapping[str, Mapping[Any, np.ndarray]]
    scores: Mapping[str, Mapping[Any, float]] | None = None
    score_name: str = "accuracy"
    pixelwise: bool = False

    @classmethod
    def from_estimator(
        cls,
        estimator: BaseEstimator,
        X: Any,
        y: ArrayLike,
        *,
        image: Any,
        param_grid: Mapping[str, Sequence[Any]],
        X_test: Any = None,
        y_test: ArrayLike | None = None,
        method: AnyMethod | None = None,
        **options: Any,
    ) -> MapGridDisplay:
        """Train a model for each value of each parameter, and draw its map of one image.

        Parameters
        ----------
        estimator : estimator with ``explain``
            It is copied, not fitted. While one parameter varies, the others are as it has them.
        X, y : images and labels
            To train on.
        image : images
            One image, in any form of X, such as ``X[:1]``.
        param_grid : dict of str to sequence
            The values of each parameter, such as ``{"alpha": [0.1, 1], "p": [0, 1, 2]}``.
        X_test, y_test : images and labels, or None, default=None
            For the accuracy over each map.
        method : str, Method or None, default=None
            See ``explain``.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        MapGridDisplay

        Raises
        ------
        ValueError
            If ``image`` is not one image, or ``param_grid`` is empty or names an unknown parameter.
        """
        cls._check(**options)
        if not param_grid or not all(len(values) for values in param_grid.values()):
            raise ValueError("param_grid needs a parameter, and each parameter a value.")
        if n_images(image) != 1:
            raise ValueError(f"image must be one image; got {n_images(image)}.")
        if method is not None:
            get_method(method).check()
        models = {  # all of them before the first is trained, as a name may be wrong
            name: {value: clone(estimator).set_params(**{name: value}) for value in values}
            for name, values in param_grid.items()
        }
        maps: dict[str, dict[Any, np.ndarray]] = {name: {} for name in models}
        scores: dict[str, dict[Any, float]] = {name: {} for name in models}
        for name, untrained in models.items():
            for value in list(untrained):
                model = untrained.pop(value).fit(X, y)  # one at a time is kept
                explained = Explanation(*as_explainer(model, image), None, method).run()
                ((maps[name][value],),) = explained.maps.values()
                if X_test is not None:
                    scores[name][value] = model.score(X_test, y_test)
        (picture,) = explained.pictures
        is_measured = X_test is not None
        score_name = "R²" if is_regressor(model) else "accuracy"
        display = cls(
            image=picture,
            maps=maps,
            scores=scores if is_measured else None,
            score_name=score_name,
            pixelwise=bool(explained.pixelwise),
        )
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls,
        image: ArrayLike,
        maps: Mapping[str, Mapping[Any, np.ndarray]],
        *,
        scores: Mapping[str, Mapping[Any, float]] | None = None,
        pixelwise: bool = False,
        **options: Any,
    ) -> MapGridDisplay:
        """Draw maps that you already have.

        Parameters
        ----------
        image : ndarray of shape (height, width) or (height, width, 3), uint8, or float in [0, 1]
        maps, scores, pixelwise
            See the class.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        MapGridDisplay

        Raises
        ------
        ValueError
            If ``image`` is not an image, or for maps that :meth:`plot` refuses.
        """
        cls._check(**options)
        (picture,) = pictures_of(np.asarray(image)[None])
        display = cls(image=picture, maps=maps, scores=scores, pixelwise=pixelwise)
        return display.plot(**options)

    def plot(
        self,
        *,
        ax: AnyAxes = None,
        cmap: draw.AnyColormap | None = None,
        alpha: draw.Alpha = "map",
        colorbar: bool = True,
    ) -> MapGridDisplay:
        """Draw a row for each parameter.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_parameters, 1 + most_values); None makes a new figure.
        cmap, alpha, colorbar
            See :meth:`CAMDisplay.plot`.

        Returns
        -------
        MapGridDisplay
            ``self``.

        Raises
        ------
        ValueError
            If a parameter has no map, there is none at all, or a map is not (height,
            width).
        """
        self._check(ax=ax, cmap=cmap, alpha=alpha)
        rows = self.maps
        if not isinstance(rows, Mapping) or not all(isinstance(r, Mapping) for r in rows.values()):
            raise ValueError(
                f"maps must be a dict of parameters to dicts of their values' maps; got "
                f"{describe(rows)}."
            )
        if not rows or not all(rows.values()):
            raise ValueError("maps is empty; give at least one for each parameter.")
        for row in rows.values():
            check_maps({str(value): [map_] for value, map_ in row.items()}, 1)
        named = {name: list(row.values()) for name, row in rows.items()}
        painter = draw.painter_of(named, cmap, alpha, pixelwise=self.pixelwise)
        n_values = [len(row) for row in rows.values()]
        axes = self._take_grid(ax, 1 + max(n_values), [[self.image]] * len(rows))
        for place in axes.flat:
            place.set_axis_off()
        self.ims_[0, 0] = draw.image(axes[0, 0], self.image)
        draw.title(axes[0, 0], "image")
        for i, (parameter, row) in enumerate(rows.items()):
            for column, (value, map_) in enumerate(row.items(), 1):
                self.ims_[i, column] = painter.draw_over(axes[i, column], map_, self.image)
                caption = ""
                if self.scores is not None:
                    caption = f"{self.score_name} {self.scores[parameter][value]:.2f}"
                draw.title(axes[i, column], f"{parameter} = {draw.shortened(value)}", caption)
        # Beside the longest row, where there is a map.
        self.colorbar_ = painter.scale(axes[np.argmax(n_values), -1]) if colorbar else None
        return self


class _Column(NamedTuple):
    """The maps of one method and class of a model, image by image."""

    maps: Sequence[np.ndarray]
    titles: Sequence[str]
    right: Sequence[bool | None]
    is_pixelwise: bool


def _columns(
    name: str, explanation: Explanation, labels: np.ndarray | None, *, n_models: int
) -> dict[str, _Column]:
    """Return what is drawn for a model, by the names of the columns."""
    columns, right = {}, explanation.verdicts(labels)
    n_methods = len(explanation.maps)
    for method, maps in explanation.maps.items():
        column = column_name(
            name, explanation.explainer, method, n_models=n_models, n_methods=n_methods
        )
        is_pixelwise = method in explanation.pixelwise
        if not explanation.n_targets:
            titles = _predicted(explanation, right)
            if n_models == 1:
                titles = [of_image for (of_image,) in explanation.targets]
            columns[column] = _Column(maps, titles, right, is_pixelwise)
        for rank, of_rank in enumerate(explanation.target_names):
            columns[f"{column}, {of_rank}"] = _Column(
                [of_image[rank] for of_image in maps],
                [of_image[rank] for of_image in explanation.targets],
                right,
                is_pixelwise,
            )
    return columns


def _predicted(explanation: Explanation, right: Sequence[bool | None]) -> list[str]:
    """Return the prediction for each image, marked as right or wrong."""
    return [
        "" if each.text is None else f"{draw.SIGNS[is_right]}predicted: {each.text}"
        for each, is_right in zip(explanation.predictions, right, strict=True)
    ]
