"""ONNX files: onnxruntime answers as the network does, and shows the maps that Grad-CAM does."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from rounding import assert_close_maps
from skorch import NeuralNetClassifier
from small_networks import SmallNet, digits
from torch import nn
from torch.nn import functional as F

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.cam import GradCAM
from sklcam.networks import build_model

X, Y = digits(12)
PREPARED = {"image_size": 16, "mean": 0.4, "std": 0.25}


def noise(n, n_channels=1, size=16):
    """Images in [0, 1]."""
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, n_channels, size, size, generator=generator)


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def answers(path, images):
    session = session_of(path)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


def metadata(path):
    found = session_of(path).get_modelmeta().custom_metadata_map
    return {name: json.loads(value) for name, value in found.items()}


def shown(maps, size):
    """Resize raw maps, and scale each to [0, 1], by the definition."""
    maps = F.interpolate(torch.tensor(maps), size, mode="bilinear", align_corners=False).numpy()
    low, high = maps.min((2, 3), keepdims=True), maps.max((2, 3), keepdims=True)
    return (maps - low) / np.where(high > low, high - low, 1)


def bare(*head, width=6):
    """A convolution, and a head behind global average pooling."""
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), *pool, *head)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    clf = ConsistentCAMClassifier(
        SmallNet, image_size=16, max_epochs=2, lr=0.05, verbose=0, random_state=0, device="cpu"
    ).fit(X, np.array(["nil", "one", "two"])[Y])
    path = tmp_path_factory.mktemp("onnx") / "digits.onnx"
    clf.module_.train()
    clf.export(path, card="# Digits", maps=True)
    return clf, path


def test_a_classifier_answers_as_it_does_here(classifier):
    clf, path = classifier
    for images in (noise(1), noise(5)):
        found = answers(path, images)
        expected = clf.predict_proba(images)
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
        softmax = torch.tensor(found["logits"]).softmax(1)
        np.testing.assert_allclose(softmax, expected, atol=1e-5)


def test_maps_of_a_file_are_those_of_explain_once_they_are_scaled(classifier):
    clf, path = classifier
    images = noise(4)
    maps = answers(path, images)["maps"]
    for i, label in enumerate(clf.classes_):
        raw = clf.explain(images, target=label, normalize=False)
        resized = F.interpolate(torch.tensor(maps[:, i : i + 1]), (16, 16), mode="bilinear")
        assert_close_maps(resized[:, 0].numpy(), raw, np.abs(maps).max())
        np.testing.assert_allclose(
            shown(maps, (16, 16))[:, i], clf.explain(images, target=label), atol=1e-3
        )


def test_a_file_says_what_its_user_must_know(classifier):
    clf, path = classifier
    said = metadata(path)
    assert said["task"] == "multiclass" and said["classes"] == ["nil", "one", "two"]
    assert said["image_size"] == [16, 16] and said["resize"]["mode"] == "stretch"
    assert said["value_range"] == [0, 1]
    assert said["normalized_in_the_file"]["mean"] == pytest.approx([0.449], abs=1e-3)
    assert said["target_layers"] == [clf.target_layer_.name]
    assert said["maps"]["name"] == "GradCAM" and said["no_maps_because"] is None
    assert said["versions"]["sklcam"] == sklcam.__version__
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert model.doc_string.startswith("# Digits\n") and "not normalised" in model.doc_string
    # Nor does it say where the code is.
    assert b".py" not in path.read_bytes()


class ByLength(nn.Sequential):
    """Takes the number of images from their length, which is a number of Python's."""

    def forward(self, x):
        return self[4](self[1](self[0](x)).mean((2, 3)).view(len(x), -1))


