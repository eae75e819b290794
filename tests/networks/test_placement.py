"""Networks that move their images: turned, rolled, shifted and cropped grids are refused."""

from __future__ import annotations

import pytest
import torch
from backbones import MEMBERS, Normalized, small_vit
from torch import nn
from torch.nn import functional as F
from torchvision import models as zoo
from torchvision.transforms.functional import center_crop

from sklcam.networks import TargetLayer, build_model, find_target_layer
from sklcam.networks.families import find_family
from sklcam.networks.zeros import zeros_filled, zeros_of


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Moving(nn.Module):
    def __init__(self, network, move):
        super().__init__()
        self.network, self.move = network, move

    def forward(self, x):
        return self.network(self.move(x))


def small_resnet() -> zoo.ResNet:
    return zoo.ResNet(zoo.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)


def small_shufflenet() -> zoo.ShuffleNetV2:
    return zoo.ShuffleNetV2([1, 1, 1], [4, 8, 16, 16, 16], num_classes=3)


def small_swin() -> zoo.SwinTransformer:
    return zoo.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3)


# A network, the side of its images, and its usual layer.
FAMILIES = {
    "shufflenet": (small_shufflenet, 128, TargetLayer("network.conv5")),
    "vit": (
        lambda: small_vit(48),
        48,
        TargetLayer("network.encoder.layers.encoder_layer_0.ln_1", "tokens", (6, 6), 1),
    ),
    "swin": (small_swin, 64, TargetLayer("network.norm", "nhwc")),
}
# What is done to images of side s, and what is said of the usual layer.
MOVES = {
    "flipped": (lambda x, s: x.flip(-1), "top left of the images show most at its top right"),
    "transposed": (lambda x, s: x.transpose(2, 3), "top right .* at its bottom left"),
    "turned": (lambda x, s: x.rot90(1, (2, 3)), "top left .* at its bottom left"),
    "upside down": (lambda x, s: x.rot90(2, (2, 3)), "top left .* at its bottom right"),
    "rolled by half": (lambda x, s: x.roll(s // 2, -2), "at the (top|bottom)"),
    "rolled": (lambda x, s: x.roll(s // 4, -1), "is shifted: changes at the right .* its left"),
    "rolled back": (lambda x, s: x.roll(-(s // 4), -2), "changes at the top .* its bottom"),
    "shifted": (
        lambda x, s: F.pad(x, (s // 3, -(s // 3))),
        r"the right \d+ of \d+ columns|at its top right",
    ),
    "zoomed": (
        lambda x, s: F.interpolate(x[..., s // 4 :, s // 4 :], size=x.shape[-2:]),
        r"the left \d+ of \d+ columns of pixels and the top \d+ of \d+ rows of pixels change noth",
    ),
}  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_wrapper_that_moves_its_images_is_refused(name, move):
    build, side, usual = FAMILIES[name]
    how, said = MOVES[move]
    model = Moving(build(), lambda x: how(x, side))
    sample = torch.zeros(1, 3, side, side)
    # By name as well, of one move: all go through the same door.
    for target in ("auto", usual.name) if move == "flipped" else ("auto",):
        with pytest.raises(ValueError, match=rf"{usual.name}', of shape .*{said}"):
            find_target_layer(model, target, sample=sample)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_wrapper_that_moves_nothing_has_the_usual_layer(name):
    build, side, usual = FAMILIES[name]
    model, sample = Moving(build(), lambda x: 2 * x), torch.zeros(1, 3, side, side)
    assert find_target_layer(model, sample=sample) == usual
    assert find_target_layer(model, usual.name, sample=sample) == usual
    with pytest.raises(ValueError, match=r"not the plain network of a known family\. Give"):
        find_target_layer(model)


class Flipping(zoo.ResNet):
    def _forward_impl(self, x):
        return super()._forward_impl(x.flip(-1))


class Flip(nn.Module):
    def forward(self, x):
        return x.flip(-1)


def flipping(how: str) -> zoo.ResNet:
    network = small_resnet()
    if how == "its own method":
        network = Flipping(zoo.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    elif how == "its own forward":
        forward = network.forward
        network.forward = lambda x: forward(x.flip(-1))
    elif how == "its own part of forward":
        forward = network._forward_impl
        network._forward_impl = lambda x: forward(x.flip(-1))
    elif how == "a hook of the network":
        network.register_forward_pre_hook(lambda part, inputs: (inputs[0].flip(-1),))
    elif how == "a hook of a part":
        network.layer1.register_forward_hook(lambda part, inputs, output: output.flip(-1))
    elif how == "a part":
        network.maxpool = nn.Sequential(network.maxpool, Flip())
    return network


@pytest.mark.parametrize(
    "how",
    [
        *("its own method", "its own forward", "its own part of forward"),
        *("a hook of the network", "a hook of a part", "a part"),
    ],
)
def test_a_known_class_is_not_taken_at_its_word_where_it_was_changed(how):
    with pytest.raises(ValueError, match="not the plain network of a known family"):
        find_target_layer(flipping(how))
    with pytest.raises(ValueError, match=r"'layer4', of shape .* at its top right"):
        find_target_layer(flipping(how), sample=torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", MEMBERS)
def test_networks_as_they_come_are_taken_at_their_word(name):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network = build_model(name, n_classes=2)
    assert find_family(network).is_plain(network)


def test_a_head_of_ones_own_leaves_a_network_plain():
    class Head(nn.Module):
        def forward(self, x):
            return x[:, :2]

    network = small_resnet()
    network.fc = Head()
    assert find_target_layer(network) == TargetLayer("layer4")


def test_one_of_two_networks_is_not_all_there_is():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = small_resnet(), small_resnet()

        def forward(self, x):
            return self.first(x) + self.second(x)

    with pytest.raises(ValueError, match=r"'second.layer4', .* does not hold everything"):
        find_target_layer(Two(), sample=torch.zeros(1, 3, 64, 64))


def plain_net(*convolutions: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(*convolutions), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


class WholePatches(nn.Module):
    """The centre of an image, which whole patches fill."""

    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, x):
        margins = [-(n % self.side // 2) for n in x.shape[2:] for _ in range(2)]
        return F.pad(x, margins[::-1])


# Networks of ones own, with the side of their images, whose layer "0" is in place by convention.
IN_PLACE = {
    "patches that leave out the rest": (lambda: [nn.Conv2d(3, 8, 14, 14), nn.Tanh()], 83),
    "patches around the centre": (
        lambda: [WholePatches(14), nn.Conv2d(3, 8, 14, 14), nn.Tanh()],
        82,
    ),
    "without padding": (
        lambda: [nn.Conv2d(3, 8, 5), nn.MaxPool2d(2), nn.Conv2d(8, 8, 5), nn.MaxPool2d(2)],
        32,
    ),
    "strides without padding": (
        lambda: [m for c in (3, 8, 8, 8) for m in (nn.Conv2d(c, 8, 3, 2), nn.Tanh())],
        64,
    ),
    "wide fields": (
        lambda: [m for c in (3, 8, 8) for m in (nn.Conv2d(c, 8, 9, 2, 4), nn.Tanh())],
        48,
    ),
    "pixels": (lambda: [nn.Conv2d(3, 8, 1), nn.Tanh()], 16),
    "round": (
        lambda: [nn.Conv2d(3, 8, 5, 2, 2, padding_mode="circular"), nn.Conv2d(8, 8, 3, 2, 1)],
        32,
    ),
    "pooled to a size": (
        lambda: [nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.AdaptiveAvgPool2d(7)],
        30,
    ),
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_grids_in_place_are_taken(kind):
    build, side = IN_PLACE[kind]
    sample = torch.zeros(1, 3, side, side)
    assert find_target_layer(plain_net(*build()), sample=sample) == TargetLayer("0")


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.roll(11, -1),
        lambda x: x[..., 8:, 8:],
        lambda x: x[..., :-9, :-9],
        lambda x: x[..., 8:-8, 8:-8],
    ],
    ids=["rolled", "without a top left", "without a bottom right", "the centre"],
)
def test_grids_of_networks_of_ones_own_that_are_shifted_are_refused(move):
    """All of their quadrants answer in place."""
    convolutions = [m for c in (3, 8, 8) for m in (nn.Conv2d(c, 8, 3, 2, 1), nn.Tanh())]
    model = Moving(plain_net(*convolutions), move)
    with pytest.raises(ValueError, match=r"is (shifted|a grid of a part of the images): .*cannot"):
        find_target_layer(model, sample=torch.zeros(1, 3, 64, 64))


def test_a_normalisation_in_front_changes_nothing():
    network = build_model("squeezenet1_1", n_classes=3)
    usual = find_target_layer(Normalized(network), sample=torch.zeros(1, 3, 64, 64))
    assert usual == TargetLayer("backbone.features.12")


def test_a_network_that_skips_pixels_until_it_is_trained_is_taken():
    # As in many families before training, the branches' last scales are 0, and what is left takes
    # every fourth pixel of a row: of a side of 64 it sees 42.
    stage = zoo.resnet18().train(False)
    for block in stage.modules():
        if isinstance(block, zoo.resnet.BasicBlock):
            nn.init.zeros_(block.bn2.weight)
    network = nn.Sequential(nn.Identity(), stage)  # which is probed, not known
    before = {name: value.clone() for name, value in network.state_dict().items()}
    storages = [parameter.data_ptr() for parameter in network.parameters()]
    assert find_target_layer(network, sample=torch.rand(1, 3, 64, 64)).name == "1.layer4"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [parameter.data_ptr() for parameter in network.parameters()] == storages
    cut = Moving(stage, lambda x: x[..., :32])
    with pytest.raises(ValueError, match="a grid of a part of the images"):
        find_target_layer(cut, sample=torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.flip(-1) ** (1 / 2.2),
        lambda x: torch.log(x.flip(-1) + 1e-3),
        lambda x: x.transpose(2, 3).sqrt(),
    ],
    ids=["gamma", "log", "sqrt"],
)
def test_networks_that_take_no_negative_values_are_looked_into_as_well(move):
    network = Moving(plain_net(nn.Conv2d(3, 8, 3, padding=1)), move)
    with pytest.raises(ValueError, match=r"at the top (left|right) of the images show most at its"):
        find_target_layer(network, sample=torch.rand(1, 3, 32, 32))
    straight = Moving(network.network, torch.sqrt)
    found = find_target_layer(straight, sample=torch.rand(1, 3, 32, 32))
    assert found.name.startswith("network.")


def test_the_advice_is_of_the_layout_that_a_layer_has():
    network = Moving(plain_net(nn.Conv2d(3, 8, 3, padding=1)), lambda x: x.flip(-1))
    with pytest.raises(ValueError, match=r'as in TargetLayer\(.*, layout="nchw"\)'):
        find_target_layer(network, sample=torch.rand(1, 3, 32, 32))


def strided() -> nn.Sequential:
    return plain_net(*(m for c in (3, 8, 8) for m in (nn.Conv2d(c, 8, 3, 2, 1), nn.Tanh())))


PADDED = {
    "all around": lambda x: F.pad(x, (16, 16, 16, 16)),
    "at the right": lambda x: F.pad(x, (0, 64)),
    "at the bottom right": lambda x: F.pad(x, (0, 16, 0, 16)),
    "letterbox": lambda x: F.pad(F.interpolate(x, (32, 64)), (0, 0, 16, 16)),
    "behind a normalisation": nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.ZeroPad2d(16)),
}


@pytest.mark.parametrize("how", PADDED)
def test_networks_that_pad_their_images_are_refused(how):
    said = r"a grid of more than the images: the network .* \d+ (rows|columns), .* are padding"
    with pytest.raises(ValueError, match=said):
        find_target_layer(Moving(strided(), PADDED[how]), sample=torch.zeros(1, 3, 64, 64))


def test_images_without_a_gradient_are_not_taken_for_cropped_ones():
    rounding = Moving(strided(), lambda x: (255 * x).round() / 255)
    found = find_target_layer(rounding, sample=torch.zeros(1, 3, 64, 64))
    assert found == TargetLayer("network.0")


@pytest.mark.parametrize(
    "crop",
    [
        lambda x: center_crop(x, [56, 56]),
        lambda x: x[..., 4:-4, 4:-4],
        lambda x: center_crop(x, [7 * n // 8 for n in x.shape[2:]]),
    ],
    ids=["to a size", "by a margin", "by a share"],
)
@pytest.mark.parametrize("kind", ["convolutions", "resnet", "patches"])
def test_networks_that_crop_narrow_margins_are_refused(kind, crop):
    """Of less than a position of their grids."""
    network = {
        "convolutions": strided,
        "resnet": small_resnet,
        "patches": lambda: plain_net(nn.Conv2d(3, 8, 14, 14), nn.Tanh()),
    }[kind]()
    said = r"the first 4 and the last 4 of 64 rows of pixels change nothing"
    with pytest.raises(ValueError, match=said):
        find_target_layer(Moving(network, crop), sample=torch.zeros(1, 3, 64, 64))


# What convolutions without padding take away may be put around the images before.
MADE_UP_FOR = {
    "LeNet": (
        lambda: [
            *(nn.ZeroPad2d(2), nn.Conv2d(3, 8, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 5), nn.ReLU(), nn.MaxPool2d(2)),
        ],
        28,
    ),
    "wide": (lambda: [nn.ZeroPad2d(6), nn.Conv2d(3, 8, 13), nn.Tanh()], 32),
    "as TensorFlow does": (
        lambda: [m for c in (3, 8) for m in (nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(c, 8, 3, 2))],
        28,
    ),
    "no padding at all": (
        lambda: [m for c in (3, 8, 8) for m in (nn.Conv2d(c, 8, 3, 2), nn.ReLU())],
        38,
    ),
}


@pytest.mark.parametrize("kind", MADE_UP_FOR)
def test_padding_and_strides_of_convolutions_are_no_margins(kind):
    build, side = MADE_UP_FOR[kind]
    found = find_target_layer(plain_net(*build()), sample=torch.zeros(1, 3, side, side))
    assert found == TargetLayer("0")


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d((4, 4))])
@pytest.mark.parametrize("is_active", [False, True])
def test_a_pool_that_loses_the_proportions_leaves_the_layer_before_it(pool, is_active):
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), pool),
        nn.ReLU() if is_active else nn.Dropout(),
        nn.Flatten(),
        nn.LazyLinear(3),
    ).eval()
    network(torch.zeros(1, 3, 48, 80))
    assert find_target_layer(network, sample=torch.zeros(1, 3, 48, 80)) == TargetLayer("2")


def test_what_is_0_before_training_is_filled_in_for_a_while():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3), nn.LazyLinear(2)
    )
    for parameter in (network[0].bias, network[1].weight, network[1].bias, network[2].weight):
        nn.init.zeros_(parameter)
    assert [id(p) for p in zeros_of(network)] == [id(network[1].weight), id(network[2].weight)]
    with zeros_filled(network):
        assert torch.equal(network[1].weight, torch.ones(8)) and network[2].weight.all()
        assert not network[0].bias.any()
    assert not network[1].weight.any() and not network[2].weight.any()
