"""Files come back as they were, or not at all: damaged, forged and foreign ones are refused."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import joblib
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint, EarlyStopping, EpochScoring, LRScheduler
from skorch.dataset import ValidSplit
from skorch.exceptions import DeviceWarning
from small_networks import DropoutNet, SmallNet, digits
from torch import nn
from torchvision.transforms import v2

from sklcam import (
    CAMExplainer,
    ConsistentCAMClassifier,
    EmbeddingCAMExplainer,
    EmbeddingNet,
    load,
    model_card,
    save,
)
from sklcam.cam import GradCAM
from sklcam.embeddings import TripletCAM
from sklcam.networks import TargetLayer
from sklcam.persistence import (
    PersistenceError,
    UntrustedError,
    VersionWarning,
    container,
    decoding,
    encoding,
)
from sklcam.training import Balanced, ViewSampler, WarmUp

X, Y = digits(24)
TRUST = [SmallNet, DropoutNet]


def sequential() -> nn.Sequential:
    """A network of torch's own layers, which needs no trust."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def halved(epoch: int) -> float:
    return 0.5**epoch


class Doubled:
    """A user's object: an augmentation with a parameter."""

    def __init__(self, by: float = 2.0):
        self.by = by

    def __call__(self, images):
        return (images * self.by).clamp(0, 1)


class OwnClassifier(ConsistentCAMClassifier):
    """A user's estimator, which learns something of its own."""

    def fit(self, X, y=None, **fit_params):
        super().fit(X, y, **fit_params)
        self.brightness_ = float(np.mean(X))
        return self


def classifier(module=SmallNet, **options) -> ConsistentCAMClassifier:
    given = {"image_size": 16, "lr": 0.05, "max_epochs": 1, "verbose": 0, "random_state": 0}
    return ConsistentCAMClassifier(module, **{**given, "batch_size": 12, **options})


def embedding_net(module=SmallNet, **options) -> EmbeddingNet:
    given = {"embedding_dim": 4, "image_size": 16, "max_epochs": 1, "random_state": 0}
    return EmbeddingNet(module, **{**given, "verbose": 0, "batch_size": 12, **options})


def round_trip(estimator, folder: Path, trusted=TRUST):
    save(estimator, folder / "estimator.sklcam")
    return load(folder / "estimator.sklcam", trusted=trusted)


def same_params(one, other) -> None:
    """Parameters are equal, by what they print."""
    params, others = one.get_params(), other.get_params()
    assert params.keys() == others.keys()
    for name, value in params.items():
        assert type(value) is type(others[name]), name
        if not isinstance(value, nn.Module | torch.Tensor | np.ndarray) and name != "model":
            pattern = r" at [0-9a-fA-Fx]+"
            assert re.sub(pattern, "", repr(value)) == re.sub(pattern, "", repr(others[name])), name


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )


@pytest.fixture(scope="module")
def fitted() -> ConsistentCAMClassifier:
    return classifier().fit(X, Y)


@pytest.fixture
def saved(fitted, tmp_path) -> Path:
    save(fitted, tmp_path / "estimator.sklcam")
    return tmp_path / "estimator.sklcam"


# --- round trips ----------------------------------------------------------------------------------


CLASSIFIERS = {
    "plain": {},
    "dropout": {"module": DropoutNet},
    "adam": {"optimizer": torch.optim.Adam, "lr": 0.01},
    "auto": {"alpha": "auto", "beta": Balanced(0.2)},
    "warm up": {"alpha": WarmUp(1.0, epochs=3)},
    "fp16": {"precision": "fp16", "batch_accumulation": 2},
    "channels last": {"channels_last": True, "memory": "low"},
    "no seed": {"random_state": None},
    "validation": {"train_split": ValidSplit(KFold(3)), "callbacks": [("stop", EarlyStopping())]},
    "schedule": {"callbacks": [LRScheduler("StepLR", step_size=1, gamma=0.5)]},
    "views": {"views": ViewSampler(scale=(0.5, 1.0)), "augment": None},
    "augment": {"augment": v2.RandomHorizontalFlip(0.3)},
    "instance": {"module": sequential(), "target_layer": TargetLayer("4"), "mean": [0.1]},
    "torchvision": {"module": "squeezenet1_1", "image_size": 64},
}


@pytest.mark.parametrize("options", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_classifier_comes_back_and_goes_on_training(options, tmp_path):
    clf = classifier(**options).fit(X, Y)
    loaded = round_trip(clf, tmp_path)
    same_params(clf, loaded)
    assert type(loaded) is ConsistentCAMClassifier
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    np.testing.assert_array_equal(loaded.explain(X), clf.explain(X))
    assert loaded.score(X, Y) == clf.score(X, Y)
    assert loaded.target_layer_ == clf.target_layer_
    assert list(loaded.history) == list(clf.history)
    if clf.precision == "fp16":
        assert loaded.scaler_.state_dict() == clf.scaler_.state_dict()
    for estimator in (clf, loaded):
        estimator.partial_fit(X, Y)
    assert equal_states(loaded.module_, clf.module_)
    columns = [name for name in clf.history[-1] if name not in ("dur", "batches")]
    assert [loaded.history[-1, name] for name in columns] == [
        clf.history[-1, name] for name in columns
    ]
    np.testing.assert_array_equal(loaded.explain(X), clf.explain(X))


@pytest.mark.skipif(find_spec("pytorch_metric_learning") is None, reason="needs the extra")
@pytest.mark.parametrize("criterion", ["margin", "triplet", "proxy-anchor", "instance"])
def test_embedding_net_comes_back_and_goes_on_training(criterion, tmp_path):
    if criterion == "instance":
        from pytorch_metric_learning.losses import ContrastiveLoss

        criterion = ContrastiveLoss(neg_margin=0.5)
    net = embedding_net(criterion=criterion).fit(X, Y)
    loaded = round_trip(net, tmp_path)
    same_params(net, loaded)
    np.testing.assert_array_equal(loaded.transform(X), net.transform(X))
    np.testing.assert_array_equal(loaded.explain(X), net.explain(X))
    assert loaded.score(X, Y) == net.score(X, Y)
    assert equal_states(loaded.criterion_, net.criterion_)
    np.testing.assert_array_equal(loaded.get_feature_names_out(), net.get_feature_names_out())
    for estimator in (net, loaded):
        estimator.partial_fit(X, Y)
    np.testing.assert_array_equal(loaded.transform(X), net.transform(X))
    assert equal_states(loaded.criterion_, net.criterion_)


def test_explainer_of_a_network(tmp_path):
    images = torch.rand(4, 1, 16, 16)
    labels = ["a", "b", "c"]
    explainer = CAMExplainer(sequential(), GradCAM(relu=False), "4", classes=labels, verbose=0)
    explainer.fit()
    loaded = round_trip(explainer, tmp_path, trusted=())
    same_params(explainer, loaded)
    np.testing.assert_array_equal(loaded.predict_proba(images), explainer.predict_proba(images))
    np.testing.assert_array_equal(loaded.explain(images), explainer.explain(images))
    assert loaded.score(images, explainer.predict(images)) == 1
    assert loaded.model.training is explainer.model.training
    assert loaded.target_layers_ == explainer.target_layers_


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "swin_t", "efficientnet_b0"])
def test_explainer_of_torchvision_networks(name, tmp_path):
    from sklcam.networks import build_model

    network = build_model(name, n_classes=2).eval()
    loaded = round_trip(CAMExplainer(network), tmp_path, trusted=())
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded.model(images), network(images))
    assert repr(loaded.model) == repr(network)


