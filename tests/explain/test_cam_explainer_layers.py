"""Layers that are explained, in any number and layout, and the weights of their channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from plain_explanations import (
    IMAGES,
    LABELS,
    counted,
    explainer,
    network,
    of_class,
    plain_grad_cam,
    plain_run,
    predicted,
    scaled,
)
from small_networks import TokenNet
from torch import nn

from sklcam import CAMExplainer
from sklcam.cam import GradCAM, LayerCAM, TopK
from sklcam.networks import TargetLayer


def plain_weights(model, images, score, layer="5", *others):
    output, (activations,) = plain_run(model, [layer], images, *others)
    (gradient,) = torch.autograd.grad(score(output).sum(), activations)
    return gradient.mean((2, 3)), activations


# Layers


@pytest.mark.parametrize("method", [GradCAM, LayerCAM])
def test_several_layers(method):
    model, names = network(), ["2", "3", "5"]
    for normalized in (True, False):
        each = np.stack(
            [
                explainer(model, method, target_layer=name).explain(IMAGES, normalize=normalized)
                for name in names
            ],
            axis=1,
        )
        finish = scaled if normalized else (lambda maps: maps)
        for fusion, expected in (
            ("mean", finish(each.mean(1))),
            ("max", finish(each.max(1))),
            (None, each),
        ):
            ours = explainer(model, method, target_layer=names, layer_fusion=fusion)
            with counted(model) as passes:
                maps = ours.explain(IMAGES, normalize=normalized)
            assert passes == [3, 3, 1]
            assert_allclose(maps, expected, atol=1e-5)
    single = explainer(model, method, target_layer=["5"], layer_fusion=None)
    assert single.explain(IMAGES).shape == IMAGES[:, 0].shape


def by_hand(tensor):
    return tensor[:, 1:].transpose(1, 2).reshape(len(tensor), -1, 4, 4)


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "ablationcam", "scorecam"])
def test_reshape(method):
    model = network(TokenNet)
    layer = TargetLayer("norm", layout="tokens", grid=(4, 4), n_prefix=1)
    by_layout = explainer(model, method, target_layer=layer)
    ours = explainer(model, method, target_layer="norm", reshape=by_hand)
    assert_array_equal(ours.explain(IMAGES), by_layout.explain(IMAGES))
    if method == "gradcam":
        expected = plain_grad_cam(model, IMAGES, predicted, "norm", grid=by_hand)
        assert_allclose(ours.explain(IMAGES), scaled(expected), atol=1e-5)
    if method == "ablationcam":
        assert_allclose(ours.channel_weights(IMAGES), ablated_by_hand(model), rtol=1e-3, atol=1e-5)


def ablated_by_hand(model):
    """Eq. 3 of the paper, by a hook that empties one channel at a time."""
    full, classes = model(IMAGES).max(1)
    falls = []
    for channel in range(6):
        keep = torch.ones(6).index_fill(0, torch.tensor(channel), 0)
        handle = model.norm.register_forward_hook(lambda _, __, out, keep=keep: out * keep)
        falls.append((full - of_class(classes)(model(IMAGES))) / full.abs())
        handle.remove()
    return torch.stack(falls, 1).detach()


@pytest.mark.parametrize(
    ("reshape", "message"),
    [
        (lambda tensor: tensor, "reshape must turn the output of 'norm'"),
        (lambda tensor: by_hand(tensor)[:1], "'norm' returns 1 rows, .* for 3 images"),
        (lambda tensor: tensor.shape, "reshape must turn the output of 'norm'"),
    ],
)
def test_wrong_reshape(reshape, message):
    with pytest.raises(ValueError, match=message):
        explainer(network(TokenNet), target_layer="norm", reshape=reshape).explain(IMAGES)


def test_a_single_position_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pooled = TargetLayer("1")
    with pytest.raises(ValueError, match="'1' has a single position for images of 16 x 16 pixels"):
        CAMExplainer(model, target_layer=pooled).fit(IMAGES)
    with pytest.raises(ValueError, match=r"'1' .* several positions"):
        CAMExplainer(model, target_layer="1").fit(IMAGES)
    CAMExplainer(model, target_layer="0").fit(IMAGES)
    CAMExplainer(model, target_layer=pooled, method="saliency").fit(IMAGES)  # needs no layer


def test_pixels_are_explained_where_no_layer_is_a_grid():
    model = network(lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match="needs a layer with a spatial output"):
        explainer(model)
    ours = explainer(model, method="saliency")
    assert ours.target_layers_ == []
    weights = (model[2].weight @ model[1].weight).detach()[LABELS].reshape(IMAGES.shape)
    assert_allclose(ours.explain(IMAGES, LABELS), scaled(weights.abs()[:, 0].numpy()), atol=1e-5)
    with pytest.raises(ValueError, match=r"GradCAM.* explains a layer, but fit found none"):
        ours.explain(IMAGES, method="gradcam")


def test_images_that_the_network_does_not_take():
    with pytest.raises(ValueError, match=r"does not take images of \(3, 16, 16\): .*channels"):
        CAMExplainer(network()).fit(IMAGES.expand(-1, 3, -1, -1))


# Channels


def test_channel_weights():
    model = network()
    ours = explainer(model)

    def alpha(classes, layer="5"):
        return plain_weights(model, IMAGES, of_class(classes), layer)[0].numpy()

    ranked = model(IMAGES).argsort(dim=1, descending=True)
    weights = ours.channel_weights(IMAGES)
    assert weights.dtype == np.float32
    assert_allclose(weights, alpha(ranked[:, 0]), rtol=1e-4, atol=1e-7)
    several = np.stack([alpha(ranked[:, j]) for j in range(2)], 1)
    assert_allclose(ours.channel_weights(IMAGES, TopK(2)), several, rtol=1e-4, atol=1e-7)
    by_layer = explainer(model, target_layer=["2", "5"]).channel_weights(IMAGES, LABELS)
    for of_layer, name in zip(by_layer, ("2", "5"), strict=True):
        assert_allclose(of_layer, alpha(LABELS, name), rtol=1e-4, atol=1e-7)
    maxima = ours.channel_weights(IMAGES, LABELS, method=GradCAM(pooling="max"))
    output, (activations,) = plain_run(model, ["5"], IMAGES)
    (gradient,) = torch.autograd.grad(of_class(LABELS)(output).sum(), activations)
    assert_allclose(maxima, gradient.amax((2, 3)), rtol=1e-4, atol=1e-7)
    for method in ("layercam", "saliency", "uniform"):
        with pytest.raises(ValueError, match="does not give each channel a single weight"):
            ours.channel_weights(IMAGES, method=method)


@pytest.mark.parametrize("target", [None, TopK(2)])
def test_strongest_channels(target):
    ours = explainer()
    weights = ours.channel_weights(IMAGES, target)
    found = ours.strongest_channels(IMAGES, target, k=3)
    ascending = np.sort(weights, axis=-1)
    assert_array_equal(found.positive_weights, ascending[..., :-4:-1])
    assert_array_equal(found.negative_weights, ascending[..., :3])
    for sign in ("positive", "negative"):
        chosen = np.take_along_axis(weights, found[sign], axis=-1)
        assert_array_equal(chosen, found[f"{sign}_weights"])
    for k in (0, 9):
        with pytest.raises(ValueError, match="k, how many channels, must be an int"):
            ours.strongest_channels(IMAGES, k=k)
    with pytest.raises(ValueError, match="single target layer"):
        explainer(target_layer=["2", "5"]).strongest_channels(IMAGES)
