"""Networks by name: of timm and transformers, by their weights, folders and files."""

import functools
import json
import os
import re
import sys

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import transformers
from torch import nn
from torchvision import models
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import sklcam
from sklcam import CAMExplainer, ConsistentCAMClassifier
from sklcam.networks import build_model, construct
from sklcam.networks.named import check_hub, is_offline
from sklcam.persistence import PersistenceError

TINY = {"depth": 2, "embed_dim": 12, "num_heads": 3}
X = np.random.default_rng(0).integers(0, 256, (6, 40, 56, 3), dtype=np.uint8)
Y = np.arange(6) % 2


@pytest.fixture(scope="module")
def vit() -> ViTForImageClassification:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    names = {0: "cat", 1: "dog", 2: "emu"}
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(**sizes, intermediate_size=32, image_size=32, patch_size=8, id2label=names)
    )


@pytest.fixture(scope="module")
def folder(vit, tmp_path_factory) -> str:
    """What save_pretrained writes."""
    path = tmp_path_factory.mktemp("hub") / "vit"
    vit.save_pretrained(path)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory) -> str:
    """What timm writes for the hub."""
    path = tmp_path_factory.mktemp("hub") / "timm"
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, **TINY)
    names = {"label_names": ["ant", "bee", "cow"]}
    timm.models.save_for_hf(network, path, model_config=names, model_args={"img_size": 32, **TINY})
    return str(path)


def same(one: nn.Module, other: nn.Module, but: str = "nothing") -> bool:
    pairs = other.state_dict()
    return all(
        torch.equal(value, pairs[name])
        for name, value in one.state_dict().items()
        if not name.startswith(but)
    )


# timm


def test_timm_by_name():
    network = build_model(
        "timm/vit_tiny_patch16_224", n_classes=5, in_channels=1, image_size=(48, 48), **TINY
    )
    assert network(torch.zeros(2, 1, 48, 48)).shape == (2, 5)
    assert same(network, build_model(**network.built_as), "") is True
    # Of one that takes any size, it is only said.
    assert build_model("timm/resnet18", n_classes=2, image_size=(40, 64)).num_classes == 2


def test_the_weights_that_were_published(monkeypatch):
    """The file would come from the hub; all else is timm's."""
    published = timm.create_model("resnet18").state_dict()
    asked = []

    def download(where, *args, **kwargs):
        asked.append(where)
        return dict(published)

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    by_default = build_model("timm/resnet18", weights="DEFAULT")
    assert all(torch.equal(v, published[n]) for n, v in by_default.state_dict().items())
    assert by_default.origin.class_names[:2] == (
        "tench, Tinca tinca",
        "goldfish, Carassius auratus",
    )
    other = build_model("timm/resnet18", weights="tv_in1k", n_classes=3, in_channels=1)
    assert torch.equal(other.layer1[0].conv1.weight, published["layer1.0.conv1.weight"])
    torch.testing.assert_close(other.conv1.weight, published["conv1.weight"].sum(1, keepdim=True))
    assert other.origin.preprocessing.resizing.interpolation == "bilinear"
    assert asked == ["timm/resnet18.a1_in1k", "timm/resnet18.tv_in1k"]
    explainer = CAMExplainer("timm/resnet18", weights="DEFAULT", image_size=64, verbose=0).fit(X)
    assert explainer.class_names_[0] == "tench, Tinca tinca" and explainer.model == "timm/resnet18"
    assert explainer.predict(X).dtype.kind == "i"
    explainer.class_names_[[134, 517]] = "crane"  # as torchvision's once were
    with pytest.raises(ValueError, match=r"\[134, 517\] all have the name 'crane'"):
        explainer.explain(X, target="crane")


@pytest.fixture
def without_network(monkeypatch, tmp_path, request):
    """A hub that does not answer, and whose cache is empty; nobody may wait for its client."""
    error = getattr(request, "param", OSError)("no network")
    asked = []

    def refuse(url, *args, **kwargs):
        asked.append(url)
        raise error

    def wait(*args, **kwargs):
        raise AssertionError("the hub's client tries again and again")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", wait)
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", wait)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", wait)
    return asked


class TransportError(Exception):
    """Of a client's own kind."""

    __module__ = "httpx2._exceptions"


_OF_TRANSFORMERS = "config.json, preprocessor_config.json and model.safetensors"


