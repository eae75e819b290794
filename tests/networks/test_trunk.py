"""The trunk: a pass that is resumed gives what the network gives."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
import torch
from backbones import (
    Branches,
    Failing,
    small_network,
    telling,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from sklcam.networks import (
    build_model,
    record_trunk,
)
from sklcam.networks.layer_search import layer_instead
from sklcam.networks.layers import TargetLayer
from sklcam.networks.trunk import blocks_of_trunk, is_bypassed


def traced(model, layer, images):
    """A trunk, the layer's activations and the output."""
    kept = []
    hook = layer.register_forward_hook(lambda _, __, output: kept.append(output.clone()))
    with record_trunk(model, layer) as trunk:
        output = model(images)
    hook.remove()
    return trunk, kept[-1], output


def rows_of(images, image, m):
    return images[image : image + 1].expand(m, -1, -1, -1)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer2"),
        ("resnet18", "layer3.0.conv1"),  # behind which the block's input is needed again
        ("densenet121", "features.denseblock2.denselayer3"),
        ("mobilenet_v2", "features.8.conv.1"),
        ("convnext_tiny", "features.5.1"),
        ("swin_t", "features.3.0.attn"),
        ("vit_b_32", "encoder.layers.encoder_layer_3.mlp"),
    ],
)
@pytest.mark.parametrize("from_start", [False, True])
@torch.no_grad()
def test_resuming_with_unchanged_activations_gives_the_models_own_output(name, layer, from_start):
    torch.manual_seed(0)
    model = build_model(name, n_classes=5, image_size=(64, 64)).eval()
    if name.startswith("vit"):  # its head starts at zero
        nn.init.normal_(model.heads.head.weight)
    images = torch.randn(3, 3, 64, 64)
    trunk, activations, output = traced(model, model.get_submodule(layer), images)
    assert (output[0] - output[1]).abs().max() > 0
    for image in (0, 2):
        variants = activations[image : image + 1].repeat(2, *[1] * (activations.ndim - 1))
        with trunk.resumed(variants, image=image, n_images=3, from_start=from_start):
            resumed = model(rows_of(images, image, 2))
        torch.testing.assert_close(resumed, output[image].expand(2, -1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_resuming_computes_only_what_follows_the_layer():
    model, images = Branches().eval(), torch.randn(3, 3, 8, 8)
    trunk, activations, _ = traced(model, model.left, images)
    ran = []
    for module in (model.stem[0], model.stem[1], model.left, model.right, model.behind):
        module.forward = telling(module, ran)
    changed = torch.stack([0 * activations[1], activations[1], 2 * activations[1]])
    with trunk.resumed(changed.clone(), image=1, n_images=3):
        resumed = model(rows_of(images, 1, 3))
    assert ran == [model.right, model.behind]
    mixed = changed.relu() + model.right(model.stem(images[1:2])).tanh()
    torch.testing.assert_close(resumed, model.head(model.behind(mixed).relu().mean((2, 3))))


class CalledTwice(nn.Module):
    """One convolution at two places before the layer, and once behind it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.shared(x)
        y = self.shared(x.tanh())
        return self.shared(self.layer(y).tanh() + x).mean((2, 3))


@torch.no_grad()
def test_a_module_that_is_called_several_times_answers_in_order():
    model, images = CalledTwice(), torch.randn(2, 3, 6, 6)
    trunk, activations, output = traced(model, model.layer, images)
    changed = torch.stack([activations[1], activations[1] + 1])
    with trunk.resumed(changed, image=1, n_images=2):
        resumed = model(rows_of(images, 1, 2))
    torch.testing.assert_close(resumed[0], output[1])
    x = model.shared(images[1:2])
    by_hand = model.shared(changed.tanh() + x).mean((2, 3))
    torch.testing.assert_close(resumed, by_hand)


@torch.no_grad()
@pytest.mark.parametrize("from_start", [False, True])
def test_a_layer_that_runs_twice_is_changed_in_its_last_run(from_start):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Flatten())
    images = torch.randn(2, 3, 4, 4)
    trunk, _, _ = traced(model, layer, images)
    changed = torch.randn(2, 3, 4, 4)
    with trunk.resumed(changed, image=0, n_images=2, from_start=from_start):
        assert torch.equal(model(rows_of(images, 0, 2)), changed.flatten(1))


class NestedOutputs(nn.Module):
    """Before the layer, a module returns tensors in a dict, a tuple and a list, and no tensor."""

    class Parts(nn.Module):
        def forward(self, x):
            return {"pair": (x + 1, [x * 2]), "number": 3, "constant": x.new_ones(())}

    def __init__(self):
        super().__init__()
        self.parts, self.layer = self.Parts(), nn.Identity()

    def forward(self, x):
        parts = self.parts(x)
        first, (second,) = parts["pair"]
        return self.layer(x) + first + second * parts["number"] + parts["constant"]


def test_what_modules_return_may_be_nested():
    model, images = NestedOutputs(), torch.randn(3, 2)
    trunk, _, output = traced(model, model.layer, images)
    with trunk.resumed(images[2:].repeat(4, 1), image=2, n_images=3):
        assert torch.equal(model(images[2:].expand(4, -1)), output[2].expand(4, -1))


@pytest.mark.parametrize("fails", [False, True])
def test_every_modules_forward_is_put_back(fails):
    model = small_network().eval()
    own = model[0].forward = telling(model[0], [])  # an attribute of the instance, as some have
    images = torch.rand(2, 3, 12, 12)
    trunk, activations, _ = traced(model, model[3], images)
    before = [dict(vars(module)) for module in model.modules()]
    expected = pytest.raises(RuntimeError, match="on purpose") if fails else nullcontext()
    with expected, trunk.resumed(activations[:1], image=0, n_images=2):
        assert "forward" in vars(model[3])
        model(images[:1])
        if fails:
            raise RuntimeError("failed on purpose")
    assert [vars(module) for module in model.modules()] == before
    assert model[0].forward is own
    assert all("forward" not in vars(module) for module in list(model.modules())[2:])


@pytest.mark.parametrize("fails", [False, True])
def test_recording_a_trunk_leaves_no_hooks(fails):
    model = small_network().eval()
    if fails:
        model.append(Failing())
    expected = pytest.raises(RuntimeError, match="on purpose") if fails else nullcontext()
    with expected, record_trunk(model, model[3]):
        model(torch.rand(2, 3, 12, 12))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_trunk_of_another_networks_layer_is_refused():
    not_a_part = pytest.raises(ValueError, match="not a part of Sequential")
    with not_a_part, record_trunk(small_network(), nn.ReLU()):
        pass


# Ways through a network


@torch.no_grad()
def test_the_blocks_of_a_trunk_make_the_activations():
    model, images = small_network().eval(), torch.rand(1, 3, 12, 12)
    model = nn.Sequential(model[:3], model[3:5], model[5:])
    assert blocks_of_trunk(model, model[1], images) == [model[0]]
    deeper = nn.Sequential(nn.Sequential(model[0], model[1]), model[2])
    # Inside of the layer as well, as far as there are blocks.
    assert blocks_of_trunk(deeper, deeper[0], images) == [model[0], model[1]]


class Skipping(nn.Module):
    """Two ways to the output, of which the second may go around the layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return (self.layer(x) + x).mean((2, 3)), None


def test_a_layer_is_bypassed_if_the_images_reach_the_output_beside_it():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), Skipping())
    around = nn.Sequential(model[0], model[1], model[2].layer, nn.Flatten())
    images = torch.rand(1, 3, 4, 4)
    assert not is_bypassed(around, around[2], images)
    assert is_bypassed(model, model[2].layer, images)
    assert not is_bypassed(model, model[0], images)
    assert not any(module._forward_hooks for module in model.modules())
    assert not images.requires_grad