def test_a_network_is_left_as_it_was_and_may_ask_for_the_number_of_images(tmp_path):
    network = ByLength(*bare(nn.Linear(6, 3))).train()
    before = copy.deepcopy(network.state_dict())
    explainer = CAMExplainer(network, target_layer="1", **PREPARED).fit(noise(2))
    state = torch.get_rng_state()
    explainer.export(tmp_path / "a.onnx", X=X, maps=True)
    assert torch.equal(state, torch.get_rng_state())
    assert all(part.training for part in network.modules())
    assert not any(part._forward_hooks for part in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert answers(tmp_path / "a.onnx", noise(7))["maps"].shape == (7, 3, 16, 16)


@pytest.mark.parametrize(
    ("task", "n_outputs"), [("binary", 1), ("multilabel", 3), ("regression", 2)]
)
def test_answers_and_maps_of_other_tasks(task, n_outputs, tmp_path):
    network = bare(nn.Linear(6, n_outputs))
    method = GradCAM(relu=False)
    explainer = CAMExplainer(network, method, "1", task=task, **PREPARED).fit(noise(2))
    explainer.export(tmp_path / "a.onnx", maps=True)
    images = noise(4)
    found = answers(tmp_path / "a.onnx", images)
    with torch.no_grad():
        activations = network[:2]((images - 0.4) / 0.25)
        own = network[2:](activations)
        maps = torch.einsum("ck,nkuv->ncuv", network[4].weight / 256, activations)  # eq. 1 and 2
    if task == "regression":
        np.testing.assert_allclose(found["predictions"], own, atol=1e-5)
    else:
        np.testing.assert_allclose(found["logits"], own, atol=1e-5)
        p = (
            own.sigmoid()
            if task == "multilabel"
            else torch.cat([(-own).sigmoid(), own.sigmoid()], 1)
        )
        np.testing.assert_allclose(found["probabilities"], p, atol=1e-5)
    maps = torch.cat([-maps, maps], dim=1) if task == "binary" else maps
    assert_close_maps(found["maps"], maps.numpy())


def test_a_skorch_net_that_returns_probabilities_has_neither_logits_nor_maps(tmp_path):
    network = bare(nn.Linear(6, 3), nn.Softmax(dim=1))
    net = NeuralNetClassifier(network, criterion=nn.NLLLoss, max_epochs=1, verbose=0)
    net.fit(noise(12), torch.tensor(Y))
    explainer = CAMExplainer(net, target_layer="1", **PREPARED).fit(noise(2))
    with pytest.warns(UserWarning, match="has no maps: the head after '1' is not global average"):
        explainer.export(tmp_path / "a.onnx")
    found = answers(tmp_path / "a.onnx", noise(3))
    assert list(found) == ["probabilities"]
    expected = net.predict_proba((noise(3) - 0.4) / 0.25)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)


