"""Grad-CAM against the closed form and two other implementations."""

from __future__ import annotations

import pytest
import torch
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchcam.methods import GradCAM as TorchCAMGradCAM

from sklcam.cam import GradCAM, GradientMethod, target_scores
from sklcam.networks import build_model, find_target_layer, record


def raw_maps(model, images, target=None, relu=True):
    layer = find_target_layer(model)
    with record(model, layer.of(model)) as tape:
        scores = target_scores(model(images), target)
        return GradCAM(relu=relu)(scores, tape.activations, to_grid=layer.to_grid)


def network(name):
    torch.manual_seed(0)
    return build_model(name, n_classes=6).eval()


class UnscaledPeer(PeerGradCAM):
    """pytorch-grad-cam, stopped before it scales its maps."""

    def compute_cam_per_layer(self, images, targets, eigen_smooth):
        (activations,) = self.activations_and_grads.activations
        (gradients,) = self.activations_and_grads.gradients
        activations, gradients = activations.cpu().numpy(), gradients.cpu().numpy()
        layer = self.target_layers[0]
        maps = self.get_cam_image(images, layer, targets, activations, gradients, eigen_smooth)
        self.unscaled = torch.from_numpy(maps).clamp(min=0)
        return super().compute_cam_per_layer(images, targets, eigen_smooth)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v2"])
def test_equals_the_peers_on_unscaled_maps(name):
    model, images = network(name), torch.randn(3, 3, 96, 96)
    classes = [4, 0, 2]
    ours = raw_maps(model, images, torch.tensor(classes))
    assert ours.max() > 0

    layer = find_target_layer(model).of(model)
    with UnscaledPeer(model=model, target_layers=[layer]) as peer:
        peer(images, targets=[ClassifierOutputTarget(c) for c in classes])
    torch.testing.assert_close(ours, peer.unscaled, atol=1e-5, rtol=0)

    # torchcam's hooks do not survive an in-place ReLU; the function computed is the same.
    for module in model.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = False
    with TorchCAMGradCAM(model, target_layer=layer) as extractor:
        scores = model(images)
        (theirs,) = extractor(classes, scores, normalized=False)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("relu", [True, False])
def test_closed_form_for_a_pooled_linear_head(relu):
    model, images = network("resnet18"), torch.randn(2, 3, 96, 96)
    classes = torch.tensor([5, 1])
    kept = []
    handle = model.layer4.register_forward_hook(lambda _, __, out: kept.append(out.detach()))
    model(images)
    handle.remove()
    (activations,) = kept
    n_positions = activations.shape[2] * activations.shape[3]
    expected = torch.einsum("nk,nkuv->nuv", model.fc.weight[classes], activations) / n_positions
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(
        raw_maps(model, images, classes, relu), expected.detach(), atol=1e-6, rtol=1e-4
    )


def test_transformers_give_a_map_of_their_patches():
    for name, grid in (("vit_b_32", (3, 3)), ("swin_t", (3, 3))):
        torch.manual_seed(0)
        model = build_model(name, n_classes=6, image_size=(96, 96)).eval()
        if name == "vit_b_32":
            nn.init.normal_(model.heads.head.weight)  # it starts at zero
        maps = raw_maps(model, torch.randn(2, 3, 96, 96), relu=False)
        assert maps.shape == (2, *grid)
        assert (maps.amax((1, 2)) > maps.amin((1, 2))).all()


def test_the_graph_is_freed_or_kept():
    model, images = network("resnet18"), torch.randn(1, 3, 64, 64)
    assert not raw_maps(model, images).requires_grad
    with record(model, model.layer4, trunk=True) as tape:
        maps = GradCAM()(target_scores(model(images)), tape.activations, create_graph=True)
    maps.sum().backward()
    assert model.conv1.weight.grad.abs().sum() > 0


def test_half_precision_gives_float32_maps():
    activations = torch.rand(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    maps = GradCAM()((activations * 2).sum((1, 2, 3)), activations)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, 2 * activations.detach().float().sum(1))


def test_a_method_of_ones_own():
    class HiRes(GradientMethod):
        def combine(self, activations, gradients):
            return (activations * gradients).sum(1)

    activations = torch.rand(2, 3, 4, 4, requires_grad=True)
    maps = HiRes(relu=False)((activations**2).sum((1, 2, 3)), activations)
    torch.testing.assert_close(maps, (2 * activations**2).sum(1).detach())
