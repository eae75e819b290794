"""``ImageDataset``: any X as images of one size, read on access."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
import torch
from PIL import ImageColor
from torch import Tensor
from torch.utils.data import Dataset

from sklcam._validation import check_sides, describe, is_instance
from sklcam.images._encoded import is_image
from sklcam.images._pixels import RGB, Reading
from sklcam.images._sources import Rows, Source, find_items, open_source
from sklcam.images._tables import column_of, is_table, take_from_table
from sklcam.images.framed import FramedDataset, FramedImage
from sklcam.images.frames import Resizing, as_resizing, resize_image
from sklcam.images.items import Items, has_entries
from sklcam.images.labels import dataset_labels, label_names
from sklcam.images.normalization import of_one_dtype


class ImageDataset(FramedDataset):
    """Any X as a lazy torch data set of images of one size.

    Parameters
    ----------
    X : array, tensor, list or Dataset
        The images, in one of these forms:

        - ndarray of shape (n_samples, height, width) or (n_samples, height, width, n_channels),
          uint8, or float in [0, 1]; a memory map stays on the disk;
        - Tensor of shape (n_samples, n_channels, height, width), uint8, or float in [0, 1];
        - list, tuple or one-dimensional array of file paths, PIL images and encoded images (bytes,
          ``bytearray``, ``io.BytesIO``, or dicts of "bytes" and "path"), of any sizes. They become
          RGB, upright by their EXIF orientation. Files are read on access; PIL images are loaded
          here, as an opened one holds a file handle that worker processes cannot share.
          Transparent images are laid over the `background`. Only the first picture of an animation
          is read, and a TIFF file with several pages is refused;
        - a column of such images in a table: a pandas or Polars Series, a PyArrow array, or a table
          with one column; `image_column` names one of several. Rows count by their position;
        - Hugging Face ``Dataset``: the one column that holds images, or `image_column`. Images are
          read as files are, whatever the format of the data set; a transform of its own is applied;
        - map-style torch ``Dataset`` (or a lazy sequence such as skorch's ``SliceDataset``) whose
          items are an image or a tuple that starts with one: an image as above, an ndarray of shape
          (height, width) or (height, width, n_channels), or a Tensor of shape (n_channels, height,
          width). Items may also be dicts in which one entry is an image, or `image_column`;
        - `ImageDataset`: its images, read with its own settings. It can therefore replace X
          wherever images are taken, to set `channels` and `background`.
    y : array-like of length n_samples, optional
        The labels to return with the images.
    image_size : int or (int, int), default=224
        Height and width of the images returned. For volumes, which are arrays or tensors
        (n, C, D, H, W), their own (depth, height, width), as they are not resized.
    resize : {"stretch", "center_crop"} or Resizing, default="stretch"
        "stretch" brings both sides to `image_size`. "center_crop" keeps the proportions: it scales
        the image until it just covers `image_size`, and crops the rest evenly on both sides. A
        `Resizing` says more, such as how pixels are interpolated.
    n_channels : int, optional
        The number of channels that X must have.
    channels : {"first", "last"}, optional
        Where arrays and tensors have their channels. By default, arrays have them last and tensors
        first, and a shape that is ambiguous or says otherwise is refused: a picture has at most
        four channels, or fewer than the pixels along either side.
    background : str or (int, int, int), optional
        The colour behind transparent pixels: a name or "#rrggbb", or red, green and blue from 0 to
        255. By default it is white for files and PIL images, and arrays and tensors with two or
        four channels stay as they are. With a background, their last channel is the opacity.
    image_column : str, optional
        The column of a table or Hugging Face ``Dataset``, or the entry of dicts, that holds the
        images.

    Attributes
    ----------
    n_channels : int
        Channels of the images returned; 3 for file paths and PIL images.
    image_size : tuple of (int, int)
        Height and width of the images returned.
    uniform_size : tuple of (int, int) or None
        Height and width of all images before resizing, if X is an array or a tensor.
    tensor_device : torch.device
        The device of the images returned: the CPU, unless X is or holds tensors elsewhere.
    targets : ndarray of shape (n_samples,) or None
        `y`, or the labels that X itself is known to have; see :func:`dataset_labels`.
    classes : tuple of str or None
        The names in X for the numbers that are its labels.

    Raises
    ------
    ValueError
        If X is none of the above, is empty, names a missing file, or has pixels that are NaN,
        infinite or out of range; if `y`, `n_channels` or `image_column` do not fit X, or it is not
        clear which column holds images; if `image_size` is not of positive ints, or `resize`,
        `channels` or `background` is unknown. Faults that only show when an image is read are
        reported then, with the file or index.

    Warns
    -----
    UserWarning
        If X has bytes, and none is above 1.

    Notes
    -----
    Images keep their kind: uint8 stays uint8, any float becomes float32. A 16-bit greyscale file
    becomes float32, so a batch may mix the two. Stacked without conversion, the uint8 images would
    be 255 times too bright. A ``DataLoader`` therefore gets such a batch as float32 throughout (see
    ``__getitems__``).

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images.dataset import ImageDataset
    >>> X = np.zeros((5, 60, 80, 3), dtype=np.uint8)
    >>> images = ImageDataset(X, y=list("abcde"), image_size=32)
    >>> image, label = images[1]
    >>> image.shape, image.dtype, str(label)
    (torch.Size([3, 32, 32]), torch.uint8, 'b')
    >>> images.original_size(1)
    (60, 80)
    >>> images
    <ImageDataset of 5 images (3, 60, 80), returned as (3, 32, 32), with labels>
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        *,
        image_size: int | Sequence[int] = 224,
        resize: str | Resizing = "stretch",
        n_channels: int | None = None,
        channels: str | None = None,
        background: str | RGB | None = None,
        image_column: str | None = None,
    ) -> None:
        self.image_size = check_sides(image_size, "image_size")
        self.resize = as_resizing(resize)
        reading = Reading(_check_channels(channels), _rgb(background), image_column)
        _check_may_be(X, self.image_size)
        self.source = open_source(X, reading)
        _check_axes(self.source, self.image_size, X)
        self._labels = _check_labels(y, len(self.source))
        # The data set whose labels are read on first access, and which of its rows are used.
        keeps_labels = isinstance(X, Dataset) or is_instance(X, "datasets", "Dataset")
        self._labelled = X if y is None and keeps_labels else None
        self._taken: Sequence[int] = range(len(self.source))
        self.source.check()
        self.items = self.source.items
        self.array = self.source.array
        self.n_channels = self.source.n_channels
        self.uniform_size = self.source.uniform_size
        # Not named "device", which scikit-learn would read as that of an array.
        self.tensor_device = self.source.device
        if n_channels is not None and n_channels != self.n_channels:
            one = self.n_channels == 1 and len(self) == n_channels
            raise ValueError(
                f"X has {self.n_channels} channel(s), "
                f"but this estimator was fitted on {n_channels}."
                f"{' If X is one image, pass X[None].' if one else ''}"
            )

    @cached_property
    def targets(self) -> np.ndarray | Tensor | None:
        if self._labels is not None:
            return self._labels
        labels = dataset_labels(self._labelled)
        return None if labels is None else labels[list(self._taken)]

    @property
    def classes(self) -> tuple[str, ...] | None:
        return None if self._labelled is None else label_names(self._labelled)

    @property
    def shape(self) -> tuple[int]:
        """The number of images. With a shape, scikit-learn's searches split this like an array."""
        return (len(self),)

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        own = "of several sizes"
        if self.uniform_size is not None:
            own = str((self.n_channels, *self.uniform_size))
        returned = (self.n_channels, *self.image_size)
        labels = "" if self._labels is None else ", with labels"
        name = type(self).__name__
        return f"<{name} of {len(self)} images {own}, returned as {returned}{labels}>"

    def __getitem__(self, i: Any) -> Any:
        """Return image i at `image_size` with its label, or a data set of some images.

        Parameters
        ----------
        i : int, slice, or array-like of int or bool

        Returns
        -------
        image : Tensor of shape (n_channels, height, width), uint8, or float32 in [0, 1]
        label : the entry of `y`, or a tensor that holds 0 if there is no `y`
            If `i` is not an int, the result is an `ImageDataset` of these rows instead.

        Raises
        ------
        ValueError
            If image i cannot be read, or is not an image.
        """
        i = i[0] if isinstance(i, tuple) else i  # scikit-learn asks for X[rows, ...]
        if isinstance(i, slice) or np.ndim(i):
            return self._rows(np.arange(len(self))[i].tolist())
        return self.__getitems__([i])[0]

    def _rows(self, rows: list[int]) -> Self:
        some = copy(self)
        some.source, some.array = Rows(self.source, rows), None
        some._labels = None if self._labels is None else self._labels[rows]
        some._taken = [self._taken[row] for row in rows]
        some.__dict__.pop("targets", None)
        return some

    def read_batch(self, indices: Sequence[int], *, originals: bool = True) -> list[FramedImage]:
        """Read several images, all returned in one dtype.

        Parameters
        ----------
        indices : sequence of int
        originals : bool, default=True
            Whether the originals are needed as they are. Otherwise, with ``decode="fast"``, they
            may be decoded at a fraction of their sides.

        Returns
        -------
        list of FramedImage
            If the images mix uint8 and float32, all are float32 in [0, 1]; the originals stay as
            they are.
        """
        if self.resize.decode == "fast" and not (originals or self.are_volumes):
            return self._read_drafts(indices)
        images: list[Tensor] = []
        found: list[Tensor] = []
        for stack in self.source.read_stacks(indices):
            images += stack if self.are_volumes else self._resized(stack)
            found += stack
        sizes = [tuple(original.shape[1:]) for original in found]
        return [*map(FramedImage, of_one_dtype(images), found, sizes)]

    def _read_drafts(self, indices: Sequence[int]) -> list[FramedImage]:
        height, width = self.image_size
        least = partial(self.resize.decoded, input_size=(height, width))
        read = [*self.source.read_drafts(indices, least)]
        images = [
            resize_image(image, (height, width), self.resize, own_size) for image, own_size in read
        ]
        return [
            FramedImage(image, original, size)
            for image, (original, size) in zip(of_one_dtype(images), read, strict=True)
        ]

    @property
    def are_volumes(self) -> bool:
        """Whether these are volumes, which already have ``image_size``."""
        return len(self.image_size) == 3

    def _resized(self, images: Tensor) -> Tensor:
        height, width = self.image_size
        return resize_image(images, (height, width), self.resize)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Any]]:
        """Return the images and labels of one batch, with all images in one dtype.

        Parameters
        ----------
        indices : sequence of int

        Returns
        -------
        list of (image, label)
            The same as single items. If these mix uint8 and float32, all are float32 in [0, 1].
        """
        # Negative indices count from the end, and others beyond it raise an IndexError.
        indices = [range(len(self))[i] for i in indices]
        images = [framed.image for framed in self.read_batch(indices, originals=False)]
        return [(image, self._label(i)) for image, i in zip(images, indices, strict=True)]

    def _label(self, i: int) -> Any:
        return torch.tensor(0) if self._labels is None else self._labels[i]

    def original_size(self, i: int) -> tuple[int, ...]:
        """Return the height and width of image i before resizing.

        An item of a data set is read as a whole. For a file, only the header is decoded, unless
        this is not enough: a PNG without EXIF data in its header, as PNG allows the orientation to
        follow the pixels, or a TIFF that lies on its side.

        Parameters
        ----------
        i : int

        Returns
        -------
        tuple of (int, int)
            For a volume, (depth, height, width).

        Raises
        ------
        ValueError
            If image i cannot be read.

        Examples
        --------
        >>> from PIL import Image
        >>> from sklcam.images.dataset import ImageDataset
        >>> ImageDataset([Image.new("L", (80, 60))]).original_size(0)
        (60, 80)
        """
        return self.source.size(range(len(self))[i])

    def original_image(self, i: int) -> Tensor:
        """Return image i before resizing.

        Parameters
        ----------
        i : int

        Returns
        -------
        Tensor of shape (n_channels, height, width), uint8, or float32 in [0, 1]
            At the size that :meth:`original_size` returns.

        Raises
        ------
        ValueError
            If image i cannot be read, or is not an image.
        """
        return self.source.read(range(len(self))[i])


