"""Pixel methods against captum, and excitation backpropagation against its equation by hand.

captum hooks modules, so that it sees no functional ReLUs, and no in-place ones: those are turned
off in what it is given.
"""

from __future__ import annotations

import copy
import warnings

import captum.attr as captum
import numpy as np
import pytest
import torch
from small_networks import SmallNet
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models as zoo

from sklcam import CAMExplainer
from sklcam.cam import (
    Deconvnet,
    ExcitationBackprop,
    GradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    Occlusion,
    Saliency,
    get_method,
    upsample,
)
from sklcam.cam.passes import record_for
from sklcam.cam.pixel import _mean_over_patches
from sklcam.networks import TargetLayer, find_target_layer

SIZE = 32


def noise_images(n: int, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, size, size, generator=generator).double()


def vgg11():
    model = zoo.vgg11()
    model.classifier = nn.Sequential(nn.Linear(25088, 8), nn.ReLU(), nn.Linear(8, 5))
    return model


NETWORKS = {
    "resnet18": (lambda: zoo.resnet18(num_classes=5), "layer3"),
    "vgg11": (vgg11, "features.12"),
    "small": (lambda: SmallNet(num_classes=5, in_channels=3), "4"),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A network in float64 and the name of its target layer."""
    build, layer = NETWORKS[request.param]
    torch.manual_seed(0)
    return build().double().eval(), layer


def raw_maps(method, model, images, target=None, layer=None) -> torch.Tensor:
    method = get_method(method)
    if layer == "0":  # of a network of a line of pixels, in which there is no up and down
        layers = [TargetLayer(layer)]
    else:
        layers = [find_target_layer(model, layer, sample=images[:1])] if layer else []
    recorded = record_for([method], model, layers, images, target=target)
    (maps,) = method.explain(recorded)
    return maps[:, 0]


def for_captum(model):
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def by_captum(method, model, images, classes) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it sets hooks
        images, classes = images.clone().requires_grad_(), torch.tensor(classes)
        return method(for_captum(model)).attribute(images, target=classes).detach()


# Gradients


PIXEL = {
    "saliency": (Saliency, lambda model: _Signed(model)),
    "guided": (GuidedBackprop, captum.GuidedBackprop),
    "deconv": (Deconvnet, captum.Deconvolution),
}


class _Signed(captum.Saliency):
    def attribute(self, *args, **kwargs):
        return super().attribute(*args, abs=False, **kwargs)


@pytest.mark.parametrize("n_images", [1, 3, 4])
@pytest.mark.parametrize("name", PIXEL)
def test_gradients_equal_captum(network, name, n_images):
    model, _ = network
    ours, theirs = PIXEL[name]
    images, classes = noise_images(n_images), [4, 0, 2, 2][:n_images]
    expected = by_captum(theirs, model, images, classes)
    assert expected.abs().amax((1, 2, 3)).min() > 0
    signed = raw_maps(ours(channels="keep"), model, images, torch.tensor(classes))
    torch.testing.assert_close(signed, expected)
    largest = raw_maps(ours(), model, images, torch.tensor(classes))
    torch.testing.assert_close(largest, expected.abs().amax(1))


class Functional(SmallNet):
    """SmallNet with a ReLU that is no module, and one that is used twice."""

    def __init__(self, relu):
        super().__init__(num_classes=5, in_channels=3)
        self.relu = relu

    def forward(self, x):
        conv, bn, _, pool, other, _, *head = list(self.children())[:9]
        x = self.relu(other(pool(self.relu(bn(conv(x))))))
        for module in head:
            x = module(x)
        return x


@pytest.mark.parametrize("name", ["guided", "deconv"])
@pytest.mark.parametrize(
    "relu",
    [
        F.relu,
        lambda x: F.relu(x, inplace=True),
        lambda x: F.relu(input=x),
        F.relu_,
        torch.relu,
        torch.relu_,
        lambda x: x.relu(),
        lambda x: x.relu_(),
        nn.ReLU(),
        nn.ReLU(inplace=True),
    ],
)
def test_every_spelling_of_a_relu_counts(name, relu):
    torch.manual_seed(0)
    model = Functional(relu).double().eval()
    with_modules = SmallNet(num_classes=5, in_channels=3).double().eval()
    with_modules.load_state_dict(model.state_dict())
    ours, theirs = PIXEL[name]
    images, classes = noise_images(2, size=12), [4, 0]
    expected = by_captum(theirs, with_modules, images, classes)
    maps = raw_maps(ours(channels="keep"), model, images, torch.tensor(classes))
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("method", [GuidedBackprop(), Deconvnet(), GuidedGradCAM()])
def test_a_network_without_relus_is_warned_of(method):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    images = noise_images(1, size=8).float()
    with pytest.warns(UserWarning, match="this backward pass meets none"):
        maps = raw_maps(method, model, images, layer="0")
    if not isinstance(method, GuidedGradCAM):
        torch.testing.assert_close(maps, raw_maps("saliency", model, images))


class Weighed(nn.Module):
    """An activation of the image's pixels, and their weighted sum; some weights are negative."""

    def __init__(self, activation):
        super().__init__()
        self.activation, self.fc = activation, nn.Linear(3 * 16, 1).double()
        torch.manual_seed(0)
        nn.init.normal_(self.fc.weight)

    def forward(self, x):
        return self.fc(self.activation(x * 1).flatten(1))


RECTIFIERS = {
    "relu6": (nn.ReLU6(), lambda x: (x > 0) & (x < 6)),
    "relu6 in place": (nn.ReLU6(inplace=True), lambda x: (x > 0) & (x < 6)),
    "F.relu6": (F.relu6, lambda x: (x > 0) & (x < 6)),
    "hardtanh": (nn.Hardtanh(-1, 2), lambda x: (x > -1) & (x < 2)),
    "hardtanh_": (F.hardtanh_, lambda x: x.abs() < 1),
    "clamp": (lambda x: x.clamp(0, 3), lambda x: (x > 0) & (x < 3)),
    "clamp_min_": (lambda x: x.clamp_min_(0), lambda x: x > 0),
    "leaky relu": (nn.LeakyReLU(0.1), lambda x: torch.where(x > 0, 1, 0.1)),
    "leaky_relu_": (lambda x: F.leaky_relu_(x, 0.1), lambda x: torch.where(x > 0, 1, 0.1)),
    "prelu": (nn.PReLU().double(), lambda x: torch.where(x > 0, 1, 0.25)),
    "elu": (nn.ELU(inplace=True), lambda x: torch.where(x > 0, 1, x.exp())),
    "gelu": (nn.GELU(), lambda x: _normal_cdf(x) + x * torch.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)),
    "silu": (nn.SiLU(inplace=True), lambda x: x.sigmoid() * (1 + x * (1 - x.sigmoid()))),
    "hardswish": (
        nn.Hardswish(),
        lambda x: torch.where(x > 3, 1, torch.where(x < -3, 0, (2 * x + 3) / 6)),
    ),
}


