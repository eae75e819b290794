"""Insertion, deletion and ROAD: what the network says as pixels come and go by their saliency.

The functions take a ``score``: a callable that runs the network on images (m, channels, height,
width), of which row i belongs to image ``rows[i]``, and returns the score of what is explained for
each, of shape (m,), in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array, csc_array
from scipy.sparse.linalg import spsolve
from torch import Tensor
from torch.nn import functional as F

Score = Callable[[Tensor, Tensor], Tensor]


class CausalCurves(NamedTuple):
    """Scores as pixels come and go.

    Attributes
    ----------
    fractions : Tensor of shape (n_steps + 1,), from 0 to 1
        Share of the pixels that have been inserted, or deleted.
    insertion, deletion : Tensor of shape (n_images, n_steps + 1), in [0, 1]
    """

    fractions: Tensor
    insertion: Tensor
    deletion: Tensor


def blur(images: Tensor) -> Tensor:
    """Blur images as the authors of insertion do, for what insertion starts from.

    The kernel of 11 x 11 is what ``scipy.ndimage.gaussian_filter`` with a sigma of 5 makes of a
    single bright pixel in the middle; images are padded with zeros.

    Parameters
    ----------
    images : Tensor of shape (n_images, channels, height, width)

    Returns
    -------
    Tensor of the same shape

    References
    ----------
    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018, and the authors' code.
    """
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.as_tensor(gaussian_filter(impulse, 5)).to(images)
    n_channels = images.shape[1]
    return F.conv2d(images, kernel.expand(n_channels, 1, 11, 11), padding=5, groups=n_channels)


def causal_curves(
    score: Score,
    images: Tensor,
    maps: Tensor,
    *,
    n_steps: int = 224,
    start: Tensor | None = None,
    end: Tensor | None = None,
    full: Tensor | None = None,
    batch_size: int = 32,
) -> CausalCurves:
    """Insert, and delete, pixels in the order of their saliency, and follow the score.

    Parameters
    ----------
    score : callable
        See the module: takes images (m, channels, height, width) and rows (m,), returns (m,).
    images : Tensor of shape (n_images, channels, height, width)
        The network's input.
    maps : Tensor of shape (n_images, height, width)
        Where they tie, pixels keep their raster order.
    n_steps : int, default=224
        Steps from nothing to all pixels, of as equal size as can be; 224 pixels a step for the
        authors' 224 x 224.
    start : Tensor of the images' shape or None, default=None
        What insertion starts from; None is the blurred image.
    end : Tensor of the images' shape or None, default=None
        What deletion ends at; None is zeros.
    full : Tensor of shape (n_images,) or None, default=None
        The score of the images themselves, if it is known: it saves a pass.
    batch_size : int, default=32
        Most images that go through the network at a time, across images and steps.

    Returns
    -------
    CausalCurves
        From 2 ``n_steps`` + 1 images through the network for each image, or one less with ``full``.

    Raises
    ------
    ValueError
        If the maps do not fit the images or have NaN, or there are more steps than pixels.

    References
    ----------
    Petsiuk et al., "RISE", BMVC 2018, section 4.1.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import causal_curves, deletion_auc, insertion_auc
    >>> images, maps = torch.ones(1, 1, 2, 2), torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    >>> top_left = lambda images, rows: images[:, 0, 0, 0]
    >>> curves = causal_curves(top_left, images, maps, n_steps=4, start=torch.zeros(1, 1, 2, 2))
    >>> curves.insertion
    tensor([[0., 1., 1., 1., 1.]])
    >>> insertion_auc(curves), deletion_auc(curves)
    (tensor([0.8750]), tensor([0.1250]))
    """
    _check_maps(images, maps)
    n_images, n_pixels = len(images), maps[0].numel()
    if not 1 <= n_steps <= n_pixels:
        raise ValueError(f"n_steps must be 1 to the number of pixels, {n_pixels}; got {n_steps}.")
    start = blur(images) if start is None else start
    end = torch.zeros_like(images) if end is None else end
    ranks = _ranks(maps)
    counts = torch.linspace(0, n_pixels, n_steps + 1, device=images.device).round().long()
    curves = images.new_empty(2, n_images, n_steps + 1, dtype=torch.float32)
    every = torch.arange(n_images, device=images.device)
    if full is None:
        parts = [score(images[rows], rows) for rows in every.split(batch_size)]
        full = torch.cat([part.to(curves.dtype) for part in parts])
    curves[0, :, -1] = curves[1, :, 0] = full
    jobs = torch.arange(2 * n_images * n_steps, device=images.device)
    for part in jobs.split(batch_size):
        deletes, rest = part // (n_images * n_steps), part % (n_images * n_steps)
        rows, steps = rest // n_steps, rest % n_steps + deletes  # insertion 0.., deletion 1..
        chosen = (ranks[rows] < counts[steps, None, None])[:, None]
        is_deletion = (deletes == 1)[:, None, None, None]
        others = torch.where(is_deletion, end[rows], start[rows])
        mixed = torch.where(chosen ^ is_deletion, images[rows], others)
        curves[deletes, rows, steps] = score(mixed, rows).to(curves.dtype)
    return CausalCurves(counts / n_pixels, curves[0], curves[1])


def insertion_auc(curves: CausalCurves) -> Tensor:
    """Area under the insertion curve, by the trapezoid rule over the share of pixels.

    Parameters
    ----------
    curves : CausalCurves

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; higher is better.
    """
    return torch.trapezoid(curves.insertion, curves.fractions.to(curves.insertion), dim=1)


def deletion_auc(curves: CausalCurves) -> Tensor:
    """Area under the deletion curve, by the trapezoid rule over the share of pixels.

    Parameters
    ----------
    curves : CausalCurves

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; lower is better.
    """
    return torch.trapezoid(curves.deletion, curves.fractions.to(curves.deletion), dim=1)


def road(
    score: Score,
    images: Tensor,
    maps: Tensor,
    *,
    percentiles: Sequence[float] = (20, 40, 60, 80),
    noise: float = 0.01,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Remove pixels by filling them in from their neighbours, the most and the least relevant.

    Parameters
    ----------
    score : callable
        As of :func:`causal_curves`.
    images : Tensor of shape (n_images, channels, height, width)
    maps : Tensor of shape (n_images, height, width)
    percentiles : sequence of float, in (0, 100)
        A pixel is removed where the map (or, for the least relevant, minus the map) is at or over
        this percentile.
    noise : float, default=0.01
        Standard deviation of the noise on what is filled in.
    generator : torch.Generator or None, default=None
        Of the noise, on the CPU.
    batch_size : int, default=32

    Returns
    -------
    Tensor of shape (n_images,), in [-0.5, 0.5]; higher is better.
        Half the score without the least relevant pixels, minus that without the most relevant,
        averaged over the percentiles.

    References
    ----------
    Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
    ICML 2022.
    """
    _check_maps(images, maps)
    differences = []
    for percentile in percentiles:
        scores = []
        for relevance in (maps, -maps):
            removed = _at_or_over(relevance, percentile)
            filled = impute(images, removed, noise=noise, generator=generator)
            every = torch.arange(len(images), device=images.device)
            parts = [score(filled[rows], rows) for rows in every.split(batch_size)]
            scores.append(torch.cat(parts).float())
        differences.append((scores[1] - scores[0]) / 2)
    return torch.stack(differences).mean(dim=0)


