"""The scores of changed images, as insertion, deletion and ROAD follow them.

A ``score`` is a callable that runs the network on images (m, channels, height, width), of which row
i belongs to image ``rows[i]`` of the batch. It returns the score of what is explained for each, of
shape (m,), in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sklcam._validation import check_callable, check_tensor, describe
from sklcam.cam.base import check_batch_size

Score = Callable[[Tensor, Tensor], Tensor]

IMAGE_AXES = ("n_images", "channels", "height", "width")


def check_arguments(score: object, images: Tensor, maps: Tensor, batch_size: int | None) -> None:
    """Raise a ValueError unless the pixels of the images can be ordered by the maps and scored."""
    check_callable("score", score, "of images and rows that returns one number for each")
    check_tensor("images", images, *IMAGE_AXES)
    check_tensor("maps", maps, "n_images", "height", "width")
    check_batch_size(batch_size)
    if not len(images):
        raise ValueError("images is empty: at least one image is needed.")
    if maps.shape != (len(images), *images.shape[-2:]):
        raise ValueError(
            f"maps must be of shape (n_images, height, width), {(len(images), *images.shape[-2:])} "
            f"for these images; got {tuple(maps.shape)}."
        )
    if maps.device != images.device:
        raise ValueError(f"maps are on {maps.device}, and images on {images.device}.")
    if bool(maps.isnan().any()):
        raise ValueError("Some maps have NaN, so that their pixels have no order.")


def score_in_batches(score: Score, images: Tensor, batch_size: int) -> Tensor:
    rows = torch.arange(len(images), device=images.device).split(batch_size)
    # Slices of an expanded image stay expanded, which tells that one pass of it will do.
    parts = zip(images.split(batch_size), rows, strict=True)
    return torch.cat([score_images(score, *part) for part in parts])


def score_images(score: Score, images: Tensor, rows: Tensor) -> Tensor:
    """Return the float scores of images; a ValueError unless there is one for each."""
    scores = score(images, rows)
    if not isinstance(scores, Tensor) or scores.shape != rows.shape:
        raise ValueError(
            f"score must return a Tensor of one number for each of {len(rows)} images; it returned "
            f"{describe(scores)}."
        )
    return scores.float()