def _normal_cdf(x):
    return (1 + torch.erf(x / np.sqrt(2))) / 2


@pytest.mark.parametrize("name", RECTIFIERS)
def test_activations_in_the_place_of_relus_by_hand(name):
    """What is negative above, or below if guided, is masked; the rest has the derivative."""
    activation, derivative = RECTIFIERS[name]
    model, images = Weighed(activation), 4 * noise_images(2, size=4)
    plain = model.fc.weight.detach().reshape(1, 3, 4, 4).expand(2, -1, -1, -1)
    positive, slope = plain.relu(), derivative(images)

    def signed(method):
        return raw_maps(method(channels="keep"), model, images)

    torch.testing.assert_close(signed(Saliency), slope * plain)
    torch.testing.assert_close(signed(Deconvnet), positive)
    torch.testing.assert_close(signed(GuidedBackprop), (images > 0) * slope * positive)


@pytest.mark.parametrize(("name", "method"), [("Guided", GuidedBackprop), ("Deconv", Deconvnet)])
@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), torch.tanh, F.softplus])
def test_an_activation_without_a_rule_is_an_error_that_names_it(name, method, activation):
    model, images = Weighed(activation), noise_images(1, size=4)
    where = "'activation' \\(" if isinstance(activation, nn.Module) else "the network's own forward"
    with pytest.raises(ValueError, match=f"^{name}.* no rule, in {where}"):
        raw_maps(method(), model, images)


