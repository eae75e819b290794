"""Eigen-CAM and Eigen-Grad-CAM against numpy's factorisation and pytorch-grad-cam."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from small_networks import SmallNet

from sklcam import CAMExplainer
from sklcam.cam import EigenCAM, EigenGradCAM, HiResCAM, RecordedPass
from sklcam.cam.eigen import first_component
from sklcam.networks import TargetLayer


def grids_of(n_channels: int, shape: tuple[int, ...], dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_channels)
    grids = torch.randn(3, n_channels, *shape, generator=generator, dtype=torch.float64)
    return (grids * torch.rand(n_channels, *[1] * len(shape), generator=generator)).to(dtype)


def projection(grid: np.ndarray, center: bool) -> np.ndarray:
    """O v_1, by the factorisation of the paper: a row for each position, a column a channel."""
    rows = grid.reshape(len(grid), -1).T
    rows = rows - rows.mean(axis=0) if center else rows
    _, _, components = np.linalg.svd(rows)
    return (rows @ components[0]).reshape(grid.shape[1:])


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    ("n_channels", "shape"), [(5, (6, 7)), (60, (3, 4)), (7, (2, 3, 4)), (1, (3, 3))]
)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("size", [1.0, 1e-15, 1e15])
def test_the_component_is_that_of_the_factorisation(n_channels, shape, center, dtype, limit, size):
    grids = grids_of(n_channels, shape, dtype) * size
    found, directions = first_component(grids, center=center)
    assert found.shape == (3, *shape)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(3, dtype=dtype))
    for map_, grid in zip(found.double().numpy(), grids.double().numpy(), strict=True):
        expected = projection(grid, center)
        expected *= np.sign((expected * map_).sum())
        np.testing.assert_allclose(map_, expected, rtol=0, atol=limit * np.abs(expected).max())


def test_two_components_of_one_size_give_a_direction_within_their_plane():
    rows = torch.zeros(1, 3, 4)
    rows[0, 0, 0] = rows[0, 1, 1] = 2.0
    rows[0, 2, 2] = 1.0
    _, (direction,) = first_component(rows[..., None], center=False)
    assert direction[2] == 0 and direction.norm() == 1


def explained(network, images, method, layer="4", **options) -> np.ndarray:
    explainer = CAMExplainer(network, method, layer, verbose=0).fit(images)
    return explainer.explain(images, **options)


def raw(network, images, method, layer="4") -> np.ndarray:
    """Maps at the layer's own size."""
    recorded = RecordedPass(network, [TargetLayer(layer)], images)
    (maps,) = method.explain(recorded)
    return maps[:, 0].numpy()


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return SmallNet(num_classes=4, in_channels=1, width=6).double().eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("center", [False, True])
def test_the_largest_absolute_value_is_positive(network, images, center):
    maps = raw(network, images, EigenCAM(relu=False, center=center))
    assert (maps.max(axis=(1, 2)) > -maps.min(axis=(1, 2))).all() and (maps < 0).any()
    np.testing.assert_array_equal(
        raw(network, images, EigenCAM(center=center)), np.maximum(maps, 0)
    )


def test_of_two_that_are_as_large_the_first_is_positive():
    images = torch.tensor([[[[1.0, 5.0]]], [[[5.0, 1.0]]]])
    network = torch.nn.Sequential(
        torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    maps = raw(network, images, EigenCAM(center=True), "0")
    np.testing.assert_allclose(maps, [[[2, 0]], [[2, 0]]])  # 2 from their mean, on either side


def test_behind_a_relu_nothing_is_negative(network, images):
    """By Perron and Frobenius: of a matrix without negative entries, nor has its component any."""
    maps = raw(network, images, EigenCAM(relu=False), "5")
    assert (maps >= -1e-12).all() and (maps.max(axis=(1, 2)) > 0).all()


def test_no_class_counts(network, images):
    first, other = (explained(network, images, "eigencam", target=label) for label in (0, 1))
    np.testing.assert_array_equal(first, other)


def test_evidence_grows_with_the_map(network, images):
    """The sign of Eigen-Grad-CAM: its map and HiResCAM's go up and down together."""
    maps = raw(network, images, EigenGradCAM(relu=False), "2")
    evidence = raw(network, images, HiResCAM(relu=False), "2")
    for map_, summed in zip(maps, evidence, strict=True):
        assert np.corrcoef(map_.ravel(), summed.ravel())[0, 1] > 0


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (EigenCAM(center=True), pytorch_grad_cam.EigenCAM),
        (EigenGradCAM(), pytorch_grad_cam.EigenGradCAM),
    ],
    ids=["eigencam", "eigengradcam"],
)
def test_pytorch_grad_cam(network, images, method, kind):
    """It takes whichever sign LAPACK returns; with ours, the maps are the same."""
    network, images = network.float(), images.float()
    unsigned = type(method)(**method.get_params() | {"relu": False})
    # Not layer 4, which the ReLU behind it changes in place, and with it what its hooks have kept.
    ours = explained(network, images, unsigned, "2", normalize=False)
    with kind(network, target_layers=[network[2]]) as cam:
        theirs = cam(input_tensor=images, targets=None)
    for own, their in zip(ours, theirs, strict=True):
        as_it_is, turned = (scaled(np.maximum(each, 0)) for each in (own, -own))
        assert min(np.abs(as_it_is - their).max(), np.abs(turned - their).max()) < 1e-3


def scaled(map_: np.ndarray) -> np.ndarray:
    return (map_ - map_.min()) / (map_.max() - map_.min())
