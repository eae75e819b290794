"""Running statistics that lag behind the weights: noticed, named, and re-estimated."""

from __future__ import annotations

import copy
import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping
from skorch.dataset import ValidSplit
from small_networks import digits
from torch import nn

import sklcam
from sklcam import ConsistentCAMClassifier, EmbeddingNet
from sklcam.training import AcceleratedCAMClassifier, LaggingStatisticsWarning
from sklcam.training._statistics import Lag, _distance, kept

X, Y = digits(240)
TRAIN, TEST = slice(96), slice(96, None)


class Lagging(nn.Sequential):
    """As if trained elsewhere: statistics of other images, and a momentum that keeps them."""

    def __init__(self, num_classes=3, in_channels=1, momentum=0.01):
        super().__init__(
            nn.Conv2d(in_channels, 8, 3, 2, 1),
            nn.BatchNorm2d(8, momentum=momentum),
            nn.ReLU(),
            nn.Dropout2d(0.2),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.BatchNorm2d(16, momentum=momentum),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, num_classes),
        )
        for layer in (self[1], self[5]):
            layer.running_mean.add_(torch.linspace(-2, 2, len(layer.running_mean)))
            layer.running_var.mul_(9)


class PartlyFrozen(Lagging):
    """The first of the two layers stays in evaluation mode, as in fine-tuning."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


class WithoutMomentum(Lagging):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(num_classes, in_channels, momentum=0.0)


class Auxiliary(nn.Module):
    """A second head that is for training alone, with a layer of its own."""

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        *trunk, self.head = Lagging(num_classes, in_channels)
        self.trunk = nn.Sequential(*trunk)
        self.second = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, num_classes))

    def forward(self, x):
        features = self.trunk(x)
        return self.head(features) + (self.second(features) if self.training else 0)


class OtherNorms(nn.Sequential):
    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(
            nn.Conv2d(in_channels, 8, 3, 2, 1),
            nn.GroupNorm(2, 8),
            nn.Dropout(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.LayerNorm(32),
            nn.Linear(32, num_classes),
        )


OPTIONS = {
    **{"module": Lagging, "image_size": 16, "alpha": 0, "beta": 0, "lr": 0.05, "augment": None},
    **{"max_epochs": 8, "batch_size": 16, "verbose": 0, "random_state": 0, "device": "cpu"},
}


def classifier(kind=ConsistentCAMClassifier, **options):
    return kind(**{**OPTIONS, **options})


def fitted(**options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LaggingStatisticsWarning)
        return classifier(**options).fit(X[TRAIN], Y[TRAIN])


def statistics(net, at=(1, 5)):
    return [getattr(net.module_[i], f"running_{name}") for i in at for name in ("mean", "var")]


def of_images(net, order, parts):
    """Means and unbiased variances of what reaches each layer, in batches of the images."""
    found, reached = [], []
    for part in np.array_split(order, parts):
        module = copy.deepcopy(net.module_).eval()
        reached.clear()
        for i in (1, 5):
            module[i].train()
            module[i].register_forward_pre_hook(lambda layer, x: reached.append(x[0]))
        read = net.get_dataset(X[TRAIN][part]).read_batch(range(len(part)))
        images = net.prepare_images(torch.stack([each.image for each in read]))
        with torch.no_grad():
            module(images)
        rows = [x.transpose(0, 1).flatten(1) for x in reached]
        found.append([f(row) for row in rows for f in (lambda r: r.mean(1), lambda r: r.var(1))])
    return [torch.stack(each).mean(0) for each in zip(*found, strict=True)]


# The case


def test_statistics_that_lag_are_named_and_mended():
    with pytest.warns(LaggingStatisticsWarning, match="'1' .*momentum 0.01") as caught:
        without = classifier(recalibrate=False).fit(X[TRAIN], Y[TRAIN])
    message = str(caught[0].message)
    assert len(caught) == 1 and 'recalibrate="auto"' in message and "After 48 steps" in message
    with pytest.warns(LaggingStatisticsWarning, match="were re-estimated on 96 images"):
        mended = classifier().fit(X[TRAIN], Y[TRAIN])
    assert "validation" not in message
    quick = fitted(module__momentum=0.1, max_epochs=16)
    assert (without.recalibrated_, mended.recalibrated_, quick.recalibrated_) == (0, 96, 0)
    scores = [net.score(X[TEST], Y[TEST]) for net in (without, mended, quick)]
    assert scores[0] < 0.7 and min(scores[1:]) > 0.9
    for ours, theirs in zip(without.module_.parameters(), mended.module_.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("augment", ["auto", None])
def test_what_is_re_estimated_is_what_prediction_sees(augment):
    """A single batch's statistics, by hand: of images that are not cropped, without dropout."""
    net = fitted(recalibrate=True, augment=augment, batch_size=96)
    expected = of_images(net, np.arange(96), 1)
    for ours, theirs in zip(statistics(net), expected, strict=True):
        assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_batch_is_not_of_one_class():
    """Sorted by class, each batch's variance would lack that between the classes."""
    order = np.argsort(Y[TRAIN], kind="stable")
    net = classifier(recalibrate=True, iterator_train__shuffle=False).fit(
        X[TRAIN][order], Y[TRAIN][order]
    )
    whole = of_images(net, np.arange(96), 1)
    sorted_ = of_images(net, order, 10)
    apart, wrong = (
        max(float((a / b).log().abs().max()) for a, b in zip(each[1::2], whole[1::2], strict=True))
        for each in (statistics(net), sorted_)
    )
    assert 2 * apart < wrong


