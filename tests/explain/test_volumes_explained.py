"""Networks of volumes: maps against gradients by hand, pytorch-grad-cam and captum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from volumes import random_volumes, tiny_volume_net

from sklcam import CAMExplainer
from sklcam.cam import (
    CAM,
    ISCAM,
    SSCAM,
    AblationCAM,
    Method,
    Occlusion,
    Saliency,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
    available,
    upsample,
)
from sklcam.explain import ExplanationWarning
from sklcam.networks import TargetLayer, find_target_layer

LAYER = "second"
SHAPE = (1, 8, 10, 12)  # no two sides alike, so that none is taken for another


def explained(net: nn.Module, X: Tensor, method: object, **options: object) -> np.ndarray:
    explainer = CAMExplainer(net, method=method, target_layer=LAYER, verbose=0).fit(X)
    return explainer.explain(X, **options)


def by_hand(net: nn.Module, X: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer's activations, the gradient of the class's score, and the score."""
    activations = net.second(net.relu(net.first(X))).detach().requires_grad_()
    scores = net.linear(activations.relu().mean(dim=(2, 3, 4)))[:, target]
    (gradients,) = torch.autograd.grad(scores.sum(), activations)
    return activations.detach(), gradients, scores.detach()


def enlarged(maps: Tensor, relu: bool = True) -> Tensor:
    maps = maps.relu() if relu else maps
    return F.interpolate(maps[:, None], size=SHAPE[1:], mode="trilinear", align_corners=False)[:, 0]


def scaled(maps: Tensor) -> Tensor:
    low, high = (f(maps.flatten(1), 1)[:, None, None, None] for f in (torch.amin, torch.amax))
    return (maps - low) / (high - low)


