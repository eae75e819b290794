"""The Explainer protocol: what anything that explains offers to metrics, displays and reports.

An explainer opens any ``X`` once, runs it through its network batch by batch, and hands over the
maps of several methods, the network's output and the frames of the images from the same pass. So
the memory needed is that of one batch, and nobody has to look at an image twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor
from tqdm.auto import tqdm

from sklcam._validation import check_count, describe
from sklcam.cam import ChannelMethod, Method, RecordedPass, get_method, min_max, upsample
from sklcam.cam.passes import record_for, sharing_a_pass
from sklcam.cam.targets import Target, as_target
from sklcam.explain.opened import Batch, OpenedImages
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


class Explainer(ABC):
    """Anything that explains: an adapter to a network, the layers to look at, and a method.

    Metrics, displays and reports use what is public here, and nothing else.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,) or None
        The label of each class; None if the network has none.
    method : str, Method or class of methods
        How to explain unless something else is asked for.
    layer_fusion : {"mean", "max"} or None
        How the maps of several layers become one.
    image_input : str or None
        Which of several inputs is the image.
    top_channels : int or None
        How many channels make a map, those with the highest weights; None is all.
    verbose : int
        0 silences the progress bar.
    shows_probabilities : bool
        Whether the probabilities tell a reader how sure the network is.

    Examples
    --------
    The values of :class:`~sklcam.CAMExplainer`, batch by batch:

    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", batch_size=2, verbose=0).fit()
    >>> opened = explainer.open(torch.rand(3, 2, 8, 8))
    >>> for explained in explainer.iter_explained(opened, methods=["gradcam", "layercam"]):
    ...     print(len(explained.batch), [tuple(maps.shape) for maps in explained.maps])
    2 [(2, 8, 8), (2, 8, 8)]
    1 [(1, 8, 8), (1, 8, 8)]
    """

    classes_: Any
    target_layer_: TargetLayer
    method: AnyMethod = "gradcam"
    layer_fusion: Literal["mean", "max"] | None = "mean"
    image_input: str | None = None
    top_channels: int | None = None
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
            If there is no method, or two have one name; and as :meth:`as_method`.
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
        if isinstance(target, Target) and self.classes_ is not None:
            target.check(len(self.classes_))
        if target is None or isinstance(target, Target) or callable(target):
            return self.translate(target)
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
        if self.classes_ is None:
            raise ValueError(
                "The network's output is not (n_images, n_classes), so that there are no labels to "
                "explain; give a callable target that makes one score per image of it."
            )
        indices = encode_labels(labels.ravel(), self.classes_).reshape(labels.shape)
        return self.translate(torch.from_numpy(indices))

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
        return as_target(target)

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
        """
        adapter = self.adapter
        with _without_graph(adapter):
            return adapter.forward(Inputs.of(inputs, self.image_input))

    def probabilities(self, output: Tensor) -> Tensor:
        """Turn the network's output into probabilities.

        Parameters
        ----------
        output : Tensor of shape (n_images, n_classes)

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

        Returns
        -------
        Tensor of shape (n_images,), int64
        """
        return self.adapter.decide(self.probabilities(output))

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
            The network's output, such as logits of shape (n_images, n_classes).
        """
        maps, output, _ = self.explain_batch(inputs, target, methods=[method], normalize=normalize)
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
        question = self.translate(target)
        given = Inputs.of(inputs, self.image_input)
        maps: dict[int, Tensor] = {}
        with _without_graph(self.adapter):
            recordable = given.recordable()
            for group in sharing_a_pass(chosen):
                recorded = self._record([chosen[i] for i in group], recordable, question)
                for i in group:
                    made = self._fuse(
                        [upsample(raw, recorded.size) for raw in chosen[i].explain(recorded)],
                        scaled=scaled[i] and chosen[i].scaled,
                    )
                    maps[i] = made if question.several else made[:, 0]
                # The first pass decides what is explained: two passes that round in different ways
                # could otherwise see the predicted class in two places.
                output, question = recorded.output.detach(), recorded.target
                del recorded  # with its graph, before the next pass grows another
        return [maps[i] for i in range(len(chosen))], output, question

    def _record(self, methods: Sequence[Method], inputs: Inputs, target: Target) -> RecordedPass:
        adapter = self.adapter
        return record_for(
            methods,
            adapter.network,
            self.target_layers,
            inputs,
            target=target,
            forward=adapter.forward,
            top_channels=self.top_channels,
        )

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
            For all of the images; see :meth:`as_target`.
        methods : sequence of str, Method or None, default=(None,)
        normalize : bool or sequence of bool, default=True
            See :meth:`explain_batch`.

        Yields
        ------
        ExplainedBatch
        """
        question = self.translate(target)
        for batch in opened.batches():
            maps, output, resolved = self.explain_batch(
                batch.inputs,
                question.take(slice(batch.start, batch.stop)),
                methods=methods,
                normalize=normalize,
            )
            yield ExplainedBatch(batch, maps, output, resolved)

    def iter_explain(
        self,
        X: Any,
        target: Any = None,
        *,
        method: AnyMethod | None = None,
        normalize: bool = True,
        frame: Literal["input", "image"] = "input",
    ) -> Iterator[Any]:
        """Yield the maps of X batch after batch, in constant memory.

        Parameters are those of :meth:`explain`. They are checked at once, before the first batch
        is asked for.

        Yields
        ------
        ndarray of shape (batch_size, height, width), float32
            With ``frame="image"``, a list of arrays, each of its own image's size.
        """
        chosen = self.as_method(method)
        _check_frame(frame)
        opened = self.open(X)
        question = self.as_target(target, len(opened))
        batches = self.iter_explained(opened, question, methods=[chosen], normalize=normalize)
        return (self._arrays(explained, frame)[0] for explained in batches)

    def _arrays(self, explained: ExplainedBatch, frame: str) -> list[Any]:
        """Return the maps of each method: an array, or one for each image in its own frame."""
        if frame == "input":
            return [maps.float().cpu().numpy() for maps in explained.maps]
        sizes = explained.batch.sizes
        return [
            [self.to_frame(*pair).float().cpu().numpy() for pair in zip(maps, sizes, strict=True)]
            for maps in explained.maps
        ]

    def explain(
        self,
        X: Any,
        target: Any = None,
        *,
        method: AnyMethod | Methods | None = None,
        normalize: bool = True,
        frame: Literal["input", "image"] = "input",
        out: np.ndarray | None = None,
    ) -> Any:
        """Return one map per image: where the network looked for its decision.

        Parameters
        ----------
        X : images
            In any form that ``fit`` takes.
        target : None, label, array-like of labels, Target or callable, default=None
            The class to explain: None is the predicted one. Labels are one for all, one per image,
            or, of shape (n_images, k), several per image; :class:`sklcam.cam.TopK` are the highest
            scoring ones. Several are explained from one forward pass. A callable takes an output of
            the network, of any number of images, and returns one score for each, any
            differentiable one that depends on that image's part of the output alone. A callable of
            two arguments is given the network's inputs as well.
        method : str, Method, list of them, dict of names to them, or None, default=None
            One of :func:`sklcam.cam.available`, or a method object such as ``GradCAM(relu=False)``.
            None is the estimator's own, or Grad-CAM. Several explain from the same forward passes.
        normalize : bool, default=True
            Whether each map is scaled to [0, 1] by its minimum and maximum; a constant map becomes
            all zeros. False returns the method's own numbers. Controls, and signed maps
            (``channels="keep"``), are never scaled.
        frame : {"input", "image"}, default="input"
            "input" gives maps at the network's input size, "image" each at its own image's size.
        out : ndarray of the result's shape or None
            Where to write the maps, such as a ``numpy.memmap``; for one method and
            ``frame="input"``.

        Returns
        -------
        ndarray of shape (n_images, height, width), float32 (in [0, 1] if normalised)
            ``out`` if it was given. There are further axes after the first, in this order: k for a
            target of several classes per image, the layers if several are kept apart, and the
            image's channels for signed maps. With ``frame="image"`` a list of arrays, or one array
            if X is an array or a tensor, whose images are all of one size. For several methods a
            dict of these, by name.

        Raises
        ------
        ValueError
            If X, the target or another argument does not fit; before any work is done.
        """
        named = self.named_methods(method)
        _check_frame(frame)
        opened = self.open(X)
        question = self.as_target(target, len(opened))
        shapes = [
            (len(opened), *self.map_shape(opened, question, chosen)) for chosen in named.values()
        ]
        if out is not None:
            _check_out(out, shapes, frame)
        results: list[Any] = [[None] * len(opened) for _ in named]  # of any sizes
        if frame == "input":
            results = [np.empty(shape, np.float32) for shape in shapes] if out is None else [out]
        methods = list(named.values())
        with self._bar(len(opened), "explain") as bar:
            for explained in self.iter_explained(
                opened, question, methods=methods, normalize=normalize
            ):
                batch = explained.batch
                for result, maps in zip(results, self._arrays(explained, frame), strict=True):
                    result[batch.start : batch.stop] = maps
                bar.update(len(batch))
                del explained  # with its maps, before the next batch is read
        if frame == "image" and opened.uniform_size is not None:
            results = [np.stack(maps) for maps in results]
        one_alone = not isinstance(method, Mapping | list | tuple)
        return results[0] if one_alone else dict(zip(named, results, strict=True))

    def _bar(self, total: int, description: str) -> tqdm:
        return tqdm(total=total, desc=description, delay=1, leave=False, disable=not self.verbose)

    # Channels

    def channel_weights(
        self, X: Any, target: Any = None, *, method: AnyMethod | None = None
    ) -> Any:
        r"""Return how much each channel of the target layer counts, :math:`\alpha_k`.

        Parameters
        ----------
        X, target, method
            See :meth:`explain`; the method must be one that weighs channels as a whole, such as
            Grad-CAM.

        Returns
        -------
        ndarray of shape (n_images, K), float32
            (n_images, k, K) for a target of several classes per image. With several target layers a
            list of such arrays, one per layer.

        Raises
        ------
        ValueError
            If an argument does not fit, or the method does not weigh channels.

        References
        ----------
        Selvaraju et al., "Grad-CAM", IJCV 2020, eq. 1; section 7 names the channels that weigh the
        most.
        """
        chosen = self.as_method(method)
        if not isinstance(chosen, ChannelMethod):
            raise ValueError(
                f"{type(chosen).__name__} does not weigh channels as a whole; GradCAM, XGradCAM, "
                "GradCAMPlusPlus, ScoreCAM and AblationCAM do."
            )
        opened = self.open(X)
        question = self.as_target(target, len(opened))
        per_layer: list[list[np.ndarray]] = [[] for _ in self.target_layers]
        with self._bar(len(opened), "channel weights") as bar:
            for batch in opened.batches():
                part = question.take(slice(batch.start, batch.stop))
                weights = self._weigh_channels(batch.inputs, part, chosen)
                for collected, layer_weights in zip(per_layer, weights, strict=True):
                    collected.append(layer_weights.float().cpu().numpy())
                bar.update(len(batch))
        arrays = [np.concatenate(collected) for collected in per_layer]
        return arrays if len(arrays) > 1 else arrays[0]

    def _weigh_channels(
        self, inputs: Inputs, target: Target, method: ChannelMethod
    ) -> list[Tensor]:
        """Return the weights of one batch; a function of its own, as all else is freed with it."""
        with _without_graph(self.adapter):
            weights = method.channel_weights(self._record([method], inputs.recordable(), target))
        return weights if target.several else [layer_weights[:, 0] for layer_weights in weights]

    def strongest_channels(
        self, X: Any, target: Any = None, *, k: int = 5, method: AnyMethod | None = None
    ) -> Bunch:
        """Return the channels that speak most for a class, and most against it.

        Parameters
        ----------
        X, target, method
            See :meth:`channel_weights`; for one target layer.
        k : int, default=5
            How many of each.

        Returns
        -------
        Bunch
            ``positive`` and ``negative``: ndarrays of shape (n_images, k), indices of channels, the
            heaviest first; ``positive_weights`` and ``negative_weights``: their weights.

        References
        ----------
        Selvaraju et al., "Grad-CAM", IJCV 2020, section 7.
        """
        check_count("k, how many channels,", k)
        if len(self.target_layers) > 1:
            raise ValueError("strongest_channels is for one target layer; there are several here.")
        weights = self.channel_weights(X, target, method=method)
        check_count("k, how many channels,", k, 1, weights.shape[-1])
        order = np.argsort(-weights, axis=-1, kind="stable")
        positive, negative = order[..., :k], order[..., : -k - 1 : -1]
        return Bunch(
            positive=positive,
            negative=negative,
            positive_weights=np.take_along_axis(weights, positive, axis=-1),
            negative_weights=np.take_along_axis(weights, negative, axis=-1),
        )


