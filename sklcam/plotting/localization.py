"""Boxes of maps, and of objects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sklcam._validation import check_number, describe
from sklcam.explain.base import AnyMethod
from sklcam.metrics.localization import box_from_map, box_iou
from sklcam.plotting.drawing import (
    MAP_CMAP,
    RIGHT,
    WRONG,
    axes_grid,
    check_looks,
    check_maps,
    check_matplotlib,
    check_n_rows,
    check_options,
    check_titles,
    draw_box,
    draw_map,
    legend_key,
    map_limits,
    set_title,
    stacked,
)
from sklcam.plotting.pictures import (
    explainers_by_name,
    labels_of_images,
    map_list,
    own_size_dataset,
    pictures_of,
)


class LocalizationDisplay:
    """The box that a map makes, and the true ones, on the image.

    Parameters
    ----------
    images : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    maps : list of ndarray of shape (height, width)
        Of each image's own size.
    boxes : list of ndarray of shape (n_boxes, 4)
        The true ones, ``(x1, y1, x2, y2)`` in pixels of the image.
    threshold : float
        As of :func:`~sklcam.metrics.box_from_map`.
    labels : list of str or None, default=None
        What is written over each image.

    Attributes
    ----------
    images, maps, boxes, threshold, labels
        As above.
    found : ndarray of shape (n_images, 4)
        The boxes of the maps; zeros for a map of zeros.
    iou : ndarray of shape (n_images,), in [0, 1]
        Of each with the true box that it meets best.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_images,)
    ims_ : ndarray of AxesImage, of shape (n_images,)
    legend_ : matplotlib Legend

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.plotting import LocalizationDisplay
    >>> image, map_ = np.zeros((8, 8)), np.zeros((8, 8))
    >>> map_[2:6, 2:6] = 1
    >>> LocalizationDisplay.from_predictions(image[None], map_[None], [[[2, 2, 6, 4]]]).iou
    array([0.5])
    """

    def __init__(
        self,
        *,
        images: Sequence[np.ndarray],
        maps: Sequence[np.ndarray],
        boxes: Sequence[np.ndarray],
        threshold: float = 0.15,
        labels: Sequence[str] | None = None,
    ):
        self.images = images
        self.maps = maps
        self.boxes = boxes
        self.threshold = threshold
        self.labels = labels

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        boxes: Any,
        y: Any = None,
        *,
        method: AnyMethod | None = None,
        target: Any = None,
        threshold: float = 0.15,
        ax: Any = None,
        **options: Any,
    ) -> LocalizationDisplay:
        """Explain images, and draw the boxes of their maps.

        Parameters
        ----------
        estimator : estimator with ``explain``, or nn.Module
            Fitted.
        X : images
        boxes : sequence of array-like of shape (n_boxes, 4)
            The true ones of each image, ``(x1, y1, x2, y2)`` in pixels of the image itself.
        y : array-like of shape (n_images,) or None, default=None
            Labels, for the titles; a torch data set may bring its own.
        method : str, Method or None, default=None
            None is the estimator's own.
        target : None, labels or callable, default=None
            As of ``explain``.
        threshold : float, default=0.15
            Share of the map's maximum from which on pixels count.
        ax : array-like of matplotlib axes or None, default=None
            One for each image.
        **options
            Of :meth:`plot`.

        Returns
        -------
        LocalizationDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        NotFittedError
            If the estimator has not been fitted.
        TypeError
            If there is an option that :meth:`plot` does not take.
        ValueError
            If the estimator does not explain; if there are over 100 images; if there are not boxes
            for each image, (x1, y1, x2, y2) with x1 < x2 and y1 < y2; if the threshold is outside 0
            to 1; or if the images, labels, method, target, axes or looks make no sense.
        """
        check_options(cls, ax, options)
        ((_, explainer),) = explainers_by_name({"": estimator}, X).items()
        dataset = explainer._image_dataset(X)
        check_n_rows(len(dataset), cls.__name__)
        labels = labels_of_images(X, y, len(dataset))
        checked = _true_boxes(boxes, len(dataset))
        check_number("threshold, a share of the maximum,", threshold, 0, 1)
        display = cls(
            images=pictures_of(dataset),
            maps=list(explainer.explain(X, target, method=method, frame="image")),
            boxes=checked,
            threshold=threshold,
            labels=None if labels is None else [str(label) for label in labels],
        )
        return display.plot(ax=ax, **options)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        maps: Any,
        boxes: Any,
        *,
        labels: Sequence[Any] | None = None,
        threshold: float = 0.15,
        ax: Any = None,
        **options: Any,
    ) -> LocalizationDisplay:
        """Draw maps that are there already.

        Parameters
        ----------
        images : images
            In any form that an estimator takes.
        maps : array-like of shape (n_images, height, width), or list of maps
            Of the images' own sizes, as ``explain(..., frame="image")`` returns them.
        boxes : sequence of array-like of shape (n_boxes, 4)
            The true ones of each image.
        labels : sequence of length n_images or None, default=None
            What is written over each image.
        threshold : float, default=0.15
        ax : array-like of matplotlib axes or None, default=None
            One for each image.
        **options
            Of :meth:`plot`.

        Returns
        -------
        LocalizationDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If there is not one finite map and one label for each image, or a map is not of its
            image's size; if there are not boxes for each image, (x1, y1, x2, y2) with x1 < x2 and
            y1 < y2; if the threshold is outside 0 to 1; or if the images, axes or looks make no
            sense.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        pictures = pictures_of(own_size_dataset(images))
        display = cls(
            images=pictures,
            maps=map_list(maps),
            boxes=_true_boxes(boxes, len(pictures)),
            threshold=threshold,
            labels=None if labels is None else [str(label) for label in labels],
        )
        return display.plot(ax=ax, **options)

    @cached_property
    def found(self) -> np.ndarray:
        """The box of each map."""
        boxes = [
            box_from_map(torch.as_tensor(np.asarray(map_))[None], self.threshold)
            for map_ in self.maps
        ]
        return torch.cat(boxes).double().numpy()

    @cached_property
    def iou(self) -> np.ndarray:
        """Intersection over union of each map's box and the true one that it meets best."""
        pairs = zip(torch.from_numpy(self.found), self.boxes, strict=True)
        return np.array([float(box_iou(of, torch.as_tensor(true)).max()) for of, true in pairs])

    def plot(
        self,
        *,
        ax: Any = None,
        cmap: Any = MAP_CMAP,
        alpha: float | Literal["map"] = 0.6,
        n_columns: int = 5,
    ) -> LocalizationDisplay:
        """Draw a picture for each image.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            One for each image; None makes a new figure.
        cmap, alpha
            As of :meth:`CAMDisplay.plot`.
        n_columns : int, default=5
            Pictures beside each other in a new figure.

        Returns
        -------
        LocalizationDisplay
            ``self``.

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If there is not one finite map and one label for each image, or a map is not of its
            image's size; if the threshold is outside 0 to 1, a look makes no sense, or there are
            more or fewer axes.
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        check_maps({"": self.maps}, len(self.images))
        check_titles(self.labels, len(self.images))
        check_looks(cmap=cmap, alpha=alpha, n_columns=n_columns)
        for i, (image, map_) in enumerate(zip(self.images, self.maps, strict=True)):
            if np.shape(map_) != image.shape[:2]:
                raise ValueError(
                    f"Map {i} is of {np.shape(map_)} and its image of {image.shape[:2]}: boxes are "
                    'in pixels of the image; explain with frame="image".'
                )
        n_images = len(self.images)
        width = min(n_columns, n_images) if ax is None else n_images
        rows = [self.images[i : i + width] for i in range(0, n_images, width)]
        figure, axes = axes_grid(ax, width, rows, type(self).__name__)
        places = axes.ravel()
        for place in places[n_images:]:
            place.set_axis_off()
        limits = map_limits({"": self.maps})
        self.ims_ = np.empty(n_images, dtype=object)
        for i, (image, map_) in enumerate(zip(self.images, self.maps, strict=True)):
            place = places[i]
            self.ims_[i] = draw_map(place, map_, limits, cmap, alpha, on=image, frame=image)
            for box in self.boxes[i]:
                draw_box(place, box, RIGHT)
            said = f"IoU {self.iou[i]:.2f}"
            if self.found[i].any():
                draw_box(place, self.found[i], WRONG)
            else:
                said = "no box, the map is empty"
            set_title(place, stacked("" if self.labels is None else self.labels[i], said))
        self.legend_ = _box_legend(figure, places[0], own=ax is None)
        self.figure_, self.axes_ = figure, places[:n_images]
        return self


def _true_boxes(boxes: Any, n_images: int) -> list[np.ndarray]:
    if not isinstance(boxes, Sequence | np.ndarray | Tensor):
        raise ValueError(f"boxes must be a sequence of those of each image; got {describe(boxes)}.")
    if len(boxes) != n_images:
        raise ValueError(f"boxes has {len(boxes)} entries for {n_images} images.")
    checked = []
    for i, of in enumerate(boxes):
        array = np.asarray(of, dtype=float)
        if array.ndim != 2 or array.shape[1] != 4 or not len(array):
            raise ValueError(
                f"boxes[{i}] must be of shape (n_boxes, 4), (x1, y1, x2, y2) each; got "
                f"{array.shape}."
            )
        if not (array[:, :2] < array[:, 2:]).all():
            raise ValueError(f"boxes[{i}] must have x1 < x2 and y1 < y2; got {array.tolist()}.")
        checked.append(array)
    return checked


def _box_legend(figure: Any, place: Any, *, own: bool) -> Any:
    handles = [legend_key(linewidth=2, marker="", **style) for style in (RIGHT, WRONG)]
    for handle, style in zip(handles, (RIGHT, WRONG), strict=True):
        handle.set_linestyle(style["ls"])
    labels = ["true box", "box of the map"]
    if own:
        return figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02)}
    return place.legend(handles, labels, fontsize="small", frameon=False, **below)
