"""Images and their maps: methods, models, views and parameters beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import clone

from sklcam._validation import describe
from sklcam.cam import GradCAM, get_method
from sklcam.embeddings.explainer import EmbeddingCAMExplainer
from sklcam.explain.base import AnyMethod
from sklcam.images.dataset import n_images
from sklcam.images.views import ViewSampler, Warp
from sklcam.metrics.consistency import ssim_consistency
from sklcam.metrics.evaluate import check_metric_params
from sklcam.metrics.summary import seed_drawn_from
from sklcam.plotting.drawing import (
    MAP_CMAP,
    RIGHT,
    TITLE,
    axes_grid,
    check_looks,
    check_maps,
    check_matplotlib,
    check_n_rows,
    check_option,
    check_options,
    check_titles,
    draw_box,
    draw_image,
    draw_map,
    map_limits,
    map_scale,
    set_caption,
    set_title,
    shortened,
    stacked,
)
from sklcam.plotting.pictures import (
    explained_columns,
    explainers_by_name,
    labels_of_images,
    map_list,
    named_values,
    own_size_dataset,
    pictures_of,
)

_KINDS = ("overlay", "map", "both")


class CAMDisplay:
    """Images, and the maps of one or several methods or models beside them.

    Made by :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    images : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    maps : dict of str to list of ndarray of shape (height, width)
        For each method or model one map per image; of the image's size or another one, as it is
        stretched over it.
    image_titles : list of str or None, default=None
        What is written over each image.
    map_titles : dict of str to list of str or None, default=None
        What is written over each map.

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

    def __init__(
        self,
        *,
        images: Sequence[np.ndarray],
        maps: Mapping[str, Sequence[np.ndarray]],
        image_titles: Sequence[str] | None = None,
        map_titles: Mapping[str, Sequence[str]] | None = None,
    ):
        self.images = images
        self.maps = maps
        self.image_titles = image_titles
        self.map_titles = map_titles

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        methods: Any = None,
        target: Any = None,
        frame: Literal["image", "input"] = "image",
        ax: Any = None,
        **options: Any,
    ) -> CAMDisplay:
        """Explain images, and draw them.

        Parameters
        ----------
        estimator : estimator with ``explain``, nn.Module, or dict of names to them
            Fitted. Several are drawn side by side under their names.
        X : images
            In any form that the estimator takes: a row for each.
        y : array-like of shape (n_images,) or None, default=None
            The true labels, for the titles; a torch data set may bring its own.
        methods : str, Method, sequence of them, dict of names to them, or None, default=None
            The explanations, a column for each; None is the estimator's own.
        target : None, labels or callable, default=None
            As of ``explain``; None is the predicted class.
        frame : {"image", "input"}, default="image"
            Images and maps at each image's own size, or as the network gets them.
        ax : array-like of matplotlib axes or None, default=None
            A row for each image, with one for the image and one for each map.
        **options
            Of :meth:`plot`.

        Returns
        -------
        CAMDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        NotFittedError
            If an estimator has not been fitted.
        TypeError
            If there is an option that :meth:`plot` does not take.
        ValueError
            If an estimator does not explain; if there are over 100 images; or if the images,
            labels, methods, target, frame, axes or looks make no sense.
        """
        check_options(cls, ax, options, _KINDS)
        check_option("frame", frame, ("image", "input"))
        explainers = explainers_by_name(estimator, X)
        first = next(iter(explainers.values()))
        dataset = first._image_dataset(X)
        check_n_rows(len(dataset), cls.__name__)
        labels = labels_of_images(X, y, len(dataset))
        columns = explained_columns(explainers, methods)
        maps = {
            name: list(explainer.explain(X, target, method=method, frame=frame))
            for name, (explainer, method) in columns.items()
        }
        images = pictures_of(dataset, own_size=frame == "image")
        truth = ["" if labels is None else f"true: {label}" for label in _as_list(labels, images)]
        predicted = {name: _predictions(of, X, len(images)) for name, of in explainers.items()}
        map_titles = None
        if len(explainers) == 1:
            said = predicted[next(iter(explainers))]
            image_titles = [stacked(*pair) for pair in zip(truth, said, strict=True)]
        else:
            image_titles = truth
            owner = {id(explainer): name for name, explainer in explainers.items()}
            map_titles = {name: predicted[owner[id(of)]] for name, (of, _) in columns.items()}
        display = cls(images=images, maps=maps, image_titles=image_titles, map_titles=map_titles)
        return display.plot(ax=ax, **options)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        maps: Any,
        *,
        titles: Sequence[Any] | None = None,
        ax: Any = None,
        **options: Any,
    ) -> CAMDisplay:
        """Draw maps that are there already.

        Parameters
        ----------
        images : images
            In any form that an estimator takes.
        maps : array-like of shape (n_images, height, width), list of maps, or dict of names to them
        titles : sequence of length n_images or None, default=None
            What is written over each image, such as its label.
        ax : array-like of matplotlib axes or None, default=None
            A row for each image, with one for the image and one for each map.
        **options
            Of :meth:`plot`.

        Returns
        -------
        CAMDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If there is not one finite map (height, width) and one title for each image, or the
            images, axes or looks make no sense.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        named = named_values(maps, "map")
        pictures = pictures_of(own_size_dataset(images))
        titles = None if titles is None else [str(title) for title in titles]
        display = cls(
            images=pictures,
            maps={name: map_list(of) for name, of in named.items()},
            image_titles=titles,
        )
        return display.plot(ax=ax, **options)

    def plot(
        self,
        *,
        ax: Any = None,
        kind: Literal["overlay", "map", "both"] = "overlay",
        cmap: Any = MAP_CMAP,
        alpha: float | Literal["map"] = 0.6,
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
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If there is not one finite map (height, width) and one title for each image; if ``kind``
            or a look makes no sense, there are more or fewer axes, or a new figure would have over
            100 rows.
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        check_option("kind", kind, _KINDS)
        check_looks(cmap=cmap, alpha=alpha, limits=limits)
        check_maps(self.maps, len(self.images))
        check_titles(self.image_titles, len(self.images))
        kinds = ("map", "overlay") if kind == "both" else (kind,)
        limits = limits or map_limits(self.maps)
        n_columns = 1 + len(self.maps) * len(kinds)
        titled = self.image_titles is not None or self.map_titles is not None
        figure, axes = axes_grid(
            ax,
            n_columns,
            [[image] for image in self.images],
            type(self).__name__,
            title=TITLE if titled else 0.1,  # without, there are names over the first row alone
        )
        self.ims_ = np.empty(axes.shape, dtype=object)
        for i, image in enumerate(self.images):
            self.ims_[i, 0] = draw_image(axes[i, 0], image)
            over = self.image_titles[i] if self.image_titles is not None else ""
            set_title(axes[i, 0], over)
            column = 1
            for name, of in self.maps.items():
                said = "" if self.map_titles is None else self.map_titles[name][i]
                for which in kinds:
                    place = axes[i, column]
                    under = image if which == "overlay" else None
                    drawn = draw_map(place, of[i], limits, cmap, alpha, on=under, frame=image)
                    self.ims_[i, column] = drawn
                    set_title(place, stacked(name if i == 0 else "", said))
                    column += 1
        self.figure_, self.axes_ = figure, axes
        self.colorbar_ = map_scale(axes[0, -1], limits, cmap) if colorbar else None
        return self


class ViewPairDisplay:
    """Whether the map follows its image: the view of the map beside the map of the view.

    A row is an image and a crop and flip of it, framed in the image; then, for each model, the map,
    the view of the map, and the map of the view. The last two would be equal for perfect
    consistency, and their SSIM is written below.

    Parameters
    ----------
    images : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
        As the network gets them.
    views : Warp
        One for each image.
    maps, maps_of_views : dict of str to ndarray of shape (n_images, height, width), in [0, 1]
        For each model, the maps of the images and those of their views.

    Attributes
    ----------
    images, views, maps, maps_of_views
        As above.
    views_of_maps : dict of str to ndarray of shape (n_images, height, width)
    ssim : dict of str to ndarray of shape (n_images,)
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_images, 2 + 3 * n_models)
    ims_ : ndarray of AxesImage, of the same shape
    colorbar_ : matplotlib Colorbar or None

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", figure 1.

    Examples
    --------
    >>> import torch
    >>> from sklcam import CAMExplainer
    >>> from sklcam.networks import build_model
    >>> from sklcam.plotting import ViewPairDisplay
    >>> explainer = CAMExplainer(build_model("resnet18", n_classes=5), verbose=0).fit()
    >>> ViewPairDisplay.from_estimator(explainer, torch.rand(2, 3, 64, 64)).axes_.shape
    (2, 5)
    """

    def __init__(
        self,
        *,
        images: Sequence[np.ndarray],
        views: Warp,
        maps: Mapping[str, np.ndarray],
        maps_of_views: Mapping[str, np.ndarray],
    ):
        self.images = images
        self.views = views
        self.maps = maps
        self.maps_of_views = maps_of_views

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        method: AnyMethod | None = None,
        views: ViewSampler | None = None,
        random_state: Any = 0,
        ax: Any = None,
        **options: Any,
    ) -> ViewPairDisplay:
        """Explain images and a view of each, and draw them.

        Parameters
        ----------
        estimator : estimator with ``explain``, nn.Module, or dict of names to them
            Fitted.
        X : images
        method : str, Method or None, default=None
            None is Grad-CAM without its ReLU, as in training.
        views : ViewSampler or None, default=None
            None is the paper's.
        random_state : int, RandomState or None, default=0
            The views are those that :func:`~sklcam.metrics.evaluate` draws with the same seed.
        ax : array-like of matplotlib axes or None, default=None
        **options
            Of :meth:`plot`.

        Returns
        -------
        ViewPairDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        NotFittedError
            If an estimator has not been fitted.
        TypeError
            If there is an option that :meth:`plot` does not take.
        ValueError
            If an estimator does not explain; if there are over 100 images, or they are smaller, as
            the network gets them, than SSIM's window of 11 x 11 pixels; or if the images, method,
            views, seed, axes or looks make no sense.
        """
        check_options(cls, ax, options)
        check_metric_params({"consistency": {"method": method, "views": views}})
        method = GradCAM(relu=False) if method is None else method
        seed = seed_drawn_from(random_state)  # as of evaluate
        maps: dict[str, np.ndarray] = {}
        maps_of_views: dict[str, np.ndarray] = {}
        for name, explainer in explainers_by_name(estimator, X).items():
            dataset = explainer._image_dataset(X)
            check_n_rows(len(dataset), cls.__name__)
            drawn = (views or ViewSampler())(
                len(dataset),
                size=dataset.image_size,
                generator=torch.Generator().manual_seed(seed),
            )
            if not maps:
                images, first = pictures_of(dataset, own_size=False), drawn
            maps[name], maps_of_views[name] = _maps_of_views(explainer, dataset, drawn, method)
        display = cls(images=images, views=first, maps=maps, maps_of_views=maps_of_views)
        return display.plot(ax=ax, **options)

    @cached_property
    def views_of_maps(self) -> dict[str, np.ndarray]:
        """The maps, warped as the images were."""
        return {
            name: self.views(torch.as_tensor(np.asarray(of))).numpy()
            for name, of in self.maps.items()
        }

    @cached_property
    def ssim(self) -> dict[str, np.ndarray]:
        """What is written below each pair."""
        return {
            name: ssim_consistency(
                torch.as_tensor(of), torch.as_tensor(np.asarray(self.maps_of_views[name]))
            ).numpy()
            for name, of in self.views_of_maps.items()
        }

    def plot(
        self, *, ax: Any = None, cmap: Any = MAP_CMAP, colorbar: bool = True
    ) -> ViewPairDisplay:
        """Draw a row for each image.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_images, 2 + 3 * n_models); None makes a new figure.
        cmap : str or matplotlib Colormap, default="viridis"
        colorbar : bool, default=True
            Whether there is a scale beside the maps.

        Returns
        -------
        ViewPairDisplay
            ``self``.

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If there are not two finite maps (height, width) for each image, or they are smaller
            than SSIM's window of 11 x 11 pixels; if the colour map is not known, there are more or
            fewer axes, or a new figure would have over 100 rows.
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        check_looks(cmap=cmap)
        check_maps(self.maps, len(self.images))
        check_maps(self.maps_of_views, len(self.images))
        n_columns = 2 + 3 * len(self.maps)
        figure, axes = axes_grid(
            ax,
            n_columns,
            [[image] for image in self.images],
            type(self).__name__,
            groups=(2, *[3] * len(self.maps)),
            cell=1.4,
            title=0.22,
        )
        self.ims_ = np.empty(axes.shape, dtype=object)
        limits = (0.0, 1.0)
        crops, mirrored = _crops(self.views)
        for i, image in enumerate(self.images):
            places, drawn = axes[i], self.ims_[i]
            drawn[0] = draw_image(places[0], image)
            drawn[1] = draw_image(places[1], _warped(image, Warp(self.views.matrix[i : i + 1])))
            draw_box(places[0], crops[i] * np.array(image.shape[1::-1] * 2), RIGHT)
            set_title(places[0], "image" if i == 0 else "")
            set_title(places[1], "view" if i == 0 else "")
            set_caption(places[1], "mirrored" if mirrored[i] else "")
            for m, name in enumerate(self.maps):
                start = 2 + 3 * m
                of_model = {
                    "map": self.maps[name],
                    "view of the map": self.views_of_maps[name],
                    "map of the view": self.maps_of_views[name],
                }
                for column, (title, maps) in enumerate(of_model.items(), start):
                    place = places[column]
                    drawn[column] = draw_map(place, maps[i], limits, cmap, frame=image)
                    set_title(place, title if i == 0 else "")
                set_caption(places[start + 2], f"SSIM {self.ssim[name][i]:.2f}")
                if len(self.maps) > 1 and i == 0:
                    set_title(places[start + 1], stacked(name, "view of the map"), columns=3)
        self.figure_, self.axes_ = figure, axes
        self.colorbar_ = map_scale(axes[0, -1], limits, cmap) if colorbar else None
        return self


