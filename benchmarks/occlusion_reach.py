"""How much of a network a covered patch affects, and what exact incremental inference could save.

Krypton (Nakandala et al., "Incremental and Approximate Inference for Faster Occlusion-based Deep
CNN Explanations", SIGMOD 2019) only recomputes what a patch has changed. For a patch in the middle
of the image, the program prints the share of all multiplications in convolutions that this takes:
in each layer's output, the smallest rectangle around the changed values. The inverse of the share
bounds the gain.

    python benchmarks/occlusion_reach.py
    python benchmarks/occlusion_reach.py --arch vgg16 densenet121 --patch 16

Weights are random, because the result hardly depends on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sklcam.networks import build_model

ARCHS = ("resnet18", "resnet50", "vgg16", "efficientnet_lite0")


def outputs_of(network: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
    """Return the outputs of all convolutions, in the order in which they run."""
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda conv, _, output: outputs.append((conv, output.clone())))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    return outputs


def share_around(changed: Tensor) -> float:
    """Return the share of a grid that the smallest rectangle around the given places covers."""
    sides = [changed.any(dim=axis).nonzero().flatten() for axis in (0, 1)]
    if not len(sides[0]):
        return 0.0
    places = [int(side[-1] - side[0]) + 1 for side in sides]
    return places[0] * places[1] / changed.numel()


def reached(network: nn.Module, size: int, patch: int) -> tuple[float, float]:
    """Return the share of multiplications that a patch affects, and of layers affected wholly."""
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    covered, start = image.clone(), (size - patch) // 2
    covered[:, :, start : start + patch, start : start + patch] = 0
    n_all, n_changed, n_whole = 0.0, 0.0, 0
    pairs = [*zip(outputs_of(network, image), outputs_of(network, covered), strict=True)]
    for (conv, before), (_, after) in pairs:
        n_products = before[0].numel() * conv.weight[0].numel()
        share = share_around((before != after).any(dim=1)[0])
        n_all += n_products
        n_changed += share * n_products
        n_whole += share == 1
    return n_changed / n_all, n_whole / len(pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=ARCHS)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch", type=int, default=32)
    options = parser.parse_args(arguments)
    print(f"{'':24}{'multiplications':>16}{'bound':>8}{'layers affected wholly':>24}")
    for arch in options.arch:
        network = build_model(arch).eval()
        share, whole = reached(network, options.image_size, options.patch)
        print(f"{arch:24}{share:16.2f}{1 / share:8.2f}{whole:24.2f}", flush=True)


if __name__ == "__main__":
    main()
