"""COSE: whether maps stay while the prediction stays right, and change when it goes wrong.

Images are transformed, and the maps of the transformed images are transformed back and compared.
Networks that know less, one with random weights and a user's own checkpoints, should have different
maps.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from sklcam._validation import check_alike, check_count, check_tensor, describe, suggestion
from sklcam.images.photometric import BLUR, SMOOTH, Photometry, filtered
from sklcam.images.warps import Warp
from sklcam.metrics.consistency import is_constant, structural_similarity
from sklcam.networks.dry_run import generators_lock

if TYPE_CHECKING:
    from sklcam.explain.base import Explainer
    from sklcam.metrics.measurement import Measurement

_WINDOW = 5  # of SSIM
_N_MAGNITUDES = 30  # each way

# The largest changes: of a side (32 pixels of 224), in degrees, and of factors from 1.
_SHIFTS = {"TranslateX": 32 / 224, "TranslateY": 32 / 224}
_ANGLES = {"Rotate": 135.0}
_FACTORS = dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.99)
_LARGEST = _SHIFTS | _ANGLES | _FACTORS
_FLIPS = {"FlipLR": (-1.0, 1.0), "FlipUD": (1.0, -1.0)}
_PIXELS: dict[str, Callable[[Tensor], Tensor]] = {
    "AutoContrast": tv.autocontrast,
    "Equalize": tv.equalize,
    "Blur": lambda images: filtered(images, BLUR),
    "Smooth": lambda images: filtered(images, SMOOTH),
}

TRANSFORMATIONS = (*_LARGEST, *_FLIPS, *_PIXELS)


def cose(consistency: Tensor, sensitivity: Tensor) -> Tensor:
    r"""The geometric mean of consistency and sensitivity.

    .. math:: \mathrm{COSE} = \sqrt{C\,S}

    Under the name ``"cose"``, :func:`evaluate` transforms images, measures both and combines their
    averages over the images. Only correctly predicted images count. C is the mean SSIM of an
    image's map and the maps of its transformed versions that are still predicted right, each
    brought back to the image's frame, on the pixels that both show. S is 1 minus the mean SSIM with
    the maps of wrong predictions: of transformed versions, and of the image itself by a network
    with random weights or by a checkpoint of training.

    Parameters
    ----------
    consistency : Tensor of shape (n_images,), in [-1, 1]
    sensitivity : Tensor of shape (n_images,), in [0, 2]

    Returns
    -------
    Tensor of shape (n_images,); higher is better. 0 where the consistency is negative, NaN where
    either is NaN.

    Raises
    ------
    ValueError
        If they are not floating-point tensors of one shape, (n_images,), on one device.

    References
    ----------
    Daroya, Sun, Maji, "COSE: A Consistency-Sensitivity Metric for Saliency on Image
    Classification", ICCV Workshops 2023.

    Notes
    -----
    The options of ``"cose"`` in ``metric_params``, whose defaults are the published ones:

    - ``transformations``: any of "TranslateX" and "TranslateY" (up to 32 of 224 pixels), "Rotate"
      (up to 135 degrees), "Brightness", "Color", "Contrast" and "Sharpness" (up to 0.99), "FlipLR",
      "FlipUD", "AutoContrast", "Equalize", "Blur" and "Smooth", as in PIL;
    - ``n_magnitudes``, 6: how many of 60 magnitudes, half of them negative, are drawn for each
      image and each of the first seven;
    - ``randomized``, True: whether to compare with a copy of the network with random weights as
      well;
    - ``checkpoints``, (): state dicts of the same network, or files of them that ``torch.save``
      wrote.

    As in the authors' code, pixels outside an image are black, the similarity is SSIM in windows of
    5 x 5 pixels, and a transformed image is explained for its own prediction. There, all pairs of
    an image and a transformation count equally; here, all images do. Rotations are interpolated
    bilinearly, and a constant map counts as 0 for consistency, so that a network without
    explanations does not win. Colour is left alone in grey images.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import cose
    >>> cose(torch.tensor([0.9, -0.1]), torch.tensor([0.4, 1.0]))
    tensor([0.6000, 0.0000])
    """
    for name, values in {"consistency": consistency, "sensitivity": sensitivity}.items():
        check_tensor(name, values, "n_images")
    check_alike({"consistency": consistency, "sensitivity": sensitivity})
    return (consistency.clamp(min=0) * sensitivity).sqrt()


# The options


def check_transformations(name: str, value: Any) -> None:
    """Raise a ValueError unless these are names of transformations."""
    if isinstance(value, str) or not isinstance(value, Iterable) or not list(value):
        raise ValueError(f"{name} must be a sequence of at least one name; got {value!r}.")
    for each in value:
        if each not in TRANSFORMATIONS:
            raise ValueError(
                f"There is no transformation {each!r}. {suggestion(each, TRANSFORMATIONS)}"
            )


def check_magnitudes(name: str, value: Any) -> None:
    """Raise a ValueError unless so many magnitudes can be drawn."""
    check_count(name, value, 1, 2 * _N_MAGNITUDES)


def check_checkpoints(name: str, value: Any) -> None:
    """Raise a ValueError unless these are state dicts or files."""
    kinds = (Mapping, str, os.PathLike)
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_sequence or not all(isinstance(each, kinds) for each in value):
        raise ValueError(
            f"{name} must be a list of state dicts, or of files of them; got {describe(value)}."
        )


# Transformed images


def _transformed(
    measurement: Measurement, names: Sequence[str], n_magnitudes: int
) -> Iterator[tuple[Tensor, Warp | None]]:
    """Yield the images transformed, as the network takes them, and how their pixels moved.

    The warp stays on the host, where its properties can be read without waiting for a device.
    """
    images, preprocessing = measurement.batch.inputs.images, measurement.preprocessing
    n_images, n_channels, *size = images.shape
    device = images.device
    for name in names:
        if name in _PIXELS:
            yield preprocessing.on_pixels(images, _PIXELS[name]), None
        elif name in _FLIPS:
            diagonal = torch.diag(torch.tensor([*_FLIPS[name], 1.0]))[:2]
            warp = Warp(diagonal.repeat(n_images, 1, 1))
            yield warp.to(device)(images), warp
        elif name != "Color" or n_channels > 1:
            for magnitudes in _magnitudes(measurement, name, n_magnitudes).T:
                moved = _moved(name, magnitudes, (size[0], size[1]))
                factors = {name.lower(): (1 + magnitudes).to(device, non_blocking=True)}
                change = Photometry(**factors) if moved is None else _Filled(moved.to(device))
                yield preprocessing.on_pixels(images, change), moved


def _magnitudes(measurement: Measurement, name: str, n_magnitudes: int) -> Tensor:
    """Draw the magnitudes of each image, by its own seed: (n_images, n_magnitudes)."""
    steps = np.setdiff1d(np.arange(-_N_MAGNITUDES, _N_MAGNITUDES + 1), [0])
    which = TRANSFORMATIONS.index(name)
    drawn = [
        np.random.default_rng([measurement.plan.seed, which, row]).choice(
            steps, n_magnitudes, replace=False
        )
        for row in measurement.rows
    ]
    return torch.from_numpy(np.stack(drawn)).float() * (_LARGEST[name] / _N_MAGNITUDES)


def _moved(name: str, magnitudes: Tensor, size: tuple[int, int]) -> Warp | None:
    if name in _ANGLES:
        return Warp.from_rotations(magnitudes, size)
    if name not in _SHIFTS:
        return None
    axis = 0 if name == "TranslateX" else 1
    side = size[1 - axis]
    # Whole pixels, and at least one: a small image would not move otherwise.
    pixels = magnitudes.sign() * (magnitudes.abs() * side + 1e-4).floor().clamp(min=1)
    shifts = magnitudes.new_zeros(len(magnitudes), 2)
    shifts[:, axis] = pixels / side
    return Warp.from_shifts(shifts)


class _Filled:
    """Moves images, and makes pixels from outside them black."""

    def __init__(self, warp: Warp):
        self._warp = warp

    def __call__(self, images: Tensor) -> Tensor:
        valid = self._warp.valid((images.shape[-2], images.shape[-1]))
        return torch.where(valid[:, None], self._warp(images), 0.0)


# Networks that know less


def randomized(network: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a network that has learned nothing.

    Parameters
    ----------
    network : nn.Module
    seed : int

    Returns
    -------
    nn.Module
        Layers are initialised by their own ``reset_parameters``. A parameter that this leaves
        unchanged is drawn from a normal distribution with its mean and deviation.

    Raises
    ------
    ValueError
        If a layer's ``reset_parameters`` fails.
    """
    found = copy.deepcopy(network).cpu()  # where a seed means the same for all devices
    trained = {name: each.detach().clone() for name, each in found.named_parameters()}
    with generators_lock, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in found.modules():
            reset = getattr(module, "reset_parameters", None)
            if not callable(reset):
                continue
            try:
                reset()
            except Exception as error:  # of a user's own layer
                raise ValueError(
                    f"{type(module).__name__}.reset_parameters should make a layer random, but "
                    f"fails when it is called without arguments: {type(error).__name__}: {error}"
                ) from error
        for name, parameter in found.named_parameters():
            if torch.equal(parameter, trained[name]) and parameter.is_floating_point():
                noise = torch.randn(parameter.shape).to(parameter.dtype)
                mean, deviation = parameter.mean(), parameter.std(correction=0)
                parameter.copy_(mean + deviation * noise)
    found.requires_grad_(False)
    return found


