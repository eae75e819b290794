"""Weights that balance themselves, and the warning when training collapses."""

from __future__ import annotations

import itertools
import math
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from skorch.history import History
from small_networks import Blocks, SmallNet, digits
from torch import nn

from sklcam import ConsistentCAMClassifier
from sklcam.cam import GradCAM, min_max, target_scores, upsample
from sklcam.networks import TargetLayer, record
from sklcam.training import (
    Balanced,
    CollapseWarning,
    ConsistentCAMLoss,
    Explanations,
    GradientSizes,
    ViewSampler,
    WarmUp,
    consistency_loss,
    signs_of_collapse,
    sparsity_loss,
)
from sklcam.training.collapse import chance_of

X, Y = digits()


def classifier(module=SmallNet, **options):
    defaults = {
        "image_size": 16,
        "alpha": "auto",
        "beta": "auto",
        "max_epochs": 2,
        "batch_size": 20,
        "lr": 0.05,
        "verbose": 0,
        "random_state": 0,
        "device": "cpu",
    }
    return ConsistentCAMClassifier(module, **{**defaults, **options})


# Balance


def test_the_balanced_terms_pull_as_hard_as_was_asked_for():
    """Gradients of the terms, each written out, at the activations."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Softplus(), nn.Flatten(), nn.Linear(45, 3)).double()
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), *head).double()
    images, labels = torch.rand(6, 2, 5, 5).double(), torch.arange(6) % 3
    warp = ViewSampler()(6, size=(5, 5), generator=torch.Generator().manual_seed(0))
    phi, size = GradCAM(relu=False), (15, 15)

    with record(net, net[1], trunk=True) as tape:
        logits = net(images)
        activations = tape.activations
        maps = phi(target_scores(logits), activations, create_graph=True)
        maps_of_view = phi(target_scores(net(warp(images))), tape.activations, create_graph=True)
    cross_entropy = nn.functional.cross_entropy(logits, labels)
    loss = ConsistentCAMLoss(Balanced(0.3), Balanced(2.0), p=2)
    explained = Explanations(maps, maps_of_view, warp, size=size)
    values = loss(cross_entropy, explained, activations=activations)

    scaled, scaled_of_view = (min_max(upsample(each, size)) for each in (maps, maps_of_view))
    of = {
        "ce": cross_entropy,
        "c": consistency_loss(warp(scaled), scaled_of_view).mean(),
        "s": sparsity_loss(scaled, 2).mean(),
        "total": values.total,
    }
    gradients = {
        name: torch.autograd.grad(term, activations, retain_graph=True)[0]
        for name, term in of.items()
    }
    alpha, beta = (
        ratio * gradients["ce"].norm() / gradients[name].norm()
        for ratio, name in ((0.3, "c"), (2.0, "s"))
    )
    torch.testing.assert_close(values.weights, {"alpha": alpha, "beta": beta})
    torch.testing.assert_close(values.total, of["ce"] + alpha * of["c"] + beta * of["s"])
    torch.testing.assert_close(
        gradients["total"], gradients["ce"] + alpha * gradients["c"] + beta * gradients["s"]
    )  # the weights themselves are not differentiated


def test_averages_move_towards_what_they_see():
    activations, sizes = torch.ones(1, requires_grad=True), GradientSizes(decay=0.75)
    for slope in (8.0, 4.0, 0.0):
        sizes.update("norm", slope * activations.sum(), activations)
    assert sizes.averages["norm"].item() == pytest.approx(0.75 * 7)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_changes_no_average(value):
    activations, sizes = torch.ones(1, requires_grad=True), GradientSizes()
    sizes.update("norm", value * activations.sum(), activations)
    assert sizes.averages["norm"] == 0
    sizes.update("norm", 3 * activations.sum(), activations)
    before = sizes.averages["norm"].clone()
    assert before > 0
    sizes.update("norm", value * activations.sum(), activations)
    assert sizes.averages["norm"] == before


def test_a_scale_leaves_sizes_as_they_are():
    activations, sizes = torch.ones(4, dtype=torch.float16, requires_grad=True), GradientSizes()
    tiny = 1e-8 * activations.float().sum()  # float16 cannot say that slope
    sizes.update("norm", tiny, activations, lambda loss: 2**16 * loss)
    assert sizes.averages["norm"].item() == pytest.approx(2e-8, rel=1e-2)
    sizes.update("inconsistency", tiny, activations)
    assert sizes.averages["inconsistency"] == 0


@pytest.mark.parametrize("zero", ["cross_entropy", "norm", "both"])
def test_weights_are_finite_where_a_term_is_zero(zero):
    activations, sizes = torch.ones(2, requires_grad=True), GradientSizes()
    for term in ("cross_entropy", "norm"):
        slope = 0.0 if zero in (term, "both") else 3.0
        sizes.update(term, slope * activations.sum(), activations)
    assert Balanced(0.5)(sizes, "norm") == 0
    sizes.averages = {"cross_entropy": torch.tensor(1.0), "norm": torch.tensor(1e-30)}
    assert Balanced(0.5)(sizes, "norm") == 1e4


def test_training_goes_on_where_maps_are_constant():
    """A head without weights explains nothing: no gradient for the terms on explanations."""

    class Blank(SmallNet):
        def __init__(self, **options):
            super().__init__(**options)
            nn.init.zeros_(self[8].weight)

    clf = classifier(Blank, max_epochs=1, batch_size=60).fit(X, Y)
    assert all(p.isfinite().all() for p in clf.module_.parameters())
    assert np.isfinite(clf.history[-1, "train_loss"])
    assert clf.history[-1, ("train_alpha", "train_beta")] == (0, 0)


def test_auto_is_balanced_and_is_recorded():
    auto, balanced = (
        classifier(alpha=alpha, beta=beta).fit(X, Y)
        for alpha, beta in (("auto", "auto"), (Balanced(0.2), Balanced(0.05)))
    )
    for name in ("train_loss", "train_alpha", "train_beta"):
        assert auto.history[:, name] == balanced.history[:, name]
        assert all(value > 0 for value in auto.history[:, name])
    numbers = classifier(alpha=1, beta=1e-3).fit(X, Y)
    assert "train_alpha" not in numbers.history[0]


def test_more_of_a_ratio_is_more_weight():
    small, large = (
        classifier(alpha=Balanced(r), beta=0, max_epochs=1, batch_size=60).fit(X, Y).history
        for r in (0.1, 0.7)
    )
    assert large[0, "train_alpha"] == pytest.approx(7 * small[0, "train_alpha"], rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"memory": "low"}, {"precision": "bf16"}, {"channels_last": True}, {"compile": True}],
)
def test_the_balance_is_the_same_in_every_mode(options):
    if "compile" in options:
        options = {**options, "compile__backend": "aot_eager"}
    # One step, as the next would start from other weights; one rounding of bfloat16 is 0.8 %.
    net = {"module": Blocks, "target_layer": "3", "image_size": 32, "batch_size": 60}
    plain, other = (classifier(**net, **more).fit(X, Y).history for more in ({}, options))
    tolerance = 0.1 if "precision" in options else 1e-4
    for name in ("train_alpha", "train_beta"):
        assert other[0, name] == pytest.approx(plain[0, name], rel=tolerance)


def test_the_criterion_is_not_compiled_where_its_gradient_is_taken_twice():
    balanced, plain = (
        classifier(alpha=weight, beta=0, compile=True, compile__backend="aot_eager").fit(X, Y)
        for weight in ("auto", 0)
    )
    assert type(balanced.criterion_) is nn.CrossEntropyLoss
    assert type(plain.criterion_) is not nn.CrossEntropyLoss


def test_averages_outlive_a_fit_and_pickling_and_a_new_fit_forgets_them():
    clf = classifier(max_epochs=1).fit(X, Y)
    copied = pickle.loads(pickle.dumps(clf))
    for each in (clf, copied):
        each.partial_fit(X, Y)
    assert clf.history[:, "train_alpha"] == copied.history[:, "train_alpha"]
    whole = classifier(max_epochs=2).fit(X, Y)
    assert whole.history[:, "train_alpha"] == clf.history[:, "train_alpha"]
    first = clf.history[0, "train_alpha"]
    assert clf.fit(X, Y).history[0, "train_alpha"] == first


def test_validation_weighs_as_training_did_last():
    from skorch.dataset import ValidSplit

    clf = classifier(train_split=ValidSplit(3), max_epochs=1, batch_size=100).fit(X, Y)
    row = clf.history[0]
    expected = (
        row["valid_ce"]
        + row["train_alpha"] * row["valid_inconsistency"]
        + row["train_beta"] * row["valid_norm"]
    )
    assert row["valid_loss"] == pytest.approx(expected, rel=1e-5)


class Later:
    """Balanced from the second epoch on."""

    def __call__(self, epoch):
        return "auto" if epoch else 0.0


def test_a_schedule_may_return_a_balance():
    clf = classifier(alpha=Later(), beta=WarmUp(1e-3, epochs=2)).fit(X, Y)
    assert "train_alpha" not in clf.history[0] and clf.history[1, "train_alpha"] > 0


def test_a_balance_is_a_parameter_like_others():
    clf = clone(classifier(alpha=Balanced(0.2)))
    assert clf.get_params()["alpha"] == Balanced(0.2)
    assert clone(clf).set_params(alpha=Balanced(0.3)).alpha == Balanced(0.3)


@pytest.mark.parametrize("ratio", [0, -1, math.inf, math.nan, "1", None])
def test_a_ratio_that_does_not_fit(ratio):
    with pytest.raises(ValueError, match="ratio must be a finite number > 0"):
        Balanced(ratio)


@pytest.mark.parametrize("weight", ["balanced", -1, None])
def test_a_weight_that_does_not_fit(weight):
    with pytest.raises(ValueError, match="alpha"):
        classifier(alpha=weight).fit(X, Y)


def test_a_balance_needs_gradients():
    maps = torch.rand(2, 12, 12)
    with pytest.raises(ValueError, match="Give activations="):
        ConsistentCAMLoss(0, "auto")(torch.tensor(1.0), Explanations(maps))


# Collapse


def peak(row, column, shape=(4, 5)):
    maps = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    maps[row, column] = 2
    return maps


def test_the_signs_by_hand():
    maps = torch.stack([peak(0, 0), peak(3, 4), peak(0, 2), torch.full((4, 5), 7.0), peak(2, 4)])
    logits = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1]])
    signs = signs_of_collapse(logits, torch.tensor([0, 0, 1, 1, 1]), maps)
    assert {name: value.item() for name, value in signs.items()} == pytest.approx(
        {"correct": 0.8, "constant_maps": 0.2, "corner_maps": 0.4, "alike_maps": 0.0}
    )


def test_maps_are_alike_if_they_correlate_with_the_others():
    rng = np.random.default_rng(0)
    common = rng.random((1, 5, 6))
    maps = np.concatenate([3 * common + rng.uniform(0, 0.6, (6, 5, 6)), rng.random((2, 5, 6))])
    maps = np.concatenate([maps, np.full((1, 5, 6), 2.0)]) * rng.uniform(1, 9, (9, 1, 1)) + 4
    forms = maps.reshape(9, -1) - maps.mean(axis=(1, 2))[:, None]
    forms[:8] /= np.linalg.norm(forms[:8], axis=1)[:, None]
    forms[8] = 0  # a constant one has none
    found = [np.corrcoef(forms[i], np.delete(forms, i, axis=0).sum(axis=0))[0, 1] for i in range(8)]
    assert sum(correlation > 0.9 for correlation in found) == 6
    signs = signs_of_collapse(torch.eye(9), None, torch.tensor(maps))
    assert signs["alike_maps"].item() == pytest.approx(6 / 9)
    # Of so few images, chance makes such maps; and of so few places, all maps are.
    for few in (maps[:3], maps[:, :2]):
        few = torch.tensor(few)
        assert "alike_maps" not in signs_of_collapse(torch.eye(9)[: len(few)], None, few)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 5)])
def test_where_there_are_corners_only_none_is_a_sign(shape):
    maps = torch.rand(5, *shape)
    found = signs_of_collapse(torch.eye(5), torch.arange(5), maps)
    assert found.keys() == {"correct", "constant_maps"}


class Blind(nn.Module):
    """The same map and the same logits whatever the image; nothing before the layer is trained."""

    def __init__(self, grid, num_classes=3, in_channels=1):
        super().__init__()
        self.register_buffer("grid", grid)
        self.layer = nn.Identity()
        self.scale = nn.Parameter(torch.arange(1.0, num_classes + 1))

    def forward(self, x):
        activations = self.layer(self.grid + 0 * x.mean(dim=(1, 2, 3), keepdim=True))
        return activations.mean(dim=(1, 2, 3))[:, None] * self.scale


# Where no image changes anything, how the layer lies cannot be found out.
LAYER = TargetLayer("layer", layout="nchw")


def warned(**options):
    defaults = {"alpha": 1.0, "beta": 1e-6, "target_layer": LAYER, "max_epochs": 7, "lr": 0.0}
    clf = classifier(Blind, **{**defaults, **options})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf.fit(X, Y)
    messages = [str(each.message) for each in caught if each.category is ConvergenceWarning]
    return clf, messages


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (peak(0, 4), {"corner_maps": 5, "chance": 5}),
        (peak(2, 2), {"alike_maps": 5, "chance": 5}),
        (torch.full((4, 5), 7.0), {"constant_maps": 5, "chance": 5}),
    ],
)
def test_a_collapse_is_warned_of_once(grid, expected):
    clf, messages = warned(module__grid=grid[None, None])
    assert dict(clf.callbacks_)["collapse_warning"].collapsed_ == expected
    assert len(messages) == len(expected)
    seen = {
        "corner_maps": "100% of the maps are highest in a corner",
        "constant_maps": "are constant",
    }
    seen["alike_maps"] = "100% of the maps are much the same for every image"
    seen["chance"] = "most frequent class every time would give"
    for name in expected:
        (message,) = (each for each in messages if seen[name] in each)
        assert "For 5 epochs, up to epoch 5" in message
        assert "alpha=1.0, beta=1e-06" in message and 'alpha="auto"' in message


@pytest.mark.parametrize(
    "options",
    [
        {"callbacks__collapse_warning": None},
        {"callbacks__collapse_warning__patience": 8},
        {"max_epochs": 4},
        {"alpha": 0, "beta": 0},
    ],
)
def test_where_nothing_is_warned_of(options):
    assert not warned(module__grid=peak(0, 0)[None, None], **options)[1]


def test_only_one_term_is_enough_to_watch():
    assert len(warned(module__grid=peak(0, 0)[None, None], alpha=0)[1]) == 2


def test_chance_is_that_of_the_most_frequent_class():
    """Labels of which two thirds are one class: naming it is no accuracy."""
    clf = classifier(Blind, module__grid=peak(2, 2)[None, None], target_layer=LAYER, lr=0.0)
    clf.set_params(alpha=1.0, beta=0, max_epochs=5, callbacks__collapse_warning__patience=5)
    skewed = np.where(np.arange(len(Y)) % 3 > 0, 2, Y % 2)  # the network always says 2
    with pytest.warns(ConvergenceWarning, match=r"is 66\.7%, .* would give 66\.7%"):
        clf.fit(X, skewed)


def test_epochs_count_in_a_row():
    net = SimpleNamespace(history=History(), alpha=1.0, beta=0.0)
    callback = CollapseWarning(patience=2).initialize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for corners in (1, 0, 1, 0, 1, 1, 1):
            net.history.new_epoch()
            callback.on_epoch_begin(net)
            signs = {"constant_maps": 0.0, "corner_maps": corners, "alike_maps": 0}
            net.history.new_batch()
            for name, share in {**signs, "batch_size": 400}.items():
                net.history.record_batch(f"train_{name}", share)
            callback.on_batch_end(net, batch=(None, None), training=True)
            callback.on_epoch_end(net)
    assert callback.collapsed_ == {"corner_maps": 6} and len(caught) == 1


@pytest.mark.parametrize("batch_size", [3, 9])
@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"batch_accumulation": 3}])
def test_maps_are_alike_over_the_parts_of_a_batch_and_not_where_there_are_too_few(
    batch_size, options
):
    """Of three images nothing is said: neither that maps are alike, nor that they are not."""
    if "memory" in options and batch_size == 3:
        options = {**options, "batch_accumulation": 2}
    options = {**options, "max_epochs": 2, "callbacks__collapse_warning__patience": 2}
    clf, messages = warned(module__grid=peak(2, 2)[None, None], batch_size=batch_size, **options)
    recorded = {batch.get("train_alike_maps") for row in clf.history for batch in row["batches"]}
    assert recorded == ({None} if batch_size == 3 else {1.0})
    assert sum("much the same" in message for message in messages) == (batch_size == 9)


# Chance


def by_permutation(labels, answers, weights):
    """The mean and the standard deviation of the accuracy over all orders of the answers."""
    right = [
        weights[labels == np.array(order)].sum() / weights.sum()
        for order in itertools.permutations(answers)
    ]
    return np.std(right)


@pytest.mark.parametrize("answers", [[0, 1, 1, 2, 0, 0, 2], [1, 1, 1, 1, 1, 1, 0], [2] * 7])
def test_noise_is_that_of_the_answers_in_any_order(answers):
    labels, weights = np.array([0, 0, 0, 0, 1, 2, 1]), np.array([1, 2, 1, 0.5, 3, 0, 1])
    found = chance_of(labels, np.array(answers), weights)
    right = weights[labels == answers].sum() / 8.5
    assert found == pytest.approx((right, 4.5 / 8.5, by_permutation(labels, answers, weights)))


def test_one_answer_for_all_is_chance_and_few_rare_ones_are_not():
    labels = np.repeat([0, 1], [297, 3])
    assert chance_of(labels, 0 * labels, np.ones(300)) and chance_of(labels, 1 - 0 * labels, labels)
    assert not chance_of(labels, labels, np.ones(300))  # though 99 % are right without looking


class Dim(nn.Module):
    """Says the second class, the rare one, of half of the frequent one's images, too."""

    def __init__(self, learned=True, n_outputs=2):
        super().__init__()
        self.layer, self.scale = nn.Conv2d(1, 1, 1, bias=False), nn.Parameter(torch.ones(()))
        nn.init.ones_(self.layer.weight)
        self.learned, self.n_outputs = learned, n_outputs

    def forward(self, x):
        brightness = self.layer(x).mean(dim=(1, 2, 3)) - 0.25
        logit = self.scale * (brightness if self.learned else 1 + 0 * brightness)
        return logit[:, None] if self.n_outputs == 1 else torch.stack([-logit, logit], dim=1)


