"""Attention of as many queries as keys that is not within one sequence: refused, as maps of it lie.

What looks alike and is within one sequence keeps its maps.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_attention_seen import IMAGES, LAYER, Block, Vit, by_softmax, every_method, explained
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sklcam import CAMExplainer
from sklcam.networks.attention_origin import OriginRecord

N_TOKENS = 13
REFUSED = "is defined for self-attention, in which .* In {} some are not"


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def swapped(x, i, j):
    """Two tokens in each other's place."""
    order = torch.arange(N_TOKENS)
    order[[i, j]] = order[[j, i]]
    return x[:, :, order]


class Flipped(torch.autograd.Function):
    """Of which a graph has no name that tells."""

    @staticmethod
    def forward(ctx, x):
        return x.flip(2)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.flip(2)


class Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return -x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


MOVED = {
    "rolled keys": lambda q, k, v: attend(q, k.roll(1, dims=2), v),
    "flipped queries": lambda q, k, v: attend(q.flip(2), k, v),
    "flipped by a function of one's own": lambda q, k, v: attend(Flipped.apply(q), k, v),
    "rolled values": lambda q, k, v: attend(q, k, v.roll(1, dims=2)),
    "two patches swapped": lambda q, k, v: attend(q, swapped(k, 5, 9), v),
    "by hand": lambda q, k, v: by_softmax(q, k.roll(1, dims=2), v),
    "one query": lambda q, k, v: attend(q[:, :, :1].expand_as(q), k, v),
    "keys and their mean": lambda q, k, v: attend(q, k + k.mean(dim=2, keepdim=True), v),
    "all in another order": lambda q, k, v: attend(q.flip(2), k.flip(2), v.flip(2)).flip(2),
}


@every_method
@pytest.mark.parametrize("kind", MOVED)
def test_tokens_that_are_moved_or_mixed(name, kind):
    network = Vit(Block(), Block(MOVED[kind]), Block())
    with pytest.raises(ValueError, match=REFUSED.format("Vit")):
        explained(name, network)


class Learned(Block):
    """As many queries as there are tokens, the same for all images."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, N_TOKENS, 8))

    def attention(self, x):
        q, _, _ = self.heads(self.queries.expand(len(x), -1, -1))
        _, k, v = self.heads(x)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))

    def heads(self, x):
        return self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)


class Across(Learned):
    """From one stream of tokens to another."""

    def forward(self, x):
        x, y = x
        q, _, _ = self.heads(self.norm(x))
        _, k, v = self.heads(self.norm(y))
        return x + self.proj(attend(q, k, v).transpose(1, 2).flatten(2)), y


class TwoStreams(Vit):
    """Of an image, and of what another stem makes of it, or of another image."""

    def __init__(self, other):
        super().__init__(Block(), Block(), Block())
        self.across, self.other_patches, self.other = Across(), nn.Conv2d(3, 8, 4, 4), other

    def tokens(self, x, patches):
        x = patches(x).flatten(2).mT
        return torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.places

    def forward(self, x):
        one, two = self.tokens(x, self.patches), self.tokens(self.other(x), self.other_patches)
        one, _ = self.across((one, two))
        return self.head(self.norm(self.blocks(one))[:, 0])


@every_method
@pytest.mark.parametrize("place", [0, 1])
def test_learned_queries(name, place):
    blocks = [Block(), Block(), Block()]
    blocks[place] = Learned()
    with pytest.raises(ValueError, match=REFUSED.format("Vit")):
        explained(name, Vit(*blocks))


@every_method
@pytest.mark.parametrize(
    "other",
    [lambda x: x, lambda x: x.flip(3), torch.rand_like],
    ids=["same", "flipped", "foreign"],
)
def test_two_streams(name, other):
    network = TwoStreams(other)
    with pytest.raises(ValueError, match=REFUSED.format("TwoStreams")):
        explained(name, network)


# Within one sequence, however it is written: keys end up where they were


def repeated(x):
    """A head for two, as a view of one."""
    return x[:, :1, None].expand(-1, -1, 2, -1, -1).flatten(1, 2)


SAME = {
    "rolled all the way": lambda q, k, v: attend(q, k.roll(N_TOKENS, dims=2), v),
    "flipped twice": lambda q, k, v: attend(q, k.flip(2).flip(2), v),
    "in two parts": lambda q, k, v: attend(torch.cat([q[:, :, :1], q[:, :, 1:]], dim=2), k, v),
    "chosen by number": lambda q, k, v: attend(q, swapped(k, 3, 3), v),
    "a function of one's own": lambda q, k, v: attend(Negated.apply(q), -k, v),
    "under no_grad": lambda q, k, v: torch.no_grad()(attend)(q, k, v),
    "detached": lambda q, k, v: attend(q.detach(), k.detach(), v.detach()),
    "queries detached": lambda q, k, v: attend(q.detach(), k, v),
    "checkpoint": lambda q, k, v: checkpoint(attend, q, k, v, use_reentrant=False),
    "reentrant": lambda q, k, v: checkpoint(attend, q, k, v, use_reentrant=True),
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_only_looks_as_if_it_moved_tokens(kind):
    expected = explained("rollout", Vit(Block(), Block(), Block()))
    found = explained("rollout", Vit(Block(), Block(SAME[kind]), Block()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def turned(x):
    """Rotary embedding: halves of the channels, turned by the place."""
    angles = torch.arange(N_TOKENS)[:, None] * torch.tensor([1.0, 0.1])
    first, second = x.chunk(2, dim=-1)
    sin, cos = angles.sin(), angles.cos()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Separate(Block):
    """Norms and projections of their own, and places that values have no part in."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8), self.norm])
        self.parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.where = nn.Parameter(torch.zeros(N_TOKENS, 8))

    def forward(self, x):
        inputs = (x + self.where, x + self.where.flip(0), x)
        q, k, v = (
            part(norm(each)).unflatten(2, (2, 4)).transpose(1, 2)
            for part, norm, each in zip(self.parts, self.norms, inputs, strict=True)
        )
        return x + self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


