"""What every method shares: what it is given, and how its raw maps become those that people see.

A method is a small object that holds its options. It is given a :class:`Subject`, one batch that
has been through the network once, and returns raw maps.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor, nn
from torch.nn import functional as F

from sklcam.arguments import (
    check_count,
    check_map,
    check_number,
    check_size,
    check_tensor,
    describe,
)
from sklcam.cam.rules import ReluRule
from sklcam.cam.targets import Target, resolve_target, target_scores
from sklcam.folding import ManyRuns, is_out_of_memory, learn_many_runs
from sklcam.inputs import Inputs, Rows, images_of, with_images
from sklcam.models import TargetLayer
from sklcam.tape import Trunk, record, record_trunk


class Subject:
    """One batch, run through a network once, and what a method may ask about it.

    Parameters
    ----------
    network : nn.Module
        Where the layers are.
    layers : sequence of TargetLayer
    inputs : Tensor of shape (n_images, channels, height, width), or mapping of names to tensors
        What the network is given.
    target : None, TopK, Tensor or callable, default=None
        What is explained, as of :func:`sklcam.cam.target_scores`.
    forward : callable or None
        Takes inputs and returns the output; None calls the network.
    image_input : str or None
        Which of several inputs is the image.
    graph : {"head", "images", None}, default="head"
        What scores can be differentiated to: the layers' activations, the images too, or nothing.
    rule : context manager or None
        Active during the forward pass that builds the graph.
    resumable : bool, default=False
        Whether the pass can be resumed at a layer.
    top_channels : int or None, default=None
        How many channels of a layer make a map, those with the highest weights; None is all.

    Attributes
    ----------
    output : Tensor
        The network's output.
    images : Tensor of shape (n_images, channels, height, width)
        As the network got them.
    activations : list of Tensor
        One per layer, in the layer's own layout.
    explained : Tensor or None
        What is explained, where the target is not a callable: class indices of shape (n_images, k),
        or directions (n_images, k, n_outputs), whose inner product with the output is the score.
    scores : Tensor of shape (n_images, k)
        Those of the classes or directions, or of the callable with k = 1.

    Raises
    ------
    AttributeError
        If the network has no layer of a target layer's name.
    RuntimeError
        If a layer does not run in the pass.
    TypeError
        If a layer's output is not a tensor.
    ValueError
        If the network is no nn.Module, a layer no TargetLayer, the inputs hold no images, ``graph``
        is not among these, or the target does not fit the output.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.cam import Subject
    >>> from sklcam.models import find_target_layer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images = torch.tensor([[[[0.0, 2.0]], [[3.0, 0.0]]]])
    >>> subject = Subject(network, [find_target_layer(network, "0")], images, torch.tensor([0]))
    >>> subject.scores
    tensor([[1.]], grad_fn=<...>)
    >>> subject.gradients(0)
    [tensor([[[[0.5000, 0.5000]],
             [[0.0000, 0.0000]]]])]
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[TargetLayer],
        inputs: Inputs,
        target: Target = None,
        *,
        forward: Callable[[Any], Tensor] | None = None,
        image_input: str | None = None,
        graph: Literal["head", "images"] | None = "head",
        rule: AbstractContextManager[Any] | None = None,
        resumable: bool = False,
        top_channels: int | None = None,
    ):
        if not isinstance(network, nn.Module):
            raise ValueError(f"network must be an nn.Module; got {describe(network)}.")
        for layer in layers:
            if not isinstance(layer, TargetLayer):
                raise ValueError(f"layers must be TargetLayers; got {describe(layer)}.")
        if graph not in ("head", "images", None):
            raise ValueError(f'graph must be "head", "images" or None; got {graph!r}.')
        self.network = network
        self.layers = list(layers)
        self.rule = rule
        self._forward = forward or network
        self._image_input = image_input
        self._inputs = inputs
        self._graph = graph
        self._trunks: list[Trunk] = []
        self._gradients: dict[int, list[Tensor]] = {}
        self._many_runs: ManyRuns | None = None
        self._top_channels = top_channels
        self.images = images_of(inputs, image_input).detach()
        self.output = self._record_fast(resumable)
        self._callable = target if callable(target) else None
        self.explained = None if callable(target) else resolve_target(self.output, target)
        with torch.set_grad_enabled(graph is not None):
            self.scores = at_least_float32(self.score(self.output))

    def _record_fast(self, resumable: bool) -> Tensor:
        """Run the pass in channels_last memory where that is faster and the network takes it."""
        if self._graph == "images" or not _is_faster_in_channels_last(self.images):
            return self._record(resumable)
        as_they_came = self.images
        try:
            self.images = as_they_came.contiguous(memory_format=torch.channels_last)
            return self._record(resumable)
        except RuntimeError as error:  # of a view, which looks at how the memory lies
            if is_out_of_memory(error):
                raise
            self.images = as_they_came
            return self._record(resumable)

    def _record(self, resumable: bool) -> Tensor:
        modules = [layer.of(self.network) for layer in self.layers]
        with ExitStack() as stack:
            if self._graph == "images":
                self.images = self.images.clone().requires_grad_()
            # Layers are cut off what lies before them, unless the way back leads on to the images.
            tape = stack.enter_context(
                record(
                    self.network,
                    *modules,
                    trunk=self._graph == "images",
                    head=self._graph is not None,
                )
            )
            if resumable:
                self._trunks = [
                    stack.enter_context(record_trunk(self.network, module)) for module in modules
                ]
            stack.enter_context(self.rule or nullcontext())
            output = self._forward(self._with_images(self.images))
            self.activations = [tape.of(module) for module in modules]
        return output

    def prepare_many_runs(self) -> None:
        """Make :meth:`run` faster, at the price of two passes: for methods that run it often."""
        if self._many_runs is not None:
            return
        row = slice(0, 1)  # one image tells as much as all
        self._many_runs = learn_many_runs(
            self._forward,
            lambda image: self._with_images(image, row),
            self.images[row],
            self.output[row],
        )
        self.images = self._many_runs.arrange(self.images)

    def _with_images(self, images: Tensor, rows: Rows = None) -> Inputs:
        return with_images(self._inputs, images, rows, self._image_input)

    @property
    def n_images(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.images.shape[-2], self.images.shape[-1]

    def grid(self, layer: int) -> Tensor:
        """Return a layer's activations as (n_images, K, u, v), without a graph."""
        activations = self.activations[layer].detach()
        return at_least_float32(self.layers[layer].to_grid(activations))

    def weighted_maps(self, weights: Sequence[Tensor], *, relu: bool) -> list[Tensor]:
        """Return the weighted sums of each layer's channels.

        Parameters
        ----------
        weights : sequence of Tensor of shape (n_images, k, K)
            One per layer.
        relu : bool
            Whether negative evidence is cut off.

        Returns
        -------
        list of Tensor of shape (n_images, k, u, v)
        """
        if self._top_channels is not None:
            weights = [keep_top(of_layer, self._top_channels) for of_layer in weights]
        return [
            weighted_sum(of_layer, self.grid(layer), relu=relu)
            for layer, of_layer in enumerate(weights)
        ]

    def score(self, output: Tensor, rows: Rows = None) -> Tensor:
        """Return the scores of an output of the network.

        Parameters
        ----------
        output : Tensor of shape (m, ...)
        rows : Tensor of shape (m,), slice or None
            Which image each row of the output belongs to; None if they are the batch itself.

        Returns
        -------
        Tensor of shape (m, k)
        """
        if self.explained is None:
            return target_scores(output, self._callable)[:, None]
        return target_scores(output, self.explained if rows is None else self.explained[rows])

    def run(self, images: Tensor, rows: Tensor | slice) -> Tensor:
        """Run the network on other images, without a graph.

        Parameters
        ----------
        images : Tensor of shape (m, channels, height, width)
        rows : Tensor of shape (m,) or slice
            Which image of the batch each stands for, where there are inputs beside the image.

        Returns
        -------
        Tensor of shape (m, ...)
        """
        folded = nullcontext() if self._many_runs is None else self._many_runs.folded
        with torch.no_grad(), folded:
            return self._forward(self._with_images(images, rows))

    def resume(
        self, layer: int, activations: Tensor, image: int, *, from_start: bool = False
    ) -> Tensor:
        """Run what follows a layer on other activations of one image, without a graph.

        Parameters
        ----------
        layer : int
        activations : Tensor of shape (m, ...)
            In the layer's own layout.
        image : int
        from_start : bool, default=False
            As in :meth:`sklcam.tape.Trunk.resumed`.

        Returns
        -------
        Tensor of shape (m, ...)
        """
        rows = torch.full((len(activations),), image, device=self.images.device)
        images = self.images[image : image + 1].expand(len(activations), -1, -1, -1)
        with self._trunks[layer].resumed(
            activations, image=image, n_images=self.n_images, from_start=from_start
        ):
            return self.run(images, rows)

    def on(self, images: Tensor) -> Subject:
        """Return the same question about other images, in a forward pass of their own."""
        target = self._callable if self.explained is None else self.explained
        inputs = self._with_images(images)
        return Subject(
            self.network,
            self.layers,
            inputs,
            target,
            forward=self._forward,
            image_input=self._image_input,
            graph=self._graph,
            rule=self.rule,
            top_channels=self._top_channels,
        )

    def gradients(
        self, column: int, *, of: Literal["layers", "images"] = "layers", keep: bool = False
    ) -> list[Tensor]:
        """Differentiate one column of the scores.

        Parameters
        ----------
        column : int
            Which of the k classes, in their order: the graph is freed with the last one.
        of : {"layers", "images"}, default="layers"
        keep : bool, default=False
            Keep the graph in any case.

        Returns
        -------
        list of Tensor
            With respect to each layer's activations, in its own layout; or to the images. Those of
            layers are kept, so that several methods can share them.
        """
        known = self._gradients.get(column) if of == "layers" else None
        if known is not None:
            return known
        is_last = column == self.scores.shape[1] - 1
        chosen = torch.zeros_like(self.scores)
        chosen[:, column] = 1
        gradients = list(
            torch.autograd.grad(
                self.scores,
                self.activations if of == "layers" else [self.images],
                chosen,
                retain_graph=keep or not is_last,
            )
        )
        if of == "layers":
            self._gradients[column] = gradients
        return gradients


class Method(BaseEstimator, ABC):
    """A way to explain: options in, raw maps out.

    A method of one's own derives from :class:`GradientMethod` or :class:`WeightedGradientMethod`
    where it is made of one gradient, and from this class otherwise.

    Attributes
    ----------
    graph : {"head", "images", None}
        What it differentiates to: see :class:`Subject`.
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
    ...     def explain(self, subject):
    ...         n_classes = subject.scores.shape[1]
    ...         return [
    ...             subject.grid(layer).mean(1, keepdim=True).expand(-1, n_classes, -1, -1)
    ...             for layer in range(len(subject.layers))
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

    def subject(
        self, network: nn.Module, layers: Sequence[TargetLayer], inputs: Inputs, **options: Any
    ) -> Subject:
        """Run a batch through the network, as the method needs it; parameters as `Subject`'s."""
        self.check()
        rule = self.rule()
        subject = Subject(
            network,
            layers if self.uses_layers else (),
            inputs,
            graph=self.graph,
            rule=rule,
            resumable=self.resumes,
            **options,
        )
        if isinstance(rule, ReluRule) and not rule.n_relus:
            warnings.warn(
                f"{self!r} changes what ReLUs hand back, but there is none on the way back; what "
                "comes out is the plain gradient. An earlier target layer may have some.",
                stacklevel=2,
            )
        return subject

    @abstractmethod
    def explain(self, subject: Subject) -> list[Tensor]:
        """Return raw maps.

        Parameters
        ----------
        subject : Subject

        Returns
        -------
        list of Tensor of shape (n_images, k, u, v)
            One per layer, at its resolution; a single one where layers are not used. float32, or
            float64 if the network computes in it.
        """

    def channel_weights(self, subject: Subject) -> list[Tensor]:
        """Return the weight of each channel.

        Parameters
        ----------
        subject : Subject

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


def keep_top(weights: Tensor, n_channels: int) -> Tensor:
    """Set all weights (n_images, k, K) but each row's highest, by their sign, to zero.

    Raises
    ------
    ValueError
        If there are fewer channels.
    """
    if n_channels > weights.shape[2]:
        raise ValueError(
            f"top_channels={n_channels} asks for more channels than the layer has: "
            f"{weights.shape[2]}."
        )
    highest = weights.topk(n_channels, dim=2)
    return torch.zeros_like(weights).scatter(2, highest.indices, highest.values)


def weighted_sum(weights: Tensor, activations: Tensor, *, relu: bool) -> Tensor:
    r"""Return :math:`\sum_k \alpha_k A_k`.

    Parameters
    ----------
    weights : Tensor of shape (n_images, k, K)
    activations : Tensor of shape (n_images, K, u, v)
    relu : bool
        Whether negative evidence is cut off.

    Returns
    -------
    Tensor of shape (n_images, k, u, v)
    """
    maps = torch.einsum("ncK,nKuv->ncuv", weights, activations)
    return maps.relu() if relu else maps


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

    def explain(self, subject: Subject) -> list[Tensor]:
        return _for_each_layer(subject, lambda *grids: self._finish(self.combine(*grids)))

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
            As :func:`sklcam.tape.record` recorded them, in the layer's own layout.
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
                "activations must be a Tensor with a gradient, as sklcam.tape.record records them; "
                f"got {describe(activations)}."
            )
        if not scores.requires_grad:
            raise ValueError(
                "scores have no graph; compute them from the network's output in the pass that "
                "sklcam.tape.record recorded, without detach() or no_grad()."
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

    def channel_weights(self, subject: Subject) -> list[Tensor]:
        return _for_each_layer(subject, self.weights)

    def explain(self, subject: Subject) -> list[Tensor]:
        return subject.weighted_maps(self.channel_weights(subject), relu=self.relu)


def _for_each_layer(subject: Subject, function: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Apply a function of activations and gradients; stack its results (n_images, k, ...)."""
    results: list[list[Tensor]] = [[] for _ in subject.layers]
    for column in range(subject.scores.shape[1]):
        for index, gradients in enumerate(subject.gradients(column)):
            grid = at_least_float32(subject.layers[index].to_grid(gradients))
            results[index].append(function(subject.grid(index), grid))
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

# From how many pixels in a batch on none of seven convolutional families was slower in
# channels_last on a CPU, to within 1 %; most were faster. With a quarter of it ResNets lose.
_PIXELS_TO_REARRANGE = 2**18


def _is_faster_in_channels_last(images: Tensor) -> bool:
    # On other devices it depends on the precision; there the images stay as they came.
    n_pixels = images.numel() // images.shape[1]
    return images.device.type == "cpu" and n_pixels >= _PIXELS_TO_REARRANGE


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


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return half-precision tensors as float32, others as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly (``align_corners=False``).

    Parameters
    ----------
    maps : Tensor of shape (..., u, v)
    size : tuple of two ints
        Height and width to reach.

    Returns
    -------
    Tensor of shape (..., height, width)

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (..., height, width), or a side is no
        positive int.

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import upsample
    >>> upsample(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    check_map("maps", maps)
    size = check_size(size, "size")
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return flat.reshape(*maps.shape[:-2], *size)


def min_max(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1] by its own minimum and maximum.

    Parameters
    ----------
    maps : Tensor of shape (..., height, width)

    Returns
    -------
    Tensor of the same shape
        A map that is constant, up to rounding, becomes all zeros and has a gradient of zero.

    Raises
    ------
    ValueError
        If the maps are not a floating-point tensor of shape (..., height, width).

    Examples
    --------
    >>> import torch
    >>> from sklcam.cam import min_max
    >>> min_max(torch.tensor([[[1.0, 3.0], [2.0, 1.0]], [[7.0, 7.0], [7.0, 7.0]]]))
    tensor([[[0.0000, 1.0000],
             [0.5000, 0.0000]],
    <BLANKLINE>
            [[0.0000, 0.0000],
             [0.0000, 0.0000]]])
    """
    check_map("maps", maps)
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    varies = high - low > rounding(low.detach(), high.detach())
    extent = torch.where(varies, high - low, 1.0)
    return torch.where(varies, (maps - low) / extent, 0.0)


def rounding(low: Tensor, high: Tensor) -> Tensor:
    """Return the spread that resizing a constant map can cause by rounding alone."""
    limits = torch.finfo(low.dtype)
    return 8 * limits.eps * torch.maximum(low.abs(), high.abs()) + limits.tiny
