"""The tape against a plain backward pass, and its manners."""

from __future__ import annotations

import copy
import threading
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from backbones import (
    MEMBERS,
    Branches,
    Failing,
    SmallNet,
    plain_backward,
    small_network,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from sklcam.networks import (
    TargetLayer,
    build_model,
    find_target_layer,
    record,
)
from sklcam.networks.tape import plain_attention


@pytest.mark.parametrize("name", MEMBERS)
def test_bit_identical_to_a_plain_backward_pass(name):
    torch.manual_seed(0)
    size = MEMBERS[name]
    model = build_model(name, n_classes=5, image_size=(size, size)).eval()
    layer = find_target_layer(model)
    run, layer = layer.run or 0, layer if layer.run else layer.of(model)
    if name.startswith("vit"):  # its head starts at zero, and so would the gradient
        nn.init.normal_(model.heads.head.weight)
    images = torch.randn(2, 3, size, size)
    scores, activations, gradient = plain_backward(
        model, layer.of(model) if run else layer, images, run
    )
    with record(model, layer) as tape:
        taped_scores = model(images)
        (taped,) = torch.autograd.grad(taped_scores.max(dim=1).values.sum(), tape.activations)
        found = tape.activations.detach()
    assert gradient.abs().sum() > 0
    # Without gradients, as before the layer, torch's own attention takes another kernel, which
    # rounds in another way.
    same = (
        torch.equal if not name.startswith("vit") else partial(torch.allclose, rtol=1e-4, atol=1e-5)
    )
    assert same(found, activations)
    assert same(taped_scores, scores)
    assert same(taped, gradient)


@pytest.mark.parametrize("is_cut", [False, True])
def test_runs_before_the_one_that_counts_build_no_graph(is_cut):
    model, needed = SmallNet().eval(), []
    model.conv2.register_forward_hook(lambda *each: needed.append(each[2].requires_grad))
    layer = TargetLayer("relu", run=1)
    with record(model, layer, trunk=is_cut) as tape, tape.cut() if is_cut else nullcontext():
        scores = model(torch.rand(2, 3, 8, 8))
        assert tape.activations.is_leaf and needed == [False]
        (gradient,) = torch.autograd.grad(scores[:, 0].sum(), tape.activations)
    expected = model.head.weight[0].detach()[:, None, None] / 64  # it is pooled, and weighed
    torch.testing.assert_close(gradient, expected.expand_as(gradient))


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t"])
def test_activations_are_bit_identical_to_those_of_a_prediction(name):
    torch.manual_seed(0)
    size = MEMBERS[name]
    model = build_model(name, n_classes=5, image_size=(size, size)).eval()
    layer, kept = find_target_layer(model).of(model), []
    images = torch.randn(2, 3, size, size)
    handle = layer.register_forward_hook(lambda _, __, output: kept.append(output.clone()))
    with torch.no_grad():
        model(images)
    handle.remove()
    with record(model, layer) as tape:
        model(images)
        assert torch.equal(tape.activations, kept[0])


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
    model = nn.Sequential(nn.Identity(), *small_network()).eval()
    values = torch.rand(2, 3, 12, 12)
    with torch.inference_mode():
        images = values.clone()
        with record(model, model[0]) as tape:
            scores = model(images)
            activations = tape.activations
            (gradient,) = torch.autograd.grad(scores[:, 1].sum(), activations)
    leaf = values.clone().requires_grad_()
    expected = model[1:](leaf)
    assert torch.equal(activations, values)
    assert torch.equal(scores, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected[:, 1].sum(), leaf)[0])


def test_activations_and_gradients_by_hand():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.5, -3.0]))
        model[2].weight.copy_(torch.tensor([[3.0, -2.0]]))
        model[2].bias.zero_()
    x = torch.tensor([[1.0, 1.0], [2.0, 6.0]])
    for trunk in (False, True):
        with record(model, model[0], trunk=trunk) as tape:
            scores = model(x)
            (gradient,) = torch.autograd.grad(scores.sum(), tape.activations)
            # 1 + 2 + .5 and -1 + 1 - 3; 2 + 12 + .5 and -2 + 6 - 3
            assert tape.activations.tolist() == [[3.5, -3.0], [14.5, 1.0]]
        assert scores.flatten().tolist() == [10.5, 41.5]
        assert gradient.tolist() == [[3.0, 0.0], [3.0, -2.0]]  # none where the ReLU is off


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


