"""Insertion, deletion and ROAD: what the network says as pixels come and go by their saliency.

The functions take a ``score``: a callable that runs the network on images (m, channels, height,
width), of which row i belongs to image ``rows[i]``, and returns the score of what is explained for
each, of shape (m,), in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array, csc_array
from scipy.sparse.linalg import spsolve
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import (
    check_callable,
    check_count,
    check_number,
    check_tensor,
    check_values,
    describe,
)
from sklcam.cam.base import batch_size_for, check_batch_size

Score = Callable[[Tensor, Tensor], Tensor]
Base = Tensor | Callable[[Tensor], Tensor]

_IMAGE_AXES = ("n_images", "channels", "height", "width")


class CausalCurves(NamedTuple):
    """Scores as pixels come and go.

    Attributes
    ----------
    fractions : Tensor of shape (n_steps + 1,), from 0 to 1
        Share of the pixels that have been inserted, or deleted.
    insertion, deletion : Tensor of shape (n_images, n_steps + 1), in [0, 1]

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import CausalCurves, deletion_auc
    >>> fractions, rising = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[0.0, 0.8, 1.0]])
    >>> deletion_auc(CausalCurves(fractions, insertion=rising, deletion=rising.flip(1)))
    tensor([0.6500])
    """

    fractions: Tensor
    insertion: Tensor
    deletion: Tensor


class InsertionCurve(NamedTuple):
    """Scores as pixels come, of :class:`CausalCurves`.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import InsertionCurve, insertion_auc
    >>> fractions, rising = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[0.0, 0.8, 1.0]])
    >>> insertion_auc(InsertionCurve(fractions, rising))
    tensor([0.6500])
    """

    fractions: Tensor
    insertion: Tensor


class DeletionCurve(NamedTuple):
    """Scores as pixels go, of :class:`CausalCurves`.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import DeletionCurve, deletion_auc
    >>> fractions, falling = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[1.0, 0.2, 0.0]])
    >>> deletion_auc(DeletionCurve(fractions, falling))
    tensor([0.3500])
    """

    fractions: Tensor
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

    Raises
    ------
    ValueError
        If the images are not a floating-point tensor of shape (n_images, channels, height, width).

    References
    ----------
    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    BMVC 2018, and the authors' code.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import blur
    >>> blurred = blur(torch.ones(1, 3, 32, 32))
    >>> blurred[0, 0, 16, [16, 1, 0]]  # towards the border zeros are blurred in
    tensor([1.0000, 0.6405, 0.5470])
    """
    check_tensor("images", images, *_IMAGE_AXES)
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
    start: Base | None = None,
    end: Base | None = None,
    full: Tensor | None = None,
    batch_size: int | None = None,
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
    start : Tensor of the images' shape, callable or None, default=None
        What insertion starts from, or what makes it from the images; None is :func:`blur`.
    end : Tensor of the images' shape, callable or None, default=None
        What deletion ends at, or what makes it from the images; None is ``torch.zeros_like``.
    full : Tensor of shape (n_images,) or None, default=None
        The score of the images themselves, if it is known: it saves a pass.
    batch_size : int or None, default=None
        Most images that go through the network at a time, across images and steps. None is 10 of
        224 x 224 pixels on a CPU, whose caches hold no more, 83 elsewhere, and more of smaller
        ones.

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
    >>> curves = causal_curves(top_left, images, maps, n_steps=4, start=torch.zeros_like)
    >>> curves.insertion
    tensor([[0., 1., 1., 1., 1.]])
    >>> insertion_auc(curves), deletion_auc(curves)
    (tensor([0.8750]), tensor([0.1250]))
    """
    sweep = _Sweep(score, images, maps, n_steps, full, batch_size)
    return CausalCurves(sweep.fractions, sweep.insertion(start), sweep.deletion(end))


def insertion_curve(
    score: Score,
    images: Tensor,
    maps: Tensor,
    *,
    n_steps: int = 224,
    start: Base | None = None,
    full: Tensor | None = None,
    batch_size: int | None = None,
) -> InsertionCurve:
    """Insert pixels in the order of their saliency: :func:`causal_curves`, one of the two.

    Parameters
    ----------
    score, images, maps, n_steps, start, full, batch_size
        As of :func:`causal_curves`.

    Returns
    -------
    InsertionCurve
        From ``n_steps`` + 1 images through the network for each image.

    Raises
    ------
    ValueError
        If there are no images, the maps do not fit them or have NaN, ``n_steps`` is not from 1 to
        the number of pixels, ``full`` is not one score per image, or ``batch_size`` is under 1; if
        ``score`` returns anything but one number per image, or ``start`` is or makes anything but
        images of the same shape.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import insertion_auc, insertion_curve
    >>> images, maps = torch.ones(1, 1, 2, 2), torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    >>> share = lambda images, rows: images.mean(dim=(1, 2, 3))
    >>> curve = insertion_curve(share, images, maps, n_steps=2, start=torch.zeros_like)
    >>> curve.insertion, insertion_auc(curve)
    (tensor([[0.0000, 0.5000, 1.0000]]), tensor([0.5000]))
    """
    sweep = _Sweep(score, images, maps, n_steps, full, batch_size)
    return InsertionCurve(sweep.fractions, sweep.insertion(start))


def deletion_curve(
    score: Score,
    images: Tensor,
    maps: Tensor,
    *,
    n_steps: int = 224,
    end: Base | None = None,
    full: Tensor | None = None,
    batch_size: int | None = None,
) -> DeletionCurve:
    """Delete pixels in the order of their saliency: :func:`causal_curves`, one of the two.

    Parameters
    ----------
    score, images, maps, n_steps, end, full, batch_size
        As of :func:`causal_curves`.

    Returns
    -------
    DeletionCurve
        From ``n_steps`` + 1 images through the network for each image.

    Raises
    ------
    ValueError
        If there are no images, the maps do not fit them or have NaN, ``n_steps`` is not from 1 to
        the number of pixels, ``full`` is not one score per image, or ``batch_size`` is under 1; if
        ``score`` returns anything but one number per image, or ``end`` is or makes anything but
        images of the same shape.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import deletion_auc, deletion_curve
    >>> images, maps = torch.ones(1, 1, 2, 2), torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    >>> share = lambda images, rows: images.mean(dim=(1, 2, 3))
    >>> curve = deletion_curve(share, images, maps, n_steps=2)
    >>> curve.deletion, deletion_auc(curve)
    (tensor([[1.0000, 0.5000, 0.0000]]), tensor([0.5000]))
    """
    sweep = _Sweep(score, images, maps, n_steps, full, batch_size)
    return DeletionCurve(sweep.fractions, sweep.deletion(end))


class _Sweep:
    """The images of one batch with ever more of their pixels, the most salient first."""

    def __init__(
        self,
        score: Score,
        images: Tensor,
        maps: Tensor,
        n_steps: int,
        full: Tensor | None,
        batch_size: int | None,
    ):
        _check_arguments(score, images, maps, batch_size)
        n_pixels = maps[0].numel()
        check_count(f"n_steps, for {n_pixels} pixels,", n_steps, 1, n_pixels)
        if full is not None:
            check_values(full=full)
            if full.shape != (len(images),):
                raise ValueError(
                    f"full must be one score for each of {len(images)} images; got shape "
                    f"{tuple(full.shape)}."
                )
        self.score = score
        self.images = images
        self.n_steps = n_steps
        self.batch_size = batch_size_for(images, batch_size)
        self.ranks = _ranks(maps)
        counts = torch.linspace(0, n_pixels, n_steps + 1, device=images.device).round()
        self.counts = counts.to(self.ranks.dtype)
        self.fractions = counts / n_pixels
        self._full = full

    @cached_property
    def full(self) -> Tensor:
        """The images' own scores, (n_images, 1), which the two curves share."""
        if self._full is None:
            return _in_batches(self.score, self.images, self.batch_size)[:, None]
        return self._full.float()[:, None]

    def insertion(self, start: Base | None) -> Tensor:
        """Return the scores (n_images, n_steps + 1) as salient pixels replace those of start."""
        base = _base(self.images, blur if start is None else start)
        between = self._between(base, self._is_salient)
        return torch.cat([self._of_base(base), between, self.full], dim=1)

    def deletion(self, end: Base | None) -> Tensor:
        """Return the scores (n_images, n_steps + 1) as those of the end replace salient pixels."""
        base = _base(self.images, torch.zeros_like if end is None else end)
        between = self._between(base, lambda *job: ~self._is_salient(*job))
        return torch.cat([self.full, between, self._of_base(base)], dim=1)

    def _is_salient(self, rows: Tensor, steps: Tensor) -> Tensor:
        return self.ranks[rows] < self.counts[steps, None, None]

    def _of_base(self, base: Tensor) -> Tensor:
        """Score what has no pixel of the images, (n_images, 1).

        Where it is the same for all of them, such as zeros, it is handed on as one image, expanded.
        """
        if bool((base == base[:1]).all()):
            base = base[:1].expand_as(base)
        return _in_batches(self.score, base, self.batch_size)[:, None]

    def _between(self, base: Tensor, is_shown: Callable[..., Tensor]) -> Tensor:
        """Score all images at the n_steps - 1 steps between, filling batches across both."""
        n_between = self.n_steps - 1
        jobs = torch.arange(len(self.images) * n_between, device=self.images.device)
        scores = [self.full.new_empty(0)]
        for part in jobs.split(self.batch_size) if n_between else ():
            rows, steps = part // n_between, part % n_between + 1
            shown = is_shown(rows, steps)[:, None]
            mixed = torch.where(shown, self.images[rows], base[rows])
            scores.append(_scored(self.score, mixed, rows))
        return torch.cat(scores).view(len(self.images), n_between)


