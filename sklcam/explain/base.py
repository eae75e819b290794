"""What anything that explains offers to its neighbours.

The explainer turns any ``X`` into batches, runs each through the network as the method needs it,
and hands the maps over batch by batch, so that the memory needed is that of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sklcam._validation import check_count, describe
from sklcam.cam import Method, TopK, get_method, min_max, upsample
from sklcam.cam.maps import at_least_float32
from sklcam.cam.targets import has_several, resolve_target
from sklcam.images.frames import map_to_frame
from sklcam.images.labels import encode_labels
from sklcam.networks.inputs import (
    Inputs,
    images_of,
    with_images,
)
from sklcam.networks.layers import TargetLayer

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
