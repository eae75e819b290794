"""The area under the ROC curve of many channels for many masks, in constant memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# A float32 is ordered by its exponent and then by its mantissa, of which the first four bits are
# kept: 16 bins for each octave. Octaves from 2**-24 to 2**16 have bins; smaller values count as 0.
_KEPT_BITS, _LEAST, _OCTAVES = 4, -24, 40
_SIDE = _OCTAVES << _KEPT_BITS
_N_BINS = 2 * _SIDE + 1
# Shares of cells are counted in whole parts: a sum in float32 stops growing at 2**24, which a dead
# channel reaches after a hundred thousand images.
_PARTS = 1 << 20


class StreamedAUROC:
    """Counts values inside and outside of masks, batch after batch.

    Values fall into fixed bins, so neither the order of the images nor their batches matter. Two
    values in one bin count as ties. 0 has a bin of its own, as its ties are true ones.

    Parameters
    ----------
    n_channels, n_concepts : int
    device : torch.device
    """

    def __init__(self, n_channels: int, n_concepts: int, device: torch.device):
        self._shape = (n_channels, _N_BINS)
        # A row for what each concept covers, and a last row for everything.
        n_counts = n_channels * _N_BINS
        self._counts = torch.zeros(n_concepts + 1, n_counts, dtype=torch.int64, device=device)
        self._is_wrong = torch.zeros(n_channels, dtype=torch.bool, device=device)

    def add(self, values: Tensor, covered: Tensor, seen: Tensor) -> None:
        """Count the values of a batch.

        Parameters
        ----------
        values : Tensor of shape (n_images, n_channels, u, v)
        covered : Tensor of shape (n_images, n_concepts, u, v), in [0, 1]
            The share of each cell that a concept covers.
        seen : Tensor of shape (n_images, u, v), in [0, 1]
            The share of each cell that lies over the image.
        """
        self._is_wrong |= ~values.isfinite().all(dim=3).all(dim=2).all(dim=0)
        places = torch.arange(self._shape[0], device=values.device)[:, None, None] * _N_BINS
        places = (bins_of(values) + places).flatten()
        shares = torch.cat([covered, seen[:, None]], dim=1)
        parts = (shares * _PARTS).round().long().unbind(1)
        for row, weights in zip(self._counts, parts, strict=True):
            row.scatter_add_(0, places, weights[:, None].expand(values.shape).flatten())

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the areas, and the largest error that the bins can have caused in each.

        Returns
        -------
        areas, uncertainty : ndarray of shape (n_channels, n_concepts), float64
            NaN for channels with values that are not finite, and for concepts that are nowhere or
            everywhere.
        """
        counts = self._counts.cpu().numpy().reshape(-1, *self._shape)
        everything = counts[-1].astype(np.float64)
        found = [_area(one.astype(np.float64), everything) for one in counts[:-1]]
        areas, uncertainty = (
            np.stack(each, axis=1) if each else np.empty((self._shape[0], 0))
            for each in ([one[i] for one in found] for i in range(2))
        )
        areas[self._is_wrong.cpu().numpy()] = np.nan
        return areas, uncertainty


def bins_of(values: Tensor) -> Tensor:
    """Return the bin of each value, int64; bins are ordered as values are."""
    bits = values.float().abs().view(torch.int32) >> (23 - _KEPT_BITS)
    first = (127 + _LEAST) << _KEPT_BITS
    size = (bits - first + 1).clamp(0, _SIDE)
    return torch.where(values < 0, _SIDE - size, _SIDE + size).long()


def _area(inside: np.ndarray, everything: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the area under the ROC curve of each channel from its bins, and half of the ties."""
    outside = np.maximum(everything - inside, 0)
    pairs = inside.sum(axis=1) * outside.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ties = inside * outside / np.where(pairs > 0, pairs, np.nan)[:, None]
        below = np.cumsum(outside, axis=1) - outside
        won = (inside * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)
    area = won + ties.sum(axis=1) / 2
    ties[:, _SIDE] = 0
    return area, ties.sum(axis=1) / 2
