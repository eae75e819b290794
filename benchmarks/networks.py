"""Whether ``target_layer="auto"`` finds a layer whose maps show places, network by network.

The program builds networks of timm and transformers with random weights, one at a time, explains
two images with each, and judges the layer that the explainer chose, without using sklcam's own
search:

    python benchmarks/networks.py
    python benchmarks/networks.py --source timm --arch "swin*" "vit_*"
    python benchmarks/networks.py --wider 32
    python benchmarks/networks.py --calibrate

A network is "right" if all of this holds:

- maps: the explainer's maps equal those by autograd, written out here, at that layer in its layout;
- rows: the layer has one row per image, which depends only on that image;
- place: parts of an image are replaced by those of another, one at a time. The response is what
  changes, minus what changes everywhere alike. Each quadrant of the grid responds most to the same
  quadrant of the image, after strong and sensitive quadrants are discounted (Sinkhorn's scaling of
  the 4 x 4 table). Rows and columns of the grid correspond to those of the image, and not to each
  other (correlation of a position with the place that it responds to);
- prefix: no other first token of the grid puts more of the responses in place;
- alive: the score has a gradient at more than half of the positions;
- whole: if another image's activations replace those of the layer, the output is that of the other
  image, so nothing bypasses the layer (for a normalisation, its input is replaced);
- deep: the layer ends in the last quarter of all layers that run, or has the last stage's
  resolution and ends in the last half.

"refused" means an error in ``fit`` that names layers. Everything else is "wrong". The program fails
if a network is wrong, or if fewer than 95 % are right.

Weights are random, and made to behave as if they were trained: parameters that start at zero, or
nearly so, do not stay there (LeViT's attention looks at what is near), and running statistics come
from images. ``--calibrate`` shows what the judge says about layers and layouts that are known to be
right or wrong.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import numpy as np
import timm
import torch
from networks_judge import NotRight, inspect, text_of
from networks_zoo import Case, timm_cases, transformers_cases
from torch import Tensor, nn
from torch.nn import functional as F

from sklcam import CAMExplainer
from sklcam.networks import TargetLayer

N_CLASSES = 10
ENOUGH_RIGHT = 0.95
N_IMAGES = 8


@dataclass
class Verdict:
    """The verdict on a network, and the figures behind it."""

    case: Case
    verdict: str = "wrong"
    layer: TargetLayer | None = None
    grid: tuple[int, int] | None = None
    why: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


# Networks


def images_of_noise(n: int, size: tuple[int, int], seed: int) -> Tensor:
    """Return images of noise, smooth and rough, of mean 0 and standard deviation near 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 8, 8, generator=generator)
    fine = torch.randn(n, 3, *size, generator=generator)
    return F.interpolate(coarse, size, mode="bilinear") + 0.7 * fine


def wake(network: nn.Module, images: Tensor) -> None:
    """Change what training changes: zeros, scales of branches near zero, running statistics."""
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor, std: float, mean: float = 0.0) -> Tensor:
        return (mean + std * torch.randn(like.shape, generator=generator)).to(like)

    with torch.no_grad():
        for module in network.modules():
            is_norm = "norm" in type(module).__name__.lower()
            for name, parameter in module.named_parameters(recurse=False):
                size = float(parameter.abs().max())
                if name == "attention_biases":
                    parameter.copy_(-distances(parameter.shape[1]))
                elif parameter.ndim > 1 and size == 0:
                    parameter.copy_(draw(parameter, 0.02))
                elif is_norm and name == "weight" and size == 0:
                    parameter.copy_(draw(parameter, 0.1, 1.0))
                elif (parameter.ndim == 0 and size == 0) or (0 < size <= 0.011 and name != "bias"):
                    parameter.copy_(draw(parameter, 0.02, 0.1))
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches, and there is one
        norm.train()
    with torch.no_grad(), ExitStack() as stack:
        for module in network.modules():
            if type(module) in (nn.Conv2d, nn.Linear):
                stack.callback(module.register_forward_hook(raise_voice).remove)
        network(images)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.eval()


def distances(n: int) -> Tensor:
    """Return the distances of a square grid's positions from the first one, as LeViT counts them.

    As biases, they make attention look at what is near; without them, it is random and uniform.
    """
    side = math.isqrt(n)
    return torch.arange(n) // side + torch.arange(n) % side