def test_a_sigmoid_at_the_end_is_part_of_the_score():
    logits, images = vgg11().double().eval(), noise_images(1)
    maps = raw_maps(
        "guidedbackprop", nn.Sequential(logits, nn.Sigmoid()), images, torch.tensor([2])
    )
    slope = (p := logits(images)[:, 2].sigmoid()) * (1 - p)
    torch.testing.assert_close(
        maps, raw_maps("guidedbackprop", logits, images, torch.tensor([2])) * slope.detach()
    )


# Guided Grad-CAM


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("pixel", ["guided", "deconv"])
def test_guided_gradcam_equals_captum(network, pixel, n_images):
    model, layer = network
    images, classes = noise_images(n_images), [1, 0, 4][:n_images]
    theirs = for_captum(model)
    part = theirs.get_submodule(layer)

    def guided_gradcam(_):
        method = captum.GuidedGradCam(theirs, part)
        attribute = method.attribute
        method.attribute = lambda *args, **kw: attribute(*args, interpolate_mode="bilinear", **kw)
        return method

    if pixel == "guided":
        expected = by_captum(guided_gradcam, model, images, classes)
    else:
        gradcam = by_captum(lambda _: captum.LayerGradCam(theirs, part), model, images, classes)
        coarse = F.interpolate(gradcam.relu(), size=(SIZE, SIZE), mode="bilinear")
        expected = coarse * by_captum(captum.Deconvolution, model, images, classes)
    assert expected.any()
    target = torch.tensor(classes)
    signed = raw_maps(GuidedGradCAM(pixel=pixel, channels="keep"), model, images, target, layer)
    torch.testing.assert_close(signed, expected)
    largest = raw_maps(GuidedGradCAM(pixel=pixel), model, images, target, layer)
    torch.testing.assert_close(largest, expected.abs().amax(1))


def test_guided_gradcam_weighs_by_the_plain_gradient_though_relus_follow(network):
    model, layer = network
    images = noise_images(2)
    gradcam = upsample(raw_maps(GradCAM(), model, images, layer=layer), (SIZE, SIZE))
    guided = raw_maps("guidedbackprop", model, images)
    ours = raw_maps("guidedgradcam", model, images, layer=layer)
    torch.testing.assert_close(ours, gradcam * guided)


