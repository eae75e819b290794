"""Score-CAM and its relatives, and Ablation-CAM, against brute force and the peers.

Brute force is the paper's formula in loops, through the whole network. torchcam scales masks before
it resizes them, where the paper's algorithm 1 (and we) do so after; it is asked where both are the
same: on layers at the images' own resolution, and on grids of 2 x 2, whose extremes bilinear
resizing keeps in the corners.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np
import pytest
import torch
from pytorch_grad_cam import AblationCAM as PeerAblationCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from sklearn.base import clone
from small_networks import SmallNet
from torch import nn
from torch.nn import functional as F
from torchcam import methods as torchcam
from torchvision import models as zoo

from sklcam import CAMExplainer
from sklcam.cam import ISCAM, SSCAM, AblationCAM, ScoreCAM, get_method
from sklcam.cam.passes import record_for
from sklcam.networks import TargetLayer, find_target_layer
from sklcam.networks.families import find_family

SIZE = 12


def noise_images(n: int, size: int = SIZE, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, channels, size, size, generator=generator).double()


@pytest.fixture
def small() -> nn.Module:
    """Of float64; layer 0 has the images' resolution, layer 4 half of it."""
    torch.manual_seed(0)
    return SmallNet(num_classes=4, in_channels=3, width=6).double().eval()


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return zoo.resnet18(num_classes=5).double().eval()


@lru_cache
def build(name: str) -> nn.Module:
    """A network of float32 whose scores differ: untrained ones hardly do."""
    torch.manual_seed(0)
    if name == "swin":
        model = zoo.SwinTransformer([4, 4], 16, [1, 1], [2, 2], window_size=[4, 4], num_classes=5)
    elif name == "vit":
        model = zoo.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=5)
        nn.init.normal_(model.heads.head.weight)  # it starts at zero
    elif name == "vgg16":
        model = zoo.vgg16()
        model.classifier = nn.Linear(25088, 5)  # its own head has 120 million weights
    else:
        model = getattr(zoo, name)(num_classes=5)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.weight *= 1e3
    return model.eval()


def recorded_by(method, model, images, target=None, layer="auto"):
    if isinstance(layer, str):
        # Without a trial of layers that are (n, K, u, v) anyway, whose passes tests would count.
        is_known = layer == "auto" or find_family(model) is not None
        layer = (
            find_target_layer(model, layer, sample=images[:1]) if is_known else TargetLayer(layer)
        )
    return record_for([method], model, [layer], images, target=target)


def raw_maps(method, *args, **kwargs) -> torch.Tensor:
    method = get_method(method)
    (maps,) = method.explain(recorded_by(method, *args, **kwargs))
    return maps[:, 0]


def weights_of(method, *args, **kwargs) -> torch.Tensor:
    method = get_method(method)
    (weights,) = method.channel_weights(recorded_by(method, *args, **kwargs))
    return weights[:, 0]


@torch.no_grad()
def activations_of(model, layer, images) -> torch.Tensor:
    kept = []
    hook = layer.register_forward_hook(lambda _, __, output: kept.append(output.clone()))
    model(images)
    hook.remove()
    return kept[0]


def weighted(weights, activations):
    return torch.einsum("nk,nkuv->nuv", weights, activations).relu()


@torch.no_grad()
def brute_force_masking(model, layer, images, classes, variants=lambda mask, k: [mask]):
    """Algorithm 1 of Score-CAM, image by image and channel by channel.

    ``variants`` makes the masks whose scores are averaged of the mask of channel k.
    """
    activations = activations_of(model, layer, images)
    scores = []
    for image, channels, of_class in zip(images, activations, classes, strict=True):
        shown = []
        for k, channel in enumerate(channels):
            mask = F.interpolate(
                channel[None, None], size=image.shape[1:], mode="bilinear", align_corners=False
            )[0, 0]
            constant = channel.max() == channel.min()
            mask = mask * 0 if constant else (mask - mask.min()) / (mask.max() - mask.min())
            shown.append(torch.stack([image * variant for variant in variants(mask, k)]))
        of_variants = model(torch.cat(shown))[:, of_class].reshape(len(channels), -1)
        scores.append(of_variants.mean(dim=1))
    scores = torch.stack(scores)
    return scores.softmax(dim=1), activations


def integration(n_samples):
    """IS-CAM: the mask times 1/N, then times (1 + 2)/N, and so on."""
    factors = [sum(range(1, i + 1)) / n_samples for i in range(1, n_samples + 1)]
    return lambda mask, k: [factor * mask for factor in factors]


