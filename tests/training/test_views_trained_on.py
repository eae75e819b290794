"""Training on turned, shifted and photometric views, and on images augmented so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import Masks
from PIL import Image
from small_networks import SmallNet
from torchvision.transforms.v2 import functional as tv

from sklcam import ConsistentCAMClassifier
from sklcam.cam import min_max, upsample
from sklcam.metrics import structural_similarity
from sklcam.training import Consistency, Explanations, ViewSampler

SIDE = 24
X = np.random.default_rng(0).random((8, SIDE, SIDE, 3), dtype=np.float32)
Y = np.arange(8) % 2
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)
WHOLE = {"scale": (1, 1), "ratio": (1, 1), "flip": 0}


class Seen(SmallNet):
    images: tuple = ()

    def forward(self, x):
        if self.training and len(x) > 1:
            type(self).images += (x.detach().clone(),)
        return super().forward(x)


def seen_by(X=X, *, masks=None, **options):
    """The pixels that a network sees in training, of the images and of their views in turn."""
    Seen.images = ()
    defaults = {
        "image_size": SIDE, "mean": MEAN, "std": STD, "max_epochs": 1, "batch_size": 8, "beta": 0,
        "augment": None, "verbose": 0, "random_state": 0, "device": "cpu", "target_layer": "5",
        "iterator_train__shuffle": False, "train_split": None,
    }  # fmt: skip
    clf = ConsistentCAMClassifier(Seen, **{**defaults, **options}).fit(X, Y, masks=masks)
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    return clf, [images * std + mean for images in Seen.images]


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_colors_of_a_view_change_in_unit_range(memory):
    sampler = ViewSampler(**WHOLE, brightness=0.8, rotation=90)
    _, seen = seen_by(views=sampler, memory=memory)
    images, views = seen[:2]
    torch.testing.assert_close(images, torch.from_numpy(X).permute(0, 3, 1, 2))
    # Brightness is a factor, whatever mean and deviation do.
    shares = views.mean((2, 3)) / images.mean((2, 3))
    assert (views.amax((1, 2, 3)) <= 1 + 1e-6).all() and views.min() >= -1e-6
    dark = views.amax((1, 2, 3)) < 0.99
    assert dark.sum() >= 2 and shares[dark].max() < 1
    assert (shares[dark].amax(1) - shares[dark].amin(1)).max() < 0.1


def test_the_loss_is_that_of_valid_windows():
    sampler = ViewSampler((0.5, 1.0), rotation=45, translation=0.2)
    warp = sampler(4, size=(SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    maps, of_view = torch.rand(2, 4, 6, 6, generator=generator)
    found = Consistency().values(Explanations(maps, of_view, warp, size=(SIDE, SIDE)))
    scaled, scaled_of_view = (min_max(upsample(each, (SIDE, SIDE))) for each in (maps, of_view))
    valid = warp.valid((SIDE, SIDE))
    similar = structural_similarity(warp(scaled), scaled_of_view, valid=valid)
    torch.testing.assert_close(found, 1 - similar)
    assert not valid.all()
    assert (found - Consistency().values(
        Explanations(maps, of_view, type(warp)(warp.matrix, is_inside=True), size=(SIDE, SIDE))
    )).abs().max() > 1e-3  # fmt: skip


@pytest.mark.parametrize("agreement", ["mse", "cgc"])
def test_other_comparisons_do_not_see_what_is_outside(agreement):
    warp = ViewSampler(**WHOLE, translation=0.4)(3, size=(SIDE, SIDE))
    maps = torch.rand(3, SIDE, SIDE)
    term, valid = Consistency(agreement=agreement), warp.valid((SIDE, SIDE))
    seen = warp(maps)
    of_view, noisy = (torch.where(valid, seen, rest) for rest in (0.0, torch.rand_like(seen)))
    found = [term.values(Explanations(maps, each, warp)) for each in (of_view, noisy)]
    torch.testing.assert_close(*found)
    if agreement == "mse":  # what both show is the same, but for its share of all there is
        assert found[0].max() < 1e-6


def test_the_gradient_is_that_of_finite_differences():
    sampler = ViewSampler((0.7, 1.0), rotation=20, translation=0.1)
    warp = sampler(2, size=(14, 14), generator=torch.Generator().manual_seed(2))
    warp = type(warp)(warp.matrix.double())
    maps, of_view = torch.rand(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)

    def loss(maps, of_view):
        return Consistency().values(Explanations(maps, of_view, warp, size=(14, 14)))

    assert not warp.valid((14, 14)).all()
    assert torch.autograd.gradcheck(loss, (maps, of_view))


def test_training_on_all_of_them_learns_and_is_seeded():
    every = ViewSampler(
        (0.3, 1.0), rotation=30, translation=0.1, brightness=0.4, contrast=0.4, color=0.4,
        sharpness=0.5, blur=1.0, grey=0.2,
    )  # fmt: skip
    fits = [seen_by(views=every, augment=every, max_epochs=2) for _ in range(2)]
    for first, second in zip(*(seen for _, seen in fits), strict=True):
        assert torch.equal(first, second) and first.isfinite().all()
    history = fits[0][0].history[:, "train_inconsistency"]
    assert np.isfinite(history).all() and min(history) > 0


# Augmentation


def test_augmented_images_are_turned_as_by_torchvision():
    """The crop of all of the image, turned by an angle that the mask tells."""
    sampler = ViewSampler(**WHOLE, rotation=60)
    _, (images, *_) = seen_by(augment=sampler, alpha=0)
    originals = torch.from_numpy(X).permute(0, 3, 1, 2)
    angles, centre = np.arange(-60, 61, 0.5), (..., slice(8, 16), slice(8, 16))
    found = []
    for image, original in zip(images, originals, strict=True):
        turned = [
            tv.rotate(original, float(angle), tv.InterpolationMode.BILINEAR) for angle in angles
        ]
        off = torch.stack([(image[centre] - each[centre]).abs().mean() for each in turned])
        assert off.min() < 0.02 < off.median()
        found.append(angles[off.argmin()])
    assert len(set(found)) == 8


def test_masks_go_where_their_images_go_and_keep_their_brightness():
    """Each image is a picture of its mask, and is made darker or lighter; the mask is not."""
    random = np.random.default_rng(0)
    masks = [random.random((40 + i, 70 - i)) > 0.5 for i in range(8)]
    files = [Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB") for mask in masks]
    options = {"alpha": 0, "target_layer": "0"}
    watching = Masks()
    sampler = ViewSampler(rotation=50, translation=0.2)
    _, (images, *_) = seen_by(files, masks=masks, terms=[watching], augment=sampler, **options)
    torch.testing.assert_close(torch.cat(watching.seen), images[:, 0], rtol=0, atol=1.5 / 255)
    watching = Masks()
    sampler = ViewSampler(rotation=50, translation=0.2, brightness=0.5)
    _, (images, *_) = seen_by(files, masks=masks, terms=[watching], augment=sampler, **options)
    mask, image = torch.cat(watching.seen), images[:, 0]
    factors = image.mean((1, 2)) / mask.mean((1, 2))
    dark = factors < 1
    expected = (mask * factors[:, None, None])[dark]
    torch.testing.assert_close(image[dark], expected, rtol=0, atol=3 / 255)
    assert 1 <= dark.sum() < 8 and mask.max() > 0.99


def test_workers_draw_what_one_process_draws():
    sampler = ViewSampler(rotation=30, contrast=0.5, blur=0.7)
    _, alone = seen_by(augment=sampler, alpha=0)
    _, shared = seen_by(augment=sampler, alpha=0, iterator_train__num_workers=1)
    assert torch.equal(alone[0], shared[0])