def test_explainer_of_an_estimator(fitted, tmp_path):
    explainer = CAMExplainer(fitted, "layercam", verbose=0).fit()
    loaded = round_trip(explainer, tmp_path)
    np.testing.assert_array_equal(loaded.explain(X), explainer.explain(X))
    np.testing.assert_array_equal(loaded.predict(X), explainer.predict(X))


def test_explainer_of_another_skorch_net(tmp_path):
    net = NeuralNetClassifier(SmallNet, max_epochs=1, train_split=None, verbose=0)
    images = torch.rand(12, 1, 16, 16)
    net.fit(images, torch.from_numpy(Y[:12]))
    state = torch.get_rng_state()
    loaded = round_trip(CAMExplainer(net, verbose=0).fit(images), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(loaded.model.predict_proba(images), net.predict_proba(images))
    torch.manual_seed(0)
    net.partial_fit(images, torch.from_numpy(Y[:12]))
    torch.manual_seed(0)
    loaded.model.partial_fit(images, torch.from_numpy(Y[:12]))
    assert equal_states(loaded.model.module_, net.module_)


@pytest.mark.parametrize("proxy", ["mean", "self", np.eye(3, 4, dtype=np.float32)])
@pytest.mark.skipif(find_spec("pytorch_metric_learning") is None, reason="needs the extra")
def test_embedding_explainer(proxy, tmp_path):
    names = np.array(["apple", "pear", "plum"])[Y]
    net = embedding_net().fit(X, names)
    explainer = EmbeddingCAMExplainer(net, proxy, verbose=0, top_channels=3).fit(X, names)
    loaded = round_trip(explainer, tmp_path)
    np.testing.assert_array_equal(loaded.explain(X), explainer.explain(X))
    np.testing.assert_array_equal(loaded.transform(X), explainer.transform(X))
    if isinstance(proxy, str) and proxy == "mean":
        assert loaded.score(X, names) == explainer.score(X, names)
        for estimator in (explainer, loaded):
            estimator.partial_fit(X[:3], ["fig"] * 3)
        np.testing.assert_array_equal(loaded.proxies_, explainer.proxies_)
        np.testing.assert_array_equal(loaded.classes_, explainer.classes_)


def test_fitted_method_in_an_explainer(tmp_path):
    images = torch.rand(9, 1, 16, 16)
    explainer = EmbeddingCAMExplainer(sequential(), "self", target_layer="4", verbose=0).fit()
    method = TripletCAM(random_state=np.random.RandomState(3)).fit(explainer, images, Y[:9])
    explainer.set_params(method=method)
    loaded = round_trip(explainer, tmp_path, trusted=())
    np.testing.assert_array_equal(loaded.explain(images), explainer.explain(images))


@pytest.mark.parametrize(
    "estimator",
    [
        classifier("resnet18", weights="DEFAULT"),
        classifier(random_state=np.random.RandomState(5), alpha=np.float64(0.5)),
        embedding_net("resnet18"),
        CAMExplainer(sequential()),
        CAMExplainer(classifier("resnet18")),
        EmbeddingCAMExplainer(sequential(), np.eye(3)),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_unfitted(estimator, tmp_path):
    loaded = round_trip(estimator, tmp_path)
    same_params(estimator, loaded)
    assert not hasattr(loaded, "module_") and not hasattr(loaded, "target_layers_")


def test_unfitted_random_state_draws_on(tmp_path):
    clf = classifier(random_state=np.random.RandomState(5))
    loaded = round_trip(clf, tmp_path)
    assert clf.random_state.randint(1000) == loaded.random_state.randint(1000)
    fitted = classifier(random_state=np.random.RandomState(5)).fit(X, Y)
    before = fitted.random_state.get_state()
    loaded = round_trip(fitted, tmp_path)
    for state in (fitted.random_state.get_state(), loaded.random_state.get_state()):
        assert state[2] == before[2] and np.array_equal(state[1], before[1])


LABELS = {
    "str": np.array(["b", "a", "c"]),
    "int": np.array([-7, 3, 2**40]),
    "uint8": np.array([5, 1, 9], dtype=np.uint8),
    "float": np.array([0.0, -1.0, 2.0**60]),
    "object": np.array(["x", "yy", "z"], dtype=object),
    "big endian": np.array([1, 2, 3], dtype=">i4"),
    "date": np.array(["2020-01-01", "2021-01-01", "1999-05-05"], dtype="datetime64[D]"),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_kinds_of_labels(labels, tmp_path):
    clf = classifier(max_epochs=0).fit(X, labels[Y])
    loaded = round_trip(clf, tmp_path)
    assert loaded.classes_.dtype == clf.classes_.dtype.newbyteorder("=")
    np.testing.assert_array_equal(loaded.predict(X), clf.predict(X))


def test_bool_labels(tmp_path):
    clf = classifier().fit(X, Y == 1)
    loaded = round_trip(clf, tmp_path)
    assert loaded.classes_.dtype == bool
    np.testing.assert_array_equal(loaded.predict(X), clf.predict(X))


def test_what_training_has_left_unused(tmp_path):
    clf = classifier(memory="low").fit(X, Y)
    clf.module_[0].weight.requires_grad_(False)
    loaded = round_trip(clf, tmp_path)
    assert [p.requires_grad for p in loaded.module_.parameters()] == [
        p.requires_grad for p in clf.module_.parameters()
    ]


def test_tied_weights_stay_tied(tmp_path):
    network = sequential()
    network[4].weight = nn.Parameter(torch.rand(4, 4, 3, 3))
    network.append(nn.Linear(3, 3))
    network[8].weight = network.spare = nn.Parameter(torch.rand(3, 3))
    loaded = round_trip(CAMExplainer(network), tmp_path, trusted=())
    assert loaded.model[8].weight is loaded.model.spare
    assert equal_states(loaded.model, network)


def test_values_of_all_kinds(tmp_path):
    class Any_(ConsistentCAMClassifier):
        pass

    values = {
        "a": (1, 2.5, None, float("inf"), -0.0, "ü\u2028\ud800"),
        "@b": {"@tuple": [1]},
        "c": {1: "x", (2, 3): {4, 5}},
        "d": [np.int8(3), np.float32(0.1), np.bool_(True), np.str_("s")],
        "e": [torch.float16, torch.device("cpu"), np.dtype("<f4"), torch.Size([1, 2])],
        "f": [slice(1, None, 2), range(3), Path("a/b"), partial(print, "x", end="")],
        "g": [torch.tensor(3), torch.zeros(0, 2), np.zeros((0, 3)), np.float64("nan")],
        "h": [np.array(["a", None, 1], dtype=object), torch.tensor([True]), 2**70],
        "i": torch.Generator().manual_seed(4),
        "j": [torch.ones(2, 3).T, np.ones((2, 3)).T, np.arange(6)[::-2]],
    }
    encoder = encoding.Encoder()
    text = json.dumps(encoder.encode(values, "x"), allow_nan=False)
    found = decoding.Decoder(encoder.tensors, {}).decode(json.loads(text))
    for name in "ac@bef":
        if name != "@" and name != "f" and name in values:
            assert found[name] == values[name], name
    assert found["@b"] == values["@b"]
    assert [type(value) for value in found["d"]] == [type(value) for value in values["d"]]
    assert found["d"] == values["d"]
    assert found["f"][:3] == values["f"][:3]
    assert (found["f"][3].func, found["f"][3].args) == (print, ("x",))
    assert found["i"].get_state().equal(values["i"].get_state())
    for name in "gj":
        for one, other in zip(found[name], values[name], strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


def test_joblib_still_works(fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "clf.joblib")
    loaded = joblib.load(tmp_path / "clf.joblib")
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    save(fitted, tmp_path / "a")
    save(loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_same_bytes_each_time(fitted, tmp_path):
    save(fitted, tmp_path / "a")
    save(fitted, tmp_path / "b")
    save(load(tmp_path / "a", trusted=TRUST), tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def test_the_file_is_what_it_is_said_to_be(saved):
    with zipfile.ZipFile(saved) as archive:
        assert archive.namelist() == ["estimator.json", "weights.safetensors"]
        assert archive.testzip() is None
        content = json.loads(archive.read("estimator.json"))
        tensors = safetensors.torch.load(archive.read("weights.safetensors"))
    assert content["versions"]["torch"] == torch.__version__.split("+")[0] or content["versions"]
    assert tensors["module_.0.weight"].shape == (8, 1, 3, 3)
    assert b"pickle" not in saved.read_bytes()


def test_estimator_is_left_as_it_was(fitted, tmp_path):
    before = {name: value.clone() for name, value in fitted.module_.state_dict().items()}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    round_trip(fitted, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert all(torch.equal(v, before[name]) for name, v in fitted.module_.state_dict().items())


# --- trust ----------------------------------------------------------------------------------------


def test_a_module_class_needs_trust(saved):
    with pytest.raises(UntrustedError, match=r"networks\.SmallNet") as caught:
        load(saved)
    assert caught.value.names == ["networks.SmallNet"]
    for trusted in ([SmallNet], ["networks.SmallNet"], (SmallNet,), caught.value.names):
        assert load(saved, trusted=trusted).initialized_


def test_all_that_is_missing_is_named_at_once(tmp_path):
    clf = classifier(alpha=halved, augment=Doubled(3.0)).fit(X, Y)
    save(clf, tmp_path / "a")
    with pytest.raises(UntrustedError) as caught:
        load(tmp_path / "a", trusted=[halved])
    names = ["networks.SmallNet", "test_persistence.Doubled"]
    assert caught.value.names == names
    loaded = load(tmp_path / "a", trusted=[*names, halved])
    assert loaded.augment.by == 3.0 and loaded.alpha is halved


def test_an_estimator_of_ones_own(tmp_path):
    clf = OwnClassifier("squeezenet1_1", image_size=64, max_epochs=0, verbose=0).fit(X, Y)
    save(clf, tmp_path / "a")
    with pytest.raises(UntrustedError, match="OwnClassifier"):
        load(tmp_path / "a")
    assert load(tmp_path / "a", trusted=[OwnClassifier]).brightness_ == clf.brightness_


def test_a_network_of_ones_own_in_an_explainer(tmp_path):
    save(CAMExplainer(SmallNet()), tmp_path / "a")
    with pytest.raises(UntrustedError, match="SmallNet"):
        load(tmp_path / "a")
    assert isinstance(load(tmp_path / "a", trusted=TRUST).model, SmallNet)


def test_nothing_untrusted_is_imported(tmp_path, monkeypatch):
    (tmp_path / "tell_tale.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = forged(tmp_path, {"@name": "tell_tale:Net"})
    with pytest.raises(UntrustedError, match=r"tell_tale\.Net"):
        load(path)
    assert "tell_tale" not in sys.modules


@pytest.mark.parametrize("trusted", ["networks.SmallNet", 3, None, [3], [None], [SmallNet()]])
def test_trusted_is_a_list_of_names_and_classes(trusted, saved):
    with pytest.raises(ValueError, match="trusted takes"):
        load(saved, trusted=trusted)


def test_trust_in_what_is_not_there(tmp_path):
    path = forged(tmp_path, {"@name": "no_such_module:Net"})
    with pytest.raises(PersistenceError, match="no_such_module"):
        load(path, trusted=["no_such_module.Net"])
    path = forged(tmp_path, {"@name": "networks:NoSuchNet"})
    with pytest.raises(PersistenceError, match="NoSuchNet"):
        load(path, trusted=["networks.NoSuchNet"])


def test_checkpoints_need_trust_as_they_write_files(tmp_path):
    folder = tmp_path / "written"
    clf = classifier(callbacks=[("keep", Checkpoint(dirname=str(folder), monitor=None))])
    save(clf, tmp_path / "a")
    with pytest.raises(UntrustedError, match="Checkpoint"):
        load(tmp_path / "a", trusted=TRUST)
    assert not folder.exists()


@pytest.mark.parametrize(
    "value", [lambda epoch: 1.0, partial(lambda epoch: 1.0)], ids=["lambda", "partial"]
)
def test_what_has_no_name_is_refused_when_saving(value, tmp_path):
    with pytest.raises(PersistenceError, match=r"alpha.*lambda.*top of a module"):
        save(classifier(alpha=value), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_local_and_main_classes_are_refused_when_saving(tmp_path, monkeypatch):
    class Local(SmallNet):
        pass

    with pytest.raises(PersistenceError, match=r"module is.*Local.*top of a module"):
        save(classifier(Local), tmp_path / "a")
    monkeypatch.setattr(SmallNet, "__module__", "__main__")
    with pytest.raises(PersistenceError, match=r"of a script, a notebook"):
        save(classifier(SmallNet), tmp_path / "a")


def test_a_class_that_its_name_does_not_find(tmp_path, monkeypatch):
    monkeypatch.setattr("networks.SmallNet", DropoutNet)
    with pytest.raises(PersistenceError, match=r"networks\.SmallNet is not"):
        save(classifier(SmallNet), tmp_path / "a")


@pytest.mark.parametrize("value", [open, io.BytesIO(), re.compile("a"), iter([]), object])
def test_what_cannot_be_put_in_words(value, tmp_path):
    clf = classifier("resnet18", iterator_train__collate_fn=value)
    if value in (open, object):  # they have names, which are not trusted
        save(clf, tmp_path / "a")
        with pytest.raises(UntrustedError):
            load(tmp_path / "a")
    else:
        with pytest.raises(PersistenceError, match="iterator_train__collate_fn"):
            save(clf, tmp_path / "a")


@pytest.mark.parametrize("what", [3, None, SmallNet(), SmallNet, KFold()])
def test_only_estimators_are_saved(what, tmp_path):
    with pytest.raises(PersistenceError, match="save takes the estimators"):
        save(what, tmp_path / "a")


def test_parameters_that_let_code_in(tmp_path):
    clf = classifier("resnet18", torch_load_kwargs={"weights_only": False})
    with pytest.raises(PersistenceError, match="torch_load_kwargs"):
        save(clf, tmp_path / "a")
    node = ours("resnet18", torch_load_kwargs={"weights_only": False})
    with pytest.raises(PersistenceError, match="torch_load_kwargs"):
        load(forged(tmp_path, node))
    clf = classifier("resnet18", compile=True, compile__options={"cpp.cxx": "evil"})
    save(clf, tmp_path / "a")
    with pytest.raises(UntrustedError, match=r"torch\.compile"):
        load(tmp_path / "a")
    assert load(tmp_path / "a", trusted=["torch.compile"]).compile


# --- forged files ---------------------------------------------------------------------------------


def forged(folder: Path, estimator, tensors=None, **top) -> Path:
    """Write a file with a right checksum around any content."""
    content = {"format": "sklcam", "format_version": 1, "versions": {}, "estimator": estimator}
    text = json.dumps({**content, **top}).encode()
    return forged_text(folder, text, tensors)


def forged_text(folder: Path, text: bytes, tensors=None) -> Path:
    path = folder / "forged.sklcam"
    with path.open("w+b") as file:
        container.write_archive(file, text, tensors or {})
    return path


def ours(module, **params):
    return {
        "@net": {
            "class": "sklcam.training.classifier:ConsistentCAMClassifier",
            "params": {"module": module, **params},
            "fitted": None,
        }
    }


def resealed(path: Path) -> Path:
    """Give a file a right checksum."""
    data = path.read_bytes()
    with path.open("w+b") as file:
        file.write(data)
        digest = container._digest(file, len(data))
    path.write_bytes(data[:-64] + digest.encode())
    return path


def rewritten(saved: Path, change) -> Path:
    """Change the JSON and the tensors of a file, and make its checksum right."""
    with zipfile.ZipFile(saved) as archive:
        content = json.loads(archive.read("estimator.json"))
        tensors = safetensors.torch.load(archive.read("weights.safetensors"))
    change(content, tensors)
    return forged_text(saved.parent, json.dumps(content).encode(), tensors)


EVIL = [
    "os:system",
    "posix:system",
    "builtins:eval",
    "builtins:exec",
    "builtins:__import__",
    "builtins:open",
    "builtins:getattr",
    "subprocess:Popen",
    "subprocess:run",
    "pickle:loads",
    "torch:load",
    "torch:compile",
    "torch.hub:load",
    "torch.jit:load",
    "torch.fx.graph_module:GraphModule",
    "torch.fx:GraphModule",
    "torch.nn:os",
    "torch.nn.modules.module:warnings.sys.modules",
    "torch.nn.modules.module:warnings",
    "torch.nn.modules.module:Module.load_state_dict",
    "torch.nn.modules.module:itertools",
    "torch.nn.functional:importlib",
    "torch.nn.functional:warnings",
    "torch.nn:Module",  # which is torch.nn.modules.module's
    "torch.utils.data.datapipes.iter.fileopener:FileOpenerIterDataPipe",
    "torch.optim:os.system",
    "torch.nnx:Linear",
    "torchvision.models._api:get_model",
    "torchvision.datasets.utils:download_url",
    "sklearn.model_selection._split:sys",
    "sklearn.model_selection._search:GridSearchCV",
    "sklcam.training.classifier:copy",
    "sklcam.persistence.names:import_module",
    "sklcam.persistence.container:os",
    "sklcam.persistence:load",
    "sklcam.datasets:load_cub200",
    "sklcam.metrics:__builtins__",
    "skorch.callbacks.training:Checkpoint",
    "skorch.callbacks.training:LoadInitState",
    "skorch.net:pickle",
    "skorch.utils:params_for",
    "numpy:load",
    "joblib:load",
    "",
    ":",
    "os",
    "os.system",
    "os:",
    ":system",
    "torch.nn.modules.linear:",
    "torch.nn.modules.linear:Linear.__init__",
    "torch.nn.modules.linear.:Linear",
    "torch.nn.modules..linear:Linear",
    ".torch.nn:Linear",
    "torch.nn.modules.linear:Linear\n",
    "networks:SmallNet",
]


def places(name):
    """Where a name may stand in a file."""
    node = {"@name": name}
    instance = {"class": name, "id": 1, "state": {"weights_only": True}}
    yield node
    yield ours(node)
    yield ours("resnet18", optimizer=node)
    yield ours("resnet18", callbacks=[{"@tuple": ["x", node]}])
    yield ours("resnet18", augment={"@object": instance})
    yield ours("resnet18", augment={"@dataclass": {"class": name, "fields": {}}})
    yield ours("resnet18", augment={"@enum": {"class": name, "member": "x"}})
    yield ours({"@partial": {"function": node, "args": ["echo"], "keywords": {}}})
    yield {"@net": {"class": name, "params": {"command": "echo"}, "fitted": None}}
    yield {"@explainer": {"class": name, "params": {}, "attributes": {}}}
    yield {"@object": instance}


@pytest.mark.parametrize("name", EVIL)
def test_names_outside_the_list_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("ran"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("ran"))
    for node in places(name):
        with pytest.raises(PersistenceError, match="needs"):
            load(forged(tmp_path, node))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.from_regex(
        r"(os|sys|builtins|torch(\.nn|\.optim)?|sklcam|skorch\.net|nt|ctypes|networks)"
        r"(\.[a-z_]{1,8}){0,2}[:.]{0,2}(system|eval|exec|Popen|load|os|sys|[A-Za-z_.]{0,8})",
        fullmatch=True,
    )
)
def test_names_made_up(tmp_path, name):
    with pytest.raises(PersistenceError):
        load(forged(tmp_path, {"@name": name}))


def test_known_classes_in_the_wrong_place_are_refused(tmp_path):
    for name in ("torch.nn.modules.linear:Linear", "torch.optim.sgd:SGD", "builtins:print"):
        for node in places(name):
            if node in list(places(name))[1:8]:
                continue  # parameters are checked by fit
            with pytest.raises(PersistenceError):
                load(forged(tmp_path, node))


def test_a_net_is_not_filled_by_its_setstate(tmp_path):
    for name in ("sklcam.training.classifier:ConsistentCAMClassifier", "skorch.net:NeuralNet"):
        state = {"device": "cpu", "__cuda_dependent_attributes__": "cos\nsystem\n(S'echo'\ntR."}
        node = {"@object": {"class": name, "id": 1, "state": state}}
        with pytest.raises(PersistenceError, match="stored as what it is not"):
            load(forged(tmp_path, ours("resnet18", augment=node)))


@pytest.mark.parametrize(
    "change",
    [
        lambda content, tensors: content.update(estimator=None),
        lambda content, tensors: content.update(estimator=[]),
        lambda content, tensors: content.update(estimator={"@net": []}),
        lambda content, tensors: content.update(estimator={"@unknown": []}),
        lambda content, tensors: content.update(estimator={"@tuple": [1]}),
        lambda content, tensors: content.pop("estimator"),
        lambda content, tensors: content.pop("versions"),
        lambda content, tensors: content.update(versions=[3]),
        lambda content, tensors: content.update(versions={"torch": None}),
        lambda content, tensors: content.update(format="other"),
        lambda content, tensors: content.update(format_version=2),
        lambda content, tensors: content.update(format_version="1"),
        lambda content, tensors: content.update(format_version=True),
        lambda content, tensors: fitted_of(content).pop("modules"),
        lambda content, tensors: fitted_of(content)["modules"].pop("module_"),
        lambda content, tensors: fitted_of(content)["modules"]["module_"].pop("0.weight"),
        lambda content, tensors: fitted_of(content)["modules"]["module_"].update(extra=1),
        lambda content, tensors: fitted_of(content)["modules"]["module_"].update({"0.bias": 1}),
        lambda content, tensors: fitted_of(content)["optimizers"].clear(),
        lambda content, tensors: fitted_of(content)["optimizers"].update(optimizer_={}),
        lambda content, tensors: fitted_of(content)["callbacks"].append(["none", {}]),
        lambda content, tensors: fitted_of(content)["callbacks"].append(["print_log", {"on": 1}]),
        lambda content, tensors: fitted_of(content)["attributes"].update(fit=1),
        lambda content, tensors: fitted_of(content)["attributes"].update(__class__=1),
        lambda content, tensors: fitted_of(content)["attributes"].pop("classes_inferred_"),
        lambda content, tensors: fitted_of(content)["attributes"].update(n_channels_=4),
        lambda content, tensors: fitted_of(content)["attributes"].update(n_channels_="many"),
        lambda content, tensors: fitted_of(content).update(history=3),
        lambda content, tensors: params_of(content).update(image_size="large"),
        lambda content, tensors: params_of(content).update(unknown=3),
        lambda content, tensors: params_of(content).update(module__width=16),
        lambda content, tensors: tensors.update({"module_.0.weight": torch.zeros(8, 1, 3, 2)}),
        lambda content, tensors: tensors.update({"module_.0.weight": torch.zeros(8, 1, 9)}),
        lambda content, tensors: tensors.update({"module_.0.weight": torch.zeros(8, 1, 3, 3) > 0}),
        lambda content, tensors: tensors.update({"module_.0.weight": torch.zeros(72)}),
        lambda content, tensors: tensors.update(classes_inferred_=torch.zeros(3)),
        lambda content, tensors: tensors.update(classes_inferred_=torch.arange(4)),
        lambda content, tensors: tensors.pop("module_.0.weight"),
        lambda content, tensors: tensors.clear(),
    ],
)
def test_content_that_does_not_fit(change, saved):
    with pytest.raises(PersistenceError, match="cannot be loaded"):
        load(rewritten(saved, change), trusted=TRUST)


def fitted_of(content):
    return content["estimator"]["@net"]["fitted"]


def params_of(content):
    return content["estimator"]["@net"]["params"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"format": "sklcam", "format": "sklcam"}',
        b'{"format": "sklcam", "format_version": NaN}',
        b"[" * 100000,
        b'{"format": "sklcam", "format_version": 1, "versions": {}, "estimator": '
        + b'{"a":' * 5000
        + b"1"
        + b"}" * 5001,
        b'{"format": "sklcam", "format_version": ' + b"9" * 5000 + b"}",
    ],
)
def test_json_that_is_none_of_ours(text, tmp_path):
    with pytest.raises(PersistenceError):
        load(forged_text(tmp_path, text))


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 100,
        struct.pack("<Q", 2) + b"{}" + b"rest",
        struct.pack("<Q", 60)
        + b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}',
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04echo\x85R.",
    ],
)
def test_weights_that_are_no_safetensors(weights, saved, monkeypatch):
    with zipfile.ZipFile(saved) as archive:
        text = archive.read("estimator.json")
    monkeypatch.setattr(safetensors.torch, "save", lambda tensors: weights)
    path = forged_text(saved.parent, text)
    with pytest.raises(PersistenceError):
        load(path, trusted=TRUST)


def test_a_key_twice(tmp_path):
    text = json.dumps({"format": "sklcam", "format_version": 1, "versions": {}}).encode()
    with pytest.raises(PersistenceError, match="a key twice"):
        load(forged_text(tmp_path, text.replace(b"{", b'{"format": "sklcam", ', 1)))


def test_long_labels_that_are_short(tmp_path):
    array = {"@array": {"shape": [1], "dtype": "<U90000000", "items": ["a"]}}
    with pytest.raises(PersistenceError, match="letters"):
        load(forged(tmp_path, ours("resnet18", classes=array)))


# --- containers -----------------------------------------------------------------------------------


def archive_of(folder: Path, *members, compression=zipfile.ZIP_STORED) -> Path:
    """Write a zip archive of any members, with a right checksum."""
    path = folder / "archive.sklcam"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        archive.comment = b"sha256:" + b"0" * 64
        for name, data in members:
            archive.writestr(name, data)
    return resealed(path)


TEXT = json.dumps({"format": "sklcam", "format_version": 1, "versions": {}}).encode()
EMPTY = safetensors.torch.save({})


@pytest.mark.parametrize(
    "members",
    [
        [("estimator.json", TEXT)],
        [("estimator.json", TEXT), ("weights.safetensors", EMPTY), ("more", b"")],
        [("estimator.json", TEXT), ("estimator.json", TEXT)],
        [("estimator.json", TEXT), ("weights.safetensors", EMPTY), ("weights.safetensors", EMPTY)],
        [("estimator.json", TEXT), ("../weights.safetensors", EMPTY)],
        [("estimator.json", TEXT), ("/etc/passwd", EMPTY)],
        [("estimator.json", TEXT), *((f"m{i}", b"") for i in range(2000))],
        [("weights.safetensors", EMPTY), ("estimator.json", TEXT)],
    ],
    ids=["few", "more", "twice", "twice more", "traversal", "absolute", "many", "order"],
)
def test_members_that_are_not_ours(members, tmp_path):
    begins = members[0][0] == "estimator.json"
    with pytest.raises(PersistenceError, match="in place of" if begins else "damaged"):
        load(archive_of(tmp_path, *members))
    assert [path.name for path in tmp_path.iterdir()] == ["archive.sklcam"]


def test_zip_bomb(tmp_path):
    bomb = [("estimator.json", b" " * 2**24), ("weights.safetensors", EMPTY)]
    path = archive_of(tmp_path, *bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16
    with pytest.raises(PersistenceError, match="compressed"):
        load(path)


@pytest.mark.parametrize(("at", "value"), [(8, 8), (8, 12), (6, 1)], ids=["zip", "bzip", "locked"])
def test_members_that_say_they_are_not_plain(at, value, saved):
    data = bytearray(saved.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        found = data.find(signature)
        data[found + at + offset] = value
    saved.write_bytes(data)
    with pytest.raises(PersistenceError, match="compressed, encrypted"):
        load(resealed(saved), trusted=TRUST)


def test_json_of_more_than_the_limit(tmp_path, monkeypatch, fitted):
    path = archive_of(tmp_path, ("estimator.json", TEXT), ("weights.safetensors", EMPTY))
    monkeypatch.setattr(container, "LARGEST_JSON", len(TEXT) - 1)
    with pytest.raises(PersistenceError, match="are refused"):
        load(path)
    with pytest.raises(PersistenceError, match="are refused"):
        save(fitted, tmp_path / "a")


def test_sizes_that_lie(tmp_path):
    path = archive_of(tmp_path, ("estimator.json", TEXT), ("weights.safetensors", EMPTY))
    data = bytearray(path.read_bytes())
    for at in [m.start() for m in re.finditer(b"PK\x01\x02", bytes(data))]:
        data[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)  # in the directory
    path.write_bytes(data)
    with pytest.raises(PersistenceError):
        load(resealed(path))


def test_truncated_anywhere(saved):
    data = saved.read_bytes()
    step = max(1, len(data) // 150)
    for size in {*range(0, len(data), step), *range(100), *range(len(data) - 200, len(data))}:
        saved.write_bytes(data[:size])
        with pytest.raises(PersistenceError):
            load(saved, trusted=TRUST)


def test_a_byte_flipped_anywhere(saved):
    data = saved.read_bytes()
    step = max(1, len(data) // 300)
    for at in {*range(0, len(data), step), *range(64), *range(len(data) - 300, len(data))}:
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        saved.write_bytes(damaged)
        with pytest.raises(PersistenceError):
            load(saved, trusted=TRUST)


def test_bytes_put_before_and_after(saved):
    data = saved.read_bytes()
    for changed in (data + b"\0", b"\0" + data, data + data, data[:-71], data[1:]):
        saved.write_bytes(changed)
        with pytest.raises(PersistenceError):
            load(saved, trusted=TRUST)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damage_that_the_checksum_does_not_tell(saved, data):
    """A made-up checksum: the error is still the clear one, or what is loaded is an estimator."""
    content = bytearray(saved.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 66))] = data.draw(st.integers(0, 255))
    other = saved.with_name("other")
    other.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = load(resealed(other), trusted=TRUST)
        except PersistenceError:
            return
    assert isinstance(loaded, ConsistentCAMClassifier)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"PK\x03\x04", b"\x80\x04\x95" + b"\0" * 200, os.urandom(300)]
)
def test_foreign_files(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(PersistenceError, match="not a file that"):
        load(tmp_path / "a")


def test_files_of_others(fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "a")
    torch.save(fitted.module_.state_dict(), tmp_path / "b")
    np.savez(tmp_path / "c.npz", a=X)
    for name in ("a", "b", "c.npz"):
        with pytest.raises(PersistenceError, match="not a file that"):
            load(tmp_path / name)


# --- writing --------------------------------------------------------------------------------------


def failing(error):
    def write(archive, name, data, write=container._write_member):
        if name != "estimator.json":
            archive.fp.write(data[: len(data) // 2])
            raise error
        write(archive, name, data)

    return write


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), MemoryError()]
)
@pytest.mark.parametrize("there", [True, False])
def test_written_whole_or_not_at_all(error, there, fitted, tmp_path, monkeypatch):
    path = tmp_path / "estimator.sklcam"
    if there:
        save(classifier("resnet18"), path)
    before = path.read_bytes() if there else None
    monkeypatch.setattr(container, "_write_member", failing(error))
    with pytest.raises(type(error)):
        save(fitted, path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == (["estimator.sklcam"] if there else [])
    if there:
        assert path.read_bytes() == before
        assert load(path).module == "resnet18"


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_errors_at_the_end_of_writing(function, fitted, tmp_path, monkeypatch):
    path = tmp_path / "estimator.sklcam"
    save(classifier("resnet18"), path)

    def fail(*args):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="broken"):
        save(fitted, path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["estimator.sklcam"]
    assert load(path).module == "resnet18"


def test_old_file_is_there_until_the_new_one_is_complete(fitted, tmp_path, monkeypatch):
    path = tmp_path / "estimator.sklcam"
    save(classifier("resnet18"), path)
    before, seen = path.read_bytes(), []

    def spy(*args, replace=os.replace):
        seen.append((path.read_bytes() == before, Path(args[0]).parent == path.parent))
        load(args[0], trusted=TRUST)  # whole before it takes the other's place
        replace(*args)

    monkeypatch.setattr(os, "replace", spy)
    save(fitted, path)
    assert seen == [(True, True)]
    assert load(path, trusted=TRUST).initialized_


def test_where_to_save(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        save(fitted, tmp_path / "missing" / "a")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        save(fitted, tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")
    save(fitted, str(tmp_path / "a"))
    assert load(str(tmp_path / "a"), trusted=TRUST).initialized_


def test_links_are_followed(fitted, tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    save(fitted, link)
    assert link.is_symlink() and target.read_bytes() != b"old"
    assert load(link, trusted=TRUST).initialized_


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_modes(fitted, tmp_path):
    before = os.umask(0o027)
    try:
        save(fitted, tmp_path / "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "a").chmod(0o604)
    save(fitted, tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o604


# --- devices and versions -------------------------------------------------------------------------


def test_auto_stays_auto(fitted, tmp_path):
    loaded = round_trip(fitted, tmp_path)
    assert loaded.get_params()["device"] == "auto"


@pytest.mark.parametrize("device", ["cuda:7", "mps", {"@device": "cuda:7"}])
def test_a_gpu_that_is_not_here(device, saved):
    path = rewritten(saved, lambda content, _: params_of(content).update(device=device))
    with pytest.warns(DeviceWarning, match="loaded on the CPU"):
        loaded = load(path, trusted=TRUST)
    assert loaded.get_params()["device"] == "cpu"
    assert loaded.predict(X).shape == (24,)


@pytest.mark.parametrize(
    ("versions", "warns"),
    [
        ({"torch": "1.13.1"}, "torch 1.13.1"),
        ({"torch": "99.0"}, "torch 99.0"),
        ({"sklcam": "99.0.0"}, "sklcam 99.0.0"),
        ({"skorch": "0.9"}, "skorch 0.9"),
        ({"sklcam": "0.0.3"}, "sklcam 0.0.3"),
        ({"torch": torch.__version__.split(".")[0] + ".0.0"}, None),
        ({}, None),
        ({"something": "1.0"}, None),
    ],
)
def test_versions(versions, warns, saved):
    path = rewritten(saved, lambda content, _: content.update(versions=versions))
    if warns is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", VersionWarning)
            load(path, trusted=TRUST)
    else:
        with pytest.warns(VersionWarning, match=re.escape(warns)):
            load(path, trusted=TRUST)


# --- accelerate, cards ----------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("accelerate") is None, reason="needs the extra")
def test_accelerated_classifier(tmp_path):
    from accelerate import Accelerator

    from sklcam.training import AcceleratedCAMClassifier

    given = classifier().get_params()
    given = {name: value for name, value in given.items() if "__" not in name}
    clf = AcceleratedCAMClassifier(**given, accelerator=Accelerator(cpu=True)).fit(X, Y)
    loaded = round_trip(clf, tmp_path)
    assert type(loaded) is AcceleratedCAMClassifier and loaded.accelerator is None
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    for estimator in (clf, loaded):
        estimator.partial_fit(X, Y)
    assert equal_states(loaded.module_, clf.module_)


def test_scoring_callbacks_come_back(tmp_path):
    names = np.array(["a", "b", "c"])[Y]
    scoring = EpochScoring("accuracy", lower_is_better=False, on_train=True, name="acc")
    clf = classifier(callbacks=[scoring]).fit(X, names)
    loaded = round_trip(clf, tmp_path)
    for estimator in (clf, loaded):
        estimator.partial_fit(X, names)
    assert loaded.history[-1, "acc"] == clf.history[-1, "acc"]
    assert loaded.history[-1, "acc_best"] == clf.history[-1, "acc_best"]


def test_card(fitted):
    card = model_card(fitted, metrics={"accuracy": 0.93217, "on": "a | b"})
    assert card.startswith("# ConsistentCAMClassifier\n")
    for part in (
        "| accuracy | 0.9322 |",
        "a \\| b",
        "| classes | [0, 1, 2] |",
        f"| target layer | {fitted.target_layer_.name} |",
        "| train_loss | ",
        "trusted=['networks.SmallNet']",
        f"| torch | {version('torch')} |",
        "## Limitations",
    ):
        assert part in card
    assert "0x" not in card


@pytest.mark.parametrize(
    "estimator",
    [
        classifier("resnet18"),
        classifier(alpha=lambda epoch: 1.0),
        CAMExplainer(sequential()).fit(torch.rand(1, 1, 16, 16)),
        EmbeddingCAMExplainer(sequential(), "self").fit(torch.rand(1, 1, 16, 16)),
    ],
    ids=["unfitted", "lambda", "explainer", "embedding"],
)
def test_card_of_others(estimator):
    card = model_card(estimator)
    assert card.startswith(f"# {type(estimator).__name__}")
    assert "Metrics" not in card and "## How to load it" in card


@dataclass
class _Unused:
    """Only here so that the module has a dataclass of a user."""

    value: int = 0


def test_dataclass_of_ones_own(tmp_path):
    clf = classifier("resnet18", iterator_train__collate_fn=_Unused(4))
    save(clf, tmp_path / "a")
    loaded = load(tmp_path / "a", trusted=[_Unused])
    assert loaded.iterator_train__collate_fn == _Unused(4)


def test_a_network_changed_by_hand_is_refused_when_saving(fitted, tmp_path):
    clf = joblib.load(_dumped(fitted, tmp_path))
    clf.module_[8] = nn.Linear(8, 5)
    with pytest.raises(PersistenceError, match=r"module_\.8\.weight must be of shape \(3, 8\)"):
        save(clf, tmp_path / "a")
    clf.module_[8] = nn.Linear(8, 3)
    clf.module_.half()
    with pytest.raises(PersistenceError, match="Was module_ changed"):
        save(clf, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def _dumped(estimator, folder):
    return joblib.dump(estimator, folder / "clf.joblib")[0]


def test_views_of_the_same_memory(tmp_path):
    network = sequential()
    base = torch.rand(100)
    network.register_buffer("one", base[:10])
    network.register_buffer("other", base[:10])
    network.register_buffer("rows", torch.rand(3, 4).T)
    loaded = round_trip(CAMExplainer(network), tmp_path, trusted=())
    assert equal_states(loaded.model, network)


def test_loading_starts_from_no_pretrained_weights(saved, tmp_path):
    torch.save(SmallNet().state_dict(), tmp_path / "weights.pt")
    clf = classifier(weights=tmp_path / "weights.pt").fit(X, Y)
    save(clf, tmp_path / "a")
    (tmp_path / "weights.pt").unlink()
    loaded = load(tmp_path / "a", trusted=TRUST)
    assert loaded.weights == clf.weights
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))


def test_callbacks_are_left_as_they_were(tmp_path):
    stop = EarlyStopping("train_loss", patience=7)
    clf = classifier(callbacks=[("stop", stop)]).fit(X, Y)
    before = dict(vars(stop))
    loaded = round_trip(clf, tmp_path)
    assert vars(stop) == before
    assert vars(loaded.callbacks[0][1])["dynamic_threshold_"] == stop.dynamic_threshold_


class Bound(SmallNet):
    """A user's network that keeps one of its methods as an attribute."""

    def __init__(self, num_classes: int = 3):
        super().__init__(num_classes)
        self.chosen = self.doubled

    def doubled(self, x):
        return 2 * x


def test_methods_as_attributes(tmp_path):
    save(CAMExplainer(Bound()), tmp_path / "a")
    loaded = load(tmp_path / "a", trusted=[Bound]).model
    assert loaded.chosen(4) == 8 and loaded.chosen.__self__ is loaded

    def to_compile(content, tensors):
        model = content["estimator"]["@explainer"]["params"]["model"]
        model["@object"]["state"]["chosen"]["@method"]["name"] = "compile"

    with pytest.raises(UntrustedError, match=r"torch\.nn\.modules\.module\.Module"):
        load(rewritten(tmp_path / "a", to_compile), trusted=[Bound])


def test_arrays_and_tensors_that_files_do_not_hold(tmp_path):
    for value in (
        np.ma.array([1, 2], mask=[0, 1]),
        np.zeros(2, "f4,i4"),
        np.zeros(2, np.clongdouble),
    ):
        with pytest.raises(PersistenceError, match="classes is a numpy"):
            save(classifier("resnet18", classes=value), tmp_path / "a")
    for value in (torch.eye(2).to_sparse(), torch.zeros(2, device="meta")):
        with pytest.raises(PersistenceError, match="classes is a tensor"):
            save(classifier("resnet18", classes=value), tmp_path / "a")
    network = sequential()
    network.lazy = nn.LazyLinear(3)
    with pytest.raises(PersistenceError, match="without numbers"):
        save(CAMExplainer(network), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
