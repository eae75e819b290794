"""The tape against a full backward pass, and its manners."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from sklcam.models import build_model, find_target_layer
from sklcam.tape import record

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
