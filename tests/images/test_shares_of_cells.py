"""Masks at the grid of a layer: shares of areas, worked by hand and by repeating pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.testing import assert_allclose

from sklcam.images import Resizing
from sklcam.images.frames import shares_of_cells


def test_stretched_shares_are_means_over_repeated_pixels():
    mask = torch.from_numpy(np.random.default_rng(0).random((2, 6, 10)))
    covered, seen = shares_of_cells(mask, (4, 3), (224, 160))
    # Each pixel becomes 2 x 3, of which cells hold whole ones.
    repeated = mask.numpy().repeat(2, axis=1).repeat(3, axis=2)
    expected = repeated.reshape(2, 4, 3, 3, 10).mean((2, 4))
    assert_allclose(covered, expected, atol=1e-12)
    assert_allclose(seen, 1)


def test_what_a_centre_crop_cuts_off_is_in_no_cell():
    mask = torch.zeros(4, 8)
    mask[:, :2] = 1  # cut off
    mask[:2, 2:4] = 1  # a quarter of what is left
    covered, seen = shares_of_cells(mask, (2, 2), (8, 8), resize="center_crop")
    assert covered.tolist() == [[1, 0], [0, 0]] and seen.tolist() == [[1, 1], [1, 1]]


def test_what_is_filled_up_is_not_seen():
    # An image of 2 x 4 in an input of 8 x 8 is scaled by two: it lies under two rows of cells.
    covered, seen = shares_of_cells(torch.ones(2, 4), (4, 2), (8, 8), resize=Resizing("pad"))
    assert seen.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    assert covered.tolist() == seen.tolist()
