"""Queries, and the neighbours that embeddings find for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch

from sklcam._validation import describe
from sklcam.embeddings.explainer import EmbeddingCAMExplainer
from sklcam.explain.base import AnyMethod
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display
from sklcam.plotting._explained import (
    as_dataset,
    as_text,
    is_pixelwise,
    labels_of_images,
    pictures_of,
    pictures_of_opened,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


IsRight = Callable[[Any, Any], bool]

_CELL = 2.6  # inches: neighbours are to be recognised


@dataclass(kw_only=True, eq=False, repr=False)
class RetrievalDisplay(Display):
    """Queries and their nearest neighbours in a gallery, each explained towards the other.

    Each query has two rows: the images, and below them the maps of where they are alike. The
    query's is the mean of its maps towards all neighbours, a neighbour's is towards the query. A
    neighbour of the query's class has an unbroken frame and is called right; another one has a
    dashed frame and is called wrong.

    Parameters
    ----------
    queries : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    neighbors : list of list of ndarray
        For each query its neighbours' images, the nearest first.
    query_maps, neighbor_maps : ndarray of shape (n_queries, k, height, width)
    similarities : ndarray of shape (n_queries, k)
        Cosines.
    query_labels : list of str or None, default=None
    neighbor_labels : list of list of str, or None, default=None
    right : list of list of bool, or None, default=None
        Whether each neighbour is right; None is whether its label is the query's.
    pixelwise : bool, default=False
        Whether the maps are of single pixels, such as saliency: see :class:`CAMDisplay`.

    Attributes
    ----------
    queries, neighbors, query_maps, neighbor_maps, similarities
        As above.
    query_labels, neighbor_labels, right, pixelwise
        As above.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (2 * n_queries, 1 + k)
    ims_ : ndarray of AxesImage, of the same shape
    colorbar_ : matplotlib Colorbar or None

    References
    ----------
    Bachhawat, "Generalizing GradCAM for Embedding Networks".

    Examples
    --------
    >>> import torch
    >>> from sklcam import EmbeddingCAMExplainer
    >>> from sklcam.networks import build_model
    >>> from sklcam.plotting import RetrievalDisplay
    >>> network = build_model("resnet18", n_classes=16)
    >>> explainer = EmbeddingCAMExplainer(network, proxy="self", verbose=0).fit()
    >>> images = torch.rand(4, 3, 64, 64)
    >>> RetrievalDisplay.from_estimator(explainer, images[:1], images[1:], k=2).axes_.shape
    (2, 3)
    """

    queries: Sequence[np.ndarray]
    neighbors: Sequence[Sequence[np.ndarray]]
    query_maps: np.ndarray
    neighbor_maps: np.ndarray
    similarities: np.ndarray
    query_labels: Sequence[str] | None = None
    neighbor_labels: Sequence[Sequence[str]] | None = None
    right: Sequence[Sequence[bool]] | None = None
    pixelwise: bool = False

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimator,
        query: Any,
        gallery: Any,
        *,
        query_labels: ArrayLike | None = None,
        gallery_labels: ArrayLike | None = None,
        is_right: IsRight = eq,
        k: int = 3,
        method: AnyMethod | None = None,
        **options: Any,
    ) -> RetrievalDisplay:
        """Search the gallery, explain the neighbours, and draw them.

        Parameters
        ----------
        estimator : EmbeddingCAMExplainer or EmbeddingNet
            Fitted.
        query, gallery : images
            At most 50 queries.
        query_labels, gallery_labels : array-like of one label per image, or None, default=None
            Both or none; torch data sets may bring their own.
        is_right : callable, default=operator.eq
            Takes the label of a query and that of a neighbour, and says whether it is right: for
            labels that are not classes, such as a list of all that is in an image.
        k : int, default=3
            How many neighbours.
        method : str, Method or None, default=None
            None is the estimator's own.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        RetrievalDisplay

        Raises
        ------
        ValueError
            If the estimator does not search by embeddings, if k is not from 1 to the number of
            images in the gallery, or if labels are given for only one of the two, or not one per
            image.
        """
        cls._check(**options)
        explainer, query_images = as_explainer(estimator, query)
        if not isinstance(explainer, EmbeddingCAMExplainer):
            raise ValueError(
                "RetrievalDisplay searches by embeddings: estimator must be an "
                f"EmbeddingCAMExplainer or an EmbeddingNet; got {type(estimator).__name__}."
            )
        _, gallery_images = as_explainer(estimator, gallery)
        queries, others = (
            explainer.open(X, originals=True) for X in (query_images, gallery_images)
        )
        cls._check_n_rows(2 * len(queries))
        labels = _Labels(
            labels_of_images(query, query_labels, len(queries)),
            labels_of_images(gallery, gallery_labels, len(others)),
            is_right,
        )
        found = explainer.explain_neighbors(query_images, gallery_images, k, method=method)
        # An image that is found several times is read once.
        rows, places = np.unique(found.indices, return_inverse=True)
        pictures = pictures_of_opened(others.subset(rows))
        neighbors = [[pictures[i] for i in row] for row in places.reshape(found.indices.shape)]
        display = cls(
            queries=pictures_of_opened(queries),
            neighbors=neighbors,
            pixelwise=is_pixelwise(explainer.as_method(method)),
            **labels.beside(found),
        )
        return display.plot(**options)

    @classmethod
    def from_predictions(
        cls,
        query: Any,
        gallery: Any,
        neighbors: Bunch,
        *,
        query_labels: ArrayLike | None = None,
        gallery_labels: ArrayLike | None = None,
        is_right: IsRight = eq,
        pixelwise: bool = False,
        **options: Any,
    ) -> RetrievalDisplay:
        """Draw what :meth:`~sklcam.EmbeddingCAMExplainer.explain_neighbors` has found.

        Parameters
        ----------
        query, gallery : images
            In any form that an estimator takes.
        neighbors : Bunch
            Its result: ``indices``, ``similarities``, ``query_maps`` and ``neighbor_maps``.
        query_labels, gallery_labels, is_right
            See :meth:`from_estimator`.
        pixelwise : bool, default=False
            Whether the maps are of single pixels.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        RetrievalDisplay

        Raises
        ------
        ValueError
            If ``neighbors`` is not the result of explain_neighbors for these queries, or if labels
            are given for only one of the two, or not one per image.
        """
        cls._check(**options)
        wanted = ("indices", "similarities", "query_maps", "neighbor_maps")
        if not all(hasattr(neighbors, name) for name in wanted):
            raise ValueError(
                f"neighbors must be what explain_neighbors returns, with {', '.join(wanted)}; got "
                f"{describe(neighbors)}."
            )
        queries, others = as_dataset(query), as_dataset(gallery)
        if len(neighbors.indices) != len(queries):
            raise ValueError(
                f"neighbors has {len(neighbors.indices)} rows for {len(queries)} queries."
            )
        labels = _Labels(
            labels_of_images(query, query_labels, len(queries)),
            labels_of_images(gallery, gallery_labels, len(others)),
            is_right,
        )
        display = cls(
            queries=pictures_of(queries),
            neighbors=[pictures_of(others, map(int, row)) for row in neighbors.indices],
            pixelwise=pixelwise,
            **labels.beside(neighbors),
        )
        return display.plot(**options)

    def plot(
        self,
        *,
        ax: AnyAxes = None,
        cmap: draw.AnyColormap | None = None,
        alpha: draw.Alpha = "map",
        colorbar: bool = True,
    ) -> RetrievalDisplay:
        """Draw two rows for each query.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (2 * n_queries, 1 + k); None makes a new figure.
        cmap, alpha, colorbar
            See :meth:`CAMDisplay.plot`.

        Returns
        -------
        RetrievalDisplay
            ``self``.

        Raises
        ------
        ValueError
            If a new figure would have over 100 rows.
        """
        self._check(ax=ax, cmap=cmap, alpha=alpha)
        k = np.shape(self.similarities)[1]
        pairs = zip(self.queries, self.neighbors, strict=True)
        axes = self._take_grid(
            ax,
            1 + k,
            [[query, *found] for query, found in pairs for _ in range(2)],
            cell=_CELL,
        )
        means = np.mean(self.query_maps, axis=1)
        maps = {"query": means, "neighbor": self.neighbor_maps}
        painter = draw.painter_of(maps, cmap, alpha, pixelwise=self.pixelwise)
        for q, query in enumerate(self.queries):
            (above, below), drawn = axes[2 * q : 2 * q + 2], self.ims_[2 * q : 2 * q + 2]
            drawn[0, 0] = draw.image(above[0], query)
            drawn[1, 0] = painter.draw_over(below[0], means[q], query)
            draw.title(above[0], "query", "" if self.query_labels is None else self.query_labels[q])
            draw.title(below[0], "like them" if k == 1 else f"like them, mean of {k} maps")
            for n, neighbor in enumerate(self.neighbors[q]):
                drawn[0, n + 1] = draw.image(above[n + 1], neighbor)
                drawn[1, n + 1] = painter.draw_over(
                    below[n + 1], self.neighbor_maps[q, n], neighbor
                )
                verdict = self._verdict(above[n + 1], q, n)
                draw.title(above[n + 1], verdict, f"cosine {self.similarities[q, n]:.2f}")
            draw.title(below[1], "like the query")
        self.colorbar_ = painter.scale(axes[0, -1]) if colorbar else None
        return self

    def _verdict(self, place: Axes, q: int, n: int) -> str:
        """Frame a neighbour as right or wrong, and return what is written over it."""
        if self.query_labels is None or self.neighbor_labels is None:
            return ""
        label = self.neighbor_labels[q][n]
        is_right = label == self.query_labels[q] if self.right is None else self.right[q][n]
        draw.frame(place, is_right)
        return f"{draw.SIGNS[bool(is_right)]}{'right' if is_right else 'wrong'}: {label}"


class _Labels:
    """The labels of queries and gallery, and how they are judged."""

    def __init__(self, queries: np.ndarray | None, gallery: np.ndarray | None, is_right: IsRight):
        if (queries is None) != (gallery is None):
            raise ValueError(
                "Give query_labels and gallery_labels, or neither: right and wrong take both."
            )
        self._queries, self._gallery, self._is_right = queries, gallery, is_right

    def beside(self, found: Bunch) -> dict[str, Any]:
        """Return what a display shows of neighbours, with their labels."""
        shown = {
            name: getattr(found, name) for name in ("query_maps", "neighbor_maps", "similarities")
        }
        if self._queries is None or self._gallery is None:
            return shown
        of_neighbors = self._gallery[found.indices]
        right = [
            [bool(self._is_right(label, other)) for other in row]
            for label, row in zip(self._queries, of_neighbors, strict=True)
        ]
        return shown | {
            "query_labels": as_text(self._queries),
            "neighbor_labels": [as_text(row) for row in of_neighbors],
            "right": right,
        }
