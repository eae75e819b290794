"""Target layers: their outputs as grids."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sklcam.networks import (
    TargetLayer,
)


def test_layouts_become_one_grid():
    n, k, u, v = 2, 5, 3, 4
    grid = torch.randn(n, k, u, v)
    tokens = torch.cat([torch.randn(n, 2, k), grid.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(TargetLayer("a").to_grid(grid), grid)
    assert torch.equal(TargetLayer("a", "nhwc").to_grid(grid.permute(0, 2, 3, 1)), grid)
    layer = TargetLayer("a", "tokens", grid=(u, v), n_prefix=2)
    assert torch.equal(layer.to_grid(tokens), grid)
    tokens.requires_grad_()
    (gradient,) = torch.autograd.grad(layer.to_grid(tokens).sum(), tokens)
    assert torch.equal(gradient[:, :2], torch.zeros(n, 2, k))
    assert torch.equal(gradient[:, 2:], torch.ones(n, u * v, k))


@pytest.mark.parametrize(
    ("layer", "output", "message"),
    [
        (TargetLayer("a"), torch.zeros(2, 3, 4), r"\(n, K, u, v\).*\(2, 3, 4\)"),
        (TargetLayer("a", "nhwc"), torch.zeros(2, 3), r"\(n, u, v, K\).*\(2, 3\)"),
        (TargetLayer("a", "tokens", (2, 2)), torch.zeros(1, 1, 1, 1), r"\(n, tokens, K\)"),
        (TargetLayer("a", "tokens", (2, 2), 1), torch.zeros(1, 4, 6), r"5 tokens.*got 4"),
        (TargetLayer("a"), (torch.zeros(1, 1, 2, 2),), "got tuple"),
    ],
)
def test_other_axes_are_refused(layer, output, message):
    with pytest.raises(ValueError, match=message):
        layer.to_grid(output)


def test_channels_stand_where_the_layout_has_them():
    assert TargetLayer("a").channel_axis(torch.zeros(2, 5, 3, 4)) == 1
    assert TargetLayer("a", "nhwc").channel_axis(torch.zeros(2, 3, 4, 5)) == 3
    tokens = TargetLayer("a", "tokens", grid=(3, 4))
    assert tokens.channel_axis(torch.zeros(2, 12, 5)) == 2
    moved = TargetLayer("a", reshape=lambda output: output.transpose(1, 2).unflatten(2, (3, 4)))
    assert moved.channel_axis(torch.zeros(2, 12, 5)) == 2
    square = TargetLayer("a", reshape=lambda output: output.unflatten(2, (3, 4)))
    with pytest.raises(ValueError, match=r"12 channels.*cannot be told"):
        square.channel_axis(torch.zeros(2, 12, 12))


def test_positions_are_those_of_the_grid():
    assert TargetLayer("a").n_positions(torch.zeros(2, 5, 3, 4)) == 12
    assert TargetLayer("a", "nhwc").n_positions(torch.zeros(2, 1, 1, 5)) == 1
    tokens = TargetLayer("a", "tokens", grid=(3, 4), n_prefix=2)
    assert tokens.n_positions(torch.zeros(2, 14, 5)) == 12


def test_a_reshape_is_checked():
    output = torch.arange(24.0).reshape(2, 12, 1)
    layer = TargetLayer("a", reshape=lambda output: output.reshape(len(output), 2, 3, 2))
    assert torch.equal(layer.to_grid(output), output.reshape(2, 2, 3, 2))
    for reshape in (lambda output: output, tuple):
        with pytest.raises(ValueError, match=r"reshape must turn the output of 'a'"):
            TargetLayer("a", reshape=reshape).to_grid(output)


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "reshape"])
def test_a_grid_has_a_row_for_each_image(layout):
    output = torch.zeros(4, 3, 2, 2)
    options = {"reshape": torch.clone} if layout == "reshape" else {"layout": layout}
    layer = TargetLayer("a", **options)
    assert len(layer.to_grid(output, 4)) == 4
    with pytest.raises(ValueError, match=r"'a' returns 4 rows, .*, for 2 images"):
        layer.to_grid(output, 2)


def test_a_reshape_brings_rows_that_are_not_images_into_order():
    # Views of an image in the batch: the first half are the images.
    layer = TargetLayer("a", reshape=lambda output: output[: len(output) // 2])
    output = torch.arange(24.0).reshape(4, 3, 2, 1)
    assert torch.equal(layer.to_grid(output, 2), output[:2])


def test_the_layer_of_a_network():
    model = nn.Sequential(nn.Sequential(nn.Identity(), nn.ReLU()))
    assert TargetLayer("0.1").of(model) is model[0][1]
    with pytest.raises(AttributeError):
        TargetLayer("0.2").of(model)
