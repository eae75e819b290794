"""Crops where channels are strongest, and the concepts of a layer in colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklcam._validation import describe
from sklcam.concepts import ConceptMaps
from sklcam.concepts.namer import ChannelNamer
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display, check_titles
from sklcam.plotting._explained import as_text, pictures_of_opened

_DISTINCT = 6  # colours that are told apart easily


@dataclass(kw_only=True, eq=False, repr=False)
class ConceptMapsDisplay(Display):
    """The concepts of a layer in colours: at each place, the strongest concept.

    Each image is drawn twice: as it is, and in grey under the colours of the concepts, which are as
    opaque as the concepts are strong.

    Parameters
    ----------
    images : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    maps : ndarray of shape (n_images, n_concepts, height, width), >= 0
        At the images' size; values over 1 are drawn as 1.
    names : list of str or None, default=None
        Names of the concepts; None is their numbers.

    Attributes
    ----------
    images, maps, names
        As above.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_images, 2)
    ims_ : ndarray of AxesImage, of the same shape
    legend_ : matplotlib Legend

    References
    ----------
    Collins, Achanta, Süsstrunk, "Deep Feature Factorization for Concept Discovery", ECCV 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.plotting import ConceptMapsDisplay
    >>> maps = np.eye(2)[None].repeat(2, axis=0)[None]
    >>> display = ConceptMapsDisplay(images=[np.zeros((2, 2))], maps=maps).plot()
    >>> display.axes_.shape
    (1, 2)
    """

    images: Sequence[np.ndarray]
    maps: np.ndarray
    names: Sequence[str] | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimator,
        X: Any,
        concepts: ConceptMaps,
        *,
        names: Any = None,
        **options: Any,
    ) -> ConceptMapsDisplay:
        """Find the concepts in images, and draw them.

        Parameters
        ----------
        estimator : estimator with ``explain``
            The one that ``concepts`` was fitted with.
        X : images
            At most 100.
        concepts : ConceptMaps
            Fitted.
        names : sequence of str or None, default=None
            Names of the concepts.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        ConceptMapsDisplay
        """
        cls._check(**options)
        if not isinstance(concepts, ConceptMaps):
            raise ValueError(f"concepts must be a fitted ConceptMaps; got {describe(concepts)}.")
        explainer, images = as_explainer(estimator, X)
        opened = explainer.open(images, originals=True)
        cls._check_n_rows(len(opened))
        maps = concepts.transform(explainer, images)
        return cls(images=pictures_of_opened(opened), maps=maps, names=as_text(names)).plot(
            **options
        )

    def plot(self, *, ax: AnyAxes = None) -> ConceptMapsDisplay:
        """Draw a row for each image.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_images, 2); None makes a new figure.

        Returns
        -------
        ConceptMapsDisplay
            ``self``.
        """
        self._check(ax=ax)
        maps = np.asarray(self.maps)
        if maps.ndim != 4 or len(maps) != len(self.images):
            raise ValueError(
                f"maps must be of shape (n_images, n_concepts, height, width) for "
                f"{len(self.images)} images; got {maps.shape}."
            )
        n_concepts = maps.shape[1]
        if self.names is not None and len(self.names) != n_concepts:
            raise ValueError(f"There are {len(self.names)} names for {n_concepts} concepts.")
        names = [f"concept {i}" for i in range(n_concepts)] if self.names is None else self.names
        colors = distinct_colors(n_concepts)
        axes = self._take_grid(ax, 2, [[image] for image in self.images], title=0.05)
        for i, (image, places) in enumerate(zip(self.images, axes, strict=True)):
            coloured = in_colors(image, maps[i], colors)
            self.ims_[i] = draw.image(places[0], image), draw.image(places[1], coloured)
        keys = [draw.key(marker="s", color=color, markersize=8) for color in colors]
        self.legend_ = draw.legend(axes[0, -1], keys, [*map(str, names)], **draw.BESIDE)
        return self


def distinct_colors(n: int) -> np.ndarray:
    """Return n colours that can be told apart, (n, 3)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    if n <= _DISTINCT:
        return np.array([to_rgb(color) for color in draw.COLORS[:n]])
    return colormaps["turbo"](np.linspace(0.05, 0.95, n))[:, :3]


