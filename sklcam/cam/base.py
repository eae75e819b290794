"""The base classes of all methods.

A method is a small object that holds its options. It receives a :class:`RecordedPass`, a batch that
has run through the network once, and returns raw maps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from sklcam._validation import check_count, check_number, check_tensor, describe
from sklcam.cam.maps import weighted_sum
from sklcam.cam.recorded import RecordedPass
from sklcam.cam.rules import BackwardRule
from sklcam.networks.attention import AttentionRecord
from sklcam.networks.precision import at_least_float32
from sklcam.networks.tape import differentiate


class Method(BaseEstimator, ABC):
    """Base class of explanation methods, which turn a recorded pass into raw maps.

    To write your own method, derive from :class:`GradientMethod` or :class:`WeightedGradientMethod`
    if it uses one gradient, from :class:`ChannelMethod` if it weights channels in another way, and
    from this class otherwise.

    Attributes
    ----------
    graph : {"head", "images", None}
        How far back the method differentiates scores: see :class:`RecordedPass`.
    uses_layers : bool
        Whether the method uses layers at all.
    resumes : bool
        Whether the method reruns the part of the network after a layer.
    asks_another_question : bool
        Whether the method differentiates scores other than the target's: see
        :meth:`RecordedPass.asked`.
    scaled : bool
        Whether the maps should be scaled to [0, 1]. Controls' maps are not.
    keeps_channels : bool
        Whether there is a map for each channel of the image.
    at_layer : bool
        Whether the maps are at the resolution of a layer. By default this is so for methods that
        use layers.

    Examples
    --------
    A method that needs no gradients and only one pass: the mean of the channels, for any class.

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
    asks_another_question: ClassVar[bool] = False

    @property
    def scaled(self) -> bool:
        return True

    @property
    def keeps_channels(self) -> bool:
        return False

    @property
    def at_layer(self) -> bool:
        return self.uses_layers

    def check(self) -> None:
        """Raise a ValueError for options that are out of range, before any work is done."""

    def rule(self) -> BackwardRule | AttentionRecord | None:
        """Return the rule for the backward pass, or the record of attention, or None.

        A rule or a record changes the pass, so no other method can share it.
        """
        return None

    @abstractmethod
    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        """Return raw maps.

        Parameters
        ----------
        recorded : RecordedPass

        Returns
        -------
        list of Tensor of shape (n_images, k, u, v)
            One tensor per layer, at the layer's resolution, or a single tensor if the method does
            not use layers. float32, or float64 if the network computes in float64.
        """


class ChannelMethod(Method):
    """A method whose map is a weighted sum of channels: implement ``channel_weights``.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.

    Examples
    --------
    All channels count the same, for any class:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.cam import ChannelMethod
    >>> class EvenCAM(ChannelMethod):
    ...     def channel_weights(self, recorded):
    ...         n_channels = recorded.grid(0).shape[1]
    ...         return [torch.ones(*recorded.scores.shape, n_channels)]
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, method=EvenCAM, target_layer="0", verbose=0).fit()
    >>> explainer.explain(torch.tensor([[[[0.0, 2.0]], [[1.0, 3.0]]]]), normalize=False)
    array([[[1., 5.]]], dtype=float32)
    """

    def __init__(self, relu: bool = True):
        self.relu = relu

    @abstractmethod
    def channel_weights(self, recorded: RecordedPass) -> list[Tensor]:
        """Return the weight of each channel.

        Parameters
        ----------
        recorded : RecordedPass

        Returns
        -------
        list of Tensor of shape (n_images, k, K)
            One tensor per layer.
        """

    def explain(self, recorded: RecordedPass) -> list[Tensor]:
        return recorded.weighted_maps(self.channel_weights(recorded), relu=self.relu)


