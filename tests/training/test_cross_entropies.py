"""Of what there is a cross-entropy; and CGC as it was published, as a whole step."""

from __future__ import annotations

import pytest
import torch
from accelerated import LARGE as X
from accelerated import SMALL, OneView, Plain, Y
from by_hand import (
    classifier,
    explained,
    first_gradient,
    gradient_of,
    inconsistency,
    resized,
    untrained,
)
from skorch.callbacks import EarlyStopping
from skorch.dataset import ValidSplit
from torch.nn import functional as F

from sklcam.cam import HiResCAM
from sklcam.training import ViewSampler

LABELS = torch.from_numpy(Y)
AS_PUBLISHED = {
    "alpha": 0.5,
    "beta": 0,
    "agreement": "cgc",
    "phi": HiResCAM(),
    "view_target": "shared",
    "ce_on": "all",
}
MODES = {
    "normal": {},
    "low memory": {"memory": "low"},
    "in parts": {"batch_accumulation": 3},
    "low memory, in parts": {"memory": "low", "batch_accumulation": 3},
}


class Watched(Plain):
    """Keeps the images that it is trained on."""

    seen: tuple = ()

    def forward(self, x):
        if self.training and len(x) > 1:
            type(self).seen += (x[:, 0].detach().float(),)
        return super().forward(x)


def turned(images):
    """An augmentation that is known."""
    return images.flip(-2).clone()


def unit(maps):
    maps = maps / (maps.sum((1, 2), True) + 1e-8) + 1e-8
    return maps


def cgc_step(model, images, augmented, labels, warp):
    """Pillai et al.: three passes, three cross-entropies, HiResCAM with the ReLU, one class."""
    loss = F.cross_entropy(model(augmented), labels)
    logits, maps = explained(model, images, method="hirescam")
    classes = logits.argmax(1)
    of_view, maps_of_view = explained(model, warp(images), classes, method="hirescam")
    loss = loss + F.cross_entropy(logits, labels) + F.cross_entropy(of_view, labels)
    keys = warp(unit(resized(maps.relu()))).flatten(1)
    queries = unit(resized(maps_of_view.relu())).flatten(1)
    keys, queries = F.normalize(keys), F.normalize(queries)
    total = 0
    for i in range(len(images)):
        positive = torch.exp(queries[i] @ keys[i] / 0.5)
        negatives = sum(
            torch.exp(queries[i] @ queries[j] / 0.5) for j in range(len(images)) if j != i
        )
        total = total - torch.log(positive / (positive + negatives))
    return loss + 0.5 * total / len(images)