def check_images(X: Any) -> None:
    """Raise a ValueError unless X holds images.

    Parameters
    ----------
    X : array, tensor, list or Dataset
        As in `ImageDataset`.

    Raises
    ------
    ValueError
        As in `ImageDataset`. The message says what X is, and what to pass.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images.dataset import check_images
    >>> check_images(np.zeros((2, 8, 8)))
    >>> check_images(np.full((2, 8, 8), 255.0))
    Traceback (most recent call last):
    ...
    ValueError: The pixels of X range from 255 to 255; floats must lie in [0, 1]: divide by 255.
    """
    open_source(X).check()


def n_images(X: Any, image_size: tuple[int, ...] | None = None) -> int:
    """Check the form of X and return the number of its images, without opening a file.

    Parameters
    ----------
    X : array, tensor, list or Dataset
        As in `ImageDataset`.
    image_size : tuple of int or None, default=None
        The size that the images should have; three sides mean volumes.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If X has none of these forms, or is empty.

    Examples
    --------
    >>> import torch
    >>> from sklcam.images.dataset import n_images
    >>> n_images(torch.zeros(4, 3, 32, 32))
    4
    """
    if image_size is not None:
        _check_may_be(X, image_size)
    return len(open_source(X))


def file_paths(X: Any) -> list[str | None]:
    """Return the path of each image, and None for an image that is not known to be a file.

    Parameters
    ----------
    X : images
        As in `ImageDataset`.

    Returns
    -------
    list of length n_samples

    Raises
    ------
    ValueError
        If X has none of these forms.

    Examples
    --------
    >>> from PIL import Image
    >>> from sklcam.images.dataset import file_paths
    >>> file_paths(["pets/cat.png", Image.new("L", (8, 8))])
    ['pets/cat.png', None]
    """
    source = open_source(X)
    return [source.path(i) for i in range(len(source))]