def _base(images: Tensor, base: Base) -> Tensor:
    """Return what pixels are taken from, or replaced with."""
    if not isinstance(base, Tensor):
        check_callable("start or end, if it is no Tensor,", base, "that makes it from the images")
    made = base if isinstance(base, Tensor) else base(images)
    if not isinstance(made, Tensor) or made.shape != images.shape:
        came = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(
            f"start and end must be of the images' shape, {tuple(images.shape)}; got {came}."
        )
    return made


def _in_batches(score: Score, images: Tensor, batch_size: int) -> Tensor:
    rows = torch.arange(len(images), device=images.device).split(batch_size)
    parts = zip(images.split(batch_size), rows, strict=True)  # slices: expanded ones stay so
    return torch.cat([_scored(score, *part) for part in parts])


def _scored(score: Score, images: Tensor, rows: Tensor) -> Tensor:
    """Return the scores of images, float; a ValueError if what came is not one for each."""
    scores = score(images, rows)
    if not isinstance(scores, Tensor) or scores.shape != rows.shape:
        raise ValueError(
            f"score must return a Tensor of one number for each of {len(rows)} images; it returned "
            f"{describe(scores)}."
        )
    return scores.float()


def insertion_auc(curves: CausalCurves | InsertionCurve) -> Tensor:
    """Area under the insertion curve, by the trapezoid rule over the share of pixels.

    Parameters
    ----------
    curves : CausalCurves or InsertionCurve

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; higher is better.

    Raises
    ------
    ValueError
        If there is no insertion among the curves.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import InsertionCurve, insertion_auc
    >>> curve = InsertionCurve(torch.tensor([0.0, 0.25, 1.0]), torch.tensor([[0.0, 0.8, 1.0]]))
    >>> insertion_auc(curve)
    tensor([0.7750])
    """
    _check_curves(curves, "insertion")
    return torch.trapezoid(curves.insertion, curves.fractions.to(curves.insertion), dim=1)


