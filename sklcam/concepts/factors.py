"""``ConceptMaps``: what a layer sees, as a few maps without names, by non-negative factors."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.decomposition import MiniBatchNMF
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklcam.cam import upsample
from sklcam.concepts.namer import network_of, open_pictures
from sklcam.explain import Explainer
from sklcam.explain.nested import AnyEstimator
from sklcam.explain.opened import OpenedImages

_BATCH_OF_CELLS = 1024
_SWEEPS = 100  # of coordinate descent, over all concepts of a cell


class ConceptMaps(BaseEstimator):
    r"""Factor a layer's activations into a few concepts, each with a map for every image.

    .. math:: \min_{W, H \ge 0} \lVert A - W H \rVert^2

    A row of A holds the activations of all channels in one cell of the layer's grid, after a ReLU.
    H holds the channels of each concept, and W how much of each concept there is in each cell.
    Channels that fire together become one concept: often a part of the objects, or the ground.

    Parameters
    ----------
    n_concepts : int, default=4
        The number of concepts.
    max_cells : int, default=16384
        The most cells, drawn at random from all images, from which H is learned. Memory holds this
        many rows of A.
    max_iter : int, default=200
        The most passes over these cells.
    random_state : int, RandomState or None, default=None
        Controls which cells are drawn, and their order.

    Attributes
    ----------
    components_ : ndarray of shape (n_concepts, n_channels), float32
        H, the concept with the most weight first. It is scaled so that the largest amount of each
        concept in a drawn cell is 1.
    explained_ : float in [0, 1]
        The share of the squared activations of the drawn cells that W H explains.
    layer_ : str
        The layer's name.
    network_ : str
        A short name for the weights of the network.

    Notes
    -----
    Images are read once, and memory does not grow with their number. Every cell is equally likely
    to be drawn. W of given images is the exact optimum for H, by coordinate descent, so it does not
    depend on other images.

    References
    ----------
    Collins, Achanta, Süsstrunk, "Deep Feature Factorization for Concept Discovery", ECCV 2018.

    Examples
    --------
    Two concepts, one in the channels 0 and 1, the other in channel 2:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.concepts import ConceptMaps
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> images = torch.zeros(1, 3, 2, 2)
    >>> images[0, :2, 0], images[0, 2, 1, 1] = 3, 2
    >>> concepts = ConceptMaps(2, random_state=0).fit(explainer, images)
    >>> concepts.transform(explainer, images, frame="layer").round(2)
    array([[[[1., 1.],
             [0., 0.]],
            [[0., 0.],
             [0., 1.]]]], dtype=float32)
    """

    components_: np.ndarray
    explained_: float
    layer_: str
    network_: str

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_concepts": [Interval(Integral, 1, None, closed="left")],
        "max_cells": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_concepts: int = 4,
        *,
        max_cells: int = 16384,
        max_iter: int = 200,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_concepts = n_concepts
        self.max_cells = max_cells
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, explainer: AnyEstimator, X: Any) -> Self:
        """Learn the concepts of images.

        Parameters
        ----------
        explainer : estimator with ``explain``
            Fitted, with one target layer.
        X : images

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If the explainer has not been fitted.
        ValueError
            If an argument is invalid, there are fewer channels or cells than concepts, no
            activation is over 0, or some are not finite.
        """
        self._validate_params()
        found, opened = open_pictures(explainer, X)
        random = check_random_state(self.random_state)
        cells = self._draw(found, opened, random)
        fewest = min(cells.shape)
        if self.n_concepts > fewest:
            raise ValueError(
                f"n_concepts={self.n_concepts} must be at most {fewest}, as there are {len(cells)} "
                f"cells of {cells.shape[1]} channels."
            )
        if not cells.any():
            raise ValueError("No activation is over 0, so there is nothing to factor.")
        factors = MiniBatchNMF(
            self.n_concepts,
            init="nndsvda",
            batch_size=_BATCH_OF_CELLS,
            max_iter=self.max_iter,
            random_state=random,
        ).fit(cells)
        components = torch.from_numpy(factors.components_.astype(np.float32))
        weights = amounts(torch.from_numpy(cells), components)
        order = (weights.sum(dim=0) * components.norm(dim=1)).argsort(descending=True, stable=True)
        most = weights.amax(dim=0)
        left = torch.from_numpy(cells) - weights @ components
        self.explained_ = 1 - float(left.square().sum()) / float(np.square(cells).sum())
        self.components_ = (components * torch.where(most > 0, most, 1.0)[:, None])[order].numpy()
        self.layer_, self.network_ = found.target_layers[0].name, network_of(found)
        return self

    def _draw(
        self, explainer: Explainer, opened: OpenedImages, random: np.random.RandomState
    ) -> np.ndarray:
        """Return some rows of A, all equally likely, whatever the batches."""
        kept, keys = np.empty((0, 0), np.float32), np.empty(0)
        for cells in _cells(explainer, opened):
            rows = cells.movedim(1, 3).flatten(0, 2)
            # Each cell draws a number, and the cells with the lowest numbers stay.
            drawn = np.concatenate([keys, random.random_sample(len(rows))])
            lowest = np.sort(drawn.argsort(kind="stable")[: self.max_cells])
            new = torch.from_numpy(lowest[lowest >= len(keys)] - len(keys)).to(rows.device)
            added = rows.index_select(0, new).cpu().numpy()
            old = kept[lowest[lowest < len(keys)]].reshape(-1, rows.shape[1])
            kept, keys = np.concatenate([old, added]), drawn[lowest]
        if not np.isfinite(kept).all():
            raise ValueError("Some activations of the layer are NaN or infinite.")
        return kept

    def transform(
        self, explainer: AnyEstimator, X: Any, *, frame: Literal["input", "layer"] = "input"
    ) -> np.ndarray:
        """Return how much there is of each concept, and where.

        Parameters
        ----------
        explainer : estimator with ``explain``
            The one of ``fit``.
        X : images
            Any images, also other ones than in ``fit``.
        frame : {"input", "layer"}, default="input"
            Maps at the network's input size, or at the layer's own grid.

        Returns
        -------
        ndarray of shape (n_images, n_concepts, height, width), float32, >= 0
            1 is the largest amount in ``fit``.

        Raises
        ------
        NotFittedError
            If there are no concepts yet.
        ValueError
            If the explainer looks at another layer, or has a network with other weights, or an
            argument is invalid.
        """
        check_is_fitted(self, "components_")
        if frame not in ("input", "layer"):
            raise ValueError(f'frame must be "input" or "layer"; got {frame!r}.')
        found, opened = open_pictures(explainer, X)
        name = found.target_layers[0].name
        if name != self.layer_:
            raise ValueError(
                f"The concepts belong to the layer {self.layer_!r}, but the explainer looks at "
                f"{name!r}. Set its target_layer, or fit the concepts to it."
            )
        if network_of(found) != self.network_:
            raise ValueError(
                "The concepts belong to a network with other weights than this explainer's. Fit "
                "them to this explainer."
            )
        components, made = torch.from_numpy(self.components_), []
        for cells in _cells(found, opened):
            rows = cells.movedim(1, 3)
            maps = amounts(rows.flatten(0, 2), components.to(cells.device))
            maps = maps.unflatten(0, rows.shape[:3]).movedim(3, 1)
            size = opened.image_size if frame == "input" else maps.shape[2:]
            made.append(upsample(maps, tuple(size)).cpu().numpy())
        return np.concatenate(made)


def _cells(explainer: Explainer, opened: OpenedImages) -> Iterator[Tensor]:
    """Yield the activations over 0 of each batch, (n_images, n_channels, u, v), float32."""
    for found in explainer.iter_channels(opened):
        yield found.activations.relu().float()


def amounts(rows: Tensor, components: Tensor) -> Tensor:
    """Return the best W >= 0 for rows (n, n_channels) and H (n_concepts, n_channels).

    It is found by coordinate descent over the concepts, for all rows at once.
    """
    gram, products = components @ components.T, rows @ components.T
    sizes = gram.diagonal()
    sizes = torch.where(sizes > 0, sizes, 1.0)
    found = products.new_zeros(products.shape)
    for _ in range(_SWEEPS):
        for j in range(len(components)):
            step = (products[:, j] - found @ gram[:, j]) / sizes[j]
            found[:, j] = (found[:, j] + step).clamp(min=0)
    return found
