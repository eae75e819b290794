"""``CAMSegmenter``: turns the maps of an explainer into seeds, and seeds into label maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from sklcam._validation import describe
from sklcam.cam import Method
from sklcam.explain.base import AnyMethod, ExplainedBatch, Explainer
from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.explain.opened import OpenedImages
from sklcam.metrics.masks import IGNORED, as_array, label_overlaps, seeds_from_maps
from sklcam.metrics.plan import check_one_map
from sklcam.segmentation.cuts import grab_cut
from sklcam.segmentation.label_files import names_of_files, write_label_maps
from sklcam.segmentation.questions import (
    ClassesFound,
    ClassesOfImages,
    labels_present,
    learn_classes,
)

Refinement = Callable[[np.ndarray, np.ndarray], Any]

_CANDIDATES = tuple(round(0.05 * step, 2) for step in range(1, 15))


class CAMSegmenter(BaseEstimator):
    """Segment images by the maps of a network that was trained on labels of whole images.

    SEC's rule turns maps into seeds: pixels over a share of a class's maximum belong to the class,
    and the least salient pixels to the background. All others get the label to ignore. A network
    for segmentation can be trained on these seeds.

    Parameters
    ----------
    explainer : ConsistentCAMClassifier, CAMExplainer, nn.Module, or one of these nested
        If it has not been fitted, :meth:`fit` fits a copy.
    method : str, Method or None, default=None
        The method of the maps; None is the explainer's own.
    refine : None, "grabcut" or callable, default=None
        How the seeds of an image are refined. "grabcut" is :func:`~sklcam.segmentation.grab_cut`
        (the extra ``grabcut``), which decides for each pixel. A callable takes the image, uint8 of
        shape (height, width, 3), or (height, width) if it is grey, and its label map, uint8 of
        shape (height, width), and returns another label map. Unknown is 255 in both, whatever
        ``ignore_label`` is.
    threshold : float or "auto", default=0.2
        The share of its maximum that a class's map must reach. "auto" takes the one of 0.05, 0.1,
        ..., 0.7 that fits the ``masks`` of :meth:`fit` best.
    background : float, default=0.1
        The share of an image's pixels that are background: the least salient ones.
    saliency : str, Method or None, default=None
        A method whose maps say how salient each pixel is: the highest value among the image's
        classes counts. SEC uses ``"saliency"``, the gradient at the pixels. None uses the maps
        themselves, each as a share of its maximum, at no further cost.
    overlap : {"smaller", "unknown"}, default="smaller"
        Which class gets a pixel that several classes mark: the one with the smaller seed, as in
        SEC, or none.
    ignore_label : int, default=255
        The label of unknown pixels.

    Attributes
    ----------
    explainer_ : fitted estimator
    classes_ : ndarray of shape (n_classes,)
        The labels in ``y``. In a label map ``classes_[c]`` is c + 1, and 0 is the background.
    threshold_ : float
    scores_ : dict of float to float
        With ``threshold="auto"``: the mean intersection over union of each threshold.

    Notes
    -----
    Maps are taken as the method makes them, and resized to each image's own size. Pixels that the
    network did not see, such as those outside a central crop, are unknown. So are all pixels of an
    image whose maps are blank. An image without a class is all background.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 4.2; Kolesnikov, Lampert, "Seed, Expand and
    Constrain", ECCV 2016, section 4.1.

    Examples
    --------
    A network whose classes are red and green, and an image of both; all else is black:

    >>> import numpy as np
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer, CAMSegmenter
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(
    ...     network, target_layer="0", classes=["red", "green", "blue"], verbose=0
    ... )
    >>> image = torch.zeros(1, 3, 1, 6)
    >>> image[0, 0, 0, :2], image[0, 1, 0, 4] = 1.0, 1.0
    >>> segmenter = CAMSegmenter(explainer, background=0.5).fit(image, [["red", "green"]])
    >>> segmenter.classes_.tolist()
    ['red', 'green']
    >>> segmenter.predict(image, [["red", "green"]])
    array([[[1, 1, 0, 0, 2, 0]]], dtype=uint8)
    >>> segmenter.predict(image)  # only the predicted class
    array([[[1, 1, 0, 0, 0, 0]]], dtype=uint8)
    >>> truth = np.array([[[1, 1, 0, 0, 2, 2]]])
    >>> round(segmenter.score(image, truth, [["red", "green"]]), 3)  # mean of 2/3, 1, 1/2
    0.722
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "method": [None, str, Method, type],
        "refine": [None, StrOptions({"grabcut"}), callable],
        "threshold": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="both")],
        "background": [Interval(Real, 0, 1, closed="both")],
        "saliency": [None, str, Method, type],
        "overlap": [StrOptions({"smaller", "unknown"})],
        "ignore_label": [Interval(Integral, 2, 255, closed="both")],
    }

    def __init__(
        self,
        explainer: AnyEstimator,
        *,
        method: AnyMethod | None = None,
        refine: Literal["grabcut"] | Refinement | None = None,
        threshold: float | Literal["auto"] = 0.2,
        background: float = 0.1,
        saliency: AnyMethod | None = None,
        overlap: Literal["smaller", "unknown"] = "smaller",
        ignore_label: int = IGNORED,
    ):
        self.explainer = explainer
        self.method = method
        self.refine = refine
        self.threshold = threshold
        self.background = background
        self.saliency = saliency
        self.overlap = overlap
        self.ignore_label = ignore_label

    def fit(self, X: Any, y: Any = None, masks: Sequence[Any] | None = None) -> CAMSegmenter:
        """Learn which classes there are, and the threshold if it is "auto".

        Parameters
        ----------
        X : images
            In any form that the explainer takes.
        y : array-like of labels, or label sets, or None
            What is in each image: one label, a set of labels, or a row of 0 and 1 for each of the
            explainer's classes. Labels may be the names of classes. None takes the labels of X, if
            it is a data set that has them. A classifier that is not fitted learns from y.
        masks : sequence of array-like of shape (height, width), or None
            Label maps of the images, as :meth:`score` takes them, for ``threshold="auto"``.

        Returns
        -------
        CAMSegmenter
            Itself.

        Raises
        ------
        ValueError
            If an argument is invalid, or the network does not classify images.
        """
        self._validate_params()
        if (self.threshold == "auto") != (masks is not None):
            raise ValueError(
                f"threshold is {self.threshold!r}, and masks are "
                f'{"None" if masks is None else "given"}, but masks choose threshold="auto". Give '
                "both, or neither."
            )
        self.explainer_ = self._fitted(X, y)
        explainer, images = as_explainer(self.explainer_, X)
        task = explainer.adapter.task
        if task not in ("multiclass", "binary", "multilabel"):
            raise ValueError(
                f"CAMSegmenter needs a network that classifies images; its task is {task!r}."
            )
        self.classes_ = learn_classes(explainer, images, y)
        if len(self.classes_) >= self.ignore_label:
            raise ValueError(
                f"y has {len(self.classes_)} classes, but ignore_label={self.ignore_label} leaves "
                f"only labels under {self.ignore_label} for classes. Give labels of fewer classes, "
                "or a higher ignore_label, up to 255."
            )
        if masks is None:
            self._open(X, y)  # to refuse invalid arguments
            self.threshold_ = float(self.threshold)
        else:
            self.scores_ = dict(
                zip(_CANDIDATES, self._scores(X, masks, y, _CANDIDATES), strict=True)
            )
            self.threshold_ = max(_CANDIDATES, key=lambda each: self.scores_[each])
        return self

    def predict(self, X: Any, y: Any = None) -> Any:
        """Return the label map of each image.

        Parameters
        ----------
        X : images
        y : labels, label sets or None, default=None
            What is in each image, as in :meth:`fit`. None takes what the network predicts: the
            likeliest of ``classes_``, or, with ``task="multilabel"``, all of them that it finds.

        Returns
        -------
        ndarray of shape (n_images, height, width), or list of ndarray of shape (height, width)
            uint8, of each image's own size: 0 is the background, c + 1 the class ``classes_[c]``,
            and ``ignore_label`` unknown. A list unless X can only hold images of one size.

        Raises
        ------
        NotFittedError
            If the segmenter has not been fitted.
        ValueError
            If an argument is invalid, or ``refine`` returns something other than a label map.

        Warns
        -----
        ExplanationWarning
            If maps are blank or NaN; all pixels of these images are unknown.
        """
        opened, found = self._label_maps(X, y, self._threshold())
        made = [labels for (labels,) in found]
        return made if opened.uniform_size is None else np.stack(made)

    def predict_to(self, X: Any, folder: str | os.PathLike[str], y: Any = None) -> list[str]:
        """Write the label map of each image to a PNG file, image by image.

        Libraries for segmentation read these files: one byte per pixel, which is the label, with
        the palette of PASCAL VOC for people to look at.

        Parameters
        ----------
        X, y
            See :meth:`predict`.
        folder : path-like
            The folder is made if it does not exist. Files of the same names are replaced.

        Returns
        -------
        list of str
            The paths. Files have the names of the images if these are files of different names;
            otherwise 000000.png, 000001.png, ....

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`predict`.
        OSError
            If a file cannot be written.
        """
        opened, found = self._label_maps(X, y, self._threshold())
        names = names_of_files(opened.files(), len(opened))
        return write_label_maps((labels for (labels,) in found), folder, names)

    def score(self, X: Any, masks: Sequence[Any], y: Any = None) -> float:
        """Return the mean intersection over union of predicted and true label maps.

        Parameters
        ----------
        X : images
        masks : sequence of array-like of shape (height, width), int
            True label maps, of each image's own size: 0 is the background, c + 1 the class
            ``classes_[c]``. Pixels that are negative or ``ignore_label`` are not counted. A
            sequence of your own may read each mask from its file.
        y : labels, label sets or None, default=None
            See :meth:`predict`.

        Returns
        -------
        float in [0, 1]
            Over all pixels of all images, as for PASCAL VOC: the mean over the background and the
            classes that are in the masks or were found. An unknown pixel counts as missed by its
            class.

        Raises
        ------
        NotFittedError, ValueError
            As :meth:`predict`; or if masks are not label maps of the images, or have no pixel that
            counts.
        """
        return self._scores(X, masks, y, self._threshold())[0]

    # How it is done

    def _threshold(self) -> tuple[float]:
        check_is_fitted(self, "threshold_")
        return (self.threshold_,)

    def _fitted(self, X: Any, y: Any) -> Any:
        """Return the explainer, or a fitted copy of it."""
        estimator = self.explainer
        if isinstance(estimator, nn.Module):
            return CAMExplainer(estimator, verbose=0).fit(X)
        try:
            as_explainer(estimator, X)
        except NotFittedError:
            # y does not say what a network is for, which may know more classes.
            return clone(estimator).fit(X, None if isinstance(estimator, CAMExplainer) else y)
        return estimator

    def _open(self, X: Any, y: Any) -> tuple[Explainer, OpenedImages, ClassesOfImages]:
        explainer, images = as_explainer(self.explainer_, X)
        check_one_map(explainer, self._methods(explainer), "CAMSegmenter")
        opened = explainer.open(images, originals=self.refine is not None)
        if len(opened.image_size) != 2:
            raise ValueError("X holds volumes, but CAMSegmenter is only for images.")
        if self.refine is not None and (opened.is_network_input or opened.n_channels not in (1, 3)):
            raise ValueError(
                "refine needs pictures of 1 or 3 channels, but X is the network's own input, or "
                "has another number of channels. Give files, pictures or arrays of RGB."
            )
        present = None
        if y is not None:
            present = labels_present(explainer, images, y, self.classes_, len(opened))
        known = np.asarray(explainer.classes_).tolist()
        places = torch.tensor([known.index(label) for label in self.classes_.tolist()])
        return explainer, opened, ClassesOfImages(places, present, explainer)

    def _methods(self, explainer: Explainer) -> list[Method]:
        asked = [self.method] if self.saliency is None else [self.method, self.saliency]
        return [explainer.as_method(each) for each in asked]

    def _label_maps(
        self, X: Any, y: Any, thresholds: Sequence[float]
    ) -> tuple[OpenedImages, Iterator[list[np.ndarray]]]:
        """Return X, opened, and an iterator over the label maps of each image, by threshold."""
        explainer, opened, question = self._open(X, y)
        return opened, self._made(explainer, opened, question, thresholds)

    def _made(
        self,
        explainer: Explainer,
        opened: OpenedImages,
        question: ClassesOfImages,
        thresholds: Sequence[float],
    ) -> Iterator[list[np.ndarray]]:
        batches = explainer.iter_explained(
            opened, question, methods=self._methods(explainer), normalize=False
        )
        for explained in batches:
            for i in range(len(explained.batch)):
                yield self._of_image(explainer, explained, i, thresholds)

    def _of_image(
        self, explainer: Explainer, explained: ExplainedBatch, i: int, thresholds: Sequence[float]
    ) -> list[np.ndarray]:
        """Return the label maps of an image of a batch, in its own frame, by threshold."""
        size, target = explained.batch.sizes[i], explained.target
        assert isinstance(target, ClassesFound) and target.counts is not None
        n_present = target.counts[i]
        if not n_present:
            return [np.zeros(size, np.uint8) for _ in thresholds]
        seen = _seen(explainer, explained.maps[0].shape[-2:], size)
        # In float32: on some devices torch has no k-th value of half precision.
        framed = [
            explainer.to_frame(maps[i, :n_present].float(), size)[..., *seen]
            for maps in explained.maps
        ]
        saliency = framed[1].amax(dim=0)[None] if len(framed) > 1 else None
        # From labels among the image's classes to labels among all; the other two labels stay.
        labels = np.full(256, IGNORED, np.uint8)
        labels[0] = 0
        labels[1 : n_present + 1] = 1 + target.columns[i, :n_present]
        made = []
        for threshold in thresholds:
            seeds = seeds_from_maps(
                framed[0][None],
                threshold=threshold,
                saliency=saliency,
                background=self.background,
                overlap=self.overlap,
            )
            whole = np.full(size, IGNORED, np.uint8)
            whole[seen] = labels[seeds[0].cpu().numpy()]
            made.append(self._finished(whole, explained, i))
        return made

    def _finished(self, labels: np.ndarray, explained: ExplainedBatch, i: int) -> np.ndarray:
        """Return a label map after refinement, with ``ignore_label`` for unknown pixels."""
        if self.refine is not None:
            assert explained.batch.originals is not None
            picture = _as_picture(explained.batch.originals[i])
            refine = grab_cut if self.refine == "grabcut" else self.refine
            row = explained.batch.start + i
            labels = self._checked(refine(picture, labels), labels.shape, row)
        return np.where(labels == IGNORED, self.ignore_label, labels).astype(np.uint8)

    def _checked(self, refined: Any, shape: tuple[int, ...], row: int) -> np.ndarray:
        found = as_array(refined)
        is_map = found.shape == shape and found.dtype.kind in "iu"
        if not is_map or not (np.isin(found, (*range(len(self.classes_) + 1), IGNORED))).all():
            raise ValueError(
                f"refine must return a label map of {shape}, integers from 0 to "
                f"{len(self.classes_)} or 255; for image {row} it returned {describe(refined)}."
            )
        return found

    def _scores(
        self, X: Any, masks: Sequence[Any], y: Any, thresholds: Sequence[float]
    ) -> list[float]:
        """Return the mean intersection over union of each threshold."""
        opened, found = self._label_maps(X, y, thresholds)
        if not hasattr(masks, "__len__") or len(masks) != len(opened):
            raise ValueError(
                f"masks must be label maps, one for each of {len(opened)} images; got "
                f"{describe(masks)}."
            )
        n_labels = len(self.classes_) + 1
        counts = torch.zeros(len(thresholds), 2, n_labels, dtype=torch.int64)
        for row, of_thresholds in enumerate(found):
            truth = self._truth(masks[row], of_thresholds[0].shape, row)
            for i, labels in enumerate(of_thresholds):
                pair = label_overlaps(
                    torch.from_numpy(labels), truth, n_labels, ignored=self.ignore_label
                )
                counts[i] += torch.stack(pair)
        if not counts[:, 1].any():
            raise ValueError(
                "No pixel of the masks counts: all of them are negative or "
                f"{self.ignore_label}, the label to ignore."
            )
        return (counts[:, 0] / counts[:, 1]).nanmean(dim=1).tolist()

    def _truth(self, mask: Any, shape: tuple[int, ...], row: int) -> Tensor:
        truth = as_array(mask)
        if truth.shape != shape or truth.dtype.kind not in "iu":
            raise ValueError(
                f"Mask {row} must be a label map of integers, of its image's size {shape}; got "
                f"{describe(mask)}."
            )
        beyond = truth[(truth > len(self.classes_)) & (truth != self.ignore_label)]
        if beyond.size:
            raise ValueError(
                f"Mask {row} has the label {beyond.max()}, but the classes are 1 to "
                f"{len(self.classes_)}, {self.classes_.tolist()[:10]}. Give pixels to ignore the "
                f"label {self.ignore_label}."
            )
        return torch.from_numpy(truth.astype(np.int64))


def _seen(
    explainer: Explainer, input_size: Sequence[int], size: tuple[int, ...]
) -> tuple[slice, slice]:
    """Return the rows and columns of an image that its network saw."""
    inside = explainer.to_frame(torch.ones(*input_size), size) > 0.5
    rows, columns = (inside.any(dim=axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _as_picture(image: Tensor) -> np.ndarray:
    """Return an image as bytes, (height, width) or (height, width, 3)."""
    pixels = image.cpu()
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().clamp(0, 255)
    picture = pixels.to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(picture[..., 0] if picture.shape[2] == 1 else picture)
