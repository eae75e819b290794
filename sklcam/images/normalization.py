"""Normalisation of pixels to the range that networks are trained on."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from sklcam._validation import check_count, describe

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LARGEST_STATISTIC = 10


def default_statistics(n_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the default mean and standard deviation for normalising images.

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
    >>> from sklcam.images.normalization import default_statistics
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
        uint8, or float in [0, 1]; or volumes, (n_images, n_channels, depth, height, width).
    mean, std : "auto", float, sequence of float or Tensor, one value or one per channel
        Statistics of images in [0, 1]; "auto" is ImageNet's for three channels, and
        their averages for any other number.

    Returns
    -------
    Tensor of shape (n_images, n_channels, height, width)
        On the device of `batch`; float32 for uint8, the dtype of `batch` otherwise.

    Raises
    ------
    ValueError
        If `batch` has another shape or dtype, or if `mean` or `std` has another length or is for
        images from 0 to 255.

    Examples
    --------
    >>> import torch
    >>> from sklcam.images.normalization import normalize
    >>> batch = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    >>> normalize(batch, mean=0.5, std=(0.5, 0.25, 0.1))[0, :, 0, 0]
    tensor([1., 2., 5.])
    """
    batch = checked_unit_floats(batch)
    usual = default_statistics(batch.shape[1])
    mean, std = (
        auto if isinstance(given, str) and given == "auto" else given
        for auto, given in zip(usual, (mean, std), strict=True)
    )
    return (batch - _one_per_channel(mean, batch, "mean")) / _one_per_channel(std, batch, "std")


def denormalize(batch: Tensor, mean: Any, std: Any) -> Tensor:
    """Undo :func:`normalize`.

    Parameters
    ----------
    batch : Tensor of shape (n_images, n_channels, height, width), floating point
    mean, std : float, sequence of float or Tensor, one value or one per channel

    Returns
    -------
    Tensor of shape (n_images, n_channels, height, width)
        In [0, 1], if `batch` was normalised with the same statistics.

    Examples
    --------
    >>> import torch
    >>> from sklcam.images.normalization import denormalize, normalize
    >>> images = torch.tensor([0.25, 0.75]).reshape(1, 2, 1, 1)
    >>> denormalize(normalize(images, 0.5, (0.5, 0.25)), 0.5, (0.5, 0.25)).flatten()
    tensor([0.2500, 0.7500])
    """
    return batch * _one_per_channel(std, batch, "std") + _one_per_channel(mean, batch, "mean")


def checked_unit_floats(batch: Tensor) -> Tensor:
    """Return a batch of images as floats; raise a ValueError if it is not one."""
    is_batch = isinstance(batch, Tensor) and batch.ndim in (4, 5)
    if not is_batch or not (batch.dtype == torch.uint8 or batch.is_floating_point()):
        raise ValueError(
            "batch must be a uint8 or float Tensor of shape (n_images, n_channels, height, width); "
            f"got {describe(batch)}."
        )
    return to_unit_floats(batch)


def to_unit_floats(images: Tensor) -> Tensor:
    """Return bytes as float32 in [0, 1], and floats as they are."""
    return images if images.is_floating_point() else images.to(torch.float32) / 255


def of_one_dtype(images: list[Tensor]) -> list[Tensor]:
    """Return images as they are, or as floats if they are both bytes and floats.

    Files with 16 bits are floats. Stacked with these, bytes would be 255 times too bright.
    """
    if len({image.dtype for image in images}) < 2:
        return images
    return [to_unit_floats(image) for image in images]


def _one_per_channel(values: Any, batch: Tensor, name: str) -> Tensor:
    place = (batch.ndim, batch.shape[1], batch.dtype, batch.device, name)
    numbers = values if isinstance(values, tuple) else (values,)
    # A traced tensor has no values, and must not be cached.
    if isinstance(batch, FakeTensor) or not all(type(number) is float for number in numbers):
        return _made(values, *place)
    return _made_once(values, *place)


def _made(
    values: Any, n_axes: int, n_channels: int, dtype: torch.dtype, device: torch.device, name: str
) -> Tensor:
    try:
        statistic = torch.as_tensor(values, dtype=dtype)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f'{name} must be "auto", a number, or one number for each of {n_channels} '
            f"channel(s); got {describe(values)}."
        ) from None
    if statistic.numel() not in (1, n_channels):
        raise ValueError(
            f"{name} has {statistic.numel()} values, but the images have {n_channels} channel(s). "
            "Give one value, or one per channel."
        )
    # Values on another device are not checked, as the host would have to wait for them.
    if statistic.device.type == "cpu":
        numbers = statistic.double().numpy() if isinstance(values, Tensor) else np.asarray(values)
        limits = torch.finfo(dtype)
        low = limits.tiny if name == "std" else limits.min
        if not ((numbers >= low) & (numbers <= limits.max)).all():
            wanted = "finite" if name == "mean" else "finite and positive"
            raise ValueError(f"{name} must be {wanted}; got {describe(values)}.")
        if (abs(numbers) > _LARGEST_STATISTIC).any():  # for images in [0, 1], both are under 1
            raise ValueError(
                f"{name} is {describe(values)}, which is for images from 0 to 255, but here they "
                "are in [0, 1]. Divide it by 255."
            )
    # A blocking copy to the device would also have to wait.
    return statistic.to(device, non_blocking=True).reshape(-1, *[1] * (n_axes - 2))


@lru_cache(maxsize=16)  # saves a copy to the device for every batch of training
def _made_once(values: Any, *place: Any) -> Tensor:
    with torch.inference_mode(False):  # the cached tensor must also serve training
        return _made(values, *place)
