"""Pixels filled in from their neighbours, in batches: conjugate gradients over many grids.

Each of ever coarser grids removes the errors that are as wide as its pixels (Trottenberg, Oosterlee
and Schüller, "Multigrid", 2001), so six or seven steps suffice, however many pixels there are.
Every operation is a sum of arrays, on any device. ``imputation.py`` has the equations, and another
solver for images that are not solved here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_SHORTEST_SIDE, _LONGEST_BY_SHORTEST = 16, 64  # a grid with few rows can hardly be coarsened
_COARSEST = 256  # pixels of the last grid, whose matrix is inverted
# How much known pixels hold back errors on the next grid, how this fades on later grids, and the
# weight of a coarser grid's answer. Found by trial: these values need the fewest steps.
_HOLD, _FADING, _OVERCORRECTION = 0.8, 0.6, 1.04
_FIRST_LOOK, _RENEWED, _MOST_STEPS = 4, 4, 24
# Error per unit of the residual, about the square of the widest hole in pixels; beyond it, rounding
# would be visible.
_FAR = 2500
# For the error before the last step, which leaves about a tenth of it.
_TOLERANCES = {torch.float32: 2.5e-5, torch.float64: 1e-11}


def is_for_grids(size: Sequence[int]) -> bool:
    """Return whether coarser grids help with images of a size (height, width)."""
    shortest, longest = sorted(size)
    is_strip = shortest < _SHORTEST_SIDE or longest > _LONGEST_BY_SHORTEST * shortest
    return not is_strip and math.prod(size) > _COARSEST


class Multigrid:
    """Fills in batches of one shape; its buffers are used again for each batch.

    Parameters
    ----------
    shape : tuple of int
        n_images, channels, height and width; see :func:`is_for_grids`.
    dtype : torch.float32 or torch.float64
        The type to compute in.
    device : torch.device
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        n_images, channels, height, width = shape
        self.shape, self.dtype = shape, dtype
        self._grids = [_Grid(shape, dtype, device)]
        while height * width > _COARSEST:
            height, width = height // 2 + 1, width // 2 + 1
            self._grids.append(_Grid((n_images, channels, height, width), dtype, device))
        first = self._grids[0]
        self._direction = _Framed(first.room, first.scratch)
        self._left, self._change, self._solved = (torch.empty_like(first.room) for _ in range(3))
        if dtype != torch.float64:  # to compute the residual anew
            self._exact_change = torch.empty_like(first.room, dtype=torch.float64)
            self._exact = _Framed(
                self._exact_change, torch.empty_like(first.scratch, dtype=torch.float64)
            )
            self._exact_centre = first.weights.double() + 4
        eye = torch.eye(height * width, dtype=dtype, device=device)
        # The last grid's matrix without its diagonal.
        self._apart = 4 * eye - _weighted(eye.view(-1, 1, height, width)).flatten(1)

    def fill(self, images: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
        """Fill in the removed pixels.

        Parameters
        ----------
        images : Tensor of shape (n_images, channels, height, width)
        removed : bool Tensor of shape (n_images, height, width)

        Returns
        -------
        filled : Tensor of the images' shape, of ``dtype``
            Exact to 1e-5 of the range of the known pixels, to 1e-10 in double precision. Zero if no
            pixel is known.
        is_solved : bool Tensor of shape (n_images,)
            False if this was not reached, or a known pixel is not finite.
        """
        lost, images = removed[:, None], images.to(self.dtype)
        # Subtract the mean of the known pixels, and divide by their largest distance from it.
        known, is_known = torch.where(lost, 0.0, images), (~lost).to(self.dtype)
        n_known = (~lost).sum(dim=(2, 3), keepdim=True).clamp(min=1)
        total = known.sum(dim=(2, 3), keepdim=True, dtype=torch.float64)
        mean = (total / n_known).to(self.dtype)
        away = self._direction.values
        torch.addcmul(known, mean, is_known, value=-1, out=away)
        size = away.abs().amax(dim=(2, 3), keepdim=True)
        size = torch.where(size == 0, 1.0, size)
        away.div_(size)
        with torch.autocast(images.device.type, enabled=False):
            self._prepare(lost)
            is_solved = self._solve()
        return torch.where(lost, torch.addcmul(mean, size, self._solved), images), is_solved

    def _prepare(self, lost: Tensor) -> None:
        """Set up the equations of each grid: how much a pixel counts beside its neighbours.

        On a coarser grid, all pixels are unknowns. Known pixels, whose errors are 0, hold back the
        errors near them by the weight that they have there.
        """
        self._mask = lost.to(self.dtype)
        known = 1 - self._mask
        held = self._mask * _weighted(known) + _HOLD * known
        self._grids[0].set_share(self._mask / self._grids[0].weights)
        for i, grid in enumerate(self._grids[1:]):
            held = _weighted(held, step=2).mul_(0.25 * (_FADING if i else 1))
            grid.set_share(1 / (grid.weights + held))
        # If all pixels are removed, nothing holds errors back, and no pixel needs a solution.
        free = held.amax(dim=(2, 3), keepdim=True) == 0
        diagonal = (self._grids[-1].weights + held + free).flatten(1)
        factors, _ = torch.linalg.cholesky_ex(self._apart + torch.diag_embed(diagonal))
        self._inverse = torch.cholesky_inverse(factors)
        reach = self._inverse.abs().sum(dim=2).amax(dim=1)[:, None, None, None]
        self._is_far = reach * 4 ** (len(self._grids) - 1) > _FAR

    def _solve(self) -> Tensor:
        """Take steps of conjugate gradients until no pixel changes; return which images are solved.

        ``_direction`` has the known pixels minus their mean; ``_solved`` gets the solution.
        """
        grid, direction = self._grids[0], self._direction
        left = direction.weighted(self._left).mul_(self._mask)
        known, solved = left.clone(), self._solved.zero_()
        centre, before = grid.weights + 4, torch.zeros_like(left[..., :1, :1])
        is_on = torch.ones_like(before[:, :1], dtype=torch.bool)
        is_solved = torch.zeros_like(is_on)
        for step in range(_MOST_STEPS):
            error = self._error_of(left, 0)
            along = torch.mul(left, error, out=grid.room).sum(dim=(2, 3), keepdim=True)
            turned = along / before if step else torch.zeros_like(along)
            torch.addcmul(error, turned, direction.values, out=direction.values)
            before = torch.where(along > 0, along, 1.0)
            # At known pixels it has no meaning: whatever it is multiplied by is 0 there.
            change = direction.weighted(self._change)
            change.addcmul_(centre, direction.values, value=-1)
            across = -torch.mul(direction.values, change, out=grid.room).sum((2, 3), keepdim=True)
            length = along / torch.where(across > 0, across, 1.0)
            length = torch.where(is_on, length, 0.0)  # an image is filled in alike in all batches
            solved.addcmul_(length, direction.values)
            if step >= _FIRST_LOOK:
                size = torch.abs(error, out=grid.room).amax(dim=(1, 2, 3), keepdim=True)
                is_solved |= size <= _TOLERANCES[self.dtype]
                is_on &= size > _TOLERANCES[self.dtype]  # false for NaN, which would not improve
                if not bool(is_on.any()):
                    break
            left.addcmul_(length, change)
            is_due = step % _RENEWED == _RENEWED - 1 and self.dtype != torch.float64
            if is_due and bool(self._is_far.any()):
                # Far from all known pixels, the rounding of long steps would add up.
                exact = self._exact.values.copy_(solved)
                renewed = self._exact.weighted(self._exact_change)
                renewed.addcmul_(self._exact_centre, exact, value=-1).add_(known)
                torch.where(self._is_far, renewed.to(self.dtype), left, out=left)
        return is_solved.flatten()

    def _error_of(self, left: Tensor, level: int) -> Tensor:
        """Return an approximate solution for the residual, on a grid and all coarser ones.

        Each pixel becomes the mean of its neighbours, the new residual is passed on to the coarser
        grid, whose answer is added, and each pixel becomes the mean again. This is symmetric, as
        conjugate gradients require.
        """
        grid = self._grids[level]
        if level == len(self._grids) - 1:
            solved = left.flatten(2) @ self._inverse
            return solved.view(left.shape)
        # Minus four times the error: the neighbours' sum contains the pixel itself four times.
        values = torch.mul(grid.minus_four_shares, left, out=grid.framed.values)
        summed, left_here = grid.framed.weighted(grid.room), grid.passed.values
        if level == 0:
            torch.addcmul(values, self._mask, summed, value=-0.25, out=left_here)
        else:
            torch.sub(values, summed, alpha=0.25, out=left_here)
        left_there = grid.passed.weighted_seconds(self._grids[level + 1].left)
        between = grid.between(self._error_of(left_there, level + 1))
        if level == 0:
            values.addcmul_(self._mask, between, value=-_OVERCORRECTION)
        else:
            values.sub_(between, alpha=_OVERCORRECTION)
        summed = grid.framed.weighted(grid.room)
        means = torch.sub(values, summed, alpha=0.25, out=summed).add_(left)
        return torch.mul(means, grid.share, out=values)


class _Grid:
    """Buffers for an error, for the residual of the next coarser grid, and for its answer.

    Attributes
    ----------
    weights : Tensor of shape (1, 1, height, width)
        The sum of the weights of each pixel's neighbours: 12, and less at the sides.
    share, minus_four_shares : Tensor of shape (n_images or 1, 1, height, width)
        The reciprocal of a pixel's weight in its equation, 0 where it has none; -4 times that.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        height, width = shape[2:]
        self.left, self.room = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        # Holds sums along one axis; it is shared, for the sake of the cache.
        self.scratch = self.room.new_empty(math.prod(shape[:2]) * (height + 3) * (width + 3))
        self.framed, self.passed = (_Framed(self.room, self.scratch) for _ in range(2))
        self.weights = _weighted(self.room.new_ones(1, 1, height, width)).sub_(4)
        self.set_share(1 / self.weights)
        self._rows = _view(self.scratch, (*shape[:3], width // 2 + 1))

    def set_share(self, share: Tensor) -> None:
        self.share, self.minus_four_shares = share, -4 * share

    def between(self, coarse: Tensor) -> Tensor:
        """Return a coarser grid's values, with their means at the pixels between."""
        for values, out in ((coarse, self._rows), (self._rows.mT, self.room.mT)):
            n_between = out.shape[-2] // 2
            out[..., ::2, :] = values[..., : out.shape[-2] - n_between, :]
            pair = values[..., :n_between, :], values[..., 1 : n_between + 1, :]
            torch.lerp(*pair, 0.5, out=out[..., 1::2, :])
        return self.room


class _Framed:
    """Values with zeros around them, so that sums over neighbours are sums of views."""

    def __init__(self, like: Tensor, scratch: Tensor):
        height, width = like.shape[2:]
        # Where a side is even, the last pixel of the coarser grid lies one beyond it.
        framed = like.new_zeros(*like.shape[:2], height + 3 - height % 2, width + 3 - width % 2)
        self.values = framed[..., 1 : height + 1, 1 : width + 1]
        self.weighted = _Sums(framed[..., : height + 2, : width + 2], 1, scratch)
        self.weighted_seconds = _Sums(framed, 2, scratch)


class _Sums:
    """Sums of pixels and their neighbours, weighted 1, 2, 1 along both axes.

    These weights are 12 times those of ROAD, and 4 for the pixel itself. ``step=2`` returns only
    the sums at every second pixel along both axes.
    """

    def __init__(self, framed: Tensor, step: int, scratch: Tensor):
        self._above, self._middle, self._below = (
            framed[..., i : framed.shape[-2] + i - 2 : step, :] for i in range(3)
        )
        self._rows = rows = _view(scratch, self._above.shape)
        self._left, self._centre, self._right = (
            rows[..., i : framed.shape[-1] + i - 2 : step] for i in range(3)
        )

    def __call__(self, out: Tensor | None = None) -> Tensor:
        torch.add(self._above, self._below, out=self._rows).add_(self._middle, alpha=2)
        return torch.add(self._left, self._right, out=out).add_(self._centre, alpha=2)


def _weighted(values: Tensor, step: int = 1) -> Tensor:
    height, width = values.shape[-2:]
    beyond = [1 + (step - 1) * (1 - side % 2) for side in (height, width)]
    framed = F.pad(values, (1, beyond[1], 1, beyond[0]))
    return _Sums(framed, step, torch.empty_like(framed).flatten())()


def _view(scratch: Tensor, shape: Sequence[int]) -> Tensor:
    return scratch[: math.prod(shape)].view(*shape)