# Occlusion


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize(
    ("patch", "stride", "fill"), [(4, 4, 0.0), (5, 2, 0.0), (5, 3, 0.7), (12, 5, -1.0), (1, 1, 0.0)]
)
@pytest.mark.parametrize("size", [(12, 12), (12, 17)])
def test_occlusion_equals_captum(patch, stride, fill, size, n_images):
    torch.manual_seed(0)
    model = SmallNet(num_classes=5, in_channels=3).double().eval()
    images, classes = torch.randn(n_images, 3, *size).double(), [4, 0, 2][:n_images]
    expected = captum.Occlusion(model).attribute(
        images,
        sliding_window_shapes=(3, patch, patch),
        strides=(3, stride, stride),
        baselines=fill,
        target=torch.tensor(classes),
        perturbations_per_eval=8,
    )
    method = Occlusion(patch=patch, stride=stride, fill=fill, relu=False, batch_size=7)
    ours = raw_maps(method, model, images, torch.tensor(classes))
    expected = expected[:, 0].detach().double()  # captum works in float32
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_occlusion_by_hand():
    """The score is the sum of all pixels: covering two of them costs their sum."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[1].weight.fill_(1.0)
    images = torch.tensor([[[[-1.0, 2.0, 4.0]]]]).double()
    maps = raw_maps(Occlusion(patch=1, stride=1, relu=False), model, images)
    torch.testing.assert_close(maps[0], images[0, 0])
    maps = raw_maps(
        Occlusion(patch=1, stride=1), model, images
    )  # what speaks against it is cut off
    torch.testing.assert_close(maps[0], torch.tensor([[0.0, 2.0, 4.0]]).double())


def launches_of(method, model, images) -> int:
    """How many operations explaining takes, but for views, of which a device is given none."""

    class Counter(TorchDispatchMode):
        launches = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.launches += not func.is_view
            return func(*args, **(kwargs or {}))

    raw_maps(method, model, images)  # what a first call alone does
    with Counter() as counter:
        raw_maps(method, model, images)
    return counter.launches


def test_occlusion_covers_all_patches_of_a_batch_at_once():
    """Of 9 or 49 patches, the operations are as many where all of them are one batch."""
    model = SmallNet(num_classes=5, in_channels=3).double().eval()
    few = launches_of(Occlusion(patch=4, stride=2, batch_size=49), model, noise_images(1, 8))
    many = launches_of(Occlusion(patch=2, stride=1, batch_size=49), model, noise_images(1, 8))
    assert few == many
    one = launches_of(Occlusion(patch=4, stride=2, batch_size=9), model, noise_images(1, 8))
    two = launches_of(Occlusion(patch=4, stride=2, batch_size=9), model, noise_images(2, 8))
    assert two - one < 60  # a batch more, the network's own operations among them


@pytest.mark.parametrize("size", [(7,), (5, 9), (6, 4, 5)])
@pytest.mark.parametrize(("side", "stride"), [(3, 2), (4, 1), (2, 2)])
def test_a_pixel_has_the_mean_of_the_patches_over_it(size, side, stride):
    """Also of an infinite one, which stays where its patch is."""
    starts = [range(0, n - side + stride, stride) for n in size]
    values = torch.randn(2, 3, *map(len, starts))
    values.view(2, 3, -1)[0, 0, 0] = torch.inf
    total, count = torch.zeros(2, 3, *size), torch.zeros(size)
    for place in np.ndindex(*map(len, starts)):
        at = [slice(each[i], each[i] + side) for each, i in zip(starts, place, strict=True)]
        total[:, :, *at] += values[:, :, *place][(..., *[None] * len(size))]
        count[*at] += 1
    found = _mean_over_patches(values, side, stride, size)
    torch.testing.assert_close(found, total / count.clamp(min=1), rtol=0, atol=0)


def test_occlusions_patch_is_a_seventh_and_its_stride_half_of_that():
    torch.manual_seed(0)
    model, images = SmallNet(num_classes=5, in_channels=3).double().eval(), noise_images(1, 28)
    given = raw_maps(Occlusion(patch=4, stride=2, relu=False), model, images)
    torch.testing.assert_close(raw_maps("occlusion", model, images), given.relu())


# By the explainer


@pytest.mark.parametrize("method", [Saliency, GuidedBackprop, Deconvnet, GuidedGradCAM])
def test_signed_maps_are_not_scaled(method):
    torch.manual_seed(0)
    model, images = SmallNet(num_classes=5, in_channels=3).double().eval(), noise_images(3, 12)
    explainer = CAMExplainer(model, target_layer="4", batch_size=2, verbose=0).fit(images)
    signed = explainer.explain(images, method=method(channels="keep"))
    assert signed.shape == (3, 3, 12, 12)
    assert signed.min() < 0 < signed.max()
    expected = raw_maps(method(channels="keep"), model, images, layer="4")
    np.testing.assert_allclose(signed, expected, rtol=1e-5, atol=1e-8)
    scaled = explainer.explain(images, method=method())
    largest = np.abs(signed).max(axis=1)
    low, high = largest.min((1, 2), keepdims=True), largest.max((1, 2), keepdims=True)
    np.testing.assert_allclose(scaled, (largest - low) / (high - low), atol=1e-5)


# Excitation backpropagation


def won(activations, weights, probability):
    """Eq. 5, neuron by neuron: P(a_j) = sum_i P(a_i) a_j w_ij^+ / sum_j' a_j' w_ij'^+."""
    below = np.zeros(len(activations))
    for p, row in zip(probability, weights, strict=True):
        excitations = [a * max(w, 0) for a, w in zip(activations, row, strict=True)]
        if sum(excitations) > 0:
            below += p * np.array(excitations) / sum(excitations)
    return below


