"""The tape against a full backward pass, and its manners."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from sklcam.networks import build_model, find_target_layer, record, record_trunk

FAMILIES = {
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "convnext_tiny": 64,
    "vgg11": 64,
    "vgg11_bn": 64,
    "alexnet": 96,
    "densenet121": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "mnasnet0_5": 64,
    "swin_t": 64,
    "vit_b_32": 64,
}


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def full_backward(model: nn.Module, layer: nn.Module, images: torch.Tensor):
    """Activations and gradient by the ordinary way: a graph through the whole network."""
    kept = []

    def keep(_, __, output):
        kept.append(output)
        return output.clone()

    handle = layer.register_forward_hook(keep)
    scores = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores.max(dim=1).values.sum(), kept[0])
    return scores.detach(), kept[0].detach(), gradient


@pytest.mark.parametrize("name", FAMILIES)
def test_bit_identical_to_a_full_backward_pass(name):
    torch.manual_seed(0)
    size = FAMILIES[name]
    model = build_model(name, n_classes=5, image_size=(size, size)).eval()
    layer = find_target_layer(model).of(model)
    if name.startswith("vit"):  # its head starts at zero, and so would the gradient
        nn.init.normal_(model.heads.head.weight)
    images = torch.randn(2, 3, size, size)
    scores, activations, gradient = full_backward(model, layer, images)
    with record(model, layer) as tape:
        taped_scores = model(images)
        (taped,) = torch.autograd.grad(taped_scores.max(dim=1).values.sum(), tape.activations)
        assert torch.equal(tape.activations, activations)
    assert gradient.abs().sum() > 0
    assert torch.equal(taped_scores, scores)
    assert torch.equal(taped, gradient)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_works_under_the_callers_gradient_mode(context, layer):
    model = small_network().eval()
    with context():
        images = torch.rand(2, 3, 12, 12)
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with record(model, model[layer]) as tape:
            (taped,) = torch.autograd.grad(model(images)[:, 1].sum(), tape.activations)
        assert torch.is_grad_enabled() is grad
        assert torch.is_inference_mode_enabled() is inference
    with torch.enable_grad():
        images = images.clone()
        kept = []
        model[layer].register_forward_hook(lambda _, __, out: (kept.append(out), out.clone())[1])
        (expected,) = torch.autograd.grad(model(images)[:, 1].sum(), kept[0])
    assert torch.equal(taped, expected)


def test_a_layer_that_hands_on_its_input_in_inference_mode():
    model = nn.Sequential(nn.Identity(), *small_network())
    with torch.inference_mode():
        images = torch.rand(2, 3, 12, 12)
        with record(model, model[0]) as tape:
            (gradient,) = torch.autograd.grad(model.eval()(images).sum(), tape.activations)
    assert gradient.shape == images.shape


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("failed on purpose")


@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_leaves_the_model_as_it_was(trunk, fails):
    model = small_network()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    if fails:
        model.append(Failing())
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    expected = pytest.raises(RuntimeError, match="on purpose") if fails else nullcontext()
    with expected, record(model, model[4], trunk=trunk) as tape:
        model(torch.rand(2, 3, 12, 12))
    assert all(not module._forward_hooks for module in model.modules())
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="Nothing was recorded"):
        _ = tape.activations


def test_explaining_builds_no_graph_before_the_layer():
    model = small_network().eval()
    for _ in range(2):  # nor in the second pass of the same block
        with record(model, model[3]) as tape:
            for _ in range(2):
                output = model(torch.rand(2, 3, 12, 12))
                assert tape.activations.is_leaf
                assert output.requires_grad


def test_training_reaches_the_trunk_and_the_second_derivative_is_right():
    model = small_network().double().eval()
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)

    def penalty(network):
        with record(network, network[4], trunk=True) as tape:
            score = network(images)[:, 0].exp().sum()
            (gradient,) = torch.autograd.grad(score, tape.activations, create_graph=True)
            return (gradient.mean((2, 3)) * tape.activations.sum((2, 3))).pow(2).sum()

    penalty(model).backward()
    weight = model[0].weight
    step = 1e-6
    for index in [(0, 0, 0, 0), (2, 1, 1, 2), (3, 2, 2, 2)]:
        up, down = copy.deepcopy(model), copy.deepcopy(model)
        with torch.no_grad():
            up[0].weight[index] += step
            down[0].weight[index] -= step
        numeric = (penalty(up) - penalty(down)) / (2 * step)
        torch.testing.assert_close(weight.grad[index], numeric.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("trunk", [False, True])
def test_the_layers_own_output_is_recorded_though_the_next_one_works_in_place(trunk):
    model, images = small_network().eval(), torch.rand(2, 3, 12, 12)
    expected = model[3](nn.Sequential(*list(model)[:3])(images))
    assert (expected < 0).any()  # so that the in-place ReLU behind the layer would show
    with record(model, model[3], trunk=trunk) as tape:
        score = model(images)[:, 0].sum()
        assert torch.equal(tape.activations, expected)
        (gradient,) = torch.autograd.grad(score, tape.activations)
    weight = model[7].weight.detach()[0] / 64
    torch.testing.assert_close(gradient, weight[:, None, None] * (expected > 0))


def test_a_frozen_trunk_can_be_trained_on():
    model = small_network()
    for parameter in model[:5].parameters():
        parameter.requires_grad_(False)
    with record(model, model[4], trunk=True) as tape:
        output = model(torch.rand(2, 3, 12, 12))
        (gradient,) = torch.autograd.grad(output.sum(), tape.activations, create_graph=True)
        gradient.sum().backward()
    assert model[7].weight.grad is not None


def test_a_layer_of_another_network_is_refused():
    not_a_part = pytest.raises(ValueError, match="not a part of Sequential")
    with not_a_part, record(small_network(), nn.ReLU()):
        pass


def test_a_layer_that_does_not_run():
    model = small_network()
    model.spare = nn.Conv2d(3, 3, 1)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.spare = small_network(), nn.ReLU()

        def forward(self, x):
            return self.net(x)

    around = Around()
    with record(around, around.spare) as tape:
        around(torch.rand(2, 3, 12, 12))
        with pytest.raises(RuntimeError, match="did not run"):
            _ = tape.activations


def test_a_layer_with_two_outputs_is_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    model = nn.Sequential(Pair())
    with pytest.raises(TypeError, match="returned a tuple"), record(model, model[0]):
        model(torch.rand(1, 3, 4, 4))


# Several layers


class Branches(nn.Module):
    """Two branches that meet, and a layer behind them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.behind, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        self.n_passes = 0

    def forward(self, x):
        self.n_passes += 1
        x = self.stem(x)
        x = self.left(x).relu_() + self.right(x).tanh()
        return self.head(self.behind(x).relu_().mean((2, 3)))


