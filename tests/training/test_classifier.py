"""The classifier: against plain skorch, against its own definition, and as scikit-learn's guest."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerated import FIXED, OneView
from classifiers import NAMES, X, Y, classifier, weights, weights_of
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import EpochScoring, LRScheduler
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import ValidSplit
from skorch.helper import predefined_split
from small_networks import DropoutNet, Gradients, RowsAsImages, SmallNet, TupleNet, digits
from torch import nn

from sklcam.cam import GradCAM, target_scores
from sklcam.images import ImageDataset, normalize
from sklcam.metrics import consistency_score, get_scorer, structural_similarity
from sklcam.networks import record
from sklcam.training import ConsistentCAMLoss, Explanations, ViewSampler, WarmUp
from sklcam.training.step import Step

# Training


@pytest.mark.parametrize("module", [SmallNet, DropoutNet])
def test_without_the_terms_it_is_plain_skorch(module):
    ours = classifier(module, alpha=0, beta=0, augment=None, max_epochs=2).fit(X, Y)
    images = torch.stack([ImageDataset(X, image_size=16)[i][0] for i in range(len(X))])
    images = normalize(images, 0.449, 0.226)  # the mean of ImageNet's statistics over its colours
    torch.manual_seed(0)
    plain = NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        optimizer__momentum=0.9,
        optimizer__weight_decay=1e-4,
        lr=0.05,
        max_epochs=2,
        batch_size=20,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
    ).fit(images, Y)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-5, atol=1e-7)
    assert_allclose(ours.predict_proba(X), plain.predict_proba(images), atol=1e-6)


def test_one_step_is_the_papers_equations():
    """The weights after one step of SGD, from eq. 1 to 4 written out."""
    options = {"alpha": 0.7, "beta": 0.01, "p": 2, "optimizer__momentum": 0, "augment": None}
    clf = classifier(max_epochs=0, batch_size=len(X), iterator_train__shuffle=False, **options)
    clf.fit(X, Y)
    model = copy.deepcopy(clf.module_)
    generator = torch.Generator()
    generator.set_state(clf.random_states_["views"])
    clf.set_params(max_epochs=1).partial_fit(X, Y)

    images = torch.cat(list(clf.iter_inputs(X)))
    warp = ViewSampler()(len(X), size=(16, 16), generator=generator)
    model.train()

    def explain(inputs):
        kept = []
        handle = model[5].register_forward_hook(lambda _, __, out: kept.append(out))
        logits = model(inputs)
        handle.remove()
        score = logits.gather(1, logits.argmax(1, keepdim=True)).sum()
        (gradient,) = torch.autograd.grad(score, kept[0], create_graph=True)
        raw = torch.einsum("nk,nkuv->nuv", gradient.mean((2, 3)), kept[0])
        raw = nn.functional.interpolate(raw[:, None], (16, 16), mode="bilinear")[:, 0]
        low, high = raw.amin((1, 2), True), raw.amax((1, 2), True)
        return logits, (raw - low) / (high - low)

    logits, maps = explain(images)
    _, maps_of_view = explain(warp(images))
    cross_entropy = -logits.log_softmax(1)[range(len(Y)), Y].mean()
    consistency = 1 - structural_similarity(warp(maps), maps_of_view).mean()
    sparsity = maps.pow(2).sum((1, 2)).sqrt().mean()
    total = cross_entropy + 0.7 * consistency + 0.01 * sparsity
    gradients = torch.autograd.grad(total, list(model.parameters()))
    expected = torch.cat(
        [
            (p - 0.05 * (g + 1e-4 * p)).flatten()
            for p, g in zip(model.parameters(), gradients, strict=True)
        ]
    )
    torch.testing.assert_close(weights(clf), expected.detach(), rtol=1e-5, atol=1e-6)
    history = clf.history[-1]
    assert history["train_ce"] == pytest.approx(cross_entropy.item(), rel=1e-5)
    assert history["train_inconsistency"] == pytest.approx(consistency.item(), rel=1e-5)
    assert history["train_norm"] == pytest.approx(sparsity.item(), rel=1e-5)
    assert history["train_loss"] == pytest.approx(total.item(), rel=1e-5)


def test_running_statistics_are_those_of_the_images_not_of_their_views():
    """Batch normalisation's moving averages written out, over two steps that train nothing."""
    options = {"batch_size": 30, "iterator_train__shuffle": False, "augment": None, "lr": 0.0}
    clf = classifier(alpha=1, max_epochs=0, **options).fit(X, Y)
    norm = clf.module_[1]
    norm.running_mean.fill_(3.0)
    norm.running_var.fill_(2.0)
    counted = int(norm.num_batches_tracked)
    clf.set_params(max_epochs=1).partial_fit(X, Y)

    mean, var = torch.full((8,), 3.0), torch.full((8,), 2.0)
    for images in torch.cat(list(clf.iter_inputs(X))).split(30):
        features = clf.module_[0](images).detach().transpose(0, 1).flatten(1)
        mean = 0.9 * mean + 0.1 * features.mean(1)
        var = 0.9 * var + 0.1 * features.var(1)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-5, atol=1e-5)
    assert int(norm.num_batches_tracked) == counted + 2
    assert norm.track_running_stats


