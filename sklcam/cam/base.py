"""What every method shares.

A method is a small object that holds its options. It is given a :class:`RecordedPass`, one batch
that has been through the network once, and returns raw maps.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor, nn

from sklcam._validation import (
    check_count,
    check_number,
    check_tensor,
    describe,
)
from sklcam.cam.maps import at_least_float32, weighted_sum
from sklcam.cam.recorded import RecordedPass
from sklcam.cam.rules import ReluRule
from sklcam.networks.inputs import Inputs
from sklcam.networks.layers import TargetLayer


class Method(BaseEstimator, ABC):
    """A way to explain: options in, raw maps out.

    A method of one's own derives from :class:`GradientMethod` or :class:`WeightedGradientMethod`
    where it is made of one gradient, and from this class otherwise.

    Attributes
    ----------
    graph : {"head", "images", None}
        What it differentiates to: see :class:`RecordedPass`.
    uses_layers : bool
        Whether it looks at layers at all.
    resumes : bool
        Whether it runs what follows a layer again.
    scaled : bool
        Whether its maps are to be scaled to [0, 1]; those of controls are what they are.

    Examples
    --------
    A method that needs neither gradients nor more than one pass: the mean of the channels, whatever
    the class.

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import Method
    >>> class MeanActivation(Method):
    ...     def explain(self, recorded):
    ...         n_classes = recorded.scores.shape[1]
    ...         return [
    ...             recorded.grid(layer).mean(1, keepdim=True).expand(-1, n_classes, -1, -1)
    ...             for layer in range(len(recorded.layers))
    ...         ]
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=MeanActivation, target_layer="0", verbose=0).fit()
    >>> explainer.explain(torch.tensor([[[[0.0, 2.0]], [[1.0, 3.0]]]]))
    array([[[0., 1.]]], dtype=float32)
    """

    graph: ClassVar[Literal["head", "images"] | None] = None
    uses_layers: ClassVar[bool] = True
    resumes: ClassVar[bool] = False

    @property
    def scaled(self) -> bool:
        return True

    @property
    def weighs_channels(self) -> bool:
        """Whether a map is the weighted sum of a layer's channels."""
        return type(self).channel_weights is not Method.channel_weights

    def check(self) -> None:
        """Raise a ValueError for options that make no sense; before any work."""

    def rule(self) -> AbstractContextManager[Any] | None:
        """Return what is to be active while the graph is built, if anything."""
        return None

    def record(
        self, network: nn.Module, layers: Sequence[TargetLayer], inputs: Inputs, **options: Any
    ) -> RecordedPass:
        """Run a batch through the network, as this method needs it.

        Parameters
        ----------
        network, layers, inputs, **options
            See :class:`RecordedPass`.

        Returns
        -------
        RecordedPass
        """
        return record_for([self], network, layers, inputs, **options)

    @abstractmethod
    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        """Return raw maps.

        Parameters
        ----------
        recorded : RecordedPass

        Returns
        -------
        list of Tensor of shape (n_images, k, u, v)
            One per layer, at its resolution; a single one where layers are not used. float32, or
            float64 if the network computes in it.
        """

    def channel_weights(self, recorded: RecordedPass) -> list[Tensor]:
        """Return the weight of each channel.

        Parameters
        ----------
        recorded : RecordedPass

        Returns
        -------
        list of Tensor of shape (n_images, k, K)
            One per layer.

        Raises
        ------
        ValueError
            If the method does not weigh channels.
        """
        raise ValueError(
            f"{type(self).__name__} does not weigh channels as a whole; GradCAM, XGradCAM, "
            "GradCAMPlusPlus, ScoreCAM and AblationCAM do."
        )


