"""X without a length: read batch by batch, as it arrives, with the same target for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from numbers import Number
from typing import Any

from torch.utils.data import default_collate

from sklcam._validation import describe
from sklcam.cam.targets import Target
from sklcam.explain.opened import LABELS, Batch, OpenedImages, parameters_of
from sklcam.images.streams import ImageStream, StreamedImages
from sklcam.networks.adapters import Adapter


class OpenedStream:
    """X without a length, ready to be read batch by batch; see :class:`ImageStream`.

    Nothing is read ahead, and nothing is kept. Entries of dicts that the network takes by name,
    except labels, are passed on with the image.

    Parameters
    ----------
    adapter : Adapter
    X : iterable
        Images, or batches of images.
    image_input : str or None
        Which entry of a dict is the image.
    batch_size : int
        How many single images are collected into a batch.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam import CAMExplainer
    >>> from sklcam.explain.streams import OpenedStream
    >>> network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> explainer = CAMExplainer(network, target_layer="0", verbose=0).fit()
    >>> stream = OpenedStream(explainer.adapter, (torch.rand(2, 8, 8) for _ in range(3)), None, 2)
    >>> [(batch.start, batch.stop) for batch in stream.batches()]
    [(0, 2), (2, 3)]
    """

    def __init__(self, adapter: Adapter, X: Any, image_input: str | None, batch_size: int):
        self._adapter = adapter
        self._stream = ImageStream(X, batch_size, image_input)

    def batches(self) -> Iterator[Batch]:
        """Read the batches, each once, in order."""
        start, as_it_is = 0, None
        for streamed in self._stream:
            try:
                opened = OpenedImages(self._adapter, self._inputs(streamed), streamed.name)
                batch = opened.whole()
            except ValueError as error:
                raise ValueError(
                    f"In the batch that begins with image {start} of X: {error}"
                ) from error
            if as_it_is not in (None, opened.is_network_input):
                raise ValueError(
                    f"In the batch that begins with image {start} of X: some images are float "
                    "tensors, the network's own input, but others are prepared for it. Yield only "
                    "one kind."
                )
            as_it_is = opened.is_network_input
            yield replace(batch, start=start, stop=start + len(batch))
            start += len(batch)

    def _inputs(self, streamed: StreamedImages) -> Any:
        if streamed.name is None:
            return streamed.images
        names, takes_any = parameters_of(self._adapter.network)
        if streamed.name not in names and not takes_any:
            return streamed.images
        others = {
            name: value if hasattr(value, "shape") else default_collate([*value])
            for name, value in streamed.others.items()
            if name not in LABELS and (takes_any or name in names)
        }
        return {streamed.name: streamed.images, **others}


def question_of_any_number(
    as_target: Callable[[Any, int], Target], target: Any
) -> Callable[[int], Target]:
    """Return a function that makes the target for any number of images.

    Parameters
    ----------
    as_target : callable
        Makes a target from the user's target and a number of images.
    target : None, label, Target or callable

    Returns
    -------
    callable of int that returns a Target

    Raises
    ------
    ValueError
        If the target holds a value per image, or is invalid.
    """
    error: ValueError | None = None
    ask = cache(lambda n_images: as_target(target, n_images))
    holds_rows = isinstance(target, Target) and target.take(slice(0, 1)) is not target
    try:
        # A target that works for one image and for two works for any number.
        _ = ask(1), ask(2)
    except ValueError as caught:
        if target is None or isinstance(target, str | Number | Target) or callable(target):
            raise
        error = caught
    if holds_rows or error is not None:
        raise ValueError(
            "X has no length, so target must be the same for all of its images; got "
            f"{describe(target)}. For one target per image, explain each batch by itself: "
            '"for images, labels in X: explainer.explain(images, labels)".'
        ) from error
    return ask