class GradientMethod(Method):
    """A method that combines a layer's activations with the gradient of a score at that layer.

    A subclass implements :meth:`combine`. This class takes care of the gradient, the layer's layout
    and the optional ReLU.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.

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
        return recorded.for_each_score(
            lambda column: [
                self._finish(self.combine(recorded.grid(layer), gradients))
                for layer, gradients in enumerate(recorded.gradient_grids(column))
            ]
        )

    def _finish(self, maps: Tensor) -> Tensor:
        return maps.relu() if self.relu else maps

    def __call__(
        self,
        scores: Tensor,
        activations: Tensor,
        *,
        to_grid: Callable[[Tensor], Tensor] | None = None,
        create_graph: bool = False,
        factor: float = 1.0,
    ) -> Tensor:
        """Return raw maps at the layer's resolution, for your own training loops.

        Parameters
        ----------
        scores : Tensor of shape (n_images,)
            One score per image, with a graph that reaches ``activations``.
        activations : Tensor
            As :func:`sklcam.networks.record` recorded them, in the layer's own layout.
        to_grid : callable or None
            Brings activations and gradients to shape (n_images, K, u, v). None if they already have
            this shape.
        create_graph : bool, default=False
            Whether the maps can be differentiated, for training. If True, the graph of ``scores``
            is kept; otherwise it is freed.
        factor : float, default=1.0
            The factor by which the scores were multiplied so that gradients do not underflow in
            half precision. The gradients are divided by it once they are float32.

        Returns
        -------
        Tensor of shape (n_images, u, v)
            float32, or float64 if the activations are.
        """
        self.check()
        if self.rule() is not None:
            raise ValueError(
                f"{self!r} changes the backward pass, which must be set up while the network runs, "
                "but the network has already run. Use the explain method of an explainer, or "
                "sklcam.cam.RecordedPass."
            )
        check_tensor("scores", scores, "n_images")
        if not (isinstance(activations, Tensor) and activations.requires_grad):
            raise ValueError(
                "activations must be a Tensor with a gradient, as sklcam.networks.record records "
                f"them; got {describe(activations)}."
            )
        if not scores.requires_grad:
            raise ValueError(
                "scores have no graph. Compute them from the network's output in the pass that "
                "sklcam.networks.record recorded, without detach() or no_grad()."
            )
        # Differentiate with respect to the activations, not the parameters, so that a second
        # derivative passes only through the head.
        (gradients,) = differentiate(
            scores, [activations], ["the target layer"], create_graph=create_graph
        )
        with torch.set_grad_enabled(create_graph):
            grids = (activations, gradients)
            if to_grid is not None:
                grids = (to_grid(activations), to_grid(gradients))
            activations, gradients = (at_least_float32(grid) for grid in grids)
            if factor != 1:
                gradients = gradients / factor
            return self._finish(self.combine(activations, gradients))


class WeightedGradientMethod(ChannelMethod, GradientMethod):
    """A gradient method that weights channels: implement ``weights``.

    Parameters
    ----------
    relu : bool, default=True
        Whether to set negative evidence to zero.

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
        # channel_weights needs a recorded pass, which training does not have.
        weights = self.weights(activations, gradients)
        return weighted_sum(weights.unsqueeze(1), activations, relu=False).squeeze(1)

    def channel_weights(self, recorded: RecordedPass) -> list[Tensor]:
        return recorded.for_each_score(
            lambda column: [
                self.weights(recorded.grid(layer), gradients)
                for layer, gradients in enumerate(recorded.gradient_grids(column))
            ]
        )


RandomState = int | np.random.RandomState | None

# The number of pixels of changed images that go through a network at a time: 10 images of 224 x 224
# on a CPU, as its caches hold no more, and 83 elsewhere.
_PIXELS_ON_CPU, _PIXELS_ELSEWHERE = 2**19, 2**22


def batch_size_for(images: Tensor, batch_size: int | None) -> int:
    """Return the batch size for changed images, which depends on their pixels if it is None."""
    if batch_size is not None:
        return batch_size
    pixels = _PIXELS_ON_CPU if images.device.type == "cpu" else _PIXELS_ELSEWHERE
    return max(1, pixels // math.prod(images.shape[2:]))


def check_batch_size(batch_size: int | None) -> None:
    """Raise a ValueError unless the batch size is None or at least 1."""
    if batch_size is not None:
        check_count("batch_size", batch_size)


def check_noise(n_samples: int, std: float) -> None:
    """Raise a ValueError unless there is a sample and the standard deviation is a number >= 0."""
    check_count("n_samples", n_samples)
    check_number("std", std, 0)
