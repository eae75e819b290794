"""Everything X may be, turned into batches of tensors.

Arrays, tensors, file paths, PIL images and torch data sets are checked once, at the door, and then
read lazily as equally sized images. Nothing here knows of networks: this module ends where a
normalised batch begins, and takes maps back to the frame of the image they came from.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms.v2 import functional

from sklcam.arguments import check_count, check_map, check_size, describe

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

_RESIZE_MODES = ("stretch", "center_crop")

# Pixels looked at together when floats are scanned: bounds the memory a memory-mapped X takes.
_SCAN_PIXELS = 2**22

# Values of small images that are copied and resized together. It spares what an image costs by
# itself; with more, floats no longer fit in the caches.
_STACK_VALUES = 2**17

# How far from [0, 1] rounding may have brought a float; such pixels are clamped when they are read.
_ROUNDING = 1e-6

_WHAT_WOULD_DO = (
    "X may be a uint8 array, or a float array in [0, 1], of shape (n_samples, height, width) or "
    "(n_samples, height, width, n_channels); a uint8 or float torch tensor of shape "
    "(n_samples, n_channels, height, width); a list of file paths or PIL images; or a map-style "
    "torch Dataset of images."
)


class ImageDataset(Dataset[Any]):
    """Any X as a lazy torch data set of equally sized images.

    Parameters
    ----------
    X : array, tensor, list or Dataset
        The images, in one of these forms:

        - ndarray of shape (n_samples, height, width) or (n_samples, height, width, n_channels),
          uint8, or float in [0, 1]; a memory map stays on the disk;
        - Tensor of shape (n_samples, n_channels, height, width), uint8, or float in [0, 1];
        - list, tuple or one-dimensional array of file paths and PIL images, of any sizes. They
          become RGB, upright by their EXIF orientation. Files are read when asked for; PIL images
          are loaded here, as an opened one holds a file handle that worker processes cannot share;
        - map-style torch ``Dataset`` (or a lazy sequence such as skorch's ``SliceDataset``) whose
          items are an image or a tuple that starts with one: a PIL image, an ndarray of shape
          (height, width) or (height, width, n_channels), or a Tensor of shape (n_channels, height,
          width).
    y : array-like of length n_samples, optional
        What to return beside each image.
    image_size : int or (int, int), default=224
        Height and width of the images returned.
    resize : {"stretch", "center_crop"}, default="stretch"
        "stretch" brings both sides to `image_size`. "center_crop" keeps the proportions: it scales
        the image until it just covers `image_size`, and cuts off what stands over, evenly on both
        sides.
    n_channels : int, optional
        The number of channels that X must have.

    Attributes
    ----------
    n_channels : int
        Channels of the images returned; 3 for file paths and PIL images.
    image_size : tuple of (int, int)
        Height and width of the images returned.
    uniform_size : tuple of (int, int) or None
        Height and width that all images have before resizing, if X is an array or a tensor.
    device : torch.device
        Where the images returned are: on the CPU, unless X is, or holds, tensors elsewhere.

    Raises
    ------
    ValueError
        If X is none of the above, is empty, names a missing file, or has pixels that are NaN,
        infinite or out of range; if `y` or `n_channels` do not fit X; if `image_size` or `resize`
        make no sense. What can only be seen by reading an image is checked when it is read: the
        error names the file or index.

    Notes
    -----
    Images keep their kind: uint8 stays uint8, any float becomes float32. A 16-bit greyscale file
    becomes float32, so a batch may mix the two. Stacked as they are, the uint8 ones would end up
    255 times too bright; a ``DataLoader`` therefore gets such a batch as float32 throughout (see
    ``__getitems__``).

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images import ImageDataset
    >>> X = np.zeros((5, 60, 80, 3), dtype=np.uint8)
    >>> images = ImageDataset(X, y=list("abcde"), image_size=32)
    >>> image, label = images[1]
    >>> image.shape, image.dtype, str(label)
    (torch.Size([3, 32, 32]), torch.uint8, 'b')
    >>> images.original_size(1)
    (60, 80)
    """

    n_channels: int
    image_size: tuple[int, int]
    uniform_size: tuple[int, int] | None
    device: torch.device

    def __init__(
        self,
        X: Any,
        y: Any = None,
        *,
        image_size: int | Sequence[int] = 224,
        resize: str = "stretch",
        n_channels: int | None = None,
    ) -> None:
        self.image_size = check_size(image_size, "image_size")
        self.resize = _check_resize(resize)
        self._source = _open_source(X)
        self._labels = _check_labels(y, len(self._source))
        self._source.check()
        self.n_channels = self._source.n_channels
        self.uniform_size = self._source.uniform_size
        self.device = self._source.device
        if n_channels is not None and n_channels != self.n_channels:
            raise ValueError(
                f"X has {self.n_channels} channel(s), "
                f"but this estimator was fitted on {n_channels}."
            )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> tuple[Tensor, Any]:
        """Image i at `image_size`, and its label.

        Parameters
        ----------
        i : int

        Returns
        -------
        image : Tensor of shape (n_channels, height, width), uint8, or float32 in [0, 1]
        label : the entry of `y`, or a tensor that holds 0 if there is no `y`

        Raises
        ------
        ValueError
            If image i cannot be read, or is not an image.
        """
        i = range(len(self))[i]
        image = _resize_image(self._source.read(i), self.image_size, self.resize)
        return image, self._label(i)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Any]]:
        """Images and labels of one batch, with all images of one dtype.

        Parameters
        ----------
        indices : sequence of int

        Returns
        -------
        list of (image, label)
            As single items are; where these mix uint8 and float32, all are float32 in [0, 1].
        """
        indices = [range(len(self))[i] for i in indices]
        stacks = self._source.read_stacks(indices)
        resized = (_resize_image(stack, self.image_size, self.resize) for stack in stacks)
        images = [image for stack in resized for image in stack]
        if len({image.dtype for image in images}) > 1:
            images = [_to_unit_floats(image) for image in images]
        return [(image, self._label(i)) for image, i in zip(images, indices, strict=True)]

    def _label(self, i: int) -> Any:
        return torch.tensor(0) if self._labels is None else self._labels[i]

    def original_size(self, i: int) -> tuple[int, int]:
        """Height and width of image i before resizing.

        An item of a data set is read whole. Of a file, only the header is decoded, except where
        that does not tell: a PNG without EXIF data in its header, as PNG allows the orientation to
        follow the pixels, and a TIFF that lies on its side.

        Parameters
        ----------
        i : int

        Returns
        -------
        tuple of (int, int)

        Raises
        ------
        ValueError
            If image i cannot be read.

        Examples
        --------
        >>> from PIL import Image
        >>> from sklcam.images import ImageDataset
        >>> ImageDataset([Image.new("L", (80, 60))]).original_size(0)
        (60, 80)
        """
        return self._source.size(range(len(self))[i])

    def original_image(self, i: int) -> Tensor:
        """Image i before resizing.

        Parameters
        ----------
        i : int

        Returns
        -------
        Tensor of shape (n_channels, height, width), uint8, or float32 in [0, 1]
            Of the size that :meth:`original_size` says.

        Raises
        ------
        ValueError
            If image i cannot be read, or is not an image.
        """
        return self._source.read(range(len(self))[i])


def check_images(X: Any) -> None:
    """Raise a ValueError unless X holds images.

    Parameters
    ----------
    X : array, tensor, list or Dataset
        As in `ImageDataset`.

    Raises
    ------
    ValueError
        As in `ImageDataset`; the message says what X is and what would do.

    Examples
    --------
    >>> import numpy as np
    >>> from sklcam.images import check_images
    >>> check_images(np.zeros((2, 8, 8)))
    >>> check_images(np.full((2, 8, 8), 255.0))
    Traceback (most recent call last):
    ...
    ValueError: The pixels of X range from 255 to 255; floats must lie in [0, 1]: divide by 255.
    """
    _open_source(X).check()


def n_images(X: Any) -> int:
    """Number of images in X, once its form is checked; no file is opened.

    Parameters
    ----------
    X : array, tensor, list or Dataset
        As in `ImageDataset`.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If X is none of these forms, or is empty.

    Examples
    --------
    >>> import torch
    >>> from sklcam.images import n_images
    >>> n_images(torch.zeros(4, 3, 32, 32))
    4
    """
    return len(_open_source(X))


def default_statistics(n_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation to normalise images with when none are given.

    Parameters
    ----------
    n_channels : int

    Returns
    -------
    mean, std : tuple of float, of length n_channels
        ImageNet's for three channels; otherwise the average of ImageNet's three, for every channel.

    Raises
    ------
    ValueError
        If `n_channels` is under 1.

    Examples
    --------
    >>> from sklcam.images import default_statistics
    >>> default_statistics(3)
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    """
    check_count("n_channels", n_channels)
    if n_channels == 3:
        return _IMAGENET_MEAN, _IMAGENET_STD
    return (sum(_IMAGENET_MEAN) / 3,) * n_channels, (sum(_IMAGENET_STD) / 3,) * n_channels


def normalize(batch: Tensor, mean: Any, std: Any) -> Tensor:
    """Scale images to [0, 1], and each channel by its mean and standard deviation.

    Parameters
    ----------
    batch : Tensor of shape (n_images, n_channels, height, width)
        uint8, or float in [0, 1].
    mean, std : "auto", float, sequence of float or Tensor, one value or one a channel
        Statistics of images in [0, 1]; "auto" is ImageNet's for three channels, and
        their averages for any other number.

    Returns
    -------
    Tensor of shape (n_images, n_channels, height, width)
        On the device of `batch`; float32 for uint8, the dtype of `batch` otherwise.

    Raises
    ------
    ValueError
        If `batch` has another shape or dtype, or `mean` or `std` another length.

    Examples
    --------
    >>> import torch
    >>> from sklcam.images import normalize
    >>> batch = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    >>> normalize(batch, mean=0.5, std=(0.5, 0.25, 0.1))[0, :, 0, 0]
    tensor([1., 2., 5.])
    """
    is_batch = isinstance(batch, Tensor) and batch.ndim == 4
    if not is_batch or not (batch.dtype == torch.uint8 or batch.is_floating_point()):
        raise ValueError(
            "batch must be a uint8 or float Tensor of shape (n_images, n_channels, height, width), "
            f"got {describe(batch)}."
        )
    usual = default_statistics(batch.shape[1])
    mean, std = (
        auto if isinstance(given, str) and given == "auto" else given
        for auto, given in zip(usual, (mean, std), strict=True)
    )
    batch = _to_unit_floats(batch)
    return (batch - _one_per_channel(mean, batch, "mean")) / _one_per_channel(std, batch, "std")


def map_to_frame(map_: Tensor, size: Sequence[int], *, resize: str = "stretch") -> Tensor:
    """Bring a map from the network's input frame to the frame of the original image.

    Parameters
    ----------
    map_ : Tensor of shape (..., height, width), float
        A map, or many of images of one size, at the network's input size.
    size : (int, int)
        Height and width of the original image, as `ImageDataset.original_size` gives them.
    resize : {"stretch", "center_crop"}, default="stretch"
        How the image was brought to the network's input size. The map of a centre crop is put back
        where the crop was, and is zero outside it: at original pixels whose centre the network did
        not see.

    Returns
    -------
    Tensor of shape (..., size[0], size[1])
        Interpolated bilinearly, pixels taken as areas (``align_corners=False``), antialiased where
        the map shrinks.

    Raises
    ------
    ValueError
        If `map_` is not float or has under two dimensions, or `size` or `resize` make no sense.

    Examples
    --------
    >>> import torch
    >>> from sklcam.images import map_to_frame
    >>> map_to_frame(torch.ones(2, 2), (2, 4), resize="center_crop")
    tensor([[0., 1., 1., 0.],
            [0., 1., 1., 0.]])
    """
    size = check_size(size, "size")
    _check_resize(resize)
    check_map("map_", map_)
    maps = map_.reshape(-1, 1, *map_.shape[-2:])
    if resize == "stretch":
        maps = functional.resize(maps, list(size), antialias=True)
    else:
        maps = _undo_center_crop(maps, size)
    return maps.reshape(*map_.shape[:-2], *size)


# The forms of X, each as a source of single images


class _Source(ABC):
    """The images of one form of X, in their own sizes."""

    n_channels: int
    uniform_size: tuple[int, int] | None = None
    device = torch.device("cpu")

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def check(self) -> None:
        """Do the checks that look further than the container: at pixels, or at the disk."""

    @abstractmethod
    def read(self, i: int) -> Tensor:
        """Image i as a (n_channels, height, width) tensor with its own memory, uint8 or float32."""

    def read_stacks(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """Yield images in their order, as many to a stack as are best resized together."""
        for i in indices:
            yield self.read(i)[None]

    @abstractmethod
    def size(self, i: int) -> tuple[int, int]:
        """Height and width of image i."""


class _ArraySource(_Source):
    """Images of one size in an array or a tensor, whichever: both index and reduce alike."""

    def __init__(self, X: np.ndarray | Tensor) -> None:
        _check_batch_shape(X)
        _check_pixel_dtype(X, "X")
        self._images = X.detach().as_subclass(Tensor) if isinstance(X, Tensor) else X
        first = _copy_channels_first(X[0])
        self.n_channels, height, width = first.shape
        self.uniform_size = self._size = (height, width)
        self.device = first.device

    def __len__(self) -> int:
        return len(self._images)

    def check(self) -> None:
        if not _is_uint8(self._images):
            _check_pixel_values(self._images)

    def read(self, i: int) -> Tensor:
        return _copy_channels_first(self._images[i])

    def read_stacks(self, indices: Sequence[int]) -> Iterator[Tensor]:
        n_of_a_stack = max(1, _STACK_VALUES // math.prod(self._images.shape[1:]))
        for start in range(0, len(indices), n_of_a_stack):
            some = [*indices[start : start + n_of_a_stack]]
            if len(some) == 1:
                yield self.read(some[0])[None]
            elif isinstance(self._images, Tensor):
                yield _copy_channels_first(self._images[some])
            else:
                images = self._images[some]
                images = images if images.ndim == 4 else images[..., np.newaxis]
                yield _copy_channels_first(images)

    def size(self, i: int) -> tuple[int, int]:
        return self._size


class _FileSource(_Source):
    """File paths and PIL images, read as RGB."""

    n_channels = 3

    def __init__(self, X: Sequence[Any]) -> None:
        self._items = [_check_file_or_image(item, i, X) for i, item in enumerate(X)]

    def __len__(self) -> int:
        return len(self._items)

    def check(self) -> None:
        _check_files_exist([item for item in self._items if isinstance(item, str)])
        for i, item in enumerate(self._items):
            if isinstance(item, Image.Image):
                with _naming(self._name(i)):
                    self._items[i] = _load_upright(item)

    def read(self, i: int) -> Tensor:
        with self._opened(i) as image:
            return _rgb_tensor(image)

    def size(self, i: int) -> tuple[int, int]:
        with self._opened(i) as image:
            return _upright_size(image)

    @contextmanager
    def _opened(self, i: int) -> Iterator[Image.Image]:
        item = self._items[i]
        with _naming(self._name(i)):
            if isinstance(item, Image.Image):
                yield item
            else:
                with Image.open(item) as image:
                    yield image

    def _name(self, i: int) -> str:
        item = self._items[i]
        return f"X[{i}], a PIL image," if isinstance(item, Image.Image) else repr(item)


class _LazySource(_Source):
    """A map-style torch data set, or any other sequence that makes its images when asked."""

    def __init__(self, X: Any) -> None:
        self._dataset = X
        self._n_images = len(X)

    def __len__(self) -> int:
        return self._n_images

    def check(self) -> None:
        first = _item_tensor(self._image(0), "X[0]")
        self.n_channels, self.device = len(first), first.device

    def read(self, i: int) -> Tensor:
        image = _item_tensor(self._image(i), f"X[{i}]")
        if len(image) != self.n_channels:
            raise ValueError(f"X[{i}] has {len(image)} channel(s), but X[0] has {self.n_channels}.")
        return image

    def size(self, i: int) -> tuple[int, int]:
        _, height, width = self.read(i).shape
        return height, width

    def _image(self, i: int) -> Any:
        item = self._dataset[i]
        return item[0] if isinstance(item, (tuple, list)) and item else item


def _open_source(X: Any) -> _Source:
    """The source for X, after the checks that need neither pixels nor the disk."""
    source: _Source
    if isinstance(X, Tensor) or (isinstance(X, np.ndarray) and X.dtype.kind not in "OSTU"):
        source = _ArraySource(X)
    elif isinstance(X, (list, tuple)) or (isinstance(X, np.ndarray) and X.ndim == 1):
        source = _FileSource(list(X))
    elif _is_lazy(X):
        source = _LazySource(X)
    else:
        raise ValueError(f"{_diagnose(X)} {_WHAT_WOULD_DO}")
    if len(source) == 0:
        raise ValueError("X is empty: at least one image is needed.")
    return source


def _is_lazy(X: Any) -> bool:
    if isinstance(X, Dataset):
        return isinstance(X, Sized) and not isinstance(X, IterableDataset)
    return isinstance(X, Sequence) and not isinstance(X, (str, bytes, bytearray, memoryview, range))


def _diagnose(X: Any) -> str:
    """A sentence on what X is, when it is no form of images, and what may have been meant."""
    name = f"{type(X).__module__}.{type(X).__qualname__}".removeprefix("builtins.")
    if isinstance(X, (str, bytes, os.PathLike)):
        return f"X is one file path, {X!r}: wrap it in a list, X=[path]."
    if isinstance(X, Image.Image):
        return "X is one PIL image: wrap it in a list, X=[image]."
    if isinstance(X, np.ndarray):
        return (
            f"X is an array of dtype {X.dtype} and shape {X.shape}, whose entries are not pixels."
        )
    if isinstance(X, Dataset):
        return f"X is {name}, a data set without length or indices: a map-style Dataset is needed."
    if name.startswith("pandas."):
        return f"X is a {name}: if a column holds file paths, pass X[column].tolist()."
    if hasattr(X, "tocsr"):
        return f"X is a sparse matrix ({name}): tables are not images."
    if isinstance(X, Iterator):
        return f"X is a {name}, which has no length: pass list(X)."
    return "X is None." if X is None else f"X is a {name}."


# One image, in whatever form, as a tensor


def _item_tensor(image: Any, name: str) -> Tensor:
    """An item of a lazy source as a tensor, with all the checks that arrays get at the door."""
    if isinstance(image, Image.Image):
        with _naming(name):
            return _rgb_tensor(image)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"{name} is a {type(image).__name__}; an item of a data set must be a PIL image, an "
            "array of shape (height, width) or (height, width, n_channels), a tensor of shape "
            "(n_channels, height, width), or a tuple that starts with one of them."
        )
    _check_image_shape(image, name)
    _check_pixel_dtype(image, name)
    tensor = _copy_channels_first(image)
    if tensor.is_floating_point():
        _check_range(*_finite_extremes(tensor, name), f"The pixels of {name}")
    return tensor


def _copy_channels_first(image: np.ndarray | Tensor) -> Tensor:
    """A copy, uint8 or float32, with the channels third from last; it shares no memory."""
    if isinstance(image, Tensor):
        dtype = torch.uint8 if _is_uint8(image) else torch.float32
        return image.detach().as_subclass(Tensor).to(dtype, copy=True)
    tensor = torch.from_numpy(np.array(image, dtype=np.uint8 if _is_uint8(image) else np.float32))
    return tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.movedim(-1, -3)


def _rgb_tensor(image: Image.Image) -> Tensor:
    """A PIL image, upright, as a (3, height, width) tensor: uint8, or float32 if it has 16 bits."""
    image = _load_upright(image)
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float32) / 65535
        return torch.from_numpy(grey).repeat(3, 1, 1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of the transparency it drops
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # which copies in any case
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def _load_upright(image: Image.Image) -> Image.Image:
    """The image, loaded and turned as its EXIF orientation says; itself if it stands upright."""
    _check_pil_image(image)
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width that `_load_upright` would give."""
    if image.format == "TIFF" and _lies_on_its_side(image):
        image.load()  # Pillow turns a TIFF as it loads it; its size before depends on the version
    if _lies_on_its_side(image):
        return image.width, image.height
    return image.height, image.width


def _lies_on_its_side(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a ValueError that says which image it was."""
    try:
        yield
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        raise ValueError(f"{name} cannot be read as an image: {error}") from error


# Sizes


def _resize_image(image: Tensor, size: tuple[int, int], resize: str) -> Tensor:
    """The image at `size`: the one path by which every form of X is resized."""
    if resize == "stretch":
        image = functional.resize(image, list(size), antialias=True)
    else:
        scaled, top, left = _center_crop(image.shape[-2], image.shape[-1], size)
        image = functional.resize(image, list(scaled), antialias=True)
        image = image[..., top : top + size[0], left : left + size[1]]
    # Interpolation, and whatever made X, may round to a hair outside [0, 1].
    return (image.clamp(0, 1) if image.is_floating_point() else image).contiguous()


def _center_crop(height: int, width: int, size: Sequence[int]) -> tuple[tuple[int, int], int, int]:
    """Size to which an image is scaled to just cover `size`; top and left of the crop in it.

    Rounded as torchvision's ``Resize`` and ``CenterCrop`` do.
    """
    if size[0] * width >= size[1] * height:
        scaled = (size[0], size[0] * width // height)
    else:
        scaled = (size[1] * height // width, size[1])
    return scaled, round((scaled[0] - size[0]) / 2), round((scaled[1] - size[1]) / 2)


def _undo_center_crop(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of shape (n, 1, h, w) of a centre crop, put back into the whole image's frame."""
    height, width = maps.shape[-2:]
    scaled, top, left = _center_crop(*size, (height, width))
    bottom, right = scaled[0] - height - top, scaled[1] - width - left
    # Repeated beyond its edges, the map is not pulled down there by zeros when it is interpolated.
    maps = pad(maps, (left, right, top, bottom), mode="replicate")
    maps = functional.resize(maps, list(size), antialias=True)
    rows = _covered(size[0], scaled[0], top, height, maps.device)
    columns = _covered(size[1], scaled[1], left, width, maps.device)
    return maps.where(rows[:, None] & columns, 0)


def _covered(n_pixels: int, n_scaled: int, start: int, length: int, device: torch.device) -> Tensor:
    """Which original pixels of a side have their centre in the crop, bool of shape (n_pixels,)."""
    centers = (torch.arange(n_pixels, device=device) + 0.5) * (n_scaled / n_pixels)
    return (centers >= start) & (centers < start + length)


def _to_unit_floats(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.to(torch.float32) / 255


def _one_per_channel(values: Any, batch: Tensor, name: str) -> Tensor:
    try:
        statistic = torch.as_tensor(values, dtype=batch.dtype)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f'{name} must be "auto", a number, or one number for each of {batch.shape[1]} '
            f"channel(s); got {describe(values)}."
        ) from None
    if statistic.numel() not in (1, batch.shape[1]):
        raise ValueError(
            f"{name} has {statistic.numel()} values, "
            f"but the images have {batch.shape[1]} channel(s)."
        )
    if statistic.device.type == "cpu":  # to look at it elsewhere, the host would have to wait
        numbers = statistic.double().numpy() if isinstance(values, Tensor) else np.asarray(values)
        limits = torch.finfo(batch.dtype)
        low = limits.tiny if name == "std" else limits.min
        if not ((numbers >= low) & (numbers <= limits.max)).all():
            wanted = "finite" if name == "mean" else "finite and positive"
            raise ValueError(f"{name} must be {wanted}; got {describe(values)}.")
    # So it would for a blocking copy to the device.
    return statistic.to(batch.device, non_blocking=True).reshape(-1, 1, 1)


def _check_resize(resize: Any) -> str:
    if resize not in _RESIZE_MODES:
        raise ValueError(f"resize must be 'stretch' or 'center_crop', got {resize!r}.")
    return resize


def _check_labels(y: Any, n_samples: int) -> Any:
    """Labels that can be indexed by position, which a pandas Series could not."""
    if y is None:
        return None
    try:
        labels = y if isinstance(y, Tensor) else np.asarray(y)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"y must hold one label an image: {error}") from error
    if labels.ndim == 0:
        raise ValueError(f"y must hold one label an image, got {y!r}.")
    if len(labels) != n_samples:
        raise ValueError(f"X has {n_samples} image(s), but y has {len(labels)} label(s).")
    return labels


def _is_uint8(pixels: np.ndarray | Tensor) -> bool:
    return pixels.dtype == (torch.uint8 if isinstance(pixels, Tensor) else np.uint8)


def _check_pixel_dtype(pixels: np.ndarray | Tensor, name: str) -> None:
    if isinstance(pixels, Tensor):
        if pixels.layout != torch.strided:
            raise ValueError(f"{name} is a sparse tensor; pass a dense one, {name}.to_dense().")
        is_float = pixels.is_floating_point()
        remedy = ".to(torch.uint8)"
    else:
        is_float = pixels.dtype.kind == "f"
        remedy = ".astype(np.uint8)"
    if not (is_float or _is_uint8(pixels)):
        raise ValueError(
            f"{name} has dtype {pixels.dtype}; pixels must be uint8, or floats in [0, 1]. "
            f"If its values are 0 to 255, pass {name}{remedy}."
        )


def _check_batch_shape(X: np.ndarray | Tensor) -> None:
    if X.ndim == 2:
        raise ValueError(
            f"X has shape {tuple(X.shape)}: tables are not images. If each row is a flattened "
            "image, reshape to (n_samples, height, width)."
        )
    if X.ndim != 4 and (X.ndim != 3 or isinstance(X, Tensor)):
        raise ValueError(f"X is {X.ndim}-dimensional, of shape {tuple(X.shape)}. {_WHAT_WOULD_DO}")
    if len(X) == 0:
        raise ValueError(f"X is empty, of shape {tuple(X.shape)}: at least one image is needed.")
    _check_image_shape(X[0], "X", batch=tuple(X.shape))


def _check_image_shape(
    image: np.ndarray | Tensor, name: str, batch: tuple[int, ...] | None = None
) -> None:
    """Check the shape of one image, or of the first of a batch, which the message then shows."""
    shape = tuple(image.shape) if batch is None else batch
    if image.ndim != 3 and (image.ndim != 2 or isinstance(image, Tensor)):
        raise ValueError(
            f"{name} has shape {shape}; an image is an array of shape (height, width) or "
            "(height, width, n_channels), or a tensor of shape (n_channels, height, width)."
        )
    if 0 in image.shape:
        raise ValueError(f"{name} has shape {shape}: its images have no pixels.")
    if image.ndim == 3:
        _check_channel_axis(image, name, shape)


def _check_channel_axis(image: np.ndarray | Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Refuse colour images whose channels obviously stand where the other library puts them."""
    first, middle, last = image.shape
    extra = len(shape) - 3
    if isinstance(image, Tensor):
        if last == 3 and first > 4 and middle > 4:
            axes = ", ".join(str(axis) for axis in [*range(extra), extra + 2, extra, extra + 1])
            raise ValueError(
                f"{name} is a tensor of shape {shape}, with its channels last; tensors have them "
                f"first: pass {name}.permute({axes}), or an array."
            )
    elif first == 3 and middle > 4 and last > 4:
        axes = ", ".join(str(axis) for axis in [*range(extra), extra + 1, extra + 2, extra])
        raise ValueError(
            f"{name} is an array of shape {shape}, with its channels first; arrays have them "
            f"last: pass {name}.transpose({axes}), or a tensor, torch.from_numpy({name})."
        )


def _check_pixel_values(images: np.ndarray | Tensor) -> None:
    """Check that all pixels are finite and in [0, 1], a piece at a time and with no copy of any."""
    if isinstance(images, Tensor) and images.is_meta:
        raise ValueError("X is on the meta device, where tensors have no values.")
    lowest, highest = math.inf, -math.inf
    step = max(1, _SCAN_PIXELS // math.prod(images.shape[1:]))
    for start in range(0, len(images), step):
        chunk = images[start : start + step]
        low, high = float(chunk.min()), float(chunk.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            for i, image in enumerate(chunk, start):
                _finite_extremes(image, f"X[{i}]")
        lowest, highest = min(lowest, low), max(highest, high)
    _check_range(lowest, highest, "The pixels of X")


def _finite_extremes(image: np.ndarray | Tensor, name: str) -> tuple[float, float]:
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} has pixels that are NaN or infinite.")
    return low, high


def _check_range(low: float, high: float, subject: str) -> None:
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        remedy = "divide by 255" if high > 1 + _ROUNDING else "shift and scale them"
        raise ValueError(
            f"{subject} range from {low:g} to {high:g}; floats must lie in [0, 1]: {remedy}."
        )


def _check_file_or_image(item: Any, i: int, X: Sequence[Any]) -> str | Image.Image:
    if isinstance(item, Image.Image):
        return item
    path = os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
    if isinstance(path, str):
        return path
    if isinstance(item, (np.ndarray, Tensor)):
        raise ValueError(_advise_on_arrays(X))
    raise ValueError(
        f"X[{i}] is a {type(item).__name__}, not a file path or a PIL image. {_WHAT_WOULD_DO}"
    )


def _advise_on_arrays(X: Sequence[Any]) -> str:
    shapes = {getattr(item, "shape", None) for item in X}
    if len(shapes) > 1:
        return (
            "X is a list with arrays in it that are not all of one shape: arrays of different "
            "sizes cannot be mixed. Pass file paths or PIL images instead."
        )
    stack = "torch.stack(X)" if isinstance(X[0], Tensor) else "np.stack(X)"
    return f"X is a list of arrays of shape {tuple(X[0].shape)}: pass {stack} instead."


def _check_pil_image(image: Image.Image) -> None:
    if 0 in image.size:
        raise ValueError(f"its size is {image.width} x {image.height}.")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels have 32 bits (mode {image.mode!r}) and thus no known range; "
            "pass float arrays in [0, 1] instead."
        )


def _check_files_exist(paths: Sequence[str]) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        is_folder = os.path.isdir(missing[0])
        hint = ", a folder: sklcam.datasets.load_class_folders lists the images in one"
        raise ValueError(
            f"{len(missing)} of the {len(paths)} file(s) in X do not exist, "
            f"the first is {missing[0]!r}{hint if is_folder else ''}."
        )
