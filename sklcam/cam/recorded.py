"""One batch that has been through a network once, and what a method may ask about it."""

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
from sklcam.networks.prefix_rows import short_way_back
from sklcam.networks.tape import differentiate, differentiate_in_float16, record
from sklcam.networks.trunk import Trunk, record_trunk


class RecordedPass:
    """One batch, run through a network once, and what a method may ask about it.

    Parameters
    ----------
    network : nn.Module
        Where the layers are.
    layers : sequence of TargetLayer
    inputs : Inputs, or Tensor of shape (n_images, channels, height, width)
        What the network is given.
    target : None, Target such as TopK, Tensor or callable, default=None
        What is explained; see :func:`sklcam.cam.target_scores`.
    forward : callable or None
        Takes Inputs and returns the output; None calls the network.
    graph : {"head", "images", None}, default="head"
        What scores can be differentiated to: the layers' activations, the images too, or nothing.
    rule : BackwardRule, AttentionRecord or None, default=None
        What functions hand back in place of their gradients, or what looks at attention.
    resumable : bool, default=False
        Whether the pass can be resumed at a layer.
    keep_graph : bool, default=False
        Whether the graph outlives the last column's gradient, for methods that share the pass.
    top_channels : int or None, default=None
        How many channels of a layer make a map, those with the highest weights; None is all.
    extent : tuple of (float, float), default=(1.0, 1.0)
        Which part of a layer's rows and columns lies over the images, from the top left on, where a
        network fills them up.
    probabilities : callable or None, default=None
        Makes probabilities of an output, for methods that ask how sure the network is; None leaves
        them with the scores.
    autocast : torch.dtype or None, default=None
        What ``forward`` runs the network in; None is the network's own type. Then output, images
        and layers may be float32 all the same.

    Attributes
    ----------
    output : Tensor
        The network's output.
    images : Tensor of shape (n_images, channels, height, width)
        As the network got them.
    activations : list of Tensor
        One per layer, in the layer's own layout.
    inputs : Inputs
        What the network was given.
    target : Target
        What is explained, resolved.
    scores : Tensor of shape (n_images, k)

    Raises
    ------
    AttributeError
        If the network has no layer of a target layer's name.
    RuntimeError
        If a layer does not run in the pass.
    TypeError
        If a layer's output is not a tensor.
    ValueError
        If the network is not an nn.Module, a layer is not a TargetLayer, runs several times without
        saying which run counts, or does not give one row an image, the inputs hold no images,
        ``graph`` is something else, or the target does not fit the output. When a gradient is asked
        for, if none leads from the scores to the layer.

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
        # What is differentiated to; prepare_inference puts the images in another order.
        self._recorded_images = self.images
        # Methods lay out their maps by the resolved target, explainers by the one they asked.
        asked = as_target(target)
        self.target = asked.resolve(self.output, self.inputs)
        # How many objects are detected is not known before.
        k = self.target.k if asked.ragged else asked.k
        if (asked.several, k) != (self.target.several, self.target.k):
            raise ValueError(
                f"{type(asked).__name__} says several={asked.several} and k={asked.k}; it resolves "
                f"to a target of several={self.target.several} and k={self.target.k}."
            )
        with torch.set_grad_enabled(graph is not None):
            self.scores = self.score(self.output)

    def _record_fast(self, resumable: bool) -> Tensor:
        """Run the pass in channels_last memory where that is faster and the network takes it."""
        if self._graph == "images" or not is_faster_in_channels_last(self.images):
            return self._record(resumable)
        as_they_came = self.images
        # Values and shapes are the same; only the order in memory differs. A network that calls
        # `view` cannot take that, and fails: then the pass is run on the images as they came.
        try:
            self.images = as_they_came.contiguous(memory_format=torch.channels_last)
            return self._record(resumable)
        except RuntimeError as error:  # of a view, which looks at how the memory lies
            if is_out_of_memory(error):
                raise
            self.images = as_they_came
            return self._record(resumable)

    def _record(self, resumable: bool) -> Tensor:
        # Layers are cut off what lies before them, unless the way back leads on to the images.
        trunk = self._graph == "images" or self.network in _TURN_GRADIENTS_OFF
        with ExitStack() as stack:
            if self._graph == "images":
                # A copy, as the images belong to the caller and may be part of a graph.
                self.images = self.images.clone().requires_grad_()
            head = self._graph is not None
            kind = {"trunk": trunk and head, "head": head, "twice": False}
            tape = stack.enter_context(record(self.network, *self.layers, **kind))
            # For each layer what lies before it, as an image can be ablated at any of them.
            if resumable:
                self._trunks = [
                    stack.enter_context(record_trunk(self.network, layer)) for layer in self.layers
                ]
            if isinstance(self.rule, AttentionRecord):
                stack.enter_context(self.rule.around(self.network, self.layers[0].n_prefix))
            stack.enter_context(self.rule or nullcontext())
            stack.enter_context(self._way_back())
            output = self._forward(self.inputs.with_images(self.images))
            self.activations = [tape.of(layer) for layer in self.layers]
        if self._graph == "head" and self.layers and not (trunk or output.requires_grad):
            # A part under no_grad(), within which gradients were turned on at the layer, has put
            # them back to what they were before: off. So they must be on before.
            _TURN_GRADIENTS_OFF.add(self.network)
            return self._record(resumable)
        for layer, activations in zip(self.layers, self.activations, strict=True):
            layer.check_images(self.size)
            # An error if rows are not images, or a grid has fewer axes than they have.
            layer.check_axes(layer.to_grid(activations.detach(), self.n_images), self.size)
        return output

    def _way_back(self) -> AbstractContextManager[None]:
        """Return what passes, and ways back, are made in; a shorter one may be exact."""
        is_ruled = isinstance(self.rule, BackwardRule)
        is_to_images = self._graph == "images" and self.rule is None
        if self._graph is None or is_to_images or is_ruled or len(self.layers) != 1:
            return nullcontext()
        if isinstance(self.rule, AttentionRecord) and self.rule.first_rows is not None:
            return nullcontext()  # which is shorter still
        return short_way_back(self.network, self.layers[0])

    def prepare_inference(self) -> None:
        """Make :meth:`run` faster, at the price of two passes: for methods that run it often."""
        if self._inference_plan is not None:
            return
        row = slice(0, 1)  # one image tells as much as all
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
        """Whether the network computes in half precision, so that numbers have three digits."""
        dtypes = {each.dtype for each in (self.output, *self.activations)}
        return self._autocast is not None or not dtypes <= {torch.float32, torch.float64}

    @property
    def n_images(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the images; depth, height and width of volumes."""
        return self.inputs.size

    def scaled(self, maps: Tensor) -> Tensor:
        """Scale maps of these images to [0, 1], each by its minimum and maximum."""
        return min_max(maps, len(self.size))

    def grid(self, layer: int) -> Tensor:
        """Return a layer's activations as (n_images, K, u, v), without a graph."""
        activations = self.activations[layer].detach()
        return at_least_float32(self.layers[layer].to_grid(activations))

    def upsample(self, maps: Tensor, *, of_layer: bool = True) -> Tensor:
        """Resize maps (n, k, u, v) of a layer to the images' size, and lay them over these.

        Those of pixels lie over them as they are. A layer's grid may have as many rows and columns
        as the images, and all the same lie over more than these.
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
        """Stack what a function makes of each column of the scores.

        Parameters
        ----------
        function : callable
            Takes the column and returns a tensor (n_images, ...) per layer.

        Returns
        -------
        list of Tensor of shape (n_images, k, ...)
            One per layer.
        """
        columns = [function(column) for column in range(self.scores.shape[1])]
        return [torch.stack(layer, dim=1) for layer in zip(*columns, strict=True)]

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
            weights = [keep_top(each, self._top_channels) for each in weights]
        return [
            weighted_sum(each, self.grid(layer), relu=relu) for layer, each in enumerate(weights)
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
            float32, or float64 if the network computes in it.
        """
        scores = self.target.scores(output, self.inputs, rows)
        name, shape = f"{type(self.target).__name__}.scores", (len(output), self.target.k)
        scores = check_scores(name, scores, shape, differentiable=output.requires_grad)
        return at_least_float32(scores)

    def confidence(self, output: Tensor, rows: Rows = None) -> Tensor:
        """Return how sure an output is of what is explained, without a graph.

        Parameters
        ----------
        output, rows
            See :meth:`score`.

        Returns
        -------
        Tensor of shape (m, k)
            Probabilities in [0, 1]; the scores, if the target has none.
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
            Which image of the batch each stands for, where there are inputs beside the image.

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
        """Run what follows a layer on other activations of one image, without a graph.

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
        # The network is called with as many images as there are variants; none of them is copied.
        images = self.images[image : image + 1].expand(len(activations), *self.images.shape[1:])
        with self._trunks[layer].resumed(
            activations, image=image, n_images=self.n_images, from_start=from_start
        ):
            return self.run(images, rows)

    def head(self, layer: int) -> Head | None:
        """Return how the scores come from a layer, where more follows than by :meth:`resume`.

        Parameters
        ----------
        layer : int

        Returns
        -------
        Head or None
            See ``sklcam.networks.heads.trace_head``.
        """
        activations = self.activations[layer].detach()
        axis = self.layers[layer].channel_axis(activations)
        return trace_head(lambda given: self.scores_of_batch(layer, given), activations, axis)

    def scores_of_batch(self, layer: int, activations: Tensor) -> Tensor:
        """Run what follows a layer on other activations of the whole batch.

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
        """Return the output of what a module could have returned for the batch, with a graph.

        Parameters
        ----------
        trunk : Trunk
            What was run before the module, which is not run again.
        returned : object
        rows : Tensor of shape (m,) or None, default=None
            Which image each row returned belongs to, if they are not the batch itself.

        Returns
        -------
        Tensor of shape (n_images, ...), or (m, ...)
        """
        n_answers = None if rows is None else len(rows)
        inputs = replace(self.inputs.with_images(self.images, rows), n_answers=n_answers)
        with torch.enable_grad(), trunk.resumed(returned):
            return self._forward(inputs)

    def on(self, images: Tensor) -> RecordedPass:
        """Return the same question about other images, in a forward pass of their own."""
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
        """Look at the attention of the first image, with a graph, in a run that leaves no trace.

        Parameters
        ----------
        record : AttentionRecord

        Returns
        -------
        Tensor of shape (1, C, H, W)
            The image that its graph leads to.
        """
        images = self.images[:1].detach().clone().requires_grad_()
        inputs = self.inputs.take(slice(0, 1)).with_images(images)
        with left_as_found(self.network), torch.enable_grad(), record:
            self._forward(inputs)
        return images

    def asked(self, target: Target) -> RecordedPass:
        """Return another question about the same pass, which is not run again.

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
            Which of the k scores, in their order: the graph is freed with the last one.
        keep : bool, default=False
            Keep the graph in any case.

        Returns
        -------
        list of Tensor
            One per layer, in its own layout; float32 where the layer is float16, whose range is too
            small for them. They are kept, so that methods can share them.
        """
        if column not in self._gradients:
            names = [f"the target layer {layer.name!r}" for layer in self.layers]
            n_positions = max(
                layer.n_positions(activations.detach())
                for layer, activations in zip(self.layers, self.activations, strict=True)
            )
            with self._way_back():  # where checkpoints run parts again
                self._gradients[column] = self._differentiate(
                    column, self.activations, names, n_positions, keep
                )
        return self._gradients[column]

    def image_gradients(self, column: int) -> Tensor:
        """Differentiate one column of the scores with respect to the images.

        Parameters
        ----------
        column : int
            Which of the k scores, in their order: the graph is freed with the last one.

        Returns
        -------
        Tensor of shape (n_images, channels, height, width)
            float32, or float64 if the network computes in it.
        """
        (gradients,) = self._differentiate(
            column, [self._recorded_images], ["the images"], math.prod(self.size), keep=False
        )
        return at_least_float32(gradients)

    def _differentiate(
        self, column: int, leaves: list[Tensor], names: list[str], n_positions: int, keep: bool
    ) -> list[Tensor]:
        # A score depends on its own image alone: the gradient of the sum is that of each image.
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


# Networks with a part under no_grad(): see RecordedPass.
_TURN_GRADIENTS_OFF: WeakSet[nn.Module] = WeakSet()
