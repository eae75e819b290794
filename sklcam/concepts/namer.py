"""``ConceptNamer``: names for the channels of a layer, from where concepts are in images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklcam._validation import check_count
from sklcam.cam import upsample
from sklcam.concepts._annotated import Annotated
from sklcam.concepts._ranking import StreamedAUROC
from sklcam.concepts._strongest import Strongest
from sklcam.concepts.reasons import Reasons
from sklcam.explain import Explainer, ExplanationCheck
from sklcam.explain.fingerprints import weights_of
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.explain.opened import Batch, OpenedImages
from sklcam.explain.predictions import class_names
from sklcam.images.frames import Resizing, shares_of_cells
from sklcam.images.pictures import to_picture

_FINER = 2  # times as many cells per side as the layer's grid, to compare activations with masks

Weighing = Literal["importance", "contribution"]
ByConcept = Mapping[Any, Any] | Sequence[Mapping[Any, Any]]


class ChannelNamer(BaseEstimator):
    """Base of the namers of channels: their strongest crops, and decisions in terms of names.

    Attributes
    ----------
    names_ : ndarray of shape (n_channels,), object
    layer_ : str
    network_ : str
    """

    names_: np.ndarray
    scores_: np.ndarray
    concepts_: list[Any]
    layer_: str
    network_: str
    strongest_rows_: np.ndarray
    strongest_activations_: np.ndarray
    strongest_boxes_: np.ndarray

    threshold: float

    def _name(self, scores: np.ndarray, concepts: list[Any]) -> None:
        """Name each channel by its best score, if that is over the threshold."""
        self.concepts_, self.scores_ = concepts, scores
        self.names_ = np.full(len(scores), None, dtype=object)
        if not concepts:
            return
        best = np.nan_to_num(scores, nan=-1.0)
        for channel in np.flatnonzero(best.max(axis=1) > self.threshold):
            self.names_[channel] = concepts[int(best[channel].argmax())]

    def _named_columns(self) -> dict[int, int]:
        """Return the column of each channel that has a name; raise a ValueError if none has."""
        named = {
            i: self.concepts_.index(name) for i, name in enumerate(self.names_) if name is not None
        }
        if not named:
            raise ValueError(
                f"No channel has a name, as no score is over threshold={self.threshold}, so there "
                "is nothing to judge. Lower the threshold, and fit again."
            )
        return named

    def _used(self) -> list[Any]:
        """Return the concepts that are names of channels."""
        return [self.concepts_[column] for column in sorted({*self._named_columns().values()})]

    def _keep(self, strongest: Strongest) -> None:
        rows, activations, boxes = strongest.result()
        self.strongest_rows_, self.strongest_activations_ = rows, activations
        self.strongest_boxes_ = boxes

    def _fit_to(self, explainer: Explainer) -> None:
        self.layer_, self.network_ = explainer.target_layers[0].name, network_of(explainer)

    def _check_layer(self, explainer: Explainer) -> None:
        names = [layer.name for layer in explainer.target_layers]
        if names != [self.layer_]:
            raise ValueError(
                f"The names belong to channels of the layer {self.layer_!r}, but the explainer "
                f"looks at {', '.join(map(repr, names))}. Set its target_layer, or fit the namer "
                "to it."
            )
        if network_of(explainer) != self.network_:
            raise ValueError(
                "The names belong to a network with other weights than this explainer's. Fit the "
                "namer to this explainer."
            )

    def explain(
        self,
        explainer: AnyEstimator,
        X: Any,
        target: Any = None,
        *,
        k: int = 5,
        weigh: Weighing = "importance",
    ) -> Reasons:
        r"""Say which concepts speak for each decision, and which speak against it.

        Parameters
        ----------
        explainer : estimator with ``explain``
            Fitted, with the network that the names belong to.
        X, target
            See :meth:`~sklcam.CAMExplainer.explain`; one class per image.
        k : int, default=5
            How many channels of either sign.
        weigh : {"importance", "contribution"}, default="importance"
            "importance" is the paper's :math:`\alpha_k`: how much the score rises with the channel,
            whether it fires in the image or not. "contribution" is :math:`\alpha_k` times the
            channel's mean activation, its share of the mean of Grad-CAM's map before the ReLU: only
            channels that fire in the image count.

        Returns
        -------
        Reasons

        Raises
        ------
        NotFittedError
            If there are no names yet.
        ValueError
            If the names belong to another layer or to a network with other weights, or an argument
            is invalid.

        References
        ----------
        Selvaraju et al., "Grad-CAM", IJCV 2020, section 7 and eq. 1.
        """
        check_is_fitted(self, "names_")
        check_count("k, how many channels,", k, 1, len(self.names_))
        if weigh not in get_args(Weighing):
            raise ValueError(f"weigh must be one of {get_args(Weighing)}; got {weigh!r}.")
        found, opened = open_pictures(explainer, X)
        self._check_layer(found)
        question = found.as_target(target, len(opened))
        labels, kept, check = class_names(found), [], ExplanationCheck()
        explained: list[str] = []
        for batch in found.iter_channels(opened, question, method="gradcam"):
            assert batch.weights is not None
            heavy = batch.weights
            if weigh == "contribution":
                heavy = heavy * batch.activations.mean(dim=(2, 3))
            check.add(heavy, "rows of weights", n_axes=1)
            order = heavy.argsort(dim=1, descending=True, stable=True)
            ends = torch.stack([order[:, :k], order.flip(1)[:, :k]])
            weights = torch.stack([heavy.gather(1, end) for end in ends])
            kept.append((ends.cpu().numpy(), weights.float().cpu().numpy()))
            if batch.target.indices is not None and labels:
                explained += [labels[i] for i in batch.target.indices[:, 0].tolist()]
        check.warn()
        channels, weights_of = (np.concatenate(each, axis=1) for each in zip(*kept, strict=True))
        names = self.names_[channels]
        names[0][~(weights_of[0] > 0)] = None
        names[1][~(weights_of[1] < 0)] = None
        return Reasons(explained or None, *channels, *weights_of, *names)

    def crops(self, explainer: AnyEstimator, X: Any, channel: int, k: int = 5) -> Bunch:
        """Cut out the places where a channel fires the most.

        Parameters
        ----------
        explainer : estimator with ``explain``
        X : images
            The images of ``fit``, in the same order.
        channel : int
        k : int, default=5
            How many crops, one per image; at most ``n_crops``.

        Returns
        -------
        Bunch
            The strongest first: ``images``, list of ndarray of shape (height, width) or (height,
            width, 3), in [0, 1]; ``rows``, the row of each crop's image; ``boxes``, ndarray of
            shape (k, 4), its place there, around the strongest cell of the layer's grid and its
            neighbours; and ``activations``, ndarray of shape (k,).

        Raises
        ------
        NotFittedError
            If the namer has not been fitted.
        ValueError
            If there is no such channel, k is out of range, or X has fewer images than in ``fit``.
        """
        check_is_fitted(self, "names_")
        check_count("channel", channel, 0, len(self.names_) - 1)
        check_count("k, how many crops,", k, 1, self.strongest_rows_.shape[1])
        _, opened = open_pictures(explainer, X)
        rows, boxes = self.strongest_rows_[channel, :k], self.strongest_boxes_[channel, :k]
        if rows.max() >= len(opened):
            raise ValueError(
                f"The channel's strongest images in fit include number {rows.max()}, but X has "
                f"only {len(opened)} images. Give the images of fit."
            )
        images = [
            cut(to_picture(opened.originals([row])[0]), box)
            for row, box in zip(rows.tolist(), boxes, strict=True)
        ]
        return Bunch(
            images=images,
            rows=rows,
            boxes=boxes,
            activations=self.strongest_activations_[channel, :k],
        )


def cut(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the pixels of a picture (height, width, ...) that a box touches."""
    x1, y1, x2, y2 = box
    left, top = int(np.floor(x1)), int(np.floor(y1))
    right, bottom = max(left + 1, int(np.ceil(x2))), max(top + 1, int(np.ceil(y2)))
    return picture[top:bottom, left:right]


