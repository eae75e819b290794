"""The layer of unknown networks: tokens, several rows of an image, checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from backbones import SmallNet
from token_networks import Block, Blocks
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision import models as zoo

from sklcam.cam import RecordedPass
from sklcam.networks import TargetLayer, build_model, find_target_layer
from sklcam.networks.layer_search import check_positions


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# Networks that are not known


@pytest.mark.parametrize("n_prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(("size", "grid"), [((32, 32), (8, 8)), ((24, 40), (6, 10))])
def test_tokens_are_told_from_those_before_them(n_prefix, size, grid):
    found = find_target_layer(Blocks(n_prefix), sample=torch.zeros(1, 3, *size))
    assert found == TargetLayer("norm", "tokens", grid, n_prefix)


@pytest.mark.parametrize("n_prefix", [1, 3])
def test_behind_a_class_token_the_first_norm_of_the_last_block_is_explained(n_prefix):
    sample = torch.zeros(1, 3, 32, 32)
    model = Blocks(n_prefix, n_blocks=3, readout="class token")
    found = find_target_layer(model, sample=sample)
    assert found == TargetLayer("blocks.2.norm1", "tokens", (8, 8), n_prefix)
    for dead in ("norm", "blocks", "blocks.2", "blocks.2.norm2"):
        layer = find_target_layer(model, dead, sample=sample)  # it is a grid
        with pytest.raises(ValueError, match=rf"{dead}' has a gradient at 0 of its 64 positions"):
            check_positions(model, layer, sample)
    check_positions(model, found, sample)


def test_where_a_class_hangs_on_one_token_an_earlier_layer_is_explained():
    """As in VOLO, whose classes are those of a class token and, each, of its strongest patch."""

    class Strongest(Blocks):
        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.extra.expand(len(x), -1, -1), tokens], dim=1)
            logits = self.head(self.norm(self.blocks(tokens)))
            return logits[:, 0] + logits[:, 1:].amax(1)

    found = find_target_layer(Strongest(1), sample=torch.zeros(1, 3, 32, 32))
    assert found == TargetLayer("blocks.1.norm1", "tokens", (8, 8), 1)


@pytest.mark.parametrize("seed", [17, 27, 31, 38])  # whose new heads are at work at one position
def test_a_relu_of_classes_may_cut_off_all_positions_but_one(seed):
    """It depends on the weights, and with a fit they change."""
    torch.manual_seed(seed)
    model = build_model("squeezenet1_1", n_classes=2, in_channels=1).eval()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        images = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
        classes = model.classifier[:3](model.features(images))
    assert (classes > 0).flatten(2).sum(2).min() < 2  # it does happen
    check_positions(model, find_target_layer(model), torch.zeros(1, 1, 64, 64))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_tokens_of_images_of_another_shape_are_refused():
    """As many tokens would be another grid, and nothing would show it."""
    model = Blocks(1)
    found = find_target_layer(model, sample=torch.zeros(1, 3, 24, 40))
    assert found.image_size == (24, 40)
    RecordedPass(model, [found], torch.zeros(2, 3, 24, 40))
    with pytest.raises(
        ValueError, match=r"grid of \(6, 10\) for images of 24 x 40 pixels; .* for 40 x 24"
    ):
        RecordedPass(model, [found], torch.zeros(2, 3, 40, 24))


def test_a_block_that_is_called_a_norm_is_none():
    class PreNorm(nn.Module):
        def __init__(self, width, inner):
            super().__init__()
            self.norm, self.inner = nn.LayerNorm(width), inner

        def forward(self, x):
            return self.inner(self.norm(x))

    class Wrapped(Block):
        def __init__(self, width):
            super().__init__(width)
            self.attention, self.mlp = PreNorm(width, self.attention), PreNorm(width, self.mlp)

        def forward(self, x):
            x = x + self.attention(x)
            return x + self.mlp(x)

    model = Blocks(1, readout="class token")
    model.blocks = nn.Sequential(Wrapped(8), Wrapped(8))
    found = find_target_layer(model, sample=torch.zeros(1, 3, 32, 32))
    assert found == TargetLayer("blocks.1.attention.norm", "tokens", (8, 8), 1)


def test_a_norm_that_is_passed_by_gives_way_to_what_it_is_given():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.head, self.other = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            x = self.conv(x)
            return 0.01 * self.head(self.norm(x).amax((2, 3))) + self.other(x.mean((2, 3)))

    assert find_target_layer(Beside(), sample=torch.zeros(1, 3, 16, 16)) == TargetLayer("conv")


def test_grids_of_almost_the_same_proportions_are_told_apart():
    """Of 29 tokens of an image of 24 x 16, 6 x 4 and five others, or 7 x 4 and one."""
    found = find_target_layer(Blocks(5), sample=torch.zeros(1, 3, 24, 16))
    assert found == TargetLayer("norm", "tokens", (6, 4), 5)


def test_a_head_of_zeros_does_not_hide_where_gradients_would_be():
    model = Blocks(1, readout="class token")
    nn.init.zeros_(model.head.weight)
    found = find_target_layer(model, sample=torch.zeros(1, 3, 32, 32))
    assert found.name == "blocks.1.norm1"
    assert not model.head.weight.any()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("blocks.1.attention.softmax", "does not change where images change"),  # (1, 1, 65, 65)
        ("norm", "does not change where images change"),  # its last token is no patch
        ("head", r"returns shape \(1, 3\) for a sample of shape \(1, 3, 32, 32\)"),
    ],
)
def test_a_named_layer_that_is_no_grid_of_places_is_refused(name, why):
    model = Blocks(1, suffix=True)
    with pytest.raises(ValueError, match=rf"'{name}'.*{why}"):
        find_target_layer(model, name, sample=torch.zeros(1, 3, 32, 32))


def test_a_grid_that_is_turned_is_no_grid_of_places():
    class Turned(Blocks):
        def forward(self, x):
            return super().forward(x.transpose(2, 3))

    with pytest.raises(ValueError, match=r"'norm', of shape .* does not change where images"):
        find_target_layer(Turned(), sample=torch.zeros(1, 3, 32, 32))


def test_the_output_itself_is_not_explained():
    dense = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    sample = torch.zeros(1, 3, 16, 16)
    assert find_target_layer(dense, sample=sample) == TargetLayer("1")
    with pytest.raises(ValueError, match=r"'2', of shape .* is the output itself"):
        find_target_layer(dense, "2", sample=sample)


class TwoWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.coarse, self.fine = (
            nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(3))) for _ in "ab"
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.coarse(x[..., ::2, ::2]).mean((2, 3)) + self.fine(x).mean((2, 3)))


def test_where_nothing_holds_all_the_candidates_are_listed():
    sample = torch.zeros(1, 3, 32, 32)
    listed = r"'fine', of shape \(1, 4, 26, 26\), does not hold .* name it: target_layer='"
    with pytest.raises(ValueError, match=listed):
        find_target_layer(TwoWays(), sample=sample)
    assert find_target_layer(TwoWays(), "coarse", sample=sample) == TargetLayer("coarse")


def test_a_layer_of_few_positions_is_known_from_larger_images():
    model = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(c, 8, 5, 2, 2), nn.Tanh()) for c in (3, 8, 8)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    assert find_target_layer(model, sample=torch.zeros(1, 3, 16, 16)) == TargetLayer("2")


def test_what_takes_more_than_images_is_called_by_its_owner():
    class Aged(Blocks):
        def forward(self, image, age):
            return super().forward(image) * age[:, None]

    model = Aged(1)
    found = find_target_layer(
        model,
        sample=torch.zeros(1, 3, 32, 32),
        forward=lambda images: model(images, torch.ones(len(images))),
    )
    assert found == TargetLayer("norm", "tokens", (8, 8), 1)


class Reordered(Blocks):
    """Patches in another order, or with the class token somewhere among them."""

    def __init__(self, order, at=None):
        super().__init__(0 if at is None else 1, n_blocks=3)
        self.order, self.at = order, at

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)[:, self.order]
        if self.at is not None:
            extra = self.extra.expand(len(x), -1, -1)
            tokens = torch.cat([tokens[:, : self.at], extra, tokens[:, self.at :]], dim=1)
        tokens = self.norm(self.blocks(tokens))
        return self.head(tokens.mean(1) if self.at is None else tokens[:, self.at])


RASTER = torch.arange(96)  # of 8 x 12 patches
WINDOWS = RASTER.view(2, 4, 3, 4).permute(0, 2, 1, 3).reshape(-1)
SERPENTINE = RASTER.view(8, 12).clone()
SERPENTINE[1::2] = SERPENTINE[1::2].flip(1)


@pytest.mark.parametrize("at", [None, 0])
def test_tokens_in_order_are_taken(at):
    found = find_target_layer(Reordered(RASTER, at), sample=torch.zeros(1, 3, 32, 48))
    name = "norm" if at is None else "blocks.2.norm1"
    assert found == TargetLayer(name, "tokens", (8, 12), 0 if at is None else 1)


@pytest.mark.parametrize(
    ("order", "at"),
    [
        (RASTER, 1),
        (RASTER, 3),
        (RASTER, 24),
        (RASTER, 48),
        (RASTER, 96),
        (WINDOWS, None),
        (SERPENTINE.reshape(-1), None),
        (RASTER.view(8, 12).T.reshape(-1), None),
    ],
    ids=["at 1", "at 3", "at 24", "at 48", "at 96", "windows", "serpentine", "columns"],
)
def test_tokens_in_another_order_are_refused(order, at):
    """Quadrants of a grid answer in place, though its tokens are not where it says."""
    with pytest.raises(ValueError, match="cannot be decided"):
        find_target_layer(Reordered(order, at), sample=torch.zeros(1, 3, 32, 48))


def test_one_half_of_a_projection_is_not_all_that_reaches_the_output():
    """Both halves are results of one node of the graph, and only together all there is."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh())
            self.project = nn.Conv2d(4, 8, 3, padding=1)
            self.first, self.second = nn.Identity(), nn.Identity()
            self.head, self.other = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            first, second = self.project(self.stem(x)).chunk(2, dim=1)
            second = self.other(self.second(second).mean((2, 3)))
            return self.head(self.first(first).mean((2, 3))) + second

    found = find_target_layer(Halves(), sample=torch.zeros(1, 3, 16, 16))
    assert found == TargetLayer("project")


