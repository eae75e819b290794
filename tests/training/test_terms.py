"""Terms of one's own, and the masks that some need: against hand-worked numbers."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerated import INK, MASKS, SMALL, Inside, OneView, Plain, Y
from accelerated import LARGE as X
from PIL import Image
from skimage.metrics import structural_similarity as skimage_ssim
from sklearn.model_selection import KFold, cross_validate
from skorch.callbacks import EpochScoring
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import ValidSplit
from skorch.helper import predefined_split
from small_networks import Gradients
from torch import nn
from torchvision.transforms.v2 import functional

from sklcam import ConsistentCAMClassifier
from sklcam.cam import GradCAM
from sklcam.training import (
    Balanced,
    ConsistentCAMLoss,
    Explanations,
    Term,
    ViewSampler,
    WarmUp,
    Warp,
)

ANNOTATED = np.array([mask is not None for mask in MASKS])


@dataclass(frozen=True)
class Spread(Term):
    """How far a map is from the batch's mean one."""

    weight: object = 1.0
    name = "spread"
    couples_images = True

    def values(self, explained):
        return (explained.scaled - explained.scaled.mean(0)).square().mean((1, 2))


class Watching(Term):
    """Keeps what it is given."""

    name = "watching"
    needs = frozenset({"view", "masks"})

    def __init__(self):
        self.seen = []

    def values(self, explained):
        self.seen.append((explained.masks, explained.masks_of_view, explained.annotated))
        return explained.maps.mean((1, 2))

    def __deepcopy__(self, memo):
        return self


class Watched(Plain):
    """Keeps the images that it is trained on."""

    seen: tuple = ()

    def forward(self, x):
        if self.training and len(x) > 1:
            type(self).seen += (x[:, 0].float(),)
        return super().forward(x)


def classifier(module=Plain, **options):
    defaults = {
        "image_size": 16,
        "target_layer": "3",
        "alpha": 0,
        "beta": 0,
        "terms": [Inside()],
        "augment": None,
        "max_epochs": 1,
        "batch_size": 20,
        "lr": 0.05,
        "verbose": 0,
        "random_state": 0,
        "device": "cpu",
    }
    return ConsistentCAMClassifier(module, **{**defaults, **options})


def inside(maps):
    """The values of ``Inside``, image by image; 0 for images without a mask."""
    return np.array(
        [
            0.0 if mask is None else 1 - map_[np.asarray(mask) > 0].sum() / np.sum(mask)
            for map_, mask in zip(maps, MASKS, strict=True)
        ]
    )


# Masks


MODES = {
    "whole": {},
    "in parts": {"batch_accumulation": 3},
    "low memory": {"memory": "low", "alpha": 0.5},
    "low memory, in parts": {"memory": "low", "alpha": 0.5, "batch_accumulation": 7},
    "in order": {"iterator_train__shuffle": False},
    "workers": {"iterator_train__num_workers": 2},
    "balanced": {"terms": [Inside("auto")]},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_term_gets_each_images_own_mask(mode):
    clf = classifier(lr=0.0, **MODES[mode]).fit(X, Y, masks=MASKS)
    expected = inside(clf.explain(X, method=GradCAM(relu=False)))
    assert np.ptp(expected[ANNOTATED]) > 0.1
    expected = expected[ANNOTATED].mean()
    assert clf.history[-1, "train_inside"] == pytest.approx(expected, rel=1e-5)


def by_hand(model, images, labels, weight, masks, annotated):
    """Cross-entropy and ``Inside``, written out for a network that is differentiated as a whole."""
    kept = []
    handle = model[3].register_forward_hook(lambda _, __, out: kept.append(out))
    logits = model(images)
    handle.remove()
    score = logits.gather(1, logits.argmax(1, keepdim=True)).sum()
    (gradient,) = torch.autograd.grad(score, kept[0], create_graph=True)
    raw = torch.einsum("nk,nkuv->nuv", gradient.mean((2, 3)), kept[0])
    raw = nn.functional.interpolate(raw[:, None], (16, 16), mode="bilinear")[:, 0]
    low, high = raw.amin((1, 2), True), raw.amax((1, 2), True)
    scaled = ((raw - low) / (high - low))[annotated]
    some = masks[annotated]
    values = 1 - (some * scaled).sum((1, 2)) / some.sum((1, 2))
    cross_entropy = nn.functional.cross_entropy(logits, labels)
    return cross_entropy + weight * values.sum() / len(images)


SPREAD_OFF = {"terms": [Inside(2.0), Spread(0)]}


@pytest.mark.parametrize("more", [{}, {"batch_accumulation": 4}, {"memory": "low"}, SPREAD_OFF])
def test_the_gradient_is_that_of_the_annotated_images(more):
    options = {"terms": [Inside(2.0)], "batch_size": 60, "iterator_train__shuffle": False, **more}
    clf = classifier(max_epochs=0, **options).fit(X, Y, masks=MASKS)
    images = torch.cat(list(clf.iter_inputs(X)))
    masks, annotated = torch.from_numpy(INK), torch.from_numpy(ANNOTATED)
    loss = by_hand(clf.module_, images, torch.from_numpy(Y), 2.0, masks, annotated)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, clf.module_.parameters())])
    clf = classifier(callbacks=[("gradients", Gradients())], **options).fit(X, Y, masks=MASKS)
    (found,) = dict(clf.callbacks_)["gradients"].seen
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)
    assert clf.history[-1, "train_loss"] == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"batch_accumulation": 3}, {"memory": "low"}])
