"""Training in little memory: the same steps as the ordinary ones, with fewer tensors kept."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from skorch.callbacks import Callback
from small_networks import Gradients, SmallNet, TokenNet, digits
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from sklcam import ConsistentCAMClassifier
from sklcam.networks import TargetLayer, build_model
from sklcam.training._stepping import SteppingNet

X, Y = digits()


class NoisyNet(nn.Sequential):
    """Batch normalisation and dropout before the target layer and after it; in float64."""

    def __init__(self, num_classes=3, in_channels=1, p=0.3):
        super().__init__(
            nn.Conv2d(in_channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Dropout2d(p),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 6, 3, padding=1, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.Dropout(p),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, num_classes),
        )
        self.double()

    def forward(self, x):
        return super().forward(x.double())


class Plain(NoisyNet):
    """Images do not see each other, and nothing is random."""

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(num_classes, in_channels)
        for i in (1, 2, 5, 8):
            self[i] = nn.Identity()


def classifier(module=NoisyNet, **options):
    defaults = {
        "image_size": 16,
        "target_layer": "6",
        "alpha": 0.7,
        "beta": 1e-3,
        "max_epochs": 2,
        "batch_size": 20,
        "lr": 0.05,
        "verbose": 0,
        "random_state": 0,
        "device": "cpu",
    }
    return ConsistentCAMClassifier(module, **{**defaults, **options})


def trained(module=NoisyNet, **options):
    clf = classifier(module, callbacks=[("gradients", Gradients())], **options).fit(X, Y)
    return clf, torch.stack(dict(clf.callbacks_)["gradients"].seen)


def state_of(clf):
    return {name: value.clone() for name, value in clf.module_.state_dict().items()}


# Low memory


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0},
        {"view_target": "shared"},
        {"p": 2},
        {"alpha": 0},
        {"alpha": 0, "beta": 0},
        {"target_layer": "9"},
        {"target_layer": "0"},
        {"optimizer": torch.optim.LBFGS, "lr": 0.1},
    ],
)
def test_low_memory_takes_the_same_steps(options):
    normal, expected = trained(**options)
    low, gradients = trained(**options, memory="low")
    assert expected.shape[0] > 1 and expected.abs().amax(dim=1).min() > 0
    assert_allclose(gradients, expected, rtol=1e-9, atol=1e-12)
    for name, value in state_of(normal).items():  # running statistics, too
        assert_allclose(state_of(low)[name], value, rtol=1e-9, atol=1e-12)
    for key in ("train_loss", "train_ce", "train_inconsistency", "train_norm"):
        if key in normal.history[-1]:
            assert_allclose(low.history[:, key], normal.history[:, key], rtol=1e-6)
    ends = (low.random_states_, normal.random_states_)
    assert torch.equal(*(states["global"] for states in ends))
    assert torch.equal(*(states["views"] for states in ends))


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v3_small", "googlenet"])
@pytest.mark.slow
def test_low_memory_on_known_networks(name):
    def gradient(memory):
        torch.manual_seed(0)
        module = build_model(name, n_classes=3, in_channels=1, image_size=(64, 64)).double()
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
        options = {"target_layer": "auto", "image_size": 64, "batch_size": 6, "max_epochs": 1}
        clf = classifier(module, **options, memory=memory, callbacks=[("g", Gradients())])
        return dict(clf.fit(X[:6], Y[:6]).callbacks_)["g"].seen[0]

    assert_allclose(gradient("low"), gradient("normal"), rtol=1e-8, atol=1e-11)


def test_low_memory_on_tokens():
    layer = TargetLayer("norm", layout="tokens", n_prefix=1, grid=(4, 4))
    torch.manual_seed(0)
    module = TokenNet()
    steps = [
        trained(module, target_layer=layer, memory=memory, max_epochs=1)[1]
        for memory in ("low", "normal")
    ]
    assert_allclose(*steps, rtol=1e-4, atol=1e-6)


def test_a_frozen_trunk_needs_no_second_pass():
    module = NoisyNet()
    for layer in list(module)[:7]:
        layer.requires_grad_(False)

    class Last(Gradients):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            self.seen.append(torch.cat([p.grad.flatten() for p in net.module_[7].parameters()]))

    def gradients(memory):
        clf = classifier(module, memory=memory, callbacks=[("g", Last())]).fit(X, Y)
        return torch.stack(dict(clf.callbacks_)["g"].seen)

    assert_allclose(gradients("low"), gradients("normal"), rtol=1e-9, atol=1e-12)


def saved_at_most(step):
    """The most bytes of tensors that autograd kept at a time, parameters and inputs aside."""
    alive, peak = {}, 0

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    def keep(tensor):
        nonlocal peak
        kept = Kept(tensor)
        if isinstance(tensor, nn.Parameter):
            return kept
        storage = tensor.untyped_storage()
        owners = alive.setdefault(storage.data_ptr(), [0, storage.nbytes()])
        owners[0] += 1
        weakref.finalize(kept, release, storage.data_ptr())
        peak = max(peak, sum(size for count, size in alive.values() if count))
        return kept

    def release(pointer):
        alive[pointer][0] -= 1

    with saved_tensors_hooks(keep, lambda kept: kept.tensor):
        step()
    return peak


def test_low_memory_keeps_what_plain_training_keeps():
    images, labels = torch.rand(16, 3, 64, 64), torch.arange(16) % 3
    torch.manual_seed(0)
    network = build_model("resnet18", n_classes=3)

    def peak(**options):
        options = {"image_size": 64, "target_layer": "auto", "augment": None, **options}
        clf = classifier(network, **options, max_epochs=0)
        clf.partial_fit(images, labels)
        with clf._own_randomness():
            clf.on_epoch_begin(clf)
            clf.history.new_batch()
            clf.train_step((images, labels))  # the first copies its images, as others need not
            clf.history.new_batch()
            gc.collect()
            return saved_at_most(lambda: clf.train_step((images, labels)))

    plain = peak(alpha=0, beta=0)
    assert peak(memory="normal") > 1.8 * plain
    assert peak(memory="low") < 1.2 * plain
    assert peak(memory="low", batch_accumulation=4) < 0.4 * plain


def test_a_way_around_the_layer_is_refused():
    class Bypass(SmallNet):
        def forward(self, x):
            before = self[3](self[2](self[1](self[0](x))))
            return self[8](self[7](self[6](before + self[5](self[4](before)))))

    options = {"target_layer": "5", "max_epochs": 1}
    classifier(Bypass, **options).fit(X, Y)
    with pytest.raises(ValueError, match=r"'5' is bypassed on the way to the output"):
        classifier(Bypass, memory="low", **options).fit(X, Y)
    classifier(Bypass, memory="low", alpha=0, **options).fit(X, Y)  # no view, nothing to cut


def test_nothing_outlives_a_step():
    clf = classifier(memory="low").fit(X, Y)
    assert clf._step is None
    assert all(not module._forward_hooks for module in clf.module_.modules())
    assert all(not module._forward_pre_hooks for module in clf.module_.modules())


def test_a_replaced_step_is_noticed():
    class Replaced(ConsistentCAMClassifier):
        def train_step_single(self, batch, **fit_params):
            return super(SteppingNet, self).train_step_single(batch, **fit_params)

    options = classifier(memory="low").get_params()
    with pytest.raises(RuntimeError, match="needs the classifier's own train_step_single"):
        Replaced(**{k: v for k, v in options.items() if "callbacks" not in k}).fit(X, Y)


# Accumulation


@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("n_parts", [2, 3, 20, 1000])
def test_parts_of_a_batch_are_the_batch(n_parts, memory):
    options = {"augment": None, "memory": memory}
    whole, expected = trained(Plain, **options)
    parts, gradients = trained(Plain, **options, batch_accumulation=n_parts)
    assert len(gradients) == len(expected) == 6  # one step a batch
    assert_allclose(gradients, expected, rtol=1e-8, atol=1e-12)
    for key in ("train_loss", "train_ce", "train_inconsistency", "train_norm"):
        assert_allclose(parts.history[:, key], whole.history[:, key], rtol=1e-5)


def test_parts_are_of_like_sizes():
    sizes = []

    class Counting(Plain):
        def forward(self, x):
            if self.training and torch.is_grad_enabled():
                sizes.append(len(x))
            return super().forward(x)

    classifier(Counting, alpha=0, beta=0, batch_accumulation=3, max_epochs=1).fit(X[:20], Y[:20])
    assert sizes == [7, 7, 6]


def test_an_interrupted_accumulation_takes_no_step():
    class Interrupted(Plain):
        n_passes = 0

        def forward(self, x):
            self.n_passes += self.training and len(x) > 1
            if self.n_passes == 6:  # in the second part of the second batch: two passes a part
                raise KeyboardInterrupt
            return super().forward(x)

    taken = []

    class Steps(Callback):
        def on_batch_end(self, net, training, **kwargs):
            taken.append(np.concatenate([p.detach().flatten() for p in net.module_.parameters()]))

    options = {"batch_accumulation": 2, "callbacks": [Steps()]}
    clf = classifier(Interrupted, **options).fit(X, Y)
    assert len(taken) == 1
    after = np.concatenate([p.detach().flatten() for p in clf.module_.parameters()])
    assert_array_equal(after, taken[0])
    clf.partial_fit(X, Y)  # goes on from there
    assert len(taken) > 1


@pytest.mark.parametrize(
    "options", [{"memory": "least"}, {"batch_accumulation": 0}, {"batch_accumulation": 1.5}]
)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        classifier(**options).fit(X, Y)
