"""How many steps insertion and deletion need, and what fewer steps change.

The program follows the score of a network trained on ImageNet in many steps, and takes the areas
under every second, fourth, ... point of the same curves. These are the areas that fewer steps would
have given, because the same pixels have been changed after a step. It prints the difference from
the area under the whole curve: for images, the mean absolute and the largest difference; for the
mean over the images, which is what a table shows, the signed difference. Beside it stands the
standard error of that mean, which says how much the mean varies with the choice of images.

    python benchmarks/causal_steps.py --data DIR
    python benchmarks/causal_steps.py --data DIR --method saliency --n-images 12

DIR is searched for images, and those that are taken are spread evenly. The passes are for one
image, for both metrics together.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sklcam import CAMExplainer
from sklcam.metrics import CausalCurves, causal_curves, deletion_auc, insertion_auc

IMAGE_KINDS = (".jpg", ".jpeg", ".png")
AREAS = {"insertion": insertion_auc, "deletion": deletion_auc}


def spread(folder: Path, n_images: int) -> list[str]:
    """Return files in a folder and its subfolders, at even distances."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_KINDS)
    return [str(found[i * len(found) // n_images]) for i in range(n_images)]


def curves_of(explainer: CAMExplainer, X: Sequence[str], method: str, n_steps: int) -> CausalCurves:
    """Return the curves of the predicted classes' probabilities."""
    parts = []
    for images in explainer.iter_inputs(X):
        maps, output = explainer.explain_inputs(images, method=method)
        classes = explainer.decide(output)

        def score(changed: Tensor, rows: Tensor, classes: Tensor = classes) -> Tensor:
            probabilities = explainer.probabilities(explainer.output_of(changed))
            return probabilities.gather(1, classes[rows, None])[:, 0]

        parts.append(causal_curves(score, images, maps, n_steps=n_steps))
    joined = [torch.cat([getattr(part, name) for part in parts]) for name in AREAS]
    return CausalCurves(parts[0].fractions, *joined)


def areas(curves: CausalCurves, every: int) -> dict[str, Tensor]:
    """Return the areas (n_images,) under the curves, with points left out."""
    fewer = CausalCurves(*(values[..., ::every] for values in curves))
    return {name: area(fewer).double() for name, area in AREAS.items()}


def print_table(curves: CausalCurves, few: Sequence[int]) -> None:
    n_steps = len(curves.fractions) - 1
    whole = areas(curves, 1)
    for name, auc in whole.items():
        error = auc.std() / len(auc) ** 0.5
        print(f"{name}: {auc.mean():.4f} in {n_steps} steps, standard error {error:.4f}")
    print(f"{'steps':>6}{'passes':>8}  {'':10}{'image: mean':>12}{'largest':>9}{'of the mean':>13}")
    for steps in few:
        for name, auc in areas(curves, n_steps // steps).items():
            gap = auc - whole[name]
            print(
                f"{steps:6}{2 * steps + 1:8}  {name:10}{gap.abs().mean():12.5f}"
                f"{gap.abs().max():9.5f}{gap.mean():+13.5f}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of images")
    parser.add_argument("--arch", default="efficientnet_lite0")
    parser.add_argument("--method", default="gradcam")
    parser.add_argument("--n-images", type=int, default=24)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--n-steps", type=int, default=224)
    parser.add_argument("--fewer", type=int, nargs="+", default=[14, 28, 56, 112])
    options = parser.parse_args(arguments)
    if any(options.n_steps % steps for steps in options.fewer):
        parser.error(
            f"--fewer must be divisors of {options.n_steps}, the number of steps to compare with"
        )
    explainer = CAMExplainer(
        options.arch, weights="DEFAULT", image_size=options.image_size, batch_size=8, verbose=0
    ).fit()
    X = spread(options.data, options.n_images)
    print(f"torch {torch.__version__}, {options.arch}, {options.method}, {len(X)} images")
    print_table(curves_of(explainer, X, options.method, options.n_steps), options.fewer)


if __name__ == "__main__":
    main()