def open_pictures(explainer: AnyEstimator, X: Any) -> tuple[Explainer, OpenedImages]:
    """Return the explainer, and X opened for it; raise a ValueError for volumes."""
    found, images = as_explainer(explainer, X)
    opened = found.open(images)
    if len(opened.image_size) == 3:
        raise ValueError(
            f"X holds volumes of {' x '.join(map(str, opened.image_size))} voxels, but concepts "
            "and shortcuts are only for pictures."
        )
    return found, opened


def network_of(explainer: Explainer) -> str:
    """Return a short name for the weights of an explainer's network."""
    return weights_of(explainer.adapter.network)


class ConceptNamer(ChannelNamer):
    """Name each channel of a layer by the concept whose places its activations show best.

    A channel's score for a concept is the area under the ROC curve of its activation, over the
    places in all images: the chance that it is higher at a place with the concept than at one
    without. Activations are upsampled bilinearly to twice the layer's grid. A cell there counts as
    inside by the share that a mask covers, and as outside by the rest. The channel is named by the
    concept with the highest score, if that is over ``threshold``.

    Parameters
    ----------
    threshold : float in [0, 1), default=0.7
        A name needs a score over this; 0.5 is chance.
    n_crops : int, default=5
        How many images each channel keeps in which it is the strongest, for :meth:`crops`.

    Attributes
    ----------
    names_ : ndarray of shape (n_channels,), object
        The concept of each channel, or None.
    scores_ : ndarray of shape (n_channels, n_concepts), float64
        In [0, 1]; NaN for channels with activations that are not finite.
    uncertainty_ : ndarray of shape (n_channels, n_concepts), float64
        The largest possible distance of a score from the exact area: see the notes.
    concepts_ : list
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
    A finer grid makes no difference: on photographs of fruit, scores change by 0.001 from twice to
    four times the layer's grid. At the layer's own grid they are lower, by 0.03 on average: if an
    object covers several cells, a channel often fires in only some of them.

    Memory does not grow with the number of images. Activations are counted in 16 fixed bins per
    octave, so batches and the order of images make no difference except for rounding. Zeros are
    true ties, and count as ties. So do other activations in one bin, and a score is exact up to
    ``uncertainty_``, half of the pairs in one bin. Activations under 2**-24 count as zeros.

    Network dissection takes the overlap (IoU) of the mask with the cells over a high quantile. This
    needs masks as fine as the objects, which boxes are not.

    A name says what a channel's activations go with in these images. Judge it on other images with
    :meth:`score`: if the masks belong to the wrong images, names vanish, and scores fall to 0.5.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 7. Bau et al., "Network Dissection", CVPR 2017.

    Examples
    --------
    Two channels, of which the first fires at bright red, the second at bright green:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer, ConceptNamer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> images = torch.zeros(2, 2, 4, 4)
    >>> images[0, 0, :2], images[1, 1, 1:3] = 1, 2
    >>> masks = {"poppy": images[:, 0] > 0, "leaf": images[:, 1] > 0}
    >>> namer = ConceptNamer().fit(explainer, images, masks)
    >>> namer.names_.tolist()
    ['poppy', 'leaf']
    >>> namer.score(explainer, images, masks)
    1.0
    >>> print(explainer.explain_in_words(images, namer, k=1))
    0, 0: for poppy (0.062)
    1, 1: for leaf (0.062)
    """

    uncertainty_: np.ndarray

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "threshold": [Interval(Real, 0, 1, closed="left")],
        "n_crops": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, threshold: float = 0.7, *, n_crops: int = 5):
        self.threshold = threshold
        self.n_crops = n_crops

    def fit(
        self,
        explainer: AnyEstimator,
        X: Any,
        masks_by_concept: ByConcept | None = None,
        *,
        boxes_by_concept: ByConcept | None = None,
    ) -> Self:
        """Name the channels of the explainer's target layer.

        Parameters
        ----------
        explainer : estimator with ``explain``
            Fitted, with one target layer.
        X : images
        masks_by_concept : mapping, sequence of mappings, or None, default=None
            For each concept, a mask per image, (n_images, height, width) or a sequence of
            (height, width): bool, an integer that is 0 outside, or a float in [0, 1], of the
            image's own size; None if the image does not show the concept. Or, for each image, a
            mapping of the concepts in it to their masks.
        boxes_by_concept : mapping, sequence of mappings, or None, default=None
            The same with boxes, of shape (n_boxes, 4), x1, y1, x2, y2 in pixels of the image.
            Without masks or boxes there are no names, but :meth:`crops` shows the channels.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If the explainer has not been fitted.
        ValueError
            If an argument is invalid, there are several target layers, or a concept is in no image
            or fills every image.

        Warns
        -----
        ExplanationWarning
            If channels have activations that are not finite; they get no name.
        """
        self._validate_params()
        found, opened = open_pictures(explainer, X)
        annotated = Annotated(masks_by_concept, boxes_by_concept, len(opened))
        strongest = Strongest(min(self.n_crops, len(opened)), resizing_of(found, opened))
        scores, uncertainty = _separation(found, opened, annotated, strongest)
        self._keep(strongest)
        self._fit_to(found)
        self.uncertainty_ = uncertainty
        self._name(scores, annotated.concepts)
        return self

    def score(
        self,
        explainer: AnyEstimator,
        X: Any,
        masks_by_concept: ByConcept | None = None,
        *,
        boxes_by_concept: ByConcept | None = None,
    ) -> float:
        """Judge the names on images: the mean area under the ROC curve of channels for their names.

        Parameters
        ----------
        explainer, X, masks_by_concept, boxes_by_concept
            See :meth:`fit`; take other images than there.

        Returns
        -------
        float
            In [0, 1]; 0.5 is chance.

        Raises
        ------
        NotFittedError
            If there are no names yet.
        ValueError
            If no channel has a name, a name's concept is in none of the images, or an argument is
            invalid.
        """
        check_is_fitted(self, "names_")
        columns = self._named_columns()
        found, opened = open_pictures(explainer, X)
        self._check_layer(found)
        annotated = Annotated(masks_by_concept, boxes_by_concept, len(opened))
        absent = [name for name in self._used() if name not in annotated.concepts]
        if absent:
            raise ValueError(
                f"Channels are named {absent[0]!r}, but no masks or boxes of it are given. "
                "Give them."
            )
        scores, _ = _separation(found, opened, annotated)
        own = {name: annotated.concepts.index(name) for name in self._used()}
        return float(np.mean([scores[i, own[self.concepts_[c]]] for i, c in columns.items()]))


