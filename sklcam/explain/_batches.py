"""Explaining batch by batch: the part of an Explainer that knows of networks and passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sklcam._validation import describe
from sklcam.cam import ChannelMethod, Method, RecordedPass, get_method, min_max, upsample
from sklcam.cam.passes import record_for, sharing_a_pass
from sklcam.cam.targets import Positive, Target, as_target
from sklcam.explain.checks import ExplanationCheck
from sklcam.explain.opened import Batch, OpenedImages
from sklcam.explain.streams import OpenedStream, question_of_any_number
from sklcam.images.frames import map_to_frame
from sklcam.images.labels import encode_labels
from sklcam.networks.adapters import Adapter
from sklcam.networks.inputs import Inputs
from sklcam.networks.layers import TargetLayer

AnyMethod = str | Method | type[Method]
Methods = list[AnyMethod | None] | tuple[AnyMethod | None, ...] | Mapping[str, AnyMethod | None]
AnyInputs = Inputs | Tensor | Mapping[str, Tensor]
AnyTarget = Target | Tensor | Callable[..., Tensor] | None


@dataclass(frozen=True, eq=False)
class ExplainedBatch:
    """A batch, its maps and the network's answer, all from the same pass.

    Attributes
    ----------
    batch : Batch
    maps : list of Tensor of shape (n_images, height, width)
        Those of each method, with further axes as :meth:`Explainer.explain` describes.
    output : Tensor
        The network's output, such as logits of shape (n_images, n_classes).
    target : Target
        What is explained, resolved.

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


