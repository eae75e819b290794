"""Consistent training on volumes: its loss against finite differences, and a ball that is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sklcam
from sklcam import ConsistentCAMClassifier
from sklcam.cam import GradCAM, min_max, upsample
from sklcam.metrics import evaluate, structural_similarity
from sklcam.training import (
    Consistency,
    Explanations,
    Sparsity,
    ViewSampler,
    Warp,
    signs_of_collapse,
)

SIDE = 16


class VolumeNet(nn.Module):
    """Two convolutions of volumes, a mean, a linear layer."""

    def __init__(self, num_classes: int = 2, in_channels: int = 1):
        super().__init__()
        self.first = nn.Conv3d(in_channels, 8, 5, padding=2)
        self.second = nn.Conv3d(8, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8, num_classes)

    def forward(self, volumes):
        hidden = self.second(self.first(volumes).relu()).relu()
        return self.linear(hidden.mean((2, 3, 4)))


def balls(n: int = 24, seed: int = 0, side: int = SIDE) -> tuple[torch.Tensor, np.ndarray]:
    """Volumes of noise with one ball, large in class 1 and small in class 0."""
    generator = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.arange(side)] * 3, indexing="ij")
    labels = np.arange(n) % 2
    volumes = 0.1 * generator.random((n, 1, side, side, side), dtype=np.float32)
    for volume, label in zip(volumes, labels, strict=True):
        at, radius = generator.integers(5, side - 5, 3), 2 + 2 * label
        near = (z - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2 <= radius**2
        volume[0][near] = 0.9
    return torch.from_numpy(volumes), labels


def classifier(**options: object) -> ConsistentCAMClassifier:
    usual = {
        "module": VolumeNet,
        "target_layer": "second",
        "image_size": (SIDE, SIDE, SIDE),
        "mean": 0.2,
        "std": 0.3,
        "max_epochs": 1,
        "batch_size": 8,
        "train_split": None,
        "random_state": 0,
        "verbose": 0,
        "device": "cpu",
    }
    return ConsistentCAMClassifier(**{**usual, **options})


# The loss


def loss_of(net: nn.Module, X: torch.Tensor, warp: Warp) -> torch.Tensor:
    """The consistency and sparsity of the maps, as a step makes them of sklcam's parts."""
    maps = []
    for images in (X, warp(X)):
        activations = net.second(net.first(images).relu())
        scores = net.linear(activations.relu().mean((2, 3, 4)))[:, 1]
        maps.append(GradCAM(relu=False)(scores, activations, create_graph=True))
    explained = Explanations(maps[0], maps[1], warp, size=tuple(X.shape[2:]), spatial_dims=3)
    return Consistency().values(explained).mean() + 1e-3 * Sparsity().values(explained).mean()


def test_the_gradient_of_the_loss_is_that_of_finite_differences():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = VolumeNet().double()
    X = balls(2, side=12)[0].double()
    turn = Warp.from_rotations(torch.tensor([20.0, -10.0], dtype=torch.float64), (12, 12, 12))
    crop = Warp.from_crops(
        torch.tensor([[0.1, 0.0, 0.2, 0.8, 0.9, 0.8]] * 2, dtype=torch.float64),
        flip=torch.tensor([[True, False, True], [False, True, False]]),
    )
    for warp in (crop, turn):
        parameters = [net.first.weight, net.second.weight, net.linear.weight]
        # The parameter of the linear layer's other class has no part in the maps of class 1.
        gradients = torch.autograd.grad(loss_of(net, X, warp), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            generator = torch.Generator().manual_seed(1)
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            was, step, losses = parameter.detach().clone(), 1e-6, []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.copy_(was + sign * step * direction)
                losses.append(loss_of(net, X, warp).item())
                with torch.no_grad():
                    parameter.copy_(was)
            expected = (losses[0] - losses[1]) / (2 * step)
            assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4)