def mask_noise(seed, n_samples, std, n_channels, size=SIZE):
    """SS-CAM's noise: a generator for each channel, (n_samples, K, height, width)."""
    noise = torch.empty(n_channels, n_samples, size, size).double()
    for k, state in enumerate(np.random.SeedSequence(seed).generate_state(n_channels)):
        generator = torch.Generator().manual_seed(int(state))
        noise[k].normal_(0, std, generator=generator)
    return noise.transpose(0, 1)


# Score-CAM


@pytest.mark.parametrize("n_images", [1, 3, 4])
@pytest.mark.parametrize("layer", [0, 2, 4, 5])
def test_scorecam_is_its_algorithm(small, layer, n_images):
    images, classes = noise_images(n_images), [3, 0, 2, 2][:n_images]
    expected, activations = brute_force_masking(small, small[layer], images, classes)
    target = torch.tensor(classes)
    torch.testing.assert_close(weights_of("scorecam", small, images, target, str(layer)), expected)
    maps = raw_maps("scorecam", small, images, target, str(layer))
    torch.testing.assert_close(maps, weighted(expected, activations))


@pytest.mark.parametrize(
    ("name", "layer", "n_images"),
    [
        ("resnet18", "layer1", 3),
        ("vgg16", "features.3", 1),
        ("convnext_tiny", "features.1", 1),
    ],
)
def test_scorecam_on_known_networks(name, layer, n_images):
    model, images = build(name), noise_images(n_images, size=32).float()
    classes = list(range(n_images))
    part = model.get_submodule(layer)
    expected, activations = brute_force_masking(model, part, images, classes)
    assert expected.max() > 2 * expected.min()
    ours = weights_of("scorecam", model, images, torch.tensor(classes), layer)
    torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-5)
    maps = raw_maps("scorecam", model, images, torch.tensor(classes), layer)
    expected = weighted(expected, activations)
    torch.testing.assert_close(maps, expected, rtol=1e-2, atol=1e-3 * float(expected.max()))


def test_scorecam_equals_torchcam_on_resnets_last_layer(resnet):
    resnet, images = resnet.float(), noise_images(1, size=48).float()
    with torchcam.ScoreCAM(resnet, target_layer="layer4", batch_size=64) as extractor:
        resnet(images)
        (theirs,) = extractor([3], normalized=False)
    ours = raw_maps(ScoreCAM(batch_size=64), resnet, images, torch.tensor([3]))
    assert ours.shape == (1, 2, 2) and ours.max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.fixture
def with_constants(small) -> nn.Module:
    """Channel 1 of layer 4 is always 0.7, channel 2 always 0."""
    with torch.no_grad():
        small[4].weight[1:3] = 0
        small[4].bias[1], small[4].bias[2] = 0.7, 0.0
    return small


@pytest.mark.parametrize("size", [12, 31])  # 31: resizing a constant has rounding noise
def test_constant_channels_share_one_pass_and_weigh_what_an_empty_mask_does(with_constants, size):
    model, images, classes = with_constants, noise_images(3, size=size), [0, 3, 1]
    expected, activations = brute_force_masking(model, model[4], images, classes)
    assert activations[:, 1].unique().tolist() == [0.7]
    rows = []
    hook = model.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    ours = weights_of(ScoreCAM(batch_size=5), model, images, torch.tensor(classes), "4")
    hook.remove()
    torch.testing.assert_close(ours, expected)
    assert torch.equal(ours[:, 1], ours[:, 2])
    # The prediction, one image twice to fold, an empty image each, and four channels that vary.
    assert sum(rows) == 3 + 2 + 3 * 1 + 3 * 4
    assert max(rows) <= 5


def test_dead_activations_make_an_empty_map(small):
    with torch.no_grad():
        small[4].weight.zero_()
        small[4].bias.fill_(-1.0)  # nothing is left behind the ReLU
    images = noise_images(2)
    for method in (ScoreCAM(), ISCAM(n_samples=2), SSCAM(n_samples=2, random_state=0)):
        weights = weights_of(method, small, images, layer="5")
        torch.testing.assert_close(weights.sum(1), torch.ones(2).double())
        assert not raw_maps(method, small, images, layer="5").any()
    assert not raw_maps("ablationcam", small, images, layer="5").any()
    # What is not cut off by a ReLU is negative everywhere.
    assert not raw_maps("scorecam", small, images, layer="4").any()
    torch.testing.assert_close(
        raw_maps(ScoreCAM(relu=False), small, images, layer="4"), -torch.ones(2, 6, 6).double()
    )


