"""What an explanation costs, compared with a prediction and with other libraries.

The program runs sklcam, pytorch-grad-cam, torchcam and captum in one process, in turns, on the same
tensors and the same network, for every method they share. Each library gets what it needs to make
the same maps: those of the predicted class, at the size of the images, scaled to [0, 1]. They must
agree, or the program stops. If a library deviates from the paper, the reason is printed, and
agreement is checked in a setting in which the deviation does not matter, if there is one.

    python benchmarks/explain.py --arch resnet18 resnet50 convnext_tiny
    python benchmarks/explain.py --arch resnet50 --methods ablationcam --only-ours
    python benchmarks/explain.py --arch resnet18 --methods scorecam ablationcam --autocast
    python benchmarks/explain.py --arch vgg16 --methods all --device cuda
    python benchmarks/explain.py --arch timm/vit_small_patch16_224 swin_t --methods gradcam
    python benchmarks/explain.py --arch resnet18 --methods none --memory-images 2000

"predict" is a plain forward pass of the same batch under ``torch.inference_mode()``; all others
make their own forward passes. Expensive methods take one or two images and fewer rounds.

The networks are not trained, so there is nothing to download, but they are made to behave as if
they were: their running statistics come from images, and their highest logits are as high as those
of a trained network. Images are smooth noise unless ``--data DIR`` names a folder of images.

Names that begin with "timm/" are those of timm. If a layer's output is not a grid of channels, as
in transformers, torchcam and captum have no maps for it, and pytorch-grad-cam gets a function that
reshapes it.

DenseNets are not for this program: they change the layer's output in place, and the hooks of the
other libraries record the changed output.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import platform
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import captum
import numpy as np
import torch
import torchcam
import torchvision
import tqdm
from explain_contenders import (
    CHEAP,
    FIVE,
    SPECS,
    Case,
    Explain,
    Peer,
    Spec,
    our_five,
    our_gradcam,
    ours,
    ours_in_bfloat16,
    predict,
    why_not,
)
from timed_networks import SEED, images_of, noise_images, prepared_network, trained_network
from torch import Tensor
from torch.utils.data import Dataset
from train_step import peak_of_allocations, seconds, wait

from sklcam import CAMExplainer
from sklcam.cam import ScoreCAM, get_method

TOLERANCE = 1e-3  # bound on the largest difference of two maps in [0, 1]
TOLERANCE_BFLOAT16 = 0.05  # bound on their mean difference


@dataclass(frozen=True)
class Bar:
    """What a ratio should be."""

    archs: tuple[str, ...]
    method: str
    ratio: str
    limit: float
    at_most: bool = False

    def verdict(self, value: float) -> str:
        met = value <= self.limit if self.at_most else value >= self.limit
        sign = "<=" if self.at_most else ">="
        return f"bar {sign} {self.limit:g}: {'reached' if met else 'NOT REACHED'}"


THREE = ("resnet18", "resnet50", "convnext_tiny")
TRANSFORMERS = (
    "timm/vit_small_patch16_224",
    "timm/swin_tiny_patch4_window7_224",
    "swin_t",
    "vit_b_16",
)
VIT = "timm/vit_small_patch16_224"
BARS = (
    Bar((VIT, "resnet18"), "eigencam", "sklcam / predict", 1.15, at_most=True),
    Bar((VIT,), "rollout", "sklcam / predict", 1.15, at_most=True),
    Bar((VIT,), "legrad", "sklcam / predict", 1.15, at_most=True),
    Bar(TRANSFORMERS, "gradcam", "sklcam / predict", 1.10, at_most=True),
    Bar(THREE, "gradcam", "sklcam / predict", 1.10, at_most=True),
    Bar(THREE, "gradcam", "sklcam five methods / sklcam", 1.15, at_most=True),
    Bar(THREE, "gradcam", "pytorch-grad-cam / sklcam", 2.5),
    Bar(("resnet18",), "gradcam", "torchcam / sklcam", 1.2),
    Bar(("resnet50",), "gradcam", "torchcam / sklcam", 1.0),
    Bar(("convnext_tiny",), "gradcam", "torchcam / sklcam", 1.15),
    Bar(THREE, "gradcam", "captum / sklcam", 1.0),
    Bar(("resnet18",), "ablationcam", "pytorch-grad-cam / sklcam", 100.0),
    Bar(("resnet18", "resnet50"), "ablationcam", "sklcam / sklcam gradcam", 1.3, at_most=True),
    Bar(("resnet18",), "scorecam", "torchcam / sklcam", 1.4),
    Bar(("resnet18",), "scorecam", "torchcam / sklcam bfloat16", 2.5),
)


# Measuring


def contenders(case: Case, spec: Spec, autocast: bool) -> dict[str, Explain]:
    field = {"predict": predict, "sklcam": ours}
    if spec.method == "gradcam":
        field["sklcam five methods"] = our_five
    if spec.method == "ablationcam":
        field["sklcam gradcam"] = our_gradcam
    if autocast and isinstance(case.method, ScoreCAM):
        field["sklcam bfloat16"] = ours_in_bfloat16
    return field | {peer.library: peer.explain for peer in spec.peers}


def measured_run(explain: Explain, case: Case, device: str) -> tuple[Tensor, int]:
    """Return the maps, and the peak of live bytes beyond those that were there before."""
    result: list[Tensor] = []
    step = partial(keep, result, explain, case)
    clean_up(case)
    if device == "cpu":
        peak = peak_of_allocations(step)
    else:
        wait(device)
        resting = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        wait(device)
        peak = torch.cuda.max_memory_allocated() - resting
    clean_up(case)
    return result[0].float().cpu(), peak


def keep(result: list[Tensor], explain: Explain, case: Case) -> None:
    result.append(explain(case))


def clean_up(case: Case) -> None:
    case.network.zero_grad()  # pytorch-grad-cam leaves gradients in all parameters
    gc.collect()


def timed_rounds(
    field: dict[str, Explain], case: Case, n_rounds: int, options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Time all in turns; each round starts with another one."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in field}
    names = list(field)
    for i in range(n_rounds):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            case.network.zero_grad()
            times[name].append(seconds(partial(field[name], case), options.device, clock))
    return {name: np.array(of_one) for name, of_one in times.items()}


def agreement(case: Case, peer: Peer, own: Tensor, theirs: Tensor) -> str:
    """Say how far apart two maps are, and stop if they should agree."""
    found = largest_difference(own, theirs)
    if found <= TOLERANCE:
        return f"maps agree to {found:.0e}"
    setting = peer.equal(case) if peer.equal else None
    if setting is None:
        if not peer.why:
            stop(peer, case, found)
        return f"maps differ by {found:.0e}: {peer.why}"
    with setting:
        rest = largest_difference(ours(case).cpu(), peer.explain(case).cpu())
    clean_up(case)
    if not rest <= TOLERANCE:
        stop(peer, case, rest)
    return f"maps differ by {found:.0e}: {peer.why}; without that, they agree to {rest:.0e}"


def largest_difference(own: Tensor, theirs: Tensor) -> float:
    return float((own - theirs).abs().max())


def stop(peer: Peer, case: Case, found: float) -> None:
    raise SystemExit(
        f"sklcam and {peer.library} disagree on {case.method!r}: maps in [0, 1] differ by "
        f"{found:.1e}, but at most {TOLERANCE:.0e} is allowed."
    )


def closeness_of_bfloat16(own: Tensor, in_bfloat16: Tensor) -> str:
    found = float((own - in_bfloat16).abs().mean())
    if not found <= TOLERANCE_BFLOAT16:
        raise SystemExit(f"In bfloat16 maps differ by {found:.2f} on average.")
    return f"maps differ by {found:.0e} on average, {largest_difference(own, in_bfloat16):.0e} most"


# Reporting


def measure(arch: str, name: str, case: Case, spec: Spec, options: argparse.Namespace) -> None:
    field = contenders(case, spec, options.autocast)
    runs = {who: measured_run(explain, case, options.device) for who, explain in field.items()}
    maps = {who: run[0] for who, run in runs.items()}
    peaks = {who: run[1] for who, run in runs.items()}
    notes = {
        peer.library: agreement(case, peer, maps["sklcam"], maps[peer.library])
        for peer in spec.peers
    }
    n_rounds = min(options.rounds, spec.rounds or options.rounds)
    times = timed_rounds(field, case, n_rounds, options)
    print(
        f"\n{arch}, {name}, images: {len(case.images)}, rounds: {n_rounds}\n"
        f"  predict takes {np.median(times['predict']):.3f} s, sklcam "
        f"{np.median(times['sklcam']):.3f} s and {peaks['sklcam'] / 2**20:.0f} MiB "
        f"({peaks['sklcam'] / peaks['predict']:.2f} x predict)"
    )
    report = partial(report_ratio, arch, name, times, peaks)
    report("sklcam", "predict")
    if "sklcam five methods" in field:
        report("sklcam five methods", "sklcam", note=f"together: {', '.join(FIVE)}")
    if "sklcam gradcam" in field:
        report("sklcam", "sklcam gradcam")
    for peer in spec.peers:
        report(peer.library, "sklcam", note=notes[peer.library])
    if "sklcam bfloat16" in field:
        report(
            "sklcam",
            "sklcam bfloat16",
            note=closeness_of_bfloat16(maps["sklcam"], maps["sklcam bfloat16"]),
        )
        for peer in spec.peers:
            report(peer.library, "sklcam bfloat16")


def report_ratio(
    arch: str,
    name: str,
    times: dict[str, np.ndarray],
    peaks: dict[str, int],
    one: str,
    other: str,
    *,
    note: str = "",
) -> None:
    title, ratio = f"{one} / {other}", times[one] / times[other]
    median = float(np.median(ratio))
    verdicts = [
        bar.verdict(median)
        for bar in BARS
        if arch in bar.archs and (bar.method, bar.ratio) == (name, title)
    ]
    columns = (
        f"  {title:36}time {median:7.2f} [{ratio.min():.2f} .. {ratio.max():.2f}]",
        f"memory {peaks[one] / peaks[other]:6.2f}",
        *verdicts,
    )
    print("   ".join(columns) + (f"\n{'':6}{note}" if note else ""), flush=True)


def measure_arch(arch: str, images: Tensor, options: argparse.Namespace) -> None:
    if options.weights is None:
        network = prepared_network(arch, options.image_size, options.device)
    else:
        network = trained_network(arch, options.weights, options.device)
    explainer = CAMExplainer(network, image_size=options.image_size, verbose=0).fit(images[:1])
    layer = explainer.target_layers_[0]
    for name in options.methods:
        spec = SPECS[name]
        if layer.layout != "nchw":
            spec = replace(spec, peers=tuple(p for p in spec.peers if not p.needs_nchw))
        if options.only_ours:
            spec = replace(spec, peers=(), n_images=None, rounds=None)
        own = copy.deepcopy(network)  # peers leave traces in a network
        case = Case(
            own,
            CAMExplainer(own, target_layer=layer, image_size=images.shape[-1], verbose=0).fit(),
            images[: spec.n_images],
            copy.deepcopy(get_method(spec.method)),
        )
        if reason := why_not(name, case):
            print(f"\n{arch}, {name}: left out, {reason}")
        else:
            measure(arch, name, case, spec, options)


# Memory over many images


class LazyImages(Dataset):
    """Images that exist only while they are used."""

    def __init__(self, n_images: int, size: int = 112):
        self.n_images, self.size = n_images, size

    def __len__(self) -> int:
        return self.n_images

    def __getitem__(self, i: int) -> Tensor:
        return torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(i))


def measure_resident(n_images: int, options: argparse.Namespace) -> None:
    """Print whether resident memory grows with the number of images."""
    network = torchvision.models.resnet18(weights=None).to(options.device)
    explainer = CAMExplainer(network, batch_size=options.batch_size, verbose=0).fit()
    n_done = early = 0
    for maps in explainer.iter_explain(LazyImages(n_images)):
        n_done += len(maps)
        if not early and n_done >= min(200, n_images):
            early, n_early = resident_bytes(), n_done
    late = resident_bytes()
    print(
        f"\niter_explain, resnet18 at 112 pixels: {early / 2**20:.0f} MiB resident after {n_early} "
        f"images, {late / 2**20:.0f} MiB after {n_done}: {100 * (late / early - 1):+.1f} %"
    )


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]  # Linux
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50", "convnext_tiny"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["cheap"],
        choices=("cheap", "all", "none", *SPECS),
        help="default: methods with few passes",
    )
    parser.add_argument("--autocast", action="store_true", help="also our Score-CAM in bfloat16")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU time of this process, if others use the machine",
    )
    parser.add_argument("--only-ours", action="store_true", help="whole batches, without the peers")
    parser.add_argument("--memory-images", type=int, default=0, metavar="N")
    parser.add_argument("--data", type=Path, help="folder of images; default: noise")
    parser.add_argument("--weights", type=Path, help="state dict of a trained network")
    options = parser.parse_args()
    groups = {"cheap": list(CHEAP), "all": list(SPECS), "none": []}
    options.methods = [one for name in options.methods for one in groups.get(name, [name])]
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def print_setting(options: argparse.Namespace) -> None:
    hardware, meter = platform.machine(), "torch's peak of live bytes (NumPy's are not counted)"
    if options.device == "cuda":
        hardware, meter = torch.cuda.get_device_name(), "torch.cuda's peak of allocated bytes"
    images = "noise" if options.data is None else f"images of {options.data}"
    print(
        f"torch {torch.__version__} on {options.device} ({hardware}), {torch.get_num_threads()} "
        f"threads; captum {captum.__version__}, torchcam {torchcam.__version__}, pytorch-grad-cam "
        f"{version('grad-cam')}\n"
        f"batches of {options.batch_size}, {images}, image size {options.image_size}; the bars are "
        "for batches of 16 at 224 pixels on a CPU\n"
        f"{'CPU ' if options.cpu_time else ''}time: median [min .. max] over the rounds, each "
        "ratio within its round\n"
        f"memory: {meter}, above the resting state"
    )


def main() -> None:
    options = parse()
    print_setting(options)
    images = noise_images(options.batch_size, options.image_size, SEED)
    if options.data is not None:
        images = images_of(options.data, options.batch_size, options.image_size)
    warnings.filterwarnings("ignore", module="captum")
    with patch.object(tqdm, "tqdm", partial(tqdm.tqdm, disable=True)):
        for arch in options.arch if options.methods else ():
            measure_arch(arch, images.to(options.device), options)
    if options.memory_images:
        measure_resident(options.memory_images, options)


if __name__ == "__main__":
    main()