@pytest.mark.parametrize("without_network", [OSError, TransportError], indirect=True)
@pytest.mark.parametrize(
    ("name", "weights", "page", "files", "remedy"),
    [
        (
            *("timm/resnet18", "DEFAULT", "timm/resnet18.a1_in1k"),
            *("config.json and model.safetensors", 'weights="/path/of/the/folder", or, without '),
        ),
        (
            *("hf-hub:owner/name", None, "owner/name", "config.json and model.safetensors"),
            '"timm//path/of/the/folder", or timm\'s own "local-dir:/path/of/the/folder"',
        ),
        (
            *("transformers/owner/name", "DEFAULT", "owner/name", _OF_TRANSFORMERS),
            'give that: "transformers//path/of/the/folder"',
        ),
        (
            *("transformers/owner/name", None, "owner/name"),
            *("config.json and preprocessor_config.json", "transformers//path/of/the/folder"),
        ),
    ],
)
def test_without_a_network(without_network, name, weights, page, files, remedy):
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        build_model(name, weights=weights)
    message = str(caught.value)
    assert f"Fetch {files} from https://huggingface.co/{page} by" in message and remedy in message
    assert "(no network)" in message and len(without_network) == 1


def test_what_was_fetched_before_needs_no_network(vit, tmp_path, monkeypatch):
    """As its client keeps it: a folder for each revision."""
    asked = []
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", asked.append)
    kept = tmp_path / "models--owner--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("1" * 40)
    vit.save_pretrained(kept / "snapshots" / ("1" * 40))
    find = functools.partial(huggingface_hub.try_to_load_from_cache, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", find)
    check_hub("owner/name", "config.json")
    check_hub("owner/name", "model.bin", "config.json")  # by either of its names
    assert asked == []
    check_hub("owner/name", "preprocessor_config.json")
    check_hub("owner/name@v2", "config.json")
    assert [url.split("/resolve/")[1] for url in asked] == [
        "main/preprocessor_config.json",
        "v2/config.json",
    ]


def test_a_hub_that_answers_is_there(monkeypatch):
    class Refused(huggingface_hub.errors.HfHubHTTPError):
        def __init__(self):
            pass

    def refuse(url):
        raise Refused

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    check_hub("owner/not-there", "config.json")  # what is wrong is said by what reads the file


def test_a_name_that_cannot_be_one_is_not_the_networks_fault():
    assert is_offline(OSError("no network"))
    assert not is_offline(huggingface_hub.errors.HFValidationError("no name"))
    assert not is_offline(KeyError("no key"))


def test_weights_from_elsewhere(monkeypatch):
    """A few of timm's are not on the hub."""

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(timm.models._builder, "download_cached_file", refuse)
    with pytest.raises(
        OSError, match=r"Fetch https://\S+gcvit_xxt\S+ by .* of that file as weights"
    ):
        build_model("timm/gcvit_xxtiny", weights="DEFAULT")


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        *(
            ("tim/resnet18", "timm/resnet18"),
            ("TIMM/vit", "timm/vit"),
            ("Timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ),
        *(("timm:resnet18", "timm/resnet18"), ("hf_hub/timm/vit", "hf-hub:timm/vit")),
        ("transformer/google/vit", "transformers/google/vit"),
        ("transformers:google/vit", "transformers/google/vit"),
        ("torchvison/resnet18", "torchvision/resnet18"),
        *(("localdir:/a", "local-dir:/a"), ("/a/b", "transformers//a/b")),
        *(("google/vit", "transformers/google/vit"), ("google/vit", "hf-hub:google/vit")),
        ("huggingface/google/vit", "transformers/google/vit"),
        *((name, f"timm/{name}") for name in ("vit_small_patch16_224", "convnextv2_tiny")),
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        *(("torchvision/tf_efficientnet_b0", "timm/tf_efficientnet_b0"),),
        ("timm/vit_b_16", "torchvision/vit_b_16"),
    ],
)
def test_a_name_of_another_source(name, suggested):
    with pytest.raises(ValueError, match=re.escape(f'"{suggested}"')):
        build_model(name)


def test_timms_names_are_not_suggested_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="Unknown model 'convnextv2_tiny'"):
        build_model("convnextv2_tiny")