# IS-CAM and SS-CAM


@pytest.mark.parametrize("n_images", [1, 3, 4])
@pytest.mark.parametrize("layer", [0, 4])
def test_iscam_is_its_equation(small, n_images, layer):
    images, classes = noise_images(n_images), [3, 0, 2, 2][:n_images]
    expected, activations = brute_force_masking(
        small, small[layer], images, classes, integration(n_samples=4)
    )
    maps = raw_maps(ISCAM(n_samples=4), small, images, torch.tensor(classes), str(layer))
    torch.testing.assert_close(maps, weighted(expected, activations))


@pytest.mark.parametrize("n_images", [1, 3, 4])
@pytest.mark.parametrize("layer", [0, 4])
def test_sscam_is_its_equation_with_the_same_noise(small, n_images, layer):
    images, classes = noise_images(n_images), [3, 0, 2, 2][:n_images]
    noise = mask_noise(seed=5, n_samples=3, std=2.0, n_channels=6)
    expected, activations = brute_force_masking(
        small, small[layer], images, classes, lambda mask, k: mask + noise[:, k]
    )
    method = SSCAM(n_samples=3, random_state=5)
    maps = raw_maps(method, small, images, torch.tensor(classes), str(layer))
    torch.testing.assert_close(maps, weighted(expected, activations))


@pytest.mark.parametrize("n_images", [1, 3])
def test_sscam_draws_once_for_a_channel(small, n_images, monkeypatch):
    n_draws, draw = 0, torch.Tensor.normal_

    def counted(*args, **kwargs):
        nonlocal n_draws
        n_draws += 1
        return draw(*args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "normal_", counted)
    method = SSCAM(n_samples=7, random_state=0)
    whole = weights_of(method, small, noise_images(n_images), layer="4")
    assert n_draws == 6
    monkeypatch.setattr("sklcam.cam.perturbation._SAMPLES_AT_ONCE", 3)  # 144 pixels: no noise lost
    torch.testing.assert_close(weights_of(method, small, noise_images(n_images), layer="4"), whole)
    assert n_draws == 6 + 6 * 3


def test_iscam_of_one_step_and_sscam_without_noise_are_scorecam(with_constants):
    images = noise_images(3)
    expected = raw_maps("scorecam", with_constants, images, layer="4")
    for method in (ISCAM(n_samples=1), SSCAM(n_samples=2, std=0.0)):
        ours = raw_maps(method, with_constants, images, layer="4")
        torch.testing.assert_close(ours, expected)


class Draws:
    """torchcam's distribution, giving out our noise."""

    def __init__(self, noise):
        self.noises = iter(noise)

    def sample(self, shape):
        return next(self.noises).expand(shape)


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("name", ["ScoreCAM", "ISCAM", "SSCAM"])
def test_equals_torchcam_at_the_images_resolution(small, name, n_images):
    images, classes = noise_images(n_images), [3, 0, 2][:n_images]
    options = {} if name == "ScoreCAM" else {"num_samples": 3}
    with getattr(torchcam, name)(small, target_layer="0", **options) as extractor:
        if name == "SSCAM":
            extractor._distrib = Draws(mask_noise(seed=5, n_samples=3, std=2.0, n_channels=6))
        small(images)
        (theirs,) = extractor(classes, normalized=False)
    ours = {
        "ScoreCAM": ScoreCAM(),
        "ISCAM": ISCAM(n_samples=3),
        "SSCAM": SSCAM(n_samples=3, random_state=5),
    }[name]
    assert theirs.max() > 0
    maps = raw_maps(ours, small, images, torch.tensor(classes), "0")
    torch.testing.assert_close(maps, theirs, rtol=1e-5, atol=1e-7)


# Ablation-CAM


@torch.no_grad()
def brute_force_ablation(model, layer, images, classes, axis=1):
    """(y - y_k) / |y| with a hook that sets channel k to zero, through the whole network."""
    chosen = torch.arange(len(images)), torch.as_tensor(classes)
    scores = model(images)[chosen]
    n_channels = activations_of(model, layer, images).shape[axis]
    falls = []
    for k in range(n_channels):

        def ablate(_, __, output, k=k):
            output = output.clone()
            output.movedim(axis, 1)[:, k] = 0
            return output

        hook = layer.register_forward_hook(ablate)
        falls.append(scores - model(images)[chosen])
        hook.remove()
    return torch.stack(falls, dim=1) / scores.abs()[:, None]


