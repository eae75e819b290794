"""Explanations from estimators: the mixin that gives an estimator its ``explain``.

It turns any ``X`` into batches, runs each through the network once with the tape on, and hands the
maps over batch by batch, so that the memory needed is that of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from sklcam.cam import GradientMethod, get_method, min_max, target_scores, upsample
from sklcam.images import ImageDataset, map_to_frame
from sklcam.models import TargetLayer
from sklcam.tape import record


class ExplainerMixin:
    """Give an estimator around a network ``explain`` and ``iter_explain``.

    The estimator supplies the batches and the forward pass, in the methods that raise
    NotImplementedError here.
    """

    target_layer_: TargetLayer
    verbose: int
    resize: str

    def _image_dataset(self, X: Any) -> ImageDataset:
        """Check X and return it as a data set at the network's input size."""
        raise NotImplementedError

    def _iter_dataset(self, dataset: ImageDataset) -> Iterator[Tensor]:
        """Yield the network's inputs, batch by batch, in order, on its device."""
        raise NotImplementedError

    def _forward(self, inputs: Tensor) -> Tensor:
        """Run the network in evaluation mode; its first output if it has several."""
        raise NotImplementedError

    def _network(self) -> nn.Module:
        """Return the network whose layer is recorded; an error if there is none yet."""
        raise NotImplementedError

    def _encode_target(self, target: Any, n_images: int) -> Tensor | Callable | None:
        """Check a target and turn labels into class indices."""
        raise NotImplementedError

    def iter_inputs(self, X: Any) -> Iterator[Tensor]:
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
        inputs: Tensor,
        target: Tensor | Callable | None = None,
        *,
        method: str | GradientMethod = "gradcam",
        normalize: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Explain one batch of network inputs; one forward pass gives maps and output.

        Parameters
        ----------
        inputs : Tensor of shape (n_images, channels, height, width)
            As :meth:`iter_inputs` yields them.
        target : None, Tensor of class indices or callable, default=None
            None is the predicted class; a callable makes one score per image of the output.
        method : str or GradientMethod, default="gradcam"
        normalize : bool, default=True
            Whether each map is scaled to [0, 1] by its minimum and maximum.

        Returns
        -------
        maps : Tensor of shape (n_images, height, width)
        output : Tensor
            The network's output, such as logits of shape (n_images, n_classes).
        """
        method = get_method(method)
        network, layer = self._network(), self.target_layer_
        with record(network, layer.of(network)) as tape:
            output = self._forward(inputs)
            scores = target_scores(output, target)
            maps = method(scores, tape.activations, to_grid=layer.to_grid)
        maps = upsample(maps, (inputs.shape[-2], inputs.shape[-1]))
        return (min_max(maps) if normalize else maps), output.detach()

    def iter_explain(
        self,
        X: Any,
        target: Any = None,
        *,
        method: str | GradientMethod = "gradcam",
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
        self, X: Any, target: Any, method: str | GradientMethod, normalize: bool, frame: str
    ) -> tuple[ImageDataset, dict[str, Any]]:
        method = get_method(method)
        _check_frame(frame)
        self._network()
        dataset = self._image_dataset(X)
        target = self._encode_target(target, len(dataset))
        return dataset, {"target": target, "method": method, "normalize": normalize}

    def _iter_maps(
        self, dataset: ImageDataset, frame: str, target: Any, **options: Any
    ) -> Iterator[Any]:
        start = 0
        for inputs in self._iter_dataset(dataset):
            stop = start + len(inputs)
            batch_target = target[start:stop] if isinstance(target, Tensor) else target
            maps, _ = self.explain_inputs(inputs, batch_target, **options)
            if frame == "image":
                sizes = [dataset.original_size(i) for i in range(start, stop)]
                yield [
                    map_to_frame(map_, size, resize=self.resize).float().cpu().numpy()
                    for map_, size in zip(maps, sizes, strict=True)
                ]
            else:
                yield maps.float().cpu().numpy()
            start = stop

    def explain(
        self,
        X: Any,
        target: Any = None,
        *,
        method: str | GradientMethod = "gradcam",
        normalize: bool = True,
        frame: Literal["input", "image"] = "input",
        out: np.ndarray | None = None,
    ) -> Any:
        """Return one map per image: where the network looked for its decision.

        Parameters
        ----------
        X : images
            In any form that ``fit`` takes.
        target : None, array-like of n_images labels, one label, or callable, default=None
            The class to explain: None is the predicted one. A callable takes the network's output
            and returns one score per image, any differentiable one.
        method : str or GradientMethod, default="gradcam"
            One of :func:`sklcam.cam.available`, or a method object such as ``GradCAM(relu=False)``.
        normalize : bool, default=True
            Whether each map is scaled to [0, 1] by its minimum and maximum; a constant map becomes
            all zeros. False returns the method's own numbers.
        frame : {"input", "image"}, default="input"
            "input" gives maps at the network's input size, "image" each at its own image's size.
        out : ndarray of shape (n_images, height, width) or None
            Where to write the maps, such as a ``numpy.memmap``; for ``frame="input"`` only.

        Returns
        -------
        ndarray of shape (n_images, height, width), float32 (in [0, 1] if normalised)
            ``out`` if it was given. With ``frame="image"`` a list of arrays, or one array if X is
            an array or a tensor, whose images are all of one size.

        Raises
        ------
        ValueError
            If X, the target or another argument does not fit; before any work is done.
        """
        dataset, options = self._check_explain(X, target, method, normalize, frame)
        if out is not None:
            _check_out(out, (len(dataset), *dataset.image_size), frame)
        bar = tqdm(
            total=len(dataset), desc="explain", delay=1, leave=False, disable=not self.verbose
        )
        batches = self._iter_maps(dataset, frame, **options)
        with bar:
            if frame == "image":
                return _collect_frames(batches, bar, stack=dataset.uniform_size is not None)
            if out is None:
                out = np.empty((len(dataset), *dataset.image_size), dtype=np.float32)
            return _fill(out, batches, bar)


def _fill(out: np.ndarray, batches: Iterator[np.ndarray], bar: tqdm) -> np.ndarray:
    start = 0
    for maps in batches:
        out[start : start + len(maps)] = maps
        start += len(maps)
        bar.update(len(maps))
    return out


def _collect_frames(batches: Iterator[list], bar: tqdm, stack: bool) -> Any:
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
