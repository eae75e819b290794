"""Losses on masks and boxes: numbers by hand, finite differences, and whose boxes they are."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn
import torch
from accelerated import INK, MASKS, OneView, Plain, Y
from accelerated import LARGE as X
from by_hand import (
    Area,
    classifier,
    explained,
    first_gradient,
    gradient_of,
    inconsistency,
    resized,
    untrained,
)
from PIL import Image
from sklearn.model_selection import GridSearchCV
from skorch.dataset import ValidSplit
from torch import nn
from torch.nn import functional as F

from sklcam.networks.readouts import readout
from sklcam.training import (
    ConsistentCAMLoss,
    Energy,
    Explanations,
    GradMask,
    RightReasons,
    Term,
    ViewSampler,
)
from sklcam.training.terms import Pixels

LABELS = torch.from_numpy(Y)
ANNOTATED = torch.tensor([mask is not None for mask in MASKS])
INSIDE = torch.from_numpy(INK).double()
TWO = Y > 0


class OneLogit(Plain):
    def __init__(self):
        super().__init__(1)


# The numbers


def test_energy_by_hand():
    maps = torch.tensor(
        [[[4.0, -2.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]
    )
    masks = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]]).expand(3, 2, 2)
    # (0.5 * 2 + 0 + 2) / 8; nothing to explain; (0.5 + 1 + 1) / 4
    found = Energy().values(Explanations(0 * maps, of_labels=maps, masks=masks))
    assert found.tolist() == [0.375, 1.0, 0.625]


def linear(n_classes, task="multiclass"):
    """A network whose gradients are its weights."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_classes, 2 * 3 * 2, generator=generator, dtype=torch.float64)
    images = torch.randn(3, 2, 3, 2, generator=generator, dtype=torch.float64).requires_grad_()
    read = readout(task)
    scores = read.columns(images.flatten(1) @ weight.T)
    masks = torch.rand(3, 3, 2, generator=generator, dtype=torch.float64)
    maps = torch.zeros(3, 3, 2, dtype=torch.float64)
    return (
        weight,
        images,
        masks,
        Explanations(maps, masks=masks, pixels=Pixels(images, scores, read)),
    )


def off(masks, gradients):
    return (1 - masks)[:, None] * gradients.reshape(3, 2, 3, 2)


def test_right_reasons_of_a_linear_network():
    weight, images, masks, given = linear(4)
    p = (images.flatten(1) @ weight.T).softmax(1).detach()
    gradients = weight.sum(0) - 4 * p @ weight  # of the sum of log p_k
    expected = off(masks, gradients).square().sum((1, 2, 3))
    torch.testing.assert_close(RightReasons().values(given), expected)


def test_right_reasons_of_one_logit():
    weight, images, masks, given = linear(1, "binary")
    p = (images.flatten(1) @ weight.T).sigmoid().detach()
    expected = off(masks, (1 - 2 * p) * weight).square().sum((1, 2, 3))  # of log p + log(1 - p)
    torch.testing.assert_close(RightReasons().values(given), expected)


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_gradmask_of_a_linear_network(task):
    weight, _, masks, given = linear(2 if task == "multiclass" else 1, task)
    difference = weight[1] - weight[0] if task == "multiclass" else weight[0]
    expected = off(masks, difference.expand(3, -1)).abs().sum((1, 2, 3))
    torch.testing.assert_close(GradMask().values(given), expected)


def test_the_gradient_of_energy_is_finite_differences():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    masks = torch.rand(5, 12, 14, generator=generator, dtype=torch.float64)
    annotated = torch.tensor([True, False, True, True, False])
    loss = ConsistentCAMLoss(0, 0, terms=[Energy(2.0)])

    def total(of_labels):
        given = Explanations(
            maps.detach(), of_labels=of_labels, masks=masks, annotated=annotated, size=(12, 14)
        )
        return loss(torch.zeros((), dtype=torch.float64), given).total

    assert torch.autograd.gradcheck(total, (maps,))
    (gradient,) = torch.autograd.grad(total(maps), maps)
    assert torch.equal(gradient.abs().sum((1, 2)) > 0, annotated)