@runtime_checkable
class Explainable(Protocol):
    """An estimator that brings an explainer of its own."""

    def as_explainer(self) -> Explainer: ...


def method_name(method: AnyMethod | None) -> str:
    """Return what a method is called in tables and pictures; nothing for an explainer's own."""
    if method is None or isinstance(method, str):
        return method or ""
    return method.__name__ if isinstance(method, type) else " ".join(repr(method).split())


@contextmanager
def _without_graph(adapter: Adapter) -> Iterator[None]:
    """Evaluate the network, and build no graph but where a recording turns it on."""
    with torch.inference_mode(False), torch.no_grad(), adapter.evaluating():
        yield


def _check_frame(frame: object) -> None:
    if frame not in ("input", "image"):
        raise ValueError(f'frame must be "input" or "image"; got {frame!r}.')


def _check_out(out: object, shapes: list[tuple[int, ...]], frame: str) -> None:
    if frame != "input":
        raise ValueError(
            'out= takes maps of one size; leave frame at "input" with it, or take maps of the '
            "images' sizes from iter_explain."
        )
    if len(shapes) > 1:
        raise ValueError(f"out= takes the maps of one method; got {len(shapes)} methods.")
    shape = shapes[0]
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype.kind != "f":
        found = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out)
        raise ValueError(f"out must be a floating-point ndarray of shape {shape}; got {found}.")
    if not out.flags.writeable:
        raise ValueError("out is read-only; open a memmap with mode 'r+' or 'w+'.")
