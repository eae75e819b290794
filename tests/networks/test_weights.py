"""Weights, published and from files, against the networks that they were taken from."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from backbones import (
    SmallNet,
    answers,
    randomized,
    saved,
    small_vit,
)
from torch import Tensor, nn
from torchvision import models as zoo

from sklcam.networks import (
    build_model,
    check_output,
    load_weights,
)


@pytest.fixture
def published(monkeypatch):
    """Make torchvision 'download' the state dicts put here, by the name of the weights' class."""
    states: dict[str, dict[str, Tensor]] = {}

    def get_state_dict(self, *args, **kwargs):
        return states[type(self).__name__]

    monkeypatch.setattr(zoo.WeightsEnum, "get_state_dict", get_state_dict)
    return states


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


# From a file


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
        {"model_state_dict": source.state_dict(), "optimizer_state_dict": {"state": {}}},
        {"model": {"state_dict": nn.DataParallel(source).state_dict()}},
        {"state_dict": {f"net.backbone.{k}": v for k, v in source.state_dict().items()}},
        nn.DataParallel(source).state_dict(),
        torch.compile(source).state_dict(),
        {f"module._orig_mod.{name}": value for name, value in source.state_dict().items()},
    ):
        model = load_weights(SmallNet(), saved(tmp_path, state))
        assert torch.equal(model.conv2.weight, source.conv2.weight)
        assert torch.equal(model.head.bias, source.head.bias)


def test_safetensors_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    source = SmallNet()
    for prefix in ("", "module.", "model.encoder."):
        state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
        safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
        model = load_weights(SmallNet(), tmp_path / "weights.safetensors")
        assert torch.equal(model.conv2.weight, source.conv2.weight)
        assert torch.equal(model.head.bias, source.head.bias)
    state = build_model("squeezenet1_1", n_classes=2).state_dict()
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    model = build_model("squeezenet1_1", n_classes=2, weights=tmp_path / "weights.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x80\x04K\x01."])
def test_what_is_called_safetensors_must_be(content, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.safetensors' cannot be read as a state dict"):
        load_weights(SmallNet(), path)


def test_a_prefix_is_taken_off_only_where_all_names_have_it(tmp_path):
    state = {f"model.{name}": value for name, value in SmallNet().state_dict().items()}
    path = saved(tmp_path, {**state, "loss.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="does not fit SmallNet"):
        load_weights(SmallNet(), path)


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
