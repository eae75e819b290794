"""How far maps by methods with fewer passes are from Score-CAM's, and how many passes they save.

The program explains photographs for a network trained on ImageNet and its predicted classes. It
compares each method's maps, scaled to [0, 1] at the input's size, with those of Score-CAM: by the
mean absolute difference, Pearson's correlation and SSIM, each as the mean over the images and the
worst value of an image. It counts passes through the whole network, and through what follows the
layer. Grad-CAM and the control "uniform" are there for comparison.

    python benchmarks/faster_methods.py --data DIR
    python benchmarks/faster_methods.py --data DIR --quick
    python benchmarks/faster_methods.py --data DIR --arch resnet18 --weights DEFAULT --n-images 64

``--quick`` takes two images of 96 pixels, to see that it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from causal_steps import spread
from torch import Tensor, nn

from sklcam import CAMExplainer
from sklcam.cam import FasterScoreCAM, GroupCAM, Method, ReciproCAM, ScoreCAM, get_method
from sklcam.metrics import structural_similarity

METHODS: dict[str, Method] = {
    "Faster-Score-CAM, 10 channels": FasterScoreCAM(n_channels=10),
    "Faster-Score-CAM, 100 channels": FasterScoreCAM(n_channels=100),
    "Group-CAM, 32 groups": GroupCAM(),
    "Recipro-CAM": ReciproCAM(),
    "Grad-CAM": get_method("gradcam"),
    "uniform": get_method("uniform"),
}


@dataclass
class Passes:
    """The number of images through the first convolution, and through the last linear layer."""

    whole: int = 0
    head: int = 0


@contextmanager
def counted(network: nn.Module) -> Iterator[Passes]:
    """Count passes while the block runs."""
    passes = Passes()
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    ends = {"whole": layers[0], "head": layers[-1]}

    def count(name: str, module: nn.Module) -> None:
        forward = module.forward

        def run(images: Tensor) -> Tensor:
            setattr(passes, name, getattr(passes, name) + len(images))
            return forward(images)

        module.forward = run

    for name, module in ends.items():
        count(name, module)
    try:
        yield passes
    finally:
        for module in ends.values():
            del module.forward


def closeness(maps: Tensor, expected: Tensor) -> dict[str, np.ndarray]:
    """Return how near maps (n, height, width) are to others, one number per image."""
    flat, other = (each.flatten(1).double() for each in (maps, expected))
    with np.errstate(invalid="ignore"):
        pairs = zip(flat.numpy(), other.numpy(), strict=True)
        correlations = np.array([np.corrcoef(*pair)[0, 1] for pair in pairs])
    return {
        "difference": (flat - other).abs().mean(dim=1).numpy(),
        "Pearson": correlations,
        "SSIM": structural_similarity(maps, expected).numpy(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of images")
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--n-images", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if options.quick:
        options.n_images, options.image_size = 2, 96
    explainer = CAMExplainer(
        options.arch,
        weights=options.weights,
        image_size=options.image_size,
        batch_size=8,
        verbose=0,
    ).fit()
    X, network = spread(options.data, options.n_images), explainer.adapter.network

    def explain(method: Method) -> tuple[Tensor, Passes]:
        with counted(network) as passes:
            maps = explainer.explain(X, method=method)
        return torch.from_numpy(maps), passes

    expected, all_passes = explain(ScoreCAM())
    print(f"torch {torch.__version__}, {options.arch}, {len(X)} images of {options.image_size}")
    print(f"Score-CAM: {all_passes.whole / len(X):.1f} passes per image")
    print(
        f"{'':32}{'difference':>12}{'largest':>9}{'Pearson':>9}{'lowest':>8}{'SSIM':>7}{'lowest':>8}"
        f"{'passes':>8}{'of head':>9}{'Score-CAM / it':>16}"
    )
    for name, method in METHODS.items():
        maps, passes = explain(method)
        near = closeness(maps, expected)
        print(
            f"{name:32}{near['difference'].mean():12.3f}{near['difference'].max():9.3f}"
            f"{near['Pearson'].mean():9.3f}{near['Pearson'].min():8.3f}"
            f"{near['SSIM'].mean():7.3f}{near['SSIM'].min():8.3f}"
            f"{passes.whole / len(X):8.1f}{passes.head / len(X):9.1f}"
            f"{all_passes.whole / passes.whole:16.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