def test_history_has_the_terms_in_use():
    split = ValidSplit(3, stratified=True)
    clf = classifier(alpha=0.5, beta=0.01, train_split=split, max_epochs=2).fit(X, NAMES)
    for phase in ("train", "valid"):
        for row in clf.history:
            total = row[f"{phase}_ce"] + 0.5 * row[f"{phase}_inconsistency"]
            total += 0.01 * row[f"{phase}_norm"]
            assert row[f"{phase}_loss"] == pytest.approx(total, rel=1e-5)
    for alpha, beta, terms in ((0, 0, ()), (1, 0, ("inconsistency",)), (0, 1, ("norm",))):
        row = classifier(alpha=alpha, beta=beta).fit(X, Y).history[-1]
        present = {name for name in ("ce", "inconsistency", "norm") if f"train_{name}" in row}
        assert present == {"ce", *terms}
        assert not any(name.startswith("valid_") for name in row)


def test_validation_is_in_eval_mode_on_the_same_views_each_epoch():
    # A network without running statistics: with lr=0 nothing changes but the augmentation.
    options = {"lr": 0.0, "train_split": ValidSplit(3), "max_epochs": 3, "target_layer": "mix"}
    clf = classifier(RowsAsImages, **options).fit(X, Y)
    losses = [row["valid_loss"] for row in clf.history]
    assert len({row["train_loss"] for row in clf.history}) == 3
    assert losses[0] == losses[1] == losses[2]


def test_validation_loss_by_hand():
    valid = SkorchDataset(X[40:], NAMES[40:])
    clf = classifier(alpha=0.5, beta=0.01, train_split=predefined_split(valid)).fit(
        X[:40], NAMES[:40]
    )
    generator = torch.Generator().manual_seed(0)  # random_state, anew each epoch
    inputs = torch.cat(list(clf.iter_inputs(X[40:])))
    warp = ViewSampler()(20, size=(16, 16), generator=generator)
    maps, logits = clf.explain_inputs(inputs, method=GradCAM(relu=False))
    of_view, _ = clf.explain_inputs(warp(inputs), method=GradCAM(relu=False))
    cross_entropy = nn.functional.cross_entropy(logits, torch.from_numpy(Y[40:])).item()
    consistency = 1 - structural_similarity(warp(maps), of_view).mean().item()
    row = clf.history[-1]
    assert row["valid_ce"] == pytest.approx(cross_entropy, rel=1e-5)
    assert row["valid_inconsistency"] == pytest.approx(consistency, rel=1e-5)
    assert row["valid_norm"] == pytest.approx(maps.sum((1, 2)).mean().item(), rel=1e-5)


def test_training_raises_consistency():
    X, y = digits(360, n_class=4)
    train, test = slice(0, 240), slice(240, 360)
    # After fewer epochs, accuracies hang on the seed and the version of torch more than on alpha.
    options = {"image_size": 24, "max_epochs": 40, "lr": 0.02, "module__width": 16}
    options |= {"optimizer": torch.optim.Adam, "augment": None, "views": ViewSampler((0.5, 1.0))}
    scores = {}
    for alpha, beta in ((0, 0), (0.5, 1e-4)):
        clf = classifier(alpha=alpha, beta=beta, **options).fit(X[train], y[train])
        scores[alpha] = (consistency_score(clf, X[test]), clf.score(X[test], y[test]))
    assert scores[0.5][0] > scores[0][0] + 0.15
    assert scores[0.5][1] > scores[0][1] - 0.1


