"""Pictures, maps and predictions for displays, from one pass over the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from sklcam.cam import Method
from sklcam.cam.targets import Classes, Deferred
from sklcam.explain._batches import ExplainedBatch
from sklcam.explain.base import AnyMethod, Explainer, Methods, method_name
from sklcam.explain.nested import AnyEstimator, as_explainer
from sklcam.explain.opened import Batch, OpenedImages
from sklcam.explain.predictions import Prediction, class_names, predictions, spelled
from sklcam.images.dataset import ImageDataset
from sklcam.images.labels import dataset_labels, labels_for
from sklcam.images.pictures import check_is_picture, picture_of_slice, to_picture
from sklcam.metrics.masks import as_array
from sklcam.plotting._display import check_map_shape

AnyEstimators: TypeAlias = AnyEstimator | Mapping[str, AnyEstimator]
AnyMethods = AnyMethod | Methods | None


def is_pixelwise(method: Method) -> bool:
    """Return whether a method's maps are of single pixels, as saliency is, and not of regions."""
    return method.graph == "images" and not method.at_layer


class Explanation:
    """Images to be explained. Everything has been checked, and nothing has run yet.

    Parameters
    ----------
    explainer : Explainer
    X : images
    target : None, labels or callable
    methods : str, Method, list of them, dict of names to them, or None
    frame : {"image", "input"}
        Whether pictures and maps are at each image's own size, or as the network gets them.
    slices : bool, default=False
        Whether to draw one slice of each volume: the one with the highest value of the first
        method's map. Otherwise volumes are refused.
    several : bool, default=False
        Whether an image may have maps for several classes. Otherwise they are refused.

    Attributes
    ----------
    explainer : Explainer
    n_images : int
    n_targets : int
        The number of classes that are explained per image if there are several, otherwise 0.
    pixelwise : list of str
        The methods whose maps are of single pixels.
    maps : dict of str to list of ndarray
        The maps of each method. This and the attributes below are filled by :meth:`run`. With
        several classes, maps have an axis for them.
    pictures : list of ndarray
    slices : list of int
        Which slice of each volume is drawn; empty for pictures.
    predictions : list of Prediction
    targets : list of list of str
        For each image, the classes that are explained, with their probabilities, if ``target``
        was given.
    """

    def __init__(
        self,
        explainer: Explainer,
        X: Any,
        target: Any,
        methods: AnyMethods,
        frame: str = "image",
        *,
        normalize: bool = True,
        slices: bool = False,
        several: bool = False,
    ):
        self.explainer = explainer
        self._methods = explainer.named_methods(methods)
        self._opened = explainer.open(X, originals=True)
        self.n_images = len(self._opened)
        size = self._opened.image_size
        if not slices:
            check_is_picture(size)
        self._target = explainer.as_target(target, self.n_images)
        self._is_asked_for = target is not None
        self._own_size = frame == "image"
        self._normalize = normalize
        is_drawn = several and self._target.several and len(size) == 2
        self.n_targets = self._target.k if is_drawn else 0
        # Several layers, channels or classes have a map each: that is known before any is made.
        for name, method in self._methods.items():
            shape = explainer.map_shape(self._opened, self._target, method)
            check_map_shape(name, shape[is_drawn:], len(size))
        self.pixelwise = [name for name, method in self._methods.items() if is_pixelwise(method)]
        self.maps: dict[str, list[np.ndarray]] = {name: [] for name in self._methods}
        self.pictures: list[np.ndarray] = []
        self.slices: list[int] = []
        self.predictions: list[Prediction] = []
        self.targets: list[list[str]] = []

    @property
    def n_slices(self) -> int:
        """The number of slices in a volume; 0 for pictures."""
        return self._opened.image_size[0] if len(self._opened.image_size) == 3 else 0

    def run(self, slices: Sequence[int] = ()) -> Explanation:
        """Explain, all methods from one pass over the images, and return ``self``.

        Parameters
        ----------
        slices : sequence of int, default=()
            Which slice of each volume is drawn, if another explanation has chosen it.
        """
        self.slices = list(slices)
        explainer, methods = self.explainer, list(self._methods.values())
        for explained in explainer.iter_explained(
            self._opened, self._target, methods=methods, normalize=self._normalize
        ):
            batch = explained.batch
            if self.n_slices:
                self._add_slices(batch, explained.maps)
                self.predictions += predictions(explainer, explained.output)
                self._add_targets(explained)
                continue
            self.pictures += pictures_of_batch(batch, own_size=self._own_size)
            self.predictions += predictions(explainer, explained.output)
            for collected, maps in zip(self.maps.values(), explained.maps, strict=True):
                collected += (
                    maps_of_batch(explainer, maps, batch)
                    if self._own_size
                    else [*maps.float().cpu().numpy()]
                )
            self._add_targets(explained)
        return self

    @property
    def target_names(self) -> list[str]:
        """Names for the classes of an image: their ranks, or their places."""
        kind = "rank" if isinstance(self._target, Deferred) else "class"
        return [f"{kind} {i + 1}" for i in range(self.n_targets)]

    def verdicts(self, labels: np.ndarray | None) -> list[bool | None]:
        """Return whether each prediction is right; None if that is not known.

        Parameters
        ----------
        labels : ndarray of shape (n_images,) or None
            See :func:`labels_of_images`.
        """
        if labels is None or self.explainer.adapter.task == "regression":
            return [None] * self.n_images
        # Where classes have names, or images several labels, the labels are text already.
        is_text = self.explainer.adapter.task == "multilabel"
        true = labels.tolist() if is_text else spelled(self.explainer, labels)
        return [
            None if prediction.label is None else prediction.label == label
            for prediction, label in zip(self.predictions, true, strict=True)
        ]

    def _add_targets(self, explained: ExplainedBatch) -> None:
        """Record which classes are explained, unless it is the predicted one."""
        if self._is_asked_for and isinstance(explained.target, Classes):
            self.targets += _explained_classes(self.explainer, explained)

    def _add_slices(self, batch: Batch, maps: Sequence[Tensor]) -> None:
        """Take a slice of each volume of a batch, and of its maps."""
        volumes = [each.float().cpu().numpy() for each in maps]
        if len(self.slices) < batch.stop:
            self.slices += np.nan_to_num(volumes[0]).max(axis=(2, 3)).argmax(axis=1).tolist()
        chosen = self.slices[batch.start : batch.stop]
        assert batch.originals is not None
        pairs = zip(batch.originals, chosen, strict=True)
        self.pictures += [picture_of_slice(volume, i) for volume, i in pairs]
        for collected, of_method in zip(self.maps.values(), volumes, strict=True):
            collected += [map_[i] for map_, i in zip(of_method, chosen, strict=True)]


