"""Rollout, attention relevance and LeGrad against their equations, on tiny transformers."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import timm
import torch
from small_networks import SmallNet
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer, swin_t
from transformers import ViTConfig, ViTForImageClassification

from sklcam import CAMExplainer
from sklcam.cam import AttentionRelevance, LeGrad, RecordedPass, Rollout, TopK
from sklcam.explain import ExplanationWarning
from sklcam.networks import TargetLayer
from sklcam.networks.attention import AttentionRecord

METHODS = ["attentionrelevance", "legrad", "rollout"]
every_method = pytest.mark.parametrize("name", METHODS)


class Attention(nn.Module):
    """In one of the ways in which networks compute it."""

    def __init__(self, width, way):
        super().__init__()
        self.n_heads, self.way = 2, way
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.weights = None

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.way == "fused":
            result = F.scaled_dot_product_attention(q, k, v)
        else:
            self.weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[3] ** 0.5, dim=-1)
            if self.way == "einsum":
                v = v.permute(3, 0, 2, 1)
                result = torch.einsum("nhij, dnjh -> indh", self.weights, v).permute(1, 3, 0, 2)
            else:
                result = F.dropout(self.weights, 0.3, self.training) @ v
        return self.proj(result.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, way):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.way = Attention(width, way), way
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Patches of an image behind prefix tokens, through blocks; the head reads some tokens."""

    def __init__(self, way="plain", n_prefix=1, read=(0,), n_blocks=3, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, n_prefix, width))
        self.places = nn.Parameter(torch.randn(1, 12, width))
        self.blocks = nn.ModuleList(Block(width, way) for _ in range(n_blocks))
        self.norm, self.head, self.read = nn.LayerNorm(width), nn.Linear(width, 4), read
        for part in self.modules():
            if isinstance(part, nn.Linear):  # attention that is far from uniform
                nn.init.normal_(part.weight, std=0.7)

    def tail(self, tokens):
        return self.head(self.norm(tokens)[:, list(self.read)].mean(dim=1))

    def tokens(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)

    def forward(self, x):
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.tail(x)


GRID = (3, 4)  # of images of 12 x 16 pixels
IMAGES = torch.randn(3, 1, 12, 16, generator=torch.Generator().manual_seed(1)).double()
READ = {
    "class token": {"n_prefix": 1, "read": (0,)},
    "registers": {"n_prefix": 4, "read": (0,)},
    "distilled": {"n_prefix": 2, "read": (0, 1)},
    "mean": {"n_prefix": 0, "read": range(12)},
    "mean beside a class token": {"n_prefix": 1, "read": range(1, 13)},
}


def vit(way="plain", **options) -> Vit:
    return Vit(way, **options).double().eval()


def layer_of(network, name="blocks.2.norm1") -> TargetLayer:
    return TargetLayer(name, layout="tokens", grid=GRID, n_prefix=network.prefix.shape[1])


def raw(method, network, images=IMAGES, target=None, layer="blocks.0.norm1") -> np.ndarray:
    """Maps at the size of the grid, (n_images, k, u, v)."""
    recorded = RecordedPass(
        network, [layer_of(network, layer)], images, target, graph=method.graph, rule=method.rule()
    )
    return method.explain(recorded)[0].detach().numpy()


# By hand: one image and one class at a time, whole matrices, autograd through plain attention


def run_by_hand(network, image):
    weights, tokens, x = [], [], network.tokens(image[None])
    for block in network.blocks:
        x = block(x)
        weights.append(block.attention.weights)
        tokens.append(x)
    return network.tail(x)[0], weights, tokens


def rollout_by_hand(network, image, label, fuse=lambda w: w.mean(dim=0), discard=0.0):
    _, weights, _ = run_by_hand(network, image)
    joint = torch.eye(weights[0].shape[-1], dtype=torch.float64)
    for (each,) in weights:
        fused = fuse(each)
        lowest = fused.flatten().sort().values[int(discard * fused.numel())]
        fused = torch.where(fused < lowest, 0.0, fused)
        mixed = (fused + torch.eye(len(fused))) / 2
        joint = (mixed / mixed.sum(dim=1, keepdim=True)) @ joint
    return joint[list(network.read)].mean(dim=0)


