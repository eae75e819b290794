"""Targets of embedding networks: proxies, and the image itself.

A class is explained by its proxy: the score is the embedding's inner product with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from sklcam.cam.targets import Classes, Directions, Target, check_indices
from sklcam.networks.inputs import Inputs, Rows
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
            "finite, and have no direction: is the network dead, or its input not what it was "
            "trained on?"
        )
    return embeddings / lengths


def cosines(embeddings: Tensor, proxies: Tensor) -> Tensor:
    """Return the cosines (n_images, n_classes) of embeddings (n_images, dim) and proxies."""
    proxies = proxies.to(embeddings.device)
    return F.normalize(at_least_float32(embeddings), dim=1) @ F.normalize(proxies, dim=1).T


class ProxyClasses(Classes):
    """Target: given classes, each by its proxy.

    Parameters
    ----------
    indices : Tensor of shape (n_images,) or (n_images, k), int64
    proxies : Tensor of shape (n_classes, dim)
        The directions that are explained.
    """

    def __init__(self, indices: Tensor, proxies: Tensor):
        super().__init__(indices)
        self._proxies = proxies

    def take(self, rows: slice) -> ProxyClasses:
        return ProxyClasses(self._given(self.indices[rows]), self._proxies)

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> ProxyClasses:
        check_indices(self.indices, len(self._proxies))
        resolved = ProxyClasses(self._given(self.indices.to(output.device)), self._proxies)
        resolved.directions = self._proxies.to(output.device)[resolved.indices]
        return resolved

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        assert self.directions is not None  # a target is resolved before it is scored
        directions = self.directions if rows is None else self.directions[rows]
        return (output[:, None] * directions.to(output.dtype)).sum(dim=2)


@dataclass(frozen=True, eq=False)
class NearestProxies(Target):
    """Target: the proxies that are the nearest to each embedding by cosine, the nearest first.

    Parameters
    ----------
    proxies : Tensor of shape (n_classes, dim)
    n_nearest : int or None, default=None
        How many; None is one, without an axis of its own.
    shared : Tensor of shape (dim,) or None, default=None
        What is taken off each of them once they are found.

    Examples
    --------
    >>> import torch
    >>> from sklcam.embeddings import NearestProxies
    >>> proxies = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> NearestProxies(proxies).resolve(torch.tensor([[3.0, 4.0]])).directions
    tensor([[[0., 1.]]])
    """

    names_classes = True
    proxies: Tensor
    n_nearest: int | None = None
    shared: Tensor | None = None

    @property
    def several(self) -> bool:  # type: ignore[override]
        return self.n_nearest is not None

    @property
    def k(self) -> int:  # type: ignore[override]
        return self.n_nearest or 1

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> ProxyClasses:
        nearest = cosines(output, self.proxies).topk(self.k, dim=1).indices
        proxies = self.proxies if self.shared is None else self.proxies - self.shared
        indices = nearest if self.several else nearest[:, 0]
        return ProxyClasses(indices, proxies).resolve(output)

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        return self.resolve(output).scores(output)


@dataclass(frozen=True, eq=False)
class SinglePoint(Target):
    """Target: each image's own embedding, Bachhawat's single point proxy.

    Parameters
    ----------
    shared : Tensor of shape (dim,) or None, default=None
        What is taken off it.

    Examples
    --------
    >>> import torch
    >>> from sklcam.embeddings import SinglePoint
    >>> SinglePoint().resolve(torch.tensor([[3.0, 4.0]])).directions
    tensor([[[0.6000, 0.8000]]])
    """

    shared: Tensor | None = None

    def resolve(self, output: Tensor, inputs: Inputs | None = None) -> Directions:
        own = normalized(output.detach())
        return Directions(own if self.shared is None else own - self.shared.to(output.device))

    def scores(self, output: Tensor, inputs: Inputs | None = None, rows: Rows = None) -> Tensor:
        return self.resolve(output).scores(output)
