"""Training in half precision and another memory format: beside float32, and what stays float32."""

from __future__ import annotations

from functools import partial

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from small_networks import Blocks, Gradients, SmallNet, digits
from torch.amp import GradScaler

from sklcam import ConsistentCAMClassifier
from sklcam.training import _stepping as stepping

X, Y = digits()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Half precision has 8 or 11 bits: what one step may be off by, relative to the whole gradient.
TOLERANCES = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.02}


class Watched(SmallNet):
    """Notes what it computes in."""

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__(num_classes, in_channels, width=16)
        self.seen = []

    def forward(self, x):
        before_pooling = x
        for layer in list(self)[:6]:
            before_pooling = layer(before_pooling)
        if len(x) > 1:
            last = x.is_contiguous(memory_format=torch.channels_last)
            self.seen.append((self.training, before_pooling.dtype, last))
        for layer in list(self)[6:]:
            before_pooling = layer(before_pooling)
        return before_pooling


def classifier(module=Watched, **options):
    defaults = {
        "image_size": 32,
        "target_layer": "5",
        "beta": 1e-3,
        "max_epochs": 1,
        "batch_size": 20,
        "lr": 0.05,
        "verbose": 0,
        "random_state": 1,  # of 0, a crop is so flat that rounding decides where its map is highest
        "device": "cpu",
    }
    return ConsistentCAMClassifier(module, **{**defaults, **options})


class FromTheFirstStep(Callback):
    """Lets a network forget what it was tried with before it is trained, and counts from there."""

    def on_train_begin(self, net, **kwargs):
        net.module_.seen.clear()

    def on_epoch_end(self, net, **kwargs):
        self.n_passes = len(net.module_.seen)


def trained(**options):
    clf = classifier(callbacks=[("gradients", Gradients())], **options).fit(X, Y)
    return clf, dict(clf.callbacks_)["gradients"].seen


@pytest.fixture(scope="module")
def plain():
    return trained()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("precision", DTYPES)
def test_the_first_step_is_that_of_float32(precision, memory, channels_last, plain, monkeypatch):
    # At the usual start, 2^16, it would overflow and be left out.
    monkeypatch.setattr(stepping, "GradScaler", partial(GradScaler, init_scale=2.0**8))
    options = {"precision": precision, "memory": memory, "channels_last": channels_last}
    clf, gradients = trained(**options)
    expected = plain[1][0]
    assert (gradients[0] - expected).norm() / expected.norm() < TOLERANCES[precision]
    for key in ("train_loss", "train_ce", "train_inconsistency", "train_norm"):
        values = [of.history[0, "batches", 0, key] for of in (clf, plain[0])]
        assert_allclose(*values, rtol=TOLERANCES[precision])
    assert {p.dtype for p in clf.module_.parameters()} == {torch.float32}


# Compiling: the blocks are captured and their backward passes traced, but no code is generated.
COMPILED = {"compile": True, "compile__backend": "aot_eager"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory": "low"},
        {"precision": "bf16", "channels_last": True},
        {"memory": "low", "precision": "bf16", "batch_accumulation": 2},
        {"alpha": 0},
    ],
)
def test_compiled_blocks_train_alike(options):
    options = {"module": Blocks, "target_layer": "3", "max_epochs": 2, **options}
    plain, expected = trained(**options)
    compiled, gradients = trained(**options, **COMPILED)
    tolerance = 1e-4 if "precision" not in options else 0.05
    for gradient, other in zip(gradients, expected, strict=True):
        assert (gradient - other).norm() / other.norm() < tolerance
    network = compiled.module_
    parts = [network[0], network[2], *network[3]]
    assert all(part._compiled_call_impl is not None for part in parts)
    others = [network, network[1], network[3], *list(network)[4:]]
    assert all(part._compiled_call_impl is None for part in others)
    assert_allclose(compiled.predict_proba(X), plain.predict_proba(X), atol=2 * tolerance)
    assert_allclose(compiled.explain(X[:4]), plain.explain(X[:4]), atol=0.1)


