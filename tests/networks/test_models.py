"""Tests of the backbones: torchvision itself is the oracle wherever it can be."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as zoo

from sklcam.networks import (
    TargetLayer,
    available_models,
    build_model,
    check_output,
    construct,
    find_target_layer,
    load_weights,
)

# One small member of every family, and a side at which its target layer has more than one position.
FAMILIES = {
    "alexnet": 96,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 128,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11": 64,
    "vgg11_bn": 64,
    "vit_b_16": 64,
}


class SmallNet(nn.Module):
    """Two convolutions that share one ReLU; takes what `construct` has to offer."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.norm(self.conv1(images)))
        features = self.relu(self.conv2(features))
        return self.head(self.pool(self.drop(features)).flatten(1))


class Normalized(nn.Module):
    """A network behind a normalisation, as users wrap torchvision's."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.normalize = nn.Identity()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.normalize(images))


def small_vit(image_size: int, n_classes: int = 3) -> zoo.VisionTransformer:
    return zoo.VisionTransformer(
        image_size=image_size,
        patch_size=8,
        num_layers=1,
        num_heads=1,
        hidden_dim=8,
        mlp_dim=8,
        num_classes=n_classes,
    )


def saved(path, state) -> str:
    torch.save(state, path / "weights.pt")
    return str(path / "weights.pt")


def randomized(model: nn.Module) -> nn.Module:
    """Give the running statistics values of their own, so that a lost buffer is seen."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def answers(model: nn.Module, side: int) -> Tensor:
    """Logits of two images in evaluation mode, which must differ to prove anything."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.eval()(images)
    assert not torch.equal(logits[0], logits[1])
    return logits


@pytest.fixture
def published(monkeypatch):
    """Make torchvision 'download' the state dicts put here, by the name of the weights' class."""
    states: dict[str, dict[str, Tensor]] = {}

    def get_state_dict(self, *args, **kwargs):
        return states[type(self).__name__]

    monkeypatch.setattr(zoo.WeightsEnum, "get_state_dict", get_state_dict)
    return states


# --- the families ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side"), FAMILIES.items())
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
    activations = []

    def hook(module, inputs, output):
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
    (shape,) = shapes
    assert shape[2] == shape[3] >= 5


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("convnext_tiny", "features.7.2"),
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


# --- names and sizes ------------------------------------------------------------------------------


def test_names_are_known_in_any_case_and_are_classifiers_only():
    assert isinstance(build_model("SqueezeNet1_1", n_classes=2), zoo.SqueezeNet)
    assert set(FAMILIES) <= set(available_models())
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


# --- published weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "inception_v3", "mnasnet0_5"])
def test_default_weights_give_the_network_torchvision_gives(name, published):
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    source = randomized(zoo.get_model(name, weights=None, **options))
    published[zoo.get_model_weights(name).__name__] = source.state_dict()
    # torchvision's builders of these two reset the options above when they load weights
    expected = zoo.get_model(name, weights="DEFAULT")
    built = build_model(name, n_classes=1000, weights="DEFAULT")
    assert torch.equal(answers(built, 96), answers(expected, 96))


def test_published_densenet_keeps_its_old_names(published):
    source = randomized(zoo.densenet121(weights=None))
    old = {}
    for name, value in source.state_dict().items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[name] = value
    assert any("norm.1." in name for name in old)
    published["DenseNet121_Weights"] = old
    built = build_model("densenet121", n_classes=1000, weights="IMAGENET1K_V1")
    assert torch.equal(answers(built, 64), answers(source, 64))


@pytest.mark.parametrize(
    "weights",
    [
        "DEFAULT",
        "IMAGENET1K_V1",
        "SqueezeNet1_1_Weights.IMAGENET1K_V1",
        zoo.SqueezeNet1_1_Weights.DEFAULT,
    ],
)
def test_weights_go_by_any_of_their_names(weights, published):
    source = zoo.squeezenet1_1(weights=None)
    published["SqueezeNet1_1_Weights"] = source.state_dict()
    model = build_model("squeezenet1_1", n_classes=4, weights=weights)
    assert torch.equal(model.features[0].weight, source.features[0].weight)
    assert model.classifier[1].out_channels == 4


