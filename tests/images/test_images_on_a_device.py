"""Images on a device that has no float64, and that the host should not have to wait for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretend_device import OnDevice, PretendDevice
from torchvision.transforms import v2

from sklcam.images import ImageDataset, map_to_frame, normalize
from sklcam.images.pictures import to_picture
from sklcam.images.views import ViewSampler
from sklcam.training._augmentation import Perturbation


@pytest.fixture
def device():
    with PretendDevice() as entered:
        yield entered


def on_host(value):
    return value.cpu() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize("options", [{}, {"background": "red"}, {"resize": "center_crop"}])
def test_images_are_read_where_they_are(dtype, options, device):
    X = torch.randint(0, 256, (3, 4, 20, 31), dtype=torch.uint8)
    X = X if dtype == torch.uint8 else (X / 255).to(dtype)
    ours, host = (ImageDataset(x, image_size=12, **options) for x in (OnDevice(X), X))
    (crop,) = ViewSampler().crops(ViewSampler().draw(1), [(20, 31)])
    rounded = {"rtol": 0, "atol": 1 if dtype == torch.uint8 else 0}  # bytes are resized as floats
    for i in range(3):
        assert ours[i][0].device.type == "pretend"
        torch.testing.assert_close(on_host(ours[i][0]), host[i][0], **rounded)
        original = ours.original_image(i)
        cropped, expected = crop(original, (9, 9)), crop(host.original_image(i), (9, 9))
        torch.testing.assert_close(on_host(cropped), expected, **rounded)
        np.testing.assert_array_equal(to_picture(original), to_picture(host.original_image(i)))


def test_statistics_and_frames_on_the_device(device):
    images, maps = torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8)
    mean, std = np.array([0.1, 0.2, 0.3]), [0.5, 0.6, 0.7]
    device.waits.clear()
    ours = normalize(OnDevice(images), mean, std)
    frames = [map_to_frame(OnDevice(maps), (1, n), resize="center_crop") for n in (9, 900)]
    assert not device.waits
    assert torch.equal(on_host(ours), normalize(images, mean, std))
    for frame, n in zip(frames, (9, 900), strict=True):
        assert torch.equal(on_host(frame), map_to_frame(maps, (1, n), resize="center_crop"))


def test_a_transform_is_waited_for_once_and_at_the_end(device):
    perturb = Perturbation(v2.RandomHorizontalFlip(0.5))
    images = OnDevice(torch.rand(5, 3, 8, 8))
    perturb(images)
    assert device.waits.total() == 1
    for _ in range(3):
        perturb(images)
    assert device.waits.total() == 1
    perturb.check()
    assert device.waits.total() == 2
