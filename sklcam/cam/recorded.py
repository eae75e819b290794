"""A batch that has run through a network once, and everything that a method needs from the run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn

from sklcam._validation import describe
from sklcam.cam.asked import as_target
from sklcam.cam.maps import keep_top, min_max, upsample, upsample_within, weighted_sum
from sklcam.cam.rules import BackwardRule, ExcitationRule
from sklcam.cam.targets import Target, check_scores
from sklcam.networks.attention import AttentionRecord
from sklcam.networks.dry_run import left_as_found
from sklcam.networks.heads import Head, trace_head
from sklcam.networks.inference import (
    InferencePlan,
    is_faster_in_channels_last,
    is_out_of_memory,
    plan_inference,
)
from sklcam.networks.inputs import Inputs, Rows
from sklcam.networks.layers import TargetLayer
from sklcam.networks.precision import at_least_float32
from sklcam.networks.prefix_rows import shorter_backward
from sklcam.networks.tape import differentiate, differentiate_in_float16, record
from sklcam.networks.trunk import Trunk, record_trunk


class RecordedPass:
    """A batch that has run through a network once, and everything that a method needs from the run.

    Parameters
    ----------
    network : nn.Module
        The network that contains the layers.
    layers : sequence of TargetLayer
    inputs : Inputs, or Tensor of shape (n_images, channels, height, width)
        The network's inputs.
    target : None, Target such as TopK, Tensor or callable, default=None
        The score to explain; see :func:`sklcam.cam.target_scores`.
    forward : callable or None
        Takes Inputs and returns the output. None calls the network.
    graph : {"head", "images", None}, default="head"
        How far back scores can be differentiated: to the layers' activations, to the images too,
        or not at all.
    rule : BackwardRule, AttentionRecord or None, default=None
        Changes the backward pass through certain functions, or records attention.
    resumable : bool, default=False
        Whether the pass can be resumed at a layer.
    keep_graph : bool, default=False
        Whether to keep the graph after the last column's gradient, for methods that share the pass.
    top_channels : int or None, default=None
        The number of channels of a layer that make up a map: the channels with the highest
        weights. None uses all channels.
    extent : tuple of (float, float), default=(1.0, 1.0)
        The fractions of a layer's rows and columns, from the top left, that cover the images. They
        are below 1 if the network pads the images.
    probabilities : callable or None, default=None
        Turns an output into probabilities, for methods that ask how sure the network is. None
        makes such methods use the scores.
    autocast : torch.dtype or None, default=None
        The dtype in which ``forward`` runs the network. None is the network's own. Under autocast,
        output, images and activations may still be float32.

    Attributes
    ----------
    output : Tensor
        The network's output.
    images : Tensor of shape (n_images, channels, height, width)
        The images as the network received them.
    activations : list of Tensor
        One tensor per layer, in the layer's own layout.
    inputs : Inputs
        The network's inputs.
    target : Target
        The resolved target.
    scores : Tensor of shape (n_images, k)

    Raises
    ------
    AttributeError
        If the network has no layer with a target layer's name.
    RuntimeError
        If a layer does not run in the pass.
    TypeError
        If a layer's output is not a tensor.
    ValueError
        If the network is not an nn.Module, the inputs hold no images, ``graph`` is not one of its
        options, or the target does not fit the output. If a layer is not a TargetLayer, does not
        return one row per image, or runs several times without saying which run counts. When a
        gradient is requested, if the scores do not depend on the layer.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.cam import RecordedPass
    >>> from sklcam.networks import find_target_layer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images = torch.tensor([[[[0.0, 2.0]], [[3.0, 0.0]]]])
    >>> layer = find_target_layer(network, "0", sample=images)
    >>> recorded = RecordedPass(network, [layer], images, torch.tensor([0]))
    >>> recorded.scores
    tensor([[1.]], grad_fn=<...>)
    >>> recorded.gradients(0)
    [tensor([[[[0.5000, 0.5000]],
             [[0.0000, 0.0000]]]])]
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[TargetLayer],
        inputs: Inputs | Tensor,
        target: Target | Tensor | Callable[..., Tensor] | None = None,
        *,
        forward: Callable[[Inputs], Tensor] | None = None,
        graph: Literal["head", "images"] | None = "head",
        rule: BackwardRule | AttentionRecord | None = None,
        resumable: bool = False,
        keep_graph: bool = False,
        top_channels: int | None = None,
        extent: tuple[float, float] = (1.0, 1.0),
        probabilities: Callable[[Tensor], Tensor] | None = None,
        autocast: torch.dtype | None = None,
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
        self.inputs = Inputs.of(inputs)
        self._forward = forward or (lambda inputs: inputs.call(network))
        self._graph = graph
        self._keep_graph = keep_graph
        self._trunks: list[Trunk] = []
        self._gradients: dict[int, list[Tensor]] = {}
        self._inference_plan: InferencePlan | None = None
        self._top_channels = top_channels
        self._extent = extent
        self._probabilities = probabilities
        self._autocast = autocast
        self.images = self.inputs.images.detach()
        self.output = self._record_fast(resumable)
        # Gradients are taken with respect to these. prepare_inference changes the memory format of
        # self.images.
        self._recorded_images = self.images
        # Methods lay out their maps by the resolved target, explainers by the target they gave.
        asked = as_target(target)
        self.target = asked.resolve(self.output, self.inputs)
        # The number of detected objects is only known now.
        k = self.target.k if asked.ragged else asked.k
        if (asked.several, k) != (self.target.several, self.target.k):
            raise ValueError(
                f"{type(asked).__name__} has several={asked.several} and k={asked.k}, but resolves "
                f"to a target with several={self.target.several} and k={self.target.k}. Both must "
                "agree: set several and k on the class."
            )
        with torch.set_grad_enabled(graph is not None):
            self.scores = self.score(self.output)

    def _record_fast(self, resumable: bool) -> Tensor:
        """Run the pass in channels_last memory if that is faster and the network supports it."""
        if self._graph == "images" or not is_faster_in_channels_last(self.images):
            return self._record(resumable)
        as_they_came = self.images
        # Values and shapes are the same; only the order in memory differs. A network that calls
        # `view` may fail on it. The pass then runs on the images in their original order.
        try:
            self.images = as_they_came.contiguous(memory_format=torch.channels_last)
            return self._record(resumable)
        except RuntimeError as error:  # such as that of view, which depends on the memory layout
            if is_out_of_memory(error):
                raise
            self.images = as_they_came
            return self._record(resumable)

    def _record(self, resumable: bool) -> Tensor:
        # The graph starts at the layers, unless the backward pass continues to the images.
        trunk = self._graph == "images" or self.network in _TURN_GRADIENTS_OFF
        with ExitStack() as stack:
            if self._graph == "images":
                # A copy, as the images belong to the caller and may be part of a graph.
                self.images = self.images.clone().requires_grad_()
            head = self._graph is not None
            kind = {"trunk": trunk and head, "head": head, "twice": False}
            tape = stack.enter_context(record(self.network, *self.layers, **kind))
            # Record the trunk before each layer, as an image can be ablated at any layer.
            if resumable:
                self._trunks = [
                    stack.enter_context(record_trunk(self.network, layer)) for layer in self.layers
                ]
            if isinstance(self.rule, AttentionRecord):
                stack.enter_context(self.rule.around(self.network, self.layers[0].n_prefix))
            stack.enter_context(self.rule or nullcontext())
            stack.enter_context(self._backward_context())
            output = self._forward(self.inputs.with_images(self.images))
            self.activations = [tape.of(layer) for layer in self.layers]
        if self._graph == "head" and self.layers and not (trunk or output.requires_grad):
            # The layer lies within no_grad(). Gradients were turned on there, but leaving no_grad()
            # restored the state from before it: off. They must be on from the start.
            _TURN_GRADIENTS_OFF.add(self.network)
            return self._record(resumable)
        for layer, activations in zip(self.layers, self.activations, strict=True):
            layer.check_images(self.size)
            # Raises an error if rows are not images, or a grid has fewer spatial axes than images.
            layer.check_axes(layer.to_grid(activations.detach(), self.n_images), self.size)
        return output

    def _backward_context(self) -> AbstractContextManager[None]:
        """Return the context for forward and backward passes: a shorter backward pass if exact."""
        is_ruled = isinstance(self.rule, BackwardRule)
        is_to_images = self._graph == "images" and self.rule is None
        if self._graph is None or is_to_images or is_ruled or len(self.layers) != 1:
            return nullcontext()
        if isinstance(self.rule, AttentionRecord) and self.rule.first_rows is not None:
            return nullcontext()  # its own backward pass is shorter still
        return shorter_backward(self.network, self.layers[0])

    def prepare_inference(self) -> None:
        """Make :meth:`run` faster at the cost of two passes, for methods that call it often."""
        if self._inference_plan is not None:
            return
        row = slice(0, 1)  # one image is enough to decide
        self._inference_plan = plan_inference(
            self._forward,
            lambda image: self.inputs.with_images(image, row),
            self.images[row],
            self.output[row],
            is_half=self.is_half,
        )
        self.images = self._inference_plan.arrange(self.images.detach())

    @property
    def is_half(self) -> bool:
        """Whether the network computes in half precision, with about three significant digits."""
        dtypes = {each.dtype for each in (self.output, *self.activations)}
        return self._autocast is not None or not dtypes <= {torch.float32, torch.float64}

    @property
    def n_images(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the images, or depth, height and width of volumes."""
        return self.inputs.size

    def scaled(self, maps: Tensor) -> Tensor:
        """Scale maps of these images to [0, 1], each by its minimum and maximum."""
        return min_max(maps, len(self.size))

    def grid(self, layer: int) -> Tensor:
        """Return a layer's activations as (n_images, K, u, v), without a graph."""
        activations = self.activations[layer].detach()
        return at_least_float32(self.layers[layer].to_grid(activations))

    def upsample(self, maps: Tensor, *, of_layer: bool = True) -> Tensor:
        """Resize maps (n, k, u, v) to the size of the images, aligned with them.

        ``of_layer=False`` is for maps of pixels, which are aligned already. A layer's grid may have
        as many rows and columns as the images and still cover more than the images, so the shape
        alone does not tell.
        """
        if self._extent == (1.0, 1.0) or not of_layer:
            return upsample(maps, self.size)
        return upsample_within(maps, self.size, self._extent)

    def gradient_grids(self, column: int, *, keep: bool = False) -> list[Tensor]:
        """Return the gradients of :meth:`gradients` as (n_images, K, u, v), one per layer."""
        return [
            at_least_float32(layer.to_grid(gradients))
            for layer, gradients in zip(self.layers, self.gradients(column, keep=keep), strict=True)
        ]

    def for_each_score(self, function: Callable[[int], list[Tensor]]) -> list[Tensor]:
        """Call a function for each column of the scores and stack its results.

        Parameters
        ----------
        function : callable
            Takes the column's index and returns a tensor (n_images, ...) per layer.

        Returns
        -------
        list of Tensor of shape (n_images, k, ...)
            One tensor per layer.
        """
        columns = [function(column) for column in range(self.scores.shape[1])]
        return [torch.stack(layer, dim=1) for layer in zip(*columns, strict=True)]

    def weighted_maps(self, weights: Sequence[Tensor], *, relu: bool) -> list[Tensor]:
        """Return the weighted sums of each layer's channels.

        Parameters
        ----------
        weights : sequence of Tensor of shape (n_images, k, K)
            One tensor per layer.
        relu : bool
            Whether to set negative sums to zero.

        Returns
        -------
        list of Tensor of shape (n_images, k, u, v)
        """
        if self._top_channels is not None:
            weights = [keep_top(each, self._top_channels) for each in weights]
        return [
            weighted_sum(each, self.grid(layer), relu=relu) for layer, each in enumerate(weights)
        ]

    def score(self, output: Tensor, rows: Rows = None) -> Tensor:
        """Return the target's scores for an output of the network.

        Parameters
        ----------
        output : Tensor of shape (m, ...)
        rows : Tensor of shape (m,), slice or None
            The image that each row of the output belongs to. None if the rows are the batch itself.

        Returns
        -------
        Tensor of shape (m, k)
            float32, or float64 if the network computes in float64.
        """
        scores = self.target.scores(output, self.inputs, rows)
        name, shape = f"{type(self.target).__name__}.scores", (len(output), self.target.k)
        scores = check_scores(name, scores, shape, differentiable=output.requires_grad)
        return at_least_float32(scores)

    def confidence(self, output: Tensor, rows: Rows = None) -> Tensor:
        """Return how sure an output is of the target, without a graph.

        Parameters
        ----------
        output, rows
            See :meth:`score`.

        Returns
        -------
        Tensor of shape (m, k)
            Probabilities in [0, 1], or the scores if the target has no probabilities.
        """
        with torch.no_grad():
            if self._probabilities is not None and self.target.has_probabilities:
                return self.target.scores(self._probabilities(output), self.inputs, rows)
            return self.score(output, rows)

    def run(self, images: Tensor, rows: Tensor | slice) -> Tensor:
        """Run the network on other images, without a graph.

        Parameters
        ----------
        images : Tensor of shape (m, channels, height, width)
        rows : Tensor of shape (m,) or slice
            The image of the batch that each of them stands for. It selects the other inputs, if
            there are any.

        Returns
        -------
        Tensor of shape (m, ...)
        """
        folded = nullcontext() if self._inference_plan is None else self._inference_plan.folded
        with torch.no_grad(), folded:
            return self._forward(self.inputs.with_images(images, rows))

    def resume(
        self, layer: int, activations: Tensor, image: int, *, from_start: bool = False
    ) -> Tensor:
        """Run the part after a layer on other activations of one image, without a graph.

        Parameters
        ----------
        layer : int
        activations : Tensor of shape (m, ...)
            In the layer's own layout.
        image : int
        from_start : bool, default=False
            See :meth:`sklcam.networks.Trunk.resumed`.

        Returns
        -------
        Tensor of shape (m, ...)
        """
        rows = torch.full((len(activations),), image, device=self.images.device)
        # The network is called with one image per variant. They are views: nothing is copied.
        images = self.images[image : image + 1].expand(len(activations), *self.images.shape[1:])
        with self._trunks[layer].resumed(
            activations, image=image, n_images=self.n_images, from_start=from_start
        ):
            return self.run(images, rows)

    def head(self, layer: int) -> Head | None:
        """Trace how the scores follow from a layer, to ablate channels without resuming the pass.

        Parameters
        ----------
        layer : int

        Returns
        -------
        Head or None
            None if resuming cannot be avoided. See ``sklcam.networks.heads.trace_head``.
        """
        activations = self.activations[layer].detach()
        axis = self.layers[layer].channel_axis(activations)
        return trace_head(lambda given: self.scores_of_batch(layer, given), activations, axis)

    def scores_of_batch(self, layer: int, activations: Tensor) -> Tensor:
        """Run the part after a layer on other activations of the whole batch.

        Parameters
        ----------
        layer : int
        activations : Tensor of shape (n_images, ...)
            In the layer's own layout.

        Returns
        -------
        Tensor of shape (n_images, k)
        """
        with self._trunks[layer].resumed(activations):
            return self.score(self._forward(self.inputs.with_images(self.images)))

    def output_behind(self, trunk: Trunk, returned: object, rows: Tensor | None = None) -> Tensor:
        """Return the network's output if a module had returned something else, with a graph.

        Parameters
        ----------
        trunk : Trunk
            The recorded run up to the module, which is not repeated.
        returned : object
            The value to use in place of the module's own.
        rows : Tensor of shape (m,) or None, default=None
            The image that each returned row belongs to. None if the rows are the batch itself.

        Returns
        -------
        Tensor of shape (n_images, ...), or (m, ...)
        """
        n_answers = None if rows is None else len(rows)
        inputs = replace(self.inputs.with_images(self.images, rows), n_answers=n_answers)
        with torch.enable_grad(), trunk.resumed(returned):
            return self._forward(inputs)

    def on(self, images: Tensor) -> RecordedPass:
        """Run a pass of its own on other images, with the same target and settings."""
        return RecordedPass(
            self.network,
            self.layers,
            self.inputs.with_images(images),
            self.target,
            forward=self._forward,
            graph=self._graph,
            rule=self.rule,
            top_channels=self._top_channels,
            extent=self._extent,
            probabilities=self._probabilities,
            autocast=self._autocast,
        )

    def look_at_first_image(self, record: AttentionRecord) -> Tensor:
        """Record the first image's attention, with a graph, in a run without side effects.

        Parameters
        ----------
        record : AttentionRecord

        Returns
        -------
        Tensor of shape (1, C, H, W)
            The image at which the graph starts.
        """
        images = self.images[:1].detach().clone().requires_grad_()
        inputs = self.inputs.take(slice(0, 1)).with_images(images)
        with left_as_found(self.network), torch.enable_grad(), record:
            self._forward(inputs)
        return images

    def asked(self, target: Target) -> RecordedPass:
        """Return this pass with another target, without running it again.

        Parameters
        ----------
        target : Target

        Returns
        -------
        RecordedPass
        """
        other = copy.copy(self)
        other.target = target.resolve(self.output, self.inputs)
        other._gradients = {}
        with torch.set_grad_enabled(self._graph is not None):
            other.scores = other.score(self.output)
        return other

    def gradients(self, column: int, *, keep: bool = False) -> list[Tensor]:
        """Differentiate one column of the scores with respect to the layers' activations.

        Parameters
        ----------
        column : int
            The index of one of the k scores. Ask for them in order, as the graph is freed with the
            last.
        keep : bool, default=False
            Whether to keep the graph in any case.

        Returns
        -------
        list of Tensor
            One tensor per layer, in the layer's own layout. Gradients of a float16 layer are
            float32, as the range of float16 is too small for them. They are cached, so that methods
            can share them.
        """
        if column not in self._gradients:
            names = [f"the target layer {layer.name!r}" for layer in self.layers]
            n_positions = max(
                layer.n_positions(activations.detach())
                for layer, activations in zip(self.layers, self.activations, strict=True)
            )
            with self._backward_context():  # checkpointed parts run again here
                self._gradients[column] = self._differentiate(
                    column, self.activations, names, n_positions, keep
                )
        return self._gradients[column]

    def image_gradients(self, column: int) -> Tensor:
        """Differentiate one column of the scores with respect to the images.

        Parameters
        ----------
        column : int
            The index of one of the k scores. Ask for them in order, as the graph is freed with the
            last.

        Returns
        -------
        Tensor of shape (n_images, channels, height, width)
            float32, or float64 if the network computes in float64.
        """
        (gradients,) = self._differentiate(
            column, [self._recorded_images], ["the images"], math.prod(self.size), keep=False
        )
        return at_least_float32(gradients)

    def _differentiate(
        self, column: int, leaves: list[Tensor], names: list[str], n_positions: int, keep: bool
    ) -> list[Tensor]:
        # A score depends on its own image only, so the gradient of the sum is that of each image.
        chosen = torch.zeros_like(self.scores)
        chosen[:, column] = 1
        keep = keep or self._keep_graph or column < self.scores.shape[1] - 1
        is_narrow = self._autocast == torch.float16 or any(
            leaf.dtype == torch.float16 for leaf in leaves
        )
        if not is_narrow:
            return differentiate(self.scores, leaves, names, chosen=chosen, keep_graph=keep)
        again = self.rule.begin if isinstance(self.rule, ExcitationRule) else None
        return differentiate_in_float16(
            self.scores, leaves, names, chosen, n_positions, keep_graph=keep, again=again
        )


# Networks with a part under no_grad(): see RecordedPass._record.
_TURN_GRADIENTS_OFF: WeakSet[nn.Module] = WeakSet()