def test_a_layer_with_one_row_for_all_images_is_none_of_theirs():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.conv(x)
            return self.head((x + self.pool(x.mean(0, keepdim=True))).mean((2, 3)))

    with pytest.raises(ValueError, match=r"'pool', of shape \(1, 4, 16, 16\), does not change"):
        find_target_layer(Shared(), "pool", sample=torch.zeros(1, 3, 16, 16))


# Several rows of one image, checkpoints, and a single block


class Views(nn.Module):
    """Averages over an image and its mirror image, behind one convolution, or none."""

    def __init__(self, network, first=None):
        super().__init__()
        self.first, self.network = first or nn.Flatten(0, 0), network

    def forward(self, x):
        x = self.first(x)
        views = torch.stack([x, x.flip(-1)], dim=1)
        return self.network(views.flatten(0, 1)).unflatten(0, (-1, 2)).mean(1)


@pytest.mark.parametrize("first", [None, nn.Conv2d(3, 3, 3, padding=1)], ids=["none", "first"])
def test_rows_of_several_views_are_listed(first):
    """The layer before them, with one row per image, is in place, but says little."""
    listed = (
        r"last first: 'network.drop', of shape \(2, 4, 8, 8\), returns 2 rows for one image; "
        r".*'network.conv2', .*Explain the network that each of them goes through"
    )
    with pytest.raises(ValueError, match=listed):
        find_target_layer(Views(SmallNet(), first), sample=torch.zeros(1, 3, 8, 8))


