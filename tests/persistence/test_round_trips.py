"""Estimators come back from files as they were, and go on as if there had been no file."""

from __future__ import annotations

import copy
import re
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from forging import content_of, forged, opened
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, LRScheduler
from skorch.dataset import ValidSplit
from skorch.exceptions import DeviceWarning
from small_networks import DropoutNet, SmallNet, digits
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
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
from sklcam.cam import GradCAM, available, get_method
from sklcam.embeddings import TripletCAM
from sklcam.networks import TargetLayer, build_model
from sklcam.persistence import MissingObjectsError, PersistenceError, VersionWarning
from sklcam.training import Balanced, Sparsity, ViewSampler, WarmUp

X, Y = digits(24)


def sequential() -> nn.Sequential:
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


class Flip(v2.RandomHorizontalFlip):
    """A user's augmentation."""


class OwnClassifier(ConsistentCAMClassifier):
    """A user's estimator."""


class OwnTerm(Sparsity):
    """A user's term of the loss."""

    name = "own"
    weight_name = "own_weight"


FLIP, TERM, NETWORK = Flip(0.3), OwnTerm(0.1), sequential()
OBJECTS = {
    **{kind.__name__: kind for kind in (SmallNet, DropoutNet, OwnClassifier)},
    **{"halved": halved, "Flip": FLIP, "OwnTerm": TERM, "Sequential": NETWORK},
}


def classifier(module=SmallNet, **options) -> ConsistentCAMClassifier:
    given = {"image_size": 16, "lr": 0.05, "max_epochs": 1, "verbose": 0, "random_state": 0}
    return ConsistentCAMClassifier(module, **{**given, "batch_size": 12, **options})


def embedding_net(module=SmallNet, **options) -> EmbeddingNet:
    given = {"embedding_dim": 4, "image_size": 16, "max_epochs": 1, "random_state": 0}
    return EmbeddingNet(module, **{**given, "verbose": 0, "batch_size": 12, **options})


def round_trip(estimator, folder: Path, objects=OBJECTS):
    save(estimator, folder / "estimator.sklcam")
    return load(folder / "estimator.sklcam", objects=objects)


def same_params(one, other) -> None:
    """Parameters are equal, by what they print."""
    params, others = one.get_params(), other.get_params()
    assert params.keys() == others.keys()
    for name, value in params.items():
        if not isinstance(value, nn.Module | torch.Tensor | np.ndarray) and name != "model":
            shown = (re.sub(r" at [0-9a-fA-Fx]+", "", repr(v)) for v in (value, others[name]))
            assert len(set(shown)) == 1, name


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


# Classifiers and embedding nets


