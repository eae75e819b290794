"""Image processors of transformers, understood by measuring the images that they return.

Each has parameters of its own, and uses them in its own way: some scale beyond the size that they
name, normalise twice, or swap the channels. The statistics are therefore measured on plain images,
and the resizing is the one that gives the same result for images of noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sklcam.images.frames import Mode, Resizing, resize_image
from sklcam.networks.preprocessing import Preprocessing

# Two ways of interpolating bytes may differ by this much, as each rounds in between.
_ROUNDING = 2.5 / 255
# Scaled to the usual sizes, their longer side differs between rounding and rounding down.
_SIZES = ((59, 97), (103, 71), (83, 67))


def read_processor(processor: Any, shown: str) -> Preprocessing:
    """Return the preprocessing of an image processor.

    Parameters
    ----------
    processor : image processor of transformers
    shown : str
        The name that messages use for it.

    Returns
    -------
    Preprocessing
        Unsettled if the processor does anything but resize, crop and normalise.
    """
    try:
        return _measured(processor, shown) or Preprocessing.unsettled(shown)
    except Exception:  # a processor that needs more than images may raise anything
        return Preprocessing.unsettled(shown)


def _measured(processor: Any, shown: str) -> Preprocessing | None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _SIZES]
    outputs = [_run(processor, picture) for picture in pictures]
    size = (outputs[0].shape[1], outputs[0].shape[2])
    if any(tuple(output.shape) != (3, *size) for output in outputs):
        return None
    black, white, red = (
        _run(processor, np.tile(np.array(colour, dtype=np.uint8), (64, 64, 1)))[
            :, size[0] // 2, size[1] // 2
        ].double()
        for colour in ([0, 0, 0], [255, 255, 255], [255, 0, 0])
    )
    is_bgr = bool((red - black).abs().argmax() == 2)
    std = 1 / (white - black)
    mean = -black * std
    if is_bgr:
        mean, std = mean.flip(0), std.flip(0)
    plain = Preprocessing(
        image_size=size,
        mean=_written(mean, getattr(processor, "image_mean", None)),
        std=_written(std, getattr(processor, "image_std", None)),
        channel_order="bgr" if is_bgr else "rgb",
        source=shown,
    )
    made = _candidates(processor, plain)
    # For noise, any other way of resizing gives another result.
    return next((one for one in made if _distance(one, pictures, outputs) <= _ROUNDING), None)


def _run(processor: Any, picture: np.ndarray) -> Tensor:
    image = Image.fromarray(picture)
    return torch.as_tensor(processor(images=[image], return_tensors="pt")["pixel_values"])[0]


def _written(measured: Tensor, given: Any) -> tuple[float, ...]:
    """Return a measured statistic, or the value that the processor names if they agree."""
    is_alike = isinstance(given, list | tuple) and len(given) == len(measured)
    if is_alike and np.allclose(measured.numpy(), given, rtol=0, atol=1e-4):
        return tuple(map(float, given))
    return tuple(round(value, 6) + 0.0 for value in measured.tolist())  # without -0.0


def _candidates(processor: Any, plain: Preprocessing) -> Iterator[Preprocessing]:
    target = plain.image_size[0]
    resample = getattr(processor, "resample", None)
    names: Any = [each.name.lower() for each in Image.Resampling]
    if resample is not None:
        names = [Image.Resampling(int(getattr(resample, "value", resample))).name.lower()]
    modes: tuple[Mode, ...] = ("stretch", "center_crop")
    for scaled, mode, name in product(_scales(processor, target), modes, names):
        # Just under the quotient, so that the size is right to the pixel.
        fraction = 1.0 if scaled == target else target / (scaled + 1e-6)
        for rounds_down in (True, False):
            way = Resizing(mode, fraction, name, rounds_down=rounds_down)
            yield replace(plain, resizing=way)


def _scales(processor: Any, target: int) -> list[int]:
    size: Any = getattr(processor, "size", None) or {}
    entries = dict(size)
    edge = entries.get("shortest_edge") or entries.get("height") or target
    fraction = getattr(processor, "crop_pct", None) or 0.875
    # Computed as in transformers: some processors keep the fraction, LeViT's has its own.
    return sorted({target, edge, int(edge / fraction), int(256 / 224 * edge)})


def _distance(made: Preprocessing, pictures: list[np.ndarray], outputs: list[Tensor]) -> float:
    """Return the largest difference from the processor's output, in units of the pixels."""
    std = made.of_channels(3).std
    std = torch.tensor(std[::-1] if made.channel_order == "bgr" else std)[:, None, None]
    height, width = made.image_size
    worst = 0.0
    for picture, output in zip(pictures, outputs, strict=True):
        image = torch.from_numpy(picture).permute(2, 0, 1)
        ours = made.normalize(resize_image(image, (height, width), made.resizing)[None])[0]
        worst = max(worst, float(((ours - output.float()) * std).abs().max()))
    return worst