def test_folders_that_are_not_there(folder, timm_folder, tmp_path, monkeypatch, without_network):
    for kind, where in (("transformers", folder), ("timm", timm_folder)):
        with pytest.raises(ValueError, match=f"no folder .*Did you mean '{where}'"):
            build_model(f"{kind}/{where}s")
        with pytest.raises(ValueError, match=r"is a file\. Name the folder that it is in"):
            build_model(f"{kind}/{where}/config.json")
    with pytest.raises(ValueError, match=r"There is no folder 'a/b/c'\.$"):
        build_model("transformers/a/b/c")
    with pytest.raises(ValueError, match=f"no folder '{folder[1:]}'. Did you mean '{folder}'"):
        build_model(f"transformers/{folder[1:]}")
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/data/vit")
    with pytest.raises(OSError, match='Do you mean the folder "transformers//data/vit"'):
        build_model("transformers/data/vit")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"no folder '{folder[1:]}'. Did you mean '{folder}'"):
        build_model(f"transformers/{folder[1:]}")
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/data/vit")
    with pytest.raises(OSError, match='Do you mean the folder "transformers//data/vit"'):
        build_model("transformers/data/vit")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ValueError, match='A folder has this name: use "local-dir:here"'):
        build_model("timm/here")


def test_files_of_timm(tmp_path):
    trained = timm.create_model("resnet18", num_classes=3)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "a.pt")
    assert same(trained, build_model("timm/resnet18", n_classes=3, weights=tmp_path / "a.pt"))
    other = build_model("timm/resnet18", n_classes=4, weights=str(tmp_path / "a.pt"))
    assert same(trained, other, "fc") and len(other.fc.weight) == 4
    assert other.origin.class_names is None and other.pretrained_cfg["state_dict"] is None
    # Timm would leave out what does not fit, once the head is another.
    with pytest.raises(ValueError, match=r"a.pt' does not fit timm's resnet34: .*Missing key"):
        build_model("timm/resnet34", n_classes=4, weights=tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["torchvision", "lite", "timm", "transformers"])
def test_the_head_of_a_file_is_kept_unless_another_is_asked_for(kind, folder, tmp_path):
    """As a random one would be explained as if it had been trained."""
    name, trained, head = {
        "torchvision": lambda: ("squeezenet1_1", models.squeezenet1_1(num_classes=7), "classifier"),
        "lite": lambda: (
            "efficientnet_lite0",
            build_model("efficientnet_lite0", n_classes=7),
            "_fc",
        ),
        "timm": lambda: ("timm/test_resnet", timm.create_model("test_resnet", num_classes=7), "fc"),
        "transformers": lambda: (
            f"transformers/{folder}",
            construct(
                ViTForImageClassification.from_pretrained(folder), n_classes=7, in_channels=3
            ),
            "classifier",
        ),
    }[kind]()
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    assert same(trained, build_model(name, weights=tmp_path / "a.pt"))
    other = build_model(name, weights=tmp_path / "a.pt", n_classes=2)
    assert same(trained, other, head) and other.built_as["n_classes"] == 2
    size = 64 if kind in ("torchvision", "lite") else 32
    explainer = CAMExplainer(name, weights=tmp_path / "a.pt", image_size=size, verbose=0)
    assert explainer.fit(X).classes_.tolist() == [*range(7)] and explainer.class_names_ is None


def test_folders_of_timm(timm_folder):
    for name in (f"timm/{timm_folder}", f"local-dir:{timm_folder}"):
        network = build_model(name, weights="DEFAULT")
        assert network.origin.class_names == ("ant", "bee", "cow")
        assert network.origin.preprocessing.image_size == (32, 32)
        assert network.built_as["name"] == "timm/vit_tiny_patch16_224"
    other = build_model("timm/vit_tiny_patch16_224", weights=timm_folder, n_classes=7)
    assert same(network, other, "head")
    with pytest.raises(ValueError, match="holds the weights of vit_tiny_patch16_224, not of resn"):
        build_model("timm/resnet18", weights=timm_folder)
    explainer = CAMExplainer(
        f"timm/{timm_folder}", weights="DEFAULT", target_layer="blocks.1.norm1"
    )
    explainer.fit(X)
    assert explainer.class_names_.tolist() == ["ant", "bee", "cow"]
    named, numbered = (explainer.explain(X, target=target) for target in ("bee", 1))
    np.testing.assert_array_equal(named, numbered)


# transformers