class Perceptron(nn.Sequential):
    """Three activations, two hidden neurons, two classes; the numbers are below."""

    def __init__(self):
        super().__init__(nn.Identity(), nn.Flatten(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
        with torch.no_grad():
            self[2].weight[:] = torch.tensor([[1.0, -1.0, 2.0], [0.5, 1.0, -1.0]])
            self[2].bias[:] = torch.tensor([3.0, 0.0])
            self[4].weight[:] = torch.tensor([[2.0, 1.0], [1.0, -3.0]])
        self.double()


# Activations 1, 2, 3 make hidden neurons of 1 - 2 + 6 + 3 = 8 and 0.5 + 2 - 3 < 0, that is 8 and 0;
# with 1, 2, 0 they are 1 - 2 + 3 = 2 and 0.5 + 2 = 2.5.
@pytest.mark.parametrize(
    ("activations", "target", "expected"),
    [
        # The second neuron is silent: the first one wins all, and shares it as 1 : 0 : 6.
        ([1.0, 2.0, 3.0], 0, [1 / 7, 0, 6 / 7]),
        # 4 : 2.5 among the neurons; the first has one input, the second shares as 0.5 : 2.
        ([1.0, 2.0, 0.0], 0, [4 / 6.5 + 2.5 / 6.5 * 0.2, 2.5 / 6.5 * 0.8, 0]),
        # The second neuron's weight is negative: the first wins.
        ([1.0, 2.0, 0.0], 1, [1, 0, 0]),
    ],
)
def test_winning_probabilities_by_hand(activations, target, expected):
    images = torch.tensor(activations).double().reshape(1, 1, 1, 3)
    method = ExcitationBackprop(contrastive=False)
    maps = raw_maps(method, Perceptron(), images, torch.tensor([target]), layer="0")
    torch.testing.assert_close(maps, torch.tensor([[expected]]).double())


@pytest.mark.parametrize(
    ("activations", "target", "expected"),
    [
        # No weight of class 0 is negative: its dual wins nothing.
        ([1.0, 2.0, 0.0], 0, [4 / 6.5 + 2.5 / 6.5 * 0.2, 2.5 / 6.5 * 0.8, 0]),
        # The dual of class 1 is won by the second neuron, which shares as 0.5 : 2.
        ([1.0, 2.0, 0.0], 1, [1 - 0.2, 0, 0]),
    ],
)
def test_contrastive_probabilities_by_hand(activations, target, expected):
    images = torch.tensor(activations).double().reshape(1, 1, 1, 3)
    maps = raw_maps("excitationbackprop", Perceptron(), images, torch.tensor([target]), "0")
    torch.testing.assert_close(maps, torch.tensor([[expected]]).double())


def test_statistics_of_a_batch_have_no_excitation_of_their_own():
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    with pytest.raises(
        ValueError, match=r"uses the statistics of the batch: .* track_running_stats=False"
    ):
        raw_maps("excitationbackprop", model.eval(), noise_images(2, size=4), layer="0")


def test_contrast_without_weights_is_warned_of():
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = noise_images(1, size=4)
    with pytest.warns(UserWarning, match="the backward pass meets no layer with weights"):
        contrastive = raw_maps(ExcitationBackprop(), model, images, layer="0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(
            raw_maps(ExcitationBackprop(False), model, images, layer="0"), contrastive
        )


class Residual(nn.Module):
    """Convolutions with and without batch normalisation, a sum, both poolings, a linear head."""

    def __init__(self, biases: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=biases)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=biases)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 5, 3, stride=2, bias=biases)
        self.fc = nn.Linear(5, 3)
        self.stem, self.pool, self.block, self.last = (nn.Identity() for _ in range(4))
        for bn in (self.bn1, self.bn2):
            bn.weight.data.copy_(torch.randn(4))  # of both signs
            bn.running_var.uniform_(0.5, 2)
            if biases:
                bn.bias.data.normal_()
                bn.running_mean.normal_()

    def forward(self, x):
        x = self.stem(F.relu(self.bn1(self.conv1(x))))
        x = self.pool(F.max_pool2d(x, 2))
        out = self.bn2(self.conv2(x))
        out += x
        x = self.block(out.relu_())
        x = self.last(self.conv3(x).relu())
        return self.fc(x.mean((2, 3)))


