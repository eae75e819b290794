"""For and against a class: both maps, and the image without what speaks against the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sklcam.cam import Counterfactual
from sklcam.cam.targets import Target
from sklcam.explain.base import AnyMethod, ExplainedBatch, Explainer
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.explain.predictions import class_names
from sklcam.images.pictures import check_is_picture
from sklcam.metrics.causal import Base, blur, cover
from sklcam.metrics.plan import check_one_map
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display, check_maps, check_titles
from sklcam.plotting._explained import (
    as_text,
    is_pixelwise,
    map_list,
    pictures_of,
    pictures_of_batch,
)


@dataclass(kw_only=True, eq=False, repr=False)
class CounterfactualDisplay(Display):
    """What speaks for a class and against it, and the image without the latter, a row per image.

    Made by :meth:`from_estimator` or :meth:`from_predictions`. If everything in an image
    speaks for the class, the map against it is blank, and nothing is covered.

    Parameters
    ----------
    images, covered : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
        Images as the network gets them, before and after what speaks against the class is covered.
    maps_for, maps_against : list of ndarray of shape (height, width), in [0, 1]
    scores : ndarray of shape (n_images, 2) or None, default=None
        The probability of the class, or its score, before and after.
    labels : list of str or None, default=None
        The name of the class.
    pixelwise : bool, default=False
        Whether the maps for the class are of single pixels, such as saliency: see
        :class:`CAMDisplay`.

    Attributes
    ----------
    images, covered, maps_for, maps_against, scores, labels, pixelwise
        As above.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_images, 4)
    ims_ : ndarray of AxesImage, of the shape of ``axes_``
    colorbar_ : matplotlib Colorbar or None

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 3.3, fig. 3.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.plotting import CounterfactualDisplay
    >>> image, map_ = np.ones((1, 8, 8)), np.eye(8)
    >>> display = CounterfactualDisplay.from_predictions(
    ...     image, [map_], [1 - map_], image * map_, scores=[[0.5, 0.75]], labels=["cat"]
    ... )
    >>> display.axes_[0, 3].get_title()
    'covered: 0.50 to 0.75'
    """

    kinds = ("overlay", "map")

    images: Sequence[np.ndarray]
    maps_for: Sequence[np.ndarray]
    maps_against: Sequence[np.ndarray]
    covered: Sequence[np.ndarray]
    scores: np.ndarray | None = None
    labels: Sequence[str] | None = None
    pixelwise: bool = False

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimator,
        X: Any,
        *,
        target: Any = None,
        method: AnyMethod | None = None,
        share: float = 0.2,
        base: Base = blur,
        **options: Any,
    ) -> CounterfactualDisplay:
        """Explain images, cover what speaks against the class, and draw it.

        Parameters
        ----------
        estimator : estimator with ``explain``, or nn.Module
        X : images
            In any form that the estimator takes. At most 100.
        target : None, labels, Target or callable, default=None
            The class, one per image; None is the predicted one.
        method : str, Method or None, default=None
            The method of the map for it; None is the estimator's own. The map against it is by
            :class:`~sklcam.cam.Counterfactual`.
        share, base
            See :func:`~sklcam.metrics.cover`, of the network's input. If ``base`` is a function,
            the picture shows what it makes of the picture; otherwise a blur.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        CounterfactualDisplay
        """
        cls._check(**options)
        explainer, X = as_explainer(estimator, X)
        opened = explainer.open(X, originals=True)
        check_is_picture(opened.image_size)
        cls._check_n_rows(len(opened))
        methods = [explainer.as_method(each) for each in (method, Counterfactual())]
        check_one_map(explainer, methods, "CounterfactualDisplay")
        question = explainer.as_target(target, len(opened))
        if question.several:
            raise ValueError("CounterfactualDisplay draws one class per image; got several.")
        parts = [
            _of_batch(explainer, explained, share, base)
            for explained in explainer.iter_explained(opened, question, methods=methods)
        ]
        images, maps_for, maps_against, covered, labels = (
            [each for part in parts for each in part[i]] for i in range(5)
        )
        display = cls(
            images=images,
            maps_for=maps_for,
            maps_against=maps_against,
            covered=covered,
            scores=np.concatenate([np.asarray(part[5]) for part in parts]),
            labels=labels,
            pixelwise=is_pixelwise(methods[0]),
        )
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        maps_for: Any,
        maps_against: Any,
        covered: Any,
        *,
        scores: Any = None,
        labels: Any = None,
        pixelwise: bool = False,
        **options: Any,
    ) -> CounterfactualDisplay:
        """Draw results that you already have.

        Parameters
        ----------
        images, covered : images
        maps_for, maps_against : sequence of array-like of shape (height, width)
        scores : array-like of shape (n_images, 2) or None, default=None
        labels : sequence or None, default=None
        pixelwise : bool, default=False
            Whether the maps for the class are of single pixels.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        CounterfactualDisplay
        """
        cls._check(**options)
        display = cls(
            images=pictures_of(images),
            maps_for=map_list(maps_for),
            maps_against=map_list(maps_against),
            covered=pictures_of(covered),
            scores=None if scores is None else np.asarray(scores, float),
            labels=as_text(labels),
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
    ) -> CounterfactualDisplay:
        """Draw a row for each image.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_images, 4); None makes a new figure.
        kind : {"overlay", "map"}, default="overlay"
            Maps on the images in grey, or by themselves.
        cmap, alpha, limits, colorbar
            See :meth:`CAMDisplay.plot`.

        Returns
        -------
        CounterfactualDisplay
            ``self``.
        """
        self._check(ax=ax, kind=kind, cmap=cmap, alpha=alpha, limits=limits)
        n_images = len(self.images)
        named = {"for": self.maps_for, "against": self.maps_against}
        check_maps(named, n_images)
        check_titles(self.labels, n_images)
        if len(self.covered) != n_images:
            raise ValueError(f"There are {len(self.covered)} covered images for {n_images} images.")
        if self.scores is not None and self.scores.shape != (n_images, 2):
            raise ValueError(
                f"scores must be two numbers for each of {n_images} images, before and after; got "
                f"shape {self.scores.shape}."
            )
        look = (cmap, alpha, limits)
        if self.pixelwise:
            painter = draw.painter_of({"against": self.maps_against}, *look)
            favouring = draw.painter_of({"for": self.maps_for}, *look, pixelwise=True)
        else:
            painter = favouring = draw.painter_of(named, *look)
        axes = self._take_grid(ax, 4, [[image] for image in self.images])
        for i, (image, places) in enumerate(zip(self.images, axes, strict=True)):
            self.ims_[i] = (
                draw.image(places[0], image),
                favouring.draw_as(kind, places[1], self.maps_for[i], image),
                painter.draw_as(kind, places[2], self.maps_against[i], image),
                draw.image(places[3], self.covered[i]),
            )
            draw.title(places[0], "" if self.labels is None else self.labels[i])
            draw.title(places[1], "for", favouring.note if i == 0 else "")
            draw.title(places[2], "against")
            change = "" if self.scores is None else ": {:.2f} to {:.2f}".format(*self.scores[i])
            draw.title(places[3], f"covered{change}")
        self.colorbar_ = painter.scale(axes[0, -1]) if colorbar else None
        return self


def _of_batch(
    explainer: Explainer, explained: ExplainedBatch, share: float, base: Base
) -> tuple[Sequence[Any] | np.ndarray, ...]:
    """Return pictures, both maps, pictures that are covered, labels, and scores of a batch."""
    batch, target = explained.batch, explained.target
    given, against = batch.inputs, explained.maps[1]
    covered, marked = cover(given.images, against, share=share, base=base)
    rows = torch.arange(len(batch), device=given.images.device)
    after = explainer.output_of(given.with_images(covered, rows))
    scores = torch.stack([_scores(explainer, target, each) for each in (explained.output, after)])
    pictures = pictures_of_batch(batch)
    hidden = [
        _hidden(picture, mask, base)
        for picture, mask in zip(pictures, marked.cpu().numpy(), strict=True)
    ]
    maps = [[*each.float().cpu().numpy()] for each in explained.maps]
    return (
        pictures,
        *maps,
        hidden,
        _labels(explainer, target, len(batch)),
        scores.T.float().cpu().numpy(),
    )


def _scores(explainer: Explainer, target: Target, output: Tensor) -> Tensor:
    """Return the probability of what is explained, or its score if it has none."""
    if target.names_classes and explainer.shows_probabilities:
        found = target.probability(explainer.probabilities(output))
        if found is not None:
            return found
    return target.scores(output)[:, 0].detach()


def _labels(explainer: Explainer, target: Target, n_images: int) -> list[str]:
    names = class_names(explainer)
    if target.indices is None or not names:
        return [""] * n_images
    return [names[i] for i in target.indices[:, 0].tolist()]


def _hidden(picture: np.ndarray, marked: np.ndarray, base: Base) -> np.ndarray:
    """Return a picture that is covered as the network's input is."""
    planes = torch.from_numpy(picture if picture.ndim == 3 else picture[..., None]).movedim(-1, 0)
    replaced = (base if callable(base) else blur)(planes[None].float())[0]
    mixed = torch.where(torch.from_numpy(marked), replaced, planes).clamp(0, 1).movedim(0, -1)
    return mixed.numpy() if picture.ndim == 3 else mixed[..., 0].numpy()
