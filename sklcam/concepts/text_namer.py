"""``TextConceptNamer``: names for the channels of a layer, from a model of images and texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image
from scipy.stats import rankdata
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from sklcam._validation import describe
from sklcam.concepts._strongest import Strongest
from sklcam.concepts.namer import ChannelNamer, cut, open_pictures, resizing_of
from sklcam.embeddings import EmbeddingCAMExplainer
from sklcam.explain import Explainer, ExplanationCheck
from sklcam.explain.nested import AnyEstimator
from sklcam.explain.opened import OpenedImages
from sklcam.images.pictures import to_picture
from sklcam.metrics.masks import as_array

Encoder = EmbeddingCAMExplainer | tuple[Callable[..., Any], Callable[..., Any]]
_AT_ONCE = 256  # crops that are embedded together


class TextConceptNamer(ChannelNamer):
    """Name each channel of a layer by the text that its strongest crops are the most like.

    A channel's score for a prompt is the chance that a crop of the channel is more like the prompt,
    by the cosine of their embeddings, than a crop of another channel: the area under the ROC curve.
    What all crops, or all prompts, have in common makes no difference. The channel is named by the
    prompt with the highest score, if that is over ``threshold``.

    Parameters
    ----------
    encoder : EmbeddingCAMExplainer, or (callable, callable)
        A fitted explainer whose proxy is a :class:`~sklcam.embeddings.Text`: its prompts are the
        names. Or two functions: one from a list of PIL images to their embeddings, (n_images, dim),
        and one from a list of strings to theirs, (n_prompts, dim).
    prompts : list of str or None, default=None
        The names, if the encoder is two functions.
    threshold : float in [0, 1), default=0.8
        A name needs a score over this. 0.5 is chance, but the scores of few crops stray from it,
        and the best of many prompts strays further.
    n_crops : int, default=10
        How many crops per channel, each from a different image.

    Attributes
    ----------
    names_ : ndarray of shape (n_channels,), object
        The prompt of each channel, or None.
    scores_ : ndarray of shape (n_channels, n_prompts), float64
        In [0, 1]; NaN for channels that fire nowhere.
    concepts_ : list of str
        The columns of ``scores_``.
    layer_ : str
        The layer's name.
    network_ : str
        A short name for the weights of the network, so that names are not used for another.
    strongest_rows_, strongest_activations_ : ndarray of shape (n_channels, n_crops)
        Images in which each channel is the strongest, and its activation there.
    strongest_boxes_ : ndarray of shape (n_channels, n_crops, 4)
        Around the strongest cell and its neighbours, in pixels of the image.

    Notes
    -----
    Crops in which a channel's activation is not over 0 do not count for it.

    Crops that several channels share are embedded once. The embeddings of at most n_channels times
    n_crops crops are kept; nothing else grows with the number of images.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 7. After Oikarinen, Weng, "CLIP-Dissect", ICLR
    2023, which uses another measure.

    Examples
    --------
    An encoder that knows only how red and how green an image is:

    >>> import numpy as np
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.concepts import TextConceptNamer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> images = torch.zeros(4, 3, 6, 6)
    >>> images[:2, 0, :3], images[2:, 1, 3:] = 1, 1
    >>> def of_images(crops):
    ...     return [np.asarray(crop).mean((0, 1)) for crop in crops]
    >>> def of_texts(texts):
    ...     return [{"red": (1, 0, 0), "green": (0, 1, 0)}[text] for text in texts]
    >>> namer = TextConceptNamer((of_images, of_texts), ["red", "green"], n_crops=2)
    >>> namer.fit(explainer, images).names_[:2].tolist()
    ['red', 'green']
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "encoder": [EmbeddingCAMExplainer, tuple],
        "prompts": [None, list, tuple, np.ndarray],
        "threshold": [Interval(Real, 0, 1, closed="left")],
        "n_crops": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        encoder: Encoder,
        prompts: Sequence[str] | None = None,
        threshold: float = 0.8,
        *,
        n_crops: int = 10,
    ):
        self.encoder = encoder
        self.prompts = prompts
        self.threshold = threshold
        self.n_crops = n_crops

    def fit(self, explainer: AnyEstimator, X: Any) -> Self:
        """Name the channels of the explainer's target layer.

        Parameters
        ----------
        explainer : estimator with ``explain``
            Fitted, with one target layer.
        X : images
            Images of many kinds: a channel cannot get its name from what none of them shows.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If the explainer, or the encoder, has not been fitted.
        ValueError
            If an argument is invalid, the layer has only one channel, or there are several layers.
        """
        self._validate_params()
        prompts, of_texts = self._texts()
        found, opened = open_pictures(explainer, X)
        strongest = _strongest(found, opened, self.n_crops)
        self._keep(strongest)
        self._fit_to(found)
        self._name(self._scores(opened, strongest, of_texts), prompts)
        return self

    def score(self, explainer: AnyEstimator, X: Any) -> float:
        """Judge the names on other images: the mean score of channels for their names.

        Parameters
        ----------
        explainer : estimator with ``explain``
        X : images
            Other images than those of ``fit``.

        Returns
        -------
        float
            In [0, 1]; 0.5 is chance.

        Raises
        ------
        NotFittedError
            If there are no names yet.
        ValueError
            If no channel has a name, or an argument is invalid.
        """
        check_is_fitted(self, "names_")
        columns = self._named_columns()
        _, of_texts = self._texts()
        found, opened = open_pictures(explainer, X)
        self._check_layer(found)
        scores = self._scores(opened, _strongest(found, opened, self.n_crops), of_texts)
        # For a channel that fires in none of these images, they show no more than chance.
        return float(np.nan_to_num([scores[i, c] for i, c in columns.items()], nan=0.5).mean())

    def _texts(self) -> tuple[list[str], np.ndarray]:
        """Return the prompts, and their embeddings, of length 1."""
        prompts = None if self.prompts is None else [*self.prompts]
        if isinstance(self.encoder, EmbeddingCAMExplainer):
            check_is_fitted(self.encoder, "proxies_")
            if prompts is not None:
                raise ValueError(
                    "The encoder has prompts of its own. Give prompts= only with two functions."
                )
            prompts = [*map(str, self.encoder.classes_)]
            embeddings = self.encoder.proxies_
        else:
            if len(self.encoder) != 2 or not all(map(callable, self.encoder)):
                raise ValueError(
                    "encoder must be a fitted EmbeddingCAMExplainer, or two functions, one of "
                    f"images and one of texts; got {describe(self.encoder)}."
                )
            if not prompts or not all(isinstance(each, str) for each in prompts):
                raise ValueError(
                    f"prompts must be a list of strings; got {describe(self.prompts)}."
                )
            embeddings = self.encoder[1](prompts)
        return prompts, _unit(embeddings, len(prompts), "of texts")

    def _scores(
        self, opened: OpenedImages, strongest: Strongest, of_texts: np.ndarray
    ) -> np.ndarray:
        """Return the score of each channel for each prompt."""
        rows, activations, boxes = strongest.result()
        if len(rows) < 2:
            raise ValueError("The layer has only one channel, and no other to compare it with.")
        fires = activations > 0
        places = np.column_stack([rows[fires], boxes[fires]])
        scores = np.full((len(rows), len(of_texts)), np.nan)
        n_own = fires.sum(axis=1)
        has_both = (n_own > 0) & (n_own < len(places))
        if not has_both.any():
            raise ValueError(
                "Fewer than two channels fire in these images. Give other or more images."
            )
        # One crop for all channels that are the strongest in the same place.
        distinct, which = np.unique(places, axis=0, return_inverse=True)
        embedded = [self._embed(crops, of_texts.shape[1]) for crops in _crops(opened, distinct)]
        similarity = np.concatenate(embedded) @ of_texts.T
        sums = np.zeros_like(scores)
        np.add.at(sums, np.nonzero(fires)[0], rankdata(similarity[which.ravel()], axis=0))
        won = sums - (n_own * (n_own + 1) / 2)[:, None]
        pairs = (n_own * (len(places) - n_own))[:, None]
        scores[has_both] = won[has_both] / pairs[has_both]
        return scores

    def _embed(self, crops: list[Image.Image], dim: int) -> np.ndarray:
        encoder = self.encoder
        given = encoder.transform(crops) if not isinstance(encoder, tuple) else encoder[0](crops)
        embeddings = _unit(given, len(crops), "of images")
        if embeddings.shape[1] != dim:
            raise ValueError(
                f"The encoder's embeddings of images have {embeddings.shape[1]} numbers, but its "
                f"embeddings of texts have {dim}. Give functions of one model."
            )
        return embeddings


