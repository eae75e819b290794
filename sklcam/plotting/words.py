"""Images with a text, and the map of each of its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sklcam._validation import describe
from sklcam.explain.base import AnyMethod, method_name
from sklcam.language import WordMaps
from sklcam.language.base import LanguageExplainer
from sklcam.plotting import _drawing as draw
from sklcam.plotting._display import AnyAxes, Display, check_map_shape
from sklcam.plotting._explained import is_pixelwise, pictures_of, pictures_of_batch


@dataclass(kw_only=True, eq=False, repr=False)
class WordDisplay(Display):
    """Images with their captions or answers, one row each, and the map of every word.

    Made by :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    images : list of ndarray of shape (height, width) or (height, width, 3), in [0, 1]
    found : list of WordMaps
        For each image, as ``explain`` returns them.
    titles : list of str or None, default=None
        The text over each image; None is the text that is explained.
    pixelwise : bool, default=False
        Whether the maps are of single pixels, such as saliency: see :class:`CAMDisplay`.

    Attributes
    ----------
    images, found, titles, pixelwise
        As above.
    figure_ : matplotlib Figure
    axes_ : ndarray of Axes, of shape (n_images, 2 + n_words)
        The image, the map of the text as a whole, and one for each word of the longest text.
    ims_ : ndarray of AxesImage or None, of the shape of ``axes_``
    colorbar_ : matplotlib Colorbar or None

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam import WordDisplay
    >>> from sklcam.language import WordMaps
    >>> found = WordMaps("a dog", ["a", "dog"], np.zeros((2, 8, 8)), np.eye(8))
    >>> WordDisplay.from_predictions(np.zeros((1, 8, 8)), [found]).axes_.shape
    (1, 4)
    """

    kinds = ("overlay", "map")

    images: Sequence[np.ndarray]
    found: Sequence[WordMaps]
    titles: Sequence[str] | None = None
    pixelwise: bool = False

    @classmethod
    def from_estimator(
        cls,
        estimator: LanguageExplainer,
        X: Any,
        *,
        words: Sequence[str] | None = None,
        method: AnyMethod | None = None,
        normalize: bool = True,
        **options: Any,
    ) -> WordDisplay:
        """Explain texts, and draw them.

        Parameters
        ----------
        estimator : CaptionExplainer, or VQAExplainer of a network that writes its answers
            Fitted.
        X : images, or dict of "image" and "caption", or "image", "question" and "answer"
            The network writes texts that are missing. At most 100 images.
        words : sequence of str or None, default=None
            Which words are drawn if a text contains them; None is all.
        method : str, Method or None, default=None
            See ``explain``.
        normalize : bool, default=True
            Whether each map is scaled to [0, 1] by itself. False shows which word depends most on
            the image.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        WordDisplay

        Raises
        ------
        ValueError
            If the estimator does not explain words.
        """
        cls._check(**options)
        if not isinstance(estimator, LanguageExplainer):
            raise ValueError(
                "WordDisplay is for a CaptionExplainer, or a VQAExplainer; got "
                f"{describe(estimator)}."
            )
        if not estimator.writes:
            raise ValueError(
                "The network chooses one of several answers, which has one map: draw it by "
                "CAMDisplay."
            )
        opened = estimator.open(X, originals=True)
        cls._check_n_rows(len(opened))
        pictures: list[np.ndarray] = []
        found: list[WordMaps] = []
        question = estimator.as_target("words", len(opened))
        chosen = estimator.as_method(method)
        _, *shape = estimator.map_shape(opened, question, chosen)
        check_map_shape(method_name(method), tuple(shape))
        for explained in estimator.iter_explained(
            opened, question, methods=[chosen], normalize=normalize
        ):
            pictures += pictures_of_batch(explained.batch, own_size=True)
            found += estimator.by_word(explained)
        if words is not None:
            found = [each.only(words) for each in found]
        return cls(images=pictures, found=found, pixelwise=is_pixelwise(chosen)).plot(**options)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        found: Sequence[WordMaps],
        *,
        titles: Any = None,
        pixelwise: bool = False,
        **options: Any,
    ) -> WordDisplay:
        """Draw maps that you already have.

        Parameters
        ----------
        images : images
        found : sequence of WordMaps
            For each image, as ``explain`` returns them.
        titles : sequence of str or None, default=None
            The text over each image; None is the text that is explained.
        pixelwise : bool, default=False
            Whether the maps are of single pixels.
        **options
            ``ax`` and the other options of :meth:`plot`.

        Returns
        -------
        WordDisplay

        Raises
        ------
        ValueError
            If there are not maps, and a title, for each image.
        """
        cls._check(**options)
        pictures, texts = pictures_of(images), None if titles is None else [*map(str, titles)]
        for name, given in {"found": found, "titles": texts}.items():
            if given is not None and len(given) != len(pictures):
                raise ValueError(f"There are {len(given)} {name} for {len(pictures)} images.")
        for each in found:
            if not isinstance(each, WordMaps):
                raise ValueError(
                    f"found must be WordMaps, as explain returns them; got {describe(each)}."
                )
            for map_ in (each.total, *each.maps):
                check_map_shape("found", np.shape(map_))
        display = cls(images=pictures, found=[*found], titles=texts, pixelwise=pixelwise)
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
    ) -> WordDisplay:
        """Draw a row for each image.

        Parameters
        ----------
        ax : array-like of matplotlib axes or None, default=None
            Of shape (n_images, 2 + n_words); None makes a new figure.
        kind : {"overlay", "map"}, default="overlay"
            Each map on the image in grey, or by itself.
        cmap, alpha, limits, colorbar
            See :meth:`CAMDisplay.plot`.

        Returns
        -------
        WordDisplay
            ``self``.
        """
        self._check(ax=ax, kind=kind, cmap=cmap, alpha=alpha, limits=limits)
        rows = [[each.total, *each.maps] for each in self.found]
        named = {"maps": [map_ for row in rows for map_ in row]}
        painter = draw.painter_of(named, cmap, alpha, limits, pixelwise=self.pixelwise)
        axes = self._take_grid(ax, 1 + max(map(len, rows)), [[image] for image in self.images])
        texts = [each.text for each in self.found] if self.titles is None else self.titles
        for i, (image, row, places) in enumerate(zip(self.images, rows, axes, strict=True)):
            self.ims_[i, 0] = draw.image(places[0], image)
            draw.title(places[0], texts[i])
            names = ["all words", *self.found[i].words]
            for j, (map_, name) in enumerate(zip(row, names, strict=True), 1):
                self.ims_[i, j] = painter.draw_as(kind, places[j], map_, image)
                draw.title(places[j], name)
            for place in places[1 + len(row) :]:
                place.set_axis_off()
        longest = int(np.argmax([len(row) for row in rows]))
        self.colorbar_ = painter.scale(axes[longest, -1]) if colorbar else None
        return self
