"""Clusters of a class's maps: what their images have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sklcam._validation import check_count, describe
from sklcam.cam import upsample
from sklcam.concepts import Shortcut, Shortcuts
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display
from sklcam.plotting._explained import pictures_of_opened


@dataclass(kw_only=True, eq=False, repr=False)
class ShortcutsDisplay(Display):
    """Clusters of maps, a row for each: its mean map, and its most typical images.

    Parameters
    ----------
    clusters : list of Shortcut
    images : list of list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
        Some images of each cluster, at the network's input size; the same number for each.

    Attributes
    ----------
    clusters, images
        As above.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_clusters, 1 + k)
    ims_ : ndarray of AxesImage, of the same shape

    References
    ----------
    Lapuschkin et al., "Unmasking Clever Hans predictors and assessing what machines really learn",
    Nature Communications 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.concepts import Shortcut
    >>> from sklcam.plotting import ShortcutsDisplay
    >>> one = Shortcut("horse", np.arange(9), 0.3, np.eye(2), np.eye(4) > 0, 0.8, 0.9, 0.5, 0.25)
    >>> display = ShortcutsDisplay(clusters=[one], images=[[np.zeros((4, 4))] * 3]).plot()
    >>> display.axes_.shape
    (1, 4)
    """

    clusters: Sequence[Shortcut]
    images: Sequence[Sequence[np.ndarray]]

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimator,
        X: Any,
        shortcuts: Shortcuts,
        *,
        n_rows: int = 5,
        k: int = 5,
        **options: Any,
    ) -> ShortcutsDisplay:
        """Read the images of clusters, and draw them.

        Parameters
        ----------
        estimator : estimator with ``explain``
        X : images
            The images in which the shortcuts were found.
        shortcuts : Shortcuts
            The result of :func:`~sklcam.concepts.find_shortcuts`.
        n_rows : int, default=5
            The number of clusters, the strongest first; at most 100.
        k : int, default=5
            The number of images per cluster.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        ShortcutsDisplay
        """
        cls._check(**options)
        check_count("n_rows", n_rows)
        check_count("k, how many images,", k)
        if not isinstance(shortcuts, Shortcuts):
            raise ValueError(
                f"shortcuts must be what find_shortcuts returns; got {describe(shortcuts)}."
            )
        clusters = [*shortcuts][:n_rows]
        if not clusters:
            raise ValueError("There is no cluster to draw: none has as many images as min_size.")
        cls._check_n_rows(len(clusters))
        k = min(k, *map(len, clusters))
        explainer, given = as_explainer(estimator, X)
        opened = explainer.open(given, originals=True)
        last = max(int(cluster.rows.max()) for cluster in clusters)
        if last >= len(opened):
            raise ValueError(
                f"X has {len(opened)} image(s), and clusters have image {last}: give those in "
                "which the shortcuts were found."
            )
        images = [
            pictures_of_opened(opened.subset(cluster.rows[:k].tolist())) for cluster in clusters
        ]
        return cls(clusters=clusters, images=images).plot(**options)

    def plot(self, *, ax: AnyAxes = None, cmap: draw.AnyColormap | None = None) -> ShortcutsDisplay:
        """Draw a row for each cluster.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_clusters, 1 + k); None makes a new figure.
        cmap : str, matplotlib Colormap or None, default=None
            Of the mean maps.

        Returns
        -------
        ShortcutsDisplay
            ``self``. The region that was covered is outlined in each image.
        """
        self._check(ax=ax, cmap=cmap)
        n_columns = 1 + len(self.images[0])
        axes = self._take_grid(ax, n_columns, self.images, cell=1.4)
        painter = draw.MapPainter(cmap)
        for i, (cluster, row) in enumerate(zip(self.clusters, self.images, strict=True)):
            map_ = torch.as_tensor(cluster.map)[None, None].float()
            large = upsample(map_, cluster.region.shape)[0, 0].numpy()
            self.ims_[i, 0] = painter.draw(axes[i, 0], large, row[0])
            for j, picture in enumerate(row, start=1):
                self.ims_[i, j] = draw.image(axes[i, j], picture)
                _outline(axes[i, j], cluster.region)
            text = (
                f"{cluster.label}, {len(cluster)} images: separation {cluster.separation:.2f}, "
                f"likeness {cluster.likeness:.2f}, drop {cluster.drop:.2f}"
            )
            draw.row_title(axes[i], text)
        return self


def _outline(place: Any, region: np.ndarray) -> None:
    """Draw a line around a region, between the centres of its pixels and of others."""
    if region.all() or not region.any() or min(region.shape) < 2:
        return
    rows, columns = (np.arange(side) + 0.5 for side in region.shape)
    place.contour(columns, rows, region.astype(float), [0.5], colors=draw.COLORS[1])