def test_folders_of_transformers(vit, folder):
    name = f"transformers/{folder}"
    network = build_model(name, weights="DEFAULT")
    assert same(vit, network) and network.training
    assert network.origin.class_names == ("cat", "dog", "emu")
    assert not same(vit, build_model(name))
    other = build_model(name, weights="DEFAULT", n_classes=5, in_channels=1, image_size=(48, 48))
    assert other(torch.zeros(1, 1, 48, 48)).logits.shape == (1, 5)
    assert torch.equal(other.vit.layernorm.weight, vit.vit.layernorm.weight)
    positions = vit.vit.embeddings.position_embeddings
    assert torch.equal(other.vit.embeddings.position_embeddings[:, 0], positions[:, 0])


def test_files_and_configurations_of_transformers(vit, folder, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "a.pt")
    assert same(vit, build_model(f"transformers/{folder}", weights=tmp_path / "a.pt"))
    with open(f"{folder}/config.json") as file:
        config = json.load(file)
    for each in (config, vit.config):
        network = build_model("transformers/vit", config=each, weights=tmp_path / "a.pt")
        assert same(vit, network)
        assert "by default" in network.origin.preprocessing.source


def test_a_network_without_a_head(vit, folder, tmp_path):
    vit.vit.save_pretrained(tmp_path / "base")
    name = f"transformers/{tmp_path}/base"
    with pytest.raises(ValueError, match=r"no weights for classifier.bias.* was not trained"):
        CAMExplainer(name, weights="DEFAULT").fit(X)
    with pytest.warns(UserWarning, match=r"image processor of .* cannot be read"):
        network = build_model(name, weights="DEFAULT", n_classes=2)
    assert torch.equal(network.vit.layernorm.weight, vit.vit.layernorm.weight)


def test_instances_bring_what_they_know(vit, folder):
    loaded = transformers.AutoModelForImageClassification.from_pretrained(folder)
    explainer = CAMExplainer(loaded, verbose=0).fit(X)
    assert explainer.preprocessing_.mean == (0.4, 0.4, 0.4)
    assert explainer.preprocessing_.source == f"the image processor of {folder}"
    assert explainer.class_names_.tolist() == ["cat", "dog", "emu"]
    unknown = CAMExplainer(ViTForImageClassification(vit.config), verbose=0).fit(X)
    assert "ViTForImageClassification does not say" in unknown.preprocessing_.source
    assert unknown.preprocessing_.image_size == (32, 32)
    labelled = CAMExplainer(loaded, classes=[5, 6, 7], verbose=0).fit(X)
    assert labelled.class_names_ is None


# construct


@pytest.mark.parametrize(
    "builder",
    [
        functools.partial(timm.create_model, "resnet18"),
        timm.models.resnet18,
        models.resnet18,
        functools.partial(models.resnet18, weights=None),
    ],
)
def test_builders_that_hide_what_they_take(builder):
    assert construct(builder, n_classes=3, in_channels=3).fc.out_features == 3


def test_channels_of_timms_builders():
    builder = functools.partial(timm.create_model, "resnet18", num_classes=4)
    network = construct(builder, n_classes=3, in_channels=1)
    assert (network.conv1.in_channels, network.fc.out_features) == (1, 4)


def test_a_builder_of_transformers(folder):
    kind = transformers.AutoModelForImageClassification
    builder = functools.partial(kind.from_pretrained, folder)
    assert construct(builder, n_classes=2, in_channels=3).classifier.out_features == 2


def test_other_builders_are_left_alone():
    """Whoever takes anything need not know what to do with it."""

    def build(**kwargs):
        assert not kwargs
        return nn.Identity()

    construct(build, n_classes=3, in_channels=3)


def test_instances_get_a_head_by_their_own_means(vit):
    given = timm.create_model("vit_tiny_patch16_224", num_classes=7, **TINY)
    made = construct(given, n_classes=3, in_channels=3)
    assert (made.head.out_features, given.head.out_features) == (3, 7)
    assert same(given, made, "head")
    features = timm.create_model("resnet18", num_classes=0)
    assert isinstance(construct(features, n_classes=512, in_channels=3).fc, nn.Identity)
    assert construct(features, n_classes=3, in_channels=3).fc.out_features == 3
    made = construct(vit, n_classes=5, in_channels=3)
    assert (made.classifier.out_features, vit.classifier.out_features) == (5, 3)
    assert same(vit, made, "classifier")


# What goes on


def test_missing_packages(monkeypatch):
    for package, name in (("timm", "timm/resnet18"), ("transformers", "transformers/a/b")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf'pip install "sklcam\[{package}\]"'):
            build_model(name)