def _strongest(explainer: Explainer, opened: OpenedImages, n_crops: int) -> Strongest:
    strongest = Strongest(min(n_crops, len(opened)), resizing_of(explainer, opened))
    check = ExplanationCheck()
    for found in explainer.iter_channels(opened):
        check.add(found.activations, "channels", blank=False)
        strongest.add(
            found.activations, found.batch.start, found.batch.sizes, found.batch.inputs.size
        )
    check.warn()
    return strongest


def _crops(opened: OpenedImages, places: np.ndarray) -> Iterator[list[Image.Image]]:
    """Yield the crops of places (n, 5), sorted by image, some at a time; read each image once."""
    crops: list[Image.Image] = []
    for row in np.unique(places[:, 0]).astype(int).tolist():
        picture = to_picture(opened.originals([row])[0])
        for box in places[places[:, 0] == row, 1:]:
            pixels = (cut(picture, box) * 255).round().astype(np.uint8)
            crops.append(Image.fromarray(pixels).convert("RGB"))
        if len(crops) >= _AT_ONCE:
            yield crops
            crops = []
    if crops:
        yield crops


def _unit(embeddings: Any, n: int, what: str) -> np.ndarray:
    """Return embeddings as an array (n, dim) whose rows are of length 1."""
    array = as_array(embeddings)
    if array.ndim != 2 or len(array) != n or array.dtype.kind not in "iuf":
        raise ValueError(
            f"The encoder's embeddings {what} must be numbers of shape ({n}, dim); got "
            f"{describe(array)}."
        )
    lengths = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(f"Some of the encoder's embeddings {what} are zero or not finite.")
    return array / lengths