@pytest.mark.parametrize("augment", ["auto", None, ViewSampler((0.3, 0.9), flip=1.0)])
def test_masks_are_resized_and_warped_as_their_images(augment, options):
    """The images are pictures of their masks: what the network sees, the term must get."""
    Watched.seen = ()
    watching = Watching()
    options = {"terms": [watching], "augment": augment, "mean": 0.0, "std": 1.0, **options}
    pictures = (SMALL > 0.5).astype(np.float32)
    classifier(Watched, **options).fit(pictures, Y, masks=(SMALL * 16 > 8).astype(np.int64))
    # The trunk runs on a view once more where memory is low; terms run on parts of a batch.
    images = torch.cat(Watched.seen[:: 3 if "memory" in options else 2])
    views = torch.cat(Watched.seen[1 :: 3 if "memory" in options else 2])
    masks, of_views, annotated = map(torch.cat, zip(*watching.seen, strict=True))
    assert annotated.all() and len(masks) == 60
    torch.testing.assert_close(masks.float(), images)
    torch.testing.assert_close(of_views.float(), views)
    if augment is not None:
        assert not torch.equal(masks[:, :, 0], torch.zeros_like(masks[:, :, 0]))


def test_masks_of_images_of_all_sizes():
    sizes = [(20 + i % 5, 30 - i % 7) for i in range(60)]
    pictures = [
        functional.resize(torch.from_numpy(image)[None], list(size), antialias=True)[0] > 0.5
        for image, size in zip(X, sizes, strict=True)
    ]
    files = [Image.fromarray(255 * picture.numpy().astype(np.uint8)) for picture in pictures]
    watching, Watched.seen = Watching(), ()
    options = {"terms": [watching], "resize": "center_crop", "mean": 0.0, "std": 1.0}
    clf = classifier(Watched, augment="auto", **options)
    clf.fit(files, Y, masks=pictures)
    masks = torch.cat([each for each, _, _ in watching.seen]).float()
    images = torch.cat(Watched.seen[::2])
    assert masks.shape == (60, 16, 16)
    torch.testing.assert_close(masks, images, rtol=0, atol=1.5 / 255)  # bytes are rounded
    pictures[7] = pictures[7][:, :-1]
    with pytest.raises(ValueError, match=r"masks\[7\] must be of its image's size, \(22, 30\)"):
        clf.fit(files, Y, masks=pictures)


FORMS = {
    "bool array": INK,
    "bytes": INK.astype(np.uint8) * 255,
    "labels": INK.astype(np.int64) * -3,
    "float": INK.astype(np.float64),
    "tensor": torch.from_numpy(INK),
    "list of tensors": list(torch.from_numpy(INK).float()),
    "list of lists": [mask.tolist() for mask in INK],
}


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_any_form(form):
    expected = classifier().fit(X, Y, masks=list(INK)).history[-1, "train_inside"]
    assert classifier().fit(X, Y, masks=FORMS[form]).history[-1, "train_inside"] == expected


def test_soft_masks_are_shares_of_pixels():
    watching = Watching()
    soft = X * 0.5
    classifier(terms=[watching], iterator_train__shuffle=False).fit(X, Y, masks=soft)
    masks = torch.cat([each for each, _, _ in watching.seen])
    torch.testing.assert_close(masks, torch.from_numpy(soft))


