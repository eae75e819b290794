"""Faster-Score-CAM, Group-CAM and Recipro-CAM against their formulas, in loops over one image.

The blur of Group-CAM is torchvision's, and its percentile NumPy's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import SmallNet
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from sklcam.cam import (
    CAM,
    Classes,
    FasterScoreCAM,
    GroupCAM,
    ReciproCAM,
    ScoreCAM,
    TopK,
)
from sklcam.cam.faster import _blurred, _percentile
from sklcam.cam.passes import record_for
from sklcam.networks import TargetLayer

SIZE, GRID, LAYER = 12, 6, TargetLayer("5")


@pytest.fixture
def small() -> nn.Module:
    """Of float64; layer 5 has half of the images' resolution, and 6 channels."""
    torch.manual_seed(0)
    model = nn.Sequential(*SmallNet(num_classes=4, in_channels=3, width=6)).double().eval()
    model[-1].weight.data *= 20  # probabilities that differ
    return model


def noise_images(n: int, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, size, size, generator=generator).double()


def maps_of(method, model, images, target=None, layer=LAYER, probabilities=None):
    recorded = record_for(
        [method],
        model,
        [layer],
        images,
        target=target,
        probabilities=probabilities or (lambda output: output.softmax(dim=1)),
    )
    (maps,) = method.explain(recorded)
    return maps


def scaled(mask):
    extent = mask.max() - mask.min()
    return (mask - mask.min()) / extent if extent > 0 else mask * 0


def enlarged(grid, size=SIZE):
    return F.interpolate(grid[None, None], size=size, mode="bilinear")[0, 0]


# Faster-Score-CAM


def test_with_all_channels_faster_scorecam_is_scorecam(small):
    images = noise_images(3)
    expected = maps_of(ScoreCAM(), small, images, TopK(2))
    for n_channels in (6, 100):
        found = maps_of(FasterScoreCAM(n_channels=n_channels), small, images, TopK(2))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_faster_scorecam_by_its_formula(small, n_channels):
    images, classes = noise_images(3), [0, 3, 1]
    maps = maps_of(FasterScoreCAM(n_channels=n_channels), small, images, torch.tensor(classes))
    for image, label, found in zip(images, classes, maps, strict=True):
        channels = small[:6](image[None])[0].detach()
        chosen = np.argsort(-channels.numpy().std(axis=(1, 2)))[:n_channels]
        masked = torch.stack([image * scaled(enlarged(channels[k])) for k in chosen])
        weights = small(masked)[:, label].softmax(dim=0)
        expected = (weights[:, None, None] * channels[chosen]).sum(dim=0).relu()
        torch.testing.assert_close(found[0], expected.detach())


def test_faster_scorecam_asks_for_as_many_passes_as_channels(small):
    rows = []
    recorded = record_for([FasterScoreCAM()], small, [LAYER], noise_images(2))
    recorded.prepare_inference()
    hook = small[-1].register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    FasterScoreCAM(n_channels=2).explain(recorded)
    hook.remove()
    assert sum(rows) <= 2 * 2 + 2  # and an empty image each, if a channel of them is constant


# Group-CAM