def test_a_resnet(tmp_path):
    torch.manual_seed(0)
    network = build_model("resnet18", n_classes=4)
    options = {"image_size": 64, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    explainer = CAMExplainer(network, verbose=0, **options).fit()
    explainer.export(tmp_path / "a.onnx", maps=True)
    images = noise(2, 3, 64)
    mean, std = (torch.tensor(options[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    found = answers(tmp_path / "a.onnx", images)
    inputs = (images - mean) / std
    with torch.no_grad():
        np.testing.assert_allclose(found["logits"], network.eval()(inputs), atol=1e-4)
    raw = explainer.explain(inputs, target=3, normalize=False)
    resized = F.interpolate(torch.tensor(found["maps"]), (64, 64), mode="bilinear")
    assert_close_maps(resized[:, 3].numpy(), raw, np.abs(found["maps"]).max())


def lively(part):
    """Give a normalisation statistics that are not those that it begins with."""
    nn.init.uniform_(part.weight, 0.5, 2.0)
    part.running_var.mul_(3)
    return part


class Dead(nn.ReLU):
    """Lets nothing through of noise: all heads are then linear, as all they see is zeros."""

    def forward(self, x):
        return super().forward(x - 100)


HEADS = {
    "normalised": lambda: bare(lively(nn.BatchNorm1d(6)), nn.Linear(6, 3)),
    "clamped": lambda: bare(nn.Hardtanh(0, 0.05), nn.Linear(6, 3)),
    "dead": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3), Dead(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(6),
        nn.Linear(6, 3),
    ),
    "maximum": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_maps_are_refused_behind_other_heads(head, tmp_path):
    torch.manual_seed(0)
    explainer = CAMExplainer(HEADS[head](), target_layer="1", **PREPARED).fit(noise(2))
    with pytest.raises(
        ValueError, match="would have no maps: the head after '1' is not global average"
    ):
        explainer.export(tmp_path / "a.onnx", maps=True)
    assert not list(tmp_path.iterdir())


def test_a_head_of_zeros_tells_nothing(tmp_path):
    network = bare(nn.Linear(6, 3))
    nn.init.zeros_(network[4].weight)
    explainer = CAMExplainer(network, target_layer="1", **PREPARED).fit(noise(2))
    with pytest.raises(ValueError, match=r"would have no maps: the weights .* are all zero"):
        explainer.export(tmp_path / "a.onnx", maps=True)


def test_maps_of_another_method_are_not_those_of_gradcam(tmp_path):
    network = bare(nn.Linear(6, 3))
    for method, layer in [
        ("scorecam", "1"), ("counterfactual", "1"), (GradCAM(pooling="max"), "1"),
        ("gradcam", ["0", "1"]),
    ]:  # fmt: skip
        explainer = CAMExplainer(network, method, layer, **PREPARED).fit(noise(2))
        with pytest.raises(ValueError, match="would have no maps: "):
            explainer.export(tmp_path / "a.onnx", maps=True)


class Branching(nn.Sequential):
    def forward(self, x):
        return super().forward(x) if x.mean() > -9 else super().forward(-x)


class Drawing(nn.Sequential):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (Branching, r"torch.export says: .* forward must not branch .*torch.where"),
        (
            Drawing,
            r"sample whose (logits|probabilities) .* the network draws random numbers",
        ),
    ],
)
def test_a_network_that_a_file_cannot_stand_for_is_refused(kind, match, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"the old one")
    network = kind(*bare(nn.Linear(6, 3))).train()
    explainer = CAMExplainer(network, target_layer="1", **PREPARED).fit(noise(2))
    with pytest.raises(ValueError, match=match):
        explainer.export(path, maps=True)
    assert path.read_bytes() == b"the old one" and list(tmp_path.iterdir()) == [path]
    assert all(part.training for part in network.modules())
    assert not any(part._forward_hooks for part in network.modules())


def test_weights_that_are_too_large_for_a_file_are_refused_before_any_work(tmp_path, monkeypatch):
    network = bare(nn.Linear(6, 3))
    n_bytes = sum(each.numel() * each.element_size() for each in network.parameters())
    n_bytes += sum(each.numel() * each.element_size() for each in network.buffers())
    explainer = CAMExplainer(network, target_layer="1", **PREPARED).fit(noise(2))
    monkeypatch.setattr("sklcam.explain.onnx_files._LARGEST", n_bytes)
    explainer.export(tmp_path / "a.onnx")
    monkeypatch.setattr("sklcam.explain.onnx_files._LARGEST", n_bytes - 1)
    with pytest.raises(
        ValueError, match=r"GB of weights, .* torch.onnx.export\(network, .*second file"
    ):
        explainer.export(tmp_path / "b.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]


def test_a_file_that_grows_too_large_on_the_way_is_refused_whole(tmp_path, monkeypatch):
    def refuse(model):
        raise OverflowError("exceeds 2GB")

    onnx = pytest.importorskip("onnx")
    explainer = CAMExplainer(bare(nn.Linear(6, 3)), target_layer="1", **PREPARED).fit(noise(2))
    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", refuse, raising=False)
    with pytest.raises(ValueError, match=r"into one file .OverflowError: exceeds 2GB.*second file"):
        explainer.export(tmp_path / "a.onnx")
    assert not [*tmp_path.iterdir()]