def are_images(value: Any) -> bool:
    """Whether a value is images rather than labels, for an argument that may be either.

    Parameters
    ----------
    value : Any

    Returns
    -------
    bool
        True for arrays with the axes of images, for data sets, and for lists and columns whose
        first entry is a picture, an encoded image or a ``pathlib.Path``. Strings are labels.

    Examples
    --------
    >>> from pathlib import Path
    >>> from sklcam.images.dataset import are_images
    >>> are_images(["cat", "dog"]), are_images([Path("cat.png")])
    (False, True)
    """
    if isinstance(value, Dataset) or is_instance(value, "datasets", "Dataset"):
        return True
    if isinstance(value, np.ndarray | Tensor) and value.dtype != object:
        return value.ndim >= 3
    first = value
    if is_table(value) and len(value):
        try:
            first = column_of(take_from_table(value, [0]), None)[0]
        except ValueError:  # a table of numbers, or with several columns
            return False
    elif isinstance(value, list | tuple | np.ndarray) and len(value):
        first = value[0]
    return isinstance(first, os.PathLike) or has_entries(first) or is_image(first)


def items_of(X: Any) -> Items | None:
    """Return the images of a data set as it returns them, neither resized nor checked.

    Parameters
    ----------
    X : images
        As in `ImageDataset`.

    Returns
    -------
    Items or None
        None for any other form, and for files.

    Examples
    --------
    >>> import numpy as np
    >>> from torch.utils.data import TensorDataset
    >>> from sklcam.images.dataset import items_of
    >>> items_of(TensorDataset(torch.zeros(4, 3, 32, 32)))[1].shape
    torch.Size([3, 32, 32])
    >>> items_of(["cat.png"])
    """
    return find_items(X)