class Focal(nn.Module):
    """A loss of one's own that weighs classes; by how much, it tells nobody."""

    def forward(self, logits, y):
        losses = nn.functional.cross_entropy(logits, y, reduction="none")
        return (losses * torch.tensor([1.0, 9.0])[y]).mean()


WEIGHED = {
    "balanced": {"class_weight": "balanced"},
    "dict": {"class_weight": {1: 9.0}},
    "criterion": {"criterion__weight": [1.0, 9.0]},
    "images": {},  # by sample_weight
    "one logit": {"task": "binary", "criterion__pos_weight": [9.0], "module__n_outputs": 1},
    "binary": {"task": "binary", "class_weight": "balanced", "module__n_outputs": 1},
    "a loss of one's own": {"criterion": Focal},
}


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("how", [*WEIGHED])
def test_chance_is_of_labels_as_the_loss_weighs_them(how, learned):
    """Of 100 images 10 are rare: 50 more are called so. It is right of 50 %, and naming one class,
    of 90 %; counted as they are weighed, of 72 % against 50 %."""
    y = (np.arange(100) % 10 == 0).astype(int)
    bright = (y == 1) | (np.arange(100) % 9 < 5)
    images = np.where(bright, 0.3, 0.2)[:, None, None] + np.zeros((100, 16, 16))
    images[:, 8, 8] += 0.1
    options = {"target_layer": "layer", "lr": 0.0, "max_epochs": 2, "mean": 0, "std": 1}
    options |= {"callbacks__collapse_warning__patience": 2, "augment": None, "alpha": 1.0}
    clf = classifier(Dim, module__learned=learned, **options, **WEIGHED[how])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf.fit(images, y, sample_weight=1 + 8 * y if how == "images" else None)
    assert clf.history[-1, "train_accuracy"] < 0.6
    messages = [str(each.message) for each in caught if "every time" in str(each.message)]
    assert len(messages) == (not learned)
    assert all("is 50.0%, and naming one class every time would" in each for each in messages)


@pytest.mark.parametrize("weights", [{"alpha": 0, "beta": 0}, {"alpha": 1.0, "beta": 0}])
def test_a_loss_that_is_lost_is_warned_of_at_once(weights):
    clf = classifier(lr=1e30, max_epochs=3, **weights)
    with pytest.warns(
        ConvergenceWarning, match=r"The loss is (nan|inf) in epoch .* it is 1e"
    ) as all_:
        clf.fit(X, Y)
    assert len([of for of in all_ if of.category is ConvergenceWarning]) == 1
    assert not dict(clf.callbacks_)["collapse_warning"].collapsed_  # of what is NaN


def test_what_trains_is_not_warned_of():
    """Images of three levels of brightness, which any network can tell apart."""
    noise = np.random.default_rng(0).random((60, 16, 16))
    labels = np.arange(60) % 3
    images = 0.2 * noise + 0.4 * labels[:, None, None]
    clf = classifier(alpha=0.1, beta=1e-4, max_epochs=8, lr=0.1, batch_size=10, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        clf.fit(images, labels)
    assert clf.score(images, labels) > 0.6