@pytest.mark.parametrize("n_images", [1, 3, 4])
@pytest.mark.parametrize("layer", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_ablationcam_is_brute_force(small, layer, n_images, batch_size):
    images, classes = noise_images(n_images), [3, 0, 2, 2][:n_images]
    expected = brute_force_ablation(small, small[layer], images, classes)
    method, target = AblationCAM(batch_size=batch_size), torch.tensor(classes)
    weights = weights_of(method, small, images, target, str(layer))
    torch.testing.assert_close(weights, expected)
    maps = raw_maps(method, small, images, target, str(layer))
    activations = activations_of(small, small[layer], images)
    torch.testing.assert_close(maps, weighted(expected, activations))


@pytest.mark.parametrize(
    ("name", "layer", "n_images", "axis"),
    [
        ("resnet18", "layer1", 3, 1),
        ("resnet18", "layer1.1.conv2", 1, 1),  # within a residual block
        ("vgg16", "features.3", 1, 1),
        ("convnext_tiny", "features.1.2", 1, 1),
        ("densenet121", "features.pool0", 1, 1),
        ("swin", TargetLayer("features.1.0", layout="nhwc"), 4, 3),
        ("vit", "auto", 3, 2),
    ],
)
def test_ablationcam_is_brute_force_on_known_networks(name, layer, n_images, axis):
    """In float64, as an ablation changes a score by little: the difference is all rounding else."""
    model, images = copy.deepcopy(build(name)).double(), noise_images(n_images, size=32)
    target = model(images).argmin(dim=1)
    if isinstance(layer, str):
        layer = find_target_layer(model, layer, sample=images[:1])
    expected = brute_force_ablation(model, layer.of(model), images, target, axis)
    assert expected.abs().max() > 1e-3
    ours = weights_of("ablationcam", model, images, target, layer)
    torch.testing.assert_close(ours, expected)


def test_ablationcam_equals_pytorch_grad_cam(resnet):
    """Where scores are positive, by which it divides, and activations are zero somewhere."""
    images = noise_images(3, size=32)
    target = resnet(images).argmax(dim=1)
    assert (resnet(images).amax(dim=1) > 0).all()
    with PeerAblationCAM(model=resnet, target_layers=[resnet.layer1]) as peer:
        theirs = peer.get_cam_weights(
            images,
            resnet.layer1,
            [ClassifierOutputTarget(int(c)) for c in target],
            activations_of(resnet, resnet.layer1, images),
            None,
        )
    ours = weights_of("ablationcam", resnet, images, target, "layer1")
    assert ours.any()
    # The peer keeps its scores in float32.
    torch.testing.assert_close(ours.float(), torch.as_tensor(theirs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_negative_scores_do_not_turn_the_map_inside_out(sign):
    """y = a - 2 b + c0 for channels of means a and b: w = (a, -2b) / |y|, whatever the sign."""
    model = nn.Sequential(
        nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1)
    ).double()
    with torch.no_grad():
        model[3].weight[:] = torch.tensor([[1.0, -2.0]])
        model[3].bias[:] = 10.0 * sign
    images = torch.tensor([[[[1.0, 3.0]], [[0.0, 1.0]]]]).double()
    y = 2 - 2 * 0.5 + 10 * sign
    expected = torch.tensor([[2.0, -1.0]]).double() / abs(y)
    ours = weights_of("ablationcam", model, images, torch.tensor([0]), TargetLayer("0"))
    torch.testing.assert_close(ours, expected)


class Counted(nn.Module):
    """Counts the rows that it computes."""

    def __init__(self, module):
        super().__init__()
        self.module, self.rows = module, 0

    def forward(self, x):
        self.rows += len(x)
        return self.module(x)


@pytest.mark.parametrize("batch_size", [4, 256])
def test_what_lies_before_the_layer_runs_once(small, batch_size):
    for part in (0, 1, 4):
        small[part] = Counted(small[part])
    weights_of(AblationCAM(batch_size=batch_size), small, noise_images(3), layer="1")
    assert small[0].rows == small[1].rows == 3
    n_batches = -(-6 // batch_size)  # each begins with an intact row, for a check
    # And a look at what becomes of the layer, which ends where its channels meet.
    assert small[4].rows == 3 + 3 + 3 * (6 + n_batches)


@pytest.mark.parametrize("layer", ["4", "5"])
def test_where_channels_are_pooled_the_head_runs_twice_more(small, layer):
    """To be looked at, and to be sure of what was seen."""
    for part in (4, 6, 8):
        small[part] = Counted(small[part])
    weights_of("ablationcam", small, noise_images(3), layer=layer)
    assert small[4].rows == 3 and small[6].rows == small[8].rows == 3 + 3 + 3


@pytest.mark.parametrize(
    ("name", "layer"),
    [("mobilenet_v3_small", "auto"), ("convnext_tiny", "auto"), ("densenet121", "auto")],
)
def test_pooled_channels_are_ablated_in_known_networks(name, layer, monkeypatch):
    """In float64; without their normalisation at the end, random scores would hardly differ."""
    model, images = copy.deepcopy(build(name)).double(), noise_images(2, size=32)
    target = torch.tensor([3, 1])
    monkeypatch.setattr(AblationCAM, "_falls", None)  # the plain way is not gone
    ours = weights_of("ablationcam", model, images, target, layer)
    part = find_target_layer(model, layer, sample=images[:1]).of(model)
    torch.testing.assert_close(ours, brute_force_ablation(model, part, images, target))


class ByHand(nn.Module):
    def __init__(self, pooled):
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.pooled = pooled

    def forward(self, x):
        return self.head(self.pooled(self.layer(x)))


def test_what_cannot_be_seen_of_a_head_is_noticed():
    """A copy outside of torch is not seen; the rest of the head is affine, and so would it all."""
    torch.manual_seed(0)
    unseen = ByHand(lambda x: (x + copy.deepcopy(x).relu()).mean((2, 3))).double().eval()
    images, target = noise_images(3), torch.tensor([0, 2, 1])
    expected = brute_force_ablation(unseen, unseen.layer, images, target)
    ours = weights_of("ablationcam", unseen, images, target, "layer")
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("pooled", [lambda x: x.mean((2, 3)), lambda x: x.relu().std((2, 3))])
def test_hooks_of_the_layer_have_their_say_once(pooled):
    """A channel is zero behind them, as it is with hooks that come later."""
    torch.manual_seed(0)
    hooked, images = ByHand(pooled).double().eval(), noise_images(3)
    target = torch.tensor([0, 2, 1])
    hooked.layer.register_forward_hook(lambda layer, inputs, output: 2 * output + 1)
    expected = brute_force_ablation(hooked, hooked.layer, images, target)
    ours = weights_of("ablationcam", hooked, images, target, "layer")
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("power", [1, 2])
def test_images_that_change_the_scores_of_others_are_refused(power):
    """Affine, or behind a pooling: alone, an image has not the scores that it has among others."""
    torch.manual_seed(0)
    mixing = ByHand(lambda x: (x.mean((2, 3)) - x.mean((0, 2, 3))) ** power).double().eval()
    with pytest.raises(
        ValueError, match=r"AblationCAM runs the network on from .* target layer 'layer', but"
    ):
        weights_of("ablationcam", mixing, noise_images(3), torch.tensor([0, 2, 1]), "layer")


def test_the_plain_way_is_the_same(small, monkeypatch):
    images = noise_images(3)
    expected = weights_of(AblationCAM(), small, images, layer="4")
    monkeypatch.setattr(AblationCAM, "_falls_of_head", lambda *_: None)
    torch.testing.assert_close(weights_of(AblationCAM(), small, images, layer="4"), expected)


def test_ablation_in_bfloat16_keeps_what_a_channel_changes(small):
    """Of the scores themselves, bfloat16 has two digits."""
    small, images = small.float(), noise_images(3).float()
    with torch.no_grad():
        small[8].bias += 4
    target = torch.tensor([3, 0, 2])
    expected = weights_of("ablationcam", small, images, target, "4")
    with torch.autocast("cpu", torch.bfloat16):
        ours = weights_of("ablationcam", small, images, target, "4")
    assert (ours - expected).abs().max() < 0.03 * expected.abs().max()
    assert expected.abs().max() < 0.05


class InPlace(nn.Module):
    """Works in place on what its modules return, before and behind the target layer."""

    def __init__(self, change):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.layer = nn.Conv2d(4, 4, 3, padding=1)
        self.skip = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)
        self.change = change

    def forward(self, x):
        x = self.change(self.bn(self.conv(x)))
        y = self.layer(x)
        y += self.skip(x)
        return self.head(F.relu_(y).mean((2, 3)))


def double_in_place(x):
    x *= 2  # twice would be four times
    return x


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize(
    "change", [F.relu_, double_in_place, lambda x: x.clamp_(min=0), torch.relu, lambda x: 2 * x]
)
def test_networks_that_work_in_place_between_their_modules(change, n_images):
    torch.manual_seed(0)
    model, images = InPlace(change).double().eval(), noise_images(n_images)
    target = torch.tensor([2, 0, 1][:n_images])
    expected = brute_force_ablation(model, model.layer, images, target)
    weights = weights_of("ablationcam", model, images, target, "layer")
    torch.testing.assert_close(weights, expected)


class Twice(nn.Module):
    """The target layer, and one before it, run twice in a pass."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        x = self.layer(self.conv(x).relu()).relu()
        return self.head(self.layer(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("run", [0, 1, -1, -2])
def test_a_layer_that_runs_twice_is_ablated_in_the_run_that_is_asked_for(run):
    torch.manual_seed(0)
    model, images = Twice().double().eval(), noise_images(2)

    @torch.no_grad()
    def scores(channel=None):
        x = images
        for i in range(2):
            x = model.layer(model.conv(x).relu() if i == 0 else model.conv(x))
            if channel is not None and i == run % 2:
                x[:, channel] = 0
            x = x.relu()
        return model.head(x.mean((2, 3)))

    falls = torch.stack([scores() - scores(k) for k in range(3)], dim=2)
    expected = (falls / scores().abs()[..., None])[:, 1]
    layer = TargetLayer("layer", run=run)
    ours = weights_of("ablationcam", model, images, torch.tensor([1, 1]), layer)
    torch.testing.assert_close(ours, expected)
    assert expected.abs().sum() > 0


def test_ablation_refuses_rows_that_are_not_images():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

        def forward(self, x):
            views = self.head(self.layer(torch.cat([x, x.flip(-1)])).relu().mean((2, 3)))
            return views.unflatten(0, (2, -1)).mean(0)

    images = noise_images(2)
    layer = TargetLayer("layer", reshape=lambda output: output[: len(output) // 2])
    torch.manual_seed(0)
    with pytest.raises(
        ValueError, match=r"runs the network on from .* target layer 'layer', but .*not images"
    ):
        weights_of("ablationcam", Folded().double().eval(), images, torch.tensor([1, 1]), layer)


# All of them


METHODS = {
    "scorecam": ScoreCAM(),
    "iscam": ISCAM(n_samples=2),
    "sscam": SSCAM(n_samples=2, random_state=0),
    "ablationcam": AblationCAM(),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_batch_size_makes_no_difference(with_constants, name):
    images = noise_images(4)
    expected = weights_of(METHODS[name], with_constants, images, layer="4")
    for batch_size in (1, 3, 7, 100):
        method = clone(METHODS[name]).set_params(batch_size=batch_size)
        ours = weights_of(method, with_constants, images, layer="4")
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", METHODS)
def test_no_more_rows_than_the_batch_size(small, name):
    rows = []
    method = clone(METHODS[name])
    recorded = recorded_by(method.set_params(batch_size=3), small, noise_images(4), layer="4")
    hook = small.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    method.channel_weights(recorded)
    hook.remove()
    assert max(rows) <= 3 + (name == "ablationcam")  # and its intact row


@pytest.mark.parametrize("name", METHODS)
def test_the_explainer_resizes_and_scales_the_raw_maps(small, name):
    images, classes = noise_images(3), [3, 0, 2]
    raw = raw_maps(METHODS[name], small, images, torch.tensor(classes), "4")[:, None]
    resized = F.interpolate(raw, size=(SIZE, SIZE), mode="bilinear")[:, 0]
    explainer = CAMExplainer(small, METHODS[name], "4", batch_size=2, verbose=0).fit(images)
    maps = explainer.explain(images, classes, normalize=False)
    np.testing.assert_allclose(maps, resized, rtol=1e-5, atol=1e-6)
    low, high = resized.amin((1, 2), keepdim=True), resized.amax((1, 2), keepdim=True)
    scaled = torch.where(high > low, (resized - low) / (high - low), 0)
    np.testing.assert_allclose(explainer.explain(images, classes), scaled, atol=1e-5)