# No false alarms, and nothing changed


@pytest.mark.parametrize(
    ("options"),
    [
        {"module__momentum": 0.1, "max_epochs": 20},
        {"module__momentum": 0.1, "max_epochs": 5, "batch_size": 4, "lr": 0.005},
        {"module__momentum": 0.1, "max_epochs": 12, "alpha": 1, "beta": 1e-6},
        {"module": OtherNorms},
        {"module": WithoutMomentum},
    ],
    ids=["momentum", "small batches", "maps", "other norms", "no momentum"],
)
def test_a_healthy_network_is_left_alone(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", LaggingStatisticsWarning)
        nets = [
            classifier(**options, recalibrate=asked).fit(X[TRAIN], Y[TRAIN])
            for asked in ("auto", False)
        ]
    ends = [{**net.module_.state_dict(), **net.optimizer_.state_dict()["state"]} for net in nets]
    for ours, theirs in zip(*(end.items() for end in ends), strict=True):
        assert str(ours) == str(theirs)
    assert nets[0].recalibrated_ == 0
    assert torch.equal(*(net.random_states_["global"] for net in nets))


def test_a_look_changes_nothing(monkeypatch):
    """Looked at in every epoch or not, training ends at the same bits."""
    options = {"recalibrate": False, "alpha": 1, "beta": 1e-6, "memory": "low"}
    options["train_split"] = ValidSplit(5, stratified=True)  # without it, there is one look
    seen = []
    own = ConsistentCAMClassifier._lag
    monkeypatch.setattr(
        ConsistentCAMClassifier, "_lag", lambda *args: seen.append(own(*args)) or seen[-1]
    )
    rare = fitted(**options)
    assert len(seen) == 1
    monkeypatch.setattr("sklcam.training._statistics._IMAGES_A_LOOK", 1)
    often = fitted(**options)
    assert len(seen) == 1 + 8 + 1
    for ours, theirs in zip(
        rare.module_.state_dict().values(), often.module_.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(rare.history, often.history, strict=True):
        assert ours["batches"] == theirs["batches"]
    for name in ("global", "views"):
        assert torch.equal(rare.random_states_[name], often.random_states_[name])


def test_a_network_without_batch_statistics_costs_nothing(monkeypatch):
    monkeypatch.setattr(ConsistentCAMClassifier, "_batches", None)  # what a look would call
    assert fitted(module=OtherNorms, recalibrate=True).recalibrated_ == 0


def test_layers_that_were_not_trained_are_left_alone():
    net = fitted(module=PartlyFrozen, recalibrate=True)
    assert net.recalibrated_ == 96
    first = PartlyFrozen()[1]
    assert torch.equal(net.module_[1].running_mean, first.running_mean)
    assert torch.equal(net.module_[1].running_var, first.running_var)
    assert not torch.equal(net.module_[5].running_mean, PartlyFrozen()[5].running_mean)
    assert [net.module_[i].momentum for i in (1, 5)] == [0.01, 0.01]


def test_layers_that_prediction_does_not_come_by_keep_their_statistics():
    ours, theirs = (fitted(module=Auxiliary, recalibrate=asked) for asked in (True, False))
    heads = [net.module_.second[0] for net in (ours, theirs)]
    assert torch.equal(*(head.running_mean for head in heads))
    assert torch.equal(*(head.running_var for head in heads))
    assert not torch.equal(*(net.module_.trunk[5].running_mean for net in (ours, theirs)))


# In training


def test_a_training_that_is_validated_hears_of_it_early(monkeypatch):
    monkeypatch.setattr("sklcam.training._statistics._IMAGES_A_LOOK", 1)
    with pytest.warns(LaggingStatisticsWarning, match="After 15 steps") as caught:
        net = classifier(train_split=ValidSplit(5, stratified=True)).fit(X[TRAIN], Y[TRAIN])
    assert len(caught) == 1 and "validation" in str(caught[0].message)
    assert net.recalibrated_ == 76  # not of the images that it is validated on


def test_a_training_that_is_not_validated_is_looked_at_once(monkeypatch):
    monkeypatch.setattr("sklcam.training._statistics._IMAGES_A_LOOK", 1)
    with pytest.warns(
        LaggingStatisticsWarning, match="After 48 steps.* now predicts as it should"
    ) as caught:
        net = classifier().fit(X[TRAIN], Y[TRAIN])
    assert len(caught) == 1 and net.recalibrated_ == 96


# The ways to fit


def test_partial_fit_re_estimates_only_if_asked_to():
    """Its images may be a part, of which the running average knows more."""
    net = classifier()
    with pytest.warns(LaggingStatisticsWarning, match="recalibrate=True"):
        net.partial_fit(X[TRAIN], Y[TRAIN])
    assert net.recalibrated_ == 0
    net.set_params(recalibrate=True).partial_fit(X[:60], Y[:60])
    assert net.recalibrated_ == 60


def test_fit_goes_on_from_re_estimated_statistics():
    net = classifier(warm_start=True, recalibrate=True).fit(X[TRAIN], Y[TRAIN])
    net.set_params(recalibrate=False, max_epochs=1).fit(X[TRAIN], Y[TRAIN])
    assert net.recalibrated_ == 0 and net.score(X[TEST], Y[TEST]) > 0.9


class Interrupting(Callback):
    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 7:
            raise KeyboardInterrupt


def test_an_interrupted_training_is_mended_too():
    net = fitted(callbacks=[Interrupting()])
    assert net.recalibrated_ == 96 and net.score(X[TEST], Y[TEST]) > 0.85


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_re_estimation_that_fails_is_undone(error, monkeypatch):
    before = fitted(recalibrate=False)
    net = classifier(recalibrate=True)
    own, made = ConsistentCAMClassifier._batches, []

    def stopping(self, n_images=None):
        for images in own(self, n_images):
            made.append(images)
            if len(made) > 3:
                raise error
            yield images

    monkeypatch.setattr(ConsistentCAMClassifier, "_batches", stopping)
    if error is KeyboardInterrupt:
        net.fit(X[TRAIN], Y[TRAIN])
        assert net.recalibrated_ == 0 and not vars(net).get("_watch")
        for ours, theirs in zip(statistics(net), statistics(before), strict=True):
            assert torch.equal(ours, theirs)
        assert [net.module_[i].momentum for i in (1, 5)] == [0.01, 0.01]
        assert_array_equal(net.predict(X[TEST]), before.predict(X[TEST]))
    else:
        with pytest.raises(error):
            net.fit(X[TRAIN], Y[TRAIN])


def test_the_best_weights_are_loaded_before():
    stopping = EarlyStopping("train_loss", patience=2, load_best=True, lower_is_better=False)
    net = fitted(callbacks=[("stop", stopping)], recalibrate=True, batch_size=96)
    for ours, theirs in zip(statistics(net), of_images(net, np.arange(96), 1), strict=True):
        assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


TABLE = np.stack([Y == 1, Y == 2], axis=1).astype(int)
NUMBERS = (Y == 1).astype(float)


@pytest.mark.parametrize(
    ("options", "y"),
    [
        ({"task": "multilabel"}, TABLE),
        ({"task": "binary"}, Y == 1),
        ({"task": "regression"}, NUMBERS),
        ({"memory": "low", "alpha": 1, "precision": "bf16"}, Y),
        ({"batch_accumulation": 2, "channels_last": True}, Y),
    ],
    ids=["multilabel", "binary", "regression", "low bf16", "parts"],
)
def test_tasks_and_ways_of_training(options, y):
    nets = []
    for asked in (False, "auto"):
        net = classifier(recalibrate=asked, **options)
        with pytest.warns(LaggingStatisticsWarning):
            nets.append(net.fit(X[TRAIN], y[TRAIN]))
    assert [net.recalibrated_ for net in nets] == [0, 96]
    assert nets[0].score(X[TEST], y[TEST]) < nets[1].score(X[TEST], y[TEST])


def test_embeddings():
    options = {**OPTIONS, "criterion": "triplet", "embedding_dim": 8, "lr": 0.005}
    del options["alpha"], options["beta"]
    with pytest.warns(LaggingStatisticsWarning):
        net = EmbeddingNet(**options).fit(X[TRAIN], Y[TRAIN])
    assert net.recalibrated_ == 96
    assert EmbeddingNet(**options, recalibrate=False).fit(X[TRAIN], Y[TRAIN]).recalibrated_ == 0


def test_a_single_process_of_several():
    ours = fitted(kind=AcceleratedCAMClassifier, accelerator=Accelerator(cpu=True), device="auto")
    assert ours.recalibrated_ == 96
    for one, other in zip(statistics(ours), statistics(fitted()), strict=True):
        assert torch.equal(one, other)


# Copies and files


def test_clones_searches_and_files(tmp_path):
    net = fitted(recalibrate=True)
    assert clone(net).recalibrate is True and not hasattr(clone(net), "recalibrated_")
    sklcam.save(net, tmp_path / "net.sklcam")
    joblib.dump(net, tmp_path / "net.joblib")
    for twin in (
        sklcam.load(tmp_path / "net.sklcam", objects={"Lagging": Lagging}),
        joblib.load(tmp_path / "net.joblib"),
    ):
        assert (twin.recalibrate, twin.recalibrated_) == (True, 96)
        assert_array_equal(twin.predict_proba(X[TEST]), net.predict_proba(X[TEST]))
    search = GridSearchCV(classifier(), {"recalibrate": [False, True]}, cv=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LaggingStatisticsWarning)
        search.fit(X[TRAIN], Y[TRAIN])
    assert search.best_params_ == {"recalibrate": True}


class Pickling(Callback):
    def on_epoch_end(self, net, **kwargs):
        self.size_ = len(pickle.dumps(net._watch))


def test_a_net_that_is_pickled_in_training_leaves_its_images_behind():
    net = fitted(callbacks=[("pickling", Pickling())], max_epochs=1)
    assert dict(net.callbacks_)["pickling"].size_ < 1000


def test_a_wrong_word_is_refused():
    with pytest.raises(ValueError, match="'recalibrate' parameter of ConsistentCAMClassifier"):
        classifier(recalibrate="yes").fit(X[TRAIN], Y[TRAIN])


# The network that it was found with


def test_efficientnet_lite():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    network = package.EfficientNet.from_name("efficientnet-lite0", num_classes=3)
    colour = np.repeat(X[..., None], 3, axis=-1)
    net = classifier(module=network, image_size=64, max_epochs=1, batch_size=8)
    with pytest.warns(LaggingStatisticsWarning, match="momentum 0.01"):
        net.fit(colour[:24], Y[:24])
    assert net.recalibrated_ == 24


@pytest.mark.parametrize(
    ("share", "usual", "lags"), [(0.3, 0.1, True), (0.3, 0.2, False), (0.05, 0.0, False)]
)
def test_what_chance_makes_is_no_lag(share, usual, lags):
    assert bool(Lag(share, usual)) is lags


def test_what_a_look_compares_by_hand(monkeypatch):
    batches, means, lags = [], [], []
    own = {name: getattr(ConsistentCAMClassifier, name) for name in ("_batches", "_lag")}

    def kept_batches(net, n_images=None):
        batches[:] = own["_batches"](net, n_images)
        return iter(batches)

    def distance(layer, running):
        means.append(layer.running_mean.clone())
        return torch.zeros(())

    shares = iter([torch.tensor(0.3), torch.tensor(0.1)])
    monkeypatch.setattr(ConsistentCAMClassifier, "_batches", kept_batches)
    monkeypatch.setattr(ConsistentCAMClassifier, "_parted", lambda *_: next(shares))
    monkeypatch.setattr(
        ConsistentCAMClassifier, "_lag", lambda *args: lags.append(own["_lag"](*args)) or lags[0]
    )
    monkeypatch.setattr("sklcam.training._statistics._distance", distance)
    net = fitted(recalibrate=False)
    # What is compared with are statistics of all images of the look, not of one half.
    with torch.no_grad():
        reached = net.module_[0](torch.cat(batches))
    assert_allclose(means[0], reached.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    # Batches of 16 count for 0.01, 0.01 * 0.99, 0.01 * 0.99^2 ... in the running average.
    n_averaged = 16 / ((0.01 * 0.99 ** np.arange(10_000)) ** 2).sum()
    expected = 0.1 * np.sqrt(1 + sum(map(len, batches)) / n_averaged)
    assert lags[0].share == pytest.approx(0.3) and lags[0].usual == pytest.approx(expected)


class OwnForward(nn.BatchNorm2d):
    """Updates its running statistics, whatever it is told of them."""

    def forward(self, x):
        self.num_batches_tracked.add_(1)
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=True
        )


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, OwnForward])
def test_statistics_are_kept_in_the_block_and_no_longer(kind):
    layers, images = [kind(2), kind(2).double()], torch.rand(3, 2, 4, 4)
    before = copy.deepcopy(layers)
    with kept(layers):
        outputs = [layer(images.to(layer.weight.dtype)) for layer in layers]
    for layer, was, output in zip(layers, before, outputs, strict=True):
        for name, buffer in layer.named_buffers():
            assert_array_equal(buffer, was.get_buffer(name), err_msg=name)
        assert_array_equal(output.detach(), was(images.to(was.weight.dtype)).detach())
        layer(images.to(layer.weight.dtype))
        for name, buffer in layer.named_buffers():
            assert_array_equal(buffer, was.get_buffer(name), err_msg=name)
        assert layer.num_batches_tracked == 1


def test_distances_of_statistics_by_hand():
    layer = nn.BatchNorm1d(2, eps=0)
    layer.running_mean, layer.running_var = torch.zeros(2), torch.full((2,), 4.0)
    running = [torch.tensor([2.0, 0.0]), torch.tensor([4.0, 1.0])]
    # A mean that is a deviation off, and a deviation that is a half of the images' own.
    assert _distance(layer, running) == pytest.approx((1 + 0.5) / 2)


def test_as_many_images_as_are_enough(monkeypatch):
    monkeypatch.setattr("sklcam.training._statistics._MOST_IMAGES", 40)
    assert fitted(max_epochs=1, recalibrate=True).recalibrated_ == 40