@pytest.mark.parametrize("names", [["3"], ["0", "3"]])
def test_without_a_head_there_is_no_graph_at_all(names):
    model, images = small_network().eval(), torch.rand(2, 3, 12, 12)
    expected = model(images)
    layers = [model.get_submodule(name) for name in names]
    with record(model, *layers, head=False) as tape:
        output = model(images)
        assert not any(tape.of(layer).requires_grad for layer in layers)
    assert not output.requires_grad
    assert torch.equal(output, expected)


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
def test_several_layers_in_one_pass_are_bit_identical_to_a_plain_backward_pass(
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
    for gradient, plain in zip(gradients, expected, strict=True):
        assert plain.abs().sum() > 0
        assert torch.equal(gradient, plain)


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
        assert torch.equal(gradient, plain_backward(model, part, images)[2])


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


# Several runs, several threads


class Chain(nn.Module):
    """One layer, applied twice in a row, and once beside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, kept=None):
        kept = [] if kept is None else kept
        kept.append(self.layer(x))
        kept.append(self.layer(kept[0].tanh()))
        kept.append(self.layer(x.neg()))
        return self.head(kept[1].tanh() + kept[2].tanh())


@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("run", [0, 1, 2, -1])
def test_each_run_has_the_gradient_of_a_plain_pass(trunk, run):
    model, x, kept = Chain(), torch.rand(3, 4), []
    scores = model(x, kept)
    gradients = torch.autograd.grad(scores.sum(), kept[run], create_graph=True)[0]
    (expected,) = torch.autograd.grad(gradients.square().sum(), model.head.weight)
    with record(model, TargetLayer("layer", run=run), trunk=trunk) as tape:
        taped = model(x)
        (gradient,) = torch.autograd.grad(taped.sum(), tape.activations, create_graph=True)
        (ours,) = torch.autograd.grad(gradient.square().sum(), model.head.weight)
    assert torch.equal(taped, scores)
    assert torch.equal(gradient, gradients)
    torch.testing.assert_close(ours, expected)


def test_runs_are_counted_anew_in_each_pass():
    model, x = Chain(), torch.rand(3, 4)
    with record(model, TargetLayer("layer", run=-1), model.head) as tape:
        for scale in (1, 2):
            model(scale * x)
            assert torch.equal(tape.activations, model.layer(-scale * x))
            assert tape.of(model.head).shape == (3, 2)


def test_what_checkpointing_runs_again_is_no_run_of_the_pass():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    layers = model[:2]
    whole = Wrapping(lambda x: model[2](checkpoint(layers, x, use_reentrant=False)), model)
    with record(whole, model[1], trunk=True) as tape:
        whole(torch.rand(3, 4)).sum().backward()
        assert tape.activations.shape == (3, 4)
    assert model[0].weight.grad is not None


class Wrapping(nn.Module):
    def __init__(self, function, *parts):
        super().__init__()
        self.parts, self.function = nn.ModuleList(parts), function

    def forward(self, x):
        return self.function(x)


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_passes_of_other_threads_are_not_recorded():
    model = small_network().eval()
    images, others = torch.rand(2, 3, 12, 12), torch.rand(5, 3, 12, 12)

    @torch.no_grad()
    def pass_of_another():
        output = model(others)
        return output, torch.is_grad_enabled(), output.requires_grad

    with record(model, model[2]) as tape:
        scores = model(images)
        output, *gradients = in_a_thread(pass_of_another)
        assert gradients == [False, False]
        assert len(tape.activations) == 2
        torch.autograd.grad(scores.sum(), tape.activations)
    assert torch.equal(output, model(others))


# Attention's kernels


def is_fused():
    """Whether a fused kernel may be chosen; of the flags, which are the process's, one will do."""
    return torch.backends.cuda.flash_sdp_enabled()


class Attention(nn.Module):
    def forward(self, x):
        self.was_fused = is_fused()
        return x + nn.functional.scaled_dot_product_attention(x, x, x)


def three_attentions():
    return nn.Sequential(Attention(), Attention(), Attention())


@pytest.mark.parametrize("trunk", [False, True])
def test_attention_is_plain_behind_the_layer_alone(trunk):
    model, x = three_attentions(), torch.rand(2, 5, 4, requires_grad=True)
    with record(model, model[1], trunk=trunk) as tape:
        for _ in range(2):
            model(x)
            assert [part.was_fused for part in model] == [True, True, not trunk]
            assert is_fused()
        with tape.cut() if trunk else nullcontext():
            model(x)
            assert [part.was_fused for part in model] == [True, True, not trunk]
    assert is_fused()


def test_attention_behind_the_layer_has_a_second_derivative():
    model, x = three_attentions(), torch.rand(2, 5, 4, dtype=torch.float64)

    def steepness(scale):
        """How fast a score changes with the layer's output, squared."""
        with record(model, model[1], trunk=True) as tape:
            score = model(scale * x).square().sum()
            (gradient,) = torch.autograd.grad(score, tape.activations, create_graph=True)
        return gradient.square().sum()

    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(steepness(scale), scale)
    with torch.no_grad():
        up, down = (steepness(scale + step).detach() for step in (1e-5, -1e-5))
    torch.testing.assert_close(found, (up - down) / 2e-5, rtol=1e-7, atol=0)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_behind_the_layer_leaves_attention_as_it_was(error):
    class Failing(nn.Module):
        def forward(self, x):
            raise error

    model = nn.Sequential(Attention(), Attention(), Failing())
    with pytest.raises(error), record(model, model[0], trunk=True):
        model(torch.rand(1, 2, 4))
    assert not model[1].was_fused and is_fused()


def test_attention_is_as_it_was_once_all_blocks_are_closed():
    is_open, may_close = threading.Event(), threading.Event()

    def hold():
        with plain_attention():
            is_open.set()
            may_close.wait(10)

    thread = threading.Thread(target=hold)
    with plain_attention():
        thread.start()
        assert is_open.wait(10)
    assert not is_fused()
    may_close.set()
    thread.join()
    assert is_fused()


def test_what_runs_again_in_the_backward_pass_is_plain_throughout():
    model = nn.Sequential(Attention(), nn.Identity(), Attention())
    model.use_checkpoint = True
    for part in model:
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)
    x = torch.rand(1, 3, 4, requires_grad=True)
    with record(model, model[1], trunk=True) as tape:
        score = model(x).square().sum()
        (gradient,) = torch.autograd.grad(score, tape.activations, create_graph=True)
        gradient.square().sum().backward()
        assert not (model[0].was_fused or model[2].was_fused)
    assert is_fused() and x.grad is not None


@pytest.mark.filterwarnings("ignore")  # torch is about to part with them
def test_traced_layers_are_refused():
    traced = torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2))
    model = nn.Sequential(traced, nn.ReLU())
    with pytest.raises(ValueError, match=r"layer '0' is traced or scripted"):
        record(model, TargetLayer("0")).__enter__()  # which fails, and leaves nothing open
    with record(model, model[1]) as tape:
        model(torch.rand(1, 2))
        assert tape.activations.shape == (1, 2)