@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "names",
    [
        ["stem", "behind"],
        ["behind", "stem"],
        ["left", "right"],
        ["right", "left", "behind"],
        ["stem.0", "stem", "left", "right", "behind", "head"],
    ],
)
def test_several_layers_in_one_pass_are_bit_identical_to_a_full_backward_pass(
    names, context, trunk
):
    model = Branches().eval()
    layers, images = [model.get_submodule(name) for name in names], torch.randn(2, 3, 8, 8)
    kept = {}

    def keep(layer, _, output):
        kept[layer] = output
        return output.clone()

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    scores = model(images).max(dim=1).values
    expected = torch.autograd.grad(scores.sum(), [kept[layer] for layer in layers])
    for hook in hooks:
        hook.remove()

    model.n_passes = 0
    with context(), record(model, *layers, trunk=trunk) as tape:
        taped = model(images).max(dim=1).values
        gradients = torch.autograd.grad(taped.sum(), [tape.of(layer) for layer in layers])
        assert all(torch.equal(tape.of(layer), kept[layer]) for layer in layers)
        assert tape.activations is tape.of(layers[0])
    assert model.n_passes == 1
    assert torch.equal(taped, scores)
    for gradient, of_full_pass in zip(gradients, expected, strict=True):
        assert of_full_pass.abs().sum() > 0
        assert torch.equal(gradient, of_full_pass)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["layer2", "layer3.0.conv1", "layer4"]),
        ("squeezenet1_1", ["features.3", "features.9.squeeze", "features.12"]),
        ("convnext_tiny", ["features.3", "features.7.2"]),
    ],
)
def test_several_layers_of_known_networks(name, layers):
    torch.manual_seed(0)
    model, images = build_model(name, n_classes=5).eval(), torch.randn(2, 3, 64, 64)
    parts = [model.get_submodule(layer) for layer in layers]
    with record(model, *parts) as tape:
        scores = model(images).max(dim=1).values.sum()
        gradients = torch.autograd.grad(scores, [tape.of(part) for part in parts])
        first = tape.of(parts[0])
        assert first.is_leaf and first.requires_grad
    for part, gradient in zip(parts, gradients, strict=True):
        assert torch.equal(gradient, full_backward(model, part, images)[2])


def test_the_first_layer_to_run_is_a_leaf_in_every_pass_of_a_block():
    model = Branches().eval()
    with record(model, model.behind, model.left) as tape:
        for _ in range(2):
            score = model(torch.rand(2, 3, 8, 8)).sum()
            assert tape.of(model.left).is_leaf and not tape.of(model.behind).is_leaf
            assert all(map(torch.is_tensor, torch.autograd.grad(score, tape.of(model.left))))


def test_one_of_several_layers_does_not_run():
    model = Branches().eval()
    model.spare = nn.ReLU()
    with record(model, model.left, model.spare) as tape:
        model(torch.rand(2, 3, 8, 8))
        assert tape.of(model.left).shape == (2, 4, 8, 8)
        with pytest.raises(RuntimeError, match="did not run"):
            tape.of(model.spare)


# Resuming at a layer


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
        module.forward = _telling(module, ran)
    changed = torch.stack([0 * activations[1], activations[1], 2 * activations[1]])
    with trunk.resumed(changed.clone(), image=1, n_images=3):
        resumed = model(rows_of(images, 1, 3))
    assert ran == [model.right, model.behind]
    mixed = changed.relu() + model.right(model.stem(images[1:2])).tanh()
    torch.testing.assert_close(resumed, model.head(model.behind(mixed).relu().mean((2, 3))))


def _telling(module, ran):
    forward = module.forward
    return lambda *args: (ran.append(module), forward(*args))[1]


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
    own = model[0].forward = _telling(model[0], [])  # an attribute of the instance, as some have
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
