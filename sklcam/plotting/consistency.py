"""Consistency: whether maps follow their images, pair by pair and as a distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from sklcam._validation import draw_seed
from sklcam.cam import get_method
from sklcam.explain.base import AnyMethod
from sklcam.images.photometric import Photometry
from sklcam.images.pictures import check_is_picture
from sklcam.images.views import ViewSampler
from sklcam.images.warps import Warp
from sklcam.metrics import Evaluator, Measurement, ssim_consistency
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display, check_maps
from sklcam.plotting._explained import (
    AnyEstimators,
    explainers_by_name,
    is_pixelwise,
    named_values,
    pictures_of_batch,
)


@dataclass(kw_only=True, eq=False, repr=False)
class ViewPairDisplay(Display):
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
    pixelwise : bool, default=False
        Whether the maps are of single pixels, such as saliency: see :class:`CAMDisplay`.

    Attributes
    ----------
    images, views, maps, maps_of_views, pixelwise
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

    images: Sequence[np.ndarray]
    views: Warp
    maps: Mapping[str, np.ndarray]
    maps_of_views: Mapping[str, np.ndarray]
    pixelwise: bool = False

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimators,
        X: Any,
        *,
        method: AnyMethod | None = None,
        views: ViewSampler | None = None,
        random_state: int | np.random.RandomState | None = 0,
        **options: Any,
    ) -> ViewPairDisplay:
        """Explain images and a view of each, and draw them.

        Parameters
        ----------
        estimator : estimator with ``explain``, nn.Module, or dict of names to them
            Fitted.
        X : images
            At most 100.
        method : str, Method or None, default=None
            None is Grad-CAM without its ReLU, as in training.
        views : ViewSampler or None, default=None
            None is the paper's.
        random_state : int, RandomState or None, default=0
            The views are those that :func:`~sklcam.metrics.evaluate` draws with the same seed.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        ViewPairDisplay

        Raises
        ------
        ValueError
            If images are smaller, as the network gets them, than SSIM's window of 11 x 11 pixels.

        Warns
        -----
        UserWarning
            If maps were constant; see :func:`~sklcam.metrics.evaluate`.
        """
        cls._check(**options)
        evaluators = _evaluators(estimator, X, method, views, random_state, originals=True)
        for evaluator in evaluators.values():
            check_is_picture(evaluator.opened.image_size)
            cls._check_n_rows(len(evaluator.opened))
        seen = {}
        for name, evaluator in evaluators.items():
            _, batches = evaluator.run(observe=_see_pairs, progress=False)
            drawn = [warp for warp, *_ in batches]  # the same for all
            arrays = zip(*(rest for _, *rest in batches), strict=True)
            seen[name] = [np.concatenate(parts) for parts in arrays]
        images, *_ = next(iter(seen.values()))
        display = cls(
            images=list(images),
            views=_joined(drawn),
            maps={name: arrays[1] for name, arrays in seen.items()},
            maps_of_views={name: arrays[2] for name, arrays in seen.items()},
            pixelwise=method is not None and is_pixelwise(get_method(method)),
        )
        return display.plot(**options)

    @cached_property
    def views_of_maps(self) -> dict[str, np.ndarray]:
        """The maps, warped as the images were."""
        return {
            name: self.views(torch.as_tensor(np.asarray(maps))).numpy()
            for name, maps in self.maps.items()
        }

    @cached_property
    def ssim(self) -> dict[str, np.ndarray]:
        """The number below each pair."""
        return {
            name: ssim_consistency(
                torch.as_tensor(maps),
                torch.as_tensor(np.asarray(self.maps_of_views[name])),
                None if self.views.is_inside else self.views.valid(maps.shape[1:]),
                spatial_dims=self.views.n_axes,
            ).numpy()
            for name, maps in self.views_of_maps.items()
        }

    def plot(
        self, *, ax: AnyAxes = None, cmap: draw.AnyColormap | None = None, colorbar: bool = True
    ) -> ViewPairDisplay:
        """Draw a row for each image.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_images, 2 + 3 * n_models); None makes a new figure.
        cmap : str, matplotlib Colormap or None, default=None
        colorbar : bool, default=True
            Whether there is a scale beside the maps.

        Returns
        -------
        ViewPairDisplay
            ``self``.

        Raises
        ------
        ValueError
            If there are not two maps (height, width) for each image, they are smaller than
            SSIM's window of 11 x 11 pixels, or a new figure would have over 100 rows.
        """
        self._check(ax=ax, cmap=cmap)
        check_maps(self.maps, len(self.images))
        check_maps(self.maps_of_views, len(self.images))
        ends = None if self.pixelwise else (0.0, 1.0)
        painter = draw.painter_of(self.maps, cmap, limits=ends, pixelwise=self.pixelwise)
        axes = self._take_grid(
            ax,
            2 + 3 * len(self.maps),
            [[image] for image in self.images],
            groups=(2, *[3] * len(self.maps)),
            cell=1.4,
            title=0.22,
        )
        frames, mirrored = _frames(self.views)
        for i, (image, places) in enumerate(zip(self.images, axes, strict=True)):
            view = _warped(image, self.views[i : i + 1])
            self.ims_[i, :2] = draw.image(places[0], image), draw.image(places[1], view)
            draw.outline(places[0], frames[i] * np.array(image.shape[1::-1]), draw.RIGHT)
            draw.caption(places[1], "mirrored" if mirrored[i] else "")
            for m, name in enumerate(self.maps):
                three = self.maps[name], self.views_of_maps[name], self.maps_of_views[name]
                for column, maps in enumerate(three, 2 + 3 * m):
                    self.ims_[i, column] = painter.draw(places[column], maps[i], image)
                draw.caption(places[4 + 3 * m], f"SSIM {self.ssim[name][i]:.2f}")
        titles = "image", "view", *("map", "view of the map", "map of the view") * len(self.maps)
        for place, title in zip(axes[0], titles, strict=True):
            draw.title(place, title)
        if len(self.maps) > 1:
            for m, name in enumerate(self.maps):  # over the middle one of its three columns
                draw.title(axes[0, 3 + 3 * m], draw.stacked(name, "view of the map"), columns=3)
        self.colorbar_ = painter.scale(axes[0, -1]) if colorbar else None
        return self


@dataclass(kw_only=True, eq=False, repr=False)
class ConsistencyDisplay(Display):
    """How consistent the maps of one or several models are, image by image.

    Parameters
    ----------
    values : dict of str to ndarray of shape (n_images,), in [-1, 1]
        For each model, the SSIM of the view of the map and the map of the view.

    Attributes
    ----------
    values
        As above.
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    artists_ : list
        The outline of each histogram, or the line of each distribution.
    legend_ : matplotlib Legend

    References
    ----------
    Sun, Phan, Nguyen, "Staying Consistent with GradCAM", figure 2.

    Examples
    --------
    >>> from sklcam.plotting import ConsistencyDisplay
    >>> values = {"baseline": [0.4, 0.6, 0.5], "consistent": [0.7, 0.6, 0.8]}
    >>> display = ConsistencyDisplay.from_predictions(values)
    >>> [text.get_text() for text in display.legend_.get_texts()]
    ['baseline: 0.50 ± 0.08', 'consistent: 0.70 ± 0.08']
    """

    kinds = ("hist", "ecdf")

    values: Mapping[str, np.ndarray]

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimators,
        X: Any,
        *,
        method: AnyMethod | None = None,
        views: ViewSampler | None = None,
        random_state: int | np.random.RandomState | None = 0,
        **options: Any,
    ) -> ConsistencyDisplay:
        """Measure the consistency of each image's map, and draw how it is distributed.

        Parameters
        ----------
        estimator : estimator with ``explain``, nn.Module, or dict of names to them
            Fitted. All get the same views.
        X : images
        method : str, Method or None, default=None
            None is Grad-CAM without its ReLU, as in training.
        views : ViewSampler or None, default=None
            None is the paper's.
        random_state : int, RandomState or None, default=0
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        ConsistencyDisplay

        Raises
        ------
        ValueError
            If images are smaller, as the network gets them, than SSIM's window of 11 x 11 pixels.

        Warns
        -----
        UserWarning
            If maps were constant; see :func:`~sklcam.metrics.evaluate`.
        """
        cls._check(**options)
        evaluators = _evaluators(estimator, X, method, views, random_state)
        values = {
            name: evaluator.run(progress=False)[0]["consistency"]
            for name, evaluator in evaluators.items()
        }
        return cls(values=values).plot(**options)

    @classmethod
    def from_predictions(cls, values: Any, **options: Any) -> ConsistencyDisplay:
        """Draw values that you already have, such as those of :func:`~sklcam.metrics.evaluate`.

        Parameters
        ----------
        values : array-like of shape (n_images,), or dict of names to them
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        ConsistencyDisplay

        Raises
        ------
        ValueError
            If the values are not one number per image.
        """
        cls._check(**options)
        named = named_values(values, "model")
        arrays = {name: np.asarray(given, dtype=float) for name, given in named.items()}
        return cls(values=arrays).plot(**options)

    def plot(
        self, *, ax: AnyAxes = None, kind: Literal["hist", "ecdf"] = "hist", bins: int = 20
    ) -> ConsistencyDisplay:
        """Draw the distributions.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            None makes a new figure.
        kind : {"hist", "ecdf"}, default="hist"
            Histograms with their means, or cumulative distributions.
        bins : int, default=20
            Of the histograms, which share them.

        Returns
        -------
        ConsistencyDisplay
            ``self``.

        Raises
        ------
        ValueError
            If the values are not one number per image.
        """
        self._check(kind=kind, bins=bins)
        from matplotlib.ticker import MaxNLocator

        for name, values in self.values.items():
            if np.ndim(values) != 1 or not len(values):
                raise ValueError(
                    f"values of {name!r} must be one number per image; got shape "
                    f"{np.shape(values)}."
                )
        place = self._take_axes(ax)
        self.artists_: list[Any] = []
        known = {name: values[np.isfinite(values)] for name, values in self.values.items()}
        edges = np.histogram_bin_edges(np.concatenate(list(known.values())), bins=bins)
        for values, style in zip(known.values(), draw.styles(), strict=False):
            if kind == "ecdf":
                curve = (
                    place.ecdf if len(values) else lambda none, **look: place.plot(none, **look)[0]
                )
                self.artists_.append(curve(values, linewidth=1.8, **style))
                continue
            counts, _ = np.histogram(values, edges)
            place.stairs(counts, edges, fill=True, alpha=0.15, color=style["color"])
            self.artists_.append(place.stairs(counts, edges, linewidth=1.8, **style))
            if len(values):
                place.axvline(float(np.mean(values)), linewidth=1, **style)
        place.set_xlabel("consistency of an image's map (SSIM)")
        place.set_ylabel("number of images" if kind == "hist" else "share of images")
        labels = [
            f"{name}: {np.mean(values):.2f} ± {np.std(values):.2f}"
            + (f", {n_missing} not finite" if (n_missing := len(values) - len(known[name])) else "")
            for name, values in self.values.items()
        ]
        title = "mean (line) and standard deviation" if kind == "hist" else "mean and deviation"
        self.legend_ = draw.legend(place, self.artists_, labels, title=title)
        if kind == "hist":
            place.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
            # Room for the legend above the bars.
            place.set_ylim(0, place.get_ylim()[1] * (1.15 + 0.1 * len(labels)))
        return self


def _see_pairs(measurement: Measurement) -> tuple[Warp, np.ndarray, np.ndarray, np.ndarray]:
    """Return how images were viewed, the images, and the maps of them and of their views."""
    maps, of_view = (
        measurement[name].float().cpu().numpy() for name in ("view_maps", "maps_of_view")
    )
    pictures = np.stack(pictures_of_batch(measurement.batch))
    return measurement["warp"].to("cpu"), pictures, maps, of_view


def _joined(warps: Sequence[Warp]) -> Warp:
    """Return the views of all batches as one."""
    found: dict[str, Any] = {}
    changes = [warp.photometry for warp in warps]
    for field in fields(Photometry):
        parts = [getattr(each, field.name) for each in changes if each is not None]
        if parts:
            found[field.name] = torch.cat(parts) if isinstance(parts[0], torch.Tensor) else parts[0]
    return Warp(
        torch.cat([warp.matrix for warp in warps]),
        Photometry(**found) if found else None,
        is_inside=all(warp.is_inside for warp in warps),
    )


def _evaluators(
    estimator: AnyEstimators,
    X: Any,
    method: AnyMethod | None,
    views: ViewSampler | None,
    random_state: int | np.random.RandomState | None,
    **options: Any,
) -> dict[str, Evaluator[Any]]:
    """Return what measures consistency for each model; nothing has been run."""
    seed = draw_seed(random_state)  # of all of them, so that they get the same views
    params = {"consistency": {"method": method, "views": views}}
    options |= {"metrics": "consistency", "metric_params": params, "random_state": seed}
    return {
        name: Evaluator(explainer, images, **options)
        for name, (explainer, images) in explainers_by_name(estimator, X).items()
    }


def _warped(image: np.ndarray, view: Warp) -> np.ndarray:
    pixels = torch.from_numpy(image)
    if image.ndim == 2:
        return view.of_images(pixels[None, None])[0, 0].numpy()
    return view.of_images(pixels.permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def _frames(views: Warp) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of each view in its image, (n, 4, 2), as shares, and if it is mirrored."""
    matrix = views.matrix.cpu().double().numpy()
    corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], dtype=float)
    return (corners @ matrix.transpose(0, 2, 1) + 1) / 2, np.linalg.det(matrix[:, :, :2]) < 0
