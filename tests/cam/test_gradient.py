"""The gradient methods against their equations, and one peer a method that follows its paper.

The peer is pytorch-grad-cam, whose epsilons are kept out of the comparison (see ``peer_maps``);
torchcam sums A times the cube of the gradient in Grad-CAM++, where the paper has the product of two
sums, and is right on networks whose gradient does not vary in space.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np
import pytest
import pytorch_grad_cam as peers
import torch
from small_networks import SmallNet
from torch import nn
from torch.nn import functional as F
from torchcam.methods import SmoothGradCAMpp
from torchvision import models as zoo

from sklcam import CAMExplainer
from sklcam.cam import (
    CAM,
    Counterfactual,
    GradCAM,
    GradCAMPlusPlus,
    RandomCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
    get_method,
    min_max,
)
from sklcam.cam.passes import record_for
from sklcam.networks import find_target_layer

SIZE = 64
PEERS = {
    "gradcam": peers.GradCAM,
    "gradcam++": peers.GradCAMPlusPlus,
    "xgradcam": peers.XGradCAM,
    "layercam": peers.LayerCAM,
    "hirescam": peers.HiResCAM,
}


@lru_cache
def build(name: str) -> nn.Module:
    """A network in float64 whose scores, and so gradients, are of order one or more.

    An untrained network's gradients g are so small that 2 + g sum(A) of Grad-CAM++ is just 2.
    """
    torch.manual_seed(0)
    model = getattr(zoo, name)(num_classes=5) if name != "vgg16" else zoo.vgg16()
    if name == "vgg16":  # its own head has 120 million weights
        model.classifier = nn.Sequential(nn.Linear(25088, 32), nn.ReLU(), nn.Linear(32, 5))
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.weight *= 1e3
    return model.double().eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return build("resnet18")


@pytest.fixture(scope="module", params=["resnet18", "vgg16", "convnext_tiny"])
def model(request) -> nn.Module:
    return build(request.param)


@pytest.fixture
def small() -> nn.Module:
    """Of float64; its layers 0 and 4 are convolutions with ReLUs behind them."""
    torch.manual_seed(0)
    return SmallNet(num_classes=4, in_channels=3, width=6).double().eval()


def images_for(model: nn.Module, n: int) -> torch.Tensor:
    """VGG's last layer has half the stride of the others'."""
    return noise_images(n, SIZE // 2 if isinstance(model, zoo.VGG) else SIZE)


def noise_images(n: int, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, size, size, generator=generator).double()


def raw_maps(method, model, images, target=None, layer="auto") -> torch.Tensor:
    layers = [find_target_layer(model, layer, sample=images[:1])]
    recorded = record_for([get_method(method)], model, layers, images, target=target)
    (maps,) = get_method(method).explain(recorded)
    return maps[:, 0]


def backward(model, layer, images, classes):
    """Activations and gradients by a graph through the whole network."""
    kept = []
    hook = layer.register_forward_hook(lambda _, __, out: (kept.append(out), out.clone())[1])
    scores = model(images)
    hook.remove()
    chosen = scores.gather(1, torch.as_tensor(classes)[:, None]).sum()
    (gradients,) = torch.autograd.grad(chosen, kept[0])
    return kept[0].detach(), gradients


def weighted(weights, activations):
    return torch.einsum("nk,nkuv->nuv", weights, activations).relu()


# The peer adds 1e-6 to Grad-CAM++'s denominator 2 g^2 + g^3 sum(A) and 1e-7 to XGrad-CAM's sum(A).
# Where activations have both signs, as in ConvNeXt, either comes near zero and the epsilon decides:
# by 1 % of the map and more. A map stays as it is if A grows by a power of two and g shrinks by it,
# or the other way round; the denominators then grow until the epsilon is lost in rounding.
SCALES = {peers.GradCAMPlusPlus: 2.0**-40, peers.XGradCAM: 2.0**40}


def peer_maps(peer, model, images, classes, recorded=None) -> torch.Tensor:
    """pytorch-grad-cam's maps before it scales them, and before its ReLU."""
    layer = find_target_layer(model, sample=images[:1]).of(model)
    activations, gradients = recorded or backward(model, layer, images, classes)
    scale = SCALES.get(peer, 1.0)
    with peer(model=model, target_layers=[layer]) as extractor:
        arrays = (activations * scale).numpy(), (gradients / scale).numpy()
        return torch.from_numpy(extractor.get_cam_image(images, layer, None, *arrays, False))