def test_masks_follow_their_images_into_folds_and_validation():
    folds = KFold(3, shuffle=True, random_state=0)
    clf = classifier(lr=0.0, batch_size=40)
    found = cross_validate(
        clf, X, Y, cv=folds, params={"masks": MASKS}, return_estimator=True, error_score="raise"
    )
    for (train, _), fitted in zip(folds.split(X), found["estimator"], strict=True):
        rows = train[ANNOTATED[train]]
        expected = inside(fitted.explain(X, method=GradCAM(relu=False)))[rows].mean()
        assert fitted.history[-1, "train_inside"] == pytest.approx(expected, rel=1e-5)
    scoring = EpochScoring("accuracy", lower_is_better=False, on_train=True)
    split = ValidSplit(3, stratified=True)
    clf = classifier(lr=0.0, batch_size=60, train_split=split, callbacks=[scoring])
    clf.fit(X, Y, masks=MASKS)
    row = clf.history[-1]
    valid = split(X, Y)[1].indices
    n_valid = ANNOTATED[valid].sum()
    both = (ANNOTATED.sum() - n_valid) * row["train_inside"] + n_valid * row["valid_inside"]
    expected = inside(clf.explain(X, method=GradCAM(relu=False))).sum()
    assert both == pytest.approx(expected, rel=1e-5)
    assert 0 <= row["accuracy"] <= 1


def test_a_validation_set_without_masks_leaves_the_term_out():
    split = predefined_split(SkorchDataset(X[40:], Y[40:]))
    clf = classifier(train_split=split).fit(X[:40], Y[:40], masks=MASKS[:40])
    row = clf.history[-1]
    assert "valid_inside" not in row and row["valid_loss"] == pytest.approx(row["valid_ce"])


def test_masks_that_no_term_needs_are_not_read():
    plain = classifier(terms=[]).fit(X, Y)
    given = classifier(terms=[]).fit(X, Y, masks="not masks")
    assert given.history[-1, "train_loss"] == plain.history[-1, "train_loss"]


def test_training_goes_on_with_masks():
    whole = classifier(max_epochs=2).fit(X, Y, masks=MASKS)
    parts = classifier().fit(X, Y, masks=MASKS).partial_fit(X, Y, masks=MASKS)
    assert whole.history[:, "train_inside"] == parts.history[:, "train_inside"]
    with pytest.raises(ValueError, match="'inside' needs masks"):
        parts.partial_fit(X, Y)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "The term 'inside' needs masks, and there are none. Give fit masks="),
        ("masks", "masks must be an array of shape .* got a str"),
        (MASKS[:59], "one entry for each of 60 images; got 59"),
        (INK[:, :-1], r"masks\[0\] must be of its image's size, \(16, 16\); its shape is \(15, 16"),
        (INK[..., None], r"masks\[0\] must be of shape \(height, width\); got shape \(16, 16, 1\)"),
        ([*MASKS[:5], "mask", *MASKS[6:]], r"masks\[5\] must be of shape"),
        (X * 2, r"masks\[\d+\] must be bool, an integer .* got float64 beyond \[0, 1\]"),
        (np.where(INK, np.nan, 0), "beyond"),
        (INK.astype(complex), "got complex128"),
    ],
)
def test_masks_that_do_not_fit_are_refused_at_the_door(masks, message):
    clf = classifier()
    with pytest.raises(ValueError, match=message):
        clf.fit(X, Y, masks=masks)
    assert not clf.initialized_


def test_masks_cannot_follow_an_augmentation_that_is_not_known():
    with pytest.raises(
        ValueError, match=r'augment is a.* Set augment to "auto", None or a ViewSampler'
    ):
        classifier(augment=lambda images: images).fit(X, Y, masks=MASKS)


# Terms


def test_terms_of_ones_own_come_on_top():
    options = {"alpha": 0.5, "beta": 1e-3, "terms": [Inside(2.0), Spread(3.0)]}
    split = ValidSplit(3, stratified=True)
    clf = classifier(train_split=split, max_epochs=2, **options).fit(X, Y, masks=MASKS)
    weights = {"ce": 1, "inconsistency": 0.5, "norm": 1e-3, "inside": 2.0, "spread": 3.0}
    valid = ANNOTATED[split(X, Y)[1].indices]
    shares = {"train": (ANNOTATED.sum() - valid.sum()) / 40, "valid": valid.mean()}
    for row in clf.history:
        for phase, share in shares.items():
            weights["inside"] = 2.0 * share  # the loss has zero for images without a mask
            total = sum(weight * row[f"{phase}_{name}"] for name, weight in weights.items())
            assert row[f"{phase}_loss"] == pytest.approx(total, rel=1e-5)


