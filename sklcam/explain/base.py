"""The Explainer protocol: the interface of explainers for metrics, displays and reports.

An explainer opens any ``X`` once, runs it through its network batch by batch, and returns the maps
of several methods, the network's output and the sizes of the images from the same pass. Memory
holds one batch at a time, and no image is read twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from sklcam._folders import Shard
from sklcam.cam import Method
from sklcam.explain._arrays import (
    Frame,
    MapDtype,
    MapStore,
    SentMaps,
    check_frame,
    dtype_of_maps,
)
from sklcam.explain._batches import AnyInputs, ExplainedBatch
from sklcam.explain._channels import ChannelExplainer
from sklcam.explain._questions import AnyMethod, AnyTarget, Methods, method_name
from sklcam.explain.onnx_files import write_onnx
from sklcam.explain.stored import write_maps
from sklcam.images.streams import is_stream
from sklcam.networks.fetching import one_behind

__all__ = [
    "AnyInputs",
    "AnyMethod",
    "AnyTarget",
    "Explainable",
    "ExplainedBatch",
    "Explainer",
    "Methods",
    "method_name",
]


class Explainer(ChannelExplainer):
    """Base class of explainers: an adapter to a network, its target layers, and a method.

    Metrics, displays and reports use only this class's public methods and attributes.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,) or None
        The label of each class. None if the network has no classes.
    method : str, Method or class of methods
        The default method, for calls that do not name another.
    layer_fusion : {"mean", "max"} or None
        How the maps of several layers are fused into one.
    image_input : str or None
        Which of several inputs is the image.
    top_channels : int or None
        The number of channels that make up a map: the channels with the highest weights. None uses
        all.
    verbose : int
        0 silences the progress bar.
    shows_probabilities : bool
        Whether the probabilities tell a reader how sure the network is.

    Examples
    --------
    The maps of a :class:`~sklcam.CAMExplainer`, batch by batch:

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

    # All images

    def iter_explain(
        self,
        X: Any,
        target: Any = None,
        *,
        method: AnyMethod | None = None,
        normalize: bool = True,
        frame: Frame = "input",
        dtype: MapDtype | None = None,
    ) -> Iterator[Any]:
        """Yield the maps of X batch after batch, in constant memory.

        Arguments are checked immediately, before the first batch is requested.

        Parameters
        ----------
        X : images, or iterable of them
            X may have no length, such as a generator, a torch ``DataLoader``, an
            ``IterableDataset`` or a streaming Hugging Face data set. It yields single images, which
            are collected into batches, or batches, which are kept: arrays or tensors with four
            axes, lists of images, or tables. Both may come with their labels, (images, labels), or
            in a dict, in which the images are found automatically or named by ``image_input``.
            Labels are ignored. Other entries that the network takes by name are passed to it.
            Tensors of a ``DataLoader`` mean the same as in ``explain``: for a bare network, float
            tensors are its own input and stay untouched. Nothing is read before it is needed.
        target : None, label, array-like of labels, Target or callable, default=None
            If X has no length, the target must be the same for all images.
        method, normalize, frame, dtype
            See :meth:`explain`.

        Yields
        ------
        ndarray of shape (batch_size, height, width), of ``dtype``
            With ``frame="image"``, always a list of arrays, each at its own image's size.
        """
        chosen = self.as_method(method)
        numbers = dtype_of_maps(dtype, None, [chosen], normalize)
        at_layer = self.is_at_layer(frame, [chosen])
        batches: Iterator[ExplainedBatch]
        if is_stream(X):
            batches = self.iter_streamed(
                X, target, methods=[chosen], normalize=normalize, at_layer=at_layer
            )
        else:
            opened = self.open(X)
            batches = self.iter_explained(
                opened,
                self.as_target(target, len(opened)),
                methods=[chosen],
                normalize=normalize,
                at_layer=at_layer,
            )
        return (self._send(explained, frame, numbers).arrays()[0] for explained in batches)

    def is_at_layer(self, frame: str, methods: Iterable[Method]) -> bool:
        """Whether a frame is that of the target layer.

        Parameters
        ----------
        frame : {"input", "image", "layer"}
        methods : iterable of Method

        Returns
        -------
        bool

        Raises
        ------
        ValueError
            If there is no such frame. For the layer's frame, if there are several layers, or a
            method's maps are not at the resolution of a layer.
        """
        check_frame(frame)
        if frame == "layer":
            self.check_at_layer(methods)
        return frame == "layer"

    def _send(self, explained: ExplainedBatch, frame: str, dtype: np.dtype[Any]) -> SentMaps:
        """Start copying maps to the host. In the images' own frames they go one by one."""
        batch, target, sent = explained.batch, explained.target, list[Any](explained.maps)
        if frame == "image":
            sent = [
                [self.to_frame(*pair) for pair in zip(maps, batch.sizes, strict=True)]
                for maps in explained.maps
            ]
        return SentMaps(batch.start, sent, dtype, target.counts if target.ragged else None)

    def explain(
        self,
        X: Any,
        target: Any = None,
        *,
        method: AnyMethod | Methods | None = None,
        normalize: bool = True,
        frame: Frame = "input",
        out: np.ndarray | None = None,
        dtype: MapDtype | None = None,
        num_workers: int | None = None,
    ) -> Any:
        """Return one map per image, which shows the places that the decision is based on.

        Parameters
        ----------
        X : images
            In any form that ``fit`` takes.
        target : None, label, array-like of labels, Target or callable, default=None
            The class to explain. None is the predicted class. Give one label for all images, one
            per image, or several per image in shape (n_images, k). :class:`sklcam.cam.TopK` takes
            the highest-scoring classes. Several classes are explained from one forward pass. For a
            multilabel network, None is the highest-scoring label, and "positive" explains all
            labels that the network finds, in one map. The numbers of a regression have names, or
            0, 1, ...; None works only if there is a single number. A callable takes the network's
            output for any number of images and returns one score per image. The score must be
            differentiable, and depend only on that image's part of the output. A callable with two
            arguments also gets the network's inputs.
        method : str, Method, list of them, dict of names to them, or None, default=None
            One of :func:`sklcam.cam.available`, or a method object such as ``GradCAM(relu=False)``.
            None is the estimator's own, or Grad-CAM. Several methods share the same forward passes.
        normalize : bool, default=True
            Whether to scale each map to [0, 1] by its minimum and maximum. A constant map becomes
            all zeros. False returns the method's own numbers. Controls and signed maps
            (``channels="keep"``) are never scaled.
        frame : {"input", "image", "layer"}, default="input"
            "input" gives maps at the network's input size, and "image" gives each map at its own
            image's size. "layer" leaves maps on the target layer's grid (u, v), such as 7 x 7. It
            needs a single layer and a method whose maps are made there.
            :func:`sklcam.cam.upsample`, followed by :func:`sklcam.cam.min_max`, turns such maps
            into those of "input", up to rounding.
        out : ndarray of the result's shape or None
            The array to write the maps to, such as a ``numpy.memmap``. It is for a single method,
            and not for ``frame="image"``. The sides of a layer's grid are checked with the first
            batch, when they become known.
        dtype : {"float16", "float32", "float64"} or None, default=None
            The dtype of the maps. None takes that of ``out``, or float32 without it. float16 takes
            half the bytes. It is for maps in [0, 1], which it keeps to within 0.00025.
        num_workers : int or None, default=None
            How many processes read, decode and resize images ahead. None takes the explainer's own
            number. Maps and their order stay the same.

        Returns
        -------
        ndarray of shape (n_images, height, width), or list of ndarray of shape (height, width)
            Maps of ``dtype``, in [0, 1] if normalised; ``out`` if it was given. The maps of volumes
            have shape (depth, height, width). Further axes follow the first, in this order: k for a
            target of several classes per image, the layers if several are kept apart, and the
            image's channels for signed maps. For several methods, a dict of these, by name.

            With ``frame="image"``, a list with one map per image, at the image's own size. It is a
            list even if the sizes happen to be equal; ``np.stack`` then makes one array of it. If X
            cannot hold images of different sizes, the result is still one array. This is so for an
            array, a tensor, an ``ImageDataset`` of either, and float tensors that are the network's
            own input.

        Raises
        ------
        ValueError
            If X, the target or another argument is invalid. This is checked before any work is
            done.

        Warns
        -----
        ExplanationWarning
            Once, if maps are blank, or NaN because the network or the image is.
        """
        named = self.named_methods(method)
        methods = list(named.values())
        numbers = dtype_of_maps(dtype, out, methods, normalize)
        at_layer = self.is_at_layer(frame, methods)
        opened = self.open(X, num_workers=num_workers)
        question = self.as_target(target, len(opened))
        shapes = [(len(opened), *self.map_shape(opened, question, each)) for each in methods]
        if at_layer:  # the grid's sides are known only once the layer has run
            shapes = [shape[: -len(opened.image_size)] for shape in shapes]
        has_lists = frame == "image" or question.ragged
        store = MapStore(shapes, numbers, out, has_lists=has_lists, has_sides=not at_layer)
        with self._bar(len(opened), "explain") as bar:
            batches = self.iter_explained(
                opened, question, methods=methods, normalize=normalize, at_layer=at_layer
            )
            # With map, no reference keeps a batch and its maps alive while the next one is read.
            for sent in one_behind(map(partial(self._send, frame=frame, dtype=numbers), batches)):
                bar.update(store.write(sent.start, sent.arrays()))
                del sent
        results = store.results
        has_one_size = frame != "image" or opened.uniform_size is not None
        if isinstance(results[0], list) and has_one_size:
            is_even = len({len(maps) for maps in results[0]}) == 1
            if is_even or not question.ragged:
                results = [np.stack(maps) for maps in results]
        one_alone = not isinstance(method, Mapping | list | tuple)
        return results[0] if one_alone else dict(zip(named, results, strict=True))

    # Files

    def explain_to(
        self,
        X: Any,
        path: str | os.PathLike[str],
        target: Any = None,
        *,
        method: AnyMethod | Methods | None = None,
        normalize: bool = True,
        frame: Literal["input", "layer"] = "input",
        dtype: MapDtype = "float32",
        chunk_size: int | None = None,
        shard: Shard | None = None,
        resume: bool = True,
        num_workers: int | None = None,
    ) -> None:
        """Write the maps of many images to a folder, chunk by chunk; see :func:`sklcam.open_maps`.

        The process can be killed at any time. The same call then resumes at the first unfinished
        chunk, and gives the same maps as an uninterrupted call. If anything that the maps depend on
        has changed, the call raises an error, and the folder stays unchanged.

        Parameters
        ----------
        X, target, method, normalize
            See :meth:`explain`.
        path : str or path
            The folder to create or resume.
        frame : {"input", "layer"}, default="input"
            See :meth:`explain`.
        dtype : {"float16", "float32", "float64"}, default="float32"
            Maps of 50,000 images of 224 x 224 pixels take 10 GB in float32, and half of that in
            float16. With ``frame="layer"`` and 7 x 7 places, they take 10 MB.
        chunk_size : int or None, default=None
            The number of images per chunk. None takes whole batches with about 256 images in all,
            or the size that the folder was begun with.
        shard : (index, count) or None, default=None
            Which of several processes this is, such as ``(0, 8)``. Each makes its share of the
            chunks, in the same folder. None makes all chunks.
        resume : bool, default=True
            Whether to resume the work at ``path``. With False, anything at ``path`` is an error.
        num_workers : int or None, default=None
            See :meth:`explain`.

        Raises
        ------
        FileExistsError
            If something is at ``path`` and ``resume`` is False.
        OSError
            If the folder cannot be created or written, such as on a full disk. Finished chunks
            stay.
        ValueError
            If an argument is invalid, which is checked before any work is done. If the folder at
            ``path`` was begun with other images, weights or settings, which the message names.

        Warns
        -----
        ExplanationWarning
            If some of the maps made by this call are blank, or NaN.

        Notes
        -----
        Image files are recognised by their paths, and eight of them also by their contents. Arrays
        are recognised by all of their images, and data sets by eight items. A network is recognised
        by its weights and the options of its layers. A folder can be resumed with another
        ``batch_size``. As the last digits of numbers depend on the batch, its maps are then equal
        up to rounding.

        Examples
        --------
        >>> import tempfile
        >>> import torch
        >>> import sklcam
        >>> from torch import nn
        >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> explainer = sklcam.CAMExplainer(network, target_layer="0", verbose=0).fit()
        >>> images = torch.rand(5, 2, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     explainer.explain_to(images, f"{folder}/maps", method=["gradcam", "layercam"])
        ...     maps = sklcam.open_maps(f"{folder}/maps")
        ...     bool((maps["layercam"] == explainer.explain(images, method="layercam")).all())
        True
        """
        write_maps(
            self,
            X,
            path,
            target,
            method=method,
            normalize=normalize,
            frame=frame,
            dtype=dtype,
            chunk_size=chunk_size,
            shard=shard,
            resume=resume,
            num_workers=num_workers,
            make_bar=self._bar,
        )

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        X: Any = None,
        maps: Literal["auto"] | bool = "auto",
        card: str | None = None,
    ) -> None:
        """Write the network to an ONNX file that can be used without this library.

        The file takes ``images``, float32 of shape (n_images, n_channels, height, width) in [0, 1]:
        any number of images at the network's own size, which it normalises itself. It returns
        ``logits``, as the network does (a single logit as (n_images, 1)), and ``probabilities``, as
        ``predict_proba`` does. For a regression it returns ``predictions``. For a network that
        returns probabilities, there are no logits.

        If the head is global average pooling and one linear layer, the file also returns ``maps``,
        of shape (n_images, n_classes, u, v): the Grad-CAM map of each class, at the layer's
        resolution. Resized bilinearly (``align_corners=False``) to the images' size, they equal
        ``explain(X, target=label, normalize=False)``. Scaled by their minimum and maximum as well,
        they equal ``explain(X, target=label)``.

        Parameters
        ----------
        path : str or path
            The file to write. Its name must end in ".onnx". An existing file is replaced only once
            the new one is complete and checked.
        X : images or None, default=None
            Images to check the file with, as arrays, files or PIL images. The first three are used.
            None uses noise.
        maps : "auto" or bool, default="auto"
            Whether the file has maps. "auto" includes them if possible, and warns if not. With
            True, it is an error if they are not possible.
        card : str or None, default=None
            A description in Markdown, such as :func:`sklcam.model_card` makes, for the file's
            ``doc_string``. The input and the outputs are always described there.

        Raises
        ------
        ImportError
            If onnx, onnxruntime or onnxscript is missing. They come with the extra ``onnx``.
        NotFittedError
            If the explainer has not been fitted.
        OSError
            If the file cannot be written.
        TypeError
            If `path` is not a path.
        ValueError
            If an argument is invalid. If the network has no task, computes in a precision other
            than float32, has 2 GB of weights or more, or does not say how its images are prepared.
            If torch cannot export it, or onnxruntime's results differ from the network's by more
            than rounding.

        Warns
        -----
        UserWarning
            If there are no maps, with ``maps="auto"``.

        Notes
        -----
        A numerical check decides whether a head is linear: its weights must turn the pooled
        activations into the output, and must equal the gradients. For all other networks, and for
        methods other than Grad-CAM and CAM, maps need a gradient for each image, which an ONNX file
        does not compute.

        The metadata are JSON: ``task``, ``classes``, ``class_names``, ``image_size``, ``resize``
        (see :class:`~sklcam.images.Resizing`), ``value_range`` and ``channel_order`` of ``images``,
        ``normalized_in_the_file`` (the mean and the standard deviation that the file applies),
        ``preparation_by`` (where the preparation comes from), ``target_layers``, ``maps`` (the
        method) or ``no_maps_because``, and ``versions``.

        Examples
        --------
        >>> import json, tempfile
        >>> import torch
        >>> from torch import nn
        >>> import onnxruntime
        >>> from sklcam import CAMExplainer
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        ...                         nn.Flatten(), nn.Linear(4, 2))
        >>> explainer = CAMExplainer(network, classes=["cat", "dog"], target_layer="1",
        ...                          image_size=16, mean=0.5, std=0.25).fit()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     explainer.export(f"{folder}/pets.onnx")
        ...     session = onnxruntime.InferenceSession(f"{folder}/pets.onnx")
        >>> images = torch.rand(5, 3, 16, 16).numpy()
        >>> logits, probabilities, maps = session.run(None, {"images": images})
        >>> probabilities.shape, maps.shape
        ((5, 2), (5, 2, 14, 14))
        >>> json.loads(session.get_modelmeta().custom_metadata_map["classes"])
        ['cat', 'dog']
        """
        write_onnx(self, path, X, maps, card)


@runtime_checkable
class Explainable(Protocol):
    """An estimator that provides its own explainer."""

    def as_explainer(self) -> Explainer: ...