# Parity


@pytest.fixture(scope="module", params=[1, 3, 4])
def batch(model, request):
    """Images, classes, and the activations and gradients that the peers work on."""
    images, classes = images_for(model, request.param), [4, 0, 2, 2][: request.param]
    layer = find_target_layer(model, sample=images[:1]).of(model)
    return images, classes, backward(model, layer, images, classes)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("name", PEERS)
def test_equals_the_peer(model, batch, name, relu):
    images, classes, recorded = batch
    method = get_method(name).set_params(relu=relu)
    ours = raw_maps(method, model, images, torch.tensor(classes))
    theirs = peer_maps(PEERS[name], model, images, classes, recorded)
    assert theirs.any()
    # Rounding in float64, divided by a denominator near zero: of a thousand or so, about 1e-4.
    tolerance = 1e-6 * float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs.relu() if relu else theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", PEERS)
def test_equals_the_peer_on_a_constant_map(resnet, name):
    images = noise_images(3, size=32)  # of which ResNet's last block makes one position
    classes = resnet(images).argmax(dim=1).tolist()
    ours = raw_maps(name, resnet, images)
    theirs = peer_maps(PEERS[name], resnet, images, classes).relu()
    assert ours.shape == (3, 1, 1) and ours.max() > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="'layer4' has a single position"):
        CAMExplainer(resnet, method=name, verbose=0).fit(images)


@pytest.mark.parametrize("name", PEERS)
def test_equals_the_peer_on_a_map_that_is_all_negative(resnet, name):
    against = copy.deepcopy(resnet)
    with torch.no_grad():  # all activations are positive, and all speak against every class
        against.fc.weight.abs_().neg_()
    images = noise_images(3)
    assert not peer_maps(PEERS[name], against, images, [0, 1, 2]).relu().any()
    assert not raw_maps(name, against, images, torch.tensor([0, 1, 2])).any()
    explainer = CAMExplainer(against, method=name, verbose=0).fit(images)
    assert not explainer.explain(images).any()


def test_random_cam_equals_the_peer_with_the_same_draws(resnet, monkeypatch):
    images = noise_images(3)
    drawn = np.random.default_rng(7).uniform(-1, 1, 512)
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size: np.tile(drawn, (size[0], 1)))
    theirs = peer_maps(peers.RandomCAM, resnet, images, [0, 1, 2]).relu()
    assert theirs.max() > 0
    torch.testing.assert_close(raw_maps(RandomCAM(random_state=7), resnet, images), theirs)


def test_random_weights_are_uniform(resnet):
    explainer = CAMExplainer(resnet, method=RandomCAM(random_state=0), verbose=0)
    images = noise_images(2)
    weights = explainer.fit(images).channel_weights(images)
    assert weights.shape == (2, 512) and (weights[0] == weights[1]).all()
    assert -1 <= weights.min() < -0.98 and 0.98 < weights.max() <= 1
    assert abs(weights[0].mean()) < 4 / np.sqrt(3 * 512)  # of four standard errors


@pytest.mark.parametrize("name", ["gradcam", "gradcam++", "layercam"])
def test_the_explainer_resizes_and_scales_the_raw_maps(resnet, name):
    images, classes = noise_images(3), [3, 1, 4]
    raw = peer_maps(PEERS[name], resnet, images, classes).relu()
    resized = F.interpolate(raw[:, None], size=(SIZE, SIZE), mode="bilinear")[:, 0]
    explainer = CAMExplainer(resnet, method=name, batch_size=2, verbose=0).fit(images)
    maps = explainer.explain(images, classes, normalize=False)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, resized, rtol=0, atol=1e-4 * float(raw.max()))
    low, high = resized.amin((1, 2), keepdim=True), resized.amax((1, 2), keepdim=True)
    scaled = (resized - low) / (high - low)
    np.testing.assert_allclose(explainer.explain(images, classes), scaled, rtol=0, atol=1e-4)