CLASSIFIERS = {
    "plain": {},
    "dropout": {"module": DropoutNet},
    "adam": {"optimizer": torch.optim.Adam, "lr": 0.01},
    "adam in channels last": {
        **{"optimizer": torch.optim.AdamW, "optimizer__fused": True, "lr": 0.01},
        "channels_last": True,
    },
    "adafactor": {"optimizer": torch.optim.Adafactor},
    "lbfgs": {"optimizer": torch.optim.LBFGS, "optimizer__max_iter": 2},
    "groups": {"optimizer__param_groups": [("0.*", {"lr": 0.01})]},
    "auto": {"alpha": "auto", "beta": Balanced(0.2)},
    "warm up": {"alpha": WarmUp(1.0, epochs=3)},
    "schedule of one's own": {"alpha": halved},
    "term of one's own": {"terms": [TERM]},
    "fp16": {"precision": "fp16", "batch_accumulation": 2},
    "low memory": {"channels_last": True, "memory": "low"},
    "no seed": {"random_state": None},
    "validation": {"train_split": ValidSplit(KFold(3)), "callbacks": [("stop", EarlyStopping())]},
    "schedule": {"callbacks": [LRScheduler("StepLR", step_size=1, gamma=0.5)]},
    "one cycle": {"callbacks": [LRScheduler(OneCycleLR, max_lr=0.1, total_steps=9)]},
    "views": {"views": ViewSampler((0.5, 1.0), rotation=9, blur=1, grey=0.1), "augment": None},
    "augment": {"augment": FLIP},
    "instance": {"module": NETWORK, "target_layer": TargetLayer("4"), "mean": [0.1]},
    "torchvision": {"module": "squeezenet1_1", "image_size": 64},
    "weights of classes": {"criterion__weight": torch.tensor([1.0, 2.0, 3.0])},
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
        torch.manual_seed(0)  # which only the user's augmentation draws from
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
    objects = OBJECTS
    if criterion == "instance":
        from pytorch_metric_learning.losses import ContrastiveLoss

        criterion = ContrastiveLoss(neg_margin=0.5)
        objects = {**OBJECTS, "ContrastiveLoss": criterion}
    net = embedding_net(criterion=criterion, sampler__m=3).fit(X, Y)
    loaded = round_trip(net, tmp_path, objects)
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


def test_scoring_callbacks_come_back(tmp_path):
    names = np.array(["a", "b", "c"])[Y]
    scoring = EpochScoring("accuracy", lower_is_better=False, on_train=True, name="acc")
    clf = classifier(callbacks=[scoring]).fit(X, names)
    loaded = round_trip(clf, tmp_path)
    for estimator in (clf, loaded):
        estimator.partial_fit(X, names)
    assert loaded.history[-1, "acc"] == clf.history[-1, "acc"]
    assert loaded.history[-1, "acc_best"] == clf.history[-1, "acc_best"]


def test_callbacks_are_left_as_they_were(tmp_path):
    stop = EarlyStopping("train_loss", patience=7)
    scoring = EpochScoring("accuracy", lower_is_better=False, on_train=True, name="acc")
    clf = classifier(callbacks=[("stop", stop), ("acc", scoring)]).fit(X, Y)
    before = {name: dict(vars(callback)) for name, callback in clf.callbacks_}
    loaded = round_trip(clf, tmp_path)
    assert {name: dict(vars(callback)) for name, callback in clf.callbacks_} == before
    assert dict(loaded.callbacks_)["stop"].dynamic_threshold_ == stop.dynamic_threshold_
    assert dict(loaded.callbacks_)["acc"].best_score_ == before["acc"]["best_score_"]


def test_callbacks_of_ones_own(tmp_path):
    class Own(Callback):
        pass

    own = Own()
    clf = classifier(callbacks=[("own", own)]).fit(X, Y)
    with pytest.raises(MissingObjectsError, match="'Own': Own"):
        round_trip(clf, tmp_path)
    assert round_trip(clf, tmp_path, {**OBJECTS, "Own": own}).callbacks == [("own", own)]
    with pytest.raises(PersistenceError, match=r"a class, Own, where .* instance.* Own\(\.\.\.\)"):
        round_trip(clf, tmp_path, {**OBJECTS, "Own": Own})  # its arguments would be lost


def test_what_training_has_left_unused(tmp_path):
    clf = classifier(memory="low").fit(X, Y)
    clf.module_[0].weight.requires_grad_(False)
    clf.module_[1].eval()
    loaded = round_trip(clf, tmp_path)
    for flag in ("requires_grad", "training"):
        parts = "parameters" if flag == "requires_grad" else "modules"
        found, wanted = (
            [getattr(part, flag) for part in getattr(each.module_, parts)()]
            for each in (loaded, clf)
        )
        assert found == wanted


def test_loading_starts_from_no_pretrained_weights(tmp_path):
    torch.save(SmallNet().state_dict(), tmp_path / "weights.pt")
    clf = classifier(weights=tmp_path / "weights.pt").fit(X, Y)
    save(clf, tmp_path / "a")
    (tmp_path / "weights.pt").unlink()
    loaded = load(tmp_path / "a", objects=OBJECTS)
    assert Path(loaded.weights) == clf.weights
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))


