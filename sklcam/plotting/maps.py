"""Images and their maps: methods, models and parameters beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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

if TYPE_CHECKING:
    from sklcam.explain.predictions import Prediction


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

    Attributes
    ----------
    images, maps, image_titles, map_titles
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

        Each image is read once, and one pass of the network makes the maps of all methods. Of a
        volume a slice is drawn, the one in which the first map is the highest; the title says
        which, counted from 0.

        Parameters
        ----------
        estimator : estimator with ``explain``, nn.Module, or dict of names to them
            Fitted. Several are drawn side by side under their names.
        X : images
            In any form that the estimator takes: a row for each, at most 100.
        y : array-like of shape (n_images,) or None, default=None
            The true labels, for the titles; a torch data set may bring its own.
        methods : str, Method, list of them, dict of names to them, or None, default=None
            The explanations, a column for each; None is the estimator's own.
        target : None, labels or callable, default=None
            See ``explain``; None is the predicted class.
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
        explanations = {
            name: Explanation(explainer, images, target, methods, frame, slices=True)
            for name, (explainer, images) in explainers_by_name(estimator, X, y).items()
        }
        alone = len(explanations) == 1
        # Models may see the images at different sizes; those of the first are drawn.
        first = next(iter(explanations.values()))
        n_rows = first.n_images
        cls._check_n_rows(n_rows)
        labels = labels_of_images(X, y, n_rows, first.explainer)
        titles = [""] * n_rows if labels is None else [f"true: {label}" for label in labels]
        maps, map_titles = {}, {}
        first.run()
        for name, explanation in explanations.items():
            if explanation is not first:
                explanation.run(first.slices)
            predicted = [_written(prediction) for prediction in explanation.predictions]
            for method, maps_of_method in explanation.maps.items():
                column = column_name(
                    name,
                    explanation.explainer,
                    method,
                    n_models=len(explanations),
                    n_methods=len(explanation.maps),
                )
                maps[column], map_titles[column] = maps_of_method, predicted
        if first.slices:
            titles = [
                draw.stacked(title, f"slice {i} of {first.n_slices}")
                for title, i in zip(titles, first.slices, strict=True)
            ]
        display = cls(
            images=first.pictures,
            maps=maps,
            image_titles=[*map(draw.stacked, titles, predicted)] if alone else titles,
            map_titles=None if alone else map_titles,
        )
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls, images: Any, maps: Any, *, titles: Sequence[Any] | None = None, **options: Any
    ) -> CAMDisplay:
        """Draw maps that are there already.

        Parameters
        ----------
        images : images
            In any form that an estimator takes.
        maps : array-like of shape (n_images, height, width), list of maps, or dict of names to them
        titles : sequence of length n_images or None, default=None
            The text over each image, such as its label.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        CAMDisplay

        Raises
        ------
        ValueError
            If there is not one map (height, width) and one title for each image.
        """
        cls._check(**options)
        named = {name: map_list(given) for name, given in named_values(maps, "map").items()}
        display = cls(images=pictures_of(images), maps=named, image_titles=as_text(titles))
        return display.plot(**options)

    def plot(
        self,
        *,
        ax: AnyAxes = None,
        kind: Literal["overlay", "map", "both"] = "overlay",
        cmap: draw.AnyColormap = draw.MAP_CMAP,
        alpha: draw.Alpha = 0.6,
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
            colours maps by themselves are the clearest.
        cmap : str or matplotlib Colormap, default="viridis"
        alpha : float in [0, 1] or "map", default=0.6
            How opaque a map is on its image; "map" is as opaque as the map is high.
        limits : (float, float) or None, default=None
            What the ends of the colour map stand for; None is 0 and 1, or the lowest and the
            highest of all maps where these go beyond.
        colorbar : bool, default=True
            Whether there is a scale beside the maps.

        Returns
        -------
        CAMDisplay
            ``self``.

        Raises
        ------
        ValueError
            If there is not one map (height, width) and one title for each image, or a new
            figure would have over 100 rows.
        """
        self._check(ax=ax, kind=kind, cmap=cmap, alpha=alpha, limits=limits)
        check_maps(self.maps, len(self.images))
        check_titles(self.image_titles, len(self.images))
        painter = draw.MapPainter(cmap, limits or draw.map_limits(self.maps), alpha)
        kinds = ("map", "overlay") if kind == "both" else (kind,)
        columns = [(name, each) for name in self.maps for each in kinds]
        titled = self.image_titles is not None or self.map_titles is not None
        # Without titles, the first row alone has something above: the names of the columns.
        title = TITLE if titled else 0.1
        axes = self._take_grid(
            ax, 1 + len(columns), [[image] for image in self.images], title=title
        )
        for i, (image, places) in enumerate(zip(self.images, axes, strict=True)):
            self.ims_[i, 0] = draw.image(places[0], image)
            draw.title(places[0], "" if self.image_titles is None else self.image_titles[i])
            for column, (name, each) in enumerate(columns, 1):
                self.ims_[i, column] = painter.draw_as(
                    each, places[column], self.maps[name][i], image
                )
                said = "" if self.map_titles is None else self.map_titles[name][i]
                draw.title(places[column], name if i == 0 else "", said)
        self.colorbar_ = painter.scale(axes[0, -1]) if colorbar else None
        return self


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

    Attributes
    ----------
    image, maps, scores
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
            If ``image`` is not one image, or ``param_grid`` is empty or names a parameter that
            there is not.
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
        )
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls,
        image: ArrayLike,
        maps: Mapping[str, Mapping[Any, np.ndarray]],
        *,
        scores: Mapping[str, Mapping[Any, float]] | None = None,
        **options: Any,
    ) -> MapGridDisplay:
        """Draw maps that are there already.

        Parameters
        ----------
        image : ndarray of shape (height, width) or (height, width, 3), uint8, or float in [0, 1]
        maps, scores
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
        return cls(image=picture, maps=maps, scores=scores).plot(**options)

    def plot(
        self,
        *,
        ax: AnyAxes = None,
        cmap: draw.AnyColormap = draw.MAP_CMAP,
        alpha: draw.Alpha = 0.6,
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
        limits = draw.map_limits({name: list(row.values()) for name, row in rows.items()})
        painter = draw.MapPainter(cmap, limits, alpha)
        n_values = [len(row) for row in rows.values()]
        axes = self._take_grid(ax, 1 + max(n_values), [[self.image]] * len(rows))
        for place in axes.flat:
            place.set_axis_off()
        self.ims_[0, 0] = draw.image(axes[0, 0], self.image)
        draw.title(axes[0, 0], "image")
        for i, (parameter, row) in enumerate(rows.items()):
            for column, (value, map_) in enumerate(row.items(), 1):
                self.ims_[i, column] = painter.draw_over(axes[i, column], map_, self.image)
                said = ""
                if self.scores is not None:
                    said = f"{self.score_name} {self.scores[parameter][value]:.2f}"
                draw.title(axes[i, column], f"{parameter} = {draw.shortened(value)}", said)
        # Beside the longest row, where there is a map.
        self.colorbar_ = painter.scale(axes[np.argmax(n_values), -1]) if colorbar else None
        return self


def _written(prediction: Prediction) -> str:
    return "" if prediction.text is None else f"predicted: {prediction.text}"