FORMULAS = {
    "gradcam": lambda a, g: (g.mean((2, 3, 4), keepdim=True) * a).sum(1),
    "counterfactual": lambda a, g: (-g.mean((2, 3, 4), keepdim=True) * a).sum(1),
    "hirescam": lambda a, g: (g * a).sum(1),
    "layercam": lambda a, g: (g.relu() * a).sum(1),
    "xgradcam": lambda a, g: (
        ((g * a).sum((2, 3, 4)) / a.sum((2, 3, 4)))[:, :, None, None, None] * a
    ).sum(1),
    "gradcam++": lambda a, g: (
        ((g**2 / (2 * g**2 + a.sum((2, 3, 4), keepdim=True) * g**3)).nan_to_num() * g.relu()).sum(
            (2, 3, 4), keepdim=True
        )
        * a
    ).sum(1),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_gradient_methods_equal_their_equations(name):
    net, X = tiny_volume_net(), random_volumes(3, *SHAPE)
    activations, gradients, _ = by_hand(net, X, 1)
    expected = enlarged(FORMULAS[name](activations, gradients))
    maps = explained(net, X, name, target=1, normalize=False)
    assert maps.shape == (3, *SHAPE[1:])
    np.testing.assert_allclose(maps, expected, atol=1e-6 * float(expected.max()))
    maps = explained(net, X, name, target=1)
    np.testing.assert_allclose(maps, scaled(expected), atol=1e-5)


def test_one_noisy_copy_without_noise_is_gradcam_plus_plus():
    net, X = tiny_volume_net(), random_volumes(2, *SHAPE)
    method = SmoothGradCAMPlusPlus(n_samples=1, std=0.0)
    expected = explained(net, X, "gradcam++", target=0)
    np.testing.assert_allclose(explained(net, X, method, target=0), expected, atol=1e-5)


def test_cam_weighs_by_the_linear_layer():
    net, X = tiny_volume_net(), random_volumes(2, *SHAPE)

    class Plain(nn.Module):  # without the ReLU behind the layer, which CAM does not take
        def __init__(self):
            super().__init__()
            self.first, self.second, self.linear = net.first, net.second, net.linear

        def forward(self, volumes):
            return self.linear(self.second(self.first(volumes).relu()).mean((2, 3, 4)))

    activations = net.second(net.first(X).relu()).detach()
    weights = net.linear.weight[2].detach()[:, None, None, None]
    expected = enlarged((weights * activations).sum(1))
    maps = explained(Plain().eval(), X, CAM(), target=2, normalize=False)
    np.testing.assert_allclose(maps, expected, atol=1e-6)


def test_scorecam_and_its_relatives_equal_their_equations():
    net, X = tiny_volume_net(), random_volumes(2, *SHAPE)
    activations, _, _ = by_hand(net, X, 1)
    masks = [scaled(enlarged(channel, relu=False)) for channel in activations.unbind(1)]

    def expected(scores_of):
        weights = torch.stack([scores_of(mask[:, None]) for mask in masks], 1).softmax(1)
        return enlarged((weights[:, :, None, None, None] * activations).sum(1))

    with torch.no_grad():
        of_mask = expected(lambda mask: net(X * mask)[:, 1])
        along = expected(lambda mask: (net(X * mask / 2)[:, 1] + net(X * mask * 1.5)[:, 1]) / 2)
    for method, wanted in ((ScoreCAM(), of_mask), (ISCAM(n_samples=2), along)):
        maps = explained(net, X, method, target=1, normalize=False)
        np.testing.assert_allclose(maps, wanted, atol=1e-5)
    # Without noise, the smoothed one is Score-CAM.
    maps = explained(net, X, SSCAM(n_samples=2, std=0.0), target=1, normalize=False)
    np.testing.assert_allclose(maps, of_mask, atol=1e-5)


def test_ablationcam_weighs_by_the_fall_without_a_channel():
    net, X = tiny_volume_net(), random_volumes(2, *SHAPE)
    activations, _, scores = by_hand(net, X, 1)
    falls = []
    for channel in range(activations.shape[1]):
        ablated = activations.clone()
        ablated[:, channel] = 0
        falls.append((scores - net.linear(ablated.relu().mean((2, 3, 4)))[:, 1]) / scores.abs())
    weights = torch.stack(falls, 1).detach()[:, :, None, None, None]
    expected = enlarged((weights * activations).sum(1))
    maps = explained(net, X, AblationCAM(), target=1, normalize=False)
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_pixel_methods_equal_gradients_of_the_volume():
    net, X = tiny_volume_net(n_channels=2), random_volumes(2, 2, *SHAPE[1:])
    leaf = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    kept = explained(net, X, Saliency(channels="keep"), target=1)
    np.testing.assert_allclose(kept, expected, atol=1e-6)
    maps = explained(net, X, Saliency(), target=1, normalize=False)
    np.testing.assert_allclose(maps, expected.abs().amax(1), atol=1e-6)
    # Guided: at each ReLU only what is positive passes, both ways.
    first, second = net.first(X), net.second(net.first(X).relu())
    weights = net.linear.weight[1][:, None, None, None] / second[0, 0].numel()
    gradient = weights.relu() * (second > 0)
    gradient = torch.nn.grad.conv3d_input(first.shape, net.second.weight, gradient, 2, 1)
    gradient = gradient.relu() * (first > 0)
    guided = F.conv_transpose3d(gradient, net.first.weight, padding=1).detach()
    maps = explained(net, X, "guidedbackprop", target=1, normalize=False)
    np.testing.assert_allclose(maps, guided.abs().amax(1), atol=1e-6)


def test_occlusion_covers_cubes():
    net, X = tiny_volume_net(), random_volumes(2, 1, 6, 7, 8)
    falls, covers = torch.zeros(2, 6, 7, 8), torch.zeros(6, 7, 8)
    with torch.no_grad():
        full = net(X)[:, 1]
        for z in range(0, 6 - 3 + 2, 2):
            for y in range(0, 7 - 3 + 2, 2):
                for x in range(0, 8 - 3 + 2, 2):
                    part = (slice(z, z + 3), slice(y, y + 3), slice(x, x + 3))
                    covered = X.clone()
                    covered[:, :, *part] = 0
                    falls[:, *part] += (full - net(covered)[:, 1])[:, None, None, None]
                    covers[*part] += 1
    method = Occlusion(patch=3, stride=2, relu=False)
    maps = explained(net, X, method, target=1, normalize=False)
    np.testing.assert_allclose(maps, falls / covers.clamp(min=1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "peer"),
    [("gradcam", "GradCAM"), ("hirescam", "HiResCAM"), ("layercam", "LayerCAM")],
)
def test_maps_equal_pytorch_grad_cam(name, peer):
    peers = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    net, X = tiny_volume_net(), random_volumes(2, 1, 8, 8, 8)
    with getattr(peers, peer)(model=net, target_layers=[net.second]) as cam:
        expected = cam(input_tensor=X, targets=[ClassifierOutputTarget(1)] * 2)
    # The peer scales first and enlarges then, by scipy's zoom, whose corners are aligned: maps are
    # alike where nothing is enlarged.
    small = explained(net, X, name, target=1, normalize=False)
    activations, gradients, _ = by_hand(net, X, 1)
    raw = FORMULAS[name](activations, gradients).relu()
    np.testing.assert_allclose(
        small, F.interpolate(raw[:, None], size=(8, 8, 8), mode="trilinear")[:, 0], atol=1e-6
    )
    assert expected.shape == small.shape
    raw_of_peer = _unzoomed(cam, peers, net, X)
    np.testing.assert_allclose(raw_of_peer, raw, atol=1e-6)


def _unzoomed(cam, peers, net, X):
    """Return the peer's map before it is enlarged."""
    cam.activations_and_grads.__init__(net, [net.second], None)
    output = cam.activations_and_grads(X)
    net.zero_grad()
    output[:, 1].sum().backward()
    activations = cam.activations_and_grads.activations[0].cpu().data.numpy()
    gradients = cam.activations_and_grads.gradients[0].cpu().data.numpy()
    cam.activations_and_grads.release()
    image = cam.get_cam_image(X, net.second, None, activations, gradients, False)
    for parameter in net.parameters():
        parameter.grad = None
    return np.maximum(image, 0)


def test_maps_equal_captum():
    attr = pytest.importorskip("captum.attr")
    net, X = tiny_volume_net(), random_volumes(2, *SHAPE)
    layer_maps = attr.LayerGradCam(net, net.second).attribute(X, target=1, relu_attributions=True)
    maps = explained(net, X, "gradcam", target=1, normalize=False)
    np.testing.assert_allclose(maps, enlarged(layer_maps[:, 0].detach()), atol=1e-6)
    saliency = attr.Saliency(net).attribute(X, target=1, abs=False)
    kept = explained(net, X, Saliency(channels="keep"), target=1)
    np.testing.assert_allclose(kept, saliency, atol=1e-6)


# Networks, layers


def test_every_method_explains_volumes_or_refuses():
    net, X = tiny_volume_net(), random_volumes(2, 1, 8, 8, 8)
    explainer = CAMExplainer(net, target_layer=LAYER, verbose=0).fit(X)
    refused = {}
    for name in available():
        try:
            maps = explainer.explain(X, method=name, target=1)
        except ValueError as error:
            refused[name] = str(error)
            continue
        assert maps.shape == (2, 8, 8, 8), name
        # One by one as in a batch.
        if name not in ("randomcam", "smoothgradcam++", "sscam", "rise"):
            alone = explainer.explain(X[1:], method=name, target=1)
            np.testing.assert_allclose(alone, maps[1:], atol=1e-4, err_msg=name)
    needs_attention = {"rollout", "attentionrelevance", "legrad"}
    assert set(refused) <= {"cam"} | needs_attention, refused


DENSENETS = {
    "small": (8, 4, (1, 2, 2, 1)),
    "densenet121": (64, 32, (6, 12, 24, 16)),
}


@pytest.mark.parametrize("size", ["small", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_densenets_of_volumes_are_explained_by_their_last_grid(size):
    nets = pytest.importorskip("monai.networks.nets")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nets.DenseNet(3, 1, 2, *DENSENETS[size]).eval()
    X = random_volumes(2, 1, 32, 32, 32)
    explainer = CAMExplainer(net, verbose=0).fit(X)
    (layer,) = explainer.target_layers_
    # Behind it the volume is a single position, of which every map is constant.
    assert layer == TargetLayer("features.transition3.conv", "ncdhw")
    maps = explainer.explain(X, method=["gradcam", "layercam"], target=1)
    kept = {}
    hook = net.features.transition3.conv.register_forward_hook(
        lambda module, given, output: kept.setdefault("activations", output)
    )
    score = net(X)[:, 1].sum()
    hook.remove()
    activations = kept["activations"]
    (gradients,) = torch.autograd.grad(score, activations)
    for name in ("gradcam", "layercam"):
        raw = FORMULAS[name](activations.detach(), gradients).relu()
        expected = scaled(F.interpolate(raw[:, None], size=(32, 32, 32), mode="trilinear")[:, 0])
        np.testing.assert_allclose(maps[name], expected, atol=1e-4)


@pytest.mark.parametrize("last", [False, True], ids=["ncdhw", "ndhwc"])
def test_layouts_of_volumes_are_told(last):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny_volume_net()
            self.permute = nn.Identity() if not last else Permute()

        def forward(self, volumes):
            hidden = self.permute(self.inner.second(self.inner.first(volumes).relu()))
            hidden = hidden.movedim(-1, 1) if last else hidden
            return self.inner.linear(hidden.mean((2, 3, 4)))

    class Permute(nn.Module):
        def forward(self, hidden):
            return hidden.movedim(1, -1)

    sample = random_volumes(1, 1, 12, 16, 20)
    name = "permute" if last else "inner.second"
    found = find_target_layer(Net().eval(), name, sample=sample)
    assert found.layout == ("ndhwc" if last else "ncdhw")
    assert find_target_layer(Net().eval(), sample=sample).layout == found.layout


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["front", "top", "left"])
def test_a_grid_that_is_mirrored_is_refused(axis):
    class Mirrored(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.mirror = tiny_volume_net(), Mirror()

        def forward(self, volumes):
            return self.inner.linear(
                self.mirror(self.inner.first(volumes)).mean((2, 3, 4))[:, :1].expand(-1, 6)
            )

    class Mirror(nn.Module):
        def forward(self, hidden):
            return hidden.flip(2 + axis)

    sample = random_volumes(1, 1, 12, 12, 12)
    side = ("front", "top", "left")[axis]
    with pytest.raises(ValueError, match=rf"changes at the .*{side}.* of the images show most"):
        find_target_layer(Mirrored().eval(), "mirror", sample=sample)


def test_a_grid_of_fewer_axes_is_refused():
    class Slices(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.linear = nn.Conv2d(8, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, volumes):
            return self.linear(self.convolution(volumes[:, 0]).mean((2, 3)))

    net, X = Slices().eval(), random_volumes(1, 1, 8, 8, 8)
    with pytest.raises(ValueError, match="five axes"):
        CAMExplainer(net, target_layer="convolution", verbose=0).fit(X)
    explainer = CAMExplainer(net, target_layer=TargetLayer("convolution"), verbose=0)
    with pytest.raises(ValueError, match="grid of 8 x 8 places for images of 8 x 8 x 8"):
        explainer.fit(X).explain(X)


def test_a_layer_with_a_single_position_is_refused():
    net, X = tiny_volume_net(), random_volumes(1, 1, 2, 2, 2)
    with pytest.raises(ValueError, match="2 x 2 x 2 pixels"):
        CAMExplainer(net, target_layer=TargetLayer(LAYER, "ncdhw"), verbose=0).fit(X)


# What is not volumes


def test_images_of_other_axes_are_refused():
    net = tiny_volume_net()
    explainer = CAMExplainer(net, target_layer=LAYER, verbose=0).fit(random_volumes(1, *SHAPE))
    with pytest.raises(ValueError, match=r"Conv3d, which takes volumes.*X\[:, None\]"):
        explainer.explain(random_volumes(2, *SHAPE[1:]))
    with pytest.raises(ValueError, match="Conv3d, which takes volumes"):
        CAMExplainer(net, target_layer=LAYER, verbose=0).fit(random_volumes(2, *SHAPE[1:]))
    with pytest.raises(ValueError, match=r"Give fit an X.*Conv3d, which takes volumes"):
        CAMExplainer(net, target_layer=LAYER, verbose=0).fit()
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ValueError, match="Conv2d, which takes pictures"):
        CAMExplainer(flat, verbose=0).fit(random_volumes(2, *SHAPE))


@pytest.mark.parametrize("kind", ["array", "bytes"])
def test_arrays_of_five_axes_are_refused(kind):
    explainer = CAMExplainer(tiny_volume_net(), target_layer=LAYER, verbose=0)
    first, last = np.zeros((2, 1, 8, 8, 8), np.float32), np.zeros((2, 8, 8, 8, 1), np.float32)
    for X, message in (
        (first, r"as float tensors \(n, C, D, H, W\)"),
        (last, "channels last"),
    ):
        X = torch.from_numpy(X).to(torch.uint8) if kind == "bytes" else X
        with pytest.raises(ValueError, match=message):
            explainer.fit(X)


def test_a_method_of_ones_own_must_make_maps_of_volumes():
    class Flat(Method):
        uses_layers = False

        def explain(self, recorded):
            return [torch.ones(*recorded.scores.shape, 3, 3)]

    net, X = tiny_volume_net(), random_volumes(1, *SHAPE)
    explainer = CAMExplainer(net, Flat, target_layer=LAYER, verbose=0).fit(X)
    with pytest.raises(ValueError, match=r"\(n_images, k, d, u, v\)"):
        explainer.explain(X)


# Forms of X, and of answers


def test_volumes_come_from_data_sets_and_loaders():
    net, X = tiny_volume_net(), random_volumes(3, *SHAPE)
    explainer = CAMExplainer(net, target_layer=LAYER, batch_size=2, verbose=0).fit(X)
    expected = explainer.explain(X, target=1)
    dataset = torch.utils.data.TensorDataset(X, torch.arange(3))
    np.testing.assert_array_equal(explainer.explain(dataset, target=1), expected)
    loader = torch.utils.data.DataLoader(dataset, batch_size=2)
    batches = list(explainer.iter_explain(loader, target=1))
    np.testing.assert_array_equal(np.concatenate(batches), expected)
    framed = explainer.explain(X, target=1, frame="image")
    np.testing.assert_array_equal(framed, expected)


def test_several_layers_targets_and_channels():
    net, X = tiny_volume_net(n_channels=2), random_volumes(2, 2, *SHAPE[1:])
    explainer = CAMExplainer(
        net, target_layer=["first", "second"], layer_fusion=None, verbose=0
    ).fit(X)
    maps = explainer.explain(X, target=[[0, 1], [1, 2]])
    assert maps.shape == (2, 2, 2, *SHAPE[1:])
    # Each volume is scaled by its own extremes, not its slices.
    assert (maps.max(axis=(3, 4, 5)) == 1).all()
    assert ((maps.max(axis=(4, 5)) < 1).any(axis=3)).all()
    kept = explainer.explain(X, method=Saliency(channels="keep"))
    assert kept.shape == X.shape
    out = np.empty((2, *SHAPE[1:]), np.float32)
    one = CAMExplainer(net, target_layer=LAYER, verbose=0).fit(X)
    assert one.explain(X, out=out) is out


def test_blank_maps_of_volumes_are_counted_one_a_volume():
    net, X = tiny_volume_net(), torch.zeros(3, *SHAPE)
    explainer = CAMExplainer(net, "saliency", target_layer=LAYER, verbose=0).fit(X)
    with pytest.warns(ExplanationWarning, match="2 of 3 maps are blank"):
        explainer.explain(X, target=lambda output: output[:, 0] * torch.tensor([0.0, 1.0, 0.0]))


def test_upsample_takes_as_many_axes_as_sides():
    maps = torch.tensor([[[[0.0, 1.0]]]])
    assert upsample(maps, (1, 1, 4)).tolist() == [[[[0.0, 0.25, 0.75, 1.0]]]]
    with pytest.raises(ValueError, match="depth, height, width"):
        upsample(maps[0, 0], (1, 1, 4))
    with pytest.raises(ValueError, match=r"\(depth, height, width\)"):
        upsample(maps, (1, 0, 4))


def test_nothing_of_the_network_is_changed():
    net, X = tiny_volume_net().train(), random_volumes(2, *SHAPE)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    explainer = CAMExplainer(net, target_layer="auto", verbose=0).fit(X)
    explainer.explain(X, method=["gradcam", "scorecam", "saliency"])
    assert net.training and all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
