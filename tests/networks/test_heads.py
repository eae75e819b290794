"""Heads, traced: what scores lose without a channel, against running each head without it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklcam.networks import heads
from sklcam.networks.heads import trace_head

N, K = 3, 5


def grids(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def linear(n_in: int = K, n_out: int = 4) -> nn.Linear:
    torch.manual_seed(n_in + n_out)
    return nn.Linear(n_in, n_out).double()


@torch.no_grad()
def brute_force(head, activations, axis=1):
    scores = head(activations.clone())
    falls = []
    for k in range(activations.shape[axis]):
        ablated = activations.clone()
        ablated.movedim(axis, 1)[:, k] = 0
        falls.append(scores - head(ablated))
    return torch.stack(falls, dim=2)


def norm(n_channels: int = K) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(n_channels).double().eval()
    with torch.no_grad():
        for tensor in (made.running_mean, made.running_var, made.weight, made.bias):
            tensor.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(1))
    return made


FC, FC10, NORM = linear(), linear(2 * K), norm()
POOL = nn.AdaptiveAvgPool2d(1)
CONVOLUTION = nn.Conv2d(K, K, 1).double()
SKIPPED, ALL = grids(N, K, 3, 4), grids(K * 12, 2)


def gem(x):
    return FC(x.clamp(min=1e-3).pow(3).mean((2, 3)).pow(1 / 3))


def in_place(x):
    pooled = F.relu_(x).mean((2, 3))
    pooled.mul_(2).sub_(pooled.mean(dim=1, keepdim=True))
    return F.hardswish(FC(pooled), inplace=True)


def in_place_below_a_view(x):
    pooled = x.mean((2, 3))
    view = pooled[:, :, None]
    pooled.exp_()
    return FC(view.flatten(1))


AFFINE = {
    "pooling": nn.Sequential(POOL, nn.Flatten(), FC),
    "mean": lambda x: FC(x.mean((2, 3))),
    "mean of a view": lambda x: FC(x.flatten(2).mean(-1)),
    "one average pooling": lambda x: FC(F.avg_pool2d(x, (3, 4)).squeeze(-1).squeeze(-1)),
    "two poolings": lambda x: FC(F.avg_pool2d(x, (1, 2)).mean((-1, -2))),
    "a ReLU before": lambda x: FC(F.relu(x).mean((2, 3))),
    "a ReLU in place": lambda x: FC(F.relu_(x).mean((2, 3))),
    "normalisation before": lambda x: FC(NORM(x).relu().mean((2, 3))),
    "normalisation behind": lambda x: FC(NORM(POOL(x)).flatten(1)),
    "a residual branch": lambda x: FC(F.relu(x + SKIPPED).mean((2, 3))),
    "an own gate": lambda x: FC((x * x.sigmoid()).mean((2, 3))),
    "maxima": lambda x: FC(F.adaptive_max_pool2d(x, 1).flatten(1)),
    "means and maxima": lambda x: FC10(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)),
    "dropout": nn.Sequential(POOL, nn.Flatten(), nn.Dropout(), FC).eval(),
    "channels last": lambda x: FC(x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)),
    "1 x 1 convolution": lambda x: CONVOLUTION(x).mean((2, 3)),
    "all places": lambda x: x.reshape(N, -1) @ ALL + 1,
    "means of channels": lambda x: FC(F.avg_pool3d(x, (3, 1, 1), 1, (1, 0, 0)).mean((2, 3))),
    "rows and channels in one": lambda x: FC(x.flatten(0, 1).mean((1, 2)).reshape(N, K)),
    "no gradient": torch.no_grad()(lambda x: FC(x.detach().mean((2, 3)))),
    "one column": lambda x: FC(x.mean((2, 3))).gather(1, torch.tensor([[0], [2], [1]])),
}
POOLED = {
    "two layers": nn.Sequential(POOL, nn.Flatten(), FC, nn.Hardswish(), linear(4, 3)),
    "layer norm": lambda x: FC(F.layer_norm(x.mean((2, 3)), (K,))),
    "softmax": lambda x: FC(x.mean((2, 3))).softmax(1),
    "generalized mean": gem,
    "a gate": lambda x: FC(x.mean((2, 3)) * x.amax((2, 3)).sigmoid()),
    "in place": in_place,
    "in place, below a view": in_place_below_a_view,
}
NEITHER = {
    "convolutions": lambda x: CONVOLUTION(x).relu().mean((2, 3)),
    "layer norm of places": lambda x: F.layer_norm(x.movedim(1, -1), (K,)).mean((1, 2)),
    "squeeze and excitation": lambda x: (x * x.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)),
    "maxima of channels": lambda x: FC(F.max_pool3d(x, (3, 1, 1), 1, (1, 0, 0)).mean((2, 3))),
    "other numbers": lambda x: FC(x.view(torch.int64).view(x.dtype).mean((2, 3))),
    "softmax of channels": lambda x: FC(x.softmax(1).mean((2, 3))),
    "all places, then a ReLU": lambda x: (x.reshape(N, -1) @ ALL).relu(),
    "a decision": lambda x: FC(x.mean((2, 3))) * (2 if x.sum() > 0 else 1),
    "by NumPy": lambda x: FC(torch.from_numpy(x.numpy()).mean((2, 3))),
    "a factor by NumPy": lambda x: FC(x.mean((2, 3))) * float(x.numpy().sum()),
    "chosen by values": lambda x: FC(x.mean((2, 3)).nonzero()[:N, :1] + x.mean((2, 3))),
    "places and channels": lambda x: FC((x * x.mean((2, 3))[:, :, None, None]).mean((2, 3))),
    "pooled among places": lambda x: (x + x.relu().mean((2, 3), keepdim=True)).reshape(N, -1) @ ALL,
    "by a list": lambda x: FC(x.mean((2, 3)))[:, FC(x.mean((2, 3))).argmax(1).tolist()],
    "random numbers": lambda x: FC(F.dropout(x, 0.5).mean((2, 3))),
    "written into a buffer": lambda x: torch.zeros(N, 4).double().copy_(FC(x.mean((2, 3)))),
    "nothing of the layer": lambda x: FC(SKIPPED.mean((2, 3))),
}


@pytest.mark.parametrize("name", [*AFFINE, *POOLED])
def test_falls_are_those_of_running_the_head_without_each_channel(name):
    head, activations = {**AFFINE, **POOLED}[name], grids(N, K, 3, 4)
    traced = trace_head(head, activations, axis=1)
    assert traced._is_affine == (name in AFFINE)
    expected = brute_force(head, activations)
    assert expected.abs().max() > 1e-3
    for batch_size in (1, 7, 100):
        torch.testing.assert_close(traced.falls(batch_size), expected)
    with torch.no_grad():
        torch.testing.assert_close(traced.scores, head(activations.clone()))


@pytest.mark.parametrize("name", NEITHER)
def test_other_heads_are_left_to_be_run(name):
    assert trace_head(NEITHER[name], grids(N, K, 3, 4), axis=1) is None


def test_channels_that_meet_others_place_by_place():
    head = lambda x: FC((x * x.transpose(1, 2)).mean((2, 3)))  # noqa: E731
    assert trace_head(head, grids(N, K, K, 4), axis=1) is None


@pytest.mark.parametrize(
    ("shape", "axis", "head"),
    [
        ((N, 3, 4, K), 3, lambda x: FC(x.permute(0, 3, 1, 2).mean((2, 3)))),
        ((N, 7, K), 2, lambda x: FC(x[:, 1:].mean(1)).exp()),
        ((N, 7, K), 2, lambda x: FC(F.layer_norm(x[:, 0], (K,)))),
        ((N, 7, K), 2, lambda x: FC(x.transpose(1, 2).mean(-1))),
        ((N, K, 2, 3, 2), 1, lambda x: FC(F.adaptive_avg_pool3d(x, 1).flatten(1)).tanh()),
        ((N, K, 1, 1), 1, lambda x: FC(x.flatten(1)).tanh()),
        ((N, K), 1, lambda x: FC(x.relu()).tanh()),
        ((1, K, 3, 4), 1, lambda x: FC(x.mean((2, 3), keepdim=True).squeeze()[None]).tanh()),
    ],
)
def test_any_layout(shape, axis, head):
    activations = grids(*shape)
    falls = trace_head(head, activations, axis).falls(100)
    torch.testing.assert_close(falls, brute_force(head, activations, axis))


def test_memory_in_channels_last():
    head, activations = AFFINE["pooling"], grids(N, K, 3, 4)
    given = activations.contiguous(memory_format=torch.channels_last)
    falls = trace_head(head, given, axis=1).falls(100)
    torch.testing.assert_close(falls, brute_force(head, activations))


class Turned(torch.autograd.Function):
    """Hands back the negative of the gradient, as adversarial training does."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return -2 * gradient


