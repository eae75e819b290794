"""Why it failed: maps of the predicted and the true class of images that are predicted wrong.

The first pass finds these images and keeps only numbers. Images that are drawn are read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sklcam._validation import check_count
from sklcam.explain.base import AnyMethod, Explainer
from sklcam.explain.checks import ExplanationCheck
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.explain.predictions import class_names
from sklcam.images.pictures import check_is_picture
from sklcam.metrics.plan import check_one_map
from sklcam.networks.fetching import fetch_all
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display, check_maps, check_titles
from sklcam.plotting._explained import (
    as_text,
    is_pixelwise,
    map_list,
    maps_of_batch,
    pictures_of,
    pictures_of_batch,
)
from sklcam.plotting.pages import image_names

# More than rounding makes of a probability, also in half precision, when batches are others.
_MOST_DRIFT = 0.05


@dataclass(kw_only=True, eq=False, repr=False)
class FailuresDisplay(Display):
    """Why a network took an image for another class, and what it saw of the true one.

    Each image has a row. Made by :meth:`from_estimator`, with the most confident errors first, or
    by :meth:`from_predictions`.

    Parameters
    ----------
    images : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    maps_predicted, maps_true : list of ndarray of shape (height, width)
        For the predicted class and for the true one; each map is scaled by itself.
    predicted, true : list of str
        The names of these classes.
    probabilities : ndarray of shape (n_images, 2) or None, default=None
        For the predicted and for the true class.
    names : list of str or None, default=None
        The text over each image.
    pixelwise : bool, default=False
        Whether the maps are of single pixels, such as saliency: see :class:`CAMDisplay`.

    Attributes
    ----------
    images, maps_predicted, maps_true, predicted, true, probabilities, names, pixelwise
        As above.
    rows_ : ndarray of shape (n_images,), int64, or None
        Which rows of X were drawn; None after :meth:`from_predictions`.
    n_wrong_ : int or None
        The number of images of X that are predicted wrong, drawn or not.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_images, 3)
    ims_ : ndarray of AxesImage, of the shape of ``axes_``
    colorbar_ : matplotlib Colorbar or None

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 6.1, fig. 6.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.plotting import FailuresDisplay
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> options = {"target_layer": "0", "classes": ["red", "green"], "verbose": 0}
    >>> X = torch.zeros(3, 2, 4, 4)
    >>> explainer = CAMExplainer(network, **options).fit(X)
    >>> X[:, 0, 0], X[1, 1, 1:], X[2, 1, 1:] = 1, 2, 4
    >>> display = FailuresDisplay.from_estimator(explainer, X, ["red", "red", "red"])
    >>> display.rows_, display.predicted, display.true
    (array([2, 1]), ['green', 'green'], ['red', 'red'])
    >>> display.probabilities.round(2)
    array([[0.94, 0.06],
           [0.78, 0.22]], dtype=float32)
    """

    kinds = ("overlay", "map")

    images: Sequence[np.ndarray]
    maps_predicted: Sequence[np.ndarray]
    maps_true: Sequence[np.ndarray]
    predicted: Sequence[str]
    true: Sequence[str]
    probabilities: np.ndarray | None = None
    names: Sequence[str] | None = None
    pixelwise: bool = False
    rows_: np.ndarray | None = field(default=None, init=False)
    n_wrong_: int | None = field(default=None, init=False)

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimator,
        X: Any,
        y: ArrayLike | None = None,
        *,
        n_images: int = 8,
        method: AnyMethod | None = None,
        **options: Any,
    ) -> FailuresDisplay:
        """Predict all images, and explain those whose wrong class is the most probable.

        Parameters
        ----------
        estimator : estimator with ``explain``, or nn.Module
            A classifier of one label per image, with probabilities.
        X : images
            In any form that the estimator takes. Images that are drawn are read twice, and must be
            the same both times.
        y : array-like of shape (n_images,) or None, default=None
            The true labels, or the names of classes; a torch data set may bring its own.
        n_images : int, default=8
            The largest number of images to draw, 1 to 100.
        method : str, Method or None, default=None
            See ``explain``. One pass explains both classes.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        FailuresDisplay

        Raises
        ------
        ValueError
            If the network is not such a classifier, if no image is predicted wrong, or if an image
            has changed when it is read again.

        Warns
        -----
        ExplanationWarning
            If outputs of the network are NaN, which count as neither right nor wrong, or if maps
            are blank.
        """
        cls._check(**options)
        check_count("n_images", n_images)
        cls._check_n_rows(n_images)
        explainer, images = as_explainer(estimator, X, y)
        _check_is_classifier(explainer)
        chosen = explainer.as_method(method)
        check_one_map(explainer, [chosen], cls.__name__)
        opened = explainer.open(images, originals=True)
        check_is_picture(opened.image_size)
        n_all = len(opened)
        true = explainer.as_target(explainer.expected_labels(X, y, cls.__name__), n_all).indices
        if true is None or true.shape != (n_all, 1):
            raise ValueError(f"y must have one label for each of {n_all} images.")
        named = image_names(images, None, n_all)
        predicted, probabilities = _predicted(explainer, images, true[:, 0])
        pairs = np.stack([predicted, true[:, 0].numpy()], axis=1)
        rows, n_wrong = _surest_errors(pairs, probabilities, n_images)
        pictures, maps = _explained(
            explainer, opened.subset(rows.tolist()), pairs[rows], probabilities[rows], chosen
        )
        classes = class_names(explainer)
        display = cls(
            images=pictures,
            maps_predicted=[each[0] for each in maps],
            maps_true=[each[1] for each in maps],
            predicted=[classes[i] for i in pairs[rows, 0]],
            true=[classes[i] for i in pairs[rows, 1]],
            probabilities=probabilities[rows],
            names=[named[i] for i in rows],
            pixelwise=is_pixelwise(chosen),
        )
        display.rows_, display.n_wrong_ = rows, n_wrong
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        maps_predicted: Any,
        maps_true: Any,
        *,
        predicted: Sequence[Any],
        true: Sequence[Any],
        probabilities: ArrayLike | None = None,
        names: Sequence[Any] | None = None,
        pixelwise: bool = False,
        **options: Any,
    ) -> FailuresDisplay:
        """Draw results that you already have, in their order.

        Parameters
        ----------
        images : images
        maps_predicted, maps_true : sequence of array-like of shape (height, width)
        predicted, true : sequence of labels
        probabilities : array-like of shape (n_images, 2) or None, default=None
        names : sequence or None, default=None
        pixelwise : bool, default=False
            Whether the maps are of single pixels.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        FailuresDisplay
        """
        cls._check(**options)
        display = cls(
            images=pictures_of(images),
            maps_predicted=map_list(maps_predicted),
            maps_true=map_list(maps_true),
            predicted=as_text(predicted) or [],
            true=as_text(true) or [],
            probabilities=None if probabilities is None else np.asarray(probabilities, float),
            names=as_text(names),
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
    ) -> FailuresDisplay:
        """Draw a row for each image: the image, and the maps for the predicted and the true class.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_images, 3); None makes a new figure.
        kind : {"overlay", "map"}, default="overlay"
            Maps on the images in grey, or by themselves.
        cmap, alpha, limits, colorbar
            See :meth:`CAMDisplay.plot`.

        Returns
        -------
        FailuresDisplay
            ``self``.
        """
        self._check(ax=ax, kind=kind, cmap=cmap, alpha=alpha, limits=limits)
        n_images = len(self.images)
        named = {"predicted": self.maps_predicted, "true": self.maps_true}
        check_maps(named, n_images)
        for titles in (self.predicted, self.true, self.names):
            check_titles(titles, n_images)
        if self.probabilities is not None and self.probabilities.shape != (n_images, 2):
            raise ValueError(
                f"probabilities must be two numbers for each of {n_images} images, of the "
                f"predicted and of the true class; got shape {self.probabilities.shape}."
            )
        painter = draw.painter_of(named, cmap, alpha, limits, pixelwise=self.pixelwise)
        axes = self._take_grid(ax, 3, [[image] for image in self.images])
        for i, (image, places) in enumerate(zip(self.images, axes, strict=True)):
            self.ims_[i] = (
                draw.image(places[0], image),
                painter.draw_as(kind, places[1], self.maps_predicted[i], image),
                painter.draw_as(kind, places[2], self.maps_true[i], image),
            )
            draw.title(places[0], "" if self.names is None else self.names[i])
            # On lines of their own, as a long name that is cut would take the number with it.
            draw.title(places[1], f"predicted{self._chance(i, 0)}:", self.predicted[i])
            draw.title(places[2], f"true{self._chance(i, 1)}:", self.true[i])
        self.colorbar_ = painter.scale(axes[0, -1]) if colorbar else None
        return self

    def _chance(self, i: int, column: int) -> str:
        return "" if self.probabilities is None else f" ({self.probabilities[i, column]:.2f})"


def _check_is_classifier(explainer: Explainer) -> None:
    """Raise a ValueError unless each image has one class, with a probability."""
    if not explainer.shows_probabilities:
        raise ValueError(
            f"FailuresDisplay sorts errors by the network's probabilities, and a "
            f"{type(explainer).__name__} has none: find the rows where predict(X) is not y, and "
            "draw their maps by FailuresDisplay.from_predictions."
        )
    task = explainer.adapter.task
    if task not in ("multiclass", "binary") or explainer.classes_ is None:
        raise ValueError(
            f"FailuresDisplay is for classifiers of one label per image; the task here is {task!r}."
            " CAMDisplay draws the maps of others."
        )


def _predicted(explainer: Explainer, images: Any, true: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the predicted class of each image, and the probability of that and the true one."""
    check = ExplanationCheck()

    def numbers() -> Iterator[Tensor]:
        for batch in explainer.open(images).batches():
            output = explainer.output_of(batch.inputs)
            check.add(output, "outputs of the network", n_axes=1, blank=False)
            decided = explainer.decide(output)
            pairs = torch.stack([decided, true[batch.start : batch.stop].to(decided.device)], 1)
            chances = explainer.probabilities(output).gather(1, pairs).float()
            yield torch.cat([decided[:, None].float(), chances], 1)  # one tensor to wait for

    found = fetch_all(numbers())
    check.warn()
    return found[:, 0].astype(np.int64), found[:, 1:]