def relevance_by_hand(network, image, label):
    scores, weights, _ = run_by_hand(network, image)
    gradients = torch.autograd.grad(scores[label], weights)
    identity = torch.eye(weights[0].shape[-1], dtype=torch.float64)
    relevance = identity
    for (each,), (gradient,) in zip(weights, gradients, strict=True):
        relevance = relevance + (gradient * each).clamp(min=0).mean(dim=0) @ relevance
    return (relevance - identity)[list(network.read)].mean(dim=0)


def legrad_by_hand(network, image, label):
    _, weights, tokens = run_by_hand(network, image)
    total = 0
    for each, x in zip(weights, tokens, strict=True):
        score = network.tail(x)[0, label]
        (gradient,) = torch.autograd.grad(score, each, retain_graph=True)
        total = total + gradient[0].clamp(min=0).mean(dim=(0, 1))
    return total / len(weights)


BY_HAND = {
    "attentionrelevance": (AttentionRelevance, relevance_by_hand),
    "legrad": (LeGrad, legrad_by_hand),
    "rollout": (Rollout, rollout_by_hand),
}


def assert_by_hand(maps, network, by_hand, labels, images=IMAGES):
    for map_, image, row in zip(maps, images, labels, strict=True):
        for found, label in zip(map_, row, strict=True):
            expected = by_hand(network, image, label)[network.prefix.shape[1] :].detach()
            np.testing.assert_allclose(found, expected.reshape(GRID), rtol=1e-9, atol=1e-12)
            assert expected.std() > 1e-4 * expected.abs().max() > 0


@every_method
@pytest.mark.parametrize("read", READ)
def test_the_equation(name, read):
    network = vit(**READ[read])
    method, by_hand = BY_HAND[name]
    labels = [[0, 2], [3, 1], [1, 2]]
    maps = raw(method(), network, target=torch.tensor(labels))
    assert_by_hand(maps, network, by_hand, labels)


@every_method
@pytest.mark.parametrize("way", ["fused", "einsum"])
def test_however_attention_is_computed(name, way):
    method, by_hand = BY_HAND[name]
    network, plain = vit(way), vit()
    labels = plain(IMAGES).argmax(dim=1, keepdim=True).tolist()
    assert_by_hand(raw(method(), network), plain, by_hand, labels)


@every_method
@pytest.mark.parametrize("layer", ["patches", "blocks.1", "blocks.2.norm2", "norm"])
def test_whichever_layer_says_how_tokens_lie(name, layer):
    """Behind the last attention, which tokens are read shows in the layer itself."""
    method, by_hand = BY_HAND[name]
    network = vit(n_prefix=1, read=range(13))
    if layer == "patches":
        with pytest.raises(ValueError, match="has the layout 'nchw'"):
            CAMExplainer(network, name, layer, verbose=0).fit(IMAGES).explain(IMAGES)
        return
    labels = network(IMAGES).argmax(dim=1, keepdim=True).tolist()
    assert_by_hand(raw(method(), network, layer=layer), network, by_hand, labels)


@every_method
def test_one_block(name):
    method, by_hand = BY_HAND[name]
    network = vit(n_blocks=1)
    labels = network(IMAGES).argmax(dim=1, keepdim=True).tolist()
    assert_by_hand(raw(method(), network), network, by_hand, labels)


@pytest.mark.parametrize(("fusion", "discard"), [("min", 0), ("max", 0), ("mean", 0.6)])
def test_rollouts_options(fusion, discard):
    network = vit()
    fuse = {
        "mean": lambda w: w.mean(dim=0),
        "min": lambda w: w.min(dim=0).values,
        "max": lambda w: w.max(dim=0).values,
    }[fusion]
    maps = raw(Rollout(fusion=fusion, discard=discard), network)

    def by_hand(*args):
        return rollout_by_hand(*args, fuse, discard)

    assert_by_hand(maps, network, by_hand, [[0]] * 3)


# Networks of others: the weights from their own hooks, in their unfused attention


def of_timm(**options):
    torch.manual_seed(0)
    options = {"img_size": (32, 48), "patch_size": 16, "embed_dim": 24, "depth": 3} | options
    network = timm.models.VisionTransformer(num_heads=3, num_classes=4, **options)
    return randomized(network)


def of_torchvision():
    torch.manual_seed(0)
    return randomized(VisionTransformer(64, 16, 3, 3, 24, 48, num_classes=4))