def deletion_auc(curves: CausalCurves | DeletionCurve) -> Tensor:
    """Area under the deletion curve, by the trapezoid rule over the share of pixels.

    Parameters
    ----------
    curves : CausalCurves or DeletionCurve

    Returns
    -------
    Tensor of shape (n_images,), in [0, 1]; lower is better.

    Raises
    ------
    ValueError
        If there is no deletion among the curves.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import DeletionCurve, deletion_auc
    >>> curve = DeletionCurve(torch.tensor([0.0, 0.25, 1.0]), torch.tensor([[1.0, 0.2, 0.0]]))
    >>> deletion_auc(curve)
    tensor([0.2250])
    """
    _check_curves(curves, "deletion")
    return torch.trapezoid(curves.deletion, curves.fractions.to(curves.deletion), dim=1)


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
    batch_size : int or None, default=None
        As of :func:`causal_curves`.

    Returns
    -------
    Tensor of shape (n_images,), in [-0.5, 0.5]; higher is better.
        Half the score without the least relevant pixels, minus that without the most relevant,
        averaged over the percentiles.

    Raises
    ------
    ValueError
        If there are no images, or the maps do not fit them or have NaN; if a percentile is not
        between 0 and 100 or there is none, the noise is negative, ``batch_size`` is under 1, or
        ``generator`` is no generator; or if ``score`` returns anything but one number per image.

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
    _check_arguments(score, images, maps, batch_size)
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
            scores.append(_in_batches(score, filled, size))
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
        is zero but for the noise, which is the same for every image: an image is filled in alike in
        every batch.

    Raises
    ------
    ValueError
        If the images are not floating-point, ``removed`` is not bool or not of their size, the
        noise is negative, or ``generator`` is no generator.

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
    check_tensor("images", images, *_IMAGE_AXES)
    check_tensor("removed", removed, "n_images", "height", "width", floating=False)
    if removed.dtype != torch.bool or removed.shape != (len(images), *images.shape[-2:]):
        raise ValueError(
            f"removed must be bool and of shape {(len(images), *images.shape[-2:])} for these "
            f"images; got {describe(removed)}."
        )
    check_number("noise, a standard deviation,", noise, 0)
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator must be a torch.Generator or None; got {describe(generator)}.")
    drawn = noise * torch.randn(images.shape[1:], generator=generator).to(images)
    filled = images.clone()
    for image, lost in zip(filled, removed, strict=True):
        where = lost.cpu().numpy()
        if where.any():
            solved = _solve(image.detach().double().cpu().numpy(), where)
            image[:, lost] = torch.as_tensor(solved).to(images) + drawn[:, lost]
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
    ranks = torch.empty_like(order, dtype=torch.int32)
    places = torch.arange(order.shape[1], device=order.device, dtype=torch.int32)
    ranks.scatter_(1, order, places.expand_as(order))
    return ranks.view(maps.shape)


def _check_curves(curves: Any, name: str) -> None:
    if not hasattr(curves, name):
        raise ValueError(
            f"curves must be CausalCurves, or {name.capitalize()}Curve; got "
            f"{type(curves).__name__}, which has no {name}."
        )


def _check_arguments(score: Any, images: Any, maps: Any, batch_size: Any) -> None:
    check_callable("score", score, "of images and rows that returns one number for each")
    check_tensor("images", images, *_IMAGE_AXES)
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