def test_windows_in_a_branch_are_no_rows_of_several_views():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.mix = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)
            self.end, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.patches(x)
            windows = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 3, 5, 1)
            mixed = self.mix(windows.flatten(0, 2)).unflatten(0, (-1, 2, 2))
            mixed = mixed.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
            return self.head(self.end(x + mixed).mean((2, 3)))

    assert find_target_layer(Windows(), sample=torch.zeros(1, 3, 32, 32)) == TargetLayer("end")


class Checkpointed(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.first, self.second, self.third = (
            nn.Sequential(nn.Conv2d(n, 8, 3, 2, 1), nn.Tanh()) for n in (3, 8, 8)
        )
        self.head, self.parts = nn.Linear(8, 3), parts

    def forward(self, x):
        for name in ("first", "second", "third"):
            part = self.get_submodule(name)
            x = checkpoint(part, x, use_reentrant=True) if name in self.parts else part(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*requires_grad=True")
def test_reentrant_checkpoints_are_named():
    sample = torch.zeros(1, 3, 32, 32)
    everywhere = Checkpointed(["first", "second", "third"])
    with pytest.raises(
        ValueError, match=r"No layer of Checkpointed .* Use use_reentrant=False, or"
    ):
        find_target_layer(everywhere, sample=sample)
    behind = Checkpointed(["third"])
    layer = find_target_layer(behind, sample=sample)
    assert layer == TargetLayer("second")  # for methods without gradients
    for name in ("first", "second"):
        with pytest.raises(ValueError, match=rf"target layer '{name}': .* Use use_reentrant=False"):
            check_positions(behind, TargetLayer(name), sample)
    before = Checkpointed(["first", "second"])
    layer = find_target_layer(before, sample=sample)
    assert layer == TargetLayer("third")
    check_positions(before, layer, sample)


def test_transformer_that_runs_its_blocks_again_in_the_backward_pass():
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=48, depth=3, embed_dim=24, num_heads=2, num_classes=2
    )
    sample = torch.zeros(1, 3, 48, 48)
    expected = find_target_layer(model, sample=sample)
    model.set_grad_checkpointing(True)
    assert find_target_layer(model, sample=sample) == expected


@pytest.mark.parametrize("wrap", [lambda model: model, nn.Sequential], ids=["alone", "inside"])
def test_of_a_single_block_with_a_class_token_the_first_norm_is_explained(wrap):
    model = wrap(Blocks(1, n_blocks=1, readout="class token"))
    prefix = "0." if isinstance(model, nn.Sequential) else ""
    found = find_target_layer(model, sample=torch.zeros(1, 3, 32, 32))
    assert found == TargetLayer(f"{prefix}blocks.0.norm1", "tokens", (8, 8), 1)


def test_a_norm_before_blocks_that_are_no_modules_is_too_early():
    class Functional(Blocks):
        def __init__(self):
            super().__init__(1, readout="class token")
            self.norm_pre = nn.LayerNorm(8)
            self.end = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())

        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.extra.expand(len(x), -1, -1), tokens], dim=1)
            tokens = self.norm_pre(tokens)
            for _ in range(8):
                tokens = tokens + (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
            return self.head(self.end(self.norm(tokens))[:, 0])

    said = (
        r"first: 'norm_pre', .*is in the first half of the network, which target_layer= can .*"
        r"target_layer='norm_pre'"
    )
    sample = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=said):
        find_target_layer(Functional(), sample=sample)
    named = find_target_layer(Functional(), "norm_pre", sample=sample)
    assert named == TargetLayer("norm_pre", "tokens", (8, 8), 1)