def impute(
    images: Tensor,
    removed: Tensor,
    *,
    noise: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill in pixels so that each is the weighted mean of its neighbours, and add noise.

    Parameters
    ----------
    images : Tensor of shape (n_images, channels, height, width)
    removed : bool Tensor of shape (n_images, height, width)
    noise : float, default=0.01
    generator : torch.Generator or None, default=None

    Returns
    -------
    Tensor of the images' shape
        Neighbours along rows and columns weigh 1/6, along diagonals 1/12. Where all is removed, it
        is zero but for the noise.

    References
    ----------
    Rong et al., ICML 2022, section 4.3 and appendix C.
    """
    filled = images.clone()
    for image, lost in zip(filled, removed, strict=True):
        where = lost.cpu().numpy()
        if where.any():
            solved = _solve(image.detach().double().cpu().numpy(), where)
            values = torch.as_tensor(solved).to(images)
            drawn = torch.randn(values.shape, generator=generator).to(images)
            image[:, lost] = values + noise * drawn
    return filled


_NEIGHBOURS = [
    ((row, column), 1 / 6 if row == 0 or column == 0 else 1 / 12)
    for row in (-1, 0, 1)
    for column in (-1, 0, 1)
    if (row, column) != (0, 0)
]


def _solve(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Return the removed pixels' values (channels, n_removed)."""
    if removed.all():
        return np.zeros((len(image), removed.sum()))
    rows, columns = np.nonzero(removed)
    unknowns = np.full(removed.shape, -1)
    unknowns[rows, columns] = np.arange(len(rows))
    diagonal = np.zeros(len(rows))
    known = np.zeros((len(rows), len(image)))
    entries = []
    for (down, right), weight in _NEIGHBOURS:
        i, j = rows + down, columns + right
        inside = (i >= 0) & (j >= 0) & (i < removed.shape[0]) & (j < removed.shape[1])
        equations = np.nonzero(inside)[0]
        i, j = i[inside], j[inside]
        diagonal[equations] += weight
        lost = removed[i, j]
        known[equations[~lost]] += weight * image[:, i[~lost], j[~lost]].T
        entries.append((equations[lost], unknowns[i[lost], j[lost]], np.full(lost.sum(), -weight)))
    entries.append((np.arange(len(rows)), np.arange(len(rows)), diagonal))
    equation, unknown, weights = (np.concatenate(part) for part in zip(*entries, strict=True))
    system = csc_array(coo_array((weights, (equation, unknown)), shape=(len(rows), len(rows))))
    return spsolve(system, known).reshape(len(rows), -1).T


def _at_or_over(maps: Tensor, percentile: float) -> Tensor:
    flat = maps.flatten(1).double().cpu().numpy()  # quantile is limited in size on tensors
    threshold = torch.as_tensor(np.percentile(flat, percentile, axis=1)).to(maps)
    return maps >= threshold[:, None, None]


def _ranks(maps: Tensor) -> Tensor:
    """Return each pixel's place in the order of decreasing saliency, (n_images, height, width)."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return ranks.view(maps.shape)


def _check_maps(images: Tensor, maps: Tensor) -> None:
    if maps.shape != (len(images), *images.shape[-2:]):
        raise ValueError(
            f"maps must be of shape (n_images, height, width), {(len(images), *images.shape[-2:])} "
            f"for these images; got {tuple(maps.shape)}."
        )
    if bool(maps.isnan().any()):
        raise ValueError("Some maps have NaN, so that their pixels have no order.")
