"""A graph of the first rows has the gradients of one of all rows, or says that it has not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklcam.networks.first_rows import FirstRows

N_ROWS, N_ALL, WIDTH = 2, 6, 8


def weights(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return nn.Parameter(torch.randn(*shape, generator=generator).double() / 2)


class Double(torch.autograd.Function):
    """Which no mode sees."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


@torch.jit.script
def scripted(x):
    return torch.sin(x) * 2


def gated(x):
    gate, up = F.linear(x, weights(16, WIDTH), weights(16)).chunk(2, dim=-1)
    return F.silu(gate) * up


def in_place(x):
    y = x * 2
    y += x
    y[:, 0] += x[:, 1] * x[:, 0]
    return F.relu(y, inplace=True) + y


def written_through_a_view(x):
    y = F.linear(x, weights(WIDTH, WIDTH))
    y.transpose(1, 2)[:, :3].mul_(3)
    return y


def written_without_a_graph(x):
    y = x + 1
    with torch.no_grad():
        y.mul_(0.5)
    return y * y


def by_heads(x):
    heads = x.reshape(3, N_ALL, 2, 4).transpose(1, 2).permute(0, 2, 1, 3)
    return F.layer_norm(heads.contiguous().flatten(2), (WIDTH,))


def by_names(x):
    x = F.linear(input=x, weight=weights(WIDTH, WIDTH)) + F.linear(
        x, bias=weights(WIDTH), weight=weights(WIDTH, WIDTH)
    )
    return F.layer_norm(x, normalized_shape=(WIDTH,))


BY_ROW = {
    "a block": lambda x: x + F.gelu(F.linear(F.layer_norm(x, (8,), weights(8)), weights(8, 8))),
    "layer scale": lambda x: x + F.dropout(x.tanh(), 0.5, training=False) * weights(WIDTH),
    "places": lambda x: 1 + (weights(N_ALL, WIDTH) - x) * weights(1, N_ALL, 1) / 3,
    "two axes of norm": lambda x: F.layer_norm(x[..., None], (WIDTH, 1))[..., 0],
    "weights made of rows": lambda x: F.linear(x, x[:, :1].mean(dim=(0, 1)).outer(weights(8))),
    "precision": lambda x: x.float().to(torch.float64),
    "not known": lambda x: x.exp().cumsum(dim=2),
    "not seen": lambda x: scripted(Double.apply(x)),
    **{each.__name__: each for each in (gated, by_heads, by_names)},
    **{each.__name__: each for each in (in_place, written_through_a_view, written_without_a_graph)},
}
ACROSS_ROWS = {
    "softmax": lambda x: x.softmax(dim=1) @ weights(WIDTH, WIDTH),
    "norm": lambda x: F.layer_norm(x, (N_ALL, WIDTH)),
    "linear": lambda x: F.linear(x.transpose(1, 2), weights(N_ALL, N_ALL)).transpose(1, 2),
    "rolled": lambda x: F.gelu(x).roll(1, dims=1) + x,
    "turned": lambda x: x + x.flip(1) * 2,
    "merged": lambda x: x.reshape(3, WIDTH, N_ALL).transpose(1, 2) + x,
    "bytes": lambda x: x + x.mean(dim=1, keepdim=True),
    "not seen": lambda x: torch.jit.script(nn.Softmax(dim=1))(x),
    "sums": lambda x: x * x.sum(dim=1, keepdim=True),
}


def run(function, *, n_read, axis=1):
    """Return output and gradient of both ways, and whether other rows are missed."""
    rows = FirstRows(N_ROWS)
    values = torch.randn(3, N_ALL, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    whole = values.clone().requires_grad_()
    first, tokens = rows.begin(values.clone(), axis=1)
    expected, direction = function(whole), weights(3, n_read, WIDTH)
    with rows:
        output = function(tokens)
        score = (output[:, :n_read] * direction).sum()
    (gradient,) = torch.autograd.grad(score, first)
    (plain,) = torch.autograd.grad((expected[:, :n_read] * direction).sum(), whole)
    return output, expected, gradient, plain, rows.miss_others()


@pytest.mark.parametrize("name", BY_ROW)
def test_rows_that_are_treated_each_by_itself(name):
    output, expected, gradient, plain, misses = run(BY_ROW[name], n_read=N_ROWS)
    assert torch.equal(output, expected)
    assert not misses and not plain[:, N_ROWS:].any() and plain.any()
    torch.testing.assert_close(gradient, plain[:, :N_ROWS], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACROSS_ROWS)
def test_gradients_of_other_rows_are_not_missed_in_silence(name):
    output, expected, _, plain, misses = run(ACROSS_ROWS[name], n_read=N_ROWS)
    assert torch.equal(output, expected)
    assert plain[:, N_ROWS:].any() and misses


@pytest.mark.parametrize("name", ["a block", "layer scale", "not seen"])
def test_reading_other_rows(name):
    assert run(BY_ROW[name], n_read=N_ROWS + 1)[-1]


def test_what_follows_is_of_the_first_rows():
    rows, width = FirstRows(1), 64
    linear = nn.Linear(width, width)
    _, tokens = rows.begin(torch.rand(2, 50, width), axis=1)
    with rows:
        hidden = F.gelu(linear(tokens))
        score = rows.of(hidden).sum()
    saved = []
    level = [score.grad_fn]
    while level:
        node = level.pop()
        saved += [
            getattr(node, each)
            for each in dir(node)
            if each.startswith("_saved_") and each != "_saved_tensors"
        ]
        level += [each for each, _ in node.next_functions if each is not None]
    assert not any(isinstance(each, torch.Tensor) and 50 in each.shape for each in saved)


def test_no_gradients_are_asked_for():
    rows = FirstRows(1)
    _, tokens = rows.begin(torch.rand(2, 5, 3), axis=1)
    with rows, torch.no_grad():
        output = F.gelu(tokens)
    assert not output.requires_grad and not rows.miss_others()