def of_transformers(attention="sdpa"):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48,
        image_size=64, patch_size=16, num_labels=4, attn_implementation=attention,
    )  # fmt: skip
    return randomized(ViTForImageClassification(config))


def of_torch(batch_first=True):
    """torch's own layers, which in evaluation mode compute all in one kernel."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 24, 16, 16)
            layer = nn.TransformerEncoderLayer(24, 3, 48, 0.0, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.head = nn.Linear(24, 4)

        def forward(self, x):
            return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    torch.manual_seed(0)
    return randomized(Encoder())


def randomized(network):
    for part in network.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.3)
    return network.double().eval()


def pictures(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).double()


def timms_own(network, images):
    """What its modules see: attention before it is dropped out, and tokens behind each block."""
    weights, tokens, hooks = [], [], []
    for block in network.blocks:
        block.attn.fused_attn = False
        hooks += [
            block.attn.attn_drop.register_forward_hook(lambda m, i, output: weights.append(output)),
            block.register_forward_hook(lambda m, i, output: tokens.append(output)),
        ]
    scores = network(images)
    for hook in hooks:
        hook.remove()
    heads = [network.forward_head(network.norm(each)) for each in tokens]
    for block in network.blocks:
        block.attn.fused_attn = True
    return scores, weights, heads


@pytest.mark.parametrize("pool", ["token", "avg", "distilled", "registers", "layer scale"])
def test_timm(pool):
    options = {"global_pool": pool} if pool in ("token", "avg") else {}
    if pool == "registers":
        options = {"reg_tokens": 2}
    if pool == "layer scale":
        options = {"init_values": 0.5, "qk_norm": True}
    if pool == "distilled":
        torch.manual_seed(0)
        network = randomized(
            timm.models.deit.VisionTransformerDistilled(
                img_size=(32, 48), patch_size=16, embed_dim=24, depth=3, num_heads=3, num_classes=4
            )
        )
    else:
        network = of_timm(**options)
    images, grid = pictures(32, 48), (2, 3)
    n_prefix = network.num_prefix_tokens
    read = {"distilled": [0, 1], "avg": [*range(1, 7)]}.get(pool, [0])
    scores, weights, heads = timms_own(network, images)
    joint = relevance = identity = torch.eye(n_prefix + 6, dtype=torch.float64).expand(2, -1, -1)
    gradients = torch.autograd.grad(scores[:, 1].sum(), weights, retain_graph=True)
    sensitivity = 0
    for each, gradient, head in zip(weights, gradients, heads, strict=True):
        joint = (each.mean(dim=1) + identity) / 2 @ joint
        relevance = relevance + (gradient * each).relu().mean(dim=1) @ relevance
        (own,) = torch.autograd.grad(head[:, 1].sum(), each, retain_graph=True)
        sensitivity = sensitivity + own.relu().mean(dim=(1, 2)) / 3
    expected = {
        "rollout": joint[:, read].mean(dim=1),
        "attentionrelevance": (relevance - identity)[:, read].mean(dim=1),
        "legrad": sensitivity,
    }
    layer = TargetLayer("blocks.2.norm1", layout="tokens", grid=grid, n_prefix=n_prefix)
    explainer = CAMExplainer(network, target_layer=layer, verbose=0).fit(images)
    for name, tokens in expected.items():
        maps = explainer.explain(images, 1, method=name, normalize=False)
        coarse = tokens[:, n_prefix:].detach().unflatten(1, grid)
        upsampled = F.interpolate(coarse[:, None], (32, 48), mode="bilinear")[:, 0]
        np.testing.assert_allclose(maps, upsampled, rtol=1e-5, atol=1e-9)


@every_method
def test_transformers_eager_and_fused_attention_are_the_same(name):
    images = pictures(64, 64)
    maps = [
        CAMExplainer(of_transformers(way), name, verbose=0)
        .fit(images)
        .explain(images, normalize=False)
        for way in ("eager", "sdpa")
    ]
    np.testing.assert_allclose(*maps, rtol=1e-6)
    assert maps[0].std() > 0


def test_legrad_of_transformers():
    """Its attention, asked for its weights."""
    network, images = of_transformers("eager"), pictures(64, 64)
    output = network(images, output_attentions=True, output_hidden_states=True)
    labels, expected = output.logits.argmax(dim=1), 0
    for each, tokens in zip(output.attentions, output.hidden_states[1:], strict=True):
        scores = network.classifier(network.vit.layernorm(tokens)[:, 0])
        chosen = scores.gather(1, labels[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, each, retain_graph=True)
        expected = expected + gradient.relu().mean(dim=(1, 2))[:, 1:].unflatten(1, (4, 4)) / 3
    upsampled = F.interpolate(expected[:, None], (64, 64), mode="bilinear")[:, 0]
    explainer = CAMExplainer(of_transformers(), "legrad", verbose=0).fit(images)
    maps = explainer.explain(images, normalize=False)
    np.testing.assert_allclose(maps, upsampled, rtol=1e-5, atol=1e-9)


def test_torchvision():
    """Its attention, asked for its weights, in the modules' own order."""
    network, images = of_torchvision(), pictures(64, 64)
    weights, hooks = [], []

    def ask(module, inputs, kwargs):
        _, found = nn.MultiheadAttention.forward(module, *inputs, need_weights=True)
        weights.append(found.detach())

    for layer in network.encoder.layers:
        hooks.append(layer.self_attention.register_forward_pre_hook(ask, with_kwargs=True))
    network(images)
    for hook in hooks:
        hook.remove()
    joint = torch.eye(17, dtype=torch.float64).expand(2, -1, -1)
    for each in weights:
        joint = (each + torch.eye(17)) / 2 @ joint
    explainer = CAMExplainer(network, "rollout", verbose=0).fit(images)
    maps = explainer.explain(images, normalize=False)
    coarse = joint[:, 0, 1:].unflatten(1, (4, 4))
    expected = F.interpolate(coarse[:, None], (64, 64), mode="bilinear")[:, 0]
    np.testing.assert_allclose(maps, expected, rtol=1e-5)


