"""Attention in ways that are not known, or side by side: refused, and never left out in silence."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from sklcam import CAMExplainer
from sklcam.networks import TargetLayer
from sklcam.networks.attention import AttentionRecord, attention_weights

every_method = pytest.mark.parametrize("name", ["attentionrelevance", "legrad", "rollout"])
IMAGES = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
LAYER = TargetLayer("blocks.2.norm", layout="tokens", grid=(3, 4), n_prefix=1)


def by_softmax(q, k, v):
    return torch.softmax(q @ k.mT, dim=-1) @ v


def by_exponentials(q, k, v):
    weights = (q @ k.mT).exp()
    return weights / weights.sum(dim=-1, keepdim=True) @ v


def by_products(q, k, v):
    return ((q @ k.mT).softmax(dim=-1)[..., None] * v[:, :, None]).sum(dim=3)


def by_lists(q, k, v):
    return torch.einsum("nhij,nhjd->nhid", [torch.softmax(q @ k.mT, dim=-1), v])


def by_keys_first(q, k, v):
    return torch.einsum("nhji,nhjd->nhid", torch.softmax(k @ q.mT, dim=2), v)


def over_queries(q, k, v):
    return (q @ k.mT).softmax(dim=-2) @ v


def with_a_sink(q, k, v):
    products = q @ k.mT
    products = torch.cat([products, torch.zeros_like(products[..., :1])], dim=-1)
    return products.softmax(dim=-1)[..., :-1] @ v


def scaled_afterwards(q, k, v):
    return ((q @ k.mT).softmax(dim=-1) * 0.9) @ v


def turned(q, k, v):
    return (v.mT @ (q @ k.mT).softmax(dim=-1).mT).mT


def of_two_at_once(q, k, v):
    first, second = ((q * sign @ k.mT).softmax(dim=-1) for sign in (1, -1))
    return first @ v - second @ v


def by_a_kernel(q, k, v):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


def by_an_operator(q, k, v):
    return torch.ops.aten.scaled_dot_product_attention.default(q, k, v)


class Block(nn.Module):
    def __init__(self, attend=None):
        super().__init__()
        self.attend = attend or (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0))
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def attention(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x):
        return x + self.attention(self.norm(x))


class Parallel(Block):
    def __init__(self):
        super().__init__()
        self.other = Block()

    def forward(self, x):
        normed = self.norm(x)
        return x + self.attention(normed) + self.other.attention(normed)


class Vit(nn.Module):
    def __init__(self, *blocks, seed=0):
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.Sequential(*blocks)
        self.first, self.places = (
            nn.Parameter(torch.zeros(1, 1, 8)),
            nn.Parameter(torch.zeros(13, 8)),
        )
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = Vit(Block(), Block(), Block())
        self.two = Vit(Block(), Block(), Block(), seed=1)

    def forward(self, x):
        return self.one(x) + self.two(x)


class Checkpointed(Block):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=True)


def explained(name, network, layer=LAYER, images=IMAGES):
    explainer = CAMExplainer(network.eval(), name, layer, verbose=0).fit(images)
    target = torch.zeros(len(images), dtype=torch.int64)
    return explainer.explain_inputs(images, target, normalize=False)[0]


@every_method
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(
    "attend",
    [
        by_exponentials,
        by_products,
        by_lists,
        by_keys_first,
        over_queries,
        with_a_sink,
        scaled_afterwards,
        turned,
    ],
    ids=lambda attend: attend.__name__,
)
def test_attention_that_is_not_seen_is_not_left_out(name, place, attend):
    blocks = [Block(), Block(), Block()]
    blocks[place] = Block(attend)
    with pytest.raises(ValueError, match="Vit computes some of it in an unknown way"):
        explained(name, Vit(*blocks))


@every_method
@pytest.mark.parametrize("attend", [by_a_kernel, by_an_operator], ids=lambda each: each.__name__)
def test_operators_of_attention_are_named(name, attend):
    with pytest.raises(ValueError, match=r"Vit computes some of it by aten\._?scaled_dot_product"):
        explained(name, Vit(Block(), Block(attend), Block()))


def test_flex_attention_is_named():
    """It compiles itself, and is a higher-order operator; no other is given to modes so."""
    network = Vit(Block(), Block(flex_attention), Block())
    with pytest.raises(
        ValueError, match="Vit computes some of it by flex_attention, which does not"
    ):
        explained("rollout", network)


@every_method
def test_attention_before_the_class_token_joins(name):
    """ConViT's first layers gate a softmax of places, and see the patches alone."""
    options = {"img_size": 64, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 3}
    network = timm.create_model("convit_tiny", local_up_to_layer=1, **options)
    with pytest.raises(ValueError, match="ConVit computes some of it in an unknown way"):
        explained(name, network, "auto", torch.rand(2, 3, 64, 64))


