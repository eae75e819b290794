"""Networks for the tests of this folder, and what they must give."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision import models as zoo

# One small member of every family, and a side at which its target layer has more than one position.
MEMBERS = {
    "alexnet": 96,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_lite0": 64,
    "googlenet": 64,
    "inception_v3": 128,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11": 64,
    "vgg11_bn": 64,
    "vit_b_16": 64,
    "vit_b_32": 64,
}


class SmallNet(nn.Module):
    """Two convolutions that share one ReLU; takes what `construct` has to offer."""

    def __init__(self, in_channels: int = 3, num_classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.norm(self.conv1(images)))
        features = self.relu(self.conv2(features))
        return self.head(self.pool(self.drop(features)).flatten(1))


class Normalized(nn.Module):
    """A network behind a normalisation, as users wrap torchvision's."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.normalize = nn.Identity()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(self.normalize(images))


def small_vit(image_size: int, n_classes: int = 3) -> zoo.VisionTransformer:
    return zoo.VisionTransformer(
        image_size=image_size,
        patch_size=8,
        num_layers=1,
        num_heads=1,
        hidden_dim=8,
        mlp_dim=8,
        num_classes=n_classes,
    )


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("failed on purpose")


def saved(path, state) -> str:
    torch.save(state, path / "weights.pt")
    return str(path / "weights.pt")


def randomized(model: nn.Module) -> nn.Module:
    """Give the running statistics values of their own, so that a lost buffer is seen."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model


def answers(model: nn.Module, side: int) -> Tensor:
    """Logits of two images in evaluation mode, which must differ to prove anything."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.eval()(images)
    assert not torch.equal(logits[0], logits[1])
    return logits


def plain_backward(model: nn.Module, layer: nn.Module, images: Tensor, run: int = 0):
    """Activations and gradient by the ordinary way: a graph through the whole network."""
    kept = []

    def keep(_, __, output):
        kept.append(output)
        return output.clone()

    handle = layer.register_forward_hook(keep)
    scores = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores.max(dim=1).values.sum(), kept[run])
    return scores.detach(), kept[run].detach(), gradient


def telling(module: nn.Module, ran: list[nn.Module]):
    """The module's forward, which notes that it ran."""
    forward = module.forward
    return lambda *args: (ran.append(module), forward(*args))[1]


class Branches(nn.Module):
    """Two branches that meet, and a layer behind them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.behind, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        self.n_passes = 0

    def forward(self, x):
        self.n_passes += 1
        x = self.stem(x)
        x = self.left(x).relu_() + self.right(x).tanh()
        return self.head(self.behind(x).relu_().mean((2, 3)))
