"""Queries, and what embeddings find for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import eq
from typing import Any, Literal

import numpy as np
from sklearn.utils import Bunch

from sklcam._validation import describe
from sklcam.embeddings.explainer import EmbeddingCAMExplainer
from sklcam.explain.base import AnyMethod
from sklcam.plotting.drawing import (
    MAP_CMAP,
    RIGHT,
    WRONG,
    axes_grid,
    check_looks,
    check_matplotlib,
    check_n_rows,
    check_options,
    draw_image,
    draw_map,
    map_limits,
    set_title,
    stacked,
)
from sklcam.plotting.pictures import (
    explainers_by_name,
    labels_of_images,
    own_size_dataset,
    picture_of,
    pictures_of,
)


class RetrievalDisplay:
    """Queries and their nearest neighbours in a gallery, each explained towards the other.

    Of each query there are two rows: where it is like each neighbour, and, below, where the
    neighbour is like the query. A neighbour of the query's class has an unbroken frame and is
    called right; another one has a dashed frame and is called wrong.

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

    Attributes
    ----------
    queries, neighbors, query_maps, neighbor_maps, similarities
        As above.
    query_labels, neighbor_labels, right
        As above.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (2 * n_queries, 1 + k)
    ims_ : ndarray of AxesImage or None, of the same shape

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

    def __init__(
        self,
        *,
        queries: Sequence[np.ndarray],
        neighbors: Sequence[Sequence[np.ndarray]],
        query_maps: np.ndarray,
        neighbor_maps: np.ndarray,
        similarities: np.ndarray,
        query_labels: Sequence[str] | None = None,
        neighbor_labels: Sequence[Sequence[str]] | None = None,
        right: Sequence[Sequence[bool]] | None = None,
    ):
        self.queries = queries
        self.neighbors = neighbors
        self.query_maps = query_maps
        self.neighbor_maps = neighbor_maps
        self.similarities = similarities
        self.query_labels = query_labels
        self.neighbor_labels = neighbor_labels
        self.right = right

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        query: Any,
        gallery: Any,
        *,
        query_labels: Any = None,
        gallery_labels: Any = None,
        is_right: Callable[[Any, Any], bool] = eq,
        k: int = 3,
        method: AnyMethod | None = None,
        ax: Any = None,
        **options: Any,
    ) -> RetrievalDisplay:
        """Search the gallery, explain what was found, and draw it.

        Parameters
        ----------
        estimator : EmbeddingCAMExplainer or EmbeddingNet
            Fitted.
        query, gallery : images
        query_labels, gallery_labels : array-like of one label per image, or None, default=None
            Both or none; torch data sets may bring their own.
        is_right : callable, default=operator.eq
            Takes the label of a query and that of a neighbour, and says whether it is right: for
            labels that are not classes, such as what all there is in an image.
        k : int, default=3
            How many neighbours.
        method : str, Method or None, default=None
            None is the estimator's own.
        ax : array-like of matplotlib axes or None, default=None
            Of shape (2 * n_queries, 1 + k).
        **options
            Of :meth:`plot`.

        Returns
        -------
        RetrievalDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        NotFittedError
            If the estimator has not been fitted.
        TypeError
            If there is an option that :meth:`plot` does not take.
        ValueError
            If the estimator does not search by embeddings; if there are over 50 queries, or k is
            not from 1 to the number of images in the gallery; if labels are given of one of the two
            only, or not one per image; or if the images, method, axes or looks make no sense.
        """
        check_options(cls, ax, options)
        ((_, explainer),) = explainers_by_name({"": estimator}, query).items()
        if not isinstance(explainer, EmbeddingCAMExplainer):
            raise ValueError(
                "RetrievalDisplay searches by embeddings: estimator must be an "
                f"EmbeddingCAMExplainer or an EmbeddingNet; got {type(estimator).__name__}."
            )
        queries, others = explainer._image_dataset(query), explainer._image_dataset(gallery)
        check_n_rows(2 * len(queries), cls.__name__)
        of_queries = labels_of_images(query, query_labels, len(queries))
        of_gallery = labels_of_images(gallery, gallery_labels, len(others))
        found = explainer.explain_neighbors(query, gallery, k, method=method)
        display = cls._from_datasets(
            queries, others, found, of_queries, of_gallery, is_right, own_size=False
        )
        return display.plot(ax=ax, **options)

    @classmethod
    def from_predictions(
        cls,
        query: Any,
        gallery: Any,
        neighbors: Bunch,
        *,
        query_labels: Any = None,
        gallery_labels: Any = None,
        is_right: Callable[[Any, Any], bool] = eq,
        ax: Any = None,
        **options: Any,
    ) -> RetrievalDisplay:
        """Draw what :meth:`~sklcam.EmbeddingCAMExplainer.explain_neighbors` has found.

        Parameters
        ----------
        query, gallery : images
            In any form that an estimator takes.
        neighbors : Bunch
            Its result: ``indices``, ``similarities``, ``query_maps`` and ``neighbor_maps``.
        query_labels, gallery_labels : array-like of one label per image, or None, default=None
            Both or none; torch data sets may bring their own.
        is_right : callable, default=operator.eq
            As of :meth:`from_estimator`.
        ax : array-like of matplotlib axes or None, default=None
        **options
            Of :meth:`plot`.

        Returns
        -------
        RetrievalDisplay

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If ``neighbors`` is not what explain_neighbors returns of these queries; if labels are
            given of one of the two only, or not one per image; or if the images, axes or looks make
            no sense.
        """
        check_matplotlib(f"{cls.__name__}.from_predictions")
        queries, others = own_size_dataset(query), own_size_dataset(gallery)
        display = cls._from_datasets(
            queries,
            others,
            neighbors,
            labels_of_images(query, query_labels, len(queries)),
            labels_of_images(gallery, gallery_labels, len(others)),
            is_right,
            own_size=True,
        )
        return display.plot(ax=ax, **options)

    @classmethod
    def _from_datasets(
        cls,
        queries: Any,
        gallery: Any,
        found: Bunch,
        query_labels: Any,
        gallery_labels: Any,
        is_right: Callable[[Any, Any], bool],
        *,
        own_size: bool,
    ) -> RetrievalDisplay:
        if (query_labels is None) != (gallery_labels is None):
            raise ValueError(
                "Give query_labels and gallery_labels, or neither: right and wrong take both."
            )
        wanted = ("indices", "similarities", "query_maps", "neighbor_maps")
        if not all(hasattr(found, name) for name in wanted):
            raise ValueError(
                f"neighbors must be what explain_neighbors returns, with {', '.join(wanted)}; got "
                f"{describe(found)}."
            )
        if len(found.indices) != len(queries):
            raise ValueError(f"neighbors has {len(found.indices)} rows for {len(queries)} queries.")
        named = right = None
        if gallery_labels is not None:
            of_neighbors = [[gallery_labels[i] for i in row] for row in found.indices]
            named = [[str(label) for label in row] for row in of_neighbors]
            right = [
                [bool(is_right(label, other)) for other in row]
                for label, row in zip(query_labels, of_neighbors, strict=True)
            ]
        return cls(
            queries=pictures_of(queries, own_size=own_size),
            neighbors=[
                [picture_of(gallery, int(i), own_size=own_size) for i in row]
                for row in found.indices
            ],
            query_maps=found.query_maps,
            neighbor_maps=found.neighbor_maps,
            similarities=found.similarities,
            query_labels=None if query_labels is None else [str(of) for of in query_labels],
            neighbor_labels=named,
            right=right,
        )

    def plot(
        self, *, ax: Any = None, cmap: Any = MAP_CMAP, alpha: float | Literal["map"] = 0.6
    ) -> RetrievalDisplay:
        """Draw two rows for each query.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (2 * n_queries, 1 + k); None makes a new figure.
        cmap, alpha
            As of :meth:`CAMDisplay.plot`.

        Returns
        -------
        RetrievalDisplay
            ``self``.

        Raises
        ------
        ImportError
            If matplotlib is missing; it comes with the extra ``plot``.
        ValueError
            If a look makes no sense, there are more or fewer axes, or a new figure would have over
            100 rows.
        """
        check_matplotlib(f"{type(self).__name__}.plot")
        check_looks(cmap=cmap, alpha=alpha)
        k = np.shape(self.similarities)[1]
        pairs = zip(self.queries, self.neighbors, strict=True)
        rows_of_images = [row for query, found in pairs for row in ([query], found)]
        name = type(self).__name__
        figure, axes = axes_grid(ax, 1 + k, rows_of_images, name)
        self.ims_ = np.full(axes.shape, None, dtype=object)
        limits = map_limits({"query": self.query_maps, "neighbor": self.neighbor_maps})
        for q, query in enumerate(self.queries):
            rows, drawn = axes[2 * q : 2 * q + 2], self.ims_[2 * q : 2 * q + 2]
            drawn[0, 0] = draw_image(rows[0, 0], query)
            rows[1, 0].set_axis_off()
            label = "" if self.query_labels is None else self.query_labels[q]
            set_title(rows[0, 0], stacked("query", label))
            for n, neighbor in enumerate(self.neighbors[q], 1):
                above, below = rows[:, n]
                maps = self.query_maps[q, n - 1], self.neighbor_maps[q, n - 1]
                drawn[0, n] = draw_map(above, maps[0], limits, cmap, alpha, on=query, frame=query)
                drawn[1, n] = draw_map(
                    below, maps[1], limits, cmap, alpha, on=neighbor, frame=neighbor
                )
                set_title(above, f"query, as neighbour {n}")
                cosine = f"cosine {self.similarities[q, n - 1]:.2f}"
                set_title(below, stacked(self._verdict(below, q, n - 1), cosine))
        self.figure_, self.axes_ = figure, axes
        return self

    def _verdict(self, place: Any, q: int, n: int) -> str:
        """Frame a neighbour as right or wrong, and return what is written over it."""
        if self.query_labels is None or self.neighbor_labels is None:
            return ""
        label = self.neighbor_labels[q][n]
        is_right = label == self.query_labels[q] if self.right is None else self.right[q][n]
        style = RIGHT if is_right else WRONG
        place.spines[:].set(linewidth=3, color=style["color"], linestyle=style["ls"])
        return f"{'right' if is_right else 'wrong'}: {label}"
