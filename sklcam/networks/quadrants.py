"""Quadrants of images and grids, or the eight parts of volumes: which of them respond to which."""

from __future__ import annotations

from functools import reduce
from itertools import product

import torch
from torch import Tensor


def with_quadrant(image: Tensor, other: Tensor, quadrant: int) -> Tensor:
    """Change a quadrant of an image, or one of the eight parts of a volume."""
    middles = [side // 2 for side in image.shape[2:]]
    halves = ((slice(None, middle), slice(middle, None)) for middle in middles)
    part: tuple[slice, ...] = (slice(None), slice(None), *[*product(*halves)][quadrant])
    changed = image.clone()
    changed[part] = other[part]
    return changed


def contrast(responses: Tensor) -> float:
    """Return the ratio by which each quadrant responds more to its own change than any other does.

    Parameters
    ----------
    responses : Tensor of shape (4, u, v), or (8, d, u, v) for volumes
        The responses to a change at the top left, top right, bottom left and bottom right.

    Returns
    -------
    float
        The smallest ratio; 1 if places make no difference, NaN if nothing responds.
    """
    quadrants = _quadrants(responses)
    totals = torch.einsum("qp,rp->qr", responses.flatten(1), quadrants.flatten(1))
    means = totals / quadrants.flatten(1).sum(dim=1)
    is_own = torch.eye(len(means), dtype=torch.bool, device=means.device)
    others = means.masked_fill(is_own, 0).amax(dim=1)
    return float((means.diagonal() / others).min())


def agreement(responses: Tensor) -> float:
    """Return the sum over positions of the share of their responses that is in place."""
    share = responses / responses.sum(dim=0).clamp(min=torch.finfo(responses.dtype).tiny)
    return float((share * _quadrants(responses)).sum())


def _quadrants(responses: Tensor) -> Tensor:
    """Return the fraction of each position in each quadrant, (4, u, v) or (8, d, u, v)."""
    halves = []
    for n in responses.shape[1:]:
        edges = torch.arange(n + 1, device=responses.device, dtype=responses.dtype) / n
        first = edges.clamp(max=0.5).diff() * n
        halves.append((first, 1 - first))
    return torch.stack([reduce(_outer, along) for along in product(*halves)])


def _outer(grid: Tensor, along: Tensor) -> Tensor:
    return grid[..., None] * along
