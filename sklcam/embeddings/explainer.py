"""Explanations of embedding networks, which have no class scores.

A proxy, a direction that stands for a class or for another image, takes the place of the class: the
score is the embedding's inner product with it. Every method then works as it does on classifiers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral
from os import PathLike
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from sklcam._validation import check_count, describe
from sklcam.cam import ChannelMethod, Classes, Directions, Method, Target, TopK
from sklcam.cam.targets import Predicted
from sklcam.embeddings._unit_length import EndingAt, have_one_length, self_is_constant, why_cosines
from sklcam.embeddings.proxies import (
    add_to_sums,
    check_one_label_each,
    given_proxies,
    is_name,
    mean_proxies,
    proxies_by,
)
from sklcam.embeddings.targets import (
    EmbeddingDirections,
    NearestProxies,
    ProxyClasses,
    SinglePoint,
    cosines,
    normalized,
)
from sklcam.embeddings.text import ImageTower, Text
from sklcam.explain.base import AnyMethod, AnyTarget
from sklcam.explain.cam_explainer import CAMExplainer
from sklcam.explain.opened import OpenedImages
from sklcam.images.dataset import are_images
from sklcam.images.labels import labels_for
from sklcam.images.rows import take_rows
from sklcam.metrics.retrieval import nearest_neighbors
from sklcam.networks.adapters import Adapter
from sklcam.networks.inputs import Inputs
from sklcam.networks.precision import Precision
from sklcam.networks.tasks import Evidence


class EmbeddingCAMExplainer(TransformerMixin, CAMExplainer):
    r"""Explain an embedding network: where an image looks like its class, or like another image.

    .. math:: L_c = y \cdot p_c

    takes the place of a class's score, where y is the network's embedding of the image and
    :math:`p_c` the proxy of the class. With a classifier's logits and one-hot proxies, it is
    Grad-CAM. The network is never changed.

    Parameters
    ----------
    model : nn.Module or fitted estimator
        A network that takes images and returns embeddings of shape (n_images, dim), or a fitted
        skorch net around one. If it normalises them to length 1, name the ``embedding_layer``.
    proxy : {"mean", "self"}, callable, Text or array-like of shape (n_classes, dim), default="mean"
        The proxies that :meth:`fit` learns. "mean" is the mean of the class's embeddings, each
        normalised to length 1, normalised again (eq. 11). "self" is the image's own embedding:
        nothing is learned, and there are no classes. A callable takes a class's embeddings, of
        length 1, as an ndarray of shape (n, dim), and returns its proxy, of shape (dim,). An array
        gives the proxies themselves, such as those that a network was trained with, in the order of
        ``classes``. A :class:`~sklcam.embeddings.Text` gives prompts, for networks of images and
        texts.
    method : str, Method or class of methods, default="gradcam"
        Any of :func:`sklcam.cam.available`.
    target_layer, weights, layer_fusion, reshape, image_input, output_name
        See :class:`~sklcam.CAMExplainer`.
    top_channels : int or None, default=None
        How many channels of the layer make a map: those with the highest weights. None uses all.
    contrast : bool, default=False
        Explain why it is this class and not another: the mean of all proxies is subtracted from
        whatever is explained, whether a proxy, the image's own embedding or a reference image. What
        all classes share, such as the background, drops out; embeddings of classes that a network
        was not trained on have much in common.
    embedding_layer : str or None, default=None
        Dotted name of the layer whose output is the embedding, for networks that normalise it to
        length 1 afterwards: the paper's score is the product with the embedding before
        normalisation. None is the network's output.
    classes : array-like or None, default=None
        The labels of an array of proxies; None is 0, 1, ....
    image_size, resize, decode, mean, std, batch_size, num_workers, precision, verbose
        See :class:`~sklcam.CAMExplainer`.

    Attributes
    ----------
    proxies_ : ndarray of shape (n_classes, dim), float32
    classes_ : ndarray of shape (n_classes,), or None without classes
    n_images_per_class_ : ndarray of shape (n_classes,), int
        How many images each proxy was learned from; 0 for proxies that were given.
    target_layers_ : list of TargetLayer
    normalizes_ : bool
        Whether the embeddings that are explained all have one length.

    Warns
    -----
    UserWarning
        In ``fit``, if they do.

    References
    ----------
    Bachhawat, "Generalizing GradCAM for Embedding Networks", section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklcam import EmbeddingCAMExplainer
    >>> from sklcam.networks import build_model
    >>> network = build_model("resnet18", n_classes=16)  # embeddings of 16 dimensions
    >>> images, labels = torch.randn(6, 3, 64, 64), np.repeat(["apple", "pear"], 3)
    >>> explainer = EmbeddingCAMExplainer(network, verbose=0).fit(images, labels)
    >>> explainer.proxies_.shape
    (2, 16)
    >>> explainer.explain(images, target="pear").shape
    (6, 64, 64)
    >>> explainer.explain(images[:2], target=images[4:]).shape  # what makes the two alike
    (2, 64, 64)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **CAMExplainer._parameter_constraints,
        "proxy": [StrOptions({"mean", "self"}), callable, "array-like", Text],
        "top_channels": [None, Interval(Integral, 1, None, closed="left")],
        "contrast": ["boolean"],
        "embedding_layer": [None, str],
    }
    shows_probabilities: ClassVar[bool] = False  # the softmax of cosines is close to even

    def __init__(
        self,
        model: Any,
        proxy: Any = "mean",
        method: AnyMethod = "gradcam",
        target_layer: Any = "auto",
        *,
        top_channels: int | None = None,
        contrast: bool = False,
        embedding_layer: str | None = None,
        weights: str | PathLike[str] | None = None,
        layer_fusion: Literal["mean", "max"] | None = "mean",
        reshape: Callable[[Tensor], Tensor] | None = None,
        image_input: str | None = None,
        output_name: str | int | None = None,
        classes: Any = None,
        image_size: int | tuple[int, int] | None = None,
        resize: Literal["stretch", "center_crop"] | None = None,
        decode: Literal["exact", "fast"] = "exact",
        mean: Any = "auto",
        std: Any = "auto",
        batch_size: int = 32,
        num_workers: int = 0,
        precision: Precision = "fp32",
        verbose: int = 1,
    ):
        super().__init__(
            model,
            method,
            target_layer,
            weights=weights,
            layer_fusion=layer_fusion,
            reshape=reshape,
            image_input=image_input,
            output_name=output_name,
            classes=classes,
            image_size=image_size,
            resize=resize,
            decode=decode,
            mean=mean,
            std=std,
            batch_size=batch_size,
            num_workers=num_workers,
            precision=precision,
            verbose=verbose,
        )
        self.proxy = proxy
        self.top_channels = top_channels
        self.contrast = contrast
        self.embedding_layer = embedding_layer

    # Learning

    def fit(self, X: Any = None, y: Any = None) -> EmbeddingCAMExplainer:
        """Learn the proxies.

        Parameters
        ----------
        X : images or None, default=None
            In any form that :class:`~sklcam.CAMExplainer` takes; one image is enough unless proxies
            are learned.
        y : array-like of shape (n_images,) or None, default=None
            Their labels; a torch data set may bring its own.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter does not fit the model, labels are missing, an embedding is zero, or all
            embeddings have length 1 and would be explained by themselves.
        """
        learns = callable(self.proxy) or is_name(self.proxy, "mean")
        if learns and X is None:
            raise ValueError("fit needs images X and labels y to learn proxies from.")
        if self.classes is not None and (learns or is_name(self.proxy, "self")):
            raise ValueError(
                "classes= labels the rows of an array of proxies; give no classes with "
                f"proxy={self.proxy!r}, which takes them from y or has none."
            )
        self._sums_: dict[Any, np.ndarray] = {}
        self._counts_: dict[Any, int] = {}
        self.proxies_: np.ndarray | None = None
        super().fit(X)
        if not learns:
            self._take_proxies()
        elif callable(self.proxy):
            self._learn_by(self.proxy, X, y)
        else:
            self._add(X, y)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> EmbeddingCAMExplainer:
        """Learn mean proxies from some more images, of classes old and new.

        Parameters
        ----------
        X : images
        y : array-like of shape (n_images,) or None, default=None
            Their labels; a torch data set may bring its own.

        Returns
        -------
        self
            As if fitted on all images at once. A sum and a count are kept for each class.
        """
        if not is_name(self.proxy, "mean"):
            raise ValueError(
                f"proxy is {self.proxy!r}, but partial_fit keeps sums, which only give mean "
                'proxies. Set proxy="mean", or call fit.'
            )
        if not hasattr(self, "target_layers_"):
            return self.fit(X, y)
        self._add(X, y)
        return self

    def open_labelled(self, X: Any, y: Any, purpose: str) -> tuple[OpenedImages, np.ndarray]:
        """Open images and return them with their labels, for learning from both.

        Parameters
        ----------
        X : images
        y : array-like of shape (n_images,) or None
            None takes the labels of a torch data set.
        purpose : str
            What the labels are for, for the message.

        Returns
        -------
        opened : OpenedImages
        labels : ndarray of shape (n_images,)

        Raises
        ------
        ValueError
            If there are no labels, or not one for each image.
        """
        labels, opened = labels_for(X, y, purpose), self.open(X)
        check_one_label_each(labels, len(opened))
        return opened, labels

    def _add(self, X: Any, y: Any) -> None:
        """Add the images' embeddings to the sums of their classes."""
        opened, labels = self.open_labelled(X, y, f"proxy={self.proxy!r}")
        batches = self._embeddings(opened, "proxies")
        add_to_sums(self._sums_, self._counts_, batches, labels)
        self.proxies_, self.classes_, self.n_images_per_class_ = mean_proxies(
            self._sums_, self._counts_
        )

    def _learn_by(self, proxy: Callable[[np.ndarray], Any], X: Any, y: Any) -> None:
        opened, labels = self.open_labelled(X, y, f"proxy={self.proxy!r}")
        embeddings = np.concatenate(list(self._embeddings(opened, "proxies")))
        self.proxies_, self.classes_, self.n_images_per_class_ = proxies_by(
            proxy, embeddings, labels
        )

    def _take_proxies(self) -> None:
        """Store the proxies that were given; none for single points."""
        if is_name(self.proxy, "self"):
            self.classes_ = None
            return
        names: Any = self.classes
        given = self.proxy.detach().cpu() if isinstance(self.proxy, Tensor) else self.proxy
        if isinstance(given, Text):
            names = given.names() if names is None else names
            given = given.embed(self._adapter)
        self.proxies_, self.classes_ = given_proxies(given, names, self._dim_)
        self.n_images_per_class_ = np.zeros(len(self.classes_), dtype=int)

    def _adapt(self) -> Adapter:
        adapter = super()._adapt()
        if isinstance(self.proxy, Text):
            adapter = ImageTower(adapter)
        return adapter if self.embedding_layer is None else EndingAt(adapter, self.embedding_layer)

    def _dry_run(self, adapter: Adapter, sample: Inputs, *, given: bool) -> Tensor:
        output = super()._dry_run(adapter, sample, given=given)
        images = (sample.images.flip(-1) / 2 + 0.1).to(sample.images.dtype)
        other = super()._dry_run(adapter, sample.with_images(images), given=given)
        self.normalizes_ = have_one_length(output, other)
        if self.normalizes_:
            if is_name(self.proxy, "self"):
                raise self_is_constant(adapter.network)
            warnings.warn(why_cosines(adapter.network), stacklevel=4)
        return output

    def _settle(self, evidence: Evidence) -> None:
        self.task_ = None  # what an embedding is for depends on the proxies

    def _find_names(self, output: Tensor, y: Any) -> None:
        """Check that the network returns embeddings; its outputs are not classes."""
        if output.ndim != 2:
            raise ValueError(
                f"The network's output has shape {tuple(output.shape)}; embeddings are (n_images, "
                "dim)."
            )
        self._dim_ = output.shape[1]

    # Embeddings

    def transform(self, X: Any) -> np.ndarray:
        """Return the images' embeddings, normalised to length 1.

        Parameters
        ----------
        X : images

        Returns
        -------
        ndarray of shape (n_images, dim), float32

        Raises
        ------
        ValueError
            If an embedding is zero or not finite.
        """
        return np.concatenate(list(self._embeddings(X, "transform")))

    def iter_embeddings(self, X: Any, description: str = "embeddings") -> Iterator[Tensor]:
        """Yield the embeddings of X batch after batch, as the network returns them.

        Parameters
        ----------
        X : images, or OpenedImages
        description : str, default="embeddings"
            The description of the progress bar.

        Yields
        ------
        Tensor of shape (batch_size, dim), float32, on the CPU
        """
        opened = X if isinstance(X, OpenedImages) else self.open(X)
        with self._bar(len(opened), description) as bar:
            for batch in opened.batches():
                yield self.output_of(batch.inputs).float().cpu()
                bar.update(len(batch))

    def _embeddings(self, X: Any, description: str) -> Iterator[np.ndarray]:
        for embeddings in self.iter_embeddings(X, description):
            yield normalized(embeddings).numpy()

    def probabilities(self, output: Tensor) -> Tensor:
        """Return the softmax over the cosines of embeddings and proxies.

        Parameters
        ----------
        output : Tensor of shape (n_images, dim)
            Embeddings.

        Returns
        -------
        Tensor of shape (n_images, n_classes), in [0, 1]
            Close to even, as cosines are in [-1, 1]. The nearest proxy has the highest.
        """
        return cosines(output, self._proxies()).softmax(dim=1)

    def decide(self, output: Tensor) -> Tensor:
        return cosines(output, self._proxies()).argmax(dim=1)

    def _proxies(self) -> Tensor:
        if self.proxies_ is None:
            raise NotFittedError(
                'There are no classes: proxy="self" explains images by their own embeddings. '
                "Choose another proxy and fit with labels."
            )
        return torch.from_numpy(self.proxies_)

    def _shared(self) -> Tensor | None:
        """Return what all classes have in common, if it is to be subtracted."""
        if not self.contrast:
            return None
        if self.proxies_ is None or len(self.proxies_) < 2:
            raise ValueError(
                "contrast=True compares a class with the others and needs the proxies of at "
                f"least two; there are {0 if self.proxies_ is None else len(self.proxies_)}."
            )
        return self._comparable_proxies().mean(dim=0)

    def _comparable_proxies(self) -> Tensor:
        """Return the proxies to explain: as they are, or of equal length to be compared."""
        return normalized(self._proxies()) if self.contrast else self._proxies()

    # Targets

    def as_target(self, target: Any, n_images: int) -> Target:
        self._shared()  # an error now rather than in the first batch
        known = () if self.classes_ is None else self.classes_.tolist()
        if is_name(target, "self") and "self" not in known:
            target = SinglePoint()
        elif isinstance(target, Text):
            target = self._towards(target.embed(self.adapter), n_images, "prompts")
        elif isinstance(target, Mapping) or are_images(target):
            target = self._towards_images(target, n_images)
        elif not (target is None or isinstance(target, Target) or callable(target)):
            self._proxies()  # for labels; an error that says why there are no classes
        return super().as_target(target, n_images)

    def _towards_images(self, references: Any, n_images: int) -> Directions:
        """Return the embeddings of reference images, one for each image or one for all."""
        embeddings = np.concatenate(list(self._embeddings(references, "")))
        return self._towards(embeddings, n_images, "reference images")

    @staticmethod
    def _towards(embeddings: np.ndarray, n_images: int, what: str) -> Directions:
        if len(embeddings) not in (1, n_images):
            raise ValueError(
                f"target has {len(embeddings)} {what} for {n_images} images; give one for each, or "
                "one for all."
            )
        return Directions(torch.from_numpy(embeddings).expand(n_images, -1))

    def translate(self, target: AnyTarget) -> Target:
        asked, shared = super().translate(target), self._shared()
        if isinstance(asked, SinglePoint) or (
            isinstance(asked, Predicted) and self.proxies_ is None
        ):
            if self.normalizes_ and shared is None:
                raise self_is_constant(self.adapter.network)
            return SinglePoint(shared)
        if isinstance(asked, Predicted | TopK):
            n_nearest = asked.k if asked.several else None
            return NearestProxies(self._comparable_proxies(), n_nearest, shared)
        if isinstance(asked, Classes):
            proxies = self._comparable_proxies()
            return ProxyClasses(asked, proxies if shared is None else proxies - shared)
        if isinstance(asked, Directions) and not isinstance(asked, EmbeddingDirections):
            vectors = asked.given()
            return EmbeddingDirections(vectors if shared is None else vectors - shared.to(vectors))
        if shared is not None and not isinstance(
            asked, EmbeddingDirections | NearestProxies | ProxyClasses
        ):
            raise ValueError(
                "contrast=True subtracts the mean of the proxies from a proxy or an embedding, "
                f"but the target is {describe(asked)}. Explain it with contrast=False."
            )
        return asked

    def as_method(self, method: AnyMethod | None) -> Method:
        chosen = super().as_method(method)
        if self.top_channels is not None and not isinstance(chosen, ChannelMethod):
            raise ValueError(
                f"top_channels={self.top_channels} needs a method that weighs channels as a whole, "
                f"such as Grad-CAM; {chosen!r} does not."
            )
        return chosen

    # Pairs and neighbours

    def explain_pairs(self, X: Any, Z: Any, **options: Any) -> tuple[Any, Any]:
        """Show what makes two images alike, on each of them.

        Parameters
        ----------
        X, Z : images
            The same number of each.
        **options
            The options of :meth:`explain`, except the target.

        Returns
        -------
        maps_of_x, maps_of_z : ndarray of shape (n_images, height, width), float32
            Where each image of X is like its partner in Z, and the other way round.
        """
        n_x, n_z = len(self.open(X)), len(self.open(Z))
        if n_x != n_z:
            raise ValueError(f"X and Z must be pairs of images; got {n_x} and {n_z}.")
        if "target" in options:
            raise ValueError(
                "explain_pairs takes no target: each image is explained by its partner."
            )
        # Opened here, as paths in a target could be labels.
        of_x, of_z = (self._towards_images(images, n_x) for images in (X, Z))
        return self.explain(X, of_z, **options), self.explain(Z, of_x, **options)

    def explain_neighbors(
        self, query: Any, gallery: Any, k: int = 5, *, method: AnyMethod | None = None
    ) -> Bunch:
        """Find the gallery images that are nearest to each query, and show why.

        Parameters
        ----------
        query, gallery : images
        k : int, default=5
            How many neighbours.
        method : str, Method or None, default=None
            See :meth:`explain`.

        Returns
        -------
        Bunch
            ``indices``: ndarray of shape (n_queries, k), indices into the gallery, nearest first;
            ``similarities``: their cosines; ``query_maps``: ndarray of shape (n_queries, k, height,
            width), where the query is like each neighbour; ``neighbor_maps``: of the same shape,
            where the neighbour is like the query.

        Raises
        ------
        ValueError
            If the gallery has fewer than k images.
        """
        n_others = len(self.open(gallery))
        check_count("k, how many images of the gallery,", k, 1, n_others)
        self.as_method(method)
        queries, others = self.transform(query), self.transform(gallery)
        indices, similarities = nearest_neighbors(queries, others, k)
        towards = Directions(torch.from_numpy(others[indices]))
        query_maps = self.explain(query, towards, method=method)
        # In the other direction, each neighbour gets the query it belongs to.
        found = take_rows(gallery, indices.ravel())
        back = Directions(torch.from_numpy(np.repeat(queries, k, axis=0)))
        neighbor_maps = self.explain(found, back, method=method).reshape(query_maps.shape)
        return Bunch(
            indices=indices,
            similarities=similarities,
            query_maps=query_maps,
            neighbor_maps=neighbor_maps,
        )