def matrix(linear, shape) -> np.ndarray:
    """The weights between all neurons of two layers, by what each neuron does alone."""
    alone = torch.eye(int(np.prod(shape))).double().reshape(-1, *shape)
    return linear(alone).flatten(1).T.detach().numpy()


@torch.no_grad()
def residual_by_hand(model, image, target, sign=1) -> dict[str, np.ndarray]:
    """The probabilities at each layer; a sign of -1 is for the dual class."""
    stem = F.relu(model.bn1(model.conv1(image[None])))[0]
    pool, places = F.max_pool2d(stem, 2, return_indices=True)
    branch = model.bn2(model.conv2(pool[None]))[0]
    block = (branch + pool).relu()
    last = model.conv3(block[None]).relu()[0]
    n_positions = last[0].numel()

    head = sign * np.repeat(model.fc.weight[target].numpy(), n_positions) / n_positions
    p_last = won(last.flatten().numpy(), head[None], [1.0])
    conv3 = matrix(lambda x: F.conv2d(x, model.conv3.weight, stride=2), block.shape)
    p_block = won(block.flatten().numpy(), conv3, p_last)

    # The sum, as neurons that have two inputs with weights of one.
    inputs = torch.stack([branch, pool]).clamp(min=0).flatten(1).numpy()
    shares = [won(pair, [[1, 1]], [p]) for pair, p in zip(inputs.T, p_block, strict=True)]
    p_branch, p_skip = np.array(shares).T
    scale = (model.bn2.weight / (model.bn2.running_var + model.bn2.eps).sqrt())[:, None, None]
    conv2 = matrix(lambda x: scale * F.conv2d(x, model.conv2.weight, padding=1), pool.shape)
    p_pool = p_skip + won(pool.flatten().numpy(), conv2, p_branch)
    p_stem = np.zeros(stem.shape)
    for channel, of_channel, p in zip(
        p_stem, places.flatten(1), p_pool.reshape(len(p_stem), -1), strict=True
    ):
        channel.reshape(-1)[of_channel.numpy()] = p  # the winner takes all
    shapes = {"stem": stem, "pool": pool, "block": block, "last": last}
    values = {"stem": p_stem, "pool": p_pool, "block": p_block, "last": p_last}
    return {name: values[name].reshape(shapes[name].shape) for name in shapes}


@pytest.fixture(params=[False, True], ids=["no biases", "biases"])
def residual(request) -> Residual:
    torch.manual_seed(2)
    return Residual(biases=request.param).double().eval()