@pytest.mark.parametrize("mode", ["normal", "low memory"])
def test_cgc_as_published_is_a_step_written_by_hand(mode):
    options = {**AS_PUBLISHED, **MODES[mode], "views": OneView(), "augment": turned}
    clf, gradient = first_gradient(X, Y, **options)
    model, images = untrained(X, Y)
    loss = cgc_step(model, images, images.flip(-2), LABELS, OneView()(60))
    assert clf.history[-1, "train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(gradient, gradient_of(loss, model), rtol=1e-6, atol=1e-10)
    parts = ("ce", "ce_view", "ce_augmented")
    row = clf.history[-1]
    total = sum(row[f"train_{part}"] for part in parts) + 0.5 * row["train_inconsistency"]
    assert row["train_loss"] == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("weights", [None, "some"])
@pytest.mark.parametrize("terms", [{"alpha": 0.7}, {"alpha": 0}])
@pytest.mark.parametrize("mode", MODES)
def test_the_views_cross_entropy_comes_to_that_of_the_images(mode, terms, weights):
    each = torch.full((60,), 1 / 60, dtype=torch.float64)
    if weights is not None:
        each = torch.arange(1.0, 61, dtype=torch.float64) / sum(range(1, 61))
    options = {**MODES[mode], **terms, "ce_on": "view", "views": OneView()}
    given = {} if weights is None else {"sample_weight": 60 * each.numpy()}
    clf, gradient = first_gradient(X, Y, **options, fitting=given)
    model, images = untrained(X, Y)
    warp = OneView()(60)
    logits, maps = explained(model, images)
    of_view, maps_of_view = explained(model, warp(images))
    loss = sum(
        (each * F.cross_entropy(out, LABELS, reduction="none")).sum() for out in (logits, of_view)
    )
    if terms["alpha"]:
        loss = loss + 0.7 * inconsistency(maps, maps_of_view, warp).mean()
    assert clf.history[-1, "train_loss"] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(gradient, gradient_of(loss, model), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("augment", ["auto", ViewSampler((0.3, 0.9), flip=1.0)])
@pytest.mark.parametrize("mode", ["normal", "in parts"])
def test_images_are_taken_as_they_are_and_augmented_beside(mode, augment):
    """Each pass is watched: of the images, of their views, of what is augmented."""
    options = {**MODES[mode], "ce_on": "all", "mean": 0.0, "std": 1.0, "views": OneView()}
    seen = {}
    for name, each in (("all", {}), ("cropped", {"ce_on": "image"})):
        Watched.seen = ()
        classifier(Watched, augment=augment, **{**options, **each}).fit(SMALL, Y)
        seen[name] = Watched.seen
    images, views, augmented = (torch.cat(seen["all"][start::3]) for start in range(3))
    clf = classifier(Watched, max_epochs=0, **options, augment="auto").fit(SMALL, Y)
    expected = torch.cat(list(clf.iter_inputs(SMALL)))[:, 0]
    torch.testing.assert_close(images, expected)
    torch.testing.assert_close(views, OneView()(60)(expected))
    # The same generator crops them as it does where they take the images' place.
    torch.testing.assert_close(augmented, torch.cat(seen["cropped"]))
    assert not torch.allclose(augmented, images)


def test_validation_has_no_augmented_images():
    split = ValidSplit(3, stratified=True)
    clf = classifier(train_split=split, ce_on="all", alpha=0.5, augment="auto").fit(X, Y)
    row = clf.history[-1]
    assert {"train_ce_augmented", "train_ce_view", "valid_ce_view"} <= row.keys()
    assert "valid_ce_augmented" not in row
    total = row["valid_ce"] + row["valid_ce_view"] + 0.5 * row["valid_inconsistency"]
    assert row["valid_loss"] == pytest.approx(total, rel=1e-5)


def test_a_cross_entropy_that_there_is_can_be_monitored():
    stopping = EarlyStopping(monitor="train_ce_view")
    clf = classifier(ce_on="view", callbacks=[stopping], max_epochs=0)
    clf.fit(X, Y)
    with pytest.raises(ValueError, match="'train_ce_view', which is not recorded"):
        clf.set_params(ce_on="image", max_epochs=1).fit(X, Y)


def test_what_is_augmented_is_asked_for():
    with pytest.raises(ValueError, match=r'ce_on="all" .* augmented images .* Set augment="auto"'):
        classifier(ce_on="all", augment=None).fit(X, Y)


def test_the_mean_over_an_epoch_weighs_all_cross_entropies_alike():
    """Batches of other weights: the mean is that of all images."""
    options = {"ce_on": "view", "batch_size": 25, "alpha": 0.3, "lr": 0.0, "views": OneView()}
    weights = (torch.arange(60) % 7).double() * torch.arange(60)
    row = classifier(**options).fit(X, Y, weights.numpy()).history[-1]
    model, images = untrained(X, Y)
    with torch.no_grad():
        outputs = [model(each) for each in (images, OneView()(60)(images))]
    ce, of_view = (
        (weights * F.cross_entropy(out, LABELS, reduction="none")).sum() / weights.sum()
        for out in outputs
    )
    assert row["train_ce"] == pytest.approx(ce.item(), rel=1e-5)
    assert row["train_ce_view"] == pytest.approx(of_view.item(), rel=1e-5)
    total = ce.item() + of_view.item() + 0.3 * row["train_inconsistency"]
    assert row["train_loss"] == pytest.approx(total, rel=1e-5)
