"""Networks by name and of one's own; torchvision is the oracle."""

from __future__ import annotations

import pytest
import torch
from backbones import (
    MEMBERS,
    SmallNet,
)
from torch import nn
from torchvision import models as zoo

from sklcam.networks import (
    available_models,
    build_model,
    construct,
)


def test_names_are_known_in_any_case_and_are_classifiers_only():
    assert isinstance(build_model("SqueezeNet1_1", n_classes=2), zoo.SqueezeNet)
    assert set(MEMBERS) <= set(available_models())
    assert "fasterrcnn_resnet50_fpn" not in available_models()


def test_same_seed_same_network():
    first, second = [], []
    for target in (first, second):
        torch.manual_seed(3)
        model = build_model("squeezenet1_1", n_classes=2, in_channels=5)
        target.extend(model.state_dict().values())
    assert all(map(torch.equal, first, second))


def test_random_stem_keeps_its_spread_and_its_bias():
    torch.manual_seed(0)
    # kaiming_normal_ with fan_out, as torchvision initialises ResNets: the spread is independent of
    # the input channels.
    stem = build_model("resnet18", n_classes=2, in_channels=8).conv1
    assert stem.in_channels == 8
    assert stem.weight.shape == (64, 8, 7, 7)
    assert stem.weight.requires_grad
    assert float(stem.weight.detach().std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    assert float(stem.weight.detach().mean()) == pytest.approx(0, abs=1e-3)
    patches = build_model("convnext_tiny", n_classes=2, in_channels=1).features[0][0]
    assert torch.equal(patches.bias.detach(), torch.zeros(96))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_input_transform_is_on_for_colour_only(name):
    with torch.device("meta"):
        assert build_model(name, n_classes=2).transform_input
        assert not build_model(name, n_classes=2, in_channels=3 + 1).transform_input


# Networks of one's own


def test_construct_passes_what_the_signature_names():
    model = construct(SmallNet, n_classes=3, in_channels=1)
    assert (model.conv1.in_channels, model.head.out_features) == (1, 3)
    model = construct(SmallNet, n_classes=3, in_channels=1, num_classes=7, width=2)
    assert (model.conv1.in_channels, model.conv1.out_channels) == (1, 2)
    assert model.head.out_features == 7

    def with_n_classes(n_classes):
        return nn.Linear(2, n_classes)

    assert construct(with_n_classes, n_classes=3, in_channels=1).out_features == 3

    def with_anything(**kwargs):
        assert not kwargs
        return nn.Identity()

    assert isinstance(construct(with_anything, n_classes=3, in_channels=1), nn.Identity)


def test_construct_copies_instances():
    model = SmallNet()
    copied = construct(model, n_classes=3, in_channels=1)
    assert copied is not model
    with torch.no_grad():
        copied.conv1.weight.zero_()
    assert (model.conv1.weight != 0).any()


def test_a_builder_may_be_of_no_module():
    def build(num_classes):
        return nn.Linear(2, num_classes)

    build.__module__ = None  # as of what exec defines without a name
    assert construct(build, n_classes=3, in_channels=1).out_features == 3