def test_a_gradient_of_ones_own_changes_nothing():
    def head(x):
        return FC(Turned.apply(x.mean((2, 3))))

    activations = grids(N, K, 3, 4).requires_grad_()
    traced = trace_head(head, activations.detach(), axis=1)
    torch.testing.assert_close(traced.falls(9), brute_force(head, activations.detach()))


def test_what_was_written_to_after_its_use_is_noticed():
    def head(x):
        skipped = SKIPPED.clone()
        scores = FC((x + skipped).mean((2, 3))).tanh()
        skipped.zero_()
        return scores

    assert trace_head(head, grids(N, K, 3, 4), axis=1) is None


def test_views_of_what_is_written_in_place_are_followed():
    def head(x):
        flat = x.flatten(2)
        x.clamp_(min=0)
        return FC(flat.mean(-1))

    activations = grids(N, K, 3, 4)
    traced = trace_head(head, activations, axis=1)
    torch.testing.assert_close(traced.falls(9), brute_force(head, activations))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by", ["autocast", "weights"])
@pytest.mark.parametrize("name", ["pooling", "two layers"])
def test_half_precision_loses_no_digits_of_a_small_difference(name, by, dtype):
    """Each channel's share is far below the spacing of such numbers at the score."""
    head = copy.deepcopy({**AFFINE, **POOLED}[name]).float()
    activations = 1e-3 * grids(N, K, 3, 4).float()
    with torch.no_grad():
        head[-1].bias += 8
    if by == "weights":
        head, activations = head.to(dtype), activations.to(dtype)
    with torch.autocast("cpu", dtype, enabled=by == "autocast"):
        traced = trace_head(head, activations, axis=1)
        assert traced.scores.dtype == dtype
        falls = traced.falls(100)
    assert falls.dtype == torch.float32
    expected = brute_force(copy.deepcopy(head).double(), activations.double())
    error = (falls - expected).abs().amax() / expected.abs().amax()
    assert error < (1e-2 if name == "pooling" else 2e-2)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=by == "autocast"):
        assert not brute_force(head, activations).any()  # as running it would have it


def test_no_more_rows_than_the_batch_size(monkeypatch):
    rows = []
    plain = torch.vmap
    monkeypatch.setattr(
        heads.torch,
        "vmap",
        lambda function, chunk_size: (
            rows.append(chunk_size * N) or plain(function, chunk_size=chunk_size)
        ),
    )
    for batch_size in (N, 7, 100):
        trace_head(POOLED["layer norm"], grids(N, K, 3, 4), axis=1).falls(batch_size)
    assert rows == [N, 2 * N, 33 * N]
