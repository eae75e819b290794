"""Boxes around maps, beside the true boxes of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sklcam._validation import check_number, describe
from sklcam.explain.base import AnyMethod
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.metrics.localization import box_from_map, box_iou
from sklcam.metrics.masks import as_array
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display, check_maps, check_titles
from sklcam.plotting._explained import (
    Explanation,
    as_text,
    labels_of_images,
    map_list,
    pictures_of,
)

AnyBoxes = Sequence[ArrayLike] | np.ndarray | Tensor


@dataclass(kw_only=True, eq=False, repr=False)
class LocalizationDisplay(Display):
    """The box around a map and the true boxes, on the image.

    Parameters
    ----------
    images : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    maps : list of ndarray of shape (height, width)
        At each image's own size, after the ReLU, and not scaled, as scaling would move the
        threshold.
    boxes : list of ndarray of shape (n_boxes, 4)
        The true ones, ``(x1, y1, x2, y2)`` in pixels of the image.
    threshold : float
        See :func:`~sklcam.metrics.box_from_map`.
    labels : list of str or None, default=None
        The text over each image.
    pixelwise : bool, default=False
        Whether the maps are of single pixels, such as saliency: see :class:`CAMDisplay`.

    Attributes
    ----------
    images, maps, boxes, threshold, labels, pixelwise
        As above.
    found : ndarray of shape (n_images, 4)
        The boxes of the maps; zeros for a map of zeros.
    iou : ndarray of shape (n_images,), in [0, 1]
        Of each map's box with the true box that it overlaps most.
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

    images: Sequence[np.ndarray]
    maps: Sequence[np.ndarray]
    boxes: Sequence[np.ndarray]
    threshold: float = 0.15
    labels: Sequence[str] | None = None
    pixelwise: bool = False

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimator,
        X: Any,
        boxes: AnyBoxes,
        y: ArrayLike | None = None,
        *,
        method: AnyMethod | None = None,
        target: Any = None,
        threshold: float = 0.15,
        **options: Any,
    ) -> LocalizationDisplay:
        """Explain images, and draw the boxes of their maps.

        Parameters
        ----------
        estimator : estimator with ``explain``, or nn.Module
            Fitted.
        X : images
            At most 100.
        boxes : sequence of array-like of shape (n_boxes, 4)
            The true ones of each image, ``(x1, y1, x2, y2)`` in pixels of the image itself.
        y : array-like of shape (n_images,) or None, default=None
            Labels, for the titles; a torch data set may bring its own.
        method : str, Method or None, default=None
            None is the estimator's own.
        target : None, labels or callable, default=None
            See ``explain``.
        threshold : float, default=0.15
            Pixels count from this share of the map's maximum.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        LocalizationDisplay

        Raises
        ------
        ValueError
            If there are not boxes for each image, (x1, y1, x2, y2) with x1 < x2 and y1 < y2, or the
            threshold is outside 0 to 1.
        """
        cls._check(**options)
        explanation = Explanation(*as_explainer(estimator, X, y), target, method, normalize=False)
        n_images = explanation.n_images
        cls._check_n_rows(n_images)
        labels = labels_of_images(X, y, n_images, explanation.explainer)
        checked = _true_boxes(boxes, n_images)
        check_number("threshold, a share of the maximum,", threshold, 0, 1)
        (maps,) = explanation.run().maps.values()
        display = cls(
            images=explanation.pictures,
            maps=[map_.clip(0) for map_ in maps],  # the threshold is a share of what is left
            boxes=checked,
            threshold=threshold,
            labels=as_text(labels),
            pixelwise=bool(explanation.pixelwise),
        )
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        maps: Any,
        boxes: AnyBoxes,
        *,
        labels: Sequence[Any] | None = None,
        threshold: float = 0.15,
        pixelwise: bool = False,
        **options: Any,
    ) -> LocalizationDisplay:
        """Draw maps that you already have.

        Parameters
        ----------
        images : images
            In any form that an estimator takes.
        maps : array-like of shape (n_images, height, width), or list of maps
            Of the images' own sizes, as ``explain(..., frame="image", normalize=False)`` returns
            them.
        boxes : sequence of array-like of shape (n_boxes, 4)
            The true ones of each image.
        labels : sequence of length n_images or None, default=None
            The text over each image.
        threshold : float, default=0.15
        pixelwise : bool, default=False
            Whether the maps are of single pixels.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        LocalizationDisplay

        Raises
        ------
        ValueError
            If there is not one map and one label for each image, or a map is not of its
            image's size; for boxes and thresholds see :meth:`from_estimator`.
        """
        cls._check(**options)
        pictures = pictures_of(images)
        display = cls(
            images=pictures,
            maps=map_list(maps),
            boxes=_true_boxes(boxes, len(pictures)),
            threshold=threshold,
            labels=as_text(labels),
            pixelwise=pixelwise,
        )
        return display.plot(**options)

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
        """Intersection over union of each map's box and the true one that it overlaps most."""
        pairs = zip(torch.from_numpy(self.found), self.boxes, strict=True)
        return np.array([float(box_iou(box, torch.as_tensor(true)).max()) for box, true in pairs])

    def plot(
        self,
        *,
        ax: AnyAxes = None,
        cmap: draw.AnyColormap | None = None,
        alpha: draw.Alpha = "map",
        n_columns: int = 5,
    ) -> LocalizationDisplay:
        """Draw a picture for each image.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            One for each image; None makes a new figure.
        cmap, alpha
            See :meth:`CAMDisplay.plot`.
        n_columns : int, default=5
            Pictures beside each other in a new figure.

        Returns
        -------
        LocalizationDisplay
            ``self``.

        Raises
        ------
        ValueError
            If there is not one map and one label for each image, a map is not of its image's
            size, or the threshold is outside 0 to 1.
        """
        self._check(ax=ax, cmap=cmap, alpha=alpha, n_columns=n_columns)
        n_images = len(self.images)
        check_maps({"": self.maps}, n_images)
        check_titles(self.labels, n_images)
        for i, (image, map_) in enumerate(zip(self.images, self.maps, strict=True)):
            if np.shape(map_) != image.shape[:2]:
                raise ValueError(
                    f"Map {i} is of {np.shape(map_)} and its image of {image.shape[:2]}: boxes are "
                    'in pixels of the image; explain with frame="image".'
                )
        width = min(n_columns, n_images) if ax is None else n_images
        rows = [self.images[i : i + width] for i in range(0, n_images, width)]
        places = self._take_grid(ax, width, rows).ravel()
        for place in places[n_images:]:
            place.set_axis_off()
        self.axes_, self.ims_ = places[:n_images], self.ims_.ravel()[:n_images]
        # Shown from zero to its maximum, of which the threshold is a share.
        shares = [map_ / (peak if (peak := np.max(map_)) > 0 else 1) for map_ in self.maps]
        ends = None if self.pixelwise else (0.0, 1.0)
        painter = draw.painter_of({"": shares}, cmap, alpha, ends, pixelwise=self.pixelwise)
        for i, (place, image) in enumerate(zip(self.axes_, self.images, strict=True)):
            self.ims_[i] = painter.draw_over(place, shares[i], image)
            for box in self.boxes[i]:
                draw.box(place, box, draw.RIGHT)
            caption = "no box"
            if self.found[i].any() and np.isfinite(self.found[i]).all():
                draw.box(place, self.found[i], draw.WRONG)
                caption = f"IoU {self.iou[i]:.2f}"
            draw.title(place, "" if self.labels is None else self.labels[i], caption)
        keys = [draw.key(linewidth=2, **look) for look in (draw.RIGHT, draw.WRONG)]
        where: dict[str, Any] = {"loc": "outside lower center", "ncols": 2}
        if ax is not None:  # of a figure that others draw on, too
            where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02), "fontsize": "small"}
        owner = self.figure_ if ax is None else places[0]
        labels = ["true box", "box of the map"]
        self.legend_ = owner.legend(keys, labels, frameon=False, **where)
        return self


def _true_boxes(boxes: AnyBoxes, n_images: int) -> list[np.ndarray]:
    if not isinstance(boxes, Sequence | np.ndarray | Tensor):
        raise ValueError(f"boxes must be a sequence of those of each image; got {describe(boxes)}.")
    if len(boxes) != n_images:
        raise ValueError(f"boxes has {len(boxes)} entries for {n_images} images.")
    checked = []
    for i, corners in enumerate(boxes):
        array = as_array(corners).astype(float)
        if array.ndim != 2 or array.shape[1] != 4 or not len(array):
            raise ValueError(
                f"boxes[{i}] must be of shape (n_boxes, 4), (x1, y1, x2, y2) each; got "
                f"{array.shape}."
            )
        if not (array[:, :2] < array[:, 2:]).all():
            raise ValueError(f"boxes[{i}] must have x1 < x2 and y1 < y2; got {array.tolist()}.")
        checked.append(array)
    return checked