# Grad-CAM's options


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("gradient", ["plain", "absolute"])
@pytest.mark.parametrize("layer", ["0", "4"])
def test_gradcam_pooling_and_absolute_gradients(small, pooling, gradient, layer):
    images, classes = noise_images(3, size=12), [0, 3, 1]
    activations, gradients = backward(small, small[int(layer)], images, classes)
    gradients = gradients.abs() if gradient == "absolute" else gradients
    pooled = gradients.mean((2, 3)) if pooling == "mean" else gradients.flatten(2).max(2).values
    method = GradCAM(pooling=pooling, gradient=gradient)
    ours = raw_maps(method, small, images, torch.tensor(classes), layer=layer)
    torch.testing.assert_close(ours, weighted(pooled, activations))


class HandRelu(nn.Module):
    """A ReLU with its backward pass written out."""

    def __init__(self, backward):
        super().__init__()

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.clamp(min=0)

            @staticmethod
            def backward(ctx, gradient):
                (x,) = ctx.saved_tensors
                positive = gradient * (gradient > 0)
                return positive if backward == "deconv" else positive * (x > 0)

        self.function = Function

    def forward(self, x):
        return self.function.apply(x)


def with_hand_relus(model, backward):
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            model.set_submodule(name, HandRelu(backward))
    return model


@pytest.mark.parametrize("gradient", ["guided", "deconv"])
@pytest.mark.parametrize("layer", [0, 4])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_gradcam_with_another_backward_pass(small, gradient, layer, pooling):
    images, classes = noise_images(3, size=12), [0, 3, 1]
    by_hand = with_hand_relus(small, gradient)
    activations, gradients = backward(by_hand, by_hand[layer], images, classes)
    pooled = gradients.mean((2, 3)) if pooling == "mean" else gradients.amax((2, 3))
    expected = weighted(pooled, activations)
    method = GradCAM(gradient=gradient, pooling=pooling)
    ours = raw_maps(method, small, images, torch.tensor(classes), layer=str(layer))
    assert expected.any()
    torch.testing.assert_close(ours, expected)


def test_guided_gradcam_weights_in_vgg():
    vgg, images = build("vgg16"), noise_images(1, size=32)
    by_hand = with_hand_relus(vgg, "guided")
    activations, gradients = backward(by_hand, by_hand.features[29], images, [1])
    ours = raw_maps(GradCAM(gradient="guided"), vgg, images, torch.tensor([1]))
    torch.testing.assert_close(ours, weighted(gradients.mean((2, 3)), activations))


@pytest.mark.parametrize("gradient", ["guided", "deconv"])
def test_no_relu_in_the_backward_pass_is_said(resnet, gradient):
    images = noise_images(1)
    with pytest.warns(UserWarning, match="this backward pass meets none"):
        maps = raw_maps(GradCAM(gradient=gradient), resnet, images)
    torch.testing.assert_close(maps, raw_maps("gradcam", resnet, images))


# Relations between methods


def test_counterfactual_is_gradcam_of_the_negated_score(model):
    images, classes = images_for(model, 3), torch.tensor([4, 0, 2])
    ours = raw_maps("counterfactual", model, images, classes)
    rows = torch.arange(3)
    negated = raw_maps("gradcam", model, images, lambda output: -output[rows, classes])
    assert ours.max() > 0
    torch.testing.assert_close(ours, negated)


def test_counterfactual_takes_gradcams_options(small):
    images, classes = noise_images(3, size=12), [0, 3, 1]
    activations, gradients = backward(small, small[4], images, classes)
    ours = raw_maps(Counterfactual(pooling="max"), small, images, torch.tensor(classes), layer="4")
    expected = weighted((-gradients).amax((2, 3)), activations)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("relu", [True, False])
def test_cam_is_the_head_times_the_activations(resnet, relu):
    images, classes = noise_images(3), torch.tensor([4, 0, 2])
    activations, _ = backward(resnet, resnet.layer4, images, classes)
    expected = torch.einsum("nk,nkuv->nuv", resnet.fc.weight[classes], activations).detach()
    expected = expected.relu() if relu else expected
    cam = raw_maps(CAM(relu=relu), resnet, images, classes)
    torch.testing.assert_close(cam, expected)
    n_positions = cam.shape[1] * cam.shape[2]
    gradcam = raw_maps(GradCAM(relu=relu), resnet, images, classes)
    torch.testing.assert_close(cam, n_positions * gradcam)
    torch.testing.assert_close(min_max(cam), min_max(gradcam))