def test_a_network_changed_by_hand_is_refused_when_saving(fitted, tmp_path):
    clf = copy.deepcopy(fitted)
    clf.module_[8] = nn.Linear(8, 5)
    with pytest.raises(PersistenceError, match=r"8\.weight must be of shape \(3, 8\)"):
        save(clf, tmp_path / "a")
    clf.module_[8] = nn.Linear(8, 3)
    clf.module_.half()
    with pytest.raises(PersistenceError, match="Was module_ changed"):
        save(clf, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_network_of_a_function_is_made_once(tmp_path):
    made = []

    def small(num_classes):
        made.append(num_classes)
        return SmallNet(num_classes)

    clf = classifier(small).fit(X, Y)
    save(clf, tmp_path / "a")
    made.clear()
    loaded = load(tmp_path / "a", objects={"small": small})
    assert made == [3] and equal_states(loaded.module_, clf.module_)


def test_every_batch_of_a_long_training_is_kept(fitted, tmp_path):
    clf = copy.deepcopy(fitted)
    clf.history.clear()
    for epoch in range(40):
        clf.history.new_epoch()
        clf.history.record("epoch", epoch)
        for i in range(5000):
            clf.history.new_batch()
            clf.history.record_batch("train_loss", i / 7)
            clf.history.record_batch("train_batch_size", i % 5)
        clf.history.new_batch()
        clf.history.record_batch("valid_loss", None)
    loaded = round_trip(clf, tmp_path)
    assert list(loaded.history) == list(clf.history)
    assert type(loaded.history[-1, "batches", 0, "train_batch_size"]) is int
    assert len(opened(tmp_path / "estimator.sklcam")[1]) < 500


# Explainers


def test_explainer_of_a_network(tmp_path):
    images = torch.rand(4, 1, 16, 16)
    labels = ["a", "b", "c"]
    explainer = CAMExplainer(sequential(), GradCAM(relu=False), "4", classes=labels, verbose=0)
    explainer.fit()
    loaded = round_trip(explainer, tmp_path, {"Sequential": sequential().double().float()})
    same_params(explainer, loaded)
    np.testing.assert_array_equal(loaded.predict_proba(images), explainer.predict_proba(images))
    np.testing.assert_array_equal(loaded.explain(images), explainer.explain(images))
    assert loaded.score(images, explainer.predict(images)) == 1
    assert loaded.model.training is explainer.model.training
    assert loaded.target_layers_ == explainer.target_layers_


def test_a_class_stands_for_a_network_that_needs_nothing(tmp_path):
    explainer = CAMExplainer(SmallNet(), verbose=0)
    save(explainer, tmp_path / "a")
    with pytest.raises(MissingObjectsError, match="SmallNet"):
        load(tmp_path / "a")
    loaded = load(tmp_path / "a", objects={"SmallNet": SmallNet})
    assert equal_states(loaded.model, explainer.model)
    for wrong in (nn.ReLU, nn.Linear(2, 2), SmallNet(num_classes=4), print, "SmallNet", KFold()):
        with pytest.raises(PersistenceError):
            load(tmp_path / "a", objects={"SmallNet": wrong})


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_tiny", "swin_t", "efficientnet_b0", "mnasnet0_5", "vit_b_32"]
)
def test_explainer_of_networks_by_name(name, tmp_path):
    network = build_model(name, n_classes=2, in_channels=1, image_size=(64, 64)).eval()
    state = torch.get_rng_state()
    loaded = round_trip(CAMExplainer(network), tmp_path, objects=None)
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(loaded.model(images), network(images))
    assert repr(loaded.model) == repr(network)


def test_a_network_by_name_that_was_changed_needs_its_reader(tmp_path):
    network = build_model("squeezenet1_1", n_classes=2)
    network.classifier.append(nn.Linear(2, 2))
    explainer = CAMExplainer(network)
    with pytest.raises(MissingObjectsError, match="'SqueezeNet': SqueezeNet"):
        round_trip(explainer, tmp_path, {})
    twin = build_model("squeezenet1_1", n_classes=2)
    twin.classifier.append(nn.Linear(2, 2))
    assert equal_states(round_trip(explainer, tmp_path, {"SqueezeNet": twin}).model, network)


def test_explainer_of_an_estimator(fitted, tmp_path):
    explainer = CAMExplainer(fitted, "layercam", verbose=0).fit()
    loaded = round_trip(explainer, tmp_path)
    np.testing.assert_array_equal(loaded.explain(X), explainer.explain(X))
    np.testing.assert_array_equal(loaded.predict(X), explainer.predict(X))


def test_explainer_of_another_skorch_net(tmp_path):
    images, labels = torch.rand(12, 1, 16, 16), torch.from_numpy(Y[:12])
    net, other = (
        NeuralNetClassifier(SmallNet, max_epochs=1, train_split=None, verbose=0).fit(images, labels)
        for _ in range(2)
    )
    explainer = CAMExplainer(net, verbose=0).fit(images)
    loaded = round_trip(explainer, tmp_path, {"NeuralNetClassifier": other})
    assert loaded.model is other
    np.testing.assert_array_equal(loaded.model.predict_proba(images), net.predict_proba(images))
    np.testing.assert_array_equal(loaded.explain(images), explainer.explain(images))
    unfitted = NeuralNetClassifier(SmallNet)
    with pytest.raises(PersistenceError, match="a fitted skorch net"):
        load(tmp_path / "estimator.sklcam", objects={"NeuralNetClassifier": unfitted})


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