def some_explanations(n=5, size=(14, 16), masks=None):
    torch.manual_seed(0)
    raw, raw_of_view = torch.randn(2, n, 3, 4, dtype=torch.float64).requires_grad_()
    warp = ViewSampler()(n, size=size)
    return Explanations(raw, raw_of_view, warp, masks=masks, size=size)


class Writing(Spread):
    """Works in place, on maps that it takes for its own."""

    needs = frozenset({"view"})

    def values(self, explained):
        return explained.scaled.mul_(0).sum((1, 2)) + explained.scaled_of_view.mul_(0).sum((1, 2))


def test_what_a_term_writes_into_maps_no_other_sees():
    raw = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    explained = Explanations(*raw, Warp.identity(4), size=(16, 16))
    alone, beside = (
        ConsistentCAMLoss(terms=terms)(torch.tensor(0.7), explained) for terms in ([], [Writing()])
    )
    torch.testing.assert_close(beside.total, alone.total)
    found = (torch.autograd.grad(of.total, raw)[0] for of in (alone, beside))
    torch.testing.assert_close(*found)


def test_terms_that_couple_images_see_them_all():
    explained = some_explanations()
    values = ConsistentCAMLoss(0, 0, terms=[Spread()])(torch.tensor(0.0), explained)
    scaled = explained.scaled
    expected = torch.stack([(map_ - scaled.mean(0)).square().mean() for map_ in scaled]).mean()
    torch.testing.assert_close(values.terms["spread"], expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(each, explained.maps)[0] for each in (values.total, expected))
    )


def test_terms_that_do_not_are_given_a_part_at_a_time():
    sizes = []

    class Counting(Inside):
        def values(self, explained):
            sizes.append(len(explained))
            assert explained.maps_of_view is None  # it has not asked for it
            return super().values(explained)

    explained = some_explanations(n=10, masks=torch.rand(10, 14, 16))
    ConsistentCAMLoss(0, 0, terms=[Counting()])(torch.tensor(0.0), explained)
    assert sizes == [3, 3, 3, 1]


def test_images_without_a_mask_have_no_part_in_the_gradient():
    masks = torch.zeros(5, 14, 16, dtype=torch.float64)
    masks[[0, 3], 2:9, 3:12] = 1
    annotated = torch.tensor([True, False, False, True, False])
    explained = some_explanations(masks=masks)
    explained = Explanations(explained.maps, masks=masks, annotated=annotated, size=(14, 16))
    values = ConsistentCAMLoss(0, 0, terms=[Inside()])(torch.tensor(0.0), explained)
    (gradient,) = torch.autograd.grad(values.total, explained.maps)
    assert torch.isfinite(gradient).all() and torch.isfinite(values.total)
    assert torch.equal(gradient.abs().sum((1, 2)) > 0, annotated)


def test_the_masks_of_a_view_are_warped_as_it_is():
    masks = torch.zeros(1, 12, 12)
    masks[0, :, :3] = 1
    warp = Warp.from_crops(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), flip=torch.tensor([True]))
    explained = Explanations(torch.rand(1, 4, 4), torch.rand(1, 4, 4), warp, masks)
    assert torch.equal(explained.masks_of_view, masks.flip(-1))


def test_auto_is_the_terms_own_balance():
    options = {"max_epochs": 2, "lr": 0.02}
    auto, balanced = (
        classifier(terms=[Inside(weight)], **options).fit(X, Y, masks=MASKS).history
        for weight in ("auto", Balanced(0.1))
    )
    for name in ("train_loss", "train_inside", "train_inside_weight"):
        assert auto[:, name] == balanced[:, name]
    numbers = classifier(terms=[Inside(1.0)], **options).fit(X, Y, masks=MASKS).history
    assert auto[-1, "train_inside_weight"] > 0 and "train_inside_weight" not in numbers[-1]


