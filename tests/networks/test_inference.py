"""Folding: against the network itself, and where convolutions must be left alone."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from numpy.testing import assert_allclose
from small_networks import Viewing
from torch import nn
from torch.nn import functional as F
from torchvision import models

from sklcam import CAMExplainer
from sklcam.cam import ScoreCAM
from sklcam.cam.passes import record_for
from sklcam.networks import TargetLayer
from sklcam.networks.inference import FoldedConvolutions, LearnPairs, learn_folding, plan_inference


def settled(network):
    """Give the running statistics values of their own."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network.double().eval()


def folded_output(network, images):
    with torch.no_grad():
        with LearnPairs() as pairs:
            expected = network(images)
        folding = pairs.folded()
        with folding:
            return network(images), expected, len(folding)


@pytest.mark.parametrize(
    ("name", "n_pairs"), [("resnet18", 20), ("mobilenet_v2", 52), ("regnet_y_400mf", None),
                          ("googlenet", None), ("efficientnet_b0", None), ("vgg11_bn", 8)]
)  # fmt: skip
def test_the_folded_network_is_the_network(name, n_pairs):
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    network = settled(models.get_model(name, weights=None, num_classes=5, **options))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    output, expected, found = folded_output(network, torch.randn(2, 3, 64, 64).double())
    torch.testing.assert_close(output, expected, rtol=1e-8, atol=1e-10)
    if n_pairs is not None:  # as many as there are convolutions with a normalisation behind them
        assert found == n_pairs
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_the_normalisation_is_not_computed(monkeypatch):
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    images = torch.randn(2, 3, 8, 8).double()
    with torch.no_grad():
        expected = network(images)
        folding = learn_folding(network, images, expected)
        network[1].running_mean.fill_(1e6)  # would show
        with folding:
            torch.testing.assert_close(network(images), expected)


class HalfPrecise(nn.Module):
    """A first part in the precision of autocast, and a second that insists on its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.seen = []

    def forward(self, x):
        x = self.first(x)
        self.seen.append(x.dtype)
        with torch.autocast("cpu", enabled=False):
            x = self.second(x.float())
        self.seen.append(x.dtype)
        return x.mean((2, 3))


def test_autocast_reaches_folded_convolutions():
    network = settled(HalfPrecise())
    images = torch.randn(2, 3, 12, 12).to(next(network.parameters()).dtype)
    network.float()
    images = images.float()
    with torch.no_grad():
        folding = learn_folding(network, images, network(images))
        network.seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            expected = network(images)
            with folding:
                outputs = [network(images), network(images)]
        with folding:
            precise = network(images)
        exact = network(images)
    assert network.seen[:6] == [torch.bfloat16, torch.float32] * 3
    assert network.seen[6:] == [torch.float32] * 4
    for output in outputs:  # bfloat16 has three digits
        torch.testing.assert_close(output, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(precise, exact, rtol=1e-5, atol=1e-6)


def test_autocast_may_begin_behind_the_pass_that_was_recorded():
    network = settled(models.resnet18(weights=None, num_classes=5)).float()
    images = torch.randn(2, 3, 64, 64)
    explainer = CAMExplainer(network, target_layer="layer4", verbose=0).fit(images)

    class Narrow(ScoreCAM):
        def weights(self, recorded, layer):
            with torch.autocast("cpu", torch.bfloat16):
                return super().weights(recorded, layer).float()

    narrow, wide = (explainer.explain(images, method=each) for each in (Narrow(), ScoreCAM()))
    assert_allclose(narrow, wide, atol=0.1)


class Reused(nn.Module):
    """The convolution's output is used beside its normalisation."""

    def __init__(self, use):
        super().__init__()
        self.conv, self.norm, self.use = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), use

    def forward(self, x):
        return self.use(self, x).mean((2, 3))


