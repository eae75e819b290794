"""Items of data sets, and which part of an item is the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from sklcam._validation import describe, is_instance
from sklcam.images._encoded import is_batch_of_one, is_bytes_and_path, is_image


class Items(Sequence[Any]):
    """The images of a data set, or of any other sequence that makes its items on access.

    In a tuple or list, which mostly also holds the label, the first entry is the image. In a dict,
    it is the named entry, or the only one that is an image.

    Parameters
    ----------
    dataset : map-style Dataset or sequence
    column : str or None, default=None
        The name of the entry that is the image, if items are dicts.

    Attributes
    ----------
    name : str or None
        The name of this entry, once an item has been read.
    others : list of str
        The names of the other entries.
    are_volumes : bool
        Whether (1, a, b, c) is a volume with one channel, rather than a batch of one picture with a
        channels.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images.items import Items
    >>> items = Items([({"scan": np.zeros((8, 8)), "age": 30}, "ill")])
    >>> items[0].shape, items.name, items.others
    ((8, 8), 'scan', ['age'])
    """

    def __init__(self, dataset: Any, column: str | None = None):
        self.dataset = dataset
        self.name: str | None = None
        self.others: list[str] = []
        self.are_volumes = False
        self._column = column
        self._n_items = len(dataset)

    def __len__(self) -> int:
        return self._n_items

    def __getitem__(self, i: Any) -> Any:
        """Return the image of item i as the data set returns it."""
        item = self.dataset[i]
        item = item[0] if isinstance(item, tuple | list) and item else item
        where = f"X[{i}]"
        if not has_entries(item):
            if self._column is not None:
                raise ValueError(
                    f"{where} is {describe(item)} and has no entry {self._column!r}. Leave "
                    "image_column out, as it is for tables and for items that are dicts."
                )
            return self._alone(item)
        item = of_processor(item)
        if self.name is None:
            self.name = name_of_image(item, where, self._column)
            self.others = [name for name in item if name != self.name]
        return self._alone(item[name_of_image(item, where, self.name)])

    def _alone(self, image: Any) -> Any:
        """Return an image without the batch axis that it may have in the item."""
        return image[0] if is_batch_of_one(image) and not self.are_volumes else image


def has_entries(item: Any) -> bool:
    """Whether an item is a dict in which one entry is the image."""
    return isinstance(item, Mapping) and not is_bytes_and_path(item)


def name_of_image(item: Mapping[str, Any], where: str, name: str | None = None) -> str:
    """Return the name of the entry that is the image.

    Parameters
    ----------
    item : mapping
    where : str
        The name of the item in the message.
    name : str or None, default=None
        The name that the user gave, if any.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no entry with that name, or none is given and not exactly one is an image.
    """
    if name is not None:
        if name not in item:
            raise ValueError(f"{where} has no entry {name!r}; it has {', '.join(map(str, item))}.")
        return name
    if len(item) == 1:
        return next(iter(item))
    images = [key for key, value in item.items() if is_image(value)]
    if len(images) == 1:
        return images[0]
    held = ", ".join(f"{key!r} ({describe(value)})" for key, value in item.items())
    raise ValueError(
        f"{where} is a dict of {held or 'nothing'}, where {len(images) or 'no'} entries are "
        "images. Name the image with sklcam.images.ImageDataset(X, image_column=...) instead of X, "
        "or return only that entry."
    )


def of_processor(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the output of a Hugging Face processor as tensors, which are a network's own input.

    Anything else is returned as it is.
    """
    if not is_instance(inputs, "transformers", "BatchFeature"):
        return inputs
    return {
        name: value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        for name, value in inputs.items()
    }


def is_splits(X: Any) -> bool:
    """Whether X is a Hugging Face ``DatasetDict``, in which each entry is a data set."""
    return is_instance(X, "datasets", "DatasetDict", "IterableDatasetDict")


def is_lazy(X: Any) -> bool:
    """Whether X makes its items on access: a map-style data set, or another sequence."""
    if isinstance(X, Dataset):
        return isinstance(X, Sized) and not isinstance(X, IterableDataset)
    # These are also sequences, but never of images.
    return isinstance(X, Sequence) and not isinstance(
        X, str | bytes | bytearray | memoryview | range
    )