def test_feature_only_weights_get_a_fresh_classifier(published):
    # torchvision's VGG16_Weights.IMAGENET1K_FEATURES are like this; here, on a smaller network.
    source = zoo.squeezenet1_1(weights=None)
    for parameter in source.classifier.parameters():
        nn.init.constant_(parameter, float("nan"))
    published["SqueezeNet1_1_Weights"] = source.state_dict()
    model = build_model("squeezenet1_1", n_classes=1000, weights="DEFAULT")
    assert torch.equal(model.features[0].weight, source.features[0].weight)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_vit_weights_fit_another_image_size(published):
    source = zoo.vit_b_32(weights=None)
    published["ViT_B_32_Weights"] = source.state_dict()
    model = build_model("vit_b_32", n_classes=2, image_size=(96, 96), weights="DEFAULT")
    assert model.encoder.pos_embedding.shape == (1, 1 + 3 * 3, 768)
    assert torch.equal(model.conv_proj.weight, source.conv_proj.weight)
    check_output(model, torch.zeros(1, 3, 96, 96), 2)


def test_a_failed_download_says_what_to_do(monkeypatch):
    def offline(self, *args, **kwargs):
        raise OSError("name resolution failed")

    monkeypatch.setattr(zoo.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(OSError, match=r"download\.pytorch\.org.*name resolution.*pass its path"):
        build_model("squeezenet1_1", n_classes=2, weights="DEFAULT")


# --- weights from a file --------------------------------------------------------------------------


def test_a_file_with_the_same_head_comes_back_bit_for_bit(tmp_path):
    source = randomized(build_model("mnasnet0_5", n_classes=3))
    path = saved(tmp_path, source.state_dict())
    model = build_model("mnasnet0_5", n_classes=3, weights=path)
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("name", "head"), [("resnet18", "fc"), ("squeezenet1_1", "classifier.1"), ("swin_t", "head")]
)
def test_a_head_for_other_classes_is_replaced_and_nothing_else(name, head, tmp_path):
    source = build_model(name, n_classes=3)
    path = saved(tmp_path, source.state_dict())
    torch.manual_seed(1)
    fresh = build_model(name, n_classes=5)
    torch.manual_seed(1)
    model = build_model(name, n_classes=5, weights=path)
    for entry, value in model.state_dict().items():
        origin = fresh if entry.startswith(f"{head}.") else source
        assert torch.equal(value, origin.state_dict()[entry]), entry


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_an_adapted_stem_answers_grey_images_as_before(channels, tmp_path):
    source = build_model("squeezenet1_1", n_classes=3)
    nn.init.normal_(source.features[0].bias)
    path = saved(tmp_path, source.state_dict())
    model = build_model("squeezenet1_1", n_classes=3, in_channels=channels, weights=path)
    grey = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        # The stem alone: a random network's logits hardly depend on the image.
        before = source.features[0](grey.expand(-1, 3, -1, -1))
        after = model.features[0](grey.expand(-1, channels, -1, -1))
    assert before.std() > 0.1
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    # Every channel counts alike.
    kernel = model.features[0].weight
    assert torch.equal(kernel, kernel[:, :1].expand_as(kernel))


def test_wrappers_and_checkpoints_are_unpacked(tmp_path):
    source = SmallNet()
    for state in (
        source.state_dict(),
        dict(source.state_dict()),
        {"state_dict": source.state_dict(), "epoch": 3},
        {"model": source.state_dict()},
        nn.DataParallel(source).state_dict(),
        torch.compile(source).state_dict(),
        {f"module._orig_mod.{name}": value for name, value in source.state_dict().items()},
    ):
        model = load_weights(SmallNet(), saved(tmp_path, state))
        assert torch.equal(model.conv2.weight, source.conv2.weight)
        assert torch.equal(model.head.bias, source.head.bias)


