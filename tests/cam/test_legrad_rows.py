"""LeGrad's graph, which is of the first tokens alone where scores are made of no others."""

from __future__ import annotations

import weakref

import pytest
import torch
from test_attention import (
    IMAGES,
    Vit,
    assert_by_hand,
    layer_of,
    legrad_by_hand,
    raw,
    relevance_by_hand,
    vit,
)
from torch import nn

from sklcam.cam import AttentionRelevance, LeGrad, RecordedPass


def legrad_of(network, images=IMAGES):
    labels = network(images).argmax(dim=1, keepdim=True).tolist()
    return raw(LeGrad(), network, images, torch.tensor(labels)), labels


class Counting(nn.Module):
    """Whose answer depends on how often it was asked."""

    n_calls = 0

    def forward(self, x):
        self.n_calls += 1
        return x * self.n_calls


class AcrossTokens(nn.Module):
    def forward(self, x):
        return x + x.roll(1, dims=1) / 2


def test_a_module_that_changes_from_pass_to_pass():
    network = vit()
    for block in network.blocks:
        block.mlp.append(Counting())
    maps, _ = legrad_of(network)
    for block in network.blocks:  # as it was in the second pass, which was explained
        block.mlp[-1] = nn.Identity()
        block.mlp[2].weight.data *= 2
        block.mlp[2].bias.data *= 2
    labels = network(IMAGES).argmax(dim=1, keepdim=True).tolist()
    assert_by_hand(maps, network, legrad_by_hand, labels)


@pytest.mark.parametrize("place", ["block", "last block", "mlp", "norm"])
def test_hooks_of_users_change_what_layers_return(place):
    network = vit()
    part = {
        "block": network.blocks[1],
        "last block": network.blocks[2],
        "mlp": network.blocks[0].mlp[0],
        "norm": network.norm,
    }[place]
    part.register_forward_hook(lambda module, inputs, output: output * 2 + output.tanh())
    maps, labels = legrad_of(network)
    assert_by_hand(maps, network, legrad_by_hand, labels)


@pytest.mark.parametrize("place", ["mlp", "head"])
def test_layers_that_mix_tokens_behind_the_attention(place):
    network = vit()
    if place == "mlp":
        network.blocks[1].mlp.append(AcrossTokens())
    else:
        network.norm = nn.Sequential(network.norm, AcrossTokens())
    for _ in range(2):  # the second time it is known
        maps, labels = legrad_of(network)
        assert_by_hand(maps, network, legrad_by_hand, labels)


@pytest.mark.parametrize("pool", [torch.amax, torch.mean])
def test_heads_that_read_all_tokens(pool):
    class Pooling(Vit):
        def tail(self, tokens):
            return self.head(pool(self.norm(tokens), dim=1))

    network = Pooling().double().eval()
    maps, labels = legrad_of(network)
    assert_by_hand(maps, network, legrad_by_hand, labels)


def test_a_head_that_looks_at_other_tokens_without_a_gradient():
    class Looking(Vit):
        def tail(self, tokens):
            tokens = self.norm(tokens)
            return self.head(tokens[:, 0] * tokens.detach()[:, 1:].mean(dim=1))

    network = Looking().double().eval()
    maps, labels = legrad_of(network)
    assert_by_hand(maps, network, legrad_by_hand, labels)


def test_a_head_that_knows_how_many_tokens_there_are():
    class Knowing(Vit):
        def tail(self, tokens):
            assert tokens.shape[1] == 13
            return super().tail(tokens)

    network = Knowing().double().eval()
    maps, labels = legrad_of(network)
    assert_by_hand(maps, network, legrad_by_hand, labels)


def test_outputs_of_layers_are_not_kept():
    network, made = vit(), []
    for block in network.blocks[:-1]:
        for part in (block, block.mlp, *block.mlp):
            part.register_forward_hook(lambda *run: made.append(weakref.ref(run[-1])))
    method = LeGrad()
    recorded = RecordedPass(
        network, [layer_of(network)], IMAGES, graph=method.graph, rule=method.rule()
    )
    assert len(made) == 10 and not any(each() is not None for each in made)
    labels = recorded.output.argmax(dim=1, keepdim=True).tolist()
    assert_by_hand(method.explain(recorded)[0].detach(), vit(), legrad_by_hand, labels)


class LookingBack(Vit):
    """The head looks at an earlier layer as well, without a gradient."""

    def forward(self, x):
        x = self.tokens(x)
        self.outputs = [x := block(x) for block in self.blocks]
        return self.tail(x * self.factors())

    def factors(self):
        return self.outputs[0][:, :1].detach().tanh()


def test_a_head_that_looks_at_an_earlier_layer_without_a_gradient():
    network = LookingBack().double().eval()
    maps, ((label,),) = legrad_of(network, IMAGES[:1])
    network(IMAGES[:1])
    factors, tail = network.factors(), network.tail
    network.tail = lambda tokens: tail(tokens * factors)
    assert_by_hand(maps, network, legrad_by_hand, [[label]], IMAGES[:1])


class PastTheBlocks(Vit):
    """The sums around attention are the network's own, and in no module."""

    def forward(self, x):
        x = self.tokens(x)
        for block in self.blocks:
            x = x + block.attention(block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        return self.tail(x)


def test_legrad_needs_a_module_for_each_layer():
    network = PastTheBlocks().double().eval()
    with pytest.raises(ValueError, match="each layer must be a module"):
        raw(LeGrad(), network)
    labels = network(IMAGES).argmax(dim=1, keepdim=True).tolist()
    maps = raw(AttentionRelevance(), network)
    assert_by_hand(maps, vit(), relevance_by_hand, labels)
