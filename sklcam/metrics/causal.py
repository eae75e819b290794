"""Insertion and deletion: the network's score as pixels come and go by their saliency.

A ``score`` is a callable that runs the network on images (m, channels, height, width), where image
i was made from image ``rows[i]`` of the batch. It returns each image's score of the target, of
shape (m,), in [0, 1]. If the map of an image has NaN, its scores are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from sklcam._validation import (
    AXES,
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

IMAGE_AXES = ("n_images", "channels", "height", "width")
VOLUME_AXES = ("n_images", "channels", "depth", "height", "width")


class CausalCurves(NamedTuple):
    """Scores as pixels are inserted and deleted.

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
    """Scores as pixels are inserted: one half of :class:`CausalCurves`.

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
    """Scores as pixels are deleted: one half of :class:`CausalCurves`.

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
    """Blur images as the authors of insertion do: insertion starts from blurred images.

    The kernel of 11 x 11 is the response of ``scipy.ndimage.gaussian_filter``, with a sigma of 5,
    to a single bright pixel in the middle. Images are padded with zeros. The kernel for volumes has
    11 x 11 x 11 voxels and is made in the same way.

    Parameters
    ----------
    images : Tensor of shape (n_images, channels, height, width)
        Or volumes, (n_images, channels, depth, height, width).

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
    check_images(images)
    impulse = np.zeros((11,) * (images.ndim - 2))
    impulse[(5,) * impulse.ndim] = 1
    kernel = torch.as_tensor(gaussian_filter(impulse, 5)).to(images)
    n_channels = images.shape[1]
    convolve = F.conv2d if impulse.ndim == 2 else F.conv3d
    kernels = kernel.expand(n_channels, 1, *kernel.shape)
    return convolve(images, kernels, padding=5, groups=n_channels)


def causal_curves(
    score: Score,
    images: Tensor,
    maps: Tensor,
    *,
    n_steps: int = 56,
    start: Base | None = None,
    end: Base | None = None,
    full: Tensor | None = None,
    batch_size: int | None = None,
) -> CausalCurves:
    """Insert and delete pixels in the order of their saliency, and record the score.

    Parameters
    ----------
    score : callable
        Takes images (m, channels, height, width) and rows (m,): the image of the batch that each of
        them was made from. Returns the scores (m,) of the target, in [0, 1].
    images : Tensor of shape (n_images, channels, height, width)
        The network's input; or volumes, with an axis of their depth before the height.
    maps : Tensor of shape (n_images, height, width)
        For volumes, with the depth. Tied pixels keep their raster order. The scores of an image
        whose map has NaN are NaN.
    n_steps : int, default=56
        Steps from none to all pixels, as equal as possible. The authors take 224 steps for 224 x
        224 pixels; with a quarter of them, areas under the curve differ by 0.001 on average (mean
        absolute difference).
    start : Tensor of the images' shape, callable or None, default=None
        The images that insertion starts from, or a function that makes them from the images; None
        is :func:`blur`.
    end : Tensor of the images' shape, callable or None, default=None
        The images that deletion ends at, or a function that makes them from the images; None is
        ``torch.zeros_like``.
    full : Tensor of shape (n_images,) or None, default=None
        The score of the images themselves, if known; it saves a pass.
    batch_size : int or None, default=None
        The largest number of images to run at a time, across images and steps. For 224 x 224
        pixels, None is 10 on a CPU, whose caches hold no more, and 83 elsewhere; for smaller images
        it is more.

    Returns
    -------
    CausalCurves
        For each image, 2 ``n_steps`` + 1 images go through the network, or one less with ``full``.

    Raises
    ------
    ValueError
        If the maps do not fit the images, or there are more steps than pixels.

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
    sweep = PixelSweep(score, images, maps, n_steps, start, end, full, batch_size)
    insertion, deletion = sweep.insertion_curve(), sweep.deletion_curve()
    return CausalCurves(*insertion, deletion.deletion)


def insertion_curve(
    score: Score,
    images: Tensor,
    maps: Tensor,
    *,
    n_steps: int = 56,
    start: Base | None = None,
    full: Tensor | None = None,
    batch_size: int | None = None,
) -> InsertionCurve:
    """Insert pixels in the order of their saliency: one half of :func:`causal_curves`.

    Parameters
    ----------
    score, images, maps, n_steps, start, full, batch_size
        See :func:`causal_curves`.

    Returns
    -------
    InsertionCurve
        For each image, ``n_steps`` + 1 images go through the network.

    Raises
    ------
    ValueError
        If there are no images, the maps do not fit them, ``n_steps`` is not from 1 to
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
    sweep = PixelSweep(score, images, maps, n_steps, start, None, full, batch_size)
    return sweep.insertion_curve()


def deletion_curve(
    score: Score,
    images: Tensor,
    maps: Tensor,
    *,
    n_steps: int = 56,
    end: Base | None = None,
    full: Tensor | None = None,
    batch_size: int | None = None,
) -> DeletionCurve:
    """Delete pixels in the order of their saliency: one half of :func:`causal_curves`.

    Parameters
    ----------
    score, images, maps, n_steps, end, full, batch_size
        See :func:`causal_curves`.

    Returns
    -------
    DeletionCurve
        For each image, ``n_steps`` + 1 images go through the network.

    Raises
    ------
    ValueError
        If there are no images, the maps do not fit them, ``n_steps`` is not from 1 to
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
    sweep = PixelSweep(score, images, maps, n_steps, None, end, full, batch_size)
    return sweep.deletion_curve()


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
        If the curves have no insertion.

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
        If the curves have no deletion.

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