def in_colors(image: np.ndarray, maps: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Return an image in grey, covered at each place by the colour of its strongest concept.

    Parameters
    ----------
    image : ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    maps : ndarray of shape (n_concepts, height, width), >= 0
    colors : ndarray of shape (n_concepts, 3)

    Returns
    -------
    ndarray of shape (height, width, 3)
    """
    grey = image if image.ndim == 2 else image.mean(axis=2)
    amount = maps.max(axis=0).clip(0, 1)[..., None]
    # Light, so that colours are seen on what is dark.
    ground = (0.3 + 0.7 * grey)[..., None]
    return (1 - amount) * ground + amount * colors[maps.argmax(axis=0)]


@dataclass(kw_only=True, eq=False, repr=False)
class ConceptCropsDisplay(Display):
    """The crops where channels are strongest: a row for each channel, with its name.

    Parameters
    ----------
    crops : list of list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
        For each channel, the strongest first; the same number for each.
    titles : list of str or None, default=None
        The text over each row.

    Attributes
    ----------
    crops, titles
        As above.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_channels, k)
    ims_ : ndarray of AxesImage, of the same shape

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer, ConceptNamer
    >>> from sklcam.plotting import ConceptCropsDisplay
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> images = torch.rand(4, 3, 8, 8)
    >>> namer = ConceptNamer().fit(explainer, images)
    >>> ConceptCropsDisplay.from_estimator(explainer, images, namer, [0, 2], k=3).axes_.shape
    (2, 3)
    """

    crops: Sequence[Sequence[np.ndarray]]
    titles: Sequence[str] | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: AnyEstimator,
        X: Any,
        namer: ChannelNamer,
        channels: Sequence[int],
        *,
        k: int = 5,
        **options: Any,
    ) -> ConceptCropsDisplay:
        """Cut out where channels are strongest, and draw the crops.

        Parameters
        ----------
        estimator : estimator with ``explain``
            The one that the namer was fitted with.
        X : images
            The images that the namer was fitted to.
        namer : ConceptNamer or TextConceptNamer
            Fitted.
        channels : sequence of int
            At most 100.
        k : int, default=5
            The number of crops per channel.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        ConceptCropsDisplay
        """
        cls._check(**options)
        if not isinstance(namer, ChannelNamer):
            raise ValueError(
                f"namer must be a fitted ConceptNamer or TextConceptNamer; got {describe(namer)}."
            )
        cls._check_n_rows(len(channels))
        if not len(channels):
            raise ValueError("There is no channel to draw: channels is empty.")
        crops = [namer.crops(estimator, X, int(channel), k).images for channel in channels]
        titles = [_title(namer, int(channel)) for channel in channels]
        return cls(crops=crops, titles=titles).plot(**options)

    def plot(self, *, ax: AnyAxes = None) -> ConceptCropsDisplay:
        """Draw a row for each channel.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_channels, k); None makes a new figure.

        Returns
        -------
        ConceptCropsDisplay
            ``self``.
        """
        self._check(ax=ax)
        check_titles(self.titles, len(self.crops))
        counts = {len(row) for row in self.crops}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                "There must be as many crops of each channel, and at least one; there are "
                f"{sorted(counts)}."
            )
        (n_columns,) = counts
        axes = self._take_grid(ax, n_columns, self.crops, cell=1.3)
        for i, (row, places) in enumerate(zip(self.crops, axes, strict=True)):
            self.ims_[i] = [
                draw.image(place, crop) for place, crop in zip(places, row, strict=True)
            ]
            for place in places:
                place.set_anchor("N")  # or a higher crop would cover the title beside it
            draw.row_title(places, "" if self.titles is None else self.titles[i])
        return self


def _title(namer: ChannelNamer, channel: int) -> str:
    name = namer.names_[channel]
    if name is None:
        return f"channel {channel}"
    return f"channel {channel}: {name} ({np.nanmax(namer.scores_[channel]):.2f})"