def resizing_of(explainer: Explainer, opened: OpenedImages) -> Resizing:
    """Return how images were resized to the network's input; tensors may be so already."""
    return Resizing() if opened.is_network_input else explainer.adapter.resize


def _separation(
    explainer: Explainer,
    opened: OpenedImages,
    annotated: Annotated,
    strongest: Strongest | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of each channel for each concept, and how uncertain it is."""
    resizing, check = resizing_of(explainer, opened), ExplanationCheck()
    counted: StreamedAUROC | None = None
    total = torch.zeros(2, len(annotated.concepts))
    for found in explainer.iter_channels(opened):
        values, batch = found.activations, found.batch
        n_channels = values.shape[1]
        check.add(values, "channels", blank=False)
        if strongest is not None:
            strongest.add(values, batch.start, batch.sizes, batch.inputs.size)
        if not annotated.concepts:
            continue
        values = upsample(values, (_FINER * values.shape[2], _FINER * values.shape[3]))
        covered, seen = _cells(annotated, batch, values.shape[2:], resizing)
        total += torch.stack([covered.sum((0, 2, 3)), (seen[:, None] - covered).sum((0, 2, 3))])
        if counted is None:
            counted = StreamedAUROC(n_channels, covered.shape[1], values.device)
        counted.add(values, covered.to(values.device), seen.to(values.device))
    check.warn()
    for fault, sums in zip(("is in none", "fills each"), total.tolist(), strict=True):
        for concept, area in zip(annotated.concepts, sums, strict=True):
            if area <= 1e-3:
                raise ValueError(
                    f"{concept!r} {fault} of the images, as the network sees them. Leave it out."
                )
    if counted is None:
        return np.empty((n_channels, 0)), np.empty((n_channels, 0))
    return counted.result()


def _cells(
    annotated: Annotated, batch: Batch, grid: Sequence[int], resizing: Resizing
) -> tuple[Tensor, Tensor]:
    """Return the share of each cell that concepts cover, and the share that the image covers."""
    shares = [
        shares_of_cells(
            annotated.of_image(batch.start + i, size), grid, batch.inputs.size, resize=resizing
        )
        for i, size in enumerate(batch.sizes)
    ]
    covered, seen = zip(*shares, strict=True)
    return torch.stack(covered), torch.stack(seen)
