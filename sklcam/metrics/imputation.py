"""ROAD: the network's score when pixels are filled in from their neighbours."""

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
from sklcam.metrics.multigrid import Multigrid, is_for_grids

_FEWEST = 8  # pixels, too few to dissect further
_LARGEST_KEPT = 2**20  # pixels of images whose equations are kept for the next one
_VALUES_A_THREAD = 2**18  # of images filled in at once: they fit into a core's cache
_VALUES_AT_ONCE = 2**23  # on other devices, which hold a dozen tensors of this size


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
    """Compare scores without the most relevant pixels and without the least relevant ones.

    The removed pixels are filled in from their neighbours.

    Parameters
    ----------
    score : callable
        See :func:`causal_curves`.
    images : Tensor of shape (n_images, channels, height, width)
    maps : Tensor of shape (n_images, height, width)
    percentiles : sequence of float, in (0, 100)
        A pixel is removed where the map (or, for the least relevant, minus the map) is at or above
        this percentile.
    noise : float, default=0.01
        Standard deviation of the noise on filled-in pixels.
    generator : torch.Generator or None, default=None
        Generator of the noise, on the CPU.
    batch_size : int or None, default=None
        See :func:`causal_curves`.

    Returns
    -------
    Tensor of shape (n_images,), in [-0.5, 0.5]; higher is better.
        Half the difference between the score without the least relevant pixels and the score
        without the most relevant ones, averaged over the percentiles. NaN where a map has NaN.

    Raises
    ------
    ValueError
        If there are no images, or the maps do not fit them; if there are no percentiles, or one is
        not between 0 and 100; if the noise is negative, ``batch_size`` is less than 1, or
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
            "ROAD fills in pixels from their neighbours in a plane, so it is not defined for "
            f"volumes; got {describe(images)}. Use iauc and dauc."
        )
    check_arguments(score, images, maps, batch_size)
    check_number("noise, a standard deviation,", noise, 0)
    percentiles = list(percentiles) if isinstance(percentiles, Iterable) else []
    if not percentiles:
        raise ValueError("percentiles must be a sequence of at least one number.")
    for percentile in percentiles:
        check_number("Each of percentiles", percentile, 0, 100, closed="neither")
    size = batch_size_for(images, batch_size)
    device, fill = images.device, _Filling(images)
    relevance = maps.detach().cpu()
    differences = []
    for percentile in percentiles:
        removed = [_at_or_over(each, percentile) for each in (relevance, -relevance)]
        drawn = [_draw_noise(images, noise, generator) for _ in removed]
        # Fill in both together: there is work for two threads even with one image.
        filled = fill(removed, drawn)
        both = [
            score_in_batches(score, some.to(device, non_blocking=True), size) for some in filled
        ]
        differences.append((both[1] - both[0]) / 2)
    return torch.stack(differences).mean(dim=0).masked_fill(has_nan(maps), torch.nan)


def _at_or_over(maps: Tensor, percentile: float) -> Tensor:
    """Return which pixels of each map are at or above its percentile."""
    # torch.quantile refuses maps of more than 2**24 pixels.
    percentiles = np.percentile(maps.flatten(1).double().numpy(), percentile, axis=1)
    # In half precision the percentile may round to the pixel below it.
    threshold = torch.as_tensor(percentiles, dtype=torch.promote_types(maps.dtype, torch.float32))
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
        Neighbours along rows and columns have the weight 1/6, diagonal ones 1/12. If all pixels of
        an image are removed, only the noise is left. The noise is the same for every image, so an
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
    (filled,) = _Filling(images)([removed], [drawn])
    return filled.to(images.device)


def _draw_noise(images: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator must be a torch.Generator or None; got {describe(generator)}.")
    return noise * torch.randn(images.shape[1:], generator=generator).to(images.dtype)


def _where_it_is_solved(images: Tensor) -> Tensor:
    """Return images on the device that solves their equations: CUDA, or else the CPU."""
    return images.detach() if images.device.type == "cuda" else images.detach().cpu()


class _Filling:
    """Fills in images for one mask after another; buffers for the computation are kept."""

    def __init__(self, images: Tensor):
        self._images = _where_it_is_solved(images)
        self._grids: Multigrid | None = None

    def __call__(self, removed: Sequence[Tensor], drawn: Sequence[Tensor]) -> list[Tensor]:
        """Fill in once for each of several masks (n_images, height, width), with its noise."""
        images = self._images
        lost = torch.cat([mask.to(images.device, non_blocking=True) for mask in removed])
        if is_for_grids(images.shape[2:]):
            filled, is_filled = self._fill_by_grids(lost)
        else:
            filled, is_filled = images.repeat(len(removed), 1, 1, 1), torch.zeros(len(lost)).bool()
        if not bool(is_filled.all()):
            rest = (~is_filled).nonzero()[:, 0]
            filled[rest] = _fill_exactly(filled[rest].cpu(), lost[rest].cpu()).to(images.device)
        noise = torch.stack([*drawn]).to(images.device, non_blocking=True)
        of_masks = filled.view(len(removed), *images.shape)
        where = lost.view(*of_masks.shape[:2], 1, *lost.shape[1:])
        of_masks.addcmul_(noise[:, None], where.to(noise.dtype))
        return [*of_masks]

    def _fill_by_grids(self, lost: Tensor) -> tuple[Tensor, Tensor]:
        """Fill in for masks (n_masks * n_images, height, width); a batch fits into a cache."""
        images = self._images
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        if images.device.type == "cpu":
            n_at_once = torch.get_num_threads() * max(1, _VALUES_A_THREAD // images[0].numel())
        else:
            n_at_once = max(1, _VALUES_AT_ONCE // images[0].numel())
        filled = images.new_empty(len(lost), *images.shape[1:])
        are_filled = []
        for start in range(0, len(lost), n_at_once):
            rows = slice(start, start + n_at_once)
            of = torch.arange(len(lost), device=lost.device)[rows] % len(images)
            shape = filled[rows].shape
            if self._grids is None or self._grids.shape != shape:
                self._grids = Multigrid(shape, dtype, images.device)
            filled[rows], is_filled = self._grids.fill(images[of], lost[rows])
            are_filled.append(is_filled)
        return filled, torch.cat(are_filled)


def _fill_exactly(images: Tensor, lost: Tensor) -> Tensor:
    """Fill in images on the CPU by factoring the equations of each, in double precision."""

    def solve(image: Tensor, mask: Tensor) -> None:
        if mask.any():
            solved = _solve(image.double().numpy(), mask.numpy())
            image[:, mask] = torch.as_tensor(solved).to(image.dtype)

    # In threads, as the slow parts release Python's lock.
    with ThreadPoolExecutor(max(1, min(len(images), torch.get_num_threads()))) as threads:
        list(threads.map(solve, images, lost))
    return images


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
    n_pixels = removed.size
    make = _equations if n_pixels <= _LARGEST_KEPT else _equations.__wrapped__
    order, equations = make(*removed.shape)
    lost = removed.ravel()[order]
    # One equation per removed pixel: the sum of its weights times the pixel, minus the weighted sum
    # of its removed neighbours, equals the weighted sum of its known neighbours.
    rows = equations[np.flatnonzero(lost)]
    values = image.reshape(len(image), n_pixels)[:, order].T
    known = -(rows @ np.where(lost[:, None], 0.0, values))
    system = rows[:, np.flatnonzero(lost)]
    # The system is symmetric, and its unknowns are already in a good order.
    system = csc_array((system.data, system.indices, system.indptr), shape=system.shape)
    options = {"permc_spec": "NATURAL", "diag_pivot_thresh": 0.0, "panel_size": 1}
    factors = splu(system, **options, options={"SymmetricMode": True})
    return factors.solve(known)[np.argsort(order[lost])].T


@lru_cache(maxsize=1)
def _equations(height: int, width: int) -> tuple[np.ndarray, csr_array]:
    """Return the pixels (n_pixels,) in a good order, and the equations of all pixels in it.

    The order is nested dissection: one half of the plane, then the other, and last the line between
    them, and the same within each half. Elimination in this order creates few new entries.
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
