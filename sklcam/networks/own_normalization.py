"""Networks that normalise their images themselves: found by the input of their first layer.

A network may begin with a normalisation of its own, such as ``nn.Sequential(Normalize(mean, std),
network)``. Images that were normalised before are then normalised twice, and nothing fails. A
black, a grey and a white image are therefore followed to the first layer that has weights, or that
normalises by statistics of its input. The arithmetic before it shows in what arrives there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sklcam.images.normalization import default_statistics
from sklcam.networks.dry_run import memory_of
from sklcam.networks.preprocessing import Preprocessing

# The functions of layers. Batch normalisation is one, as it has learned its input's statistics.
_LAYERS = frozenset(
    f"aten::{name}"
    for name in (
        "convolution", "convolution_overrideable", "linear", "addmm", "mm", "bmm", "baddbmm",
        "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm",
        "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
        "_batch_norm_with_update", "native_layer_norm", "native_group_norm",
    )
)  # fmt: skip
# The limits for images in [0, 1]; images from 0 to 255 exceed the last one.
_LARGEST_STD = 1.0
_SMALLEST_STD = 1 / 300
_NOT_OF_UNIT = 10.0
_MARGIN = 0.02  # no images have a mean this close to black or white


class _Reached(Exception):
    """Raised at the first layer, as nothing more needs to be computed."""


class _FirstLayer(TorchDispatchMode):
    """Follow images to the first layer that takes them, and stop there."""

    def __init__(self, images: Tensor):
        super().__init__()  # type: ignore[no-untyped-call]
        self.input: Tensor | None = None
        # Keyed by memory. The tensors are kept, so that no others take their memory.
        self._made_of_images = {memory_of(images): images}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        followed = [value for value in given if memory_of(value) in self._made_of_images]
        if followed and func._schema.name in _LAYERS:
            self.input = followed[0] if self.input is None else self.input
            raise _Reached
        result = func(*args, **(kwargs or {}))
        if followed:
            made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
            self._made_of_images.update({memory_of(value): value for value in made})
        return result


def _input_of_first_layer(forward: Callable[[Tensor], object], images: Tensor) -> Tensor | None:
    with torch.inference_mode(False), torch.no_grad(), _FirstLayer(images) as first:
        try:
            forward(images)
        except (_Reached, RuntimeError):  # TorchScript turns the first into the second
            if first.input is None:
                raise
    return None if first.input is None else first.input.cpu().double()


def _measure(forward: Callable[[Tensor], object], like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the mean and the standard deviation with which a network normalises each value.

    None if it computes another function of the image, or has no layer at all.
    """
    found = [_input_of_first_layer(forward, torch.full_like(like, grey)) for grey in (0, 0.5, 1)]
    if any(each is None for each in found):
        return None
    black, grey, white = found
    assert black is not None and grey is not None and white is not None
    if not black.shape == grey.shape == white.shape:
        return None
    scale = white - black
    tolerance = max(1e-4, 4 * torch.finfo(like.dtype).eps)
    size = torch.maximum(white.abs(), black.abs()).amax()
    is_seen = scale.abs() > tolerance * size  # False for padding around the image
    is_line = ((black + white) / 2 - grey).abs() <= tolerance * size  # False for NaN
    if not is_seen.any() or not is_line.all():
        return None
    return (-black / scale)[is_seen], (1 / scale)[is_seen]


def _are_about(values: Tensor, expected: Tensor | float, tolerance: float) -> bool:
    return bool(((values - expected).abs() <= tolerance).all())


def _is_of_images(mean: Tensor, std: Tensor) -> bool:
    """Whether these may be the statistics of images in [0, 1]."""
    is_mean = (mean > _MARGIN) & (mean < 1 - _MARGIN)
    is_std = (std > _SMALLEST_STD) & (std <= _LARGEST_STD + 1e-3)
    # Images that are only scaled to the range from 0 to 255 have no mean subtracted.
    is_bytes = (mean.abs() < 1e-3) & ((std * 255 - 1).abs() < 0.01)
    return bool(((is_mean & is_std) | is_bytes).all())


def with_own_normalization(
    default: Preprocessing, forward: Callable[[Tensor], object], like: Tensor
) -> Preprocessing:
    """Return how images are prepared for a network that may normalise them itself.

    Parameters
    ----------
    default : Preprocessing
        The default preparation.
    forward : callable
        Runs the network on images, in evaluation mode. The pass stops at the first layer.
    like : Tensor of shape (1, n_channels, height, width), floating point
        An image in the form that the network takes; its values do not count.

    Returns
    -------
    Preprocessing
        With mean 0 and standard deviation 1 for a network that normalises images in [0, 1] itself,
        and with 0 and 1/255 for one that normalises images from 0 to 255; otherwise as given.

    Warns
    -----
    UserWarning
        If the network shifts or scales its images, but not as statistics of images would.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklcam.networks import Preprocessing
    >>> from sklcam.networks.own_normalization import with_own_normalization
    >>> conv = nn.Conv2d(3, 4, 3)
    >>> prepared = with_own_normalization(
    ...     Preprocessing(), lambda x: conv((x - 0.5) / 0.25), torch.zeros(1, 3, 8, 8)
    ... )
    >>> prepared.mean, prepared.std, prepared.source
    (0.0, 1.0, 'the network, which normalises images in [0, 1] itself: mean 0.5, std 0.25')
    """
    measured = _measure(forward, like)
    if measured is None:
        return default
    mean, std = measured
    if _are_about(mean, 0.0, 1e-3) and _are_about(std, 1.0, 1e-3):
        return default  # the network does not change the images
    shown = f"mean {_listed(mean)}, std {_listed(std)}"
    if _is_of_images(mean, std):
        source = f"the network, which normalises images in [0, 1] itself: {shown}"
        return replace(default, mean=0.0, std=1.0, source=source)
    is_larger = bool(((mean.abs() > _NOT_OF_UNIT) | (std > _NOT_OF_UNIT)).all())
    unit = mean / 255, std / 255
    if is_larger and (
        (_are_about(unit[0], 0, 1e-3) and _are_about(unit[1], 1, 1e-3)) or (_is_of_images(*unit))
    ):
        source = f"the network, which normalises images from 0 to 255 itself: {shown}"
        return replace(default, mean=0.0, std=1 / 255, source=source)
    if _is_of_normalized(mean, std, like.shape[1]):
        return default
    warnings.warn(
        f"The network computes (image - mean) / std before its first layer, with {shown}, which "
        "are not the statistics of images. It takes images in a range other than [0, 1], so the "
        "default, ImageNet's mean and standard deviation, may be wrong. Give mean= and std=; "
        "mean=0, std=1 leaves images in [0, 1].",
        stacklevel=3,
    )
    return default


def _is_of_normalized(mean: Tensor, std: Tensor, n_channels: int) -> bool:
    """Whether images normalised with ImageNet's statistics end up in [-1, 1].

    Torchvision's networks that were trained elsewhere do this if ``transform_input`` is set.
    """
    pairs = [*zip(*default_statistics(n_channels), strict=True)]
    total = torch.stack([mean * s + m for m, s in pairs]), torch.stack([std * s for _, s in pairs])
    is_channel = ((total[0] - 0.5).abs() < 1e-3) & ((total[1] - 0.5).abs() < 1e-3)
    return bool(is_channel.any(dim=0).all())


def _listed(values: Tensor) -> str:
    """List the first different values, at most four, in their order."""
    numbers = dict.fromkeys(float(f"{number:.3g}") for number in values[:4096].tolist())
    first = [*numbers][:4]
    return ", ".join(f"{number + 0.0:g}" for number in first)  # 0 for -0
