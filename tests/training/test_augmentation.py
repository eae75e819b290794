"""Augmentation: one draw an image, crops as sharp as torchvision's, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import Masks
from PIL import Image
from small_networks import SmallNet
from torch.nn import functional
from torchvision.transforms import v2

from sklcam import ConsistentCAMClassifier
from sklcam.images.views import Crop
from sklcam.training import ViewSampler

Y = np.arange(16) % 2
RAMP = np.tile(np.linspace(0, 1, 20, dtype=np.float32), (16, 16, 1))
WHOLE = ViewSampler(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0)


class Seen(SmallNet):
    """Keeps the images that it is trained on."""

    images: tuple = ()

    def forward(self, x):
        if self.training and len(x) > 1:
            type(self).images += (x.detach().clone(),)
        return super().forward(x)


def trained_on(X=RAMP, y=Y, *, masks=None, **options):
    """The images that a network sees while it is trained on X."""
    Seen.images = ()
    defaults = {"image_size": 16, "alpha": 0, "beta": 0, "mean": 0.0, "std": 1.0, "max_epochs": 1}
    defaults |= {"batch_size": 16, "verbose": 0, "random_state": 0, "device": "cpu"}
    ConsistentCAMClassifier(Seen, **{**defaults, **options}).fit(X, y, masks=masks)
    return torch.cat(Seen.images)


def sharpness(images):
    """Mean absolute Laplacian."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    grey = images.float().mean(dim=-3, keepdim=True)
    return float(functional.conv2d(grey, kernel[None, None]).abs().mean())


# Transforms of the user's own


def test_random_transforms_draw_once_an_image():
    plain = trained_on(augment=None, iterator_train__shuffle=False)
    images = trained_on(augment=v2.RandomHorizontalFlip(0.5), iterator_train__shuffle=False)
    flipped = (images == plain.flip(-1)).all(dim=(1, 2, 3))
    kept = (images == plain).all(dim=(1, 2, 3))
    assert (flipped ^ kept).all()
    assert 3 <= flipped.sum() <= 13  # of 16, with a probability of .998


def test_the_seed_is_that_of_a_users_transform_too():
    transform = v2.Compose([v2.ColorJitter(0.5), v2.RandomRotation(30)])
    first, again, other = (
        trained_on(augment=transform, max_epochs=2, random_state=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({float(image.sum()) for image in first}) > 25  # another draw for each, each epoch


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (v2.Resize(8), r"with the shape.* \(1, 1, 16, 16\) .* got a Tensor .* \(1, 1, 8, 8\)"),
        (v2.RandomCrop(12), r"got a Tensor of torch.float32 and shape \(1, 1, 12, 12\)"),
        (v2.Grayscale(3), r"\(1, 3, 16, 16\)"),
        (v2.ToDtype(torch.uint8, scale=True), "got a Tensor of torch.uint8"),
        (v2.ToDtype(torch.float64), "got a Tensor of torch.float64"),
        (lambda image: image.numpy(), "augment must return a tensor .* got an ndarray"),
        (v2.Normalize([0.5], [0.5]), r"from -0.9.* to 0.9.*in \[0, 1\].* leave Normalize out"),
        (lambda image: image * 255, r"from 3.3\d* to 251.6\d*; they must stay in"),
        (lambda image: image * torch.nan, "augment returned pixels from nan to nan"),
        (lambda image: image / 0, "augment returned pixels from inf to inf"),
        (v2.GaussianNoise(clip=False), "augment returned pixels from -"),
    ],
)
def test_transforms_that_change_more_than_pixels_are_refused(augment, message):
    with pytest.raises(ValueError, match=message):
        trained_on(augment=augment)
    assert len(Seen.images) == 0  # before the first step