def _check_may_be(X: Any, size: tuple[int, ...]) -> None:
    """Raise a ValueError if volumes are expected and X cannot be volumes, before it is opened."""
    if len(size) == 3 and isinstance(X, np.ndarray | Tensor) and X.ndim != 5:
        raise _not_volumes(X, size)


def _not_volumes(X: Any, size: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"image_size={size} is for volumes, but X is {describe(X)}. Give (height, width) for "
        "pictures, or pass volumes: an array or a tensor of shape (n, C, D, H, W), bytes or floats "
        "in [0, 1]."
    )


def _check_axes(source: Source, size: tuple[int, ...], X: Any) -> None:
    """Raise a ValueError unless image_size is for volumes if, and only if, X is volumes."""
    if len(size) == 2:
        found = source.uniform_size
        if found is not None and len(found) == 3:
            as_tensor = "X" if isinstance(X, Tensor) else "torch.from_numpy(X)"
            raise ValueError(
                f"X is 5-dimensional, {describe(X)}, so it holds volumes, but image_size={size} is "
                "for pictures. For an explainer around a network, which takes volumes as float "
                f"tensors (n, C, D, H, W), unchanged, pass {as_tensor}.float(), normalised as the "
                f"network needs it. For an estimator that trains, set image_size={found}. If X is "
                "batches of images, pass X.reshape(-1, *X.shape[2:])."
            )
        return
    if source.uniform_size is None or len(source.uniform_size) != 3:
        raise _not_volumes(X, size)
    if source.uniform_size != size:
        raise ValueError(
            f"X is volumes of size {source.uniform_size}, but image_size={size}, and volumes are "
            "not resized. Give their own size, or resize them first, as with "
            f'torch.nn.functional.interpolate(X, size={size}, mode="trilinear").'
        )


def _check_channels(channels: Any) -> str | None:
    if channels not in ("first", "last", None):
        raise ValueError(f"channels must be 'first', 'last' or None; got {channels!r}.")
    return channels


def _rgb(background: Any) -> RGB | None:
    """Return a colour as red, green and blue; raise a ValueError if it is not one."""
    if background is None:
        return None
    try:
        colour = ImageColor.getrgb(background) if isinstance(background, str) else background
        red, green, blue = (int(value) for value in colour)
        if all(0 <= value <= 255 for value in (red, green, blue)):
            return red, green, blue
    except (TypeError, ValueError):
        pass
    raise ValueError(
        'background must be a colour, such as "white" or (255, 255, 255); got '
        f"{describe(background)}."
    )


def _check_labels(y: Any, n_samples: int) -> Any:
    """Return labels that can be indexed by position, unlike a pandas Series."""
    if y is None:
        return None
    try:
        labels = y if isinstance(y, Tensor) else np.asarray(y)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"y must hold one label per image: {error}") from error
    if labels.ndim == 0:
        raise ValueError(f"y must hold one label per image; got {y!r}.")
    if len(labels) != n_samples:
        raise ValueError(
            f"X has {n_samples} image(s), but y has {len(labels)} label(s). Give one per image."
        )
    return labels