@every_method
def test_torchs_own_layers(name):
    """Which compute nothing that shows, unless they are looked at."""
    network, images = of_torch(), pictures(32, 48)
    explainer = CAMExplainer(network, name, verbose=0).fit(images)
    maps = explainer.explain(images)
    assert maps.std() > 0
    with torch.no_grad():
        assert torch.equal(network(images), network(images))


def test_a_module_that_wants_its_weights_gets_them():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            y, weights = self.attention(x, x, x, average_attn_weights=False)
            self.shown = weights
            return y

    torch.manual_seed(0)
    network, x = Asking().eval(), torch.randn(3, 5, 8)
    expected = network(x)
    weights = network.shown
    with AttentionRecord() as record:
        found = network(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(network.shown, weights)
    torch.testing.assert_close(record.weights[0], weights)


# Refusals


@every_method
def test_networks_without_attention(name):
    network = SmallNet().eval()
    images = torch.randn(2, 1, 12, 12)
    with pytest.raises(ValueError, match="SmallNet has no attention"):
        CAMExplainer(network, name, "5", verbose=0).fit(images).explain(images)


@every_method
def test_windows(name):
    images = torch.randn(1, 3, 64, 64)
    network = swin_t(num_classes=3).eval()
    with pytest.raises(ValueError, match="attention within windows"):
        CAMExplainer(network, name, verbose=0).fit(images).explain(images)


@every_method
def test_a_pooling_by_attention(name):
    network, images = of_timm(global_pool="map", class_token=False), pictures(32, 48)
    with pytest.raises(ValueError, match=r"attention of shape \(2, 3, 1, 6\)"):
        CAMExplainer(network, name, verbose=0).fit(images).explain(images)


@every_method
def test_checkpoints(name):
    """Attention that is recomputed in the backward pass is not recorded, so it is refused."""
    network, images = of_timm(), pictures(32, 48)
    layer = TargetLayer("blocks.2.norm1", layout="tokens", grid=(2, 3), n_prefix=1)
    explainer = CAMExplainer(network, name, layer, verbose=0).fit(images)
    expected = explainer.explain(images)
    network.set_grad_checkpointing()
    if name == "rollout":
        np.testing.assert_allclose(explainer.explain(images), expected, atol=1e-6)
    else:
        with pytest.raises(ValueError, match="Turn checkpointing off to explain"):
            explainer.explain(images)


# What every method promises; see test_every_method


def explained(name, network, images=IMAGES, target=None, **options):
    explainer = CAMExplainer(network, name, layer_of(network), verbose=0, **options).fit(images)
    return explainer.explain(images, target, normalize=False)


@every_method
def test_the_map_of_an_image_does_not_depend_on_its_batch(name):
    network = vit("fused")
    together = explained(name, network)
    alone = np.concatenate([explained(name, network, image[None]) for image in IMAGES])
    np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-9)


