"""Networks that do what few do, in training: trained as others are, or refused with the cause."""

from __future__ import annotations

import copy
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sklcam import ConsistentCAMClassifier, EmbeddingNet
from sklcam.networks import TargetLayer

X = np.random.RandomState(0).rand(12, 12, 12, 3).astype("float32")
Y = np.arange(12) % 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
        self.fc = nn.Linear(6, 3)

    def features(self, x):
        return self.act(self.conv(x))

    def head(self, features):
        return self.fc(features.mean((2, 3)))

    def forward(self, x):
        return self.head(self.features(x))


class Around(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.net, self.change = Net(), forward

    def forward(self, x):
        return self.change(self.net, x)


def fitted(module, layer="act", kind=ConsistentCAMClassifier, **options):
    common = {"image_size": 12, "max_epochs": 2, "batch_size": 6, "lr": 0.1, "verbose": 0}
    common |= {"random_state": 0, "device": "cpu", "target_layer": layer}
    return kind(module, **{**common, **options}).fit(X, Y)


def losses(*args, **kwargs):
    return fitted(*args, **kwargs).history[:, "train_loss"]


@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"batch_accumulation": 2}])
@pytest.mark.parametrize(
    ("writing", "plain"),
    [
        (lambda net, x: net(x.sub_(0.5).div_(0.25)), lambda net, x: net((x - 0.5) / 0.25)),
        (lambda net, x: net(x.relu_()), lambda net, x: net(x.relu())),
        (
            lambda net, x: net(nn.functional.dropout(x, 0.3, net.training, inplace=True)),
            lambda net, x: net(nn.functional.dropout(x, 0.3, net.training)),
        ),
    ],
)
def test_networks_that_write_into_their_input_train_as_those_that_do_not(writing, plain, options):
    ours = losses(Around(writing), "net.act", **options)
    assert ours == losses(Around(plain), "net.act", **options)


def mirrored(net, x):
    return (net(x) + net(x.flip(-1))) / 2


def folded(net, x):
    first, second = net(torch.cat([x, x.flip(-1)])).chunk(2)
    return (first + second) / 2


def test_a_layer_that_runs_twice_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'net.act' runs .* in a pass.*run="):
        fitted(Around(mirrored), "net.act")
    with pytest.raises(ValueError, match=r"Every layer of Around"):
        fitted(Around(mirrored), "auto")


def test_a_run_that_is_asked_for_is_trained_on():
    # The mirror image's half counts for the logits alone, so that the first run is all there is.
    def beside(net, x):
        return (net(x) + net.fc(net.conv(x.flip(-1)).relu().mean((2, 3)))) / 2

    ours = losses(Around(mirrored), TargetLayer("net.act", run=0))
    assert ours == losses(Around(beside), "net.act")
    with pytest.raises(ValueError, match=r'memory="low".*bypassed'):
        fitted(Around(mirrored), TargetLayer("net.act", run=0), memory="low")


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_rows_that_are_not_images_are_refused(memory):
    with pytest.raises(ValueError, match=r"'net.act' .*one row per image"):
        fitted(Around(folded), "net.act", memory=memory)


def test_embeddings_of_such_networks_are_refused():
    with pytest.raises(ValueError, match=r"'net.act' .*one row per image"):
        fitted(Around(folded), "net.act", EmbeddingNet, embedding_dim=3)


def test_a_trunk_under_no_grad_trains_as_a_frozen_one():
    def probe(net, x):
        with torch.no_grad():
            features = net.features(x)
        return net.head(features)

    def frozen(net, x):
        return net.head(net.features(x))

    plain = Around(frozen)
    plain.net.conv.requires_grad_(False)
    assert losses(Around(probe), "net.act") == losses(plain, "net.act")


@pytest.mark.filterwarnings("ignore:.*requires_grad=True")
@pytest.mark.parametrize(
    "end",
    [
        lambda net, x: net.head(net.features(x).detach()),
        lambda net, x: net.head(checkpoint(net.features, x, use_reentrant=True)),
    ],
)
def test_gradients_that_end_behind_the_layer_are_refused(end):
    with pytest.raises(ValueError, match=r"No gradient leads .*detach\(\).*use_reentrant=True"):
        fitted(Around(end), "net.act")
    fitted(Around(end), "net.act", alpha=0, beta=0)  # which looks at no maps


def test_a_network_without_gradients_is_refused():
    def none(net, x):
        with torch.no_grad():
            return net(x)

    with pytest.raises(
        ValueError, match=r"No gradient leads from the output of Around.*no_grad\(\)"
    ):
        fitted(Around(none), "net.act")


def test_checkpointing_that_is_not_reentrant_trains_as_none_does():
    def checkpointed(net, x):
        return net.head(checkpoint(net.features, x, use_reentrant=False))

    expected = losses(Around(lambda net, x: net(x)), "net.act")
    np.testing.assert_allclose(losses(Around(checkpointed), "net.act"), expected, rtol=1e-6)


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_networks_train_as_what_they_were_made_from(in_place):
    network = Net()
    if in_place:
        network.compile(backend="eager")
    else:
        network = torch.compile(network, backend="eager")
    trained = fitted(network)
    assert trained.history[:, "train_loss"] == losses(Net())
    assert type(trained.module_) is Net
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_networks_that_cannot_be_looked_into_are_refused():
    traced = torch.jit.trace(Net(), torch.rand(1, 3, 12, 12))
    with pytest.raises(ValueError, match=r"traced or scripted.*Use the floating-point nn.Module"):
        fitted(traced)


@pytest.mark.parametrize("keep", [lambda kept: kept, lambda kept: {"all": [(kept, 1)]}])
def test_a_module_that_has_kept_what_it_computed_is_copied(keep):
    network = Net()
    kept = network.features(torch.rand(1, 3, 12, 12))
    network.kept = keep(kept)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(network)
    assert losses(network) == losses(Net())
    assert kept.requires_grad


def test_callers_in_inference_mode_train():
    expected = fitted(Net)
    with torch.inference_mode():
        ours = fitted(Net)
        maps, probabilities = ours.explain(X), ours.predict_proba(X)
        assert torch.is_inference_mode_enabled()
    assert ours.history[:, "train_loss"] == expected.history[:, "train_loss"]
    np.testing.assert_array_equal(maps, expected.explain(X))
    np.testing.assert_array_equal(probabilities, expected.predict_proba(X))


@pytest.mark.parametrize("kind", [tuple, list])
def test_the_first_of_several_outputs_is_trained(kind):
    ours = fitted(Around(lambda net, x: kind([net(x), x])), "net.act")
    assert ours.history[:, "train_loss"] == losses(Net())
    assert ours.predict_proba(X).shape == (12, 3)


def test_threads_predict_while_others_explain():
    class Normed(Net):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def features(self, x):
            return super().features(self.norm(x))

    clf = fitted(Normed)
    clf.module_.train()
    buffers = {name: value.clone() for name, value in clf.module_.named_buffers()}
    expected = {"predict_proba": clf.predict_proba(X), "explain": clf.explain(X)}
    clf.module_.train()
    found = []

    def work(name):
        for _ in range(8):
            found.append(np.array_equal(getattr(clf, name)(X), expected[name]))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(name,)) for name in [*expected] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert found == [True] * 32
    for name, value in clf.module_.named_buffers():
        assert torch.equal(value, buffers[name]), name