def test_view_target_shared_explains_the_images_class(monkeypatch):
    seen = {}
    original = Step._maps

    def spy(self, logits, classes, **options):
        seen.setdefault(choice, []).append((logits.argmax(1), classes))
        return original(self, logits, classes, **options)

    monkeypatch.setattr(Step, "_maps", spy)
    for choice in ("predicted", "shared"):
        classifier(view_target=choice, max_epochs=3, batch_size=60).fit(X, Y)
    for predictions, classes in seen["predicted"]:
        assert torch.equal(predictions, classes)
    image_passes, view_passes = seen["shared"][::2], seen["shared"][1::2]
    for (predicted, explained), (_, on_view) in zip(image_passes, view_passes, strict=True):
        assert torch.equal(predicted, explained) and torch.equal(on_view, predicted)
    assert any(not torch.equal(logits, classes) for logits, classes in view_passes)


def test_augmentations():
    plain = classifier(augment=None, alpha=0, beta=0).fit(X, Y)
    crops = classifier(alpha=0, beta=0).fit(X, Y)
    unchanged = classifier(augment=lambda images: images, alpha=0, beta=0).fit(X, Y)
    assert torch.equal(weights(plain), weights(unchanged))
    assert not torch.equal(weights(plain), weights(crops))
    seen = []
    classifier(augment=lambda images: (seen.append(images), images)[1]).fit(X, Y)
    assert len(seen) == len(X) and seen[0].shape == (1, 1, 16, 16)  # image by image
    assert all(batch.min() >= 0 and batch.max() <= 1 for batch in seen)
    with pytest.raises(ValueError, match="augment must return"):
        classifier(augment=lambda images: images[:, :, 1:]).fit(X, Y)


# Schedules of the weights


def test_a_schedule_is_one_weight_after_the_other():
    alphas, betas = [0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 1e-3, 2e-3]
    scheduled = classifier(
        alpha=lambda epoch: alphas[epoch], beta=lambda epoch: betas[epoch], max_epochs=4
    ).fit(X, Y)
    by_hand = classifier(max_epochs=1)
    for alpha, beta in zip(alphas, betas, strict=True):
        by_hand.set_params(alpha=alpha, beta=beta).partial_fit(X, Y)
    assert torch.equal(weights(scheduled), weights(by_hand))
    terms = [{"train_inconsistency", "train_norm"} & row.keys() for row in scheduled.history]
    assert terms == [set(), {"train_inconsistency"}, *[{"train_inconsistency", "train_norm"}] * 2]


def test_a_schedule_goes_on_where_it_was():
    once = classifier(alpha=WarmUp(1.0, epochs=3), max_epochs=4).fit(X, Y)
    twice = classifier(alpha=WarmUp(1.0, epochs=3), max_epochs=2).fit(X, Y).partial_fit(X, Y)
    assert torch.equal(weights(once), weights(twice))
    constant = classifier(alpha=1.0, max_epochs=4).fit(X, Y)
    assert not torch.equal(weights(once), weights(constant))


def test_schedules_are_searched():
    grid = {"alpha": [0.0, WarmUp(1.0, epochs=2)]}
    search = GridSearchCV(classifier(beta=0), grid, cv=2, scoring="accuracy").fit(X, Y)
    assert search.cv_results_["params"][1]["alpha"] == WarmUp(1.0, epochs=2)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "much"])
def test_a_schedule_of_no_weights(weight):
    with pytest.raises(ValueError, match="that alpha returns for epoch 0 must be a finite number"):
        classifier(alpha=lambda epoch: weight).fit(X, Y)


def test_a_network_with_auxiliary_outputs():
    clf = classifier(TupleNet, target_layer="net.5", train_split=ValidSplit(3)).fit(X, Y)
    assert clf.predict_proba(X).shape == (60, 3)
    assert clf.explain(X[:2]).shape == (2, 16, 16)


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t"])
@pytest.mark.slow
def test_transformers_train(name):
    clf = classifier(name, image_size=64, batch_size=4).fit(X[:8], Y[:8])
    assert np.isfinite(clf.history[-1, "train_loss"])
    assert clf.history[-1, "train_inconsistency"] is not None
    assert np.isfinite(clf.explain(X[:2])).all()


