"""The images in which each channel is the strongest, and where in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sklcam.images.frames import Resizing

_AROUND = 1  # cells on each side of the strongest one


class Strongest:
    """Keeps, for each channel, the images with its highest activations, one place in each.

    Parameters
    ----------
    n_kept : int
        How many images to keep for each channel.
    resize : Resizing
        How images were resized to the network's input.
    """

    def __init__(self, n_kept: int, resize: Resizing):
        self._n_kept, self._resize = n_kept, resize
        self._kept: list[Tensor] = []
        self._grid: tuple[int, int] = (0, 0)
        self._input_size: tuple[int, int] = (0, 0)

    def add(
        self,
        values: Tensor,
        start: int,
        sizes: Sequence[tuple[int, ...]],
        input_size: Sequence[int],
    ) -> None:
        """Add the activations (n_images, n_channels, u, v) of the images from row `start` on."""
        height, width = values.shape[2:]
        self._grid, self._input_size = (height, width), (input_size[0], input_size[1])
        peaks, cells = values.flatten(2).max(dim=2)
        rows = torch.arange(start, start + len(values), device=values.device)
        own = torch.tensor(sizes).to(values.device)
        found = [peaks, cells, *(each[:, None].expand_as(cells) for each in (rows, *own.T))]
        if self._kept:
            found = [torch.cat(pair) for pair in zip(self._kept, found, strict=True)]
        # A stable sort keeps the first of equals, whatever the batches.
        order = found[0].nan_to_num(-torch.inf).argsort(dim=0, descending=True, stable=True)
        self._kept = [each.gather(0, order[: self._n_kept]) for each in found]

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows, activations and boxes of each channel's strongest, the strongest first.

        Returns
        -------
        rows : ndarray of shape (n_channels, n_kept), int64
        activations : ndarray of shape (n_channels, n_kept), float32
        boxes : ndarray of shape (n_channels, n_kept, 4)
            Around the strongest cell and its neighbours, in pixels of the image.
        """
        peaks, cells, rows, heights, widths = (each.T.cpu().numpy() for each in self._kept)
        boxes = np.empty((*cells.shape, 4))
        for size in np.unique(np.stack([heights.ravel(), widths.ravel()], 1), axis=0).tolist():
            here = (heights == size[0]) & (widths == size[1])
            boxes[here] = self._boxes(cells[here], size)
        return rows, peaks.astype(np.float32), boxes

    def _boxes(self, cells: np.ndarray, size: list[int]) -> np.ndarray:
        """Return the boxes (n, 4) around cells of images of one size."""
        seen = self._resize.seen(size, self._input_size)
        inner = [part.stop - part.start for part in seen]
        scaled, *starts = self._resize.place(inner, self._input_size)
        places = np.unravel_index(cells, self._grid)
        corners = []
        for low in (True, False):
            for axis in (1, 0):
                line = places[axis] - _AROUND if low else places[axis] + 1 + _AROUND
                edge = line.clip(0, self._grid[axis]) * self._input_size[axis] / self._grid[axis]
                pixel = (edge + starts[axis]) * inner[axis] / scaled[axis] + seen[axis].start
                corners.append(pixel.clip(0, size[axis]))
        return np.stack(corners, axis=1)
