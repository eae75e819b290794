"""Objects that a detector finds, each with its box and map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sklcam._validation import describe
from sklcam.cam.detections import Objects, to_image
from sklcam.explain.base import AnyMethod
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display, check_maps, check_titles
from sklcam.plotting._explained import as_text, is_pixelwise, pictures_of, pictures_of_batch


@dataclass(kw_only=True, eq=False, repr=False)
class DetectionDisplay(Display):
    """Objects in images, one row each: the box on the image, and the map beside it.

    Made by :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    images : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
        For each object, the image that contains it.
    maps : list of ndarray of shape (height, width)
        One for each object.
    boxes : ndarray of shape (n_objects, 4)
        Corners (x1, y1, x2, y2) in pixels of the images.
    titles : list of str or None, default=None
        The text over each object's image.
    pixelwise : bool, default=False
        Whether the maps are of single pixels, such as saliency: see :class:`CAMDisplay`.

    Attributes
    ----------
    images, maps, boxes, titles, pixelwise
        As above.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_objects, 2)
    ims_ : ndarray of AxesImage, of the shape of ``axes_``
    colorbar_ : matplotlib Colorbar or None

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.plotting import DetectionDisplay
    >>> image, map_ = np.zeros((8, 8)), np.eye(8)
    >>> DetectionDisplay.from_predictions(image[None], [[map_]], [[[1, 1, 4, 4]]]).axes_.shape
    (1, 2)
    """

    kinds = ("overlay", "map")

    images: Sequence[np.ndarray]
    maps: Sequence[np.ndarray]
    boxes: np.ndarray
    titles: Sequence[str] | None = None
    pixelwise: bool = False

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimator,
        X: Any,
        *,
        target: Any = None,
        method: AnyMethod | None = None,
        **options: Any,
    ) -> DetectionDisplay:
        """Explain what a detector finds, and draw it.

        Parameters
        ----------
        estimator : estimator with ``explain``, or nn.Module
            Of a detector.
        X : images
            In any form that the estimator takes.
        target : Box or None, default=None
            Which objects; None is ``Box()``, those that the network detects. At most 100.
        method : str, Method or None, default=None
            See ``explain``.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        DetectionDisplay

        Raises
        ------
        ValueError
            If the network is not a detector, the target is not a Box, or there is no object.
        """
        cls._check(**options)
        explainer, images = as_explainer(estimator, X)
        if explainer.adapter.task != "detection":
            raise ValueError(
                f"DetectionDisplay is for detectors; the task here is {explainer.adapter.task!r}."
            )
        opened = explainer.open(images, originals=True)
        question = explainer.as_target(target, len(opened))
        chosen = explainer.as_method(method)
        pictures, maps, boxes, titles = [], [], [], []
        for explained in explainer.iter_explained(opened, question, methods=[chosen]):
            batch, objects = explained.batch, explained.target
            if not isinstance(objects, Objects):
                raise ValueError(f"target must be a Box; got {describe(target)}.")
            scores = objects.scores(explained.output)
            for i, picture in enumerate(pictures_of_batch(batch, own_size=True)):
                size, count = batch.sizes[i], objects.counts_of(i)
                framed = explainer.to_frame(
                    explained.maps[0][i].reshape(-1, *batch.inputs.size), size
                )
                corners = to_image(
                    objects.boxes[i], size, explainer.adapter.resize, batch.inputs.size
                )
                for j in range(count):
                    label = int(objects.labels[i, j])
                    name = label if explainer.classes_ is None else explainer.classes_[label]
                    pictures.append(picture)
                    maps.append(framed[j].float().cpu().numpy())
                    boxes.append(corners[j].float().cpu().numpy())
                    titles.append(f"{name if label >= 0 else 'any'} ({float(scores[i, j]):.2f})")
            cls._check_n_rows(len(maps))
        if not maps:
            raise ValueError(
                "There is no object to draw: none scores as much as the threshold, which "
                "Box(threshold=...) lowers."
            )
        display = cls(
            images=pictures,
            maps=maps,
            boxes=np.stack(boxes),
            titles=titles,
            pixelwise=is_pixelwise(chosen),
        )
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        maps: Any,
        boxes: Any,
        *,
        titles: Any = None,
        pixelwise: bool = False,
        **options: Any,
    ) -> DetectionDisplay:
        """Draw maps that you already have.

        Parameters
        ----------
        images : images
        maps : sequence of array-like of shape (k_i, height, width)
            For each image, as ``explain`` returns them.
        boxes : sequence of array-like of shape (k_i, 4)
        titles : sequence of sequence of str, or None, default=None
            The text over each object, image by image.
        pixelwise : bool, default=False
            Whether the maps are of single pixels.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        DetectionDisplay

        Raises
        ------
        ValueError
            If there is not one map and one box for each object.
        """
        cls._check(**options)
        pictures = pictures_of(images)
        counts = [[len(each) for each in given] for given in (maps, boxes)]
        if counts[0] != counts[1] or len(counts[0]) != len(pictures) or not sum(counts[0]):
            raise ValueError(
                f"There must be a map and a box for each object in {len(pictures)} images; there "
                f"are {counts[0]} maps and {counts[1]} boxes."
            )
        shown = [
            each for each, count in zip(pictures, counts[0], strict=True) for _ in range(count)
        ]
        flat = None if titles is None else as_text([text for own in titles for text in own])
        display = cls(
            images=shown,
            maps=[np.asarray(map_) for own in maps for map_ in own],
            boxes=np.concatenate([np.asarray(own, float).reshape(-1, 4) for own in boxes]),
            titles=flat,
            pixelwise=pixelwise,
        )
        return display.plot(**options)

    def plot(
        self,
        *,
        ax: AnyAxes = None,
        kind: Literal["overlay", "map"] = "overlay",
        cmap: draw.AnyColormap | None = None,
        alpha: draw.Alpha = "map",
        limits: tuple[float, float] | None = None,
        colorbar: bool = True,
    ) -> DetectionDisplay:
        """Draw a row for each object.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_objects, 2); None makes a new figure.
        kind : {"overlay", "map"}, default="overlay"
            Each map on the image in grey, or by itself.
        cmap, alpha, limits, colorbar
            See :meth:`CAMDisplay.plot`.

        Returns
        -------
        DetectionDisplay
            ``self``.
        """
        self._check(ax=ax, kind=kind, cmap=cmap, alpha=alpha, limits=limits)
        named = {"map": self.maps}
        check_maps(named, len(self.images))
        check_titles(self.titles, len(self.images))
        painter = draw.painter_of(named, cmap, alpha, limits, pixelwise=self.pixelwise)
        axes = self._take_grid(ax, 2, [[image] for image in self.images])
        for i, (image, map_, places) in enumerate(zip(self.images, self.maps, axes, strict=True)):
            self.ims_[i] = (
                draw.image(places[0], image),
                painter.draw_as(kind, places[1], map_, image),
            )
            for place in places:
                draw.box(place, self.boxes[i], {"color": "tab:red"})
            draw.title(places[0], "" if self.titles is None else self.titles[i])
        self.colorbar_ = painter.scale(axes[0, -1]) if colorbar else None
        return self
