"""Targets of embedding networks: proxies, and the image itself.

A class is explained by its proxy: the score is the embedding's inner product with it. So all
targets resolve to directions.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sklcam.cam.targets import Classes, Deferred, Directions, check_indices, check_rows
from sklcam.networks.inputs import Inputs
from sklcam.networks.precision import at_least_float32


def normalized(embeddings: Tensor) -> Tensor:
    """Return embeddings of length 1, in float32 or better.

    Raises
    ------
    ValueError
        If an embedding is zero or not finite: it has no direction.
    """
    embeddings = at_least_float32(embeddings)
    lengths = embeddings.norm(dim=-1, keepdim=True)
    without = ~((lengths > 0) & lengths.isfinite())
    if bool(without.any()):
        raise ValueError(
            f"The embeddings of {int(without.sum())} of {len(embeddings)} images are zero or not "
            "finite, and have no direction: is the network dead, or is its input unlike its "
            "training data?"
        )
    return embeddings / lengths


def cosines(embeddings: Tensor, proxies: Tensor) -> Tensor:
    """Return the cosines (n_images, n_classes) of embeddings (n_images, dim) and proxies."""
    embeddings = at_least_float32(embeddings)
    return F.normalize(embeddings, dim=1) @ F.normalize(proxies.to(embeddings), dim=1).T


class EmbeddingDirections(Directions):
    """Target: directions of embeddings, explained as they are, with nothing subtracted."""


class ProxyClasses(Deferred):
    """Target: given classes, each by its proxy.

    Parameters
    ----------
    classes : Classes
    proxies : Tensor of shape (n_classes, dim)
        The directions that are explained.
    """

    names_classes = True

    def __init__(self, classes: Classes, proxies: Tensor):
        self.several, self.k, self.indices = classes.several, classes.k, classes.indices
        self._classes = classes
        self._proxies = proxies

    def take(self, rows: slice) -> ProxyClasses:
        return ProxyClasses(self._classes.take(rows), self._proxies)

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Directions:
        indices = self._classes.given()
        check_indices(indices, len(self._proxies))
        # Looked up one batch at a time: indices take a fraction of the memory of directions.
        directions = self._proxies.to(indices.device)[indices]
        return EmbeddingDirections(directions, indices).resolve(output)


class NearestProxies(Deferred):
    """Target: the proxies nearest to each embedding by cosine, nearest first.

    Parameters
    ----------
    proxies : Tensor of shape (n_classes, dim)
    n_nearest : int or None, default=None
        How many proxies; None is one, without an axis for it.
    shared : Tensor of shape (dim,) or None, default=None
        A vector to subtract from each proxy once they are found.

    Examples
    --------
    >>> import torch
    >>> from sklcam.embeddings import NearestProxies
    >>> proxies = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> NearestProxies(proxies).resolve(torch.tensor([[3.0, 4.0]])).directions
    tensor([[[0., 1.]]])
    """

    names_classes = True

    def __init__(self, proxies: Tensor, n_nearest: int | None = None, shared: Tensor | None = None):
        self.several, self.k = n_nearest is not None, n_nearest or 1
        self._proxies, self._shared = proxies, shared

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Directions:
        nearest = cosines(check_rows(output), self._proxies).topk(self.k, dim=1).indices
        proxies = self._proxies if self._shared is None else self._proxies - self._shared
        classes = Classes(nearest if self.several else nearest[:, 0])
        return ProxyClasses(classes, proxies).resolve(output)


class SinglePoint(Deferred):
    """Target: each image's own embedding, Bachhawat's single point proxy.

    Parameters
    ----------
    shared : Tensor of shape (dim,) or None, default=None
        A vector to subtract from the embedding.

    Examples
    --------
    >>> import torch
    >>> from sklcam.embeddings import SinglePoint
    >>> SinglePoint().resolve(torch.tensor([[3.0, 4.0]])).directions
    tensor([[[0.6000, 0.8000]]])
    """

    def __init__(self, shared: Tensor | None = None):
        self._shared = shared

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Directions:
        # Without a graph: the score is the inner product with the embedding's present value.
        own = normalized(output.detach())
        return EmbeddingDirections(
            own if self._shared is None else own - self._shared.to(output.device)
        )