@pytest.mark.parametrize("layer", ["stem", "pool", "block", "last"])
def test_winning_probabilities_of_a_residual_network(residual, layer):
    images = noise_images(2, size=12)
    method = ExcitationBackprop(contrastive=False)
    maps = raw_maps(method, residual, images, torch.tensor([2, 0]), layer)
    for of_image, image, target in zip(maps, images, [2, 0], strict=True):
        expected = residual_by_hand(residual, image, target)[layer].sum(axis=0)
        assert expected.any()
        np.testing.assert_allclose(of_image, expected, rtol=1e-6, atol=1e-12)
        if residual.conv1.bias is None:  # whose part of an excitation is nobody's
            assert expected.sum() == pytest.approx(1)
            assert float(of_image.sum()) == pytest.approx(1)


@pytest.mark.parametrize("layer", ["stem", "pool", "block", "last"])
def test_contrastive_probabilities_of_a_residual_network(residual, layer):
    images = noise_images(2, size=12)
    maps = raw_maps("excitationbackprop", residual, images, torch.tensor([2, 0]), layer)
    for of_image, image, target in zip(maps, images, [2, 0], strict=True):
        of_class, of_dual = (
            residual_by_hand(residual, image, target, sign)[layer].sum(axis=0) for sign in (1, -1)
        )
        expected = np.maximum(of_class - of_dual, 0)
        assert expected.any()
        np.testing.assert_allclose(of_image, expected, rtol=1e-6, atol=1e-12)


