"""Functions of metrics whose quantities are not all tensors, but as a measurement holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from sklcam.metrics.consistency import rank_correlation
from sklcam.metrics.imputation import road
from sklcam.metrics.localization import box_from_map, localization_accuracy

if TYPE_CHECKING:
    from sklcam.metrics.measurement import Perturbation


def accuracy(prediction_is_right: Tensor, output: Tensor) -> Tensor:
    """Return whether predictions are right; NaN where the network gives no answer."""
    return _unless_silent(prediction_is_right, output)


def _unless_silent(right: Tensor, output: Tensor) -> Tensor:
    # Without an answer, there is no prediction to be right or wrong.
    is_silent = output.reshape(len(output), -1).isnan().any(dim=1)
    return right.float().to(output.device).masked_fill(is_silent, torch.nan)


def top1_localization(
    maps: Sequence[Tensor],
    boxes: Sequence[Tensor],
    class_is_right: Tensor,
    output: Tensor,
    **options: Any,
) -> Tensor:
    """Return whether both the class and its map's box are right."""
    right = _unless_silent(class_is_right, output)
    return right * image_by_image(localization_of_maps, maps, boxes, **options).to(right)


def consistency_kept(consistency: Tensor, view_keeps_prediction: Tensor) -> Tensor:
    """Return the consistency where the view keeps the prediction."""
    return torch.where(view_keeps_prediction, consistency, torch.nan)


def consistency_changed(consistency: Tensor, view_keeps_prediction: Tensor) -> Tensor:
    """Return the consistency where the view changes the prediction."""
    return torch.where(view_keeps_prediction, torch.nan, consistency)


def cose_consistency(similarities: tuple[Tensor, Tensor]) -> Tensor:
    """Return the similarity of maps where the prediction stays right."""
    return similarities[0]


def cose_sensitivity(similarities: tuple[Tensor, Tensor]) -> Tensor:
    """Return the dissimilarity of maps where the prediction is wrong."""
    return 1 - similarities[1]


def road_of_perturbation(perturbation: Perturbation, maps: Tensor, **options: Any) -> Tensor:
    """Return ROAD of the images of a batch."""
    return road(
        perturbation,
        perturbation.images,
        maps,
        generator=perturbation.generator(),
        batch_size=perturbation.batch_size,
        **options,
    )


def correlation_with_occlusion(
    maps: Tensor, references: Tensor, stride: int, *, spatial_dims: int = 2
) -> Tensor:
    """Return the rank correlation on the grid of occlusion's patches."""
    return rank_correlation(maps, references, cell=stride, spatial_dims=spatial_dims)


def image_by_image(
    measure: Callable[..., Tensor],
    maps: Sequence[Tensor],
    annotations: Sequence[Tensor],
    **options: Any,
) -> Tensor:
    """Measure maps of different sizes, each against the annotation of its image."""
    pairs = zip(maps, annotations, strict=True)
    values = [
        measure(map_[None], of_image[None], spatial_dims=map_.ndim, **options)
        for map_, of_image in pairs
    ]
    return torch.cat(values)


def localization_of_maps(
    maps: Tensor, boxes: Tensor, threshold: float = 0.15, *, spatial_dims: int = 2, **options: Any
) -> Tensor:
    """Return whether the boxes around maps fit the true ones."""
    found = box_from_map(maps, threshold, spatial_dims=spatial_dims)
    return localization_accuracy(found, list(boxes), **options)


def reference_correlation(
    maps: Sequence[Tensor], references: Sequence[Tensor], grid: int = 14
) -> Tensor:
    """Return the rank correlation with references, on a grid that both fill."""
    correlations = []
    for map_, reference in zip(maps, references, strict=True):
        # A reference that is coarser than the grid says nothing about its finer cells.
        size = [min(grid, *sides) for sides in zip(map_.shape, reference.shape, strict=True)]
        pool: Any = adaptive_avg_pool2d if map_.ndim == 2 else adaptive_avg_pool3d
        cells = [pool(each[None].cpu().double(), size) for each in (map_, reference)]
        correlations.append(rank_correlation(*cells, spatial_dims=map_.ndim)[0].to(map_))
    return torch.stack(correlations)
