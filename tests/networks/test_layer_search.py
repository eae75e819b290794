"""The layer that is found: by execution, by name, inside of wrappers, and its layout."""

from __future__ import annotations

import pytest
import torch
from backbones import Normalized, SmallNet, small_vit
from token_networks import Blocks
from torch import nn

from sklcam.networks import TargetLayer, build_model, find_target_layer


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# Layers


def test_auto_on_a_network_of_ones_own_is_the_last_that_runs_once():
    # The ReLU runs twice, the pooling has one position: the dropout is the last with a grid.
    sample = torch.zeros(1, 3, 8, 8)
    assert find_target_layer(SmallNet(), sample=sample) == TargetLayer("drop")

    class WithoutDropout(SmallNet):
        def forward(self, images):
            features = self.relu(self.conv2(self.relu(self.norm(self.conv1(images)))))
            return self.head(self.pool(features).flatten(1))

    assert find_target_layer(WithoutDropout(), sample=sample) == TargetLayer("conv2")


def test_auto_prefers_the_container_that_finishes_last():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    assert find_target_layer(model, sample=torch.zeros(1, 3, 8, 8)) == TargetLayer("0")


def test_auto_goes_by_execution_not_by_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.second = nn.Conv2d(4, 4, 1)
            self.first = nn.Conv2d(3, 4, 1)

        def forward(self, images):
            return self.head(self.second(self.first(images)).mean(dim=(2, 3)))

    layer = find_target_layer(Backwards(), sample=torch.zeros(1, 3, 8, 8))
    assert layer == TargetLayer("second")


def test_auto_looks_inside_a_wrapper():
    sample = torch.zeros(1, 3, 64, 64)
    resnet = Normalized(build_model("resnet18", n_classes=2))
    assert find_target_layer(resnet, sample=sample) == TargetLayer("backbone.layer4")
    vit = Normalized(small_vit(16))
    layer = find_target_layer(vit, sample=torch.zeros(1, 3, 16, 16))
    name = "backbone.encoder.layers.encoder_layer_0.ln_1"
    assert layer == TargetLayer(name, "tokens", grid=(2, 2), n_prefix=1)
    swin = Normalized(build_model("swin_t", n_classes=2))
    assert find_target_layer(swin, sample=sample) == TargetLayer("backbone.norm", "nhwc")


def test_auto_ignores_the_part_of_a_wrapped_network_that_does_not_run():
    class Half(Normalized):
        def forward(self, images):
            features = self.backbone.maxpool(self.backbone.conv1(images))
            return self.backbone.layer1(features).mean(dim=(2, 3))

    model = Half(build_model("resnet18", n_classes=2))
    layer = find_target_layer(model, sample=torch.zeros(1, 3, 32, 32))
    assert layer == TargetLayer("backbone.layer1")


def test_auto_without_an_answer_says_so():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match=r"Grad-CAM needs a layer with a spatial output"):
        find_target_layer(flat, sample=torch.zeros(1, 3, 2, 2))


def test_named_layers_are_checked_and_know_their_layout():
    with torch.device("meta"):
        resnet = build_model("resnet18", n_classes=2)
        swin = build_model("swin_t", n_classes=2)
        vit = build_model("vit_b_16", n_classes=2)
    assert find_target_layer(resnet, "layer2.0") == TargetLayer("layer2.0")
    for name in ("features.5", "features.7.1.norm2", "features.0.1", "norm"):
        assert find_target_layer(swin, name).layout == "nhwc"
    for name in ("features.0.0", "permute"):
        assert find_target_layer(swin, name).layout == "nchw"
    block = "encoder.layers.encoder_layer_3"
    assert find_target_layer(vit, block) == TargetLayer(block, "tokens", (14, 14), 1)
    assert find_target_layer(vit, "conv_proj") == TargetLayer("conv_proj")
    block, wrapped = "backbone.encoder.layers.encoder_layer_0", Normalized(small_vit(32))
    found = find_target_layer(wrapped, block, sample=torch.zeros(1, 3, 32, 32))
    assert found == TargetLayer(block, "tokens", (4, 4), 1)


def test_a_target_layer_of_ones_own_is_taken_as_it_is():
    layer = TargetLayer("conv1", "tokens", grid=(2, 2))
    assert find_target_layer(SmallNet(), layer) == layer


def test_compiled_networks_are_looked_into():
    model = build_model("resnet18", n_classes=2)
    compiled = torch.compile(model)
    layer = find_target_layer(compiled)
    assert layer == TargetLayer("layer4")
    assert layer.of(compiled) is model.layer4
    assert find_target_layer(compiled, "_orig_mod.layer3") == TargetLayer("layer3")


# Layouts


class ChannelsLast(nn.Module):
    """Height, width and channels are all 8, so that no size tells them apart."""

    def __init__(self):
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 8, 4, 4), nn.Sequential(nn.LayerNorm(8), nn.GELU())
        self.permute, self.drop = Permute(0, 2, 3, 1), nn.Dropout()
        self.mixed, self.mlp, self.head = nn.Identity(), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.drop(self.block(self.permute(self.patches(x))))
        return self.head(self.mixed(x + self.mlp(x)).mean((1, 2)))


class Permute(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(self.axes)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("patches", "nchw"),
        ("permute", "nhwc"),
        ("block.0", "nhwc"),
        ("block.1", "nhwc"),
        ("block", "nhwc"),
        ("drop", "nhwc"),
        ("mlp", "nhwc"),
    ],
)
def test_layouts_are_those_along_which_layers_work(name, layout):
    found = find_target_layer(ChannelsLast(), name, sample=torch.zeros(1, 3, 32, 32))
    assert found == TargetLayer(name, layout=layout)


def test_auto_finds_the_layout_of_what_it_finds():
    class Swinish(ChannelsLast):
        def forward(self, x):
            return self.head(self.block(self.permute(self.patches(x))).mean((1, 2)))

    found = find_target_layer(Swinish(), sample=torch.zeros(1, 3, 32, 32))
    assert found == TargetLayer("block", layout="nhwc")


def test_a_layout_is_told_where_sizes_and_layers_do_not_tell():
    class There(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.permute = nn.Conv2d(3, 8, 4, 4), Permute(0, 2, 3, 1)
            self.mlp = nn.Linear(8, 8)

        def forward(self, x):
            return self.mlp(self.permute(self.conv(x))) + 1

    model = nn.Sequential(There(), nn.Flatten(), nn.Linear(8**3, 2))
    found = find_target_layer(model, "0", sample=torch.zeros(1, 3, 32, 32))
    assert found == TargetLayer("0", layout="nhwc")


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny"])
def test_layouts_that_are_found_are_those_that_are_known(name):
    network, hidden = (build_model(name, n_classes=2).eval() for _ in range(2))
    hidden.__class__ = type("Unknown", (nn.Module,), {**vars(type(network))})
    sample = torch.zeros(1, 3, 64, 64)
    parts = ["features.0", "features.1.1", "features.2", "features.3.0", "features.4"]
    parts += ["features.5", "features.7", "features.7.1"]
    if name == "swin_t":
        parts += ["features.3.1.norm1", "norm", "permute"]
    for part in parts:
        found = find_target_layer(hidden, part, sample=sample)
        assert found == find_target_layer(network, part), part


def test_layers_that_go_by_two_names_are_known_by_both():
    model = Blocks()
    model.last = model.norm
    for name in ("norm", "last"):
        found = find_target_layer(model, name, sample=torch.zeros(1, 3, 32, 32))
        assert found == TargetLayer(name, "tokens", (8, 8))
