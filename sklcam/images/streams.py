"""Streams: images from anything that yields them, one at a time or in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MappingView, Sequence, Set, Sized
from dataclasses import dataclass, field, replace
from io import IOBase
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from sklcam._validation import describe, is_instance
from sklcam.images._encoded import as_encoded, is_image
from sklcam.images._tables import decoded_if_remote, is_table
from sklcam.images.items import has_entries, name_of_image, of_processor

_ALONE = "yield only images, a list of images, or images and labels as (images, labels)"


@dataclass
class StreamedImages:
    """Some images of a stream, which go through a network together.

    Attributes
    ----------
    images : images
        The images, in a form of X.
    name : str or None
        Their key, if they came in a dict.
    others : dict of str to sequence
        The other entries of the dict, each with one value per image.
    """

    images: Any
    name: str | None = None
    others: dict[str, Any] = field(default_factory=dict)


class ImageStream:
    """Images from a generator, a ``DataLoader`` or a streaming data set.

    Each element is an image or a batch of images: an array or tensor with four axes, a list of
    images, or a table. It may also be the first entry of a tuple, followed by labels, or an entry
    of a dict. Labels are ignored.

    Parameters
    ----------
    X : iterable
    batch_size : int
        The number of single images that make a batch; batches stay as they are.
    image_input : str or None, default=None
        The entry of dicts that holds the images. None is the only one that does.

    Raises
    ------
    ValueError
        During iteration, if an element is neither an image nor a batch, or could be either.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images.streams import ImageStream
    >>> scans = ((np.zeros((8, 8)), label) for label in "abc")
    >>> [len(batch.images) for batch in ImageStream(scans, batch_size=2)]
    [2, 1]
    """

    def __init__(self, X: Iterable[Any], batch_size: int, image_input: str | None = None):
        self._X = X
        self._batch_size = batch_size
        self._image_input = image_input
        # Items of these are tuples by convention, and a loader turns tuples into lists.
        self._is_data_set = isinstance(X, DataLoader | IterableDataset)
        self._yields_items = self._stacks = False
        if isinstance(X, DataLoader):
            self._yields_items = X.batch_sampler is None
            self._stacks = X.collate_fn is default_collate and not self._yields_items

    def __iter__(self) -> Iterator[StreamedImages]:
        held: list[_Image] = []
        for element in _undecoded(self._X, self._image_input):
            found = self._read(element)
            if isinstance(found, _Image):
                held.append(found)
            if held and (len(held) == self._batch_size or found is not held[-1]):
                yield _together(held)
                held = []
            if isinstance(found, StreamedImages):
                yield found
        if held:
            yield _together(held)

    def _read(self, element: Any) -> StreamedImages | _Image:
        """Return an element of the stream as an image, or as a batch of images."""
        if isinstance(element, tuple) or (self._yields_items and isinstance(element, list)):
            return self._read_pair(element)
        if isinstance(element, list):
            return self._read_list(element)
        if has_entries(element):
            return self._read_dict(of_processor(element))
        return self._read_array(element)

    def _read_array(self, element: Any) -> StreamedImages | _Image:
        if _is_batch(element):
            return StreamedImages(element)
        if self._stacks and isinstance(element, Tensor) and element.ndim == 3:
            raise ValueError(
                f"X is a DataLoader that yields {describe(element)}, whose images have no channel "
                "axis. Return images of shape (1, height, width) from its data set."
            )
        return _Image(element)

    def _read_pair(self, element: Sequence[Any]) -> StreamedImages | _Image:
        if not element:
            raise ValueError(f"X yields an empty {type(element).__name__}: {_ALONE}.")
        kinds = {_kind(each) for each in element}
        # Items of data sets start with the image, by convention.
        if not self._is_data_set and len(element) > 1 and kinds in ({"image"}, {"name"}):
            raise ValueError(
                f"X yields {describe(element)}, which may be several images, or one image and "
                f"other data: {_ALONE}."
            )
        return self._read(element[0])

    def _read_list(self, element: list[Any]) -> StreamedImages | _Image:
        if not element:
            raise ValueError(f"X yields an empty list: {_ALONE}.")
        first: Any = element[0]
        if isinstance(first, list | tuple) and first:
            return self._read_nested(element)
        if _is_batch(first) or (has_entries(first) and self._holds_batch(first)):
            return self._read_pair(element)  # images and labels, as a loader collates them
        if has_entries(first):
            return _together([self._read_item(each) for each in element])
        kinds = [_kind(each) for each in element]
        if len(element) > 1 and kinds[0] == "image" and set(kinds[1:]) == {None}:
            return _Image(first)
        return _together([_Image(each) for each in element])

    def _read_nested(self, element: list[Any]) -> StreamedImages:
        """Return the images of a list of lists: of items, or one of images and one of labels."""
        first, *rest = element
        behind = [_kind(each) for part in rest if isinstance(part, list | tuple) for each in part]
        if {*map(_kind, first)} == {"image"} and "image" not in behind:
            return _together([*map(_Image, first)])
        if all(isinstance(item, list | tuple) and _is_item(item) for item in element):
            return _together([_Image(item[0]) for item in element])
        raise ValueError(
            f"X yields {describe(element)}, in which images cannot be told from other data: "
            f"{_ALONE}."
        )

    def _read_item(self, element: Any) -> _Image:
        found = self._read(element)
        if not isinstance(found, _Image):
            raise ValueError(f"X yields a list of batches, such as {describe(element)}: {_ALONE}.")
        return found

    def _holds_batch(self, element: Mapping[str, Any]) -> bool:
        return isinstance(self._read_dict(element), StreamedImages)

    def _read_dict(self, element: Mapping[str, Any]) -> StreamedImages | _Image:
        name = self._name_in(element)
        images = element[name]
        others = {key: value for key, value in element.items() if key != name}
        found: StreamedImages | _Image
        if isinstance(images, list | tuple):
            found = StreamedImages(_as_form([*images]))
        else:
            found = self._read_array(images)
        return replace(found, name=name, others=others)

    def _name_in(self, element: Mapping[str, Any]) -> str:
        if self._image_input is not None:
            return name_of_image(element, "An element of X", self._image_input)
        batches = [key for key, value in element.items() if _is_batch(value)]
        # In the output of a Hugging Face processor, these are the images.
        batches = ["pixel_values"] if "pixel_values" in batches else batches
        lists = [
            key
            for key, value in element.items()
            if isinstance(value, list | tuple) and value and all(map(is_image, value))
        ]
        if len(batches or lists) == 1:
            return (batches or lists)[0]
        try:
            return name_of_image(element, "An element of X")
        except ValueError as error:
            held = ", ".join(f"{key!r} ({describe(value)})" for key, value in element.items())
            raise ValueError(
                f"X yields a dict of {held or 'nothing'}, and it is unclear which entry is the "
                f"image. Name it with image_input= of the explainer, or {_ALONE}."
            ) from error


@dataclass
class _Image:
    """A single image, with the other entries of its dict."""

    image: Any
    name: str | None = None
    others: Mapping[str, Any] = field(default_factory=dict)


class _Held(Dataset[Any]):
    """Images that were yielded, as a data set."""

    def __init__(self, images: list[Any]):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> Any:
        return self._images[i]


def is_stream(X: Any) -> bool:
    """Whether X can only be iterated from first to last, as it has no indices.

    Parameters
    ----------
    X : Any

    Returns
    -------
    bool

    Examples
    --------
    >>> from sklcam.images.streams import is_stream
    >>> is_stream(["cat.png"]), is_stream(path for path in ["cat.png"])
    (False, True)
    """
    if isinstance(X, DataLoader | IterableDataset):
        return True
    # A progress bar around a loader has a length but no indices. A set has no order.
    has_indices = isinstance(X, Sized) and hasattr(X, "__getitem__")
    return (
        isinstance(X, Iterable)
        and not has_indices
        and not isinstance(X, Set | MappingView | IOBase)
    )


def _together(images: list[_Image]) -> StreamedImages:
    name = images[0].name
    shared = [key for key in images[0].others if all(key in each.others for each in images)]
    others = {key: [each.others[key] for each in images] for key in shared}
    return StreamedImages(_as_form([each.image for each in images]), name, others)


def _as_form(images: list[Any]) -> Any:
    """Return images in a form of X in which files are checked together."""
    are_files = all(as_encoded(image) is not None for image in images)
    return images if are_files else _Held(images)


def _is_batch(value: Any) -> bool:
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUT":
        return value.ndim == 1
    # With five axes it is a batch of volumes.
    return (isinstance(value, np.ndarray | Tensor) and value.ndim in (4, 5)) or is_table(value)


def _kind(value: Any) -> str | None:
    if is_image(value) or _is_batch(value):
        return "image"
    # A string may be a path or a label, and a path may be that of an image or of notes.
    return "name" if isinstance(as_encoded(value), str) else None


def _is_item(item: Sequence[Any]) -> bool:
    """Whether a tuple is one image, followed by other data."""
    kinds = [*map(_kind, item)]
    return kinds[:1] == ["image"] and "image" not in kinds[1:]


def _undecoded(X: Iterable[Any], name: str | None) -> Iterator[Any]:
    """Yield the elements of X, with the images of a Hugging Face data set as undecoded files.

    The format of the data set then does not matter, and all forms of X are decoded in the same way.
    """
    is_streaming = is_instance(X, "datasets", "IterableDataset")
    features: Mapping[str, Any] = (getattr(X, "features", None) or {}) if is_streaming else {}
    declared = [key for key, each in features.items() if is_instance(each, "datasets", "Image")]
    # If other columns hold pixels too, it is unclear which are the images.
    if (
        len(declared) != 1
        or (name or declared[0]) != declared[0]
        or any(map(_is_pixels, features.values()))
    ):
        yield from X
        return
    name, feature = declared[0], features[declared[0]]
    stored: Any = X
    stored = stored.with_format(None)
    if feature.mode is None:  # otherwise the library converts to this mode
        stored = stored.cast_column(name, replace(feature, decode=False))
    for row in stored:
        yield {**row, name: decoded_if_remote(feature, row[name])}


def _is_pixels(feature: Any) -> bool:
    """Whether a column of a Hugging Face data set holds arrays with three or more axes."""
    n_axes = 0
    while hasattr(feature, "feature"):
        feature, n_axes = feature.feature, n_axes + 1
    return n_axes > 2 or is_instance(feature, "datasets", "Array3D", "Array4D", "Array5D")
