"""Turned and shifted views against torchvision, torch.rot90 and geometry by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from sklcam.training import ViewSampler, Warp


def smooth_images(n, height, width):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 2, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")


# Exact where pixels are only moved


@pytest.mark.parametrize("size", [7, 32, 224])
@pytest.mark.parametrize("quarters", [-2, -1, 0, 1, 2, 3])
def test_quarter_turns_of_squares_are_exact(size, quarters):
    images = torch.rand(2, 3, size, size)
    turn = Warp.from_rotations(torch.full((2,), 90.0 * quarters), (size, size))
    assert torch.equal(turn(images), torch.rot90(images, quarters, (2, 3)))
    assert turn.valid((size, size)).all()
    assert torch.equal(turn.inverse()(turn(images)), images)


@pytest.mark.parametrize("size", [(9, 12), (224, 160)])
def test_half_turns_and_upside_down_are_exact_in_any_proportions(size):
    images = torch.rand(1, 2, *size)
    turn = Warp.from_rotations(torch.tensor([180.0]), size)
    assert torch.equal(turn(images), images.flip(-1, -2))
    upside_down = Warp(torch.tensor([[[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]]))
    assert torch.equal(upside_down(images), images.flip(-2))
    assert torch.equal(upside_down.then(turn)(images), images.flip(-1))


@pytest.mark.parametrize("size", [(9, 12), (224, 160)])
@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -2), (-4, 5), (1, 1)])
def test_shifts_by_whole_pixels_are_exact(size, shift):
    (height, width), (right, down) = size, shift
    images = torch.rand(1, 2, height, width)
    warp = Warp.from_shifts(torch.tensor([[right / width, down / height]]))
    found, valid = warp(images)[0], warp.valid(size)[0]
    rows = slice(max(down, 0), height + min(down, 0))
    columns = slice(max(right, 0), width + min(right, 0))
    expected = images[0].roll((down, right), (1, 2))[:, rows, columns]
    assert torch.equal(found[:, rows, columns], expected)
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[rows, columns] = True
    assert torch.equal(valid, inside)
    # What lies outside takes the value of the border.
    if right > 0:
        assert torch.equal(found[:, :, 0], found[:, :, right])


def test_a_part_of_a_pixel_is_interpolated():
    ramp = torch.arange(5.0).reshape(1, 1, 1, 5)
    warp = Warp.from_shifts(torch.tensor([[0.25 / 5, 0.0]]))
    torch.testing.assert_close(warp(ramp).flatten(), torch.tensor([0.0, 0.75, 1.75, 2.75, 3.75]))
    assert warp.valid((1, 5)).all()  # the outermost pixels reach half a pixel further


# Against torchvision


@pytest.mark.parametrize("size", [(48, 48), (40, 64)])
@pytest.mark.parametrize("angle", [-135.0, -30.0, 12.5, 45.0, 100.0])
def test_turned_as_by_torchvision(size, angle):
    images = smooth_images(2, *size)
    expected = tv.rotate(images, angle, InterpolationMode.BILINEAR)
    warp = Warp.from_rotations(torch.full((2,), angle), size)
    valid = warp.valid(size)
    theirs = tv.rotate(torch.ones(1, *size), angle)[0] > 0  # nearest pixels, zeros outside
    assert (valid[0] != theirs).float().mean() < 0.001  # on the very edge
    # They blend with zeros within half a pixel of the edge.
    inner = tv.rotate(torch.ones(1, *size), angle, InterpolationMode.BILINEAR)[0] > 0.999
    torch.testing.assert_close(warp(images)[..., inner], expected[..., inner], atol=1e-4, rtol=0)


def test_cropped_turned_and_shifted_as_one_after_the_other_by_torchvision():
    """Of a crop well inside, so that a view sees more than what was cut."""
    images, angle, (right, down) = smooth_images(1, 48, 48), 25.0, (6, -4)
    crop = Warp.from_crops(torch.tensor([[12, 15, 24, 20]]) / 48, torch.tensor([True]))
    turn = Warp.from_rotations(torch.tensor([angle]), (48, 48))
    warp = crop.then(turn).then(Warp.from_shifts(torch.tensor([[right / 48, down / 48]])))
    cropped = tv.resized_crop(images, 15, 12, 20, 24, [48, 48], antialias=False)

    def turned(image):  # torchvision's affine turns clockwise, and then shifts
        way = InterpolationMode.BILINEAR
        return tv.affine(image, -angle, [right, down], 1.0, [0.0], interpolation=way)

    border = torch.nn.functional.pad(torch.ones(1, 42, 42), [3] * 4)
    inner = turned(border)[0] > 0.999
    expected = turned(tv.horizontal_flip(cropped))[..., inner]
    torch.testing.assert_close(warp(images)[..., inner], expected, atol=0.01, rtol=0)
    assert 0.5 < inner.float().mean() < 1
    assert warp.valid((48, 48)).all()  # beyond the crop, but not beyond the image


# The valid region, inverses, composition


def test_the_valid_region_of_a_turn_by_hand():
    size, angle = 101, 30.0
    warp = Warp.from_rotations(torch.tensor([angle], dtype=torch.float64), (size, size))
    y, x = torch.meshgrid(*[torch.arange(size).double() - 50] * 2, indexing="ij")
    theta = math.radians(angle)
    source_x = x * math.cos(theta) - y * math.sin(theta)
    source_y = x * math.sin(theta) + y * math.cos(theta)
    expected = (source_x.abs() <= 50.5) & (source_y.abs() <= 50.5)
    assert torch.equal(warp.valid((size, size))[0], expected)
    assert 0.8 < expected.double().mean() < 0.95


def test_crops_are_valid_everywhere_and_known_to_be():
    views = ViewSampler()(200, size=(30, 50))
    assert views.is_inside and views[3:5].is_inside and views.to("cpu").is_inside
    assert views.valid((30, 50)).all() and views.valid((224, 224)).all()
    assert not Warp.from_crops(
        torch.tensor([[0.5, 0.0, 1.0, 1.0]]), torch.tensor([False])
    ).is_inside
    assert not Warp.from_shifts(torch.zeros(1, 2)).is_inside


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_copies_of_views_know_which_only_move_pixels(device):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.7, 0.6], [0.0, 0.0, 1.0, 1.0]])
    views = Warp.from_crops(boxes, flip=torch.tensor([False, False, True]))
    images = torch.rand(3, 1, 17, 19)
    expected = views(images)
    assert torch.equal(expected[0], images[0])
    assert torch.equal(expected[2], images[2].flip(-1))
    assert not torch.equal(expected[1], images[1])
    copied = views.to(device)
    assert copied(images.to(device)).shape == images.shape
    if device == "cpu":
        assert torch.equal(copied(images), expected)
        assert torch.equal(copied[1:](images[1:]), expected[1:])
        assert torch.equal(views[:2](images[:2]), expected[:2])


def test_a_matrix_of_ones_own_gives_what_a_crop_does():
    images = torch.rand(50, 3, 20, 20)
    views = ViewSampler()(50, size=(20, 20))
    assert torch.equal(Warp(views.matrix)(images), views(images))


def test_inverses_undo_what_they_can():
    generator = torch.Generator().manual_seed(0)
    sampler = ViewSampler(scale=(0.5, 1.0), rotation=180, translation=0.3)
    views = sampler(40, size=(30, 40), generator=generator)
    warp = Warp(views.matrix.double())
    together = warp.then(warp.inverse()).matrix
    assert torch.allclose(together, torch.eye(2, 3).double().expand(40, 2, 3), atol=1e-12)
    # By hand: half the width, from the middle on.
    crop = Warp.from_crops(torch.tensor([[0.5, 0.0, 0.5, 1.0]]), torch.tensor([False]))
    undone = crop.inverse()
    assert undone.valid((2, 6))[0].tolist() == [[False] * 3 + [True] * 3] * 2
    ramp = torch.arange(8.0).expand(1, 8, 8).contiguous()
    shown = undone(crop(ramp))
    torch.testing.assert_close(shown[0, :, 5:7], ramp[0, :, 5:7], atol=1e-5, rtol=0)


def test_undone_maps_are_the_maps_where_they_are_valid():
    maps, size = smooth_images(3, 60, 60)[:, 0], (60, 60)
    turn = Warp.from_rotations(torch.tensor([20.0, -100.0, 170.0]), size)
    undo = turn.inverse()
    valid = undo.valid(size)
    change = (undo(turn(maps)) - maps).abs()
    assert change[valid].max() < 0.05 < change[~valid].max()


def test_a_view_of_a_view_is_sampled_once():
    images = torch.rand(2, 1, 40, 40)
    crop = Warp.from_crops(torch.tensor([[0.25, 0.25, 0.5, 0.5]] * 2), torch.tensor([True, False]))
    shift = Warp.from_shifts(torch.tensor([[0.25, 0.0]] * 2))
    matrix = crop.then(shift).matrix
    # The shift goes by a quarter of the view, an eighth of the image; mirrored, to the left.
    torch.testing.assert_close(matrix[:, 0, 2], torch.tensor([0.25, -0.25]))
    assert crop.then(shift).valid((40, 40)).all() and not shift.valid((40, 40)).all()
    assert torch.equal(crop.then(Warp.identity(2))(images), crop(images))


def test_differentiable_where_views_are_turned():
    maps = torch.rand(2, 6, 7, dtype=torch.float64, requires_grad=True)
    warp = Warp.from_rotations(torch.tensor([33.0, 180.0], dtype=torch.float64), (6, 7))
    assert torch.autograd.gradcheck(warp, maps)


# Samplers


def test_angles_and_shifts_follow_their_ranges():
    sampler = ViewSampler((1, 1), (1, 1), flip=0.0, rotation=40, translation=0.25)
    matrix = sampler(5000, size=(64, 64), generator=torch.Generator().manual_seed(0)).matrix
    angles = torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]).rad2deg()
    assert -40 <= angles.min() < -39 and 39 < angles.max() <= 40
    assert abs(angles.mean()) < 1 and angles.std() == pytest.approx(80 / math.sqrt(12), rel=0.03)
    shifts = -0.5 * (matrix[:, :, :2].transpose(1, 2) @ matrix[:, :, 2:])[..., 0]
    assert shifts.abs().max() <= 0.25 + 1e-6
    assert shifts.std(0).tolist() == pytest.approx([0.5 / math.sqrt(12)] * 2, rel=0.03)
    assert (
        abs(torch.corrcoef(torch.cat([shifts, angles[:, None]], 1).T) - torch.eye(3)).max() < 0.05
    )


def test_turns_keep_proportions_in_pixels():
    size = (40, 100)
    matrix = ViewSampler((1, 1), (2.5, 2.5), flip=0.0, rotation=90)(50, size=size).matrix
    half = torch.tensor([size[1] / 2, size[0] / 2])
    in_pixels = half[:, None] * matrix[:, :, :2] / half
    identity = torch.eye(2).expand(50, 2, 2)
    torch.testing.assert_close(in_pixels @ in_pixels.transpose(1, 2), identity, atol=1e-5, rtol=0)


def test_without_more_than_crops_the_same_numbers_are_drawn():
    """Ten areas, ten ratios, a position and a flip an image, as before there was more to draw."""
    ours, plain = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    ViewSampler(rotation=0.0, brightness=0)(7, size=(10, 10), generator=ours)
    torch.rand(7, 23, generator=plain, dtype=torch.float64)
    assert torch.equal(ours.get_state(), plain.get_state())


def test_seeded_and_independent_of_the_batches():
    sample = ViewSampler(rotation=20, translation=0.1, brightness=0.5, blur=1.0, grey=0.5)
    images = torch.rand(6, 3, 24, 24)

    def of(*numbers):
        generator, parts, start = torch.Generator().manual_seed(3), [], 0
        for n in numbers:
            views = sample(n, size=(24, 24), generator=generator)
            parts.append(views.of_images(images[start : start + n]))
            start += n
        return torch.cat(parts)

    torch.testing.assert_close(of(6), of(1, 3, 2), atol=1e-6, rtol=0)
    views = sample(6, size=(24, 24), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(views[2:4].of_images(images[2:4]), of(6)[2:4], atol=1e-6, rtol=0)