class GradientMethod(Method):
    """A method made of a layer's activations and the gradient of a score with respect to them.

    A subclass writes :meth:`combine`; taking the gradient, the layer's layout and the optional ReLU
    are dealt with here.

    Parameters
    ----------
    relu : bool, default=True
        Whether negative evidence is cut off.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import GradientMethod
    >>> class GradientSize(GradientMethod):
    ...     def combine(self, activations, gradients):
    ...         return gradients.norm(dim=1)
    >>> activations = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]], requires_grad=True)
    >>> scores = (activations**2).sum((1, 2, 3))
    >>> GradientSize()(scores, activations)
    tensor([[[2.0000, 4.4721]]])
    """

    graph = "head"

    def __init__(self, relu: bool = True):
        self.relu = relu

    @abstractmethod
    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Turn activations and gradients, both (n_images, K, u, v), into maps (n_images, u, v)."""

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        return _for_each_layer(recorded, lambda *grids: self._finish(self.combine(*grids)))

    def _finish(self, maps: Tensor) -> Tensor:
        return maps.relu() if self.relu else maps

    def __call__(
        self,
        scores: Tensor,
        activations: Tensor,
        *,
        to_grid: Callable[[Tensor], Tensor] | None = None,
        create_graph: bool = False,
    ) -> Tensor:
        """Return raw maps at the layer's resolution, for training loops of one's own.

        Parameters
        ----------
        scores : Tensor of shape (n_images,)
            One per image, with a graph that reaches ``activations``.
        activations : Tensor
            As :func:`sklcam.networks.record` recorded them, in the layer's own layout.
        to_grid : callable or None
            Brings activations and gradients to shape (n_images, K, u, v); None if they have it.
        create_graph : bool, default=False
            Whether the maps can be differentiated, for training. The graph of ``scores`` is kept
            then, and freed otherwise.

        Returns
        -------
        Tensor of shape (n_images, u, v)
            float32, or float64 if the activations are.
        """
        check_tensor("scores", scores, "n_images")
        if not (isinstance(activations, Tensor) and activations.requires_grad):
            raise ValueError(
                "activations must be a Tensor with a gradient, as sklcam.networks.record records them; "
                f"got {describe(activations)}."
            )
        if not scores.requires_grad:
            raise ValueError(
                "scores have no graph; compute them from the network's output in the pass that "
                "sklcam.networks.record recorded, without detach() or no_grad()."
            )
        (gradients,) = torch.autograd.grad(scores.sum(), activations, create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            grids = (activations, gradients)
            if to_grid is not None:
                grids = (to_grid(activations), to_grid(gradients))
            return self._finish(self.combine(*(at_least_float32(grid) for grid in grids)))


class WeightedGradientMethod(GradientMethod):
    """A gradient method that weighs channels: a subclass writes ``weights``.

    Parameters
    ----------
    relu : bool, default=True
        Whether negative evidence is cut off.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import WeightedGradientMethod
    >>> class MedianCAM(WeightedGradientMethod):
    ...     def weights(self, activations, gradients):
    ...         return gradients.flatten(2).median(dim=2).values
    >>> activations = torch.tensor([[[[1.0, 2.0, 3.0]]]], requires_grad=True)
    >>> MedianCAM()((activations**2).sum((1, 2, 3)), activations)
    tensor([[[ 4.,  8., 12.]]])
    """

    @abstractmethod
    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Return weights (n_images, K) from activations and gradients (n_images, K, u, v)."""

    def combine(self, activations: Tensor, gradients: Tensor) -> Tensor:
        weights = self.weights(activations, gradients)
        return weighted_sum(weights[:, None], activations, relu=False)[:, 0]

    def channel_weights(self, recorded: RecordedPass) -> list[Tensor]:
        return _for_each_layer(recorded, self.weights)

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        return recorded.weighted_maps(self.channel_weights(recorded), relu=self.relu)


def sharing_a_pass(methods: Sequence[Method]) -> list[list[int]]:
    """Group methods, by their positions, so that those of a group can share a forward pass.

    A rule changes what a pass hands back, so that a method with one needs a pass of its own. All
    others differ only in how much of the graph they need.
    """
    with_rule = [i for i, method in enumerate(methods) if method.rule() is not None]
    plain = [i for i in range(len(methods)) if i not in with_rule]
    # Those that need the graph come first: it is freed before the others run the network often.
    plain.sort(key=lambda i: methods[i].graph is None)
    return [*([plain] if plain else []), *([i] for i in with_rule)]


def record_for(
    methods: Sequence[Method],
    network: nn.Module,
    layers: Sequence[TargetLayer],
    inputs: Inputs,
    **options: Any,
) -> RecordedPass:
    """Run a batch through the network once, as all of these methods need it."""
    for method in methods:
        method.check()
    graphs = {method.graph for method in methods}
    rule = methods[0].rule() if len(methods) == 1 else None
    recorded = RecordedPass(
        network,
        layers if any(method.uses_layers for method in methods) else (),
        inputs,
        graph="images" if "images" in graphs else "head" if "head" in graphs else None,
        rule=rule,
        resumable=any(method.resumes for method in methods),
        keep_graph=len(methods) > 1 and "images" in graphs,
        **options,
    )
    if isinstance(rule, ReluRule) and not rule.n_relus:
        warnings.warn(
            f"{methods[0]!r} changes what ReLUs hand back, but there is none on the way back; what "
            "comes out is the plain gradient. An earlier target layer may have some.",
            stacklevel=2,
        )
    return recorded


def _for_each_layer(
    recorded: RecordedPass, function: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """Apply a function of activations and gradients; stack its results (n_images, k, ...)."""
    results: list[list[Tensor]] = [[] for _ in recorded.layers]
    for column in range(recorded.scores.shape[1]):
        for index, gradients in enumerate(recorded.gradients(column)):
            grid = at_least_float32(recorded.layers[index].to_grid(gradients))
            results[index].append(function(recorded.grid(index), grid))
    return [torch.stack(of_layer, dim=1) for of_layer in results]


def draw_seed(random_state: Any) -> int:
    """Return a seed that several may start from, so that they draw the same; an int is one."""
    generator = check_random_state(random_state)
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(generator.randint(np.iinfo(np.int32).max))


# Pixels of changed images that go through a network at a time: 10 images of 224 x 224 on a CPU,
# whose caches hold no more, and 83 elsewhere.
_PIXELS_ON_CPU, _PIXELS_ELSEWHERE = 2**19, 2**22


def batch_size_for(images: Tensor, batch_size: int | None) -> int:
    """Return how many changed images go through a network at a time, if that is left open."""
    if batch_size is not None:
        return batch_size
    pixels = _PIXELS_ON_CPU if images.device.type == "cpu" else _PIXELS_ELSEWHERE
    return max(1, pixels // (images.shape[-2] * images.shape[-1]))


def check_batch_size(batch_size: int | None) -> None:
    """Raise a ValueError unless a batch can hold something."""
    if batch_size is not None:
        check_count("batch_size", batch_size)


def check_noise(n_samples: int, std: float) -> None:
    """Raise a ValueError unless there are samples, and their deviation is a number >= 0."""
    check_count("n_samples", n_samples)
    check_number("std", std, 0)