@every_method
def test_targets(name):
    network = vit("fused")
    classes = network(IMAGES).topk(2).indices
    several = explained(name, network, target=TopK(2))
    np.testing.assert_allclose(several, explained(name, network, target=classes), rtol=1e-6)
    for column in range(2):
        one = explained(name, network, target=classes[:, column])
        np.testing.assert_allclose(several[:, column], one, rtol=1e-6)
    by_callable = explained(name, network, target=lambda output: output[:, 2])
    np.testing.assert_allclose(by_callable, explained(name, network, target=2), rtol=1e-6)


@every_method
def test_beside_other_methods(name):
    network = vit("fused")
    explainer = CAMExplainer(network, target_layer=layer_of(network, "blocks.2.norm1"), verbose=0)
    explainer.fit(IMAGES)
    together = explainer.explain(IMAGES, method=["gradcam", name, "saliency"])
    for each, maps in together.items():
        np.testing.assert_allclose(maps, explainer.explain(IMAGES, method=each), atol=1e-6)


def state_of(network):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": [part.training for part in network.modules()],
        "hooks": [len(getattr(part, kind)) for part in network.modules() for kind in hooks],
        "attributes": [sorted(vars(part)) for part in network.modules()],
        "gradients": [parameter.grad for parameter in network.parameters()],
        "flags": [parameter.requires_grad for parameter in network.parameters()],
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "function modes": torch.overrides._get_current_function_mode_stack(),
        "fused attention": torch.backends.mha.get_fastpath_enabled(),
        "functions": F.scaled_dot_product_attention,
    }


@every_method
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_network_is_left_as_it_was(name, context):
    network, images = of_torchvision(), pictures(64, 64)
    network.train().encoder.layers[0].eval()
    explainer = CAMExplainer(network, name, verbose=0).fit(images)
    before = state_of(network)
    with context():
        explainer.explain(images)
    assert state_of(network) == before

    def fail(module, inputs, output):
        raise RuntimeError("failed on purpose")

    for part in (network.encoder.layers[1].self_attention, network.heads):
        handle = part.register_forward_hook(fail)
        state = state_of(network)
        with pytest.raises(RuntimeError, match="on purpose"):
            explainer.explain(images)
        assert state_of(network) == state
        handle.remove()
    assert state_of(network) == before


@every_method
def test_no_graph_survives_a_call(name):
    network, seen = vit("fused"), []
    network.blocks[1].register_forward_hook(lambda m, i, output: seen.append(weakref.ref(output)))
    explainer = CAMExplainer(network, name, layer_of(network), verbose=0).fit(IMAGES)
    seen.clear()
    gc.disable()
    try:
        explainer.explain_inputs(IMAGES, TopK(2))
        assert seen and all(reference() is None for reference in seen)
    finally:
        gc.enable()


@every_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    network, images = vit("fused").float(), IMAGES.float()
    exact = explained(name, network, images)
    with torch.autocast("cpu", dtype=dtype):
        under_autocast = explained(name, network, images)
    own = explained(name, network.to(dtype), images.to(dtype))
    for maps in (under_autocast, own):
        assert maps.dtype == np.float32 and np.isfinite(maps).all()
        assert np.abs(maps - exact).max() <= 0.25 * np.abs(exact).max()


@every_method
@pytest.mark.filterwarnings("ignore::sklcam.explain.ExplanationWarning")
def test_black_images_and_dead_heads(name):
    network = vit("fused")
    assert np.isfinite(explained(name, network, torch.zeros_like(IMAGES))).all()
    with torch.no_grad():
        network.head.weight.zero_()
    with pytest.warns(ExplanationWarning, match="blank"):
        assert not explained(name, network, IMAGES).any()


@every_method
def test_several_layers_have_one_map(name):
    network = vit("fused")
    layers = [layer_of(network, each) for each in ("blocks.1.norm1", "blocks.2.norm1")]
    one = explained(name, network)
    both = CAMExplainer(network, name, layers, verbose=0).fit(IMAGES)
    np.testing.assert_allclose(both.explain(IMAGES, normalize=False), one, rtol=1e-6)