class SequenceFirst(nn.Module):
    """Patches as (tokens, images, channels), PyTorch's default, with or without a class token."""

    def __init__(self, n_special=0, stem=None, width=16):
        super().__init__()
        self.stem = stem or nn.Conv2d(3, width, 8, 8)
        self.special = nn.Parameter(torch.randn(n_special, 1, width))
        block = nn.TransformerEncoderLayer(width, 2, 32)
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).permute(2, 0, 1)
        tokens = torch.cat([self.special.expand(-1, len(x), -1), tokens])
        tokens = self.encoder(tokens)
        return self.head(tokens[0] if len(self.special) else tokens.mean(dim=0))


class ResNetBody(zoo.ResNet):
    def _forward_impl(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


@pytest.mark.parametrize("n_special", [0, 1])
@pytest.mark.parametrize("stem", ["patches", "known network"])
def test_tokens_whose_second_axis_is_the_images_are_not_passed_over(stem, n_special):
    """Nor is the layer before them taken silently, but by name."""
    torch.manual_seed(0)
    network = SequenceFirst(n_special)
    if stem == "known network":
        body = ResNetBody(zoo.resnet.BasicBlock, [1, 1, 1, 1])
        network = SequenceFirst(n_special, body, width=512)
    network.eval()
    images = torch.zeros(1, 3, 64, 64)
    said = r"'encoder', of shape \(\d+, 1, \d+\), has the shape \(tokens, images, channe.*batch_"
    with pytest.raises(ValueError, match=said):
        find_target_layer(network, sample=images)
    assert find_target_layer(network, "stem", sample=images) == TargetLayer("stem")


def test_queries_are_no_tokens_of_places():
    class Queries(SequenceFirst):
        def __init__(self):
            super().__init__(0)
            self.queries = nn.Parameter(torch.randn(30, 1, 16))
            self.encoder = nn.TransformerDecoderLayer(16, 2, 32)

        def forward(self, x):
            tokens = self.stem(x).flatten(2).permute(2, 0, 1)
            queries = self.queries.expand(-1, len(x), -1)
            return self.head(self.encoder(queries, tokens).mean(dim=0))

    torch.manual_seed(0)
    found = find_target_layer(Queries().eval(), sample=torch.zeros(1, 3, 64, 64))
    assert found == TargetLayer("stem")


class _PaddedAtTheEnd(nn.Module):
    """Behind the padding, all is of a single position."""

    def __init__(self, pad, conv):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 4, 3, stride=2, padding=1), nn.ReLU())
        self.body = nn.Sequential(conv(4, 4, 3, padding=1), nn.ReLU())
        self.pad = pad
        self.last = conv(4, 4, 9, stride=16)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.last(self.pad(self.body(self.stem(x)))).relu().flatten(2).mean(2))


@pytest.mark.parametrize(
    ("pad", "conv"),
    [
        (nn.ZeroPad2d(4), nn.Conv2d),
        (nn.ReflectionPad2d(4), nn.Conv2d),
        (nn.ZeroPad3d(4), nn.Conv3d),
    ],
    ids=["zeros", "reflection", "volumes"],
)
def test_padding_is_a_grid_of_more_than_the_images(pad, conv):
    torch.manual_seed(0)
    network = _PaddedAtTheEnd(pad, conv).eval()
    sample = torch.rand(1, 3, *[32] * (2 if conv is nn.Conv2d else 3))
    assert find_target_layer(network, sample=sample).name == "body"