@every_method
def test_a_softmax_and_a_product_are_seen(name):
    expected = explained(name, Vit(Block(), Block(), Block()))
    found = explained(name, Vit(Block(), Block(by_softmax), Block()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_two_softmaxes_before_the_first_product():
    q, k, v = torch.rand(3, 1, 2, 5, 4)
    with AttentionRecord() as record:
        of_two_at_once(q, k, v)
    first, second = record.weights
    torch.testing.assert_close(first, (q @ k.mT).softmax(dim=-1))
    torch.testing.assert_close(second, (-q @ k.mT).softmax(dim=-1))
    assert not record.unread


@every_method
@pytest.mark.parametrize("where", ["one", "two"])
def test_networks_side_by_side(name, where):
    layer = TargetLayer(f"{where}.blocks.2.norm", layout="tokens", grid=(3, 4), n_prefix=1)
    with pytest.raises(ValueError, match="in Ensemble some run in parallel"):
        explained(name, Ensemble(), layer)


@every_method
def test_attention_side_by_side_in_a_block(name):
    with pytest.raises(ValueError, match="in Vit some run in parallel"):
        explained(name, Vit(Block(), Parallel(), Block()))


@every_method
def test_a_callable_that_knows_how_many_images_there_are(name):
    network = Vit(Block(), Block(), Block()).eval()
    explainer = CAMExplainer(network, name, LAYER, verbose=0).fit(IMAGES)
    labels = torch.tensor([2, 1])
    maps = explainer.explain(IMAGES, target=lambda output: output[torch.arange(2), labels])
    np.testing.assert_array_equal(maps, explainer.explain(IMAGES, target=labels.numpy()))


@every_method
def test_the_first_call_leaves_random_states_and_modes(name):
    network = Vit(Block(), Block(), Block()).train()
    explainer = CAMExplainer(network, name, LAYER, verbose=0).fit(IMAGES)
    n_passes, state = [], torch.get_rng_state()
    handle = network.register_forward_hook(lambda part, inputs, output: n_passes.append(1))
    for _ in range(2):
        explainer.explain(IMAGES)
        assert network.training and all(each.grad is None for each in network.parameters())
        assert torch.equal(torch.get_rng_state(), state)
    handle.remove()
    # Each looks once at one image more.
    assert len(n_passes) == {"attentionrelevance": 3, "legrad": 5, "rollout": 3}[name]


class Kernels(TorchDispatchMode):
    """Counts the passes of one operation."""

    def __init__(self, name):
        super().__init__()
        self.name, self.n_runs = name, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n_runs += self.name in str(func)
        return func(*args, **kwargs or {})


def test_legrad_leaves_attention_to_the_fused_kernel():
    explainer = CAMExplainer(Vit(Block(), Block(), Block()).eval(), "legrad", LAYER, verbose=0)
    explainer.fit(IMAGES).explain(IMAGES)  # the first call looks at the weights of one image
    for name, n_runs in {"legrad": 3, "attentionrelevance": 0}.items():
        with Kernels("scaled_dot_product") as counted:
            explainer.explain(IMAGES, method=name)
        assert counted.n_runs == n_runs


def test_sums_that_begin_a_graph_of_their_own():
    q, k, v = torch.randn(3, 2, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    with AttentionRecord(layerwise=True) as record:
        made = F.scaled_dot_product_attention(q.requires_grad_(), k, v)
        by_hand = torch.softmax(q @ k.mT, dim=-1) @ v
        with torch.no_grad():
            F.scaled_dot_product_attention(q, k, v)
    assert not record.weights and record.shapes == [(2, 2, 4, 4)] * 3
    assert all(each.is_leaf and each.requires_grad for each in (made, by_hand))
    assert record.sums[0][0] is made and record.sums[1][0] is by_hand
    torch.testing.assert_close(made, torch.softmax(q @ k.mT / 8**0.5, dim=-1) @ v)
    assert not record.is_differentiable


@pytest.mark.parametrize("name", ["attentionrelevance", "legrad"])
def test_attention_without_a_graph(name):
    network = Vit(Checkpointed(), Block(), Block())
    with pytest.raises(
        ValueError, match=r"some of the attention in Vit has no graph\. The forward may end"
    ):
        explained(name, network)


@pytest.mark.parametrize("is_bool", [True, False], ids=["bool", "float"])
def test_queries_all_of_whose_keys_are_masked(is_bool):
    """As torch's own function has them: they attend to nothing, and have no gradient."""
    query, key, value = torch.rand(3, 1, 2, 5, 4, requires_grad=True)
    mask = torch.ones(5, 5, dtype=torch.bool).tril(-1)  # the first sees none
    given = mask if is_bool else torch.zeros(5, 5).masked_fill(~mask, -torch.inf)
    weights, values = attention_weights(query, key, value, given)
    expected = F.scaled_dot_product_attention(query, key, value, given)
    torch.testing.assert_close(weights @ values, expected)
    found, own = (
        torch.autograd.grad(each.square().sum(), query)[0] for each in (weights @ values, expected)
    )
    torch.testing.assert_close(found, own)


@pytest.mark.parametrize("name", ["attentionrelevance", "legrad"])
def test_gradients_that_float16_has_no_numbers_for(name):
    network = Vit(Block(), Block(), Block())
    with torch.no_grad():
        network.head.weight.mul_(1e-5)
    expected = explained(name, network).numpy()
    found = explained(name, copy.deepcopy(network).half(), images=IMAGES.half()).numpy()
    np.testing.assert_allclose(found, expected, atol=0.01 * expected.max())