@pytest.mark.parametrize("name", available())
def test_methods_keep_their_options(name, tmp_path):
    method = get_method(name)
    changed = {k: not v for k, v in vars(method).items() if isinstance(v, bool)}
    for key, value in changed.items():
        setattr(method, key, value)
    loaded = round_trip(CAMExplainer(SmallNet(), method), tmp_path)
    assert type(loaded.method) is type(method) and vars(loaded.method) == vars(method)
    loaded = round_trip(CAMExplainer(SmallNet(), type(method)), tmp_path)
    assert loaded.method is type(method)


def test_fitted_method_in_an_explainer(tmp_path):
    images = torch.rand(9, 1, 16, 16)
    explainer = EmbeddingCAMExplainer(SmallNet(), "self", target_layer="4", verbose=0)
    explainer.fit(images)
    method = TripletCAM(random_state=np.random.RandomState(3)).fit(explainer, images, Y[:9])
    explainer.set_params(method=method)
    loaded = round_trip(explainer, tmp_path)
    np.testing.assert_array_equal(loaded.explain(images), explainer.explain(images))


# Unfitted ones, parameters and settings


@pytest.mark.parametrize(
    "estimator",
    [
        classifier("resnet18", weights="DEFAULT"),
        classifier(random_state=np.random.RandomState(5), alpha=np.float64(0.5).item()),
        embedding_net("resnet18"),
        CAMExplainer(SmallNet()),
        CAMExplainer(classifier("resnet18")),
        EmbeddingCAMExplainer(SmallNet(), np.eye(3)),
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


def test_plain_values(tmp_path):
    values = {
        "a": (1, 2.5, None, float("inf"), -0.0, "ü\u2028\ud800"),
        "b": {1: "x", "two": (3, [4])},
        "c": [np.zeros((0, 3)), np.float32([[1, 2]]).T, np.arange(6)[::-2], torch.tensor(3)],
        "d": [np.array(["a", None, 1], dtype=object), torch.ones(2, 3).T, torch.zeros(0, 2)],
        "e": 2**63,
    }
    clf = classifier(**{f"module__{name}": value for name, value in values.items()})
    loaded = round_trip(clf, tmp_path)
    for name in "abe":
        assert vars(loaded)[f"module__{name}"] == values[name]
    for name in "cd":
        for one, other in zip(vars(loaded)[f"module__{name}"], values[name], strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
    assert np.isnan(round_trip(classifier(alpha=float("nan")), tmp_path).alpha)
    scalar = round_trip(classifier(alpha=np.float32(0.1)), tmp_path).alpha
    assert scalar == np.float32(0.1) and type(scalar) is float


def test_what_is_not_plain_has_a_label(tmp_path):
    double = lambda epoch: 2.0  # noqa: E731
    clf = classifier(alpha=halved, beta=double, augment=FLIP, iterator_train__collate_fn=print)
    save(clf, tmp_path / "a")
    with pytest.raises(MissingObjectsError) as caught:
        load(tmp_path / "a", objects={"halved": halved})
    assert caught.value.labels == ["Flip", "SmallNet", "beta", "print"]
    assert "objects={'Flip': Flip, 'SmallNet': SmallNet, 'beta': beta" in str(caught.value)
    given = {**OBJECTS, "beta": double, "print": print}
    assert load(tmp_path / "a", objects=given).augment is FLIP
    assert load(tmp_path / "a", objects=given).beta is double


def test_two_of_one_name_have_two_labels(tmp_path):
    flips = [Flip(0.1), Flip(0.2)]
    clf = classifier("resnet18", augment=flips[0], iterator_train__collate_fn=flips[1])
    loaded = round_trip(clf, tmp_path, {"Flip": flips[0], "Flip_": flips[1]})
    assert [loaded.augment, loaded.iterator_train__collate_fn] == flips


def test_an_estimator_of_ones_own(tmp_path):
    clf = OwnClassifier("squeezenet1_1", image_size=64, max_epochs=0, verbose=0).fit(X, Y)
    with pytest.raises(MissingObjectsError, match="OwnClassifier"):
        round_trip(clf, tmp_path, {})
    loaded = round_trip(clf, tmp_path)
    assert type(loaded) is OwnClassifier
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    with pytest.raises(PersistenceError, match="not an estimator"):
        load(tmp_path / "estimator.sklcam", objects={"OwnClassifier": NeuralNetClassifier})


def test_compile_options_are_for_the_reader(tmp_path):
    options = {"max_autotune": True}
    clf = classifier("resnet18", compile=True, compile__options=options)
    with pytest.raises(MissingObjectsError, match="dict"):
        round_trip(clf, tmp_path, {})
    assert round_trip(clf, tmp_path, {"dict": options}).compile__options is options


def test_parameters_of_default_callbacks_survive(tmp_path):
    """They are in no list that skorch keeps once it has made the callbacks."""
    clf = classifier(callbacks__lr_scheduler__step_size=1, max_epochs=3)

    def rates(estimator):
        return [row["event_lr"] for row in estimator.fit(X, Y).history]

    wanted = rates(clf)
    np.testing.assert_allclose(wanted, [0.05, 0.005, 0.0005])  # 0.1 an epoch
    for other in (clone(clf), copy.deepcopy(clf), round_trip(clf, tmp_path)):
        assert other.get_params()["callbacks__lr_scheduler__step_size"] == 1
        assert rates(other) == wanted


@pytest.mark.skipif(find_spec("pytorch_metric_learning") is None, reason="needs the extra")
def test_output_as_data_frames_survives(tmp_path):
    pandas = pytest.importorskip("pandas")
    net = embedding_net().set_output(transform="pandas").fit(X, Y)
    for other in (net, copy.deepcopy(net), clone(net).fit(X, Y), round_trip(net, tmp_path)):
        assert isinstance(other.transform(X[:2]), pandas.DataFrame)


def test_requests_for_metadata_survive(tmp_path):
    with config_context(enable_metadata_routing=True):
        clf = classifier("resnet18").set_score_request(sample_weight=True)
        for other in (clf, clone(clf), copy.deepcopy(clf), round_trip(clf, tmp_path)):
            assert other._get_metadata_request().score.requests == {"sample_weight": True}


def test_nullable_labels_of_pandas_give_plain_classes():
    pandas = pytest.importorskip("pandas")
    labels = pandas.Series(Y, dtype="Int64")
    classes = classifier(max_epochs=0).fit(X, labels).classes_
    wanted = LogisticRegression(max_iter=5).fit(X.reshape(24, -1), labels).classes_
    np.testing.assert_array_equal(classes, wanted)
    assert classes.dtype == wanted.dtype


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


# What is in a file


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
    save(load(tmp_path / "a", objects=OBJECTS), tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def test_the_file_is_what_it_is_said_to_be(saved, fitted):
    content, tensors = opened(saved)
    assert content["versions"]["torch"] == version("torch").partition("+")[0]
    assert content["objects"] == ["SmallNet"]
    assert torch.equal(tensors["modules.module_.state.0.weight"], fitted.module_[0].weight)
    assert b"pickle" not in saved.read_bytes()


def test_estimator_is_left_as_it_was(fitted, tmp_path):
    before = {name: value.clone() for name, value in fitted.module_.state_dict().items()}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    round_trip(fitted, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert all(torch.equal(v, before[name]) for name, v in fitted.module_.state_dict().items())


def test_views_of_the_same_memory(tmp_path):
    def network():
        made = sequential()
        base = torch.rand(100)
        made.register_buffer("one", base[:10])
        made.register_buffer("other", base[:10])
        made.register_buffer("rows", torch.rand(3, 4).T)
        return made

    explainer = CAMExplainer(network())
    loaded = round_trip(explainer, tmp_path, {"Sequential": network()})
    assert equal_states(loaded.model, explainer.model)


@pytest.mark.parametrize("what", [3, None, SmallNet(), SmallNet, KFold()])
def test_only_estimators_are_saved(what, tmp_path):
    with pytest.raises(PersistenceError, match="save takes the estimators"):
        save(what, tmp_path / "a")


def test_numbers_that_files_do_not_hold(tmp_path):
    for value in (torch.eye(2).to_sparse(), torch.zeros(2, device="meta")):
        with pytest.raises(PersistenceError, match="classes is a tensor"):
            save(classifier("resnet18", classes=value), tmp_path / "a")
    network = sequential()
    network.lazy = nn.LazyLinear(3)
    with pytest.raises(PersistenceError, match="without numbers"):
        save(CAMExplainer(network), tmp_path / "a")
    clf = classifier(max_epochs=0).fit(X, Y)
    clf.history.new_epoch()
    clf.history.record("seen", {1, 2})
    with pytest.raises(PersistenceError, match=r"history\.\d+\.seen is a set"):
        save(clf, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# Devices and versions


def test_auto_stays_auto(fitted, tmp_path):
    assert round_trip(fitted, tmp_path).get_params()["device"] == "auto"


@pytest.mark.parametrize("device", ["cuda:7", "mps", "xpu:3"])
def test_a_gpu_that_is_not_here(device, fitted, tmp_path):
    content, tensors = content_of(fitted, tmp_path)
    content["estimator"]["parameters"]["device"] = device
    path = forged(tmp_path, content, tensors)
    with pytest.warns(DeviceWarning, match="loaded on the CPU"):
        loaded = load(path, objects=OBJECTS)
    assert loaded.get_params()["device"] == "cpu"
    assert loaded.predict(X).shape == (24,)


def major(package: str) -> int:
    return int(version(package).split(".")[0])


@pytest.mark.parametrize(
    ("versions", "warns"),
    [
        ({"torch": f"{major('torch') - 1}.13.1"}, f"torch {major('torch') - 1}.13.1"),
        ({"torch": f"{major('torch') + 1}.0"}, f"torch {major('torch') + 1}.0"),
        ({"sklcam": "99.0.0"}, "sklcam 99.0.0"),
        ({"skorch": f"{major('skorch') - 1}.9"}, f"skorch {major('skorch') - 1}.9"),
        ({"sklcam": "0.0.3"}, "sklcam 0.0.3"),
        ({"torchvision": "0.1.2"}, "torchvision 0.1.2"),
        ({"numpy": "0.9", "torch": version("torch")}, r"numpy 0.9 (here [\d.]+). It"),
        ({"torch": f"{major('torch')}.0.0"}, None),
        ({"scikit-learn": f"{major('scikit-learn')}.99"}, None),
        ({}, None),
        ({"something": "1.0"}, None),
    ],
)
def test_versions(versions, warns, fitted, tmp_path):
    """All others are the installed ones, so that only the forged one can be warned of."""
    content, tensors = content_of(fitted, tmp_path)
    content["versions"] |= versions
    path = forged(tmp_path, content, tensors)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VersionWarning)
        load(path, objects=OBJECTS)
    messages = [str(each.message) for each in caught if each.category is VersionWarning]
    if warns is None:
        assert messages == []
    else:
        (message,) = messages
        named = re.findall(r"([\w-]+ [\w.+]+) \(here", message)
        assert named == [" ".join(pair) for pair in versions.items()][:1]


def test_the_installed_versions_are_in_the_file_and_quiet(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(saved, objects=OBJECTS)
    packages = ("torch", "torchvision", "skorch", "scikit-learn", "numpy")
    found = opened(saved)[0]["versions"]
    assert {name: found[name] for name in packages} == {
        name: version(name).partition("+")[0] for name in packages
    }


# Accelerate, cards


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


def test_card(fitted):
    card = model_card(fitted, metrics={"accuracy": 0.93217, "on": "a | b"})
    assert card.startswith("# ConsistentCAMClassifier\n")
    for part in (
        "| accuracy | 0.9322 |",
        "a \\| b",
        "| classes | [0, 1, 2] |",
        f"| target layer | {fitted.target_layer_.name} |",
        "| train_loss | ",
        "objects={'SmallNet': SmallNet}",
        f"| torch | {version('torch').partition('+')[0]}",
        "## Limitations",
    ):
        assert part in card
    assert "0x" not in card


def test_card_names_its_file(fitted, tmp_path):
    loading = model_card(fitted, file=tmp_path / "a.sklcam")
    assert 'sklcam.load("a.sklcam", objects={' in loading
    running = model_card(fitted, file="a.onnx")
    assert 'InferenceSession("a.onnx")' in running and "sklcam.load" not in running


@pytest.mark.parametrize(
    "estimator",
    [
        classifier("resnet18"),
        classifier(alpha=lambda epoch: 1.0),
        CAMExplainer(SmallNet()).fit(torch.rand(1, 1, 16, 16)),
        EmbeddingCAMExplainer(SmallNet(), "self").fit(torch.rand(1, 1, 16, 16)),
    ],
    ids=["unfitted", "lambda", "explainer", "embedding"],
)
def test_card_of_others(estimator):
    card = model_card(estimator)
    assert card.startswith(f"# {type(estimator).__name__}")
    assert "Metrics" not in card and "## How to load it" in card