def test_the_terms_are_those_of_the_equations():
    generator = torch.Generator().manual_seed(0)
    maps, of_view = torch.randn(2, 2, 6, 6, 6, generator=generator).unbind()
    warp = Warp.from_crops(
        torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]] * 2), torch.tensor([[True, False, True]] * 2)
    )
    explained = Explanations(maps, of_view, warp, size=(12, 12, 12), spatial_dims=3)
    big, big_of_view = (
        F.interpolate(each[:, None], size=(12, 12, 12), mode="trilinear")[:, 0]
        for each in (maps, of_view)
    )
    low, high = (f(big.flatten(1), 1)[:, None, None, None] for f in (torch.amin, torch.amax))
    scaled = (big - low) / (high - low)
    torch.testing.assert_close(explained.scaled, scaled)
    low, high = (
        f(big_of_view.flatten(1), 1)[:, None, None, None] for f in (torch.amin, torch.amax)
    )
    scaled_of_view = (big_of_view - low) / (high - low)
    expected = 1 - structural_similarity(scaled.flip((1, 3)), scaled_of_view, spatial_dims=3)
    torch.testing.assert_close(Consistency().values(explained), expected)
    torch.testing.assert_close(Sparsity().values(explained), scaled.sum((1, 2, 3)))
    torch.testing.assert_close(min_max(upsample(maps, (12, 12, 12)), 3), scaled)


def test_signs_of_collapse_look_at_the_eight_corners():
    maps = torch.zeros(4, 5, 5, 5)
    maps[0, 0, 4, 0] = maps[1, 4, 4, 4] = maps[2, 2, 2, 2] = 1
    signs = signs_of_collapse(
        torch.eye(2)[[0, 1, 0, 1]], torch.tensor([0, 1, 1, 1]), maps, spatial_dims=3
    )
    assert {name: float(share) for name, share in signs.items()} == {
        "correct": 0.75,
        "constant_maps": 0.25,
        "corner_maps": 0.5,
        "alike_maps": 0.0,
    }


# The estimator


@pytest.mark.parametrize("kind", ["array", "tensor", "bytes"])
def test_training_on_volumes_runs_and_explains(kind):
    X, y = balls()
    if kind == "bytes":
        X = (X * 255).to(torch.uint8)
    X = X.numpy() if kind == "array" else X
    clf = classifier(alpha=0.5, beta=1e-5, train_split=None).fit(X, np.array(["small", "big"])[y])
    assert clf.target_layer_.layout == "ncdhw"
    row = clf.history[-1]
    assert 0 < row["train_inconsistency"] < 2 and np.isfinite(row["train_norm"])
    assert set(clf.predict(X)) <= {"small", "big"}
    maps = clf.explain(X[:3])
    assert maps.shape == (3, SIDE, SIDE, SIDE) and maps.max() == 1
    prepared = torch.as_tensor(X[:3]).float() / (255 if kind == "bytes" else 1)
    with torch.no_grad():
        logits = clf.module_.eval()((prepared - 0.2) / 0.3)
    np.testing.assert_allclose(clf.predict_proba(X[:3]), logits.softmax(1), atol=1e-5)


def test_a_step_sees_the_view_that_was_drawn():
    X, y = balls(8)
    clf = classifier(alpha=1.0, beta=0.0, augment=None, batch_size=8, optimizer__momentum=0.0)
    clf.set_params(lr=0.0, iterator_train__shuffle=False).fit(X, y)
    net = clf.module_.eval()
    # Without a step of the optimizer, the recorded loss is that of the network as it is: by the
    # same seed, the views of another run.
    again = classifier(alpha=1.0, beta=0.0, augment=None, batch_size=8)
    again.set_params(lr=0.0, iterator_train__shuffle=False).fit(X, y)
    recorded = clf.history[-1, "train_inconsistency"]
    assert recorded == again.history[-1, "train_inconsistency"]
    result = evaluate(clf, X, y, metrics="consistency", random_state=0)
    assert 0 < 1 - recorded < 1 and np.isfinite(result["consistency"]).all()
    assert net is clf.module_


