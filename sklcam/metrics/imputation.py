"""ROAD: what the network says when pixels are filled in from their neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from scipy.sparse import coo_array, csc_array, csr_array
from scipy.sparse.linalg import splu
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

_FEWEST = 8  # pixels that are not worth being dissected
_LARGEST_KEPT = 2**20  # pixels of an image whose equations are kept for the next one
_MOST_CORRECTIONS, _TOLERANCE = 6, 1e-7
_PIXELS_AT_ONCE = 2**22  # that a device holds a dozen tensors of, in double precision
_STEPS_A_PIXEL, _SMALLEST_STEP = 8, 1e-11  # of conjugate gradients: of a side, and of what is left


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
    device, images = images.device, _where_it_is_solved(images)
    relevance = maps.detach().cpu()
    differences = []
    for percentile in percentiles:
        removed = [_at_or_over(each, percentile) for each in (relevance, -relevance)]
        drawn = [_draw_noise(images, noise, generator) for _ in removed]
        # Both are filled in together: there is work for two even where there is one image.
        filled = _fill(images, removed, drawn)
        both = [
            score_in_batches(score, some.to(device, non_blocking=True), size) for some in filled
        ]
        differences.append((both[1] - both[0]) / 2)
    return torch.stack(differences).mean(dim=0).masked_fill(has_nan(maps), torch.nan)


def _at_or_over(maps: Tensor, percentile: float) -> Tensor:
    """Return which pixels of each map are at or over its percentile."""
    # torch.quantile refuses maps of more than 2**24 pixels.
    percentiles = np.percentile(maps.flatten(1).double().numpy(), percentile, axis=1)
    threshold = torch.as_tensor(percentiles, dtype=maps.dtype)
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
    drawn = _draw_noise(images, noise, generator)
    (filled,) = _fill(_where_it_is_solved(images), [removed], [drawn])
    return filled.to(images.device)


def _draw_noise(images: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator must be a torch.Generator or None; got {describe(generator)}.")
    return noise * torch.randn(images.shape[1:], generator=generator).to(images.dtype)


def _where_it_is_solved(images: Tensor) -> Tensor:
    """Return images where their equations are solved: on the host, or where float64 is fast."""
    return images.detach() if images.device.type == "cuda" else images.detach().cpu()


def _fill(images: Tensor, removed: Sequence[Tensor], drawn: Sequence[Tensor]) -> list[Tensor]:
    """Fill in images once for each of several masks (n_images, height, width), with its noise."""
    if images.device.type == "cpu":
        return _fill_on_host(images, [mask.cpu() for mask in removed], drawn)
    parts = []
    n_at_once = max(1, _PIXELS_AT_ONCE // (len(removed) * images[0, 0].numel()))
    for start in range(0, len(images), n_at_once):
        rows = slice(start, start + n_at_once)
        some, masks = images[rows], [mask[rows] for mask in removed]
        filled = fill_in_steps(some, masks, drawn)
        if filled is None:  # it takes too many
            host = _fill_on_host(some.cpu(), [mask.cpu() for mask in masks], drawn)
            filled = [each.to(images.device) for each in host]
        parts.append(filled)
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def fill_in_steps(
    images: Tensor, removed: Sequence[Tensor], drawn: Sequence[Tensor]
) -> list[Tensor] | None:
    """Fill in all images at once, by conjugate gradients, wherever they are.

    Parameters
    ----------
    images : Tensor of shape (n_images, channels, height, width)
    removed : sequence of bool Tensor of shape (n_images, height, width)
    drawn : sequence of Tensor of shape (channels, height, width)
        The noise of each.

    Returns
    -------
    list of Tensor of the images' shape, or None
        To 1e-7 of the largest pixel. None if that was not reached; the host waits for a device to
        know, every 32 steps.
    """
    device = images.device
    lost = torch.cat([mask.to(device, non_blocking=True) for mask in removed])[:, None]
    given = images.repeat(len(removed), 1, 1, 1)
    known = torch.where(lost, 0.0, given.double())
    degrees = _of_neighbours(torch.ones_like(known[:1, :1]))

    def left_of(values: Tensor) -> Tensor:
        return torch.where(lost, degrees * values - _of_neighbours(values), 0.0)

    n_known = (~lost).sum(dim=(2, 3), keepdim=True).clamp(min=1)
    # From the mean of what is known on, which is nearer than nothing.
    solved = torch.where(lost, known.sum(dim=(2, 3), keepdim=True) / n_known, 0.0)
    left = torch.where(lost, _of_neighbours(known), 0.0) - left_of(solved)
    tolerance = _SMALLEST_STEP * known.abs().amax(dim=(1, 2, 3), keepdim=True)
    direction, before = torch.zeros_like(left), torch.ones_like(n_known, dtype=left.dtype)
    for step in range(int(_STEPS_A_PIXEL * sum(images.shape[2:]))):
        # NaN is over no tolerance, and stays what it is.
        if step % 32 == 0 and not bool((left.abs() > tolerance).any()):
            break
        scaled = left / degrees
        size = (left * scaled).sum(dim=(2, 3), keepdim=True)
        direction = scaled + direction * (size / before)
        change = left_of(direction)
        along = (direction * change).sum(dim=(2, 3), keepdim=True)
        length = size / torch.where(along > 0, along, 1.0)
        solved, left = solved + length * direction, left - length * change
        before = torch.where(size > 0, size, 1.0)
    else:
        return None
    noise = torch.stack([*drawn]).to(device, non_blocking=True).repeat_interleave(len(images), 0)
    filled = torch.where(lost, solved.to(images.dtype) + noise, given)
    return list(filled.split(len(images)))


def _of_neighbours(values: Tensor) -> Tensor:
    """Return the weighted sum of each pixel's neighbours, those that there are."""
    around = torch.nn.functional.pad(values, (1, 1, 1, 1))
    # 1, 2, 1 along both sides is 12 times the weights, and 4 at the pixel itself.
    rows = around[..., :-2, :] + 2 * around[..., 1:-1, :] + around[..., 2:, :]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 12 - values / 3