def _state(checkpoint: Any) -> Mapping[str, Tensor]:
    if isinstance(checkpoint, Mapping):
        return checkpoint
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise ValueError(f"{checkpoint} is not a state dict; it holds {describe(state)}.")
    return state


def _variants(
    measurement: Measurement, is_randomized: bool, checkpoints: Sequence[Any]
) -> list[Explainer]:
    """Return explainers of networks that know less; each is a copy."""
    explainer, found = measurement.explainer, []
    if is_randomized:
        network = randomized(explainer.adapter.network, measurement.plan.seed)
        found.append(_explaining(explainer, network.state_dict(), "the network itself"))
    for i, checkpoint in enumerate(checkpoints):
        found.append(_explaining(explainer, _state(checkpoint), f"checkpoints[{i}]"))
    return found


def _explaining(explainer: Explainer, state: Mapping[str, Tensor], shown: str) -> Explainer:
    other = copy.deepcopy(explainer)
    try:
        other.adapter.network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{shown} does not fit the network that is explained: {error}") from error
    return other


# What is measured


def similarities(measurement: Measurement) -> tuple[Tensor, Tensor]:
    """Compare the maps of images with those of transformed images and of other networks.

    Parameters
    ----------
    measurement : Measurement

    Returns
    -------
    kept, changed : Tensor of shape (n_images,), in [-1, 1]
        The mean SSIM where the prediction is right, and where it is wrong; NaN if there is none.
    """
    options = measurement.options("cose_similarities")
    names = tuple(options.get("transformations", TRANSFORMATIONS))
    inputs, maps = measurement.batch.inputs, measurement["maps"]
    was_right = measurement["class_is_right"].to(maps.device)
    sums, counts = maps.new_zeros(2, len(maps)), maps.new_zeros(2, len(maps))

    def compare(explainer: Explainer, images: Tensor, warp: Warp | None, *, keeps: bool) -> None:
        method, scaled = measurement.plan.explained["maps"]
        (others,), output, target = explainer.explain_batch(
            inputs.with_images(images), measurement.question, methods=[method], normalize=scaled
        )
        valid = None
        if warp is not None:
            undo = warp.inverse().to(maps.device)
            others, valid = undo(others), undo.valid(inputs.size)
        is_right = measurement.is_right(output, target).to(maps.device)
        similarity = structural_similarity(maps, others, valid=valid, window=_WINDOW)
        is_empty = is_constant(maps, valid) | is_constant(others, valid)
        kept = torch.where(is_empty, 0.0, similarity)
        for i, (values, counted) in enumerate(((kept, is_right & keeps), (similarity, ~is_right))):
            counted = counted & was_right
            sums[i] += torch.where(counted, values.to(maps.dtype), 0.0)
            counts[i] += counted

    for images, warp in _transformed(measurement, names, options.get("n_magnitudes", 6)):
        compare(measurement.explainer, images, warp, keeps=True)
    less = options.get("randomized", True), options.get("checkpoints", ())
    # Where such a network is right all the same, it counts for neither.
    for explainer in measurement.once("cose", lambda: _variants(measurement, *less)):
        compare(explainer, inputs.images, None, keeps=False)
    kept, changed = sums / counts  # 0 / 0 is NaN
    return kept, changed