class BatchExplainer(ABC):
    """What an :class:`Explainer`, whose attributes it has, does with opened images and a batch."""

    classes_: Any
    class_names_: np.ndarray | None = None  # what the classes 0, 1, ... are called
    target_layer_: TargetLayer
    method: AnyMethod = "gradcam"
    layer_fusion: Literal["mean", "max"] | None = "mean"
    image_input: str | None = None
    top_channels: int | None = None
    batch_size: int = 32
    verbose: int
    shows_probabilities: ClassVar[bool] = True

    # What a subclass says

    @property
    @abstractmethod
    def adapter(self) -> Adapter:
        """The network and what is known of its kind; a NotFittedError if there is none yet."""

    @property
    def target_layers(self) -> list[TargetLayer]:
        """The layers that are explained; a NotFittedError if they are not known yet."""
        return [self.as_explainer().target_layer_]

    @property
    def output_names(self) -> np.ndarray | None:
        """What a target may name: the classes, or the numbers of a regression."""
        is_named = self.classes_ is None and self.adapter.task == "regression"
        return self.adapter.labels if is_named else self.classes_

    def as_explainer(self) -> Self:
        """Return the explainer itself; a NotFittedError if it has not been fitted."""
        _ = self.adapter
        return self

    # X

    def open(self, X: Any, *, originals: bool = False) -> OpenedImages:
        """Check X, and make it ready to be read batch by batch.

        Parameters
        ----------
        X : images
            In any form that ``fit`` takes.
        originals : bool, default=False
            Whether the batches bring the images at their own sizes, too.

        Returns
        -------
        OpenedImages

        Raises
        ------
        ValueError
            If X holds no images of a form that can be read.
        """
        return OpenedImages(self.adapter, X, self.image_input, originals=originals)

    def iter_inputs(self, X: Any) -> Iterator[Any]:
        """Yield X as the network gets it, batch after batch.

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

    def to_frame(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring maps to the frame of an image at its own size.

        Parameters
        ----------
        maps : Tensor of shape (..., height, width)
            At the network's input size.
        size : tuple of (int, int)
            Height and width of the image.

        Returns
        -------
        Tensor of shape (..., size[0], size[1])
        """
        return map_to_frame(maps, size, resize=self.adapter.resize)

    # What is asked

    def as_method(self, method: AnyMethod | None) -> Method:
        """Return a method as an object, its options checked.

        Parameters
        ----------
        method : str, Method, class of methods or None
            None is the explainer's own.

        Returns
        -------
        Method

        Raises
        ------
        ValueError
            If there is no such method, or an option of it is out of range.
        """
        chosen = get_method(self.method if method is None else method)
        chosen.check()
        for option, value in chosen.get_params(deep=False).items():
            # Any string would count as true, "no" as well.
            if option in ("relu", "contrastive") and not isinstance(value, bool | np.bool_):
                raise ValueError(f"{option} must be True or False; got {value!r}.")
        return chosen

    def named_methods(self, methods: AnyMethod | Methods | None) -> dict[str, Method]:
        """Return methods as objects, by the names that their maps go by.

        Parameters
        ----------
        methods : str, Method, list of them, dict of names to them, or None
            See :meth:`explain`; the explainer's own has no name.

        Returns
        -------
        dict of str to Method

        Raises
        ------
        ValueError
            If there is no method, or two have one name; and as ``as_method``.
        """
        if isinstance(methods, Mapping):
            named = {str(name): self.as_method(each) for name, each in methods.items()}
        else:
            several = methods if isinstance(methods, list | tuple) else [methods]
            named = {method_name(each): self.as_method(each) for each in several}
            if len(named) < len(several):
                raise ValueError(f"Two methods have one name: {[*map(method_name, several)]}.")
        if not named:
            raise ValueError("There is no method to explain by; name at least one.")
        return named

    def as_target(self, target: Any, n_images: int) -> Target:
        """Turn what a user asks for into a target.

        Parameters
        ----------
        target : None, label, array-like of labels, Target or callable
            See :meth:`explain`.
        n_images : int
            For how many images.

        Returns
        -------
        Target

        Raises
        ------
        ValueError
            If it is not one target, or one row of targets, per image; or if a label is unknown.
        """
        names = self.output_names
        if isinstance(target, str) and target == "positive" and not self._is_label(target):
            target = Positive()
        if target is None or isinstance(target, Target) or callable(target):
            question = self.translate(target)
            for asked in (target, question):  # of which one may know what the other does not
                if isinstance(asked, Target) and names is not None:
                    asked.check(len(names))
            return question
        try:
            labels = np.asarray(target.cpu() if isinstance(target, Tensor) else target)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"target must be labels, as many for each image: {error}") from error
        labels = np.repeat(labels, n_images) if labels.ndim == 0 else labels
        if labels.ndim not in (1, 2) or len(labels) != n_images or not labels.size:
            raise ValueError(
                f"target must be one label, or one (or one row of several) per image; got shape "
                f"{labels.shape} for {n_images} images."
            )
        if names is None:
            raise ValueError(
                "The network's output is not (n_images, n_classes), so that there are no labels to "
                "explain; give a callable target that makes one score per image of it."
            )
        known, flat = names, labels.ravel()
        if self.class_names_ is not None and labels.dtype.kind in "UO":
            known = self.class_names_
            twice = [name for name in {*flat.tolist()} if (known == name).sum() > 1]
            if twice:
                rows = np.flatnonzero(known == twice[0]).tolist()
                raise ValueError(f"The classes {rows} are all called {twice[0]!r}; say which.")
        indices = encode_labels(flat, known).reshape(labels.shape)
        return self.translate(torch.from_numpy(indices))

    def _is_label(self, name: str) -> bool:
        """Whether something is called so; an error if it is that and all labels of an image."""
        names = [] if self.output_names is None else self.output_names.tolist()
        if name in names and self.adapter.task == "multilabel":
            raise ValueError(
                f"target={name!r} stands for all labels that an image has, and one of them is "
                f"called so: give sklcam.cam.Positive(), or [{name!r}] * n_images."
            )
        return name in names

    def translate(self, target: AnyTarget) -> Target:
        """Return the target that a question about classes is for this network's output.

        Parameters
        ----------
        target : None, Tensor of class indices, Target or callable
            See :meth:`explain_inputs`. One that has been translated stays as it is.

        Returns
        -------
        Target
        """
        return as_target(target).bind(self.adapter)

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

    # One batch

    def output_of(self, inputs: AnyInputs) -> Tensor:
        """Return the network's output, in evaluation mode and without a graph.

        Parameters
        ----------
        inputs : Inputs, Tensor of shape (n_images, channels, height, width), or mapping

        Returns
        -------
        Tensor
            Of one logit, or probability, of two classes it has a column for each.
        """
        adapter = self.adapter
        with _without_graph(adapter):
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
            Of several labels an image, (n_images, n_classes), 0 or 1; of a regression its numbers.
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
        """Explain one batch of network inputs; one forward pass gives maps and output.

        Parameters
        ----------
        inputs : Inputs, Tensor of shape (n_images, channels, height, width), or mapping
            As :meth:`iter_inputs` yields them.
        target : None, Tensor of class indices, Target or callable, default=None
            None is the predicted class; indices may be one per image, or one row of k; a callable
            makes one score per image of the output.
        method : str, Method or None, default=None
            See :meth:`explain`.
        normalize : bool, default=True
            Whether each map is scaled to [0, 1] by its minimum and maximum.

        Returns
        -------
        maps : Tensor of shape (n_images, height, width)
            With further axes after the first as :meth:`explain` describes.
        output : Tensor
            The network's output, such as logits of shape (n_images, n_classes); of one logit, or
            probability, of two classes it has a column for each.

        Warns
        -----
        ExplanationWarning
            If maps are blank, or not finite. The host waits for the device to know.
        """
        chosen, check = self.as_method(method), ExplanationCheck()
        maps, output, _ = self.explain_batch(inputs, target, methods=[chosen], normalize=normalize)
        check.add(maps[0], n_axes=_axes(chosen))
        check.warn()
        return maps[0], output

    def explain_batch(
        self,
        inputs: AnyInputs,
        target: AnyTarget = None,
        *,
        methods: Sequence[AnyMethod | None],
        normalize: bool | Sequence[bool] = True,
    ) -> tuple[list[Tensor], Tensor, Target]:
        """Explain one batch by several methods, from as few forward passes as can be.

        Methods share a pass unless they change what it hands back, as guided backpropagation does.
        Blank maps are not warned of here, where the host would wait for the device at each batch.

        Parameters
        ----------
        inputs, target
            See :meth:`explain_inputs`.
        methods : sequence of str, Method or None
        normalize : bool or sequence of bool, default=True
            Whether maps are scaled to [0, 1]: all of them, or those of each method.

        Returns
        -------
        maps : list of Tensor
            Those of each method, as :meth:`explain_inputs` returns them.
        output : Tensor
        target : Target
            What was explained, resolved by this output.
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
        maps: dict[int, Tensor] = {}
        with _without_graph(self.adapter):
            recordable = given.recordable()
            # One that is asked for both scaled and as it is explains once.
            distinct = list({id(method): method for method in chosen}.values())
            for group in sharing_a_pass(distinct):
                recorded = self._record([distinct[i] for i in group], recordable, question)
                for method in (distinct[i] for i in group):
                    raw = method.explain(recorded)
                    _check_rows(method, raw, recorded)
                    raw = [upsample(layer, recorded.size) for layer in raw]
                    for i in (i for i, each in enumerate(chosen) if each is method):
                        made = self._fuse(raw, scaled=scaled[i] and method.scaled)
                        maps[i] = made if question.several else made[:, 0]
                # The first pass decides what is explained: two passes that round in different ways
                # could otherwise see the predicted class in two places.
                output, question = recorded.output.detach(), recorded.target
                del recorded  # with its graph, before the next pass grows another
        return [maps[i] for i in range(len(chosen))], output, question

    def _record(self, methods: Sequence[Method], inputs: Inputs, target: Target) -> RecordedPass:
        adapter = self.adapter
        needy = [method_name(method) for method in methods if method.uses_layers]
        if needy and not self.target_layers:
            raise ValueError(
                f"{needy[0]} explains a layer, and fit has found none: name one, target_layer=...."
            )
        return record_for(
            methods,
            adapter.network,
            self.target_layers,
            inputs,
            target=target,
            forward=adapter.forward,
            top_channels=self.top_channels,
        )

    def _weigh_channels(
        self, inputs: Inputs, target: Target, method: ChannelMethod
    ) -> list[Tensor]:
        """Return the weights of one batch; a function of its own, as all else is freed with it."""
        with _without_graph(self.adapter):
            weights = method.channel_weights(self._record([method], inputs.recordable(), target))
        return weights if target.several else [layer_weights[:, 0] for layer_weights in weights]

    def _fuse(self, maps: list[Tensor], *, scaled: bool) -> Tensor:
        """Scale the maps of each layer and make one of them, (n_images, k, ...)."""
        if scaled:
            maps = [min_max(layer_maps) for layer_maps in maps]
        if len(maps) == 1:
            return maps[0]
        stacked = torch.stack(maps, dim=2)
        if self.layer_fusion is None:
            return stacked
        fused = stacked.mean(dim=2) if self.layer_fusion == "mean" else stacked.amax(dim=2)
        return min_max(fused) if scaled else fused

    # Batch after batch

    def iter_explained(
        self,
        opened: OpenedImages,
        target: Target | None = None,
        *,
        methods: Sequence[AnyMethod | None] = (None,),
        normalize: bool | Sequence[bool] = True,
    ) -> Iterator[ExplainedBatch]:
        """Explain opened images by several methods, batch after batch.

        Parameters
        ----------
        opened : OpenedImages
            See :meth:`open`.
        target : Target or None, default=None
            For all of the images; see ``as_target``.
        methods : sequence of str, Method or None, default=(None,)
        normalize : bool or sequence of bool, default=True
            See :meth:`explain_batch`.

        Yields
        ------
        ExplainedBatch

        Warns
        -----
        ExplanationWarning
            After the last batch, or where the caller stops, if maps are blank or not finite.
        """
        question = self.translate(target)

        def part(batch: Batch) -> Target:
            return question.take(slice(batch.start, batch.stop))

        yield from self._explained(opened.batches(), part, methods, normalize)

    def iter_streamed(
        self,
        X: Iterable[Any],
        target: Any = None,
        *,
        methods: Sequence[AnyMethod | None] = (None,),
        normalize: bool | Sequence[bool] = True,
    ) -> Iterator[ExplainedBatch]:
        """Explain what yields images, batch after batch, as they come.

        Parameters are those of :meth:`iter_explain`, for several methods. They are checked at once.

        Yields
        ------
        ExplainedBatch
        """
        opened = OpenedStream(self.adapter, X, self.image_input, self.batch_size)
        ask = question_of_any_number(self.as_target, target)
        return self._explained(opened.batches(), lambda batch: ask(len(batch)), methods, normalize)

    def _explained(
        self,
        batches: Iterator[Batch],
        question: Callable[[Batch], Target],
        methods: Sequence[AnyMethod | None],
        normalize: bool | Sequence[bool],
    ) -> Iterator[ExplainedBatch]:
        check = ExplanationCheck()
        chosen = [self.as_method(method) for method in methods]
        names = [f"maps by {method_name(method)}" for method in methods]
        try:
            for batch in batches:
                maps, output, resolved = self.explain_batch(
                    batch.inputs, question(batch), methods=chosen, normalize=normalize
                )
                for method, name, made in zip(chosen, names, maps, strict=True):
                    check.add(made, name if len(chosen) > 1 else "maps", n_axes=_axes(method))
                yield ExplainedBatch(batch, maps, output, resolved)
        finally:
            check.warn()

    def _bar(self, total: int, description: str) -> tqdm:
        return tqdm(total=total, desc=description, delay=1, leave=False, disable=not self.verbose)


def method_name(method: AnyMethod | None) -> str:
    """Return what a method is called in tables and pictures; nothing for an explainer's own."""
    if method is None or isinstance(method, str):
        return method or ""
    return method.__name__ if isinstance(method, type) else " ".join(repr(method).split())


def _axes(method: Method) -> int:
    """Return how many axes one map of a method has."""
    return 3 if method.keeps_channels else 2


def _check_rows(method: Method, raw: list[Tensor], recorded: RecordedPass) -> None:
    """Raise a ValueError unless a method made a map for each score of each image."""
    for maps in raw:
        if maps.shape[:2] != recorded.scores.shape:
            raise ValueError(
                f"{type(method).__name__}.explain must return maps of shape (n_images, k, u, v) "
                f"for scores of shape {tuple(recorded.scores.shape)}; got {tuple(maps.shape)}."
            )


@contextmanager
def _without_graph(adapter: Adapter) -> Iterator[None]:
    """Evaluate the network, and build no graph but where a recording turns it on."""
    with torch.inference_mode(False), torch.no_grad(), adapter.evaluating():
        yield