class Transformer(nn.Module):
    """Two blocks; the class is read off the first token, or off the mean of all."""

    def __init__(self, *, mean=False, checkpointed=False):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 2, 2)
        blocks = [nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2)]
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(8, 3)
        nn.init.zeros_(self.head.weight)
        self.mean, self.checkpointed = mean, checkpointed

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x.mean(1) if self.mean else x[:, 0])


@pytest.mark.parametrize("layer", ["blocks.0.norm1", "blocks.0", "blocks.1.linear1"])
def test_torchs_encoder_in_one_kernel_is_resumed_as_others_are(layer):
    model, images = Transformer(mean=True).eval(), torch.randn(2, 3, 8, 8)
    nn.init.normal_(model.head.weight)
    part = model.get_submodule(layer)
    with torch.no_grad():
        trunk, activations, _ = traced(model, part, images)
        other = torch.randn_like(activations[:1])
        hook = part.register_forward_hook(lambda *_: other)
        expected = model(images[:1])
        hook.remove()
        with trunk.resumed(other, image=0, n_images=2):
            resumed = model(images[:1])
    torch.testing.assert_close(resumed, expected)
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(
    ("mean", "name", "instead"),
    [
        (False, "blocks.1.linear2", "blocks.0"),  # behind it, the first position alone has one
        (True, "blocks.1.linear2", "blocks.1.norm2"),  # there, all positions have one
        (True, "blocks.0.dropout1", "blocks.0.norm1"),
    ],
)
def test_the_layer_that_would_do_in_place_of_a_bypassed_one(mean, name, instead, checkpointed):
    model = Transformer(mean=mean, checkpointed=checkpointed).eval()
    images = torch.zeros(1, 3, 8, 8)
    layer = TargetLayer(name, layout="tokens", grid=(4, 4))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert is_bypassed(model, layer.of(model), images)
    assert layer_instead(model, layer, images) == instead
    assert not is_bypassed(model, model.get_submodule(instead), images)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_branch_may_have_no_layer_like_it_that_everything_passes():
    model, images = Skipping(), torch.rand(1, 3, 4, 4)
    assert layer_instead(model, TargetLayer("layer"), images) is None


@torch.no_grad()
def test_passes_of_other_threads_are_neither_recorded_nor_answered():
    model, images, others = Branches().eval(), torch.randn(3, 3, 6, 6), torch.randn(2, 3, 6, 6)
    expected, found = model(others), []

    @torch.no_grad()
    def pass_of_another():
        found.append(model(others))

    def run_another():
        thread = threading.Thread(target=pass_of_another)
        thread.start()
        thread.join()

    with record_trunk(model, model.left) as trunk:
        output = model(images)
        run_another()
    activations = model.left(model.stem(images[1:2]))
    with trunk.resumed(activations.clone(), image=1, n_images=3):
        run_another()
        resumed = model(images[1:2])
    torch.testing.assert_close(resumed, output[1:2])
    for each in found:
        torch.testing.assert_close(each, expected)