@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"batch_accumulation": 3}])
def test_lbfgs_runs_the_closure_again(options):
    """Against torch's own, on the same loss in a loop written out."""
    weights_of_terms = {"alpha": 0.7, "beta": 1e-3}
    clf = classifier(
        **{**FIXED, **weights_of_terms, **options},
        callbacks=[("gradients", Gradients())],
        optimizer=torch.optim.LBFGS,
        optimizer__max_iter=4,
        batch_size=60,
    )
    clf.set_params(max_epochs=0, lr=0.1).fit(X, Y)
    model, images = copy.deepcopy(clf.module_), torch.cat(list(clf.iter_inputs(X)))
    clf.set_params(max_epochs=1).partial_fit(X, Y)

    optimizer, warp = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4), OneView()(len(X))
    loss, phi, found = ConsistentCAMLoss(**weights_of_terms), GradCAM(relu=False), []

    def closure():
        optimizer.zero_grad()
        with record(model, model[3], trunk=True) as tape:

            def explain(x):
                logits = model(x)
                return logits, phi(target_scores(logits), tape.activations, create_graph=True)

            logits, maps = explain(images)
            explained = Explanations(maps, explain(warp(images))[1], warp, size=(16, 16))
            cross_entropy = nn.functional.cross_entropy(logits, torch.from_numpy(Y))
            total = loss(cross_entropy, explained).total
            total.backward()
        found.append((total.item(), cross_entropy.item()))
        return total

    optimizer.step(closure)
    gradients = dict(clf.callbacks_)["gradients"].seen
    assert len(gradients) == len(found) >= 3
    # The loss is that of the first run, as skorch has it; its terms are those of the last.
    assert clf.history[-1, "train_loss"] == pytest.approx(found[0][0], rel=1e-6)
    assert clf.history[-1, "train_ce"] == pytest.approx(found[-1][1], rel=1e-6)
    torch.testing.assert_close(weights(clf), weights_of(model), rtol=1e-7, atol=1e-10)


def test_adam_does_not_get_sgds_defaults():
    clf = classifier(optimizer=torch.optim.Adam, lr=1e-3).fit(X, Y)
    assert clf.optimizer_.defaults["weight_decay"] == 0
    sgd = classifier().fit(X, Y).optimizer_.defaults
    assert (sgd["momentum"], sgd["weight_decay"]) == (0.9, 1e-4)
    own = classifier(optimizer__momentum=0.5).fit(X, Y).optimizer_.defaults
    assert (own["momentum"], own["weight_decay"]) == (0.5, 1e-4)


def test_learning_rate_steps_down_also_when_fitted_again():
    clf = classifier(alpha=0, beta=0, max_epochs=5, callbacks__lr_scheduler__step_size=2)
    for _ in range(2):
        clf.fit(X, Y)
        rates = [group["lr"] for group in clf.optimizer_.param_groups]
        assert_allclose(rates, [0.05 * 0.1**2])
    other = classifier(alpha=0, beta=0, callbacks=[LRScheduler("StepLR", step_size=1, gamma=0.5)])
    assert_allclose(other.fit(X, Y).optimizer_.param_groups[0]["lr"], 0.025)
    never = classifier(alpha=0, beta=0, max_epochs=31, callbacks__lr_scheduler=None).fit(
        X[:4], Y[:4]
    )
    assert_allclose(never.optimizer_.param_groups[0]["lr"], 0.05)


def test_no_graph_outlives_its_batch():
    clf = classifier(train_split=ValidSplit(3), callbacks=[EpochScoring("accuracy")]).fit(X, Y)
    assert clf._step is None
    step = clf.validation_step((torch.rand(4, 1, 16, 16), torch.zeros(4, dtype=torch.int64)))
    assert not step["loss"].requires_grad and not step["y_pred"].requires_grad
    assert all(not module._forward_hooks for module in clf.module_.modules())


# Progress


def test_verbose_zero_is_silent(capfd):
    clf = classifier(verbose=0).fit(X, Y)
    clf.explain(X)
    assert capfd.readouterr() == ("", "")
    classifier(verbose=1).fit(X, Y)
    out, err = capfd.readouterr()
    assert "train_inconsistency" in out and not err  # there is no terminal for a bar


# Labels


@pytest.mark.parametrize(
    "labels", [NAMES, NAMES.astype(object), list(NAMES), Y * 10 - 7, Y.astype(np.uint8), Y == 1]
)
def test_labels_of_any_kind_come_back(labels):
    clf = classifier(max_epochs=15, alpha=0, beta=0, augment=None).fit(X, labels)
    assert_array_equal(clf.classes_, np.unique(labels))
    predicted = clf.predict(X)
    assert np.isin(predicted, np.unique(labels)).all()
    assert clf.score(X, labels) == accuracy_score(labels, predicted) > 0.6