def test_a_network_that_calls_its_layer_module_keeps_the_name(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    source, model = Wrapper(), Wrapper()
    load_weights(model, saved(tmp_path, source.state_dict()))
    assert torch.equal(model.module.weight, source.module.weight)
    load_weights(model, saved(tmp_path, nn.DataParallel(Wrapper()).state_dict()))
    assert not torch.equal(model.module.weight, source.module.weight)


def test_compiled_networks_can_be_filled(tmp_path):
    source, model = SmallNet(), SmallNet()
    load_weights(torch.compile(model), saved(tmp_path, source.state_dict()))
    assert torch.equal(model.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_plain_dict_has_no_versions_and_still_fits(wrapped, tmp_path):
    source = build_model("mnasnet0_5", n_classes=2)
    prefix = "module." if wrapped else ""
    state = {prefix + name: value for name, value in source.state_dict().items()}
    # Files from before torch 0.4.1 do not count batches.
    state = {name: value for name, value in state.items() if "num_batches" not in name}
    model = build_model("mnasnet0_5", n_classes=2, weights=saved(tmp_path, state))
    assert torch.equal(model.layers[0].weight, source.layers[0].weight)


@pytest.mark.parametrize(("name", "prefix"), [("googlenet", "aux"), ("inception_v3", "AuxLogits")])
def test_auxiliary_heads_in_a_file_are_left_out(name, prefix, tmp_path):
    source = zoo.get_model(name, weights=None, init_weights=False, num_classes=3)
    assert any(entry.startswith(prefix) for entry in source.state_dict())
    model = build_model(name, n_classes=3, weights=saved(tmp_path, source.state_dict()))
    assert torch.equal(model.fc.weight, source.fc.weight)
    assert not any(entry.startswith(prefix) for entry in model.state_dict())


def test_what_does_not_fit_is_named_and_leaves_the_network_alone(tmp_path):
    model = SmallNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = SmallNet(width=4).state_dict()
    wrong = {
        "conv2.weight": {**state, "conv2.weight": torch.zeros(4, 4, 5, 5)},
        "norm.bias": {name: value for name, value in state.items() if name != "norm.bias"},
        "conv3.bias": {**state, "conv3.bias": torch.zeros(4)},
    }
    for entry, faulty in wrong.items():
        with pytest.raises(ValueError, match=rf"weights\.pt.*SmallNet.*{entry}"):
            load_weights(model, saved(tmp_path, faulty))
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_a_long_list_of_faults_is_cut(tmp_path):
    path = saved(tmp_path, build_model("squeezenet1_1", n_classes=2).state_dict())
    with pytest.raises(ValueError, match="does not fit ResNet") as caught:
        build_model("resnet18", n_classes=2, weights=path)
    assert len(str(caught.value)) < 1500


def test_head_can_be_named(tmp_path):
    class TwoHeads(SmallNet):
        """A layer after the head, so that the head is not the last one."""

        def __init__(self, num_classes):
            super().__init__(num_classes=num_classes)
            self.projector = nn.Linear(4, 2)

    source, model = TwoHeads(3), TwoHeads(5)
    path = saved(tmp_path, source.state_dict())
    with pytest.raises(ValueError, match=r"head\.weight"):
        load_weights(model, path)
    load_weights(model, path, head="head")
    assert torch.equal(model.projector.weight, source.projector.weight)
    assert model.head.out_features == 5


class Intruder:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return print, ("code from the file ran",)


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    path = saved(tmp_path, {"state_dict": SmallNet().state_dict(), "config": Intruder()})
    with pytest.raises(ValueError, match=r"weights\.pt.*state dict"):
        load_weights(SmallNet(), path)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {}, {"epoch": 3}, {1: torch.zeros(1)}])
def test_files_without_a_state_dict_are_named(content, tmp_path):
    with pytest.raises(ValueError, match=r"weights\.pt.*not a state dict"):
        load_weights(SmallNet(), saved(tmp_path, content))


def test_positions_are_interpolated(tmp_path):
    source, model = small_vit(16), small_vit(32)
    with torch.no_grad():
        source.encoder.pos_embedding[:, 1:, 0] = 2.0
    load_weights(model, saved(tmp_path, source.state_dict()))
    old, new = source.encoder.pos_embedding, model.encoder.pos_embedding
    assert new.shape == (1, 1 + 4 * 4, 8)
    assert torch.equal(new[:, 0], old[:, 0]), "the class token has no position"
    torch.testing.assert_close(new[0, 1:, 0], torch.full((16,), 2.0))
    # The bicubic grid has its corners where the old one had them.
    corners = new[0, 1:].unflatten(0, (4, 4))[[0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, old[0, 1:])


# --- dry runs -------------------------------------------------------------------------------------


class Fragile(SmallNet):
    """Counts its runs in a buffer, draws random numbers, and fails when told to."""

    def __init__(self, fails: bool) -> None:
        super().__init__(num_classes=3)
        self.fails = fails
        self.register_buffer("n_runs", torch.zeros(()))
        self.seen_training: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.n_runs = self.n_runs + 1
        self.norm.running_mean += torch.rand(4)
        self.seen_training.append(any(module.training for module in self.modules()))
        logits = super().forward(images)
        if self.fails:
            raise RuntimeError("the wrong size")
        return logits


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("dry_run", [check_output, find_target_layer])
def test_a_dry_run_leaves_everything_as_it_was(dry_run, fails):
    model = Fragile(fails)
    model.train()
    model.norm.eval()  # a frozen layer in a network that trains
    model.head.weight.requires_grad_(False)
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    modes = {name: module.training for name, module in model.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    identities = {name: id(buffer) for name, buffer in model.named_buffers()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)

    sample = torch.rand(1, 3, 8, 8, generator=torch.Generator())
    arguments = {"n_outputs": 3} if dry_run is check_output else {"sample": sample}
    if fails:
        with pytest.raises(ValueError, match="the wrong size"):
            dry_run(model, *([sample] if dry_run is check_output else []), **arguments)
    else:
        dry_run(model, *([sample] if dry_run is check_output else []), **arguments)

    assert model.seen_training == [False]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: id(buffer) for name, buffer in model.named_buffers()} == identities
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert torch.equal(torch.rand(3), expected)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model.conv1.weight.grad, torch.ones_like(model.conv1.weight))
    assert not model.head.weight.requires_grad
    assert model.conv1.weight.requires_grad
    assert torch.is_grad_enabled()