def cover(
    images: Tensor, maps: Tensor, *, share: float = 0.2, base: Base = blur
) -> tuple[Tensor, Tensor]:
    """Cover the pixels that maps mark most strongly, to see what the network says without them.

    Parameters
    ----------
    images : Tensor of shape (n_images, channels, height, width)
        As the network gets them; or volumes, (n_images, channels, depth, height, width).
    maps : Tensor of shape (n_images, height, width), or (n_images, depth, height, width)
    share : float, default=0.2
        The share of an image's pixels that are covered, those with the highest values. Pixels at
        the map's minimum are not marked, so a map may mark fewer, and a blank one none.
    base : Tensor of the images' shape or callable, default=:func:`blur`
        What to show in their place, or a function that makes it from the images.
        ``torch.zeros_like`` is the mean colour of normalised images.

    Returns
    -------
    covered : Tensor of the images' shape
    marked : Tensor of the maps' shape, bool
        Which pixels are covered; none in an image whose map has NaN.

    Raises
    ------
    ValueError
        If an argument is not valid.

    References
    ----------
    Selvaraju et al., "Grad-CAM", IJCV 2020, section 3.3: without what a counterfactual map marks,
    a network should be more confident.

    Examples
    --------
    >>> import torch
    >>> from sklcam.metrics import cover
    >>> images, maps = torch.ones(1, 1, 1, 4), torch.tensor([[[0.1, 0.9, 0.0, 0.5]]])
    >>> cover(images, maps, share=0.5, base=torch.zeros_like)
    (tensor([[[[1., 0., 1., 0.]]]]), tensor([[[False,  True, False,  True]]]))
    """
    check_images(images)
    check_pixels(images, maps)
    check_number("share, of the pixels,", share, 0, 1)
    n_covered = math.ceil(round(share * maps[0].numel(), 6))  # in decimals, as people mean it
    lowest = maps.flatten(1).amin(dim=1).view(-1, *[1] * (maps.ndim - 1))
    marked = (_ranks(maps) < n_covered) & (maps > lowest)  # false of NaN
    return torch.where(marked[:, None], _base(images, base), images), marked


def _check_curves(curves: object, name: str) -> None:
    if not hasattr(curves, name):
        raise ValueError(
            f"curves must be CausalCurves, or {name.capitalize()}Curve; got "
            f"{type(curves).__name__}, which has no {name}."
        )


