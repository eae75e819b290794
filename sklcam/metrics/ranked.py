"""Metrics of the classes that score the highest: localisation errors, and pointing that rejects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklcam.metrics.localization import (
    box_from_map,
    localization_accuracy,
    pointing_game_with_rejection,
)

OfClass = Callable[[Any], Tensor]  # boxes or a mask, of a label


@dataclass(frozen=True, eq=False)
class RankedClasses:
    """The k classes that score the highest in each image of a batch, and a map of each.

    Attributes
    ----------
    maps : sequence of Tensor of shape (k, height, width)
        The method's own maps, after the ReLU and not scaled, each in the frame of its image.
    labels : list of list of k labels
    indices : ndarray of shape (n_images, k)
        The indices of these classes.
    is_nan : Tensor of shape (n_images,), bool
        Whether the network's output, or a map, has NaN.
    """

    maps: Sequence[Tensor]
    labels: list[list[Any]]
    indices: np.ndarray
    is_nan: Tensor

    def are_true(self, labels: np.ndarray) -> np.ndarray:
        """Return whether each class is a true one of its image, (n_images, k)."""
        if labels.ndim == 2:
            return np.take_along_axis(labels, self.indices, axis=1) > 0
        return np.array(
            [[one == own for one in row] for row, own in zip(self.labels, labels, strict=True)]
        )

    def unless_nan(self, values: Sequence[Tensor]) -> Tensor:
        """Return a value for each image, NaN where the network or a map is."""
        stacked = torch.stack([*values]).to(self.is_nan.device, torch.get_default_dtype())
        return torch.where(self.is_nan, torch.nan, stacked)


def ranked_localization_error(
    ranked: RankedClasses,
    boxes: Sequence[OfClass],
    labels: np.ndarray | None = None,
    *,
    threshold: float = 0.15,
    iou_threshold: float = 0.5,
) -> Tensor:
    """Return whether no class is both right and well boxed: see :func:`localization_error`.

    Without labels, all classes that have boxes are true.
    """
    are_true = None if labels is None else ranked.are_true(labels)
    errors = []
    for i, of_image in enumerate(boxes):
        found = torch.zeros(())
        for j, label in enumerate(ranked.labels[i]):
            truth = of_image(label)
            # Boxes around parts are slow to find, and count only for true classes.
            if len(truth) and (are_true is None or are_true[i, j]):
                maps = ranked.maps[i][j : j + 1]
                box = box_from_map(maps, threshold, spatial_dims=maps.ndim - 1)
                fits = localization_accuracy(box, [truth], iou_threshold=iou_threshold)
                found = torch.maximum(found, fits[0].cpu().float())
        errors.append(1 - found)
    return ranked.unless_nan(errors)


def ranked_pointing_game(
    ranked: RankedClasses,
    masks: Sequence[OfClass],
    labels: np.ndarray | None = None,
    *,
    threshold: float,
    tolerance: int = 0,
) -> Tensor:
    """Return the share of an image's maps that win: see :func:`pointing_game_with_rejection`."""
    hits = []
    for i, of_image in enumerate(masks):
        maps = ranked.maps[i][None]
        where = torch.stack([of_image(label).to(maps) for label in ranked.labels[i]])
        won = pointing_game_with_rejection(
            maps, where[None], threshold=threshold, tolerance=tolerance
        )
        hits.append(won.mean().cpu())
    return ranked.unless_nan(hits)
