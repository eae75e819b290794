"""Networks and images for the timing programs: as if trained, without a download.

Running statistics come from images, and the highest logits are as high as those of a trained
network. Images are smooth noise, or those of a folder, as the network gets them.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from sklcam.images import ImageDataset, normalize
from sklcam.networks import build_model

SEED = 0
LOGIT = 15.0  # the highest logit of an image, on average: about that of a trained ResNet
IMAGE_KINDS = (".jpg", ".jpeg", ".png")


def trained_network(arch: str, weights: Path, device: str) -> nn.Module:
    """Return a network with the weights of a state dict, and as many classes."""
    state = torch.load(weights, weights_only=True)
    head = next(name for name in reversed(state) if name.endswith(".weight"))
    return build_model(arch, n_classes=len(state[head]), weights=weights).to(device).eval()


def prepared_network(arch: str, size: int, device: str) -> nn.Module:
    """Return a network that behaves as if it were trained, without a download."""
    torch.manual_seed(SEED)
    network = untrained_network(arch).to(device)
    images = noise_images(16, size, seed=SEED + 1).to(device)
    settle_running_statistics(network, images)
    network.eval()
    head = last_linear(network)
    with torch.no_grad():
        if not head.weight.any():  # as some begin
            nn.init.normal_(head.weight)
        head.weight.mul_(LOGIT / network(images).amax(dim=1).mean())
    return network


def untrained_network(arch: str) -> nn.Module:
    if arch.startswith("timm/"):
        return timm.create_model(arch.removeprefix("timm/"))
    return torchvision.models.get_model(arch, weights=None)


def settle_running_statistics(network: nn.Module, images: Tensor) -> None:
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for batch in images.split(8) if norms else ():
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def last_linear(network: nn.Module) -> nn.Linear:
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def noise_images(n_images: int, size: int, seed: int) -> Tensor:
    """Return coarse and fine noise, as the network gets it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n_images, 3, 7, 7, generator=generator)
    coarse = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    fine = torch.rand(n_images, 3, size, size, generator=generator)
    pixels = (255 * (0.8 * coarse + 0.2 * fine)).to(torch.uint8)
    return normalize(pixels, "auto", "auto")


def images_of(folder: Path, n_images: int, size: int) -> Tensor:
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_KINDS]
    if len(paths) < n_images:
        raise SystemExit(f"A batch needs {n_images} images, but {folder} has {len(paths)}.")
    generator = torch.Generator().manual_seed(SEED)
    drawn = [paths[i] for i in torch.randperm(len(paths), generator=generator)[:n_images]]
    dataset = ImageDataset(drawn, image_size=size)
    pixels = torch.stack([dataset[i][0] for i in range(n_images)])
    return normalize(pixels, "auto", "auto")