def _surest_errors(
    pairs: np.ndarray, probabilities: np.ndarray, n_images: int
) -> tuple[np.ndarray, int]:
    """Return the rows that are wrong, the most probable first, and how many there are in all."""
    # Of an output that is NaN an argmax gives a class even so.
    known = np.isfinite(probabilities).all(axis=1)
    wrong = np.flatnonzero((pairs[:, 0] != pairs[:, 1]) & known)
    if not len(wrong):
        raise ValueError(
            f"There is no failure to draw: all {known.sum()} images whose output is a number are "
            "predicted as y says. Give images that the network was not trained on; CAMDisplay "
            "draws those that are right."
        )
    order = np.argsort(-probabilities[wrong, 0], kind="stable")
    return wrong[order[:n_images]], len(wrong)


def _explained(
    explainer: Explainer, opened: Any, pairs: np.ndarray, probabilities: np.ndarray, method: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return pictures, and the maps of both classes of each, at the images' own sizes."""
    pictures: list[np.ndarray] = []
    maps: list[np.ndarray] = []
    asked = torch.from_numpy(pairs)
    question = explainer.translate(asked)
    for explained in explainer.iter_explained(opened, question, methods=[method]):
        batch = explained.batch
        part = asked[batch.start : batch.stop].to(explained.output.device)
        again = explainer.probabilities(explained.output).gather(1, part).float().cpu().numpy()
        drift = np.abs(again - probabilities[batch.start : batch.stop]).max()
        if not drift <= _MOST_DRIFT:
            raise ValueError(
                "An image has other probabilities when it is read again, by "
                f"{drift:.2f}: X changes its images, as random augmentation does, or the network "
                "draws random numbers. Give images without augmentation."
            )
        pictures += pictures_of_batch(batch, own_size=True)
        maps += maps_of_batch(explainer, explained.maps[0], batch)
    return pictures, maps