def test_partial_fit_as_in_scikit_learn():
    clf = classifier()
    clf.partial_fit(X[:4], NAMES[:4][:4], classes=np.unique(NAMES))
    assert clf.predict_proba(X).shape == (60, 3)
    clf.partial_fit(X[4:], NAMES[4:])
    assert_array_equal(clf.classes_, ["nought", "one", "two"])
    clf.partial_fit(X[Y < 2], NAMES[Y < 2], classes=["two", "one", "nought"])
    assert len(clf.history) == 3
    with pytest.raises(ValueError, match="differs from the classes of the first call"):
        clf.partial_fit(X, NAMES, classes=["one", "two"])
    with pytest.raises(ValueError, match=r"not seen in fit: \['three'\]"):
        clf.partial_fit(X[:1], ["three"])


def test_classes_may_be_given_in_any_order():
    clf = classifier(
        max_epochs=15, alpha=0, beta=0, augment=None, classes=["x", *np.unique(NAMES)[::-1]]
    )
    clf.fit(X, NAMES)
    assert_array_equal(clf.classes_, ["nought", "one", "two", "x"])
    assert clf.score(X, NAMES) > 0.6
    with pytest.raises(ValueError, match="not seen"):
        classifier(classes=["one", "two"]).fit(X, NAMES)


def test_two_and_two_epochs_are_four():
    whole = classifier(DropoutNet, max_epochs=4).fit(X, Y)
    pieces = classifier(DropoutNet, max_epochs=2).fit(X, Y).partial_fit(X, Y)
    assert torch.equal(weights(whole), weights(pieces))
    warm = classifier(DropoutNet, max_epochs=2, warm_start=True).fit(X, Y).fit(X, Y)
    assert torch.equal(weights(whole), weights(warm))


def test_scoring_callbacks_compare_labels_with_labels():
    callbacks = [
        EpochScoring("accuracy", name="cached", lower_is_better=False),
        EpochScoring("accuracy", name="uncached", use_caching=False, lower_is_better=False),
        EpochScoring("neg_log_loss", name="log_loss", lower_is_better=False),
        EpochScoring(
            get_scorer("consistency"), name="consistent", use_caching=False, lower_is_better=False
        ),
    ]
    split = predefined_split(SkorchDataset(X[30:], NAMES[30:]))
    # The statistics that the callbacks saw are to be those in the end.
    options = {"max_epochs": 1, "train_split": split, "recalibrate": False}
    clf = classifier(callbacks=callbacks, **options).fit(X[:30], NAMES[:30])
    row = clf.history[-1]
    expected = accuracy_score(NAMES[30:], clf.predict(X[30:]))
    assert row["cached"] == row["uncached"] == pytest.approx(expected)
    assert row["log_loss"] == pytest.approx(
        -log_loss(NAMES[30:], clf.predict_proba(X[30:])), rel=1e-5
    )
    assert row["consistent"] == pytest.approx(consistency_score(clf, X[30:]), rel=1e-5)


def test_parameters_of_callbacks_can_be_set_before_fit():
    clf = classifier(callbacks=[("acc", EpochScoring("accuracy", lower_is_better=False))])
    clf.set_params(callbacks__acc__name="right", callbacks__lr_scheduler__step_size=1)
    clf.set_params(train_split=ValidSplit(3)).fit(X, NAMES)
    assert 0 <= clf.history[-1, "right"] <= 1
    assert_allclose(clf.optimizer_.param_groups[0]["lr"], 0.005)


# Randomness


def test_the_same_seed_gives_the_same_weights_and_maps():
    one, two = (classifier(DropoutNet).fit(X, Y) for _ in range(2))
    assert torch.equal(weights(one), weights(two))
    assert_array_equal(one.explain(X), two.explain(X))
    other = classifier(DropoutNet, random_state=1).fit(X, Y)
    assert not torch.equal(weights(one), weights(other))


def test_fitting_again_gives_the_same_weights():
    clf = classifier(DropoutNet).fit(X, Y)
    first = weights(clf)
    assert torch.equal(first, weights(clf.fit(X, Y)))


def test_the_callers_generators_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for seed in (0, None, np.random.RandomState(0)):
        clf = classifier(DropoutNet, random_state=seed, train_split=ValidSplit(3)).fit(X, Y)
        clf.partial_fit(X, Y)
        clf.predict(X), clf.explain(X), consistency_score(clf, X)
    assert torch.equal(before, torch.get_rng_state())
    assert_array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


def test_no_seed_differs_and_a_random_state_moves_on():
    assert not torch.equal(
        weights(classifier(random_state=None).fit(X, Y)),
        weights(classifier(random_state=None).fit(X, Y)),
    )
    state = np.random.RandomState(0)
    first, second = (classifier(random_state=state).fit(X, Y) for _ in range(2))
    assert not torch.equal(weights(first), weights(second))
