"""The Explainer protocol: what every explainer offers to metrics, displays and reports.

An explainer opens any ``X`` once, runs it through its network batch by batch, and returns the
maps of several methods, the network's output and the frames of the images from the same pass. So
memory holds one batch at a time, and no image has to be read twice.
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
    """An adapter to a network, the layers to look at, and a method.

    Metrics, displays and reports use only what is public here.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,) or None
        The label of each class; None if the network has none.
    method : str, Method or class of methods
        How to explain unless a call asks for something else.
    layer_fusion : {"mean", "max"} or None
        How the maps of several layers become one.
    image_input : str or None
        Which of several inputs is the image.
    top_channels : int or None
        How many channels make a map: those with the highest weights. None uses all.
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

        Arguments are checked at once, before the first batch is asked for.

        Parameters
        ----------
        X : images, or iterable of them
            X may have no length: a generator, a torch ``DataLoader``, an ``IterableDataset``, a
            streaming Hugging Face data set. It yields images, which are collected into batches, or
            batches, which stay as they are: arrays or tensors of four axes, lists of images,
            tables. Either may come with its labels, (images, labels), or in a dict, in which the
            images are found automatically or named by ``image_input``. Labels are ignored; other
            entries that the network takes by name are passed to it. Tensors of a ``DataLoader``
            mean what they mean in ``explain``: to a bare network, float tensors are its own input
            and stay untouched. Nothing is read before it is needed.
        target : None, label, array-like of labels, Target or callable, default=None
            If X has no length, it is the same for all images.
        method, normalize, frame, dtype
            See :meth:`explain`.

        Yields
        ------
        ndarray of shape (batch_size, height, width), of ``dtype``
            With ``frame="image"`` always a list of arrays, each of its own image's size.
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
        """Whether a frame is the target layer's.

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
            If there is no such frame, or it is the layer's and there are several layers, or a
            method whose maps are not made at a layer.
        """
        check_frame(frame)
        if frame == "layer":
            self.check_at_layer(methods)
        return frame == "layer"

    def _send(self, explained: ExplainedBatch, frame: str, dtype: np.dtype[Any]) -> SentMaps:
        """Start copying maps to the host; in the images' own frames, one by one."""
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
        """Return one map per image: where the network looked to decide.

        Parameters
        ----------
        X : images
            In any form that ``fit`` takes.
        target : None, label, array-like of labels, Target or callable, default=None
            The class to explain: None is the predicted one. Give one label for all images, one per
            image, or several per image in shape (n_images, k); :class:`sklcam.cam.TopK` takes the
            highest-scoring ones. Several classes are explained from one forward pass. Where an
            image may have several labels, None is the highest-scoring one, and "positive" explains
            all that the network finds, in one map. The numbers of a regression have names, or 0, 1,
            ...; None works if there is only one. A callable takes the network's output for any
            number of images and returns one score for each: any differentiable score that depends
            only on that image's part of the output. A callable of two arguments also gets the
            network's inputs.
        method : str, Method, list of them, dict of names to them, or None, default=None
            One of :func:`sklcam.cam.available`, or a method object such as ``GradCAM(relu=False)``.
            None is the estimator's own, or Grad-CAM. Several methods share the same forward passes.
        normalize : bool, default=True
            Whether each map is scaled to [0, 1] by its minimum and maximum; a constant map becomes
            all zeros. False returns the method's own numbers. Controls and signed maps
            (``channels="keep"``) are never scaled.
        frame : {"input", "image", "layer"}, default="input"
            "input" gives maps at the network's input size, "image" each map at its own image's
            size. "layer" leaves them on the target layer's grid (u, v), such as 7 x 7, for one
            layer and methods whose maps are made there: :func:`sklcam.cam.upsample` and then
            :func:`sklcam.cam.min_max` turn them into those of "input", to rounding.
        out : ndarray of the result's shape or None
            Where to write the maps, such as a ``numpy.memmap``; for one method, and not for
            ``frame="image"``. The sides of a layer's grid are checked with the first batch, when
            they become known.
        dtype : {"float16", "float32", "float64"} or None, default=None
            The dtype of the maps; None takes that of ``out``, or float32 without it. float16 takes
            half the bytes; it is for maps in [0, 1], and keeps them to within 0.00025.
        num_workers : int or None, default=None
            How many processes read, decode and resize images ahead; None takes the explainer's own
            number. Maps and their order stay the same.

        Returns
        -------
        ndarray of shape (n_images, height, width), or list of ndarray of shape (height, width)
            Of ``dtype``, in [0, 1] if normalised; ``out`` if it was given. The maps of volumes have
            shape (depth, height, width). Further axes follow the first, in this order: k for a
            target of several classes per image, the layers if several are kept apart, and the
            image's channels for signed maps. Several methods return a dict of these, by name.

            With ``frame="image"`` it is a list, one map of the image's own size for each image,
            even if the sizes happen to be equal: ``np.stack`` then makes one array of them. It is
            still one array where X cannot hold images of different sizes: an array, a tensor, an
            ``ImageDataset`` of one, or float tensors that are the network's own input.

        Raises
        ------
        ValueError
            If X, the target or another argument does not fit; before any work is done.

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
        if at_layer:  # whose sides are known once it has run
            shapes = [shape[: -len(opened.image_size)] for shape in shapes]
        has_lists = frame == "image" or question.ragged
        store = MapStore(shapes, numbers, out, has_lists=has_lists, has_sides=not at_layer)
        with self._bar(len(opened), "explain") as bar:
            batches = self.iter_explained(
                opened, question, methods=methods, normalize=normalize, at_layer=at_layer
            )
            # By map, which holds on to no batch, with its maps, while the next is read.
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

        It can be killed at any time: the same call resumes at the first chunk that is not done, and
        the maps are those of an uninterrupted call. If anything that the maps depend on has
        changed, that is an error, and the folder stays as it is.

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
            float16; with ``frame="layer"`` and 7 x 7 places 10 MB.
        chunk_size : int or None, default=None
            How many images are completed together. None takes as many whole batches as hold about
            256 images, or what the folder was begun with.
        shard : (index, count) or None, default=None
            Which of several processes this is, such as ``(0, 8)``; each makes its share of the
            chunks, in the same folder. None makes all of them.
        resume : bool, default=True
            Whether to resume what is at ``path``. With False, anything there is an error.
        num_workers : int or None, default=None
            See :meth:`explain`.

        Raises
        ------
        FileExistsError
            If something is at ``path``, with ``resume=False``.
        OSError
            If the folder cannot be created or written, such as on a full disk. Finished chunks
            stay.
        ValueError
            If an argument does not fit, before any work is done; or if what is at ``path`` was
            begun with other images, weights or settings, which the message names.

        Warns
        -----
        ExplanationWarning
            If some of the maps made by this call are blank, or NaN.

        Notes
        -----
        Image files are recognised by their paths, and eight of them by their contents; arrays by
        all of their images, data sets by eight items. A network is recognised by its weights and
        the options of its layers. Numbers depend on the batch in their last digits: a folder can be
        resumed with another ``batch_size``, and its maps are then equal to rounding.

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

        The file takes ``images``, float32 of shape (n_images, n_channels, height, width) in [0, 1],
        any number of them at the network's own size, and normalises them itself. It returns
        ``logits``, as the network does (a single logit as (n_images, 1)), and ``probabilities``, as
        ``predict_proba`` does; for a regression, ``predictions``. A network that returns
        probabilities has no logits.

        If the head is global average pooling and one linear layer, it also returns ``maps``,
        of shape (n_images, n_classes, u, v): the Grad-CAM map of each class, at the layer's
        resolution. Resized bilinearly (``align_corners=False``) to the images' size, they are those
        of ``explain(X, target=label, normalize=False)``; scaled by their minimum and maximum, those
        of ``explain(X, target=label)``.

        Parameters
        ----------
        path : str or path
            The file to write; its name ends in ".onnx". An existing file is replaced only once the
            new one is complete and checked.
        X : images or None, default=None
            Images to check the file on, of which the first three are used: arrays, files or PIL
            images. None is noise.
        maps : "auto" or bool, default="auto"
            Whether the file has maps. "auto" includes them where possible and warns where not; with
            True, that is an error.
        card : str or None, default=None
            A description in Markdown, such as :func:`sklcam.model_card` makes, for the file's
            ``doc_string``, which describes the input and the outputs in any case.

        Raises
        ------
        ImportError
            If onnx, onnxruntime or onnxscript is missing; they come with the extra ``onnx``.
        NotFittedError
            If the explainer has not been fitted.
        OSError
            If the file cannot be written.
        TypeError
            If `path` is not a path.
        ValueError
            If an argument does not fit; if the network has no task, computes in a precision other
            than float32, has 2 GB of weights or more, or does not say how its images are prepared;
            if torch cannot export it; or if onnxruntime's answers are not those of the network, up
            to rounding.

        Warns
        -----
        UserWarning
            If there are no maps, with ``maps="auto"``.

        Notes
        -----
        A numerical check decides whether a head is linear: it must turn the pooled activations into
        the output, and gradients must equal its weights. For all other networks, and for methods
        other than Grad-CAM and CAM, maps need a gradient for each image, which such files do not
        compute.

        The metadata are JSON: ``task``, ``classes``, ``class_names``, ``image_size``, ``resize``
        (see :class:`~sklcam.images.Resizing`), ``value_range`` and ``channel_order`` of ``images``,
        ``normalized_in_the_file`` (the mean and the standard deviation, already applied in the
        file), ``preparation_by`` (where that comes from), ``target_layers``, ``maps`` (the method)
        or ``no_maps_because``, and ``versions``.

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