def test_cam_finds_the_head_of_a_network_of_ones_own(small):
    images, classes = noise_images(2, size=12), torch.tensor([3, 1])
    activations, _ = backward(small, small[5], images, classes)
    expected = weighted(small[8].weight[classes], activations).detach()
    torch.testing.assert_close(raw_maps("cam", small, images, classes, layer="5"), expected)


@pytest.mark.parametrize("name", ["vgg16", "convnext_tiny"])
def test_cam_refuses_other_heads(name):
    images = noise_images(1, size=32)
    explainer = CAMExplainer(build(name), method="cam", verbose=0).fit(images)
    with pytest.raises(ValueError, match="global average pooling and one linear layer"):
        explainer.explain(images)


def test_cam_refuses_a_layer_before_the_last_and_callable_targets(resnet, small):
    with pytest.raises(ValueError, match="does not follow '3'"):
        raw_maps("cam", small, noise_images(1, size=12), layer="3")
    with pytest.raises(ValueError, match="callable target"):
        raw_maps("cam", resnet, noise_images(1), lambda output: output[:, 0])


def test_xgradcam_is_gradcam_on_resnet(resnet):
    images = noise_images(4)
    gradcam = raw_maps("gradcam", resnet, images)
    torch.testing.assert_close(raw_maps(XGradCAM(), resnet, images), gradcam)


# Equations by hand


