"""Views of volumes: against flips, rotations and crops by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sklcam.training import ViewSampler, Warp

SIZE = (6, 8, 10)


def volumes(n: int = 2, channels: int = 2, size: tuple[int, ...] = SIZE) -> torch.Tensor:
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0))


def test_the_identity_changes_nothing():
    X, warp = volumes(), Warp.identity(2, 3)
    assert torch.equal(warp(X), X) and torch.equal(warp(X[:, 0]), X[:, 0])
    assert warp.valid(SIZE).all()


@pytest.mark.parametrize("flips", [*itertools.product([False, True], repeat=3)], ids=str)
def test_flips_are_exact(flips):
    X = volumes()
    whole = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]] * 2)
    warp = Warp.from_crops(whole, flip=torch.tensor([flips, [False] * 3]))
    # Along x, the last axis, then y and z.
    axes = [axis for axis, flipped in zip((-1, -2, -3), flips, strict=True) if flipped]
    assert torch.equal(warp(X)[0], X[0].flip(axes)) and torch.equal(warp(X)[1], X[1])


@pytest.mark.parametrize("degrees", [90, 180, -90, 270])
def test_quarter_turns_are_those_of_rot90_in_each_slice(degrees):
    X = volumes(size=(4, 8, 8))
    warp = Warp.from_rotations(torch.full((2,), float(degrees)), (4, 8, 8))
    expected = np.rot90(X.numpy(), degrees // 90, axes=(-2, -1))
    np.testing.assert_array_equal(warp(X), expected)


def test_a_turn_is_that_of_each_slice():
    X = volumes()
    turned = Warp.from_rotations(torch.tensor([20.0, -35.0]), SIZE)(X)
    flat = Warp.from_rotations(torch.tensor([20.0, -35.0]), SIZE[1:])
    for i in range(SIZE[0]):
        torch.testing.assert_close(turned[:, :, i], flat(X[:, :, i]), atol=1e-5, rtol=0)


def test_a_crop_of_whole_voxels_is_enlarged_as_by_interpolate():
    X = volumes(1)
    # x 2 to 7 of 10, y 4 to 8 of 8, z 0 to 3 of 6.
    box = torch.tensor([[0.2, 0.5, 0.0, 0.5, 0.5, 0.5]])
    warp = Warp.from_crops(box, flip=torch.zeros(1, 3, dtype=torch.bool))
    part = X[:, :, 0:3, 4:8, 2:7]
    expected = F.interpolate(part, size=SIZE, mode="trilinear", align_corners=False)
    # At the borders of the crop, the view sees voxels beyond it, and interpolation none.
    inner = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(warp(X)[inner], expected[inner], atol=1e-5, rtol=0)


def test_shifts_by_whole_voxels_are_exact():
    X = volumes(1)
    warp = Warp.from_shifts(torch.tensor([[0.1, -0.25, 0.5]]))  # 1 right, 2 up, 3 back
    expected = torch.zeros_like(X)
    expected[:, :, 3:, :-2, 1:] = X[:, :, :-3, 2:, :-1]
    valid = warp.valid(SIZE)
    assert valid.sum() == 3 * 6 * 9
    assert torch.equal(torch.where(valid[:, None], warp(X), 0.0), expected)


def test_views_of_views_and_back():
    X = volumes(2)
    first = Warp.from_crops(
        torch.tensor([[0.1, 0.2, 0.0, 0.8, 0.7, 0.9]] * 2), torch.tensor([[True, False, True]] * 2)
    )
    second = Warp.from_rotations(torch.tensor([30.0, 10.0]), SIZE)
    both = first.then(second)
    stacked = torch.eye(4).repeat(2, 3, 1, 1)
    stacked[:, 0, :3], stacked[:, 1, :3] = first.matrix, second.matrix
    torch.testing.assert_close(both.matrix, (stacked[:, 0] @ stacked[:, 1])[:, :3])
    inverse = torch.linalg.inv(torch.cat([both.matrix, torch.eye(4)[None, 3:].repeat(2, 1, 1)], 1))
    torch.testing.assert_close(both.inverse().matrix, inverse[:, :3])
    assert both(X).shape == X.shape
    with pytest.raises(ValueError, match="no inverse"):
        Warp(torch.zeros(1, 3, 4)).inverse()


def test_views_are_differentiable():
    X = volumes(1, 1, (3, 4, 5)).double().requires_grad_()
    warp = Warp.from_rotations(torch.tensor([25.0], dtype=torch.float64), (3, 4, 5))
    torch.autograd.gradcheck(warp, X)


def test_drawn_crops_lie_within_and_have_the_shares_asked_for():
    sampler = ViewSampler(scale=(0.2, 0.6), ratio=(0.8, 1.25), flip=0.5)
    warp = sampler(2000, size=SIZE, generator=torch.Generator().manual_seed(0))
    linear, shift = warp.matrix[:, :, :3], warp.matrix[:, :, 3]
    lengths = torch.diagonal(linear, dim1=1, dim2=2).abs()
    assert ((shift.abs() + lengths) <= 1 + 1e-6).all()
    share = lengths.prod(1)
    assert share.min() >= 0.2 - 1e-6 and share.max() <= 0.6 + 1e-6
    assert abs(share.mean() - 0.4) < 0.01  # uniform
    flat = lengths[:, 0] / lengths[:, 1]
    deep = lengths[:, 2] / (lengths[:, 0] * lengths[:, 1]).sqrt()
    for ratio in (flat, deep):
        assert ratio.min() >= 0.8 - 1e-5 and ratio.max() <= 1.25 + 1e-5
        assert abs(ratio.log().mean()) < 0.01
    flipped = (torch.diagonal(linear, dim1=1, dim2=2) < 0).double()
    assert (abs(flipped.mean(0) - 0.5) < 0.04).all()
    assert (abs(torch.corrcoef(flipped.T) - torch.eye(3)) < 0.06).all()  # each by itself


def test_an_image_draws_the_same_view_in_any_batch():
    sampler = ViewSampler(rotation=20, translation=0.1)
    both = sampler(5, size=SIZE, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    parts = [sampler(n, size=SIZE, generator=generator).matrix for n in (2, 3)]
    assert torch.equal(both.matrix, torch.cat(parts))
    assert not torch.equal(both.matrix[0], both.matrix[1])
    assert torch.equal(both.matrix[:, 2, :2], torch.zeros(5, 2))  # slices keep their places


def test_what_volumes_do_not_take_is_refused():
    with pytest.raises(ValueError, match="changes colours, which volumes do not have"):
        ViewSampler(brightness=0.1)(2, size=SIZE)
    warp = Warp.identity(2, 3)
    with pytest.raises(ValueError, match="channels, depth, height, width"):
        warp(torch.rand(2, 8, 8))
    with pytest.raises(ValueError, match="size must have 3 sides"):
        warp.valid((8, 8))
    with pytest.raises(ValueError, match="with 3 axes"):
        warp.then(Warp.identity(2))
    with pytest.raises(ValueError, match=r"\(n_images, 3\) for boxes of volumes"):
        Warp.from_crops(torch.rand(2, 6), flip=torch.tensor([True, False]))