class PixelSweep:
    """Runs a batch with more and more of its images' pixels, the most salient first.

    Insertion and deletion share the order of the pixels, and the images' own score.

    Parameters
    ----------
    score, images, maps, n_steps, start, end, full, batch_size
        See :func:`causal_curves`.
    """

    def __init__(
        self,
        score: Score,
        images: Tensor,
        maps: Tensor,
        n_steps: int = 56,
        start: Base | None = None,
        end: Base | None = None,
        full: Tensor | None = None,
        batch_size: int | None = None,
    ):
        check_arguments(score, images, maps, batch_size)
        n_pixels = maps[0].numel()
        check_count(f"n_steps, for {n_pixels} pixels,", n_steps, 1, n_pixels)
        if full is not None:
            check_values(full=full)
            if full.shape != (len(images),):
                raise ValueError(
                    f"full must be one score for each of {len(images)} images; got shape "
                    f"{tuple(full.shape)}."
                )
        self._score = score
        self._images = images
        counts = torch.linspace(0, n_pixels, n_steps + 1, device=images.device).round()
        self._fractions = counts / n_pixels
        self._n_steps = n_steps
        self._start = blur if start is None else start
        self._end = torch.zeros_like if end is None else end
        self._batch_size = batch_size_for(images, batch_size)
        self._ranks = _ranks(maps)
        self._has_no_order = has_nan(maps)
        self._counts = counts.to(self._ranks.dtype)
        self._own_score = full

    @cached_property
    def _full(self) -> Tensor:
        """The images' own scores, (n_images, 1), which the two curves share."""
        if self._own_score is None:
            return score_in_batches(self._score, self._images, self._batch_size)[:, None]
        return self._own_score.float()[:, None]

    def insertion_curve(self) -> InsertionCurve:
        """Return the scores as salient pixels replace those of the start."""
        base = _base(self._images, self._start)
        between = self._between(base, self._is_salient)
        return InsertionCurve(
            self._fractions, self._joined(self._score_base(base), between, self._full)
        )

    def deletion_curve(self) -> DeletionCurve:
        """Return the scores as pixels of the end replace salient ones."""
        base = _base(self._images, self._end)
        between = self._between(base, lambda *job: ~self._is_salient(*job))
        return DeletionCurve(
            self._fractions, self._joined(self._full, between, self._score_base(base))
        )

    def _joined(self, *scores: Tensor) -> Tensor:
        return torch.cat(scores, dim=1).masked_fill(self._has_no_order[:, None], torch.nan)

    def _is_salient(self, rows: Tensor, steps: Tensor) -> Tensor:
        counts = self._counts[steps].reshape(-1, *[1] * (self._ranks.ndim - 1))
        return self._ranks[rows] < counts

    def _score_base(self, base: Tensor) -> Tensor:
        """Score the base, which has no pixel of the images, (n_images, 1)."""
        # If it is the same for all images, such as zeros, a single image is passed on, expanded:
        # the network need not see it more than once.
        if bool((base == base[:1]).all()):
            base = base[:1].expand_as(base)
        return score_in_batches(self._score, base, self._batch_size)[:, None]

    def _between(self, base: Tensor, is_shown: Callable[..., Tensor]) -> Tensor:
        """Score all images at the n_steps - 1 steps between."""
        n_between = self._n_steps - 1
        # A job is one step of one image. Batches are filled across images and steps, so that they
        # are full whatever the number of either.
        jobs = torch.arange(len(self._images) * n_between, device=self._images.device)
        scores = [self._full.new_empty(0)]
        for part in jobs.split(self._batch_size) if n_between else ():
            rows, steps = part // n_between, part % n_between + 1
            shown = is_shown(rows, steps)[:, None]
            mixed = torch.where(shown, self._images[rows], base[rows])
            scores.append(score_images(self._score, mixed, rows))
        return torch.cat(scores).view(len(self._images), n_between)


def _base(images: Tensor, base: Base) -> Tensor:
    """Return the images that pixels are taken from, or replaced with."""
    if not isinstance(base, Tensor):
        check_callable("start or end, if not a Tensor,", base, "that makes it from the images")
    made = base if isinstance(base, Tensor) else base(images)
    if not isinstance(made, Tensor) or made.shape != images.shape:
        found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(
            f"start and end must be of the images' shape, {tuple(images.shape)}; got {found}."
        )
    return made


def _ranks(maps: Tensor) -> Tensor:
    """Return each pixel's place in the order of decreasing saliency, (n_images, height, width)."""
    # A stable sort keeps tied pixels in raster order.
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order, dtype=torch.int32)
    places = torch.arange(order.shape[1], device=order.device, dtype=torch.int32)
    ranks.scatter_(1, order, places.expand_as(order))
    return ranks.view(maps.shape)


# Scores


def check_arguments(score: object, images: Tensor, maps: Tensor, batch_size: int | None) -> None:
    """Raise a ValueError unless the pixels of the images can be ordered by the maps and scored."""
    check_callable("score", score, "of images and rows that returns one number for each")
    check_images(images)
    check_batch_size(batch_size)
    if not len(images):
        raise ValueError("images is empty: at least one image is needed.")
    check_pixels(images, maps)


def check_pixels(images: Tensor, maps: Tensor) -> None:
    """Raise a ValueError unless there is a map for each image, of its pixels."""
    check_tensor("maps", maps, "n_images", *AXES[-(images.ndim - 2) :])
    if maps.shape != (len(images), *images.shape[2:]):
        axes = "height, width" if images.ndim == 4 else "depth, height, width"
        raise ValueError(
            f"maps must be of shape (n_images, {axes}), {(len(images), *images.shape[2:])} "
            f"for these images; got {tuple(maps.shape)}."
        )
    if maps.device != images.device:
        raise ValueError(
            f"maps are on {maps.device}, and images on {images.device}. Move them to one device."
        )


def check_images(images: Tensor) -> None:
    """Raise a ValueError unless these are images, or volumes."""
    is_of_volumes = isinstance(images, Tensor) and images.ndim == 5
    check_tensor("images", images, *(VOLUME_AXES if is_of_volumes else IMAGE_AXES))


def score_in_batches(score: Score, images: Tensor, batch_size: int) -> Tensor:
    """Return the scores of images, some of which go through the network at a time."""
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


def has_nan(maps: Tensor) -> Tensor:
    """Return which maps have NaN, so that their pixels have no order: bool of shape (n_images,)."""
    return maps.flatten(1).isnan().any(dim=1)