@pytest.mark.parametrize("term", [RightReasons(0.3), GradMask(0.3)])
def test_gradients_of_losses_at_the_pixels_are_finite_differences(term):
    torch.manual_seed(0)
    model, read = Plain(2), readout("multiclass")
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64).requires_grad_()
    masks = torch.rand(3, 8, 8, dtype=torch.float64)
    annotated = torch.tensor([True, False, True])
    loss = ConsistentCAMLoss(0, 0, terms=[term])

    def total():
        scores = model(images)
        given = Explanations(
            torch.zeros(3, 2, 2),
            masks=masks,
            annotated=annotated,
            pixels=Pixels(images, scores, read),
        )
        return loss(F.cross_entropy(scores, torch.tensor([0, 1, 1])), given).total

    gradient = gradient_of(total(), model)
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    for i in range(0, len(flat), len(flat) // 12):
        sides = []
        for step in (1e-6, -1e-6):
            moved = flat.clone()
            moved[i] += step
            nn.utils.vector_to_parameters(moved, model.parameters())
            sides.append(total().item())
        nn.utils.vector_to_parameters(flat, model.parameters())
        numeric = (sides[0] - sides[1]) / 2e-6
        assert gradient[i].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


# Steps


def by_hand(name, model, images, labels):
    """Cross-entropy and a mask loss of the annotated images, of all in the mean."""
    images = images.clone().requires_grad_()
    logits, of_labels = explained(model, images, labels)
    outside = 1 - INSIDE[: len(images)]
    if name == "energy":
        energy = resized(of_labels).abs()
        values = (outside * energy).sum((1, 2)) / energy.sum((1, 2))
    else:
        of = (
            logits.log_softmax(1).sum()
            if name == "rrr"
            else (logits[:, 0] - logits[:, 1]).abs().sum()
        )
        (gradients,) = torch.autograd.grad(of, images, create_graph=True)
        gradients = outside[:, None] * gradients
        values = (gradients.square() if name == "rrr" else gradients.abs()).sum((1, 2, 3))
    values = torch.where(ANNOTATED, values, 0.0)
    return F.cross_entropy(logits, labels), values.mean()


MODES = {
    "whole": {},
    "in parts": {"batch_accumulation": 3},
    "low memory": {"memory": "low"},
    "with the paper's term": {"alpha": 0.7, "views": OneView()},
    "that, in low memory": {"alpha": 0.7, "memory": "low", "views": OneView()},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["energy", "rrr", "gradmask"])
def test_the_step_of_a_mask_loss(name, mode):
    labels = TWO if name == "gradmask" else Y
    options = {"gamma": 0.3, "mask_loss": name, **MODES[mode]}
    clf, gradient = first_gradient(X, labels, {"masks": MASKS}, **options)
    model, images = untrained(X, labels)
    ce, value = by_hand(name, model, images, torch.from_numpy(labels.astype(np.int64)))
    loss = ce + 0.3 * value
    if "alpha" in options:
        warp = OneView()(60)
        pair = (explained(model, each)[1] for each in (images, warp(images)))
        loss = loss + 0.7 * inconsistency(*pair, warp).mean()
    of_annotated = 1.5 * value.item()  # a third has no mask, and counts as zero in the loss
    assert clf.history[-1, f"train_{name}"] == pytest.approx(of_annotated, rel=1e-6)
    assert clf.history[-1, "train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(gradient, gradient_of(loss, model), rtol=1e-6, atol=1e-9)


def test_energy_is_of_the_label_and_not_of_what_is_predicted():
    model, images = untrained(X, Y)
    predicted = model(images).argmax(1)
    assert 0 < (predicted == LABELS).double().mean() < 1
    _, of_labels = by_hand("energy", model, images, LABELS)
    _, of_predicted = by_hand("energy", model, images, predicted)
    found = first_gradient(X, Y, {"masks": MASKS}, gamma=1.0)[0].history[-1, "train_energy"]
    assert found == pytest.approx(1.5 * of_labels.item(), rel=1e-6)
    assert found != pytest.approx(1.5 * of_predicted.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["energy", "rrr", "gradmask"])
def test_one_logit_is_two_classes(name):
    options = {"module": OneLogit, "gamma": 0.3, "mask_loss": name}
    clf, gradient = first_gradient(X, TWO, {"masks": MASKS}, **options)
    assert clf.task_ == "binary" and gradient.isfinite().all()
    model, images = untrained(X, TWO, module=OneLogit)

    class Both(nn.Module):
        """The logits of two classes, of which the difference is the network's own."""

        def __getitem__(self, i):
            return model[i]

        def forward(self, x):
            z = model(x)
            return torch.cat([0 * z, z], dim=1)

    ce, value = by_hand(name, Both(), images, torch.from_numpy(TWO.astype(np.int64)))
    if name == "energy":  # the first class is explained by -z, the second by z: |map| is the same
        _, maps = explained(Both(), images, torch.ones(60, dtype=torch.int64))
        energy = resized(maps).abs()
        value = ((1 - INSIDE) * energy).sum((1, 2)) / energy.sum((1, 2))
        value = torch.where(ANNOTATED, value, 0.0).mean()
    assert clf.history[-1, f"train_{name}"] == pytest.approx(1.5 * value.item(), rel=1e-6)
    loss = ce + 0.3 * value
    torch.testing.assert_close(gradient, gradient_of(loss, model), rtol=1e-6, atol=1e-9)


def test_energy_of_a_number():
    clf = classifier(task="regression", gamma=0.1).fit(X, Y + 0.5, masks=MASKS)
    assert 0 < clf.history[-1, "train_energy"] < 1


def test_validation_measures_energy_and_leaves_the_pixels_out():
    for name, is_there in (("energy", True), ("rrr", False)):
        clf = classifier(gamma=0.1, mask_loss=name, train_split=ValidSplit(3))
        row = clf.fit(X, Y, masks=MASKS).history[-1]
        assert (f"valid_{name}" in row) is is_there and f"train_{name}" in row


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("annotated", [[*range(0, 60, 3), 1, 2, 4], [5]])
def test_what_is_recorded_is_of_the_images_that_have_a_mask(annotated, parts):
    masks = [mask if i in annotated else None for i, mask in enumerate(INK)]
    options = {"augment": None, "lr": 0.0, "batch_size": 7, "batch_accumulation": parts}
    clf = classifier(terms=[Area()], train_split=ValidSplit(3), **options)
    row = clf.fit(X, Y, masks=masks).history[-1]
    areas = {i: INK[i].mean() for i in annotated}
    found = {phase: row.get(f"{phase}_area") for phase in ("train", "valid")}
    _, valid = ValidSplit(3)(X, Y)
    for phase, is_there in (("train", False), ("valid", True)):
        own = [area for i, area in areas.items() if (i in valid.indices) is is_there]
        assert found[phase] == (pytest.approx(np.mean(own), rel=1e-5) if own else None)
    total = row["train_ce"] + np.sum([a for i, a in areas.items() if i not in valid.indices]) / 40
    assert row["train_loss"] == pytest.approx(total, rel=1e-5)  # all images, as ever


def test_where_no_image_has_a_mask_nothing_is_recorded_and_that_is_said():
    with pytest.warns(UserWarning, match="None of the 60 images .* learned from energy"):
        clf = classifier(gamma=0.3).fit(X, Y, boxes=[None, []] * 30)
    assert not [name for name in clf.history[-1] if "energy" in name]


@pytest.mark.parametrize("given", [{"masks": MASKS}, {"boxes": [[[1, 1, 7, 9]]] * 60}])
def test_masks_that_no_term_looks_at_are_warned_of(given):
    with pytest.warns(UserWarning, match="masks and boxes are not used: with gamma="):
        classifier(alpha=1e-3).fit(X, Y, **given)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="masks and boxes")
        classifier(terms=[Area()]).fit(X, Y, **given)


def test_a_weight_that_balances_itself():
    clf = classifier(gamma="auto").fit(X, Y, masks=MASKS)
    row = clf.history[-1]
    total = row["train_ce"] + row["train_energy_weight"] * row["train_energy"] * 2 / 3
    assert row["train_loss"] == pytest.approx(total, rel=1e-6) and row["train_energy_weight"] > 0


# Boxes


BOXES = [np.array([[2.0, 1.5, 9.0, 12.0]]), None, np.empty((0, 4)), [[0, 0, 4, 4], [8, 8, 99, 16]]]
BOXES = (BOXES * 15)[:60]


class Watching(Term):
    """Keeps what it is given."""

    name = "watching"
    needs = frozenset({"masks"})

    def __init__(self):
        self.seen = []

    def values(self, explained):
        self.seen.append((explained.masks, explained.annotated))
        return explained.maps.mean((1, 2))

    def __deepcopy__(self, memo):
        return self


def watched(X=X, y=Y, options=None, **given):
    watching = Watching()
    classifier(terms=[watching], **(options or {})).fit(X, y, **given)
    masks, annotated = zip(*watching.seen, strict=True)
    return torch.cat(masks).float(), torch.cat(annotated)


def test_boxes_are_shares_of_pixels():
    masks, annotated = watched(boxes=BOXES)
    assert torch.equal(annotated, torch.tensor([True, False, False, True] * 15))
    expected = torch.zeros(60, 16, 16)
    expected[0::4, 2:12, 2:9] = 1
    expected[0::4, 1, 2:9] = 0.5
    expected[3::4, :4, :4] = expected[3::4, 8:, 8:] = 1
    torch.testing.assert_close(masks, expected)


def test_boxes_stay_with_images_that_are_taken_as_they_are():
    """What is augmented beside them has a cross-entropy alone."""
    plain, _ = watched(boxes=BOXES)
    beside, _ = watched(boxes=BOXES, options={"ce_on": "all", "augment": "auto"})
    assert torch.equal(plain, beside)


def test_masks_and_boxes_of_different_images():
    boxes = [
        None if mask is not None else box for mask, box in zip(MASKS, BOXES[::-1], strict=True)
    ]
    masks, annotated = watched(boxes=boxes, masks=MASKS)
    alone, with_box = watched(boxes=boxes)
    has_mask = ANNOTATED
    assert torch.equal(annotated, has_mask | with_box) and with_box.any()
    torch.testing.assert_close(masks[has_mask], INSIDE[has_mask].float())
    torch.testing.assert_close(masks[~has_mask], alone[~has_mask])


def test_boxes_of_the_images_own_label_count():
    names = np.array(["cat", "dog", "cow"])[Y]
    boxes = [
        {"cat": [[0, 0, 4, 4]], "dog": [[4, 4, 8, 8], [8, 8, 12, 12]]} if i % 2 else None
        for i in range(60)
    ]
    masks, annotated = watched(y=names, boxes=boxes)
    expected = torch.zeros(60, 16, 16)
    is_odd = np.arange(60) % 2 == 1
    expected[is_odd & (names == "cat"), :4, :4] = 1
    for side in (slice(4, 8), slice(8, 12)):
        expected[is_odd & (names == "dog"), side, side] = 1
    torch.testing.assert_close(masks, expected)
    assert torch.equal(annotated, torch.from_numpy(is_odd & (names != "cow")))


@pytest.mark.parametrize("augment", [None, "auto", ViewSampler((0.3, 0.9), flip=1.0)])
@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
def test_boxes_follow_their_images_of_all_sizes(resize, augment):
    """The images are pictures of their boxes: what the network sees, the term must get."""
    sizes = [(20 + i % 5, 30 - i % 7) for i in range(60)]
    boxes = [[[3 + i % 4, 2, 20, 10 + i % 6]] for i in range(60)]
    pictures = []
    for (height, width), [[x1, y1, x2, y2]] in zip(sizes, boxes, strict=True):
        pixels = np.zeros((height, width), dtype=np.uint8)
        pixels[y1:y2, x1:x2] = 255
        pictures.append(Image.fromarray(pixels))
    seen = []

    class Watched(Plain):
        def forward(self, x):
            if self.training and len(x) > 1:
                seen.append(x[:, 0].detach().float())
            return super().forward(x)

    watching = Watching()
    options = {"terms": [watching], "augment": augment, "resize": resize, "mean": 0.0, "std": 1.0}
    classifier(Watched, **options).fit(pictures, Y, boxes=boxes)
    masks = torch.cat([each for each, _ in watching.seen]).float()
    torch.testing.assert_close(masks, torch.cat(seen), rtol=0, atol=1.5 / 255)  # bytes are rounded


@pytest.mark.parametrize("routed", [False, True])
def test_a_search_takes_masks_and_boxes_apart(routed):
    boxes = [None if mask is not None else [[1, 1, 7, 9]] for mask in MASKS]
    with sklearn.config_context(enable_metadata_routing=routed):
        clf = classifier(lr=0.0, batch_size=40)
        if routed:
            clf = clf.set_fit_request(masks=True, boxes=True)
        search = GridSearchCV(clf, {"gamma": [0.1, 0.5]}, cv=3, error_score="raise")
        search.fit(X, Y, masks=MASKS, boxes=boxes)
    best = search.best_estimator_
    whole = classifier(lr=0.0, gamma=best.gamma).fit(X, Y, masks=MASKS, boxes=boxes)
    expected = whole.history[-1, "train_energy"]
    assert best.history[-1, "train_energy"] == pytest.approx(expected, rel=1e-5)


def one(box):
    return [box, *[None] * 59]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "The term 'energy' needs masks, and there are none. Give fit masks= or boxes=."),
        ({"boxes": BOXES[:59]}, "boxes must have one entry for each of 60 images; got 59"),
        ({"boxes": 3}, "boxes must be a list with the boxes of each image"),
        ({"boxes": one([[3, 3, 1, 5]])}, r"boxes\[0\]: A box is \(x1, y1, x2, y2\) with x1 < x2"),
        ({"boxes": one([0.1, 0.2, 0.3, 0.4])}, r"in pixels of each image, not as shares"),
        (
            {"boxes": one([20, 1, 30, 5])},
            r"boxes\[0\] lie outside the image, which",
        ),
        ({"boxes": one({"cat": [1, 1, 3, 3]})}, "None of the labels of boxes is a class"),
        ({"boxes": one([1, 1, 3, 3]), "masks": MASKS}, "Image 0 has both a mask and boxes"),
    ],
)
def test_boxes_that_do_not_fit_are_refused_at_the_door(given, message):
    clf = classifier(gamma=0.5)
    with pytest.raises(ValueError, match=message):
        clf.fit(X, Y, **given)
    assert not clf.initialized_


UNDEFINED = {
    "several labels": ({}, np.eye(3)[Y] + np.eye(3)[::-1][Y] > 0, "map of an image's own label"),
    "of numbers": ({"task": "regression", "mask_loss": "rrr"}, Y + 0.5, '"energy" is defined for'),
    "three classes": ({"mask_loss": "gradmask"}, Y, "contrasts two classes, and there are 3"),
    "compiled": ({"mask_loss": "rrr", "compile": True}, Y, "no second derivative"),
    "augmented": ({"augment": lambda images: images}, Y, "augment is .* Set augment to"),
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_what_is_not_defined_is_refused_at_the_door(case):
    options, y, message = UNDEFINED[case]
    clf = classifier(gamma=0.5, **options)
    with pytest.raises(ValueError, match=message):
        clf.fit(X, y, masks=MASKS)
    assert not clf.initialized_
