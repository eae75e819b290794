"""Explaining batch by batch: the part of an Explainer that knows about networks and passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from sklcam._progress import tqdm
from sklcam._validation import describe
from sklcam.cam import Method, RecordedPass, upsample
from sklcam.cam.passes import record_for, sharing_a_pass
from sklcam.cam.targets import Target
from sklcam.explain._questions import AnyMethod, AnyTarget, Questions, method_name
from sklcam.explain.checks import ExplanationCheck
from sklcam.explain.opened import Batch, OpenedImages
from sklcam.explain.streams import OpenedStream, question_of_any_number
from sklcam.images.frames import map_to_frame
from sklcam.networks.adapters import Adapter
from sklcam.networks.inputs import Inputs
from sklcam.networks.layers import TargetLayer

AnyInputs = Inputs | Tensor | Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ExplainedBatch:
    """A batch, its maps and the network's output, all from the same pass.

    Attributes
    ----------
    batch : Batch
    maps : list of Tensor of shape (n_images, height, width)
        The maps of each method, with further axes as :meth:`Explainer.explain` describes.
    output : Tensor
        The network's output, such as logits of shape (n_images, n_classes).
    target : Target
        The resolved target.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> images = torch.tensor([[[[0.0, 2.0]], [[1.0, 0.0]]]])
    >>> for explained in explainer.iter_explained(explainer.open(images)):
    ...     print(explained.target.indices, explained.maps[0])
    tensor([[0]]) tensor([[[0., 1.]]])
    """

    batch: Batch
    maps: list[Tensor]
    output: Tensor
    target: Target


class BatchExplainer(Questions):
    """The part of an :class:`Explainer` that explains opened images and single batches."""

    target_layer_: TargetLayer
    layer_fusion: Literal["mean", "max"] | None = "mean"
    image_input: str | None = None
    top_channels: int | None = None
    batch_size: int = 32
    verbose: int
    shows_probabilities: ClassVar[bool] = True

    # For subclasses to override

    @property
    def target_layers(self) -> list[TargetLayer]:
        """The target layers. Raises a NotFittedError if they are not known yet."""
        return [self.as_explainer().target_layer_]

    def as_explainer(self) -> Self:
        """Return the explainer itself, or raise a NotFittedError if it has not been fitted."""
        _ = self.adapter
        return self

    # X

    def open(
        self, X: Any, *, originals: bool = False, num_workers: int | None = None
    ) -> OpenedImages:
        """Check X and prepare it to be read batch by batch.

        Parameters
        ----------
        X : images
            In any form that ``fit`` takes.
        originals : bool, default=False
            Whether the batches also hold the images at their own sizes.
        num_workers : int or None, default=None
            How many processes read images ahead; None takes the explainer's own number.

        Returns
        -------
        OpenedImages

        Raises
        ------
        ValueError
            If X does not hold images in a form that can be read.
        """
        return OpenedImages(
            self.adapter, X, self.image_input, originals=originals, num_workers=num_workers
        )

    def iter_inputs(self, X: Any) -> Iterator[Any]:
        """Yield X as the network receives it, batch after batch.

        Parameters
        ----------
        X : images
            In any form that ``fit`` takes.

        Yields
        ------
        Tensor of shape (batch_size, channels, height, width), or dict of str to Tensor
            Resized and normalised, on the network's device.
        """
        opened = self.open(X)
        return (batch.inputs.arguments for batch in opened.batches())

    def to_frame(self, maps: Tensor, size: tuple[int, ...]) -> Tensor:
        """Convert maps from the network's input to the frame of an image at its own size.

        Parameters
        ----------
        maps : Tensor of shape (..., height, width), or (..., depth, height, width)
            Maps at the network's input size.
        size : tuple of int
            Height and width of the image, or depth, height and width of a volume.

        Returns
        -------
        Tensor of the same leading shape, at the image's or volume's own size
        """
        if len(size) == 3:  # volumes, which the network receives unchanged
            return upsample(maps, size)
        return map_to_frame(maps, size, resize=self.adapter.resize)

    def map_shape(self, opened: OpenedImages, target: Target, method: Method) -> tuple[int, ...]:
        """Return the shape of one image's map.

        Parameters
        ----------
        opened : OpenedImages
        target : Target
        method : Method

        Returns
        -------
        tuple of int
            (height, width), with the axes of several targets, layers and channels before them.
        """
        shape = [target.k] if target.several else []
        n_layers = len(self.target_layers)
        if method.uses_layers and n_layers > 1 and self.layer_fusion is None:
            shape.append(n_layers)
        if method.keeps_channels:
            shape.append(opened.n_channels)
        return (*shape, *opened.image_size)

    def check_at_layer(self, methods: Iterable[Method]) -> None:
        """Raise a ValueError unless maps of these methods can stay at the layer's resolution.

        Parameters
        ----------
        methods : iterable of Method

        Raises
        ------
        ValueError
            If there are several layers, or a method's maps are not at the resolution of a layer.
        """
        for method in methods:
            if not method.at_layer:
                raise ValueError(
                    f'{type(method).__name__} makes its maps at the pixels, so frame="layer" does '
                    'not apply. Use frame="input".'
                )
        names = [layer.name for layer in self.target_layers]
        if len(names) > 1:
            raise ValueError(
                f'frame="layer" needs a single target layer, but there are {", ".join(names)}, '
                "each with its own grid. Explain one layer at a time."
            )

    # One batch

    def output_of(self, inputs: AnyInputs) -> Tensor:
        """Return the network's output, in evaluation mode and without a graph.

        Parameters
        ----------
        inputs : Inputs, Tensor of shape (n_images, channels, height, width), or mapping

        Returns
        -------
        Tensor
            A single logit or probability becomes two columns, one per class.
        """
        adapter = self.adapter
        with without_graph(adapter):
            return adapter.forward(Inputs.of(inputs, self.image_input))

    def probabilities(self, output: Tensor) -> Tensor:
        """Turn the network's output into probabilities.

        Parameters
        ----------
        output : Tensor of shape (n_images, n_classes)
            As :meth:`output_of` returns it.

        Returns
        -------
        Tensor of shape (n_images, n_classes), in [0, 1]
        """
        return self.adapter.probabilities(output)

    def decide(self, output: Tensor) -> Tensor:
        """Return the index of the predicted class.

        Parameters
        ----------
        output : Tensor of shape (n_images, n_classes)
            As :meth:`output_of` returns it.

        Returns
        -------
        Tensor of shape (n_images,), int64
            For several labels per image, 0 or 1 in shape (n_images, n_classes). For a regression,
            the numbers.
        """
        return self.adapter.decide(output)

    def explain_inputs(
        self,
        inputs: AnyInputs,
        target: AnyTarget = None,
        *,
        method: AnyMethod | None = None,
        normalize: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Explain one batch of network inputs. One forward pass gives both maps and output.

        Parameters
        ----------
        inputs : Inputs, Tensor of shape (n_images, channels, height, width), or mapping
            As :meth:`iter_inputs` yields them.
        target : None, Tensor of class indices, Target or callable, default=None
            None is the predicted class. Give one index per image, or a row of k indices per image.
            A callable turns the output into one score per image.
        method : str, Method or None, default=None
            See :meth:`explain`.
        normalize : bool, default=True
            Whether to scale each map to [0, 1] by its minimum and maximum.

        Returns
        -------
        maps : Tensor of shape (n_images, height, width), or (n_images, depth, height, width)
            Further axes may follow the first, as :meth:`explain` describes.
        output : Tensor
            The network's output, such as logits of shape (n_images, n_classes). A single logit or
            probability becomes two columns, one per class.

        Warns
        -----
        ExplanationWarning
            If maps are blank or not finite. For this check the host waits for the device.
        """
        chosen, check = self.as_method(method), ExplanationCheck()
        maps, output, _ = self.explain_batch(inputs, target, methods=[chosen], normalize=normalize)
        n_axes = _axes(chosen, Inputs.of(inputs, self.image_input))
        check.add(maps[0], n_axes=n_axes)
        check.warn()
        return maps[0], output

    def explain_batch(
        self,
        inputs: AnyInputs,
        target: AnyTarget = None,
        *,
        methods: Sequence[AnyMethod | None],
        normalize: bool | Sequence[bool] = True,
        at_layer: bool = False,
    ) -> tuple[list[Tensor], Tensor, Target]:
        """Explain one batch by several methods, in as few forward passes as possible.

        Methods share a pass unless they change what it returns, as guided backpropagation does.
        There is no warning about blank maps here, as the host would wait for the device at each
        batch.

        Parameters
        ----------
        inputs, target
            See :meth:`explain_inputs`.
        methods : sequence of str, Method or None
        normalize : bool or sequence of bool, default=True
            Whether to scale maps to [0, 1]: one choice for all methods, or one per method.
        at_layer : bool, default=False
            Whether to leave maps at the resolution of the single target layer.

        Returns
        -------
        maps : list of Tensor
            The maps of each method, as :meth:`explain_inputs` returns them.
        output : Tensor
        target : Target
            The target, resolved by this output.
        """
        if isinstance(methods, str) or not isinstance(methods, Sequence) or not methods:
            raise ValueError(
                f"methods must be a sequence of at least one method; got {describe(methods)}."
            )
        chosen = [self.as_method(method) for method in methods]
        scaled = [normalize] * len(chosen) if isinstance(normalize, bool) else list(normalize)
        if len(scaled) != len(chosen) or not all(isinstance(each, bool) for each in scaled):
            raise ValueError(
                f"normalize must be True or False, or one of these per method; got {normalize!r}."
            )
        question = self.translate(target)
        given = Inputs.of(inputs, self.image_input)
        if at_layer:
            self.check_at_layer(chosen)
            self._check_extent(given)
        maps: dict[int, Tensor] = {}
        with without_graph(self.adapter):
            recordable = given.recordable()
            # A method that is given twice, for scaled and for unscaled maps, explains only once.
            distinct = list({id(method): method for method in chosen}.values())
            for group in sharing_a_pass(distinct):
                recorded = self._record([distinct[i] for i in group], recordable, question)
                for method in (distinct[i] for i in group):
                    raw = method.explain(recorded)
                    _check_rows(method, raw, recorded)
                    if at_layer:
                        _check_grid(method, raw, recorded)
                    else:
                        raw = [recorded.upsample(each, of_layer=method.at_layer) for each in raw]
                    for i in (i for i, each in enumerate(chosen) if each is method):
                        scale = recorded.scaled if scaled[i] and method.scaled else None
                        made = self._fuse(raw, scale)
                        maps[i] = made if question.several else made[:, 0]
                # The first pass fixes the target. Otherwise two passes that round differently could
                # predict different classes.
                output, question = recorded.output.detach(), recorded.target
                del recorded  # frees its graph before the next pass builds another
        return [maps[i] for i in range(len(chosen))], output, question

    def _check_extent(self, inputs: Inputs) -> None:
        extent = self.adapter.extent(inputs.size)
        if extent != (1.0, 1.0):
            raise ValueError(
                f"The network pads images, so only {extent[0]:.0%} of the layer's rows and "
                f"{extent[1]:.0%} of its columns cover the image, and the layer's grid does not "
                'match it. Use frame="input".'
            )

    def _record(self, methods: Sequence[Method], inputs: Inputs, target: Target) -> RecordedPass:
        adapter = self.adapter
        needy = [method_name(method) for method in methods if method.uses_layers]
        if needy and not self.target_layers:
            raise ValueError(
                f"{needy[0]} explains a layer, but fit found none. Name one with target_layer=."
            )
        return record_for(
            methods,
            adapter.network,
            self.target_layers,
            inputs,
            target=target,
            forward=adapter.forward,
            top_channels=self.top_channels,
            extent=adapter.extent(inputs.size),
            probabilities=adapter.probabilities,
            autocast=adapter.autocast,
        )

    def _fuse(self, maps: list[Tensor], scale: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Scale the maps of each layer and fuse them into one, (n_images, k, ...)."""
        if scale is not None:
            maps = [scale(layer_maps) for layer_maps in maps]
        if len(maps) == 1:
            return maps[0]
        stacked = torch.stack(maps, dim=2)
        if self.layer_fusion is None:
            return stacked
        fused = stacked.mean(dim=2) if self.layer_fusion == "mean" else stacked.amax(dim=2)
        return fused if scale is None else scale(fused)

    # Batch after batch

    def iter_explained(
        self,
        opened: OpenedImages,
        target: Target | None = None,
        *,
        methods: Sequence[AnyMethod | None] = (None,),
        normalize: bool | Sequence[bool] = True,
        at_layer: bool = False,
    ) -> Iterator[ExplainedBatch]:
        """Explain opened images by several methods, batch after batch.

        Parameters
        ----------
        opened : OpenedImages
            See :meth:`open`.
        target : Target or None, default=None
            The target for all of the images; see ``as_target``.
        methods : sequence of str, Method or None, default=(None,)
        normalize, at_layer
            See :meth:`explain_batch`.

        Yields
        ------
        ExplainedBatch

        Warns
        -----
        ExplanationWarning
            After the last batch, or when the caller stops, if maps are blank or not finite.
        """
        question = self.translate(target)
        part = partial(self.question_of, question)
        yield from self._explained(opened.batches(), part, methods, normalize, at_layer)

    def question_of(self, question: Target, batch: Batch) -> Target:
        """Return the part of a target that belongs to the images of a batch.

        Parameters
        ----------
        question : Target
            The target for all images that were opened; see ``as_target``.
        batch : Batch

        Returns
        -------
        Target
        """
        return self.framed(question.take(slice(batch.start, batch.stop)), batch)

    def framed(self, question: Target, batch: Batch) -> Target:
        """Return the target of a batch, with its places converted to the network's input."""
        return question.framed(batch.sizes, self.adapter.resize, batch.inputs.size)

    def iter_streamed(
        self,
        X: Iterable[Any],
        target: Any = None,
        *,
        methods: Sequence[AnyMethod | None] = (None,),
        normalize: bool | Sequence[bool] = True,
        at_layer: bool = False,
    ) -> Iterator[ExplainedBatch]:
        """Explain an iterable of images, batch after batch, as they arrive.

        The parameters are those of :meth:`iter_explain`, but for several methods. They are checked
        immediately.

        Yields
        ------
        ExplainedBatch
        """
        opened = OpenedStream(self.adapter, X, self.image_input, self.batch_size)
        ask = question_of_any_number(self.as_target, target)

        def asked(batch: Batch) -> Target:
            return self.framed(ask(len(batch)), batch)

        return self._explained(opened.batches(), asked, methods, normalize, at_layer)

    def _explained(
        self,
        batches: Iterator[Batch],
        question: Callable[[Batch], Target],
        methods: Sequence[AnyMethod | None],
        normalize: bool | Sequence[bool],
        at_layer: bool,
    ) -> Iterator[ExplainedBatch]:
        check = ExplanationCheck()
        chosen = [self.as_method(method) for method in methods]
        names = [f"maps by {method_name(method)}" for method in methods]
        try:
            for batch in batches:
                maps, output, resolved = self.explain_batch(
                    batch.inputs,
                    question(batch),
                    methods=chosen,
                    normalize=normalize,
                    at_layer=at_layer,
                )
                for method, name, made in zip(chosen, names, maps, strict=True):
                    what = name if len(chosen) > 1 else "maps"
                    filled = resolved.without_filling(made)
                    check.add(filled, what, n_axes=_axes(method, batch.inputs))
                yield ExplainedBatch(batch, maps, output, resolved)
        finally:
            check.warn()

    def _bar(self, total: int, description: str, initial: int = 0) -> tqdm:
        options = {"initial": initial, "delay": 1, "leave": False}
        return tqdm(total=total, desc=description, disable=not self.verbose, **options)


def _axes(method: Method, inputs: Inputs) -> int:
    """Return the number of axes of one map of a method."""
    return len(inputs.size) + method.keeps_channels


def _check_rows(method: Method, raw: list[Tensor], recorded: RecordedPass) -> None:
    """Raise a ValueError unless a method returned a map for each score of each image."""
    for maps in raw:
        n_axes = 2 + _axes(method, recorded.inputs)
        if maps.shape[:2] != recorded.scores.shape or maps.ndim < n_axes:
            axes = "u, v" if len(recorded.size) == 2 else "d, u, v"
            raise ValueError(
                f"{type(method).__name__}.explain must return maps of shape (n_images, k, {axes}) "
                f"for scores of shape {tuple(recorded.scores.shape)}; got {tuple(maps.shape)}."
            )


def _check_grid(method: Method, raw: list[Tensor], recorded: RecordedPass) -> None:
    """Raise a ValueError unless the maps of a method are on the grid of the layer."""
    grid = recorded.grid(0).shape[2:]
    for maps in raw:
        if maps.shape[2:] != grid:
            raise ValueError(
                f"{type(method).__name__} returned maps of {_by(maps.shape[2:])} places, but the "
                f'layer has {_by(grid)}. frame="layer" does not apply to such a method: set '
                "at_layer = False on it."
            )


def _by(sides: Iterable[int]) -> str:
    return " x ".join(map(str, sides))


@contextmanager
def without_graph(adapter: Adapter) -> Iterator[None]:
    """Run the network in evaluation mode and without a graph, unless a recording turns it on."""
    with torch.inference_mode(False), torch.no_grad(), adapter.evaluating():
        yield