def group_cam(model, image, label, n_groups, percentile):
    """Return the map of one image by the formula of the paper."""
    channels = model[:6](image[None])
    leaf = channels.detach().requires_grad_()
    (gradients,) = torch.autograd.grad(model[6:](leaf)[0, label], leaf)
    parts = (gradients.mean(dim=(2, 3), keepdim=True) * leaf.detach())[0]
    size = image.shape[-1]
    blurred = gaussian_blur(image, [min(51, 2 * size - 1)] * 2, [50.0, 50.0])
    base = model(blurred[None]).softmax(dim=1)[0, label]
    total, per_group = torch.zeros(size, size).double(), -(-len(parts) // n_groups)
    for start in range(0, len(parts), per_group):
        mask = parts[start : start + per_group].sum(dim=0).relu()
        mask = torch.where(mask > np.percentile(mask.numpy(), percentile), mask, 0.0)
        mask = scaled(enlarged(mask, size))
        gain = model((image * mask + blurred * (1 - mask))[None]).softmax(dim=1)[0, label] - base
        total += gain.detach() * mask
    return total.relu()


@pytest.mark.parametrize(("n_groups", "percentile"), [(1, 70.0), (2, 50.0), (4, 0.0), (32, 70.0)])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_group_cam_by_its_formula(small, n_groups, percentile, batch_size):
    images, method = noise_images(3), GroupCAM(n_groups, percentile, batch_size)
    maps = maps_of(method, small, images, Classes(torch.tensor([[0, 3], [3, 1], [1, 2]])))
    assert maps.shape == (3, 2, SIZE, SIZE) and maps.any()
    for image, labels, found in zip(images, [[0, 3], [3, 1], [1, 2]], maps, strict=True):
        for label, one in zip(labels, found, strict=True):
            expected = group_cam(small, image, label, n_groups, percentile)
            torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("size", [(7, 60), (52, 30), (26, 25), (1, 3)])
def test_the_blur_is_torchvisions(size):
    images = torch.rand(2, 3, *size).double()
    kernel = [min(51, 2 * side - 1) for side in reversed(size)]
    torch.testing.assert_close(_blurred(images), gaussian_blur(images, kernel, [50.0, 50.0]))
    volumes = images[:, :, None].expand(-1, -1, 4, -1, -1)  # the same in all slices
    expected = _blurred(images)[:, :, None].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(_blurred(volumes), expected)


@pytest.mark.parametrize("percentile", [0, 12.5, 70, 99.9, 100])
def test_percentiles_are_numpys(percentile):
    values = torch.randn(3, 4, 11).double()
    expected = np.percentile(values.numpy(), percentile, axis=2)
    torch.testing.assert_close(_percentile(values, percentile), torch.from_numpy(expected))
    assert _percentile(values[..., :1], percentile).equal(values[..., 0])


def test_groups_without_evidence_add_nothing(small):
    """Where all gradients are negative, nothing is left of any group, and no map."""
    small[-1].weight.data = -small[-1].weight.data.abs()
    assert not maps_of(GroupCAM(), small, noise_images(2), torch.tensor([0, 1])).any()


def test_what_is_not_a_number_stays_so(small):
    images = noise_images(2)
    images[1, 0, 0, 0] = torch.nan
    unknown = torch.tensor([1.0, 2.0, torch.nan, 0.0]).reshape(1, 1, 2, 2)
    assert GroupCAM(1)._denoised(unknown, torch.ones(1, 1, 2, 2)).isnan().any()
    for method in (GroupCAM(2), FasterScoreCAM(n_channels=2), ReciproCAM()):
        maps = maps_of(method, small, images, torch.tensor([0, 0]))
        assert maps[0].isfinite().all() and maps[1].isnan().any()


# Recipro-CAM


def test_recipro_cam_by_its_formula(small):
    images, labels = noise_images(3), [[0, 3], [3, 1], [1, 2]]
    for batch_size in (256, 5):
        method = ReciproCAM(batch_size)
        maps = maps_of(method, small, images, Classes(torch.tensor(labels)))
        for image, classes, found in zip(images, labels, maps, strict=True):
            channels = small[:6](image[None]).detach()
            for i, j in np.ndindex(GRID, GRID):
                alone = torch.zeros_like(channels)
                alone[..., i, j] = channels[..., i, j]
                expected = small[6:](alone).softmax(dim=1)[0, classes]
                torch.testing.assert_close(found[:, i, j], expected.detach())


def test_recipro_cam_of_scores_is_cam_and_the_bias(small):
    """Behind a mean and a linear layer a place has its share of the score, and the bias."""
    images, bias = noise_images(2), small[-1].bias.detach()
    chosen = torch.tensor([[2], [0]])
    maps = maps_of(ReciproCAM(), small, images, Classes(chosen), probabilities=lambda out: out)
    cam = maps_of(CAM(relu=False), small, images, Classes(chosen))
    torch.testing.assert_close(maps, cam / GRID**2 + bias[chosen][..., None, None])


class ChannelsLast(nn.Module):
    """The same as ``small``, with a layer that has its channels last, or rows of tokens."""

    def __init__(self, model, *, tokens=False, prefix=0):
        super().__init__()
        self.trunk, self.layer, self.head = model[:6], nn.Identity(), model[6:]
        self.tokens, self.prefix = tokens, prefix

    def forward(self, images):
        grid = self.trunk(images).movedim(1, -1)
        shape = grid.shape
        if self.tokens:
            grid = F.pad(grid.flatten(1, 2), (0, 0, self.prefix, 0))
        grid = self.layer(grid)
        if self.tokens:
            grid = grid[:, self.prefix :].reshape(shape)
        return self.head(grid.movedim(-1, 1))


def test_recipro_cam_goes_on_in_the_layers_own_layout(small):
    images, target = noise_images(2), torch.tensor([1, 3])
    expected = maps_of(ReciproCAM(), small, images, target)
    last = maps_of(ReciproCAM(), ChannelsLast(small), images, target, TargetLayer("layer", "nhwc"))
    torch.testing.assert_close(last, expected)
    tokens = TargetLayer("layer", "tokens", grid=(GRID, GRID))
    found = maps_of(ReciproCAM(), ChannelsLast(small, tokens=True), images, target, tokens)
    torch.testing.assert_close(found, expected)


def test_recipro_cam_needs_a_grid_of_places_and_nothing_else(small):
    images, model = noise_images(2), ChannelsLast(small, tokens=True, prefix=1)
    prefixed = TargetLayer("layer", "tokens", grid=(GRID, GRID), n_prefix=1)
    with pytest.raises(ValueError, match="'layer' has tokens besides its places"):
        maps_of(ReciproCAM(), model, images, layer=prefixed)
    reshaped = TargetLayer("5", reshape=lambda grid: grid * 1)
    with pytest.raises(ValueError, match="'5' has a reshape of its own"):
        maps_of(ReciproCAM(), small, images, layer=reshaped)