class MapGridDisplay:
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

    def __init__(
        self,
        *,
        image: np.ndarray,
        maps: Mapping[str, Mapping[Any, np.ndarray]],
        scores: Mapping[str, Mapping[Any, float]] | None = None,
    ):
        self.image = image
        self.maps = maps
        self.scores = scores

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        image: Any,
        param_grid: Mapping[str, Sequence[Any]],
        X_test: Any = None,
        y_test: Any = None,
        method: AnyMethod | None = None,
        ax: Any = None,
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
            As of ``explain``.
        ax : array-like of matplotlib axes or None, default=None
        **options
            Of :meth:`plot`.

        Returns
        -------
        MapGridDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        TypeError
            If there is an option that :meth:`plot` does not take.
        ValueError
            If ``image`` is not one image, ``param_grid`` has nothing or what is no parameter, or
            the method, axes or looks make no sense.
        """
        check_options(cls, ax, options)
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
        maps: dict[str, dict[Any, np.ndarray]] = {}
        scores: dict[str, dict[Any, float]] = {}
        for name, of_values in models.items():
            maps[name], scores[name] = {}, {}
            for value in list(of_values):
                model = of_values.pop(value).fit(X, y)
                (maps[name][value],) = model.explain(image, method=method, frame="image")
                if X_test is not None:
                    scores[name][value] = model.score(X_test, y_test)
        (picture,) = pictures_of(model._image_dataset(image))
        display = cls(image=picture, maps=maps, scores=scores if X_test is not None else None)
        return display.plot(ax=ax, **options)

    @classmethod
    def from_predictions(
        cls,
        image: np.ndarray,
        maps: Mapping[str, Mapping[Any, np.ndarray]],
        *,
        scores: Mapping[str, Mapping[Any, float]] | None = None,
        ax: Any = None,
        **options: Any,
    ) -> MapGridDisplay:
        """Draw maps that are there already.

        Parameters
        ----------
        image : ndarray of shape (height, width) or (height, width, 3), uint8, or float in [0, 1]
        maps, scores
            As of the class.
        ax : array-like of matplotlib axes or None, default=None
        **options
            Of :meth:`plot`.

        Returns
        -------
        MapGridDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If ``image`` is no image, there is a parameter without a map or none at all, a map is
            not finite or not (height, width), or the axes or looks make no sense.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        (picture,) = pictures_of(own_size_dataset(np.asarray(image)[None]))
        return cls(image=picture, maps=maps, scores=scores).plot(ax=ax, **options)

    def plot(
        self,
        *,
        ax: Any = None,
        cmap: Any = MAP_CMAP,
        alpha: float | Literal["map"] = 0.6,
        colorbar: bool = True,
    ) -> MapGridDisplay:
        """Draw a row for each parameter.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_parameters, 1 + most_values); None makes a new figure.
        cmap, alpha, colorbar
            As of :meth:`CAMDisplay.plot`.

        Returns
        -------
        MapGridDisplay
            ``self``.

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If there is a parameter without a map or none at all, a map is not finite or not
            (height, width), a look makes no sense, or there are more or fewer axes.
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        if not isinstance(self.maps, Mapping) or not all(
            isinstance(of, Mapping) for of in self.maps.values()
        ):
            raise ValueError(
                "maps must be a dict of parameters to dicts of their values' maps; got "
                f"{describe(self.maps)}."
            )
        if not self.maps or not all(self.maps.values()):
            raise ValueError("maps is empty; give at least one for each parameter.")
        check_looks(cmap=cmap, alpha=alpha)
        for of in self.maps.values():
            check_maps({str(value): [map_] for value, map_ in of.items()}, 1)
        limits = map_limits({name: list(of.values()) for name, of in self.maps.items()})
        n_columns = 1 + max(len(of) for of in self.maps.values())
        name = type(self).__name__
        figure, axes = axes_grid(ax, n_columns, [[self.image]] * len(self.maps), name)
        self.ims_ = np.full(axes.shape, None, dtype=object)
        for place in axes.flat:
            place.set_axis_off()
        self.ims_[0, 0] = draw_image(axes[0, 0], self.image)
        set_title(axes[0, 0], "image")
        for row, (parameter, of) in enumerate(self.maps.items()):
            for column, (value, map_) in enumerate(of.items(), 1):
                place = axes[row, column]
                drawn = draw_map(place, map_, limits, cmap, alpha, on=self.image, frame=self.image)
                self.ims_[row, column] = drawn
                said = ""
                if self.scores is not None:
                    said = f"accuracy {self.scores[parameter][value]:.2f}"
                set_title(place, stacked(f"{parameter} = {shortened(value)}", said))
        self.figure_, self.axes_ = figure, axes
        longest = max(range(len(axes)), key=[len(of) for of in self.maps.values()].__getitem__)
        self.colorbar_ = map_scale(axes[longest, -1], limits, cmap) if colorbar else None
        return self


def _as_list(labels: Any, like: Sequence[Any]) -> list[Any]:
    return [None] * len(like) if labels is None else list(labels)


def _predictions(explainer: Any, X: Any, n_images: int) -> list[str]:
    """Return what the network takes each image for, and how sure it is."""
    if explainer.classes_ is None:
        return [""] * n_images
    probabilities = explainer.predict_proba(X)
    labels = explainer.predict(X)
    if isinstance(explainer, EmbeddingCAMExplainer):
        return [f"predicted: {label}" for label in labels]  # a softmax of cosines is near to even
    index = {label: i for i, label in enumerate(explainer.classes_.tolist())}
    return [
        f"predicted: {label} ({row[index[label.item() if hasattr(label, 'item') else label]]:.2f})"
        for label, row in zip(labels, probabilities, strict=True)
    ]


def _warped(image: np.ndarray, view: Warp) -> np.ndarray:
    pixels = torch.from_numpy(image)
    if image.ndim == 2:
        return view(pixels[None])[0].numpy()
    return view(pixels.permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def _maps_of_views(
    explainer: Any, dataset: Any, views: Warp, method: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps of the images, and of their views."""
    maps: list[np.ndarray] = []
    maps_of_views: list[np.ndarray] = []
    start = 0
    for inputs in explainer._iter_dataset(dataset):
        images = explainer.images_of(inputs)
        view = Warp(views.matrix[start : start + len(images)]).to(images.device)
        target = explainer._encode_target(None, len(images))
        for collected, of in ((maps, images), (maps_of_views, view(images))):
            explained, _ = explainer.explain_inputs(
                explainer.with_images(inputs, of), target, method=method
            )
            collected.append(explained.float().cpu().numpy())
        start += len(images)
    return np.concatenate(maps), np.concatenate(maps_of_views)


def _crops(views: Warp) -> tuple[np.ndarray, np.ndarray]:
    """Return the frame of each view in its image, as shares of the sides, and if it is mirrored."""
    matrix = views.matrix.cpu().double().numpy()
    half = np.abs(matrix[:, [0, 1], [0, 1]])
    middle = matrix[:, :, 2]
    corners = np.concatenate([middle - half, middle + half], axis=1)
    return (corners + 1) / 2, matrix[:, 0, 0] < 0