def test_identical_views_are_consistent():
    X, y = balls(8)
    whole = ViewSampler(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    clf = classifier(alpha=1.0, beta=0.0, augment=None, views=whole).fit(X, y)
    assert clf.history[-1, "train_inconsistency"] < 1e-5


def test_low_memory_and_micro_batches_train_alike():
    X, y = balls(8)
    plain = classifier(alpha=0.5, batch_size=8, optimizer__momentum=0.0).fit(X, y)
    for options in ({"memory": "low"}, {"batch_accumulation": 2}):
        other = classifier(alpha=0.5, batch_size=8, optimizer__momentum=0.0, **options).fit(X, y)
        for name, value in plain.module_.state_dict().items():
            torch.testing.assert_close(
                other.module_.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=str(options)
            )


def test_what_was_trained_is_saved_and_read(tmp_path):
    X, y = balls(8)
    clf = classifier(alpha=0.5).fit(X, y)
    sklcam.save(clf, tmp_path / "volumes.skl")
    read = sklcam.load(tmp_path / "volumes.skl", objects={"VolumeNet": VolumeNet})
    np.testing.assert_array_equal(read.explain(X[:2]), clf.explain(X[:2]))
    assert read.image_size == (SIDE, SIDE, SIDE)


def test_consistency_rises_on_a_densenet_of_volumes():
    nets = pytest.importorskip("monai.networks.nets")
    X, y = balls(16, side=16)
    options = {
        "module": nets.DenseNet,
        "module__spatial_dims": 3,
        "module__out_channels": 2,
        "module__init_features": 8,
        "module__growth_rate": 4,
        "module__block_config": (2, 2),
        "target_layer": "features.denseblock2",
        "lr": 0.02,
        "max_epochs": 4,
        "views": ViewSampler(scale=(0.6, 1.0)),
        "augment": None,
    }
    clf = classifier(alpha=1.0, beta=1e-6, **options).fit(X, y)
    recorded = clf.history[:, "train_inconsistency"]
    assert recorded[-1] < recorded[0]


@pytest.mark.slow
def test_one_epoch_of_monais_densenet121():
    nets = pytest.importorskip("monai.networks.nets")
    X, y = balls(8, side=32)
    clf = classifier(
        module=nets.DenseNet121,
        module__spatial_dims=3,
        module__out_channels=2,
        target_layer="auto",
        image_size=(32, 32, 32),
        batch_size=4,
    ).fit(X, y)
    assert np.isfinite(clf.history[-1, "train_inconsistency"])
    assert clf.explain(X[:2]).shape == (2, 32, 32, 32)


# At the door


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X[:, :, :8], "volumes are not resized"),
        (lambda X: X[:, 0], "image_size=.16, 16, 16. is for volumes"),
        (lambda X: X.permute(0, 2, 3, 4, 1), "channels last.*permute"),
        (lambda X: X.permute(0, 2, 3, 4, 1).numpy(), "channels last.*transpose"),
        (lambda X: X * 1000, "floats must lie in"),
    ],
    ids=["size", "axes", "tensor-last", "array-last", "range"],
)
def test_what_are_no_such_volumes_is_refused(change, message):
    X, y = balls(4)
    with pytest.raises(ValueError, match=message):
        classifier().fit(change(X), y)
    clf = classifier().fit(X, y)
    with pytest.raises(ValueError, match=message):
        clf.predict(change(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 16}, "is for pictures"),
        ({"image_size": (8, 8, 8), "alpha": 1.0}, "windows of 11 pixels"),
        ({"module": "resnet18", "target_layer": "auto"}, "networks given by name"),
        ({"augment": ViewSampler(brightness=0.2)}, "have no colours"),
        ({"channels_last": True}, "channels_last=True"),
        ({"image_size": (16, 16, 0)}, "positive ints"),
    ],
    ids=["pictures", "window", "name", "colours", "order", "size"],
)
def test_parameters_of_pictures_are_refused(options, message):
    X, y = balls(4)
    with pytest.raises(ValueError, match=message):
        classifier(**options).fit(X, y)


def test_masks_in_training_are_of_pictures():
    X, y = balls(4)
    with pytest.raises(ValueError, match="only for pictures"):
        classifier(gamma=0.1).fit(X, y, masks=np.ones((4, SIDE, SIDE)))
