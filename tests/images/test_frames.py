"""Images brought to a size, and maps brought back, against torchvision and by hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from image_forms import CountingDataset, channels_first, noise, save
from PIL import Image
from torchvision.transforms import v2

from sklcam.images import (
    ImageDataset,
    map_to_frame,
)
from sklcam.images.frames import resize_image


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (7, 100), (5, 5), (12, 12), (24, 12)])
def test_center_crop_is_torchvisions_for_square_sizes(rng, dtype, shape):
    X = noise(rng, 1, *shape, 3) if dtype == np.uint8 else rng.random((1, *shape, 3), dtype=dtype)
    image, _ = ImageDataset(X, image_size=12, resize="center_crop")[0]
    oracle = v2.Compose([v2.Resize(12, antialias=True), v2.CenterCrop(12)])
    torch.testing.assert_close(image, oracle(channels_first(X[0])), rtol=0, atol=1e-6)


def test_center_crop_covers_sizes_that_are_not_square(rng):
    X = noise(rng, 1, 10, 10)
    # Already wide enough: 10 rows become the middle 4 of them, and no pixel is touched.
    image, _ = ImageDataset(X, image_size=(4, 10), resize="center_crop")[0]
    assert torch.equal(image[0], torch.from_numpy(X[0, 3:7]))
    # max(20 / 10, 6 / 10) = 2: scaled to 20 x 20, of which columns 7 to 12 stay.
    image, _ = ImageDataset(X, image_size=(20, 6), resize="center_crop")[0]
    scaled = v2.functional.resize(torch.from_numpy(X), [20, 20], antialias=True)
    assert torch.equal(image, scaled[..., 7:13])


@pytest.mark.parametrize("size", [5, 16, (9, 31)])
def test_arrays_tensors_and_files_are_resized_alike(rng, tmp_path, size):
    X = noise(rng, 1, 13, 17, 3)
    forms = [
        X,
        channels_first(X[0])[None],
        [Image.fromarray(X[0])],
        [save(X[0], tmp_path / "image.png")],
        CountingDataset([X[0]]),
    ]
    for resize in ("stretch", "center_crop"):
        first, *others = [
            ImageDataset(form, image_size=size, resize=resize)[0][0] for form in forms
        ]
        assert first.dtype == torch.uint8
        assert first.is_contiguous()
        for other in others:
            assert torch.equal(first, other)


def test_resizing_is_antialiased_as_pillows(rng):
    X = noise(rng, 1, 64, 48, 3)
    image, _ = ImageDataset(X, image_size=(16, 12))[0]
    pillow = np.array(Image.fromarray(X[0]).resize((12, 16), Image.Resampling.BILINEAR))
    # Both round to whole grey levels, each in its own order.
    assert (image.int() - channels_first(pillow).int()).abs().max() <= 1


# Maps in the frame of the original image


def test_map_to_frame_by_hand():
    # Bilinear, pixels as areas: the new pixels' centres lie at -0.25, 0.25, 0.75, 1.25.
    out = map_to_frame(torch.tensor([[0.0, 4.0]]), (1, 4))
    assert out.tolist() == [[0.0, 1.0, 3.0, 4.0]]


def test_map_to_frame_is_pytorchs_interpolation():
    maps = torch.rand(2, 3, 7, 9)
    interpolate = torch.nn.functional.interpolate
    larger = interpolate(maps, (20, 30), mode="bilinear", align_corners=False)
    torch.testing.assert_close(map_to_frame(maps, (20, 30)), larger)
    smaller = interpolate(maps, (3, 4), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(map_to_frame(maps, (3, 4)), smaller)
    assert torch.equal(map_to_frame(maps, (7, 9)), maps)


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_map_to_frame_keeps_leading_dimensions(resize, leading):
    maps = torch.rand(*leading, 8, 6, dtype=torch.float64)
    out = map_to_frame(maps, (5, 7), resize=resize)
    assert out.shape == (*leading, 5, 7)
    assert out.dtype == torch.float64
    for index in np.ndindex(*leading):
        torch.testing.assert_close(out[index], map_to_frame(maps[index], (5, 7), resize=resize))


def test_map_of_a_center_crop_by_hand():
    # 2 x 4 covers 2 x 2 as it is; the crop is columns 1 and 2.
    out = map_to_frame(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (2, 4), resize="center_crop")
    assert out.tolist() == [[0, 1, 2, 0], [0, 3, 4, 0]]


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (7, 23), (31, 31), (100, 70), (9, 8)])
@pytest.mark.parametrize("frame", [(16, 16), (12, 20)])
def test_map_of_a_center_crop_is_full_inside_and_zero_outside(size, frame):
    out = map_to_frame(torch.ones(frame), size, resize="center_crop")
    assert out.shape == size
    # max(H/h, W/w): how much of the original's height and width the crop shows.
    scale = max(frame[0] / size[0], frame[1] / size[1])
    for axis in (0, 1):
        lines = out.amax(dim=1 - axis)
        assert all(min(abs(line), abs(line - 1)) < 1e-6 for line in lines.tolist())
        # Scaled sizes are whole, which can be off by one scaled pixel, and so are original ones.
        assert lines.sum() == pytest.approx(frame[axis] / scale, abs=1 + 1 / scale)
        inside = lines.nonzero().flatten()
        assert inside.diff().eq(1).all()
        assert abs((inside[0] - (size[axis] - 1 - inside[-1])).item()) <= 1


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
@pytest.mark.parametrize("size", [(48, 32), (32, 48), (90, 60)])
def test_there_and_back_a_smooth_image_returns(resize, size):
    rows = torch.linspace(0, 3, size[0])[:, None]
    columns = torch.linspace(0, 3, size[1])
    picture = 0.5 + 0.25 * (torch.sin(rows) + torch.cos(columns))
    picture = picture.clamp(0.01, 1)
    images = ImageDataset(picture[None, None], image_size=24, resize=resize)
    back = map_to_frame(images[0][0][0], images.original_size(0), resize=resize)
    seen = back > 0
    assert seen.float().mean() == pytest.approx(1 if resize == "stretch" else 2 / 3, abs=0.02)
    torch.testing.assert_close(back[seen], picture[seen], rtol=0, atol=0.05)
    # Away from the borders, where half a pixel is missing, it is much closer.
    middle = (slice(size[0] // 3, -size[0] // 3), slice(size[1] // 3, -size[1] // 3))
    torch.testing.assert_close(back[middle], picture[middle], rtol=0, atol=0.005)


def test_map_to_frame_passes_gradients():
    maps = torch.rand(4, 4, requires_grad=True)
    map_to_frame(maps, (4, 8), resize="center_crop").sum().backward()
    assert (maps.grad == 1).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_and_maps_stay_on_their_device():
    X = torch.rand(2, 3, 8, 8)
    image, _ = ImageDataset(X.cuda(), image_size=4)[1]
    assert image.is_cuda
    torch.testing.assert_close(image.cpu(), ImageDataset(X, image_size=4)[1][0])
    for resize in ("stretch", "center_crop"):
        on_device = map_to_frame(X[0].cuda(), (6, 11), resize=resize)
        torch.testing.assert_close(on_device.cpu(), map_to_frame(X[0], (6, 11), resize=resize))


@pytest.mark.parametrize("shape", [(1, 200), (200, 1), (2, 65_000)])
@pytest.mark.parametrize("size", [(8, 8), (6, 9)])
def test_center_crops_of_long_images_are_those_of_their_middle(rng, shape, size):
    """All of the image is scaled by hand; what is far from the crop has no part in it."""
    image = torch.from_numpy(rng.random((3, *shape), dtype=np.float32))
    found = resize_image(image, size, "center_crop")
    longest = shape.index(max(shape))
    middle = image.narrow(1 + longest, shape[longest] // 2 - 50, 100)
    scale = max(size[0] / middle.shape[1], size[1] / middle.shape[2])
    scaled = [round(side * scale) for side in middle.shape[1:]]
    expected = v2.functional.resize(middle, scaled, antialias=True)
    expected = v2.functional.center_crop(expected, list(size))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


MEASURED = """
import resource, sys, torch
from sklcam.images import ImageDataset, map_to_frame
memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
ImageDataset([sys.argv[1]])[0]
before = memory()
image, _ = ImageDataset([sys.argv[1]], resize="center_crop")[0]
assert (image == torch.tensor([255, 0, 0])[:, None, None]).all()
map_to_frame(torch.ones(224, 224), (1, 4000), resize="center_crop")
print(memory() - before)
"""


def test_a_line_of_pixels_takes_the_memory_of_its_crop(tmp_path):
    Image.new("RGB", (4000, 1), "red").save(tmp_path / "line.png")
    command = [sys.executable, "-c", MEASURED, tmp_path / "line.png"]
    used = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(used) < 100  # MB; all of it, scaled, would take 600, and its map 800


@pytest.mark.parametrize(
    ("frame", "seen"), [((1, 401), (0, 200)), ((300, 2), (slice(149, 151), slice(None)))]
)
def test_maps_of_long_images_lie_where_the_network_looked(frame, seen):
    back = map_to_frame(torch.ones(8, 8), frame, resize="center_crop")
    expected = torch.zeros(frame)
    expected[seen] = 1
    torch.testing.assert_close(back, expected)
