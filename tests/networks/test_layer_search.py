"""The layer that is found: by execution, by name, inside of wrappers."""

from __future__ import annotations

import pytest
import torch
from backbones import (
    Normalized,
    SmallNet,
    small_vit,
)
from torch import nn

from sklcam.networks import (
    TargetLayer,
    build_model,
    find_target_layer,
)


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
    with torch.device("meta"):
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
    block = f"backbone.{block}"
    assert find_target_layer(Normalized(vit), block) == TargetLayer(block, "tokens", (14, 14), 1)


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
