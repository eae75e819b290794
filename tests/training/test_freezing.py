"""Training of the head alone: what changes, what does not, and what thaws."""

from __future__ import annotations

import pytest
import torch
from classifiers import X, Y, classifier, weights
from skorch.callbacks import Callback
from small_networks import SmallNet
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.networks import build_model
from sklcam.training._freezing import trunk_of

HEAD = ("8.weight", "8.bias")


class States(Callback):
    """Keeps what the network and the optimizer hold after each epoch."""

    def initialize(self):
        self.states_, self.known_ = [], []
        return self

    def on_epoch_end(self, net, **kwargs):
        state = net.module_.state_dict()
        self.states_.append({name: value.clone() for name, value in state.items()})
        self.known_.append(
            {name for name, each in net.module_.named_parameters() if net.optimizer_.state[each]}
        )


class FrozenByHand(SmallNet):
    """All but the head is not trained, and batch normalisation stays as in evaluation."""

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(num_classes, in_channels)
        for part in list(self)[:8]:
            part.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0, "beta": 0}, {"memory": "low"}, {"batch_accumulation": 2}, {"alpha": "auto"}],
    ids=["terms", "plain", "low memory", "parts", "balanced"],
)
def test_only_the_head_is_trained(options):
    start = classifier(max_epochs=0).fit(X, Y).module_.state_dict()
    clf = classifier(freeze="trunk", max_epochs=2, **options).fit(X, Y)
    assert changed(start, clf.module_.state_dict()) == set(HEAD)
    assert all(parameter.requires_grad for parameter in clf.module_.parameters())
    by_hand = classifier(FrozenByHand, max_epochs=2, **options).fit(X, Y)
    assert torch.allclose(weights(clf), weights(by_hand), atol=1e-6)


def test_the_trunk_thaws_after_some_epochs_and_through_partial_fit():
    options = {"optimizer": torch.optim.Adam, "lr": 1e-3, "recalibrate": False}
    clf = classifier(freeze=2, max_epochs=1, callbacks=[States()], **options).fit(X, Y)
    clf.partial_fit(X, Y).partial_fit(X, Y).partial_fit(X, Y)
    seen = dict(clf.callbacks_)["States"]
    steps = [changed(*pair) for pair in zip(seen.states_, seen.states_[1:], strict=False)]
    assert steps[0] == set(HEAD)
    names = {name for name, _ in clf.module_.named_parameters()}
    assert names <= steps[1] and {"1.running_mean", "1.running_var"} <= steps[1]
    assert [len(each) for each in seen.known_] == [2, 2, 8, 8]
    # Adam counts the steps of each parameter: 3 batches an epoch, from the thaw on.
    counts = {
        name: int(clf.optimizer_.state[each]["step"])
        for name, each in clf.module_.named_parameters()
    }
    assert counts == {name: 12 if name in HEAD else 6 for name in names}


def test_an_error_leaves_nothing_frozen():
    class Fails(Callback):
        def on_batch_end(self, net, **kwargs):
            raise RuntimeError("on purpose")

    clf = classifier(freeze="trunk").fit(X, Y)
    clf.callbacks_.append(("fails", Fails().initialize()))
    with pytest.raises(RuntimeError, match="on purpose"):
        clf.partial_fit(X, Y)
    assert all(parameter.requires_grad for parameter in clf.module_.parameters())


def names_of_heads(module):
    sample = torch.zeros(1, 3, 64, 64)
    frozen = {id(each) for each in trunk_of(module.eval(), sample).parameters}
    return [name for name, each in module.named_parameters() if id(each) not in frozen]


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", ["fc.weight", "fc.bias"]),
        ("squeezenet1_1", ["classifier.1.weight", "classifier.1.bias"]),
        ("vit_b_16", ["heads.head.weight", "heads.head.bias"]),  # and not its class token
    ],
)
def test_the_head_of_known_networks(name, head):
    options = {"num_layers": 1, "hidden_dim": 48, "mlp_dim": 48, "num_heads": 2}
    if name == "vit_b_16":
        from torchvision.models import VisionTransformer

        module = VisionTransformer(64, 16, num_classes=3, **options)
    else:
        module = build_model(name, n_classes=3)
    assert names_of_heads(module) == head


def test_two_heads_in_a_row_and_norms_that_follow():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.token = nn.Conv2d(3, 5, 3), nn.Parameter(torch.ones(1))
            self.one, self.two = nn.Linear(5, 3), nn.Linear(5, 3)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            x = self.conv(x).mean((2, 3)) * self.token
            return self.norm(self.one(x) + self.two(x))

    heads = names_of_heads(Two())
    assert {name.partition(".")[0] for name in heads} == {"one", "two", "norm"}


@pytest.mark.parametrize("before", [nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 1)])
@pytest.mark.parametrize("hidden", [[], [nn.Linear(5, 5), nn.ReLU()]])
def test_a_layer_as_wide_as_there_are_classes_is_no_head(before, hidden):
    net = nn.Sequential(before, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *hidden, nn.Linear(5, 5))
    last = len(net) - 1
    assert names_of_heads(net) == [f"{last}.weight", f"{last}.bias"]


def test_label_smoothing_and_learning_rates_by_layer_are_torchs():
    smooth = classifier(alpha=0, beta=0, criterion__label_smoothing=0.2).fit(
        X, Y, validation=(X, Y)
    )
    logits = torch.tensor(smooth.predict_proba(X)).log()
    expected = nn.functional.cross_entropy(logits, torch.tensor(Y), label_smoothing=0.2)
    assert smooth.history[-1, "valid_ce"] == pytest.approx(float(expected), abs=1e-5)
    groups = [("[0-4]*", {"lr": 0.0}), ("8*", {"lr": 0.1})]
    clf = classifier(optimizer__param_groups=groups, recalibrate=False)
    clf.fit(X, Y)
    start = classifier(max_epochs=0).fit(X, Y).module_.state_dict()
    parameters = {name for name, _ in clf.module_.named_parameters()}
    assert changed(start, clf.module_.state_dict()) & parameters == set(HEAD)
    assert [group["lr"] for group in clf.optimizer_.param_groups] == [0.0, 0.1]


def test_a_frozen_trunk_of_a_named_network_is_trained_on_maps():
    clf = ConsistentCAMClassifier(
        "squeezenet1_1", freeze="trunk", image_size=64, max_epochs=1, batch_size=30, verbose=0,
        random_state=0, device="cpu", lr=0.01,
    ).fit(X, Y)  # fmt: skip
    assert clf.history[-1, "train_inconsistency"] > 0
