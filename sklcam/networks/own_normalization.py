"""Networks that normalise their images themselves: it is measured what reaches their first layer.

A network may begin with a normalisation of its own, such as ``nn.Sequential(Normalize(mean, std),
network)``. Images that have been normalised before are then normalised twice, and nothing fails. So
a black, a grey and a white image are followed to the first layer that has weights, or that
normalises by statistics of images; whatever comes before is arithmetic, and may be read off.
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

# Where layers begin. A batch normalisation is one: it has learned what images it is given.
_LAYERS = frozenset(
    f"aten::{name}"
    for name in (
        "convolution", "convolution_overrideable", "linear", "addmm", "mm", "bmm", "baddbmm",
        "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm",
        "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
        "_batch_norm_with_update", "native_layer_norm", "native_group_norm",
    )
)  # fmt: skip
# Of images in [0, 1], or from 0 to 255 by more.
_LARGEST_STD = 1.0
_SMALLEST_STD = 1 / 300
_NOT_OF_UNIT = 10.0
_MARGIN = 0.02  # no images have a mean so near to black or white


class _Reached(Exception):
    """The first layer is reached; nothing more is to be computed."""


class _FirstLayer(TorchDispatchMode):
    """Follows images to the first layer that takes them, and stops there."""

    def __init__(self, images: Tensor):
        super().__init__()  # type: ignore[no-untyped-call]
        self.input: Tensor | None = None
        # By where they are; the tensors are held, so that no others take their memory.
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
        except (_Reached, RuntimeError):  # TorchScript makes the latter of the former
            if first.input is None:
                raise
    return None if first.input is None else first.input.cpu().double()


def _measure(forward: Callable[[Tensor], object], like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the mean and the standard deviation by which a network normalises each value.

    None where that is nothing of the kind: another function of the image, or no layer at all.
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
    is_seen = scale.abs() > tolerance * size  # not what was put around the image
    is_line = ((black + white) / 2 - grey).abs() <= tolerance * size  # false of NaN
    if not is_seen.any() or not is_line.all():
        return None
    return (-black / scale)[is_seen], (1 / scale)[is_seen]


def _are_about(values: Tensor, expected: Tensor | float, tolerance: float) -> bool:
    return bool(((values - expected).abs() <= tolerance).all())


def _is_of_images(mean: Tensor, std: Tensor) -> bool:
    """Whether these may be the statistics of images in [0, 1]."""
    is_mean = (mean > _MARGIN) & (mean < 1 - _MARGIN)
    is_std = (std > _SMALLEST_STD) & (std <= _LARGEST_STD + 1e-3)
    # Scaled to 0 to 255 alone, the mean is taken off nowhere.
    is_bytes = (mean.abs() < 1e-3) & ((std * 255 - 1).abs() < 0.01)
    return bool(((is_mean & is_std) | is_bytes).all())


def with_own_normalization(
    said: Preprocessing, forward: Callable[[Tensor], object], like: Tensor
) -> Preprocessing:
    """Return how images are prepared for a network that may normalise them itself.

    Parameters
    ----------
    said : Preprocessing
        What is done by default.
    forward : callable
        Runs the network, in evaluation mode, on images. It is not run to its end.
    like : Tensor of shape (1, n_channels, height, width), floating point
        An image of the kind that the network takes; its values do not count.

    Returns
    -------
    Preprocessing
        With mean 0 and standard deviation 1 for a network that normalises images in [0, 1] itself,
        and with 0 and 1/255 for one that does so with images from 0 to 255; otherwise as it was.

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
    >>> said = with_own_normalization(
    ...     Preprocessing(), lambda x: conv((x - 0.5) / 0.25), torch.zeros(1, 3, 8, 8)
    ... )
    >>> said.mean, said.std, said.source
    (0.0, 1.0, 'the network, which normalises images in [0, 1] itself: mean 0.5, std 0.25')
    """
    measured = _measure(forward, like)
    if measured is None:
        return said
    mean, std = measured
    if _are_about(mean, 0.0, 1e-3) and _are_about(std, 1.0, 1e-3):
        return said  # the images as they are
    shown = f"mean {_listed(mean)}, std {_listed(std)}"
    if _is_of_images(mean, std):
        source = f"the network, which normalises images in [0, 1] itself: {shown}"
        return replace(said, mean=0.0, std=1.0, source=source)
    is_larger = bool(((mean.abs() > _NOT_OF_UNIT) | (std > _NOT_OF_UNIT)).all())
    unit = mean / 255, std / 255
    if is_larger and (
        (_are_about(unit[0], 0, 1e-3) and _are_about(unit[1], 1, 1e-3)) or (_is_of_images(*unit))
    ):
        source = f"the network, which normalises images from 0 to 255 itself: {shown}"
        return replace(said, mean=0.0, std=1 / 255, source=source)
    if _is_of_normalized(mean, std, like.shape[1]):
        return said
    warnings.warn(
        f"The network computes (image - mean) / std of its images before its first layer, with "
        f"{shown}, which are not the statistics of images: it takes images in a range other than "
        "[0, 1], and ImageNet's mean and standard deviation, the default, may be wrong. Give "
        "mean= and std=; mean=0, std=1 leaves images in [0, 1].",
        stacklevel=3,
    )
    return said


def _is_of_normalized(mean: Tensor, std: Tensor, n_channels: int) -> bool:
    """Whether images normalised by ImageNet's statistics become those in [-1, 1].

    So do torchvision's networks that were trained elsewhere, if their ``transform_input`` is set.
    """
    pairs = [*zip(*default_statistics(n_channels), strict=True)]
    total = torch.stack([mean * s + m for m, s in pairs]), torch.stack([std * s for _, s in pairs])
    is_channel = ((total[0] - 0.5).abs() < 1e-3) & ((total[1] - 0.5).abs() < 1e-3)
    return bool(is_channel.any(dim=0).all())


def _listed(values: Tensor) -> str:
    """Write each value once, in its order, of which there are few."""
    numbers = dict.fromkeys(float(f"{number:.3g}") for number in values[:4096].tolist())
    first = [*numbers][:4]
    return ", ".join(f"{number + 0.0:g}" for number in first)  # 0 for -0