class Quadratic(nn.Module):
    """y_0 = a^2 b + 3 c and y_1 = -y_0, for three activations in two channels of two positions."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        x = self.layer(x)
        a, b, c = x[:, 0, 0, 0], x[:, 0, 0, 1], x[:, 1, 0, 0]
        y = a**2 * b + 3 * c
        return torch.stack([y, -y], dim=1)


# With a, b, c, d = 2, 1, 5, -1: gradients 2ab = 4, a^2 = 4 in the first channel, whose sum is 3;
# 3 and 0 in the second one, whose sum is 4.
A = torch.tensor([[[[2.0, 1.0]], [[5.0, -1.0]]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("gradcam", [(4 + 4) / 2, (3 + 0) / 2]),
        ("gradcam++", [2 * 4**3 / (2 * 4**2 + 3 * 4**3), 3**3 / (2 * 3**2 + 4 * 3**3)]),
        ("xgradcam", [(2 * 4 + 1 * 4) / 3, 5 * 3 / 4]),
    ],
)
def test_weights_by_hand(name, weights):
    first, second = weights
    expected = [2 * first + 5 * second, max(1 * first - 1 * second, 0)]
    maps = raw_maps(name, Quadratic(), A, torch.tensor([0]), layer="layer")
    torch.testing.assert_close(maps, torch.tensor([[expected]], dtype=torch.float64))


@pytest.mark.parametrize("method", ["layercam", "hirescam"])
@pytest.mark.parametrize(("target", "expected"), [(0, [23.0, 4.0]), (1, [0.0, 0.0])])
def test_products_by_hand(method, target, expected):  # 2 * 4 + 5 * 3 and 1 * 4 - 1 * 0
    maps = raw_maps(method, Quadratic(), A, torch.tensor([target]), layer="layer")
    torch.testing.assert_close(maps, torch.tensor([[expected]], dtype=torch.float64))


def test_layercam_and_hirescam_differ_where_a_gradient_is_negative():
    shown = -A  # gradients 2ab = 4 and a^2 = 4 again, with activations -2, -1; then -5, 1
    hires, layer = (
        raw_maps(get_method(name).set_params(relu=False), Quadratic(), shown, layer="layer")
        for name in ("hirescam", "layercam")
    )
    # The predicted class is the second, of gradients -4, -4, -3, 0.
    torch.testing.assert_close(hires, torch.tensor([[[23.0, 4.0]]], dtype=torch.float64))
    assert not layer.any()


def test_gradcam_plus_plus_without_an_epsilon():
    """Gradients of 1e-30, whose cubes are no float32 any more: halved and summed, as w = g / 2."""
    activations = torch.rand(1, 2, 2, 2, requires_grad=True)
    maps = GradCAMPlusPlus()(1e-30 * activations.sum((1, 2, 3)), activations)
    expected = 4 * 1e-30 / 2 * activations.detach().sum(1)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=0)


def test_a_channel_whose_sum_is_zero_has_no_weight_in_xgradcam():
    activations = torch.tensor([[[[1.0, -1.0]], [[1.0, 1.0]]]], requires_grad=True)
    maps = XGradCAM()((activations * 2).sum((1, 2, 3)), activations)
    assert maps.tolist() == [[[2.0, 2.0]]]


# Smooth Grad-CAM++


def smooth_weights(model, layer, images, classes, n_samples, std, seed):
    """The equation, with the documented noise: one draw a sample, the same for every image."""
    generator = torch.Generator().manual_seed(seed)
    activations, _ = backward(model, layer, images, classes)
    gradients = []
    for _ in range(n_samples):
        noise = std * torch.randn(images.shape[1:], generator=generator)
        gradients.append(backward(model, layer, images + noise, classes)[1])
    gradients = torch.stack(gradients)
    first, second, third = (gradients.pow(power).mean(0) for power in (1, 2, 3))
    total = activations.sum((2, 3), keepdim=True)
    alpha = torch.where(second > 0, second / (2 * second + total * third), 0)
    return (alpha * first.relu()).sum((2, 3)), activations


@pytest.mark.parametrize(("n_samples", "std"), [(1, 0.5), (4, 0.3)])
@pytest.mark.parametrize("layer", [0, 4])
def test_smooth_gradcam_plus_plus_by_its_equation(small, n_samples, std, layer):
    images, classes = noise_images(3, size=12), [0, 3, 1]
    weights, activations = smooth_weights(
        small, small[layer], images, classes, n_samples, std, seed=3
    )
    method = SmoothGradCAMPlusPlus(n_samples=n_samples, std=std, random_state=3)
    ours = raw_maps(method, small, images, torch.tensor(classes), layer=str(layer))
    expected = weighted(weights, activations)
    assert expected.any()
    torch.testing.assert_close(ours, expected)


def test_smooth_gradcam_plus_plus_without_noise_is_gradcam_plus_plus(model):
    images = images_for(model, 3)
    method = SmoothGradCAMPlusPlus(n_samples=1, std=0.0)
    plain = raw_maps("gradcam++", model, images)
    assert plain.max() > 0
    torch.testing.assert_close(raw_maps(method, model, images), plain)


@pytest.mark.parametrize("n_images", [1, 3])
def test_smooth_gradcam_plus_plus_equals_torchcam(resnet, n_images):
    """The weights: torchcam applies them to the activations of its last noisy copy.

    With one sample, as it also takes the last one's gradient for the mean of all.
    """
    model = copy.deepcopy(resnet)
    for module in model.modules():  # its hooks do not survive in-place ReLUs
        if isinstance(module, nn.ReLU):
            module.inplace = False
    images, classes = noise_images(n_images), [4, 0, 2][:n_images]

    class OurNoise:
        def sample(self, shape):
            generator = torch.Generator().manual_seed(5)
            return 0.3 * torch.randn(shape[1:], generator=generator).expand(shape)

    with SmoothGradCAMpp(model, target_layer="layer4", num_samples=1) as extractor:
        extractor._distrib = OurNoise()
        model(images)
        (theirs,) = extractor._get_weights(classes)
    method = SmoothGradCAMPlusPlus(n_samples=1, random_state=5)
    explainer = CAMExplainer(resnet, method=method, verbose=0).fit(images)
    assert theirs.max() > 0
    ours = explainer.channel_weights(images, classes)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.max()))


def test_smooth_gradcam_plus_plus_by_the_explainer(resnet):
    images = noise_images(2)
    classes = resnet(images).argmax(dim=1)
    weights, _ = smooth_weights(resnet, resnet.layer4, images, classes, 2, 0.3, seed=0)
    method = SmoothGradCAMPlusPlus(n_samples=2, random_state=0)
    explainer = CAMExplainer(resnet, method=method, batch_size=1, verbose=0).fit(images)
    np.testing.assert_allclose(explainer.channel_weights(images), weights, rtol=1e-5, atol=1e-7)
