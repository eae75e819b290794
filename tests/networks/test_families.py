"""Families: the layer that each entry of the table names is one to explain."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from backbones import MEMBERS, Normalized, SmallNet, saved
from torch import Tensor, nn

from sklcam.networks import (
    TargetLayer,
    available_models,
    build_model,
    check_output,
    find_target_layer,
    load_weights,
)
from sklcam.networks.families import FAMILIES, Family, find_family


def member(name: str) -> nn.Module:
    # RegNet computes its widths with tensors, which the meta device cannot do.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return build_model(name, n_classes=2)


def test_each_family_has_a_member_in_these_tests():
    found = {find_family(member(name)) for name in MEMBERS}
    assert found - {find_family(member("efficientnet_lite0"))} == set(FAMILIES)


def test_a_family_is_one_entry(monkeypatch, tmp_path):
    family = Family(SmallNet, "conv2", auxiliary_heads=("aux.",))
    monkeypatch.setattr("sklcam.networks.families.FAMILIES", (*FAMILIES, family))
    model = SmallNet()
    assert find_target_layer(model) == TargetLayer("conv2")
    assert find_target_layer(model, "conv1") == TargetLayer("conv1")
    path = saved(tmp_path, {**model.state_dict(), "aux.weight": torch.zeros(2)})
    assert torch.equal(load_weights(SmallNet(), path).head.bias, model.head.bias)


def test_a_family_says_how_its_layers_lie(monkeypatch):
    def tokens(network: nn.Module, name: str) -> TargetLayer:
        return TargetLayer(name, "tokens", grid=(2, network.conv1.out_channels), n_prefix=1)

    family = Family(SmallNet, "conv2", tokens)
    monkeypatch.setattr("sklcam.networks.families.FAMILIES", (family,))
    model = SmallNet(width=5)
    expected = TargetLayer("conv1", "tokens", grid=(2, 5), n_prefix=1)
    assert find_target_layer(model, "conv1") == expected
    assert find_target_layer(model) == replace(expected, name="conv2")


def test_what_a_family_says_of_its_layers_is_tried_in_a_wrapper(monkeypatch):
    """Four axes are no tokens, whatever is said of them."""
    family = Family(SmallNet, "conv2", lambda network, name: TargetLayer(name, "tokens", (8, 8)))
    monkeypatch.setattr("sklcam.networks.families.FAMILIES", (family,))
    found = find_target_layer(Normalized(SmallNet()), sample=torch.zeros(1, 3, 8, 8))
    assert found == TargetLayer("backbone.conv2")


def test_the_path_of_a_usual_layer_counts_from_the_end():
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    network = nn.Sequential(nn.Identity(), inner, nn.Flatten())
    paths = {"1": "1", "-1": "2", "-2.-1": "1.1", "-2.0": "1.0"}
    for path, name in paths.items():
        assert Family(nn.Sequential, path).usual_layer(network) == TargetLayer(name)


@pytest.mark.parametrize(("name", "side"), MEMBERS.items())
def test_family_gives_plain_logits_and_a_grid_with_gradients(name, side):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build_model(name, n_classes=5, in_channels=1, image_size=(side, side))
    images = torch.randn(2, 1, side, side)
    assert model.training
    with torch.no_grad():
        logits = model(images)
    assert type(logits) is Tensor
    assert logits.shape == (2, 5)
    if name.startswith("vit"):
        # torchvision starts the head of a ViT at zero, which stops every gradient.
        nn.init.normal_(model.heads.head.weight)

    layer = find_target_layer(model)
    logits, activations = recorded_forward(model.eval(), layer, images)
    assert type(logits) is Tensor
    assert logits.shape == (2, 5)
    (gradient,) = torch.autograd.grad(logits.sum(), activations)
    grid = layer.to_grid(gradient)
    assert grid.ndim == 4
    assert grid.shape[2] == grid.shape[3] > 1
    assert (grid != 0).any(dim=1).all(), "every position of the grid must matter to the output"


def recorded_forward(model: nn.Module, layer: TargetLayer, images: Tensor):
    activations, n_runs = [], 0

    def hook(module, inputs, output):
        nonlocal n_runs
        n_runs += 1
        if n_runs <= (layer.run or 0):
            return None
        activations.append(output.detach().requires_grad_())
        return activations[-1].clone()

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with layer.of(model).register_forward_hook(hook):
        logits = model(images)
    assert len(activations) == 1
    return logits, activations[0]


# RegNet computes its widths with tensors, which the meta device cannot do; one is built above.
@pytest.mark.parametrize("name", [n for n in available_models() if not n.startswith("regnet")])
def test_every_name_builds_with_a_target_layer_before_the_head(name):
    with torch.device("meta"):
        model = build_model(name, n_classes=7)
        layer = find_target_layer(model)
        shapes = []
        layer.of(model).register_forward_hook(
            lambda module, inputs, output: shapes.append(layer.to_grid(output).shape)
        )
        check_output(model, torch.empty(1, 3, 224, 224), 7)
    assert len(shapes) == (1 if layer.run is None else 2)
    shape = shapes[-1]
    assert shape[2] == shape[3] >= 5


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("convnext_tiny", "features.7.2"),
        ("efficientnet_lite0", "_swish"),
        ("vgg16", "features.29"),
        ("densenet121", "features"),
        ("googlenet", "inception5b"),
        ("inception_v3", "Mixed_7c"),
        ("shufflenet_v2_x0_5", "conv5"),
        ("mnasnet0_5", "layers"),
        ("vit_b_16", "encoder.layers.encoder_layer_11.ln_1"),
        ("swin_t", "norm"),
    ],
)
def test_the_usual_layers_are_the_documented_ones(name, layer):
    with torch.device("meta"):
        assert find_target_layer(build_model(name, n_classes=2)).name == layer


def test_vgg_target_is_the_relu_after_the_last_convolution():
    for name in ("vgg11", "vgg11_bn", "alexnet"):
        with torch.device("meta"):
            model = build_model(name, n_classes=2)
        layer = find_target_layer(model)
        index = int(layer.name.split(".")[1])
        assert isinstance(layer.of(model), nn.ReLU)
        assert not any(isinstance(m, nn.Conv2d) for m in model.features[index:])


@pytest.mark.parametrize("name", ["features.0.0", "features.0", "features.3", "norm", "permute"])
def test_swin_layouts_are_what_the_layers_give(name):
    with torch.device("meta"):
        model = build_model("swin_t", n_classes=2)
        layer = find_target_layer(model, name)
        outputs = []
        layer.of(model).register_forward_hook(lambda module, args, out: outputs.append(out))
        model.eval()(torch.empty(1, 3, 64, 96))
    (output,) = outputs
    # Rows and columns are as 64 to 96, wherever the channels are.
    _, _, u, v = layer.to_grid(output).shape
    assert (u, v) in ((16, 24), (8, 12), (4, 6), (2, 3))
