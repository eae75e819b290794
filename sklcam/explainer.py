"""Explanations from estimators, and from any trained network.

A mixin gives an estimator its ``explain``; ``CAMExplainer`` puts it on networks that were trained
elsewhere. The mixin turns any ``X`` into batches, runs each through the network as the method needs
it, and hands the maps over batch by batch, so that the memory needed is that of one batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.utils import Bunch
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet, NeuralNetBinaryClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from sklcam.arguments import check_count, check_size, describe
from sklcam.cam import Method, TopK, get_method, min_max, upsample
from sklcam.cam.base import at_least_float32
from sklcam.cam.targets import has_several, resolve_target
from sklcam.folding import is_out_of_memory
from sklcam.images import (
    ImageDataset,
    map_to_frame,
    normalize,
)
from sklcam.inputs import (
    Inputs,
    NetworkInputs,
    SeveralInputs,
    images_of,
    is_network_input,
    with_images,
)
from sklcam.labels import encode_labels, labels_for
from sklcam.models import TargetLayer, find_target_layer
from sklcam.net import ImageNeuralNet, single_position
from sklcam.tape import record

AnyMethod = str | Method | type[Method]


class ExplainerMixin:
    """Give an estimator around a network ``explain`` and its relatives.

    The estimator supplies the batches and the forward pass, in the methods that raise
    NotImplementedError here.
    """

    classes_: Any
    target_layer_: TargetLayer
    verbose: int
    resize: Any
    n_channels_: int

    def _input_size(self) -> tuple[int, int]:
        """Return height and width of the network's input."""
        raise NotImplementedError

    def _image_dataset(self, X: Any) -> Any:
        """Check X and return it as a data set at the network's input size."""
        raise NotImplementedError

    def _iter_dataset(self, dataset: Any) -> Iterator[Any]:
        """Yield the network's inputs, batch by batch, in order, on its device."""
        raise NotImplementedError

    def _forward(self, inputs: Any) -> Tensor:
        """Run the network in evaluation mode; its first output if it has several."""
        raise NotImplementedError

    def _network(self) -> nn.Module:
        """Return the network whose layer is recorded; an error if there is none yet."""
        raise NotImplementedError

    # What an estimator may have another answer to

    def _target_layers(self) -> list[TargetLayer]:
        return [self.target_layer_]

    def _default_method(self) -> AnyMethod:
        return "gradcam"

    def _layer_fusion(self) -> str | None:
        return "mean"

    def _name_of_image(self) -> str | None:
        return None

    def _frame_resize(self) -> str:
        return self.resize

    def _top_channels(self) -> int | None:
        return None

    def _evaluating(self) -> AbstractContextManager[Any]:
        """For as long as a batch is being explained."""
        return nullcontext()

    def _encode_target(
        self, target: Any, n_images: int
    ) -> Tensor | TopK | Callable[..., Any] | None:
        """Check a target and turn labels into class indices."""
        if isinstance(target, TopK) and self.classes_ is not None:
            target.check(len(self.classes_))
        if target is None or isinstance(target, TopK) or callable(target):
            return target
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
        return torch.from_numpy(indices)

    def iter_inputs(self, X: Any) -> Iterator[Any]:
        """Yield X as the network gets it, batch after batch.

        Parameters
        ----------
        X : images
            In any form that ``fit`` takes.

        Yields
        ------
        Tensor of shape (batch_size, channels, height, width)
            Resized and normalised, on the network's device.
        """
        self._network()
        return self._iter_dataset(self._image_dataset(X))

    def explain_inputs(
        self,
        inputs: Inputs,
        target: Tensor | TopK | Callable[..., Any] | None = None,
        *,
        method: AnyMethod | None = None,
        normalize: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Explain one batch of network inputs; one forward pass gives maps and output.

        Parameters
        ----------
        inputs : Tensor of shape (n_images, channels, height, width), or mapping of names to tensors
            As :meth:`iter_inputs` yields them.
        target : None, Tensor of class indices, TopK or callable, default=None
            None is the predicted class; indices may be one per image, or one row of k; a callable
            makes one score per image of the output.
        method : str, Method or None, default=None
            As of :meth:`explain`.
        normalize : bool, default=True
            Whether each map is scaled to [0, 1] by its minimum and maximum.

        Returns
        -------
        maps : Tensor of shape (n_images, height, width)
            With further axes after the first as :meth:`explain` describes.
        output : Tensor
            The network's output, such as logits of shape (n_images, n_classes).
        """
        maps, output = self.explain_inputs_by(inputs, target, methods=[method], normalize=normalize)
        return maps[0], output

    def explain_inputs_by(
        self,
        inputs: Inputs,
        target: Tensor | TopK | Callable[..., Any] | None = None,
        *,
        methods: Sequence[AnyMethod | None],
        normalize: bool = True,
    ) -> tuple[list[Tensor], Tensor]:
        """Explain one batch by several methods; those that can share a forward pass do.

        Parameters
        ----------
        inputs, target, normalize
            As of :meth:`explain_inputs`.
        methods : sequence of str, Method or None
            Those that ask for nothing but gradients at the layers, such as Grad-CAM with and
            without its ReLU, share one pass and one way back.

        Returns
        -------
        maps : list of Tensor
            Those of each method, as of :meth:`explain_inputs`.
        output : Tensor
        """
        self.images_of(inputs)  # an error if there are none
        if isinstance(methods, str) or not isinstance(methods, Sequence) or not methods:
            raise ValueError(
                f"methods must be a sequence of at least one method; got {describe(methods)}."
            )
        chosen = [self._method(method) for method in methods]
        all_maps: list[Tensor] = []
        shared: Any = None
        subject: Any = None
        with torch.inference_mode(False), torch.no_grad(), self._evaluating():
            for method in chosen:
                shares = method.graph == "head" and method.rule() is None
                subject = shared if shares else None
                if subject is None:
                    subject = self._subject(inputs, target, method)
                shared = subject if shares else shared
                raw = [upsample(maps, subject.size) for maps in method.explain(subject)]
                maps = self._fuse(raw, scaled=normalize and method.scaled)
                all_maps.append(maps if has_several(target) else maps[:, 0])
        return all_maps, subject.output.detach()

    def images_of(self, inputs: Inputs) -> Tensor:
        """Return the images among a network's inputs.

        Parameters
        ----------
        inputs : Tensor of shape (n_images, channels, height, width), or mapping of names to tensors

        Returns
        -------
        Tensor of shape (n_images, channels, height, width)
        """
        return images_of(inputs, self._name_of_image())

    def with_images(self, inputs: Inputs, images: Tensor, rows: Tensor | None = None) -> Inputs:
        """Return inputs with other images in their place.

        Parameters
        ----------
        inputs : Tensor of shape (n_images, channels, height, width), or mapping of names to tensors
        images : Tensor of shape (m, channels, height, width)
        rows : Tensor of shape (m,) or None
            Whose other inputs each of the images goes with; None if they are in the same order.

        Returns
        -------
        Tensor or mapping, as ``inputs``
        """
        return with_images(inputs, images, rows, self._name_of_image())

    def output_of(self, inputs: Inputs) -> Tensor:
        """Return the network's output, in evaluation mode and without a graph.

        Parameters
        ----------
        inputs : Tensor of shape (n_images, channels, height, width), or mapping of names to tensors

        Returns
        -------
        Tensor
        """
        self.images_of(inputs)  # an error if there are none
        with torch.inference_mode(False), torch.no_grad(), self._evaluating():
            return self._forward(inputs)

    def probabilities(self, output: Tensor) -> Tensor:
        """Turn the network's output into probabilities.

        Parameters
        ----------
        output : Tensor of shape (n_images, n_classes)

        Returns
        -------
        Tensor of shape (n_images, n_classes), in [0, 1]
        """
        return at_least_float32(output).softmax(dim=1)

    def fixed_target(self, output: Tensor, target: Any) -> Any:
        """Return the target that asks of other images what this one asks of these.

        Parameters
        ----------
        output : Tensor
            The network's output for some images.
        target : None, Tensor, TopK or callable
            As of :meth:`explain_inputs`; of several classes the first one counts.

        Returns
        -------
        Tensor of shape (n_images,), or the callable
            The predicted classes for None.
        """
        return target if callable(target) else resolve_target(output, target)[:, 0]

    def _method(self, method: AnyMethod | None) -> Method:
        chosen = get_method(self._default_method() if method is None else method)
        chosen.check()
        return chosen

    def _subject(self, inputs: Any, target: Any, method: Method) -> Any:
        return method.subject(
            self._network(),
            self._target_layers(),
            _recordable(inputs),
            target=target,
            forward=self._forward,
            image_input=self._name_of_image(),
            top_channels=self._top_channels(),
        )

    def _fuse(self, maps: list[Tensor], *, scaled: bool) -> Tensor:
        """Scale the maps of each layer and make one of them, (n_images, k, ...)."""
        if scaled:
            maps = [min_max(of_layer) for of_layer in maps]
        if len(maps) == 1:
            return maps[0]
        stacked = torch.stack(maps, dim=2)
        fusion = self._layer_fusion()
        if fusion is None:
            return stacked
        fused = stacked.mean(dim=2) if fusion == "mean" else stacked.amax(dim=2)
        return min_max(fused) if scaled else fused

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
        dataset, options = self._check_explain(X, target, method, normalize, frame)
        return self._iter_maps(dataset, frame, **options)

    def _check_explain(
        self, X: Any, target: Any, method: AnyMethod | None, normalize: bool, frame: str
    ) -> tuple[Any, dict[str, Any]]:
        chosen = self._method(method)
        _check_frame(frame)
        self._network()
        dataset = self._image_dataset(X)
        target = self._encode_target(target, len(dataset))
        return dataset, {"target": target, "method": chosen, "normalize": normalize}

    def _iter_maps(self, dataset: Any, frame: str, target: Any, **options: Any) -> Iterator[Any]:
        start = 0
        for inputs, batch_target in self._iter_targeted(dataset, target):
            maps, _ = self.explain_inputs(inputs, batch_target, **options)
            stop = start + len(maps)
            if frame == "image":
                sizes = [dataset.original_size(i) for i in range(start, stop)]
                yield [
                    map_to_frame(map_, size, resize=self._frame_resize()).float().cpu().numpy()
                    for map_, size in zip(maps, sizes, strict=True)
                ]
            else:
                yield maps.float().cpu().numpy()
            start = stop

    def _iter_targeted(self, dataset: Any, target: Any) -> Iterator[tuple[Any, Any]]:
        """Yield inputs and the part of the target that is theirs."""
        start = 0
        for inputs in self._iter_dataset(dataset):
            stop = start + len(self.images_of(inputs))
            yield inputs, target[start:stop] if isinstance(target, Tensor) else target
            start = stop

    def explain(
        self,
        X: Any,
        target: Any = None,
        *,
        method: AnyMethod | None = None,
        normalize: bool = True,
        frame: Literal["input", "image"] = "input",
        out: np.ndarray | None = None,
    ) -> Any:
        """Return one map per image: where the network looked for its decision.

        Parameters
        ----------
        X : images
            In any form that ``fit`` takes.
        target : None, label, array-like of labels, TopK or callable, default=None
            The class to explain: None is the predicted one. Labels are one for all, one per image,
            or, of shape (n_images, k), several per image; :class:`sklcam.cam.TopK` are the highest
            scoring ones. Several are explained from one forward pass. A callable takes an output of
            the network, of any number of images, and returns one score for each, any
            differentiable one that depends on that image's part of the output alone.
        method : str, Method or None, default=None
            One of :func:`sklcam.cam.available`, or a method object such as ``GradCAM(relu=False)``.
            None is the estimator's own, or Grad-CAM.
        normalize : bool, default=True
            Whether each map is scaled to [0, 1] by its minimum and maximum; a constant map becomes
            all zeros. False returns the method's own numbers. Controls, and signed maps
            (``channels="keep"``), are never scaled.
        frame : {"input", "image"}, default="input"
            "input" gives maps at the network's input size, "image" each at its own image's size.
        out : ndarray of the result's shape or None
            Where to write the maps, such as a ``numpy.memmap``; for ``frame="input"`` only.

        Returns
        -------
        ndarray of shape (n_images, height, width), float32 (in [0, 1] if normalised)
            ``out`` if it was given. There are further axes after the first, in this order: k for a
            target of several classes per image, the layers if several are kept apart, and the
            image's channels for signed maps. With ``frame="image"`` a list of arrays, or one array
            if X is an array or a tensor, whose images are all of one size.

        Raises
        ------
        ValueError
            If X, the target or another argument does not fit; before any work is done.
        """
        dataset, options = self._check_explain(X, target, method, normalize, frame)
        shape = self._shape(dataset, options["target"], options["method"])
        if out is not None:
            _check_out(out, shape, frame)
        bar = self._bar(len(dataset), "explain")
        batches = self._iter_maps(dataset, frame, **options)
        with bar:
            if frame == "image":
                return _collect_frames(batches, bar, stack=dataset.uniform_size is not None)
            if out is None:
                out = np.empty(shape, dtype=np.float32)
            return _fill(out, batches, bar)

    def _shape(self, dataset: Any, target: Any, method: Method) -> tuple[int, ...]:
        """Return the shape that all maps will have."""
        shape = [len(dataset)]
        if has_several(target):
            shape.append(target.k if isinstance(target, TopK) else target.shape[1])
        n_layers = len(self._target_layers())
        if method.uses_layers and n_layers > 1 and self._layer_fusion() is None:
            shape.append(n_layers)
        if getattr(method, "channels", None) == "keep":
            shape.append(dataset.n_channels)
        return (*shape, *dataset.image_size)

    def _bar(self, total: int, description: str) -> tqdm:
        return tqdm(total=total, desc=description, delay=1, leave=False, disable=not self.verbose)

    def channel_weights(
        self, X: Any, target: Any = None, *, method: AnyMethod | None = None
    ) -> Any:
        r"""Return how much each channel of the target layer counts, :math:`\alpha_k`.

        Parameters
        ----------
        X, target, method
            As of :meth:`explain`; the method must be one that weighs channels as a whole, such as
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
        dataset, options = self._check_explain(X, target, method, False, "input")
        per_layer: list[list[np.ndarray]] = [[] for _ in self._target_layers()]
        with self._bar(len(dataset), "channel weights") as bar:
            for inputs, batch_target in self._iter_targeted(dataset, options["target"]):
                weights = self._weigh_channels(inputs, batch_target, options["method"])
                for batches, of_layer in zip(per_layer, weights, strict=True):
                    batches.append(of_layer.float().cpu().numpy())
                bar.update(len(weights[0]))
        arrays = [np.concatenate(batches) for batches in per_layer]
        return arrays if len(arrays) > 1 else arrays[0]

    def _weigh_channels(self, inputs: Inputs, target: Any, method: Method) -> list[Tensor]:
        """Return the weights of one batch; a function of its own, as all else is freed with it."""
        with torch.inference_mode(False), torch.no_grad(), self._evaluating():
            weights = method.channel_weights(self._subject(inputs, target, method))
        return weights if has_several(target) else [of_layer[:, 0] for of_layer in weights]

    def strongest_channels(
        self, X: Any, target: Any = None, *, k: int = 5, method: AnyMethod | None = None
    ) -> Bunch:
        """Return the channels that speak most for a class, and most against it.

        Parameters
        ----------
        X, target, method
            As of :meth:`channel_weights`, for one target layer.
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
        self._network()  # an error if it is not fitted
        check_count("k, how many channels,", k)
        if len(self._target_layers()) > 1:
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


def _recordable(inputs: Any) -> Any:
    """Copy tensors that were made in inference mode, as no graph can hold them."""
    if isinstance(inputs, Mapping):
        return {name: _recordable(value) for name, value in inputs.items()}
    return inputs.clone() if inputs.is_inference() else inputs


def _fill(out: np.ndarray, batches: Iterator[np.ndarray], bar: tqdm) -> np.ndarray:
    start = 0
    for maps in batches:
        out[start : start + len(maps)] = maps
        start += len(maps)
        bar.update(len(maps))
    return out


def _collect_frames(batches: Iterator[list[Any]], bar: tqdm, stack: bool) -> Any:
    frames: list[np.ndarray] = []
    for maps in batches:
        frames.extend(maps)
        bar.update(len(maps))
    return np.stack(frames) if stack else frames


def _check_frame(frame: object) -> None:
    if frame not in ("input", "image"):
        raise ValueError(f'frame must be "input" or "image"; got {frame!r}.')


def _check_out(out: object, shape: tuple[int, ...], frame: str) -> None:
    if frame != "input":
        raise ValueError(
            'out= takes maps of one size; leave frame at "input" with it, or take maps of the '
            "images' sizes from iter_explain."
        )
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype.kind != "f":
        came = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out)
        raise ValueError(f"out must be a floating-point ndarray of shape {shape}; got {came}.")
    if not out.flags.writeable:
        raise ValueError("out is read-only; open a memmap with mode 'r+' or 'w+'.")


class CAMExplainer(ClassifierMixin, ExplainerMixin, BaseEstimator):
    """Explain a trained classifier by any method, as it is.

    The network is used, and never changed: its mode, hooks, gradients and flags are after each call
    what they were before, also after an error. It stays on its device, in its precision.

    Parameters
    ----------
    model : nn.Module or fitted estimator
        A network that takes images and returns logits of shape (n_images, n_classes); a fitted
        skorch net around one; or a fitted :class:`~sklcam.ConsistentCAMClassifier`. Of several
        outputs in a tuple, the first one counts.
    method : str, Method or class of methods, default="gradcam"
        One of :func:`sklcam.cam.available`, or a method object with options of its own.
    target_layer : str, TargetLayer or list of them, default="auto"
        Dotted name of the layer that is explained; "auto" is the usual one of a known family, and
        otherwise the last layer with a spatial output. Of several layers, one pass makes all maps.
    layer_fusion : {"mean", "max"} or None, default="mean"
        How the maps of several layers become one: each scaled to [0, 1], then their mean or
        maximum; None keeps them apart, on an axis of their own.
    reshape : callable or None, default=None
        For layers whose output is no grid, such as the tokens of a transformer outside torchvision:
        takes the output and returns it as (n_images, K, u, v), differentiably.
    image_input : str or None, default=None
        For networks of several inputs, whose X is a dict of arrays or tensors, as in skorch: which
        of them is the image.
    classes : array-like or None, default=None
        The label of each output, in their order. None is the model's ``classes_``, the labels of
        ``y`` in :meth:`fit`, or 0, 1, ....
    image_size : int, (height, width) or None, default=None
        What images are resized to; None is the model's own if it has one, else 224.
    resize : {"stretch", "center_crop"} or None, default=None
        Both sides to ``image_size``, or the proportions kept and the middle cut out; None is the
        model's own, else "stretch".
    mean, std : "auto", float or one float a channel, default="auto"
        Normalisation after scaling to [0, 1]; "auto" is the model's own, else ImageNet's.
    batch_size : int, default=32
        Images that go through the network at a time.
    num_workers : int, default=0
        Processes that read and resize images.
    verbose : int, default=1
        0 silences the progress bar.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,) or None
        The label of each output; None if the output is not (n_images, n_classes).
    target_layers_ : list of TargetLayer
        The layers that are explained.

    Notes
    -----
    Around a bare module or a plain skorch net, float tensors, and data sets that yield them, are
    the network's input and go there untouched, in any range. Arrays, file paths and PIL images are
    resized, scaled to [0, 1] and normalised, as ``image_size``, ``mean`` and ``std`` say. A
    ConsistentCAMClassifier prepares all its images itself.

    Copies made by :func:`sklearn.base.clone` share the model.

    Examples
    --------
    >>> import torch
    >>> from sklcam import CAMExplainer
    >>> from sklcam.models import build_model
    >>> network = build_model("resnet18", n_classes=5)
    >>> images = torch.randn(2, 3, 64, 64)
    >>> explainer = CAMExplainer(network, method="gradcam++").fit(images)
    >>> explainer.target_layers_[0].name
    'layer4'
    >>> explainer.explain(images).shape
    (2, 64, 64)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "model": [nn.Module, NeuralNet],
        "method": [str, Method, type],
        "target_layer": [str, TargetLayer, list, tuple],
        "layer_fusion": [StrOptions({"mean", "max"}), None],
        "reshape": [None, callable],
        "image_input": [None, str],
        "classes": [None, "array-like"],
        "image_size": [None, Interval(Integral, 1, None, closed="left"), tuple, list],
        "resize": [None, StrOptions({"stretch", "center_crop"})],
        "mean": [StrOptions({"auto"}), Real, "array-like"],
        "std": [StrOptions({"auto"}), Real, "array-like"],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "num_workers": [Interval(Integral, 0, None, closed="left")],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model: Any,
        method: AnyMethod = "gradcam",
        target_layer: str | TargetLayer | Sequence[str | TargetLayer] = "auto",
        *,
        layer_fusion: Literal["mean", "max"] | None = "mean",
        reshape: Callable[[Tensor], Tensor] | None = None,
        image_input: str | None = None,
        classes: Any = None,
        image_size: int | tuple[int, int] | None = None,
        resize: Literal["stretch", "center_crop"] | None = None,
        mean: Any = "auto",
        std: Any = "auto",
        batch_size: int = 32,
        num_workers: int = 0,
        verbose: int = 1,
    ):
        self.model = model
        self.method = method
        self.target_layer = target_layer
        self.layer_fusion = layer_fusion
        self.reshape = reshape
        self.image_input = image_input
        self.classes = classes
        self.image_size = image_size
        self.resize = resize
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.verbose = verbose

    def fit(self, X: Any = None, y: Any = None) -> CAMExplainer:
        """Find the layers and the classes; nothing is learned.

        Parameters
        ----------
        X : images or None, default=None
            One image is enough. Needed where a dry run on a blank image of ``image_size`` does not
            do, such as for networks of several inputs.
        y : array-like of labels or None, default=None
            All labels, where the model does not know them.

        Returns
        -------
        self

        Raises
        ------
        NotFittedError
            If the model is an estimator that has not been fitted.
        ValueError
            If a parameter does not fit the model.
        """
        own = {name: vars(self)[name] for name in self._parameter_constraints}
        validate_parameter_constraints(
            self._parameter_constraints, own, caller_name=type(self).__name__
        )
        get_method(self.method).check()
        self._check_own_preparation()
        self._input_size()
        network = self._module()
        if _where(network)[0].type == "meta":
            raise ValueError(
                "The network is on the meta device, where tensors have no values; load its weights."
            )
        sample = self._sample(X, network)
        output = self._dry_run(sample, given=X is not None)
        self.classes_ = self._find_classes(output, y)
        self.target_layers_ = self._find_layers(network, sample)
        if get_method(self.method).uses_layers:
            self._warn_of_single_positions(network, sample)
        return self

    def _check_own_preparation(self) -> None:
        if not isinstance(self.model, ImageNeuralNet):
            return
        given = {"image_size": self.image_size, "resize": self.resize}
        statistics = {"mean": self.mean, "std": self.std}
        given |= {name: None if isinstance(v, str) else v for name, v in statistics.items()}
        wrong = [name for name, value in given.items() if value is not None]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)}: a {type(self.model).__name__} prepares images as it was "
                "trained; leave this at its default."
            )

    def _module(self) -> nn.Module:
        if isinstance(self.model, nn.Module):
            return self.model
        if not getattr(self.model, "initialized_", False) or not hasattr(self.model, "module_"):
            raise NotFittedError(
                f"CAMExplainer explains trained models; fit the {type(self.model).__name__} first."
            )
        return self.model.module_

    def _sample(self, X: Any, network: nn.Module) -> Any:
        """Return the network's input for one image."""
        if X is not None:
            dataset = self._image_dataset(X)
            return _first_image(next(iter(self._iter_dataset(dataset, batch_size=1))))
        if self.image_input is not None:
            raise ValueError(
                "A network of several inputs cannot be tried on a blank; give fit an X."
            )
        if isinstance(self.model, ImageNeuralNet):
            size, n_channels = self.model._input_size(), self.model.n_channels_
        else:
            stem = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
            size, n_channels = self._input_size(), 3 if stem is None else stem.in_channels
        device, dtype = _where(network)
        return torch.zeros(1, n_channels, *size, device=device, dtype=dtype)

    def _dry_run(self, sample: Any, *, given: bool) -> Tensor:
        try:
            with torch.inference_mode(False), torch.no_grad(), self._evaluating():
                output = self._forward(sample)
        except Exception as error:
            is_refused = isinstance(error, RuntimeError) and not is_out_of_memory(error)
            if given and not (is_refused and isinstance(sample, Tensor)):
                raise
            shape = tuple(sample.shape[1:])
            message = f"The network does not take images of {shape}: {error}"
            if not given:
                message = (
                    f"The network does not take a blank image of {shape}; give fit an X of the "
                    "kind that it takes."
                )
            raise ValueError(message) from error
        if not isinstance(output, Tensor):
            raise ValueError(
                f"The network returns a {type(output).__name__}; it must return a Tensor, or a "
                "tuple that starts with one: wrap it in a module that does."
            )
        return output

    def _find_classes(self, output: Tensor, y: Any) -> np.ndarray | None:
        known = self.classes
        if known is None and not isinstance(self.model, nn.Module):
            try:
                known = self.model.classes_
            except AttributeError:
                known = None
        if output.ndim != 2:
            return None if known is None else np.asarray(known)
        n_classes = output.shape[1]
        numbers = np.arange(n_classes)
        if known is None and y is not None and not np.isin(y, numbers).all():
            known = np.unique(y)
        classes = numbers if known is None else np.asarray(known)
        if classes.shape != (n_classes,) or len(np.unique(classes)) != n_classes:
            raise ValueError(
                f"The network has {n_classes} outputs, and there are {len(np.unique(classes))} "
                "labels for them; give classes= the label of each output, in their order."
            )
        return classes

    def _find_layers(self, network: nn.Module, sample: Any) -> list[TargetLayer]:
        wanted: list[Any] = [self.target_layer]
        if isinstance(self.target_layer, list | tuple):
            wanted = list(self.target_layer)
        if not wanted:
            raise ValueError("target_layer is an empty list; name at least one layer.")
        for name in wanted:
            if not isinstance(name, str | TargetLayer):
                raise ValueError(
                    "target_layer takes a layer's dotted name, such as 'features.3', or a "
                    f"TargetLayer; got a {type(name).__name__}."
                )
        if isinstance(self.model, ImageNeuralNet) and wanted == ["auto"]:
            layers = [self.model.target_layer_]
        else:
            image = sample if isinstance(sample, Tensor) else None
            with self._evaluating():
                layers = [find_target_layer(network, name, sample=image) for name in wanted]
        names = [layer.name for layer in layers]
        if len(set(names)) < len(names):
            raise ValueError(f"target_layer names a layer twice: {names}.")
        return [replace(layer, reshape=self.reshape or layer.reshape) for layer in layers]

    def _warn_of_single_positions(self, network: nn.Module, sample: Any) -> None:
        layers = [(layer, layer.of(network)) for layer in self.target_layers_]
        height, width = self.images_of(sample).shape[-2:]
        with record(network, *(part for _, part in layers)) as tape, self._evaluating():
            self._forward(_recordable(sample))
            found = [single_position(of, tape.of(part), (height, width)) for of, part in layers]
        for message in filter(None, found):
            warnings.warn(message, stacklevel=3)

    # What the mixin asks for

    def _network(self) -> nn.Module:
        check_is_fitted(self, "target_layers_")
        return self._module()

    def _target_layers(self) -> list[TargetLayer]:
        return self.target_layers_

    def _default_method(self) -> AnyMethod:
        return self.method

    def _layer_fusion(self) -> str | None:
        return self.layer_fusion

    def _name_of_image(self) -> str | None:
        return self.image_input

    def _frame_resize(self) -> str:
        return self.resize or getattr(self.model, "resize", None) or "stretch"

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self._module().modules()]
        self._module().eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def _forward(self, inputs: Any) -> Tensor:
        if isinstance(self.model, nn.Module):
            output = self.model(**inputs) if isinstance(inputs, Mapping) else self.model(inputs)
        else:
            output = self.model.infer(inputs)
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(self.model, NeuralNetBinaryClassifier):
            return self._two_columns(output.reshape(len(output), 1))
        return output

    def _two_columns(self, second: Tensor) -> Tensor:
        """Return a binary net's output, which is the second class's alone, as both classes'."""
        if self._gives_probability():
            return torch.cat([1 - second, second], dim=1)
        # Of one logit, two whose softmax is its sigmoid.
        return second * second.new_tensor([-0.5, 0.5])

    def _gives_probability(self) -> bool:
        return isinstance(self.model.criterion_, nn.BCELoss)

    def _input_size(self) -> tuple[int, int]:
        return check_size(224 if self.image_size is None else self.image_size, "image_size")

    def _image_dataset(self, X: Any) -> Any:
        if isinstance(X, Mapping):
            if self.image_input not in X:
                raise ValueError(
                    f"X is a dict of inputs {sorted(map(str, X))}; image_input must name the one "
                    f"that is the image, and is {self.image_input!r}."
                )
            images = self._image_dataset(X[self.image_input])
            others = {name: value for name, value in X.items() if name != self.image_input}
            return SeveralInputs(images, others)
        if isinstance(self.model, ImageNeuralNet):
            return self.model._image_dataset(X)
        if is_network_input(X):
            return NetworkInputs(X)
        return ImageDataset(X, image_size=self._input_size(), resize=self.resize or "stretch")

    def _iter_dataset(self, dataset: Any, batch_size: int | None = None) -> Iterator[Any]:
        if isinstance(dataset, SeveralInputs):
            start = 0
            for images in self._iter_dataset(dataset.images, batch_size):
                stop = start + len(images)
                others = dataset.others(start, stop, images)
                yield {str(self.image_input): images, **others}
                start = stop
            return
        if isinstance(self.model, ImageNeuralNet):
            yield from self.model._iter_dataset(dataset)
            return
        device, dtype = _where(self._module())
        loader = DataLoader(
            dataset,
            batch_size=batch_size or self.batch_size,
            num_workers=self.num_workers,
            # A loader draws a seed even if it has no use for it: not from the global generator.
            generator=torch.Generator().manual_seed(0),
        )
        for images, _ in loader:
            images = images.to(device)
            if not isinstance(dataset, NetworkInputs):
                images = self._normalize(images)
            yield images.to(dtype)

    def _normalize(self, images: Tensor) -> Tensor:
        return normalize(images, self.mean, self.std)

    # Prediction

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class.

        Parameters
        ----------
        X : images

        Returns
        -------
        ndarray of shape (n_images, n_classes), in [0, 1]
            In the order of ``classes_``. By the net's own nonlinearity for a skorch net; otherwise
            the softmax of the output, or the output itself where its rows are probabilities.
        """
        self._network()
        batches = []
        for inputs in self.iter_inputs(X):
            with torch.inference_mode(False), torch.no_grad(), self._evaluating():
                output = self._forward(inputs)
                if output.ndim != 2:
                    raise ValueError(
                        f"The network's output has shape {tuple(output.shape)}, not (n_images, "
                        "n_classes): there are no classes to predict."
                    )
                batches.append(self.probabilities(output).cpu().numpy())
        return np.concatenate(batches)

    def probabilities(self, output: Tensor) -> Tensor:
        """Turn the network's output into probabilities.

        Parameters
        ----------
        output : Tensor of shape (n_images, n_classes)

        Returns
        -------
        Tensor of shape (n_images, n_classes), in [0, 1]
        """
        output = at_least_float32(output)
        if isinstance(self.model, NeuralNetBinaryClassifier):
            second = output[:, 1] if self._gives_probability() else output[:, 1] - output[:, 0]
            return self.model._get_predict_nonlinearity()(second)
        if isinstance(self.model, NeuralNet):
            return self.model._get_predict_nonlinearity()(output)
        sums_to_one = (output.sum(dim=1) - 1).abs() < 1e-3
        if bool((sums_to_one & (output >= 0).all(dim=1)).all()):
            return output
        return output.softmax(dim=1)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each image.

        Parameters
        ----------
        X : images

        Returns
        -------
        ndarray of shape (n_images,)
        """
        probabilities = self.predict_proba(X)
        if isinstance(self.model, NeuralNetBinaryClassifier):
            return self.classes_[(probabilities[:, 1] > self.model.threshold).astype(int)]
        return self.classes_[probabilities.argmax(axis=1)]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy on X.

        Parameters
        ----------
        X : images
        y : array-like of shape (n_images,)
            May be left out for a data set that has ``targets``.
        sample_weight : array-like of shape (n_images,) or None, default=None

        Returns
        -------
        float, in [0, 1]
        """
        y = labels_for(X, y, "score")
        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))

    def __sklearn_clone__(self) -> CAMExplainer:
        options = {name: value for name, value in vars(self).items() if not name.endswith("_")}
        return type(self)(
            **{
                name: value if name == "model" else clone(value, safe=False)
                for name, value in options.items()
            }
        )


def _first_image(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[:1]
    return {name: value[:1] for name, value in inputs.items()}


def _where(network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and the precision that a network computes in."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.get_default_dtype()