def raise_voice(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
    """Scale the weights of a layer whose output is far too small or large for a trained network."""
    size = float(output.std())
    if not 0 < size < np.inf or 0.03 < size < 30:
        return None
    for parameter in module.parameters():
        parameter.div_(size)
    return output / size


# Verdicts


def judge(case: Case, options: argparse.Namespace) -> Verdict:
    started = time.perf_counter()
    result = Verdict(case)
    torch.manual_seed(options.seed)
    try:
        network = case.build(N_CLASSES)
        images = images_of_noise(N_IMAGES, case.size, options.seed)
        wake(network, images)
        network, images = network.to(options.device), images.to(options.device)
    except Exception as error:
        result.verdict, result.why = "not built", short(error)
        if options.wider:
            result.verdict = "skipped"  # it takes only squares
        return result
    try:
        explainer = CAMExplainer(network, batch_size=options.batch_size, verbose=0)
        explainer.fit(images[:2])
    except (ValueError, TypeError) as error:
        names = [name for name, _ in network.named_modules() if name]
        is_help = any(f"'{name}'" in str(error) or f'"{name}"' in str(error) for name in names)
        result.verdict = "refused" if is_help else "wrong"
        result.why = ("" if is_help else "refused without a layer: ") + short(error)
    except Exception as error:
        result.why = f"fit fails: {short(error)}"
    else:
        (result.layer,) = explainer.target_layers_
        try:
            result.grid, result.figures = inspect(
                network, result.layer, images, case, options.batch_size, explainer
            )
            result.verdict = "right"
        except NotRight as reason:
            result.why = str(reason)
        except Exception as error:
            if options.debug:
                traceback.print_exc()
            result.why = f"fails: {short(error)}"
    result.seconds = time.perf_counter() - started
    return result


def short(error: Exception) -> str:
    return f"{type(error).__name__}: " + " ".join(str(error).split())[:400]


def line(result: Verdict) -> str:
    layer = result.layer
    where = "-"
    if layer is not None:
        grid = result.grid or layer.grid
        where = f"{layer.name} {layer.layout if layer.reshape is None else 'reshape'}"
        where += f" {grid[0]} x {grid[1]}" if grid else ""
        where += f" +{layer.n_prefix}" if layer.n_prefix else ""
    name = f"{result.case.family} / {result.case.name}"
    why = result.why or text_of(result.figures)
    return f"{name:58} {result.verdict:9} {where:44} {result.seconds:5.1f} s  {why}"


def print_totals(results: list[Verdict]) -> None:
    for source in dict.fromkeys(result.case.source for result in results):
        of_source = [result for result in results if result.case.source == source]
        families = {result.case.family for result in of_source}
        counts = Counter(result.verdict for result in of_source)
        print(
            f"\n{source}: {len(of_source)} networks of {len(families)} families: "
            + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
        )
        for family in sorted(families):
            own = [result.verdict for result in of_source if result.case.family == family]
            if set(own) != {"right"}:
                print(
                    f"  {family:24}" + ", ".join(f"{n} {what}" for what, n in Counter(own).items())
                )


# Known answers


def known_answers() -> Iterator[tuple[str, int, dict[str, Any], list[tuple[TargetLayer, bool]]]]:
    layer = TargetLayer
    yield (
        "vit_tiny_patch16_224",
        96,
        {"img_size": 96},
        [
            (layer("blocks.11.norm1", layout="tokens", grid=(6, 6), n_prefix=1), True),
            (layer("blocks.10", layout="tokens", grid=(6, 6), n_prefix=1), True),
            (layer("blocks.11.norm1", layout="tokens", grid=(6, 6), n_prefix=0), False),
            (layer("blocks.10", layout="tokens", grid=(6, 6), n_prefix=0), False),
            (layer("blocks.10", layout="tokens", grid=(4, 9), n_prefix=1), False),
            (layer("blocks.10", layout="tokens", grid=(5, 7), n_prefix=2), False),
            (layer("blocks.10", reshape=transposed_tokens), False),
            (layer("blocks.11", layout="tokens", grid=(6, 6), n_prefix=1), False),
            (layer("norm", layout="tokens", grid=(6, 6), n_prefix=1), False),
            (layer("blocks.10.attn.attn_drop"), False),
            (layer("blocks.11.attn.attn_drop"), False),
            (layer("blocks.11.attn.q_norm"), False),
            (layer("blocks.11.attn.q_norm", layout="nhwc"), False),
            (layer("blocks.10.mlp", layout="tokens", grid=(6, 6), n_prefix=1), False),
            (layer("patch_embed", layout="tokens", grid=(6, 6)), False),
        ],
    )
    yield (
        "vit_tiny_patch16_224",
        80,
        {"img_size": 80, "reg_tokens": 4, "global_pool": "avg", "class_token": True},
        [
            (layer("norm", layout="tokens", grid=(5, 5), n_prefix=5), True),
            (layer("blocks.11", layout="tokens", grid=(5, 5), n_prefix=5), True),
            *(
                (layer("blocks.11", layout="tokens", grid=(5, 5), n_prefix=n), False)
                for n in range(5)
            ),
        ],
    )
    yield (
        "swin_tiny_patch4_window7_224",
        128,
        {"img_size": 128, "window_size": 4, "depths": (1, 1, 2, 2)},
        [
            (layer("norm", layout="nhwc"), True),
            (layer("layers.3", layout="nhwc"), True),
            (layer("layers.3"), False),
            (layer("norm"), False),
            (layer("layers.3", reshape=transposed_last), False),
            (layer("layers.3", reshape=flipped_last), False),
            (layer("layers.3.blocks.1.attn.attn_drop"), False),
            (layer("layers.3.blocks.1.mlp", layout="nhwc"), False),
            (layer("layers.0", layout="nhwc"), False),
            (layer("patch_embed", layout="nhwc"), False),
        ],
    )
    yield (
        "nest_tiny",
        96,
        {"img_size": 96},
        [
            (layer("levels.2"), True),
            (layer("norm", layout="nhwc"), True),
            (layer("norm"), False),
            (layer("levels.2", layout="nhwc"), False),
            (layer("levels.2.transformer_encoder", layout="nhwc"), False),
            (layer("levels.2.transformer_encoder"), False),
            (layer("levels.1.transformer_encoder"), False),
            (layer("levels.1.transformer_encoder", layout="nhwc"), False),
            (layer("levels.0"), False),
        ],
    )
    yield (
        "resnet18",
        128,
        {},
        [
            (layer("layer4"), True),
            (layer("layer4", layout="nhwc"), False),
            (layer("layer4", reshape=lambda output: output.transpose(2, 3)), False),
            (layer("layer4", reshape=lambda output: output.flip(3)), False),
            (layer("layer4.1.bn2"), False),
            (layer("layer4.0.downsample"), False),
            (layer("layer3"), False),
            (layer("conv1"), False),
        ],
    )


def transposed_tokens(output: Tensor) -> Tensor:
    return output[:, 1:].transpose(1, 2).unflatten(2, (6, 6)).transpose(2, 3)


def transposed_last(output: Tensor) -> Tensor:
    return output.permute(0, 3, 2, 1)


def flipped_last(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2).flip(2)


def calibrate(options: argparse.Namespace) -> bool:
    """Print the judge's verdicts on known layers; return True if none is mistaken."""
    n_wrong = 0
    for name, size, kwargs, answers in known_answers():
        torch.manual_seed(options.seed)
        case = Case("timm", name, name, (size, size), lambda n: None)
        timm.layers.set_fused_attn(False)  # so that attention is a layer's output
        network = timm.create_model(name, num_classes=N_CLASSES, **kwargs)
        images = images_of_noise(N_IMAGES, case.size, options.seed)
        wake(network, images)
        for layer, is_right in answers:
            try:
                _, figures = inspect(
                    network.to(options.device),
                    layer,
                    images.to(options.device),
                    case,
                    options.batch_size,
                )
                said, why = True, text_of(figures)
            except NotRight as reason:
                said, why = False, str(reason)
            n_wrong += said != is_right
            how = "reshape" if layer.reshape else f"{layer.layout} {layer.grid or ''}"
            how += f" +{layer.n_prefix}" if layer.n_prefix else ""
            print(
                f"{name:30} {layer.name:34} {how:20} known {'right' if is_right else 'wrong'}, "
                f"said {'right' if said else 'wrong'} {'' if said == is_right else '  MISTAKEN'} "
                f" {why}",
                flush=True,
            )
    print(f"\nmistaken: {n_wrong}")
    return n_wrong == 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["*"], help="globs of names or families")
    parser.add_argument("--source", default="all", choices=("timm", "transformers", "all"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--wider", type=int, default=0, metavar="PIXELS", help="make images this many pixels wider"
    )
    parser.add_argument("--calibrate", action="store_true", help="judge only known answers")
    parser.add_argument("--debug", action="store_true", help="print tracebacks")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__} on {options.device}, timm {timm.__version__}")
    if options.calibrate:
        raise SystemExit(not calibrate(options))
    cases: list[Case] = []
    if options.source in ("timm", "all"):
        cases += timm_cases(options.wider)
    if options.source in ("transformers", "all"):
        cases += transformers_cases(options.wider)
    results = []
    for case in cases:
        if any(fnmatch(case.name, arch) or fnmatch(case.family, arch) for arch in options.arch):
            results.append(judge(case, options))
            print(line(results[-1]), flush=True)
            gc.collect()
    if not results:
        raise SystemExit(f"No network's name or family matches {options.arch}. --arch takes globs.")
    print_totals(results)
    results = [result for result in results if result.verdict != "skipped"]
    counts = Counter(result.verdict for result in results)
    share = counts["right"] / max(1, len(results))
    n_wrong = len(results) - counts["right"] - counts["refused"]
    print(f"\nright: {share:.1%}, bar >= {ENOUGH_RIGHT:.0%}; wrong: {n_wrong}, bar 0")
    raise SystemExit(share < ENOUGH_RIGHT or n_wrong > 0)


if __name__ == "__main__":
    main()