WITHIN = {
    "rotary": lambda: Block(lambda q, k, v: attend(turned(q), turned(k), v)),
    "normed": lambda: Block(lambda q, k, v: attend(F.normalize(q, dim=-1), k.softmax(dim=-1), v)),
    "a key for two heads": lambda: Block(lambda q, k, v: attend(q, repeated(k), repeated(v))),
    "grouped": lambda: Block(
        lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)
    ),
    "of later tokens": lambda: Block(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(13, 13).triu().bool())
    ),
    "separate": Separate,
}


@every_method
@pytest.mark.parametrize("kind", WITHIN)
def test_within_one_sequence(name, kind):
    maps = explained(name, Vit(WITHIN[kind](), WITHIN[kind](), WITHIN[kind]()))
    assert maps.isfinite().all() and maps.std() > 0


def outside(x):
    """Out of torch, and back."""
    return torch.from_numpy(x.detach().numpy().copy())


class Opaque(Vit):
    def forward(self, x):
        return super().forward(outside(x))


@pytest.mark.parametrize(
    "network",
    [
        Opaque(Block(), Block(), Block()),
        Vit(Block(), Block(lambda q, k, v: attend(outside(q), outside(k), v)), Block()),
    ],
    ids=["images", "queries and keys"],
)
def test_no_graph_leads_to_the_images(network):
    with pytest.raises(ValueError, match=r"some attention has no graph .* by NumPy"):
        explained("rollout", network)


def test_what_leaves_torch_beside_the_attention():
    def attend_and_look(q, k, v):
        assert np.isfinite(k.detach().numpy()).all()
        return MOVED["rolled keys"](q, k, v)

    with pytest.raises(ValueError, match=REFUSED.format("Vit")):
        explained("rollout", Vit(Block(), Block(attend_and_look), Block()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [1, 0.01])
def test_half_precision(dtype, factor):
    """Small weights, whose gradients float16 has few digits for, as well."""
    image = IMAGES[:1].to(dtype).requires_grad_()
    for block, is_of_one in ((Separate(), True), (Block(MOVED["rolled keys"]), False)):
        network = Vit(Block(), block, Block())
        with torch.no_grad():
            for part in block.modules():
                if isinstance(part, nn.Linear):
                    part.weight *= factor
                    part.bias *= factor
        with OriginRecord() as record:
            network.to(dtype)(image)
        assert record.is_of_one_sequence(image) is is_of_one


def test_weights_of_zero_tell_nothing_and_are_refused_nothing():
    network = Vit(Block(), Block(), Block())
    with torch.no_grad():
        network.blocks[1].qkv.weight[:16] = 0
        network.blocks[1].qkv.bias[:16] = 0
    maps = explained("rollout", network)
    assert maps.std() > 0


@every_method
def test_a_network_is_looked_at_once(name, monkeypatch):
    looks = []
    look = OriginRecord.is_of_one_sequence
    monkeypatch.setattr(
        OriginRecord, "is_of_one_sequence", lambda *args: looks.append(1) or look(*args)
    )
    network = Vit(Block(), Block(), Block()).eval()
    explainer = CAMExplainer(network, name, LAYER, verbose=0).fit(IMAGES)
    np.testing.assert_array_equal(explainer.explain(IMAGES), explainer.explain(IMAGES))
    assert len(looks) == 1
