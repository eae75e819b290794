"""ROAD: what the network says when pixels are filled in from their neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.sparse import coo_array, csc_array
from scipy.sparse.linalg import spsolve
from torch import Tensor

from sklcam._validation import check_number, check_tensor, describe
from sklcam.cam.base import batch_size_for
from sklcam.metrics.causal import (
    IMAGE_AXES,
    Score,
    check_arguments,
    has_nan,
    score_in_batches,
)


def road(
    score: Score,
    images: Tensor,
    maps: Tensor,
    *,
    percentiles: Sequence[float] = (20, 40, 60, 80),
    noise: float = 0.01,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Remove the most relevant and the least relevant pixels, filled in from their neighbours.

    Parameters
    ----------
    score : callable
        See :func:`causal_curves`.
    images : Tensor of shape (n_images, channels, height, width)
    maps : Tensor of shape (n_images, height, width)
    percentiles : sequence of float, in (0, 100)
        A pixel is removed where the map (or, for the least relevant, minus the map) is at or over
        this percentile.
    noise : float, default=0.01
        Standard deviation of the noise on what is filled in.
    generator : torch.Generator or None, default=None
        Generator of the noise, on the CPU.
    batch_size : int or None, default=None
        See :func:`causal_curves`.

    Returns
    -------
    Tensor of shape (n_images,), in [-0.5, 0.5]; higher is better.
        Half the score without the least relevant pixels, minus that without the most relevant,
        averaged over the percentiles. NaN where a map has NaN.

    Raises
    ------
    ValueError
        If there are no images, or the maps do not fit them; if a percentile is not
        between 0 and 100 or there is none, the noise is negative, ``batch_size`` is under 1, or
        ``generator`` is not a generator; or if ``score`` returns anything but one number per image.

    References
    ----------
    Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
    ICML 2022.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import road
    >>> image = torch.zeros(1, 1, 4, 4)
    >>> image[..., 0, 0] = 1
    >>> corner = lambda images, rows: images[:, 0, 0, 0]
    >>> road(corner, image, image[:, 0], percentiles=[90], noise=0)
    tensor([0.5000])
    """
    if isinstance(images, Tensor) and images.ndim == 5:
        raise ValueError(
            "ROAD fills in pixels of pictures from their neighbours in a plane; it is not defined "
            f"for volumes, {describe(images)}. iauc and dauc are."
        )
    check_arguments(score, images, maps, batch_size)
    check_number("noise, a standard deviation,", noise, 0)
    percentiles = list(percentiles) if isinstance(percentiles, Iterable) else []
    if not percentiles:
        raise ValueError("percentiles must be a sequence of at least one number.")
    for percentile in percentiles:
        check_number("Each of percentiles", percentile, 0, 100, closed="neither")
    size = batch_size_for(images, batch_size)
    differences = []
    for percentile in percentiles:
        scores = []
        for relevance in (maps, -maps):
            removed = _at_or_over(relevance, percentile)
            filled = impute(images, removed, noise=noise, generator=generator)
            scores.append(score_in_batches(score, filled, size))
        differences.append((scores[1] - scores[0]) / 2)
    return torch.stack(differences).mean(dim=0).masked_fill(has_nan(maps), torch.nan)


def _at_or_over(maps: Tensor, percentile: float) -> Tensor:
    """Return which pixels of each map are at or over its percentile."""
    # torch.quantile refuses maps of more than 2**24 pixels.
    flat = maps.flatten(1).cpu().double().numpy()  # not every device has float64
    percentiles = np.percentile(flat, percentile, axis=1)
    threshold = torch.as_tensor(percentiles, dtype=maps.dtype).to(maps.device)
    return maps >= threshold[:, None, None]


def impute(
    images: Tensor,
    removed: Tensor,
    *,
    noise: float = 0.01,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill in pixels, each with the weighted mean of its neighbours, and add noise.

    Parameters
    ----------
    images : Tensor of shape (n_images, channels, height, width)
    removed : bool Tensor of shape (n_images, height, width)
    noise : float, default=0.01
    generator : torch.Generator or None, default=None

    Returns
    -------
    Tensor of the images' shape
        Neighbours along rows and columns weigh 1/6, those along diagonals 1/12. An image of which
        all is removed is zero but for the noise. The noise is the same for every image, so that an
        image is filled in alike in every batch.

    Raises
    ------
    ValueError
        If the images are not floating-point, ``removed`` is not bool or not of their size, the
        noise is negative, or ``generator`` is not a generator.

    References
    ----------
    Rong et al., ICML 2022, section 4.3 and appendix C.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import impute
    >>> image = torch.tensor([[[[0.0, 0.0, 0.0], [4.0, 9.0, 4.0], [8.0, 8.0, 8.0]]]])
    >>> removed = torch.zeros(1, 3, 3, dtype=bool)
    >>> removed[0, 1, 1] = True
    >>> impute(image, removed, noise=0)[0, 0, 1]
    tensor([4., 4., 4.])
    """
    check_tensor("images", images, *IMAGE_AXES)
    check_tensor("removed", removed, "n_images", "height", "width", floating=False)
    if removed.dtype != torch.bool or removed.shape != (len(images), *images.shape[-2:]):
        raise ValueError(
            f"removed must be bool and of shape {(len(images), *images.shape[-2:])} for these "
            f"images; got {describe(removed)}."
        )
    check_number("noise, a standard deviation,", noise, 0)
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator must be a torch.Generator or None; got {describe(generator)}.")
    drawn = noise * torch.randn(images.shape[1:], generator=generator).to(images.dtype)
    # All on the host, where the equations are solved: a device is waited for twice, and not for
    # each of the images.
    filled, where = images.detach().cpu().clone(), removed.cpu()
    for image, lost in zip(filled, where, strict=True):
        if lost.any():
            solved = torch.as_tensor(_solve(image.double().numpy(), lost.numpy()))
            image[:, lost] = solved.to(image.dtype) + drawn[:, lost]
    return filled.to(images.device)


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
    # One equation a removed pixel: its weights times itself, minus those of the neighbours that are
    # removed too, is the weighted sum of the neighbours that are known.
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