def test_check_output_takes_the_first_of_several():
    class Tuple(SmallNet):
        def forward(self, images):
            return super().forward(images), None

    class Dict(SmallNet):
        def forward(self, images):
            return {"logits": super().forward(images)}

    sample = torch.zeros(1, 3, 8, 8)
    check_output(Tuple(), sample, n_outputs=10)
    with pytest.raises(ValueError, match="dict for 10 classes"):
        check_output(Dict(), sample, n_outputs=10)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 8, 8\)"):
        check_output(nn.Identity(), sample, n_outputs=3)


@pytest.mark.parametrize(("name", "side"), [("alexnet", 32), ("inception_v3", 64)])
def test_too_small_images_are_named(name, side):
    with torch.device("meta"):
        model = build_model(name, n_classes=2)
        with pytest.raises(ValueError, match=rf"{side} x {side} pixels") as caught:
            check_output(model, torch.empty(1, 3, side, side), n_outputs=2)
    assert type(model).__name__ in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_wrong_channels_and_sizes_are_named():
    with pytest.raises(ValueError, match=r"SmallNet.*8 x 8 pixels and 1 channel"):
        check_output(SmallNet(), torch.zeros(1, 1, 8, 8), n_outputs=10)
    with pytest.raises(ValueError, match=r"VisionTransformer.*24 x 24 pixels"):
        check_output(small_vit(16), torch.zeros(1, 3, 24, 24), n_outputs=3)


# --- target layers --------------------------------------------------------------------------------


def test_layouts_become_one_grid():
    n, k, u, v = 2, 5, 3, 4
    grid = torch.randn(n, k, u, v)
    tokens = torch.cat([torch.randn(n, 2, k), grid.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(TargetLayer("a").to_grid(grid), grid)
    assert torch.equal(TargetLayer("a", "nhwc").to_grid(grid.permute(0, 2, 3, 1)), grid)
    layer = TargetLayer("a", "tokens", grid=(u, v), n_prefix=2)
    assert torch.equal(layer.to_grid(tokens), grid)
    tokens.requires_grad_()
    (gradient,) = torch.autograd.grad(layer.to_grid(tokens).sum(), tokens)
    assert torch.equal(gradient[:, :2], torch.zeros(n, 2, k))
    assert torch.equal(gradient[:, 2:], torch.ones(n, u * v, k))


@pytest.mark.parametrize(
    ("layer", "output", "message"),
    [
        (TargetLayer("a"), torch.zeros(2, 3, 4), r"\(n, K, u, v\).*\(2, 3, 4\)"),
        (TargetLayer("a", "nhwc"), torch.zeros(2, 3), r"\(n, u, v, K\).*\(2, 3\)"),
        (TargetLayer("a", "tokens", (2, 2)), torch.zeros(1, 1, 1, 1), r"\(n, tokens, K\)"),
        (TargetLayer("a", "tokens", (2, 2), 1), torch.zeros(1, 4, 6), r"5 tokens.*got 4"),
        (TargetLayer("a"), (torch.zeros(1, 1, 2, 2),), "got tuple"),
    ],
)
def test_other_axes_are_refused(layer, output, message):
    with pytest.raises(ValueError, match=message):
        layer.to_grid(output)


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


# --- networks of one's own ------------------------------------------------------------------------


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