def test_the_balance_of_a_term_by_hand():
    """Gradients of cross-entropy and of the term at the activations, written out."""
    torch.manual_seed(0)
    head = nn.Linear(6, 3).double()
    activations = torch.rand(4, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    logits = head(activations.mean((2, 3)))
    maps = torch.einsum("nk,nkuv->nuv", head.weight[logits.argmax(1)], activations) / 25
    cross_entropy = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
    explained = Explanations(maps, size=(12, 12))
    loss = ConsistentCAMLoss(0, 0, terms=[Spread(Balanced(0.4))])
    values = loss(cross_entropy, explained, activations=activations)
    sizes = [
        torch.autograd.grad(each, activations, retain_graph=True)[0].norm()
        for each in (cross_entropy, Spread().values(explained).mean())
    ]
    torch.testing.assert_close(values.weights, {"spread_weight": 0.4 * sizes[0] / sizes[1]})


def test_a_schedule_of_a_term():
    clf = classifier(terms=[Spread(WarmUp(4.0, epochs=2, wait=1))], max_epochs=3).fit(X, Y)
    assert "train_spread" not in clf.history[0]
    for row, weight in zip(clf.history[1:], (2.0, 4.0), strict=True):
        total = row["train_ce"] + weight * row["train_spread"]
        assert row["train_loss"] == pytest.approx(total, rel=1e-5)
    by_hand = ConsistentCAMLoss(WarmUp(4.0, epochs=2), 0, epoch=0)
    explained = some_explanations(n=2)
    maps, of_view = explained.warp(explained.scaled).detach(), explained.scaled_of_view.detach()
    ssim = [
        skimage_ssim(
            a.numpy(), b.numpy(), data_range=1.0, gaussian_weights=True, use_sample_covariance=False
        )
        for a, b in zip(maps, of_view, strict=True)
    ]
    total = by_hand(torch.tensor(0.0), explained).total.item()
    assert total == pytest.approx(2.0 * (1 - np.mean(ssim)), rel=1e-5)


def test_a_term_that_needs_a_view_is_enough_for_one():
    @dataclass(frozen=True)
    class Difference(Term):
        name = "difference"
        needs = frozenset({"view"})

        def values(self, explained):
            return (explained.warp(explained.scaled) - explained.scaled_of_view).abs().mean((1, 2))

    runs = [
        classifier(
            terms=[Difference()], memory=memory, views=OneView(), callbacks=[("g", Gradients())]
        ).fit(X, Y)
        for memory in ("normal", "low")
    ]
    normal, low = (torch.stack(dict(clf.callbacks_)["g"].seen) for clf in runs)
    torch.testing.assert_close(low, normal, rtol=1e-8, atol=1e-12)
    assert runs[0].history[-1, "train_difference"] > 0


class Named(Spread):
    """A term whose name is somebody else's."""

    def __init__(self, name, weight=1.0, needs=()):
        vars(self).update(name=name, weight=weight, needs=frozenset(needs))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (3, "terms"),
        ([3], r"terms must be sklcam.training.Term objects; got an int, 3"),
        ([Inside], "terms must be sklcam.training.Term objects; got"),
        ([Spread(), Spread()], "already has a column 'spread'"),
        ([Named("ce")], "already has a column 'ce'"),
        ([Named("alpha")], "already has a column 'alpha'"),
        ([Named("norm")], "already has a column 'norm'"),
        ([Named("")], "name must be a str; got ''"),
        (
            [Named("one", needs=["boxes"])],
            r"needs may hold view, masks, labels, pixels; got \['boxes'\]",
        ),
        ([Spread(-1)], "spread_weight must be a finite number >= 0"),
        ([Spread("much")], "spread_weight must be a finite number >= 0"),
    ],
)
def test_terms_that_do_not_fit(terms, message):
    with pytest.raises(ValueError, match=message):
        classifier(terms=terms).fit(X, Y)
    with pytest.raises(ValueError, match=message):
        ConsistentCAMLoss(terms=terms)


@pytest.mark.parametrize("returned", [torch.tensor(1.0), torch.zeros(3), 1.0])
def test_a_term_of_no_values(returned):
    class Wrong(Spread):
        def values(self, explained):
            return returned

    with pytest.raises(ValueError, match=r"Wrong\.values must return a number for each of 20"):
        classifier(terms=[Wrong()]).fit(X, Y)


def test_terms_go_through_copies_and_files():
    clf = classifier(terms=[Inside(0.5)]).fit(X, Y, masks=MASKS)
    copied = pickle.loads(pickle.dumps(clf))
    assert copied.terms == [Inside(0.5)]
    copied.partial_fit(X, Y, masks=MASKS)
    clf.partial_fit(X, Y, masks=MASKS)
    assert copied.history[:, "train_inside"] == clf.history[:, "train_inside"]


def test_explanations_that_do_not_fit():
    maps = torch.rand(2, 4, 4)
    with pytest.raises(ValueError, match=r"There are 2 maps and 3 masks\. Give one mask per map"):
        Explanations(maps, masks=torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="masks must be a floating-point Tensor"):
        Explanations(maps, masks=torch.ones(2, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="warp must be a Warp for each of the 2 images; got None"):
        Explanations(maps, maps)
    with pytest.raises(ValueError, match="annotated and one of each map must be of one shape"):
        Explanations(maps, annotated=torch.tensor([True]))