def test_what_leaves_the_range_later_is_refused_at_the_end_of_the_epoch():
    class Late:
        calls = 0

        def __call__(self, image):
            self.calls += 1
            return image * 3 if self.calls == 16 else image

    with pytest.raises(ValueError, match=r"augment returned pixels from 0.013\d* to 2.96"):
        trained_on(augment=Late(), batch_size=4)
    assert len(Seen.images) == 4


# Crops


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
@pytest.mark.parametrize("form", ["files", "arrays", "tensors"])
def test_crops_are_cut_out_of_the_image_as_it_was(tmp_path, form, resize):
    """A square of all its height, mirrored: as torchvision's."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 60, 91, 3), dtype=np.uint8)
    files = [tmp_path / f"{i:02}.png" for i in range(16)]
    for path, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(path)
    tensors = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    X = {"files": files, "arrays": pixels, "tensors": tensors}[form]
    options = {"augment": WHOLE, "resize": resize, "iterator_train__shuffle": False}
    images = trained_on(X, **options)
    # Of all the area, no square fits, and the largest central one is taken: 15.5 pixels in.
    expected = v2.functional.resized_crop(tensors, 0, 16, 60, 60, [16, 16], antialias=True)
    assert torch.equal(images, expected.flip(-1) / 255)


def test_training_images_are_as_sharp_as_torchvisions():
    X = np.random.default_rng(0).integers(0, 256, (64, 80, 80, 3), dtype=np.uint8)
    images = trained_on(X, np.arange(64) % 2, image_size=48, batch_size=64, max_epochs=3)
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(48, antialias=True)
    crops = [theirs(torch.from_numpy(image).permute(2, 0, 1)) for image in X for _ in range(3)]
    expected = sharpness(torch.stack(crops) / 255)
    assert sharpness(images) == pytest.approx(expected, rel=0.07)


def test_masks_are_cropped_with_their_images():
    """Each image is a picture of its mask, large, and of a size of its own."""
    random = np.random.default_rng(0)
    masks = [random.random((40 + i, 70 - i)) > 0.5 for i in range(16)]
    files = [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks]
    watching = Masks()
    options = {"terms": [watching], "target_layer": "0", "max_epochs": 2}
    images = trained_on(files, masks=masks, **options)[:, 0]
    torch.testing.assert_close(torch.cat(watching.seen), images, rtol=0, atol=1.5 / 255)


def test_workers_read_the_crops_that_one_process_reads():
    X = np.random.default_rng(0).integers(0, 256, (16, 40, 50), dtype=np.uint8)
    options = {"max_epochs": 2, "batch_size": 5}
    alone = trained_on(X, **options)
    assert torch.equal(trained_on(X, iterator_train__num_workers=2, **options), alone)


def test_every_epoch_has_its_own_crops():
    X = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 40, 50), dtype=np.uint8), 16, 0)
    for workers in ({}, {"num_workers": 2, "persistent_workers": True}):
        options = {f"iterator_train__{name}": value for name, value in workers.items()}
        images = trained_on(X, max_epochs=2, **options)
        assert len({float(image.sum()) for image in images}) > 30  # of 32


def test_loaders_that_cannot_crop_are_refused():
    class Loader(list):
        def __init__(self, dataset, batch_size, **options):
            super().__init__([dataset[0]])

    with pytest.raises(ValueError, match=r"by a torch DataLoader .*augment=None; got a Loader"):
        trained_on(iterator_train=Loader)


def test_samplers_that_draw_in_their_own_way_are_refused():
    class Rotating(ViewSampler):
        def __call__(self, n_images, **options):
            return super().__call__(n_images, **options)

    with pytest.raises(ValueError, match=r"a plain ViewSampler; got a Rotating"):
        trained_on(augment=Rotating())


def test_a_crop_by_hand():
    image = torch.arange(12.0).reshape(1, 3, 4) / 12
    cut = Crop(top=1, left=2, height=2, width=2, is_flipped=True)(image, (2, 2))
    assert (cut * 12).round().tolist() == [[[7, 6], [11, 10]]]