def _explained_classes(explainer: Explainer, explained: ExplainedBatch) -> list[list[str]]:
    """Return the classes of each image that are explained, as text with their probabilities."""
    names, target = class_names(explainer), explained.target
    assert isinstance(target, Classes)
    if not names:
        return [[""] * target.k for _ in range(len(explained.output))]
    chances: list[list[float]] | None = None
    if explainer.shows_probabilities and target.has_probabilities:
        probabilities = explainer.probabilities(explained.output)
        chances = (
            None if probabilities is None else probabilities.gather(1, target.indices).tolist()
        )
    return [
        [
            names[c] if chances is None else f"{names[c]} ({chances[i][rank]:.2f})"
            for rank, c in enumerate(row)
        ]
        for i, row in enumerate(target.indices.tolist())
    ]


def explainers_by_name(
    estimator: AnyEstimators, X: Any, y: Any = None
) -> dict[str, tuple[Explainer, Any]]:
    """Return fitted explainers by name, each with X in the form that it takes."""
    if not isinstance(estimator, Mapping):
        return {type(estimator).__name__: as_explainer(estimator, X, y)}
    if not estimator:
        raise ValueError("There is no estimator to draw: the dict is empty.")
    return {str(name): as_explainer(given, X, y) for name, given in estimator.items()}


def column_name(
    name: str, explainer: Explainer, method: str, *, n_models: int, n_methods: int
) -> str:
    """Return the name of a column of maps: the method, the model, or both."""
    if n_models == 1:
        return method or method_name(explainer.method)
    return name if n_methods == 1 else f"{name}, {method}"


def named_values(values: Any, name: str) -> dict[str, Any]:
    """Return values by name, whether they came in a dict or as one."""
    if not isinstance(values, Mapping):
        return {name: values}
    if not values:
        raise ValueError("There is nothing to draw: the dict is empty.")
    return {str(key): value for key, value in values.items()}


def map_list(maps: Tensor | np.ndarray | Sequence[Any]) -> list[np.ndarray]:
    """Return maps as a list of arrays, wherever they are."""
    return [as_array(map_) for map_ in maps]


def labels_of_images(
    X: Any, y: Any, n_images: int, explainer: Explainer | None = None
) -> np.ndarray | None:
    """Return the given labels, or the data set's own, or None.

    Labels are text if the explainer has several labels per image, predicts numbers, or has names of
    classes.
    """
    if y is None and dataset_labels(X) is None:
        return None
    if explainer is not None and (
        explainer.class_names_ is not None or explainer.adapter.task in ("multilabel", "regression")
    ):
        y = np.array(spelled(explainer, explainer.expected_labels(X, y, "the picture")))
    else:
        y = labels_for(X, y, "the picture")
    if y.shape != (n_images,):
        raise ValueError(
            f"y must have one label for each of {n_images} images; got shape {y.shape}."
        )
    return y


def as_text(values: Any) -> list[str] | None:
    """Return labels or titles as text; None if there are none."""
    return None if values is None else [str(value) for value in values]


def as_dataset(X: Any) -> ImageDataset:
    """Return images of any form, to be read at their own sizes."""
    return X if isinstance(X, ImageDataset) else ImageDataset(X)


def pictures_of(X: Any, rows: Iterable[int] | None = None) -> list[np.ndarray]:
    """Return images of any form, or some of them, at their own sizes."""
    images = as_dataset(X)
    chosen = range(len(images)) if rows is None else rows
    return [to_picture(images.original_image(i)) for i in chosen]


def pictures_of_batch(batch: Batch, *, own_size: bool = False) -> list[np.ndarray]:
    """Return the images of a batch that brings them, at the network's input size or their own."""
    images = batch.originals if own_size else batch.resized
    assert images is not None  # they were asked for when X was opened
    return [to_picture(image) for image in images]


def pictures_of_opened(opened: OpenedImages) -> list[np.ndarray]:
    """Return opened images at the network's input size."""
    return [picture for batch in opened.batches() for picture in pictures_of_batch(batch)]


def maps_of_batch(explainer: Explainer, maps: Tensor, batch: Batch) -> list[np.ndarray]:
    """Return the maps of a batch, (n_images, ..., height, width), at its images' own sizes."""
    framed = map(explainer.to_frame, maps, batch.sizes)
    return [map_.float().cpu().numpy() for map_ in framed]