class Head(nn.Module):
    """A layer, and a head whose pooling and linear function can be spelt out."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.fc, self.head = nn.ReLU(), nn.Linear(3, 2), head

    def forward(self, x):
        return self.head(self.layer(x), self.fc)


@pytest.mark.parametrize(
    "head",
    [
        lambda x, fc: fc(x.mean((2, 3))),
        lambda x, fc: fc(x.sum((2, 3))),
        lambda x, fc: fc(torch.sum(x, dim=(2, 3))),
        lambda x, fc: fc(x.mean(-1).mean(-1)),
        lambda x, fc: fc(F.avg_pool2d(x, 4).flatten(1)),
        lambda x, fc: fc(F.adaptive_avg_pool1d(x.flatten(2), 1).flatten(1)),
        lambda x, fc: F.linear(input=torch.mean(input=x, dim=(2, 3)), weight=fc.weight),
        lambda x, fc: F.conv2d(F.adaptive_avg_pool2d(x, 1), fc.weight[..., None, None]).flatten(1),
    ],
)
def test_every_spelling_of_a_pooled_linear_head(head):
    """All positions of all channels compete: P is proportional to a_k w_k^+."""
    images = noise_images(2, size=4)
    model = Head(head).double()
    positive = model.fc.weight[1].detach().clamp(min=0)
    expected = torch.einsum("k,nkuv->nuv", positive, images.relu())
    expected /= expected.sum((1, 2), keepdim=True)
    method = ExcitationBackprop(contrastive=False)
    maps = raw_maps(method, model, images, torch.tensor([1, 1]), "layer")
    assert expected.any()
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize(
    "head",
    [
        lambda x, fc: x.mean((2, 3)) @ fc.weight.T,
        lambda x, fc: torch.einsum("nkuv,ck->nc", x, fc.weight),
        lambda x, fc: fc(x.mean((2, 3))).softmax(dim=1),
        lambda x, fc: F.log_softmax(fc(x.mean((2, 3))), dim=1),
    ],
)
def test_excitation_backprop_refuses_what_it_would_get_wrong(head):
    with pytest.raises(ValueError, match="is defined for ReLU networks"):
        raw_maps("excitationbackprop", Head(head).double(), noise_images(1, size=4), None, "layer")


@pytest.mark.parametrize("layer", ["maxpool", "layer1", "layer2.1", "layer3.0", "layer4"])
def test_probabilities_sum_to_one_in_resnet(layer):
    torch.manual_seed(0)
    model = zoo.resnet18(num_classes=5).double().eval()  # without biases, as it is untrained
    method = ExcitationBackprop(contrastive=False)
    maps = raw_maps(method, model, noise_images(2), torch.tensor([4, 1]), layer)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2).double())


class MobileBlock(nn.Sequential):
    """A depthwise and a pointwise convolution, as in MobileNets."""

    def __init__(self, n_in, n_out, relu):
        super().__init__(
            nn.Conv2d(n_in, n_in, 3, 2, 1, groups=n_in, bias=False), nn.BatchNorm2d(n_in), relu(),
            nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), relu(),
        )  # fmt: skip


@pytest.mark.parametrize(
    "relu",
    [
        nn.ReLU6,
        lambda: nn.ReLU6(inplace=True),
        lambda: nn.Hardtanh(0, 3),
        lambda: _Call(F.relu6),
        lambda: _Call(lambda x: x.clamp(0, 6)),
        lambda: _Call(lambda x: x.clamp_(min=0, max=2)),
        lambda: _Call(lambda x: F.relu(x) * 0.5),
        lambda: _Call(lambda x: 3 * F.relu(x) / torch.full((1, 1, 1, 1), 7.0)),
    ],
)
@pytest.mark.parametrize("layer", ["2", "3", "4"])
def test_probabilities_sum_to_one_in_mobile_nets(relu, layer):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), relu(), MobileBlock(8, 16, relu),
        MobileBlock(16, 16, relu), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).double().eval()  # fmt: skip
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.weight, 8)  # so that ReLU6 saturates
    images = 3 * noise_images(2)
    maps = raw_maps(ExcitationBackprop(False), model, images, torch.tensor([4, 1]), layer)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(2).double())


class _Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.mean((2, 3), keepdim=True),
        lambda x: x - x.mean((2, 3), keepdim=True),
        lambda x: x + x.mean((2, 3), keepdim=True),
        lambda x: torch.add(x, x, alpha=2),
        lambda x: 1 / (1 + x),
        lambda x: x.clamp(-1, 1),
        lambda x: F.leaky_relu(x),
        nn.SiLU(),
        nn.InstanceNorm2d(3),
        nn.LocalResponseNorm(2),
    ],
)
def test_excitation_backprop_refuses_what_would_change_the_mass(function):
    model = nn.Sequential(nn.ReLU(), _Call(function), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"is defined for ReLU networks\. .* meets .* in '1"):
        raw_maps("excitationbackprop", model, noise_images(2, size=4), None, "0")


@pytest.mark.parametrize("n_images", [1, 2])
def test_weights_win_nothing(n_images):
    """A parameter of the activations' own shape is a bias, and a made weight is a weight."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.fc = nn.ReLU(), nn.Linear(3, 2).double()
            self.shift = nn.Parameter(torch.rand(1, 3, 4, 4).double())

        def forward(self, x):
            weight = self.fc.weight - self.fc.weight.mean(1, keepdim=True)
            return F.linear((self.relu(x) + self.shift.abs()).mean((2, 3)), weight)

    torch.manual_seed(0)
    maps = raw_maps(ExcitationBackprop(False), Shifted(), noise_images(n_images, 4), None, "relu")
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(n_images).double())


def test_excitation_backprop_leaves_the_scores_as_they_are(residual):
    images = noise_images(2, size=12)
    layers = [find_target_layer(residual, "pool", sample=images)]
    recorded = record_for([get_method("excitationbackprop")], residual, layers, images)
    torch.testing.assert_close(recorded.output.detach(), residual(images).detach())


@pytest.mark.parametrize(
    ("build", "function"),
    [
        (lambda: zoo.convnext_tiny(num_classes=5), "layer_norm"),
        (
            lambda: zoo.VisionTransformer(
                64, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
            ),
            "multi_head_attention|gelu|layer_norm",
        ),
        (lambda: zoo.mobilenet_v3_small(num_classes=5), "hardswish"),
    ],
)
def test_excitation_backprop_is_for_relu_networks(build, function):
    model = build().eval()
    explainer = CAMExplainer(model, method="excitationbackprop", verbose=0)
    images = noise_images(1, size=64).float()
    explainer.fit(images)
    with pytest.raises(ValueError, match=rf"ReLU networks\. .* meets .*({function})"):
        explainer.explain(images)