REUSES = {
    "summed after": lambda m, x: m.norm(y := m.conv(x)) + y,
    "squared before": lambda m, x: (y := m.conv(x)) ** 2 + m.norm(y),
    "in a list": lambda m, x: torch.cat([m.norm(y := m.conv(x)), y], dim=1),
    "normalised twice": lambda m, x: m.norm(y := m.conv(x)) + m.norm(2 * m.norm(y)) + m.norm(y),
    "convolved after": lambda m, x: m.norm(m.conv(x)) + m.conv(x),
    "convolved before": lambda m, x: m.conv(x) + m.norm(m.conv(x)),
    "changed in place": lambda m, x: m.norm(m.conv(x).mul_(2)),
    "read out": lambda m, x: m.norm(y := m.conv(x)) * float(y.detach().numpy().mean()),
    "by the batch's statistics": lambda m, x: F.batch_norm(
        m.conv(x), m.norm.running_mean, m.norm.running_var, training=True
    ),
    "without statistics": lambda m, x: F.batch_norm(m.conv(x), None, None, training=True),
}


@pytest.mark.parametrize("use", REUSES.values(), ids=REUSES)
def test_convolutions_with_another_use_are_left_alone(use):
    network, images = settled(Reused(use)), torch.randn(2, 3, 8, 8).double()
    output, expected, found = folded_output(network, images)
    torch.testing.assert_close(output, expected)
    assert found == 0


def test_what_does_not_come_out_the_same_is_not_folded():
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    images = torch.randn(2, 3, 8, 8).double()
    assert learn_folding(network, images, torch.zeros(2, 4, 6, 6).double()) is None
    assert learn_folding(nn.Flatten(), images, images.flatten(1)) is None


def test_several_layers_are_folded_for_once():
    trunk = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)
    network = settled(nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    layers = [TargetLayer("0"), TargetLayer("3")]
    method, rows = ScoreCAM(batch_size=64), []
    network.register_forward_hook(lambda m, inputs, o: rows.append(len(inputs[0])))
    method.explain(record_for([method], network, layers, torch.randn(2, 3, 8, 8).double()))
    assert rows.count(1) == 2  # one image, to learn the pairs and to check them


def test_nothing_outlives_its_context():
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    images, seen = torch.randn(2, 3, 8, 8).double(), []
    network[0].register_forward_hook(lambda m, i, output: seen.append(weakref.ref(output)))
    with torch.no_grad():
        folding = learn_folding(network, images, network(images))
        with folding:
            network(images)
    gc.collect()
    assert len(seen) == 4
    assert all(reference() is None for reference in seen)


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("views", [True, False])
def test_many_runs_are_in_channels_last_where_the_network_takes_it(views, normalizes):
    network = settled(Viewing()) if views else settled(nn.Sequential(nn.Conv2d(3, 4, 3)))
    if views and not normalizes:
        network[1] = nn.Identity()
    images = torch.randn(2, 3, 8, 8).to(next(network.parameters()).dtype)
    with torch.no_grad():
        expected = network(images)
        runs = plan_inference(network, lambda image: image, images[:1], expected[:1])
        arranged = runs.arrange(images)
        with runs.folded:
            torch.testing.assert_close(network(arranged), expected)
    assert arranged.is_contiguous(memory_format=torch.channels_last) is not views
    assert isinstance(runs.folded, FoldedConvolutions) is (views and normalizes)


def test_an_error_of_the_networks_own_is_raised():
    def broken(image):
        raise RuntimeError("no such kernel")

    def too_large(image):
        calls.append(image)
        raise torch.OutOfMemoryError

    calls, image = [], torch.zeros(1, 3, 8, 8)
    with pytest.raises(RuntimeError, match="no such kernel"):
        plan_inference(broken, lambda image: image, image, torch.zeros(1))
    with pytest.raises(torch.OutOfMemoryError):
        plan_inference(too_large, lambda image: image, image, torch.zeros(1))
    assert len(calls) == 1


def test_weights_that_are_made_anew_in_each_pass_are_left_alone():
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    network = settled(nn.Sequential(convolution, nn.BatchNorm2d(4)))
    images = torch.randn(2, 3, 8, 8).double()
    output, expected, found = folded_output(network, images)
    assert found == 0
    assert torch.equal(output, expected)


def test_folded_weights_follow_no_later_change():
    network = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    images = torch.randn(2, 3, 8, 8).double()
    with torch.no_grad():
        expected = network(images)
        folding = learn_folding(network, images, expected)
        network[0].weight.zero_()
        with folding:
            torch.testing.assert_close(network(images), expected)