def test_a_compiled_classifier_goes_through_a_file(tmp_path):
    clf = classifier(Blocks, target_layer="3", **COMPILED).fit(X, Y)
    joblib.dump(clf, tmp_path / "clf.joblib")
    loaded = joblib.load(tmp_path / "clf.joblib")
    assert_allclose(loaded.predict_proba(X), clf.predict_proba(X), atol=1e-6)
    loaded.partial_fit(X, Y)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_parts_work_in_half_precision(precision):
    options = {"precision": precision, "augment": None}
    _, whole = trained(**options, alpha=0, beta=0)
    _, parts = trained(**options, alpha=0, beta=0, batch_accumulation=4)
    assert all(torch.isfinite(gradient).all() for gradient in parts)
    assert not torch.equal(parts[0], whole[0])  # batch normalisation sees a part at a time
    _, low = trained(**options, batch_accumulation=4, memory="low")
    _, normal = trained(**options, batch_accumulation=4)
    assert (low[0] - normal[0]).norm() / normal[0].norm() < 0.01


@pytest.mark.parametrize("options", [{}, {"alpha": 0, "beta": 0}])
@pytest.mark.parametrize("precision", DTYPES)
def test_training_is_in_that_precision_and_prediction_is_not(precision, options):
    steps = FromTheFirstStep()
    options = {**options, "train_split": ValidSplit(3), "callbacks": [steps]}
    clf = classifier(precision=precision, **options).fit(X, Y)
    n_of_fit = steps.n_passes  # then the statistics are looked at, as prediction has them
    assert clf.predict_proba(X).dtype == np.float32
    assert clf.explain(X[:3]).dtype == np.float32
    assert {dtype for _, dtype, _ in clf.module_.seen[:n_of_fit]} == {DTYPES[precision]}
    assert {training for training, _, _ in clf.module_.seen[:n_of_fit]} == {True, False}
    assert {dtype for _, dtype, _ in clf.module_.seen[n_of_fit:]} == {torch.float32}


def test_maps_and_their_losses_stay_in_float32(monkeypatch):
    seen = []
    inner = stepping.ConsistentCAMLoss.__call__

    def spy(self, cross_entropy, explained, **options):
        maps = (explained.maps, explained.maps_of_view)
        seen.extend(each.dtype for each in (cross_entropy, *maps))
        return inner(self, cross_entropy, explained, **options)

    monkeypatch.setattr(stepping.ConsistentCAMLoss, "__call__", spy)
    classifier(precision="bf16").fit(X, Y)
    assert set(seen) == {torch.float32} and len(seen) >= 3


def test_small_gradients_survive_in_float16():
    """The gradient of a score at one of 64 x 64 positions is below what float16 can say."""

    def consistency(precision):
        torch.manual_seed(0)
        module = SmallNet(width=16)
        with torch.no_grad():
            module[8].weight.mul_(1e-3)
        options = {"image_size": 128, "precision": precision, "lr": 0, "batch_size": 60}
        return classifier(module, **options).fit(X, Y).history[0, "train_inconsistency"]

    with torch.no_grad():
        assert torch.tensor(1e-3 * 0.1 / 64**2).half() == 0
    assert consistency("fp16") == pytest.approx(consistency("fp32"), abs=0.02)


def test_a_step_that_overflows_is_left_out_and_the_scale_comes_down():
    clf = classifier(precision="fp16", batch_size=60, lr=0.1).fit(X, Y)
    before = [p.detach().clone() for p in clf.module_.parameters()]
    clf.scaler_.update(2.0**40)
    clf.partial_fit(X, Y)
    assert all(torch.equal(a, b) for a, b in zip(before, clf.module_.parameters(), strict=True))
    assert clf.scaler_.get_scale() == 2.0**39
    clf.scaler_.update(2.0**10)
    clf.partial_fit(X, Y)
    assert not all(torch.equal(a, b) for a, b in zip(before, clf.module_.parameters(), strict=True))


def test_the_memory_format_is_that_of_images_and_weights():
    clf = classifier(channels_last=True, callbacks=[FromTheFirstStep()]).fit(
        np.stack([X] * 3, axis=-1), Y
    )
    assert all(last for _, _, last in clf.module_.seen)
    assert clf.module_[4].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_goes_on_from_a_file(precision, tmp_path):
    options = {"precision": precision, "callbacks__lr_scheduler": None}
    twice = classifier(**options).fit(X, Y)
    joblib.dump(twice, tmp_path / "clf.joblib")
    loaded = joblib.load(tmp_path / "clf.joblib")
    for clf in (twice, loaded):
        clf.partial_fit(X, Y)
    assert all(
        torch.equal(a, b)
        for a, b in zip(twice.module_.parameters(), loaded.module_.parameters(), strict=True)
    )


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="precision"):
        classifier(precision="fp8").fit(X, Y)
    with pytest.raises(ValueError, match="LBFGS evaluates several"):
        classifier(precision="fp16", optimizer=torch.optim.LBFGS).fit(X, Y)