def test_random_weights_are_warned_of():
    with pytest.warns(UserWarning, match=r"random weights.*DEFAULT"):
        CAMExplainer("timm/resnet18", image_size=64, verbose=0).fit(X)
    with pytest.raises(ValueError, match="weights='x' is for a network given by name"):
        CAMExplainer(nn.Identity(), weights="x").fit(X)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_files_of_explainers_by_name(kind, folder, timm_folder, tmp_path, monkeypatch):
    name = f"timm/{timm_folder}" if kind == "timm" else f"transformers/{folder}"
    explainer = CAMExplainer(
        name, weights="DEFAULT", target_layer=[*_LAYERS[kind]], mean=0.3, verbose=0
    ).fit(X)
    sklcam.save(explainer, tmp_path / "a")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", None)  # nothing is looked up
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", None)
    loaded = sklcam.load(tmp_path / "a")
    np.testing.assert_array_equal(loaded.explain(X), explainer.explain(X))
    assert loaded.preprocessing_ == explainer.preprocessing_
    assert loaded.class_names_.tolist() == explainer.class_names_.tolist()


_LAYERS = {"timm": ("blocks.1.norm1",), "transformers": ("auto",)}


def test_an_explainer_that_has_not_been_fitted(folder, tmp_path):
    """Its network says the same after it was read, where its file does not hold its folder."""
    network = build_model(f"transformers/{folder}", weights="DEFAULT")
    sklcam.save(CAMExplainer(network, verbose=0), tmp_path / "a")
    loaded = sklcam.load(tmp_path / "a").fit(X)
    assert loaded.preprocessing_ == CAMExplainer(network, verbose=0).fit(X).preprocessing_
    assert loaded.class_names_.tolist() == ["cat", "dog", "emu"]


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_files_of_classifiers(kind, folder, timm_folder, tmp_path, monkeypatch):
    name = f"timm/{timm_folder}" if kind == "timm" else f"transformers/{folder}"
    clf = ConsistentCAMClassifier(
        name, weights="DEFAULT", target_layer=_LAYERS[kind][0], image_size=None, resize=None
    )
    clf.set_params(max_epochs=1, verbose=0, batch_size=3, random_state=0).fit(X, Y)
    assert clf.preprocessing_.image_size == (32, 32)
    assert clf.preprocessing_.mean == ((0.5,) * 3 if kind == "timm" else (0.4,) * 3)
    sklcam.save(clf, tmp_path / "a")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", None)
    monkeypatch.setattr(timm.models, "load_model_config_from_hf", None)
    loaded = sklcam.load(tmp_path / "a")
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert loaded.preprocessing_ == clf.preprocessing_


@pytest.mark.parametrize(
    "entry",
    [
        *({"_attn_implementation": "kernels-community/x"}, {"backbone": "resnet18"}),
        *({"auto_map": {"AutoConfig": "a.B"}}, {"hidden_act": "a/b"}, {"num_hidden_layers": 10**9}),
        {"model_type": "timm_wrapper"},
    ],
    ids=str,
)
def test_configurations_in_files_name_nothing(entry, folder, tmp_path):
    network = build_model(f"transformers/{folder}", weights="DEFAULT")
    network.built_as["config"].update(entry)
    with pytest.raises(PersistenceError, match="configuration"):
        sklcam.save(CAMExplainer(network), tmp_path / "a")


def test_training_crops_are_of_the_networks_interpolation(monkeypatch):
    from sklcam.images import views

    seen = set()

    def spy(image, size, how):
        seen.add(how.interpolation)
        return resized(image, size, how)

    resized = views.resize_image
    monkeypatch.setattr(views, "resize_image", spy)
    options = {"image_size": 64, "max_epochs": 1, "verbose": 0, "alpha": 0, "beta": 0}
    ConsistentCAMClassifier("timm/resnet18", **options).fit(X, Y)
    assert seen == {"bicubic"}


def test_a_builders_network_says_how_images_are_normalised():
    builder = functools.partial(timm.create_model, "vit_tiny_patch16_224", img_size=32, **TINY)
    options = {"image_size": 32, "max_epochs": 1, "verbose": 0, "target_layer": "blocks.1.norm1"}
    clf = ConsistentCAMClassifier(builder, random_state=0, **options).fit(X, Y)
    assert clf.preprocessing_.mean == (0.5, 0.5, 0.5)
    assert clf.preprocessing_.source.startswith("timm's configuration of vit_tiny_patch16_224")