def _fill_on_host(
    images: Tensor, removed: Sequence[Tensor], drawn: Sequence[Tensor]
) -> list[Tensor]:
    filled = [images.clone() for _ in removed]
    jobs = [
        (image, lost, noise)
        for some, where, noise in zip(filled, removed, drawn, strict=True)
        for image, lost in zip(some, where, strict=True)
        if lost.any()
    ]

    def solve(job: tuple[Tensor, Tensor, Tensor]) -> None:
        image, lost, noise = job
        is_double = image.dtype == torch.float64
        solved = _solve(image.double().numpy(), lost.numpy(), is_exact=is_double)
        image[:, lost] = torch.as_tensor(solved).to(image.dtype) + noise[:, lost]

    # In threads, as what takes long is done without Python's lock.
    with ThreadPoolExecutor(max(1, min(len(jobs), torch.get_num_threads()))) as threads:
        list(threads.map(solve, jobs))
    return filled


_NEIGHBOURS = [
    ((row, column), 1 / 6 if row == 0 or column == 0 else 1 / 12)
    for row in (-1, 0, 1)
    for column in (-1, 0, 1)
    if (row, column) != (0, 0)
]


def _solve(image: np.ndarray, removed: np.ndarray, *, is_exact: bool) -> np.ndarray:
    """Return the removed pixels' values (channels, n_removed), to 1e-7 of them at least."""
    if removed.all():
        return np.zeros((len(image), removed.sum()))
    n_pixels = removed.size
    make = _equations if n_pixels <= _LARGEST_KEPT else _equations.__wrapped__
    order, equations = make(*removed.shape)
    lost = removed.ravel()[order]
    # One equation a removed pixel: its weights times itself, minus those of the neighbours that are
    # removed too, is the weighted sum of the neighbours that are known.
    rows = equations[np.flatnonzero(lost)]
    values = image.reshape(len(image), n_pixels)[:, order].T
    known = -(rows @ np.where(lost[:, None], 0.0, values))
    system = rows[:, np.flatnonzero(lost)]
    solved = _solve_symmetric(system, known, is_exact=is_exact)
    return solved[np.argsort(order[lost])].T


def _solve_symmetric(system: csr_array, known: np.ndarray, *, is_exact: bool) -> np.ndarray:
    """Solve equations whose unknowns are in a good order already."""
    system = csc_array((system.data, system.indices, system.indptr), shape=system.shape)
    options = {"permc_spec": "NATURAL", "diag_pivot_thresh": 0.0, "panel_size": 1}
    size = np.abs(known).max()
    if not is_exact and np.isfinite(size) and size > 0:
        # In single precision it takes two thirds of the time. What is left over is solved for again
        # until it is nothing to speak of: each time it shrinks as much as the first time.
        factors = splu(system.astype(np.float32), **options, options={"SymmetricMode": True})
        solved = np.zeros_like(known)
        for _ in range(_MOST_CORRECTIONS):
            left = (known - system @ solved) / size
            correction = size * factors.solve(left.astype(np.float32)).astype(np.float64)
            before, solved = solved, solved + correction
            shrunk = np.abs(correction).max() / np.abs(solved).max()
            if before.any() and shrunk**2 <= _TOLERANCE:
                return solved
    factors = splu(system, **options, options={"SymmetricMode": True})
    return factors.solve(known)


@lru_cache(maxsize=1)
def _equations(height: int, width: int) -> tuple[np.ndarray, csr_array]:
    """Return the pixels (n_pixels,) in a good order, and the equations of all of them in it.

    The order is one of nested dissection: of two halves of the plane first one, then the other, and
    last the line between them, and so within each half. What is eliminated in it fills in little.
    """
    order = np.concatenate(_dissected(np.arange(height * width).reshape(height, width)))
    place = np.empty(height * width, np.int32)
    place[order] = np.arange(height * width)
    grid = place.reshape(height, width)
    diagonal = np.zeros(height * width)
    entries = []
    for (down, right), weight in _NEIGHBOURS:
        pixels = grid[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
        neighbours = grid[
            max(0, down) : height - max(0, -down), max(0, right) : width - max(0, -right)
        ]
        diagonal[pixels.ravel()] += weight
        entries.append((pixels.ravel(), neighbours.ravel(), np.full(pixels.size, -weight)))
    entries.append((place[order], place[order], diagonal))
    equation, unknown, weights = (np.concatenate(part) for part in zip(*entries, strict=True))
    shape = (height * width, height * width)
    return order, csr_array(coo_array((weights, (equation, unknown)), shape=shape))


def _dissected(pixels: np.ndarray) -> list[np.ndarray]:
    if pixels.size <= _FEWEST:
        return [pixels.ravel()]
    pixels = pixels if pixels.shape[0] >= pixels.shape[1] else pixels.T
    middle = len(pixels) // 2
    return [*_dissected(pixels[:middle]), *_dissected(pixels[middle + 1 :]), pixels[middle]]
